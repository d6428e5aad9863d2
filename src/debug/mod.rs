//! Looking inside: what will run and what it takes ([`plan`]), the autograd graph as a picture ([`graph()`]), what ran and
//! when ([`trace()`]), which kernel is wrong ([`diff()`]).
//!
//! `WGRAD_DEBUG=1` to `4` prints what runs: 1 a line for each flush, 2 each kernel with its time and rates and
//! the line that recorded it, 3 its bindings and parameters too, 4 its WGSL too.
//!
//! [`diff()`] runs every kernel on both backends and says which differs, what error it made itself and what it was given;
//! [`bisect()`] does so for long runs, looking only at the ends of flushes until one differs. Both name the op within a fused
//! kernel. `KernelDiff::save` writes a kernel that differs to a folder, and `replay` runs it from there, on any machine.

mod bisect;
mod ceilings;
mod diff;
mod graph;
mod layered;
#[cfg(feature = "io")]
mod listing;
mod ops;
mod page;
mod plan;
#[cfg(feature = "io")]
mod repro;
#[cfg(all(test, feature = "gpu"))]
mod tests;
mod text;
mod trace;

pub use bisect::{Bisection, bisect};
pub use ceilings::Ceilings;
pub use diff::{Diff, Gap, KernelDiff, diff};
pub use graph::{Graph, GraphNode, GraphNodeKind, graph};
pub use ops::OpDiff;
pub use plan::{Plan, PlannedKernel, plan, plan_of};
#[cfg(feature = "io")]
pub use repro::{Replay, replay};
pub use trace::{Trace, TraceGuard, span, trace, trace_guard};

use crate::tensor::Tensor;

/// One tensor, or several: what [`plan`] and [`graph()`] take.
pub trait Tensors {
    /// Handles on them.
    fn tensors(&self) -> Vec<Tensor>;
}

impl Tensors for Tensor {
    fn tensors(&self) -> Vec<Tensor> {
        vec![self.clone()]
    }
}

impl<T: Tensors> Tensors for [T] {
    fn tensors(&self) -> Vec<Tensor> {
        self.iter().flat_map(Tensors::tensors).collect()
    }
}

impl<T: Tensors, const N: usize> Tensors for [T; N] {
    fn tensors(&self) -> Vec<Tensor> {
        self.as_slice().tensors()
    }
}

impl<T: Tensors> Tensors for Vec<T> {
    fn tensors(&self) -> Vec<Tensor> {
        self.as_slice().tensors()
    }
}

impl<T: Tensors + ?Sized> Tensors for &T {
    fn tensors(&self) -> Vec<Tensor> {
        (**self).tensors()
    }
}
