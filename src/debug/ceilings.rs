//! How fast a device can be: measured once, to predict what a plan takes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::text;
use crate::device::Device;
use crate::error::Result;
use crate::graph::kernel::Command;
use crate::graph::preview::Preview;
use crate::tensor::{Tensor, options};

/// What bounds kernels on a device, as measured.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes that a streaming copy reads and writes in a second.
    pub bandwidth: f64,
    /// Floating point operations of a square matrix product in a second.
    pub products: f64,
    /// Additions' worth of elementwise code in a second.
    pub elementwise: f64,
    /// What every dispatch costs, however small.
    pub dispatch: Duration,
    /// What every submission costs, beside its dispatches.
    pub submission: Duration,
}

/// What the repetitions of one measurement may take.
const BUDGET: Duration = Duration::from_millis(10);
/// Work that takes this long hides what it costs to start it.
const LONG: f64 = 2e-3;
/// Elements of the largest copy, and rows of the largest product.
const LARGEST_COPY: usize = 32 << 20;
const LARGEST_PRODUCT: usize = 2048;
/// Dispatches in a row that the cost of one is told from.
const ROW: usize = 24;

impl Ceilings {
    /// The device's, which are measured when they are asked for first; that takes a fraction of a second.
    pub fn of(device: &Device) -> Result<Ceilings> {
        static KNOWN: Mutex<Option<HashMap<String, Ceilings>>> = Mutex::new(None);
        let mut known = KNOWN.lock();
        let known = known.get_or_insert_default();
        if let Some(ceilings) = known.get(device.name()) {
            return Ok(*ceilings);
        }
        let measured = device.aside(measure)??;
        known.insert(device.name().to_string(), measured);
        Ok(measured)
    }

    /// Seconds that a kernel needs at least, which moves so many bytes and computes so much.
    pub(super) fn seconds(&self, bytes: u64, structured: u64, cost: u64) -> f64 {
        let moving = bytes as f64 / self.bandwidth;
        let computing = structured as f64 / self.products + cost as f64 / self.elementwise;
        self.dispatch.as_secs_f64() + moving.max(computing)
    }
}

impl std::fmt::Display for Ceilings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}B/s copied, {}FLOP/s in products, {} additions/s elementwise, {:.1} us a dispatch, {:.1} us a submission",
            text::count(self.bandwidth),
            text::count(self.products),
            text::count(self.elementwise),
            self.dispatch.as_secs_f64() * 1e6,
            self.submission.as_secs_f64() * 1e6,
        )
    }
}

fn measure(device: &Device) -> Result<Ceilings> {
    // What is measured is no part of any graph, nor anyone's step.
    crate::autograd::unrecorded(|| {
        let on = options().device(device);
        let small = stored(on.full([8, 8], 0.125))?;
        let one = best(device, || small.matmul(&small))?;
        let row = best(device, || (0..ROW).fold(small.clone(), |y, _| y.matmul(&small)))?;
        let dispatch = ((row - one) / (ROW - 1) as f64).max(1e-8);
        let submission = (one - dispatch).max(0.0);
        let net = |seconds: f64| (seconds - submission).max(1e-9);

        let most = LARGEST_COPY.min(device.backend().caps().max_binding_bytes / 4);
        let mut n = 1 << 20;
        let bandwidth = loop {
            let x = stored(on.full([n], 0.5))?;
            let seconds = net(best(device, || &x * 2.0)?);
            if seconds > LONG || 4 * n > most {
                break (8 * n) as f64 / seconds;
            }
            n *= 4;
        };

        let (mut n, mut products) = (256, 0.0f64);
        loop {
            let x = stored(on.full([n, n], 0.01))?;
            let seconds = net(best(device, || x.matmul(&x))?);
            products = products.max(2.0 * (n as f64).powi(3) / seconds);
            n *= 2;
            if seconds > LONG || n > LARGEST_PRODUCT {
                break;
            }
        }

        let x = stored(on.full([1 << 19], 0.5))?;
        let busy = || (x.exp() + x.tanh() * x.sigmoid()).sqrt() * (x.sin() + 2.0).log();
        let elementwise = cost(device, &busy()) as f64 / net(best(device, busy)?);
        let [dispatch, submission] = [dispatch, submission].map(Duration::from_secs_f64);
        Ok(Ceilings { bandwidth, products, elementwise, dispatch, submission })
    })
}

/// As memory, not as a constant that kernels take in.
fn stored(tensor: Tensor) -> Result<Tensor> {
    tensor.check().map(|()| tensor)
}

/// The shortest time in which the device does what `record` records.
fn best(device: &Device, record: impl Fn() -> Tensor) -> Result<f64> {
    // The first time it is planned and compiled.
    drop(record().check());
    device.synchronize()?;
    let began = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..12 {
        let result = record();
        let now = Instant::now();
        result.check()?;
        device.synchronize()?;
        best = best.min(now.elapsed().as_secs_f64());
        drop(result);
        if began.elapsed() > BUDGET {
            break;
        }
    }
    Ok(best)
}

fn cost(device: &Device, tensor: &Tensor) -> u64 {
    let preview = Preview::of_nodes(device, vec![tensor.node()]);
    let commands = preview.iter().flat_map(|p| p.commands());
    commands.map(|c| if let Command::Dispatch { kernel, .. } = c { kernel.figures().cost } else { 0 }).sum()
}
