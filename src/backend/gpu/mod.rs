//! The GPU backend: wgpu.

#[cfg(test)]
mod abroad;
mod ahead;
mod check;
mod codegen;
mod device;
mod disk;
mod exit;
pub mod lint;
mod pipeline;
mod pool;
mod read;
mod run;
pub mod template;
#[cfg(test)]
mod tests;
pub mod tune;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use wgpu::naga;

use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Binding, Kernel, Recording};

use super::report::Timing;
use super::{Backend, Buffer, Caps, Code, Compiled, Fault, Found, Memory};
use device::Faults;

pub use device::{adapters, pick};

/// The kernel table: shader texts, and for each template its `Params` and workgroup sizes. Written by `build.rs`.
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

    use std::collections::HashMap;
    use std::sync::LazyLock;

    use parking_lot::RwLock;

    use super::template::Library;

    /// Templates that the program registered.
    static REGISTERED: LazyLock<RwLock<HashMap<&'static str, &'static str>>> =
        LazyLock::new(Default::default);

    /// `shaders/shared/`. It was checked at build time.
    static LIBRARY: LazyLock<Result<Library, String>> =
        LazyLock::new(|| Library::new(SHARED.iter().copied()));

    /// A template's text.
    pub fn template(name: &str) -> Option<&'static str> {
        let own = SHADERS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
        own.or_else(|| REGISTERED.read().get(name).copied())
    }

    pub fn register(name: &'static str, text: &'static str) {
        REGISTERED.write().insert(name, text);
    }

    pub fn library() -> Result<&'static Library, String> {
        LIBRARY.as_ref().map_err(Clone::clone)
    }
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
    /// The interface, the driver, and its version.
    pub driver: String,
    /// Names what is kept on disk for this adapter and driver.
    pub id: String,
    pub class: AdapterClass,
    /// Whether its driver runs shaders on the CPU, whatever its class.
    pub on_cpu: bool,
    pub limits: wgpu::Limits,
    pub features: wgpu::Features,
    /// Invocations in a subgroup, where shaders may use subgroups and all have one size.
    pub subgroup_size: Option<u32>,
    /// The size of the cooperative matrices of halves that are added up in single precision, where there are such.
    pub matrices: Option<usize>,
    /// Whether generated kernels move memory in words of 64 bits.
    pub pairs: bool,
    /// Which of several equal kernels are fastest.
    pub tuner: Arc<tune::Tuner>,
}

impl AdapterInfo {
    /// Whether kernels are those for drivers that run shaders on the CPU.
    pub fn is_software(&self) -> bool {
        self.class == AdapterClass::Software
    }

    /// Whether it is one whose eight lanes are a subgroup that shaders may use.
    pub fn has_eights(&self) -> bool {
        self.is_software() && self.subgroup_size == Some(8)
    }
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

/// An open device.
pub struct Gpu {
    info: AdapterInfo,
    caps: Caps,
    device: wgpu::Device,
    queue: wgpu::Queue,
    faults: Arc<Faults>,
    pool: Arc<pool::Pool>,
    pipelines: pipeline::Pipelines,
    runner: Mutex<run::Runner>,
    reader: Arc<Mutex<read::Reader>>,
    status: Arc<Mutex<run::Status>>,
}

impl Gpu {
    fn new(
        info: AdapterInfo,
        caps: Caps,
        device: wgpu::Device,
        queue: wgpu::Queue,
        faults: Arc<Faults>,
        pool: Arc<pool::Pool>,
    ) -> Gpu {
        let status = Arc::new(Mutex::new(run::Status::new(&device)));
        let pipelines = pipeline::Pipelines::new(&device, &info);
        let (runner, reader) = Default::default();
        Gpu { info, caps, device, queue, faults, pool, pipelines, runner, reader, status }
    }

    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }
}

