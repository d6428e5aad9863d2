//! Cross-entropy of classes, its gradient, and the mean of losses.

use super::*;
use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyBackward, MeanLoss, Target};

const IGNORED: i32 = -100;

/// The op's results: losses, greatest, logarithms of sums, and the gradient with a scale for each row.
fn by_loops(
    x: &[f32],
    class: &[i32],
    scale: &[f32],
    [outer, n, inner]: [usize; 3],
    smoothing: f64,
) -> (Vec<f64>, Vec<f64>) {
    let rows = outer * inner;
    let (mut stats, mut gradient) = (vec![0.0; 3 * rows], vec![0.0; rows * n]);
    for row in 0..rows {
        let base = row / inner * n * inner + row % inner;
        let v: Vec<f64> = (0..n).map(|j| f64::from(x[base + j * inner])).collect();
        let most = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lost = v.iter().map(|v| (v - most).exp()).sum::<f64>().ln();
        let counts = class[row] != IGNORED;
        if counts {
            let own = v[class[row] as usize] - most;
            stats[row] = match smoothing > 0.0 {
                true => {
                    let rest: f64 = v.iter().map(|v| v - most).sum();
                    lost - own * (1.0 - smoothing) - rest * smoothing / n as f64
                }
                false => lost - own,
            };
        }
        (stats[rows + row], stats[2 * rows + row]) = (most, lost);
        let scale = if counts { f64::from(scale[row]) } else { 0.0 };
        for j in 0..n {
            let mut g = (v[j] - most - lost).exp() * scale;
            if smoothing > 0.0 {
                g -= smoothing / n as f64 * scale;
            }
            if class[row] == j as i32 {
                g -= (1.0 - smoothing) * scale;
            }
            gradient[base + j * inner] = g;
        }
    }
    (stats, gradient)
}

/// Some classes for these rows, of which a few are to be ignored.
fn classes(rows: usize, n: usize, seed: u32) -> Vec<i32> {
    let class = |v: f32| (f64::from(v + 1.0) / 2.0 * n as f64) as i32;
    let of = |(i, v): (usize, &f32)| if i % 5 == 3 { IGNORED } else { class(*v).min(n as i32 - 1) };
    noise(rows, seed).iter().enumerate().map(of).collect()
}

/// Logits, classes and scales, each with a layout that has gaps wherever one is allowed.
struct Data {
    x: (Layout, Vec<f32>),
    class: (Layout, Vec<i32>),
    scale: (Layout, Vec<f32>),
}

impl Data {
    fn new(shape: [usize; 3], offset: usize) -> Data {
        let [outer, n, inner] = shape;
        let x = Layout { offset, ..Layout::contiguous(&shape) };
        let class = Layout { offset: offset / 2, ..Layout::contiguous(&[inner, outer]) }.permute(&[1, 0]);
        let scale = Layout { offset: 1, ..Layout::contiguous(&[outer, 1]) }.expand(&[outer, inner]).unwrap();
        let logits = noise(x.end(), 41).iter().map(|v| v * 20.0).collect();
        let (classes, scales) = (classes(class.end(), n, 42), noise(scale.end(), 43));
        Data { x: (x, logits), class: (class, classes), scale: (scale, scales) }
    }

    fn by_loops(&self, smoothing: f64) -> (Vec<f64>, Vec<f64>) {
        fn each<T: Copy>((layout, values): &(Layout, Vec<T>)) -> Vec<T> {
            coordinates(&layout.shape).map(|c| values[at(layout, &c)]).collect()
        }
        let &[outer, n, inner] = &self.x.0.shape[..] else { unreachable!() };
        by_loops(&each(&self.x), &each(&self.class), &each(&self.scale), [outer, n, inner], smoothing)
    }

    fn inputs(&self) -> Vec<(DType, Layout)> {
        let &[outer, _, inner] = &self.x.0.shape[..] else { unreachable!() };
        let stats = Layout { offset: 2, ..Layout::contiguous(&[3, outer, inner]) };
        vec![(F32, self.x.0.clone()), (I32, self.class.0.clone()), (F32, stats), (F32, self.scale.0.clone())]
    }

    /// For [`inputs`](Data::inputs); the statistics are these.
    fn bytes(&self, stats: &[f64]) -> Vec<Vec<u8>> {
        let stats: Vec<f32> = [0.0; 2].iter().chain(stats).map(|&v| v as f32).collect();
        let (x, class, scale) = (&self.x.1, &self.class.1, &self.scale.1);
        vec![f32::to_bytes(x), i32::to_bytes(class), f32::to_bytes(&stats), f32::to_bytes(scale)]
    }
}

const SHAPES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [128, 10, 1],
    [3, 16, 1],
    [40, 33, 1],
    [2, 100, 1],
    [20, 64, 3],
    [2, 7, 150],
    [1, 5000, 1],
    [1, 1001, 2],
    [0, 4, 1],
    [33, 32, 1],
    [1000, 130, 1],
    [2, 70_001, 1],
    [1, 300_004, 1],
];

