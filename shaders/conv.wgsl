// Convolutions and their gradients as products of matrices, without the matrix of taps in memory.
//
// Unless WEIGHT: out[image, group, row, place] = sum over taps and channels of w[group, row, channel, tap] *
// x[image, group, channel, place * mul + tap * step + off], where that is inside. The gradient by the input is of this
// form too, for each remainder of places by the stride. Columns are the places of all images.
// WEIGHT: out[part, group, row, (channel, tap)] = sum over the part's places of y[image, group, row, place] *
// x[image, group, channel, place * mul + tap * step + off]; `w` is y.
//
// LANES: registers only; each of WIDTH invocations computes ROWS rows of 4 columns. STEP: channels in each turn.
// SUBGROUP: WIDTH is 8 and so is a subgroup; w's elements, which all lanes need, are loaded by one lane each (LOADS of
// them). TILES: workgroup memory; 64 invocations compute tiles of 32 * PIECES squared; FOURS: four terms so many times are multiplied in a turn; QUICK: see `quotient`. DOT: a
// workgroup of WIDTH for each element of a WEIGHT. A_SUMS: y's rows are added up, too.
// A_VEC: w is read in vec4s: along its channels (places, if WEIGHT), or along its rows if A_BY_ROW. B_VEC: x is read in
// vec4s: there is one tap, and it is where the place is. PAIRS: both in words of 64 bits. VEC4: the output is stored in
// vec4s.
// DIV: places have a source only where they are multiples of a stride, and it is their quotient.
//! variant lanes, subgroups, channels contiguous: LANES=1 WEIGHT=0 WIDTH=8 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 STEP=4 A_VEC=1 A_BY_ROW=0 B_VEC=0 VEC4=1
//! variant lanes, subgroups, rows contiguous: LANES=1 WEIGHT=0 WIDTH=8 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 STEP=4 A_VEC=1 A_BY_ROW=1 B_VEC=0 VEC4=1
//! variant lanes, subgroups, any strides: LANES=1 WEIGHT=0 WIDTH=8 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 STEP=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 VEC4=0
//! variant lanes, one tap: LANES=1 WEIGHT=0 WIDTH=8 SUBGROUP=0 ROWS=8 LOADS=8 STEP=4 A_VEC=1 A_BY_ROW=0 B_VEC=1 VEC4=1
//! variant lanes, rows contiguous: LANES=1 WEIGHT=0 WIDTH=8 SUBGROUP=0 ROWS=8 LOADS=8 STEP=4 A_VEC=1 A_BY_ROW=1 B_VEC=0 VEC4=0
//! variant lanes, one row: LANES=1 WEIGHT=0 WIDTH=64 SUBGROUP=0 ROWS=1 LOADS=1 STEP=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 VEC4=1
//! variant lanes, divided: LANES=1 WEIGHT=0 WIDTH=8 SUBGROUP=0 ROWS=8 LOADS=8 STEP=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 DIV=1 VEC4=0
//! variant tiles: TILES=1 WEIGHT=0 PIECES=2 FOURS=1 VEC4=1
//! variant small tiles: TILES=1 WEIGHT=0 PIECES=1 FOURS=4 QUICK=1 VEC4=0
//! variant small tiles, divided: TILES=1 WEIGHT=0 PIECES=1 FOURS=4 DIV=1 VEC4=0
//! variant weight, lanes, subgroups: LANES=1 WEIGHT=1 WIDTH=8 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 STEP=4 A_VEC=1 A_BY_ROW=0 B_VEC=0 VEC4=1
//! variant weight, lanes, subgroups, sums: LANES=1 WEIGHT=1 WIDTH=8 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 STEP=4 A_VEC=1 A_BY_ROW=0 B_VEC=0 VEC4=1 A_SUMS=1
//! variant weight, lanes, any: LANES=1 WEIGHT=1 WIDTH=8 SUBGROUP=0 ROWS=8 LOADS=8 STEP=4 A_VEC=0 A_BY_ROW=0 B_VEC=0 VEC4=0
//! variant weight, lanes, any, sums: LANES=1 WEIGHT=1 WIDTH=8 SUBGROUP=0 ROWS=8 LOADS=8 STEP=4 A_VEC=0 A_BY_ROW=0 B_VEC=0 VEC4=0 A_SUMS=1
//! variant weight, tiles: TILES=1 WEIGHT=1 PIECES=2 FOURS=1 QUICK=1 VEC4=1
//! variant weight, tiles, sums: TILES=1 WEIGHT=1 PIECES=2 FOURS=1 QUICK=1 VEC4=1 A_SUMS=1
//! variant weight, small tiles: TILES=1 WEIGHT=1 PIECES=1 FOURS=4 VEC4=0
//! variant weight, small tiles, sums: TILES=1 WEIGHT=1 PIECES=1 FOURS=4 VEC4=0 A_SUMS=1
//! variant weight, dot products: DOT=1 WEIGHT=1 WIDTH=64 VEC4=0

