//! Joining tensors.

use std::panic::Location;

use smallvec::smallvec;

use super::record::{Arg, Class, common_device, common_dtype, first_error, link};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::{Node, NodeOp};
use crate::ops::record::Caller;
use crate::tensor::{Tensor, dims};

/// Tensors one after the other along `dim`; other sizes must agree (`torch.cat`).
///
/// ```
/// # use wgrad::prelude::*;
/// let x = cat(&[&tensor([1, 2]), &tensor([3])], 0);
/// assert_eq!(x.to_vec::<i32>()?, [1, 2, 3]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn cat(tensors: &[&Tensor], dim: i64) -> Tensor {
    let caller = Location::caller();
    Tensor::from_result(try_cat(tensors, dim, caller))
}

/// Tensors of one shape side by side along a new dimension (`torch.stack`).
#[track_caller]
pub fn stack(tensors: &[&Tensor], dim: i64) -> Tensor {
    let caller = Location::caller();
    Tensor::from_result(on_line_of(caller, || {
        first_error(tensors.iter().copied())?;
        let first = *tensors.first().ok_or_else(|| nothing("stack", caller))?;
        if let Some(other) = tensors.iter().find(|t| t.shape() != first.shape()) {
            let message = format!(
                "stack expects each tensor to be equal size, but got {:?} and {:?}",
                first.shape(),
                other.shape()
            );
            return Err(Error::at(caller, ErrorKind::Shape, "stack", message));
        }
        let d = dims::dim(dim, first.dim() + 1, "stack", caller)? as i64;
        let parts: Vec<Tensor> = tensors.iter().map(|t| t.unsqueeze(d)).collect();
        try_cat(&parts.iter().collect::<Vec<_>>(), d, caller)
    }))
}

fn nothing(op: &'static str, caller: Caller) -> Error {
    Error::at(caller, ErrorKind::Argument, op, "expected a non-empty list of Tensors")
}

fn try_cat(tensors: &[&Tensor], dim: i64, caller: Caller) -> Result<Tensor> {
    let op = "cat";
    first_error(tensors.iter().copied())?;
    let device = common_device(op, caller, tensors.iter().copied())?.ok_or_else(|| nothing(op, caller))?;
    let args: Vec<Arg> = tensors.iter().map(|&t| t.into()).collect();
    let dtype = common_dtype(Class::Any, &args);
    // A 1-D empty tensor may stand beside anything, as in PyTorch.
    let parts: Vec<Tensor> = (tensors.iter())
        .filter(|t| t.shape() != [0])
        .map(|t| super::cast::to_dtype(t, dtype, caller))
        .collect();
    let Some(first) = parts.first() else { return Ok(tensors[0].clone()) };
    if first.dim() == 0 {
        let message = "zero-dimensional tensor cannot be concatenated";
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    let d = dims::dim(dim, first.dim(), op, caller)?;
    let mut shape = Dims::from_slice(first.shape());
    shape[d] = 0;
    for part in &parts {
        let fits =
            part.dim() == shape.len() && (0..shape.len()).all(|i| i == d || part.shape()[i] == shape[i]);
        if !fits {
            let message = format!(
                "Sizes of tensors must match except in dimension {d}: expected {:?}, got {:?}",
                first.shape(),
                part.shape()
            );
            return Err(Error::at(caller, ErrorKind::Shape, op, message));
        }
        shape[d] += part.shape()[d];
    }
    // Each part is written to its place, all in one buffer.
    let mut node = Node::record(&device, dtype, &shape, NodeOp::Empty, smallvec![], caller);
    let whole = Layout::contiguous(&shape);
    let mut spans = vec![];
    let mut at = 0;
    for part in &parts {
        let n = part.shape()[d];
        let place = whole.slice(d, at, n, 1);
        let inputs = smallvec![
            crate::graph::node::Operand::Node(node, whole.clone()),
            part.operand(part.layout().clone())
        ];
        node = Node::record(&device, dtype, &shape, NodeOp::Write(place), inputs, caller);
        spans.push((at as i64, n));
        at += n;
    }
    let out = Tensor::from_node(node);
    let inputs: Vec<&Tensor> = parts.iter().collect();
    link(&out, "CatBackward0", &inputs, caller, || {
        Box::new(move |function, g| {
            let piece =
                |(i, &(at, n)): (usize, &(i64, usize))| function.needs(i).then(|| g.narrow(d as i64, at, n));
            spans.iter().enumerate().map(piece).collect()
        })
    });
    Ok(out)
}
