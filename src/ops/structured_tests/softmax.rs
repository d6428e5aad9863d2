//! Softmax and its gradient.

use super::*;
use crate::ops::softmax::{Softmax, SoftmaxBackward};

fn softmax(x: &[f32], [outer, n, inner]: [usize; 3], log: bool) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for row in 0..outer * inner {
        let base = row / inner * n * inner + row % inner;
        let v: Vec<f64> = (0..n).map(|j| f64::from(x[base + j * inner])).collect();
        let most = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = v.iter().map(|v| (v - most).exp()).sum();
        for j in 0..n {
            out[base + j * inner] = if log { v[j] - most - sum.ln() } else { (v[j] - most).exp() / sum };
        }
    }
    out
}

fn softmax_backward(g: &[f32], y: &[f32], [outer, n, inner]: [usize; 3], log: bool) -> Vec<f64> {
    let mut out = vec![0.0; g.len()];
    for row in 0..outer * inner {
        let base = row / inner * n * inner + row % inner;
        let of = |v: &[f32], j: usize| f64::from(v[base + j * inner]);
        let sum: f64 = (0..n).map(|j| of(g, j) * if log { 1.0 } else { of(y, j) }).sum();
        for j in 0..n {
            out[base + j * inner] =
                if log { of(g, j) - of(y, j).exp() * sum } else { (of(g, j) - sum) * of(y, j) };
        }
    }
    out
}

const SOFTMAX_SHAPES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [128, 10, 1],
    [3, 16, 1],
    [40, 33, 1],
    [2, 100, 1],
    [20, 64, 3],
    [2, 7, 50],
    [1, 5000, 1],
    [1, 1001, 2],
    [0, 4, 1],
    [33, 32, 1],
    [1, 300_004, 1],
];

#[test]
fn softmax_and_its_gradient() {
    for shape in SOFTMAX_SHAPES {
        for log in [false, true] {
            let layout = Layout { offset: shape[0] % 3, ..Layout::contiguous(&shape) };
            let (size, skip) = (numel(&shape), layout.offset);
            let x: Vec<f32> = noise(size + skip, 9).iter().map(|v| v * 20.0).collect();
            let y: Vec<f32> = noise(size + skip, 10);
            let forward = softmax(&x[skip..], shape, log);
            let backward = softmax_backward(&x[skip..], &y[skip..], shape, log);
            for device in devices() {
                let name = format!("{shape:?} log={log} on {}", device.name());
                let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
                let plain = call(Softmax { log }, &[(F32, layout.clone())], &shape, F32);
                close(&name, &run(&*device, &plain, &data[..1]).unwrap(), &forward, 3e-6);
                if shape[2] == 1 && size > 0 {
                    let (fused, c) = with_epilogue(plain);
                    // The last dimension is 1, so `c` is one number.
                    let sums: Vec<f64> =
                        forward.iter().map(|v| v + f64::from(f32::from_bytes(&c)[0])).collect();
                    close(&name, &run(&*device, &fused, &[data[0].clone(), c]).unwrap(), &sums, 3e-6);
                }
                let op = SoftmaxBackward { log };
                let grad = call(op, &[(F32, layout.clone()), (F32, layout.clone())], &shape, F32);
                close(&name, &run(&*device, &grad, &data).unwrap(), &backward, 2e-4);
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_softmax() {
    use crate::ops::row_kernels::{Kernel, Rows};
    use crate::ops::softmax::{VARIANTS, calls};
    let device = gpu();
    for &(kernel, _) in VARIANTS {
        if !kernel.runs_on(device.info()) {
            continue;
        }
        let shapes = [[5, 12, 1], [70, 10, 1], [3, 30, 9], [2, 20, 1], [9, 64, 1], [3, 260, 1], [2, 1027, 1]];
        for (i, shape) in shapes.into_iter().enumerate() {
            if kernel == Kernel::Registers && shape[1] > 100 {
                continue;
            }
            for log in [false, true] {
                // Some rows are not aligned to fours.
                let layout = Layout { offset: [0, 4, 3][i % 3], ..Layout::contiguous(&shape) };
                let size = layout.end();
                let (x, y) = (noise(size, 11), noise(size, 12));
                for inputs in [1, 2] {
                    let op = Forced("forced_softmax", true, None, move |call: &Structured| {
                        let rows = Rows::new(&call.inputs[0].1, gpu().info());
                        calls(&rows, kernel, call, log)
                    });
                    let call = call(op, &vec![(F32, layout.clone()); inputs], &shape, F32);
                    let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
                    let got = run(&*device, &call, &data[..inputs]).unwrap();
                    let expected = if inputs == 1 {
                        softmax(&x[layout.offset..], shape, log)
                    } else {
                        softmax_backward(&x[layout.offset..], &y[layout.offset..], shape, log)
                    };
                    let name = format!("{kernel:?} {shape:?} log={log} of {inputs}");
                    close(&name, &got, &expected, 2e-5);
                    if i % 2 == usize::from(log) {
                        let (call, data) = prologues::as_sum(call, &data[..inputs], inputs - 1);
                        close(&name, &run(&*device, &call, &data).unwrap(), &expected, 2e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn softmax_of_infinities() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [
        [-inf, 0.0, -inf, 0.0],
        [-inf; 4],
        [inf, 0.0, 1.0, 2.0],
        [nan, 0.0, 1.0, 2.0],
        [-500.0, 500.0, 0.0, 0.0],
    ];
    let x: Vec<f32> = rows.concat();
    for (shape, repeat) in [([5, 4, 1], 1), ([40, 4, 1], 8), ([1, 20, 1], 1)] {
        let x: Vec<f32> = if shape[1] == 20 { x[..4].repeat(5) } else { x.repeat(repeat) };
        for log in [false, true] {
            let expected = softmax(&x, shape, log);
            for device in devices() {
                let call = call(Softmax { log }, &[(F32, Layout::contiguous(&shape))], &shape, F32);
                let got = run(&*device, &call, &[f32::to_bytes(&x)]).unwrap();
                // The f64 loop has no NaN for a row with one: `f64::max` passes them over, but the sum is NaN.
                close(&format!("{shape:?} log={log} on {}", device.name()), &got, &expected, 1e-6);
            }
        }
    }
}
