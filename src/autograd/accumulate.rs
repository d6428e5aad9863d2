//! Adding to `grad`.

use std::thread::ThreadId;

use parking_lot::Mutex;

use super::mode::unrecorded;
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
pub(super) fn accumulate(leaf: &Tensor, grad: Tensor, create_graph: bool) {
    // Adding is only recorded here, so one lock for all leaves is held for an instant.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let me = std::thread::current().id();
    let (old, by, shares) = {
        let mut meta = leaf.meta();
        // Not `grad()`, which warns of non-leaves.
        (meta.grad.clone(), meta.grad_by, meta.shares.take())
    };
    match old {
        Some(old) if create_graph => {
            leaf.put_grad(Some(&old + &grad), Some(me));
        }
        None if create_graph => {
            leaf.put_grad(Some(grad), Some(me));
        }
        // A view of something (a sum's gradient is one number, expanded) could not be written to.
        None => {
            let own = if grad.covers_storage() { grad.detach_value() } else { grad.clone_data() };
            leaf.put_grad(Some(own), Some(me));
        }
        Some(old) if by == Some(me) && shares.is_none() => {
            unrecorded(|| old.add_(&grad));
        }
        Some(old) => {
            let shares = unrecorded(|| share(&old, &grad, by, me, shares));
            leaf.meta().shares = Some(shares);
        }
    }
}

/// Adds one thread's gradient to a `grad` that others have added to.
fn share(
    old: &Tensor,
    grad: &Tensor,
    by: Option<ThreadId>,
    me: ThreadId,
    shares: Option<Box<Shares>>,
) -> Box<Shares> {
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
    old.copy_(&sum_in_any_order(&parts));
    shares.version = old.version();
    shares
}

/// A sum that is the same, bit for bit, in whatever order its terms come: in fixed point, relative to the largest
/// term at each place. Its error is below that of adding one by one: a float32 sum has 2^-24 of the largest term at
/// best, this one 2^-26 at most for up to 16 terms.
fn sum_in_any_order(parts: &[&Tensor]) -> Tensor {
    if let [a, b] = parts {
        return *a + *b;
    }
    let parts: Vec<Tensor> = parts.iter().map(|&p| p.to(parts[0].device())).collect();
    let all = stack(&parts.iter().collect::<Vec<_>>(), 0);
    // All terms' sum must fit 31 bits.
    let bits = 29.0 - (parts.len() as f64).log2().ceil();
    let plain = all.sum_dim(0, false);
    let mut unit = all.abs().amax(0, false) * (-bits).exp2();
    let mut rest = all;
    let mut sum: Option<Tensor> = None;
    for _ in 0..if rest.dtype() == F64 { 2 } else { 1 } {
        let whole = (&rest / &unit).round();
        let level = whole.to(I32).sum_dim(0, false).to(rest.dtype()) * &unit;
        rest = &rest - whole * &unit;
        sum = Some(sum.map_or(level.clone(), |sum| sum + &level));
        unit = unit.mul((-bits).exp2());
    }
    // Where all are zero, infinite or NaN, there is no such unit, and no rounding that depends on order. (Below
    // 1e-30 there is none either, and the last bit of a float32 there may depend on it.)
    let usual = plain.abs().lt(f64::INFINITY).logical_and(unit.gt(0));
    sum.unwrap_or(plain.clone()).where_(&usual, &plain)
}
