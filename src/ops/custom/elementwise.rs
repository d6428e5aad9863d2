//! Elementwise ops of a program's own.

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

use super::record::{self, Arg, Call, Caller, Class, Domain, Formula, Gradient, OUT, Out};
use super::{Code, Context, FormulaFn, Identity, Op, Way, Which, bad, grad_name, many, no_derivative};
use crate::backend::cpu::number::Real;
use crate::error::Result;
use crate::graph::dtype::{DType, Scalar};
use crate::graph::program::{BlockFn, BlockFns, MapOp};
use crate::tensor::Tensor;

/// Operands as expressions name them.
const LETTERS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What [`elementwise`] begins; [`register`](Elementwise::register) ends it.
#[must_use = "an op exists once it is registered"]
pub struct Elementwise {
    name: String,
    forward: Half,
    backward: Vec<Half>,
    formula: Option<Box<FormulaFn>>,
    saves_output: bool,
    cost: u32,
    codes: Vec<Code>,
}

/// A kernel on both backends.
#[derive(Default)]
struct Half {
    wgsl: String,
    arity: Option<usize>,
    cpu: Option<Box<dyn FnOnce() -> BlockFns>>,
}

/// An op, and how its gradients are made.
pub(super) struct Registered {
    pub op: &'static record::Elementwise,
    pub way: Way,
}

/// Begins an elementwise op of up to five operands. It computes in floats (integers and bools become float32), broadcasts,
/// and is fused with its neighbours.
///
/// ```
/// # use wgrad::prelude::*;
/// let hypot = custom::elementwise("hypot")
///     .wgsl("sqrt(a * a + b * b)")
///     .cpu(|[a, b]| a.hypot(b))
///     .saves_output()
///     .formula(|c| {
///         let (g, out) = (c.grad(), c.output());
///         vec![Some(&g * c.input(0) / &out), Some(&g * c.input(1) / &out)]
///     })
///     .register()?;
/// let (x, y) = (tensor([[3.0], [5.0]]), tensor([4.0, 12.0]));
/// assert_eq!(hypot.call(&[&x, &y]).shape(), [2, 2]);
/// hypot.check(&[&x, &y])?; // gradients of gradients too: there is a formula
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn elementwise(name: &str) -> Elementwise {
    Elementwise {
        name: name.to_string(),
        forward: Half::default(),
        backward: vec![],
        formula: None,
        saves_output: false,
        cost: 10,
        codes: vec![],
    }
}

impl Elementwise {
    /// The result for GPUs: an expression of the operands `a`, `b`, `c`, `d`, `e`. `T` is their type, one float or a vector of
    /// four: write constants as `T(1)`, choose with `select`, and take loops to [`kernel`](super::kernel()). The functions of
    /// `shaders/shared` can be called: `w_exp`, `w_tanh`, `w_erf`, `w_pow` and others, whose edge cases are the CPU's.
    pub fn wgsl(mut self, expression: &str) -> Elementwise {
        self.forward.wgsl = expression.to_string();
        self
    }

