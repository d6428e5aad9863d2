#[cfg(feature = "gpu")]
pub(crate) mod dispatch;
pub(crate) mod gather;
pub(crate) mod matmul;
pub(crate) mod softmax;
#[cfg(test)]
mod structured_tests;
