//! Functions of the user's own, with a gradient of their own.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::panic::Location;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::cut::{self, CutKind};
use super::function::{Edge, GradFn, Grads, OutputInfo};
use super::mode::unrecorded;
use super::saved::Saved;
use super::{is_grad_enabled, record_gradients};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::record::first_error;
use crate::tensor::Tensor;

/// A function with a formula of its own for the way back (`torch.autograd.Function`). What is no tensor, such as a
/// constant, is a field of the type.
///
/// ```
/// use wgrad::autograd::{Context, Function};
/// use wgrad::prelude::*;
///
/// struct Exp;
///
/// impl Function for Exp {
///     fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor> {
///         let out = inputs[0].exp();
///         ctx.save_for_backward(&[&out]);
///         vec![out]
///     }
///
///     fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
///         let out = &ctx.saved_tensors()[0];
///         vec![grads[0].as_ref().map(|g| g * out)]
///     }
/// }
///
/// let x = tensor([0.0, 1.0]).requires_grad_(true);
/// let y = &Exp.apply(&[&x])[0];
/// assert_eq!(y.grad_fn().unwrap().name(), "ExpBackward");
/// y.sum().backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, y.to_vec::<f32>()?);
/// # Ok::<(), wgrad::Error>(())
/// ```
pub trait Function: Send + Sync + 'static {
    /// Computes the outputs. Nothing is recorded in here.
    fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor>;

    /// The gradients by input (`None` where there is none) from those by output. A formula in tensor operations is
    /// differentiable in turn.
    ///
    /// Outputs that nothing flowed back from have zeros here, unless
    /// [`set_materialize_grads(false)`](Context::set_materialize_grads) was called.
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>>;

    /// What [`GradFn::name`] says: the type's name and `Backward`.
    fn name(&self) -> &'static str {
        name_of::<Self>()
    }

    /// Whether [`backward`](Function::backward) cannot be differentiated (`@once_differentiable`): then gradients of its
    /// gradients are an error instead of wrong.
    fn once_differentiable(&self) -> bool {
        false
    }

    /// Runs the function on these inputs. Bad input, or a rule broken in `forward`, gives one invalid tensor.
    #[track_caller]
    fn apply(self, inputs: &[&Tensor]) -> Vec<Tensor>
    where
        Self: Sized,
    {
        let caller = Location::caller();
        let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        on_line_of(caller, || apply(Arc::new(self), inputs, caller))
            .unwrap_or_else(|error| vec![Tensor::invalid(error)])
    }
}

/// `Backward` after the last part of a type's name. There are only so many types.
fn name_of<F: Function + ?Sized>() -> &'static str {
    static NAMES: OnceLock<Mutex<HashMap<TypeId, &'static str>>> = OnceLock::new();
    let mut names = NAMES.get_or_init(Mutex::default).lock();
    names.entry(TypeId::of::<F>()).or_insert_with(|| {
        let full = std::any::type_name::<F>();
        let plain = full.split('<').next().unwrap_or(full);
        format!("{}Backward", plain.rsplit("::").next().unwrap_or(plain)).leak()
    })
}

/// What passes from a [`Function`]'s forward to its backward (PyTorch's `ctx`).
///
/// ```
/// use wgrad::autograd::{Context, Function};
/// use wgrad::prelude::*;
///
/// /// Doubles a tensor in place, and tells how often it did.
/// struct Double;
///
/// impl Function for Double {
///     fn forward(&self, ctx: &mut Context, inputs: &[Tensor]) -> Vec<Tensor> {
///         ctx.mark_dirty(&[&inputs[0]]);
///         ctx.insert(2.0f64);
///         let once = ones([1]);
///         ctx.mark_non_differentiable(&[&once]);
///         vec![inputs[0].mul_(2.0), once]
///     }
///
///     fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
///         vec![grads[0].as_ref().filter(|_| ctx.needs_input_grad(0)).map(|g| g * *ctx.get::<f64>().unwrap())]
///     }
/// }
///
/// let x = ones([2]).requires_grad_(true);
/// let y = &x * 1.0;
/// let out = Double.apply(&[&y]);
/// assert!(out[0].is_same(&y) && !out[1].requires_grad());
/// y.sum().backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [2.0, 2.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Context {
    to_save: Vec<Tensor>,
    dirty: Vec<Tensor>,
    not_differentiable: Vec<Tensor>,
    keep_none: bool,
    needs: Vec<bool>,
    values: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    /// In backward.
    saved: Vec<Tensor>,
}

