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
            let p = select(vec4<f32>(), exp_or_zero4(dot - lse[${r}]), counts);
            s[${r}] = select(vec4<f32>(), p * (slope[${r}] - delta[${r}]), counts);
#endif
#if KEYS
            p[${r}] = select(vec4<f32>(), exp_or_zero4(dot - lse), counts);
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
            store(params.lse_out + at.row + first + ${r}u, select(most[${r}] + w_log(total[${r}]), -nothing[${r}], total[${r}] == 0.0));
        }
#endif
#endif
    }
#end
}
