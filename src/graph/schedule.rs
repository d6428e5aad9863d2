//! From recorded nodes to kernels: which values are stored, and which are computed inside which kernel.
//!
//! A pure function of the graph and the device's [`Caps`], run once for each structure (see `executor`):
//!
//! 1. **Group.** Walking forward, an elementwise node joins the kernel of an operand that it reads element for
//!    element, unless that would make two kernels wait for each other.
//! 2. **Store.** Walking backward, a value is stored if someone outside will look at it, or if computing it in
//!    each place that uses it costs more than a round trip through memory. What is the operand of products alone is
//!    computed where these read it, if that costs less in all of them together.
//! 3. **Emit.** Every stored value is the root of an expression that ends at other stored values; the roots of
//!    one group become one kernel.
//! 4. **Join.** Sums of rows are left to an op that reads these rows.
//! 5. **Merge.** Elementwise kernels that do not wait for each other go side by side into one dispatch.

use std::collections::{BTreeSet, HashMap};
use std::panic::Location;

use smallvec::SmallVec;

use super::dtype::DType;
use super::kernel::{Body, Kernel};
use super::layout::{Dims, Layout, numel};
use super::node::NodeOp;
use super::{arrange, join};
use crate::backend::Caps;

/// Longest expression in one kernel: beyond it compile times and register pressure cost more than a store.
const MAX_INSTS: u32 = 64;
/// An expression of this price (in additions) and at most [`CHEAP_LOADS`] operands is computed again rather than stored.
const CHEAP_COST: u32 = 4;
const CHEAP_LOADS: usize = 2;

/// The pending nodes of one flush, by index; inputs come before their consumers.
pub struct Graph {
    pub nodes: Vec<GraphNode>,
    pub leaves: Vec<Leaf>,
    /// Someone wants to know which op stores NaN.
    pub watched: bool,
}

pub struct GraphNode {
    pub op: NodeOp,
    pub dtype: DType,
    pub shape: Dims,
    pub inputs: SmallVec<[Input; 3]>,
    /// Someone outside the graph can still read it.
    pub keep: bool,
    pub caller: &'static Location<'static>,
}

#[derive(Clone)]
pub enum Input {
    Value(Value, Layout),
    Index(Layout),
    /// Number in the flush's list of scalars.
    Scalar(usize),
}

pub struct Leaf {
    pub dtype: DType,
    pub bytes: usize,
    /// Nobody else holds it, so its memory may be overwritten once it has been read.
    pub donated: bool,
}

/// Something that lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Value {
    Leaf(usize),
    Node(usize),
    /// Partial results of a reduction in two steps.
    Partial(usize),
}

/// A kernel with the values behind its bindings and scalars.
pub struct Step {
    pub kernel: Kernel,
    pub values: Vec<Value>,
    pub scalars: Vec<usize>,
    /// For a write into part of a tensor: the value whose other elements the output keeps.
    pub base: Option<Value>,
    pub origin: Origin,
}

/// Which nodes a kernel computes, for whoever must tell a user's line from a place in the kernel. Structure only, as
/// all of a plan: the lines themselves are the nodes' of the flush that runs it.
#[derive(Clone, Default, Debug)]
pub struct Origin {
    /// Of each instruction of each program (of a reduction: before, then after it); `None` where it computes nothing.
    pub insts: Vec<Vec<Option<u32>>>,
    /// The reduction, or the structured op.
    pub anchor: Option<u32>,
}

/// Kernels in the order to run them, and the bytes of every stored value that is no leaf.
pub struct Schedule {
    pub steps: Vec<Step>,
    pub bytes: HashMap<Value, usize>,
}

/// In which of a kernel's index spaces a value is used: before the anchor, after it, or where it reads an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Space {
    Pre,
    Post,
    Input(usize),
}

pub(super) struct Group {
    pub(super) shape: Dims,
    pub(super) anchor: Option<usize>,
    /// Elementwise nodes may be computed on its output.
    open: bool,
    members: Vec<usize>,
    deps: BTreeSet<usize>,
}

