//! Elementary functions of `f32` as straight-line code that LLVM turns into vector instructions: no calls,
//! tables or branches, only selects. Errors stay within about 2 ulp over the whole range, denormals included
//! (`tests` below prints the table).
//!
//! Polynomials marked *Cephes* are from S. Moshier's Cephes library (`single/expf.c`, `logf.c`, `tanhf.c`);
//! sine and cosine kernels are FreeBSD msun's `k_sinf.c`, `k_cosf.c`; `erf` is N. Juffa's
//! two-piece approximation.
//!
//! Multiply-adds are fused, which is exact and hence the same wherever the processor does it: all copies for
//! AVX2 and up, and NEON. An x86 processor without AVX2 gets the same results slowly, by calls of libm's `fmaf`.
//! WebAssembly has no such instruction and rounds twice; there the last bit may differ.

use super::block::{self, BlockFn};
use crate::graph::dtype::{DType, F32, F64};

const LN2_HI: f32 = 0.693_359_4; // 355/512, exact in 9 bits
const LN2_LO: f32 = -2.121_944_4e-4;

#[inline(always)]
fn select<T>(condition: bool, yes: T, no: T) -> T {
    if condition { yes } else { no }
}

/// `a * b + c`, rounded once where the target can.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_family = "wasm") { a * b + c } else { a.mul_add(b, c) }
}

/// The polynomial with these coefficients below `first`, by falling powers.
#[inline(always)]
fn poly<const N: usize>(x: f32, first: f32, rest: [f32; N]) -> f32 {
    let mut p = first;
    for c in rest {
        p = fma(p, x, c);
    }
    p
}

/// `v - n ln 2`, with ln 2 in two parts.
#[inline(always)]
fn less_ln2(v: f32, n: f32) -> f32 {
    fma(n, -LN2_LO, fma(n, -LN2_HI, v))
}

/// The nearest whole number, as float and as integer. For |v| < 2^22.
#[inline(always)]
fn nearest(v: f32) -> (f32, i32) {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves no bits for a fraction
    let shifted = v + MAGIC;
    (shifted - MAGIC, (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32))
}

/// The same in f64, for |v| < 2^51; of the integer only the low 32 bits.
#[inline(always)]
fn nearest64(v: f64) -> (f64, i32) {
    const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    let shifted = v + MAGIC;
    (shifted - MAGIC, shifted.to_bits() as i32)
}

/// `v * 2^n` for |n| <= 252. In two steps, so that overflow and denormals come out right.
#[inline(always)]
fn scale(v: f32, n: i32) -> f32 {
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    v * power(half) * power(n - half)
}

/// (e^r - 1 - r) for |r| <= ln 2 / 2. Cephes.
#[inline(always)]
fn exp_tail(r: f32) -> f32 {
    poly(r, 1.987_569_2e-4, [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5]) * (r * r)
}

/// `v` clamped to where e^v is neither 0 nor infinite for sure; NaN becomes whatever.
#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = select(v > low, v, low);
    select(v < high, v, high)
}

#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let v = clamp(x, -104.0, 89.0);
    let (n, i) = nearest(v * std::f32::consts::LOG2_E);
    let r = less_ln2(v, n);
    select(x.is_nan(), x, scale(exp_tail(r) + r + 1.0, i))
}

/// e^x for x <= 0, as softmax takes it. What is no normal number is 0.
#[inline(always)]
pub fn exp_not_above_0(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // as in `nearest`
    const LEAST: f32 = -87.336_54; // the smallest normal number's logarithm
    let v = select(x < LEAST, LEAST, x); // NaN stays
    let shifted = v * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = less_ln2(v, n);
    // The bits of MAGIC are shifted out.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    select(x < LEAST, 0.0, (exp_tail(r) + r + 1.0) * power)
}

#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let v = clamp(x, -151.0, 129.0);
    let (n, i) = nearest(v);
    let r = (v - n) * std::f32::consts::LN_2;
    select(x.is_nan(), x, scale(exp_tail(r) + r + 1.0, i))
}

