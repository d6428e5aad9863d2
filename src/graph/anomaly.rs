//! Watching for NaN: what a thread records while it does is run by kernels that look at each number they store, with
//! one small read behind each flush. Only if something was seen is the flush run again, kernel by kernel up to
//! the first that made NaN of numbers, to find which of the ops in it did (`culprit.rs`).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::culprit::{self, Scene, Source};
use super::device::Device;
use super::dtype::Scalar;
use super::kernel::{Command, Recording};
use super::node::{Node, Operand, State};
use super::observe::contents;
use super::plan::Plan;
use super::schedule::Value;
use crate::backend::{Buffer, Fault, Found};
use crate::error::{Error, ErrorKind};

/// What is watched for beside NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    pub inf: bool,
}

impl Watch {
    /// What a flush watches for, whose nodes so far ask for `this`, and the next as noted.
    pub(super) fn join(this: &mut Option<Watch>, note: Option<&Note>) {
        if let Some(note) = note {
            let inf = this.is_some_and(|w| w.inf) || note.scope.watch.inf;
            *this = Some(Watch { inf });
        }
    }

    fn minds(self, found: Found) -> bool {
        found.nan || (self.inf && found.inf)
    }
}

/// A time during which a thread watches. What it records belongs to it and is looked at by whichever thread runs it:
/// a flush runs everyone's values.
pub struct Scope {
    watch: Watch,
    /// The first error that was met.
    first: Mutex<Option<Error>>,
    /// Where something was recorded.
    devices: Mutex<Vec<Device>>,
}

/// What a pending node says of its recording.
#[derive(Clone)]
pub struct Note {
    scope: Arc<Scope>,
    /// The backward function that recorded it.
    pub function: Option<&'static str>,
    /// Which of that function's results it is.
    pub output: Option<usize>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Scope>>> = RefCell::new(by_environment());
    static FUNCTION: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Whether anyone ever watched: until then recording need not ask its thread.
static EVER: AtomicBool = AtomicBool::new(false);

/// `WGRAD_ANOMALY=1` makes all threads watch.
fn asked_by_environment() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var("WGRAD_ANOMALY").is_ok_and(|v| v != "0" && !v.is_empty()))
}

fn by_environment() -> Option<Arc<Scope>> {
    asked_by_environment().then(|| Scope::new(Watch { inf: false }))
}

impl Scope {
    pub fn new(watch: Watch) -> Arc<Scope> {
        EVER.store(true, Ordering::Relaxed);
        Arc::new(Scope { watch, first: Mutex::default(), devices: Mutex::default() })
    }

    /// Makes this thread watch, or not, and returns what it did.
    pub fn enter(scope: Option<Arc<Scope>>) -> Option<Arc<Scope>> {
        CURRENT.replace(scope)
    }

    pub fn current() -> Option<Arc<Scope>> {
        if !EVER.load(Ordering::Relaxed) && !asked_by_environment() {
            return None;
        }
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs what was recorded.
    pub fn flush(&self) {
        let devices = std::mem::take(&mut *self.devices.lock());
        devices.iter().for_each(Device::flush);
    }

    /// The first error that was met.
    pub fn first(&self) -> Option<Error> {
        self.first.lock().clone()
    }

    /// Puts another in its place.
    pub fn replace_first(&self, error: Option<Error>) -> Option<Error> {
        std::mem::replace(&mut *self.first.lock(), error)
    }

    fn meet(&self, error: &Error) {
        self.first.lock().get_or_insert_with(|| error.clone());
    }
}

/// Runs `f`, so that what it records says that this function recorded it.
pub fn within<R>(function: &'static str, f: impl FnOnce() -> R) -> R {
    /// Restores also when unwinding.
    struct Restore(Option<&'static str>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FUNCTION.set(self.0);
        }
    }
    let _restore = Restore(FUNCTION.replace(Some(function)));
    f()
}

/// For something that is recorded on this device now.
pub(super) fn note(device: &Device) -> Option<Box<Note>> {
    let scope = Scope::current()?;
    let mut known = scope.devices.lock();
    if !known.contains(device) {
        known.push(device.clone());
    }
    drop(known);
    Some(Box::new(Note { scope, function: FUNCTION.get(), output: None }))
}

fn note_of(node: &Node) -> Option<Note> {
    match &*node.state.lock() {
        State::Pending(recipe) => recipe.note.as_deref().cloned(),
        _ => None,
    }
}

/// A flush, run but not settled.
pub(super) struct Run<'a> {
    pub device: &'a Device,
    pub plan: &'a Plan,
    pub nodes: &'a [Arc<Node>],
    pub leaves: &'a [Arc<Node>],
    pub buffers: &'a [Buffer],
    pub scalars: &'a [Scalar],
    /// The number of a pending node.
    pub index: &'a dyn Fn(&Node) -> Option<usize>,
}

/// Anomalies beyond this many in one flush count as the last of them.
const MOST: usize = 16;

