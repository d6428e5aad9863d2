//! Hooks: the user's functions that see gradients on their way, and may replace them.

use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::function::GradFn;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{Tensor, WeakTensor};

/// Gradients by input or output; `None` where nothing flows.
pub type Gradients = [Option<Tensor>];

type TensorHook = dyn Fn(&Tensor) -> Option<Tensor> + Send + Sync;
type PreHook = dyn Fn(&Gradients) -> Option<Vec<Option<Tensor>>> + Send + Sync;
type PostHook = dyn Fn(&Gradients, &Gradients) -> Option<Vec<Option<Tensor>>> + Send + Sync;
type AccumulatedHook = dyn Fn(&Tensor) + Send + Sync;

#[derive(Clone)]
pub(crate) enum Hook {
    /// On the gradient of an output.
    Tensor(usize, Arc<TensorHook>),
    /// Keeps the gradient of an output in a tensor's `grad`; after the other hooks on it.
    Retain(usize, WeakTensor),
    /// Before the function, on its outputs' gradients.
    Pre(Arc<PreHook>),
    /// After the function, on its inputs' gradients and its outputs'.
    Post(Arc<PostHook>),
    /// After a leaf's gradient has grown.
    Accumulated(Arc<AccumulatedHook>),
}

#[derive(Clone)]
pub(crate) struct Entry {
    id: u64,
    /// Where the user registered it.
    pub(super) caller: &'static Location<'static>,
    pub(super) hook: Hook,
}

/// In order of registration.
pub(crate) type Hooks = Vec<Entry>;

/// What a hook gives back: nothing, or what is to flow on instead. Hooks may give `()`, the gradient, or an `Option` of it.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// x.register_hook(|g| println!("{g}"))?;
/// x.register_hook(|g| g * 2.0)?;
/// x.register_hook(|g| (g.numel() > 10).then(|| g * 0.0))?;
/// # Ok::<(), wgrad::Error>(())
/// ```
pub trait Replacement<T> {
    /// What is to flow on instead, if anything.
    fn replacement(self) -> Option<T>;
}
macro_rules! replacement {
    ($t:ty) => {
        impl Replacement<$t> for () {
            fn replacement(self) -> Option<$t> {
                None
            }
        }
        impl Replacement<$t> for $t {
            fn replacement(self) -> Option<$t> {
                Some(self)
            }
        }
        impl Replacement<$t> for Option<$t> {
            fn replacement(self) -> Option<$t> {
                self
            }
        }
    };
}
replacement! { Tensor }
replacement! { Vec<Option<Tensor>> }

/// Where a hook hangs.
enum Place {
    Function(Weak<GradFn>),
    Leaf(WeakTensor),
}

/// A registered hook. Dropping the handle leaves the hook in place (`torch.utils.hooks.RemovableHandle`).
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let handle = x.register_hook(|g| g * 100.0)?;
/// handle.remove();
/// x.sum().backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [1.0, 1.0]);
/// # Ok::<(), wgrad::Error>(())
/// ```
pub struct HookHandle {
    id: u64,
    place: Place,
}

impl HookHandle {
    /// Takes the hook away; nothing happens if it is gone already. A pass that is running may still call it.
    pub fn remove(&self) {
        let take = |hooks: &mut Hooks| hooks.iter().position(|e| e.id == self.id).map(|at| hooks.remove(at));
        // What the hook holds is dropped outside the locks.
        let removed = match &self.place {
            Place::Function(f) => f.upgrade().and_then(|f| take(&mut f.hooks.lock())),
            Place::Leaf(t) => t.upgrade().and_then(|t| take(&mut t.meta().hooks)),
        };
        drop(removed);
    }
}

fn entry(hook: Hook, caller: &'static Location<'static>) -> Entry {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Entry { id: NEXT.fetch_add(1, Ordering::Relaxed), caller, hook }
}

impl GradFn {
    fn add_hook(self: &Arc<Self>, hook: Hook, caller: &'static Location<'static>) -> HookHandle {
        let entry = entry(hook, caller);
        let handle = HookHandle { id: entry.id, place: Place::Function(Arc::downgrade(self)) };
        self.hooks.lock().push(entry);
        handle
    }

