//! Hooks on what is saved for the way back.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wgrad::autograd::{
    self, grad, grad_with, is_grad_enabled, save_on_cpu, saved_tensors_hooks, saved_tensors_hooks_guard,
};
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_saved_variable_packing_unpacking_saved_original_with_default_hooks
#[test]
fn what_unpack_gives_is_what_is_used() {
    each(|device| {
        let a = leaf(device, &[3.0]);
        let y = saved_tensors_hooks(|x| x * 2, |x| x / 2, || &a * &a);
        y.backward().unwrap();
        grad_is(&a, &[6.0]);
        // Whatever it is.
        let a = leaf(device, &[3.0]);
        let y = saved_tensors_hooks(|x| x * 2, |x| x * 2, || &a * &a);
        y.backward().unwrap();
        grad_is(&a, &[24.0]);
        // Nothing outside.
        let a = leaf(device, &[3.0]);
        (&a * &a).backward().unwrap();
        grad_is(&a, &[6.0]);
    });
}

// test_autograd.py::test_saved_variable_packing_unpacking_did_not_save_original_with_default_hooks
#[test]
fn outputs_are_packed_too() {
    each(|device| {
        let a = leaf(device, &[0.5]);
        let y = saved_tensors_hooks(|x| x * 2, |x| x / 2, || a.exp());
        let g = grad_with(&[&y], &[&a], create()).unwrap().remove(0);
        is(&g, &[0.5f64.exp()]);
        // The second gradient goes through the output.
        is(&grad(&[&g], &[&a]).unwrap()[0], &[0.5f64.exp()]);
    });
}

// test_autograd.py::test_setting_default_saved_variable_hooks_twice_should_use_inner, test_setting_default_saved_variable_hooks_twice_should_not_fail
#[test]
fn the_innermost_hooks_hold() {
    each(|device| {
        let (a, b) = (leaf(device, &[3.0]), leaf(device, &[3.0]));
        let y = saved_tensors_hooks(
            |x| x * 3,
            |x| x * 3,
            || {
                let inner = saved_tensors_hooks(|x| x * 5, |x| x * 5, || &b * &b);
                inner + &a * &a
            },
        );
        y.backward().unwrap();
        grad_is(&b, &[6.0 * 25.0]);
        grad_is(&a, &[6.0 * 9.0]);
        let _outer = saved_tensors_hooks_guard(|x| x * 3, |x| x * 3);
        let c = leaf(device, &[1.0]);
        {
            let _inner = saved_tensors_hooks_guard(|x| x.clone(), |x| x.clone());
            (&c * &c).backward().unwrap();
        }
        grad_is(&c, &[2.0]);
        (&c * &c).backward().unwrap();
        grad_is(&c, &[20.0]);
    });
}

// test_autograd.py::test_saving_variable_to_disk
#[test]
fn anything_may_stand_for_a_tensor() {
    each(|device| {
        let a = leaf(device, &[1.0, 2.0, 3.0]);
        let (packed, unpacked) = (Count::default(), Count::default());
        let (p, u, back) = (packed.clone(), unpacked.clone(), device.clone());
        let y = saved_tensors_hooks(
            move |x| {
                p.up();
                (x.to_vec::<f32>().unwrap(), x.shape().to_vec())
            },
            move |(values, shape)| {
                u.up();
                options().device(&back).tensor(values.clone()).reshape(shape.clone())
            },
            || a.reshape([3, 1]).square().exp().sum(),
        );
        let before = packed.get();
        assert!(before > 0 && unpacked.get() == 0);
        y.backward().unwrap();
        assert!(packed.get() == before && unpacked.get() > 0, "each is packed once");
        let want: Vec<f64> = [1.0f64, 2.0, 3.0].iter().map(|x| 2.0 * x * (x * x).exp()).collect();
        crate::common::assert_close(&a.grad().unwrap(), &want, 1e-5, "grad");
    });
}

