// softmax and log_softmax over the middle dimension of a contiguous [outer, n, inner], and their gradients:
// softmax's is (g - sum(g * y)) * y, log_softmax's g - exp(y) * sum(g), where y is the result.
//
// A row (n elements, `inner` apart) belongs to one invocation or to a whole workgroup (TEAM), whose invocations take
// turns by fours; with SUBGROUP the workgroup is one subgroup. It is kept in CHUNKS vec4s of each invocation, or read
// anew in each of the loops over it (CHUNKS is 0).
// UNROLL: how many vec4s a turn of a loop takes (more than one for rows past the turns that software drivers grant).
// LOG: log_softmax. BACKWARD: gradient. VEC: rows are read in vec4s. WHOLE: by which none is cut short. WIDTH: size of
// a workgroup. POLYNOMIAL: exp in plain arithmetic, which is faster than what software drivers have.
//! variant row in registers: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=0 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant row in registers, log, vec4: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=4 LOG=1 BACKWARD=0 VEC=1 VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant row in registers, gradient: WIDTH=8 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=1 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant row, vec4: WIDTH=64 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=0 BACKWARD=0 VEC=1 VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant row, log, gradient: WIDTH=64 TEAM=0 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant subgroup, registers, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=0 BACKWARD=0 VEC=1 VEC4=1 WHOLE=1 POLYNOMIAL=1
//! variant subgroup, registers, log: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=1 BACKWARD=0 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=1
//! variant subgroup, registers, gradient, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=2 LOG=0 BACKWARD=1 VEC=1 VEC4=1 WHOLE=0 POLYNOMIAL=0
//! variant subgroup, log: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=0 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=1
//! variant subgroup, gradient, vec4: WIDTH=8 TEAM=1 SUBGROUP=1 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 VEC=1 VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant group, registers, vec4: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=0 BACKWARD=0 VEC=1 VEC4=1 WHOLE=0 POLYNOMIAL=0
//! variant group, registers, log, gradient: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=3 LOG=1 BACKWARD=1 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant group, log, vec4: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=0 VEC=1 VEC4=1 WHOLE=1 POLYNOMIAL=0
//! variant group, long: WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=2 CHUNKS=0 LOG=0 BACKWARD=0 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant group, gradient: WIDTH=64 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=0 BACKWARD=1 VEC=0 VEC4=0 WHOLE=0 POLYNOMIAL=0
//! variant group, log, gradient, vec4: WIDTH=256 TEAM=1 SUBGROUP=0 UNROLL=1 CHUNKS=0 LOG=1 BACKWARD=1 VEC=1 VEC4=1 WHOLE=1 POLYNOMIAL=0

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
// Where the elements j.. of the row at `base` lie; past its end, its last ones again.
fn place(base: u32, j: u32) -> u32 {
#if WHOLE
    return (base + j) / 4u;
#else
    return (base + min(j, params.n - 4u)) / 4u;
#endif
}
#else
// Where the elements j.. of the row at `base` lie; past its end, its last one again.
fn places(base: u32, j: u32) -> vec4<u32> {
    return base + min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(params.n - 1u)) * params.inner;
}
#endif

fn load_x(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return x[place(params.x_offset + base, j)];
#else
    let i = places(params.x_offset + base, j);
    return vec4<f32>(x[i.x], x[i.y], x[i.z], x[i.w]);
#endif
}

#if BACKWARD
fn load_y(base: u32, j: u32) -> vec4<f32> {
#if VEC
    return y[place(params.y_offset + base, j)];
#else
    let i = places(params.y_offset + base, j);
    return vec4<f32>(y[i.x], y[i.y], y[i.z], y[i.w]);
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
    return g - exp_or_zero(y) * sum;
#else
    return (g - sum) * y;
#endif
}
#endif

