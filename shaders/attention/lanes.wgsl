// Each of 8 invocations owns ROWS rows and has them, and their sums, in registers; STEP rows of theirs are read at a
// time, by one lane each where there are subgroups, since loads are what costs on a CPU's SIMD lanes.
alias Rows = vec${ROWS}<f32>;
alias Places = vec${ROWS}<u32>;
alias Flags = vec${ROWS}<bool>;

#for name shared in exp_of exp_or_zero, log_of w_log
fn ${name}(v: Rows) -> Rows {
#if FOUR
    return ${shared}4(v);
#else
    return vec2<f32>(${shared}(v.x), ${shared}(v.y));
#endif
}
#end

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
#for FLAG x columns FOURS in 1 x e ${E4}, BACKWARD y v ${V4}
#if ${FLAG}
    // They move up from the last places: a load for each place would be much code, which drivers take long to compile.
    var ${x}: array<Rows, 4 * ${FOURS}>;
    for (var d = 0u; d < bound(params.${columns}, tile); d += 4u) {
#for r in 0..${ROWS}
        let t${r} = load_${x}(at.${x}, inside[${r}], d);
#end
#for i in 1..${FOURS}
#for c in 0..4
        ${x}[${i}u * 4u + ${c}u - 4u] = ${x}[${i}u * 4u + ${c}u];
#end
#end
#for c in 0..4
#if FOUR
        ${x}[${FOURS}u * 4u - 4u + ${c}u] = vec4<f32>(t0[${c}], t1[${c}], t2[${c}], t3[${c}]);
#else
        ${x}[${FOURS}u * 4u - 4u + ${c}u] = vec2<f32>(t0[${c}], t1[${c}]);
#endif
#end
    }
#endif
#end
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
#if B_SUMS
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
            // Sums of every fourth column: of one there would be few for the processor to add up at a time.
            var dots: array<Rows, 4>;
#for d in 0..${E4}
            {
#if SUBGROUP
                let e = subgroupBroadcast(a[(${k}u * ${E4}u + ${d}u) / 8u], (${k}u * ${E4}u + ${d}u) % 8u);
#else
                let e = a[${k}u * ${E4}u + ${d}u];
#endif
#for c in 0..4
                dots[${c}] = fma(Rows(e[${c}]), x[${d}u * 4u + ${c}u], dots[${c}]);
#end
            }
#end
            var dot = (dots[0] + dots[1]) + (dots[2] + dots[3]);
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
            let p = select(Rows(), exp_of(dot - lse), counts);
            var slopes: array<Rows, 4>;
#for d in 0..${V4}
            {
#if SUBGROUP
                let e = subgroupBroadcast(b[(${k}u * ${V4}u + ${d}u) / 8u], (${k}u * ${V4}u + ${d}u) % 8u);
#else
                let e = b[${k}u * ${V4}u + ${d}u];
#endif
#for c in 0..4
                slopes[${c}] = fma(Rows(e[${c}]), y[${d}u * 4u + ${c}u], slopes[${c}]);
#if KEYS
                sum_b[${d}u * 4u + ${c}u] = fma(Rows(e[${c}]), p, sum_b[${d}u * 4u + ${c}u]);
#endif
#end
            }
#end
            let slope = (slopes[0] + slopes[1]) + (slopes[2] + slopes[3]);
            s[${k}] = select(Rows(), p * (slope - delta), counts);
#endif
        }
#end
#if FORWARD
        var greatest = most;
#for k in 0..${STEP}
        greatest = max(greatest, s[${k}]);
#end
        let shrink = exp_of(most - greatest);
        most = greatest;
        sum *= shrink;
#for k in 0..${STEP}
        s[${k}] = exp_of(s[${k}] - most);
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
    let lses = select(most + log_of(sum), -nothing, sum == Rows());
#endif
#endif
#if LSE
#for r in 0..${ROWS}
    if rows[${r}] < params.mine {
        store(params.lse_out + at.row + rows[${r}], lses[${r}]);
    }
#end
#endif
    // They move down to the one store.
#for FLAG sum out columns FOURS factor in A_SUMS sum_a a_out e ${E4} params.scale, B_SUMS sum_b b_out v ${V4} 1.0
#if ${FLAG}
    for (var d = 0u; d < bound(params.${columns}, tile); d += 4u) {
#for r in 0..${ROWS}
        var v${r} = ${factor} * vec4<f32>(${sum}[0][${r}], ${sum}[1][${r}], ${sum}[2][${r}], ${sum}[3][${r}]);
#end
        for (var r = 0u; r < bound(${ROWS}u, tile); r++) {
            if first + r < params.mine {
                keep(at.${out} + (first + r) * params.${out}_row, d, params.${columns}, v0);
            }
            v0 = v1;
#if FOUR
            v1 = v2;
            v2 = v3;
#endif
        }
#for i in 1..${FOURS}
#for c in 0..4
        ${sum}[${i}u * 4u + ${c}u - 4u] = ${sum}[${i}u * 4u + ${c}u];
#end
#end
    }
#endif
#end
}
