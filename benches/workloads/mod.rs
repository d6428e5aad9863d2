//! The workloads that `cargo bench` and `examples/bench_suite.rs` measure. Names, sizes and numbers are those of the
//! common suite that other libraries run too, so times, checks and losses can be compared with theirs.

pub mod models;
pub mod numbers;

use wgrad::prelude::*;

use numbers::values;

/// What one unit of a workload costs at least.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    pub flops: f64,
    /// Fewest bytes to and from memory.
    pub bytes: f64,
}

/// Something to time.
pub struct Workload {
    /// How many units (steps, operations) a call of `run` does; times are given per unit.
    pub units: usize,
    pub cost: Cost,
    /// Returns only when the work is done.
    pub run: Box<dyn FnMut() -> Result<()>>,
    /// What a wrong result would change.
    pub check: Box<dyn FnMut() -> Result<Facts>>,
}

/// Numbers with their names.
pub type Facts = Vec<(&'static str, f64)>;

type Make = dyn Fn(&Device) -> Result<Workload>;

/// A workload by name, to be made on a device.
pub struct Named {
    pub name: String,
    pub make: Box<Make>,
}

fn named(name: impl Into<String>, make: impl Fn(&Device) -> Result<Workload> + 'static) -> Named {
    Named { name: name.into(), make: Box::new(make) }
}

/// All of them, in the suite's order.
pub fn all() -> Vec<Named> {
    let mut all = vec![];
    for n in [128, 256, 512, 1024] {
        all.extend(product(format!("matmul_{n}"), n, n, n));
    }
    all.extend(product("matmul_64x784x256".into(), 64, 784, 256));
    all.push(named("ew_chain_4m", chain));
    all.push(named("sum_16m", sum));
    all.push(named("softmax_4096x1024", softmax));
    all.push(named("layernorm_4096x768", layer_norm));
    all.push(named("mlp_step", |d| models::mlp(d, false)));
    all.push(named("mlp_step_readback", |d| models::mlp(d, true)));
    all.push(named("cnn_step", models::cnn));
    all.push(named("gpt_step", models::gpt));
    for n in [1, 1024] {
        all.push(named(format!("tiny_{n}"), move |d| tiny(d, n, false)));
        all.push(named(format!("tiny_grad_{n}"), move |d| tiny(d, n, true)));
    }
    all
}

/// Runs what `f` records, keeping its value until it is computed.
fn forward(device: &Device, cost: Cost, f: impl Fn() -> Tensor + Clone + 'static) -> Workload {
    let (device, value) = (device.clone(), f.clone());
    Workload {
        units: 1,
        cost,
        run: Box::new(move || {
            let y = f();
            device.synchronize()?;
            y.check()
        }),
        check: Box::new(move || Ok(vec![("chk", numbers::mean_of_magnitudes(&value().to_vec()?))])),
    }
}

fn product(name: String, m: usize, k: usize, n: usize) -> Vec<Named> {
    let flops = 2.0 * (m * k * n) as f64;
    let cost = Cost { flops, bytes: 4.0 * (m * k + k * n + m * n) as f64 };
    let make = move |device: &Device| {
        let (a, b) = (values(device, 1, &[m, k], 1.0), values(device, 2, &[k, n], 1.0));
        Ok(forward(device, cost, move || a.matmul(&b)))
    };
    let queue = move |device: &Device| {
        let (a, b) = (values(device, 1, &[m, k], 1.0), values(device, 2, &[k, n], 1.0));
        let device = device.clone();
        Ok(Workload {
            units: 16,
            cost,
            run: Box::new(move || {
                let products: Vec<Tensor> = (0..16).map(|_| a.matmul(&b)).collect();
                device.synchronize()?;
                products.iter().try_for_each(Tensor::check)
            }),
            check: Box::new(|| Ok(vec![])),
        })
    };
    let mut both = vec![named(name.clone(), make)];
    if m * k * n <= 256 * 256 * 256 {
        both.push(named(format!("{name}_q16"), queue));
    }
    both
}

fn chain(device: &Device) -> Result<Workload> {
    let n = 4 << 20;
    let [a, b, c] = [1, 2, 3].map(|seed| values(device, seed, &[n], 1.0));
    let cost = Cost { flops: 0.0, bytes: 16.0 * n as f64 };
    Ok(forward(device, cost, move || (&a * &b + &c).tanh() * a.sigmoid() - 0.5 * &b))
}

fn sum(device: &Device) -> Result<Workload> {
    let n = 16 << 20;
    let x = values(device, 1, &[n], 1.0);
    let y = x.clone();
    Ok(Workload {
        units: 1,
        cost: Cost { flops: 0.0, bytes: 4.0 * n as f64 },
        run: Box::new(move || x.sum().item::<f32>().map(drop)),
        check: Box::new(move || Ok(vec![("chk", f64::from(y.sum().item::<f32>()?))])),
    })
}

fn softmax(device: &Device) -> Result<Workload> {
    let x = values(device, 1, &[4096, 1024], 4.0);
    let cost = Cost { flops: 0.0, bytes: 8.0 * x.numel() as f64 };
    Ok(forward(device, cost, move || x.softmax(-1)))
}

fn layer_norm(device: &Device) -> Result<Workload> {
    let x = values(device, 1, &[4096, 768], 4.0);
    let (weight, bias) = (values(device, 2, &[768], 1.0), values(device, 3, &[768], 1.0));
    let cost = Cost { flops: 0.0, bytes: 8.0 * x.numel() as f64 };
    Ok(forward(device, cost, move || x.layer_norm(768, Some(&weight), Some(&bias), 1e-5)))
}

/// A thousand times `x * 1.0001 + 0.0001`; a unit is a turn, of two operations.
fn tiny(device: &Device, n: usize, grad: bool) -> Result<Workload> {
    let turns = 1000;
    let ones = options().device(device).ones([n]);
    let chain = move |x: &Tensor| {
        let mut x = x.clone();
        for _ in 0..turns {
            x = x * 1.0001 + 0.0001;
        }
        x
    };
    let last = move || -> Result<f64> {
        if !grad {
            return chain(&ones).i(0).item::<f32>().map(f64::from);
        }
        let leaf = ones.detach().requires_grad_(true);
        chain(&leaf).sum().backward()?;
        leaf.grad().map_or(Ok(f64::NAN), |g| g.i(0).item::<f32>().map(f64::from))
    };
    let value = last.clone();
    Ok(Workload {
        units: turns,
        cost: Cost::default(),
        run: Box::new(move || last().map(drop)),
        check: Box::new(move || Ok(vec![("chk", value()?)])),
    })
}
