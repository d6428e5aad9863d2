//! Functions of the user's own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wgrad::autograd::{self, Context, Function, grad, grad_allow_unused, grad_with};
use wgrad::prelude::*;

use crate::support::*;

/// x + s y + x y, and what PyTorch's tests do with it.
struct Mixed {
    s: f64,
    once: bool,
}

impl Function for Mixed {
    fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor> {
        assert!(!autograd::is_grad_enabled());
        let (x, y) = (&inputs[0], &inputs[1]);
        ctx.save_for_backward(&[x, y]);
        ctx.insert(self.s);
        vec![x + y * self.s + x * y]
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        assert!(!(self.once && autograd::is_grad_enabled()));
        let [x, y] = ctx.saved_tensors() else { panic!("two were saved") };
        let g = grads[0].as_ref().unwrap();
        vec![Some(g + g * y), Some(g * *ctx.get::<f64>().unwrap() + g * x)]
    }

    fn once_differentiable(&self) -> bool {
        self.once
    }
}

fn mixed(device: &Device, once: bool) -> (Tensor, Tensor) {
    let (x, y) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0, 4.0]));
    let out = one(Mixed { s: 2.0, once }.apply(&[&x, &y]));
    is(&out, &[10.0, 18.0]);
    assert_eq!(out.grad_fn().unwrap().name(), "MixedBackward");
    assert!(out.grad_fn().unwrap().caller().file().ends_with("functions.rs"));
    out.sum().backward_with(create()).unwrap();
    grad_is(&x, &[4.0, 5.0]);
    grad_is(&y, &[3.0, 4.0]);
    assert!(x.grad().unwrap().requires_grad() && y.grad().unwrap().requires_grad());
    (x, y)
}

// test_autograd.py::test_function
#[test]
fn a_function_and_its_second_gradient() {
    each(|device| {
        let (x, y) = mixed(device, false);
        // d/dy of sum(1 + y) and d/dx of sum(s + x).
        let gx = x.grad().unwrap();
        is(&grad_with(&[&gx.sum()], &[&y], retain()).unwrap()[0], &[1.0, 1.0]);
        is(&grad(&[&y.grad().unwrap().sum()], &[&x]).unwrap()[0], &[1.0, 1.0]);
    });
}

// test_autograd.py::test_once_differentiable
#[test]
fn once_differentiable_functions_refuse_a_second_gradient() {
    each(|device| {
        let (x, _) = mixed(device, true);
        let error = fails(
            x.grad().unwrap().sum().backward(),
            "trying to differentiate twice a function that was marked with once_differentiable",
        );
        assert!(error.message().contains("MixedBackward"), "{error}");
        // One gradient is right.
        let (x, y) = (leaf(device, &[1.0]), leaf(device, &[3.0]));
        one(Mixed { s: 2.0, once: false }.apply(&[&x, &y])).backward().unwrap();
        grad_is(&x, &[4.0]);
    });
}

// test_autograd.py::test_function_returns_input
#[test]
fn a_function_may_give_back_its_input() {
    each(|device| {
        for shape in [vec![1], vec![]] {
            let v = options().device(device).requires_grad(true).ones(shape);
            let twice = |x: &Tensor| {
                let back = |_: &Context, g: &[Option<Tensor>]| vec![g[0].as_ref().map(|g| g * 2)];
                one(custom(|_, i| vec![i[0].clone()], back, &[x]))
            };
            let out = twice(&v);
            assert!(!out.is_leaf() && v.is_leaf() && !out.is_same(&v));
            out.backward().unwrap();
            grad_is(&v, &[2.0]);
            v.grad().unwrap().zero_();
            twice(&v.clone_data()).backward().unwrap();
            grad_is(&v, &[2.0]);
            // What is written to the one does not show in the other.
            let out = twice(&v);
            out.mul_(7);
            is(&v, &[1.0]);
        }
    });
}

