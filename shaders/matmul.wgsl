// out[z, i, j] = sum over l of a[z, i, l] * b[z, l, j], whatever the strides of a and b.
//
// Seven kernels: LANES for software adapters, TILES for GPUs, COOP for GPUs with matrices of halves, DOT for vectors and great depths, AXPY and (for GPUs)
// SLICES for n = 1, ANY for integers. Operands are read four elements at a time along the dimension in which they
// are contiguous, where offsets, strides and sizes allow it. The product may be computed transposed, with a and b exchanged.
//
// A_AT, B_AT: bindings. A_VEC, B_VEC: read vec4s; A_BY_ROW: a's vec4s lie along its rows (the dimension m), not
// along k; B_BY_COL: b's lie along its columns (n). K_TAIL: k is no multiple of 4. BATCHED: there are batch
// dimensions. HALF: a and b are of halves. A_PRE, B_PRE: computed, not read. MORE: tiles have a row and a column more (see
// lanes.wgsl). VEC4: the output is
// stored in vec4s; TURNED: these lie along m. A_SUMS, B_SUMS: TILES add up a's rows or b's columns, too.
//! variant lanes, pairs, k and n contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 FOURS=2 MORE=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1
//! variant lanes, pairs, m and k contiguous, batched: T=f32 A_AT=2 B_AT=3 TURNED=1 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=1 MORE=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=1 BATCHED=1
//! variant lanes, pairs, m and n contiguous, odd k: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=2 MORE=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=1 K_TAIL=1 VEC4=1
//! variant lanes, pairs, odd k and n: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=2 MORE=0 A_VEC=1 A_LOOSE=1 A_BY_ROW=0 B_VEC=1 B_LOOSE=1 B_BY_COL=1 K_TAIL=1 VEC4=0
//! variant lanes, pairs, odd m and k: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=1 MORE=0 A_VEC=1 A_LOOSE=1 A_BY_ROW=1 B_VEC=1 B_LOOSE=1 B_BY_COL=0 K_TAIL=1 VEC4=0
//! variant lanes, pairs, one more, k and n contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 FOURS=1 MORE=1 A_VEC=1 A_LOOSE=1 A_BY_ROW=0 B_VEC=1 B_LOOSE=1 B_BY_COL=1 K_TAIL=1 VEC4=0
//! variant lanes, pairs, one more, m and k contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 FOURS=2 MORE=1 A_VEC=1 A_LOOSE=1 A_BY_ROW=1 B_VEC=1 B_LOOSE=1 B_BY_COL=0 K_TAIL=0 VEC4=0
//! variant lanes, pairs, any strides: T=f32 A_AT=3 B_AT=2 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=2 MORE=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0
//! variant lanes, k and n contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=0 ROWS=8 LOADS=8 FOURS=1 MORE=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1
//! variant lanes, m and k contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=0 ROWS=8 LOADS=8 FOURS=1 MORE=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=1
//! variant lanes, any strides: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=0 ROWS=8 LOADS=8 FOURS=1 MORE=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0
//! variant tiles of 128, k and n contiguous: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=16 ACROSS=16 THREADS=256 DEPTH=16 BOTH=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 BATCHED=1
//! variant tiles of 128, k and n contiguous, sums: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=16 ACROSS=16 THREADS=256 DEPTH=16 BOTH=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 BATCHED=1 A_SUMS=1
//! variant tiles of 128 by 64, m and n contiguous: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=16 ACROSS=8 THREADS=128 DEPTH=8 BOTH=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1
//! variant tiles of 128 by 64, m and n contiguous, sums: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=16 ACROSS=8 THREADS=128 DEPTH=8 BOTH=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 B_SUMS=1
//! variant tiles of 64, m and k contiguous: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=8 ACROSS=8 THREADS=64 DEPTH=16 BOTH=1 TURNED=1 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=1
//! variant tiles of 32, any strides: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=1 DOWN=8 ACROSS=8 THREADS=64 DEPTH=16 BOTH=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0
//! variant tiles of 32, any strides, sums: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=1 DOWN=8 ACROSS=8 THREADS=64 DEPTH=16 BOTH=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0 A_SUMS=1
//! variant slices of columns times vector: T=f32 A_AT=2 B_AT=3 COLUMN=1 SLICES=1 A_VEC=1 A_BY_ROW=1 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=1
//! variant dot products, k contiguous: T=f32 A_AT=2 B_AT=3 COLUMN=1 DOT=1 WIDTH=64 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=0
//! variant dot products of a subgroup, k contiguous: T=f32 A_AT=2 B_AT=3 COLUMN=1 DOT=1 SUBGROUP=1 WIDTH=32 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=0
//! variant dot products, i32, any strides: T=i32 A_AT=2 B_AT=3 COLUMN=1 DOT=1 WIDTH=256 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=0 K_TAIL=1 VEC4=0
//! variant columns times vector: T=f32 A_AT=2 B_AT=3 COLUMN=1 AXPY=1 A_VEC=1 A_BY_ROW=1 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=1
//! variant rows times vector: T=f32 A_AT=2 B_AT=3 COLUMN=1 AXPY=1 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=0
//! variant any, i32: T=i32 A_AT=2 B_AT=3 ANY=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=0 BATCHED=1
//! variant any, f32: T=f32 A_AT=2 B_AT=3 ANY=1 FLOAT=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=0
//! variant lanes, halves, pairs, k and n contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 FOURS=2 MORE=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 HALF=1
//! variant lanes, halves, pairs, any strides: T=f32 A_AT=3 B_AT=2 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=2 MORE=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0 HALF=1
//! variant lanes, halves, m and k contiguous: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=0 ROWS=8 LOADS=8 FOURS=1 MORE=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=1 HALF=1
//! variant tiles of 128, halves, k and n contiguous: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=16 ACROSS=16 THREADS=256 DEPTH=16 BOTH=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 BATCHED=1 HALF=1
//! variant tiles of 32, halves, any strides: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=1 DOWN=8 ACROSS=8 THREADS=64 DEPTH=16 BOTH=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0 HALF=1
//! variant dot products, halves, k contiguous: T=f32 A_AT=2 B_AT=3 COLUMN=1 DOT=1 WIDTH=64 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=0 HALF=1
//! variant slices of columns times vector, halves: T=f32 A_AT=2 B_AT=3 COLUMN=1 SLICES=1 A_VEC=1 A_BY_ROW=1 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=1 HALF=1
//! variant any, halves: T=f32 A_AT=2 B_AT=3 ANY=1 FLOAT=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=0 HALF=1
//! variant cooperative matrices of 16, k and n contiguous: T=f16 R=f32 A_AT=2 B_AT=3 COOP=1 SIZE=16 LANES_EACH=32 DOWN=2 ACROSS=4 MATRICES_M=4 MATRICES_N=2 DEPTH=16 A_EACH=2 B_EACH=2 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 BATCHED=1
//! variant cooperative matrices of 16, m and k contiguous: T=f16 R=f32 A_AT=2 B_AT=3 COOP=1 SIZE=16 LANES_EACH=64 DOWN=2 ACROSS=2 MATRICES_M=2 MATRICES_N=2 DEPTH=32 A_EACH=2 B_EACH=2 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=1 TURNED=1
//! variant cooperative matrices of 8, any strides: T=f16 R=f32 A_AT=2 B_AT=3 COOP=1 SIZE=8 LANES_EACH=8 DOWN=2 ACROSS=2 MATRICES_M=2 MATRICES_N=2 DEPTH=16 A_EACH=4 B_EACH=4 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0
//! variant lanes, pairs, k and n contiguous, computed: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=32 LOADS=4 FOURS=2 MORE=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 A_PRE=1 B_PRE=1
//! variant lanes, pairs, any strides, computed: T=f32 A_AT=3 B_AT=2 LANES=1 SUBGROUP=1 PAIRS=1 ROWS=16 LOADS=2 FOURS=2 MORE=0 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=1 K_TAIL=1 VEC4=0 A_PRE=1
//! variant lanes, m and k contiguous, computed: T=f32 A_AT=2 B_AT=3 LANES=1 SUBGROUP=0 ROWS=8 LOADS=8 FOURS=1 MORE=0 A_VEC=1 A_BY_ROW=1 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=1 B_PRE=1
//! variant tiles of 128, k and n contiguous, computed: T=f32 A_AT=2 B_AT=3 TILES=1 PIECES=2 DOWN=16 ACROSS=16 THREADS=256 DEPTH=16 BOTH=0 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=1 K_TAIL=0 VEC4=1 BATCHED=1 A_PRE=1 B_PRE=1
//! variant slices of columns times vector, computed: T=f32 A_AT=2 B_AT=3 COLUMN=1 SLICES=1 A_VEC=1 A_BY_ROW=1 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=1 A_PRE=1 B_PRE=1
//! variant dot products, k contiguous, computed: T=f32 A_AT=2 B_AT=3 COLUMN=1 DOT=1 WIDTH=64 A_VEC=1 A_BY_ROW=0 B_VEC=1 B_BY_COL=0 K_TAIL=0 VEC4=0 A_PRE=1 B_PRE=1
//! variant columns times vector, computed: T=f32 A_AT=2 B_AT=3 COLUMN=1 AXPY=1 A_VEC=1 A_BY_ROW=1 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=1 A_PRE=1
//! variant any, f32, computed: T=f32 A_AT=2 B_AT=3 ANY=1 FLOAT=1 A_VEC=0 A_BY_ROW=0 B_VEC=0 B_BY_COL=0 K_TAIL=0 VEC4=0 A_PRE=1 B_PRE=1

