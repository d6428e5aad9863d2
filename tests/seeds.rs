//! The five tutorials that the project must reproduce: every cell in order, with the figures that it prints, on
//! every device. Where a tutorial draws random inputs and prints them, they are given as printed.

mod common;

use common::{assert_close, devices};
use std::sync::Mutex;
use wgrad::error::set_warning_handler;
use wgrad::prelude::*;

/// As PyTorch prints it. What it prints of a device is left out: the tutorials' is the CPU.
fn print(t: &Tensor) -> String {
    t.to_string().replace(", device='gpu:0'", "")
}

fn grad(t: &Tensor) -> Tensor {
    t.grad().expect("a gradient")
}

/// 000: "PyTorch Fundamentals - Gradients". Its figures are in the format of old: `tensor([ 2.,  2.])`.
#[test]
fn fundamentals_of_gradients() {
    for device in devices() {
        let torch = || options().device(&device);

        let a = torch().requires_grad(true).ones((2, 2));
        assert_eq!(print(&a), "tensor([[1., 1.],\n        [1., 1.]], requires_grad=True)");
        assert!(a.requires_grad());

        // Normal way of creating gradients
        let a = torch().ones((2, 2));
        a.requires_grad_(true);
        assert!(a.requires_grad());

        // Not a variable
        let no_gradient = torch().ones((2, 2));
        assert!(!no_gradient.requires_grad());

        // Behaves similarly to tensors
        let b = torch().requires_grad(true).ones((2, 2));
        let twos = "tensor([[2., 2.],\n        [2., 2.]], grad_fn=<AddBackward0>)";
        assert_eq!(print(&(&a + &b)), twos);
        assert_eq!(print(&a.add(&b)), twos);
        let ones = "tensor([[1., 1.],\n        [1., 1.]], grad_fn=<MulBackward0>)";
        assert_eq!(print(&(&a * &b)), ones);
        assert_eq!(print(&a.mul(&b)), ones);
        // "Feel free to try divisions, mean or standard deviation!"
        assert_eq!(print(&(&a / &b)), ones.replace("Mul", "Div"));
        assert_eq!(print(&a.mean()), "tensor(1., grad_fn=<MeanBackward0>)");
        assert_eq!(a.std((), 1.0, false).item::<f32>().unwrap(), 0.0);

        // y_i = 5(x_i+1)^2
        let x = torch().requires_grad(true).ones(2);
        assert_eq!(print(&x), "tensor([1., 1.], requires_grad=True)");
        let y = 5 * (&x + 1).pow(2);
        assert_eq!(print(&y), "tensor([20., 20.], grad_fn=<MulBackward0>)");
        let o = (1.0 / 2.0) * y.sum();
        assert_eq!(print(&o), "tensor(20., grad_fn=<MulBackward0>)");
        o.backward().unwrap();
        assert_eq!(print(&grad(&x)), "tensor([10., 10.])");
        assert!(x.requires_grad() && y.requires_grad() && o.requires_grad());
    }
}