// test_autograd.py::test_function_returns_undefined_tensor
#[test]
fn a_gradient_that_is_none_stays_none() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let f = |x: &Tensor| one(custom(|_, i| vec![&i[0] * 2], |_, _| vec![None], &[x]));
        f(&x).backward().unwrap();
        assert!(x.grad().is_none());
        f(&x.pow(2)).backward().unwrap();
        assert!(x.grad().is_none());
        f(&x).sum().backward().unwrap();
        assert!(x.grad().is_none());
        assert!(grad_allow_unused(&[&f(&x)], &[&x], Backward::new()).unwrap()[0].is_none());
        fails(grad(&[&f(&x)], &[&x]), "appears to not have been used in the graph");
    });
}

// test_autograd.py::test_materialize_grads, test_dont_materialize_grads
#[test]
fn gradients_that_are_none_come_as_zeros_unless_told_otherwise() {
    each(|device| {
        for zeros in [true, false] {
            let x = leaf(device, &[1.0]);
            let count = Count::default();
            let seen = count.clone();
            let y = one(custom(
                move |ctx, i| {
                    ctx.set_materialize_grads(zeros);
                    vec![i[0].clone()]
                },
                move |_, g| {
                    seen.up();
                    assert_eq!(g[0].is_some(), zeros);
                    g.iter().flatten().for_each(|g| is(g, &[0.0]));
                    g.to_vec()
                },
                &[&x],
            ));
            // Gives no gradient.
            one(custom(|_, i| vec![i[0].clone()], |_, _| vec![None], &[&y])).backward().unwrap();
            assert_eq!(count.get(), 1);
            match zeros {
                true => grad_is(&x, &[0.0]),
                false => assert!(x.grad().is_none()),
            }
        }
    });
}

// test_autograd.py::test_custom_function_exception
#[test]
fn errors_in_functions_come_out_of_the_pass() {
    each(|device| {
        let (a, b) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0, 4.0]));
        let sum = &a + &b;
        let broken =
            |_: &Context, g: &[Option<Tensor>]| vec![g[0].as_ref().map(|g| g.matmul(&g.reshape([1, 2])))];
        let y = one(custom(|_, i| vec![i[0].clone_data()], broken, &[&(&sum * &sum)]));
        assert_eq!(y.sum().backward().unwrap_err().op(), "matmul");
        assert!(a.grad().is_none());
        // Bad input, and an error in forward, give a tensor with the error.
        let bad = a.matmul(&options().device(device).ones([3, 3]));
        let y = one(custom(|_, i| vec![i[0].clone()], |_, g| g.to_vec(), &[&bad]));
        assert_eq!(y.error().unwrap().op(), "matmul");
        let inner = |_: &mut Context, i: &[Tensor]| vec![i[0].reshape([5])];
        let y = one(custom(inner, |_, g| g.to_vec(), &[&a]));
        assert!(y.backward().is_err());
        // A panic passes through, and leaves everything as it was.
        let y = one(custom(|_, i| vec![i[0].clone()], |_, _| panic!("in backward"), &[&a]));
        assert!(catch_unwind(AssertUnwindSafe(|| y.sum().backward())).is_err());
        let forward = |_: &mut Context, _: &[Tensor]| -> Vec<Tensor> { panic!("in forward") };
        let made = catch_unwind(AssertUnwindSafe(|| custom(forward, |_, g| g.to_vec(), &[&a])));
        assert!(made.is_err() && autograd::is_grad_enabled());
        (&a * 2).sum().backward().unwrap();
        grad_is(&a, &[2.0, 2.0]);
    });
}