impl Backend for Gpu {
    fn name(&self) -> &str {
        &self.info.name
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer, Fault> {
        self.faults.take()?;
        self.pool.get(bytes)
    }

    fn alloc_area(&self, bytes: usize) -> Result<Buffer, Fault> {
        self.faults.take()?;
        self.pool.get_area(bytes)
    }

    fn upload(&self, data: &[u8]) -> Result<Buffer, Fault> {
        let buffer = self.alloc(data.len())?;
        let target = run::raw(run::storage(&buffer)?)?;
        let whole = data.len() / 4 * 4;
        device::scoped(&self.device, || {
            if whole > 0 {
                self.queue.write_buffer(target, 0, &data[..whole]);
            }
            if whole < data.len() {
                let mut rest = [0; 4];
                rest[..data.len() - whole].copy_from_slice(&data[whole..]);
                self.queue.write_buffer(target, whole as u64, &rest);
            }
        })?;
        Ok(buffer)
    }

    fn zeros(&self, bytes: usize) -> Result<Buffer, Fault> {
        let buffer = self.alloc(bytes)?;
        let target = run::raw(run::storage(&buffer)?)?;
        device::scoped(&self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.clear_buffer(target, 0, None);
            self.queue.submit([encoder.finish()]);
        })?;
        Ok(buffer)
    }

    fn download(&self, from: &Buffer, range: Range<usize>) -> Result<Vec<u8>, Fault> {
        self.read(from, range)
    }

    fn download_async(
        &self,
        from: &Buffer,
        range: Range<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, Fault>> + Send>> {
        self.read_async(from, range)
    }

    fn compile(&self, recording: &Recording, looks: bool) -> Result<Compiled, Fault> {
        self.faults.take()?;
        let plan = self.pipelines.compile(&self.device, &self.info, recording, looks)?;
        Ok(Arc::new(tune::Repeated::new(plan)))
    }

    fn run(
        &self,
        recording: &Recording,
        compiled: &Compiled,
        buffers: &[Buffer],
        scalars: &[Scalar],
    ) -> Result<Vec<Found>, Fault> {
        self.faults.take()?;
        let repeated = compiled.downcast_ref::<tune::Repeated>().ok_or_else(|| Fault {
            kind: crate::error::ErrorKind::Device,
            message: "a recording compiled for another device".into(),
            command: None,
        })?;
        let plan = repeated.plan();
        let found = match self.run_plan(&plan, buffers, scalars)? {
            Some((staging, stride, submission)) => {
                check::read(self, &plan, recording, &staging, stride, submission)?
            }
            None => vec![],
        };
        self.faults.take()?;
        self.tune(recording, repeated, buffers);
        Ok(found)
    }

    fn driver(&self) -> String {
        self.info.driver.clone()
    }

    fn code(&self, kernel: &Kernel) -> Result<Vec<Code>, Fault> {
        let calls = codegen::generate(kernel, &self.info, false)?;
        Ok(calls
            .into_iter()
            .map(|call| Code {
                text: call.wgsl,
                entry: call.entry.into_owned(),
                params: call.params,
                workgroups: call.workgroups,
                status: call.status,
            })
            .collect())
    }

    fn run_code(
        &self,
        code: &[Code],
        bindings: &[Binding],
        types: &[DType],
        buffers: &[Buffer],
        scalars: &[Scalar],
    ) -> Result<(), Fault> {
        self.faults.take()?;
        let plan = self.pipelines.compile_code(&self.device, &self.info, code, bindings, types)?;
        self.run_plan(&plan, buffers, scalars)?;
        self.faults.take()
    }

    fn synchronize(&self) -> Result<(), Fault> {
        self.faults.take()?;
        self.wait_all()
    }

    fn wait(&self) -> Result<(), Fault> {
        device::wait(&self.device, None)
    }

    fn memory(&self) -> Memory {
        self.pool.memory()
    }

    fn empty_cache(&self) {
        self.pool.empty();
    }

    fn times_kernels(&self) -> bool {
        self.info.features.contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    fn total_memory(&self) -> Option<u64> {
        // What other adapters have, wgpu does not tell.
        if self.info.on_cpu { super::host_memory() } else { None }
    }

    fn profile(&self, on: bool) -> Vec<Timing> {
        let mut runner = self.runner.lock();
        runner.profiling = on;
        std::mem::take(&mut runner.timings)
    }
}
