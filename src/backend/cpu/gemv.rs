//! Products of a matrix and a vector, which memory bounds: each element of the matrix is read once, in order.

use super::gemm::Matrix;
use super::number::Num;
use super::parallel::share;
use super::simd::{Work, vectorized};

/// Elements of a matrix that are worth a thread.
const STRETCH: usize = 96 << 10;
/// Elements summed side by side, and rows that share what they load of the vector.
const LANES: usize = 16;
const ROWS: usize = 4;
/// Elements of the output that stay in the first cache while columns are added to them.
const BLOCK: usize = 2048;

/// `out = a · x`, with `x` at `step`s from the beginning of its slice. `a` has `out.len()` rows and `k` columns.
pub fn matrix_vector<T: Num>(k: usize, a: Matrix<T>, x: &[T], step: usize, out: &mut [T]) {
    let packed: Vec<T>;
    let x = if step == 1 || k < 2 {
        x
    } else {
        packed = (0..k).map(|i| x[i * step]).collect();
        &packed
    };
    let x = &x[..k];
    let rows = (STRETCH / k.max(1)).max(1).next_multiple_of(ROWS);
    share(out, rows, |i, out| vectorized(Rows { a, first: i * rows, x, out }));
}

/// Some rows of a product.
struct Rows<'a, T> {
    a: Matrix<'a, T>,
    first: usize,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Num> Work for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Rows { a, first, x, out } = self;
        let [row, column] = a.strides;
        if column == 1 || x.len() == 1 {
            let mut groups = out.chunks_exact_mut(ROWS);
            let mut at = first * row;
            for out in &mut groups {
                let rows: [&[T]; ROWS] = std::array::from_fn(|r| &a.values[at + r * row..][..x.len()]);
                out.copy_from_slice(&dots(rows, x));
                at += ROWS * row;
            }
            for out in groups.into_remainder() {
                [*out] = dots([&a.values[at..][..x.len()]], x);
                at += row;
            }
        } else if row == 1 {
            for (i, out) in out.chunks_mut(BLOCK).enumerate() {
                let at = first + i * BLOCK;
                out.fill(T::ZERO);
                let mut k = 0;
                while k + 4 <= x.len() {
                    add_columns::<T, 4>(&a.values[at + k * column..], column, &x[k..k + 4], out);
                    k += 4;
                }
                while k < x.len() {
                    add_columns::<T, 1>(&a.values[at + k * column..], column, &x[k..=k], out);
                    k += 1;
                }
            }
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                let at = (first + i) * row;
                *out = (x.iter().enumerate())
                    .fold(T::ZERO, |sum, (k, &x)| sum.add(a.values[at + k * column].mul(x)));
            }
        }
    }
}

/// Dot products of rows with `x`, all of one length.
#[inline(always)]
fn dots<T: Num, const N: usize>(rows: [&[T]; N], x: &[T]) -> [T; N] {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let whole = x.len() - rest.len();
    let rows_by_lanes = rows.map(|row| &row.as_chunks::<LANES>().0[..blocks.len()]);
    let mut sums = [[T::ZERO; LANES]; N];
    for (i, x) in blocks.iter().enumerate() {
        for r in 0..N {
            let row = &rows_by_lanes[r][i];
            let mut sum = sums[r];
            for l in 0..LANES {
                sum[l] = sum[l].add(row[l].mul(x[l]));
            }
            sums[r] = sum;
        }
    }
    std::array::from_fn(|r| {
        let mut sums = sums[r];
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                sums[l] = sums[l].add(sums[l + half]);
            }
            half /= 2;
        }
        (rows[r][whole..].iter().zip(&x[whole..])).fold(sums[0], |sum, (&a, &x)| sum.add(a.mul(x)))
    })
}

/// `out += a[:, 0..N] · x`, of columns that lie `step` apart.
#[inline(always)]
fn add_columns<T: Num, const N: usize>(a: &[T], step: usize, x: &[T], out: &mut [T]) {
    let columns: [&[T]; N] = std::array::from_fn(|c| &a[c * step..][..out.len()]);
    for (i, out) in out.iter_mut().enumerate() {
        let mut sum = *out;
        for c in 0..N {
            sum = sum.add(columns[c][i].mul(x[c]));
        }
        *out = sum;
    }
}
