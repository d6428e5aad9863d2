//! Looking inside: what will run and what it takes ([`plan`]), the autograd graph as a picture ([`graph()`]), what ran and
//! when ([`trace()`]), which kernel is wrong ([`diff()`]).
//!
//! `WGRAD_DEBUG=1` to `4` prints what runs: 1 a line for each flush, 2 each kernel with its time and rates and
//! the line that recorded it, 3 its bindings and parameters too, 4 its WGSL too.

mod ceilings;
mod diff;
mod graph;
mod layered;
mod page;
mod plan;
mod text;
mod trace;

pub use ceilings::Ceilings;
pub use diff::{Diff, KernelDiff, diff};
pub use graph::{Graph, GraphNode, GraphNodeKind, graph};
pub use plan::{Plan, PlannedKernel, plan, plan_of};
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
