//! Nodes: values that are recorded, and become buffers when something needs them.

use std::hash::{BuildHasher, Hash, Hasher};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};

use super::anomaly::{self, Note};
use super::device::Device;
use super::dtype::{DType, Scalar};
use super::kernel::{OpRef, ReduceOp};
use super::layout::{Dims, Layout, numel};
use super::program::{CAST, MapOp};
use super::timeline;
use crate::backend::Buffer;
use crate::error::Error;

/// An immutable value on a device, row-major and without gaps: first a recipe, then a buffer. What looks like
/// a change to a tensor in place is a new node.
pub struct Node {
    /// Grows with time, so an input's id is below its consumer's: sorting by id is a topological order.
    pub id: u64,
    pub device: Device,
    pub dtype: DType,
    pub shape: Dims,
    /// The user's line that recorded it.
    pub caller: &'static Location<'static>,
    pub(super) state: Mutex<State>,
    /// Computed from data that the device has yet to vouch for (see `doubt.rs`).
    pub(super) in_doubt: AtomicBool,
    /// The executor's mark: epoch in the high half, index within the current collection in the low.
    pub(super) mark: AtomicU64,
}

pub(super) enum State {
    /// Boxed: nodes are moved when they are dropped, and recipes are large.
    Pending(Box<Recipe>),
    Ready(Buffer),
    Failed(Error),
}

/// How to compute a node.
pub(super) struct Recipe {
    pub op: NodeOp,
    pub inputs: SmallVec<[Operand; 3]>,
    /// Hash of op, types, shapes and layouts: all but which nodes the inputs are and what the scalars say.
    pub key: u64,
    /// What a thread that watches for NaN noted.
    pub note: Option<Box<Note>>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum NodeOp {
    /// Elementwise. Every operand's layout has the node's shape.
    Map {
        op: &'static MapOp,
        operand: DType,
    },
    /// The operand's layout has the node's shape followed by the reduced dimensions.
    Reduce(ReduceOp),
    Structured(OpRef),
    /// The first operand (whole, as it lies) with the elements at this layout replaced by the second.
    Write(Layout),
    /// Memory with whatever contents, to be covered by writes.
    Empty,
}

impl NodeOp {
    /// By PyTorch's name, where it has one.
    pub fn name(&self) -> &'static str {
        match self {
            NodeOp::Map { op, .. } => op.name,
            NodeOp::Reduce(op) => op.name(),
            NodeOp::Structured(op) => op.0.name(),
            NodeOp::Write(_) => "write",
            NodeOp::Empty => "empty",
        }
    }
}

#[derive(Clone)]
pub enum Operand {
    Node(Arc<Node>, Layout),
    /// The u32 position that each coordinate has in this layout: counting, without memory.
    Index(Layout),
    Scalar(Scalar),
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
/// Fixed, so that plans hash alike from run to run.
pub(super) const HASHER: foldhash::quality::FixedState = foldhash::quality::FixedState::with_seed(0x7767);

impl Node {
    /// Records a value. It fails where an input has failed.
    pub fn record(
        device: &Device,
        dtype: DType,
        shape: &[usize],
        op: NodeOp,
        inputs: SmallVec<[Operand; 3]>,
        caller: &'static Location<'static>,
    ) -> Arc<Node> {
        if let NodeOp::Structured(structured) = &op
            && (dtype == DType::F16 || !structured.0.reads_halves())
        {
            return Node::record_structured(device, dtype, shape, structured.clone(), inputs, caller);
        }
        Node::record_as_is(device, dtype, shape, op, inputs, caller)
    }

    /// An op with a kernel of its own: halves are widened before it, and its result rounded after it, where it does
    /// not do so itself.
    fn record_structured(
        device: &Device,
        dtype: DType,
        shape: &[usize],
        op: OpRef,
        mut inputs: SmallVec<[Operand; 3]>,
        caller: &'static Location<'static>,
    ) -> Arc<Node> {
        let cast = |node: &Arc<Node>, to: DType| {
            let op = NodeOp::Map { op: &CAST, operand: node.dtype };
            let whole = Layout::contiguous(&node.shape);
            let operand = smallvec![Operand::Node(node.clone(), whole)];
            Node::record_as_is(device, to, &node.shape, op, operand, caller)
        };
        let (reads, rounds) = (op.0.reads_halves(), op.0.fuses_epilogue());
        for input in &mut inputs {
            if let Operand::Node(node, _) = input
                && node.dtype == DType::F16
                && !reads
            {
                *node = cast(node, DType::F32);
            }
        }
        let wide = if rounds { dtype } else { dtype.opmath() };
        let out = Node::record_as_is(device, wide, shape, NodeOp::Structured(op), inputs, caller);
        if wide == dtype { out } else { cast(&out, dtype) }
    }