#import loops
#if PAIRS
#import pairs
#endif

struct Params {
    // Rows of a group, and columns.
    rows: u32,
    columns: u32,
    // Terms of each sum; of a WEIGHT, those of a part.
    depth: u32,
    // Workgroups' tiles: along rows, along columns, and in all groups and parts together.
    tiles_m: u32,
    tiles_n: u32,
    tiles: u32,
    groups: u32,
    images: u32,
    // Of a group of x.
    channels: u32,
    source_h: u32,
    source_w: u32,
    // Places of an image that are computed, or of y.
    places_h: u32,
    places_w: u32,
    taps_h: u32,
    taps_w: u32,
    // Where taps are; steps back wrap around.
    mul_y: u32,
    mul_x: u32,
    off_y: u32,
    off_x: u32,
    step_y: u32,
    step_x: u32,
    // The output's image, and where the first place is in it and the next ones.
    out_h: u32,
    out_w: u32,
    out_y: u32,
    out_x: u32,
    out_step_y: u32,
    out_step_x: u32,
    x_offset: u32,
    w_offset: u32,
    w_row: u32,
    w_channel: u32,
    w_y: u32,
    w_x: u32,
    w_group: u32,
    // DIV: the stride by which a place must be divisible to have a source.
    div_y: u32,
    div_x: u32,
    // Inverses of channels, taps_w, places_w and places_h.
    per_channel: f32,
    per_tap: f32,
    per_place: f32,
    per_line: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
#for X x at in B x 2, A w 3
#if ${X}_VEC
#if PAIRS
@group(0) @binding(${at}) var<storage, read> ${x}: array<vec2<u64>>;

fn ${x}_four(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(from_pairs(${x}[at / 4u]));
}
#else
@group(0) @binding(${at}) var<storage, read> ${x}: array<vec4<f32>>;

fn ${x}_four(at: u32) -> vec4<f32> {
    return ${x}[at / 4u];
}
#endif
#else
@group(0) @binding(${at}) var<storage, read> ${x}: array<f32>;
#endif
#end
#epilogue at

// Four places: where they are in their image, times `mul`, plus `off`; and where their group's image begins in x.
struct Places {
    image: vec4<u32>,
    y: vec4<u32>,
    x: vec4<u32>,
}

// The places of this number and the three after it; those past the last are the last.
fn places_at(first: u32) -> Places {
    let all = params.images * params.places_h * params.places_w;
    let n = min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(all - 1u));
    let row = n / params.places_w;
    let image = row / params.places_h;
    return Places(image, row - image * params.places_h, n - row * params.places_w);
}

fn area() -> u32 {
    return params.source_h * params.source_w;
}

// Coordinates in x; those without a source are past its end.
fn divided(t: vec4<u32>, by: u32) -> vec4<u32> {
#if DIV
    return select(vec4<u32>(0xffffffffu), t / by, (t % by == vec4<u32>()) & (t < vec4<u32>(0x80000000u)));
#else
    return t;
#endif
}

#if WEIGHT
// Four columns: their offsets from a place in x, and those of their coordinates.
struct Taps {
    at: vec4<u32>,
    y: vec4<u32>,
    x: vec4<u32>,
}

fn taps_at(first: u32) -> Taps {
    let n = min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(params.columns - 1u));
    let row = n / params.taps_w;
    let channel = row / params.taps_h;
    let y = (row - channel * params.taps_h) * params.step_y + params.off_y;
    let x = (n - row * params.taps_w) * params.step_x + params.off_x;
    return Taps(channel * area() + y * params.source_w + x, y, x);
}

