//! Kernels made at random, and what they must compute, by loops that take one coordinate at a time.

use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use super::super::*;
use crate::block;
use crate::graph::dtype::{Bool, DType, Element, F16, F32, F64, I32, U32};
use crate::graph::kernel::{Binding, ReduceOp};
use crate::graph::layout::{Dims, Layout};
pub(super) use crate::graph::program::CAST;
use crate::graph::program::{Access, BlockFns, MapOp, Program, Reg, Store};

pub(super) const fn op(name: &'static str, arity: usize, cpu: BlockFns) -> MapOp {
    MapOp { name, arity, mask_first: false, wgsl: "", wgsl_int: "", cpu, cost: 1 }
}
pub(super) static ADD: MapOp = op("add", 2, block!(num | a, b | a.add(b)));
pub(super) static MUL: MapOp = op("mul", 2, block!(num | a, b | a.mul(b)));
pub(super) static NEG: MapOp = op("neg", 1, block!(num | a | a.neg()));
pub(super) static DIV: MapOp = op("div", 2, block!(num | a, b | a.div(b)));
pub(super) static AND: MapOp = op("and", 2, block!(int |a, b| a & b; bool |a, b| a && b));
pub(super) static LESS: MapOp = op("lt", 2, block!(all |a, b| a < b => bool));
pub(super) static WHERE: MapOp = op("where", 3, block!(mask all |m, a, b| if m { a } else { b }));

pub(super) static TANH: MapOp = op("tanh", 1, block!(float | a | a.tanh()));

pub(super) fn apply(op: &'static MapOp, operand: DType, result: DType, args: &[Reg]) -> Inst {
    Inst::Op { op, operand, result, args: SmallVec::from_slice(args) }
}

pub(super) fn access(binding: u16, dtype: DType, layout: Layout) -> Access {
    Access { binding, dtype, layout }
}

/// Runs one kernel over buffers with these contents; gives their contents afterwards.
pub(super) fn run(body: Body, buffers: &[Vec<u8>], scalars: &[Scalar]) -> Result<Vec<Vec<u8>>, Fault> {
    let device = device();
    let bindings = vec![Binding { dtype: F32, written: true }; buffers.len()];
    let kernel = Kernel {
        body,
        bindings,
        scalars: vec![F32; scalars.len()],
        label: "test".into(),
        caller: Location::caller(),
    };
    let slots = (0..buffers.len() as u32).collect();
    let recording = Recording {
        commands: vec![Command::Dispatch { kernel: Arc::new(kernel), buffers: slots, scalars: 0 }],
    };
    let compiled = device.compile(&recording, false)?;
    let on_device = buffers.iter().map(|b| device.upload(b)).collect::<Result<Vec<_>, _>>()?;
    device.run(&recording, &compiled, &on_device, scalars)?;
    on_device.iter().map(|b| device.download(b, 0..b.bytes)).collect()
}

/// The same by loops.
pub(super) fn expected(body: &Body, buffers: &[Vec<u8>], scalars: &[Scalar]) -> Vec<Vec<u8>> {
    let mut out = buffers.to_vec();
    match body {
        Body::Map(programs) => programs.iter().for_each(|p| {
            for coordinate in coordinates(&p.shape) {
                let values = point(p, &coordinate, buffers, scalars, &[]);
                store(p, &coordinate, &values, &mut out);
            }
        }),
        Body::Reduce(r) => {
            for (number, outer) in coordinates(&r.pre.shape[..r.kept]).into_iter().enumerate() {
                let mut sum: Option<Vec<u8>> = None;
                for inner in coordinates(&r.pre.shape[r.kept..]) {
                    let coordinate: Vec<usize> = outer.iter().chain(&inner).copied().collect();
                    let value =
                        point(&r.pre, &coordinate, buffers, scalars, &[])[usize::from(r.value)].clone();
                    sum = Some(sum.map_or(value.clone(), |sum| combine(r.op, r.dtype, &sum, &value)));
                }
                let identity = r.op.identity(r.dtype).bits(r.dtype).to_ne_bytes()[..r.dtype.size()].to_vec();
                let coordinate = coordinates(&r.post.shape).swap_remove(number);
                let values = point(&r.post, &coordinate, buffers, scalars, &sum.unwrap_or(identity));
                store(&r.post, &coordinate, &values, &mut out);
            }
        }
        Body::Structured(_) => unreachable!(),
    }
    out
}

