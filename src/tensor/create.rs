//! Making tensors.

use std::panic::Location;

use parking_lot::RwLock;

use super::{IntoDims, IntoShape, Tensor, dims};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::device::{Device, check_dtype};
use crate::graph::dtype::{Bool, DType, Element, F32, I32, Scalar};
use crate::graph::layout::{Dims, Layout, numel};
use crate::graph::node::{Node, NodeOp, Operand};
use crate::graph::program::CAST;
use crate::ops::elementwise::{ADD, CLONE, MUL};
use crate::ops::random;
use crate::ops::record::{Arg, Caller, map};

/// Dtype, device and `requires_grad` of a tensor to be made. What is not given takes its default: the device
/// of [`default_device`](crate::default_device), float32 (or what the values are), no gradient.
///
/// ```
/// # use wgrad::prelude::*;
/// let w = options().device(cpu()).dtype(F64).requires_grad(true).zeros([2, 3]);
/// assert!(w.requires_grad() && w.dtype() == F64);
/// ```
#[derive(Clone, Default, Debug)]
pub struct Options {
    dtype: Option<DType>,
    device: Option<Device>,
    requires_grad: bool,
}

/// [`Options`] to choose from.
pub fn options() -> Options {
    Options::default()
}

/// Nested arrays, slices, vectors or numbers: the data of [`tensor`].
pub trait IntoData {
    type Item: Element;
    /// The values in row-major order, and the shape; `Err` if rows differ in length.
    fn into_data(self) -> Result<(Vec<Self::Item>, Dims), String>;
}

macro_rules! scalar_data {
    ($($t:ty)*) => {$(
        impl IntoData for $t {
            type Item = $t;
            fn into_data(self) -> Result<(Vec<$t>, Dims), String> { Ok((vec![self], Dims::new())) }
        }
    )*};
}
scalar_data! { bool u32 i32 f32 }

// Numbers without a suffix are f64 in Rust where nothing says otherwise, and PyTorch's default is float32:
// a literal should not make a double. Ask for doubles with `options().dtype(F64)`.
impl IntoData for f64 {
    type Item = f64;
    fn into_data(self) -> Result<(Vec<f64>, Dims), String> {
        Ok((vec![self], Dims::new()))
    }
}

fn nested<T: IntoData>(rows: impl IntoIterator<Item = T>) -> Result<(Vec<T::Item>, Dims), String> {
    let mut values = vec![];
    let mut inner: Option<Dims> = None;
    let mut n = 0;
    for row in rows {
        let (v, shape) = row.into_data()?;
        match &inner {
            Some(first) if *first != shape => {
                return Err(format!("rows differ in shape: {:?} and {:?}", &first[..], &shape[..]));
            }
            _ => inner = Some(shape),
        }
        values.extend(v);
        n += 1;
    }
    let mut shape = Dims::from_slice(&[n]);
    shape.extend(inner.unwrap_or_default());
    Ok((values, shape))
}

impl<T: IntoData, const N: usize> IntoData for [T; N] {
    type Item = T::Item;
    fn into_data(self) -> Result<(Vec<T::Item>, Dims), String> {
        nested(self)
    }
}
impl<T: IntoData + Clone, const N: usize> IntoData for &[T; N] {
    type Item = T::Item;
    fn into_data(self) -> Result<(Vec<T::Item>, Dims), String> {
        nested(self.iter().cloned())
    }
}
impl<T: IntoData + Clone> IntoData for &[T] {
    type Item = T::Item;
    fn into_data(self) -> Result<(Vec<T::Item>, Dims), String> {
        nested(self.iter().cloned())
    }
}
impl<T: IntoData> IntoData for Vec<T> {
    type Item = T::Item;
    fn into_data(self) -> Result<(Vec<T::Item>, Dims), String> {
        nested(self)
    }
}
impl<T: IntoData + Clone> IntoData for &Vec<T> {
    type Item = T::Item;
    fn into_data(self) -> Result<(Vec<T::Item>, Dims), String> {
        nested(self.iter().cloned())
    }
}

