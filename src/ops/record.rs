//! Recording an op: checks that all ops share, the node, and the way back.

use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use super::elementwise::{LOGICAL_AND, LOGICAL_OR};
use crate::autograd::{GradFn, Grads, Saved, links};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::device::{Device, check_dtype};
use crate::graph::dtype::{Bool, DType, F32, I32, Scalar};
use crate::graph::layout::{Dims, broadcast};
use crate::graph::node::{Node, NodeOp, Operand};
use crate::graph::program::MapOp;
use crate::tensor::Tensor;

pub(crate) type Caller = &'static Location<'static>;

/// An operand: a tensor or a number.
#[derive(Clone)]
pub enum Arg {
    Tensor(Tensor),
    Scalar(Scalar),
}

impl From<&Tensor> for Arg {
    fn from(t: &Tensor) -> Arg {
        Arg::Tensor(t.clone())
    }
}
impl From<Tensor> for Arg {
    fn from(t: Tensor) -> Arg {
        Arg::Tensor(t)
    }
}
impl From<&Arg> for Arg {
    fn from(a: &Arg) -> Arg {
        a.clone()
    }
}
macro_rules! arg_from {
    ($($t:ty)*) => {$(
        impl From<$t> for Arg {
            fn from(v: $t) -> Arg { Arg::Scalar(v.into()) }
        }
    )*};
}
arg_from! { Scalar bool i32 i64 u32 usize isize f32 f64 }

/// Which types an elementwise op computes in; others are converted to one of them first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Floats; integers become float32.
    Float,
    /// Numbers; bools become int32.
    Num,
    Any,
    /// Bools; numbers become `!= 0`.
    Logic,
}

/// The type of an elementwise op's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Out {
    Same,
    Bool,
}

/// Where an op's gradient is defined and tame, for the inputs that tests make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Domain {
    Real,
    Positive,
    /// Away from zero by 0.1 at least.
    NonZero,
}

/// An elementwise op, whole: how it is computed and how gradients pass through it.
pub struct Elementwise {
    pub op: MapOp,
    pub(crate) class: Class,
    pub(crate) out: Out,
    pub(crate) grad_name: &'static str,
    pub(crate) saves: u8,
    pub(crate) gradient: Gradient,
    pub domain: Domain,
}

pub(crate) const A: u8 = 1;
pub(crate) const B: u8 = 2;
pub(crate) const C: u8 = 4;
pub(crate) const OUT: u8 = 128;

/// Gradients by operand, from that of the result.
pub(crate) type Formula = dyn Fn(&Call<'_>, &Tensor) -> Grads + Send + Sync;

pub(crate) enum Gradient {
    /// In tensor ops, hence differentiable in turn. Broadcasting is undone by the caller.
    Formula(fn(&Call<'_>, &Tensor) -> Grads),
    /// The same, of an op that a program registered.
    Registered(Box<Formula>),
    /// The result is not differentiable: it is of an integer or bool type.
    None,
}

/// What a gradient formula can ask for.
pub(crate) struct Call<'a> {
    function: &'a Arc<GradFn>,
    args: &'a [SavedArg],
    output: Option<&'a Saved>,
}

enum SavedArg {
    Tensor(Saved),
    Scalar(Scalar),
    Nothing,
}

impl Call<'_> {
    /// The line that recorded the op.
    pub fn caller(&self) -> Caller {
        self.function.caller()
    }

    pub fn needs(&self, i: usize) -> bool {
        self.function.needs(i)
    }

    /// Operand `i`, which the op must have declared that it saves.
    pub fn arg(&self, i: usize) -> Arg {
        match &self.args[i] {
            SavedArg::Tensor(saved) => Arg::Tensor(saved.unpack(self.function)),
            SavedArg::Scalar(s) => Arg::Scalar(*s),
            SavedArg::Nothing => unreachable!("the op table asks only for what it saves"),
        }
    }

    /// Operand `i` as a tensor.
    pub fn input(&self, i: usize) -> Tensor {
        match self.arg(i) {
            Arg::Tensor(t) => t,
            // A number that a tensor-only formula asks for: as a 0-dim tensor it broadcasts.
            Arg::Scalar(s) => {
                let info = &self.function.outputs()[0];
                crate::tensor::options().device(&info.device).dtype(info.dtype).full((), s)
            }
        }
    }

    pub fn output(&self) -> Tensor {
        match self.output {
            Some(saved) => saved.unpack(self.function),
            None => unreachable!("the op table asks only for what it saves"),
        }
    }
}

/// The error of the first invalid operand.
pub(crate) fn first_error<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    tensors.into_iter().find_map(Tensor::error).map_or(Ok(()), Err)
}

