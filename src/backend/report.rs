//! What `WGRAD_DEBUG` prints, the same for both backends.
//!
//! 1: a line for each run; 2: also one for each kernel, with its time; 3: also its bindings and parameters;
//! 4: also its code.

use std::panic::Location;
use std::sync::OnceLock;
use std::time::Duration;

/// `WGRAD_DEBUG`, read once.
pub fn level() -> u32 {
    static LEVEL: OnceLock<u32> = OnceLock::new();
    *LEVEL.get_or_init(|| std::env::var("WGRAD_DEBUG").ok().and_then(|v| v.trim().parse().ok()).unwrap_or(0))
}

/// A dispatch and how long it took.
#[derive(Clone, Debug)]
pub struct Timing {
    pub label: String,
    /// The line of the user's code that recorded the last op in it.
    pub caller: &'static Location<'static>,
    pub grid: [u32; 3],
    /// Its number in the recording that was run.
    pub command: usize,
    /// When it began, from the beginning of the first of its run.
    pub start: Duration,
    pub duration: Duration,
    /// Of all bindings.
    pub bytes: u64,
    /// 0 where unknown.
    pub flops: u64,
}

impl Timing {
    /// The line of level 2.
    pub fn line(&self) -> String {
        let seconds = self.duration.as_secs_f64().max(1e-9);
        let [x, y, z] = self.grid;
        let grid = match (y, z) {
            (1, 1) => format!("{x}"),
            (_, 1) => format!("{x}x{y}"),
            _ => format!("{x}x{y}x{z}"),
        };
        format!(
            "  {:<40} {:>11} {:>9.3} ms {:>7.1} GB/s {:>8.1} GFLOP/s  {}:{}",
            self.label,
            grid,
            seconds * 1e3,
            self.bytes as f64 / seconds / 1e9,
            self.flops as f64 / seconds / 1e9,
            self.caller.file(),
            self.caller.line(),
        )
    }
}

/// The line of level 1.
pub fn run_line(
    device: &str,
    dispatches: usize,
    copies: usize,
    new_kernels: usize,
    encode: Duration,
) -> String {
    let ms = encode.as_secs_f64() * 1e3;
    format!(
        "wgrad {device}: {dispatches} dispatches, {copies} copies, {new_kernels} new kernels, {ms:.3} ms to encode"
    )
}
