//! The engine: what runs, how often, and what comes of it.

use wgrad::autograd::{self, grad, grad_allow_unused, grad_with};
use wgrad::prelude::*;

use crate::support::*;

// test_autograd.py::test_accumulate_grad
#[test]
fn accumulation_is_in_place_unless_a_graph_is_made() {
    each(|device| {
        for graph in [false, true] {
            let x = leaf(device, &[1.0, 2.0]);
            let y = (&x + 2).sum();
            y.backward_with(retain()).unwrap();
            let held = x.grad().unwrap();
            y.backward_with(Backward::new().create_graph(graph)).unwrap();
            is(&held, if graph { &[1.0, 1.0] } else { &[2.0, 2.0] });
            grad_is(&x, &[2.0, 2.0]);
        }
    });
}

// test_autograd.py::test_accumulate_grad_tensor_reference
#[test]
fn a_gradient_keeps_its_identity_unless_a_graph_is_made() {
    each(|device| {
        for graph in [false, true] {
            let x = leaf(device, &[1.5, 1.5]);
            x.set_grad(Some(plain(device, &[1.5, 1.5])));
            let held = x.grad().unwrap();
            x.backward_with(Backward::new().gradient(&plain(device, &[1.5, 1.5])).create_graph(graph))
                .unwrap();
            assert_eq!(held.is_same(&x.grad().unwrap()), !graph);
            grad_is(&x, &[3.0, 3.0]);
        }
    });
}

// test_autograd.py::test_hessian_vector, test_grad
#[test]
fn products_with_second_derivatives() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0, 5.0]));
        let ones = plain(device, &[1.0, 1.0]);
        let z = x.pow(2) + &y * &x + y.pow(2);
        z.backward_with(create().gradient(&ones)).unwrap();
        let (gx, gy) = ([5.0, 9.0], [7.0, 12.0]);
        grad_is(&x, &gx);
        grad_is(&y, &gy);
        let sum = x.grad().unwrap() * 2 + y.grad().unwrap();
        let hv = grad_with(&[&sum], &[&x], create().gradient(&ones)).unwrap();
        is(&hv[0], &[5.0, 5.0]);
        grad_is(&x, &gx);
        let wrong = grad_with(&[&sum], &[&x], &plain(device, &[1.0]));
        let error =
            fails(wrong, "Mismatch in shape: grad_output has a shape of [1] and output has a shape of [2]");
        assert_eq!(error.op(), "grad");
        sum.backward_with(&ones).unwrap();
        grad_is(&x, &gx.map(|g| g + 5.0));
        grad_is(&y, &gy.map(|g| g + 4.0));
    });
}

// test_autograd.py::test_grad_nonleaf
#[test]
fn steps_along_a_gradient_that_is_recorded() {
    each(|device| {
        let (init, y) = (leaf(device, &[1.0]), leaf(device, &[0.5]));
        let f = |x: &Tensor| x.pow(2) + &y * x + y.pow(2);
        let (mut x, mut value) = (init.clone(), 1.0f64);
        for _ in 0..5 {
            let g = grad_with(&[&f(&x)], &[&x], create()).unwrap().remove(0);
            assert!(init.grad().is_none() && y.grad().is_none());
            is(&g, &[2.0 * value + 0.5]);
            x = &x + g * 0.05;
            value += 0.05 * (2.0 * value + 0.5);
        }
        x.backward().unwrap();
        assert!(y.grad().is_some());
        crate::common::assert_close(&init.grad().unwrap(), &[1.1f64.powi(5)], 1e-5, "grad");
    });
}

// test_autograd.py::test_sharded_grad
#[test]
fn gradients_in_shards() {
    each(|device| {
        let leaves: Vec<Tensor> = (0..10).map(|i| leaf(device, &[f64::from(i), 1.0])).collect();
        let mids: Vec<Tensor> = (0..).zip(&leaves).map(|(i, l)| l * i + l * l).collect();
        let loss = (0..).zip(&mids).map(|(i, m): (i32, _)| m * i).reduce(|a, b| a + b).unwrap().sum();
        let grads: Vec<Tensor> = mids
            .chunks(2)
            .flat_map(|part| grad_with(&[&loss], &part.iter().collect::<Vec<_>>(), retain()).unwrap())
            .collect();
        let how = Backward::new().gradients(grads.iter().map(Some));
        autograd::backward(&mids.iter().collect::<Vec<_>>(), how).unwrap();
        for (i, l) in leaves.iter().enumerate() {
            let i = i as f64;
            grad_is(l, &[i * (i + 2.0 * i), i * (i + 2.0)]);
        }
    });
}

