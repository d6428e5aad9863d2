// Rows of any width, of which LANES would have too many columns in registers: a software driver takes seconds to compile that.
// 8 invocations share ROWS rows of mine and see 32 of theirs at a time, of which each has the scores of four: products
// over the columns, in a loop, as in shaders/matmul/lanes.wgsl. Then each has four in 32 columns of what comes out (FOURS_A,
// FOURS_B times), and asks the lane that has them for the weights of EACH_A or EACH_B rows of theirs at a time.
// So there are the fewer loads and multiplications in the code the more columns there are.
const BLOCKS: u32 = ${ROWS}u / 4u;

@compute @workgroup_size(8)
fn wide(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let tile = (group.z * grid.y + group.y) * grid.x + group.x;
    if tile >= params.tiles {
        return;
    }
    let at = place(tile / params.row_tiles);
    let start = tile % params.row_tiles * ${ROWS}u;
    // Of the rows of mine, each lane loads those whose number ends in its own.
    var own: array<u32, ${ROWS} / 8>;
#for i in 0..${ROWS}/8
    own[${i}] = min(start + ${i}u * 8u + lane, params.mine - 1u);
#end
#if FORWARD
    var most: array<vec4<f32>, BLOCKS>;
    // Of each lane's own columns; they are added up at the end.
    var sum: array<vec4<f32>, BLOCKS>;
    var shrink: array<vec4<f32>, BLOCKS>;
    let nothing = vec4<f32>(-inf());
#for i in 0..${ROWS}/4
    most[${i}] = vec4<f32>(LOWEST);
#end
#endif
#if QUERIES
    var lses: array<f32, ${ROWS} / 8>;
    var deltas: array<f32, ${ROWS} / 8>;
#for i in 0..${ROWS}/8
    lses[${i}] = lse_in[params.lse_offset + at.row + own[${i}]];
    deltas[${i}] = delta_in[params.delta_offset + at.row + own[${i}]];
#end
#endif
#if A_SUMS
    var sum_a: array<vec4<f32>, ${ROWS} * ${FOURS_A}>;
#endif
#if B_SUMS
    var sum_b: array<vec4<f32>, ${ROWS} * ${FOURS_B}>;
#endif
    let theirs = bound(params.theirs, tile);
#if CAUSAL
#if KEYS
    let begin = start;
    let end = theirs;
#else
    let begin = 0u;
    let end = min(theirs, start + ${ROWS}u);
#endif
#else
    let begin = 0u;
    let end = theirs;
#endif
    for (var t = begin; t < end; t += 32u) {
        let j = t + lane * 4u + vec4<u32>(0u, 1u, 2u, 3u);
        let other = min(j, vec4<u32>(theirs - 1u));
#for FLAG s x a columns in 1 s x a e, BACKWARD slope y b v
#if ${FLAG}
        var ${s}: array<vec4<f32>, ${ROWS}>;
        let ${columns} = bound(params.${columns}, tile);
        for (var d = 0u; d < ${columns}; d += 4u) {
            var u: array<vec4<f32>, ${ROWS} / 8>;
#for i in 0..${ROWS}/8
            u[${i}] = load_${x}(at.${x}, own[${i}], d);
#end
            var w: mat4x4<f32>;
#for q in 0..4
            w[${q}] = load_${a}(at.${a}, other[${q}], d);
#end
            w = transpose(w);
#for r in 0..${ROWS}
            {
                let e = subgroupBroadcast(u[${r}u / 8u], ${r}u % 8u);
                var dot = ${s}[${r}];
#for c in 0..4
                dot = fma(vec4<f32>(e[${c}]), w[${c}], dot);
#end
                ${s}[${r}] = dot;
            }
#end
        }
#endif
#end
#if KEYS
        let lse = vec4<f32>(lse_in[params.lse_offset + at.row + other.x], lse_in[params.lse_offset + at.row + other.y], lse_in[params.lse_offset + at.row + other.z], lse_in[params.lse_offset + at.row + other.w]);
        let delta = vec4<f32>(delta_in[params.delta_offset + at.row + other.x], delta_in[params.delta_offset + at.row + other.y], delta_in[params.delta_offset + at.row + other.z], delta_in[params.delta_offset + at.row + other.w]);
#endif
        // The first four rows, while the others move up.
        for (var block = 0u; block < bound(BLOCKS, tile); block++) {
#if QUERIES
            var own_lse = lses[0];
            var own_delta = deltas[0];
#for i in 1..${ROWS}/8
            own_lse = select(own_lse, lses[${i}], block / 2u == ${i}u);
            own_delta = select(own_delta, deltas[${i}], block / 2u == ${i}u);
#end
#endif
#for q in 0..4
            var new_s${q}: vec4<f32>;
#if BACKWARD
            var new_slope${q}: vec4<f32>;
#endif
            {
                let row = start + block * 4u + ${q}u;
                var counts = j < vec4<u32>(theirs);
#if CAUSAL
#if KEYS
                counts = counts & (j >= vec4<u32>(row));
#else
                counts = counts & (j <= vec4<u32>(row));
#endif
#endif
                var dot = s[${q}] * params.scale;
#if MASK
                let m = at.mask + min(row, params.mine - 1u) * params.mask_mine + other * params.mask_theirs;
#if BOOLS
                counts = counts & (vec4<u32>(mask_in[m.x], mask_in[m.y], mask_in[m.z], mask_in[m.w]) != vec4<u32>());
#else
                dot += vec4<f32>(mask_in[m.x], mask_in[m.y], mask_in[m.z], mask_in[m.w]);
#endif
#endif
#if FORWARD
                new_s${q} = select(nothing, dot, counts);
#else
#if QUERIES
                let lse = subgroupShuffle(own_lse, (block * 4u + ${q}u) % 8u);
                let delta = subgroupShuffle(own_delta, (block * 4u + ${q}u) % 8u);
#endif
                new_s${q} = select(vec4<f32>(), exp_or_zero4(dot - lse), counts);
                new_slope${q} = select(vec4<f32>(), new_s${q} * (slope[${q}] - delta), counts);
#endif
            }
#end
#if FORWARD
            var greatest: vec4<f32>;
#for q in 0..4
            greatest[${q}] = max(max(new_s${q}.x, new_s${q}.y), max(new_s${q}.z, new_s${q}.w));
#end
#for distance in 1, 2, 4
            greatest = max(greatest, subgroupShuffleXor(greatest, ${distance}u));
#end
            greatest = max(greatest, most[0]);
            let less = exp_or_zero4(most[0] - greatest);
            var total = sum[0] * less;
#for q in 0..4
            new_s${q} = exp_or_zero4(new_s${q} - greatest[${q}]);
            total[${q}] += (new_s${q}.x + new_s${q}.y) + (new_s${q}.z + new_s${q}.w);
#end
#for i in 1..${ROWS}/4
            most[${i}u - 1u] = most[${i}];
            sum[${i}u - 1u] = sum[${i}];
            shrink[${i}u - 1u] = shrink[${i}];
#end
            most[BLOCKS - 1u] = greatest;
            sum[BLOCKS - 1u] = total;
            shrink[BLOCKS - 1u] = less;
#endif
#for i in 1..${ROWS}/4
#for q in 0..4
            s[${i}u * 4u + ${q}u - 4u] = s[${i}u * 4u + ${q}u];
#if BACKWARD
            slope[${i}u * 4u + ${q}u - 4u] = slope[${i}u * 4u + ${q}u];
#endif
#end
#end
#for q in 0..4
            s[BLOCKS * 4u - 4u + ${q}u] = new_s${q};
#if BACKWARD
            slope[BLOCKS * 4u - 4u + ${q}u] = new_slope${q};
#endif
#end
        }
#if FORWARD
#for r in 0..${ROWS}
#for f in 0..${FOURS_B}
        sum_b[${r}u * ${FOURS_B}u + ${f}u] *= shrink[${r}u / 4u][${r}u % 4u];
#end
#end
#endif
        let lanes = (min(32u, end - t) + 3u) / 4u;
#for FLAG sum s b columns FOURS EACH TURNED in A_SUMS sum_a slope a e ${FOURS_A} ${EACH_A} ${TURNED_A}, B_SUMS sum_b s b v ${FOURS_B} ${EACH_B} ${TURNED_B}
#if ${FLAG}
        for (var k = 0u; k < bound(4u, tile); k += ${EACH}u) {
            for (var i = 0u; i < lanes; i++) {
                let next = t + i * 4u + k;
#for k in 0..${EACH}
                var w${k}: array<vec4<f32>, ${FOURS}>;
#for f in 0..${FOURS}
#if VEC
                w${k}[${f}] = load_${b}(at.${b}, min(next + ${k}u, theirs - 1u), min(${f}u * 32u + lane * 4u, params.${columns} - 4u));
#else
                w${k}[${f}] = load_${b}(at.${b}, min(next + ${k}u, theirs - 1u), ${f}u * 32u + lane * 4u);
#endif
#end
#end
#for r in 0..${ROWS}
                {
#for f in 0..${FOURS}
                    var v${f} = ${sum}[${r}u * ${FOURS}u + ${f}u];
#end
#for k in 0..${EACH}
                    let p${k} = vec4<f32>(subgroupShuffle(${s}[${r}][${k}], i));
#for f in 0..${FOURS}
                    v${f} = fma(p${k}, w${k}[${f}], v${f});
#end
#end
#for f in 0..${FOURS}
                    ${sum}[${r}u * ${FOURS}u + ${f}u] = v${f};
#end
                }
#end
            }
#for r in 0..${ROWS}
            ${s}[${r}] = ${s}[${r}].${TURNED};
#end
        }
#endif
#end
    }
#if FORWARD
    for (var block = 0u; block < bound(BLOCKS, tile); block++) {
        var total = sum[0];
        let greatest = most[0];
#for distance in 1, 2, 4
        total += subgroupShuffleXor(total, ${distance}u);
#end
#if LSE
        let lse = select(greatest + w_log4(total), -nothing, total == vec4<f32>());
        let mine = select(select(lse.x, lse.y, lane == 1u), select(lse.z, lse.w, lane == 3u), lane >= 2u);
        let row = start + block * 4u + lane;
        if lane < 4u && row < params.mine {
            store(params.lse_out + at.row + row, mine);
        }
#endif
        // Rows that see nothing are zero, and their probabilities, found again from an infinite sum, too.
        total = select(1.0 / total, vec4<f32>(), total == vec4<f32>());
#for i in 1..${ROWS}/4
        sum[${i}u - 1u] = sum[${i}];
        most[${i}u - 1u] = most[${i}];
#end
        sum[BLOCKS - 1u] = total;
    }
#endif
    // As in products, what is to be stored is picked, and moves up to the one store.
#for FLAG sum out columns FOURS factor in A_SUMS sum_a a_out e ${FOURS_A} params.scale, B_SUMS sum_b b_out v ${FOURS_B} 1.0
#if ${FLAG}
    for (var n = 0u; n < bound(BLOCKS * ${FOURS}u, tile); n++) {
        let block = n / ${FOURS}u;
        var v: mat4x4<f32>;
#for i in 0..${ROWS}/4
#for f in 0..${FOURS}
#for q in 0..4
        v[${q}] = select(v[${q}], ${sum}[(${i}u * 4u + ${q}u) * ${FOURS}u + ${f}u], n == ${i}u * ${FOURS}u + ${f}u);
#end
#end
#end
#if FORWARD
        var weight = sum[0];
#for i in 1..${ROWS}/4
        weight = select(weight, sum[${i}], block == ${i}u);
#end
#for q in 0..4
        v[${q}] *= weight[${q}];
#end
#endif
        let top = start + block * 4u;
        let col = n % ${FOURS}u * 32u + lane * 4u;
        for (var q = 0u; q < bound(4u, tile); q++) {
            if top + q < params.mine {
                keep(at.${out} + (top + q) * params.${out}_row, col, params.${columns}, ${factor} * v[0]);
            }
            v = mat4x4<f32>(v[1], v[2], v[3], v[0]);
        }
    }
#endif
#end
}
