//! Kernels built by hand and at random, against loops that take one coordinate at a time.

use std::sync::Arc;

use super::*;
use crate::graph::dtype::{Bool, DType, Element, F32, F64, I32, U32};
use crate::graph::kernel::{OpRef, Reduce, ReduceOp, StructuredOp};
use crate::graph::layout::{Dims, Layout};
use crate::graph::program::{MapOp, Program, Reg, Store};

mod oracle;

use oracle::*;

/// The types in which programs compute.
const COMPUTED: [DType; 5] = [Bool, U32, I32, F32, F64];

#[test]
fn maps_agree_with_loops() {
    let mut rng = Rng(7);
    for case in 0..200 {
        let (mut buffers, mut programs) = (vec![], vec![]);
        for _ in 0..1 + rng.below(3) {
            let shape = any_shape(&mut rng);
            let dtype = rng.pick(&COMPUTED);
            let mut p = any_program(&mut rng, &shape, dtype, &mut buffers);
            for _ in 0..1 + rng.below(2) {
                add_store(&mut rng, &mut p, dtype, &mut buffers);
            }
            // In place, where the load's layout allows it.
            let load = p.loads[0].clone();
            if rng.below(2) == 0 && !load.layout.may_overlap() {
                p.stores[0].to = load;
            }
            programs.push(p);
        }
        let body = Body::Map(programs);
        let scalars = [Scalar::Int(3)];
        let want = expected(&body, &buffers, &scalars);
        assert_eq!(run(body.clone(), &buffers, &scalars).unwrap(), want, "case {case}: {body:?}");
    }
}

#[test]
fn reductions_agree_with_loops() {
    let mut rng = Rng(11);
    for case in 0..200 {
        let mut buffers = vec![];
        let shape = any_shape(&mut rng);
        let kept = rng.below(shape.len() + 1);
        let dtype = rng.pick(&COMPUTED);
        let pre = any_program(&mut rng, &shape, dtype, &mut buffers);
        let value = (0..pre.insts.len())
            .rev()
            .find(|&r| pre.dtype(r as Reg) == dtype && r + 2 != pre.insts.len())
            .unwrap();
        let mut post = any_program(&mut rng, &shape[..kept], dtype, &mut buffers);
        post.insts.push(Inst::Anchor(dtype));
        let anchor = post.insts.len() as Reg - 1;
        let combined: &MapOp = if dtype == Bool { &AND } else { &ADD };
        let combined: &'static MapOp = if std::ptr::eq(combined, &AND) { &AND } else { &ADD };
        post.insts.push(apply(combined, dtype, dtype, &[anchor, anchor - 1]));
        add_store(&mut rng, &mut post, dtype, &mut buffers);
        // A product of floats hangs on the order.
        let ops = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];
        let op = if dtype.is_float() {
            rng.pick(&ops)
        } else {
            rng.pick(&[ReduceOp::Prod, ops[0], ops[1], ops[2]])
        };
        let body = Body::Reduce(Reduce { op, dtype, pre, value: value as Reg, kept, post });
        let scalars = [Scalar::Int(3)];
        let want = expected(&body, &buffers, &scalars);
        let got = run(body.clone(), &buffers, &scalars).unwrap();
        for (got, want) in got.iter().zip(&want) {
            let close = match dtype {
                F32 => near(&f32::from_bytes(got), &f32::from_bytes(want), 1e-4),
                F64 => near(&f64::from_bytes(got), &f64::from_bytes(want), 1e-11),
                _ => got == want,
            };
            assert!(close, "case {case}: {body:?}");
        }
    }
}

fn near<T: Copy + Into<f64>>(got: &[T], want: &[T], tolerance: f64) -> bool {
    let scale = want.iter().fold(1.0, |m: f64, &w| m.max(w.into().abs()));
    got.iter()
        .zip(want)
        .all(|(&g, &w)| (g.into() - w.into()).abs() <= tolerance * scale || g.into() == w.into())
}

/// A reduction of one contiguous `[k, r]` f32 buffer, over its last or first dimension.
fn plain_reduce(op: ReduceOp, shape: [usize; 2], first: bool) -> Body {
    let layout = Layout::contiguous(&shape);
    let layout = if first { layout.permute(&[1, 0]) } else { layout };
    let out = Dims::from_slice(&layout.shape[..1]);
    let pre = Program {
        shape: layout.shape.clone(),
        insts: vec![Inst::Load(0)],
        loads: vec![access(0, F32, layout)],
        ..Program::default()
    };
    let store = Store { value: 0, to: access(1, F32, Layout::contiguous(&out)) };
    let post =
        Program { shape: out, insts: vec![Inst::Anchor(F32)], stores: vec![store], ..Program::default() };
    Body::Reduce(Reduce { op, dtype: F32, pre, value: 0, kept: 1, post })
}