/// Looks for what was stored that must not be, and gives the error of each node that is spoilt by it (and was recorded
/// by a thread that watches).
pub(super) fn examine(run: &Run<'_>, found: &[Found], watch: Watch) -> Vec<Option<Error>> {
    if !found.iter().any(|f| watch.minds(*f)) {
        return vec![];
    }
    let (errors, partials) = Default::default();
    let mut search = Search { run, found, watch, errors, spoilt: vec![None; run.nodes.len()], partials };
    if let Err(fault) = search.again() {
        search.give_up(&fault);
    }
    let mut met: Vec<(usize, Arc<Scope>)> = vec![];
    let mut out = vec![None; run.nodes.len()];
    for (i, node) in run.nodes.iter().enumerate() {
        if let (Some(number), Some(note)) = (search.spoilt[i], note_of(node)) {
            let (error, nan) = &search.errors[number];
            if *nan || note.scope.watch.inf {
                out[i] = Some(error.clone());
                met.push((number, note.scope));
            }
        }
    }
    // Errors were found in the order of the kernels.
    met.sort_by_key(|(number, _)| *number);
    met.iter().for_each(|(number, scope)| scope.meet(&search.errors[*number].0));
    out
}

struct Search<'a> {
    run: &'a Run<'a>,
    found: &'a [Found],
    watch: Watch,
    /// And whether it is NaN, else infinity.
    errors: Vec<(Error, bool)>,
    /// Of each node: the number of the error that spoilt it.
    spoilt: Vec<Option<usize>>,
    /// The same of partial results of reductions.
    partials: HashMap<usize, usize>,
}

