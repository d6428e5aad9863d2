// Stores the sums of a tile's columns, for those of the first row; each lane has its own.
    {
        var sums: array<vec4<f32>, ${FOURS}>;
#for c in 0..${FOURS}
        sums[${c}] = (b_sums0[${c}] + b_sums1[${c}]) + (b_sums2[${c}] + b_sums3[${c}]);
#end
#if MORE
        let last_sum = (subgroupBroadcast(b_more, 0u) + subgroupBroadcast(b_more, 1u)) + (subgroupBroadcast(b_more, 2u) + subgroupBroadcast(b_more, 3u));
#else
        let last_sum = 0.0;
#endif
        if row == 0u {
            for (var i = 0u; i < bound(4u * ${FOURS}u + ${MORE}u, tile); i++) {
                let is_last = i == 4u * ${FOURS}u;
                let c = select(col + i, left + 32u * ${FOURS}u, is_last);
                if c < params.n && (lane == 0u || !is_last) {
                    store_sum(at.out / params.m + c, select(sums[0].x, last_sum, is_last));
                }
#for c in 1..${FOURS}
                sums[${c} - 1] = vec4<f32>(sums[${c} - 1].yzw, sums[${c}].x);
#end
                sums[${FOURS} - 1] = sums[${FOURS} - 1].yzww;
            }
        }
    }
