//! The last passes over kernels: cutting large reductions, putting kernels in order, merging small ones.

use std::collections::{BTreeSet, HashMap, HashSet};

use smallvec::SmallVec;

use super::dtype::DType;
use super::kernel::{Binding, Body, Kernel, Reduce};
use super::layout::{Dims, Layout};
use super::program::{Access, Inst, Program, Store};
use super::schedule::{Leaf, Origin, Step, Value};
use crate::backend::Caps;

/// A reduction of much to little has too few outputs to keep a GPU busy: it becomes one of `cuts` partial
/// results for each output, and one of those.
pub fn split_reductions(steps: &mut Vec<Step>, caps: &Caps, bytes: &mut HashMap<Value, usize>) {
    let mut out = Vec::with_capacity(steps.len());
    for mut step in steps.drain(..) {
        if let Body::Reduce(reduce) = &step.kernel.body {
            let cuts = (caps.split_reduction)(reduce.outputs(), reduce.reduced(), of_columns(reduce));
            // Cut along the longest reduced dimension.
            let dim = (reduce.kept..reduce.pre.shape.len()).max_by_key(|&d| reduce.pre.shape[d]);
            if let Some(dim) = dim
                && cuts > 1
                && reduce.pre.shape[dim] > 1
            {
                let partial = new_partial(bytes);
                let (first, n) = partial_steps(&step, reduce, dim, cuts, partial);
                bytes.insert(partial, n * reduce.outputs() * reduce.dtype.size());
                let last = combine_step(&step, reduce, n, partial, of_columns(reduce));
                out.extend(first);
                step = last;
            }
        }
        out.push(step);
    }
    *steps = out;
}

/// One beside those whose sizes are known.
pub(super) fn new_partial(bytes: &HashMap<Value, usize>) -> Value {
    Value::Partial(bytes.keys().filter(|value| matches!(value, Value::Partial(_))).count())
}

/// Whether neighbours in memory belong to different outputs.
pub(super) fn of_columns(reduce: &Reduce) -> bool {
    let kept = |layout: &Layout| (0..reduce.kept).any(|d| layout.shape[d] > 1 && layout.strides[d] == 1);
    reduce.pre.loads.iter().any(|load| kept(&load.layout))
}

/// Kernels that leave `n` partial results for each output, side by side, and that `n`. Where the length is no
/// multiple of the cuts, the rest is one more partial result, from a kernel of its own.
fn partial_steps(
    step: &Step,
    reduce: &Reduce,
    dim: usize,
    cuts: usize,
    partial: Value,
) -> (Vec<Step>, usize) {
    let len = reduce.pre.shape[dim];
    let each = len.div_ceil(cuts.min(len));
    let full = len / each;
    let rest = len - full * each;
    let n = full + usize::from(rest > 0);
    let mut steps = vec![partial_step(step, reduce, dim, (0, full, each), n, partial)];
    if rest > 0 {
        steps.push(partial_step(step, reduce, dim, (full, 1, rest), n, partial));
    }
    (steps, n)
}

/// The kernel for cuts `at..at + count` of `each` elements of `dim` (all cuts before it being as long).
fn partial_step(
    step: &Step,
    reduce: &Reduce,
    dim: usize,
    (at, count, each): (usize, usize, usize),
    n: usize,
    partial: Value,
) -> Step {
    // Before them, where neighbours in memory are columns, and they stay neighbours; else behind.
    let columns = of_columns(reduce);
    let place = if columns { 0 } else { reduce.kept };
    let start = if count == 1 && at > 0 { reduce.pre.shape[dim] - each } else { 0 };
    let cut = |layout: &Layout| {
        let part = layout.slice(dim, start, count * each, 1);
        let mut out = part.clone();
        // Dimension `dim` becomes (count, each); `count` moves to the kept ones.
        out.shape[dim] = each;
        out.shape.insert(place, count);
        out.strides.insert(place, part.strides[dim] * each);
        out
    };
    let mut pre = reduce.pre.clone();
    pre.shape[dim] = each;
    pre.shape.insert(place, count);
    for access in &mut pre.loads {
        access.layout = cut(&access.layout);
    }
    for layout in &mut pre.indices {
        *layout = cut(layout);
    }
    let (bindings, values, binding_of) = used(step, &pre, partial, reduce);
    for access in &mut pre.loads {
        access.binding = binding_of[usize::from(access.binding)];
    }
    let kept = pre.collapse(reduce.kept + 1);
    let outputs = reduce.outputs();
    let (shape, strides, offset) =
        if columns { ([count, outputs], [outputs, 1], at * outputs) } else { ([outputs, count], [n, 1], at) };
    let to = Layout { shape: Dims::from_slice(&shape), strides: Dims::from_slice(&strides), offset };
    let binding = (bindings.len() - 1) as u16;
    let mut post = anchor_only(reduce.dtype, Access { binding, dtype: reduce.dtype, layout: to });
    post.collapse(0);
    let body =
        Body::Reduce(Reduce { op: reduce.op, dtype: reduce.dtype, pre, value: reduce.value, kept, post });
    let kernel = Kernel {
        body,
        bindings,
        scalars: step.kernel.scalars.clone(),
        label: format!("{}_part", step.kernel.label),
        caller: step.kernel.caller,
    };
    let origin = Origin { insts: vec![step.origin.insts[0].clone(), vec![None]], ..step.origin };
    Step { kernel, values, scalars: step.scalars.clone(), base: None, origin }
}

