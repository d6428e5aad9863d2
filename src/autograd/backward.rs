//! How people ask for gradients: `backward` and `grad`.

use std::panic::Location;
use std::slice;

use super::anomaly::Looking;
use super::engine::{Ends, Pass};
use super::function::Edge;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Tensor;

/// How to run a backward pass: the arguments of PyTorch's `Tensor.backward` and `torch.autograd.grad`.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([3]).requires_grad_(true);
/// let y = &x * &x;
/// y.backward_with(Backward::new().gradient(&ones([3])).retain_graph(true))?;
/// y.backward_with(&ones([3]))?; // a tensor alone is the gradient
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [4.0; 3]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Backward {
    gradients: Vec<Option<Tensor>>,
    retain_graph: Option<bool>,
    create_graph: bool,
    inputs: Option<Vec<Tensor>>,
}

impl Backward {
    /// PyTorch's defaults.
    pub fn new() -> Backward {
        Backward::default()
    }

    /// The gradient of the tensor that the pass starts from; needed unless it has one element.
    pub fn gradient(self, gradient: &Tensor) -> Backward {
        self.gradients([Some(gradient)])
    }

    /// The gradients of the tensors that the pass starts from, in their order (`grad_tensors`, `grad_outputs`);
    /// `None` for 1, where a tensor has one element.
    pub fn gradients<'a>(mut self, gradients: impl IntoIterator<Item = Option<&'a Tensor>>) -> Backward {
        self.gradients = gradients.into_iter().map(|g| g.cloned()).collect();
        self
    }

    /// Keep what was saved, so that another pass can go through the same graph. By default as `create_graph`.
    pub fn retain_graph(mut self, retain: bool) -> Backward {
        self.retain_graph = Some(retain);
        self
    }

    /// Record the backward pass itself, for gradients of gradients.
    pub fn create_graph(mut self, create: bool) -> Backward {
        self.create_graph = create;
        self
    }

    /// Accumulate into these tensors only, leaves or not. (`backward` alone asks: `grad` is given its inputs.)
    pub fn inputs(mut self, inputs: &[&Tensor]) -> Backward {
        self.inputs = Some(inputs.iter().map(|&t| t.clone()).collect());
        self
    }
}

impl From<&Tensor> for Backward {
    fn from(gradient: &Tensor) -> Backward {
        Backward::new().gradient(gradient)
    }
}

impl Tensor {
    /// Computes the gradients of this one-element tensor with respect to the leaves that it was made from, and
    /// adds them to their `grad` (`Tensor.backward`).
    ///
    /// # Errors
    /// If this tensor has more than one element or does not require grad; if the graph was freed by an earlier
    /// pass; if anything on the way is invalid.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = tensor([2.0, 3.0]).requires_grad_(true);
    /// (&x * &x).sum().backward()?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [4.0, 6.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn backward(&self) -> Result<()> {
        self.backward_with(Backward::new())
    }

    /// [`backward`](Tensor::backward) with arguments: a gradient to start from (a vector-Jacobian product),
    /// `retain_graph`, `create_graph`, `inputs`. See [`Backward`].
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = ones([2]).requires_grad_(true);
    /// (&x * 3.0).backward_with(&tensor([1.0, 10.0]))?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [3.0, 30.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn backward_with(&self, how: impl Into<Backward>) -> Result<()> {
        backward_of(slice::from_ref(self), &how.into(), Location::caller())
    }
}

/// [`Tensor::backward_with`] from several tensors at once (`torch.autograd.backward`): gradients of their sum, were each
/// multiplied by its gradient.
///
/// # Errors
/// As [`Tensor::backward`].
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let (a, b) = ((&x * 2.0).sum(), &x * 3.0);
/// autograd::backward(&[&a, &b], Backward::new().gradients([None, Some(&ones([2]))]))?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [5.0, 5.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn backward(tensors: &[&Tensor], how: impl Into<Backward>) -> Result<()> {
    let tensors: Vec<Tensor> = tensors.iter().map(|&t| t.clone()).collect();
    backward_of(&tensors, &how.into(), Location::caller())
}

fn backward_of(tensors: &[Tensor], how: &Backward, caller: &'static Location<'static>) -> Result<()> {
    super::why::remember_pass(tensors);
    let mut inputs: Option<Vec<Tensor>> = None;
    for t in how.inputs.iter().flatten() {
        let inputs = inputs.get_or_insert_default();
        if !inputs.iter().any(|other| other.is_same(t)) {
            // Others than leaves keep theirs as if they had been told to.
            if t.requires_grad() {
                t.retain_grad();
            }
            inputs.push(t.clone());
        }
    }
    if how.inputs.is_some() && inputs.is_none() {
        let message = "`inputs` argument to `backward()` cannot be empty.";
        return Err(Error::at(caller, ErrorKind::Argument, "backward", message));
    }
    let ends = inputs.as_deref().map(|inputs| edges_of(inputs, "backward", caller)).transpose()?;
    run(tensors, how, ends.as_deref().map_or(Ends::Leaves, Ends::Into), "backward", caller).map(drop)
}

