//! Past the limits of one dispatch: more than 65,535 workgroups, loops of more than 65,535 turns, sums that float32
//! can only just count.

use wgrad::prelude::*;

use crate::common::devices;

/// More elements than 65,535 workgroups of 64 invocations have.
const MANY: usize = 65_535 * 64 + 1_000;

#[test]
fn sums_of_many_ones_are_exact() {
    for device in devices() {
        let o = options().device(&device);
        for n in [65_537, 1 << 18, 1 << 20, 1 << 24] {
            let sum = o.ones(n).sum().item::<f32>().unwrap();
            assert_eq!(sum, n as f32, "{n} ones on {device}");
        }
        assert_eq!(o.clone().dtype(I32).ones(MANY).sum().item::<i32>().unwrap(), MANY as i32, "{device}");
        // Along one dimension while the other is short, long, and not the last.
        for (shape, dim) in [([3, 70_001], 1), ([70_001, 3], 0), ([70_001, 3], 1)] {
            let t = o.ones(shape).sum_dim(dim, false);
            let want = shape[dim as usize] as f32;
            assert!(
                t.to_vec::<f32>().unwrap().iter().all(|&v| v == want),
                "{shape:?} over {dim} on {device}"
            );
        }
        assert_eq!(o.ones([2, 70_001, 2]).amax(1, false).to_vec::<f32>().unwrap(), [1.0; 4]);
        assert_eq!(o.ones(1 << 20).mean().item::<f32>().unwrap(), 1.0);
        let place = o.arange(0, 1 << 20, 1).to(F32).argmax().item::<i32>().unwrap();
        assert_eq!(place, (1 << 20) - 1, "{device}");
    }
}

#[test]
fn many_elements_are_computed_all() {
    for device in devices() {
        let x = options().device(&device).arange(0, MANY as i64, 1);
        let y = (&x * 2 + 1).to_vec::<i32>().unwrap();
        assert!(y.iter().enumerate().all(|(i, &v)| v == 2 * i as i32 + 1), "{device}");
        // Not contiguous, broadcast, and cut off.
        let rows = x.narrow(0, 0, 4_194_304).reshape([2048, 2048]);
        let t = rows.t() - rows.i(0);
        let got = t.i((3, 5)).item::<i32>().unwrap();
        assert_eq!(got, 5 * 2048 + 3 - 5, "{device}");
        let sum = t.to(F32).sum_dim(0, false).to_vec::<f32>().unwrap();
        assert_eq!(sum.len(), 2048);
        let odd = x.slice(0, 1, i64::MAX, 2);
        let last = if MANY.is_multiple_of(2) { MANY - 1 } else { MANY - 2 };
        assert_eq!(odd.amax((), false).item::<i32>().unwrap(), last as i32, "{device}");
    }
}

#[test]
fn long_rows_of_structured_ops() {
    for device in devices() {
        let o = options().device(&device);
        // 70,001 equal logits: each gets its share.
        let n = 70_001;
        let p = o.zeros([2, n]).softmax(1);
        let values = p.to_vec::<f32>().unwrap();
        assert!(values.iter().all(|v| (v * n as f32 - 1.0).abs() < 1e-4), "{device}: {}", values[0]);
        let lp = o.zeros([n, 2]).log_softmax(0).to_vec::<f32>().unwrap();
        assert!(lp.iter().all(|v| (v + (n as f32).ln()).abs() < 1e-4), "{device}");
        // A long inner dimension, and more outputs than one dispatch has rows.
        let product = o.ones([2, n]).matmul(&o.ones([n, 3]));
        assert_eq!(product.to_vec::<f32>().unwrap(), [n as f32; 6], "{device}");
        let tall = o.ones([n, 2]).matmul(&o.full([2, 1], 3.0)).to_vec::<f32>().unwrap();
        assert!(tall.iter().all(|&v| v == 6.0), "{device}");
        let batch = o.ones([66_000, 1, 2]).bmm(&o.ones([66_000, 2, 1])).to_vec::<f32>().unwrap();
        assert!(batch.iter().all(|&v| v == 2.0), "{device}");
        // Many indices into few places, and the other way.
        let index = o.clone().dtype(I32).zeros(1 << 20);
        let hits = o.zeros(3).scatter_add(0, &index, &o.ones(1 << 20)).to_vec::<f32>().unwrap();
        assert_eq!(hits, [1_048_576.0, 0.0, 0.0], "{device}");
        let picked = o.tensor([1.0, 2.0]).gather(0, &index).sum().item::<f32>().unwrap();
        assert_eq!(picked, 1_048_576.0, "{device}");
        let parts: Vec<Tensor> = (0..40).map(|i| o.full([3], i)).collect();
        let joined = cat(&parts.iter().collect::<Vec<_>>(), 0).to_vec::<i32>().unwrap();
        assert_eq!(joined, (0..40).flat_map(|i| [i; 3]).collect::<Vec<_>>(), "{device}");
    }
}

#[test]
fn matrix_products_of_odd_sizes_agree() {
    let all = devices();
    let make = |d: &Device, r: usize, c: usize, k: i64| {
        // Whole numbers, so that every product is exact.
        (options().device(d).arange(0, (r * c) as i64, 1) * k).to(F32).reshape([r, c]).sin().round()
    };
    for (m, k, n) in [
        (1, 1, 1),
        (7, 9, 5),
        (17, 33, 65),
        (64, 64, 64),
        (65, 63, 66),
        (128, 200, 31),
        (1, 300, 257),
        (257, 300, 1),
    ] {
        let reference = |a: &[f32], b: &[f32]| -> Vec<f32> {
            (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
        };
        for device in &all {
            let (a, b) = (make(device, m, k, 3), make(device, k, n, 7));
            let want = reference(&a.to_vec::<f32>().unwrap(), &b.to_vec::<f32>().unwrap());
            assert_eq!(a.matmul(&b).to_vec::<f32>().unwrap(), want, "{m}x{k}x{n} on {device}");
            let (at, bt) = (a.t().clone_data().t(), b.t().clone_data().t());
            assert_eq!(at.matmul(&bt).to_vec::<f32>().unwrap(), want, "transposed {m}x{k}x{n} on {device}");
            let both = (at.matmul(&b) + 1.0).relu().to_vec::<f32>().unwrap();
            assert!(
                both.iter().zip(&want).all(|(g, w)| *g == (w + 1.0).max(0.0)),
                "fused {m}x{k}x{n} on {device}"
            );
        }
    }
}
