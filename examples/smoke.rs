use wgrad::prelude::*;
fn main() -> wgrad::Result<()> {
    let x = tensor([-2.1159, -0.8031, -2.4649]).requires_grad_(true);
    println!("{x}");
    let y = &x + 2.0;
    println!("{y} {}", y.grad_fn().unwrap());
    let z = &y * &y * 2.0;
    println!("{z}");
    z.backward_with(&x)?;
    println!("{}", x.grad().unwrap());
    let w = ones([4]).requires_grad_(true);
    for _ in 0..3 {
        let o = (&w * 3.0).sum();
        o.backward()?;
        println!("{}", w.grad().unwrap());
        w.grad().unwrap().zero_();
    }
    let a = arange(0, 12, 1).reshape([3, 4]).to(F32);
    println!("{a}\n{}\n{}", a.t(), a.i((1, ..2)));
    a.i((.., 1)).fill_(7.0);
    println!("{a} {}", a.mean_dim(0, true));
    println!("{}", a.var([0], 1.0, false));
    println!("{}", a.argmax_dim(1, false));
    println!("{}", a.amax(1, true).requires_grad_(true));
    let c = cat(&[&a, &a], 1);
    println!("{c}");
    let t = std::time::Instant::now();
    for _ in 0..20 {
        let t = std::time::Instant::now();
        let mut x = tensor([1.0]);
        for _ in 0..500 { x = &x * 1.0001 + 0.0001; }
        let rec = t.elapsed();
        let v: f32 = x.item()?;
        println!("{v} {:?} {:?}", rec, t.elapsed());
    }
    println!("{:?}", t.elapsed());
    Ok(())
}
