//! Normalisation: of rows (layer_norm, rms_norm) and of channels over a batch (batch_norm).

use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use super::normalize::{LONGEST, Normalize, Task};
use super::record::{Arg, Caller, common_device, first_error, link};
use crate::autograd::{Grads, Saved, is_grad_enabled, unrecorded};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::DType;
use crate::graph::kernel::OpRef;
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::{IntoShape, Tensor};

/// Arguments of [`Tensor::batch_norm`], with PyTorch's defaults.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// `[C]`, needed unless `training`, in which it is updated in place.
    pub running_mean: Option<Tensor>,
    /// As `running_mean`.
    pub running_var: Option<Tensor>,
    /// A factor for each channel, `[C]`.
    pub weight: Option<Tensor>,
    /// What is added to each channel, `[C]`.
    pub bias: Option<Tensor>,
    /// Normalises by the batch's mean and variance, not by the running ones.
    pub training: bool,
    /// How much of a running value one batch makes up.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
}

impl Default for BatchNorm {
    fn default() -> BatchNorm {
        BatchNorm {
            running_mean: None,
            running_var: None,
            weight: None,
            bias: None,
            training: false,
            momentum: 0.1,
            eps: 1e-5,
        }
    }
}

impl Tensor {
    /// `(x - mean) / sqrt(variance + eps)` over the last dimensions, which must be of `normalized_shape`, times
    /// `weight` plus `bias`, which are of that shape, too (`torch.nn.functional.layer_norm`,
    /// [Ba et al. 2016](https://arxiv.org/abs/1607.06450)). The variance is the population's.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]);
    /// let y = x.layer_norm(3, None, Some(&tensor([0.0, 0.0, 1.0])), 0.0);
    /// assert!((y.i((1, 2)).item::<f32>()? - (2f32.sqrt() + 1.0)).abs() < 1e-5);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    ///
    /// # Errors
    /// If this is no float tensor whose shape ends in `normalized_shape` (of at least one dimension), or weight or
    /// bias have another shape, dtype or device.
    #[track_caller]
    pub fn layer_norm(
        &self,
        normalized_shape: impl IntoShape,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Tensor {
        let (shape, caller) = (normalized_shape.into_shape(), Location::caller());
        Tensor::from_result(on_line_of(caller, || {
            Rows::check(self, &shape, weight, bias, false, eps, caller)?.record(self, weight, bias)
        }))
    }

    /// `x / sqrt(mean(x^2) + eps)` over the last dimensions, which must be of `normalized_shape`, times `weight`,
    /// which is of that shape, too (`torch.nn.functional.rms_norm`,
    /// [Zhang and Sennrich 2019](https://arxiv.org/abs/1910.07467)). `eps` is the dtype's rounding unit if not
    /// given.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let y = tensor([[3.0, 4.0, 0.0, 0.0]]).rms_norm(4, Some(&full(4, 5.0)), None);
    /// assert!((y.i((0, 0)).item::<f32>()? - 6.0).abs() < 1e-5);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`layer_norm`](Tensor::layer_norm).
    #[track_caller]
    pub fn rms_norm(
        &self,
        normalized_shape: impl IntoShape,
        weight: Option<&Tensor>,
        eps: Option<f64>,
    ) -> Tensor {
        let (shape, caller) = (normalized_shape.into_shape(), Location::caller());
        let unit = if self.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        Tensor::from_result(on_line_of(caller, || {
            let rows = Rows::check(self, &shape, weight, None, true, eps.unwrap_or(unit), caller)?;
            rows.record(self, weight, None)
        }))
    }

    /// `(x - mean) / sqrt(variance + eps)` for each channel (dimension 1 of `[N, C]` or `[N, C, d…]`), times its
    /// weight plus its bias (`torch.nn.functional.batch_norm`,
    /// [Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167)). In training mean and variance are the batch's,
    /// and the running ones, where given, move towards them (the variance's unbiased estimate) in place; else
    /// they are the running ones.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let mean = zeros(1);
    /// let how = BatchNorm { training: true, running_mean: Some(mean.clone()), ..BatchNorm::default() };
    /// let y = tensor([[1.0], [3.0]]).batch_norm(&how);
    /// assert!((y.i((1, 0)).item::<f32>()? - 1.0).abs() < 1e-4);
    /// assert!((mean.item::<f32>()? - 0.2).abs() < 1e-6);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    ///
    /// # Errors
    /// If this is no float tensor of at least two dimensions, weight, bias or running values have not one entry for
    /// each channel, of the same dtype and device, running values are missing where they are needed, or there is
    /// but one value for each channel in training.
    #[track_caller]
    pub fn batch_norm(&self, how: &BatchNorm) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || batch_norm(self, how, &how.momentum.into(), caller)))
    }
}

