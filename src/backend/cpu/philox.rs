use crate::graph::dtype::DType;
use super::block::BlockFn;
pub fn bits_kernel(_: DType, _: DType) -> Option<BlockFn> { None }
pub fn uniform_kernel(_: DType, _: DType) -> Option<BlockFn> { None }
pub fn normal_kernel(_: DType, _: DType) -> Option<BlockFn> { None }
pub fn mul_hi_kernel(_: DType, _: DType) -> Option<BlockFn> { None }
