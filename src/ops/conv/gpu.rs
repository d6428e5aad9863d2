//! Which kernel computes a convolution on a GPU, and with what parameters.

use super::op::{Conv2d, Geometry, Part};
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::conv as shader};
use crate::graph::kernel::Structured;
use crate::ops::MAX_TURNS;
use crate::ops::dispatch::{Defines, fold_grid};

/// A product for each group (and part), as the shader sees it.
pub(crate) struct Problem {
    weight: bool,
    /// How many groups (times parts) there are.
    batches: usize,
    params: shader::Params,
    /// Taps are the image itself.
    pointwise: bool,
    /// Places must be divisible by the stride.
    div: bool,
    /// Places lie in the output without gaps.
    dense: bool,
    /// Rows of `y` are added up, too.
    sums: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Kernel {
    /// Registers only: `width` invocations share `rows` rows of `4 * width` columns. `subgroup`: they are a subgroup,
    /// and memory is read in words of 64 bits.
    Lanes { rows: usize, width: usize, subgroup: bool },
    /// Workgroup memory: 64 invocations compute tiles of `32 * pieces` squared. `quick`: terms are divided in floating
    /// point.
    Tiles { pieces: usize, quick: bool },
    /// A workgroup of this size for each element of a weight's gradient.
    Dot(usize),
}

type Fits = fn(&Problem, &AdapterInfo) -> bool;

/// The first that fits is taken. A software adapter has few threads to fill, and barriers are dear there.
pub(crate) const VARIANTS: &[(Kernel, Fits)] = &{
    use Kernel::{Dot, Lanes, Tiles};
    fn subgroups(adapter: &AdapterInfo) -> bool {
        adapter.has_eights() && adapter.pairs
    }
    [
        (Dot(64), |p, _| p.weight && p.params.rows <= 2),
        (Lanes { rows: 1, width: 8, subgroup: false }, |p, a| a.is_software() && p.params.rows == 1),
        (Lanes { rows: 4, width: 8, subgroup: false }, |p, a| a.is_software() && p.params.rows <= 4),
        // Larger tiles need fewer loads for the same work, but longer to compile.
        (Lanes { rows: 32, width: 8, subgroup: true }, |p, a| {
            subgroups(a) && p.params.rows.next_multiple_of(32) <= p.params.rows.next_multiple_of(16)
        }),
        (Lanes { rows: 16, width: 8, subgroup: true }, |_, a| subgroups(a)),
        (Lanes { rows: 8, width: 8, subgroup: false }, |_, a| a.is_software()),
        (Lanes { rows: 1, width: 64, subgroup: false }, |p, a| !a.is_software() && p.params.rows == 1),
        (Lanes { rows: 4, width: 64, subgroup: false }, |p, a| {
            !a.is_software() && !p.weight && p.params.rows <= 4
        }),
        (Tiles { pieces: 2, quick: true }, |p, a| !a.is_software() && p.tiles(64, 64) >= 128 && p.is_quick()),
        (Tiles { pieces: 2, quick: false }, |p, a| !a.is_software() && p.tiles(64, 64) >= 128),
        (Tiles { pieces: 1, quick: true }, |p, a| !a.is_software() && p.is_quick()),
        // Of a software driver, what is left are sums past the turns of its loops.
        (Tiles { pieces: 1, quick: false }, |_, _| true),
        (Dot(256), |_, _| true),
    ]
};

/// Remainders of places by the stride that get a dispatch each.
const MAX_PHASES: usize = 16;

pub(super) fn calls(op: &Conv2d, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
    (problems(op, call).iter())
        .filter_map(|p| {
            let within =
                |kernel: Kernel| p.takes(kernel) && (!adapter.is_software() || p.turns(kernel) <= MAX_TURNS);
            let chosen = VARIANTS.iter().find(|(kernel, fits)| within(*kernel) && fits(p, adapter));
            chosen.map(|(kernel, _)| p.call(*kernel))
        })
        .collect()
}

/// One for each dispatch.
pub(crate) fn problems(op: &Conv2d, call: &Structured) -> Vec<Problem> {
    let g = &op.geometry;
    let mut out = vec![];
    match op.part {
        Part::Output => out.push(Problem::output(g, call)),
        Part::Weight => out.push(Problem::weight(g, op.parts, call)),
        Part::Input => {
            let phases: Vec<[Phase; 2]> = if g.stride[0] * g.stride[1] <= MAX_PHASES {
                let remainders = |d: usize| (0..g.stride[d].min(g.size[d])).map(move |a| Phase::of(g, d, a));
                remainders(0).flat_map(|y| remainders(1).map(move |x| [y, x])).collect()
            } else {
                vec![[Phase::whole(g, 0), Phase::whole(g, 1)]]
            };
            out.extend(phases.iter().map(|phase| Problem::input(g, phase, call)));
        }
    }
    out.retain(|p| p.params.rows > 0 && p.params.columns > 0 && p.batches > 0);
    out
}

/// The places of the input `first`, `first + step`, … along a dimension, and the filters' taps that reach them.
#[derive(Clone, Copy, Debug)]
struct Phase {
    first: usize,
    step: usize,
    count: usize,
    tap: usize,
    tap_step: usize,
    taps: usize,
    /// Where the first tap finds the first place, and how much further the next does.
    off: isize,
    off_step: isize,
    /// What coordinates must still be divided by.
    div: usize,
}

impl Phase {
    /// Those that leave `remainder` when divided by the stride: their sources are found without a division.
    fn of(g: &Geometry, d: usize, remainder: usize) -> Phase {
        let (stride, dilation) = (g.stride[d] as isize, g.dilation[d] as isize);
        let from = remainder as isize + g.padding[d] as isize;
        let reaches = |tap: &usize| (from - *tap as isize * dilation).rem_euclid(stride) == 0;
        // Which taps these are repeats after the stride at the latest.
        let mut which = (0..g.kernel[d].min(2 * g.stride[d])).filter(reaches);
        let tap = which.next();
        let tap_step = which.next().zip(tap).map_or(g.stride[d], |(second, first)| second - first);
        let taps = tap.map_or(0, |tap| (g.kernel[d] - tap).div_ceil(tap_step));
        let tap = tap.unwrap_or(0);
        Phase {
            first: remainder,
            step: g.stride[d],
            count: (g.size[d] - remainder).div_ceil(g.stride[d]),
            tap,
            tap_step,
            taps,
            off: (from - tap as isize * dilation).div_euclid(stride),
            off_step: -(tap_step as isize * dilation / stride),
            div: 1,
        }
    }

