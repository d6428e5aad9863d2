//! Softmax and its logarithm.

use rayon::prelude::*;

use crate::backend::Prices;
use crate::backend::cpu::number::Real;
use crate::backend::cpu::simd::{Work, vectorized};
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::softmax as shader};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Structured, StructuredOp};
use crate::graph::layout::Layout;
#[cfg(feature = "gpu")]
use crate::ops::row_kernels::{Fits, Kernel, Rows};
use crate::ops::rows::{COLUMNS, WORTH_A_THREAD, fold, greater, map_sum, plus, recomputed, sum_pairs};

/// Softmax over the middle dimension of a contiguous `[outer, n, inner]`; `log` of it.
#[derive(Debug)]
pub(crate) struct Softmax {
    pub log: bool,
}

/// Its gradient, of the gradient of the result and the result: `(g - sum(g * y)) * y`, and `g - exp(y) * sum(g)`
/// for the logarithm. Both are contiguous `[outer, n, inner]`.
#[derive(Debug)]
pub(crate) struct SoftmaxBackward {
    pub log: bool,
}

impl StructuredOp for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn key(&self) -> Vec<u64> {
        vec![u64::from(self.log)]
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn recomputes(&self, inputs: &[&Layout], input: usize, prices: &Prices) -> Option<usize> {
        // For the greatest, the sum and the results.
        recomputed(inputs[input], 3, prices)
    }

    fn flops(&self, call: &Structured) -> u64 {
        // A maximum, a subtraction, an exponential, a sum and a division each.
        5 * call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        dispatch(call, self.log, adapter)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        on_dtype(call, self.log, inputs, None, out)
    }

    fn piece(&self, call: &Structured) -> usize {
        slab(call)
    }

    fn cpu_pieces(&self, call: &Structured, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let _ = on_dtype(call, self.log, inputs, Some(first), out);
    }
}

impl StructuredOp for SoftmaxBackward {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax_backward" } else { "softmax_backward" }
    }

    fn key(&self) -> Vec<u64> {
        vec![u64::from(self.log)]
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn recomputes(&self, inputs: &[&Layout], input: usize, prices: &Prices) -> Option<usize> {
        // For the sum and the results.
        recomputed(inputs[input], 2, prices)
    }

    fn flops(&self, call: &Structured) -> u64 {
        4 * call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        dispatch(call, self.log, adapter)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        on_dtype(call, self.log, inputs, None, out)
    }

    fn piece(&self, call: &Structured) -> usize {
        slab(call)
    }

    fn cpu_pieces(&self, call: &Structured, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let _ = on_dtype(call, self.log, inputs, Some(first), out);
    }
}

/// Elements of one `[n, inner]`; 0 where the type has no kernel.
fn slab(call: &Structured) -> usize {
    match (&call.inputs[0].1.shape[..], call.out_dtype) {
        (&[_, n, inner], DType::F32 | DType::F64) => n * inner,
        _ => 0,
    }
}

/// `first`: of some slabs only, from this element on, on this thread.
fn on_dtype(
    call: &Structured,
    log: bool,
    inputs: &[&[u8]],
    first: Option<usize>,
    out: &mut [u8],
) -> Result<(), String> {
    match call.out_dtype {
        DType::F32 => run::<f32>(call, log, inputs, first, out),
        DType::F64 => run::<f64>(call, log, inputs, first, out),
        other => return Err(format!("is not defined for {other}")),
    }
    Ok(())
}

fn run<T: Real + bytemuck::Pod>(
    call: &Structured,
    log: bool,
    inputs: &[&[u8]],
    first: Option<usize>,
    out: &mut [u8],
) {
    let &[_, n, inner] = &call.inputs[0].1.shape[..] else { unreachable!("softmax takes [outer, n, inner]") };
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    let slab = n * inner;
    if out.is_empty() {
        return;
    }
    let input = |i: usize| {
        let layout = &call.inputs[i].1;
        &bytemuck::cast_slice::<u8, T>(inputs[i])[layout.offset..][..layout.numel()]
    };
    let (x, y) = (input(0), (inputs.len() > 1).then(|| input(1)));
    let some = |first: usize, out: &mut [T]| {
        let part = first..first + out.len();
        vectorized(Slabs { x: &x[part.clone()], y: y.map(|y| &y[part]), out, n, inner, log });
    };
    if let Some(first) = first {
        return some(first, out);
    }
    let each = WORTH_A_THREAD.div_ceil(slab) * slab;
    out.par_chunks_mut(each).enumerate().for_each(|(i, out)| some(i * each, out));
}

