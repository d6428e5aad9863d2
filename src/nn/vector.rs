//! Parameters as one vector (`torch.nn.utils.convert_parameters`).

use std::panic::Location;

use crate::autograd::unrecorded;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::cat::cat;
use crate::optim::Parameters;
use crate::tensor::Tensor;

/// All parameters' elements, one after the other, as one vector (`torch.nn.utils.parameters_to_vector`). Gradients flow
/// back to the parameters.
///
/// Gives an invalid tensor if there are none, or if they are on several devices.
///
/// ```
/// # use wgrad::prelude::*;
/// let model = Linear::new(3, 2);
/// let vector = nn::parameters_to_vector(model.parameters());
/// assert_eq!(vector.shape(), [8]);
/// nn::vector_to_parameters(&(vector * 0.0), model.parameters())?;
/// assert_eq!(model.weight.abs().max().item::<f32>()?, 0.0);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn parameters_to_vector(parameters: impl Parameters) -> Tensor {
    let caller = Location::caller();
    on_line_of(caller, || {
        let flat: Vec<Tensor> = parameters.into_parameters().iter().map(|p| p.reshape(-1)).collect();
        cat(&flat.iter().collect::<Vec<_>>(), 0)
    })
}

/// Writes a vector's elements into parameters, as [`parameters_to_vector`] lays them out
/// (`torch.nn.utils.vector_to_parameters`). They are copied: the parameters do not share storage with the vector, as
/// PyTorch's do.
///
/// # Errors
/// If the vector is invalid, is no vector, or does not have as many elements as the parameters; PyTorch takes one that
/// has more. Then nothing is changed.
///
/// ```
/// # use wgrad::prelude::*;
/// let model = Linear::new(1, 1);
/// nn::vector_to_parameters(&tensor([2.0, 3.0]), model.parameters())?;
/// assert_eq!(model.forward(&ones([1, 1])).item::<f32>()?, 5.0);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn vector_to_parameters(vector: &Tensor, parameters: impl Parameters) -> Result<()> {
    let caller = Location::caller();
    let parameters = parameters.into_parameters();
    if let Some(error) = [vector].into_iter().chain(&parameters).find_map(Tensor::error) {
        return Err(error);
    }
    let n: usize = parameters.iter().map(Tensor::numel).sum();
    if vector.shape() != [n] {
        let message = format!(
            "expected a vector of the parameters' {n} elements, and its shape is {:?}",
            vector.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, "vector_to_parameters", message));
    }
    on_line_of(caller, || {
        unrecorded(|| {
            let mut at = 0;
            for p in &parameters {
                let part = vector.narrow(0, at as i64, p.numel()).reshape(p.shape());
                if let Some(error) = p.copy_(&part).error() {
                    return Err(error);
                }
                at += p.numel();
            }
            Ok(())
        })
    })
}
