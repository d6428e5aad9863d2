//! Checkpoints: computed again instead of kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use wgrad::autograd::{checkpoint, checkpoint_sequential, grad, grad_with};
use wgrad::prelude::*;

use crate::support::*;

/// A layer that saves much: tanh(x w) twice.
fn block(w: &Tensor) -> impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static {
    let w = w.clone();
    move |x| x[0].matmul(&w).tanh().matmul(&w).tanh()
}

fn weights(device: &Device) -> Tensor {
    leaf(device, &[0.5, -0.25, 1.0, 0.75]).reshape([2, 2]).detach().requires_grad_(true)
}

fn input(device: &Device) -> Tensor {
    leaf(device, &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).reshape([3, 2]).detach().requires_grad_(true)
}

fn bits(t: &Tensor) -> Vec<f32> {
    t.to_vec().unwrap()
}

/// That two ways give the same, but for the rounding of sums that other kernels take in other orders.
#[track_caller]
fn alike<const N: usize>(got: [Vec<f32>; N], want: [Vec<f32>; N]) {
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got.len(), want.len());
        let close = got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0));
        assert!(close, "{i}: {got:?}, and not {want:?}");
    }
}

/// Gradients of `x` and `w` by the plain way and by the checkpointed one are the same.
#[track_caller]
fn same(
    device: &Device,
    plain: impl Fn(&Tensor, &Tensor) -> Tensor,
    kept: impl Fn(&Tensor, &Tensor) -> Tensor,
) {
    let run = |f: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        let (x, w) = (input(device), weights(device));
        let y = f(&x, &w);
        y.sum().backward().unwrap();
        [&y.detach(), &x.grad().unwrap(), &w.grad().unwrap()].map(bits)
    };
    alike(run(&kept), run(&plain));
}

// test_autograd.py::test_checkpointing
#[test]
fn a_checkpointed_module_has_the_same_gradients() {
    each(|device| {
        same(device, |x, w| block(w)(std::slice::from_ref(x)), |x, w| checkpoint(block(w), &[x]));
        // A long chain of them.
        let long = |x: &Tensor, w: &Tensor| (0..20).fold(x.clone(), |x, _| block(w)(&[x]));
        let kept = |x: &Tensor, w: &Tensor| (0..20).fold(x.clone(), |x, _| checkpoint(block(w), &[&x]));
        same(device, long, kept);
    });
}

// test_autograd.py::test_checkpointing_without_reentrant_correct_grad
#[test]
fn sequences_in_segments() {
    each(|device| {
        for segments in [1, 2, 3, 10, 0] {
            let layers = |w: &Tensor| -> Vec<_> {
                (0..5)
                    .map(|i| {
                        let w = w.clone();
                        move |x: &Tensor| x.matmul(&w).tanh() * f64::from(i + 1)
                    })
                    .collect()
            };
            same(
                device,
                |x, w| layers(w).iter().fold(x.clone(), |x, f| f(&x)),
                |x, w| checkpoint_sequential(layers(w), segments, x),
            );
        }
        let none: Vec<fn(&Tensor) -> Tensor> = vec![];
        let x = input(device);
        assert!(checkpoint_sequential(none, 2, &x).is_same(&x));
    });
}

// test_autograd.py::test_checkpointing_without_reentrant_input_requires_grad_False, test_checkpointing_without_reentrant_input_requires_grad_True
#[test]
fn inputs_may_require_grad_or_not() {
    each(|device| {
        for grad in [false, true] {
            let (x, w) = (input(device).detach().requires_grad_(grad), weights(device));
            let y = checkpoint(block(&w), &[&x]);
            y.sum().backward().unwrap();
            assert_eq!(x.grad().is_some(), grad);
            assert!(w.grad().is_some());
        }
        // Without recording it is a plain call, that keeps nothing.
        let (x, w) = (input(device), weights(device));
        let drops = Count::default();
        let held = Dropped(drops.clone());
        let f = block(&w);
        let y = no_grad(|| {
            checkpoint(
                move |x| {
                    let _ = &held;
                    f(x)
                },
                &[&x],
            )
        });
        assert!(!y.requires_grad() && drops.get() == 1);
    });
}

