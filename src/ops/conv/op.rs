//! The structured op of convolutions and their gradients.

use super::cpu;
use crate::backend::Prices;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Rows, Structured, StructuredOp};
use crate::ops::{MAX_BESIDE, MAX_CHAIN};

/// What a convolution relates: `x` `[images, channels, size]`, `w` `[filters, channels / groups, kernel]` and `y`
/// `[images, filters, places]`, where the tap `k` at the place `p` is at `p * stride + k * dilation - padding` of `x`,
/// or outside of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub images: usize,
    pub channels: usize,
    pub filters: usize,
    pub groups: usize,
    pub size: [usize; 2],
    pub kernel: [usize; 2],
    pub places: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

/// Which of the three is computed from the other two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// `y`, of `(x, w)`: the convolution.
    Output,
    /// `x`, of `(y, w)`: its gradient by the input, and the transposed convolution.
    Input,
    /// `w`, of `(x, y)`: its gradient by the weight.
    Weight,
}

/// Of contiguous images; the weight may have any strides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv2d {
    pub part: Part,
    pub geometry: Geometry,
    /// Of [`Part::Weight`]: the sum over all rows of places comes in so many parts, one after the other in the
    /// output's first dimension.
    pub parts: usize,
}

/// Places that a part of a sum should have at least.
const WORTH_A_PART: usize = 512;
/// Workgroups that should share the sums of a weight's gradient.
const WORKGROUPS: usize = 256;
/// Places that a part may have: a software driver's loops do not turn as often as they like.
const LONGEST_PART: usize = 100_000;

impl Geometry {
    pub fn shape(&self, part: Part) -> [usize; 4] {
        match part {
            Part::Output => [self.images, self.filters, self.places[0], self.places[1]],
            Part::Input => [self.images, self.channels, self.size[0], self.size[1]],
            Part::Weight => [self.filters, self.group_channels(), self.kernel[0], self.kernel[1]],
        }
    }

    pub fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    pub fn group_filters(&self) -> usize {
        self.filters / self.groups
    }

    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether the taps are the image itself.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0] && self.places == self.size
    }

    /// Elements of a channel of `x`, and of `y`.
    pub fn area(&self) -> usize {
        self.size[0] * self.size[1]
    }

    pub fn place_count(&self) -> usize {
        self.places[0] * self.places[1]
    }

    /// Into how many parts the sum over places of a weight's gradient is cut, so that all cores of a GPU have some.
    pub fn parts(&self) -> usize {
        let tiles = self.groups * self.group_filters().div_ceil(32);
        let tiles = (tiles * (self.group_channels() * self.taps()).div_ceil(32)).max(1);
        let places = self.images * self.place_count();
        let wanted = WORKGROUPS.div_ceil(tiles).min(places / WORTH_A_PART);
        let rows = self.images * self.places[0];
        let parts = wanted.max(places.div_ceil(LONGEST_PART)).clamp(1, rows.max(1));
        // As many as the parts that `part_rows` makes.
        rows.div_ceil(self.part_rows(parts)).max(1)
    }

    /// Rows of places (of all images, one after the other) in each part; a multiple of 4, so that four neighbours
    /// are in one part.
    pub fn part_rows(&self, parts: usize) -> usize {
        (self.images * self.places[0]).div_ceil(parts).next_multiple_of(4).max(4)
    }
}

impl StructuredOp for Conv2d {
    fn name(&self) -> &'static str {
        match self.part {
            Part::Output => "conv2d",
            Part::Input => "conv2d_input",
            Part::Weight => "conv2d_weight",
        }
    }

    fn key(&self) -> Vec<u64> {
        let g = &self.geometry;
        let pairs = [g.size, g.kernel, g.places, g.stride, g.padding, g.dilation];
        let numbers = [self.part as usize, self.parts, g.images, g.channels, g.filters, g.groups];
        numbers.iter().chain(pairs.iter().flatten()).map(|&n| n as u64).collect()
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn knows_coordinate(&self, _: &Structured) -> Option<usize> {
        // The channel. (Sums for weights come in parts, along another dimension.)
        (self.part != Part::Weight).then_some(1)
    }

    fn stores_once(&self) -> bool {
        true
    }

    fn rows(&self, call: &Structured, input: usize, _: &Prices) -> Option<Rows> {
        let g = &self.geometry;
        let each = g.part_rows(self.parts) * g.places[1];
        // A few filters have kernels that cannot do it, and so have great depths.
        let columns = g.group_channels() * g.taps();
        let fits = g.group_filters() > 2 && (1..=MAX_CHAIN).contains(&each);
        let fits = fits && (1..=MAX_BESIDE).contains(&columns) && g.images > 0;
        let wanted = self.part == Part::Weight && input == 1 && call.out_dtype == DType::F32;
        let layout = || call.inputs[1].1.permute(&[1, 0, 2, 3]);
        (wanted && fits).then(|| Rows { layout: layout(), each })
    }

    fn flops(&self, _: &Structured) -> u64 {
        let g = &self.geometry;
        let sizes = [g.images, g.filters, g.place_count(), g.group_channels(), g.taps()];
        sizes.iter().fold(2, |f: u64, &n| f.saturating_mul(n as u64))
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        super::gpu::calls(self, call, adapter)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        match call.out_dtype {
            DType::F32 => cpu::run::<f32>(self, call, inputs, out),
            DType::F64 => cpu::run::<f64>(self, call, inputs, out),
            other => return Err(format!("is not defined for {other}")),
        }
        Ok(())
    }
}
