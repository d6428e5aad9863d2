//! Whether operations are recorded for gradients: switches per thread, turned by closures or guards.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::Location;

#[derive(Clone, Copy)]
struct Mode {
    recording: bool,
    inference: bool,
    /// Where recording was switched off, if what is lost by it should be remembered (see `cut.rs`).
    off_at: Option<&'static Location<'static>>,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode { recording: true, inference: false, off_at: None }) };
}

/// Whether operations on this thread are recorded for gradients (`torch.is_grad_enabled`).
///
/// ```
/// # use wgrad::prelude::*;
/// assert!(autograd::is_grad_enabled() && !no_grad(autograd::is_grad_enabled));
/// ```
pub fn is_grad_enabled() -> bool {
    let mode = MODE.get();
    mode.recording && !mode.inference
}

/// Whether this thread is in [`inference_mode`] (`torch.is_inference_mode_enabled`).
///
/// ```
/// # use wgrad::prelude::*;
/// assert!(autograd::inference_mode(autograd::is_inference_mode_enabled));
/// ```
pub fn is_inference_mode_enabled() -> bool {
    MODE.get().inference
}

/// Where recording was switched off, if it is off and the user did it.
pub(super) fn off_at() -> Option<&'static Location<'static>> {
    let mode = MODE.get();
    if mode.recording || mode.inference { None } else { mode.off_at }
}

/// Restores the thread's mode when dropped, also when unwinding.
#[must_use = "the mode lasts as long as the guard"]
pub struct GradModeGuard {
    before: Mode,
    /// A guard belongs to the thread whose mode it holds.
    _not_send: PhantomData<*const ()>,
}

impl Drop for GradModeGuard {
    fn drop(&mut self) {
        MODE.set(self.before);
    }
}

fn switch(mode: Mode) -> GradModeGuard {
    GradModeGuard { before: MODE.replace(mode), _not_send: PhantomData }
}

/// Switches recording on or off for this thread until the guard is dropped (`torch.set_grad_enabled`).
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let training = false;
/// let y = {
///     let _guard = autograd::set_grad_enabled(training);
///     &x * 2.0
/// };
/// assert!(!y.requires_grad() && autograd::is_grad_enabled());
/// ```
#[track_caller]
pub fn set_grad_enabled(enabled: bool) -> GradModeGuard {
    switch(Mode { recording: enabled, off_at: Some(Location::caller()), ..MODE.get() })
}

/// The same for the library's own work: what is cut by it is nobody's mistake.
pub(crate) fn record_gradients(enabled: bool) -> GradModeGuard {
    switch(Mode { recording: enabled, off_at: None, ..MODE.get() })
}

/// Runs `f` without recording for gradients, as `with torch.no_grad():` does.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let y = no_grad(|| &x * 2.0);
/// assert!(!y.requires_grad());
/// ```
#[track_caller]
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    let _guard = set_grad_enabled(false);
    f()
}

/// [`no_grad`] for the rest of a scope.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let _guard = autograd::no_grad_guard();
/// assert!(!(&x * 2.0).requires_grad());
/// ```
#[track_caller]
pub fn no_grad_guard() -> GradModeGuard {
    set_grad_enabled(false)
}

/// Runs `f` with recording on, also inside [`no_grad`] (`torch.enable_grad`).
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// no_grad(|| assert!(enable_grad(|| &x * 2.0).requires_grad()));
/// ```
pub fn enable_grad<R>(f: impl FnOnce() -> R) -> R {
    let _guard = set_grad_enabled(true);
    f()
}

/// [`enable_grad`] for the rest of a scope.
///
/// ```
/// # use wgrad::prelude::*;
/// let _off = autograd::no_grad_guard();
/// let _on = autograd::enable_grad_guard();
/// assert!(autograd::is_grad_enabled());
/// ```
pub fn enable_grad_guard() -> GradModeGuard {
    set_grad_enabled(true)
}

/// Runs `f` in inference mode (`torch.inference_mode`): nothing is recorded for gradients, whatever
/// [`enable_grad`] says inside, and what is made there [is an inference tensor](crate::Tensor::is_inference),
/// which outside can be read and computed with but neither written to nor made to require grad.
///
/// Unlike in PyTorch such a tensor may take part in a computation that is recorded, as a constant: values here
/// are immutable, so that saving one for the way back is safe.
///
/// ```
/// # use wgrad::prelude::*;
/// let w = ones([2]).requires_grad_(true);
/// let y = autograd::inference_mode(|| &w * 2.0);
/// assert!(y.is_inference() && !y.requires_grad());
/// ```
pub fn inference_mode<R>(f: impl FnOnce() -> R) -> R {
    let _guard = inference_mode_guard(true);
    f()
}

/// [`inference_mode`] for the rest of a scope; `false` is the usual mode within it.
///
/// ```
/// # use wgrad::prelude::*;
/// let _inference = autograd::inference_mode_guard(true);
/// assert!(ones([2]).is_inference());
/// let _usual = autograd::inference_mode_guard(false);
/// assert!(!ones([2]).is_inference());
/// ```
pub fn inference_mode_guard(enabled: bool) -> GradModeGuard {
    switch(Mode { recording: !enabled, inference: enabled, off_at: None })
}

/// [`no_grad`] for the library's own work (see [`record_gradients`]).
pub(crate) fn unrecorded<R>(f: impl FnOnce() -> R) -> R {
    let _guard = record_gradients(false);
    f()
}
