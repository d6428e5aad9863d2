//! Hooks on tensors, on functions, and after accumulation.

use std::sync::{Arc, Mutex};

use wgrad::autograd::{self, HookHandle, grad, grad_with};
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_hooks
#[test]
fn hooks_on_tensors_see_and_replace_gradients() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 1.0]), leaf(device, &[4.0, 4.0]));
        let ones = plain(device, &[1.0, 1.0]);
        let z = &x * &x + &x * 2 + &x * &y + &y;
        let count = Count::default();
        let by = |n: usize| {
            let count = count.clone();
            move |_: &Tensor| count.add(n)
        };
        x.register_hook(by(0)).unwrap();
        let first = z.register_hook(by(1)).unwrap();
        let pass = || z.backward_with(retain().gradient(&ones)).unwrap();
        pass();
        assert_eq!(count.get(), 1);
        let second = z.register_hook(by(2)).unwrap();
        pass();
        assert_eq!(count.get(), 4);
        second.remove();
        second.remove(); // nothing more
        pass();
        assert_eq!(count.get(), 5);
        first.remove();
        z.register_hook(|g| g * 2).unwrap();
        y.grad().unwrap().zero_();
        pass();
        grad_is(&y, &[4.0, 4.0]);
        y.register_hook(|g| g * 2).unwrap();
        y.grad().unwrap().zero_();
        pass();
        grad_is(&y, &[8.0, 8.0]);
        assert_eq!(count.get(), 5);
    });
}

// test_autograd.py::test_hooks_cpp
#[test]
fn hooks_on_results_of_structured_ops() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0, 3.0, 4.0]);
        let count = Count::default();
        let seen = count.clone();
        let z = x.reshape([2, 2]).matmul(&options().device(device).eye(2));
        z.register_hook(move |g| {
            seen.up();
            g * 2
        })
        .unwrap();
        z.softmax(1).sum().backward_with(retain()).unwrap();
        z.sum().backward_with(retain()).unwrap();
        assert_eq!(count.get(), 2);
        grad_is(&x, &[2.0; 4]);
    });
}

// test_autograd.py::test_hook_none
#[test]
fn hooks_are_not_called_where_no_gradient_flows() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), plain(device, &[1.0]));
        let out = custom(
            |ctx, i| {
                assert!(ctx.needs_input_grad(0) && !ctx.needs_input_grad(1));
                vec![i[0].clone(), i[1].clone()]
            },
            |_, g| vec![g[0].clone(), None],
            &[&x, &y],
        );
        let count = Count::default();
        for t in &out {
            let count = count.clone();
            t.register_hook(move |_| count.up()).unwrap();
        }
        (&out[0] + &out[1]).sum().backward().unwrap();
        assert_eq!(count.get(), 2);
        grad_is(&x, &[1.0]);
        // A function that gives none: what is behind it hears nothing.
        let mid = &x * 2;
        let seen = count.clone();
        mid.register_hook(move |_| seen.up()).unwrap();
        one(custom(|_, i| vec![&i[0] * 1], |_, _| vec![None], &[&mid])).backward().unwrap();
        assert_eq!(count.get(), 2);
    });
}

// test_autograd.py::test_hook_with_no_name
#[test]
fn hooks_may_be_functions_and_give_options() {
    fn copy(g: &Tensor) -> Tensor {
        g.clone_data()
    }
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let y = x.clone_data();
        y.register_hook(copy).unwrap();
        y.register_hook(|_| None::<Tensor>).unwrap();
        y.register_hook(|g| Some(g * 3)).unwrap();
        y.sum().backward().unwrap();
        grad_is(&x, &[3.0, 3.0]);
    });
}

// test_autograd.py::test_grad_nonleaf_register_hook
#[test]
fn a_hook_on_one_part_hears_of_that_part_alone() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0, 3.0, 4.0, 5.0]);
        let parts = x.split(1, 0);
        let seen = Log::new();
        let log = seen.clone();
        parts[0].register_hook(move |g| log.push(g.clone())).unwrap();
        let mut expected = [0.0; 5];
        for (i, part) in parts.iter().enumerate() {
            part.backward().unwrap();
            expected[i] = 1.0;
            grad_is(&x, &expected);
            let heard = seen.take();
            assert_eq!(heard.len(), usize::from(i == 0));
            heard.iter().for_each(|g| is(g, &[1.0]));
            assert!(part.grad().is_none());
        }
    });
}

