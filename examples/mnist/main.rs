//! Trains a network of three layers to read handwritten digits.
//!
//!     cargo run --release --example mnist
//!     cargo run --release --example mnist -- --device cpu --epochs 5
//!     cargo run --release --example mnist -- --compare --epochs 1

mod checkpoint;
mod compare;
mod digits;
mod plot;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use wgrad::prelude::*;

use checkpoint::Progress;
use compare::Twin;
use digits::Digits;

module! {
    pub struct Mlp { fc1: Linear, fc2: Linear, fc3: Linear }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.fc1.forward(x).relu();
        let x = self.fc2.forward(&x).relu();
        self.fc3.forward(&x)
    }
}

impl Mlp {
    fn new() -> Mlp {
        Mlp { fc1: Linear::new(28 * 28, 512), fc2: Linear::new(512, 256), fc3: Linear::new(256, 10) }
    }
}

/// Trains a 784-512-256-10 network on MNIST.
#[derive(Parser)]
struct Args {
    /// cpu, gpu, or part of an adapter's name [default: $WGRAD_DEVICE, else the best there is]
    #[arg(long)]
    device: Option<String>,
    /// How often to go through the training set
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Adam's learning rate
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Samples in a step
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// Where initial weights and the order of the samples come from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder with the four files of MNIST
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/mnist"))]
    data: PathBuf,
    /// The folder for weights, checkpoint and picture
    #[arg(long, default_value = "target/mnist")]
    out: PathBuf,
    /// Go on from a checkpoint, with its learning rate, batch size and seed
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Do each step on the CPU and the GPU, and report the largest differences
    #[arg(long)]
    compare: bool,
}

/// Steps between two looks at the loss: each waits for the device.
const LOOK_EVERY: usize = 20;

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let device = match &args.device {
        Some(name) => device(name)?,
        None => default_device(),
    };
    set_default_device(&device);
    std::fs::create_dir_all(&args.out).with_context(|| format!("{} can't be made", args.out.display()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        // Who asks twice means it.
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    train(&args, &device, &interrupted)
}

fn train(args: &Args, device: &Device, interrupted: &AtomicBool) -> Result<ExitCode> {
    let mut progress = Progress { seed: args.seed, batch_size: args.batch_size, ..Progress::default() };
    manual_seed(args.seed);
    let model = Mlp::new();
    let mut optimizer = Adam::new(model.parameters(), args.lr);
    if let Some(path) = &args.resume {
        progress = checkpoint::load(path, &model, &mut optimizer)?;
        println!("going on from {}: epoch {}, step {}", path.display(), progress.epoch + 1, progress.step);
    }
    let twin = args.compare.then(|| Twin::of(&model, &optimizer)).transpose()?;
    let training = Digits::load(&args.data, "train", device)?;
    let test = Digits::load(&args.data, "t10k", device)?;
    let loader = DataLoader::new(training, progress.batch_size).shuffle(progress.seed).drop_last(true);
    let steps = loader.len();
    println!(
        "{} parameters on {device}, {steps} steps of {} an epoch",
        model.num_parameters(),
        progress.batch_size
    );

    let saved = args.out.join("checkpoint.safetensors");
    let mut last = None;
    while progress.epoch < args.epochs {
        model.train();
        let bar = bar(steps, &progress, args.epochs);
        let started = Instant::now();
        let first = progress.step;
        loader.set_epoch(progress.epoch);
        let mut meter = Meter::new();
        for batch in loader.iter_from(progress.step) {
            let (x, y) = batch?;
            optimizer.zero_grad();
            let loss = model.forward(&x).cross_entropy(&y);
            loss.backward()?;
            meter.add(&loss);
            optimizer.step()?;
            if let Some(twin) = &twin {
                twin.follow(&x, &y, &loss, &model)?;
            }
            progress.step += 1;
            bar.inc(1);
            let stop = interrupted.load(Ordering::SeqCst);
            if progress.step.is_multiple_of(LOOK_EVERY) || progress.step == steps || stop {
                let mean = meter.read()?;
                progress.losses.push([(progress.epoch as usize * steps + progress.step) as f32, mean]);
                bar.set_message(format!("loss {mean:.4}"));
            }
            if stop {
                bar.abandon();
                checkpoint::save(&saved, &model, &optimizer, &progress)?;
                println!(
                    "\nstopped in epoch {}; go on with --resume {}",
                    progress.epoch + 1,
                    saved.display()
                );
                return Ok(ExitCode::from(130));
            }
        }
        device.synchronize()?;
        let seconds = started.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let results = test.evaluate(&model)?;
        let samples = (steps - first) * progress.batch_size;
        progress.epoch += 1;
        progress.step = 0;
        progress.accuracies.push([progress.epoch as f32, results.accuracy]);
        println!(
            "epoch {}: loss {:.4}, test accuracy {:.2} %, {seconds:.1} s, {:.0} samples/s",
            progress.epoch,
            progress.losses.last().map_or(f32::NAN, |l| l[1]),
            results.accuracy * 100.0,
            samples as f64 / seconds,
        );
        if let Some(twin) = &twin {
            println!("{}", twin.report());
        }
        checkpoint::save(&saved, &model, &optimizer, &progress)?;
        last = Some(results);
    }
    let weights = args.out.join("mnist.safetensors");
    io::save(&weights, &model.state_dict())?;
    let results = match last {
        Some(results) => results,
        None => test.evaluate(&model)?,
    };
    let picture = args.out.join("mnist.png");
    plot::draw(&picture, &progress, steps, &results, &test)?;
    println!("{}\n{}\n{}", weights.display(), saved.display(), picture.display());
    Ok(ExitCode::SUCCESS)
}

/// The mean of losses, kept on the device until it is read.
struct Meter {
    sum: Option<Tensor>,
    count: usize,
}

impl Meter {
    fn new() -> Meter {
        Meter { sum: None, count: 0 }
    }

    fn add(&mut self, loss: &Tensor) {
        let loss = loss.detach();
        self.sum = Some(self.sum.take().map_or(loss.clone(), |sum| sum + &loss));
        self.count += 1;
    }

    fn read(&mut self) -> Result<f32> {
        let sum = self.sum.take().map_or(Ok(f32::NAN), |sum| sum.item::<f32>())?;
        Ok(sum / std::mem::take(&mut self.count) as f32)
    }
}

fn bar(steps: usize, progress: &Progress, epochs: u64) -> ProgressBar {
    let batch_size = progress.batch_size as f64;
    let template = "{prefix} [{bar:32}] {pos}/{len}  {msg}  {rate}  {left} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = move |s: &ProgressState, w: &mut dyn std::fmt::Write| {
        let _ = write!(w, "{:.0} samples/s", s.per_sec() * batch_size);
    };
    let left = |s: &ProgressState, w: &mut dyn std::fmt::Write| {
        let seconds = s.eta().as_secs();
        let _ = write!(w, "{}:{:02}", seconds / 60, seconds % 60);
    };
    let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr_with_hz(5));
    bar.set_style(style.progress_chars("=> ").with_key("rate", rate).with_key("left", left));
    bar.set_prefix(format!("epoch {}/{epochs}", progress.epoch + 1));
    bar.set_message("loss ......");
    // What was done before does not count for the rate.
    bar.set_position(progress.step as u64);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
