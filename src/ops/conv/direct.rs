//! Filters of one channel on the CPU: too few rows for a product of matrices, so taps are summed where they lie.

use std::ops::Range;

use rayon::prelude::*;

use super::cpu::{Element, tap_rows};
use super::op::Geometry;
use crate::backend::cpu::number::Num;
use crate::backend::cpu::simd::{Work, vectorized};

/// Runs `plane` for each image's group.
pub(super) fn direct<T: Element>(
    g: &Geometry,
    out: &mut [T],
    plane: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    debug_assert_eq!(out.len(), plane * g.images * g.groups);
    out.par_chunks_mut(plane).enumerate().for_each(|(i, out)| work(i, out));
}

/// `plane` of `x` and one of `y` at all taps.
struct Direct<'a, T, F> {
    g: &'a Geometry,
    rows: Range<usize>,
    tap: F,
    values: std::marker::PhantomData<T>,
}

impl<T: Element, F: FnMut([usize; 2], Range<usize>, usize)> Work for Direct<'_, T, F> {
    type Output = ();

    /// Calls `tap` with the tap, its places (numbers in a plane of `y`) and where the first is in a plane of `x`.
    #[inline(always)]
    fn run(mut self) {
        let g = self.g;
        for r in 0..g.kernel[0] {
            for q in 0..g.kernel[1] {
                tap_rows(g, self.rows.clone(), [r, q], |y, at, places, first| {
                    if let Some(at) = at.filter(|_| !places.is_empty()) {
                        let row = y * g.places[1];
                        (self.tap)([r, q], row + places.start..row + places.end, at * g.size[1] + first);
                    }
                });
            }
        }
    }
}

fn each_tap<T: Element>(g: &Geometry, rows: Range<usize>, tap: impl FnMut([usize; 2], Range<usize>, usize)) {
    vectorized(Direct { g, rows, tap, values: std::marker::PhantomData::<T> });
}

/// The filters of one group of one channel.
pub(super) fn direct_output<T: Element>(g: &Geometry, i: usize, x: &[T], w: &[T], out: &mut [T]) {
    let group = i % g.groups;
    let x = &x[i * g.area()..][..g.area()];
    out.fill(T::ZERO);
    for (f, out) in out.chunks_exact_mut(g.place_count()).enumerate() {
        let w = &w[(group * g.group_filters() + f) * g.taps()..][..g.taps()];
        each_tap::<T>(g, 0..g.places[0], |[r, q], places, at| {
            let factor = w[r * g.kernel[1] + q];
            let out = &mut out[places];
            if g.stride[1] == 1 {
                for (to, &v) in out.iter_mut().zip(&x[at..]) {
                    *to = *to + factor * v;
                }
            } else {
                for (to, &v) in out.iter_mut().zip(x[at..].iter().step_by(g.stride[1])) {
                    *to = *to + factor * v;
                }
            }
        });
    }
}

pub(super) fn direct_input<T: Element>(g: &Geometry, i: usize, y: &[T], w: &[T], out: &mut [T]) {
    let group = i % g.groups;
    out.fill(T::ZERO);
    let size = g.group_filters() * g.place_count();
    for (f, y) in y[i * size..][..size].chunks_exact(g.place_count().max(1)).enumerate() {
        let w = &w[(group * g.group_filters() + f) * g.taps()..][..g.taps()];
        each_tap::<T>(g, 0..g.places[0], |[r, q], places, at| {
            let factor = w[r * g.kernel[1] + q];
            let y = &y[places];
            if g.stride[1] == 1 {
                for (to, &v) in out[at..].iter_mut().zip(y) {
                    *to = *to + factor * v;
                }
            } else {
                for (to, &v) in out[at..].iter_mut().step_by(g.stride[1]).zip(y) {
                    *to = *to + factor * v;
                }
            }
        });
    }
}

pub(super) fn direct_weight<T: Element>(g: &Geometry, rows: Range<usize>, x: &[T], y: &[T], out: &mut [T]) {
    let height = g.places[0].max(1);
    let mut at = rows.start;
    while at < rows.end {
        let (image, row) = (at / height, at % height);
        let end = height.min(row + rows.end - at);
        for filter in 0..g.filters {
            let x = &x[(image * g.groups + filter / g.group_filters()) * g.area()..][..g.area()];
            let y = &y[(image * g.filters + filter) * g.place_count()..][..g.place_count()];
            let out = &mut out[filter * g.taps()..][..g.taps()];
            each_tap::<T>(g, row..end, |[r, q], places, at| {
                let to = &mut out[r * g.kernel[1] + q];
                *to = *to + dot(&y[places], &x[at..], g.stride[1]);
            });
        }
        at += end - row;
    }
}

/// In as many sums as fit in a register.
#[inline(always)]
pub(super) fn dot<T: Num>(y: &[T], x: &[T], stride: usize) -> T {
    const LANES: usize = 16;
    let mut lanes = [T::ZERO; LANES];
    if stride == 1 {
        let x = &x[..y.len()];
        let (blocks, rest) = (y.chunks_exact(LANES), y.chunks_exact(LANES).remainder());
        for (y, x) in blocks.zip(x.chunks_exact(LANES)) {
            for l in 0..LANES {
                lanes[l] = lanes[l].add(y[l].mul(x[l]));
            }
        }
        for (l, (y, x)) in rest.iter().zip(&x[y.len() - rest.len()..]).enumerate() {
            lanes[l] = lanes[l].add(y.mul(*x));
        }
    } else {
        for (i, (y, x)) in y.iter().zip(x.iter().step_by(stride)).enumerate() {
            lanes[i % LANES] = lanes[i % LANES].add(y.mul(*x));
        }
    }
    lanes.into_iter().fold(T::ZERO, Num::add)
}