impl Search<'_> {
    fn minds(&self, command: usize) -> bool {
        self.found.get(command).is_some_and(|f| self.watch.minds(*f))
    }

    /// The nodes that a command stores.
    fn stored(&self, command: usize) -> impl Iterator<Item = usize> + '_ {
        let kernel = match &self.run.plan.recording.commands[command] {
            Command::Dispatch { kernel, .. } => Some(kernel),
            Command::Copy { .. } => None,
        };
        let values = self.run.plan.origins.get(command).map_or(&[][..], |(_, values)| values);
        let bindings = kernel.map_or(&[][..], |k| &k.bindings);
        values.iter().zip(bindings).filter_map(|(value, binding)| match value {
            Value::Node(i) if binding.written => Some(*i),
            _ => None,
        })
    }

    /// Runs the flush once more, beside it: leaves are as they were, since a plan that looks overwrites none.
    fn again(&mut self) -> Result<(), Fault> {
        let (plan, backend) = (self.run.plan, self.run.device.backend());
        let buffers = plan.allocate(self.run.buffers[..plan.leaves].to_vec(), backend)?;
        let commands = &plan.recording.commands;
        let go = |commands: &[Command]| -> Result<(), Fault> {
            let some = Recording { commands: commands.to_vec() };
            let compiled = backend.compile(&some, true)?;
            backend.run(&some, &compiled, &buffers, self.run.scalars).map(drop)
        };
        let mut done = 0;
        for at in 0..commands.len() {
            // What is known to be spoilt need not be looked at.
            let news = self.stored(at).next().is_none() || self.stored(at).any(|i| self.spoilt[i].is_none());
            let Command::Dispatch { kernel, buffers: slots, scalars: first } = &commands[at] else {
                continue;
            };
            if !self.minds(at) || !news {
                continue;
            }
            go(&commands[done..at])?;
            let bound: Vec<Buffer> = slots.iter().map(|&s| buffers[s as usize].clone()).collect();
            let before = contents(backend, &bound)?;
            go(&commands[at..=at])?;
            done = at + 1;
            let scalars = &self.run.scalars[*first..*first + kernel.scalars.len()];
            let (origin, values) = &plan.origins[at];
            let scene = Scene { kernel, origin, before: &before, scalars };
            self.look(&scene, values, &contents(backend, &bound)?)?;
        }
        Ok(())
    }

    /// Looks at what one kernel stored.
    fn look(&mut self, scene: &Scene<'_>, values: &[Value], after: &[Vec<u8>]) -> Result<(), Fault> {
        for place in culprit::bad_places(scene.kernel, after, self.watch.inf) {
            let stored = values.get(place.binding).copied();
            if stored.is_some_and(|value| self.error_of(value).is_some()) {
                continue;
            }
            let source = if self.errors.len() < MOST { Some(culprit::source(scene, &place)?) } else { None };
            let inherited = match &source {
                Some(Source::Given { binding: Some(b), .. }) if !scene.kernel.bindings[*b].written => {
                    values.get(*b).and_then(|&value| self.error_of(value))
                }
                Some(_) => None,
                None => self.errors.len().checked_sub(1),
            };
            if inherited.is_none() && !place.nan && matches!(source, Some(Source::Given { .. })) {
                // Infinity that someone put in is meant.
                continue;
            }
            let number = inherited.unwrap_or_else(|| {
                let error = self.name(scene, values, source.unwrap_or(Source::Unknown), stored, place.nan);
                self.errors.push((error, place.nan));
                self.errors.len() - 1
            });
            match stored {
                Some(Value::Node(i)) => self.spoilt[i] = Some(number),
                Some(Value::Partial(i)) => drop(self.partials.insert(i, number)),
                _ => {}
            }
        }
        self.spread();
        Ok(())
    }

    fn error_of(&self, value: Value) -> Option<usize> {
        match value {
            Value::Node(i) => self.spoilt[i],
            Value::Partial(i) => self.partials.get(&i).copied(),
            Value::Leaf(_) => None,
        }
    }

    /// What is made from a spoilt value is spoilt.
    fn spread(&mut self) {
        for (i, node) in self.run.nodes.iter().enumerate() {
            if self.spoilt[i].is_none() {
                self.spoilt[i] = self.reads(node).filter_map(|input| self.spoilt[input]).min();
            }
        }
    }

    fn reads(&self, node: &Node) -> impl Iterator<Item = usize> + use<> {
        let state = node.state.lock();
        let inputs: Vec<usize> = match &*state {
            State::Pending(recipe) => (recipe.inputs.iter())
                .filter_map(|input| match input {
                    Operand::Node(n, _) if n.buffer().is_none() => (self.run.index)(n),
                    _ => None,
                })
                .collect(),
            _ => vec![],
        };
        inputs.into_iter()
    }

    fn name(
        &self,
        scene: &Scene<'_>,
        values: &[Value],
        source: Source,
        stored: Option<Value>,
        nan: bool,
    ) -> Error {
        let what = if nan { "nan" } else { "inf" };
        let kernel = scene.kernel;
        let (node, why) = match source {
            Source::Made(node) => (node.map(|n| n as usize), String::new()),
            Source::Given { binding, by } => {
                let from = binding.and_then(|b| match (values.get(b)?, kernel.bindings.get(b)?.written) {
                    (Value::Leaf(i), false) => self.run.leaves.get(*i),
                    (Value::Node(i), false) => self.run.nodes.get(*i),
                    _ => None,
                });
                let whose = match from {
                    Some(n) => format!("an operand of shape {:?}, made at {}", &n.shape[..], n.caller),
                    None => "a number among its operands".into(),
                };
                (by.map(|n| n as usize), format!(": they came in with {whose}"))
            }
            Source::Unknown => {
                (None, " (and does not on the cpu, from the same inputs: see debug::diff)".into())
            }
        };
        let stored = if let Some(Value::Node(i)) = stored { Some(i) } else { None };
        let Some((i, node)) = node.or(stored).and_then(|i| Some((i, self.run.nodes.get(i)?))) else {
            let message = format!("{} returned {what} values{why}", kernel.label);
            return Error::at(kernel.caller, ErrorKind::Autograd, "", message);
        };
        let (op, operands) = node.recipe_in_words();
        let shapes = format!("{operands} to {:?} on {}", &node.shape[..], self.run.device);
        let (op, message) = match note_of(node).and_then(|note| note.function) {
            None => (op, format!("returned {what} values{why}; shapes {shapes}")),
            Some(function) => {
                let output = self.output(i).map(|n| format!(" in its {n}th output")).unwrap_or_default();
                let message = format!(
                    "Function '{function}' returned {what} values{output}{why}; {op} of shapes {shapes}. The line is \
                     that of the forward op"
                );
                ("backward", message)
            }
        };
        Error::at(node.caller, ErrorKind::Autograd, op, message)
    }

    /// Which of its function's gradients a node went into.
    fn output(&self, node: usize) -> Option<usize> {
        let (nodes, mut reached) = (self.run.nodes, vec![false; self.run.nodes.len()]);
        let function = note_of(&nodes[node])?.function;
        reached[node] = true;
        (node..nodes.len()).find_map(|i| {
            reached[i] |= self.reads(&nodes[i]).any(|input| reached[input]);
            let same = |note: &Note| note.function == function && nodes[i].caller == nodes[node].caller;
            if reached[i] { note_of(&nodes[i]).filter(same)?.output } else { None }
        })
    }

    /// It could not be looked at more closely: for want of memory, most likely.
    fn give_up(&mut self, fault: &Fault) {
        for at in 0..self.found.len() {
            let Some(Command::Dispatch { kernel, .. }) = self.run.plan.recording.commands.get(at) else {
                continue;
            };
            if self.found[at].nan {
                let message = format!(
                    "{} returned nan values (which of its ops did is not known: {})",
                    kernel.label, fault.message
                );
                self.errors.push((Error::at(kernel.caller, ErrorKind::Autograd, "", message), true));
                let (number, stored) = (self.errors.len() - 1, self.stored(at).collect::<Vec<_>>());
                for i in stored {
                    self.spoilt[i].get_or_insert(number);
                }
            }
        }
        self.spread();
    }
}
