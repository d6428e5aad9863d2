//! Sums that ops take over which read what is summed up anyway: a bias's gradient goes with its weight's.

use std::collections::HashMap;

use super::arrange::{anchor_only, combine_step, new_partial, of_columns, reads, take_in, writes};
use super::dtype::DType;
use super::kernel::{Binding, Body, Reduce, ReduceOp, Rows, Sums};
use super::layout::Layout;
use super::program::{Access, Inst, Program};
use super::schedule::{Step, Value};
use crate::backend::{Caps, Prices};

/// Leaves sums to ops.
pub fn join_sums(steps: &mut Vec<Step>, caps: &Caps, bytes: &mut HashMap<Value, usize>) {
    let mut at = 0;
    while let (Some(step), Some(prices)) = (steps.get(at), &caps.prologues) {
        let found = summed(step).and_then(|(value, reduce)| {
            let cut = (caps.split_reduction)(reduce.outputs(), reduce.reduced(), of_columns(reduce)) > 1;
            hosts(steps, prices, value, reduce).find(|(host, sums)| {
                let bindings = steps[*host].values.len() + steps[at].values.len();
                // A kernel for the parts is one too many, where the whole would take no more.
                (cut || sums.rows.parts() == 1)
                    && bindings <= caps.max_bindings
                    && are_independent(steps, *host, at)
            })
        });
        match found {
            None => at += 1,
            Some((host, sums)) if sums.rows.parts() == 1 => {
                let step = steps.remove(at);
                join(&mut steps[if host > at { host - 1 } else { host }], step, sums);
            }
            Some((host, sums)) => {
                join_parts(steps, host, at, sums, bytes);
                at += 1;
            }
        }
    }
}

/// The op stores what the reduction would have stored.
fn join(host: &mut Step, step: Step, mut sums: Sums) {
    let (body, mut origin) = take_in(host, step);
    let (Body::Reduce(reduce), Some(mut insts)) = (body, origin.insts.pop()) else { return };
    for (inst, node) in reduce.post.insts.iter().zip(&mut insts) {
        if matches!(inst, Inst::Anchor(_)) {
            *node = origin.anchor;
        }
    }
    sums.post = reduce.post;
    attach(host, sums, insts);
}

/// The op stores sums in parts, and the reduction adds up these, as it does a large sum's.
fn join_parts(steps: &mut [Step], host: usize, at: usize, mut sums: Sums, bytes: &mut HashMap<Value, usize>) {
    let Body::Reduce(reduce) = &steps[at].kernel.body else { return };
    let (parts, dtype, partial) = (sums.rows.parts(), reduce.dtype, new_partial(bytes));
    let to = Layout::contiguous(&[parts, reduce.outputs()]);
    let combined = combine_step(&steps[at], reduce, parts, partial, true);
    let anchor = std::mem::replace(&mut steps[at], combined).origin.anchor;
    bytes.insert(partial, to.numel() * dtype.size());
    let host = &mut steps[host];
    host.values.push(partial);
    host.kernel.bindings.push(Binding { dtype, written: true });
    host.kernel.label.push_str("|sum_part");
    let binding = (host.values.len() - 1) as u16;
    sums.post = anchor_only(dtype, Access { binding, dtype, layout: to });
    sums.post.collapse(0);
    attach(host, sums, vec![anchor]);
}

fn attach(host: &mut Step, sums: Sums, insts: Vec<Option<u32>>) {
    host.origin.insts.push(insts);
    if let Body::Structured(call) = &mut host.kernel.body {
        call.sums = Some(Box::new(sums));
    }
}

/// The value that a kernel sums up, if it does that alone.
fn summed(step: &Step) -> Option<(Value, &Reduce)> {
    let Body::Reduce(reduce) = &step.kernel.body else { return None };
    let plain = reduce.op == ReduceOp::Sum
        && reduce.dtype == DType::F32
        && reduce.pre.insts == [Inst::Load(0)]
        && reduce.pre.loads[0].dtype == DType::F32
        && reduce.pre.numel() > 0;
    plain.then(|| (step.values[usize::from(reduce.pre.loads[0].binding)], reduce))
}

/// The ops that read a value row by row as it is summed up.
fn hosts<'a>(
    steps: &'a [Step],
    prices: &'a Prices,
    value: Value,
    reduce: &'a Reduce,
) -> impl Iterator<Item = (usize, Sums)> + 'a {
    steps.iter().enumerate().filter_map(move |(i, step)| {
        let Body::Structured(call) = &step.kernel.body else { return None };
        if call.sums.is_some() {
            return None;
        }
        (0..call.inputs.len()).find_map(|input| {
            let rows = (call.binding(input))
                .filter(|&binding| step.values[binding] == value)
                .and_then(|_| call.op.0.rows(call, input, prices))
                .filter(|rows| are_summed(rows, reduce))?;
            Some((i, Sums { input, rows, post: Program::default() }))
        })
    })
}

/// Whether a reduction adds up these rows.
fn are_summed(rows: &Rows, reduce: &Reduce) -> bool {
    let all = Access { layout: rows.layout.clone(), ..reduce.pre.loads[0].clone() };
    let mut pre = Program { shape: rows.layout.shape.clone(), loads: vec![all], ..Program::default() };
    pre.collapse(1) == reduce.kept && pre.loads[0].layout == reduce.pre.loads[0].layout
}

/// Whether neither of two kernels waits for the other, through whatever others.
fn are_independent(steps: &[Step], a: usize, b: usize) -> bool {
    let mut writers: HashMap<Value, Vec<usize>> = HashMap::new();
    for (i, step) in steps.iter().enumerate() {
        for value in writes(step) {
            writers.entry(value).or_default().push(i);
        }
    }
    let waits = |from: usize, target: usize| {
        let (mut seen, mut stack) = (vec![false; steps.len()], vec![from]);
        while let Some(i) = stack.pop() {
            for &writer in reads(&steps[i]).filter_map(|value| writers.get(&value)).flatten() {
                if !std::mem::replace(&mut seen[writer], true) {
                    stack.push(writer);
                }
            }
        }
        seen[target]
    };
    !waits(a, b) && !waits(b, a)
}