/// 001: gradients, keeping tensors out of the graph, emptying gradients, an optimizer.
#[test]
fn calculating_gradients() {
    for device in devices() {
        let torch = || options().device(&device).requires_grad(true);

        // In [2]
        let x = torch().tensor([-2.1159, -0.8031, -2.4649]);
        assert_eq!(print(&x), "tensor([-2.1159, -0.8031, -2.4649], requires_grad=True)");
        // In [3]
        let y = &x + 2;
        assert_eq!(print(&y), "tensor([-0.1159,  1.1969, -0.4649], grad_fn=<AddBackward0>)");
        let text = y.grad_fn().unwrap().to_string();
        assert!(text.starts_with("<AddBackward0 object at 0x") && text.ends_with('>'), "{text}");
        // In [4]: the input is printed to four digits, and so the last digits differ by one.
        let z = &y * &y * 2;
        assert_close(&z, &[0.0269, 2.8652, 0.4322], 2e-4, "z");
        assert!(print(&z).ends_with(", grad_fn=<MulBackward0>)"));
        z.backward_with(&x).unwrap();
        assert_close(&grad(&x), &[0.9813, -3.8449, 4.5832], 5e-4, "x.grad");

        // In [5]
        let x = torch().ones(1);
        let y = x.pow(2);
        y.backward().unwrap();
        assert_eq!(print(&grad(&x)), "tensor([2.])");

        // In [6]
        let x = torch().ones(3);
        let y = x.pow(2);
        let z = &y * &y * 2;
        assert_eq!(print(&z), "tensor([2., 2., 2.], grad_fn=<MulBackward0>)");
        let v = z.ones_like();
        z.backward_with(&v).unwrap();
        assert_eq!(print(&grad(&x)), "tensor([8., 8., 8.])");

        // In [7]: inputs that give the gradients printed, 4(x + 2) / 3.
        let x = torch().tensor([3.4531 * 0.75 - 2.0, 4.9754 * 0.75 - 2.0, 2.3458 * 0.75 - 2.0]);
        let y = &x + 2;
        let z = &y * &y * 2;
        let z_mean = z.mean();
        assert_close(&z_mean, &[15.8178], 1e-3, "z_mean");
        assert!(print(&z_mean).ends_with(", grad_fn=<MeanBackward0>)"));
        z_mean.backward().unwrap();
        assert_eq!(print(&grad(&x)), "tensor([3.4531, 4.9754, 2.3458])");

        // In [8]
        let x = torch().tensor([0.5594, 0.7272, 0.6071]);
        assert_eq!(print(&x), "tensor([0.5594, 0.7272, 0.6071], requires_grad=True)");
        x.requires_grad_(false);
        assert_eq!(print(&x), "tensor([0.5594, 0.7272, 0.6071])");

        // In [9]
        let x = torch().tensor([0.1746, 0.7210, 0.6549]);
        assert_eq!(print(&x), "tensor([0.1746, 0.7210, 0.6549], requires_grad=True)");
        assert_eq!(print(&x.detach()), "tensor([0.1746, 0.7210, 0.6549])");

        // In [10]
        let x = torch().tensor([0.5700, 0.5308, 0.0444]);
        assert_eq!(print(&x), "tensor([0.5700, 0.5308, 0.0444], requires_grad=True)");
        let y = no_grad(|| &x + 2);
        assert_eq!(print(&y), "tensor([2.5700, 2.5308, 2.0444])");

        // In [11]
        let weights = torch().ones(4);
        let mut printed = vec![];
        for _ in 0..3 {
            let model_output = (&weights * 3).sum();
            model_output.backward().unwrap();
            printed.push(print(&grad(&weights)));
        }
        assert_eq!(
            printed,
            ["tensor([3., 3., 3., 3.])", "tensor([6., 6., 6., 6.])", "tensor([9., 9., 9., 9.])"]
        );

        // In [12]
        let weights = torch().ones(4);
        for _ in 0..3 {
            let model_output = (&weights * 3).sum();
            model_output.backward().unwrap();
            assert_eq!(print(&grad(&weights)), "tensor([3., 3., 3., 3.])");
            // Emptying the grads
            grad(&weights).zero_();
        }

        // In [13]
        let weights = torch().rand((3, 3));
        let before = weights.to_vec::<f32>().unwrap();
        let mut optimizer = SGD::new(vec![weights.clone()], 0.01);
        optimizer.step().unwrap();
        optimizer.zero_grad();
        assert_eq!(weights.to_vec::<f32>().unwrap(), before, "no gradient, no step");
        weights.sum().backward().unwrap();
        optimizer.step().unwrap();
        let after: Vec<f64> = before.iter().map(|&w| f64::from(w) - 0.01).collect();
        assert_close(&weights, &after, 1e-6, "a step");
        optimizer.zero_grad();
        assert!(weights.grad().is_none());
    }
}

