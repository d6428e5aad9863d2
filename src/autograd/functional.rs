//! Jacobians, Hessians, and their products with vectors (`torch.autograd.functional`).

use super::forms::{Inputs, Outputs, Vectors};
use crate::error::{Result, on_line_of};
use crate::graph::dtype::F32;
use crate::tensor::{Tensor, options};

mod call;

pub(super) use call::Call;
use call::Stage;

/// Arguments that [`jacobian`], [`hessian`] and the products share.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, jacobian_with};
/// let how = Functional::new().create_graph(true).strict(true);
/// assert!(jacobian_with(|x| x.exp(), &zeros([2]), how)?.requires_grad());
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Functional {
    create_graph: bool,
    strict: bool,
}

impl Functional {
    pub fn new() -> Functional {
        Functional::default()
    }

    /// Give results that can be differentiated in turn, with respect to the inputs and the vector.
    pub fn create_graph(mut self, create: bool) -> Functional {
        self.create_graph = create;
        self
    }

    /// Fail where an output does not depend on an input, instead of giving zeros.
    pub fn strict(mut self, strict: bool) -> Functional {
        self.strict = strict;
        self
    }
}

/// The Jacobian of `f`: the derivative of each output's every element with respect to each input's every element
/// (`torch.autograd.functional.jacobian`). For a function from one tensor to one tensor it is a tensor of shape
/// `output.shape + input.shape`, of the input's dtype; with several outputs there is one such for each, with several inputs a
/// `Vec` within: `jacobian[output][input]`.
///
/// The inputs' `grad` is not touched, nor that of anything else that `f` uses. A backward pass is recorded for each
/// element of the outputs, one after the other. Up to 32 such rows (fewer of a long function) are run by one flush, and
/// the next ones under the same plan while others are being recorded, so that no intermediate values of
/// more rows than that are in memory together. Nothing is waited for; a Jacobian of few rows is computed when it
/// is read, together with what it is used for.
///
/// # Errors
/// If an input is not of a floating point type; what `f` fails with; with [`strict`](Functional::strict), if an
/// output is independent of an input.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::jacobian;
/// let (x, y) = (tensor([1.0, 2.0]), tensor([3.0, 4.0]));
/// let dx = jacobian(|x| x * x, &x)?;
/// assert_eq!(dx.to_vec::<f32>()?, [2.0, 0.0, 0.0, 4.0]);
/// let (product, sum) = jacobian(|t| (&t[0] * &t[1], t[0].sum()), &[&x, &y])?;
/// assert_eq!(product[1].to_vec::<f32>()?, [1.0, 0.0, 0.0, 2.0]);
/// assert_eq!(sum[0].to_vec::<f32>()?, [1.0, 1.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn jacobian<I: Inputs, O: Outputs>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
) -> Result<O::Each<I::Each<Tensor>>> {
    jacobian_with(f, inputs, Functional::new())
}

/// [`jacobian`] with `create_graph` and `strict`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, jacobian_with};
/// let x = tensor([1.0, 2.0]).requires_grad_(true);
/// let j = jacobian_with(|x| x * x * x, &x, Functional::new().create_graph(true))?;
/// j.sum().backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [6.0, 12.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn jacobian_with<I: Inputs, O: Outputs>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    how: Functional,
) -> Result<O::Each<I::Each<Tensor>>> {
    let call = Call::new("jacobian", how);
    let x = call.leaves(&inputs.tensors())?;
    let outputs = call.apply::<I, O>(f, &x)?;
    call.check_outputs(&outputs)?;
    let all = call.finish(call.jacobian(&outputs, &x)?);
    let rows: Vec<I::Each<Tensor>> = all.iter().map(|row| I::each(row)).collect();
    Ok(O::each(&rows))
}

/// The Hessian of `f`, which gives one element: all second derivatives (`torch.autograd.functional.hessian`). For
/// one input it is a tensor of shape `input.shape + input.shape`; for several, `hessian[i][j]` has shape
/// `inputs[i].shape + inputs[j].shape`.
///
/// It is the Jacobian of the gradient, and computed as [`jacobian`] says.
///
/// # Errors
/// As [`jacobian`], and if `f` gives more than one element.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::hessian;
/// let h = hessian(|x| (x * x * x).sum(), &tensor([1.0, 2.0]))?;
/// assert_eq!(h.to_vec::<f32>()?, [6.0, 0.0, 0.0, 12.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn hessian<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
) -> Result<I::Each<I::Each<Tensor>>> {
    hessian_with(f, inputs, Functional::new())
}

