//! Memory: which buffer every stored value lies in, decided by lifetimes; and the finished, reusable plan.
//!
//! Values that take over each other's memory in place are one *tenant*. When all of them are known they move into
//! slots, the largest first, each into the tightest one that is free for as long as it stays (greedy by size:
//! [Pisarchyk and Lee 2020](https://arxiv.org/abs/2001.03288)).

use std::collections::{BTreeMap, HashMap};
use std::panic::Location;
use std::sync::Arc;

use super::arrange::each_access;
use super::kernel::{Body, Command, Recording, Slot};
use super::layout::Layout;
use super::node::NodeOp;
use super::program::{Inst, Program, Reg};
use super::schedule::{Graph, Origin, Step, Value, schedule};
use crate::backend::{Caps, Compiled};

/// Everything about a flush that depends on the structure of its graph only. Slots are first the leaves,
/// then the buffers to allocate.
pub struct Plan {
    pub recording: Recording,
    pub compiled: Option<Compiled>,
    pub leaves: usize,
    /// Bytes of the slots after the leaves.
    pub allocations: Vec<usize>,
    /// Which nodes of the graph are left in which slots.
    pub outputs: Vec<(usize, Slot)>,
    /// For each scalar parameter of the recording, its number in the flush's list.
    pub scalars: Vec<usize>,
    /// Of each command: where its kernel comes from, and which values its bindings are.
    pub origins: Vec<(Origin, Vec<Value>)>,
}

impl Plan {
    /// The recording, with the line of each instruction: `line` says that of a node of the flush.
    pub fn with_lines(&self, line: impl Fn(usize) -> &'static Location<'static>) -> Recording {
        let mut commands = self.recording.commands.clone();
        for (command, (origin, _)) in commands.iter_mut().zip(&self.origins) {
            let Command::Dispatch { kernel, .. } = command else { continue };
            let programs: Vec<&mut Program> = match &mut Arc::make_mut(kernel).body {
                Body::Map(jobs) => jobs.iter_mut().collect(),
                Body::Reduce(r) => vec![&mut r.pre, &mut r.post],
                Body::Structured(call) => vec![&mut call.post],
            };
            for (program, nodes) in programs.into_iter().zip(&origin.insts) {
                for (reg, inst) in program.insts.iter().enumerate() {
                    let anchor = origin.anchor.filter(|_| matches!(inst, Inst::Anchor(_)));
                    if let Some(node) = nodes.get(reg).copied().flatten().or(anchor) {
                        program.lines.note(reg as Reg, line(node as usize));
                    }
                }
            }
        }
        Recording { commands }
    }
}

pub fn plan(graph: &Graph, caps: &Caps) -> Plan {
    let schedule = schedule(graph, caps);
    let mut planner = Planner::new(graph, schedule.bytes, &schedule.steps);
    let mut commands = vec![];
    let mut scalars = vec![];
    let mut origins = vec![];
    for (k, mut step) in schedule.steps.into_iter().enumerate() {
        planner.place(k, &mut step, &mut commands);
        let buffers = step.values.iter().map(|v| planner.tenant[v]).collect();
        origins.resize_with(commands.len(), Default::default);
        origins.push((step.origin, step.values));
        commands.push(Command::Dispatch { kernel: Arc::new(step.kernel), buffers, scalars: scalars.len() });
        scalars.extend(step.scalars);
    }
    // A kept `empty` that nothing was written to has no kernel, but is memory all the same.
    for (i, node) in graph.nodes.iter().enumerate() {
        if node.keep && !planner.tenant.contains_key(&Value::Node(i)) {
            planner.move_in(Value::Node(i), commands.len());
        }
    }
    let (slots, allocations) = assign(&planner.tenants, graph.leaves.len());
    for command in &mut commands {
        match command {
            Command::Dispatch { buffers, .. } => buffers.iter_mut().for_each(|b| *b = slots[*b as usize]),
            Command::Copy { from, to, .. } => {
                (*from, *to) = (slots[*from as usize], slots[*to as usize]);
            }
        }
    }
    let outputs = (0..graph.nodes.len())
        .filter(|&i| graph.nodes[i].keep)
        .map(|i| (i, slots[planner.tenant[&Value::Node(i)] as usize]))
        .collect();
    Plan {
        recording: Recording { commands },
        compiled: None,
        leaves: graph.leaves.len(),
        allocations,
        outputs,
        scalars,
        origins,
    }
}

