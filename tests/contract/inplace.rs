//! Writes in place, views, versions.

use wgrad::autograd::{grad, grad_with};
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_version_counter
#[test]
fn versions_count_writes_and_views_share_them() {
    each(|device| {
        let x = plain(device, &[1.0, 2.0]);
        let before = x.version();
        x.add_(1).add_(1);
        assert_eq!(x.version(), before + 2);
        let view = x.narrow(0, 0, 1);
        assert_eq!(view.version(), x.version());
        view.add_(1);
        assert_eq!(view.version(), x.version());
        x.detach().mul_(2);
        assert_eq!(x.version(), before + 4);
        assert_eq!(view.version(), before + 4);
        // A write that fails is none.
        assert!(x.add_(plain(device, &[1.0, 2.0, 3.0])).error().is_some());
        assert_eq!(x.version(), before + 4);
        assert_eq!(x.clone_data().version(), 0);
        is(&x, &[8.0, 8.0]);
    });
}

// test_autograd.py::test_requires_grad_inplace
#[test]
fn a_tensor_takes_on_the_history_of_what_is_added_to_it() {
    each(|device| {
        for a in [plain(device, &[1.0]), plain(device, &[1.0]) + 0] {
            let b = leaf(device, &[2.0]);
            let mut c = a.clone();
            c += &b;
            assert!(a.requires_grad() && !a.is_leaf() && c.is_same(&a));
            a.backward().unwrap();
            grad_is(&b, &[1.0]);
        }
    });
}

// test_autograd.py::test_no_requires_grad_inplace
#[test]
fn writes_before_gradients_are_wanted_and_after() {
    each(|device| {
        let a = plain(device, &[1.0, 2.0]);
        a.add_(5).requires_grad_(true).sum().backward().unwrap();
        grad_is(&a, &[1.0, 1.0]);
        let a = plain(device, &[1.0, 2.0]);
        let b = a.view([2, 1]);
        b.add_(5);
        a.requires_grad_(true).sum().backward().unwrap();
        grad_is(&a, &[1.0, 1.0]);
        fails(a.add_(5).check(), "a leaf Variable that requires grad");
        fails(b.add_(5).check(), "a view of a leaf Variable that requires grad");
    });
}

// test_autograd.py::test_leaf_assignment
#[test]
fn rows_of_a_leaf_are_assigned() {
    each(|device| {
        let x = options().device(device).ones([3, 2]);
        let (y, z) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0, 4.0]));
        x.i(0).copy_(&y);
        x.i(1).copy_(&(&z * 2));
        assert!(x.requires_grad() && x.grad_fn().is_some());
        x.sum().backward().unwrap();
        grad_is(&y, &[1.0, 1.0]);
        grad_is(&z, &[2.0, 2.0]);
    });
}

// test_autograd.py::test_setitem
#[test]
fn what_is_overwritten_gets_no_gradient() {
    each(|device| {
        let x = options().device(device).requires_grad(true).ones([2, 3]);
        let y = &x + 2;
        let version = y.version();
        y.i(1).fill_(2);
        y.select(1, 0).copy_(&leaf(device, &[5.0, 5.0]));
        assert_eq!(y.version(), version + 2);
        y.sum().backward().unwrap();
        grad_is(&x, &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        // What is assigned is broadcast, and its gradient summed.
        let v = leaf(device, &[7.0, 8.0, 9.0]);
        let y = options().device(device).zeros([2, 2, 3]);
        y.i(1).copy_(&v);
        let weights = options().device(device).arange(0.0, 12.0, 1.0).reshape([2, 2, 3]);
        (y * weights).sum().backward().unwrap();
        grad_is(&v, &[15.0, 17.0, 19.0]);
    });
}

// test_autograd.py::test_fill
#[test]
fn filling_cuts_the_gradient_and_passes_it_to_the_value() {
    each(|device| {
        let (x, v) = (leaf(device, &[1.0, 2.0]), options().device(device).requires_grad(true).full((), 3.0));
        let y = x.clone_data();
        y.fill_(&v);
        y.sum().backward().unwrap();
        grad_is(&v, &[2.0]);
        grad_is(&x, &[0.0, 0.0]);
    });
}

// test_autograd.py::TestAllowMutationOnSaved::test_basic, test_inplace
#[test]
fn what_was_saved_before_a_write_is_used() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 2.0]), leaf(device, &[4.0, 5.0]));
        let z = &x * &y;
        let (q, w) = (&z + &y, &z * &y);
        z.add_(2);
        q.sum().backward_with(retain()).unwrap();
        grad_is(&x, &[4.0, 5.0]);
        w.sum().backward_with(retain()).unwrap();
        grad_is(&x, &[4.0 + 16.0, 5.0 + 25.0]);
        // z's new value is in the graph that is made of it.
        x.set_grad(None);
        (&z * &z).sum().backward().unwrap();
        grad_is(&x, &[2.0 * 6.0 * 4.0, 2.0 * 12.0 * 5.0]);
        // An output that was saved.
        let x = leaf(device, &[0.5]);
        let e = x.exp();
        let out = &e * 2;
        e.sin();
        e.mul_(100);
        out.backward().unwrap();
        grad_is(&x, &[2.0 * 0.5f64.exp()]);
    });
}

