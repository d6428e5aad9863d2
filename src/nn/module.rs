//! The trait of layers and models, and the macro that implements it for a struct.

use std::collections::BTreeMap;
use std::panic::Location;

use super::Parameter;
use super::field::{Part, PartMut, Parts, PartsMut};
use crate::autograd::unrecorded;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Tensor;

/// Tensors by name: the state of a model or an optimizer, as it is saved.
pub type StateDict = BTreeMap<String, Tensor>;

/// A layer, or a model made of layers (`torch.nn.Module`). [`module!`](crate::module) declares a struct as one.
pub trait Module: Send + Sync {
    /// The module's output. A module that is called otherwise need not have this; then the result is an invalid
    /// tensor, as PyTorch raises `NotImplementedError`.
    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        let _ = x;
        let message = format!("{} has no forward function of one tensor", self.name());
        Tensor::invalid(Error::new(ErrorKind::Argument, "forward", message))
    }

    /// Shows the module's own parts, in the order of their declaration, each with its name. All else here follows.
    fn visit<'a>(&'a self, parts: &mut Parts<'_, 'a>);

    /// The same parts, to be replaced.
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>);

    /// The type's name, without its path.
    fn name(&self) -> &'static str {
        let path = std::any::type_name::<Self>();
        let plain = path.split('<').next().unwrap_or(path);
        plain.rsplit("::").next().unwrap_or(plain)
    }

    /// All parameters, in the order of their declaration; a shared one once.
    fn parameters(&self) -> Vec<Tensor> {
        self.named_parameters().into_iter().map(|(_, p)| p).collect()
    }

    /// [`parameters`](Module::parameters) with their names, such as `encoder.0.weight`.
    fn named_parameters(&self) -> Vec<(String, Tensor)> {
        let mut found: Vec<(String, Tensor)> = vec![];
        tensors(self, &mut |name, t| {
            if t.is_parameter() && !found.iter().any(|(_, p)| p.is_same(t)) {
                found.push((name, t.clone()));
            }
        });
        found
    }

    /// All tensors that are part of the state, but not trained.
    fn named_buffers(&self) -> Vec<(String, Tensor)> {
        let mut found = vec![];
        tensors(self, &mut |name, t| {
            if !t.is_parameter() {
                found.push((name, t.clone()));
            }
        });
        found
    }

    /// Parameters and buffers by name. As in PyTorch they share storage with the model: what it learns later
    /// shows in them.
    fn state_dict(&self) -> StateDict {
        let mut found = StateDict::new();
        tensors(self, &mut |name, t| {
            found.insert(name, t.alias());
        });
        found
    }

    /// Copies saved values into the parameters and buffers of the same names, across devices and dtypes.
    ///
    /// # Errors
    /// If names are missing or not of this model, or shapes differ: all of them are said, and nothing is changed.
    #[track_caller]
    fn load_state_dict(&self, saved: &StateDict) -> Result<()> {
        let caller = Location::caller();
        let mut own: Vec<(String, &Tensor)> = vec![];
        tensors(self, &mut |name, t| own.push((name, t)));
        let missing: Vec<&str> = own.iter().map(|(n, _)| &**n).filter(|&n| !saved.contains_key(n)).collect();
        let unexpected: Vec<&str> =
            saved.keys().map(|n| &**n).filter(|&n| !own.iter().any(|(own, _)| own == n)).collect();
        let mut faults = vec![];
        for (what, names) in [("Missing", missing), ("Unexpected", unexpected)] {
            if !names.is_empty() {
                faults.push(format!("{what} key(s) in state_dict: {}", names.join(", ")));
            }
        }
        for (name, t) in &own {
            if let Some(value) = saved.get(name).filter(|v| v.shape() != t.shape()) {
                let (from, to) = (value.shape(), t.shape());
                faults.push(format!("size mismatch for {name}: {from:?} was saved, the model has {to:?}"));
            }
        }
        if !faults.is_empty() {
            let message =
                format!("Error(s) in loading state_dict for {}:\n  {}", self.name(), faults.join("\n  "));
            return Err(Error::at(caller, ErrorKind::Argument, "load_state_dict", message));
        }
        for (name, t) in &own {
            if let Some(error) = saved.get(name).and_then(|v| unrecorded(|| t.copy_(v)).error()) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Switches the module and all in it to training.
    fn train(&self) {
        set_training(self, true);
    }

    /// Switches the module and all in it to evaluation.
    fn eval(&self) {
        set_training(self, false);
    }

    /// Forgets the gradients of all parameters.
    fn zero_grad(&self) {
        for p in self.parameters() {
            p.set_grad(None);
        }
    }

    /// Says whether gradients of all parameters are wanted: `false` freezes the module.
    fn requires_grad_(&self, requires_grad: bool) {
        for p in self.parameters() {
            p.requires_grad_(requires_grad);
        }
    }

    /// The number of elements of all parameters.
    fn num_parameters(&self) -> usize {
        self.parameters().iter().map(Tensor::numel).sum()
    }

    /// The model on another device. Its parameters are new tensors there: make the optimizer afterwards.
    fn to(mut self, device: &Device) -> Self
    where
        Self: Sized,
    {
        // A shared parameter stays shared.
        let mut moved: Vec<(Tensor, Tensor)> = vec![];
        replace(&mut self, &mut |t| {
            if t.device() == device {
                return;
            }
            let known = moved.iter().find(|(old, _)| old.is_same(t)).map(|(_, new)| new.clone());
            let new = known.unwrap_or_else(|| {
                let new = t.alias().to(device);
                if !t.is_parameter() {
                    return new;
                }
                let new = Parameter::new(&new);
                if t.requires_grad() { new } else { new.requires_grad_(false) }
            });
            moved.push((std::mem::replace(t, new.clone()), new));
        });
        self
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        (**self).forward(x)
    }
    fn visit<'a>(&'a self, parts: &mut Parts<'_, 'a>) {
        (**self).visit(parts);
    }
    fn visit_mut(&mut self, parts: &mut PartsMut<'_>) {
        (**self).visit_mut(parts);
    }
    fn name(&self) -> &'static str {
        (**self).name()
    }
}

