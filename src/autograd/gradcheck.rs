//! Gradients held against finite differences, and gradients of gradients.

use std::panic::Location;

use super::backward::{Backward, grad_where_used};
use super::mode::{enable_grad, no_grad};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::dtype::F64;
use crate::tensor::{Tensor, options};

/// How closely [`gradcheck`] looks: PyTorch's arguments and defaults, chosen for float64.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gradcheck {
    /// How far an input is moved to either side.
    pub eps: f64,
    pub atol: f64,
    pub rtol: f64,
}

impl Default for Gradcheck {
    fn default() -> Gradcheck {
        Gradcheck { eps: 1e-6, atol: 1e-5, rtol: 1e-3 }
    }
}

/// Checks the gradients of `f` against central differences, for every input that requires grad
/// (`torch.autograd.gradcheck`). Inputs should be float64: in less, differences drown in rounding.
///
/// # Errors
/// Where the two differ: with the input, the entries, and both numbers. If no input requires grad, or `f` fails.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = options().device(cpu()).dtype(F64).requires_grad(true).tensor([0.5, -1.5]);
/// wgrad::autograd::gradcheck(|x| (&x[0] * &x[0]).sin(), &[&x])?;
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn gradcheck(f: impl Fn(&[Tensor]) -> Tensor, inputs: &[&Tensor]) -> Result<()> {
    gradcheck_with(f, inputs, Gradcheck::default())
}

/// [`gradcheck`] with another step and other tolerances.
#[track_caller]
pub fn gradcheck_with(f: impl Fn(&[Tensor]) -> Tensor, inputs: &[&Tensor], how: Gradcheck) -> Result<()> {
    check(&f, inputs, how, "gradcheck", Location::caller())
}

/// Checks the gradients of `f`'s gradients against central differences of its gradients
/// (`torch.autograd.gradgradcheck`).
///
/// # Errors
/// As [`gradcheck`].
#[track_caller]
pub fn gradgradcheck(f: impl Fn(&[Tensor]) -> Tensor, inputs: &[&Tensor]) -> Result<()> {
    gradgradcheck_with(f, inputs, Gradcheck::default())
}

/// [`gradgradcheck`] with another step and other tolerances.
#[track_caller]
pub fn gradgradcheck_with(f: impl Fn(&[Tensor]) -> Tensor, inputs: &[&Tensor], how: Gradcheck) -> Result<()> {
    let caller = Location::caller();
    let given: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    let out = no_grad(|| f(&given));
    out.check()?;
    // Any gradient of the output will do, as long as its entries differ.
    let start: Vec<f64> = (0..out.numel()).map(|i| 0.25 + (i * 7 % 11) as f64 / 8.0).collect();
    let start =
        options().device(out.device()).dtype(out.dtype()).requires_grad(true).from_slice(&start, out.shape());
    let wanted: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].requires_grad()).collect();
    let gradients = |all: &[Tensor]| {
        let Some((start, x)) = all.split_last() else {
            return Tensor::invalid(nothing("gradgradcheck", caller));
        };
        // Under finite differences the inputs are plain values, and their gradients are asked for all the same.
        let leaves: Vec<Tensor> = (x.iter().enumerate())
            .map(|(i, t)| {
                if wanted.contains(&i) && !t.requires_grad() {
                    t.alias().requires_grad_(true)
                } else {
                    t.clone()
                }
            })
            .collect();
        let y = enable_grad(|| f(&leaves));
        let targets: Vec<&Tensor> = wanted.iter().map(|&i| &leaves[i]).collect();
        let how = Backward::new().gradient(start).create_graph(true);
        match grad_where_used(&[&y], &targets, how, "gradgradcheck", caller) {
            Ok(grads) => {
                let flat: Vec<Tensor> = (grads.into_iter().zip(&targets))
                    .map(|(g, t)| g.unwrap_or_else(|| t.zeros_like()).reshape(-1))
                    .collect();
                crate::ops::cat::cat(&flat.iter().collect::<Vec<_>>(), 0)
            }
            Err(error) => Tensor::invalid(error),
        }
    };
    let all: Vec<&Tensor> = inputs.iter().copied().chain([&start]).collect();
    check(&gradients, &all, how, "gradgradcheck", caller)
}

