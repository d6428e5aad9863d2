//! The handle people hold: a view of storage, and its part in autograd.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};
use smallvec::smallvec;

use crate::autograd::{BackwardFn, CutKind, Edge, GradFn, Links, Meta, View, cut, links};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::device::Device;
use crate::graph::dtype::DType;
use crate::graph::layout::Layout;
use crate::graph::node::{Node, Operand};

mod create;
pub(crate) mod dims;
#[doc(hidden)]
pub mod format;
mod index;
mod inplace;
mod operators;
mod print;
mod read;

pub use create::{
    IntoData, Options, arange, default_device, empty, eye, full, linspace, ones, options, rand, randint,
    randn, set_default_device, tensor, zeros,
};
pub use dims::{IntoDims, IntoShape};
pub use format::PrintOptions;
pub use index::{Index, IntoIndex};
pub use print::{print_options, set_print_options};

/// An n-dimensional array on a device, with gradients.
///
/// Cheap to clone: clones are the same tensor, and share data and `grad`. Operations are recorded and run
/// when their values are needed.
///
/// An operation that is given bad input returns an *invalid* tensor, which carries the error; so does what is
/// made from it. The error comes out as `Err` wherever values leave the graph: [`to_vec`](Tensor::to_vec),
/// [`item`](Tensor::item), [`backward`](Tensor::backward), [`check`](Tensor::check). With `WGRAD_PANIC=1` in the
/// environment the faulty call panics instead.
#[derive(Clone)]
pub struct Tensor(Arc<Inner>);

struct Inner {
    storage: Arc<Storage>,
    layout: Layout,
    meta: Mutex<Meta>,
}

/// What views of one tensor share.
struct Storage {
    /// The current contents; replaced by writes.
    node: Mutex<Arc<Node>>,
    /// Writes so far.
    version: AtomicU64,
    device: Device,
    dtype: DType,
    /// Made in inference mode.
    inference: bool,
}

#[derive(Clone)]
pub(crate) struct WeakTensor(Weak<Inner>);

impl fmt::Debug for WeakTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakTensor({:p})", self.0.as_ptr())
    }
}

impl WeakTensor {
    pub fn is_same(&self, other: &WeakTensor) -> bool {
        Weak::ptr_eq(&self.0, &other.0)
    }

    pub fn upgrade(&self) -> Option<Tensor> {
        self.0.upgrade().map(Tensor)
    }
}

impl Tensor {
    // ---- making -------------------------------------------------------------------------------------------

    pub(crate) fn from_node(node: Arc<Node>) -> Tensor {
        let layout = Layout::contiguous(&node.shape);
        Tensor::with_layout(node, layout)
    }

    pub(crate) fn with_layout(node: Arc<Node>, layout: Layout) -> Tensor {
        let (device, dtype) = (node.device.clone(), node.dtype);
        let inference = crate::autograd::is_inference_mode_enabled();
        let storage =
            Storage { node: Mutex::new(node), version: AtomicU64::new(0), device, dtype, inference };
        Tensor(Arc::new(Inner { storage: Arc::new(storage), layout, meta: Mutex::default() }))
    }

    /// A tensor that carries an error instead of values.
    pub(crate) fn invalid(error: Error) -> Tensor {
        static PANIC: OnceLock<bool> = OnceLock::new();
        if *PANIC.get_or_init(|| std::env::var_os("WGRAD_PANIC").is_some_and(|v| v != "0")) {
            panic!("{error}");
        }
        Tensor::from_node(Node::failed(&crate::graph::device::cpu(), DType::F32, error))
    }

    /// The tensor an op made, or an invalid one.
    pub(crate) fn from_result(result: Result<Tensor>) -> Tensor {
        result.unwrap_or_else(Tensor::invalid)
    }

