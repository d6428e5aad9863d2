//! The functions of `shaders/shared/` against f64, and the random streams against the CPU's.

use super::*;
use crate::graph::dtype::DType::{F32, I32, U32};

/// Runs an op over lists of operands, in scalar and in 4-wide form.
fn both_widths(op: &'static MapOp, dtype: DType, result: DType, args: &[Vec<u32>]) -> Vec<u32> {
    let gpu = gpu();
    let n = args[0].len();
    let mut results = vec![];
    // An odd offset of the output forces single elements.
    for offset in [0, 1] {
        let l = Layout::contiguous(&[n]);
        let mut b = Build::over(&[n]);
        let r: Vec<Reg> = (0..args.len()).map(|i| b.load(i as u16, dtype, l.clone())).collect();
        let y = b.op(op, dtype, result, &r);
        let out = Layout { offset, ..l };
        let p = b.store(y, args.len() as u16, result, out).done();
        let mut bindings = vec![(dtype, false); args.len()];
        bindings.push((result, true));
        let mut data = args.to_vec();
        data.push(vec![0; n + offset]);
        let got = run(&gpu, &dispatch(kernel(Body::Map(vec![p]), &bindings, &[])), &data, &[]);
        results.push(got[args.len()][offset..].to_vec());
    }
    let wide = results.swap_remove(0);
    for (i, (a, b)) in wide.iter().zip(&results[0]).enumerate() {
        let nans = result == F32 && f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan();
        assert!(a == b || nans, "{}: {a:#x} and {b:#x} at {i}", op.name);
    }
    wide
}

