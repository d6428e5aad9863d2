//! The CPU backend: runs the same `Recording` as the GPU, on host memory, before `run` returns.
//!
//! `plan` makes a program ready, `eval` interprets it in blocks that stay in L1, with the loops of `block`
//! and `math`, which are compiled for several vector widths (`simd`). `reduce` folds; matrix products are
//! in `gemm`.

pub mod block;
mod elementwise;
mod eval;
pub mod gemm;
mod gemv;
pub mod math;
mod memory;
pub mod number;
mod parallel;
pub mod philox;
mod plan;
mod reduce;
mod seen;
pub mod simd;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use self::elementwise::{Elementwise, computed, stretch_of};
use self::eval::{Eval, Operands, with_scratch};
use self::memory::{Block, Pool};
use self::parallel::{WORTH_A_THREAD, enter, share, tasks};
use self::plan::Plan;
use self::reduce::ReducePlan;
use self::seen::Seen;
use super::report::{self, Timing};
use super::{Areas, Backend, Buffer, Caps, Compiled, Fault, Found, Memory};
use crate::error::ErrorKind;
use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Body, Command, Kernel, Recording, Structured, Sums};
use crate::graph::layout::{Layout, numel};
use crate::graph::program::{Access, Inst, Reg, Store};

/// A device of its own memory pool.
pub fn device() -> Arc<dyn Backend> {
    Arc::new(Cpu { caps: CAPS, pool: Arc::default(), running: Mutex::new(()), profile: Mutex::new(None) })
}

const CAPS: Caps = Caps {
    max_bindings: u16::MAX as usize,
    max_binding_bytes: isize::MAX as usize,
    f16: true,
    f64: true,
    areas: Areas { apart: false, align: 64, most: 1 << 40 },
    // A reduction is cut in parts where it is computed.
    split_reduction: |_, _, _| 1,
    prologues: None,
    split_product: |_| 1,
};

/// Bytes of halves that one thread widens at a time.
const PIECE: usize = 64 << 10;

/// Bytes of an op's output that are made before its epilogue takes them, where they can be made piece by piece.
const CACHED: usize = 64 << 10;

/// Operations in an op that brings in threads itself from which it is moved to one all the same.
const WORTH_MOVING: usize = 64 << 20;

struct Cpu {
    caps: Caps,
    pool: Arc<Pool>,
    /// Held by whoever reads or writes buffers' contents.
    running: Mutex<()>,
    /// What was timed, while someone wants to know.
    profile: Mutex<Option<Vec<Timing>>>,
}

/// One for each command.
struct Ready {
    commands: Vec<Option<Prepared>>,
    parallel: bool,
    /// Look at what is stored.
    looks: bool,
}

struct Prepared {
    work: Task,
    /// Bytes that each binding must have.
    needs: Vec<usize>,
    scalars: usize,
    price: usize,
}

enum Task {
    Map(Elementwise),
    Reduce(Box<ReducePlan>),
    /// The inputs that are computed first, with their sizes in bytes, each into a binding behind the kernel's own. What
    /// comes after an op, if anything does, and the binding and bytes where the op's result lies, if it is stored as
    /// it is.
    Structured {
        pre: Vec<(Elementwise, usize)>,
        post: Option<Box<Plan>>,
        stored: Option<(usize, Range<usize>)>,
        /// Behind the op's sums.
        sums: Option<Box<Plan>>,
    },
}

impl Prepared {
    /// Whether an op writes its result itself.
    fn plain(&self) -> bool {
        matches!(&self.work, Task::Structured { pre, post: None, .. } if pre.is_empty())
    }
}

fn fault(kind: ErrorKind, message: impl Into<String>) -> Fault {
    Fault { kind, message: message.into(), command: None }
}

fn refused(bytes: usize) -> Fault {
    fault(ErrorKind::OutOfMemory, format!("the system has no {bytes} bytes left"))
}

/// An input of halves as singles, so many bytes.
type Widened = (Block, usize);

/// Where a buffer lies.
#[derive(Clone, Copy)]
struct Piece<'a> {
    block: &'a Block,
    at: usize,
    bytes: usize,
}

impl Piece<'_> {
    /// Valid for `bytes`, and initialised.
    fn start(&self) -> *mut u8 {
        // SAFETY: `memory_of` checked that the piece lies in the block.
        unsafe { self.block.start().add(self.at) }
    }
}