// test_autograd.py::test_grad_nonleaf_many_outputs
#[test]
fn hooks_beyond_what_was_asked_for_are_not_called() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0, 3.0, 4.0]);
        let count = Count::default();
        let seen = count.clone();
        x.register_hook(move |_| seen.up()).unwrap();
        let parts = x.split(2, 0);
        let go = plain(device, &[0.5, -1.0]);
        let out = &parts[0] + &parts[1] * 2;
        let grads = grad_with(&[&out], &[&parts[0], &parts[1]], create().gradient(&go)).unwrap();
        is(&grads[0], &[0.5, -1.0]);
        is(&grads[1], &[1.0, -2.0]);
        assert!(count.get() == 0 && x.grad().is_none());
        // Nor beside it: neither hooks, nor `retain_grad`, nor `inputs`.
        let (a, b) = (leaf(device, &[2.0]), leaf(device, &[3.0]));
        let side = &b * 5;
        side.retain_grad();
        for t in [&b, &side] {
            let seen = count.clone();
            t.register_hook(move |_| seen.up()).unwrap();
        }
        let z = &a * &side;
        is(&grad_with(&[&z], &[&a], retain()).unwrap()[0], &[15.0]);
        z.backward_with(retain().inputs(&[&a])).unwrap();
        assert!(count.get() == 0 && side.grad().is_none() && b.grad().is_none());
        grad_is(&a, &[15.0]);
        z.backward().unwrap();
        assert_eq!(count.get(), 2);
    });
}

// test_autograd.py::test_hook_edge_case_when_called_with_grad, test_accumulate_grad_posthooks_should_not_execute
#[test]
fn grad_calls_hooks_of_tensors_but_not_of_what_makes_them() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = &x * 2;
        let z = &y * 2;
        let log = Log::new();
        let note = |what: &'static str| {
            let log = log.clone();
            move || log.push(what)
        };
        let keep = &x * 1; // so that the accumulator stays
        let accumulator = keep.grad_fn().unwrap().next_functions().remove(0).unwrap();
        for (t, pre, post, on) in [(&y, "y pre", "y post", "y"), (&z, "z pre", "z post", "z")] {
            let (pre, post, on) = (note(pre), note(post), note(on));
            t.grad_fn().unwrap().register_prehook(move |_| pre());
            t.grad_fn().unwrap().register_hook(move |_, _| post());
            t.register_hook(move |_| on()).unwrap();
        }
        let (pre, post, on, after) = (note("x pre"), note("x post"), note("x"), note("x after"));
        accumulator.register_prehook(move |_| pre());
        accumulator.register_hook(move |_, _| post());
        x.register_hook(move |_| on()).unwrap();
        x.register_post_accumulate_grad_hook(move |_| after()).unwrap();
        grad_with(&[&z], &[&x], retain()).unwrap();
        assert_eq!(log.take(), ["z", "z pre", "z post", "y", "y pre", "y post", "x"]);
        grad_with(&[&z], &[&y], retain()).unwrap();
        assert_eq!(log.take(), ["z", "z pre", "z post", "y"]);
        grad_with(&[&z], &[&z], retain()).unwrap();
        assert_eq!(log.take(), ["z"]);
        // `backward` runs what makes them, and accumulators whole.
        z.backward_with(retain().inputs(&[&y])).unwrap();
        assert_eq!(log.take(), ["z", "z pre", "z post", "y", "y pre", "y post"]);
        z.backward_with(retain().inputs(&[&x])).unwrap();
        let all = ["z", "z pre", "z post", "y", "y pre", "y post", "x", "x pre", "x after", "x post"];
        assert_eq!(log.take(), all);
        z.backward().unwrap();
        assert_eq!(log.take(), all);
    });
}

