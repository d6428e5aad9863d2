//! Views: other layouts of the same storage. No data moves; gradients follow.

use std::panic::Location;

use smallvec::{SmallVec, smallvec};

use super::elementwise::CLONE;
use super::parts;
use super::record::{Arg, Caller, first_error};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::layout::{Dims, Layout, numel};
use crate::graph::node::{Node, NodeOp, Operand};
use crate::tensor::{IntoDims, Tensor, dims};

impl Tensor {
    /// The same elements under another shape, one size of which may be -1. A view where the strides allow it,
    /// else a copy (`torch.reshape`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = arange(0, 6, 1).reshape([2, -1]);
    /// assert_eq!(x.shape(), [2, 3]);
    /// ```
    #[track_caller]
    pub fn reshape(&self, shape: impl IntoDims) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(self.try_reshape(shape, "reshape", caller, true))
    }

    /// [`reshape`](Tensor::reshape) that fails rather than copies (`Tensor.view`).
    #[track_caller]
    pub fn view(&self, shape: impl IntoDims) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(self.try_reshape(shape, "view", caller, false))
    }

    fn try_reshape(
        &self,
        given: impl IntoDims,
        op: &'static str,
        caller: Caller,
        copy: bool,
    ) -> Result<Tensor> {
        first_error([self])?;
        let shape = infer(&given.into_dims(), self.shape(), op, caller)?;
        if let Some(layout) = self.layout().reshape(&shape) {
            let old = Dims::from_slice(self.shape());
            let name = if op == "view" { "ViewBackward0" } else { "ReshapeAliasBackward0" };
            return Ok(self.make_view(name, layout, caller, move |g| g.reshape(&old[..])));
        }
        if !copy {
            let message = format!(
                "view size is not compatible with input tensor's size and stride (shape {:?}, strides {:?}, wanted \
                 {:?}): at least one dimension spans across two contiguous subspaces. Use .reshape(...) instead",
                self.shape(),
                self.strides(),
                &shape[..]
            );
            return Err(Error::at(caller, ErrorKind::Shape, op, message));
        }
        self.contiguous().try_reshape(&shape[..], op, caller, false)
    }

    /// The dimensions in another order (`torch.permute`).
    #[track_caller]
    pub fn permute(&self, order: impl IntoDims) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            let given = order.into_dims();
            let rank = self.dim();
            // Checks range and repetition; the order itself is kept.
            let sorted = dims::dims(&given[..], rank, "permute", caller)?;
            if sorted.len() != rank {
                let message = format!("{} dimensions are given for a tensor of {rank}", given.len());
                return Err(Error::at(caller, ErrorKind::Shape, "permute", message));
            }
            let order: Dims =
                given.iter().map(|&d| (if d < 0 { d + rank as i64 } else { d }) as usize).collect();
            let mut back: Dims = smallvec![0; rank];
            for (i, &d) in order.iter().enumerate() {
                back[d] = i;
            }
            let layout = self.layout().permute(&order);
            Ok(self.make_view("PermuteBackward0", layout, caller, move |g| g.permute(&back[..])))
        }))
    }

    /// Two dimensions exchanged (`torch.transpose`).
    #[track_caller]
    pub fn transpose(&self, dim0: i64, dim1: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(self.swap(dim0, dim1, "transpose", "TransposeBackward0", caller))
    }

    /// The transpose of a matrix; a vector or a 0-dim tensor as it is (`torch.t`).
    #[track_caller]
    pub fn t(&self) -> Tensor {
        let caller = Location::caller();
        if self.error().is_some() || self.dim() < 2 {
            return self.clone();
        }
        if self.dim() > 2 {
            let message = format!("expects a tensor with at most 2 dimensions, but self is {}D", self.dim());
            return Tensor::invalid(Error::at(caller, ErrorKind::Shape, "t", message));
        }
        Tensor::from_result(self.swap(0, 1, "t", "TBackward0", caller))
    }

    fn swap(&self, a: i64, b: i64, op: &'static str, name: &'static str, caller: Caller) -> Result<Tensor> {
        first_error([self])?;
        let (d0, d1) = (dims::dim(a, self.dim(), op, caller)?, dims::dim(b, self.dim(), op, caller)?);
        let mut order: Dims = (0..self.dim()).collect();
        if !order.is_empty() {
            order.swap(d0, d1);
        }
        let layout = self.layout().permute(&order);
        Ok(self.make_view(name, layout, caller, move |g| g.transpose(d0 as i64, d1 as i64)))
    }

    /// Without the dimensions of size 1 (`torch.squeeze`).
    #[track_caller]
    pub fn squeeze(&self) -> Tensor {
        let all: SmallVec<[usize; 5]> = (0..self.dim()).collect();
        self.squeeze_dim(&all[..])
    }

    /// Without those of the given dimensions that have size 1 (`torch.squeeze` with `dim`).
    #[track_caller]
    pub fn squeeze_dim(&self, which: impl IntoDims) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            let mut layout = self.layout().clone();
            for d in dims::dims(which, self.dim(), "squeeze", caller)?.into_iter().rev() {
                if layout.shape.get(d) == Some(&1) {
                    layout = layout.remove_dim(d);
                }
            }
            let old = Dims::from_slice(self.shape());
            Ok(self.make_view("SqueezeBackward0", layout, caller, move |g| g.reshape(&old[..])))
        }))
    }

    /// With a dimension of size 1 put in at `dim` (`torch.unsqueeze`).
    #[track_caller]
    pub fn unsqueeze(&self, dim: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            let d = dims::dim(dim, self.dim() + 1, "unsqueeze", caller)?;
            let layout = self.layout().insert_dim(d);
            Ok(self.make_view("UnsqueezeBackward0", layout, caller, move |g| g.squeeze_dim(d)))
        }))
    }

    /// Dimensions of size 1 repeated to the given sizes, without copying; -1 keeps a size (`Tensor.expand`).
    #[track_caller]
    pub fn expand(&self, sizes: impl IntoDims) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            let sizes = sizes.into_dims();
            let lead = sizes.len().checked_sub(self.dim());
            let fail = || {
                let message = format!("shape {:?} cannot be expanded to {:?}", self.shape(), &sizes[..]);
                Error::at(caller, ErrorKind::Shape, "expand", message)
            };
            let lead = lead.ok_or_else(fail)?;
            let mut shape = Dims::new();
            for (i, &n) in sizes.iter().enumerate() {
                shape.push(match usize::try_from(n) {
                    Ok(n) => n,
                    Err(_) if n == -1 && i >= lead => self.shape()[i - lead],
                    Err(_) => return Err(fail()),
                });
            }
            dims::shape(&shape[..], "expand", caller)?;
            let layout = self.layout().expand(&shape).ok_or_else(fail)?;
            let old = Dims::from_slice(self.shape());
            Ok(self.make_view("ExpandBackward0", layout, caller, move |g| super::reduce::sum_to(g, &old)))
        }))
    }

    /// [`expand`](Tensor::expand) to the shape of another tensor.
    #[track_caller]
    pub fn expand_as(&self, other: &Tensor) -> Tensor {
        self.expand(other.shape())
    }

    /// Dimensions `start` to `end` (inclusive) merged into one (`torch.flatten`).
    #[track_caller]
    pub fn flatten(&self, start: i64, end: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            let rank = self.dim();
            let (a, b) =
                (dims::dim(start, rank, "flatten", caller)?, dims::dim(end, rank, "flatten", caller)?);
            if a > b {
                let message = "flatten() has invalid args: start_dim cannot come after end_dim";
                return Err(Error::at(caller, ErrorKind::Argument, "flatten", message));
            }
            let shape = self.shape();
            let middle = shape.get(a..=b).map_or(1, numel);
            let merged: Dims = (shape.iter().take(a).copied())
                .chain([middle])
                .chain(shape.iter().skip(b + 1).copied())
                .collect();
            self.try_reshape(&merged[..], "reshape", caller, true)
        }))
    }

    /// Index `index` of dimension `dim`, which goes away (`torch.select`). Negative indices count from the end.
    #[track_caller]
    pub fn select(&self, dim: i64, index: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            if self.dim() == 0 {
                let message = "select() cannot be applied to a 0-dim tensor";
                return Err(Error::at(caller, ErrorKind::Index, "select", message));
            }
            let d = dims::dim(dim, self.dim(), "select", caller)?;
            let n = self.shape()[d] as i64;
            if !(-n..n).contains(&index) {
                let message = format!("index {index} is out of bounds for dimension {d} with size {n}");
                return Err(Error::at(caller, ErrorKind::Index, "select", message));
            }
            let i = if index < 0 { index + n } else { index } as usize;
            let layout = self.layout().slice(d, i, 1, 1).remove_dim(d);
            let old = Dims::from_slice(self.shape());
            Ok(self.make_view("SelectBackward0", layout, caller, move |g| {
                parts::slice_gradient(&g.unsqueeze(d as i64), &old, d, i, 1)
            }))
        }))
    }

    /// Elements `start`, `start + step`, … below `end` of a dimension. Bounds are clamped, and count from the
    /// end if negative, as in Python.
    #[track_caller]
    pub fn slice(&self, dim: i64, start: i64, end: i64, step: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            if self.dim() == 0 {
                let message = "slice() cannot be applied to a 0-dim tensor";
                return Err(Error::at(caller, ErrorKind::Index, "slice", message));
            }
            let d = dims::dim(dim, self.dim(), "slice", caller)?;
            if step <= 0 {
                let message = format!("slice step must be positive, not {step}");
                return Err(Error::at(caller, ErrorKind::Argument, "slice", message));
            }
            let n = self.shape()[d] as i64;
            let clamp = |i: i64| (if i < 0 { i.saturating_add(n) } else { i }).clamp(0, n);
            let (a, b) = (clamp(start), clamp(end));
            let len = (b - a).max(0).unsigned_abs().div_ceil(step.unsigned_abs());
            self.cut(d, a as usize, len as usize, step as usize, "SliceBackward0", caller)
        }))
    }

    /// `len` elements of a dimension from `start` on (`torch.narrow`).
    #[track_caller]
    pub fn narrow(&self, dim: i64, start: i64, len: usize) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            if self.dim() == 0 {
                let message = "narrow() cannot be applied to a 0-dim tensor";
                return Err(Error::at(caller, ErrorKind::Index, "narrow", message));
            }
            let d = dims::dim(dim, self.dim(), "narrow", caller)?;
            let n = self.shape()[d];
            let first = if start < 0 { start + n as i64 } else { start };
            match usize::try_from(first) {
                Ok(a) if a <= n && len <= n - a => self.cut(d, a, len, 1, "SliceBackward0", caller),
                _ => {
                    let message = format!("start ({start}) + length ({len}) exceeds dimension size ({n})");
                    Err(Error::at(caller, ErrorKind::Index, "narrow", message))
                }
            }
        }))
    }

    fn cut(
        &self,
        d: usize,
        a: usize,
        len: usize,
        step: usize,
        name: &'static str,
        caller: Caller,
    ) -> Result<Tensor> {
        let layout = self.layout().slice(d, a, len, step);
        let old = Dims::from_slice(self.shape());
        Ok(self.make_view(name, layout, caller, move |g| parts::slice_gradient(g, &old, d, a, step)))
    }

    /// Pieces of `size` along a dimension, the last one maybe shorter (`torch.split`). Views.
    #[track_caller]
    pub fn split(&self, size: usize, dim: i64) -> Vec<Tensor> {
        let n = self.size(dim);
        (0..n.max(1))
            .step_by(size.max(1))
            .map(|a| self.narrow(dim, a as i64, size.max(1).min(n - a.min(n))))
            .collect()
    }

    /// A copy in storage of its own (`torch.clone`). Gradients flow through.
    #[track_caller]
    pub fn clone_data(&self) -> Tensor {
        CLONE.call(&[self.into()])
    }

    /// This tensor, if its elements lie in row-major order without gaps; else a copy of which that is true.
    #[track_caller]
    pub fn contiguous(&self) -> Tensor {
        if self.error().is_some() || self.is_contiguous() { self.clone() } else { self.clone_data() }
    }

    /// This tensor as a node of its own that is read whole: the storage's node itself where that is it.
    pub(crate) fn whole(&self, caller: Caller) -> Tensor {
        if self.covers_storage() {
            return self.clone();
        }
        Tensor::from_result(CLONE.try_call(&[Arg::from(self)], caller))
    }
}

