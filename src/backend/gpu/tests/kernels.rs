//! Map and Reduce kernels in all their variants.

use super::*;
use crate::graph::dtype::DType::{Bool, F32, I32, U32};
use crate::graph::kernel::{Reduce, ReduceOp};
use crate::graph::layout::numel;

fn unary(layout: Layout, out: Layout) -> Program {
    let mut b = Build::over(&layout.shape.clone());
    let x = b.load(0, F32, layout);
    let y = b.f(&RELU, &[x]);
    let z = b.f(&ADD, &[x, y]);
    b.store(z, 1, F32, out).done()
}

const IN_OUT: [(DType, bool); 2] = [(F32, false), (F32, true)];

#[test]
fn maps_any_layout() {
    let gpu = gpu();
    let contiguous = Layout::contiguous;
    let cases = [
        (contiguous(&[]), contiguous(&[])),
        (contiguous(&[1]), contiguous(&[1])),
        (contiguous(&[7]), contiguous(&[7])),
        (contiguous(&[64]), contiguous(&[64])),
        (contiguous(&[5, 12]), contiguous(&[5, 12])),
        (contiguous(&[12, 5]).permute(&[1, 0]), contiguous(&[5, 12])),
        (contiguous(&[5, 12]), contiguous(&[12, 5]).permute(&[1, 0])),
        (contiguous(&[6, 8]).slice(1, 2, 4, 1), contiguous(&[6, 4])),
        (contiguous(&[6, 8]).slice(1, 4, 4, 1), contiguous(&[6, 4])),
        (contiguous(&[6, 9]).slice(0, 1, 4, 1), contiguous(&[4, 9])),
        (contiguous(&[30]).slice(0, 3, 9, 3), contiguous(&[9])),
        (contiguous(&[9]), contiguous(&[30]).slice(0, 3, 9, 3)),
        (contiguous(&[9]), contiguous(&[30]).slice(0, 4, 9, 1)),
        (contiguous(&[9]), contiguous(&[30]).slice(0, 5, 9, 1)),
        (contiguous(&[4]).expand(&[3, 4]).unwrap(), contiguous(&[3, 4])),
        (contiguous(&[3, 1]).expand(&[3, 4]).unwrap(), contiguous(&[3, 4])),
        (contiguous(&[1]).expand(&[5, 7]).unwrap(), contiguous(&[5, 7])),
        (contiguous(&[2, 3, 4, 5]).permute(&[3, 1, 0, 2]), contiguous(&[5, 3, 2, 4])),
        (contiguous(&[2, 3, 8]).permute(&[1, 0, 2]), contiguous(&[3, 2, 8])),
        (contiguous(&[2, 1, 8]).expand(&[2, 3, 8]).unwrap(), contiguous(&[2, 3, 8])),
        (contiguous(&[300, 257]).permute(&[1, 0]), contiguous(&[257, 300])),
    ];
    for (from, to) in cases {
        let data = [floats(from.end() + 3), floats(30.max(to.end()))];
        check(&gpu, kernel(Body::Map(vec![unary(from, to)]), &IN_OUT, &[]), &data, &[]);
    }
}

#[test]
fn maps_nothing() {
    let gpu = gpu();
    for shape in [vec![0], vec![3, 0], vec![0, 4, 5]] {
        let l = Layout::contiguous(&shape);
        check(&gpu, kernel(Body::Map(vec![unary(l.clone(), l)]), &IN_OUT, &[]), &[vec![], vec![]], &[]);
    }
}

