//! The kernel at fault in a long run, found by halving.

use std::cell::RefCell;
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use super::diff::{Gap, KernelDiff, compare, copy, devices, gap_of, other, worse};
use crate::backend::{Backend, Buffer, Fault};
use crate::device::Device;
use crate::error::Result;
use crate::graph::device::fault_error;
use crate::graph::dtype::{DType, F32, Scalar};
use crate::graph::kernel::{Command, Kernel, Recording, Slot};
use crate::graph::observe::{Flush, contents, observe};
use crate::graph::program::Program;

/// What [`bisect`] found.
#[derive(Clone, Debug, Default)]
pub struct Bisection {
    /// How many flushes and kernels ran until the fault was found.
    pub flushes: usize,
    pub kernels: usize,
    /// How often a part of a flush was run to find it.
    pub runs: usize,
    /// The kernel at fault. If it agrees when it gets the same inputs, it is the one where small errors have grown beyond what
    /// rounding of one kernel explains, as [`KernelDiff::inherited`] says.
    pub culprit: Option<KernelDiff>,
}

impl fmt::Display for Bisection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.culprit {
            Some(kernel) => write!(f, "flush {}, found in {} runs: {kernel}", self.flushes, self.runs),
            None => write!(f, "{} flushes of {} kernels agree", self.flushes, self.kernels),
        }
    }
}

/// Runs `f` as [`diff`](super::diff()) does, but compares with the other backend only what each flush leaves behind. In the first
/// flush that differs, the kernel at fault is found by running half of it, a quarter, and so on. What comes after is not
/// looked at. For runs of many flushes, where looking at each kernel takes too long.
///
/// # Errors
/// If there is no other backend, or it failed.
///
/// ```
/// # use wgrad::prelude::*;
/// # if gpu().is_err() { return Ok(()) }
/// let x = randn([16, 16]).requires_grad_(true);
/// let (_, found) = wgrad::debug::bisect(|| {
///     for _ in 0..3 {
///         x.tanh().sum().backward().unwrap();
///         println!("{}", x.grad().unwrap()); // a flush
///     }
/// })?;
/// assert!(found.culprit.is_none(), "{found}");
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn bisect<R>(f: impl FnOnce() -> R) -> Result<(R, Bisection)> {
    let caller = Location::caller();
    let (pair, sink) = (devices()?, Rc::new(RefCell::new((Bisection::default(), None))));
    let (others, found) = (pair.clone(), sink.clone());
    let guard = observe(move |flush| {
        let (bisection, fault): &mut (Bisection, Option<Fault>) = &mut found.borrow_mut();
        let reference = other(&others, flush.backend);
        match reference.filter(|_| bisection.culprit.is_none() && fault.is_none()) {
            Some(reference) => checkpoint(flush, reference.backend(), bisection, fault),
            None => flush.whole(),
        }
    });
    let result = f();
    pair.iter().for_each(Device::flush);
    drop(guard);
    let (bisection, fault) = sink.take();
    match fault {
        Some(fault) => Err(fault_error(fault, caller, "bisect")),
        None => Ok((result, bisection)),
    }
}

/// Runs a flush, and looks at what it left.
fn checkpoint(
    flush: &Flush<'_>,
    reference: &dyn Backend,
    found: &mut Bisection,
    fault: &mut Option<Fault>,
) -> Result<(), Fault> {
    let leaves = contents(flush.backend, &flush.buffers[..flush.leaves])?;
    // What no kernel writes must be the same on both.
    let (given, own) = flush.buffers.split_at(flush.leaves);
    let of_leaf = |buffer: &Buffer| given.iter().any(|leaf| Arc::ptr_eq(&leaf.memory, &buffer.memory));
    for buffer in own.iter().filter(|b| !of_leaf(b)) {
        let zeros = flush.backend.zeros(buffer.bytes)?;
        copy(flush.backend, &[zeros, buffer.clone()], buffer.bytes)?;
    }
    flush.whole()?;
    found.flushes += 1;
    found.kernels += flush.recording.commands.len();
    let mut search = || -> Result<Option<KernelDiff>, Fault> {
        let halves = Halves { flush, reference, leaves: &leaves };
        let theirs = halves.prefix(reference, flush.recording.commands.len())?;
        let gap = halves.gap(flush.recording.commands.len(), flush.buffers, &theirs)?;
        if gap.is_some_and(|g| g.differs()) { halves.search(&mut found.runs).map(Some) } else { Ok(None) }
    };
    match search() {
        Ok(culprit) => found.culprit = culprit,
        Err(what) => *fault = Some(what),
    }
    Ok(())
}

struct Halves<'a> {
    flush: &'a Flush<'a>,
    reference: &'a dyn Backend,
    /// What the leaves held before the flush.
    leaves: &'a [Vec<u8>],
}