    fn whole(g: &Geometry, d: usize) -> Phase {
        Phase {
            first: 0,
            step: 1,
            count: g.size[d],
            tap: 0,
            tap_step: 1,
            taps: g.kernel[d],
            off: g.padding[d] as isize,
            off_step: -(g.dilation[d] as isize),
            div: g.stride[d],
        }
    }
}

impl Problem {
    fn output(g: &Geometry, call: &Structured) -> Problem {
        let w = &call.inputs[1].1;
        Problem {
            weight: false,
            batches: g.groups,
            pointwise: g.is_pointwise(),
            div: false,
            dense: true,
            sums: false,
            params: shader::Params {
                rows: g.group_filters() as u32,
                columns: (g.images * g.place_count()) as u32,
                depth: (g.group_channels() * g.taps()) as u32,
                channels: g.group_channels() as u32,
                out_h: g.places[0] as u32,
                out_w: g.places[1] as u32,
                out_step_y: 1,
                out_step_x: 1,
                w_row: w.strides[0] as u32,
                w_channel: w.strides[1] as u32,
                w_y: w.strides[2] as u32,
                w_x: w.strides[3] as u32,
                w_group: (g.group_filters() * w.strides[0]) as u32,
                ..Problem::common(g, call)
            },
        }
    }

    /// What the output and the weight have in common.
    fn common(g: &Geometry, call: &Structured) -> shader::Params {
        shader::Params {
            groups: g.groups as u32,
            images: g.images as u32,
            source_h: g.size[0] as u32,
            source_w: g.size[1] as u32,
            places_h: g.places[0] as u32,
            places_w: g.places[1] as u32,
            taps_h: g.kernel[0] as u32,
            taps_w: g.kernel[1] as u32,
            mul_y: g.stride[0] as u32,
            mul_x: g.stride[1] as u32,
            off_y: (g.padding[0] as u32).wrapping_neg(),
            off_x: (g.padding[1] as u32).wrapping_neg(),
            step_y: g.dilation[0] as u32,
            step_x: g.dilation[1] as u32,
            x_offset: call.inputs[0].1.offset as u32,
            w_offset: call.inputs[1].1.offset as u32,
            div_y: 1,
            div_x: 1,
            ..Default::default()
        }
    }

