//! An op of one's own, with kernels for GPU and CPU, in about 15 lines:
//!
//!     cargo run --release --example custom_kernel

use wgrad::prelude::*;

fn main() -> Result<()> {
    let swish = custom::elementwise("swish")
        .wgsl("a / (T(1) + exp(-a))")
        .cpu(|[a]| a / (1.0 + (-a).exp()))
        .backward("g * (out + (T(1) - out) / (T(1) + exp(-a)))", |[a, out, g]| {
            g * (out + (1.0 - out) / (1.0 + (-a).exp()))
        })
        .register()?;

    let x = linspace(-3.0, 3.0, 7).requires_grad_(true);
    swish.check(&[&x])?; // both backends against each other, and the gradient against differences
    let y = (swish.call(&[&x]) * 2.0).sum(); // one kernel: the op, the product and the sum
    y.backward()?;
    println!("x = {x}\ny = {y}\ndy/dx = {}", x.grad().unwrap());

    // A whole kernel, with loops and memory of its own, and a gradient in tensor ops.
    let cumulate = custom::kernel("cumulate", ["x"])
        .param("n", |s| s.input(0).last().copied().unwrap_or(1))
        .invocations(|s| s.numel() / s.input(0).last().copied().unwrap_or(1).max(1))
        .wgsl(
            "@compute @workgroup_size(64)
             fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
                 let row = invocation(id, groups);
                 if row * params.n >= params.numel { return; }
                 var sum = 0.0;
                 for (var k = 0u; k < params.n; k++) {
                     sum += x[row * params.n + k];
                     store(row * params.n + k, sum);
                 }
             }",
        )
        .cpu(|s, inputs, out| {
            let n = s.input(0).last().copied().unwrap_or(1);
            for (row, out) in inputs[0].chunks(n).zip(out.chunks_mut(n)) {
                let mut sum = 0.0;
                row.iter().zip(out).for_each(|(x, out)| {
                    sum += x;
                    *out = sum;
                });
            }
        })
        .formula(|c| {
            // What comes at or behind each element: the sum of the row, less what comes before.
            let g = c.grad();
            let until = tril_ones(g.size(-1), &g);
            vec![Some(g.matmul(&until))]
        })
        .register()?;
    let m = ones([2, 4]).requires_grad_(true);
    cumulate.check(&[&m])?;
    println!("cumulate = {}", cumulate.call(&[&m]));
    Ok(())
}

/// Ones at and below the diagonal.
fn tril_ones(n: usize, like: &Tensor) -> Tensor {
    let o = options().device(like.device()).dtype(like.dtype());
    let at = o.arange(0, n as i32, 1);
    at.unsqueeze(1).ge(at.unsqueeze(0)).to(like.dtype())
}
