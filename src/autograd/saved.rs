//! What a function keeps of its inputs and outputs for the way back, and the hooks that may keep it elsewhere.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::function::{Edge, GradFn};
use super::mode::unrecorded;
use crate::device::Device;
use crate::error::{Error, ErrorKind};
use crate::graph::layout::Layout;
use crate::graph::node::Node;
use crate::tensor::Tensor;

/// A value as it was when it was saved. Nodes are immutable, so a later write into the tensor cannot reach
/// it, and the gradient stays right where PyTorch must give up with a version error.
pub(crate) struct Saved {
    value: Value,
    link: Link,
}

enum Value {
    Here(Arc<Node>, Layout),
    Packed(Arc<dyn Any + Send + Sync>, Arc<dyn Pair>),
}

/// How the value hangs in the autograd graph, for gradients of gradients.
enum Link {
    None,
    Input(Edge),
    /// An output of the function that saves it. Holding the function here would be a cycle; it is handed in
    /// when the value is taken out.
    Output(usize),
}

thread_local! {
    /// What was saved since the last function was made: it is the next one's.
    static SAVED: Cell<Count> = const { Cell::new(Count { values: 0, bytes: 0 }) };
    /// The hooks in force; `None` while one of them runs.
    static HOOKS: RefCell<Vec<Option<Arc<dyn Pair>>>> = const { RefCell::new(vec![]) };
}

/// Whether there ever were hooks: until then saving need not ask its thread.
static EVER: AtomicBool = AtomicBool::new(false);

/// How many values, and the bytes of those that are held.
#[derive(Clone, Copy, Default)]
pub(super) struct Count {
    pub values: usize,
    pub bytes: usize,
}

/// Sets the count when dropped: what a hook records in between counts for its own functions. When it panics, the
/// function that was being made never will be.
struct Recount(Count);

impl Drop for Recount {
    fn drop(&mut self) {
        SAVED.set(if std::thread::panicking() { Count::default() } else { self.0 });
    }
}

/// Takes the count of what was saved for the function being made.
pub(super) fn saved_since() -> Count {
    SAVED.take()
}

impl Saved {
    fn new(tensor: &Tensor, link: Link) -> Saved {
        let hooks = match EVER.load(Ordering::Relaxed) {
            true => HOOKS.with_borrow(|hooks| hooks.last().cloned().flatten()),
            false => None,
        };
        let before = SAVED.get();
        let count = Count { values: before.values + 1, ..before };
        let value = match hooks {
            None => {
                let node = tensor.node();
                SAVED.set(Count { bytes: before.bytes + node.bytes(), ..count });
                Value::Here(node, tensor.layout().clone())
            }
            Some(hooks) => {
                let _count = Recount(count);
                let packed = quietly(|| hooks.pack(&tensor.detach_value()));
                Value::Packed(packed, hooks)
            }
        };
        Saved { value, link }
    }

    pub fn input(tensor: &Tensor) -> Saved {
        Saved::new(tensor, tensor.gradient_edge().map_or(Link::None, Link::Input))
    }

    /// An input of which only the values matter (an index, a mask).
    pub fn value(tensor: &Tensor) -> Saved {
        Saved::new(tensor, Link::None)
    }

    pub fn output(tensor: &Tensor) -> Saved {
        Saved::output_at(tensor, 0)
    }

    /// Output number `output` of the function that is being made.
    pub fn output_at(tensor: &Tensor, output: usize) -> Saved {
        Saved::new(tensor, Link::Output(output))
    }

    pub fn unpack(&self, owner: &Arc<GradFn>) -> Tensor {
        let edge = match &self.link {
            Link::None => None,
            Link::Input(edge) => Some(edge.clone()),
            Link::Output(output) => Some(Edge { function: owner.clone(), output: *output }),
        };
        let value = self.without_history();
        value.meta().grad_fn = edge;
        value
    }

    /// The value alone.
    pub fn without_history(&self) -> Tensor {
        match &self.value {
            Value::Here(node, layout) => Tensor::with_layout(node.clone(), layout.clone()),
            Value::Packed(packed, hooks) => quietly(|| hooks.unpack(&**packed)).detach_value(),
        }
    }
}

