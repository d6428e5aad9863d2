// Stores the sums of a tile's rows, from `row` of `row_count` on, for those of the first column; the first is sum number
// `sums_at`. Lanes have them as they have loads: every eighth row, or four neighbours of each PIECES'th k, or all of all.
    {
#if A_BY_ROW
        const STEP: u32 = 1u;
        const COUNT: u32 = 4u;
        let first = row + lane * 4u;
        let has = lane < PIECES;
#if SUBGROUP
#for q in 0..4
        let sum${q} = subgroupShuffle(a_sums[${q}u * PIECES / 8u], ${q}u * PIECES % 8u + lane % PIECES);
#end
#else
#for q in 0..4
        var sum${q} = a_sums[${q}u * PIECES];
#for piece in 1..${ROWS}/4
        sum${q} = select(sum${q}, a_sums[${q}u * PIECES + ${piece}u], lane == ${piece}u);
#end
#end
#endif
        var sums = (sum0 + sum1) + (sum2 + sum3);
#else
#if SUBGROUP
        const STEP: u32 = 8u;
        const COUNT: u32 = ${LOADS}u;
        let has = true;
        var sums: vec4<f32>;
#for i in 0..${LOADS}
        sums[${i}] = (a_sums[${i}].x + a_sums[${i}].y) + (a_sums[${i}].z + a_sums[${i}].w);
#end
#else
        const STEP: u32 = 1u;
        const COUNT: u32 = 1u;
        let has = lane < ${ROWS}u;
        var own = a_sums[0];
#for i in 1..${ROWS}
        own = select(own, a_sums[${i}], lane == ${i}u);
#end
        var sums = vec4<f32>((own.x + own.y) + (own.z + own.w));
#endif
        let first = row + lane;
#endif
#if MORE
        let last_sum = (subgroupBroadcast(a_more, 0u) + subgroupBroadcast(a_more, 1u)) + (subgroupBroadcast(a_more, 2u) + subgroupBroadcast(a_more, 3u));
#else
        let last_sum = 0.0;
#endif
        if first_column {
            for (var i = 0u; i < bound(COUNT + ${MORE}u, tile); i++) {
                let is_last = i == COUNT;
                let r = select(first + i * STEP, row + ${ROWS}u, is_last);
                if r < row_count && select(has, lane == 0u, is_last) {
                    store_sum(sums_at + r, select(sums.x, last_sum, is_last));
                }
                sums = sums.yzwx;
            }
        }
    }