/// 002: "Gradient": examples, ignoring gradients, gradients of what is no leaf, gradient descent.
#[test]
fn gradient() {
    static WARNINGS: Mutex<Vec<String>> = Mutex::new(vec![]);
    set_warning_handler(|text| WARNINGS.lock().unwrap().push(text.to_string()));
    for device in devices() {
        let torch = || options().device(&device).requires_grad(true);

        // Example 1
        let n = 5;
        let w = torch().rand(n);
        let y = (&w * 3).sum();
        y.backward().unwrap();
        assert_eq!(print(&grad(&w)), "tensor([3., 3., 3., 3., 3.])");

        // Example 2
        let w = torch().dtype(F32).tensor([1, 2, 3, 4]);
        let g = torch().dtype(F32).tensor([5, 6, 7, 8]);
        let y = w.matmul(&g);
        y.backward().unwrap();
        assert_eq!(print(&grad(&w)), "tensor([5., 6., 7., 8.])");
        assert_eq!(print(&grad(&g)), "tensor([1., 2., 3., 4.])");

        // Ignore gradients. (The tutorial's output shows the gradient of a second run.)
        let w = torch().rand(n);
        for _ in 0..2 {
            let y = w.sum();
            y.backward().unwrap();
        }
        assert_eq!(print(&grad(&w)), "tensor([2., 2., 2., 2., 2.])");
        let y = no_grad(|| w.sum());
        let error = y.backward().unwrap_err();
        // What PyTorch says, and where the gradient was lost.
        let said = "element 0 of tensors does not require grad and does not have a grad_fn: gradients were cut off by";
        assert!(error.message().starts_with(said), "{error}");

        // Non-leaf grad: inputs whose sums are the figures that the tutorial prints.
        let a = torch().tensor([[0.5, 0.25], [0.25, 0.5], [0.4146, 0.6613]]);
        let b = torch().tensor([[0.4047], [0.6939]]);
        let temp = a.matmul(&b);
        temp.sum().backward().unwrap();
        WARNINGS.lock().unwrap().clear();
        let line = line!() + 1;
        assert!(temp.grad().is_none());
        let warnings = std::mem::take(&mut *WARNINGS.lock().unwrap());
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let start = format!("{}:{line}:", file!());
        assert!(warnings[0].starts_with(&start), "{}", warnings[0]);
        let text = "UserWarning: The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its .grad \
                    attribute won't be populated during";
        assert!(warnings[0].contains(text), "{}", warnings[0]);
        assert_eq!(
            print(&grad(&a)),
            "tensor([[0.4047, 0.6939],\n        [0.4047, 0.6939],\n        [0.4047, 0.6939]])"
        );
        assert_eq!(print(&grad(&b)), "tensor([[1.1646],\n        [1.4113]])");
        let temp = a.matmul(&b);
        temp.retain_grad();
        temp.sum().backward().unwrap();
        assert_eq!(print(&grad(&temp)), "tensor([[1.],\n        [1.],\n        [1.]])");
        assert!(WARNINGS.lock().unwrap().is_empty());
    }
}