// test_autograd.py::TestAllowMutationOnSaved::test_views, TestAllowMutationOnSaved::test_save_base_and_modify_view
#[test]
fn a_base_was_saved_and_a_view_is_written_to() {
    each(|device| {
        let a = leaf(device, &[1.0, 2.0, 3.0]);
        let b = a.clone_data();
        let c = b.narrow(0, 0, 1);
        let out = b.square();
        c.mul_(10);
        out.sum().backward_with(retain()).unwrap();
        grad_is(&a, &[2.0, 4.0, 6.0]);
        a.set_grad(None);
        b.square().sum().backward().unwrap();
        grad_is(&a, &[2.0 * 10.0 * 10.0, 4.0, 6.0]);
    });
}

// test_autograd.py::TestAllowMutationOnSaved::test_save_view_modify_base
#[test]
fn a_view_was_saved_and_its_base_is_written_to() {
    each(|device| {
        let a = leaf(device, &[1.0, 2.0]);
        let b = a.clone_data();
        let c = b.view([2, 1]);
        let out = c.square();
        b.mul_(2);
        out.sum().backward().unwrap();
        grad_is(&a, &[2.0, 4.0]);
    });
}

// test_autograd.py::TestAllowMutationOnSaved::test_double_backward
#[test]
fn second_gradients_of_what_was_overwritten() {
    each(|device| {
        let a = leaf(device, &[1.0, 2.0]);
        let b = a.clone_data();
        let out = &b * &b * &b;
        b.sin();
        b.exp_();
        let g = grad_with(&[&out.sum()], &[&a], create()).unwrap().remove(0);
        is(&g, &[3.0, 12.0]);
        is(&grad(&[&g.sum()], &[&a]).unwrap()[0], &[6.0, 12.0]);
    });
}

// test_autograd.py::test_no_grad_modifies_version
#[test]
fn writes_without_recording_count_and_change_no_gradient() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0, 4.0]));
        let z = (&x * &y).sum();
        let version = x.version();
        no_grad(|| x.mul_(2));
        assert_eq!(x.version(), version + 1);
        z.backward().unwrap();
        grad_is(&y, &[1.0, 2.0]);
    });
}

// test_autograd.py::test_no_unnecessary_save
#[test]
fn a_buffer_written_in_a_loop() {
    each(|device| {
        let mu = leaf(device, &[1.0]);
        let x = options().device(device).zeros(1);
        let mut loss = options().device(device).zeros(());
        for i in 0..3 {
            let x = x.detach();
            x.copy_(&(&mu + i));
            loss = &loss + (&x * f64::from(i)).sum();
        }
        loss.backward().unwrap();
        grad_is(&mu, &[3.0]);
    });
}

// test_autograd.py::test_detach_base
#[test]
fn detaching_a_base_leaves_its_views() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let base = x.clone_data();
        let view = base.narrow(0, 0, 1);
        let cut = base.detach();
        assert!(!cut.requires_grad() && view.requires_grad() && view.grad_fn().is_some());
        // A write through the detached one shows, and changes no history.
        cut.mul_(3);
        is(&view, &[3.0]);
        (&view * &view).backward().unwrap();
        grad_is(&x, &[6.0, 0.0]);
    });
}

