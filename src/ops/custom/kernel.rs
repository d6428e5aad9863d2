//! Ops of a program's own with a whole kernel each.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;

use smallvec::SmallVec;

#[cfg(feature = "gpu")]
use super::gpu;
use super::record::{Arg, Caller, Class, common_device, common_dtype, first_error, link};
use super::{Code, Context, FormulaFn, Identity, Op, Way, Which, bad, check_name, grad_name, no_derivative};
use crate::autograd::Saved;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::device::check_dtype;
use crate::graph::dtype::{DType, F32, Scalar};
use crate::graph::kernel::{OpRef, Structured, StructuredOp};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::Tensor;

/// Names that the shader has already.
const TAKEN: [&str; 9] =
    ["params", "store", "invocation", "status", "scalars", "main", "T", "Params", "anchor"];

type ShapeFn = dyn Fn(&[&[usize]]) -> Result<Vec<usize>, String> + Send + Sync;
type NumberFn = dyn Fn(&Shapes<'_>) -> usize + Send + Sync;
type GroupsFn = dyn Fn(&Shapes<'_>) -> [usize; 3] + Send + Sync;
type DoubleFn = dyn Fn(&Shapes<'_>, &[&[f64]], &mut [f64]) + Send + Sync;
type SingleFn = dyn Fn(&Shapes<'_>, &[&[f32]], &mut [f32]) + Send + Sync;

/// What [`kernel()`] begins; [`register`](Kernel::register) ends it.
#[must_use = "an op exists once it is registered"]
pub struct Kernel {
    name: String,
    inputs: Vec<(String, Option<DType>)>,
    shape: Option<Box<ShapeFn>>,
    dtype: Option<DType>,
    params: Vec<(String, Box<NumberFn>)>,
    attributes: Vec<(String, f64)>,
    grid: Option<Grid>,
    wgsl: String,
    double: Option<Box<DoubleFn>>,
    single: Option<Box<SingleFn>>,
    formula: Option<Box<FormulaFn>>,
    saves_output: bool,
    fuses: bool,
    codes: Vec<Code>,
}

#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "grids are for GPUs"))]
pub(super) enum Grid {
    Invocations(Box<NumberFn>),
    Workgroups(Box<GroupsFn>),
}

/// The shapes of one call, and its attributes.
pub struct Shapes<'a> {
    inputs: SmallVec<[&'a [usize]; 4]>,
    output: &'a [usize],
    pub(super) attributes: &'a [(&'static str, f64)],
}

impl Shapes<'_> {
    pub fn input(&self, i: usize) -> &[usize] {
        self.inputs[i]
    }

    pub fn output(&self) -> &[usize] {
        self.output
    }

    /// The number of elements of the output.
    pub fn numel(&self) -> usize {
        self.output.iter().product()
    }

    /// An attribute's value in this call; NaN if there is none of this name.
    pub fn attribute(&self, name: &str) -> f64 {
        self.attributes.iter().find(|(n, _)| *n == name).map_or(f64::NAN, |(_, v)| *v)
    }
}

/// Begins an op with a kernel of its own, of inputs with these names.
///
/// In its WGSL there is an entry point `main`. For each input there is `var<storage, read>` under its name, an array of
/// f32 (or of the type given by [`input_dtype`](Kernel::input_dtype)), row-major and without gaps. The result is written with
/// `store(i, value)`, which must be called once for each of its elements. `params` has [params](Kernel::param) (u32),
/// [attributes](Kernel::attribute) (f32), and `params.numel`, the number of elements of the result. `T` is f32.
/// `invocation(global_invocation_id, num_workgroups)` counts invocations of a grid that may be folded to more than one
/// dimension, and the functions of `shaders/shared` can be called.
///
/// ```
/// # use wgrad::prelude::*;
/// let row_sum = custom::kernel("row_sum", ["x"])
///     .output(|s| match s[0] {
///         [rows, _] => Ok(vec![*rows]),
///         other => Err(format!("expected a matrix, got shape {other:?}")),
///     })
///     .param("n", |s| s.input(0)[1])
///     .wgsl(
///         "@compute @workgroup_size(64)
///          fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
///              let row = invocation(id, groups);
///              if row >= params.numel { return; }
///              var sum = 0.0;
///              for (var k = 0u; k < params.n; k++) { sum += x[row * params.n + k]; }
///              store(row, sum);
///          }",
///     )
///     .cpu(|s, inputs, out| {
///         let n = s.input(0)[1];
///         for (row, out) in out.iter_mut().enumerate() {
///             *out = inputs[0][row * n..][..n].iter().sum();
///         }
///     })
///     .formula(|c| vec![Some(c.grad().unsqueeze(1).expand(c.input(0).shape()))])
///     .register()?;
///
/// let x = tensor([[1.0, 2.0], [3.0, 4.0]]);
/// assert_eq!(row_sum.call(&[&x]).to_vec::<f32>()?, [3.0, 7.0]);
/// row_sum.check(&[&x])?;
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn kernel<const N: usize>(name: &str, inputs: [&str; N]) -> Kernel {
    Kernel {
        name: name.to_string(),
        inputs: inputs.iter().map(|i| (i.to_string(), None)).collect(),
        shape: None,
        dtype: None,
        params: vec![],
        attributes: vec![],
        grid: None,
        wgsl: String::new(),
        double: None,
        single: None,
        formula: None,
        saves_output: false,
        fuses: false,
        codes: vec![],
    }
}

impl Kernel {
    /// The result's shape from those of the inputs; that of the first input if nothing is said. An `Err` becomes the error of
    /// the call.
    pub fn output<F>(mut self, shape: F) -> Kernel
    where
        F: Fn(&[&[usize]]) -> Result<Vec<usize>, String> + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&shape));
        self.shape = Some(Box::new(shape));
        self
    }

    /// The result's type, where it is not the inputs' float. Bools are stored as `bool`.
    pub fn output_dtype(mut self, dtype: DType) -> Kernel {
        self.dtype = Some(dtype);
        self
    }

    /// An input that must have this type. Others are floats: they are promoted together, and integers become float32.
    pub fn input_dtype(mut self, name: &str, dtype: DType) -> Kernel {
        match self.inputs.iter_mut().find(|(n, _)| n == name) {
            Some((_, slot)) => *slot = Some(dtype),
            // `register` finds this name unfit.
            None => self.inputs.push((format!("{name:?}, which is no input"), Some(dtype))),
        }
        self
    }

    /// A number that the kernel reads as `params.name`, from shapes.
    pub fn param<F>(mut self, name: &str, of: F) -> Kernel
    where
        F: Fn(&Shapes<'_>) -> usize + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&of));
        self.params.push((name.to_string(), Box::new(of)));
        self
    }

    /// A number that each call may choose, `params.name` in the kernel; see [`Op::call_with`].
    pub fn attribute(mut self, name: &str, default: f64) -> Kernel {
        self.attributes.push((name.to_string(), default));
        self
    }

    /// How many invocations are wanted, where it is not one for each element of the result. There may be more.
    pub fn invocations<F>(mut self, of: F) -> Kernel
    where
        F: Fn(&Shapes<'_>) -> usize + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&of));
        self.grid = Some(Grid::Invocations(Box::new(of)));
        self
    }

    /// The grid itself, in workgroups. No dimension may exceed 65,535.
    pub fn workgroups<F>(mut self, of: F) -> Kernel
    where
        F: Fn(&Shapes<'_>) -> [usize; 3] + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&of));
        self.grid = Some(Grid::Workgroups(Box::new(of)));
        self
    }

    /// The kernel.
    pub fn wgsl(mut self, text: &str) -> Kernel {
        self.wgsl = text.to_string();
        self
    }

    /// The same for the CPU: shapes, inputs, and the result to be filled, all row-major. Elements are widened to f64, and
    /// the result is rounded.
    pub fn cpu<F>(mut self, f: F) -> Kernel
    where
        F: Fn(&Shapes<'_>, &[&[f64]], &mut [f64]) + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&f));
        self.double = Some(Box::new(f));
        self
    }

    /// The same without conversion, for calls in which everything is float32.
    pub fn cpu_f32<F>(mut self, f: F) -> Kernel
    where
        F: Fn(&Shapes<'_>, &[&[f32]], &mut [f32]) + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&f));
        self.single = Some(Box::new(f));
        self
    }

    /// The gradients by input, in tensor ops, other registered ops among them; `None` where there is none. It can be
    /// differentiated again if they can.
    pub fn formula<F>(mut self, f: F) -> Kernel
    where
        F: Fn(&Context<'_>) -> Vec<Option<Tensor>> + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&f));
        self.formula = Some(Box::new(f));
        self
    }

    /// Keeps the result for the [`formula`](Kernel::formula).
    pub fn saves_output(mut self) -> Kernel {
        self.saves_output = true;
        self
    }

    /// Lets elementwise ops on the result be computed where `store` stands, instead of in a kernel of their own. For kernels
    /// that call `store` once for each element, and with a grid that does not call it again from elsewhere: the op may write where
    /// its operand was.
    pub fn fuses(mut self) -> Kernel {
        self.fuses = true;
        self
    }

    /// Checks the op and makes it.
    ///
    /// # Errors
    /// If a part is missing or does not fit the others; if the WGSL is not valid or not what browsers take, with the line and
    /// place (in builds with the feature `gpu`); if an op of that name is there with other code.
    #[track_caller]
    pub fn register(self) -> Result<Op> {
        let caller = Location::caller();
        let rest = (&self.inputs, self.dtype, &self.attributes, self.saves_output, self.fuses);
        let names: Vec<&String> = self.params.iter().map(|(name, _)| name).collect();
        let grid = matches!(self.grid, Some(Grid::Workgroups(_)));
        let texts = vec!["kernel".to_string(), self.wgsl.clone(), format!("{rest:?} {names:?} {grid}")];
        let identity = Identity { texts, codes: self.codes.clone() };
        super::registered(&self.name.clone(), identity, caller, |name| self.make(name, caller))
    }

    fn make(self, name: &'static str, caller: Caller) -> Result<Op> {
        let refuse = |what: String| bad(caller, name, what);
        let mut seen = HashSet::new();
        let params = || self.params.iter().map(|(n, _)| n).chain(self.attributes.iter().map(|(n, _)| n));
        for (what, given) in (self.inputs.iter().map(|(n, _)| ("an input's name", n)))
            .chain(params().map(|n| ("a parameter's name", n)))
        {
            check_name(given, what, caller)?;
            let generated = |stem| given.strip_prefix(stem).is_some_and(|n| n.parse::<u32>().is_ok());
            if !seen.insert(given.as_str())
                || TAKEN.contains(&given.as_str())
                || given == "numel"
                || generated("b")
            {
                return Err(refuse(format!("the name {given} is taken")));
            }
        }
        if self.inputs.is_empty() || self.inputs.len() > 6 {
            return Err(refuse(format!("kernels take 1 to 6 inputs, not {}", self.inputs.len())));
        }
        let Some(double) = self.double else {
            return Err(refuse("`cpu` has not been given".into()));
        };
        if self.wgsl.trim().is_empty() {
            return Err(refuse("`wgsl` has not been given".into()));
        }
        let leak = |s: String| -> &'static str { Box::leak(s.into_boxed_str()) };
        let registered = Registered {
            name,
            grad_name: grad_name(name),
            inputs: self.inputs,
            shape: self.shape.unwrap_or_else(|| Box::new(|s: &[&[usize]]| Ok(s[0].to_vec()))),
            dtype: self.dtype,
            params: self.params,
            attributes: self.attributes.into_iter().map(|(n, v)| (leak(n), v)).collect(),
            double,
            single: self.single,
            formula: self.formula.map(Arc::from),
            saves_output: self.saves_output,
            fuses: self.fuses,
            #[cfg(feature = "gpu")]
            gpu: gpu::Gpu::default(),
        };
        #[cfg(feature = "gpu")]
        let registered = Registered {
            gpu: gpu::Gpu::new(&registered, &self.wgsl, self.grid).map_err(|what| bad(caller, name, what))?,
            ..registered
        };
        Ok(Op(Which::Kernel(Box::leak(Box::new(registered)))))
    }
}

