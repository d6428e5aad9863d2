//! Orders of samples, from a stream of random numbers of the loader's own: drawing tensors does not change
//! them, and they are the same everywhere.

/// The numbers below `n` in an order that depends on the seed and the epoch only.
pub fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    // The epoch goes through the mixer first: seeds and epochs are small numbers that must not collide by sum.
    let mut stream = SplitMix(seed ^ SplitMix(epoch).next());
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, stream.below(i as u64 + 1) as usize);
    }
    order
}

/// SplitMix64 ([Steele et al. 2014](https://doi.org/10.1145/2660193.2660195)).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`, each equally likely ([Lemire 2018](https://arxiv.org/abs/1805.10941)).
    fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(n);
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::permutation;

    #[test]
    fn permutations_are_whole_and_differ() {
        for n in [0, 1, 2, 1000] {
            let mut order = permutation(n, 3, 4);
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
        assert_eq!(permutation(1000, 3, 4), permutation(1000, 3, 4));
        assert_ne!(permutation(1000, 3, 4), permutation(1000, 4, 3));
        assert_ne!(permutation(1000, 3, 4), permutation(1000, 3, 5));
    }
}