/// How many rows a partial sum of weights' gradients is of at least, and how many such sums there are at most.
const LEAST_PART: usize = 64;
const MOST_PARTS: usize = 512;

fn fail<T>(op: &'static str, kind: ErrorKind, message: String, caller: Caller) -> Result<T> {
    Err(Error::at(caller, kind, op, message))
}

/// That `x` is of floats, and the others of the same, on the same device.
fn check_types(
    x: &Tensor,
    others: &[(&str, Option<&Tensor>)],
    op: &'static str,
    caller: Caller,
) -> Result<()> {
    let given = || others.iter().filter_map(|(_, t)| *t);
    first_error([x].into_iter().chain(given()))?;
    common_device(op, caller, [x].into_iter().chain(given()))?;
    if !x.dtype().is_float() {
        return fail(op, ErrorKind::DType, format!("is not defined for {}", x.dtype()), caller);
    }
    for (name, t) in others {
        if let Some(t) = t.filter(|t| t.dtype() != x.dtype()) {
            let message = format!("expects {name} to be {}, as the input, got {}", x.dtype(), t.dtype());
            return fail(op, ErrorKind::DType, message, caller);
        }
    }
    Ok(())
}

/// A tensor seen as rows, and what is done to them.
#[derive(Clone, Copy)]
struct Rows {
    /// How many dimensions are not normalised.
    lead: usize,
    rows: usize,
    n: usize,
    rms: bool,
    eps: f64,
    caller: Caller,
}

impl Rows {
    fn check(
        x: &Tensor,
        shape: &[i64],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        rms: bool,
        eps: f64,
        caller: Caller,
    ) -> Result<Rows> {
        let op = if rms { "rms_norm" } else { "layer_norm" };
        check_types(x, &[("weight", weight), ("bias", bias)], op, caller)?;
        if shape.is_empty() {
            let message = "expects normalized_shape to be at least 1-dimensional";
            return fail(op, ErrorKind::Shape, message.into(), caller);
        }
        let lead = x.dim().saturating_sub(shape.len());
        let same = |sizes: &[usize]| {
            sizes.len() == shape.len() && sizes.iter().zip(shape).all(|(&a, &b)| i64::try_from(a) == Ok(b))
        };
        if !same(&x.shape()[lead..]) {
            let message = format!(
                "Given normalized_shape={shape:?}, expected input with shape ending in it, but got input of size {:?}",
                x.shape()
            );
            return fail(op, ErrorKind::Shape, message, caller);
        }
        for (name, t) in [("weight", weight), ("bias", bias)] {
            if let Some(t) = t.filter(|t| !same(t.shape())) {
                let message = format!(
                    "Expected {name} to be of same shape as normalized_shape, but got {name} of shape {:?} and \
                     normalized_shape = {shape:?}",
                    t.shape()
                );
                return fail(op, ErrorKind::Shape, message, caller);
            }
        }
        let (rows, n) = (x.shape()[..lead].iter().product(), x.shape()[lead..].iter().product());
        Ok(Rows { lead, rows, n, rms, eps, caller })
    }

