// 64 invocations share tiles of 32 rows of mine and 32 of theirs; each has 4 x 4 scores, and of the sums 4 rows by
// one vec4 in 32 columns. What the next tile of operands needs is read ahead into registers, where possible, and stays
// there as it was read: to turn it or to cut it off would be to wait for it.

// Tiles of operands: fours of columns of mine and of theirs, the column among these, and vec4s along the rows; or fours
// of 32 rows, the row among these, and vec4s along 32 columns. What is known of an index costs no arithmetic.
var<workgroup> stage: array<array<array<vec4<f32>, 8>, 4>, 8>;
// With what all 32 rows of theirs count in the sums, by fours, and vec4s along mine.
#for FLAG x in A_SUMS a, B_SUMS b
#if ${FLAG}
var<workgroup> weights_${x}: array<array<array<vec4<f32>, 8>, 4>, 8>;
#endif
#end
#if FORWARD
var<workgroup> partial: array<f32, 256>;
#endif

alias Block = array<vec4<f32>, 4>;

// Where vec4 number `i` of some four lies, so that the fours' are in different banks.
fn slot(i: u32, fours: u32) -> u32 {
    return i ^ fours;
}

// Four columns of four rows; past the last row comes that one.
#for FLAG x in 1 x, BACKWARD y, 1 a, 1 b
#if ${FLAG}
fn rows_of_${x}(base: u32, row: u32, last: u32, col: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
#for r in 0..4
        load_${x}(base, min(row + ${r}u, last), col),
#end
    );
}
#endif
#end

#for FLAG products mine theirs columns in 1 scores x a e, BACKWARD slopes_of y b v
#if ${FLAG}
// The products of 32 rows of ${mine} from `start` with 32 of ${theirs} from `t`.
fn ${products}(at: Place, start: u32, t: u32, index: u32) -> Block {
    var s: Block;
    let row = index / 4u % 8u * 4u;
    let fours = index % 4u;
    var next: mat4x4<f32>;
    for (var d = 0u; d < params.${columns} + 16u; d += 16u) {
        // The first turn only reads, the last only multiplies.
        let ahead = d < params.${columns};
        if ahead {
            if index < 32u {
                next = rows_of_${mine}(at.${mine}, start + row, params.mine - 1u, d + fours * 4u);
            } else {
                next = rows_of_${theirs}(at.${theirs}, t + row, params.theirs - 1u, d + fours * 4u);
            }
        }
        if d > 0u {
#for g in 0..4
#for k in 0..4
            {
                let u = stage[${g}][${k}][slot(index / 8u, ${g}u)];
                let w = stage[${g} + 4][${k}][slot(index % 8u, ${g}u)];
#for r in 0..4
                s[${r}] = fma(vec4<f32>(u[${r}]), w, s[${r}]);
#end
            }
#end
#end
        }
        workgroupBarrier();
        if ahead {
            let turned = transpose(next);
#for c in 0..4
            stage[fours + index / 32u * 4u][${c}][slot(row / 4u, fours)] = select(vec4<f32>(), turned[${c}], d + fours * 4u + ${c}u < params.${columns});
#end
        }
        workgroupBarrier();
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
#if B_SUMS
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
#if A_SUMS
        let slope = slopes_of(at, start, t, index);
#endif
#endif
        // What the sums begin with.
#if A_SUMS
        var next = rows_of_a(at.a, t + down * 4u, theirs - 1u, across * 4u);
#else
        var next = rows_of_b(at.b, t + down * 4u, theirs - 1u, across * 4u);
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
            let p = select(vec4<f32>(), exp_or_zero4(dot - lse[${r}]), counts);
            s[${r}] = select(vec4<f32>(), p * (slope[${r}] - delta[${r}]), counts);
#endif
#if KEYS
            p[${r}] = select(vec4<f32>(), exp_or_zero4(dot - lse), counts);
#if A_SUMS
            s[${r}] = select(vec4<f32>(), p[${r}] * (slope[${r}] - delta), counts);
#endif
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
        let shrink = exp_or_zero4(most - greatest);
        most = greatest;
        sum *= shrink;
#for r in 0..4
        s[${r}] = exp_or_zero4(s[${r}] - most[${r}]);
        // Each invocation sums its own columns; the rows' sums are put together at the end.
        sum[${r}] += (s[${r}].x + s[${r}].y) + (s[${r}].z + s[${r}].w);
#for q in 0..${CHUNKS_B}
        sum_b[${q}u * 4u + ${r}u] *= shrink[${r}];
#end
#end
#endif
#for c in 0..4
#if A_SUMS
        weights_a[across][${c}][slot(down, across)] = vec4<f32>(s[0][${c}], s[1][${c}], s[2][${c}], s[3][${c}]);
#endif
#if B_SUMS
#if KEYS
        weights_b[across][${c}][slot(down, across)] = vec4<f32>(p[0][${c}], p[1][${c}], p[2][${c}], p[3][${c}]);
#else
        weights_b[across][${c}][slot(down, across)] = vec4<f32>(s[0][${c}], s[1][${c}], s[2][${c}], s[3][${c}]);
#endif
#endif
#end
#for FLAG x chunks THEN in A_SUMS a ${CHUNKS_A} B_SUMS, B_SUMS b ${CHUNKS_B} 0
#if ${FLAG}
#for q in 0..${chunks}
        workgroupBarrier();
#for i in 0..4
        stage[down][${i}][across] = next[${i}];
#end
        workgroupBarrier();
        if ${q}u + 1u < ${chunks}u {
            next = rows_of_${x}(at.${x}, t + down * 4u, theirs - 1u, ((${q}u + 1u) * 8u + across) * 4u);
        } else {
#if ${THEN}
            next = rows_of_b(at.b, t + down * 4u, theirs - 1u, across * 4u);
#endif
        }
        for (var g = 0u; g < 8u; g += 2u) {
#for h in 0..2
#for l in 0..4
            {
                let w = weights_${x}[g + ${h}u][${l}][slot(down, g + ${h}u)];
                let u = stage[g + ${h}u][${l}][across];
#for r in 0..4
                sum_${x}[${q}u * 4u + ${r}u] = fma(vec4<f32>(w[${r}]), u, sum_${x}[${q}u * 4u + ${r}u]);
#end
            }
#end
#end
        }
#end
#endif
#end
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
#if B_SUMS
#for q in 0..${CHUNKS_B}
        keep(at.b_out + (first + ${r}u) * params.b_out_row, (${q}u * 8u + across) * 4u, params.v, sum_b[${q}u * 4u + ${r}u]);
#end
#endif
#endif
#if FORWARD
#for q in 0..${CHUNKS_B}
        keep(at.b_out + (first + ${r}u) * params.b_out_row, (${q}u * 8u + across) * 4u, params.v, weight[${r}] * sum_b[${q}u * 4u + ${r}u]);
#end
#if LSE
        if across == 0u {
            store(params.lse_out + at.row + first + ${r}u, select(most[${r}] + w_log(total[${r}]), -nothing[${r}], total[${r}] == 0.0));
        }
#endif
#endif
    }
#end
}
