//! Modules called with other parameters, parameters as a vector, gradients clipped: PyTorch's `torch.func.functional_call`
//! and `torch.nn.utils`, after `test/test_stateless.py` and `test/test_nn.py`.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{assert_close, devices};
use wgrad::autograd::{hessian, jacobian};
use wgrad::nn::{functional_call, functional_call_with, parameters_to_vector, vector_to_parameters};
use wgrad::optim::{ClipNorm, clip_grad_norm_with, clip_grads_with_norm_, get_total_norm};
use wgrad::prelude::*;

module! {
    /// The same weight twice, a buffer, and a panic if asked for.
    struct Tied { first: Linear, blocks: Vec<Linear>, shift: Tensor, panics: bool }

    fn forward(&self, x: &Tensor) -> Tensor {
        assert!(!self.panics, "as asked");
        let x = self.blocks.iter().fold(self.first.forward(x), |x, block| block.forward(&x));
        x + &self.shift
    }
}

fn tied(device: &Device) -> Tied {
    let on = options().device(device);
    let first = Linear::with(2, 2, false, &on);
    let second = Linear { weight: first.weight.clone(), bias: None };
    let third = Linear::with(2, 2, true, &on);
    Tied { first, blocks: vec![second, third], shift: on.zeros(2), panics: false }
}

fn eye(device: &Device, scale: f64) -> Tensor {
    options().device(device).eye(2) * scale
}

/// `test_functional_call`, `test_functional_batch_norm`, `test_functional_call_with_gradient`,
/// `test_functional_call_tie_weights`, `test_functional_call_with_kwargs`
#[test]
fn parameters_are_replaced_for_one_call() {
    for d in devices() {
        let mut model = tied(&d);
        let x = options().device(&d).tensor([[1.0, 2.0]]);
        let before = model.state_dict();
        let handles: Vec<Tensor> = model.parameters();
        let w = eye(&d, 3.0).requires_grad_(true);
        let zero = options().device(&d).zeros(2);
        let shift = options().device(&d).tensor([10.0, 20.0]);
        // The shared weight under either name, or both; the bias stays zero.
        let third = eye(&d, 1.0);
        for names in [vec!["first.weight"], vec!["blocks.0.weight"], vec!["first.weight", "blocks.0.weight"]]
        {
            let shared = names.into_iter().map(|n| (n, &w));
            let rest = [("blocks.1.weight", &third), ("blocks.1.bias", &zero), ("shift", &shift)];
            let y = functional_call(&mut model, shared.chain(rest), &x);
            assert_close(&y, &[19.0, 38.0], 0.0, "y");
            w.set_grad(None);
            y.sum().backward().unwrap();
            // d (w w x) summed: 3 (sum over both places of the weight)
            assert_close(&w.grad().unwrap(), &[6.0, 12.0, 6.0, 12.0], 1e-5, "the gradient");
        }
        for (name, t) in model.state_dict() {
            assert_close(&t, &before[&name].to_f64_vec().unwrap(), 0.0, &name);
        }
        for (own, held) in model.parameters().iter().zip(&handles) {
            assert!(own.is_same(held) && own.is_parameter() && own.grad().is_none());
        }
        // Nothing named, nothing replaced; and a state dict of the model itself.
        let plain = model.forward(&x).to_f64_vec().unwrap();
        assert_close(&functional_call(&mut model, [("", &w); 0], &x), &plain, 0.0, "its own");
        assert_close(&functional_call(&mut model, &before, &x), &plain, 0.0, "its own by name");
        assert_close(
            &functional_call(&mut model, model_named(&handles), &x),
            &plain,
            0.0,
            "and by parameters",
        );
    }
}

fn model_named(handles: &[Tensor]) -> Vec<(String, Tensor)> {
    let names = ["first.weight", "blocks.1.weight", "blocks.1.bias"];
    names.iter().map(|n| n.to_string()).zip(handles.iter().cloned()).collect()
}

/// `test_reparametrized_module_fail_reset_to_original`, `test_functional_call_strict`,
/// `test_tied_weights_errors`
#[test]
fn the_module_gets_its_own_back() {
    let mut model = tied(&cpu());
    let x = options().device(cpu()).ones([1, 2]);
    let own = model.parameters();
    let check = |model: &Tied| {
        assert!(model.parameters().iter().zip(&own).all(|(a, b)| a.is_same(b)));
        assert!(model.first.weight.is_same(&model.blocks[0].weight));
    };
    let (w, v) = (eye(&cpu(), 2.0), eye(&cpu(), 5.0));
    // A panic in forward.
    model.panics = true;
    let call = || functional_call(&mut model, [("first.weight", &w)], &x);
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    check(&model);
    model.panics = false;
    // An error in forward.
    let bad = options().device(cpu()).zeros([3, 3]);
    assert!(functional_call(&mut model, [("first.weight", &bad)], &x).error().is_some());
    check(&model);
    let failed = functional_call_with(&mut model, [("first.weight", &w)], |m| m.forward(&bad).check());
    assert!(failed.unwrap().is_err());
    check(&model);
    // Names that are not the module's: all of them are said, and nothing is called.
    let names = [("first.weight", &w), ("second", &w), ("first.bias", &w)];
    let error = functional_call(&mut model, names, &x).error().unwrap();
    assert_eq!((error.kind(), error.op()), (ErrorKind::Argument, "functional_call"));
    assert_eq!(error.message(), "Unexpected key(s) for Tied: second, first.bias");
    assert_eq!(error.caller().file(), file!());
    // Two values for one weight.
    let error = functional_call_with(&mut model, [("first.weight", &w), ("blocks.0.weight", &v)], |_| ());
    let error = error.unwrap_err();
    assert!(error.message().contains("multiple values for keys [first.weight, blocks.0.weight]"), "{error}");
    check(&model);
}

