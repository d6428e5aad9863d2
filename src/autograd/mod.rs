//! Gradients: the graph of functions that a computation leaves behind, and the engine that walks it back.

mod accumulate;
mod anomaly;
mod backward;
mod checkpoint;
mod custom;
mod cut;
mod engine;
mod forms;
mod function;
mod functional;
mod gradcheck;
mod hooks;
mod mode;
mod saved;
mod why;

pub use anomaly::{
    Anomaly, AnomalyGuard, SetAnomaly, detect_anomaly, detect_anomaly_guard, detect_anomaly_with,
    is_anomaly_check_nan_enabled, is_anomaly_enabled, set_detect_anomaly,
};
pub use backward::{Backward, backward, grad, grad_allow_unused, grad_with};
pub use checkpoint::{checkpoint, checkpoint_sequential};
pub use custom::{Context, Function};
pub use cut::{Cut, CutKind};
pub(crate) use cut::{Links, cut, inherit, links};
pub use forms::{Inputs, Outputs, Vectors};
pub(crate) use function::{BackwardFn, Grads, Meta, OutputInfo, View};
pub use function::{Edge, GradFn};
pub use functional::{
    Functional, hessian, hessian_with, hvp, hvp_with, jacobian, jacobian_with, jvp, jvp_with, vhp, vhp_with,
    vjp, vjp_with,
};
pub(crate) use gradcheck::gradient_for;
pub use gradcheck::{Gradcheck, gradcheck, gradcheck_with, gradgradcheck, gradgradcheck_with};
pub use hooks::{Gradients, HookHandle, Replacement};
pub use mode::{
    GradModeGuard, enable_grad, enable_grad_guard, inference_mode, inference_mode_guard, is_grad_enabled,
    is_inference_mode_enabled, no_grad, no_grad_guard, set_grad_enabled,
};
pub(crate) use mode::{record_gradients, unrecorded};
pub(crate) use saved::Saved;
pub use saved::{SavedTensorsHooks, save_on_cpu, saved_tensors_hooks, saved_tensors_hooks_guard};
pub use why::{Reason, WhyNoGrad};
