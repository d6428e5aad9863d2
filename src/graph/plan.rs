//! Memory: where every stored value lies, decided by lifetimes; and the finished, reusable plan.
//!
//! Values that take over each other's memory in place are one *tenant*, and one slot of the recording. When all of
//! them are known, [`place`](super::place) finds them a place.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use super::arrange::each_access;
use super::kernel::{Body, Command, Recording, Slot};
use super::layout::Layout;
use super::node::NodeOp;
use super::place::{Area, FOR_EVER, Place, Tenant, needed, places};
use super::program::{Inst, Reg};
use super::schedule::{Graph, Origin, Step, Value, schedule};
use crate::backend::{Backend, Buffer, Caps, Compiled, Fault};

/// Everything about a flush that depends on the structure of its graph only. Slots are first the leaves,
/// then what lies in them later and in the areas to allocate.
pub struct Plan {
    pub recording: Recording,
    pub compiled: Option<Compiled>,
    pub leaves: usize,
    pub areas: Vec<Area>,
    /// Where the slots after the leaves lie.
    pub places: Vec<Place>,
    /// The most bytes that are needed at one time: leaves and all; and without the leaves.
    pub needed: (usize, usize),
    /// Which nodes of the graph are left in which slots.
    pub outputs: Vec<(usize, Slot)>,
    /// For each scalar parameter of the recording, its number in the flush's list.
    pub scalars: Vec<usize>,
    /// Of each command: where its kernel comes from, and which values its bindings are.
    pub origins: Vec<(Origin, Vec<Value>)>,
}

impl Plan {
    /// The buffers of all slots; `leaves` are the first.
    pub fn allocate(&self, leaves: Vec<Buffer>, backend: &dyn Backend) -> Result<Vec<Buffer>, Fault> {
        let make =
            |area: &Area| if area.own { backend.alloc(area.bytes) } else { backend.alloc_area(area.bytes) };
        let areas = self.areas.iter().map(make).collect::<Result<Vec<_>, _>>()?;
        let mut buffers = leaves;
        for place in &self.places {
            let Place { area, at, bytes } = *place;
            let memory = match area.checked_sub(self.leaves) {
                Some(own) => areas[own].memory.clone(),
                None => buffers[area].memory.clone(),
            };
            buffers.push(Buffer { bytes, at, memory });
        }
        Ok(buffers)
    }

    /// Bytes to be allocated.
    pub fn new_bytes(&self) -> usize {
        self.areas.iter().map(|area| area.bytes).sum()
    }

    /// The recording, with the line of each instruction: `line` says that of a node of the flush.
    pub fn with_lines(&self, line: impl Fn(usize) -> &'static Location<'static>) -> Recording {
        let mut commands = self.recording.commands.clone();
        for (command, (origin, _)) in commands.iter_mut().zip(&self.origins) {
            let Command::Dispatch { kernel, .. } = command else { continue };
            let programs = Arc::make_mut(kernel).body.programs_mut();
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
    for (k, command) in commands.iter().enumerate() {
        planner.note_uses(k, command);
    }
    let tenants = &planner.tenants;
    let leaves = graph.leaves.len();
    let (mut places, areas) = places(tenants, leaves, &caps.areas);
    places.drain(..leaves);
    let outputs = (0..graph.nodes.len())
        .filter(|&i| graph.nodes[i].keep)
        .map(|i| (i, planner.tenant[&Value::Node(i)]))
        .collect();
    Plan {
        recording: Recording { commands },
        compiled: None,
        leaves,
        areas,
        places,
        needed: needed(tenants, leaves),
        outputs,
        scalars,
        origins,
    }
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
            let tenant = Tenant { bytes: planner.size(leaf), to: planner.end(leaf), ..Tenant::default() };
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
        self.tenants.push(Tenant { bytes: self.size(v), from: k + 1, to, ..Tenant::default() });
        let tenant = (self.tenants.len() - 1) as Slot;
        self.tenant.insert(v, tenant);
        tenant
    }

    fn note_uses(&mut self, number: usize, command: &Command) {
        match command {
            Command::Dispatch { kernel, buffers, .. } => {
                for (&slot, binding) in buffers.iter().zip(&kernel.bindings) {
                    let tenant = &mut self.tenants[slot as usize];
                    if binding.written { &mut tenant.writes } else { &mut tenant.reads }.push(number);
                }
            }
            Command::Copy { from, to, .. } => {
                self.tenants[*from as usize].reads.push(number);
                self.tenants[*to as usize].writes.push(number);
            }
        }
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
        } else {
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
        if let Body::Structured(call) = &step.kernel.body
            && !call.op.0.stores_once()
        {
            return;
        }
        let mut out = 0;
        while out < step.values.len() {
            let v = step.values[out];
            if step.kernel.bindings[out].written && !self.tenant.contains_key(&v) {
                let dying: SmallVec<[Value; 8]> = (step.values.iter().zip(&step.kernel.bindings))
                    .filter(|&(&u, b)| {
                        !b.written
                            && self.dies(u, k)
                            && self.tenant_bytes(u) == Some(self.size(v))
                            && b.dtype.size() == step.kernel.bindings[out].dtype.size()
                    })
                    .map(|(&u, _)| u)
                    .collect();
                if let Some(u) = dying.into_iter().find(|&u| self.merge(step, u, out)) {
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
        // What is read on the way to a result belongs to others' results as well.
        let before = match &step.kernel.body {
            Body::Map(_) => 0,
            Body::Reduce(_) => 1,
            Body::Structured(s) if at < s.bound_inputs() => return false,
            Body::Structured(s) => s.pre.len(),
        };
        let safe = step.kernel.body.programs().into_iter().enumerate().all(|(i, program)| {
            let stored: Vec<&Layout> = (program.stores.iter())
                .filter(|s| i >= before && usize::from(s.to.binding) == out)
                .map(|s| &s.to.layout)
                .collect();
            (program.loads.iter())
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
