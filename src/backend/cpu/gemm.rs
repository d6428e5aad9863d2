//! Matrix products on host memory: the `gemm` crates' kernels for floats, a blocked loop for integers, `gemv` for
//! vectors.

use bytemuck::Pod;
use gemm_common::Parallelism;

use super::eval::with_scratch;
use super::gemv::matrix_vector;
use super::number::{Num, Value};
use super::parallel::{inside, share, workers};
use super::simd::{Work, vectorized};

/// Multiply-adds from which threads pay.
const WORTH_THREADS: usize = 1 << 18;
/// Multiply-adds that a product gives each thread at least.
const PIECE: usize = 1 << 19;
/// Rows for each thread from which they are cut for them here. The kernels' own way of sharing makes threads wait for
/// one another where they pack operands, but packs no operand twice.
const FEW_ROWS: usize = 32;
/// Multiply-adds up to which calling a kernel costs more than a plain loop.
const TINY: usize = 256;

/// Bytes apart from which on columns that begin a multiple of this apart share few of a cache's sets: 64 sets of 8 lines
/// hold 32 such lines or less, and a kernel packs 48 at a time.
const ALIASED: usize = 1024;
/// Bytes of a transposed panel, which is to stay in a core's own cache, and the most that one may have.
const PANEL: usize = 512 << 10;
const LARGEST_PANEL: usize = 2 << 20;
/// Columns that a kernel packs together, at most, and those that transposing takes at a time.
const PACKED: usize = 48;
const BLOCK: usize = 8;
/// Rows from which copying the right side is little of a product's work.
const WORTH_A_COPY: usize = 16;

/// An element type that [`matmul`] takes.
pub trait Product: Num {
    /// `out = a · b` on this thread, or (`threads`) with others' help. Neighbours in rows of `out` lie side by side.
    ///
    /// # Safety
    /// `out` must lie in memory, and nobody else may see it.
    #[doc(hidden)]
    unsafe fn product(size: [usize; 3], a: Matrix<Self>, b: Matrix<Self>, out: At<*mut Self>, threads: bool);
}

/// An element type that the `gemm` crates have kernels for.
pub trait Gemm: Product {
    /// `out = factor * a · b`, or `out += factor * a · b` if `add`.
    ///
    /// # Safety
    /// All three matrices must lie in memory, initialised where they are read; nobody else may see the output.
    #[doc(hidden)]
    unsafe fn gemm(
        size: [usize; 3],
        a: At<*const Self>,
        b: At<*const Self>,
        out: At<*mut Self>,
        add: bool,
        factor: Self,
        threads: bool,
    );
}

/// A matrix in memory: its first element, and strides of rows and columns.
#[derive(Clone, Copy)]
pub struct At<P> {
    pub first: P,
    pub row: usize,
    pub column: usize,
}

impl<P> At<P> {
    pub fn turned(self) -> At<P> {
        At { row: self.column, column: self.row, ..self }
    }
}

impl<T> At<*mut T> {
    /// Rows of `n` without gaps.
    fn rows(out: &mut [T], n: usize) -> At<*mut T> {
        At { first: out.as_mut_ptr(), row: n, column: 1 }
    }
}

/// A place that threads write parts of.
struct Shared<T>(At<*mut T>);

// SAFETY: who takes a part of it has that to itself.
unsafe impl<T: Send> Sync for Shared<T> {}

/// A matrix inside a slice: `[row, column]` lies at `row * strides[0] + column * strides[1]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(super) values: &'a [T],
    pub(super) strides: [usize; 2],
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// Panics where the matrix does not lie inside `values`.
    fn new(rows: usize, columns: usize, values: &'a [T], strides: [usize; 2]) -> Matrix<'a, T> {
        if rows > 0 && columns > 0 {
            let reach = |n: usize, stride: usize| (n - 1).checked_mul(stride);
            let last =
                reach(rows, strides[0]).zip(reach(columns, strides[1])).and_then(|(r, c)| r.checked_add(c));
            assert!(last.is_some_and(|last| last < values.len()), "a matrix reaches past its memory");
        }
        Matrix { values, strides }
    }

    fn at(self) -> At<*const T> {
        At { first: self.values.as_ptr(), row: self.strides[0], column: self.strides[1] }
    }

    /// Whether packing its columns would meet them in a few sets of the cache (see [`ALIASED`]), and it is worth a copy.
    fn is_aliased(self, [m, n, k]: [usize; 3]) -> bool {
        let size = size_of::<T>();
        self.strides[0] == 1
            && self.strides[1] > 0
            && (self.strides[1] * size).is_multiple_of(ALIASED)
            && m >= WORTH_A_COPY
            && n >= PACKED
            && k.saturating_mul(PACKED * size) <= LARGEST_PANEL
    }

    /// Without the rows before this one, which must be there.
    fn below(self, row: usize) -> Matrix<'a, T> {
        Matrix { values: &self.values[row * self.strides[0]..], ..self }
    }

    /// Without the columns before this one, which must be there.
    fn beside(self, column: usize) -> Matrix<'a, T> {
        Matrix { values: &self.values[column * self.strides[1]..], ..self }
    }
}

