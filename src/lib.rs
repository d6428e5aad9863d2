//! wgrad
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
pub use autograd::{no_grad, enable_grad};
pub use error::{Error, ErrorKind, Result};
pub use tensor::*;
pub mod prelude {
    pub use crate::*;
    pub use crate::autograd::Backward;
    pub use crate::device::*;
    pub use crate::graph::dtype::{Bool, F32, F64, I32, U32, DType};
    pub use crate::data::{DataLoader, Dataset, TensorDataset};
    pub use crate::nn::{
        Dropout, Embedding, Flatten, GELU, Linear, Module, Parameter, ReLU, Sequential, SiLU, Sigmoid, Softmax, StateDict, Tanh, init,
    };
    pub use crate::ops::cat::{cat, stack};
    pub use crate::optim::{
        Adam, AdamW, CosineAnnealingLR, LinearLR, OneCycleLR, Optimizer, SGD, Schedule, Scheduler, StepLR, clip_grad_norm_,
        clip_grad_value_,
    };
}