/// [`hessian`] with `create_graph` and `strict`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, hessian_with};
/// // Linear: its gradient does not depend on the input.
/// let error = hessian_with(|x| x.sum(), &ones([2]), Functional::new().strict(true)).unwrap_err();
/// assert!(error.message().contains("is independent of the input"));
/// ```
#[track_caller]
pub fn hessian_with<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    how: Functional,
) -> Result<I::Each<I::Each<Tensor>>> {
    let call = Call::new("hessian", how);
    let x = call.leaves(&inputs.tensors())?;
    let out = call.one_element::<I, O>(f, &x)?;
    let gradient = call.pull(&[Some(out)], None, &x, true)?;
    let gradient: Vec<Tensor> =
        gradient.into_iter().zip(&x).map(|(g, x)| g.unwrap_or_else(|| call.zeros(x, x.shape()))).collect();
    call.check_gradient(gradient.iter().map(Some))?;
    let all = call.finish(call.jacobian(&gradient, &x)?);
    let rows: Vec<I::Each<Tensor>> = all.iter().map(|row| I::each(row)).collect();
    Ok(I::each(&rows))
}

/// What `f` gives, and the product of `v`, in the form of the outputs, with the Jacobian of `f`, in the form of the inputs
/// (`torch.autograd.functional.vjp`): one backward pass. `v` may be `None` if `f` gives one element.
///
/// # Errors
/// As [`jacobian`], and if `v` does not have the outputs' number and shapes.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::vjp;
/// let (y, product) = vjp(|x| x.exp().sum(), &zeros([2]), None)?;
/// assert_eq!((y.item::<f32>()?, product.to_vec::<f32>()?), (2.0, vec![1.0, 1.0]));
/// let (x, v) = (tensor([1.0, 2.0]), tensor([1.0, 10.0]));
/// assert_eq!(vjp(|x| x * x, &x, &v)?.1.to_vec::<f32>()?, [2.0, 40.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn vjp<I: Inputs, O: Outputs>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
) -> Result<(O::Each<Tensor>, I::Each<Tensor>)> {
    vjp_with(f, inputs, v, Functional::new())
}

/// [`vjp`] with `create_graph` and `strict`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, vjp_with};
/// let x = tensor([3.0]).requires_grad_(true);
/// let (_, product) = vjp_with(|x| x * x, &x, &ones([1]), Functional::new().create_graph(true))?;
/// assert_eq!(autograd::grad(&[&product], &[&x])?[0].item::<f32>()?, 2.0);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn vjp_with<I: Inputs, O: Outputs>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
    how: Functional,
) -> Result<(O::Each<Tensor>, I::Each<Tensor>)> {
    let call = Call::new("vjp", how);
    let x = call.leaves(&inputs.tensors())?;
    let outputs = call.apply::<I, O>(f, &x)?;
    call.check_outputs(&outputs)?;
    let returns = "the user-provided function returns a single Tensor with a single element.";
    let v = call.vector(&v, &outputs, O::SINGLE, returns)?;
    let roots: Vec<Option<Tensor>> = outputs.iter().cloned().map(Some).collect();
    let product = call.pull(&roots, v.as_deref(), &x, how.create_graph)?;
    let product = call.fill(product, &x, Stage::Back)?;
    let all = call.finish(vec![outputs, product]);
    Ok((O::each(&all[0]), I::each(&all[1])))
}

/// What `f` gives, and the product of its Jacobian with `v`, which is in the form of the inputs
/// (`torch.autograd.functional.jvp`). `v` may be `None` if there is one element of input.
///
/// The product of a vector with the Jacobian is linear in the vector, and its derivative with respect to that is the
/// Jacobian: two backward passes do what one forward pass could ([Townsend
/// 2017](https://j-towns.github.io/2017/06/12/A-new-trick.html)). `f` must be twice differentiable for that.
///
/// # Errors
/// As [`jacobian`], and if `v` does not have the inputs' number and shapes.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::jvp;
/// let (x, v) = (tensor([1.0, 2.0]), tensor([1.0, 10.0]));
/// let (y, product) = jvp(|x| (x * x).sum(), &x, &v)?;
/// assert_eq!((y.item::<f32>()?, product.item::<f32>()?), (5.0, 42.0));
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn jvp<I: Inputs, O: Outputs>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
) -> Result<(O::Each<Tensor>, O::Each<Tensor>)> {
    jvp_with(f, inputs, v, Functional::new())
}

