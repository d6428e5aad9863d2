// softmax and log_softmax over the middle dimension of a contiguous [outer, n, inner], and their gradients:
// softmax's is (g - sum(g * y)) * y, log_softmax's g - exp(y) * sum(g), where y is the result.
//
// A row (n elements, `inner` apart) belongs to one invocation, which keeps it in CHUNKS vec4s where it is short
// (CHUNKS is not 0), or to a whole workgroup (GROUP).
// UNROLL: how many vec4s a turn of a loop takes (more than one for rows past the turns that software drivers grant).
// LOG: log_softmax. BACKWARD: gradient. VEC: rows are read in vec4s. WIDTH: size of a workgroup.
//! variant row in registers: WIDTH=8 GROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=0 VEC=0 VEC4=0
//! variant row in registers, log, vec4: WIDTH=8 GROUP=0 UNROLL=1 CHUNKS=4 LOG=1 BACKWARD=0 VEC=1 VEC4=1
//! variant row in registers, gradient: WIDTH=8 GROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=1 VEC=0 VEC4=0
//! variant row, vec4: WIDTH=64 GROUP=0 UNROLL=1 CHUNKS=0 LOG=0 BACKWARD=0 VEC=1 VEC4=1
//! variant row, log, gradient: WIDTH=64 GROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 VEC=0 VEC4=0
//! variant group, log, vec4: WIDTH=64 GROUP=1 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=0 VEC=1 VEC4=1
//! variant group, long: WIDTH=256 GROUP=1 UNROLL=2 CHUNKS=0 LOG=0 BACKWARD=0 VEC=0 VEC4=0
//! variant group, gradient: WIDTH=64 GROUP=1 UNROLL=1 CHUNKS=0 LOG=0 BACKWARD=1 VEC=0 VEC4=0
//! variant group, log, gradient, vec4: WIDTH=256 GROUP=1 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 VEC=1 VEC4=1

struct Params {
    rows: u32,
    n: u32,
    inner: u32,
    // Offsets of the inputs.
    x_offset: u32,
    y_offset: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// The input, or the gradient of the output.
#if VEC
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
#else
@group(0) @binding(2) var<storage, read> x: array<f32>;
#endif
#if BACKWARD
#if VEC
@group(0) @binding(3) var<storage, read> y: array<vec4<f32>>;
#else
@group(0) @binding(3) var<storage, read> y: array<f32>;
#endif
#endif
#epilogue

// Below this, exp gives zero: the smallest normal number's logarithm. (Some drivers never reach zero.)
fn exp_or_zero(v: vec4<f32>) -> vec4<f32> {
    return select(exp(v), vec4<f32>(), v < vec4<f32>(-87.33655));
}

// Which of the elements j.. of a row there are.
fn inside(j: u32) -> vec4<bool> {
    return vec4<u32>(j, j + 1u, j + 2u, j + 3u) < vec4<u32>(params.n);
}

// Where the elements j.. of the row at `base` lie; past its end, its last one again.
fn places(base: u32, j: u32) -> vec4<u32> {
    return base + min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(params.n - 1u)) * params.inner;
}

fn load_x(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return x[(params.x_offset + base + j) / 4u];
#else
    let i = places(params.x_offset + base, j);
    return vec4<f32>(x[i.x], x[i.y], x[i.z], x[i.w]);
#endif
}

#if BACKWARD
fn load_y(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return y[(params.y_offset + base + j) / 4u];
#else
    let i = places(params.y_offset + base, j);
    return vec4<f32>(y[i.x], y[i.y], y[i.z], y[i.w]);
#endif
}

// What is summed over the row.
fn term(base: u32, j: u32) -> vec4<f32> {
#if LOG
    return load_x(base, j);
#else
    return load_x(base, j) * load_y(base, j);
#endif
}

