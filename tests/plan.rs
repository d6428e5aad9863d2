//! What the executor makes of programs: how many commands, how many plans, how much memory. A lost fusion, a copy too
//! many or a leak changes a number here, without a GPU.

mod common;
#[allow(dead_code, reason = "what is timed is not run here")]
#[path = "../benches/workloads/mod.rs"]
mod workloads;

use common::{alone, assert_close, devices};
use wgrad::graph::device::{Device, Stats};
use wgrad::prelude::*;

/// A CPU of its own, so that other tests do not count.
fn device() -> Device {
    devices();
    Device::new(wgrad::backend::cpu::device())
}

/// What running `f`, and all that it leaves behind, takes.
fn cost<R>(device: &Device, f: impl FnOnce() -> R) -> Stats {
    device.flush();
    let before = device.stats();
    let kept = f();
    device.flush();
    drop(kept);
    let after = device.stats();
    Stats {
        flushes: after.flushes - before.flushes,
        dispatches: after.dispatches - before.dispatches,
        plans: after.plans - before.plans,
    }
}

#[track_caller]
fn takes<R>(device: &Device, dispatches: u64, f: impl FnOnce() -> R) {
    assert_eq!(cost(device, f).dispatches, dispatches);
}

fn ready(device: &Device, shape: &[usize]) -> Tensor {
    let t = options().device(device).rand(shape);
    t.check().unwrap();
    t
}

#[test]
fn elementwise_chains_are_one_kernel() {
    let d = device();
    let (a, b) = (ready(&d, &[8, 16]), ready(&d, &[16]));
    takes(&d, 1, || ((&a + &b) * 2).exp().tanh().neg().abs().sqrt().to(F64).add(1.0).to(F32));
    // Several results, of several shapes, that do not wait for each other.
    takes(&d, 1, || (&a + 1, &a * &b, b.exp(), a.gt(0.5)));
    // Views cost nothing, whichever way they go.
    takes(&d, 1, || (a.t().reshape(-1).reshape([16, 8]) + b.unsqueeze(1)).i((.., 1..)).transpose(0, 1) * 2);
    takes(&d, 0, || (a.t(), a.i(0), a.expand([3, 8, 16]), a.reshape(-1)));
    // Constants and counting need no memory.
    takes(&d, 1, || &a * options().device(&d).ones([8, 16]) + options().device(&d).arange(0, 16, 1));
    takes(&d, 1, || a.tril(-1).masked_fill(&options().device(&d).dtype(Bool).ones([8, 16]).triu(1), -1.0));
    // Where a gradient will be asked for, too.
    let (x, y) = (ready(&d, &[8, 8]).requires_grad_(true), ready(&d, &[8, 8]));
    takes(&d, 1, || x.matmul(&y).tril(0).exp());
}

#[test]
fn reductions_take_their_neighbours_in() {
    let d = device();
    let (a, b, c) = (ready(&d, &[8, 16]), ready(&d, &[8, 16]), ready(&d, &[16]));
    takes(&d, 1, || (&a * &b + &c).sum());
    takes(&d, 1, || (&a * &b).sum_dim(1, true).exp() * 2);
    takes(&d, 1, || a.mean());
    takes(&d, 2, || a.var(1, 1.0, false));
    takes(&d, 2, || a.logsumexp(1, false));
    takes(&d, 1, || a.t().sum_dim(0, false));
}

#[test]
fn structured_ops_take_their_epilogues_in() {
    let d = device();
    let (x, w, b) = (ready(&d, &[8, 16]), ready(&d, &[4, 16]), ready(&d, &[4]));
    takes(&d, 1, || x.linear(&w, Some(&b)).relu());
    takes(&d, 1, || x.softmax(1) * 2);
    takes(&d, 2, || (&x * 2).matmul(&w.t()));
}

#[test]
fn cross_entropy_is_three_kernels() {
    let d = device();
    let (x, class) = (ready(&d, &[40, 7]).requires_grad_(true), options().device(&d).zeros([40]).to(I32));
    class.check().unwrap();
    let step = |reduction: Reduction, label_smoothing: f64| {
        let how = CrossEntropy { reduction, label_smoothing, ..CrossEntropy::default() };
        let loss = x.cross_entropy_with(&class, &how);
        loss.sum().backward().unwrap();
        (loss, x.grad().unwrap(), x.set_grad(None))
    };
    // Losses, what they are reduced to, the gradient.
    takes(&d, 3, || step(Reduction::Mean, 0.0));
    takes(&d, 3, || step(Reduction::Mean, 0.1));
    takes(&d, 3, || step(Reduction::Sum, 0.0));
    let every = CrossEntropy { reduction: Reduction::None, ..CrossEntropy::default() };
    takes(&d, 1, || x.detach().cross_entropy_with(&class, &every));
}