/// 002, its last part, with the true coefficients that it drew.
#[test]
fn gradient_descent() {
    for device in devices() {
        device.manual_seed(7);
        let torch = || options().device(&device);
        let (n_features, n_objects) = (2, 300);
        let w_true = torch().tensor([-0.12526378, 0.5651034]);
        let x = (torch().rand((n_objects, n_features)) - 0.5) * 5;
        let y = x.matmul(&w_true) + torch().randn(n_objects) / 2;

        let step_size = 1e-2;
        let mut w = torch().requires_grad(true).rand(x.size(1));
        for _ in 0..5000 {
            let y_pred = x.matmul(&w);
            let mse = (y_pred - &y).pow(2).mean();
            mse.backward().unwrap();
            no_grad(|| w -= grad(&w) * step_size);
            grad(&w).zero_();
        }
        assert!(w.is_leaf() && w.requires_grad());
        let found = w.to_vec::<f32>().unwrap();
        let real = w_true.to_vec::<f32>().unwrap();
        for (found, real) in found.iter().zip(&real) {
            // The noise is 1/2 over sqrt(300), spread over inputs of deviation 1.44: 0.02 and a little luck.
            assert!((found - real).abs() < 0.08, "{device}: real coefs {real:?}, approximation {found:?}");
        }
        // Where it must end: the least squares solution of these very samples.
        let (x, y) = (x.to_f64_vec().unwrap(), y.to_f64_vec().unwrap());
        let dot = |i: usize, j: usize| (0..n_objects).map(|r| x[r * 2 + i] * x[r * 2 + j]).sum::<f64>();
        let by = |i: usize| (0..n_objects).map(|r| x[r * 2 + i] * y[r]).sum::<f64>();
        let det = dot(0, 0) * dot(1, 1) - dot(0, 1) * dot(0, 1);
        let best =
            [(by(0) * dot(1, 1) - by(1) * dot(0, 1)) / det, (by(1) * dot(0, 0) - by(0) * dot(0, 1)) / det];
        assert_close(&w, &best, 1e-4, "least squares");
    }
}

/// 003: "PyTorch for Automatic Gradient Descent": parameters.
#[test]
fn parameters() {
    for device in devices() {
        let torch = || options().device(&device);
        let tensor = torch().tensor([[1., 2.], [3., 4.]]);
        let parameters = nn::Parameter::new(&tensor);
        assert_eq!(
            print(&parameters),
            "Parameter containing:\ntensor([[1., 2.],\n        [3., 4.]], requires_grad=True)"
        );
        let temp = &parameters + 5;
        assert_eq!(print(&temp), "tensor([[6., 7.],\n        [8., 9.]], grad_fn=<AddBackward0>)");
        let temp = parameters.exp();
        let text = "tensor([[ 2.7183,  7.3891],\n        [20.0855, 54.5982]], grad_fn=<ExpBackward0>)";
        // e^4 is 54.59815003, and the float nearest to it 54.59814835: today's PyTorch prints 54.5981, the tutorial's
        // rounded the other way.
        let printed = print(&temp).replace("54.5981", "54.5982");
        assert_eq!(printed, text);

        let tensor_0 = torch().tensor([1.0]);
        let theta_0 = nn::Parameter::new(&tensor_0);
        let loss = &theta_0 * &theta_0;
        assert_eq!(print(&loss), "tensor([1.], grad_fn=<MulBackward0>)");
        assert!(theta_0.grad().is_none());
        loss.backward().unwrap();
        assert_eq!(print(&grad(&theta_0)), "tensor([2.])");
    }
}

/// 004: "A Simple Example of PyTorch Gradients".
#[test]
fn a_simple_example() {
    fn some_func(x: &Tensor) -> Tensor {
        (x * x) + (3 * x) + 1
    }
    for target in devices() {
        let device = if target.is_cpu() { device("cpu").unwrap() } else { target };
        let x = options().device(cpu()).dtype(F32).requires_grad(true).tensor([4.0]).to(&device);
        // `.to` the same device is the tensor itself; to another it is a copy, and no leaf, as in PyTorch.
        assert_eq!(x.is_leaf(), device.is_cpu());
        x.retain_grad();
        let y = some_func(&x);
        let suffix = if device.is_cpu() { "requires_grad=True" } else { "grad_fn=<ToCopyBackward0>" };
        assert_eq!(print(&x), format!("tensor([4.], {suffix})"));
        assert_eq!(print(&y), "tensor([29.], grad_fn=<AddBackward0>)");
        let df = y.grad_fn().unwrap();
        assert!(df.to_string().starts_with("<AddBackward0 object at 0x"), "{df}");
        y.backward().unwrap(); // compute grad of some_func(4)
        assert_eq!(print(&grad(&x)), "tensor([11.])"); // 2(4) + 3 = 11
    }
}