#[test]
fn sums_are_accurate_and_whole_at_any_length() {
    for (rows, columns) in [
        (1, 1),
        (1, 31),
        (3, 33),
        (1, 1023),
        (1, 2049),
        (2, 65_537),
        (1, 1 << 20),
        (70, 130),
        (257, 300),
        (1000, 3),
        (3, 0),
        (0, 3),
    ] {
        for first in [false, true] {
            let values: Vec<f32> = (0..rows * columns).map(|i| 0.1 + (i % 7) as f32).collect();
            let outputs = if first { columns } else { rows };
            let at =
                |o: usize, i: usize| if first { values[i * columns + o] } else { values[o * columns + i] };
            let input = f32::to_bytes(&values);
            let got = run(
                plain_reduce(ReduceOp::Sum, [rows, columns], first),
                &[input, vec![0xA5; outputs * 4]],
                &[],
            );
            for (o, &got) in f32::from_bytes(&got.unwrap()[1]).iter().enumerate() {
                let exact: f64 = (0..if first { rows } else { columns }).map(|i| f64::from(at(o, i))).sum();
                assert!(
                    (f64::from(got) - exact).abs() <= exact * 5e-7,
                    "{rows}x{columns} {first}: {got} {exact}"
                );
            }
        }
    }
}

#[test]
fn extrema_propagate_nan_and_empty_ones_give_the_identity() {
    for (n, at) in [(5, 0), (100, 99), (5000, 2600), (5000, 4999)] {
        for op in [ReduceOp::Max, ReduceOp::Min] {
            for first in [false, true] {
                let shape = if first { [n, 2] } else { [2, n] };
                let mut values: Vec<f32> = (0..2 * n).map(|i| i as f32).collect();
                values[if first { 2 * at } else { at }] = f32::NAN;
                let got =
                    run(plain_reduce(op, shape, first), &[f32::to_bytes(&values), vec![0; 8]], &[]).unwrap();
                let got = f32::from_bytes(&got[1]);
                assert!(got[0].is_nan() && !got[1].is_nan());
            }
        }
    }
    for (op, want) in [(ReduceOp::Sum, 0.0), (ReduceOp::Prod, 1.0), (ReduceOp::Max, f32::NEG_INFINITY)] {
        let got = run(plain_reduce(op, [3, 0], false), &[vec![], vec![0xA5; 12]], &[]).unwrap();
        assert_eq!(f32::from_bytes(&got[1]), [want; 3]);
    }
}

#[test]
fn integers_wrap_and_never_trap() {
    let map = |op: &'static MapOp, dtype: DType, a: Vec<u8>, b: Vec<u8>| {
        let n = a.len() / 4;
        let layout = Layout::contiguous(&[n]);
        let p = Program {
            shape: Dims::from_slice(&[n]),
            insts: vec![Inst::Load(0), Inst::Load(1), apply(op, dtype, dtype, &[0, 1])],
            loads: vec![access(0, dtype, layout.clone()), access(1, dtype, layout.clone())],
            stores: vec![Store { value: 2, to: access(2, dtype, layout) }],
            ..Program::default()
        };
        run(Body::Map(vec![p]), &[a, b, vec![0; n * 4]], &[]).unwrap().swap_remove(2)
    };
    let ints = |op, a: &[i32], b: &[i32]| i32::from_bytes(&map(op, I32, i32::to_bytes(a), i32::to_bytes(b)));
    assert_eq!(ints(&ADD, &[i32::MAX, 1], &[1, 2]), [i32::MIN, 3]);
    assert_eq!(ints(&MUL, &[i32::MIN, 3], &[-1, -2]), [i32::MIN, -6]);
    assert_eq!(ints(&DIV, &[i32::MIN, 7, -7, 5], &[-1, -2, 2, 0]), [i32::MIN, -3, -3, 0]);
    assert_eq!(u32::from_bytes(&map(&ADD, U32, u32::to_bytes(&[u32::MAX]), u32::to_bytes(&[2]))), [1]);
    use number::{Int, Num};
    assert_eq!(
        [Num::floor_div(-7, 2), 7i32.floor_div(-2), Num::floor_div(-8, 2), 7i32.floor_div(2)],
        [-4, -4, -4, 3]
    );
    assert_eq!(
        [(-7i32).remainder(3), 7i32.remainder(-3), (-7i32).fmod(3), 6i32.remainder(-3)],
        [2, -2, -1, 0]
    );
    assert_eq!(
        [Num::pow(3i32, 4), Num::pow(2i32, -1), Num::pow(-1i32, -3), Num::pow(1i32, -3)],
        [81, 0, -1, 1]
    );
    assert_eq!(
        [Int::shl(1i32, 31), Int::shl(1i32, 32), Int::shr(-5i32, 40), Int::shr(-5i32, 1)],
        [i32::MIN, 0, -1, -3]
    );
    assert_eq!(
        [Int::shr(5u32, 32), Int::shr(u32::MAX, 31), 7u32.floor_div(2), 7u32.remainder(0)],
        [0, 1, 3, 0]
    );
    assert_eq!([7.5f32.floor_div(-2.0), (-7.5f32).remainder(2.0), 7.5f32.remainder(-2.0)], [-4.0, 0.5, -0.5]);
}