#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let v = clamp(x, -20.0, 40.0);
    let (n, i) = nearest(v * std::f32::consts::LOG2_E);
    let r = less_ln2(v, n);
    // 2^n (1 + q) - 1 = 2^n q + (2^n - 1), and both terms are exact enough.
    let power = f32::from_bits(((i + 127) << 23) as u32);
    let near = fma(power, exp_tail(r) + r, power - 1.0);
    let y = select(x > 30.0, exp(x), near);
    // For tiny arguments the sum above would lose the sign of zero.
    select(x.is_nan() || x == 0.0, x, y)
}

/// ln(1 + t) - t for 1 + t in [sqrt 1/2, sqrt 2], without its term of whole exponents. Cephes.
#[inline(always)]
fn ln_tail(t: f32) -> f32 {
    let rest = [
        -0.115_146_1,
        0.116_769_98,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_58,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ];
    poly(t, 7.037_683_6e-2, rest) * t * t * t
}

/// A positive normal number as `(t, e)`: `(1 + t) * 2^e` with 1 + t in [sqrt 1/2, sqrt 2).
#[inline(always)]
fn split(x: f32) -> (f32, i32) {
    const SQRT_HALF: i32 = 0x3f35_04f3;
    let above = (x.to_bits() as i32).wrapping_sub(SQRT_HALF);
    let mantissa = (above & 0x007f_ffff) + SQRT_HALF;
    (f32::from_bits(mantissa as u32) - 1.0, above >> 23)
}

/// The same for every positive finite number.
#[inline(always)]
fn split_any(x: f32) -> (f32, f32) {
    let tiny = x < f32::MIN_POSITIVE;
    let (t, e) = split(select(tiny, x * 8_388_608.0, x));
    (t, (e - select(tiny, 23, 0)) as f32)
}

/// Edge cases of logarithms.
#[inline(always)]
fn ln_edges(x: f32, y: f32) -> f32 {
    let y = select(x == 0.0, f32::NEG_INFINITY, y);
    let y = select(x < 0.0, f32::NAN, y);
    select(x.is_nan() || x == f32::INFINITY, x, y)
}

#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let (t, e) = split_any(x);
    let y = ln_tail(t) + e * LN2_LO - 0.5 * t * t;
    ln_edges(x, t + y + e * LN2_HI)
}

#[inline(always)]
pub fn log2(x: f32) -> f32 {
    let (t, e) = split_any(x);
    // ln(1+t) in two parts times log2(e) in two parts.
    let y = ln_tail(t) - 0.5 * t * t;
    const MORE: f32 = 0.442_695_04; // log2(e) - 1
    let z = y * MORE + t * MORE + y + t;
    ln_edges(x, z + e)
}

#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    // Near 0 the polynomial takes x itself; elsewhere 1 + x is rounded, and what was lost is put back.
    let u = 1.0 + x;
    let lost = select(u < f32::INFINITY, (x - (u - 1.0)) / u, 0.0);
    let near = x > -0.29 && x < 0.41;
    let (t, e) = split(u);
    let (t, e) = (select(near, x, t), select(near, 0, e) as f32);
    let y = ln_tail(t) + (e * LN2_LO + select(near, 0.0, lost)) - 0.5 * t * t;
    let y = t + y + e * LN2_HI;
    let y = select(x == -1.0, f32::NEG_INFINITY, y);
    let y = select(x < -1.0, f32::NAN, y);
    select(x.is_nan() || x == f32::INFINITY || x == 0.0, x, y)
}

/// `e / (e + 2)` with e = e^(2|x|) - 1.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let v = select(a < 10.0, a, 10.0) * 2.0;
    let (n, i) = nearest(v * std::f32::consts::LOG2_E);
    let r = less_ln2(v, n);
    let power = f32::from_bits(((i + 127) << 23) as u32);
    let e = fma(power, exp_tail(r) + r, power - 1.0);
    let below = e + 2.0;
    let y = e / below;
    // What the sum lost, over the sum: 1 - y is 2 / below. Where e is large it no longer counts.
    let lost = select(e < 2.0, e - (below - 2.0), 0.0);
    let y = fma(-y, lost * fma(y, -0.5, 0.5), y).copysign(x);
    select(x.is_nan(), x, y)
}

#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    select(x < 0.0, e, 1.0) / (1.0 + e)
}

#[inline(always)]
pub fn sigmoid64(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    select(x < 0.0, e, 1.0) / (1.0 + e)
}

