//! Pools over images (`torch.nn.functional.max_pool2d`, `avg_pool2d`, `adaptive_avg_pool2d`).

mod cpu;
#[cfg(feature = "gpu")]
pub(super) mod gpu;
mod op;

use std::panic::Location;
use std::sync::Arc;

use smallvec::smallvec;

pub(crate) use op::{Kind, Pool2d, Windows};

use super::conv::Pair;
use super::record::{Caller, first_error, link};
use crate::autograd::{Saved, is_grad_enabled};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::dtype::{DType, I32};
use crate::graph::kernel::OpRef;
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::{Tensor, options};

/// Arguments of [`Tensor::max_pool2d_with`] and [`Tensor::avg_pool2d_with`], with PyTorch's defaults.
///
/// ```
/// # use wgrad::prelude::*;
/// let y = ones([1, 2, 7, 7]).max_pool2d_with(&Pool::new(3).stride(2).padding(1));
/// assert_eq!(y.shape(), [1, 2, 4, 4]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    pub kernel_size: Pair,
    /// As the kernel where not given.
    pub stride: Option<Pair>,
    pub padding: Pair,
    /// Of `max_pool2d`.
    pub dilation: Pair,
    /// Windows may begin inside and end past the padding.
    pub ceil_mode: bool,
    /// Of `avg_pool2d`: whether zeros of the padding count.
    pub count_include_pad: bool,
    /// Of `avg_pool2d`: divides by this instead of the window's size.
    pub divisor_override: Option<usize>,
}

impl Pool {
    pub fn new(kernel_size: impl Into<Pair>) -> Pool {
        Pool {
            kernel_size: kernel_size.into(),
            stride: None,
            padding: Pair([0, 0]),
            dilation: Pair([1, 1]),
            ceil_mode: false,
            count_include_pad: true,
            divisor_override: None,
        }
    }
    pub fn stride(self, stride: impl Into<Pair>) -> Pool {
        Pool { stride: Some(stride.into()), ..self }
    }
    pub fn padding(self, padding: impl Into<Pair>) -> Pool {
        Pool { padding: padding.into(), ..self }
    }
    pub fn dilation(self, dilation: impl Into<Pair>) -> Pool {
        Pool { dilation: dilation.into(), ..self }
    }
    pub fn ceil_mode(self, ceil_mode: bool) -> Pool {
        Pool { ceil_mode, ..self }
    }
    pub fn count_include_pad(self, count_include_pad: bool) -> Pool {
        Pool { count_include_pad, ..self }
    }
    pub fn divisor_override(self, divisor: usize) -> Pool {
        Pool { divisor_override: Some(divisor), ..self }
    }
}

