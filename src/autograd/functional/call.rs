//! What the functions share: leaves, passes, strictness, and the rows of a Jacobian.

use std::collections::HashSet;
use std::panic::Location;
use std::sync::Arc;

use super::super::backward::{Backward, grad_where_used};
use super::super::forms::{Inputs, Outputs, Vectors};
use super::super::function::Edge;
use super::super::mode::{enable_grad, record_gradients};
use super::{Functional, ONE_INPUT};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::cat::{cat, stack};
use crate::ops::record::Caller;
use crate::tensor::{Tensor, options};

/// Rows of a Jacobian that are recorded before they are run: more gain little, and make kernels that compile longer.
const ROWS: usize = 32;
/// Functions that such rows may lead through together, so that a flush stays small.
const FUNCTIONS: usize = 1024;

/// One call of a function of this file: what its errors say.
pub struct Call {
    pub op: &'static str,
    pub caller: Caller,
    pub how: Functional,
}

/// Which pass a gradient comes from, for the words of what is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Back,
    BackTrick,
    DoubleBack,
}

impl Call {
    #[track_caller]
    pub fn new(op: &'static str, how: Functional) -> Call {
        Call { op, caller: Location::caller(), how }
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::at(self.caller, kind, self.op, message)
    }

    /// An error of strict mode.
    fn strict(&self, message: String) -> Error {
        self.error(ErrorKind::Autograd, message)
    }

    /// Leaves for the function, which are the inputs' values; with `create_graph` views of inputs that require grad, so
    /// that results lead back to them. Always new tensors: those that the function captured are something else.
    pub fn leaves(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        inputs.iter().map(|t| self.own(t, true)).collect()
    }

    fn own(&self, t: &Tensor, leaf: bool) -> Result<Tensor> {
        let t = if self.how.create_graph && t.requires_grad() {
            enable_grad(|| t.make_view("ViewBackward0", t.layout().clone(), self.caller, Tensor::clone))
        } else if leaf {
            on_line_of(self.caller, || t.alias().requires_grad_(true))
        } else {
            t.alias()
        };
        t.error().map_or(Ok(t), Err)
    }

    pub fn apply<I: Inputs, O: Outputs>(
        &self,
        f: impl FnOnce(&I::Given) -> O,
        x: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let outputs = enable_grad(|| f(I::given(x)).tensors())?;
        outputs.iter().find_map(Tensor::error).map_or(Ok(outputs), Err)
    }

    /// The output of a function that must give one element, as a tensor of no dimensions.
    pub fn one_element<I: Inputs, O: Outputs>(
        &self,
        f: impl FnOnce(&I::Given) -> O,
        x: &[Tensor],
    ) -> Result<Tensor> {
        let outputs = self.apply::<I, O>(f, x)?;
        self.check_outputs(&outputs)?;
        match &outputs[..] {
            [out] if out.numel() == 1 => Ok(out.clone()),
            _ => {
                let message = format!(
                    "The Tensor returned by the function given to {} should contain a single element.",
                    self.op
                );
                Err(self.error(ErrorKind::Shape, message))
            }
        }
    }

    pub fn check_outputs(&self, outputs: &[Tensor]) -> Result<()> {
        match outputs.iter().position(|y| !y.requires_grad()) {
            Some(i) if self.how.strict => Err(self.strict(format!(
                "Output {i} of the user-provided function does not require gradients. The outputs must be computed \
                 in a differentiable manner from the input when running in strict mode."
            ))),
            _ => Ok(()),
        }
    }

