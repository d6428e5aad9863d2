//! Jacobians, Hessians and products with them, after PyTorch's `test/autograd/test_functional.py`
//! (`TestAutogradFunctional`). What does not apply: that inputs and vectors are tensors (here the compiler says it),
//! `vectorize` and `strategy`, which change no result.

mod common;

use common::{assert_close, devices};
use wgrad::autograd::{
    Functional, gradcheck, gradgradcheck, hessian, hessian_with, hvp, hvp_with, jacobian, jacobian_with, jvp,
    jvp_with, vhp, vhp_with, vjp, vjp_with,
};
use wgrad::prelude::*;
use wgrad::{Error, Result};

fn on(device: &Device, values: &[f64]) -> Tensor {
    options().device(device).tensor(values)
}

fn matrix(device: &Device) -> Tensor {
    on(device, &[0.5, -1.0, 0.25, 2.0, 1.5, 0.1]).reshape([2, 3])
}

fn double(values: &[f64]) -> Tensor {
    options().device(cpu()).dtype(F64).requires_grad(true).tensor(values)
}

const STRICT: fn() -> Functional = || Functional::new().strict(true);
const CREATE: fn() -> Functional = || Functional::new().create_graph(true);

#[track_caller]
fn says<T>(result: Result<T>, op: &str, part: &str) {
    let error: Error = result.err().expect("an error");
    assert_eq!(error.op(), op, "{error}");
    assert!(error.message().contains(part), "{error}");
    assert_eq!(error.caller().file(), file!(), "{error}");
}

#[track_caller]
fn plain(t: &Tensor, like: &Tensor) {
    assert!(!t.requires_grad() && t.grad_fn().is_none());
    assert_eq!((t.shape(), t.dtype(), t.device()), (like.shape(), like.dtype(), like.device()));
}

/// Makes a tensor that requires grad, but is not connected to the input.
fn unconnected(x: &Tensor) -> Tensor {
    x.to(I32).to(F32).requires_grad_(true).clone_data()
}

fn exps(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.exp()).collect()
}

/// `test_vjp_output`, `test_vjp_scalar`
#[test]
fn vjp_gives_outputs_and_products() {
    for d in devices() {
        let x = matrix(&d);
        let v = on(&d, &[1.0, 10.0]);
        let (y, g) = vjp(|x| x.exp().sum_dim(1, false), &x, &v).unwrap();
        let e = exps(&x.to_f64_vec().unwrap());
        assert_close(&y, &[e[..3].iter().sum(), e[3..].iter().sum()], 1e-5, "y");
        let expected: Vec<f64> =
            e.iter().enumerate().map(|(i, e)| if i < 3 { *e } else { 10.0 * e }).collect();
        assert_close(&g, &expected, 1e-5, "v J");
        plain(&y, &v);
        plain(&g, &x);

        let (a, b) = (on(&d, &[1.0, 2.0]), on(&d, &[3.0, 4.0]));
        let (y, g) = vjp(|t| &t[0] * 2 + &t[1] * 3, &[&a, &b], &on(&d, &[1.0, 1.0])).unwrap();
        plain(&y, &a);
        assert_close(&g[0], &[2.0, 2.0], 0.0, "first");
        assert_close(&g[1], &[3.0, 3.0], 0.0, "second");

        // Several outputs, each with its vector.
        let f = |t: &[Tensor]| (&t[0] * 2 + &t[1] * 3, &t[0] * &t[1]);
        let (y, g) = vjp(f, &[&a, &b], &[on(&d, &[1.0, 0.0]), on(&d, &[1.0, 10.0])]).unwrap();
        assert_close(&y.1, &[3.0, 8.0], 0.0, "the second output");
        assert_close(&g[0], &[5.0, 40.0], 0.0, "first");
        assert_close(&g[1], &[4.0, 20.0], 0.0, "second");
        assert!(!g[0].requires_grad() && !y.0.requires_grad());

        let (y, g) = vjp(Tensor::sum, &x, None).unwrap();
        assert_eq!(y.shape(), [0usize; 0]);
        assert_close(&g, &[1.0; 6], 0.0, "of a sum");
        let (y, g) =
            vjp(|x| x.expand(4), &on(&d, &[2.0]).reshape(()), &on(&d, &[1.0, 2.0, 3.0, 4.0])).unwrap();
        assert_eq!((y.shape(), g.shape()), (&[4][..], &[][..]));
        assert_close(&g, &[10.0], 0.0, "of an expansion");
    }
}

