//! PyTorch's autograd contract, after its own `test/test_autograd.py`.

mod common;

use common::{assert_close, devices};
use wgrad::autograd::{enable_grad_guard, grad, grad_with, is_grad_enabled, no_grad_guard, set_grad_enabled};
use wgrad::prelude::*;

fn leaf(device: &Device, values: &[f64]) -> Tensor {
    options().device(device).requires_grad(true).tensor(values)
}

#[track_caller]
fn grad_is(t: &Tensor, expected: &[f64]) {
    let grad = t.grad().expect("a gradient");
    assert_eq!((grad.shape(), grad.dtype()), (t.shape(), t.dtype()));
    assert_close(&grad, expected, 1e-6, "grad");
}

#[test]
fn gradients_accumulate_in_place() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0]);
        (&x * &x).sum().backward().unwrap();
        let first = x.grad().unwrap();
        grad_is(&x, &[2.0, 4.0]);
        (&x * 3).sum().backward().unwrap();
        grad_is(&x, &[5.0, 7.0]);
        // Whoever holds the gradient sees it grow, as in PyTorch.
        assert!(first.is_same(&x.grad().unwrap()));
        assert_close(&first, &[5.0, 7.0], 0.0, "the gradient held");
        // Optimizers write to it, and it forgets nothing.
        first.zero_();
        (&x * 2).sum().backward().unwrap();
        grad_is(&x, &[2.0, 2.0]);
        x.set_grad(None);
        assert!(x.grad().is_none());
        (&x * 2).sum().backward().unwrap();
        grad_is(&x, &[2.0, 2.0]);
        assert!(!x.grad().unwrap().requires_grad());
    }
}

#[test]
fn two_leaves_do_not_share_a_gradient() {
    for device in devices() {
        // The same gradient flows to both sides of a sum; a write to one must not show in the other.
        let (x, y) = (leaf(&device, &[1.0, 2.0]), leaf(&device, &[3.0, 4.0]));
        let start = options().device(&device).tensor([1.0, 10.0]);
        (&x + &y).backward_with(&start).unwrap();
        x.grad().unwrap().mul_(5);
        grad_is(&x, &[5.0, 50.0]);
        grad_is(&y, &[1.0, 10.0]);
        assert_close(&start, &[1.0, 10.0], 0.0, "the gradient given");
    }
}

#[test]
fn a_second_backward_is_an_error_unless_the_graph_is_retained() {
    for device in devices() {
        let x = leaf(&device, &[3.0]);
        let y = &x * &x;
        y.backward_with(Backward::new().retain_graph(true)).unwrap();
        y.backward().unwrap();
        grad_is(&x, &[12.0]);
        let error = y.backward().unwrap_err();
        assert_eq!((error.kind(), error.op()), (ErrorKind::Autograd, "backward"));
        for part in [
            "Trying to backward through the graph a second time",
            "Specify retain_graph=true",
            "MulBackward0",
            "autograd.rs",
        ] {
            assert!(error.message().contains(part), "{error}");
        }
        assert!(error.caller().file().ends_with("autograd.rs"));
        grad_is(&x, &[12.0]);
        // What saves nothing can be gone through again, as in PyTorch... and so can a new graph.
        (&x * &x).backward().unwrap();
        grad_is(&x, &[18.0]);
    }
}

#[test]
fn backward_needs_a_scalar_or_a_gradient_of_the_right_shape() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0, 3.0]);
        let y = &x * 2;
        let error = y.backward().unwrap_err();
        assert!(
            error.message().contains("grad can be implicitly created only for scalar outputs"),
            "{error}"
        );
        assert!(error.message().contains("[3]"), "{error}");
        let error = y.backward_with(&options().device(&device).ones(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shape);
        assert!(error.message().contains("[2]") && error.message().contains("[3]"), "{error}");
        assert!(x.grad().is_none());
        y.backward_with(&options().device(&device).tensor([1.0, 10.0, 100.0])).unwrap();
        grad_is(&x, &[2.0, 20.0, 200.0]);
        let plain = options().device(&device).ones(1);
        let error = plain.backward().unwrap_err();
        assert_eq!(error.message(), "element 0 of tensors does not require grad and does not have a grad_fn");
        // A leaf that requires grad is its own gradient's end.
        let s = leaf(&device, &[4.0]);
        s.backward().unwrap();
        grad_is(&s, &[1.0]);
    }
}

