//! Matrix products in every form that `torch.matmul` has.

use std::panic::Location;

use smallvec::smallvec;

use super::matmul::Matmul;
use super::record::{Arg, Caller, Class, common_device, common_dtype, first_error, link};
use crate::autograd::Saved;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::device::check_dtype;
use crate::graph::dtype::DType;
use crate::graph::kernel::OpRef;
use crate::graph::layout::{Dims, Layout, broadcast};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::Tensor;

impl Tensor {
    /// The matrix product (`torch.matmul`): of two vectors their dot product, of a matrix and a vector their
    /// product, of matrices likewise, and of anything larger a batch of products whose leading dimensions
    /// broadcast.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let (a, b) = (ones([5, 2, 3]), ones([3, 4]));
    /// assert_eq!(a.matmul(&b).shape(), [5, 2, 4]);
    /// ```
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Tensor {
        Tensor::from_result(matmul(self, other, "matmul", Location::caller()))
    }

    /// The product of two matrices (`torch.mm`).
    #[track_caller]
    pub fn mm(&self, other: &Tensor) -> Tensor {
        self.ranked(other, 2, 2, "mm", Location::caller())
    }

    /// The product of a matrix and a vector (`torch.mv`).
    #[track_caller]
    pub fn mv(&self, other: &Tensor) -> Tensor {
        self.ranked(other, 2, 1, "mv", Location::caller())
    }

    /// The product of two vectors (`torch.dot`).
    #[track_caller]
    pub fn dot(&self, other: &Tensor) -> Tensor {
        self.ranked(other, 1, 1, "dot", Location::caller())
    }

    /// The products of two batches of matrices (`torch.bmm`).
    #[track_caller]
    pub fn bmm(&self, other: &Tensor) -> Tensor {
        self.ranked(other, 3, 3, "bmm", Location::caller())
    }

    fn ranked(&self, other: &Tensor, a: usize, b: usize, op: &'static str, caller: Caller) -> Tensor {
        Tensor::from_result(on_line_of(caller, || {
            first_error([self, other])?;
            let batched = a < 3 || self.shape().first() == other.shape().first();
            if self.dim() != a || other.dim() != b || !batched {
                let message = format!(
                    "expects tensors of {a} and {b} dimensions that fit, got {:?} and {:?}",
                    self.shape(),
                    other.shape()
                );
                return Err(Error::at(caller, ErrorKind::Shape, op, message));
            }
            matmul(self, other, op, caller)
        }))
    }

    /// `self @ weight.T + bias`: a fully connected layer, its weight `[out, in]` (`torch.nn.functional.linear`).
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let product = self.matmul(&weight.t());
        match bias {
            Some(bias) => product.add(bias),
            None => product,
        }
    }
}

