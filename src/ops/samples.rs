//! What the operators are tested with: sample inputs beside PyTorch's expression for the same value, and bad
//! inputs beside the error that they must give. For elementwise ops the samples follow from the op table.
//!
//! `tests/operators` holds every sample, on every device, against values and gradients that PyTorch computed from
//! the expressions (`tests/goldens`).

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::panic::Location;
use std::sync::Arc;

use crate::error::ErrorKind;
use crate::graph::device::Device;
use crate::graph::dtype::{Bool, DType, F32, I32};
use crate::graph::layout::numel;
use crate::tensor::{Tensor, options};

mod attention;
mod bad;
mod elementwise;
mod indexing;
mod linear;
mod masking;
mod norm;
mod reductions;
mod spatial;
mod views;

/// An op's tests.
#[derive(Default)]
pub struct OpInfo {
    /// PyTorch's name.
    pub name: String,
    pub samples: Vec<Sample>,
    pub bad: Vec<Bad>,
}

type Run = Arc<dyn Fn(&[Tensor]) -> Tensor + Send + Sync>;

/// One computation, in Python and in Rust.
#[derive(Clone)]
pub struct Sample {
    pub op: String,
    /// In Python, of `x0`, `x1`, …
    pub expression: String,
    pub inputs: Vec<Input>,
    pub run: Run,
    pub gradient: Slope,
    /// PyTorch must compute it in the inputs' own types (they overflow, say), not in float64.
    pub native: bool,
}

/// What is true of a sample's gradient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slope {
    /// Finite differences find it, and its gradient in turn.
    Smooth,
    /// It is what PyTorch says, at a kink where differences find something else.
    Kink,
    /// There is none, or it is not compared.
    None,
}

#[derive(Clone)]
pub struct Input {
    pub shape: Vec<usize>,
    pub dtype: DType,
    /// Row-major; exact in the dtype.
    pub values: Vec<f64>,
    pub lie: Lie,
    pub requires_grad: bool,
    /// Not given one by one, so that they may stand in another order.
    drawn: bool,
}

/// How an input lies in its storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    Plain,
    /// Its dimensions in reverse order.
    Transposed,
    /// Every second element of the last dimension, from the second on.
    Strided,
    /// A few rows into a larger tensor.
    Offset,
    /// Its first dimension is one row, repeated.
    Expanded,
}

/// An input that an op must refuse.
pub struct Bad {
    pub op: String,
    pub run: Box<dyn Fn(&Device) -> Tensor + Send + Sync>,
    pub kind: ErrorKind,
    /// What the message says, among other things.
    pub says: Vec<String>,
    /// Where it is declared, and thus where the error must say that it happened.
    pub line: u32,
}

/// All tests by op.
pub fn all() -> Vec<OpInfo> {
    let mut ops: BTreeMap<String, OpInfo> = BTreeMap::new();
    let groups = [
        elementwise::samples(),
        reductions::samples(),
        linear::samples(),
        attention::samples(),
        indexing::samples(),
        masking::samples(),
        spatial::samples(),
        norm::samples(),
        views::samples(),
    ];
    for sample in groups.into_iter().flatten() {
        ops.entry(sample.op.clone()).or_default().samples.push(sample);
    }
    for bad in bad::all() {
        ops.entry(bad.op.clone()).or_default().bad.push(bad);
    }
    (ops.into_iter()).map(|(name, info)| OpInfo { name, ..info }).collect()
}

impl Sample {
    /// Names expression and inputs, so that a golden made of others is not taken for this one's.
    pub fn key(&self) -> u64 {
        let mut hasher = foldhash::quality::FixedState::with_seed(1).build_hasher();
        (&self.expression, self.native).hash(&mut hasher);
        for input in &self.inputs {
            (&input.shape, input.dtype, input.requires_grad).hash(&mut hasher);
            input.values.iter().for_each(|v| v.to_bits().hash(&mut hasher));
        }
        hasher.finish()
    }

    /// Compares values only.
    fn flat(mut self) -> Sample {
        self.gradient = Slope::None;
        self
    }

    /// PyTorch's gradient counts, finite differences do not.
    fn kink(mut self) -> Sample {
        self.gradient = Slope::Kink;
        self
    }

    /// PyTorch computes in the inputs' own types.
    fn native(mut self) -> Sample {
        self.native = true;
        self.flat()
    }

    /// Inputs that are on `device`, floats as `float` (which is float32 or float64).
    pub fn tensors(&self, device: &Device, float: DType) -> Vec<Tensor> {
        self.inputs.iter().map(|input| input.tensor(device, float)).collect()
    }
}

/// A sample whose inputs are numbered from a seed of their own; smooth, unless none of them is a float.
fn sample(
    op: &str,
    expression: impl Into<String>,
    inputs: Vec<Input>,
    run: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static,
) -> Sample {
    let slope = if inputs.iter().any(|i| i.requires_grad) { Slope::Smooth } else { Slope::None };
    let mut inputs = inputs;
    for (i, input) in inputs.iter_mut().enumerate() {
        input.shuffle(i as u64 + 1);
    }
    let (op, expression) = (op.into(), expression.into());
    Sample { op, expression, inputs, run: Arc::new(run), gradient: slope, native: false }
}

/// Where values are drawn from.
#[derive(Clone, Copy)]
enum Domain {
    Real,
    Positive,
    NonZero,
    Unit,
}

