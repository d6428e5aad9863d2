//! Training: optimizers, schedules and loss curves against PyTorch's (`goldens/optim.py`), loaders, and no leaks.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{assert_close, devices};
use serde_json::Value;
use wgrad::nn::Identity;
use wgrad::optim::{Optim, Rule};
use wgrad::prelude::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("goldens/optim.json")).unwrap()
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The script's inputs.
fn values(n: usize, scale: f64, shift: f64) -> Vec<f64> {
    (0..n).map(|i| (i as f64 * 0.7 + shift).sin() * scale).collect()
}

fn float(device: &Device) -> wgrad::Options {
    options().device(device).dtype(F32)
}

fn set_grads(params: &[Tensor], step: usize) {
    let grads = [values(6, 1.0, step as f64), values(3, 0.5, step as f64 + 2.0)];
    for (p, g) in params.iter().zip(grads) {
        p.set_grad(Some(float(p.device()).tensor(g).reshape(p.shape())));
    }
}

fn params(device: &Device) -> Vec<Tensor> {
    let start = [
        float(device).tensor(values(6, 1.0, 0.3)).reshape([2, 3]),
        float(device).tensor(values(3, 2.0, 1.1)),
    ];
    start.iter().map(|t| t.requires_grad_(true)).collect()
}

fn all(params: &[Tensor]) -> Tensor {
    cat(&params.iter().map(|p| p.detach().reshape(-1)).collect::<Vec<_>>().iter().collect::<Vec<_>>(), 0)
}

#[track_caller]
fn check<R: Rule>(name: &str, make: impl Fn(Vec<Tensor>) -> Optim<R>) {
    let golden = golden();
    let expected: Vec<Vec<f64>> =
        golden["optimizers"][name].as_array().unwrap().iter().map(numbers).collect();
    for device in devices() {
        let params = params(&device);
        let mut optimizer = make(params.clone());
        for (step, expected) in expected.iter().enumerate() {
            if step == 3 {
                // In between it is saved, and another goes on.
                let saved = optimizer.state_dict();
                optimizer = make(params.clone());
                optimizer.groups_mut()[0].rule.set_lr(77.0);
                optimizer.load_state_dict(&saved).unwrap();
            }
            set_grads(&params, step);
            if step == 2 {
                params[1].set_grad(None);
            }
            optimizer.step().unwrap();
            assert_close(&all(&params), expected, 2e-6, &format!("{name} on {device}, step {step}"));
        }
    }
}

#[test]
fn optimizers_do_as_pytorchs() {
    check("sgd", |p| SGD::new(p, 0.1));
    check("sgd_decay_maximize", |p| SGD::new(p, 0.1).weight_decay(0.05).maximize(true));
    check("sgd_momentum", |p| SGD::new(p, 0.1).momentum(0.9));
    check("sgd_dampening", |p| SGD::new(p, 0.1).momentum(0.9).dampening(0.3).weight_decay(0.01));
    check("sgd_nesterov", |p| SGD::new(p, 0.1).momentum(0.9).nesterov(true));
    check("adam", |p| Adam::new(p, 0.01));
    check("adam_decay", |p| Adam::new(p, 0.01).beta1(0.8).beta2(0.9).eps(1e-3).weight_decay(0.1));
    check("adam_amsgrad_maximize", |p| Adam::new(p, 0.01).beta1(0.5).beta2(0.6).amsgrad(true).maximize(true));
    check("adamw", |p| AdamW::new(p, 0.01));
    check("adamw_decay", |p| AdamW::new(p, 0.01).weight_decay(0.2).amsgrad(true));
}

#[test]
fn schedules_do_as_pytorchs() {
    fn check(name: &str, schedule: impl Schedule) {
        let p = ones(1).to(cpu()).requires_grad_(true);
        let mut optimizer = SGD::new([&p], 0.1);
        let mut scheduler = schedule.start(&mut optimizer);
        for (step, expected) in numbers(&golden()["schedules"][name]).into_iter().enumerate() {
            assert!(
                (optimizer.lr() - expected).abs() < 1e-9,
                "{name} {step}: {}, not {expected}",
                optimizer.lr()
            );
            scheduler.step(&mut optimizer);
        }
    }
    check("step", StepLR { step_size: 3, gamma: 0.1 });
    check("cosine", CosineAnnealingLR { t_max: 8, eta_min: 0.01 });
    check("linear", LinearLR { start_factor: 0.25, end_factor: 1.0, total_iters: 5 });
    check("one_cycle", OneCycleLR::new(0.5, 13));
}

