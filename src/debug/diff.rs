//! The same kernels on two backends, compared one by one.

use std::cell::RefCell;
use std::fmt;
use std::panic::Location;
use std::rc::Rc;

use crate::backend::{Backend, Buffer, Fault};
use crate::device::{Device, cpu, gpu};
use crate::error::Result;
use crate::graph::device::fault_error;
use crate::graph::dtype::{DType, Element};
use crate::graph::kernel::Body;
use crate::graph::observe::{Observation, observe, single};

/// Kernels agree if no value differs by more than this share of itself, or [`OF_LARGEST`] of the largest value
/// beside it: sums are taken in other orders, and what cancels in them leaves the error of what was summed.
const OF_VALUE: f64 = 1e-4;
const OF_LARGEST: f64 = 1e-5;

/// What [`diff`] found: every kernel that ran, in order.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    pub kernels: Vec<KernelDiff>,
}

/// One kernel's largest error between two backends, both given the same inputs.
#[derive(Clone, Debug)]
pub struct KernelDiff {
    /// The ops fused in it.
    pub label: String,
    /// The line that recorded the last of them.
    pub caller: &'static Location<'static>,
    pub device: String,
    pub reference: String,
    /// Elements of each output.
    pub outputs: Vec<usize>,
    /// The index space that the kernel runs over.
    pub shape: Vec<usize>,
    /// The worst element: which output, which position, what each backend says.
    pub worst: Option<(usize, usize, f64, f64)>,
    /// Its error in units of the last place.
    pub ulps: u64,
    /// Whether the error is more than rounding explains.
    pub differs: bool,
}

impl Diff {
    /// The first kernel whose outputs differ by more than rounding.
    pub fn first(&self) -> Option<&KernelDiff> {
        self.kernels.iter().find(|k| k.differs)
    }
}

impl fmt::Display for KernelDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.differs { "DIFFERS" } else { "agrees" };
        write!(f, "{} over {:?} (at {}) {verdict}", self.label, self.shape, self.caller)?;
        if let Some((output, at, a, b)) = self.worst {
            let (device, reference) = (&self.device, &self.reference);
            write!(
                f,
                ": output {output}[{at}] is {a:e} on {device}, {b:e} on {reference}, {} ulps",
                self.ulps
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first() {
            Some(kernel) => write!(f, "{kernel}"),
            None => write!(f, "{} kernels agree", self.kernels.len()),
        }
    }
}

/// Runs `f`, and each kernel that it makes run a second time on another backend (what runs on a GPU on the CPU,
/// and the reverse) with the same inputs, and compares the outputs: the first kernel that
/// [differs](Diff::first) is the one at fault.
///
/// # Errors
/// If there is no other backend, or it failed.
///
/// ```
/// # use wgrad::prelude::*;
/// # if gpu().is_err() { return Ok(()) }
/// let x = randn([64, 64]).requires_grad_(true);
/// let (_, report) = wgrad::debug::diff(|| x.tanh().sum().backward())?;
/// assert!(report.first().is_none(), "{report}");
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn diff<R>(f: impl FnOnce() -> R) -> Result<(R, Diff)> {
    let caller = Location::caller();
    let gpu = gpu()?;
    let found: Rc<RefCell<(Diff, Option<Fault>)>> = Rc::default();
    let sink = found.clone();
    let devices = [cpu(), gpu.clone()];
    let others = devices.clone();
    let guard = observe(move |seen| {
        let reference = others.iter().find(|d| d.name() != seen.backend.name());
        let mut sink = sink.borrow_mut();
        match reference.map(|r| compare(seen, r.backend())) {
            Some(Ok(kernel)) => sink.0.kernels.push(kernel),
            Some(Err(fault)) => sink.1 = Some(fault),
            None => {}
        }
    });
    // What the closure returns is held until all that was recorded has run.
    let result = f();
    devices.iter().for_each(Device::flush);
    drop(guard);
    let (report, fault) = found.take();
    match fault {
        Some(fault) => Err(fault_error(fault, caller, "diff")),
        None => Ok((result, report)),
    }
}

