//! Grad modes and inference mode.

use std::panic::catch_unwind;

use wgrad::autograd::{
    self, grad, inference_mode, inference_mode_guard, is_grad_enabled, is_inference_mode_enabled,
    no_grad_guard, set_grad_enabled,
};
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_set_grad_enabled
#[test]
fn set_grad_enabled_both_ways() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let with = |enabled| {
            let _guard = set_grad_enabled(enabled);
            (&x * 2).requires_grad()
        };
        assert!(!with(false) && with(true));
        let _off = set_grad_enabled(false);
        let _on = set_grad_enabled(true);
        assert!((&x * 2).requires_grad());
    });
}

// test_autograd.py::test_no_grad_assignment
#[test]
fn a_leaf_written_to_without_recording_stays_a_leaf() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let y = plain(device, &[5.0]);
        no_grad(|| x.narrow(0, 0, 1).copy_(&y));
        assert!(x.requires_grad() && x.grad_fn().is_none());
        is(&x, &[5.0, 2.0]);
        (&x * &x).sum().backward().unwrap();
        grad_is(&x, &[10.0, 4.0]);
    });
}

// test_autograd.py::test_grad_mode_restored_reentrant
#[test]
fn the_mode_is_as_it_was_after_a_pass_within_a_pass() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        for create in [false, true] {
            let y = one(custom(
                |_, i| vec![i[0].clone()],
                move |_, g| {
                    assert_eq!(is_grad_enabled(), create);
                    enable_grad(|| {
                        let x = leaf(g[0].as_ref().unwrap().device(), &[1.0]);
                        (&x * &x).backward().unwrap();
                        assert!(is_grad_enabled());
                    });
                    assert_eq!(is_grad_enabled(), create);
                    g.to_vec()
                },
                &[&x],
            ));
            y.backward_with(Backward::new().create_graph(create)).unwrap();
            assert!(is_grad_enabled());
            let _off = no_grad_guard();
            (enable_grad(|| &x * &x)).backward().unwrap();
            assert!(!is_grad_enabled());
        }
    });
}

// test_autograd.py::test_inference_mode_context_manager
#[test]
fn inference_mode_nests_and_unwinds() {
    assert!(!is_inference_mode_enabled());
    inference_mode(|| {
        assert!(is_inference_mode_enabled() && !is_grad_enabled());
        {
            let _usual = inference_mode_guard(false);
            assert!(!is_inference_mode_enabled() && is_grad_enabled());
            inference_mode(|| assert!(is_inference_mode_enabled()));
        }
        assert!(is_inference_mode_enabled());
        no_grad(|| assert!(is_inference_mode_enabled()));
        enable_grad(|| assert!(is_inference_mode_enabled() && !is_grad_enabled()));
    });
    assert!(!is_inference_mode_enabled() && is_grad_enabled());
    assert!(catch_unwind(|| inference_mode(|| panic!("inside"))).is_err());
    assert!(!is_inference_mode_enabled() && is_grad_enabled());
    let _on = inference_mode_guard(true);
    std::thread::scope(|s| assert!(!s.spawn(is_inference_mode_enabled).join().unwrap()));
}

// test_autograd.py::test_inference_mode_tensor_creation
#[test]
fn tensors_made_in_inference_mode() {
    each(|device| {
        inference_mode(|| {
            let c = options().device(device).ones(2);
            assert!(c.is_inference() && !c.requires_grad());
            // The flag may be set, and does nothing in here.
            let w = options().device(device).requires_grad(true).ones(2);
            assert!(w.is_inference() && w.requires_grad() && !(&w * 2).requires_grad());
            let n = {
                let _usual = inference_mode_guard(false);
                options().device(device).ones(2)
            };
            assert!(!n.is_inference());
        });
        assert!(!options().device(device).ones(2).is_inference());
    });
}

// test_autograd.py::test_inference_mode_existing_autograd_session
#[test]
fn a_write_in_inference_mode_to_what_was_saved() {
    each(|device| {
        let s = leaf(device, &[1.0, 2.0]);
        let a = s.clone_data();
        let out = &a * &a;
        let version = a.version();
        inference_mode(|| a.add_(2));
        assert!(!a.is_inference() && a.version() > version);
        is(&a, &[3.0, 4.0]);
        // Where PyTorch must refuse, the gradient is that of the value used.
        out.sum().backward().unwrap();
        grad_is(&s, &[2.0, 4.0]);
    });
}

// test_autograd.py::test_inference_mode_inf_tensor_in_inf_mode_functional_op, test_inference_mode_inf_tensor_in_inf_mode_inplace_op, test_inference_mode_inf_tensor_in_inf_mode_view_op
#[test]
fn inference_tensors_in_inference_mode() {
    each(|device| {
        inference_mode(|| {
            for grad in [false, true] {
                let c = options().device(device).requires_grad(grad).ones([1, 2]);
                let f = &c * 2;
                assert!(f.is_inference() && !f.requires_grad() && f.is_leaf());
                c.add_(2);
                assert!(c.is_inference() && c.requires_grad() == grad);
                is(&c, &[3.0, 3.0]);
                let v = c.view([2]);
                assert!(v.is_inference() && !v.requires_grad() && v.grad_fn().is_none());
            }
        });
    });
}

// test_autograd.py::test_inference_mode_inf_tensor_in_normal_mode_functional_op
#[test]
fn inference_tensors_outside_are_constants() {
    each(|device| {
        let c = inference_mode(|| options().device(device).ones(2) * 3);
        let f = &c * 2;
        assert!(!f.is_inference() && !f.requires_grad());
        // Unlike in PyTorch they may be saved.
        let x = leaf(device, &[1.0, 2.0]);
        (&x * &c).sum().backward().unwrap();
        grad_is(&x, &[3.0, 3.0]);
        let message = "Setting requires_grad=True on inference tensor outside InferenceMode is not allowed.";
        fails(c.requires_grad_(true).check(), message);
        assert!(!c.requires_grad());
    });
}

