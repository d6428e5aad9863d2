// Functions whose builtins differ between drivers in accuracy or at the edges. Polynomials are those of Cephes
// (expf, logf, sinf) or minimax fits; each stays within a few units in the last place.

// 2^n for -126 <= n <= 127.
fn exp2_int(n: I) -> F {
    return bitcast<F>((n + I(127)) << U(23u));
}

// y * 2^n for -252 <= n <= 254: in two steps, so that the result may be infinite or subnormal.
fn scale_exp2(y: F, n: I) -> F {
    let half = n >> U(1u);
    return y * exp2_int(half) * exp2_int(n - half);
}

// exp(r) - 1 for |r| <= ln(2) / 2.
fn expm1_near(r: F) -> F {
    var y = r * F(1.9875691500e-4) + F(1.3981999507e-3);
    y = y * r + F(8.3334519073e-3);
    y = y * r + F(4.1665795894e-2);
    y = y * r + F(1.6666665459e-1);
    y = y * r + F(5.0000001201e-1);
    return y * r * r + r;
}

fn w_exp(x: F) -> F {
    // Beyond these the result is 0 or infinite.
    let c = clamp(x, F(-104.0), F(89.0));
    let n = round(c * F(1.44269504088896341));
    let r = (c - n * F(0.693359375)) + n * F(2.12194440e-4);
    let y = scale_exp2(expm1_near(r) + F(1.0), I(n));
    return select(y, x, is_nan(x));
}

// exp of what is not above 0: zero below the smallest normal number, which some drivers' exp never reaches. Others make a number
// of NaN, or find it less than a number.
fn exp_or_zero(x: F) -> F {
    return select(select(exp(x), F(0.0), x < F(-87.33654)), x, is_nan(x));
}

// The same in plain arithmetic.
fn plain_exp_or_zero(x: F) -> F {
    let least = F(-87.33654);
    let c = select(x, least, x < least);
    let n = round(c * F(1.44269504088896341));
    let r = (c - n * F(0.693359375)) + n * F(2.12194440e-4);
    let y = (expm1_near(r) + F(1.0)) * exp2_int(I(n));
    return select(select(y, F(0.0), x < least), x, is_nan(x));
}

fn w_expm1(x: F) -> F {
    return select(w_exp(x) - F(1.0), expm1_near(x), abs(x) < F(0.3465));
}

// log(1 + m) + e * log(2) for sqrt(1/2) <= 1 + m <= sqrt(2).
fn log_near(m: F, e: F) -> F {
    let z = m * m;
    var y = m * F(7.0376836292e-2) - F(1.1514610310e-1);
    y = y * m + F(1.1676998740e-1);
    y = y * m - F(1.2420140846e-1);
    y = y * m + F(1.4249322787e-1);
    y = y * m - F(1.6668057665e-1);
    y = y * m + F(2.0000714765e-1);
    y = y * m - F(2.4999993993e-1);
    y = y * m + F(3.3333331174e-1);
    y = y * m * z - e * F(2.12194440e-4) - F(0.5) * z;
    return (m + y) + e * F(0.693359375);
}

struct Parts {
    // Within sqrt(1/2) and sqrt(2), times 2^e.
    m: F,
    e: F,
}

// A positive finite number, taken apart. Subnormal ones come by their bits: arithmetic may flush them.
fn parts(x: F) -> Parts {
    let raw = bitcast<U>(x);
    let tiny = raw < U(0x00800000u);
    let bits = select(raw, bitcast<U>(F(raw)), tiny);
    let shifted = bits - U(0x3f3504f3u);
    let e = I(shifted) >> U(23u);
    let m = bitcast<F>(bits - (bitcast<U>(e) << U(23u)));
    return Parts(m, F(e) - select(F(0.0), F(149.0), tiny));
}

// (The builtin makes a number of NaN on some drivers.)
fn w_log(x: F) -> F {
    let p = parts(x);
    let y = log_near(p.m - F(1.0), p.e);
    let bits = bitcast<U>(x);
    let edge = select(select(x, nan(), is_negative(x)), -inf(), (bits << U(1u)) == U(0u));
    // Finite and positive.
    return select(edge, y, (bits - U(1u)) < U(0x7f7fffffu));
}

