//! Ops that a program registers with kernels of its own: `wgrad::custom`. They fuse, broadcast, differentiate and fail as the
//! library's own do.

mod common;

use common::{assert_close, devices};
use wgrad::autograd::{gradcheck, gradgradcheck};
use wgrad::custom::Op;
use wgrad::prelude::*;

/// The example of the README: forward and backward kernels, no formula.
fn swish() -> Op {
    custom::elementwise("swish")
        .wgsl("a / (T(1) + exp(-a))")
        .cpu(|[a]| a / (1.0 + (-a).exp()))
        .backward("g * (out + (T(1) - out) / (T(1) + exp(-a)))", |[a, out, g]| {
            g * (out + (1.0 - out) / (1.0 + (-a).exp()))
        })
        .register()
        .unwrap()
}

/// Two operands and a formula.
fn hypot() -> Op {
    custom::elementwise("hypot")
        .wgsl("sqrt(a * a + b * b)")
        .cpu(|[a, b]| a.hypot(b))
        .saves_output()
        .formula(|c| {
            let (g, out) = (c.grad(), c.output());
            vec![Some(&g * c.input(0) / &out), Some(&g * c.input(1) / &out)]
        })
        .register()
        .unwrap()
}

/// Two operands, and a kernel for the gradient of each.
fn blend() -> Op {
    custom::elementwise("blend")
        .wgsl("a * a * b // the square of one, times the other\n + b")
        .cpu(|[a, b]| a * a * b + b)
        .backward("T(2) * a * b * g", |[a, b, _, g]| 2.0 * a * b * g)
        .backward("(a * a + T(1)) * g", |[a, _, _, g]| (a * a + 1.0) * g)
        .register()
        .unwrap()
}

const ROW_SUM: &str = "
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = invocation(id, groups);
    if row >= params.numel { return; }
    var sum = 0.0;
    for (var k = 0u; k < params.n; k++) { sum += w_exp(x[row * params.n + k]); }
    store(row, sum);
}";

/// The sum of the exponentials of each row; a whole kernel, whose backward is another one.
fn exp_sum(name: &str, fuses: bool) -> wgrad::Result<Op> {
    let kernel = custom::kernel(name, ["x"])
        .output(|s| match s[0] {
            [rows, _] => Ok(vec![*rows]),
            other => Err(format!("expected a matrix, but got shape {other:?}")),
        })
        .param("n", |s| s.input(0)[1])
        .wgsl(ROW_SUM)
        .cpu(|s, inputs, out| {
            let n = s.input(0)[1];
            for (row, out) in out.iter_mut().enumerate() {
                *out = inputs[0][row * n..][..n].iter().map(|v| v.exp()).sum();
            }
        });
    let kernel = if fuses { kernel.fuses() } else { kernel };
    kernel.formula(|c| vec![Some(exp_sum_grad().call(&[&c.input(0), &c.grad()]))]).register()
}

fn exp_sum_grad() -> Op {
    static OP: std::sync::OnceLock<Op> = std::sync::OnceLock::new();
    *OP.get_or_init(|| {
        custom::kernel("exp_sum_grad", ["x", "g"])
            .param("n", |s| s.input(0)[1])
            .wgsl(
                "@compute @workgroup_size(64)
                 fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
                     let i = invocation(id, groups);
                     if i < params.numel { store(i, g[i / params.n] * w_exp(x[i])); }
                 }",
            )
            .cpu(|s, inputs, out| {
                let n = s.input(0)[1];
                for (i, out) in out.iter_mut().enumerate() {
                    *out = inputs[1][i / n] * inputs[0][i].exp();
                }
            })
            .formula(|c| {
                let by_g = c.grad() * c.input(0).exp();
                vec![Some(&by_g * c.input(1).unsqueeze(1)), Some(by_g.sum_dim(1, false))]
            })
            .register()
            .unwrap()
    })
}

fn range(device: &Device, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    options().device(device).from_slice(&values, shape)
}