fn memory_of(buffer: &Buffer) -> Result<Piece<'_>, Fault> {
    let Buffer { bytes, at, ref memory } = *buffer;
    let block: &Block =
        memory.downcast_ref().ok_or_else(|| fault(ErrorKind::Device, "a buffer of another device"))?;
    if at.checked_add(bytes).is_none_or(|end| end > block.bytes()) {
        let message = format!("{bytes} bytes at {at} of a buffer of {}", block.bytes());
        return Err(fault(ErrorKind::Backend, message));
    }
    Ok(Piece { block, at, bytes })
}

impl Cpu {
    fn take(&self, bytes: usize) -> Result<Block, Fault> {
        self.pool.take(bytes).ok_or_else(|| refused(bytes))
    }

    /// Memory for no longer than a run.
    fn area(&self, bytes: usize) -> Result<Block, Fault> {
        self.pool.take_area(bytes).ok_or_else(|| refused(bytes))
    }

    fn execute(
        &self,
        recording: &Recording,
        ready: &Ready,
        blocks: &[Piece],
        scalars: &[Scalar],
    ) -> Result<Vec<Found>, Fault> {
        let (seen, mut found) = (Seen::default(), vec![]);
        let timed = report::level() >= 2 || self.profile.lock().is_some();
        let mut timings = timed.then(Vec::new);
        let first = Instant::now();
        for (number, command) in recording.commands.iter().enumerate() {
            let at = |fault: Fault| Fault { command: Some(number), ..fault };
            let began = Instant::now();
            let done = match command {
                Command::Copy { from, to, bytes } => copy(blocks, *from as usize, *to as usize, *bytes),
                Command::Dispatch { kernel, buffers, scalars: first } => match ready.commands.get(number) {
                    Some(Some(prepared)) => {
                        let scalars = scalars.get(*first..).unwrap_or(&[]);
                        self.dispatch(
                            kernel,
                            prepared,
                            buffers,
                            blocks,
                            scalars,
                            ready.looks.then_some(&seen),
                        )
                    }
                    _ => Err(fault(ErrorKind::Backend, "the recording was not the one compiled")),
                },
            };
            done.map_err(at)?;
            if ready.looks {
                found.push(seen.take());
            }
            if let Some(timings) = &mut timings
                && let Command::Dispatch { kernel, buffers, .. } = command
            {
                let times = (began - first, began.elapsed());
                timings.push(timing(kernel, number, buffers, blocks, times));
            }
        }
        if report::level() > 0 {
            let all = recording.commands.len();
            let dispatches =
                recording.commands.iter().filter(|c| matches!(c, Command::Dispatch { .. })).count();
            eprintln!("{}", report::run_line("cpu", dispatches, all - dispatches, 0, Duration::ZERO));
            timings.iter().flatten().for_each(|t| eprintln!("{}", t.line()));
        }
        if let (Some(kept), Some(timings)) = (&mut *self.profile.lock(), timings) {
            kept.extend(timings);
        }
        Ok(found)
    }

    /// Inputs of halves as singles.
    fn widened(&self, call: &Structured, inputs: &[&[u8]]) -> Result<SmallVec<[Option<Widened>; 8]>, Fault> {
        let widen = |(input, (dtype, _)): (&&[u8], &(DType, Layout))| {
            if *dtype != DType::F16 {
                return Ok(None);
            }
            let bytes = input.len() * 2;
            let block = self.area(bytes)?;
            // SAFETY: a fresh block of so many bytes.
            let out = unsafe { std::slice::from_raw_parts_mut(block.start(), bytes) };
            share(out, 2 * PIECE, |i, out| {
                let piece = &input[i * PIECE..][..out.len() / 2];
                block::cast(DType::F16, DType::F32)(out, &[piece]);
            });
            Ok(Some((block, bytes)))
        };
        inputs.iter().zip(&call.inputs).map(widen).collect()
    }

    /// The inputs of a structured op that no kernel before it has made.
    fn computed(
        &self,
        pre: &[(Elementwise, usize)],
        operands: &Operands,
    ) -> Result<SmallVec<[Block; 2]>, Fault> {
        let compute = |(elementwise, bytes): &(Elementwise, usize)| {
            let block = self.area(*bytes)?;
            let mut buffers: SmallVec<[*mut u8; 8]> = SmallVec::from_slice(operands.buffers);
            buffers.push(block.start());
            elementwise.run(&Operands { buffers: &buffers, scalars: operands.scalars, seen: None });
            Ok(block)
        };
        pre.iter().map(compute).collect()
    }

