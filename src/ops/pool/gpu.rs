//! How pools run on a GPU.

use super::op::{Kind, Pool2d};
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::pool as shader};
use crate::graph::kernel::Structured;
use crate::ops::MAX_TURNS;
use crate::ops::dispatch::{Defines, fold_grid};

/// Results that an invocation of a software adapter computes at most, and workgroups that should be busy there:
/// finding a result's place takes divisions, which lanes do one by one.
const MOST_TURNS: usize = 64;
const BUSY: usize = 32;

pub(super) fn calls(op: &Pool2d, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
    let software = adapter.is_software();
    let plan = Plan::new(op, call, squares(op, call), software);
    plan.map(|plan| plan.call(op, call)).into_iter().collect()
}

/// How many windows of 2 x 2 are read at a time (two in `vec4`s); 0 where windows are others.
pub(crate) fn squares(op: &Pool2d, call: &Structured) -> usize {
    let w = &op.windows;
    let image = match op.kind {
        Kind::Max => 0,
        Kind::Average if w.divisor == 0 => 0,
        // All elements must be in some window.
        Kind::First if w.size.iter().all(|n| n.is_multiple_of(2)) => 1,
        _ => return 0,
    };
    let fours = [w.size[1], call.inputs[image].1.offset].iter().all(|n| n.is_multiple_of(4));
    match (w.are_pairs(), fours) {
        (true, true) => 2,
        (true, false) => 1,
        (false, _) => 0,
    }
}

/// How results are shared among invocations.
pub(crate) struct Plan {
    squares: usize,
    width: usize,
    turns: usize,
    unroll: usize,
    /// Results in all, and of a plane.
    units: usize,
    grid: [usize; 2],
}

impl Plan {
    pub(crate) fn new(op: &Pool2d, call: &Structured, squares: usize, software: bool) -> Option<Plan> {
        let w = &op.windows;
        let grid = match (squares, op.kind.is_of_images()) {
            (1.., _) => [w.count[0], w.count[1] / squares],
            // By window, with what lies between it and the next.
            (0, true) if op.kind == Kind::First => {
                [0, 1].map(|d| (w.size[d] + w.padding[d]).div_ceil(w.stride[d]))
            }
            (0, true) => w.size,
            (0, false) => w.count,
        };
        let units = call.out_shape[0] * grid[0] * grid[1];
        if units == 0 {
            return None;
        }
        // How often the loops of one result turn.
        let windows = |d: usize| (w.kernel[d] - 1) * w.dilation[d] / w.stride[d] + 1;
        let [rows, columns] = match op.kind {
            Kind::Spread | Kind::Scatter => [windows(0).min(w.count[0]), windows(1).min(w.count[1])],
            _ => w.kernel,
        };
        let stores = if op.kind == Kind::First { w.stride[0] * (1 + w.stride[1]) } else { 0 };
        let each = |unroll: usize| 1 + rows * (1 + columns.div_ceil(unroll)) + stores;
        let unroll = (0..10).map(|n| 1 << n).find(|&n| each(n) <= MAX_TURNS).unwrap_or(512);
        let width = if software { 8 } else { 64 };
        let turns = if software {
            (MAX_TURNS / each(unroll)).clamp(1, MOST_TURNS).min(units.div_ceil(width * BUSY))
        } else {
            1
        };
        Some(Plan { squares, width, turns, unroll, units, grid })
    }

    pub(crate) fn call(&self, op: &Pool2d, call: &Structured) -> ShaderCall {
        let w = &op.windows;
        let pair = |n: [usize; 2]| n.map(|n| n as u32);
        let [units_h, units_w] = self.grid;
        let rows = self.width / units_w;
        let [[size_h, size_w], [windows_h, windows_w]] = [pair(w.size), pair(w.count)];
        let [[kernel_h, kernel_w], [stride_h, stride_w]] = [pair(w.kernel), pair(w.stride)];
        let [[padding_h, padding_w], [dilation_h, dilation_w]] = [pair(w.padding), pair(w.dilation)];
        let params = shader::Params {
            units: self.units as u32,
            units_h: units_h as u32,
            units_w: units_w as u32,
            turns: self.turns as u32,
            next_plane: (rows / units_h) as u32,
            next_y: (rows % units_h) as u32,
            next_x: (self.width % units_w) as u32,
            size_h,
            size_w,
            windows_h,
            windows_w,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            padding_h,
            padding_w,
            dilation_h,
            dilation_w,
            divisor: w.divisor as u32,
            count_padding: u32::from(w.count_padding),
            x_offset: call.inputs[0].1.offset as u32,
            y_offset: call.inputs.get(1).map_or(0, |(_, layout)| layout.offset as u32),
        };
        let defines = Defines::default()
            .value("R", if op.kind == Kind::Index { "i32" } else { "f32" })
            .value("WIDTH", self.width)
            .value("UNROLL", self.unroll)
            .value("SQUARES", self.squares)
            .flag("PAIRS", self.squares == 2)
            .value("IMAGE", if op.kind == Kind::First { "y" } else { "x" })
            .flag("MAX", op.kind == Kind::Max)
            .flag("INDEX", op.kind == Kind::Index)
            .flag("AVERAGE", op.kind == Kind::Average)
            .flag("SPREAD", op.kind == Kind::Spread)
            .flag("SCATTER", op.kind == Kind::Scatter)
            .flag("FIRST", op.kind == Kind::First)
            .flag("VEC4", self.squares == 2 && op.kind == Kind::First);
        ShaderCall {
            shader: shader::NAME,
            entry: "pool",
            defines: defines.0,
            params: params.into(),
            workgroups: fold_grid(self.units.div_ceil(self.width * self.turns)),
        }
    }
}