fn keep(base: u32, j: u32, v: vec4<f32>) {
#if VEC
#if WHOLE
    store4((base + j) / 4u, v);
#else
    if j < params.n {
        store4((base + j) / 4u, v);
    }
#endif
#else
#for c in 0..4
    if j + ${c}u < params.n {
        store(base + (j + ${c}u) * params.inner, v[${c}]);
    }
#end
#endif
}

#if TEAM
#if SUBGROUP
#else
var<workgroup> shared_values: array<f32, ${WIDTH}>;
#endif
#endif

#if BACKWARD
#else
// The row's greatest; of NaN and a number either, as the sum of exponentials will be NaN all the same.
fn most_of(index: u32, v: vec4<f32>) -> f32 {
    let own = max(max(v.x, v.y), max(v.z, v.w));
#if TEAM
#if SUBGROUP
    return subgroupMax(own);
#else
    shared_values[index] = own;
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            shared_values[index] = max(shared_values[index], shared_values[index + half]);
        }
        workgroupBarrier();
    }
    let most = shared_values[0];
    workgroupBarrier();
    return most;
#endif
#else
    return own;
#endif
}
#endif

// The row's sum.
fn sum_of(index: u32, v: vec4<f32>) -> f32 {
    let own = (v.x + v.y) + (v.z + v.w);
#if TEAM
#if SUBGROUP
    return subgroupAdd(own);
#else
    shared_values[index] = own;
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            shared_values[index] += shared_values[index + half];
        }
        workgroupBarrier();
    }
    return shared_values[0];
#endif
#else
    return own;
#endif
}

@compute @workgroup_size(${WIDTH})
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let number = (group.z * grid.y + group.y) * grid.x + group.x;
#if TEAM
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
    var sums = vec4<f32>();
#if CHUNKS
#if BACKWARD
#for i in 0..${CHUNKS}
    let g${i} = load_x(base, first + ${i}u * STEP);
    let y${i} = load_y(base, first + ${i}u * STEP);
    sums += only(first + ${i}u * STEP, term(g${i}, y${i}));
#end
    let sum = sum_of(index, sums);
#for i in 0..${CHUNKS}
    keep(base, first + ${i}u * STEP, gradient(g${i}, y${i}, sum));
#end
#else
    // Elements past the end repeat others, which does not change the greatest.
#for i in 0..${CHUNKS}
    let v${i} = load_x(base, first + ${i}u * STEP);
#end
    var greatest = v0;
#for i in 1..${CHUNKS}
    greatest = max(greatest, v${i});
#end
    let most = most_of(index, greatest);
#for i in 0..${CHUNKS}
    let e${i} = exp_or_zero(v${i} - most);
    sums += only(first + ${i}u * STEP, e${i});
#end
    let sum = sum_of(index, sums);
#if LOG
    let lost = log(sum);
#for i in 0..${CHUNKS}
    keep(base, first + ${i}u * STEP, (v${i} - most) - lost);
#end
#else
    let each = 1.0 / sum;
#for i in 0..${CHUNKS}
    keep(base, first + ${i}u * STEP, e${i} * each);
#end
#endif
#endif
#else
    // `| row >> 31` is nothing, but makes of n more than a uniform: for those, some software drivers compile
    // the kernel anew at each dispatch.
    let n = params.n | (row >> 31u);
#if BACKWARD
#else
    var greatest = load_x(base, 0u);
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        greatest = max(greatest, load_x(base, start + STEP * ${u}u));
#end
    }
    let most = most_of(index, greatest);
#endif
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
#if BACKWARD
            sums += only(j, term(load_x(base, j), load_y(base, j)));
#else
            sums += only(j, exp_or_zero(load_x(base, j) - most));
#endif
        }
#end
    }
    let sum = sum_of(index, sums);
#if BACKWARD
#else
#if LOG
    let lost = log(sum);
#else
    let each = 1.0 / sum;
#endif
#endif
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
            keep(base, j, exp_or_zero(load_x(base, j) - most) * each);
#endif
#endif
        }
#end
    }
#endif
}
