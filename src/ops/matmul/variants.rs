//! The ways in which a GPU computes a product, and which is taken when.

use std::fmt::Write;

use crate::backend::gpu::tune::{Quick, Ways};
use crate::backend::gpu::{AdapterClass, AdapterInfo, ShaderCall, kernels::matmul as shader};
use crate::graph::dtype::DType;
use crate::graph::kernel::Structured;
use crate::ops::MAX_TURNS;
use crate::ops::dispatch::{Defines, fold_grid, threads, wgsl_type};

use super::Problem;

impl Problem {
    /// The transposed product: `bᵀ · aᵀ`.
    fn exchange(self) -> Problem {
        Problem {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            exchanged: !self.exchanged,
            ..self
        }
    }

    /// The same with its narrower side along `n`, if that is 1.
    fn into_column(self) -> Problem {
        if self.n != 1 && self.m == 1 { self.exchange() } else { self }
    }

    fn is_vector(&self) -> bool {
        self.m == 1 || self.n == 1
    }

    /// How many vector elements the product of a matrix and a vector has.
    fn outputs(&self) -> usize {
        self.m * self.n * self.batches()
    }

    /// Whether the matrix may be read four rows at a time, down its columns.
    fn has_columns(&self) -> bool {
        self.a.aligned(self.m, self.a.rows, self.a.columns)
            && !self.a.aligned(self.k, self.a.columns, self.a.rows)
    }

    /// The way round that wastes less on the padding of tiles, if that is an eighth: the other way round is another
    /// kernel to compile.
    fn turned_for(self, rows: usize, columns: usize) -> Problem {
        let [turned, straight] = [self.padded(columns, rows), self.padded(rows, columns)];
        if turned + straight / 8 < straight { self.exchange() } else { self }
    }

    /// Nanoseconds on a software adapter, in tiles of so many rows and fours of columns, by rough costs of a tile's
    /// parts, fitted to one machine: four steps of k cost 18 ns for each load of a vector of `vec4`s, 5 ns for each
    /// row of multiplications by four columns, and a row's end 115 ns. Each tile is one thread's.
    fn cost_of_lanes(&self, [rows, fours, more]: [usize; 3]) -> usize {
        let p = self.clone().turned_for(rows + more, 32 * fours + more);
        let high = rows + 2 * more;
        let turn = 18 * (rows / 8 + 4 * fours + more) + 5 * high * fours;
        // What such tiles lose where others would read and write aligned fours.
        let turn =
            if more == 1 && p.m.is_multiple_of(4) && p.n.is_multiple_of(4) { turn * 6 / 5 } else { turn };
        let tile = p.k.div_ceil(4) * turn + 115 * high.min(p.m) * fours;
        p.tiles(rows + more, 32 * fours + more).div_ceil(threads()).saturating_mul(tile)
    }

    /// The tiles that take least time. (Those of two fours are the tuner's: they compile in twice the time.)
    fn best_lanes(&self) -> [usize; 3] {
        let more = self.wants_more(32).then_some([32, 1, 1]);
        let plain = [[32, 1, 0], [16, 1, 0], [8, 1, 0]];
        more.into_iter().chain(plain).min_by_key(|&t| self.cost_of_lanes(t)).unwrap_or([16, 1, 0])
    }

    /// Whether both operands' fours may be read from any place, of the aligned fours in which they lie.
    fn is_loose(&self) -> bool {
        !self.halves && self.a.is_contiguous() && self.b.is_contiguous()
    }

    /// Whether both may be read in aligned fours.
    fn is_aligned(&self) -> bool {
        let four = |o: &super::Operand, rows, columns| {
            o.aligned(columns, o.columns, o.rows) || o.aligned(rows, o.rows, o.columns)
        };
        four(&self.a, self.m, self.k) && four(&self.b, self.k, self.n)
    }

    /// Whether tiles with a row and a column more are so much fewer that it is worth compiling them.
    fn wants_more(&self, columns: usize) -> bool {
        self.is_loose() && self.tiles(33, columns + 1) <= self.tiles(32, columns) * 9 / 10
    }

