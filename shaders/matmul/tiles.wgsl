// DOWN x ACROSS invocations share tiles of a and b, DEPTH deep, and each computes PIECES x PIECES blocks of 4 x 4,
// which lie DOWN and ACROSS blocks apart, so that neighbours read neighbouring vec4s. What the next tiles need is
// read ahead into registers while the present ones are multiplied, and stays there as it was read: to turn it or to
// cut it off at k would be to wait for it.

const BLOCKS_M: u32 = ${DOWN}u * ${PIECES}u;
const BLOCKS_N: u32 = ${ACROSS}u * ${PIECES}u;

// By four k, k among these (which is known, so that it costs no arithmetic), and vec4s along m and n. Invocations that
// fill a tile along k write every fourth row: blocks are shifted against each other, so that these fall on different banks.
#for X BLOCKS in a BLOCKS_M, b BLOCKS_N
var<workgroup> tile_${X}: array<array<array<vec4<f32>, ${BLOCKS}>, 4>, ${DEPTH} / 4>;
#end

// Where a block of some four k lies.
fn slot(block: u32, fours: u32) -> u32 {
    return block ^ (fours % 4u * 2u);
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
    let a_fours = index / BLOCKS_M;
#else
    let a_block = index / (${DEPTH}u / 4u);
    let a_fours = index % (${DEPTH}u / 4u);
#endif
#if BOTH
    let b_index = index;
#else
    let b_index = index - min(index, BLOCKS_M * ${DEPTH}u / 4u);
#endif
#if B_BY_COL
    let b_block = b_index % BLOCKS_N;
    let b_fours = b_index / BLOCKS_N;
#else
    let b_block = b_index / (${DEPTH}u / 4u);
    let b_fours = b_index % (${DEPTH}u / 4u);
#endif
    let fills_a = index < BLOCKS_M * ${DEPTH}u / 4u;
#if BOTH
    let fills_b = fills_a;
#else
    let fills_b = !fills_a && b_index < BLOCKS_N * ${DEPTH}u / 4u;
#endif
    let from_a = lines_of_a(at.a, row + a_block * 4u, a_fours * 4u);
    let from_b = lines_of_b(at.b, col + b_block * 4u, b_fours * 4u);
    var next_a: mat4x4<f32>;
    var next_b: mat4x4<f32>;
    if fills_a {
        next_a = block_a(from_a, 0u);
    }
    if fills_b {
        next_b = block_b(from_b, 0u);
    }
#for X x in A a, B b
#if ${X}_SUMS
    var sums_${x}: vec4<f32>;
#endif
#end
    var acc: array<vec4<f32>, 4 * ${PIECES} * ${PIECES}>;
    let depth = params.k + (tile >> 31u); // as bound() does, but seen to be uniform
    for (var k = 0u; k < depth; k += ${DEPTH}u) {
#for X x in A a, B b
        if fills_${x} {
            if k + ${x}_fours * 4u + 4u > params.k {
                next_${x} = cut_${x}(next_${x}, k + ${x}_fours * 4u);
            }
            let block = turned_${x}(next_${x});
#for q in 0..4
            tile_${x}[${x}_fours][${q}][slot(${x}_block, ${x}_fours)] = block[${q}];
#end
#if ${X}_SUMS
            sums_${x} += (block[0] + block[1]) + (block[2] + block[3]);
#endif
        }
#end
        workgroupBarrier();
        if k + ${DEPTH}u < depth {
#for x in a, b
            if fills_${x} {
                next_${x} = block_${x}(from_${x}, k + ${DEPTH}u);
            }
#end
        }
        for (var l = 0u; l < ${DEPTH}u / 4u; l += 2u) {
#for h in 0..2
            {
#for p in 0..${PIECES}
                let x${p} = slot(down + ${DOWN}u * ${p}u, l + ${h}u);
                let y${p} = slot(across + ${ACROSS}u * ${p}u, l + ${h}u);
#end
#for s in 0..4
                {
#for p in 0..${PIECES}
                    let a${p} = tile_a[l + ${h}u][${s}][x${p}];
                    let b${p} = tile_b[l + ${h}u][${s}][y${p}];
#end
#for p in 0..${PIECES}
#for r in 0..4
#for q in 0..${PIECES}
                    acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u] = fma(vec4<f32>(a${p}[${r}]), b${q}, acc[(${p}u * 4u + ${r}u) * ${PIECES}u + ${q}u]);
#end
#end
#end
                }
#end
            }
#end
        }
        workgroupBarrier();
    }
    // Sums of rows or columns, for tiles at the edge; each invocation has those of its block.
#for X x BLOCKS side size other number in A a BLOCKS_M row m n x, B b BLOCKS_N col n m y
#if ${X}_SUMS
    if fills_${x} {
        tile_${x}[${x}_fours][0][${x}_block] = sums_${x};
    }
    workgroupBarrier();
    if number.${number} == 0u && index < ${BLOCKS} {
        var sums = tile_${x}[0][0][index];
#for f in 1..${DEPTH}/4
        sums += tile_${x}[${f}][0][index];
#end
        for (var i = 0u; i < 4u; i++) {
            let place = ${side} + index * 4u + i;
            if place < params.${size} {
                store_sum(at.out / params.${other} + place, sums.x);
            }
            sums = sums.yzwx;
        }
    }
#endif
#end
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

// Where the lines begin of which an invocation reads four elements each, from row `side` of a or column `side` of b,
// and k; past the edges are other lines. Where vec4s lie along them there is one.
#for X x BY size step along in A a A_BY_ROW m a_m a_k, B b B_BY_COL n b_n b_k
fn lines_of_${x}(base: u32, side: u32, k: u32) -> vec4<u32> {
    let lines = vec4<u32>(side, side + 1u, side + 2u, side + 3u);
#if ${X}_VEC
#if ${BY}
    return vec4<u32>(base + min(side, params.${size} - 4u) + k * params.${along});
#else
    return base + min(lines, vec4<u32>(params.${size} - 1u)) * params.${step} + k;
#endif
#else
    return base + min(lines, vec4<u32>(params.${size} - 1u)) * params.${step} + k * params.${along};
#endif
}

// Four k of four lines, so many k further: vec4s along the lines, or along k. Past k comes whatever lies there.
fn block_${x}(lines: vec4<u32>, k: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
#for q in 0..4
#if ${X}_VEC
#if ${BY}
        ${x}_four(lines.x + (k + ${q}u) * params.${along}),
#else
        ${x}_four(lines[${q}] + k),
#endif
#else
        vec4<f32>(
#for i in 0..4
            ${x}_one(lines[${i}] + (k + ${q}u) * params.${along}),
#end
        ),
#endif
#end
    );
}

// The same with zeros from params.k on.
fn cut_${x}(block: mat4x4<f32>, k: u32) -> mat4x4<f32> {
    let inside = (k + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(params.k);
    var m = block;
#for q in 0..4
#if ${X}_VEC
#if ${BY}
    m[${q}] = select(vec4<f32>(), m[${q}], inside[${q}]);
#else
    m[${q}] = select(vec4<f32>(), m[${q}], inside);
#endif
#else
    m[${q}] = select(vec4<f32>(), m[${q}], inside[${q}]);
#endif
#end
    return m;
}

// The same with a column for each k.
fn turned_${x}(block: mat4x4<f32>) -> mat4x4<f32> {
#if ${X}_VEC
#if ${BY}
    return block;
#else
    return transpose(block);
#endif
#else
    return block;
#endif
}
#end
