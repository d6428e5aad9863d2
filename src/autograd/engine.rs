//! The backward pass: functions in reverse order of recording, each once, gradients summed where paths meet.

use std::cell::RefCell;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

pub(super) use super::accumulate::accumulate;
use super::anomaly::noting;
use super::function::{Edge, GradFn, Work};
use super::hooks::{self, Hook, Hooks};
use super::mode::record_gradients;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::parts::add_gradients;
use crate::tensor::Tensor;

/// The address of a function, as its identity while the graph is held.
type Key = *const GradFn;

/// One run of the engine.
pub(super) struct Pass {
    retain: bool,
    create_graph: bool,
    /// On whose behalf, for errors.
    op: &'static str,
    caller: &'static Location<'static>,
    /// Consumers of a function that have yet to run.
    waiting: HashMap<Key, usize>,
    heap: BinaryHeap<Next>,
    grads: HashMap<Key, SmallVec<[Option<Tensor>; 1]>>,
    ready: HashMap<Key, Arc<GradFn>>,
}

/// Where a pass ends.
#[derive(Clone, Copy)]
pub(super) enum Ends<'a> {
    /// In all leaves, which accumulate.
    Leaves,
    /// At these tensors, which accumulate, leaves or not, and no others.
    Into(&'a [Edge]),
    /// At these tensors, whose gradients are given instead of accumulated.
    Catch(&'a [Edge]),
}

/// Latest recorded first.
struct Next(Arc<GradFn>);

impl Pass {
    pub fn new(
        retain: bool,
        create_graph: bool,
        op: &'static str,
        caller: &'static Location<'static>,
    ) -> Pass {
        Pass {
            retain,
            create_graph,
            op,
            caller,
            waiting: HashMap::new(),
            heap: BinaryHeap::new(),
            grads: HashMap::new(),
            ready: HashMap::new(),
        }
    }

    /// Runs from `roots` with their gradients, to the `ends`. Gives what was [caught](Ends::Catch) there.
    pub fn run(mut self, roots: Vec<(Edge, Tensor)>, ends: Ends) -> Result<Vec<Option<Tensor>>> {
        let _running = Running::start();
        self.count_dependencies(roots.iter().map(|(e, _)| e.function.clone()).collect());
        // The functions that run; all of them if there is no set.
        let needed = match ends {
            Ends::Leaves => None,
            Ends::Catch(ends) => Some(self.leading_to(ends)),
            // What makes these tensors runs too, and accumulators are what makes leaves.
            Ends::Into(ends) => {
                let mut needed = self.leading_to(ends);
                needed.extend(ends.iter().map(|e| Arc::as_ptr(&e.function)));
                Some(needed)
            }
        };
        let catch = if let Ends::Catch(ends) = ends { ends } else { &[] };
        let caught_at: HashSet<Key> = catch.iter().map(|e| Arc::as_ptr(&e.function)).collect();
        let runs = |key: Key| needed.as_ref().is_none_or(|n| n.contains(&key));
        let wanted = |key: Key| runs(key) || caught_at.contains(&key);
        let _mode = record_gradients(self.create_graph);
        let mut caught: Vec<Option<Tensor>> = vec![None; catch.len()];
        for (edge, gradient) in roots {
            self.deliver(&edge, gradient, None)?;
            self.arm(&edge.function);
        }
        while let Some(next) = self.heap.pop() {
            let f = next.0;
            let key = Arc::as_ptr(&f);
            let mut grads = self.grads.remove(&key).unwrap_or_default();
            grads.resize(f.outputs.len(), None);
            // What leads nowhere that was asked for is passed over, hooks and all.
            let hooks = if wanted(key) { f.current_hooks() } else { vec![] };
            if !hooks.is_empty() {
                self.arrive(&hooks, &mut grads)?;
            }
            if caught_at.contains(&key) {
                for (end, caught) in catch.iter().zip(&mut caught) {
                    if Arc::as_ptr(&end.function) == key {
                        *caught = grads.get(end.output).cloned().flatten();
                    }
                }
            }
            // Also where no gradient arrived: a `Function` may want zeros, and what was saved is to be freed.
            if runs(key) {
                hooks::before(&hooks, &mut grads)?;
                let mut inputs = noting(&f, || self.apply(&f, &grads))?;
                inputs.resize(f.edges.len(), None);
                hooks::after(&hooks, &mut inputs, &grads)?;
                for (edge, grad) in f.edges.iter().zip(inputs) {
                    if let (Some(edge), Some(grad)) = (edge, grad)
                        && wanted(Arc::as_ptr(&edge.function))
                    {
                        self.deliver(edge, grad, Some(&f))?;
                    }
                }
            }
            for edge in f.edges.iter().flatten() {
                self.arm(&edge.function);
            }
        }
        Ok(caught)
    }

    /// What hooks on tensors do with gradients that have arrived.
    fn arrive(&self, hooks: &Hooks, grads: &mut [Option<Tensor>]) -> Result<()> {
        for (output, slot) in grads.iter_mut().enumerate() {
            let Some(grad) = slot.take() else { continue };
            let grad = hooks::on_output(hooks, output, grad)?;
            for entry in hooks {
                if let Hook::Retain(of, tensor) = &entry.hook
                    && *of == output
                    && let Some(tensor) = tensor.upgrade()
                {
                    accumulate(&tensor, grad.clone(), self.create_graph)?;
                }
            }
            *slot = Some(grad);
        }
        Ok(())
    }

    /// Gives a function its outputs' gradients.
    fn apply(&self, f: &Arc<GradFn>, grads: &[Option<Tensor>]) -> Result<SmallVec<[Option<Tensor>; 3]>> {
        let mut work = f.work.lock();
        let formula = match &*work {
            Work::Accumulate(leaf) => {
                let leaf = leaf.upgrade();
                drop(work);
                if let (Some(leaf), Some(Some(grad))) = (leaf, grads.first()) {
                    accumulate(&leaf, grad.clone(), self.create_graph)?;
                    hooks::accumulated(&leaf);
                }
                return Ok(SmallVec::new());
            }
            Work::Freed => {
                let message = format!(
                    "Trying to backward through the graph a second time (or directly access saved tensors after they \
                     have already been freed). Saved intermediate values of the graph are freed when you call \
                     .backward() or autograd.grad(). Specify retain_graph=true if you need to backward through the \
                     graph a second time. The function is {} of {}",
                    f.name(),
                    f.caller()
                );
                return Err(Error::at(self.caller, ErrorKind::Autograd, self.op, message));
            }
            Work::Formula(formula) => formula.clone(),
        };
        if !self.retain && f.saves() {
            *work = Work::Freed;
        }
        // It may run passes of its own, over this function too.
        drop(work);
        Ok(on_line_of(f.caller(), || formula(f, grads)))
    }

    fn count_dependencies(&mut self, mut stack: Vec<Arc<GradFn>>) {
        for root in &stack {
            // The caller is a consumer too.
            *self.waiting.entry(Arc::as_ptr(root)).or_default() += 1;
        }
        while let Some(f) = stack.pop() {
            if self.ready.insert(Arc::as_ptr(&f), f.clone()).is_some() {
                continue;
            }
            for edge in f.edges.iter().flatten() {
                *self.waiting.entry(Arc::as_ptr(&edge.function)).or_default() += 1;
                stack.push(edge.function.clone());
            }
        }
    }

    /// One consumer has run; with the last, the function may.
    fn arm(&mut self, f: &Arc<GradFn>) {
        if let Some(waiting) = self.waiting.get_mut(&Arc::as_ptr(f)) {
            *waiting = waiting.saturating_sub(1);
            if *waiting == 0 {
                self.waiting.remove(&Arc::as_ptr(f));
                self.heap.push(Next(f.clone()));
            }
        }
    }

    /// Adds a gradient to those that wait at an edge's end; `from` computed it.
    fn deliver(&mut self, edge: &Edge, grad: Tensor, from: Option<&GradFn>) -> Result<()> {
        if let Some(error) = grad.error() {
            return Err(error);
        }
        let grad = match edge.function.outputs().get(edge.output) {
            Some(output) if !output.fits(&grad) => output.fit(grad).map_err(|message| {
                let who = from.map_or("GraphRoot", GradFn::name);
                let message = format!("Function {who} returned an invalid gradient: {message}");
                Error::at(from.map_or(self.caller, GradFn::caller), ErrorKind::Shape, self.op, message)
            })?,
            _ => grad,
        };
        let slots = self.grads.entry(Arc::as_ptr(&edge.function)).or_default();
        if slots.len() <= edge.output {
            slots.resize(edge.function.outputs.len().max(edge.output + 1), None);
        }
        let slot = &mut slots[edge.output];
        *slot = Some(match slot.take() {
            None => grad,
            Some(sum) => add_gradients(&sum, &grad),
        });
        Ok(())
    }

    /// The functions from which an end can be reached (excluding the ends, unless on the way to others).
    fn leading_to(&self, ends: &[Edge]) -> HashSet<Key> {
        // Consumers have higher sequence numbers, leaves the highest of all: producers first.
        let mut all: Vec<&Arc<GradFn>> = self.ready.values().collect();
        all.sort_unstable_by_key(|f| (f.sequence.wrapping_add(1), Arc::as_ptr(f)));
        let ends: HashSet<Key> = ends.iter().map(|t| Arc::as_ptr(&t.function)).collect();
        let mut leads = HashSet::new();
        for f in all {
            let reaches = f.edges.iter().flatten().any(|e| {
                let k = Arc::as_ptr(&e.function);
                ends.contains(&k) || leads.contains(&k)
            });
            if reaches {
                leads.insert(Arc::as_ptr(f));
            }
        }
        leads
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Next) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Next {}
impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Next) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Next {
    fn cmp(&self, other: &Next) -> std::cmp::Ordering {
        self.0.sequence.cmp(&other.0.sequence)
    }
}

type AtEnd = Box<dyn FnOnce()>;

thread_local! {
    /// The passes that this thread is in, each with what is to be done when it ends.
    static RUNNING: RefCell<Vec<(u64, Vec<AtEnd>)>> = const { RefCell::new(vec![]) };
}

/// Ends a pass, also when it fails or unwinds.
struct Running;

impl Running {
    fn start() -> Running {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        RUNNING.with_borrow_mut(|passes| passes.push((id, vec![])));
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = RUNNING.with_borrow_mut(Vec::pop);
        ended.into_iter().flat_map(|(_, todo)| todo).for_each(|f| f());
    }
}

/// The pass that this thread is in.
pub(super) fn current_pass() -> Option<u64> {
    RUNNING.with_borrow(|passes| passes.last().map(|(id, _)| *id))
}

/// Calls `f` when the pass that this thread is in has ended.
pub(super) fn at_end_of_pass(f: impl FnOnce() + 'static) {
    RUNNING.with_borrow_mut(|passes| {
        if let Some((_, todo)) = passes.last_mut() {
            todo.push(Box::new(f));
        }
    });
}