// test_autograd.py::test_inplace_view_saved_output
#[test]
fn a_write_to_a_view_that_saves_its_output_is_no_cycle() {
    each(|device| {
        let drops = Count::default();
        {
            let copy = leaf(device, &[1.0, -1.0]).clone_data();
            let held = Dropped(drops.clone());
            copy.grad_fn().unwrap().register_hook(move |_, _| {
                let _ = &held;
            });
            copy.view([2, 1]).exp_();
            copy.view([2, 1]).sigmoid_();
        }
        assert_eq!(drops.get(), 1);
    });
}

// test_autograd.py::test_inplace_view_backward
#[test]
fn second_gradients_through_writes_to_views() {
    each(|device| {
        let x = leaf(device, &[0.5, 1.0]);
        let y = &x + 1;
        let v = y.view([2, 1]);
        v.tanh_();
        let g = grad_with(&[&y.sigmoid().sum()], &[&x], create()).unwrap().remove(0);
        g.sum().backward().unwrap();
        let want = |x: f64| {
            let h = 1e-5;
            let f = |x: f64| {
                let t = (x + 1.0).tanh();
                let s = 1.0 / (1.0 + (-t).exp());
                s * (1.0 - s) * (1.0 - t * t)
            };
            (f(x + h) - f(x - h)) / (2.0 * h)
        };
        crate::common::assert_close(&x.grad().unwrap(), &[want(0.5), want(1.0)], 1e-4, "grad");
    });
}

// test_autograd.py::test_inplace_view_weak_grad_fn
#[test]
fn a_view_may_go_before_its_copy_is_used() {
    each(|device| {
        let a = leaf(device, &[0.0, 1.0, 2.0]);
        let c = {
            let b = a.narrow(0, 0, 2).clone_data().view([2]);
            b.relu_();
            b.clone_data()
        };
        let s = c.sum();
        s.backward().unwrap();
        is(&s, &[1.0]);
        grad_is(&a, &[0.0, 1.0, 0.0]);
    });
}

// test_autograd.py::test_inplace_on_view_backprop_base
#[test]
fn a_view_is_written_to_and_the_base_used() {
    each(|device| {
        let root = leaf(device, &[1.0, 2.0, 3.0, 4.0]);
        let x = root.clone_data().view([2, 2]);
        let v = x.narrow(0, 0, 1);
        v.mul_(2);
        x.sum().backward().unwrap();
        grad_is(&root, &[2.0, 2.0, 1.0, 1.0]);
    });
}

// test_autograd.py::test_inplace_on_view_backprop_view_of_view
#[test]
fn a_view_of_a_view_is_used_after_the_base_of_both_was_written_to() {
    each(|device| {
        let root = leaf(device, &[1.0, 2.0, 3.0, 4.0]);
        let x = root.clone_data().view([2, 2]);
        let (v1, v2) = (x.narrow(0, 0, 1), x.narrow(0, 0, 1));
        v1.mul_(2);
        v2.sum().backward().unwrap();
        grad_is(&root, &[2.0, 2.0, 0.0, 0.0]);
    });
}

// test_autograd.py::test_inplace_on_view_of_view
#[test]
fn a_view_of_a_view_is_written_to() {
    each(|device| {
        let root = leaf(device, &[1.0, 2.0, 3.0, 4.0]);
        let x = root.clone_data().view([2, 2]);
        let v = x.narrow(0, 0, 1).narrow(1, 0, 1);
        v.mul_(2);
        x.sum().backward().unwrap();
        grad_is(&root, &[2.0, 1.0, 1.0, 1.0]);
    });
}

// test_autograd.py::test_inplace_on_view_then_no_grad
#[test]
fn a_write_recorded_and_then_one_that_is_not() {
    each(|device| {
        let (a, b) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0]));
        let c = &a * 2;
        let view = c.narrow(0, 0, 1);
        view.mul_(&b);
        no_grad(|| c.mul_(10));
        is(&view, &[60.0]);
        c.sum().backward().unwrap();
        grad_is(&a, &[6.0, 2.0]);
        grad_is(&b, &[2.0]);
    });
}

