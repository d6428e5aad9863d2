//! The operators. Each is declared once: what it takes, how it is computed on both backends, its gradient.

pub(crate) mod attention;
pub(crate) mod cast;
pub(crate) mod cat;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
pub mod custom;
#[cfg(feature = "gpu")]
pub(crate) mod dispatch;
pub(crate) mod elementwise;
pub(crate) mod gather;
pub(crate) mod indexing;
pub(crate) mod loss;
pub(crate) mod masking;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod normalize;
pub(crate) mod parts;
pub(crate) mod pool;
pub(crate) mod probability;
pub(crate) mod products;
pub(crate) mod random;
pub(crate) mod record;
pub(crate) mod reduce;
#[cfg(feature = "gpu")]
mod row_kernels;
mod rows;
#[doc(hidden)]
pub mod samples;
pub(crate) mod softmax;
#[cfg(test)]
mod structured_tests;
pub(crate) mod views;

/// Software drivers end an invocation's loops, without a word, after 65,535 turns in all.
pub(crate) const MAX_TURNS: usize = 65_000;
/// Terms that an op adds up one after the other beside its own work: rounding errors grow with their number, and a reduction
/// of its own has a tree instead.
pub(crate) const MAX_CHAIN: usize = 1 << 14;
/// Rows (or columns) of the other operand up to which a product adds up those of one: what all its tiles lose by it grows with
/// them, and what one more reading of the operand takes does not.
pub(crate) const MAX_BESIDE: usize = 1024;
