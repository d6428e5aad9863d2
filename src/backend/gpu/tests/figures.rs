//! Measurements, run by hand: `cargo test --release figures -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use super::*;
use crate::graph::dtype::DType::F32;
use crate::graph::kernel::{Reduce, ReduceOp};

/// The best of several runs.
fn best(mut f: impl FnMut()) -> Duration {
    f();
    (0..7)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn scaled(n: usize) -> Kernel {
    let l = Layout::contiguous(&[n]);
    let mut b = Build::over(&[n]);
    let x = b.load(0, F32, l.clone());
    let s = b.scalar(0, F32);
    let y = b.f(&MUL, &[x, s]);
    let y = b.f(&ADD, &[y, x]);
    let y = b.f(&RELU, &[y]);
    kernel(Body::Map(vec![b.store(y, 1, F32, l).done()]), &[(F32, false), (F32, true)], &[F32])
}

#[test]
#[ignore = "a measurement"]
fn figures() {
    let gpu = gpu();
    println!("{} {:?}", gpu.name(), gpu.info());
    let scalars = [Scalar::from(2.0)];

    for (n, runs) in [(16, 1), (16, 10), (16, 100)] {
        let k = Arc::new(scaled(n));
        let a = gpu.alloc(4 * n).unwrap();
        let b = gpu.alloc(4 * n).unwrap();
        // Back and forth, so that each waits for the one before.
        let commands = (0..runs)
            .map(|i| Command::Dispatch { kernel: k.clone(), buffers: vec![i % 2, 1 - i % 2], scalars: 0 })
            .collect();
        let recording = Recording { commands };
        let compiled = gpu.compile(&recording).unwrap();
        let buffers = [a, b];
        let encode = best(|| gpu.run(&recording, &compiled, &buffers, &scalars).unwrap());
        gpu.synchronize().unwrap();
        let all = best(|| {
            gpu.run(&recording, &compiled, &buffers, &scalars).unwrap();
            gpu.synchronize().unwrap();
        });
        println!("{runs} dispatches: encode {encode:?}, done {all:?}");
    }

    let start = Instant::now();
    let mut odd = scaled(16);
    odd.scalars.push(F32);
    gpu.compile(&dispatch(odd)).unwrap();
    println!("compiling a kernel like one known: {:?}", start.elapsed());

    for n in [1 << 20, 4 << 20, 16 << 20] {
        let recording = dispatch(scaled(n));
        let compiled = gpu.compile(&recording).unwrap();
        let buffers = [gpu.alloc(4 * n).unwrap(), gpu.alloc(4 * n).unwrap()];
        let time = best(|| {
            gpu.run(&recording, &compiled, &buffers, &scalars).unwrap();
            gpu.synchronize().unwrap();
        });
        println!("chain over {n}: {time:?}, {:.2} GB/s", 8.0 * n as f64 / time.as_secs_f64() / 1e9);
    }

    for n in [1 << 20, 16 << 20] {
        let parts = (gpu.caps().split_reduction)(1, n);
        let step = |rows: usize, columns: usize, from: u16, to: u16| {
            let mut pre = Build::over(&[rows, columns]);
            let value = pre.load(from, F32, Layout::contiguous(&[rows, columns]));
            let mut pre = pre.0;
            let kept = pre.collapse(1);
            let mut post = Build::over(&[rows]);
            let y = post.anchor(F32);
            let post = post.store(y, to, F32, Layout::contiguous(&[rows])).done();
            let body = Body::Reduce(Reduce { op: ReduceOp::Sum, dtype: F32, pre, value, kept, post });
            Arc::new(kernel(body, &[(F32, false), (F32, true)], &[]))
        };
        let recording = Recording {
            commands: vec![
                Command::Dispatch { kernel: step(parts, n / parts, 0, 1), buffers: vec![0, 1], scalars: 0 },
                Command::Dispatch { kernel: step(1, parts, 0, 1), buffers: vec![1, 2], scalars: 0 },
            ],
        };
        let compiled = gpu.compile(&recording).unwrap();
        let ones: Vec<f32> = vec![1.0; n];
        let buffers = [
            gpu.upload(bytemuck::cast_slice(&ones)).unwrap(),
            gpu.alloc(4 * parts).unwrap(),
            gpu.alloc(4).unwrap(),
        ];
        let time = best(|| {
            gpu.run(&recording, &compiled, &buffers, &[]).unwrap();
            gpu.synchronize().unwrap();
        });
        let sum: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.download(&buffers[2], 0..4).unwrap());
        assert_eq!(sum[0], n as f32);
        println!(
            "sum of {n} in {parts} parts: {time:?}, {:.2} GB/s",
            4.0 * n as f64 / time.as_secs_f64() / 1e9
        );
        gpu.profile(true);
        gpu.run(&recording, &compiled, &buffers, &[]).unwrap();
        for timing in gpu.profile(false) {
            println!("{}", timing.line());
        }
        let time = best(|| drop(gpu.download(&buffers[0], 0..4 * n).unwrap()));
        println!("download of {} MB: {time:?}", (4 * n) >> 20);
        let time = best(|| drop(gpu.upload(bytemuck::cast_slice(&ones)).unwrap()));
        println!("upload of {} MB: {time:?}", (4 * n) >> 20);
    }
}
