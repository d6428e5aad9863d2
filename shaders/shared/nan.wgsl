// NaN and infinity by their bits: drivers may fold `x != x`, and WGSL has no literals for either.

fn is_nan(x: F) -> B {
    return (bitcast<U>(x) & U(0x7fffffffu)) > U(0x7f800000u);
}

fn is_inf(x: F) -> B {
    return (bitcast<U>(x) & U(0x7fffffffu)) == U(0x7f800000u);
}

fn is_finite(x: F) -> B {
    return (bitcast<U>(x) & U(0x7fffffffu)) < U(0x7f800000u);
}

// The sign bit, of zeros and NaN as well.
fn is_negative(x: F) -> B {
    return bitcast<U>(x) > U(0x7fffffffu);
}

// A function, because a constant expression must not give NaN or infinity.
fn from_bits(bits: U) -> F {
    return bitcast<F>(bits);
}

fn inf() -> F {
    return from_bits(U(0x7f800000u));
}

fn nan() -> F {
    return from_bits(U(0x7fc00000u));
}

// The same number, which no compiler can tell: of the NaNs one becomes another. Drivers fold `x - x` to zero and
// `(x + y) - x` to `y`, which they are not where x is infinite or NaN, nor where y is lost in the sum.
fn opaque(x: F) -> F {
    return bitcast<F>(select(bitcast<U>(x), U(0x7fc00000u), bitcast<U>(x) == U(0x7fc0ffeeu)));
}

// Of two numbers the larger; NaN if either is, as PyTorch's.
fn max_nan(x: F, y: F) -> F {
    return select(select(max(x, y), y, is_nan(y)), x, is_nan(x));
}

fn min_nan(x: F, y: F) -> F {
    return select(select(min(x, y), y, is_nan(y)), x, is_nan(x));
}
