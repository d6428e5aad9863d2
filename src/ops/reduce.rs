//! Reductions over dimensions, and what is made of them.

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

use super::elementwise::WHERE;
use super::record::{Caller, first_error, link};
use crate::autograd::{GradFn, Grads, Saved};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::{Bool, DType, I32};
use crate::graph::kernel::ReduceOp;
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::{IntoDims, Tensor, dims};

/// Over which dimensions, and what shape is left.
struct Over {
    dims: Dims,
    keepdim: bool,
    /// The input's shape with the reduced sizes 1.
    kept: Dims,
    /// The result's shape.
    shape: Dims,
    /// Elements reduced to one.
    count: usize,
}

impl Over {
    fn new(
        t: &Tensor,
        which: impl IntoDims,
        keepdim: bool,
        op: &'static str,
        caller: Caller,
    ) -> Result<Over> {
        first_error([t])?;
        let rank = t.dim();
        let given = which.into_dims();
        // No dims given means all of them, as in PyTorch.
        let mut list =
            if given.is_empty() { (0..rank).collect() } else { dims::dims(&given[..], rank, op, caller)? };
        if rank == 0 {
            list.clear();
        }
        let mut kept = Dims::from_slice(t.shape());
        for &d in &list {
            kept[d] = 1;
        }
        let shape = if keepdim {
            kept.clone()
        } else {
            (0..rank).filter(|d| !list.contains(d)).map(|d| t.shape()[d]).collect()
        };
        let count = list.iter().map(|&d| t.shape()[d]).product();
        Ok(Over { dims: list, keepdim, kept, shape, count })
    }

    fn all(t: &Tensor, op: &'static str, caller: Caller) -> Result<Over> {
        Over::new(t, (), false, op, caller)
    }

    /// A value of the result's shape (a gradient, say), broadcast against the input.
    fn spread(&self, t: &Tensor) -> Tensor {
        if self.keepdim { t.clone() } else { t.reshape(&self.kept[..]) }
    }

    fn not_empty(&self, op: &'static str, caller: Caller) -> Result<()> {
        if self.count > 0 || self.shape.contains(&0) {
            return Ok(());
        }
        let message =
            "Expected reduction dim to have non-zero size: an extremum of no elements is not defined";
        Err(Error::at(caller, ErrorKind::Shape, op, message))
    }
}

/// Records the reduction itself, without autograd.
fn record(t: &Tensor, op: ReduceOp, over: &Over, caller: Caller) -> Tensor {
    let kept = (0..t.dim()).filter(|d| !over.dims.contains(d));
    let order: Dims = kept.chain(over.dims.iter().copied()).collect();
    let layout = t.layout().permute(&order);
    let shape = &layout.shape[..t.dim() - over.dims.len()];
    let node = Node::record(
        t.device(),
        t.dtype(),
        shape,
        NodeOp::Reduce(op),
        smallvec![t.operand(layout.clone())],
        caller,
    );
    // A tensor in its own right, no view of one: what is written to it must find its history.
    Tensor::with_layout(node, Layout::contiguous(&over.shape))
}

/// Undoes broadcasting: sums to `shape`, which broadcasts to this tensor's.
pub(crate) fn sum_to(t: &Tensor, shape: &[usize]) -> Tensor {
    if t.shape() == shape || t.error().is_some() {
        return t.clone();
    }
    let lead = t.dim().saturating_sub(shape.len());
    let which: Dims =
        (0..t.dim()).filter(|&d| d < lead || (shape[d - lead] == 1 && t.shape()[d] != 1)).collect();
    let summed = if which.is_empty() { t.clone() } else { t.sum_dim(&which[..], true) };
    summed.reshape(shape)
}

fn sum(t: &Tensor, over: Over, name: &'static str, caller: Caller) -> Tensor {
    // Sums of bools count.
    let t = &super::cast::to_dtype(t, if t.dtype() == Bool { I32 } else { t.dtype() }, caller);
    let out = crate::autograd::unrecorded(|| record(t, ReduceOp::Sum, &over, caller));
    let shape = Dims::from_slice(t.shape());
    link(&out, name, &[t], caller, || {
        Box::new(move |_, g| smallvec![Some(over.spread(g).expand(&shape[..]))])
    });
    out
}