/// Runs a hook: what it does with the tensor is neither recorded nor packed in turn.
fn quietly<R>(f: impl FnOnce() -> R) -> R {
    let _hooks = push(None);
    unrecorded(f)
}

/// Two functions that agree on what stands for a saved tensor.
pub(super) trait Pair: Send + Sync {
    fn pack(&self, tensor: &Tensor) -> Arc<dyn Any + Send + Sync>;
    fn unpack(&self, packed: &(dyn Any + Send + Sync)) -> Tensor;
}

struct Closures<P, U>(P, U);

impl<T, P, U> Pair for Closures<P, U>
where
    T: Send + Sync + 'static,
    P: Fn(&Tensor) -> T + Send + Sync,
    U: Fn(&T) -> Tensor + Send + Sync,
{
    fn pack(&self, tensor: &Tensor) -> Arc<dyn Any + Send + Sync> {
        Arc::new((self.0)(tensor))
    }

    fn unpack(&self, packed: &(dyn Any + Send + Sync)) -> Tensor {
        match packed.downcast_ref::<T>() {
            Some(packed) => (self.1)(packed),
            None => Tensor::invalid(Error::new(
                ErrorKind::Autograd,
                "saved_tensors_hooks",
                "what was packed is of another type",
            )),
        }
    }
}

/// Takes the hooks away when dropped.
#[must_use = "the hooks are in force as long as the guard lives"]
pub struct SavedTensorsHooks {
    /// A guard belongs to the thread whose hooks it holds.
    _not_send: PhantomData<*const ()>,
}

impl Drop for SavedTensorsHooks {
    fn drop(&mut self) {
        let hooks = HOOKS.with_borrow_mut(Vec::pop);
        drop(hooks); // outside the borrow
    }
}

pub(super) fn push(hooks: Option<Arc<dyn Pair>>) -> SavedTensorsHooks {
    EVER.store(true, Ordering::Relaxed);
    HOOKS.with_borrow_mut(|all| all.push(hooks));
    SavedTensorsHooks { _not_send: PhantomData }
}

/// Runs `f`, and calls `pack` with every tensor that is saved for the way back in it; what it gives is kept instead,
/// and `unpack` must make the tensor of it when a backward pass needs it
/// (`torch.autograd.graph.saved_tensors_hooks`). Both run without recording gradients. The innermost hooks hold.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = tensor([1.0, 2.0]).requires_grad_(true);
/// // What is saved is kept in fixed point.
/// let y = autograd::saved_tensors_hooks(
///     |t| (t * 256).to(I32),
///     |packed| packed.to(F32) / 256,
///     || (&x * &x).sum(),
/// );
/// y.backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn saved_tensors_hooks<T: Send + Sync + 'static, R>(
    pack: impl Fn(&Tensor) -> T + Send + Sync + 'static,
    unpack: impl Fn(&T) -> Tensor + Send + Sync + 'static,
    f: impl FnOnce() -> R,
) -> R {
    let _hooks = saved_tensors_hooks_guard(pack, unpack);
    f()
}

/// [`saved_tensors_hooks`] for the rest of a scope.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let hooks = autograd::saved_tensors_hooks_guard(|t| t.clone(), |t| t.clone());
/// let y = (&x * &x).sum();
/// drop(hooks);
/// y.backward()?;
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn saved_tensors_hooks_guard<T: Send + Sync + 'static>(
    pack: impl Fn(&Tensor) -> T + Send + Sync + 'static,
    unpack: impl Fn(&T) -> Tensor + Send + Sync + 'static,
) -> SavedTensorsHooks {
    push(Some(Arc::new(Closures(pack, unpack))))
}

/// Runs `f`, and keeps what it saves for the way back in the host's memory instead of the device's
/// (`torch.autograd.graph.save_on_cpu`). Each tensor is computed and read when it is saved.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = randn([4]).requires_grad_(true);
/// let y = autograd::save_on_cpu(|| x.exp().sum());
/// y.backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, no_grad(|| x.exp()).to_vec::<f32>()?);
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn save_on_cpu<R>(f: impl FnOnce() -> R) -> R {
    let pack = |t: &Tensor| -> (Tensor, Device) { (t.to(crate::device::cpu()), t.device().clone()) };
    saved_tensors_hooks(pack, |(t, device)| t.to(device), f)
}
