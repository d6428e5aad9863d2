//! What all optimizers share: groups of parameters, their state, saving it, and the step itself.

use std::panic::Location;

use crate::autograd::unrecorded;
use crate::device::{Device, cpu};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::dtype::F64;
use crate::nn::StateDict;
use crate::tensor::{Tensor, options};

/// A way to change a parameter by its gradient: an optimizer's formula and its options.
///
/// Options that differ from step to step enter the formula as numbers, never as shapes or branches, so that
/// every step has the same structure and the executor plans it once.
pub trait Rule: Clone + Send + Sync {
    /// Writes the new value into `parameter`, and gives what the write gave: an invalid tensor if it was not
    /// possible. Gradients are off. `state` is this parameter's own.
    fn update(&self, parameter: &Tensor, gradient: &Tensor, state: &mut State) -> Tensor;

    /// All options by name, as numbers (a switch is 0 or 1): what is saved, and read back.
    fn options(&self) -> Vec<(&'static str, f64)>;

    /// Sets the option of this name; other names are ignored.
    fn set_option(&mut self, name: &str, value: f64);

    /// The learning rate.
    fn lr(&self) -> f64;
    fn set_lr(&mut self, lr: f64);

    /// What is wrong with the options, if anything.
    fn fault(&self) -> Option<String> {
        None
    }
}

/// What an optimizer remembers of one parameter: tensors of its shape by name, and how often it was updated.
#[derive(Clone, Default)]
pub struct State {
    /// Updates, this one included.
    pub step: u64,
    slots: Vec<(String, Tensor)>,
}

impl State {
    /// The remembered tensor of this name, made by `first` where there is none.
    pub fn slot(&mut self, name: &str, first: impl FnOnce() -> Tensor) -> Tensor {
        if let Some((_, t)) = self.slots.iter().find(|(n, _)| n == name) {
            return t.clone();
        }
        let made = first();
        self.slots.push((name.to_string(), made.clone()));
        made
    }

    /// The same, made of zeros of `like`'s shape. They are memory from the start, so that the first step is compiled to
    /// what the later ones are.
    #[track_caller]
    pub fn zeros(&mut self, name: &str, like: &Tensor) -> Tensor {
        let caller = Location::caller();
        let node = || like.device().zeros(like.dtype(), like.shape(), caller);
        self.slot(name, || Tensor::from_node(node()))
    }

    pub fn has(&self, name: &str) -> bool {
        self.slots.iter().any(|(n, _)| n == name)
    }
}

/// Parameters with options of their own.
#[derive(Clone)]
pub struct Group<R> {
    pub params: Vec<Tensor>,
    pub rule: R,
    states: Vec<State>,
}

/// What can be given as parameters: vectors, slices and arrays of tensors or of references to them.
pub trait Parameters {
    fn into_parameters(self) -> Vec<Tensor>;
}

impl<I: IntoIterator> Parameters for I
where
    I::Item: std::borrow::Borrow<Tensor>,
{
    fn into_parameters(self) -> Vec<Tensor> {
        self.into_iter().map(|t| std::borrow::Borrow::borrow(&t).clone()).collect()
    }
}

/// An optimizer: a [`Rule`] over groups of parameters. [`SGD`](super::SGD), [`Adam`](super::Adam) and
/// [`AdamW`](super::AdamW) are of this type.
#[derive(Clone)]
pub struct Optim<R> {
    groups: Vec<Group<R>>,
    caller: &'static Location<'static>,
}

impl<R: Rule> Optim<R> {
    #[track_caller]
    pub fn with_rule(params: impl Parameters, rule: R) -> Optim<R> {
        let mut new = Optim { groups: vec![], caller: Location::caller() };
        new.push(params.into_parameters(), rule);
        new
    }

    fn push(&mut self, params: Vec<Tensor>, rule: R) {
        let states = vec![State::default(); params.len()];
        self.groups.push(Group { params, rule, states });
    }

    /// Adds parameters whose options may differ: those of the first group, to be changed in what is returned.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// # let (body, head) = (Linear::new(2, 2), Linear::new(2, 2));
    /// let mut optimizer = Adam::new(body.parameters(), 1e-3);
    /// optimizer.add_param_group(head.parameters()).lr = 1e-2;
    /// ```
    pub fn add_param_group(&mut self, params: impl Parameters) -> &mut R {
        let rule = self.groups[0].rule.clone();
        self.push(params.into_parameters(), rule);
        let last = self.groups.len() - 1;
        &mut self.groups[last].rule
    }

