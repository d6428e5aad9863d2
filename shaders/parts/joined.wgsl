// What the invocations that share a row make of their parts of it. AGAIN: sum_of is called more than once.
#if TEAM
#if SUBGROUP
#else
var<workgroup> shared_values: array<f32, ${WIDTH}>;
#endif
#endif

// The row's greatest; of NaN and a number either, as the sum of exponentials will be NaN all the same.
fn most_of(index: u32, v: vec4<f32>) -> f32 {
    let own = max(max(v.x, v.y), max(v.z, v.w));
#if TEAM
#if SUBGROUP
    return subgroupMax(own);
#else
    shared_values[index] = own;
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            shared_values[index] = max(shared_values[index], shared_values[index + half]);
        }
        workgroupBarrier();
    }
    let most = shared_values[0];
    workgroupBarrier();
    return most;
#endif
#else
    return own;
#endif
}

// The row's sum.
fn sum_of(index: u32, v: vec4<f32>) -> f32 {
    let own = (v.x + v.y) + (v.z + v.w);
#if TEAM
#if SUBGROUP
    return subgroupAdd(own);
#else
    shared_values[index] = own;
    workgroupBarrier();
    for (var half = ${WIDTH}u / 2u; half > 0u; half /= 2u) {
        if index < half {
            shared_values[index] += shared_values[index + half];
        }
        workgroupBarrier();
    }
    let sum = shared_values[0];
#if AGAIN
    workgroupBarrier();
#endif
    return sum;
#endif
#else
    return own;
#endif
}
