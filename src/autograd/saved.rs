//! What a function keeps of its inputs and outputs for the way back.

use std::cell::Cell;
use std::sync::Arc;

use super::function::{Edge, GradFn};
use crate::graph::layout::Layout;
use crate::graph::node::Node;
use crate::tensor::Tensor;

/// A value as it was when it was saved. Nodes are immutable, so a later write into the tensor cannot reach
/// it, and the gradient stays right where PyTorch must give up with a version error.
pub(crate) struct Saved {
    node: Arc<Node>,
    layout: Layout,
    link: Link,
}

/// How the value hangs in the autograd graph, for gradients of gradients.
enum Link {
    None,
    Input(Edge),
    /// The output of the function that saves it. Holding the function here would be a cycle; it is handed in
    /// when the value is taken out.
    Output,
}

thread_local! {
    /// Bytes saved since the last function was made: they are the next one's.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Takes the count of the bytes saved for the function being made.
pub(super) fn bytes_since() -> usize {
    BYTES.take()
}

impl Saved {
    fn new(tensor: &Tensor, link: Link) -> Saved {
        let node = tensor.node();
        BYTES.set(BYTES.get() + node.bytes());
        Saved { node, layout: tensor.layout().clone(), link }
    }

    pub fn input(tensor: &Tensor) -> Saved {
        Saved::new(tensor, tensor.gradient_edge().map_or(Link::None, Link::Input))
    }

    /// An input of which only the values matter (an index, a mask).
    pub fn value(tensor: &Tensor) -> Saved {
        Saved::new(tensor, Link::None)
    }

    pub fn output(tensor: &Tensor) -> Saved {
        Saved::new(tensor, Link::Output)
    }

    pub fn unpack(&self, owner: &Arc<GradFn>) -> Tensor {
        let edge = match &self.link {
            Link::None => None,
            Link::Input(edge) => Some(edge.clone()),
            Link::Output => Some(Edge { function: owner.clone(), output: 0 }),
        };
        Tensor::from_saved(self.node.clone(), self.layout.clone(), edge)
    }
}