    pub fn groups(&self) -> &[Group<R>] {
        &self.groups
    }

    pub fn groups_mut(&mut self) -> &mut [Group<R>] {
        &mut self.groups
    }

    /// Changes an option in all groups: what the builder functions do.
    pub fn configure(mut self, change: impl Fn(&mut R)) -> Optim<R> {
        self.groups.iter_mut().for_each(|g| change(&mut g.rule));
        self
    }

    /// The parameters of all groups in order.
    fn params(&self) -> impl Iterator<Item = &Tensor> {
        self.groups.iter().flat_map(|g| &g.params)
    }

    /// Problems that make a step impossible, before anything is changed.
    fn check(&self, caller: &'static Location<'static>) -> Result<()> {
        let fail = |kind, message: String| Err(Error::at(caller, kind, "step", message));
        if self.params().next().is_none() {
            return fail(ErrorKind::Argument, "optimizer got an empty parameter list".into());
        }
        for group in &self.groups {
            if let Some(fault) = group.rule.fault() {
                return fail(ErrorKind::Argument, fault);
            }
        }
        for (i, p) in self.params().enumerate() {
            if let Some(error) = p.error() {
                return Err(error);
            }
            if !p.is_leaf() {
                let at = self.caller;
                let message =
                    format!("can't optimize a non-leaf Tensor: parameter {i} of the optimizer made at {at}");
                return fail(ErrorKind::Autograd, message);
            }
            let Some(g) = p.grad() else { continue };
            if let Some(error) = g.error() {
                return Err(error);
            }
            if g.shape() != p.shape() || g.device() != p.device() {
                let message = format!(
                    "parameter {i} has shape {:?} on {}, its gradient {:?} on {}",
                    p.shape(),
                    p.device(),
                    g.shape(),
                    g.device()
                );
                return fail(ErrorKind::Shape, message);
            }
        }
        Ok(())
    }
}

/// What a training loop needs of an optimizer.
pub trait Optimizer {
    /// Changes every parameter that has a gradient. The device is set to work, and not waited for.
    ///
    /// # Errors
    /// If an option makes no sense, or a parameter or gradient is invalid: then nothing was changed. If the device
    /// could not do it.
    #[track_caller]
    fn step(&mut self) -> Result<()>;

    /// Forgets all gradients (`set_to_none=True`, PyTorch's default).
    fn zero_grad(&self) {
        self.zero_grad_with(true);
    }

    /// Forgets the gradients, or with `false` sets them to zero.
    fn zero_grad_with(&self, set_to_none: bool);

    /// The learning rate of each group.
    fn lrs(&self) -> Vec<f64>;

    /// Sets the learning rate of each group.
    fn set_lrs(&mut self, lrs: &[f64]);

    /// The learning rate of the first group.
    fn lr(&self) -> f64 {
        self.lrs().first().copied().unwrap_or(0.0)
    }

    /// Sets the learning rate of all groups.
    fn set_lr(&mut self, lr: f64) {
        let n = self.lrs().len();
        self.set_lrs(&vec![lr; n]);
    }

    /// All that the next step depends on: `state.3.exp_avg`, `state.3.step`, `param_groups.0.lr` and so on, with
    /// numbers as 0-dim float64 tensors on the CPU. Tensors are shared with the optimizer, as in PyTorch.
    fn state_dict(&self) -> StateDict;

    /// Takes over what [`state_dict`](Optimizer::state_dict) of an optimizer with the same parameters gave.
    ///
    /// # Errors
    /// If it is not of such an optimizer: nothing is changed.
    #[track_caller]
    fn load_state_dict(&mut self, saved: &StateDict) -> Result<()>;
}

impl<R: Rule> Optimizer for Optim<R> {
    #[track_caller]
    fn step(&mut self) -> Result<()> {
        let _span = crate::graph::timeline::phase("step");
        self.check(Location::caller())?;
        let mut devices: Vec<Device> = vec![];
        let updated: Result<()> = unrecorded(|| {
            for group in &mut self.groups {
                for (p, state) in group.params.iter().zip(&mut group.states) {
                    let Some(g) = p.grad() else { continue };
                    state.step += 1;
                    if let Some(error) = group.rule.update(p, &g.alias(), state).error() {
                        return Err(error);
                    }
                    if !devices.contains(p.device()) {
                        devices.push(p.device().clone());
                    }
                }
            }
            Ok(())
        });
        updated?;
        devices.iter().for_each(Device::flush);
        self.params().find_map(Tensor::error).map_or(Ok(()), Err)
    }

