//! Reductions: an invocation for each output, or a workgroup whose lanes share one.

use crate::graph::dtype::DType;
use crate::graph::kernel::{Kernel, Reduce, ReduceOp};
use crate::graph::layout::numel;

use super::super::template::Library;
use super::super::{AdapterClass, AdapterInfo};
use super::emit::{Buffer, Four, Group, Printer, Space, divides, four, register_type, stores_by_four};
use super::map::body;
use super::{Call, WORKGROUP, finish, grid};
use crate::backend::Fault;
use crate::error::ErrorKind;

/// Along which dimension an invocation takes four elements at once.
#[derive(Clone, Copy, PartialEq)]
enum Vector {
    None,
    /// The last kept one: four outputs.
    Kept,
    /// The last reduced one: four values of one output.
    Reduced,
}

/// Invocations of a workgroup that shares outputs.
const LANES: usize = 256;
/// Values that one turn of a loop takes.
const WAYS: usize = 4;
/// The same of short programs on a GPU, where a turn's values are on their way together and the next turn waits for them.
const MORE_WAYS: usize = 8;
/// Invocations of a workgroup on a software adapter that read columns: as many as its vectors have lanes. It does
/// one such vector after another, each for the whole loop, so that wider workgroups only leave processors idle.
const VECTOR: usize = 8;
/// Rows of columns that one invocation of a software adapter reads.
const ROWS_OF_COLUMNS: usize = 1024;
/// Lavapipe ends an invocation's loops, without a word, after 65,535 turns in all (nesting does not help).
/// Outer loops take fewer turns than the innermost, so half of that for it leaves room for them.
const MAX_TURNS: usize = 1 << 15;

pub fn reduce(
    kernel: &Kernel,
    r: &Reduce,
    info: &AdapterInfo,
    library: &Library,
    looks: bool,
) -> Result<Call, Fault> {
    let class = info.class;
    let vector = choose_vector(r);
    let buffer = |i| Buffer { name: format!("b{i}"), wide: false, pairs: info.pairs };
    let mut buffers: Vec<Buffer> = (0..kernel.bindings.len()).map(buffer).collect();
    let dim = match vector {
        Vector::None => None,
        Vector::Kept => Some(r.kept - 1),
        Vector::Reduced => Some(r.pre.shape.len() - 1),
    };
    for load in &r.pre.loads {
        buffers[usize::from(load.binding)].wide |=
            dim.is_some_and(|d| four(&load.layout, d) == Four::Together);
    }
    let by_four = vector == Vector::Kept;
    if let (true, Some(last)) = (by_four, r.post.shape.len().checked_sub(1)) {
        for access in r.post.loads.iter().chain(r.post.stores.iter().map(|s| &s.to)) {
            buffers[usize::from(access.binding)].wide |= four(&access.layout, last) == Four::Together;
        }
    } else {
        for store in &r.post.stores {
            buffers[usize::from(store.to.binding)].wide = false;
        }
    }

    let outputs = r.outputs();
    let units = if by_four { outputs.div_ceil(4) } else { outputs };
    let turns = r.reduced() / if vector == Vector::Reduced { 4 } else { 1 };
    let lanes = lanes(class, vector, units, turns);
    if turns.div_ceil(lanes * WAYS) > MAX_TURNS {
        let message =
            format!("a reduction of {} values to each output is too long for one kernel", r.reduced());
        return Err(super::fault(ErrorKind::Limit, message));
    }
    let wide = vector != Vector::None;
    let ty = register_type(r.dtype, wide);

    let mut p = Printer::new(library, buffers);
    p.looks = looks;
    let width = p.numbers.add(0);
    p.line(&format!("let group = wid.x + wid.y * {width};"));
    let cut = by_four && !outputs.is_multiple_of(4);
    if cut {
        // The last four is stored element by element.
        for store in &r.post.stores {
            p.buffers[usize::from(store.to.binding)].store_singles(store.to.dtype);
        }
    }
    let limit = p.numbers.add(if cut { outputs } else { units } as u32);
    let inside = |o: &str| if cut { format!("{o} * 4u < {limit}") } else { format!("{o} < {limit}") };
    let left = cut.then(|| format!("({limit} - o * 4u)"));
    let identity = format!("{ty}({})", identity(r.op, r.dtype));

    let (workgroup, groups, memory);
    if lanes == 1 {
        let columns = class == AdapterClass::Software && vector == Vector::Kept && turns >= 32;
        let width = if columns { VECTOR } else { WORKGROUP };
        (workgroup, groups, memory) = (width, units.div_ceil(width), String::new());
        p.line(&format!("let o = group * {width}u + lid;"));
        p.open(&format!("if {} {{", inside("o")));
        p.line(&format!("var acc = {identity};"));
        serial(&mut p, r, dim, &identity, class);
        store(&mut p, r, vector, "acc", left);
        p.close();
    } else {
        let columns = LANES / lanes;
        (workgroup, groups) = (LANES, units.div_ceil(columns));
        memory = format!("var<workgroup> partial: array<{ty}, {LANES}>;\n");
        p.line(&format!("let o = group * {columns}u + lid % {columns}u;"));
        p.line(&format!("let lane = lid / {columns}u;"));
        p.line(&format!("var acc = {identity};"));
        p.open(&format!("if {} {{", inside("o")));
        let total = p.numbers.add(turns as u32);
        shared_loop(&mut p, r, dim, lanes, &total, turns.div_ceil(lanes).min(ways(class, r)));
        p.close();
        p.line("partial[lid] = acc;");
        p.line("workgroupBarrier();");
        let mut half = lanes / 2;
        while half > 0 {
            let other = format!("partial[lid + {}u]", half * columns);
            let both = combine(r.op, r.dtype, "partial[lid]", &other, wide);
            p.line(&format!("if lane < {half}u {{ partial[lid] = {both}; }}"));
            p.line("workgroupBarrier();");
            half /= 2;
        }
        p.open(&format!("if lane == 0u && {} {{", inside("o")));
        store(&mut p, r, vector, "partial[lid]", left);
        p.close();
    }
    let workgroups = grid(groups);
    p.numbers.words[0] = workgroups[0];
    Ok(finish(kernel, p, workgroup, &memory, workgroups))
}

