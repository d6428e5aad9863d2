//! Kernels compiled ahead, and processes that exit meanwhile.

use std::process::Command as Process;
use std::time::Duration;

use super::*;
use crate::graph::dtype::DType::F32;

/// Eight kernels of their own: the n-th adds its input to itself n times.
fn recording(salt: usize) -> Recording {
    let n = 64;
    let one = |i: usize| {
        let mut b = Build::over(&[n]);
        let x = b.load(0, F32, Layout::contiguous(&[n]));
        let sum = (0..=i).fold(x, |sum, _| b.f(&ADD, &[sum, x]));
        let out = (0..salt).fold(sum, |y, _| b.f(&RELU, &[y]));
        let program = b.store(out, 1, F32, Layout::contiguous(&[n])).done();
        let kernel = kernel(Body::Map(vec![program]), &[(F32, false), (F32, true)], &[]);
        Command::Dispatch { kernel: Arc::new(kernel), buffers: vec![0, 1 + i as Slot], scalars: 0 }
    };
    Recording { commands: (0..8).map(one).collect() }
}

/// Its input, and room for its outputs.
fn data() -> Vec<Vec<u32>> {
    std::iter::once(floats(64)).chain((0..8).map(|_| vec![0; 64])).collect()
}

#[test]
fn kernels_compiled_ahead_are_the_same() {
    let gpu = gpu();
    let got = run(&gpu, &recording(1), &data(), &[]);
    for (i, out) in got[1..].iter().enumerate() {
        for (&x, &y) in got[0].iter().zip(out) {
            let (x, y) = (f32::from_bits(x), f32::from_bits(y));
            assert_eq!(y, (x * (i + 2) as f32).max(0.0));
        }
    }
    assert!(gpu.faults.take().is_ok());
}

#[test]
fn a_process_exits_while_kernels_are_compiled() {
    if let Ok(wait) = std::env::var("WGRAD_TEST_EXIT") {
        let (gpu, recording) = (gpu(), recording(2));
        let buffers: Vec<_> = data().iter().map(|d| gpu.upload(bytemuck::cast_slice(d)).unwrap()).collect();
        let compiled = gpu.compile(&recording, false).unwrap_or_else(|f| panic!("{}", f.message));
        gpu.run(&recording, &compiled, &buffers, &[]).unwrap_or_else(|f| panic!("{}", f.message));
        std::thread::sleep(Duration::from_millis(wait.parse().unwrap()));
        std::process::exit(0);
    }
    for wait in ["0", "20", "60"] {
        let folder = std::env::temp_dir().join(format!("wgrad-exit-{}-{wait}", std::process::id()));
        let mut again = Process::new(std::env::current_exe().unwrap());
        again.args(["--exact", "backend::gpu::tests::ahead::a_process_exits_while_kernels_are_compiled"]);
        // Nothing is on disk, so that there is something to compile.
        again.env("WGRAD_TEST_EXIT", wait).env("MESA_SHADER_CACHE_DIR", &folder);
        let out = again.output().unwrap();
        drop(std::fs::remove_dir_all(&folder));
        assert!(out.status.success(), "after {wait} ms: {out:?}");
    }
}
