//! The cross-entropy of rows of logits, each under a class; its gradient; and the mean of the losses.

use rayon::prelude::*;

use crate::backend::Prices;
use crate::backend::cpu::number::Real;
use crate::backend::cpu::simd::{Work, vectorized};
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::cross_entropy as shader};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Structured, StructuredOp};
use crate::graph::layout::Layout;
#[cfg(feature = "gpu")]
use crate::ops::dispatch::Defines;
#[cfg(feature = "gpu")]
use crate::ops::row_kernels::{Fits, Kernel, Rows};
use crate::ops::rows::{COLUMNS, WORTH_A_THREAD, fold, greater, plus, recomputed};
#[cfg(feature = "gpu")]
use crate::ops::softmax;

/// What a target says of its row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Targets of this class do not count.
    pub ignored: Option<i32>,
    /// How much of each target is spread evenly over all classes.
    pub smoothing: f64,
}

impl Target {
    fn key(self) -> Vec<u64> {
        let ignored = self.ignored.map_or(u64::MAX, |class| u64::from(class as u32));
        vec![ignored, self.smoothing.to_bits()]
    }

    /// What it counts at its class, and at every one of `n`.
    fn weights(self, n: usize) -> (f64, f64) {
        (1.0 - self.smoothing, self.smoothing / n as f64)
    }
}

/// Of contiguous logits `[outer, n, inner]` and `I32` classes `[outer, inner]`: `[3, outer, inner]` with the losses,
/// `log(sum(exp(x))) - x[class]` or 0, and for [`CrossEntropyBackward`] each row's greatest element and
/// `log(sum(exp(x - greatest)))`.
#[derive(Debug)]
pub(crate) struct CrossEntropy {
    pub target: Target,
    /// The dimension of the classes, for people.
    pub dim: usize,
}

/// The gradient of its losses' sum, of its inputs and its result; with a fourth input, `[outer, inner]`, times that:
/// `(softmax(x) - target) * scale`, where the scale of what does not count is 0.
#[derive(Debug)]
pub(crate) struct CrossEntropyBackward {
    pub target: Target,
}

/// The mean of losses, and one over how many count: of losses `[outer, inner]` side by side, 0 where they do not count, and
/// their classes. One workgroup's work on a GPU.
#[derive(Debug)]
pub(crate) struct MeanLoss {
    pub ignored: Option<i32>,
}

impl StructuredOp for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn key(&self) -> Vec<u64> {
        let mut key = self.target.key();
        key.push(self.dim as u64);
        key
    }

    fn checks_data(&self) -> bool {
        true
    }

    fn recomputes(&self, inputs: &[&Layout], input: usize, prices: &Prices) -> Option<usize> {
        // For the greatest and the sum.
        if input == 0 { recomputed(inputs[0], 2, prices) } else { None }
    }

    fn flops(&self, call: &Structured) -> u64 {
        // A maximum, a subtraction, an exponential and a sum each.
        4 * call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let rows = Rows::new(&call.inputs[0].1, adapter);
        // For the greatest and the sum.
        let kernel = rows.first(softmax::VARIANTS, 2);
        kernel.map_or_else(Vec::new, |kernel| calls(&rows, kernel, call, self.target))
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let bad = match call.out_dtype {
            DType::F32 => losses::<f32>(call, self.target, inputs, out),
            DType::F64 => losses::<f64>(call, self.target, inputs, out),
            other => return Err(format!("is not defined for {other}")),
        };
        let n = call.inputs[0].1.shape[1];
        bad.map_or(Ok(()), |class| {
            Err(format!("index {class} is out of bounds for dimension {} with size {n}", self.dim))
        })
    }
}

