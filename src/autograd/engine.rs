//! The backward pass: functions in reverse order of recording, each once, gradients summed where paths meet.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::panic::Location;
use std::slice;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::function::{Edge, GradFn, Work};
use super::mode::set_grad_enabled;
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::ops::parts::add_gradients;
use crate::tensor::Tensor;

/// How to run a backward pass: the arguments of PyTorch's `Tensor.backward`.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([3]).requires_grad_(true);
/// let y = &x * &x;
/// y.backward_with(Backward::new().gradient(&ones([3])).retain_graph(true))?;
/// y.backward_with(&ones([3]))?; // a tensor alone is the gradient
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [4.0; 3]);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Backward {
    gradient: Option<Tensor>,
    retain_graph: Option<bool>,
    create_graph: bool,
    inputs: Option<Vec<Tensor>>,
}

impl Backward {
    pub fn new() -> Backward {
        Backward::default()
    }

    /// The gradient of the tensor that `backward` is called on; needed unless it has one element.
    pub fn gradient(mut self, gradient: &Tensor) -> Backward {
        self.gradient = Some(gradient.clone());
        self
    }

    /// Keep what was saved, so that another pass can go through the same graph. By default as `create_graph`.
    pub fn retain_graph(mut self, retain: bool) -> Backward {
        self.retain_graph = Some(retain);
        self
    }

    /// Record the backward pass itself, for gradients of gradients.
    pub fn create_graph(mut self, create: bool) -> Backward {
        self.create_graph = create;
        self
    }

    /// Accumulate into these tensors only.
    pub fn inputs(mut self, inputs: &[&Tensor]) -> Backward {
        self.inputs = Some(inputs.iter().map(|&t| t.clone()).collect());
        self
    }
}

impl From<&Tensor> for Backward {
    fn from(gradient: &Tensor) -> Backward {
        Backward::new().gradient(gradient)
    }
}

impl Tensor {
    /// Computes the gradients of this one-element tensor with respect to the leaves that it was made from, and
    /// adds them to their `grad` (`Tensor.backward`).
    ///
    /// # Errors
    /// If this tensor has more than one element or does not require grad; if the graph was freed by an earlier
    /// pass; if anything on the way is invalid.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = tensor([2.0, 3.0]).requires_grad_(true);
    /// (&x * &x).sum().backward()?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [4.0, 6.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn backward(&self) -> Result<()> {
        self.backward_with(Backward::new())
    }

    /// [`backward`](Tensor::backward) with arguments: a gradient to start from (a vector-Jacobian product),
    /// `retain_graph`, `create_graph`, `inputs`.
    #[track_caller]
    pub fn backward_with(&self, how: impl Into<Backward>) -> Result<()> {
        let how: Backward = how.into();
        let targets = match &how.inputs {
            Some(inputs) => Some(targets_of(inputs, "backward", Location::caller())?),
            None => None,
        };
        let sinks = run(
            slice::from_ref(self),
            slice::from_ref(&how.gradient),
            &how,
            targets.as_deref(),
            "backward",
            Location::caller(),
        )?;
        // Asked for by name, non-leaf inputs accumulate too.
        for (input, grad) in how.inputs.iter().flatten().zip(sinks) {
            if let Some(grad) = grad {
                accumulate(input, grad, how.create_graph);
            }
        }
        Ok(())
    }
}

/// The gradients of `outputs` with respect to `inputs`, without touching any `grad` (`torch.autograd.grad`).
///
/// # Errors
/// As [`Tensor::backward`], and if an input does not require grad or was not used.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = tensor(3.0).requires_grad_(true);
/// let y = &x * &x * &x;
/// let dy = &autograd::grad_with(&[&y], &[&x], Backward::new().create_graph(true))?[0];
/// let ddy = &autograd::grad(&[dy], &[&x])?[0];
/// assert_eq!((dy.item::<f32>()?, ddy.item::<f32>()?), (27.0, 18.0));
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn grad(outputs: &[&Tensor], inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    grad_with(outputs, inputs, Backward::new())
}