#[test]
fn clipping_does_as_pytorchs() {
    for device in devices() {
        for (name, order) in [("2", 2.0), ("1", 1.0), ("3", 3.0), ("inf", f64::INFINITY)] {
            let params = params(&device);
            set_grads(&params, 0);
            let norm = clip_grad_norm_(&params, 0.7, order);
            let grads: Vec<Tensor> = params.iter().map(|p| p.grad().unwrap().reshape(-1)).collect();
            let got = cat(&[&norm.reshape(1), &grads[0], &grads[1]], 0);
            assert_close(&got, &numbers(&golden()["clip"][name]), 1e-5, name);
        }
        let params = params(&device);
        set_grads(&params, 0);
        clip_grad_value_(&params, 0.25);
        assert_close(&params[0].grad().unwrap().abs().max(), &[0.25], 0.0, "clip_grad_value_");
    }
}

#[test]
fn groups_have_their_own_options() {
    let params = params(&cpu());
    let mut optimizer = SGD::new(&params[..1], 0.5);
    optimizer.add_param_group(&params[1..]).lr = 0.0;
    assert_eq!(optimizer.lrs(), [0.5, 0.0]);
    let before = params[1].to_f64_vec().unwrap();
    set_grads(&params, 0);
    optimizer.step().unwrap();
    assert_close(&params[1], &before, 0.0, "the second group");
    let saved = optimizer.state_dict();
    assert_eq!(saved["param_groups.1.lr"].item::<f64>().unwrap(), 0.0);
    let error = SGD::new(&params, 0.1).load_state_dict(&saved).unwrap_err().to_string();
    assert!(error.contains("param_groups.1"), "{error}");
    let error = Adam::new(&params, 0.1).load_state_dict(&saved).unwrap_err().to_string();
    assert!(error.contains("param_groups.0.beta1 is missing"), "{error}");
}

#[test]
fn steps_that_make_no_sense_change_nothing() {
    let w = ones([2, 2]).to(cpu()).requires_grad_(true);
    let mut optimizer = Adam::new([&w], 0.1);
    w.set_grad(Some(w.detach().matmul(&ones([3, 3]).to(cpu()))));
    let error = optimizer.step().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    w.set_grad(Some(ones([3]).to(cpu())));
    assert!(optimizer.step().is_err());
    w.set_grad(Some(ones([2, 2]).to(cpu())));
    optimizer.set_lr(f64::NAN);
    assert!(optimizer.step().unwrap_err().to_string().contains("Invalid learning rate"));
    let mut of_result = SGD::new([&(&w * 2.0)], 0.1);
    assert!(of_result.step().unwrap_err().to_string().contains("non-leaf"));
    assert_eq!(w.to_vec::<f32>().unwrap(), [1.0; 4]);
}

#[test]
fn gradients_are_forgotten_or_zeroed() {
    let w = ones([2]).to(cpu()).requires_grad_(true);
    let optimizer = SGD::new([&w], 0.1);
    w.sum().backward().unwrap();
    optimizer.zero_grad_with(false);
    assert_eq!(w.grad().unwrap().to_vec::<f32>().unwrap(), [0.0; 2]);
    optimizer.zero_grad();
    assert!(w.grad().is_none());
}

fn ring_model(device: &Device) -> Sequential {
    let model =
        sequential![Linear::new(2, 16), Tanh, Linear::new(16, 12), GELU, Linear::new(12, 3), Identity];
    let model = model.to(device);
    for (i, pair) in model.parameters().chunks(2).enumerate() {
        no_grad(|| {
            let [w, b] = pair else { panic!("a weight and a bias") };
            w.copy_(&float(device).tensor(values(w.numel(), 0.6, i as f64 + 0.5)).reshape(w.shape()));
            b.copy_(&float(device).tensor(values(b.numel(), 0.1, i as f64 + 9.0)));
        });
    }
    model
}

#[test]
fn a_loss_curve_is_pytorchs() {
    let golden = &golden()["training"];
    for device in devices() {
        let x = float(&device).tensor(numbers(&golden["x"])).reshape([-1, 2]);
        let y = options().device(&device).tensor(numbers(&golden["y"])).to(I32);
        let model = ring_model(&device);
        let mut optimizer = AdamW::new(model.parameters(), 0.02);
        let mut losses = vec![];
        for _ in 0..60 {
            optimizer.zero_grad();
            let loss = model.forward(&x).cross_entropy(&y);
            loss.backward().unwrap();
            optimizer.step().unwrap();
            losses.push(loss.detach());
        }
        let losses = stack(&losses.iter().collect::<Vec<_>>(), 0);
        assert_close(&losses, &numbers(&golden["losses"]), 2e-4, &format!("losses on {device}"));
    }
}

// ---- loaders ---------------------------------------------------------------------------------------------------

/// Gives its indices, and fails or panics at one of them.
struct Numbers {
    len: usize,
    fail_at: Option<usize>,
    panic_at: Option<usize>,
    alive: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
}

