//! Several threads: shared parameters, shared graphs, the same bits each time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;

use wgrad::autograd::{checkpoint, grad_with};
use wgrad::prelude::*;

use crate::support::*;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(4) * 2 + 1
}

/// Runs `work` on every thread at once.
fn all_at_once(work: impl Fn(usize) + Sync) {
    let n = threads();
    let start = Barrier::new(n);
    std::thread::scope(|scope| {
        for k in 0..n {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(k);
            });
        }
    });
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// What each thread computes with shared weights: it differs in all bits.
fn loss(w: &Tensor, k: usize) -> Tensor {
    let x = options().device(w.device()).arange(1.0, 5.0, 1.0) * (0.1 + k as f64 / 3.0);
    ((w * &x).sin() * w * 1e3f64.powi(k as i32 % 3)).sum()
}

/// A hundred times the same bits.
fn a_hundred_times(device: &Device, run: impl Fn(&Tensor) + Sync) {
    let mut first = None;
    for round in 0..100 {
        let w = leaf(device, &[0.3, -0.7, 1.1, 1e-3]);
        run(&w);
        let got = bits(&w.grad().unwrap());
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "round {round} on {device}");
    }
}

/// The same work on one thread, in float64.
fn expected(passes: usize) -> Vec<f64> {
    let w = options().dtype(F64).device(cpu()).requires_grad(true).tensor([0.3, -0.7, 1.1, 1e-3]);
    for k in 0..threads() {
        for _ in 0..passes {
            loss(&w, k).backward().unwrap();
        }
    }
    w.grad().unwrap().to_f64_vec().unwrap()
}

// test_autograd.py::TestMultithreadAutograd::test_simple_backward
#[test]
fn each_thread_with_its_own_graph() {
    each(|device| {
        all_at_once(|k| {
            let x = leaf(device, &[k as f64, 2.0]);
            for _ in 0..10 {
                x.set_grad(None);
                ((&x + 3) * (&x + 4) * 0.5).sum().backward().unwrap();
                grad_is(&x, &[k as f64 + 3.5, 5.5]);
            }
        });
    });
}

// test_autograd.py::TestMultithreadAutograd::test_simple_backward_same_input
#[test]
fn shared_parameters_give_the_same_bits_a_hundred_times() {
    each(|device| {
        a_hundred_times(device, |w| all_at_once(|k| loss(w, k).backward().unwrap()));
        let w = leaf(device, &[0.3, -0.7, 1.1, 1e-3]);
        all_at_once(|k| (0..3).for_each(|_| loss(&w, k).backward().unwrap()));
        let want = expected(3);
        crate::common::assert_close(&w.grad().unwrap(), &want, 1e-5, "grad");
    });
}

#[test]
fn shared_parameters_with_hooks_checkpoints_and_reads() {
    each(|device| {
        a_hundred_times(device, |w| {
            let count = Count::default();
            let seen = count.clone();
            w.register_hook(|g| g * 2).unwrap();
            w.register_post_accumulate_grad_hook(move |_| seen.up()).unwrap();
            all_at_once(|k| {
                let y = match k % 3 {
                    0 => checkpoint(move |i| loss(&i[0], k), &[w]),
                    1 => {
                        let y = loss(w, k);
                        y.item::<f32>().unwrap();
                        y
                    }
                    _ => loss(w, k),
                };
                y.register_hook(|g| g * 0.5).unwrap();
                y.backward().unwrap();
                // Some sum of what others have done; it must not disturb.
                w.grad().unwrap().to_vec::<f32>().unwrap();
            });
            assert_eq!(count.get(), threads());
        });
    });
}

/// The same bits where a sum is what was written. A GPU's driver may take e + (a b + c d) in another order, or not, if it
/// sees it whole, and that depends on when who had something computed: there, the same but for the last bit.
#[test]
fn several_passes_of_each_thread() {
    each(|device| {
        let run = |w: &Tensor| {
            all_at_once(|k| {
                loss(w, k).backward().unwrap();
                loss(w, k + 1).backward().unwrap();
            });
        };
        if device.is_cpu() {
            return a_hundred_times(device, run);
        }
        let mut first: Option<Vec<f64>> = None;
        for _ in 0..20 {
            let w = leaf(device, &[0.3, -0.7, 1.1, 1e-3]);
            run(&w);
            let grad = w.grad().unwrap();
            let want = first.get_or_insert_with(|| grad.to_f64_vec().unwrap());
            crate::common::assert_close(&grad, want, 1e-6, "grad");
        }
    });
}

