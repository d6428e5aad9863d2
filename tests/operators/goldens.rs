//! Values, shapes, dtypes and gradients of all samples against PyTorch's, on every device.
//!
//! When samples change: `WGRAD_SAMPLES=/tmp/samples.jsonl cargo test --test operators write_samples`, then
//! `python tests/goldens/make.py /tmp/samples.jsonl`.

use std::collections::HashMap;
use std::fmt::Write;

use wgrad::ops::samples::{OpInfo, Sample, Slope, all};
use wgrad::prelude::*;

use crate::Failures;
use crate::common::devices;

/// What PyTorch computed for a sample.
struct Golden {
    dtype: String,
    shape: Vec<usize>,
    values: Vec<f64>,
    /// By input.
    gradients: HashMap<usize, Vec<f64>>,
}

fn goldens() -> HashMap<u64, Golden> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/operators.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let number = |w: &str| -> f64 { w.parse().unwrap() };
    let mut all = HashMap::new();
    let mut current: Option<&mut Golden> = None;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        match words.next() {
            Some("=") => {
                let key = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
                let dtype = words.next().unwrap().to_string();
                let shape = words.map(|w| w.parse().unwrap()).collect();
                let golden = Golden { dtype, shape, values: vec![], gradients: HashMap::new() };
                current = Some(all.entry(key).or_insert(golden));
            }
            Some("v") => current.as_mut().unwrap().values = words.map(number).collect(),
            Some("g") => {
                let i = words.next().unwrap().parse().unwrap();
                current.as_mut().unwrap().gradients.insert(i, words.map(number).collect());
            }
            _ => panic!("unknown line: {line}"),
        }
    }
    all
}

/// How far a result may be from PyTorch's float64 one.
///
/// Goldens carry 12 digits. Doubles: a few roundings of 1e-16 each, and the digits. Floats: one operation rounds
/// by 6e-8; WGSL lets drivers err by a few units more in division, square root and the functions that build on
/// them, and up to 3e-5 relative in powers and exponentials of large numbers (`exp`: (3 + 2|x|) ulp); sums of the
/// samples' sizes add up some ten of those. Near zero what counts is the size of the terms, which is near one.
fn tolerance(dtype: DType) -> (f64, f64) {
    match dtype {
        F64 => (1e-11, 1e-10),
        F32 => (4e-6, 2e-5),
        _ => (0.0, 0.0),
    }
}

fn close(got: f64, want: f64, (atol, rtol): (f64, f64)) -> bool {
    got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= atol + rtol * want.abs()
}

fn first_difference(got: &[f64], want: &[f64], tolerance: (f64, f64)) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} values instead of {}", got.len(), want.len()));
    }
    let i = (0..got.len()).find(|&i| !close(got[i], want[i], tolerance))?;
    let all = if got.len() <= 12 { format!("; got {got:?}, expected {want:?}") } else { String::new() };
    Some(format!("entry {i} is {} instead of {}{all}", got[i], want[i]))
}

/// Entry `i` of the gradient that both sides start from.
fn cotangent(i: usize) -> f64 {
    ((i * 7 % 11) as f64 - 5.0) / 4.0 + 0.125
}

fn describe(sample: &Sample) -> String {
    let inputs: Vec<String> =
        sample.inputs.iter().map(|i| format!("{}{:?} {:?}", i.dtype, i.shape, i.lie)).collect();
    format!("{} of {}", sample.expression, inputs.join(", "))
}

fn compare(sample: &Sample, golden: &Golden, device: &Device, float: DType, failures: &mut Failures) {
    let mut fail =
        |what: String| failures.add(format!("{} on {device} in {float}: {what}", describe(sample)));
    let inputs = sample.tensors(device, float);
    let out = (sample.run)(&inputs);
    if let Err(error) = out.check() {
        return fail(format!("{error}"));
    }
    if out.shape() != golden.shape {
        return fail(format!("shape {:?} instead of {:?}", out.shape(), golden.shape));
    }
    // Ours is the type of PyTorch's default integer.
    let dtype = if golden.dtype == "int64" { "int32" } else { &golden.dtype };
    if float == F32 && out.dtype().name() != dtype {
        return fail(format!("dtype {} instead of {dtype}", out.dtype()));
    }
    let backward = sample.gradient != Slope::None && out.dtype().is_float();
    if backward {
        let start: Vec<f64> = (0..out.numel()).map(cotangent).collect();
        let start = options().device(device).dtype(out.dtype()).from_slice(&start, out.shape());
        if !out.requires_grad() {
            return fail("the result does not require grad".into());
        }
        if let Err(error) = out.backward_with(&start) {
            return fail(format!("backward: {error}"));
        }
    }
    let limit = tolerance(out.dtype());
    match out.to_f64_vec() {
        Ok(values) => {
            if let Some(difference) = first_difference(&values, &golden.values, limit) {
                fail(difference);
            }
        }
        Err(error) => return fail(format!("reading: {error}")),
    }
    if !backward {
        return;
    }
    for (i, input) in inputs.iter().enumerate().filter(|(_, t)| t.requires_grad()) {
        let Some(want) = golden.gradients.get(&i) else {
            return fail(format!("no golden gradient of input {i}: run make.py"));
        };
        let grad = match input.grad().map(|g| (g.shape().to_vec(), g.to_f64_vec())) {
            None => vec![0.0; input.numel()],
            Some((shape, Ok(values))) if shape == input.shape() => values,
            Some((shape, Ok(_))) => return fail(format!("gradient of input {i} has shape {shape:?}")),
            Some((_, Err(error))) => return fail(format!("gradient of input {i}: {error}")),
        };
        // Gradients go through more operations than values.
        let limit = (limit.0 * 4.0, limit.1 * 4.0);
        if let Some(difference) = first_difference(&grad, want, limit) {
            fail(format!("gradient of input {i}: {difference}"));
        }
    }
}