impl Context {
    /// Keeps tensors for backward: inputs and outputs with their part in the graph, others as values.
    pub fn save_for_backward(&mut self, tensors: &[&Tensor]) {
        self.to_save = tensors.iter().map(|&t| t.clone()).collect();
    }

    /// In backward: what was saved, in its order.
    pub fn saved_tensors(&self) -> &[Tensor] {
        &self.saved
    }

    /// Says that these inputs were written to in place. Each must be among the outputs.
    pub fn mark_dirty(&mut self, tensors: &[&Tensor]) {
        self.dirty = tensors.iter().map(|&t| t.clone()).collect();
    }

    /// Says that no gradient flows back from these outputs. (Outputs of integer type need no telling.)
    pub fn mark_non_differentiable(&mut self, tensors: &[&Tensor]) {
        self.not_differentiable = tensors.iter().map(|&t| t.clone()).collect();
    }

    /// Whether backward gets zeros for outputs that nothing flowed back from (the default), or `None`.
    pub fn set_materialize_grads(&mut self, zeros: bool) {
        self.keep_none = !zeros;
    }

    /// Whether input `i` needs a gradient (`ctx.needs_input_grad`).
    pub fn needs_input_grad(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }

    /// Keeps a value that is no tensor for backward, one of each type.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// A value that forward kept.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>()).and_then(|v| v.downcast_ref())
    }
}

fn apply(
    f: Arc<dyn Function>,
    inputs: Vec<Tensor>,
    caller: &'static Location<'static>,
) -> Result<Vec<Tensor>> {
    first_error(&inputs)?;
    let op = f.name();
    let fail = |message: String| Err(Error::at(caller, ErrorKind::Autograd, op, message));
    let edges: SmallVec<[Option<Edge>; 3]> = match is_grad_enabled() {
        true => inputs.iter().map(Tensor::gradient_edge).collect(),
        false => inputs.iter().map(|_| None).collect(),
    };
    let mut ctx = Context { needs: edges.iter().map(Option::is_some).collect(), ..Context::default() };
    // Inputs that are to be written to: a leaf must not be, and a write in here is not recorded.
    let before: Vec<u64> = inputs.iter().map(Tensor::version).collect();
    let made = unrecorded(|| f.forward(&mut ctx, &inputs));
    first_error(&made)?;
    let place = |t: &Tensor, all: &[Tensor]| all.iter().position(|o| o.is_same(t));
    for dirty in &ctx.dirty {
        if place(dirty, &made).is_none() {
            return fail(
                "Some elements marked as dirty during the forward method were not returned as output. The inputs that \
                 are modified inplace must all be outputs of the Function."
                    .into(),
            );
        }
        if place(dirty, &inputs).is_none() {
            return fail("mark_dirty was given a tensor that is not an input".into());
        }
        if is_grad_enabled() && dirty.is_leaf() && dirty.requires_grad() {
            return fail("a leaf Variable that requires grad is being used in an in-place operation.".into());
        }
    }
    for (i, (input, before)) in inputs.iter().zip(before).enumerate() {
        if input.version() != before && place(input, &ctx.dirty).is_none() && edges[i].is_some() {
            return fail(format!("input {i} was written to in forward, and not given to mark_dirty"));
        }
    }
    let differentiable: Vec<bool> =
        made.iter().map(|t| t.dtype().is_float() && place(t, &ctx.not_differentiable).is_none()).collect();
    // Outputs are tensors of their own, also where forward gave back an input or a view of one: values are
    // immutable, so nothing is copied. Inputs that were written to stay themselves.
    let outputs: Vec<Tensor> = made.iter().map(Tensor::detach_value).collect();
    if edges.iter().all(Option::is_none) {
        for (out, differentiable) in outputs.iter().zip(&differentiable) {
            if *differentiable {
                cut::links(out, op, inputs.iter().map(Some), caller);
            }
        }
    } else {
        link(&f, ctx.take(), &inputs, edges, &made, &outputs, &differentiable, caller);
    }
    for (out, _) in outputs.iter().zip(&differentiable).filter(|(_, d)| !**d) {
        cut::cut(out, CutKind::Marked, op, inputs.iter(), caller);
    }
    let finish = |(made, out): (&Tensor, Tensor)| match place(made, &ctx.dirty) {
        // The same values once more, and now with their history.
        Some(i) => ctx.dirty[i].write(out, op, caller),
        None => Ok(out),
    };
    made.iter().zip(outputs).map(finish).collect()
}