/// Sizes with one -1 worked out.
fn infer(given: &[i64], old: &[usize], op: &'static str, caller: Caller) -> Result<Dims> {
    let n = numel(old);
    let fail = || {
        let message = format!("shape {given:?} is invalid for input of shape {old:?} ({n} elements)");
        Error::at(caller, ErrorKind::Shape, op, message)
    };
    let open = given.iter().filter(|&&d| d == -1).count();
    let known: SmallVec<[i64; 5]> = given.iter().copied().filter(|&d| d != -1).collect();
    let known = numel(&dims::shape(&known[..], op, caller).map_err(|_| fail())?);
    let rest = match open {
        0 if known == n => 0,
        1 if known > 0 && n.is_multiple_of(known) => n / known,
        _ => return Err(fail()),
    };
    Ok(given.iter().map(|&d| if d == -1 { rest } else { d as usize }).collect())
}

/// `base` with the elements at `layout` (over its row-major elements) replaced by `value`. Differentiable in
/// both: what a write in place is to autograd.
pub(crate) fn write_strided(base: &Tensor, value: &Tensor, layout: &Layout, caller: Caller) -> Tensor {
    let whole = base.whole(caller);
    let inputs = smallvec![
        whole.operand(whole.layout().clone()),
        value.operand(value.layout().expand(&layout.shape).unwrap_or_else(|| value.layout().clone())),
    ];
    let op = NodeOp::Write(layout.clone());
    let node = Node::record(base.device(), base.dtype(), base.shape(), op, inputs, caller);
    let out = Tensor::from_node(node);
    let layout = layout.clone();
    super::record::link(&out, "CopySlices", &[base, value], caller, || {
        Box::new(move |function, g| {
            let outside = || {
                let zero = g.new_zeros(&layout.shape[..]);
                write_strided(g, &zero, &layout, caller)
            };
            smallvec![
                function.needs(0).then(outside),
                function.needs(1).then(|| read_strided(g, &layout, caller))
            ]
        })
    });
    out
}