fn compare(seen: &Observation<'_>, reference: &dyn Backend) -> Result<KernelDiff, Fault> {
    let kernel = seen.kernel;
    let buffers: Vec<Buffer> =
        seen.before.iter().map(|bytes| reference.upload(bytes)).collect::<Result<_, _>>()?;
    let one = single(kernel);
    reference.run(&one, &reference.compile(&one)?, &buffers, seen.scalars)?;
    let shape = match &kernel.body {
        Body::Map(jobs) => {
            jobs.iter().max_by_key(|p| p.numel()).map(|p| p.shape.to_vec()).unwrap_or_default()
        }
        Body::Reduce(r) => r.pre.shape.to_vec(),
        Body::Structured(s) => s.out_shape.to_vec(),
    };
    let mut out = KernelDiff {
        label: kernel.label.clone(),
        caller: kernel.caller,
        device: seen.backend.name().to_string(),
        reference: reference.name().to_string(),
        outputs: vec![],
        shape,
        worst: None,
        ulps: 0,
        differs: false,
    };
    let mut worst_excess = 0.0;
    for (i, binding) in kernel.bindings.iter().enumerate().filter(|(_, b)| b.written) {
        let theirs = reference.download(&buffers[i], 0..buffers[i].bytes)?;
        let (a, b) = (numbers(binding.dtype, &seen.after[i]), numbers(binding.dtype, &theirs));
        let largest = b.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
        let slack = if binding.dtype.is_float() { OF_LARGEST * largest } else { 0.0 };
        for (at, (&x, &y)) in a.iter().zip(&b).enumerate() {
            if x == y || (x.is_nan() && y.is_nan()) {
                continue;
            }
            let allowed = if binding.dtype.is_float() { OF_VALUE * y.abs() + slack } else { 0.0 };
            // NaN against a number is beyond every tolerance.
            let error = (x - y).abs();
            let excess = if error.is_nan() { f64::INFINITY } else { error / allowed.max(f64::MIN_POSITIVE) };
            if excess > worst_excess {
                worst_excess = excess;
                out.worst = Some((out.outputs.len(), at, x, y));
                out.ulps = ulps(x as f32, y as f32);
            }
        }
        out.outputs.push(a.len());
    }
    out.differs = worst_excess > 1.0;
    Ok(out)
}

fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::Bool | DType::U32 => u32::from_bytes(bytes).into_iter().map(f64::from).collect(),
        DType::I32 => i32::from_bytes(bytes).into_iter().map(f64::from).collect(),
        DType::F32 => f32::from_bytes(bytes).into_iter().map(f64::from).collect(),
        DType::F64 => f64::from_bytes(bytes),
    }
}

/// How many floats lie between two.
fn ulps(a: f32, b: f32) -> u64 {
    // Floats of one sign are ordered as their bits are; negative ones run the other way.
    let line = |v: f32| {
        let bits = i64::from(v.to_bits() as i32);
        if bits < 0 { i64::from(i32::MIN) - bits } else { bits }
    };
    line(a).abs_diff(line(b))
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::block;
    use crate::graph::dtype::F32;
    use crate::graph::program::MapOp;
    use crate::ops::record::{Arg, map};

    /// An op whose two kernels are not the same function.
    static WRONG: MapOp = MapOp {
        name: "wrong",
        arity: 1,
        mask_first: false,
        wgsl: "a + T(1)",
        wgsl_int: "",
        cpu: block!(float | a | a + T::of(1.5)),
        cost: 1,
    };

    #[test]
    fn the_first_wrong_kernel_is_named() {
        let Ok(device) = gpu() else {
            assert_ne!(std::env::var("WGRAD_REQUIRE_GPU").as_deref(), Ok("1"), "no adapter");
            return;
        };
        let x = crate::options().device(&device).full([2, 3], 3.0);
        let line = line!() + 3;
        let (y, report) = diff(|| {
            let right = x.exp().sum();
            let wrong = map(&WRONG, F32, F32, &device, &[2, 3], &[Arg::from(&x)], Location::caller());
            (right, wrong)
        })
        .unwrap();
        let first = report.first().unwrap();
        assert!(report.kernels.len() > 1 && first.label.contains("wrong"), "{report}");
        assert_eq!((first.caller.file(), first.caller.line()), (file!(), line), "{report}");
        assert_eq!(first.worst.map(|(_, _, a, b)| (a, b)), Some((4.0, 4.5)));
        assert!(report.to_string().contains("ulps"), "{report}");
        drop(y);

        let (_, report) = diff(|| x.exp().sum_dim(1, false)).unwrap();
        assert!(report.first().is_none() && !report.kernels.is_empty(), "{report}");
    }
}
