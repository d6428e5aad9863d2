// Attention: out = softmax(scale * q kᵀ + mask) v, row by row, and its gradient from the rows' log-sum-exp.
//
// All passes have one form. A workgroup owns rows of some operands (`x`, `y`: "mine") and walks the rows of others
// (`a`, `b`: "theirs"). Scores are x · a, their gradients y · b; sums over theirs of weights times a and b are what comes out.
//
//   pass       mine     theirs   weights                          out
//   FORWARD    q        k, v     p, rescaled as maxima grow       b: out (and log-sum-exp)
//   QUERIES    q, g     k, v     ds = p (g vᵀ - delta)            a: dq
//   KEYS       k, v     q, g     ds, p (scores are transposed)    a: dk, b: dv
//
// FlashAttention-2 (Dao 2023) is the source: no matrix of scores is kept, and under CAUSAL tiles of scores that count for nothing are not visited.
//
// Two kernels: LANES for software adapters, TILES for GPUs. E4, V4: columns of x and a, and of y and b, in vec4s.
// X_AT … B_AT: bindings. VEC: everything is read and stored in vec4s. MASK: there is one, added; BOOLS: it is of bools.
//! variant lanes, forward: LANES=1 SUBGROUP=1 ROWS=4 FOUR=1 STEP=8 E4=8 V4=8 LOAD_A=8 LOAD_B=8 FORWARD=1 LSE=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=0 A_AT=3 B_AT=4
//! variant lanes, forward, wide: LANES=1 SUBGROUP=1 ROWS=2 FOUR=0 STEP=4 E4=20 V4=32 LOAD_A=10 LOAD_B=16 FORWARD=1 LSE=0 CAUSAL=0 MASK=1 BOOLS=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant lanes, forward, no subgroups: LANES=1 SUBGROUP=0 ROWS=4 FOUR=1 STEP=4 E4=2 V4=3 LOAD_A=8 LOAD_B=12 FORWARD=1 LSE=1 CAUSAL=1 MASK=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant lanes, queries: LANES=1 SUBGROUP=1 ROWS=2 FOUR=0 STEP=1 E4=8 V4=8 LOAD_A=1 LOAD_B=1 QUERIES=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=5 A_AT=3 B_AT=4
//! variant lanes, keys: LANES=1 SUBGROUP=1 ROWS=2 FOUR=0 STEP=1 E4=8 V4=8 LOAD_A=1 LOAD_B=1 KEYS=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 MASK=1 BOOLS=1 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8
//! variant lanes, keys, no subgroups: LANES=1 SUBGROUP=0 ROWS=2 FOUR=0 STEP=4 E4=2 V4=3 LOAD_A=8 LOAD_B=12 KEYS=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 MASK=1 VEC=0 VEC4=0 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8
//! variant tiles, forward: TILES=1 E4=16 V4=16 CHUNKS_A=2 CHUNKS_B=2 FORWARD=1 LSE=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=0 A_AT=3 B_AT=4
//! variant tiles, forward, masked: TILES=1 E4=3 V4=64 CHUNKS_A=1 CHUNKS_B=8 FORWARD=1 LSE=0 CAUSAL=0 MASK=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant tiles, queries: TILES=1 E4=16 V4=16 CHUNKS_A=2 CHUNKS_B=2 QUERIES=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=5 A_AT=3 B_AT=4
//! variant tiles, keys: TILES=1 E4=16 V4=16 CHUNKS_A=2 CHUNKS_B=2 KEYS=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 MASK=1 BOOLS=1 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8

#import loops
#import nan

