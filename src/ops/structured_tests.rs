//! Structured ops against loops in f64, on the CPU and on a software adapter, in every variant.

use std::panic::Location;
use std::sync::Arc;

use crate::backend::{Backend, Fault, cpu};
use crate::graph::dtype::DType::{self, F32, F64, I32};
use crate::graph::dtype::Element;
use crate::graph::kernel::{Binding, Body, Command, Kernel, OpRef, Recording, Structured, StructuredOp};
use crate::graph::layout::{Dims, Layout, numel};
use crate::graph::program::{Access, BlockFn, Inst, MapOp, Program, Store};
use crate::ops::gather::{Gather, ScatterAdd};
use crate::ops::matmul::Matmul;
use crate::ops::softmax::{Softmax, SoftmaxBackward};

mod spatial;
mod norms;

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
    cpu: |operand, _| (operand == F32).then_some(add as BlockFn),
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
        out_shape: Dims::from_slice(shape),
        out_dtype: dtype,
        post: Program {
            shape: Dims::from_slice(shape),
            insts: vec![Inst::Anchor(dtype)],
            stores: vec![Store { value: 0, to: Access { binding: inputs.len() as u16, dtype, layout: out } }],
            ..Program::default()
        },
    }
}

/// Runs one call. What its output buffer held before must not matter.
pub(super) fn run(device: &dyn Backend, call: &Structured, data: &[Vec<u8>]) -> Result<Vec<u8>, Fault> {
    let inputs = call.inputs.len();
    let mut bindings: Vec<Binding> =
        call.inputs.iter().map(|&(dtype, _)| Binding { dtype, written: false }).collect();
    bindings.push(Binding { dtype: call.out_dtype, written: true });
    bindings.extend(data[inputs..].iter().map(|_| Binding { dtype: F32, written: false }));
    let kernel = Kernel {
        body: Body::Structured(call.clone()),
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
    let recording = Recording {
        commands: vec![Command::Dispatch {
            kernel: Arc::new(kernel),
            buffers: (0..buffers.len() as u32).collect(),
            scalars: 0,
        }],
    };
    let compiled = device.compile(&recording)?;
    device.run(&recording, &compiled, &buffers, &[])?;
    device.download(&buffers[inputs], 0..bytes)
}

/// The same with `+ c` fused behind it, `c` a tensor of one row.
fn with_epilogue(mut call: Structured) -> (Structured, Vec<u8>) {
    let row = call.out_shape.last().copied().unwrap_or(1);
    let inputs = call.inputs.len() as u16;
    let layout = Layout::contiguous(&[row]).expand(&call.out_shape).expect("a row");
    let value = (call.post.insts.len() + 1) as u16;
    call.post.insts.extend([
        Inst::Load(0),
        Inst::Op { op: &ADD, operand: F32, result: F32, args: [0u16, 1].into_iter().collect() },
    ]);
    call.post.loads.push(Access { binding: inputs + 1, dtype: F32, layout });
    call.post.stores[0].value = value;
    (call, f32::to_bytes(&noise(row, 77)))
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

/// The matrix `[batch, rows, columns]` in some memory order.
fn matrix(kind: &str, batch: usize, rows: usize, columns: usize) -> Layout {
    match kind {
        "rows" => Layout::contiguous(&[batch, rows, columns]),
        "columns" => Layout::contiguous(&[batch, columns, rows]).permute(&[0, 2, 1]),
        "shifted" => Layout { offset: 1, ..Layout::contiguous(&[batch, rows, columns]) },
        "padded" => Layout::contiguous(&[batch, rows, columns + 4]).slice(2, 4, columns, 1),
        "spread" => Layout::contiguous(&[batch, rows, 2 * columns]).slice(2, 0, columns, 2),
        "broadcast" => Layout::contiguous(&[1, rows, columns]).expand(&[batch, rows, columns]).expect("1"),
        _ => unreachable!(),
    }
}

fn product(a: &Layout, x: &[f32], b: &Layout, y: &[f32]) -> Vec<f64> {
    let (k, n) = (a.shape[2], b.shape[2]);
    coordinates(&[a.shape[0], a.shape[1], n])
        .map(|c| {
            let term =
                |l: usize| f64::from(x[at(a, &[c[0], c[1], l])]) * f64::from(y[at(b, &[c[0], l, c[2]])]);
            (0..k).map(term).sum()
        })
        .collect()
}

/// A variant of an op that would not be chosen.
#[cfg(feature = "gpu")]
pub(super) struct Forced<F>(pub &'static str, pub bool, pub F);

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
    fn gpu(
        &self,
        call: &Structured,
        _: &crate::backend::gpu::AdapterInfo,
    ) -> Vec<crate::backend::gpu::ShaderCall> {
        (self.2)(call)
    }
    fn cpu(&self, _: &Structured, _: &[&[u8]], _: &mut [u8]) -> Result<(), String> {
        Err("is for GPUs".into())
    }
}

#[cfg(feature = "gpu")]
fn forced(kernel: crate::ops::matmul::Kernel) -> impl StructuredOp {
    use crate::ops::matmul::{Problem, Variant};
    Forced("forced_matmul", true, move |call: &Structured| {
        let variant = Variant { kernel, fits: |_, _, _| true };
        variant.calls(Problem::new(call), call.out_dtype)
    })
}

#[test]
fn products_of_every_layout_and_size() {
    let sizes = [
        (1, 1, 1, 1),
        (1, 3, 5, 7),
        (2, 8, 32, 16),
        (1, 1, 33, 20),
        (1, 40, 1, 36),
        (3, 1, 1, 300),
        (1, 31, 33, 4),
        (1, 32, 64, 64),
        (2, 33, 127, 129),
        (1, 65, 36, 12),
        (1, 64, 12, 66),
        (1, 5, 0, 4),
        (1, 4, 4, 0),
        (2, 17, 10, 10),
        (1, 128, 10, 256),
        (1, 10, 128, 40),
    ]; // batch, m, n, k
    let kinds = ["rows", "columns", "shifted", "padded", "spread", "broadcast"];
    for &(batch, m, n, k) in &sizes {
        for (i, &ka) in kinds.iter().enumerate() {
            // Each layout with some others, and all with all over the sizes.
            for kb in [kinds[(i + m + n) % kinds.len()], kinds[(i + k + 1) % kinds.len()]] {
                let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
                let (x, y) = (noise(a.end().max(1), 1), noise(b.end().max(1), 2));
                let expected = product(&a, &x, &b, &y);
                let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
                let name = format!("{batch}x{m}x{n}x{k} {ka}·{kb}");
                let inputs = [(F32, a), (F32, b)];
                for device in devices() {
                    let plain = call(Matmul, &inputs, &[batch, m, n], F32);
                    let got = run(&*device, &plain, &data).unwrap();
                    close(&format!("{name} on {}", device.name()), &got, &expected, 1e-5);
                    let (fused, c) = with_epilogue(plain);
                    let row = f32::from_bytes(&c);
                    let got = run(&*device, &fused, &[data[0].clone(), data[1].clone(), c]).unwrap();
                    let sums: Vec<f64> =
                        expected.iter().enumerate().map(|(i, v)| v + f64::from(row[i % n.max(1)])).collect();
                    close(&format!("{name} + c on {}", device.name()), &got, &sums, 1e-5);
                }
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_the_product() {
    use crate::ops::matmul::VARIANTS;
    let device = gpu();
    for variant in VARIANTS {
        use crate::ops::matmul::Kernel::{Axpy, Lanes};
        if matches!(variant.kernel, Lanes { subgroup: true, .. }) && device.info().subgroup_size != Some(8) {
            continue;
        }
        let column = variant.kernel == Axpy;
        let sizes = if column {
            [(1, 300, 1, 64), (2, 5, 1, 1000), (1, 1, 260, 68), (1, 1, 7, 3)]
        } else {
            [(1, 64, 64, 64), (2, 35, 65, 33), (3, 4, 132, 7), (1, 100, 8, 20)]
        };
        for (batch, m, n, k) in sizes {
            for (ka, kb) in
                [("rows", "rows"), ("columns", "columns"), ("shifted", "broadcast"), ("columns", "rows")]
            {
                let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
                let (x, y) = (noise(a.end(), 3), noise(b.end(), 4));
                let call =
                    call(forced(variant.kernel), &[(F32, a.clone()), (F32, b.clone())], &[batch, m, n], F32);
                let got = run(&*device, &call, &[f32::to_bytes(&x), f32::to_bytes(&y)]).unwrap();
                let name = format!("{:?} {batch}x{m}x{n}x{k} {ka}·{kb}", variant.kernel);
                close(&name, &got, &product(&a, &x, &b, &y), 1e-5);
            }
        }
    }
}

#[test]
fn products_of_other_types_and_of_infinities() {
    let (a, b) = (matrix("rows", 2, 5, 9), matrix("columns", 2, 9, 6));
    let ints = |n: usize| (0..n as i32).map(|i| i * 7 % 23 - 11).collect::<Vec<i32>>();
    let (x, y) = (ints(a.end()), ints(b.end()));
    let floats = |v: &[i32]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let expected = product(&a, &floats(&x), &b, &floats(&y));
    for device in devices() {
        let call = call(Matmul, &[(I32, a.clone()), (I32, b.clone())], &[2, 5, 6], I32);
        let got = i32::from_bytes(&run(&*device, &call, &[i32::to_bytes(&x), i32::to_bytes(&y)]).unwrap());
        assert_eq!(got.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), expected, "{}", device.name());
    }
    let doubles = |v: &[i32]| f64::to_bytes(&v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>());
    let call64 = call(Matmul, &[(F64, a.clone()), (F64, b.clone())], &[2, 5, 6], F64);
    assert_eq!(
        f64::from_bytes(&run(&*cpu::device(), &call64, &[doubles(&x), doubles(&y)]).unwrap()),
        expected
    );

    // An infinity in one place must show in its row and column alone, padding or not.
    for (m, n, k) in [(33, 34, 35), (36, 32, 64)] {
        let (a, b) = (matrix("rows", 1, m, k), matrix("rows", 1, k, n));
        let (mut x, mut y) = (noise(m * k, 5), noise(k * n, 6));
        x[(m - 1) * k + k - 1] = f32::INFINITY;
        y[(k - 1) * n + n - 1] = f32::NAN;
        let expected = product(&a, &x, &b, &y);
        for device in devices() {
            let call = call(Matmul, &[(F32, a.clone()), (F32, b.clone())], &[1, m, n], F32);
            let got = run(&*device, &call, &[f32::to_bytes(&x), f32::to_bytes(&y)]).unwrap();
            close(&format!("infinity on {}", device.name()), &got, &expected, 1e-5);
        }
    }
}

#[test]
fn products_of_many_batch_dimensions_and_of_great_depth() {
    // Nine batch dimensions that do not merge.
    let shape = [2; 9];
    let whole = |inner: [usize; 2]| {
        let mut s = [3; 11];
        s[9..].copy_from_slice(&inner);
        let mut l = Layout::contiguous(&s);
        for (d, &n) in shape.iter().enumerate() {
            l = l.slice(d, 0, n, 1);
        }
        l
    };
    let (a, b) = (whole([1, 2]), whole([2, 1]));
    let (x, y) = (noise(a.end(), 7), noise(b.end(), 8));
    let expected: Vec<f64> = coordinates(&shape)
        .map(|c| {
            let place = |layout: &Layout, l: usize, row: bool| {
                let mut c = c.clone();
                c.extend(if row { [0, l] } else { [l, 0] });
                at(layout, &c)
            };
            (0..2).map(|l| f64::from(x[place(&a, l, true)]) * f64::from(y[place(&b, l, false)])).sum()
        })
        .collect();
    let mut out = shape.to_vec();
    out.extend([1, 1]);
    let deep = 600_000;
    for device in devices() {
        let many = call(Matmul, &[(F32, a.clone()), (F32, b.clone())], &out, F32);
        let got = run(&*device, &many, &[f32::to_bytes(&x), f32::to_bytes(&y)]).unwrap();
        close(device.name(), &got, &expected, 1e-5);
        // Past the turns that a software driver grants a loop.
        for (m, n) in [(1, 1), (3, 5), (40, 1)] {
            let (a, b) = (matrix("rows", 1, m, deep), matrix("columns", 1, deep, n));
            let call = call(Matmul, &[(F32, a), (F32, b)], &[1, m, n], F32);
            let data = [f32::to_bytes(&vec![1.0; m * deep]), f32::to_bytes(&vec![1.0; n * deep])];
            close("deep", &run(&*device, &call, &data).unwrap(), &vec![deep as f64; m * n], 1e-6);
        }
    }
}

fn softmax(x: &[f32], [outer, n, inner]: [usize; 3], log: bool) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for row in 0..outer * inner {
        let base = row / inner * n * inner + row % inner;
        let v: Vec<f64> = (0..n).map(|j| f64::from(x[base + j * inner])).collect();
        let most = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = v.iter().map(|v| (v - most).exp()).sum();
        for j in 0..n {
            out[base + j * inner] = if log { v[j] - most - sum.ln() } else { (v[j] - most).exp() / sum };
        }
    }
    out
}

fn softmax_backward(g: &[f32], y: &[f32], [outer, n, inner]: [usize; 3], log: bool) -> Vec<f64> {
    let mut out = vec![0.0; g.len()];
    for row in 0..outer * inner {
        let base = row / inner * n * inner + row % inner;
        let of = |v: &[f32], j: usize| f64::from(v[base + j * inner]);
        let sum: f64 = (0..n).map(|j| of(g, j) * if log { 1.0 } else { of(y, j) }).sum();
        for j in 0..n {
            out[base + j * inner] =
                if log { of(g, j) - of(y, j).exp() * sum } else { (of(g, j) - sum) * of(y, j) };
        }
    }
    out
}

const SOFTMAX_SHAPES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [128, 10, 1],
    [3, 16, 1],
    [40, 33, 1],
    [2, 100, 1],
    [20, 64, 3],
    [2, 7, 50],
    [1, 5000, 1],
    [1, 1001, 2],
    [0, 4, 1],
    [33, 32, 1],
    [1, 300_004, 1],
];

#[test]
fn softmax_and_its_gradient() {
    for shape in SOFTMAX_SHAPES {
        for log in [false, true] {
            let layout = Layout { offset: shape[0] % 3, ..Layout::contiguous(&shape) };
            let (size, skip) = (numel(&shape), layout.offset);
            let x: Vec<f32> = noise(size + skip, 9).iter().map(|v| v * 20.0).collect();
            let y: Vec<f32> = noise(size + skip, 10);
            let forward = softmax(&x[skip..], shape, log);
            let backward = softmax_backward(&x[skip..], &y[skip..], shape, log);
            for device in devices() {
                let name = format!("{shape:?} log={log} on {}", device.name());
                let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
                let plain = call(Softmax { log }, &[(F32, layout.clone())], &shape, F32);
                close(&name, &run(&*device, &plain, &data[..1]).unwrap(), &forward, 3e-6);
                if shape[2] == 1 && size > 0 {
                    let (fused, c) = with_epilogue(plain);
                    // The last dimension is 1, so `c` is one number.
                    let sums: Vec<f64> =
                        forward.iter().map(|v| v + f64::from(f32::from_bytes(&c)[0])).collect();
                    close(&name, &run(&*device, &fused, &[data[0].clone(), c]).unwrap(), &sums, 3e-6);
                }
                let op = SoftmaxBackward { log };
                let grad = call(op, &[(F32, layout.clone()), (F32, layout.clone())], &shape, F32);
                close(&name, &run(&*device, &grad, &data).unwrap(), &backward, 2e-4);
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_softmax() {
    use crate::ops::softmax::{Kernel, Rows, VARIANTS};
    let device = gpu();
    for &(kernel, _) in VARIANTS {
        if matches!(kernel, Kernel::Team { subgroup: true, .. }) && device.info().subgroup_size != Some(8) {
            continue;
        }
        let shapes = [[5, 12, 1], [70, 10, 1], [3, 30, 9], [2, 20, 1], [9, 64, 1], [3, 260, 1], [2, 1027, 1]];
        for (i, shape) in shapes.into_iter().enumerate() {
            if kernel == Kernel::Registers && shape[1] > 100 {
                continue;
            }
            for log in [false, true] {
                // Some rows are not aligned to fours.
                let layout = Layout { offset: [0, 4, 3][i % 3], ..Layout::contiguous(&shape) };
                let size = layout.end();
                let (x, y) = (noise(size, 11), noise(size, 12));
                for inputs in [1, 2] {
                    let op = Forced("forced_softmax", true, move |call: &Structured| {
                        Rows::new(call, gpu().info()).calls(kernel, call, log)
                    });
                    let call = call(op, &vec![(F32, layout.clone()); inputs], &shape, F32);
                    let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
                    let got = run(&*device, &call, &data[..inputs]).unwrap();
                    let expected = if inputs == 1 {
                        softmax(&x[layout.offset..], shape, log)
                    } else {
                        softmax_backward(&x[layout.offset..], &y[layout.offset..], shape, log)
                    };
                    close(&format!("{kernel:?} {shape:?} log={log} of {inputs}"), &got, &expected, 2e-5);
                }
            }
        }
    }
}

#[test]
fn softmax_of_infinities() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [
        [-inf, 0.0, -inf, 0.0],
        [-inf; 4],
        [inf, 0.0, 1.0, 2.0],
        [nan, 0.0, 1.0, 2.0],
        [-500.0, 500.0, 0.0, 0.0],
    ];
    let x: Vec<f32> = rows.concat();
    for (shape, repeat) in [([5, 4, 1], 1), ([40, 4, 1], 8), ([1, 20, 1], 1)] {
        let x: Vec<f32> = if shape[1] == 20 { x[..4].repeat(5) } else { x.repeat(repeat) };
        for log in [false, true] {
            let expected = softmax(&x, shape, log);
            for device in devices() {
                let call = call(Softmax { log }, &[(F32, Layout::contiguous(&shape))], &shape, F32);
                let got = run(&*device, &call, &[f32::to_bytes(&x)]).unwrap();
                // The f64 loop has no NaN for a row with one: `f64::max` passes them over, but the sum is NaN.
                close(&format!("{shape:?} log={log} on {}", device.name()), &got, &expected, 1e-6);
            }
        }
    }
}

struct Indexed {
    x: Layout,
    index: Layout,
    dim: usize,
}

fn indexed() -> Vec<Indexed> {
    let rows = |n: usize, v: usize, width: usize| Indexed {
        x: Layout::contiguous(&[v, width]),
        index: Layout::contiguous(&[n, 1]).expand(&[n, width]).expect("rows"),
        dim: 0,
    };
    vec![
        rows(7, 5, 4),
        rows(6, 50, 12),
        rows(100, 9, 5),
        rows(300, 400, 8),
        Indexed { x: Layout::contiguous(&[3, 6, 4]), index: Layout::contiguous(&[3, 2, 4]), dim: 1 },
        Indexed {
            x: Layout::contiguous(&[4, 6, 3]).permute(&[2, 1, 0]),
            index: Layout::contiguous(&[3, 6, 4]),
            dim: 2,
        },
        Indexed { x: Layout::contiguous(&[20]), index: Layout::contiguous(&[9]), dim: 0 },
        Indexed {
            x: Layout::contiguous(&[2, 6, 8]),
            index: Layout::contiguous(&[1, 3, 1]).expand(&[2, 3, 8]).expect("rows"),
            dim: 1,
        },
        Indexed { x: Layout::contiguous(&[3, 4]), index: Layout::contiguous(&[0, 4]), dim: 0 },
        Indexed {
            x: Layout { offset: 3, ..Layout::contiguous(&[5, 8]) },
            index: Layout::contiguous(&[8, 5]).permute(&[1, 0]),
            dim: 1,
        },
    ]
}

#[test]
fn gather_and_its_gradient() {
    for Indexed { x, index, dim } in indexed() {
        let size = x.shape[dim];
        let mut shape = x.shape.clone();
        shape[dim] = index.shape[dim];
        let shape = if index.numel() > 0 { index.shape.clone() } else { shape };
        let values = noise(x.end().max(1), 13);
        let which: Vec<i32> =
            noise(index.end().max(1), 14).iter().map(|v| ((v + 1.0) / 2.0 * size as f32) as i32).collect();
        let g = Layout::contiguous(&shape);
        let grads = noise(g.end().max(1), 15);
        let mut expected = vec![];
        let mut full = shape.clone();
        full[dim] = size;
        let to = Layout::contiguous(&full);
        let mut scattered = vec![0.0f64; numel(&full)];
        for c in coordinates(&shape) {
            let mut from = c.clone();
            from[dim] = which[at(&index, &c)] as usize;
            expected.push(f64::from(values[at(&x, &from)]));
            scattered[at(&to, &from)] += f64::from(grads[at(&g, &c)]);
        }
        for device in devices() {
            let name = format!("{x:?} by {index:?} on {}", device.name());
            let inputs = [(F32, x.clone()), (I32, index.clone())];
            let plain = call(Gather { dim }, &inputs, &shape, F32);
            let data = [f32::to_bytes(&values), i32::to_bytes(&which)];
            close(&name, &run(&*device, &plain, &data).unwrap(), &expected, 0.0);
            if !expected.is_empty() {
                let (fused, c) = with_epilogue(plain);
                let row = f32::from_bytes(&c);
                let sums: Vec<f64> =
                    expected.iter().enumerate().map(|(i, v)| v + f64::from(row[i % row.len()])).collect();
                let data = [data[0].clone(), data[1].clone(), c];
                close(&name, &run(&*device, &fused, &data).unwrap(), &sums, 1e-6);
            }
            let inputs = [(F32, g.clone()), (I32, index.clone())];
            let data = [f32::to_bytes(&grads), i32::to_bytes(&which)];
            let back = call(ScatterAdd { dim, size }, &inputs, &full, F32);
            close(&name, &run(&*device, &back, &data).unwrap(), &scattered, 1e-5);
        }
    }
}

#[test]
fn indices_out_of_range() {
    for bad in [5, -1, i32::MAX] {
        let layout = Layout::contiguous(&[4]);
        let data = [f32::to_bytes(&noise(5, 16)), i32::to_bytes(&[0, bad, 2, 4])];
        let gather =
            call(Gather { dim: 0 }, &[(F32, Layout::contiguous(&[5])), (I32, layout.clone())], &[4], F32);
        let scatter =
            call(ScatterAdd { dim: 0, size: 5 }, &[(F32, layout.clone()), (I32, layout)], &[5], F32);
        for call in [gather, scatter] {
            let fault = run(&*cpu::device(), &call, &data).unwrap_err();
            let words = format!("index {bad} is out of bounds for dimension 0 with size 5");
            assert_eq!(fault.message, format!("{} {words}", call.op.0.name()));
            #[cfg(feature = "gpu")]
            {
                let device = gpu();
                let read = run(&*device, &call, &data);
                let later = device.synchronize();
                assert!(read.is_err() || later.is_err(), "{bad}");
            }
        }
    }
}

#[test]
fn bools_are_gathered() {
    for device in devices() {
        let inputs = [(DType::Bool, Layout::contiguous(&[4])), (I32, Layout::contiguous(&[6]))];
        let data = [bool::to_bytes(&[true, false, true, true]), i32::to_bytes(&[1, 0, 3, 1, 2, 0])];
        let call = call(Gather { dim: 0 }, &inputs, &[6], DType::Bool);
        let got = bool::from_bytes(&run(&*device, &call, &data).unwrap());
        assert_eq!(got, [false, true, true, false, true, true], "{}", device.name());
    }
}

#[cfg(feature = "gpu")]
#[test]
fn many_indices_past_the_turns_of_a_loop() {
    let n = 140_000;
    let index: Vec<i32> = (0..n).map(|i| i % 3).collect();
    let layout = Layout::contiguous(&[n as usize]);
    let call = call(ScatterAdd { dim: 0, size: 3 }, &[(F32, layout.clone()), (I32, layout)], &[3], F32);
    let got = run(&*gpu(), &call, &[f32::to_bytes(&vec![1.0; n as usize]), i32::to_bytes(&index)]).unwrap();
    close("scatter", &got, &[46667.0, 46667.0, 46666.0], 0.0);
}