impl StructuredOp for CrossEntropyBackward {
    fn name(&self) -> &'static str {
        "cross_entropy_backward"
    }

    fn key(&self) -> Vec<u64> {
        self.target.key()
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn recomputes(&self, inputs: &[&Layout], input: usize, prices: &Prices) -> Option<usize> {
        if input == 0 { recomputed(inputs[0], 1, prices) } else { None }
    }

    fn flops(&self, call: &Structured) -> u64 {
        // A subtraction, an exponential and a product each.
        3 * call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let rows = Rows::new(&call.inputs[0].1, adapter);
        let kernel = rows.first(GRADIENTS, 1);
        kernel.map_or_else(Vec::new, |kernel| calls(&rows, kernel, call, self.target))
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        gradient_on_dtype(call, self.target, inputs, None, out)
    }

    fn piece(&self, call: &Structured) -> usize {
        match (&call.inputs[0].1.shape[..], call.out_dtype) {
            (&[_, n, inner], DType::F32 | DType::F64) => n * inner,
            _ => 0,
        }
    }

    fn cpu_pieces(&self, call: &Structured, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let _ = gradient_on_dtype(call, self.target, inputs, Some(first), out);
    }
}

impl MeanLoss {
    /// More losses than this are better summed up by a reduction, which many workgroups share.
    pub const MOST: usize = 1 << 16;
}

impl StructuredOp for MeanLoss {
    fn name(&self) -> &'static str {
        "mean_loss"
    }

    fn key(&self) -> Vec<u64> {
        Target { ignored: self.ignored, smoothing: 0.0 }.key()
    }

    fn flops(&self, call: &Structured) -> u64 {
        2 * call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let eights = adapter.has_eights();
        let width = if eights { 8 } else { 256 };
        let classes = &call.inputs[1].1;
        let four = |n: usize| n.is_multiple_of(4);
        let in_memory = classes.is_contiguous() && four(classes.offset) && four(classes.numel());
        let defines = Defines::default()
            .value("T", "f32")
            .value("WIDTH", width)
            .flag("MEAN", true)
            .flag("AGAIN", true)
            .flag("TEAM", true)
            .flag("SUBGROUP", eights)
            .reads(in_memory && four(call.inputs[0].1.offset), false);
        let mut params = params(call, Target { ignored: self.ignored, smoothing: 0.0 });
        params.rows = classes.numel() as u32;
        vec![ShaderCall {
            shader: shader::NAME,
            entry: "mean",
            defines: defines.0,
            params: params.into(),
            workgroups: [1, 1, 1],
        }]
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        match call.out_dtype {
            DType::F32 => mean::<f32>(call, self.ignored, inputs, out),
            DType::F64 => mean::<f64>(call, self.ignored, inputs, out),
            other => return Err(format!("is not defined for {other}")),
        }
        Ok(())
    }
}

/// Something for each row.
#[derive(Clone, Copy)]
struct PerRow<'a, T> {
    values: &'a [T],
    /// Strides, and the size of the inner dimension.
    outer: usize,
    inner: usize,
    width: usize,
}

impl<'a, T: bytemuck::Pod> PerRow<'a, T> {
    fn new(layout: &Layout, bytes: &'a [u8]) -> PerRow<'a, T> {
        let (&[outer, inner], &[_, width]) = (&layout.strides[..], &layout.shape[..]) else {
            unreachable!("there is one for each of [outer, inner]")
        };
        let values = bytemuck::cast_slice::<u8, T>(bytes);
        PerRow { values: &values[layout.offset.min(values.len())..], outer, inner, width }
    }

    #[inline(always)]
    fn of(&self, row: usize) -> T {
        self.values[row / self.width * self.outer + row % self.width * self.inner]
    }
}

/// An input without gaps.
fn whole<'a, T: bytemuck::Pod>(call: &Structured, inputs: &[&'a [u8]], i: usize) -> &'a [T] {
    let layout = &call.inputs[i].1;
    &bytemuck::cast_slice::<u8, T>(inputs[i])[layout.offset..][..layout.numel()]
}

/// Gives the first class that is none.
fn losses<T: Real + bytemuck::Pod>(
    call: &Structured,
    target: Target,
    inputs: &[&[u8]],
    out: &mut [u8],
) -> Option<i32> {
    let &[outer, n, inner] = &call.inputs[0].1.shape[..] else {
        unreachable!("logits are [outer, n, inner]")
    };
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    let rows = outer * inner;
    if rows == 0 {
        return None;
    }
    let (losses, out) = out.split_at_mut(rows);
    let (most, lost) = out.split_at_mut(rows);
    let (x, classes) = (whole::<T>(call, inputs, 0), PerRow::new(&call.inputs[1].1, inputs[1]));
    let each = WORTH_A_THREAD.div_ceil((n * inner).max(1));
    let task = |first: usize, losses: &mut [T], most: &mut [T], lost: &mut [T]| {
        vectorized(Losses { x: &x[first * n..], classes, first, losses, most, lost, n, inner, target })
    };
    if outer <= each {
        return task(0, losses, most, lost).map(|(_, class)| class);
    }
    let size = each * inner;
    let parts = losses.par_chunks_mut(size).zip(most.par_chunks_mut(size)).zip(lost.par_chunks_mut(size));
    let bad = parts.enumerate().filter_map(|(i, ((losses, most), lost))| task(i * size, losses, most, lost));
    bad.min_by_key(|&(row, _)| row).map(|(_, class)| class)
}

