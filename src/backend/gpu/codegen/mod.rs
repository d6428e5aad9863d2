//! WGSL for kernels.

mod apart;
mod emit;
mod map;
mod reduce;
mod structured;

use std::borrow::Cow;
use std::fmt::Write;

use crate::backend::{Fault, Prices};
use crate::error::ErrorKind;
use crate::graph::dtype::DType;
use crate::graph::kernel::{Body, Kernel, Structured};
use crate::graph::program::{Inst, Program};

use super::template::{self, Library};
use super::{AdapterClass, AdapterInfo, ShaderCall, kernels};
use emit::{Buffer, Printer, row};
use structured::structured;

pub use reduce::split;

/// Invocations in a workgroup of a generated kernel.
pub const WORKGROUP: usize = 64;
/// On a software adapter: the lanes that it runs at once.
pub const SOFTWARE_WORKGROUP: usize = 8;
/// WebGPU's limit in each dimension of a grid.
pub const MAX_WORKGROUPS: u32 = 65_535;

/// One dispatch, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Call {
    pub wgsl: String,
    pub entry: Cow<'static, str>,
    /// The uniform at binding 0; none if empty.
    pub params: Vec<u8>,
    pub workgroups: [u32; 3],
    /// Whether it has status words: for a bad index, or for what it looks for.
    pub status: bool,
    pub flops: u64,
}

fn library() -> Result<&'static Library, Fault> {
    kernels::library().map_err(|e| fault(ErrorKind::Backend, e))
}

fn fault(kind: ErrorKind, message: String) -> Fault {
    Fault { kind, message, command: None }
}

/// The dispatches that compute a kernel. Those without work are left out. Those that are to look tell of NaN and
/// infinity among the numbers that they store.
pub fn generate(kernel: &Kernel, info: &AdapterInfo, looks: bool) -> Result<Vec<Call>, Fault> {
    let chosen = |s: &Structured| s.op.0.gpu(s, info);
    generate_by(kernel, info, looks, chosen)
}

/// The same, a structured op by these dispatches of its templates.
pub fn generate_by(
    kernel: &Kernel,
    info: &AdapterInfo,
    looks: bool,
    calls: impl FnOnce(&Structured) -> Vec<ShaderCall>,
) -> Result<Vec<Call>, Fault> {
    if kernel.bindings.iter().any(|b| b.dtype == DType::F64) || kernel.scalars.contains(&DType::F64) {
        let message = "float64 does not run on a GPU (WGSL has no 64-bit float); use the CPU device".into();
        return Err(fault(ErrorKind::DType, message));
    }
    if kernel.bindings.iter().any(|b| b.dtype == DType::F16)
        && !info.features.contains(wgpu::Features::SHADER_F16)
    {
        let message = "float16 does not run on this GPU (it lacks the feature shader-f16)".into();
        return Err(fault(ErrorKind::DType, message));
    }
    let size = |p: &Program| p.numel();
    let largest = match &kernel.body {
        Body::Map(jobs) => jobs.iter().map(size).max().unwrap_or(0),
        Body::Reduce(r) => size(&r.pre),
        Body::Structured(s) => s.out_shape.iter().product(),
    };
    let computed = match &kernel.body {
        Body::Structured(s) => s.pre.iter().map(|pre| size(&pre.program)).max().unwrap_or(0),
        _ => 0,
    };
    if largest.max(computed) >= u32::MAX as usize - MAX_WORKGROUPS as usize {
        let message =
            format!("a kernel over {} elements; kernels count elements in 32 bits", largest.max(computed));
        return Err(fault(ErrorKind::Limit, message));
    }
    let room = kernel.bindings.len() < info.limits.max_storage_buffers_per_shader_stage as usize;
    let looks = looks && room && kernel.bindings.iter().any(|b| b.written && b.dtype.is_float());
    let mut calls = match &kernel.body {
        Body::Map(jobs) if jobs.iter().all(|j| j.numel() == 0) => vec![],
        Body::Map(jobs) => vec![map::map(kernel, jobs, info, library()?, looks)],
        Body::Reduce(r) if r.outputs() == 0 => vec![],
        Body::Reduce(r) => vec![reduce::reduce(kernel, r, info, library()?, looks)?],
        Body::Structured(s) if largest == 0 && s.post.numel() == 0 => vec![],
        Body::Structured(s) => {
            let slow = info.is_software() && s.op.0.stores_tiles();
            let cut = if slow { apart::apart(s) } else { None };
            let op = cut.as_ref().map_or(s, |(op, _)| op);
            let calls = calls(s);
            let calls = calls.iter().map(|call| structured(kernel, op, call, info, looks));
            let mut calls = calls.collect::<Result<Vec<_>, Fault>>()?;
            if let Some((_, after)) = &cut {
                calls.push(map::map(kernel, std::slice::from_ref(after), info, library()?, looks));
            }
            calls
        }
    };
    if let Some(last) = calls.last_mut() {
        last.flops = flops(kernel);
    }
    calls.retain(|c| c.workgroups.iter().all(|&n| n > 0));
    Ok(calls)
}