/// A time after every step.
const FOR_EVER: usize = usize::MAX;

/// Values that lie in one place, one after another.
struct Tenant {
    bytes: usize,
    /// The step that writes the first; steps are numbered from 1, and the leaves are there at 0.
    from: usize,
    /// The last step that needs the last.
    to: usize,
}

/// A slot, while tenants move in.
struct Room {
    bytes: usize,
    /// When it is taken: from, to.
    taken: BTreeMap<usize, usize>,
}

impl Room {
    fn is_free(&self, tenant: &Tenant) -> bool {
        // The last that begins before this one ends must be gone before it begins.
        self.taken.range(..=tenant.to).next_back().is_none_or(|(_, &to)| to < tenant.from)
    }
}

/// Rooms that a tenant looks at before it takes a new one: a bound on what planning may cost.
const LOOK_AT: usize = 256;

/// Which slot each tenant gets; and the bytes of those after the leaves, who have theirs.
fn assign(tenants: &[Tenant], leaves: usize) -> (Vec<Slot>, Vec<usize>) {
    let mut rooms: Vec<Room> = vec![];
    let mut by_size: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut slots: Vec<Slot> = vec![0; tenants.len()];
    let open = |tenant: &Tenant, rooms: &mut Vec<Room>, by_size: &mut BTreeMap<usize, Vec<usize>>| {
        rooms.push(Room { bytes: tenant.bytes, taken: BTreeMap::from([(tenant.from, tenant.to)]) });
        by_size.entry(tenant.bytes).or_default().push(rooms.len() - 1);
        (rooms.len() - 1) as Slot
    };
    for (i, leaf) in tenants[..leaves].iter().enumerate() {
        slots[i] = open(leaf, &mut rooms, &mut by_size);
    }
    let mut order: Vec<usize> = (leaves..tenants.len()).collect();
    order.sort_by_key(|&t| (std::cmp::Reverse(tenants[t].bytes), tenants[t].from));
    for t in order {
        let tenant = &tenants[t];
        // What outlives the plan may stay long, and would keep all of a larger room.
        let most = if tenant.to == FOR_EVER { tenant.bytes } else { usize::MAX };
        let fit = (by_size.range(tenant.bytes..=most).flat_map(|(_, rooms)| rooms))
            .take(LOOK_AT)
            .find(|&&r| rooms[r].is_free(tenant))
            .copied();
        slots[t] = match fit {
            Some(r) => {
                rooms[r].taken.insert(tenant.from, tenant.to);
                r as Slot
            }
            None => open(tenant, &mut rooms, &mut by_size),
        };
    }
    (slots, rooms[leaves..].iter().map(|r| r.bytes).collect())
}

struct Planner<'g> {
    graph: &'g Graph,
    bytes: HashMap<Value, usize>,
    /// The tenant that each value belongs to: first the leaves, in their order.
    tenant: HashMap<Value, Slot>,
    tenants: Vec<Tenant>,
    /// The last step that reads a value.
    last_use: HashMap<Value, usize>,
}

impl<'g> Planner<'g> {
    fn new(graph: &'g Graph, bytes: HashMap<Value, usize>, steps: &[Step]) -> Self {
        let mut last_use = HashMap::new();
        for (k, step) in steps.iter().enumerate() {
            for &v in step.values.iter().chain(&step.base) {
                last_use.insert(v, k);
            }
        }
        let mut planner = Planner { graph, bytes, tenant: HashMap::new(), tenants: vec![], last_use };
        for i in 0..graph.leaves.len() {
            let leaf = Value::Leaf(i);
            let tenant = Tenant { bytes: planner.size(leaf), from: 0, to: planner.end(leaf) };
            planner.tenant.insert(leaf, i as Slot);
            planner.tenants.push(tenant);
        }
        planner
    }

