//! Figures of the CPU backend: `cargo run --release --example cpu_figures`, with part of a name to run only those.
//! The best of many runs is printed.

use smallvec::SmallVec;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;
use wgrad::backend::cpu::{self, gemm, math};
use wgrad::block;
use wgrad::graph::dtype::{DType, F32, Scalar};
use wgrad::graph::kernel::{Binding, Body, Command, Kernel, Recording, Reduce, ReduceOp};
use wgrad::graph::layout::{Dims, Layout};
use wgrad::graph::program::{Access, BlockFn, Inst, MapOp, Program, Reg, Store};

type Choose = fn(DType, DType) -> Option<BlockFn>;
const fn op(name: &'static str, arity: usize, cpu: Choose) -> MapOp {
    MapOp { name, arity, mask_first: false, wgsl: "", cpu, cost: 1 }
}
static ADD: MapOp = op("add", 2, block!(num | a, b | a.add(b)));
static SUB: MapOp = op("sub", 2, block!(num | a, b | a.sub(b)));
static MUL: MapOp = op("mul", 2, block!(num | a, b | a.mul(b)));
static DIV: MapOp = op("div", 2, block!(num | a, b | a.div(b)));
static POW: MapOp = op("pow", 2, block!(num | a, b | a.pow(b)));
static SQRT: MapOp = op("sqrt", 1, block!(float | a | a.sqrt()));
static EXP: MapOp = op("exp", 1, block!(float | a | a.exp()));
static EXPM1: MapOp = op("expm1", 1, block!(float | a | a.exp_m1()));
static LN: MapOp = op("ln", 1, block!(float | a | a.ln()));
static LN1P: MapOp = op("ln_1p", 1, block!(float | a | a.ln_1p()));
static TANH: MapOp = op("tanh", 1, block!(float | a | a.tanh()));
static SIGMOID: MapOp = op("sigmoid", 1, block!(float | a | a.sigmoid()));
static ERF: MapOp = op("erf", 1, block!(float | a | a.erf()));
static SIN: MapOp = op("sin", 1, math::sin::kernel);

fn ap(op: &'static MapOp, args: &[Reg]) -> Inst {
    Inst::Op { op, operand: F32, result: F32, args: SmallVec::from_slice(args) }
}
fn acc(binding: u16, layout: Layout) -> Access {
    Access { binding, dtype: F32, layout }
}

fn time(name: &str, filter: &str, body: Body, sizes: &[usize], scalars: &[Scalar], bytes: usize) {
    if !name.contains(filter) {
        return;
    }
    let device = cpu::device();
    let kernel = Kernel {
        body,
        bindings: vec![Binding { dtype: F32, written: true }; sizes.len()],
        scalars: vec![F32; scalars.len()],
        label: String::new(),
        caller: Location::caller(),
    };
    let recording = Recording {
        commands: vec![Command::Dispatch {
            kernel: Arc::new(kernel),
            buffers: (0..sizes.len() as u32).collect(),
            scalars: 0,
        }],
    };
    let compiled = device.compile(&recording).unwrap();
    let buffers: Vec<_> = sizes
        .iter()
        .map(|&n| {
            let v: Vec<f32> = (0..n).map(|i| (i % 1000) as f32 * 0.002 - 0.9).collect();
            device.upload(bytemuck::cast_slice(&v)).unwrap()
        })
        .collect();
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 5 || begin.elapsed().as_millis() < 300 {
        let n = if bytes < 1 << 16 { 1000 } else { 1 };
        let t = Instant::now();
        for _ in 0..n {
            device.run(&recording, &compiled, &buffers, scalars).unwrap();
        }
        best = best.min(t.elapsed().as_secs_f64() / n as f64);
        runs += 1;
    }
    println!("{name:34} {:10.4} ms  {:8.2} GB/s", best * 1e3, bytes as f64 / best / 1e9);
}

fn map(n: usize, loads: &[Layout], insts: Vec<Inst>, shape: &[usize]) -> Body {
    let value = insts.len() as Reg - 1;
    let p = Program {
        shape: Dims::from_slice(shape),
        insts,
        loads: loads.iter().enumerate().map(|(i, l)| acc(i as u16, l.clone())).collect(),
        indices: vec![],
        stores: vec![Store { value, to: acc(loads.len() as u16, Layout::contiguous(shape)) }],
    };
    assert_eq!(p.numel(), n);
    Body::Map(vec![p])
}