/// Numbers of all sizes, and the edges.
fn numbers(largest: f32) -> Vec<f32> {
    let edges = [
        0.0,
        1.0,
        0.5,
        2.0,
        3.0,
        1e-3,
        1e-7,
        1e-20,
        1e-37,
        88.0,
        88.8,
        100.0,
        104.0,
        1e4,
        1e30,
        f32::INFINITY,
    ];
    let mut out: Vec<f32> = edges.iter().flat_map(|&v| [v, -v]).collect();
    out.extend([f32::NAN, f32::MAX, f32::MIN]);
    let random = floats(4000);
    let scales = [largest, largest / 10.0, 1.0, 0.1, 1e-3, 1e-6];
    out.extend(random.iter().enumerate().map(|(i, &v)| f32::from_bits(v) * scales[i % scales.len()]));
    out
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// How far a result is off, in units in the last place of what is right.
fn ulps(got: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if got == rounded || (got.is_nan() && rounded.is_nan()) {
        return 0.0;
    }
    // Subnormal results may be flushed.
    if exact.abs() < f64::from(f32::MIN_POSITIVE) && got.abs() <= f32::MIN_POSITIVE {
        return 0.0;
    }
    let unit = 2f64.powi(exact.abs().log2().floor() as i32 - 23);
    (f64::from(got) - exact).abs() / unit
}

fn worst(op: &'static MapOp, args: &[Vec<f32>], exact: impl Fn(&[f64]) -> f64, allowed: f64) {
    let operands: Vec<Vec<u32>> = args.iter().map(|a| bits(a)).collect();
    let got = both_widths(op, F32, F32, &operands);
    let mut worst = (0.0, String::new());
    for (i, &g) in got.iter().enumerate() {
        let x: Vec<f64> = args.iter().map(|a| f64::from(a[i])).collect();
        let off = ulps(f32::from_bits(g), exact(&x));
        if off > worst.0 || off.is_nan() {
            worst = (off, format!("{}({x:?}) = {}, exactly {}", op.name, f32::from_bits(g), exact(&x)));
        }
    }
    println!("{:>8.2} ulp: {}", worst.0, worst.1);
    assert!(worst.0 <= allowed, "{} ulp: {}", worst.0, worst.1);
}

#[test]
fn functions_are_accurate_and_right_at_the_edges() {
    static EXP: MapOp = op("exp", 1, "w_exp(a)");
    static EXPM1: MapOp = op("expm1", 1, "w_expm1(a)");
    static LOG: MapOp = op("log", 1, "w_log(a)");
    static LOG1P: MapOp = op("log1p", 1, "w_log1p(a)");
    static TANH: MapOp = op("tanh", 1, "w_tanh(a)");
    static SIGMOID: MapOp = op("sigmoid", 1, "w_sigmoid(a)");
    static ERF: MapOp = op("erf", 1, "w_erf(a)");
    static SIN: MapOp = op("sin", 1, "w_sin(a)");
    static COS: MapOp = op("cos", 1, "w_cos(a)");
    worst(&EXP, &[numbers(100.0)], |x| x[0].exp(), 2.0);
    worst(&EXPM1, &[numbers(100.0)], |x| x[0].exp_m1(), 5.0);
    worst(&LOG, &[numbers(1e6)], |x| x[0].ln(), 2.0);
    worst(&LOG1P, &[numbers(100.0)], |x| x[0].ln_1p(), 4.0);
    worst(&TANH, &[numbers(10.0)], |x| x[0].tanh(), 8.0);
    worst(&SIGMOID, &[numbers(100.0)], |x| 1.0 / (1.0 + (-x[0]).exp()), 4.0);
    worst(&ERF, &[numbers(5.0)], |x| libm::erf(x[0]), 8.0);
    let angles: Vec<f32> = numbers(5000.0).into_iter().filter(|v| v.abs() < 1e4 || !v.is_finite()).collect();
    for (op, f) in [(&SIN, f64::sin as fn(f64) -> f64), (&COS, f64::cos)] {
        for (x, got) in angles.iter().zip(both_widths(op, F32, F32, &[bits(&angles)])) {
            let (got, exact) = (f64::from(f32::from_bits(got)), f(f64::from(*x)));
            assert!((got - exact).abs() < 2e-7 || (got.is_nan() && exact.is_nan()), "{} {x}: {got}", op.name);
        }
    }
}

#[test]
fn powers() {
    static POW: MapOp = op("pow", 2, "w_pow(a, b)");
    static POWI: MapOp = op("powi", 2, "w_powi(a, b)");
    let edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        3.0,
        -3.0,
        0.5,
        -0.5,
        1e30,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let (mut x, mut y): (Vec<f32>, Vec<f32>) = edges.iter().flat_map(|&a| edges.map(|b| (a, b))).unzip();
    let random = floats(8000);
    for pair in random.chunks(2) {
        let (a, b) = (f32::from_bits(pair[0]), f32::from_bits(pair[1]));
        for (scale, power) in [(10.0f32, 5.0), (1e3, 12.0), (2.0, 100.0), (1e-3, 8.0)] {
            x.push((a * scale).abs());
            y.push(b * power);
            x.push(a * scale);
            y.push((b * power).round());
        }
    }
    worst(&POW, &[x, y], |v| v[0].powf(v[1]), 4.0);
    let (mut x, mut y, mut expected) = (vec![], vec![], vec![]);
    for a in -7i32..8 {
        for b in -3i32..40 {
            x.push(a as u32);
            y.push(b as u32);
            expected.push(match (a, b) {
                (_, 0..) => a.wrapping_pow(b as u32),
                (1, _) => 1,
                (-1, _) => {
                    if b % 2 == 0 {
                        1
                    } else {
                        -1
                    }
                }
                _ => 0,
            } as u32);
        }
    }
    assert_eq!(both_widths(&POWI, I32, I32, &[x, y]), expected);
}

#[test]
fn remainders_have_the_divisors_sign() {
    static REMAINDER: MapOp = op("remainder", 2, "w_remainder(a, b)");
    static REMAINDERI: MapOp = op("remainderi", 2, "w_remainderi(a, b)");
    static FLOORDIV: MapOp = op("floordiv", 2, "w_floordivi(a, b)");
    let (mut x, mut y) = (vec![], vec![]);
    for a in [0.0f32, 1.0, 5.5, 7.0, 1e6, 123.456, 0.3] {
        for b in [1.0f32, 2.0, 0.1, 3.0, 7.0, f32::INFINITY] {
            for (s, t) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
                x.push(a * s);
                y.push(b * t);
            }
        }
    }
    let exact = |v: &[f64]| {
        let r = v[0] % v[1];
        if r != 0.0 && (r < 0.0) != (v[1] < 0.0) { r + v[1] } else { r }
    };
    let got = both_widths(&REMAINDER, F32, F32, &[bits(&x), bits(&y)]);
    for ((x, y), g) in x.iter().zip(&y).zip(got) {
        let (g, e) = (f64::from(f32::from_bits(g)), exact(&[f64::from(*x), f64::from(*y)]));
        assert!(
            g == e || (g - e).abs() <= 1e-6 * f64::from(x.abs().max(y.abs())),
            "{x} % {y} = {g}, exactly {e}"
        );
    }
    let pairs: Vec<(i32, i32)> = (-9..10).flat_map(|a| [-4, -3, -1, 1, 2, 5].map(|b| (a, b))).collect();
    let args =
        [pairs.iter().map(|p| p.0 as u32).collect(), pairs.iter().map(|p| p.1 as u32).collect::<Vec<_>>()];
    let floor = |p: &(i32, i32)| (f64::from(p.0) / f64::from(p.1)).floor() as i32;
    let quotients: Vec<u32> = pairs.iter().map(|p| floor(p) as u32).collect();
    let rests: Vec<u32> = pairs.iter().map(|p| (p.0 - floor(p) * p.1) as u32).collect();
    assert_eq!(both_widths(&FLOORDIV, I32, I32, &args), quotients);
    assert_eq!(both_widths(&REMAINDERI, I32, I32, &args), rests);
}