fn choose_vector(r: &Reduce) -> Vector {
    let rank = r.pre.shape.len();
    let together = |dim: usize| r.pre.loads.iter().filter(|l| four(&l.layout, dim) == Four::Together).count();
    let reduced = match rank.checked_sub(1).filter(|&d| d >= r.kept && r.pre.shape[d].is_multiple_of(4)) {
        Some(d) if r.reduced() > 0 => together(d),
        _ => 0,
    };
    let kept = match r.kept.checked_sub(1) {
        Some(d) if divides(&r.pre.shape[..r.kept], d) && stores_by_four(&r.post) => together(d),
        _ => 0,
    };
    match () {
        _ if reduced == 0 && kept == 0 => Vector::None,
        _ if kept > reduced => Vector::Kept,
        _ => Vector::Reduced,
    }
}

/// How many invocations share one output (1: none do).
fn lanes(class: AdapterClass, vector: Vector, units: usize, turns: usize) -> usize {
    // Software adapters pay for workgroup memory and gain nothing from coalesced loads.
    if turns < 32 || (class == AdapterClass::Software && turns <= MAX_TURNS) {
        return 1;
    }
    match vector {
        _ if turns > MAX_TURNS => LANES,
        // Neighbouring invocations read neighbouring columns; more lanes only where outputs are few.
        Vector::Kept if units >= 1 << 15 => 1,
        Vector::Kept => 8,
        // One output's values lie side by side, and so must the invocations that read them.
        _ => (turns / 2).next_power_of_two().clamp(16, LANES),
    }
}

fn ways(class: AdapterClass, r: &Reduce) -> usize {
    let short = r.pre.insts.len() <= 4;
    if short && class != AdapterClass::Software { MORE_WAYS } else { WAYS }
}