fn mean(t: &Tensor, over: Over, name: &'static str, caller: Caller) -> Result<Tensor> {
    if !t.dtype().is_float() {
        let message = format!(
            "could not infer output dtype: input dtype must be a floating point type. Got: {}",
            t.dtype()
        );
        return Err(Error::at(caller, ErrorKind::DType, "mean", message));
    }
    let scale = 1.0 / over.count as f64;
    let out = crate::autograd::unrecorded(|| {
        let sum = record(t, ReduceOp::Sum, &over, caller);
        // Of nothing it is 0 * inf, which some drivers take for 0; NaN they cannot miss.
        if over.count == 0 { sum.add(f64::NAN) } else { sum.mul(scale) }
    });
    let shape = Dims::from_slice(t.shape());
    link(&out, name, &[t], caller, || {
        Box::new(move |_, g| smallvec![Some(over.spread(&g.mul(scale)).expand(&shape[..]))])
    });
    Ok(out)
}

fn prod(t: &Tensor, over: Over, caller: Caller) -> Tensor {
    let t = &super::cast::to_dtype(t, if t.dtype() == Bool { I32 } else { t.dtype() }, caller);
    let out = crate::autograd::unrecorded(|| record(t, ReduceOp::Prod, &over, caller));
    link(&out, "ProdBackward0", &[t], caller, || {
        let x = Saved::input(t);
        Box::new(move |f, g| {
            let x = x.unpack(f);
            smallvec![Some(over.spread(g).mul(product_of_others(&x, &over)))]
        })
    });
    out
}

/// For each element, the product of the others that are reduced with it: right also where some are zero, which
/// dividing the product by the element is not. By prefix and suffix products, in doubling steps.
fn product_of_others(x: &Tensor, over: &Over) -> Tensor {
    // The reduced dimensions become one, the last.
    let kept = (0..x.dim()).filter(|d| !over.dims.contains(d));
    let order: Dims = kept.chain(over.dims.iter().copied()).collect();
    let mut back: Dims = smallvec![0; x.dim()];
    for (i, &d) in order.iter().enumerate() {
        back[d] = i;
    }
    let moved = x.permute(&order[..]);
    let n = over.count;
    let outer = x.numel().checked_div(n).unwrap_or(0);
    let rows = moved.reshape([outer, n]);
    if n <= 1 || outer == 0 {
        return x.ones_like();
    }
    let one = rows.new_ones([outer, 1]);
    let mut before = super::cat::cat(&[&one, &rows.narrow(1, 0, n - 1)], 1);
    let mut after = super::cat::cat(&[&rows.narrow(1, 1, n - 1), &one], 1);
    let mut step = 1;
    while step < n {
        let pad = rows.new_ones([outer, step]);
        let rest = n - step;
        before = before.mul(super::cat::cat(&[&pad, &before.narrow(1, 0, rest)], 1));
        after = after.mul(super::cat::cat(&[&after.narrow(1, step as i64, rest), &pad], 1));
        step *= 2;
    }
    before.mul(&after).reshape(moved.shape()).permute(&back[..])
}

fn extremum(t: &Tensor, op: ReduceOp, over: Over, name: &'static str, caller: Caller) -> Result<Tensor> {
    over.not_empty(op.name(), caller)?;
    let out = crate::autograd::unrecorded(|| record(t, op, &over, caller));
    link(&out, name, &[t], caller, || {
        let (x, y) = (Saved::input(t), Saved::output(&out));
        Box::new(move |f: &Arc<GradFn>, g: &Tensor| -> Grads {
            // Shared evenly among those that are equal to the extremum.
            let (x, y) = (x.unpack(f), over.spread(&y.unpack(f)));
            let ties = x.eq(&y);
            let each = over.spread(g).div(ties.to(x.dtype()).sum_dim(&over.dims[..], true));
            smallvec![Some(WHERE.call(&[ties.into(), each.into(), 0.0.into()]))]
        })
    });
    Ok(out)
}