fn operations(insts: &[Inst]) -> u64 {
    insts.iter().map(|i| if let Inst::Op { op, .. } = i { u64::from(op.cost.max(1)) } else { 0 }).sum()
}

/// Operations of a kernel, for reports.
fn flops(kernel: &Kernel) -> u64 {
    match &kernel.body {
        Body::Map(jobs) => jobs.iter().map(|j| j.numel() as u64 * operations(&j.insts)).sum(),
        Body::Reduce(r) => reduce::flops(r),
        Body::Structured(s) => {
            let around = s.programs().map(|p| p.numel() as u64 * operations(&p.insts));
            s.op.0.flops(s) + s.summed() + around.sum::<u64>()
        }
    }
}

/// A grid of so many workgroups.
fn grid(groups: usize) -> [u32; 3] {
    let groups = groups as u32;
    if groups <= MAX_WORKGROUPS {
        return [groups, 1, 1];
    }
    let rows = groups.div_ceil(MAX_WORKGROUPS);
    [groups.div_ceil(rows), rows, 1]
}

/// Puts declarations around the code of a generated kernel.
fn finish(kernel: &Kernel, p: Printer, workgroup: usize, memory: &str, workgroups: [u32; 3]) -> Call {
    let mut params = p.numbers.words;
    params.resize(params.len().next_multiple_of(4), 0);
    let mut wgsl = format!("// {}\n", kernel.label);
    let _ =
        writeln!(wgsl, "@group(0) @binding(0) var<uniform> params: array<vec4<u32>, {}>;", params.len() / 4);
    declare_scalars(kernel, &mut wgsl);
    for (i, (binding, buffer)) in kernel.bindings.iter().zip(&p.buffers).enumerate() {
        declare(i, buffer, binding.dtype, binding.written, &mut wgsl);
    }
    let tell = if p.looks {
        wgsl = wgsl + &template::status(2 + kernel.bindings.len()) + template::LOOK;
        "    tell();\n"
    } else {
        ""
    };
    let rows = |array, words: usize| (0..words.div_ceil(4)).map(move |i| format!("    {}\n", row(array, i)));
    let rows: String = rows("params", params.len()).chain(rows("scalars", kernel.scalars.len())).collect();
    let _ = write!(
        wgsl,
        "{memory}\n@compute @workgroup_size({workgroup})\n\
         fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{\n{rows}{}{tell}}}\n",
        p.out
    );
    let shared = p.library.link(&[(&wgsl, None)]);
    let wgsl = template::enabling(wgsl + &shared);
    let params = bytemuck::cast_slice(&params).to_vec();
    Call { wgsl, entry: "main".into(), params, workgroups, status: p.looks, flops: 0 }
}

fn declare_scalars(kernel: &Kernel, out: &mut String) {
    if !kernel.scalars.is_empty() {
        let n = kernel.scalars.len().div_ceil(4);
        let _ = writeln!(out, "@group(0) @binding(1) var<uniform> scalars: array<vec4<u32>, {n}>;");
    }
}

fn declare(i: usize, buffer: &Buffer, dtype: DType, written: bool, out: &mut String) {
    let access = if written { "read_write" } else { "read" };
    let (ty, at) = (buffer.element_type(dtype), i + 2);
    let _ = writeln!(out, "@group(0) @binding({at}) var<storage, {access}> {}: array<{ty}>;", buffer.name);
}

/// How a reduction is cut on an adapter of this class.
pub fn split_for(class: AdapterClass) -> fn(usize, usize, bool) -> usize {
    match class {
        AdapterClass::Software => {
            |outputs, reduced, columns| split(AdapterClass::Software, outputs, reduced, columns)
        }
        AdapterClass::Integrated => {
            |outputs, reduced, columns| split(AdapterClass::Integrated, outputs, reduced, columns)
        }
        AdapterClass::Discrete => {
            |outputs, reduced, columns| split(AdapterClass::Discrete, outputs, reduced, columns)
        }
    }
}

/// What computing an operand of a product where it is read costs on an adapter of this class. Of a software adapter
/// fitted to measurements, in units of 0.025 ns; of GPUs estimated by the rates of arithmetic, caches, memory and launches.
pub fn prices(class: AdapterClass) -> Prices {
    let (tile, fours, least) = match class {
        // The driver takes long to compile one more large kernel.
        AdapterClass::Software => (32, true, 1 << 18),
        AdapterClass::Integrated | AdapterClass::Discrete => (64, false, 0),
    };
    let (each, load, round_trip, dispatch) = match class {
        AdapterClass::Software => (7, 22, 60, 1_600_000),
        AdapterClass::Integrated => (4, 13, 130, 5_000_000),
        AdapterClass::Discrete => (4, 13, 80, 100_000_000),
    };
    let registers = class != AdapterClass::Software;
    Prices { tile, fours, least, each, load, round_trip, dispatch, registers }
}
