//! Pools on the CPU: plane by plane, each on one thread.

use std::ops::Range;

use rayon::prelude::*;

use super::op::{Kind, Pool2d, Windows};
use crate::backend::cpu::number::Real;
use crate::backend::cpu::simd::{Work, vectorized};
use crate::graph::kernel::Structured;

/// Elements a thread should have at least.
const WORTH_A_THREAD: usize = 16 << 10;

pub(super) fn run<T: Real + bytemuck::Pod>(op: &Pool2d, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) {
    let w = &op.windows;
    let planes = call.out_shape[0];
    fn part<'a, U: bytemuck::Pod>(call: &Structured, inputs: &[&'a [u8]], i: usize) -> &'a [U] {
        &bytemuck::cast_slice::<u8, U>(inputs[i])[call.inputs[i].1.offset..][..call.inputs[i].1.numel()]
    }
    let first = part::<T>(call, inputs, 0);
    if out.is_empty() {
        return;
    }
    let [into, from] = if op.kind.is_of_images() { [w.area(), w.all()] } else { [w.all(), w.area()] };
    if op.kind == Kind::Index {
        let out = bytemuck::cast_slice_mut::<u8, i32>(out);
        each_plane(planes, into, from, out, |i, out| {
            vectorized(Indices { w, x: &first[i * from..][..from], out });
        });
        return;
    }
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    match op.kind {
        Kind::Scatter => {
            let indices = part::<i32>(call, inputs, 1);
            each_plane(planes, into, from, out, |i, out| {
                out.fill(T::ZERO);
                let part = i * from..(i + 1) * from;
                for (&at, &g) in indices[part.clone()].iter().zip(&first[part]) {
                    if let Some(sum) = usize::try_from(at).ok().and_then(|at| out.get_mut(at)) {
                        *sum = *sum + g;
                    }
                }
            });
        }
        Kind::First => {
            let x = part::<T>(call, inputs, 1);
            each_plane(planes, into, from, out, |i, out| {
                vectorized(First { w, g: &first[i * from..][..from], x: &x[i * into..][..into], out });
            });
        }
        kind => each_plane(planes, into, from, out, |i, out| {
            let x = &first[i * from..][..from];
            match kind {
                Kind::Max => vectorized(Greatest { w, x, out }),
                Kind::Average => vectorized(Means { w, x, out }),
                _ => vectorized(Shares { w, g: x, out }),
            }
        }),
    }
}

fn each_plane<T: Send>(
    planes: usize,
    into: usize,
    from: usize,
    out: &mut [T],
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    debug_assert_eq!(out.len(), planes * into);
    let few = WORTH_A_THREAD.div_ceil(into + from).max(1);
    out.par_chunks_mut(into * few).enumerate().for_each(|(task, out)| {
        for (i, out) in out.chunks_exact_mut(into).enumerate() {
            work(task * few + i, out);
        }
    });
}

/// Where the elements of a window are along a dimension.
#[inline(always)]
fn elements(w: &Windows, d: usize, window: usize) -> impl Iterator<Item = usize> + Clone {
    let (begin, padding, size) = (window * w.stride[d], w.padding[d], w.size[d]);
    let step = w.dilation[d];
    (0..w.kernel[d]).filter_map(move |k| (begin + k * step).checked_sub(padding).filter(|&at| at < size))
}

/// The windows along the rows that have an element at tap `q`, and where the first has it.
#[inline(always)]
fn columns(w: &Windows, q: usize) -> (Range<usize>, usize) {
    let (offset, padding, stride) = (q * w.dilation[1], w.padding[1], w.stride[1]);
    let begin = padding.saturating_sub(offset).div_ceil(stride).min(w.count[1]);
    let end = (w.size[1] + padding).saturating_sub(offset).div_ceil(stride).min(w.count[1]).max(begin);
    (begin..end, (begin * stride + offset).saturating_sub(padding))
}