#[test]
fn casts_between_all_dtypes() {
    let cast = |from: DType, to: DType, bytes: &[u8], n: usize| {
        let mut out = vec![0u64; n];
        let input: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
        let out_bytes = &mut bytemuck::cast_slice_mut(&mut out)[..n * to.size()];
        block::cast(from, to)(out_bytes, &[&bytemuck::cast_slice(&input)[..bytes.len()]]);
        out_bytes.to_vec()
    };
    let floats = f32::to_bytes(&[1.9, -1.9, f32::NAN, f32::INFINITY, -1e20, 0.0]);
    assert_eq!(i32::from_bytes(&cast(F32, I32, &floats, 6)), [1, -1, 0, i32::MAX, i32::MIN, 0]);
    assert_eq!(u32::from_bytes(&cast(F32, U32, &floats, 6)), [1, 0, 0, u32::MAX, 0, 0]);
    assert_eq!(bool::from_bytes(&cast(F32, Bool, &floats, 6)), [true, true, true, true, true, false]);
    assert_eq!(f64::from_bytes(&cast(Bool, F64, &bool::to_bytes(&[true, false]), 2)), [1.0, 0.0]);
    assert_eq!(u32::from_bytes(&cast(I32, U32, &i32::to_bytes(&[-1, 5]), 2)), [u32::MAX, 5]);
    for (from, to) in DType::ALL.into_iter().flat_map(|a| DType::ALL.map(|b| (a, b))) {
        let one = cast(F64, from, &f64::to_bytes(&[1.0, 0.0]), 2);
        assert_eq!(f64::from_bytes(&cast(to, F64, &cast(from, to, &one, 2), 2)), [1.0, 0.0], "{from} {to}");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    // Large enough for several parts; sines so that order would show.
    let values: Vec<f32> = (0..3_000_001).map(|i| (i as f32).sin()).collect();
    let input = f32::to_bytes(&values);
    for (shape, first) in
        [([1, 3_000_001], false), ([30, 100_000], false), ([100_000, 30], true), ([300, 10_000], true)]
    {
        let outputs = if first { shape[1] } else { shape[0] };
        let once =
            || run(plain_reduce(ReduceOp::Sum, shape, first), &[input.clone(), vec![0; outputs * 4]], &[]);
        let body = plain_reduce(ReduceOp::Sum, shape, first);
        let Body::Reduce(reduce) = &body else { unreachable!() };
        // Alone on this thread, without `enter`.
        let mut alone = vec![0f32; outputs];
        let plan = ReducePlan::new(reduce).unwrap(); // checked by `once`
        let buffers = [values.as_ptr().cast_mut().cast(), alone.as_mut_ptr().cast()];
        plan.run(&Operands { buffers: &buffers, scalars: &[], seen: None });
        assert_eq!(f32::from_bytes(&once().unwrap()[1]), alone);
    }
}

#[test]
fn callers_on_rayons_threads_do_not_lock_up() {
    use rayon::prelude::*;
    let values = f32::to_bytes(&vec![1.0; 1 << 20]);
    let sum = |_| {
        let got = run(plain_reduce(ReduceOp::Sum, [1, 1 << 20], false), &[values.clone(), vec![0; 4]], &[])
            .unwrap();
        f32::from_bytes(&got[1])[0]
    };
    let sums: Vec<f32> = (0..8).into_par_iter().map(sum).collect();
    assert_eq!(sums, [1048576.0; 8]);
}

#[derive(Debug)]
struct Twice;
impl StructuredOp for Twice {
    fn name(&self) -> &'static str {
        "twice"
    }
    fn key(&self) -> Vec<u64> {
        vec![]
    }
    #[cfg(feature = "gpu")]
    fn gpu(
        &self,
        _: &Structured,
        _: &crate::backend::gpu::AdapterInfo,
    ) -> Vec<crate::backend::gpu::ShaderCall> {
        vec![]
    }
    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let values = f32::from_bytes(inputs[0]);
        let twice: Vec<f32> = coordinates(&call.out_shape)
            .iter()
            .map(|c| 2.0 * values[element(&call.inputs[0].1, c)])
            .collect();
        if twice.iter().any(|v| v.is_nan()) {
            return Err("does not take NaN".into());
        }
        out.copy_from_slice(bytemuck::cast_slice(&twice));
        Ok(())
    }
}