// Where a group's images begin.
fn source(group: u32, image: u32) -> u32 {
    return params.x_offset + (image * params.groups + group) * params.channels * area();
}

// The first element of the output in this part and group.
fn out_place(batch: u32) -> u32 {
    return batch * params.rows * params.columns;
}
#else
// The first elements of the output's row 0 at some columns.
fn out_places(group: u32, p: Places) -> vec4<u32> {
    return (p.image * params.groups + group) * params.rows * params.out_h * params.out_w
        + (p.y * params.out_step_y + params.out_y) * params.out_w + p.x * params.out_step_x + params.out_x;
}
#endif

#if LANES
@compute @workgroup_size(${WIDTH})
fn lanes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
#if SUBGROUP
    @builtin(subgroup_invocation_id) lane: u32,
#else
    @builtin(local_invocation_index) lane: u32,
#endif
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    // Tiles of the same columns follow each other, so that what they read of x stays near.
    let row = tile % params.tiles_m * ${ROWS}u;
    let col = tile / params.tiles_m % params.tiles_n * (4u * ${WIDTH}u) + lane * 4u;
    let batch = tile / (params.tiles_m * params.tiles_n);
    var acc: array<vec4<f32>, ${ROWS}>;
#if A_SUMS
    var a_sums: array<vec4<f32>, ${LOADS}>;
#endif
#if WEIGHT
    let g = batch % params.groups;
    let begin = batch / params.groups * params.depth;
    let all = params.images * params.places_h * params.places_w;
    let end = bound(min(begin + params.depth, all), tile);
    let taps = taps_at(col);
    // Four steps ahead, in images, rows and columns.
    let next_row = 4u / params.places_w;
    let next_x = 4u % params.places_w;
    let next_image = next_row / params.places_h;
    let next_y = next_row % params.places_h;
    var p = places_at(begin);
    for (var k = begin; k < end; k += 4u) {
        let alive = vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(end);
        let base = params.x_offset + (p.image * params.groups + g) * (params.channels * area())
            + p.y * (params.mul_y * params.source_w) + p.x * params.mul_x;
        let y = p.y * params.mul_y;
        let x0 = p.x * params.mul_x;
#for i in 0..4
        let inside${i} = (y + taps.y[${i}] < vec4<u32>(params.source_h)) & (x0 + taps.x[${i}] < vec4<u32>(params.source_w)) & alive;
        let at${i} = select(vec4<u32>(params.x_offset), base + taps.at[${i}], inside${i});
        let t${i} = select(vec4<f32>(), vec4<f32>(x[at${i}.x], x[at${i}.y], x[at${i}.z], x[at${i}.w]), inside${i});
#end
#for q in 0..4
        let y${q} = vec4<f32>(t0[${q}], t1[${q}], t2[${q}], t3[${q}]);
#end
        let plane = params.places_h * params.places_w;
        let w_at = params.w_offset + (p.image * params.groups + g) * (params.rows * plane) + p.y * params.places_w + p.x;
        var e: array<vec4<f32>, ${LOADS}>;
#for i in 0..${LOADS}
        {
#if SUBGROUP
            let r = min(row + ${i}u * 8u + lane, params.rows - 1u) * plane;
#else
            let r = min(row + ${i}u, params.rows - 1u) * plane;
#endif
#if A_VEC
            e[${i}] = w_four(w_at.x + r);
#else
            e[${i}] = select(vec4<f32>(), vec4<f32>(w[w_at.x + r], w[w_at.y + r], w[w_at.z + r], w[w_at.w + r]), alive);
#endif
#if A_SUMS
            a_sums[${i}] += e[${i}];
#endif
        }
#end
#for r in 0..${ROWS}
        {
#if SUBGROUP
            let f = subgroupBroadcast(e[${r}u / 8u], ${r}u % 8u);
#else
            let f = e[${r}];
#endif
            var s = acc[${r}];
#for q in 0..4
            s = fma(vec4<f32>(f[${q}]), y${q}, s);
#end
            acc[${r}] = s;
        }
#end
        p.x += next_x;
        let turn_x = p.x >= vec4<u32>(params.places_w);
        p.x -= select(vec4<u32>(), vec4<u32>(params.places_w), turn_x);
        p.y += next_y + select(vec4<u32>(), vec4<u32>(1u), turn_x);
        let turn_y = p.y >= vec4<u32>(params.places_h);
        p.y -= select(vec4<u32>(), vec4<u32>(params.places_h), turn_y);
        p.image += next_image + select(vec4<u32>(), vec4<u32>(1u), turn_y);
    }
    let out_at = out_place(batch);
