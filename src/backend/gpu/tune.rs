//! Choosing among kernels that give the same bits: first what compiles fast, then by the clock what runs fast on
//! this adapter, once, and kept on disk.
//!
//! What runs again is likely to run many times more. So after some runs of a plan the quick kernels, with which a software
//! driver has a first result early, are left for those that should run fastest; where a driver takes long to compile,
//! that goes on beside the plan's runs (see `ahead.rs`), and where it can't, the quick ones stay until so many runs are
//! seen that compiling others pays. Then kernels that have several ways are looked at, one after a run, with rests between
//! them: all ways are timed, on buffers of their own, until the process has spent `BUDGET` on this. As all ways
//! sum in one order, no result depends on what is chosen, nor on when. `WGRAD_AUTOTUNE=0` turns the timing off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backend::{Backend, Buffer, Fault, report};
use crate::graph::dtype::Scalar;
use crate::graph::kernel::{Body, Command, Kernel, Recording};

use super::ahead::{Ahead, Haste, Job, Progress};
use super::codegen::{self, Call};
use super::device::wait;
use super::pipeline::{LayoutKey, Plan};
use super::{Gpu, ShaderCall, disk};

/// Runs of a plan before its kernels are looked at, or the time since the first of them, whichever is less.
const PATIENCE: (u32, Duration) = (24, Duration::from_millis(600));
/// How often a plan takes what has been compiled for it meanwhile.
const TAKEN: Duration = Duration::from_millis(700);
/// What a process may spend on timing, most of it compiling.
const BUDGET: Duration = Duration::from_millis(1500);
/// Bytes of a kernel's buffers beyond which it is not timed.
const LARGE: usize = 256 << 20;
/// Operations that a run should have to be timed well.
const SEEN: u64 = 1 << 26;
/// How often each way is timed.
const REPEATS: usize = 7;

/// The ways to compute a call, equal in every bit; the first should run fastest, and is taken unless another was found
/// to do so.
pub struct Ways {
    /// What calls must have in common for the same way to be fastest. One line.
    pub key: String,
    /// Names, which are kept on disk, and what they stand for.
    pub ways: Vec<(String, Vec<ShaderCall>)>,
    /// The one that compiles fast.
    pub quick: Option<Quick>,
    /// Whether a run takes long enough to be timed.
    pub timed: bool,
}

/// A way to be taken as long as few runs are known of.
#[derive(Clone, Copy)]
pub struct Quick {
    /// Its place among the ways.
    pub at: usize,
    /// From so many runs on the others' compiling pays.
    pub runs: u32,
}

/// What was found fastest.
#[derive(Debug)]
pub struct Tuner {
    /// The file that choices are kept in; `None` where tuning is off.
    file: Option<String>,
    state: Mutex<State>,
}

/// Chosen instead of a name: whatever should be fastest, rather than the quick way.
const SETTLED: &str = "";

#[derive(Default, Debug)]
struct State {
    choices: HashMap<String, String>,
    /// How often plans took a kernel that has a quick way.
    uses: HashMap<String, u32>,
    spent: Duration,
}

impl Tuner {
    /// For an adapter with this `disk::id`.
    pub fn new(id: &str) -> Tuner {
        if std::env::var("WGRAD_AUTOTUNE").is_ok_and(|v| v == "0") {
            return Tuner::off();
        }
        let file = format!("tuned-{id}");
        let choices = parse(&disk::load(&file).unwrap_or_default());
        Tuner { file: Some(file), state: Mutex::new(State { choices, ..State::default() }) }
    }

    pub fn off() -> Tuner {
        Tuner { file: None, state: Mutex::default() }
    }

    /// The calls to make. Choices that are not among the ways (any more) count for nothing.
    pub fn pick(&self, mut ways: Ways) -> Vec<ShaderCall> {
        if ways.quick.is_some() {
            // Plans may differ in sizes and run once each.
            let mut state = self.state.lock();
            let uses = state.uses.entry(ways.key.clone()).or_default();
            *uses = uses.saturating_add(1);
        }
        let at = self.place(&ways);
        if ways.ways.is_empty() { vec![] } else { ways.ways.swap_remove(at).1 }
    }

