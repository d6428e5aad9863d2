//! Convolutions over images (`torch.nn.functional.conv2d`, `conv_transpose2d`).
//!
//! `sum over x·w·y` with `x` at the place that `y`'s and `w`'s coordinates name is linear in each of the three, so a
//! convolution, its gradient by the input and its gradient by the weight are one form with a different part left
//! out, and the gradients of each are the other two ([`Part`]).

mod cpu;
mod direct;
#[cfg(feature = "gpu")]
pub(super) mod gpu;
mod op;

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

pub(crate) use op::{Conv2d, Geometry, Part};

use super::cast::to_dtype;
use super::record::{Arg, Caller, Class, common_device, common_dtype, first_error, link};
use crate::autograd::{Saved, unrecorded};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::device::check_dtype;
use crate::graph::kernel::OpRef;
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::Tensor;

/// A number for each of height and width: `2`, `(2, 1)` or `[2, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pair(pub [usize; 2]);

impl From<usize> for Pair {
    fn from(n: usize) -> Pair {
        Pair([n, n])
    }
}
impl From<(usize, usize)> for Pair {
    fn from((height, width): (usize, usize)) -> Pair {
        Pair([height, width])
    }
}
impl From<[usize; 2]> for Pair {
    fn from(pair: [usize; 2]) -> Pair {
        Pair(pair)
    }
}

/// What is put around an image before it is convolved: so many rows and columns of zeros on each side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Padding {
    Size(Pair),
    /// As much as leaves an image its size (`padding='same'`); where that is odd, one more below and on the right.
    Same,
    /// None (`padding='valid'`).
    Valid,
}

impl<P: Into<Pair>> From<P> for Padding {
    fn from(pair: P) -> Padding {
        Padding::Size(pair.into())
    }
}

/// Arguments of [`Tensor::conv2d_with`] and [`Tensor::conv_transpose2d_with`], with PyTorch's defaults.
///
/// ```
/// # use wgrad::prelude::*;
/// let (x, w) = (ones([1, 4, 8, 8]), ones([6, 2, 3, 3]));
/// let y = x.conv2d_with(&w, None, &Conv::new().stride(2).padding((1, 1)).groups(2));
/// assert_eq!(y.shape(), [1, 6, 4, 4]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conv {
    pub stride: Pair,
    pub padding: Padding,
    pub dilation: Pair,
    /// Channels fall into so many groups that know nothing of each other.
    pub groups: usize,
    /// Of `conv_transpose2d`: rows and columns added to the result below and on the right.
    pub output_padding: Pair,
}

impl Default for Conv {
    fn default() -> Conv {
        Conv {
            stride: Pair([1, 1]),
            padding: Padding::Size(Pair([0, 0])),
            dilation: Pair([1, 1]),
            groups: 1,
            output_padding: Pair([0, 0]),
        }
    }
}

impl Conv {
    pub fn new() -> Conv {
        Conv::default()
    }
    pub fn stride(self, stride: impl Into<Pair>) -> Conv {
        Conv { stride: stride.into(), ..self }
    }
    pub fn padding(self, padding: impl Into<Padding>) -> Conv {
        Conv { padding: padding.into(), ..self }
    }
    pub fn dilation(self, dilation: impl Into<Pair>) -> Conv {
        Conv { dilation: dilation.into(), ..self }
    }
    pub fn groups(self, groups: usize) -> Conv {
        Conv { groups, ..self }
    }
    pub fn output_padding(self, padding: impl Into<Pair>) -> Conv {
        Conv { output_padding: padding.into(), ..self }
    }
}