    /// The kernel that a software driver compiles in the shortest time, and how many products lose as much time in it
    /// as compiling the best one takes longer: about 50 ms. None for those that are slow to begin with.
    fn quick(&self) -> Option<(Kernel, u32)> {
        let tiles =
            || (Kernel::Lanes { rows: 8, fours: 1, more: 0, subgroup: true }, self.cost_of_lanes([8, 1, 0]));
        let elements = || (Kernel::Any, self.cost_of_elements());
        let (kernel, cost) = if self.flops() <= SMALL && self.k <= 512 { elements() } else { tiles() };
        let loss = cost.saturating_sub(self.cost_of_lanes(self.best_lanes()));
        let runs = u32::try_from(50_000_000 / loss.max(1)).ok().filter(|&runs| runs > 8)?;
        Some((kernel, runs))
    }

    /// The same as `cost_of_lanes`, of an invocation for each element.
    fn cost_of_elements(&self) -> usize {
        (self.outputs().div_ceil(8) * (20 * self.k + 200)).div_ceil(threads())
    }

    /// Work done in tiles of a size, padding included.
    fn padded(&self, tile_m: usize, tile_n: usize) -> usize {
        self.m.next_multiple_of(tile_m) * self.n.next_multiple_of(tile_n)
    }

    fn tiles(&self, tile_m: usize, tile_n: usize) -> usize {
        self.m.div_ceil(tile_m) * self.n.div_ceil(tile_n) * self.batches()
    }
}