struct Params {
    // Rows on either side.
    mine: u32,
    theirs: u32,
    // Columns of x and a, and of y and b.
    e: u32,
    v: u32,
    // Workgroups' tiles: in one batch, and in all.
    row_tiles: u32,
    tiles: u32,
    batch_rank: u32,
    scale: f32,
    // Offset, and strides of rows and columns.
    x_offset: u32,
    x_row: u32,
    x_col: u32,
    y_offset: u32,
    y_row: u32,
    y_col: u32,
    a_offset: u32,
    a_row: u32,
    a_col: u32,
    b_offset: u32,
    b_row: u32,
    b_col: u32,
    // Strides of the mask by rows of mine and of theirs.
    mask_offset: u32,
    mask_mine: u32,
    mask_theirs: u32,
    // Where the rows' log-sum-exps and the deltas begin; by the queries' rows, batch after batch.
    lse_offset: u32,
    delta_offset: u32,
    // What comes out, row by row, with columns side by side.
    a_out: u32,
    a_out_row: u32,
    b_out: u32,
    b_out_row: u32,
    lse_out: u32,
    pad0: u32,
    pad1: u32,
    // For each batch dimension its size, and strides in x, y, a; b, mask, and what comes out for a and b.
    batch: array<vec4<u32>, 12>,
}
@group(0) @binding(0) var<uniform> params: Params;
#if VEC
@group(0) @binding(${X_AT}) var<storage, read> x_in: array<vec4<f32>>;
@group(0) @binding(${A_AT}) var<storage, read> a_in: array<vec4<f32>>;
@group(0) @binding(${B_AT}) var<storage, read> b_in: array<vec4<f32>>;
#else
@group(0) @binding(${X_AT}) var<storage, read> x_in: array<f32>;
@group(0) @binding(${A_AT}) var<storage, read> a_in: array<f32>;
@group(0) @binding(${B_AT}) var<storage, read> b_in: array<f32>;
#endif
#if BACKWARD
#if VEC
@group(0) @binding(${Y_AT}) var<storage, read> y_in: array<vec4<f32>>;
#else
@group(0) @binding(${Y_AT}) var<storage, read> y_in: array<f32>;
#endif
@group(0) @binding(6) var<storage, read> lse_in: array<f32>;
@group(0) @binding(7) var<storage, read> delta_in: array<f32>;
#endif
#if MASK
#if BOOLS
@group(0) @binding(${MASK_AT}) var<storage, read> mask_in: array<u32>;
#else
@group(0) @binding(${MASK_AT}) var<storage, read> mask_in: array<f32>;
#endif
#endif
#epilogue

// The first element of a batch in everything.
struct Place {
    x: u32,
    y: u32,
    a: u32,
    b: u32,
    mask: u32,
    a_out: u32,
    b_out: u32,
    // By the queries' rows.
    row: u32,
}

fn place(number: u32) -> Place {
#if KEYS
    let queries = params.theirs;
#else
    let queries = params.mine;
#endif
    var at = Place(params.x_offset, params.y_offset, params.a_offset, params.b_offset, params.mask_offset, params.a_out, params.b_out, number * queries);
    var rest = number;
    for (var d = bound(params.batch_rank, number); d > 0u; d--) {
        let here = params.batch[d * 2u - 2u];
        let more = params.batch[d * 2u - 1u];
        let i = rest % here.x;
        rest /= here.x;
        at.x += i * here.y;
        at.y += i * here.z;
        at.a += i * here.w;
        at.b += i * more.x;
        at.mask += i * more.y;
        at.a_out += i * more.z;
        at.b_out += i * more.w;
    }
    return at;
}

// Below this, exp gives zero: the smallest normal number's logarithm. (Some drivers never reach zero.)
const LEAST = -87.33655;
// The lowest finite number: a maximum of nothing, from which differences are no NaN.
const LOWEST = -3.4028234663852886e38f;

