//! Looking for NaN and infinity in what kernels store.

use std::sync::atomic::{AtomicU8, Ordering};

use half::f16;

use super::parallel::tasks;
use super::simd::{Work, vectorized};
use crate::backend::Found;

/// What all threads of a kernel have seen.
#[derive(Default)]
pub(super) struct Seen(AtomicU8);

const NAN: u8 = 1;
const INF: u8 = 2;

/// Bytes that one thread looks at.
const PIECE: usize = 256 << 10;

impl Seen {
    /// Looks at aligned floating-point numbers of `size` bytes each.
    #[inline]
    pub fn look(&self, values: &[u8], size: usize) {
        let kind = match size {
            2 => of(vectorized(Greatest::<u16>(bytemuck::cast_slice(values))), f16::INFINITY.to_bits()),
            4 => of(vectorized(Greatest::<u32>(bytemuck::cast_slice(values))), f32::INFINITY.to_bits()),
            _ => of(vectorized(Greatest::<u64>(bytemuck::cast_slice(values))), f64::INFINITY.to_bits()),
        };
        if kind != 0 {
            self.0.fetch_or(kind, Ordering::Relaxed);
        }
    }

    /// The same of many, in parallel.
    pub fn look_at_all(&self, values: &[u8], size: usize) {
        tasks(values.len().div_ceil(PIECE), |i| {
            self.look(&values[i * PIECE..values.len().min((i + 1) * PIECE)], size);
        });
    }

    /// What was seen since the last time.
    pub fn take(&self) -> Found {
        let kinds = self.0.swap(0, Ordering::Relaxed);
        Found { nan: kinds & NAN != 0, inf: kinds & INF != 0 }
    }
}

fn of<T: Ord>(greatest: T, infinity: T) -> u8 {
    match greatest.cmp(&infinity) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => INF,
        std::cmp::Ordering::Greater => NAN,
    }
}

/// The greatest of numbers' bits without the sign: infinity's are above all finite ones', and NaN's above those.
struct Greatest<'a, T>(&'a [T]);

macro_rules! greatest {
    ($t:ty) => {
        impl Work for Greatest<'_, $t> {
            type Output = $t;
            #[inline(always)]
            fn run(self) -> $t {
                self.0.iter().fold(0, |most, bits| most.max(bits & (<$t>::MAX >> 1)))
            }
        }
    };
}
greatest!(u16);
greatest!(u32);
greatest!(u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_are_told_apart_wherever_they_are() {
        let look = |values: &[f32]| {
            let seen = Seen::default();
            seen.look_at_all(bytemuck::cast_slice(values), 4);
            seen.take()
        };
        let mut values = vec![-f32::MAX; 200_001];
        assert_eq!(look(&values), Found::default());
        assert_eq!(look(&[]), Found::default());
        for at in [0, 7, 65_536, 200_000] {
            for (bad, found) in [
                (f32::NAN, Found { nan: true, inf: false }),
                (-f32::NAN, Found { nan: true, inf: false }),
                (f32::NEG_INFINITY, Found { nan: false, inf: true }),
            ] {
                values[at] = bad;
                assert_eq!(look(&values), found, "at {at}");
            }
            values[at] = 0.0;
        }
        let seen = Seen::default();
        seen.look(bytemuck::cast_slice(&[1.0, f64::MAX]), 8);
        assert_eq!(seen.take(), Found::default());
        seen.look(bytemuck::cast_slice(&[1.0, f64::NAN]), 8);
        seen.look(bytemuck::cast_slice(&[f64::INFINITY]), 8);
        assert_eq!(seen.take(), Found { nan: true, inf: true });
        assert_eq!(seen.take(), Found::default(), "taken");
    }
}