    fn record_as_is(
        device: &Device,
        dtype: DType,
        shape: &[usize],
        op: NodeOp,
        inputs: SmallVec<[Operand; 3]>,
        caller: &'static Location<'static>,
    ) -> Arc<Node> {
        let failed = inputs.iter().find_map(|input| match input {
            Operand::Node(node, _) => node.error(),
            _ => None,
        });
        if let Some(error) = failed {
            return Node::with_state(device, dtype, shape, caller, State::Failed(error));
        }
        let began = timeline::on().then(|| (op.name(), std::time::Instant::now()));
        let mut hasher = HASHER.build_hasher();
        (&op, dtype, shape).hash(&mut hasher);
        for input in &inputs {
            match input {
                Operand::Node(node, layout) => (0u8, node.dtype, layout).hash(&mut hasher),
                Operand::Index(layout) => (1u8, layout).hash(&mut hasher),
                Operand::Scalar(_) => 2u8.hash(&mut hasher),
            }
        }
        let recipe = Recipe { op, inputs, key: hasher.finish(), note: anomaly::note(device) };
        let node = Node::with_state(device, dtype, shape, caller, State::Pending(Box::new(recipe)));
        if let Some((op, began)) = began {
            timeline::recorded(&node, op, began);
        }
        device.note_pending(&node);
        node
    }

    pub fn ready(
        device: &Device,
        dtype: DType,
        shape: &[usize],
        buffer: Buffer,
        caller: &'static Location<'static>,
    ) -> Arc<Node> {
        Node::with_state(device, dtype, shape, caller, State::Ready(buffer))
    }

    pub fn failed(device: &Device, dtype: DType, error: Error) -> Arc<Node> {
        Node::with_state(device, dtype, &[0], error.caller(), State::Failed(error))
    }

    fn with_state(
        device: &Device,
        dtype: DType,
        shape: &[usize],
        caller: &'static Location<'static>,
        state: State,
    ) -> Arc<Node> {
        Arc::new(Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            dtype,
            shape: Dims::from_slice(shape),
            caller: crate::error::line(caller),
            state: Mutex::new(state),
            in_doubt: AtomicBool::new(false),
            mark: AtomicU64::new(0),
        })
    }

    pub fn numel(&self) -> usize {
        numel(&self.shape)
    }

    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// Notes that this is result `i` of the backward function that recorded it, if it is that function's and pending.
    pub(crate) fn set_output(&self, function: &'static str, i: usize) {
        if let State::Pending(recipe) = &mut *self.state.lock()
            && let Some(note) = &mut recipe.note
            && note.function == Some(function)
        {
            note.output.get_or_insert(i);
        }
    }

    /// The op that is to compute it, and the shapes of its operands.
    pub(super) fn recipe_in_words(&self) -> (&'static str, String) {
        let State::Pending(recipe) = &*self.state.lock() else { return ("", String::new()) };
        let shapes: Vec<String> = (recipe.inputs.iter())
            .filter_map(|input| match input {
                Operand::Node(_, layout) => {
                    // As it was before it was broadcast.
                    let sizes = layout.shape.iter().zip(&layout.strides);
                    let shape: Vec<usize> =
                        sizes.map(|(&n, &step)| if step == 0 { n.min(1) } else { n }).collect();
                    Some(format!("{shape:?}"))
                }
                _ => None,
            })
            .collect();
        (recipe.op.name(), shapes.join(" and "))
    }

    pub fn error(&self) -> Option<Error> {
        match &*self.state.lock() {
            State::Failed(error) => Some(error.clone()),
            _ => None,
        }
    }

    pub fn buffer(&self) -> Option<Buffer> {
        match &*self.state.lock() {
            State::Ready(buffer) => Some(buffer.clone()),
            _ => None,
        }
    }

    /// Sets what the executor made of this node and lets go of its inputs.
    pub(super) fn settle(&self, state: State) {
        let old = std::mem::replace(&mut *self.state.lock(), state);
        release(old);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let state = std::mem::replace(self.state.get_mut(), State::Failed(dropped()));
        release(state);
    }
}

/// A state to leave behind in a node that nobody can reach any more; made once.
fn dropped() -> Error {
    static DROPPED: std::sync::OnceLock<Error> = std::sync::OnceLock::new();
    DROPPED.get_or_init(|| Error::new(crate::error::ErrorKind::Backend, "", "dropped")).clone()
}

/// Drops a recipe without recursion, since chains are as long as users make them.
fn release(state: State) {
    let State::Pending(recipe) = state else { return };
    let mut stack = vec![recipe];
    while let Some(recipe) = stack.pop() {
        for input in recipe.inputs {
            let Operand::Node(node, _) = input else { continue };
            let Some(mut node) = Arc::into_inner(node) else { continue };
            if let State::Pending(recipe) = std::mem::replace(node.state.get_mut(), State::Failed(dropped()))
            {
                stack.push(recipe);
            }
        }
    }
}