// Four elements of a row from column `col` on; zeros past the last.
#if VEC
fn load_x(base: u32, row: u32, col: u32) -> vec4<f32> {
#if TILES
    return select(vec4<f32>(), x_in[(base + row * params.x_row + min(col, params.e - 4u)) / 4u], col < params.e);
#else
    return x_in[(base + row * params.x_row + col) / 4u];
#endif
}
fn load_a(base: u32, row: u32, col: u32) -> vec4<f32> {
#if TILES
    return select(vec4<f32>(), a_in[(base + row * params.a_row + min(col, params.e - 4u)) / 4u], col < params.e);
#else
    return a_in[(base + row * params.a_row + col) / 4u];
#endif
}
fn load_b(base: u32, row: u32, col: u32) -> vec4<f32> {
#if TILES
    return select(vec4<f32>(), b_in[(base + row * params.b_row + min(col, params.v - 4u)) / 4u], col < params.v);
#else
    return b_in[(base + row * params.b_row + col) / 4u];
#endif
}
#if BACKWARD
fn load_y(base: u32, row: u32, col: u32) -> vec4<f32> {
#if TILES
    return select(vec4<f32>(), y_in[(base + row * params.y_row + min(col, params.v - 4u)) / 4u], col < params.v);
#else
    return y_in[(base + row * params.y_row + col) / 4u];
#endif
}
#endif
#else
fn load_x(base: u32, row: u32, col: u32) -> vec4<f32> {
    let c = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let i = base + row * params.x_row + min(c, vec4<u32>(params.e - 1u)) * params.x_col;
    return select(vec4<f32>(), vec4<f32>(x_in[i.x], x_in[i.y], x_in[i.z], x_in[i.w]), c < vec4<u32>(params.e));
}
fn load_a(base: u32, row: u32, col: u32) -> vec4<f32> {
    let c = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let i = base + row * params.a_row + min(c, vec4<u32>(params.e - 1u)) * params.a_col;
    return select(vec4<f32>(), vec4<f32>(a_in[i.x], a_in[i.y], a_in[i.z], a_in[i.w]), c < vec4<u32>(params.e));
}
fn load_b(base: u32, row: u32, col: u32) -> vec4<f32> {
    let c = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let i = base + row * params.b_row + min(c, vec4<u32>(params.v - 1u)) * params.b_col;
    return select(vec4<f32>(), vec4<f32>(b_in[i.x], b_in[i.y], b_in[i.z], b_in[i.w]), c < vec4<u32>(params.v));
}
#if BACKWARD
fn load_y(base: u32, row: u32, col: u32) -> vec4<f32> {
    let c = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let i = base + row * params.y_row + min(c, vec4<u32>(params.v - 1u)) * params.y_col;
    return select(vec4<f32>(), vec4<f32>(y_in[i.x], y_in[i.y], y_in[i.z], y_in[i.w]), c < vec4<u32>(params.v));
}
#endif
#endif

// Stores four elements of a row of `columns`, as far as there are so many.
fn keep(row: u32, col: u32, columns: u32, value: vec4<f32>) {
    if col < columns {
#if VEC4
        store4((row + col) / 4u, value);
#else
        store(row + col, value.x);
        if col + 1u < columns {
            store(row + col + 1u, value.y);
        }
        if col + 2u < columns {
            store(row + col + 2u, value.z);
        }
        if col + 3u < columns {
            store(row + col + 3u, value.w);
        }
#endif
    }
}

#if LANES
// Each of 8 invocations owns ROWS rows and has them, and their sums, in registers; STEP rows of theirs are read at a
// time, by one lane each where there are subgroups, since loads are what costs on a CPU's SIMD lanes.
alias Rows = vec${ROWS}<f32>;
alias Places = vec${ROWS}<u32>;
alias Flags = vec${ROWS}<bool>;

fn exp_or_zero(v: Rows) -> Rows {
    return select(exp(v), Rows(), v < Rows(LEAST));
}

@compute @workgroup_size(8)
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
    let at = place(tile / params.row_tiles);
    let start = tile % params.row_tiles * (8u * ${ROWS}u);
    let first = start + lane * ${ROWS}u;
#if FOUR
    let rows = vec4<u32>(first, first + 1u, first + 2u, first + 3u);
#else
    let rows = vec2<u32>(first, first + 1u);