    fn record(self, x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
        if x.dtype() == DType::F16 {
            // Partial sums of weights' gradients would overflow.
            let wide = |t: &Tensor| t.to(DType::F32);
            let out = self.record(&wide(x), weight.map(wide).as_ref(), bias.map(wide).as_ref())?;
            return Ok(out.to(DType::F16));
        }
        let all: SmallVec<[&Tensor; 3]> = [Some(x), weight, bias].into_iter().flatten().collect();
        let task = Task::Forward { weight: weight.is_some(), bias: bias.is_some() };
        let flat = self.task(task, &all);
        let out = Tensor::with_layout(flat.node(), Layout::contiguous(x.shape()));
        let name = if self.rms { "FusedRmsNormBackward0" } else { "NativeLayerNormBackward0" };
        link(&out, name, &all, self.caller, || {
            let (x, weight, bias) = (Saved::input(x), weight.map(Saved::input), bias.is_some());
            Box::new(move |f, g| {
                let (x, weight) = (x.unpack(f), weight.as_ref().map(|w| w.unpack(f)));
                let at = 1 + usize::from(weight.is_some());
                let needs = [f.needs(0), weight.is_some() && f.needs(1), bias && f.needs(at)];
                let grads = if is_grad_enabled() {
                    self.formula(&x, weight.as_ref(), g, needs)
                } else {
                    self.fused(&x, weight.as_ref(), g, needs)
                };
                let given = [true, weight.is_some(), bias];
                grads.into_iter().zip(given).filter(|(_, given)| *given).map(|(grad, _)| grad).collect()
            })
        });
        Ok(out)
    }

    /// The gradients of x, weight and bias as far as they are needed, in tensor ops, for gradients of gradients.
    fn formula(
        self,
        x: &Tensor,
        weight: Option<&Tensor>,
        g: &Tensor,
        needs: [bool; 3],
    ) -> [Option<Tensor>; 3] {
        let shape = Dims::from_slice(x.shape());
        let (g, x) = (g.reshape([self.rows, self.n]), x.reshape([self.rows, self.n]));
        let v = if self.rms { x } else { x.sub(x.mean_dim(1, true)) };
        let r = v.square().mean_dim(1, true).add(self.eps).rsqrt();
        let y = v.mul(&r);
        let dx = needs[0].then(|| {
            let h = weight.map_or_else(|| g.clone(), |w| g.mul(w.reshape([1, self.n])));
            let along = y.mul(h.mul(&y).mean_dim(1, true));
            let flat = if self.rms { h } else { h.sub(h.mean_dim(1, true)) };
            flat.sub(along).mul(&r).reshape(&shape[..])
        });
        let to = &shape[self.lead..];
        let dw = needs[1].then(|| g.mul(&y).sum_dim(0, false).reshape(to));
        [dx, dw, needs[2].then(|| g.sum_dim(0, false).reshape(to))]
    }

    /// The same in kernels of their own.
    fn fused(self, x: &Tensor, weight: Option<&Tensor>, g: &Tensor, needs: [bool; 3]) -> [Option<Tensor>; 3] {
        let to = &x.shape()[self.lead..];
        let dx = needs[0].then(|| {
            let inputs: SmallVec<[&Tensor; 3]> = [Some(g), Some(x), weight].into_iter().flatten().collect();
            self.task(Task::Gradient { weight: weight.is_some() }, &inputs).reshape(x.shape())
        });
        let columns = |t: Tensor| t.sum_dim(0, false).reshape(to);
        let plain = || g.reshape([self.rows, self.n]);
        if needs[1] && self.n <= LONGEST {
            let each = self.rows.div_ceil(MOST_PARTS).max(LEAST_PART);
            let sums = self.task(Task::Parameters { bias: needs[2], each }, &[g, x]);
            let part = |i: i64| columns(sums.select(1, i));
            return [dx, Some(part(0)), needs[2].then(|| part(1))];
        }
        let dw = needs[1].then(|| {
            let y = self.task(Task::Forward { weight: false, bias: false }, &[x]);
            columns(plain().mul(y))
        });
        [dx, dw, needs[2].then(|| columns(plain()))]
    }

