//! Whether operations are recorded for gradients: a switch per thread, turned by closures or guards.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(true) };
}

/// Whether operations on this thread are recorded for gradients (`torch.is_grad_enabled`).
pub fn is_grad_enabled() -> bool {
    ENABLED.get()
}

/// Restores the thread's mode when dropped, also when unwinding.
#[must_use = "the mode lasts as long as the guard"]
pub struct GradModeGuard {
    before: bool,
    /// A guard belongs to the thread whose mode it holds.
    _not_send: PhantomData<*const ()>,
}

impl Drop for GradModeGuard {
    fn drop(&mut self) {
        ENABLED.set(self.before);
    }
}

/// Switches recording on or off for this thread until the guard is dropped (`torch.set_grad_enabled`).
pub fn set_grad_enabled(enabled: bool) -> GradModeGuard {
    GradModeGuard { before: ENABLED.replace(enabled), _not_send: PhantomData }
}

/// Runs `f` without recording for gradients, as `with torch.no_grad():` does.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = ones([2]).requires_grad_(true);
/// let y = no_grad(|| &x * 2.0);
/// assert!(!y.requires_grad());
/// ```
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    let _guard = set_grad_enabled(false);
    f()
}

/// [`no_grad`] for the rest of a scope.
pub fn no_grad_guard() -> GradModeGuard {
    set_grad_enabled(false)
}

/// Runs `f` with recording on, also inside [`no_grad`] (`torch.enable_grad`).
pub fn enable_grad<R>(f: impl FnOnce() -> R) -> R {
    let _guard = set_grad_enabled(true);
    f()
}

/// [`enable_grad`] for the rest of a scope.
pub fn enable_grad_guard() -> GradModeGuard {
    set_grad_enabled(true)
}
