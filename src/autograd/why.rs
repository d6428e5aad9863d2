//! Where did my gradient go? What [`Tensor::why_no_grad`] answers.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use super::cut::{Cut, CutKind};
use super::function::GradFn;
use crate::tensor::{Tensor, WeakTensor};

/// Why a tensor has no gradient. It prints as a sentence or two.
///
/// ```
/// # use wgrad::prelude::*;
/// let w = ones([2]).requires_grad_(true);
/// let hidden = (&w * 2.0).detach(); // the mistake
/// let loss = (&hidden * &ones([2]).requires_grad_(true)).sum();
/// loss.backward()?;
/// let why = w.why_no_grad();
/// assert!(matches!(&why.reason, autograd::Reason::Cut(cuts) if cuts[0].kind == autograd::CutKind::Detach));
/// assert!(why.to_string().contains("detach"), "{why}"); // and the line where it was called
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct WhyNoGrad {
    /// What became of the gradient.
    pub reason: Reason,
    /// The functions that lead from the loss to where the gradient was lost (or to the tensor itself): names and lines.
    pub path: Vec<(&'static str, &'static Location<'static>)>,
}

/// See [`WhyNoGrad`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// It has one.
    HasGrad,
    /// It had one, which was thrown away on this line (`zero_grad`, `set_grad(None)`).
    Cleared(&'static Location<'static>),
    /// Gradients flow through it, but it is no leaf: [`retain_grad`](Tensor::retain_grad) keeps them. Made on this line.
    NotALeaf(&'static Location<'static>),
    /// It is of an integer or bool type.
    NotFloat,
    /// Nobody asked for gradients of it, nor of anything that it was made of.
    NotRequired,
    /// It was made in [`inference_mode`](super::inference_mode).
    Inference,
    /// It depends on tensors that require grad, or the loss depends on it, but gradients were cut off here; or
    /// may have been, if the graph behind a cut was too large to remember.
    Cut(Vec<Arc<Cut>>),
    /// The loss was not computed from it, as far as can be seen.
    Unreachable,
    /// The loss leads to it, but what it saved for the way back was freed by an earlier pass.
    Freed,
    /// The loss leads to it: a pass would give it a gradient, but the last one was [`grad`](super::grad), or had other
    /// `inputs`, or failed, or was not of this loss.
    NoPass,
    /// No backward pass has run on this thread, or its loss is gone: ask [`why_no_grad_from`](Tensor::why_no_grad_from).
    NoLoss,
}

impl fmt::Display for CutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CutKind::Detach => write!(f, "detach"),
            CutKind::NoGrad(at) => write!(f, "no_grad, which was switched on at {at}"),
            CutKind::NotDifferentiable => write!(f, "an operation without a gradient"),
            CutKind::Cast => write!(f, "a conversion to an integer or bool type"),
            CutKind::Marked => write!(f, "mark_non_differentiable"),
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            CutKind::Detach => write!(f, "detach at {}", self.caller),
            kind => write!(f, "{} at {} ({kind})", self.op, self.caller),
        }
    }
}