fn w_log1p(x: F) -> F {
    let near = (x > F(-0.29)) & (x < F(0.41));
    return select(w_log(F(1.0) + x), log_near(x, F(0.0)), near);
}

fn w_sigmoid(x: F) -> F {
    return F(1.0) / (F(1.0) + w_exp(-x));
}

fn w_tanh(x: F) -> F {
    let c = clamp(x, F(-9.0), F(9.0));
    let z = c * c;
    var p = z * F(-2.76076847742355e-16) + F(2.00018790482477e-13);
    p = p * z + F(-8.60467152213735e-11);
    p = p * z + F(5.12229709037114e-08);
    p = p * z + F(1.48572235717979e-05);
    p = p * z + F(6.37261928875436e-04);
    p = p * z + F(4.89352455891786e-03);
    var q = z * F(1.19825839466702e-06) + F(1.18534705686654e-04);
    q = q * z + F(2.26843463243900e-03);
    q = q * z + F(4.89352518554385e-03);
    let y = clamp(c * p / q, F(-1.0), F(1.0));
    return select(y, x, is_nan(x) | (abs(x) < F(0.0004)));
}

fn w_erf(x: F) -> F {
    // erf(3.83) differs from 1 by less than a float can say.
    let c = clamp(x, F(-3.8325068569), F(3.8325068569));
    let z = c * c;
    var p = z * F(0.00022905065861350646) + F(0.0034082910107109506);
    p = p * z + F(0.050955695062380861);
    p = p * z + F(0.18520832239976145);
    p = p * z + F(1.128379143519084);
    var q = z * F(-1.1791602954361697e-7) + F(0.000023547966471313185);
    q = q * z + F(0.0010179625278914885);
    q = q * z + F(0.014070470171167667);
    q = q * z + F(0.11098505178285362);
    q = q * z + F(0.49746925110067538);
    q = q * z + F(1.0);
    return select(clamp(c * p / q, F(-1.0), F(1.0)), x, is_nan(x));
}

// The upper 12 bits of the significand: products of two such are exact.
fn upper(x: F) -> F {
    return bitcast<F>(bitcast<U>(x) & U(0xfffff000u));
}

// |x|^y for finite x != 0 and finite y: 2^(y log2 |x|), the logarithm in two floats, because y magnifies its error.
fn pow_magnitude(x: F, y: F) -> F {
    let p = parts(abs(x));
    // log2(m) = 2 / ln(2) * atanh(s), s = (m - 1) / (m + 1) = sh + sl
    let a = p.m - F(1.0);
    let d = p.m + F(1.0);
    let dh = upper(d);
    let dl = (d - dh) + (p.m - (d - F(1.0)));
    let s = a / d;
    let sh = upper(s);
    let sl = ((a - sh * dh) - sh * dl) / d;
    let z = s * s;
    var t = z * F(0.0769230769) + F(0.0909090909);
    t = t * z + F(0.1111111111);
    t = t * z + F(0.1428571429);
    t = t * z + F(0.2);
    t = t * z + F(0.3333333333);
    t = t * z;
    let hi = sh * F(2.884765625);
    let lo = sh * F(6.24457037e-4) + (sl + s * t) * F(2.88539008);
    let lh = upper(p.e + (hi + lo));
    let ll = ((p.e - lh) + hi) + lo;
    let yh = upper(y);
    let ph = yh * lh;
    let pl = (y - yh) * lh + y * ll;
    let both = ph + pl;
    let n = round(clamp(both, F(-150.0), F(129.0)));
    let r = clamp((ph - n) + pl, F(-1.0), F(1.0)) * F(0.693147181);
    let value = scale_exp2(expm1_near(r) + F(1.0), I(n));
    return select(select(value, F(0.0), both < F(-150.0)), inf(), both > F(128.5));
}