impl Tensor {
    /// The cross-correlation of images `[N, C, H, W]` (or one, `[C, H, W]`) with filters `weight`, `[O, C, kh, kw]`,
    /// plus `bias`, `[O]` (`torch.nn.functional.conv2d`): `[N, O, H', W']`, where `H' = H - kh + 1`.
    ///
    /// All are of floating-point types. It is an error if channels, or sizes and filters, do not fit.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let (images, filters) = (ones([2, 3, 8, 8]), ones([4, 3, 3, 3]));
    /// let y = images.conv2d(&filters, Some(&ones(4)));
    /// assert_eq!(y.shape(), [2, 4, 6, 6]);
    /// assert_eq!(y.i((0, 0, 0, 0)).item::<f32>()?, 28.0);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn conv2d(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.conv2d_with(weight, bias, &Conv::default())
    }

    /// [`conv2d`](Tensor::conv2d) with strides, padding, dilation and groups; of a group's `C / groups` channels
    /// only its own `O / groups` filters know, so that `weight` is `[O, C / groups, kh, kw]`.
    #[track_caller]
    pub fn conv2d_with(&self, weight: &Tensor, bias: Option<&Tensor>, how: &Conv) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            let job = Job { op: "conv2d", channel: 1, caller };
            job.run(self, weight, bias, how, |x, w| {
                let geometry = forward_geometry(x, w, how, &job)?;
                Ok((geometry, Part::Output))
            })
        }))
    }

    /// What [`conv2d`](Tensor::conv2d) is to its result's gradient: from `[N, C, H, W]` with `weight`
    /// `[C, O, kh, kw]` to `[N, O, H + kh - 1, W + kw - 1]` (`torch.nn.functional.conv_transpose2d`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let y = ones([1, 3, 4, 4]).conv_transpose2d_with(&ones([3, 5, 2, 2]), None, &Conv::new().stride(2));
    /// assert_eq!(y.shape(), [1, 5, 8, 8]);
    /// ```
    #[track_caller]
    pub fn conv_transpose2d(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.conv_transpose2d_with(weight, bias, &Conv::default())
    }

    /// [`conv_transpose2d`](Tensor::conv_transpose2d) with strides, padding, dilation, groups and
    /// `output_padding`; `weight` is `[C, O / groups, kh, kw]`.
    #[track_caller]
    pub fn conv_transpose2d_with(&self, weight: &Tensor, bias: Option<&Tensor>, how: &Conv) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            let job = Job { op: "conv_transpose2d", channel: 0, caller };
            job.run(self, weight, bias, how, |x, w| {
                let geometry = transposed_geometry(x, w, how, &job)?;
                Ok((geometry, Part::Input))
            })
        }))
    }
}

/// What the two convolutions have in common.
struct Job {
    op: &'static str,
    /// The weight's dimension that the input's channels go with.
    channel: usize,
    caller: Caller,
}

impl Job {
    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::at(self.caller, kind, self.op, message)
    }

    fn run(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        how: &Conv,
        geometry: impl FnOnce(&Tensor, &Tensor) -> Result<(Geometry, Part)>,
    ) -> Result<Tensor> {
        let tensors = || [x, w].into_iter().chain(bias);
        first_error(tensors())?;
        common_device(self.op, self.caller, tensors())?;
        if let Some(t) = tensors().find(|t| !t.dtype().is_float()) {
            let message = format!("expects tensors of a floating point type, got {}", t.dtype());
            return Err(self.error(ErrorKind::DType, message));
        }
        if !matches!(x.dim(), 3 | 4) || w.dim() != 4 {
            let message = format!(
                "expected 3D (unbatched) or 4D (batched) input and 4D weight, but got input of size {:?} and weight \
                 of size {:?}",
                x.shape(),
                w.shape()
            );
            return Err(self.error(ErrorKind::Shape, message));
        }
        if how.groups == 0 || [how.stride.0, how.dilation.0].iter().flatten().any(|&n| n == 0) {
            let message = format!(
                "stride, dilation and groups must be greater than zero, got {:?}, {:?} and {}",
                how.stride.0, how.dilation.0, how.groups
            );
            return Err(self.error(ErrorKind::Argument, message));
        }
        if how.padding == Padding::Same && how.stride.0 != [1, 1] {
            return Err(
                self.error(ErrorKind::Argument, "padding='same' is not supported for strided convolutions")
            );
        }
        let given = [how.stride.0, how.dilation.0, how.output_padding.0];
        let padding = if let Padding::Size(p) = how.padding { p.0 } else { [0, 0] };
        if given.iter().chain([&padding]).flatten().chain([&how.groups]).any(|&n| n > LARGEST) {
            return Err(self.error(ErrorKind::Argument, format!("arguments may not be past {LARGEST}")));
        }
        let args: Vec<Arg> = tensors().map(Arg::from).collect();
        let dtype = common_dtype(Class::Float, &args);
        check_dtype(x.device(), dtype, self.op, self.caller)?;
        let (x4, w) = (to_dtype(x, dtype, self.caller), to_dtype(w, dtype, self.caller));
        let x4 = if x.dim() == 3 { x4.unsqueeze(0) } else { x4 };
        self.check_channels(&x4, &w, how.groups)?;
        let (geometry, part) = geometry(&x4, &w)?;
        let shape = geometry.shape(part);
        if shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).is_none_or(|n| n > 1 << 60) {
            return Err(self.error(ErrorKind::Shape, format!("too many elements in {shape:?}")));
        }
        let outputs = if part == Part::Output { geometry.filters } else { geometry.channels };
        if let Some(bias) = bias
            && bias.shape() != [outputs]
        {
            let message = format!("expected bias of size [{outputs}], but got {:?}", bias.shape());
            return Err(self.error(ErrorKind::Shape, message));
        }
        let mut y = convolve(part, &x4, &w, &geometry, self.caller);
        if let Some(bias) = bias {
            y = y.add(to_dtype(bias, dtype, self.caller).reshape([outputs, 1, 1]));
        }
        Ok(if x.dim() == 3 { y.squeeze_dim(0) } else { y })
    }

    fn check_channels(&self, x: &Tensor, w: &Tensor, groups: usize) -> Result<()> {
        let [first, second, kernel @ ..] = w.shape() else { return Ok(()) };
        let channels = if self.channel == 1 { second.saturating_mul(groups) } else { *first };
        if kernel.contains(&0) {
            let message = format!("kernel size should be greater than zero, but got {kernel:?}");
            return Err(self.error(ErrorKind::Shape, message));
        }
        if x.size(1) != channels || first % groups != 0 {
            let message = format!(
                "given groups={groups} and weight of size {:?}, expected input to have {channels} channels and a \
                 first size of the weight that is divisible by groups, but got input of size {:?}",
                w.shape(),
                x.shape()
            );
            return Err(self.error(ErrorKind::Shape, message));
        }
        Ok(())
    }
}

