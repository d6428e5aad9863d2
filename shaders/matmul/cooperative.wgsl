// Subgroups multiply SIZE-squared matrices of halves as one, and add up in single precision. DOWN x ACROSS subgroups
// share tiles of a and b, DEPTH deep; each has MATRICES_M x MATRICES_N matrices of the output. What the next tiles
// need is read ahead, as above.

const SUBGROUPS: u32 = ${DOWN}u * ${ACROSS}u;
const INVOCATIONS: u32 = SUBGROUPS * ${LANES_EACH}u;
const TILE_M: u32 = ${DOWN}u * ${MATRICES_M}u * ${SIZE}u;
const TILE_N: u32 = ${ACROSS}u * ${MATRICES_N}u * ${SIZE}u;
const A_FOURS: u32 = TILE_M * ${DEPTH}u / 4u;
const B_FOURS: u32 = TILE_N * ${DEPTH}u / 4u;

// As their fours lie in memory: rows of TILE_M or TILE_N, or of DEPTH.
#if A_BY_ROW
const A_STEP: u32 = TILE_M / 4u;
#else
const A_STEP: u32 = ${DEPTH}u / 4u;
#endif
#if B_BY_COL
const B_STEP: u32 = TILE_N / 4u;
#else
const B_STEP: u32 = ${DEPTH}u / 4u;
#endif
var<workgroup> tile_a: array<vec4<f16>, A_FOURS>;
var<workgroup> tile_b: array<vec4<f16>, B_FOURS>;
// A matrix of each subgroup on its way out.
var<workgroup> results: array<f32, SUBGROUPS * ${SIZE} * ${SIZE}>;

// Where four elements along k may be read: past the end come none that count.
fn within(l: u32) -> u32 {
#if K_TAIL
    return l;
#else
    return min(l, params.k - min(params.k, 4u));
#endif
}

// Four number `i` of the tile of a that begins at `row` and `k`. Zeros past k.
fn tile_of_a(base: u32, row: u32, k: u32, i: u32) -> vec4<f16> {
#if A_BY_ROW
    let l = k + i / A_STEP;
    let v = load_a(base, row + i % A_STEP * 4u, min(l, params.k - 1u));
#else
    let l = k + i % A_STEP * 4u;
    let v = load_a(base, row + i / A_STEP, within(l));
#endif
    return select(vec4<f16>(), v, l < params.k);
}

fn tile_of_b(base: u32, k: u32, col: u32, i: u32) -> vec4<f16> {
#if B_BY_COL
    let l = k + i / B_STEP;
    let v = load_b(base, min(l, params.k - 1u), col + i % B_STEP * 4u);
#else
    let l = k + i % B_STEP * 4u;
    let v = load_b(base, within(l), col + i / B_STEP);
#endif
    return select(vec4<f16>(), v, l < params.k);
}

@compute @workgroup_size(${DOWN} * ${ACROSS} * ${LANES_EACH})
fn cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    // Matrices are for all or none: surplus workgroups go along without a turn.
    let surplus = tile >= params.tiles;
    let at = place(tile / (params.tiles_n * params.tiles_m));
    let number = striped(tile % (params.tiles_n * params.tiles_m), params.tiles_n, params.tiles_m);
    let row = number.y * TILE_M;
    let col = number.x * TILE_N;
    // This subgroup's matrices within the tile.
    let m = subgroup / ${ACROSS}u * ${MATRICES_M}u * ${SIZE}u;
    let n = subgroup % ${ACROSS}u * ${MATRICES_N}u * ${SIZE}u;
#for p in 0..${MATRICES_M}
#for q in 0..${MATRICES_N}
    var sum${p}_${q} = coop_mat${SIZE}x${SIZE}<f32, C>();
#end
#end
#for i in 0..${A_EACH}
    var next_a${i} = tile_of_a(at.a, row, 0u, min(index + ${i}u * INVOCATIONS, A_FOURS - 1u));