#[test]
fn maps_in_place_and_mixes_types() {
    let gpu = gpu();
    for shape in [vec![10], vec![3, 8], vec![3, 5]] {
        let l = Layout::contiguous(&shape);
        let mut b = Build::over(&shape);
        let (x, i) = (b.load(0, F32, l.clone()), b.load(1, I32, l.clone()));
        let s = b.scalar(0, F32);
        let f = b.op(&CAST, I32, F32, &[i]);
        let mut z = b.f(&ADD, &[x, f]);
        z = b.f(&MUL, &[z, s]);
        let less = b.op(&LT, F32, Bool, &[x, f]);
        let at = b.index(Layout { offset: 5, ..l.clone() });
        let k = b.scalar(5, U32);
        let at = b.op(&MUL, U32, U32, &[at, k]);
        let bool_in = b.load(3, Bool, l.clone());
        let number = b.op(&CAST, Bool, I32, &[bool_in]);
        let i2 = b.op(&ADD, I32, I32, &[number, i]);
        let p = b
            .store(z, 0, F32, l.clone())
            .store(less, 2, Bool, l.clone())
            .store(at, 4, U32, l.clone())
            .store(i2, 1, I32, l.clone())
            .done();
        let n = numel(&shape);
        let ints: Vec<u32> = (0..n as i32).map(|v| (v - 4) as u32).collect();
        let bools: Vec<u32> = (0..n as u32).map(|v| v % 2).collect();
        let bindings = [(F32, true), (I32, true), (Bool, true), (Bool, false), (U32, true)];
        let types = [F32, F32, F32, Bool, I32, U32];
        let scalars = [0.5.into(), 1.0.into(), 2.0.into(), true.into(), (-3).into(), 7.into()];
        check(
            &gpu,
            kernel(Body::Map(vec![p]), &bindings, &types),
            &[floats(n), ints, vec![9; n], bools, vec![9; n]],
            &scalars,
        );
    }
}

#[test]
fn jobs_run_side_by_side() {
    let gpu = gpu();
    let mut jobs = vec![];
    let sizes: [&[usize]; 6] = [&[1000], &[3], &[0], &[7, 12], &[5, 3], &[65]];
    // Two buffers each; not every adapter has so many.
    let sizes = &sizes[..sizes.len().min(gpu.caps.max_bindings / 2)];
    for (j, shape) in sizes.iter().enumerate() {
        let l = Layout::contiguous(shape);
        let mut b = Build::over(shape);
        let x = b.load(2 * j as u16, F32, l.clone());
        let s = b.scalar(j as u16, F32);
        let y = b.f(&MUL, &[x, s]);
        let grad = b.load(2 * j as u16 + 1, F32, l.clone());
        let y = b.f(&ADD, &[y, grad]);
        jobs.push(b.store(y, 2 * j as u16, F32, l).done());
    }
    let bindings: Vec<_> = (0..2 * sizes.len()).map(|i| (F32, i % 2 == 0)).collect();
    let data: Vec<_> = (0..2 * sizes.len()).map(|i| floats(numel(sizes[i / 2]))).collect();
    let scalars: Vec<Scalar> = (2..).take(sizes.len()).map(Scalar::from).collect();
    check(&gpu, kernel(Body::Map(jobs), &bindings, &vec![F32; sizes.len()]), &data, &scalars);
}

#[test]
fn no_variable_has_the_name_of_a_type() {
    // Variables are numbered, and one of the second job's was called `i32`.
    let gpu = gpu();
    for before in 20..32 {
        let l = Layout::contiguous(&[8]);
        let mut b = Build::over(&[8]);
        let x = b.load(0, F32, l.clone());
        let y = (0..before).fold(x, |y, _| b.f(&ADD, &[x, y]));
        let long = b.store(y, 1, F32, l.clone()).done();
        let mut b = Build::over(&[8]);
        let x = b.load(0, F32, l.clone());
        let y = b.op(&CAST, F32, I32, &[x]);
        let cast = b.store(y, 2, I32, l).done();
        let bindings = [(F32, false), (F32, true), (I32, true)];
        let data = [floats(8), floats(8), vec![0; 8]];
        check(&gpu, kernel(Body::Map(vec![long, cast]), &bindings, &[]), &data, &[]);
    }
}

#[test]
fn jobs_may_share_a_buffer() {
    // As `cat` would: one stores by fours, the other by single elements, into one output.
    let gpu = gpu();
    let out = Layout::contiguous(&[20]);
    let jobs = vec![
        unary(Layout::contiguous(&[8]), out.slice(0, 0, 8, 1)),
        unary(Layout::contiguous(&[12]).slice(0, 1, 9, 1), out.slice(0, 9, 9, 1)),
    ];
    check(&gpu, kernel(Body::Map(jobs), &IN_OUT, &[]), &[floats(12), floats(20)], &[]);
}