#[test]
fn retain_grad_keeps_what_is_no_leaf() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0]);
        let y = &x * 3;
        y.retain_grad();
        y.retain_grad(); // twice is once
        assert!(y.retains_grad() && !x.retains_grad());
        let z = &y * &y;
        z.sum().backward().unwrap();
        grad_is(&y, &[6.0, 12.0]);
        grad_is(&x, &[18.0, 36.0]);
        // Used twice: the sum of both, and once more with each pass.
        let x = leaf(&device, &[1.0]);
        let y = &x * 2;
        y.retain_grad();
        let z = &y * 3 + &y * 4;
        z.backward_with(Backward::new().retain_graph(true)).unwrap();
        grad_is(&y, &[7.0]);
        z.backward().unwrap();
        grad_is(&x, &[28.0]);
        grad_is(&y, &[14.0]);
        // The result itself, too.
        let z = &x * 5;
        z.retain_grad();
        z.backward().unwrap();
        grad_is(&z, &[1.0]);
    }
}

#[test]
fn no_grad_nests_and_unwinds() {
    let device = &devices()[0];
    let x = leaf(device, &[1.0]);
    assert!(is_grad_enabled());
    no_grad(|| {
        assert!(!is_grad_enabled());
        assert!(!(&x * 2).requires_grad());
        enable_grad(|| {
            assert!((&x * 2).requires_grad());
            no_grad(|| assert!(!is_grad_enabled()));
            assert!(is_grad_enabled());
        });
        assert!(!is_grad_enabled());
    });
    assert!(is_grad_enabled());
    let panicked = std::panic::catch_unwind(|| no_grad(|| panic!("within no_grad")));
    assert!(panicked.is_err() && is_grad_enabled(), "unwinding restores the mode");
    {
        let _off = no_grad_guard();
        assert!(!is_grad_enabled());
        let _on = enable_grad_guard();
        assert!(is_grad_enabled());
    }
    assert!(is_grad_enabled());
    let guard = set_grad_enabled(false);
    // Each thread has its own.
    std::thread::scope(|s| assert!(s.spawn(is_grad_enabled).join().unwrap()));
    drop(guard);
    // A leaf made under no_grad can still require grad.
    let w = no_grad(|| options().device(device).requires_grad(true).ones(2));
    assert!(w.requires_grad() && w.is_leaf());
    assert!((&w * 2).requires_grad());
}

#[test]
fn requires_grad_spreads_and_detach_cuts() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0]);
        let c = options().device(&device).tensor([3.0, 4.0]);
        assert!(x.is_leaf() && c.is_leaf() && !c.requires_grad());
        let y = &x * &c;
        assert!(y.requires_grad() && !y.is_leaf());
        assert_eq!(y.grad_fn().unwrap().name(), "MulBackward0");
        let next = y.grad_fn().unwrap().next_functions();
        assert_eq!(next[0].as_ref().unwrap().name(), "AccumulateGrad");
        assert!(next[1].is_none());
        assert!(x.grad_fn().is_none());
        assert!(!(&c + 1).requires_grad() && (&c + 1).is_leaf());
        let d = y.detach();
        assert!(!d.requires_grad() && d.is_leaf() && d.shares_storage(&y));
        (&y * &d).sum().backward().unwrap();
        grad_is(&x, &[9.0, 32.0]);
        assert!(c.grad().is_none());
        // Comparisons and integers have no gradient.
        assert!(!x.gt(1.0).requires_grad() && !x.to(I32).requires_grad());
        // Changing the flag of a leaf changes what is recorded from then on.
        x.requires_grad_(false);
        assert!(!(&x * 2).requires_grad());
        x.requires_grad_(true);
        assert!((&x * 2).requires_grad());
    }
}

