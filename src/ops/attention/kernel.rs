//! Attention as structured ops: the forward pass and the fused gradient.

use super::cpu;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::attention as shader};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Structured, StructuredOp};
use crate::graph::layout::{Dims, Layout, collapse, numel};
use crate::ops::MAX_TURNS;
#[cfg(feature = "gpu")]
use crate::ops::dispatch::{Defines, fold_grid};

/// The most columns that kernels take.
pub(super) const MAX_COLUMNS: usize = 256;
/// Batch dimensions that do not merge, at most: as many as the shader's table has.
pub(super) const MAX_BATCH: usize = 6;

/// `softmax(scale * q kᵀ + mask) v` of q `[batch…, l, e]`, k `[batch…, s, e]`, v `[batch…, s, v]` and maybe a mask
/// `[batch…, l, s]`, which is added, or is of bools that let scores count. Rows that see nothing are zero.
#[derive(Debug)]
pub(crate) struct Attention {
    pub causal: bool,
    pub scale: f64,
    /// Where the result `[batch…, l, v]` lies in the output.
    pub out: Layout,
    /// Where the logarithms of the rows' sums of exponentials begin, `[batch…, l]` row-major, if they are asked for.
    pub lse: Option<usize>,
}

/// Its gradients by q, k and v, of these, the gradient of the result, the logarithms of the rows' sums of exponentials, the
/// rows' sums of gradient times result, and maybe a mask.
#[derive(Debug)]
pub(crate) struct AttentionBackward {
    pub causal: bool,
    pub scale: f64,
    /// Where the gradients lie in the output.
    pub grads: [Layout; 3],
}

fn key(causal: bool, scale: f64, layouts: &[&Layout], rest: impl IntoIterator<Item = usize>) -> Vec<u64> {
    let mut key = vec![u64::from(causal), scale.to_bits()];
    for layout in layouts {
        key.push(layout.offset as u64);
        key.extend(layout.strides.iter().map(|&s| s as u64));
    }
    key.extend(rest.into_iter().map(|n| n as u64));
    key
}

impl StructuredOp for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn key(&self) -> Vec<u64> {
        key(self.causal, self.scale, &[&self.out], self.lse)
    }

    fn flops(&self, call: &Structured) -> u64 {
        Problem::forward(self, call).flops(2)
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let problem = Problem::forward(self, call);
        vec![problem.calls(Pass::Forward, chosen(&problem, adapter).0)]
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let problem = Problem::forward(self, call);
        match call.out_dtype {
            DType::F32 => cpu::forward::<f32>(&problem, inputs, out),
            DType::F64 => cpu::forward::<f64>(&problem, inputs, out),
            other => return Err(format!("is not defined for {other}")),
        }
        Ok(())
    }
}

impl StructuredOp for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn key(&self) -> Vec<u64> {
        let [q, k, v] = &self.grads;
        key(self.causal, self.scale, &[q, k, v], None)
    }

    fn flops(&self, call: &Structured) -> u64 {
        Problem::backward(self, call).flops(5)
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let problem = Problem::backward(self, call);
        let kernel = chosen(&problem, adapter).1;
        problem.gradients(kernel)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let problem = Problem::backward(self, call);
        match call.out_dtype {
            DType::F32 => cpu::backward::<f32>(&problem, inputs, out),
            DType::F64 => cpu::backward::<f64>(&problem, inputs, out),
            other => return Err(format!("is not defined for {other}")),
        }
        Ok(())
    }
}

/// Matrices, one for each batch, in one buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Operand {
    pub offset: usize,
    pub row: usize,
    pub column: usize,
    pub batch: Dims,
}

impl Operand {
    fn new(layout: &Layout) -> Operand {
        let batch = layout.rank() - 2;
        // The stride of a dimension of size 1 is never used; 0 is aligned to everything.
        let stride = |d: usize| if layout.shape[d] == 1 { 0 } else { layout.strides[d] };
        Operand {
            offset: layout.offset,
            row: stride(batch),
            column: stride(batch + 1),
            batch: (0..batch).map(stride).collect(),
        }
    }

    /// Whether rows may be read by fours.
    #[cfg(feature = "gpu")]
    fn by_four(&self) -> bool {
        let four = |n: &usize| n.is_multiple_of(4);
        self.column <= 1 && four(&self.offset) && four(&self.row) && self.batch.iter().all(four)
    }
}