/// `test_vjp_err_check`, `test_jvp_err_check`, `test_vhp_err_check`, `test_hvp_err_check`, `test_hessian_err_check`,
/// `test_jacobian_err_check`
#[test]
fn vectors_must_fit() {
    for d in devices() {
        let x = on(&d, &[1.0, 2.0, 3.0, 4.0]);
        let foo = |x: &Tensor| x.narrow(0, 0, 3) * 3;
        let v = on(&d, &[1.0; 3]);
        says(
            vjp(foo, &x, None),
            "vjp",
            "The vector v can only be None if the user-provided function returns",
        );
        says(vjp(foo, &x, &[&x, &x]), "vjp", "The given v should contain a single Tensor.");
        says(vjp(foo, &x, &v.narrow(0, 0, 2)), "vjp", "v has invalid size: should be [3] but got [2].");
        assert_close(&vjp(foo, &x, &v).unwrap().1, &[3.0, 3.0, 3.0, 0.0], 0.0, "v J");
        says(
            jvp(foo, &x, None),
            "jvp",
            "The vector v can only be None if the input to the user-provided function",
        );
        says(jvp(foo, &x, &[&x, &x]), "jvp", "The given v should contain a single Tensor.");
        says(jvp(foo, &x, &v), "jvp", "v has invalid size: should be [4] but got [3].");
        assert_close(&jvp(foo, &x, &x).unwrap().1, &[3.0, 6.0, 9.0], 0.0, "J v");
        let two = |t: &[Tensor]| (&t[0] * &t[1], t[0].clone());
        let part = "v is a tuple of invalid length: should be 2 but got 1.";
        says(vjp(two, &[&x, &x], &[&x]), "vjp", part);
        says(jvp(two, &[&x, &x], &x), "jvp", part);
        says(jvp(two, &[&x, &x], &[&x, &v]), "jvp", "Entry 1 in v has invalid size");

        let bar2 = "given to hessian should contain a single element";
        says(hessian(foo, &x), "hessian", bar2);
        says(
            vhp(foo, &x, &x),
            "vhp",
            "The Tensor returned by the function given to vhp should contain a single",
        );
        says(
            hvp(foo, &x, &x),
            "hvp",
            "The Tensor returned by the function given to hvp should contain a single",
        );
        let sum = |x: &Tensor| foo(x).exp().sum();
        says(vhp(sum, &x, &v), "vhp", "v has invalid size: should be [4] but got [3].");
        says(hvp(sum, &x, None), "hvp", "The vector v can only be None if the input");

        // What the function fails with, and inputs that have no derivatives.
        let wrong = |x: &Tensor| x.matmul(&v).sum();
        assert_eq!(jacobian(wrong, &x).unwrap_err().op(), "matmul");
        let fails = |_: &Tensor| Err::<Tensor, _>(Error::new(ErrorKind::Data, "mine", "no"));
        assert_eq!(hessian(fails, &x).unwrap_err().op(), "mine");
        let i = x.to(I32);
        assert_eq!(jacobian(|x| x * 2.0, &i).unwrap_err().kind(), ErrorKind::DType);
        let bad = x.matmul(&v);
        assert!(vjp(Tensor::sum, &bad, None).is_err() && vjp(Tensor::exp, &x, &bad).is_err());
    }
}