/// The first index of the extremum along `dim` (or of the flattened tensor): of NaNs, the first.
fn arg_extremum(
    t: &Tensor,
    op: ReduceOp,
    dim: Option<(i64, bool)>,
    name: &'static str,
    caller: Caller,
) -> Result<Tensor> {
    first_error([t])?;
    let given = t;
    let t = t.alias();
    let (t, dim, keepdim) = match dim {
        Some((dim, keepdim)) => (t, dim, keepdim),
        None => (t.reshape(-1), 0, false),
    };
    let over = Over::new(&t, dim, true, name, caller)?;
    over.not_empty(name, caller)?;
    let best = record(&t, op, &over, caller);
    let mut hit = t.eq(&best);
    if t.dtype().is_float() {
        hit = hit.logical_or(t.isnan());
    }
    let d = over.dims.first().copied();
    let n = d.map_or(1, |d| t.shape()[d]);
    let mut shape: Dims = smallvec![1; t.dim()];
    if let Some(d) = d {
        shape[d] = n;
    }
    let place =
        crate::tensor::options().device(t.device()).dtype(I32).arange(0, n as i64, 1).reshape(&shape[..]);
    let candidates = WHERE.call(&[hit.into(), place.into(), (n as i64).into()]);
    let over = Over::new(&t, dim, keepdim, name, caller)?;
    let out = record(&candidates, ReduceOp::Min, &over, caller);
    // No gradient flows through an index: this notes where it was lost.
    let none = crate::autograd::links(&out, name, std::iter::once(Some(given)), caller);
    debug_assert!(none.is_none());
    Ok(out)
}