/// An attention as the kernels see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Problem {
    pub batch: Dims,
    pub l: usize,
    pub s: usize,
    pub e: usize,
    pub v: usize,
    pub causal: bool,
    pub scale: f64,
    /// q, k, v, and the gradient of the result.
    pub inputs: [Operand; 4],
    pub mask: Option<Mask>,
    /// The result in place of v's gradient, or the gradients by q, k and v.
    pub outs: [Operand; 3],
    /// Where logarithms of sums are in the output of the forward pass.
    pub lse_out: Option<usize>,
    /// Where these, and the rows' sums of gradient times result, begin among the inputs of the backward pass.
    pub lse: usize,
    pub delta: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Mask {
    pub at: Operand,
    pub bools: bool,
    /// Which input it is.
    pub input: usize,
}

impl Problem {
    pub(super) fn forward(op: &Attention, call: &Structured) -> Problem {
        let mut outs: [Operand; 3] = Default::default();
        outs[2] = Operand::new(&op.out);
        let problem =
            Problem { causal: op.causal, scale: op.scale, outs, lse_out: op.lse, ..Default::default() };
        problem.read(call, 3)
    }

    pub(super) fn backward(op: &AttentionBackward, call: &Structured) -> Problem {
        let outs = [0, 1, 2].map(|i| Operand::new(&op.grads[i]));
        let (lse, delta) = (call.inputs[4].1.offset, call.inputs[5].1.offset);
        let problem = Problem { causal: op.causal, scale: op.scale, outs, lse, delta, ..Default::default() };
        problem.read(call, 6)
    }

    /// The rest, of inputs of which a mask is number `mask`.
    fn read(mut self, call: &Structured, mask: usize) -> Problem {
        let layout = |i: usize| &call.inputs[i].1;
        let (q, k, v) = (layout(0), layout(1), layout(2));
        let rank = q.rank();
        let sizes = |l: &Layout| (l.shape[rank - 2], l.shape[rank - 1]);
        (self.l, self.e) = sizes(q);
        (self.s, self.v) = sizes(v);
        self.inputs = [q, k, v, if mask > 3 { layout(3) } else { q }].map(Operand::new);
        self.mask = call.inputs.get(mask).map(|(dtype, layout)| Mask {
            at: Operand::new(layout),
            bools: *dtype == DType::Bool,
            input: mask,
        });
        let mut strides: Vec<&mut Dims> = self.inputs.iter_mut().map(|o| &mut o.batch).collect();
        strides.extend(self.outs.iter_mut().map(|o| &mut o.batch).filter(|b| b.len() + 2 == rank));
        strides.extend(self.mask.as_mut().map(|m| &mut m.at.batch));
        self.batch = collapse(&q.shape[..rank - 2], &mut strides);
        self
    }

    pub fn batches(&self) -> usize {
        numel(&self.batch)
    }

    /// Where a batch begins beyond an operand's offset.
    pub fn batch_offset(&self, operand: &Operand, mut number: usize) -> usize {
        let mut at = 0;
        for (&size, &stride) in self.batch.iter().zip(&operand.batch).rev() {
            at += number % size * stride;
            number /= size;
        }
        at
    }

    /// Operations of this many products, half of them of the matrices' scores with q's columns.
    fn flops(&self, products: u64) -> u64 {
        let scores = (self.batches() * self.l * self.s) as u64;
        scores * products * (self.e + self.v) as u64 / if self.causal { 2 } else { 1 }
    }
}

/// Whether the kernels take such rows: they end in the turns of loops that software drivers grant.
pub(super) fn fits(rows: usize, e: usize, v: usize) -> bool {
    (1..=MAX_COLUMNS).contains(&e)
        && (1..=MAX_COLUMNS).contains(&v)
        && rows.div_ceil(32) * (e.div_ceil(16) + v.div_ceil(16) + 4 * (e.div_ceil(32) + v.div_ceil(32)) + 3)
            <= MAX_TURNS
}

#[cfg(feature = "gpu")]
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Pass {
    Forward,
    /// The gradient by q.
    Queries,
    /// The gradients by k, by v, or both.
    Keys {
        k: bool,
        v: bool,
    },
}

#[cfg(feature = "gpu")]
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Kernel {
    /// Registers only: 8 invocations with `rows` rows each, which see `step` others at a time.
    Lanes { rows: usize, step: usize, subgroup: bool },
    /// Registers only: 8 invocations, a subgroup, share `rows` rows (8 or 16), whose scores are sums over columns in a loop.
    Wide { rows: usize },
    /// Workgroup memory.
    Tiles,
}

