// The cross-entropy of each row of a contiguous [outer, n, inner] of logits x under its target, the number of a class, in an
// I32 [outer, inner] of whatever strides; its gradient; and the losses' mean.
//
// Without MEAN or GRADIENT: [3, outer, inner] with the losses, log(sum(exp(x))) - x[target], and two numbers of each row for the
// way back: its greatest element and log(sum(exp(x - greatest))). The loss of a target to be ignored is 0. EVEN: part of
// each target is spread evenly over the classes.
// GRADIENT: (softmax(x) - target) * scale in the logits' shape; SCALED: with a scale for each row, in a [outer, inner] of
// whatever strides, or else 1. Where a target is to be ignored the scale is 0.
// MEAN: of losses x, `rows` of them side by side, the mean over targets that count, and one over the number of these.
//
// X_PRE: x is computed, not read. T_AT, S_AT, C_AT: bindings of targets, stats and scales.
// Who computes a row: see softmax.wgsl, whose defines these are; a gradient is computed in loops. A mean is one workgroup's.
//! variant row in registers: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=3 VEC=0 PAIRS=0 ITEM=f32 WHOLE=0 POLYNOMIAL=1 T_AT=3
//! variant row in registers, vec4, even: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=4 EVEN=1 AGAIN=1 VEC=1 PAIRS=1 ITEM=vec2<u64> WHOLE=1 POLYNOMIAL=0 T_AT=3
//! variant row, vec4: WIDTH=64 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 VEC=1 PAIRS=0 ITEM=vec4<f32> WHOLE=1 POLYNOMIAL=0 T_AT=3
//! variant subgroup, registers, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 VEC=1 PAIRS=1 ITEM=vec2<u64> WHOLE=1 POLYNOMIAL=1 T_AT=3
//! variant subgroup, even: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=0 EVEN=1 AGAIN=1 VEC=0 PAIRS=0 ITEM=f32 WHOLE=0 POLYNOMIAL=1 T_AT=3
//! variant group, registers: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=3 VEC=1 PAIRS=0 ITEM=vec4<f32> WHOLE=0 POLYNOMIAL=0 T_AT=3
//! variant group, even: WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 EVEN=1 AGAIN=1 VEC=1 PAIRS=0 ITEM=vec4<f32> WHOLE=1 POLYNOMIAL=0 T_AT=3
//! variant group, long: WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=2 CHUNKS=0 VEC=0 PAIRS=0 ITEM=f32 WHOLE=0 POLYNOMIAL=0 T_AT=3
//! variant gradient, row: GRADIENT=1 SCALED=1 WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=1 T_AT=3 S_AT=4 C_AT=5
//! variant gradient, group, vec4: GRADIENT=1 SCALED=0 EVEN=1 WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=1 POLYNOMIAL=0 T_AT=3 S_AT=4
//! variant gradient, group, long: GRADIENT=1 SCALED=1 EVEN=1 WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=2 CHUNKS=0 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0 T_AT=3 S_AT=4 C_AT=5
//! variant mean, subgroup: MEAN=1 AGAIN=1 WIDTH=8 TEAM=1 SUBGROUP=1 VEC=1 PAIRS=0 ITEM=vec4<f32>
//! variant mean, group: MEAN=1 AGAIN=1 WIDTH=256 TEAM=1 SUBGROUP=0 VEC=0 PAIRS=0 ITEM=f32
//! variant subgroup, registers, computed, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 X_PRE=1 T_AT=2 VEC=1 PAIRS=1 ITEM=vec2<u64> WHOLE=1 POLYNOMIAL=1
//! variant gradient, row, computed: GRADIENT=1 SCALED=1 WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 X_PRE=1 T_AT=2 S_AT=3 C_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=1

#import nan

