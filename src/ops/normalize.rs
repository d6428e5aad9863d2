//! Rows brought to mean 0 and variance 1, or to a mean square of 1: what layer_norm and rms_norm compute, and their
//! gradients.

use rayon::prelude::*;

use crate::backend::Prices;
use crate::backend::cpu::number::Real;
use crate::backend::cpu::simd::{Work, vectorized};
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::norm as shader};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Structured, StructuredOp};
use crate::graph::layout::Layout;
#[cfg(feature = "gpu")]
use crate::ops::MAX_TURNS;
#[cfg(feature = "gpu")]
use crate::ops::dispatch::fold_grid;
#[cfg(feature = "gpu")]
use crate::ops::row_kernels::Kernel;
use crate::ops::rows::{fold, plus, recomputed, sum_pairs};

/// Of contiguous rows `x: [rows, n]`.
#[derive(Debug)]
pub(crate) struct Normalize {
    /// Leaves the mean where it is.
    pub rms: bool,
    pub eps: f64,
    pub task: Task,
}

/// What is computed, of which inputs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Task {
    /// Of x and, as far as there are any, weight and bias (`[n]`): the normalised rows times the one plus the other.
    Forward { weight: bool, bias: bool },
    /// Of the result's gradient, x and the weight if there is one: the gradient of x.
    Gradient { weight: bool },
    /// Of the result's gradient and x: `[parts, 1 or 2, n]`, for each part of the rows (`each` of them) the weight's
    /// gradient and, if asked for, the bias's.
    Parameters { bias: bool, each: usize },
}

/// The longest rows of which [`Task::Parameters`] can be computed: more do not fit in registers.
pub(crate) const LONGEST: usize = 1024;

impl StructuredOp for Normalize {
    fn name(&self) -> &'static str {
        match (self.rms, self.task) {
            (false, Task::Forward { .. }) => "layer_norm",
            (true, Task::Forward { .. }) => "rms_norm",
            (false, Task::Gradient { .. }) => "layer_norm_backward",
            (true, Task::Gradient { .. }) => "rms_norm_backward",
            (_, Task::Parameters { .. }) => "norm_parameters_backward",
        }
    }

    fn key(&self) -> Vec<u64> {
        let task = match self.task {
            Task::Forward { weight, bias } => [0, u64::from(weight), u64::from(bias)],
            Task::Gradient { weight } => [1, u64::from(weight), 0],
            Task::Parameters { bias, each } => [2, u64::from(bias), each as u64],
        };
        [vec![u64::from(self.rms), self.eps.to_bits()], task.to_vec()].concat()
    }

    fn fuses_epilogue(&self) -> bool {
        !matches!(self.task, Task::Parameters { .. })
    }

    fn recomputes(&self, inputs: &[&Layout], input: usize, prices: &Prices) -> Option<usize> {
        let (rows, loops) = match self.task {
            // For the mean, the squares and the results.
            Task::Forward { .. } => (1, 3),
            Task::Gradient { .. } => (2, 4),
            Task::Parameters { .. } => (2, 1),
        };
        if input < rows { recomputed(inputs[input], loops, prices) } else { None }
    }

    fn flops(&self, call: &Structured) -> u64 {
        // Two sums, a difference and a square before what is made of them.
        let each = match self.task {
            Task::Forward { .. } => 7,
            Task::Gradient { .. } => 13,
            Task::Parameters { .. } => 8,
        };
        each * call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let rows = Rows::new(self, call, adapter);
        let within = |kernel: Kernel| !rows.software || rows.turns(kernel) <= MAX_TURNS;
        let chosen = VARIANTS.iter().find(|(kernel, fits)| within(*kernel) && fits(&rows));
        chosen.map_or_else(Vec::new, |(kernel, _)| rows.calls(*kernel, self, call))
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        match call.out_dtype {
            DType::F32 => self.run::<f32>(call, inputs, None, out),
            DType::F64 => self.run::<f64>(call, inputs, None, out),
            other => return Err(format!("is not defined for {other}")),
        }
        Ok(())
    }

    fn piece(&self, call: &Structured) -> usize {
        let rows = self.fuses_epilogue() && matches!(call.out_dtype, DType::F32 | DType::F64);
        if rows { call.inputs[0].1.shape[1] } else { 0 }
    }

    fn cpu_pieces(&self, call: &Structured, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        match call.out_dtype {
            DType::F64 => self.run::<f64>(call, inputs, Some(first), out),
            _ => self.run::<f32>(call, inputs, Some(first), out),
        }
    }
}