/// A way to compute a product.
pub(in crate::ops) struct Variant {
    pub kernel: Kernel,
    pub fits: fn(&Problem, DType, &AdapterInfo) -> bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(in crate::ops) enum Kernel {
    /// An invocation per element, in any type.
    Any,
    /// A workgroup of this size per element, in any type.
    Dot(usize),
    /// The same of a subgroup, which needs no workgroup memory to add up.
    SubgroupDot(usize),
    /// An invocation per element of a vector, or per four.
    Axpy,
    /// A workgroup per 32 elements of a vector, where the matrix is contiguous along these.
    Slices,
    /// Registers only: 8 invocations share `rows` rows of `32 * fours` columns. `subgroup`: they are a subgroup, and
    /// memory is read in words of 64 bits. `more` (0 or 1): so many rows and columns more, where operands are
    /// contiguous.
    Lanes { rows: usize, fours: usize, more: usize, subgroup: bool },
    /// Workgroup memory: tiles of `4 * pieces * down` rows and `4 * pieces * across` columns, an invocation for each
    /// `4 * pieces` squared, `depth` steps of k at a time.
    Tiles { down: usize, across: usize, pieces: usize, depth: usize },
    /// Cooperative matrices of halves, `size` squared: `down` times `across` subgroups of so many `lanes` share a tile, of
    /// which each has `matrices` down and across.
    Cooperative { size: usize, lanes: usize, down: usize, across: usize, matrices: [usize; 2], depth: usize },
}

/// Operations up to which a product takes less time than the compiling of a faster kernel.
const TINY: u64 = 1 << 15;

/// Operations up to which it may run a few times in a kernel that compiles fast.
const SMALL: u64 = 1 << 20;

/// The first that fits is taken.
pub(in crate::ops) const VARIANTS: &[Variant] = &{
    use Kernel::{Any, Axpy, Cooperative, Dot, Lanes, Slices, SubgroupDot};
    const fn row(kernel: Kernel, fits: fn(&Problem, DType, &AdapterInfo) -> bool) -> Variant {
        Variant { kernel, fits }
    }
    const fn tiles(
        [down, across, pieces, depth]: [usize; 4],
        fits: fn(&Problem, DType, &AdapterInfo) -> bool,
    ) -> Variant {
        Variant { kernel: Kernel::Tiles { down, across, pieces, depth }, fits }
    }
    const fn cooperative([size, lanes]: [usize; 2], large: bool) -> Kernel {
        // Of the invocations that every adapter grants.
        let (down, across) = if large && lanes <= 32 { (2, 4) } else { (2, 2) };
        let matrices = match (large, lanes) {
            (true, 64) => [4, 4],
            (true, _) => [4, 2],
            (false, _) => [2, 2],
        };
        Cooperative { size, lanes, down, across, matrices, depth: if large { 16 } else { 32 } }
    }
    fn matrices(p: &Problem, adapter: &AdapterInfo, size: usize, lanes: usize) -> bool {
        let fits = adapter.matrices == Some(size) && adapter.subgroup_size == Some(lanes as u32);
        // The epilogue could not read an operand as these kernels declare it.
        fits && p.halves && !p.shared && !adapter.is_software()
    }
    fn vector(p: &Problem, dtype: DType) -> bool {
        dtype == DType::F32 && p.is_vector()
    }
    const fn lane_tiles(rows: usize, fours: usize, more: usize) -> Kernel {
        Lanes { rows, fours, more, subgroup: true }
    }
    fn lanes(p: &Problem, dtype: DType, adapter: &AdapterInfo, tile: [usize; 3]) -> bool {
        dtype == DType::F32 && adapter.has_eights() && adapter.pairs && p.best_lanes() == tile
    }
    /// Tiles that keep an adapter busy.
    fn many(adapter: &AdapterInfo) -> usize {
        if adapter.class == AdapterClass::Integrated { 32 } else { 192 }
    }
    [
        row(Any, |_, dtype, _| dtype != DType::F32),
        // Software drivers take long to compile the others.
        row(Any, |p, _, adapter| adapter.is_software() && p.flops() <= TINY && p.k <= 512),
        // A software adapter has few threads to fill, and a barrier is dear there.
        row(Dot(64), |p, dtype, adapter| vector(p, dtype) && adapter.is_software() && p.outputs() < 32),
        row(Axpy, |p, dtype, adapter| vector(p, dtype) && adapter.is_software()),
        // On GPUs neighbours must read neighbouring elements.
        row(Slices, |p, dtype, _| vector(p, dtype) && p.clone().into_column().has_columns()),
        // What has many turns wants more invocations.
        row(SubgroupDot(32), |p, dtype, adapter| {
            vector(p, dtype) && adapter.subgroup_size == Some(32) && p.k <= 4096
        }),
        row(SubgroupDot(64), |p, dtype, adapter| {
            vector(p, dtype) && adapter.subgroup_size == Some(64) && p.k <= 4096
        }),
        // Of a software adapter, for tests.
        row(SubgroupDot(8), |_, _, _| false),
        row(Dot(64), |p, dtype, _| vector(p, dtype)),
        // Taken by the tuner only: twice the compiling.
        row(lane_tiles(32, 2, 1), |_, _, _| false),
        row(lane_tiles(32, 2, 0), |_, _, _| false),
        // Larger tiles need fewer loads for the same work.
        row(lane_tiles(32, 1, 1), |p, dtype, adapter| lanes(p, dtype, adapter, [32, 1, 1])),
        row(lane_tiles(32, 1, 0), |p, dtype, adapter| lanes(p, dtype, adapter, [32, 1, 0])),
        row(lane_tiles(16, 1, 0), |p, dtype, adapter| lanes(p, dtype, adapter, [16, 1, 0])),
        row(lane_tiles(8, 1, 0), |p, dtype, adapter| lanes(p, dtype, adapter, [8, 1, 0])),
        row(Lanes { rows: 8, fours: 1, more: 0, subgroup: false }, |_, dtype, adapter| {
            dtype == DType::F32 && adapter.is_software()
        }),
        row(cooperative([16, 32], true), |p, _, adapter| {
            matrices(p, adapter, 16, 32) && p.tiles(128, 128) >= many(adapter) / 2
        }),
        row(cooperative([16, 32], false), |p, _, adapter| matrices(p, adapter, 16, 32)),
        row(cooperative([16, 64], true), |p, _, adapter| {
            matrices(p, adapter, 16, 64) && p.tiles(128, 128) >= many(adapter) / 2
        }),
        row(cooperative([16, 64], false), |p, _, adapter| matrices(p, adapter, 16, 64)),
        // Of the software adapters that have them, for tests.
        row(cooperative([8, 8], true), |_, _, _| false),
        row(cooperative([8, 8], false), |_, _, _| false),
        tiles([16, 16, 2, 16], |p, _, adapter| !adapter.is_software() && p.tiles(128, 128) >= many(adapter)),
        tiles([16, 8, 2, 8], |p, _, adapter| !adapter.is_software() && p.tiles(128, 64) >= many(adapter)),
        tiles([8, 8, 2, 16], |p, _, adapter| !adapter.is_software() && p.tiles(64, 64) >= many(adapter) / 2),
        tiles([8, 8, 1, 16], |_, _, adapter| !adapter.is_software()),
        // What is left are depths past the turns of a software driver's loops.
        row(Dot(64), |_, _, _| true),
        row(Dot(256), |_, _, _| true),
    ]
};

/// The variant for a call.
fn chosen(problem: &Problem, call: &Structured, adapter: &AdapterInfo) -> Option<&'static Variant> {
    let within = |v: &&Variant| !adapter.is_software() || v.turns(problem) <= MAX_TURNS;
    VARIANTS.iter().filter(within).find(|v| (v.fits)(problem, call.out_dtype, adapter))
}

