//! `gradcheck` and `gradgradcheck`: what they accept, and what they say of what is wrong.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{assert_close, devices};
use wgrad::autograd::{
    Context, Function, Gradcheck, gradcheck, gradcheck_with, gradgradcheck, gradgradcheck_with,
};
use wgrad::prelude::*;

fn leaf(device: &Device, dtype: DType, values: &[f64]) -> Tensor {
    options().device(device).dtype(dtype).requires_grad(true).tensor(values)
}

fn double(values: &[f64]) -> Tensor {
    leaf(&cpu(), F64, values)
}

#[track_caller]
fn says(result: wgrad::Result<()>, parts: &[&str]) {
    let error = result.expect_err("a difference");
    for part in parts {
        assert!(error.message().contains(part), "{part:?} is not in {error}");
    }
    assert_eq!(error.caller().file(), file!());
}

const FAST: fn() -> Gradcheck = || Gradcheck { fast_mode: true, ..Gradcheck::default() };

#[test]
fn right_gradients_pass_in_all_forms() {
    let (x, y) = (double(&[0.5, -1.5]), double(&[2.0, 0.25]));
    let c = x.detach();
    for how in [Gradcheck::default(), FAST()] {
        gradcheck_with(|x| x.exp(), &x, how).unwrap();
        gradcheck_with(|t| (&t[0] * &t[1], t[0].sum()), &[&x, &y], how).unwrap();
        gradcheck_with(|t| vec![t[0].sin(), t[1].tanh(), &t[0] / &t[1]], &[&x, &y], how).unwrap();
        // Inputs that require no grad are given as they are; so are those that are not of a floating point type.
        gradcheck_with(|t| t[0].where_(&t[1].gt(0.0), &t[2]), &[&x, &c, &y], how).unwrap();
        gradcheck_with(|t| t[0].gather(0, &t[1]), &[&x, &c.zeros_like().to(I32)], how).unwrap();
        gradgradcheck_with(|t| (&t[0] * &t[1], t[0].exp().sum()), &[&x, &y], None, how).unwrap();
        // No elements, no dimensions.
        gradcheck_with(
            |t| (t[0].sum(), t[1].exp()),
            &[&double(&[]), &x.detach().sum().requires_grad_(true)],
            how,
        )
        .unwrap();
    }
    // A function may fail, and change what it captured.
    let mut calls = 0;
    gradcheck(
        |x| {
            calls += 1;
            x.check().map(|()| x * 2)
        },
        &x,
    )
    .unwrap();
    assert_eq!(calls, 1 + 2 * 2);
    // Views whose elements share memory: PyTorch refuses those.
    gradcheck(|x| x * x, &x.detach().reshape([2, 1]).expand([2, 3]).requires_grad_(true)).unwrap();
    let given = double(&[0.5, 3.0]);
    gradgradcheck_with(|t| &t[0] * &t[1], &[&x, &y], Some(&[&given]), Gradcheck::default()).unwrap();
    assert!(x.grad().is_none() && y.grad().is_none() && given.grad().is_none());
}

/// On a GPU numbers are float32: larger steps, wider tolerances.
#[test]
fn single_precision_passes_with_its_tolerances() {
    for d in devices() {
        let x = leaf(&d, F32, &[0.5, -1.5, 0.25]);
        // Differences of numbers of size 1, good to 6e-8, over 2 * 1e-2.
        let how = Gradcheck { eps: 1e-2, atol: 1e-2, rtol: 1e-2, ..Gradcheck::default() };
        for how in [how, Gradcheck { fast_mode: true, ..how }] {
            gradcheck_with(|x| (x.sin(), x.square().sum()), &x, how).unwrap();
            gradgradcheck_with(|x| x.sin(), &x, None, how).unwrap();
            says(gradcheck_with(|x| x * x.detach(), &x, how), &["input 0", "not float64"]);
        }
    }
}

