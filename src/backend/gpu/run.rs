//! Runs a plan: one uniform upload, one encoder, one compute pass as long as no copy ends it, one submission.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use std::collections::HashMap;

use crate::backend::report::{self, Timing};
use crate::backend::{Backend, Buffer, Fault};
use crate::error::ErrorKind;
use crate::graph::dtype::Scalar;
use crate::graph::kernel::Slot;

use super::check::Words;
use super::device::{scoped, wait};
use super::pipeline::{Dispatch, Plan, Step};
use super::pool::Storage;
use super::{Gpu, exit};

/// How many submissions may be under way. Beyond it the oldest is waited for, so that a loop that never reads
/// does not pile up work without end.
const IN_FLIGHT: usize = 64;
const GROUPS: usize = 4096;
/// Dispatches that one query set can time.
const TIMED: usize = 2048;

/// What runs share.
#[derive(Default)]
pub struct Runner {
    uniforms: Option<wgpu::Buffer>,
    groups: HashMap<GroupKey, (wgpu::BindGroup, u64)>,
    clock: u64,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    words: Words,
    pub profiling: bool,
    pub timings: Vec<Timing>,
}

#[derive(PartialEq, Eq, Hash)]
struct GroupKey {
    layout: usize,
    params: u32,
    scalars: u32,
    looks: bool,
    buffers: SmallVec<[(u64, u64, u64); 8]>,
}

pub fn storage(buffer: &Buffer) -> Result<&Storage, Fault> {
    buffer.memory.downcast_ref::<Storage>().ok_or_else(|| Fault {
        kind: ErrorKind::Device,
        message: "a buffer of another device".into(),
        command: None,
    })
}

/// Part of a buffer that is bound by itself.
#[derive(Clone, Copy)]
struct Piece<'a> {
    store: &'a Storage,
    at: u64,
    bytes: u64,
}

fn piece(buffer: &Buffer) -> Result<Piece<'_>, Fault> {
    // Kernels read and write whole words of 16 bytes, for which places have room.
    let bytes = buffer.bytes.next_multiple_of(16).max(16) as u64;
    Ok(Piece { store: storage(buffer)?, at: buffer.at as u64, bytes })
}

pub fn raw(storage: &Storage) -> Result<&wgpu::Buffer, Fault> {
    let gone =
        || Fault { kind: ErrorKind::Backend, message: "a buffer that was given back".into(), command: None };
    storage.buffer().ok_or_else(gone)
}

/// Where a run that looks leaves its words, how far apart they are, and when they are there.
pub type Verdict = (wgpu::Buffer, usize, wgpu::SubmissionIndex);