/// How an attention is computed: forward, and backward, for so many columns (the most of e and v). The first that fits them and the
/// adapter is taken. More rows and steps at a time need fewer loads for the same work, but longer to compile, the backward
/// passes above all, which have twice the sums and products.
#[cfg(feature = "gpu")]
pub(super) const VARIANTS: &[(Kernel, Kernel, usize)] = &{
    const fn lanes(rows: usize, step: usize, subgroup: bool) -> Kernel {
        Kernel::Lanes { rows, step, subgroup }
    }
    [
        (lanes(4, 4, true), lanes(4, 2, true), 16),
        (lanes(4, 2, true), lanes(2, 2, true), 32),
        (lanes(4, 1, true), lanes(2, 1, true), 64),
        (lanes(2, 1, true), lanes(2, 1, true), 128),
        (Kernel::Wide { rows: 8 }, Kernel::Wide { rows: 8 }, MAX_COLUMNS),
        (lanes(2, 4, false), lanes(2, 2, false), 64),
        (Kernel::Tiles, Kernel::Tiles, MAX_COLUMNS),
    ]
};

#[cfg(feature = "gpu")]
impl Kernel {
    pub(super) fn runs_on(self, adapter: &AdapterInfo) -> bool {
        match self {
            Kernel::Lanes { subgroup: false, .. } => adapter.is_software(),
            Kernel::Lanes { .. } | Kernel::Wide { .. } => adapter.has_eights() && adapter.pairs,
            Kernel::Tiles => true,
        }
    }

    /// The turns of all loops of an invocation, at most. (Those of tiles are within what [`fits`] allows.)
    fn turns(self, problem: &Problem) -> usize {
        let (theirs, fours) = (problem.l.max(problem.s), problem.e.div_ceil(4) + problem.v.div_ceil(4));
        match self {
            Kernel::Lanes { rows, step, .. } => theirs.div_ceil(step) + (rows + 3) * (fours + 2),
            Kernel::Wide { rows } => theirs.div_ceil(32) * (fours + rows / 4 + 96) + rows * (fours + 2),
            Kernel::Tiles => 0,
        }
    }
}

#[cfg(feature = "gpu")]
fn chosen(problem: &Problem, adapter: &AdapterInfo) -> (Kernel, Kernel) {
    let columns = problem.e.max(problem.v);
    let fits = |kernel: Kernel| kernel.runs_on(adapter) && kernel.turns(problem) <= MAX_TURNS;
    let found = VARIANTS.iter().find(|v| columns <= v.2 && fits(v.0) && fits(v.1));
    found.map_or((Kernel::Tiles, Kernel::Tiles), |&(forward, backward, _)| (forward, backward))
}

#[cfg(feature = "gpu")]
impl Problem {
    /// The dispatches of all gradients.
    pub(super) fn gradients(&self, kernel: Kernel) -> Vec<ShaderCall> {
        // Sums of more columns than this leave no registers for anything else, and it is cheaper to find the scores twice.
        let apart = kernel == Kernel::Tiles && self.e.div_ceil(32) + self.v.div_ceil(32) > 8;
        let keys = |k: bool, v: bool| Pass::Keys { k, v };
        let passes = if apart { vec![keys(true, false), keys(false, true)] } else { vec![keys(true, true)] };
        std::iter::once(Pass::Queries).chain(passes).map(|pass| self.calls(pass, kernel)).collect()
    }