/// What strides, padding and sizes with padding may be at most: kernels count in 32 bits.
const LARGEST: usize = i32::MAX as usize;

/// Terms that a sum may have on a GPU: software drivers end loops after so many turns.
const MOST_TERMS: usize = 500_000;

/// How far a filter reaches beyond its first tap.
fn reach(kernel: usize, dilation: usize) -> Option<usize> {
    (kernel - 1).checked_mul(dilation).filter(|&n| n < LARGEST)
}

fn forward_geometry(x: &Tensor, w: &Tensor, how: &Conv, job: &Job) -> Result<Geometry> {
    let (xs, ws) = (x.shape(), w.shape());
    if how.output_padding.0 != [0, 0] {
        return Err(job.error(ErrorKind::Argument, "output_padding is conv_transpose2d's"));
    }
    let (mut padding, mut places) = ([0; 2], [0; 2]);
    for d in 0..2 {
        let (size, kernel, stride) = (xs[2 + d], ws[2 + d], how.stride.0[d]);
        let too_small = |padded: usize| {
            let message = format!(
                "kernel size can't be greater than actual input size: input of size {xs:?} (padded to {padded}), \
                 kernel of size {:?} with dilation {:?}",
                &ws[2..],
                how.dilation.0
            );
            job.error(ErrorKind::Shape, message)
        };
        let reach = reach(kernel, how.dilation.0[d]).ok_or_else(|| too_small(size))?;
        let padded = match how.padding {
            Padding::Size(p) => {
                padding[d] = p.0[d];
                size + 2 * p.0[d]
            }
            Padding::Valid => size,
            Padding::Same => {
                padding[d] = reach / 2;
                size + reach
            }
        };
        if padded > LARGEST {
            let message = format!("input of size {xs:?} is too large with its padding");
            return Err(job.error(ErrorKind::Limit, message));
        }
        places[d] = padded.checked_sub(reach + 1).ok_or_else(|| too_small(padded))? / stride + 1;
    }
    Ok(Geometry {
        images: xs[0],
        channels: xs[1],
        filters: ws[0],
        groups: how.groups,
        size: [xs[2], xs[3]],
        kernel: [ws[2], ws[3]],
        places,
        stride: how.stride.0,
        padding,
        dilation: how.dilation.0,
    })
}

fn transposed_geometry(x: &Tensor, w: &Tensor, how: &Conv, job: &Job) -> Result<Geometry> {
    let (xs, ws) = (x.shape(), w.shape());
    let padding = match how.padding {
        Padding::Size(p) => p.0,
        Padding::Valid => [0, 0],
        Padding::Same => {
            return Err(job.error(ErrorKind::Argument, "padding must be given in numbers"));
        }
    };
    let mut size = [0; 2];
    for d in 0..2 {
        let (stride, dilation, more) = (how.stride.0[d], how.dilation.0[d], how.output_padding.0[d]);
        if more >= stride.max(dilation) {
            let message = format!(
                "output padding must be smaller than either stride or dilation, but got {:?}, {:?} and {:?}",
                how.output_padding.0, how.stride.0, how.dilation.0
            );
            return Err(job.error(ErrorKind::Argument, message));
        }
        let fail = || {
            let message = format!(
                "input of size {xs:?}, kernel of size {:?} and padding {padding:?} leave no output",
                &ws[2..]
            );
            job.error(ErrorKind::Shape, message)
        };
        let whole = xs[2 + d].checked_sub(1).and_then(|n| n.checked_mul(stride));
        let whole = whole.zip(reach(ws[2 + d], dilation)).and_then(|(n, r)| n.checked_add(r + more + 1));
        size[d] = (whole.zip(padding[d].checked_mul(2)))
            .and_then(|(n, p)| n.checked_sub(p))
            .filter(|&n| n > 0 && n + 2 * padding[d] <= LARGEST)
            .ok_or_else(fail)?;
    }
    Ok(Geometry {
        images: xs[0],
        channels: ws[1] * how.groups,
        filters: xs[1],
        groups: how.groups,
        size,
        kernel: [ws[2], ws[3]],
        places: [xs[2], xs[3]],
        stride: how.stride.0,
        padding,
        dilation: how.dilation.0,
    })
}