impl Gpu {
    pub(super) fn run_plan(
        &self,
        plan: &Plan,
        buffers: &[Buffer],
        scalars: &[Scalar],
    ) -> Result<Option<Verdict>, Fault> {
        let mut runner = self.runner.lock();
        let start = Instant::now();
        let timing = (runner.profiling || report::level() >= 2) && self.times_kernels();
        let buffer = |slot: Slot| {
            piece(buffers.get(slot as usize).ok_or_else(|| Fault {
                kind: ErrorKind::Backend,
                message: format!("no buffer for slot {slot}"),
                command: None,
            })?)
        };
        self.write_uniforms(&mut runner, plan, scalars)?;

        // Bind groups first: a pass must not be left open by an early return.
        let mut groups = Vec::with_capacity(plan.steps.len());
        let mut flags = SmallVec::<[u32; 8]>::new();
        let stride = self.status.lock().stride;
        let words = match plan.looks {
            true => {
                let tell = |s: &&Step| matches!(s, Step::Dispatch(d) if d.pipeline.layout.key.status);
                let bytes = plan.steps.iter().filter(tell).count() as u64 * u64::from(stride);
                let (words, staging, new) = runner.words.of(self, bytes)?;
                if new {
                    runner.groups.clear();
                }
                Some((words, staging, bytes))
            }
            false => None,
        };
        let status = words.as_ref().map_or_else(|| self.status.lock().buffer.clone(), |w| w.0.clone());
        for step in &plan.steps {
            let Step::Dispatch(d) = step else { continue };
            groups.push(self.group(&mut runner, d, &buffer, &status, plan.looks)?);
            if d.pipeline.layout.key.status {
                flags.push(match words {
                    Some(_) => flags.len() as u32 * stride,
                    None => self.status.lock().word(&d.kernel),
                });
            }
        }
        let words = words.filter(|w| w.2 > 0);

        let mut timers = vec![];
        let encoded = scoped(&self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            if let Some((words, _, bytes)) = &words {
                encoder.clear_buffer(words, 0, Some(*bytes));
            }
            let (mut groups, mut flags) = (groups.iter(), flags.iter());
            let mut steps = plan.steps.iter().peekable();
            while let Some(step) = steps.peek() {
                if let Step::Copy { from, to, bytes } = **step {
                    let (from, to) = (buffer(from)?, buffer(to)?);
                    let bytes = bytes.next_multiple_of(4) as u64;
                    encoder.copy_buffer_to_buffer(raw(from.store)?, from.at, raw(to.store)?, to.at, bytes);
                    steps.next();
                    continue;
                }
                let mut pass = match timing {
                    true => self.timed_pass(&mut encoder, &mut timers),
                    false => encoder.begin_compute_pass(&Default::default()),
                };
                let mut last: Option<*const wgpu::ComputePipeline> = None;
                while let Some(Step::Dispatch(d)) = steps.next_if(|s| matches!(s, Step::Dispatch(_))) {
                    let pipeline = std::ptr::from_ref(&d.pipeline.raw);
                    if last != Some(pipeline) {
                        pass.set_pipeline(&d.pipeline.raw);
                        last = Some(pipeline);
                    }
                    let status = if d.pipeline.layout.key.status { flags.next().copied() } else { None };
                    let offsets: SmallVec<[u32; 3]> = [d.params.map(|p| p.0), d.scalars.map(|s| s.0), status]
                        .into_iter()
                        .flatten()
                        .collect();
                    pass.set_bind_group(0, groups.next(), &offsets);
                    let [x, y, z] = d.workgroups;
                    pass.dispatch_workgroups(x, y, z);
                    if timing {
                        break;
                    }
                }
            }
            if let Some((words, staging, bytes)) = &words {
                encoder.copy_buffer_to_buffer(words, 0, staging, 0, *bytes);
            }
            let read = timing.then(|| self.resolve(&mut encoder, &timers));
            Ok((encoder.finish(), read))
        });
        let (commands, read) = encoded??;
        let submission = scoped(&self.device, || self.queue.submit([commands]))?;
        let encode = start.elapsed();
        // After wgpu's first steps on this thread: what it keeps for the thread must be dropped later.
        exit::note(self);