#[test]
fn leaves_must_not_be_written_outside_no_grad() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0]);
        let out = x.add_(1.0);
        let error = out.error().unwrap();
        assert_eq!(error.kind(), ErrorKind::Autograd);
        assert_eq!(
            error.message(),
            "a leaf Variable that requires grad is being used in an in-place operation."
        );
        let error = x.i(0).fill_(5.0).error().unwrap();
        assert_eq!(
            error.message(),
            "a view of a leaf Variable that requires grad is being used in an in-place operation."
        );
        // Nothing was changed.
        assert!(x.error().is_none());
        assert_close(&x, &[1.0, 2.0], 0.0, "x");
        no_grad(|| x.sub_(0.5));
        assert!(x.is_leaf() && x.requires_grad());
        assert_close(&x, &[0.5, 1.5], 0.0, "x after a step");
        (&x * &x).sum().backward().unwrap();
        grad_is(&x, &[1.0, 3.0]);
        // A leaf that does not require grad takes on the history of what is written to it.
        let buffer = options().device(&device).zeros(2);
        buffer.copy_(&(&x * 3));
        assert!(buffer.requires_grad() && !buffer.is_leaf());
        x.set_grad(None);
        buffer.sum().backward().unwrap();
        grad_is(&x, &[3.0, 3.0]);
    }
}

#[test]
fn writes_in_place_are_part_of_the_graph() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0, 3.0]);
        let y = &x * 2;
        y.mul_(&x);
        assert_eq!(y.grad_fn().unwrap().name(), "MulBackward0");
        y.add_(1);
        y.sum().backward().unwrap();
        grad_is(&x, &[4.0, 8.0, 12.0]);

        // Zeroed: nothing flows to what was there.
        let x = leaf(&device, &[1.0, 2.0, 3.0]);
        let y = &x * 2;
        y.zero_();
        y.add_(&x);
        y.sum().backward().unwrap();
        grad_is(&x, &[1.0, 1.0, 1.0]);
    }
}

#[test]
fn writes_through_views_carry_gradients() {
    for device in devices() {
        // To the base, where the view lies over it.
        let x = leaf(&device, &[1.0, 2.0, 3.0, 4.0]);
        let base = &x * 1;
        let row = base.view([2, 2]).i(0);
        row.mul_(10);
        assert_eq!(base.grad_fn().unwrap().name(), "CopySlices");
        assert_eq!(row.grad_fn().unwrap().name(), "AsStridedBackward0");
        (&base * &base).sum().backward().unwrap();
        grad_is(&x, &[200.0, 400.0, 6.0, 8.0]);

        // From the value written.
        let (x, v) = (leaf(&device, &[1.0, 2.0, 3.0]), leaf(&device, &[5.0]));
        let base = &x * 2;
        base.i(1..2).copy_(&v);
        (&base * &x).sum().backward().unwrap();
        grad_is(&x, &[4.0, 5.0, 12.0]);
        grad_is(&v, &[2.0]);

        // A view made before the write sees the new history, too.
        let x = leaf(&device, &[1.0, 2.0]);
        let base = &x * 1;
        let view = base.i(..1);
        base.mul_(&x);
        assert_eq!(view.grad_fn().unwrap().name(), "AsStridedBackward0");
        view.sum().backward().unwrap();
        grad_is(&x, &[2.0, 0.0]);

        // A view of a view, written through; and one beside it.
        let x = leaf(&device, &[1.0, 2.0, 3.0, 4.0]);
        let base = (&x * 1).reshape([2, 2]);
        let (column, row) = (base.t().i(1), base.i(1));
        column.i(0..1).mul_(100);
        let y = &row * 2 + &column;
        assert_close(&y, &[206.0, 12.0], 0.0, "y");
        y.sum().backward().unwrap();
        grad_is(&x, &[0.0, 100.0, 2.0, 3.0]);
    }
}

#[test]
fn what_was_saved_survives_being_overwritten() {
    for device in devices() {
        // PyTorch raises "one of the variables needed for gradient computation has been modified". Here values are
        // immutable, and the gradient is that of the value that was used.
        let x = leaf(&device, &[1.0, 2.0]);
        let y = &x * 3;
        let z = &y * &y;
        y.zero_();
        z.sum().backward().unwrap();
        grad_is(&x, &[18.0, 36.0]);

        let x = leaf(&device, &[0.5]);
        let e = x.exp();
        let z = &e * 2;
        e.fill_(100.0);
        z.backward().unwrap();
        grad_is(&x, &[2.0 * 0.5f64.exp()]);

        let w = leaf(&device, &[2.0]);
        let z = &w * &w;
        no_grad(|| w.fill_(50.0));
        z.backward().unwrap();
        grad_is(&w, &[4.0]);
    }
}

