// Subgroups multiply SIZE-squared matrices of halves as one, and add up in single precision. DOWN x ACROSS subgroups
// share tiles of a and b, DEPTH deep; each has MATRICES_M x MATRICES_N matrices of the output. What the next tiles
// need is read ahead, and cut off at k only when it is stored, since that waits for it.

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

#for X x BY side size STEP along across in A a A_BY_ROW row m A_STEP a_k a_m, B b B_BY_COL col n B_STEP b_k b_n
// How far along k four number `i` of a tile begins.
fn depth_of_${x}(i: u32) -> u32 {
#if ${BY}
    return i / ${STEP};
#else
    return i % ${STEP} * 4u;
#endif
}

// Where it is for k = 0, in the tile from ${side} on. Past the edges come others.
fn four_of_${x}(base: u32, ${side}: u32, i: u32) -> u32 {
#if ${BY}
    var line = ${side} + i % ${STEP} * 4u;
#if ${X}_VEC
    line = min(line, params.${size} - 4u);
#endif
#else
    let line = min(${side} + i / ${STEP}, params.${size} - 1u);
#endif
    return base + line * params.${across} + depth_of_${x}(i) * params.${along};
}

// The same, so many k further. Past k comes whatever lies there.
fn read_${x}(at: u32, k: u32) -> vec4<f16> {
    let i = at + k * params.${along};
#if ${X}_VEC
    return ${x}_four(i);
#else
#if ${BY}
    let step = params.${across};
#else
    let step = params.${along};
#endif
    return vec4<f16>(${x}_one(i), ${x}_one(i + step), ${x}_one(i + 2u * step), ${x}_one(i + 3u * step));
#endif
}

// With zeros past k.
fn cut_${x}(v: vec4<f16>, k: u32) -> vec4<f16> {
#if ${BY}
    return select(vec4<f16>(), v, k < params.k);
#else
    return select(vec4<f16>(), v, (k + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(params.k));
#endif
}
#end

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
    // Where there is none of this number, the last is read and written again, the same by all.
#for x side FOURS each in a row A_FOURS ${A_EACH}, b col B_FOURS ${B_EACH}
#for i in 0..${each}
    let four_${x}${i} = min(index + ${i}u * INVOCATIONS, ${FOURS} - 1u);
    let at_${x}${i} = four_of_${x}(at.${x}, ${side}, four_${x}${i});
    var next_${x}${i} = read_${x}(at_${x}${i}, 0u);
#end
#end
    // As bound() does, but seen to be uniform.
    let depth = select(params.k, 0u, surplus) + (tile >> 31u);
    for (var k = 0u; k < depth; k += ${DEPTH}u) {
#for x each in a ${A_EACH}, b ${B_EACH}
#for i in 0..${each}
        if k + ${DEPTH}u > params.k {
            next_${x}${i} = cut_${x}(next_${x}${i}, k + depth_of_${x}(four_${x}${i}));
        }
        tile_${x}[four_${x}${i}] = next_${x}${i};
#end
#end
        workgroupBarrier();
        if k + ${DEPTH}u < depth {
#for x each in a ${A_EACH}, b ${B_EACH}
#for i in 0..${each}
            next_${x}${i} = read_${x}(at_${x}${i}, k + ${DEPTH}u);
#end
#end
        }
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