/// Elements a thread should have at least.
const WORTH_A_THREAD: usize = 16 << 10;

impl Normalize {
    /// `first`: some rows only, from this element on, on this thread.
    fn run<T: Real + bytemuck::Pod>(
        &self,
        call: &Structured,
        inputs: &[&[u8]],
        first: Option<usize>,
        out: &mut [u8],
    ) {
        let &[rows, n] = &call.inputs[0].1.shape[..] else { unreachable!("the norms take [rows, n]") };
        let out = bytemuck::cast_slice_mut::<u8, T>(out);
        if out.is_empty() {
            return;
        }
        let input = |i: usize| -> &[T] {
            let layout = &call.inputs[i].1;
            &bytemuck::cast_slice::<u8, T>(inputs[i])[layout.offset..][..layout.numel()]
        };
        let (rms, eps) = (self.rms, T::of(self.eps));
        let each = WORTH_A_THREAD.div_ceil(n);
        let part = |i: usize, each: usize| i * each * n..((i + 1) * each).min(rows) * n;
        match self.task {
            Task::Forward { weight, bias } => {
                let (x, weight) = (input(0), weight.then(|| input(1)));
                let bias = bias.then(|| input(1 + usize::from(weight.is_some())));
                some_rows(out, each * n, first, |at, out| {
                    vectorized(Forward { x: &x[at..at + out.len()], weight, bias, out, n, rms, eps });
                });
            }
            Task::Gradient { weight } => {
                let (g, x, weight) = (input(0), input(1), weight.then(|| input(2)));
                some_rows(out, each * n, first, |at, out| {
                    let part = at..at + out.len();
                    vectorized(Gradient { g: &g[part.clone()], x: &x[part], weight, out, n, rms, eps });
                });
            }
            Task::Parameters { bias, each } => {
                let (g, x) = (input(0), input(1));
                let sums = n * (1 + usize::from(bias));
                let least = WORTH_A_THREAD.div_ceil(each * n);
                out.par_chunks_mut(sums).with_min_len(least).enumerate().for_each(|(i, out)| {
                    let part = part(i, each);
                    vectorized(Parameters { g: &g[part.clone()], x: &x[part], out, n, rms, eps });
                });
            }
        }
    }
}

/// Does `work` on rows that begin with element `first` here, or on all of them, `each` elements at a time on all threads.
fn some_rows<T: Send>(
    out: &mut [T],
    each: usize,
    first: Option<usize>,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    match first {
        Some(first) => work(first, out),
        None => out.par_chunks_mut(each).enumerate().for_each(|(i, out)| work(i * each, out)),
    }
}

/// The mean of a row (0 where it is to stay), and one over the root of its variance. In two passes: the difference
/// of the mean square and the squared mean would lose all digits where the mean is large.
#[inline(always)]
fn moments<T: Real>(x: &[T], rms: bool, eps: T) -> (T, T) {
    let share = T::ONE / T::of(x.len() as f64);
    let mean = if rms { T::ZERO } else { fold(x, T::ZERO, |v| v, plus) * share };
    let squares = fold(x, T::ZERO, |v| (v - mean) * (v - mean), plus);
    (mean, T::ONE / (squares * share + eps).sqrt())
}

struct Forward<'a, T> {
    x: &'a [T],
    weight: Option<&'a [T]>,
    bias: Option<&'a [T]>,
    out: &'a mut [T],
    n: usize,
    rms: bool,
    eps: T,
}