    /// Strict mode wants first derivatives that depend on the input.
    pub fn check_gradient<'a>(&self, gradient: impl Iterator<Item = Option<&'a Tensor>>) -> Result<()> {
        for (i, g) in gradient.enumerate().filter(|_| self.how.strict) {
            match g {
                Some(g) if g.requires_grad() => {}
                Some(_) => {
                    return Err(self.strict(format!(
                        "While computing the hessian, found that the jacobian of the user-provided function with \
                         respect to input {i} is independent of the input. This is not allowed in strict mode. You \
                         should ensure that your function is twice differentiable and that the jacobian depends on \
                         the inputs (this would be violated by a linear function for example)."
                    )));
                }
                None => return Err(self.independent(i)),
            }
        }
        Ok(())
    }

    /// The same for the first pass of two that stand for a forward one.
    pub fn check_back(&self, back: &[Option<Tensor>]) -> Result<()> {
        for (i, g) in back.iter().enumerate().filter(|_| self.how.strict) {
            match g {
                Some(g) if g.requires_grad() => {}
                Some(_) => {
                    return Err(self.strict(format!(
                        "The gradient with respect to input {i} is independent of the inputs of the user-provided \
                         function. This is not allowed in strict mode."
                    )));
                }
                None => return Err(self.independent(i)),
            }
        }
        Ok(())
    }

    fn independent(&self, i: usize) -> Error {
        self.strict(format!(
            "The output of the user-provided function is independent of input {i}. This is not allowed in strict mode."
        ))
    }

    /// The vector, one tensor for each of `others` and of its shape.
    pub fn vector(
        &self,
        v: &impl Vectors,
        others: &[Tensor],
        single: bool,
        when: &str,
    ) -> Result<Option<Vec<Tensor>>> {
        let Some(v) = v.vectors() else {
            return match others {
                [other] if other.numel() == 1 => Ok(None),
                _ => Err(self.error(ErrorKind::Argument, format!("The vector v can only be None if {when}"))),
            };
        };
        if v.len() != others.len() {
            let message = if single {
                "The given v should contain a single Tensor.".into()
            } else {
                format!("v is a tuple of invalid length: should be {} but got {}.", others.len(), v.len())
            };
            return Err(self.error(ErrorKind::Argument, message));
        }
        for (i, (v, other)) in v.iter().zip(others).enumerate() {
            if let Some(error) = v.error() {
                return Err(error);
            }
            if v.shape() != other.shape() {
                let entry = if single { String::new() } else { format!("Entry {i} in ") };
                let (want, got) = (other.shape(), v.shape());
                let message = format!("{entry}v has invalid size: should be {want:?} but got {got:?}.");
                return Err(self.error(ErrorKind::Shape, message));
            }
        }
        v.iter().map(|v| self.own(v, false)).collect::<Result<_>>().map(Some)
    }

    /// The gradients of `inputs` where `outputs` lead to them, started with `v` (ones of one element without).
    /// Outputs that need no gradient are passed by. The graph is kept.
    pub fn pull(
        &self,
        outputs: &[Option<Tensor>],
        v: Option<&[Tensor]>,
        inputs: &[Tensor],
        create_graph: bool,
    ) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let (mut roots, mut starts) = (vec![], vec![]);
        for (i, y) in outputs.iter().enumerate() {
            if let Some(y) = y.as_ref().filter(|y| y.requires_grad()) {
                roots.push(y);
                starts.push(v.and_then(|v| v.get(i)));
            }
        }
        if roots.is_empty() {
            return Ok(vec![None; inputs.len()]);
        }
        let how = Backward::new().retain_graph(true).create_graph(create_graph).gradients(starts);
        grad_where_used(&roots, &inputs, how, self.op, self.caller)
    }

    pub fn zeros(&self, like: &Tensor, shape: &[usize]) -> Tensor {
        on_line_of(self.caller, || like.alias().new_zeros(shape))
    }

    /// Zeros for the gradients that there are not; strict mode wants them all.
    pub fn fill(&self, grads: Vec<Option<Tensor>>, like: &[Tensor], stage: Stage) -> Result<Vec<Tensor>> {
        let strict = self.how.strict;
        let fill = |(i, (g, like)): (usize, (Option<Tensor>, &Tensor))| {
            match g {
            Some(g) if strict && self.how.create_graph && !g.requires_grad() => {
                let what = if stage == Stage::DoubleBack { "hessian" } else { "jacobian" };
                Err(self.strict(format!(
                    "The {what} of the user-provided function is independent of input {i}. This is not allowed in \
                     strict mode when create_graph=True."
                )))
            }
            Some(g) => Ok(g),
            None if strict => Err(match stage {
                Stage::Back => self.independent(i),
                Stage::BackTrick => self.strict(format!(
                    "The gradient with respect to the input is independent of entry {i} in the grad_outputs when using \
                     the double backward trick to compute forward mode gradients. This is not allowed in strict mode."
                )),
                Stage::DoubleBack => self.strict(format!(
                    "The jacobian of the user-provided function is independent of input {i}. This is not allowed in \
                     strict mode."
                )),
            }),
            None => Ok(self.zeros(like, like.shape())),
        }
        };
        grads.into_iter().zip(like).enumerate().map(fill).collect()
    }

    /// Without history, unless it was asked for.
    pub fn finish(&self, all: Vec<Vec<Tensor>>) -> Vec<Vec<Tensor>> {
        if self.how.create_graph {
            return all;
        }
        let cut = || all.iter().map(|row| row.iter().map(Tensor::detach).collect()).collect();
        on_line_of(self.caller, cut)
    }

    pub fn vector_hessian<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
        &self,
        f: impl FnOnce(&I::Given) -> O,
        inputs: &I,
        v: &impl Vectors,
    ) -> Result<(Tensor, I::Each<Tensor>)> {
        let x = self.leaves(&inputs.tensors())?;
        let v = self.vector(v, &x, I::SINGLE, ONE_INPUT)?;
        let out = self.one_element::<I, O>(f, &x)?;
        let gradient = self.pull(&[Some(out.clone())], None, &x, true)?;
        self.check_gradient(gradient.iter().map(Option::as_ref))?;
        let product = self.pull(&gradient, v.as_deref(), &x, self.how.create_graph)?;
        let all = self.finish(vec![vec![out], self.fill(product, &x, Stage::DoubleBack)?]);
        Ok((O::each(&all[0]), I::each(&all[1])))
    }

    /// By output and input, the derivatives: of shape `output.shape + input.shape`.
    pub fn jacobian(&self, outputs: &[Tensor], inputs: &[Tensor]) -> Result<Vec<Vec<Tensor>>> {
        let _mode = record_gradients(self.how.create_graph);
        outputs.iter().enumerate().map(|(i, y)| self.rows(i, y, inputs)).collect()
    }

    /// The rows of output `i`, by input.
    fn rows(&self, i: usize, y: &Tensor, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = y.numel();
        let mut chunks: Vec<Vec<Tensor>> = vec![vec![]; inputs.len()];
        let mut rows: Vec<Vec<Option<Tensor>>> = vec![vec![]; inputs.len()];
        if let Some(edge) = y.gradient_edge() {
            let together = (FUNCTIONS / functions_behind(&edge)).clamp(1, ROWS);
            for j in 0..n {
                let one = on_line_of(self.caller, || unit(y, j));
                let grads = self.pull(&[Some(y.clone())], Some(&[one]), inputs, self.how.create_graph)?;
                for (k, g) in grads.into_iter().enumerate() {
                    self.check_row(i, k, g.as_ref())?;
                    rows[k].push(g);
                }
                if j + 1 == n || (j + 1) % together == 0 {
                    for ((chunk, rows), x) in chunks.iter_mut().zip(&mut rows).zip(inputs) {
                        chunk.push(on_line_of(self.caller, || self.side_by_side(rows, x)));
                        rows.clear();
                    }
                    if n > together {
                        y.device().flush();
                    }
                }
            }
        }
        let whole = |(chunk, x): (Vec<Tensor>, &Tensor)| {
            let shape: Vec<usize> = y.shape().iter().chain(x.shape()).copied().collect();
            let all = on_line_of(self.caller, || match &chunk[..] {
                [] => self.zeros(x, &shape),
                [one] => one.reshape(&shape),
                several => cat(&several.iter().collect::<Vec<_>>(), 0).reshape(&shape),
            });
            all.error().map_or(Ok(all), Err)
        };
        chunks.into_iter().zip(inputs).map(whole).collect()
    }

    fn check_row(&self, i: usize, k: usize, g: Option<&Tensor>) -> Result<()> {
        match g {
            None if self.how.strict => Err(self.strict(format!(
                "Output {i} of the user-provided function is independent of input {k}. This is not allowed in strict \
                 mode."
            ))),
            Some(g) if self.how.strict && self.how.create_graph && !g.requires_grad() => {
                Err(self.strict(format!(
                    "The jacobian of the user-provided function is independent of input {k}. This is not allowed in \
                     strict mode when create_graph=True."
                )))
            }
            _ => Ok(()),
        }
    }

    /// Rows along a new first dimension.
    fn side_by_side(&self, rows: &[Option<Tensor>], x: &Tensor) -> Tensor {
        if rows.iter().all(Option::is_none) {
            let shape: Vec<usize> = [rows.len()].iter().chain(x.shape()).copied().collect();
            return self.zeros(x, &shape);
        }
        let zeros = self.zeros(x, x.shape());
        stack(&rows.iter().map(|g| g.as_ref().unwrap_or(&zeros)).collect::<Vec<_>>(), 0)
    }
}

/// Zeros like `y` with a one at element `j`. The number is a parameter of the plan, not a part of it.
fn unit(y: &Tensor, j: usize) -> Tensor {
    let positions = options().device(y.device()).arange(0, y.numel() as i64, 1);
    positions.reshape(y.shape()).eq(j).to(y.dtype())
}

/// How many functions a pass from here leads through; `FUNCTIONS` at most.
fn functions_behind(edge: &Edge) -> usize {
    let mut seen = HashSet::new();
    let mut stack = vec![&edge.function];
    while let Some(f) = stack.pop() {
        if seen.len() < FUNCTIONS && seen.insert(Arc::as_ptr(f)) {
            stack.extend(f.edges.iter().flatten().map(|e| &e.function));
        }
    }
    seen.len()
}