/// `out = a · b` with `a` `m × k`, `b` `k × n` (`size` is `[m, n, k]`), and `out` `m × n` in rows without gaps.
/// Elements of `a` and `b` lie at the given strides (of row and column) from the slices' beginnings.
pub fn matmul<T: Product>(
    size: [usize; 3],
    a: &[T],
    a_strides: [usize; 2],
    b: &[T],
    b_strides: [usize; 2],
    out: &mut [T],
) {
    matmuls(size, |_| (a, b), a_strides, b_strides, out);
}

/// As many products, one after another in `out`, as fit there. `operands` says where those of each begin.
pub fn matmuls<'a, T: Product>(
    size: [usize; 3],
    operands: impl Fn(usize) -> (&'a [T], &'a [T]) + Sync + Send,
    a_strides: [usize; 2],
    b_strides: [usize; 2],
    out: &mut [T],
) {
    let [m, n, k] = size;
    if out.is_empty() {
        return;
    }
    if k == 0 {
        return out.fill(T::ZERO);
    }
    let each = m.checked_mul(n).filter(|&each| each > 0 && out.len().is_multiple_of(each));
    let each = each.expect("an output that holds whole products");
    let work = each.saturating_mul(k);
    let one = |i: usize, out: &mut [T], threads: bool| {
        let (a, b) = operands(i);
        multiply(size, Matrix::new(m, k, a, a_strides), Matrix::new(k, n, b, b_strides), out, threads);
    };
    if out.len() == each || work >= 4 * PIECE {
        return out.chunks_exact_mut(each).enumerate().for_each(|(i, out)| one(i, out, true));
    }
    let batches = (WORTH_THREADS / 2).div_ceil(work);
    share(out, batches * each, |piece, out| {
        let numbered = out.chunks_exact_mut(each).enumerate();
        numbered.for_each(|(i, out)| one(piece * batches + i, out, false));
    });
}

fn multiply<T: Product>(size: [usize; 3], a: Matrix<T>, b: Matrix<T>, out: &mut [T], threads: bool) {
    let [m, n, k] = size;
    let threads = threads && m.saturating_mul(n).saturating_mul(k) >= WORTH_THREADS;
    if n == 1 {
        matrix_vector(k, a, b.values, b.strides[0], out);
    } else if m == 1 {
        let strides = [b.strides[1], b.strides[0]];
        matrix_vector(k, Matrix { values: b.values, strides }, a.values, a.strides[1], out);
    } else if m * n * k <= TINY {
        for (i, out) in out.iter_mut().enumerate() {
            let (row, column) = (i / n * a.strides[0], i % n * b.strides[1]);
            *out = (0..k).fold(T::ZERO, |sum, p| {
                sum.add(a.values[row + p * a.strides[1]].mul(b.values[column + p * b.strides[0]]))
            });
        }
    } else if threads && b.strides[0] == 1 && m < n && n >= PACKED * workers() {
        // Packing columns transposes them, so each thread has some to itself, and packs the smaller left side whole.
        let columns = PIECE.div_ceil(m.saturating_mul(k)).max(n.div_ceil(workers())).next_multiple_of(BLOCK);
        let out = Shared(At::rows(out, n));
        // Columns are no slices that could be shared, so numbers are.
        share(&mut vec![(); n.div_ceil(columns)], 1, |i, _| {
            let left = i * columns;
            let Shared(out) = &out;
            // SAFETY: `out` has `m` rows of `n`; these columns of them are this thread's alone.
            unsafe {
                let out = At { first: out.first.add(left), ..*out };
                T::product([m, columns.min(n - left), k], a, b.beside(left), out, false);
            }
        });
    } else if threads && (m >= FEW_ROWS * workers() || !inside()) {
        // A few rows for each thread, this one among them.
        let rows = PIECE.div_ceil(n.saturating_mul(k)).max(m.div_ceil(workers())).next_multiple_of(8);
        share(out, rows * n, |i, out| {
            // SAFETY: rows of `n` in a slice of this thread's.
            unsafe { T::product([out.len() / n, n, k], a.below(i * rows), b, At::rows(out, n), false) };
        });
    } else {
        // SAFETY: rows of `n` in a slice of ours.
        unsafe { T::product(size, a, b, At::rows(out, n), threads) };
    }
}