/// [`grad`] with `retain_graph`, `create_graph`, and a gradient for the (single) output.
#[track_caller]
pub fn grad_with(outputs: &[&Tensor], inputs: &[&Tensor], how: impl Into<Backward>) -> Result<Vec<Tensor>> {
    let caller = Location::caller();
    grad_where_used(outputs, inputs, how.into(), "grad", caller)?
        .into_iter()
        .map(|g| {
            g.ok_or_else(|| {
                let message = "One of the differentiated Tensors appears to not have been used in the graph";
                Error::at(caller, ErrorKind::Autograd, "grad", message)
            })
        })
        .collect()
}

/// [`grad_with`], with `None` for inputs that were not used.
pub(super) fn grad_where_used(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    how: Backward,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Vec<Option<Tensor>>> {
    let owned: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    let targets = targets_of(&owned, op, caller)?;
    let outputs: Vec<Tensor> = outputs.iter().map(|&t| t.clone()).collect();
    let mut gradients = vec![None; outputs.len()];
    if let Some(first) = gradients.first_mut() {
        *first = how.gradient.clone();
    }
    run(&outputs, &gradients, &how, Some(&targets), op, caller)
}

fn targets_of(inputs: &[Tensor], op: &'static str, caller: &'static Location<'static>) -> Result<Vec<Edge>> {
    inputs
        .iter()
        .map(|t| {
            t.gradient_edge().ok_or_else(|| {
                let message = "One of the differentiated Tensors does not require grad";
                Error::at(caller, ErrorKind::Autograd, op, message)
            })
        })
        .collect()
}

/// The address of a function, as its identity while the graph is held.
type Key = *const GradFn;

/// Runs a pass. With `targets`, gradients are caught there and returned instead of accumulated in leaves.
fn run(
    outputs: &[Tensor],
    gradients: &[Option<Tensor>],
    how: &Backward,
    targets: Option<&[Edge]>,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Vec<Option<Tensor>>> {
    let mut pass = Pass {
        waiting: HashMap::new(),
        heap: BinaryHeap::new(),
        grads: HashMap::new(),
        ready: HashMap::new(),
    };
    let mut roots = vec![];
    for (i, (output, gradient)) in outputs.iter().zip(gradients).enumerate() {
        if let Some(error) = output.error() {
            return Err(error);
        }
        let Some(edge) = output.gradient_edge() else {
            let message = format!("element {i} of tensors does not require grad and does not have a grad_fn");
            return Err(Error::at(caller, ErrorKind::Autograd, op, message));
        };
        let gradient = start_gradient(output, gradient.as_ref(), op, caller)?;
        roots.push((edge, gradient));
    }
    pass.count_dependencies(roots.iter().map(|(e, _)| e.function.clone()).collect());
    let needed = targets.map(|t| pass.leading_to(t));
    let _mode = set_grad_enabled(how.create_graph);
    let retain = how.retain_graph.unwrap_or(how.create_graph);
    let mut caught: Vec<Option<Tensor>> = vec![None; targets.map_or(0, <[Edge]>::len)];
    for (edge, gradient) in roots {
        pass.deliver(&edge, gradient);
        pass.arm(&edge.function);
    }
    while let Some(next) = pass.heap.pop() {
        let f = next.0;
        let key = Arc::as_ptr(&f);
        let grads = pass.grads.remove(&key).unwrap_or_default();
        for (i, target) in targets.unwrap_or(&[]).iter().enumerate() {
            if Arc::ptr_eq(&target.function, &f) {
                caught[i] = grads.get(target.output).cloned().flatten();
            }
        }
        let on_the_way = needed.as_ref().is_none_or(|n| n.contains(&key));
        if on_the_way && grads.iter().any(Option::is_some) {
            keep_retained(&f, &grads, how.create_graph);
            for (edge, grad) in f.edges.iter().zip(apply(&f, &grads, retain, how.create_graph, op, caller)?) {
                if let (Some(edge), Some(grad)) = (edge, grad) {
                    if let Some(error) = grad.error() {
                        return Err(error);
                    }
                    pass.deliver(edge, grad);
                }
            }
        }
        for edge in f.edges.iter().flatten() {
            pass.arm(&edge.function);
        }
    }
    Ok(caught)
}

fn start_gradient(
    output: &Tensor,
    given: Option<&Tensor>,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<Tensor> {
    let Some(g) = given else {
        if output.numel() != 1 {
            let message = format!(
                "grad can be implicitly created only for scalar outputs, and this one has shape {:?}: \
                 reduce it first, or pass a gradient",
                output.shape()
            );
            return Err(Error::at(caller, ErrorKind::Autograd, op, message));
        }
        return Ok(output.ones_like().detach());
    };
    if let Some(error) = g.error() {
        return Err(error);
    }
    if g.shape() != output.shape() {
        let message = format!(
            "Mismatch in shape: grad_output has a shape of {:?} and output has a shape of {:?}",
            g.shape(),
            output.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, op, message));
    }
    Ok(g.to(output.dtype()))
}

/// Gives a function its outputs' gradients.
fn apply(
    f: &Arc<GradFn>,
    grads: &[Option<Tensor>],
    retain: bool,
    create_graph: bool,
    op: &'static str,
    caller: &'static Location<'static>,
) -> Result<SmallVec<[Option<Tensor>; 3]>> {
    let mut work = f.work.lock();
    match &*work {
        Work::Accumulate(leaf) => {
            let leaf = leaf.upgrade();
            drop(work);
            if let (Some(leaf), Some(Some(grad))) = (leaf, grads.first()) {
                accumulate(&leaf, grad.clone(), create_graph);
            }
            Ok(SmallVec::new())
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
            Err(Error::at(caller, ErrorKind::Autograd, op, message))
        }
        Work::Formula(_) if retain => {
            // The formula runs under the lock; it records ops but never runs another pass over this function.
            let Work::Formula(formula) = &*work else { return Ok(SmallVec::new()) };
            Ok(on_line_of(f.caller(), || formula(f, grads)))
        }
        Work::Formula(_) => {
            let taken = std::mem::replace(&mut *work, Work::Freed);
            drop(work);
            let Work::Formula(formula) = taken else { return Ok(SmallVec::new()) };
            Ok(on_line_of(f.caller(), || formula(f, grads)))
        }
    }
}

fn keep_retained(f: &GradFn, grads: &[Option<Tensor>], create_graph: bool) {
    for (output, tensor) in &*f.retained.lock() {
        if let (Some(tensor), Some(Some(grad))) = (tensor.upgrade(), grads.get(*output)) {
            accumulate(&tensor, grad.clone(), create_graph);
        }
    }
}

/// Adds to a tensor's `grad`, into the same tensor where there is one, as PyTorch does.
fn accumulate(leaf: &Tensor, grad: Tensor, create_graph: bool) {
    // Passes of several threads may end in one leaf, and none's gradient may be lost. Adding is only recorded
    // here, so one lock for all leaves is held for an instant.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    // Not `grad()`, which warns of non-leaves.
    let old = leaf.meta().grad.clone();
    match old {
        None if create_graph => leaf.set_grad(Some(grad)),
        // A view of something (a sum's gradient is one number, expanded) could not be written to.
        None => {
            leaf.set_grad(Some(if grad.covers_storage() { grad.detach_value() } else { grad.clone_data() }))
        }
        Some(old) if create_graph => leaf.set_grad(Some(&old + &grad)),
        Some(old) => {
            old.add_(&grad);
        }
    }
}

struct Pass {
    /// Consumers of a function that have yet to run.
    waiting: HashMap<Key, usize>,
    heap: BinaryHeap<Next>,
    grads: HashMap<Key, SmallVec<[Option<Tensor>; 1]>>,
    ready: HashMap<Key, Arc<GradFn>>,
}

/// Latest recorded first.
struct Next(Arc<GradFn>);

impl Pass {
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

    fn deliver(&mut self, edge: &Edge, grad: Tensor) {
        let slots = self.grads.entry(Arc::as_ptr(&edge.function)).or_default();
        if slots.len() <= edge.output {
            slots.resize(edge.function.outputs.len().max(edge.output + 1), None);
        }
        let slot = &mut slots[edge.output];
        *slot = Some(match slot.take() {
            None => grad,
            Some(sum) => add_gradients(&sum, &grad),
        });
    }

    /// The functions from which a target can be reached (excluding the targets, unless on the way to others).
    fn leading_to(&self, targets: &[Edge]) -> HashSet<Key> {
        // Consumers have higher sequence numbers, leaves the highest of all: producers first.
        let mut all: Vec<&Arc<GradFn>> = self.ready.values().collect();
        all.sort_unstable_by_key(|f| (f.sequence.wrapping_add(1), Arc::as_ptr(f)));
        let ends: HashSet<Key> = targets.iter().map(|t| Arc::as_ptr(&t.function)).collect();
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