/// Some of the outer dimension's `[n, inner]`.
struct Slabs<'a, T> {
    x: &'a [T],
    y: Option<&'a [T]>,
    out: &'a mut [T],
    n: usize,
    inner: usize,
    log: bool,
}

impl<T: Real> Work for Slabs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let slab = self.n * self.inner;
        let mut totals = [(T::ZERO, T::ZERO); COLUMNS];
        for (i, out) in self.out.chunks_exact_mut(slab).enumerate() {
            let part = i * slab..(i + 1) * slab;
            let (x, y) = (&self.x[part.clone()], self.y.map(|y| &y[part]));
            match (self.inner, y) {
                (1, None) => forward_row(x, out, self.log),
                (1, Some(y)) => backward_row(x, y, out, self.log),
                (_, None) => forward_slab(x, out, self.inner, &mut totals, self.log),
                (_, Some(y)) => backward_slab(x, y, out, self.inner, &mut totals, self.log),
            }
        }
    }
}

#[inline(always)]
fn forward_row<T: Real>(x: &[T], out: &mut [T], log: bool) {
    let most = fold(x, T::of(f64::NEG_INFINITY), |v| v, greater);
    if log {
        let sum = fold(x, T::ZERO, |v| (v - most).exp_not_above_0(), plus).ln();
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x - most - sum;
        }
    } else {
        let each = T::ONE / map_sum(x, out, |v| (v - most).exp_not_above_0());
        for v in out {
            *v = *v * each;
        }
    }
}

#[inline(always)]
fn backward_row<T: Real>(g: &[T], y: &[T], out: &mut [T], log: bool) {
    if log {
        let sum = fold(g, T::ZERO, |g| g, plus);
        for ((out, &g), &y) in out.iter_mut().zip(g).zip(y) {
            *out = g - y.exp_not_above_0() * sum;
        }
    } else {
        let sum = sum_pairs(g, y, |g, y| g * y);
        for ((out, &g), &y) in out.iter_mut().zip(g).zip(y) {
            *out = (g - sum) * y;
        }
    }
}

/// Columns side by side, some at a time so that they stay in the fastest cache: `totals` has the greatest and the
/// sum of each.
#[inline(always)]
fn forward_slab<T: Real>(x: &[T], out: &mut [T], inner: usize, totals: &mut [(T, T)], log: bool) {
    for first in (0..inner).step_by(totals.len()) {
        let totals = &mut totals[..(inner - first).min(COLUMNS)];
        let part = first..first + totals.len();
        totals.fill((T::of(f64::NEG_INFINITY), T::ZERO));
        for row in x.chunks_exact(inner) {
            for (t, &v) in totals.iter_mut().zip(&row[part.clone()]) {
                t.0 = greater(t.0, v);
            }
        }
        for (row, out) in x.chunks_exact(inner).zip(out.chunks_exact_mut(inner)) {
            for ((t, &v), out) in totals.iter_mut().zip(&row[part.clone()]).zip(&mut out[part.clone()]) {
                let e = (v - t.0).exp_not_above_0();
                t.1 = t.1 + e;
                *out = if log { v } else { e };
            }
        }
        totals.iter_mut().for_each(|t| t.1 = if log { t.1.ln() } else { T::ONE / t.1 });
        for out in out.chunks_exact_mut(inner) {
            for (t, out) in totals.iter().zip(&mut out[part.clone()]) {
                *out = if log { *out - t.0 - t.1 } else { *out * t.1 };
            }
        }
    }
}