pub(super) fn combine(op: ReduceOp, dtype: DType, a: &[u8], b: &[u8]) -> Vec<u8> {
    fn of<T: number::Num + Element>(op: ReduceOp, a: &[u8], b: &[u8]) -> Vec<u8> {
        let (a, b) = (T::from_bytes(a)[0], T::from_bytes(b)[0]);
        T::to_bytes(&[match op {
            ReduceOp::Sum => a.add(b),
            ReduceOp::Prod => a.mul(b),
            ReduceOp::Max => a.maximum(b),
            ReduceOp::Min => a.minimum(b),
        }])
    }
    match dtype {
        F16 => unreachable!("reduced in single precision"),
        F32 => of::<f32>(op, a, b),
        F64 => of::<f64>(op, a, b),
        I32 => of::<i32>(op, a, b),
        U32 => of::<u32>(op, a, b),
        Bool => {
            let (a, b) = (a[0] != 0, b[0] != 0);
            bool::to_bytes(&[if matches!(op, ReduceOp::Sum | ReduceOp::Max) { a || b } else { a && b }])
        }
    }
}

pub(super) fn coordinates(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &n in shape {
        all = all.into_iter().flat_map(|c| (0..n).map(move |i| [&c[..], &[i]].concat())).collect();
    }
    all
}

pub(super) fn element(layout: &Layout, coordinate: &[usize]) -> usize {
    layout.offset + layout.strides.iter().zip(coordinate).map(|(s, c)| s * c).sum::<usize>()
}

pub(super) fn point(
    p: &Program,
    c: &[usize],
    buffers: &[Vec<u8>],
    scalars: &[Scalar],
    anchor: &[u8],
) -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = vec![];
    for inst in &p.insts {
        let value = match inst {
            Inst::Load(i) => {
                let a = &p.loads[usize::from(*i)];
                let at = element(&a.layout, c) * a.dtype.size();
                buffers[usize::from(a.binding)][at..at + a.dtype.size()].to_vec()
            }
            Inst::Index(i) => u32::to_bytes(&[element(&p.indices[usize::from(*i)], c) as u32]),
            Inst::Scalar { slot, dtype } => {
                scalars[usize::from(*slot)].bits(*dtype).to_ne_bytes()[..dtype.size()].to_vec()
            }
            Inst::Anchor(_) => anchor.to_vec(),
            Inst::Op { op, operand, result, args } => {
                // Aligned copies.
                let args: Vec<Vec<u64>> = (args.iter())
                    .map(|&a| {
                        let mut word = [0; 8];
                        word[..values[usize::from(a)].len()].copy_from_slice(&values[usize::from(a)]);
                        vec![u64::from_ne_bytes(word)]
                    })
                    .collect();
                let sizes: Vec<usize> = match inst {
                    Inst::Op { args, .. } => args.iter().map(|&a| values[usize::from(a)].len()).collect(),
                    _ => vec![],
                };
                let args: Vec<&[u8]> =
                    args.iter().zip(&sizes).map(|(a, &n)| &bytemuck::cast_slice(a)[..n]).collect();
                let mut out = [0u64];
                let bytes = &mut bytemuck::cast_slice_mut(&mut out)[..result.size()];
                (op.cpu)(*operand, *result).unwrap()(bytes, &args);
                bytes.to_vec()
            }
        };
        values.push(value);
    }
    values
}

pub(super) fn store(p: &Program, c: &[usize], values: &[Vec<u8>], out: &mut [Vec<u8>]) {
    for s in &p.stores {
        let at = element(&s.to.layout, c) * s.to.dtype.size();
        let value = &values[usize::from(s.value)];
        out[usize::from(s.to.binding)][at..at + value.len()].copy_from_slice(value);
    }
}

pub(super) struct Rng(pub u64);
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

pub(super) fn bytes_of(rng: &mut Rng, dtype: DType, n: usize) -> Vec<u8> {
    let small = |rng: &mut Rng| rng.below(17) as i32 - 8;
    match dtype {
        F16 => half::f16::to_bytes(
            &(0..n).map(|_| half::f16::from_f32(small(rng) as f32 * 0.25)).collect::<Vec<_>>(),
        ),
        F32 => f32::to_bytes(&(0..n).map(|_| small(rng) as f32 * 0.25).collect::<Vec<_>>()),
        F64 => f64::to_bytes(&(0..n).map(|_| f64::from(small(rng)) * 0.25).collect::<Vec<_>>()),
        I32 => i32::to_bytes(&(0..n).map(|_| small(rng)).collect::<Vec<_>>()),
        U32 => u32::to_bytes(&(0..n).map(|_| small(rng) as u32).collect::<Vec<_>>()),
        Bool => bool::to_bytes(&(0..n).map(|_| rng.below(2) == 1).collect::<Vec<_>>()),
    }
}