// test_autograd.py::test_backward_badcalls, test_grad_badcalls
#[test]
fn what_does_not_require_grad_has_none() {
    each(|device| {
        let x = options().device(device).ones(1);
        let y = x.pow(2);
        fails(x.backward(), "does not require grad");
        fails(grad(&[&x], &[&y]), "does not require grad");
        fails(grad(&[&y], &[&x]), "does not require grad");
        let x = leaf(device, &[1.0]);
        grad(&[&x.pow(2)], &[&x]).unwrap();
    });
}

// test_autograd.py::test_grad_unreachable
#[test]
fn inputs_that_cannot_be_reached() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), leaf(device, &[1.0]));
        let _both = (&x * 2, &y * 2); // have accumulators
        let z = leaf(device, &[1.0]); // has none
        for other in [&y, &z] {
            let grads = grad_allow_unused(&[&(&x * 2)], &[&x, other], Backward::new()).unwrap();
            is(grads[0].as_ref().unwrap(), &[2.0]);
            assert!(grads[1].is_none());
            let error = fails(grad(&[&(&x * 2)], &[&x, other]), "appears to not have been used in the graph");
            assert!(error.message().contains("input 1"), "{error}");
        }
    });
}

// test_autograd.py::test_grad_unreachable_discovery
#[test]
fn what_cannot_be_reached_is_not_run() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), leaf(device, &[1.0]));
        let count = Count::default();
        let seen = count.clone();
        let side = one(custom(
            |_, i| vec![i[0].clone()],
            move |_, g| {
                seen.up();
                g.to_vec()
            },
            &[&y],
        ));
        let z = (&x * 2) + side;
        is(&grad_with(&[&z], &[&x], retain()).unwrap()[0], &[2.0]);
        z.backward_with(retain().inputs(&[&x])).unwrap();
        assert_eq!(count.get(), 0);
        z.backward().unwrap();
        assert_eq!(count.get(), 1);
        grad_is(&x, &[4.0]);
        grad_is(&y, &[1.0]);
    });
}

// test_autograd.py::test_backward
#[test]
fn a_formula_by_hand() {
    each(|device| {
        let (v, x) = (leaf(device, &[1.0, 2.0]), leaf(device, &[0.5, -1.0]));
        let (y, z) = (leaf(device, &[0.7, 0.4]), leaf(device, &[1.5, -0.5]));
        let go = plain(device, &[2.0, 3.0]);
        v.backward_with(&go).unwrap();
        grad_is(&v, &[2.0, 3.0]);
        let a = &x + (&y * &z) + z.pow(2) * 4 * &x / &y;
        a.backward_with(&go).unwrap();
        let at = |f: fn(f64, f64, f64) -> f64| [2.0 * f(0.5, 0.7, 1.5), 3.0 * f(-1.0, 0.4, -0.5)];
        let close = |t: &Tensor, want: [f64; 2]| {
            crate::common::assert_close(&t.grad().unwrap(), &want, 1e-5, "grad");
        };
        close(&x, at(|_, y, z| 4.0 * z * z / y + 1.0));
        close(&y, at(|x, y, z| z - 4.0 * x * z * z / (y * y)));
        close(&z, at(|x, y, z| 8.0 * x * z / y + y));
    });
}

// test_autograd.py::test_multi_backward
#[test]
fn one_pass_from_several_tensors() {
    each(|device| {
        let [x, y, q, a, b] = [1.0, 2.0, 3.0, 4.0, 5.0].map(|v| leaf(device, &[v, -v]));
        let q2 = &q * 2;
        let (z, c) = (&x + &y + &q2, &a * &b + &q2);
        let (gz, gc) = (plain(device, &[1.0, 2.0]), plain(device, &[3.0, 4.0]));
        autograd::backward(&[&z, &c], Backward::new().gradients([Some(&gz), Some(&gc)])).unwrap();
        grad_is(&x, &[1.0, 2.0]);
        grad_is(&y, &[1.0, 2.0]);
        grad_is(&a, &[15.0, -20.0]);
        grad_is(&b, &[12.0, -16.0]);
        grad_is(&q, &[8.0, 12.0]);
    });
}