/// `out = a · b`, or `out += a · b` if `add`, as [`matmul`], with the rows of `out` lying `row` apart. Only with
/// `threads` it uses more than this one.
#[allow(clippy::too_many_arguments)] // as every gemm
pub fn multiply_add<T: Gemm>(
    size: [usize; 3],
    a: &[T],
    a_strides: [usize; 2],
    b: &[T],
    b_strides: [usize; 2],
    out: &mut [T],
    row: usize,
    add: bool,
    threads: bool,
) {
    let [m, n, k] = size;
    if m == 0 || n == 0 {
        return;
    }
    let end = (m - 1).checked_mul(row).and_then(|last| last.checked_add(n));
    assert!(row >= n && end.is_some_and(|end| end <= out.len()), "an output that is too small");
    let (a, b) = (Matrix::new(m, k, a, a_strides), Matrix::new(k, n, b, b_strides));
    if k == 0 && !add {
        out.chunks_mut(row).take(m).for_each(|out| out[..n].fill(T::ZERO));
    }
    if k == 0 {
        return;
    }
    let out = At { first: out.as_mut_ptr(), row, column: 1 };
    // SAFETY: `Matrix::new` and the assertion hold all three matrices inside their slices; `out` is borrowed exclusively.
    unsafe { T::gemm(size, a.at(), b.at(), out, add, T::ONE, threads) };
}

/// A product on this thread whose right side is transposed panel by panel before the kernel packs it.
///
/// # Safety
/// As [`Product::product`]'s.
unsafe fn in_panels<T: Gemm + Pod>([m, n, k]: [usize; 3], a: Matrix<T>, b: Matrix<T>, out: At<*mut T>) {
    let columns = (PANEL / (k * size_of::<T>())).max(PACKED).next_multiple_of(BLOCK).min(n);
    with_scratch(columns * k * size_of::<T>(), |panel| {
        let panel = bytemuck::cast_slice_mut::<u8, T>(panel);
        for left in (0..n).step_by(columns) {
            let width = columns.min(n - left);
            let panel = &mut panel[..k * width];
            let from = b.beside(left).values;
            vectorized(Transpose { from, apart: b.strides[1], width, to: &mut *panel });
            let b = Matrix { values: &*panel, strides: [width, 1] };
            // SAFETY: the caller's; the panel has `k` rows of `width`.
            unsafe {
                let out = At { first: out.first.add(left), ..out };
                T::gemm([m, width, k], a.at(), b.at(), out, false, T::ONE, false);
            }
        }
    });
}

/// Fills rows of `width` with columns of `from`, which lie `apart`.
struct Transpose<'a, T> {
    from: &'a [T],
    apart: usize,
    width: usize,
    to: &'a mut [T],
}

impl<T: Num> Work for Transpose<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Transpose { from, apart, width, to } = self;
        for (band, to) in to.chunks_mut(BLOCK * width).enumerate() {
            let high = to.len() / width;
            let from = &from[band * BLOCK..];
            for left in (0..width).step_by(BLOCK) {
                let block = BLOCK.min(width - left);
                if (high, block) == (BLOCK, BLOCK) {
                    // In registers: neighbours are read and written together.
                    let mut tile = [[T::ZERO; BLOCK]; BLOCK];
                    for (j, tile) in tile.iter_mut().enumerate() {
                        tile.copy_from_slice(&from[(left + j) * apart..][..BLOCK]);
                    }
                    for (p, row) in to.chunks_exact_mut(width).enumerate() {
                        let row: &mut [T] = &mut row[left..left + BLOCK];
                        for j in 0..BLOCK {
                            row[j] = tile[j][p];
                        }
                    }
                    continue;
                }
                for (p, row) in to.chunks_exact_mut(width).enumerate() {
                    for (j, to) in row[left..left + block].iter_mut().enumerate() {
                        *to = from[(left + j) * apart + p];
                    }
                }
            }
        }
    }
}