impl<T: Real> Work for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, out) in self.x.chunks_exact(self.n).zip(self.out.chunks_exact_mut(self.n)) {
            let (mean, r) = moments(x, self.rms, self.eps);
            match (self.weight, self.bias) {
                (Some(w), Some(b)) => {
                    for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(w).zip(b) {
                        *out = (x - mean) * r * w + b;
                    }
                }
                (w, b) => {
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = (x - mean) * r;
                    }
                    if let Some(w) = w {
                        out.iter_mut().zip(w).for_each(|(out, &w)| *out = *out * w);
                    }
                    if let Some(b) = b {
                        out.iter_mut().zip(b).for_each(|(out, &b)| *out = *out + b);
                    }
                }
            }
        }
    }
}

struct Gradient<'a, T> {
    g: &'a [T],
    x: &'a [T],
    weight: Option<&'a [T]>,
    out: &'a mut [T],
    n: usize,
    rms: bool,
    eps: T,
}

impl<T: Real> Work for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let share = T::ONE / T::of(self.n as f64);
        let rows = self.g.chunks_exact(self.n).zip(self.x.chunks_exact(self.n));
        for ((g, x), h) in rows.zip(self.out.chunks_exact_mut(self.n)) {
            let (mean, r) = moments(x, self.rms, self.eps);
            match self.weight {
                Some(w) => h.iter_mut().zip(g).zip(w).for_each(|((h, &g), &w)| *h = g * w),
                None => h.copy_from_slice(g),
            }
            let flat = if self.rms { T::ZERO } else { fold(h, T::ZERO, |h| h, plus) * share };
            let slope = sum_pairs(h, x, |h, x| h * (x - mean)) * share * r * r;
            for (h, &x) in h.iter_mut().zip(x) {
                *h = ((*h - flat) - (x - mean) * slope) * r;
            }
        }
    }
}

/// Sums over some rows: of the weight's gradient and, if `out` has room, of the bias's.
struct Parameters<'a, T> {
    g: &'a [T],
    x: &'a [T],
    out: &'a mut [T],
    n: usize,
    rms: bool,
    eps: T,
}

impl<T: Real> Work for Parameters<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.out.fill(T::ZERO);
        let (weights, biases) = self.out.split_at_mut(self.n);
        for (g, x) in self.g.chunks_exact(self.n).zip(self.x.chunks_exact(self.n)) {
            let (mean, r) = moments(x, self.rms, self.eps);
            if biases.is_empty() {
                for ((w, &g), &x) in weights.iter_mut().zip(g).zip(x) {
                    *w = *w + g * ((x - mean) * r);
                }
            } else {
                for (((w, b), &g), &x) in weights.iter_mut().zip(biases.iter_mut()).zip(g).zip(x) {
                    *w = *w + g * ((x - mean) * r);
                    *b = *b + g;
                }
            }
        }
    }
}

#[cfg(feature = "gpu")]
pub(super) struct Rows {
    rows: usize,
    pub n: usize,
    pub parameters: bool,
    software: bool,
    /// The size of subgroups, where all have one.
    subgroup: Option<u32>,
    /// Whether fours are read as words of 64 bits.
    pairs: bool,
}

#[cfg(feature = "gpu")]
type Fits = fn(&Rows) -> bool;

