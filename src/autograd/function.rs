//! The nodes of the autograd graph, and what a tensor knows of its place in it.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::accumulate::Shares;
use super::cut::{Cuts, InputCuts};
use super::hooks::Hooks;
use super::saved::Count;
use crate::graph::device::Device;
use crate::graph::dtype::DType;
use crate::graph::layout::Dims;
use crate::tensor::{Tensor, WeakTensor};

/// Gradients by input; `None` where nothing flows.
pub(crate) type Grads = SmallVec<[Option<Tensor>; 3]>;

/// The formula: from the gradients of a function's outputs to those of its inputs. What it saved lives in it.
/// Shared, so that a pass can run it without holding on to the function, and other passes can run it too.
pub(crate) type BackwardFn = Arc<dyn Fn(&Arc<GradFn>, &[Option<Tensor>]) -> Grads + Send + Sync>;

/// A function in the autograd graph: it made a tensor, and knows how gradients pass through it backwards.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let y = (&x * &x).sum();
/// let sum = y.grad_fn().unwrap();
/// let mul = sum.next_functions()[0].clone().unwrap();
/// assert_eq!((sum.name(), mul.name()), ("SumBackward0", "MulBackward0"));
/// assert_eq!((mul.output_shapes(), mul.saved_bytes(), mul.is_freed()), (vec![&[2][..]], 16, false));
/// let leaf = mul.next_functions()[0].clone().unwrap();
/// assert!(leaf.variable().unwrap().is_same(&x));
/// println!("{mul} was recorded at {}", mul.caller());
/// ```
pub struct GradFn {
    name: &'static str,
    /// Grows with time, so that a consumer's is above its producers'.
    pub(super) sequence: u64,
    caller: &'static Location<'static>,
    pub(super) edges: SmallVec<[Option<Edge>; 3]>,
    pub(super) outputs: SmallVec<[OutputInfo; 1]>,
    pub(super) work: Mutex<Work>,
    /// The values that the formula holds.
    saved: Count,
    pub(super) hooks: Mutex<Hooks>,
    /// By input that no gradient flows to: where it was cut off from what it was made of.
    pub(super) cuts: InputCuts,
}

/// What an output is like.
#[derive(Clone)]
pub(crate) struct OutputInfo {
    pub shape: Dims,
    pub dtype: DType,
    pub device: Device,
}

impl OutputInfo {
    pub(super) fn zeros(&self) -> Tensor {
        crate::tensor::options().device(&self.device).dtype(self.dtype).zeros(&self.shape[..])
    }

    /// Whether a gradient is one of this output as it is.
    pub(super) fn fits(&self, grad: &Tensor) -> bool {
        grad.shape() == &self.shape[..] && grad.dtype() == self.dtype && *grad.device() == self.device
    }

    /// A gradient of this output in its shape and type: summed where it was broadcast. In words why not.
    pub(super) fn fit(&self, grad: Tensor) -> Result<Tensor, String> {
        if *grad.device() != self.device {
            return Err(format!("expected device {} but got {}", self.device, grad.device()));
        }
        if crate::graph::layout::broadcast(&self.shape, grad.shape()).as_deref() != Some(grad.shape()) {
            return Err(format!(
                "got {:?} but expected shape compatible with {:?}",
                grad.shape(),
                &self.shape[..]
            ));
        }
        Ok(crate::ops::reduce::sum_to(&grad, &self.shape).to(self.dtype))
    }
}

pub(super) enum Work {
    Formula(BackwardFn),
    /// The end of the way: adds to a leaf's `grad`.
    Accumulate(WeakTensor),
    /// A backward pass has been through, and what was saved is gone.
    Freed,
}

/// Where a gradient flows: into which function, as the gradient of which of its outputs.
#[derive(Clone)]
pub struct Edge {
    pub(crate) function: Arc<GradFn>,
    pub(crate) output: usize,
}

static NEXT_SEQUENCE: AtomicU64 = AtomicU64::new(0);

impl GradFn {
    pub(crate) fn new(
        name: &'static str,
        caller: &'static Location<'static>,
        edges: SmallVec<[Option<Edge>; 3]>,
        outputs: SmallVec<[OutputInfo; 1]>,
        cuts: InputCuts,
        formula: BackwardFn,
    ) -> Arc<GradFn> {
        Arc::new(GradFn {
            name,
            sequence: NEXT_SEQUENCE.fetch_add(1, Ordering::Relaxed),
            caller: crate::error::line(caller),
            edges,
            outputs,
            work: Mutex::new(Work::Formula(formula)),
            saved: super::saved::saved_since(),
            hooks: Mutex::default(),
            cuts,
        })
    }