#if A_SUMS
    // Rows' sums, by tiles of the first columns. A lane has those that it has loads of: every eighth row, or all.
    if tile / params.tiles_m % params.tiles_n == 0u {
#if SUBGROUP
        var sums: vec4<f32>;
#for i in 0..${LOADS}
        sums[${i}] = (a_sums[${i}].x + a_sums[${i}].y) + (a_sums[${i}].z + a_sums[${i}].w);
#end
        for (var i = 0u; i < bound(${LOADS}u, tile); i++) {
            let r = row + i * 8u + lane;
            if r < params.rows {
                store_sum(batch * params.rows + r, sums.x);
            }
            sums = sums.yzwx;
        }
#else
        var own = a_sums[0];
#for i in 1..${ROWS}
        own = select(own, a_sums[${i}], lane == ${i}u);
#end
        if lane < ${ROWS}u && row + lane < params.rows {
            store_sum(batch * params.rows + row + lane, (own.x + own.y) + (own.z + own.w));
        }
#endif
    }
#endif
#else
    let p = places_at(col);
    let base = params.x_offset + (p.image * params.groups + batch) * (params.channels * area());
    let y0 = p.y * params.mul_y + params.off_y;
    let x0 = p.x * params.mul_x + params.off_x;
    let taps_h = bound(params.taps_h, tile);
    let taps_w = bound(params.taps_w, tile);
    let channels = bound(params.channels, tile);
    for (var r = 0u; r < taps_h; r++) {
        let y = divided(y0 + r * params.step_y, params.div_y);
        let inside_y = y < vec4<u32>(params.source_h);
        for (var q = 0u; q < taps_w; q++) {
            let x1 = divided(x0 + q * params.step_x, params.div_x);
            let inside = inside_y & (x1 < vec4<u32>(params.source_w));
            // Outside, anything that is there is read.
            var at = select(vec4<u32>(params.x_offset), base + y * params.source_w + x1, inside);
            let ahead = area();
            var w_at = params.w_offset + batch * params.w_group + r * params.w_y + q * params.w_x;
            for (var c = 0u; c < channels; c += ${STEP}u) {
                var e: array<vec4<f32>, ${LOADS}>;
#if A_BY_ROW
                // Lane and load number the 4-row pieces of the tile, channel by channel.
#for i in 0..${LOADS}
                {
#if SUBGROUP
                    let piece = lane + ${i}u * 8u;
#else
                    let piece = ${i}u;
#endif
                    let r4 = min(row + piece % (${ROWS}u / 4u) * 4u, params.rows - 4u);
                    e[${i}] = w_four(w_at + r4 + piece / (${ROWS}u / 4u) * params.w_channel);
                }
#end
#else
#for i in 0..${LOADS}
                {
#if SUBGROUP
                    let r1 = min(row + ${i}u * 8u + lane, params.rows - 1u);
#else
                    let r1 = min(row + ${i}u, params.rows - 1u);
#endif
#if A_VEC
                    e[${i}] = w_four(w_at + r1 * params.w_row);
#else
                    e[${i}].x = w[w_at + r1 * params.w_row];
#endif
                }
#end
#endif
#for s in 0..${STEP}
#if B_VEC
                let v${s} = x_four(at.x + ${s}u * ahead);
#else
                let v${s} = select(vec4<f32>(), vec4<f32>(x[at.x + ${s}u * ahead], x[at.y + ${s}u * ahead], x[at.z + ${s}u * ahead], x[at.w + ${s}u * ahead]), inside);
#endif
#end
#if A_BY_ROW
#for s in 0..${STEP}
#for piece in 0..${ROWS}/4
                {
#if SUBGROUP
                    let f = subgroupBroadcast(e[(${s}u * (${ROWS}u / 4u) + ${piece}u) / 8u], (${s}u * (${ROWS}u / 4u) + ${piece}u) % 8u);
#else
                    let f = e[${s}u * (${ROWS}u / 4u) + ${piece}u];
#endif
#for i in 0..4
                    acc[${piece}u * 4u + ${i}u] = fma(vec4<f32>(f[${i}]), v${s}, acc[${piece}u * 4u + ${i}u]);
#end
                }
#end
#end
#else
#for i in 0..${ROWS}
                {
#if SUBGROUP
                    let f = subgroupBroadcast(e[${i}u / 8u], ${i}u % 8u);
#else
                    let f = e[${i}];
#endif
                    var sum = acc[${i}];
#for s in 0..${STEP}
                    sum = fma(vec4<f32>(f[${s}]), v${s}, sum);
#end
                    acc[${i}] = sum;
                }
#end
#endif
                at += vec4<u32>(${STEP}u * ahead);
                w_at += ${STEP}u * params.w_channel;
            }
        }
    }
    let out_at = out_places(batch, p);
    let plane = params.out_h * params.out_w;
