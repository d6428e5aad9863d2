//! The two machines a [`Recording`] runs on, behind one small interface.

use std::any::Any;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use crate::error::ErrorKind;
use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Binding, Kernel, Recording};

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod report;

/// A fault of the device: what sort, and what to say. The executor adds op and caller.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: ErrorKind,
    pub message: String,
    /// Which command of the recording, where that is known.
    pub command: Option<usize>,
}

/// Memory of a device. Dropping the last handle gives it back (to a pool).
#[derive(Clone)]
pub struct Buffer {
    pub bytes: usize,
    /// Where in the memory it begins: what is computed on the way may share one.
    pub at: usize,
    pub memory: Arc<dyn Any + Send + Sync>,
}

/// What the scheduler must know of a device to cut the work to its measure.
#[derive(Clone, Debug)]
pub struct Caps {
    /// Storage buffers one kernel may bind.
    pub max_bindings: usize,
    /// Bytes one binding may have.
    pub max_binding_bytes: usize,
    pub f16: bool,
    pub f64: bool,
    pub areas: Areas,
    /// A reduction to `outputs` values of `reduced` each, of neighbours in memory or of `columns`, is cut in so many
    /// partial ones first (1: not cut).
    pub split_reduction: fn(outputs: usize, reduced: usize, columns: bool) -> usize,
    /// Where structured ops may compute their inputs: what that costs. `None`: all inputs lie in memory.
    pub prologues: Option<Prices>,
    /// The sums of a product of `[batches, m, k]` and `[batches, k, n]` are cut in so many partial ones first.
    pub split_product: fn([usize; 4]) -> usize,
}

/// What computing a value where it is read costs and saves, in additions for each of its elements. Fitted to machines; see
/// `benches/NOTES.md`.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    /// Rows and columns of a product's output that share what is read.
    pub tile: usize,
    /// Whether elements that cannot be read in fours cost four times as much.
    pub fours: bool,
    /// A value of fewer elements is not worth another kernel to compile.
    pub least: usize,
    /// Computing an element at all: to find it by its place.
    pub each: usize,
    /// Reading one more operand.
    pub load: usize,
    /// Writing the value and reading it back.
    pub round_trip: usize,
    /// A kernel of its own, for all elements together. (It counts for no more than two round trips.)
    pub dispatch: usize,
    /// Whether a product's tiles leave registers for sums of rows.
    pub registers: bool,
}

/// How several values may lie in one buffer.
#[derive(Clone, Debug)]
pub struct Areas {
    /// No kernel may read from a buffer that it writes to, be it elsewhere.
    pub apart: bool,
    /// Values begin at multiples of this.
    pub align: usize,
    /// Bytes that such a buffer may have.
    pub most: usize,
}

/// What floating-point numbers a command stored beside finite ones.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Found {
    pub nan: bool,
    pub inf: bool,
}

/// What compiling a recording gave: pipelines, grids, packed parameters. Kept with the cached plan.
pub type Compiled = Arc<dyn Any + Send + Sync>;

pub trait Backend: Send + Sync {
    /// `cpu`, or the adapter's name.
    fn name(&self) -> &str;
    fn caps(&self) -> &Caps;
    /// Memory with whatever contents. `bytes` may be 0.
    fn alloc(&self, bytes: usize) -> Result<Buffer, Fault>;
    /// Memory that is given back when the run is over, for whatever else is to be run: it may come in larger pieces.
    fn alloc_area(&self, bytes: usize) -> Result<Buffer, Fault> {
        self.alloc(bytes)
    }
    fn upload(&self, data: &[u8]) -> Result<Buffer, Fault>;
    /// Memory of zeros.
    fn zeros(&self, bytes: usize) -> Result<Buffer, Fault> {
        self.upload(&vec![0; bytes])
    }
    /// Waits for all work on this buffer, then reads. Faults of work done earlier come out here.
    fn download(&self, from: &Buffer, range: Range<usize>) -> Result<Vec<u8>, Fault>;
    /// The same without blocking.
    fn download_async(
        &self,
        from: &Buffer,
        range: Range<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, Fault>> + Send>>;
    /// Does everything that need be done once only. With `looks`, kernels look at each number they store.
    fn compile(&self, recording: &Recording, looks: bool) -> Result<Compiled, Fault>;
    /// Runs a recording: `buffers` by slot, `scalars` as the recording's commands count them. May return
    /// before the work is done. One call at a time is made for each device.
    ///
    /// If it was compiled to look, this waits for the work, and tells what each command stored; else it tells nothing.
    /// (Numbers that a kernel stores for its own use count, so that NaN may be told of where none is left.)
    fn run(
        &self,
        recording: &Recording,
        compiled: &Compiled,
        buffers: &[Buffer],
        scalars: &[Scalar],
    ) -> Result<Vec<Found>, Fault>;
    /// The interface and driver behind it, in words.
    fn driver(&self) -> String {
        self.name().to_string()
    }
    /// The dispatches that a kernel becomes here, where it becomes code.
    fn code(&self, _kernel: &Kernel) -> Result<Vec<Code>, Fault> {
        Ok(vec![])
    }
    /// Runs what [`code`](Backend::code) gave, here or on another machine: a buffer for each binding.
    fn run_code(
        &self,
        _code: &[Code],
        _bindings: &[Binding],
        _types: &[DType],
        _buffers: &[Buffer],
        _scalars: &[Scalar],
    ) -> Result<(), Fault> {
        let message = format!("{} runs no shaders", self.name());
        Err(Fault { kind: ErrorKind::Device, message, command: None })
    }
    /// Waits until all work given so far is done.
    fn synchronize(&self) -> Result<(), Fault>;
    /// The same without asking what that work met.
    fn wait(&self) -> Result<(), Fault> {
        self.synchronize()
    }
    /// Bytes in buffers that are held by someone, and in the pool.
    fn memory(&self) -> Memory;
    /// Gives pooled memory back to the system.
    fn empty_cache(&self);
    /// Switches the timing of every kernel on or off, and returns what was timed since the last call. While it
    /// is on, `run` waits for its work.
    fn profile(&self, _on: bool) -> Vec<report::Timing> {
        Vec::new()
    }
    /// Whether [`profile`](Backend::profile) has a time for every kernel.
    fn times_kernels(&self) -> bool {
        false
    }
    /// Bytes of memory the device has in all, where that can be known.
    fn total_memory(&self) -> Option<u64> {
        None
    }
    /// Whether kernels of this dtype run here.
    fn supports(&self, dtype: DType) -> bool {
        match dtype {
            DType::F16 => self.caps().f16,
            DType::F64 => self.caps().f64,
            _ => true,
        }
    }
}

/// Bytes of memory that this process can have of the host, where the system says so.
pub fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    // A container may have less.
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|limit| limit.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(total.min(group))
}

/// One dispatch as a shader.
#[derive(Clone, PartialEq, Debug)]
pub struct Code {
    pub text: String,
    pub entry: String,
    /// The uniform at binding 0.
    pub params: Vec<u8>,
    pub workgroups: [u32; 3],
    /// Whether it flags bad indices, in the binding after its buffers.
    pub status: bool,
}

/// Memory held on a device.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Memory {
    /// Buffers in use.
    pub live_buffers: usize,
    pub live_bytes: usize,
    /// Bytes kept for reuse.
    pub pooled_bytes: usize,
}