    /// The dispatch of one pass.
    pub(super) fn calls(&self, pass: Pass, kernel: Kernel) -> ShaderCall {
        debug_assert!(self.l.max(self.s) <= MAX_TURNS * 32);
        let [q, k, v, g] = &self.inputs;
        let [dq, dk, dv] = &self.outs;
        let unused = Operand { batch: Dims::from_elem(0, self.batch.len()), ..Operand::default() };
        // Operands as the shader calls them, with their bindings; see there.
        let ((x, x_at), (y, y_at), (a, a_at), (b, b_at)) = match pass {
            Pass::Forward => ((q, 2), (&unused, 0), (k, 3), (v, 4)),
            Pass::Queries => ((q, 2), (g, 5), (k, 3), (v, 4)),
            Pass::Keys { .. } => ((k, 3), (v, 4), (q, 2), (g, 5)),
        };
        // Where the sums go, and which of them there are.
        let (a_out, b_out, [a_sums, b_sums]) = match pass {
            Pass::Forward => (&unused, dv, [false, true]),
            Pass::Queries => (dq, &unused, [true, false]),
            Pass::Keys { k, v } => (dk, dv, [k, v]),
        };
        let keys = matches!(pass, Pass::Keys { .. });
        let (mine, theirs) = if keys { (self.s, self.l) } else { (self.l, self.s) };
        let mask = self.mask.as_ref().map_or(&unused, |m| &m.at);
        let four = |n: usize| n.is_multiple_of(4);
        let vec = four(self.e) && four(self.v) && [x, y, a, b, a_out, b_out].iter().all(|o| o.by_four());
        let (e4, v4) = (self.e.div_ceil(4), self.v.div_ceil(4));
        let defines = Defines::default()
            .flag("FORWARD", pass == Pass::Forward)
            .flag("BACKWARD", pass != Pass::Forward)
            .flag("QUERIES", pass == Pass::Queries)
            .flag("KEYS", keys)
            .flag("A_SUMS", a_sums)
            .flag("LSE", pass == Pass::Forward && self.lse_out.is_some())
            .flag("CAUSAL", self.causal)
            .flag("MASK", self.mask.is_some())
            .flag("BOOLS", self.mask.as_ref().is_some_and(|m| m.bools))
            .flag("VEC", vec)
            .flag("VEC4", vec)
            .value("X_AT", x_at)
            .value("Y_AT", y_at)
            .value("A_AT", a_at)
            .value("B_AT", b_at)
            .value("MASK_AT", 2 + self.mask.as_ref().map_or(0, |m| m.input))
            .flag("B_SUMS", b_sums)
            .value("E4", e4)
            .value("V4", v4);
        let (entry, rows, defines) = match kernel {
            Kernel::Lanes { rows, step, subgroup } => {
                let loads = |columns: usize| (step * columns).div_ceil(if subgroup { 8 } else { 1 });
                let defines = defines
                    .flag("LANES", true)
                    .flag("SUBGROUP", subgroup)
                    .flag("PAIRS", subgroup && vec)
                    .value("ROWS", rows)
                    .flag("FOUR", rows == 4)
                    .value("STEP", step)
                    .value("LOAD_A", loads(e4))
                    .value("LOAD_B", loads(v4));
                ("lanes", 8 * rows, defines)
            }
            Kernel::Wide { rows } => {
                let (fours_a, fours_b) = (e4.div_ceil(8), v4.div_ceil(8));
                // Rows of theirs at a time, of the four that a lane has weights of, and how the rest of these move up.
                let each = |fours: usize| match fours {
                    0..=2 => (4, "xyzw"),
                    3..=4 => (2, "zwxy"),
                    _ => (1, "yzwx"),
                };
                let ((each_a, turned_a), (each_b, turned_b)) = (each(fours_a), each(fours_b));
                let defines = defines
                    .flag("WIDE", true)
                    .flag("SUBGROUP", true)
                    .flag("PAIRS", vec)
                    .value("ROWS", rows)
                    .value("FOURS_A", fours_a)
                    .value("EACH_A", each_a)
                    .value("TURNED_A", turned_a)
                    .value("FOURS_B", fours_b)
                    .value("EACH_B", each_b)
                    .value("TURNED_B", turned_b);
                ("wide", rows, defines)
            }
            Kernel::Tiles => {
                let chunks = |columns: usize| columns.div_ceil(8);
                let defines = defines.flag("TILES", true);
                ("tiles", 32, defines.value("CHUNKS_A", chunks(e4)).value("CHUNKS_B", chunks(v4)))
            }
        };
        let tiles = mine.div_ceil(rows);
        let (mask_mine, mask_theirs) = if keys { (mask.column, mask.row) } else { (mask.row, mask.column) };
        let mut params = shader::Params {
            mine: mine as u32,
            theirs: theirs as u32,
            e: self.e as u32,
            v: self.v as u32,
            row_tiles: tiles as u32,
            tiles: (tiles * self.batches()) as u32,
            batch_rank: self.batch.len() as u32,
            scale: self.scale as f32,
            x_offset: x.offset as u32,
            x_row: x.row as u32,
            x_col: x.column as u32,
            y_offset: y.offset as u32,
            y_row: y.row as u32,
            y_col: y.column as u32,
            a_offset: a.offset as u32,
            a_row: a.row as u32,
            a_col: a.column as u32,
            b_offset: b.offset as u32,
            b_row: b.row as u32,
            b_col: b.column as u32,
            mask_offset: mask.offset as u32,
            mask_mine: mask_mine as u32,
            mask_theirs: mask_theirs as u32,
            lse_offset: self.lse as u32,
            delta_offset: self.delta as u32,
            a_out: a_out.offset as u32,
            a_out_row: a_out.row as u32,
            b_out: b_out.offset as u32,
            b_out_row: b_out.row as u32,
            lse_out: self.lse_out.unwrap_or(0) as u32,
            ..Default::default()
        };
        for (d, &size) in self.batch.iter().enumerate() {
            let of = |o: &Operand| o.batch[d] as u32;
            params.batch[2 * d] = [size as u32, of(x), of(y), of(a)];
            params.batch[2 * d + 1] = [of(b), of(mask), of(a_out), of(b_out)];
        }
        ShaderCall {
            shader: shader::NAME,
            entry,
            defines: defines.0,
            params: params.into(),
            workgroups: fold_grid(tiles * self.batches()),
        }
    }
}