#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (a, s) = (x.abs(), x * x);
    let a = select(a < 4.0, a, 4.0);
    // 1 - e^(q(a) a - a).
    let rest = [3.831_971_3e-4, -3.883_964_4e-3, 2.425_462_2e-2, -0.106_777_88, -0.634_846_87, -0.128_717_51];
    let q = poly(a, -1.728_534_7e-5, rest);
    let far = (1.0 - exp_not_above_0(fma(q, a, -a))).copysign(x);
    let rest = [4.991_194e-3, -2.676_813_5e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17];
    let p = poly(s, -5.967_617e-4, rest);
    let y = select(a > 0.927_734_4, far, fma(p, x, x));
    select(x.is_nan(), x, y)
}

/// Arguments up to here are reduced by `quadrant`.
const FAST_TRIG: f32 = 268_435_456.0;

/// `x` less the nearest multiple of pi/2, and that multiple's number. In f64, with pi/2 in two parts.
#[inline(always)]
fn quadrant(x: f32) -> (f64, i32) {
    let x = f64::from(x);
    let (n, i) = nearest64(x * std::f64::consts::FRAC_2_PI);
    // The first part has 25 bits, so that its product with n is exact.
    ((x - n * 1.570_796_310_901_641_8) - n * 1.589_325_477_352_819_7e-8, i)
}

#[inline(always)]
fn sin_kernel(r: f64) -> f64 {
    let z = r * r;
    let p = 2.718_311_493_989_822e-6 * z - 1.983_933_483_609_663_2e-4;
    let p = (p * z + 8.333_329_385_889_463e-3) * z - 0.166_666_666_416_265_24;
    p * z * r + r
}

#[inline(always)]
fn cos_kernel(r: f64) -> f64 {
    let z = r * r;
    let p = 2.439_044_879_627_741_5e-5 * z - 1.388_676_377_460_993e-3;
    ((p * z + 4.166_662_332_373_906e-2) * z - 0.499_999_997_251_031) * z + 1.0
}

#[inline(always)]
fn sin_fast(x: f32) -> f32 {
    let (r, i) = quadrant(x);
    let y = select(i & 1 == 0, sin_kernel(r), cos_kernel(r));
    // For the sign of zero.
    select(x == 0.0, x, select(i & 2 == 0, y, -y) as f32)
}

#[inline(always)]
fn cos_fast(x: f32) -> f32 {
    let (r, i) = quadrant(x);
    let y = select(i & 1 == 0, cos_kernel(r), sin_kernel(r));
    select((i + 1) & 2 == 0, y, -y) as f32
}

#[inline(always)]
fn tan_fast(x: f32) -> f32 {
    let (r, i) = quadrant(x);
    let (s, c) = (sin_kernel(r), cos_kernel(r));
    let y = select(i & 1 == 0, s, -c) / select(i & 1 == 0, c, s);
    select(x == 0.0, x, y as f32)
}