/// The device all tensors are on.
pub(crate) fn common_device<'a>(
    op: &'static str,
    caller: Caller,
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Option<Device>> {
    let mut device: Option<&Device> = None;
    for t in tensors {
        match device {
            Some(d) if d != t.device() => {
                let message = format!(
                    "Expected all tensors to be on the same device, but found at least two devices, {d} and {}! \
                     Move one with .to(device)",
                    t.device()
                );
                return Err(Error::at(caller, ErrorKind::Device, op, message));
            }
            _ => device = Some(t.device()),
        }
    }
    Ok(device.cloned())
}

/// The type that operands are computed in together.
pub(crate) fn common_dtype(class: Class, args: &[Arg]) -> DType {
    let tensors = || args.iter().filter_map(|a| if let Arg::Tensor(t) = a { Some(t) } else { None });
    // A 0-dim tensor is like a number: it raises the category, not the width within it.
    let widest =
        |dims: bool| tensors().filter(|t| (t.dim() > 0) == dims).map(Tensor::dtype).reduce(DType::promote);
    let category = |t: DType| (t.is_float(), t != Bool);
    let mut dtype = match (widest(true), widest(false)) {
        (Some(a), Some(b)) if category(b) > category(a) => b,
        (Some(a), _) => a,
        (None, Some(b)) => b,
        (None, None) => F32,
    };
    for arg in args {
        if let Arg::Scalar(s) = arg {
            dtype = dtype.promote_scalar(*s);
        }
    }
    match class {
        Class::Float if !dtype.is_float() => F32,
        Class::Num if dtype == Bool => I32,
        Class::Logic => Bool,
        _ => dtype,
    }
}

impl Elementwise {
    /// Records this op over broadcast operands.
    #[track_caller]
    pub(crate) fn call(&'static self, args: &[Arg]) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(self.try_call(args, caller))
    }

    pub(crate) fn try_call(&'static self, args: &[Arg], caller: Caller) -> Result<Tensor> {
        let op = self.op.name;
        let tensors = || args.iter().filter_map(|a| if let Arg::Tensor(t) = a { Some(t) } else { None });
        first_error(tensors())?;
        let device = common_device(op, caller, tensors())?.ok_or_else(|| {
            Error::at(caller, ErrorKind::Argument, op, "at least one operand must be a tensor")
        })?;
        let typed = if self.op.mask_first { &args[1..] } else { args };
        let dtype = common_dtype(self.class, typed);
        let mut shape = Dims::new();
        for t in tensors() {
            shape = broadcast(&shape, t.shape()).ok_or_else(|| {
                let shapes: Vec<&[usize]> = tensors().map(Tensor::shape).collect();
                let message = format!("shapes {shapes:?} cannot be broadcast together");
                Error::at(caller, ErrorKind::Shape, op, message)
            })?;
        }
        let cast: SmallVec<[Arg; 3]> = (args.iter().enumerate())
            .map(|(i, arg)| match arg {
                Arg::Tensor(t) => {
                    let want = if self.op.mask_first && i == 0 { Bool } else { dtype };
                    Arg::Tensor(super::cast::to_dtype(t, want, caller))
                }
                Arg::Scalar(s) => Arg::Scalar(*s),
            })
            .collect();
        let result = if self.out == Out::Bool { Bool } else { dtype };
        let out = map(self.on(dtype), dtype, result, &device, &shape, &cast, caller);
        self.link(&out, &cast, caller);
        Ok(out)
    }