/// The rows from number `first` on, whose logits are `x`.
struct Losses<'a, T> {
    x: &'a [T],
    classes: PerRow<'a, i32>,
    first: usize,
    losses: &'a mut [T],
    most: &'a mut [T],
    lost: &'a mut [T],
    n: usize,
    inner: usize,
    target: Target,
}

impl<T: Real> Work for Losses<'_, T> {
    /// The first row whose class is none.
    type Output = Option<(usize, i32)>;

    #[inline(always)]
    fn run(self) -> Option<(usize, i32)> {
        let Losses { x, classes, first, losses, most, lost, n, inner, target } = self;
        let (hard, even) = target.weights(n);
        let (hard, even, spread) = (T::of(hard), T::of(even), target.smoothing > 0.0);
        // Until the end, each row's sum of x - most is where its loss will be.
        if inner == 1 {
            for (i, ((rest, most), lost)) in losses.iter_mut().zip(&mut *most).zip(&mut *lost).enumerate() {
                let x = &x[i * n..(i + 1) * n];
                let top = fold(x, T::of(f64::NEG_INFINITY), |v| v, greater);
                *most = top;
                *lost = fold(x, T::ZERO, |v| (v - top).exp_not_above_0(), plus).ln();
                *rest = if spread { fold(x, T::ZERO, |v| v - top, plus) } else { T::ZERO };
            }
        } else {
            for begin in (0..losses.len()).step_by(inner) {
                let x = &x[begin * n..(begin + inner) * n];
                for from in (0..inner).step_by(COLUMNS) {
                    let to = (from + COLUMNS).min(inner);
                    let here = begin + from..begin + to;
                    let (rest, most) = (&mut losses[here.clone()], &mut most[here.clone()]);
                    columns(x, from..to, inner, spread, rest, most, &mut lost[here]);
                }
            }
        }
        let mut bad = None;
        for (i, ((loss, &most), &lost)) in losses.iter_mut().zip(&*most).zip(&*lost).enumerate() {
            let class = classes.of(first + i);
            let within = usize::try_from(class).ok().filter(|&class| class < n);
            let rest = *loss;
            *loss = T::ZERO;
            match within {
                _ if Some(class) == target.ignored => {}
                None => bad = bad.or(Some((first + i, class))),
                Some(class) => {
                    let own = x[(i / inner * n + class) * inner + i % inner] - most;
                    *loss = if spread { lost - own * hard - rest * even } else { lost - own };
                }
            }
        }
        bad
    }
}

/// Columns side by side, few enough to stay in the fastest cache.
#[inline(always)]
fn columns<T: Real>(
    x: &[T],
    part: std::ops::Range<usize>,
    inner: usize,
    spread: bool,
    rest: &mut [T],
    most: &mut [T],
    lost: &mut [T],
) {
    most.fill(T::of(f64::NEG_INFINITY));
    for row in x.chunks_exact(inner) {
        for (most, &v) in most.iter_mut().zip(&row[part.clone()]) {
            *most = greater(*most, v);
        }
    }
    rest.fill(T::ZERO);
    lost.fill(T::ZERO);
    for row in x.chunks_exact(inner) {
        for ((lost, &most), &v) in lost.iter_mut().zip(&*most).zip(&row[part.clone()]) {
            *lost = *lost + (v - most).exp_not_above_0();
        }
        if spread {
            for ((rest, &most), &v) in rest.iter_mut().zip(&*most).zip(&row[part.clone()]) {
                *rest = *rest + (v - most);
            }
        }
    }
    lost.iter_mut().for_each(|lost| *lost = lost.ln());
}