pub(super) struct Scheduler<'g> {
    pub(super) graph: &'g Graph,
    caps: &'g Caps,
    pub(super) groups: Vec<Group>,
    pub(super) group: Vec<usize>,
    /// Must be stored because the expression would grow past a limit, or its consumer reads memory only.
    force: Vec<bool>,
    cost: Vec<u32>,
    loads: Vec<BTreeSet<Value>>,
    readers: Vec<Option<Readers>>,
    pub(super) stored: Vec<bool>,
    /// Of a stored node: the kernel that computes it. Starts as the group; a group over the binding limit is cut.
    pub(super) part: Vec<usize>,
}

pub fn schedule(graph: &Graph, caps: &Caps) -> Schedule {
    let n = graph.nodes.len();
    let mut s = Scheduler {
        graph,
        caps,
        groups: vec![],
        group: vec![0; n],
        force: vec![false; n],
        cost: vec![0; n],
        loads: vec![BTreeSet::new(); n],
        readers: readers(graph),
        stored: vec![false; n],
        part: vec![0; n],
    };
    s.form_groups();
    s.measure();
    s.choose_stored();
    let mut steps = s.emit_all();
    // Only now: a kernel that was cut stores more.
    let mut bytes = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if s.stored[i] {
            bytes.insert(Value::Node(i), numel(&node.shape) * node.dtype.size());
        }
    }
    if !graph.watched {
        join::join_sums(&mut steps, caps, &mut bytes);
    }
    arrange::split_reductions(&mut steps, caps, &mut bytes);
    let steps = arrange::merge_maps(arrange::order(steps, &graph.leaves, &bytes), caps);
    Schedule { steps, bytes }
}

/// Whether `layout` reads all elements of a value of `n` elements in their order.
pub(super) fn is_identity(layout: &Layout, n: usize) -> bool {
    layout.offset == 0 && layout.numel() == n && layout.is_contiguous()
}

/// What reading a value of `n` elements through `view` means for an operand that the value reads through
/// `operand`: one layout of the operand, over the view's shape.
pub(super) fn through(view: &Layout, n: usize, operand: &Layout) -> Option<Layout> {
    if is_identity(view, n) { operand.reshape(&view.shape) } else { view.compose(operand) }
}

/// The structured ops that read a value, and as which input.
type Readers = SmallVec<[(usize, usize); 2]>;

/// Of each node, if nothing else reads it.
fn readers(graph: &Graph) -> Vec<Option<Readers>> {
    let mut readers = vec![Some(SmallVec::new()); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for (at, input) in node.inputs.iter().enumerate() {
            let Input::Value(Value::Node(p), _) = input else { continue };
            match (&node.op, &mut readers[*p]) {
                (NodeOp::Structured(_), Some(known)) => known.push((i, at)),
                (_, known) => *known = None,
            }
        }
    }
    readers
}

/// Whether neighbours in the last dimension can be read in fours: side by side, or as one.
fn in_fours(layout: &Layout) -> bool {
    let four = |n: &usize| n.is_multiple_of(4);
    match (layout.shape.last(), layout.strides.last()) {
        (Some(1), _) | (_, Some(0)) | (None, _) => true,
        (Some(size), Some(1)) => {
            let outer = &layout.strides[..layout.rank() - 1];
            four(size) && four(&layout.offset) && outer.iter().all(four)
        }
        _ => false,
    }
}

