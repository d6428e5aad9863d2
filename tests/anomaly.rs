//! Anomaly detection: which op made NaN is named, with its shapes and line, whatever kernel it is in; and nothing else
//! changes.

mod common;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{assert_close, devices};
use wgrad::autograd::{
    Anomaly, detect_anomaly, detect_anomaly_guard, detect_anomaly_with, is_anomaly_check_nan_enabled,
    is_anomaly_enabled, set_detect_anomaly,
};
use wgrad::prelude::*;

/// The error names this op and the line after the caller's.
#[track_caller]
fn names<R>(result: Result<R>, op: &str, line: u32) -> Error {
    let caller = Location::caller();
    let Err(error) = result else { panic!("{caller}: no anomaly was found in {op}, line {line}") };
    assert_eq!(error.kind(), ErrorKind::Autograd, "{caller}: {error}");
    assert_eq!(error.op(), op, "{caller}: {error}");
    assert_eq!((error.caller().file(), error.caller().line()), (file!(), line), "{caller}: {error}");
    error
}

/// `test_autograd.py::TestAutograd::test_anomaly_detect_nan`: the function is named, and which of its outputs.
#[test]
fn a_backward_function_that_makes_nan_is_named() {
    for device in devices() {
        let on = options().device(&device);
        let x = on.zeros([5, 2]).requires_grad_(true);
        let line = line!() + 1;
        let root = x.sqrt();
        let result = detect_anomaly(|| (root * 0.0).sum().backward());
        let error = names(result, "backward", line);
        let message = error.message();
        assert!(
            message.starts_with("Function 'SqrtBackward0' returned nan values in its 0th output"),
            "{message}"
        );
        assert!(message.contains("div of shapes [5, 2] and [5, 2] to [5, 2]"), "{message}");
        // Without, it passes, and the gradient is what it is.
        let x = on.zeros([5, 2]).requires_grad_(true);
        (x.sqrt() * 0.0).sum().backward().unwrap();
        assert!(x.grad().unwrap().to_f64_vec().unwrap().iter().all(|g| g.is_nan()));
    }
}

/// The same of the output's number: `0 * inf` for the second operand only.
#[test]
fn the_output_of_a_function_is_counted() {
    for device in devices() {
        let on = options().device(&device);
        let a = on.tensor([f32::MAX, 1.0]).requires_grad_(true);
        let b = on.tensor([1.0, 1.0]).requires_grad_(true);
        let line = line!() + 1;
        let product = &a * &b;
        let gradient = on.tensor([f32::INFINITY, 1.0]);
        // The gradient of a is inf * 1, that of b is inf * 0 once a is masked.
        let masked = &product * on.tensor([1.0, 1.0]);
        let result = detect_anomaly(|| masked.backward_with(&gradient));
        assert!(result.is_ok(), "inf is no anomaly: {result:?}");
        let zero = on.tensor([0.0, 1.0]).requires_grad_(true);
        let line_of_zero = line!() + 1;
        let product = &zero * &b;
        let result = detect_anomaly(|| product.backward_with(&gradient));
        let error = names(result, "backward", line_of_zero);
        assert!(
            error.message().starts_with("Function 'MulBackward0' returned nan values in its 1th output"),
            "{error}"
        );
        assert!(line < line_of_zero);
    }
}

/// `test_autograd.py::TestAutograd::test_anomaly_assign_parent_cleanup` and its kin hold on to no graph: a thousand
/// steps leave no memory behind.
#[test]
fn a_thousand_steps_leave_nothing_behind() {
    for device in devices() {
        let device = if device.is_cpu() {
            Device::new(wgrad::backend::cpu::device()) // of its own, so that other tests do not count
        } else {
            device
        };
        let on = options().device(&device);
        let w = on.rand([8, 4]).requires_grad_(true);
        let x = on.rand([16, 8]);
        let step = |bad: bool| {
            w.set_grad(None);
            let y = x.matmul(&w).relu().sum_dim(1, false);
            let y = if bad { (y * 0.0).sqrt() * 0.0 } else { y };
            let result = detect_anomaly(|| y.sum().backward());
            assert_eq!(result.is_err(), bad);
        };
        step(false);
        step(true);
        w.set_grad(None);
        let alone = device.is_cpu();
        let before = device.memory().live_buffers;
        for i in 0..1000 {
            step(i % 100 == 7);
        }
        w.set_grad(None);
        if alone {
            assert_eq!(device.memory().live_buffers, before);
        }
    }
}