macro_rules! trig {
    ($($(#[$doc:meta])* $name:ident $fast:ident;)*) => {$(
        #[inline]
        pub fn $name(x: f32) -> f32 {
            if x.abs() > FAST_TRIG { f64::from(x).$name() as f32 } else { $fast(x) }
        }
        $(#[$doc])*
        pub mod $name {
            use super::*;
            /// The CPU kernel, for a row of the op table: vectorised, with rare huge arguments done again.
            pub fn kernel(operand: DType, result: DType) -> Option<BlockFn> {
                fn single(out: &mut [u8], args: &[&[u8]]) {
                    block::run1::<f32, f32, _>(out, args, #[inline(always)] |x| $fast(x));
                    let x: &[f32] = bytemuck::cast_slice(args[0]);
                    if x.iter().fold(false, |any, x| any | (x.abs() > FAST_TRIG)) {
                        let out: &mut [f32] = bytemuck::cast_slice_mut(out);
                        out.iter_mut().zip(x).filter(|(_, x)| x.abs() > FAST_TRIG).for_each(|(o, &x)| *o = $name(x));
                    }
                }
                fn double(out: &mut [u8], args: &[&[u8]]) {
                    block::run1::<f64, f64, _>(out, args, |x| x.$name());
                }
                match (operand, result) {
                    (F32, F32) => Some(&single),
                    (F64, F64) => Some(&double),
                    _ => None,
                }
            }
        }
    )*};
}
trig! { sin sin_fast; cos cos_fast; tan tan_fast; }

/// `x^y` with `std`'s edge cases. In f64, which has the digits that `y * log2(x)` needs.
#[inline(always)]
pub fn pow(x: f32, y: f32) -> f32 {
    // log2|x|: the exponent, and an odd series in (m-1)/(m+1).
    let a = x.abs();
    let tiny = a < f32::MIN_POSITIVE;
    let (t, e) = split(select(tiny, a * 8_388_608.0, a));
    let t = f64::from(t);
    let s = t / (t + 2.0);
    let z = s * s;
    let mut p = 1.0 / 15.0;
    for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0] {
        p = p * z + c;
    }
    let log = 2.0 * std::f64::consts::LOG2_E * s * p + f64::from(e - select(tiny, 23, 0));
    let log = select(a == 0.0, f64::NEG_INFINITY, log);
    let log = select(a == f32::INFINITY, f64::INFINITY, log);
    // 2^(y log2|x|), with an exponent cut to where f32 has long overflowed or vanished.
    let v = f64::from(y) * log;
    let v = select(v > -300.0, v, -300.0);
    let v = select(v < 300.0, v, 300.0);
    let (n, i) = nearest64(v);
    let r = (v - n) * std::f64::consts::LN_2;
    let mut q = 1.0 / 362_880.0;
    for c in [1.0 / 40_320.0, 1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        q = q * r + c;
    }
    let power = (q * f64::from_bits(((i + 1023) as u64) << 52)) as f32;
    // Signs: a negative base needs a whole exponent, and keeps its sign under an odd one.
    let whole = y.trunc() == y;
    let half = y * 0.5;
    let odd = whole && half.trunc() != half;
    let power = select(x.is_sign_negative() && odd, -power, power);
    let power = select(x < 0.0 && !whole && a != f32::INFINITY, f32::NAN, power);
    let power = select(x.is_nan() || y.is_nan(), f32::NAN, power);
    // 1^y and (-1)^±inf; inf * log2(1) is NaN above.
    let power = select(a == 1.0 && y.abs() == f32::INFINITY, 1.0, power);
    select(y == 0.0 || x == 1.0, 1.0, power)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of f32.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        if got == near || (got.is_nan() && want.is_nan()) {
            return if got.is_nan() || near.is_infinite() {
                0.0
            } else {
                (f64::from(got) - want).abs() / unit(near)
            };
        }
        if near.is_infinite() || got.is_nan() != want.is_nan() {
            f64::INFINITY
        } else {
            (f64::from(got) - want).abs() / unit(near)
        }
    }

    fn unit(v: f32) -> f64 {
        let exponent = ((v.to_bits() >> 23 & 255) as i32).max(1);
        f64::exp2(f64::from(exponent - 150))
    }

    /// Every f32 of a coarse grid over all bit patterns, and a fine one where functions bend.
    fn arguments() -> impl Iterator<Item = f32> {
        let edges = [
            0.0,
            1.0,
            0.5,
            2.0,
            88.722_84,
            88.8,
            87.336_55,
            103.97,
            104.1,
            127.99,
            128.0,
            150.0,
            0.625,
            0.927_734_4,
            4.0,
            f32::MIN_POSITIVE,
            1e-45,
            3e-39,
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
            16_777_216.0,
            2.684_354_6e8,
            2.7e8,
            1e30,
        ];
        (0..=u32::MAX / 16_001)
            .map(|i| f32::from_bits(i * 16_001))
            .chain((-100_000..100_000).map(|i| i as f32 * 0.001_23))
            .chain(edges.into_iter().flat_map(|v| [v, -v, f32::from_bits(v.to_bits().wrapping_add(1))]))
    }

    #[test]
    fn within_two_ulps_of_f64() {
        type Row = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64);
        let table: [Row; 13] = [
            ("exp", exp, f64::exp, 1.1),
            ("exp2", exp2, f64::exp2, 1.6),
            ("exp_m1", exp_m1, f64::exp_m1, 2.1),
            ("ln", ln, f64::ln, 1.1),
            ("log2", log2, f64::log2, 1.6),
            ("ln_1p", ln_1p, f64::ln_1p, 1.6),
            ("tanh", tanh, f64::tanh, 2.0),
            ("sigmoid", sigmoid, sigmoid64, 2.3),
            ("erf", erf, libm::erf, 2.0),
            ("sin", sin, f64::sin, 0.6),
            ("cos", cos, f64::cos, 0.6),
            ("tan", tan, f64::tan, 0.6),
            ("recip sqrt", super::super::number::Real::rsqrt, |x| 1.0 / x.sqrt(), 1.6),
        ];
        let mut bad = vec![];
        for (name, ours, exact, bound) in table {
            let (worst, at) = arguments()
                .map(|x| (ulps(ours(x), exact(f64::from(x))), x))
                .fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
            println!("{name:10} {worst:.3} ulp at {at:e}");
            if worst > bound {
                bad.push(format!(
                    "{name}: {worst} ulp at {at:e}: {:e}, not {:e}",
                    ours(at),
                    exact(f64::from(at))
                ));
            }
        }
        assert!(bad.is_empty(), "{bad:#?}");
    }

    #[test]
    fn exp_of_what_is_not_above_0() {
        for x in arguments().filter(|x| *x <= 0.0) {
            let exact = f64::from(x).exp();
            let error = ulps(exp_not_above_0(x), exact);
            let vanishes = exact < 1.2e-38 && exp_not_above_0(x) == 0.0;
            assert!(error < 1.1 || vanishes, "{x}: {:e}, {error} ulp", exp_not_above_0(x));
        }
        assert!(exp_not_above_0(f32::NAN).is_nan() && exp_not_above_0(f32::from_bits(0xffff_ffff)).is_nan());
        assert_eq!([exp_not_above_0(f32::NEG_INFINITY), exp_not_above_0(-0.0)], [0.0, 1.0]);
    }

    #[test]
    fn pow_has_stds_edge_cases() {
        let edges = [
            0.0,
            0.5,
            1.0,
            1.5,
            2.0,
            3.0,
            1e-40,
            16_777_215.0,
            16_777_216.0,
            3e38,
            f32::INFINITY,
            127.0,
            0.999_999_9,
        ];
        let edges = edges.into_iter().flat_map(|v| [v, -v]).chain([f32::NAN]);
        let mut worst = (0.0, 0.0, 0.0);
        let mut check = |x: f32, y: f32| {
            let (got, want) = (pow(x, y), x.powf(y));
            let same = got == want || (got.is_nan() && want.is_nan()) || (want != 0.0 && want.is_finite());
            assert!(
                same && (got.is_nan() || got.is_sign_negative() == want.is_sign_negative()),
                "{x}^{y}: {got}, {want}"
            );
            let error = ulps(got, f64::from(x).powf(f64::from(y)));
            if error > worst.0 {
                worst = (error, x, y);
            }
        };
        for x in edges.clone() {
            edges.clone().for_each(|y| check(x, y));
        }
        for i in 0..50_000 {
            let x = f32::from_bits((i as u32).wrapping_mul(2_654_435_761) >> 1);
            if x.is_nan() {
                continue;
            }
            [0.3, -1.7, 2.0, 3.0, 0.5, -1.0, 37.7].into_iter().for_each(|y| check(x, y));
            check(0.001 + i as f32 * 4e-4, (i % 173) as f32 - 86.3);
        }
        println!("pow {:.3} ulp at {}^{}", worst.0, worst.1, worst.2);
        assert!(worst.0 < 0.6);
    }

    #[test]
    fn signs_of_zero_and_limits() {
        for f in [exp_m1, ln_1p, tanh, erf, sin, tan] {
            assert!(f(-0.0).is_sign_negative() && f(-0.0) == 0.0 && f(0.0).is_sign_positive());
            assert!(f(f32::NAN).is_nan());
        }
        assert_eq!(
            [exp(f32::INFINITY), exp(f32::NEG_INFINITY), tanh(f32::INFINITY), erf(-50.0)],
            [f32::INFINITY, 0.0, 1.0, -1.0]
        );
        assert_eq!(
            [ln(0.0), ln(f32::INFINITY), log2(8.0), exp2(10.0), exp(0.0)],
            [f32::NEG_INFINITY, f32::INFINITY, 3.0, 1024.0, 1.0]
        );
        assert!(ln(-1.0).is_nan() && sin(f32::INFINITY).is_nan() && ln_1p(-2.0).is_nan());
    }
}
