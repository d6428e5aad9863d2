//! What a computation will take, before it runs.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use super::ceilings::Ceilings;
use super::{Tensors, text};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::figures::Figures;
use crate::graph::kernel::Command;
use crate::graph::preview::{Preview, hold};
use crate::tensor::Tensor;

/// What [`plan`] foretells.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The device's name.
    pub device: String,
    /// All dispatches and copies, in the order in which they would run.
    pub kernels: Vec<PlannedKernel>,
    /// Bytes of the values that are there already and are read.
    pub input_bytes: u64,
    /// Bytes of the buffers to be allocated, for results and for what is needed in between.
    pub new_bytes: u64,
    /// The most bytes, inputs and all, that this order of kernels needs at one time: the least that
    /// [`peak_bytes`](Plan::peak_bytes) could be.
    pub needed_bytes: u64,
    /// Bytes that the device holds beside these.
    pub other_bytes: u64,
    /// The number of the kernel that binds the largest buffer.
    pub largest: Option<usize>,
    /// Bytes that one binding may have on this device.
    pub binding_limit: u64,
    /// What the prediction rests on. `None` where nothing is left to run.
    pub ceilings: Option<Ceilings>,
}

/// One dispatch, or a copy.
#[derive(Clone, Debug)]
pub struct PlannedKernel {
    /// The ops fused in it.
    pub label: String,
    /// The line that recorded the last of them; of a copy, `None`.
    pub caller: Option<&'static Location<'static>>,
    /// The index space that it runs over, neighbouring dimensions merged where all operands allow it.
    pub shape: Vec<usize>,
    /// Bytes read and written. An operand that only data decides on (a table that is looked up) counts whole.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Two for each product of a matrix product, one for each elementwise operation.
    pub flops: u64,
    /// Bytes of the largest buffer it binds.
    pub largest_binding: u64,
    /// How long it takes at the [`Ceilings`].
    pub predicted: Duration,
}

impl Plan {
    /// How many dispatches (and copies) there are.
    pub fn dispatches(&self) -> usize {
        self.kernels.len()
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.kernels.iter().map(|k| k.read_bytes + k.written_bytes).sum()
    }

    pub fn flops(&self) -> u64 {
        self.kernels.iter().map(|k| k.flops).sum()
    }

    /// Bytes of all that this computation holds at once: what it reads, what it makes, and what it needs in
    /// between.
    pub fn peak_bytes(&self) -> u64 {
        self.input_bytes + self.new_bytes
    }

    /// How long all of it takes at the [`Ceilings`].
    pub fn predicted(&self) -> Duration {
        let submission =
            self.ceilings.filter(|_| !self.kernels.is_empty()).map_or(Duration::ZERO, |c| c.submission);
        submission + self.kernels.iter().map(|k| k.predicted).sum::<Duration>()
    }

    /// Whether nothing is left to run.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// A kernel's part of the predicted time, of 1.
    pub fn share(&self, kernel: &PlannedKernel) -> f64 {
        kernel.predicted.as_secs_f64() / self.predicted().as_secs_f64().max(1e-12)
    }
}

/// What reading these tensors would run, without running it: dispatches, bytes, operations, memory, the largest
/// binding, and how long it takes at what the device was measured to do (once in a process, in a fraction of a second).
///
/// Takes one tensor or several, of one device. After `backward()` gradients are tensors to be asked for as well; a
/// whole step is [`plan_of`]'s. Values that you hold meanwhile are stored as well: give the tensor a name first, or the
/// temporaries of its expression are among them. A tensor that was computed before gives an empty plan. All else stays as it is: what is
/// pending remains so.
///
/// # Errors
/// If it cannot run: the tensors are invalid (a dtype that the device has not, say), a binding is over the device's limit,
/// or the memory is over the machine's. The message names the tensor, sizes and limits, and says what to do. Also
/// if the tensors are of several devices, or the device fails while it is measured.
///
/// ```
/// # use wgrad::prelude::*;
/// let (x, w) = (rand([64, 128]), rand([128, 32]).requires_grad_(true));
/// # (x.check()?, w.check()?);
/// let loss = x.matmul(&w).relu().sum();
/// let plan = debug::plan(&loss)?;
/// println!("{plan}");
/// assert!(plan.flops() >= 2 * 64 * 128 * 32);
/// loss.item::<f32>()?;
/// assert!(debug::plan(&loss)?.is_empty());
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn plan(tensors: &(impl Tensors + ?Sized)) -> Result<Plan> {
    let caller = Location::caller();
    let tensors = tensors.tensors();
    let valid = || tensors.iter().find_map(Tensor::error).map_or(Ok(()), Err);
    valid()?;
    let Some(first) = tensors.first() else {
        return Err(Error::at(caller, ErrorKind::Argument, "plan", "no tensor to plan for"));
    };
    let device = first.device();
    if let Some(other) = tensors.iter().map(Tensor::device).find(|d| *d != device) {
        return Err(several(caller, device, other));
    }
    // The tensors' own references: whatever else holds a node makes it stay in memory.
    let preview = Preview::of_nodes(device, tensors.iter().map(Tensor::node).collect());
    // What is made of something invalid is known to be so now.
    valid()?;
    finish(device, preview.as_ref(), caller)
}