/// `test_autograd.py::TestAutograd::test_set_detect_anomaly` (of `test_grad_mode_class_decoration`'s kind): guards nest,
/// and restore what was, also when unwinding.
#[test]
fn modes_nest_and_unwind() {
    assert!(!is_anomaly_enabled());
    let outer = detect_anomaly_guard();
    assert!(is_anomaly_enabled() && is_anomaly_check_nan_enabled());
    {
        let _inner = set_detect_anomaly(false);
        assert!(!is_anomaly_enabled());
        let _third = set_detect_anomaly(Anomaly::new().check_nan(false));
        assert!(is_anomaly_enabled() && !is_anomaly_check_nan_enabled());
    }
    assert!(is_anomaly_enabled());
    std::thread::spawn(|| assert!(!is_anomaly_enabled(), "it is this thread's alone")).join().unwrap();
    drop(outer);
    assert!(!is_anomaly_enabled());
    let panicked = std::panic::catch_unwind(|| {
        let _ = detect_anomaly(|| -> Result<()> {
            assert!(is_anomaly_enabled());
            panic!("on purpose")
        });
    });
    assert!(panicked.is_err() && !is_anomaly_enabled());
}

/// `torch.autograd.detect_anomaly(check_nan=False)` lets NaN pass.
#[test]
fn without_check_nan_nothing_is_looked_at() {
    for device in devices() {
        let x = options().device(&device).zeros([2]).requires_grad_(true);
        detect_anomaly_with(Anomaly::new().check_nan(false), || (x.sqrt() * 0.0).sum().backward()).unwrap();
        assert!(x.grad().unwrap().to_f64_vec().unwrap()[0].is_nan());
    }
}

#[test]
fn every_way_to_make_nan_is_named() {
    for device in devices() {
        let on = options().device(&device);
        let (zero, inf) = (on.tensor([1.0, 0.0]), on.tensor([2.0, f32::INFINITY]));
        // Drivers may take `x - x` for 0.
        let other = on.tensor([1.0, f32::INFINITY]);
        let cases: [(&str, u32, &dyn Fn() -> Tensor); 8] = [
            ("div", line!(), &|| &zero / (&zero * 2.0)),
            ("log", line!(), &|| (&zero - 0.5).log()),
            ("sqrt", line!(), &|| (&zero - 0.5).sqrt()),
            ("sub", line!(), &|| &inf - &other),
            ("mul", line!(), &|| &inf * &zero),
            ("pow", line!(), &|| (&zero - 0.5).pow(0.5)),
            ("sub", line!(), &|| ((&zero * 3.0 + 1.0).exp() - (&inf - &other)).tanh()),
            ("add", line!(), &|| (&inf + &other.neg()).exp() + 1.0),
        ];
        for (op, line, make) in cases {
            let error = names(detect_anomaly(|| make().to_f64_vec()), op, line);
            assert!(error.message().contains("[2]") && error.message().contains("nan"), "{error}");
        }
    }
}

type Make<'a> = Box<dyn Fn() -> Tensor + 'a>;

/// Each family of kernels.
#[test]
fn every_kernel_is_looked_at() {
    for device in devices() {
        let on = options().device(&device);
        let nan = f32::NEG_INFINITY;
        let (low, zeros) = (on.full([4, 8], nan), on.zeros([4, 8]));
        let image = on.full([1, 3, 6, 6], f32::INFINITY);
        let mixed = on.tensor([[f32::INFINITY, f32::NEG_INFINITY], [0.0, 1.0]]);
        let cases: Vec<(&str, u32, Make)> = vec![
            ("sum", line!(), Box::new(|| mixed.sum())),
            ("sum", line!(), Box::new(|| mixed.sum_dim(1, false) * 2.0)),
            ("sum", line!(), Box::new(|| mixed.sum_dim(1, false).exp().sum())),
            ("softmax", line!(), Box::new(|| low.softmax(1))),
            ("softmax", line!(), Box::new(|| low.softmax(0))),
            ("log_softmax", line!(), Box::new(|| low.log_softmax(1) + 1.0)),
            ("cross_entropy", line!(), Box::new(|| low.cross_entropy(&on.tensor([0, 1, 2, 3])))),
            ("matmul", line!(), Box::new(|| low.matmul(&zeros.t()))),
            ("matmul", line!(), Box::new(|| (low.matmul(&zeros.t()) + 1.0).tanh())),
            ("matmul", line!(), Box::new(|| low.matmul(&on.zeros([8])))),
            ("conv2d", line!(), Box::new(|| image.conv2d(&on.zeros([2, 3, 3, 3]), None))),
            ("conv2d", line!(), Box::new(|| image.conv2d(&on.zeros([2, 3, 3, 3]), None).relu())),
        ];
        for (op, line, make) in cases {
            names(detect_anomaly(|| make().to_f64_vec()), op, line);
        }
        // What only moves values cannot make NaN, and says where it came from.
        let bad = on.tensor([[0.0, f32::NAN], [0.0, 1.0]]);
        let line = line!() - 1;
        let moving: [&dyn Fn() -> Tensor; 4] = [
            &|| bad.gather(1, &on.tensor([[1], [0]])),
            &|| bad.reshape([1, 1, 2, 2]).max_pool2d(2),
            &|| cat(&[&bad, &bad], 0),
            &|| bad.t().contiguous(),
        ];
        for (i, moved) in moving.iter().enumerate() {
            let error = detect_anomaly(|| moved().to_f64_vec()).map(|_| i).unwrap_err();
            assert!(error.message().contains("came in with an operand"), "{error}");
            assert!(error.message().contains(&format!("tests/anomaly.rs:{line}")), "{i}: {error}");
        }
        // Random numbers are numbers.
        detect_anomaly(|| (on.rand([1000]) + on.randn([1000])).to_f64_vec()).unwrap();
    }
}