#endif
    let inside = min(rows, Places(params.mine - 1u));
    var x: array<Rows, 4 * ${E4}>;
#for d in 0..${E4}
    {
#for r in 0..${ROWS}
        let t${r} = load_x(at.x, inside[${r}], ${d}u * 4u);
#end
#for c in 0..4
#if FOUR
        x[${d}u * 4u + ${c}u] = vec4<f32>(t0[${c}], t1[${c}], t2[${c}], t3[${c}]);
#else
        x[${d}u * 4u + ${c}u] = vec2<f32>(t0[${c}], t1[${c}]);
#endif
#end
    }
#end
#if BACKWARD
    var y: array<Rows, 4 * ${V4}>;
#for d in 0..${V4}
    {
#for r in 0..${ROWS}
        let t${r} = load_y(at.y, inside[${r}], ${d}u * 4u);
#end
#for c in 0..4
#if FOUR
        y[${d}u * 4u + ${c}u] = vec4<f32>(t0[${c}], t1[${c}], t2[${c}], t3[${c}]);
#else
        y[${d}u * 4u + ${c}u] = vec2<f32>(t0[${c}], t1[${c}]);
#endif
#end
    }
#end
#endif
#if QUERIES
    var lse: Rows;
    var delta: Rows;
#for r in 0..${ROWS}
    lse[${r}] = lse_in[params.lse_offset + at.row + inside[${r}]];
    delta[${r}] = delta_in[params.delta_offset + at.row + inside[${r}]];
#end
#else
#if FORWARD
    var most = Rows(LOWEST);
    var sum = Rows();
    let nothing = Rows(-inf());
#endif
#endif
#if A_SUMS
    var sum_a: array<Rows, 4 * ${E4}>;
#endif
#if QUERIES
#else
    var sum_b: array<Rows, 4 * ${V4}>;
#endif
    let theirs = bound(params.theirs, tile);
#if CAUSAL
#if KEYS
    let begin = start;
    let end = theirs;
#else
    let begin = 0u;
    let end = min(theirs, start + 8u * ${ROWS}u);
#endif
#else
    let begin = 0u;
    let end = theirs;
