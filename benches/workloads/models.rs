//! The training workloads: a step is forward, backward and the optimizer's update on one fixed batch.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use wgrad::prelude::*;

use super::numbers::{integers, values};
use super::{Cost, Workload};

/// Parameters in order of use, each from the next seed.
struct Seeds<'a> {
    device: &'a Device,
    last: u32,
}

impl Seeds<'_> {
    fn new(device: &Device) -> Seeds<'_> {
        Seeds { device, last: 100 }
    }

    fn next(&mut self, shape: &[usize], scale: f64) -> Tensor {
        self.last += 1;
        values(self.device, self.last, shape, scale as f32)
    }

    /// The suite's weights are `[inputs, outputs]`, those of the layer the other way round.
    fn linear(&mut self, inputs: usize, outputs: usize, bias: bool) -> Linear {
        let scale = 1.0 / (inputs as f64).sqrt();
        let weight = Parameter::new(&self.next(&[inputs, outputs], scale).t().contiguous());
        let bias = bias.then(|| Parameter::new(&self.next(&[outputs], scale)));
        Linear { weight, bias }
    }

    fn conv(&mut self, inputs: usize, outputs: usize) -> Conv2d {
        let scale = 1.0 / ((9 * inputs) as f64).sqrt();
        let weight = Parameter::new(&self.next(&[outputs, inputs, 3, 3], scale));
        let bias = Parameter::new(&self.next(&[outputs], scale));
        Conv2d { weight, bias: Some(bias), ..Conv2d::new(inputs, outputs, 3).padding(1) }
    }

    fn embedding(&mut self, rows: usize, width: usize) -> Embedding {
        Embedding { weight: Parameter::new(&self.next(&[rows, width], 0.05)) }
    }
}

/// Multiplications and additions of a layer's product, of its weight's gradient and, unless it is the first layer, of its
/// input's.
fn training_flops(rows: usize, inputs: usize, outputs: usize, first: bool) -> f64 {
    let products = if first { 2.0 } else { 3.0 };
    products * 2.0 * (rows * inputs * outputs) as f64
}

/// Parameters and what the optimizer keeps of them are read and written, gradients written and read.
fn training_bytes(model: &dyn Module, kept: f64) -> f64 {
    let numbers: usize = model.parameters().iter().map(Tensor::numel).sum();
    4.0 * numbers as f64 * (2.0 + 2.0 * kept + 2.0)
}

fn training(
    cost: Cost,
    steps: usize,
    readback: bool,
    mut optimizer: impl Optimizer + 'static,
    loss: impl Fn() -> Tensor + 'static,
) -> Result<Workload> {
    let shared = Rc::new(RefCell::new(move || -> Result<Tensor> {
        let loss = loss();
        optimizer.zero_grad();
        loss.backward()?;
        optimizer.step()?;
        Ok(loss.detach())
    }));
    let again = shared.clone();
    let step = move || (again.borrow_mut())();
    // The losses of the first steps, for comparison with other libraries, and what the very first costs.
    let start = Instant::now();
    let first: f32 = step()?.item()?;
    let step1_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut fifth = f32::NAN;
    for _ in 1..5 {
        fifth = step()?.item()?;
    }
    let last = Rc::new(Cell::new(f32::NAN));
    let end = last.clone();
    Ok(Workload {
        units: steps,
        cost,
        run: Box::new(move || {
            for i in 1..=steps {
                let loss = step()?;
                if readback || i == steps {
                    end.set(loss.item()?);
                }
            }
            Ok(())
        }),
        check: Box::new(move || {
            // What a step takes of the device's memory, and the least that it could.
            let (loss, plan) = debug::plan_of(|| (shared.borrow_mut())())?;
            loss?.check()?;
            Ok(vec![
                ("step1_ms", step1_ms),
                ("loss1", first.into()),
                ("loss5", fifth.into()),
                ("loss_end", last.get().into()),
                ("step_bytes", plan.peak_bytes() as f64),
                ("least_bytes", plan.needed_bytes as f64),
            ])
        }),
    })
}

module! {
    struct Mlp { fc1: Linear, fc2: Linear, fc3: Linear }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.fc1.forward(x).relu();
        let x = self.fc2.forward(&x).relu();
        self.fc3.forward(&x)
    }
}

pub fn mlp(device: &Device, readback: bool) -> Result<Workload> {
    let (batch, sizes) = (128, [784, 512, 256, 10]);
    let x = values(device, 1, &[batch, sizes[0]], 1.0);
    let target = options().device(device).from_slice(&integers(2, batch, 10), [batch]);
    let mut seeds = Seeds::new(device);
    let mut layer = |i: usize| seeds.linear(sizes[i], sizes[i + 1], true);
    let model = Mlp { fc1: layer(0), fc2: layer(1), fc3: layer(2) };
    let flops = (0..3).map(|i| training_flops(batch, sizes[i], sizes[i + 1], i == 0)).sum();
    let cost = Cost { flops, bytes: training_bytes(&model, 1.0) };
    let sgd = SGD::new(model.parameters(), 0.01).momentum(0.9);
    training(cost, 50, readback, sgd, move || model.forward(&x).cross_entropy(&target))
}