#[test]
fn random_bits_are_the_cpus() {
    use crate::backend::cpu::philox;
    static BITS: MapOp = op("bits", 5, "philox_uniform_u32(a, b, c, d, e)");
    static NORMAL: MapOp = op("normal", 5, "philox_normal(a, b, c, d, e)");
    let gpu = gpu();
    let n = 1 << 20;
    let stream: [u32; 4] = [0xdead_beef, 7, u32::MAX - 1000, 3];
    let index: Vec<u32> = (0..n as u32).collect();
    let args: Vec<Vec<u32>> = [index].into_iter().chain(stream.map(|v| vec![v; n])).collect();
    let slices: Vec<&[u8]> = args.iter().map(|a| bytemuck::cast_slice(a)).collect();
    for (op, result, kernel_of) in
        [(&BITS, U32, philox::bits_kernel as fn(DType, DType) -> _), (&NORMAL, F32, philox::normal_kernel)]
    {
        let mut expected = vec![0u32; n];
        kernel_of(U32, result).unwrap()(bytemuck::cast_slice_mut(&mut expected), &slices);
        // By single elements, by fours of a block, and by fours that are none.
        for (index, store) in [(0, 1), (0, 0), (2, 0)] {
            let l = Layout::contiguous(&[n - 8]);
            let mut b = Build::over(&[n - 8]);
            let at = b.index(Layout { offset: index, ..l.clone() });
            let mut r = vec![at];
            r.extend((0..4).map(|s| b.scalar(s, U32)));
            let y = b.op(op, U32, result, &r);
            let p = b.store(y, 0, result, Layout { offset: store, ..l }).done();
            let k = kernel(Body::Map(vec![p]), &[(result, true)], &[U32; 4]);
            let got = run(&gpu, &dispatch(k), &[vec![0; n]], &stream.map(Scalar::from));
            assert!(
                got[0][store..store + n - 8] == expected[index..index + n - 8],
                "{} {index} {store}",
                op.name
            );
        }
    }
}