#endif
    let rows = min(${ROWS}u, params.rows - row);
    for (var r = 0u; r < rows; r++) {
        // Indexing acc at run time would force it to memory, and storing row by row would be much code.
        var v = acc[0];
#for i in 1..${ROWS}
        v = select(v, acc[${i}], r == ${i}u);
#end
#if WEIGHT
        let i = vec4<u32>(0u, 1u, 2u, 3u) + (out_at + (row + r) * params.columns + col);
#else
        let i = out_at + (row + r) * plane;
#endif
#if VEC4
        if col < params.columns {
            store4_at(i.x / 4u, batch * params.rows + row + r, v);
        }
#else
        for (var c = 0u; c < min(4u, max(params.columns, col) - col); c++) {
            store_at(i[c], batch * params.rows + row + r, v[c]);
        }
#endif
    }
}
#endif

#if TILES
const WIDE: u32 = 8u * ${PIECES}u;

// By four terms, the term among these (which is known, so that it costs no arithmetic), and vec4s along rows and columns;
// one more, so that invocations that write neighbouring terms write to different banks.
#for x in a, b
var<workgroup> tile_${x}: array<array<array<vec4<f32>, WIDE + 1>, 4>, 4>;
#end

// The quotient of two numbers, of which `part` is the second's inverse. QUICK: the first is below 2^21, so that half a
// unit is more than what is lost in single precision.
fn quotient(n: u32, by: u32, part: f32) -> u32 {
#if QUICK
    return u32((f32(n) + 0.5) * part);
#else
    return n / by;
#endif
}

// While one tile's terms are multiplied, the next ones' are on their way to registers, and stay there as they were read:
// to replace those that are not inside would be to wait for them. Past the ends is read whatever lies there.
@compute @workgroup_size(64)
fn tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    let row = tile % params.tiles_m * (4u * WIDE);
    let col = tile / params.tiles_m % params.tiles_n * (4u * WIDE);
    let batch = tile / (params.tiles_m * params.tiles_n);
    let across = index % 8u;
    let down = index / 8u;
    var acc: array<vec4<f32>, 4 * ${PIECES} * ${PIECES}>;
    // Invocations side by side read terms side by side; of x, those of a convolution columns side by side.
    let l = index % 16u;
    let over = index / 16u;
#if WEIGHT
    let g = batch % params.groups;
    let begin = batch / params.groups * params.depth;
    let all = params.images * params.places_h * params.places_w;
    let end = min(begin + params.depth, all) + (tile >> 31u); // as bound() does, but seen to be uniform
    let step = params.places_h * params.places_w;
    let lines = params.w_offset + (g * params.rows + row + over * 4u) * step;
#for i in 0..2 * ${PIECES}
    let taps${i} = taps_at(col + (over + 4u * ${i}u) * 4u);
