//! Where gradients are lost: each tensor that was made of something differentiable, and does not carry gradients
//! to it, remembers why. [`Tensor::why_no_grad`](crate::Tensor::why_no_grad) reads it.

use std::collections::HashSet;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::{SmallVec, smallvec};

use super::function::{Edge, GradFn, Work};
use super::mode;
use crate::tensor::{Tensor, WeakTensor};

/// What cuts a tensor off from what it was made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CutKind {
    /// [`Tensor::detach`](crate::Tensor::detach).
    Detach,
    /// The operation ran under [`no_grad`](crate::no_grad), switched on at this line.
    NoGrad(&'static Location<'static>),
    /// The operation has no gradient: its result is of an integer or bool type.
    NotDifferentiable,
    /// A conversion to an integer or bool type.
    Cast,
    /// A [`Function`](super::Function) called its output not differentiable.
    Marked,
}

/// One place where gradients are lost.
#[derive(Clone, Debug)]
pub struct Cut {
    pub kind: CutKind,
    /// The operation.
    pub op: &'static str,
    /// The line of the call.
    pub caller: &'static Location<'static>,
    pub(super) behind: Behind,
}

/// What lies behind a cut. The functions there may be gone by the time someone asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Behind {
    pub leaves: SmallVec<[WeakTensor; 2]>,
    /// There were too many functions to look at all.
    pub more: bool,
}

/// The places that cut a tensor off, newest last, each line once. Shared along a chain of operations.
pub(crate) type Cuts = Option<Arc<[Arc<Cut>]>>;

/// Of a function's inputs: which of them were cut off.
pub(crate) type InputCuts = Vec<(usize, Arc<[Arc<Cut>]>)>;

/// Cuts that one tensor remembers. A running average, made of itself forever, must not grow.
const MOST_CUTS: usize = 8;
/// Functions looked at behind a cut, for what leaves are there: a detach must stay cheap.
const MOST_BEHIND: usize = 4096;

/// Whether there ever was a cut: until then nothing needs to be looked for.
static ANY: AtomicBool = AtomicBool::new(false);

/// How the result of an operation hangs in the graph.
pub(crate) struct Links {
    pub edges: SmallVec<[Option<Edge>; 3]>,
    pub cuts: InputCuts,
}

/// What `out`, made of `inputs`, is to be linked to; `None` where no gradient flows, and then it remembers why.
pub(crate) fn links<'a>(
    out: &Tensor,
    op: &'static str,
    inputs: impl Iterator<Item = Option<&'a Tensor>> + Clone,
    caller: &'static Location<'static>,
) -> Option<Links> {
    if !mode::is_grad_enabled() || !out.dtype().is_float() {
        let kind = match mode::off_at() {
            Some(at) => CutKind::NoGrad(at),
            // The library's own work.
            None if !mode::is_grad_enabled() => return None,
            None if op == "ToCopyBackward0" => CutKind::Cast,
            None => CutKind::NotDifferentiable,
        };
        cut(out, kind, op, inputs.flatten(), caller);
        return None;
    }
    let edges: SmallVec<[Option<Edge>; 3]> =
        inputs.clone().map(|t| t.and_then(Tensor::gradient_edge)).collect();
    let linked = edges.iter().any(Option::is_some);
    if linked {
        let cuts = input_cuts(&edges, inputs);
        return Some(Links { edges, cuts });
    }
    if ANY.load(Ordering::Relaxed) {
        merge(out, inputs.flatten(), None);
    }
    None
}

/// `to` is written to: what `value` was cut off from, it is cut off from too.
pub(crate) fn inherit(to: &Tensor, value: &Tensor) {
    if ANY.load(Ordering::Relaxed) {
        merge(to, [to, value].into_iter(), None);
    }
}

/// What the inputs that no gradient flows to were cut off from.
pub(crate) fn input_cuts<'a>(
    edges: &[Option<Edge>],
    inputs: impl Iterator<Item = Option<&'a Tensor>>,
) -> InputCuts {
    if !ANY.load(Ordering::Relaxed) {
        return vec![];
    }
    (inputs.enumerate())
        .filter_map(|(i, t)| if edges[i].is_none() { Some((i, t?.meta().cuts.clone()?)) } else { None })
        .collect()
}

/// Remembers that `out` is cut off from those of `inputs` that carry gradients, and what they are cut off from.
pub(crate) fn cut<'a>(
    out: &Tensor,
    kind: CutKind,
    op: &'static str,
    inputs: impl Iterator<Item = &'a Tensor> + Clone,
    caller: &'static Location<'static>,
) {
    let mut behind: Option<Behind> = None;
    for input in inputs.clone() {
        if let Some(edge) = input.gradient_edge() {
            behind.get_or_insert_default().add(&edge.function, input);
        }
    }
    if behind.is_none() && !ANY.load(Ordering::Relaxed) {
        return;
    }
    let new = behind.map(|behind| {
        ANY.store(true, Ordering::Relaxed);
        let op = op.strip_suffix("Backward0").unwrap_or(op);
        Arc::new(Cut { kind, op, caller: crate::error::line(caller), behind })
    });
    merge(out, inputs, new);
}

/// Hands on the inputs' cuts, and a new one.
fn merge<'a>(out: &Tensor, inputs: impl Iterator<Item = &'a Tensor>, new: Option<Arc<Cut>>) {
    let mut all: SmallVec<[Arc<[Arc<Cut>]>; 3]> = smallvec![];
    for t in inputs {
        if let Some(cuts) = t.meta().cuts.clone()
            && !all.iter().any(|other| Arc::ptr_eq(other, &cuts))
        {
            all.push(cuts);
        }
    }
    let cuts = match (&all[..], new) {
        ([], None) => return,
        ([one], None) => one.clone(),
        (_, new) => {
            let mut merged: Vec<Arc<Cut>> = vec![];
            for cut in all.iter().flat_map(|cuts| cuts.iter()).cloned().chain(new) {
                // What an op is made of cuts on the op's line; the op itself comes last.
                merged.retain(|c| (c.kind, c.caller) != (cut.kind, cut.caller));
                merged.push(cut);
            }
            merged.drain(..merged.len().saturating_sub(MOST_CUTS));
            merged.into()
        }
    };
    out.meta().cuts = Some(cuts);
}

impl Behind {
    /// Adds the leaves that gradients would reach from `f`, the function of `input`.
    fn add(&mut self, f: &Arc<GradFn>, input: &Tensor) {
        if input.is_leaf() {
            self.leaf(input.downgrade());
            return;
        }
        let mut seen: HashSet<*const GradFn> = HashSet::new();
        let mut stack = vec![f.clone()];
        while let Some(f) = stack.pop() {
            if !seen.insert(Arc::as_ptr(&f)) {
                continue;
            }
            if seen.len() > MOST_BEHIND {
                self.more = true;
                return;
            }
            if let Work::Accumulate(leaf) = &*f.work.lock() {
                self.leaf(leaf.clone());
            }
            for (_, cuts) in &f.cuts {
                for cut in cuts.iter() {
                    cut.behind.leaves.iter().for_each(|leaf| self.leaf(leaf.clone()));
                    self.more |= cut.behind.more;
                }
            }
            stack.extend(f.edges.iter().flatten().map(|e| e.function.clone()));
        }
    }

    fn leaf(&mut self, leaf: WeakTensor) {
        if !self.leaves.iter().any(|l| l.is_same(&leaf)) {
            self.leaves.push(leaf);
        }
    }

    pub fn holds(&self, leaf: &Tensor) -> bool {
        let leaf = leaf.downgrade();
        self.leaves.iter().any(|l| l.is_same(&leaf))
    }
}
