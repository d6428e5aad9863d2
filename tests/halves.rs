//! Float16: types, rounding, sizes that are no whole words, files, training.

mod common;

use common::devices;
use wgrad::f16;
use wgrad::prelude::*;

/// Every half there is, twice: NaN apart, they survive every way there and back.
#[test]
fn every_half_is_exact() -> anyhow::Result<()> {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for device in devices() {
        let x = options().device(&device).from_slice(&all, [256, 256]);
        assert_eq!((x.dtype(), x.dtype().size()), (F16, 2));
        let back = x.to_vec::<f16>()?;
        assert!(all.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()), "{device}: copied");
        let same = |name: &str, got: &[f16]| {
            for (want, got) in all.iter().zip(got) {
                let equal = if want.is_nan() { got.is_nan() } else { want.to_bits() == got.to_bits() };
                assert!(equal, "{device}, {name}: {want:?} ({:#x}) became {got:?}", want.to_bits());
            }
        };
        // Through arithmetic in single precision, four at a time and one at a time.
        same("wide", &x.mul(1.0).to_vec()?);
        same("one by one", &x.t().mul(1.0).t().to_vec()?);
        same("through singles", &x.to(F32).to(F16).to_vec()?);
        let singles = x.to(F32).to_vec::<f32>()?;
        let expected = all.iter().map(|h| h.to_f32());
        assert!(expected.zip(&singles).all(|(a, &b)| a == b || a.is_nan() && b.is_nan()), "{device}");
    }
    Ok(())
}

/// Singles are rounded to the nearest half, ties to even; what is too large is infinite, what is too small zero.
#[test]
fn singles_are_rounded_as_ieee_says() -> anyhow::Result<()> {
    let mut values: Vec<f32> = vec![65504.0, 65519.99, 65520.0, 1e30, f32::INFINITY, f32::NAN];
    values.extend([2.0f32.powi(-24), 2.0f32.powi(-25), 2.0f32.powi(-25) * 1.0001, 1e-30, 0.0]);
    // Between neighbours, at all exponents: a little below the middle, in it, and a little above.
    for half in (0..0x7bff).step_by(37).map(f16::from_bits) {
        let (low, high) = (half.to_f32(), f16::from_bits(half.to_bits() + 1).to_f32());
        let middle = low + (high - low) / 2.0;
        values.extend([middle, middle.next_down(), middle.next_up()]);
    }
    values.extend(values.clone().iter().map(|v| -v));
    let expected: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    for device in devices() {
        let x = options().device(&device).from_slice(&values, [values.len()]);
        // Stored four at a time, one at a time, and rounded without being stored.
        let strided = options().device(&device).dtype(F16).zeros([values.len(), 3]);
        strided.i((.., 1)).copy_(&x).check()?;
        for (name, got) in [
            ("fours", x.to(F16)),
            ("singles", strided.i((.., 1))),
            ("not stored", x.to(F16).to(F32).mul(1.0).to(F16)),
        ] {
            for ((value, want), got) in values.iter().zip(&expected).zip(got.to_vec::<f16>()?) {
                let equal = if want.is_nan() { got.is_nan() } else { *want == got };
                assert!(equal, "{device}, {name}: {value:e} became {got:?}, not {want:?}");
            }
        }
    }
    Ok(())
}

/// As `torch.result_type` has it.
#[test]
fn types_are_promoted() -> anyhow::Result<()> {
    for device in devices() {
        let o = options().device(&device);
        let half = o.clone().dtype(F16).ones([2]);
        let with = |dtype: DType| half.add(o.clone().dtype(dtype).ones([2])).dtype();
        assert_eq!([with(Bool), with(I32), with(U32), with(F16), with(F32)], [F16, F16, F16, F16, F32]);
        // A number, or a tensor without dimensions, raises the category alone.
        assert_eq!(half.add(1.5).dtype(), F16);
        assert_eq!(half.add(o.clone().ones(())).dtype(), F16);
        assert_eq!(o.clone().dtype(I32).ones([2]).add(o.clone().dtype(F16).ones(())).dtype(), F16);
        assert_eq!((half.gt(0.5).dtype(), half.argmax().dtype()), (Bool, I32));
        assert_eq!((half.sum().dtype(), half.mean().dtype(), half.exp().dtype()), (F16, F16, F16));
        // Sums are of singles: 4,096 ones and more are beyond what halves count one by one.
        let many = o.clone().dtype(F16).ones([5_000]);
        assert_eq!(many.sum().to(F32).item::<f32>()?, 5_000.0);
        assert_eq!(
            many.reshape([50, 100]).matmul(&many.reshape([100, 50])).to(F32).max().item::<f32>()?,
            100.0
        );
    }
    Ok(())
}

