//! Calls of a module with other parameters than its own (`torch.func.functional_call`).

use std::borrow::Borrow;
use std::panic::Location;

use super::Module;
use super::module::{replace, tensors};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::record::Caller;
use crate::tensor::Tensor;

/// The module's [`forward`](Module::forward) with some of its parameters and buffers replaced by name, for this call only
/// (`torch.func.functional_call`). Those that are not named stay the module's own; a parameter that stands in several
/// places is replaced in all of them. Whatever happens, the module has its own back afterwards.
///
/// Gives an invalid tensor if a name is not the module's, or if two names of one shared parameter are given
/// different tensors.
///
/// ```
/// # use wgrad::prelude::*;
/// let mut model = Linear::new(2, 1);
/// let (w, b) = (tensor([[1.0, 2.0]]).requires_grad_(true), zeros([1]));
/// let y = nn::functional_call(&mut model, [("weight", &w), ("bias", &b)], &tensor([[3.0, 4.0]]));
/// assert_eq!(y.item::<f32>()?, 11.0);
/// // The Hessian of a loss with respect to a parameter:
/// let x = tensor([[1.0, 2.0]]);
/// let loss = |w: &Tensor| nn::functional_call(&mut model, [("weight", w), ("bias", &b)], &x).square().sum();
/// let h = autograd::hessian(loss, &w)?;
/// assert_eq!(h.to_vec::<f32>()?, [2.0, 4.0, 4.0, 8.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn functional_call<M: Module, N: AsRef<str>, T: Borrow<Tensor>>(
    module: &mut M,
    parameters: impl IntoIterator<Item = (N, T)>,
    x: &Tensor,
) -> Tensor {
    match borrow(module, parameters, Location::caller()) {
        Ok(borrowed) => borrowed.module.forward(x),
        Err(error) => Tensor::invalid(error),
    }
}

/// [`functional_call`] of a module that is called otherwise than by `forward`.
///
/// # Errors
/// Where `functional_call` gives an invalid tensor; then `f` is not called.
///
/// ```
/// # use wgrad::prelude::*;
/// let mut model = Linear::new(2, 1);
/// let names = nn::functional_call_with(&mut model, [("weight", zeros([1, 2]))], |m| {
///     assert_eq!(m.weight.to_vec::<f32>()?, [0.0, 0.0]);
///     Ok::<_, wgrad::Error>(m.state_dict().len())
/// })??;
/// assert_eq!(names, 2);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn functional_call_with<M: Module, N: AsRef<str>, T: Borrow<Tensor>, R>(
    module: &mut M,
    parameters: impl IntoIterator<Item = (N, T)>,
    f: impl FnOnce(&M) -> R,
) -> Result<R> {
    borrow(module, parameters, Location::caller()).map(|borrowed| f(borrowed.module))
}

fn borrow<M: Module, N: AsRef<str>, T: Borrow<Tensor>>(
    module: &mut M,
    parameters: impl IntoIterator<Item = (N, T)>,
    caller: Caller,
) -> Result<Borrowed<'_, M>> {
    let others = others(module, parameters, caller)?;
    let mut own = vec![];
    replace(module, &mut |t| {
        own.push(t.clone());
        if let Some((_, _, new)) = others.iter().find(|(_, old, _)| old.is_same(t)) {
            *t = new.clone();
        }
    });
    Ok(Borrowed { module, own })
}

/// By name, what stands there and what is to stand there.
fn others<M: Module, N: AsRef<str>, T: Borrow<Tensor>>(
    module: &M,
    parameters: impl IntoIterator<Item = (N, T)>,
    caller: Caller,
) -> Result<Vec<(String, Tensor, Tensor)>> {
    let fail = |message| Err(Error::at(caller, ErrorKind::Argument, "functional_call", message));
    let mut own: Vec<(String, Tensor)> = vec![];
    tensors(module, &mut |name, t| own.push((name, t.clone())));
    let mut others: Vec<(String, Tensor, Tensor)> = vec![];
    let mut unexpected = vec![];
    for (name, new) in parameters {
        let (name, new) = (name.as_ref(), new.borrow());
        let Some((_, old)) = own.iter().find(|(n, _)| n == name) else {
            unexpected.push(name.to_string());
            continue;
        };
        match others.iter().find(|(_, o, _)| o.is_same(old)) {
            Some((first, _, other)) if !alike(other, new) => {
                return fail(format!(
                    "functional_call got multiple values for keys [{first}, {name}], which are tied"
                ));
            }
            Some(_) => {}
            None => others.push((name.to_string(), old.clone(), new.clone())),
        }
    }
    if !unexpected.is_empty() {
        return fail(format!("Unexpected key(s) for {}: {}", module.name(), unexpected.join(", ")));
    }
    Ok(others)
}

/// Whether both are one tensor or the same view of one: a state dict has a handle for each name.
fn alike(a: &Tensor, b: &Tensor) -> bool {
    a.is_same(b) || a.shares_storage(b) && a.layout() == b.layout()
}

/// A module whose tensors are others for a while. It gets its own back when this is dropped, also when unwinding.
struct Borrowed<'m, M: Module> {
    module: &'m mut M,
    own: Vec<Tensor>,
}

impl<M: Module> Drop for Borrowed<'_, M> {
    fn drop(&mut self) {
        let mut own = std::mem::take(&mut self.own).into_iter();
        replace(self.module, &mut |t| {
            if let Some(tensor) = own.next() {
                *t = tensor;
            }
        });
    }
}
