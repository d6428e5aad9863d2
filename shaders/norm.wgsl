// Normalised rows of a contiguous [rows, n]: (x - mean) / sqrt(variance + eps), of RMS x / sqrt(mean square + eps),
// times a weight and plus a bias for each column (layer_norm, rms_norm). In what follows v is x - mean (x for RMS),
// r one over the root, and h the gradient of the result times the weight.
// GRADIENT: the gradient of x, r * (h - mean(h) - v * r^2 * mean(h * v)); RMS has no mean(h).
// PARAMETERS: for each `each` rows sums over them of g * v * r, the weight's gradient, and of g, the bias's (BIAS):
// [parts, 1 or 2, n].
//
// A row belongs to one invocation or to a whole workgroup (TEAM), whose invocations take turns by fours; with SUBGROUP
// the workgroup is one subgroup. It is kept in CHUNKS vec4s of each invocation, or read anew in each of the loops
// over it (CHUNKS is 0). Each takes `each` rows in turn, with the same weights.
// UNROLL: how many vec4s a turn of a loop takes (more than one for rows past the turns that software drivers grant).
// G, WEIGHT, BIAS: whether there are any; ADDED: whether BIAS is an input, not asked for. X_AT, G_AT, W_AT, B_AT: bindings.
// X_PRE, G_PRE: computed, not read. For VEC, ITEM, PAIRS, WHOLE and WIDTH see softmax.wgsl.
//! variant row in registers: WIDTH=8 TEAM=0 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=3 GRADIENT=0 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=1 G=0 ADDED=1 G_AT=2 X_AT=2 W_AT=3 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant row in registers, gradient, vec4: WIDTH=8 TEAM=0 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=1 PARAMETERS=0 RMS=1 WEIGHT=1 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1
//! variant subgroup, registers, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=0 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=1 G=0 ADDED=1 G_AT=2 X_AT=2 W_AT=3 B_AT=4 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1
//! variant subgroup, registers, rms: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=0 PARAMETERS=0 RMS=1 WEIGHT=0 BIAS=0 G=0 ADDED=0 G_AT=2 X_AT=2 W_AT=3 B_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant subgroup, registers, gradient: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=1 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=0
//! variant subgroup, parameters: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=0 PARAMETERS=1 RMS=0 WEIGHT=0 BIAS=1 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=0
//! variant subgroup, parameters, rms: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=0 PARAMETERS=1 RMS=1 WEIGHT=0 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant subgroup: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=0 GRADIENT=0 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=1 G=0 ADDED=1 G_AT=2 X_AT=2 W_AT=3 B_AT=4 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1
//! variant group, registers: WIDTH=64 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=0 PARAMETERS=0 RMS=0 WEIGHT=0 BIAS=1 G=0 ADDED=1 G_AT=2 X_AT=2 W_AT=3 B_AT=3 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=0
//! variant group, registers, gradient: WIDTH=256 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=1 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant group, parameters: WIDTH=64 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=0 PARAMETERS=1 RMS=0 WEIGHT=0 BIAS=1 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant group: WIDTH=64 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=0 GRADIENT=0 PARAMETERS=0 RMS=1 WEIGHT=1 BIAS=0 G=0 ADDED=0 G_AT=2 X_AT=2 W_AT=3 B_AT=4 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=1
//! variant group, gradient: WIDTH=256 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=0 GRADIENT=1 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant group, long: WIDTH=256 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=2 CHUNKS=0 GRADIENT=0 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=1 G=0 ADDED=1 G_AT=2 X_AT=2 W_AT=3 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant group, long, gradient: WIDTH=256 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=2 CHUNKS=0 GRADIENT=1 PARAMETERS=0 RMS=0 WEIGHT=0 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=3 W_AT=4 B_AT=4 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0
//! variant subgroup, computed, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 AGAIN=1 UNROLL=1 CHUNKS=0 GRADIENT=0 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=1 G=0 ADDED=1 G_AT=2 X_AT=2 W_AT=2 B_AT=3 X_PRE=1 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1
//! variant group, registers, gradient, computed: WIDTH=256 TEAM=1 SUBGROUP=0 AGAIN=1 UNROLL=1 CHUNKS=2 GRADIENT=1 PARAMETERS=0 RMS=0 WEIGHT=1 BIAS=0 G=1 ADDED=0 G_AT=2 X_AT=2 W_AT=2 B_AT=3 X_PRE=2 G_PRE=1 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0

