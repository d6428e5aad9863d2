// Each of 8 invocations computes ROWS rows of 4 * FOURS columns, side by side. What it costs on a CPU's SIMD lanes is
// loads, so with subgroups a's elements, which all lanes need, are loaded by one lane each. Fours that begin in the
// middle of an aligned one (LOOSE) end in the next, so that one load gives a four all the same: along k the next is read
// in the next turn anyway, and else by the next lane, but for the last one's, which four lanes read for the turn's four k.
//
// MORE: one row and one column more, for sizes a little past a whole number of tiles. Four lanes read the turn's four
// elements of each, in fours that LOOSE ones need anyway if they lie at their end. Each lane adds up the column for
// those rows of which it holds a's elements; the row is one like the others.
const PIECES: u32 = ${ROWS}u / 4u;

// Four elements from any place, of which `first` are those of the aligned four in which they begin.
fn moved(at: u32, first: vec4<f32>, second: vec4<f32>) -> vec4<f32> {
    let two = (at & 2u) != 0u;
    let v = select(first, vec4<f32>(first.zw, second.xy), two);
    return select(v, vec4<f32>(v.yzw, select(second.x, second.z, two)), (at & 1u) != 0u);
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
    let at = place(tile / (params.tiles_n * params.tiles_m));
    // Tiles below one another follow each other, so that b's columns, mostly far apart in memory, stay near.
    let row = tile % params.tiles_m * (${ROWS}u + ${MORE}u);
    let left = tile / params.tiles_m % params.tiles_n * (32u * ${FOURS}u + ${MORE}u);
    let col = left + lane * (4u * ${FOURS}u);
    var acc: array<vec4<f32>, ${ROWS} * ${FOURS}>;
#if MORE
    var below: array<vec4<f32>, ${FOURS}>;
    var beside: vec4<f32>;
    var corner: f32;
#endif
#if A_LOOSE
#if A_BY_ROW
#else
    var next_a: array<vec4<f32>, ${LOADS}>;
#for i in 0..${LOADS}
    next_a[${i}] = a_four(a_at(at.a, row + ${i}u * 8u + lane, 0u));
#end
#endif
#endif
#if B_LOOSE
#if B_BY_COL
#else
    var next_b: array<vec4<f32>, 4 * ${FOURS}>;
#for i in 0..4*${FOURS}
    next_b[${i}] = b_four(b_at(at.b, 0u, col + ${i}u));
#end
#endif
#endif
    let depth = bound(params.k, tile);
    for (var k = 0u; k < depth; k += 4u) {
#if A_LOOSE
        let at_end_a = a_at(at.a, row + ${ROWS}u, k + lane % 4u);
#endif
#if B_LOOSE
        let at_end_b = b_at(at.b, k + lane % 4u, left + 32u * ${FOURS}u);
#endif
#for X BY x in A A_BY_ROW a, B B_BY_COL b
#if MORE
        let end_${x} = ${x}_four(at_end_${x});
        var more_${x} = moved(at_end_${x}, end_${x}, end_${x}).x;
#if K_TAIL
        more_${x} = select(0.0, more_${x}, k + lane % 4u < params.k);
#endif
#else
#if ${X}_LOOSE
#if ${BY}
        let end_${x} = ${x}_four(at_end_${x});
#endif
#endif
#endif
#end
        var x: array<vec4<f32>, ${LOADS}>;
#if A_LOOSE
#if A_BY_ROW
#for i in 0..${LOADS}
        {
            let piece = (lane + ${i}u * 8u) % PIECES;
            let q = (lane + ${i}u * 8u) / PIECES;
            let i = a_at(at.a, row + piece * 4u, k + q);
            let four = a_four(i);
            let next = select(subgroupShuffle(four, (lane + 1u) % 8u), subgroupShuffle(end_a, q), piece == PIECES - 1u);
            x[${i}] = moved(i, four, next);
#if K_TAIL
            x[${i}] = select(vec4<f32>(), x[${i}], k + q < params.k);
#endif
        }
#end
#else
#for i in 0..${LOADS}
        {
            let i = a_at(at.a, row + ${i}u * 8u + lane, k);
            let four = next_a[${i}];
            next_a[${i}] = a_four(i + 4u);
            x[${i}] = moved(i, four, next_a[${i}]);
#if K_TAIL
            x[${i}] = select(vec4<f32>(), x[${i}], (k + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(params.k));
#endif
        }
#end
#endif
#else
#for i in 0..${LOADS}
#if SUBGROUP
#if A_BY_ROW
        // Lane and load number the 4-row pieces of the tile, k by k.
        x[${i}] = load_a(at.a, row + (lane + ${i}u * 8u) % PIECES * 4u, k + (lane + ${i}u * 8u) / PIECES);
#else
        x[${i}] = load_a(at.a, row + ${i}u * 8u + lane, k);
#endif
#else
#if A_BY_ROW
        x[${i}] = load_a(at.a, row + ${i}u % PIECES * 4u, k + ${i}u / PIECES);
#else
        x[${i}] = load_a(at.a, row + ${i}u, k);
#endif
#endif
#end
#endif
#for q in 0..4
        var y${q}: array<vec4<f32>, ${FOURS}>;
#end
#if B_BY_COL
#if B_LOOSE
#for q in 0..4
        {
            let i = b_at(at.b, k + ${q}u, col);
            var four = b_four(i);
            let next = select(subgroupShuffle(four, (lane + 1u) % 8u), subgroupBroadcast(end_b, ${q}u), lane == 7u);
#for c in 1..${FOURS}
            let four${c} = b_four(i + 4u * ${c}u);
            y${q}[${c}u - 1u] = moved(i, four, four${c});
            four = four${c};
#end
            y${q}[${FOURS}u - 1u] = moved(i, four, next);
#if K_TAIL
#for c in 0..${FOURS}
            y${q}[${c}] = select(vec4<f32>(), y${q}[${c}], k + ${q}u < params.k);
#end
#endif
        }
#end
#else
#for q in 0..4
#for c in 0..${FOURS}
        y${q}[${c}] = load_b(at.b, k + ${q}u, col + ${c}u * 4u);
#end
#end
#endif
#else
#for c in 0..${FOURS}
        {
            var t: mat4x4<f32>;
#for q in 0..4
#if B_LOOSE
            {
                let i = b_at(at.b, k, col + ${c}u * 4u + ${q}u);
                let four = next_b[${c}u * 4u + ${q}u];
                next_b[${c}u * 4u + ${q}u] = b_four(i + 4u);
                t[${q}] = moved(i, four, next_b[${c}u * 4u + ${q}u]);
#if K_TAIL
                t[${q}] = select(vec4<f32>(), t[${q}], (k + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(params.k));
#endif
            }
#else
            t[${q}] = load_b(at.b, k, col + ${c}u * 4u + ${q}u);
#endif
#end
            t = transpose(t);
#for q in 0..4
            y${q}[${c}] = t[${q}];
#end
        }
#end
#endif
#if MORE
#for q in 0..4
        {
            let under = subgroupBroadcast(more_a, ${q}u);
            let right = subgroupBroadcast(more_b, ${q}u);
#for c in 0..${FOURS}
            below[${c}] = fma(vec4<f32>(under), y${q}[${c}], below[${c}]);
#end
            corner = fma(under, right, corner);
#if A_BY_ROW
            beside = fma(x[${q}], vec4<f32>(right), beside);
#else
            beside = fma(vec4<f32>(x[0][${q}], x[1][${q}], x[2][${q}], x[3][${q}]), vec4<f32>(right), beside);
#endif
        }
#end
#endif
#for piece in 0..${ROWS}/4
#for r in 0..4
        {
            // A row at a time, so that its sums stay in registers for all four k.
#if A_BY_ROW
#else
#if SUBGROUP
            let e = subgroupBroadcast(x[(${piece}u * 4u + ${r}u) / 8u], (${piece}u * 4u + ${r}u) % 8u);
#else
            let e = x[${piece}u * 4u + ${r}u];
#endif
#endif
#for c in 0..${FOURS}
            var s${c} = acc[(${piece}u * 4u + ${r}u) * ${FOURS}u + ${c}u];
#end
#for q in 0..4
            {
#if A_BY_ROW
#if SUBGROUP
                let own = subgroupBroadcast(x[(${q}u * PIECES + ${piece}u) / 8u][${r}], (${q}u * PIECES + ${piece}u) % 8u);
#else
                let own = x[${q}u * PIECES + ${piece}u][${r}];
#endif
#else
                let own = e[${q}];
#endif
#for c in 0..${FOURS}
                s${c} = fma(vec4<f32>(own), y${q}[${c}], s${c});
#end
            }
#end
#for c in 0..${FOURS}
            acc[(${piece}u * 4u + ${r}u) * ${FOURS}u + ${c}u] = s${c};
#end
        }
#end
#end
    }
    // Indexing acc at run time would force it to memory, and a store for each row would be much code, which software
    // drivers take long to compile: blocks of four rows are picked, and theirs move up one by one.
    let blocks = (min(${ROWS}u, params.m - row) + 3u) / 4u;
    for (var block = 0u; block < blocks; block++) {
        let top = row + block * 4u;
#for c in 0..${FOURS}
        {
            var v: mat4x4<f32>;
#for q in 0..4
            v[${q}] = acc[${q}u * ${FOURS}u + ${c}u];
#for i in 1..${ROWS}/4
            v[${q}] = select(v[${q}], acc[(${i}u * 4u + ${q}u) * ${FOURS}u + ${c}u], block == ${i}u);
#end
#end
            let first = at.out + top * params.out_m + (col + ${c}u * 4u) * params.out_n;
#if TURNED
            v = transpose(v);
#endif
#if VEC4
            for (var q = 0u; q < bound(4u, tile); q++) {
#if TURNED
                if top < params.m && col + ${c}u * 4u + q < params.n {
                    store4_at((first + q * params.out_n) / 4u, top, v[0]);
                }
#else
                if top + q < params.m && col + ${c}u * 4u < params.n {
                    store4_at((first + q * params.out_m) / 4u, col + ${c}u * 4u, v[0]);
                }
#endif
                v = mat4x4<f32>(v[1], v[2], v[3], v[0]);
            }
#else
            for (var r = 0u; r < bound(4u, tile); r++) {
                // Where all sixteen move each time, that costs as much as half a store.
                for (var q = 0u; q < bound(4u, tile); q++) {
                    if top + r < params.m && col + ${c}u * 4u + q < params.n {
                        store_at(first + r * params.out_m + q * params.out_n, last(top + r, col + ${c}u * 4u + q), v[0].x);
                    }
                    v[0] = v[0].yzwx;
                }
                v = mat4x4<f32>(v[1], v[2], v[3], v[0]);
            }
#endif
        }
#end
    }
#if MORE
    // The row below, the column beside and the corner move up one by one, too.
    for (var q = 0u; q < bound(4u * ${FOURS}u + 5u, tile); q++) {
        let past = q - 4u * ${FOURS}u;
#if A_BY_ROW
        let own = row + lane * 4u + past;
#else
        let own = row + past * 8u + lane;
#endif
        let is_below = q < 4u * ${FOURS}u;
        let r = select(own, row + ${ROWS}u, is_below || past == 4u);
        let c = select(left + 32u * ${FOURS}u, col + q, is_below);
        if r < params.m && c < params.n && (q < 4u * ${FOURS}u + 4u || lane == 0u) {
            store_at(at.out + r * params.out_m + c * params.out_n, last(r, c), below[0].x);
        }
#for c in 1..${FOURS}
        below[${c} - 1] = vec4<f32>(below[${c} - 1].yzw, below[${c}].x);
#end
        below[${FOURS} - 1] = vec4<f32>(below[${FOURS} - 1].yzw, beside.x);
        beside = vec4<f32>(beside.yzw, corner);
    }
#endif
}