/// Per-parameter Jacobians and Hessians of a module, as `torch.func` is used for.
#[test]
fn modules_are_functions_of_their_parameters() {
    for d in devices() {
        let on = options().device(&d);
        let mut model = sequential![Linear::with(2, 3, true, &on), Tanh, Linear::with(3, 1, true, &on)];
        let names: Vec<String> = model.named_parameters().into_iter().map(|(n, _)| n).collect();
        let parameters = model.parameters();
        let x = on.tensor([[0.5, -1.0], [2.0, 0.25]]);
        let y = model.forward(&x);
        let j = jacobian(|p| functional_call(&mut model, names.iter().zip(p), &x), &parameters).unwrap();
        assert_eq!(j.len(), 4);
        for (j, p) in j.iter().zip(&parameters) {
            // The sum over the outputs' rows is what backward gives.
            let expected =
                autograd::grad_with(&[&y.sum()], &[p], Backward::new().retain_graph(true)).unwrap();
            let got = j.reshape([2, -1]).sum_dim(0, false);
            assert_close(&got, &expected[0].to_f64_vec().unwrap(), 1e-5, "by a parameter");
            assert!(p.grad().is_none());
        }
        let loss = |p: &[Tensor]| functional_call(&mut model, names.iter().zip(p), &x).square().sum();
        let h = hessian(loss, &parameters).unwrap();
        assert_eq!(h[0][2].shape(), [3, 2, 1, 3]);
        let (a, b) = (h[0][2].reshape([6, 3]), h[2][0].reshape([3, 6]).t());
        assert_close(&a, &b.to_f64_vec().unwrap(), 1e-5, "symmetric");
    }
}

