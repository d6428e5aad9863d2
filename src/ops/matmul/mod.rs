//! Matrix products.

use crate::backend::Prices;
use crate::backend::cpu::gemm;
use crate::backend::cpu::number::Num;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall, tune::Ways};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Rows, Structured, StructuredOp};
use crate::graph::layout::{Dims, Layout, collapse};
use crate::ops::{MAX_BESIDE, MAX_CHAIN};

#[cfg(feature = "gpu")]
pub(in crate::ops) mod variants;
#[cfg(feature = "gpu")]
pub(crate) use variants::split_for;

/// `[batch…, m, k] · [batch…, k, n] -> [batch…, m, n]`. The batch dimensions of both inputs are equal (broadcast
/// ones have stride 0); any strides will do.
#[derive(Debug)]
pub(crate) struct Matmul;

impl StructuredOp for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn key(&self) -> Vec<u64> {
        vec![]
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn reads_halves(&self) -> bool {
        true
    }

    fn stores_once(&self) -> bool {
        true
    }

    fn brings_threads(&self) -> bool {
        true
    }

    fn knows_coordinate(&self, call: &Structured) -> Option<usize> {
        call.out_shape.len().checked_sub(1)
    }

    fn stores_tiles(&self) -> bool {
        true
    }

    fn recomputes(&self, inputs: &[&Layout], input: usize, prices: &Prices) -> Option<usize> {
        let p = Problem::of([inputs[0], inputs[1]]);
        let (own, other) = if input == 0 { (p.m, p.n) } else { (p.n, p.m) };
        // What cannot be read in fours is better read from memory, where words may be taken from anywhere.
        let in_fours = match input {
            0 => p.a.aligned(p.k, p.a.columns, p.a.rows) || p.a.aligned(p.m, p.a.rows, p.a.columns),
            _ => p.b.aligned(p.k, p.b.rows, p.b.columns) || p.b.aligned(p.n, p.b.columns, p.b.rows),
        };
        // Each element of a matrix times a vector has an invocation of its own, which reads all of the vector.
        let tile = if own == 1 { 1 } else { prices.tile };
        (in_fours || !prices.fours).then(|| other.div_ceil(tile))
    }

    fn rows(&self, call: &Structured, input: usize, prices: &Prices) -> Option<Rows> {
        let (p, (dtype, layout)) = (Problem::new(call), &call.inputs[input]);
        // Vectors and halves have kernels that cannot do it, and so have great depths.
        let beside = if input == 0 { p.n } else { p.m };
        let fits = p.m.min(p.n) > 1 && p.batches() > 0 && (1..=MAX_CHAIN).contains(&p.k);
        let fits = fits && beside <= MAX_BESIDE && prices.registers;
        if !fits || *dtype != DType::F32 || call.out_dtype != DType::F32 {
            return None;
        }
        let last = layout.rank() - 1;
        let (row, k) = if input == 0 { (last - 1, last) } else { (last, last - 1) };
        let order: Dims = [row].into_iter().chain(0..last - 1).chain([k]).collect();
        Some(Rows { layout: layout.permute(&order), each: p.k })
    }

    fn flops(&self, call: &Structured) -> u64 {
        Problem::new(call).flops()
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        match self.ways(call, adapter) {
            Some(ways) => adapter.tuner.pick(ways),
            None => variants::calls(call, adapter),
        }
    }

    #[cfg(feature = "gpu")]
    fn ways(&self, call: &Structured, adapter: &AdapterInfo) -> Option<Ways> {
        variants::ways(call, adapter)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let problem = Problem::new(call);
        match call.out_dtype {
            DType::F32 => problem.run::<f32>(inputs, out),
            DType::F64 => problem.run::<f64>(inputs, out),
            DType::I32 => problem.run::<i32>(inputs, out),
            DType::U32 => problem.run::<u32>(inputs, out),
            DType::Bool | DType::F16 => return Err(format!("is not defined for {}", call.out_dtype)),
        }
        Ok(())
    }
}

/// A product as the kernels see it.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Problem {
    m: usize,
    n: usize,
    k: usize,
    /// The operands: `[m, k]` and `[k, n]`.
    a: Operand,
    b: Operand,
    /// Whether `b` is the first input, as this is the transposed product.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the shaders ask"))]
    exchanged: bool,
    /// Whether the epilogue or a prologue reads an operand too, which must then be declared as it expects.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the shaders ask"))]
    shared: bool,
    /// Whether the operands are of halves.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the shaders ask"))]
    halves: bool,
    batch: Dims,
}

