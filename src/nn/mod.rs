//! Modules: layers with their parameters, and the models made of them (`torch.nn`).
//!
//! ```
//! # use wgrad::prelude::*;
//! module! {
//!     pub struct Mlp { hidden: Linear, drop: Dropout, out: Linear }
//!
//!     fn forward(&self, x: &Tensor) -> Tensor {
//!         let x = self.hidden.forward(x).relu();
//!         self.out.forward(&self.drop.forward(&x))
//!     }
//! }
//!
//! let model = Mlp { hidden: Linear::new(4, 8), drop: Dropout::new(0.5), out: Linear::new(8, 2) };
//! let names: Vec<String> = model.named_parameters().into_iter().map(|(name, _)| name).collect();
//! assert_eq!(names, ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]);
//! assert_eq!(model.forward(&ones([3, 4])).shape(), [3, 2]);
//! ```

mod conv;
mod field;
mod functional_call;
pub mod init;
mod layers;
mod module;
mod norm;
mod sequential;
mod vector;

pub use conv::{AdaptiveAvgPool2d, AvgPool2d, Conv2d, MaxPool2d};
pub use field::{Constant, Field, Part, PartMut, Parts, PartsMut, Training};
pub use functional_call::{functional_call, functional_call_with};
pub use layers::{Dropout, Embedding, Flatten, GELU, Identity, Linear, ReLU, SiLU, Sigmoid, Softmax, Tanh};
pub use module::{Module, StateDict};
pub use norm::{BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm};
pub use sequential::Sequential;
pub use vector::{parameters_to_vector, vector_to_parameters};

use crate::tensor::Tensor;

/// A leaf that a module trains (`torch.nn.Parameter`): a tensor, whose storage it shares, with gradients wanted.
pub struct Parameter;

impl Parameter {
    /// ```
    /// # use wgrad::prelude::*;
    /// let w = Parameter::new(&tensor([[1.0, 2.0]]).to(cpu()));
    /// assert_eq!(w.to_string(), "Parameter containing:\ntensor([[1., 2.]], requires_grad=True)");
    /// ```
    #[track_caller]
    #[expect(clippy::new_ret_no_self, reason = "a parameter is a tensor; the name is PyTorch's")]
    pub fn new(values: &Tensor) -> Tensor {
        let leaf = values.alias().requires_grad_(true);
        leaf.meta().parameter = true;
        leaf
    }
}

impl Tensor {
    /// Whether this is a module's [`Parameter`].
    pub fn is_parameter(&self) -> bool {
        self.meta().parameter
    }
}