impl Numbers {
    fn new(len: usize) -> Numbers {
        let alive = Arc::new(AtomicUsize::new(1));
        Numbers { len, fail_at: None, panic_at: None, alive, made: Arc::default() }
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Dataset for Numbers {
    type Batch = Vec<usize>;
    fn len(&self) -> usize {
        self.len
    }
    fn batch(&self, indices: &[usize]) -> Result<Vec<usize>> {
        self.made.fetch_add(1, Ordering::SeqCst);
        if self.fail_at.is_some_and(|i| indices.contains(&i)) {
            return Err(Error::new(ErrorKind::Io, "read", "the disk is gone"));
        }
        assert!(!self.panic_at.is_some_and(|i| indices.contains(&i)), "no such number");
        Ok(indices.to_vec())
    }
}

fn epoch(loader: &DataLoader<Numbers>) -> Vec<Vec<usize>> {
    loader.iter().map(Result::unwrap).collect()
}

#[test]
fn loaders_bring_every_sample_once_in_a_seeded_order() {
    for prefetch in [0, 1, 2, 7] {
        let plain = DataLoader::new(Numbers::new(10), 4).prefetch(prefetch);
        assert_eq!(epoch(&plain), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert_eq!(plain.len(), 3);
        let dropping = DataLoader::new(Numbers::new(10), 4).prefetch(prefetch).drop_last(true);
        assert_eq!((epoch(&dropping).len(), dropping.len()), (2, 2));
        let (a, b) = (
            DataLoader::new(Numbers::new(100), 7).shuffle(5),
            DataLoader::new(Numbers::new(100), 7).shuffle(5),
        );
        let (a, b) = (a.prefetch(prefetch), b.prefetch(0));
        let first = epoch(&a);
        assert_eq!(first, epoch(&b), "the same seed gives the same order");
        let second = epoch(&a);
        assert_ne!(first, second, "each epoch has an order of its own");
        let mut sorted: Vec<usize> = second.concat();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        b.set_epoch(1);
        let rest: Vec<_> = b.iter_from(9).map(Result::unwrap).collect();
        assert_eq!(rest, second[9..], "an epoch can be resumed in its midst");
        assert_eq!(epoch(&DataLoader::new(Numbers::new(0), 3).prefetch(prefetch)), Vec::<Vec<usize>>::new());
    }
}

#[test]
fn loaders_pass_on_errors_and_panics() {
    for prefetch in [0, 2] {
        let mut numbers = Numbers::new(10);
        numbers.fail_at = Some(5);
        let got: Vec<_> = DataLoader::new(numbers, 2).prefetch(prefetch).iter().collect();
        assert_eq!(got.len(), 3, "it ends after the error");
        assert!(got[2].as_ref().unwrap_err().to_string().contains("the disk is gone"));
        let mut numbers = Numbers::new(10);
        numbers.panic_at = Some(2);
        let got: Vec<_> = DataLoader::new(numbers, 2).prefetch(prefetch).iter().collect();
        let error = got[1].as_ref().unwrap_err();
        assert!(error.to_string().contains("no such number") && error.kind() == ErrorKind::Data, "{error}");
    }
}

#[test]
fn loaders_end_their_thread_when_dropped() {
    let numbers = Numbers::new(1_000_000);
    let (alive, made) = (numbers.alive.clone(), numbers.made.clone());
    let loader = DataLoader::new(numbers, 1).prefetch(3);
    let mut batches = loader.iter();
    batches.next().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(made.load(Ordering::SeqCst) <= 5, "no more than asked for is made ahead");
    drop(batches);
    drop(loader.iter());
    drop(loader);
    assert_eq!(alive.load(Ordering::SeqCst), 0, "a thread still holds the dataset");
}

#[test]
fn tensor_datasets_make_batches_on_their_device() {
    for device in devices() {
        let x = float(&device).tensor((0..12).map(f64::from).collect::<Vec<_>>()).reshape([6, 2]);
        let y = options().device(&device).arange(0, 6, 1);
        let loader = DataLoader::new(TensorDataset::new([&x, &y]).unwrap(), 4).shuffle(1);
        let mut seen = vec![];
        for batch in &loader {
            let [x, y] = batch.unwrap();
            assert_eq!((x.device(), x.dtype(), y.dtype()), (&device, F32, I32));
            for (x, y) in x.to_f64_vec().unwrap().chunks(2).zip(y.to_f64_vec().unwrap()) {
                assert_eq!(x, [2.0 * y, 2.0 * y + 1.0]);
                seen.push(y);
            }
        }
        seen.sort_by(f64::total_cmp);
        assert_eq!(seen, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }
    let (a, b) = (ones([3, 1]).to(cpu()), ones([2]).to(cpu()));
    assert!(TensorDataset::new([&a, &b]).is_err());
    assert!(TensorDataset::new([&ones(()).to(cpu())]).is_err());
}
