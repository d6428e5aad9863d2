//! Rows on the CPU, as softmax and the norms take them: folds of slices, in as many lanes as keep a processor's
//! vector units busy.

use crate::backend::Prices;
use crate::backend::cpu::number::Real;
use crate::graph::layout::Layout;

/// Elements a thread should have at least.
pub(super) const WORTH_A_THREAD: usize = 16 << 10;
/// Columns that are reduced at once.
pub(super) const COLUMNS: usize = 128;
const LANES: usize = 32;

/// [`StructuredOp::recomputes`](crate::graph::kernel::StructuredOp::recomputes) of an input that is read as the rows of a
/// contiguous `[outer, n, inner]` (or `[rows, n]`), in so many loops where they do not fit in registers.
pub(super) fn recomputed(layout: &Layout, loops: usize, prices: &Prices) -> Option<usize> {
    let n = *layout.shape.get(layout.rank().min(2).checked_sub(1)?)?;
    let inner: usize = layout.shape[layout.rank().min(2)..].iter().product();
    let in_registers = n <= 32 || inner == 1 && n <= 1024;
    // What cannot be computed in fours is better read.
    let in_fours = inner == 1 && n.is_multiple_of(4);
    (in_fours || !prices.fours).then_some(if in_registers { 1 } else { loops })
}
/// Values that a lane adds up before it begins anew, so that rounding errors do not grow with a row's length.
const STRETCH: usize = 64;

/// Combines `term` of all elements.
#[inline(always)]
pub(super) fn fold<T: Real>(x: &[T], start: T, term: impl Fn(T) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    for stretch in x.chunks(LANES * STRETCH) {
        let mut part = [start; LANES];
        let chunks = stretch.chunks_exact(LANES);
        let rest = chunks.remainder();
        for x in chunks {
            for l in 0..LANES {
                part[l] = join(part[l], term(x[l]));
            }
        }
        for l in 0..rest.len() {
            part[l] = join(part[l], term(rest[l]));
        }
        for l in 0..LANES {
            lanes[l] = join(lanes[l], part[l]);
        }
    }
    halve(lanes, join)
}

/// The sum of `term` of all pairs.
#[inline(always)]
pub(super) fn sum_pairs<T: Real>(x: &[T], y: &[T], term: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    for (x, y) in x.chunks(LANES * STRETCH).zip(y.chunks(LANES * STRETCH)) {
        let mut part = [T::ZERO; LANES];
        let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let (rest_x, rest_y) = (xs.remainder(), ys.remainder());
        for (x, y) in xs.zip(ys) {
            for l in 0..LANES {
                part[l] = part[l] + term(x[l], y[l]);
            }
        }
        for l in 0..rest_x.len().min(rest_y.len()) {
            part[l] = part[l] + term(rest_x[l], rest_y[l]);
        }
        for l in 0..LANES {
            lanes[l] = lanes[l] + part[l];
        }
    }
    halve(lanes, plus)
}

/// Sets each of `out` to `f` of its `x`, and sums them.
#[inline(always)]
pub(super) fn map_sum<T: Real>(x: &[T], out: &mut [T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    for (x, out) in x.chunks(LANES * STRETCH).zip(out.chunks_mut(LANES * STRETCH)) {
        let mut part = [T::ZERO; LANES];
        let (xs, mut outs) = (x.chunks_exact(LANES), out.chunks_exact_mut(LANES));
        let rest = xs.remainder();
        for (x, out) in xs.zip(&mut outs) {
            for l in 0..LANES {
                out[l] = f(x[l]);
                part[l] = part[l] + out[l];
            }
        }
        for (l, (&x, out)) in rest.iter().zip(outs.into_remainder()).enumerate() {
            *out = f(x);
            part[l] = part[l] + *out;
        }
        for l in 0..LANES {
            lanes[l] = lanes[l] + part[l];
        }
    }
    halve(lanes, plus)
}

#[inline(always)]
pub(super) fn plus<T: Real>(a: T, b: T) -> T {
    a + b
}

/// The greater; of NaN and a number either, as the sum of exponentials will be NaN all the same.
#[inline(always)]
pub(super) fn greater<T: Real>(a: T, b: T) -> T {
    if b > a { b } else { a }
}

/// Combines lanes in a tree.
#[inline(always)]
fn halve<T: Real>(mut lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let mut half = LANES;
    while half > 1 {
        half /= 2;
        for l in 0..half {
            lanes[l] = join(lanes[l], lanes[l + half]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_counts_once() {
        for n in [0, 1, 31, 32, 33, 1000, LANES * STRETCH, 3 * LANES * STRETCH + 77] {
            let x: Vec<f64> = (0..n).map(|i| (i % 13) as f64 - 3.0).collect();
            let y: Vec<f64> = x.iter().map(|v| v * 2.0 + 1.0).collect();
            let mut out = vec![9.0; n];
            assert_eq!(fold(&x, 0.0, |v| v, plus), x.iter().sum::<f64>());
            assert_eq!(sum_pairs(&x, &y, |a, b| a * b), x.iter().zip(&y).map(|(a, b)| a * b).sum::<f64>());
            assert_eq!(map_sum(&x, &mut out, |v| v * 2.0 + 1.0), y.iter().sum::<f64>());
            assert_eq!(out, y);
        }
    }
}