#[test]
fn values_and_gradients_are_those_of_the_same_function() {
    let swish = swish();
    for d in devices() {
        // Vectors of four, a rest, a scalar, nothing, a broadcast, and more than one dispatch's grid of plain invocations.
        for shape in [&[8][..], &[3, 5], &[], &[0, 4], &[2, 1, 7], &[1_000_003]] {
            let x = range(&d, shape).requires_grad_(true);
            let y = x.detach().requires_grad_(true);
            let (a, b) = (swish.call(&[&x]), y.silu());
            assert_eq!(a.grad_fn().unwrap().name(), "SwishBackward");
            assert_close(&a, &b.to_f64_vec().unwrap(), 1e-5, &format!("{shape:?}"));
            (&a * &a).sum().backward().unwrap();
            (&b * &b).sum().backward().unwrap();
            let expected = y.grad().unwrap().to_f64_vec().unwrap();
            assert_close(&x.grad().unwrap(), &expected, 1e-4, &format!("gradient of {shape:?}"));
        }
        let x = range(&d, &[6, 4]);
        for lie in [x.t(), x.i((.., 1..3)), x.i((1..5, ..)).t(), x.select(0, 1).expand([5, 4])] {
            assert_close(&swish.call(&[&lie]), &lie.silu().to_f64_vec().unwrap(), 1e-5, "a view");
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let o = options().device(cpu()).dtype(F64).requires_grad(true);
    let (x, y) = (o.tensor([[0.5], [-1.5], [2.0]]), o.tensor([1.0, -0.25]));
    gradcheck(|x| swish().call(&[&x[0]]), &[&x]).unwrap();
    gradcheck(|x| hypot().call(&[&x[0], &x[1]]), &[&x, &y]).unwrap();
    gradgradcheck(|x| hypot().call(&[&x[0], &x[1]]), &[&x, &y]).unwrap();
    gradcheck(|x| blend().call(&[&x[0], &x[1]]), &[&x, &y]).unwrap();
    let m = o.tensor([[0.5, -1.0], [1.5, 0.0], [-0.5, 0.25]]);
    let op = exp_sum("exp_sum", false).unwrap();
    gradcheck(|x| op.call(&[&x[0]]), &[&m]).unwrap();
    gradgradcheck(|x| op.call(&[&x[0]]), &[&m]).unwrap();
}

#[test]
fn ops_check_themselves_on_both_backends() {
    let (x, y) = (tensor([[0.5], [-1.5], [2.0]]), tensor([1.0, -0.25]));
    swish().check(&[&x]).unwrap();
    hypot().check(&[&x, &y]).unwrap();
    blend().check(&[&x, &y]).unwrap();
    let m = tensor([[0.5, -1.0], [1.5, 0.0], [-0.5, 0.25]]);
    exp_sum("exp_sum_checked", false).unwrap().check(&[&m]).unwrap();
    exp_sum("exp_sum_fused", true).unwrap().check(&[&m]).unwrap();

    let slope = custom::elementwise("wrong_slope").wgsl("a * a * a").cpu(|[a]| a * a * a);
    let slope = slope.backward("g * a * a", |[a, _, g]| g * a * a).register().unwrap();
    let error = slope.check(&[&tensor([2.0])]).unwrap_err();
    assert!(error.message().contains("numerical 1") && error.op() == "wrong_slope", "{error}");

    let sides = custom::elementwise("two_sides").wgsl("a + T(1)").cpu(|[a]| a + 1.5).register().unwrap();
    if let (Err(error), true) = (sides.check(&[&tensor([2.0])]), devices().len() > 1) {
        assert!(error.message().contains("the result is 3 on") && error.message().contains("3.5"), "{error}");
    } else {
        assert_eq!(devices().len(), 1);
    }
}

/// A device of its own on each backend, and what running `f` takes there.
fn takes<R>(dispatches: u64, f: impl Fn(&Device) -> R) {
    devices();
    let d = Device::new(wgrad::backend::cpu::device());
    drop(f(&d)); // warm
    d.flush();
    let before = d.stats().dispatches;
    let kept = f(&d);
    d.flush();
    drop(kept);
    assert_eq!(d.stats().dispatches - before, dispatches);
}

#[test]
fn ops_fuse_with_their_neighbours() {
    let (swish, hypot) = (swish(), hypot());
    let x = |d: &Device| options().device(d).ones([16, 8]);
    takes(1, |d| swish.call(&[&(x(d) * 2)]).exp());
    takes(1, |d| (hypot.call(&[&swish.call(&[&x(d)]), &x(d).exp()]) + 1.0).sum());
    takes(2, |d| x(d).softmax(1) * 1.0 + swish.call(&[&x(d)])); // the input of softmax is stored
    // The way back: one kernel for the gradient, with the elementwise ops before it.
    let ready = |d: &Device| {
        let x = options().device(d).rand([16, 8]).requires_grad_(true);
        x.check().unwrap();
        x
    };
    let d = Device::new(wgrad::backend::cpu::device());
    let x = ready(&d);
    let y = swish.call(&[&(&x * 2)]);
    y.check().unwrap();
    let before = d.stats().dispatches;
    y.sum().backward().unwrap();
    let g = x.grad().unwrap();
    g.check().unwrap();
    assert_eq!(d.stats().dispatches - before, 1);
    // A kernel of its own stands alone, unless it said that it takes others in.
    let (alone, fused) = (exp_sum("exp_sum_alone", false).unwrap(), exp_sum("exp_sum_fusing", true).unwrap());
    let d = Device::new(wgrad::backend::cpu::device());
    let m = options().device(&d).rand([4, 6]);
    m.check().unwrap();
    for (op, dispatches) in [(alone, 2), (fused, 1)] {
        let before = d.stats();
        let out = op.call(&[&m]) * 2 + 1;
        out.check().unwrap();
        assert_eq!(d.stats().dispatches - before.dispatches, dispatches, "{op:?}");
        drop(out);
        let plans = d.stats().plans;
        (op.call(&[&m]) * 2 + 1).check().unwrap();
        assert_eq!(d.stats().plans, plans, "the same again needs no new plan");
    }
}

#[test]
fn a_backward_kernel_has_no_gradient() {
    // As PyTorch's `once_differentiable` (`test_autograd.py::test_once_differentiable`).
    for d in devices() {
        let x = range(&d, &[4]).requires_grad_(true);
        let y = swish().call(&[&x]);
        let how = Backward::new().create_graph(true);
        let g = autograd::grad_with(&[&y.sum()], &[&x], how).unwrap().remove(0);
        assert!(g.requires_grad(), "it is no silent cut");
        let error = autograd::grad(&[&g.sum()], &[&x]).unwrap_err();
        assert!(error.message().contains("swish is differentiable once"), "{error}");
        let error = gradgradcheck(
            |x| swish().call(&[&x[0]]),
            &[&x.detach().to(cpu()).to(F64).detach().requires_grad_(true)],
        );
        assert!(error.unwrap_err().message().contains("differentiable once"));

        let none = custom::elementwise("without_gradient").wgsl("a + a").cpu(|[a]| a + a).register().unwrap();
        let error = none.call(&[&x]).sum().backward().unwrap_err();
        assert!(error.message().contains("derivative for without_gradient is not implemented"), "{error}");
        assert_eq!(error.caller().file(), file!());
        assert!(!none.call(&[&x.detach()]).requires_grad());
    }
}

#[test]
fn kernels_of_any_size() {
    let op = exp_sum("exp_sum_sizes", true).unwrap();
    // An element each, in a grid of more groups than one dimension takes.
    let copy = custom::kernel("narrow_copy", ["x"])
        .wgsl(
            "@compute @workgroup_size(8)
             fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
                 let i = invocation(id, groups);
                 if i < params.numel { store(i, x[i]); }
             }",
        )
        .cpu_f32(|_, inputs, out| out.copy_from_slice(inputs[0]))
        .cpu(|_, inputs, out| out.copy_from_slice(inputs[0]))
        .register()
        .unwrap();
    for d in devices() {
        for shape in [[3, 5], [1, 1], [0, 4], [4, 0], [300, 7]] {
            let x = range(&d, &shape);
            let expected = x.exp().sum_dim(1, false).to_f64_vec().unwrap();
            assert_close(&op.call(&[&x]), &expected, 1e-5, &format!("{shape:?}"));
        }
        let x = range(&d, &[7, 9]);
        for lie in [x.t(), x.i((2..5, ..)), x.i((.., 3..)), x.select(0, 2).expand([4, 9])] {
            let expected = lie.exp().sum_dim(1, false).to_f64_vec().unwrap();
            assert_close(&op.call(&[&lie]), &expected, 1e-5, "a view");
        }
        let n = 8 * 65_535 + 100;
        let x = range(&d, &[n]);
        assert_eq!(copy.call(&[&x]).to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap());
    }
    let x = options().device(cpu()).dtype(F64).tensor([[1.0, 2.0]]);
    assert_eq!(op.call(&[&x]).dtype(), F64);
}

#[test]
fn integers_in_and_out() {
    // Which column is largest: an output of integers, an input of integers, several parameters.
    let pick = custom::kernel("pick", ["x", "column"])
        .input_dtype("column", I32)
        .output(|s| Ok(vec![s[0][0]]))
        .param("n", |s| s.input(0)[1])
        .attribute("scale", 1.0)
        .invocations(|s| s.input(0)[0])
        .wgsl(
            "@compute @workgroup_size(32)
             fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
                 let row = invocation(id, groups);
                 if row < params.numel { store(row, params.scale * x[row * params.n + u32(column[row])]); }
             }",
        )
        .cpu(|s, inputs, out| {
            for (row, out) in out.iter_mut().enumerate() {
                *out = s.attribute("scale") * inputs[0][row * s.input(0)[1] + inputs[1][row] as usize];
            }
        })
        .register()
        .unwrap();
    let largest = custom::kernel("largest", ["x"])
        .output(|s| Ok(vec![s[0][0]]))
        .output_dtype(I32)
        .param("n", |s| s.input(0)[1])
        .workgroups(|s| [s.input(0)[0], 1, 1])
        .wgsl(
            "@compute @workgroup_size(1)
             fn main(@builtin(workgroup_id) group: vec3<u32>) {
                 var best = 0u;
                 for (var k = 1u; k < params.n; k++) {
                     if x[group.x * params.n + k] > x[group.x * params.n + best] { best = k; }
                 }
                 store(group.x, i32(best));
             }",
        )
        .cpu(|s, inputs, out| {
            let n = s.input(0)[1];
            for (row, out) in out.iter_mut().enumerate() {
                let x = &inputs[0][row * n..][..n];
                *out = (0..n).reduce(|a, b| if x[b] > x[a] { b } else { a }).unwrap_or(0) as f64;
            }
        })
        .register()
        .unwrap();
    for d in devices() {
        let x = options().device(&d).tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 9.0]]);
        let at = largest.call(&[&x]);
        assert_eq!((at.dtype(), at.to_vec::<i32>().unwrap()), (I32, vec![1, 2]));
        assert_eq!(pick.call(&[&x, &at]).to_vec::<f32>().unwrap(), [5.0, 9.0]);
        assert_eq!(pick.call_with(&[&x, &at], &[("scale", 2.0)]).to_vec::<f32>().unwrap(), [10.0, 18.0]);
        let error = pick.call(&[&x, &x]).check().unwrap_err();
        assert!(error.message().contains("expected column to be int32, but it is float32"), "{error}");
        let error = pick.call_with(&[&x, &at], &[("size", 2.0)]).check().unwrap_err();
        assert!(error.message().contains("no attribute \"size\""), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let message = |r: wgrad::Result<Op>| r.unwrap_err().message().to_string();
    let gpu = cfg!(feature = "gpu");
    if gpu {
        let text = message(custom::elementwise("bad_1").wgsl("a + ) 2").cpu(|[a]| a).register());
        assert!(
            text.contains("expected expression") && text.contains("a + ) 2") && text.contains("^"),
            "{text}"
        );
        // Right for one element, wrong for four.
        let text = message(custom::elementwise("bad_2").wgsl("max(a, 0.0)").cpu(|[a]| a).register());
        assert!(text.contains("max(a, 0.0)"), "{text}");
        let text = message(custom::elementwise("bad_3").wgsl("a + b").cpu(|[a]| a).register());
        assert!(text.contains("`b`"), "{text}");
        let back = custom::elementwise("bad_4").wgsl("a").cpu(|[a]| a).backward("h * g", |[_, _, g]| g);
        assert!(message(back.register()).contains("`h`"));

        let whole = |name: &str, wgsl: &str| {
            message(custom::kernel(name, ["x"]).wgsl(wgsl).cpu(|_, _, _| ()).register())
        };
        let head = "@compute @workgroup_size(64)\nfn main(@builtin(global_invocation_id) id: vec3<u32>) {\n";
        let text = whole("bad_5", &format!("{head}    store(id.x, y[id.x]);\n}}"));
        assert!(text.contains("bad_5.wgsl:3:") && text.contains("y[id.x]"), "{text}");
        let barrier =
            format!("{head}    if id.x < 3u {{ workgroupBarrier(); }}\n    store(id.x, x[id.x]);\n}}");
        assert!(whole("bad_6", &barrier).contains("uniform control flow"));
        let wide = head.replace("64", "1024") + "    store(id.x, x[id.x]);\n}";
        assert!(whole("bad_7", &wide).contains("1024"));
        let text = whole("bad_8", &(head.replace("main", "start") + "    store(id.x, x[id.x]);\n}"));
        assert!(text.contains("named main"), "{text}");
    }
    assert!(message(custom::elementwise("bad_9").wgsl("a").register()).contains("`cpu` has not been given"));
    assert!(
        message(custom::elementwise("bad_10").cpu(|[a]| a).register()).contains("`wgsl` has not been given")
    );
    let half = custom::elementwise("bad_11").wgsl("a + b").cpu(|[a, b]| a + b);
    let text = message(half.backward("g", |[_, _, _, g]| g).register());
    assert!(text.contains("`backward` was given for 1 of 2 inputs"), "{text}");
    let short = custom::elementwise("bad_12").wgsl("a").cpu(|[a]| a).backward("g", |[g]| g);
    assert!(message(short.register()).contains("it must take 3"));
    assert!(
        message(custom::elementwise("bad 13").wgsl("a").cpu(|[a]| a).register()).contains("letters, digits")
    );
    let clash = custom::kernel("bad_14", ["store"]).wgsl("x").cpu(|_, _, _| ()).register();
    assert!(message(clash).contains("the name store is taken"));

    // Twice the same is the same; another under its name is not.
    swish();
    swish();
    let other = custom::elementwise("swish").wgsl("a").cpu(|[a]| a).register();
    assert!(message(other).contains("an op named \"swish\" is registered already"));
    let k = 2.0;
    let with = || custom::elementwise("captures").wgsl("a").cpu(move |[a]| a * k).register();
    with().unwrap();
    assert!(message(with()).contains("capture"));
}

