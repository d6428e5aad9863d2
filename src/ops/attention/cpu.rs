//! Attention on the CPU: blocks of rows, products by `gemm`, tasks by batch and block.

use bytemuck::Pod;
use rayon::prelude::*;

use super::kernel::{Operand, Problem};
use crate::backend::cpu::gemm::{At, Gemm};
use crate::backend::cpu::number::Real;
use crate::backend::cpu::simd::{Work, vectorized};
use crate::ops::rows::{fold, plus};

/// Rows of scores that a task has at a time.
const ROWS: usize = 32;
/// Pieces of work that keep threads busy to the end; a batch's rows are shared out where batches are fewer.
const TASKS: usize = 16;

/// An element type with a matrix product.
pub(super) trait Float: Real + Gemm + Pod {}
impl<T: Real + Gemm + Pod> Float for T {}

/// The output, of which every task writes rows of its own.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: tasks write to places that no other task touches, as the layouts of outputs do not overlap.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// A matrix from `at` elements on.
    fn matrix(&self, at: usize, of: &Operand) -> At<*mut T> {
        At { first: self.0.wrapping_add(at), row: of.row, column: of.column.max(1) }
    }
}

/// A matrix of an input: `rows` rows from row `from` of a batch on.
fn matrix<T>(
    p: &Problem,
    data: &[T],
    of: &Operand,
    batch: usize,
    from: usize,
    size: [usize; 2],
) -> At<*const T> {
    let at = of.offset + p.batch_offset(of, batch) + from * of.row;
    let end = at + size[0].saturating_sub(1) * of.row + size[1].saturating_sub(1) * of.column;
    assert!(end < data.len(), "a matrix reaches past its memory");
    At { first: data[at..].as_ptr(), row: of.row, column: of.column }
}

/// Panics where an output reaches past its memory.
fn check(p: &Problem, of: &Operand, size: [usize; 2], len: usize) {
    let far: usize = p.batch.iter().zip(&of.batch).map(|(n, stride)| (n - 1) * stride).sum();
    let end = of.offset + far + (size[0] - 1) * of.row + (size[1] - 1) * of.column;
    assert!(end < len, "an output reaches past its memory");
}

/// How many of theirs rows `from..from + rows` of mine see.
fn seen(p: &Problem, from: usize, rows: usize) -> usize {
    if p.causal { p.s.min(from + rows) } else { p.s }
}

/// Turns products of q and k into scores: scaled, masked, `-inf` where the mask hides them.
struct Scores<'a, T> {
    p: &'a Problem,
    mask: Option<&'a [u8]>,
    batch: usize,
    /// The first row, and how many columns there are.
    from: usize,
    keys: usize,
    scores: &'a mut [T],
    then: Then<'a, T>,
}

enum Then<'a, T> {
    /// Exponentials of the differences to the row's maximum; that, and their sum.
    Exp(&'a mut [(T, T)]),
    /// Probabilities, of the rows' logarithms of sums. `slopes`, gradients by probabilities, become those by scores.
    Slopes { lse: &'a [T], delta: &'a [T], slopes: &'a mut [T] },
}

impl<T: Float> Scores<'_, T> {
    #[inline(always)]
    fn row(&self, row: usize, scores: &mut [T]) {
        let none = T::of(f64::NEG_INFINITY);
        let scale = T::of(self.p.scale);
        scores.iter_mut().for_each(|s| *s = *s * scale);
        if let (Some(mask), Some(bytes)) = (&self.p.mask, self.mask) {
            let at = mask.at.offset + self.p.batch_offset(&mask.at, self.batch) + row * mask.at.row;
            let step = mask.at.column;
            if mask.bools {
                let mask = &bytemuck::cast_slice::<u8, u32>(bytes)[at..];
                for (j, s) in scores.iter_mut().enumerate() {
                    *s = if mask[j * step] != 0 { *s } else { none };
                }
            } else {
                let mask = &bytemuck::cast_slice::<u8, T>(bytes)[at..];
                for (j, s) in scores.iter_mut().enumerate() {
                    *s = *s + mask[j * step];
                }
            }
        }
    }

    /// How many of a row's scores count: those after are zero.
    #[inline(always)]
    fn live(&self, row: usize) -> usize {
        if self.p.causal { self.keys.min(row + 1) } else { self.keys }
    }
}