    /// The same for the CPU, element by element. Elements of float32 tensors are widened, and the result rounded.
    pub fn cpu<const N: usize, F>(mut self, f: F) -> Elementwise
    where
        F: Fn([f64; N]) -> f64 + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&f));
        self.forward.arity = Some(N);
        self.forward.cpu = Some(Box::new(move || widened(f)));
        self
    }

    /// The same in the library's own form, which computes each type in itself and is compiled for wide vectors:
    /// `wgrad::block!(float |a| a / (T::of(1.0) + (-a).exp()))`. The functions are those of
    /// [`Real`](crate::backend::cpu::number::Real).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let cube = custom::elementwise("cube")
    ///     .wgsl("a * a * a")
    ///     .cpu_block(1, wgrad::block!(float |a| a * a * a))
    ///     .formula(|c| vec![Some(c.grad() * c.input(0).square() * 3)])
    ///     .register()?;
    /// assert_eq!(cube.call(&[&tensor([2.0, -3.0])]).to_vec::<f32>()?, [8.0, -27.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    pub fn cpu_block<F>(mut self, operands: usize, kernels: &'static F) -> Elementwise
    where
        F: Fn(DType, DType) -> Option<BlockFn> + Send + Sync + 'static,
    {
        self.codes.push(Code::of(kernels));
        self.forward.arity = Some(operands);
        self.forward.cpu = Some(Box::new(move || kernels));
        self
    }

    /// The gradient of the next input (the first call says that of `a`), on both backends: an expression of the operands, of
    /// `out`, which is the op's result, and of `g`, the result's gradient; and a closure that takes them in this order.
    /// What the expression does not name is not kept for it, and the closure gets NaN for that.
    ///
    /// Kernels have no gradient themselves: differentiating twice is an error. See [`formula`](Elementwise::formula).
    pub fn backward<const N: usize, F>(mut self, wgsl: &str, cpu: F) -> Elementwise
    where
        F: Fn([f64; N]) -> f64 + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&cpu));
        let cpu: Box<dyn FnOnce() -> BlockFns> = Box::new(move || widened(cpu));
        self.backward.push(Half { wgsl: wgsl.to_string(), arity: Some(N), cpu: Some(cpu) });
        self
    }

    /// The gradients by input, in tensor ops, which can be differentiated again. Broadcasting is undone behind it.
    pub fn formula<F>(mut self, f: F) -> Elementwise
    where
        F: Fn(&Context<'_>) -> Vec<Option<Tensor>> + Send + Sync + 'static,
    {
        self.codes.push(Code::of(&f));
        self.formula = Some(Box::new(f));
        self
    }

    /// Keeps the result for the [`formula`](Elementwise::formula).
    pub fn saves_output(mut self) -> Elementwise {
        self.saves_output = true;
        self
    }

    /// Roughly how many additions the forward expression is worth (10 if nothing is said). The scheduler weighs
    /// computing twice against storing by it.
    pub fn cost(mut self, additions: u32) -> Elementwise {
        self.cost = additions;
        self
    }

    /// Checks the op and makes it.
    ///
    /// # Errors
    /// If a part is missing or does not fit the others; if the WGSL is not valid, with the line and place (in builds with the
    /// feature `gpu`); if an op of that name is there with other code.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// # if cfg!(not(feature = "gpu")) { return }
    /// let bad = custom::elementwise("bad").wgsl("max(a, 0.5").cpu(|[a]| a).register();
    /// println!("{}", bad.unwrap_err()); // what naga says, and where
    /// ```
    #[track_caller]
    pub fn register(self) -> Result<Op> {
        let caller = Location::caller();
        let mut texts = vec!["elementwise".to_string(), self.forward.wgsl.clone()];
        texts.extend(self.backward.iter().map(|b| b.wgsl.clone()));
        texts.push(format!("{:?} {} {}", self.forward.arity, self.saves_output, self.cost));
        let identity = Identity { texts, codes: self.codes.clone() };
        super::registered(&self.name.clone(), identity, caller, |name| self.make(name, caller))
    }

    fn make(self, name: &'static str, caller: Caller) -> Result<Op> {
        let refuse = |what: String| bad(caller, name, what);
        let (Some(arity), Some(cpu)) = (self.forward.arity, self.forward.cpu) else {
            return Err(refuse("`cpu` has not been given".into()));
        };
        if !(1..=LETTERS.len()).contains(&arity) {
            return Err(refuse(format!("`cpu` takes {arity} operands; elementwise ops take 1 to 5")));
        }
        if self.forward.wgsl.trim().is_empty() {
            return Err(refuse("`wgsl` has not been given".into()));
        }
        let letters = &LETTERS[..arity];
        check_wgsl(name, name, &self.forward.wgsl, letters, caller)?;
        let (way, gradient, saves) = match (self.formula, self.backward.is_empty()) {
            (Some(_), false) => {
                return Err(refuse("a `formula` and `backward` were given: one of them is enough".into()));
            }
            (Some(formula), true) => {
                let saves = inputs_mask(arity) | if self.saves_output { OUT } else { 0 };
                (Way::Formula, by_formula(name, arity, formula, self.saves_output), saves)
            }
            (None, true) => (Way::None, refusal(name, arity, no_derivative(name)), 0),
            (None, false) => {
                let (gradient, saves) = by_kernels(name, letters, self.backward, caller)?;
                (Way::Kernels, gradient, saves)
            }
        };
        let wgsl = super::rename(&self.forward.wgsl, |_| None);
        let map = map_op(name, arity, wgsl, cpu(), self.cost);
        let op = Box::leak(Box::new(row(map, grad_name(name), saves, gradient)));
        Ok(Op(Which::Elementwise(Box::leak(Box::new(Registered { op, way })))))
    }
}

fn inputs_mask(arity: usize) -> u8 {
    (1 << arity) - 1
}

fn row(op: MapOp, grad_name: &'static str, saves: u8, gradient: Box<Formula>) -> record::Elementwise {
    record::Elementwise {
        op,
        class: Class::Float,
        out: Out::Same,
        grad_name,
        saves,
        gradient: Gradient::Registered(gradient),
        domain: Domain::Real,
    }
}

fn map_op(name: &'static str, arity: usize, wgsl: String, cpu: BlockFns, cost: u32) -> MapOp {
    let wgsl = Box::leak(wgsl.into_boxed_str());
    MapOp { name, arity, mask_first: false, wgsl, wgsl_int: "", cpu, cost }
}

fn context<'a>(
    call: &Call<'_>,
    g: &'a Tensor,
    name: &'static str,
    input: &'a dyn Fn(usize) -> Tensor,
    output: &'a dyn Fn() -> Option<Tensor>,
    needs: &'a dyn Fn(usize) -> bool,
) -> Context<'a> {
    Context { input, output, needs, grad: g, caller: call.caller(), op: name }
}

fn by_formula(name: &'static str, arity: usize, formula: Box<FormulaFn>, saves_output: bool) -> Box<Formula> {
    Box::new(move |call, g| {
        let (input, needs) = (|i| call.input(i), |i| call.needs(i));
        let output = || saves_output.then(|| call.output());
        super::run_formula(&*formula, &context(call, g, name, &input, &output, &needs), arity)
    })
}