/// One invocation reduces everything, with several accumulators: rounding errors grow with the length of a
/// chain of additions, and a chain's links wait for each other.
fn serial(p: &mut Printer, r: &Reduce, dim: Option<usize>, identity: &str, class: AdapterClass) {
    let rank = r.pre.shape.len();
    let wide = dim.is_some();
    let count = |d: usize| if dim == Some(d) { r.pre.shape[d] / 4 } else { r.pre.shape[d] };
    let mut loops = std::collections::HashMap::new();
    // The output's coordinates, where it has several, are found once: software adapters divide slowly, and leave
    // that in the loop.
    if (0..r.kept).filter(|&d| count(d) > 1).count() > 1 {
        let mut radix = 1;
        for d in (0..r.kept).rev() {
            let name = p.name("k");
            p.line(&format!("let {name} = o / {radix}u % {}u;", count(d).max(1)));
            loops.insert(d, name);
            radix *= count(d).max(1);
        }
    }
    if rank == r.kept {
        value(p, r, dim, Lane::Kept(loops), "acc");
        return;
    }
    let opened = p.indent;
    for d in r.kept..rank - 1 {
        let turn = open_loop(p, count(d), 1);
        loops.insert(d, turn);
    }
    let last = rank - 1;
    let ways = ways(class, r) / if wide { 2 } else { 1 };
    let whole = count(last) / ways * ways;
    if whole > ways {
        let accs: Vec<String> = (0..ways).map(|_| p.name("part")).collect();
        for acc in &accs {
            p.line(&format!("var {acc} = {identity};"));
        }
        let turn = open_loop(p, whole, ways);
        for (way, acc) in accs.iter().enumerate() {
            p.open("{");
            loops.insert(last, if way == 0 { turn.clone() } else { format!("({turn} + {way}u)") });
            value(p, r, dim, Lane::Kept(loops.clone()), acc);
            p.close();
        }
        p.close();
        for acc in &accs {
            let both = combine(r.op, r.dtype, "acc", acc, wide);
            p.line(&format!("acc = {both};"));
        }
    }
    let start = if whole > ways { whole } else { 0 };
    if class != AdapterClass::Software {
        // Without a loop, which would wait for each.
        for turn in start..count(last) {
            let turn = p.numbers.add(turn as u32);
            p.open("{");
            loops.insert(last, turn);
            value(p, r, dim, Lane::Kept(loops.clone()), "acc");
            p.close();
        }
    } else if start < count(last) {
        // At most `ways` turns.
        let turn = p.name("r");
        let (from, to) = (p.numbers.add(start as u32), p.numbers.add(count(last) as u32));
        p.open(&format!("for (var {turn} = {from}; {turn} < bound({to}, lid); {turn} += 1u) {{"));
        loops.insert(last, turn);
        value(p, r, dim, Lane::Kept(loops.clone()), "acc");
        p.close();
    }
    while p.indent > opened {
        p.close();
    }
}

/// Opens a loop of `count / step` turns and returns the counter.
fn open_loop(p: &mut Printer, count: usize, step: usize) -> String {
    let turn = p.name("r");
    let limit = p.numbers.add(count as u32);
    p.open(&format!("for (var {turn} = 0u; {turn} < bound({limit}, lid); {turn} += {step}u) {{"));
    turn
}

/// The lanes of a workgroup take turns over the values of one output, `ways` of them at a time. What is past the last is that
/// one, and does not count: to leave it out by branches would be to wait for one value after another.
fn shared_loop(p: &mut Printer, r: &Reduce, dim: Option<usize>, lanes: usize, total: &str, ways: usize) {
    let turn = p.name("r");
    p.open(&format!("for (var {turn} = lane; {turn} < {total}; {turn} += {}u) {{", lanes * ways));
    for way in 0..ways {
        p.open("{");
        if way == 0 {
            value(p, r, dim, Lane::Flat(turn.clone()), "acc");
        } else {
            let (here, before) = (p.name("r"), p.name("acc"));
            p.line(&format!("let {here} = {turn} + {}u;", way * lanes));
            p.line(&format!("let {before} = acc;"));
            value(p, r, dim, Lane::Flat(format!("min({here}, {total} - 1u)")), "acc");
            p.line(&format!("acc = select({before}, acc, {here} < {total});"));
        }
        p.close();
    }
    p.close();
}

/// Where the code stands among the reduced values.
enum Lane {
    /// Loops give the coordinates of the reduced dimensions, and those of the kept ones may be known.
    Kept(std::collections::HashMap<usize, String>),
    /// One index counts them all.
    Flat(String),
}

/// Computes a value and combines it into `acc`.
fn value(p: &mut Printer, r: &Reduce, dim: Option<usize>, lane: Lane, acc: &str) {
    let mut groups = vec![Group { dims: 0..r.kept, index: "o".into() }];
    let mut loops: std::collections::HashMap<usize, String> = Default::default();
    match lane {
        Lane::Kept(l) => loops = l,
        Lane::Flat(index) => groups.push(Group { dims: r.kept..r.pre.shape.len(), index }),
    }
    if r.kept > 0 && loops.contains_key(&0) {
        groups.remove(0);
    }
    let space = Space { shape: &r.pre.shape, vector: dim, groups, loops, known: None };
    let registers = p.program(&r.pre, &space, "anchor");
    let both = combine(r.op, r.dtype, acc, &registers[usize::from(r.value)], dim.is_some());
    p.line(&format!("{acc} = {both};"));
}