/// A kernel as it was registered.
pub(super) struct Registered {
    pub name: &'static str,
    grad_name: &'static str,
    pub inputs: Vec<(String, Option<DType>)>,
    shape: Box<ShapeFn>,
    pub dtype: Option<DType>,
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "for shaders"))]
    pub params: Vec<(String, Box<NumberFn>)>,
    pub attributes: Vec<(&'static str, f64)>,
    double: Box<DoubleFn>,
    single: Option<Box<SingleFn>>,
    formula: Option<Arc<FormulaFn>>,
    saves_output: bool,
    fuses: bool,
    #[cfg(feature = "gpu")]
    gpu: gpu::Gpu,
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Registered {
    pub fn way(&self) -> Way {
        if self.formula.is_some() { Way::Formula } else { Way::None }
    }

    pub fn try_call(
        &'static self,
        inputs: &[&Tensor],
        attributes: &[(&str, f64)],
        caller: Caller,
    ) -> Result<Tensor> {
        let fail = |kind, what: String| Err(Error::at(caller, kind, self.name, what));
        first_error(inputs.iter().copied())?;
        let Some(device) = common_device(self.name, caller, inputs.iter().copied())? else {
            return fail(ErrorKind::Argument, "takes at least one input".into());
        };
        let mut values = self.attributes.clone();
        for &(name, value) in attributes {
            match values.iter_mut().find(|(n, _)| *n == name) {
                Some(slot) => slot.1 = value,
                None => {
                    let known: Vec<&str> = self.attributes.iter().map(|(n, _)| *n).collect();
                    return fail(ErrorKind::Argument, format!("has no attribute {name:?}; it has {known:?}"));
                }
            }
        }
        let floats: Vec<Arg> = (self.inputs.iter().zip(inputs))
            .filter(|((_, dtype), _)| dtype.is_none())
            .map(|(_, &t)| t.into())
            .collect();
        let float = if floats.is_empty() { F32 } else { common_dtype(Class::Float, &floats) };
        let mut read: SmallVec<[Tensor; 4]> = SmallVec::new();
        for ((name, wanted), &t) in self.inputs.iter().zip(inputs) {
            match wanted {
                Some(dtype) if t.dtype() != *dtype => {
                    return fail(
                        ErrorKind::DType,
                        format!("expected {name} to be {dtype}, but it is {}", t.dtype()),
                    );
                }
                Some(_) => read.push(t.clone()),
                None => read.push(crate::ops::cast::to_dtype(t, float, caller)),
            }
        }
        let shapes: Vec<&[usize]> = inputs.iter().map(|t| t.shape()).collect();
        let shape = match (self.shape)(&shapes) {
            Ok(shape) => shape,
            Err(what) => return fail(ErrorKind::Shape, what),
        };
        if shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).is_none_or(|n| n > isize::MAX as usize / 8)
        {
            return fail(ErrorKind::Shape, format!("a result of shape {shape:?} is too large"));
        }
        let dtype = self.dtype.unwrap_or(float);
        check_dtype(&device, dtype, self.name, caller)?;
        let operands = read
            .iter()
            .map(|t| {
                let whole = t.alias().whole(caller);
                whole.operand(whole.layout().clone())
            })
            .collect();
        let op = NodeOp::Structured(OpRef(Arc::new(Instance { op: self, attributes: values })));
        let out = Tensor::from_node(Node::record(&device, dtype, &shape, op, operands, caller));
        let read: Vec<&Tensor> = read.iter().collect();
        link(&out, self.grad_name, &read, caller, || {
            let saved: Vec<Saved> =
                if self.formula.is_some() { read.iter().map(|t| Saved::input(t)).collect() } else { vec![] };
            let output = self.saves_output.then(|| Saved::output(&out));
            Box::new(move |function, g| {
                let input = |i: usize| saved[i].unpack(function);
                let output = || output.as_ref().map(|o| o.unpack(function));
                let needs = |i| function.needs(i);
                let context = Context {
                    input: &input,
                    output: &output,
                    needs: &needs,
                    grad: g,
                    caller: function.caller(),
                    op: self.name,
                };
                match &self.formula {
                    Some(formula) => super::run_formula(&**formula, &context, self.inputs.len()),
                    None => super::refuse(&context, self.inputs.len(), &no_derivative(self.name)),
                }
            })
        });
        Ok(out)
    }
}

