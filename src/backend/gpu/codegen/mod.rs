//! WGSL for kernels.

mod apart;
mod emit;
mod map;
mod reduce;

use std::borrow::Cow;
use std::fmt::Write;

use crate::backend::Fault;
use crate::error::ErrorKind;
use crate::graph::dtype::DType;
use crate::graph::kernel::{Body, Kernel, Structured};
use crate::graph::program::{Inst, Program};

use super::template::{self, Fill, Library};
use super::{AdapterClass, AdapterInfo, ShaderCall, kernels};
use emit::{Buffer, Group, Numbers, Printer, Space, four, register_type, stores_by_four};

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
    if largest >= u32::MAX as usize - MAX_WORKGROUPS as usize {
        let message = format!("a kernel over {largest} elements; kernels count elements in 32 bits");
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
            let calls = s.op.0.gpu(s, info);
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
        Body::Structured(s) => s.op.0.flops(s) + s.post.numel() as u64 * operations(&s.post.insts),
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
    let _ = write!(
        wgsl,
        "{memory}\n@compute @workgroup_size({workgroup})\n\
         fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lid: u32) {{\n{}{tell}}}\n",
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

/// A hand-written template with its epilogue.
fn structured(
    kernel: &Kernel,
    s: &Structured,
    call: &ShaderCall,
    info: &AdapterInfo,
    looks: bool,
) -> Result<Call, Fault> {
    let wrong = |what: String| fault(ErrorKind::Backend, format!("shader {}: {what}", call.shader));
    if call.workgroups.iter().any(|&n| n > MAX_WORKGROUPS) {
        let message = format!(
            "shader {} wants {:?} workgroups; the limit is {MAX_WORKGROUPS} in each dimension",
            call.shader, call.workgroups
        );
        return Err(fault(ErrorKind::Limit, message));
    }
    let library = library()?;
    let text = kernels::template(call.shader).ok_or_else(|| wrong("there is no such template".into()))?;
    let bare = template::expand(text, library, &Fill { defines: &call.defines, epilogue: "", status: "" });
    let bare = bare.map_err(wrong)?;
    let declared = template::declared(&bare);

    let wide = call.defines.iter().any(|(n, v)| *n == "VEC4" && v != "0");
    let singles = !wide || bare.contains("store(");
    let epilogue = match template::mentions(text, "epilogue") {
        true => epilogue(kernel, s, &declared, Stores { wide, singles, looks }, info, library)?,
        false => String::new(),
    };
    let status = template::mentions(text, "status");
    let words = template::status(2 + kernel.bindings.len());
    let fill = Fill { defines: &call.defines, epilogue: &epilogue, status: &words };
    let mut wgsl = template::expand(text, library, &fill).map_err(wrong)?;
    if looks {
        wgsl = template::looking(&wgsl, if status { "" } else { &words }).map_err(wrong)?;
    }
    Ok(Call {
        wgsl: template::enabling(wgsl),
        entry: call.entry.into(),
        params: call.params.clone(),
        workgroups: call.workgroups,
        status: status || looks,
        flops: 0,
    })
}

/// How a template stores its results.
struct Stores {
    /// In fours, by `store4`.
    wide: bool,
    /// One by one, by `store`.
    singles: bool,
    /// And looks at them.
    looks: bool,
}

/// `store` and, for templates that work in fours, `store4`.
fn epilogue(
    kernel: &Kernel,
    s: &Structured,
    declared: &[template::Declared],
    Stores { wide, singles, looks }: Stores,
    info: &AdapterInfo,
    library: &Library,
) -> Result<String, Fault> {
    let post = &s.post;
    let by_four = wide && stores_by_four(post);
    let singles = singles || !by_four;
    let written = |i: usize| post.stores.iter().any(|s| usize::from(s.to.binding) == i);
    let mut text = String::new();
    declare_scalars(kernel, &mut text);
    let mut buffers = vec![];
    for (i, binding) in kernel.bindings.iter().enumerate() {
        // What the template declares is used as it is.
        if let Some(d) = declared.iter().find(|d| d.binding == i + 2) {
            if binding.written != d.written && written(i) {
                let message =
                    format!("{}: an epilogue may not store to an input of its template", s.op.0.name());
                return Err(fault(ErrorKind::Backend, message));
            }
            buffers.push(Buffer { name: d.name.clone(), wide: d.wide, pairs: d.pairs });
            continue;
        }
        let accesses = || post.loads.iter().chain(post.stores.iter().map(|s| &s.to));
        let last = post.shape.len().saturating_sub(1);
        let together = accesses()
            .any(|a| usize::from(a.binding) == i && by_four && four(&a.layout, last) == emit::Four::Together);
        let mut buffer = Buffer { name: format!("b{i}"), wide: together, pairs: info.pairs };
        if singles && written(i) {
            buffer.store_singles(binding.dtype);
        }
        declare(i, &buffer, binding.dtype, binding.written, &mut text);
        buffers.push(buffer);
    }
    let mut p = Printer::new(library, buffers);
    p.numbers = Numbers { baked: true, ..Numbers::default() };
    p.looks = looks;
    let mut print = |head: &str, index: &str, vector: Option<usize>| {
        p.open(head);
        p.line("let anchor = v;");
        let groups = vec![Group { dims: 0..post.shape.len(), index: index.into() }];
        let space = Space { shape: &post.shape, vector, groups, loops: Default::default() };
        let registers = p.program(post, &space, "anchor");
        p.stores(post, &space, &registers, None);
        p.close();
    };
    let ty = register_type(s.out_dtype, false);
    if singles {
        print(&format!("fn store(i: u32, v: {ty}) {{"), "i", None);
    }
    if wide {
        let ty = register_type(s.out_dtype, true);
        match by_four {
            true => print(&format!("fn store4(i4: u32, v: {ty}) {{"), "i4", Some(post.shape.len() - 1)),
            false => {
                p.open(&format!("fn store4(i4: u32, v: {ty}) {{"));
                for lane in 0..4 {
                    p.line(&format!("store(i4 * 4u + {lane}u, v[{lane}]);"));
                }
                p.close();
            }
        }
    }
    Ok(text + &p.out)
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