    fn weight(g: &Geometry, parts: usize, call: &Structured) -> Problem {
        Problem {
            weight: true,
            batches: g.groups * parts,
            pointwise: false,
            div: false,
            dense: true,
            sums: call.sums.is_some(),
            params: shader::Params {
                rows: g.group_filters() as u32,
                columns: (g.group_channels() * g.taps()) as u32,
                depth: (g.part_rows(parts) * g.places[1]) as u32,
                channels: g.group_channels() as u32,
                ..Problem::common(g, call)
            },
        }
    }

    fn input(g: &Geometry, [y, x]: &[Phase; 2], call: &Structured) -> Problem {
        let w = &call.inputs[1].1;
        let s = &w.strides;
        Problem {
            weight: false,
            batches: g.groups,
            pointwise: g.is_pointwise(),
            div: y.div > 1 || x.div > 1,
            dense: y.step == 1 && x.step == 1,
            sums: false,
            params: shader::Params {
                rows: g.group_channels() as u32,
                columns: (g.images * y.count * x.count) as u32,
                depth: (g.group_filters() * y.taps * x.taps) as u32,
                groups: g.groups as u32,
                images: g.images as u32,
                channels: g.group_filters() as u32,
                source_h: g.places[0] as u32,
                source_w: g.places[1] as u32,
                places_h: y.count as u32,
                places_w: x.count as u32,
                taps_h: y.taps as u32,
                taps_w: x.taps as u32,
                mul_y: 1,
                mul_x: 1,
                off_y: y.off as u32,
                off_x: x.off as u32,
                step_y: y.off_step as u32,
                step_x: x.off_step as u32,
                out_h: g.size[0] as u32,
                out_w: g.size[1] as u32,
                out_y: y.first as u32,
                out_x: x.first as u32,
                out_step_y: y.step as u32,
                out_step_x: x.step as u32,
                x_offset: call.inputs[0].1.offset as u32,
                w_offset: (w.offset + y.tap * s[2] + x.tap * s[3]) as u32,
                w_row: s[1] as u32,
                w_channel: s[0] as u32,
                w_y: (y.tap_step * s[2]) as u32,
                w_x: (x.tap_step * s[3]) as u32,
                w_group: (g.group_filters() * s[0]) as u32,
                div_y: y.div as u32,
                div_x: x.div as u32,
                ..Default::default()
            },
        }
    }

    /// Whether a kernel can compute this at all.
    pub(crate) fn takes(&self, kernel: Kernel) -> bool {
        self.weight || !matches!(kernel, Kernel::Dot(_))
    }

    fn tiles(&self, tile_m: usize, tile_n: usize) -> usize {
        (self.params.rows as usize).div_ceil(tile_m)
            * (self.params.columns as usize).div_ceil(tile_n)
            * self.batches
    }

    /// Terms of each sum, in all parts together.
    fn terms(&self) -> usize {
        let p = &self.params;
        if self.weight { (p.images * p.places_h * p.places_w) as usize } else { p.depth as usize }
    }

    /// Whether terms, and the few more that a tile counts, are below 2^21: then single precision divides them exactly.
    fn is_quick(&self) -> bool {
        self.terms() <= 1 << 20
    }

