//! Random smooth programs with views, writes in place, reductions and products: their gradients against finite
//! differences, run at once and op by op, on the CPU and on the GPU.

use wgrad::autograd::{gradcheck, gradgradcheck};
use wgrad::prelude::*;

use crate::common::devices;
use crate::fusion::{Random, Step};

/// What the steps make of the inputs: one number. Every result is bounded, so that differences stay meaningful.
fn run(steps: &[Step], inputs: &[Tensor], at_once: bool, log: &mut Vec<String>) -> Tensor {
    let mut all: Vec<Tensor> = inputs.iter().map(|x| x * 1.0).collect();
    for &Step([kind, a, b, c, d, e]) in steps {
        if all.len() > 10 {
            all.remove(a as usize % all.len());
        }
        let n = all.len();
        let (i, j) = (a as usize % n, b as usize % n);
        let (x, y) = (&all[i], &all[j]);
        let rank = x.dim();
        let dim = if rank > 0 { c as usize % rank } else { 0 };
        let (along, size) = (dim as i64, x.size(dim as i64));
        let broadcasts = broadcast(x.shape(), y.shape());
        let index = |n: usize, m: usize| {
            let list: Vec<i32> =
                (0..n).map(|k| ((d as usize + k * (1 + e as usize % 3)) % m.max(1)) as i32).collect();
            options().device(x.device()).tensor(list)
        };
        let (name, out) = match kind % 34 {
            0 if broadcasts.is_some() => ("add", (x + y).tanh()),
            1 | 2 if broadcasts.is_some() => ("mul", x * y),
            3 if broadcasts.is_some() => ("div", x / (y * y + 1.0)),
            4 => ("tanh", x.tanh()),
            5 => ("sigmoid", x.sigmoid() * 2.0),
            6 => ("sin", x.sin()),
            7 => ("exp", (-(x * x)).exp()),
            8 if rank > 0 => ("softmax", x.softmax(along)),
            9 if rank > 0 => ("log_softmax", x.log_softmax(along) * 0.25),
            10 if rank > 0 => ("logsumexp", x.logsumexp(along, d % 2 == 0) * 0.5),
            11 if rank > 0 => ("mean", x.mean_dim(along, d % 2 == 0)),
            12 if rank > 0 => ("sum", x.sum_dim(along, d % 2 == 0).tanh()),
            13 if rank > 0 && size > 1 => ("var", x.var(along, 1.0, false).tanh()),
            14 if rank > 0 => ("prod", x.prod_dim(along, false).tanh()),
            15 if rank > 1 => ("transpose", x.transpose(along, d as i64 % rank as i64)),
            16 | 17 if size > 1 => {
                ("slice", x.slice(along, (d as usize % size) as i64, size as i64, 1 + i64::from(e % 2)))
            }
            18 if rank > 0 => ("select", x.select(along, (d as usize % size) as i64)),
            19 => ("reshape", x.reshape(-1)),
            20 if rank < 3 => ("unsqueeze", x.unsqueeze(d as i64 % (rank as i64 + 1))),
            21 if rank < 3 => {
                let mut shape = vec![2];
                shape.extend(x.shape());
                ("expand", x.expand(shape))
            }
            22 if rank > 0 && size < 5 => ("cat", cat(&[x, &x.sin()], along)),
            23 if rank == 2 => ("matmul", x.matmul(&x.t()).tanh()),
            24 if rank == 2 && y.dim() == 2 && x.size(1) == y.size(0) => ("matmul", x.matmul(y).tanh()),
            25 if rank > 0 => ("index_select", x.index_select(along, &index(3, size))),
            26 if rank == 1 => {
                ("scatter_add", x.scatter_add(0, &index(3, size), &x.new_ones(3).mul(x.sum())).tanh())
            }
            27 if rank == 2 => ("cross_entropy", x.cross_entropy(&index(x.size(0), x.size(1))) * 0.5),
            // Writes. A view that overlaps refuses, and leaves things as they are.
            28 if broadcasts.as_deref() == Some(x.shape()) => {
                x.mul_(y);
                log.push(format!("t{i} *= t{j}"));
                continue;
            }
            29 if broadcasts.as_deref() == Some(x.shape()) => {
                x.copy_(y);
                log.push(format!("t{i}.copy_(t{j})"));
                continue;
            }
            30 if rank > 0 => {
                x.select(along, (d as usize % size) as i64).fill_(0.5);
                log.push(format!("t{i}.select({dim}, {}).fill_(0.5)", d as usize % size));
                continue;
            }
            31 => {
                x.tanh_();
                log.push(format!("t{i}.tanh_()"));
                continue;
            }
            32 if rank > 0 => {
                x.slice(along, (d as usize % size) as i64, size as i64, 2).sigmoid_();
                log.push(format!("t{i}.slice({dim}, {}, .., 2).sigmoid_()", d as usize % size));
                continue;
            }
            _ => ("clone", x.clone_data()),
        };
        if out.numel() == 0 || out.numel() > 48 {
            continue;
        }
        log.push(format!("t{n} = {name} t{i} (t{j}, {dim}, {d}, {e}) -> {:?}", out.shape()));
        if at_once {
            out.check().unwrap();
        }
        all.push(out);
    }
    let one = &all[0].sum() * 0.0;
    all.iter().enumerate().fold(one, |sum, (k, t)| sum + t.mean() * (k as f64 * 0.3 + 0.5))
}

fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    crate::model::broadcast(a, b)
}

fn inputs(device: &Device, dtype: DType, random: &mut Random) -> Vec<Tensor> {
    let shapes: [&[usize]; 6] = [&[3], &[2, 2], &[2, 1], &[], &[1, 3], &[2, 3]];
    (0..2)
        .map(|_| {
            let shape = shapes[random.next() as usize % shapes.len()];
            let n: usize = shape.iter().product();
            let values: Vec<f64> = (0..n).map(|_| f64::from(random.next() % 1000) / 500.0 - 1.0).collect();
            options().device(device).dtype(dtype).requires_grad(true).from_slice(&values, shape)
        })
        .collect()
}

fn steps(random: &mut Random, n: usize) -> Vec<Step> {
    (0..n).map(|_| Step(std::array::from_fn(|_| random.next()))).collect()
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match read("WGRAD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..count * read("WGRAD_FUZZ").unwrap_or(1) + 1,
    }
}

#[test]
fn gradients_of_random_programs() {
    let device = &devices()[0];
    for seed in seeds(400) {
        let mut random = Random(seed << 9);
        let x = inputs(device, F64, &mut random);
        let steps = steps(&mut random, 4 + seed as usize % 12);
        let refs: Vec<&Tensor> = x.iter().collect();
        if let Err(error) = gradcheck(|x| run(&steps, x, false, &mut vec![]), &refs) {
            // The shortest beginning that is wrong.
            let n = (1..=steps.len())
                .find(|&n| gradcheck(|x| run(&steps[..n], x, false, &mut vec![]), &refs).is_err());
            let n = n.unwrap_or(steps.len());
            let mut log = vec![];
            run(&steps[..n], &x, false, &mut log);
            let shapes: Vec<_> = x.iter().map(|x| x.shape().to_vec()).collect();
            panic!("program {seed} of {shapes:?}:\n{}\n{error}", log.join("\n"));
        }
        if seed % 8 == 0 {
            let short = &steps[..steps.len().min(6)];
            gradgradcheck(|x| run(short, x, false, &mut vec![]), &refs)
                .unwrap_or_else(|error| panic!("program {seed}, its first 6 steps: {error}"));
        }
    }
}

#[test]
fn values_and_gradients_do_not_depend_on_how_a_program_is_run() {
    let devices = devices();
    for (k, device) in devices.iter().enumerate() {
        for seed in seeds(if k == 0 { 300 } else { 40 }) {
            let result = |device: &Device, at_once: bool| {
                let mut random = Random(seed << 9);
                let x = inputs(device, F32, &mut random);
                let steps = steps(&mut random, 12 + seed as usize % 20);
                let mut log = vec![];
                let y = run(&steps, &x, at_once, &mut log);
                y.backward().unwrap();
                let mut values = y.to_f64_vec().unwrap();
                for x in &x {
                    // None, where a write or a drop left nothing of it.
                    values.extend(x.grad().unwrap_or(x.zeros_like()).to_f64_vec().unwrap());
                }
                (values, log)
            };
            let (want, log) = result(&devices[0], true);
            for (other, how) in [(result(device, false).0, "at once"), (result(device, true).0, "op by op")] {
                let close = want.iter().zip(&other).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(1.0));
                assert!(close, "program {seed} {how} on {device}:\n{}\n{want:?}\n{other:?}", log.join("\n"));
            }
        }
    }
}
