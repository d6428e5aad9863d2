//! Anomaly detection: which op made NaN (`torch.autograd.detect_anomaly`).

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use smallvec::SmallVec;

use super::function::GradFn;
use crate::error::{Error, Result};
use crate::graph::anomaly::{Scope, Watch, within};
use crate::tensor::Tensor;

/// What to look for: the arguments of PyTorch's `detect_anomaly`.
///
/// ```
/// # use wgrad::prelude::*;
/// use wgrad::autograd::{Anomaly, detect_anomaly_with};
/// let x = tensor([0.0, 1.0]);
/// assert_eq!(x.reciprocal().to_vec::<f32>()?, [f32::INFINITY, 1.0]);
/// let error = detect_anomaly_with(Anomaly::new().check_inf(true), || x.reciprocal().to_vec::<f32>()).unwrap_err();
/// assert!(error.message().contains("inf"), "{error}");
/// # Ok::<(), wgrad::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anomaly {
    check_nan: bool,
    check_inf: bool,
}

impl Default for Anomaly {
    fn default() -> Anomaly {
        Anomaly { check_nan: true, check_inf: false }
    }
}

impl Anomaly {
    pub fn new() -> Anomaly {
        Anomaly::default()
    }

    /// Look for NaN (the default). Without, nothing is looked at; errors name their lines in any case.
    pub fn check_nan(mut self, check: bool) -> Anomaly {
        self.check_nan = check;
        self
    }

    /// Look for infinity as well, where an op makes it of finite numbers. What has infinity among its operands
    /// (a mask of `-inf`) may pass it on.
    pub fn check_inf(mut self, check: bool) -> Anomaly {
        self.check_inf = check;
        self
    }

    fn watch(self) -> Option<Watch> {
        self.check_nan.then_some(Watch { inf: self.check_inf })
    }
}

thread_local! {
    static MODE: Cell<Option<Anomaly>> = Cell::new(Scope::current().map(|_| Anomaly::new()));
}

/// Whether this thread detects anomalies (`torch.is_anomaly_enabled`).
///
/// ```
/// use wgrad::autograd::{detect_anomaly_guard, is_anomaly_enabled};
/// let guard = detect_anomaly_guard();
/// assert!(is_anomaly_enabled());
/// drop(guard);
/// assert!(!is_anomaly_enabled());
/// ```
pub fn is_anomaly_enabled() -> bool {
    MODE.get().is_some()
}

/// Whether it looks for NaN, too (`torch.is_anomaly_check_nan_enabled`).
///
/// ```
/// use wgrad::autograd::{Anomaly, is_anomaly_check_nan_enabled, set_detect_anomaly};
/// let _guard = set_detect_anomaly(Anomaly::new().check_nan(false));
/// assert!(!is_anomaly_check_nan_enabled());
/// ```
pub fn is_anomaly_check_nan_enabled() -> bool {
    MODE.get().is_some_and(|mode| mode.check_nan)
}

/// Restores what the thread looked for when dropped, also when unwinding.
#[must_use = "the mode lasts as long as the guard"]
pub struct AnomalyGuard {
    before: (Option<Anomaly>, Option<Arc<Scope>>),
    /// A guard belongs to the thread whose mode it holds.
    _not_send: PhantomData<*const ()>,
}

impl Drop for AnomalyGuard {
    fn drop(&mut self) {
        MODE.set(self.before.0);
        Scope::enter(self.before.1.take());
    }
}

/// Turns anomaly detection on or off for this thread until the guard is dropped
/// (`torch.autograd.set_detect_anomaly`), with what to look for as an argument. See [`detect_anomaly`].
///
/// What is recorded meanwhile is looked at when it runs, be it after the guard is gone or by another thread; an error is
/// in the tensors that it spoilt.
///
/// ```
/// # use wgrad::prelude::*;
/// let guard = autograd::set_detect_anomaly(true);
/// let y = tensor([-1.0]).log();
/// drop(guard);
/// assert!(y.item::<f32>().is_err());
/// ```
pub fn set_detect_anomaly(how: impl Into<SetAnomaly>) -> AnomalyGuard {
    let mode = how.into().0;
    // Before the scope: the first look at it asks the environment, by the scope.
    let before = MODE.replace(mode);
    let scope = mode.and_then(Anomaly::watch).map(Scope::new);
    AnomalyGuard { before: (before, Scope::enter(scope)), _not_send: PhantomData }
}

/// What [`set_detect_anomaly`] takes: `true`, `false`, or an [`Anomaly`].
#[derive(Clone, Copy, Debug)]
pub struct SetAnomaly(Option<Anomaly>);