macro_rules! creators {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $t:ty),*);)*) => {
        $(
            $(#[$doc])*
            #[track_caller]
            pub fn $name($($arg: $t),*) -> Tensor { Options::default().$name($($arg),*) }
        )*
    };
}

creators! {
    /// A tensor of zeros (`torch.zeros`).
    zeros(shape: impl IntoShape);
    /// A tensor of ones (`torch.ones`).
    ones(shape: impl IntoShape);
    /// A tensor with every element `value` (`torch.full`), of its type.
    full(shape: impl IntoShape, value: impl Into<Scalar>);
    /// A tensor whose contents are not defined (`torch.empty`).
    empty(shape: impl IntoShape);
    /// The identity matrix of `n` rows (`torch.eye`).
    eye(n: usize);
    /// `start`, `start + step`, … below `end` (`torch.arange`), int32 if all three are integers.
    arange(start: impl Into<Scalar>, end: impl Into<Scalar>, step: impl Into<Scalar>);
    /// `steps` evenly spaced numbers from `start` to `end`, both included (`torch.linspace`).
    linspace(start: f64, end: f64, steps: usize);
    /// Numbers drawn uniformly from [0, 1) (`torch.rand`).
    rand(shape: impl IntoShape);
    /// Numbers drawn from the normal distribution of mean 0 and variance 1 (`torch.randn`).
    randn(shape: impl IntoShape);
    /// Integers drawn uniformly from `[low, high)` (`torch.randint`), int32.
    randint(low: i64, high: i64, shape: impl IntoShape);
    /// A tensor of the given values: a number, or (nested) arrays, slices or vectors of one type (`torch.tensor`).
    /// Literals that Rust takes for f64 make float32.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = tensor([[1.0, 2.0], [3.0, 4.0]]);
    /// assert_eq!((x.shape(), x.dtype()), (&[2, 2][..], F32));
    /// ```
    tensor(data: impl IntoData);
}

static DEFAULT_DEVICE: RwLock<Option<Device>> = RwLock::new(None);

/// The device of tensors for which none is given: what `WGRAD_DEVICE` names, else the best GPU, else the CPU
/// (said once on stderr).
pub fn default_device() -> Device {
    if let Some(device) = &*DEFAULT_DEVICE.read() {
        return device.clone();
    }
    // Not under the lock: choosing can take long, and a second thread would only come to the same choice.
    let chosen = crate::device::choose_default();
    DEFAULT_DEVICE.write().get_or_insert(chosen).clone()
}

/// Changes the default device (`torch.set_default_device`).
pub fn set_default_device(device: &Device) {
    *DEFAULT_DEVICE.write() = Some(device.clone());
}

impl Options {
    pub fn dtype(mut self, dtype: DType) -> Options {
        self.dtype = Some(dtype);
        self
    }

    pub fn device(mut self, device: impl std::borrow::Borrow<Device>) -> Options {
        self.device = Some(device.borrow().clone());
        self
    }

    pub fn requires_grad(mut self, requires_grad: bool) -> Options {
        self.requires_grad = requires_grad;
        self
    }

    fn place(&self) -> Device {
        self.device.clone().unwrap_or_else(default_device)
    }

    /// What is made is a leaf, whatever ops it took.
    #[track_caller]
    fn finish(&self, made: Result<Tensor>) -> Tensor {
        let tensor = Tensor::from_result(made);
        if self.requires_grad { tensor.requires_grad_(true) } else { tensor }
    }

    /// See [`zeros`].
    #[track_caller]
    pub fn zeros(&self, shape: impl IntoShape) -> Tensor {
        let caller = Location::caller();
        self.finish(self.filled(shape, Scalar::Int(0), F32, "zeros", caller))
    }

    /// See [`ones`].
    #[track_caller]
    pub fn ones(&self, shape: impl IntoShape) -> Tensor {
        let caller = Location::caller();
        self.finish(self.filled(shape, Scalar::Int(1), F32, "ones", caller))
    }