#[test]
fn norms_and_attention_are_looked_at() {
    for device in devices() {
        let on = options().device(&device);
        let huge = on.full([2, 4], f32::INFINITY);
        let error = detect_anomaly(|| huge.layer_norm([4], None, None, 1e-5).to_f64_vec()).unwrap_err();
        assert!(error.message().contains("nan"), "{error}");
        let q = on.full([1, 1, 4, 8], f32::INFINITY);
        let k = on.zeros([1, 1, 4, 8]);
        let error = detect_anomaly(|| q.scaled_dot_product_attention(&k, &k).to_f64_vec()).unwrap_err();
        assert!(error.message().contains("nan"), "{error}");
    }
}

/// Past what one dispatch takes, and in the last elements, which fours cut short.
#[test]
fn the_last_of_many_is_seen() {
    for device in devices() {
        let on = options().device(&device);
        let n = 5_000_003;
        for at in [0, n / 2, n - 1] {
            let x = on.ones([n]);
            no_grad(|| x.i(at).fill_(-1.0));
            let line = line!() + 1;
            names(detect_anomaly(|| Ok(x.sqrt())), "sqrt", line);
            let line = line!() + 1;
            names(detect_anomaly(|| Ok(x.log().sum())), "log", line);
        }
        detect_anomaly(|| Ok(on.ones([n]).sqrt())).unwrap();
    }
}

/// Where fours are cut short, what lies behind the end counts for nothing.
#[test]
fn odd_sizes_are_no_anomaly() {
    for device in devices() {
        let on = options().device(&device);
        for n in [1, 2, 3, 5, 7, 9, 31, 63, 65, 127] {
            let x = (on.rand([n, n]) + 1.0).requires_grad_(true);
            detect_anomaly(|| {
                let y = x.log() / &x + x.matmul(&x).log().softmax(1).sum_dim(0, true) + x.t().sqrt();
                y.amax(1, false).sum().backward()
            })
            .unwrap_or_else(|e| panic!("{n}: {e}"));
        }
    }
}

/// A plan is found again by its structure; the line is that of the step that runs.
#[test]
fn each_step_names_its_own_line() {
    for device in devices() {
        let on = options().device(&device);
        let x = on.tensor([-1.0, 1.0, 4.0]);
        for _ in 0..3 {
            let line = line!() + 1;
            names(detect_anomaly(|| x.log().to_f64_vec()), "log", line);
            let line = line!() + 1;
            names(detect_anomaly(|| x.log().to_f64_vec()), "log", line);
        }
        // The same structure, outside: not looked at.
        assert!(x.log().to_f64_vec().unwrap()[0].is_nan());
    }
}

#[test]
fn only_what_is_spoilt_carries_the_error() {
    for device in devices() {
        let on = options().device(&device);
        let x = on.tensor([1.0, 4.0]);
        let outside = x.neg().sqrt();
        let guard = detect_anomaly_guard();
        let (bad, good) = (x.neg().sqrt(), x.sqrt());
        let (worse, better) = (&bad + 1.0, &good + 1.0);
        let mask = bad.gt(0.0);
        let line = line!() + 1;
        let other = x.neg().log();
        device.flush();
        drop(guard);
        assert!(outside.to_f64_vec().unwrap()[0].is_nan(), "nobody asked");
        // Each has the error of its own cause.
        names(other.to_f64_vec(), "log", line);
        names(worse.to_f64_vec(), "sqrt", line - 4);
        assert!(bad.to_f64_vec().is_err() && worse.to_f64_vec().is_err() && mask.to_vec::<bool>().is_err());
        assert!((&bad * 2.0).to_f64_vec().is_err());
        assert_close(&good, &[1.0, 2.0], 1e-6, "good");
        assert_close(&better, &[2.0, 3.0], 1e-6, "better");
        assert_close(&x, &[1.0, 4.0], 0.0, "the operand");
        // And the thread goes on.
        assert_close(&(&x + 1.0), &[2.0, 5.0], 0.0, "afterwards");
    }
}