// test_autograd.py::test_multi_backward_no_grad, test_backward_no_grad
#[test]
fn every_tensor_must_require_grad_and_be_one_number_or_have_a_gradient() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 2.0]), plain(device, &[1.0, 2.0]));
        let ones = plain(device, &[1.0, 1.0]);
        let (z, q) = (&x + &y, &y * 2);
        let both = || Backward::new().gradients([Some(&ones), Some(&ones)]);
        let error =
            fails(autograd::backward(&[&z, &q], both()), "element 1 of tensors does not require grad");
        assert_eq!(error.kind(), ErrorKind::Autograd);
        fails(autograd::backward(&[&z], Backward::new().gradients([None])), "only for scalar outputs");
        fails(autograd::backward(&[&z], both()), "got 1 tensors and 2 gradients");
        fails(z.backward_with(Backward::new().gradient(&ones).inputs(&[])), "cannot be empty");
        autograd::backward(&[], Backward::new()).unwrap();
        assert!(x.grad().is_none());
    });
}

// test_autograd.py::test_dependent_backward
#[test]
fn a_root_on_the_way_from_another() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let y = x.pow(2);
        let z = y.pow(3);
        let (gy, gz) = (plain(device, &[1.0, 2.0]), plain(device, &[3.0, 0.5]));
        for order in [[(&y, &gy), (&z, &gz)], [(&z, &gz), (&y, &gy)]] {
            x.set_grad(None);
            let how = retain().gradients(order.map(|(_, g)| Some(g)));
            autograd::backward(&order.map(|(t, _)| t), how).unwrap();
            grad_is(&x, &[2.0 + 18.0, 8.0 + 96.0]);
        }
    });
}

// test_autograd.py::test_duplicate_backward_root
#[test]
fn one_root_twice() {
    each(|device| {
        let (a, b) = (leaf(device, &[1.0, 2.0]), leaf(device, &[3.0, 4.0]));
        let x = &a * &b;
        let g = plain(device, &[1.0, 10.0]);
        autograd::backward(&[&x, &x], Backward::new().gradients([Some(&g), Some(&g)])).unwrap();
        grad_is(&a, &[6.0, 80.0]);
        grad_is(&b, &[2.0, 40.0]);
    });
}

// test_autograd.py::test_backward_copy
#[test]
fn one_gradient_buffered_in_three_places() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), leaf(device, &[1.0]));
        let (mut a, mut b, mut c) = (&x + 2, &y + 2, &x + 2);
        let add2 = &a + &b + &c;
        for _ in 0..4 {
            (a, b, c) = (a * 2, b * 2, c * 2);
        }
        (add2 + (a + b + c)).backward().unwrap();
        grad_is(&x, &[34.0]);
        grad_is(&y, &[17.0]);
    });
}

// test_autograd.py::test_no_grad_copy
#[test]
fn one_gradient_in_two_leaves_is_two_tensors() {
    each(|device| {
        let (a, b) = (leaf(device, &[1.0, 2.0]), leaf(device, &[1.0, 2.0]));
        let seen = Log::new();
        let log = seen.clone();
        let y = one(custom(
            |_, i| vec![&i[0] + &i[1]],
            move |_, g| {
                log.push(g[0].clone().unwrap());
                vec![g[0].clone(), g[0].clone()]
            },
            &[&a, &b],
        ));
        y.sum().backward().unwrap();
        a.grad().unwrap().mul_(5);
        grad_is(&a, &[5.0, 5.0]);
        grad_is(&b, &[1.0, 1.0]);
        is(&seen.take()[0], &[1.0, 1.0]);
    });
}