    /// See [`full`].
    #[track_caller]
    pub fn full(&self, shape: impl IntoShape, value: impl Into<Scalar>) -> Tensor {
        let caller = Location::caller();
        let value = value.into();
        let natural = match value {
            Scalar::Bool(_) => Bool,
            Scalar::Int(_) => I32,
            Scalar::Float(_) => F32,
        };
        self.finish(self.filled(shape, value, natural, "full", caller))
    }

    fn filled(
        &self,
        shape: impl IntoShape,
        value: Scalar,
        natural: DType,
        op: &'static str,
        caller: Caller,
    ) -> Result<Tensor> {
        let shape = dims::shape(shape, op, caller)?;
        let dtype = self.dtype.unwrap_or(natural);
        let device = self.place();
        check_dtype(&device, dtype, op, caller)?;
        Ok(map(&CLONE.op, dtype, dtype, &device, &shape, &[Arg::Scalar(value)], caller))
    }

    /// See [`empty`].
    #[track_caller]
    pub fn empty(&self, shape: impl IntoShape) -> Tensor {
        self.zeros(shape)
    }

    /// See [`eye`].
    #[track_caller]
    pub fn eye(&self, n: usize) -> Tensor {
        let caller = Location::caller();
        self.finish(on_line_of(caller, || {
            let shape = dims::shape([n, n], "eye", caller)?;
            let device = self.place();
            let dtype = self.dtype.unwrap_or(F32);
            check_dtype(&device, dtype, "eye", caller)?;
            let index = |layout: Layout| self.positions(&device, layout, I32, caller);
            let row = index(Layout::contiguous(&[n, 1])).expand(&shape[..]);
            let column = index(Layout::contiguous(&[n])).expand(&shape[..]);
            Ok(row.eq(&column).to(dtype))
        }))
    }

    /// The position of each coordinate in a layout, as numbers.
    fn positions(&self, device: &Device, layout: Layout, dtype: DType, caller: Caller) -> Tensor {
        let shape = layout.shape.clone();
        let op = NodeOp::Map { op: &CAST, operand: DType::U32 };
        let inputs = smallvec::smallvec![Operand::Index(layout)];
        Tensor::from_node(Node::record(device, dtype, &shape, op, inputs, caller))
    }

    /// See [`arange`].
    #[track_caller]
    pub fn arange(
        &self,
        start: impl Into<Scalar>,
        end: impl Into<Scalar>,
        step: impl Into<Scalar>,
    ) -> Tensor {
        let caller = Location::caller();
        let (start, end, step) = (start.into(), end.into(), step.into());
        self.finish(on_line_of(caller, || {
            let float = [start, end, step].iter().any(|s| matches!(s, Scalar::Float(_)));
            let dtype = self.dtype.unwrap_or(if float { F32 } else { I32 });
            let (a, b, s) = (start.as_f64(), end.as_f64(), step.as_f64());
            let n = ((b - a) / s).ceil();
            if !n.is_finite() || (n < 0.0) || s == 0.0 {
                let message = format!("no range from {a} to {b} in steps of {s}");
                return Err(Error::at(caller, ErrorKind::Argument, "arange", message));
            }
            self.ramp(n as usize, start, step, dtype, "arange", caller)
        }))
    }

    /// See [`linspace`].
    #[track_caller]
    pub fn linspace(&self, start: f64, end: f64, steps: usize) -> Tensor {
        let caller = Location::caller();
        self.finish(on_line_of(caller, || {
            let dtype = self.dtype.unwrap_or(F32);
            let step = if steps > 1 { (end - start) / (steps - 1) as f64 } else { 0.0 };
            // From both ends, as PyTorch, so that the last is `end` exactly.
            let low =
                self.ramp(steps, Scalar::Float(start), Scalar::Float(step), dtype, "linspace", caller)?;
            if steps == 1 {
                return Ok(low);
            }
            let last = (steps.max(1) - 1) as f64;
            let down =
                self.ramp(steps, Scalar::Float(-last), Scalar::Float(1.0), dtype, "linspace", caller)?;
            let high = down.mul(step).add(end);
            Ok(low.where_(&down.lt(-last / 2.0), &high))
        }))
    }

