//! PyTorch's autograd in a page:
//!
//!     cargo run --release --example quickstart

use wgrad::prelude::*;

fn main() -> Result<()> {
    println!("— Tensors with gradients");
    let x = ones([2]).requires_grad_(true);
    let y = 5.0 * (&x + 1.0).pow(2.0);
    println!("y = {y}");
    let o = 0.5 * y.sum();
    println!("o = {o}");
    o.backward()?;
    println!("do/dx = {}", x.grad().unwrap());

    println!("\n— A vector needs a gradient to start from");
    let x = ones([3]).requires_grad_(true);
    let z = &x * &x * 2.0;
    println!("z = {z}");
    z.backward_with(&tensor([0.1, 1.0, 0.001]))?;
    println!("x.grad = {}", x.grad().unwrap());

    println!("\n— No gradients: switched off, detached, within no_grad");
    let x = rand([3]).requires_grad_(true);
    let y = no_grad(|| &x + 2.0);
    println!("{} {} {}", x.requires_grad(), x.detach().requires_grad(), y.requires_grad());

    println!("\n— Gradients accumulate until they are zeroed");
    let weights = ones([4]).requires_grad_(true);
    for _ in 0..2 {
        (&weights * 3.0).sum().backward()?;
        println!("{}", weights.grad().unwrap());
    }
    weights.grad().unwrap().zero_();
    (&weights * 3.0).sum().backward()?;
    println!("{}", weights.grad().unwrap());

    println!("\n— Tensors in the midst keep theirs if asked");
    let (a, b) = (rand([3, 2]).requires_grad_(true), rand([2, 1]).requires_grad_(true));
    let product = a.matmul(&b);
    product.retain_grad();
    product.sum().backward()?;
    println!("{}", product.grad().unwrap());

    println!("\n— Gradients of gradients");
    let x = tensor(3.0).requires_grad_(true);
    let y = x.pow(3.0);
    let first = &autograd::grad_with(&[&y], &[&x], Backward::new().create_graph(true))?[0];
    let second = &autograd::grad(&[first], &[&x])?[0];
    println!("{} then {}", first.item::<f32>()?, second.item::<f32>()?);

    println!("\n— Parameters");
    let parameters = Parameter::new(&tensor([[1.0, 2.0], [3.0, 4.0]]));
    println!("{parameters}\n{}\n{}", &parameters + 5.0, parameters.exp());

    println!("\n— Gradient descent by hand");
    manual_seed(0);
    let truth = randn([2]);
    let inputs = (rand([300, 2]) - 0.5) * 5.0;
    let targets = inputs.matmul(&truth) + randn([300]) / 2.0;
    let mut w = rand([2]).requires_grad_(true);
    for _ in 0..500 {
        let mse = (inputs.matmul(&w) - &targets).pow(2.0).mean();
        mse.backward()?;
        let g = w.grad().unwrap();
        no_grad(|| w -= &g * 1e-2);
        g.zero_();
    }
    println!("real coefficients: {truth}\napproximation:     {}", w.detach());

    println!("\n— The same with a module and an optimizer");
    let model = Linear::no_bias(2, 1);
    let mut optimizer = SGD::new(model.parameters(), 1e-2);
    for _ in 0..500 {
        optimizer.zero_grad();
        model.forward(&inputs).squeeze_dim(1).mse_loss(&targets).backward()?;
        optimizer.step()?;
    }
    println!("{}", model.weight);

    println!("\n— Errors say what, and where");
    let bad = ones([2, 3]).matmul(&ones([2, 3])).relu().sum();
    println!("{}", bad.item::<f32>().unwrap_err());
    Ok(())
}