// test_autograd.py::test_inplace_on_view_gradcheck
#[test]
fn writes_to_views_of_views_against_the_plain_way() {
    each(|device| {
        let run = |in_place: bool| {
            let (a, b) = (leaf(device, &[1.0, 2.0, 3.0, 4.0]), leaf(device, &[5.0, 6.0]));
            let m = a.reshape([2, 2]);
            let y = match in_place {
                true => {
                    let x = m.clone_data();
                    x.narrow(1, 2 - 1, 1).squeeze().mul_(&b);
                    x.narrow(0, 1, 1).mul_(b.reshape([1, 2]));
                    x
                }
                false => {
                    let right = m.narrow(1, 1, 1) * b.reshape([2, 1]);
                    let x = cat(&[&m.narrow(1, 0, 1), &right], 1);
                    cat(&[&x.narrow(0, 0, 1), &(x.narrow(0, 1, 1) * b.reshape([1, 2]))], 0)
                }
            };
            let g = grad_with(&[&y.square().sum()], &[&a, &b], create()).unwrap();
            (g[0].square().sum() + g[1].sum()).backward().unwrap();
            [&y.detach(), &g[0].detach(), &g[1].detach(), &a.grad().unwrap(), &b.grad().unwrap()]
                .map(|t| t.to_f64_vec().unwrap())
        };
        assert_eq!(run(true), run(false));
    });
}

// test_autograd.py::test_inplace_on_view_makes_base_require_grad
#[test]
fn a_base_without_gradients_gets_them_through_a_view() {
    each(|device| {
        let a = plain(device, &[1.0, 2.0]);
        let b = leaf(device, &[5.0]);
        let c = a.narrow(0, 0, 1);
        assert!(!a.requires_grad() && !c.requires_grad());
        c.mul_(&b);
        assert!(a.requires_grad() && c.requires_grad());
        assert_eq!(a.grad_fn().unwrap().name(), "CopySlices");
        a.sum().backward().unwrap();
        grad_is(&b, &[1.0]);
    });
}

// test_autograd.py::test_inplace_on_view_backprop_view
#[test]
fn a_view_is_written_to_and_used() {
    each(|device| {
        let (a, b) = (plain(device, &[2.0, 5.0]), leaf(device, &[3.0]));
        let res = a.narrow(0, 0, 1).mul_(&b);
        res.sum().backward().unwrap();
        grad_is(&b, &[2.0]);
        assert!(a.grad().is_none());
    });
}

// test_autograd.py::test_inplace_on_view_modify_base
#[test]
fn a_base_is_written_to_and_a_view_used() {
    each(|device| {
        let r = options().device(device).requires_grad(true).ones(1);
        let x = options().device(device).ones(5);
        let v = x.select(0, 0);
        assert!(!v.requires_grad() && v.grad_fn().is_none());
        x.add_(&r);
        assert!(v.requires_grad());
        v.backward().unwrap();
        grad_is(&r, &[1.0]);
        is(&v, &[2.0]);
    });
}

// test_autograd.py::test_inplace_on_view_non_contig
#[test]
fn writes_to_views_with_strides() {
    each(|device| {
        let root = leaf(device, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let x = root.clone_data().view([2, 3]).t();
        let (v1, v2) = (x.narrow(0, 0, 1), x.narrow(0, 0, 1).narrow(1, 0, 1));
        v1.mul_(2);
        v2.sum().backward().unwrap();
        grad_is(&root, &[2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    });
}

// test_autograd.py::test_inplace_on_view_undefined_grad_output
#[test]
fn a_write_from_a_function_without_gradient() {
    each(|device| {
        let a = leaf(device, &[1.0]);
        let c = a.clone_data();
        let v = c.narrow(0, 0, 1);
        let b = plain(device, &[1.0]).requires_grad_(true);
        let none = one(custom(|_, i| vec![i[0].clone()], |_, _| vec![None], &[&b]));
        v.mul_(&none);
        c.sum().backward().unwrap();
        grad_is(&a, &[1.0]);
        assert!(b.grad().is_none());
    });
}

// test_autograd.py::test_grad_assignment
#[test]
fn grad_may_be_assigned_and_is_added_to() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let own = plain(device, &[10.0, 20.0]);
        x.set_grad(Some(own.clone()));
        assert!(x.grad().unwrap().is_same(&own));
        (&x * 2).sum().backward().unwrap();
        is(&own, &[12.0, 22.0]);
        // One that cannot be added to is an error of the pass, and not a gradient lost.
        x.set_grad(Some(plain(device, &[1.0, 2.0, 3.0])));
        assert!((&x * 2).sum().backward().is_err());
        assert!((&x * 2).sum().backward_with(create()).is_err());
        is(&x.grad().unwrap(), &[1.0, 2.0, 3.0]);
        x.set_grad(None);
        (&x * 2).sum().backward().unwrap();
        grad_is(&x, &[2.0, 2.0]);
    });
}