#[test]
fn cross_entropy_and_its_gradient() {
    for shape in SHAPES {
        let [outer, _, inner] = shape;
        for smoothing in [0.0, 0.1] {
            let target = Target { ignored: Some(IGNORED), smoothing };
            let data = Data::new(shape, outer % 3);
            let (stats, gradient) = data.by_loops(smoothing);
            let (inputs, bytes) = (data.inputs(), data.bytes(&stats));
            for device in devices() {
                let name = format!("{shape:?} smoothed by {smoothing} on {}", device.name());
                let op = CrossEntropy { target, dim: 1 };
                let forward = call(op, &inputs[..2], &[3, outer, inner], F32);
                close(&name, &run(&*device, &forward, &bytes[..2]).unwrap(), &stats, 1e-5);
                let backward = call(CrossEntropyBackward { target }, &inputs, &shape, F32);
                close(&name, &run(&*device, &backward, &bytes).unwrap(), &gradient, 1e-5);
                if inner == 1 && outer > 0 {
                    let (fused, c) = with_epilogue(backward);
                    // The last dimension is 1, so `c` is one number.
                    let c0 = f64::from(f32::from_bytes(&c)[0]);
                    let sums: Vec<f64> = gradient.iter().map(|v| v + c0).collect();
                    let bytes = [bytes.clone(), vec![c]].concat();
                    close(&name, &run(&*device, &fused, &bytes).unwrap(), &sums, 1e-5);
                }
                // The same without scales, which here are ones.
                let ones =
                    Data { scale: (data.scale.0.clone(), vec![1.0; data.scale.1.len()]), ..data.clone() };
                let backward = call(CrossEntropyBackward { target }, &inputs[..3], &shape, F32);
                let got = run(&*device, &backward, &bytes[..3]).unwrap();
                close(&name, &got, &ones.by_loops(smoothing).1, 1e-5);
            }
        }
    }
}

impl Clone for Data {
    fn clone(&self) -> Data {
        Data { x: self.x.clone(), class: self.class.clone(), scale: self.scale.clone() }
    }
}