#endif
    for (var t = begin; t < end; t += ${STEP}u) {
        var a: array<vec4<f32>, ${LOAD_A}>;
#for i in 0..${LOAD_A}
        {
#if SUBGROUP
            let n = min(${i}u * 8u + lane, ${STEP}u * ${E4}u - 1u);
#else
            const n = ${i}u;
#endif
            a[${i}] = load_a(at.a, min(t + n / ${E4}u, theirs - 1u), n % ${E4}u * 4u);
        }
#end
        var b: array<vec4<f32>, ${LOAD_B}>;
#for i in 0..${LOAD_B}
        {
#if SUBGROUP
            let n = min(${i}u * 8u + lane, ${STEP}u * ${V4}u - 1u);
#else
            const n = ${i}u;
#endif
            b[${i}] = load_b(at.b, min(t + n / ${V4}u, theirs - 1u), n % ${V4}u * 4u);
        }
#end
#if KEYS
        // Of the queries' rows that come in this turn.
        let query = params.lse_offset + at.row + min(t + lane % ${STEP}u, theirs - 1u);
#if SUBGROUP
        let lses = lse_in[query];
        let deltas = delta_in[query - params.lse_offset + params.delta_offset];
#endif
#endif
        var s: array<Rows, ${STEP}>;
#for k in 0..${STEP}
        {
            var dot = Rows();
#for d in 0..${E4}
            {
#if SUBGROUP
                let e = subgroupBroadcast(a[(${k}u * ${E4}u + ${d}u) / 8u], (${k}u * ${E4}u + ${d}u) % 8u);
#else
                let e = a[${k}u * ${E4}u + ${d}u];
#endif
#for c in 0..4
                dot = fma(Rows(e[${c}]), x[${d}u * 4u + ${c}u], dot);
#end
            }
#end
            let j = t + ${k}u;
            var counts = Flags(j < theirs);
#if CAUSAL
#if KEYS
            counts = counts & (Places(j) >= rows);
#else
            counts = counts & (Places(j) <= rows);
#endif
#endif
            dot *= params.scale;
#if MASK
            let m = at.mask + min(j, theirs - 1u) * params.mask_theirs;
#for r in 0..${ROWS}
#if BOOLS
            counts[${r}] = counts[${r}] && mask_in[m + inside[${r}] * params.mask_mine] != 0u;
#else
            dot[${r}] += mask_in[m + inside[${r}] * params.mask_mine];
#endif
#end
#endif
#if FORWARD
            s[${k}] = select(nothing, dot, counts);
#else
#if KEYS
#if SUBGROUP
            let lse = Rows(subgroupBroadcast(lses, ${k}u));
            let delta = Rows(subgroupBroadcast(deltas, ${k}u));
#else
            let seen = at.row + min(j, theirs - 1u);
            let lse = Rows(lse_in[params.lse_offset + seen]);
            let delta = Rows(delta_in[params.delta_offset + seen]);
#endif
#endif
            let p = select(Rows(), exp_or_zero(dot - lse), counts);
            var slope = Rows();
#for d in 0..${V4}
            {
#if SUBGROUP
                let e = subgroupBroadcast(b[(${k}u * ${V4}u + ${d}u) / 8u], (${k}u * ${V4}u + ${d}u) % 8u);
#else
                let e = b[${k}u * ${V4}u + ${d}u];
#endif
#for c in 0..4
                slope = fma(Rows(e[${c}]), y[${d}u * 4u + ${c}u], slope);
#if KEYS
                sum_b[${d}u * 4u + ${c}u] = fma(Rows(e[${c}]), p, sum_b[${d}u * 4u + ${c}u]);
#endif
#end
            }
#end
            s[${k}] = select(Rows(), p * (slope - delta), counts);
#endif
        }
#end
#if FORWARD
        var greatest = most;
#for k in 0..${STEP}
        greatest = max(greatest, s[${k}]);
#end
        let shrink = exp_or_zero(most - greatest);
        most = greatest;
        sum *= shrink;
#for k in 0..${STEP}
        s[${k}] = exp_or_zero(s[${k}] - most);
        sum += s[${k}];
#end
#for d in 0..${V4}
        {
#for c in 0..4
            var t${c} = sum_b[${d}u * 4u + ${c}u] * shrink;
#end
#for k in 0..${STEP}
            {
#if SUBGROUP
                let e = subgroupBroadcast(b[(${k}u * ${V4}u + ${d}u) / 8u], (${k}u * ${V4}u + ${d}u) % 8u);
#else
                let e = b[${k}u * ${V4}u + ${d}u];
#endif
#for c in 0..4
                t${c} = fma(Rows(e[${c}]), s[${k}], t${c});
#end
            }
#end
#for c in 0..4
            sum_b[${d}u * 4u + ${c}u] = t${c};
#end
        }
#end
#endif
#if A_SUMS
#for d in 0..${E4}
        {
#for c in 0..4
            var t${c} = sum_a[${d}u * 4u + ${c}u];
#end
#for k in 0..${STEP}
            {
#if SUBGROUP
                let e = subgroupBroadcast(a[(${k}u * ${E4}u + ${d}u) / 8u], (${k}u * ${E4}u + ${d}u) % 8u);
#else
                let e = a[${k}u * ${E4}u + ${d}u];
#endif
#for c in 0..4
                t${c} = fma(Rows(e[${c}]), s[${k}], t${c});
#end
            }
#end
#for c in 0..4
            sum_a[${d}u * 4u + ${c}u] = t${c};
#end
        }
#end
#endif
    }
#if FORWARD
    // Rows that see nothing are zero, and their probabilities, found again from an infinite sum, too.
    let weight = select(1.0 / sum, Rows(), sum == Rows());
#for i in 0..${V4}
#for c in 0..4
    sum_b[${i}u * 4u + ${c}u] *= weight;