fn nothing(op: &'static str, caller: &'static Location<'static>) -> Error {
    let message = "expects at least one input tensor to require gradient, but none of them does";
    Error::at(caller, ErrorKind::Argument, op, message)
}

fn check(
    f: &dyn Fn(&[Tensor]) -> Tensor,
    inputs: &[&Tensor],
    how: Gradcheck,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<()> {
    if !inputs.iter().any(|t| t.requires_grad()) {
        return Err(nothing(op, caller));
    }
    // Leaves of its own, so that the inputs' history plays no part and their `grad` stays as it is.
    let leaves: Vec<Tensor> = (inputs.iter())
        .map(|t| if t.requires_grad() { t.alias().requires_grad_(true) } else { t.alias() })
        .collect();
    let out = enable_grad(|| f(&leaves));
    out.check()?;
    if !out.dtype().is_float() {
        let message =
            format!("expects a function with a floating point result, and this one's is {}", out.dtype());
        return Err(Error::at(caller, ErrorKind::DType, op, message));
    }
    let targets: Vec<(usize, &Tensor)> =
        leaves.iter().enumerate().filter(|(_, t)| t.requires_grad()).collect();
    let by_backward = analytical(&out, &targets, op, caller)?;
    for (&(i, leaf), jacobian) in targets.iter().zip(&by_backward) {
        let values = leaf.to_f64_vec()?;
        for entry in 0..values.len() {
            let moved = |by: f64| -> Result<Vec<f64>> {
                let mut values = values.clone();
                values[entry] += by;
                let there =
                    options().device(leaf.device()).dtype(leaf.dtype()).from_slice(&values, leaf.shape());
                let mut inputs: Vec<Tensor> = leaves.iter().map(Tensor::alias).collect();
                inputs[i] = there;
                no_grad(|| f(&inputs)).to_f64_vec()
            };
            let (up, down) = (moved(how.eps)?, moved(-how.eps)?);
            for (k, (up, down)) in up.iter().zip(&down).enumerate() {
                let (numerical, analytical) = ((up - down) / (2.0 * how.eps), jacobian[k][entry]);
                // Equal infinities are fine, and NaN never is.
                let close = (numerical - analytical).abs() <= how.atol + how.rtol * numerical.abs();
                if !close && numerical != analytical {
                    let message = format!(
                        "gradients of the output's entry {:?} with respect to entry {:?} of input {i} differ: \
                         numerical {numerical}, analytical {analytical}{}",
                        place(k, out.shape()),
                        place(entry, leaf.shape()),
                        if leaf.dtype() == F64 {
                            ""
                        } else {
                            " (the input is not float64, so the former is inexact)"
                        }
                    );
                    return Err(Error::at(caller, ErrorKind::Autograd, op, message));
                }
            }
        }
    }
    Ok(())
}

/// By target, a row of derivatives for each entry of the output.
fn analytical(
    out: &Tensor,
    targets: &[(usize, &Tensor)],
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Vec<Vec<Vec<f64>>>> {
    let mut rows = vec![vec![]; targets.len()];
    for k in 0..out.numel() {
        if !out.requires_grad() {
            for (rows, (_, t)) in rows.iter_mut().zip(targets) {
                rows.push(vec![0.0; t.numel()]);
            }
            continue;
        }
        let mut one = vec![0.0; out.numel()];
        one[k] = 1.0;
        let one = options().device(out.device()).dtype(out.dtype()).from_slice(&one, out.shape());
        let how = Backward::new().gradient(&one).retain_graph(true);
        let leaves: Vec<&Tensor> = targets.iter().map(|&(_, t)| t).collect();
        for ((g, rows), (_, t)) in
            grad_where_used(&[out], &leaves, how, op, caller)?.into_iter().zip(&mut rows).zip(targets)
        {
            rows.push(match g {
                Some(g) => g.to_f64_vec()?,
                None => vec![0.0; t.numel()],
            });
        }
    }
    Ok(rows)
}

/// The coordinates of an entry.
fn place(mut entry: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = (shape.iter().rev())
        .map(|&n| {
            let i = entry % n;
            entry /= n;
            i
        })
        .collect();
    at.reverse();
    at
}