fn check_all(device: &Device, float: DType) {
    let goldens = goldens();
    let mut failures = Failures::default();
    let ops: Vec<OpInfo> = all();
    let only = std::env::var("OP").ok();
    let samples: Vec<&Sample> = ops.iter().flat_map(|op| &op.samples).collect();
    assert!(samples.len() > 500, "only {} samples", samples.len());
    for sample in &samples {
        // What overflows in float32 does not in float64.
        if float == F64 && sample.native || only.as_ref().is_some_and(|o| !sample.op.contains(o)) {
            continue;
        }
        match goldens.get(&sample.key()) {
            Some(golden) => compare(sample, golden, device, float, &mut failures),
            None => failures.add(format!(
                "no golden for {} (key {:x}): run make.py",
                describe(sample),
                sample.key()
            )),
        }
    }
    failures.finish(samples.len());
}

#[test]
fn on_the_cpu_as_pytorch() {
    check_all(&devices()[0], F32);
}

#[test]
fn on_the_cpu_in_doubles_as_pytorch() {
    check_all(&devices()[0], F64);
}

#[test]
fn on_the_gpu_as_pytorch() {
    for device in &devices()[1..] {
        check_all(device, F32);
    }
}

/// Every public function that makes a tensor from a tensor is tested here.
#[test]
fn every_op_has_samples() {
    let ops = all();
    let known: String = ops.iter().map(|op| format!(" {} ", op.name)).collect();
    let mut sources = String::new();
    for folder in ["src/ops", "src/ops/samples"] {
        for entry in std::fs::read_dir(format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"))).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut missing = vec![];
    for line in sources.lines().filter_map(|l| l.strip_prefix("    pub fn ")) {
        let name = line.split(['(', '<']).next().unwrap();
        let returns_tensor = line.contains("&self") && line.ends_with("-> Tensor {");
        // A method shows up as a call in some sample.
        if returns_tensor && !sources.contains(&format!(".{name}(")) && !known.contains(&format!(" {name} "))
        {
            missing.push(name.to_string());
        }
    }
    assert!(missing.is_empty(), "no sample calls {missing:?}");
    for op in &ops {
        assert!(!op.samples.is_empty() || !op.bad.is_empty(), "{} has no samples", op.name);
    }
}

/// Writes the samples for `make.py`, if `WGRAD_SAMPLES` says where.
#[test]
fn write_samples() {
    let Ok(path) = std::env::var("WGRAD_SAMPLES") else { return };
    let mut out = String::new();
    let number = |v: f64| match v {
        v if v.is_nan() => "NaN".to_string(),
        v if v.is_infinite() => format!("{}Infinity", if v < 0.0 { "-" } else { "" }),
        v => format!("{v:?}"),
    };
    for sample in all().iter().flat_map(|op| &op.samples) {
        let inputs: Vec<String> = (sample.inputs.iter())
            .map(|i| {
                let values: Vec<String> = i.values.iter().map(|&v| number(v)).collect();
                format!(
                    "{{\"shape\": {:?}, \"dtype\": \"{}\", \"grad\": {}, \"values\": [{}]}}",
                    i.shape,
                    i.dtype,
                    i.requires_grad,
                    values.join(", ")
                )
            })
            .collect();
        let grad = sample.gradient != Slope::None;
        writeln!(
            out,
            "{{\"key\": \"{:x}\", \"expression\": \"{}\", \"native\": {}, \"grad\": {grad}, \"inputs\": [{}]}}",
            sample.key(),
            sample.expression,
            sample.native,
            inputs.join(", ")
        )
        .unwrap();
    }
    std::fs::write(path, out).unwrap();
}
