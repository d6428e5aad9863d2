//! Functions of the user's own that write to their inputs.

use wgrad::autograd::Context;
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_return_duplicate_inplace
#[test]
fn an_input_written_to_and_given_twice() {
    let double = |x: &Tensor| {
        custom(
            |ctx, i| {
                i[0].mul_(2);
                ctx.mark_dirty(&[&i[0]]);
                vec![i[0].clone(), i[0].clone()]
            },
            |_, g| vec![Some(g[0].as_ref().unwrap() * 2 + g[1].as_ref().unwrap() * 2)],
            &[x],
        )
    };
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let copy = x.clone_data();
        let out = double(&copy);
        assert!(out[0].is_same(&out[1]) && out[0].is_same(&copy));
        is(&copy, &[2.0, 4.0]);
        (&out[0] + &out[1]).sum().backward().unwrap();
        grad_is(&x, &[4.0, 4.0]);
        let message = "a leaf Variable that requires grad is being used in an in-place operation.";
        fails(one(double(&x)).check(), message);
    });
}

// test_autograd.py::test_return_leaf_inplace
#[test]
fn a_leaf_that_a_function_writes_to() {
    each(|device| {
        let (x, y) = (plain(device, &[1.0]), leaf(device, &[2.0]));
        let version = x.version();
        let out = custom(
            |ctx, i| {
                ctx.mark_dirty(&[&i[0]]);
                vec![i[0].add_(&i[1]), &i[1] + 2]
            },
            |_, g| vec![g[0].clone(), Some(g[0].as_ref().unwrap() + g[1].as_ref().unwrap())],
            &[&x, &y],
        );
        assert!(out[0].is_same(&x) && x.requires_grad() && x.version() > version);
        assert_eq!(x.grad_fn().unwrap().name(), "CustomBackward");
        is(&x, &[3.0]);
        out[0].sum().backward().unwrap();
        grad_is(&y, &[1.0]);
    });
}

#[test]
fn dirty_tensors_must_be_inputs_and_outputs() {
    each(|device| {
        let x = leaf(device, &[1.0]) * 1;
        let not_returned = |ctx: &mut Context, i: &[Tensor]| {
            ctx.mark_dirty(&[&i[0]]);
            vec![&i[0] * 2]
        };
        fails(
            one(custom(not_returned, |_, g| g.to_vec(), &[&x])).check(),
            "Some elements marked as dirty during the forward method were not returned as output",
        );
        let silent = |_: &mut Context, i: &[Tensor]| vec![i[0].mul_(2) * 1];
        fails(one(custom(silent, |_, g| g.to_vec(), &[&x])).check(), "not given to mark_dirty");
        let foreign = |ctx: &mut Context, i: &[Tensor]| {
            let out = &i[0] * 2;
            ctx.mark_dirty(&[&out]);
            vec![out]
        };
        fails(one(custom(foreign, |_, g| g.to_vec(), &[&x])).check(), "not an input");
    });
}

// test_autograd.py::test_inplace_on_view_python
#[test]
fn a_function_that_writes_to_a_view() {
    each(|device| {
        let (a, b) = (leaf(device, &[1.0, 2.0]), leaf(device, &[10.0]));
        let add = |x: &Tensor, y: &Tensor| {
            one(custom(
                |ctx, i| {
                    ctx.mark_dirty(&[&i[0]]);
                    vec![i[0].add_(&i[1])]
                },
                |_, g| vec![g[0].clone(), g[0].clone()],
                &[x, y],
            ))
        };
        let base = a.clone_data();
        let view = base.narrow(0, 0, 1);
        add(&view, &b);
        is(&base, &[11.0, 2.0]);
        assert_eq!(base.grad_fn().unwrap().name(), "CopySlices");
        (&base * &base).sum().backward().unwrap();
        grad_is(&a, &[22.0, 4.0]);
        grad_is(&b, &[22.0]);
    });
}

// test_autograd.py::test_custom_function_mark_dirty_not_differentiable
#[test]
fn dirty_and_not_differentiable() {
    each(|device| {
        let x = leaf(device, &[1.0]);
        let y = x.clone_data();
        let out = one(custom(
            |ctx, i| {
                i[0].mul_(2);
                ctx.mark_dirty(&[&i[0]]);
                ctx.mark_non_differentiable(&[&i[0]]);
                vec![i[0].clone()]
            },
            |_, _| panic!("there is no way back"),
            &[&y],
        ));
        assert!(out.is_same(&y) && !y.requires_grad());
        is(&y, &[2.0]);
    });
}
