//! Philox 4x32-10 and normal draws from it, in integer arithmetic: the twin of `shaders/shared/philox.wgsl`, bit
//! for bit. Keep the two in step.

use crate::graph::dtype::DType;
use crate::graph::program::BlockFn;

/// The upper half of a 64-bit product.
fn mul_hi(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// The four words of a counter (whose upper 64 bits are 0).
fn block(counter: u64, key: [u32; 2]) -> [u32; 4] {
    const M: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const W: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let mut x = [counter as u32, (counter >> 32) as u32, 0, 0];
    for round in 0..10u32 {
        let lo = key[0].wrapping_add(W[0].wrapping_mul(round));
        let hi = key[1].wrapping_add(W[1].wrapping_mul(round));
        x = [
            mul_hi(M[1], x[2]) ^ x[1] ^ lo,
            M[1].wrapping_mul(x[2]),
            mul_hi(M[0], x[0]) ^ x[3] ^ hi,
            M[0].wrapping_mul(x[0]),
        ];
    }
    x
}

/// Words and their element's place in its block, for each element of a block of the interpreter. Neighbours
/// mostly share a Philox block, which is then computed once.
fn each(args: &[&[u8]], mut f: impl FnMut(&[u32; 4], usize)) {
    let [index, seed_lo, seed_hi, offset_lo, offset_hi] = [0, 1, 2, 3, 4].map(|i| words(args[i]));
    let mut last = None;
    let mut x = [0; 4];
    for i in 0..index.len() {
        let wide = |lo: u32, hi: u32| u64::from(lo) | u64::from(hi) << 32;
        let counter = wide(offset_lo[i], offset_hi[i]).wrapping_add(u64::from(index[i] >> 2));
        let at = (counter, [seed_lo[i], seed_hi[i]]);
        if last != Some(at) {
            x = block(at.0, at.1);
            last = Some(at);
        }
        f(&x, (index[i] & 3) as usize);
    }
}

fn words(bytes: &[u8]) -> &[u32] {
    bytemuck::cast_slice(bytes)
}

/// Element `index` of a stream: word `index % 4` of block `offset + index / 4`. Operands: index, and the seed
/// and the offset, low word first.
pub fn bits_kernel(operand: DType, result: DType) -> Option<BlockFn> {
    (operand == DType::U32 && result == DType::U32).then_some(&|out: &mut [u8], args: &[&[u8]]| {
        let mut out = bytemuck::cast_slice_mut::<u8, u32>(out).iter_mut();
        each(args, |x, place| {
            if let Some(out) = out.next() {
                *out = x[place];
            }
        });
    })
}

/// Uniform in [0, 1): the upper 24 bits of a word.
pub fn uniform_kernel(operand: DType, result: DType) -> Option<BlockFn> {
    (operand == DType::U32 && result == DType::F32).then_some(&|out: &mut [u8], args: &[&[u8]]| {
        for (out, bits) in bytemuck::cast_slice_mut::<u8, f32>(out).iter_mut().zip(words(args[0])) {
            *out = (bits >> 8) as f32 * (1.0 / (1 << 24) as f32);
        }
    })
}

/// Normal draws; operands as of [`bits_kernel`].
pub fn normal_kernel(operand: DType, result: DType) -> Option<BlockFn> {
    (operand == DType::U32 && result == DType::F32).then_some(&|out: &mut [u8], args: &[&[u8]]| {
        let mut out = bytemuck::cast_slice_mut::<u8, f32>(out).iter_mut();
        each(args, |x, place| {
            if let Some(out) = out.next() {
                let pair = place & 2;
                *out = normal_bits(x[pair], x[pair + 1], place as u32 & 1) as f32 * (1.0 / (1 << 21) as f32);
            }
        });
    })
}

/// `(a * b) >> 32`.
pub fn mul_hi_kernel(operand: DType, result: DType) -> Option<BlockFn> {
    (operand == DType::U32 && result == DType::U32).then_some(&|out: &mut [u8], args: &[&[u8]]| {
        let out = bytemuck::cast_slice_mut::<u8, u32>(out).iter_mut();
        for ((out, &a), &b) in out.zip(words(args[0])).zip(words(args[1])) {
            *out = mul_hi(a, b);
        }
    })
}

/// `c[0] - t * (c[1] - t * (c[2] - …))`, in fractions of 2^32. The coefficients, those of a series with
/// alternating signs, keep every step positive.
fn alternate(t: u32, c: &[u32]) -> u32 {
    c.iter().rev().copied().reduce(|p, c| c - mul_hi(t, p)).unwrap_or(0)
}

/// log(1 + t) / t on [0, 1], by Chebyshev's fit.
const LOG: [u32; 10] = [
    4_294_967_273,
    2_147_479_037,
    1_431_500_166,
    1_071_663_758,
    844_531_199,
    655_827_207,
    452_845_194,
    242_122_823,
    83_934_515,
    13_641_061,
];
/// (sqrt(1 + t) - 1) / t on [0, 1].
const SQRT: [u32; 8] =
    [2_147_483_542, 536_857_229, 268_138_783, 165_246_033, 106_403_810, 59_900_605, 23_415_057, 4_403_678];
/// sin(pi / 2 * g) / g in g^2 on [0, 1], as fractions of 2^31.
const SIN: [u32; 5] = [3_373_259_412, 1_387_196_611, 171_132_797, 10_037_647, 325_713];

/// Box and Muller's transform in integers, because floats differ between devices: a draw from the normal
/// distribution, times 2^21, of two random words. Both an even and an odd draw come from each pair.
fn normal_bits(word: u32, angle: u32, odd: u32) -> i32 {
    // -log(u) in 27 bits of fraction, u = v / 2^32.
    let v = word | 1;
    let zeros = v.leading_zeros();
    let t = (v << zeros) << 1;
    let whole = (zeros + 1) * 93_032_640;
    let log = whole - whole.min((mul_hi(t, alternate(t, &LOG)) + 16) >> 5);
    // sqrt(2 * log) in 28: that of a number in [1, 2) times a power of two, whose root may be sqrt(2) off.
    let shift = log.leading_zeros().min(31);
    let m = (log << shift) << 1;
    let root = 0x8000_0000 + (mul_hi(m, alternate(m, &SQRT)) >> 1);
    let even = if shift & 1 == 0 { mul_hi(root, 3_037_000_500) } else { root >> 1 };
    let radius = if log == 0 { 0 } else { even >> (shift >> 1) };
    // The angle: two bits of quarter, the rest within it.
    let quarter = (angle >> 30) + 1 - odd;
    let f = (angle << 2) | 2;
    let g = if quarter & 1 == 1 { f.wrapping_neg() } else { f };
    let side = mul_hi(g, alternate(mul_hi(g, g), &SIN));
    let z = ((mul_hi(radius, side) + 32) >> 6) as i32;
    if quarter & 2 == 2 { -z } else { z }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` elements from a kernel of streams.
    fn draw(kernel: BlockFn, n: usize, seed: u64, offset: u64) -> Vec<u32> {
        let index: Vec<u32> = (0..n as u32).collect();
        let of = |v: u64, shift: u32| vec![(v >> shift) as u32; n];
        let args = [index, of(seed, 0), of(seed, 32), of(offset, 0), of(offset, 32)];
        let args: Vec<&[u8]> = args.iter().map(|a| bytemuck::cast_slice(a)).collect();
        let mut out = vec![0u32; n];
        kernel(bytemuck::cast_slice_mut(&mut out), &args);
        out
    }

    #[test]
    fn known_answers() {
        // From the authors' Random123 distribution (kat_vectors), those whose upper counter is 0.
        assert_eq!(block(0, [0, 0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn offsets_continue_a_stream() {
        let bits = bits_kernel(DType::U32, DType::U32).unwrap();
        let whole = draw(bits, 64, 7, u64::from(u32::MAX) - 3);
        assert_eq!(draw(bits, 24, 7, u64::from(u32::MAX) + 7), whole[40..]);
        assert_ne!(draw(bits, 24, 8, u64::from(u32::MAX) + 7), whole[40..]);
    }

    #[test]
    fn transforms_as_floats_would() {
        let mut x = 12345u32;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x
        };
        let words = [0, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];
        let pairs = words.iter().flat_map(|&a| words.map(|b| (a, b)));
        let random: Vec<(u32, u32)> = (0..200_000).map(|_| (next(), next())).collect();
        for (a, b) in pairs.chain(random) {
            let r = (-2.0 * (f64::from(a | 1) / 4294967296.0).ln()).sqrt();
            let angle =
                (f64::from(b >> 30) + f64::from((b << 2) | 2) / 4294967296.0) * std::f64::consts::FRAC_PI_2;
            for (odd, exact) in [(0, r * angle.cos()), (1, r * angle.sin())] {
                let got = f64::from(normal_bits(a, b, odd)) / f64::from(1 << 21);
                // A radius near 0 is known less well.
                let tolerance = 1e-6 + 3e-8 / r.max(1e-4);
                assert!((got - exact).abs() < tolerance, "{a:#x} {b:#x} {odd}: {got}, expected {exact}");
            }
        }
    }

    #[test]
    fn moments_and_tails() {
        let n = 1 << 21;
        let draws = draw(normal_kernel(DType::U32, DType::F32).unwrap(), n, 42, 0);
        let z: Vec<f64> = draws.iter().map(|&b| f64::from(f32::from_bits(b))).collect();
        let mean = |f: &dyn Fn(f64) -> f64| z.iter().map(|&v| f(v)).sum::<f64>() / n as f64;
        // Each within four standard errors.
        let error = 4.0 / (n as f64).sqrt();
        assert!(mean(&|v| v).abs() < error);
        assert!((mean(&|v| v * v) - 1.0).abs() < error * 2f64.sqrt());
        assert!(mean(&|v| v.powi(3)).abs() < error * 15f64.sqrt());
        assert!((mean(&|v| v.powi(4)) - 3.0).abs() < error * 96f64.sqrt());
        for (beyond, expected) in
            [(1.0, 0.317_310_5), (2.0, 0.045_500_3), (3.0, 0.002_699_8), (4.0, 6.334e-5)]
        {
            let share = mean(&|v| f64::from(u8::from(v.abs() > beyond)));
            assert!(
                (share - expected).abs() < 4.0 * (expected / n as f64).sqrt(),
                "beyond {beyond}: {share}"
            );
        }
        // Neighbours, which may come from one pair of words, are independent.
        let product = z.chunks(2).map(|p| p[0] * p[1]).sum::<f64>() / (n / 2) as f64;
        let squares = z.chunks(2).map(|p| p[0] * p[0] * p[1] * p[1]).sum::<f64>() / (n / 2) as f64;
        assert!(product.abs() < error * 2f64.sqrt() && (squares - 1.0).abs() < error * 5.0);
    }
}
