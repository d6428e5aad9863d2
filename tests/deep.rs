//! Deep and wide graphs, many steps, many threads: nothing recurses, nothing is kept, nothing is shared by mistake.

mod common;

use std::sync::{Arc, Mutex};

use common::{assert_close, devices};
use wgrad::autograd::grad;
use wgrad::prelude::*;

fn leaf(device: &Device, values: &[f64]) -> Tensor {
    options().device(device).requires_grad(true).tensor(values)
}

#[track_caller]
fn grad_is(t: &Tensor, expected: &[f64]) {
    assert_close(&t.grad().expect("a gradient"), expected, 1e-6, "grad");
}

/// On a thread with the stack that threads have by default, so that recursion shows.
fn on_small_stack(f: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
}

#[test]
fn a_hundred_thousand_ops_in_a_row() {
    for device in devices() {
        on_small_stack(move || {
            let x = leaf(&device, &[1.0, -1.0]);
            let mut y = &x * 1;
            for i in 0..100_000 {
                y = if i % 2 == 0 { &y + 1 } else { &y - 1 };
            }
            assert_close(&y, &[1.0, -1.0], 0.0, "the value");
            y.sum().backward_with(Backward::new().retain_graph(true)).unwrap();
            grad_is(&x, &[1.0, 1.0]);
            drop(y);
            // Never run, never gone through: dropped as it is.
            let mut z = &x * 1;
            for _ in 0..100_000 {
                z = z.neg();
            }
            drop(z);
            // Values only.
            let mut v = x.detach();
            no_grad(|| (0..100_000).for_each(|_| v = &v * 1));
            assert_close(&v, &[1.0, -1.0], 0.0, "the value without gradients");
        });
    }
}

#[test]
fn a_long_chain_of_writes_in_place() {
    for device in devices() {
        on_small_stack(move || {
            let x = leaf(&device, &[1.0, 1.0]);
            let y = &x * 1;
            for _ in 0..3_000 {
                y.i(0).add_(1);
            }
            y.sum().backward().unwrap();
            grad_is(&x, &[1.0, 1.0]);
            assert_close(&y, &[3_001.0, 1.0], 0.0, "y");
        });
    }
}

#[test]
fn ten_thousand_uses_of_one_tensor() {
    for device in devices() {
        on_small_stack(move || {
            let x = leaf(&device, &[2.0]);
            let parts: Vec<Tensor> = (0..10_000).map(|_| &x * 1).collect();
            let mut level = parts;
            while level.len() > 1 {
                level = level
                    .chunks(2)
                    .map(|c| if c.len() == 2 { &c[0] + &c[1] } else { c[0].clone() })
                    .collect();
            }
            level[0].backward().unwrap();
            grad_is(&x, &[10_000.0]);
            let many: Vec<Tensor> = (0..1_000).map(|_| x.clone()).collect();
            x.set_grad(None);
            cat(&many.iter().collect::<Vec<_>>(), 0).sum().backward().unwrap();
            grad_is(&x, &[1_000.0]);
        });
    }
}

#[test]
fn graphs_are_freed() {
    for device in devices() {
        // A pass frees what was saved: the memory of a step does not add up over steps.
        let x = options().device(&device).requires_grad(true).ones([256, 1024]);
        let step = || {
            let y = (&x * 2).exp().tanh();
            let z = (&y * &y).sum();
            z.backward().unwrap();
            x.grad().unwrap().check().unwrap();
            x.set_grad(None);
            z
        };
        let held = step();
        device.synchronize().unwrap();
        let before = device.memory().live_bytes;
        let results: Vec<Tensor> = (0..5).map(|_| step()).collect();
        results.iter().for_each(|r| r.check().unwrap());
        device.synchronize().unwrap();
        let grown = device.memory().live_bytes.saturating_sub(before);
        assert!(grown < 1 << 20, "{grown} bytes more on {device}");
        drop(held);
    }
}

#[test]
fn threads_share_tensors_and_not_modes() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0]);
        let sum = Arc::new(Mutex::new(vec![]));
        std::thread::scope(|scope| {
            for k in 1..=4 {
                let (x, sum) = (x.clone(), sum.clone());
                scope.spawn(move || {
                    for _ in 0..20 {
                        let y = (&x * k).exp().log().sum();
                        let g = grad(&[&y], &[&x]).unwrap().remove(0);
                        sum.lock().unwrap().push((k, g.to_f64_vec().unwrap()));
                    }
                });
            }
        });
        for (k, g) in sum.lock().unwrap().iter() {
            assert!(g.iter().all(|v| (v - f64::from(*k)).abs() < 1e-4), "{k}: {g:?} on {device}");
        }
    }
}
