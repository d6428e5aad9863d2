// Pools over windows of images, and their gradients. An invocation computes several results, WIDTH apart.
//
// Of x [planes, size_h, size_w], for each window: MAX the greatest, INDEX the number of the greatest in its plane (of
// NaNs the last, of equals the first), AVERAGE the mean. Of g [planes, windows_h, windows_w], for each element of the
// image: SPREAD the shares of the windows' means, SCATTER the sum of the windows whose index it is (y are indices),
// FIRST the same where windows do not overlap, found again in the image (y), by window.
// SQUARES: windows of 2 x 2 side by side, so many at a time, if PAIRS two, read in vec4s; MAX, AVERAGE, or FIRST.
// UNROLL: taps in each turn of the inner loop, for windows past the turns that software drivers grant.
//! variant max: R=f32 MAX=1 UNROLL=1 WIDTH=64
//! variant max, unrolled: R=f32 MAX=1 UNROLL=2 WIDTH=8
//! variant index: R=i32 INDEX=1 UNROLL=1 WIDTH=8
//! variant average: R=f32 AVERAGE=1 UNROLL=1 WIDTH=8
//! variant spread: R=f32 SPREAD=1 UNROLL=1 WIDTH=64
//! variant scatter: R=f32 SCATTER=1 UNROLL=1 WIDTH=8
//! variant first: R=f32 FIRST=1 UNROLL=1 WIDTH=8
//! variant max, two squares: R=f32 MAX=1 SQUARES=2 PAIRS=1 UNROLL=1 WIDTH=8 IMAGE=x
//! variant average, two squares: R=f32 AVERAGE=1 SQUARES=2 PAIRS=1 UNROLL=1 WIDTH=8 IMAGE=x
//! variant average, squares: R=f32 AVERAGE=1 SQUARES=1 UNROLL=1 WIDTH=8 IMAGE=x
//! variant first, two squares: R=f32 FIRST=1 SQUARES=2 PAIRS=1 UNROLL=1 WIDTH=64 VEC4=1 IMAGE=y
//! variant first, squares: R=f32 FIRST=1 SQUARES=1 UNROLL=1 WIDTH=8 VEC4=0 IMAGE=y

