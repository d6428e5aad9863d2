//! The ways in which a GPU computes a product, and which is taken when.

use crate::backend::gpu::{AdapterClass, AdapterInfo, ShaderCall, kernels::matmul as shader};
use crate::graph::dtype::DType;
use crate::ops::dispatch::{Defines, fold_grid, wgsl_type};

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
    /// An invocation per element of a vector, or per four.
    Axpy,
    /// Registers only: 8 invocations share `rows` rows of 32 columns.
    Lanes { rows: usize, subgroup: bool },
    /// Workgroup memory: 64 invocations compute tiles of `32 * pieces` squared.
    Tiles { pieces: usize },
}

/// The first that fits is taken.
pub(in crate::ops) const VARIANTS: &[Variant] = &{
    use Kernel::{Any, Axpy, Dot, Lanes, Tiles};
    const fn row(kernel: Kernel, fits: fn(&Problem, DType, &AdapterInfo) -> bool) -> Variant {
        Variant { kernel, fits }
    }
    fn software(adapter: &AdapterInfo) -> bool {
        adapter.class == AdapterClass::Software
    }
    fn lanes(dtype: DType, adapter: &AdapterInfo) -> bool {
        dtype == DType::F32 && software(adapter)
    }
    [
        row(Any, |_, dtype, _| dtype != DType::F32),
        // A software adapter has few threads to fill, and a barrier is dear there.
        row(Dot(64), |p, dtype, adapter| {
            dtype == DType::F32 && p.is_vector() && p.outputs() < if software(adapter) { 32 } else { 4096 }
        }),
        row(Axpy, |p, dtype, _| dtype == DType::F32 && p.is_vector()),
        // Larger tiles need fewer loads for the same work, but longer to compile.
        row(Lanes { rows: 32, subgroup: true }, |p, dtype, adapter| {
            lanes(dtype, adapter)
                && adapter.subgroup_size == Some(8)
                && p.flops() >= 1 << 25
                && p.tiles(32, 32) >= 16
        }),
        row(Lanes { rows: 16, subgroup: true }, |_, dtype, adapter| {
            lanes(dtype, adapter) && adapter.subgroup_size == Some(8)
        }),
        row(Lanes { rows: 8, subgroup: false }, |_, dtype, adapter| lanes(dtype, adapter)),
        row(Tiles { pieces: 2 }, |p, _, adapter| !software(adapter) && p.tiles(64, 64) >= 128),
        row(Tiles { pieces: 1 }, |_, _, adapter| !software(adapter)),
        // What is left are depths past the turns of a software driver's loops.
        row(Dot(64), |_, _, _| true),
        row(Dot(256), |_, _, _| true),
    ]
};

impl Variant {
    /// How often an invocation's loop turns.
    pub(super) fn turns(&self, p: &Problem) -> usize {
        match self.kernel {
            Kernel::Any => p.k,
            Kernel::Axpy | Kernel::Lanes { .. } | Kernel::Tiles { .. } => p.k.div_ceil(4),
            Kernel::Dot(width) => p.k.div_ceil(4 * width),
        }
    }

    /// The dispatches of this variant.
    pub fn calls(&self, problem: Problem, dtype: DType) -> Vec<ShaderCall> {
        if problem.outputs() == 0 {
            return vec![];
        }
        let p = match self.kernel {
            Kernel::Dot(_) | Kernel::Axpy => problem.into_column(),
            // The way round that wastes less on the padding of tiles.
            Kernel::Lanes { rows, .. } if problem.padded(32, rows) < problem.padded(rows, 32) => {
                problem.exchange()
            }
            _ => problem,
        };
        let any = self.kernel == Kernel::Any;
        let dot = matches!(self.kernel, Kernel::Dot(_));
        let column = dot || self.kernel == Kernel::Axpy;
        // Along k where that is possible. Dot products can use no other.
        let a_along_k = p.a.aligned(p.k, p.a.columns, p.a.rows);
        let a_by_row = !any && !dot && !a_along_k && p.a.aligned(p.m, p.a.rows, p.a.columns);
        let a_vec = !any && (a_along_k || a_by_row);
        let along_k = p.b.aligned(p.k, p.b.rows, p.b.columns);
        let along_n = p.b.aligned(p.n, p.b.columns, p.b.rows) && !column;
        let b_vec = !any && (along_k || along_n);
        // (m, n) of the output as this product has them.
        let (out_m, out_n) = if p.exchanged { (1, p.m) } else { (p.n, 1) };
        let store4 = match self.kernel {
            Kernel::Any | Kernel::Dot(_) => false,
            Kernel::Axpy => a_by_row,
            Kernel::Lanes { .. } | Kernel::Tiles { .. } => out_n == 1 && p.n.is_multiple_of(4),
        };
        let defines = Defines::default()
            .value("T", wgsl_type(dtype))
            .value("A_AT", if p.exchanged { 3 } else { 2 })
            .value("B_AT", if p.exchanged { 2 } else { 3 })
            .flag("A_VEC", a_vec)
            .flag("A_BY_ROW", a_by_row)
            .flag("B_VEC", b_vec)
            .flag("B_BY_COL", !b_vec || !along_k)
            .flag("K_TAIL", !p.k.is_multiple_of(4))
            .flag("VEC4", store4)
            .flag("BATCHED", !p.batch.is_empty())
            .flag("COLUMN", column);
        let (entry, defines, tiles_m, tiles_n) = match self.kernel {
            Kernel::Any => ("any_strides", defines.flag("ANY", true), p.m, p.n),
            Kernel::Dot(width) => ("dot_products", defines.flag("DOT", true).value("WIDTH", width), p.m, p.n),
            Kernel::Axpy => {
                let rows = if a_by_row { 256 } else { 64 };
                ("axpy", defines.flag("AXPY", true), p.m.div_ceil(rows), 1)
            }
            Kernel::Lanes { rows, subgroup } => {
                let loads = if subgroup { rows / 8 } else { rows };
                let defines = defines.flag("LANES", true).flag("SUBGROUP", subgroup);
                let defines = defines.value("ROWS", rows).value("LOADS", loads);
                ("lanes", defines, p.m.div_ceil(rows), p.n.div_ceil(32))
            }
            Kernel::Tiles { pieces } => {
                let side = 32 * pieces;
                let defines = defines.flag("TILES", true).value("PIECES", pieces);
                ("tiles", defines, p.m.div_ceil(side), p.n.div_ceil(side))
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