/// An error instead of gradients.
fn refusal(name: &'static str, arity: usize, message: String) -> Box<Formula> {
    Box::new(move |call, g| {
        let needs = |i| call.needs(i);
        super::refuse(&context(call, g, name, &|_| g.clone(), &|| None, &needs), arity, &message)
    })
}

/// Gradients by kernels, each an op of its own, and what they need kept.
fn by_kernels(
    name: &'static str,
    letters: &'static [&'static str],
    kernels: Vec<Half>,
    caller: Caller,
) -> Result<(Box<Formula>, u8)> {
    let arity = letters.len();
    let refuse = |what: String| bad(caller, name, what);
    if kernels.len() != arity {
        let what = format!("`backward` was given for {} of {}", kernels.len(), many(arity, "input"));
        return Err(refuse(what));
    }
    if arity + 2 > LETTERS.len() {
        return Err(refuse("ops of more than three operands need a `formula` for their gradients".into()));
    }
    let mut saves = 0;
    let mut ops: Vec<(&'static record::Elementwise, u8)> = vec![];
    let backward: &'static str = Box::leak(format!("{name}_backward").into_boxed_str());
    let once = format!(
        "{name} is differentiable once: its backward is a kernel, which has no gradient itself. \
         Register it with a `formula` to differentiate twice"
    );
    for (i, half) in kernels.into_iter().enumerate() {
        let Half { wgsl, arity: Some(given), cpu: Some(cpu) } = half else { continue };
        if given != arity + 2 {
            return Err(refuse(format!(
                "the closure of `backward` takes {}; it must take {}: the inputs, out and g",
                many(given, "value"),
                arity + 2
            )));
        }
        let named: Vec<&str> = letters.iter().copied().chain(["out", "g"]).collect();
        check_wgsl(name, &format!("{name}_backward_{}", letters[i]), &wgsl, &named, caller)?;
        let mut own = 0;
        let wgsl = super::rename(&wgsl, |word| {
            let k = named.iter().position(|n| *n == word)?;
            own |= if k < arity {
                1 << k
            } else if k == arity {
                OUT
            } else {
                0
            };
            Some(LETTERS[k].to_string())
        });
        saves |= own;
        let map = map_op(backward, arity + 2, wgsl, cpu(), 10);
        let gradient = refusal(backward, arity + 2, once.clone());
        ops.push((Box::leak(Box::new(row(map, grad_name(backward), 0, gradient))), own));
    }
    let formula = move |call: &Call<'_>, g: &Tensor| {
        let mut out = smallvec![None; arity];
        for (i, &(op, own)) in ops.iter().enumerate().filter(|(i, _)| call.needs(*i)) {
            let unsaved = || Arg::Scalar(Scalar::Float(f64::NAN));
            let mut args: Vec<Arg> =
                (0..arity).map(|k| if own & 1 << k != 0 { call.arg(k) } else { unsaved() }).collect();
            args.push(if own & OUT != 0 { call.output().into() } else { unsaved() });
            args.push(g.into());
            out[i] = Some(Tensor::from_result(op.try_call(&args, call.caller())));
        }
        out
    };
    Ok((Box::new(formula), saves))
}

#[cfg(feature = "gpu")]
fn check_wgsl(op: &str, path: &str, wgsl: &str, operands: &[&str], caller: Caller) -> Result<()> {
    super::wgsl::check_expression(path, wgsl, operands).map_err(|what| bad(caller, op, what))
}

/// Without a GPU nobody reads it.
#[cfg(not(feature = "gpu"))]
fn check_wgsl(_: &str, _: &str, _: &str, _: &[&str], _: Caller) -> Result<()> {
    Ok(())
}

/// The kernels of a closure over f64, for both floats. They live as long as the program.
fn widened<const N: usize>(f: impl Fn([f64; N]) -> f64 + Send + Sync + 'static) -> BlockFns {
    let f = Arc::new(f);
    let g = f.clone();
    let single: BlockFn =
        Box::leak(Box::new(move |out: &mut [u8], args: &[&[u8]]| block::<f32, N>(out, args, &*g)));
    let double: BlockFn =
        Box::leak(Box::new(move |out: &mut [u8], args: &[&[u8]]| block::<f64, N>(out, args, &*f)));
    Box::leak(Box::new(move |operand, result| match (operand, result) {
        (DType::F32, DType::F32) => Some(single),
        (DType::F64, DType::F64) => Some(double),
        _ => None,
    }))
}

fn block<T: Real + bytemuck::Pod + Into<f64>, const N: usize>(
    out: &mut [u8],
    args: &[&[u8]],
    f: &impl Fn([f64; N]) -> f64,
) {
    let args: [&[T]; N] = std::array::from_fn(|k| bytemuck::cast_slice(args[k]));
    for (i, out) in bytemuck::cast_slice_mut::<u8, T>(out).iter_mut().enumerate() {
        *out = T::of(f(std::array::from_fn(|k| args[k][i].into())));
    }
}