struct Params {
    rows: u32,
    n: u32,
    each: u32,
    // The bits of a float.
    eps: u32,
    // Offsets of the inputs.
    x_offset: u32,
    g_offset: u32,
    w_offset: u32,
    b_offset: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
#for FLAG X x at in 1 X x ${X_AT}, G G g ${G_AT}, WEIGHT W weight ${W_AT}, ADDED B bias ${B_AT}
#if ${FLAG}
#include operand
#endif
#end
#prologue
#epilogue

// How far apart a row's elements are.
fn apart() -> u32 {
    return 1u;
}

#include fours

#for FLAG input in 1 x, G g
#if ${FLAG}
fn load_${input}(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return only(j, ${input}_four(place(params.${input}_offset + base, j)));
#else
    let i = places(params.${input}_offset + base, j);
    return only(j, vec4<f32>(${input}_one(i.x), ${input}_one(i.y), ${input}_one(i.z), ${input}_one(i.w)));
#endif
}
#endif
#end

#for FLAG input offset in WEIGHT weight w_offset, ADDED bias b_offset
#if ${FLAG}
fn load_${input}(j: u32) -> vec4<f32> {
#if VEC
    return ${input}_four(place(params.${offset}, j));
#else
    let i = places(params.${offset}, j);
    return vec4<f32>(${input}_one(i.x), ${input}_one(i.y), ${input}_one(i.z), ${input}_one(i.w));
#endif
}
#endif
#end

#include keep

#include joined

@compute @workgroup_size(${WIDTH})
fn norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let number = (group.z * grid.y + group.y) * grid.x + group.x;
    // `| group.x >> 31` is nothing, but makes of a bound more than a uniform: for those, some software drivers
    // compile the kernel anew at each dispatch.
    let each = params.each | (group.x >> 31u);
    let n = params.n | (group.x >> 31u);
    let share = 1.0 / f32(params.n);
    let eps = bitcast<f32>(params.eps);
#if TEAM
    let begin = number * each;
    const STEP = ${WIDTH}u * 4u;
    let first = index * 4u;
#else
    let begin = (number * ${WIDTH}u + index) * each;
    const STEP = 4u;
    const first = 0u;
#endif
#for c in 0..${CHUNKS}
#if WEIGHT
    let weight${c} = load_weight(first + ${c}u * STEP);
#endif
#if PARAMETERS
    var weights${c} = vec4<f32>();
#if BIAS
    var biases${c} = vec4<f32>();
#endif
#else
#if BIAS
    let bias${c} = load_bias(first + ${c}u * STEP);
#endif
#endif
#end
    for (var turn = 0u; turn < each; turn += 1u) {
        let row = begin + turn;
        if row >= params.rows {
            break;
        }
        let base = row * params.n;
        var squares = vec4<f32>();
#if CHUNKS
#for c in 0..${CHUNKS}
        var v${c} = load_x(base, first + ${c}u * STEP);
#end
#if RMS
#else
        var sums = vec4<f32>();
#for c in 0..${CHUNKS}
        sums += v${c};
#end
        let mean = sum_of(index, sums) * share;
#for c in 0..${CHUNKS}
        v${c} = only(first + ${c}u * STEP, v${c} - mean);
#end
#endif
#for c in 0..${CHUNKS}
        squares += v${c} * v${c};
#end
        let r = 1.0 / sqrt(sum_of(index, squares) * share + eps);
#if GRADIENT
        var plain = vec4<f32>();
        var along = vec4<f32>();
#for c in 0..${CHUNKS}
#if WEIGHT
        let h${c} = load_g(base, first + ${c}u * STEP) * weight${c};
#else
        let h${c} = load_g(base, first + ${c}u * STEP);
#endif
        plain += h${c};
        along += h${c} * v${c};
#end
#if RMS
        const flat = 0.0;
#else
        let flat = sum_of(index, plain) * share;
#endif
        let slope = sum_of(index, along) * share * r * r;
#for c in 0..${CHUNKS}
        keep(base, first + ${c}u * STEP, ((h${c} - flat) - v${c} * slope) * r);
#end
#else
#if PARAMETERS
#for c in 0..${CHUNKS}
        let g${c} = load_g(base, first + ${c}u * STEP);
        weights${c} += g${c} * (v${c} * r);
#if BIAS
        biases${c} += g${c};
#endif
#end
#else
#for c in 0..${CHUNKS}
        {
            var y = v${c} * r;
#if WEIGHT
            y *= weight${c};
#endif
#if BIAS
            y += bias${c};
#endif
            keep(base, first + ${c}u * STEP, y);
        }
#end
#endif
#endif
#else
#if RMS
        const mean = 0.0;
#else
        var sums = vec4<f32>();
        for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
            sums += load_x(base, start + STEP * ${u}u);
#end
        }
        let mean = sum_of(index, sums) * share;
#endif
        for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
            {
                let v = only(start + STEP * ${u}u, load_x(base, start + STEP * ${u}u) - mean);
                squares += v * v;
            }
#end
        }
        let r = 1.0 / sqrt(sum_of(index, squares) * share + eps);
#if GRADIENT
        var plain = vec4<f32>();
        var along = vec4<f32>();
        for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
            {
                let j = start + STEP * ${u}u;
                let v = load_x(base, j) - mean;
#if WEIGHT
                let h = load_g(base, j) * load_weight(j);
#else
                let h = load_g(base, j);
#endif
                plain += h;
                along += h * v;
            }
#end
        }
#if RMS
        const flat = 0.0;
#else
        let flat = sum_of(index, plain) * share;
#endif
        let slope = sum_of(index, along) * share * r * r;
#endif
        for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
            {
                let j = start + STEP * ${u}u;
                let v = load_x(base, j) - mean;
#if GRADIENT
#if WEIGHT
                let h = load_g(base, j) * load_weight(j);
#else
                let h = load_g(base, j);
#endif
                keep(base, j, ((h - flat) - v * slope) * r);
#else
                var y = v * r;
#if WEIGHT
                y *= load_weight(j);
#endif
#if BIAS
                y += load_bias(j);
#endif
                keep(base, j, y);
#endif
            }
#end
        }
#endif
    }
#if PARAMETERS
#if BIAS
    let out = number * 2u * params.n;
#else
    let out = number * params.n;
#endif
#for c in 0..${CHUNKS}
    keep(out, first + ${c}u * STEP, weights${c});
#if BIAS
    keep(out + params.n, first + ${c}u * STEP, biases${c});
#endif
#end
#endif
}