    /// `start + step * i` for `n` values of i.
    fn ramp(
        &self,
        n: usize,
        start: Scalar,
        step: Scalar,
        dtype: DType,
        op: &'static str,
        caller: Caller,
    ) -> Result<Tensor> {
        let shape = dims::shape([n], op, caller)?;
        let device = self.place();
        check_dtype(&device, dtype, op, caller)?;
        let mut out = self.positions(&device, Layout::contiguous(&shape), dtype, caller);
        // Most count from 0 in steps of 1.
        for (op, by, nothing) in [(&MUL.op, step, 1.0), (&ADD.op, start, 0.0)] {
            if by.as_f64() != nothing {
                let args = [Arg::from(&out), Arg::Scalar(by)];
                out = map(op, dtype, dtype, &device, &shape, &args, caller);
            }
        }
        Ok(out)
    }

    /// See [`rand`].
    #[track_caller]
    pub fn rand(&self, shape: impl IntoShape) -> Tensor {
        let caller = Location::caller();
        self.finish(self.floats(shape, "rand", caller).map(|(d, t, s)| random::uniform(&d, t, &s, caller)))
    }

    /// See [`randn`].
    #[track_caller]
    pub fn randn(&self, shape: impl IntoShape) -> Tensor {
        let caller = Location::caller();
        self.finish(self.floats(shape, "randn", caller).map(|(d, t, s)| random::normal(&d, t, &s, caller)))
    }

    fn floats(
        &self,
        shape: impl IntoShape,
        op: &'static str,
        caller: Caller,
    ) -> Result<(Device, DType, Dims)> {
        let shape = dims::shape(shape, op, caller)?;
        let (device, dtype) = (self.place(), self.dtype.unwrap_or(F32));
        check_dtype(&device, dtype, op, caller)?;
        if !dtype.is_float() {
            let message = format!("only floating point types can be drawn, not {dtype}");
            return Err(Error::at(caller, ErrorKind::DType, op, message));
        }
        Ok((device, dtype, shape))
    }

    /// See [`randint`].
    #[track_caller]
    pub fn randint(&self, low: i64, high: i64, shape: impl IntoShape) -> Tensor {
        let caller = Location::caller();
        self.finish(on_line_of(caller, || {
            let shape = dims::shape(shape, "randint", caller)?;
            let fits = |v: i64| i32::try_from(v).is_ok();
            if low >= high || !fits(low) || !fits(high - 1) {
                let message = format!("no int32 in [{low}, {high}): low must be below high");
                return Err(Error::at(caller, ErrorKind::Argument, "randint", message));
            }
            let drawn = random::integers(&self.place(), low, high, &shape, caller);
            Ok(drawn.to(self.dtype.unwrap_or(I32)))
        }))
    }

    /// See [`tensor`].
    #[track_caller]
    pub fn tensor<D: IntoData>(&self, data: D) -> Tensor {
        let caller = Location::caller();
        let natural = if D::Item::DTYPE == DType::F64 { F32 } else { D::Item::DTYPE };
        self.finish(on_line_of(caller, || {
            let fail = |message| Error::at(caller, ErrorKind::Shape, "tensor", message);
            let (values, shape) = data.into_data().map_err(fail)?;
            self.upload(&values, &shape, self.dtype.unwrap_or(natural), caller)
        }))
    }

    /// A tensor of `shape` with these values, row-major.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = options().from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
    /// assert_eq!(x.shape(), [2, 3]);
    /// ```
    #[track_caller]
    pub fn from_slice<T: Element>(&self, values: &[T], shape: impl IntoShape) -> Tensor {
        let caller = Location::caller();
        self.finish(on_line_of(caller, || {
            let shape = dims::shape(shape, "from_slice", caller)?;
            if numel(&shape) != values.len() {
                let message = format!("{} values do not fill shape {:?}", values.len(), &shape[..]);
                return Err(Error::at(caller, ErrorKind::Shape, "from_slice", message));
            }
            self.upload(values, &shape, self.dtype.unwrap_or(T::DTYPE), caller)
        }))
    }

