//! A registered op held against itself: backend against backend, gradient against differences.

use super::{Op, Way, bad};
use crate::autograd::{enable_grad, grad_allow_unused, gradcheck, gradgradcheck, gradient_for};
use crate::device::{Device, cpu, gpu};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::dtype::{DType, F32, F64};
use crate::ops::record::Caller;
use crate::tensor::Tensor;

/// How far a GPU's float32 may be from the CPU's float64: the share of a value, and of the largest beside it.
const OF_VALUE: f64 = 1e-4;
const OF_LARGEST: f64 = 1e-5;

pub(super) fn check(op: Op, inputs: &[&Tensor], attributes: &[(&str, f64)], caller: Caller) -> Result<()> {
    let run = |x: &[Tensor]| {
        let x: Vec<&Tensor> = x.iter().collect();
        Tensor::from_result(op.try_call(&x, attributes, caller))
    };
    let doubles = copies(inputs, &cpu(), F64);
    let out = enable_grad(|| run(&doubles));
    out.check()?;
    let gradients = op.way() != Way::None && out.requires_grad();
    let refs: Vec<&Tensor> = doubles.iter().collect();
    let named = |error: Error| Error::at(caller, error.kind(), op.name(), error.message());
    if gradients {
        gradcheck(run, &refs).map_err(named)?;
    }
    if gradients && op.way() == Way::Formula {
        gradgradcheck(run, &refs).map_err(named)?;
    }
    let Ok(device) = gpu() else { return Ok(()) };
    let floats = copies(inputs, &device, F32);
    let turned: Vec<Tensor> = floats.iter().map(turn).collect();
    // From the same numbers: those of float32.
    let exact = copies(&floats.iter().collect::<Vec<_>>(), &cpu(), F64);
    // An op behind it, which may be computed in the same kernel.
    let fused = |x: &[Tensor]| run(x) * 3;
    for (what, f, x) in [
        ("", &run as &dyn Fn(&[Tensor]) -> Tensor, &floats),
        (" of inputs that are not contiguous", &run, &turned),
        (" with an op behind", &fused, &floats),
    ] {
        let (y, expected) = (enable_grad(|| f(x)), enable_grad(|| f(&exact)));
        compare(op, &format!("the result{what}"), &y, &expected, caller)?;
        if !gradients {
            continue;
        }
        let (got, wanted) = (grads(&y, x)?, grads(&expected, &exact)?);
        for (i, (g, e)) in got.iter().zip(&wanted).enumerate() {
            compare(op, &format!("gradient {i}{what}"), g, e, caller)?;
        }
    }
    Ok(())
}

/// Leaves of their own on a device, floats in this type.
fn copies(inputs: &[&Tensor], device: &Device, dtype: DType) -> Vec<Tensor> {
    (inputs.iter())
        .map(|t| {
            let t = t.detach().to(device);
            if !t.dtype().is_float() {
                return t;
            }
            t.to(dtype).detach().requires_grad_(true)
        })
        .collect()
}

/// The same values with the first and last dimension the other way round in memory.
fn turn(t: &Tensor) -> Tensor {
    if t.dim() < 2 {
        return t.clone();
    }
    let turned = t.detach().transpose(0, -1).contiguous().transpose(0, -1).detach();
    if t.requires_grad() { turned.requires_grad_(true) } else { turned }
}

/// Gradients of the floats among `x`.
fn grads(y: &Tensor, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let leaves: Vec<&Tensor> = x.iter().filter(|t| t.requires_grad()).collect();
    // What no gradient flows to has none on either backend.
    Ok(grad_allow_unused(&[y], &leaves, &gradient_for(y))?.into_iter().flatten().collect())
}

fn compare(op: Op, what: &str, got: &Tensor, expected: &Tensor, caller: Caller) -> Result<()> {
    let (a, b) = (got.to_f64_vec()?, expected.to_f64_vec()?);
    if got.shape() != expected.shape() {
        return Err(bad(
            caller,
            op.name(),
            format!("{what} has shape {:?} and {:?}", got.shape(), expected.shape()),
        ));
    }
    let largest = b.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
        let close = x == y
            || (x.is_nan() && y.is_nan())
            || (x - y).abs() <= OF_VALUE * y.abs() + OF_LARGEST * largest;
        if !close {
            let message = format!(
                "{what} is {x} on {} and {y} on the cpu, at element {i} of shape {:?}",
                got.device(),
                got.shape()
            );
            return Err(Error::at(caller, ErrorKind::Argument, op.name(), message));
        }
    }
    Ok(())
}