    fn choose(&self, key: &str, name: &str) {
        self.state.lock().choices.insert(key.into(), name.into());
    }

    /// Whether one of the ways was chosen. (Another version of this library may have chosen what is no longer there.)
    fn knows(&self, ways: &Ways) -> bool {
        let state = self.state.lock();
        state.choices.get(&ways.key).is_some_and(|name| ways.ways.iter().any(|(way, _)| way == name))
    }

    /// Which of the ways is the one to take.
    fn place(&self, ways: &Ways) -> usize {
        let state = self.state.lock();
        let chosen = state.choices.get(&ways.key);
        let known = ways.ways.iter().position(|(way, _)| Some(way) == chosen);
        let few = |quick: &Quick| {
            let few = state.uses.get(&ways.key).is_none_or(|&uses| uses < quick.runs);
            few && chosen.is_none() && quick.at < ways.ways.len()
        };
        known.or(ways.quick.filter(few).map(|quick| quick.at)).unwrap_or(0)
    }

    /// From now on the quick way is not taken: what follows it was compiled, and the driver will have kept it.
    fn settle(&self, key: &str) {
        self.state.lock().choices.entry(key.into()).or_insert_with(|| SETTLED.into());
    }

    /// Whether there is time left for this.
    fn has_time(&self) -> bool {
        self.file.is_some() && self.state.lock().spent < BUDGET
    }

    fn keep(&self) {
        let Some(file) = &self.file else { return };
        let mut lines: Vec<String> =
            self.state.lock().choices.iter().map(|(key, name)| format!("{key}\t{name}\n")).collect();
        lines.sort_unstable();
        disk::store(file, lines.concat().as_bytes());
    }
}

/// Reads `key<tab>name` lines, and passes over anything else.
fn parse(text: &[u8]) -> HashMap<String, String> {
    let lines = String::from_utf8_lossy(text);
    lines.lines().filter_map(|l| l.split_once('\t')).map(|(k, n)| (k.into(), n.into())).collect()
}

/// A compiled recording, and what is known of its runs.
pub struct Repeated {
    plan: Mutex<Arc<Plan>>,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    runs: u32,
    /// When the first of these ended.
    since: Option<Instant>,
    /// Commands that may have several ways, those with the most operations last; known from the first look on.
    commands: Option<Vec<usize>>,
    /// Whether others are compiled for some of the quick kernels.
    waits: bool,
    /// Commands to be timed, the next one last, and since when its ways are compiled.
    left: Vec<usize>,
    compiling: Option<Instant>,
    /// Until then it is not looked at.
    rest: Option<Instant>,
    /// Places of the ways that commands have in the plan; of those not here, as one without findings has them.
    taken: HashMap<usize, usize>,
}

impl Repeated {
    pub fn new(plan: Plan) -> Repeated {
        Repeated { plan: Mutex::new(Arc::new(plan)), history: Mutex::default() }
    }

    pub fn plan(&self) -> Arc<Plan> {
        self.plan.lock().clone()
    }
}

impl History {
    /// Whether a command has another way in the plan than it should have by now; it may be another plan's finding.
    fn is_stale(&mut self, at: usize, ways: &Ways, tuner: &Tuner) -> bool {
        let place = tuner.place(ways);
        let taken = self.taken.entry(at).or_insert_with(|| ways.quick.map_or(0, |quick| quick.at));
        std::mem::replace(taken, place) != place
    }
}

impl Gpu {
    /// Called after each run of a plan. What goes wrong here concerns nobody: the plan stays as it is.
    pub(super) fn tune(&self, recording: &Recording, repeated: &Repeated, buffers: &[Buffer]) {
        // Another thread may be looking.
        let Some(mut history) = repeated.history.try_lock() else { return };
        let history = &mut *history;
        let (many, long) = PATIENCE;
        let now = Instant::now();
        let since = *history.since.get_or_insert(now);
        history.runs += 1;
        if history.runs < many && now - since < long {
            return;
        }
        // Kernels that are fast need more runs until it pays to look for something faster.
        let again = history.runs.is_multiple_of(many) && (history.runs / many).is_power_of_two();
        let is_compiled = || self.pipelines.ahead.as_ref().is_none_or(Ahead::is_done);
        let rests = history.rest.is_some_and(|rest| now < rest);
        let stale = if again || history.commands.is_none() || history.waits && (!rests || is_compiled()) {
            self.leave_quick(recording, history)
        } else if !history.waits && !rests {
            self.look(recording, history, buffers)
        } else {
            false
        };
        if !stale {
            return;
        }
        let looks = repeated.plan().looks;
        // It is the same plan, and no more use than before.
        let uses = self.info.tuner.state.lock().uses.clone();
        if let Ok(plan) = self.pipelines.compile(&self.device, &self.info, recording, looks) {
            *repeated.plan.lock() = Arc::new(plan);
        }
        self.info.tuner.state.lock().uses = uses;
    }

