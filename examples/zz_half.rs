use wgrad::prelude::*;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dev = if std::env::args().nth(1).as_deref() == Some("gpu") { wgrad::device::gpu()? } else { cpu() };
    let x = tensor([[1.5f32, -2.25, 3.1], [0.1, 70000.0, 1e-6]]).to(F16).to(&dev);
    println!("{x}");
    let y = x.mul(&x).add(1.0).tanh();
    println!("{y}\n{}", x.sum());
    let a = randn([5, 7]).to(F16).to(&dev).requires_grad_(true);
    let b = randn([7, 3]).to(F16).to(&dev).requires_grad_(true);
    let c = a.matmul(&b).relu();
    c.sum().backward()?;
    println!("{c}\n{}\n{}", a.grad().unwrap(), b.grad().unwrap());
    println!("{}", a.softmax(-1));
    println!("{}", (&a.detach().to(F32)).matmul(&b.detach().to(F32)));
    println!("{}", a.cross_entropy(&tensor([0, 1, 2, 3, 4]).to(&dev)));
    Ok(())
}