    /// Another view of the same storage, through `layout`, with the gradient that leads back to this one.
    pub(crate) fn make_view(
        &self,
        name: &'static str,
        layout: Layout,
        caller: &'static Location<'static>,
        formula: impl Fn(&Tensor) -> Tensor + Send + Sync + 'static,
    ) -> Tensor {
        let base = self.meta().view.as_ref().map(|v| v.base.clone());
        // A detached part of something else's storage has no base to tell of its changes.
        let base = base.or_else(|| self.owns_storage().then(|| self.clone()));
        let version = self.version();
        let inference = crate::autograd::is_inference_mode_enabled();
        let view = base.map(|base| View { base, version, inference });
        let out = Tensor(Arc::new(Inner {
            storage: self.0.storage.clone(),
            layout,
            meta: Mutex::new(Meta { view, ..Meta::default() }),
        }));
        if let Some(links) = links(&out, name, std::iter::once(Some(self)), caller) {
            let formula = move |_: &_, g: &[Option<Tensor>]| smallvec![g[0].as_ref().map(&formula)];
            out.link(name, caller, links, Arc::new(formula));
        }
        out
    }

    /// Puts this tensor, the result of a function, into the autograd graph.
    pub(crate) fn link(
        &self,
        name: &'static str,
        caller: &'static Location<'static>,
        links: Links,
        formula: BackwardFn,
    ) {
        let outputs = smallvec![self.output_info()];
        let function = GradFn::new(name, caller, links.edges, outputs, links.cuts, formula);
        let old = self.meta().grad_fn.replace(Edge { function, output: 0 });
        drop(old); // outside the lock
    }

    pub(crate) fn downgrade(&self) -> WeakTensor {
        WeakTensor(Arc::downgrade(&self.0))
    }

    // ---- parts --------------------------------------------------------------------------------------------

    pub(crate) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.0.meta.lock()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The storage's current contents.
    pub(crate) fn node(&self) -> Arc<Node> {
        self.0.storage.node.lock().clone()
    }

    /// This tensor, read through `layout` (composed by the caller), as the input of a node.
    pub(crate) fn operand(&self, layout: Layout) -> Operand {
        Operand::Node(self.node(), layout)
    }

    /// Whether the layout is the whole storage in its order.
    pub(crate) fn covers_storage(&self) -> bool {
        let layout = self.layout();
        layout.offset == 0 && layout.is_contiguous() && layout.numel() == self.node().numel()
    }

    /// Whether what is written here, or to a view of this, is this tensor's new history.
    pub(crate) fn owns_storage(&self) -> bool {
        self.covers_storage() || self.meta().owner
    }

    pub(crate) fn output_info(&self) -> crate::autograd::OutputInfo {
        crate::autograd::OutputInfo {
            shape: self.layout().shape.clone(),
            dtype: self.dtype(),
            device: self.device().clone(),
        }
    }

    // ---- asking -------------------------------------------------------------------------------------------

    /// The sizes of the dimensions. An invalid tensor may have any shape.
    pub fn shape(&self) -> &[usize] {
        &self.0.layout.shape
    }

    /// The size of one dimension; negative ones count from the end. 0 if there is no such dimension.
    pub fn size(&self, dim: i64) -> usize {
        let rank = self.shape().len() as i64;
        let d = if dim < 0 { dim + rank } else { dim };
        usize::try_from(d).ok().and_then(|d| self.shape().get(d)).copied().unwrap_or(0)
    }