impl Halves<'_> {
    /// Buffers as they are after the first `n` commands.
    fn prefix(&self, backend: &dyn Backend, n: usize) -> Result<Vec<Buffer>, Fault> {
        let buffers = (self.flush.buffers.iter().enumerate())
            .map(|(i, b)| match self.leaves.get(i) {
                Some(bytes) => backend.upload(bytes),
                None => backend.zeros(b.bytes),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let part = Recording { commands: self.flush.recording.commands[..n].to_vec() };
        backend.run(&part, &backend.compile(&part, false)?, &buffers, self.flush.scalars)?;
        Ok(buffers)
    }

    /// The worst element of what the first `n` commands wrote.
    fn gap(&self, n: usize, device: &[Buffer], reference: &[Buffer]) -> Result<Option<Gap>, Fault> {
        let mut worst = None;
        for (slot, written) in self.written(n).into_iter().enumerate() {
            let Some((dtype, elements)) = written.filter(|_| !self.is_overwritten(slot, n, device)) else {
                continue;
            };
            let bytes = elements * dtype.size();
            let a = self.flush.backend.download(&device[slot], 0..bytes.min(device[slot].bytes))?;
            let b = self.reference.download(&reference[slot], 0..bytes.min(reference[slot].bytes))?;
            worst = worse(worst, gap_of(dtype, &a, &b, slot));
        }
        Ok(worst)
    }

    /// Whether of the first `n` commands a later one wrote to the same memory by another slot.
    fn is_overwritten(&self, slot: usize, n: usize, buffers: &[Buffer]) -> bool {
        let here = &buffers[slot];
        let meets = |other: &Buffer| {
            let apart = other.at + other.bytes <= here.at || here.at + here.bytes <= other.at;
            Arc::ptr_eq(&other.memory, &here.memory) && !apart
        };
        let later = (self.flush.recording.commands[..n].iter().rev())
            .map(Command::writes)
            .take_while(|written| !written.contains(&(slot as Slot)));
        later.flatten().any(|other| meets(&buffers[other as usize]))
    }

    /// By slot, what the first `n` commands left there.
    fn written(&self, n: usize) -> Vec<Option<(DType, usize)>> {
        let mut out: Vec<Option<(DType, usize)>> = vec![None; self.flush.buffers.len()];
        for command in &self.flush.recording.commands[..n] {
            match command {
                Command::Copy { from, to, bytes } => {
                    out[*to as usize] = out[*from as usize].or(Some((F32, bytes / 4)));
                }
                Command::Dispatch { kernel, buffers, .. } => {
                    for (i, &slot) in buffers.iter().enumerate().filter(|(i, _)| kernel.bindings[*i].written)
                    {
                        let (dtype, end) = (kernel.bindings[i].dtype, extent(kernel, i));
                        let slot = &mut out[slot as usize];
                        let old = slot.filter(|(t, _)| *t == dtype).map_or(0, |(_, end)| end);
                        *slot = Some((dtype, end.max(old)));
                    }
                }
            }
        }
        out
    }

    /// The kernel at fault: the last of the shortest beginning of the flush that differs.
    fn search(&self, runs: &mut usize) -> Result<KernelDiff, Fault> {
        let commands = &self.flush.recording.commands;
        let (mut agrees, mut differs) = (0, commands.len());
        let mut last = None;
        while agrees + 1 < differs {
            let middle = usize::midpoint(agrees, differs);
            let device = self.prefix(self.flush.backend, middle)?;
            let reference = self.prefix(self.reference, middle)?;
            *runs += 1;
            match self.gap(middle, &device, &reference)?.filter(Gap::differs) {
                Some(gap) => (differs, last) = (middle, Some(gap)),
                None => agrees = middle,
            }
        }
        if last.is_none() {
            let device = self.prefix(self.flush.backend, differs)?;
            last = self.gap(differs, &device, &self.prefix(self.reference, differs)?)?;
        }
        let mut culprit = None;
        // Should it agree by itself, an error came that no step showed: then each kernel before it is looked at.
        for at in std::iter::once(differs - 1).chain(0..differs - 1) {
            let Command::Dispatch { kernel, buffers, scalars } = &commands[at] else { continue };
            *runs += 1;
            let found = self.local(at, kernel, buffers, self.flush.scalars_of(kernel, *scalars))?;
            let differs = found.differs();
            if culprit.is_none() || differs {
                culprit = Some(found);
            }
            if differs {
                break;
            }
        }
        let nothing = || Fault {
            kind: crate::error::ErrorKind::Backend,
            message: "a flush without kernels differs".into(),
            command: None,
        };
        let mut culprit = culprit.ok_or_else(nothing)?;
        culprit.inherited = last;
        Ok(culprit)
    }

    /// A kernel on both backends, with what the reference made of the commands before it.
    fn local(
        &self,
        at: usize,
        kernel: &Arc<Kernel>,
        slots: &[u32],
        scalars: &[Scalar],
    ) -> Result<KernelDiff, Fault> {
        let buffers = self.prefix(self.reference, at)?;
        let bound: Vec<Buffer> = slots.iter().map(|&s| buffers[s as usize].clone()).collect();
        let before = contents(self.reference, &bound)?;
        compare(kernel, scalars, &before, None, (self.flush.backend, self.reference), true)
    }
}

/// How many elements of a binding a kernel's stores reach.
fn extent(kernel: &Kernel, binding: usize) -> usize {
    let end = |p: &Program| {
        let own = p.stores.iter().filter(|s| usize::from(s.to.binding) == binding);
        own.map(|s| s.to.layout.end()).max().unwrap_or(0)
    };
    kernel.body.programs().into_iter().map(end).max().unwrap_or(0)
}