/// `test_nn.py::test_parameters_to_vector`, `test_vector_to_parameters`
#[test]
fn parameters_as_a_vector() {
    for d in devices() {
        let on = options().device(&d);
        let model = sequential![Linear::with(3, 4, true, &on), Linear::with(4, 2, true, &on)];
        let params = model.parameters();
        let vector = parameters_to_vector(&params);
        assert_eq!(vector.shape(), [3 * 4 + 4 + 4 * 2 + 2]);
        let flat: Vec<f64> = params.iter().flat_map(|p| p.to_f64_vec().unwrap()).collect();
        assert_close(&vector, &flat, 0.0, "the vector");
        // Gradients flow back.
        (vector.square()).sum().backward().unwrap();
        let expected: Vec<f64> = params[0].to_f64_vec().unwrap().iter().map(|v| 2.0 * v).collect();
        assert_close(&params[0].grad().unwrap(), &expected, 1e-6, "by the first");

        let new = on.linspace(0.0, 25.0, 26);
        vector_to_parameters(&new, &params).unwrap();
        assert_close(
            &parameters_to_vector(&params),
            &(0..26).map(f64::from).collect::<Vec<_>>(),
            1e-5,
            "back",
        );
        assert!(params.iter().all(|p| p.is_leaf() && p.requires_grad()));
        // A copy: what is written to the vector later does not show.
        new.zero_();
        assert_close(&params[3], &[24.0, 25.0], 1e-5, "the last");
        for wrong in
            [on.zeros(25), on.zeros(27), on.zeros([13, 2]), on.zeros(()), on.zeros(2).matmul(&on.zeros(3))]
        {
            assert!(vector_to_parameters(&wrong, &params).is_err());
        }
        let error = vector_to_parameters(&on.zeros(27), &params).unwrap_err();
        assert!(error.message().contains("26 elements") && error.message().contains("[27]"), "{error}");
        assert_close(&params[3], &[24.0, 25.0], 1e-5, "unchanged");
        assert!(parameters_to_vector(&params[..0]).error().is_some(), "no parameters");
        // Of no dimensions, of none at all, strided.
        let odd = [on.zeros(()), on.zeros([0, 3]), on.zeros([2, 3]).t()];
        vector_to_parameters(&on.linspace(1.0, 7.0, 7), &odd).unwrap();
        assert_close(&odd[2], &[2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 1e-5, "strided");
        assert_close(&parameters_to_vector(&odd), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 1e-5, "and read");
    }
}

fn with_grads(device: &Device, grads: &[&[f64]]) -> Vec<Tensor> {
    let leaf = |g: &&[f64]| {
        let g = options().device(device).tensor(*g);
        let p = g.zeros_like().requires_grad_(true);
        p.set_grad(Some(g));
        p
    };
    grads.iter().map(leaf).collect()
}

fn grads(params: &[Tensor]) -> Vec<f64> {
    params.iter().flat_map(|p| p.grad().unwrap().to_f64_vec().unwrap()).collect()
}

/// `test_nn.py::test_clip_grad_norm`, `test_clip_grad_norm_multi_device`, `test_clip_grad_norm_error_if_nonfinite`: the norms
/// that PyTorch 2 gives.
#[test]
fn clipping_by_norms_of_all_orders() {
    let start: [&[f64]; 2] = [&[3.0, -4.0, 0.0], &[1.0, 2.0, -2.0, 0.0]];
    let inf = f64::INFINITY;
    let norms = [
        (0.0, 2.0),
        (0.5, 57.160831451416016),
        (1.0, 12.0),
        (1.5, 7.331917762756348),
        (2.0, 5.830951690673828),
        (4.0, 4.3858160972595215),
        (inf, 4.0),
        (-inf, 0.0),
        (-1.0, 0.0),
    ];
    for d in devices() {
        for (order, norm) in norms {
            let params = with_grads(&d, &start);
            let of: Vec<Tensor> = params.iter().map(|p| p.grad().unwrap()).collect();
            let total = get_total_norm(&of, order);
            // float32 through pow, twice.
            assert_close(&total, &[norm], 1e-5, &format!("the norm of order {order}"));
            assert_close(&clip_grad_norm_(&params, 1.0, order), &[norm], 1e-5, "the norm given");
            let factor = (1.0 / (norm + 1e-6)).min(1.0);
            let expected: Vec<f64> = start.concat().iter().map(|g| g * factor).collect();
            assert_close(&cat(&of.iter().collect::<Vec<_>>(), 0), &expected, 1e-5, "clipped");
            // In two steps, and with options.
            let params = with_grads(&d, &start);
            clip_grads_with_norm_(&params, 1.0, &total);
            assert_close(&options().tensor(grads(&params)), &expected, 1e-5, "clipped by a norm given");
            let params = with_grads(&d, &start);
            let how = ClipNorm { norm_type: order, error_if_nonfinite: true };
            assert_close(&clip_grad_norm_with(&params, 1.0, how).unwrap(), &[norm], 1e-5, "with options");
            assert_close(&options().tensor(grads(&params)), &expected, 1e-5, "clipped with options");
        }
        // What is small enough stays as it is.
        let params = with_grads(&d, &start);
        clip_grad_norm_(&params, 100.0, 2.0);
        assert_eq!(grads(&params), start.concat());
        // Parameters without gradients, none at all, of no elements.
        let mut params = with_grads(&d, &[&[3.0], &[], &[4.0]]);
        params.push(options().device(&d).requires_grad(true).ones(3));
        assert_close(&clip_grad_norm_(&params, 1.0, 2.0), &[5.0], 1e-6, "one without");
        assert!(params[3].grad().is_none());
        // Clipped to 1, less the term that keeps it from dividing by nothing.
        assert_close(&clip_grad_norm_(&params, 1.0, inf), &[0.8], 1e-5, "empty ones have no largest element");
        assert_close(&clip_grad_norm_(&params[3..], 1.0, 2.0), &[0.0], 0.0, "no gradients");
        assert_close(
            &get_total_norm([&options().device(&d).zeros(0)], inf),
            &[0.0],
            0.0,
            "nothing but empty",
        );
        clip_grad_value_(&params, 0.7);
        assert_close(&params[2].grad().unwrap(), &[0.7], 1e-6, "by value");
    }
    if let [host, gpu] = &devices()[..] {
        let params = [with_grads(host, &[&[3.0]]), with_grads(gpu, &[&[4.0]])].concat();
        assert_close(&clip_grad_norm_(&params, 1.0, 2.0), &[5.0], 1e-6, "on two devices");
        assert_close(&options().tensor(grads(&params)), &[0.6, 0.8], 1e-5, "on two devices");
    }
}

#[test]
fn norms_that_are_not_finite() {
    for d in devices() {
        let strict = ClipNorm { error_if_nonfinite: true, ..ClipNorm::default() };
        for bad in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            for norm_type in [2.0, f64::INFINITY, 0.5] {
                let params = with_grads(&d, &[&[bad, 1.0], &[1.0]]);
                let before = grads(&params);
                let error = clip_grad_norm_with(&params, 1.0, ClipNorm { norm_type, ..strict }).unwrap_err();
                assert!(error.message().contains("is non-finite, so it cannot be clipped"), "{error}");
                assert_eq!(error.caller().file(), file!());
                assert_close(&options().tensor(grads(&params)), &before, 0.0, "unchanged");
                let total = clip_grad_norm_with(&params, 1.0, ClipNorm { norm_type, ..Default::default() });
                let total = total.unwrap().item::<f32>().unwrap();
                // As PyTorch: what was infinite is NaN then, and the others are 0, or all are NaN.
                let rest = if bad.is_nan() { f64::NAN } else { 0.0 };
                assert!(!total.is_finite());
                assert_close(&options().tensor(grads(&params)), &[f64::NAN, rest, rest], 0.0, "clipped");
            }
        }
    }
}