    /// Calls `hook` with the gradients of the function's inputs and of its outputs, after it has run in a
    /// backward pass. If the hook gives gradients, they flow on instead of the former (`Node.register_hook`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = ones([2]).requires_grad_(true);
    /// let y = &x * 3.0;
    /// let double = |g: &Option<Tensor>| g.as_ref().map(|g| g * 2.0);
    /// y.grad_fn().unwrap().register_hook(move |inputs, _outputs| inputs.iter().map(double).collect::<Vec<_>>());
    /// y.sum().backward()?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [6.0, 6.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn register_hook<R: Replacement<Vec<Option<Tensor>>>>(
        self: &Arc<Self>,
        hook: impl Fn(&Gradients, &Gradients) -> R + Send + Sync + 'static,
    ) -> HookHandle {
        let hook = Hook::Post(Arc::new(move |inputs, outputs| hook(inputs, outputs).replacement()));
        self.add_hook(hook, Location::caller())
    }

    /// Calls `hook` with the gradients of the function's outputs before it runs. If the hook gives gradients,
    /// the function gets them instead (`Node.register_prehook`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = ones([2]).requires_grad_(true);
    /// let y = &x * 3.0;
    /// y.grad_fn().unwrap().register_prehook(|outputs| println!("on its way: {:?}", outputs[0]));
    /// y.sum().backward()?;
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn register_prehook<R: Replacement<Vec<Option<Tensor>>>>(
        self: &Arc<Self>,
        hook: impl Fn(&Gradients) -> R + Send + Sync + 'static,
    ) -> HookHandle {
        self.add_hook(Hook::Pre(Arc::new(move |outputs| hook(outputs).replacement())), Location::caller())
    }

    /// Makes passes keep this output's gradient in `tensor`'s `grad`.
    pub(crate) fn retain(self: &Arc<Self>, output: usize, tensor: WeakTensor) {
        self.add_hook(Hook::Retain(output, tensor), Location::caller());
    }

    /// Undoes [`retain`](GradFn::retain).
    pub(crate) fn forget(&self, tensor: &WeakTensor) {
        self.hooks.lock().retain(|e| !matches!(&e.hook, Hook::Retain(_, t) if t.is_same(tensor)));
    }
}

impl Tensor {
    /// Calls `hook` with this tensor's gradient whenever one has been computed. If the hook gives a tensor, it
    /// takes the gradient's place (`Tensor.register_hook`).
    ///
    /// The gradient is the sum of all that flows here. The hook belongs to the value that the tensor has now: a
    /// later write in place gives it another, whose gradient the hook does not see. It should not write to the
    /// gradient, which others may hold. A hook that holds this tensor, or what was made from it, keeps the graph alive.
    /// Hooks of a leaf go with it: a leaf that nobody holds any more gets no gradient, and its hooks are not called.
    ///
    /// # Errors
    /// If the tensor does not require grad. In the pass, if the replacement has another shape or dtype.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = ones([2]).requires_grad_(true);
    /// let handle = x.register_hook(|g| g * 2.0)?;
    /// (&x * 3.0).sum().backward()?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [6.0, 6.0]);
    /// handle.remove();
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn register_hook<R: Replacement<Tensor>>(
        &self,
        hook: impl Fn(&Tensor) -> R + Send + Sync + 'static,
    ) -> Result<HookHandle> {
        let caller = Location::caller();
        let hook = move |g: &Tensor| hook(g).replacement();
        if !self.requires_grad() {
            let message = "cannot register a hook on a tensor that doesn't require gradient";
            return Err(self.fault("register_hook", message, caller));
        }
        let function = self.meta().grad_fn.clone();
        Ok(match function {
            Some(edge) => edge.function.add_hook(Hook::Tensor(edge.output, Arc::new(hook)), caller),
            None => self.add_leaf_hook(Hook::Tensor(0, Arc::new(hook)), caller),
        })
    }

