use crate::graph::kernel::*;
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form { Softmax, LogSoftmax }

#[derive(Debug)]
pub(crate) struct Softmax { pub form: Form }
impl StructuredOp for Softmax {
    fn name(&self) -> &'static str { "softmax" }
    fn key(&self) -> Vec<u64> { vec![self.form as u64] }
    #[cfg(feature = "gpu")]
    fn gpu(&self, _: &Structured, _: &crate::backend::gpu::AdapterInfo) -> Vec<crate::backend::gpu::ShaderCall> { vec![] }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> { Err("stub".into()) }
}

#[derive(Debug)]
pub(crate) struct SoftmaxBackward { pub form: Form }
impl StructuredOp for SoftmaxBackward {
    fn name(&self) -> &'static str { "softmaxbackward" }
    fn key(&self) -> Vec<u64> { vec![self.form as u64] }
    #[cfg(feature = "gpu")]
    fn gpu(&self, _: &Structured, _: &crate::backend::gpu::AdapterInfo) -> Vec<crate::backend::gpu::ShaderCall> { vec![] }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> { Err("stub".into()) }
}