    /// Converted on the host, so that the device need not know the values' own type.
    fn upload<T: Element>(
        &self,
        values: &[T],
        shape: &[usize],
        dtype: DType,
        caller: Caller,
    ) -> Result<Tensor> {
        let device = self.place();
        check_dtype(&device, dtype, "tensor", caller)?;
        let shape = dims::shape(shape, "tensor", caller)?;
        let bytes = if dtype == T::DTYPE {
            T::to_bytes(values)
        } else {
            let exact = super::read::widen(T::DTYPE, &T::to_bytes(values));
            exact.iter().flat_map(|s| s.bits(dtype).to_le_bytes().into_iter().take(dtype.size())).collect()
        };
        let buffer = device.upload(&bytes, caller, "tensor")?;
        Ok(Tensor::from_node(Node::ready(&device, dtype, &shape, buffer, caller)))
    }
}

impl Tensor {
    /// A tensor of these stored bytes, as many as the shape needs.
    #[track_caller]
    pub(crate) fn from_bytes(device: &Device, dtype: DType, shape: &[usize], bytes: &[u8]) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            check_dtype(device, dtype, "tensor", caller)?;
            let shape = dims::shape(shape, "tensor", caller)?;
            debug_assert_eq!(numel(&shape) * dtype.size(), bytes.len());
            let buffer = device.upload(bytes, caller, "tensor")?;
            Ok(Tensor::from_node(Node::ready(device, dtype, &shape, buffer, caller)))
        }))
    }

    fn like(&self) -> Options {
        Options { dtype: Some(self.dtype()), device: Some(self.device().clone()), requires_grad: false }
    }

    /// Carries this tensor's error, if it has one, over to what is made after its shape.
    #[track_caller]
    fn after(&self, make: impl FnOnce(Options, &[usize]) -> Tensor) -> Tensor {
        if self.error().is_some() { self.alias() } else { make(self.like(), self.shape()) }
    }

    /// Zeros of this tensor's shape, dtype and device (`torch.zeros_like`).
    #[track_caller]
    pub fn zeros_like(&self) -> Tensor {
        let caller = Location::caller();
        self.after(|o, shape| Tensor::from_result(o.filled(shape, Scalar::Int(0), F32, "zeros_like", caller)))
    }

    /// Ones of this tensor's shape, dtype and device (`torch.ones_like`).
    #[track_caller]
    pub fn ones_like(&self) -> Tensor {
        let caller = Location::caller();
        self.after(|o, shape| Tensor::from_result(o.filled(shape, Scalar::Int(1), F32, "ones_like", caller)))
    }

    /// `value` in this tensor's shape, dtype and device (`torch.full_like`).
    #[track_caller]
    pub fn full_like(&self, value: impl Into<Scalar>) -> Tensor {
        let caller = Location::caller();
        self.after(|o, shape| Tensor::from_result(o.filled(shape, value.into(), F32, "full_like", caller)))
    }

    /// Uniform draws in this tensor's shape, dtype and device (`torch.rand_like`).
    #[track_caller]
    pub fn rand_like(&self) -> Tensor {
        self.after(|o, shape| o.rand(shape))
    }

    /// Normal draws in this tensor's shape, dtype and device (`torch.randn_like`).
    #[track_caller]
    pub fn randn_like(&self) -> Tensor {
        self.after(|o, shape| o.randn(shape))
    }

    /// Zeros of another shape in this tensor's dtype and device (`Tensor.new_zeros`).
    #[track_caller]
    pub fn new_zeros(&self, shape: impl IntoDims) -> Tensor {
        self.after(|o, _| o.zeros(shape))
    }

    /// Ones of another shape in this tensor's dtype and device (`Tensor.new_ones`).
    #[track_caller]
    pub fn new_ones(&self, shape: impl IntoDims) -> Tensor {
        self.after(|o, _| o.ones(shape))
    }
}
