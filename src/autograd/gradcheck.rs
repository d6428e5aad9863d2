//! Gradients held against finite differences, and gradients of gradients.

use std::fmt::Write;
use std::panic::Location;

use super::forms::{Inputs, Outputs};
use super::functional::{Call, Functional};
use super::mode::{enable_grad, unrecorded};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::dtype::F64;
use crate::ops::record::Caller;
use crate::tensor::{Tensor, options};

/// How closely [`gradcheck`] looks: PyTorch's arguments and defaults, chosen for float64.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Gradcheck, gradcheck_with};
/// let x = options().device(cpu()).dtype(F64).requires_grad(true).rand([20, 20]);
/// gradcheck_with(|x| x.exp(), &x, Gradcheck { fast_mode: true, ..Default::default() })?;
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gradcheck {
    /// How far an input is moved to either side.
    pub eps: f64,
    pub atol: f64,
    pub rtol: f64,
    /// How far two backward passes over one graph may be apart.
    pub nondet_tol: f64,
    /// Whether a function of several outputs must take a missing gradient of one of them for zeros.
    pub check_undefined_grad: bool,
    /// Compare one random combination of all derivatives instead of each: two evaluations for each input, one
    /// backward pass for each output. Only where that differs is each looked at, to name the entry.
    pub fast_mode: bool,
}

impl Default for Gradcheck {
    fn default() -> Gradcheck {
        Gradcheck {
            eps: 1e-6,
            atol: 1e-5,
            rtol: 1e-3,
            nondet_tol: 0.0,
            check_undefined_grad: true,
            fast_mode: false,
        }
    }
}

/// Checks the gradients of `f` against central differences, for every input that requires grad
/// (`torch.autograd.gradcheck`). Inputs should be float64: in less, differences drown in rounding. Of several outputs
/// those are checked that require grad; if none does, none may depend on the inputs.
///
/// # Errors
/// Where the two differ: with output, input, the entries' coordinates, both numbers, and how many others differ. If
/// two backward passes give different gradients. If no input requires grad, or `f` fails.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::gradcheck;
/// let x = options().device(cpu()).dtype(F64).requires_grad(true).tensor([0.5, -1.5]);
/// gradcheck(|x| (x * x).sin(), &x)?;
/// gradcheck(|t| (&t[0] * 2.0, t[0].exp()), &[&x])?;
/// // A factor through which nothing flows back:
/// let error = gradcheck(|x| x * x.detach(), &x).unwrap_err();
/// assert!(error.message().contains("2 of 4 entries differ"));
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn gradcheck<I: Inputs, O: Outputs>(f: impl FnMut(&I::Given) -> O, inputs: I) -> Result<()> {
    gradcheck_with(f, inputs, Gradcheck::default())
}

/// [`gradcheck`] with another step, other tolerances, and PyTorch's further arguments. (`raise_exception` is the `Result`;
/// gradients always have their inputs' dtypes; forward mode, batched gradients and sparse tensors there are none.)
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Gradcheck, gradcheck_with};
/// // In float32 with longer steps.
/// let x = tensor([0.5, -1.5]).requires_grad_(true);
/// gradcheck_with(|x| x.sin(), &x, Gradcheck { eps: 1e-2, atol: 1e-2, ..Default::default() })?;
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn gradcheck_with<I: Inputs, O: Outputs>(
    mut f: impl FnMut(&I::Given) -> O,
    inputs: I,
    how: Gradcheck,
) -> Result<()> {
    let names = Names {
        output: Box::new(|o| format!("output {o}")),
        input: Box::new(|i| format!("input {i}")),
        each: "of the output's",
    };
    let mut f = |x: &[Tensor]| f(I::given(x)).tensors();
    Check::new("gradcheck", Location::caller(), how, names).run(&mut f, &inputs.tensors())
}

/// Checks the gradients of `f`'s gradients against central differences of its gradients, with respect to the inputs and
/// the gradients of the outputs (`torch.autograd.gradgradcheck`).
///
/// # Errors
/// As [`gradcheck`].
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::gradgradcheck;
/// let x = options().device(cpu()).dtype(F64).requires_grad(true).tensor([0.5, -1.5]);
/// gradgradcheck(|x| (x * x).sin(), &x)?;
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn gradgradcheck<I: Inputs, O: Outputs>(f: impl FnMut(&I::Given) -> O, inputs: I) -> Result<()> {
    gradgradcheck_with(f, inputs, None, Gradcheck::default())
}

