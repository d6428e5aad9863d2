use crate::graph::kernel::*;

#[derive(Debug)]
pub(crate) struct Gather { pub dim: usize }
impl StructuredOp for Gather {
    fn name(&self) -> &'static str { "gather" }
    fn key(&self) -> Vec<u64> { vec![self.dim as u64] }
    #[cfg(feature = "gpu")]
    fn gpu(&self, _: &Structured, _: &crate::backend::gpu::AdapterInfo) -> Vec<crate::backend::gpu::ShaderCall> { vec![] }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> { Err("stub".into()) }
}

#[derive(Debug)]
pub(crate) struct ScatterAdd { pub dim: usize, pub size: usize }
impl StructuredOp for ScatterAdd {
    fn name(&self) -> &'static str { "scatteradd" }
    fn key(&self) -> Vec<u64> { vec![self.dim as u64, self.size as u64] }
    #[cfg(feature = "gpu")]
    fn gpu(&self, _: &Structured, _: &crate::backend::gpu::AdapterInfo) -> Vec<crate::backend::gpu::ShaderCall> { vec![] }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> { Err("stub".into()) }
}
