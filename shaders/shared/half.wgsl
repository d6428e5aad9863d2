// Halves: arithmetic is done in single precision, and rounded to the nearest half.

fn from_halves(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}

// What is too large is infinite: for that, WGSL has no rule of its own.
fn to_halves(v: vec4<f32>) -> vec2<u32> {
    let w = select(v, vec4<f32>(inf()), v >= vec4<f32>(65520.0));
    let x = select(w, vec4<f32>(-inf()), v <= vec4<f32>(-65520.0));
    return vec2<u32>(pack2x16float(x.xy), pack2x16float(x.zw));
}

fn to_half(v: F) -> F {
    return from_halves(to_halves(vec4<f32>(v, 0.0, 0.0, 0.0))).x;
}

fn to_half4(v: vec4<f32>) -> vec4<f32> {
    return from_halves(to_halves(v));
}