impl From<bool> for SetAnomaly {
    fn from(on: bool) -> SetAnomaly {
        SetAnomaly(on.then(Anomaly::new))
    }
}

impl From<Anomaly> for SetAnomaly {
    fn from(how: Anomaly) -> SetAnomaly {
        SetAnomaly(Some(how))
    }
}

/// [`detect_anomaly`] for the rest of a scope.
///
/// ```
/// # use wgrad::prelude::*;
/// let _guard = autograd::detect_anomaly_guard();
/// let x = tensor(0.0).requires_grad_(true);
/// let error = (x.sqrt() * 0.0).backward().unwrap_err();
/// assert!(error.message().starts_with("Function 'SqrtBackward0' returned nan values"), "{error}");
/// ```
pub fn detect_anomaly_guard() -> AnomalyGuard {
    set_detect_anomaly(true)
}

/// Runs `f` while this thread looks for NaN in every value that a kernel stores, forward and backward, and names the
/// op that made it (`torch.autograd.detect_anomaly`).
///
/// The error is of the kind [`Autograd`](crate::ErrorKind::Autograd): what the op was, its shapes, and the line that
/// recorded it. For an op of the backward pass it is PyTorch's message, with the line of the forward op whose
/// gradient it was. NaN that came in from outside is told of as such. [`Tensor::backward`] and `autograd::grad` run and
/// look at everything before they return, so that no optimizer steps on what is not a number; reading a value looks
/// at what it took. What was not read is looked at in the end, if `f`'s result or anyone else still holds it.
/// Tensors with NaN that were recorded meanwhile, and what was made from them, carry the error from then on; all others
/// are what they are. What was recorded before is not looked at, so `f` should hold the forward pass as well.
///
/// Infinity is no anomaly, unless [asked for](Anomaly::check_inf). An op is looked at where its result is stored: NaN
/// that is replaced (by [`where_`](Tensor::where_), say) within the same fused kernel is not told of, and that is as
/// well. On a GPU, a kernel that takes all the storage buffers that the device grants is not looked at, but those
/// that read its results are.
///
/// It costs two instructions for each number stored and one small read behind each flush: a few per cent of
/// a training step. Kernels are the same otherwise, and so is each bit of the results.
///
/// # Errors
/// What `f` returned, or the first anomaly.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = tensor([1.0, -1.0]).requires_grad_(true);
/// let error = autograd::detect_anomaly(|| Ok(x.log())).unwrap_err();
/// assert_eq!((error.kind(), error.op()), (ErrorKind::Autograd, "log"));
/// assert_eq!(error.caller().line(), line!() - 2);
/// ```
pub fn detect_anomaly<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    detect_anomaly_with(Anomaly::new(), f)
}

/// [`detect_anomaly`] with what to look for.
///
/// # Errors
/// As [`detect_anomaly`].
pub fn detect_anomaly_with<R>(how: Anomaly, f: impl FnOnce() -> Result<R>) -> Result<R> {
    let guard = set_detect_anomaly(how);
    let result = f();
    let scope = Scope::current();
    drop(guard);
    let first = scope.and_then(|scope| {
        scope.flush();
        scope.first()
    });
    match (result, first) {
        (Ok(_), Some(error)) => Err(error),
        (result, _) => result,
    }
}

/// Calls a function of the backward pass, noting what it records as its own while someone looks for anomalies.
pub(super) fn noting(
    f: &GradFn,
    apply: impl FnOnce() -> Result<SmallVec<[Option<Tensor>; 3]>>,
) -> Result<SmallVec<[Option<Tensor>; 3]>> {
    if Scope::current().is_none() {
        return apply();
    }
    let grads = within(f.name(), apply)?;
    for (i, grad) in grads.iter().enumerate() {
        if let Some(grad) = grad {
            grad.node().set_output(f.name(), i);
        }
    }
    Ok(grads)
}

/// A backward pass while someone looks.
pub(super) struct Looking {
    scope: Option<Arc<Scope>>,
    /// What was met before is not this pass's.
    before: Option<Error>,
}

impl Looking {
    pub fn back() -> Looking {
        let scope = Scope::current();
        let before = scope.as_ref().and_then(|scope| scope.replace_first(None));
        Looking { scope, before }
    }

    /// Runs the pass, and looks at all of it.
    pub fn end(self) -> Result<()> {
        let Some(scope) = &self.scope else { return Ok(()) };
        scope.flush();
        scope.first().map_or(Ok(()), Err)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let (Some(scope), Some(before)) = (&self.scope, self.before.take()) {
            scope.replace_first(Some(before));
        }
    }
}