#[derive(Clone, Debug)]
struct Operand {
    /// Among the kernel's; `None` where it is computed as it is read.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the shaders ask"))]
    binding: Option<usize>,
    offset: usize,
    rows: usize,
    columns: usize,
    batch: Dims,
    /// Its rows (columns, of the second) are added up, too.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the shaders ask"))]
    summed: bool,
}

impl Operand {
    fn new(layout: &Layout, binding: Option<usize>) -> Operand {
        let batch = layout.rank() - 2;
        // The stride of a dimension of size 1 is never used; 0 is aligned to everything.
        let stride = |d: usize| if layout.shape[d] == 1 { 0 } else { layout.strides[d] };
        Operand {
            binding,
            offset: layout.offset,
            rows: stride(batch),
            columns: stride(batch + 1),
            batch: Dims::from_slice(&layout.strides[..batch]),
            summed: false,
        }
    }

    #[cfg(feature = "gpu")]
    fn transposed(self) -> Operand {
        Operand { rows: self.columns, columns: self.rows, ..self }
    }

    /// Whether its elements lie side by side in memory, along one dimension.
    #[cfg(feature = "gpu")]
    fn is_contiguous(&self) -> bool {
        self.binding.is_some() && (self.rows == 1 || self.columns == 1)
    }

    /// Whether four elements at a time may be read along a dimension of this size and stride, whatever the
    /// place along the `other` dimension.
    fn aligned(&self, size: usize, stride: usize, other: usize) -> bool {
        let four = |n: &usize| n.is_multiple_of(4);
        stride == 1 && four(&size) && four(&other) && four(&self.offset) && self.batch.iter().all(four)
    }
}

impl Problem {
    pub(in crate::ops) fn new(call: &Structured) -> Problem {
        let [(dtype, a), (_, b)] = &call.inputs[..] else { unreachable!("a product has two inputs") };
        let mut problem = Problem::of([a, b]);
        problem.a.binding = call.binding(0);
        problem.b.binding = call.binding(1);
        problem.halves = *dtype == DType::F16;
        let summed = call.sums.as_ref().map(|sums| sums.input);
        problem.a.summed = summed == Some(0);
        problem.b.summed = summed == Some(1);
        let mut loads = call.programs().flat_map(|p| &p.loads);
        problem.shared = loads.any(|l| usize::from(l.binding) < call.bound_inputs());
        problem
    }

    /// The product of what lies in memory so.
    fn of([a, b]: [&Layout; 2]) -> Problem {
        let rank = a.rank();
        let mut problem = Problem {
            m: a.shape[rank - 2],
            n: b.shape[rank - 1],
            k: a.shape[rank - 1],
            a: Operand::new(a, Some(0)),
            b: Operand::new(b, Some(1)),
            exchanged: false,
            halves: false,
            shared: false,
            batch: Dims::new(),
        };
        problem.batch = collapse(&a.shape[..rank - 2], &mut [&mut problem.a.batch, &mut problem.b.batch]);
        problem
    }

    fn batches(&self) -> usize {
        self.batch.iter().product()
    }

    fn flops(&self) -> u64 {
        [self.m, self.n, self.k, self.batches()].iter().fold(2, |f: u64, &n| f.saturating_mul(n as u64))
    }

    fn run<T: gemm::Product + bytemuck::Pod + Num>(&self, inputs: &[&[u8]], out: &mut [u8]) {
        let (a, b) = (bytemuck::cast_slice::<u8, T>(inputs[0]), bytemuck::cast_slice::<u8, T>(inputs[1]));
        let out = bytemuck::cast_slice_mut::<u8, T>(out);
        let operands = |i: usize| {
            let (mut rest, mut from_a, mut from_b) = (i, self.a.offset, self.b.offset);
            for d in (0..self.batch.len()).rev() {
                from_a += rest % self.batch[d] * self.a.batch[d];
                from_b += rest % self.batch[d] * self.b.batch[d];
                rest /= self.batch[d];
            }
            (a.get(from_a..).unwrap_or(&[]), b.get(from_b..).unwrap_or(&[]))
        };
        let (a_strides, b_strides) = ([self.a.rows, self.a.columns], [self.b.rows, self.b.columns]);
        gemm::matmuls([self.m, self.n, self.k], operands, a_strides, b_strides, out);
    }
}