struct Params {
    // Results: of planes, rows and columns (of so many windows, if they are squares).
    units: u32,
    units_h: u32,
    units_w: u32,
    // How many an invocation computes, and how far in planes, rows and columns the next one is.
    turns: u32,
    next_plane: u32,
    next_y: u32,
    next_x: u32,
    size_h: u32,
    size_w: u32,
    windows_h: u32,
    windows_w: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: u32,
    stride_w: u32,
    padding_h: u32,
    padding_w: u32,
    dilation_h: u32,
    dilation_w: u32,
    // What a mean is divided by: this, if not 0; else the window's size, with padding if `count_padding`.
    divisor: u32,
    count_padding: u32,
    x_offset: u32,
    y_offset: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
#import nan
#if PAIRS
#if FIRST
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> y: array<vec4<f32>>;
#else
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
#endif
#else
@group(0) @binding(2) var<storage, read> x: array<f32>;
#if SCATTER
@group(0) @binding(3) var<storage, read> y: array<i32>;
#endif
#if FIRST
@group(0) @binding(3) var<storage, read> y: array<f32>;
#endif
#endif
#epilogue

#if SQUARES
// Neighbours in a row of the image: four, or (the others are zeros) two.
fn four(at: u32) -> vec4<f32> {
#if PAIRS
    return ${IMAGE}[at / 4u];
#else
    return vec4<f32>(${IMAGE}[at], ${IMAGE}[at + 1u], 0.0, 0.0);
#endif
}
#else
// What the mean of the window at (h, w) is divided by. Where padding counts, that past the last window's reach does
// not.
fn divisor(h: u32, w: u32) -> f32 {
    if params.divisor > 0u {
        return f32(params.divisor);
    }
    let begin = vec2<i32>(vec2<u32>(h * params.stride_h, w * params.stride_w)) - vec2<i32>(vec2<u32>(params.padding_h, params.padding_w));
    let size = vec2<i32>(vec2<u32>(params.size_h, params.size_w));
    let end = min(begin + vec2<i32>(vec2<u32>(params.kernel_h, params.kernel_w)), size + vec2<i32>(vec2<u32>(params.padding_h, params.padding_w)));
    let whole = end - begin;
    let part = min(end, size) - max(begin, vec2<i32>());
    let counted = select(part, whole, params.count_padding > 0u);
    return f32(counted.x * counted.y);
}

// The first and the end of the windows along a dimension that an element is in, if they have no gaps.
fn windows_of(at: u32, kernel: u32, stride: u32, padding: u32, dilation: u32, count: u32) -> vec2<u32> {
    let reach = (kernel - 1u) * dilation;
    let past = at + padding;
    let first = (max(past, reach) - reach + stride - 1u) / stride;
    return vec2<u32>(first, min(past / stride + 1u, count));
}
#endif

@compute @workgroup_size(${WIDTH})
fn pool(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (group.z * grid.y + group.y) * grid.x + group.x;
    // Always zero, but not made of uniforms only: where loops' bounds are, some software drivers compile the kernel
    // anew at each dispatch.
    let zero = number >> 31u;
    var unit = number * (${WIDTH}u * params.turns) + lane;
    let row = unit / params.units_w;
    var plane = row / params.units_h;
    var h = row - plane * params.units_h;
    var w = unit - row * params.units_w;
    let turns = params.turns + zero;
    for (var turn = 0u; turn < turns; turn++) {
        if unit >= params.units {
            return;
        }
#if SQUARES
        let image = (plane * params.size_h + 2u * h) * params.size_w + 2u * ${SQUARES}u * w;
        let next_row = image + params.size_w;
        let window = (plane * params.windows_h + h) * params.windows_w + ${SQUARES}u * w;
#if FIRST
        let above = four(params.y_offset + image);
        let below = four(params.y_offset + next_row);
        var to_above: vec4<f32>;
        var to_below: vec4<f32>;
#else
        let above = four(params.x_offset + image);
        let below = four(params.x_offset + next_row);
#endif
#for i in 0..${SQUARES}
        {
            let c0 = above[2 * ${i}];
            let c1 = above[2 * ${i} + 1];
            let c2 = below[2 * ${i}];
            let c3 = below[2 * ${i} + 1];
#if FIRST
            // The first that is greatest, or the last NaN.
            let t1 = c1 > c0 || is_nan(c1);
            let m1 = select(c0, c1, t1);
            let t2 = c2 > m1 || is_nan(c2);
            let m2 = select(m1, c2, t2);
            let t3 = c3 > m2 || is_nan(c3);
            let g = x[params.x_offset + window + ${i}u];
            to_above[2 * ${i}] = select(g, 0.0, t1 || t2 || t3);
            to_above[2 * ${i} + 1] = select(0.0, g, t1 && !t2 && !t3);
            to_below[2 * ${i}] = select(0.0, g, t2 && !t3);
            to_below[2 * ${i} + 1] = select(0.0, g, t3);
#endif
#if MAX
            store(window + ${i}u, max_nan(max_nan(c0, c2), max_nan(c1, c3)));
#endif
#if AVERAGE
            store(window + ${i}u, (c0 + c2) * 0.25 + (c1 + c3) * 0.25);
#endif
        }
#end
#if FIRST
#for at from in image to_above, next_row to_below
#if VEC4
        store4(${at} / 4u, ${from});
#else
#for i in 0..2
        store(${at} + ${i}u, ${from}[${i}]);
#end
#endif
#end
#endif
#else
#if SPREAD
        let rows = windows_of(h, params.kernel_h, params.stride_h, params.padding_h, 1u, params.windows_h);
        let columns = windows_of(w, params.kernel_w, params.stride_w, params.padding_w, 1u, params.windows_w);
        var sum = 0.0;
        let base = params.x_offset + plane * params.windows_h * params.windows_w;
        for (var r = rows.x; r < rows.y; r++) {
            for (var q = columns.x; q < columns.y; q += ${UNROLL}u) {
#for i in 0..${UNROLL}
                if q + ${i}u < columns.y {
                    sum += x[base + r * params.windows_w + q + ${i}u] / divisor(r, q + ${i}u);
                }
#end
            }
        }
        store(unit, sum);
#endif
#if SCATTER
        let rows = windows_of(h, params.kernel_h, params.stride_h, params.padding_h, params.dilation_h, params.windows_h);
        let columns = windows_of(w, params.kernel_w, params.stride_w, params.padding_w, params.dilation_w, params.windows_w);
        var sum = 0.0;
        let base = plane * params.windows_h * params.windows_w;
        let own = i32(h * params.size_w + w);
        for (var r = rows.x; r < rows.y; r++) {
            for (var q = columns.x; q < columns.y; q += ${UNROLL}u) {
#for i in 0..${UNROLL}
                {
                    let at = base + r * params.windows_w + min(q + ${i}u, columns.y - 1u);
                    if q + ${i}u < columns.y && y[params.y_offset + at] == own {
                        sum += x[params.x_offset + at];
                    }
                }
#end
            }
        }
        store(unit, sum);
#else
#if SPREAD
#else
        // A window's elements.
#if FIRST
        let base = params.y_offset + plane * params.size_h * params.size_w;
#else
        let base = params.x_offset + plane * params.size_h * params.size_w;
#endif
        // Above and to the left of the image these wrap around and are past its end.
        let top = h * params.stride_h - params.padding_h;
        let left = w * params.stride_w - params.padding_w;
        let kernel_h = params.kernel_h + zero;
        let kernel_w = params.kernel_w + zero;
        var most = 0.0;
        var which = 0u;
        var any = false;
        var sum = 0.0;
        for (var r = 0u; r < kernel_h; r++) {
            let i = top + r * params.dilation_h;
            for (var q = 0u; q < kernel_w; q += ${UNROLL}u) {
#for u in 0..${UNROLL}
                {
                    let j = left + (q + ${u}u) * params.dilation_w;
                    let inside = i < params.size_h && j < params.size_w && q + ${u}u < kernel_w;
                    let at = select(0u, i * params.size_w + j, inside);
#if FIRST
                    let v = y[base + at];
#else
                    let v = x[base + at];
#endif
#if AVERAGE
                    sum += select(0.0, v, inside);
#else
                    let taken = inside && (!any || v > most || is_nan(v));
                    most = select(most, v, taken);
                    which = select(which, at, taken);
                    any = any || inside;
#endif
                }
#end
            }
        }
#if MAX
        store(unit, most);
#endif
#if INDEX
        store(unit, i32(which));
#endif
#if AVERAGE
        store(unit, sum / divisor(h, w));
#endif
#if FIRST
        // What lies between this window and the next belongs to it.
        let there = h < params.windows_h && w < params.windows_w;
        let g_at = (plane * params.windows_h + min(h, params.windows_h - 1u)) * params.windows_w + min(w, params.windows_w - 1u);
        let g = select(0.0, x[params.x_offset + g_at], there);
        for (var r = 0u; r < params.stride_h + zero; r++) {
            let i = top + r;
            for (var q = 0u; q < params.stride_w + zero; q++) {
                let j = left + q;
                if i < params.size_h && j < params.size_w {
                    let at = i * params.size_w + j;
                    store(plane * params.size_h * params.size_w + at, select(0.0, g, any && which == at));
                }
            }
        }
#endif
#endif
#endif
#endif
        unit += ${WIDTH}u;
        w += params.next_x;
        let turn_w = w >= params.units_w;
        w -= select(0u, params.units_w, turn_w);
        h += params.next_y + select(0u, 1u, turn_w);
        let turn_h = h >= params.units_h;
        h -= select(0u, params.units_h, turn_h);
        plane += params.next_plane + select(0u, 1u, turn_h);
    }
}
