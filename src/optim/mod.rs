//! Optimizers and learning-rate schedules (`torch.optim`).
//!
//! ```
//! # use wgrad::prelude::*;
//! let w = ones([3]).requires_grad_(true);
//! let mut optimizer = SGD::new([&w], 0.1).momentum(0.9);
//! optimizer.zero_grad();
//! (&w * &w).sum().backward()?;
//! optimizer.step()?;
//! assert_eq!(w.to_vec::<f32>()?, [0.8; 3]);
//! # Ok::<(), wgrad::Error>(())
//! ```

mod clip;
mod optimizer;
mod rules;
mod schedule;

pub use clip::{
    ClipNorm, clip_grad_norm_, clip_grad_norm_with, clip_grad_value_, clip_grads_with_norm_, get_total_norm,
};
pub use optimizer::{Group, Optim, Optimizer, Parameters, Rule, State};
pub use rules::{Adam, AdamRule, AdamW, AdamWRule, SGD, SgdRule};
pub use schedule::{CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, Schedule, Scheduler, StepLR};