// As IEEE 754's pow: a negative base has integer powers only, pow(x, 0) = pow(1, y) = 1 even of NaN.
fn w_pow(x: F, y: F) -> F {
    let ay = abs(y);
    let whole = floor(y) == y;
    let odd = whole & (ay < F(16777216.0)) & ((U(min(ay, F(16777215.0))) & U(1u)) == U(1u));
    let ax = abs(x);
    let grows = (ax > F(1.0)) == (y > F(0.0));
    // Zero and infinity, as base or exponent, give zero or infinity.
    let extreme = ((bitcast<U>(x) << U(1u)) == U(0u)) | is_inf(x) | is_inf(y);
    var r = select(pow_magnitude(x, y), select(F(0.0), inf(), grows), extreme);
    r = select(r, ax * ax, y == F(2.0));
    r = select(r, ax * ax * ax, y == F(3.0));
    r = select(r, ax, y == F(1.0));
    let negative = is_negative(x);
    r = select(r, -r, negative & odd);
    let undefined = negative & !whole & !is_inf(x) & ((bitcast<U>(x) << U(1u)) != U(0u));
    r = select(r, nan(), undefined | is_nan(x) | is_nan(y));
    return select(r, F(1.0), (y == F(0.0)) | (x == F(1.0)) | ((x == F(-1.0)) & is_inf(y)));
}

// Integer power; wraps. Of negative exponents only those of 1 and -1 are not 0.
fn w_powi(x: I, y: I) -> I {
    var r = I(1);
    var square = x;
    var left = bitcast<U>(y);
    for (var i = 0u; i < 32u; i += 1u) {
        r = select(r, r * square, (left & U(1u)) == U(1u));
        square = square * square;
        left = left >> U(1u);
    }
    let sign = select(I(1), I(-1), (y & I(1)) == I(1));
    let inverse = select(select(I(0), I(1), x == I(1)), sign, x == I(-1));
    return select(r, inverse, y < I(0));
}

// The remainder with the divisor's sign, as Python's `%`.
fn w_remainder(x: F, y: F) -> F {
    let q = trunc(x / y);
    // x - q * y, with exact products: `fma` need not be fused.
    let qh = upper(q);
    let ql = q - qh;
    let yh = upper(y);
    let yl = y - yh;
    var r = (((x - qh * yh) - qh * yl) - ql * yh) - ql * yl;
    // The quotient may be one off, when it is rounded to a whole number.
    r = select(r, r + abs(y), (r < F(0.0)) & (x > F(0.0)));
    r = select(r, r - abs(y), (r > F(0.0)) & (x < F(0.0)));
    r = select(r, x, is_inf(y) & is_finite(x));
    return select(r, r + y, (r != F(0.0)) & ((r < F(0.0)) != (y < F(0.0))));
}

// `x % y`, which OpenGL leaves open where either is negative.
fn rest_of(x: I, y: I) -> I {
    return select(x - x / y * y, I(0), y == I(0));
}

fn w_remainderi(x: I, y: I) -> I {
    let r = rest_of(x, y);
    return select(r, r + y, (r != I(0)) & ((r < I(0)) != (y < I(0))));
}

// The quotient rounded down.
fn w_floordivi(x: I, y: I) -> I {
    let q = x / y;
    return select(q, q - I(1), (rest_of(x, y) != I(0)) & ((x < I(0)) != (y < I(0))));
}

// An angle as a quarter turn's number and the rest, within pi / 4.
struct Turn {
    quarter: U,
    rest: F,
}

fn turn(x: F) -> Turn {
    let n = round(x * F(0.636619772367581343));
    let r = ((x - n * F(1.5703125)) - n * F(4.83751296997e-4)) - n * F(7.54978995489e-8);
    return Turn(bitcast<U>(I(n)), r);
}

fn sin_turn(t: Turn) -> F {
    let z = t.rest * t.rest;
    var s = z * F(-1.9515295891e-4) + F(8.3321608736e-3);
    s = s * z + F(-1.6666654611e-1);
    s = s * z * t.rest + t.rest;
    var c = z * F(2.443315711809948e-5) + F(-1.388731625493765e-3);
    c = c * z + F(4.166664568298827e-2);
    c = c * z * z - F(0.5) * z + F(1.0);
    let y = select(s, c, (t.quarter & U(1u)) == U(1u));
    return select(y, -y, (t.quarter & U(2u)) == U(2u));
}

fn w_sin(x: F) -> F {
    return select(sin_turn(turn(x)), nan(), !is_finite(x));
}

fn w_cos(x: F) -> F {
    let t = turn(x);
    return select(sin_turn(Turn(t.quarter + U(1u), t.rest)), nan(), !is_finite(x));
}