// test_autograd.py::test_checkpointing_without_reentrant_parameter_used_in_an_out
#[test]
fn a_parameter_used_inside_and_outside() {
    each(|device| {
        let inside = |w: &Tensor| {
            let w = w.clone();
            move |x: &[Tensor]| (x[0].matmul(&w) * &x[0]).sigmoid()
        };
        same(
            device,
            |x, w| inside(w)(&[x.matmul(w).exp()]).matmul(w),
            |x, w| checkpoint(inside(w), &[&x.matmul(w).exp()]).matmul(w),
        );
    });
}

// test_autograd.py::test_checkpointing_without_reentrant_arbitrary_input_output
#[test]
fn several_inputs_and_outputs_of_any_type() {
    each(|device| {
        let (x, w) = (input(device), weights(device));
        let index = plain(device, &[1.0, 0.0]).to(I32);
        let f = |i: &[Tensor]| {
            vec![i[0].matmul(&i[1]).tanh(), i[0].index_select(1, &i[2]).exp(), i[2].clone() + 1]
        };
        let run = |kept: bool| {
            x.set_grad(None);
            w.set_grad(None);
            let out = match kept {
                true => checkpoint(f, &[&x, &w, &index]),
                false => f(&[x.clone(), w.clone(), index.clone()]),
            };
            assert!(out.len() == 3 && out[2].dtype() == I32 && !out[2].requires_grad());
            (out[0].sum() + (&out[1] * &out[0]).sum()).backward().unwrap();
            [bits(&x.grad().unwrap()), bits(&w.grad().unwrap())]
        };
        alike(run(true), run(false));
        // One output unused, and none used at all.
        let out = checkpoint(f, &[&x, &w, &index]);
        out[1].sum().backward().unwrap();
        drop(checkpoint(f, &[&x, &w, &index]));
    });
}

// test_autograd.py::test_checkpointing_without_reentrant_memory_savings
#[test]
fn nothing_is_kept_and_each_pass_computes_once() {
    each(|device| {
        let (x, w) = (input(device), weights(device));
        let count = Count::default();
        let (seen, f) = (count.clone(), block(&w));
        let y = checkpoint(
            move |x| {
                seen.up();
                f(x)
            },
            &[&x],
        );
        assert_eq!(count.get(), 1);
        // No function holds a value.
        let mut stack = vec![y.grad_fn().unwrap()];
        while let Some(f) = stack.pop() {
            assert_eq!(f.saved_bytes(), 0, "{} holds values", f.name());
            stack.extend(f.next_functions().into_iter().flatten());
        }
        y.sum().backward_with(retain()).unwrap();
        assert_eq!(count.get(), 2);
        y.sum().backward().unwrap();
        assert_eq!(count.get(), 3);
        fails(y.sum().backward(), "Trying to backward through the graph a second time");
        assert_eq!(count.get(), 3);
    });
}

// test_autograd.py::test_access_saved_tensor_twice_without_recomputation_works
#[test]
fn a_value_asked_for_twice_in_one_pass_is_computed_once() {
    each(|device| {
        let x = leaf(device, &[0.5, -0.5]);
        let count = Count::default();
        let seen = count.clone();
        // Two functions that both need the same values, and a pass of which half fits what was asked.
        let y = checkpoint(
            move |i| {
                seen.up();
                let e = i[0].exp();
                vec![&e * &e, e.tanh()]
            },
            &[&x],
        );
        let loss = y[0].sum() + y[1].sum();
        grad_with(&[&loss], &[&x], retain()).unwrap();
        assert_eq!(count.get(), 2);
        loss.backward().unwrap();
        assert_eq!(count.get(), 3);
    });
}

#[test]
fn dropout_is_the_same_both_times_and_streams_go_on() {
    each(|device| {
        let run = |kept: bool| {
            device.manual_seed(7);
            let x = options().device(device).requires_grad(true).ones([64]);
            let f = |x: &[Tensor]| {
                let noise = options().device(x[0].device()).randn([64]);
                (x[0].dropout(0.5, true) * noise).exp()
            };
            let y = if kept { checkpoint(f, &[&x]) } else { f(std::slice::from_ref(&x)) };
            // What is drawn between the two runs does not disturb the second, nor does that disturb what comes after.
            let between = options().device(device).rand([8]);
            y.sum().backward().unwrap();
            let after = options().device(device).rand([8]);
            [&y.detach(), &x.grad().unwrap(), &between, &after].map(bits)
        };
        alike(run(true), run(false));
    });
}

