//! The formulas of the optimizers, as PyTorch computes them.

use super::optimizer::{Optim, Parameters, Rule, State};
use crate::tensor::Tensor;

/// The names of remembered tensors, PyTorch's.
const MOMENTUM: &str = "momentum_buffer";
const AVERAGE: &str = "exp_avg";
const SQUARES: &str = "exp_avg_sq";
const MAX_SQUARES: &str = "max_exp_avg_sq";

/// An option's value as a number, for saving.
trait Setting: Copy {
    fn number(self) -> f64;
    fn from_number(value: f64) -> Self;
}
impl Setting for f64 {
    fn number(self) -> f64 {
        self
    }
    fn from_number(value: f64) -> f64 {
        value
    }
}
impl Setting for bool {
    fn number(self) -> f64 {
        f64::from(u8::from(self))
    }
    fn from_number(value: f64) -> bool {
        value != 0.0
    }
}

/// Declares an optimizer: its options with PyTorch's defaults, `new`, a builder function for each option, and
/// the rule made of `update` and `fault`.
macro_rules! rule {
    (
        $(#[$doc:meta])*
        $optimizer:ident $rule:ident {
            $($(#[$option_doc:meta])* $option:ident: $type:ident = $default:expr;)*
        }
        $($functions:item)*
    ) => {
        $(#[$doc])*
        pub type $optimizer = Optim<$rule>;

        #[doc = concat!("The options of [`", stringify!($optimizer), "`].")]
        #[derive(Clone, Copy, PartialEq, Debug)]
        pub struct $rule {
            /// The learning rate.
            pub lr: f64,
            $($(#[$option_doc])* pub $option: $type,)*
        }

        impl Optim<$rule> {
            #[track_caller]
            pub fn new(params: impl Parameters, lr: f64) -> Self {
                Optim::with_rule(params, $rule { lr, $($option: $default),* })
            }
            $(
                $(#[$option_doc])*
                pub fn $option(self, $option: $type) -> Self {
                    self.configure(|rule| rule.$option = $option)
                }
            )*
        }

        impl Rule for $rule {
            $($functions)*

            fn options(&self) -> Vec<(&'static str, f64)> {
                vec![("lr", self.lr), $((stringify!($option), self.$option.number())),*]
            }
            fn set_option(&mut self, name: &str, value: f64) {
                match name {
                    "lr" => self.lr = value,
                    $(stringify!($option) => self.$option = <$type>::from_number(value),)*
                    _ => {}
                }
            }
            fn lr(&self) -> f64 {
                self.lr
            }
            fn set_lr(&mut self, lr: f64) {
                self.lr = lr;
            }
        }
    };
}

rule! {
    /// Gradient descent, with momentum if asked (`torch.optim.SGD`).
    SGD SgdRule {
        /// How much of the previous step is kept.
        momentum: f64 = 0.0;
        /// How much of the gradient is kept out of the momentum.
        dampening: f64 = 0.0;
        /// This part of the parameter is added to its gradient.
        weight_decay: f64 = 0.0;
        /// Nesterov's momentum ([Sutskever et al. 2013](https://proceedings.mlr.press/v28/sutskever13.html)).
        nesterov: bool = false;
        /// Climb instead of descend.
        maximize: bool = false;
    }

    fn update(&self, p: &Tensor, g: &Tensor, state: &mut State) -> Tensor {
        let mut g = decayed(p, g, self.maximize, self.weight_decay);
        if self.momentum != 0.0 {
            // The first gradient enters undampened.
            let dampening = if state.has(MOMENTUM) { self.dampening } else { 0.0 };
            let buffer = state.zeros(MOMENTUM, p);
            buffer.mul_(self.momentum).add_(&g * (1.0 - dampening));
            g = if self.nesterov { &g + &buffer * self.momentum } else { buffer };
        }
        p.sub_(&g * self.lr)
    }

    fn fault(&self) -> Option<String> {
        if self.nesterov && (self.momentum <= 0.0 || self.dampening != 0.0) {
            return Some("Nesterov momentum requires a momentum and zero dampening".into());
        }
        negative(&[("learning rate", self.lr), ("momentum", self.momentum), ("weight_decay", self.weight_decay)])
    }
}

/// The gradient with its sign as asked, and with the decay that acts as a gradient does.
fn decayed(p: &Tensor, g: &Tensor, maximize: bool, weight_decay: f64) -> Tensor {
    let g = if maximize { g.neg() } else { g.clone() };
    if weight_decay == 0.0 { g } else { g + p * weight_decay }
}

fn negative(options: &[(&str, f64)]) -> Option<String> {
    options.iter().find(|(_, v)| v.is_nan() || *v < 0.0).map(|(name, v)| format!("Invalid {name} value: {v}"))
}

rule! {
    /// Adam ([Kingma and Ba 2014](https://arxiv.org/abs/1412.6980), `torch.optim.Adam`).
    Adam AdamRule {
        /// How much of the gradients' running mean is kept.
        beta1: f64 = 0.9;
        /// How much of the squared gradients' running mean is kept.
        beta2: f64 = 0.999;
        /// Added to what is divided by.
        eps: f64 = 1e-8;
        /// This part of the parameter is added to its gradient.
        weight_decay: f64 = 0.0;
        /// Divide by the largest mean so far ([Reddi et al. 2018](https://openreview.net/forum?id=ryQu7f-RZ)).
        amsgrad: bool = false;
        /// Climb instead of descend.
        maximize: bool = false;
    }

    fn update(&self, p: &Tensor, g: &Tensor, state: &mut State) -> Tensor {
        self.apply(p, &decayed(p, g, self.maximize, self.weight_decay), state)
    }

    fn fault(&self) -> Option<String> {
        self.fault_of()
    }
}

rule! {
    /// Adam with the decay kept out of the gradients ([Loshchilov and Hutter 2017](https://arxiv.org/abs/1711.05101),
    /// `torch.optim.AdamW`).
    AdamW AdamWRule {
        /// How much of the gradients' running mean is kept.
        beta1: f64 = 0.9;
        /// How much of the squared gradients' running mean is kept.
        beta2: f64 = 0.999;
        /// Added to what is divided by.
        eps: f64 = 1e-8;
        /// This part of the parameter, times the learning rate, is taken off it in each step.
        weight_decay: f64 = 1e-2;
        /// Divide by the largest mean so far ([Reddi et al. 2018](https://openreview.net/forum?id=ryQu7f-RZ)).
        amsgrad: bool = false;
        /// Climb instead of descend.
        maximize: bool = false;
    }

    fn update(&self, p: &Tensor, g: &Tensor, state: &mut State) -> Tensor {
        p.mul_(1.0 - self.lr * self.weight_decay);
        self.adam().apply(p, &if self.maximize { g.neg() } else { g.clone() }, state)
    }

    fn fault(&self) -> Option<String> {
        self.adam().fault_of()
    }
}

impl AdamWRule {
    fn adam(&self) -> AdamRule {
        let AdamWRule { lr, beta1, beta2, eps, weight_decay, amsgrad, maximize } = *self;
        AdamRule { lr, beta1, beta2, eps, weight_decay, amsgrad, maximize }
    }
}

impl AdamRule {
    fn apply(&self, p: &Tensor, g: &Tensor, state: &mut State) -> Tensor {
        let average = state.zeros(AVERAGE, p);
        let squares = state.zeros(SQUARES, p);
        average.add_((g - &average) * (1.0 - self.beta1));
        squares.mul_(self.beta2).add_(g * g * (1.0 - self.beta2));
        let t = state.step as f64;
        let (correction1, correction2) = (1.0 - self.beta1.powf(t), 1.0 - self.beta2.powf(t));
        let spread = if self.amsgrad {
            let largest = state.zeros(MAX_SQUARES, p);
            largest.copy_(&largest.maximum(&squares));
            largest
        } else {
            squares
        };
        // Numbers that change from step to step are multiplied with, and so do not change the kernel.
        let denominator = spread.sqrt() * (1.0 / correction2.sqrt()) + self.eps;
        p.sub_(average / denominator * (self.lr / correction1))
    }

    fn fault_of(&self) -> Option<String> {
        let beta =
            [("beta1", self.beta1), ("beta2", self.beta2)].into_iter().find(|(_, b)| !(0.0..1.0).contains(b));
        beta.map(|(name, b)| format!("Invalid {name} value: {b}")).or_else(|| {
            negative(&[
                ("learning rate", self.lr),
                ("epsilon", self.eps),
                ("weight_decay", self.weight_decay),
            ])
        })
    }
}
