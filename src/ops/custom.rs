//! Ops of a program's own, with kernels of its own. They go where the library's go: the same shape and type rules, the
//! same fusion, the same plans, the same checks.
//!
//! [`elementwise`] takes an expression for each backend, and fuses with its neighbours as `exp` or `mul` do. [`kernel`] takes
//! a whole WGSL entry point.
//!
//! ```
//! # use wgrad::prelude::*;
//! let swish = custom::elementwise("swish")
//!     .wgsl("a / (T(1) + exp(-a))")
//!     .cpu(|[a]| a / (1.0 + (-a).exp()))
//!     .backward("g * (out + (T(1) - out) / (T(1) + exp(-a)))", |[a, out, g]| {
//!         g * (out + (1.0 - out) / (1.0 + (-a).exp()))
//!     })
//!     .register()?;
//!
//! let x = tensor([-1.0, 0.0, 2.0]).requires_grad_(true);
//! swish.check(&[&x])?; // both backends, and the gradient against differences
//! swish.call(&[&x]).sum().backward()?;
//! # let expected = x.detach().requires_grad_(true);
//! # expected.silu().sum().backward()?;
//! # let off = (x.grad().unwrap() - expected.grad().unwrap()).abs().max().item::<f32>()?;
//! # assert!(off < 1e-5, "{off}");
//! # Ok::<(), wgrad::Error>(())
//! ```
//!
//! A program registers its ops once, by names; registering the same code again gives the same op, and another under
//! the same name is refused. Ops live as long as the program.

mod check;
mod elementwise;
#[cfg(feature = "gpu")]
mod gpu;
mod kernel;
#[cfg(feature = "gpu")]
mod wgsl;

use std::any::TypeId;
use std::collections::HashMap;
use std::fmt;
use std::panic::Location;

use parking_lot::Mutex;

use super::record::{self, Arg, Caller};
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Tensor;

pub use elementwise::{Elementwise, elementwise};
pub use kernel::{Kernel, Shapes, kernel};

/// A registered op.
#[derive(Clone, Copy)]
pub struct Op(Which);

#[derive(Clone, Copy)]
enum Which {
    Elementwise(&'static elementwise::Registered),
    Kernel(&'static kernel::Registered),
}

/// Whether and how gradients pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By tensor ops, to any order.
    Formula,
    /// By kernels, once.
    Kernels,
    None,
}

impl Op {
    pub fn name(&self) -> &'static str {
        match self.0 {
            Which::Elementwise(op) => op.op.op.name,
            Which::Kernel(op) => op.name,
        }
    }

    /// Records the op. Elementwise ops broadcast and promote as the library's do; integers become float32.
    ///
    /// Gives an invalid tensor where the number of inputs, their shapes, types or devices do not fit.
    #[track_caller]
    pub fn call(&self, inputs: &[&Tensor]) -> Tensor {
        self.call_with(inputs, &[])
    }

