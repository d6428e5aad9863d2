//! Random programs: chains with broadcasts, views, reductions, products and writes in place, of small whole numbers,
//! so that every result is exact. Recorded whole and run at once, run op by op, on every device, and on a model of
//! a few lines: all must agree to the bit, whatever is fused, reused, freed or copied on the way.
//!
//! A failure prints the shortest program found that still fails. `WGRAD_FUZZ=n` runs n times as many.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wgrad::prelude::*;

use crate::common::{assert_close, devices};
use crate::model::{MOST_ELEMENTS, Model, broadcast};

/// Random numbers that mean something only with the tensors there are when the step is taken: so a program stays a
/// program when steps are left out.
#[derive(Clone, Copy)]
pub struct Step(pub [u32; 6]);

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) ^ (self.0 >> 45)) as u32
    }
}

/// One way to run a program.
struct Runner {
    name: String,
    device: Device,
    /// Whether every result is computed as soon as it is recorded.
    at_once: bool,
    tensors: Vec<Tensor>,
}

impl Runner {
    fn push(&mut self, t: Tensor) {
        if self.at_once {
            t.check().unwrap_or_else(|e| panic!("{}: {e}", self.name));
        }
        self.tensors.push(t);
    }
}

struct World {
    models: Vec<Model>,
    runners: Vec<Runner>,
    log: Vec<String>,
    /// Numbers beyond this are reined in, so that sums of their products stay exact.
    largest: f64,
}

const MOST: usize = 14;

impl World {
    fn new(runners: Vec<Runner>, random: &mut Random, large: bool) -> World {
        let mut world =
            World { models: vec![], runners, log: vec![], largest: if large { 90.0 } else { 3000.0 } };
        let small: [&[usize]; 8] = [&[3], &[2, 3], &[4, 1], &[2, 3, 4], &[], &[1, 4], &[5, 3], &[4, 4]];
        let tall: [&[usize]; 8] =
            [&[1030], &[36, 130], &[67, 33], &[17, 5, 33], &[64], &[1, 260], &[130, 64], &[3, 64, 36]];
        let shapes = if large { tall } else { small };
        for i in 0..4 {
            let shape = shapes[random.next() as usize % shapes.len()];
            let dtype = [F32, F32, I32][i % 3];
            let n = crate::model::numel(shape);
            let values: Vec<f64> = (0..n).map(|_| f64::from(random.next() % 9) - 4.0).collect();
            world.log.push(format!("t{i} = {dtype} {shape:?} {values:?}"));
            for r in &mut world.runners {
                let t = options().device(&r.device).dtype(dtype).from_slice(&values, shape);
                r.push(t);
            }
            world.models.push(Model::new(shape, dtype, values));
        }
        world
    }

    /// The result of an op on both sides; reined in where numbers grow too large to be exact.
    fn put(&mut self, what: String, model: Model, f: impl Fn(&[Tensor]) -> Tensor) {
        self.log.push(format!("t{} = {what} -> {} {:?}", self.models.len(), model.dtype, model.shape));
        let wild = model.largest() > self.largest;
        let model = if wild { model.map(model.dtype, |v| v.clamp(-9.0, 9.0)) } else { model };
        for r in &mut self.runners {
            let out = f(&r.tensors);
            r.push(if wild { out.clamp(-9, 9) } else { out });
        }
        if wild {
            self.log.push("     .clamp(-9, 9)".into());
        }
        self.models.push(model);
    }

    fn view(&mut self, what: String, model: Model, f: impl Fn(&[Tensor]) -> Tensor) {
        self.log.push(format!("t{} = {what} -> view {:?}", self.models.len(), model.shape));
        for r in &mut self.runners {
            let out = f(&r.tensors);
            r.push(out);
        }
        self.models.push(model);
    }

