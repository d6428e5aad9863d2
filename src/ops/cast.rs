//! Conversion between dtypes and devices.

use std::panic::Location;

use smallvec::smallvec;

use super::record::{Arg, Caller, link, map};
use crate::graph::device::{Device, check_dtype};
use crate::graph::dtype::DType;
use crate::graph::node::Node;
use crate::graph::program::CAST;
use crate::tensor::Tensor;

/// Where or what [`Tensor::to`] converts to.
pub enum Target {
    DType(DType),
    Device(Device),
}

impl From<DType> for Target {
    fn from(dtype: DType) -> Target {
        Target::DType(dtype)
    }
}
impl From<Device> for Target {
    fn from(device: Device) -> Target {
        Target::Device(device)
    }
}
impl From<&Device> for Target {
    fn from(device: &Device) -> Target {
        Target::Device(device.clone())
    }
}

impl Tensor {
    /// This tensor in another dtype or on another device; the tensor itself where nothing changes
    /// (`Tensor.to`). Gradients flow through.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = tensor([1.5, -1.5]).to(I32);
    /// assert_eq!(x.to(cpu()).to_vec::<i32>()?, [1, -1]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn to(&self, target: impl Into<Target>) -> Tensor {
        let caller = Location::caller();
        if self.error().is_some() {
            return self.clone();
        }
        match target.into() {
            Target::DType(dtype) => to_dtype(self, dtype, caller),
            Target::Device(device) => to_device(self, &device, caller),
        }
    }
}

pub(crate) fn to_dtype(t: &Tensor, dtype: DType, caller: Caller) -> Tensor {
    let from = t.dtype();
    if from == dtype {
        return t.clone();
    }
    if let Err(error) = check_dtype(t.device(), dtype, "to", caller) {
        return Tensor::invalid(error);
    }
    let out = map(&CAST, from, dtype, t.device(), t.shape(), &[Arg::from(t)], caller);
    link(&out, "ToCopyBackward0", &[t], caller, || Box::new(move |_, g| smallvec![Some(g.to(from))]));
    out
}

fn to_device(t: &Tensor, device: &Device, caller: Caller) -> Tensor {
    let from = t.device();
    if from == device {
        return t.clone();
    }
    let whole = t.contiguous();
    let moved = check_dtype(device, t.dtype(), "to", caller)
        .and_then(|()| whole.bytes())
        .and_then(|bytes| device.upload(&bytes, caller, "to"));
    let node = match moved {
        Ok(buffer) => Node::ready(device, t.dtype(), t.shape(), buffer, caller),
        Err(error) => return Tensor::invalid(error),
    };
    let out = Tensor::from_node(node);
    let from = from.clone();
    link(&out, "ToCopyBackward0", &[t], caller, || Box::new(move |_, g| smallvec![Some(g.to(&from))]));
    out
}
