//! Keeping gradients small (`torch.nn.utils.clip_grad_*`).

use std::panic::Location;

use super::Parameters;
use crate::autograd::unrecorded;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::cat::stack;
use crate::tensor::{Tensor, zeros};

/// How [`clip_grad_norm_with`] measures: PyTorch's further arguments and their defaults.
///
/// ```
/// use wgrad::optim::ClipNorm;
/// let how = ClipNorm { norm_type: f64::INFINITY, ..Default::default() };
/// assert!(!how.error_if_nonfinite);
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClipNorm {
    /// The norm's order; 2 by default, infinity for the largest element.
    pub norm_type: f64,
    /// Whether a norm that is infinite or NaN is an error. To know it, the device is waited for.
    pub error_if_nonfinite: bool,
}

impl Default for ClipNorm {
    fn default() -> ClipNorm {
        ClipNorm { norm_type: 2.0, error_if_nonfinite: false }
    }
}

/// Scales all gradients together so that their norm of order `norm_type` (2 is usual, infinity the largest
/// element) is `max_norm` at most, and gives the norm they had (`torch.nn.utils.clip_grad_norm_`). Nothing is
/// waited for.
///
/// ```
/// # use wgrad::prelude::*;
/// let w = tensor([3.0, 4.0]).requires_grad_(true);
/// (&w * &w / 2.0).sum().backward()?;
/// let norm = clip_grad_norm_([&w], 1.0, 2.0);
/// assert_eq!(norm.item::<f32>()?, 5.0);
/// assert!((w.grad().unwrap().square().sum().item::<f32>()? - 1.0).abs() < 1e-5);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn clip_grad_norm_(params: impl Parameters, max_norm: f64, norm_type: f64) -> Tensor {
    let grads = grads(params);
    on_line_of(Location::caller(), || {
        let total = total(&grads, norm_type);
        scale(&grads, max_norm, &total);
        total
    })
}

/// [`clip_grad_norm_`] with `error_if_nonfinite`.
///
/// # Errors
/// With `error_if_nonfinite`, if the norm is infinite or NaN, or cannot be computed: then no gradient is changed.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::optim::{ClipNorm, clip_grad_norm_with};
/// let w = tensor([0.0]).requires_grad_(true);
/// w.log().backward()?;
/// let how = ClipNorm { error_if_nonfinite: true, ..Default::default() };
/// let error = clip_grad_norm_with([&w], 1.0, how).unwrap_err();
/// assert!(error.message().contains("is non-finite, so it cannot be clipped"));
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn clip_grad_norm_with(params: impl Parameters, max_norm: f64, how: ClipNorm) -> Result<Tensor> {
    let (caller, grads) = (Location::caller(), grads(params));
    let total = on_line_of(caller, || total(&grads, how.norm_type));
    if let Some(error) = total.error() {
        return Err(error);
    }
    if how.error_if_nonfinite && !total.to_f64_vec()?.iter().all(|v| v.is_finite()) {
        let message = format!(
            "The total norm of order {:?} for gradients from `parameters` is non-finite, so it cannot be clipped. To \
             disable this error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`",
            how.norm_type
        );
        return Err(Error::at(caller, ErrorKind::Argument, "clip_grad_norm_", message));
    }
    on_line_of(caller, || scale(&grads, max_norm, &total));
    Ok(total)
}

/// The norm of all tensors' elements together (`torch.nn.utils.get_total_norm`): of gradients, say, as
/// [`clip_grad_norm_`] gives it, without changing them. Of order 0 it is the number of tensors that are not zero, as
/// PyTorch's.
///
/// ```
/// # use wgrad::prelude::*;
/// let norm = optim::get_total_norm([tensor([3.0]), tensor([[4.0]])], 2.0);
/// assert_eq!(norm.item::<f32>()?, 5.0);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn get_total_norm(tensors: impl Parameters, norm_type: f64) -> Tensor {
    let tensors: Vec<Tensor> = tensors.into_parameters().iter().map(Tensor::alias).collect();
    on_line_of(Location::caller(), || total(&tensors, norm_type))
}

/// Scales all gradients by the factor that makes `max_norm` of `total_norm`, if that is greater
/// (`torch.nn.utils.clip_grads_with_norm_`).
///
/// ```
/// # use wgrad::prelude::*;
/// let w = tensor([2.0]).requires_grad_(true);
/// (&w * &w).sum().backward()?;
/// optim::clip_grads_with_norm_([&w], 1.0, &tensor(8.0));
/// assert!((w.grad().unwrap().item::<f32>()? - 0.5).abs() < 1e-6);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn clip_grads_with_norm_(params: impl Parameters, max_norm: f64, total_norm: &Tensor) {
    let grads = grads(params);
    on_line_of(Location::caller(), || scale(&grads, max_norm, &total_norm.alias()));
}

/// Clamps every element of the gradients to `[-limit, limit]` (`torch.nn.utils.clip_grad_value_`).
///
/// ```
/// # use wgrad::prelude::*;
/// let w = tensor([3.0, -4.0, 0.5]).requires_grad_(true);
/// (&w * &w / 2.0).sum().backward()?;
/// clip_grad_value_([&w], 1.0);
/// assert_eq!(w.grad().unwrap().to_vec::<f32>()?, [1.0, -1.0, 0.5]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn clip_grad_value_(params: impl Parameters, limit: f64) {
    let grads = grads(params);
    on_line_of(Location::caller(), || {
        unrecorded(|| {
            for g in &grads {
                g.clamp_(-limit, limit);
            }
        });
    });
}

fn grads(params: impl Parameters) -> Vec<Tensor> {
    params.into_parameters().iter().filter_map(Tensor::grad).map(|g| g.alias()).collect()
}

/// The norm of the tensors' norms.
fn total(tensors: &[Tensor], order: f64) -> Tensor {
    unrecorded(|| {
        // The extremes of nothing are nothing to the others.
        let some = |t: &&Tensor| t.numel() > 0 || order.is_finite();
        let Some(first) = tensors.first() else { return zeros(()) };
        let norms: Vec<Tensor> =
            tensors.iter().filter(some).map(|t| norm(t, order).to(first.device())).collect();
        if norms.is_empty() {
            return first.new_zeros(());
        }
        norm(&stack(&norms.iter().collect::<Vec<_>>(), 0), order)
    })
}

fn scale(grads: &[Tensor], max_norm: f64, total: &Tensor) {
    unrecorded(|| {
        let factor = (max_norm / (total + 1e-6)).minimum(1.0);
        for g in grads {
            g.mul_(factor.to(g.device()));
        }
    });
}

fn norm(t: &Tensor, order: f64) -> Tensor {
    if order == f64::INFINITY {
        t.abs().max()
    } else if order == f64::NEG_INFINITY {
        t.abs().min()
    } else if order == 2.0 {
        t.square().sum().sqrt()
    } else if order == 1.0 {
        t.abs().sum()
    } else if order == 0.0 {
        t.ne(0.0).to(t.dtype()).sum()
    } else {
        t.abs().pow(order).sum().pow(1.0 / order)
    }
}