    /// Has the kernels that compile fast followed by those that run fast. Returns whether the plan is stale.
    fn leave_quick(&self, recording: &Recording, history: &mut History) -> bool {
        let commands = history.commands.get_or_insert_with(|| {
            let flops = |at: usize| match &recording.commands[at] {
                Command::Dispatch { kernel, .. } => flops(kernel),
                Command::Copy { .. } => 0,
            };
            let mut all: Vec<usize> = (0..recording.commands.len()).filter(|&at| flops(at) > 0).collect();
            all.sort_by_key(|&at| flops(at));
            all
        });
        let commands = commands.clone();
        history.waits = false;
        let tuner = &self.info.tuner;
        let mut stale = false;
        for &at in commands.iter().rev() {
            let Some((kernel, ways)) = self.ways(recording, at) else { continue };
            if let Some(quick) = ways.quick.filter(|quick| quick.at == tuner.place(&ways)) {
                let progress = self.prepare(kernel, &ways.key, Haste::Soon, &ways.ways[..1]);
                history.waits |= progress == Some(Progress::Compiling);
                if history.runs >= quick.runs || progress == Some(Progress::Compiled) {
                    tuner.settle(&ways.key);
                }
            }
            stale |= history.is_stale(at, &ways, tuner);
        }
        history.left = commands;
        history.rest = history.waits.then(|| Instant::now() + TAKEN).or(history.rest);
        if stale {
            tuner.keep();
        }
        stale
    }

    /// Times the next kernel, once its ways are compiled. Returns whether the plan is stale.
    fn look(&self, recording: &Recording, history: &mut History, buffers: &[Buffer]) -> bool {
        let tuner = &self.info.tuner;
        let mut stale = false;
        let mut timed = false;
        while !timed && let Some(&at) = history.left.last() {
            if let Some((kernel, ways)) = self.ways(recording, at) {
                if let Some(sizes) = self.sizes(recording, at, buffers)
                    && ways.timed
                    && tuner.has_time()
                    && !tuner.knows(&ways)
                {
                    let begun = *history.compiling.get_or_insert_with(Instant::now);
                    let progress = self.prepare(kernel, &ways.key, Haste::Luxury, &ways.ways);
                    if progress == Some(Progress::Compiling) {
                        break;
                    }
                    history.compiling = None;
                    timed = progress != Some(Progress::Never);
                    if timed {
                        self.time(kernel, &ways, &sizes);
                        // What a driver on the CPU compiles, it compiles at the cost of the plan's runs.
                        let rest = begun.elapsed() * if self.info.on_cpu { 4 } else { 1 };
                        history.rest = Some(Instant::now() + rest);
                    }
                }
                stale |= history.is_stale(at, &ways, tuner);
            }
            history.left.pop();
        }
        stale
    }

