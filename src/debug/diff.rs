//! The same kernels on two backends, compared one by one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::ops::{OpDiff, find_op};
use crate::backend::{Backend, Buffer, Code, Fault};
use crate::device::{Device, cpu, gpu};
use crate::error::Result;
use crate::graph::device::fault_error;
use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Command, Kernel, Recording};
use crate::graph::observe::{Flush, contents, observe, run_apart, run_single};

/// Kernels agree if no value differs by more than this share of itself, or [`OF_LARGEST`] of the largest value
/// beside it: sums are taken in other orders, and what cancels in them leaves the error of what was summed.
const OF_VALUE: f64 = 1e-4;
const OF_LARGEST: f64 = 1e-5;
/// Differing kernels of which all data are kept, to be saved, and the faulty op is looked for.
const KEPT: usize = 8;

/// What [`diff`] found: every kernel that ran, in order.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    pub kernels: Vec<KernelDiff>,
}

/// The element at which two backends differ most, for what is allowed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gap {
    /// Which of the kernel's outputs, and which element of it.
    pub output: usize,
    pub at: usize,
    /// What the device that is looked at says, and what the reference says.
    pub value: f64,
    pub reference: f64,
    /// How many floats lie between.
    pub ulps: u64,
    /// The error in units of what rounding explains: above 1 the two differ.
    pub excess: f64,
}

impl Gap {
    pub fn differs(&self) -> bool {
        self.excess > 1.0
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap { output, at, value, reference, ulps, .. } = self;
        write!(f, "output {output}[{at}] is {value:e}, on the reference {reference:e}, {ulps} ulps")
    }
}

/// One kernel's errors between two backends.
#[derive(Clone, Debug)]
pub struct KernelDiff {
    /// The ops fused in it.
    pub label: String,
    /// The line that recorded the last of them.
    pub caller: &'static Location<'static>,
    pub device: String,
    pub reference: String,
    /// Elements of each output.
    pub outputs: Vec<usize>,
    /// The index space that the kernel runs over.
    pub shape: Vec<usize>,
    /// The error made here: both backends were given the same inputs. `None` where no element differs at all.
    pub local: Option<Gap>,
    /// The error that came so far: each backend was given what it had computed itself. (What is copied from one device to
    /// another begins anew.)
    pub inherited: Option<Gap>,
    /// Of a kernel that differs: the op within it that is at fault.
    pub op: Option<OpDiff>,
    /// Of the first kernels that differ: all that it takes to run them again.
    pub(super) case: Option<Arc<Case>>,
}

/// All that it takes to run a kernel again, and what came out.
#[derive(Debug)]
#[cfg_attr(not(feature = "io"), allow(dead_code, reason = "for saving"))]
pub(super) struct Case {
    pub kernel: Arc<Kernel>,
    pub scalars: Vec<Scalar>,
    pub before: Vec<Vec<u8>>,
    /// By binding, of those that are written.
    pub on_device: Vec<Vec<u8>>,
    pub on_reference: Vec<Vec<u8>>,
    pub code: Vec<Code>,
    /// Of the backend that the code is for.
    pub adapter: String,
    pub driver: String,
    /// Whether the code is the reference's.
    pub turned: bool,
}

impl KernelDiff {
    /// Whether the kernel makes an error that rounding does not explain.
    pub fn differs(&self) -> bool {
        self.local.is_some_and(|g| g.differs())
    }
}

impl Diff {
    /// The first kernel whose outputs differ by more than rounding though its inputs are the same.
    pub fn first(&self) -> Option<&KernelDiff> {
        self.kernels.iter().find(|k| k.differs())
    }

    /// The first kernel from which on values differ by more than rounding, whether by one kernel's fault or because
    /// small errors grew.
    pub fn first_inherited(&self) -> Option<&KernelDiff> {
        self.kernels.iter().find(|k| k.inherited.is_some_and(|g| g.differs()))
    }
}

