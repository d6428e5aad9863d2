//! Keeping gradients small (`torch.nn.utils.clip_grad_*`).

use super::Parameters;
use crate::autograd::unrecorded;
use crate::ops::cat::stack;
use crate::tensor::{Tensor, zeros};

/// Scales all gradients together so that their norm of order `norm_type` (2 is usual, infinity the largest
/// element) is `max_norm` at most, and gives the norm they had. Nothing is waited for.
#[track_caller]
pub fn clip_grad_norm_(params: impl Parameters, max_norm: f64, norm_type: f64) -> Tensor {
    let grads = grads(params);
    let Some(first) = grads.first() else { return zeros(()) };
    unrecorded(|| {
        let norms: Vec<Tensor> = grads.iter().map(|g| norm(g, norm_type).to(first.device())).collect();
        let total = norm(&stack(&norms.iter().collect::<Vec<_>>(), 0), norm_type);
        let scale = (&total + 1e-6).reciprocal().mul(max_norm).minimum(1.0);
        for g in &grads {
            g.mul_(scale.to(g.device()));
        }
        total
    })
}

/// Clamps every element of the gradients to `[-limit, limit]`.
#[track_caller]
pub fn clip_grad_value_(params: impl Parameters, limit: f64) {
    unrecorded(|| {
        for g in grads(params) {
            g.clamp_(-limit, limit);
        }
    });
}

fn grads(params: impl Parameters) -> Vec<Tensor> {
    params.into_parameters().iter().filter_map(Tensor::grad).map(|g| g.alias()).collect()
}

fn norm(t: &Tensor, order: f64) -> Tensor {
    if order == f64::INFINITY {
        t.abs().max()
    } else if order == 2.0 {
        t.square().sum().sqrt()
    } else if order == 1.0 {
        t.abs().sum()
    } else {
        t.abs().pow(order).sum().pow(1.0 / order)
    }
}
