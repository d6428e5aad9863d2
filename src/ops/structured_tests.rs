//! Structured ops against loops in f64, on the CPU and on a software adapter, in every variant.

mod cross_entropy;
mod gather;
mod halves;
mod matmul;
mod norms;
mod prologues;
mod softmax;
mod spatial;
mod sums;

use std::panic::Location;
use std::sync::Arc;

use crate::backend::{Backend, Fault, cpu};
use crate::graph::dtype::DType::{self, F32, F64, I32};
use crate::graph::dtype::Element;
use crate::graph::kernel::{Binding, Body, Command, Kernel, OpRef, Recording, Structured, StructuredOp};
use crate::graph::layout::{Dims, Layout, numel};
use crate::graph::program::{Access, BlockFn, Inst, MapOp, Program, Store};

fn add(out: &mut [u8], args: &[&[u8]]) {
    let of = |i: usize| bytemuck::cast_slice::<u8, f32>(args[i]);
    for ((out, a), b) in bytemuck::cast_slice_mut::<u8, f32>(out).iter_mut().zip(of(0)).zip(of(1)) {
        *out = a + b;
    }
}

static ADD: MapOp = MapOp {
    name: "add",
    arity: 2,
    mask_first: false,
    wgsl: "a + b",
    wgsl_int: "",
    cpu: &|operand, _| (operand == F32).then_some(&add as BlockFn),
    cost: 1,
};

fn devices() -> Vec<Arc<dyn Backend>> {
    #[allow(unused_mut)]
    let mut devices: Vec<Arc<dyn Backend>> = vec![cpu::device()];
    #[cfg(feature = "gpu")]
    devices.push(gpu());
    devices
}

#[cfg(feature = "gpu")]
pub(super) fn gpu() -> Arc<crate::backend::gpu::Gpu> {
    let name = std::env::var("WGRAD_TEST_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
    crate::backend::gpu::pick(Some(&name)).expect("a software adapter")
}

/// Numbers without a pattern, in -1..1, exact in f32.
pub(super) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(747796405).wrapping_add(2891336453);
    let mut next = || {
        s = s.wrapping_mul(1664525).wrapping_add(1013904223);
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn coordinates(shape: &[usize]) -> impl Iterator<Item = Dims> + '_ {
    (0..numel(shape)).map(|mut i| {
        let mut c = Dims::from_elem(0, shape.len());
        for d in (0..shape.len()).rev() {
            c[d] = i % shape[d];
            i /= shape[d];
        }
        c
    })
}

pub(super) fn at(layout: &Layout, c: &[usize]) -> usize {
    layout.offset + layout.strides.iter().zip(c).map(|(s, c)| s * c).sum::<usize>()
}

pub(super) fn call(
    op: impl StructuredOp + 'static,
    inputs: &[(DType, Layout)],
    shape: &[usize],
    dtype: DType,
) -> Structured {
    let out = Layout::contiguous(shape);
    Structured {
        op: OpRef(Arc::new(op)),
        inputs: inputs.to_vec(),
        pre: vec![],
        out_shape: Dims::from_slice(shape),
        out_dtype: dtype,
        post: Program {
            shape: Dims::from_slice(shape),
            insts: vec![Inst::Anchor(dtype)],
            stores: vec![Store { value: 0, to: Access { binding: inputs.len() as u16, dtype, layout: out } }],
            ..Program::default()
        },
        sums: None,
    }
}

/// Runs one call. What its output buffer held before must not matter.
pub(super) fn run(device: &dyn Backend, call: &Structured, data: &[Vec<u8>]) -> Result<Vec<u8>, Fault> {
    Ok(run_with_sums(device, call, data)?.0)
}

/// The same of one that may have sums, which it stores to the last binding; these, too.
fn run_with_sums(
    device: &dyn Backend,
    call: &Structured,
    data: &[Vec<u8>],
) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let inputs = call.bound_inputs();
    let mut bindings: Vec<Binding> = (call.inputs.iter().enumerate())
        .filter(|(i, _)| call.binding(*i).is_some())
        .map(|(_, &(dtype, _))| Binding { dtype, written: false })
        .collect();
    bindings.push(Binding { dtype: call.out_dtype, written: true });
    let loads: Vec<&Access> = call.pre.iter().flat_map(|pre| &pre.program.loads).collect();
    bindings.extend((inputs + 1..=data.len()).map(|i| {
        let load = loads.iter().find(|load| usize::from(load.binding) == i);
        Binding { dtype: load.map_or(F32, |load| load.dtype), written: false }
    }));
    bindings.extend(call.sums.as_ref().map(|_| Binding { dtype: F32, written: true }));
    let mut body = call.clone();
    // As the scheduler leaves it: without dimensions that no operand tells apart.
    body.post.collapse(call.post.shape.len());
    let kernel = Kernel {
        body: Body::Structured(body),
        bindings,
        scalars: vec![],
        label: call.op.0.name().into(),
        caller: Location::caller(),
    };
    let bytes = numel(&call.out_shape) * call.out_dtype.size();
    let mut buffers = data[..inputs].iter().map(|d| device.upload(d)).collect::<Result<Vec<_>, _>>()?;
    buffers.push(device.upload(&vec![0x5a; bytes])?);
    for d in &data[inputs..] {
        buffers.push(device.upload(d)?);
    }
    let sums = call.sums.as_ref().map_or(0, |sums| sums.post.numel() * 4);
    if sums > 0 {
        buffers.push(device.upload(&vec![0x5a; sums])?);
    }
    let recording = Recording {
        commands: vec![Command::Dispatch {
            kernel: Arc::new(kernel),
            buffers: (0..buffers.len() as u32).collect(),
            scalars: 0,
        }],
    };
    let compiled = device.compile(&recording, false)?;
    device.run(&recording, &compiled, &buffers, &[])?;
    let out = device.download(&buffers[inputs], 0..bytes)?;
    let last = &buffers[buffers.len() - 1];
    Ok((out, if sums > 0 { device.download(last, 0..sums)? } else { vec![] }))
}