#[test]
fn maps_more_than_one_row_of_workgroups() {
    let gpu = gpu();
    let n = 65_535 * 64 + 1234;
    // Single elements, because of the odd offset.
    let from = Layout::contiguous(&[n + 1]).slice(0, 1, n, 1);
    let to = Layout::contiguous(&[n + 3]).slice(0, 3, n, 1);
    check(
        &gpu,
        kernel(Body::Map(vec![unary(from, to)]), &IN_OUT, &[]),
        &[floats(n + 1), vec![7; n + 3]],
        &[],
    );
    let l = Layout::contiguous(&[n]);
    check(&gpu, kernel(Body::Map(vec![unary(l.clone(), l)]), &IN_OUT, &[]), &[floats(n), vec![7; n]], &[]);
}

#[test]
fn nan_and_infinity_survive() {
    let gpu = gpu();
    for n in [3, 8] {
        let l = Layout::contiguous(&[n]);
        let mut b = Build::over(&[n]);
        let x = b.load(0, F32, l.clone());
        let nan = b.op(&IS_NAN, F32, Bool, &[x]);
        let inf = b.f(&INF, &[x]);
        let one = b.scalar(0, F32);
        let max = b.f(&MAXIMUM, &[one, x]);
        let p = b
            .store(nan, 1, Bool, l.clone())
            .store(inf, 2, F32, l.clone())
            .store(max, 3, F32, l.clone())
            .done();
        let mut data: Vec<u32> =
            [f32::NAN, f32::INFINITY, -f32::NAN, f32::NEG_INFINITY, 0.0, -0.0, 2.0, -1e30]
                .iter()
                .map(|v| v.to_bits())
                .collect();
        data.truncate(n);
        let bindings = [(F32, false), (Bool, true), (F32, true), (F32, true)];
        let data = [data, vec![9; n], vec![9; n], vec![9; n]];
        check(&gpu, kernel(Body::Map(vec![p]), &bindings, &[F32]), &data, &[Scalar::from(f64::INFINITY)]);
        check(&gpu, kernel(Body::Map(vec![unary(l.clone(), l)]), &IN_OUT, &[]), &data[..2], &[]);
    }
}

/// `out[kept] = 2 * op(x + x)` over the layout's last dimensions, with the result's dimensions as given.
fn reduction(op: ReduceOp, dtype: DType, from: Layout, kept: usize) -> Kernel {
    let shape = from.shape.clone();
    let mut pre = Build::over(&shape);
    let x = pre.load(0, dtype, from);
    let value = match (op, dtype) {
        (ReduceOp::Sum, F32) => pre.f(&ADD, &[x, x]),
        _ => x,
    };
    let mut pre = pre.0;
    let kept_rank = pre.collapse(kept);
    let mut post = Build::over(&shape[..kept]);
    let r = post.anchor(dtype);
    let y = if dtype == Bool { r } else { post.op(&ADD, dtype, dtype, &[r, r]) };
    let post = post.store(y, 1, dtype, Layout::contiguous(&shape[..kept])).done();
    let body = Body::Reduce(Reduce { op, dtype, pre, value, kept: kept_rank, post });
    kernel(body, &[(dtype, false), (dtype, true)], &[])
}

/// The variants of all classes of adapters run on any adapter.
fn each_class(mut f: impl FnMut(&Gpu)) {
    for class in [AdapterClass::Software, AdapterClass::Integrated, AdapterClass::Discrete] {
        f(&another(|info, caps| {
            info.class = class;
            caps.split_reduction = codegen::split_for(class);
        }));
    }
}

