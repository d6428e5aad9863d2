// Elements of rows of a contiguous [outer, n, inner], read by fours: `x` from `params.x_offset` on. For the defines see softmax.wgsl.

// Below this, exp gives zero: the smallest normal number's logarithm. (Some drivers never reach zero.)
const LEAST = vec4<f32>(-87.33654);

// exp of what is not above 0.
fn exp_or_zero(v: vec4<f32>) -> vec4<f32> {
#if POLYNOMIAL
    // Cephes' expf.
    let c = select(v, LEAST, v < LEAST);
    let n = round(c * 1.44269504088896341);
    let r = (c - n * 0.693359375) + n * 2.12194440e-4;
    var y = r * 1.9875691500e-4 + 1.3981999507e-3;
    y = y * r + 8.3334519073e-3;
    y = y * r + 4.1665795894e-2;
    y = y * r + 1.6666665459e-1;
    y = y * r + 5.0000001201e-1;
    y = (y * r * r + r + 1.0) * bitcast<vec4<f32>>((vec4<i32>(n) + 127) << vec4<u32>(23u));
    return select(y, vec4<f32>(), v < LEAST);
#else
    return select(exp(v), vec4<f32>(), v < LEAST);
#endif
}

#include fours

fn load_x(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return x[place(params.x_offset + base, j)];
#else
    let i = places(params.x_offset + base, j);
    return vec4<f32>(x[i.x], x[i.y], x[i.z], x[i.w]);
#endif
}
