//! Loss functions.

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

use super::cast::to_dtype;
use super::cross_entropy::{self as op, CrossEntropyBackward, MeanLoss, Target};
use super::elementwise::WHERE;
use super::record::{Caller, common_device, first_error, link};
use crate::autograd::{Saved, is_grad_enabled, unrecorded};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::{DType, F32, I32};
use crate::graph::kernel::{OpRef, StructuredOp};
use crate::graph::layout::{Dims, Layout, broadcast};
use crate::graph::node::{Node, NodeOp};
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
            let op = "nll_loss";
            first_error([self, target].into_iter().chain(&how.weight))?;
            common_device(op, caller, [self, target].into_iter().chain(&how.weight))?;
            check_classes(self, target, how, op, caller)?;
            Ok(nll(self, target, how, caller))
        }))
    }

    /// The cross-entropy between logits `self` (`[C]`, `[N, C]` or `[N, C, d…]`) and target classes (integers, the
    /// same without `C`) or class probabilities (the same shape as the logits), averaged
    /// (`torch.nn.functional.cross_entropy`).
    ///
    /// # Errors
    /// If shapes do not fit. A class out of range is an error when the values are computed.
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
            let logits = to_dtype(self, if self.dtype().is_float() { self.dtype() } else { F32 }, caller);
            let class_dim = check_classes(&logits, target, how, op, caller)?;
            // Weighted parts of smoothed targets are left to tensor ops, and so is to complain of a class among none.
            if logits.size(class_dim) > 0 && (smoothing == 0.0 || how.weight.is_none()) {
                return Ok(of_classes(&logits, target, class_dim as usize, how, caller));
            }
            let log_p = logits.log_softmax(class_dim);
            let hard = nll(&log_p, target, how, caller);
            if smoothing == 0.0 {
                return Ok(hard);
            }
            let even = smooth(&log_p, target, class_dim, how);
            Ok(hard.mul(1.0 - smoothing).add(even.mul(smoothing / logits.size(class_dim) as f64)))
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

/// The log-probability of each sample's class. The gradient is found without scattering, as there is one class for
/// each sample: it is the sample's at its class and 0 elsewhere.
fn pick(log_p: &Tensor, dim: i64, class: &Tensor, caller: Caller) -> Tensor {
    let class = class.alias();
    let out = unrecorded(|| log_p.alias().gather(dim, &class.unsqueeze(dim)).squeeze_dim(dim));
    if out.error().is_some() {
        return out;
    }
    // A tensor in its own right, no view of one.
    let out = Tensor::with_layout(out.node(), out.layout().clone());
    link(&out, "NllLossBackward0", &[log_p], caller, || {
        let (n, rank) = (log_p.size(dim), log_p.dim());
        let class = Saved::value(&class);
        Box::new(move |f, g| {
            let hit = is_class(&class.unpack(f), n, dim, rank);
            smallvec![Some(WHERE.call(&[hit.into(), g.unsqueeze(dim).into(), 0.0.into()]))]
        })
    });
    out
}

/// Where along a dimension of `n`, of `rank` in all, each sample's class is.
fn is_class(class: &Tensor, n: usize, dim: i64, rank: usize) -> Tensor {
    let mut along: Dims = smallvec![1; rank];
    along[dim as usize] = n;
    let classes = options().device(class.device()).dtype(I32).arange(0, n as i64, 1).reshape(&along[..]);
    class.unsqueeze(dim).eq(classes)
}

