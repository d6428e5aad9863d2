//! What one dispatch computes, said so that both backends can run it, and the [`Recording`] that lists them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::Location;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::dtype::{DType, Scalar};
use super::layout::{Dims, Layout, numel};
use super::program::{Program, Reg};
use crate::backend::Prices;

/// One unit of work: an optional anchor (a reduction or a structured op) with the elementwise code fused
/// before and after it.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub body: Body,
    /// What each buffer is, in binding order. `Program`s and structured ops refer to these by position.
    pub bindings: Vec<Binding>,
    /// Types of the scalar parameters.
    pub scalars: Vec<DType>,
    /// For people: the ops fused here, `mul_add_relu`.
    pub label: String,
    /// The user's line that recorded the last op in it.
    pub caller: &'static Location<'static>,
}

impl PartialEq for Kernel {
    /// Same code. Labels and callers are for people and do not count.
    fn eq(&self, other: &Kernel) -> bool {
        self.body == other.body && self.bindings == other.bindings && self.scalars == other.scalars
    }
}
impl Eq for Kernel {}
impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.body.hash(state);
        self.bindings.hash(state);
        self.scalars.hash(state);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Binding {
    pub dtype: DType,
    pub written: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Body {
    /// Independent elementwise programs side by side in one dispatch, each over its own index space.
    Map(Vec<Program>),
    Reduce(Reduce),
    Structured(Structured),
}

/// `out[k…] = post(op over r… of pre[k…, r…])`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reduce {
    pub op: ReduceOp,
    /// Type in which values are combined.
    pub dtype: DType,
    /// Over kept dimensions, then reduced ones. It has no stores.
    pub pre: Program,
    /// The register of `pre` that is reduced.
    pub value: Reg,
    /// How many of `pre.shape`'s leading dimensions are kept.
    pub kept: usize,
    /// Over the kept dimensions (collapsed in its own way); `Inst::Anchor` is the reduced value.
    pub post: Program,
}

impl Reduce {
    pub fn outputs(&self) -> usize {
        self.pre.shape[..self.kept].iter().product()
    }
    pub fn reduced(&self) -> usize {
        self.pre.shape[self.kept..].iter().product()
    }
}

/// How a reduction combines. Of floats, `Max` and `Min` propagate NaN as PyTorch's do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReduceOp {
    Sum,
    Prod,
    Max,
    Min,
}

impl ReduceOp {
    pub fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Prod => "prod",
            ReduceOp::Max => "amax",
            ReduceOp::Min => "amin",
        }
    }

    /// The value of an empty reduction. (PyTorch refuses to take an extremum of nothing; that is checked when
    /// the op is recorded.)
    pub fn identity(self, dtype: DType) -> Scalar {
        use DType::{Bool, F16, F32, F64, I32, U32};
        match (self, dtype) {
            (ReduceOp::Sum, _) => Scalar::Int(0),
            (ReduceOp::Prod, _) => Scalar::Int(1),
            (ReduceOp::Max, F16 | F32 | F64) => Scalar::Float(f64::NEG_INFINITY),
            (ReduceOp::Min, F16 | F32 | F64) => Scalar::Float(f64::INFINITY),
            (ReduceOp::Max, I32) => Scalar::Int(i64::from(i32::MIN)),
            (ReduceOp::Min, I32) => Scalar::Int(i64::from(i32::MAX)),
            (ReduceOp::Max, U32 | Bool) => Scalar::Int(0),
            (ReduceOp::Min, U32) => Scalar::Int(i64::from(u32::MAX)),
            (ReduceOp::Min, Bool) => Scalar::Int(1),
        }
    }
}

/// An op with a kernel of its own, written by hand for each backend.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Structured {
    pub op: OpRef,
    /// Each with the layout of the view that is read. Those that lie in memory have the first bindings, in their order;
    /// the others are computed by `pre`, and their layouts are as if these values lay in memory one after another.
    pub inputs: Vec<(DType, Layout)>,
    /// By input.
    pub pre: Vec<Prologue>,
    pub out_shape: Dims,
    /// In which it computes: never [`DType::F16`].
    pub out_dtype: DType,
    /// Over the elements of the output (its shape may be collapsed); `Inst::Anchor` is the op's result. It
    /// always ends in at least one store. An op that takes no epilogue gets a post of one plain store to a
    /// contiguous layout, at the binding behind its inputs'.
    pub post: Program,
    /// What it computes besides.
    pub sums: Option<Box<Sums>>,
}