impl fmt::Display for KernelDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.differs() { "DIFFERS" } else { "agrees" };
        write!(f, "{} over {:?} (at {}) {verdict}", self.label, self.shape, self.caller)?;
        if let Some(gap) = self.local {
            let Gap { output, at, value, reference, ulps, .. } = gap;
            write!(
                f,
                ": output {output}[{at}] is {value:e} on {}, {reference:e} on {}, {ulps} ulps",
                self.device, self.reference
            )?;
        }
        if let Some(gap) = self.inherited {
            write!(
                f,
                "; with inherited errors {:e} against {:e}, {} ulps",
                gap.value, gap.reference, gap.ulps
            )?;
        }
        match &self.op {
            Some(op) => write!(f, "; {op}"),
            None => Ok(()),
        }
    }
}

/// The first kernel that differs; with `{:#}` a line for each kernel, by which errors can be seen to come and grow.
impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let ulps = |g: Option<Gap>| g.map_or(0, |g| g.ulps);
            for (i, k) in self.kernels.iter().enumerate() {
                let mark = if k.differs() { "DIFFERS" } else { "" };
                let (local, inherited) = (ulps(k.local), ulps(k.inherited));
                writeln!(
                    f,
                    "{i:>4} {:<40} local {local:>8} ulps  inherited {inherited:>8} ulps  {} {mark}",
                    k.label, k.caller
                )?;
            }
        }
        match self.first() {
            Some(kernel) => write!(f, "{kernel}"),
            None => write!(f, "{} kernels agree", self.kernels.len()),
        }
    }
}

/// Runs `f`, and each kernel that it makes run twice more on another backend (what runs on a GPU on the CPU, and the reverse):
/// with the same inputs, and with those that this backend had computed itself. The first kernel that
/// [differs](Diff::first) is the one at fault; [`KernelDiff::op`] is the op within it.
///
/// # Errors
/// If there is no other backend, or it failed.
///
/// ```
/// # use wgrad::prelude::*;
/// # if gpu().is_err() { return Ok(()) }
/// let x = randn([64, 64]).requires_grad_(true);
/// let (_, report) = wgrad::debug::diff(|| x.tanh().sum().backward())?;
/// assert!(report.first().is_none(), "{report}");
/// println!("{report:#}"); // a line for each kernel: the error it made, and the error it was given
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn diff<R>(f: impl FnOnce() -> R) -> Result<(R, Diff)> {
    let caller = Location::caller();
    let (pair, sink) = (devices()?, Rc::new(RefCell::new((Diff::default(), None))));
    let (others, found) = (pair.clone(), sink.clone());
    let mut shadows = Shadows::default();
    let guard = observe(move |flush| {
        let Some(reference) = other(&others, flush.backend) else { return flush.whole() };
        let (diff, fault): &mut (Diff, Option<Fault>) = &mut found.borrow_mut();
        shadows.run(flush, reference.backend(), diff, fault)
    });
    // What the closure returns is held until all that was recorded has run.
    let result = f();
    pair.iter().for_each(Device::flush);
    drop(guard);
    let (report, fault) = sink.take();
    match fault {
        Some(fault) => Err(fault_error(fault, caller, "diff")),
        None => Ok((result, report)),
    }
}

/// The backends that are held against each other.
#[track_caller]
pub(super) fn devices() -> Result<[Device; 2]> {
    Ok([cpu(), gpu()?])
}

pub(super) fn other<'a>(pair: &'a [Device; 2], backend: &dyn Backend) -> Option<&'a Device> {
    pair.iter().find(|d| d.name() != backend.name())
}

/// The reference's own version of a device's buffers, from flush to flush.
#[derive(Default)]
struct Shadows {
    /// By the address of the device's memory, which no other memory has while the weak handle is there.
    known: HashMap<usize, (Weak<dyn std::any::Any + Send + Sync>, Buffer)>,
}