    fn dispatch(
        &self,
        kernel: &Kernel,
        prepared: &Prepared,
        slots: &[u32],
        blocks: &[Piece],
        scalars: &[Scalar],
        seen: Option<&Seen>,
    ) -> Result<(), Fault> {
        if slots.len() != prepared.needs.len() || scalars.len() < prepared.scalars {
            return Err(fault(ErrorKind::Backend, "a dispatch with other operands than its kernel's"));
        }
        let mut buffers: SmallVec<[*mut u8; 8]> = SmallVec::new();
        let mut lengths: SmallVec<[usize; 8]> = SmallVec::new();
        for (&slot, &need) in slots.iter().zip(&prepared.needs) {
            match blocks.get(slot as usize) {
                Some(block) if block.bytes >= need => {
                    buffers.push(block.start());
                    lengths.push(block.bytes);
                }
                _ => {
                    return Err(fault(
                        ErrorKind::Backend,
                        format!("slot {slot} is missing or has under {need} bytes"),
                    ));
                }
            }
        }
        let operands = Operands { buffers: &buffers, scalars, seen };
        match (&prepared.work, &kernel.body) {
            (Task::Map(elementwise), _) => elementwise.run(&operands),
            (Task::Reduce(plan), _) => plan.run(&operands),
            (Task::Structured { pre, post, stored, sums }, Body::Structured(call)) => {
                let computed = self.computed(pre, &operands)?;
                // SAFETY: no slot is bound twice and the plan has slots in use lie apart, so that `out` (a binding that
                // is no input) is apart from them.
                // A reused buffer may be longer than its value by part of an element.
                let inputs: SmallVec<[&[u8]; 8]> = (call.inputs.iter().enumerate())
                    .map(|(i, (dtype, _))| {
                        let Some(i) = call.binding(i) else {
                            let at = call.pre.iter().position(|pre| pre.input == i).unwrap_or(0);
                            return out_of(&computed[at], pre[at].1);
                        };
                        let whole = lengths[i] / dtype.size() * dtype.size();
                        unsafe { std::slice::from_raw_parts(buffers[i].cast_const(), whole) }
                    })
                    .collect();
                let widened = self.widened(call, &inputs)?;
                let inputs: SmallVec<[&[u8]; 8]> = (inputs.iter().zip(&widened))
                    .map(|(&input, wide)| wide.as_ref().map_or(input, |(block, bytes)| out_of(block, *bytes)))
                    .collect();
                if let (Some(post), Some(Sums { input, rows, .. })) = (sums, call.sums.as_deref()) {
                    let sums = rows.sums(bytemuck::cast_slice(inputs[*input]));
                    let mut eval = Eval::new(post, &operands);
                    eval.set_anchor(bytemuck::cast_slice(&sums), 0);
                    eval.each(0..post.numel, |_, _, _| {});
                }
                let bytes = numel(&call.out_shape) * call.out_dtype.size();
                let failed = |message| fault(ErrorKind::Index, format!("{} {message}", call.op.0.name()));
                let piece = call.op.0.piece(call);
                let apart = call.post.stores.iter().all(|s| usize::from(s.to.binding) >= call.bound_inputs());
                if let (None, Some(post), true) = (stored, post, piece > 0 && apart) {
                    let size = call.out_dtype.size();
                    let chunk = (CACHED / size / piece).max(1) * piece;
                    tasks(post.numel.div_ceil(chunk), |i| {
                        let range = i * chunk..((i + 1) * chunk).min(post.numel);
                        with_scratch(range.len() * size, |out| {
                            call.op.0.cpu_pieces(call, &inputs, range.start, out);
                            let mut eval = Eval::new(post, &operands);
                            eval.set_anchor(out, range.start);
                            eval.each(range, |_, _, _| {});
                        });
                    });
                    return Ok(());
                }
                let (out, _scratch) = match stored {
                    // SAFETY: `needs` says that the buffer is long enough.
                    Some((binding, range)) => (unsafe { buffers[*binding].add(range.start) }, None),
                    None => {
                        let scratch = self.area(bytes)?;
                        (scratch.start(), Some(scratch))
                    }
                };
                // SAFETY: so many bytes are there, and nobody else's.
                let out = unsafe { std::slice::from_raw_parts_mut(out, bytes) };
                call.op.0.cpu(call, &inputs, out).map_err(failed)?;
                if let (Some(seen), Some(_), true) = (seen, stored, call.out_dtype.is_float()) {
                    seen.look_at_all(out, call.out_dtype.size());
                }
                let Some(post) = post else { return Ok(()) };
                let (out, chunk) = (&*out, stretch_of(post));
                tasks(post.numel.div_ceil(chunk), |i| {
                    let mut eval = Eval::new(post, &operands);
                    eval.set_anchor(out, 0);
                    eval.each(i * chunk..((i + 1) * chunk).min(post.numel), |_, _, _| {});
                });
            }
            _ => return Err(fault(ErrorKind::Backend, "the recording was not the one compiled")),
        }
        Ok(())
    }
}