// test_autograd.py::TestNestedCheckpoint::test_nested_checkpoint, TestNestedCheckpoint::test_nested_checkpoint_two_children
#[test]
fn checkpoints_within_checkpoints() {
    each(|device| {
        let inner = |x: &Tensor, w: &Tensor| checkpoint(block(w), &[x]).exp();
        let nested = move |x: &Tensor, w: &Tensor| {
            let w = w.clone();
            let f = move |x: &[Tensor]| {
                let a = checkpoint(
                    {
                        let w = w.clone();
                        move |x: &[Tensor]| inner(&x[0], &w).sin()
                    },
                    &[&x[0]],
                );
                let b = checkpoint(block(&w), &[&a.cos()]);
                &a * &b
            };
            checkpoint(f, &[x])
        };
        let flat = |x: &Tensor, w: &Tensor| {
            let a = block(w)(std::slice::from_ref(x)).exp().sin();
            let b = block(w)(&[a.cos()]);
            &a * &b
        };
        same(device, flat, nested);
        // And their second gradients.
        let second = |f: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
            let (x, w) = (input(device), weights(device));
            let y = f(&x, &w).sum();
            let g = grad_with(&[&y], &[&x, &w], create()).unwrap();
            let h = grad_with(&[&(g[0].square().sum() + g[1].sum())], &[&x, &w], create()).unwrap();
            let third = grad(&[&h[0].sum()], &[&w]).unwrap().remove(0);
            [&g[0].detach(), &g[1].detach(), &h[0].detach(), &h[1].detach(), &third].map(bits)
        };
        alike(second(&nested), second(&flat));
    });
}

// test_autograd.py::TestNestedCheckpoint::test_nested_checkpoint_same_graph
#[test]
fn one_checkpoint_and_two_passes_at_once() {
    each(|device| {
        let (x, w) = (input(device), weights(device));
        let y = checkpoint(block(&w), &[&x]);
        let outer = checkpoint(block(&w), &[&y]);
        // A hook runs another pass over the graph that the pass is in.
        let (again, of) = (y.sum(), x.clone());
        let found = Arc::new(Mutex::new(vec![]));
        let keep = found.clone();
        let handle = outer
            .register_hook(move |_| {
                keep.lock().unwrap().extend(grad_with(&[&again], &[&of], retain()).unwrap());
            })
            .unwrap();
        let (px, pw) = (input(device), weights(device));
        let py = block(&pw)(std::slice::from_ref(&px));
        let inner = grad_with(&[&py.sum()], &[&px], retain()).unwrap().remove(0);
        block(&pw)(std::slice::from_ref(&py)).sum().backward().unwrap();
        outer.sum().backward().unwrap();
        handle.remove();
        assert_eq!(bits(&found.lock().unwrap()[0]), bits(&inner));
        assert_eq!(bits(&x.grad().unwrap()), bits(&px.grad().unwrap()));
        assert_eq!(bits(&w.grad().unwrap()), bits(&pw.grad().unwrap()));
    });
}

// test_autograd.py::TestNestedCheckpoint::test_nested_checkpoint_reentrant_backwards
#[test]
fn a_pass_inside_a_checkpointed_function() {
    each(|device| {
        let x = leaf(device, &[0.5]);
        let f = |i: &[Tensor]| {
            // The gradient of a graph of its own is part of what it computes.
            let inside = i[0].detach().requires_grad_(true);
            let g = grad(&[&inside.exp().sum()], &[&inside]).unwrap().remove(0);
            i[0].sin() * g
        };
        let y = checkpoint(f, &[&x]);
        y.backward().unwrap();
        grad_is(&x, &[0.5f64.cos() * 0.5f64.exp()]);
        // One over what the checkpoint itself has just saved, in both runs.
        let x = leaf(device, &[0.5]);
        let own = |i: &[Tensor]| {
            let e = i[0].exp();
            let g = grad_with(&[&(&e * &e)], &[&i[0]], retain()).unwrap().remove(0);
            e * g
        };
        // e^x times the constant 2 e^2x.
        checkpoint(own, &[&x]).backward().unwrap();
        crate::common::assert_close(&x.grad().unwrap(), &[2.0 * 1.5f64.exp()], 1e-5, "grad");
    });
}

