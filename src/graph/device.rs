//! Devices, and the executor behind each: it collects what is pending, finds or makes a plan, and runs it.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::anomaly;
use super::doubt;
use super::dtype::{DType, Scalar};
use super::kernel::{Command, Slot};
use super::layout::numel;
use super::node::{HASHER, Node, Operand, Recipe, State};
use super::observe;
use super::plan::{Plan, plan};
use super::preview;
use super::schedule::{Graph, GraphNode, Input, Leaf, Value};
use super::timeline;
use crate::backend::{Backend, Buffer, Fault, Memory};
use crate::error::{Error, ErrorKind, Result};

/// A place where tensors live and kernels run: the CPU, or a GPU adapter. Cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<Executor>);

struct Executor {
    backend: Arc<dyn Backend>,
    pending: Mutex<Pending>,
    engine: Mutex<Engine>,
    generator: Mutex<Generator>,
    /// Results of kernels that may have refused their data, until the device has been asked.
    doubtful: Mutex<Vec<Weak<Node>>>,
    settling: Mutex<()>,
}

/// What was recorded since the last full flush.
#[derive(Default)]
struct Pending {
    nodes: Vec<Weak<Node>>,
    bytes: usize,
}

#[derive(Default)]
struct Engine {
    epoch: u32,
    plans: HashMap<u64, Arc<Plan>, foldhash::fast::FixedState>,
    stats: Stats,
}

/// Seed and position of the device's random stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generator {
    pub seed: u64,
    /// Blocks of four words drawn so far.
    pub offset: u64,
}

/// What the executor has done so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    pub flushes: u64,
    pub dispatches: u64,
    /// Plans that had to be made; the other flushes found theirs.
    pub plans: u64,
}

/// Nodes that may wait before they are run by themselves. Enough for the step of a deep network, which should
/// be one plan.
const MAX_PENDING_NODES: usize = 8192;
/// Bytes that may wait, were each pending value stored.
const MAX_PENDING_BYTES: usize = 2 << 30;
/// Plans kept. A program that makes more structures than this (a length that changes with every batch) starts over.
const MAX_PLANS: usize = 512;

impl Device {
    pub fn new(backend: Arc<dyn Backend>) -> Device {
        Device(Arc::new(Executor {
            backend,
            pending: Mutex::default(),
            engine: Mutex::default(),
            generator: Mutex::new(Generator { seed: 0, offset: 0 }),
            doubtful: Mutex::default(),
            settling: Mutex::new(()),
        }))
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    pub fn name(&self) -> &str {
        self.0.backend.name()
    }

    /// Whether this is the CPU backend.
    pub fn is_cpu(&self) -> bool {
        self.name() == "cpu"
    }

    /// What tensors print as their device.
    pub fn label(&self) -> &'static str {
        if self.is_cpu() { "cpu" } else { "gpu:0" }
    }

    pub(crate) fn upload(
        &self,
        bytes: &[u8],
        caller: &'static Location<'static>,
        op: &'static str,
    ) -> Result<Buffer> {
        self.0.backend.upload(bytes).map_err(|fault| fault_error(fault, caller, op))
    }

    /// A value of zeros that is memory from the start, and so no part of what its consumers are compiled to.
    pub(crate) fn zeros(
        &self,
        dtype: DType,
        shape: &[usize],
        caller: &'static Location<'static>,
    ) -> Arc<Node> {
        match self.0.backend.zeros(numel(shape) * dtype.size()) {
            Ok(buffer) => Node::ready(self, dtype, shape, buffer, caller),
            Err(fault) => Node::failed(self, dtype, fault_error(fault, caller, "zeros")),
        }
    }

    pub fn memory(&self) -> Memory {
        self.0.backend.memory()
    }

    pub fn stats(&self) -> Stats {
        self.0.engine.lock().stats
    }

    /// Seeds the device's random stream and starts it anew (`torch.manual_seed`).
    pub fn manual_seed(&self, seed: u64) {
        *self.0.generator.lock() = Generator { seed, offset: 0 };
    }

    pub fn generator(&self) -> Generator {
        *self.0.generator.lock()
    }

