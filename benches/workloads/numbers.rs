//! The suite's numbers: functions of a seed and an index alone, the same for every library.

use wgrad::prelude::*;

/// `[-scale, scale)`.
pub fn values(device: &Device, seed: u32, shape: &[usize], scale: f32) -> Tensor {
    let n = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> =
        (0..n).map(|i| ((hash(seed, i) >> 8) as f32 / 8_388_608.0 - 1.0) * scale).collect();
    options().device(device).from_slice(&values, shape)
}

/// Integers below `below`.
pub fn integers(seed: u32, n: usize, below: u32) -> Vec<i32> {
    (0..n as u32).map(|i| ((hash(seed, i) >> 8) % below) as i32).collect()
}

fn hash(seed: u32, i: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9E37_79B9).wrapping_add(seed.wrapping_mul(0x85EB_CA6B));
    x ^= x >> 16;
    x = x.wrapping_mul(0x7FEB_352D);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

pub fn mean_of_magnitudes(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len() as f64
}
