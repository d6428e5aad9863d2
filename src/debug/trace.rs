//! What ran and when, as a file for <https://ui.perfetto.dev> or `chrome://tracing`.

use std::fmt::Write;
use std::path::Path;

use super::text;
use crate::error::Result;
use crate::graph::timeline::{Args, Event, Recorder, Timed, Track};

/// What was recorded, planned, compiled and run while a [`trace()`] lasted.
#[derive(Clone, Debug)]
pub struct Trace {
    events: Vec<Event>,
    dropped: usize,
}

/// Traces from its making until [`finish`](TraceGuard::finish). Dropped before that, it leaves nothing behind.
#[must_use = "finish() gives the trace"]
pub struct TraceGuard(Recorder);

/// Traces all that the process does while `f` runs, and waits until the devices have done what it recorded.
///
/// In the trace each thread of the host has a track, with a span for every recorded op, every flush, and in that the
/// scheduling and planning and the compiling (where the plan is new), the allocation and the submission; each device has one,
/// with a span for every kernel: label, index space, bytes, operations, file and line. A counter shows the bytes in use.
///
/// So that each kernel can be timed, kernels run one after another and every flush waits for its own: the trace shows
/// how long kernels take and what the host does around them, not how well the two overlap. Where an adapter has no timestamps,
/// kernels are submitted one by one and timed from the host; the trace says which it was.
///
/// # Errors
/// If a device fails.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = randn([64, 64]).requires_grad_(true);
/// let (_, trace) = debug::trace(|| x.matmul(&x).tanh().sum().backward())?;
/// let file = std::env::temp_dir().join("wgrad-trace-example.json");
/// trace.save(&file)?; // open it in ui.perfetto.dev
/// # std::fs::remove_file(file).unwrap();
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn trace<R>(f: impl FnOnce() -> R) -> Result<(R, Trace)> {
    let guard = trace_guard();
    let value = f();
    Ok((value, guard.finish()?))
}

/// [`trace()`] for the rest of a scope.
///
/// ```
/// # use wgrad::prelude::*;
/// let tracing = debug::trace_guard();
/// let x = ones(3);
/// debug::span("my step", || (&x * 2).sum().item::<f32>())?;
/// let trace = tracing.finish()?;
/// assert!(trace.json().contains("my step"));
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn trace_guard() -> TraceGuard {
    TraceGuard(Recorder::start())
}

/// Runs `f`, and shows it in traces as a span of this name, around all that it does (`torch.profiler.record_function`).
/// Costs next to nothing while nobody traces.
pub fn span<R>(name: &str, f: impl FnOnce() -> R) -> R {
    let _span = crate::graph::timeline::span(name);
    f()
}

impl TraceGuard {
    /// Waits until the devices have done what was recorded for them, and gives the trace.
    ///
    /// # Errors
    /// If a device fails.
    #[track_caller]
    pub fn finish(self) -> Result<Trace> {
        for device in self.0.devices() {
            device.synchronize()?;
        }
        let (events, dropped) = self.0.finish();
        Ok(Trace { events, dropped })
    }
}

/// Host threads are threads of this process in the trace; each device is a process of its own after it.
const HOST: usize = 1;