/// The bindings that `pre` reads, with the partial results behind them, and where each old binding went.
fn used(step: &Step, pre: &Program, partial: Value, reduce: &Reduce) -> (Vec<Binding>, Vec<Value>, Vec<u16>) {
    let read: BTreeSet<u16> = pre.loads.iter().map(|a| a.binding).collect();
    let mut binding_of = vec![0; step.values.len()];
    let (mut bindings, mut values) = (vec![], vec![]);
    for old in read {
        binding_of[usize::from(old)] = bindings.len() as u16;
        bindings.push(step.kernel.bindings[usize::from(old)]);
        values.push(step.values[usize::from(old)]);
    }
    bindings.push(Binding { dtype: reduce.dtype, written: true });
    values.push(partial);
    (bindings, values, binding_of)
}

/// Stores what was reduced as it is.
pub(super) fn anchor_only(dtype: DType, to: Access) -> Program {
    Program {
        shape: to.layout.shape.clone(),
        insts: vec![Inst::Anchor(dtype)],
        stores: vec![Store { value: 0, to }],
        ..Program::default()
    }
}

/// The kernel that reduces `n` partial results, each by itself if they are `columns`, and goes on as the whole would have.
pub(super) fn combine_step(step: &Step, reduce: &Reduce, n: usize, partial: Value, columns: bool) -> Step {
    let mut kernel = step.kernel.clone();
    let mut values = step.values.clone();
    let binding = values.len() as u16;
    values.push(partial);
    kernel.bindings.push(Binding { dtype: reduce.dtype, written: false });
    let outputs = reduce.outputs();
    let layout = match columns {
        true => Layout::contiguous(&[n, outputs]).permute(&[1, 0]),
        false => Layout::contiguous(&[outputs, n]),
    };
    let mut pre = Program {
        shape: layout.shape.clone(),
        insts: vec![Inst::Load(0)],
        loads: vec![Access { binding, dtype: reduce.dtype, layout }],
        ..Program::default()
    };
    let kept = pre.collapse(1);
    kernel.body = Body::Reduce(Reduce { pre, value: 0, kept, ..reduce.clone() });
    let origin = Origin { insts: vec![vec![None], step.origin.insts[1].clone()], ..step.origin };
    let mut step = Step { kernel, values, scalars: step.scalars.clone(), base: None, origin };
    drop_unused(&mut step);
    step
}

/// Removes bindings that no program refers to.
fn drop_unused(step: &mut Step) {
    let mut used = HashSet::new();
    each_access(&mut step.kernel.body, |a| {
        used.insert(a.binding);
    });
    let mut moved = vec![0u16; step.values.len()];
    let mut kept = 0;
    for (old, to) in moved.iter_mut().enumerate() {
        if used.contains(&(old as u16)) {
            step.values.swap(kept, old);
            step.kernel.bindings.swap(kept, old);
            *to = kept as u16;
            kept += 1;
        }
    }
    step.values.truncate(kept);
    step.kernel.bindings.truncate(kept);
    each_access(&mut step.kernel.body, |a| a.binding = moved[usize::from(a.binding)]);
}

/// Every place where a kernel's programs touch a binding. (A structured op's inputs in memory are its first
/// bindings and are not listed.)
pub fn each_access(body: &mut Body, mut f: impl FnMut(&mut Access)) {
    for program in body.programs_mut() {
        program.loads.iter_mut().for_each(&mut f);
        program.stores.iter_mut().for_each(|s| f(&mut s.to));
    }
}

pub(super) fn reads(step: &Step) -> impl Iterator<Item = Value> + '_ {
    let pairs = step.values.iter().zip(&step.kernel.bindings);
    pairs.filter(|(_, b)| !b.written).map(|(&v, _)| v).chain(step.base)
}

pub(super) fn writes(step: &Step) -> impl Iterator<Item = Value> + '_ {
    step.values.iter().zip(&step.kernel.bindings).filter(|(_, b)| b.written).map(|(&v, _)| v)
}

