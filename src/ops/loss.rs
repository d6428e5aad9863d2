//! Loss functions.

use std::panic::Location;

use smallvec::smallvec;

use super::cast::to_dtype;
use super::elementwise::WHERE;
use super::record::{Caller, common_device, first_error, link};
use crate::autograd::{Saved, unrecorded};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::{F32, I32};
use crate::graph::layout::{Dims, broadcast};
use crate::tensor::{Tensor, options};

/// What a loss makes of the losses of its samples.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Reduction {
    /// Leaves them as they are.
    None,
    #[default]
    Mean,
    Sum,
}

impl Reduction {
    fn of(self, losses: &Tensor) -> Tensor {
        match self {
            Reduction::None => losses.clone(),
            Reduction::Mean => losses.mean(),
            Reduction::Sum => losses.sum(),
        }
    }
}

/// Arguments of [`Tensor::cross_entropy_with`] and [`Tensor::nll_loss_with`], with PyTorch's defaults.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// A factor for each class.
    pub weight: Option<Tensor>,
    /// Targets of this class do not count.
    pub ignore_index: i64,
    pub reduction: Reduction,
    /// How much of each target is spread evenly over all classes (`cross_entropy` only).
    pub label_smoothing: f64,
}

impl Default for CrossEntropy {
    fn default() -> CrossEntropy {
        CrossEntropy { weight: None, ignore_index: -100, reduction: Reduction::Mean, label_smoothing: 0.0 }
    }
}

impl Tensor {
    /// The mean of the squared differences (`torch.nn.functional.mse_loss`).
    #[track_caller]
    pub fn mse_loss(&self, target: &Tensor) -> Tensor {
        self.mse_loss_with(target, Reduction::Mean)
    }

    /// [`mse_loss`](Tensor::mse_loss), reduced as asked.
    #[track_caller]
    pub fn mse_loss_with(&self, target: &Tensor, reduction: Reduction) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self, target])?;
            common_device("mse_loss", caller, [self, target])?;
            if broadcast(self.shape(), target.shape()).is_none() {
                let message =
                    format!("input and target do not broadcast: {:?} and {:?}", self.shape(), target.shape());
                return Err(Error::at(caller, ErrorKind::Shape, "mse_loss", message));
            }
            Ok(reduction.of(&self.sub(target).square()))
        }))
    }

    /// The mean negative log-likelihood of `target` classes (integers, `[N]` or `[N, d…]`) under log-probabilities
    /// `self` (`[N, C]` or `[N, C, d…]`) (`torch.nn.functional.nll_loss`).
    #[track_caller]
    pub fn nll_loss(&self, target: &Tensor) -> Tensor {
        self.nll_loss_with(target, &CrossEntropy::default())
    }

    /// [`nll_loss`](Tensor::nll_loss) with class weights, `ignore_index`, `reduction`.
    #[track_caller]
    pub fn nll_loss_with(&self, target: &Tensor, how: &CrossEntropy) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            nll(self, Picked::LogProbabilities, target, how, "nll_loss", caller)
        }))
    }

    /// The cross-entropy between logits `self` (`[C]`, `[N, C]` or `[N, C, d…]`) and target classes (integers, the
    /// same without `C`) or class probabilities (the same shape as the logits), averaged
    /// (`torch.nn.functional.cross_entropy`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let logits = zeros([2, 4]);
    /// let loss = logits.cross_entropy(&tensor([0, 3]));
    /// assert!((loss.item::<f32>()? - 4f32.ln()).abs() < 1e-6);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn cross_entropy(&self, target: &Tensor) -> Tensor {
        self.cross_entropy_with(target, &CrossEntropy::default())
    }

    /// [`cross_entropy`](Tensor::cross_entropy) with class weights, `ignore_index`, `reduction` and label
    /// smoothing.
    #[track_caller]
    pub fn cross_entropy_with(&self, target: &Tensor, how: &CrossEntropy) -> Tensor {
        let caller = Location::caller();
        let op = "cross_entropy";
        Tensor::from_result(on_line_of(caller, || {
            first_error([self, target].into_iter().chain(&how.weight))?;
            common_device(op, caller, [self, target].into_iter().chain(&how.weight))?;
            if self.dim() == 0 {
                let message = "expects logits of at least one dimension";
                return Err(Error::at(caller, ErrorKind::Shape, op, message));
            }
            let class_dim = if self.dim() == 1 { 0 } else { 1 };
            if target.dtype().is_float() {
                return soft(&self.log_softmax(class_dim), target, class_dim, how, caller);
            }
            let smoothing = how.label_smoothing;
            if !(0.0..=1.0).contains(&smoothing) {
                let message = format!("label_smoothing must be between 0.0 and 1.0. Got: {smoothing}");
                return Err(Error::at(caller, ErrorKind::Argument, op, message));
            }
            if smoothing == 0.0 {
                let logits = to_dtype(self, if self.dtype().is_float() { self.dtype() } else { F32 }, caller);
                return nll(&logits, Picked::Logits, target, how, op, caller);
            }
            let log_p = self.log_softmax(class_dim);
            let hard = nll(&log_p, Picked::LogProbabilities, target, how, op, caller)?;
            let even = smooth(&log_p, target, class_dim, how);
            Ok(hard.mul(1.0 - smoothing).add(even.mul(smoothing / self.size(class_dim) as f64)))
        }))
    }
}

/// A class weight vector seen along the class dimension.
fn along(weight: &Tensor, dim: i64, rank: usize) -> Tensor {
    let mut shape: Dims = smallvec::smallvec![1; rank];
    if let Some(d) = shape.get_mut(dim as usize) {
        *d = weight.numel();
    }
    weight.reshape(&shape[..])
}