fn gradient(g: vec4<f32>, y: vec4<f32>, sum: f32) -> vec4<f32> {
#if LOG
    return g - exp_or_zero(y) * sum;
#else
    return (g - sum) * y;
#endif
}
#else
fn result(v: vec4<f32>, most: f32, sum: f32) -> vec4<f32> {
#if LOG
    return (v - most) - log(sum);
#else
    return exp_or_zero(v - most) / sum;
#endif
}
#endif

fn keep(base: u32, j: u32, v: vec4<f32>) {
#if VEC
    store4((base + j) / 4u, v);
#else
#for c in 0..4
    if j + ${c}u < params.n {
        store(base + (j + ${c}u) * params.inner, v[${c}]);
    }
#end
#endif
}

// The greatest; of NaN and a number either, as the sum of exponentials will be NaN all the same.
fn most_of(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

fn sum_of(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

#if GROUP
var<workgroup> shared_values: array<f32, ${WIDTH}>;
#endif

@compute @workgroup_size(${WIDTH})
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let number = (group.z * grid.y + group.y) * grid.x + group.x;
#if GROUP
    let row = number;
    const STEP = ${WIDTH}u * 4u;
    let first = index * 4u;
#else
    let row = number * ${WIDTH}u + index;
    const STEP = 4u;
    const first = 0u;
#endif
    if row >= params.rows {
        return;
    }
    let base = row / params.inner * params.n * params.inner + row % params.inner;
    // `| row >> 31` is nothing, but makes of n more than a uniform: for those, some software drivers compile
    // the kernel anew at each dispatch.
    let n = params.n | (row >> 31u);
#if CHUNKS
#if BACKWARD
    var sums = vec4<f32>();
#for i in 0..${CHUNKS}
    let g${i} = load_x(base, ${i}u * 4u);
    let y${i} = load_y(base, ${i}u * 4u);
#if LOG
    sums += select(vec4<f32>(), g${i}, inside(${i}u * 4u));
#else
    sums += select(vec4<f32>(), g${i} * y${i}, inside(${i}u * 4u));
#endif
#end
    let sum = sum_of(sums);
#for i in 0..${CHUNKS}
    keep(base, ${i}u * 4u, gradient(g${i}, y${i}, sum));
#end
#else
    // Elements past the end repeat the last one, which does not change the greatest.
#for i in 0..${CHUNKS}
    let v${i} = load_x(base, ${i}u * 4u);
#end
    var greatest = v0;
#for i in 1..${CHUNKS}
    greatest = max(greatest, v${i});
#end
    let most = most_of(greatest);
    var sums = vec4<f32>();
#for i in 0..${CHUNKS}
    sums += select(vec4<f32>(), exp_or_zero(v${i} - most), inside(${i}u * 4u));
#end
    let sum = sum_of(sums);
#for i in 0..${CHUNKS}
    keep(base, ${i}u * 4u, result(v${i}, most, sum));
#end
#endif
#else
#if BACKWARD
#else
    var greatest = load_x(base, 0u);
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
            greatest = max(greatest, load_x(base, j));
        }
#end
    }
#if GROUP
    shared_values[index] = most_of(greatest);
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            shared_values[index] = max(shared_values[index], shared_values[index + half]);
        }
        workgroupBarrier();
    }
    let most = shared_values[0];
    workgroupBarrier();
#else
    let most = most_of(greatest);
#endif
#endif
    var sums = vec4<f32>();
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
#if BACKWARD
            sums += select(vec4<f32>(), term(base, j), inside(j));
#else
            sums += select(vec4<f32>(), exp_or_zero(load_x(base, j) - most), inside(j));
#endif
        }
#end
    }
#if GROUP
    shared_values[index] = sum_of(sums);
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            shared_values[index] += shared_values[index + half];
        }
        workgroupBarrier();
    }
    let sum = shared_values[0];
#else
    let sum = sum_of(sums);
#endif
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
#if BACKWARD
            keep(base, j, gradient(load_x(base, j), load_y(base, j), sum));
#else
            keep(base, j, result(load_x(base, j), most, sum));
#endif
        }
#end
    }
#endif
}