// test_autograd.py::test_invalid_gradients
#[test]
fn gradients_must_have_their_inputs_shapes() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0, 3.0]);
        let zeros = options().device(device).zeros([10]);
        let y = one(custom(|_, i| vec![&i[0] * 2], move |_, _| vec![Some(zeros.clone())], &[&x]));
        let error = fails(y.sum().backward(), "returned an invalid gradient: got [10] but expected shape");
        assert!(error.message().contains("CustomBackward"), "{error}");
        // What was broadcast is summed, and what has another type converted.
        let x = leaf(device, &[1.0]);
        let wide = options().device(device).ones([4, 1]);
        let y = one(custom(|_, i| vec![&i[0] * 2], move |_, _| vec![Some(wide.clone())], &[&x]));
        y.backward().unwrap();
        grad_is(&x, &[4.0]);
        let x = leaf(device, &[1.0]);
        one(custom(|_, i| vec![&i[0] * 2], |_, g| vec![g[0].as_ref().map(|g| g.to(I32))], &[&x]))
            .backward()
            .unwrap();
        grad_is(&x, &[1.0]);
    });
}

// test_autograd.py::test_save_output_nr
#[test]
fn a_saved_output_knows_which_one_it_is() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let out = custom(
            |ctx, i| {
                let out = vec![&i[0] * 2, &i[0] * &i[0]];
                ctx.save_for_backward(&[&i[0], &out[1]]);
                out
            },
            |ctx, g| {
                let [x, square] = ctx.saved_tensors() else { panic!("two were saved") };
                assert!(!square.is_leaf());
                // 2 x, written as 2 x² / x, so that the second gradient goes through output 1.
                vec![Some(g[0].as_ref().unwrap() * 2 + g[1].as_ref().unwrap() * (square / x) * 2)]
            },
            &[&x],
        );
        let g = grad_with(&[&out[1].sum()], &[&x], create()).unwrap().remove(0);
        is(&g, &[2.0, 4.0]);
        is(&grad(&[&g.sum()], &[&x]).unwrap()[0], &[2.0, 2.0]);
    });
}

// test_autograd.py::test_no_grad_python_function, test_no_grad_input
#[test]
fn functions_respect_the_mode() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = no_grad(|| one(custom(|_, i| vec![&i[0] + 1], |_, g| g.to_vec(), &[&x])));
        assert!(!y.requires_grad() && y.grad_fn().is_none() && x.requires_grad());
        let y = no_grad(|| one(custom(|_, i| vec![i[0].clone()], |_, g| g.to_vec(), &[&x])));
        assert!(y.grad_fn().is_none() && x.is_leaf() && x.requires_grad());
    });
}

// test_autograd.py::test_mark_non_differentiable
#[test]
fn masks_are_not_differentiable() {
    each(|device| {
        let x = leaf(device, &[-1.0, 2.0]);
        let mask = one(custom(
            |ctx, i| {
                let out = i[0].gt(0);
                ctx.mark_non_differentiable(&[&out]);
                vec![out]
            },
            |_, g| vec![g[0].as_ref().map(Tensor::zeros_like)],
            &[&x],
        ));
        assert!(!mask.requires_grad() && mask.dtype() == Bool);
        x.where_(&mask, 0.0).sum().backward().unwrap();
        grad_is(&x, &[0.0, 1.0]);
    });
}

// test_autograd.py::test_mark_non_differentiable_mixed
#[test]
fn one_output_differentiable_and_one_not() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let out = custom(
            |ctx, i| {
                let out = vec![&i[0] + 1, &i[0] + 2];
                ctx.mark_non_differentiable(&[&out[0]]);
                out
            },
            |_, g| {
                is(g[0].as_ref().unwrap(), &[0.0, 0.0]);
                is(g[1].as_ref().unwrap(), &[1.0, 1.0]);
                vec![g[1].clone()]
            },
            &[&x],
        );
        assert!(!out[0].requires_grad() && out[1].requires_grad());
        out[1].sum().backward().unwrap();
        grad_is(&x, &[1.0, 1.0]);
    });
}

// test_autograd.py::test_mark_non_differentiable_none
#[test]
fn nothing_flows_past_a_function_without_gradient() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let r = one(custom(
            |ctx, i| {
                let out = i[0].clone_data();
                ctx.mark_non_differentiable(&[&out]);
                vec![out]
            },
            |_, _| vec![None],
            &[&(&x * &x)],
        ));
        (r * &x).sum().backward().unwrap();
        grad_is(&x, &[1.0, 4.0]);
    });
}

