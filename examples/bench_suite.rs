//! Times the common suite of workloads on one device and prints a JSON line for each, in the form that the suite's
//! other libraries print: `{"peer","workload","median_ms","min_ms","n","extra":{..}}`.
//!
//!     cargo run --release --example bench_suite -- --device gpu --only 'matmul_*,mlp_step'

#[path = "../benches/workloads/mod.rs"]
mod workloads;

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use wgrad::prelude::*;
use workloads::Workload;

/// Times the common suite of workloads.
#[derive(Parser)]
struct Args {
    /// cpu, gpu, lavapipe, or part of an adapter's name
    #[arg(long, default_value = "gpu")]
    device: String,
    /// The name in the output
    #[arg(long, default_value = "wgrad")]
    peer: String,
    /// Names of workloads, or beginnings of names followed by a *
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Times to take at least
    #[arg(long, default_value_t = 10)]
    min_n: usize,
    /// Seconds after which three times are enough
    #[arg(long, default_value_t = 8.0)]
    budget_s: f64,
    /// Seconds after which the warm-up ends whether or not times have settled
    #[arg(long, default_value_t = 40.0)]
    warm_s: f64,
}

/// More times than this tell nothing new.
const MOST: usize = 2000;

fn main() -> Result<()> {
    let args = Args::parse();
    let device = device(match &*args.device {
        // Its adapter is named after the compiler that it uses.
        "lavapipe" => "llvmpipe",
        name => name,
    })?;
    let wanted = |name: &str| {
        let fits = |only: &String| match only.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == only,
        };
        args.only.is_empty() || args.only.iter().any(fits)
    };
    for named in workloads::all() {
        if wanted(&named.name) {
            let workload = (named.make)(&device).with_context(|| named.name.clone())?;
            let line = measure(&args, &named.name, workload).with_context(|| named.name.clone())?;
            let mut out = std::io::stdout();
            writeln!(out, "{line}")?;
            out.flush()?;
            if !out.is_terminal() {
                // Whoever watches sees something too.
                eprintln!("{:<22} {:>10.3} ms", named.name, line["median_ms"].as_f64().unwrap_or(f64::NAN));
            }
        }
    }
    Ok(())
}

fn measure(args: &Args, name: &str, mut workload: Workload) -> Result<serde_json::Value> {
    let mut time = || -> Result<f64> {
        let start = Instant::now();
        (workload.run)()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let first = time()?;
    let start = Instant::now();
    let mut warm = vec![];
    loop {
        warm.push(time()?);
        let spent = start.elapsed().as_secs_f64();
        let last = &warm[warm.len().saturating_sub(3)..];
        let (least, most) = last.iter().fold((f64::MAX, 0f64), |(l, m), &t| (l.min(t), m.max(t)));
        let settled = warm.len() >= 5 && spent > 0.3 && most < 1.5 * least;
        if settled || (spent > args.warm_s && warm.len() >= 2) {
            break;
        }
    }
    let warm_s = first + start.elapsed().as_secs_f64();

    let (own, all, start) = (own_cpu_s(), machine_cpu_s(), Instant::now());
    let mut times = vec![];
    loop {
        times.push(time()?);
        let spent = start.elapsed().as_secs_f64();
        let enough = times.len() >= args.min_n && spent >= 1.0;
        if enough || (spent > args.budget_s && times.len() >= 3) || times.len() >= MOST {
            break;
        }
    }
    let wall = start.elapsed().as_secs_f64();
    let cores = own_cpu_s().zip(own).map(|(now, then)| (now - then) / wall);
    let others = machine_cpu_s().zip(all).map(|(now, then)| (now - then) / wall);

    times.sort_by(f64::total_cmp);
    let n = times.len();
    let unit = 1e3 / workload.units as f64;
    let median = (times[(n - 1) / 2] + times[n / 2]) / 2.0 * unit;
    let mut extra = serde_json::Map::new();
    let mut add = |name: &str, value: f64| extra.insert(name.into(), json!(value));
    add("first_ms", first * unit);
    add("warm_n", warm.len() as f64 + 1.0);
    add("warm_s", warm_s);
    add("max_ms", times[n - 1] * unit);
    if let Some((cores, all)) = cores.zip(others) {
        add("cores", cores);
        add("other", (all - cores).max(0.0));
    }
    if workload.cost.flops > 0.0 {
        add("gflops", workload.cost.flops / median / 1e6);
    } else if workload.cost.bytes > 0.0 {
        add("gbs", workload.cost.bytes / median / 1e6);
    } else {
        add("us_per_op", median * 1e3 / 2.0);
    }
    if let Some(peak) = peak_memory_mib() {
        add("hwm_mib", peak);
    }
    for (name, value) in (workload.check)()? {
        add(name, value);
    }
    Ok(json!({
        "peer": args.peer, "workload": name, "median_ms": median, "min_ms": times[0] * unit, "n": n, "extra": extra,
    }))
}

/// The kernel counts CPU time in hundredths of a second.
const TICKS: f64 = 100.0;

/// Seconds of CPU time that this process has used (on Linux).
fn own_cpu_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name, in parentheses, may have spaces.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Seconds of CPU time that the whole machine has used, and that others took from it (on Linux).
fn machine_cpu_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|v| v.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7].iter().map(|&i| fields.get(i).copied()).sum::<Option<f64>>()?;
    Some(busy / TICKS)
}

/// The most memory that this process has had (on Linux).
fn peak_memory_mib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
