//! Operands of products, and rows, that are computed where they are read, from tensors on: on adapters of every class, where it
//! costs nothing, against the CPU, which stores them.

use super::*;
use crate::autograd::detect_anomaly;
use crate::backend::Prices;
use crate::graph::device::Device;
use crate::prelude::*;

/// The adapter, as one of another class, with other prices.
pub(super) fn priced(class: AdapterClass, prices: Prices) -> Device {
    Device::new(Arc::new(another(|info, caps| {
        info.class = class;
        // So many as every adapter has, one for the status words left out.
        (caps.prologues, caps.max_bindings) = (Some(prices), 7);
    })))
}

/// Adapters of two classes on which computing what a product reads costs nothing.
fn eager() -> [Device; 2] {
    let free = Prices {
        tile: 64,
        fours: false,
        least: 0,
        each: 0,
        load: 0,
        round_trip: 1 << 40,
        dispatch: 0,
        registers: false,
    };
    [AdapterClass::Software, AdapterClass::Discrete].map(|class| priced(class, free))
}

/// Numbers between -1 and 1.
pub(super) fn values(d: &Device, shape: &[usize], seed: f64) -> Tensor {
    let n: usize = shape.iter().product();
    let x: Vec<f32> = (0..n).map(|i| (i as f64 * 0.7 + seed).sin() as f32).collect();
    crate::options().device(d).from_slice(&x, shape)
}

/// The same on the CPU, in so many dispatches here.
#[track_caller]
pub(super) fn agree(d: &Device, dispatches: u64, f: &dyn Fn(&Device) -> Vec<Tensor>) {
    let caller = Location::caller();
    let read = |results: Vec<Tensor>| {
        results.iter().map(|t| (t.shape().to_vec(), t.to_f64_vec().unwrap())).collect::<Vec<_>>()
    };
    let run = |d: &Device| {
        d.manual_seed(5);
        let before = d.stats().dispatches;
        let results = f(d);
        d.flush();
        (d.stats().dispatches - before, read(results))
    };
    let (taken, there) = run(d);
    let (_, here) = run(&Device::new(crate::backend::cpu::device()));
    assert_eq!(here.len(), there.len());
    for ((shape, a), (other, b)) in here.iter().zip(&there) {
        assert_eq!(shape, other, "{caller}");
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 2e-5 * a.abs().max(1.0);
            assert!(same, "{caller}: element {i} is {a} on the CPU, {b} on the GPU");
        }
    }
    assert_eq!(taken, dispatches, "{caller}: dispatches");
}

#[test]
fn operands_of_every_kind() {
    for d in &eager() {
        for k in [20, 33] {
            let x = |d: &Device| values(d, &[36, k], 0.1);
            let w = |d: &Device| values(d, &[k, 40], 0.2);
            let row = |d: &Device| values(d, &[k], 0.3);
            agree(d, 1, &|d| vec![(x(d) * 2.0 + row(d)).matmul(&w(d))]);
            agree(d, 1, &|d| vec![x(d).matmul(&(w(d) * row(d).unsqueeze(1)))]);
            agree(d, 1, &|d| vec![(x(d) + 1).matmul(&(w(d) * 3)).add(values(d, &[40], 0.4)).relu()]);
            // Through transposes, slices, expanded batches, and a vector's dimensions.
            agree(d, 1, &|d| vec![(w(d) + 1).t().matmul(&(x(d) * 2).t())]);
            agree(d, 1, &|d| vec![(x(d) + 1).i((3.., 1..)).matmul(&w(d).i(1..))]);
            agree(d, 1, &|d| {
                let batch = (x(d) + 1).unsqueeze(0).expand([3, 36, k]);
                vec![batch.matmul(&values(d, &[3, k, 8], 0.5))]
            });
            agree(d, 1, &|d| {
                let heads = |seed| values(d, &[2, 9, 3, k], seed).transpose(1, 2);
                vec![(heads(0.1) * 0.5).matmul(&heads(0.2).transpose(-2, -1))]
            });
            agree(d, 1, &|d| vec![(x(d) + row(d)).mv(&(row(d) * 2))]);
            agree(d, 1, &|d| vec![(row(d) * 2).matmul(&(w(d) + 1))]);
            agree(d, 1, &|d| vec![(row(d) * 2).dot(&(row(d) + 1))]);
            // Of other types; of a mask; of numbers that are counted and drawn.
            let whole = |d: &Device| {
                let t = (x(d) * 100).to(I32);
                t.check().unwrap();
                t
            };
            agree(d, 2, &|d| vec![(whole(d).to(F32) * (1.0 / 255.0)).matmul(&w(d))]);
            agree(d, 1, &|d| vec![x(d).masked_fill(&x(d).gt(0.5), 0.0).matmul(&w(d))]);
            agree(d, 1, &|d| vec![x(d).dropout(0.5, true).matmul(&w(d))]);
            agree(d, 1, &|d| vec![crate::options().device(d).eye(36).matmul(&x(d))]);
            // Infinity and NaN.
            agree(d, 1, &|d| vec![(x(d) / (row(d) - row(d).i(1))).matmul(&w(d))]);
            // An operand of the epilogue, or of the other side.
            agree(d, 1, &|d| {
                let x = x(d);
                vec![x.matmul(&(&x * 2).t()), x]
            });
            agree(d, 1, &|d| {
                let square = values(d, &[k, k], 0.6);
                vec![(&square * 2).matmul(&values(d, &[k, k], 0.7)) + square]
            });
        }
        // Nothing is not computed.
        agree(d, 2, &|d| vec![(values(d, &[3, 0], 0.0) + 1).matmul(&values(d, &[0, 4], 0.0))]);
    }
}

