//! Traces show what was recorded, planned and run, all of it, and only while they last.

mod common;

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use common::{alone, assert_close, devices, ready};
use serde_json::Value;
use wgrad::Scalar;
use wgrad::backend::{Backend, Buffer, Caps, Compiled, Fault, Found, Memory};
use wgrad::debug::Trace;
use wgrad::graph::kernel::Recording;
use wgrad::prelude::*;

struct Span {
    name: String,
    category: String,
    track: (u64, u64),
    start: f64,
    end: f64,
    args: Value,
}

/// The spans of a trace, after checking that those of each track lie within or beside one another.
fn spans(trace: &Trace) -> Vec<Span> {
    let json: Value = serde_json::from_str(&trace.json()).expect("JSON");
    let mut found = vec![];
    for event in json["traceEvents"].as_array().unwrap() {
        let number = |key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{key} of {event}"));
        if event["ph"] != "X" {
            assert!(event["ph"] == "M" || event["ph"] == "C", "{event}");
            continue;
        }
        found.push(Span {
            name: event["name"].as_str().unwrap().to_string(),
            category: event["cat"].as_str().unwrap().to_string(),
            track: (number("pid") as u64, number("tid") as u64),
            start: number("ts"),
            end: number("ts") + number("dur"),
            args: event["args"].clone(),
        });
    }
    let mut open: HashMap<(u64, u64), Vec<f64>> = HashMap::new();
    for span in &found {
        let stack = open.entry(span.track).or_default();
        // Times are rounded to nanoseconds.
        while stack.last().is_some_and(|&end| end <= span.start + 2e-3) {
            stack.pop();
        }
        let fits = stack.last().is_none_or(|&end| span.end <= end + 4e-3);
        assert!(fits, "{} ends after what it began in", span.name);
        stack.push(span.end);
    }
    found
}

fn of<'s>(spans: &'s [Span], category: &str) -> Vec<&'s Span> {
    spans.iter().filter(|s| s.category == category).collect()
}

#[test]
fn traces_cover_what_ran() {
    let _alone = alone();
    for d in devices() {
        let o = options().device(&d);
        let model = sequential![Linear::new(20, 64), ReLU, Linear::new(64, 10)].to(&d);
        let mut optimizer = Adam::new(model.parameters(), 1e-3);
        let (x, y) = (o.randn([16, 20]), o.randint(0, 10, 16));
        let mut step = || {
            optimizer.zero_grad();
            model.forward(&x).cross_entropy(&y).backward().unwrap();
            optimizer.step().unwrap();
        };
        d.synchronize().unwrap();
        let before = d.stats();
        let (_, trace) = debug::trace(|| {
            for _ in 0..3 {
                debug::span("my \"step\"", &mut step);
            }
        })
        .unwrap();
        let after = d.stats();
        let spans = spans(&trace);
        let kernels = of(&spans, "kernel");
        assert_eq!(trace.kernels() as u64, after.dispatches - before.dispatches, "copies aside");
        assert!(kernels.len() >= trace.kernels());
        for kernel in &kernels {
            let args = &kernel.args;
            assert!(args["line"].as_str().unwrap().contains(".rs:"), "{args}");
            assert!(
                args["shape"].is_array() && args["bytes read"].is_u64() && args["bytes written"].is_u64()
            );
            assert!(kernel.end >= kernel.start);
        }
        let product = kernels.iter().find(|k| k.name.starts_with("matmul_add_relu")).unwrap();
        assert_eq!(product.args["shape"], serde_json::json!([16, 64]));
        assert!(product.args["flops"].as_u64().unwrap() >= 2 * 16 * 64 * 20);
        assert_eq!(of(&spans, "user").len(), 3);
        let phases: Vec<_> = of(&spans, "phase").iter().map(|s| s.name.clone()).collect();
        assert_eq!(phases, ["backward", "step"].repeat(3));
        assert!(of(&spans, "record").iter().any(|s| s.name == "matmul" && s.args["shape"].is_array()));
        let executor = of(&spans, "executor");
        let count = |name: &str| executor.iter().filter(|s| s.name == name).count() as u64;
        assert_eq!(count("flush"), after.flushes - before.flushes);
        assert_eq!(
            (count("schedule and plan"), count("compile")),
            (after.plans - before.plans, after.plans - before.plans)
        );
        assert_eq!(count("submit"), count("flush"));
        // The device is a track of its own, and what it does lies within what the host waits for.
        let host = spans.iter().find(|s| s.category == "executor").unwrap().track;
        assert!(kernels.iter().all(|k| k.track.0 != host.0));
        let submits: Vec<_> = executor.iter().filter(|s| s.name == "submit").collect();
        for k in &kernels {
            let within = submits.iter().any(|s| s.start <= k.start + 1e-2 && k.end <= s.end + 1e-2);
            assert!(within, "{} at {}", k.name, k.start);
        }
        // Afterwards nobody is watched.
        let (_, nothing) = debug::trace(|| ()).unwrap();
        assert_eq!((nothing.kernels(), self::spans(&nothing).len()), (0, 0));
        assert!(d.backend().profile(false).is_empty());
    }
}