/// Targets that are probabilities.
fn soft(log_p: &Tensor, target: &Tensor, dim: i64, how: &CrossEntropy, caller: Caller) -> Result<Tensor> {
    if log_p.shape() != target.shape() {
        let message = format!(
            "targets that are probabilities must have the logits' shape: {:?} and {:?}",
            target.shape(),
            log_p.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, "cross_entropy", message));
    }
    let s = how.label_smoothing;
    let target = if s > 0.0 { target.mul(1.0 - s).add(s / log_p.size(dim) as f64) } else { target.clone() };
    let mut terms = log_p.mul(&target).neg();
    if let Some(w) = &how.weight {
        terms = terms.mul(along(w, dim, log_p.dim()));
    }
    let losses = terms.sum_dim(dim, false);
    Ok(match how.reduction {
        Reduction::Mean => losses.sum().mul(1.0 / losses.numel() as f64),
        other => other.of(&losses),
    })
}

/// The part of label smoothing: every class counts alike.
fn smooth(log_p: &Tensor, target: &Tensor, dim: i64, how: &CrossEntropy) -> Tensor {
    let mut terms = log_p.neg();
    if let Some(w) = &how.weight {
        terms = terms.mul(along(w, dim, log_p.dim()));
    }
    let counts = target.ne(how.ignore_index);
    let losses = terms.sum_dim(dim, false).where_(&counts, 0.0);
    match how.reduction {
        Reduction::Mean => losses.sum().div(weights_of(target, how, &losses, &counts).sum()),
        other => other.of(&losses),
    }
}

/// The weight of each target, 0 for those that do not count.
fn weights_of(target: &Tensor, how: &CrossEntropy, like: &Tensor, counts: &Tensor) -> Tensor {
    let weight = match &how.weight {
        Some(w) => {
            let safe = target.where_(counts, 0).reshape(-1);
            w.index_select(0, &safe).reshape(target.shape())
        }
        None => like.ones_like(),
    };
    weight.where_(counts, 0.0)
}

/// What log-probabilities are picked from.
#[derive(Clone, Copy, PartialEq)]
enum Picked {
    LogProbabilities,
    Logits,
}

/// The log-probability of each sample's class. The gradient is found without scattering, as there is one class for
/// each sample: it is the sample's at its class and 0 elsewhere, less, for logits, its share of every class.
fn pick(x: &Tensor, from: Picked, dim: i64, class: &Tensor, caller: Caller) -> Tensor {
    let class = class.alias();
    let log_p = if from == Picked::Logits { x.log_softmax(dim) } else { x.clone() };
    let out = unrecorded(|| log_p.alias().gather(dim, &class.unsqueeze(dim)).squeeze_dim(dim));
    if out.error().is_some() {
        return out;
    }
    // A tensor in its own right, no view of one.
    let out = Tensor::with_layout(out.node(), out.layout().clone());
    link(&out, "NllLossBackward0", &[x], caller, || {
        let n = x.size(dim);
        let mut along: Dims = smallvec![1; x.dim()];
        along[dim as usize] = n;
        // With its history: gradients of gradients pass through the logarithms, too.
        let log_p = (from == Picked::Logits).then(|| Saved::input(&log_p));
        let class = Saved::value(&class);
        Box::new(move |f, g| {
            let classes = options().device(g.device()).dtype(I32).arange(0, n as i64, 1).reshape(&along[..]);
            let (hit, g) = (class.unpack(f).unsqueeze(dim).eq(classes), g.unsqueeze(dim));
            let gradient = WHERE.call(&[hit.into(), (&g).into(), 0.0.into()]);
            smallvec![Some(match &log_p {
                Some(log_p) => gradient.sub(log_p.unpack(f).exp().mul(g)),
                None => gradient,
            })]
        })
    });
    out
}

fn nll(
    log_p: &Tensor,
    from: Picked,
    target: &Tensor,
    how: &CrossEntropy,
    op: &'static str,
    caller: Caller,
) -> Result<Tensor> {
    first_error([log_p, target].into_iter().chain(&how.weight))?;
    common_device(op, caller, [log_p, target].into_iter().chain(&how.weight))?;
    let class_dim = if log_p.dim() == 1 { 0 } else { 1 };
    let mut expected = Dims::from_slice(log_p.shape());
    if class_dim < expected.len() {
        expected.remove(class_dim);
    }
    if log_p.dim() == 0 || target.shape() != &expected[..] || target.dtype().is_float() {
        let message = format!(
            "expects integer targets of shape {:?} for an input of shape {:?}, got {} of {:?}",
            &expected[..],
            log_p.shape(),
            target.dtype(),
            target.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    if let Some(w) = &how.weight
        && w.shape() != [log_p.size(class_dim as i64)]
    {
        let message =
            format!("weight must have one entry for each of {} classes", log_p.size(class_dim as i64));
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    let counts = target.ne(how.ignore_index);
    let safe = target.where_(&counts, 0);
    let picked = pick(log_p, from, class_dim as i64, &safe, caller);
    let plain = how.weight.is_none() && how.reduction == Reduction::Mean;
    let weights = weights_of(target, how, &picked, &counts);
    // The weights are zero where a target does not count, but 0 * -inf would not be.
    let losses = picked.neg().where_(&counts, 0.0);
    Ok(match how.reduction {
        Reduction::Mean if plain => losses.sum().div(weights.sum()),
        Reduction::Mean => losses.mul(&weights).sum().div(weights.sum()),
        other => other.of(&losses.mul(&weights)),
    })
}