// test_autograd.py::test_prehook_ordering
#[test]
fn hooks_of_a_tensor_come_before_those_of_its_function() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = &x * 2;
        let log = Log::new();
        let note = |n: usize| {
            let log = log.clone();
            move || log.push(n)
        };
        let (a, b, c, d) = (note(2), note(0), note(3), note(1));
        y.grad_fn().unwrap().register_prehook(move |_| a());
        y.register_hook(move |_| b()).unwrap();
        y.grad_fn().unwrap().register_prehook(move |_| c());
        y.register_hook(move |_| d()).unwrap();
        y.backward().unwrap();
        assert_eq!(log.take(), [0, 1, 2, 3]);
    });
}

// test_autograd.py::test_retains_grad_can_always_observe_tensor_prehook, test_accumulate_grad_posthooks_can_observe_tensor_prehook
#[test]
fn what_is_kept_is_what_hooks_made_of_it_whenever_they_came() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = &x * 1;
        y.register_hook(|g| g + 2).unwrap();
        y.retain_grad();
        y.register_hook(|g| g + 2).unwrap();
        let seen = Log::new();
        let log = seen.clone();
        x.register_post_accumulate_grad_hook(move |x| log.push(x.grad().unwrap())).unwrap();
        x.register_hook(|g| g * 10).unwrap();
        y.backward().unwrap();
        grad_is(&y, &[5.0]);
        is(&seen.take()[0], &[50.0]);
        // And what `grad` catches.
        let z = &x * 3;
        z.register_hook(|g| g * 7).unwrap();
        is(&grad(&[&(&z * 2)], &[&z]).unwrap()[0], &[14.0]);
    });
}

// test_autograd.py::test_grad_fn_prehooks, test_grad_fn_prehooks_multiple_outputs
#[test]
fn prehooks_of_functions_replace_what_arrives() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let y = &x * 3;
        let double = |g: &Option<Tensor>| g.as_ref().map(|g| g * 2);
        y.grad_fn().unwrap().register_prehook(move |g| g.iter().map(double).collect::<Vec<_>>());
        y.sum().backward().unwrap();
        grad_is(&x, &[6.0, 6.0]);
        // A function with two outputs, of which one is used: the other's gradient is none, and may be made up.
        let x = leaf(device, &[1.0, 2.0]);
        let out = custom(
            |_, i| vec![&i[0] * 1, &i[0] * 1],
            |_, g| vec![Some(g[0].as_ref().unwrap() + g[1].as_ref().unwrap() * 10)],
            &[&x],
        );
        let ones = plain(device, &[1.0, 1.0]);
        out[0].grad_fn().unwrap().register_prehook(move |g| {
            assert!(g.len() == 2 && g[1].is_none());
            vec![g[0].clone(), Some(ones.clone())]
        });
        out[0].sum().backward().unwrap();
        grad_is(&x, &[11.0, 11.0]);
    });
}

// test_autograd.py::test_grad_fn_prehooks_remove_hooks
#[test]
fn hooks_that_remove_themselves_and_others() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = &x * 2;
        let function = y.grad_fn().unwrap();
        let count = Count::default();
        let handles: Arc<Mutex<Vec<HookHandle>>> = Arc::default();
        let hook = || {
            let (count, handles) = (count.clone(), handles.clone());
            move || {
                count.up();
                let taken = std::mem::take(&mut *handles.lock().unwrap());
                taken.iter().for_each(HookHandle::remove);
            }
        };
        let (a, b, c, d) = (hook(), hook(), hook(), hook());
        *handles.lock().unwrap() = vec![
            function.register_prehook(move |_| a()),
            y.register_hook(move |_| b()).unwrap(),
            x.register_hook(move |_| c()).unwrap(),
            x.register_post_accumulate_grad_hook(move |_| d()).unwrap(),
        ];
        y.backward_with(retain()).unwrap();
        // The pass had taken those of `y` in hand; those of `x` were gone when it came there.
        assert_eq!(count.get(), 2);
        y.backward_with(retain()).unwrap();
        assert_eq!(count.get(), 2);
        grad_is(&x, &[4.0]);
    });
}

