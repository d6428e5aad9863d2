//! How shapes and dimensions may be written: `[2, 3]`, `4`, `()`, `vec![…]`, with -1 where it means something.

use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::graph::layout::Dims;
use crate::ops::record::Caller;

/// PyTorch's limit, too.
const MAX_RANK: usize = 64;

/// A list of dimension numbers, or of sizes of which one may be -1.
pub trait IntoDims {
    fn into_dims(self) -> SmallVec<[i64; 5]>;
}

/// A shape: `[2, 3]`, `(2, 3)`, `5`, `()`, a slice or a `Vec`.
pub trait IntoShape {
    fn into_shape(self) -> SmallVec<[i64; 5]>;
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl<const N: usize> IntoDims for [$t; N] {
            fn into_dims(self) -> SmallVec<[i64; 5]> { self.iter().map(|&d| d as i64).collect() }
        }
        impl<const N: usize> IntoDims for &[$t; N] {
            fn into_dims(self) -> SmallVec<[i64; 5]> { self.iter().map(|&d| d as i64).collect() }
        }
        impl IntoDims for &[$t] {
            fn into_dims(self) -> SmallVec<[i64; 5]> { self.iter().map(|&d| d as i64).collect() }
        }
        impl IntoDims for Vec<$t> {
            fn into_dims(self) -> SmallVec<[i64; 5]> { self.iter().map(|&d| d as i64).collect() }
        }
        impl IntoDims for &Vec<$t> {
            fn into_dims(self) -> SmallVec<[i64; 5]> { self.iter().map(|&d| d as i64).collect() }
        }
        impl IntoDims for $t {
            fn into_dims(self) -> SmallVec<[i64; 5]> { smallvec::smallvec![self as i64] }
        }
    )*};
}
integers! { usize isize i32 i64 u32 }

impl IntoDims for () {
    fn into_dims(self) -> SmallVec<[i64; 5]> {
        SmallVec::new()
    }
}

macro_rules! tuples {
    ($($t:ident)*) => {
        impl<$($t: TryInto<i64>),*> IntoDims for ($($t,)*) {
            fn into_dims(self) -> SmallVec<[i64; 5]> {
                #[allow(non_snake_case)]
                let ($($t,)*) = self;
                // What is beyond i64 is out of range of any dimension.
                smallvec::smallvec![$($t.try_into().unwrap_or(i64::MAX)),*]
            }
        }
    };
}
tuples! { A B }
tuples! { A B C }
tuples! { A B C D }
tuples! { A B C D E }

impl<T: IntoDims> IntoShape for T {
    fn into_shape(self) -> SmallVec<[i64; 5]> {
        self.into_dims()
    }
}

/// Checks sizes that must all be given.
pub(crate) fn shape(given: impl IntoShape, op: &'static str, caller: Caller) -> Result<Dims> {
    let given = given.into_shape();
    let mut total: usize = 1;
    let mut out = Dims::new();
    for &n in &given {
        let n = usize::try_from(n).map_err(|_| {
            let message = format!("sizes must not be negative, and the shape is {given:?}");
            Error::at(caller, ErrorKind::Shape, op, message)
        })?;
        // The element count and its bytes must be numbers that fit.
        total = total.checked_mul(n.max(1)).filter(|&t| t <= isize::MAX as usize / 8).ok_or_else(|| {
            Error::at(caller, ErrorKind::Shape, op, format!("the shape {given:?} has too many elements"))
        })?;
        out.push(n);
    }
    if out.len() > MAX_RANK {
        let message = format!("tensors have at most {MAX_RANK} dimensions, not {}", out.len());
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    Ok(out)
}

/// Dimension `d` of `rank`, counting from the end if negative. A 0-dim tensor has dimensions 0 and -1, as in
/// PyTorch.
pub(crate) fn dim(d: i64, rank: usize, op: &'static str, caller: Caller) -> Result<usize> {
    let n = rank.max(1) as i64;
    if !(-n..n).contains(&d) {
        let message =
            format!("Dimension out of range (expected to be in range of [{}, {}], but got {d})", -n, n - 1);
        return Err(Error::at(caller, ErrorKind::Index, op, message));
    }
    Ok(if d < 0 { d + n } else { d } as usize)
}

/// A list of distinct dimensions, sorted.
pub(crate) fn dims(given: impl IntoDims, rank: usize, op: &'static str, caller: Caller) -> Result<Dims> {
    let mut out = Dims::new();
    for d in given.into_dims() {
        let d = dim(d, rank, op, caller)?;
        if out.contains(&d) {
            let message = format!("dim {d} appears multiple times in the list of dims");
            return Err(Error::at(caller, ErrorKind::Index, op, message));
        }
        out.push(d);
    }
    out.sort_unstable();
    Ok(out)
}