/// A layout of that shape over a buffer of its own; how many elements that needs.
pub(super) fn any_layout(rng: &mut Rng, shape: &[usize], repeated: bool) -> Layout {
    let rank = shape.len();
    if rng.below(3) == 0 {
        return Layout::contiguous(shape);
    }
    // Memory order, gaps, repeats.
    let mut order: Vec<usize> = (0..rank).collect();
    (1..rank).for_each(|i| order.swap(i, rng.below(i + 1)));
    let mut strides = Dims::from_elem(0, rank);
    let mut stride = rng.pick(&[1, 1, 2]);
    for &d in order.iter().rev() {
        if repeated && rng.below(4) == 0 {
            continue;
        }
        strides[d] = stride;
        stride *= shape[d].max(1) + rng.pick(&[0, 0, 1]);
    }
    Layout { shape: Dims::from_slice(shape), strides, offset: rng.pick(&[0, 0, 3]) }
}

pub(super) fn any_shape(rng: &mut Rng) -> Vec<usize> {
    let sizes: &[&[usize]] = match rng.below(6) {
        0 => &[&[1, 2, 3], &[1, 3], &[2, 5], &[4]],
        1 => &[&[1, 3], &[1, 300, 700]],
        2 => &[&[3, 1, 0], &[257, 2, 1]],
        3 => &[&[40, 17], &[33, 90, 7]],
        4 => &[&[2, 3], &[5, 6, 1], &[17, 40], &[2, 3]],
        _ => &[&[2049, 4096, 1025]],
    };
    let rank = rng.below(sizes.len() + 1);
    (0..rank).map(|d| rng.pick(sizes[d])).collect()
}

/// A program of random arithmetic on one dtype. Pushes the buffers it reads.
pub(super) fn any_program(
    rng: &mut Rng,
    shape: &[usize],
    dtype: DType,
    buffers: &mut Vec<Vec<u8>>,
) -> Program {
    let mut p = Program { shape: Dims::from_slice(shape), ..Program::default() };
    for i in 0..1 + rng.below(3) {
        let layout = any_layout(rng, shape, true);
        buffers.push(bytes_of(rng, dtype, layout.end()));
        p.loads.push(access(buffers.len() as u16 - 1, dtype, layout));
        p.insts.push(Inst::Load(i as u16));
    }
    p.insts.push(Inst::Scalar { slot: 0, dtype });
    p.indices.push(any_layout(rng, shape, true));
    p.insts.push(Inst::Index(0));
    p.insts.push(apply(&CAST, U32, dtype, &[p.insts.len() as Reg - 1]));
    let index = p.insts.len() - 2;
    for _ in 0..rng.below(8) {
        let mut arg = |p: &Program| loop {
            let r = rng.below(p.insts.len());
            if r != index && p.dtype(r as Reg) == dtype {
                return r as Reg;
            }
        };
        let (a, b, c) = (arg(&p), arg(&p), arg(&p));
        match (rng.below(4), dtype) {
            (0, _) => {
                p.insts.push(apply(&LESS, dtype, Bool, &[a, b]));
                p.insts.push(apply(&WHERE, dtype, dtype, &[p.insts.len() as Reg - 1, a, c]));
            }
            (_, Bool) => p.insts.push(apply(&AND, dtype, dtype, &[a, b])),
            (1, _) => p.insts.push(apply(&NEG, dtype, dtype, &[a])),
            (2, F32 | F64) => p.insts.push(apply(&TANH, dtype, dtype, &[a])),
            _ => p.insts.push(apply(&ADD, dtype, dtype, &[a, b])),
        }
    }
    p
}

pub(super) fn add_store(rng: &mut Rng, p: &mut Program, dtype: DType, buffers: &mut Vec<Vec<u8>>) {
    let value =
        (0..p.insts.len()).rev().filter(|&r| p.dtype(r as Reg) == dtype).nth(rng.below(2)).unwrap() as Reg;
    let layout = any_layout(rng, &p.shape.clone(), false);
    buffers.push(bytes_of(rng, dtype, layout.end() + 2));
    p.stores.push(Store { value, to: access(buffers.len() as u16 - 1, dtype, layout) });
}
