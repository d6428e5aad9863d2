// `n`, as a loop's bound. Where a bound is nothing but a uniform, some software drivers compile the kernel anew
// for each value at each dispatch; so an always-zero bit that is not uniform is mixed in.
fn bound(n: u32, number: u32) -> u32 {
    return n + (number >> 31u);
}

// The column and row of tile `number` among so many across and down. Tiles go in stripes of 8 rows, so that those that
// run together read the same few rows and columns.
fn striped(number: u32, across: u32, down: u32) -> vec2<u32> {
    let stripe = number / (8u * across) * 8u;
    let high = min(8u, down - stripe);
    let within = number - stripe * across;
    return vec2<u32>(within / high, stripe + within % high);
}