#[inline(always)]
fn backward_slab<T: Real>(g: &[T], y: &[T], out: &mut [T], inner: usize, totals: &mut [(T, T)], log: bool) {
    for first in (0..inner).step_by(totals.len()) {
        let totals = &mut totals[..(inner - first).min(COLUMNS)];
        let part = first..first + totals.len();
        totals.fill((T::ZERO, T::ZERO));
        for (g, y) in g.chunks_exact(inner).zip(y.chunks_exact(inner)) {
            for ((t, &g), &y) in totals.iter_mut().zip(&g[part.clone()]).zip(&y[part.clone()]) {
                t.1 = t.1 + if log { g } else { g * y };
            }
        }
        let rows = g.chunks_exact(inner).zip(y.chunks_exact(inner));
        for (out, (g, y)) in out.chunks_exact_mut(inner).zip(rows) {
            let values = g[part.clone()].iter().zip(&y[part.clone()]);
            for ((t, out), (&g, &y)) in totals.iter().zip(&mut out[part.clone()]).zip(values) {
                *out = if log { g - y.exp_not_above_0() * t.1 } else { (g - t.1) * y };
            }
        }
    }
}

/// The first that fits is taken. On a software adapter barriers are dear and every lane pays for its load, so that
/// a row in registers, read once, is best. On a GPU invocations side by side should read memory side by side.
#[cfg(feature = "gpu")]
pub(super) const VARIANTS: &[(Kernel, Fits)] = &{
    use Kernel::{Invocation, Registers, Unrolled};
    const fn team(width: usize, subgroup: bool, registers: bool) -> Kernel {
        Kernel::team(width, subgroup, registers)
    }
    [
        (Registers, |r| r.n <= 32 && (r.software || r.inner >= 32 || r.rows >= 1024)),
        // Longer ones take longer to compile than they save.
        (team(8, true, true), |r| r.software && r.subgroup == Some(8) && r.inner == 1 && r.n <= 1024),
        (team(8, true, false), |r| r.software && r.subgroup == Some(8) && r.inner == 1),
        (Invocation, |r| if r.software { r.rows >= 16 } else { r.inner >= 32 && r.rows >= 1024 }),
        // Subgroups share rows without a word through workgroup memory.
        (team(32, true, true), |r| r.subgroup == Some(32) && r.n <= 1024),
        (team(64, true, true), |r| r.subgroup == Some(64) && r.n <= 1024),
        (team(64, false, true), |r| !r.software && r.n <= 1024),
        (team(256, false, true), |r| !r.software && r.n <= 4096),
        (team(64, false, false), |r| r.software),
        (team(256, false, false), |_| true),
        (Unrolled(8), |_| true),
    ]
};

#[cfg(feature = "gpu")]
fn dispatch(call: &Structured, log: bool, adapter: &AdapterInfo) -> Vec<ShaderCall> {
    let rows = Rows::new(&call.inputs[0].1, adapter);
    // For the greatest, the sum and the results.
    let kernel = rows.first(VARIANTS, 3);
    kernel.map_or_else(Vec::new, |kernel| calls(&rows, kernel, call, log))
}

#[cfg(feature = "gpu")]
pub(super) fn calls(rows: &Rows, kernel: Kernel, call: &Structured, log: bool) -> Vec<ShaderCall> {
    if rows.rows * rows.n == 0 {
        return vec![];
    }
    let backward = call.inputs.len() > 1;
    let offsets = call.inputs.iter().map(|(_, layout)| layout.offset);
    let defines = kernel
        .defines(rows.n, [rows.software, rows.pairs], rows.inner == 1, offsets)
        .flag("LOG", log)
        .flag("BACKWARD", backward)
        .input(["X_AT", "X_PRE"], call, 0)
        .input(["Y_AT", "Y_PRE"], call, 1)
        .flag("POLYNOMIAL", rows.software);
    let params = shader::Params {
        rows: rows.rows as u32,
        n: rows.n as u32,
        inner: rows.inner as u32,
        x_offset: call.inputs[0].1.offset as u32,
        y_offset: call.inputs.get(1).map_or(0, |(_, layout)| layout.offset as u32),
    };
    vec![ShaderCall {
        shader: shader::NAME,
        entry: "softmax",
        defines: defines.0,
        params: params.into(),
        workgroups: rows.grid(kernel),
    }]
}