    /// [`call`](Op::call) with values for [attributes](Kernel::attribute).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let scale = custom::kernel("scale_by", ["x"])
    ///     .attribute("by", 2.0)
    ///     .wgsl(
    ///         "@compute @workgroup_size(64)
    ///          fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    ///              let i = invocation(id, groups);
    ///              if i < params.numel { store(i, x[i] * params.by); }
    ///          }",
    ///     )
    ///     .cpu(|s, inputs, out| out.iter_mut().zip(inputs[0]).for_each(|(o, x)| *o = x * s.attribute("by")))
    ///     .register()?;
    /// let x = tensor([1.0, 2.0]);
    /// assert_eq!(scale.call(&[&x]).to_vec::<f32>()?, [2.0, 4.0]);
    /// assert_eq!(scale.call_with(&[&x], &[("by", 3.0)]).to_vec::<f32>()?, [3.0, 6.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn call_with(&self, inputs: &[&Tensor], attributes: &[(&str, f64)]) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(self.try_call(inputs, attributes, caller))
    }

    fn try_call(&self, inputs: &[&Tensor], attributes: &[(&str, f64)], caller: Caller) -> Result<Tensor> {
        let wanted = match self.0 {
            Which::Elementwise(op) => op.op.op.arity,
            Which::Kernel(op) => op.inputs.len(),
        };
        if inputs.len() != wanted {
            let message = format!("takes {} but {} given", many(wanted, "input"), were(inputs.len()));
            return Err(Error::at(caller, ErrorKind::Argument, self.name(), message));
        }
        match self.0 {
            Which::Elementwise(op) => {
                if let Some((name, _)) = attributes.first() {
                    let message = format!("has no attribute {name:?}; elementwise ops take inputs only");
                    return Err(Error::at(caller, ErrorKind::Argument, self.name(), message));
                }
                let args: Vec<Arg> = inputs.iter().map(|&t| t.into()).collect();
                op.op.try_call(&args, caller)
            }
            Which::Kernel(op) => op.try_call(inputs, attributes, caller),
        }
    }

    /// Runs the op on copies of `inputs` and holds it against itself: its gradient against finite differences (in
    /// float64, on the CPU), the gradient of that too where it is a formula, and, where there is a GPU, the GPU's values and
    /// gradients against the CPU's, also of inputs that lie otherwise in memory and with an op fused behind.
    ///
    /// Take small inputs of the shapes that matter, away from kinks: differences are taken entry by entry.
    ///
    /// # Errors
    /// Where two differ: which, at which entry, and both numbers. If the op can't be run on these inputs.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let square = custom::elementwise("my_square").wgsl("a * a").cpu(|[a]| a * a);
    /// let wrong = square.backward("g * a", |[a, _out, g]| g * a).register()?;
    /// let error = wrong.check(&[&tensor([1.0, 3.0])]).unwrap_err();
    /// assert!(error.message().contains("numerical"), "{error}");
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        check::check(*self, inputs, &[], Location::caller())
    }

    /// [`check`](Op::check) with values for attributes.
    #[track_caller]
    pub fn check_with(&self, inputs: &[&Tensor], attributes: &[(&str, f64)]) -> Result<()> {
        check::check(*self, inputs, attributes, Location::caller())
    }

    fn way(&self) -> Way {
        match self.0 {
            Which::Elementwise(op) => op.way,
            Which::Kernel(op) => op.way(),
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Op({})", self.name())
    }
}

/// What a gradient's formula can ask for.
pub struct Context<'a> {
    input: &'a dyn Fn(usize) -> Tensor,
    output: &'a dyn Fn() -> Option<Tensor>,
    needs: &'a dyn Fn(usize) -> bool,
    grad: &'a Tensor,
    caller: Caller,
    op: &'static str,
}

impl Context<'_> {
    /// The gradient of the op's result.
    pub fn grad(&self) -> Tensor {
        self.grad.clone()
    }

    /// Input `i`, as it was.
    pub fn input(&self, i: usize) -> Tensor {
        (self.input)(i)
    }

    /// The op's result. The op must have been registered with `saves_output`.
    pub fn output(&self) -> Tensor {
        (self.output)().unwrap_or_else(|| {
            let message = "its formula asks for the output, which `saves_output` must announce";
            Tensor::invalid(Error::at(self.caller, ErrorKind::Autograd, self.op, message))
        })
    }

    /// Whether a gradient of input `i` is wanted.
    pub fn needs(&self, i: usize) -> bool {
        (self.needs)(i)
    }
}