    /// How often an invocation's loops turn.
    fn turns(&self, kernel: Kernel) -> usize {
        let p = &self.params;
        let depth = self.terms().min(p.depth as usize);
        match kernel {
            Kernel::Lanes { .. } if self.weight => depth.div_ceil(4),
            Kernel::Lanes { .. } => {
                let step = if self.reads_four() { 4 } else { 1 };
                let taps = p.taps_h as usize * p.taps_w as usize;
                p.taps_h as usize + taps * (1 + (p.channels as usize).div_ceil(step))
            }
            Kernel::Tiles { .. } => depth.div_ceil(16) * 2,
            Kernel::Dot(width) => depth.div_ceil(width) + 8,
        }
    }

    /// Whether the weight is read in fours.
    fn reads_four(&self) -> bool {
        !self.weight && self.params.channels.is_multiple_of(4) && (self.along_channels() || self.along_rows())
    }

    fn aligned(&self, strides: &[u32]) -> bool {
        let p = &self.params;
        // The stride of what is walked once does not matter.
        let one = [(p.taps_h, p.w_y), (p.taps_w, p.w_x), (p.groups, p.w_group)];
        one.iter().all(|(n, stride)| *n <= 1 || stride.is_multiple_of(4))
            && strides.iter().all(|s| s.is_multiple_of(4))
            && p.w_offset.is_multiple_of(4)
    }

    fn along_channels(&self) -> bool {
        let p = &self.params;
        p.w_channel == 1 && self.aligned(&[if p.rows > 1 { p.w_row } else { 0 }])
    }

    fn along_rows(&self) -> bool {
        let p = &self.params;
        p.w_row == 1 && p.rows.is_multiple_of(4) && self.aligned(&[p.w_channel])
    }

    pub(crate) fn call(&self, kernel: Kernel) -> ShaderCall {
        let p = &self.params;
        let four = |n: usize| n.is_multiple_of(4);
        let places = (p.places_h * p.places_w) as usize;
        let store4 = if self.weight { four(p.columns as usize) } else { four(places) && self.dense };
        let defines = Defines::default()
            .value("T", "f32")
            .flag("WEIGHT", self.weight)
            .flag("DIV", self.div)
            .flag("A_SUMS", self.sums)
            .flag("VEC4", store4 && !matches!(kernel, Kernel::Dot(_)));
        let (entry, defines, tile_m, tile_n) = match kernel {
            Kernel::Lanes { rows, width, subgroup } => {
                let by_row = self.reads_four() && !self.along_channels() && four(rows);
                let a_vec = if self.weight {
                    four(places) && four(p.w_offset as usize)
                } else {
                    self.reads_four() && (self.along_channels() || by_row)
                };
                let b_vec = self.pointwise && four(places) && four(p.x_offset as usize);
                let defines = defines
                    .flag("LANES", true)
                    .value("WIDTH", width)
                    .flag("SUBGROUP", subgroup)
                    .flag("PAIRS", subgroup)
                    .value("ROWS", rows)
                    .value("LOADS", if subgroup { rows / 8 } else { rows })
                    .value("STEP", if a_vec || self.weight { 4 } else { 1 })
                    .flag("A_VEC", a_vec)
                    .flag("A_BY_ROW", by_row)
                    .flag("B_VEC", b_vec);
                ("lanes", defines, rows, 4 * width)
            }
            Kernel::Tiles { pieces, quick } => {
                let fours = if pieces == 1 { 4 } else { 1 };
                let defines = defines.flag("TILES", true).value("PIECES", pieces);
                let defines = defines.value("FOURS", fours).flag("QUICK", quick);
                ("tiles", defines, 32 * pieces, 32 * pieces)
            }
            Kernel::Dot(width) => ("dot_products", defines.flag("DOT", true).value("WIDTH", width), 1, 1),
        };
        let part = |n: u32| 1.0 / n as f32;
        let params = shader::Params {
            per_channel: part(p.channels),
            per_tap: part(p.taps_w),
            per_place: part(p.places_w),
            per_line: part(p.places_h),
            tiles_m: p.rows.div_ceil(tile_m as u32),
            tiles_n: p.columns.div_ceil(tile_n as u32),
            tiles: self.tiles(tile_m, tile_n) as u32,
            ..*p
        };
        ShaderCall {
            shader: shader::NAME,
            entry,
            defines: defines.0,
            params: params.into(),
            workgroups: fold_grid(self.tiles(tile_m, tile_n)),
        }
    }
}
