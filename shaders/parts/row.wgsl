    // The beginning of a kernel: whose row it is, and where that begins.
    let number = (group.z * grid.y + group.y) * grid.x + group.x;
#if TEAM
    let row = number;
    const STEP = ${WIDTH}u * 4u;
    let first = index * 4u;
#else
    let row = number * ${WIDTH}u + index;
    const STEP = 4u;
    const first = 0u;
#endif
    if row >= params.rows {
        return;
    }
    let base = row / params.inner * params.n * params.inner + row % params.inner;
    // `| row >> 31` is nothing, but makes of n more than a uniform: for those, some software drivers compile
    // the kernel anew at each dispatch.
    let n = params.n | (row >> 31u);