/// The greater, or the NaN.
#[inline(always)]
fn greater<T: Real>(most: T, v: T) -> T {
    if v > most || v.is_nan() { v } else { most }
}

/// Joins every `stride`-th of `x` to `out`.
#[inline(always)]
fn join<T: Copy>(out: &mut [T], x: &[T], stride: usize, with: impl Fn(T, T) -> T) {
    match stride {
        1 => out.iter_mut().zip(x).for_each(|(to, &v)| *to = with(*to, v)),
        2 => {
            let n = out.len().min(x.len() / 2);
            for (to, pair) in out[..n].iter_mut().zip(x.chunks_exact(2)) {
                *to = with(*to, pair[0]);
            }
            if let (Some(to), Some(&v)) = (out.get_mut(n), x.get(2 * n)) {
                *to = with(*to, v);
            }
        }
        _ => out.iter_mut().zip(x.iter().step_by(stride)).for_each(|(to, &v)| *to = with(*to, v)),
    }
}

struct Greatest<'a, T> {
    w: &'a Windows,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> Work for Greatest<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let w = self.w;
        for (y, out) in self.out.chunks_exact_mut(w.count[1]).enumerate() {
            if w.are_pairs() {
                let (a, b) = pair(self.x, w, y);
                for ((to, a), b) in out.iter_mut().zip(a.chunks_exact(2)).zip(b.chunks_exact(2)) {
                    *to = greater(greater(greater(a[0], a[1]), b[0]), b[1]);
                }
                continue;
            }
            out.fill(T::of(f64::NEG_INFINITY));
            for row in elements(w, 0, y) {
                for q in 0..w.kernel[1] {
                    let (range, first) = columns(w, q);
                    if !range.is_empty() {
                        let x = &self.x[row * w.size[1]..][..w.size[1]][first..];
                        join(&mut out[range], x, w.stride[1], greater);
                    }
                }
            }
        }
    }
}

/// The two rows of the image in a row of windows of 2 x 2.
#[inline(always)]
fn pair<'a, T>(x: &'a [T], w: &Windows, y: usize) -> (&'a [T], &'a [T]) {
    x[2 * y * w.size[1]..][..2 * w.size[1]].split_at(w.size[1])
}

struct Indices<'a, T> {
    w: &'a Windows,
    x: &'a [T],
    out: &'a mut [i32],
}

impl<T: Real> Work for Indices<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let w = self.w;
        for (i, out) in self.out.iter_mut().enumerate() {
            *out = greatest_of(w, self.x, [i / w.count[1], i % w.count[1]]) as i32;
        }
    }
}

/// Where in its plane the greatest of a window is: of equals the first, of NaNs the last.
#[inline(always)]
fn greatest_of<T: Real>(w: &Windows, x: &[T], window: [usize; 2]) -> usize {
    let mut most: Option<(T, usize)> = None;
    for row in elements(w, 0, window[0]) {
        for column in elements(w, 1, window[1]) {
            let at = row * w.size[1] + column;
            let v = x[at];
            if most.is_none_or(|(most, _)| v > most || v.is_nan()) {
                most = Some((v, at));
            }
        }
    }
    most.map_or(0, |(_, at)| at)
}

