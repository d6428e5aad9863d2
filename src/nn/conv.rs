//! Layers over images.

use super::{Constant, Parameter, init};
use crate::module;
use crate::ops::conv::{Conv, Padding, Pair};
use crate::ops::pool::Pool;
use crate::tensor::{Options, Tensor, options};

module! {
    /// [`Tensor::conv2d_with`] (`torch.nn.Conv2d`), with PyTorch's initial values.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let layer = Conv2d::new(3, 16, 3).stride(2).padding(1);
    /// assert_eq!(layer.forward(&ones([8, 3, 32, 32])).shape(), [8, 16, 16, 16]);
    /// ```
    pub struct Conv2d {
        /// `[outputs, inputs / groups, kernel height, kernel width]`
        pub weight: Tensor,
        pub bias: Option<Tensor>,
        pub how: Constant<Conv>,
    }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d_with(&self.weight, self.bias.as_ref(), &self.how)
    }
}

impl Conv2d {
    #[track_caller]
    pub fn new(inputs: usize, outputs: usize, kernel_size: impl Into<Pair>) -> Conv2d {
        Conv2d::with(inputs, outputs, kernel_size, &Conv::default(), true, &options())
    }

    /// One with these arguments (groups among them, which new layers must know), with or without a bias, of the
    /// given dtype, on the given device.
    #[track_caller]
    pub fn with(
        inputs: usize,
        outputs: usize,
        kernel_size: impl Into<Pair>,
        how: &Conv,
        bias: bool,
        options: &Options,
    ) -> Conv2d {
        let Pair([height, width]) = kernel_size.into();
        // What is wrong with the groups is said when the layer is used.
        let inputs = inputs / how.groups.max(1);
        let weight = Parameter::new(&options.empty([outputs, inputs, height, width]));
        init::kaiming_uniform_(&weight, 5f64.sqrt());
        let bias = bias.then(|| {
            let fan_in = inputs * height * width;
            let bound = if fan_in > 0 { 1.0 / (fan_in as f64).sqrt() } else { 0.0 };
            let bias = Parameter::new(&options.empty(outputs));
            init::uniform_(&bias, -bound, bound);
            bias
        });
        Conv2d { weight, bias, how: Constant(*how) }
    }

    /// The same layer with other strides.
    pub fn stride(mut self, stride: impl Into<Pair>) -> Conv2d {
        self.how = Constant(self.how.stride(stride));
        self
    }

    /// The same layer with padding.
    pub fn padding(mut self, padding: impl Into<Padding>) -> Conv2d {
        self.how = Constant(self.how.padding(padding));
        self
    }

    /// The same layer with dilated filters.
    pub fn dilation(mut self, dilation: impl Into<Pair>) -> Conv2d {
        self.how = Constant(self.how.dilation(dilation));
        self
    }
}

macro_rules! pools {
    ($($(#[$doc:meta])* $name:ident = $function:ident;)*) => {$(
        module! {
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name { pub how: Constant<Pool> }

            #[track_caller]
            fn forward(&self, x: &Tensor) -> Tensor {
                x.$function(&self.how)
            }
        }

        impl $name {
            /// Over windows of this size, side by side.
            pub fn new(kernel_size: impl Into<Pair>) -> $name {
                $name::with(Pool::new(kernel_size))
            }

            pub fn with(how: Pool) -> $name {
                $name { how: Constant(how) }
            }
        }
    )*};
}

pools! {
    /// [`Tensor::max_pool2d_with`] (`torch.nn.MaxPool2d`).
    MaxPool2d = max_pool2d_with;
    /// [`Tensor::avg_pool2d_with`] (`torch.nn.AvgPool2d`).
    AvgPool2d = avg_pool2d_with;
}

module! {
    /// [`Tensor::adaptive_avg_pool2d`] (`torch.nn.AdaptiveAvgPool2d`).
    #[derive(Clone, Copy, Debug)]
    pub struct AdaptiveAvgPool2d { pub output_size: Constant<Pair> }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.adaptive_avg_pool2d(*self.output_size)
    }
}

impl AdaptiveAvgPool2d {
    pub fn new(output_size: impl Into<Pair>) -> AdaptiveAvgPool2d {
        AdaptiveAvgPool2d { output_size: Constant(output_size.into()) }
    }
}
