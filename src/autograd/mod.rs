//! Gradients: the graph of functions that a computation leaves behind, and the engine that walks it back.

mod engine;
mod function;
mod gradcheck;
mod mode;
mod saved;

pub use engine::{Backward, grad, grad_with};
pub(crate) use function::{BackwardFn, Grads, Meta, OutputInfo, View};
pub use function::{Edge, GradFn};
pub use gradcheck::{Gradcheck, gradcheck, gradcheck_with, gradgradcheck, gradgradcheck_with};
pub use mode::{
    GradModeGuard, enable_grad, enable_grad_guard, is_grad_enabled, no_grad, no_grad_guard, set_grad_enabled,
};
pub(crate) use saved::Saved;