// test_autograd.py::test_dep_nograd
#[test]
fn an_undifferentiable_output_as_another_functions_input() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let out = custom(
            |ctx, i| {
                let other = i[0].zeros_like();
                ctx.mark_non_differentiable(&[&other]);
                vec![i[0].clone(), other]
            },
            |_, g| vec![g[0].clone()],
            &[&x],
        );
        let b = &out[1] + 1;
        assert!(out[0].requires_grad() && !b.requires_grad());
        let c = one(custom(|_, i| vec![i[0].clone()], |_, g| vec![g[0].clone(), None], &[&out[0], &b]));
        c.sum().backward().unwrap();
        grad_is(&x, &[1.0, 1.0]);
    });
}

// test_autograd.py::test_return_duplicate
#[test]
fn one_result_given_twice() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let out = custom(
            |_, i| {
                let y = &i[0] * 2;
                vec![y.clone(), y]
            },
            |_, g| vec![Some(g[0].as_ref().unwrap() * 2 + g[1].as_ref().unwrap() * 2)],
            &[&x],
        );
        (&out[0] + &out[1]).sum().backward().unwrap();
        grad_is(&x, &[4.0, 4.0]);
    });
}

// test_autograd.py::test_return_leaf
#[test]
fn a_leaf_given_back_is_another_tensor() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), leaf(device, &[2.0]));
        let out = custom(
            |_, i| vec![i[0].clone(), &i[0] + &i[1]],
            |_, g| vec![Some(g[0].as_ref().unwrap() + g[1].as_ref().unwrap()), g[1].clone()],
            &[&x, &y],
        );
        let count = Count::default();
        let seen = count.clone();
        // Of what flows to the result, not to the leaf.
        out[0]
            .register_hook(move |g| {
                is(g, &[1.0]);
                seen.up();
            })
            .unwrap();
        (&out[0] + &out[1] + &x).backward().unwrap();
        grad_is(&x, &[3.0]);
        grad_is(&y, &[1.0]);
        assert_eq!(count.get(), 1);
    });
}

// test_autograd.py::test_custom_autograd_repeated_grad_grad
#[test]
fn gradients_of_gradients_twice_over() {
    struct Prod;
    impl Function for Prod {
        fn forward(&self, ctx: &mut Context, i: &[Tensor]) -> Vec<Tensor> {
            let y = i[0].prod();
            ctx.save_for_backward(&[&i[0], &y]);
            vec![y]
        }
        fn backward(&self, ctx: &Context, g: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
            let [x, y] = ctx.saved_tensors() else { panic!("two were saved") };
            vec![Some(g[0].as_ref().unwrap() * y / x)]
        }
    }
    each(|device| {
        let x = leaf(device, &[2.0, 3.0, 4.0]);
        for y in [x.prod(), one(Prod.apply(&[&x]))] {
            let second = || {
                let g = grad_with(&[&y], &[&x], create()).unwrap().remove(0);
                is(&g, &[12.0, 8.0, 6.0]);
                grad_with(&[&g.select(0, 0)], &[&x], retain()).unwrap().remove(0)
            };
            is(&second(), &[0.0, 4.0, 3.0]);
            is(&second(), &[0.0, 4.0, 3.0]);
        }
    });
}

// test_autograd.py::test_custom_autograd_no_early_free
#[test]
fn a_saved_output_is_not_freed_too_early() {
    each(|device| {
        let x = leaf(device, &[2.0]);
        let y = one(custom(
            |ctx, i| {
                let y = i[0].pow(2);
                ctx.save_for_backward(&[&i[0], &y]);
                vec![y]
            },
            |ctx, g| {
                let [x, y] = ctx.saved_tensors() else { panic!("two were saved") };
                vec![Some(g[0].as_ref().unwrap() * 2 * y / x)]
            },
            &[&x],
        ));
        grad_with(&[&y], &[&x], create()).unwrap();
        is(&grad(&[&y], &[&x]).unwrap()[0], &[4.0]);
        fails(grad(&[&y], &[&x]), "Trying to backward through the graph a second time");
    });
}