        if let Some(read) = read {
            let times = self.read_times(&read, &timers)?;
            runner.timings.extend(self.timings(plan, buffers, &times));
            if !runner.profiling {
                let timings = std::mem::take(&mut runner.timings);
                self.report(plan, buffers, encode, &timings);
            }
        } else if report::level() >= 1 {
            self.report(plan, buffers, encode, &[]);
        }
        runner.in_flight.push_back(submission.clone());
        if runner.in_flight.len() > IN_FLIGHT
            && let Some(oldest) = runner.in_flight.pop_front()
        {
            wait(&self.device, Some(oldest))?;
        }
        Ok(words.map(|(_, staging, _)| (staging, stride as usize, submission)))
    }

    /// `write_buffer` lands after what was submitted before and before what is submitted next, so one buffer
    /// serves all runs.
    fn write_uniforms(&self, runner: &mut Runner, plan: &Plan, scalars: &[Scalar]) -> Result<(), Fault> {
        if plan.uniforms.is_empty() {
            return Ok(());
        }
        let size = plan.uniforms.len() as u64;
        let old = runner.uniforms.take().filter(|b| b.size() >= size);
        let target = match old {
            Some(buffer) => buffer,
            None => {
                runner.groups.clear();
                let descriptor = wgpu::BufferDescriptor {
                    label: Some("uniforms"),
                    size: size.next_power_of_two().max(64 << 10),
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                };
                scoped(&self.device, || self.device.create_buffer(&descriptor))?
            }
        };
        let mut bytes = plan.uniforms.clone();
        for block in &plan.scalars {
            for (i, &dtype) in block.types.iter().enumerate() {
                let value = scalars.get(block.first + i).map_or(0, |s| s.bits(dtype) as u32);
                bytes[block.at + 4 * i..][..4].copy_from_slice(&value.to_ne_bytes());
            }
        }
        self.queue.write_buffer(&target, 0, &bytes);
        runner.uniforms = Some(target);
        Ok(())
    }

    fn group<'a>(
        &self,
        runner: &mut Runner,
        d: &Dispatch,
        buffer: &impl Fn(Slot) -> Result<Piece<'a>, Fault>,
        status: &wgpu::Buffer,
        looks: bool,
    ) -> Result<wgpu::BindGroup, Fault> {
        let at = |fault: Fault| Fault { command: Some(d.command), ..fault };
        let stores =
            d.buffers.iter().map(|&s| buffer(s)).collect::<Result<SmallVec<[_; 8]>, _>>().map_err(at)?;
        let key = GroupKey {
            layout: d.pipeline.layout.id,
            params: d.params.map_or(0, |p| p.1),
            scalars: d.scalars.map_or(0, |s| s.1),
            looks,
            buffers: stores.iter().map(|p| (p.store.id(), p.at, p.bytes)).collect(),
        };
        runner.clock += 1;
        if let Some((group, used)) = runner.groups.get_mut(&key) {
            *used = runner.clock;
            return Ok(group.clone());
        }
        if runner.groups.len() >= GROUPS {
            let old = runner.clock.saturating_sub(GROUPS as u64 / 2);
            runner.groups.retain(|_, (_, used)| *used > old);
        }
        let mut entries = vec![];
        if let Some(uniforms) = &runner.uniforms {
            for (binding, block) in [(0, d.params), (1, d.scalars)] {
                if let Some((_, size)) = block {
                    let size = std::num::NonZeroU64::new(u64::from(size));
                    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: uniforms,
                        offset: 0,
                        size,
                    });
                    entries.push(wgpu::BindGroupEntry { binding, resource });
                }
            }
        }
        for (i, piece) in stores.iter().enumerate() {
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: raw(piece.store).map_err(at)?,
                offset: piece.at,
                size: std::num::NonZeroU64::new(piece.bytes),
            });
            entries.push(wgpu::BindGroupEntry { binding: 2 + i as u32, resource });
        }
        if d.pipeline.layout.key.status {
            let size = std::num::NonZeroU64::new(16);
            let resource =
                wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: status, offset: 0, size });
            entries.push(wgpu::BindGroupEntry { binding: 2 + stores.len() as u32, resource });
        }
        let descriptor =
            wgpu::BindGroupDescriptor { label: None, layout: &d.pipeline.layout.group, entries: &entries };
        let group = scoped(&self.device, || self.device.create_bind_group(&descriptor)).map_err(at)?;
        runner.groups.insert(key, (group.clone(), runner.clock));
        Ok(group)
    }

    /// A pass for one dispatch, between two timestamps.
    fn timed_pass<'e>(
        &self,
        encoder: &'e mut wgpu::CommandEncoder,
        timers: &mut Vec<(wgpu::QuerySet, u32)>,
    ) -> wgpu::ComputePass<'e> {
        if timers.last().is_none_or(|(_, used)| *used as usize >= 2 * TIMED) {
            let descriptor = wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2 * TIMED as u32,
            };
            timers.push((self.device.create_query_set(&descriptor), 0));
        }
        let writes = timers.last_mut().map(|(set, used)| {
            *used += 2;
            wgpu::ComputePassTimestampWrites {
                query_set: set,
                beginning_of_pass_write_index: Some(*used - 2),
                end_of_pass_write_index: Some(*used - 1),
            }
        });
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes })
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder, timers: &[(wgpu::QuerySet, u32)]) -> wgpu::Buffer {
        let size = (timers.len().max(1) * TIMED * 16) as u64;
        let make = |usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = make(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let read = make(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        for (i, (set, used)) in timers.iter().enumerate() {
            encoder.resolve_query_set(set, 0..*used, &resolved, (i * TIMED * 16) as u64);
        }
        encoder.copy_buffer_to_buffer(&resolved, 0, &read, 0, size);
        read
    }

    /// Of the dispatches in order: when they began, from the beginning of the first, and how long they took.
    fn read_times(
        &self,
        read: &wgpu::Buffer,
        timers: &[(wgpu::QuerySet, u32)],
    ) -> Result<Vec<(Duration, Duration)>, Fault> {
        let (send, receive) = std::sync::mpsc::channel();
        read.map_async(wgpu::MapMode::Read, .., move |result| drop(send.send(result)));
        wait(&self.device, None)?;
        let unread =
            || Fault { kind: ErrorKind::Backend, message: "timestamps cannot be read".into(), command: None };
        receive.recv().map_err(|_| unread())?.map_err(|_| unread())?;
        let view = read.get_mapped_range(..).map_err(|_| unread())?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
        let period = f64::from(self.queue.get_timestamp_period());
        let used = timers
            .iter()
            .enumerate()
            .flat_map(|(i, (_, used))| (0..*used as usize / 2).map(move |k| i * 2 * TIMED + 2 * k));
        let first = ticks.first().copied().unwrap_or(0);
        let time =
            |from: u64, to: u64| Duration::from_secs_f64(to.saturating_sub(from) as f64 * period * 1e-9);
        Ok(used.map(|i| (time(first, ticks[i]), time(ticks[i], ticks[i + 1]))).collect())
    }

    fn timings(&self, plan: &Plan, buffers: &[Buffer], times: &[(Duration, Duration)]) -> Vec<Timing> {
        let dispatches =
            plan.steps.iter().filter_map(|s| if let Step::Dispatch(d) = s { Some(d) } else { None });
        let bytes = |slot: &Slot| buffers.get(*slot as usize).map_or(0, |b| b.bytes as u64);
        dispatches
            .zip(times)
            .map(|(d, &(start, duration))| Timing {
                label: d.kernel.label.clone(),
                caller: d.kernel.caller,
                grid: d.workgroups,
                command: d.command,
                start,
                duration,
                bytes: d.buffers.iter().map(bytes).sum(),
                flops: d.flops,
            })
            .collect()
    }

    fn report(&self, plan: &Plan, buffers: &[Buffer], encode: Duration, timings: &[Timing]) {
        let dispatches = plan.steps.iter().filter(|s| matches!(s, Step::Dispatch(_))).count();
        let copies = plan.steps.len() - dispatches;
        let new = plan.new_pipelines.swap(0, Ordering::Relaxed);
        eprintln!("{}", report::run_line(&self.info.name, dispatches, copies, new, encode));
        let mut timings = timings.iter();
        for step in &plan.steps {
            let Step::Dispatch(d) = step else { continue };
            if let Some(timing) = timings.next() {
                eprintln!("{}", timing.line());
            }
            if report::level() >= 3 {
                for (slot, binding) in d.buffers.iter().zip(&d.kernel.bindings) {
                    let bytes = buffers.get(*slot as usize).map_or(0, |b| b.bytes);
                    let access = if binding.written { "read_write" } else { "read" };
                    eprintln!("      slot {slot}: {} {access}, {bytes} bytes", binding.dtype);
                }
                if let Some((at, size)) = d.params {
                    let words: Vec<u32> =
                        bytemuck::pod_collect_to_vec(&plan.uniforms[at as usize..][..size as usize]);
                    eprintln!("      params {words:?}");
                }
            }
        }
    }
}

/// The status words: kernels that meet a bad index set theirs.
pub struct Status {
    pub buffer: wgpu::Buffer,
    /// Bytes from word to word: each is bound by itself.
    stride: u32,
    /// What each word stands for.
    owners: Vec<(String, &'static std::panic::Location<'static>)>,
    /// Whether a flagged dispatch ran since the last look.
    pub raised: bool,
}

/// More places in user code than this share the last word.
const WORDS: usize = 256;

impl Status {
    pub fn new(device: &wgpu::Device) -> Status {
        let stride = device.limits().min_storage_buffer_offset_alignment.max(16);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("status"),
            size: u64::from(stride) * WORDS as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        Status { buffer: device.create_buffer(&descriptor), stride, owners: vec![], raised: false }
    }

    /// Offset of the word of a kernel's op and line.
    pub fn word(&mut self, kernel: &Arc<crate::graph::kernel::Kernel>) -> u32 {
        self.raised = true;
        let owner = (kernel.label.clone(), kernel.caller);
        let index = self.owners.iter().position(|o| *o == owner).unwrap_or_else(|| {
            if self.owners.len() < WORDS {
                self.owners.push(owner);
            }
            self.owners.len() - 1
        });
        index as u32 * self.stride
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.owners.len() as u64 * u64::from(self.stride)
    }

    /// What the words say.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Fault> {
        let words = bytes.chunks(self.stride as usize).zip(&self.owners);
        for (i, (word, (label, caller))) in words.enumerate() {
            if word[..4] != [0; 4] {
                let others = if i + 1 == WORDS { " (or in a later op)" } else { "" };
                let message = format!("an index is out of range in {label}, recorded at {caller}{others}");
                return Err(Fault { kind: ErrorKind::Index, message, command: None });
            }
        }
        Ok(())
    }
}