fn out_of(scratch: &Block, bytes: usize) -> &[u8] {
    // SAFETY: the block has so many bytes, and nobody writes them any more.
    unsafe { std::slice::from_raw_parts(scratch.start().cast_const(), bytes) }
}

fn copy(blocks: &[Piece], from: usize, to: usize, bytes: usize) -> Result<(), Fault> {
    match (blocks.get(from), blocks.get(to)) {
        (Some(from), Some(to)) if from.bytes >= bytes && to.bytes >= bytes => {
            // SAFETY: both have so many bytes, and the device's lock is held.
            unsafe { std::ptr::copy(from.start(), to.start(), bytes) };
            Ok(())
        }
        _ => Err(fault(ErrorKind::Backend, format!("a copy of {bytes} bytes between too short buffers"))),
    }
}

fn prepare(kernel: &Kernel) -> Result<Prepared, String> {
    let mut needs = vec![0; kernel.bindings.len()];
    let (work, price) = match &kernel.body {
        Body::Map(programs) => {
            for program in programs {
                plan::check(program, kernel, None)?;
            }
            let elementwise = Elementwise::new(programs)?;
            elementwise.plans.iter().for_each(|plan| plan.needs(&mut needs));
            let price = elementwise.price();
            (Task::Map(elementwise), price)
        }
        Body::Reduce(reduce) => {
            plan::check(&reduce.pre, kernel, None)?;
            plan::check(&reduce.post, kernel, Some(reduce.dtype))?;
            let plan = ReducePlan::new(reduce)?;
            plan.needs(&mut needs);
            let price = plan.price();
            (Task::Reduce(Box::new(plan)), price)
        }
        Body::Structured(call) => {
            plan::check(&call.post, kernel, Some(call.out_dtype))?;
            let all = Plan::new(&call.post, call.post.shape.len(), None)?;
            all.needs(&mut needs);
            if call.bound_inputs() > needs.len() || all.numel != numel(&call.out_shape) {
                return Err("a structured op whose output or inputs do not fit its kernel".into());
            }
            for (i, (dtype, layout)) in call.inputs.iter().enumerate() {
                if let Some(binding) = call.binding(i) {
                    needs[binding] = needs[binding].max(layout.end() * dtype.size());
                }
            }
            let pre = call.pre.iter().map(|pre| computed(pre, call, kernel, &mut needs));
            let pre = pre.collect::<Result<Vec<_>, String>>()?;
            let before: usize = pre.iter().map(|(elementwise, _)| elementwise.price()).sum();
            let price = call.op.0.flops(call) as usize + all.numel * all.cost + before;
            let sums = call.sums.as_ref().map(|sums| summed(sums, call, kernel, &mut needs)).transpose()?;
            let (stored, post) = match stored_as_it_is(call) {
                None => (None, Some(Box::new(all))),
                Some(at) => {
                    let mut rest = call.post.clone();
                    let Access { binding, layout, dtype } = rest.stores.remove(at).to;
                    let start = layout.offset * dtype.size();
                    let place = (usize::from(binding), start..start + all.numel * dtype.size());
                    let post = (!rest.stores.is_empty()).then(|| Plan::new(&rest, rest.shape.len(), None));
                    (Some(place), post.transpose()?.map(Box::new))
                }
            };
            (Task::Structured { pre, post, stored, sums }, price)
        }
    };
    Ok(Prepared { work, needs, scalars: kernel.scalars.len(), price })
}

/// What comes behind an op's sums, of an input that has the elements which these need.
fn summed(sums: &Sums, call: &Structured, kernel: &Kernel, needs: &mut [usize]) -> Result<Box<Plan>, String> {
    let Sums { input, rows, post } = sums;
    plan::check(post, kernel, Some(DType::F32))?;
    let plan = Plan::new(post, post.shape.len(), None)?;
    plan.needs(needs);
    let fits = call.inputs.get(*input).is_some_and(|(dtype, layout)| {
        *dtype == DType::F32 && call.binding(*input).is_some() && rows.layout.end() <= layout.end()
    });
    if !fits || rows.layout.rank() == 0 || plan.numel != rows.parts() * rows.layout.shape[0] {
        return Err("sums that do not fit their op".into());
    }
    Ok(Box::new(plan))
}

