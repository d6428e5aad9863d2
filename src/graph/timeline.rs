//! Spans of what host threads and devices do, while someone records them.

use std::borrow::Cow;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::device::Device;
use super::dtype::{DType, Scalar};
use super::figures::Figures;
use super::kernel::{Command, Recording};
use super::layout::Dims;
use super::node::Node;
use crate::backend::{Backend, Buffer, Compiled, Fault};

/// One span, from the beginning of the recording on.
#[derive(Clone, Debug)]
pub struct Event {
    pub track: Track,
    pub name: Cow<'static, str>,
    pub category: &'static str,
    pub start: Duration,
    pub duration: Duration,
    pub args: Args,
}

#[derive(Clone, Debug)]
pub enum Track {
    Host { thread: usize, name: Arc<str> },
    Device(Arc<str>),
}

#[derive(Clone, Debug)]
pub enum Args {
    None,
    Op {
        shape: Dims,
        dtype: DType,
        caller: &'static Location<'static>,
    },
    Flush {
        nodes: usize,
        kernels: usize,
    },
    /// The figures are those of all of its dispatches.
    Kernel {
        shape: Vec<usize>,
        figures: Figures,
        caller: &'static Location<'static>,
        timed: Timed,
    },
    /// Not a span but a count.
    Memory {
        bytes: usize,
    },
}

/// What was timed, and how.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// Which of the kernel's dispatches, from 1, of how many.
    pub part: (usize, usize),
    pub grid: [u32; 3],
    /// From submission until it was waited for, on the host's clock.
    pub by_host: bool,
}

/// Records from `start` to `finish`, or until it is dropped.
pub struct Recorder(Arc<Tape>);

struct Tape {
    began: Instant,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    events: Vec<Event>,
    dropped: usize,
    devices: Vec<Device>,
}

/// Events beyond this many are counted only.
const MOST: usize = 2_000_000;

/// How many record: read before everything else, so that it costs nothing while nobody does.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static TAPES: RwLock<Vec<Arc<Tape>>> = RwLock::new(Vec::new());

impl Recorder {
    pub fn start() -> Recorder {
        let tape = Arc::new(Tape { began: Instant::now(), content: Mutex::default() });
        TAPES.write().push(tape.clone());
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        Recorder(tape)
    }

    /// The devices that something was recorded for or run on.
    pub fn devices(&self) -> Vec<Device> {
        self.0.content.lock().devices.clone()
    }