/// [`jvp`] with `create_graph` and `strict`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, jvp_with};
/// let strict = Functional::new().strict(true);
/// let error = jvp_with(|x| x.detach(), &ones([1]), None, strict).unwrap_err();
/// assert!(error.message().starts_with("Output 0 of the user-provided function does not require gradients"));
/// ```
#[track_caller]
pub fn jvp_with<I: Inputs, O: Outputs>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
    how: Functional,
) -> Result<(O::Each<Tensor>, O::Each<Tensor>)> {
    let call = Call::new("jvp", how);
    let x = call.leaves(&inputs.tensors())?;
    let v = call.vector(&v, &x, I::SINGLE, ONE_INPUT)?;
    let outputs = call.apply::<I, O>(f, &x)?;
    call.check_outputs(&outputs)?;
    // What is put in here is never computed with: the result is linear in it.
    let start = |y: &Tensor| {
        let dtype = if y.dtype().is_float() { y.dtype() } else { F32 };
        options().device(y.device()).dtype(dtype).requires_grad(true).zeros(y.shape())
    };
    let start: Vec<Tensor> = on_line_of(call.caller, || outputs.iter().map(start).collect());
    let roots: Vec<Option<Tensor>> = outputs.iter().cloned().map(Some).collect();
    let back = call.pull(&roots, Some(&start), &x, true)?;
    call.check_back(&back)?;
    let v = match v {
        Some(v) => v,
        None => vec![on_line_of(call.caller, || x[0].alias().ones_like())],
    };
    let product = call.pull(&back, Some(&v), &start, how.create_graph)?;
    let product = call.fill(product, &outputs, Stage::BackTrick)?;
    let all = call.finish(vec![outputs, product]);
    Ok((O::each(&all[0]), O::each(&all[1])))
}

/// What `f` gives, one element, and the product of `v`, in the form of the inputs, with the Hessian of `f`
/// (`torch.autograd.functional.vhp`): two backward passes. `v` may be `None` if there is one element of input.
///
/// # Errors
/// As [`hessian`], and if `v` does not have the inputs' number and shapes.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::vhp;
/// let (x, v) = (tensor([1.0, 2.0]), tensor([1.0, 10.0]));
/// assert_eq!(vhp(|x| (x * x * x).sum(), &x, &v)?.1.to_vec::<f32>()?, [6.0, 120.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn vhp<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
) -> Result<(Tensor, I::Each<Tensor>)> {
    vhp_with(f, inputs, v, Functional::new())
}

/// [`vhp`] with `create_graph` and `strict`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, vhp_with};
/// let (x, v) = (tensor([2.0]).requires_grad_(true), tensor([1.0]));
/// let (_, product) = vhp_with(|x| (x * x * x).sum(), &x, &v, Functional::new().create_graph(true))?;
/// assert_eq!(autograd::grad(&[&product], &[&x])?[0].item::<f32>()?, 6.0);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn vhp_with<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
    how: Functional,
) -> Result<(Tensor, I::Each<Tensor>)> {
    Call::new("vhp", how).vector_hessian::<I, O>(f, &inputs, &v)
}

/// What `f` gives, one element, and the product of its Hessian with `v`, which is in the form of the inputs
/// (`torch.autograd.functional.hvp`). `v` may be `None` if there is one element of input.
///
/// The Hessian of a function whose second derivatives are continuous is symmetric, so this is [`vhp`], in two backward
/// passes where PyTorch takes three.
///
/// # Errors
/// As [`vhp`].
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::hvp;
/// let (x, v) = (tensor([1.0, 2.0]), tensor([1.0, 0.0]));
/// assert_eq!(hvp(|x| x.prod().square(), &x, &v)?.1.to_vec::<f32>()?, [8.0, 8.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn hvp<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
) -> Result<(Tensor, I::Each<Tensor>)> {
    hvp_with(f, inputs, v, Functional::new())
}

/// [`hvp`] with `create_graph` and `strict`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Functional, hvp_with};
/// let strict = Functional::new().strict(true);
/// let error = hvp_with(|x| x.sum(), &ones([1]), None, strict).unwrap_err();
/// assert!(error.message().contains("is independent of the input"));
/// ```
#[track_caller]
pub fn hvp_with<I: Inputs, O: Outputs<Each<Tensor> = Tensor>>(
    f: impl FnOnce(&I::Given) -> O,
    inputs: I,
    v: impl Vectors,
    how: Functional,
) -> Result<(Tensor, I::Each<Tensor>)> {
    Call::new("hvp", how).vector_hessian::<I, O>(f, &inputs, &v)
}

const ONE_INPUT: &str = "the input to the user-provided function is a single Tensor with a single element.";
