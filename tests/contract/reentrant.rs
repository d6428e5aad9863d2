//! Passes within passes.

use wgrad::autograd::Context;
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_simple_reentrant
#[test]
fn a_pass_within_a_functions_backward() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let y = plain(device, &[3.0, 4.0]);
        let data = y.clone();
        let out = one(custom(
            move |ctx, i| {
                let (x, out) = enable_grad(|| {
                    let x = i[0].detach().requires_grad_(true);
                    let out = &x * &data;
                    (x, out)
                });
                let value = out.detach();
                ctx.insert((x, out));
                vec![value]
            },
            |ctx, g| {
                let (x, out) = ctx.get::<(Tensor, Tensor)>().unwrap();
                enable_grad(|| out.sum().backward()).unwrap();
                vec![Some(x.grad().unwrap() * g[0].as_ref().unwrap())]
            },
            &[&x],
        ));
        out.sum().backward().unwrap();
        grad_is(&x, &[3.0, 4.0]);
    });
}

// test_autograd.py::test_reentrant_child_error
#[test]
fn an_error_in_a_pass_within_a_pass() {
    each(|device| {
        let (a, b) = (leaf(device, &[1.0]), leaf(device, &[2.0]));
        let failing = one(custom(
            |_, i| vec![i[0].clone_data()],
            |_, g| vec![g[0].as_ref().map(|g| g.matmul(&g.reshape([7])))],
            &[&(&b * &b)],
        ));
        let root = failing.sum();
        let d = one(custom(
            |_, i| vec![i[0].clone_data()],
            move |_, g| match root.backward() {
                Ok(()) => g.to_vec(),
                // What went wrong goes on as a tensor does.
                Err(_) => vec![Some(root.reshape([13]))],
            },
            &[&(&a * &a)],
        ));
        assert!(d.sum().backward().is_err());
        assert!(a.grad().is_none() && b.grad().is_none());
    });
}

// test_autograd.py::test_reentrant_priority
#[test]
fn the_inner_pass_ends_before_the_outer_goes_on() {
    each(|device| {
        let log = Log::new();
        let (outer, inner) = (log.clone(), log.clone());
        let x = leaf(device, &[1.0]);
        let small = one(custom(
            |_, i| vec![i[0].clone()],
            move |_, g| {
                outer.push("outer");
                g.to_vec()
            },
            &[&x],
        ));
        let other = leaf(device, &[1.0]);
        let again = one(custom(
            |_, i| vec![i[0].clone()],
            move |_, g| {
                let y = leaf(g[0].as_ref().unwrap().device(), &[2.0]);
                let mark = inner.clone();
                let back = move |_: &Context, g: &[Option<Tensor>]| {
                    mark.push("inner");
                    g.to_vec()
                };
                enable_grad(|| one(custom(|_, i| vec![i[0].clone()], back, &[&y])).backward()).unwrap();
                inner.push("end of inner");
                g.to_vec()
            },
            &[&other],
        ));
        (small * again).backward().unwrap();
        assert_eq!(log.take(), ["inner", "end of inner", "outer"]);
    });
}

#[test]
fn passes_within_passes_a_hundred_deep() {
    fn down(x: &Tensor, depth: usize) -> Tensor {
        one(custom(
            |_, i| vec![i[0].clone()],
            move |_, g| {
                if depth > 0 {
                    let x = leaf(g[0].as_ref().unwrap().device(), &[1.0]);
                    enable_grad(|| down(&x, depth - 1).backward()).unwrap();
                    return vec![x.grad().map(|g| g + 1)];
                }
                g.to_vec()
            },
            &[x],
        ))
    }
    each(|device| {
        on_small_stack(|| {
            let x = leaf(device, &[1.0]);
            down(&x, 100).backward().unwrap();
            grad_is(&x, &[101.0]);
        });
    });
}