#import loops
#if HALF
#import half
#endif
#if PAIRS
#import pairs
#endif

struct Params {
    m: u32,
    n: u32,
    k: u32,
    // Workgroups' tiles: along n, along m, and in all batches together.
    tiles_n: u32,
    tiles_m: u32,
    tiles: u32,
    // Offset, and strides along (m, k) and (k, n).
    a_offset: u32,
    a_m: u32,
    a_k: u32,
    b_offset: u32,
    b_k: u32,
    b_n: u32,
    // Of the first element stored, and strides along m and n. (The product may be computed transposed.)
    out_offset: u32,
    out_m: u32,
    out_n: u32,
    batch_rank: u32,
    // Sizes and strides of a and b of each batch dimension.
    batch: array<vec4<u32>, 8>,
}
@group(0) @binding(0) var<uniform> params: Params;
#for X x at in A a ${A_AT}, B b ${B_AT}
#if ${X}_PRE
// Computed by functions that take the place where each element would lie in memory.
#else
#if HALF
#if ${X}_VEC
@group(0) @binding(${at}) var<storage, read> ${x}: array<vec2<u32>>;

fn ${x}_four(at: u32) -> vec4<f32> {
    return from_halves(${x}[at / 4u]);
}
#else
@group(0) @binding(${at}) var<storage, read> ${x}: array<f16>;