/// The same with `+ c` fused behind it, `c` a tensor of one row.
fn with_epilogue(call: Structured) -> (Structured, Vec<u8>) {
    let last = call.out_shape.len() - 1;
    with_epilogue_along(call, last)
}

/// The same with a `c` that has the size of one dimension.
fn with_epilogue_along(mut call: Structured, dim: usize) -> (Structured, Vec<u8>) {
    let size = call.out_shape[dim];
    let inputs = call.bound_inputs() as u16;
    let mut shape = vec![1; call.out_shape.len()];
    shape[dim] = size;
    let layout = Layout::contiguous(&shape).expand(&call.out_shape).expect("one dimension");
    let value = (call.post.insts.len() + 1) as u16;
    call.post.insts.extend([
        Inst::Load(0),
        Inst::Op { op: &ADD, operand: F32, result: F32, args: [0u16, 1].into_iter().collect() },
    ]);
    call.post.loads.push(Access { binding: inputs + 1, dtype: F32, layout });
    call.post.stores[0].value = value;
    (call, f32::to_bytes(&noise(size, 77)))
}

#[track_caller]
pub(super) fn close(name: &str, got: &[u8], expected: &[f64], tolerance: f64) {
    let got = f32::from_bytes(got);
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let near = (f64::from(g) - e).abs() <= tolerance * e.abs().max(1.0);
        let same = f64::from(g) == e || (g.is_nan() && e.is_nan()) || (g.is_finite() && near);
        assert!(same, "{name}: element {i} is {g}, not {e}");
    }
}

/// A variant of an op that would not be chosen: its name, whether it fuses epilogues, the dimension of whose coordinate it
/// knows, and its dispatches.
#[cfg(feature = "gpu")]
pub(super) struct Forced<F>(pub &'static str, pub bool, pub Option<usize>, pub F);

#[cfg(feature = "gpu")]
impl<F> std::fmt::Debug for Forced<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(feature = "gpu")]
impl<F: Fn(&Structured) -> Vec<crate::backend::gpu::ShaderCall> + Send + Sync> StructuredOp for Forced<F> {
    fn name(&self) -> &'static str {
        self.0
    }
    fn key(&self) -> Vec<u64> {
        vec![std::ptr::from_ref(self) as u64]
    }
    fn fuses_epilogue(&self) -> bool {
        self.1
    }
    fn knows_coordinate(&self, _: &Structured) -> Option<usize> {
        self.2
    }
    fn gpu(
        &self,
        call: &Structured,
        _: &crate::backend::gpu::AdapterInfo,
    ) -> Vec<crate::backend::gpu::ShaderCall> {
        (self.3)(call)
    }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> {
        Err("is for GPUs".into())
    }
}
