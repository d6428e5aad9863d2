//! Writing into tensors. Values are immutable underneath: a write makes a new one, and the storage takes it.

use std::panic::Location;
use std::sync::atomic::Ordering;

use super::Tensor;
use crate::autograd::{Edge, inherit, is_grad_enabled, is_inference_mode_enabled};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::cast::to_dtype;
use crate::ops::elementwise::FILL;
use crate::ops::record::{Arg, Caller, first_error};
use crate::ops::views::write_strided;

macro_rules! in_place {
    ($($(#[$doc:meta])* $name:ident = $op:ident($($arg:ident),*);)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                #[track_caller]
                pub fn $name(&self, $($arg: impl Into<Arg>),*) -> Tensor {
                    let caller = Location::caller();
                    Tensor::from_result(self.write(self.$op($($arg.into()),*), stringify!($name), caller))
                }
            )*
        }
    };
}

in_place! {
    /// Adds in place, and gives this tensor.
    ///
    /// Like all in-place ops it writes through views, changes what autograd knows of them, and refuses to
    /// change a leaf that requires grad unless under [`no_grad`](crate::no_grad): then it changes nothing,
    /// and gives an invalid tensor.
    add_ = add(other);
    /// Subtracts in place.
    sub_ = sub(other);
    /// Multiplies in place.
    mul_ = mul(other);
    /// Divides in place.
    div_ = div(other);
    /// Raises to a power in place.
    pow_ = pow(exponent);
    /// Clamps in place.
    clamp_ = clamp(min, max);
    /// [`exp`](Tensor::exp) in place.
    exp_ = exp();
    /// [`sqrt`](Tensor::sqrt) in place.
    sqrt_ = sqrt();
    /// [`neg`](Tensor::neg) in place.
    neg_ = neg();
    /// [`abs`](Tensor::abs) in place.
    abs_ = abs();
    /// [`relu`](Tensor::relu) in place.
    relu_ = relu();
    /// [`tanh`](Tensor::tanh) in place.
    tanh_ = tanh();
    /// [`sigmoid`](Tensor::sigmoid) in place.
    sigmoid_ = sigmoid();
}

impl Tensor {
    /// Sets every element to `value`, a number or a 0-dim tensor (`Tensor.fill_`).
    #[track_caller]
    pub fn fill_(&self, value: impl Into<Arg>) -> Tensor {
        self.replace(value.into(), "fill_", Location::caller())
    }

    /// Sets every element to zero (`Tensor.zero_`).
    #[track_caller]
    pub fn zero_(&self) -> Tensor {
        self.replace(Arg::from(0), "zero_", Location::caller())
    }

    /// Copies the values of another tensor, broadcast and converted (`Tensor.copy_`); from another device, too.
    #[track_caller]
    pub fn copy_(&self, from: &Tensor) -> Tensor {
        let caller = Location::caller();
        self.replace(Arg::from(from.to(self.device())), "copy_", caller)
    }

    fn replace(&self, value: Arg, op: &'static str, caller: Caller) -> Tensor {
        Tensor::from_result(on_line_of(caller, || {
            first_error([self])?;
            let value = match value {
                Arg::Tensor(t) => Arg::Tensor(to_dtype(&t, self.dtype(), caller)),
                // Whatever the number's type, it becomes this tensor's.
                Arg::Scalar(s) if self.dtype().is_float() => Arg::Scalar(s),
                Arg::Scalar(s) => Arg::Tensor(self.like_scalar(s)),
            };
            let new = FILL.try_call(&[Arg::from(self), value], caller)?;
            self.write(new, op, caller)
        }))
    }

    fn like_scalar(&self, s: crate::graph::dtype::Scalar) -> Tensor {
        super::options().device(self.device()).dtype(self.dtype()).full((), s)
    }