#end
#end
#if LSE
    let lses = select(most + log(sum), -nothing, sum == Rows());
#endif
#endif
#for r in 0..${ROWS}
    if rows[${r}] < params.mine {
#if A_SUMS
#for d in 0..${E4}
        keep(at.a_out + rows[${r}] * params.a_out_row, ${d}u * 4u, params.e, params.scale * vec4<f32>(sum_a[${d}u * 4u][${r}], sum_a[${d}u * 4u + 1u][${r}], sum_a[${d}u * 4u + 2u][${r}], sum_a[${d}u * 4u + 3u][${r}]));
#end
#endif
#if QUERIES
#else
#for d in 0..${V4}
        keep(at.b_out + rows[${r}] * params.b_out_row, ${d}u * 4u, params.v, vec4<f32>(sum_b[${d}u * 4u][${r}], sum_b[${d}u * 4u + 1u][${r}], sum_b[${d}u * 4u + 2u][${r}], sum_b[${d}u * 4u + 3u][${r}]));
#end
#endif
#if LSE
        store(params.lse_out + at.row + rows[${r}], lses[${r}]);
#endif
    }
#end
}
#endif

#if TILES
// 64 invocations share tiles of 32 rows of mine and 32 of theirs; each has 4 x 4 scores, and of the sums 4 rows by
// one vec4 in 32 columns.

// Tiles of operands: 16 columns of mine and of theirs, vec4s along the rows; or 32 rows of 32 columns, vec4s along those.
var<workgroup> stage: array<vec4<f32>, 256>;
// Weights of all 32 rows of theirs, vec4s along mine.
var<workgroup> weights: array<vec4<f32>, 256>;
#if KEYS
var<workgroup> slopes: array<vec4<f32>, 256>;
#endif
#if FORWARD
var<workgroup> partial: array<f32, 256>;
#endif

alias Block = array<vec4<f32>, 4>;

fn exp_or_zero(v: vec4<f32>) -> vec4<f32> {
    return select(exp(v), vec4<f32>(), v < vec4<f32>(LEAST));
}

#for FLAG products mine theirs columns in 1 scores x a e, BACKWARD slopes_of y b v
#if ${FLAG}
// The products of 32 rows of ${mine} from `start` with 32 of ${theirs} from `t`.
fn ${products}(at: Place, start: u32, t: u32, index: u32) -> Block {
    var s: Block;
    let row = index / 2u;
    let own = min(start + row, params.mine - 1u);
    let other = min(t + row, params.theirs - 1u);
    for (var d = 0u; d < params.${columns}; d += 16u) {
        workgroupBarrier();
#for h in 0..2
        {
            let l = index % 2u * 8u + ${h}u * 4u;
            let u = load_${mine}(at.${mine}, own, d + l);
            let w = load_${theirs}(at.${theirs}, other, d + l);
#for c in 0..4
            stage[(l + ${c}u) * 8u + row / 4u][row % 4u] = u[${c}];
            stage[128u + (l + ${c}u) * 8u + row / 4u][row % 4u] = w[${c}];
#end
        }
#end
        workgroupBarrier();
#for k in 0..16
        {
            let u = stage[${k}u * 8u + index / 8u];
            let w = stage[128u + ${k}u * 8u + index % 8u];
#for r in 0..4
            s[${r}] = fma(vec4<f32>(u[${r}]), w, s[${r}]);
#end
        }
#end
    }
    return s;
}
#endif
#end

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
    let at = place(tile / params.row_tiles);
    let start = tile % params.row_tiles * 32u;
    let across = index % 8u;
    let down = index / 8u;
    let first = start + down * 4u;
#if FORWARD
    var most = vec4<f32>(LOWEST);
    var sum = vec4<f32>();
    let nothing = vec4<f32>(-inf());
#endif
#if QUERIES
    var lse: vec4<f32>;
    var delta: vec4<f32>;
