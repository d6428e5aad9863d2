//! Tensors as text: `Display` and `Debug` print what PyTorch prints.

use std::fmt;

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::Tensor;
use super::format::{PrintOptions, Values, format, shown};
use crate::error::Result;
use crate::graph::dtype::{Bool, DType, F32, I32, Scalar};
use crate::ops::cat::cat;

static OPTIONS: RwLock<Option<PrintOptions>> = RwLock::new(None);

/// The options that tensors are printed with.
pub fn print_options() -> PrintOptions {
    OPTIONS.read().clone().unwrap_or_default()
}

/// Changes how tensors are printed (`torch.set_printoptions`).
pub fn set_print_options(options: PrintOptions) {
    *OPTIONS.write() = Some(options);
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Ok(text) => f.write_str(&text),
            Err(error) => write!(f, "tensor(<invalid: {error}>)"),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Tensor {
    fn text(&self) -> Result<String> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        let options = print_options();
        let values = crate::autograd::unrecorded(|| self.printed(&options))?;
        let exact = super::read::widen(self.dtype(), &values.contiguous().bytes()?);
        // Types that PyTorch infers from the digits are left out, unless there are none.
        let implied = matches!(self.dtype(), F32) || (matches!(self.dtype(), I32 | Bool) && self.numel() > 0);
        let dtype = (!implied).then(|| self.dtype().name());
        let device = (!self.device().is_cpu()).then(|| self.device().label());
        let mut suffixes = vec![];
        if let Some(function) = self.grad_fn() {
            suffixes.push(format!("grad_fn=<{}>", function.name()));
        } else if self.requires_grad() {
            suffixes.push("requires_grad=True".into());
        }
        let text = |values| format(self.shape(), values, dtype, device, &suffixes, &options);
        let text = match self.dtype() {
            Bool => text(Values::Bool(&exact.iter().map(|s| *s == Scalar::Bool(true)).collect::<Vec<_>>())),
            DType::F16 | DType::F32 | DType::F64 => {
                text(Values::Float(&exact.into_iter().map(Scalar::as_f64).collect::<Vec<_>>()))
            }
            DType::I32 | DType::U32 => {
                text(Values::Int(&exact.into_iter().map(|s| s.as_f64() as i64).collect::<Vec<_>>()))
            }
        };
        Ok(if self.meta().parameter { format!("Parameter containing:\n{text}") } else { text })
    }

    /// The elements that are printed: of a large tensor, only those are read.
    fn printed(&self, options: &PrintOptions) -> Result<Tensor> {
        let Some(shown) = shown(self.shape(), options) else { return Ok(self.clone()) };
        let mut part = self.alias();
        for (d, [head, tail]) in shown.into_iter().enumerate() {
            let pieces: SmallVec<[Tensor; 2]> = [head, tail]
                .into_iter()
                .filter(|r| !r.is_empty())
                .map(|r| part.narrow(d as i64, r.start as i64, r.len()))
                .collect();
            part = cat(&pieces.iter().collect::<Vec<_>>(), d as i64);
        }
        Ok(part)
    }
}