// test_autograd.py::TestMultithreadAutograd::test_fork_join_in_middle
#[test]
fn one_graph_retained_and_many_passes() {
    each(|device| {
        let mut first = None;
        for _ in 0..100 {
            let w = leaf(device, &[0.3, -0.7, 1.1, 1e-3]);
            let y = loss(&w, 1);
            let mid = &y * 3;
            all_at_once(|k| {
                mid.backward_with(retain().gradient(&plain(device, &[k as f64 + 0.1]).reshape(()))).unwrap();
                let g = grad_with(&[&mid], &[&w], retain()).unwrap().remove(0);
                assert_eq!(g.shape(), [4]);
            });
            let got = bits(&w.grad().unwrap());
            assert_eq!(*first.get_or_insert_with(|| got.clone()), got);
        }
    });
}

// test_autograd.py::TestMultithreadAutograd::test_python_thread_in_middle
#[test]
fn a_graph_that_is_not_retained_goes_to_one_thread() {
    each(|device| {
        for _ in 0..20 {
            let w = leaf(device, &[1.0, 2.0]);
            let y = (&w * &w).sum();
            let (done, freed) = (Count::default(), Count::default());
            all_at_once(|_| match y.backward() {
                Ok(()) => done.up(),
                Err(error) => {
                    assert!(error.message().contains("a second time"), "{error}");
                    freed.up();
                }
            });
            // Threads may each get a part of the graph, and fail at the rest; none goes through twice.
            assert!(done.get() <= 1 && done.get() + freed.get() == threads());
        }
    });
}

// test_autograd.py::TestMultithreadAutograd::test_preserve_backtrace
#[test]
fn errors_and_panics_of_one_thread_stay_there() {
    each(|device| {
        let w = leaf(device, &[0.3, -0.7, 1.1, 1e-3]);
        all_at_once(|k| {
            let y = loss(&w, k);
            match k % 3 {
                0 => y.backward().unwrap(),
                1 => {
                    y.register_hook(|g| g.reshape([9])).unwrap();
                    assert_eq!(y.backward().unwrap_err().op(), "reshape");
                }
                _ => {
                    y.register_hook(|_| -> () { panic!("in a hook, on purpose") }).unwrap();
                    assert!(catch_unwind(AssertUnwindSafe(|| y.backward())).is_err());
                }
            }
        });
        w.set_grad(None);
        (&w * 2).sum().backward().unwrap();
        grad_is(&w, &[2.0; 4]);
    });
}

#[test]
fn a_gradient_cleared_or_written_between_the_threads_passes() {
    each(|device| {
        let w = leaf(device, &[1.0, 2.0]);
        for scale in [1.0, 10.0] {
            all_at_once(|_| (&w * scale).sum().backward().unwrap());
            let n = threads() as f64;
            grad_is(&w, &[n * scale, n * scale]);
            let g = w.grad().unwrap();
            g.mul_(2);
            (&w * 1).sum().backward().unwrap();
            grad_is(&w, &[2.0 * n * scale + 1.0; 2]);
            all_at_once(|_| (&w * 1).sum().backward().unwrap());
            grad_is(&w, &[2.0 * n * scale + 1.0 + n; 2]);
            g.zero_();
        }
        w.set_grad(None);
        // Infinite and NaN, where no unit of fixed point is.
        all_at_once(|k| (&w * if k == 1 { f64::INFINITY } else { 1.0 }).sum().backward().unwrap());
        assert_eq!(w.grad().unwrap().to_f64_vec().unwrap(), [f64::INFINITY; 2]);
    });
}

#[test]
fn handles_are_dropped_and_hooks_removed_while_others_run() {
    each(|device| {
        let w = leaf(device, &[1.0, 2.0]);
        all_at_once(|k| {
            for i in 0..20 {
                let y = (&w * (k + i)).exp().sum();
                let handle = w.register_hook(|g| g * 1).unwrap();
                if (k + i) % 2 == 0 {
                    y.backward().unwrap();
                }
                handle.remove();
            }
        });
        assert!(w.grad().is_some());
        w.set_grad(None);
        (&w * 2).sum().backward().unwrap();
        grad_is(&w, &[2.0, 2.0]);
    });
}