/// Records what `f` does, running nothing before a value is read, and plans all that is pending then: a whole training step,
/// backward pass and optimizer included.
///
/// What was recorded stays so, and runs when it is needed, as ever. A value that `f` itself reads (`item()`) has to be
/// computed there, and what that took is not in the plan. What `f` returns is held while the rest is planned, for values that
/// nobody holds are not computed.
///
/// # Errors
/// As [`plan`]. (The step is recorded nevertheless.)
///
/// ```
/// # use wgrad::prelude::*;
/// # set_default_device(&cpu());
/// let w = rand([16, 4]).requires_grad_(true);
/// let mut optimizer = SGD::new(vec![w.clone()], 0.1);
/// let (loss, plan) = debug::plan_of(|| {
///     let loss = ones([8, 16]).matmul(&w).square().mean();
///     loss.backward()?;
///     optimizer.step()?;
///     Ok::<_, wgrad::Error>(loss)
/// })?;
/// println!("{plan}");
/// assert!(plan.dispatches() > 2);
/// loss?.item::<f32>()?; // runs it
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn plan_of<R>(f: impl FnOnce() -> R) -> Result<(R, Plan)> {
    let caller = Location::caller();
    let (value, devices) = hold(f);
    let found: Vec<(&Device, Preview)> =
        devices.iter().filter_map(|d| Preview::of_pending(d).map(|p| (d, p))).collect();
    let plan = match &found[..] {
        [] => finish(devices.first().unwrap_or(&crate::default_device()), None, caller)?,
        [(device, preview)] => finish(device, Some(preview), caller)?,
        [(a, _), (b, _), ..] => return Err(several(caller, a, b)),
    };
    Ok((value, plan))
}

fn several(caller: &'static Location<'static>, a: &Device, b: &Device) -> Error {
    let message = format!("one device at a time, and these are of {a} and of {b}");
    Error::at(caller, ErrorKind::Device, "plan", message)
}

fn finish(device: &Device, preview: Option<&Preview>, caller: &'static Location<'static>) -> Result<Plan> {
    let mut plan = Plan {
        device: device.name().to_string(),
        kernels: vec![],
        input_bytes: 0,
        new_bytes: 0,
        needed_bytes: 0,
        other_bytes: device.memory().live_bytes as u64,
        largest: None,
        binding_limit: device.backend().caps().max_binding_bytes as u64,
        ceilings: None,
    };
    let Some(preview) = preview else { return Ok(plan) };
    refuse(device, preview, caller)?;
    let ceilings = Ceilings::of(device)?;
    plan.input_bytes = preview.leaves.iter().map(|&b| b as u64).sum();
    plan.new_bytes = preview.plan.new_bytes() as u64;
    plan.needed_bytes = preview.plan.needed.0 as u64;
    plan.other_bytes = (preview.memory.live_bytes as u64).saturating_sub(plan.input_bytes);
    plan.kernels = preview.commands().iter().map(|c| row(c, &ceilings)).collect();
    plan.largest = (0..plan.kernels.len()).rev().max_by_key(|&i| plan.kernels[i].largest_binding);
    plan.ceilings = Some(ceilings);
    Ok(plan)
}

fn row(command: &Command, ceilings: &Ceilings) -> PlannedKernel {
    let (label, caller, shape, figures) = match command {
        Command::Dispatch { kernel, .. } => {
            (kernel.label.clone(), Some(kernel.caller), kernel.shape(), kernel.figures())
        }
        Command::Copy { bytes, .. } => {
            let bytes = *bytes as u64;
            let figures = Figures { read: bytes, written: bytes, largest: (bytes, 0), ..Figures::default() };
            ("copy".to_string(), None, vec![], figures)
        }
    };
    let Figures { read, written, structured, elementwise, cost, largest } = figures;
    PlannedKernel {
        label,
        caller,
        shape,
        read_bytes: read,
        written_bytes: written,
        flops: structured + elementwise,
        largest_binding: largest.0,
        predicted: Duration::from_secs_f64(ceilings.seconds(read + written, structured, cost)),
    }
}