    pub fn set_generator(&self, generator: Generator) {
        *self.0.generator.lock() = generator;
    }

    /// Takes what `n` random words need from the stream, and says where they start.
    pub fn draw(&self, n: usize) -> Generator {
        super::draws::draw(self, n, || {
            let mut stream = self.0.generator.lock();
            let start = *stream;
            stream.offset = stream.offset.wrapping_add(n.div_ceil(4) as u64);
            start
        })
    }

    pub(super) fn note_pending(&self, node: &Arc<Node>) {
        let held = preview::held(self);
        let mut pending = self.0.pending.lock();
        pending.nodes.push(Arc::downgrade(node));
        pending.bytes += node.bytes();
        if held {
            return;
        }
        if pending.nodes.len() < MAX_PENDING_NODES && pending.bytes < MAX_PENDING_BYTES {
            return;
        }
        // Much of it may be gone already.
        pending.nodes.retain(|n| n.strong_count() > 0);
        pending.bytes = pending.nodes.iter().filter_map(Weak::upgrade).map(|n| n.bytes()).sum();
        let full = pending.nodes.len() >= MAX_PENDING_NODES / 2 || pending.bytes >= MAX_PENDING_BYTES / 2;
        drop(pending);
        if full {
            self.flush();
        }
    }

    /// Runs all that is pending and can still be read by someone. Does not wait for it. Errors stay with the
    /// values they made impossible.
    pub fn flush(&self) {
        if preview::held(self) {
            return;
        }
        let mut engine = self.0.engine.lock();
        let pending = std::mem::take(&mut *self.0.pending.lock());
        let roots = pending.nodes.iter().filter_map(Weak::upgrade).collect();
        drop(pending);
        self.run(&mut engine, roots);
    }

    /// Runs what `node` needs, and gives its buffer.
    pub fn force(&self, node: &Arc<Node>) -> Result<Buffer> {
        if let Some(buffer) = node.buffer() {
            return Ok(buffer);
        }
        let mut engine = self.0.engine.lock();
        self.run(&mut engine, vec![node.clone()]);
        match &*node.state.lock() {
            State::Ready(buffer) => Ok(buffer.clone()),
            State::Failed(error) => Err(error.clone()),
            State::Pending(_) => {
                Err(Error::at(node.caller, ErrorKind::Backend, "", "the value was not computed"))
            }
        }
    }

    /// Runs what is pending and waits until the device has nothing left to do.
    pub fn synchronize(&self) -> Result<()> {
        self.flush();
        let done = self.settling(|| self.0.backend.synchronize());
        done.map_err(|fault| fault_error(fault, Location::caller(), "synchronize"))
    }

