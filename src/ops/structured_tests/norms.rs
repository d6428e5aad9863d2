//! The norms' kernels against loops in f64, in every variant.

use super::*;
use crate::ops::normalize::{Normalize, Task};

const EPS: f64 = 1e-3;

/// What the task gives, by its definition.
fn expected(rms: bool, task: Task, [rows, n]: [usize; 2], data: &[&[f32]]) -> Vec<f64> {
    let of = |v: &[f32], i: usize| f64::from(v[i]);
    let mut out = match task {
        Task::Parameters { bias, each } => vec![0.0; rows.div_ceil(each) * (1 + usize::from(bias)) * n],
        _ => vec![0.0; rows * n],
    };
    let x = if matches!(task, Task::Forward { .. }) { data[0] } else { data[1] };
    for row in 0..rows {
        let at = |j: usize| row * n + j;
        let mean = if rms { 0.0 } else { (0..n).map(|j| of(x, at(j))).sum::<f64>() / n as f64 };
        let v: Vec<f64> = (0..n).map(|j| of(x, at(j)) - mean).collect();
        let r = 1.0 / (v.iter().map(|v| v * v).sum::<f64>() / n as f64 + EPS).sqrt();
        match task {
            Task::Forward { weight, bias } => {
                for j in 0..n {
                    let w = if weight { of(data[1], j) } else { 1.0 };
                    let b = if bias { of(data[1 + usize::from(weight)], j) } else { 0.0 };
                    out[at(j)] = v[j] * r * w + b;
                }
            }
            Task::Gradient { weight } => {
                let h: Vec<f64> =
                    (0..n).map(|j| of(data[0], at(j)) * if weight { of(data[2], j) } else { 1.0 }).collect();
                let flat = if rms { 0.0 } else { h.iter().sum::<f64>() / n as f64 };
                let along = h.iter().zip(&v).map(|(h, v)| h * v * r).sum::<f64>() / n as f64;
                for j in 0..n {
                    out[at(j)] = r * (h[j] - flat - v[j] * r * along);
                }
            }
            Task::Parameters { bias, each } => {
                let base = row / each * (1 + usize::from(bias)) * n;
                for j in 0..n {
                    out[base + j] += of(data[0], at(j)) * v[j] * r;
                    if bias {
                        out[base + n + j] += of(data[0], at(j));
                    }
                }
            }
        }
    }
    out
}

fn tasks() -> Vec<Task> {
    let mut tasks: Vec<Task> = [(false, false), (true, false), (false, true), (true, true)]
        .map(|(weight, bias)| Task::Forward { weight, bias })
        .into();
    tasks.extend([false, true].map(|weight| Task::Gradient { weight }));
    tasks.extend([(false, 3), (true, 64), (true, 2)].map(|(bias, each)| Task::Parameters { bias, each }));
    tasks
}

/// A call on rows that lie at an offset each, and what is in its inputs' buffers.
fn call_of(
    op: impl StructuredOp + 'static,
    rms: bool,
    task: Task,
    [rows, n]: [usize; 2],
    offset: usize,
) -> (Structured, Vec<Vec<u8>>, Vec<f64>) {
    let (wide, narrow) = match task {
        Task::Forward { weight, bias } => (1, usize::from(weight) + usize::from(bias)),
        Task::Gradient { weight } => (2, usize::from(weight)),
        Task::Parameters { .. } => (2, 0),
    };
    let mut inputs = vec![];
    let mut data = vec![];
    for i in 0..wide + narrow {
        let shape = if i < wide { vec![rows, n] } else { vec![n] };
        let layout = Layout { offset: offset * (i + 1), ..Layout::contiguous(&shape) };
        // A mean that is not 0.
        data.push(noise(layout.end(), 30 + i as u32).iter().map(|v| v * 3.0 + 1.5).collect::<Vec<f32>>());
        inputs.push((F32, layout));
    }
    let values: Vec<&[f32]> = data.iter().zip(&inputs).map(|(d, (_, l))| &d[l.offset..]).collect();
    let expected = expected(rms, task, [rows, n], &values);
    let shape = match task {
        Task::Parameters { bias, each } => vec![rows.div_ceil(each), 1 + usize::from(bias), n],
        _ => vec![rows, n],
    };
    (call(op, &inputs, &shape, F32), data.iter().map(|d| f32::to_bytes(d)).collect(), expected)
}

