//! The structured ops of pools.

use super::cpu;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Structured, StructuredOp};

/// Windows in a plane: where each begins, `place * stride - padding`, and which elements it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Windows {
    /// Of the plane.
    pub size: [usize; 2],
    pub count: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
    /// What means are divided by, if it is not 0.
    pub divisor: usize,
    /// Whether padding counts, if it is.
    pub count_padding: bool,
}

impl Windows {
    /// Whether no element is in two windows, and what lies between two is little enough for one loop.
    pub fn are_apart(&self) -> bool {
        let apart = (0..2).all(|d| (self.kernel[d] - 1) * self.dilation[d] < self.stride[d]);
        apart && self.stride[0].saturating_mul(self.stride[1]) <= 1 << 14
    }

    pub fn area(&self) -> usize {
        self.size[0] * self.size[1]
    }

    pub fn all(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// Whether they are of 2 x 2, side by side, without padding.
    pub fn are_pairs(&self) -> bool {
        let plain = self.kernel == [2, 2] && self.stride == [2, 2] && self.padding == [0, 0];
        plain && self.dilation == [1, 1] && (0..2).all(|d| 2 * self.count[d] <= self.size[d])
    }

    /// What the mean of a window is divided by.
    pub fn divisor_of(&self, window: [usize; 2]) -> usize {
        if self.divisor > 0 {
            return self.divisor;
        }
        let along = |d: usize| {
            let begin = window[d] * self.stride[d];
            let end = (begin + self.kernel[d]).min(self.size[d] + 2 * self.padding[d]);
            if self.count_padding {
                return end - begin;
            }
            end.min(self.size[d] + self.padding[d]).saturating_sub(begin.max(self.padding[d]))
        };
        along(0) * along(1)
    }
}

/// What is computed. `x` are planes `[n, size]`, `g` windows' values `[n, count]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Of `x`: the greatest of each window.
    Max,
    /// Of `x`: the numbers of the greatest.
    Index,
    /// Of `g` and indices: each element's sum of the windows whose index it is.
    Scatter,
    /// Of `g` and `x`: the same for windows that do not overlap, with indices found again in `x`.
    First,
    /// Of `x`: means.
    Average,
    /// Of `g`: its gradient.
    Spread,
}

impl Kind {
    /// Whether the result is one of planes, not of windows.
    pub fn is_of_images(self) -> bool {
        matches!(self, Kind::Scatter | Kind::First | Kind::Spread)
    }
}

/// Of contiguous `[n, h, w]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool2d {
    pub kind: Kind,
    pub windows: Windows,
}

impl StructuredOp for Pool2d {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Max => "max_pool2d",
            Kind::Index => "max_pool2d_indices",
            Kind::Scatter | Kind::First => "max_pool2d_backward",
            Kind::Average => "avg_pool2d",
            Kind::Spread => "avg_pool2d_backward",
        }
    }

    fn key(&self) -> Vec<u64> {
        let w = &self.windows;
        let pairs = [w.size, w.count, w.kernel, w.stride, w.padding, w.dilation];
        let numbers = [self.kind as usize, w.divisor, usize::from(w.count_padding)];
        numbers.iter().chain(pairs.iter().flatten()).map(|&n| n as u64).collect()
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn flops(&self, call: &Structured) -> u64 {
        let windows = call.out_shape[0] * self.windows.all();
        (windows as u64).saturating_mul((self.windows.kernel[0] * self.windows.kernel[1]) as u64)
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        super::gpu::calls(self, call, adapter)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        match call.inputs[0].0 {
            DType::F32 => cpu::run::<f32>(self, call, inputs, out),
            DType::F64 => cpu::run::<f64>(self, call, inputs, out),
            other => return Err(format!("is not defined for {other}")),
        }
        Ok(())
    }
}
