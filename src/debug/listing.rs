//! Kernels in words: what the CPU interprets.

use std::fmt::Write;

use crate::graph::kernel::{Body, Kernel, Sums};
use crate::graph::program::{Access, Inst, Program, Reg};

/// A kernel's bindings and programs, an instruction a line.
pub(super) fn listing(kernel: &Kernel) -> String {
    let mut out = format!("{}, recorded at {}\n", kernel.label, kernel.caller);
    for (i, b) in kernel.bindings.iter().enumerate() {
        let _ = writeln!(out, "binding {i}: {}{}", b.dtype, if b.written { ", written" } else { "" });
    }
    match &kernel.body {
        Body::Map(jobs) => jobs.iter().for_each(|job| program(&mut out, "map", job)),
        Body::Reduce(r) => {
            program(&mut out, "before the reduction", &r.pre);
            let _ = writeln!(
                out,
                "\n{} of v{} over the last {} dimensions, in {}",
                r.op.name(),
                r.value,
                r.pre.shape.len() - r.kept,
                r.dtype
            );
            program(&mut out, "behind the reduction", &r.post);
        }
        Body::Structured(s) => {
            let _ = writeln!(out, "\n{:?} to {:?} of {}", s.op.0, s.out_shape, s.out_dtype);
            for (i, (dtype, l)) in s.inputs.iter().enumerate() {
                if let Some(pre) = s.prologue(i) {
                    program(&mut out, &format!("input {i}, v{} of", pre.value), &pre.program);
                }
                let _ = writeln!(
                    out,
                    "  input {i}: {dtype} {:?}, strides {:?}, from {}",
                    l.shape, l.strides, l.offset
                );
            }
            program(&mut out, "behind the op", &s.post);
            if let Some(Sums { input, rows, post }) = s.sums.as_deref() {
                let _ = writeln!(
                    out,
                    "\nsums of input {input}, {:?} of {:?}, in {} parts",
                    rows.layout.strides,
                    rows.layout.shape,
                    rows.parts()
                );
                program(&mut out, "behind these", post);
            }
        }
    }
    out
}

fn program(out: &mut String, what: &str, p: &Program) {
    let _ = writeln!(out, "\n{what}, over {:?}", p.shape);
    let place = |a: &Access| {
        format!("binding {}, strides {:?}, from {}", a.binding, a.layout.strides, a.layout.offset)
    };
    for (i, inst) in p.insts.iter().enumerate() {
        let text = match inst {
            Inst::Load(k) => format!("load {}", place(&p.loads[usize::from(*k)])),
            Inst::Index(k) => {
                let l = &p.indices[usize::from(*k)];
                format!("position, strides {:?}, from {}", l.strides, l.offset)
            }
            Inst::Scalar { slot, .. } => format!("scalar {slot}"),
            Inst::Anchor(_) => "the result".to_string(),
            Inst::Op { op, args, .. } => {
                let args: Vec<String> = args.iter().map(|a| format!("v{a}")).collect();
                format!("{}({})", op.name, args.join(", "))
            }
        };
        let line = p.lines.of(i as Reg).map(|l| format!("  // {l}")).unwrap_or_default();
        let _ = writeln!(out, "  v{i}: {} = {text}{line}", p.dtype(i as Reg));
    }
    for s in &p.stores {
        let _ = writeln!(out, "  store v{} to {}", s.value, place(&s.to));
    }
}