    /// Bools add as `or` and multiply as `and`, for which shaders have other signs.
    fn on(&'static self, dtype: DType) -> &'static MapOp {
        match self.op.name {
            "add" if dtype == Bool => &LOGICAL_OR.op,
            "mul" if dtype == Bool => &LOGICAL_AND.op,
            _ => &self.op,
        }
    }

    fn link(&'static self, out: &Tensor, args: &[Arg], caller: Caller) {
        let tensors = args.iter().map(|a| if let Arg::Tensor(t) = a { Some(t) } else { None });
        let Some(links) = links(out, self.op.name, tensors, caller) else { return };
        let formula: &'static Formula = match &self.gradient {
            Gradient::Formula(formula) => formula,
            Gradient::Registered(formula) => &**formula,
            Gradient::None => return,
        };
        let saved: SmallVec<[SavedArg; 3]> = (args.iter().enumerate())
            .map(|(i, arg)| match arg {
                Arg::Scalar(s) => SavedArg::Scalar(*s),
                Arg::Tensor(t) if self.saves & 1 << i != 0 => SavedArg::Tensor(Saved::input(t)),
                Arg::Tensor(_) => SavedArg::Nothing,
            })
            .collect();
        let output = (self.saves & OUT != 0).then(|| Saved::output(out));
        let shapes: SmallVec<[Dims; 3]> = (args.iter())
            .map(|a| if let Arg::Tensor(t) = a { Dims::from_slice(t.shape()) } else { Dims::new() })
            .collect();
        let backward = move |function: &Arc<GradFn>, grads: &[Option<Tensor>]| -> Grads {
            let Some(Some(g)) = grads.first() else { return Grads::new() };
            let call = Call { function, args: &saved, output: output.as_ref() };
            let mut out = formula(&call, g);
            for (grad, shape) in out.iter_mut().zip(&shapes) {
                if let Some(g) = grad {
                    *grad = Some(super::reduce::sum_to(g, shape));
                }
            }
            out
        };
        out.link(self.grad_name, caller, links, Arc::new(backward));
    }
}

/// Records an elementwise node, without autograd.
pub(crate) fn map(
    op: &'static MapOp,
    operand: DType,
    result: DType,
    device: &Device,
    shape: &[usize],
    args: &[Arg],
    caller: Caller,
) -> Tensor {
    if let Err(error) = check_dtype(device, result, op.name, caller) {
        return Tensor::invalid(error);
    }
    let inputs = args
        .iter()
        .map(|a| match a {
            Arg::Tensor(t) => {
                let layout = t.layout().expand(shape).unwrap_or_else(|| t.layout().clone());
                t.operand(layout)
            }
            Arg::Scalar(s) => Operand::Scalar(*s),
        })
        .collect();
    Tensor::from_node(Node::record(device, result, shape, NodeOp::Map { op, operand }, inputs, caller))
}

/// Puts the result of a structured op into the autograd graph. `formula` gets the function (to unpack what it
/// saved) and the gradient of the result, and gives gradients by input.
pub(crate) fn link(
    out: &Tensor,
    name: &'static str,
    inputs: &[&Tensor],
    caller: Caller,
    formula: impl FnOnce() -> Box<dyn Fn(&Arc<GradFn>, &Tensor) -> Grads + Send + Sync>,
) {
    let Some(links) = links(out, name, inputs.iter().map(|&t| Some(t)), caller) else { return };
    let formula = formula();
    out.link(
        name,
        caller,
        links,
        Arc::new(move |function, grads: &[Option<Tensor>]| match grads.first() {
            Some(Some(g)) => formula(function, g),
            _ => Grads::new(),
        }),
    );
}