impl Shadows {
    /// Runs a flush kernel by kernel. A fault of the reference is no fault of the program's.
    fn run(
        &mut self,
        flush: &Flush<'_>,
        reference: &dyn Backend,
        diff: &mut Diff,
        fault: &mut Option<Fault>,
    ) -> Result<(), Fault> {
        self.known.retain(|_, (memory, _)| memory.strong_count() > 0);
        let address = |buffer: &Buffer| Arc::as_ptr(&buffer.memory).cast::<()>() as usize;
        let mut own: Vec<Option<Buffer>> = (flush.buffers.iter().enumerate())
            .map(
                |(i, b)| {
                    if i < flush.leaves { self.known.get(&address(b)).map(|k| k.1.clone()) } else { None }
                },
            )
            .collect();
        let backend = flush.backend;
        for (i, command) in flush.recording.commands.iter().enumerate() {
            let here = |fault: Fault| Fault { command: Some(i), ..fault };
            match command {
                Command::Copy { from, to, bytes } => {
                    let pair = [flush.buffers[*from as usize].clone(), flush.buffers[*to as usize].clone()];
                    let before = contents(backend, &pair).map_err(here)?;
                    copy(backend, &pair, *bytes).map_err(here)?;
                    let shadow = (|| {
                        let shadows = [
                            shadow(&mut own[*from as usize], reference, &before[0])?,
                            shadow(&mut own[*to as usize], reference, &before[1])?,
                        ];
                        copy(reference, &shadows, *bytes)
                    })();
                    keep(shadow, fault);
                }
                Command::Dispatch { kernel, buffers: slots, scalars: first } => {
                    let bound: Vec<Buffer> =
                        slots.iter().map(|&s| flush.buffers[s as usize].clone()).collect();
                    let scalars = flush.scalars_of(kernel, *first);
                    let before = contents(backend, &bound).map_err(here)?;
                    run_single(backend, kernel, &bound, scalars).map_err(here)?;
                    let after = contents(backend, &bound).map_err(here)?;
                    let compared = (|| {
                        let shadows = (slots.iter().zip(&before))
                            .map(|(&s, bytes)| shadow(&mut own[s as usize], reference, bytes))
                            .collect::<Result<Vec<_>, _>>()?;
                        run_single(reference, kernel, &shadows, scalars)?;
                        let inherited = gap(kernel, &after, &contents(reference, &shadows)?).0;
                        let search = diff.kernels.iter().filter(|k| k.case.is_some()).count() < KEPT;
                        let pair = (backend, reference);
                        let mut found = compare(kernel, scalars, &before, Some(after), pair, search)?;
                        found.inherited = inherited;
                        diff.kernels.push(found);
                        Ok(())
                    })();
                    keep(compared, fault);
                }
            }
        }
        for (buffer, shadow) in flush.buffers.iter().zip(own) {
            if let Some(shadow) = shadow {
                self.known.insert(address(buffer), (Arc::downgrade(&buffer.memory), shadow));
            }
        }
        Ok(())
    }
}

fn keep(result: Result<(), Fault>, first: &mut Option<Fault>) {
    if let Err(fault) = result {
        first.get_or_insert(fault);
    }
}

/// The reference's buffer, which begins as a copy of the device's.
fn shadow(slot: &mut Option<Buffer>, reference: &dyn Backend, bytes: &[u8]) -> Result<Buffer, Fault> {
    match slot {
        Some(buffer) => Ok(buffer.clone()),
        None => Ok(slot.insert(reference.upload(bytes)?).clone()),
    }
}

pub(super) fn copy(backend: &dyn Backend, pair: &[Buffer; 2], bytes: usize) -> Result<(), Fault> {
    let one = Recording { commands: vec![Command::Copy { from: 0, to: 1, bytes }] };
    backend.run(&one, &backend.compile(&one, false)?, pair, &[]).map(drop)
}