#end
#for i in 0..${B_EACH}
    var next_b${i} = tile_of_b(at.b, 0u, col, min(index + ${i}u * INVOCATIONS, B_FOURS - 1u));
#end
    // As bound() does, but seen to be uniform.
    let depth = select(params.k, 0u, surplus) + (tile >> 31u);
    for (var k = 0u; k < depth; k += ${DEPTH}u) {
        // Where there is none of this number, the last is written again, the same by all.
#for i in 0..${A_EACH}
        tile_a[min(index + ${i}u * INVOCATIONS, A_FOURS - 1u)] = next_a${i};
#end
#for i in 0..${B_EACH}
        tile_b[min(index + ${i}u * INVOCATIONS, B_FOURS - 1u)] = next_b${i};
#end
        workgroupBarrier();
#for i in 0..${A_EACH}
        next_a${i} = tile_of_a(at.a, row, k + ${DEPTH}u, min(index + ${i}u * INVOCATIONS, A_FOURS - 1u));
#end
#for i in 0..${B_EACH}
        next_b${i} = tile_of_b(at.b, k + ${DEPTH}u, col, min(index + ${i}u * INVOCATIONS, B_FOURS - 1u));
#end
        for (var l = 0u; l < ${DEPTH}u; l += ${SIZE}u) {
#for p in 0..${MATRICES_M}
#if A_BY_ROW
            let x${p} = coopLoad<coop_mat${SIZE}x${SIZE}<f16, A>>(&tile_a[l * A_STEP + (m + ${p}u * ${SIZE}u) / 4u], A_STEP);
#else
            let x${p} = coopLoadT<coop_mat${SIZE}x${SIZE}<f16, A>>(&tile_a[(m + ${p}u * ${SIZE}u) * A_STEP + l / 4u], A_STEP);
#endif
#end
#for q in 0..${MATRICES_N}
#if B_BY_COL
            let y${q} = coopLoadT<coop_mat${SIZE}x${SIZE}<f16, B>>(&tile_b[l * B_STEP + (n + ${q}u * ${SIZE}u) / 4u], B_STEP);
#else
            let y${q} = coopLoad<coop_mat${SIZE}x${SIZE}<f16, B>>(&tile_b[(n + ${q}u * ${SIZE}u) * B_STEP + l / 4u], B_STEP);
#endif
#end
#for p in 0..${MATRICES_M}
#for q in 0..${MATRICES_N}
            sum${p}_${q} = coopMultiplyAdd(x${p}, y${q}, sum${p}_${q});
#end
#end
        }
        workgroupBarrier();
    }
    let mine = subgroup * ${SIZE}u * ${SIZE}u;
#for p in 0..${MATRICES_M}
#for q in 0..${MATRICES_N}
    coopStoreT(sum${p}_${q}, &results[mine], ${SIZE}u);
    workgroupBarrier();
    if !surplus {
        keep_matrix(at.out, row + m + ${p}u * ${SIZE}u, col + n + ${q}u * ${SIZE}u, mine, lane);
    }
    workgroupBarrier();
#end
#end
}

// Stores a matrix of `results`, block by block.
fn keep_matrix(out: u32, row: u32, col: u32, first: u32, lane: u32) {
    const ACROSS: u32 = ${SIZE}u / 4u;
    for (var block = lane; block < ACROSS * ACROSS; block += ${LANES_EACH}u) {
        let r = block / ACROSS * 4u;
        let c = block % ACROSS * 4u;
        let i = first + r * ${SIZE}u + c;
        keep(
            out,
            row + r,
            col + c,
            mat4x4<f32>(
#for q in 0..4
                vec4<f32>(results[i + ${q}u * ${SIZE}u], results[i + ${q}u * ${SIZE}u + 1u], results[i + ${q}u * ${SIZE}u + 2u], results[i + ${q}u * ${SIZE}u + 3u]),
#end
            ),
        );
    }
}
