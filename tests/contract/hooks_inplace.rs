//! Hooks and `retain_grad` where tensors are written to.

use crate::support::*;

// test_autograd.py::test_tensor_hooks_inplace
#[test]
fn hooks_belong_to_the_value_before_a_write() {
    each(|device| {
        let a = leaf(device, &[1.0, 1.0]);
        let b = a.clone_data();
        let log = Log::new();
        let (first, second) = (log.clone(), log.clone());
        b.register_hook(move |g| {
            first.push(("before", g.to_f64_vec().unwrap()));
            g * 2
        })
        .unwrap();
        b.mul_(5);
        b.register_hook(move |g| second.push(("after", g.to_f64_vec().unwrap()))).unwrap();
        b.sum().backward().unwrap();
        assert_eq!(log.take(), [("after", vec![1.0, 1.0]), ("before", vec![5.0, 5.0])]);
        grad_is(&a, &[10.0, 10.0]);
    });
}

// test_autograd.py::test_tensor_hooks_inplace_over_view
#[test]
fn hooks_on_views_of_what_is_written_to() {
    each(|device| {
        let a = leaf(device, &[1.0, 1.0, 1.0]);
        let base = a.clone_data();
        let view = base.narrow(0, 0, 2);
        let log = Log::new();
        let (first, second) = (log.clone(), log.clone());
        view.register_hook(move |g| first.push(("before", g.to_f64_vec().unwrap()))).unwrap();
        base.mul_(3);
        view.register_hook(move |g| second.push(("after", g.to_f64_vec().unwrap()))).unwrap();
        (view.sum() + base.sum()).backward().unwrap();
        assert_eq!(log.take(), [("after", vec![1.0, 1.0])]);
        grad_is(&a, &[6.0, 6.0, 3.0]);
    });
}

// test_autograd.py::test_retain_grad_inplace
#[test]
fn retain_grad_is_of_the_value_after_a_write() {
    each(|device| {
        let a = leaf(device, &[1.0]);
        let b = a.clone_data();
        b.retain_grad();
        b.mul_(2);
        b.sum().backward().unwrap();
        grad_is(&b, &[1.0]);
        grad_is(&a, &[2.0]);
        // Told before and after: once.
        let b = a.clone_data();
        b.retain_grad();
        b.mul_(2);
        b.retain_grad();
        b.mul_(3);
        b.backward().unwrap();
        grad_is(&b, &[1.0]);
    });
}

// test_autograd.py::test_retain_grad_inplace_over_view
#[test]
fn retain_grad_of_a_view_whose_base_is_written_to() {
    each(|device| {
        let a = leaf(device, &[1.0, 1.0]);
        let base = a.clone_data();
        let (view, other) = (base.narrow(0, 0, 1), base.narrow(0, 0, 1));
        view.retain_grad();
        other.retain_grad();
        view.mul_(2);
        assert!(view.retains_grad() && other.retains_grad());
        (&view * 5).backward_with(retain()).unwrap();
        grad_is(&view, &[5.0]);
        grad_is(&a, &[10.0, 0.0]);
        assert!(other.grad().is_none());
        (&other * 7).backward().unwrap();
        grad_is(&other, &[7.0]);
        grad_is(&view, &[5.0]);
        grad_is(&a, &[24.0, 0.0]);
    });
}

// test_autograd.py::test_retain_grad_cycle
#[test]
fn retain_grad_does_not_keep_a_tensor_alive() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let z = {
            let y = &x * 2;
            y.retain_grad();
            &y / 2
        };
        // Its function is there, the tensor is not.
        z.backward().unwrap();
        grad_is(&x, &[1.0]);
        let c = plain(device, &[1.0]);
        fails(c.retain_grad().check(), "can't retain_grad on Tensor that has requires_grad=False");
    });
}