    /// Calls `hook` with this leaf after a backward pass has added to its `grad`
    /// (`Tensor.register_post_accumulate_grad_hook`).
    ///
    /// # Errors
    /// If the tensor does not require grad, or is no leaf.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// // A step of gradient descent as soon as the gradient is there, which is then forgotten.
    /// let w = ones([2]).requires_grad_(true);
    /// w.register_post_accumulate_grad_hook(|w| {
    ///     no_grad(|| w.grad().map(|g| w.sub_(g * 0.5)));
    ///     w.set_grad(None);
    /// })?;
    /// (&w * 3.0).sum().backward()?;
    /// assert_eq!(w.to_vec::<f32>()?, [-0.5, -0.5]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn register_post_accumulate_grad_hook(
        &self,
        hook: impl Fn(&Tensor) + Send + Sync + 'static,
    ) -> Result<HookHandle> {
        let (op, caller) = ("register_post_accumulate_grad_hook", Location::caller());
        if !self.requires_grad() {
            return Err(self.fault(
                op,
                "cannot register a hook on a tensor that doesn't require gradient",
                caller,
            ));
        }
        if !self.is_leaf() {
            let message = "post accumulate grad hooks cannot be registered on non-leaf tensors";
            return Err(self.fault(op, message, caller));
        }
        Ok(self.add_leaf_hook(Hook::Accumulated(Arc::new(hook)), caller))
    }

    fn add_leaf_hook(&self, hook: Hook, caller: &'static Location<'static>) -> HookHandle {
        let entry = entry(hook, caller);
        let handle = HookHandle { id: entry.id, place: Place::Leaf(self.downgrade()) };
        self.meta().hooks.push(entry);
        handle
    }

    /// The error this tensor carries, or else this one.
    fn fault(&self, op: &'static str, message: &str, caller: &'static Location<'static>) -> Error {
        self.error().unwrap_or_else(|| Error::at(caller, ErrorKind::Autograd, op, message))
    }
}

/// Shows the gradient of output `output` to the hooks on it.
pub(super) fn on_output(hooks: &Hooks, output: usize, mut grad: Tensor) -> Result<Tensor> {
    for entry in hooks {
        if let Hook::Tensor(of, hook) = &entry.hook
            && *of == output
            && let Some(new) = hook(&grad)
        {
            grad = replaced(&grad, new, entry.caller)?;
        }
    }
    Ok(grad)
}

/// Shows a function's outputs' gradients to the hooks that come before it.
pub(super) fn before(hooks: &Hooks, grads: &mut [Option<Tensor>]) -> Result<()> {
    for entry in hooks {
        if let Hook::Pre(hook) = &entry.hook
            && let Some(new) = hook(grads)
        {
            replace_all(grads, new, entry.caller)?;
        }
    }
    Ok(())
}

/// Shows a function's inputs' and outputs' gradients to the hooks that come after it.
pub(super) fn after(hooks: &Hooks, inputs: &mut [Option<Tensor>], outputs: &Gradients) -> Result<()> {
    for entry in hooks {
        if let Hook::Post(hook) = &entry.hook
            && let Some(new) = hook(inputs, outputs)
        {
            replace_all(inputs, new, entry.caller)?;
        }
    }
    Ok(())
}

fn replace_all(
    old: &mut [Option<Tensor>],
    new: Vec<Option<Tensor>>,
    caller: &'static Location<'static>,
) -> Result<()> {
    if new.len() != old.len() {
        let message = format!("hook has returned {} gradients instead of {}", new.len(), old.len());
        return Err(Error::at(caller, ErrorKind::Autograd, "register_hook", message));
    }
    for (old, new) in old.iter_mut().zip(new) {
        *old = match (old.take(), new) {
            (Some(old), Some(new)) => Some(replaced(&old, new, caller)?),
            (_, new) => new,
        };
    }
    Ok(())
}

fn replaced(old: &Tensor, new: Tensor, caller: &'static Location<'static>) -> Result<Tensor> {
    let fail = |kind, what: String| Err(Error::at(caller, kind, "register_hook", what));
    if let Some(error) = new.error() {
        return Err(error);
    }
    if new.shape() != old.shape() {
        return fail(
            ErrorKind::Shape,
            format!("hook has changed the size of value: {:?} to {:?}", old.shape(), new.shape()),
        );
    }
    if new.dtype() != old.dtype() || new.device() != old.device() {
        return fail(
            ErrorKind::DType,
            format!(
                "hook has changed the type of value: {} on {} to {} on {}",
                old.dtype(),
                old.device(),
                new.dtype(),
                new.device()
            ),
        );
    }
    Ok(new)
}

/// Tells a leaf's hooks that its gradient has grown.
pub(super) fn accumulated(leaf: &Tensor) {
    let hooks = leaf.meta().hooks.clone();
    for entry in hooks {
        if let Hook::Accumulated(hook) = &entry.hook {
            hook(leaf);
        }
    }
}