pub(super) fn calls(call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
    let problem = Problem::new(call);
    chosen(&problem, call, adapter).map_or_else(Vec::new, |v| v.calls(problem, call.out_dtype))
}

/// Operations from which it is worth knowing the fastest tiles: a little below a power of two, so that sizes around one
/// fare alike.
const WORTH_TIMING: u64 = 3 << 20;

/// The variants beside the one chosen that sum as it does: k by k, in the order of k.
pub(super) fn ways(call: &Structured, adapter: &AdapterInfo) -> Option<Ways> {
    let problem = Problem::new(call);
    let first = chosen(&problem, call, adapter)?;
    first.kernel.tile()?;
    let timed = problem.flops() >= WORTH_TIMING;
    let fast = problem.quick();
    let quick = |v: &Variant| fast.is_some_and(|(kernel, _)| v.kernel == kernel);
    let like = |v: &&Variant| match (v.kernel, first.kernel) {
        (Kernel::Lanes { rows, fours, more, subgroup }, Kernel::Lanes { subgroup: with, .. }) => {
            // Compiling them to see takes long: only what may be as fast.
            let [cost, least] = [[rows, fours, more], problem.best_lanes()].map(|t| problem.cost_of_lanes(t));
            let wanted = rows != 32 || problem.wants_more(32 * fours) == (more == 1);
            subgroup == with && (quick(v) || wanted && cost < least + least / 4)
        }
        (Kernel::Any, Kernel::Lanes { subgroup: true, .. }) => quick(v),
        // Rows are added up in an order that depends on the depth.
        (Kernel::Tiles { depth, .. }, Kernel::Tiles { depth: own, .. }) => {
            call.sums.is_none() || depth == own
        }
        (Kernel::Cooperative { size, lanes, .. }, Kernel::Cooperative { size: s, lanes: l, .. }) => {
            (size, lanes) == (s, l)
        }
        _ => false,
    };
    let others = VARIANTS.iter().filter(like).filter(|v| v.kernel != first.kernel && (timed || quick(v)));
    let ways: Vec<&Variant> = std::iter::once(first).chain(others).collect();
    let at = ways.iter().position(|v| quick(v)).filter(|&at| at > 0);
    let quick = at.zip(fast).map(|(at, (_, runs))| Quick { at, runs });
    let ways =
        ways.into_iter().map(|v| (format!("{:?}", v.kernel), v.calls(problem.clone(), call.out_dtype)));
    // Sizes count with two binary digits; beyond that it makes no difference.
    let size = |n: usize| n.next_multiple_of((n.next_power_of_two() / 4).max(1));
    let order = |o: &super::Operand| (o.rows == 1, o.columns == 1);
    let [m, n, k, batches] = [problem.m, problem.n, problem.k, problem.batches()].map(size);
    let operands = (call.post.loads.len() + call.post.stores.len()).min(4);
    let [a, b] = [&problem.a, &problem.b].map(order);
    let halves = if problem.halves { " halves" } else { "" };
    let loose = if problem.is_aligned() { "" } else { " loose" };
    let mut key = format!("matmul {batches}x{m}x{n}x{k} {a:?} {b:?} +{operands}{halves}{loose}");
    for pre in &call.pre {
        let _ = write!(key, " {}:{}", pre.input, pre.program.insts.len());
    }
    Some(Ways { key, ways: ways.collect(), quick, timed })
}