/// Sums of an input that an op meets anyway: a bias's gradient beside its weight's.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sums {
    /// An input in memory, of `F32`.
    pub input: usize,
    pub rows: Rows,
    /// Over `[parts, rows]`; `Inst::Anchor` is the sum.
    pub post: Program,
}

/// In which order an op meets an input of which it can sum up rows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rows {
    /// Over the rows, then all that is added up.
    pub layout: Layout,
    /// So many are added up to one part of the sum, in the order of `layout`; the last part may have fewer.
    pub each: usize,
}

impl Rows {
    pub fn parts(&self) -> usize {
        self.terms().div_ceil(self.each.max(1))
    }

    fn terms(&self) -> usize {
        numel(&self.layout.shape[1..])
    }

    /// The sums by part and row, of what lies in a buffer.
    pub fn sums(&self, input: &[f32]) -> Vec<f32> {
        let Layout { shape, strides, offset } = &self.layout;
        let place = |row: usize, term: usize| {
            let (mut rest, mut at) = (term, offset + row * strides[0]);
            for d in (1..shape.len()).rev() {
                at += rest % shape[d] * strides[d];
                rest /= shape[d];
            }
            at
        };
        let sum = |part: usize, row: usize| {
            let terms = part * self.each..((part + 1) * self.each).min(self.terms());
            terms.map(|term| f64::from(input[place(row, term)])).sum::<f64>() as f32
        };
        (0..self.parts()).flat_map(|part| (0..shape[0]).map(move |row| sum(part, row))).collect()
    }
}

/// An input of a structured op that is computed wherever the op reads it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Prologue {
    pub input: usize,
    /// Over the value as it would lie in memory. It has no stores.
    pub program: Program,
    /// The register of `program` that is the input's element.
    pub value: Reg,
}

impl Body {
    /// Its programs, in the order in which they run: of a structured op those of its inputs first, then its epilogue, then
    /// what becomes of its sums.
    pub fn programs(&self) -> SmallVec<[&Program; 4]> {
        match self {
            Body::Map(programs) => programs.iter().collect(),
            Body::Reduce(r) => smallvec![&r.pre, &r.post],
            Body::Structured(s) => s.programs().collect(),
        }
    }

    pub fn programs_mut(&mut self) -> SmallVec<[&mut Program; 4]> {
        match self {
            Body::Map(programs) => programs.iter_mut().collect(),
            Body::Reduce(r) => smallvec![&mut r.pre, &mut r.post],
            Body::Structured(s) => {
                let pre = s.pre.iter_mut().map(|pre| &mut pre.program);
                pre.chain([&mut s.post]).chain(s.sums.iter_mut().map(|sums| &mut sums.post)).collect()
            }
        }
    }
}

impl Structured {
    /// What computes an input, if it is not in memory.
    pub fn prologue(&self, input: usize) -> Option<&Prologue> {
        self.pre.iter().find(|pre| pre.input == input)
    }

    /// The binding of an input that is in memory.
    pub fn binding(&self, input: usize) -> Option<usize> {
        let before = self.pre.iter().filter(|pre| pre.input < input).count();
        if self.prologue(input).is_some() { None } else { Some(input - before) }
    }

    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        let pre = self.pre.iter().map(|pre| &pre.program);
        pre.chain([&self.post]).chain(self.sums.iter().map(|sums| &sums.post))
    }

    /// How many elements it adds up besides.
    pub fn summed(&self) -> u64 {
        self.sums.as_ref().map_or(0, |sums| sums.rows.layout.numel() as u64)
    }

    /// How many inputs are in memory.
    pub fn bound_inputs(&self) -> usize {
        self.inputs.len() - self.pre.len()
    }
}

