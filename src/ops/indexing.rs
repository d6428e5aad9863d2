//! Picking elements by index tensors, and adding to them.

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

use super::cast::to_dtype;
use super::gather::{Gather, ScatterAdd};
use super::record::{Caller, common_device, first_error, link};
use crate::autograd::Saved;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::{Bool, DType, I32, U32};
use crate::graph::kernel::OpRef;
use crate::graph::layout::Dims;
use crate::graph::node::{Node, NodeOp};
use crate::tensor::{Tensor, dims};

impl Tensor {
    /// `out[i][j][k] = self[index[i][j][k]][j][k]` for dimension 0, and so on (`torch.gather`). The index has as
    /// many dimensions as the tensor, none but `dim` larger than the tensor's; it is of an integer type.
    ///
    /// # Errors
    /// An index out of range is an error when the values are computed.
    #[track_caller]
    pub fn gather(&self, dim: i64, index: &Tensor) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            let d = check(self, index, dim, "gather", caller)?;
            let cut = cut_to(self, index, d, "gather", caller)?;
            let index = to_dtype(index, I32, caller);
            Ok(gather(&cut, d, &index, "GatherBackward0", caller))
        }))
    }

    /// The slices of `dim` at the given positions, a vector (`torch.index_select`).
    #[track_caller]
    pub fn index_select(&self, dim: i64, index: &Tensor) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self, index])?;
            if index.dim() > 1 || self.dim() == 0 {
                let message = format!(
                    "index is supposed to be a vector, and self to have dimensions; got {:?} and {:?}",
                    index.shape(),
                    self.shape()
                );
                return Err(Error::at(caller, ErrorKind::Shape, "index_select", message));
            }
            let d = dims::dim(dim, self.dim(), "index_select", caller)?;
            select(self, d, &index.reshape(-1), "index_select", "IndexSelectBackward0", caller)
        }))
    }

    /// This tensor with `src` added at the positions that `index` gives along `dim`: the reverse of
    /// [`gather`](Tensor::gather) (`torch.scatter_add`). Positions named more than once collect all, in a fixed
    /// order, so that the result is the same in every run.
    #[track_caller]
    pub fn scatter_add(&self, dim: i64, index: &Tensor, src: &Tensor) -> Tensor {
        let caller = Location::caller();
        let op = "scatter_add";
        Tensor::from_result(on_line_of(caller, || {
            let d = check(self, index, dim, op, caller)?;
            first_error([src])?;
            common_device(op, caller, [self, src])?;
            let src = to_dtype(src, self.dtype(), caller);
            let fits = src.dim() == index.dim() && (0..src.dim()).all(|i| index.shape()[i] <= src.shape()[i]);
            if !fits {
                let message = format!("index {:?} is larger than src {:?}", index.shape(), src.shape());
                return Err(Error::at(caller, ErrorKind::Shape, op, message));
            }
            let src = narrow_to(&src, index.shape(), None);
            let index = to_dtype(index, I32, caller);
            let added = scatter(&src, d, &index, self.size(d as i64), caller);
            // Where the index is smaller than the tensor in other dimensions, the rest stays.
            let place = narrow_to(self, added.shape(), None);
            if place.shape() == self.shape() {
                return Ok(self.add(&added));
            }
            let out = self.clone_data();
            narrow_to(&out, added.shape(), None).add_(&added);
            Ok(out)
        }))
    }

    /// Rows of a `[n, width]` table, one for each index: `[…]` gives `[…, width]`
    /// (`torch.nn.functional.embedding` with the arguments the other way round).
    #[track_caller]
    pub fn embedding(&self, index: &Tensor) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self, index])?;
            if self.dim() != 2 {
                let message = format!("'weight' must be 2-D, got {:?}", self.shape());
                return Err(Error::at(caller, ErrorKind::Shape, "embedding", message));
            }
            let rows = select(self, 0, &index.reshape(-1), "embedding", "EmbeddingBackward0", caller)?;
            let mut shape = Dims::from_slice(index.shape());
            shape.push(self.size(1));
            Ok(rows.reshape(&shape[..]))
        }))
    }

    /// For each index a row of zeros with a one at that place, int32 (`torch.nn.functional.one_hot`). Unlike
    /// PyTorch's, the number of classes must be given: finding it out would wait for the device.
    #[track_caller]
    pub fn one_hot(&self, classes: usize) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            integer(self, "one_hot", caller)?;
            let class = crate::tensor::options().device(self.device()).arange(0, classes as i64, 1);
            Ok(self.unsqueeze(-1).eq(&class).to(I32))
        }))
    }
}

fn integer(index: &Tensor, op: &'static str, caller: Caller) -> Result<()> {
    if matches!(index.dtype(), I32 | U32) {
        return Ok(());
    }
    let message = format!("expected an index of an integer type, got {}", index.dtype());
    Err(Error::at(caller, ErrorKind::DType, op, message))
}