impl<'g> Scheduler<'g> {
    pub(super) fn node(&self, i: usize) -> &'g GraphNode {
        &self.graph.nodes[i]
    }

    pub(super) fn is_map(&self, i: usize) -> bool {
        matches!(self.node(i).op, NodeOp::Map { .. })
    }

    /// Forward: how large each elementwise expression gets if all of its operands are computed in place.
    fn measure(&mut self) {
        let mut insts = vec![0u32; self.graph.nodes.len()];
        // Room for the outputs, and for the operands that fused neighbours bring.
        let max_loads = self.caps.max_bindings.saturating_sub(2).max(1);
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let NodeOp::Map { op, .. } = &node.op else {
                if matches!(node.op, NodeOp::Structured(_)) || matches!(node.op, NodeOp::Write(_)) {
                    let memory_only = if matches!(node.op, NodeOp::Write(_)) { 1 } else { node.inputs.len() };
                    for input in &node.inputs[..memory_only] {
                        if let Input::Value(Value::Node(p), _) = input {
                            self.force[*p] |= !self.computed_where_read(*p);
                        }
                    }
                }
                continue;
            };
            loop {
                let (mut size, mut cost, mut loads) = (1, op.cost, BTreeSet::new());
                let mut inlined = vec![];
                for input in &node.inputs {
                    match input {
                        Input::Value(Value::Node(p), _) if self.is_map(*p) && !self.force[*p] => {
                            size += insts[*p];
                            cost += self.cost[*p];
                            loads.extend(self.loads[*p].iter().copied());
                            inlined.push(*p);
                        }
                        Input::Value(v, _) => {
                            loads.insert(*v);
                            size += 1;
                        }
                        _ => size += 1,
                    }
                }
                let largest = inlined.into_iter().max_by_key(|&p| (insts[p], self.loads[p].len()));
                match largest {
                    Some(p) if size > MAX_INSTS || loads.len() > max_loads => self.force[p] = true,
                    _ => {
                        insts[i] = size;
                        self.cost[i] = cost;
                        self.loads[i] = loads;
                        break;
                    }
                }
            }
        }
    }

    /// Whether a value that is known to be measured is computed wherever its readers, products, read it.
    fn computed_where_read(&self, p: usize) -> bool {
        let (node, n) = (self.node(p), numel(&self.node(p).shape));
        let (Some(prices), Some(readers)) = (&self.caps.prologues, &self.readers[p]) else { return false };
        // What ends another kernel costs next to nothing there.
        let free = self.groups[self.group[p]].anchor.is_some();
        let fits = self.is_map(p) && node.dtype == DType::F32 && n > 0 && n >= prices.least;
        if !fits || node.keep || self.force[p] || free {
            return false;
        }
        let mut operands = vec![];
        if !self.operands(p, &Layout::contiguous(&node.shape), &mut operands) {
            return false;
        }
        let loads: usize = operands.iter().map(|l| if prices.fours && !in_fours(l) { 4 } else { 1 }).sum();
        let each = prices.each + self.cost[p] as usize + loads.saturating_sub(1) * prices.load;
        let computed = readers.iter().map(|&(reader, input)| {
            let NodeOp::Structured(op) = &self.node(reader).op else { return None };
            let layouts: SmallVec<[&Layout; 3]> = (self.node(reader).inputs.iter())
                .filter_map(|i| if let Input::Value(_, layout) = i { Some(layout) } else { None })
                .collect();
            let times = op.0.recomputes(&layouts, input, prices)?;
            Some(times.saturating_mul(layouts[input].numel()))
        });
        let computed = computed.sum::<Option<usize>>();
        let saved = prices.round_trip + (prices.dispatch / n).min(2 * prices.round_trip);
        computed.is_some_and(|computed| computed.saturating_mul(each) <= saved.saturating_mul(n))
    }

    /// Collects how the operands are read of which `p`, read through `view`, is computed. False if there is one that
    /// cannot be read so.
    fn operands(&self, p: usize, view: &Layout, out: &mut Vec<Layout>) -> bool {
        let n = numel(&self.node(p).shape);
        self.node(p).inputs.iter().all(|input| {
            let Input::Value(value, layout) = input else { return true };
            match (through(view, n, layout), *value) {
                (None, _) => false,
                (Some(layout), Value::Node(q)) if self.is_map(q) && !self.force[q] => {
                    self.operands(q, &layout, out)
                }
                (Some(layout), _) => {
                    if !out.contains(&layout) {
                        out.push(layout);
                    }
                    true
                }
            }
        })
    }

    fn form_groups(&mut self) {
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let joined = if self.is_map(i) { self.group_to_join(i) } else { None };
            let g = joined.unwrap_or_else(|| {
                let (anchor, open) = match &node.op {
                    NodeOp::Map { .. } => (None, true),
                    NodeOp::Reduce(_) => (Some(i), true),
                    NodeOp::Structured(op) => (Some(i), op.0.fuses_epilogue()),
                    NodeOp::Write(_) | NodeOp::Empty => (Some(i), false),
                };
                let shape = node.shape.clone();
                self.groups.push(Group { shape, anchor, open, members: vec![], deps: BTreeSet::new() });
                self.groups.len() - 1
            });
            self.group[i] = g;
            self.part[i] = g;
            self.groups[g].members.push(i);
            for input in &node.inputs {
                if let Input::Value(Value::Node(p), _) = input
                    && self.group[*p] != g
                {
                    let dep = self.group[*p];
                    self.groups[g].deps.insert(dep);
                }
            }
        }
    }

    fn group_to_join(&self, i: usize) -> Option<usize> {
        let node = self.node(i);
        let producers: SmallVec<[(usize, &Layout); 4]> = (node.inputs.iter())
            .filter_map(|input| match input {
                Input::Value(Value::Node(p), layout) => Some((*p, layout)),
                _ => None,
            })
            .collect();
        let mut candidates: SmallVec<[usize; 4]> = (producers.iter())
            .filter(|(p, layout)| is_identity(layout, numel(&self.node(*p).shape)))
            .map(|(p, _)| self.group[*p])
            .filter(|&g| self.groups[g].open && self.groups[g].members.len() < MAX_INSTS as usize)
            .collect();
        // Kernels with an anchor first: their epilogue costs no dispatch of its own. Then the latest.
        candidates.sort_unstable_by_key(|&g| std::cmp::Reverse((self.groups[g].anchor.is_some(), g)));
        candidates.into_iter().find(|&g| {
            let shape = &self.groups[g].shape;
            let fits = node.inputs.iter().all(|input| match input {
                Input::Value(_, layout) | Input::Index(layout) => layout.reshape(shape).is_some(),
                Input::Scalar(_) => true,
            });
            fits && producers.iter().all(|(p, layout)| {
                let h = self.group[*p];
                if h == g { is_identity(layout, numel(&self.node(*p).shape)) } else { !self.waits_for(h, g) }
            })
        })
    }

    /// Whether group `g` needs something of `target`, through whatever others.
    fn waits_for(&self, g: usize, target: usize) -> bool {
        let mut stack = vec![g];
        let mut seen = BTreeSet::new();
        while let Some(g) = stack.pop() {
            for &dep in &self.groups[g].deps {
                if dep == target {
                    return true;
                }
                if seen.insert(dep) {
                    stack.push(dep);
                }
            }
        }
        false
    }

    /// Backward: a value's uses are known once all of its consumers are decided.
    fn choose_stored(&mut self) {
        type Use = (usize, Space, Layout);
        let mut uses: Vec<SmallVec<[Use; 2]>> = vec![SmallVec::new(); self.graph.nodes.len()];
        fn note(uses: &mut [SmallVec<[Use; 2]>], input: &Input, g: usize, space: Space, layout: Layout) {
            if let Input::Value(Value::Node(p), _) = input {
                let item = (g, space, layout);
                if !uses[*p].contains(&item) {
                    uses[*p].push(item);
                }
            }
        }
        for i in (0..self.graph.nodes.len()).rev() {
            let node = self.node(i);
            let g = self.group[i];
            let n = numel(&node.shape);
            let mine = std::mem::take(&mut uses[i]);
            if self.is_map(i) && !node.keep && !self.force[i] {
                // Where it is used, its operands are used through these layouts.
                let views: Option<Vec<Vec<Option<Layout>>>> = (mine.iter())
                    .map(|(_, _, view)| {
                        node.inputs
                            .iter()
                            .map(|input| match input {
                                Input::Scalar(_) => Some(None),
                                Input::Value(_, l) | Input::Index(l) => through(view, n, l).map(Some),
                            })
                            .collect()
                    })
                    .collect();
                let cheap = self.cost[i] <= CHEAP_COST && self.loads[i].len() <= CHEAP_LOADS;
                // Only structured ops read it, and it was not forced.
                let priced = self.readers[i].as_ref().is_some_and(|readers| !readers.is_empty());
                let repeated = mine.len() > 1 || mine.iter().any(|(_, _, view)| view.numel() > n);
                if let Some(views) = views
                    && (cheap || priced || !repeated)
                {
                    for ((g, space, _), views) in mine.iter().zip(views) {
                        for (input, view) in node.inputs.iter().zip(views) {
                            if let Some(view) = view {
                                note(&mut uses, input, *g, *space, view);
                            }
                        }
                    }
                    continue;
                }
            }
            // A value that only its own kernel's epilogue reads need not be stored.
            self.stored[i] = node.keep
                || self.force[i]
                || self.is_map(i)
                || matches!(node.op, NodeOp::Write(_) | NodeOp::Empty)
                || mine.iter().any(|(user, space, _)| *user != g || *space != Space::Post);
            for (at, input) in node.inputs.iter().enumerate() {
                let Input::Value(value, layout) = input else { continue };
                let over = if self.is_map(i) { layout.reshape(&self.groups[g].shape) } else { None };
                let (space, over) = match (&node.op, *value) {
                    (NodeOp::Reduce(_), _) => (Space::Pre, over),
                    // In the order of its memory, if it were stored.
                    (NodeOp::Structured(_), Value::Node(p)) => {
                        (Space::Input(at), Some(Layout::contiguous(&self.node(p).shape)))
                    }
                    _ => (Space::Post, over),
                };
                note(&mut uses, input, g, space, over.unwrap_or_else(|| layout.clone()));
            }
        }
    }

    fn emit_all(&mut self) -> Vec<Step> {
        let mut steps = vec![];
        let mut next_part = self.groups.len();
        let mut work: Vec<(usize, Vec<usize>)> = (self.groups.iter().enumerate())
            .map(|(g, group)| (g, group.members.iter().copied().filter(|&m| self.stored[m]).collect()))
            .collect();
        work.reverse();
        while let Some((part, roots)) = work.pop() {
            if roots.is_empty() || matches!(self.node(roots[0]).op, NodeOp::Empty) {
                continue;
            }
            let step = self.emit(part, &roots);
            let prologues = matches!(&step.kernel.body, Body::Structured(call) if !call.pre.is_empty());
            if step.kernel.bindings.len() <= self.caps.max_bindings || roots.len() == 1 && !prologues {
                steps.push(step);
                continue;
            }
            // Too many buffers for one kernel. What it computes where it is read is stored instead, one by one.
            if let Body::Structured(call) = &step.kernel.body
                && let Some(pre) = call.pre.iter().max_by_key(|pre| pre.program.loads.len())
                && let Some(anchor) = step.origin.anchor
                && let Input::Value(Value::Node(p), _) = self.node(anchor as usize).inputs[pre.input]
            {
                self.stored[p] = true;
                self.part[p] = next_part;
                work.push((part, roots));
                work.push((next_part, vec![p]));
                next_part += 1;
                continue;
            }
            // Cut it. What the second half needs of the first is loaded.
            let anchor = self.groups[self.group[roots[0]]].anchor.filter(|_| part < self.groups.len());
            let (first, second) = match anchor {
                Some(a) => {
                    self.stored[a] = true;
                    (vec![a], roots.into_iter().filter(|&r| r != a).collect::<Vec<_>>())
                }
                None => (roots[..roots.len() / 2].to_vec(), roots[roots.len() / 2..].to_vec()),
            };
            for &r in &second {
                self.part[r] = next_part;
            }
            work.push((next_part, second));
            work.push((part, first));
            next_part += 1;
        }
        steps
    }

    pub(super) fn dtype(&self, value: Value) -> DType {
        match value {
            Value::Leaf(i) => self.graph.leaves[i].dtype,
            Value::Node(i) | Value::Partial(i) => self.node(i).dtype,
        }
    }
}
