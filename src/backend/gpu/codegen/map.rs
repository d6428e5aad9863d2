//! Elementwise kernels: several programs side by side, each with its own index space.

use crate::graph::kernel::Kernel;
use crate::graph::program::Program;

use super::super::template::Library;
use super::emit::{Buffer, Four, Group, Printer, Space, divides, four, stores_by_four};
use super::{Call, WORKGROUP, finish, grid};

pub fn map(kernel: &Kernel, jobs: &[Program], library: &Library) -> Call {
    let jobs: Vec<&Program> = jobs.iter().filter(|j| j.numel() > 0).collect();
    let vector: Vec<Option<usize>> =
        jobs.iter().map(|j| stores_by_four(j).then(|| j.shape.len() - 1)).collect();

    // A buffer is an array of `vec4` where some access wants that and no store must write single elements
    // (two invocations must not share a `vec4`).
    let mut buffers: Vec<Buffer> =
        (0..kernel.bindings.len()).map(|i| Buffer { name: format!("b{i}"), wide: false }).collect();
    for (job, vector) in jobs.iter().zip(&vector) {
        for access in job.loads.iter().chain(job.stores.iter().map(|s| &s.to)) {
            let together = vector.is_some_and(|v| four(&access.layout, v) == Four::Together);
            buffers[usize::from(access.binding)].wide |= together;
        }
    }
    for (job, vector) in jobs.iter().zip(&vector) {
        for store in job.stores.iter().filter(|_| vector.is_none()) {
            buffers[usize::from(store.to.binding)].wide = false;
        }
    }

    let mut p = Printer::new(library, buffers);
    let width = p.numbers.add(0); // of the grid; known at the end
    p.line(&format!("let group = wid.x + wid.y * {width};"));
    let mut groups = 0;
    for (number, (job, &vector)) in jobs.iter().zip(&vector).enumerate() {
        let units = if vector.is_some() { job.numel().div_ceil(4) } else { job.numel() };
        let first = groups;
        groups += units.div_ceil(WORKGROUP);
        let one = jobs.len() == 1;
        let mut index = format!("group * {WORKGROUP}u + lid");
        if !one {
            let end = p.numbers.add(groups as u32);
            let or = if number == 0 { "" } else { "} else " };
            p.open(&format!("{or}if group < {end} {{"));
            if first > 0 {
                index = format!("(group - {}) * {WORKGROUP}u + lid", p.numbers.add(first as u32));
            }
        }
        let i = p.name("i");
        p.line(&format!("let {i} = {index};"));
        let cut = vector.is_some() && !job.numel().is_multiple_of(4);
        let limit = p.numbers.add(if cut { job.numel() } else { units } as u32);
        p.open(&match cut {
            true => format!("if {i} * 4u < {limit} {{"),
            false => format!("if {i} < {limit} {{"),
        });
        body(&mut p, job, vector, &i, cut.then(|| format!("({limit} - {i} * 4u)")));
        p.close();
        p.indent -= usize::from(!one);
    }
    if jobs.len() > 1 {
        p.line("}");
    }
    let workgroups = grid(groups);
    p.numbers.words[0] = workgroups[0];
    finish(kernel, p, WORKGROUP, "", workgroups)
}

/// One program at linear index `i`.
pub fn body(p: &mut Printer, program: &Program, vector: Option<usize>, i: &str, left: Option<String>) {
    debug_assert!(vector.is_none_or(|v| divides(&program.shape, v)));
    let groups = vec![Group { dims: 0..program.shape.len(), index: i.to_string() }];
    let space = Space { shape: &program.shape, vector, groups, loops: Default::default() };
    let registers = p.program(program, &space, "anchor");
    p.stores(program, &space, &registers, left.as_deref());
}