fn reduce(op: ReduceOp, layout: Layout, kept: usize) -> Body {
    let out = Dims::from_slice(&layout.shape[..kept]);
    let pre = Program {
        shape: layout.shape.clone(),
        insts: vec![Inst::Load(0)],
        loads: vec![acc(0, layout)],
        ..Program::default()
    };
    let post = Program {
        shape: out.clone(),
        insts: vec![Inst::Anchor(F32)],
        stores: vec![Store { value: 0, to: acc(1, Layout::contiguous(&out)) }],
        ..Program::default()
    };
    Body::Reduce(Reduce { op, dtype: F32, pre, value: 0, kept, post })
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let f = filter.as_str();
    let n = 4 << 20;
    if "memcpy".contains(f) {
        let a = vec![1u8; n * 4];
        let mut b = vec![0u8; n * 4];
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let t = Instant::now();
            b.copy_from_slice(&a);
            best = best.min(t.elapsed().as_secs_f64());
            std::hint::black_box(&b);
        }
        println!(
            "memcpy 4M f32, 1 thread             {:10.4} ms  {:8.2} GB/s",
            best * 1e3,
            2.0 * n as f64 * 4.0 / best / 1e9
        );
    }
    if "memcpy".contains(f) {
        let a = vec![1u8; n * 64];
        let mut b = vec![0u8; n * 64];
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let t = Instant::now();
            b.copy_from_slice(&a);
            best = best.min(t.elapsed().as_secs_f64());
            std::hint::black_box(&b);
        }
        println!(
            "memcpy 64M f32, 1 thread            {:10.4} ms  {:8.2} GB/s",
            best * 1e3,
            2.0 * n as f64 * 64.0 / best / 1e9
        );
    }
    time(
        "copy 64M",
        f,
        map(n * 16, &[Layout::contiguous(&[n * 16])], vec![Inst::Load(0)], &[n * 16]),
        &[n * 16; 2],
        &[],
        n * 128,
    );
    let c = Layout::contiguous(&[n]);
    let l = |i| Inst::Load(i);
    time("copy 4M", f, map(n, &[c.clone()], vec![l(0)], &[n]), &[n, n], &[], n * 8);
    time(
        "add 4M",
        f,
        map(n, &[c.clone(), c.clone()], vec![l(0), l(1), ap(&ADD, &[0, 1])], &[n]),
        &[n, n, n],
        &[],
        n * 12,
    );
    // tanh(a*b+c)*sigmoid(a)-0.5*b
    let chain = |n: usize| {
        let c = Layout::contiguous(&[n]);
        map(
            n,
            &[c.clone(), c.clone(), c.clone()],
            vec![
                l(0),
                l(1),
                l(2),
                ap(&MUL, &[0, 1]),
                ap(&ADD, &[3, 2]),
                ap(&TANH, &[4]),
                ap(&SIGMOID, &[0]),
                ap(&MUL, &[5, 6]),
                Inst::Scalar { slot: 0, dtype: F32 },
                ap(&MUL, &[8, 1]),
                ap(&SUB, &[7, 9]),
            ],
            &[n],
        )
    };
    time("chain 4M", f, chain(n), &[n; 4], &[Scalar::Float(0.5)], n * 16);
    time("chain 64k", f, chain(1 << 16), &[1 << 16; 4], &[Scalar::Float(0.5)], 16 << 16);
    time("chain 1 (8 insts)", f, chain(1), &[1; 4], &[Scalar::Float(0.5)], 16);
    for len in [1usize, 100] {
        let c = Layout::contiguous(&[len]);
        time(
            &format!("add {len}"),
            f,
            map(len, &[c.clone(), c.clone()], vec![l(0), l(1), ap(&ADD, &[0, 1])], &[len]),
            &[len; 3],
            &[],
            12 * len,
        );
        let mut insts = vec![l(0), l(1)];
        for i in 0..100 {
            insts.push(ap(&ADD, &[i + 1, 0]));
        }
        time(
            &format!("100 adds of {len}"),
            f,
            map(len, &[c.clone(), c.clone()], insts, &[len]),
            &[len; 3],
            &[],
            12 * len,
        );
    }
    for (name, op) in [
        ("exp", &EXP),
        ("expm1", &EXPM1),
        ("ln", &LN),
        ("ln_1p", &LN1P),
        ("tanh", &TANH),
        ("sigmoid", &SIGMOID),
        ("erf", &ERF),
        ("sin", &SIN),
        ("sqrt", &SQRT),
        ("pow", &POW),
        ("div", &DIV),
    ] {
        if !format!("ns {name}").contains(f) {
            continue;
        }
        let run = (op.cpu)(F32, F32).unwrap();
        let a: Vec<f32> = (0..1024).map(|i| i as f32 * 0.01 - 3.0).collect();
        let mut out = vec![0f32; 1024];
        let mut best = f64::INFINITY;
        for _ in 0..50 {
            let t = Instant::now();
            for _ in 0..100 {
                run(
                    bytemuck::cast_slice_mut(&mut out),
                    &[bytemuck::cast_slice(&a), bytemuck::cast_slice(&a)],
                );
                std::hint::black_box(&out);
            }
            best = best.min(t.elapsed().as_secs_f64() / 102400.0);
        }
        println!("ns {name:8} {:.3} ns/element/core", best * 1e9);
    }
    let rows = 4096;
    let cols = 1024;
    let m = Layout::contiguous(&[rows, cols]);
    time(
        "bias add [4096,1024]+[1024]",
        f,
        map(
            n,
            &[m.clone(), Layout::contiguous(&[cols]).expand(&[rows, cols]).unwrap()],
            vec![l(0), l(1), ap(&ADD, &[0, 1])],
            &[rows, cols],
        ),
        &[n, cols, n],
        &[],
        n * 8,
    );
    time(
        "scale rows [4096,1024]*[4096,1]",
        f,
        map(
            n,
            &[m.clone(), Layout::contiguous(&[rows, 1]).expand(&[rows, cols]).unwrap()],
            vec![l(0), l(1), ap(&MUL, &[0, 1])],
            &[rows, cols],
        ),
        &[n, rows, n],
        &[],
        n * 8,
    );
    let small = Layout::contiguous(&[n / 16, 16]);
    time(
        "bias add [256k,16]+[16]",
        f,
        map(
            n,
            &[small.clone(), Layout::contiguous(&[16]).expand(&[n / 16, 16]).unwrap()],
            vec![l(0), l(1), ap(&ADD, &[0, 1])],
            &[n / 16, 16],
        ),
        &[n, 16, n],
        &[],
        n * 8,
    );
    time(
        "scale rows [256k,16]*[256k,1]",
        f,
        map(
            n,
            &[small.clone(), Layout::contiguous(&[n / 16, 1]).expand(&[n / 16, 16]).unwrap()],
            vec![l(0), l(1), ap(&MUL, &[0, 1])],
            &[n / 16, 16],
        ),
        &[n, n / 16, n],
        &[],
        n * 8,
    );
    time(
        "transpose 2048x2048",
        f,
        map(n, &[Layout::contiguous(&[2048, 2048]).permute(&[1, 0])], vec![l(0)], &[2048, 2048]),
        &[n, n],
        &[],
        n * 8,
    );
    time(
        "transpose 4000x1000",
        f,
        map(4000000, &[Layout::contiguous(&[1000, 4000]).permute(&[1, 0])], vec![l(0)], &[4000, 1000]),
        &[n, n],
        &[],
        n * 8,
    );
    time(
        "x + x.t() 2048",
        f,
        map(
            n,
            &[Layout::contiguous(&[2048, 2048]), Layout::contiguous(&[2048, 2048]).permute(&[1, 0])],
            vec![l(0), l(1), ap(&ADD, &[0, 1])],
            &[2048, 2048],
        ),
        &[n, n, n],
        &[],
        n * 12,
    );
    time(
        "slice step 2",
        f,
        map(n / 2, &[c.slice(0, 0, n / 2, 2)], vec![l(0)], &[n / 2]),
        &[n, n],
        &[],
        n * 6,
    );
    let big = 16 << 20;
    time("sum 16M", f, reduce(ReduceOp::Sum, Layout::contiguous(&[big]), 0), &[big, 1], &[], big * 4);
    time("max 16M", f, reduce(ReduceOp::Max, Layout::contiguous(&[big]), 0), &[big, 1], &[], big * 4);
    for (r, k) in [(4096, 1024), (65536, 64), (419430, 10), (1048576, 4), (64, 65536), (100, 10)] {
        let x = Layout::contiguous(&[r, k]);
        time(
            &format!("sum rows [{r},{k}]"),
            f,
            reduce(ReduceOp::Sum, x.clone(), 1),
            &[r * k, r],
            &[],
            r * k * 4,
        );
        time(
            &format!("sum columns [{r},{k}]"),
            f,
            reduce(ReduceOp::Sum, x.permute(&[1, 0]), 1),
            &[r * k, k],
            &[],
            r * k * 4,
        );
    }
    let x = Layout::contiguous(&[64, 64, 1024]).permute(&[1, 0, 2]);
    time("sum [64,64,1024] over 0,2", f, reduce(ReduceOp::Sum, x, 1), &[n, 64], &[], n * 4);
    for (m, n, k) in [
        (512, 512, 512),
        (2048, 2048, 2048),
        (1, 4096, 4096),
        (4096, 1, 4096),
        (64, 64, 64),
        (8, 8, 8),
        (64, 10, 784),
        (64, 784, 10),
    ] {
        for (name, bs) in [("ab", [n, 1]), ("ab'", [1, k])] {
            let name = format!("gemm {m}x{n}x{k} {name}");
            if !name.contains(f) {
                continue;
            }
            let (a, b, mut out) = (vec![1f32; m * k], vec![1f32; k * n], vec![0f32; m * n]);
            let mut best = f64::INFINITY;
            let reps = (20_000_000 / (m * n * k)).clamp(1, 1000);
            for _ in 0..10 {
                let t = Instant::now();
                for _ in 0..reps {
                    gemm::matmul(m, n, k, &a, [k, 1], &b, bs, &mut out);
                }
                best = best.min(t.elapsed().as_secs_f64() / reps as f64);
            }
            println!(
                "{name:34} {:10.4} ms  {:8.2} GFLOP/s",
                best * 1e3,
                2.0 * (m * n * k) as f64 / best / 1e9
            );
        }
    }
}