/// What cannot run, and what to do about it.
fn refuse(device: &Device, preview: &Preview, caller: &'static Location<'static>) -> Result<()> {
    let limit = device.backend().caps().max_binding_bytes as u64;
    let mut largest: Option<(u64, String)> = None;
    for command in preview.commands() {
        let Command::Dispatch { kernel, .. } = command else { continue };
        let (bytes, binding) = kernel.figures().largest;
        if largest.as_ref().is_some_and(|(most, _)| *most >= bytes) {
            continue;
        }
        let dtype = kernel.bindings.get(binding).map_or(String::new(), |b| b.dtype.to_string());
        let what = format!(
            "{} over {} ({dtype}, recorded at {})",
            kernel.label,
            text::shape(&kernel.shape()),
            kernel.caller
        );
        if bytes > limit {
            let message = format!(
                "{what} needs a buffer of {} ({bytes} bytes), and {device} binds at most {} ({limit}, its max_storage_buffer_binding_size): split it \
                 into {} parts or more along a dimension (Tensor::split, or a smaller batch), reduce it in the expression \
                 that makes it, so that it is never stored, or use the cpu device",
                text::bytes(bytes),
                text::bytes(limit),
                bytes.div_ceil(limit.max(1)),
            );
            return Err(Error::at(kernel.caller, ErrorKind::Limit, "plan", message));
        }
        largest = Some((bytes, what));
    }
    let new = preview.plan.new_bytes() as u64;
    let (live, total) = (preview.memory.live_bytes as u64, device.backend().total_memory());
    match total.filter(|total| live.saturating_add(new) > *total) {
        Some(total) => {
            let most = largest.map_or(String::new(), |(bytes, what)| {
                format!(" The largest buffer is {}, of {what}.", text::bytes(bytes))
            });
            let message = format!(
                "this needs {} beside the {} that {device} holds now, and there are {} in all.{most} Use a smaller batch, \
                 accumulate gradients over parts of it, or drop tensors that are not needed any more",
                text::bytes(new),
                text::bytes(live),
                text::bytes(total),
            );
            Err(Error::at(caller, ErrorKind::OutOfMemory, "plan", message))
        }
        None => Ok(()),
    }
}

/// Rows that a plan prints; `{:#}` prints all.
const ROWS: usize = 40;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "nothing to run on {}: the values are there already", self.device);
        }
        let us = |d: Duration| d.as_secs_f64() * 1e6;
        let plural = if self.dispatches() == 1 { "" } else { "es" };
        writeln!(
            f,
            "{}: {} dispatch{plural}, {} moved, {}, predicted {:.1} us",
            self.device,
            self.dispatches(),
            text::bytes(self.bytes()),
            flops(self.flops()),
            us(self.predicted()),
        )?;
        writeln!(
            f,
            "memory: {} at the peak ({} read, {} made), beside {} of others",
            text::bytes(self.peak_bytes()),
            text::bytes(self.input_bytes),
            text::bytes(self.new_bytes),
            text::bytes(self.other_bytes),
        )?;
        if let Some((i, kernel)) = self.largest.and_then(|i| Some((i, self.kernels.get(i)?))) {
            let of = match self.binding_limit {
                // No limit but the address space.
                limit if limit >= 1 << 62 => String::new(),
                limit => format!(
                    ", {:.1} % of the limit of {}",
                    100.0 * kernel.largest_binding as f64 / limit as f64,
                    text::bytes(limit)
                ),
            };
            writeln!(f, "largest binding: {}{of}, in kernel {i}", text::bytes(kernel.largest_binding))?;
        }
        if let Some(ceilings) = &self.ceilings {
            writeln!(f, "ceilings: {ceilings}")?;
        }
        let mut shown: Vec<usize> = (0..self.kernels.len()).collect();
        if !f.alternate() && shown.len() > ROWS {
            shown.sort_by_key(|&i| std::cmp::Reverse(self.kernels[i].predicted));
            shown.truncate(ROWS);
            shown.sort_unstable();
        }
        let width = |cell: &dyn Fn(&PlannedKernel) -> usize, least: usize| {
            shown.iter().map(|&i| cell(&self.kernels[i])).max().unwrap_or(0).clamp(least, 44)
        };
        let (names, shapes) =
            (width(&|k| k.label.chars().count(), 6), width(&|k| text::shape(&k.shape).len(), 5));
        writeln!(
            f,
            "{:>5}  {:<names$}  {:<shapes$} {:>9} {:>9} {:>12} {:>10} {:>7}  line",
            "#", "kernel", "shape", "read", "written", "flops", "us", "share"
        )?;
        for &i in &shown {
            let kernel = &self.kernels[i];
            write!(
                f,
                "{i:>5}  {:<names$}  {:<shapes$} {:>9} {:>9} {:>12} {:>10.1} {:>5.1} %  ",
                cut(&kernel.label, names),
                cut(&text::shape(&kernel.shape), shapes),
                text::bytes(kernel.read_bytes),
                text::bytes(kernel.written_bytes),
                flops(kernel.flops),
                us(kernel.predicted),
                100.0 * self.share(kernel),
            )?;
            match kernel.caller {
                Some(caller) => writeln!(f, "{}:{}", caller.file(), caller.line())?,
                None => writeln!(f, "(keeps a value that is written to)")?,
            }
        }
        if shown.len() < self.kernels.len() {
            let rest: Duration =
                self.predicted().saturating_sub(shown.iter().map(|&i| self.kernels[i].predicted).sum());
            writeln!(
                f,
                "       and {} quicker kernels, {:.1} us together; {{:#}} shows all",
                self.kernels.len() - shown.len(),
                us(rest)
            )?;
        }
        Ok(())
    }
}

fn flops(n: u64) -> String {
    format!("{}FLOP", text::count(n as f64) + if n < 1000 { " " } else { "" })
}

/// At most so many characters.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}