/// Values between integers and halves, a good way from either: multiples of 1/512 and one odd 1/1024.
fn draw(from: Domain, bits: u64) -> f64 {
    let step = |n: u64| (bits % n) as f64 / 512.0 + 1.0 / 1024.0;
    match from {
        Domain::Real => step(2560) - 2.5,
        Domain::Positive => step(1536) + 0.25,
        Domain::NonZero => (step(1024) + 0.25) * if bits >> 40 & 1 == 0 { 1.0 } else { -1.0 },
        Domain::Unit => step(460) + 0.05078125,
    }
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn floats(shape: &[usize], from: Domain) -> Input {
    let values = (0..numel(shape)).map(|i| draw(from, mix(i as u64 + 1))).collect();
    Input { shape: shape.into(), dtype: F32, values, lie: Lie::Plain, requires_grad: true, drawn: true }
}

fn real(shape: &[usize]) -> Input {
    floats(shape, Domain::Real)
}

fn positive(shape: &[usize]) -> Input {
    floats(shape, Domain::Positive)
}

/// Strictly between 0 and 1.
fn unit(shape: &[usize]) -> Input {
    floats(shape, Domain::Unit)
}

/// Integers in -4..=4.
fn ints(shape: &[usize]) -> Input {
    below(9, shape).map(|v| v - 4.0)
}

/// Integers in 0..n.
fn below(n: u64, shape: &[usize]) -> Input {
    let values = (0..numel(shape)).map(|i| (mix(i as u64 + 77) % n) as f64).collect();
    Input { shape: shape.into(), dtype: I32, values, lie: Lie::Plain, requires_grad: false, drawn: true }
}

fn bools(shape: &[usize]) -> Input {
    Input { dtype: Bool, ..below(2, shape) }
}

/// These values, in order.
fn given(shape: &[usize], values: &[f64]) -> Input {
    let values = values.to_vec();
    Input { shape: shape.into(), dtype: F32, values, lie: Lie::Plain, requires_grad: true, drawn: false }
}

fn given_ints(shape: &[usize], values: &[i32]) -> Input {
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    Input { dtype: I32, requires_grad: false, ..given(shape, &values) }
}

impl Input {
    fn map(mut self, f: impl Fn(f64) -> f64) -> Input {
        self.values.iter_mut().for_each(|v| *v = f(*v));
        self
    }

    /// Not asked for a gradient.
    fn fixed(mut self) -> Input {
        self.requires_grad = false;
        self
    }

    fn lie(mut self, lie: Lie) -> Input {
        self.lie = lie;
        self
    }

    /// Rotates and shifts the drawn values, so that two inputs differ; repeats the first row where it lies so.
    fn shuffle(&mut self, seed: u64) {
        let n = self.values.len();
        if self.drawn && seed > 1 && n > 1 {
            self.values.rotate_left((seed as usize * 5 + 1) % n);
        }
        if self.drawn && self.dtype.is_float() {
            // No value of one input is one of another's.
            self.values.iter_mut().for_each(|v| *v += (seed - 1) as f64 / 4096.0);
        }
        if self.lie == Lie::Expanded && n > 0 {
            let row = n / self.shape[0];
            for i in row..n {
                self.values[i] = self.values[i - row];
            }
        }
    }

    fn tensor(&self, device: &Device, float: DType) -> Tensor {
        let dtype = if self.dtype.is_float() { float } else { self.dtype };
        let make =
            |values: &[f64], shape: &[usize]| options().device(device).dtype(dtype).from_slice(values, shape);
        let plain = || make(&self.values, &self.shape);
        let rank = self.shape.len();
        let laid = match self.lie {
            _ if self.values.is_empty() || rank == 0 => plain(),
            Lie::Plain => plain(),
            Lie::Transposed => {
                let reversed: Vec<usize> = (0..rank).rev().collect();
                crate::autograd::no_grad(|| {
                    plain().permute(&reversed[..]).clone_data().permute(&reversed[..])
                })
            }
            Lie::Strided => {
                // What lies between must not matter.
                let wide: Vec<f64> = self.values.iter().flat_map(|&v| [1e9, v]).collect();
                let mut shape = self.shape.clone();
                shape[rank - 1] *= 2;
                make(&wide, &shape).slice(-1, 1, i64::MAX, 2)
            }
            Lie::Offset => {
                let row = self.values.len() / self.shape[0];
                let mut long = vec![1e9; 2 * row];
                long.extend(&self.values);
                long.extend(vec![1e9; row]);
                let mut shape = self.shape.clone();
                shape[0] += 3;
                make(&long, &shape).narrow(0, 2, self.shape[0])
            }
            Lie::Expanded => {
                let row = self.values.len() / self.shape[0];
                let mut shape = self.shape.clone();
                shape[0] = 1;
                make(&self.values[..row], &shape).expand(&self.shape[..])
            }
        };
        // A leaf of its own, whatever made it.
        let leaf = laid.alias();
        if self.requires_grad { leaf.requires_grad_(true) } else { leaf }
    }
}

/// A bad input, declared on the line that records the op.
#[track_caller]
fn bad(
    op: &str,
    kind: ErrorKind,
    says: &[&str],
    run: impl Fn(&Device) -> Tensor + Send + Sync + 'static,
) -> Bad {
    let says = says.iter().map(|&s| s.into()).collect();
    Bad { op: op.into(), run: Box::new(run), kind, says, line: Location::caller().line() }
}
