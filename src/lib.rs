//! wgrad
pub mod autograd;
pub mod backend;
pub mod debug;
pub mod device;
pub mod error;
pub mod graph;
pub mod ops;
pub mod tensor;
pub use autograd::{no_grad, enable_grad};
pub use error::{Error, ErrorKind, Result};
pub use tensor::*;
pub mod prelude {
    pub use crate::*;
    pub use crate::autograd::Backward;
    pub use crate::device::*;
    pub use crate::graph::dtype::{Bool, F32, F64, I32, U32, DType};
    pub use crate::ops::cat::{cat, stack};
}
