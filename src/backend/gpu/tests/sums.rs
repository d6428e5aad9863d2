//! Sums that products and weights' gradients compute besides, from tensors on, against the CPU, which computes them by
//! themselves.

use super::prologues::{agree, priced, values};
use super::*;
use crate::autograd::detect_anomaly;
use crate::graph::device::Device;
use crate::prelude::*;

/// A GPU, or an adapter of software, whose products leave sums to themselves.
fn adapter(class: AdapterClass) -> Device {
    priced(class, codegen::prices(class))
}

#[test]
fn gradients_of_biases_go_with_their_weights() {
    let d = &adapter(AdapterClass::Discrete);
    for shape in [&[36, 20][..], &[4, 9, 20]] {
        // The product, then of the squares' gradient: the bias's with the weight's, and that of the input.
        agree(d, 3, &|d| {
            let x = values(d, shape, 0.1).requires_grad_(true);
            let w = values(d, &[24, 20], 0.2).requires_grad_(true);
            let b = values(d, &[24], 0.3).requires_grad_(true);
            x.linear(&w, Some(&b)).square().sum().backward().unwrap();
            vec![x.grad().unwrap(), w.grad().unwrap(), b.grad().unwrap()]
        });
    }
    // With what becomes of both, in place.
    agree(d, 1, &|d| {
        let (x, g) = (values(d, &[36, 20], 0.1), values(d, &[36, 24], 0.2));
        let (w, b) = (values(d, &[24, 20], 0.3), values(d, &[24], 0.4));
        w.sub_(g.t().matmul(&x) * 0.5);
        b.mul_(0.9).sub_(g.sum_dim(0, false) * 0.25);
        vec![w, b]
    });
    // Tiles in registers have none to spare.
    agree(&adapter(AdapterClass::Software), 2, &|d| {
        let (x, g) = (values(d, &[36, 20], 0.1), values(d, &[36, 24], 0.2));
        vec![g.t().matmul(&x), g.sum_dim(0, false)]
    });
    // Where the product takes its operands the other way round.
    agree(d, 1, &|d| {
        let (a, b) = (values(d, &[70, 33], 0.1), values(d, &[33, 5], 0.2));
        vec![a.matmul(&b), b.sum_dim(0, true) + 1]
    });
}

#[test]
fn gradients_of_a_convolutions_bias_go_with_its_weights() {
    for d in &[AdapterClass::Software, AdapterClass::Discrete].map(adapter) {
        // In one part and in several, which a kernel adds up as it does the weight's.
        for images in [2, 40] {
            let shapes = ([images, 3, 12, 16], [8, 3, 3, 3]);
            let step = |d: &Device| {
                // Whole numbers, of which all sums are exact.
                let whole = |shape: &[usize], seed: f64| (values(d, shape, seed) * 3).round();
                let (x, w) = (whole(&shapes.0, 0.1), whole(&shapes.1, 0.2).requires_grad_(true));
                let b = whole(&[8], 0.3).requires_grad_(true);
                let y = x.conv2d(&w, Some(&b));
                let g = whole(y.shape(), 0.4);
                // Three dispatches.
                d.flush();
                y.backward_with(&g).unwrap();
                vec![w.grad().unwrap(), b.grad().unwrap()]
            };
            agree(d, 3 + if images == 2 { 1 } else { 3 }, &step);
        }
    }
}

#[test]
fn what_does_not_fit_is_summed_up_by_itself() {
    let d = &adapter(AdapterClass::Discrete);
    let (x, w) = (|d: &Device| values(d, &[36, 20], 0.1), |d: &Device| values(d, &[36, 24], 0.2));
    // The product waits for the sum, or what becomes of the sum for the product.
    agree(d, 4, &|d| {
        let x = x(d);
        let scaled = w(d) * x.sum_dim(0, false).square().sum();
        vec![x.t().matmul(&scaled), scaled]
    });
    agree(d, 3, &|d| {
        let x = x(d);
        let product = x.t().matmul(&w(d));
        vec![x.sum_dim(0, false) * product.sum(), product]
    });
    // What a product of several parts leaves would have to be added up by another kernel.
    agree(d, 2, &|d| {
        let (a, b) = (values(d, &[3, 8, 12], 0.1), values(d, &[3, 12, 10], 0.2));
        vec![a.matmul(&b), b.sum_dim([0, 1], false)]
    });
    // Another part of what the product reads, along another dimension, something else than a sum, or of something else.
    let with = |f: fn(&Tensor) -> Tensor| {
        move |d: &Device| {
            let x = x(d);
            vec![x.t().matmul(&w(d)), f(&x)]
        }
    };
    agree(d, 1, &with(|x| x.sum_dim(0, false)));
    agree(d, 2, &with(|x| x.narrow(0, 1, 30).sum_dim(0, false)));
    agree(d, 2, &with(|x| x.sum_dim(1, false)));
    agree(d, 2, &with(|x| x.amax(0, false)));
    agree(d, 2, &with(|x| x.square().sum_dim(0, false)));
    // Only one of two operands.
    agree(d, 2, &|d| {
        let (x, w) = (x(d), w(d));
        vec![x.t().matmul(&w), x.sum_dim(0, false), w.sum_dim(0, false)]
    });
    // What is read by several rows is there once; a vector; and too many columns beside it.
    agree(d, 2, &|d| {
        let x = values(d, &[20], 0.1).expand([36, 20]);
        vec![x.t().matmul(&w(d)), values(d, &[20], 0.1).sum_dim(0, false)]
    });
    agree(d, 2, &|d| {
        let x = x(d);
        vec![x.t().matmul(&values(d, &[36, 1], 0.2)), x.sum_dim(0, false)]
    });
    agree(d, 2, &|d| {
        let x = x(d);
        vec![x.t().matmul(&values(d, &[36, 1100], 0.2)), x.sum_dim(0, false)]
    });
}

#[test]
fn sums_of_nan_are_blamed_on_the_op_that_made_it() {
    let d = &adapter(AdapterClass::Discrete);
    let x = values(d, &[36, 20], 0.1);
    x.check().unwrap();
    let step = |x: &Tensor| {
        let product = x.t().matmul(&values(d, &[36, 24], 0.2));
        (product.sum() + (x.sum_dim(0, false) - 100).sqrt().sum()).item::<f32>()
    };
    assert!(step(&x).unwrap().is_nan());
    let error = detect_anomaly(|| step(&x)).expect_err("roots of negative numbers");
    assert_eq!(error.op(), "sqrt", "{error}");
}