    /// Records a task on rows. Its result is a whole node.
    fn task(self, task: Task, inputs: &[&Tensor]) -> Tensor {
        let shape: SmallVec<[usize; 3]> = match task {
            Task::Parameters { bias, each } => {
                SmallVec::from_slice(&[self.rows.div_ceil(each), 1 + usize::from(bias), self.n])
            }
            _ => SmallVec::from_slice(&[self.rows, self.n]),
        };
        let weights = match task {
            Task::Forward { .. } => 1,
            _ => 2,
        };
        let first = inputs[0];
        let inputs = (inputs.iter().enumerate())
            .map(|(i, t)| {
                let sizes: &[usize] = if i < weights { &[self.rows, self.n] } else { &[self.n] };
                let t = t.alias().reshape(sizes).contiguous();
                t.operand(t.layout().clone())
            })
            .collect();
        let op = NodeOp::Structured(OpRef(Arc::new(Normalize { rms: self.rms, eps: self.eps, task })));
        Tensor::from_node(Node::record(first.device(), first.dtype(), &shape, op, inputs, self.caller))
    }
}

/// [`Tensor::batch_norm`] with a momentum that may be a tensor.
pub(crate) fn batch_norm(x: &Tensor, how: &BatchNorm, momentum: &Arg, caller: Caller) -> Result<Tensor> {
    let op = "batch_norm";
    let BatchNorm { running_mean, running_var, weight, bias, training, eps, .. } = how;
    let named = [
        ("running_mean", running_mean.as_ref()),
        ("running_var", running_var.as_ref()),
        ("weight", weight.as_ref()),
        ("bias", bias.as_ref()),
    ];
    check_types(x, &named, op, caller)?;
    if x.dim() < 2 {
        let message = format!("expects an input of at least 2 dimensions, got {:?}", x.shape());
        return fail(op, ErrorKind::Shape, message, caller);
    }
    let channels = x.shape()[1];
    for (name, t) in named {
        if let Some(t) = t.filter(|t| t.shape() != [channels]) {
            let message = format!("{name} should contain {channels} elements, not {:?}", t.shape());
            return fail(op, ErrorKind::Shape, message, caller);
        }
    }
    let over = Channels::of(x);
    if *training {
        if over.count == 1 {
            let message = format!(
                "Expected more than 1 value per channel when training, got input size {:?}",
                x.shape()
            );
            return fail(op, ErrorKind::Argument, message, caller);
        }
        return over.train(x, how, momentum, caller);
    }
    let (Some(mean), Some(var)) = (running_mean, running_var) else {
        let message = "Expected running_mean and running_var to be defined when training=False";
        return fail(op, ErrorKind::Argument, message.into(), caller);
    };
    // Nothing but a factor and a term for each channel.
    let (mean, r) = (over.along(&mean.alias()), over.along(&var.alias()).add(*eps).rsqrt());
    Ok(over.affine(&x.sub(mean).mul(r), how))
}

/// The dimensions of a batch that each channel is normalised over.
#[derive(Clone)]
struct Channels {
    dims: Dims,
    /// `[1, C, 1…]`
    shape: Dims,
    /// Values of a channel.
    count: usize,
}

impl Channels {
    fn of(x: &Tensor) -> Channels {
        let mut shape = Dims::from_elem(1, x.dim());
        shape[1] = x.shape()[1];
        let dims: Dims = (0..x.dim()).filter(|&d| d != 1).collect();
        let count = dims.iter().map(|&d| x.shape()[d]).product();
        Channels { dims, shape, count }
    }