/// `test_autograd.py::test_gradcheck_*`: the entry, both numbers, how many others, and in which other pairs.
#[test]
fn the_report_names_the_entry_that_differs() {
    let x = options().device(cpu()).dtype(F64).requires_grad(true).tensor([[1.0, 2.0], [3.0, 4.0]]);
    let y = double(&[1.0, 5.0]);
    // The gradient is right but for the second column of the second output, by the first input.
    let wrong = |t: &[Tensor]| {
        let half = t[0].i((.., 1..));
        (t[0].exp(), cat(&[&t[0].i((.., ..1)), &(&half * half.detach())], 1) * &t[1])
    };
    says(
        gradcheck(wrong, &[&x, &y]),
        &[
            "Jacobian mismatch for output 1 with respect to input 0",
            // 20, as nearly as differences tell.
            "entry [0, 1] with respect to entry [0, 1] of input 0: numerical 19.999999",
            ", analytical 10.0; 2 of 16 entries differ",
            "most of all entry [1, 1] with respect to entry [1, 1] of input 0: numerical 40.00000",
        ],
    );
    // Fast mode finds it too, and then looks for the entry.
    says(gradcheck_with(wrong, &[&x, &y], FAST()), &["entry [0, 1] with respect to entry [0, 1]", "2 of 16"]);
    // Wrong by every input of every output.
    let all = |t: &[Tensor]| [&t[0] * &t[1].detach(), &t[1] * t[1].detach()];
    says(
        gradcheck(all, &[&x, &y]),
        &[
            "output 0 with respect to input 1",
            "analytical 0.0; 4 of 8 entries differ",
            "; for output 1 with respect to input 1 2 of 4 entries differ",
        ],
    );
    // NaN is never right.
    let nan = double(&[0.0, 1.0]);
    says(gradcheck(|x| x.abs().sqrt(), &nan), &["entry [0]"]);
    // Looser, and it passes.
    let loose = Gradcheck { atol: 100.0, ..Gradcheck::default() };
    gradcheck_with(wrong, &[&x, &y], loose).unwrap();
    gradcheck_with(wrong, &[&x, &y], Gradcheck { rtol: 1.0, ..Gradcheck::default() }).unwrap();
}

/// `test_gradcheck_single_input`, `test_gradcheck_check_no_differentiable_outputs`,
/// `test_gradcheck_validates_inputs`, `test_gradcheck_dense_and_sparse_inputs` do as PyTorch's, as far as there is such a thing.
#[test]
fn outputs_without_gradients() {
    let x = double(&[1.0, 2.0]);
    // Beside others, what does not require grad is not looked at.
    gradcheck(|x| (x * 2, x.detach(), x.gt(0.0)), &x).unwrap();
    gradgradcheck(|x| (x * x, x.detach(), x.gt(0.0)), &x).unwrap();
    // Alone, it must not depend on the inputs.
    gradcheck(|x| x.zeros_like(), &x).unwrap();
    for how in [Gradcheck::default(), FAST()] {
        says(gradcheck_with(|x| x.detach() * 2, &x, how), &["numerical 2.0", "analytical 0.0", "2 of 4"]);
    }
    says(gradcheck(|x| x.gt(0.0), &x), &["floating point", "bool"]);
    says(gradcheck(|x| x * 2, &x.detach()), &["expects at least one input tensor to require gradient"]);
    // A function's own error, and outputs that come and go.
    assert_eq!(gradcheck(|x| x.matmul(&ones([3, 3]).to(cpu())), &x).unwrap_err().op(), "matmul");
    let mut calls = 0;
    let fickle = |x: &Tensor| {
        calls += 1;
        if calls > 1 { x.sum() } else { x * 2 }
    };
    says(gradcheck(fickle, &x), &["number or shapes of the function's outputs"]);
}

#[test]
fn gradients_of_gradients_that_are_wrong() {
    let (x, y) = (double(&[1.0, 2.0]), double(&[3.0, 0.5]));
    // Right once: the factor's gradient is what was cut.
    let once = |t: &[Tensor]| {
        let cut = t[0].detach();
        // Its value is 0 and its gradient x: that of x^2 / 2, but constant to the next derivative.
        (&t[0] - &cut) * &cut + cut.square() / 2 + &t[1]
    };
    gradcheck(once, &[&x, &y]).unwrap();
    says(
        gradgradcheck(once, &[&x, &y]),
        &[
            "gradient of input 0 with respect to input 0",
            "entry [0] with respect to entry [0] of input 0: numerical 0.249999",
            "analytical 0.0; 2 of 4 entries differ",
        ],
    );
    says(gradgradcheck_with(once, &[&x, &y], None, FAST()), &["gradient of input 0 with respect to input 0"]);
    // The gradients of the outputs that are given must fit.
    says(
        gradgradcheck_with(|x| x.exp(), &x, Some(&[&y, &y]), Gradcheck::default()),
        &["grad_outputs have shapes [[2], [2]]", "[[2]]"],
    );
}