#[test]
fn a_guard_traces_the_rest_of_a_scope_and_threads_have_their_tracks() {
    let _alone = alone();
    for d in devices() {
        let tracing = debug::trace_guard();
        let outer = debug::trace_guard();
        let work = |d: Device| move || options().device(&d).rand([32, 32]).exp().sum().item::<f32>().unwrap();
        let named = std::thread::Builder::new().name("a \"worker\"".into()).spawn(work(d.clone())).unwrap();
        work(d.clone())();
        named.join().unwrap();
        let trace = tracing.finish().unwrap();
        work(d.clone())();
        let both = outer.finish().unwrap();
        assert_eq!((trace.kernels(), both.kernels()), (4, 6), "rand is stored, and summed");
        let tracks = |trace: &Trace| {
            let mut tracks: Vec<_> = of(&spans(trace), "record").iter().map(|s| s.track).collect();
            tracks.sort_unstable();
            tracks.dedup();
            tracks.len()
        };
        assert_eq!(tracks(&trace), 2);
        assert!(trace.json().contains(r#""a \"worker\"""#));
        drop(debug::trace_guard());
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("trace.json");
        trace.save(&path).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), trace.json());
    }
}

/// A backend that cannot tell how long its kernels take.
struct Clockless(Arc<dyn Backend>);

impl Backend for Clockless {
    fn name(&self) -> &str {
        "clockless"
    }
    fn caps(&self) -> &Caps {
        self.0.caps()
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer, Fault> {
        self.0.alloc(bytes)
    }
    fn upload(&self, data: &[u8]) -> Result<Buffer, Fault> {
        self.0.upload(data)
    }
    fn download(&self, from: &Buffer, range: Range<usize>) -> Result<Vec<u8>, Fault> {
        self.0.download(from, range)
    }
    fn download_async(
        &self,
        from: &Buffer,
        range: Range<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, Fault>> + Send>> {
        self.0.download_async(from, range)
    }
    fn compile(&self, recording: &Recording, looks: bool) -> Result<Compiled, Fault> {
        self.0.compile(recording, looks)
    }
    fn run(
        &self,
        recording: &Recording,
        compiled: &Compiled,
        buffers: &[Buffer],
        scalars: &[Scalar],
    ) -> Result<Vec<Found>, Fault> {
        self.0.run(recording, compiled, buffers, scalars)
    }
    fn synchronize(&self) -> Result<(), Fault> {
        self.0.synchronize()
    }
    fn memory(&self) -> Memory {
        self.0.memory()
    }
    fn empty_cache(&self) {
        self.0.empty_cache();
    }
}

#[test]
fn without_timestamps_kernels_run_one_by_one_and_the_trace_says_so() {
    let _alone = alone();
    let d = Device::new(Arc::new(Clockless(wgrad::backend::cpu::device())));
    let x = ready(&d, &[64, 64]);
    let expected = (x.matmul(&x).sum_dim(0, false) * 2.0).to_f64_vec().unwrap();
    let before = d.stats().dispatches;
    let (y, trace) = debug::trace(|| x.matmul(&x).sum_dim(0, false) * 2.0).unwrap();
    assert_eq!(trace.kernels() as u64, d.stats().dispatches - before);
    assert!(trace.kernels() >= 2 && trace.json().contains("no timestamps"));
    assert!(of(&spans(&trace), "kernel").iter().all(|k| k.args["timed"] == "from the host"));
    assert_close(&y, &expected, 0.0, "the values");
}