#end
#else
    let begin = 0u;
    let end = params.depth + (tile >> 31u);
    let step = params.w_row;
    let lines = params.w_offset + batch * params.w_group + (row + over * 4u) * step;
    let places = places_at(col + index % WIDE * 4u);
    let base = params.x_offset + (places.image * params.groups + batch) * (params.channels * area());
    let y0 = places.y * params.mul_y + params.off_y;
    let x0 = places.x * params.mul_x + params.off_x;
    let origin = base + y0 * params.source_w + x0;
#endif
#for i in 0..2 * ${PIECES}
#if A_SUMS
    var sums${i}: vec4<f32>;
#endif
    var a${i}: vec4<f32>;
    var b${i}: vec4<f32>;
    var inside${i}: vec4<bool>;
#end
    for (var k = begin; k < end + 16u; k += 16u) {
        if k < end {
            let term = k + l;
#if WEIGHT
            let line = quotient(term, params.places_w, params.per_place);
            let image = quotient(line, params.places_h, params.per_line);
            let py = line - image * params.places_h;
            let px = term - line * params.places_w;
            let first = lines + image * (params.groups * params.rows * step) + py * params.places_w + px;
            let place = source(g, image) + py * params.mul_y * params.source_w + px * params.mul_x;
            let sy = py * params.mul_y;
            let sx = px * params.mul_x;
#for i in 0..2 * ${PIECES}
            {
                let t = taps${i};
                inside${i} = (sy + t.y < vec4<u32>(params.source_h)) & (sx + t.x < vec4<u32>(params.source_w)) & vec4<bool>(term < end);
                let at = place + t.at;
                b${i} = vec4<f32>(x[at.x], x[at.y], x[at.z], x[at.w]);
            }
#end
#else
            // Terms are numbered by tap, then by channel.
            let tap = quotient(term, params.channels, params.per_channel);
            let tap_y = quotient(tap, params.taps_w, params.per_tap);
            let first = lines + tap_y * params.w_y + (tap - tap_y * params.taps_w) * params.w_x
                + (term - tap * params.channels) * params.w_channel;
#for i in 0..2 * ${PIECES}
            {
                let m = k + index / WIDE + (64u / WIDE) * ${i}u;
                let t = quotient(m, params.channels, params.per_channel);
                let ty = quotient(t, params.taps_w, params.per_tap);
                let dy = ty * params.step_y;
                let dx = (t - ty * params.taps_w) * params.step_x;
                let channel = (m - t * params.channels) * area();
#if DIV
                let y = divided(y0 + dy, params.div_y);
                let x1 = divided(x0 + dx, params.div_x);
                let at = base + channel + y * params.source_w + x1;
#else
                let y = y0 + dy;
                let x1 = x0 + dx;
                let at = origin + (channel + dy * params.source_w + dx);
#endif
                inside${i} = (y < vec4<u32>(params.source_h)) & (x1 < vec4<u32>(params.source_w)) & vec4<bool>(m < end);
                b${i} = vec4<f32>(x[at.x], x[at.y], x[at.z], x[at.w]);
            }
#end
#endif
#for i in 0..2 * ${PIECES}
            a${i} = vec4<f32>(
#for r in 0..4
                w[first + (16u * ${i}u + ${r}u) * step],
#end
            );
#end
        }
        if k > begin {
            for (var t = 0u; t < 4u; t += ${FOURS}u) {
#for u in 0..${FOURS}
#for i in 0..4
                {
#for p in 0..${PIECES}
                    let m${p} = tile_a[t + ${u}u][${i}][down + 8u * ${p}u];
                    let n${p} = tile_b[t + ${u}u][${i}][across + 8u * ${p}u];
#end
#for p in 0..${PIECES}
#for r in 0..4
#for q in 0..${PIECES}
                    acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u] = fma(vec4<f32>(m${p}[${r}]), n${q}, acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u]);
#end
#end
#end
                }
#end
#end
            }
        }
        workgroupBarrier();
        if k < end {
#for i in 0..2 * ${PIECES}
            let own${i} = select(vec4<f32>(), a${i}, k + l < end);
            tile_a[l / 4u][l % 4u][over + 4u * ${i}u] = own${i};
#if A_SUMS
            sums${i} += own${i};
#endif
#if WEIGHT
            tile_b[l / 4u][l % 4u][over + 4u * ${i}u] = select(vec4<f32>(), b${i}, inside${i});
#else
            {
                let deep = index / WIDE + (64u / WIDE) * ${i}u;
                tile_b[deep / 4u][deep % 4u][index % WIDE] = select(vec4<f32>(), b${i}, inside${i});
            }
#endif
#end
        }
        workgroupBarrier();
    }