/// [`gradgradcheck`] with the gradients of the outputs that require grad, of which those are checked that require grad
/// themselves (`None` makes some up), and as [`gradcheck_with`].
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Gradcheck, gradgradcheck_with};
/// let double = |v: f64| options().device(cpu()).dtype(F64).requires_grad(true).tensor([v]);
/// gradgradcheck_with(|x| x.exp(), &double(0.5), Some(&[&double(2.0)]), Gradcheck::default())?;
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn gradgradcheck_with<I: Inputs, O: Outputs>(
    mut f: impl FnMut(&I::Given) -> O,
    inputs: I,
    grad_outputs: Option<&[&Tensor]>,
    how: Gradcheck,
) -> Result<()> {
    let (op, caller) = ("gradgradcheck", Location::caller());
    let given = inputs.tensors();
    let call = Call { op, caller, how: Functional::new() };
    let wanted: Vec<usize> = (0..given.len()).filter(|&i| given[i].requires_grad()).collect();
    let mut outputs = |x: &[Tensor]| -> Result<Vec<Tensor>> {
        // Under finite differences the inputs are plain values, and their gradients are asked for all the same.
        let all = enable_grad(|| f(I::given(x)).tensors())?;
        all.iter().find_map(Tensor::error).map_or(Ok(()), Err)?;
        Ok(all.into_iter().filter(Tensor::requires_grad).collect())
    };
    let starts = match grad_outputs {
        Some(grads) => grads.iter().map(|&g| g.clone()).collect(),
        None => outputs(&leaves(&given, &wanted))?.iter().map(gradient_for).collect::<Vec<_>>(),
    };
    let n = given.len();
    let mut gradients = |all: &[Tensor]| -> Result<Vec<Tensor>> {
        let (x, starts) = all.split_at(n);
        let x = leaves(x, &wanted);
        let y = outputs(&x)?;
        if let Some(error) = mismatch(&y, starts, op, caller) {
            return Err(error);
        }
        let targets: Vec<Tensor> = wanted.iter().map(|&i| x[i].clone()).collect();
        let y: Vec<Option<Tensor>> = y.into_iter().map(Some).collect();
        let grads = call.pull(&y, Some(starts), &targets, true)?;
        Ok(grads
            .into_iter()
            .zip(&targets)
            .map(|(g, t)| g.unwrap_or_else(|| t.alias().zeros_like()))
            .collect())
    };
    let of = wanted.clone();
    let names = Names {
        output: Box::new(move |o| format!("the gradient of input {}", of[o])),
        input: Box::new(move |i| {
            if i < n { format!("input {i}") } else { format!("the gradient of output {}", i - n) }
        }),
        each: "of the gradient's",
    };
    let all: Vec<Tensor> = given.iter().cloned().chain(starts).collect();
    Check::new(op, caller, how, names).run(&mut gradients, &all)
}

/// The tensors, those that are wanted as leaves that require grad.
fn leaves(x: &[Tensor], wanted: &[usize]) -> Vec<Tensor> {
    let leaf = |(i, t): (usize, &Tensor)| {
        if wanted.contains(&i) && !t.requires_grad() { t.alias().requires_grad_(true) } else { t.clone() }
    };
    x.iter().enumerate().map(leaf).collect()
}

/// Any gradient of an output will do, as long as its entries differ.
pub(crate) fn gradient_for(y: &Tensor) -> Tensor {
    let values: Vec<f64> = (0..y.numel()).map(|i| 0.25 + (i * 7 % 11) as f64 / 8.0).collect();
    options().device(y.device()).dtype(y.dtype()).requires_grad(true).from_slice(&values, y.shape())
}

fn mismatch(outputs: &[Tensor], grads: &[Tensor], op: &'static str, caller: Caller) -> Option<Error> {
    let shapes = |all: &[Tensor]| all.iter().map(|t| t.shape().to_vec()).collect::<Vec<_>>();
    let (want, got) = (shapes(outputs), shapes(grads));
    (want != got).then(|| {
        let message = format!("grad_outputs have shapes {got:?}, the outputs that require grad {want:?}");
        Error::at(caller, ErrorKind::Shape, op, message)
    })
}

/// What a function is checked as: from values to values.
type Function<'f> = dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>> + 'f;

/// How a report names things.
struct Names {
    output: Box<dyn Fn(usize) -> String>,
    input: Box<dyn Fn(usize) -> String>,
    each: &'static str,
}

struct Check {
    call: Call,
    how: Gradcheck,
    names: Names,
}