/// One part of the form, from the other two: of `(x, w)` the output, of `(y, w)` the input, of `(x, y)` the weight.
fn convolve(part: Part, a: &Tensor, b: &Tensor, geometry: &Geometry, caller: Caller) -> Tensor {
    let (terms, places) = match part {
        Part::Output => (geometry.group_channels().saturating_mul(geometry.taps()), 0),
        Part::Input => (geometry.group_filters().saturating_mul(geometry.taps()), 0),
        // Rows of places are the least that parts are made of, four at a time.
        Part::Weight => (0, geometry.places[1]),
    };
    if !a.device().is_cpu() && (terms > MOST_TERMS || places > 8 * MOST_TERMS) {
        let message = format!("sums of {} terms are past what a GPU's kernels take", terms.max(4 * places));
        return Tensor::invalid(Error::at(caller, ErrorKind::Limit, "conv2d", message));
    }
    let laid = if part == Part::Weight { b.clone() } else { lay_weight(b) };
    let out = record(part, a, &laid, geometry, caller);
    let (name, by_a, by_b) = match part {
        Part::Output => ("ConvolutionBackward0", Part::Input, Part::Weight),
        Part::Input => ("ConvolutionBackward0", Part::Output, Part::Weight),
        Part::Weight => ("ConvolutionBackward0", Part::Input, Part::Output),
    };
    link(&out, name, &[a, b], caller, || {
        // Each operand is needed for the other's gradient only.
        let saved_a = b.requires_grad().then(|| Saved::input(a));
        let saved_b = a.requires_grad().then(|| Saved::input(&laid));
        let geometry = *geometry;
        Box::new(move |f, g| {
            let b = saved_b.as_ref().filter(|_| f.needs(0)).map(|b| b.unpack(f));
            let a = saved_a.as_ref().filter(|_| f.needs(1)).map(|a| a.unpack(f));
            // In the order of the form: x before y before w, but the weight's own gradient comes of (x, y).
            let da = b.map(|b| match part {
                Part::Weight => convolve(by_a, &b, g, &geometry, caller),
                _ => convolve(by_a, g, &b, &geometry, caller),
            });
            let db = a.map(|a| match part {
                Part::Input => convolve(by_b, g, &a, &geometry, caller),
                _ => convolve(by_b, &a, g, &geometry, caller),
            });
            smallvec![da, db]
        })
    });
    out
}

/// The same weight with its channels innermost in memory, as GPUs' kernels sum over them.
fn lay_weight(w: &Tensor) -> Tensor {
    let by_channel = w.layout().permute(&[0, 2, 3, 1]);
    let single = w.size(1) == 1 || w.shape()[2..] == [1, 1];
    if w.device().is_cpu() || by_channel.is_contiguous() || single {
        return w.clone();
    }
    let edge = w.gradient_edge();
    let copy = unrecorded(|| w.alias().permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]));
    let copy = copy.detach_value();
    copy.meta().grad_fn = edge;
    copy
}

fn record(part: Part, a: &Tensor, b: &Tensor, geometry: &Geometry, caller: Caller) -> Tensor {
    let parts = if part == Part::Weight && !a.device().is_cpu() { geometry.parts() } else { 1 };
    let op = Conv2d { part, geometry: *geometry, parts };
    let mut shape = Dims::new();
    if part == Part::Weight {
        shape.push(parts);
    }
    let result = geometry.shape(part);
    shape.extend(result);
    // Images lie row by row; a weight may lie in any order.
    let operand = |t: &Tensor, dense: bool| {
        let t = if dense { t.alias().contiguous() } else { t.alias() };
        t.operand(t.layout().clone())
    };
    let inputs = smallvec![operand(a, true), operand(b, part == Part::Weight)];
    let op = NodeOp::Structured(OpRef(Arc::new(op)));
    let node = Node::record(a.device(), a.dtype(), &shape, op, inputs, caller);
    if parts > 1 {
        return unrecorded(|| Tensor::from_node(node).sum_dim(0, false));
    }
    Tensor::with_layout(node, Layout::contiguous(&result))
}