// test_autograd.py::test_next_functions
#[test]
fn functions_lead_to_functions() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), leaf(device, &[1.0]));
        let a = &x + &y;
        let next = a.grad_fn().unwrap().next_functions();
        let names: Vec<_> = next.iter().map(|f| f.as_ref().unwrap().name()).collect();
        assert_eq!(names, ["AccumulateGrad", "AccumulateGrad"]);
        assert!(next[0].as_ref().unwrap().variable().unwrap().is_same(&x));
        let b = &a + 5;
        let next = b.grad_fn().unwrap().next_functions();
        assert!(std::sync::Arc::ptr_eq(next[0].as_ref().unwrap(), &a.grad_fn().unwrap()));
        assert!(next.len() == 2 && next[1].is_none());
        assert_eq!(b.grad_fn().unwrap().output_shapes(), [[1]]);
    });
}

// test_autograd.py::test_indexing
#[test]
fn gradients_of_parts() {
    each(|device| {
        let y = leaf(device, &(1..=16).map(f64::from).collect::<Vec<_>>());
        type Part = fn(&Tensor) -> Tensor;
        let parts: [(Part, &[usize]); 6] = [
            (|m| m.i(1), &[4, 5, 6, 7]),
            (|m| m.i((1, 1)), &[5]),
            (|m| m.i(..2), &[0, 1, 2, 3, 4, 5, 6, 7]),
            (|m| m.i((1..2, 2)), &[6]),
            (|m| m.i((.., 2..)), &[2, 3, 6, 7, 10, 11, 14, 15]),
            (
                |m| m.index_select(0, &options().device(m.device()).tensor([0, 2])),
                &[0, 1, 2, 3, 8, 9, 10, 11],
            ),
        ];
        for (part, ones) in parts {
            y.set_grad(None);
            part(&y.reshape([4, 4])).sum().backward().unwrap();
            let want: Vec<f64> = (0..16).map(|i| f64::from(u8::from(ones.contains(&i)))).collect();
            grad_is(&y, &want);
        }
    });
}

// test_autograd.py::test_indexing_duplicates
#[test]
fn rows_taken_more_than_once() {
    each(|device| {
        let y = leaf(device, &[1.0; 8]);
        let index = options().device(device).tensor([1, 1, 3, 2, 1, 2]);
        y.reshape([4, 2]).index_select(0, &index).sum().backward().unwrap();
        grad_is(&y, &[0.0, 0.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0]);
    });
}

// test_autograd.py::test_backward_twice_with_saved_values, test_backward_twice_retained_graph_with_saved_values
#[test]
fn twice_through_what_saved_values() {
    each(|device| {
        let b = leaf(device, &[1.0, 2.0, 3.0]);
        let make = || {
            let c = options().device(device).zeros(3);
            c.narrow(0, 1, 2).copy_(&b.square().narrow(0, 0, 2));
            c.sum()
        };
        let c = make();
        c.backward().unwrap();
        fails(c.backward(), "Specify retain_graph=true");
        let c = make();
        c.backward_with(retain()).unwrap();
        c.backward().unwrap();
        grad_is(&b, &[6.0, 12.0, 0.0]);
        let square = b.square();
        assert!(!square.grad_fn().unwrap().is_freed());
        square.sum().backward().unwrap();
        assert!(square.grad_fn().unwrap().is_freed());
    });
}

// test_autograd.py::test_backward_twice_without_saved_values, test_backward_twice_retained_graph_without_saved_values
#[test]
fn twice_through_what_saved_nothing() {
    each(|device| {
        let b = leaf(device, &[1.0, 2.0]);
        let c = (&b + 1).sum();
        c.backward_with(retain()).unwrap();
        c.backward().unwrap();
        c.backward().unwrap();
        grad_is(&b, &[3.0, 3.0]);
        assert!(!c.grad_fn().unwrap().is_freed());
    });
}