#[test]
fn grad_gives_gradients_and_leaves_grad_alone() {
    for device in devices() {
        let (x, y) = (leaf(&device, &[2.0]), leaf(&device, &[3.0]));
        let z = &x * &x * &y;
        let both = grad_with(&[&z], &[&x, &y], Backward::new().retain_graph(true)).unwrap();
        assert_close(&both[0], &[12.0], 1e-6, "dz/dx");
        assert_close(&both[1], &[4.0], 1e-6, "dz/dy");
        assert!(x.grad().is_none() && y.grad().is_none());
        // Of something in between.
        let m = &x * 2;
        let z = &m * &m;
        assert_close(&grad(&[&z], &[&m]).unwrap()[0], &[8.0], 1e-6, "dz/dm");
        // Of several outputs at once: their sum.
        let (a, b) = (&x * 2, &x * 5);
        assert_close(&grad(&[&a, &b], &[&x]).unwrap()[0], &[7.0], 1e-6, "d(a+b)/dx");
        // Not used, and not wanted.
        let error = grad(&[&(&x * 2)], &[&y]).unwrap_err();
        assert!(error.message().contains("appears to not have been used in the graph"), "{error}");
        let error = grad(&[&(&x * 2)], &[&options().device(&device).ones(1)]).unwrap_err();
        assert!(error.message().contains("does not require grad"), "{error}");
        // An output that is an input.
        assert_close(&grad(&[&x], &[&x]).unwrap()[0], &[1.0], 0.0, "dx/dx");
    }
}

#[test]
fn backward_into_chosen_inputs() {
    for device in devices() {
        let (x, y) = (leaf(&device, &[2.0]), leaf(&device, &[3.0]));
        let z = &x * &y;
        z.backward_with(Backward::new().inputs(&[&x])).unwrap();
        grad_is(&x, &[3.0]);
        assert!(y.grad().is_none());
        let m = &x * 2;
        m.retain_grad();
        let z = &m * &y;
        z.backward_with(Backward::new().inputs(&[&m])).unwrap();
        grad_is(&m, &[3.0]);
        grad_is(&x, &[3.0]);
    }
}

#[test]
fn double_backward() {
    for device in devices() {
        let x = leaf(&device, &[3.0]);
        let y = &x * &x * &x;
        let dy = grad_with(&[&y], &[&x], Backward::new().create_graph(true)).unwrap().remove(0);
        assert!(dy.requires_grad());
        let ddy = grad_with(&[&dy], &[&x], Backward::new().create_graph(true)).unwrap().remove(0);
        let dddy = grad(&[&ddy], &[&x]).unwrap().remove(0);
        assert_close(&dy, &[27.0], 1e-6, "y'");
        assert_close(&ddy, &[18.0], 1e-6, "y''");
        assert_close(&dddy, &[6.0], 1e-6, "y'''");
        assert!(!dddy.requires_grad());

        // A gradient penalty: the gradient's norm is part of the loss.
        let w = leaf(&device, &[1.0, -2.0]);
        let out = (w.tanh() * &w).sum();
        let g = grad_with(&[&out], &[&w], Backward::new().create_graph(true)).unwrap().remove(0);
        let loss = (&g * &g).sum();
        loss.backward().unwrap();
        let expected: Vec<f64> = [1.0f64, -2.0]
            .iter()
            .map(|&w| {
                let (t, s) = (w.tanh(), 1.0 - w.tanh().powi(2));
                2.0 * (t + w * s) * (2.0 * s - 2.0 * w * t * s)
            })
            .collect();
        let g = w.grad().unwrap();
        assert_close(&g, &expected, 1e-5, "penalty");

        // `backward(create_graph)` leaves a gradient that can be gone through again.
        let x = leaf(&device, &[2.0]);
        (&x * &x * &x).backward_with(Backward::new().create_graph(true)).unwrap();
        let first = x.grad().unwrap();
        assert!(first.requires_grad());
        x.set_grad(None);
        first.backward().unwrap();
        grad_is(&x, &[12.0]);
    }
}

#[test]
fn paths_that_meet_are_summed_once() {
    for device in devices() {
        // Diamonds upon diamonds: 2^20 paths, 40 functions.
        let x = leaf(&device, &[1.0]);
        let mut y = &x * 1;
        for _ in 0..20 {
            y = &y + &y;
        }
        y.backward().unwrap();
        grad_is(&x, &[1_048_576.0]);
        // The long way and the short way round.
        let x = leaf(&device, &[2.0]);
        let long = (&x * 3).exp().log() * 2;
        (&long * &x + &x).backward().unwrap();
        grad_is(&x, &[25.0]);
        // Itself on both sides.
        let x = leaf(&device, &[3.0]);
        (&x * &x).backward().unwrap();
        grad_is(&x, &[6.0]);
        let m = leaf(&device, &[1.0, 2.0, 3.0, 4.0]);
        let s = m.reshape([2, 2]);
        s.matmul(&s).sum().backward().unwrap();
        grad_is(&m, &[7.0, 11.0, 9.0, 13.0]);
    }
}

