//! Compiling ahead of a software driver. Lavapipe compiles a kernel when it is first dispatched, one after another on
//! its queue's thread, and keeps the code on disk. So the kernels of a new plan are dispatched on devices of their own
//! as well, over no workgroups, the plan's last kernel first, until one comes up that is on disk already: the queue
//! has got that far, or an earlier process did. Then those that the tuner wants to time, which need not wait for anything.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::backend::{Fault, report};
use crate::ops::dispatch::threads;

use super::codegen::Call;
use super::device::{request, scoped, wait};
use super::pipeline::{Layout, LayoutKey, build};

/// What takes less was found on disk: LLVM takes longer for the least of kernels.
const FOUND: Duration = Duration::from_millis(3);
/// Fewer kernels are compiled before a device is open.
const FEW: usize = 4;
/// What a process may spend on kernels that it might do without.
const LUXURY: Duration = Duration::from_secs(5);
/// At most so many threads, each with a device.
const THREADS: usize = 3;
/// Bytes of the buffers that stand in for a kernel's; nothing reads or writes them.
const STAND_IN: u64 = 16 << 10;

/// A kernel to be compiled.
pub struct Job {
    pub label: String,
    pub call: Call,
    pub layout: LayoutKey,
}

/// Of one adapter.
#[derive(Clone)]
pub struct Ahead {
    adapter: wgpu::Adapter,
    work: Arc<Work>,
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    gone: Condvar,
}

#[derive(Default)]
struct State {
    /// The next to compile is the last. If it is on disk, so are those before it.
    jobs: Vec<Job>,
    /// What one thread compiles when there is nothing else to do: what will be used, then luxuries.
    later: [VecDeque<Later>; 2],
    /// Names of what was to be compiled later, and whether it is.
    asked: HashMap<String, bool>,
    spent: Duration,
    /// Threads that will take more jobs, and those that are in the driver.
    taking: usize,
    inside: usize,
}

/// How far kernels are that nobody waits for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Progress {
    Compiled,
    Compiling,
    /// There was no time left for them.
    Never,
}

/// How kernels are wanted.
#[derive(Clone, Copy, PartialEq)]
pub enum Haste {
    /// The queue waits for it.
    Now,
    /// It will be used instead of another.
    Soon,
    /// It may turn out to be faster.
    Luxury,
}

enum Later {
    Compile(Job),
    /// What has this name is compiled.
    Ready(String),
}

impl Ahead {
    /// `None` where it is of no use: drivers of GPUs compile before they dispatch, and one that keeps nothing on disk
    /// would compile all twice. Nor where a process that exits does not wait (see `exit.rs`).
    pub fn new(adapter: &wgpu::Adapter) -> Option<Ahead> {
        let info = adapter.get_info();
        let lavapipe = info.backend == wgpu::Backend::Vulkan && info.driver == "llvmpipe";
        let keeps = std::env::var("MESA_SHADER_CACHE_DISABLE").map_or(true, |v| v == "0" || v == "false");
        let waits = cfg!(all(target_os = "linux", target_env = "gnu"));
        let useful = waits && lavapipe && keeps && threads() > 1;
        useful.then(|| Ahead { adapter: adapter.clone(), work: Arc::default() })
    }

    /// Compiles a plan's kernels, given in the order in which it runs them.
    pub fn compile(&self, jobs: impl ExactSizeIterator<Item = Job>) {
        if jobs.len() < FEW {
            return;
        }
        let mut state = self.work.state.lock();
        state.jobs.extend(jobs);
        let wanted = (state.jobs.len() / 2).min(THREADS).min(threads() - 1);
        self.start(&mut state, wanted);
    }

    /// Compiles what the queue does not wait for, once; luxuries as long as there is time for them.
    pub fn prepare(&self, name: &str, haste: Haste, jobs: impl FnOnce() -> Vec<Job>) -> Progress {
        let luxury = haste == Haste::Luxury;
        let mut state = self.work.state.lock();
        if !(state.asked.contains_key(name) || luxury && state.spent > LUXURY) {
            state.asked.insert(name.into(), false);
            let later = &mut state.later[usize::from(luxury)];
            later.extend(jobs().into_iter().map(Later::Compile));
            later.push_back(Later::Ready(name.into()));
            self.start(&mut state, 1);
        }
        match state.asked.get(name) {
            Some(true) => Progress::Compiled,
            Some(false) if !state.is_done() => Progress::Compiling,
            _ => Progress::Never,
        }
    }

    /// Whether all is compiled that was asked for.
    pub fn is_done(&self) -> bool {
        self.work.state.lock().is_done()
    }

    /// Has so many threads take jobs.
    fn start(&self, state: &mut State, wanted: usize) {
        while state.taking < wanted {
            let (adapter, work) = (self.adapter.clone(), self.work.clone());
            let builder = std::thread::Builder::new().name("wgrad compiling".into());
            if builder.spawn(move || work.run(&adapter)).is_err() {
                return;
            }
            state.taking += 1;
            state.inside += 1;
        }
    }

