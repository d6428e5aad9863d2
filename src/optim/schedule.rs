//! Learning rates that change while training (`torch.optim.lr_scheduler`).

use std::f64::consts::PI;

use super::Optimizer;

/// A learning rate as a function of the number of steps taken.
pub trait Schedule {
    /// The rate after `step` steps of the scheduler, 0 being the start; `base` is what the optimizer was made with.
    fn lr(&self, base: f64, step: u64) -> f64;

    /// Starts this schedule on an optimizer, whose rates at this moment are the base.
    fn start(self, optimizer: &mut dyn Optimizer) -> Scheduler<Self>
    where
        Self: Sized,
    {
        let mut new = Scheduler { bases: optimizer.lrs(), schedule: self, step: 0 };
        new.set_step(0, optimizer);
        new
    }
}

/// A [`Schedule`] at work.
///
/// ```
/// # use wgrad::prelude::*;
/// # let w = ones([3]).requires_grad_(true);
/// let mut optimizer = SGD::new([&w], 0.1);
/// let mut scheduler = StepLR { step_size: 2, gamma: 0.5 }.start(&mut optimizer);
/// for epoch in 0..4 {
///     // … train an epoch …
///     scheduler.step(&mut optimizer);
/// }
/// assert_eq!(optimizer.lr(), 0.025);
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler<S> {
    bases: Vec<f64>,
    schedule: S,
    step: u64,
}

impl<S: Schedule> Scheduler<S> {
    /// One step on: after each epoch or each batch, as the schedule is meant.
    pub fn step(&mut self, optimizer: &mut dyn Optimizer) {
        self.set_step(self.step + 1, optimizer);
    }

    /// Goes to a step: to resume.
    pub fn set_step(&mut self, step: u64, optimizer: &mut dyn Optimizer) {
        self.step = step;
        let lrs: Vec<f64> = self.bases.iter().map(|&base| self.schedule.lr(base, step)).collect();
        optimizer.set_lrs(&lrs);
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }
}

/// Multiplied by `gamma` every `step_size` steps (`StepLR`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepLR {
    pub step_size: u64,
    pub gamma: f64,
}

impl Schedule for StepLR {
    fn lr(&self, base: f64, step: u64) -> f64 {
        base * self.gamma.powf((step / self.step_size.max(1)) as f64)
    }
}

/// Half a cosine from the base down to `eta_min` in `t_max` steps, and up again
/// ([Loshchilov and Hutter 2016](https://arxiv.org/abs/1608.03983), `CosineAnnealingLR`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CosineAnnealingLR {
    pub t_max: u64,
    pub eta_min: f64,
}

impl Schedule for CosineAnnealingLR {
    fn lr(&self, base: f64, step: u64) -> f64 {
        let phase = PI * step as f64 / self.t_max.max(1) as f64;
        self.eta_min + (base - self.eta_min) * (1.0 + phase.cos()) / 2.0
    }
}

/// The base times a factor that goes in a line from `start_factor` to `end_factor` in `total_iters` steps, and
/// stays there: a warm-up (`LinearLR`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LinearLR {
    pub start_factor: f64,
    pub end_factor: f64,
    pub total_iters: u64,
}

impl Schedule for LinearLR {
    fn lr(&self, base: f64, step: u64) -> f64 {
        let part = step.min(self.total_iters) as f64 / self.total_iters.max(1) as f64;
        base * (self.start_factor + (self.end_factor - self.start_factor) * part)
    }
}

/// Up to `max_lr` in the first `pct_start` of `total_steps`, then down to next to nothing, each along a cosine
/// ([Smith and Topin 2017](https://arxiv.org/abs/1708.07120), `OneCycleLR`, of which `OneCycleLR::new` has the
/// defaults; momentum is left alone).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OneCycleLR {
    pub max_lr: f64,
    pub total_steps: u64,
    pub pct_start: f64,
    pub div_factor: f64,
    pub final_div_factor: f64,
}

impl OneCycleLR {
    pub fn new(max_lr: f64, total_steps: u64) -> OneCycleLR {
        OneCycleLR { max_lr, total_steps, pct_start: 0.3, div_factor: 25.0, final_div_factor: 1e4 }
    }
}

impl Schedule for OneCycleLR {
    fn lr(&self, _: f64, step: u64) -> f64 {
        let start = self.max_lr / self.div_factor;
        let end = start / self.final_div_factor;
        let top = self.pct_start * self.total_steps as f64 - 1.0;
        let last = self.total_steps as f64 - 1.0;
        let step = (step as f64).min(last);
        let anneal = |from: f64, to: f64, part: f64| to + (from - to) / 2.0 * (1.0 + (PI * part).cos());
        if step <= top {
            anneal(start, self.max_lr, if top > 0.0 { step / top } else { 1.0 })
        } else {
            anneal(self.max_lr, end, (step - top) / (last - top))
        }
    }
}

/// The base times whatever the function says (`LambdaLR`).
pub struct LambdaLR<F>(pub F);

impl<F: Fn(u64) -> f64> Schedule for LambdaLR<F> {
    fn lr(&self, base: f64, step: u64) -> f64 {
        base * (self.0)(step)
    }
}