/// `first`: of some slabs only, from this element on, on this thread.
fn gradient_on_dtype(
    call: &Structured,
    target: Target,
    inputs: &[&[u8]],
    first: Option<usize>,
    out: &mut [u8],
) -> Result<(), String> {
    match call.out_dtype {
        DType::F32 => gradient::<f32>(call, target, inputs, first, out),
        DType::F64 => gradient::<f64>(call, target, inputs, first, out),
        other => return Err(format!("is not defined for {other}")),
    }
    Ok(())
}

fn gradient<T: Real + bytemuck::Pod>(
    call: &Structured,
    target: Target,
    inputs: &[&[u8]],
    first: Option<usize>,
    out: &mut [u8],
) {
    let &[outer, n, inner] = &call.inputs[0].1.shape[..] else {
        unreachable!("logits are [outer, n, inner]")
    };
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    if out.is_empty() {
        return;
    }
    let x = whole::<T>(call, inputs, 0);
    let classes = PerRow::new(&call.inputs[1].1, inputs[1]);
    let (most, lost) = whole::<T>(call, inputs, 2)[outer * inner..].split_at(outer * inner);
    let scale = inputs.get(3).map(|bytes| PerRow::new(&call.inputs[3].1, bytes));
    let some = |first: usize, out: &mut [T]| {
        let x = &x[first..first + out.len()];
        let first = first / n;
        vectorized(Gradients { x, classes, scale, first, most, lost, out, n, inner, target });
    };
    if let Some(first) = first {
        return some(first, out);
    }
    let each = WORTH_A_THREAD.div_ceil(n * inner) * n * inner;
    if out.len() <= each {
        return some(0, out);
    }
    out.par_chunks_mut(each).enumerate().for_each(|(i, out)| some(i * each, out));
}

/// The rows from number `first` on, whose logits are `x`.
struct Gradients<'a, T> {
    x: &'a [T],
    classes: PerRow<'a, i32>,
    scale: Option<PerRow<'a, T>>,
    first: usize,
    /// Of all rows.
    most: &'a [T],
    lost: &'a [T],
    out: &'a mut [T],
    n: usize,
    inner: usize,
    target: Target,
}

impl<T: Real + bytemuck::Pod> Work for Gradients<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Gradients { x, classes, scale, first, most, lost, out, n, inner, target } = self;
        let (hard, even) = target.weights(n);
        let hard = T::of(hard);
        let scale_of = |row: usize, class: i32| match scale {
            _ if Some(class) == target.ignored => T::ZERO,
            Some(scale) => scale.of(row),
            None => T::ONE,
        };
        // Nothing at all where there is no smoothing, even of an infinite scale.
        let evenly = |scale: T| if target.smoothing > 0.0 { T::of(even) * scale } else { T::ZERO };
        let slab = n * inner;
        let mut scales = [(T::ZERO, T::ZERO); COLUMNS];
        for (i, (out, x)) in out.chunks_exact_mut(slab).zip(x.chunks_exact(slab)).enumerate() {
            let row = first + i * inner;
            if inner == 1 {
                let (most, lost) = (most[row], lost[row]);
                let scale = scale_of(row, classes.of(row));
                let even = evenly(scale);
                for (out, &v) in out.iter_mut().zip(x) {
                    *out = ((v - most) - lost).exp_not_above_0() * scale - even;
                }
            } else {
                for from in (0..inner).step_by(COLUMNS) {
                    let part = from..(from + COLUMNS).min(inner);
                    let scales = &mut scales[..part.len()];
                    for (scale, column) in scales.iter_mut().zip(part.clone()) {
                        let own = scale_of(row + column, classes.of(row + column));
                        *scale = (own, evenly(own));
                    }
                    let (most, lost) = (&most[row..][part.clone()], &lost[row..][part.clone()]);
                    for (out, x) in out.chunks_exact_mut(inner).zip(x.chunks_exact(inner)) {
                        let rows = most.iter().zip(lost).zip(&*scales);
                        let values = out[part.clone()].iter_mut().zip(&x[part.clone()]);
                        for ((out, &v), ((&most, &lost), &(scale, even))) in values.zip(rows) {
                            *out = ((v - most) - lost).exp_not_above_0() * scale - even;
                        }
                    }
                }
            }
            for column in 0..inner {
                let class = classes.of(row + column);
                if let Some(at) = usize::try_from(class).ok().filter(|&class| class < n) {
                    let at = at * inner + column;
                    out[at] = out[at] - hard * scale_of(row + column, class);
                }
            }
        }
    }
}