/// `test_vjp_err_check_strict`, `test_jvp_err_check_strict`, `test_jacobian_err_check_strict`
#[test]
fn strict_wants_outputs_that_depend_on_inputs() {
    for d in devices() {
        let x = on(&d, &[1.0, 2.0, 3.0]);
        let v = on(&d, &[4.0, 5.0, 6.0]);
        let detach = |x: &Tensor| x.detach();
        let part = "Output 0 of the user-provided function does not require gradients.";
        says(vjp_with(detach, &x, &v, STRICT()), "vjp", part);
        says(jvp_with(detach, &x, &v, STRICT()), "jvp", part);
        says(jacobian_with(detach, &x, STRICT()), "jacobian", part);
        let part = "The output of the user-provided function is independent of input 0";
        says(vjp_with(unconnected, &x, &v, STRICT()), "vjp", part);
        says(jvp_with(unconnected, &x, &v, STRICT()), "jvp", part);
        let part = "Output 0 of the user-provided function is independent of input 0.";
        says(jacobian_with(unconnected, &x, STRICT()), "jacobian", part);
        for f in [detach, unconnected] {
            assert_close(&vjp(f, &x, &v).unwrap().1, &[0.0; 3], 0.0, "vjp");
            assert_close(&jvp(f, &x, &v).unwrap().1, &[0.0; 3], 0.0, "jvp");
            let j = jacobian(f, &x).unwrap();
            assert_eq!(j.shape(), [3, 3]);
            assert_close(&j, &[0.0; 9], 0.0, "jacobian");
        }
        // A derivative that does not depend on the input cannot be differentiated.
        x.requires_grad_(true);
        let both = STRICT().create_graph(true);
        let copy = Tensor::clone_data;
        let part = "jacobian of the user-provided function is independent of input 0.";
        says(vjp_with(copy, &x, &v, both), "vjp", part);
        says(jvp_with(copy, &x, &v, both), "jvp", part);
        says(jacobian_with(copy, &x, both), "jacobian", part);
        assert_close(&vjp_with(copy, &x, &v, CREATE()).unwrap().1, &[4.0, 5.0, 6.0], 0.0, "vjp");
        assert_close(&jvp_with(copy, &x, &v, CREATE()).unwrap().1, &[4.0, 5.0, 6.0], 0.0, "jvp");
        let eye = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert_close(&jacobian_with(copy, &x, CREATE()).unwrap(), &eye, 0.0, "jacobian");
        // One of two inputs.
        let first = |t: &[Tensor]| t[0].exp();
        says(
            jacobian_with(first, &[&x, &v], STRICT()),
            "jacobian",
            "Output 0 of the user-provided function is independent of input 1.",
        );
        assert!(jacobian_with(first, &[&x], STRICT()).is_ok());
    }
}

/// `test_hessian_err_check_strict`, `test_vhp_err_check_strict`, `test_hvp_err_check_strict`
#[test]
fn strict_wants_gradients_that_depend_on_inputs() {
    for d in devices() {
        let x = on(&d, &[1.0, 2.0, 3.0]);
        let foo = |x: &Tensor| x.detach().sum();
        let bar = |x: &Tensor| unconnected(x).sum();
        let bar2 = |x: &Tensor| (x * 3).sum();
        let part = "Output 0 of the user-provided function does not require gradients.";
        says(hessian_with(foo, &x, STRICT()), "hessian", part);
        says(vhp_with(foo, &x, &x, STRICT()), "vhp", part);
        says(hvp_with(foo, &x, &x, STRICT()), "hvp", part);
        let part = "jacobian of the user-provided function with respect to input 0 is";
        says(hessian_with(bar, &x, STRICT()), "hessian", part);
        says(hessian_with(bar2, &x, STRICT()), "hessian", part);
        says(vhp_with(bar2, &x, &x, STRICT()), "vhp", part);
        says(hvp_with(bar2, &x, &x, STRICT()), "hvp", part);
        let part = "The output of the user-provided function is independent of input 0";
        says(vhp_with(bar, &x, &x, STRICT()), "vhp", part);
        says(hvp_with(bar, &x, &x, STRICT()), "hvp", part);
        for f in [foo, bar, bar2] {
            let h = hessian(f, &x).unwrap();
            assert_eq!(h.shape(), [3, 3]);
            assert_close(&h, &[0.0; 9], 0.0, "hessian");
            assert_close(&vhp(f, &x, &x).unwrap().1, &[0.0; 3], 0.0, "vhp");
            assert_close(&hvp(f, &x, &x).unwrap().1, &[0.0; 3], 0.0, "hvp");
        }
    }
}