#[test]
fn products_compute_their_operands() {
    let _alone = alone();
    let step = |d: &Device| {
        let (x, t, v) = (ready(d, &[1024, 1024]), ready(d, &[1024]), ready(d, &[1024]));
        let (_, plan) = debug::plan_of(|| (&x * 2.0 + &t).mv(&v)).unwrap();
        assert_eq!(plan.kernels.len(), plan.dispatches(), "{plan}");
        (plan.dispatches(), (&x * 2.0 + &t).mv(&v))
    };
    // The CPU's products read memory.
    assert_eq!(step(&device()).0, 2);
    for gpu in devices().iter().filter(|d| !d.is_cpu()) {
        gpu.manual_seed(1);
        cpu().manual_seed(1);
        let ((dispatches, y), (_, expected)) = (step(gpu), step(&cpu()));
        assert_eq!(dispatches, 1);
        assert_close(&y, &expected.to_f64_vec().unwrap(), 1e-5, "computed where it is read");
        let (_, found) = debug::diff(|| step(gpu).1.to_f64_vec().unwrap()).unwrap();
        assert!(found.first().is_none(), "{found}");
    }
}

#[test]
fn only_what_is_needed_is_computed() {
    let d = device();
    let a = ready(&d, &[64]);
    takes(&d, 0, || drop((&a * 2).exp()));
    d.flush();
    let before = d.stats().dispatches;
    let (x, y) = ((&a * 2).sum(), (&a * 3).sum());
    x.check().unwrap();
    assert_eq!(d.stats().dispatches - before, 1, "y was not asked for");
    y.check().unwrap();
    assert_eq!(d.stats().dispatches - before, 2);
    y.check().unwrap();
    x.to_vec::<f32>().unwrap();
    assert_eq!(d.stats().dispatches - before, 2, "values are kept");
}

#[test]
fn writes_in_place_copy_only_what_others_still_see() {
    let d = device();
    let x = ready(&d, &[4, 4]);
    let dispatches = |f: &dyn Fn()| cost(&d, f).dispatches;
    assert_eq!(dispatches(&|| drop(x.i(0).fill_(1))), 1);
    assert_eq!(dispatches(&|| drop(x.add_(1))), 1);
    // What is still to be made of the old values is made first, and nothing is copied.
    takes(&d, 2, || {
        let old = &x * 3;
        x.i(0).fill_(2);
        old
    });
    // The way back holds the old values: the rest of them is copied.
    let w = ready(&d, &[4, 4]).requires_grad_(true);
    takes(&d, 3, || {
        let y = (&x * &w).sum();
        x.i(0).fill_(2);
        y
    });
    let parts = [ready(&d, &[2, 4]), ready(&d, &[3, 4]), ready(&d, &[1, 4])];
    takes(&d, 3, || cat(&parts.iter().collect::<Vec<_>>(), 0));
}

#[test]
fn steps_that_differ_in_numbers_share_a_plan() {
    let d = device();
    let w = options().device(&d).requires_grad(true).ones([4, 3]);
    let x = ready(&d, &[8, 4]);
    let mut optimizer = Adam::new(vec![w.clone()], 0.1);
    let mut step = |k: i32| {
        let loss = (x.matmul(&w) * k).square().mean();
        loss.backward().unwrap();
        optimizer.set_lr(0.1 / f64::from(k));
        optimizer.step().unwrap();
        optimizer.zero_grad();
        loss.item::<f32>().unwrap()
    };
    // The first steps make the optimizer's state and give up what was uploaded.
    for k in 1..=3 {
        step(k);
    }
    let before = d.stats();
    let losses: Vec<f32> = (4..20).map(&mut step).collect();
    let after = d.stats();
    assert_eq!(after.plans, before.plans, "the same step needs no new plan");
    assert!(losses.windows(2).all(|w| w[0] != w[1]), "but computes something else: {losses:?}");
    // Memory goes round.
    let live = d.memory().live_bytes;
    for k in 20..40 {
        step(k);
    }
    assert_eq!(d.memory().live_bytes, live);
}

#[test]
fn random_numbers_differ_under_one_plan() {
    let d = device();
    d.manual_seed(1);
    let draw = || options().device(&d).rand(8).to_vec::<f32>().unwrap();
    let first = draw();
    let plans = d.stats().plans;
    let second = draw();
    assert_eq!(d.stats().plans, plans);
    assert_ne!(first, second);
    d.manual_seed(1);
    assert_eq!(draw(), first);
}

#[test]
fn an_optimizer_step_is_few_dispatches() {
    let d = device();
    let params: Vec<Tensor> = [[16, 8], [1, 16], [16, 16], [1, 16], [4, 16], [1, 4]]
        .iter()
        .map(|s| ready(&d, &s[..]).requires_grad_(true))
        .collect();
    let mut optimizer = SGD::new(params.clone(), 0.1);
    let gradients = || {
        for p in &params {
            let g = p.detach().exp();
            g.check().unwrap();
            p.set_grad(Some(g));
        }
    };
    gradients();
    let stats = cost(&d, || optimizer.step().unwrap());
    assert_eq!(stats.dispatches, 1, "six parameters");
    // In place: nothing new is allocated.
    gradients();
    let before = d.memory().live_bytes;
    optimizer.step().unwrap();
    d.flush();
    assert!(d.memory().live_bytes <= before);
}