// test_autograd.py::test_broadcast_tensors
#[test]
fn gradients_of_broadcast_operands_have_their_shapes() {
    for device in devices() {
        let o = || options().device(&device).requires_grad(true);
        let (a, b, c) = (o().ones([2, 1, 3]), o().ones([4, 1]), o().ones(()));
        let y = &a * &b + &c;
        assert_eq!(y.shape(), [2, 4, 3]);
        y.sum().backward().unwrap();
        grad_is(&a, &[4.0; 6]);
        grad_is(&b, &[6.0; 4]);
        grad_is(&c, &[24.0]);
    }
}

#[test]
fn other_types_and_devices_pass_gradients_in_their_own() {
    let all = devices();
    let x = leaf(&all[0], &[1.5, 2.5]);
    let wide = x.to(F64);
    assert_eq!(wide.grad_fn().unwrap().name(), "ToCopyBackward0");
    (&wide * &wide).sum().backward().unwrap();
    grad_is(&x, &[3.0, 5.0]);
    let w = options().device(&all[0]).dtype(F64).requires_grad(true).tensor([0.1]);
    (&w * 3).sum().backward().unwrap();
    assert_eq!(w.grad().unwrap().dtype(), F64);
    for there in &all {
        let x = leaf(&all[0], &[1.0, 2.0]);
        let y = x.to(there);
        let z = (&y * &y).to(&all[0]) * 2;
        z.sum().backward().unwrap();
        grad_is(&x, &[4.0, 8.0]);
        assert_eq!(x.grad().unwrap().device(), &all[0]);
    }
}

#[test]
fn errors_on_the_way_come_out_of_backward() {
    for device in devices() {
        let x = leaf(&device, &[1.0, 2.0]);
        let broken = x.matmul(&options().device(&device).ones([3, 3]));
        let error = (broken.sum() * 2).backward().unwrap_err();
        assert_eq!(error.op(), "matmul");
        assert!(x.grad().is_none());
        (&x * 2).sum().backward().unwrap();
        grad_is(&x, &[2.0, 2.0]);
    }
}

/// The result of every op can be written to in part, and keeps its history for the rest.
#[test]
fn results_of_all_ops_take_partial_writes() {
    type Op = fn(&Tensor) -> Tensor;
    let ops: [(&str, Op); 11] = [
        ("softmax", |x| x.softmax(1)),
        ("log_softmax", |x| x.log_softmax(0)),
        ("sum", |x| x.sum_dim(1, true)),
        ("mean", |x| x.mean_dim(0, true)),
        ("amax", |x| x.amax(1, true)),
        ("prod", |x| x.prod_dim(1, true)),
        ("matmul", |x| x.matmul(&x.t())),
        ("batched matmul", |x| x.expand([2, 2, 3]).matmul(&x.t())),
        ("logsumexp", |x| x.logsumexp(1, true)),
        ("var", |x| x.var(1, 1.0, true)),
        ("index_select", |x| x.index_select(1, &options().device(x.device()).tensor([2, 0]))),
    ];
    for device in devices() {
        for (name, op) in ops {
            let gradient = |write: bool| {
                let x = leaf(&device, &[0.1, -0.2, 0.3, 0.5, 0.25, -0.75]);
                let y = op(&x.reshape([2, 3]));
                let rest = if write {
                    y.i(0).fill_(2);
                    &y * &y
                } else {
                    y.i(1..) * y.i(1..)
                };
                rest.sum().backward().unwrap();
                x.grad().unwrap().to_f64_vec().unwrap()
            };
            // Where the first row is overwritten, the gradient is that of the others.
            let (got, want) = (gradient(true), gradient(false));
            if op(&options().device(&device).ones([2, 3])).size(0) > 1 {
                assert!(
                    got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5),
                    "{name} on {device}: {got:?}, {want:?}"
                );
            }
        }
    }
}