/// Producers before consumers, otherwise as they came; but whoever may overwrite a leaf lets those read it first who
/// could do so now.
pub fn order(steps: Vec<Step>, leaves: &[Leaf], bytes: &HashMap<Value, usize>) -> Vec<Step> {
    let mut writers: HashMap<Value, Vec<usize>> = HashMap::new();
    let mut readers: HashMap<Value, Vec<usize>> = HashMap::new();
    // The leaves that a step could overwrite.
    let mut overwritten: Vec<SmallVec<[Value; 4]>> = vec![];
    for (i, step) in steps.iter().enumerate() {
        for v in writes(step) {
            writers.entry(v).or_default().push(i);
        }
        let mut mine = SmallVec::new();
        for v in reads(step) {
            let Value::Leaf(leaf) = v else { continue };
            readers.entry(v).or_default().push(i);
            let fits = |out: Value| bytes.get(&out) == Some(&leaves[leaf].bytes);
            if leaves[leaf].donated && writes(step).any(fits) {
                mine.push(v);
            }
        }
        overwritten.push(mine);
    }
    let mut waiting: Vec<usize> = vec![0; steps.len()];
    let mut wakes: Vec<Vec<usize>> = vec![vec![]; steps.len()];
    for (i, step) in steps.iter().enumerate() {
        for &w in reads(step).filter_map(|v| writers.get(&v)).flatten() {
            if w != i {
                waiting[i] += 1;
                wakes[w].push(i);
            }
        }
    }
    let mut ready: BTreeSet<usize> = (0..steps.len()).filter(|&i| waiting[i] == 0).collect();
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    let mut out = Vec::with_capacity(steps.len());
    while let Some(&first) = ready.first() {
        let others = |v: &Value| readers[v].iter().copied().filter(|&r| r != first && steps[r].is_some());
        let sooner = (overwritten[first].iter())
            .filter(|v| others(v).all(|r| ready.contains(&r) && !overwritten[r].contains(v)))
            .find_map(|v| others(v).next());
        let i = sooner.unwrap_or(first);
        ready.remove(&i);
        for &w in &wakes[i] {
            waiting[w] -= 1;
            if waiting[w] == 0 {
                ready.insert(w);
            }
        }
        out.extend(steps[i].take());
    }
    out
}

/// Moves elementwise kernels up into an earlier one that they need not wait for: one dispatch instead of two.
pub fn merge_maps(steps: Vec<Step>, caps: &Caps) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::with_capacity(steps.len());
    let mut made: HashMap<Value, usize> = HashMap::new(); // value -> index in `out` of its last writer
    for step in steps {
        let after = reads(&step).filter_map(|v| made.get(&v)).max().map_or(0, |&i| i + 1);
        let host = match step.kernel.body {
            Body::Map(_) if step.base.is_none() => {
                (after..out.len()).find(|&i| can_host(&out[i], &step, caps))
            }
            _ => None,
        };
        let at = host.unwrap_or(out.len());
        for v in writes(&step) {
            made.insert(v, at);
        }
        match host {
            Some(i) => absorb(&mut out[i], step),
            None => out.push(step),
        }
    }
    out
}

/// Jobs in one dispatch beyond this many make kernels that are slow to compile and rarely found again.
const MAX_JOBS: usize = 16;
/// Nor are programs merged with an op of this price, which makes random numbers: alone they are one kernel for all sizes,
/// compiled once.
const LONG: u32 = 60;

fn can_host(host: &Step, step: &Step, caps: &Caps) -> bool {
    let Body::Map(jobs) = &host.kernel.body else { return false };
    let shared = step.values.iter().filter(|v| host.values.contains(v)).count();
    host.base.is_none()
        && jobs.len() < MAX_JOBS
        && host.values.len() + step.values.len() - shared <= caps.max_bindings
        && dearest(&host.kernel.body).max(dearest(&step.kernel.body)) < LONG
}

/// The price of a kernel's dearest op.
fn dearest(body: &Body) -> u32 {
    let Body::Map(jobs) = body else { return 0 };
    let cost = |inst: &Inst| if let Inst::Op { op, .. } = inst { op.cost } else { 0 };
    jobs.iter().flat_map(|job| &job.insts).map(cost).max().unwrap_or(0)
}

fn absorb(host: &mut Step, step: Step) {
    let (taken, origin) = take_in(host, step);
    host.origin.insts.extend(origin.insts);
    if let (Body::Map(jobs), Body::Map(more)) = (&mut host.kernel.body, taken) {
        jobs.extend(more);
    }
}

/// Gives a kernel another's values, scalars and name: and gives what the other computes, as it is to be said there.
pub(super) fn take_in(host: &mut Step, step: Step) -> (Body, Origin) {
    let Step { mut kernel, values, scalars, origin, .. } = step;
    let moved: Vec<u16> = values
        .iter()
        .zip(&kernel.bindings)
        .map(|(v, b)| {
            let at = host.values.iter().position(|h| h == v).unwrap_or_else(|| {
                host.values.push(*v);
                host.kernel.bindings.push(*b);
                host.values.len() - 1
            });
            at as u16
        })
        .collect();
    each_access(&mut kernel.body, |a| a.binding = moved[usize::from(a.binding)]);
    let first_scalar = host.scalars.len() as u16;
    host.scalars.extend(scalars);
    host.kernel.scalars.extend(kernel.scalars);
    for inst in kernel.body.programs_mut().into_iter().flat_map(|program| &mut program.insts) {
        if let Inst::Scalar { slot, .. } = inst {
            *slot += first_scalar;
        }
    }
    if host.kernel.label.len() + kernel.label.len() < 80 {
        host.kernel.label = format!("{}|{}", host.kernel.label, kernel.label);
    }
    (kernel.body, origin)
}