    /// Leaves what has not been begun, and waits for the rest.
    pub fn finish(&self) {
        let mut state = self.work.state.lock();
        state.jobs.clear();
        state.later = Default::default();
        // It may be only a thread that ends: others may ask again.
        state.asked.retain(|_, ready| *ready);
        // Not for ever: a driver that hangs here must not keep the program.
        let latest = Instant::now() + Duration::from_secs(5);
        while state.inside > 0 && !self.work.gone.wait_until(&mut state, latest).timed_out() {}
    }
}

/// wgpu panics where a device is lost.
fn tried<R>(f: impl FnOnce() -> Result<R, Fault>) -> Option<R> {
    catch_unwind(AssertUnwindSafe(f)).ok()?.ok()
}

impl Work {
    /// What goes wrong here concerns nobody: the queue compiles what it does not find.
    fn run(&self, adapter: &wgpu::Adapter) {
        let bench = tried(|| Bench::new(adapter));
        while let Some((job, haste)) = self.next() {
            let Some(took) = bench.as_ref().and_then(|bench| tried(|| bench.compile(&job))) else { continue };
            if report::level() >= 1 {
                eprintln!("wgrad {}: {} compiled ahead in {took:?}", adapter.get_info().name, job.label);
            }
            let mut state = self.state.lock();
            match haste {
                Haste::Now if took < FOUND => state.jobs.clear(),
                Haste::Luxury => state.spent += took,
                _ => (),
            }
        }
        drop(bench);
        self.state.lock().inside -= 1;
        self.gone.notify_all();
    }

    /// A job, and how it is wanted. Without one the thread ends.
    fn next(&self) -> Option<(Job, Haste)> {
        let mut state = self.state.lock();
        if let Some(job) = state.jobs.pop() {
            return Some((job, Haste::Now));
        }
        if state.spent > LUXURY {
            state.later[1].clear();
        }
        for (at, haste) in [Haste::Soon, Haste::Luxury].into_iter().enumerate() {
            while state.taking == 1
                && let Some(later) = state.later[at].pop_front()
            {
                match later {
                    Later::Compile(job) => return Some((job, haste)),
                    Later::Ready(name) => drop(state.asked.insert(name, true)),
                }
            }
        }
        state.taking -= 1;
        None
    }
}

impl State {
    fn is_done(&self) -> bool {
        self.later.iter().all(VecDeque::is_empty)
    }
}

/// A device, and what kernels are given to be dispatched.
struct Bench {
    device: wgpu::Device,
    queue: wgpu::Queue,
    uniforms: wgpu::Buffer,
    buffers: Vec<wgpu::Buffer>,
}

impl Bench {
    fn new(adapter: &wgpu::Adapter) -> Result<Bench, Fault> {
        let (device, queue) = request(adapter)?;
        device.on_uncaptured_error(Arc::new(|_| ()));
        let buffer = |usage| {
            let descriptor =
                wgpu::BufferDescriptor { label: None, size: STAND_IN, usage, mapped_at_creation: false };
            device.create_buffer(&descriptor)
        };
        let uniforms = buffer(wgpu::BufferUsages::UNIFORM);
        // One each: none may be read and written in one dispatch.
        let most = device.limits().max_storage_buffers_per_shader_stage.min(65);
        let buffers = (0..most).map(|_| buffer(wgpu::BufferUsages::STORAGE)).collect();
        Ok(Bench { device, queue, uniforms, buffers })
    }

    /// Has the driver compile a kernel. Returns how long it took.
    fn compile(&self, job: &Job) -> Result<Duration, Fault> {
        let layout = Arc::new(Layout::new(&self.device, &job.layout, 0)?);
        let pipeline = build(&self.device, None, &job.label, &job.call, layout)?;
        let entries: Vec<wgpu::BindGroupEntry> = (job.layout.bindings())
            .map(|(binding, kind)| {
                let buffer = match kind {
                    wgpu::BufferBindingType::Uniform => &self.uniforms,
                    wgpu::BufferBindingType::Storage { .. } => &self.buffers[binding as usize - 2],
                };
                // With dynamic offsets some of it must lie behind what is bound.
                let size = NonZeroU64::new(STAND_IN);
                let piece = wgpu::BufferBinding { buffer, offset: 0, size };
                wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(piece) }
            })
            .collect();
        let commands = scoped(&self.device, || {
            let layout = &pipeline.layout.group;
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            let group = self.device.create_bind_group(&descriptor);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, &group, &vec![0; job.layout.offsets()]);
            pass.dispatch_workgroups(0, 1, 1);
            drop(pass);
            encoder.finish()
        })?;
        let begun = Instant::now();
        scoped(&self.device, || self.queue.submit([commands]))?;
        wait(&self.device, None)?;
        Ok(begun.elapsed())
    }
}