#[test]
fn rows_of_every_kind() {
    for (d, n) in eager().iter().flat_map(|d| [(d, 40), (d, 33), (d, 3000)]) {
        let x = |d: &Device| values(d, &[6, n], 0.1);
        let row = |d: &Device| values(d, &[n], 0.3);
        let classes = |d: &Device| crate::options().device(d).tensor([0, 5, 2, 1, 1, 3]);
        agree(d, 1, &|d| vec![(x(d) * 2.0 + row(d)).softmax(-1)]);
        agree(d, 1, &|d| vec![(x(d) * 2.0).log_softmax(1) * 3.0]);
        agree(d, 1, &|d| vec![(x(d) + 1).layer_norm(n, Some(&row(d)), Some(&row(d)), 1e-5)]);
        agree(d, 1, &|d| vec![x(d).tanh().rms_norm(n, None, Some(1e-5))]);
        agree(d, 2, &|d| vec![(x(d) * row(d)).cross_entropy(&classes(d))]);
        // Along another dimension, of a slice, of a mask; of numbers that are drawn.
        agree(d, 1, &|d| vec![(x(d) * 2.0 + row(d)).softmax(0)]);
        agree(d, 1, &|d| vec![(x(d) + 1).i(2..).softmax(-1)]);
        agree(d, 1, &|d| vec![x(d).masked_fill(&x(d).gt(0.5), f64::NEG_INFINITY).softmax(-1)]);
        agree(d, 1, &|d| vec![x(d).dropout(0.5, true).layer_norm(n, None, None, 1e-5)]);
        agree(d, 1, &|d| vec![(x(d) / (row(d) - row(d).i(1))).softmax(-1)]);
        // What the epilogue reads, too.
        agree(d, 1, &|d| {
            let x = x(d);
            vec![(&x * 2.0).softmax(-1) + &x, x]
        });
        // On the way back: what it begins with, and what was computed on the way here.
        let back = |d: &Device, f: &dyn Fn(&Tensor) -> Tensor| {
            let x = x(d).requires_grad_(true);
            (f(&x) * row(d).sin()).sum().backward().unwrap();
            vec![x.grad().unwrap()]
        };
        let taken = |f: &dyn Fn(&Tensor) -> Tensor| {
            let before = d.stats().dispatches;
            back(d, f)[0].check().unwrap();
            d.stats().dispatches - before
        };
        let softmax = |x: &Tensor| (x * 2.0).softmax(-1);
        let norm = |x: &Tensor| (x + 1).layer_norm(n, Some(&row(x.device())), None, 1e-5);
        agree(d, taken(&softmax), &|d| back(d, &softmax));
        agree(d, taken(&norm), &|d| back(d, &norm));
        assert!(taken(&softmax) <= 3 && taken(&norm) <= 3);
    }
    // Nothing is not computed.
    agree(&eager()[1], 2, &|d| vec![(values(d, &[0, 4], 0.0) + 1).softmax(-1)]);
}

#[test]
fn operands_of_halves() {
    for (d, k) in eager().iter().flat_map(|d| [(d, 20), (d, 33)]) {
        let x = |d: &Device| values(d, &[36, k], 0.1);
        let w = |d: &Device| values(d, &[k, 40], 0.2);
        agree(d, 1, &|d| vec![x(d).to(F16).to(F32).matmul(&w(d))]);
        agree(d, 2, &|d| {
            let halves = x(d).to(F16);
            halves.check().unwrap();
            vec![(halves.to(F32) * 2).matmul(&w(d))]
        });
        agree(d, 2, &|d| {
            let halves = x(d).to(F16);
            halves.check().unwrap();
            vec![halves.to(F32).layer_norm(k, None, None, 1e-5)]
        });
        // What an op of halves is given, and gives.
        agree(d, 2, &|d| {
            let halves = x(d).to(F16);
            halves.check().unwrap();
            vec![(halves.softmax(-1) * 0.0).to(F32)]
        });
        // Products of halves read them from memory.
        agree(d, 2, &|d| vec![(x(d).to(F16) * 2).matmul(&w(d).to(F16)).to(F32)]);
    }
}