#[test]
fn the_mean_of_losses_that_count() {
    for (outer, inner) in [(1, 1), (7, 1), (128, 1), (3, 50), (4, 4), (1003, 1), (1, 4096), (65_536, 1)] {
        for (contiguous, offset) in [(true, 0), (true, 4), (true, 3), (false, 2)] {
            let rows = outer * inner;
            let mut layout = Layout { offset, ..Layout::contiguous(&[outer, inner]) };
            if !contiguous {
                layout = Layout { offset, ..Layout::contiguous(&[inner, outer]) }.permute(&[1, 0]);
            }
            let class = classes(layout.end(), 9, 44);
            let counting: Vec<bool> =
                coordinates(&layout.shape).map(|c| class[at(&layout, &c)] != IGNORED).collect();
            let count = counting.iter().filter(|&&counts| counts).count() as f64;
            let losses: Vec<f32> = (noise(rows, 45).iter().zip(&counting))
                .map(|(&loss, &counts)| if counts { loss } else { 0.0 })
                .collect();
            let sum: f64 = losses.iter().map(|&v| f64::from(v)).sum();
            let inputs = [(F32, Layout::contiguous(&[outer, inner])), (I32, layout)];
            let data = [f32::to_bytes(&losses), i32::to_bytes(&class)];
            for device in devices() {
                for (ignored, count) in [(Some(IGNORED), count), (None, rows as f64)] {
                    let mean = call(MeanLoss { ignored }, &inputs, &[2], F32);
                    let name = format!("{outer} x {inner} with {ignored:?} ignored on {}", device.name());
                    let got = run(&*device, &mean, &data).unwrap();
                    close(&name, &got, &[sum / count, 1.0 / count], 1e-6);
                }
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_cross_entropy() {
    use crate::ops::cross_entropy::{GRADIENTS, calls};
    use crate::ops::row_kernels::{Kernel, Rows};
    use crate::ops::softmax::VARIANTS;
    let device = gpu();
    let forced = |kernel: Kernel, target: Target| {
        Forced("forced_cross_entropy", false, None, move |call: &Structured| {
            calls(&Rows::new(&call.inputs[0].1, gpu().info()), kernel, call, target)
        })
    };
    let shapes = [[5, 12, 1], [70, 10, 1], [3, 30, 9], [2, 20, 1], [9, 64, 1], [3, 260, 1], [2, 1027, 1]];
    for (i, shape) in shapes.into_iter().enumerate() {
        for smoothing in [0.0, 0.3] {
            let target = Target { ignored: Some(IGNORED), smoothing };
            // Some rows are not aligned to fours.
            let data = Data::new(shape, [0, 4, 3][i % 3]);
            let (stats, gradient) = data.by_loops(smoothing);
            let (inputs, bytes) = (data.inputs(), data.bytes(&stats));
            for &(kernel, _) in VARIANTS {
                if !kernel.runs_on(device.info()) || kernel == Kernel::Registers && shape[1] > 100 {
                    continue;
                }
                let call = call(forced(kernel, target), &inputs[..2], &[3, shape[0], shape[2]], F32);
                let name = format!("{kernel:?} {shape:?} smoothed by {smoothing}");
                close(&name, &run(&*device, &call, &bytes[..2]).unwrap(), &stats, 1e-5);
                let (call, bytes) = prologues::as_sum(call, &bytes[..2], 0);
                close(&name, &run(&*device, &call, &bytes).unwrap(), &stats, 1e-5);
            }
            for &(kernel, _) in GRADIENTS {
                let call = call(forced(kernel, target), &inputs, &shape, F32);
                let name = format!("{kernel:?} {shape:?} smoothed by {smoothing}");
                close(&name, &run(&*device, &call, &bytes).unwrap(), &gradient, 1e-5);
                let (call, bytes) = prologues::as_sum(call, &bytes, 0);
                close(&name, &run(&*device, &call, &bytes).unwrap(), &gradient, 1e-5);
            }
        }
    }
}

/// Rows with infinities and NaN spoil none but their own results, and those as PyTorch has it, whether they count or
/// not.
#[test]
fn cross_entropy_of_infinities() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let some = [
        [-inf, 0.0, -inf, 0.0],
        [-inf; 4],
        [inf, 0.0, 1.0, 2.0],
        [nan, 0.0, 1.0, 2.0],
        [-20.0, 20.0, 0.0, 0.0],
        [1e36, -1e36, 0.0, 1.0],
    ];
    for shape in [[12, 4, 1], [2, 4, 6], [48, 4, 1], [12, 20, 1], [12, 140, 1]] {
        let [outer, n, inner] = shape;
        let rows = outer * inner;
        let mut x = vec![0.0; rows * n];
        for row in 0..rows {
            for j in 0..n {
                x[row / inner * n * inner + row % inner + j * inner] = some[row % 6][j % 4];
            }
        }
        let class: Vec<i32> =
            (0..rows).map(|row| if row % 4 == 1 { IGNORED } else { row as i32 / 6 % 4 }).collect();
        for (smoothing, scale) in [(0.0, 1.0), (0.2, 0.5), (0.0, f32::INFINITY)] {
            let (mut stats, gradient) = by_loops(&x, &class, &vec![scale; rows], shape, smoothing);
            let target = Target { ignored: Some(IGNORED), smoothing };
            let rows_of = Layout::contiguous(&[outer, inner]);
            let whole = |shape: &[usize]| (F32, Layout::contiguous(shape));
            let inputs = [whole(&shape), (I32, rows_of.clone()), whole(&[3, outer, inner]), (F32, rows_of)];
            for row in 0..rows {
                // `f64::max` passes NaN over, but any NaN in a sum is NaN.
                if x[row / inner * n * inner + row % inner..]
                    .iter()
                    .step_by(inner)
                    .take(n)
                    .any(|v| v.is_nan())
                {
                    stats[row] = if class[row] == IGNORED { 0.0 } else { f64::NAN };
                }
            }
            for device in devices() {
                let name = format!("{shape:?} smoothed by {smoothing} on {}", device.name());
                let data = [f32::to_bytes(&x), i32::to_bytes(&class)];
                let forward = call(CrossEntropy { target, dim: 1 }, &inputs[..2], &[3, outer, inner], F32);
                let got = run(&*device, &forward, &data).unwrap();
                close(&name, &got[..4 * rows], &stats[..rows], 1e-6);
                let [x, class] = data;
                let data = [x, class, got, f32::to_bytes(&vec![scale; rows])];
                let backward = call(CrossEntropyBackward { target }, &inputs, &shape, F32);
                close(&name, &run(&*device, &backward, &data).unwrap(), &gradient, 1e-6);
            }
        }
    }
}

#[test]
fn a_class_out_of_range_is_refused() {
    for bad in [4, -1, i32::MAX, i32::MIN] {
        for shape in [[3, 4, 1], [2, 4, 3], [200, 4, 1]] {
            let [outer, _, inner] = shape;
            let mut class = vec![1; outer * inner];
            *class.last_mut().unwrap() = bad;
            let inputs = [(F32, Layout::contiguous(&shape)), (I32, Layout::contiguous(&[outer, inner]))];
            let data = [f32::to_bytes(&noise(numel(&shape), 46)), i32::to_bytes(&class)];
            let target = Target { ignored: Some(IGNORED), smoothing: 0.0 };
            let forward = call(CrossEntropy { target, dim: 1 }, &inputs, &[3, outer, inner], F32);
            // (What a GPU tells of comes with whoever reads next; see tests/faults.rs.)
            let fault = run(&*cpu::device(), &forward, &data).unwrap_err();
            let words = format!("cross_entropy index {bad} is out of bounds for dimension 1 with size 4");
            assert_eq!(fault.message, words);
            // Ignored, it may be anything.
            let target = Target { ignored: Some(bad), smoothing: 0.0 };
            let forward = call(CrossEntropy { target, dim: 1 }, &inputs, &[3, outer, inner], F32);
            for device in devices() {
                run(&*device, &forward, &data).unwrap();
            }
        }
    }
}