#if A_SUMS
    // Sums of rows; each invocation has those of its terms.
#for i in 0..2 * ${PIECES}
    tile_a[l / 4u][l % 4u][over + 4u * ${i}u] = sums${i};
#end
    workgroupBarrier();
    if col == 0u && index < WIDE {
        var sums: vec4<f32>;
        for (var t = 0u; t < 4u; t++) {
            sums += (tile_a[t][0][index] + tile_a[t][1][index]) + (tile_a[t][2][index] + tile_a[t][3][index]);
        }
        for (var i = 0u; i < 4u; i++) {
            let r = row + index * 4u + i;
            if r < params.rows {
                store_sum(batch * params.rows + r, sums.x);
            }
            sums = sums.yzwx;
        }
    }
#endif
#for q in 0..${PIECES}
    {
        let first = col + (across + 8u * ${q}u) * 4u;
#if WEIGHT
        let out_at = vec4<u32>(0u, 1u, 2u, 3u) + (out_place(batch) + first);
#else
        let out_at = out_places(batch, places_at(first));
#endif
#for p in 0..${PIECES}
#for r in 0..4
        keep(out_at, batch, row + (down + 8u * ${p}u) * 4u + ${r}u, first, acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u]);
#end
#end
    }
#end
}

// Stores four elements of a row, as far as they are in the output.
fn keep(out_at: vec4<u32>, batch: u32, row: u32, col: u32, v: vec4<f32>) {
    if row < params.rows && col < params.columns {
#if WEIGHT
        let i = out_at + row * params.columns;
#else
        let i = out_at + row * params.out_h * params.out_w;
#endif
#if VEC4
        store4_at(i.x / 4u, batch * params.rows + row, v);
#else
        for (var c = 0u; c < min(4u, params.columns - col); c++) {
            store_at(i[c], batch * params.rows + row, v[c]);
        }
#endif
    }
}
#endif

#if DOT
var<workgroup> partial: array<f32, ${WIDTH}>;

@compute @workgroup_size(${WIDTH})
fn dot_products(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    let col = tile % params.columns;
    let row = tile / params.columns % params.rows;
    let batch = tile / (params.columns * params.rows);
    let g = batch % params.groups;
    let begin = batch / params.groups * params.depth;
    let all = params.images * params.places_h * params.places_w;
    let end = bound(min(begin + params.depth, all), tile);
    let taps = taps_at(col);
    let plane = params.places_h * params.places_w;
    // WIDTH steps ahead, in images, rows and columns.
    let next_row = ${WIDTH}u / params.places_w;
    let next_x = ${WIDTH}u % params.places_w;
    let next_image = next_row / params.places_h;
    let next_y = next_row % params.places_h;
    let first = places_at(begin + index);
    var image = first.image.x;
    var y = first.y.x;
    var x1 = first.x.x;
    var sum = 0.0;
    for (var k = begin + index; k < end; k += ${WIDTH}u) {
        let sy = y * params.mul_y;
        let sx = x1 * params.mul_x;
        let inside = sy + taps.y.x < params.source_h && sx + taps.x.x < params.source_w;
        let at = select(params.x_offset, source(g, image) + sy * params.source_w + sx + taps.at.x, inside);
        let v = select(0.0, x[at], inside);
        sum = fma(w[params.w_offset + ((image * params.groups + g) * params.rows + row) * plane + y * params.places_w + x1], v, sum);
        x1 += next_x;
        let turn_x = x1 >= params.places_w;
        x1 -= select(0u, params.places_w, turn_x);
        y += next_y + select(0u, 1u, turn_x);
        let turn_y = y >= params.places_h;
        y -= select(0u, params.places_h, turn_y);
        image += next_image + select(0u, 1u, turn_y);
    }
    partial[index] = sum;
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            partial[index] += partial[index + half];
        }
        workgroupBarrier();
    }
    if index == 0u {
        store_at(tile, row, partial[0]);
    }
}
#endif