impl Tensor {
    /// The greatest element of each window of images `[N, C, H, W]` (or of one, `[C, H, W]`); windows lie side by
    /// side (`torch.nn.functional.max_pool2d`). NaN is greater than any number; of equals the first gets the gradient.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = arange(0.0, 16.0, 1.0).reshape([1, 4, 4]);
    /// assert_eq!(x.max_pool2d(2).to_vec::<f32>()?, [5.0, 7.0, 13.0, 15.0]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn max_pool2d(&self, kernel_size: impl Into<Pair>) -> Tensor {
        self.max_pool2d_with(&Pool::new(kernel_size))
    }

    /// [`max_pool2d`](Tensor::max_pool2d) with strides, padding (of minus infinity), dilation and `ceil_mode`.
    #[track_caller]
    pub fn max_pool2d_with(&self, how: &Pool) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || Ok(max_pool(self, how, false, caller)?.0)))
    }

    /// [`max_pool2d`](Tensor::max_pool2d), and for each window where in its `[H, W]` plane, counted row by row, the
    /// greatest is (`return_indices=True`), as `I32`.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let (y, at) = arange(0.0, 16.0, 1.0).reshape([1, 4, 4]).max_pool2d_with_indices(&Pool::new(2));
    /// assert_eq!(at.to_vec::<i32>()?, [5, 7, 13, 15]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn max_pool2d_with_indices(&self, how: &Pool) -> (Tensor, Tensor) {
        let caller = Location::caller();
        let both = on_line_of(caller, || {
            let (y, at) = max_pool(self, how, true, caller)?;
            Ok((y, at.unwrap_or_else(|| self.clone())))
        });
        both.unwrap_or_else(|e: Error| (Tensor::invalid(e.clone()), Tensor::invalid(e)))
    }

    /// The mean of each window of images `[N, C, H, W]` (or of one, `[C, H, W]`); windows lie side by side
    /// (`torch.nn.functional.avg_pool2d`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let x = arange(0.0, 16.0, 1.0).reshape([1, 4, 4]);
    /// assert_eq!(x.avg_pool2d(2).to_vec::<f32>()?, [2.5, 4.5, 10.5, 12.5]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn avg_pool2d(&self, kernel_size: impl Into<Pair>) -> Tensor {
        self.avg_pool2d_with(&Pool::new(kernel_size))
    }

    /// [`avg_pool2d`](Tensor::avg_pool2d) with strides, padding, `ceil_mode`, `count_include_pad` and
    /// `divisor_override`.
    #[track_caller]
    pub fn avg_pool2d_with(&self, how: &Pool) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            if how.dilation.0 != [1, 1] || how.divisor_override == Some(0) {
                let message = "windows of a mean have no dilation, and their divisor is not zero";
                return Err(Error::at(caller, ErrorKind::Argument, "avg_pool2d", message));
            }
            let windows = windows(self, how, "avg_pool2d", caller)?;
            Ok(average(self, &windows, caller))
        }))
    }

    /// Means of as many windows as asked for in each dimension, which cover the images and are of nearly equal
    /// size (`torch.nn.functional.adaptive_avg_pool2d`).
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// assert_eq!(ones([2, 3, 7, 5]).adaptive_avg_pool2d((2, 3)).shape(), [2, 3, 2, 3]);
    /// ```
    #[track_caller]
    pub fn adaptive_avg_pool2d(&self, output_size: impl Into<Pair>) -> Tensor {
        let (caller, Pair(count)) = (Location::caller(), output_size.into());
        let op = "adaptive_avg_pool2d";
        Tensor::from_result(on_line_of(caller, || {
            let size = check_image(self, op, caller)?;
            if size.contains(&0) {
                let message = format!("expects images that are not empty, got {:?}", self.shape());
                return Err(Error::at(caller, ErrorKind::Shape, op, message));
            }
            if (0..2).all(|d| count[d] > 0 && size[d].is_multiple_of(count[d])) {
                return Ok(self.avg_pool2d((size[0] / count[0], size[1] / count[1])));
            }
            // Windows differ in size: their means are products with matrices of their weights.
            let weights = |d: usize| {
                let (n, count) = (size[d], count[d]);
                let mut weights = vec![0.0f64; count * n];
                for (i, row) in weights.chunks_exact_mut(n).enumerate() {
                    let window = i * n / count..((i + 1) * n).div_ceil(count);
                    let share = 1.0 / window.len() as f64;
                    row[window].fill(share);
                }
                options().device(self.device()).dtype(self.dtype()).from_slice(&weights, [count, n])
            };
            Ok(weights(0).matmul(self).matmul(&weights(1).t()))
        }))
    }
}

/// Height and width of images.
fn check_image(x: &Tensor, op: &'static str, caller: Caller) -> Result<[usize; 2]> {
    first_error([x])?;
    if !x.dtype().is_float() {
        let message = format!("expects a tensor of a floating point type, got {}", x.dtype());
        return Err(Error::at(caller, ErrorKind::DType, op, message));
    }
    match x.shape() {
        [_, h, w] | [_, _, h, w] => Ok([*h, *w]),
        shape => {
            let message =
                format!("expected 3D (unbatched) or 4D (batched) input, but got input of size {shape:?}");
            Err(Error::at(caller, ErrorKind::Shape, op, message))
        }
    }
}

/// What strides and the like may be at most: kernels count in 32 bits.
const LARGEST: usize = 1 << 24;
/// Elements of a window: software drivers end loops after so many turns.
const LARGEST_WINDOW: usize = 1 << 24;

fn windows(x: &Tensor, how: &Pool, op: &'static str, caller: Caller) -> Result<Windows> {
    let size = check_image(x, op, caller)?;
    let (kernel, padding, dilation) = (how.kernel_size.0, how.padding.0, how.dilation.0);
    let stride = how.stride.map_or(kernel, |s| s.0);
    let wrong = |message: String| Err(Error::at(caller, ErrorKind::Argument, op, message));
    if [kernel, stride, dilation].iter().flatten().any(|&n| n == 0) {
        return wrong(format!(
            "kernel size, stride and dilation must be greater than zero, got {kernel:?}, {stride:?} and {dilation:?}"
        ));
    }
    let given = [kernel, stride, dilation, padding];
    if given.iter().flatten().any(|&n| n > LARGEST) || kernel[0] * kernel[1] > LARGEST_WINDOW {
        return wrong(format!(
            "windows may have {LARGEST_WINDOW} elements, and arguments may not be past {LARGEST}; got {kernel:?}, \
             {stride:?}, {padding:?} and {dilation:?}"
        ));
    }
    let mut count = [0; 2];
    for d in 0..2 {
        let reach = (kernel[d] - 1).saturating_mul(dilation[d]).saturating_add(1);
        if padding[d] > kernel[d] / 2 {
            return wrong(format!(
                "pad should be at most half of kernel size, but got pad={padding:?} and kernel_size={kernel:?}"
            ));
        }
        let more = if how.ceil_mode { stride[d] - 1 } else { 0 };
        // Sizes are of tensors that exist, and padding is no more than the kernel: only what is absurd saturates.
        let padded = size[d].saturating_add(padding[d].saturating_mul(2)).saturating_add(more);
        let mut n = padded.checked_sub(reach).map_or(0, |room| room / stride[d] + 1);
        // The last window must begin in the image or the padding before it.
        if how.ceil_mode && n > 0 && (n - 1) * stride[d] >= size[d] + padding[d] {
            n -= 1;
        }
        if n == 0 {
            let message = format!(
                "input of size {:?} with pad={padding:?} is too small for windows of {kernel:?} (dilation \
                 {dilation:?})",
                x.shape()
            );
            return Err(Error::at(caller, ErrorKind::Shape, op, message));
        }
        count[d] = n;
    }
    Ok(Windows {
        size,
        count,
        kernel,
        stride,
        padding,
        dilation,
        divisor: how.divisor_override.unwrap_or(0),
        count_padding: how.count_include_pad,
    })
}

