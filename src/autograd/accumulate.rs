//! Adding to `grad`.

use std::thread::ThreadId;

use parking_lot::Mutex;

use super::mode::unrecorded;
use crate::error::Result;
use crate::graph::dtype::{F64, I32};
use crate::ops::cat::stack;
use crate::tensor::Tensor;

/// Who added what to a leaf's `grad`, once several threads have.
pub(crate) struct Shares {
    /// Each thread's sum, in its own order. `None` is what was there before any pass.
    by_thread: Vec<(Option<ThreadId>, Tensor)>,
    /// The version of `grad` that is the sum of these; another means that someone wrote to it.
    version: u64,
}

/// Adds to a tensor's `grad`, into the same tensor where there is one, as PyTorch does.
///
/// Passes of several threads may end in one leaf. Then each thread's gradients are summed in its order, and the
/// threads' sums in a way that does not depend on who comes first, so that the same work on the same threads
/// gives the same bits.
///
/// # Errors
/// If what was put into `grad` by hand cannot be added to.
pub(super) fn accumulate(leaf: &Tensor, grad: Tensor, create_graph: bool) -> Result<()> {
    // Adding is only recorded here, so one lock for all leaves is held for an instant.
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock();
    let me = std::thread::current().id();
    let (old, by, shares) = {
        let mut meta = leaf.meta();
        // Not `grad()`, which warns of non-leaves.
        (meta.grad.clone(), meta.grad_by, meta.shares.take())
    };
    let sum = match &old {
        Some(old) if create_graph => {
            let sum = old + &grad;
            if sum.error().is_none() {
                leaf.put_grad(Some(sum.clone()), Some(me));
            }
            sum
        }
        None if create_graph => {
            leaf.put_grad(Some(grad.clone()), Some(me));
            grad
        }
        // A view of something (a sum's gradient is one number, expanded) could not be written to.
        None => {
            let own = if grad.covers_storage() { grad.detach_value() } else { grad.clone_data() };
            leaf.put_grad(Some(own.clone()), Some(me));
            own
        }
        Some(old) if by == Some(me) && shares.is_none() => unrecorded(|| old.add_(&grad)),
        Some(old) => {
            let (shares, sum) = unrecorded(|| share(old, &grad, by, me, shares));
            leaf.meta().shares = Some(shares);
            sum
        }
    };
    drop(alone);
    // What was there before goes when the lock is free: a hook that it held may run anything when dropped.
    drop(old);
    sum.error().map_or(Ok(()), Err)
}

/// Adds one thread's gradient to a `grad` that others have added to.
fn share(
    old: &Tensor,
    grad: &Tensor,
    by: Option<ThreadId>,
    me: ThreadId,
    shares: Option<Box<Shares>>,
) -> (Box<Shares>, Tensor) {
    let mut shares = match shares {
        Some(shares) if shares.version == old.version() => shares,
        other => {
            // After a write by whomever, the whole is where all start from.
            let by = if other.is_some() { None } else { by };
            Box::new(Shares { by_thread: vec![(by, old.detach_value())], version: 0 })
        }
    };
    match shares.by_thread.iter_mut().find(|(thread, _)| *thread == Some(me)) {
        Some((_, sum)) => *sum = &*sum + grad,
        None => shares.by_thread.push((Some(me), grad.detach_value())),
    }
    let parts: Vec<&Tensor> = shares.by_thread.iter().map(|(_, sum)| sum).collect();
    let sum = old.copy_(&sum_in_any_order(&parts));
    shares.version = old.version();
    (shares, sum)
}

/// A sum that is the same, bit for bit, in whatever order its terms come: in fixed point, relative to the largest
/// term at each place, and once more for what that leaves of the terms. With `n` terms each level keeps 29 - log2(n)
/// bits of each: for float32 two levels are more than the terms have, for float64 three are up to 512 terms.
fn sum_in_any_order(parts: &[&Tensor]) -> Tensor {
    if let [a, b] = parts {
        return *a + *b;
    }
    let parts: Vec<Tensor> = parts.iter().map(|&p| p.to(parts[0].device())).collect();
    let all = stack(&parts.iter().collect::<Vec<_>>(), 0);
    // All terms' sum must fit 31 bits.
    let bits = 29.0 - (parts.len() as f64).log2().ceil();
    let plain = all.sum_dim(0, false);
    let unit = all.abs().amax(0, false) * (-bits).exp2();
    // But for this division nothing is rounded, up to the sums of each level: it does not matter either whether a
    // compiler makes one instruction of a product and a sum.
    let mut rest = &all / &unit;
    let mut sum: Option<Tensor> = None;
    for level in 0..if rest.dtype() == F64 { 3 } else { 2 } {
        let whole = rest.round();
        let here = whole.to(I32).sum_dim(0, false).to(rest.dtype()) * (-bits * f64::from(level)).exp2();
        rest = (&rest - &whole) * bits.exp2();
        sum = Some(sum.map_or(here.clone(), |sum| sum + &here));
    }
    let sum = sum.map(|sum| sum * &unit);
    // Where all are zero, infinite or NaN, there is no such unit, and no rounding that depends on order. (Below
    // 1e-30 there is none either, and the last bit of a float32 there may depend on it.)
    let usual = plain.abs().lt(f64::INFINITY).logical_and(unit.gt(0));
    sum.unwrap_or(plain.clone()).where_(&usual, &plain)
}