#[test]
fn what_others_need_is_stored() {
    for d in &eager() {
        let x = |d: &Device| values(d, &[36, 20], 0.1);
        let w = |d: &Device| values(d, &[20, 40], 0.2);
        // By the program, by another kernel; but not by another product.
        agree(d, 2, &|d| {
            let y = x(d) * 2;
            vec![y.matmul(&w(d)), y]
        });
        agree(d, 3, &|d| {
            let y = (x(d) * 2).exp();
            vec![y.matmul(&w(d)), y.sum_dim(0, false)]
        });
        agree(d, 2, &|d| {
            let y = x(d) * 2;
            vec![y.matmul(&w(d)), y.t().matmul(&values(d, &[36, 3], 0.4))]
        });
        // What ends another kernel stays there.
        agree(d, 2, &|d| vec![x(d).matmul(&w(d)).relu().matmul(&values(d, &[40, 8], 0.4))]);
        // Too many buffers for one kernel: one of the operands is stored.
        agree(d, 2, &|d| {
            let sum = |shape: &[usize]| {
                (0..4).map(|i| values(d, shape, f64::from(i))).reduce(|a, b| a + b).unwrap()
            };
            vec![sum(&[36, 20]).matmul(&sum(&[20, 40])) + values(d, &[40], 0.5)]
        });
        // What is read in tiles is not overwritten, be it done with.
        agree(d, 1, &|d| {
            let x = values(d, &[64, 64], 0.1);
            vec![(&x * 2).matmul(&values(d, &[64, 64], 0.2)) + &x]
        });
    }
}

#[test]
fn gradients_and_repeated_steps() {
    for d in &eager() {
        let step = |d: &Device| {
            let (x, w) = (values(d, &[36, 20], 0.1), values(d, &[20, 40], 0.2).requires_grad_(true));
            let y = (x * 0.5 + 0.25).matmul(&(&w * 3)).tanh();
            y.square().sum().backward().unwrap();
            w.grad().unwrap()
        };
        let expected = step(&crate::device::cpu()).to_f64_vec().unwrap();
        let mut plans = 0;
        for turn in 0..4 {
            let got = step(d).to_f64_vec().unwrap();
            for (g, e) in got.iter().zip(&expected) {
                assert!((g - e).abs() <= 2e-5 * e.abs().max(1.0), "{g}, not {e}");
            }
            assert!(turn < 2 || d.stats().plans == plans, "the same step needs no new plan");
            plans = d.stats().plans;
        }
    }
}

#[test]
fn nan_is_blamed_on_the_op_that_made_it() {
    for d in &eager() {
        let x = values(d, &[36, 20], 0.1);
        let (product, bad) = (values(d, &[20, 40], 0.2), values(d, &[20, 40], 0.2) / 0.0);
        bad.check().unwrap();
        let line = line!() + 1;
        let made = detect_anomaly(|| (x.sqrt() * 2).matmul(&product).to_f64_vec());
        let error = made.expect_err("roots of negative numbers");
        assert_eq!((error.op(), error.caller().line()), ("sqrt", line), "{error}");
        let line = line!() + 1;
        let made = detect_anomaly(|| (x.abs() * 2).matmul(&bad).to_f64_vec());
        let error = made.expect_err("sums of infinities");
        assert_eq!((error.op(), error.caller().line()), ("matmul", line), "{error}");
        detect_anomaly(|| (x.abs() * 2).matmul(&product).to_f64_vec()).unwrap();
        let line = line!() + 1;
        let made = detect_anomaly(|| (x.sqrt() * 2).softmax(-1).to_f64_vec());
        let error = made.expect_err("roots of negative numbers");
        assert_eq!((error.op(), error.caller().line()), ("sqrt", line), "{error}");
        detect_anomaly(|| (x.abs() * 2).softmax(-1).to_f64_vec()).unwrap();
    }
}

#[test]
fn the_price_decides() {
    let dispatches = |class, f: &dyn Fn(&Device) -> Tensor| {
        let d = priced(class, codegen::prices(class));
        let y = f(&d);
        d.flush();
        let before = d.stats().dispatches;
        drop(y);
        before
    };
    let step = |d: &Device| {
        let rand = |shape: &[usize]| values(d, shape, 0.5);
        (rand(&[128, 784]) * 2.0 + rand(&[784])).matmul(&rand(&[784, 512]))
    };
    // Each tile of a software adapter would compute it anew, and a kernel more would have to be compiled.
    assert_eq!(dispatches(AdapterClass::Software, &step), 2);
    assert_eq!(dispatches(AdapterClass::Integrated, &step), 1);
    assert_eq!(dispatches(AdapterClass::Discrete, &step), 1);
    let dear = |d: &Device| values(d, &[64, 64], 0.1).erf().tanh().matmul(&values(d, &[64, 4096], 0.2));
    for class in [AdapterClass::Software, AdapterClass::Integrated, AdapterClass::Discrete] {
        assert_eq!(dispatches(class, &dear), 2, "{class:?}");
    }
}