/// One combination of 40,000 derivatives, by two evaluations.
#[test]
fn fast_mode_is_fast() {
    let x = options().device(cpu()).dtype(F64).linspace(-1.0, 1.0, 200).requires_grad_(true);
    let mut calls = 0;
    gradcheck_with(
        |x| {
            calls += 1;
            x.sin() * x.sum()
        },
        &x,
        FAST(),
    )
    .unwrap();
    assert_eq!(calls, 3);
    assert_close(&x.sum(), &[0.0], 1e-9, "x");
}

/// Squares and cubes, with mistakes.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    /// A sign.
    Sign,
    /// Each backward pass gives a little more than the one before.
    Drift,
    /// A gradient that there is not is taken for ones.
    Undefined,
    /// Rows where columns should be.
    Shape,
}

impl Function for Mistake {
    fn forward(&self, ctx: &mut Context, x: &[Tensor]) -> Vec<Tensor> {
        ctx.save_for_backward(&[&x[0]]);
        ctx.set_materialize_grads(false);
        vec![&x[0] * &x[0], x[0].pow(3.0)]
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        static PASSES: AtomicU64 = AtomicU64::new(0);
        let x = &ctx.saved_tensors()[0];
        let none = if *self == Mistake::Undefined { x.ones_like() } else { x.zeros_like() };
        let [g, h] = [0, 1].map(|i| grads[i].clone().unwrap_or_else(|| none.clone()));
        let dx = g * x * 2 + h * x * x * 3;
        vec![Some(match self {
            Mistake::Sign => dx.neg(),
            Mistake::Drift => dx + PASSES.fetch_add(1, Ordering::Relaxed) as f64 * 1e-9,
            Mistake::Shape => dx.sum(),
            _ => dx,
        })]
    }
}

/// `test_autograd.py::test_gradcheck_nondeterministic`, `test_gradcheck_undefined_grad`,
/// `test_gradcheck_backward_mul_by_grad_output`, `test_gradcheck_get_analytical_jacobian`
#[test]
fn functions_of_the_users_own_are_checked() {
    let x = double(&[1.0, 2.0]);
    let run = |m: Mistake, how| gradcheck_with(|x| m.apply(&[x]), &x, how);
    for how in [Gradcheck::default(), FAST()] {
        run(Mistake::None, how).unwrap();
        gradgradcheck_with(|x| Mistake::None.apply(&[x]), &x, None, how).unwrap();
        says(
            run(Mistake::Sign, how),
            &["output 0 with respect to input 0", "numerical 2.0", "analytical -2.0; 2 of 4 entries differ"],
        );
        says(run(Mistake::Drift, how), &["Backward is not reentrant", "output 0", "nondeterminism was 0"]);
        run(Mistake::Drift, Gradcheck { nondet_tol: 1e-6, check_undefined_grad: false, ..how }).unwrap();
        assert!(run(Mistake::Shape, how).unwrap_err().message().contains("invalid gradient"));
    }
    // With both gradients it is right, and each Jacobian asks for one.
    let first = |x: &Tensor| Mistake::Undefined.apply(&[x]).swap_remove(0);
    says(gradcheck(first, &x), &["numerical 2.0", "analytical 5.0"]);
    // Where zeros are given for one of them, the other is missing.
    let sum = |x: &Tensor| {
        let both = Mistake::Undefined.apply(&[x]);
        let sum = &both[0] + &both[1];
        (sum.clone(), &sum * 2)
    };
    gradcheck(sum, &x).unwrap();
    let hidden = Gradcheck { atol: 1e3, ..Gradcheck::default() };
    says(run(Mistake::Undefined, hidden), &["Expected all input grads to be undefined or zero"]);
    run(Mistake::Undefined, Gradcheck { check_undefined_grad: false, ..hidden }).unwrap();
}
