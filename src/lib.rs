//! PyTorch's autograd contract on any GPU.
//!
//! Tensors live on a device: a GPU adapter, through wgpu and compute shaders, or the CPU. Operations are recorded,
//! fused, and run when their values are needed; gradients accumulate in `.grad` of the leaves, as in PyTorch.
//!
//! ```
//! use wgrad::prelude::*;
//!
//! let x = tensor([1.0, 2.0, 3.0]).requires_grad_(true);
//! let y = (&x * &x).sum();
//! y.backward()?;
//! assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [2.0, 4.0, 6.0]);
//! # Ok::<(), wgrad::Error>(())
//! ```
//!
//! - Making tensors: [`tensor()`], [`zeros`], [`ones`], [`full`], [`eye`], [`arange`], [`linspace`], [`rand`](fn@rand), [`randn`],
//!   [`randint`]; with dtype, device and `requires_grad` through [`options`].
//! - What can be done with them: the methods of [`Tensor`], operators, [`cat`] and [`stack`].
//! - Gradients: [`Tensor::backward`], [`autograd::grad`], [`no_grad`].
//! - Models: [`nn`], [`optim`], [`data`], [`io`].
//! - Devices: [`device()`], [`cpu`], [`gpu`], [`default_device`]; `WGRAD_DEVICE` in the environment chooses.
//! - Looking inside: [`debug`], and `WGRAD_DEBUG=1` to `4` in the environment.
//!
//! Operations do not return `Result`s: given bad input they make an *invalid* tensor that carries the error, and so
//! does all that is made from it. It comes out as `Err` where values leave the graph; see [`Tensor`].

pub mod autograd;
pub mod backend;
pub mod data;
pub mod debug;
pub mod device;
pub mod error;
pub mod graph;
pub mod io;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod tensor;

pub use autograd::{enable_grad, no_grad};
pub use device::{Device, cpu, device, gpu, manual_seed};
pub use error::{Error, ErrorKind, Result};
pub use graph::dtype::{DType, Element, Scalar};
/// The element of [`F16`](DType::F16) tensors, from the crate `half`.
pub use half::f16;
pub use ops::attention::Attention;
pub use ops::cast::Target;
pub use ops::cat::{cat, stack};
pub use ops::conv::{Conv, Padding, Pair};
pub use ops::custom;
pub use ops::loss::{CrossEntropy, Reduction};
pub use ops::norm::BatchNorm;
pub use ops::pool::Pool;
pub use ops::record::Arg;
pub use tensor::{
    Index, IntoData, IntoDims, IntoIndex, IntoShape, Options, PrintOptions, Tensor, arange, default_device,
    empty, eye, full, linspace, ones, options, print_options, rand, randint, randn, set_default_device,
    set_print_options, tensor, zeros,
};

/// What most programs need: `use wgrad::prelude::*;`.
pub mod prelude {
    pub use crate::{custom, data, debug, io, module, optim, sequential};

    pub use crate::autograd::{self, Backward, GradFn, enable_grad, no_grad};
    pub use crate::data::{DataLoader, Dataset, TensorDataset};
    pub use crate::device::{Device, cpu, device, gpu, manual_seed};
    pub use crate::error::{Error, ErrorKind, Result};
    pub use crate::graph::dtype::{Bool, DType, F16, F32, F64, I32, U32};
    pub use crate::nn::{
        self, AdaptiveAvgPool2d, AvgPool2d, BatchNorm1d, BatchNorm2d, Conv2d, Dropout, Embedding, Flatten,
        GELU, LayerNorm, Linear, MaxPool2d, Module, Parameter, RMSNorm, ReLU, Sequential, SiLU, Sigmoid,
        Softmax, StateDict, Tanh, init,
    };
    pub use crate::ops::attention::Attention;
    pub use crate::ops::cat::{cat, stack};
    pub use crate::ops::conv::{Conv, Padding};
    pub use crate::ops::loss::{CrossEntropy, Reduction};
    pub use crate::ops::norm::BatchNorm;
    pub use crate::ops::pool::Pool;
    pub use crate::optim::{
        Adam, AdamW, CosineAnnealingLR, LinearLR, OneCycleLR, Optimizer, SGD, Schedule, Scheduler, StepLR,
        clip_grad_norm_, clip_grad_value_,
    };
    pub use crate::tensor::{
        Index, Options, Tensor, arange, default_device, empty, eye, full, linspace, ones, options, rand,
        randint, randn, set_default_device, tensor, zeros,
    };
}