#[test]
fn reduces_any_layout() {
    let shapes: [(&[usize], usize); 22] = [
        (&[1], 0),
        (&[7], 0),
        (&[8], 0),
        (&[1000], 0),
        (&[5, 9], 1),
        (&[5, 64], 1),
        (&[1, 300], 1),
        (&[300, 1], 1),
        (&[33, 256], 1),
        (&[3, 2048], 1),
        (&[2, 3, 4], 1),
        (&[2, 3, 4], 2),
        (&[4], 1),
        (&[0], 0),
        (&[3, 0], 1),
        (&[0, 3], 1),
        (&[3, 0, 4], 1),
        (&[70, 5, 6, 4], 2),
        (&[9, 40, 100], 1),
        (&[2, 10_000], 1),
        (&[1, 1], 2),
        (&[], 0),
    ];
    each_class(|gpu| {
        for (shape, kept) in shapes {
            let whole = Layout::contiguous(shape);
            check(gpu, reduction(ReduceOp::Sum, F32, whole.clone(), kept), &data(&whole, kept), &[]);
            // The same over reversed dimensions: a column's values are apart.
            let order: Vec<usize> = (0..shape.len()).rev().collect();
            let reversed: Vec<usize> = order.iter().map(|&d| shape[d]).collect();
            let turned = Layout::contiguous(&reversed).permute(&order);
            check(gpu, reduction(ReduceOp::Sum, F32, turned.clone(), kept), &data(&turned, kept), &[]);
            if let Some(last) = shape.len().checked_sub(1).filter(|&d| shape[d] > 2) {
                let part = whole.slice(last, 1, shape[last] - 2, 1);
                check(gpu, reduction(ReduceOp::Sum, F32, part.clone(), kept), &data(&part, kept), &[]);
            }
        }
    });
}

fn data(from: &Layout, kept: usize) -> [Vec<u32>; 2] {
    [floats(from.end().max(from.numel())), vec![77; numel(&from.shape[..kept])]]
}

#[test]
fn reduces_with_every_operation() {
    each_class(|gpu| {
        for shape in [[6, 5], [6, 128], [200, 3], [128, 8]] {
            for turn in [false, true] {
                let l = match turn {
                    false => Layout::contiguous(&shape),
                    true => Layout::contiguous(&[shape[1], shape[0]]).permute(&[1, 0]),
                };
                for op in [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min] {
                    check(gpu, reduction(op, F32, l.clone(), 1), &data(&l, 1), &[]);
                    let ints: Vec<u32> =
                        (0..numel(&shape) as u32).map(|v| v.wrapping_mul(2654435769)).collect();
                    for dtype in [I32, U32] {
                        let data = [ints.clone(), vec![0; shape[0]]];
                        check(gpu, reduction(op, dtype, l.clone(), 1), &data, &[]);
                    }
                    let bools = ints.iter().map(|v| u32::from(v % 7 == 0)).collect();
                    check(gpu, reduction(op, Bool, l.clone(), 1), &[bools, vec![0; shape[0]]], &[]);
                }
                let mut nans = data(&l, 1);
                nans[0][3] = f32::NAN.to_bits();
                nans[0][11] = f32::NEG_INFINITY.to_bits();
                check(gpu, reduction(ReduceOp::Max, F32, l.clone(), 1), &nans, &[]);
                check(gpu, reduction(ReduceOp::Min, F32, l.clone(), 1), &nans, &[]);
            }
        }
    });
}

#[test]
fn long_loops_run_to_their_end() {
    // Past 65,535 turns of one loop, in each variant: whole fours, single elements, and a column.
    each_class(|gpu| {
        for n in [65_536 * 8 + 4, 65_536 * 4 + 3] {
            let ones = vec![1; n];
            let k = reduction(ReduceOp::Sum, I32, Layout::contiguous(&[n]), 0);
            let got = run(gpu, &dispatch(k), &[ones, vec![0]], &[]);
            assert_eq!(got[1][0] as usize, 2 * n, "{:?}", gpu.info.class);
        }
        let n = 70_000;
        let columns = Layout::contiguous(&[n, 4]).permute(&[1, 0]);
        let got = run(
            gpu,
            &dispatch(reduction(ReduceOp::Sum, I32, columns, 1)),
            &[vec![1; 4 * n], vec![0; 4]],
            &[],
        );
        assert_eq!(got[1], [2 * n as u32; 4]);
    });
}