#[test]
fn hooks_that_register_others_and_run_passes() {
    each(|device| {
        let x = leaf(device, &[3.0]);
        let other = leaf(device, &[5.0]);
        let y = &x * 2;
        let count = Count::default();
        let (seen, inner) = (count.clone(), other.clone());
        y.register_hook({
            let x = x.clone();
            move |_| {
                seen.up();
                // Another pass, reads, and a hook on what is on the way.
                enable_grad(|| (&inner * &inner).backward()).unwrap();
                assert!(inner.grad().unwrap().item::<f32>().unwrap() > 0.0);
                let seen = seen.clone();
                x.register_hook(move |_| seen.add(100)).unwrap();
            }
        })
        .unwrap();
        y.backward_with(retain()).unwrap();
        assert_eq!(count.get(), 101);
        grad_is(&other, &[10.0]);
        y.backward_with(retain()).unwrap();
        assert_eq!(count.get(), 302);
        grad_is(&x, &[4.0]);
        // A pass over the graph that the outer pass is in, too.
        let x = leaf(device, &[3.0]);
        let y = &x * &x;
        let inner = Arc::new(Mutex::new(vec![]));
        let found = inner.clone();
        let again = (y.clone(), x.clone());
        let handle = x
            .register_hook(move |_| {
                if found.lock().unwrap().is_empty() {
                    found.lock().unwrap().push(None);
                    let g = grad_with(&[&again.0], &[&again.1], retain()).unwrap().remove(0);
                    found.lock().unwrap()[0] = Some(g);
                }
            })
            .unwrap();
        y.backward_with(retain()).unwrap();
        handle.remove(); // it holds what it hangs on
        is(inner.lock().unwrap()[0].as_ref().unwrap(), &[6.0]);
        grad_is(&x, &[6.0]);
    });
}

// test_autograd.py::test_post_accumulate_grad_hook_on_non_leaf
#[test]
fn post_accumulate_hooks_are_for_leaves_that_require_grad() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = &x * 2;
        let error =
            fails(y.register_post_accumulate_grad_hook(|_| ()), "cannot be registered on non-leaf tensors");
        assert_eq!((error.kind(), error.op()), (ErrorKind::Autograd, "register_post_accumulate_grad_hook"));
        assert!(error.caller().file().ends_with("hooks.rs"));
        let c = plain(device, &[1.0]);
        fails(c.register_post_accumulate_grad_hook(|_| ()), "doesn't require gradient");
        let error = fails(
            c.register_hook(|_| ()),
            "cannot register a hook on a tensor that doesn't require gradient",
        );
        assert_eq!((error.kind(), error.op()), (ErrorKind::Autograd, "register_hook"));
        // One that carries an error tells of that.
        let broken = x.matmul(&options().device(device).ones([3, 3]));
        assert_eq!(broken.register_hook(|_| ()).err().unwrap().op(), "matmul");
    });
}

// test_autograd.py::test_post_accumulate_grad_hook_multiple_hooks, test_post_accumulate_grad_hook_multiple_tensors
#[test]
fn post_accumulate_hooks_run_in_order_on_each_leaf() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 1.0]), leaf(device, &[2.0, 2.0]));
        for t in [&x, &y] {
            t.register_post_accumulate_grad_hook(|t| no_grad(|| drop(t.add_(t.grad().unwrap())))).unwrap();
            t.register_post_accumulate_grad_hook(|t| no_grad(|| drop(t.mul_(10)))).unwrap();
        }
        (&x * 3 + &y * 4).sum().backward().unwrap();
        is(&x, &[40.0, 40.0]);
        is(&y, &[60.0, 60.0]);
    });
}