fn max_pool(x: &Tensor, how: &Pool, want_indices: bool, caller: Caller) -> Result<(Tensor, Option<Tensor>)> {
    if how.divisor_override.is_some() {
        let message = "divisor_override is avg_pool2d's";
        return Err(Error::at(caller, ErrorKind::Argument, "max_pool2d", message));
    }
    let windows = windows(x, how, "max_pool2d", caller)?;
    let out = record(Kind::Max, &[x], &windows, x.dtype(), caller);
    let indices = |x: &Tensor| record(Kind::Index, &[x], &windows, I32, caller);
    let mut known = want_indices.then(|| indices(x));
    let apart = windows.are_apart();
    if known.is_none() && !apart && is_grad_enabled() && x.requires_grad() {
        known = Some(indices(x));
    }
    let saved_indices = known.clone();
    link(&out, "MaxPool2DWithIndicesBackward0", &[x], caller, || {
        // Of windows that do not overlap the greatest are found again faster than their indices are stored and read.
        let saved = match &saved_indices {
            Some(at) => (Saved::value(at), true),
            None => (Saved::value(x), false),
        };
        Box::new(move |f, g| {
            let (values, are_indices) = (saved.0.unpack(f), saved.1);
            smallvec![Some(if are_indices {
                scatter(g, &values, &windows, caller)
            } else if is_grad_enabled() {
                scatter(g, &record(Kind::Index, &[&values], &windows, I32, caller), &windows, caller)
            } else {
                record(Kind::First, &[g, &values], &windows, g.dtype(), caller)
            })]
        })
    });
    Ok((out, known.filter(|_| want_indices)))
}

/// The gradient of the maximum: each window's goes where its index says.
fn scatter(g: &Tensor, indices: &Tensor, windows: &Windows, caller: Caller) -> Tensor {
    let out = record(Kind::Scatter, &[g, indices], windows, g.dtype(), caller);
    link(&out, "MaxPool2DWithIndicesBackwardBackward0", &[g], caller, || {
        let saved = Saved::value(indices);
        Box::new(move |f, g| {
            let indices = saved.unpack(f);
            let flat = indices.flatten(-2, -1);
            smallvec![Some(g.flatten(-2, -1).gather(-1, &flat).reshape(indices.shape()))]
        })
    });
    out
}

/// The mean of each window.
fn average(x: &Tensor, windows: &Windows, caller: Caller) -> Tensor {
    let out = record(Kind::Average, &[x], windows, x.dtype(), caller);
    let windows = *windows;
    link(&out, "AvgPool2DBackward0", &[x], caller, || {
        Box::new(move |_, g| smallvec![Some(spread(g, &windows, caller))])
    });
    out
}

/// Its gradient: each window's is shared among its elements.
fn spread(g: &Tensor, windows: &Windows, caller: Caller) -> Tensor {
    let out = record(Kind::Spread, &[g], windows, g.dtype(), caller);
    let windows = *windows;
    link(&out, "AvgPool2DBackwardBackward0", &[g], caller, || {
        Box::new(move |_, g| smallvec![Some(average(g, &windows, caller))])
    });
    out
}

fn record(kind: Kind, inputs: &[&Tensor], windows: &Windows, dtype: DType, caller: Caller) -> Tensor {
    let first = inputs[0];
    let outer = &first.shape()[..first.dim() - 2];
    let mut shape = Dims::from_slice(outer);
    shape.extend(if kind.is_of_images() { windows.size } else { windows.count });
    let planes = [outer.iter().product(), shape[outer.len()], shape[outer.len() + 1]];
    let operands = (inputs.iter())
        .map(|t| {
            let t = t.alias().contiguous();
            t.operand(t.layout().clone())
        })
        .collect();
    let op = NodeOp::Structured(OpRef(Arc::new(Pool2d { kind, windows: *windows })));
    let node = Node::record(first.device(), dtype, &planes, op, operands, caller);
    Tensor::with_layout(node, Layout::contiguous(&shape))
}