    /// The distance in storage between neighbours along each dimension, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.0.layout.strides
    }

    /// Where in its storage the first element lies.
    pub fn storage_offset(&self) -> usize {
        self.0.layout.offset
    }

    /// The number of dimensions (`Tensor.dim`).
    pub fn dim(&self) -> usize {
        self.shape().len()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.0.layout.numel()
    }

    pub fn dtype(&self) -> DType {
        self.0.storage.dtype
    }

    pub fn device(&self) -> &Device {
        &self.0.storage.device
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.0.layout.is_contiguous()
    }

    /// Whether both are the same tensor: clones of one handle.
    pub fn is_same(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether both look into the same storage, so that writing to one can change the other.
    pub fn shares_storage(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0.storage, &other.0.storage)
    }

    /// How often this tensor's storage was written to (`Tensor._version`). What autograd saved before a write is
    /// not changed by it, so that gradients are right where PyTorch must raise an error.
    pub fn version(&self) -> u64 {
        self.0.storage.version.load(Ordering::Acquire)
    }

    /// Whether it was made in [`inference_mode`](crate::autograd::inference_mode), or is a view of what was.
    pub fn is_inference(&self) -> bool {
        self.0.storage.inference
    }

    /// The error this tensor carries, if it is invalid. Errors of the device are known once the values have
    /// been computed.
    pub fn error(&self) -> Option<Error> {
        self.0.storage.node.lock().error()
    }

    /// Computes the values, and tells whether that went well.
    ///
    /// # Errors
    /// The error this tensor carries, or met while it was computed.
    pub fn check(&self) -> Result<()> {
        let node = self.node();
        node.device.force(&node).map(drop)
    }

    // ---- autograd -----------------------------------------------------------------------------------------

    /// Whether gradients flow to this tensor.
    pub fn requires_grad(&self) -> bool {
        self.refresh_view();
        let meta = self.meta();
        meta.requires_grad || meta.grad_fn.is_some()
    }

    /// Says whether gradients of this leaf are wanted, and gives the same tensor (`Tensor.requires_grad_`).
    ///
    /// Gives an invalid tensor if it is not of a floating point type, or if gradients of a non-leaf are to be
    /// switched off (see [`detach`](Tensor::detach)).
    #[track_caller]
    pub fn requires_grad_(&self, requires_grad: bool) -> Tensor {
        let caller = Location::caller();
        let fail = |kind, message: &str| Tensor::invalid(Error::at(caller, kind, "requires_grad_", message));
        if let Some(error) = self.error() {
            return Tensor::invalid(error);
        }
        if requires_grad && !self.dtype().is_float() {
            return fail(ErrorKind::DType, "only Tensors of floating point dtype can require gradients");
        }
        if !requires_grad && !self.is_leaf() {
            let message = "you can only change requires_grad flags of leaf variables. If you want to use a \
                           computed variable in a subgraph that doesn't require differentiation use \
                           var_no_grad = var.detach()";
            return fail(ErrorKind::Autograd, message);
        }
        if requires_grad && self.is_inference() && !crate::autograd::is_inference_mode_enabled() {
            let message =
                "Setting requires_grad=True on inference tensor outside InferenceMode is not allowed.";
            return fail(ErrorKind::Autograd, message);
        }
        let mut meta = self.meta();
        if meta.grad_fn.is_none() {
            meta.requires_grad = requires_grad;
        }
        drop(meta);
        self.clone()
    }

    /// Whether no recorded operation made this tensor. Gradients accumulate in leaves.
    pub fn is_leaf(&self) -> bool {
        self.refresh_view();
        self.meta().grad_fn.is_none()
    }

    /// The function that made this tensor, by which gradients flow back.
    pub fn grad_fn(&self) -> Option<Arc<GradFn>> {
        self.refresh_view();
        self.meta().grad_fn.as_ref().map(|e| e.function.clone())
    }

    /// The gradient accumulated so far. `None` before any backward pass, and after
    /// [`set_grad(None)`](Tensor::set_grad).
    ///
    /// Only leaves, and tensors whose [`retain_grad`](Tensor::retain_grad) was called, get one; asking another
    /// prints a warning.
    #[track_caller]
    pub fn grad(&self) -> Option<Tensor> {
        self.refresh_view();
        let meta = self.meta();
        let grad = meta.grad.clone();
        let futile = grad.is_none() && meta.grad_fn.is_some() && !meta.retains_grad;
        drop(meta);
        if futile {
            crate::error::warn(
                "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its .grad attribute \
                 won't be populated during backward(). If you indeed want the .grad field to be populated for a \
                 non-leaf Tensor, use .retain_grad() on the non-leaf Tensor. If you access the non-leaf Tensor by \
                 mistake, make sure you access the leaf Tensor instead.",
            );
        }
        grad
    }

    /// Replaces the accumulated gradient; `None` forgets it.
    #[track_caller]
    pub fn set_grad(&self, grad: Option<Tensor>) {
        let caller = Location::caller();
        let forgets = grad.is_none();
        let had_one = self.put_grad(grad, None);
        if forgets && had_one {
            self.meta().cleared = Some(crate::error::line(caller));
        }
    }

    /// Replaces the gradient by one that was made by a pass of this thread. Whether there was one before.
    pub(crate) fn put_grad(&self, grad: Option<Tensor>, by: Option<std::thread::ThreadId>) -> bool {
        let mut meta = self.meta();
        meta.grad_by = by;
        meta.cleared = None;
        let old = (std::mem::replace(&mut meta.grad, grad), meta.shares.take());
        drop(meta);
        old.0.is_some() // dropped outside the lock
    }

    /// Makes backward passes keep the gradient of this non-leaf tensor (`Tensor.retain_grad`). Gives the same
    /// tensor; an invalid one if it does not require grad.
    #[track_caller]
    pub fn retain_grad(&self) -> Tensor {
        if !self.requires_grad() {
            let message = "can't retain_grad on Tensor that has requires_grad=False";
            let caller = Location::caller();
            return Tensor::invalid(
                self.error()
                    .unwrap_or_else(|| Error::at(caller, ErrorKind::Autograd, "retain_grad", message)),
            );
        }
        let mut meta = self.meta();
        if let Some(edge) = meta.grad_fn.clone()
            && !meta.retains_grad
        {
            meta.retains_grad = true;
            edge.function.retain(edge.output, self.downgrade());
        }
        drop(meta);
        self.clone()
    }

    /// Whether [`retain_grad`](Tensor::retain_grad) is in force.
    pub fn retains_grad(&self) -> bool {
        self.meta().retains_grad
    }

    /// The same data without its history: gradients do not flow through the result (`Tensor.detach`). It shares
    /// storage, so writes to either show in both.
    #[track_caller]
    pub fn detach(&self) -> Tensor {
        let out = self.alias();
        cut(&out, CutKind::Detach, "detach", std::iter::once(self), Location::caller());
        out
    }

    /// [`detach`](Tensor::detach) for the library's own work: what is cut by it is nobody's mistake.
    pub(crate) fn alias(&self) -> Tensor {
        Tensor(Arc::new(Inner {
            storage: self.0.storage.clone(),
            layout: self.0.layout.clone(),
            meta: Mutex::default(),
        }))
    }

    /// The current value without history, in storage of its own. No data is copied: values are immutable, and
    /// a later write to either makes a new one.
    pub(crate) fn detach_value(&self) -> Tensor {
        Tensor::with_layout(self.node(), self.layout().clone())
    }

    /// Where gradients of this tensor flow, if it requires grad.
    pub(crate) fn gradient_edge(&self) -> Option<Edge> {
        self.refresh_view();
        let mut meta = self.meta();
        if let Some(edge) = &meta.grad_fn {
            return Some(edge.clone());
        }
        if !meta.requires_grad {
            return None;
        }
        let function = meta.accumulator.as_ref().and_then(Weak::upgrade).unwrap_or_else(|| {
            let function = GradFn::accumulate(self, Location::caller());
            meta.accumulator = Some(Arc::downgrade(&function));
            function
        });
        Some(Edge { function, output: 0 })
    }

    /// A view whose storage was written to since has a new history: that of its base, seen through its layout.
    fn refresh_view(&self) {
        let version = self.version();
        let base = match &mut self.meta().view {
            Some(view) if view.version != version => {
                view.version = version;
                view.base.clone()
            }
            _ => return,
        };
        let Some(edge) = base.gradient_edge() else { return };
        let (shape, layout) = (base.layout().shape.clone(), self.layout().clone());
        let formula: BackwardFn = Arc::new(move |_, g| {
            smallvec![g[0].as_ref().map(|g| crate::ops::views::scatter_strided(g, &shape, &layout))]
        });
        let (edges, outputs) = (smallvec![Some(edge)], smallvec![self.output_info()]);
        let function = GradFn::new("AsStridedBackward0", Location::caller(), edges, outputs, vec![], formula);
        self.rebase(Some(Edge { function, output: 0 }));
    }
}
