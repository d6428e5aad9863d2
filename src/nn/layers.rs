//! The layers.

use super::field::Training;
use super::{Module, Parameter, init};
use crate::module;
use crate::tensor::{Options, Tensor, options};

module! {
    /// `x @ weight.T + bias` (`torch.nn.Linear`), with PyTorch's initial values.
    pub struct Linear {
        /// `[outputs, inputs]`
        pub weight: Tensor,
        pub bias: Option<Tensor>,
    }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

impl Linear {
    #[track_caller]
    pub fn new(inputs: usize, outputs: usize) -> Linear {
        Linear::with(inputs, outputs, true, &options())
    }

    /// One without a bias.
    #[track_caller]
    pub fn no_bias(inputs: usize, outputs: usize) -> Linear {
        Linear::with(inputs, outputs, false, &options())
    }

    /// One of the given dtype, on the given device.
    #[track_caller]
    pub fn with(inputs: usize, outputs: usize, bias: bool, options: &Options) -> Linear {
        let weight = Parameter::new(&options.empty([outputs, inputs]));
        init::kaiming_uniform_(&weight, 5f64.sqrt());
        let bias = bias.then(|| {
            let bound = if inputs > 0 { 1.0 / (inputs as f64).sqrt() } else { 0.0 };
            let bias = Parameter::new(&options.empty(outputs));
            init::uniform_(&bias, -bound, bound);
            bias
        });
        Linear { weight, bias }
    }
}

module! {
    /// A table of vectors, looked up by number (`torch.nn.Embedding`).
    pub struct Embedding {
        /// `[rows, width]`
        pub weight: Tensor,
    }

    /// One row for each index in `x`, which is of an integer type.
    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        self.weight.embedding(x)
    }
}

impl Embedding {
    #[track_caller]
    pub fn new(rows: usize, width: usize) -> Embedding {
        Embedding::with(rows, width, &options())
    }

    /// One of the given dtype, on the given device.
    #[track_caller]
    pub fn with(rows: usize, width: usize, options: &Options) -> Embedding {
        Embedding { weight: Parameter::new(&options.randn([rows, width])) }
    }
}

module! {
    /// Sets elements to zero at random while training (`torch.nn.Dropout`).
    pub struct Dropout {
        pub p: f64,
        training: Training,
    }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.dropout(self.p, self.training.is_on())
    }
}

impl Dropout {
    pub fn new(p: f64) -> Dropout {
        Dropout { p, training: Training::default() }
    }
}

module! {
    /// Dimensions `start` to `end` made one (`torch.nn.Flatten`); all but the first by default.
    #[derive(Clone, Debug)]
    pub struct Flatten { pub start: i64, pub end: i64 }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.flatten(self.start, self.end)
    }
}

impl Default for Flatten {
    fn default() -> Flatten {
        Flatten { start: 1, end: -1 }
    }
}

impl Flatten {
    pub fn new() -> Flatten {
        Flatten::default()
    }
}

module! {
    /// [`Tensor::softmax`] along a dimension (`torch.nn.Softmax`).
    #[derive(Clone, Debug)]
    pub struct Softmax { pub dim: i64 }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.softmax(self.dim)
    }
}

macro_rules! activations {
    ($($(#[$doc:meta])* $name:ident = $function:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Debug)]
        pub struct $name;

        impl Module for $name {
            #[track_caller]
            fn forward(&self, x: &Tensor) -> Tensor {
                x.$function()
            }
            fn visit<'a>(&'a self, _: &mut super::Parts<'_, 'a>) {}
            fn visit_mut(&mut self, _: &mut super::PartsMut<'_>) {}
        }
    )*};
}

activations! {
    /// [`Tensor::relu`] (`torch.nn.ReLU`).
    ReLU = relu;
    /// [`Tensor::tanh`] (`torch.nn.Tanh`).
    Tanh = tanh;
    /// [`Tensor::sigmoid`] (`torch.nn.Sigmoid`).
    Sigmoid = sigmoid;
    /// [`Tensor::gelu`] (`torch.nn.GELU`).
    GELU = gelu;
    /// [`Tensor::silu`] (`torch.nn.SiLU`).
    SiLU = silu;
    /// What it is given (`torch.nn.Identity`).
    Identity = clone;
}