/// Folds what four accumulators hold, where they are one output's, and runs the epilogue.
fn store(p: &mut Printer, r: &Reduce, vector: Vector, acc: &str, left: Option<String>) {
    let result = match vector {
        Vector::Reduced => {
            let half = |a: &str, b: &str| combine(r.op, r.dtype, a, b, false);
            let all = half(&half("four.x", "four.y"), &half("four.z", "four.w"));
            p.line(&format!("let four = {acc};"));
            format!("let anchor = {all};")
        }
        _ => format!("let anchor = {acc};"),
    };
    p.line(&result);
    let by_four = (vector == Vector::Kept).then(|| r.post.shape.len() - 1);
    body(p, &r.post, by_four, "o", left);
}

fn combine(op: ReduceOp, dtype: DType, a: &str, b: &str, wide: bool) -> String {
    let four = if wide { "4" } else { "" };
    match (op, dtype) {
        (ReduceOp::Sum | ReduceOp::Max, DType::Bool) => format!("({a} | {b})"),
        (ReduceOp::Prod | ReduceOp::Min, DType::Bool) => format!("({a} & {b})"),
        (ReduceOp::Sum, _) => format!("({a} + {b})"),
        (ReduceOp::Prod, _) => format!("({a} * {b})"),
        (ReduceOp::Max, t) if t.is_float() => format!("max_nan{four}({a}, {b})"),
        (ReduceOp::Min, t) if t.is_float() => format!("min_nan{four}({a}, {b})"),
        (ReduceOp::Max, _) => format!("max({a}, {b})"),
        (ReduceOp::Min, _) => format!("min({a}, {b})"),
    }
}

fn identity(op: ReduceOp, dtype: DType) -> String {
    let bits = op.identity(dtype).bits(dtype) as u32;
    match dtype {
        DType::Bool => format!("{}", bits != 0),
        DType::U32 => format!("{bits}u"),
        DType::I32 => format!("{}", bits as i32),
        DType::F16 | DType::F32 | DType::F64 => format!("from_bits({bits}u)"),
    }
}

/// How many values of each output one reduction may take at most, and how many partial ones there should be.
pub fn split(class: AdapterClass, outputs: usize, reduced: usize, columns: bool) -> usize {
    // As many partial results as keep the adapter busy, and each long enough to be worth its store.
    let (busy, least) = match class {
        AdapterClass::Software => (512, 256),
        AdapterClass::Integrated => (4096, 1024),
        AdapterClass::Discrete => (1 << 15, 4096),
    };
    // Below this, a second dispatch costs more than it saves.
    let worth = if class == AdapterClass::Software { 1 << 16 } else { 1 << 18 };
    let outputs = outputs.max(1);
    let mut parts = 1;
    if outputs < busy && outputs.saturating_mul(reduced) >= worth {
        parts = (busy / outputs).min(reduced / least).max(1);
    }
    // Processors lose their way (their tables of pages, that is) in columns of many rows.
    if class == AdapterClass::Software && columns && outputs.saturating_mul(reduced) >= 1 << 20 {
        parts = parts.max(reduced.div_ceil(ROWS_OF_COLUMNS));
    }
    // A loop's turns, with one value a turn.
    parts = parts.max(reduced.div_ceil(MAX_TURNS));
    if parts == 1 {
        return 1;
    }
    // A divisor near by leaves no ragged last part, and one that leaves parts of fours keeps loads whole.
    let near = parts..=parts.saturating_mul(2);
    let fits = |p: &usize| reduced.is_multiple_of(*p);
    (near.clone().find(|p| fits(p) && (reduced / p).is_multiple_of(4)))
        .or_else(|| near.clone().find(fits))
        .unwrap_or(parts)
}

/// The elements that a kernel touches, for reports.
pub fn flops(r: &Reduce) -> u64 {
    let ops = |insts: &[crate::graph::program::Inst]| super::operations(insts);
    numel(&r.pre.shape) as u64 * (1 + ops(&r.pre.insts)) + r.outputs() as u64 * ops(&r.post.insts)
}