/// Checks targets that are classes, and gives the dimension of these.
fn check_classes(
    x: &Tensor,
    target: &Tensor,
    how: &CrossEntropy,
    op: &'static str,
    caller: Caller,
) -> Result<i64> {
    let class_dim = if x.dim() == 1 { 0 } else { 1 };
    let mut expected = Dims::from_slice(x.shape());
    if class_dim < expected.len() {
        expected.remove(class_dim);
    }
    if x.dim() == 0 || target.shape() != &expected[..] || target.dtype().is_float() {
        let message = format!(
            "expects integer targets of shape {:?} for an input of shape {:?}, got {} of {:?}",
            &expected[..],
            x.shape(),
            target.dtype(),
            target.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    let class_dim = class_dim as i64;
    if let Some(w) = &how.weight
        && w.shape() != [x.size(class_dim)]
    {
        let message = format!("weight must have one entry for each of {} classes", x.size(class_dim));
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    Ok(class_dim)
}

fn nll(log_p: &Tensor, target: &Tensor, how: &CrossEntropy, caller: Caller) -> Tensor {
    let class_dim = if log_p.dim() == 1 { 0 } else { 1 };
    let counts = target.ne(how.ignore_index);
    let safe = target.where_(&counts, 0);
    let picked = pick(log_p, class_dim, &safe, caller);
    // The weights are zero where a target does not count, but 0 * -inf would not be.
    let losses = picked.neg().where_(&counts, 0.0);
    reduced(&losses, target, &counts, how)
}

/// Losses, 0 where they do not count, with their classes' weights.
fn reduced(losses: &Tensor, target: &Tensor, counts: &Tensor, how: &CrossEntropy) -> Tensor {
    let plain = how.weight.is_none() && how.reduction == Reduction::Mean;
    let weights = weights_of(target, how, losses, counts);
    match how.reduction {
        Reduction::Mean if plain => losses.sum().div(weights.sum()),
        Reduction::Mean => losses.mul(&weights).sum().div(weights.sum()),
        other => other.of(&losses.mul(&weights)),
    }
}

/// Losses of logits under classes, of which there are some. Their mean or sum is the same function, whose gradient is one kernel.
fn of_classes(x: &Tensor, class: &Tensor, dim: usize, how: &CrossEntropy, caller: Caller) -> Tensor {
    if how.weight.is_some() {
        let each = CrossEntropy { weight: None, reduction: Reduction::None, ..how.clone() };
        let losses = of_classes(x, class, dim, &each, caller);
        return reduced(&losses, class, &class.ne(how.ignore_index), how);
    }
    let ignored = i32::try_from(how.ignore_index).ok();
    let rows = Classified {
        shape: [x.shape()[..dim].iter().product(), x.shape()[dim], x.shape()[dim + 1..].iter().product()],
        target: Target { ignored, smoothing: how.label_smoothing },
        dim,
        wide: x.dtype().opmath(),
        caller,
    };
    let class = to_dtype(&class.alias(), I32, caller);
    let [outer, _, inner] = rows.shape;
    let op = op::CrossEntropy { target: rows.target, dim };
    let stats = rows.record(op, &[&rows.logits(x), &rows.each(&class)], &[3, outer, inner]);
    // The first of three.
    let losses = Tensor::with_layout(stats.node(), Layout::contiguous(class.shape()));
    // Of the mean also one over the number of those that count.
    let (out, scale) = match how.reduction {
        Reduction::None => (losses, None),
        Reduction::Sum => (losses.sum(), None),
        Reduction::Mean if losses.numel() == 0 => (losses.mean(), None),
        Reduction::Mean if losses.numel() <= MeanLoss::MOST => {
            let both = rows.record(MeanLoss { ignored }, &[&rows.each(&losses), &rows.each(&class)], &[2]);
            let one = |offset| Tensor::with_layout(both.node(), Layout { offset, ..Layout::contiguous(&[]) });
            (one(0), Some(one(1)))
        }
        Reduction::Mean => {
            let counts = ignored.map_or_else(|| class.eq(&class), |ignored| class.ne(ignored));
            let count = counts.to(rows.wide).sum();
            (losses.sum().div(&count), Some(count.reciprocal()))
        }
    };
    let out = to_dtype(&out, x.dtype(), caller);
    link(&out, "NllLossBackward0", &[x], caller, || {
        let (x, class, stats) = (Saved::input(x), Saved::value(&class), Saved::value(&stats));
        let (scale, reduction) = (scale.as_ref().map(Saved::value), how.reduction);
        Box::new(move |f, g| {
            let (x, class, scale) = (x.unpack(f), class.unpack(f), scale.as_ref().map(|s| s.unpack(f)));
            smallvec![Some(if is_grad_enabled() {
                rows.formula(&x, &class, scale.as_ref(), g)
            } else {
                rows.fused(&x, &class, &stats.unpack(f), scale.as_ref(), reduction, g)
            })]
        })
    });
    out
}

/// Logits seen as `[outer, n, inner]`, and what is known of their targets.
struct Classified {
    shape: [usize; 3],
    target: Target,
    dim: usize,
    /// In which type losses are computed.
    wide: DType,
    caller: Caller,
}

impl Classified {
    fn record(&self, op: impl StructuredOp + 'static, inputs: &[&Tensor], shape: &[usize]) -> Tensor {
        let device = inputs[0].device();
        let inputs = inputs.iter().map(|t| t.operand(t.layout().clone())).collect();
        let op = NodeOp::Structured(OpRef(Arc::new(op)));
        Tensor::from_node(Node::record(device, self.wide, shape, op, inputs, self.caller))
    }

    fn logits(&self, x: &Tensor) -> Tensor {
        x.alias().reshape(self.shape).contiguous()
    }

    /// What there is of each sample.
    fn each(&self, t: &Tensor) -> Tensor {
        t.alias().reshape([self.shape[0], self.shape[2]])
    }

    /// The gradient, `(softmax(x) - target) * g * scale`, in tensor ops, for gradients of gradients.
    fn formula(&self, x: &Tensor, class: &Tensor, scale: Option<&Tensor>, g: &Tensor) -> Tensor {
        let dim = self.dim as i64;
        let mut g = scale.map_or_else(|| g.clone(), |scale| g.mul(to_dtype(scale, g.dtype(), self.caller)));
        if let Some(ignored) = self.target.ignored {
            g = WHERE.call(&[class.ne(ignored).into(), g.into(), 0.0.into()]);
        }
        let g = if g.dim() == 0 { g } else { g.unsqueeze(dim) };
        let hit = is_class(class, x.size(dim), dim, x.dim());
        let smoothing = self.target.smoothing;
        let (hard, even) = (g.mul(1.0 - smoothing), smoothing / x.size(dim) as f64);
        let gradient = x.softmax(dim).mul(&g).sub(WHERE.call(&[hit.into(), hard.into(), 0.0.into()]));
        if smoothing > 0.0 { gradient.sub(g.mul(even)) } else { gradient }
    }

    /// The same in one kernel.
    fn fused(
        &self,
        x: &Tensor,
        class: &Tensor,
        stats: &Tensor,
        scale: Option<&Tensor>,
        reduction: Reduction,
        g: &Tensor,
    ) -> Tensor {
        let [outer, _, inner] = self.shape;
        let scale = match reduction {
            Reduction::None => Some(self.each(g)),
            _ => scale.map(|scale| scale.expand([outer, inner])),
        };
        let (x3, class) = (self.logits(x), self.each(class));
        let inputs: Vec<&Tensor> = [&x3, &class, stats].into_iter().chain(&scale).collect();
        let out = self.record(CrossEntropyBackward { target: self.target }, &inputs, &self.shape);
        let out = Tensor::with_layout(out.node(), Layout::contiguous(x.shape()));
        // A number for all is the last thing that the kernel multiplies with, so that it need not be in memory.
        let out =
            if reduction == Reduction::None { out } else { out.mul(to_dtype(g, self.wide, self.caller)) };
        to_dtype(&out, x.dtype(), self.caller)
    }
}