struct Params {
    rows: u32,
    n: u32,
    inner: u32,
    // Offsets of the inputs, and strides of those that have any.
    x_offset: u32,
    target_offset: u32,
    target_outer: u32,
    target_inner: u32,
    stats_offset: u32,
    scale_offset: u32,
    scale_outer: u32,
    scale_inner: u32,
    // The target that does not count, if there is one.
    ignores: u32,
    ignored: i32,
    // What a target counts at its class, and at every class.
    hard: f32,
    even: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
#if MEAN
@group(0) @binding(2) var<storage, read> x: array<${ITEM}>;
#if VEC
@group(0) @binding(3) var<storage, read> targets: array<vec4<i32>>;
#else
@group(0) @binding(3) var<storage, read> targets: array<i32>;
#endif
#else
#for X x at in X x 2
#include operand
#end
#prologue
@group(0) @binding(${T_AT}) var<storage, read> targets: array<i32>;
#if GRADIENT
@group(0) @binding(${S_AT}) var<storage, read> stats: array<f32>;
#if SCALED
@group(0) @binding(${C_AT}) var<storage, read> scales: array<f32>;
#endif
#endif
#endif
#epilogue
#status

#if MEAN
#include joined

@compute @workgroup_size(${WIDTH})
fn mean(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    var sums = vec4<f32>();
    var counts = vec4<f32>();
    // `| group.x >> 31` is nothing; see shaders/parts/row.wgsl.
    let rows = params.rows | (group.x >> 31u);
    let ignores = vec4<bool>(params.ignores != 0u);
    let ignored = vec4<i32>(params.ignored);
#if VEC
    for (var i = index * 4u; i < rows; i += ${WIDTH}u * 4u) {
        sums += x[(params.x_offset + i) / 4u];
        let classes = targets[(params.target_offset + i) / 4u];
        counts += select(vec4<f32>(1.0), vec4<f32>(), ignores & (classes == ignored));
    }
#else
    for (var i = index; i < rows; i += ${WIDTH}u) {
        sums.x += x[params.x_offset + i];
        let place = i / params.inner * params.target_outer + i % params.inner * params.target_inner;
        let class_of = targets[params.target_offset + place];
        counts.x += select(1.0, 0.0, ignores.x & (class_of == ignored.x));
    }
#endif
    let sum = sum_of(index, sums);
    let count = sum_of(index, counts);
    if index == 0u {
        store(0u, select(sum / count, nan(), count == 0.0));
        store(1u, 1.0 / count);
    }
}
#else
// How far apart a row's elements are.
fn apart() -> u32 {
    return params.inner;
}

#include rows

#if GRADIENT
#include keep
#else
#include joined
#endif

@compute @workgroup_size(${WIDTH})
fn cross_entropy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
#include row
    let lead = row / params.inner;
    let column = row % params.inner;
    let class_of = targets[params.target_offset + lead * params.target_outer + column * params.target_inner];
    let counts = (params.ignores == 0u) | (class_of != params.ignored);
#if GRADIENT
    let most = stats[params.stats_offset + params.rows + row];
    let lost = stats[params.stats_offset + 2u * params.rows + row];
#if SCALED
    let given = scales[params.scale_offset + lead * params.scale_outer + column * params.scale_inner];
    let scale = select(0.0, given, counts);
#else
    let scale = select(0.0, 1.0, counts);
#endif
    let hard = vec4<f32>(params.hard * scale);
#if EVEN
    let even = params.even * scale;
#endif
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
            let hit = vec4<u32>(j, j + 1u, j + 2u, j + 3u) == vec4<u32>(u32(class_of));
            let share = exp_of((load_x(base, j) - most) - lost) * scale;
#if EVEN
            keep(base, j, (share - even) - select(vec4<f32>(), hard, hit));
#else
            keep(base, j, share - select(vec4<f32>(), hard, hit));
#endif
        }
#end
    }
#else
    var sums = vec4<f32>();
#include exponentials
#if TEAM
    if index > 0u {
        return;
    }
#endif
    let lost = w_log(sum);
    let within = u32(class_of) < params.n;
    let at = params.x_offset + base + select(0u, u32(class_of), within) * params.inner;
#if VEC
    let own = x_four(at / 4u * 4u)[at % 4u] - most;
#else
    let own = x_one(at) - most;
#endif
#if EVEN
    let loss = (lost - own * params.hard) - rest * params.even;
#else
    let loss = lost - own;
#endif
    if counts & !within {
        report_bad_index();
    }
    store(row, select(0.0, loss, counts & within));
    store(params.rows + row, most);
    store(2u * params.rows + row, lost);
#endif
}
#endif