/// How the sums of a product `[batches, m, n, k]` are cut where its output is too small to keep an adapter busy. The
/// parts are equal. How many there are depends on sizes and class alone, and on a software adapter on the number of
/// the machine's threads, so that the last bits may differ from machine to machine there.
pub(crate) fn split_for(class: AdapterClass) -> fn([usize; 4]) -> usize {
    /// Parts, so that `units` pieces of work become `wanted`, of at least `least` steps each.
    fn parts(units: usize, wanted: usize, k: usize, least: usize) -> usize {
        let most = (wanted / units.max(1)).min(k / least);
        let fits = |parts: &usize| {
            k.is_multiple_of(*parts) && (!k.is_multiple_of(4) || (k / parts).is_multiple_of(4))
        };
        (0..=10).rev().map(|power| 1 << power).find(|parts| *parts <= most && fits(parts)).unwrap_or(1)
    }
    fn units([batches, m, n, _]: [usize; 4], tile: usize) -> usize {
        let vector = m == 1 || n == 1;
        batches * if vector { m * n } else { m.div_ceil(tile) * n.div_ceil(tile) }
    }
    match class {
        AdapterClass::Discrete => |p| parts(units(p, 64), 128, p[3], 256),
        AdapterClass::Integrated => |p| parts(units(p, 32), 32, p[3], 256),
        AdapterClass::Software => |p| parts(units(p, 32), threads(), p[3], 2048),
    }
}

impl Kernel {
    /// Rows and columns of the output that a workgroup computes.
    pub(in crate::ops) fn tile(self) -> Option<[usize; 2]> {
        match self {
            Kernel::Lanes { rows, fours, more, .. } => Some([rows + more, 32 * fours + more]),
            Kernel::Tiles { down, across, pieces, .. } => Some([4 * pieces * down, 4 * pieces * across]),
            Kernel::Cooperative { size, down, across, matrices: [m, n], .. } => {
                Some([size * m * down, size * n * across])
            }
            _ => None,
        }
    }
}

impl Variant {
    /// How often an invocation's loop turns.
    fn turns(&self, p: &Problem) -> usize {
        match self.kernel {
            Kernel::Any => p.k,
            Kernel::Axpy | Kernel::Lanes { .. } | Kernel::Tiles { .. } | Kernel::Cooperative { .. } => {
                p.k.div_ceil(4)
            }
            Kernel::Slices => p.k.div_ceil(32),
            Kernel::Dot(width) | Kernel::SubgroupDot(width) => p.k.div_ceil(4 * width),
        }
    }