/// What a structured op must tell the executor. `Debug` and `key` describe it fully: two ops with equal keys
/// compute the same thing.
pub trait StructuredOp: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;
    /// Everything beside input types and layouts that changes the code: dims, flags.
    fn key(&self) -> Vec<u64>;
    /// Whether elementwise consumers may be computed where this op stores its result.
    fn fuses_epilogue(&self) -> bool {
        false
    }
    /// How often a kernel that computes an input where it reads it computes each of its elements, or what costs as much;
    /// `None` where the input must lie in memory.
    fn recomputes(&self, _inputs: &[&Layout], _input: usize, _prices: &Prices) -> Option<usize> {
        None
    }
    /// Whether results come tile by tile, so that an epilogue meets its operands out of memory's order.
    fn stores_tiles(&self) -> bool {
        false
    }
    /// The dimension of the output along which its templates know the coordinate of what they store (`store_at`), so that
    /// an epilogue's operands along it cost no division, and its size is no part of the kernel.
    fn knows_coordinate(&self, _call: &Structured) -> Option<usize> {
        None
    }
    /// Whether its GPU kernels read halves as they are. (Others get them widened, and all CPU kernels do.)
    fn reads_halves(&self) -> bool {
        false
    }
    /// Whether each element of the output is stored once, by who alone meets it: then an epilogue may store over
    /// its operands.
    fn stores_once(&self) -> bool {
        false
    }
    /// Whether its CPU kernel calls threads in wherever it runs, and loses nothing by running on its caller's.
    fn brings_threads(&self) -> bool {
        false
    }
    /// Whether it can meet data that it must refuse (an index out of range), which a GPU can only tell afterwards.
    fn checks_data(&self) -> bool {
        false
    }
    /// How it meets an input in memory of which its GPU kernels can sum up rows besides.
    fn rows(&self, _call: &Structured, _input: usize, _prices: &Prices) -> Option<Rows> {
        None
    }
    /// Fewest operations that compute it, for plan reports and benchmarks.
    fn flops(&self, call: &Structured) -> u64 {
        call.out_shape.iter().product::<usize>() as u64
    }
    /// The dispatches that compute it on this kind of adapter.
    #[cfg(feature = "gpu")]
    fn gpu(
        &self,
        call: &Structured,
        adapter: &crate::backend::gpu::AdapterInfo,
    ) -> Vec<crate::backend::gpu::ShaderCall>;
    /// The same in every way that gives the same bits, where there are several: `gpu` takes the fastest known.
    #[cfg(feature = "gpu")]
    fn ways(
        &self,
        _call: &Structured,
        _adapter: &crate::backend::gpu::AdapterInfo,
    ) -> Option<crate::backend::gpu::tune::Ways> {
        None
    }
    /// Computes the whole output, row-major, into `out`. `inputs` are whole buffers, to be read through
    /// `call.inputs`' layouts; halves come widened to [`DType::F32`]. An `Err` is a fault of the data (an index out of range), in words that follow
    /// the op's name.
    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String>;
    /// Elements of the pieces (rows, say) in which `cpu_pieces` can compute the output, each by itself; 0 if it cannot.
    fn piece(&self, _call: &Structured) -> usize {
        0
    }
    /// Computes whole pieces of the output, from element `first` on, on the calling thread, so that an epilogue finds
    /// them in its cache.
    fn cpu_pieces(&self, _call: &Structured, _inputs: &[&[u8]], _first: usize, _out: &mut [u8]) {}
}

#[derive(Clone, Debug)]
pub struct OpRef(pub Arc<dyn StructuredOp>);

impl PartialEq for OpRef {
    fn eq(&self, other: &OpRef) -> bool {
        self.0.name() == other.0.name() && self.0.key() == other.0.key()
    }
}
impl Eq for OpRef {}
impl Hash for OpRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
        self.0.key().hash(state);
    }
}

/// Number of a buffer in a recording.
pub type Slot = u32;

/// The one list both backends understand. Buffers are slots: the caller's, which come filled or are to be
/// filled, and temporaries.
#[derive(Debug, Default)]
pub struct Recording {
    pub commands: Vec<Command>,
}

#[derive(Clone, Debug)]
pub enum Command {
    Dispatch {
        kernel: Arc<Kernel>,
        /// One slot for each of the kernel's bindings. No slot is there twice.
        buffers: Vec<Slot>,
        /// Where this dispatch's scalars begin in the run's list.
        scalars: usize,
    },
    /// Copies the first `bytes` of a buffer to another.
    Copy { from: Slot, to: Slot, bytes: usize },
}

impl Command {
    /// Whether this may refuse its data.
    pub fn checks_data(&self) -> bool {
        let Command::Dispatch { kernel, .. } = self else { return false };
        matches!(&kernel.body, Body::Structured(call) if call.op.0.checks_data())
    }

    /// The slots that this command changes.
    pub fn writes(&self) -> Vec<Slot> {
        match self {
            Command::Dispatch { kernel, buffers, .. } => buffers
                .iter()
                .zip(&kernel.bindings)
                .filter(|(_, b)| b.written)
                .map(|(&slot, _)| slot)
                .collect(),
            Command::Copy { to, .. } => vec![*to],
        }
    }
}