fn check(t: &Tensor, index: &Tensor, dim: i64, op: &'static str, caller: Caller) -> Result<usize> {
    first_error([t, index])?;
    common_device(op, caller, [t, index])?;
    integer(index, op, caller)?;
    if t.dim() != index.dim() {
        let message = format!(
            "Index tensor must have the same number of dimensions as input tensor: {:?} and {:?}",
            index.shape(),
            t.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    dims::dim(dim, t.dim(), op, caller)
}

/// The part of `t` that an index of smaller sizes looks at.
fn cut_to(t: &Tensor, index: &Tensor, d: usize, op: &'static str, caller: Caller) -> Result<Tensor> {
    if (0..t.dim()).any(|i| i != d && index.shape()[i] > t.shape()[i]) {
        let message = format!(
            "Size does not match at dimension other than {d}: expected index {:?} to be no larger than self {:?}",
            index.shape(),
            t.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    Ok(narrow_to(t, index.shape(), Some(d)))
}

fn narrow_to(t: &Tensor, shape: &[usize], except: Option<usize>) -> Tensor {
    let mut out = t.clone();
    for (i, &n) in shape.iter().enumerate() {
        if Some(i) != except && out.shape()[i] != n {
            out = out.narrow(i as i64, 0, n);
        }
    }
    out
}

fn select(
    t: &Tensor,
    d: usize,
    index: &Tensor,
    op: &'static str,
    name: &'static str,
    caller: Caller,
) -> Result<Tensor> {
    common_device(op, caller, [t, index])?;
    integer(index, op, caller)?;
    // One position for a whole slice: the index repeated with stride 0.
    let mut one: Dims = smallvec![1; t.dim()];
    one[d] = index.numel();
    let mut shape = Dims::from_slice(t.shape());
    shape[d] = index.numel();
    let index = to_dtype(index, I32, caller).reshape(&one[..]).expand(&shape[..]);
    Ok(gather(t, d, &index, name, caller))
}

/// A 0-dim tensor counts as one of one element.
fn at_least_1d(t: &Tensor) -> Tensor {
    if t.dim() == 0 { t.reshape(1) } else { t.clone() }
}

fn gather(t: &Tensor, d: usize, index: &Tensor, name: &'static str, caller: Caller) -> Tensor {
    let (source, index) = (at_least_1d(t), at_least_1d(index).alias());
    let out = structured(
        &source,
        &index,
        index.shape(),
        source.dtype(),
        OpRef(Arc::new(Gather { dim: d })),
        caller,
    );
    let size = source.size(d as i64);
    link(&out, name, &[&source], caller, || {
        let index = Saved::value(&index);
        Box::new(move |f, g| {
            let index = index.unpack(f);
            let one = index.size(d as i64) == 1;
            smallvec![Some(if one {
                at_one(g, d, &index, size)
            } else {
                scatter(g, d, &index, size, caller)
            })]
        })
    });
    if t.dim() == 0 { out.reshape(()) } else { out }
}

/// [`scatter`] of one index in each row, which the gather has looked at: elementwise, so that it fuses.
fn at_one(g: &Tensor, d: usize, index: &Tensor, size: usize) -> Tensor {
    let mut along: Dims = smallvec![1; index.dim()];
    along[d] = size;
    let place = crate::tensor::options().device(g.device()).arange(0, size as i64, 1).reshape(&along[..]);
    g.where_(&index.eq(&place), 0.0)
}

/// Zeros with `size` places along `d`, and `g` added at those of `index`.
fn scatter(g: &Tensor, d: usize, index: &Tensor, size: usize, caller: Caller) -> Tensor {
    let (g, index) = (at_least_1d(g), at_least_1d(index).alias());
    let mut shape = Dims::from_slice(g.shape());
    shape[d] = size;
    let op = OpRef(Arc::new(ScatterAdd { dim: d, size }));
    let out = structured(&g, &index, &shape, g.dtype(), op, caller);
    link(&out, "ScatterAddBackward0", &[&g], caller, || {
        let index = Saved::value(&index);
        Box::new(move |f, gg| smallvec![Some(gather(gg, d, &index.unpack(f), "GatherBackward0", caller))])
    });
    out
}

fn structured(
    x: &Tensor,
    index: &Tensor,
    shape: &[usize],
    dtype: DType,
    op: OpRef,
    caller: Caller,
) -> Tensor {
    debug_assert!(dtype != Bool || x.dtype() == Bool);
    let inputs = smallvec![x.operand(x.layout().clone()), index.operand(index.layout().clone())];
    Tensor::from_node(Node::record(x.device(), dtype, shape, NodeOp::Structured(op), inputs, caller))
}