#for r in 0..4
    lse[${r}] = lse_in[params.lse_offset + at.row + min(first + ${r}u, params.mine - 1u)];
    delta[${r}] = delta_in[params.delta_offset + at.row + min(first + ${r}u, params.mine - 1u)];
#end
#endif
#if A_SUMS
    var sum_a: array<vec4<f32>, 4 * ${CHUNKS_A}>;
#endif
#if QUERIES
#else
    var sum_b: array<vec4<f32>, 4 * ${CHUNKS_B}>;
#endif
    let theirs = params.theirs + (tile >> 31u); // as bound() does, but seen to be uniform
#if CAUSAL
#if KEYS
    let begin = start;
    let end = theirs;
#else
    let begin = 0u;
    let end = min(theirs, start + 32u);
#endif
#else
    let begin = 0u;
    let end = theirs;
#endif
    for (var t = begin; t < end; t += 32u) {
        var s = scores(at, start, t, index);
        let j = t + across * 4u + vec4<u32>(0u, 1u, 2u, 3u);
        let other = min(j, vec4<u32>(theirs - 1u));
#if BACKWARD
        let slope = slopes_of(at, start, t, index);
#endif
#if KEYS
        let seen = at.row + other;
        let lse = vec4<f32>(lse_in[params.lse_offset + seen.x], lse_in[params.lse_offset + seen.y], lse_in[params.lse_offset + seen.z], lse_in[params.lse_offset + seen.w]);
        let delta = vec4<f32>(delta_in[params.delta_offset + seen.x], delta_in[params.delta_offset + seen.y], delta_in[params.delta_offset + seen.z], delta_in[params.delta_offset + seen.w]);
        var p: Block;
#endif
#for r in 0..4
        {
            var counts = j < vec4<u32>(theirs);
#if CAUSAL
#if KEYS
            counts = counts & (j >= vec4<u32>(first + ${r}u));
#else
            counts = counts & (j <= vec4<u32>(first + ${r}u));
#endif
#endif
            var dot = s[${r}] * params.scale;
#if MASK
            let m = at.mask + min(first + ${r}u, params.mine - 1u) * params.mask_mine + other * params.mask_theirs;
#if BOOLS
            counts = counts & (vec4<u32>(mask_in[m.x], mask_in[m.y], mask_in[m.z], mask_in[m.w]) != vec4<u32>());
#else
            dot += vec4<f32>(mask_in[m.x], mask_in[m.y], mask_in[m.z], mask_in[m.w]);
#endif
#endif
#if FORWARD
            s[${r}] = select(nothing, dot, counts);
            partial[(down * 4u + ${r}u) * 8u + across] = max(max(s[${r}].x, s[${r}].y), max(s[${r}].z, s[${r}].w));
#endif
#if QUERIES
            let p = select(vec4<f32>(), exp_or_zero(dot - lse[${r}]), counts);
            s[${r}] = select(vec4<f32>(), p * (slope[${r}] - delta[${r}]), counts);
#endif
#if KEYS
            p[${r}] = select(vec4<f32>(), exp_or_zero(dot - lse), counts);
            s[${r}] = select(vec4<f32>(), p[${r}] * (slope[${r}] - delta), counts);
#endif
        }
#end
#if FORWARD
        workgroupBarrier();
        var greatest = most;
#for r in 0..4
#for i in 0..8
        greatest[${r}] = max(greatest[${r}], partial[(down * 4u + ${r}u) * 8u + ${i}u]);
#end
#end
        let shrink = exp_or_zero(most - greatest);
        most = greatest;
        sum *= shrink;
#for r in 0..4
        s[${r}] = exp_or_zero(s[${r}] - most[${r}]);
        // Each invocation sums its own columns; the rows' sums are put together at the end.
        sum[${r}] += (s[${r}].x + s[${r}].y) + (s[${r}].z + s[${r}].w);
#for q in 0..${CHUNKS_B}
        sum_b[${q}u * 4u + ${r}u] *= shrink[${r}];
#end
#end
#endif
#for c in 0..4
#if KEYS
        weights[(across * 4u + ${c}u) * 8u + down] = vec4<f32>(p[0][${c}], p[1][${c}], p[2][${c}], p[3][${c}]);
        slopes[(across * 4u + ${c}u) * 8u + down] = vec4<f32>(s[0][${c}], s[1][${c}], s[2][${c}], s[3][${c}]);
#else
        weights[(across * 4u + ${c}u) * 8u + down] = vec4<f32>(s[0][${c}], s[1][${c}], s[2][${c}], s[3][${c}]);
#endif
#end
#if A_SUMS
#for q in 0..${CHUNKS_A}
        workgroupBarrier();
#for i in 0..4
        stage[${i}u * 64u + index] = load_a(at.a, min(t + ${i}u * 8u + down, theirs - 1u), (${q}u * 8u + across) * 4u);
#end
        workgroupBarrier();
        for (var i = 0u; i < 32u; i += 8u) {
#for l in 0..8
            {
#if KEYS
                let w = slopes[(i + ${l}u) * 8u + down];
#else
                let w = weights[(i + ${l}u) * 8u + down];
#endif
                let u = stage[(i + ${l}u) * 8u + across];
#for r in 0..4
                sum_a[${q}u * 4u + ${r}u] = fma(vec4<f32>(w[${r}]), u, sum_a[${q}u * 4u + ${r}u]);
#end
            }
#end
        }
#end
#endif
#if QUERIES
#else
#for q in 0..${CHUNKS_B}
        workgroupBarrier();
#for i in 0..4
        stage[${i}u * 64u + index] = load_b(at.b, min(t + ${i}u * 8u + down, theirs - 1u), (${q}u * 8u + across) * 4u);
#end
        workgroupBarrier();
        for (var i = 0u; i < 32u; i += 8u) {
#for l in 0..8
            {
                let w = weights[(i + ${l}u) * 8u + down];
                let u = stage[(i + ${l}u) * 8u + across];
#for r in 0..4
                sum_b[${q}u * 4u + ${r}u] = fma(vec4<f32>(w[${r}]), u, sum_b[${q}u * 4u + ${r}u]);
#end
            }
#end
        }
#end
#endif
        workgroupBarrier();
    }
