use wgrad::prelude::*;
fn main() -> wgrad::Result<()> {
    let d = default_device();
    println!("{d}");
    let x = (arange(0, 12, 1).reshape([3, 4]).to(F32) * 0.1).requires_grad_(true);
    let w = (arange(0, 20, 1).reshape([5, 4]).to(F32) * 0.05).requires_grad_(true);
    let b = ones([5]).requires_grad_(true);
    let h = x.linear(&w, Some(&b)).relu();
    println!("{h}");
    let loss = h.cross_entropy(&tensor([0, 3, 4]));
    println!("{loss}");
    loss.backward()?;
    println!("{} {} {}", x.grad().unwrap(), w.grad().unwrap(), b.grad().unwrap());
    let n = x.softmax(1);
    println!("{n}");
    println!("{}", x.gather(1, &tensor([[0], [1], [2]])));
    println!("{}", tensor([[1.0, 2.0], [3.0, 4.0]]).pow(&tensor([0.5, 3.0])));
    Ok(())
}