/// A function at a point.
struct Point {
    leaves: Vec<Tensor>,
    /// The numbers of the inputs that require grad.
    inputs: Vec<usize>,
    /// Those, as the targets of backward passes.
    targets: Vec<Tensor>,
    /// The numbers of the outputs that are looked at.
    outputs: Vec<usize>,
    results: Vec<Tensor>,
}

/// Where the two derivatives of an output with respect to an input are apart.
struct Apart {
    output: usize,
    input: usize,
    /// Entry of the output, of the input, numerical and analytical derivative.
    first: (usize, usize, f64, f64),
    most: (usize, usize, f64, f64),
    count: usize,
    of: usize,
}

impl Check {
    fn new(op: &'static str, caller: Caller, how: Gradcheck, names: Names) -> Check {
        Check { call: Call { op, caller, how: Functional::new() }, how, names }
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::at(self.call.caller, kind, self.call.op, message)
    }

    fn run(&self, f: &mut Function<'_>, inputs: &[Tensor]) -> Result<()> {
        if let Some(error) = inputs.iter().find_map(Tensor::error) {
            return Err(error);
        }
        let wanted: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].requires_grad()).collect();
        if wanted.is_empty() {
            let message = "expects at least one input tensor to require gradient, but none of them does";
            return Err(self.error(ErrorKind::Argument, message));
        }
        // Leaves of its own, so that the inputs' history plays no part and their `grad` stays as it is.
        let plain: Vec<Tensor> = inputs.iter().map(Tensor::alias).collect();
        let leaves = leaves(&plain, &wanted);
        let results = enable_grad(|| f(&leaves))?;
        results.iter().try_for_each(Tensor::check)?;
        let at = self.point(leaves, wanted, results)?;
        if self.how.fast_mode { self.fast(f, &at) } else { self.slow(f, &at) }?;
        if self.how.check_undefined_grad { self.undefined(&at) } else { Ok(()) }
    }

    fn point(&self, leaves: Vec<Tensor>, inputs: Vec<usize>, results: Vec<Tensor>) -> Result<Point> {
        let floats: Vec<usize> = (0..results.len()).filter(|&o| results[o].dtype().is_float()).collect();
        if let (true, Some(y)) = (floats.is_empty(), results.first()) {
            let message =
                format!("expects a function with a floating point result, and this one's is {}", y.dtype());
            return Err(self.error(ErrorKind::DType, message));
        }
        let differentiable: Vec<usize> =
            floats.iter().copied().filter(|&o| results[o].requires_grad()).collect();
        let outputs = if differentiable.is_empty() { floats } else { differentiable };
        let targets = inputs.iter().map(|&i| leaves[i].clone()).collect();
        Ok(Point { leaves, inputs, targets, outputs, results })
    }

    /// The derivatives of all outputs along a direction of one input.
    fn differences(
        &self,
        f: &mut Function<'_>,
        at: &Point,
        input: usize,
        values: &[f64],
        along: impl Fn(usize) -> f64,
    ) -> Result<Vec<Vec<f64>>> {
        let leaf = &at.leaves[input];
        let mut moved = |by: f64| -> Result<Vec<Vec<f64>>> {
            let values: Vec<f64> = values.iter().enumerate().map(|(e, v)| v + by * along(e)).collect();
            let there = options().device(leaf.device()).dtype(leaf.dtype()).from_slice(&values, leaf.shape());
            let mut inputs: Vec<Tensor> = at.leaves.iter().map(Tensor::alias).collect();
            inputs[input] = there;
            let results = unrecorded(|| f(&inputs))?;
            let same =
                at.outputs.iter().all(|&o| results.get(o).map(Tensor::shape) == Some(at.results[o].shape()));
            if !same {
                let message =
                    "the number or shapes of the function's outputs depend on the values of its inputs";
                return Err(results
                    .iter()
                    .find_map(Tensor::error)
                    .unwrap_or_else(|| self.error(ErrorKind::Shape, message)));
            }
            at.outputs.iter().map(|&o| results[o].to_f64_vec()).collect()
        };
        let (up, down) = (moved(self.how.eps)?, moved(-self.how.eps)?);
        let slope = |(up, down): (&f64, &f64)| (up - down) / (2.0 * self.how.eps);
        Ok(up.iter().zip(&down).map(|(up, down)| up.iter().zip(down).map(slope).collect()).collect())
    }

    /// Whether two derivatives agree. Equal infinities do, and NaN never does.
    fn close(&self, numerical: f64, analytical: f64, atol: f64) -> bool {
        (numerical - analytical).abs() <= atol + self.how.rtol * numerical.abs() || numerical == analytical
    }

    /// Every derivative.
    fn slow(&self, f: &mut Function<'_>, at: &Point) -> Result<()> {
        let by_backward = self.analytical(at)?;
        let mut apart: Vec<Apart> = vec![];
        for (i, (&input, leaf)) in at.inputs.iter().zip(&at.targets).enumerate() {
            let values = leaf.to_f64_vec()?;
            let columns = values.len();
            for entry in 0..columns {
                let slopes =
                    self.differences(f, at, input, &values, |e| if e == entry { 1.0 } else { 0.0 })?;
                for (o, (slopes, jacobians)) in slopes.iter().zip(&by_backward).enumerate() {
                    for (k, &numerical) in slopes.iter().enumerate() {
                        let analytical = jacobians[i][k * columns + entry];
                        if !self.close(numerical, analytical, self.how.atol) {
                            let found = (k, entry, numerical, analytical);
                            note(&mut apart, at.outputs[o], input, slopes.len() * columns, found);
                        }
                    }
                }
            }
        }
        if apart.is_empty() { Ok(()) } else { Err(self.report(at, &apart)) }
    }

    /// By output and input, the Jacobian.
    fn analytical(&self, at: &Point) -> Result<Vec<Vec<Vec<f64>>>> {
        let outputs: Vec<Tensor> = at.outputs.iter().map(|&o| at.results[o].clone()).collect();
        let read = || -> Result<Vec<Vec<Vec<f64>>>> {
            let all = self.call.jacobian(&outputs, &at.targets)?;
            all.iter().map(|row| row.iter().map(Tensor::to_f64_vec).collect()).collect()
        };
        let (once, twice) = (read()?, read()?);
        for (o, (once, twice)) in once.iter().zip(&twice).enumerate() {
            for (i, (once, twice)) in once.iter().zip(twice).enumerate() {
                self.check_same(once, twice, at.outputs[o], at.inputs[i])?;
            }
        }
        Ok(once)
    }

    fn check_same(&self, once: &[f64], twice: &[f64], output: usize, input: usize) -> Result<()> {
        let Some((a, b)) = once.iter().zip(twice).find(|(a, b)| (*a - *b).abs() > self.how.nondet_tol) else {
            return Ok(());
        };
        let (output, input) = ((self.names.output)(output), (self.names.input)(input));
        let message = format!(
            "Backward is not reentrant, i.e., running backward with same input and grad_output multiple times gives \
             different values: for {output} with respect to {input} first {a}, then {b}. The tolerance for \
             nondeterminism was {}.",
            self.how.nondet_tol
        );
        Err(self.error(ErrorKind::Autograd, message))
    }

    fn report(&self, at: &Point, apart: &[Apart]) -> Error {
        let place = |a: &Apart, (k, e, numerical, analytical): (usize, usize, f64, f64)| {
            format!(
                "entry {:?} with respect to entry {:?} of {}: numerical {numerical:?}, analytical {analytical:?}",
                coordinates(k, at.results[a.output].shape()),
                coordinates(e, at.leaves[a.input].shape()),
                (self.names.input)(a.input)
            )
        };
        let first = &apart[0];
        let pair = |a: &Apart| format!("{} of {} entries differ", a.count, a.of);
        let mut message = format!(
            "Jacobian mismatch for {} with respect to {}: the derivative {} {}; {}",
            (self.names.output)(first.output),
            (self.names.input)(first.input),
            self.names.each,
            place(first, first.first),
            pair(first)
        );
        if first.most.0 != first.first.0 || first.most.1 != first.first.1 {
            let _ = write!(message, ", most of all {}", place(first, first.most));
        }
        for a in &apart[1..] {
            let (output, input) = ((self.names.output)(a.output), (self.names.input)(a.input));
            let _ = write!(message, "; for {output} with respect to {input} {}", pair(a));
        }
        if at.targets.iter().any(|t| t.dtype() != F64) {
            message.push_str(" (an input is not float64, so the numerical derivatives are inexact)");
        }
        self.error(ErrorKind::Autograd, message)
    }

    /// One combination of the derivatives of each output with respect to each input.
    fn fast(&self, f: &mut Function<'_>, at: &Point) -> Result<()> {
        let mut random = Random(1);
        let from: Vec<Vec<f64>> = at.targets.iter().map(|t| random.direction(t.numel())).collect();
        let to: Vec<Vec<f64>> = at.outputs.iter().map(|&o| random.direction(at.results[o].numel())).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut numerical: Vec<Vec<f64>> = vec![];
        for ((&input, leaf), u) in at.inputs.iter().zip(&at.targets).zip(&from) {
            let slopes = self.differences(f, at, input, &leaf.to_f64_vec()?, |e| u[e])?;
            numerical.push(slopes.iter().zip(&to).map(|(s, v)| dot(s, v)).collect());
        }
        for (o, (&output, v)) in at.outputs.iter().zip(&to).enumerate() {
            let y = &at.results[output];
            let seed = options().device(y.device()).dtype(y.dtype()).from_slice(v, y.shape());
            let pass = || -> Result<Vec<Vec<f64>>> {
                let grads = self.call.pull(
                    &[Some(y.clone())],
                    Some(std::slice::from_ref(&seed)),
                    &at.targets,
                    false,
                )?;
                let values = |(g, t): (Option<Tensor>, &Tensor)| {
                    g.map_or_else(|| Ok(vec![0.0; t.numel()]), |g| g.to_f64_vec())
                };
                grads.into_iter().zip(&at.targets).map(values).collect()
            };
            let (once, twice) = (pass()?, pass()?);
            for (i, &input) in at.inputs.iter().enumerate() {
                self.check_same(&once[i], &twice[i], output, input)?;
                let (numerical, analytical) = (numerical[i][o], dot(&once[i], &from[i]));
                let atol = self.how.atol * from[i].iter().sum::<f64>() * v.iter().sum::<f64>();
                if !self.close(numerical, analytical, atol) {
                    // Names the entry; if none is far enough off by itself, the sum of them is.
                    self.slow(f, at)?;
                    let (output, input) = ((self.names.output)(output), (self.names.input)(input));
                    let message = format!(
                        "Jacobian mismatch for {output} with respect to {input} in fast mode: a random combination \
                         of its entries is numerical {numerical:?}, analytical {analytical:?}. Fast gradcheck failed \
                         but element-wise differences are small: it might pass with fast_mode: false"
                    );
                    return Err(self.error(ErrorKind::Autograd, message));
                }
            }
        }
        Ok(())
    }

    /// Zeros as gradients of all outputs but one, which has none, must give zeros.
    fn undefined(&self, at: &Point) -> Result<()> {
        let outputs: Vec<&Tensor> =
            at.outputs.iter().map(|&o| &at.results[o]).filter(|y| y.requires_grad()).collect();
        if outputs.len() < 2 {
            return Ok(());
        }
        let zeros: Vec<Tensor> = outputs.iter().map(|y| y.alias().zeros_like()).collect();
        for (o, _) in outputs.iter().enumerate() {
            let but_one: Vec<Option<Tensor>> =
                outputs.iter().enumerate().map(|(i, &y)| (i != o).then(|| y.clone())).collect();
            for g in self.call.pull(&but_one, Some(&zeros), &at.targets, false)?.iter().flatten() {
                if g.to_f64_vec()?.iter().any(|&v| v != 0.0) {
                    let message = "Expected all input grads to be undefined or zero when all output grads are \
                                   undefined or zero";
                    return Err(self.error(ErrorKind::Autograd, message));
                }
            }
        }
        Ok(())
    }
}

/// Counts a difference.
fn note(apart: &mut Vec<Apart>, output: usize, input: usize, of: usize, found: (usize, usize, f64, f64)) {
    let far = |(_, _, a, b): (usize, usize, f64, f64)| {
        let d = (a - b).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    match apart.iter_mut().find(|a| a.output == output && a.input == input) {
        Some(a) => {
            a.count += 1;
            if far(found) > far(a.most) {
                a.most = found;
            }
        }
        None => apart.push(Apart { output, input, first: found, most: found, count: 1, of }),
    }
}

/// The coordinates of an entry.
fn coordinates(mut entry: usize, shape: &[usize]) -> Vec<usize> {
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

/// A generator of its own ([splitmix64](https://doi.org/10.1145/2714064.2660195)), so that a check draws nothing from
/// the user's.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A vector of length 1 that points to where all coordinates are positive.
    fn direction(&mut self, n: usize) -> Vec<f64> {
        let draws: Vec<f64> = (0..n).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).collect();
        let length = draws.iter().map(|v| v * v).sum::<f64>().sqrt();
        draws.iter().map(|v| v / length).collect()
    }
}
