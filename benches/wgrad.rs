//! `cargo bench`: the workloads that matter, on every backend, beside what the machine can do at all: a copy's
//! bandwidth and `gemm`'s rate, measured in the same run. Ends with a table of shares of those ceilings.
//!
//! `cargo bench -- matmul` runs some; `WGRAD_BENCH_DEVICES=cpu,gpu` chooses devices.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use rayon::prelude::*;
use wgrad::optim::{Optimizer, SGD};
use wgrad::prelude::*;

/// What a workload costs at least.
#[derive(Clone, Copy)]
enum Work {
    Flops(f64),
    /// Fewest bytes to move.
    Bytes(f64),
    /// Operations, for what is all overhead.
    Ops(f64),
}

struct Row {
    name: String,
    device: String,
    work: Work,
}

const MI: usize = 1 << 20;

fn main() {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    let mut rows = vec![];
    ceilings(&mut criterion, &mut rows);
    for device in devices() {
        workloads(&mut criterion, &device, &mut rows);
    }
    criterion.final_summary();
    table(&rows);
}

fn devices() -> Vec<Device> {
    let wanted = std::env::var("WGRAD_BENCH_DEVICES").unwrap_or_else(|_| "cpu,gpu".into());
    wanted
        .split(',')
        .filter_map(|name| match device(name) {
            Ok(device) => Some(device),
            Err(error) => {
                eprintln!("left out: {error}");
                None
            }
        })
        .collect()
}

/// The machine without us: on all cores, as both backends here use them.
fn ceilings(c: &mut Criterion, rows: &mut Vec<Row>) {
    let mut add = |name: &str, work| rows.push(Row { name: name.into(), device: "machine".into(), work });
    // Larger than any cache, so that it is memory that is measured.
    let n = 64 * MI;
    let (src, mut dst) = (vec![1f32; n], vec![0f32; n]);
    add("copy", Work::Bytes(8.0 * n as f64));
    c.bench_function("machine/copy", |b| {
        b.iter(|| {
            dst.par_chunks_mut(MI).zip(src.par_chunks(MI)).for_each(|(d, s)| d.copy_from_slice(s));
            black_box(&mut dst);
        });
    });
    let n = 1024;
    let (a, b_, mut out) = (vec![1f32; n * n], vec![1f32; n * n], vec![0f32; n * n]);
    add("gemm", Work::Flops(2.0 * (n * n * n) as f64));
    c.bench_function("machine/gemm", |b| {
        b.iter(|| {
            let (rows, one) = (n as isize, 1);
            // SAFETY: the three matrices are n by n, row-major, and `out` is borrowed by nobody else.
            unsafe {
                gemm::gemm(
                    n,
                    n,
                    n,
                    out.as_mut_ptr(),
                    one,
                    rows,
                    false,
                    a.as_ptr(),
                    one,
                    rows,
                    b_.as_ptr(),
                    one,
                    rows,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(0),
                );
            }
            black_box(&mut out);
        });
    });
}