// test_autograd.py::test_inference_mode_inf_tensor_in_normal_mode_inplace_op, test_inference_mode_inf_tensor_in_normal_mode_view_op
#[test]
fn inference_tensors_outside_are_not_written_to() {
    each(|device| {
        let c = inference_mode(|| options().device(device).ones([1, 2]));
        let message = "Inplace update to inference tensor outside InferenceMode is not allowed.";
        fails(c.add_(1).check(), message);
        let v = c.view([2]);
        assert!(v.is_inference() && !v.requires_grad() && v.is_leaf());
        fails(v.fill_(1).check(), message);
        fails(no_grad(|| v.zero_()).check(), message);
        is(&c, &[1.0, 1.0]);
        // A copy is a tensor like others.
        let own = c.clone_data();
        assert!(!own.is_inference());
        is(&own.add_(1), &[2.0, 2.0]);
    });
}

// test_autograd.py::test_normal_tensor_inplace_output_in_inference_mode, test_normal_tensor_inplace_output_in_normal_mode
#[test]
fn normal_tensors_written_to_in_inference_mode_stay_normal() {
    each(|device| {
        for requires in [false, true] {
            let s = options().device(device).requires_grad(requires).ones([1, 2]);
            let a = s.clone_data();
            inference_mode(|| {
                a.add_(2);
                assert!(!a.is_inference() && a.requires_grad() == requires);
                let v = a.view([2]);
                assert!(!v.is_inference());
                v.add_(2);
            });
            is(&a, &[5.0, 5.0]);
            a.add_(2);
            assert!(!a.is_inference() && a.requires_grad() == requires && a.is_leaf() != requires);
            if requires {
                a.sum().backward().unwrap();
                grad_is(&s, &[1.0, 1.0]);
            }
        }
    });
}

// test_autograd.py::test_normal_tensor_view_output_in_inference_mode, test_normal_tensor_view_output_in_normal_mode
#[test]
fn views_of_normal_tensors_made_in_inference_mode() {
    each(|device| {
        let s = options().device(device).requires_grad(true).ones([1, 2]);
        let a = s.clone_data();
        let v = inference_mode(|| a.view([2]));
        assert!(!v.is_inference() && v.shares_storage(&a) && v.grad_fn().is_none());
        let w = v.view([2, 1]);
        assert!(!w.is_inference());
        for made in [&v, &w, &no_grad(|| a.view([2]))] {
            let error = fails(made.mul_(3).check(), "and is being modified inplace with grad mode enabled.");
            let mode = if made.is_same(&v) {
                "A view was created in inference mode"
            } else {
                "A view was created in"
            };
            assert!(error.message().starts_with(mode) && error.op() == "mul_", "{error}");
        }
        is(&a, &[1.0, 1.0]);
        // Both in the mode, or of what is detached: allowed, and not recorded.
        no_grad(|| a.view([2]).mul_(3));
        a.detach().view([2]).mul_(2);
        is(&a, &[6.0, 6.0]);
        a.sum().backward().unwrap();
        grad_is(&s, &[1.0, 1.0]);
    });
}

// test_autograd.py::test_mix_inference_and_normal_tensor_functional_op, test_mix_inference_and_normal_tensor_inplace_op
#[test]
fn inference_and_normal_tensors_together() {
    each(|device| {
        let s = leaf(device, &[1.0, 2.0]);
        let c = inference_mode(|| options().device(device).ones(2) * 3);
        let sum = &s + &c;
        assert!(sum.requires_grad() && !sum.is_inference());
        let a = s.clone_data();
        a.mul_(&c);
        a.sum().backward().unwrap();
        grad_is(&s, &[3.0, 3.0]);
        let message = "Inplace update to inference tensor outside InferenceMode is not allowed.";
        fails(c.mul_(&s).check(), message);
        let mixed = inference_mode(|| &s * &c);
        assert!(mixed.is_inference() && !mixed.requires_grad());
        // Passes in inference mode give gradients as ever.
        let y = (&s * &s).sum();
        let g = inference_mode(|| grad(&[&y], &[&s]).unwrap().remove(0));
        assert!(!g.requires_grad());
        is(&g, &[2.0, 4.0]);
    });
}

// test_autograd.py::test_inference_mode_handle_direct_view_on_rebase, test_inference_mode_handle_indirect_view_on_rebase
#[test]
fn views_made_in_inference_mode_follow_their_base() {
    each(|device| {
        for views in 1..=2 {
            let s = leaf(device, &[1.0, 2.0]);
            let a = s.clone_data();
            let v = inference_mode(|| (0..views).fold(a.clone(), |v, _| v.view([2])));
            fails(v.add_(2).check(), "A view was created in inference mode");
            assert!(v.grad_fn().is_none() && v.is_leaf());
            // Once the base is written to, its history is the view's. (PyTorch refuses this as well.)
            a.mul_(5);
            assert!(v.grad_fn().is_some() && !v.is_leaf());
            (&v * &v).sum().backward().unwrap();
            grad_is(&s, &[50.0, 100.0]);
        }
    });
}

#[test]
fn guards_restore_what_was_when_dropped_in_order() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let on = || (&x * 2).requires_grad();
        let outer = autograd::enable_grad_guard();
        let inner = no_grad_guard();
        assert!(!on());
        drop(inner);
        assert!(on());
        drop(outer);
        assert!(on());
        let returned = no_grad(|| {
            let guard = autograd::enable_grad_guard();
            let made = on();
            drop(guard);
            (made, on())
        });
        assert_eq!(returned, (true, false));
    });
}
