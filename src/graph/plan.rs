//! Memory: which buffer every stored value lies in, decided by lifetimes; and the finished, reusable plan.

use std::collections::HashMap;
use std::sync::Arc;

use super::arrange::each_access;
use super::kernel::{Body, Command, Recording, Slot};
use super::layout::Layout;
use super::node::NodeOp;
use super::schedule::{Graph, Step, Value, schedule};
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
}

pub fn plan(graph: &Graph, caps: &Caps) -> Plan {
    let schedule = schedule(graph, caps);
    let mut planner = Planner::new(graph, schedule.bytes, &schedule.steps);
    let mut commands = vec![];
    let mut scalars = vec![];
    for (k, mut step) in schedule.steps.into_iter().enumerate() {
        planner.place(k, &mut step, &mut commands);
        let buffers = step.values.iter().map(|v| planner.slot[v]).collect();
        commands.push(Command::Dispatch { kernel: Arc::new(step.kernel), buffers, scalars: scalars.len() });
        scalars.extend(step.scalars);
        planner.release(k);
    }
    // A kept `empty` that nothing was written to has no kernel, but is memory all the same.
    for (i, node) in graph.nodes.iter().enumerate() {
        if node.keep && !planner.slot.contains_key(&Value::Node(i)) {
            planner.allocate(Value::Node(i));
        }
    }
    let outputs = (0..graph.nodes.len())
        .filter(|&i| graph.nodes[i].keep)
        .map(|i| (i, planner.slot[&Value::Node(i)]))
        .collect();
    Plan {
        recording: Recording { commands },
        compiled: None,
        leaves: graph.leaves.len(),
        allocations: planner.allocations,
        outputs,
        scalars,
    }
}

struct Planner<'g> {
    graph: &'g Graph,
    bytes: HashMap<Value, usize>,
    slot: HashMap<Value, Slot>,
    /// The last step that reads a value.
    last_use: HashMap<Value, usize>,
    /// What each step reads last.
    dies: Vec<Vec<Value>>,
    /// Slots whose contents nobody needs any more.
    free: Vec<Slot>,
    allocations: Vec<usize>,
}

impl<'g> Planner<'g> {
    fn new(graph: &'g Graph, bytes: HashMap<Value, usize>, steps: &[Step]) -> Self {
        let mut last_use = HashMap::new();
        for (k, step) in steps.iter().enumerate() {
            for &v in step.values.iter().chain(&step.base) {
                last_use.insert(v, k);
            }
        }
        let mut planner = Planner {
            graph,
            bytes,
            slot: HashMap::new(),
            last_use,
            dies: vec![vec![]; steps.len()],
            free: vec![],
            allocations: vec![],
        };
        for i in 0..graph.leaves.len() {
            planner.slot.insert(Value::Leaf(i), i as Slot);
        }
        let mut mortal: Vec<(Value, usize)> =
            planner.last_use.iter().map(|(&v, &k)| (v, k)).filter(|&(v, _)| planner.is_mortal(v)).collect();
        mortal.sort_unstable(); // a plan must not depend on the order of a hash map
        for (v, k) in mortal {
            planner.dies[k].push(v);
        }
        planner
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

    fn slot_bytes(&self, slot: Slot) -> usize {
        let slot = slot as usize;
        let leaves = self.graph.leaves.len();
        if slot < leaves { self.graph.leaves[slot].bytes } else { self.allocations[slot - leaves] }
    }

    /// Gives a value the tightest free slot (at most half as large again; a kept one only its exact size, since
    /// it may live long), or a new one.
    fn allocate(&mut self, v: Value) -> Slot {
        let want = self.size(v);
        let most = if self.is_mortal(v) { want + want / 2 } else { want };
        let fit = (self.free.iter().enumerate())
            .map(|(i, &slot)| (self.slot_bytes(slot), i))
            .filter(|&(bytes, _)| (want..=most).contains(&bytes))
            .min();
        let slot = match fit {
            Some((_, i)) => self.free.remove(i),
            None => {
                self.allocations.push(want);
                (self.graph.leaves.len() + self.allocations.len() - 1) as Slot
            }
        };
        self.slot.insert(v, slot);
        slot
    }

    /// Decides where the step's outputs lie, and merges bindings where one takes over an input's memory.
    fn place(&mut self, k: usize, step: &mut Step, commands: &mut Vec<Command>) {
        if let Some(base) = step.base {
            self.place_write(k, step, base, commands);
        } else if matches!(step.kernel.body, Body::Map(_)) {
            self.place_over_inputs(k, step);
        }
        for i in 0..step.values.len() {
            if step.kernel.bindings[i].written && !self.slot.contains_key(&step.values[i]) {
                self.allocate(step.values[i]);
            }
        }
    }

    fn place_write(&mut self, k: usize, step: &mut Step, base: Value, commands: &mut Vec<Command>) {
        let Some(at) = step.kernel.bindings.iter().position(|b| b.written) else { return };
        let out = step.values[at];
        let undefined = matches!(base, Value::Node(i) if matches!(self.graph.nodes[i].op, NodeOp::Empty));
        if undefined && !self.slot.contains_key(&base) {
            self.allocate(base);
        }
        let from = self.slot[&base];
        let dying = self.is_mortal(base) && self.last_use.get(&base) == Some(&k);
        let bytes = self.size(out);
        if dying && self.slot_bytes(from) == bytes && self.merge(step, base, at) {
            self.slot.insert(out, from);
            self.dies[k].retain(|&v| v != base);
            return;
        }
        let to = self.allocate(out);
        if !undefined {
            commands.push(Command::Copy { from, to, bytes });
        }
    }

    fn place_over_inputs(&mut self, k: usize, step: &mut Step) {
        let mut out = 0;
        while out < step.values.len() {
            let v = step.values[out];
            if step.kernel.bindings[out].written && !self.slot.contains_key(&v) {
                let dying = step.values.iter().enumerate().find_map(|(i, &u)| {
                    let fits = !step.kernel.bindings[i].written
                        && self.dies[k].contains(&u)
                        && self.slot.get(&u).is_some_and(|&s| self.slot_bytes(s) == self.size(v))
                        && step.kernel.bindings[i].dtype.size() == step.kernel.bindings[out].dtype.size();
                    fits.then_some(u)
                });
                if let Some(u) = dying
                    && self.merge(step, u, out)
                {
                    self.slot.insert(v, self.slot[&u]);
                    self.dies[k].retain(|&d| d != u);
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

    fn release(&mut self, k: usize) {
        for v in std::mem::take(&mut self.dies[k]) {
            if let Some(&slot) = self.slot.get(&v) {
                self.free.push(slot);
            }
        }
    }
}