impl Tensor {
    /// The sum of all elements (`torch.sum`). Bools are counted.
    #[track_caller]
    pub fn sum(&self) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(
            Over::all(self, "sum", caller).map(|over| sum(self, over, "SumBackward0", caller)),
        )
    }

    /// Sums over dimensions, which stay with size 1 if `keepdim`.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = ones([2, 3]);
    /// assert_eq!(x.sum_dim(1, false).to_vec::<f32>()?, [3.0, 3.0]);
    /// assert_eq!(x.sum_dim([0, -1], true).shape(), [1, 1]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn sum_dim(&self, dims: impl IntoDims, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let over = Over::new(self, dims, keepdim, "sum", caller);
        Tensor::from_result(over.map(|over| sum(self, over, "SumBackward1", caller)))
    }

    /// The mean of all elements (`torch.mean`). NaN of none.
    #[track_caller]
    pub fn mean(&self) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(
            Over::all(self, "mean", caller).and_then(|over| mean(self, over, "MeanBackward0", caller)),
        )
    }

    /// Means over dimensions.
    #[track_caller]
    pub fn mean_dim(&self, dims: impl IntoDims, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let over = Over::new(self, dims, keepdim, "mean", caller);
        Tensor::from_result(over.and_then(|over| mean(self, over, "MeanBackward1", caller)))
    }

    /// The product of all elements (`torch.prod`).
    #[track_caller]
    pub fn prod(&self) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(Over::all(self, "prod", caller).map(|over| prod(self, over, caller)))
    }

    /// Products over dimensions.
    #[track_caller]
    pub fn prod_dim(&self, dims: impl IntoDims, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let over = Over::new(self, dims, keepdim, "prod", caller);
        Tensor::from_result(over.map(|over| prod(self, over, caller)))
    }

    /// The largest elements over dimensions (`torch.amax`); over all if none are given. NaN if one is.
    /// Gradients are shared evenly between equal ones.
    #[track_caller]
    pub fn amax(&self, dims: impl IntoDims, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let over = Over::new(self, dims, keepdim, "amax", caller);
        Tensor::from_result(
            over.and_then(|over| extremum(self, ReduceOp::Max, over, "AmaxBackward0", caller)),
        )
    }

    /// The smallest elements over dimensions (`torch.amin`), as [`amax`](Tensor::amax).
    #[track_caller]
    pub fn amin(&self, dims: impl IntoDims, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let over = Over::new(self, dims, keepdim, "amin", caller);
        Tensor::from_result(
            over.and_then(|over| extremum(self, ReduceOp::Min, over, "AminBackward0", caller)),
        )
    }

    /// The largest element (`torch.max` without `dim`).
    #[track_caller]
    pub fn max(&self) -> Tensor {
        self.amax((), false)
    }

    /// The smallest element (`torch.min` without `dim`).
    #[track_caller]
    pub fn min(&self) -> Tensor {
        self.amin((), false)
    }

    /// Where the largest element is in the flattened tensor, as int32 (`torch.argmax`). Of equal ones, the first.
    #[track_caller]
    pub fn argmax(&self) -> Tensor {
        Tensor::from_result(arg_extremum(self, ReduceOp::Max, None, "argmax", Location::caller()))
    }

    /// Where the largest elements are along a dimension.
    #[track_caller]
    pub fn argmax_dim(&self, dim: i64, keepdim: bool) -> Tensor {
        Tensor::from_result(arg_extremum(
            self,
            ReduceOp::Max,
            Some((dim, keepdim)),
            "argmax",
            Location::caller(),
        ))
    }

    /// Where the smallest element is in the flattened tensor, as int32 (`torch.argmin`).
    #[track_caller]
    pub fn argmin(&self) -> Tensor {
        Tensor::from_result(arg_extremum(self, ReduceOp::Min, None, "argmin", Location::caller()))
    }

    /// Where the smallest elements are along a dimension.
    #[track_caller]
    pub fn argmin_dim(&self, dim: i64, keepdim: bool) -> Tensor {
        Tensor::from_result(arg_extremum(
            self,
            ReduceOp::Min,
            Some((dim, keepdim)),
            "argmin",
            Location::caller(),
        ))
    }

    /// The variance over dimensions (over all if none are given), divided by `n - correction`: 1 for the unbiased
    /// estimate, 0 for the population's (`torch.var`).
    #[track_caller]
    pub fn var(&self, dims: impl IntoDims, correction: f64, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let dims = dims.into_dims();
        Tensor::from_result(on_line_of(caller, || {
            let over = Over::new(self, &dims[..], keepdim, "var", caller)?;
            if !self.dtype().is_float() {
                let message = format!("only supports floating point dtypes, not {}", self.dtype());
                return Err(Error::at(caller, ErrorKind::DType, "var", message));
            }
            let squares = self.sub(self.mean_dim(&dims[..], true)).square().sum_dim(&dims[..], keepdim);
            Ok(squares.mul(1.0 / (over.count as f64 - correction).max(0.0)))
        }))
    }

    /// The standard deviation: the root of [`var`](Tensor::var) (`torch.std`).
    #[track_caller]
    pub fn std(&self, dims: impl IntoDims, correction: f64, keepdim: bool) -> Tensor {
        self.var(dims, correction, keepdim).sqrt()
    }

    /// `log(sum(exp(x)))` over dimensions, without overflow (`torch.logsumexp`).
    #[track_caller]
    pub fn logsumexp(&self, dims: impl IntoDims, keepdim: bool) -> Tensor {
        let caller = Location::caller();
        let dims = dims.into_dims();
        Tensor::from_result(on_line_of(caller, || {
            let over = Over::new(self, &dims[..], keepdim, "logsumexp", caller)?;
            let x = if self.dtype().is_float() { self.clone() } else { self.to(DType::F32) };
            if over.count == 0 {
                return Ok(x.exp().sum_dim(&over.dims[..], keepdim).log());
            }
            // The largest element is taken out; where it is infinite, nothing is, or inf - inf would come of it.
            let keeping = Over::new(&x, &dims[..], true, "logsumexp", caller)?;
            let top = record(&x.alias(), ReduceOp::Max, &keeping, caller);
            let finite = top.abs().lt(f64::INFINITY);
            let top = top.where_(&finite, 0.0);
            let sum = x.sub(&top).exp().sum_dim(&over.dims[..], true).log().add(&top);
            Ok(sum.reshape(&over.shape[..]))
        }))
    }
}