/// A gradient in tensor ops, by input.
type FormulaFn = dyn Fn(&Context<'_>) -> Vec<Option<Tensor>> + Send + Sync;

/// Runs a formula, and sees to it that what comes back is one gradient for each input.
fn run_formula(formula: &FormulaFn, context: &Context<'_>, inputs: usize) -> crate::autograd::Grads {
    let given = formula(context);
    if given.len() == inputs {
        return given.into_iter().enumerate().map(|(i, g)| g.filter(|_| context.needs(i))).collect();
    }
    let message = format!("its formula gave {} gradients for {}", given.len(), many(inputs, "input"));
    refuse(context, inputs, &message)
}

/// An error in the place of every gradient.
fn refuse(context: &Context<'_>, inputs: usize, message: &str) -> crate::autograd::Grads {
    let error = Error::at(context.caller, ErrorKind::Autograd, context.op, message);
    (0..inputs).map(|i| context.needs(i).then(|| Tensor::invalid(error.clone()))).collect()
}

/// What PyTorch says of an op without a gradient.
fn no_derivative(name: &str) -> String {
    format!("derivative for {name} is not implemented: it was registered without a backward or a formula")
}

// ---- registering ------------------------------------------------------------------------------------------

/// The code of a closure, as far as a program can tell two apart.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Code {
    code: TypeId,
    /// What it captured cannot be compared.
    captures: bool,
}

impl Code {
    fn of<F: 'static>(_: &F) -> Code {
        Code { code: TypeId::of::<F>(), captures: size_of::<F>() > 0 }
    }
}

/// All that tells one op from another.
#[derive(Clone, PartialEq, Default, Debug)]
struct Identity {
    texts: Vec<String>,
    codes: Vec<Code>,
}

impl Identity {
    fn same(&self, other: &Identity) -> bool {
        self == other && !self.codes.iter().any(|c| c.captures)
    }
}

static OPS: Mutex<Option<HashMap<String, (Identity, Op)>>> = Mutex::new(None);

/// The op of this name and code, made by `make` if it is new.
fn registered(
    name: &str,
    identity: Identity,
    caller: Caller,
    make: impl FnOnce(&'static str) -> Result<Op>,
) -> Result<Op> {
    check_name(name, "an op's name", caller)?;
    let mut ops = OPS.lock();
    let ops = ops.get_or_insert_default();
    if let Some((known, op)) = ops.get(name) {
        return if known.same(&identity) { Ok(*op) } else { Err(taken(name, &identity, caller)) };
    }
    let op = make(Box::leak(name.to_string().into_boxed_str()))?;
    ops.insert(name.to_string(), (identity, op));
    Ok(op)
}

fn taken(name: &str, identity: &Identity, caller: Caller) -> Error {
    let captured = if identity.codes.iter().any(|c| c.captures) {
        ". (Closures that capture values count as other code: register once, and keep the op)"
    } else {
        ""
    };
    let message = format!("an op named {name:?} is registered already, with other code{captured}");
    Error::at(caller, ErrorKind::Argument, "register", message)
}

/// Names stand in shaders.
fn check_name(name: &str, what: &str, caller: Caller) -> Result<()> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.contains("__") {
        return Ok(());
    }
    let message = format!(
        "{what} is made of letters, digits and single underscores, and begins with a letter; {name:?} is not"
    );
    Err(Error::at(caller, ErrorKind::Argument, "register", message))
}

/// `swish_2` is `Swish2Backward`.
fn grad_name(name: &str) -> &'static str {
    let mut out = String::new();
    for word in name.split('_') {
        let mut letters = word.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    Box::leak((out + "Backward").into_boxed_str())
}

fn bad(caller: Caller, name: &str, what: impl fmt::Display) -> Error {
    Error::at(caller, ErrorKind::Argument, "register", format!("{name}: {what}"))
}

fn many(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn were(n: usize) -> String {
    format!("{n} {}", if n == 1 { "was" } else { "were" })
}

/// The identifiers of WGSL text replaced where `rename` says so, without line comments. Members (`.x`) are not
/// identifiers.
fn rename(text: &str, mut rename: impl FnMut(&str) -> Option<String>) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut rest = line.split("//").next().unwrap_or("");
        while let Some(first) = rest.chars().next() {
            let word = is_word(first);
            let len = rest.find(|c| is_word(c) != word).unwrap_or(rest.len());
            let (token, after) = rest.split_at(len);
            let names = word && !first.is_ascii_digit() && !out.trim_end().ends_with('.');
            match names.then(|| rename(token)).flatten() {
                Some(new) => out.push_str(&new),
                None => out.push_str(token),
            }
            rest = after;
        }
        out.push(' ');
    }
    out.trim().to_string()
}