fn ${x}_one(at: u32) -> f32 {
    return f32(${x}[at]);
}
#endif
#else
#if ${X}_VEC
#if PAIRS
@group(0) @binding(${at}) var<storage, read> ${x}: array<vec2<u64>>;

fn ${x}_four(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(from_pairs(${x}[at / 4u]));
}
#else
@group(0) @binding(${at}) var<storage, read> ${x}: array<vec4<${T}>>;

fn ${x}_four(at: u32) -> vec4<${T}> {
    return ${x}[at / 4u];
}
#endif
#else
@group(0) @binding(${at}) var<storage, read> ${x}: array<${T}>;

fn ${x}_one(at: u32) -> ${T} {
    return ${x}[at];
}
#endif
#endif
#endif
#end
#prologue
#epilogue at

// The first element of a batch in a, b and the output.
struct Place {
    a: u32,
    b: u32,
    out: u32,
}

fn place(batch: u32) -> Place {
    var at = Place(params.a_offset, params.b_offset, params.out_offset + batch * params.m * params.n);
#if BATCHED
    var rest = batch;
    for (var d = bound(params.batch_rank, batch); d > 0u; d--) {
        let dim = params.batch[d - 1u];
        at.a += rest % dim.x * dim.y;
        at.b += rest % dim.x * dim.z;
        rest /= dim.x;
    }
#endif
    return at;
}