    /// The last step (from 1) that needs a value.
    fn end(&self, v: Value) -> usize {
        if self.is_mortal(v) { self.last_use.get(&v).map_or(0, |&k| k + 1) } else { FOR_EVER }
    }

    /// Whether step `k` is the last to need a value.
    fn dies(&self, v: Value, k: usize) -> bool {
        self.end(v) == k + 1
    }

    /// Whether the memory may serve something else after the last use.
    fn is_mortal(&self, v: Value) -> bool {
        match v {
            Value::Leaf(i) => self.graph.leaves[i].donated,
            Value::Node(i) => !self.graph.nodes[i].keep,
            Value::Partial(_) => true,
        }
    }

    fn size(&self, v: Value) -> usize {
        match v {
            Value::Leaf(i) => self.graph.leaves[i].bytes,
            _ => self.bytes.get(&v).copied().unwrap_or(0),
        }
    }

    fn tenant_bytes(&self, v: Value) -> Option<usize> {
        self.tenant.get(&v).map(|&t| self.tenants[t as usize].bytes)
    }

    /// A tenant of its own for a value that step `k` writes.
    fn move_in(&mut self, v: Value, k: usize) -> Slot {
        let to = self.end(v).max(k + 1);
        self.tenants.push(Tenant { bytes: self.size(v), from: k + 1, to });
        let tenant = (self.tenants.len() - 1) as Slot;
        self.tenant.insert(v, tenant);
        tenant
    }

    /// Lets `v` follow `before`, which it replaces in place.
    fn follow(&mut self, v: Value, before: Value) {
        let tenant = self.tenant[&before];
        self.tenants[tenant as usize].to = self.end(v).max(self.tenants[tenant as usize].to);
        self.tenant.insert(v, tenant);
    }

    /// Decides where the step's outputs lie, and merges bindings where one takes over an input's memory.
    fn place(&mut self, k: usize, step: &mut Step, commands: &mut Vec<Command>) {
        if let Some(base) = step.base {
            self.place_write(k, step, base, commands);
        } else if matches!(step.kernel.body, Body::Map(_)) {
            self.place_over_inputs(k, step);
        }
        for i in 0..step.values.len() {
            if step.kernel.bindings[i].written && !self.tenant.contains_key(&step.values[i]) {
                self.move_in(step.values[i], k);
            }
        }
    }

    fn place_write(&mut self, k: usize, step: &mut Step, base: Value, commands: &mut Vec<Command>) {
        let Some(at) = step.kernel.bindings.iter().position(|b| b.written) else { return };
        let out = step.values[at];
        let undefined = matches!(base, Value::Node(i) if matches!(self.graph.nodes[i].op, NodeOp::Empty));
        if undefined && !self.tenant.contains_key(&base) {
            self.move_in(base, k);
        }
        let from = self.tenant[&base];
        let bytes = self.size(out);
        if self.dies(base, k) && self.tenant_bytes(base) == Some(bytes) && self.merge(step, base, at) {
            self.follow(out, base);
            return;
        }
        let to = self.move_in(out, k);
        if !undefined {
            commands.push(Command::Copy { from, to, bytes });
        }
    }

    fn place_over_inputs(&mut self, k: usize, step: &mut Step) {
        let mut out = 0;
        while out < step.values.len() {
            let v = step.values[out];
            if step.kernel.bindings[out].written && !self.tenant.contains_key(&v) {
                let dying = step.values.iter().enumerate().find_map(|(i, &u)| {
                    let fits = !step.kernel.bindings[i].written
                        && self.dies(u, k)
                        && self.tenant_bytes(u) == Some(self.size(v))
                        && step.kernel.bindings[i].dtype.size() == step.kernel.bindings[out].dtype.size();
                    fits.then_some(u)
                });
                if let Some(u) = dying
                    && self.merge(step, u, out)
                {
                    self.follow(v, u);
                    // Bindings moved: look again from the start.
                    out = 0;
                    continue;
                }
            }
            out += 1;
        }
    }

