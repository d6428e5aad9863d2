//! Modules in a row.

use super::Module;
use super::field::{Part, PartMut, Parts, PartsMut};
use crate::tensor::Tensor;

/// Modules of which each takes what the one before gives (`torch.nn.Sequential`). They are named by number.
///
/// ```
/// # use wgrad::prelude::*;
/// let model = sequential![Linear::new(4, 8), ReLU, Linear::new(8, 1)];
/// assert_eq!(model.forward(&ones([5, 4])).shape(), [5, 1]);
/// ```
#[derive(Default)]
pub struct Sequential(Vec<Box<dyn Module>>);

impl Sequential {
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// This row with one more at its end.
    #[expect(clippy::should_implement_trait, reason = "it appends; no sum is meant")]
    pub fn add(mut self, module: impl Module + 'static) -> Sequential {
        self.0.push(Box::new(module));
        self
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &dyn Module> {
        self.0.iter().map(|m| &**m)
    }
}

impl Module for Sequential {
    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.clone();
        for module in &self.0 {
            x = module.forward(&x);
        }
        x
    }

    fn visit<'a>(&'a self, parts: &mut Parts<'_, 'a>) {
        for (i, module) in self.0.iter().enumerate() {
            parts(&i.to_string(), Part::Module(&**module));
        }
    }

    fn visit_mut(&mut self, parts: &mut PartsMut<'_>) {
        for module in &mut self.0 {
            parts(PartMut::Module(&mut **module));
        }
    }
}

/// A [`Sequential`](crate::nn::Sequential) of the given modules.
#[macro_export]
macro_rules! sequential {
    ($($module:expr),* $(,)?) => {
        $crate::nn::Sequential::new()$(.add($module))*
    };
}