// test_autograd.py::test_too_many_grads
#[test]
fn gradients_too_many_are_fine_if_none_and_too_few_are_not() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let f = |count: usize, some: bool| {
            let back = move |_: &Context, g: &[Option<Tensor>]| {
                (0..count).map(|i| if i == 0 || some { g[0].clone() } else { None }).collect()
            };
            one(custom(|_, i| vec![i[0].clone()], back, &[&x])).sum().backward()
        };
        f(3, false).unwrap();
        grad_is(&x, &[1.0]);
        fails(f(3, true), "returned an incorrect number of gradients (expected 1, got 3)");
        fails(f(0, false), "returned an incorrect number of gradients (expected 1, got 0)");
        grad_is(&x, &[1.0]);
    });
}

// test_autograd.py::test_custom_function_no_tensors, test_custom_function_non_tensor_inputs_outputs
#[test]
fn what_is_no_tensor_is_a_field_or_kept_by_type() {
    each(|device| {
        let c = plain(device, &[1.0, 2.0]);
        let out = one(Mixed { s: 3.0, once: false }.apply(&[&c, &c]));
        assert!(!out.requires_grad() && out.is_leaf());
        is(&out, &[5.0, 12.0]);
        assert!(custom(|_, _| vec![], |_, _| vec![], &[]).is_empty());
        let x = leaf(device, &[5.0]);
        let y = one(custom(
            |ctx, i| {
                ctx.insert(3usize);
                ctx.insert("three");
                ctx.insert(vec![i[0].dim()]);
                vec![&i[0] * 3]
            },
            |ctx, g| {
                assert_eq!((ctx.get::<usize>(), ctx.get::<&str>()), (Some(&3), Some(&"three")));
                assert_eq!((ctx.get::<Vec<usize>>(), ctx.get::<f32>()), (Some(&vec![1]), None));
                vec![g[0].as_ref().map(|g| g * 3)]
            },
            &[&x],
        ));
        y.backward_with(retain()).unwrap();
        y.backward().unwrap();
        grad_is(&x, &[6.0]);
    });
}

// test_autograd.py::test_custom_function_cycle
#[test]
fn functions_that_save_inputs_and_outputs_are_dropped() {
    each(|device| {
        let drops = Count::default();
        for run in [false, true] {
            let x = leaf(device, &[1.0]);
            let token = Dropped(drops.clone());
            let y = one(custom(
                move |ctx, i| {
                    let _ = &token;
                    let y = i[0].exp();
                    ctx.save_for_backward(&[&i[0], &y]);
                    vec![y]
                },
                |ctx, g| vec![Some(g[0].as_ref().unwrap() * &ctx.saved_tensors()[1])],
                &[&x],
            ));
            if run {
                y.backward_with(create()).unwrap();
                x.set_grad(None);
            }
        }
        assert_eq!(drops.get(), 2);
    });
}

#[test]
fn a_saved_input_that_is_given_back_is_still_the_input() {
    each(|device| {
        // x -> x, gradient g x: the second gradient flows to x itself, and not through the function again.
        let x = leaf(device, &[3.0]);
        let y = one(custom(
            |ctx, i| {
                ctx.save_for_backward(&[&i[0]]);
                vec![i[0].clone()]
            },
            |ctx, g| vec![Some(g[0].as_ref().unwrap() * &ctx.saved_tensors()[0])],
            &[&x],
        ));
        let g = grad_with(&[&y], &[&x], create()).unwrap().remove(0);
        is(&g, &[3.0]);
        is(&grad(&[&g], &[&x]).unwrap()[0], &[1.0]);
    });
}