    /// The kernel of a command that has several ways, and these.
    fn ways<'a>(&self, recording: &'a Recording, at: usize) -> Option<(&'a Arc<Kernel>, Ways)> {
        let Command::Dispatch { kernel, .. } = &recording.commands[at] else { return None };
        let Body::Structured(call) = &kernel.body else { return None };
        let ways = call.op.0.ways(call, &self.info).filter(|w| w.ways.len() > 1)?;
        Some((kernel, ways))
    }

    /// Bytes of a dispatch's buffers, if they are not too large to be timed.
    fn sizes(&self, recording: &Recording, at: usize, buffers: &[Buffer]) -> Option<Vec<usize>> {
        let Command::Dispatch { buffers: slots, .. } = &recording.commands[at] else { return None };
        let sizes: Option<Vec<usize>> =
            slots.iter().map(|&s| buffers.get(s as usize).map(|b| b.bytes)).collect();
        sizes.filter(|s| s.iter().sum::<usize>() <= LARGE)
    }

    /// Compiles some ways of a kernel beside the work. `None` where all is compiled when it is first run.
    fn prepare(
        &self,
        kernel: &Kernel,
        key: &str,
        haste: Haste,
        ways: &[(String, Vec<ShaderCall>)],
    ) -> Option<Progress> {
        let ahead = self.pipelines.ahead.as_ref()?;
        // What is fused to a product is no part of its key.
        let name = format!("{} {key} {}", ways.len(), kernel.label);
        Some(ahead.prepare(&name, haste, || {
            let call = |(_, calls): &(String, Vec<ShaderCall>)| {
                codegen::generate_by(kernel, &self.info, false, |_| calls.clone()).unwrap_or_default()
            };
            let job =
                |call: Call| Job { label: kernel.label.clone(), layout: LayoutKey::new(kernel, &call), call };
            ways.iter().flat_map(call).map(job).collect()
        }))
    }

    /// Times each way of a kernel, and keeps which is the fastest: the first, where that fails.
    fn time(&self, kernel: &Arc<Kernel>, ways: &Ways, sizes: &[usize]) {
        let begun = Instant::now();
        let tuner = &self.info.tuner;
        if self.fastest(kernel, ways, sizes).is_err() {
            tuner.choose(&ways.key, &ways.ways[0].0);
        }
        tuner.state.lock().spent += begun.elapsed();
        tuner.keep();
    }

    /// Times each way of a kernel, and chooses the fastest.
    fn fastest(&self, kernel: &Arc<Kernel>, ways: &Ways, sizes: &[usize]) -> Result<(), Fault> {
        let buffers = sizes.iter().map(|&bytes| self.alloc(bytes)).collect::<Result<Vec<_>, _>>()?;
        let slots = (0..buffers.len() as u32).collect();
        let command = Command::Dispatch { kernel: kernel.clone(), buffers: slots, scalars: 0 };
        // As often as it takes to see what the kernel costs, beside what a run costs.
        let flops = flops(kernel);
        let times = (SEEN / flops.max(SEEN / 16)).max(1) as usize;
        let recording = Recording { commands: vec![command; times] };
        let scalars = vec![Scalar::Float(0.0); kernel.scalars.len()];
        wait(&self.device, None)?;
        let run = |plan: &Plan| {
            let start = Instant::now();
            self.run_plan(plan, &buffers, &scalars)?;
            wait(&self.device, None)?;
            Ok(start.elapsed())
        };
        let begun = Instant::now();
        let mut plans = vec![];
        for (name, _) in &ways.ways {
            if begun.elapsed() > BUDGET / 2 {
                break;
            }
            self.info.tuner.choose(&ways.key, name);
            let plan = self.pipelines.compile(&self.device, &self.info, &recording, false)?;
            // The first time may include the driver's compiling.
            run(&plan)?;
            plans.push((vec![], name, plan));
        }
        // Turn by turn, in parts of the first one's time, so that what else goes on in the machine slows all ways alike.
        for _ in 0..REPEATS {
            let mut first = None;
            for (parts, _, plan) in &mut plans {
                let time: Duration = run(plan)?;
                parts.push(time.as_secs_f64() / first.get_or_insert(time).as_secs_f64().max(1e-9));
            }
        }
        let median = |parts: &mut Vec<f64>| {
            parts.sort_unstable_by(f64::total_cmp);
            parts.get(parts.len() / 2).copied().unwrap_or(1.0)
        };
        let parts = plans.iter_mut().map(|(parts, name, _)| (median(parts), *name));
        let best = (parts.min_by(|(a, _), (b, _)| a.total_cmp(b)))
            // By less than this it is not faster, but lucky.
            .filter(|(part, _)| *part < 0.95)
            .or(ways.ways.first().map(|(name, _)| (1.0, name)));
        if let Some((part, name)) = best {
            self.info.tuner.choose(&ways.key, name);
            if report::level() >= 1 {
                eprintln!(
                    "wgrad {}: {} by {name}, in {part:.2} of the first's time",
                    self.info.name, ways.key
                );
            }
        }
        Ok(())
    }
}

