//! What the fields of a module may be, and how the walk over a model sees them.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Module;
use crate::tensor::Tensor;

/// One part of a module, as [`Module::visit`] shows it.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// A parameter, or a buffer: a tensor that is saved but not trained.
    Tensor(&'a Tensor),
    Module(&'a dyn Module),
    Training(&'a Training),
}

/// A part that may be replaced.
pub enum PartMut<'a> {
    Tensor(&'a mut Tensor),
    Module(&'a mut dyn Module),
}

/// Takes the parts of a module, each with its name.
pub type Parts<'f, 'a> = dyn FnMut(&str, Part<'a>) + 'f;
/// Takes the parts of a module to change them.
pub type PartsMut<'f> = dyn FnMut(PartMut<'_>) + 'f;

/// What can be a field of a [`module!`](crate::module): modules, tensors, [`Training`], options and vectors of
/// these, and plain values, which the walk over a model passes by.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a field of a module",
    label = "neither a module, nor a tensor, nor a plain number or string",
    note = "if it holds no parameters, wrap it: `nn::Constant<{Self}>`; if it does, make it a `module!`"
)]
pub trait Field {
    fn visit<'a>(&'a self, name: &str, parts: &mut Parts<'_, 'a>);
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>);
}

impl<M: Module> Field for M {
    fn visit<'a>(&'a self, name: &str, parts: &mut Parts<'_, 'a>) {
        parts(name, Part::Module(self));
    }
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>) {
        parts(PartMut::Module(self));
    }
}

impl Field for Tensor {
    fn visit<'a>(&'a self, name: &str, parts: &mut Parts<'_, 'a>) {
        parts(name, Part::Tensor(self));
    }
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>) {
        parts(PartMut::Tensor(self));
    }
}

impl<T: Field> Field for Option<T> {
    fn visit<'a>(&'a self, name: &str, parts: &mut Parts<'_, 'a>) {
        if let Some(field) = self {
            field.visit(name, parts);
        }
    }
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>) {
        if let Some(field) = self {
            field.visit_mut(parts);
        }
    }
}

/// The items are named by number (`torch.nn.ModuleList`).
impl<T: Field> Field for Vec<T> {
    fn visit<'a>(&'a self, name: &str, parts: &mut Parts<'_, 'a>) {
        for (i, field) in self.iter().enumerate() {
            field.visit(&format!("{name}.{i}"), parts);
        }
    }
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>) {
        for field in self {
            field.visit_mut(parts);
        }
    }
}

macro_rules! plain {
    ($($t:ty)*) => {$(
        impl Field for $t {
            fn visit<'a>(&'a self, _: &str, _: &mut Parts<'_, 'a>) {}
            fn visit_mut(&mut self, _: &mut PartsMut<'_>) {}
        }
    )*};
}
plain! { bool u8 i8 u16 i16 u32 i32 u64 i64 usize isize f32 f64 char String &'static str }

/// A field of whatever type that is no part of the model's state.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Constant<T>(pub T);

impl<T> Field for Constant<T> {
    fn visit<'a>(&'a self, _: &str, _: &mut Parts<'_, 'a>) {}
    fn visit_mut(&mut self, _: &mut PartsMut<'_>) {}
}

impl<T> Deref for Constant<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Whether a module trains or is evaluated: a field of those that behave differently in the two.
/// [`Module::train`] and [`Module::eval`] turn it.
pub struct Training(AtomicBool);

impl Training {
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }
}

/// On, as in PyTorch.
impl Default for Training {
    fn default() -> Training {
        Training(AtomicBool::new(true))
    }
}

impl Clone for Training {
    fn clone(&self) -> Training {
        Training(AtomicBool::new(self.is_on()))
    }
}

impl fmt::Debug for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Training({})", self.is_on())
    }
}

impl Field for Training {
    fn visit<'a>(&'a self, name: &str, parts: &mut Parts<'_, 'a>) {
        parts(name, Part::Training(self));
    }
    fn visit_mut(&mut self, _: &mut PartsMut<'_>) {}
}