    /// The events in the order of their beginning, those around others first; and how many there was no room for.
    pub fn finish(self) -> (Vec<Event>, usize) {
        let mut content = std::mem::take(&mut *self.0.content.lock());
        content.events.sort_by_key(|e| (e.start, std::cmp::Reverse(e.duration)));
        (content.events, content.dropped)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        TAPES.write().retain(|tape| !Arc::ptr_eq(tape, &self.0));
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether anyone records.
pub fn on() -> bool {
    ACTIVE.load(Ordering::Relaxed) > 0
}

fn emit(
    track: &Track,
    name: Cow<'static, str>,
    category: &'static str,
    start: Instant,
    duration: Duration,
    args: &Args,
) {
    for tape in TAPES.read().iter() {
        // What began before the recording did is shown from there on.
        let late = tape.began.saturating_duration_since(start);
        let Some(duration) = duration.checked_sub(late) else { continue };
        let start = start.saturating_duration_since(tape.began);
        let mut content = tape.content.lock();
        if content.events.len() >= MOST {
            content.dropped += 1;
            continue;
        }
        let (track, name, args) = (track.clone(), name.clone(), args.clone());
        content.events.push(Event { track, name, category, start, duration, args });
    }
}

fn saw(device: &Device) {
    for tape in TAPES.read().iter() {
        let devices = &mut tape.content.lock().devices;
        if !devices.contains(device) {
            devices.push(device.clone());
        }
    }
}

/// This thread's track.
fn here() -> Track {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    thread_local! {
        static TRACK: Track = {
            let thread = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = std::thread::current().name().map_or_else(|| format!("thread {thread}"), str::to_string);
            Track::Host { thread, name: name.into() }
        };
    }
    TRACK.with(Track::clone)
}

/// A span of this thread until it is dropped.
pub struct Span(Option<(Cow<'static, str>, &'static str, Instant, Args)>);

impl Span {
    /// The same span with arguments.
    pub fn args(&mut self, args: Args) {
        if let Some(span) = &mut self.0 {
            span.3 = args;
        }
    }

    /// There was nothing to do.
    pub fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some((name, category, start, args)) = self.0.take() {
            emit(&here(), name, category, start, start.elapsed(), &args);
        }
    }
}

/// A span of the user's.
pub fn span(name: &str) -> Span {
    Span(on().then(|| (name.to_string().into(), "user", Instant::now(), Args::None)))
}

/// A span of a training step's phases: a backward pass, an optimizer's step.
pub(crate) fn phase(name: &'static str) -> Span {
    Span(on().then(|| (name.into(), "phase", Instant::now(), Args::None)))
}

/// A span of the executor's.
pub(super) fn work(name: &'static str) -> Span {
    Span(on().then(|| (name.into(), "executor", Instant::now(), Args::None)))
}

/// A node that is being recorded, from `start` until now.
pub(super) fn recorded(node: &Node, op: &'static str, start: Instant) {
    saw(&node.device);
    let args = Args::Op { shape: node.shape.clone(), dtype: node.dtype, caller: node.caller };
    emit(&here(), op.into(), "record", start, start.elapsed(), &args);
}

/// As [`Backend::run`], with a span for each kernel.
pub(super) fn run(
    device: &Device,
    recording: &Recording,
    compiled: &Compiled,
    buffers: &[Buffer],
    scalars: &[Scalar],
) -> Result<(), Fault> {
    let backend = device.backend();
    saw(device);
    let track = Track::Device(backend.name().into());
    let memory = Args::Memory { bytes: backend.memory().live_bytes };
    emit(&track, "".into(), "memory", Instant::now(), Duration::ZERO, &memory);
    if !backend.times_kernels() {
        return one_by_one(backend, &track, recording, buffers, scalars);
    }
    backend.profile(true);
    let start = Instant::now();
    let done = backend.run(recording, compiled, buffers, scalars);
    let whole = start.elapsed();
    let timings = backend.profile(false);
    done.map(drop)?;
    // The device has a clock of its own: the last kernel ended before the wait for it did.
    let end = timings.iter().map(|t| t.start + t.duration).max().unwrap_or_default();
    let first = start + whole.saturating_sub(end).min(whole);
    // One kernel may be several dispatches, which follow each other.
    for parts in timings.chunk_by(|a, b| a.command == b.command) {
        for (i, timing) in parts.iter().enumerate() {
            let timed = Timed { part: (i + 1, parts.len()), grid: timing.grid, by_host: false };
            kernel(&track, recording, timing.command, (first + timing.start, timing.duration), timed);
        }
    }
    Ok(())
}

/// For a backend without a clock: submits and waits for each command by itself.
fn one_by_one(
    backend: &dyn Backend,
    track: &Track,
    recording: &Recording,
    buffers: &[Buffer],
    scalars: &[Scalar],
) -> Result<(), Fault> {
    for (number, command) in recording.commands.iter().enumerate() {
        let here = |fault: Fault| Fault { command: Some(number), ..fault };
        let one = Recording { commands: vec![command.clone()] };
        let compiled = backend.compile(&one, false).map_err(here)?;
        let start = Instant::now();
        backend.run(&one, &compiled, buffers, scalars).map_err(here)?;
        backend.wait().map_err(here)?;
        let timed = Timed { part: (1, 1), grid: [1; 3], by_host: true };
        kernel(track, recording, number, (start, start.elapsed()), timed);
    }
    Ok(())
}

fn kernel(
    track: &Track,
    recording: &Recording,
    command: usize,
    (start, duration): (Instant, Duration),
    timed: Timed,
) {
    let Some(Command::Dispatch { kernel, .. }) = recording.commands.get(command) else { return };
    let (shape, figures) = (kernel.shape(), kernel.figures());
    let args = Args::Kernel { shape, figures, caller: kernel.caller, timed };
    emit(track, kernel.label.clone().into(), "kernel", start, duration, &args);
}
