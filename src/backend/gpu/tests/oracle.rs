//! What kernels mean, one element at a time.

use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Body, Kernel, ReduceOp};
use crate::graph::layout::Layout;
use crate::graph::program::{Inst, Program};

fn at(layout: &Layout, coordinate: &[usize]) -> usize {
    layout.offset + coordinate.iter().zip(&layout.strides).map(|(c, s)| c * s).sum::<usize>()
}

fn coordinates(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    (0..shape.iter().product::<usize>()).map(|mut i| {
        let mut c = vec![0; shape.len()];
        for d in (0..shape.len()).rev() {
            c[d] = i % shape[d];
            i /= shape[d];
        }
        c
    })
}

fn apply(name: &str, operand: DType, result: DType, a: &[u32]) -> u32 {
    let f = |i: usize| f32::from_bits(a[i]);
    let number = |i: usize| match operand {
        DType::F32 => f64::from(f(i)),
        DType::I32 => f64::from(a[i] as i32),
        _ => f64::from(a[i]),
    };
    match (name, operand) {
        ("add", DType::F32) => (f(0) + f(1)).to_bits(),
        ("add", _) => a[0].wrapping_add(a[1]),
        ("mul", DType::F32) => (f(0) * f(1)).to_bits(),
        ("mul", _) => a[0].wrapping_mul(a[1]),
        ("relu", DType::F32) => f(0).max(0.0).to_bits(),
        ("cast", _) => Scalar::Float(number(0)).bits(result) as u32,
        ("lt", _) => u32::from(number(0) < number(1)),
        ("is_nan", _) => u32::from(f(0).is_nan()),
        ("inf", _) => (f(0) + f32::INFINITY).to_bits(),
        ("maximum", DType::F32) => max(f(0), f(1)).to_bits(),
        _ => panic!("{name} of {operand}"),
    }
}

fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

fn registers(p: &Program, c: &[usize], anchor: u32, data: &[Vec<u32>], scalars: &[Scalar]) -> Vec<u32> {
    let mut r: Vec<u32> = vec![];
    for inst in &p.insts {
        r.push(match inst {
            Inst::Load(i) => {
                let l = &p.loads[usize::from(*i)];
                data[usize::from(l.binding)][at(&l.layout, c)]
            }
            Inst::Index(i) => at(&p.indices[usize::from(*i)], c) as u32,
            Inst::Scalar { slot, dtype } => scalars[usize::from(*slot)].bits(*dtype) as u32,
            Inst::Anchor(_) => anchor,
            Inst::Op { op, operand, result, args } => {
                let args: Vec<u32> = args.iter().map(|&a| r[usize::from(a)]).collect();
                apply(op.name, *operand, *result, &args)
            }
        });
    }
    r
}

fn map(p: &Program, anchors: Option<&[u32]>, data: &mut [Vec<u32>], scalars: &[Scalar]) {
    for (i, c) in coordinates(&p.shape).enumerate() {
        let r = registers(p, &c, anchors.map_or(0, |a| a[i]), data, scalars);
        for s in &p.stores {
            data[usize::from(s.to.binding)][at(&s.to.layout, &c)] = r[usize::from(s.value)];
        }
    }
}

pub fn run(kernel: &Kernel, data: &mut [Vec<u32>], scalars: &[Scalar]) {
    match &kernel.body {
        Body::Map(jobs) => jobs.iter().for_each(|j| map(j, None, data, scalars)),
        Body::Structured(_) => panic!("no oracle"),
        Body::Reduce(r) => {
            let anchors: Vec<u32> = coordinates(&r.pre.shape[..r.kept])
                .map(|kept| {
                    let values: Vec<u32> = coordinates(&r.pre.shape[r.kept..])
                        .map(|c| {
                            let c: Vec<usize> = kept.iter().copied().chain(c).collect();
                            registers(&r.pre, &c, 0, data, scalars)[usize::from(r.value)]
                        })
                        .collect();
                    fold(r.op, r.dtype, &values)
                })
                .collect();
            map(&r.post, Some(&anchors), data, scalars);
        }
    }
}

fn fold(op: ReduceOp, dtype: DType, values: &[u32]) -> u32 {
    if dtype == DType::F32 {
        let f = values.iter().map(|&v| f64::from(f32::from_bits(v)));
        let any_nan = f.clone().any(f64::is_nan);
        let folded = match op {
            ReduceOp::Sum => f.sum::<f64>(),
            ReduceOp::Prod => f.product(),
            ReduceOp::Max => f.fold(f64::NEG_INFINITY, f64::max),
            ReduceOp::Min => f.fold(f64::INFINITY, f64::min),
        };
        return if any_nan { f32::NAN.to_bits() } else { (folded as f32).to_bits() };
    }
    let identity = op.identity(dtype).bits(dtype) as u32;
    values.iter().fold(identity, |a, &v| match (op, dtype) {
        (ReduceOp::Sum, DType::Bool) => a | v,
        (ReduceOp::Sum, _) => a.wrapping_add(v),
        (ReduceOp::Prod, _) => a.wrapping_mul(v),
        (ReduceOp::Max, DType::I32) => (a as i32).max(v as i32) as u32,
        (ReduceOp::Min, DType::I32) => (a as i32).min(v as i32) as u32,
        (ReduceOp::Max, _) => a.max(v),
        (ReduceOp::Min, _) => a.min(v),
    })
}