// test_autograd.py::test_post_accumulate_grad_hook_e2e
#[test]
fn an_optimizer_in_the_backward_pass() {
    each(|device| {
        let start = || (leaf(device, &[1.0, -2.0]), leaf(device, &[0.5, 3.0]));
        let loss = |w: &Tensor, v: &Tensor| (w * w * v).sum();
        let (w, v) = start();
        for p in [&w, &v] {
            p.register_post_accumulate_grad_hook(|p| {
                no_grad(|| drop(p.sub_(p.grad().unwrap() * 0.1)));
                p.set_grad(None);
            })
            .unwrap();
        }
        let (a, b) = start();
        for _ in 0..3 {
            loss(&w, &v).backward().unwrap();
            assert!(w.grad().is_none() && v.grad().is_none());
            loss(&a, &b).backward().unwrap();
            for p in [&a, &b] {
                no_grad(|| drop(p.sub_(p.grad().unwrap() * 0.1)));
                p.set_grad(None);
            }
        }
        assert_eq!(w.to_vec::<f32>().unwrap(), a.to_vec::<f32>().unwrap());
        assert_eq!(v.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
    });
}

// test_autograd.py::test_post_accumulate_grad_hook_gets_cleaned_up
#[test]
fn what_a_hook_holds_goes_with_it() {
    each(|device| {
        let drops = Count::default();
        let held = || {
            let held = Dropped(drops.clone());
            move || {
                let _ = &held;
            }
        };
        let x = leaf(device, &[1.0]);
        let (a, b, c) = (held(), held(), held());
        let handle = x.register_post_accumulate_grad_hook(move |_| a()).unwrap();
        x.register_hook(move |_| b()).unwrap();
        let y = &x * 2;
        let of_y = y.register_hook(move |_| c()).unwrap();
        y.backward().unwrap();
        assert_eq!(drops.get(), 0);
        handle.remove();
        assert_eq!(drops.get(), 1);
        drop(y);
        assert_eq!(drops.get(), 2);
        of_y.remove(); // the function is gone: nothing to do
        drop(x);
        assert_eq!(drops.get(), 3);
        // Of a graph that is dropped without having run.
        let z = (leaf(device, &[1.0]) * 2).exp();
        let d = held();
        z.grad_fn().unwrap().register_hook(move |_, _| d());
        drop(z);
        assert_eq!(drops.get(), 4);
    });
}

// test_autograd.py::test_post_accumulate_grad_hook_ordering
#[test]
fn hooks_of_a_leaf_come_in_pytorchs_order() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let log = Log::new();
        let note = |what: &'static str| {
            let log = log.clone();
            move || log.push(what)
        };
        let keep = &x * 1;
        let accumulator = keep.grad_fn().unwrap().next_functions().remove(0).unwrap();
        assert_eq!(accumulator.name(), "AccumulateGrad");
        assert!(accumulator.variable().unwrap().is_same(&x));
        let (a, b, c, d) = (note("post"), note("after"), note("pre"), note("tensor"));
        accumulator.register_hook(move |_, _| a());
        x.register_post_accumulate_grad_hook(move |_| b()).unwrap();
        accumulator.register_prehook(move |_| c());
        x.register_hook(move |_| d()).unwrap();
        x.sum().backward().unwrap();
        assert_eq!(log.take(), ["tensor", "pre", "after", "post"]);
    });
}

#[test]
fn posthooks_see_inputs_and_outputs_gradients() {
    each(|device| {
        let (x, c) = (leaf(device, &[2.0]), plain(device, &[3.0]));
        let y = &x * &c;
        let count = Count::default();
        let seen = count.clone();
        y.grad_fn().unwrap().register_hook(move |inputs, outputs| {
            assert!(inputs.len() == 2 && inputs[1].is_none() && outputs.len() == 1);
            is(inputs[0].as_ref().unwrap(), &[3.0]);
            is(outputs[0].as_ref().unwrap(), &[1.0]);
            seen.up();
            vec![inputs[0].as_ref().map(|g| g * 100), None]
        });
        y.backward().unwrap();
        assert_eq!(count.get(), 1);
        grad_is(&x, &[300.0]);
    });
}

#[test]
fn hooks_are_part_of_gradients_of_gradients() {
    each(|device| {
        let x = leaf(device, &[3.0]);
        let y = &x * &x;
        let w = leaf(device, &[10.0]);
        let scale = w.clone();
        y.register_hook(move |g| g * &scale).unwrap();
        let g = grad_with(&[&y], &[&x], create()).unwrap().remove(0);
        is(&g, &[60.0]);
        let both = grad(&[&g], &[&x, &w]).unwrap();
        is(&both[0], &[20.0]);
        is(&both[1], &[6.0]);
        // Not recorded in a pass that makes no graph, unless told to.
        let count = Count::default();
        let seen = count.clone();
        let y = &x * 1;
        y.register_hook(move |g| {
            assert!(!autograd::is_grad_enabled() && !(g * 2).requires_grad());
            seen.up();
        })
        .unwrap();
        y.backward().unwrap();
        assert_eq!(count.get(), 1);
    });
}
