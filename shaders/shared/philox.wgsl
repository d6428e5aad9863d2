// Random numbers: Philox 4x32-10, a function of key and counter. `src/backend/cpu/philox.rs` is its twin, bit
// for bit; keep the two in step.

// The upper half of a 64-bit product.
fn mul_hi(a: U, b: U) -> U {
    let al = a & U(0xffffu);
    let ah = a >> U(16u);
    let bl = b & U(0xffffu);
    let bh = b >> U(16u);
    let mid = ah * bl + ((al * bl) >> U(16u));
    let low = al * bh + (mid & U(0xffffu));
    return ah * bh + (mid >> U(16u)) + (low >> U(16u));
}

struct Philox {
    a: U,
    b: U,
    c: U,
    d: U,
}

fn philox_round(x: Philox, key_lo: U, key_hi: U) -> Philox {
    let m0 = U(0xd2511f53u);
    let m1 = U(0xcd9e8d57u);
    return Philox(mul_hi(m1, x.c) ^ x.b ^ key_lo, m1 * x.c, mul_hi(m0, x.a) ^ x.d ^ key_hi, m0 * x.a);
}

// The four words of a counter.
fn philox_block(counter_lo: U, counter_hi: U, key_lo: U, key_hi: U) -> Philox {
    let w0 = U(0x9e3779b9u);
    let w1 = U(0xbb67ae85u);
    var x = Philox(counter_lo, counter_hi, U(0u), U(0u));
    x = philox_round(x, key_lo, key_hi);
    x = philox_round(x, key_lo + w0, key_hi + w1);
    x = philox_round(x, key_lo + w0 * U(2u), key_hi + w1 * U(2u));
    x = philox_round(x, key_lo + w0 * U(3u), key_hi + w1 * U(3u));
    x = philox_round(x, key_lo + w0 * U(4u), key_hi + w1 * U(4u));
    x = philox_round(x, key_lo + w0 * U(5u), key_hi + w1 * U(5u));
    x = philox_round(x, key_lo + w0 * U(6u), key_hi + w1 * U(6u));
    x = philox_round(x, key_lo + w0 * U(7u), key_hi + w1 * U(7u));
    x = philox_round(x, key_lo + w0 * U(8u), key_hi + w1 * U(8u));
    return philox_round(x, key_lo + w0 * U(9u), key_hi + w1 * U(9u));
}

// The block that holds element `index` of a stream which begins at a 64-bit offset.
fn philox_at(index: U, seed_lo: U, seed_hi: U, offset_lo: U, offset_hi: U) -> Philox {
    let lo = offset_lo + (index >> U(2u));
    let hi = offset_hi + select(U(0u), U(1u), lo < offset_lo);
    return philox_block(lo, hi, seed_lo, seed_hi);
}

fn philox_word(index: U, seed_lo: U, seed_hi: U, offset_lo: U, offset_hi: U) -> U {
    let x = philox_at(index, seed_lo, seed_hi, offset_lo, offset_hi);
    let upper = (index & U(2u)) == U(2u);
    return select(select(x.a, x.c, upper), select(x.b, x.d, upper), (index & U(1u)) == U(1u));
}

// Element `index`: word `index % 4` of block `offset + index / 4`.
fn philox_uniform_u32(index: U, seed_lo: U, seed_hi: U, offset_lo: U, offset_hi: U) -> U {
    return philox_word(index, seed_lo, seed_hi, offset_lo, offset_hi);
}

// Whether four elements are one block of one stream.
fn one_block(i: vec4<u32>, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>) -> bool {
    let stream = all(a == a.xxxx) && all(b == b.xxxx) && all(c == c.xxxx) && all(d == d.xxxx);
    return stream && i.x % 4u == 0u && all(i == i.x + vec4<u32>(0u, 1u, 2u, 3u));
}

fn philox_uniform_u324(i: vec4<u32>, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>) -> vec4<u32> {
    if one_block(i, a, b, c, d) {
        let x = philox_at(i.x, a.x, b.x, c.x, d.x);
        return vec4<u32>(x.a, x.b, x.c, x.d);
    }
    return philox_word4(i, a, b, c, d);
}

