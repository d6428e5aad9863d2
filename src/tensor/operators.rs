//! `+ - * / - !` on tensors, references and numbers, on either side.

use super::Tensor;
use crate::ops::elementwise::{ADD, DIV, MUL, SUB};
use crate::ops::record::Arg;

macro_rules! binary {
    ($($trait:ident $method:ident $op:ident)*) => {$(
        impl<T: Into<Arg>> std::ops::$trait<T> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: T) -> Tensor { $op.call(&[self.into(), other.into()]) }
        }
        impl<T: Into<Arg>> std::ops::$trait<T> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: T) -> Tensor { $op.call(&[self.into(), other.into()]) }
        }
        // One float and one integer type, so that `2.0 * x` has a type before its literal has.
        binary!(@number $trait $method $op f64 i32);
    )*};
    (@number $trait:ident $method:ident $op:ident $($t:ty)*) => {$(
        impl std::ops::$trait<&Tensor> for $t {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: &Tensor) -> Tensor { $op.call(&[self.into(), other.into()]) }
        }
        impl std::ops::$trait<Tensor> for $t {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: Tensor) -> Tensor { $op.call(&[self.into(), other.into()]) }
        }
    )*};
}
binary! { Add add ADD  Sub sub SUB  Mul mul MUL  Div div DIV }

impl std::ops::Neg for &Tensor {
    type Output = Tensor;
    #[track_caller]
    fn neg(self) -> Tensor {
        Tensor::neg(self)
    }
}

impl std::ops::Neg for Tensor {
    type Output = Tensor;
    #[track_caller]
    fn neg(self) -> Tensor {
        Tensor::neg(&self)
    }
}

impl std::ops::Not for &Tensor {
    type Output = Tensor;
    #[track_caller]
    fn not(self) -> Tensor {
        self.logical_not()
    }
}