fn mean<T: Real + bytemuck::Pod>(call: &Structured, ignored: Option<i32>, inputs: &[&[u8]], out: &mut [u8]) {
    let losses = whole::<T>(call, inputs, 0);
    let classes = PerRow::<i32>::new(&call.inputs[1].1, inputs[1]);
    let count = (0..losses.len()).filter(|&row| Some(classes.of(row)) != ignored).count();
    let count = T::of(count as f64);
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    out.copy_from_slice(&[fold(losses, T::ZERO, |v| v, plus) / count, T::ONE / count]);
}

/// For gradients; the first that fits is taken. They need no more of a row than its elements, once: on a software
/// adapter groups of 8 for single rows are dear where rows are short.
#[cfg(feature = "gpu")]
pub(super) const GRADIENTS: &[(Kernel, Fits)] = &{
    use Kernel::{Invocation, Unrolled};
    const fn team(width: usize) -> Kernel {
        Kernel::team(width, false, false)
    }
    [
        (Invocation, |r| r.software && r.rows >= 16 && (r.inner > 1 || r.n < 128)),
        (Invocation, |r| !r.software && r.rows >= 1024 && (r.inner >= 32 || r.n <= 32)),
        (team(8), |r| r.software),
        (team(64), |r| !r.software && r.n <= 1024),
        (team(256), |_| true),
        (Unrolled(8), |_| true),
    ]
};

#[cfg(feature = "gpu")]
fn params(call: &Structured, target: Target) -> shader::Params {
    let layout = |i: usize| call.inputs.get(i).map(|(_, layout)| layout);
    let offset = |i: usize| layout(i).map_or(0, |layout| layout.offset as u32);
    let stride = |i: usize, d: usize| layout(i).map_or(0, |layout| layout.strides[d] as u32);
    let shape = &call.inputs[0].1.shape;
    let n = if shape.len() == 3 { shape[1] } else { 0 };
    let (hard, even) = target.weights(n.max(1));
    shader::Params {
        n: n as u32,
        inner: call.inputs[1].1.shape[1] as u32,
        x_offset: offset(0),
        target_offset: offset(1),
        target_outer: stride(1, 0),
        target_inner: stride(1, 1),
        stats_offset: offset(2),
        scale_offset: offset(3),
        scale_outer: stride(3, 0),
        scale_inner: stride(3, 1),
        ignores: u32::from(target.ignored.is_some()),
        ignored: target.ignored.unwrap_or(0),
        hard: hard as f32,
        even: even as f32,
        ..Default::default()
    }
}

/// The losses, or of more inputs the gradient, whose rows are never kept in registers.
#[cfg(feature = "gpu")]
pub(super) fn calls(rows: &Rows, kernel: Kernel, call: &Structured, target: Target) -> Vec<ShaderCall> {
    if rows.rows * rows.n == 0 {
        return vec![];
    }
    let gradient = call.inputs.len() > 2;
    let offset = call.inputs[0].1.offset;
    let even = target.smoothing > 0.0;
    let mut defines = kernel
        .defines(rows.n, [rows.software, rows.pairs], rows.inner == 1, std::iter::once(offset))
        .flag("GRADIENT", gradient)
        .flag("SCALED", call.inputs.len() > 3)
        .flag("EVEN", even)
        .flag("AGAIN", even)
        .flag("POLYNOMIAL", rows.software)
        .input(["X_AT", "X_PRE"], call, 0)
        .input(["T_AT", "T_PRE"], call, 1)
        .input(["S_AT", "S_PRE"], call, 2)
        .input(["C_AT", "C_PRE"], call, 3);
    if !gradient {
        // What is stored are no rows.
        defines.0.retain(|(name, _)| *name != "VEC4");
    }
    let params = shader::Params { rows: rows.rows as u32, ..params(call, target) };
    vec![ShaderCall {
        shader: shader::NAME,
        entry: "cross_entropy",
        defines: defines.0,
        params: params.into(),
        workgroups: rows.grid(kernel),
    }]
}