/// The elements at `layout` over the row-major elements of `t`.
pub(crate) fn read_strided(t: &Tensor, layout: &Layout, caller: Caller) -> Tensor {
    let whole = t.whole(caller);
    let (shape, part) = (Dims::from_slice(t.shape()), layout.clone());
    whole.make_view("AsStridedBackward0", layout.clone(), caller, move |g| scatter_strided(g, &shape, &part))
}

pub(super) fn scatter_into_zeros(g: &Tensor, shape: &[usize], layout: &Layout) -> Tensor {
    write_strided(&g.new_zeros(shape), g, layout, Location::caller())
}

/// Zeros of `shape` with `g` added at the elements of `layout`: the gradient of reading through it.
pub(crate) fn scatter_strided(g: &Tensor, shape: &[usize], layout: &Layout) -> Tensor {
    if !layout.may_overlap() {
        return scatter_into_zeros(g, shape, layout);
    }
    // Elements that were read more than once collect what flows back to each of their readings.
    let caller = Location::caller();
    let inputs = smallvec![Operand::Index(layout.clone())];
    let op = NodeOp::Map { op: &crate::graph::program::CAST, operand: crate::graph::dtype::U32 };
    let node = Node::record(g.device(), crate::graph::dtype::I32, &layout.shape, op, inputs, caller);
    let index = Tensor::from_node(node).reshape(-1);
    g.new_zeros(numel(shape)).scatter_add(0, &index, &g.reshape(-1)).reshape(shape)
}