fn workloads(c: &mut Criterion, device: &Device, rows: &mut Vec<Row>) {
    let on = options().device(device);
    device.manual_seed(1);
    let label = if device.is_cpu() { "cpu" } else { "gpu" };
    let mut bench = |name: &str, work: Work, run: &mut dyn FnMut() -> Result<()>| {
        rows.push(Row { name: name.into(), device: label.into(), work });
        c.bench_with_input(BenchmarkId::new(label, name), &(), |b, ()| {
            b.iter(|| run().expect("the workload runs"));
        });
    };

    for n in [128, 256, 512, 1024] {
        let (a, b) = (on.randn([n, n]), on.randn([n, n]));
        bench(&format!("matmul_{n}"), Work::Flops(2.0 * (n as f64).powi(3)), &mut || {
            let y = a.matmul(&b);
            device.synchronize()?;
            drop(black_box(y));
            Ok(())
        });
    }

    let n = 4 * MI;
    let (a, b, x) = (on.randn([n]), on.randn([n]), on.randn([n]));
    bench("chain_4m", Work::Bytes(16.0 * n as f64), &mut || {
        let y = ((&a * &b + &x) * &a - &b).relu();
        device.synchronize()?;
        drop(black_box(y));
        Ok(())
    });
    bench("chain_tanh_4m", Work::Bytes(16.0 * n as f64), &mut || {
        let y = (&a * &b + &x).tanh() * a.sigmoid() - 0.5 * &b;
        device.synchronize()?;
        drop(black_box(y));
        Ok(())
    });
    drop((a, b, x));

    let x = on.ones([16 * MI]);
    bench("sum_16m", Work::Bytes(4.0 * 16.0 * MI as f64), &mut || {
        let sum: f32 = x.sum().item()?;
        assert_eq!(sum, 16777216.0);
        Ok(())
    });
    drop(x);

    let x = on.randn([4096, 1024]);
    bench("softmax_4096x1024", Work::Bytes(8.0 * 4.0 * MI as f64), &mut || {
        let y = x.softmax(1);
        device.synchronize()?;
        drop(black_box(y));
        Ok(())
    });

    // Forward, the gradients of weights, and those of activations but the first.
    let flops: f64 = [(784, 512, 2.0), (512, 256, 3.0), (256, 10, 3.0)]
        .iter()
        .map(|&(i, o, times)| times * 2.0 * 128.0 * f64::from(i) * f64::from(o))
        .sum();
    let mut step = mlp(device);
    bench("mlp_step", Work::Flops(flops), &mut || {
        step()?;
        device.synchronize()
    });

    bench("tiny_1000", Work::Ops(1000.0), &mut || {
        let mut x = on.full((), 1.0);
        for _ in 0..500 {
            x = &x * 1.0001 + 0.0001;
        }
        black_box(x.item::<f32>()?);
        Ok(())
    });
    device.empty_cache();
}

/// A training step of 784-512-256-10 on a batch of 128, with SGD and momentum.
fn mlp(device: &Device) -> impl FnMut() -> Result<()> + use<> {
    let on = options().device(device);
    let mut params = vec![];
    for (i, o) in [(784, 512), (512, 256), (256, 10)] {
        params.push((on.randn([o, i]) * (2.0 / i as f64).sqrt()).detach().requires_grad_(true));
        params.push(on.zeros([o]).requires_grad_(true));
    }
    let (x, target) = (on.randn([128, 784]), on.randint(0, 10, [128]));
    let mut sgd = SGD::new(params.clone(), 0.01).momentum(0.9);
    move || {
        let h = x.linear(&params[0], Some(&params[1])).relu();
        let h = h.linear(&params[2], Some(&params[3])).relu();
        let loss = h.linear(&params[4], Some(&params[5])).cross_entropy(&target);
        sgd.zero_grad();
        loss.backward()?;
        drop(h);
        sgd.step()
    }
}

/// The medians that criterion left, as rates and shares of the ceilings.
fn table(rows: &[Row]) {
    let home = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let median = |row: &Row| -> Option<f64> {
        let path = format!("{home}/criterion/{}/{}/new/estimates.json", row.device, row.name);
        let path = if row.device == "machine" { path.replace("machine/", "machine_") } else { path };
        let text = std::fs::read_to_string(path).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(json["median"]["point_estimate"].as_f64()? * 1e-9)
    };
    let rate = |row: &Row| -> Option<f64> {
        let amount = match row.work {
            Work::Flops(v) | Work::Bytes(v) | Work::Ops(v) => v,
        };
        Some(amount / median(row)?)
    };
    let ceiling = |name: &str| rows.iter().find(|r| r.device == "machine" && r.name == name).and_then(rate);
    let (copy, gemm) = (ceiling("copy"), ceiling("gemm"));
    println!(
        "\n{:<20} {:<8} {:>12} {:>16} {:>22}",
        "workload", "device", "median", "rate", "share of the ceiling"
    );
    for row in rows {
        let (Some(time), Some(rate)) = (median(row), rate(row)) else { continue };
        let (text, share) = match row.work {
            Work::Flops(_) => (format!("{:.1} GFLOP/s", rate * 1e-9), gemm.map(|g| (rate / g, "gemm"))),
            Work::Bytes(_) => (format!("{:.1} GB/s", rate * 1e-9), copy.map(|c| (rate / c, "copy"))),
            Work::Ops(_) => (format!("{:.2} us/op", 1e6 / rate), None),
        };
        let share = share.map_or(String::new(), |(s, of)| format!("{:.1} % of {of}", s * 100.0));
        println!("{:<20} {:<8} {:>9.3} ms {text:>16} {share:>22}", row.name, row.device, time * 1e3);
    }
}
