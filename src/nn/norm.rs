//! Layers that normalise.

use std::panic::Location;

use super::field::Training;
use super::{Parameter, init};
use crate::error::{Error, ErrorKind, on_line_of};
use crate::graph::dtype::I32;
use crate::module;
use crate::ops::norm::{self, BatchNorm};
use crate::ops::record::Arg;
use crate::tensor::{IntoShape, Options, Tensor, options};

/// A parameter of ones or zeros.
#[track_caller]
fn parameter(shape: &[i64], value: f64, options: &Options) -> Tensor {
    let parameter = Parameter::new(&options.empty(shape));
    init::constant_(&parameter, value);
    parameter
}

module! {
    /// [`Tensor::layer_norm`] over the last dimensions, with a weight and a bias that are trained
    /// (`torch.nn.LayerNorm`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let norm = nn::LayerNorm::new([4, 5]);
    /// assert_eq!(norm.forward(&randn([2, 3, 4, 5])).shape(), [2, 3, 4, 5]);
    /// assert_eq!(norm.num_parameters(), 40);
    /// ```
    #[derive(Debug)]
    pub struct LayerNorm {
        normalized_shape: Vec<i64>,
        pub eps: f64,
        /// Of `normalized_shape`.
        pub weight: Option<Tensor>,
        pub bias: Option<Tensor>,
    }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(&self.normalized_shape[..], self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

impl LayerNorm {
    /// With `eps` of 1e-5.
    #[track_caller]
    pub fn new(normalized_shape: impl IntoShape) -> LayerNorm {
        LayerNorm::with(normalized_shape, 1e-5, true, true, &options())
    }

    /// One with no weight unless `elementwise_affine`, and with no bias unless both, of the given dtype, on the
    /// given device.
    #[track_caller]
    pub fn with(
        normalized_shape: impl IntoShape,
        eps: f64,
        elementwise_affine: bool,
        bias: bool,
        options: &Options,
    ) -> LayerNorm {
        let normalized_shape = normalized_shape.into_shape().to_vec();
        let weight = elementwise_affine.then(|| parameter(&normalized_shape, 1.0, options));
        let bias = (elementwise_affine && bias).then(|| parameter(&normalized_shape, 0.0, options));
        LayerNorm { normalized_shape, eps, weight, bias }
    }
}

module! {
    /// [`Tensor::rms_norm`] over the last dimensions, with a weight that is trained (`torch.nn.RMSNorm`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let norm = nn::RMSNorm::new(8);
    /// assert_eq!(norm.forward(&randn([2, 8])).shape(), [2, 8]);
    /// ```
    #[derive(Debug)]
    pub struct RMSNorm {
        normalized_shape: Vec<i64>,
        /// The dtype's rounding unit if not given.
        pub eps: Option<f64>,
        /// Of `normalized_shape`.
        pub weight: Option<Tensor>,
    }

    #[track_caller]
    fn forward(&self, x: &Tensor) -> Tensor {
        x.rms_norm(&self.normalized_shape[..], self.weight.as_ref(), self.eps)
    }
}

impl RMSNorm {
    #[track_caller]
    pub fn new(normalized_shape: impl IntoShape) -> RMSNorm {
        RMSNorm::with(normalized_shape, None, true, &options())
    }

    /// One with no weight unless `elementwise_affine`, of the given dtype, on the given device.
    #[track_caller]
    pub fn with(
        normalized_shape: impl IntoShape,
        eps: Option<f64>,
        elementwise_affine: bool,
        options: &Options,
    ) -> RMSNorm {
        let normalized_shape = normalized_shape.into_shape().to_vec();
        let weight = elementwise_affine.then(|| parameter(&normalized_shape, 1.0, options));
        RMSNorm { normalized_shape, eps, weight }
    }
}

macro_rules! batch_norms {
    ($($(#[$doc:meta])* $name:ident takes $ranks:pat, $said:literal;)*) => {$(
        module! {
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name {
                pub eps: f64,
                /// How much of a running value one batch makes up; if not given, it is the mean of all batches.
                pub momentum: Option<f64>,
                /// `[num_features]`, as all tensors here but the last.
                pub weight: Option<Tensor>,
                pub bias: Option<Tensor>,
                pub running_mean: Option<Tensor>,
                pub running_var: Option<Tensor>,
                /// How many batches the running values are of: int32, 0-dimensional.
                pub num_batches_tracked: Option<Tensor>,
                training: Training,
            }

            #[track_caller]
            fn forward(&self, x: &Tensor) -> Tensor {
                let caller = Location::caller();
                Tensor::from_result(on_line_of(caller, || {
                    if let (None, rank) = (x.error(), x.dim()) && !matches!(rank, $ranks) {
                        let message = format!(concat!("expected ", $said, " input (got {}D input)"), rank);
                        return Err(Error::at(caller, ErrorKind::Shape, stringify!($name), message));
                    }
                    let training = self.training.is_on();
                    let how = BatchNorm {
                        running_mean: self.running_mean.clone(),
                        running_var: self.running_var.clone(),
                        weight: self.weight.clone(),
                        bias: self.bias.clone(),
                        training: training || (self.running_mean.is_none() && self.running_var.is_none()),
                        eps: self.eps,
                        ..BatchNorm::default()
                    };
                    let batches = self.num_batches_tracked.as_ref().filter(|_| training);
                    let momentum = match (self.momentum, batches) {
                        (Some(momentum), _) => Arg::from(momentum),
                        (None, Some(batches)) => batches.add(1).to(x.dtype()).reciprocal().into(),
                        (None, None) => Arg::from(0.0),
                    };
                    let out = norm::batch_norm(x, &how, &momentum, caller)?;
                    if let Some(error) = batches.and_then(|b| b.add_(1).error()) {
                        return Err(error);
                    }
                    Ok(out)
                }))
            }
        }

        impl $name {
            /// With `eps` of 1e-5, a momentum of 0.1, weight, bias and running values.
            #[track_caller]
            pub fn new(num_features: usize) -> $name {
                $name::with(num_features, 1e-5, Some(0.1), true, true, &options())
            }

            /// One with weight and bias only if `affine`, with running values only if `track_running_stats` (else
            /// it goes by the batch in evaluation, too), of the given dtype, on the given device.
            #[track_caller]
            pub fn with(
                num_features: usize,
                eps: f64,
                momentum: Option<f64>,
                affine: bool,
                track_running_stats: bool,
                options: &Options,
            ) -> $name {
                let shape = &[num_features as i64];
                let tracked = |value: f64| track_running_stats.then(|| options.full(num_features, value));
                $name {
                    eps,
                    momentum,
                    weight: affine.then(|| parameter(shape, 1.0, options)),
                    bias: affine.then(|| parameter(shape, 0.0, options)),
                    running_mean: tracked(0.0),
                    running_var: tracked(1.0),
                    num_batches_tracked: track_running_stats.then(|| options.clone().dtype(I32).zeros(())),
                    training: Training::default(),
                }
            }
        }
    )*};
}

batch_norms! {
    /// [`Tensor::batch_norm`] of `[N, C]` or `[N, C, L]` (`torch.nn.BatchNorm1d`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let norm = nn::BatchNorm1d::new(3);
    /// norm.forward(&randn([8, 3]));
    /// norm.eval();
    /// assert_eq!(norm.forward(&randn([1, 3, 5])).shape(), [1, 3, 5]);
    /// assert_eq!(norm.num_batches_tracked.as_ref().unwrap().item::<i32>()?, 1);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    BatchNorm1d takes 2 | 3, "2D or 3D";
    /// [`Tensor::batch_norm`] of `[N, C, H, W]` (`torch.nn.BatchNorm2d`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let norm = nn::BatchNorm2d::new(3);
    /// assert_eq!(norm.forward(&randn([2, 3, 4, 4])).shape(), [2, 3, 4, 4]);
    /// let names: Vec<String> = norm.state_dict().into_keys().collect();
    /// assert_eq!(names, ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]);
    /// ```
    BatchNorm2d takes 4, "4D";
}