    fn zero_grad_with(&self, set_to_none: bool) {
        for p in self.params() {
            if set_to_none {
                p.set_grad(None);
            } else if let Some(g) = p.grad() {
                // Without its history, if it was made with `create_graph`.
                let g = g.alias();
                unrecorded(|| g.zero_());
                p.set_grad(Some(g));
            }
        }
    }

    fn lrs(&self) -> Vec<f64> {
        self.groups.iter().map(|g| g.rule.lr()).collect()
    }

    fn set_lrs(&mut self, lrs: &[f64]) {
        for (group, &lr) in self.groups.iter_mut().zip(lrs) {
            group.rule.set_lr(lr);
        }
    }

    fn state_dict(&self) -> StateDict {
        let number = |v: f64| options().device(cpu()).dtype(F64).tensor(v);
        let mut dict = StateDict::new();
        let states = self.groups.iter().flat_map(|g| &g.states).enumerate();
        for (i, state) in states.filter(|(_, s)| s.step > 0) {
            dict.insert(format!("state.{i}.step"), number(state.step as f64));
            for (name, t) in &state.slots {
                dict.insert(format!("state.{i}.{name}"), t.alias());
            }
        }
        for (i, group) in self.groups.iter().enumerate() {
            for (name, value) in group.rule.options() {
                dict.insert(format!("param_groups.{i}.{name}"), number(value));
            }
        }
        dict
    }

    #[track_caller]
    fn load_state_dict(&mut self, saved: &StateDict) -> Result<()> {
        let caller = Location::caller();
        let fail = |message: String| Err(Error::at(caller, ErrorKind::Argument, "load_state_dict", message));
        let mut groups = self.groups.clone();
        let mut first = 0;
        for (i, group) in groups.iter_mut().enumerate() {
            for (name, _) in group.rule.options() {
                let key = format!("param_groups.{i}.{name}");
                let Some(value) = saved.get(&key) else {
                    return fail(format!("{key} is missing: this is not the state of such an optimizer"));
                };
                group.rule.set_option(name, value.to(cpu()).to(F64).item()?);
            }
            for (j, (p, state)) in group.params.iter().zip(&mut group.states).enumerate() {
                *state = read_state(p, &format!("state.{}.", first + j), saved, caller)?;
            }
            first += group.params.len();
        }
        let beyond = saved.keys().find(|key| {
            let mut parts = key.split('.');
            let (kind, number) = (parts.next(), parts.next().and_then(|n| n.parse::<usize>().ok()));
            match (kind, number) {
                (Some("state"), Some(n)) => n >= first,
                (Some("param_groups"), Some(n)) => n >= groups.len(),
                _ => true,
            }
        });
        if let Some(key) = beyond {
            let (n, groups) = (first, groups.len());
            return fail(format!("{key} is beyond the {n} parameters in {groups} groups of this optimizer"));
        }
        self.groups = groups;
        Ok(())
    }
}

/// One parameter's state from the entries under `prefix`.
fn read_state(
    p: &Tensor,
    prefix: &str,
    saved: &StateDict,
    caller: &'static Location<'static>,
) -> Result<State> {
    let mut state = State::default();
    let own = saved.range(prefix.to_string()..).take_while(|(key, _)| key.starts_with(prefix));
    for (key, value) in own {
        let name = &key[prefix.len()..];
        if name == "step" {
            state.step = value.to(cpu()).to(F64).item::<f64>()? as u64;
            continue;
        }
        if value.shape() != p.shape() {
            let message = format!("{key} has shape {:?}, the parameter {:?}", value.shape(), p.shape());
            return Err(Error::at(caller, ErrorKind::Shape, "load_state_dict", message));
        }
        // Its own storage: the saved tensor may be another optimizer's.
        let value = value.alias().to(p.device()).to(p.dtype()).clone_data();
        value.check()?;
        state.slots.push((name.to_string(), value));
    }
    Ok(state)
}