/// A kernel on both backends with the same inputs. `after` is what it made on the first, where that is known.
pub(super) fn compare(
    kernel: &Arc<Kernel>,
    scalars: &[Scalar],
    before: &[Vec<u8>],
    after: Option<Vec<Vec<u8>>>,
    (device, reference): (&dyn Backend, &dyn Backend),
    search: bool,
) -> Result<KernelDiff, Fault> {
    let after = match after {
        Some(after) => after,
        None => run_apart(device, kernel, before, scalars)?,
    };
    let theirs = run_apart(reference, kernel, before, scalars)?;
    let shape = kernel.shape();
    let (local, outputs) = gap(kernel, &after, &theirs);
    let mut out = KernelDiff {
        label: kernel.label.clone(),
        caller: kernel.caller,
        device: device.name().to_string(),
        reference: reference.name().to_string(),
        outputs,
        shape,
        local,
        inherited: None,
        op: None,
        case: None,
    };
    if out.differs() && search {
        out.op = find_op(kernel, scalars, before, device, reference)?;
        let code = device.code(kernel)?;
        let turned = code.is_empty();
        let shader = if turned { reference } else { device };
        out.case = Some(Arc::new(Case {
            kernel: kernel.clone(),
            scalars: scalars.to_vec(),
            before: before.to_vec(),
            on_device: after,
            on_reference: theirs,
            code: if turned { reference.code(kernel)? } else { code },
            adapter: shader.name().to_string(),
            driver: shader.driver(),
            turned,
        }));
    }
    Ok(out)
}

/// The worst element of all that a kernel writes, and the lengths of its outputs.
fn gap(kernel: &Kernel, a: &[Vec<u8>], b: &[Vec<u8>]) -> (Option<Gap>, Vec<usize>) {
    let (mut worst, mut outputs) = (None, vec![]);
    for (i, binding) in kernel.bindings.iter().enumerate().filter(|(_, b)| b.written) {
        worst = worse(worst, gap_of(binding.dtype, &a[i], &b[i], outputs.len()));
        outputs.push(a[i].len() / binding.dtype.size());
    }
    (worst, outputs)
}

pub(super) fn worse(a: Option<Gap>, b: Option<Gap>) -> Option<Gap> {
    match (a, b) {
        (Some(a), Some(b)) if b.excess > a.excess => Some(b),
        (Some(a), _) => Some(a),
        (None, b) => b,
    }
}

/// The worst element of one output.
pub(super) fn gap_of(dtype: DType, a: &[u8], b: &[u8], output: usize) -> Option<Gap> {
    let (a, b) = (dtype.numbers(a), dtype.numbers(b));
    let largest = b.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let slack = if dtype.is_float() { OF_LARGEST * largest } else { 0.0 };
    let mut worst: Option<Gap> = None;
    for (at, (&value, &reference)) in a.iter().zip(&b).enumerate() {
        if value == reference || (value.is_nan() && reference.is_nan()) {
            continue;
        }
        let allowed = if dtype.is_float() { OF_VALUE * reference.abs() + slack } else { 0.0 };
        // NaN against a number is beyond every tolerance.
        let error = (value - reference).abs();
        let excess = if error.is_nan() { f64::INFINITY } else { error / allowed.max(f64::MIN_POSITIVE) };
        if worst.is_none_or(|w| excess > w.excess) {
            let ulps = ulps(value as f32, reference as f32);
            worst = Some(Gap { output, at, value, reference, ulps, excess });
        }
    }
    worst
}

/// How many floats lie between two.
fn ulps(a: f32, b: f32) -> u64 {
    // Floats of one sign are ordered as their bits are; negative ones run the other way.
    let line = |v: f32| {
        let bits = i64::from(v.to_bits() as i32);
        if bits < 0 { i64::from(i32::MIN) - bits } else { bits }
    };
    line(a).abs_diff(line(b))
}