/// The first that fits is taken. On a software adapter barriers are dear and every lane pays for its load, so that
/// a row in registers, read once, is best. On a GPU invocations side by side should read memory side by side.
#[cfg(feature = "gpu")]
pub(super) const VARIANTS: &[(Kernel, Fits)] = &{
    use Kernel::{Registers, Unrolled};
    const fn team(width: usize, subgroup: bool, registers: bool) -> Kernel {
        Kernel::team(width, subgroup, registers)
    }
    [
        (Registers, |r| !r.parameters && r.n <= 32 && (r.software || r.rows >= 1024)),
        // Longer ones take longer to compile than they save.
        (team(8, true, true), |r| r.software && r.subgroup == Some(8) && r.n <= LONGEST),
        (team(8, true, false), |r| r.software && r.subgroup == Some(8) && !r.parameters),
        // Subgroups share rows without a word through workgroup memory.
        (team(32, true, true), |r| r.subgroup == Some(32) && r.n <= 1024),
        (team(64, true, true), |r| r.subgroup == Some(64) && r.n <= 1024),
        (team(64, false, true), |r| r.n <= 1024),
        (team(256, false, true), |r| !r.software && r.n <= 4096),
        (team(64, false, false), |r| r.software && !r.parameters),
        (team(256, false, false), |r| !r.parameters),
        (Unrolled(8), |r| !r.parameters),
    ]
};

#[cfg(feature = "gpu")]
impl Rows {
    pub(super) fn new(op: &Normalize, call: &Structured, adapter: &AdapterInfo) -> Rows {
        let &[rows, n] = &call.inputs[0].1.shape[..] else { unreachable!("the norms take [rows, n]") };
        let software = adapter.is_software();
        let parameters = matches!(op.task, Task::Parameters { .. });
        Rows { rows, n, parameters, software, subgroup: adapter.subgroup_size, pairs: adapter.pairs }
    }

    /// How often an invocation's loops turn over a row: for the mean, the variance, a gradient's sums, the results.
    fn turns(&self, kernel: Kernel) -> usize {
        1 + 4 * kernel.turns(self.n, self.software)
    }

    pub(super) fn calls(&self, kernel: Kernel, op: &Normalize, call: &Structured) -> Vec<ShaderCall> {
        if self.n == 0 || call.out_shape.contains(&0) {
            return vec![];
        }
        let (gradient, weight, bias) = match op.task {
            Task::Forward { weight, bias } => (false, weight, bias),
            Task::Gradient { weight } => (true, weight, false),
            Task::Parameters { bias, .. } => (false, false, bias),
        };
        // On a software adapter several rows share the weights' loads.
        let each = match op.task {
            Task::Parameters { each, .. } => each,
            _ if self.software && kernel.in_registers() && kernel.is_team() => (self.rows / 64).clamp(1, 16),
            _ => 1,
        };
        // What there is not has the number of no input.
        let (g, x) = if gradient || self.parameters { (0, 1) } else { (call.inputs.len(), 0) };
        let (w, b) = (x + 1, x + 1 + usize::from(weight));
        let offset = |i: usize| call.inputs.get(i).map_or(0, |(_, layout)| layout.offset as u32);
        let offsets = call.inputs.iter().map(|(_, layout)| layout.offset);
        let defines = kernel
            .defines(self.n, [self.software, self.pairs], true, offsets)
            .flag("AGAIN", true)
            .flag("GRADIENT", gradient)
            .flag("PARAMETERS", self.parameters)
            .flag("RMS", op.rms)
            .flag("WEIGHT", weight)
            .flag("BIAS", bias)
            // Which inputs there are, and where.
            .flag("G", x > 0)
            .flag("ADDED", bias && !self.parameters)
            .input(["X_AT", "X_PRE"], call, x)
            .input(["G_AT", "G_PRE"], call, g)
            .input(["W_AT", "W_PRE"], call, w)
            .input(["B_AT", "B_PRE"], call, b);
        let params = shader::Params {
            rows: self.rows as u32,
            n: self.n as u32,
            each: each as u32,
            eps: (op.eps as f32).to_bits(),
            x_offset: offset(x),
            g_offset: offset(g),
            w_offset: if weight { offset(w) } else { 0 },
            b_offset: if bias { offset(b) } else { 0 },
        };
        vec![ShaderCall {
            shader: shader::NAME,
            entry: "norm",
            defines: defines.0,
            params: params.into(),
            workgroups: fold_grid(
                self.rows.div_ceil(each * if kernel.is_team() { 1 } else { kernel.width(self.software) }),
            ),
        }]
    }
}
