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
// Three kernels: LANES and WIDE for software adapters, TILES for GPUs. E4, V4: columns of x and a, and of y and b, in vec4s.
// A_SUMS, B_SUMS: whether a's and b's are summed. PAIRS: rows are read in words of 64 bits.
// X_AT … B_AT: bindings. VEC: everything is read and stored in vec4s. MASK: there is one, added; BOOLS: it is of bools.
//! variant lanes, forward: LANES=1 SUBGROUP=1 PAIRS=1 ROWS=4 FOUR=1 STEP=8 E4=8 V4=8 LOAD_A=8 LOAD_B=8 FORWARD=1 B_SUMS=1 LSE=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=0 A_AT=3 B_AT=4
//! variant lanes, forward, any strides: LANES=1 SUBGROUP=1 ROWS=2 FOUR=0 STEP=4 E4=20 V4=32 LOAD_A=10 LOAD_B=16 FORWARD=1 B_SUMS=1 LSE=0 CAUSAL=0 MASK=1 BOOLS=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant lanes, forward, no subgroups: LANES=1 SUBGROUP=0 ROWS=4 FOUR=1 STEP=4 E4=2 V4=3 LOAD_A=8 LOAD_B=12 FORWARD=1 B_SUMS=1 LSE=1 CAUSAL=1 MASK=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant lanes, queries: LANES=1 SUBGROUP=1 PAIRS=1 ROWS=2 FOUR=0 STEP=1 E4=8 V4=8 LOAD_A=1 LOAD_B=1 QUERIES=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=5 A_AT=3 B_AT=4
//! variant lanes, keys: LANES=1 SUBGROUP=1 PAIRS=1 ROWS=2 FOUR=0 STEP=1 E4=8 V4=8 LOAD_A=1 LOAD_B=1 KEYS=1 BACKWARD=1 A_SUMS=1 B_SUMS=1 CAUSAL=1 MASK=1 BOOLS=1 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8
//! variant lanes, keys, no subgroups: LANES=1 SUBGROUP=0 ROWS=2 FOUR=0 STEP=4 E4=2 V4=3 LOAD_A=8 LOAD_B=12 KEYS=1 BACKWARD=1 A_SUMS=1 B_SUMS=1 CAUSAL=1 MASK=1 VEC=0 VEC4=0 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8
//! variant wide, forward: WIDE=1 SUBGROUP=1 PAIRS=1 ROWS=16 FOURS_A=2 EACH_A=4 TURNED_A=xyzw FOURS_B=2 EACH_B=4 TURNED_B=xyzw FORWARD=1 B_SUMS=1 LSE=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=0 A_AT=3 B_AT=4
//! variant wide, forward, any strides: WIDE=1 SUBGROUP=1 ROWS=8 FOURS_A=1 EACH_A=4 TURNED_A=xyzw FOURS_B=8 EACH_B=1 TURNED_B=yzwx FORWARD=1 B_SUMS=1 LSE=0 CAUSAL=0 MASK=1 BOOLS=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant wide, queries: WIDE=1 SUBGROUP=1 PAIRS=1 ROWS=16 FOURS_A=4 EACH_A=2 TURNED_A=zwxy FOURS_B=2 EACH_B=4 TURNED_B=xyzw QUERIES=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=5 A_AT=3 B_AT=4
//! variant wide, keys: WIDE=1 SUBGROUP=1 PAIRS=1 ROWS=8 FOURS_A=2 EACH_A=4 TURNED_A=xyzw FOURS_B=4 EACH_B=2 TURNED_B=zwxy KEYS=1 BACKWARD=1 A_SUMS=1 B_SUMS=1 CAUSAL=1 MASK=1 BOOLS=1 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8
//! variant tiles, forward: TILES=1 E4=16 V4=16 CHUNKS_A=2 CHUNKS_B=2 FORWARD=1 B_SUMS=1 LSE=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=0 A_AT=3 B_AT=4
//! variant tiles, forward, masked: TILES=1 E4=3 V4=64 CHUNKS_A=1 CHUNKS_B=8 FORWARD=1 B_SUMS=1 LSE=0 CAUSAL=0 MASK=1 VEC=0 VEC4=0 X_AT=2 Y_AT=0 A_AT=3 B_AT=4 MASK_AT=5
//! variant tiles, queries: TILES=1 E4=16 V4=16 CHUNKS_A=2 CHUNKS_B=2 QUERIES=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 VEC=1 VEC4=1 X_AT=2 Y_AT=5 A_AT=3 B_AT=4
//! variant tiles, keys alone: TILES=1 E4=64 V4=64 CHUNKS_A=8 CHUNKS_B=8 KEYS=1 BACKWARD=1 A_SUMS=1 B_SUMS=0 CAUSAL=0 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5
//! variant tiles, values alone: TILES=1 E4=64 V4=64 CHUNKS_A=8 CHUNKS_B=8 KEYS=1 BACKWARD=1 A_SUMS=0 B_SUMS=1 CAUSAL=0 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5
//! variant tiles, keys: TILES=1 E4=16 V4=16 CHUNKS_A=2 CHUNKS_B=2 KEYS=1 B_SUMS=1 BACKWARD=1 A_SUMS=1 CAUSAL=1 MASK=1 BOOLS=1 VEC=1 VEC4=1 X_AT=3 Y_AT=4 A_AT=2 B_AT=5 MASK_AT=8

#import loops
#import math
#import nan
#if PAIRS
#import pairs
#endif

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
#for FLAG x at in 1 x ${X_AT}, BACKWARD y ${Y_AT}, 1 a ${A_AT}, 1 b ${B_AT}
#if ${FLAG}
#if VEC
#if PAIRS
@group(0) @binding(${at}) var<storage, read> ${x}_in: array<vec2<u64>>;
#else
@group(0) @binding(${at}) var<storage, read> ${x}_in: array<vec4<f32>>;
#endif
#else
@group(0) @binding(${at}) var<storage, read> ${x}_in: array<f32>;
#endif
#endif
#end
#if BACKWARD
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

// The lowest finite number: a maximum of nothing, from which differences are no NaN.
const LOWEST = -3.4028234663852886e38f;

// Four elements of a row from column `col` on; zeros past the last. (TILES: anything.)
#for FLAG x columns in 1 x e, BACKWARD y v, 1 a e, 1 b v
#if ${FLAG}
fn load_${x}(base: u32, row: u32, col: u32) -> vec4<f32> {
#if VEC
#if TILES
    return ${x}_in[(base + row * params.${x}_row + min(col, params.${columns} - 4u)) / 4u];
#else
#if PAIRS
    return bitcast<vec4<f32>>(from_pairs(${x}_in[(base + row * params.${x}_row + col) / 4u]));
#else
    return ${x}_in[(base + row * params.${x}_row + col) / 4u];
#endif
#endif
#else
    let c = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let i = base + row * params.${x}_row + min(c, vec4<u32>(params.${columns} - 1u)) * params.${x}_col;
    let v = vec4<f32>(${x}_in[i.x], ${x}_in[i.y], ${x}_in[i.z], ${x}_in[i.w]);
#if TILES
    return v;
#else
    return select(vec4<f32>(), v, c < vec4<u32>(params.${columns}));
#endif
#endif
}
#endif
#end

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
#include lanes
#endif

#if WIDE
#include wide
#endif

#if TILES
#include tiles
#endif