    /// Lets binding `out` stand for `input` too, if every read of it is of the element that the same program
    /// writes there. True also where the input is not read at all.
    fn merge(&self, step: &mut Step, input: Value, out: usize) -> bool {
        let Some(at) = step.values.iter().position(|&v| v == input) else { return true };
        let same_type = step.kernel.bindings[at].dtype == step.kernel.bindings[out].dtype;
        let Body::Map(jobs) = &step.kernel.body else { return false };
        let safe = jobs.iter().all(|job| {
            let stored: Vec<&Layout> = (job.stores.iter())
                .filter(|s| usize::from(s.to.binding) == out)
                .map(|s| &s.to.layout)
                .collect();
            job.loads
                .iter()
                .filter(|a| usize::from(a.binding) == at)
                .all(|a| !stored.is_empty() && stored.iter().all(|&l| *l == a.layout))
        });
        if !safe || !same_type {
            return false;
        }
        step.values.remove(at);
        step.kernel.bindings.remove(at);
        let out = if out > at { out - 1 } else { out };
        each_access(&mut step.kernel.body, |a| {
            let b = usize::from(a.binding);
            a.binding = match b {
                b if b == at => out,
                b if b > at => b - 1,
                b => b,
            } as u16;
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most bytes that are needed at one time.
    fn needed(tenants: &[Tenant]) -> usize {
        let at = |step: usize| tenants.iter().filter(move |t| t.from <= step && step <= t.to);
        tenants.iter().map(|t| at(t.from).map(|u| u.bytes).sum()).max().unwrap_or(0)
    }

    #[test]
    fn tenants_share_rooms_but_never_at_one_time() {
        let mut random = 1u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % n
        };
        for round in 0..200 {
            let leaves = below(4);
            let tenants: Vec<Tenant> = (0..leaves + below(40))
                .map(|i| {
                    let from = if i < leaves { 0 } else { 1 + below(30) };
                    let to = if below(5) == 0 { FOR_EVER } else { from + below(8) };
                    Tenant { bytes: 4 * below(1 + round), from, to }
                })
                .collect();
            let (slots, allocations) = assign(&tenants, leaves);
            let bytes = |slot: Slot| match (slot as usize).checked_sub(leaves) {
                Some(own) => allocations[own],
                None => tenants[slot as usize].bytes,
            };
            for (i, a) in tenants.iter().enumerate() {
                assert!(bytes(slots[i]) >= a.bytes);
                assert!(i >= leaves || slots[i] == i as Slot);
                assert!(a.to != FOR_EVER || bytes(slots[i]) == a.bytes, "kept, in a larger room");
                for (j, b) in tenants.iter().enumerate().skip(i + 1) {
                    assert!(
                        slots[i] != slots[j] || a.to < b.from || b.to < a.from,
                        "{i} and {j} at one time"
                    );
                }
            }
        }
    }

    #[test]
    fn a_training_step_takes_little_more_than_is_alive() {
        // Forward, each layer's output is kept for the backward pass; there, gradients of the outputs take turns.
        let layers = [64, 32, 16, 8];
        let last = 2 * layers.len();
        let mut tenants = vec![];
        for (i, &bytes) in layers.iter().enumerate() {
            tenants.push(Tenant { bytes, from: i + 1, to: last - i });
            tenants.push(Tenant { bytes, from: last - i, to: last - i + 1 });
        }
        let (_, allocations) = assign(&tenants, 0);
        // A room cannot be shared by two at a time, as it could be were it cut: a buffer that a kernel reads may
        // not be written by it elsewhere.
        let (taken, needed) = (allocations.iter().sum::<usize>(), needed(&tenants));
        assert!(4 * taken <= 5 * needed, "{taken} for {needed}");
    }
}
