    // Part of a function: the row's greatest, `most`; `sum`, of exp(x - most), and, if EVEN, `rest`, of x - most itself.
#if EVEN
    var rests = vec4<f32>();
#endif
#if CHUNKS
    // Elements past the end repeat others, which does not change the greatest.
#for i in 0..${CHUNKS}
    let v${i} = load_x(base, first + ${i}u * STEP);
#end
    var greatest = v0;
#for i in 1..${CHUNKS}
    greatest = max(greatest, v${i});
#end
    let most = most_of(index, greatest);
#for i in 0..${CHUNKS}
    let e${i} = exp_of(v${i} - most);
    sums += only(first + ${i}u * STEP, e${i});
#if EVEN
    rests += only(first + ${i}u * STEP, v${i} - most);
#endif
#end
#else
    var greatest = load_x(base, 0u);
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        greatest = max(greatest, load_x(base, start + STEP * ${u}u));
#end
    }
    let most = most_of(index, greatest);
    for (var start = first; start < n; start += STEP * ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = start + STEP * ${u}u;
            let v = load_x(base, j) - most;
            sums += only(j, exp_of(v));
#if EVEN
            rests += only(j, v);
#endif
        }
#end
    }
#endif
    let sum = sum_of(index, sums);
#if EVEN
    let rest = sum_of(index, rests);
#endif
