//! The GPU backend: wgpu.

#[allow(dead_code)]
mod template;

/// The kernel table: shader texts, and for each template its `Params` and workgroup sizes. Written by `build.rs`.
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// The sort of adapter, by which kernel variants are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AdapterClass {
    Discrete,
    Integrated,
    /// A Vulkan driver that runs on the CPU (lavapipe).
    Software,
}

/// What a kernel may rely on.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    pub name: String,
    pub class: AdapterClass,
    pub limits: wgpu::Limits,
    pub features: wgpu::Features,
    /// Invocations in a subgroup, where shaders may use subgroups and all have one size.
    pub subgroup_size: Option<u32>,
}

/// One dispatch of a hand-written shader from `shaders/`.
#[derive(Clone, Debug)]
pub struct ShaderCall {
    /// File name without `.wgsl`.
    pub shader: &'static str,
    pub entry: &'static str,
    /// Values for the template's `${NAME}` and `#if NAME`.
    pub defines: Vec<(&'static str, String)>,
    /// The template's `Params`, packed (see the generated kernel table).
    pub params: Vec<u8>,
    pub workgroups: [u32; 3],
}