macro_rules! float {
    ($($t:ident = $gemm:path;)*) => {$(
        impl Product for $t {
            unsafe fn product(size: [usize; 3], a: Matrix<$t>, b: Matrix<$t>, out: At<*mut $t>, threads: bool) {
                // SAFETY: the caller's; matrices lie in their slices.
                unsafe {
                    if !threads && b.is_aliased(size) {
                        in_panels(size, a, b, out)
                    } else {
                        Self::gemm(size, a.at(), b.at(), out, false, 1.0, threads)
                    }
                }
            }
        }
        impl Gemm for $t {
            unsafe fn gemm(
                [m, n, k]: [usize; 3],
                a: At<*const $t>,
                b: At<*const $t>,
                out: At<*mut $t>,
                add: bool,
                factor: $t,
                threads: bool,
            ) {
                let threads = if threads { Parallelism::Rayon(0) } else { Parallelism::None };
                // SAFETY: the caller's. The kernels want columns, so this computes outᵀ = bᵀ aᵀ.
                unsafe {
                    $gemm()(
                        n, m, k, out.first, out.row as isize, out.column as isize, add,
                        b.first, b.row as isize, b.column as isize, a.first, a.row as isize, a.column as isize,
                        1.0, factor, false, false, false, threads,
                    );
                }
            }
        }
    )*};
}
float! { f32 = gemm_f32::gemm::f32::get_gemm_fn; f64 = gemm_f64::gemm::f64::get_gemm_fn; }

macro_rules! int {
    ($($t:ident)*) => {$(
        impl Product for $t {
            unsafe fn product(size: [usize; 3], a: Matrix<$t>, b: Matrix<$t>, out: At<*mut $t>, _: bool) {
                // SAFETY: the caller's.
                unsafe { integers(size, a, b, out) };
            }
        }
    )*};
}
int! { i32 u32 }

/// Row by row of `out`, as a sum of rows of `b`, in stretches that stay in cache.
///
/// # Safety
/// As [`Product::product`]'s.
unsafe fn integers<T: Num + Value>([m, n, k]: [usize; 3], a: Matrix<T>, b: Matrix<T>, out: At<*mut T>) {
    const TILE: usize = 256;
    // SAFETY: the caller's.
    let row = |i: usize| unsafe { std::slice::from_raw_parts_mut(out.first.add(i * out.row), n) };
    (0..m).for_each(|i| row(i).fill(T::ZERO));
    let mut row_of_b = [T::ZERO; TILE];
    for left in (0..n).step_by(TILE) {
        let width = TILE.min(n - left);
        for top in (0..k).step_by(TILE) {
            for p in top..k.min(top + TILE) {
                for (j, to) in row_of_b[..width].iter_mut().enumerate() {
                    *to = b.values[p * b.strides[0] + (left + j) * b.strides[1]];
                }
                for i in 0..m {
                    let factor = a.values[i * a.strides[0] + p * a.strides[1]];
                    for (to, &v) in row(i)[left..][..width].iter_mut().zip(&row_of_b) {
                        *to = to.add(factor.mul(v));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees<T: Product + std::fmt::Debug>(of: impl Fn(usize) -> T) {
        let sizes = [
            (1, 1, 1),
            (3, 5, 7),
            (1, 300, 20),
            (300, 1, 20),
            (64, 70, 300),
            (5, 0, 3),
            (5, 4, 0),
            (2, 520, 2),
            // Columns shared among threads, of which the last has fewer.
            (60, 205, 100),
            // Columns a power of two apart, in one panel and in several.
            (20, 70, 256),
            (17, 150, 2048),
        ];
        for (m, n, k) in sizes {
            let a: Vec<T> = (0..2 * m * k + 1).map(|i| of(i % 7)).collect();
            let b: Vec<T> = (0..2 * n * k + 1).map(|i| of(i % 5)).collect();
            for (a_strides, b_strides) in
                [([k, 1], [n, 1]), ([1, m], [1, k]), ([2 * k, 2], [0, 1]), ([0, 0], [n, 1])]
            {
                let mut out = vec![of(99); m * n];
                matmul([m, n, k], &a, a_strides, &b, b_strides, &mut out);
                for (at, &got) in out.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let want = (0..k).fold(T::ZERO, |sum, p| {
                        sum.add(
                            a[i * a_strides[0] + p * a_strides[1]]
                                .mul(b[p * b_strides[0] + j * b_strides[1]]),
                        )
                    });
                    assert_eq!(got, want, "{m}x{n}x{k} {a_strides:?} {b_strides:?} at {at}");
                }
            }
        }
    }

    #[test]
    fn products_of_every_type() {
        // Small whole numbers, whose sums are exact in any order.
        agrees(|i| i as f32 - 2.0);
        agrees(|i| i as f64 - 2.0);
        agrees(|i| i as i32 - 2);
        agrees(|i| (i as u32).wrapping_sub(2));
    }

    #[test]
    #[should_panic(expected = "reaches past")]
    fn operands_out_of_bounds_are_refused() {
        matmul([2, 2, 2], &[1f32; 3], [2, 1], &[1.0; 4], [2, 1], &mut [0.0; 4]);
    }
}
