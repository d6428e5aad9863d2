use crate::graph::kernel::*;

#[derive(Debug)]
pub(crate) struct Matmul ;
impl StructuredOp for Matmul {
    fn name(&self) -> &'static str { "matmul" }
    fn key(&self) -> Vec<u64> { vec![] }
    #[cfg(feature = "gpu")]
    fn gpu(&self, _: &Structured, _: &crate::backend::gpu::AdapterInfo) -> Vec<crate::backend::gpu::ShaderCall> { vec![] }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> { Err("stub".into()) }
}