// Sums of up to 64 products of about 10, or of 5000 in a row, in f32.
const TOLERANCE: f64 = 2e-5;

#[test]
fn norms_and_their_gradients() {
    let shapes = [[1, 1], [5, 3], [40, 33], [3, 64], [130, 100], [2, 1000], [0, 4], [2, 5003]];
    for (i, shape) in shapes.into_iter().enumerate() {
        for task in tasks() {
            if matches!(task, Task::Parameters { .. }) && shape[1] > crate::ops::normalize::LONGEST {
                continue;
            }
            // Long rows take a software driver long to compile.
            let long = shape[1] >= 500;
            for rms in [false, true] {
                if long
                    && (rms != (i % 2 == 1)
                        || matches!(task, Task::Forward { weight, bias } if weight != bias))
                {
                    continue;
                }
                for device in devices() {
                    let op = Normalize { rms, eps: EPS, task };
                    let (plain, mut data, expected) = call_of(op, rms, task, shape, [0, 4, 1][i % 3]);
                    let name = format!("{task:?} rms={rms} {shape:?} on {}", device.name());
                    close(&name, &run(&*device, &plain, &data).unwrap(), &expected, TOLERANCE);
                    if plain.op.0.fuses_epilogue() && shape[0] > 0 && !long {
                        let (fused, c) = with_epilogue(plain);
                        let row = f32::from_bytes(&c);
                        let sums: Vec<f64> = expected
                            .iter()
                            .enumerate()
                            .map(|(i, v)| v + f64::from(row[i % shape[1]]))
                            .collect();
                        data.push(c);
                        close(&name, &run(&*device, &fused, &data).unwrap(), &sums, TOLERANCE);
                    }
                }
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_the_norms() {
    use crate::ops::normalize::{Rows, VARIANTS};
    use crate::ops::row_kernels::Kernel;
    let device = gpu();
    for &(kernel, _) in VARIANTS {
        if !kernel.runs_on(device.info()) {
            continue;
        }
        let registers = matches!(kernel, Kernel::Registers | Kernel::Team { registers: true, .. });
        for (i, shape) in [[5, 12], [70, 10], [3, 64], [2, 259]].into_iter().enumerate() {
            if kernel == Kernel::Registers && shape[1] > 32 {
                continue;
            }
            for task in tasks() {
                let parameters = matches!(task, Task::Parameters { .. });
                if parameters && (!registers || kernel == Kernel::Registers) {
                    continue;
                }
                let rms = i % 2 == 1;
                let op = Forced("forced_norm", !parameters, None, move |call: &Structured| {
                    let op = Normalize { rms, eps: EPS, task };
                    Rows::new(&op, call, gpu().info()).calls(kernel, &op, call)
                });
                let (call, data, expected) = call_of(op, rms, task, shape, [0, 3, 4][i % 3]);
                let name = format!("{kernel:?} {task:?} {shape:?}");
                close(&name, &run(&*device, &call, &data).unwrap(), &expected, TOLERANCE);
                let rows = if matches!(task, Task::Forward { .. }) { 1 } else { 2 };
                let (call, data) = prologues::as_sum(call, &data, i % rows);
                close(&name, &run(&*device, &call, &data).unwrap(), &expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn norms_of_infinities_and_of_nothing_but_one_value() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows =
        [[inf, 0.0, 1.0, 2.0], [nan, 0.0, 1.0, 2.0], [3.0; 4], [1e30, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]];
    let task = Task::Forward { weight: false, bias: false };
    for device in devices() {
        let op = Normalize { rms: false, eps: EPS, task };
        let call = call(op, &[(F32, Layout::contiguous(&[5, 4]))], &[5, 4], F32);
        let got = f32::from_bytes(&run(&*device, &call, &[f32::to_bytes(&rows.concat())]).unwrap());
        // A row with an infinity or a NaN is of NaNs, and no other row is.
        assert!(got[..8].iter().all(|v| v.is_nan()), "{} {got:?}", device.name());
        assert_eq!(got[8..12], [0.0; 4], "{}", device.name());
        assert!(got[16..].iter().all(|v| v.is_finite()), "{} {got:?}", device.name());
    }
}