module! {
    struct Cnn { conv1: Conv2d, conv2: Conv2d, head: Linear }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.conv1.forward(x).relu().max_pool2d(2);
        let x = self.conv2.forward(&x).relu().max_pool2d(2);
        self.head.forward(&x.flatten(1, -1))
    }
}

pub fn cnn(device: &Device) -> Result<Workload> {
    let batch = 64;
    let x = values(device, 1, &[batch, 1, 28, 28], 1.0);
    let target = options().device(device).from_slice(&integers(2, batch, 10), [batch]);
    let mut s = Seeds::new(device);
    let model = Cnn { conv1: s.conv(1, 16), conv2: s.conv(16, 32), head: s.linear(32 * 49, 10, true) };
    let flops = training_flops(batch * 28 * 28, 9, 16, true)
        + training_flops(batch * 14 * 14, 9 * 16, 32, false)
        + training_flops(batch, 32 * 49, 10, false);
    // What the layers hand on is written and read forward, and its gradient backward.
    let activations = 4.0 * 4.0 * (batch * (2 * 16 * 28 * 28 + 2 * 32 * 14 * 14)) as f64;
    let cost = Cost { flops, bytes: training_bytes(&model, 2.0) + activations };
    let adam = Adam::new(model.parameters(), 1e-3);
    training(cost, 5, false, adam, move || model.forward(&x).cross_entropy(&target))
}

const WIDTH: usize = 128;
const HEADS: usize = 4;
const LENGTH: usize = 64;

module! {
    struct Block { ln1: LayerNorm, qkv: Linear, proj: Linear, ln2: LayerNorm, fc: Linear, out: Linear }

    fn forward(&self, x: &Tensor) -> Tensor {
        let rows = x.size(0);
        let qkv = self.qkv.forward(&self.ln1.forward(x)).split(WIDTH, -1);
        let head = |i: usize| qkv[i].reshape([rows, LENGTH, HEADS, WIDTH / HEADS]).transpose(1, 2);
        let (q, k, v) = (head(0), head(1), head(2));
        let y = q.scaled_dot_product_attention_with(&k, &v, &Attention { is_causal: true, ..Attention::default() });
        let y = y.transpose(1, 2).reshape([rows, LENGTH, WIDTH]);
        let x = x + self.proj.forward(&y);
        &x + self.out.forward(&self.fc.forward(&self.ln2.forward(&x)).gelu())
    }
}

module! {
    struct Gpt { token: Embedding, position: Embedding, blocks: Vec<Block>, ln: LayerNorm, head: Linear }

    fn forward(&self, ids: &Tensor) -> Tensor {
        let places = options().device(ids.device()).dtype(I32).arange(0, LENGTH as i64, 1);
        let mut x = self.token.forward(ids) + self.position.forward(&places);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        self.head.forward(&self.ln.forward(&x))
    }
}

pub fn gpt(device: &Device) -> Result<Workload> {
    let (batch, vocabulary, layers) = (8, 65, 2);
    let ids = integers(1, batch * (LENGTH + 1), vocabulary as u32);
    let rows = || ids.chunks(LENGTH + 1);
    let on = options().device(device);
    let x: Vec<i32> = rows().flat_map(|r| &r[..LENGTH]).copied().collect();
    let y: Vec<i32> = rows().flat_map(|r| &r[1..]).copied().collect();
    let (x, target) = (on.from_slice(&x, [batch, LENGTH]), on.from_slice(&y, [batch * LENGTH]));
    let mut s = Seeds::new(device);
    let (token, position) = (s.embedding(vocabulary, WIDTH), s.embedding(LENGTH, WIDTH));
    let norm = || LayerNorm::with([WIDTH], 1e-5, true, true, &options().device(device));
    let blocks = (0..layers).map(|_| Block {
        ln1: norm(),
        qkv: s.linear(WIDTH, 3 * WIDTH, true),
        proj: s.linear(WIDTH, WIDTH, true),
        ln2: norm(),
        fc: s.linear(WIDTH, 4 * WIDTH, true),
        out: s.linear(4 * WIDTH, WIDTH, true),
    });
    let blocks = blocks.collect();
    let model = Gpt { token, position, blocks, ln: norm(), head: s.linear(WIDTH, vocabulary, false) };
    let tokens = batch * LENGTH;
    let linear = |i: usize, o: usize| training_flops(tokens, i, o, false);
    // Half of the scores are masked.
    let attention = 2.0 * training_flops(tokens, WIDTH, LENGTH, false) / 2.0;
    let block = linear(WIDTH, 4 * WIDTH) + 2.0 * linear(WIDTH, 4 * WIDTH) + attention;
    let flops = layers as f64 * block + linear(WIDTH, vocabulary);
    let cost = Cost { flops, bytes: training_bytes(&model, 2.0) };
    let adam = AdamW::new(model.parameters(), 3e-4).weight_decay(0.01);
    let loss = move || model.forward(&x).reshape([tokens, vocabulary]).cross_entropy(&target);
    training(cost, 5, false, adam, loss)
}