    /// A value for each channel, seen along the channels.
    fn along(&self, t: &Tensor) -> Tensor {
        t.reshape(&self.shape[..])
    }

    fn mean(&self, t: &Tensor) -> Tensor {
        t.mean_dim(&self.dims[..], true)
    }

    fn sum(&self, t: &Tensor) -> Tensor {
        t.sum_dim(&self.dims[..], true)
    }

    fn affine(&self, y: &Tensor, how: &BatchNorm) -> Tensor {
        let mut y = y.clone();
        if let Some(w) = &how.weight {
            y = y.mul(self.along(w));
        }
        if let Some(b) = &how.bias {
            y = y.add(self.along(b));
        }
        y
    }

    /// Mean and variance of each channel. In two passes, as the rows' are.
    fn moments(&self, x: &Tensor) -> (Tensor, Tensor) {
        let mean = self.mean(x);
        let var = self.mean(&x.sub(&mean).square());
        (mean, var)
    }

    fn train(self, x: &Tensor, how: &BatchNorm, momentum: &Arg, caller: Caller) -> Result<Tensor> {
        let (eps, weight, bias) = (how.eps, how.weight.as_ref(), how.bias.as_ref());
        let (mean, r, out) = unrecorded(|| {
            let (mean, var) = self.moments(x);
            if self.count > 0 {
                let unbiased = var.mul(self.count as f64 / (self.count as f64 - 1.0));
                for (running, now) in [(&how.running_mean, &mean), (&how.running_var, &unbiased)] {
                    if let Some(t) = running {
                        let step = now.reshape(t.shape()).sub(t).mul(momentum);
                        first_error([&t.add_(step)])?;
                    }
                }
            }
            let r = var.add(eps).rsqrt();
            let out = self.affine(&x.sub(&mean).mul(&r), how);
            Ok::<_, Error>((mean, r, out))
        })?;
        let all: SmallVec<[&Tensor; 3]> = [Some(x), weight, bias].into_iter().flatten().collect();
        let out = Tensor::with_layout(out.node(), out.layout().clone());
        link(&out, "NativeBatchNormBackward0", &all, caller, || {
            let (mean, r) = (Saved::value(&mean), Saved::value(&r));
            let (x, weight, bias) = (Saved::input(x), weight.map(Saved::input), bias.is_some());
            Box::new(move |f, g| {
                let (x, weight) = (x.unpack(f), weight.as_ref().map(|w| w.unpack(f)));
                // Gradients of gradients pass through mean and variance, too.
                let (mean, r) = if is_grad_enabled() {
                    let (mean, var) = self.moments(&x);
                    (mean, var.add(eps).rsqrt())
                } else {
                    (mean.unpack(f), r.unpack(f))
                };
                self.gradients(&x, weight.as_ref(), bias, g, &mean, &r, f.needs(0))
            })
        });
        Ok(out)
    }

    /// Of x, weight and bias, of which the last two are sums that the first needs.
    #[expect(clippy::too_many_arguments, reason = "what a formula is of")]
    fn gradients(
        &self,
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: bool,
        g: &Tensor,
        mean: &Tensor,
        r: &Tensor,
        needs_x: bool,
    ) -> Grads {
        let y = x.sub(mean).mul(r);
        let (flat, along) = (self.sum(g), self.sum(&g.mul(&y)));
        let dx = needs_x.then(|| {
            let share = 1.0 / self.count as f64;
            let scale = weight.map_or_else(|| r.clone(), |w| r.mul(self.along(w)));
            g.sub(flat.mul(share)).sub(y.mul(along.mul(share))).mul(scale)
        });
        let mut out = Grads::new();
        out.push(dx);
        if let Some(w) = weight {
            out.push(Some(along.reshape(w.shape())));
        }
        if bias {
            out.push(Some(flat.reshape(-1)));
        }
        out
    }
}
