//! Looking inside: which kernel is wrong.
//!
//! `WGRAD_DEBUG=1` to `4` prints what runs: 1 a line for each flush, 2 each kernel with its time and rates and
//! the line that recorded it, 3 its bindings and parameters too, 4 its WGSL too.

mod diff;

pub use diff::{Diff, KernelDiff, diff};
