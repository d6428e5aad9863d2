// Part of a loop: the input x, at a binding, read in fours or one by one. For the defines see softmax.wgsl.
#if ${X}_PRE
// Computed by functions that take the place where each element would lie in memory.
#else
@group(0) @binding(${at}) var<storage, read> ${x}: array<${ITEM}>;

#if VEC
fn ${x}_four(at: u32) -> vec4<f32> {
    return four(${x}[at / 4u]);
}
#else
fn ${x}_one(at: u32) -> f32 {
    return ${x}[at];
}
#endif
#endif