#if FORWARD
#for r in 0..4
    partial[(down * 4u + ${r}u) * 8u + across] = sum[${r}];
#end
    workgroupBarrier();
    var total = vec4<f32>();
#for r in 0..4
#for i in 0..8
    total[${r}] += partial[(down * 4u + ${r}u) * 8u + ${i}u];
#end
#end
    // Rows that see nothing are zero, and their probabilities, found again from an infinite sum, too.
    let weight = select(1.0 / total, vec4<f32>(), total == vec4<f32>());
#endif
#for r in 0..4
    if first + ${r}u < params.mine {
#if A_SUMS
#for q in 0..${CHUNKS_A}
        keep(at.a_out + (first + ${r}u) * params.a_out_row, (${q}u * 8u + across) * 4u, params.e, params.scale * sum_a[${q}u * 4u + ${r}u]);
#end
#endif
#if KEYS
#for q in 0..${CHUNKS_B}
        keep(at.b_out + (first + ${r}u) * params.b_out_row, (${q}u * 8u + across) * 4u, params.v, sum_b[${q}u * 4u + ${r}u]);
#end
#endif
#if FORWARD
#for q in 0..${CHUNKS_B}
        keep(at.b_out + (first + ${r}u) * params.b_out_row, (${q}u * 8u + across) * 4u, params.v, weight[${r}] * sum_b[${q}u * 4u + ${r}u]);
#end
#if LSE
        if across == 0u {
            store(params.lse_out + at.row + first + ${r}u, select(most[${r}] + log(total[${r}]), -nothing[${r}], total[${r}] == 0.0));
        }
#endif
#endif
    }
#end
}
#endif
