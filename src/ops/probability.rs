//! Softmax and its logarithm.

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

use super::cast::to_dtype;
use super::record::{Caller, first_error, link};
use super::softmax::{Softmax, SoftmaxBackward};
use crate::autograd::{Saved, is_grad_enabled};
use crate::error::Result;
use crate::graph::dtype::F32;
use crate::graph::kernel::{OpRef, StructuredOp};
use crate::graph::layout::Layout;
use crate::graph::node::{Node, NodeOp};
use crate::tensor::{Tensor, dims};

impl Tensor {
    /// `exp(x) / sum(exp(x))` along a dimension, without overflow (`torch.softmax`).
    #[track_caller]
    pub fn softmax(&self, dim: i64) -> Tensor {
        Tensor::from_result(softmax(self, dim, false, Location::caller()))
    }

    /// The logarithm of [`softmax`](Tensor::softmax), more accurate than the two in turn (`torch.log_softmax`).
    #[track_caller]
    pub fn log_softmax(&self, dim: i64) -> Tensor {
        Tensor::from_result(softmax(self, dim, true, Location::caller()))
    }
}

fn softmax(t: &Tensor, dim: i64, log: bool, caller: Caller) -> Result<Tensor> {
    first_error([t])?;
    let (op, name) =
        if log { ("log_softmax", "LogSoftmaxBackward0") } else { ("softmax", "SoftmaxBackward0") };
    let d = dims::dim(dim, t.dim(), op, caller)?;
    let t = if t.dtype().is_float() { t.clone() } else { to_dtype(t, F32, caller) };
    if t.dim() == 0 {
        return Ok(softmax(&t.reshape(1), 0, log, caller)?.reshape(()));
    }
    let rows = Rows::of(&t, d);
    let out = rows.record(&[&t], Arc::new(Softmax { log }), caller);
    link(&out, name, &[&t], caller, || {
        let y = Saved::output(&out);
        Box::new(move |f, g| {
            let y = y.unpack(f);
            smallvec![Some(if is_grad_enabled() {
                formula(&y, g, d as i64, log)
            } else {
                fused(&y, g, d, log, caller)
            })]
        })
    });
    Ok(out)
}

/// The gradient in tensor ops, for gradients of gradients.
fn formula(y: &Tensor, g: &Tensor, d: i64, log: bool) -> Tensor {
    if log {
        return g.sub(y.exp().mul(g.sum_dim(d, true)));
    }
    let gy = g.mul(y);
    gy.sub(y.mul(gy.sum_dim(d, true)))
}

/// The same in one kernel.
fn fused(y: &Tensor, g: &Tensor, d: usize, log: bool, caller: Caller) -> Tensor {
    Rows::of(y, d).record(&[g, y], Arc::new(SoftmaxBackward { log }), caller)
}

/// A tensor seen as `[outer, n, inner]`, n being the dimension in question.
struct Rows {
    shape: [usize; 3],
    original: crate::graph::layout::Dims,
}

impl Rows {
    fn of(t: &Tensor, d: usize) -> Rows {
        let shape = t.shape();
        let outer = shape[..d].iter().product();
        let inner = shape[d + 1..].iter().product();
        Rows { shape: [outer, shape[d], inner], original: shape.into() }
    }

    fn record(&self, inputs: &[&Tensor], op: Arc<dyn StructuredOp>, caller: Caller) -> Tensor {
        let first = inputs[0];
        let inputs = (inputs.iter())
            .map(|t| {
                let rows = t.alias().reshape(self.shape).contiguous();
                rows.operand(rows.layout().clone())
            })
            .collect();
        let op = NodeOp::Structured(OpRef(op));
        let node = Node::record(first.device(), first.dtype(), &self.shape, op, inputs, caller);
        // A tensor in its own right, no view of one: what is written to it must find its history.
        Tensor::with_layout(node, Layout::contiguous(&self.original))
    }
}