/// The store that keeps an op's own result, in order, in a place that nothing after it reads or writes.
fn stored_as_it_is(call: &Structured) -> Option<usize> {
    let post = &call.post;
    let anchor =
        |value: Reg| matches!(post.insts[usize::from(value)], Inst::Anchor(t) if t == call.out_dtype);
    post.stores.iter().position(|Store { value, to }| {
        let uses = |a: &Access| a.binding == to.binding;
        let alone = !post.loads.iter().any(uses) && post.stores.iter().filter(|s| uses(&s.to)).count() == 1;
        let apart = usize::from(to.binding) >= call.bound_inputs();
        anchor(*value) && to.dtype == call.out_dtype && to.layout.is_contiguous() && alone && apart
    })
}

fn timing(
    kernel: &Kernel,
    command: usize,
    slots: &[u32],
    blocks: &[Piece],
    (start, duration): (Duration, Duration),
) -> Timing {
    let flops = match &kernel.body {
        Body::Structured(call) => call.op.0.flops(call),
        _ => 0,
    };
    Timing {
        label: kernel.label.clone(),
        caller: kernel.caller,
        grid: [1; 3],
        command,
        start,
        duration,
        bytes: slots.iter().map(|&slot| blocks[slot as usize].bytes as u64).sum(),
        flops,
    }
}

impl Backend for Cpu {
    fn times_kernels(&self) -> bool {
        true
    }

    fn total_memory(&self) -> Option<u64> {
        super::host_memory()
    }

    fn profile(&self, on: bool) -> Vec<Timing> {
        std::mem::replace(&mut *self.profile.lock(), on.then(Vec::new)).unwrap_or_default()
    }

    fn name(&self) -> &str {
        "cpu"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer, Fault> {
        Ok(Buffer { bytes, at: 0, memory: Arc::new(self.take(bytes)?) })
    }

    fn alloc_area(&self, bytes: usize) -> Result<Buffer, Fault> {
        let block = self.area(bytes)?;
        Ok(Buffer { bytes, at: 0, memory: Arc::new(block) })
    }

    fn upload(&self, data: &[u8]) -> Result<Buffer, Fault> {
        let block = self.take(data.len())?;
        // SAFETY: a fresh block of that length.
        unsafe { block.start().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(Buffer { bytes: data.len(), at: 0, memory: Arc::new(block) })
    }

    fn download(&self, from: &Buffer, range: Range<usize>) -> Result<Vec<u8>, Fault> {
        let block = memory_of(from)?;
        if range.start > range.end || range.end > block.bytes {
            return Err(fault(ErrorKind::Backend, format!("read {range:?} of {} bytes", block.bytes)));
        }
        let _lock = self.running.lock();
        // SAFETY: inside the block, which is always initialised; the lock keeps writers away.
        Ok(unsafe { std::slice::from_raw_parts(block.start().add(range.start), range.len()) }.to_vec())
    }

    fn download_async(
        &self,
        from: &Buffer,
        range: Range<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, Fault>> + Send>> {
        Box::pin(std::future::ready(self.download(from, range)))
    }

    fn compile(&self, recording: &Recording, looks: bool) -> Result<Compiled, Fault> {
        let mut ready = Ready { commands: vec![], parallel: false, looks };
        for (number, command) in recording.commands.iter().enumerate() {
            ready.commands.push(match command {
                Command::Copy { .. } => None,
                Command::Dispatch { kernel, .. } => {
                    let refused =
                        |message| Fault { kind: ErrorKind::Backend, message, command: Some(number) };
                    let prepared = prepare(kernel).map_err(refused)?;
                    let shares = matches!(&kernel.body, Body::Structured(call) if call.op.0.brings_threads());
                    // Moving to a thread for one short product would cost as much as it does.
                    let moves = if shares && prepared.plain() { WORTH_MOVING } else { 2 * WORTH_A_THREAD };
                    ready.parallel |= prepared.price >= moves;
                    Some(prepared)
                }
            });
        }
        Ok(Arc::new(ready))
    }

    fn run(
        &self,
        recording: &Recording,
        compiled: &Compiled,
        buffers: &[Buffer],
        scalars: &[Scalar],
    ) -> Result<Vec<Found>, Fault> {
        let ready: &Ready =
            compiled.downcast_ref().ok_or_else(|| fault(ErrorKind::Backend, "a plan of another device"))?;
        let blocks = buffers.iter().map(memory_of).collect::<Result<SmallVec<[Piece; 16]>, _>>()?;
        let _lock = self.running.lock();
        if ready.parallel {
            enter(|| self.execute(recording, ready, &blocks, scalars))
        } else {
            self.execute(recording, ready, &blocks, scalars)
        }
    }

    fn synchronize(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn memory(&self) -> Memory {
        self.pool.memory()
    }

    fn empty_cache(&self) {
        self.pool.empty();
    }
}
