// `n`, as a loop's bound. Where a bound is nothing but a uniform, some software drivers compile the kernel anew
// for each value at each dispatch; so an always-zero bit that is not uniform is mixed in.
fn bound(n: u32, number: u32) -> u32 {
    return n + (number >> 31u);
}