    /// The dispatches of this variant.
    pub fn calls(&self, problem: Problem, dtype: DType) -> Vec<ShaderCall> {
        if problem.outputs() == 0 {
            return vec![];
        }
        // Tiles with an odd number of columns are read from anywhere.
        let kernel = match self.kernel {
            Kernel::Lanes { rows, fours, more: 1, subgroup } if !problem.is_loose() => {
                Kernel::Lanes { rows, fours, more: 0, subgroup }
            }
            kernel => kernel,
        };
        let p = match (kernel, kernel.tile()) {
            (Kernel::Dot(_) | Kernel::SubgroupDot(_) | Kernel::Axpy | Kernel::Slices, _) => {
                problem.into_column()
            }
            (_, Some([rows, columns])) => problem.turned_for(rows, columns),
            _ => problem,
        };
        // The number of the input, from 1.
        let computed =
            |o: &super::Operand, second: bool| if o.binding.is_none() { 1 + usize::from(second) } else { 0 };
        let any = kernel == Kernel::Any;
        let dot = matches!(kernel, Kernel::Dot(_) | Kernel::SubgroupDot(_));
        let cooperative = matches!(kernel, Kernel::Cooperative { .. });
        let column = dot || matches!(kernel, Kernel::Axpy | Kernel::Slices);
        // Along k where that is possible. Dot products can use no other.
        let a_along_k = p.a.aligned(p.k, p.a.columns, p.a.rows);
        let a_along_m = !any && !dot && !a_along_k && p.a.aligned(p.m, p.a.rows, p.a.columns);
        let along_k = p.b.aligned(p.k, p.b.rows, p.b.columns);
        let along_n = p.b.aligned(p.n, p.b.columns, p.b.rows) && !column;
        // Neighbours know the rest of fours that begin in the middle of an aligned one, in a contiguous dimension.
        let loose = matches!(kernel, Kernel::Lanes { subgroup: true, .. }) && !p.halves;
        let more = matches!(kernel, Kernel::Lanes { more: 1, .. });
        let a_loose = more || loose && !a_along_k && !a_along_m && p.a.is_contiguous();
        let b_loose = more || loose && !along_k && !along_n && p.b.is_contiguous();
        let a_by_row = a_along_m || a_loose && p.a.columns != 1;
        let along_k = along_k || b_loose && p.b.columns != 1;
        let a_vec = !any && (a_along_k || a_by_row || a_loose);
        let b_vec = !any && kernel != Kernel::Slices && (along_k || along_n || b_loose);
        // (m, n) of the output as this product has them.
        let (out_m, out_n) = if p.exchanged { (1, p.m) } else { (p.n, 1) };
        let turned = out_n != 1 && p.m.is_multiple_of(4) && !column && !any && !more;
        let store4 = match kernel {
            Kernel::Any | Kernel::Dot(_) | Kernel::SubgroupDot(_) => false,
            Kernel::Axpy | Kernel::Slices => a_by_row,
            Kernel::Lanes { .. } | Kernel::Tiles { .. } | Kernel::Cooperative { .. } => {
                turned || out_n == 1 && p.n.is_multiple_of(4) && !more
            }
        };
        let defines = Defines::default()
            .value("T", if cooperative { "f16" } else { wgsl_type(dtype) })
            .flag("HALF", p.halves && !cooperative)
            .value("A_AT", p.a.binding.map_or(0, |binding| 2 + binding))
            .value("B_AT", p.b.binding.map_or(0, |binding| 2 + binding))
            .value("A_PRE", computed(&p.a, p.exchanged))
            .value("B_PRE", computed(&p.b, !p.exchanged))
            .flag("A_VEC", a_vec)
            .flag("A_BY_ROW", a_by_row)
            .flag("B_VEC", b_vec)
            .flag("B_BY_COL", !b_vec || !along_k)
            .flag("K_TAIL", !p.k.is_multiple_of(4))
            .flag("VEC4", store4)
            .flag("TURNED", turned)
            .flag("BATCHED", !p.batch.is_empty())
            .flag("COLUMN", column)
            .flag("A_SUMS", p.a.summed)
            .flag("B_SUMS", p.b.summed);
        let (entry, defines, tiles_m, tiles_n) = match kernel {
            Kernel::Any => {
                let defines = defines.flag("ANY", true).flag("FLOAT", dtype == DType::F32);
                ("any_strides", defines, p.m, p.n)
            }
            Kernel::Dot(width) | Kernel::SubgroupDot(width) => {
                let subgroup = matches!(kernel, Kernel::SubgroupDot(_));
                let defines = defines.flag("DOT", true).flag("SUBGROUP", subgroup).value("WIDTH", width);
                ("dot_products", defines, p.m, p.n)
            }
            Kernel::Axpy => {
                let rows = if a_by_row { 256 } else { 64 };
                ("axpy", defines.flag("AXPY", true), p.m.div_ceil(rows), 1)
            }
            Kernel::Lanes { rows, fours, more, subgroup } => {
                let loads = if subgroup { rows / 8 } else { rows };
                let defines = defines.flag("LANES", true).flag("SUBGROUP", subgroup).flag("PAIRS", subgroup);
                let defines = defines.value("ROWS", rows).value("LOADS", loads).value("FOURS", fours);
                let defines = defines.value("MORE", more);
                let defines = defines.flag("A_LOOSE", a_loose).flag("B_LOOSE", b_loose);
                ("lanes", defines, p.m.div_ceil(rows + more), p.n.div_ceil(32 * fours + more))
            }
            Kernel::Slices => ("slices_of_columns", defines.flag("SLICES", true), p.m.div_ceil(32), 1),
            Kernel::Tiles { down, across, pieces, depth } => {
                let blocks = depth / 4 * pieces * (down + across);
                let defines = defines.flag("TILES", true).value("PIECES", pieces).value("DEPTH", depth);
                let defines = defines.value("DOWN", down).value("ACROSS", across);
                let defines = defines.value("THREADS", down * across).flag("BOTH", blocks > down * across);
                ("tiles", defines, p.m.div_ceil(4 * pieces * down), p.n.div_ceil(4 * pieces * across))
            }
            Kernel::Cooperative { size, lanes, down, across, matrices: [m, n], depth } => {
                let (rows, columns) = (size * m * down, size * n * across);
                let each = |side: usize| (side * depth / 4).div_ceil(down * across * lanes);
                let defines = defines.flag("COOP", true).value("SIZE", size).value("LANES_EACH", lanes);
                let defines = defines.value("DOWN", down).value("ACROSS", across).value("DEPTH", depth);
                let defines = defines.value("MATRICES_M", m).value("MATRICES_N", n);
                let defines = defines.value("A_EACH", each(rows)).value("B_EACH", each(columns));
                ("cooperative", defines, p.m.div_ceil(rows), p.n.div_ceil(columns))
            }
        };
        let total = tiles_m * tiles_n;
        let mut params = shader::Params {
            m: p.m as u32,
            n: p.n as u32,
            k: p.k as u32,
            tiles_n: tiles_n as u32,
            tiles_m: tiles_m as u32,
            a_m: p.a.rows as u32,
            a_k: p.a.columns as u32,
            b_k: p.b.rows as u32,
            b_n: p.b.columns as u32,
            out_m: out_m as u32,
            out_n: out_n as u32,
            ..Default::default()
        };
        // The kernel walks the innermost batch dimensions; those beyond its table are dispatches of their own.
        let outer = p.batch.len().saturating_sub(params.batch.len());
        let inner = &p.batch[outer..];
        for (d, &size) in inner.iter().enumerate() {
            params.batch[d] = [size as u32, p.a.batch[outer + d] as u32, p.b.batch[outer + d] as u32, 0];
        }
        params.batch_rank = inner.len() as u32;
        let batches: usize = inner.iter().product();
        let groups = (total * batches).div_ceil(if any { 64 } else { 1 });
        params.tiles = (total * batches) as u32;
        let one = |i: usize| {
            let (mut rest, mut params) = (i, params);
            let (mut a_offset, mut b_offset) = (p.a.offset, p.b.offset);
            for d in (0..outer).rev() {
                a_offset += rest % p.batch[d] * p.a.batch[d];
                b_offset += rest % p.batch[d] * p.b.batch[d];
                rest /= p.batch[d];
            }
            params.a_offset = a_offset as u32;
            params.b_offset = b_offset as u32;
            params.out_offset = (i * batches * p.m * p.n) as u32;
            ShaderCall {
                shader: shader::NAME,
                entry,
                defines: defines.0.clone(),
                params: params.into(),
                workgroups: fold_grid(groups),
            }
        };
        (0..p.batch[..outer].iter().product()).map(one).collect()
    }
}
