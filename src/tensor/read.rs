//! Reading values back to the host.

use std::panic::Location;

use super::Tensor;
use crate::error::{Error, ErrorKind, Result};
use half::f16;

use crate::graph::dtype::{Bool, DType, Element, F16, F32, F64, I32, Scalar, U32};

/// Stored values as numbers that hold each exactly.
pub(crate) fn widen(dtype: DType, bytes: &[u8]) -> Vec<Scalar> {
    match dtype {
        Bool => bool::from_bytes(bytes).into_iter().map(Scalar::Bool).collect(),
        U32 => u32::from_bytes(bytes).into_iter().map(Scalar::from).collect(),
        I32 => i32::from_bytes(bytes).into_iter().map(Scalar::from).collect(),
        F16 => f16::from_bytes(bytes).into_iter().map(Scalar::from).collect(),
        F32 => f32::from_bytes(bytes).into_iter().map(Scalar::from).collect(),
        F64 => f64::from_bytes(bytes).into_iter().map(Scalar::from).collect(),
    }
}

impl Tensor {
    /// The stored bytes of a contiguous tensor's own elements.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let node = self.node();
        let buffer = node.device.force(&node)?;
        let size = self.dtype().size();
        let start = self.layout().offset * size;
        let range = start..start + self.numel() * size;
        node.device.download(&node, &buffer, range)
    }

    /// The values in row-major order (`Tensor.tolist`, flattened). Runs what they need, and waits for it.
    ///
    /// # Errors
    /// What made the tensor invalid or failed while it was computed; a `T` that is not the tensor's dtype.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.check_type::<T>("to_vec", Location::caller())?;
        Ok(T::from_bytes(&self.contiguous().bytes()?))
    }

    /// [`to_vec`](Tensor::to_vec) without blocking.
    #[track_caller]
    pub fn to_vec_async<T: Element>(&self) -> impl Future<Output = Result<Vec<T>>> + Send + 'static + use<T> {
        let caller = Location::caller();
        let (checked, whole) = (self.check_type::<T>("to_vec_async", caller), self.contiguous());
        async move {
            checked?;
            let node = whole.node();
            let buffer = node.device.force(&node)?;
            let size = whole.dtype().size();
            let start = whole.layout().offset * size;
            let range = start..start + whole.numel() * size;
            let bytes = node.device.download_async(node.clone(), buffer, range).await?;
            Ok(T::from_bytes(&bytes))
        }
    }

    /// The values with their shape as `f64`, whatever the dtype, in row-major order.
    ///
    /// # Errors
    /// As [`to_vec`](Tensor::to_vec).
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        Ok(self.dtype().numbers(&self.contiguous().bytes()?))
    }

    /// The value of a one-element tensor (`Tensor.item`).
    ///
    /// # Errors
    /// As [`to_vec`](Tensor::to_vec), and if there is not exactly one element.
    #[track_caller]
    pub fn item<T: Element>(&self) -> Result<T> {
        let caller = Location::caller();
        if let Some(error) = self.error() {
            return Err(error);
        }
        match self.to_vec::<T>()?[..] {
            [value] => Ok(value),
            _ => {
                let message =
                    format!("a Tensor with {} elements cannot be converted to Scalar", self.numel());
                Err(Error::at(caller, ErrorKind::Shape, "item", message))
            }
        }
    }

    fn check_type<T: Element>(&self, op: &'static str, caller: &'static Location<'static>) -> Result<()> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        if T::DTYPE == self.dtype() {
            return Ok(());
        }
        let message =
            format!("the tensor is {}, not {}: convert it with .to({:?})", self.dtype(), T::DTYPE, T::DTYPE);
        Err(Error::at(caller, ErrorKind::DType, op, message))
    }
}