fn matmul(a: &Tensor, b: &Tensor, op: &'static str, caller: Caller) -> Result<Tensor> {
    first_error([a, b])?;
    common_device(op, caller, [a, b])?;
    let fail = || {
        let message = format!("shapes {:?} and {:?} cannot be multiplied", a.shape(), b.shape());
        Error::at(caller, ErrorKind::Shape, op, message)
    };
    if a.dim() == 0 || b.dim() == 0 {
        let message =
            format!("both arguments need to be at least 1D, but they are {}D and {}D", a.dim(), b.dim());
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    let dtype = common_dtype(Class::Num, &[Arg::from(a), Arg::from(b)]);
    let (a, b) = (super::cast::to_dtype(a, dtype, caller), super::cast::to_dtype(b, dtype, caller));
    // Vectors are matrices of one row or column for as long as the product takes.
    let name = match (a.dim(), b.dim()) {
        (1, 1) => "DotBackward0",
        (2, 1) => "MvBackward0",
        (1 | 2, 2) => "MmBackward0",
        _ => "BmmBackward0",
    };
    let (row, column) = (a.dim() == 1, b.dim() == 1);
    let a = if row { a.unsqueeze(0) } else { a };
    let b = if column { b.unsqueeze(1) } else { b };
    let (m, k, n) = (a.size(-2), a.size(-1), b.size(-1));
    if b.size(-2) != k {
        return Err(fail());
    }
    // A batch times one matrix is one tall product.
    let folds = b.dim() == 2 && a.dim() > 2 && a.is_contiguous();
    let out = if folds {
        let rows = a.reshape([a.numel().checked_div(k).unwrap_or(0) as i64, k as i64]);
        let rows =
            if k == 0 { a.reshape([a.shape()[..a.dim() - 1].iter().product::<usize>(), 0]) } else { rows };
        let mut shape = Dims::from_slice(&a.shape()[..a.dim() - 1]);
        shape.push(n);
        product(&rows, &b, "MmBackward0", caller)?.reshape(&shape[..])
    } else {
        let batch = broadcast(&a.shape()[..a.dim() - 2], &b.shape()[..b.dim() - 2]).ok_or_else(fail)?;
        let full = |rows: usize, columns: usize| {
            let mut shape = batch.clone();
            shape.extend([rows, columns]);
            shape
        };
        let (a, b) = (broadcast_to(&a, &full(m, k)), broadcast_to(&b, &full(k, n)));
        product(&a, &b, name, caller)?
    };
    let out = if column { out.squeeze_dim(-1) } else { out };
    Ok(if row { out.squeeze_dim(if column { -1 } else { -2 }) } else { out })
}

fn broadcast_to(t: &Tensor, shape: &[usize]) -> Tensor {
    if t.shape() == shape { t.clone() } else { t.expand(shape) }
}

/// The product of `[batch…, m, k]` and `[batch…, k, n]`.
fn product(a: &Tensor, b: &Tensor, name: &'static str, caller: Caller) -> Result<Tensor> {
    let out = record(a, b, caller)?;
    link(&out, name, &[a, b], caller, || {
        // A gradient comes in its operand's own order: that of a weight's transpose, transposed back, is then
        // contiguous and needs no copy.
        let (turn_a, turn_b) = (is_transposed(a), is_transposed(b));
        // Each operand is needed for the other's gradient only.
        let saved_b = a.requires_grad().then(|| Saved::input(b));
        let saved_a = b.requires_grad().then(|| Saved::input(a));
        Box::new(move |f, g| {
            let da = saved_b.as_ref().filter(|_| f.needs(0));
            let db = saved_a.as_ref().filter(|_| f.needs(1));
            let turned = |t: &Tensor| t.transpose(-2, -1);
            smallvec![
                da.map(|b| {
                    let b = b.unpack(f);
                    if turn_a { turned(&b.matmul(&turned(g))) } else { g.matmul(&turned(&b)) }
                }),
                db.map(|a| {
                    let a = a.unpack(f);
                    if turn_b { turned(&turned(g).matmul(&a)) } else { turned(&a).matmul(g) }
                })
            ]
        })
    });
    Ok(out)
}

fn is_transposed(t: &Tensor) -> bool {
    !t.is_contiguous() && t.transpose(-2, -1).is_contiguous()
}

fn record(a: &Tensor, b: &Tensor, caller: Caller) -> Result<Tensor> {
    check_dtype(a.device(), a.dtype(), "matmul", caller)?;
    let mut shape = Dims::from_slice(&a.shape()[..a.dim() - 1]);
    shape.push(b.size(-1));
    let (m, n, k) = (a.size(-2), b.size(-1), a.size(-1));
    let batches = shape[..shape.len() - 2].iter().product();
    let splits = a.dtype().opmath() == DType::F32 && a.numel() > 0 && b.numel() > 0;
    let parts = if splits { (a.device().backend().caps().split_product)([batches, m, n, k]) } else { 1 };
    let (mut x, mut y) = (a.layout().clone(), b.layout().clone());
    if parts > 1 {
        // Each part of the sums is a product of a batch, and then they are added up.
        let split = |layout: &mut Layout, dim: usize| {
            let at = layout.rank() - 2;
            let stride = layout.strides[dim];
            layout.shape[dim] = k / parts;
            layout.shape.insert(at, parts);
            layout.strides.insert(at, k / parts * stride);
        };
        let (columns, rows) = (x.rank() - 1, y.rank() - 2);
        split(&mut x, columns);
        split(&mut y, rows);
        shape.insert(shape.len() - 2, parts);
    }
    let inputs = smallvec![a.operand(x), b.operand(y)];
    let op = NodeOp::Structured(OpRef(std::sync::Arc::new(Matmul)));
    let dtype = if parts > 1 { a.dtype().opmath() } else { a.dtype() };
    let out = Tensor::from_node(Node::record(a.device(), dtype, &shape, op, inputs, caller));
    Ok(if parts > 1 { on_line_of(caller, || out.sum_dim(-3, false).to(a.dtype())) } else { out })
}