/// `test_vjp_no_grad`, `test_jvp_no_grad`, `test_jacobian_no_grad`, `test_hessian_no_grad`, `test_vhp_no_grad`,
/// `test_hvp_no_grad`
#[test]
fn no_grad_changes_nothing() {
    for d in devices() {
        let x = on(&d, &[0.5, -1.0, 0.25]);
        let cube = |x: &Tensor| x * x * x;
        let sum = |x: &Tensor| cube(x).sum();
        let all = |how: Functional| {
            let (y, g) = vjp_with(cube, &x, &x, how).unwrap();
            let (z, j) = jvp_with(cube, &x, &x, how).unwrap();
            let (s, v) = vhp_with(sum, &x, &x, how).unwrap();
            let (t, h) = hvp_with(sum, &x, &x, how).unwrap();
            let jacobian = jacobian_with(cube, &x, how).unwrap();
            vec![y, g, z, j, s, v, t, h, jacobian, hessian_with(sum, &x, how).unwrap()]
        };
        let expected = all(Functional::new());
        for (off, on) in no_grad(|| all(Functional::new())).iter().zip(&expected) {
            assert!(!off.requires_grad() && !on.requires_grad());
            assert_close(off, &on.to_f64_vec().unwrap(), 0.0, "under no_grad");
        }
        x.requires_grad_(true);
        for (off, on) in no_grad(|| all(CREATE())).iter().zip(&expected) {
            assert!(off.grad_fn().is_some());
            assert_close(off, &on.to_f64_vec().unwrap(), 1e-6, "under no_grad, with a graph");
        }
        assert!(x.grad().is_none());
    }
}