impl fmt::Display for WhyNoGrad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::HasGrad => write!(f, "it has a gradient")?,
            Reason::Cleared(at) => write!(f, "it had a gradient, which was thrown away at {at}")?,
            Reason::NotALeaf(at) => write!(
                f,
                "it is not a leaf (it was computed at {at}), and only leaves keep their gradients: call retain_grad \
                 before backward"
            )?,
            Reason::NotFloat => write!(f, "only tensors of floating point dtype can require gradients")?,
            Reason::NotRequired => write!(
                f,
                "it does not require grad, and neither does anything that it was made of: requires_grad_(true) makes a \
                 leaf require it"
            )?,
            Reason::Inference => write!(f, "it was made in inference mode")?,
            Reason::Cut(cuts) => {
                let sure = cuts.iter().all(|c| !c.behind.more);
                write!(f, "gradients {} cut off by ", if sure { "were" } else { "may have been" })?;
                for (i, cut) in cuts.iter().enumerate() {
                    write!(f, "{}{cut}", if i > 0 { ", and by " } else { "" })?;
                }
            }
            Reason::Unreachable => write!(f, "the loss was not computed from it")?,
            Reason::Freed => write!(
                f,
                "the loss leads to it, but an earlier backward pass freed the graph: give that one retain_graph(true)"
            )?,
            Reason::NoPass => write!(
                f,
                "the loss leads to it, but no backward pass brought it a gradient: it was autograd::grad, or had other \
                 inputs, or failed"
            )?,
            Reason::NoLoss => write!(
                f,
                "no backward pass has run on this thread whose loss is still there: keep the loss, or ask \
                 why_no_grad_from(&loss)"
            )?,
        }
        if !self.path.is_empty() {
            write!(f, ". On the way from the loss: ")?;
            for (i, (name, at)) in self.path.iter().enumerate() {
                write!(f, "{}{name} at {at}", if i > 0 { ", then " } else { "" })?;
            }
        }
        Ok(())
    }
}

/// The last backward pass of this thread.
struct LastPass {
    roots: Vec<WeakTensor>,
}

thread_local! {
    static LAST: RefCell<Option<LastPass>> = const { RefCell::new(None) };
}

/// Notes where a pass started, for those who miss a gradient after it. Passes that fill no `grad` are not
/// told of here, and passes within passes do not count.
pub(super) fn remember_pass(roots: &[Tensor]) {
    if super::engine::current_pass().is_none() {
        let roots = roots.iter().map(Tensor::downgrade).collect();
        LAST.set(Some(LastPass { roots }));
    }
}

/// For the error that a tensor does not require grad: what cut it off.
pub(super) fn hint(t: &Tensor) -> String {
    match t.why_no_grad().reason {
        Reason::NotRequired => String::new(),
        reason => format!(": {}", WhyNoGrad { reason, path: vec![] }),
    }
}

impl Tensor {
    /// Why this tensor has no gradient: of one that does not require grad, what cut it off from what it was made of; of one
    /// that does, where on the way from the loss of this thread's last backward pass its gradient was lost.
    ///
    /// What was cut off by [`detach`](Tensor::detach), [`no_grad`](crate::no_grad), an operation without gradients or a
    /// conversion is named with its line, also when the tensors in between are gone. Behind a cut with more than 4,096
    /// functions not all is remembered, and then the answer says *may*.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = ones([3]).requires_grad_(true);
    /// let y = no_grad(|| &x * 2.0);
    /// println!("{}", y.why_no_grad()); // gradients were cut off by mul at src/main.rs:3:21 (no_grad, ...)
    /// # assert!(y.why_no_grad().to_string().contains("no_grad"));
    /// ```
    pub fn why_no_grad(&self) -> WhyNoGrad {
        let roots: Vec<Tensor> = LAST
            .with_borrow(|last| last.iter().flat_map(|l| &l.roots).filter_map(WeakTensor::upgrade).collect());
        self.why(&roots)
    }

    /// [`why_no_grad`](Tensor::why_no_grad), asked of a certain loss.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let (x, w) = (ones([3]).requires_grad_(true), ones([3]).requires_grad_(true));
    /// let loss = (x.detach() * &w).sum();
    /// assert!(x.why_no_grad_from(&loss).to_string().contains("detach"));
    /// ```
    pub fn why_no_grad_from(&self, loss: &Tensor) -> WhyNoGrad {
        self.why(std::slice::from_ref(loss))
    }