/// The numbers of a training step as they are now; lower is better, and higher wants a reason.
#[test]
fn a_training_step() {
    let d = device();
    let o = options().device(&d);
    let model = [nn::Linear::with(16, 32, true, &o), nn::Linear::with(32, 4, true, &o)];
    let params: Vec<Tensor> = model.iter().flat_map(|m| m.parameters()).collect();
    assert_eq!(params.len(), 4);
    let mut optimizer = SGD::new(params, 0.1);
    let (x, y) = (ready(&d, &[8, 16]), options().device(&d).tensor([0, 1, 2, 3, 0, 1, 2, 3]));
    let mut step = || {
        let loss = model[1].forward(&model[0].forward(&x).relu()).cross_entropy(&y);
        loss.backward().unwrap();
        optimizer.step().unwrap();
        optimizer.zero_grad();
        loss
    };
    (0..3).for_each(|_| drop(step()));
    let stats = cost(&d, step);
    assert_eq!(stats.plans, 0);
    assert_eq!(stats.flushes, 1, "a step is one submission");
    assert!(stats.dispatches <= 10, "{} dispatches", stats.dispatches);
}

/// The benchmarks' training steps have PyTorch's losses, and take memory, as planned, within a tenth of what is alive at one
/// time, all inputs and results included; and parameters and what optimizers keep of them are overwritten, wherever the
/// update is fused.
#[test]
fn a_training_step_takes_little_more_memory_than_is_alive() {
    let _alone = alone();
    let steps = [
        ("mlp_step", 7_100_000.0, [2.2963, 2.2871]),
        ("cnn_step", 9_000_000.0, [2.2978, 2.1450]),
        ("gpt_step", 15_700_000.0, [4.3249, 3.9285]),
    ];
    for device in devices() {
        for (name, most, losses) in steps {
            let named = workloads::all().into_iter().find(|w| w.name == name).unwrap();
            let facts = ((named.make)(&device).unwrap().check)().unwrap();
            let fact = |name: &str| facts.iter().find(|f| f.0 == name).unwrap().1;
            let (taken, least) = (fact("step_bytes"), fact("least_bytes"));
            eprintln!("{name} on {device}: {taken} bytes, {:.3} of {least}", taken / least);
            assert!(taken <= 1.1 * least, "{name} on {device}: {taken} bytes, for {least} alive at one time");
            assert!(taken <= most, "{name} on {device}: {taken} bytes");
            // PyTorch's: half a digit for its printing, as much for the order of sums.
            for (step, loss) in ["loss1", "loss5"].into_iter().zip(losses) {
                assert!((fact(step) - loss).abs() < 1e-4, "{name} on {device}: {step} is {}", fact(step));
            }
        }
    }
}

#[test]
fn fused_updates_overwrite_what_they_replace() {
    let _alone = alone();
    for device in devices() {
        let on = options().device(&device);
        let sizes = [(1, 1, 1), (3, 5, 2), (31, 33, 9), (64, 64, 64), (65, 130, 7), (200, 10, 33)];
        for (rows, columns, batch) in sizes {
            let (x, g) = (on.rand([batch, rows]), on.rand([batch, columns]));
            let (w, m) = (on.rand([rows, columns]), on.rand([rows, columns]));
            device.flush();
            let (w0, m0) = (w.to_f64_vec().unwrap(), m.to_f64_vec().unwrap());
            let gradient = x.t().matmul(&g).to_f64_vec().unwrap();
            let sums = (g.sum_dim(0, false).to_f64_vec().unwrap(), on.rand([columns]));
            let b0 = sums.1.to_f64_vec().unwrap();
            let (_, plan) = debug::plan_of(|| {
                m.mul_(0.5).add_(x.t().matmul(&g));
                w.sub_(&m * 0.25);
                sums.1.sub_(g.sum_dim(0, false) * 0.25);
            })
            .unwrap();
            assert_eq!(plan.new_bytes, 0, "{plan}");
            let moved: Vec<f64> = m0.iter().zip(&gradient).map(|(m, g)| m * 0.5 + g).collect();
            assert_close(&m, &moved, 1e-5, "m");
            let kept: Vec<f64> = w0.iter().zip(&moved).map(|(w, m)| w - m * 0.25).collect();
            assert_close(&w, &kept, 1e-5, "w");
            let kept: Vec<f64> = b0.iter().zip(&sums.0).map(|(b, s)| b - s * 0.25).collect();
            assert_close(&sums.1, &kept, 1e-5, "b");
        }
    }
}