impl Context {
    /// Moves what backward needs into a context of its own.
    fn take(&mut self) -> Context {
        Context {
            to_save: std::mem::take(&mut self.to_save),
            dirty: self.dirty.clone(),
            keep_none: self.keep_none,
            needs: std::mem::take(&mut self.needs),
            values: std::mem::take(&mut self.values),
            ..Context::default()
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "called once, with what `apply` knows")]
fn link(
    f: &Arc<dyn Function>,
    mut ctx: Context,
    inputs: &[Tensor],
    edges: SmallVec<[Option<Edge>; 3]>,
    made: &[Tensor],
    outputs: &[Tensor],
    differentiable: &[bool],
    caller: &'static Location<'static>,
) {
    let infos: SmallVec<[OutputInfo; 1]> = outputs.iter().map(Tensor::output_info).collect();
    let saved: Vec<Saved> = std::mem::take(&mut ctx.to_save)
        .iter()
        .map(|t| {
            let output = made.iter().position(|o| o.is_same(t)).filter(|&i| differentiable[i]);
            let input = inputs.iter().any(|i| i.is_same(t));
            let dirty = ctx.dirty.iter().any(|d| d.is_same(t));
            match output {
                // An input that was written to is an output now; one that was given back as it is stays an input.
                Some(i) if dirty || !input => Saved::output_at(t, i),
                _ if input => Saved::input(t),
                _ => Saved::value(t),
            }
        })
        .collect();
    ctx.dirty.clear();
    let (f, count) = (f.clone(), inputs.len());
    let name = f.name();
    let formula = move |function: &Arc<GradFn>, grads: &[Option<Tensor>]| -> Grads {
        let mut here = ctx.clone();
        here.saved = saved.iter().map(|s| s.unpack(function)).collect();
        let mut grads: Vec<Option<Tensor>> = grads.to_vec();
        grads.resize(function.outputs().len(), None);
        if !here.keep_none {
            for (g, info) in grads.iter_mut().zip(function.outputs()) {
                g.get_or_insert_with(|| info.zeros());
            }
        }
        let once = f.once_differentiable() && is_grad_enabled();
        let result = if once {
            let _mode = record_gradients(false);
            f.backward(&here, &grads)
        } else {
            f.backward(&here, &grads)
        };
        let result = checked(result, count, function);
        if once {
            result.into_iter().map(|g| g.map(|g| never_again(g, &grads, function))).collect()
        } else {
            result
        }
    };
    let cuts = cut::input_cuts(&edges, inputs.iter().map(Some));
    let function = GradFn::new(name, caller, edges, infos, cuts, Arc::new(formula));
    for (i, out) in outputs.iter().enumerate().filter(|&(i, _)| differentiable[i]) {
        out.meta().grad_fn = Some(Edge { function: function.clone(), output: i });
    }
}

/// As many gradients as there are inputs: more may come if they are `None`.
fn checked(mut grads: Vec<Option<Tensor>>, count: usize, function: &GradFn) -> Grads {
    if grads.len() < count || grads[count..].iter().any(Option::is_some) {
        let message = format!(
            "function {} returned an incorrect number of gradients (expected {count}, got {})",
            function.name(),
            grads.len()
        );
        let error = Error::at(function.caller(), ErrorKind::Autograd, "backward", message);
        return (0..count).map(|_| Some(Tensor::invalid(error.clone()))).collect();
    }
    grads.truncate(count);
    grads.into_iter().collect()
}

/// A gradient whose own gradient is an error.
fn never_again(g: Tensor, grads: &[Option<Tensor>], function: &GradFn) -> Tensor {
    let (name, caller) = (function.name(), function.caller());
    let out = g.detach_value();
    // It depends on what flowed in, and on the function's inputs.
    let edges: SmallVec<[Option<Edge>; 3]> =
        (function.edges.iter().cloned()).chain(grads.iter().flatten().map(|g| g.gradient_edge())).collect();
    let count = edges.len();
    let fails = move |_: &Arc<GradFn>, _: &[Option<Tensor>]| -> Grads {
        let message = format!(
            "trying to differentiate twice a function that was marked with once_differentiable: {name} of {caller}"
        );
        let error = Error::at(caller, ErrorKind::Autograd, "backward", message);
        (0..count).map(|_| Some(Tensor::invalid(error.clone()))).collect()
    };
    out.link("NotDifferentiable", caller, cut::Links { edges, cuts: vec![] }, Arc::new(fails));
    out
}