    /// A write into tensor `a`: everything that shares its storage sees it.
    fn write(&mut self, what: String, a: usize, model: Model, f: impl Fn(&[Tensor]) -> Tensor) {
        self.log.push(what);
        for r in &mut self.runners {
            let out = f(&r.tensors);
            assert!(out.error().is_none(), "{}: {:?}", r.name, out.error());
            if r.at_once {
                out.check().unwrap_or_else(|e| panic!("{}: {e}", r.name));
            }
        }
        self.models[a].write(&model);
    }

    fn take(&mut self, Step([kind, a, b, c, d, e]): Step) {
        if self.models.len() >= MOST {
            // Some go, so that their memory is free for others; with them what makes values worth storing.
            let i = a as usize % self.models.len();
            self.log.push(format!("drop t{i}; those behind it move up"));
            self.models.remove(i);
            self.runners.iter_mut().for_each(|r| drop(r.tensors.remove(i)));
        }
        let n = self.models.len();
        let (i, j) = (a as usize % n, b as usize % n);
        let (x, y) = (self.models[i].clone(), self.models[j].clone());
        let rank = x.shape.len();
        let c = c as usize;
        let dim = if rank > 0 { c % rank } else { 0 };
        let number = d as i64 % 7 - 3;
        // Bools count as integers in arithmetic.
        let numeric = |t: DType| if t == Bool { I32 } else { t };
        let both = numeric(x.dtype.promote(y.dtype));
        let as_is = |t: &Tensor| if t.dtype() == Bool { t.to(I32) } else { t.clone() };
        match kind % 32 {
            0..=4 => {
                type Both = (&'static str, fn(f64, f64) -> f64, fn(&Tensor, &Tensor) -> Tensor);
                let ops: [Both; 5] = [
                    ("+", |a, b| a + b, |a, b| a + b),
                    ("-", |a, b| a - b, |a, b| a - b),
                    ("*", |a, b| a * b, |a, b| a * b),
                    ("max", f64::max, |a, b| a.maximum(b)),
                    ("min", f64::min, |a, b| a.minimum(b)),
                ];
                let (name, f, g) = ops[kind as usize % 5];
                if let Some(model) = x.zip(&y, both, f) {
                    self.put(format!("t{i} {name} t{j}"), model, move |t| g(&as_is(&t[i]), &as_is(&t[j])));
                }
            }
            5..=8 => {
                type One = (&'static str, fn(f64) -> f64, fn(&Tensor) -> Tensor);
                let ops: [One; 4] = [
                    ("neg", |a| 0.0 - a, |a| a.neg()),
                    ("abs", f64::abs, |a| a.abs()),
                    ("relu", |a| a.max(0.0), |a| a.relu()),
                    ("clamp(-2, 3)", |a| a.clamp(-2.0, 3.0), |a| a.clamp(-2, 3)),
                ];
                let (name, f, g) = ops[kind as usize % 4];
                self.put(format!("{name} t{i}"), x.map(numeric(x.dtype), f), move |t| g(&as_is(&t[i])));
            }
            9 => self.put(
                format!("t{i} * {number}"),
                x.map(numeric(x.dtype), |v| v * number as f64),
                move |t| as_is(&t[i]) * number,
            ),
            10 => {
                if let Some(model) = x.zip(&y, Bool, |a, b| f64::from(u8::from(a > b))) {
                    self.put(format!("t{i} > t{j}"), model, move |t| t[i].gt(&t[j]));
                }
            }
            11 => {
                let mask = x.map(Bool, |v| f64::from(u8::from(v >= 1.0)));
                let numbers = numeric(y.dtype);
                let fits = broadcast(&x.shape, &y.shape).is_some();
                if let (Some(shape), true) = (broadcast(&x.shape, &y.shape), fits) {
                    let (m, v) = (mask.expand(&shape), y.expand(&shape));
                    let model = m.zip(&v, numbers, |m, v| if m != 0.0 { v } else { number as f64 });
                    let Some(model) = model else { return };
                    self.put(format!("where(t{i} >= 1, t{j}, {number})"), model, move |t| {
                        as_is(&t[j]).where_(&t[i].ge(1), number)
                    });
                }
            }
            12 => {
                let to = [F32, I32, Bool][c % 3];
                let model = x.map(to, |v| if to == Bool { f64::from(u8::from(v != 0.0)) } else { v });
                self.put(format!("t{i}.to({to})"), model, move |t| t[i].to(to).clone_data());
            }
            13 if rank > 1 => {
                let other = d as usize % rank;
                self.view(format!("t{i}.transpose({dim}, {other})"), x.transpose(dim, other), move |t| {
                    t[i].transpose(dim as i64, other as i64)
                });
            }
            14 | 15 if rank > 0 && x.shape[dim] > 1 => {
                let size = x.shape[dim];
                let start = d as usize % size;
                let step = 1 + e as usize % 2;
                let len = (size - start).div_ceil(step);
                self.view(
                    format!("t{i}.slice({dim}, {start}.., {step})"),
                    x.slice(dim, start, len, step),
                    move |t| t[i].slice(dim as i64, start as i64, size as i64, step as i64),
                );
            }
            16 if rank > 0 => {
                let at = d as usize % x.shape[dim];
                self.view(format!("t{i}.select({dim}, {at})"), x.select(dim, at), move |t| {
                    t[i].select(dim as i64, at as i64)
                });
            }
            17 if rank < 4 => {
                let d = c % (rank + 1);
                self.view(format!("t{i}.unsqueeze({d})"), x.unsqueeze(d), move |t| t[i].unsqueeze(d as i64));
            }
            18 if x.values().len() > 1 => {
                let all = x.values().len();
                let rows = (1..=all).filter(|r| all.is_multiple_of(*r)).nth(c % 2 + 1).unwrap_or(1);
                let shape = if d % 3 == 0 { vec![all] } else { vec![rows, all / rows] };
                // Whether it is a view is for the strides to say; that all agree is checked.
                let tensor = &self.runners[0].tensors[i];
                let out = tensor.reshape(&shape[..]);
                let mut model = Model::new(&shape, x.dtype, x.values());
                if out.shares_storage(tensor) {
                    model.storage = x.storage.clone();
                    model.strides = out.strides().into();
                    model.offset = out.storage_offset();
                }
                drop(out);
                self.view(format!("t{i}.reshape({shape:?})"), model, move |t| t[i].reshape(&shape[..]));
            }
            19 if rank < 4 && x.values().len() < 1 << 16 => {
                let mut shape = x.shape.clone();
                match shape.iter().position(|&n| n == 1) {
                    Some(one) if d % 2 == 0 => shape[one] = 3,
                    _ => shape.insert(0, 2),
                }
                self.view(format!("t{i}.expand({shape:?})"), x.expand(&shape), move |t| {
                    t[i].expand(&shape[..])
                });
            }
            20 | 21 if rank > 0 => {
                let model = x.reduce(dim, numeric(x.dtype), |a, b| a + b);
                let keep = d % 2 == 0;
                let model = if keep { model } else { model.select(dim, 0) };
                self.put(format!("t{i}.sum({dim}, {keep})"), model, move |t| t[i].sum_dim(dim as i64, keep));
            }
            22 if rank > 0 => {
                let model = x.reduce(dim, numeric(x.dtype), f64::max).select(dim, 0);
                self.put(format!("t{i}.amax({dim})"), model, move |t| as_is(&t[i]).amax(dim as i64, false));
            }
            23 => {
                let model = Model::new(&[], numeric(x.dtype), vec![x.values().iter().sum()]);
                self.put(format!("t{i}.sum()"), model, move |t| t[i].sum());
            }
            24 => {
                let fits = y.shape.len() == rank
                    && rank > 0
                    && (0..rank).all(|k| k == dim || x.shape[k] == y.shape[k]);
                let (j, y) = if fits { (j, y) } else { (i, x.clone()) };
                if rank > 0 && x.shape[dim] < 140 && x.values().len() < 1 << 16 {
                    let model = x.cat(&y, dim, x.dtype.promote(y.dtype));
                    self.put(format!("cat(t{i}, t{j}, {dim})"), model, move |t| {
                        cat(&[&t[i], &t[j]], dim as i64)
                    });
                }
            }
            25 if rank == 2 => {
                let fits = y.shape.len() == 2 && y.shape[0] == x.shape[1];
                let (j, y, turn) = if fits { (j, y, false) } else { (i, x.transpose(0, 1), true) };
                if x.shape[0] * y.shape[1] > MOST_ELEMENTS {
                    return;
                }
                let model = x.matmul(&y, numeric(x.dtype.promote(y.dtype)));
                self.put(format!("t{i} @ t{j}{}", if turn { ".t()" } else { "" }), model, move |t| {
                    let (a, b) = (as_is(&t[i]), as_is(&t[j]));
                    a.matmul(&if turn { b.t() } else { b })
                });
            }
            26 if rank > 0 && x.dtype != Bool => {
                let index: Vec<usize> =
                    [c, d as usize, e as usize].iter().map(|v| v % x.shape[dim]).collect();
                let model = x.index_select(dim, &index);
                let index: Vec<i32> = index.into_iter().map(|v| v as i32).collect();
                self.put(format!("t{i}.index_select({dim}, {index:?})"), model, move |t| {
                    let index = options().device(t[i].device()).tensor(&index);
                    t[i].index_select(dim as i64, &index)
                });
            }
            27 | 28 if !x.overlaps() => {
                // What is written must not depend on the order of writing, and must fit.
                let fits = broadcast(&x.shape, &y.shape).is_some_and(|s| s == x.shape);
                let allowed = x.dtype != Bool && y.dtype <= x.dtype;
                let small = x.largest() + y.largest() < self.largest;
                match c % 4 {
                    0 if fits && allowed && small => {
                        let Some(model) = x.zip(&y, x.dtype, |a, b| a + b) else { return };
                        self.write(format!("t{i} += t{j}"), i, model, move |t| t[i].add_(as_is(&t[j])));
                    }
                    1 if fits => {
                        let model = y.expand(&x.shape).map(y.dtype, |v| v);
                        self.write(format!("t{i}.copy_(t{j})"), i, model, move |t| t[i].copy_(&t[j]));
                    }
                    2 if x.dtype != Bool && x.largest() < self.largest / 3.0 => {
                        let model = x.map(x.dtype, |v| v * number as f64);
                        self.write(format!("t{i} *= {number}"), i, model, move |t| t[i].mul_(number));
                    }
                    _ => {
                        let model = x.map(x.dtype, |_| number as f64);
                        self.write(format!("t{i}.fill_({number})"), i, model, move |t| t[i].fill_(number));
                    }
                }
            }
            29 => {
                self.log.push(format!("drop t{i}; those behind it move up"));
                if n > 2 {
                    self.models.remove(i);
                    self.runners.iter_mut().for_each(|r| drop(r.tensors.remove(i)));
                }
            }
            30 => {
                self.log.push(format!("read t{i}"));
                self.compare(i);
            }
            31 if c.is_multiple_of(2) => {
                self.log.push("flush".into());
                self.runners.iter().for_each(|r| r.device.flush());
            }
            _ => self.put(format!("t{i}.clone()"), x.map(x.dtype, |v| v), move |t| t[i].clone_data()),
        }
    }

    fn compare(&self, i: usize) {
        let model = &self.models[i];
        let want = model.values();
        for r in &self.runners {
            let t = &r.tensors[i];
            assert_eq!((t.shape(), t.dtype()), (&model.shape[..], model.dtype), "t{i}, {}", r.name);
            let got = t.to_f64_vec().unwrap_or_else(|e| panic!("t{i}, {}: {e}", r.name));
            assert_eq!(got, want, "t{i}, {}", r.name);
        }
    }
}

fn runners(device: &Device) -> Vec<Runner> {
    let runner = |at_once: bool| Runner {
        name: format!("{device} {}", if at_once { "op by op" } else { "at once" }),
        device: device.clone(),
        at_once,
        tensors: vec![],
    };
    vec![runner(false), runner(true)]
}

/// What went wrong and what led there; `None` if all went well.
fn run(device: &Device, seed: u64, steps: &[Step]) -> Option<String> {
    let mut world = World::new(runners(device), &mut Random(seed), seed.is_multiple_of(4));
    let ran = catch_unwind(AssertUnwindSafe(|| {
        steps.iter().for_each(|&s| world.take(s));
        // The last first: it needs the most, and what it passes is kept for the others.
        (0..world.models.len()).rev().for_each(|i| world.compare(i));
    }));
    let why = ran.err()?;
    let why = why.downcast_ref::<String>().cloned().or(why.downcast_ref::<&str>().map(|s| s.to_string()));
    Some(format!("{}\n=> {}", world.log.join("\n"), why.unwrap_or_default()))
}

/// Leaves out steps for as long as it still fails.
fn shrink(device: &Device, seed: u64, mut steps: Vec<Step>, mut failure: String) -> String {
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at + size <= steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..at + size);
            match run(device, seed, &fewer) {
                Some(why) => (steps, failure) = (fewer, why),
                None => at += size,
            }
        }
        size /= 2;
    }
    failure
}

