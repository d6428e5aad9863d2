// softmax and log_softmax over the middle dimension of a contiguous [outer, n, inner], and their gradients:
// softmax's is (g - sum(g * y)) * y, log_softmax's g - exp(y) * sum(g), where y is the result.
//
// A row (n elements, `inner` apart) belongs to one invocation or to a whole workgroup (TEAM), whose invocations take
// turns by fours; with SUBGROUP the workgroup is one subgroup. It is kept in CHUNKS vec4s of each invocation, or read
// anew in each of the loops over it (CHUNKS is 0).
// UNROLL: how many vec4s a turn of a loop takes (more than one for rows past the turns that software drivers grant).
// LOG: log_softmax. BACKWARD: gradient. VEC: rows are read in vec4s, which memory has as ITEM, two words of 64 bits if PAIRS.
// WHOLE: by which none is cut short. WIDTH: size of
// a workgroup. X_AT, Y_AT: bindings. X_PRE, Y_PRE: computed, not read. POLYNOMIAL: exp in plain arithmetic, which is faster than what software drivers have.
//! variant row in registers: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=0 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant row in registers, log, vec4: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=4 LOG=1 BACKWARD=0 X_AT=2 Y_AT=3 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant row in registers, gradient: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=1 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant row, vec4: WIDTH=64 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=0 BACKWARD=0 X_AT=2 Y_AT=3 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant row, log, gradient: WIDTH=64 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant subgroup, registers, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=0 BACKWARD=0 X_AT=2 Y_AT=3 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1 POLYNOMIAL=1
//! variant subgroup, registers, log: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=1 BACKWARD=0 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=1
//! variant subgroup, registers, gradient, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=0 BACKWARD=1 X_AT=2 Y_AT=3 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=0 POLYNOMIAL=0
//! variant subgroup, log: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=0 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=1
//! variant subgroup, gradient, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 X_AT=2 Y_AT=3 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant group, registers, vec4: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=0 X_AT=2 Y_AT=3 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=0 POLYNOMIAL=0
//! variant group, registers, log, gradient: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=1 BACKWARD=1 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant group, log, vec4: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=0 X_AT=2 Y_AT=3 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant group, long: WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=2 CHUNKS=0 LOG=0 BACKWARD=0 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant group, gradient: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=0 BACKWARD=1 X_AT=2 Y_AT=3 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant group, log, gradient, vec4: WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 X_AT=2 Y_AT=3 VEC=1 PAIRS=0 ITEM=vec4<f32> VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant row in registers, computed: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 X_AT=2 Y_AT=3 X_PRE=1 BACKWARD=0 VEC=0 PAIRS=0 ITEM=f32 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant subgroup, registers, gradient, computed, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=0 X_AT=2 Y_AT=2 X_PRE=1 Y_PRE=2 BACKWARD=1 VEC=1 PAIRS=1 ITEM=vec2<u64> VEC4=1 WHOLE=0 POLYNOMIAL=0

struct Params {
    rows: u32,
    n: u32,
    inner: u32,
    // Offsets of the inputs.
    x_offset: u32,
    y_offset: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// x is the input, or the gradient of the output, and y the output.
#for FLAG X x at in 1 X x ${X_AT}, BACKWARD Y y ${Y_AT}
#if ${FLAG}
#include operand
#endif
#end
#prologue
#epilogue

// How far apart a row's elements are.
fn apart() -> u32 {
    return params.inner;
}

#include rows

#if BACKWARD
fn load_y(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return y_four(place(params.y_offset + base, j));
#else
    let i = places(params.y_offset + base, j);
    return vec4<f32>(y_one(i.x), y_one(i.y), y_one(i.z), y_one(i.w));
#endif
}

// What is summed over the row.
fn term(g: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
#if LOG
    return g;
#else
    return g * y;
#endif
}

fn gradient(g: vec4<f32>, y: vec4<f32>, sum: f32) -> vec4<f32> {
#if LOG
    return g - exp_of(y) * sum;
#else
    return (g - sum) * y;
#endif
}
#endif

#include keep

#include joined

@compute @workgroup_size(${WIDTH})
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
#include row
    var sums = vec4<f32>();
#if BACKWARD
#if CHUNKS
#for i in 0..${CHUNKS}
    let g${i} = load_x(base, first + ${i}u * STEP);
    let y${i} = load_y(base, first + ${i}u * STEP);
    sums += only(first + ${i}u * STEP, term(g${i}, y${i}));
#end
#else
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
            sums += only(j, term(load_x(base, j), load_y(base, j)));
        }
#end
    }
#endif
    let sum = sum_of(index, sums);
#else
#include exponentials
#if LOG
    let lost = w_log(sum);
#else
    let each = 1.0 / sum;
#endif
#endif
#if CHUNKS
#for i in 0..${CHUNKS}
#if BACKWARD
    keep(base, first + ${i}u * STEP, gradient(g${i}, y${i}, sum));
#else
#if LOG
    keep(base, first + ${i}u * STEP, (v${i} - most) - lost);
#else
    keep(base, first + ${i}u * STEP, e${i} * each);
#endif
#endif
#end
#else
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
#if BACKWARD
            keep(base, j, gradient(load_x(base, j), load_y(base, j), sum));
#else
#if LOG
            keep(base, j, (load_x(base, j) - most) - lost);
#else
            keep(base, j, exp_of(load_x(base, j) - most) * each);
#endif
#endif
        }
#end
    }
#endif
}
