// The elements of a row of params.n, by fours; they are apart() apart. For the defines see softmax.wgsl.

#if WHOLE
#else
// Which of the elements j.. of a row there are.
fn inside(j: u32) -> vec4<bool> {
    return vec4<u32>(j, j + 1u, j + 2u, j + 3u) < vec4<u32>(params.n);
}
#endif

// Zero for those of the elements j.. that there are not.
fn only(j: u32, v: vec4<f32>) -> vec4<f32> {
#if WHOLE
    return v;
#else
    return select(vec4<f32>(), v, inside(j));
#endif
}

#if VEC
#if PAIRS
#import pairs

fn four(v: vec2<u64>) -> vec4<f32> {
    return bitcast<vec4<f32>>(from_pairs(v));
}
#else
fn four(v: vec4<f32>) -> vec4<f32> {
    return v;
}
#endif

// Where the elements j.. of the row at `base` lie; past its end, its last ones again.
fn place(base: u32, j: u32) -> u32 {
#if WHOLE
    return base + j;
#else
    return base + min(j, params.n - 4u);
#endif
}
#else
// Where the elements j.. of the row at `base` lie; past its end, its last one again.
fn places(base: u32, j: u32) -> vec4<u32> {
    return base + min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(params.n - 1u)) * apart();
}
#endif