/// `test_jvp_output`, `test_jvp_scalar`
#[test]
fn jvp_gives_outputs_and_products() {
    for d in devices() {
        let x = matrix(&d);
        let v = on(&d, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([2, 3]);
        let (y, p) = jvp(|x| x.exp().sum_dim(1, false), &x, &v).unwrap();
        let e = exps(&x.to_f64_vec().unwrap());
        let sum = |r: std::ops::Range<usize>| r.map(|i| e[i] * (i + 1) as f64).sum::<f64>();
        assert_close(&p, &[sum(0..3), sum(3..6)], 1e-5, "J v");
        plain(&p, &y);

        let (a, b) = (on(&d, &[1.0, 2.0]), on(&d, &[3.0, 4.0]));
        let f = |t: &[Tensor]| [&t[0] * 2 + &t[1] * 3, &t[0] * &t[1], t[1].sum()];
        let vs = [on(&d, &[1.0, 0.0]), on(&d, &[1.0, 10.0])];
        let (y, [p, q, r]) = jvp(f, &[&a, &b], &vs).unwrap();
        assert_close(&y[2], &[7.0], 0.0, "the third output");
        assert_close(&p, &[5.0, 30.0], 0.0, "first");
        assert_close(&q, &[4.0, 20.0], 0.0, "second");
        assert_close(&r, &[11.0], 0.0, "third");
        plain(&r, &y[2]);

        let (y, p) = jvp(Tensor::sum, &x, &v).unwrap();
        assert_eq!((y.shape(), p.shape()), (&[][..], &[][..]));
        assert_close(&p, &[21.0], 0.0, "of a sum");
        let (_, p) = jvp(|x| x.expand(4), &on(&d, &[2.0]).reshape(()), None).unwrap();
        assert_close(&p, &[1.0; 4], 0.0, "of an expansion");
        // An output of another type has no derivative.
        let (y, (p, q)) = jvp(|x| (x.gt(0.0), x * 2), &a, &a).unwrap();
        assert_eq!((y.0.dtype(), p.dtype()), (Bool, Bool));
        assert_close(&q, &[2.0, 4.0], 0.0, "beside it");
    }
}

/// `test_jacobian_output`, `test_jacobian_scalar`, `test_jacobian_vectorize_correctness_*`
#[test]
fn jacobian_has_the_shape_of_output_and_input() {
    for d in devices() {
        let x = matrix(&d);
        let j = jacobian(|x| x.exp().sum_dim(1, false), &x).unwrap();
        assert_eq!(j.shape(), [2, 2, 3]);
        assert!(!j.requires_grad() && j.grad_fn().is_none());
        let e = exps(&x.to_f64_vec().unwrap());
        let expected = [e[0], e[1], e[2], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, e[3], e[4], e[5]];
        assert_close(&j, &expected, 1e-5, "J");
        assert_close(
            &jacobian(Tensor::clone, &x).unwrap().reshape([6, 6]).sum_dim(0, false),
            &[1.0; 6],
            0.0,
            "I",
        );
        assert_eq!(jacobian(Tensor::sum, &x).unwrap().shape(), x.shape());
        assert_eq!(jacobian(|x| x.expand(4), &on(&d, &[2.0]).reshape(())).unwrap().shape(), [4]);

        // Several inputs and outputs, of which some are unrelated.
        let (a, b) = (on(&d, &[1.0, 2.0, 3.0]), on(&d, &[4.0, 5.0, 6.0]));
        let j = jacobian(|t| (t[0].sum(), t[1].clone(), &t[0] * &t[1]), &[&a, &b]).unwrap();
        assert_eq!((j.0[0].shape(), j.1[0].shape(), j.2[1].shape()), (&[3][..], &[3, 3][..], &[3, 3][..]));
        assert_close(&j.0[0], &[1.0; 3], 0.0, "d sum / da");
        assert_close(&j.0[1], &[0.0; 3], 0.0, "d sum / db");
        assert_close(&j.1[0], &[0.0; 9], 0.0, "db / da");
        assert_close(&j.2[0], &[4.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 6.0], 0.0, "d ab / da");
        assert_close(&j.2[1], &[1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0], 0.0, "d ab / db");
        // Forms: vectors in and out, results, one element that is several.
        let v: Vec<Tensor> = jacobian(|t| vec![&t[0] * 2], &vec![a.clone()]).unwrap().remove(0);
        assert_eq!(v[0].shape(), [3, 3]);
        let r = jacobian(|x| x.check().map(|()| x * 2), &a).unwrap();
        assert_close(&r.sum(), &[6.0], 0.0, "through a Result");

        // Products of matrices; views; nothing at all.
        let w = on(&d, &[1.0, 2.0, 3.0, 4.0]).reshape([2, 2]);
        let j = jacobian(|x| w.matmul(x), &w.t()).unwrap();
        // d (w x)[i, j] / dx[k, l] = w[i, k] if j == l
        let got = j.to_f64_vec().unwrap();
        for (n, g) in got.iter().enumerate() {
            let [i, j, k, l] = [n / 8, n / 4 % 2, n / 2 % 2, n % 2];
            assert_eq!(*g, if j == l { (i * 2 + k + 1) as f64 } else { 0.0 });
        }
        let empty = options().device(&d).zeros([0, 2]);
        assert_eq!(jacobian(|x| x * 2, &empty).unwrap().shape(), [0, 2, 0, 2]);
        assert_eq!(jacobian(Tensor::sum, &empty).unwrap().shape(), [0, 2]);
        assert_close(&jacobian(|x| x.sum() + &a, &empty).unwrap(), &[], 0.0, "no columns");
    }
    // `test_jacobian_vectorize_correctness_different_dtype`, `.._different_devices`: of the input's type and place.
    let x = options().device(cpu()).dtype(F64).tensor([1.0, 2.0]);
    let (single, double) = jacobian(|x| (x.to(F32), x * x), &x).unwrap();
    assert_eq!((single.dtype(), double.dtype()), (F64, F64));
    if let [host, gpu] = &devices()[..] {
        let x = on(host, &[1.0, 2.0]);
        let (here, there) = jacobian(|x| (x * x, (x * x).to(gpu)), &x).unwrap();
        assert_eq!((here.device(), there.device()), (host, host));
        assert_close(&there, &here.to_f64_vec().unwrap(), 0.0, "through the other device");
    }
}

/// Of many rows, in several flushes; of rows that none of them leads to.
#[test]
fn jacobians_of_many_rows() {
    for d in devices() {
        for n in [32, 70] {
            let x = options().device(&d).linspace(-1.0, 1.0, n);
            let j = jacobian(|x| (x.sin(), x.sum().expand(40)), &x).unwrap();
            let values = x.to_f64_vec().unwrap();
            let diagonal = |i: usize| if i / n == i % n { values[i % n].cos() } else { 0.0 };
            assert_close(&j.0, &(0..n * n).map(diagonal).collect::<Vec<_>>(), 1e-6, "a diagonal");
            assert_close(&j.1, &vec![1.0; 40 * n], 0.0, "the same in every row");
            let h = hessian(|x| x.sin().sum(), &x).unwrap();
            let diagonal = |i: usize| if i / n == i % n { -values[i % n].sin() } else { 0.0 };
            assert_close(&h, &(0..n * n).map(diagonal).collect::<Vec<_>>(), 1e-6, "a Hessian");
        }
    }
}

/// Rows are computed together, and nothing of them remains.
#[test]
fn rows_share_flushes_and_leave_nothing() {
    devices();
    let d = Device::new(wgrad::backend::cpu::device());
    let x = options().device(&d).linspace(-1.0, 1.0, 20);
    x.check().unwrap();
    let run = || jacobian(|x| (x * x).tanh(), &x).unwrap().check().unwrap();
    run();
    let (before, live) = (d.stats(), d.memory().live_bytes);
    run();
    let after = d.stats();
    assert_eq!((after.flushes - before.flushes, after.plans - before.plans), (1, 0));
    for _ in 0..100 {
        run();
        hvp(|x| x.exp().sum(), &x, &x).unwrap().1.check().unwrap();
        jvp_with(Tensor::exp, &x, &x, CREATE()).unwrap().1.check().unwrap();
    }
    d.synchronize().unwrap();
    assert_eq!(d.memory().live_bytes, live);
}

/// `test_hessian_output`, `test_hessian_scalar`, `test_hessian_vectorize_correctness_*`
#[test]
fn hessian_has_the_shape_of_input_and_input() {
    for d in devices() {
        let x = on(&d, &[1.0, 2.0, 3.0, 4.0]).reshape([2, 2]);
        let h = hessian(|x| x.pow(3.0).sum(), &x).unwrap();
        assert_eq!(h.shape(), [2, 2, 2, 2]);
        assert!(!h.requires_grad());
        let mut expected = [0.0; 16];
        (0..4).for_each(|i| expected[i * 5] = 6.0 * (i + 1) as f64);
        assert_close(&h, &expected, 1e-5, "H");

        let (a, b) = (on(&d, &[1.0, 2.0]), on(&d, &[3.0, 4.0, 5.0]));
        let f = |t: &[Tensor]| (t[0].sum() * t[1].square()).sum();
        let h = hessian(f, &[&a, &b]).unwrap();
        assert_eq!((h[0][1].shape(), h[1][0].shape()), (&[2, 3][..], &[3, 2][..]));
        assert_close(&h[0][0], &[0.0; 4], 0.0, "aa");
        assert_close(&h[0][1], &[6.0, 8.0, 10.0, 6.0, 8.0, 10.0], 1e-6, "ab");
        assert_close(&h[1][0], &[6.0, 6.0, 8.0, 8.0, 10.0, 10.0], 1e-6, "ba");
        assert_close(&h[1][1], &[6.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0, 6.0], 1e-6, "bb");
        // An input that is not used; an output that uses none.
        let h = hessian(|t| t[0].square().sum(), &[&a, &b]).unwrap();
        assert_close(&h[0][0], &[2.0, 0.0, 0.0, 2.0], 0.0, "used");
        assert_close(&h[1][1], &[0.0; 9], 0.0, "not used");
        let h = hessian(|_| options().device(&d).ones(()), &[&a, &b]).unwrap();
        assert_eq!((h[1][0].shape(), h[1][0].device()), (&[3, 2][..], &d));
        // One element, of whatever shape.
        assert_eq!(hessian(|x| x.sum().reshape([1, 1, 1]), &x).unwrap().shape(), [2, 2, 2, 2]);
        let s = on(&d, &[2.0]).reshape(());
        assert_close(&hessian(|x| x * x * x, &s).unwrap(), &[12.0], 1e-6, "of a number");
    }
}

/// `test_vhp_output`, `test_hvp_output`, `test_vhp_scalar`, `test_hvp_scalar`
#[test]
fn products_with_the_hessian() {
    for d in devices() {
        let x = on(&d, &[0.5, -1.0, 0.25, 2.0]);
        let v = on(&d, &[1.0, 2.0, 3.0, 4.0]);
        let foo = |x: &Tensor| (x.narrow(0, 0, 3).exp() * 3).sum();
        let e = exps(&[0.5, -1.0, 0.25]);
        let expected = [3.0 * e[0], 6.0 * e[1], 9.0 * e[2], 0.0];
        for (y, p) in [vhp(foo, &x, &v).unwrap(), hvp(foo, &x, &v).unwrap()] {
            assert_close(&y, &[3.0 * e.iter().sum::<f64>()], 1e-5, "y");
            assert_close(&p, &expected, 1e-5, "H v");
            plain(&p, &x);
            assert!(y.grad_fn().is_none());
        }
        let bar = |t: &[Tensor]| (&t[0] * t[1].narrow(0, 0, 2)).sum().square();
        let (a, b) = (on(&d, &[1.0, 2.0]), on(&d, &[3.0, 4.0, 5.0]));
        let v = [on(&d, &[1.0, 0.0]), on(&d, &[0.0, 1.0, 7.0])];
        // f = s^2 with s = a.b: H v = 2 grad s (grad s . v) + 2 s (v_b, v_a)
        let (s, along) = (11.0, 3.0 + 2.0);
        for (y, p) in [vhp(bar, &[&a, &b], &v).unwrap(), hvp(bar, &[&a, &b], &v).unwrap()] {
            assert_close(&y, &[121.0], 1e-6, "y");
            assert_close(&p[0], &[2.0 * 3.0 * along, 2.0 * 4.0 * along + 2.0 * s], 1e-5, "by a");
            assert_close(&p[1], &[2.0 * along + 2.0 * s, 2.0 * 2.0 * along, 0.0], 1e-5, "by b");
        }
        let s = on(&d, &[2.0]).reshape(());
        assert_close(&hvp(|x| x * x * x, &s, None).unwrap().1, &[12.0], 1e-6, "of a number");
        assert_close(&vhp(|x| x.sum(), &x, &x).unwrap().1, &[0.0; 4], 0.0, "of a linear function");
        let h = hvp(|x| x.exp().sum().reshape([1, 1, 1]), &s, Some(&s)).unwrap().1;
        assert_close(&h, &[2.0 * 2f64.exp()], 1e-5, "one element of any shape");
    }
}

/// `test_jacobian_match_vjp_jvp`, `test_hessian_match_vhp_hvp`
#[test]
fn products_match_the_matrices() {
    for d in devices() {
        let (x, v) = (on(&d, &[0.5, -1.0, 0.25, 2.0]), on(&d, &[1.0, -2.0, 0.3, 0.7]));
        let foo = |x: &Tensor| x.pow(3.0) + x.sum();
        let j = jacobian(foo, &x).unwrap();
        let jv = jvp(foo, &x, &v).unwrap().1;
        assert_close(&jv, &j.mv(&v).to_f64_vec().unwrap(), 1e-5, "J v");
        let vj = vjp(foo, &x, &v).unwrap().1;
        assert_close(&vj, &j.t().mv(&v).to_f64_vec().unwrap(), 1e-5, "v J");
        let foo = |x: &Tensor| (x.narrow(0, 0, 3).prod() * x).sum().exp();
        let h = hessian(foo, &x).unwrap();
        let hv = h.mv(&v).to_f64_vec().unwrap();
        assert_close(&hvp(foo, &x, &v).unwrap().1, &hv, 1e-5, "H v");
        assert_close(&vhp(foo, &x, &v).unwrap().1, &hv, 1e-5, "v H");
    }
}

/// `test_vjp_create_graph`, `test_jvp_create_graph`, `test_jacobian_create_graph`, `test_hessian_create_graph`,
/// `test_vhp_create_graph`, `test_hvp_create_graph`
#[test]
fn results_can_be_differentiated() {
    let (a, b) = (double(&[0.3, -0.7]), double(&[1.1, 0.4]));
    let (v, w) = (double(&[1.0, 0.5]), double(&[-0.5, 2.0]));
    let all = [&a, &b, &v, &w];
    let f = |t: &[Tensor]| (&t[0] * 2 + &t[1] * 3, &t[0] * &t[1]);
    let g = |t: &[Tensor]| (&t[0] * &t[1] + &t[1]).exp().sum();
    let both = |f: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>, inputs: &[&Tensor]| {
        gradcheck(f, inputs).unwrap();
        gradgradcheck(f, inputs).unwrap();
    };
    // Through the inputs as they are, and through something that is made of them.
    for turn in [|x: &Tensor| x.clone(), |x: &Tensor| x.cos()] {
        let split = |t: &[Tensor]| (vec![turn(&t[0]), t[1].clone()], t[2..].to_vec());
        both(
            &|t| {
                let (x, v) = split(t);
                let ((p, q), g) = vjp_with(f, &x, &v, CREATE())?;
                Ok([vec![p.exp(), q.exp()], g].concat())
            },
            &all,
        );
        both(
            &|t| {
                let (x, v) = split(t);
                let (y, (p, q)) = jvp_with(f, &x, &v, CREATE())?;
                Ok(vec![y.0, y.1.exp(), p.exp(), q])
            },
            &all,
        );
        both(
            &|t| {
                let (x, v) = split(t);
                let (y, p) = hvp_with(g, &x, &v, CREATE())?;
                Ok([vec![y.cos()], p].concat())
            },
            &all,
        );
        both(
            &|t| {
                let (x, v) = split(t);
                Ok(vhp_with(g, &x, &v, CREATE())?.1)
            },
            &all,
        );
        let two = [&a, &b];
        both(&|t| jacobian_with(|t| (&t[0] * &t[1]).exp(), &split(t).0, CREATE()), &two);
        both(&|t| Ok(hessian_with(g, &split(t).0, CREATE())?.concat()), &two);
    }
    for t in all {
        assert!(t.grad().is_none(), "nothing was accumulated");
    }
}

/// What a function captures is a constant to it, even if it is the input itself (pytorch#32576), and nobody's `grad` changes.
#[test]
fn only_the_inputs_are_differentiated() {
    for d in devices() {
        let x = on(&d, &[1.0, 2.0]).requires_grad_(true);
        let w = on(&d, &[3.0, 4.0]).requires_grad_(true);
        let j = jacobian(|t| t * &x * &w, &x).unwrap();
        assert_close(&j, &[3.0, 0.0, 0.0, 8.0], 0.0, "the input captured");
        let (y, _) = vjp_with(|t| (t * &w).sum(), &x, None, CREATE()).unwrap();
        assert!(x.grad().is_none() && w.grad().is_none());
        // With a graph, results lead back to all that they were made of.
        y.backward().unwrap();
        assert_close(&x.grad().unwrap(), &[3.0, 4.0], 0.0, "by x");
        assert_close(&w.grad().unwrap(), &[1.0, 2.0], 0.0, "by w");
        // Of something that is no leaf.
        let z = &x * 2;
        let j = jacobian_with(|z| z * z, &z, CREATE()).unwrap();
        x.set_grad(None);
        j.sum().backward().unwrap();
        assert_close(&x.grad().unwrap(), &[4.0, 4.0], 0.0, "through z");
        // A function may not write to what it is given; it may write to what it makes.
        assert!(jacobian(|x| x.add_(1), &x).is_err());
        let j = jacobian(|x| (x * 2).mul_(x), &x).unwrap();
        assert_close(&j, &[4.0, 0.0, 0.0, 8.0], 0.0, "through a write in place");
    }
}

/// Nested: the Hessian is the Jacobian of the Jacobian.
#[test]
fn they_nest() {
    for d in devices() {
        let x = on(&d, &[0.5, -1.0, 0.25]);
        let f = |x: &Tensor| x.prod().exp();
        let nested = jacobian(|x| jacobian_with(f, x, CREATE()), &x).unwrap();
        assert_close(&nested, &hessian(f, &x).unwrap().to_f64_vec().unwrap(), 1e-6, "H");
        let third = jacobian(|x| hessian_with(f, x, CREATE()), &x).unwrap();
        assert_eq!(third.shape(), [3, 3, 3]);
    }
}
