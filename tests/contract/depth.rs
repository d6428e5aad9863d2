//! Deep graphs, on a stack of 2 MiB.

use wgrad::autograd::{Context, Function, checkpoint};
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_free_deep_graph_pyfunction
#[test]
fn a_deep_graph_of_functions_is_dropped() {
    struct Twice;
    impl Function for Twice {
        fn forward(&self, _: &mut Context, i: &[Tensor]) -> Vec<Tensor> {
            vec![&i[0] + &i[1]]
        }
        fn backward(&self, _: &Context, g: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
            vec![g[0].clone(), g[0].clone()]
        }
    }
    each(|device| {
        on_small_stack(|| {
            let x = leaf(device, &[0.0]);
            let mut y = x.clone_data();
            for _ in 0..30_000 {
                y = one(Twice.apply(&[&y, &y]));
            }
            drop(y);
            let mut y = x.clone_data();
            for _ in 0..100 {
                y = one(Twice.apply(&[&y, &y]));
            }
            y.backward().unwrap();
            grad_is(&x, &[2f64.powi(100)]);
        });
    });
}

// test_autograd.py::test_free_deep_graph, test_free_deep_graph_complicated
#[test]
fn deep_graphs_are_dropped_without_recursion() {
    each(|device| {
        on_small_stack(|| {
            let x = leaf(device, &[1.0]);
            let mut y = x.clone_data();
            for _ in 0..50_000 {
                y = &y + &y * 0.000_001;
            }
            drop(y);
            // With connections over two steps.
            let mut last = [x.clone_data(), x.clone_data()];
            for i in 0..20_000 {
                let mut y = &last[1] + &last[1] * 0.000_001;
                if i % 3 == 0 {
                    y = &y + cat(&[&last[0], &last[1]], 0).sum();
                }
                last = [last[1].clone(), y];
            }
        });
    });
}

#[test]
fn a_hundred_thousand_ops_with_hooks() {
    each(|device| {
        on_small_stack(|| {
            let x = leaf(device, &[1.0, -1.0]);
            let count = Count::default();
            let mut y = &x * 1;
            for i in 0..100_000 {
                y = if i % 2 == 0 { &y + 1 } else { &y - 1 };
                let seen = count.clone();
                match i % 3 {
                    0 => drop(y.register_hook(move |_| seen.up()).unwrap()),
                    1 => drop(y.grad_fn().unwrap().register_hook(move |_, _| seen.up())),
                    _ => drop(y.grad_fn().unwrap().register_prehook(move |_| seen.up())),
                }
            }
            y.sum().backward_with(retain()).unwrap();
            assert_eq!(count.get(), 100_000);
            grad_is(&x, &[1.0, 1.0]);
        });
    });
}

#[test]
fn fifty_checkpoints_nested() {
    fn nest(x: &Tensor, depth: usize) -> Tensor {
        match depth {
            0 => x.sin(),
            _ => checkpoint(move |x| nest(&x[0].sin(), depth - 1) + &x[0], &[x]),
        }
    }
    each(|device| {
        on_small_stack(|| {
            let x = leaf(device, &[1.0]);
            nest(&x, 50).backward().unwrap();
            let mut y = leaf(device, &[1.0]);
            let root = y.clone();
            let mut sum = None;
            for _ in 0..50 {
                sum = Some(sum.map_or(y.clone(), |s: Tensor| s + &y));
                y = y.sin();
            }
            (y.sin() + sum.unwrap()).backward().unwrap();
            let want = root.grad().unwrap().to_f64_vec().unwrap();
            crate::common::assert_close(&x.grad().unwrap(), &want, 1e-4, "grad");
        });
    });
}

#[test]
fn a_checkpoint_of_a_deep_chain() {
    each(|device| {
        on_small_stack(|| {
            let x = leaf(device, &[1.0]);
            let y = checkpoint(|x| (0..20_000).fold(x[0].clone(), |y, _| y.neg().abs()), &[&x]);
            y.backward().unwrap();
            assert_eq!(x.grad().unwrap().to_f64_vec().unwrap()[0].abs(), 1.0);
        });
    });
}
