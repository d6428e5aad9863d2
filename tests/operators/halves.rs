//! Float16 against float64: values and gradients of all samples, on every device.

use wgrad::ops::samples::{Sample, Slope, all};
use wgrad::prelude::*;

use crate::Failures;
use crate::common::devices;

/// The sample's inputs, of halves' values, in this type.
fn inputs(sample: &Sample, device: &Device, float: DType) -> Vec<Tensor> {
    (sample.tensors(device, F32).iter())
        .map(|t| {
            let wanted = t.requires_grad();
            let t = if t.dtype() == F32 { t.detach().to(F16).to(float) } else { t.detach() };
            t.requires_grad_(wanted)
        })
        .collect()
}

/// The result and the gradients of all inputs that have one.
fn run(sample: &Sample, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let out = (sample.run)(inputs);
    out.check()?;
    let mut all = vec![out.detach()];
    if sample.gradient != Slope::None && out.dtype().is_float() {
        let start: Vec<f64> = (0..out.numel()).map(|i| ((i * 7 % 11) as f64 - 5.0) / 4.0 + 0.125).collect();
        let start = options().device(out.device()).dtype(out.dtype()).from_slice(&start, out.shape());
        out.backward_with(&start)?;
        all.extend(inputs.iter().filter_map(Tensor::grad));
    }
    Ok(all)
}

/// How far a result in halves may be from the exact one, of which the largest entry is `most`. A half rounds by 2^-11
/// of itself. What is rounded on the way (values that are stored between kernels, among them what backward saved) is of the
/// size of the largest entries rather than of a small one; the samples' longest ways have some ten of those.
fn close(got: f64, want: f64, most: f64) -> bool {
    const ULP: f64 = 1.0 / 2048.0;
    let too_large = want.abs() > 65_000.0 && (got.is_infinite() || got.abs() > 65_000.0);
    got == want
        || (got.is_nan() && want.is_nan())
        || too_large
        || (got - want).abs() <= 4.0 * ULP * want.abs() + 10.0 * ULP * most.min(16.0) + 6e-8
}

#[test]
fn every_op_computes_halves() {
    let mut failures = Failures::default();
    let mut count = 0;
    for (number, sample) in all().into_iter().flat_map(|op| op.samples).enumerate() {
        let exact = inputs(&sample, &devices()[0], F64);
        let Ok(exact) = run(&sample, &exact) else { continue };
        let exact: Vec<Vec<f64>> = exact.iter().map(|t| t.to_f64_vec().unwrap()).collect();
        // Of the others, every third says all there is: their kernels differ in how halves are read and written, which
        // is much the same in all of them, and each takes a driver long to compile.
        for device in devices().into_iter().filter(|d| d.is_cpu() || number % 3 == 0) {
            count += 1;
            let name = format!(
                "{} of {:?} on {device}",
                sample.expression,
                sample.inputs.iter().map(|i| (&i.shape, i.lie)).collect::<Vec<_>>()
            );
            let halves = inputs(&sample, &device, F16);
            let got = match run(&sample, &halves) {
                Ok(got) => got,
                Err(error) => {
                    failures.add(format!("{name}: {error}"));
                    continue;
                }
            };
            for (which, (got, want)) in got.iter().zip(&exact).enumerate() {
                let halves =
                    sample.inputs.iter().all(|i| i.dtype == F32) && !sample.expression.contains("float32");
                if got.dtype() == F32 && halves {
                    failures.add(format!("{name}: result {which} is float32"));
                }
                let values = got.to_f64_vec().unwrap();
                let most = want.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
                if got.dtype().is_float()
                    && let Some(i) = (0..want.len()).find(|&i| !close(values[i], want[i], most))
                {
                    failures
                        .add(format!("{name}: entry {i} of {which} is {} instead of {}", values[i], want[i]));
                }
            }
        }
    }
    assert!(count > 1_000, "only {count}");
    failures.finish(count);
}
