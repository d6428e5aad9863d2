//! `cargo bench`: the common suite on every backend, beside what the machine can do at all: a copy's bandwidth and
//! `gemm`'s rate, measured in the same run. Ends with a table of rates and of multiples of the floor: the time that the
//! fewest bytes or the fewest operations take at those ceilings.
//!
//! `cargo bench -- matmul` runs some; `WGRAD_BENCH_DEVICES=cpu,gpu` chooses devices.

mod workloads;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use rayon::prelude::*;
use wgrad::prelude::*;
use workloads::Cost;

struct Row {
    name: String,
    device: &'static str,
    cost: Cost,
    /// In each measured call.
    units: usize,
    /// A number that says whether the results are right: the same on every device.
    check: Option<f64>,
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
        suite(&mut criterion, &device, &mut rows);
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
    let mut add = |name: &str, flops: f64, bytes: f64| {
        rows.push(Row {
            name: name.into(),
            device: "machine",
            cost: Cost { flops, bytes },
            units: 1,
            check: None,
        });
    };
    // Larger than any cache, so that it is memory that is measured.
    let n = 64 * MI;
    let (src, mut dst) = (vec![1f32; n], vec![0f32; n]);
    add("copy", 0.0, 8.0 * n as f64);
    c.bench_function("machine/copy", |b| {
        b.iter(|| {
            dst.par_chunks_mut(MI).zip(src.par_chunks(MI)).for_each(|(d, s)| d.copy_from_slice(s));
            black_box(&mut dst);
        });
    });
    let n = 1024;
    let (a, b_, mut out) = (vec![1f32; n * n], vec![1f32; n * n], vec![0f32; n * n]);
    add("gemm", 2.0 * (n * n * n) as f64, 0.0);
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

fn suite(c: &mut Criterion, device: &Device, rows: &mut Vec<Row>) {
    let label = if device.is_cpu() { "cpu" } else { "gpu" };
    for named in workloads::all() {
        let mut made = None;
        c.bench_with_input(BenchmarkId::new(label, &named.name), &(), |b, ()| {
            // Made here, so that what is not asked for costs nothing.
            let workload =
                made.get_or_insert_with(|| (named.make)(device).expect("the workload can be made"));
            b.iter(|| (workload.run)().expect("the workload runs"));
        });
        if let Some(mut workload) = made {
            let facts = (workload.check)().expect("the workload runs");
            let check = facts.iter().find(|(name, _)| ["chk", "loss5"].contains(name)).map(|f| f.1);
            let (cost, units) = (workload.cost, workload.units);
            rows.push(Row { name: named.name, device: label, cost, units, check });
        }
    }
    device.empty_cache();
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
    let seconds = |row: &Row| Some(median(row)? / row.units as f64);
    let machine = |name: &str| rows.iter().find(|r| r.device == "machine" && r.name == name);
    let copy = machine("copy").and_then(|r| Some(r.cost.bytes / seconds(r)?));
    let gemm = machine("gemm").and_then(|r| Some(r.cost.flops / seconds(r)?));
    println!(
        "\n{:<24} {:<8} {:>12} {:>16} {:>12} {:>12} {:>10}",
        "workload", "device", "median", "GFLOP/s", "GB/s", "of the floor", "result"
    );
    for row in rows {
        let Some(time) = seconds(row) else { continue };
        let rate = |amount: f64, ceiling: Option<f64>| match (amount, ceiling) {
            (0.0, _) => String::new(),
            (_, None) => format!("{:.1}", amount / time * 1e-9),
            (_, Some(c)) => format!("{:.1} ({:.0} %)", amount / time * 1e-9, 100.0 * amount / time / c),
        };
        // A training step is judged by its operations as well as by its bytes: the slower counts.
        let floor = gemm.zip(copy).map(|(g, c)| (row.cost.flops / g).max(row.cost.bytes / c));
        let times = floor.filter(|f| *f > 0.0).map_or(String::new(), |f| format!("{:.2}x", time / f));
        println!(
            "{:<24} {:<8} {:>9.4} ms {:>16} {:>12} {times:>12} {:>10}",
            row.name,
            row.device,
            time * 1e3,
            rate(row.cost.flops, gemm),
            rate(row.cost.bytes, copy),
            row.check.map_or(String::new(), |v| format!("{v:.5}")),
        );
    }
}
