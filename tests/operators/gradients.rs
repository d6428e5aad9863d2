//! Gradients against finite differences in float64, and gradients of gradients.

use wgrad::autograd::{gradcheck, gradgradcheck};
use wgrad::ops::samples::{Sample, Slope, all};
use wgrad::prelude::*;

use crate::Failures;
use crate::common::devices;

fn smooth() -> Vec<Sample> {
    // Jacobians of the larger ones take long and say nothing new.
    let small = |s: &Sample| s.inputs.iter().map(|i| i.values.len()).sum::<usize>() <= 30;
    all().into_iter().flat_map(|op| op.samples).filter(|s| s.gradient == Slope::Smooth && small(s)).collect()
}

fn check(what: fn(&Sample, &[&Tensor]) -> wgrad::Result<()>) {
    let device = &devices()[0];
    let mut failures = Failures::default();
    let samples = smooth();
    assert!(samples.len() > 300, "only {} samples", samples.len());
    for sample in &samples {
        let inputs = sample.tensors(device, F64);
        if let Err(error) = what(sample, &inputs.iter().collect::<Vec<_>>()) {
            failures.add(format!(
                "{} of {:?}: {error}",
                sample.expression,
                sample.inputs.iter().map(|i| (&i.shape, i.lie)).collect::<Vec<_>>()
            ));
        }
    }
    failures.finish(samples.len());
}

#[test]
fn agree_with_finite_differences() {
    check(|sample, inputs| gradcheck(|x| (sample.run)(x), inputs));
}

#[test]
fn of_gradients_agree_with_finite_differences() {
    check(|sample, inputs| gradgradcheck(|x| (sample.run)(x), inputs));
}

#[test]
fn gradcheck_names_what_is_wrong() {
    let device = &devices()[0];
    let x = options().device(device).dtype(F64).requires_grad(true).tensor([[1.0, 2.0], [3.0, 4.0]]);
    // A value that does not flow back as it came.
    let error = gradcheck(|x| &x[0] * x[0].detach(), &[&x]).unwrap_err();
    assert_eq!((error.kind(), error.op()), (ErrorKind::Autograd, "gradcheck"));
    for part in ["entry [0, 0]", "input 0", "numerical 2.0", "analytical 1"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(error.caller().file(), file!());
    assert!(gradcheck(|x| x[0].exp(), &[&x.detach()]).unwrap_err().message().contains("require gradient"));
    assert!(gradcheck(|x| x[0].gt(0.0), &[&x]).unwrap_err().message().contains("bool"));
    let loose = wgrad::autograd::Gradcheck { atol: 10.0, ..Default::default() };
    assert!(wgrad::autograd::gradcheck_with(|x| &x[0] * x[0].detach(), &[&x], loose).is_ok());
    // Linear: the gradient of the gradient is zero, and that is right.
    gradgradcheck(|x| &x[0] * 3.0, &[&x]).unwrap();
    assert!(x.grad().is_none());
}