    pub(crate) fn accumulate(leaf: &Tensor, caller: &'static Location<'static>) -> Arc<GradFn> {
        Arc::new(GradFn {
            name: "AccumulateGrad",
            // Leaves last: by then everything that flows into them has been summed.
            sequence: u64::MAX,
            caller,
            edges: SmallVec::new(),
            outputs: smallvec::smallvec![leaf.output_info()],
            work: Mutex::new(Work::Accumulate(leaf.downgrade())),
            saved: Count::default(),
            hooks: Mutex::default(),
            cuts: InputCuts::default(),
        })
    }

    /// PyTorch's name for it, such as `MulBackward0`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The functions that the gradients flow on to, by input; `None` for inputs that need none.
    pub fn next_functions(&self) -> Vec<Option<Arc<GradFn>>> {
        self.edges.iter().map(|e| e.as_ref().map(|e| e.function.clone())).collect()
    }

    /// The shapes of the tensors that it made.
    pub fn output_shapes(&self) -> Vec<&[usize]> {
        self.outputs.iter().map(|o| &o.shape[..]).collect()
    }

    pub(crate) fn outputs(&self) -> &[OutputInfo] {
        &self.outputs
    }

    /// The leaf whose gradient an `AccumulateGrad` adds to, while it lives (`AccumulateGrad.variable`).
    pub fn variable(&self) -> Option<Tensor> {
        match &*self.work.lock() {
            Work::Accumulate(leaf) => leaf.upgrade(),
            _ => None,
        }
    }

    /// Bytes of the values that this function holds for the way back; none once a backward pass has been through.
    pub fn saved_bytes(&self) -> usize {
        if matches!(&*self.work.lock(), Work::Formula(_)) { self.saved.bytes } else { 0 }
    }

    /// Whether it holds values for the way back, and can run but once unless they are retained.
    pub(super) fn saves(&self) -> bool {
        self.saved.values > 0
    }

    /// Whether a backward pass has been through, and what was saved is gone. What saves nothing is never freed.
    pub fn is_freed(&self) -> bool {
        matches!(&*self.work.lock(), Work::Freed)
    }

    /// The user's line that recorded it.
    pub fn caller(&self) -> &'static Location<'static> {
        self.caller
    }

    /// The hooks on it; on a leaf's accumulator also those of the leaf, which come first.
    pub(super) fn current_hooks(&self) -> Hooks {
        let leaf = self.variable();
        let mut hooks = leaf.map_or(vec![], |leaf| leaf.meta().hooks.clone());
        hooks.extend_from_slice(&self.hooks.lock());
        hooks
    }

    /// Whether input `i` needs a gradient.
    pub(crate) fn needs(&self, i: usize) -> bool {
        self.edges.get(i).is_some_and(Option::is_some)
    }
}

impl fmt::Display for GradFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} object at {:#x}>", self.name, std::ptr::from_ref(self) as usize)
    }
}

impl fmt::Debug for GradFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.name)
    }
}

impl Drop for GradFn {
    /// Graphs are as deep as loops are long: taken apart without recursion.
    fn drop(&mut self) {
        let mut stack =
            vec![(std::mem::take(&mut self.edges), std::mem::replace(self.work.get_mut(), Work::Freed))];
        while let Some((edges, work)) = stack.pop() {
            // A formula's saved values may hold the last reference to a function that `edges` hold too, so
            // they go first.
            drop(work);
            for edge in edges.into_iter().flatten() {
                if let Some(mut f) = Arc::into_inner(edge.function) {
                    let work = std::mem::replace(f.work.get_mut(), Work::Freed);
                    stack.push((std::mem::take(&mut f.edges), work));
                }
            }
        }
    }
}

/// A tensor's part in autograd.
#[derive(Default)]
pub(crate) struct Meta {
    /// Of leaves: whether gradients are wanted. Other tensors require grad by having a `grad_fn`.
    pub requires_grad: bool,
    pub grad: Option<Tensor>,
    pub grad_fn: Option<Edge>,
    /// Of a leaf: its accumulator, shared by all consumers while any of them lives.
    pub accumulator: Option<Weak<GradFn>>,
    /// The thread whose pass made `grad`, and what the threads added if there were several.
    pub grad_by: Option<ThreadId>,
    pub shares: Option<Box<Shares>>,
    /// Of a leaf; those of other tensors hang on their functions.
    pub hooks: Hooks,
    pub retains_grad: bool,
    /// What it was made of that no gradient flows to.
    pub cuts: Cuts,
    /// Of a leaf: the line that threw its gradient away.
    pub cleared: Option<&'static Location<'static>>,
    pub view: Option<View>,
    /// Prints as a `Parameter`.
    pub parameter: bool,
    /// It begins its storage and is no part of another tensor, though more (what its function saved) may lie behind it.
    pub owner: bool,
    /// Of a gradient that flows back through a slice: that it is zero elsewhere.
    pub parts: Option<crate::ops::parts::Parts>,
}

/// Of a view: the tensor whose storage it looks into, and the storage's version that `grad_fn` belongs to.
pub(crate) struct View {
    pub base: Tensor,
    pub version: u64,
    /// Made in inference mode.
    pub inference: bool,
}
