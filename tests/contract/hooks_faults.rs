//! Hooks that give what does not fit, and hooks that panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wgrad::autograd::{self, HookHandle};
use wgrad::prelude::*;

use crate::support::*;

#[test]
fn what_hooks_give_must_fit() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let run = |setup: &dyn Fn(&Tensor)| {
            let y = &x * 2;
            setup(&y);
            y.sum().backward()
        };
        let other = devices_other(device);
        let error = fails(
            run(&|y| drop(y.register_hook(|g| g.sum()).unwrap())),
            "hook has changed the size of value",
        );
        assert_eq!(error.kind(), ErrorKind::Shape);
        assert!(error.caller().file().ends_with("hooks_faults.rs"), "{error}");
        fails(run(&|y| drop(y.register_hook(|g| g.to(I32)).unwrap())), "hook has changed the type of value");
        if let Some(other) = other {
            let moved = move |g: &Tensor| g.to(&other);
            fails(
                run(&|y| drop(y.register_hook(moved.clone()).unwrap())),
                "hook has changed the type of value",
            );
        }
        let f = |y: &Tensor| y.grad_fn().unwrap();
        fails(
            run(&|y| drop(f(y).register_prehook(|_| Vec::<Option<Tensor>>::new()))),
            "returned 0 gradients instead of 1",
        );
        fails(run(&|y| drop(f(y).register_hook(|_, g| g.to_vec()))), "returned 1 gradients instead of 2");
        fails(run(&|y| drop(y.register_hook(|g| g.matmul(&g.reshape([1, 2]))).unwrap())), "");
        assert!(x.grad().is_none());
        (&x * 2).sum().backward().unwrap();
        grad_is(&x, &[2.0, 2.0]);
    });
}

fn devices_other(device: &Device) -> Option<Device> {
    crate::common::devices().into_iter().find(|d| d != device)
}

#[test]
fn after_a_panic_in_a_hook_everything_works() {
    each(|device| {
        let x = leaf(device, &[3.0]);
        let panics = |setup: &dyn Fn(&Tensor) -> HookHandle| {
            let y = &x * &x;
            let handle = setup(&y);
            let result = catch_unwind(AssertUnwindSafe(|| y.backward_with(retain())));
            assert!(result.is_err());
            assert!(autograd::is_grad_enabled());
            handle.remove();
            x.set_grad(None);
            // The same graph, and a new one.
            y.backward_with(retain()).unwrap();
            grad_is(&x, &[6.0]);
            (&x * 2).backward().unwrap();
            grad_is(&x, &[8.0]);
        };
        panics(&|y| y.register_hook(|_| -> () { panic!("in a hook on a tensor") }).unwrap());
        panics(&|y| {
            y.grad_fn().unwrap().register_prehook(|_| -> () { panic!("in a hook before a function") })
        });
        panics(&|y| {
            y.grad_fn().unwrap().register_hook(|_, _| -> () { panic!("in a hook after a function") })
        });
        panics(&|_| x.register_hook(|_| -> () { panic!("in a hook on a leaf") }).unwrap());
        panics(&|_| {
            x.register_post_accumulate_grad_hook(|_| -> () { panic!("after accumulation") }).unwrap()
        });
    });
}
