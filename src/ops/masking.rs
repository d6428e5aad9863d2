//! Replacing elements that a mask or a diagonal picks. What a diagonal picks is counted, not stored: a triangle costs
//! no memory, and joins the kernel that makes or reads what it is cut from.

use std::panic::Location;

use smallvec::smallvec;

use super::elementwise::{LE, WHERE};
use super::record::{
    A, Arg, Call, Caller, Class, Domain, Elementwise, Gradient, Out, first_error, link, map,
};
use crate::autograd::Grads;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::{Bool, DType, I32, Scalar, U32};
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::{Node, NodeOp, Operand};
use crate::graph::program::MapOp;
use crate::tensor::Tensor;

/// `where` under another name: of a mask, what stands where it holds, and what stands elsewhere.
const fn choice(name: &'static str) -> MapOp {
    MapOp { name, ..WHERE.op }
}

const fn fill(grad_name: &'static str) -> Elementwise {
    Elementwise {
        op: choice("masked_fill"),
        class: Class::Any,
        out: Out::Same,
        grad_name,
        saves: A,
        gradient: Gradient::Formula(fill_grad),
        domain: Domain::Real,
    }
}

/// Operands: the mask, the value, the tensor.
static FILL_NUMBER: Elementwise = fill("MaskedFillBackward0");
static FILL_TENSOR: Elementwise = fill("MaskedFillBackward1");
static TRIL: MapOp = choice("tril");
static TRIU: MapOp = choice("triu");

fn fill_grad(c: &Call<'_>, g: &Tensor) -> Grads {
    let wanted = |i: usize, f: &dyn Fn() -> Tensor| c.needs(i).then(f);
    smallvec![
        None,
        wanted(1, &|| WHERE.call(&[c.arg(0), g.into(), 0.0.into()])),
        wanted(2, &|| FILL_NUMBER.call(&[c.arg(0), 0.0.into(), g.into()])),
    ]
}

impl Tensor {
    /// This tensor with `value`, a number or a 0-dim tensor, wherever `mask` holds.
    ///
    /// As [`torch.Tensor.masked_fill`](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.masked_fill.html): the
    /// mask is of bools, tensor and mask broadcast together, and the result keeps the tensor's dtype, to which `value`
    /// is converted. Gradients flow to the tensor where the mask does not hold, and to a 0-dim `value` where it does.
    ///
    /// # Errors
    /// A mask that is not of bools; a value with dimensions; a number that the dtype cannot hold; shapes that do not
    /// broadcast.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let scores = zeros([2, 2]);
    /// let hidden = ones([2, 2]).to(Bool).triu(1);
    /// assert_eq!(scores.masked_fill(&hidden, -1.0).to_vec::<f32>()?, [0.0, -1.0, 0.0, 0.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn masked_fill(&self, mask: &Tensor, value: impl Into<Arg>) -> Tensor {
        let (value, caller) = (value.into(), Location::caller());
        Tensor::from_result(on_line_of(caller, || filled(self, mask, value, "masked_fill", caller)))
    }

    /// [`masked_fill`](Tensor::masked_fill) in place; the mask must broadcast to this tensor's shape.
    #[track_caller]
    pub fn masked_fill_(&self, mask: &Tensor, value: impl Into<Arg>) -> Tensor {
        let (value, caller) = (value.into(), Location::caller());
        Tensor::from_result(on_line_of(caller, || {
            let new = filled(self, mask, value, "masked_fill_", caller)?;
            self.write(new, "masked_fill_", caller)
        }))
    }

    /// The lower triangle of a matrix or of each of a batch (`[…, rows, columns]`): elements above the diagonal become
    /// zero. The diagonal begins `diagonal` columns to the right of the first element, or, negative, so many rows below it.
    ///
    /// As [`torch.tril`](https://docs.pytorch.org/docs/stable/generated/torch.tril.html).
    ///
    /// # Errors
    /// A tensor of fewer than two dimensions.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// assert_eq!(ones([2, 3]).tril(0).to_vec::<f32>()?, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    /// assert_eq!(ones([2, 3]).tril(-1).to_vec::<f32>()?, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn tril(&self, diagonal: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || triangle(self, true, diagonal, "tril", caller)))
    }

    /// The upper triangle of a matrix or of each of a batch: elements below the diagonal become zero. See
    /// [`tril`](Tensor::tril) for `diagonal`.
    ///
    /// As [`torch.triu`](https://docs.pytorch.org/docs/stable/generated/torch.triu.html).
    ///
    /// # Errors
    /// A tensor of fewer than two dimensions.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// assert_eq!(ones([2, 3]).triu(1).to_vec::<f32>()?, [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn triu(&self, diagonal: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || triangle(self, false, diagonal, "triu", caller)))
    }

    /// [`tril`](Tensor::tril) in place.
    #[track_caller]
    pub fn tril_(&self, diagonal: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            self.write(triangle(self, true, diagonal, "tril_", caller)?, "tril_", caller)
        }))
    }

    /// [`triu`](Tensor::triu) in place.
    #[track_caller]
    pub fn triu_(&self, diagonal: i64) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            self.write(triangle(self, false, diagonal, "triu_", caller)?, "triu_", caller)
        }))
    }
}