/// Neighbours share a word of memory.
#[test]
fn odd_sizes_and_places() -> anyhow::Result<()> {
    for device in devices() {
        let o = options().device(&device);
        for n in [0usize, 1, 2, 3, 5, 7, 9, 63, 65, 1_023] {
            let values: Vec<f16> = (0..n).map(|i| f16::from_f32(i as f32)).collect();
            let x = o.clone().from_slice(&values, [n]);
            assert_eq!(x.to_vec::<f16>()?, values, "{device}: {n}");
            assert_eq!(x.add(1.0).to(F32).sum().item::<f32>()?, ((n + 1) * n / 2) as f32, "{device}: {n}");
        }
        // Writing between others leaves them alone.
        let x = o.clone().dtype(F16).zeros([41]);
        for (start, len) in [(1usize, 1usize), (4, 3), (9, 8), (20, 5), (33, 7)] {
            x.narrow(0, start as i64, len).copy_(&o.clone().dtype(F16).full([len], start as i32)).check()?;
        }
        let got = x.to(F32).to_vec::<f32>()?;
        for (i, v) in got.iter().enumerate() {
            let part = [(1, 1), (4, 3), (9, 8), (20, 5), (33, 7)]
                .into_iter()
                .find(|(s, n)| (*s..s + n).contains(&i));
            assert_eq!(*v, part.map_or(0.0, |(s, _)| s as f32), "{device}: {i} of {got:?}");
        }
        let every_third = x.narrow(0, 1, 39).reshape([13, 3]).select(1, 0);
        assert_eq!(
            every_third.to(F32).to_vec::<f32>()?,
            got[1..40].iter().step_by(3).copied().collect::<Vec<_>>()
        );
        assert_eq!(cat(&[&x, &x.narrow(0, 3, 5)], 0).to(F32).sum().item::<f32>()?, {
            got.iter().sum::<f32>() + got[3..8].iter().sum::<f32>()
        });
    }
    Ok(())
}

#[test]
fn they_print_as_in_pytorch() {
    let x = tensor([1.0, 2.5, 0.1]).to(cpu()).to(F16);
    assert_eq!(x.to_string(), "tensor([1.0000, 2.5000, 0.1000], dtype=float16)");
}

#[test]
fn files_keep_them() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let x = randn([3, 5]).to(F16);
    wgrad::io::npy::save(folder.path().join("x.npy"), &x)?;
    let y = wgrad::io::npy::load(folder.path().join("x.npy"))?;
    assert_eq!((y.dtype(), y.to_vec::<f16>()?), (F16, x.to_vec::<f16>()?));
    Ok(())
}

/// Weights in singles, the work in halves, as mixed-precision training has it
/// ([Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740)): losses follow those of singles.
#[test]
fn mixed_precision_trains() -> anyhow::Result<()> {
    for device in devices() {
        let o = options().device(&device);
        let mut curves = vec![];
        for work in [F32, F16] {
            wgrad::manual_seed(5);
            let x = o.clone().randn([64, 16]);
            let y = x.i((.., ..3)).argmax_dim(1, false);
            let w1 = o.clone().randn([16, 32]).mul(0.2).detach().requires_grad_(true);
            let w2 = o.clone().randn([32, 3]).mul(0.2).detach().requires_grad_(true);
            let mut losses = vec![];
            for _ in 0..30 {
                let hidden = x.to(work).matmul(&w1.to(work)).relu();
                let logits = hidden.matmul(&w2.to(work)).to(F32);
                let loss = logits.cross_entropy(&y);
                // A scale keeps small gradients from vanishing in halves.
                loss.mul(128.0).backward()?;
                losses.push(loss.item::<f32>()?);
                no_grad(|| -> Result<()> {
                    for w in [&w1, &w2] {
                        let grad = w.grad().expect("of a leaf");
                        assert_eq!(grad.dtype(), F32);
                        w.sub_(grad.mul(0.5 / 128.0)).check()?;
                        w.set_grad(None);
                    }
                    Ok(())
                })?;
            }
            curves.push(losses);
        }
        assert!(curves[1][29] < 0.7 * curves[1][0], "{device}: {curves:?}");
        for (single, half) in curves[0].iter().zip(&curves[1]) {
            // Halves carry 11 bits; thirty steps add some of their errors up.
            assert!((single - half).abs() < 0.02, "{device}: {curves:?}");
        }
    }
    Ok(())
}

/// Losses of halves are computed in singles, and counted in them: halves do not count beyond 2048 by ones. Gradients are
/// rounded once.
#[test]
fn losses_of_halves_are_summed_in_singles() -> anyhow::Result<()> {
    for device in devices() {
        let o = options().device(&device);
        for (rows, reduction) in
            [(3001, Reduction::Mean), (70_000, Reduction::Mean), (40, Reduction::None), (40, Reduction::Sum)]
        {
            let half = o.clone().randn([rows, 7]).to(F16).detach().requires_grad_(true);
            let single = half.detach().to(F32).requires_grad_(true);
            let class = o.clone().from_slice(&(0..rows).map(|i| i * 5 % 7).collect::<Vec<i32>>(), rows);
            let how = CrossEntropy { reduction, ..CrossEntropy::default() };
            let [a, b] = [&half, &single].map(|x| x.cross_entropy_with(&class, &how));
            assert_eq!(a.dtype(), F16);
            // A scale keeps the mean's gradients from vanishing in halves.
            for loss in [&a, &b] {
                loss.mul(1024.0).sum().backward()?;
            }
            let (a, b) = (a.to_f64_vec()?, b.to_f64_vec()?);
            for (a, b) in a.iter().zip(&b) {
                assert!(
                    (a - b).abs() <= b.abs() / 1024.0,
                    "{reduction:?} of {rows} on {device}: {a}, not {b}"
                );
            }
            let (a, b) = (half.grad().expect("of a leaf"), single.grad().expect("of a leaf"));
            assert_eq!(a.dtype(), F16);
            for (a, b) in a.to_f64_vec()?.iter().zip(b.to_f64_vec()?) {
                // Halves below 6e-5 have steps of 6e-8.
                assert!(
                    (a - b).abs() <= b.abs() / 1024.0 + 6e-8,
                    "{reduction:?} of {rows} on {device}: {a}, not {b}"
                );
            }
        }
    }
    Ok(())
}