// test_autograd.py::test_default_saved_tensors_hooks_double_backward
#[test]
fn each_pass_unpacks_and_second_passes_pack_their_own() {
    each(|device| {
        let third = |x: &Tensor| x * x * x;
        let run = |outer: bool, first: bool, second: bool| {
            let a = leaf(device, &[2.0]);
            let scaled = |on: bool, f: &mut dyn FnMut() -> Tensor| {
                if on { saved_tensors_hooks(|x| x * 2, |x| x / 2, f) } else { f() }
            };
            let y = scaled(outer, &mut || third(&a));
            let g = scaled(first, &mut || grad_with(&[&y], &[&a], create()).unwrap().remove(0));
            let h = scaled(second, &mut || grad_with(&[&g], &[&a], create()).unwrap().remove(0));
            is(&g, &[12.0]);
            is(&h, &[12.0]);
            is(&grad(&[&h], &[&a]).unwrap()[0], &[6.0]);
        };
        for bits in 0..8 {
            run(bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
        }
    });
}

// test_autograd.py::test_graph_save_on_cpu, test_graph_save_on_cpu_cuda
#[test]
fn kept_on_the_host() {
    each(|device| {
        let model = |a: &Tensor, b: &Tensor| (a.matmul(b).tanh() * a).exp().sum();
        let run = |host: bool| {
            let a = leaf(device, &[0.1, 0.2, 0.3, 0.4]);
            let (x, b) = (a.reshape([2, 2]), options().device(device).eye(2) * 0.5);
            let loss = if host { save_on_cpu(|| model(&x, &b)) } else { model(&x, &b) };
            let g = grad_with(&[&loss], &[&a], create()).unwrap().remove(0);
            g.square().sum().backward().unwrap();
            [g.detach(), a.grad().unwrap()].map(|t| t.to_vec::<f32>().unwrap())
        };
        assert_eq!(run(false), run(true));
    });
}

// test_autograd.py::test_saved_tensor_hooks_custom_error_propagation
#[test]
fn errors_in_hooks_come_out_where_values_are_used() {
    each(|device| {
        let a = leaf(device, &[1.0, 2.0]);
        let y = saved_tensors_hooks(|x| x.clone(), |x| x.reshape([7]), || (&a * &a).sum());
        assert_eq!(y.backward().unwrap_err().op(), "reshape");
        let y = saved_tensors_hooks(|x| x.reshape([7]), |x| x.clone(), || (&a * &a).sum());
        is(&y, &[5.0]);
        assert_eq!(y.backward().unwrap_err().op(), "reshape");
        assert!(a.grad().is_none());
        // A panic takes the hooks away, and is nothing else.
        let packs = catch_unwind(AssertUnwindSafe(|| {
            saved_tensors_hooks(|_: &Tensor| -> Tensor { panic!("in pack") }, |x| x.clone(), || &a * &a)
        }));
        assert!(packs.is_err() && is_grad_enabled());
        let y = saved_tensors_hooks(|x| x.clone(), |_| panic!("in unpack"), || (&a * &a).sum());
        assert!(catch_unwind(AssertUnwindSafe(|| y.backward())).is_err());
        let z = &a * &a;
        assert_eq!(z.grad_fn().unwrap().saved_bytes(), (&a * &a).grad_fn().unwrap().saved_bytes());
        z.sum().backward().unwrap();
        grad_is(&a, &[2.0, 4.0]);
    });
}

// test_autograd.py::test_saved_tensor_hooks_custom_function_intermediates
#[test]
fn what_functions_save_is_packed() {
    each(|device| {
        let a = leaf(device, &[0.5]);
        let count = Count::default();
        let (seen, func) = (count.clone(), |a: &Tensor| {
            one(custom(
                |ctx, i| {
                    // An input, something in between, and the output.
                    let (mid, out) = (i[0].exp(), i[0].exp() * 2);
                    ctx.save_for_backward(&[&i[0], &mid, &out]);
                    vec![out]
                },
                |ctx, g| vec![g[0].as_ref().map(|g| g * &ctx.saved_tensors()[1] * 2)],
                &[a],
            ))
        });
        let y = saved_tensors_hooks(
            move |x| {
                seen.up();
                x * 2
            },
            |x| x / 2,
            || func(&a),
        );
        assert_eq!(count.get(), 3);
        assert_eq!(y.grad_fn().unwrap().saved_bytes(), 0);
        y.backward().unwrap();
        grad_is(&a, &[2.0 * 0.5f64.exp()]);
    });
}

// test_autograd.py::test_saved_variable_packing_unpacking_saved_original_with_hooks
#[test]
fn hooks_may_do_anything_themselves() {
    each(|device| {
        let a = leaf(device, &[2.0]);
        let other = leaf(device, &[1.0]);
        let count = Count::default();
        let (seen, inner) = (count.clone(), other.clone());
        let y = saved_tensors_hooks(
            move |x| {
                // Nothing in here is recorded or packed in turn, unless it says so.
                seen.up();
                assert!(!is_grad_enabled() && !x.requires_grad() && x.is_leaf());
                assert!(!(&inner * &inner).requires_grad());
                enable_grad(|| (&inner * &inner).backward()).unwrap();
                x.clone()
            },
            |x| {
                assert!(!is_grad_enabled());
                x.clone()
            },
            || (&a * &a).exp(),
        );
        y.backward().unwrap();
        let e = 4f64.exp() * 4.0;
        crate::common::assert_close(&a.grad().unwrap(), &[e], 1e-5, "grad");
        grad_is(&other, &[2.0 * count.get() as f64]);
    });
}

// test_autograd.py::test_saved_variable_saved_original_inplace_detach
#[test]
fn what_was_saved_knows_nothing_of_later_writes() {
    each(|device| {
        let a = leaf(device, &[2.0]);
        let b = &a * 1;
        let y = saved_tensors_hooks(|x| x.clone(), |x| x.clone(), || &b * &b);
        b.fill_(100);
        y.backward().unwrap();
        grad_is(&a, &[4.0]);
        // Nor does the hook's tensor reach what is in use.
        let b = &a * 1;
        let y = saved_tensors_hooks(
            |x| {
                x.add_(1000);
                x.clone()
            },
            |x| x - 1000,
            || &b * &b,
        );
        is(&b, &[2.0]);
        a.set_grad(None);
        y.backward().unwrap();
        grad_is(&a, &[4.0]);
    });
}

// test_autograd.py::test_node_post_hook_registered_during_unpack_hook
#[test]
fn an_unpack_hook_may_register_hooks() {
    each(|device| {
        let a = leaf(device, &[2.0]);
        let count = Count::default();
        let (seen, of) = (count.clone(), a.clone());
        let y = saved_tensors_hooks(
            |x| x.clone(),
            move |x| {
                let seen = seen.clone();
                of.register_hook(move |_| seen.up()).unwrap();
                x.clone()
            },
            || a.exp(),
        );
        y.backward().unwrap();
        assert_eq!(count.get(), 1);
    });
}

// test_autograd.py::test_multithread_saved_tensors_hooks
#[test]
fn hooks_are_of_one_thread() {
    each(|device| {
        let a = leaf(device, &[3.0]);
        let here = saved_tensors_hooks(|x| x * 2, |x| x * 2, || &a * &a);
        saved_tensors_hooks(
            |x| x * 2,
            |x| x * 2,
            || {
                std::thread::scope(|s| {
                    let made = s.spawn(|| &a * &a).join().unwrap();
                    is(&grad(&[&made], &[&a]).unwrap()[0], &[6.0]);
                    let g = s.spawn(|| grad(&[&here], &[&a]).unwrap().remove(0)).join().unwrap();
                    is(&g, &[24.0]);
                });
            },
        );
        assert!(autograd::is_grad_enabled());
    });
}
