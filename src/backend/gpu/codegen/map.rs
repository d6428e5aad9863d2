//! Elementwise kernels: several programs side by side, each with its own index space.

use crate::graph::kernel::Kernel;
use crate::graph::program::Program;

use super::super::AdapterInfo;
use super::super::template::Library;
use super::emit::{Buffer, Four, Group, Printer, Space, divides, four, stores_by_four};
use super::{Call, SOFTWARE_WORKGROUP, WORKGROUP, finish, grid};
use crate::ops::MAX_TURNS;

/// Turns of an invocation's loop on a software adapter, where there is work for so many: starting an invocation costs
/// as much as copying four elements.
const TURNS: usize = 16;
/// More workgroups than this gain nothing there.
const GROUPS: usize = 256;

pub fn map(kernel: &Kernel, jobs: &[Program], info: &AdapterInfo, library: &Library, looks: bool) -> Call {
    let software = info.is_software();
    let jobs: Vec<&Program> = jobs.iter().filter(|j| j.numel() > 0).collect();
    let vector: Vec<Option<usize>> =
        jobs.iter().map(|j| stores_by_four(j).then(|| j.shape.len() - 1)).collect();
    let cut = |job: &Program, vector: Option<usize>| vector.is_some() && !job.numel().is_multiple_of(4);

    // A buffer is an array of fours where some access wants that and no store must write single elements
    // (two invocations must not share a four).
    let buffer = |i| Buffer { name: format!("b{i}"), wide: false, pairs: info.pairs };
    let mut buffers: Vec<Buffer> = (0..kernel.bindings.len()).map(buffer).collect();
    for (job, vector) in jobs.iter().zip(&vector) {
        for access in job.loads.iter().chain(job.stores.iter().map(|s| &s.to)) {
            let together = vector.is_some_and(|v| four(&access.layout, v) == Four::Together);
            buffers[usize::from(access.binding)].wide |= together;
        }
    }
    for (job, vector) in jobs.iter().zip(&vector) {
        for store in &job.stores {
            let buffer = &mut buffers[usize::from(store.to.binding)];
            buffer.wide &= vector.is_some();
            if cut(job, *vector) {
                buffer.store_singles(store.to.dtype);
            }
        }
    }

    let mut p = Printer::new(library, buffers);
    p.looks = looks;
    let width = p.numbers.add(0); // of the grid; known at the end
    p.line(&format!("let group = wid.x + wid.y * {width};"));
    let mut groups = 0;
    let workgroup = if software { SOFTWARE_WORKGROUP } else { WORKGROUP };
    for (number, (job, &vector)) in jobs.iter().zip(&vector).enumerate() {
        let units = if vector.is_some() { job.numel().div_ceil(4) } else { job.numel() };
        let full = units.div_ceil(workgroup);
        let turns = match software {
            true => TURNS.max(full.div_ceil(GROUPS)).min(MAX_TURNS),
            false => 1,
        };
        let first = groups;
        groups += full.div_ceil(turns);
        let one = jobs.len() == 1;
        let mut group = "group".to_string();
        if !one {
            let end = p.numbers.add(groups as u32);
            let or = if number == 0 { "" } else { "} else " };
            p.open(&format!("{or}if group < {end} {{"));
            if first > 0 {
                group = format!("(group - {})", p.numbers.add(first as u32));
            }
        }
        let i = p.name("at");
        if software {
            // Where every invocation of a subgroup skips an `if`, such an adapter runs it all the same, without
            // effect; of a loop it runs one turn.
            let (turn, count) = (p.name("turn"), p.numbers.add(turns as u32));
            p.open(&format!("for (var {turn} = 0u; {turn} < bound({count}, lid); {turn} += 1u) {{"));
            p.line(&format!("let {i} = ({group} * {count} + {turn}) * {workgroup}u + lid;"));
        } else {
            p.line(&format!("let {i} = {group} * {workgroup}u + lid;"));
        }
        let cut = cut(job, vector);
        let limit = p.numbers.add(if cut { job.numel() } else { units } as u32);
        p.open(&match cut {
            true => format!("if {i} * 4u < {limit} {{"),
            false => format!("if {i} < {limit} {{"),
        });
        body(&mut p, job, vector, &i, cut.then(|| format!("({limit} - {i} * 4u)")));
        p.close();
        if software {
            p.close();
        }
        p.indent -= usize::from(!one);
    }
    if jobs.len() > 1 {
        p.line("}");
    }
    let workgroups = grid(groups);
    p.numbers.words[0] = workgroups[0];
    finish(kernel, p, workgroup, "", workgroups)
}

/// One program at linear index `i`.
pub fn body(p: &mut Printer, program: &Program, vector: Option<usize>, i: &str, left: Option<String>) {
    debug_assert!(vector.is_none_or(|v| divides(&program.shape, v)));
    let groups = vec![Group { dims: 0..program.shape.len(), index: i.to_string() }];
    let space = Space { shape: &program.shape, vector, groups, loops: Default::default(), known: None };
    let registers = p.program(program, &space, "anchor");
    p.stores(program, &space, &registers, left.as_deref());
}