impl Trace {
    /// In the trace event format of Chrome and Perfetto.
    pub fn json(&self) -> String {
        let mut out = String::from("{\"displayTimeUnit\":\"ms\",\n\"traceEvents\":[\n");
        let mut devices: Vec<&str> = vec![];
        let mut threads: Vec<usize> = vec![];
        // Writing to a string does not fail.
        let _ = write!(out, "{}", name("process_name", HOST, 0, "host"));
        for event in &self.events {
            let (process, thread) = match &event.track {
                Track::Host { thread, name: label } => {
                    if !threads.contains(thread) {
                        threads.push(*thread);
                        let _ = write!(out, ",\n{}", name("thread_name", HOST, *thread, label));
                    }
                    (HOST, *thread)
                }
                Track::Device(device) => {
                    let known = devices.iter().position(|d| *d == &**device);
                    let at = known.unwrap_or_else(|| {
                        devices.push(device);
                        let process = HOST + devices.len();
                        let _ = write!(out, ",\n{}", name("process_name", process, 0, device));
                        let _ = write!(out, ",\n{}", name("thread_name", process, 1, "kernels"));
                        devices.len() - 1
                    });
                    (HOST + 1 + at, 1)
                }
            };
            let us = |d: std::time::Duration| d.as_nanos() as f64 / 1e3;
            let start = us(event.start);
            if let Args::Memory { bytes } = &event.args {
                let _ = write!(
                    out,
                    ",\n{{\"ph\":\"C\",\"name\":\"bytes in use\",\"pid\":{process},\"ts\":{start:.3},\"args\":{{\"bytes\":{bytes}}}}}"
                );
                continue;
            }
            let _ = write!(
                out,
                ",\n{{\"ph\":\"X\",\"name\":{},\"cat\":\"{}\",\"pid\":{process},\"tid\":{thread},\"ts\":{start:.3},\"dur\":{:.3},\"args\":{{{}}}}}",
                text::json(&event.name),
                event.category,
                us(event.duration),
                arguments(&event.args),
            );
        }
        let timed = self.timing();
        let _ = write!(
            out,
            "\n],\n\"otherData\":{{\"made by\":{},\"kernels\":{},\"left out\":{}}}}}\n",
            text::json(concat!("wgrad ", env!("CARGO_PKG_VERSION"))),
            text::json(timed),
            self.dropped,
        );
        out
    }

    /// Writes [`json`](Trace::json) to a file.
    ///
    /// # Errors
    /// If it cannot be written.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        crate::io::file::write("trace", path.as_ref(), self.json().as_bytes())
    }

    /// How many kernels it shows.
    pub fn kernels(&self) -> usize {
        self.events
            .iter()
            .filter(|e| matches!(e.args, Args::Kernel { timed: Timed { part: (1, _), .. }, .. }))
            .count()
    }

    /// How kernels were timed.
    fn timing(&self) -> &'static str {
        let by_host = |e: &Event| matches!(e.args, Args::Kernel { timed: Timed { by_host: true, .. }, .. });
        if self.events.iter().any(by_host) {
            "run one by one and timed from the host, for a device has no timestamps: each time is that of a submission, too"
        } else {
            "timed by the device, one after another; flushes wait for their kernels"
        }
    }
}

fn name(what: &str, process: usize, thread: usize, name: &str) -> String {
    format!(
        "{{\"ph\":\"M\",\"name\":\"{what}\",\"pid\":{process},\"tid\":{thread},\"args\":{{\"name\":{}}}}}",
        text::json(name)
    )
}

fn arguments(args: &Args) -> String {
    let line = |caller: &std::panic::Location| text::json(&format!("{}:{}", caller.file(), caller.line()));
    match args {
        Args::None | Args::Memory { .. } => String::new(),
        Args::Op { shape, dtype, caller } => {
            format!("\"shape\":{:?},\"dtype\":\"{dtype}\",\"line\":{}", &shape[..], line(caller))
        }
        Args::Flush { nodes, kernels } => format!("\"values\":{nodes},\"kernels\":{kernels}"),
        Args::Kernel { shape, figures, caller, timed } => {
            let by = if timed.by_host { "from the host" } else { "by the device" };
            format!(
                "\"shape\":{shape:?},\"bytes read\":{},\"bytes written\":{},\"flops\":{},\"workgroups\":{:?},\
                 \"dispatch\":\"{} of {}\",\"line\":{},\"timed\":\"{by}\"",
                figures.read,
                figures.written,
                figures.structured + figures.elementwise,
                timed.grid,
                timed.part.0,
                timed.part.1,
                line(caller),
            )
        }
    }
}
