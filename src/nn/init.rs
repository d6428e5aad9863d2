//! Initial values (`torch.nn.init`): each function writes into a tensor and gives it back.

use crate::autograd::unrecorded;
use crate::error::{Error, ErrorKind};
use crate::tensor::Tensor;

/// Draws from the uniform distribution over `[low, high)`.
#[track_caller]
pub fn uniform_(t: &Tensor, low: f64, high: f64) -> Tensor {
    unrecorded(|| t.copy_(&t.rand_like().mul(high - low).add(low)))
}

/// Draws from the normal distribution.
#[track_caller]
pub fn normal_(t: &Tensor, mean: f64, std: f64) -> Tensor {
    unrecorded(|| t.copy_(&t.randn_like().mul(std).add(mean)))
}

/// Sets all elements to one value.
#[track_caller]
pub fn constant_(t: &Tensor, value: f64) -> Tensor {
    unrecorded(|| t.fill_(value))
}

/// Sets all elements to 0.
#[track_caller]
pub fn zeros_(t: &Tensor) -> Tensor {
    constant_(t, 0.0)
}

/// Sets all elements to 1.
#[track_caller]
pub fn ones_(t: &Tensor) -> Tensor {
    constant_(t, 1.0)
}

/// Keeps the variance of what flows forward through a rectifier of negative slope `a`, uniformly drawn
/// ([He et al. 2015](https://arxiv.org/abs/1502.01852)). `sqrt(5)` is what PyTorch's layers take.
#[track_caller]
pub fn kaiming_uniform_(t: &Tensor, a: f64) -> Tensor {
    match fans(t) {
        Ok((fan_in, _)) => {
            let bound = 3f64.sqrt() * rectifier_gain(a) / (fan_in.max(1) as f64).sqrt();
            uniform_(t, -bound, bound)
        }
        Err(error) => Tensor::invalid(error),
    }
}

/// [`kaiming_uniform_`] from the normal distribution.
#[track_caller]
pub fn kaiming_normal_(t: &Tensor, a: f64) -> Tensor {
    match fans(t) {
        Ok((fan_in, _)) => normal_(t, 0.0, rectifier_gain(a) / (fan_in.max(1) as f64).sqrt()),
        Err(error) => Tensor::invalid(error),
    }
}

/// Keeps the variance of what flows both ways, uniformly drawn
/// ([Glorot and Bengio 2010](https://proceedings.mlr.press/v9/glorot10a.html)).
#[track_caller]
pub fn xavier_uniform_(t: &Tensor, gain: f64) -> Tensor {
    match fans(t) {
        Ok((fan_in, fan_out)) => {
            let bound = gain * (6.0 / (fan_in + fan_out).max(1) as f64).sqrt();
            uniform_(t, -bound, bound)
        }
        Err(error) => Tensor::invalid(error),
    }
}

/// [`xavier_uniform_`] from the normal distribution.
#[track_caller]
pub fn xavier_normal_(t: &Tensor, gain: f64) -> Tensor {
    match fans(t) {
        Ok((fan_in, fan_out)) => normal_(t, 0.0, gain * (2.0 / (fan_in + fan_out).max(1) as f64).sqrt()),
        Err(error) => Tensor::invalid(error),
    }
}

fn rectifier_gain(a: f64) -> f64 {
    (2.0 / (1.0 + a * a)).sqrt()
}

/// How many inputs each output has, and how many outputs each input.
#[track_caller]
fn fans(t: &Tensor) -> Result<(usize, usize), Error> {
    if let Some(error) = t.error() {
        return Err(error);
    }
    match t.shape() {
        [outputs, inputs, kernel @ ..] => {
            let field: usize = kernel.iter().product();
            Ok((inputs * field, outputs * field))
        }
        shape => {
            let message = format!(
                "fan in and fan out can't be computed for a tensor of shape {shape:?}: it has less than 2 dimensions"
            );
            Err(Error::new(ErrorKind::Shape, "init", message))
        }
    }
}
