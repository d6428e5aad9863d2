//! Runs loops with the widest vectors the processor has, from a build that assumes only the baseline.
//!
//! A loop is written as plain Rust in [`Work::run`], which is inlined into a copy of itself for each level of
//! vector extensions; LLVM vectorises each copy for its level.

/// A loop to be compiled once per level. `run` must be `#[inline(always)]`, and so must what it calls.
pub trait Work {
    type Output;
    fn run(self) -> Self::Output;
}

/// Does `work` in the copy that fits this processor.
#[inline]
pub fn vectorized<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    match x86::level() {
        // SAFETY: `level` found all the features that the function enables.
        x86::AVX512 => return unsafe { x86::avx512(work) },
        // SAFETY: as above.
        x86::AVX2 => return unsafe { x86::avx2(work) },
        _ => {}
    }
    // Other targets have their vectors (NEON, SIMD128) in the baseline.
    work.run()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Work;
    use std::sync::atomic::{AtomicU8, Ordering};

    const UNKNOWN: u8 = 0;
    const BASELINE: u8 = 1;
    pub const AVX2: u8 = 2;
    pub const AVX512: u8 = 3;

    #[inline]
    pub fn level() -> u8 {
        static LEVEL: AtomicU8 = AtomicU8::new(UNKNOWN);
        match LEVEL.load(Ordering::Relaxed) {
            UNKNOWN => {
                let found = detect();
                LEVEL.store(found, Ordering::Relaxed);
                found
            }
            found => found,
        }
    }

    #[cold]
    fn detect() -> u8 {
        use std::arch::is_x86_feature_detected as has;
        if !(has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2")) {
            BASELINE
        } else if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            AVX512
        } else {
            AVX2
        }
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
    pub fn avx2<W: Work>(work: W) -> W::Output {
        work.run()
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn avx512<W: Work>(work: W) -> W::Output {
        work.run()
    }
}