#if ANY
#else
#if A_LOOSE
// Where a's element is. Past the edges come others, but for k along memory.
fn a_at(base: u32, row: u32, k: u32) -> u32 {
#if A_BY_ROW
    return base + min(k, params.k - 1u) * params.a_k + min(row, params.m - 1u);
#else
    return base + min(row, params.m - 1u) * params.a_m + k;
#endif
}
#else
// Four elements of a: along its rows from `row`, at k, or along k, of `row`. Past the edges come other rows'
// elements, and zeros past k.
fn load_a(base: u32, row: u32, k: u32) -> vec4<${T}> {
#if A_VEC
#if A_BY_ROW
    let at = base + min(row, params.m - 4u);
#if K_TAIL
    return select(vec4<${T}>(), a_four(at + min(k, params.k - 1u) * params.a_k), k < params.k);
#else
    return a_four(at + k * params.a_k);
#endif
#else
    let v = a_four(base + min(row, params.m - 1u) * params.a_m + k);
#if K_TAIL
    return select(vec4<${T}>(), v, vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(params.k));
#else
    return v;
#endif
#endif
#else
    let at = base + min(row, params.m - 1u) * params.a_m;
#if K_TAIL
    let l = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    let i = at + min(l, vec4<u32>(params.k - 1u)) * params.a_k;
    return select(vec4<${T}>(), vec4<${T}>(a_one(i.x), a_one(i.y), a_one(i.z), a_one(i.w)), l < vec4<u32>(params.k));
#else
    let i = at + (vec4<u32>(0u, 1u, 2u, 3u) + k) * params.a_k;
    return vec4<${T}>(a_one(i.x), a_one(i.y), a_one(i.z), a_one(i.w));
#endif
#endif
}
#endif

#if B_LOOSE
fn b_at(base: u32, k: u32, col: u32) -> u32 {
#if B_BY_COL
    return base + min(k, params.k - 1u) * params.b_k + min(col, params.n - 1u);
#else
    return base + min(col, params.n - 1u) * params.b_n + k;
#endif
}
#else
#if B_VEC
// Four elements of b along the contiguous dimension.
fn load_b(base: u32, k: u32, col: u32) -> vec4<${T}> {
#if B_BY_COL
    let at = base + min(col, params.n - 4u);
#if K_TAIL
    return select(vec4<${T}>(), b_four(at + min(k, params.k - 1u) * params.b_k), k < params.k);
#else
    return b_four(at + k * params.b_k);
#endif
#else
    let v = b_four(base + min(col, params.n - 1u) * params.b_n + k);
#if K_TAIL
    return select(vec4<${T}>(), v, vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(params.k));
#else
    return v;
#endif
#endif
}
#else
// Four elements of b along n.
fn load_b(base: u32, k: u32, col: u32) -> vec4<${T}> {
    let cols = min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(params.n - 1u));
    let i = base + min(k, params.k - 1u) * params.b_k + cols * params.b_n;
    let v = vec4<${T}>(b_one(i.x), b_one(i.y), b_one(i.z), b_one(i.w));
#if K_TAIL
    return select(vec4<${T}>(), v, k < params.k);
#else
    return v;
#endif
}
#endif
#endif
#endif

#if ANY
#else
#if COLUMN
#else
#if LANES
#else
#endif
#endif
#endif

#if ANY
#else
// The coordinate along the output's last dimension.
fn last(row: u32, col: u32) -> u32 {
#if VEC4
#if TURNED
    return row;
#else
    return col;
#endif
#else
    return select(row, col, params.out_n == 1u);
#endif
}
#endif

#if ANY
#else
#if COLUMN
#else
#if LANES
#else
// Stores a block of four rows (columns of `v`) and four columns, as far as they are in the output.
fn keep(out: u32, row: u32, col: u32, v: mat4x4<f32>) {
    let at = out + row * params.out_m + col * params.out_n;
#if TURNED
    let t = transpose(v);
#for c in 0..4
    if row < params.m && col + ${c}u < params.n {
        store4_at((at + ${c}u * params.out_n) / 4u, last(row, col + ${c}u), t[${c}]);
    }
#end
#else
#for r in 0..4
    if row + ${r}u < params.m && col < params.n {
        let i = at + ${r}u * params.out_m;
#if VEC4
        store4_at(i / 4u, last(row + ${r}u, col), v[${r}]);
#else
        for (var c = 0u; c < min(4u, params.n - col); c++) {
            store_at(i + c * params.out_n, last(row + ${r}u, col + c), v[${r}][c]);
        }
#endif
    }
#end
#endif
}
#endif
#endif
#endif

#if LANES
#include lanes
#endif

#if TILES
#include tiles
#endif