    /// Lets this tensor's storage take `value`, an expression of this tensor, in the place of its elements.
    pub(crate) fn write(&self, value: Tensor, op: &'static str, caller: Caller) -> Result<Tensor> {
        first_error([self, &value])?;
        let fail = |kind, message: String| Err(Error::at(caller, kind, op, message));
        if value.shape() != self.shape() {
            let message = format!(
                "output with shape {:?} doesn't match the broadcast shape {:?}",
                self.shape(),
                value.shape()
            );
            return fail(ErrorKind::Shape, message);
        }
        if self.dtype() != value.dtype() {
            // A wider category does not fit; within one it is converted.
            if value.dtype().is_float() && !self.dtype().is_float() {
                let message = format!(
                    "result type {} can't be cast to the desired output type {}",
                    value.dtype(),
                    self.dtype()
                );
                return fail(ErrorKind::DType, message);
            }
        }
        if self.layout().may_overlap() {
            let message = "unsupported operation: more than one element of the written-to tensor refers to a \
                           single memory location. Please clone() the tensor before performing the operation.";
            return fail(ErrorKind::Argument, message.into());
        }
        let (base, made_in) = match &self.meta().view {
            Some(view) => (Some(view.base.clone()), if view.inference { "inference" } else { "no_grad" }),
            None => (None, ""),
        };
        if self.is_inference() && !is_inference_mode_enabled() {
            let message = "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a \
                           clone to get a normal tensor before doing inplace update.";
            return fail(ErrorKind::Autograd, message.into());
        }
        if is_grad_enabled() {
            let leaf = |t: &Tensor| t.is_leaf() && t.requires_grad();
            if leaf(self) {
                let message = "a leaf Variable that requires grad is being used in an in-place operation.";
                return fail(ErrorKind::Autograd, message.into());
            }
            if base.as_ref().is_some_and(leaf) {
                let message =
                    "a view of a leaf Variable that requires grad is being used in an in-place operation.";
                return fail(ErrorKind::Autograd, message.into());
            }
            // The base's history would pass this view by.
            if base.as_ref().is_some_and(Tensor::requires_grad) && !self.requires_grad() {
                let message = format!(
                    "A view was created in {made_in} mode and is being modified inplace with grad mode enabled. Given \
                     that this use case is ambiguous and error-prone, it is forbidden. You can clarify your code by moving \
                     both the view and the inplace either both inside the {made_in} block (if you don't want the inplace \
                     to be tracked) or both outside (if you want the inplace to be tracked)."
                );
                return fail(ErrorKind::Autograd, message);
            }
        }
        let value = to_dtype(&value, self.dtype(), caller);
        inherit(self, &value);
        if base.is_none() && self.owns_storage() {
            let new = value.whole(caller);
            self.take(&new);
            if is_grad_enabled() {
                let edge = new.gradient_edge();
                self.rebase(edge);
            }
            return Ok(self.clone());
        }
        // Through a view: the base becomes itself with these elements replaced.
        let whole = match &base {
            Some(base) => base.clone(),
            None => self.storage_tensor(),
        };
        let new = write_strided(&whole, &value, self.layout(), caller);
        self.take(&new);
        if is_grad_enabled()
            && let Some(base) = &base
        {
            base.rebase(new.gradient_edge());
        }
        Ok(self.clone())
    }

    /// The whole storage, without history.
    fn storage_tensor(&self) -> Tensor {
        Tensor::from_node(self.node())
    }

    fn take(&self, new: &Tensor) {
        let old = std::mem::replace(&mut *self.0.storage.node.lock(), new.node());
        drop(old); // outside the lock
        self.0.storage.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives this tensor the history of what was written to it. A gradient that was asked for is that of the new value.
    pub(super) fn rebase(&self, edge: Option<Edge>) {
        let mut meta = self.meta();
        if edge.is_none() && meta.grad_fn.is_none() {
            return;
        }
        if let (true, Some(old)) = (meta.retains_grad, &meta.grad_fn) {
            old.function.forget(&self.downgrade());
        }
        meta.retains_grad &= edge.is_some();
        if let (true, Some(edge)) = (meta.retains_grad, &edge) {
            edge.function.retain(edge.output, self.downgrade());
        }
        let old = std::mem::replace(&mut meta.grad_fn, edge);
        drop(meta);
        drop(old); // outside the lock
    }
}

/// The result of an assigning operator: this tensor, or an invalid one in its place.
macro_rules! assign {
    ($($trait:ident $method:ident $op:ident)*) => {$(
        impl<T: Into<Arg>> std::ops::$trait<T> for Tensor {
            /// In place, as PyTorch's: what shares storage sees it. Where it is not possible, this handle becomes
            /// invalid, and others keep what they had.
            #[track_caller]
            fn $method(&mut self, other: T) {
                *self = self.$op(other);
            }
        }
    )*};
}
assign! { AddAssign add_assign add_  SubAssign sub_assign sub_  MulAssign mul_assign mul_  DivAssign div_assign div_ }
