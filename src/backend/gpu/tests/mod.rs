//! Kernels built by hand, run on an adapter, against plain Rust loops.

mod ahead;
mod device;
mod kernels;
mod oracle;
mod prologues;
mod shared;
mod structured;
mod sums;

use std::panic::Location;
use std::sync::Arc;

use super::*;
use crate::backend::Backend;
use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Binding, Body, Command, Kernel, Recording, Slot};
use crate::graph::layout::Layout;
use crate::graph::program::{Access, Inst, MapOp, Program, Reg, Store};

const fn op(name: &'static str, arity: usize, wgsl: &'static str) -> MapOp {
    MapOp { name, arity, mask_first: false, wgsl, wgsl_int: "", cpu: &|_, _| None, cost: 1 }
}
pub static ADD: MapOp = op("add", 2, "a + b");
pub static MUL: MapOp = op("mul", 2, "a * b");
pub static RELU: MapOp = op("relu", 1, "max(a, T(0))");
pub static CAST: MapOp = op("cast", 1, "R(a)");
pub static LT: MapOp = op("lt", 2, "a < b");
pub static IS_NAN: MapOp = op("is_nan", 1, "is_nan(a)");
pub static INF: MapOp = op("inf", 1, "a + inf()");
pub static MAXIMUM: MapOp = op("maximum", 2, "max_nan(a, b)");

pub fn gpu() -> Arc<Gpu> {
    pick(None).expect("an adapter")
}

/// The same adapter with an executor of its own, as if it were another.
fn another(change: impl FnOnce(&mut AdapterInfo, &mut Caps)) -> Gpu {
    let shared = gpu();
    let (mut info, mut caps) = (shared.info.clone(), shared.caps.clone());
    change(&mut info, &mut caps);
    let (device, queue, faults) = (shared.device.clone(), shared.queue.clone(), shared.faults.clone());
    Gpu::new(info, caps, device, queue, faults, shared.pool.clone())
}

/// Writes a program with few words.
#[derive(Default, Clone)]
pub struct Build(pub Program);

impl Build {
    pub fn over(shape: &[usize]) -> Build {
        Build(Program { shape: shape.into(), ..Program::default() })
    }
    fn push(&mut self, inst: Inst) -> Reg {
        self.0.insts.push(inst);
        (self.0.insts.len() - 1) as Reg
    }
    pub fn load(&mut self, binding: u16, dtype: DType, layout: Layout) -> Reg {
        self.0.loads.push(Access { binding, dtype, layout });
        self.push(Inst::Load(self.0.loads.len() as u16 - 1))
    }
    pub fn index(&mut self, layout: Layout) -> Reg {
        self.0.indices.push(layout);
        self.push(Inst::Index(self.0.indices.len() as u16 - 1))
    }
    pub fn scalar(&mut self, slot: u16, dtype: DType) -> Reg {
        self.push(Inst::Scalar { slot, dtype })
    }
    pub fn anchor(&mut self, dtype: DType) -> Reg {
        self.push(Inst::Anchor(dtype))
    }
    pub fn op(&mut self, op: &'static MapOp, operand: DType, result: DType, args: &[Reg]) -> Reg {
        self.push(Inst::Op { op, operand, result, args: args.into() })
    }
    pub fn f(&mut self, op: &'static MapOp, args: &[Reg]) -> Reg {
        self.op(op, DType::F32, DType::F32, args)
    }
    pub fn store(mut self, value: Reg, binding: u16, dtype: DType, layout: Layout) -> Build {
        self.0.stores.push(Store { value, to: Access { binding, dtype, layout } });
        self
    }
    pub fn done(mut self) -> Program {
        self.0.collapse(0);
        self.0
    }
}

pub fn kernel(body: Body, bindings: &[(DType, bool)], scalars: &[DType]) -> Kernel {
    Kernel {
        body,
        bindings: bindings.iter().map(|&(dtype, written)| Binding { dtype, written }).collect(),
        scalars: scalars.to_vec(),
        label: "test".into(),
        caller: Location::caller(),
    }
}

pub fn dispatch(kernel: Kernel) -> Recording {
    let buffers = (0..kernel.bindings.len() as Slot).collect();
    Recording { commands: vec![Command::Dispatch { kernel: Arc::new(kernel), buffers, scalars: 0 }] }
}

/// Uploads, runs, and reads everything back.
pub fn run(gpu: &Gpu, recording: &Recording, data: &[Vec<u32>], scalars: &[Scalar]) -> Vec<Vec<u32>> {
    let buffers: Vec<_> = data.iter().map(|d| gpu.upload(bytemuck::cast_slice(d)).unwrap()).collect();
    let compiled = gpu.compile(recording, false).unwrap_or_else(|f| panic!("{}", f.message));
    gpu.run(recording, &compiled, &buffers, scalars).unwrap_or_else(|f| panic!("{}", f.message));
    let read = |b: &Buffer| bytemuck::pod_collect_to_vec(&gpu.download(b, 0..b.bytes).unwrap());
    buffers.iter().map(read).collect()
}

/// Runs a kernel on the adapter and in the oracle, and compares every buffer.
pub fn check(gpu: &Gpu, kernel: Kernel, data: &[Vec<u32>], scalars: &[Scalar]) {
    let mut expected = data.to_vec();
    oracle::run(&kernel, &mut expected, scalars);
    let types: Vec<DType> = kernel.bindings.iter().map(|b| b.dtype).collect();
    let text: Vec<String> =
        codegen::generate(&kernel, gpu.info(), false).unwrap().into_iter().map(|c| c.wgsl).collect();
    // Some software drivers would compile it anew at each dispatch; see `bound`. (Counted from `lane` it is no uniform's.)
    let uniform =
        |line: &&str| line.contains("for (var") && line.contains("< params") && !line.contains("= lane;");
    assert_eq!(text.iter().flat_map(|t| t.lines()).find(uniform), None, "a loop's bound is a uniform alone");
    let got = run(gpu, &dispatch(kernel), data, scalars);
    for (b, (got, expected)) in got.iter().zip(&expected).enumerate() {
        for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
            let same = match types[b] {
                DType::F32 => close(f32::from_bits(g), f32::from_bits(e)),
                _ => g == e,
            };
            assert!(
                same,
                "binding {b} element {i}: {} ({g}), expected {} ({e})\n{}",
                f32::from_bits(g),
                f32::from_bits(e),
                text.join("\n")
            );
        }
    }
}

fn close(a: f32, b: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 2e-5 * a.abs().max(b.abs()).max(1e-3)
}

/// Numbers between -1 and 1, always the same, and coarse enough that their sums are exact.
pub fn floats(n: usize) -> Vec<u32> {
    let mut x = 0x2545_f491u32;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            ((x as i32 >> 20) as f32 / 2048.0).to_bits()
        })
        .collect()
}
