// DOWN x ACROSS invocations share tiles of a and b, DEPTH deep, and each computes PIECES x PIECES blocks of 4 x 4,
// which lie DOWN and ACROSS blocks apart, so that neighbours read neighbouring vec4s. What the next tiles need is
// read ahead into registers while the present ones are multiplied.

const BLOCKS_M: u32 = ${DOWN}u * ${PIECES}u;
const BLOCKS_N: u32 = ${ACROSS}u * ${PIECES}u;

// In both tiles the first index is k, and vec4s lie along m and n.
var<workgroup> tile_a: array<vec4<f32>, ${DEPTH} * ${DOWN} * ${PIECES}>;
var<workgroup> tile_b: array<vec4<f32>, ${DEPTH} * ${ACROSS} * ${PIECES}>;

// Where block `block` of row k lies in a tile. Invocations that fill a tile along k write every fourth row; shifted
// against each other these rows fall on different banks.
fn slot(k: u32, block: u32, blocks: u32) -> u32 {
    return k * blocks + (block ^ (((k / 4u) % 4u) * 2u));
}

@compute @workgroup_size(${THREADS})
fn tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    let at = place(tile / (params.tiles_n * params.tiles_m));
    let number = striped(tile % (params.tiles_n * params.tiles_m), params.tiles_n, params.tiles_m);
    let row = number.y * BLOCKS_M * 4u;
    let col = number.x * BLOCKS_N * 4u;
    let across = index % ${ACROSS}u;
    let down = index / ${ACROSS}u;
    // The 4 x 4 blocks that this invocation reads. Side by side they follow the dimension that is contiguous.
#if A_BY_ROW
    let a_block = index % BLOCKS_M;
    let a_deep = index / BLOCKS_M * 4u;
#else
    let a_block = index / (${DEPTH}u / 4u);
    let a_deep = index % (${DEPTH}u / 4u) * 4u;
#endif
#if BOTH
    let b_index = index;
#else
    let b_index = index - min(index, BLOCKS_M * ${DEPTH}u / 4u);
#endif
#if B_BY_COL
    let b_block = b_index % BLOCKS_N;
    let b_deep = b_index / BLOCKS_N * 4u;
#else
    let b_block = b_index / (${DEPTH}u / 4u);
    let b_deep = b_index % (${DEPTH}u / 4u) * 4u;
#endif
    let fills_a = index < BLOCKS_M * ${DEPTH}u / 4u;
#if BOTH
    let fills_b = fills_a;
#else
    let fills_b = !fills_a && b_index < BLOCKS_N * ${DEPTH}u / 4u;
#endif
    var next_a: mat4x4<f32>;
    var next_b: mat4x4<f32>;
    if fills_a {
        next_a = block_a(at.a, row + a_block * 4u, a_deep);
    }
    if fills_b {
        next_b = block_b(at.b, b_deep, col + b_block * 4u);
    }
    var acc: array<vec4<f32>, 4 * ${PIECES} * ${PIECES}>;
    let depth = params.k + (tile >> 31u); // as bound() does, but seen to be uniform
    for (var k = 0u; k < depth; k += ${DEPTH}u) {
        if fills_a {
#for q in 0..4
            tile_a[slot(a_deep + ${q}u, a_block, BLOCKS_M)] = next_a[${q}];
#end
        }
        if fills_b {
#for q in 0..4
            tile_b[slot(b_deep + ${q}u, b_block, BLOCKS_N)] = next_b[${q}];
#end
        }
        workgroupBarrier();
        if fills_a {
            next_a = block_a(at.a, row + a_block * 4u, k + ${DEPTH}u + a_deep);
        }
        if fills_b {
            next_b = block_b(at.b, k + ${DEPTH}u + b_deep, col + b_block * 4u);
        }
        for (var l = 0u; l < ${DEPTH}u; l += 4u) {
#for s in 0..4
            {
#for p in 0..${PIECES}
                let x${p} = tile_a[slot(l + ${s}u, down + ${DOWN}u * ${p}u, BLOCKS_M)];
                let y${p} = tile_b[slot(l + ${s}u, across + ${ACROSS}u * ${p}u, BLOCKS_N)];
#end
#for p in 0..${PIECES}
#for r in 0..4
#for q in 0..${PIECES}
                acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u] = fma(vec4<f32>(x${p}[${r}]), y${q}, acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u]);
#end
#end
#end
            }
#end
        }
        workgroupBarrier();
    }
#for p in 0..${PIECES}
#for q in 0..${PIECES}
    keep(
        at.out,
        row + (down + ${DOWN}u * ${p}u) * 4u,
        col + (across + ${ACROSS}u * ${q}u) * 4u,
        mat4x4<f32>(
#for r in 0..4
            acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u],
#end
        ),
    );
#end
#end
}

// Four k of four rows of a: a column for each k. Zeros past k.
fn block_a(base: u32, row: u32, k: u32) -> mat4x4<f32> {
    var m: mat4x4<f32>;
#if A_BY_ROW
#for q in 0..4
    m[${q}] = select(vec4<f32>(), load_a(base, row, min(k + ${q}u, params.k - 1u)), k + ${q}u < params.k);
#end
    return m;
#else
    if k >= params.k {
        return m;
    }
#for q in 0..4
    m[${q}] = load_a(base, row + ${q}u, k);
#end
    return transpose(m);
#endif
}

// Four k of four columns of b: a column for each k. Zeros past k.
fn block_b(base: u32, k: u32, col: u32) -> mat4x4<f32> {
    var m: mat4x4<f32>;
#if B_BY_COL
#for q in 0..4
    m[${q}] = select(vec4<f32>(), load_b(base, min(k + ${q}u, params.k - 1u), col), k + ${q}u < params.k);
#end
    return m;
#else
    if k >= params.k {
        return m;
    }
#for q in 0..4
    m[${q}] = load_b(base, k, col + ${q}u);
#end
    return transpose(m);
#endif
}