#if COLUMN
// Four elements of a column of b, from k.
fn load_column(base: u32, k: u32, col: u32) -> vec4<${T}> {
    let at = base + col * params.b_n;
#if B_VEC
    return b_four(at + k);
#else
    let l = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    let i = at + min(l, vec4<u32>(params.k - 1u)) * params.b_k;
    return select(vec4<${T}>(), vec4<${T}>(b_one(i.x), b_one(i.y), b_one(i.z), b_one(i.w)), l < vec4<u32>(params.k));
#endif
}
#endif

#if DOT
// A workgroup of WIDTH for each element of the output, its invocations side by side along k. SUBGROUP: it is one.
#if SUBGROUP
#else
var<workgroup> partial: array<${T}, ${WIDTH}>;
#endif

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
    let at = place(tile / (params.m * params.n));
    let row = tile / params.n % params.m;
    let col = tile % params.n;
    var sum = vec4<${T}>();
    let depth = bound(params.k, tile);
    for (var k = index * 4u; k < depth; k += 4u * ${WIDTH}u) {
        sum += load_a(at.a, row, k) * load_column(at.b, k, col);
    }
    let own = (sum.x + sum.y) + (sum.z + sum.w);
#if SUBGROUP
    let total = subgroupAdd(own);
#else
    partial[index] = own;
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            partial[index] += partial[index + half];
        }
        workgroupBarrier();
    }
    let total = partial[0];
#endif
    if index == 0u {
        store_at(at.out + row * params.out_m + col * params.out_n, last(row, col), total);
    }
}
#endif

#if AXPY
// An invocation for each element of the output, or for four where a's vec4s lie along its rows. b is one column.
@compute @workgroup_size(64)
fn axpy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    let at = place(tile / params.tiles_m);
    var sum = vec4<f32>();
    let depth = bound(params.k, tile);
#if A_BY_ROW
    let row = (tile % params.tiles_m * 64u + index) * 4u;
    if row >= params.m {
        return;
    }
    for (var k = 0u; k < depth; k += 4u) {
        let y = load_column(at.b, k, 0u);
#for q in 0..4
        sum = fma(load_a(at.a, row, k + ${q}u), vec4<f32>(y[${q}]), sum);
#end
    }
    store4_at((at.out + row) / 4u, row, sum);
#else
    let row = tile % params.tiles_m * 64u + index;
    if row >= params.m {
        return;
    }
    for (var k = 0u; k < depth; k += 4u) {
        sum = fma(load_a(at.a, row, k), load_column(at.b, k, 0u), sum);
    }
    store_at(at.out + row * params.out_m, row, (sum.x + sum.y) + (sum.z + sum.w));
#endif
}
#endif

#if SLICES
// Columns times a vector, for GPUs: 32 rows for a workgroup, in which 32 invocations share each four rows, every one
// with its own slice of k. Neighbours read neighbouring rows.
var<workgroup> slices: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn slices_of_columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    let at = place(tile / params.tiles_m);
    let row = tile % params.tiles_m * 32u + index % 8u * 4u;
    var sum = vec4<f32>();
    let depth = bound(params.k, tile);
    for (var k = index / 8u; k < depth; k += 32u) {
        sum = fma(load_a(at.a, row, k), vec4<f32>(b_one(at.b + k * params.b_k)), sum);
    }
    slices[index] = sum;
    workgroupBarrier();
    for (var half = 128u; half >= 8u; half /= 2u) {
        if index < half {
            slices[index] += slices[index + half];
        }
        workgroupBarrier();
    }
    if index < 8u && row < params.m {
        store4_at((at.out + row) / 4u, row, slices[index]);
    }
}
#endif

#if ANY
@compute @workgroup_size(64)
fn any_strides(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = ((group.z * grid.y + group.y) * grid.x + group.x) * 64u + index;
    if i >= params.tiles {
        return;
    }
    let at = place(i / (params.m * params.n));
    let x = at.a + i / params.n % params.m * params.a_m;
    let y = at.b + i % params.n * params.b_n;
    var sum = ${T}();
    let depth = bound(params.k, i);
    for (var k = 0u; k < depth; k++) {
#if FLOAT
        // As tiles do, whose bits these are to be: some drivers round once in it.
        sum = fma(a_one(x + k * params.a_k), b_one(y + k * params.b_k), sum);
#else
        sum += a_one(x + k * params.a_k) * b_one(y + k * params.b_k);
#endif
    }
    store_at(params.out_offset + i, i % params.n, sum);
}
#endif

#if COOP
#include cooperative
#endif