fn programs(device: &Device, count: u64, length: usize) {
    let times: u64 = std::env::var("WGRAD_FUZZ").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    let one: Option<u64> = std::env::var("WGRAD_SEED").ok().and_then(|v| v.parse().ok());
    for seed in one.map_or(1..count * times + 1, |s| s..s + 1) {
        let mut random = Random(seed << 8 | 0x5eed);
        let steps: Vec<Step> = (0..length).map(|_| Step(std::array::from_fn(|_| random.next()))).collect();
        if let Some(failure) = run(device, seed, &steps) {
            panic!("program {seed} on {device}:\n{}", shrink(device, seed, steps, failure));
        }
    }
}

#[test]
fn random_programs_on_the_cpu() {
    programs(&devices()[0], 500, 30);
}

#[test]
fn random_long_programs_on_the_cpu() {
    programs(&devices()[0], 30, 200);
}

#[test]
fn random_programs_on_the_gpu() {
    for device in &devices()[1..] {
        programs(device, 40, 30);
    }
}

/// Drivers fold `x - x` to zero and `(x + y) - x` to `y`, unless they are kept from it.
#[test]
fn what_cancels_is_computed_all_the_same() {
    for device in devices() {
        let nan = f64::NAN;
        let x = options().device(&device).tensor([f32::INFINITY, f32::NAN, 1.0, 1e8, -2.0]);
        let y = options().device(&device).ones(5);
        let zero = [nan, nan, 0.0, 0.0, 0.0];
        let one = [nan, nan, 1.0, 0.0, 1.0];
        let cases: [(&str, Tensor, [f64; 5]); 8] = [
            ("x - x", &x - &x, zero),
            ("x + -x", &x + x.neg(), zero),
            ("-x + x", x.neg() + &x, zero),
            ("exp x - exp x", x.exp() - x.exp(), [nan, nan, 0.0, nan, 0.0]),
            ("(x + y) - x", (&x + &y) - &x, one),
            ("(y + x) - x", (&y + &x) - &x, one),
            ("-x + (x + y)", x.neg() + (&x + &y), one),
            ("(x - y) - (x - y)", (&x - &y) - (&x - &y), zero),
        ];
        for (what, got, expected) in cases {
            assert_close(&got, &expected, 0.0, &format!("{what} on {device}"));
        }
    }
}