/// Every tensor in the module, with its full name.
pub(super) fn tensors<'a, M: Module + ?Sized>(module: &'a M, each: &mut dyn FnMut(String, &'a Tensor)) {
    fn walk<'a>(prefix: &str, name: &str, part: Part<'a>, each: &mut dyn FnMut(String, &'a Tensor)) {
        let full = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
        match part {
            Part::Tensor(t) => each(full, t),
            Part::Module(m) => m.visit(&mut |name, part| walk(&full, name, part, each)),
            Part::Training(_) => {}
        }
    }
    module.visit(&mut |name, part| walk("", name, part, each));
}

fn set_training<M: Module + ?Sized>(module: &M, on: bool) {
    fn turn(part: Part<'_>, on: bool) {
        match part {
            Part::Training(training) => training.set(on),
            Part::Module(m) => m.visit(&mut |_, part| turn(part, on)),
            Part::Tensor(_) => {}
        }
    }
    module.visit(&mut |_, part| turn(part, on));
}

/// Every tensor in the module, in the same order, to be replaced.
pub(super) fn replace(module: &mut dyn Module, each: &mut dyn FnMut(&mut Tensor)) {
    module.visit_mut(&mut |part| match part {
        PartMut::Tensor(t) => each(t),
        PartMut::Module(m) => replace(m, each),
    });
}

/// Declares a struct as a [`Module`](crate::nn::Module). Its fields are modules, parameters, buffers (plain
/// tensors) and constants ([`nn::Field`](crate::nn::Field)); after it come the trait's functions that the module
/// has of its own, usually `forward`.
///
/// ```
/// # use wgrad::prelude::*;
/// module! {
///     /// Adds what it computes to its input.
///     pub struct Residual<M: Module> { inner: M, scale: f64 }
///
///     fn forward(&self, x: &Tensor) -> Tensor {
///         x + self.inner.forward(x) * self.scale
///     }
/// }
/// let layer = Residual { inner: Linear::new(3, 3), scale: 0.5 };
/// assert_eq!(layer.parameters().len(), 2);
/// ```
#[macro_export]
macro_rules! module {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident $(<$($g:ident: $bound:path),+ $(,)?>)? {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty),* $(,)?
        }
        $($own:tt)*
    ) => {
        $(#[$meta])*
        $vis struct $name $(<$($g: $bound),+>)? {
            $($(#[$field_meta])* $field_vis $field: $type),*
        }

        impl $(<$($g: $bound),+>)? $crate::nn::Module for $name $(<$($g),+>)? {
            #[allow(unused_variables)]
            fn visit<'a>(&'a self, parts: &mut $crate::nn::Parts<'_, 'a>) {
                $($crate::nn::Field::visit(&self.$field, stringify!($field), parts);)*
            }
            #[allow(unused_variables)]
            fn visit_mut(&mut self, parts: &mut $crate::nn::PartsMut<'_>) {
                $($crate::nn::Field::visit_mut(&mut self.$field, parts);)*
            }
            $($own)*
        }
    };
}