struct First<'a, T> {
    w: &'a Windows,
    g: &'a [T],
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> Work for First<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let w = self.w;
        if !w.are_pairs() {
            self.out.fill(T::ZERO);
            for (i, &g) in self.g.iter().enumerate() {
                self.out[greatest_of(w, self.x, [i / w.count[1], i % w.count[1]])] = g;
            }
            return;
        }
        // In five passes without branches: the four elements of each window are put into rows of their own.
        let n = w.all();
        let mut rows = vec![T::ZERO; 4 * n];
        let (top, bottom) = rows.split_at_mut(2 * n);
        let ((a, b), (c, d)) = (top.split_at_mut(n), bottom.split_at_mut(n));
        let window = |y: usize| y * w.count[1]..(y + 1) * w.count[1];
        for y in 0..w.count[0] {
            let (upper, lower) = pair(self.x, w, y);
            let to = a[window(y)].iter_mut().zip(&mut b[window(y)]);
            to.zip(upper.chunks_exact(2)).for_each(|((a, b), x)| (*a, *b) = (x[0], x[1]));
            let to = c[window(y)].iter_mut().zip(&mut d[window(y)]);
            to.zip(lower.chunks_exact(2)).for_each(|((c, d), x)| (*c, *d) = (x[0], x[1]));
        }
        let g = &self.g[..n];
        let given = |to: bool, g: T| if to { g } else { T::ZERO };
        for i in 0..n {
            let right = (b[i] > a[i]) | b[i].is_nan();
            let most = if right { b[i] } else { a[i] };
            let below = (c[i] > most) | c[i].is_nan();
            let most = if below { c[i] } else { most };
            let last = (d[i] > most) | d[i].is_nan();
            a[i] = given(!right & !below & !last, g[i]);
            b[i] = given(right & !below & !last, g[i]);
            c[i] = given(below & !last, g[i]);
            d[i] = given(last, g[i]);
        }
        let (width, used) = (w.size[1], 2 * w.count[1]);
        for y in 0..w.count[0] {
            let (upper, lower) = self.out[2 * y * width..][..2 * width].split_at_mut(width);
            // What no window has.
            upper[used..].fill(T::ZERO);
            lower[used..].fill(T::ZERO);
            let with = a[window(y)].iter().zip(&b[window(y)]);
            upper.chunks_exact_mut(2).zip(with).for_each(|(x, (&a, &b))| (x[0], x[1]) = (a, b));
            let with = c[window(y)].iter().zip(&d[window(y)]);
            lower.chunks_exact_mut(2).zip(with).for_each(|(x, (&c, &d))| (x[0], x[1]) = (c, d));
        }
        self.out[2 * w.count[0] * width..].fill(T::ZERO);
    }
}

struct Means<'a, T> {
    w: &'a Windows,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> Work for Means<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let w = self.w;
        for (y, out) in self.out.chunks_exact_mut(w.count[1]).enumerate() {
            out.fill(T::ZERO);
            for row in elements(w, 0, y) {
                for q in 0..w.kernel[1] {
                    let (range, first) = columns(w, q);
                    if !range.is_empty() {
                        let x = &self.x[row * w.size[1]..][..w.size[1]][first..];
                        join(&mut out[range], x, w.stride[1], |a, b| a + b);
                    }
                }
            }
            for (x, v) in out.iter_mut().enumerate() {
                *v = *v / T::of(w.divisor_of([y, x]) as f64);
            }
        }
    }
}

struct Shares<'a, T> {
    w: &'a Windows,
    g: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> Work for Shares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let w = self.w;
        self.out.fill(T::ZERO);
        let mut shares = vec![T::ZERO; w.count[1]];
        for (y, g) in self.g.chunks_exact(w.count[1]).enumerate() {
            for (x, (share, &g)) in shares.iter_mut().zip(g).enumerate() {
                *share = g / T::of(w.divisor_of([y, x]) as f64);
            }
            for row in elements(w, 0, y) {
                let out = &mut self.out[row * w.size[1]..][..w.size[1]];
                for q in 0..w.kernel[1] {
                    let (range, first) = columns(w, q);
                    if range.is_empty() {
                        continue;
                    }
                    let (out, shares) = (&mut out[first..], &shares[range]);
                    if w.stride[1] == 1 {
                        out.iter_mut().zip(shares).for_each(|(to, &v)| *to = *to + v);
                    } else {
                        out.iter_mut().step_by(w.stride[1]).zip(shares).for_each(|(to, &v)| *to = *to + v);
                    }
                }
            }
        }
    }
}