fn filled(t: &Tensor, mask: &Tensor, value: Arg, op: &'static str, caller: Caller) -> Result<Tensor> {
    first_error([t, mask])?;
    let fail = |kind, message: String| Err(Error::at(caller, kind, op, message));
    if mask.dtype() != Bool {
        return fail(
            ErrorKind::DType,
            format!("only supports boolean masks, but got mask with dtype {}", mask.dtype()),
        );
    }
    match value {
        Arg::Tensor(value) => {
            first_error([&value])?;
            if value.dim() != 0 {
                let message = format!(
                    "only supports a 0-dimensional value tensor, but got tensor of shape {:?}",
                    value.shape()
                );
                return fail(ErrorKind::Shape, message);
            }
            let value = super::cast::to_dtype(&value, t.dtype(), caller);
            FILL_TENSOR.try_call(&[mask.into(), value.into(), t.into()], caller)
        }
        Arg::Scalar(value) => match held(value, t.dtype()) {
            Some(value) => FILL_NUMBER.try_call(&[mask.into(), value.into(), t.into()], caller),
            None => {
                let message = format!(
                    "value {} cannot be converted to type {} without overflow",
                    value.as_f64(),
                    t.dtype()
                );
                fail(ErrorKind::Argument, message)
            }
        },
    }
}

/// A number as one of `dtype`, in which fractions of integers are dropped.
fn held(value: Scalar, dtype: DType) -> Option<Scalar> {
    let v = value.as_f64();
    let whole = match value {
        Scalar::Float(_) => v.is_finite().then_some(v as i64),
        Scalar::Int(v) => Some(v),
        Scalar::Bool(v) => Some(i64::from(v)),
    };
    let within = |low: i64, high: i64| whole.filter(|v| (low..=high).contains(v)).map(Scalar::Int);
    match dtype {
        Bool => Some(Scalar::Bool(v != 0.0)),
        I32 => within(i64::from(i32::MIN), i64::from(i32::MAX)),
        // Negative numbers wrap, as PyTorch's.
        U32 => within(-i64::from(u32::MAX), i64::from(u32::MAX)),
        DType::F16 if v.is_finite() && v.abs() > 65504.0 => None,
        DType::F32 if v.is_finite() && !(v as f32).is_finite() => None,
        _ => Some(value),
    }
}

/// The elements on and below a diagonal, or on and above it; zeros elsewhere.
fn triangle(t: &Tensor, lower: bool, diagonal: i64, op: &'static str, caller: Caller) -> Result<Tensor> {
    first_error([t])?;
    let rank = t.dim();
    if rank < 2 {
        let message = format!("input tensor must have at least 2 dimensions, got {:?}", t.shape());
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    let [rows, columns] = [rank - 2, rank - 1].map(|d| t.shape()[d]);
    // Positions along one dimension, from `first` on. Whole numbers without a sign: rather than the one index
    // being compared with the other less something, the other gets more.
    let counted = |d: usize, first: usize| {
        let mut strides = Dims::from_elem(0, rank);
        strides[d] = 1;
        Operand::Index(Layout { shape: Dims::from_slice(t.shape()), strides, offset: first })
    };
    // Beyond the last row or column all diagonals are one.
    let right = usize::try_from(diagonal).unwrap_or(0).min(columns);
    let down = usize::try_from(diagonal.unsigned_abs()).unwrap_or(usize::MAX).min(rows);
    let row = counted(rank - 2, right);
    let column = counted(rank - 1, if diagonal < 0 { down } else { 0 });
    let inside = if lower { smallvec![column, row] } else { smallvec![row, column] };
    let compare = NodeOp::Map { op: &LE.op, operand: U32 };
    let inside = Tensor::from_node(Node::record(t.device(), Bool, t.shape(), compare, inside, caller));
    let (choice, name) = if lower { (&TRIL, "TrilBackward0") } else { (&TRIU, "TriuBackward0") };
    let args = [Arg::from(&inside), Arg::from(t), Arg::from(0)];
    let out = map(choice, t.dtype(), t.dtype(), t.device(), t.shape(), &args, caller);
    link(&out, name, &[t], caller, || {
        Box::new(move |_, g| smallvec![Some(Tensor::from_result(triangle(g, lower, diagonal, op, caller)))])
    });
    Ok(out)
}