#[test]
fn structured_ops_with_and_without_an_epilogue() {
    let shape = Dims::from_slice(&[70, 90]);
    let input = Layout::contiguous(&[90, 70]).permute(&[1, 0]);
    let values: Vec<f32> = (0..6300).map(|i| i as f32).collect();
    let call = |insts: Vec<Inst>, value: Reg| {
        Body::Structured(Structured {
            op: OpRef(Arc::new(Twice)),
            inputs: vec![(F32, input.clone())],
            pre: vec![],
            out_shape: shape.clone(),
            out_dtype: F32,
            post: Program {
                shape: shape.clone(),
                insts,
                stores: vec![Store { value, to: access(1, F32, Layout::contiguous(&shape)) }],
                ..Program::default()
            },
            sums: None,
        })
    };
    let buffers = [f32::to_bytes(&values), vec![0; 6300 * 4]];
    let plain = run(call(vec![Inst::Anchor(F32)], 0), &buffers, &[]).unwrap();
    let after = vec![Inst::Scalar { slot: 0, dtype: F32 }, Inst::Anchor(F32), apply(&ADD, F32, F32, &[0, 1])];
    let fused = run(call(after, 2), &buffers, &[Scalar::Float(0.5)]).unwrap();
    for (c, (p, f)) in
        coordinates(&shape).iter().zip(f32::from_bytes(&plain[1]).iter().zip(f32::from_bytes(&fused[1])))
    {
        assert_eq!((*p, f), (2.0 * values[element(&input, c)], 2.0 * values[element(&input, c)] + 0.5));
    }
    let bad =
        run(call(vec![Inst::Anchor(F32)], 0), &[f32::to_bytes(&[f32::NAN; 6300]), vec![0; 6300 * 4]], &[]);
    assert_eq!(bad.unwrap_err().message, "twice does not take NaN");
}

#[test]
fn faults_are_values() {
    let p = Program {
        shape: Dims::from_slice(&[4]),
        insts: vec![Inst::Load(0), apply(&TANH, I32, I32, &[0])],
        loads: vec![access(0, I32, Layout::contiguous(&[4]))],
        stores: vec![Store { value: 1, to: access(1, I32, Layout::contiguous(&[4])) }],
        ..Program::default()
    };
    let no_kernel = run(Body::Map(vec![p.clone()]), &[vec![0; 16], vec![0; 16]], &[]).unwrap_err();
    assert_eq!(no_kernel.message, "tanh has no CPU kernel from int32 to int32");
    let copy = Program { insts: vec![Inst::Load(0), Inst::Load(0)], ..p };
    assert!(run(Body::Map(vec![copy.clone()]), &[vec![0; 16], vec![0; 12]], &[]).is_err());
    assert!(run(Body::Map(vec![copy]), &[vec![0; 16], vec![0; 16]], &[]).is_ok());
    assert!(device().alloc(usize::MAX / 2).is_err());
}

#[test]
fn memory_is_counted_and_reused() {
    let device = device();
    let a = device.alloc(1000).unwrap();
    let first = memory_of(&a).unwrap().start();
    assert_eq!(device.memory(), Memory { live_buffers: 1, live_bytes: 1000, pooled_bytes: 0 });
    drop(a);
    let b = device.alloc(990).unwrap();
    assert_eq!((memory_of(&b).unwrap().start(), device.memory().pooled_bytes), (first, 0));
    assert_eq!(first.align_offset(64), 0);
    drop(b);
    assert_eq!(device.memory(), Memory { live_buffers: 0, live_bytes: 0, pooled_bytes: 1024 });
    device.empty_cache();
    assert_eq!(device.memory(), Memory::default());
    assert!(device.download(&device.alloc(0).unwrap(), 0..0).unwrap().is_empty());
}

#[test]
fn areas_serve_any_size_and_make_way_for_larger_ones() {
    let device = device();
    drop(device.alloc_area(1000).unwrap());
    let small = device.alloc_area(500).unwrap();
    assert_eq!((small.bytes, device.memory().pooled_bytes), (500, 0));
    assert!(memory_of(&Buffer { at: 496, bytes: 8, ..small.clone() }).is_err(), "past its end");
    assert_eq!(memory_of(&Buffer { at: 64, bytes: 8, ..small.clone() }).unwrap().start() as usize % 64, 0);
    drop(small);
    let large = device.alloc_area(5000).unwrap();
    assert_eq!(device.memory(), Memory { live_buffers: 1, live_bytes: 5000, pooled_bytes: 0 });
    drop(large);
    device.empty_cache();
    assert_eq!(device.memory(), Memory::default());
}