    pub(super) fn doubtful(&self) -> MutexGuard<'_, Vec<Weak<Node>>> {
        self.0.doubtful.lock()
    }

    pub(super) fn settling_lock(&self) -> MutexGuard<'_, ()> {
        self.0.settling.lock()
    }

    /// Gives memory that is kept for reuse back to the system.
    pub fn empty_cache(&self) {
        self.0.backend.empty_cache();
    }

    /// What running `roots`, or else all that is pending, would do now. Nothing is run and nothing kept; only what
    /// must fail for its inputs' errors does. `None` if nothing is left to run.
    pub(super) fn preview(&self, roots: Option<Vec<Arc<Node>>>) -> Option<preview::Preview> {
        let mut engine = self.0.engine.lock();
        let pending = || self.0.pending.lock().nodes.iter().filter_map(Weak::upgrade).collect();
        let roots = roots.unwrap_or_else(pending);
        engine.epoch = engine.epoch.wrapping_add(1).max(1);
        let mut flush = Collection::new(engine.epoch);
        flush.collect(roots);
        let key = flush.index();
        if flush.nodes.is_empty() {
            return None;
        }
        let known = engine.plans.get(&key).cloned();
        let plan = known.unwrap_or_else(|| Arc::new(plan(&flush.graph(), self.0.backend.caps())));
        let leaves = flush.leaves.iter().map(|leaf| leaf.bytes()).collect();
        Some(preview::Preview { plan, leaves, memory: self.memory() })
    }

    /// Runs `f` with a second executor on the same backend, while this one stands still and has nothing under way.
    pub(crate) fn aside<R>(&self, f: impl FnOnce(&Device) -> R) -> Result<R> {
        let _engine = self.0.engine.lock();
        // What earlier work did wrong is told to the values that it concerns.
        self.settling(|| self.0.backend.synchronize())
            .map_err(|fault| fault_error(fault, Location::caller(), "synchronize"))?;
        Ok(f(&Device::new(self.0.backend.clone())))
    }

    fn run(&self, engine: &mut Engine, roots: Vec<Arc<Node>>) {
        let mut whole = timeline::work("flush");
        let span = timeline::work("collect");
        engine.epoch = engine.epoch.wrapping_add(1).max(1);
        let mut flush = Collection::new(engine.epoch);
        flush.collect(roots);
        let watch = flush.watch;
        if flush.nodes.is_empty() {
            span.forget();
            return whole.forget();
        }
        engine.stats.flushes += 1;
        let key = flush.index();
        drop(span);
        if flush.nodes.is_empty() {
            return;
        }
        let plan = match engine.plans.get(&key) {
            Some(plan) => plan.clone(),
            None => {
                let span = timeline::work("schedule and plan");
                let mut plan = plan(&flush.graph(), self.0.backend.caps());
                drop(span);
                let _span = timeline::work("compile");
                match self.0.backend.compile(&plan.recording, watch.is_some()) {
                    Ok(compiled) => plan.compiled = Some(compiled),
                    Err(fault) => return flush.fail(&plan, fault),
                }
                let plan = Arc::new(plan);
                engine.stats.plans += 1;
                if engine.plans.len() >= MAX_PLANS {
                    engine.plans.clear();
                }
                engine.plans.insert(key, plan.clone());
                plan
            }
        };
        engine.stats.dispatches += plan.recording.commands.len() as u64;
        whole
            .args(timeline::Args::Flush { nodes: flush.nodes.len(), kernels: plan.recording.commands.len() });
        let span = timeline::work("allocate");
        let buffers = match plan.allocate(std::mem::take(&mut flush.buffers), &*self.0.backend) {
            Ok(buffers) => buffers,
            Err(fault) => return flush.fail(&plan, fault),
        };
        drop(span);
        let scalars: Vec<Scalar> = plan.scalars.iter().map(|&i| flush.scalars[i]).collect();
        let span = timeline::work("submit");
        let backend = &*self.0.backend;
        let mut spoilt = vec![];
        let ran = match &plan.compiled {
            _ if observe::active() => observe::run(&observe::Flush {
                backend,
                recording: &plan.with_lines(|i| flush.nodes[i].caller),
                buffers: &buffers,
                scalars: &scalars,
                leaves: plan.leaves,
            }),
            Some(compiled) if timeline::on() && watch.is_none() => {
                timeline::run(self, &plan.recording, compiled, &buffers, &scalars)
            }
            Some(compiled) => backend.run(&plan.recording, compiled, &buffers, &scalars).map(|found| {
                let run = anomaly::Run {
                    device: self,
                    plan: &plan,
                    nodes: &flush.nodes,
                    leaves: &flush.leaves,
                    buffers: &buffers,
                    scalars: &scalars,
                    index: &|node| flush.marked(node),
                };
                spoilt = watch.map_or(vec![], |watch| anomaly::examine(&run, &found, watch));
            }),
            None => Ok(()),
        };
        drop(span);
        if let Err(fault) = ran {
            // The CPU runs commands one by one, and a run that looks is through: what the faulty one and later ones
            // do not write is there.
            if let (true, Some(at)) = (self.is_cpu() || watch.is_some(), fault.command) {
                let late: Vec<Slot> =
                    plan.recording.commands[at..].iter().flat_map(Command::writes).collect();
                for &(i, slot) in plan.outputs.iter().filter(|(_, slot)| !late.contains(slot)) {
                    flush.nodes[i].settle(State::Ready(buffers[slot as usize].clone()));
                }
            }
            return flush.fail(&plan, fault);
        }
        let doubt = if self.is_cpu() { None } else { doubt::slots(&plan, &flush.leaves, watch.is_some()) };
        for &(i, slot) in &plan.outputs {
            let node = &flush.nodes[i];
            if let Some(error) = spoilt.get_mut(i).and_then(Option::take) {
                node.settle(State::Failed(error));
                continue;
            }
            node.settle(State::Ready(buffers[slot as usize].clone()));
            if doubt.as_ref().is_some_and(|slots| slots[slot as usize]) {
                doubt::remember(&mut self.doubtful(), node);
            }
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(crate) fn fault_error(fault: Fault, caller: &'static Location<'static>, op: &'static str) -> Error {
    Error::at(caller, fault.kind, op, fault.message)
}

/// The pending nodes of one flush and what they read, in the order that the plan counts them.
struct Collection {
    epoch: u32,
    /// What its kernels look for in what they store. Then it may have to be run again, and so overwrites no leaf.
    watch: Option<anomaly::Watch>,
    nodes: Vec<Arc<Node>>,
    leaves: Vec<Arc<Node>>,
    buffers: Vec<Buffer>,
    scalars: Vec<Scalar>,
    /// How often the collected nodes themselves hold each node and leaf.
    node_refs: Vec<usize>,
    leaf_refs: Vec<usize>,
    keep: Vec<bool>,
    donated: Vec<bool>,
}

impl Collection {
    fn new(epoch: u32) -> Collection {
        Collection {
            epoch,
            watch: None,
            nodes: vec![],
            leaves: vec![],
            buffers: vec![],
            scalars: vec![],
            node_refs: vec![],
            leaf_refs: vec![],
            keep: vec![],
            donated: vec![],
        }
    }

    fn mark(&self, node: &Node, index: usize) {
        node.mark.store(u64::from(self.epoch) << 32 | index as u64, Ordering::Relaxed);
    }

    fn marked(&self, node: &Node) -> Option<usize> {
        let mark = node.mark.load(Ordering::Relaxed);
        (mark >> 32 == u64::from(self.epoch)).then_some((mark & 0xffff_ffff) as usize)
    }

    /// Finds every pending node that the roots need.
    fn collect(&mut self, mut stack: Vec<Arc<Node>>) {
        while let Some(node) = stack.pop() {
            if self.marked(&node).is_some() {
                continue;
            }
            let state = node.state.lock();
            let State::Pending(recipe) = &*state else { continue };
            self.mark(&node, 0);
            anomaly::Watch::join(&mut self.watch, recipe.note.as_deref());
            for input in &recipe.inputs {
                if let Operand::Node(input, _) = input
                    && self.marked(input).is_none()
                {
                    stack.push(input.clone());
                }
            }
            drop(state);
            self.nodes.push(node);
        }
        self.nodes.sort_unstable_by_key(|node| node.id);
    }

    /// Numbers nodes, leaves and scalars, and hashes the structure. Nodes with failed inputs fail and are left out.
    fn index(&mut self) -> u64 {
        let mut hasher = HASHER.build_hasher();
        hasher.write_u8(u8::from(self.watch.is_some()));
        let nodes = std::mem::take(&mut self.nodes);
        for node in nodes {
            let mut error = None;
            let state = node.state.lock();
            if let State::Pending(recipe) = &*state {
                error = recipe.inputs.iter().find_map(|input| match input {
                    Operand::Node(n, _) => n.error(),
                    _ => None,
                });
                if error.is_none() {
                    self.index_node(recipe, &mut hasher);
                }
            }
            drop(state);
            if let Some(error) = error {
                node.settle(State::Failed(error));
                continue;
            }
            self.mark(&node, self.nodes.len());
            self.nodes.push(node);
            self.node_refs.push(0);
        }
        // One reference is this collection's own.
        self.keep =
            (self.nodes.iter().zip(&self.node_refs)).map(|(n, &r)| Arc::strong_count(n) > r + 1).collect();
        for (leaf, &refs) in self.leaves.iter().zip(&self.leaf_refs) {
            let sole = self.watch.is_none() && Arc::strong_count(leaf) == refs + 1;
            let buffer = leaf.buffer();
            // One for the node, one for the clone just made.
            let donated = sole && buffer.as_ref().is_some_and(|b| Arc::strong_count(&b.memory) == 2);
            self.donated.push(donated);
            hasher.write_usize(leaf.bytes());
            hasher.write_u8(u8::from(donated));
            self.buffers.extend(buffer);
        }
        for &keep in &self.keep {
            hasher.write_u8(u8::from(keep));
        }
        hasher.finish()
    }

    fn index_node(&mut self, recipe: &Recipe, hasher: &mut impl Hasher) {
        hasher.write_u64(recipe.key);
        for input in &recipe.inputs {
            match input {
                Operand::Node(n, _) => match self.marked(n).filter(|_| n.buffer().is_none()) {
                    Some(i) => {
                        self.node_refs[i] += 1;
                        hasher.write_u32(i as u32);
                    }
                    None => {
                        let i = self.marked(n).unwrap_or_else(|| {
                            self.mark(n, self.leaves.len());
                            self.leaves.push(n.clone());
                            self.leaf_refs.push(0);
                            self.leaves.len() - 1
                        });
                        self.leaf_refs[i] += 1;
                        hasher.write_u32(i as u32 | 1 << 31);
                    }
                },
                Operand::Scalar(s) => self.scalars.push(*s),
                Operand::Index(_) => {}
            }
        }
    }

    /// The same as plain data, for the scheduler.
    fn graph(&self) -> Graph {
        let mut scalars = 0;
        let nodes = (self.nodes.iter().zip(&self.keep))
            .filter_map(|(node, &keep)| {
                let state = node.state.lock();
                let State::Pending(recipe) = &*state else { return None };
                let inputs: SmallVec<[Input; 3]> = (recipe.inputs.iter())
                    .map(|input| match input {
                        Operand::Node(n, layout) => {
                            let i = self.marked(n).unwrap_or(0);
                            let value = if n.buffer().is_some() { Value::Leaf(i) } else { Value::Node(i) };
                            Input::Value(value, layout.clone())
                        }
                        Operand::Index(layout) => Input::Index(layout.clone()),
                        Operand::Scalar(_) => {
                            scalars += 1;
                            Input::Scalar(scalars - 1)
                        }
                    })
                    .collect();
                Some(GraphNode {
                    op: recipe.op.clone(),
                    dtype: node.dtype,
                    shape: node.shape.clone(),
                    inputs,
                    keep,
                    caller: node.caller,
                })
            })
            .collect();
        let leaves = (self.leaves.iter().zip(&self.donated))
            .map(|(leaf, &donated)| Leaf { dtype: leaf.dtype, bytes: leaf.bytes(), donated })
            .collect();
        Graph { nodes, leaves, watched: self.watch.is_some() }
    }

    /// The device could not do it: everything that was to be computed carries the fault.
    fn fail(&self, plan: &Plan, fault: Fault) {
        let culprit = fault.command.and_then(|i| match plan.recording.commands.get(i) {
            Some(Command::Dispatch { kernel, .. }) => Some(kernel),
            _ => None,
        });
        let caller = culprit.map(|k| k.caller).or_else(|| self.nodes.last().map(|n| n.caller));
        let message = match culprit {
            Some(kernel) => format!("{}: {}", kernel.label, fault.message),
            None => fault.message,
        };
        let error = Error::at(caller.unwrap_or(Location::caller()), fault.kind, "", message);
        for (node, &keep) in self.nodes.iter().zip(&self.keep) {
            if keep && node.buffer().is_none() {
                node.settle(State::Failed(error.clone()));
            }
        }
    }
}

/// The CPU.
pub fn cpu() -> Device {
    static CPU: OnceLock<Device> = OnceLock::new();
    CPU.get_or_init(|| Device::new(crate::backend::cpu::device())).clone()
}

/// The types a device cannot hold.
pub(crate) fn check_dtype(
    device: &Device,
    dtype: DType,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<()> {
    if device.backend().supports(dtype) {
        return Ok(());
    }
    let why = if dtype == DType::F16 { "it lacks the feature shader-f16" } else { "WGSL has no such type" };
    let message = format!("{dtype} is not available on {device}: {why}. Use float32, or the cpu device");
    Err(Error::at(caller, ErrorKind::DType, op, message))
}
