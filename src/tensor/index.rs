//! Indexing: `x.i((0, 1..3, ..))`, a view made of selections and slices.

use std::ops::{Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};
use std::panic::Location;

use super::Tensor;
use crate::error::{Error, ErrorKind};

/// One part of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// One position; the dimension goes away. Negative ones count from the end.
    At(i64),
    /// Every `step`-th position of a range, bounds as in Python.
    Slice { start: i64, end: i64, step: i64 },
    /// A new dimension of size 1 (`None` in Python).
    NewAxis,
    /// As many whole dimensions as the other parts leave (`...`).
    Ellipsis,
}

impl Index {
    /// A range in steps, `a:b:step` in Python.
    pub fn step_by(self, step: i64) -> Index {
        match self {
            Index::Slice { start, end, .. } => Index::Slice { start, end, step },
            other => other,
        }
    }
}

macro_rules! positions {
    ($($t:ty)*) => {$(
        impl From<$t> for Index {
            // A position beyond i64 is out of range of any dimension.
            fn from(i: $t) -> Index { Index::At(i64::try_from(i).unwrap_or(i64::MAX)) }
        }
        positions!(@range $t: Range<$t>, RangeFrom<$t>, RangeTo<$t>, RangeInclusive<$t>, RangeToInclusive<$t>);
    )*};
    (@range $t:ty: $($r:ty),*) => {$(
        impl From<$r> for Index {
            fn from(r: $r) -> Index { range(r.start_bound().cloned(), r.end_bound().cloned()) }
        }
    )*};
}
positions! { i32 i64 usize }

fn range<T: TryInto<i64>>(start: Bound<T>, end: Bound<T>) -> Index {
    let number = |v: T| v.try_into().unwrap_or(i64::MAX);
    let start = match start {
        Bound::Included(v) => number(v),
        Bound::Excluded(v) => number(v).saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match end {
        // `..=-1` reaches the last element, whose next would be 0.
        Bound::Included(v) => match number(v) {
            -1 => i64::MAX,
            v => v.saturating_add(1),
        },
        Bound::Excluded(v) => number(v),
        Bound::Unbounded => i64::MAX,
    };
    Index::Slice { start, end, step: 1 }
}

impl From<RangeFull> for Index {
    fn from(_: RangeFull) -> Index {
        Index::Slice { start: 0, end: i64::MAX, step: 1 }
    }
}

/// What [`Tensor::i`] takes: one index, or a tuple of them for successive dimensions.
pub trait IntoIndex {
    fn into_index(self) -> Vec<Index>;
}

impl<T: Into<Index>> IntoIndex for T {
    fn into_index(self) -> Vec<Index> {
        vec![self.into()]
    }
}

macro_rules! tuples {
    ($($t:ident)*) => {
        impl<$($t: Into<Index>),*> IntoIndex for ($($t,)*) {
            fn into_index(self) -> Vec<Index> {
                #[allow(non_snake_case)]
                let ($($t,)*) = self;
                vec![$($t.into()),*]
            }
        }
    };
}
tuples! { A }
tuples! { A B }
tuples! { A B C }
tuples! { A B C D }
tuples! { A B C D E }
tuples! { A B C D E F }

impl Tensor {
    /// A view of some of the elements, as `x[0, 1:3]` in PyTorch is `x.i((0, 1..3))`: positions, ranges, and
    /// [`Index`] for steps, new axes and the ellipsis. Writing to it writes to this tensor.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = arange(0, 12, 1).reshape([3, 4]);
    /// assert_eq!(x.i((1, ..2)).to_vec::<i32>()?, [4, 5]);
    /// assert_eq!(x.i((.., -1)).to_vec::<i32>()?, [3, 7, 11]);
    /// x.i(0).fill_(0);
    /// assert_eq!(x.sum().item::<i32>()?, 60);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn i(&self, index: impl IntoIndex) -> Tensor {
        let caller = Location::caller();
        if self.error().is_some() {
            return self.clone();
        }
        let parts = index.into_index();
        let takes = parts.iter().filter(|p| matches!(p, Index::At(_) | Index::Slice { .. })).count();
        if takes > self.dim() || parts.iter().filter(|p| **p == Index::Ellipsis).count() > 1 {
            let message = format!("too many indices for tensor of dimension {}", self.dim());
            return Tensor::invalid(Error::at(caller, ErrorKind::Index, "index", message));
        }
        let mut out = self.clone();
        let mut d = 0i64;
        for part in parts {
            match part {
                Index::At(i) => out = out.select(d, i),
                Index::Slice { start: 0, end: i64::MAX, step: 1 } => d += 1,
                Index::Slice { start, end, step } => {
                    out = out.slice(d, start, end, step);
                    d += 1;
                }
                Index::NewAxis => {
                    out = out.unsqueeze(d);
                    d += 1;
                }
                Index::Ellipsis => d += (self.dim() - takes) as i64,
            }
        }
        out
    }
}
