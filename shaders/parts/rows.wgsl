// Elements of rows of a contiguous [outer, n, inner], read by fours: `x` from `params.x_offset` on. For the defines see softmax.wgsl.

#import math

// exp of what is not above 0.
fn exp_of(v: vec4<f32>) -> vec4<f32> {
#if POLYNOMIAL
    return plain_exp_or_zero4(v);
#else
    return exp_or_zero4(v);
#endif
}

#include fours

fn load_x(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return x_four(place(params.x_offset + base, j));
#else
    let i = places(params.x_offset + base, j);
    return vec4<f32>(x_one(i.x), x_one(i.y), x_one(i.z), x_one(i.w));
#endif
}