fn flops(kernel: &Kernel) -> u64 {
    match &kernel.body {
        Body::Structured(call) => call.op.0.flops(call),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(entry: &'static str) -> Vec<ShaderCall> {
        vec![ShaderCall { shader: "x", entry, defines: vec![], params: vec![], workgroups: [1; 3] }]
    }

    fn ways() -> Ways {
        let ways = vec![("a".into(), call("a")), ("b".into(), call("b"))];
        Ways { key: "k".into(), ways, quick: None, timed: true }
    }

    #[test]
    fn the_first_way_unless_another_is_known() {
        let tuner = Tuner::off();
        assert_eq!(tuner.pick(ways())[0].entry, "a");
        tuner.choose("k", "b");
        assert_eq!(tuner.pick(ways())[0].entry, "b");
        assert!(tuner.knows(&ways()));
        tuner.choose("k", "gone");
        assert_eq!(tuner.pick(ways())[0].entry, "a");
        assert!(!tuner.knows(&ways()));
        assert!(!tuner.has_time(), "off is off");
        assert!(tuner.pick(Ways { ways: vec![], ..ways() }).is_empty());
    }

    #[test]
    fn the_quick_way_until_there_were_many_uses() {
        let quick = || Ways { quick: Some(Quick { at: 1, runs: 9 }), ..ways() };
        let tuner = Tuner::off();
        for _ in 1..9 {
            assert_eq!(tuner.pick(quick())[0].entry, "b");
        }
        assert_eq!(tuner.pick(quick())[0].entry, "a");

        let tuner = Tuner::off();
        assert_eq!(tuner.pick(quick())[0].entry, "b");
        tuner.settle("k");
        assert_eq!(tuner.pick(quick())[0].entry, "a");
        assert!(!tuner.knows(&quick()), "it was not timed");
        tuner.choose("k", "b");
        tuner.settle("k");
        assert_eq!(tuner.pick(quick())[0].entry, "b", "what was timed stays");

        let tuner = Tuner::off();
        tuner.choose("k", "a");
        assert_eq!(tuner.pick(quick())[0].entry, "a", "what is known needs no uses");
        assert_eq!(Tuner::off().pick(Ways { quick: Some(Quick { at: 7, runs: 9 }), ..ways() })[0].entry, "a");
    }

    #[test]
    fn a_file_of_anything_is_read() {
        assert!(parse(b"\xff\xfe nothing\n\n").is_empty());
        let known = parse(b"junk\nk\tb\nx\ty\tz\n");
        assert_eq!(known.get("k").map(String::as_str), Some("b"));
    }

    #[test]
    fn the_environment_turns_it_off() {
        let off = std::env::var("WGRAD_AUTOTUNE").is_ok_and(|v| v == "0");
        assert_eq!(Tuner::new(&format!("none-{}", std::process::id())).has_time(), !off);
        if off {
            return;
        }
        // The environment of a process with threads must not change; another one's may.
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "backend::gpu::tune::tests::the_environment_turns_it_off";
        let out = again.args(["--exact", name]).env("WGRAD_AUTOTUNE", "0").output().unwrap();
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("1 passed"), "{out:?}");
    }

    #[test]
    fn choices_outlive_the_process() {
        let id = format!("test-{}", std::process::id());
        let tuner = Tuner::new(&id);
        tuner.choose("k", "b");
        tuner.settle("l");
        tuner.keep();
        let Some(file) = tuner.file.clone().filter(|f| disk::load(f).is_some()) else { return };
        assert_eq!(Tuner::new(&id).pick(ways())[0].entry, "b");
        let quick = || Ways { quick: Some(Quick { at: 1, runs: 9 }), ..ways() };
        assert_eq!(Tuner::new(&id).pick(Ways { key: "l".into(), ..quick() })[0].entry, "a");
        assert_eq!(Tuner::new(&id).pick(Ways { key: "m".into(), ..quick() })[0].entry, "b");
        disk::store(&file, b"\xff junk");
        assert_eq!(Tuner::new(&id).pick(ways())[0].entry, "a");
        disk::remove(&file);
    }
}