// log(1 + t) / t, all as fractions of 2^32.
fn log_ratio(t: U) -> U {
    var p = U(83934515u) - mul_hi(t, U(13641061u));
    p = U(242122823u) - mul_hi(t, p);
    p = U(452845194u) - mul_hi(t, p);
    p = U(655827207u) - mul_hi(t, p);
    p = U(844531199u) - mul_hi(t, p);
    p = U(1071663758u) - mul_hi(t, p);
    p = U(1431500166u) - mul_hi(t, p);
    p = U(2147479037u) - mul_hi(t, p);
    return U(4294967273u) - mul_hi(t, p);
}

// (sqrt(1 + t) - 1) / t, likewise.
fn sqrt_ratio(t: U) -> U {
    var p = U(23415057u) - mul_hi(t, U(4403678u));
    p = U(59900605u) - mul_hi(t, p);
    p = U(106403810u) - mul_hi(t, p);
    p = U(165246033u) - mul_hi(t, p);
    p = U(268138783u) - mul_hi(t, p);
    p = U(536857229u) - mul_hi(t, p);
    return U(2147483542u) - mul_hi(t, p);
}

// sin(pi / 2 * g), g a fraction of 2^32, the result of 2^31.
fn sin_quarter(g: U) -> U {
    let u = mul_hi(g, g);
    var p = U(10037647u) - mul_hi(u, U(325713u));
    p = U(171132797u) - mul_hi(u, p);
    p = U(1387196611u) - mul_hi(u, p);
    p = U(3373259412u) - mul_hi(u, p);
    return mul_hi(g, p);
}

// Box and Muller's transform in integers, because floats differ between devices: a draw from the normal
// distribution, times 2^21, of two random words. Both an even and an odd draw come from each pair.
fn normal_bits(word: U, angle: U, odd: U) -> I {
    // -log(u) in 27 bits of fraction, u = v / 2^32.
    let v = word | U(1u);
    let zeros = countLeadingZeros(v);
    let t = (v << zeros) << U(1u);
    let whole = (zeros + U(1u)) * U(93032640u);
    let log = whole - min(whole, (mul_hi(t, log_ratio(t)) + U(16u)) >> U(5u));
    // sqrt(2 * log) in 28: that of a number in [1, 2) times a power of two, whose root may be sqrt(2) off.
    let shift = min(countLeadingZeros(log), U(31u));
    let m = (log << shift) << U(1u);
    let root = U(0x80000000u) + (mul_hi(m, sqrt_ratio(m)) >> U(1u));
    let even = select(root >> U(1u), mul_hi(root, U(3037000500u)), (shift & U(1u)) == U(0u));
    let radius = select(even >> (shift >> U(1u)), U(0u), log == U(0u));
    // The angle: two bits of quarter, the rest within it.
    let quarter = (angle >> U(30u)) + U(1u) - odd;
    let f = (angle << U(2u)) | U(2u);
    let side = sin_quarter(select(f, U(0u) - f, (quarter & U(1u)) == U(1u)));
    let z = bitcast<I>((mul_hi(radius, side) + U(32u)) >> U(6u));
    return select(z, -z, (quarter & U(2u)) == U(2u));
}

// Below 2^24, so that the conversion is exact, as is the product.
fn normal_float(z: I) -> F {
    return F(z) * F(4.76837158203125e-7);
}

// Element `index` of a stream of normal numbers.
fn philox_normal_word(index: U, seed_lo: U, seed_hi: U, offset_lo: U, offset_hi: U) -> F {
    let x = philox_at(index, seed_lo, seed_hi, offset_lo, offset_hi);
    let upper = (index & U(2u)) == U(2u);
    return normal_float(normal_bits(select(x.a, x.c, upper), select(x.b, x.d, upper), index & U(1u)));
}

fn philox_normal(index: U, seed_lo: U, seed_hi: U, offset_lo: U, offset_hi: U) -> F {
    return philox_normal_word(index, seed_lo, seed_hi, offset_lo, offset_hi);
}

fn philox_normal4(i: vec4<u32>, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>) -> vec4<f32> {
    if one_block(i, a, b, c, d) {
        let x = philox_at(i.x, a.x, b.x, c.x, d.x);
        let odd = vec4<u32>(0u, 1u, 0u, 1u);
        return normal_float4(normal_bits4(vec4<u32>(x.a, x.a, x.c, x.c), vec4<u32>(x.b, x.b, x.d, x.d), odd));
    }
    return philox_normal_word4(i, a, b, c, d);
}