    fn why(&self, losses: &[Tensor]) -> WhyNoGrad {
        let plain = |reason| WhyNoGrad { reason, path: vec![] };
        if !self.requires_grad() {
            return plain(match self.meta().cuts.clone() {
                Some(cuts) => Reason::Cut(cuts.to_vec()),
                None if self.is_inference() => Reason::Inference,
                None if !self.dtype().is_float() => Reason::NotFloat,
                None => Reason::NotRequired,
            });
        }
        {
            let meta = self.meta();
            if meta.grad.is_some() {
                return plain(Reason::HasGrad);
            }
            if let (Some(edge), false) = (&meta.grad_fn, meta.retains_grad) {
                return plain(Reason::NotALeaf(edge.function.caller()));
            }
        }
        let cleared = self.meta().cleared.map(Reason::Cleared);
        if losses.is_empty() {
            return plain(cleared.unwrap_or(Reason::NoLoss));
        }
        // A loss that is cut off altogether.
        let whole: Vec<Arc<Cut>> = losses
            .iter()
            .filter(|l| !l.requires_grad())
            .flat_map(|l| self.behind(l.meta().cuts.as_deref()))
            .collect();
        if !whole.is_empty() {
            return plain(Reason::Cut(whole));
        }
        let found = self.search(losses);
        match (found.reason, cleared) {
            // Gradients reached it, and then one was thrown away; had they been cut off, an older one was.
            (Reason::NoPass | Reason::Freed, Some(cleared)) => plain(cleared),
            (reason, _) => WhyNoGrad { reason, ..found },
        }
    }

    /// Those of the cuts that this tensor lies behind, or may.
    fn behind(&self, cuts: Option<&[Arc<Cut>]>) -> Vec<Arc<Cut>> {
        let cuts = cuts.unwrap_or(&[]);
        let sure: Vec<_> = cuts.iter().filter(|c| c.behind.holds(self)).cloned().collect();
        if sure.is_empty() { cuts.iter().filter(|c| c.behind.more).cloned().collect() } else { sure }
    }

    /// Goes back from the losses, nearest functions first, until it meets this tensor or a cut before it.
    fn search(&self, losses: &[Tensor]) -> WhyNoGrad {
        let goal = self.gradient_edge();
        let mut parents: HashMap<*const GradFn, Option<Arc<GradFn>>> = HashMap::new();
        let mut queue: VecDeque<Arc<GradFn>> = VecDeque::new();
        for edge in losses.iter().filter_map(Tensor::gradient_edge) {
            if parents.insert(Arc::as_ptr(&edge.function), None).is_none() {
                queue.push_back(edge.function);
            }
        }
        let path = |parents: &HashMap<*const GradFn, Option<Arc<GradFn>>>, last: &Arc<GradFn>| {
            let mut path = vec![(last.name(), last.caller())];
            let mut at = Arc::as_ptr(last);
            while let Some(Some(parent)) = parents.get(&at) {
                path.push((parent.name(), parent.caller()));
                at = Arc::as_ptr(parent);
            }
            path.reverse();
            path
        };
        let mut maybe: Option<WhyNoGrad> = None;
        let mut certain = false;
        let mut freed = false;
        while let Some(f) = queue.pop_front() {
            if goal.as_ref().is_some_and(|g| Arc::ptr_eq(&g.function, &f)) {
                let reason = if freed { Reason::Freed } else { Reason::NoPass };
                return WhyNoGrad { reason, path: path(&parents, &f) };
            }
            freed |= f.is_freed();
            for (_, cuts) in &f.cuts {
                let cuts = self.behind(Some(cuts));
                let sure = cuts.iter().any(|c| !c.behind.more);
                // A way around the cut may yet be found; what is certain goes before what is not.
                if !cuts.is_empty() && (maybe.is_none() || sure && !certain) {
                    certain = sure;
                    maybe = Some(WhyNoGrad { reason: Reason::Cut(cuts), path: path(&parents, &f) });
                }
            }
            for edge in f.edges.iter().flatten() {
                let key = Arc::as_ptr(&edge.function);
                parents.entry(key).or_insert_with(|| {
                    queue.push_back(edge.function.clone());
                    Some(f.clone())
                });
            }
        }
        maybe.unwrap_or(WhyNoGrad { reason: Reason::Unreachable, path: vec![] })
    }
}