// test_autograd.py::test_backward_with_inputs
#[test]
fn backward_into_chosen_leaves() {
    each(|device| {
        let (x, y) = (leaf(device, &[2.0, 3.0]), leaf(device, &[5.0, 7.0]));
        let f = || (x.pow(2) + &y * &x + y.pow(2)).sum();
        let (gx, gy) = ([9.0, 13.0], [12.0, 17.0]);
        let run = |inputs: &[&Tensor]| {
            x.set_grad(None);
            y.set_grad(None);
            f().backward_with(Backward::new().inputs(inputs)).unwrap();
        };
        run(&[&x, &y]);
        grad_is(&x, &gx);
        grad_is(&y, &gy);
        run(&[&x]);
        grad_is(&x, &gx);
        assert!(y.grad().is_none());
        run(&[&y]);
        grad_is(&y, &gy);
        assert!(x.grad().is_none());
        run(&[&y, &y]);
        grad_is(&y, &gy);
        fails(
            f().backward_with(Backward::new().inputs(&[])),
            "`inputs` argument to `backward()` cannot be empty.",
        );
        fails(f().backward_with(Backward::new().inputs(&[&x.detach()])), "does not require grad");
    });
}

// test_autograd.py::test_backward_with_nonleaf_inputs
#[test]
fn backward_into_what_is_no_leaf() {
    each(|device| {
        let (x, y) = (leaf(device, &[2.0]), leaf(device, &[5.0]));
        let x_mid = &x * 3;
        let z = x_mid.pow(2) + &y * &x_mid;
        z.backward_with(retain().inputs(&[&x, &y, &x_mid])).unwrap();
        grad_is(&x_mid, &[17.0]);
        grad_is(&x, &[51.0]);
        grad_is(&y, &[6.0]);
        assert!(x_mid.retains_grad());
        // One that does not lead there gets none.
        let other = &y * 2;
        z.backward_with(Backward::new().inputs(&[&other, &x])).unwrap();
        assert!(other.grad().is_none());
        grad_is(&x, &[102.0]);
    });
}

// test_autograd.py::test_detach
#[test]
fn detach_cuts_and_shares() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let y = (&x * 2).detach();
        assert!(!y.requires_grad() && y.grad_fn().is_none() && !(&y * 4 + 2).requires_grad());
        (&x + &y).sum().backward().unwrap();
        grad_is(&x, &[1.0, 1.0]);
    });
}

// test_autograd.py::test_type_conversions
#[test]
fn conversions_give_gradients_back_in_the_leafs_type() {
    let cpu = cpu();
    for (from, to) in [(F32, F64), (F64, F32)] {
        let x = options().device(&cpu).dtype(from).requires_grad(true).tensor([1.0, 2.0]);
        x.to(to).square().sum().backward().unwrap();
        assert_eq!(x.grad().unwrap().dtype(), from);
        grad_is(&x, &[2.0, 4.0]);
    }
}

// test_autograd.py::test_isolated_node
#[test]
fn a_node_that_no_gradient_flows_to() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0, 2.0]), leaf(device, &[5.0, 1.0]));
        let a = &x + &y;
        let b = a.gt(5.0).to(F32);
        (b + a).sum().backward().unwrap();
        grad_is(&x, &[1.0, 1.0]);
    });
}

// test_autograd.py::test_sum_to_with_empty_dim_grad
#[test]
fn gradients_of_empty_tensors() {
    each(|device| {
        let o = || options().device(device).requires_grad(true);
        let (a, b) = (o().ones([4, 0]), o().ones([4, 1]));
        let c = &a + &b;
        assert_eq!(c.shape(), [4, 0]);
        c.sum().backward().unwrap();
        grad_is(&b, &[0.0; 4]);
        grad_is(&a, &[]);
    });
}

// test_autograd.py::test_requires_grad, test_requires_grad_
#[test]
fn requires_grad_is_set_and_passed_on() {
    each(|device| {
        let (x, y) = (plain(device, &[1.0]), leaf(device, &[2.0]));
        assert!(!(&x + &x).requires_grad() && (&x + &y).requires_grad());
        for set in [true, true, false] {
            assert!(x.requires_grad_(set).is_same(&x) && x.requires_grad() == set);
        }
        x.requires_grad_(true);
        let z = &x * &y;
        fails(z.requires_grad_(false).check(), "you can only change requires_grad flags of leaf variables");
        assert!(z.requires_grad_(true).is_same(&z) && z.requires_grad());
        let integers = plain(device, &[1.0]).to(I32);
        fails(
            integers.requires_grad_(true).check(),
            "only Tensors of floating point dtype can require gradients",
        );
    });
}