impl<T: Float> Work for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let scores = std::mem::take(&mut self.scores);
        let then = std::mem::replace(&mut self.then, Then::Exp(&mut []));
        let rows = scores.chunks_exact_mut(self.keys).enumerate();
        match then {
            Then::Exp(totals) => {
                for ((i, row), total) in rows.zip(totals) {
                    let (row, unseen) = row.split_at_mut(self.live(self.from + i));
                    unseen.fill(T::ZERO);
                    self.row(self.from + i, row);
                    let none = T::of(f64::NEG_INFINITY);
                    let most = fold(row, none, |s| s, T::maximum);
                    // Of a row that sees nothing, the differences would be no numbers.
                    let most = if most == none { T::ZERO } else { most };
                    row.iter_mut().for_each(|s| *s = Real::exp(*s - most));
                    *total = (most, fold(row, T::ZERO, |s| s, plus));
                }
            }
            Then::Slopes { lse, delta, slopes } => {
                let slopes = slopes.chunks_exact_mut(self.keys);
                for (((i, row), slopes), (&lse, &delta)) in rows.zip(slopes).zip(lse.iter().zip(delta)) {
                    let (row, unseen) = row.split_at_mut(self.live(self.from + i));
                    let (slopes, flat) = slopes.split_at_mut(row.len());
                    unseen.fill(T::ZERO);
                    flat.fill(T::ZERO);
                    self.row(self.from + i, row);
                    let none = T::of(f64::NEG_INFINITY);
                    for (s, slope) in row.iter_mut().zip(slopes) {
                        let counts = *s != none;
                        *s = Real::exp(*s - lse);
                        *slope = if counts { *s * (*slope - delta) } else { T::ZERO };
                    }
                }
            }
        }
    }
}

pub(super) fn forward<T: Float>(p: &Problem, inputs: &[&[u8]], out: &mut [u8]) {
    let [q, k, v] = [0, 1, 2].map(|i| bytemuck::cast_slice::<u8, T>(inputs[i]));
    let mask = p.mask.as_ref().map(|m| inputs[m.input]);
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    let (result, lse) = (&p.outs[2], p.lse_out);
    check(p, result, [p.l, p.v], out.len());
    assert!(lse.is_none_or(|at| at + p.batches() * p.l <= out.len()), "sums reach past their memory");
    let shared = Shared(out.as_mut_ptr());
    let blocks = p.l.div_ceil(ROWS);
    let task = |space: &mut (Vec<T>, Vec<(T, T)>), task: usize| {
        let (batch, from) = (task / blocks, task % blocks * ROWS);
        let rows = ROWS.min(p.l - from);
        let keys = seen(p, from, rows);
        let (scores, totals) = space;
        scores.resize(rows * keys, T::ZERO);
        totals.resize(rows, (T::ZERO, T::ZERO));
        let s = At { first: scores.as_mut_ptr(), row: keys, column: 1 };
        let q = matrix(p, q, &p.inputs[0], batch, from, [rows, p.e]);
        let k = matrix(p, k, &p.inputs[1], batch, 0, [keys, p.e]);
        // SAFETY: `matrix` checked the inputs; the scores are this task's.
        unsafe { T::gemm([rows, keys, p.e], q, k.turned(), s, false, T::ONE, false) };
        let then = Then::Exp(&mut totals[..]);
        vectorized(Scores { p, mask, batch, from, keys, scores: &mut scores[..], then });
        for (row, total) in scores.chunks_exact_mut(keys).zip(&*totals) {
            let weight = if total.1 == T::ZERO { T::ZERO } else { T::ONE / total.1 };
            row.iter_mut().for_each(|s| *s = *s * weight);
        }
        let v = matrix(p, v, &p.inputs[2], batch, 0, [keys, p.v]);
        let at = result.offset + p.batch_offset(result, batch) + from * result.row;
        let s = At { first: scores.as_ptr(), row: keys, column: 1 };
        // SAFETY: as above; the rows of the result are this task's.
        unsafe { T::gemm([rows, p.v, keys], s, v, shared.matrix(at, result), false, T::ONE, false) };
        for (i, &(most, sum)) in totals.iter().enumerate().filter(|_| lse.is_some()) {
            let value = if sum == T::ZERO { T::of(f64::INFINITY) } else { most + Real::ln(sum) };
            // SAFETY: checked above; one place for each row.
            unsafe { *shared.0.add(lse.unwrap_or(0) + batch * p.l + from + i) = value };
        }
    };
    let tasks = p.batches() * blocks;
    (0..tasks).into_par_iter().for_each_init(|| (vec![], vec![]), task);
}