#[test]
fn calls_that_do_not_fit_carry_errors() {
    let (swish, hypot) = (swish(), hypot());
    for d in devices() {
        let o = options().device(&d);
        let (a, b) = (o.ones([2, 3]), o.ones([4]));
        let text = |t: Tensor| t.check().unwrap_err().to_string();
        assert!(text(swish.call(&[&a, &b])).contains("swish: takes 1 input but 2 were given"));
        assert!(text(hypot.call(&[&a])).contains("hypot: takes 2 inputs but 1 was given"));
        assert!(text(hypot.call(&[&a, &b])).contains("cannot be broadcast"));
        let line = line!() + 1;
        let error = hypot.call(&[&a, &b]).check().unwrap_err();
        assert_eq!((error.kind(), error.caller().line()), (ErrorKind::Shape, line));
        let sum = exp_sum("exp_sum_errors", false).unwrap();
        let error = sum.call(&[&b]).check().unwrap_err();
        assert!(
            error.to_string().contains("exp_sum_errors: expected a matrix, but got shape [4]"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Shape);
        // Integers become floats, as with the library's own.
        assert_eq!(swish.call(&[&o.tensor([1, 2])]).dtype(), F32);
        if !d.is_cpu() {
            assert!(text(hypot.call(&[&a, &ones([2, 3]).to(cpu())])).contains("same device"));
        }
    }
    let x = options().device(cpu()).tensor([1.0]).requires_grad_(true);
    let few = custom::elementwise("few").wgsl("a + b").cpu(|[a, b]| a + b).formula(|c| vec![Some(c.grad())]);
    let error = few.register().unwrap().call(&[&x, &x]).sum().backward().unwrap_err();
    assert!(error.message().contains("gave 1 gradients for 2 inputs"), "{error}");
    let silent = custom::elementwise("silent").wgsl("a").cpu(|[a]| a).formula(|c| vec![Some(c.output())]);
    let error = silent.register().unwrap().call(&[&x]).sum().backward().unwrap_err();
    assert!(error.message().contains("saves_output"), "{error}");
    let panics = custom::kernel("panics", ["x"])
        .wgsl(&ROW_SUM.replace("params.n;", "1u;").replace("params.n ", "1u "));
    let panics = panics.cpu(|_, inputs, out| out[0] = inputs[0][7]).register().unwrap();
    let error = panics.call(&[&x]).check().unwrap_err();
    assert!(error.message().contains("panics has a CPU kernel that panicked"), "{error}");
    (&x + 1).check().unwrap();
}

#[test]
fn special_values_pass() {
    let swish = swish();
    for d in devices() {
        let x = options().device(&d).tensor([f32::NAN, f32::INFINITY, 0.0, -3.0e38]);
        let y = swish.call(&[&x]).to_vec::<f32>().unwrap();
        assert!(y[0].is_nan() && y[1] == f32::INFINITY && y[2] == 0.0, "{y:?}");
    }
}

#[test]
fn a_thousand_calls_leave_nothing_behind() {
    let (swish, sum) = (swish(), exp_sum("exp_sum_loop", false).unwrap());
    devices();
    // A CPU with memory of its own, which other tests do not count into.
    let d = Device::new(wgrad::backend::cpu::device());
    let x = range(&d, &[8, 4]).requires_grad_(true);
    let step = || {
        sum.call(&[&swish.call(&[&x])]).sum().backward().unwrap();
        x.set_grad(None);
        d.synchronize().unwrap();
    };
    step();
    step();
    let live = d.memory().live_buffers;
    (0..1000).for_each(|_| step());
    assert_eq!(d.memory().live_buffers, live);
}