// test_autograd.py::test_unused_output
#[test]
fn one_chunk_of_many() {
    each(|device| {
        let x = leaf(device, &[1.0; 10]);
        let parts = x.split(2, 0);
        (&parts[2] * 4 + 2).sum().backward().unwrap();
        grad_is(&x, &[0.0, 0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
        x.set_grad(None);
        parts[0].backward_with(&plain(device, &[5.0, 6.0])).unwrap();
        grad_is(&x, &[5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    });
}

// test_autograd.py::test_stack, test_unbind
#[test]
fn stacked_and_taken_apart() {
    each(|device| {
        let [x, y, z] = [1.0, 2.0, 3.0].map(|v| leaf(device, &[v, v]));
        let g = plain(device, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([3, 2]);
        stack(&[&x, &y, &z], 0).backward_with(&g).unwrap();
        for (i, t) in (0..).zip([&x, &y, &z]) {
            grad_is(t, &[f64::from(2 * i + 1), f64::from(2 * i + 2)]);
        }
        let all = leaf(device, &[0.0; 6]);
        let rows: Vec<Tensor> = (0..3).map(|i| all.reshape([3, 2]).i(i)).collect();
        let grads: Vec<Tensor> = (0..3).map(|i| g.i(i)).collect();
        autograd::backward(
            &rows.iter().collect::<Vec<_>>(),
            Backward::new().gradients(grads.iter().map(Some)),
        )
        .unwrap();
        grad_is(&all, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let one = grad_with(&[&all.reshape([3, 2]).i(1)], &[&all], &grads[1]).unwrap();
        is(&one[0], &[0.0, 0.0, 3.0, 4.0, 0.0, 0.0]);
    });
}

// test_autograd.py::test_no_grad
#[test]
fn nothing_flows_through_what_was_not_recorded() {
    each(|device| {
        let (x, y) = (leaf(device, &[1.0]), plain(device, &[4.0]));
        let w = no_grad(|| &x + &y);
        assert!(!w.requires_grad() && w.grad_fn().is_none());
        let error =
            fails(w.backward(), "element 0 of tensors does not require grad and does not have a grad_fn");
        assert!(error.message().contains("no_grad"), "{error}");
    });
}

#[test]
fn errors_of_values_given_are_errors_of_the_pass() {
    each(|device| {
        let x = leaf(device, &[1.0, 2.0]);
        let broken = x.detach().reshape([7]);
        let y = &x * 2;
        assert_eq!(y.backward_with(&broken).unwrap_err().op(), "reshape");
        assert_eq!(grad(&[&y], &[&broken]).unwrap_err().op(), "reshape");
        assert_eq!(broken.backward().unwrap_err().op(), "reshape");
        assert_eq!(y.sum().backward_with(Backward::new().inputs(&[&broken])).unwrap_err().op(), "reshape");
        assert!(x.grad().is_none());
        if let Some(other) = crate::common::devices().into_iter().find(|d| d != device) {
            let elsewhere = options().device(&other).ones(2);
            assert!(y.backward_with(retain().gradient(&elsewhere)).is_err());
        }
        y.sum().backward().unwrap();
        grad_is(&x, &[2.0, 2.0]);
    });
}

/// Third gradients, where kernels have more operands than a GPU binds and are cut. From PyTorch in float64.
#[test]
fn third_gradients_of_products_and_tanh() {
    each(|device| {
        let w = plain(device, &[0.5, -0.25, 1.0, 0.75]).reshape([2, 2]).detach().requires_grad_(true);
        let x = plain(device, &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).reshape([3, 2]).detach().requires_grad_(true);
        let block = |x: &Tensor| x.matmul(&w).tanh().matmul(&w).tanh();
        let a = block(&x).exp().sin();
        let y = (&a * &block(&a.cos())).sum();
        let g = grad_with(&[&y], &[&x, &w], create()).unwrap();
        let h = grad_with(&[&(g[0].square().sum() + g[1].sum())], &[&x, &w], create()).unwrap();
        let third = grad(&[&h[0].sum()], &[&w]).unwrap().remove(0);
        let want = [-12.148488707532412, 7.860654743002692, -10.58766016209911, -5.115810142869473];
        crate::common::assert_close(&third, &want, 1e-5, "the third gradient");
    });
}