pub(super) fn backward<T: Float>(p: &Problem, inputs: &[&[u8]], out: &mut [u8]) {
    let data: [&[T]; 6] = [0, 1, 2, 3, 4, 5].map(|i| bytemuck::cast_slice::<u8, T>(inputs[i]));
    let mask = p.mask.as_ref().map(|m| inputs[m.input]);
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    let [dq, dk, dv] = &p.outs;
    check(p, dq, [p.l, p.e], out.len());
    check(p, dk, [p.s, p.e], out.len());
    check(p, dv, [p.s, p.v], out.len());
    let shared = Shared(out.as_mut_ptr());
    let blocks = p.l.div_ceil(ROWS);
    // Each task adds up gradients by k and v over some of a batch's rows. The numbers of tasks do not depend on that of
    // threads, and neither does the result.
    let parts = TASKS.div_ceil(p.batches()).min(blocks);
    let each = blocks.div_ceil(parts);
    let parts = blocks.div_ceil(each);
    let task = |(scores, slopes): &mut (Vec<T>, Vec<T>), task: usize| -> Option<Vec<T>> {
        let (batch, part) = (task / parts, task % parts);
        let place = |of: &Operand| shared.matrix(of.offset + p.batch_offset(of, batch), of);
        // Sums of a batch that is one task's alone are made in place.
        let mut own = (parts > 1).then(|| vec![T::ZERO; p.s * (p.e + p.v)]);
        let (dk, dv) = match &mut own {
            Some(own) => {
                let first = own.as_mut_ptr();
                let dk = At { first, row: p.e, column: 1 };
                (dk, At { first: first.wrapping_add(p.s * p.e), row: p.v, column: 1 })
            }
            None => {
                let (dk, dv) = (place(dk), place(dv));
                clear(dk, [p.s, p.e]);
                clear(dv, [p.s, p.v]);
                (dk, dv)
            }
        };
        for block in part * each..blocks.min((part + 1) * each) {
            let from = block * ROWS;
            let rows = ROWS.min(p.l - from);
            let keys = seen(p, from, rows);
            scores.resize(rows * keys, T::ZERO);
            slopes.resize(rows * keys, T::ZERO);
            let q = matrix(p, data[0], &p.inputs[0], batch, from, [rows, p.e]);
            let k = matrix(p, data[1], &p.inputs[1], batch, 0, [keys, p.e]);
            let v = matrix(p, data[2], &p.inputs[2], batch, 0, [keys, p.v]);
            let g = matrix(p, data[3], &p.inputs[3], batch, from, [rows, p.v]);
            let s = At { first: scores.as_mut_ptr(), row: keys, column: 1 };
            let d = At { first: slopes.as_mut_ptr(), row: keys, column: 1 };
            // SAFETY: `matrix` checked the inputs; scores and slopes are this task's.
            unsafe {
                T::gemm([rows, keys, p.e], q, k.turned(), s, false, T::ONE, false);
                T::gemm([rows, keys, p.v], g, v.turned(), d, false, T::ONE, false);
            }
            let row = batch * p.l + from;
            let (lse, delta) = (&data[4][p.lse + row..][..rows], &data[5][p.delta + row..][..rows]);
            let then = Then::Slopes { lse, delta, slopes: &mut slopes[..] };
            vectorized(Scores { p, mask, batch, from, keys, scores: &mut scores[..], then });
            let (scale, mut to) = (T::of(p.scale), place(dq));
            to.first = to.first.wrapping_add(from * to.row);
            let s = At { first: scores.as_ptr(), row: keys, column: 1 };
            let d = At { first: slopes.as_ptr(), row: keys, column: 1 };
            // SAFETY: as above; the outputs are this task's rows, batch or own sums.
            unsafe {
                T::gemm([keys, p.v, rows], s.turned(), g, dv, true, T::ONE, false);
                T::gemm([keys, p.e, rows], d.turned(), q, dk, true, scale, false);
                T::gemm([rows, p.e, keys], d, k, to, false, scale, false);
            }
        }
        own
    };
    let tasks = p.batches() * parts;
    let own: Vec<Option<Vec<T>>> = (0..tasks).into_par_iter().map_init(|| (vec![], vec![]), task).collect();
    if parts == 1 {
        return;
    }
    own.par_chunks(parts).enumerate().for_each(|(batch, own)| {
        let place = |of: &Operand| shared.matrix(of.offset + p.batch_offset(of, batch), of);
        for (to, columns, skip) in [(place(dk), p.e, 0), (place(dv), p.v, p.s * p.e)] {
            for i in 0..p.s * columns {
                let sum = own.iter().flatten().fold(T::ZERO, |sum, part| sum + part[skip + i]);
                // SAFETY: `check` found the output inside its memory; this task's batch.
                unsafe { *to.first.add(i / columns * to.row + i % columns * to.column) = sum };
            }
        }
    });
}

/// Zeros a matrix of an output, which `check` found inside its memory, and which nobody else sees.
fn clear<T: Float>(to: At<*mut T>, [rows, columns]: [usize; 2]) {
    for i in 0..rows {
        for j in 0..columns {
            // SAFETY: as said above.
            unsafe { *to.first.add(i * to.row + j * to.column) = T::ZERO };
        }
    }
}