/// One call's op: a kernel and its attributes.
#[derive(Debug)]
struct Instance {
    op: &'static Registered,
    attributes: Vec<(&'static str, f64)>,
}

impl Instance {
    fn shapes<'a>(&'a self, call: &'a Structured) -> Shapes<'a> {
        let inputs = call.inputs.iter().map(|(_, layout)| &layout.shape[..]).collect();
        Shapes { inputs, output: &call.out_shape, attributes: &self.attributes }
    }
}

impl StructuredOp for Instance {
    fn name(&self) -> &'static str {
        self.op.name
    }

    fn key(&self) -> Vec<u64> {
        // Where the registration lies tells it from the library's ops, whose keys are small numbers.
        let own = std::ptr::from_ref(self.op) as usize as u64;
        std::iter::once(own).chain(self.attributes.iter().map(|(_, v)| v.to_bits())).collect()
    }

    fn fuses_epilogue(&self) -> bool {
        self.op.fuses
    }

    #[cfg(feature = "gpu")]
    fn gpu(
        &self,
        call: &Structured,
        _: &crate::backend::gpu::AdapterInfo,
    ) -> Vec<crate::backend::gpu::ShaderCall> {
        self.op.gpu.calls(self.op, &self.shapes(call))
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        if out.is_empty() {
            return Ok(());
        }
        let shapes = self.shapes(call);
        let bytes: Vec<&[u8]> = (call.inputs.iter().zip(inputs))
            .map(|((dtype, layout), bytes)| &bytes[..layout.numel() * dtype.size()])
            .collect();
        let all_single = call.out_dtype == F32 && call.inputs.iter().all(|(dtype, _)| *dtype == F32);
        // A kernel that panics is wrong, and the values that it was to make are not there; the rest goes on.
        let run = || match &self.op.single {
            Some(f) if all_single => {
                let inputs: Vec<&[f32]> = bytes.iter().map(|b| bytemuck::cast_slice(b)).collect();
                f(&shapes, &inputs, bytemuck::cast_slice_mut(out));
            }
            _ => {
                let inputs: Vec<Vec<f64>> =
                    call.inputs.iter().zip(&bytes).map(|((dtype, _), b)| dtype.numbers(b)).collect();
                let inputs: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
                let mut values = vec![0.0; out.len() / call.out_dtype.size()];
                (self.op.double)(&shapes, &inputs, &mut values);
                narrow(call.out_dtype, &values, out);
            }
        };
        catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            format!("has a CPU kernel that panicked: {text}")
        })
    }
}

fn narrow(dtype: DType, values: &[f64], out: &mut [u8]) {
    for (&value, out) in values.iter().zip(out.chunks_exact_mut(dtype.size())) {
        let bits = match dtype {
            // Integers saturate, as they do in shaders.
            DType::U32 => u64::from(value as u32),
            DType::I32 => u64::from(value as i32 as u32),
            _ => Scalar::Float(value).bits(dtype),
        };
        out.copy_from_slice(&bits.to_ne_bytes()[..out.len()]);
    }
}