// test_autograd.py::test_checkpoint_detects_non_determinism
#[test]
fn a_second_run_that_differs_is_an_error() {
    each(|device| {
        let x = leaf(device, &[0.5, 1.0]);
        let changing = |f: fn(&Tensor, usize) -> Tensor| {
            let count = Count::default();
            let y = checkpoint(
                move |i| {
                    count.up();
                    f(&i[0], count.get())
                },
                &[&x],
            );
            y.sum().backward()
        };
        let error = fails(
            changing(|x, n| if n == 1 { x.exp().exp() } else { x.exp() }),
            "A different number of tensors was saved during the original forward and recomputation: 2 and 1",
        );
        assert_eq!((error.kind(), error.op()), (ErrorKind::Autograd, "checkpoint"));
        assert!(error.caller().file().ends_with("checkpoint.rs"), "{error}");
        fails(
            changing(|x, n| if n == 1 { x.exp() } else { x.narrow(0, 0, 1).exp() }),
            "Recomputed values for the following tensors have different metadata than during the forward pass",
        );
        fails(changing(|x, n| if n == 1 { x.exp() } else { x.reshape([7]).exp() }), "");
        assert!(x.grad().is_none());
        changing(|x, _| x.exp()).unwrap();
    });
}

// test_autograd.py::test_checkpoint_valid_reset_on_error
#[test]
fn after_a_panic_in_a_checkpoint_everything_works() {
    each(|device| {
        let x = leaf(device, &[0.5]);
        let first = catch_unwind(AssertUnwindSafe(|| {
            checkpoint(|i| if i[0].exp().dim() == 1 { panic!("in forward") } else { i[0].clone() }, &[&x])
        }));
        assert!(first.is_err());
        let count = Count::default();
        let y = checkpoint(
            move |i| {
                count.up();
                if count.get() == 2 {
                    panic!("in the second run");
                }
                i[0].exp().exp()
            },
            &[&x],
        );
        assert!(catch_unwind(AssertUnwindSafe(|| y.backward_with(retain()))).is_err());
        // The third run works, values are saved as usual, and random numbers are fresh.
        y.backward().unwrap();
        let (e, z) = (0.5f64.exp(), &x * &x);
        grad_is(&x, &[e * e.exp()]);
        assert!(z.grad_fn().unwrap().saved_bytes() > 0);
        let draw = || bits(&options().device(device).rand([4]));
        assert_ne!(draw(), draw());
    });
}

// test_autograd.py::test_checkpointing_without_reentrant_custom_function_works
#[test]
fn functions_and_writes_in_place_inside_a_checkpoint() {
    each(|device| {
        let f = |i: &[Tensor]| {
            let y = &i[0] * 2;
            y.narrow(0, 0, 1).mul_(i[0].narrow(0, 1, 1));
            one(custom(
                |ctx, i| {
                    let out = i[0].exp();
                    ctx.save_for_backward(&[&i[0], &out]);
                    vec![out]
                },
                |ctx, g| vec![g[0].as_ref().map(|g| g * &ctx.saved_tensors()[1])],
                &[&y],
            ))
        };
        let run = |kept: bool| {
            let x = leaf(device, &[0.5, 0.25]);
            let y = if kept { checkpoint(f, &[&x]) } else { f(std::slice::from_ref(&x)) };
            let g = grad_with(&[&y.sum()], &[&x], create()).unwrap().remove(0);
            g.sum().backward().unwrap();
            [bits(&g.detach()), bits(&x.grad().unwrap())]
        };
        alike(run(true), run(false));
    });
}

// test_autograd.py::test_save_on_cpu_and_checkpoint
#[test]
fn what_a_checkpoint_keeps_may_be_kept_on_the_host() {
    each(|device| {
        same(
            device,
            |x, w| block(w)(&[block(w)(std::slice::from_ref(x))]),
            |x, w| wgrad::autograd::save_on_cpu(|| checkpoint(block(w), &[&checkpoint(block(w), &[x])])),
        );
        same(
            device,
            |x, w| block(w)(&[block(w)(std::slice::from_ref(x))]),
            |x, w| {
                let w = w.clone();
                checkpoint(move |x| wgrad::autograd::save_on_cpu(|| block(&w)(&[block(&w)(x)])), &[x])
            },
        );
    });
}

#[test]
fn writes_to_the_input_between_the_runs_change_nothing() {
    each(|device| {
        let x = leaf(device, &[0.5, 1.0]);
        let mid = &x * 1;
        let y = checkpoint(|i| i[0].exp().exp(), &[&mid]);
        mid.fill_(100);
        y.sum().backward().unwrap();
        let d = |v: f64| v.exp() * v.exp().exp();
        let want = [d(0.5), d(1.0)];
        crate::common::assert_close(&x.grad().unwrap(), &want, 1e-5, "grad");
    });
}