/// The gradients of `outputs` with respect to `inputs`, without touching any `grad` (`torch.autograd.grad`).
///
/// # Errors
/// As [`Tensor::backward`], and if an input does not require grad or was not used.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = tensor(3.0).requires_grad_(true);
/// let y = &x * &x * &x;
/// let dy = &autograd::grad_with(&[&y], &[&x], Backward::new().create_graph(true))?[0];
/// let ddy = &autograd::grad(&[dy], &[&x])?[0];
/// assert_eq!((dy.item::<f32>()?, ddy.item::<f32>()?), (27.0, 18.0));
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn grad(outputs: &[&Tensor], inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    grad_with(outputs, inputs, Backward::new())
}

/// [`grad`] with `retain_graph`, `create_graph`, and gradients for the outputs.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let g = autograd::grad_with(&[&(&x * 3.0)], &[&x], &tensor([1.0, 10.0]))?;
/// assert_eq!(g[0].to_vec::<f32>()?, [3.0, 30.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn grad_with(outputs: &[&Tensor], inputs: &[&Tensor], how: impl Into<Backward>) -> Result<Vec<Tensor>> {
    let caller = Location::caller();
    let grads = grad_where_used(outputs, inputs, how.into(), "grad", caller)?;
    let used = |(i, g): (usize, Option<Tensor>)| {
        g.ok_or_else(|| {
            let message = format!(
                "One of the differentiated Tensors (input {i}) appears to not have been used in the graph. Use \
                 grad_allow_unused if this is the desired behavior."
            );
            Error::at(caller, ErrorKind::Autograd, "grad", message)
        })
    };
    grads.into_iter().enumerate().map(used).collect()
}

/// [`grad_with`], with `None` for inputs that `outputs` do not depend on (`allow_unused=True`). For
/// `materialize_grads=True`, put [`zeros_like`](Tensor::zeros_like) there.
///
/// ```
/// # use wgrad::prelude::*;
/// let (x, y) = (ones([2]).requires_grad_(true), ones([2]).requires_grad_(true));
/// let grads = autograd::grad_allow_unused(&[&x.sum()], &[&x, &y], Backward::new())?;
/// assert!(grads[0].is_some() && grads[1].is_none());
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn grad_allow_unused(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    how: impl Into<Backward>,
) -> Result<Vec<Option<Tensor>>> {
    grad_where_used(outputs, inputs, how.into(), "grad", Location::caller())
}

/// [`grad_allow_unused`], under the name of another function.
pub(super) fn grad_where_used(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    how: Backward,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Vec<Option<Tensor>>> {
    let owned: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    let ends = edges_of(&owned, op, caller)?;
    let outputs: Vec<Tensor> = outputs.iter().map(|&t| t.clone()).collect();
    run(&outputs, &how, Ends::Catch(&ends), op, caller)
}

fn edges_of(inputs: &[Tensor], op: &'static str, caller: &'static Location<'static>) -> Result<Vec<Edge>> {
    inputs
        .iter()
        .map(|t| {
            if let Some(error) = t.error() {
                return Err(error);
            }
            t.gradient_edge().ok_or_else(|| {
                let message = "One of the differentiated Tensors does not require grad";
                Error::at(caller, ErrorKind::Autograd, op, message)
            })
        })
        .collect()
}

/// Runs a pass from `outputs`.
fn run(
    outputs: &[Tensor],
    how: &Backward,
    ends: Ends,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Vec<Option<Tensor>>> {
    if !how.gradients.is_empty() && how.gradients.len() != outputs.len() {
        let message = format!("got {} tensors and {} gradients", outputs.len(), how.gradients.len());
        return Err(Error::at(caller, ErrorKind::Argument, op, message));
    }
    let mut roots = vec![];
    for (i, output) in outputs.iter().enumerate() {
        if let Some(error) = output.error() {
            return Err(error);
        }
        let Some(edge) = output.gradient_edge() else {
            let message = format!(
                "element {i} of tensors does not require grad and does not have a grad_fn{}",
                super::why::hint(output)
            );
            return Err(Error::at(caller, ErrorKind::Autograd, op, message));
        };
        let given = how.gradients.get(i).and_then(Option::as_ref);
        roots.push((edge, start_gradient(output, given, how.create_graph, op, caller)?));
    }
    let _span = crate::graph::timeline::phase(op);
    let retain = how.retain_graph.unwrap_or(how.create_graph);
    let looking = Looking::back();
    let caught = Pass::new(retain, how.create_graph, op, caller).run(roots, ends)?;
    looking.end()?;
    Ok(caught)
}

fn start_gradient(
    output: &Tensor,
    given: Option<&Tensor>,
    create_graph: bool,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Tensor> {
    let Some(g) = given else {
        if output.numel() != 1 {
            let message = format!(
                "grad can be implicitly created only for scalar outputs, and this one has shape {:?}: \
                 reduce it first, or pass a gradient",
                output.shape()
            );
            return Err(Error::at(caller, ErrorKind::Autograd, op, message));
        }
        return Ok(super::mode::unrecorded(|| output.ones_like()));
    };
    if let Some(error) = g.error() {
        return Err(error);
    }
    if g.shape() != output.shape() {
        let message = format!(
            "Mismatch in shape: grad_output has a shape of {:?} and output has a shape of {:?}",
            g.shape(),
            output.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    let _mode = super::mode::record_gradients(create_graph);
    Ok(g.to(output.dtype()))
}