#[test]
fn infinity_is_told_of_on_request_where_it_is_made() {
    for device in devices() {
        let on = options().device(&device);
        let x = on.tensor([0.0, 2.0]);
        let inf = Anomaly::new().check_inf(true);
        detect_anomaly(|| x.reciprocal().to_f64_vec()).unwrap();
        let line = line!() + 1;
        let error = names(detect_anomaly_with(inf, || x.reciprocal().to_f64_vec()), "reciprocal", line);
        assert!(error.message().contains("inf"), "{error}");
        // A mask of -inf is meant.
        let mask = x.lt(1.0);
        detect_anomaly_with(inf, || {
            let masked = on.full([2], f64::NEG_INFINITY).where_(&mask, &x);
            masked.to_f64_vec()?;
            masked.softmax(0).to_f64_vec()
        })
        .unwrap();
    }
}

#[test]
fn every_bit_of_the_results_is_the_same() {
    for device in devices() {
        let on = options().device(&device);
        let (x, w) = (on.randn([33, 17]), on.randn([17, 9]));
        let step = || -> Result<(Vec<f32>, Vec<f32>)> {
            let w = w.detach().clone().requires_grad_(true);
            let y = x.matmul(&w).relu().softmax(1);
            let loss = (&y * &y).sum();
            loss.backward()?;
            Ok((y.to_vec()?, w.grad().unwrap().to_vec()?))
        };
        let (plain, looked) = (step().unwrap(), detect_anomaly(step).unwrap());
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&plain.0), bits(&looked.0), "forward on {device}");
        assert_eq!(bits(&plain.1), bits(&looked.1), "backward on {device}");
    }
}

/// `test_autograd.py::TestAutograd::test_nested_anomaly_detect_nan`: in a gradient's gradient, by the line of the forward
/// op.
#[test]
fn a_gradient_of_a_gradient_that_is_nan() {
    for device in devices() {
        let x = options().device(&device).tensor([0.0, 4.0]).requires_grad_(true);
        let mut line = 0;
        let result = detect_anomaly(|| {
            line = line!() + 1;
            let y = x.pow(1.5);
            let once = autograd::grad_with(&[&y.sum()], &[&x], Backward::new().create_graph(true))?;
            assert_close(&once[0].detach(), &[0.0, 3.0], 1e-5, "the gradient");
            (&once[0] * 0.0).sum().backward()
        });
        let error = names(result, "backward", line);
        assert!(error.message().starts_with("Function '"), "{error}");
    }
}

/// Another thread may run what this one recorded: it is looked at all the same, and told of here.
#[test]
fn whoever_runs_it() {
    for device in devices() {
        let x = options().device(&device).zeros([4]).requires_grad_(true);
        // Also when an assertion fails: the other thread must end.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    device.flush();
                    assert!(!is_anomaly_enabled());
                }
            });
            let _stop = Stop(&stop);
            for _ in 0..50 {
                x.set_grad(None);
                let line = line!() + 1;
                let result = detect_anomaly(|| (x.sqrt() * 0.0).sum().backward());
                names(result, "backward", line);
                // What was spoilt cannot be added to.
                x.set_grad(None);
                detect_anomaly(|| ((&x + 1.0).sqrt() * 0.0).sum().backward()).unwrap();
            }
        });
    }
}

/// An optimizer never steps on what is not a number, for `backward` has said so before.
#[test]
fn backward_says_so_before_anyone_steps() {
    for device in devices() {
        let on = options().device(&device);
        let w = on.tensor([0.0, 1.0]).requires_grad_(true);
        let result = detect_anomaly(|| {
            (w.sqrt() * 0.0).sum().backward()?;
            no_grad(|| w.sub_(w.grad().unwrap()));
            Ok(())
        });
        assert!(result.is_err());
        assert_close(&w.detach(), &[0.0, 1.0], 0.0, "the parameter");
    }
}

#[test]
fn an_index_out_of_range_is_still_that() {
    for device in devices() {
        let on = options().device(&device);
        let x = on.rand([2, 3]);
        let index = on.tensor([[0], [3]]);
        let error = detect_anomaly(|| x.gather(1, &index).to_f64_vec()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Index, "{error}");
        device.synchronize().unwrap();
        assert_eq!(x.gather(1, &on.tensor([[0], [2]])).to_f64_vec().unwrap().len(), 2);
    }
}

#[test]
fn double_precision_on_the_cpu() {
    let x = options().device(cpu()).dtype(F64).full([3], -1.0);
    let line = line!() + 1;
    names(detect_anomaly(|| x.log().to_f64_vec()), "log", line);
}
