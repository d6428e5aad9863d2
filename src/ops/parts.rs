//! Gradients that flow back through slices: zero but for a part. Parts that lie side by side are put together, not added.

use std::sync::Arc;

use super::cat::cat;
use super::views::{scatter_into_zeros, write_strided};
use crate::autograd::is_grad_enabled;
use crate::graph::layout::{Dims, Layout};
use crate::graph::node::Node;
use crate::tensor::Tensor;

/// What a tensor is made of: spans along a dimension, and zeros elsewhere.
pub(crate) struct Parts {
    /// The value that this was said of; a tensor that was written to since is something else.
    node: Arc<Node>,
    dim: usize,
    spans: Vec<Span>,
}

/// The elements from `at` on.
struct Span {
    at: usize,
    value: Tensor,
}

impl Span {
    fn end(&self, dim: usize) -> usize {
        self.at + self.value.shape()[dim]
    }
}

/// Zeros of `shape` with `g` at `at, at + step, …` along `dim`.
pub(super) fn slice_gradient(g: &Tensor, shape: &[usize], dim: usize, at: usize, step: usize) -> Tensor {
    let place = Layout::contiguous(shape).slice(dim, at, g.shape()[dim], step);
    let out = scatter_into_zeros(g, shape, &place);
    if step == 1 && !is_grad_enabled() && out.error().is_none() {
        out.meta().parts = Some(Parts { node: out.node(), dim, spans: vec![Span { at, value: g.clone() }] });
    }
    out
}

/// The sum of two gradients of one tensor.
pub(crate) fn add_gradients(a: &Tensor, b: &Tensor) -> Tensor {
    join(a, b).unwrap_or_else(|| a + b)
}

fn join(a: &Tensor, b: &Tensor) -> Option<Tensor> {
    if is_grad_enabled() || a.shape() != b.shape() || a.dtype() != b.dtype() {
        return None;
    }
    let mut parts = b.meta().parts.take().filter(|p| Arc::ptr_eq(&p.node, &b.node()))?;
    let dim = parts.dim;
    {
        let meta = a.meta();
        let old = meta.parts.as_ref().filter(|p| p.dim == dim)?;
        let apart = |x: &Span, y: &Span| x.end(dim) <= y.at || y.end(dim) <= x.at;
        if !old.spans.iter().all(|x| parts.spans.iter().all(|y| apart(x, y))) {
            return None;
        }
    }
    let old = a.meta().parts.take().filter(|p| Arc::ptr_eq(&p.node, &a.node()))?;
    let added = std::mem::replace(&mut parts.spans, old.spans);
    // The sum so far with the new parts written into it; forgotten if others come, until all are there.
    let mut out = a.clone();
    for span in &added {
        let place = Layout::contiguous(a.shape()).slice(dim, span.at, span.value.shape()[dim], 1);
        out = write_strided(&out, &span.value, &place, std::panic::Location::caller());
    }
    parts.spans.extend(added);
    let covered: usize = parts.spans.iter().map(|s| s.value.shape()[dim]).sum();
    if covered < a.shape()[dim] {
        parts.node = out.node();
        out.meta().parts = Some(parts);
        return Some(out);
    }
    parts.spans.sort_by_key(|s| s.at);
    let spans: Vec<&Tensor> = parts.spans.iter().map(|s| &s.value).filter(|v| v.shape()[dim] > 0).collect();
    Some(together(&spans, dim).unwrap_or_else(|| cat(&spans, dim as i64)))
}

/// Parts that already lie in one buffer as they would be put together.
fn together(parts: &[&Tensor], dim: usize) -> Option<Tensor> {
    let (&first, rest) = parts.split_first()?;
    let mut layout = first.layout().clone();
    let node = first.node();
    // A step along `dim`, as it is between the first two parts.
    let step = rest.first()?.layout().offset.checked_sub(layout.offset)? / layout.shape[dim];
    let others = |l: &Layout| -> Dims {
        (0..l.rank()).map(|d| if d == dim || l.shape[d] == 1 { 0 } else { l.strides[d] }).collect()
    };
    let mut offset = layout.offset;
    for part in parts {
        let l = part.layout();
        let fits = Arc::ptr_eq(&part.node(), &node)
            && l.offset == offset
            && others(l) == others(&layout)
            && (l.shape[dim] == 1 || l.strides[dim] == step);
        if !fits {
            return None;
        }
        offset += l.shape[dim] * step;
    }
    layout.shape[dim] = parts.iter().map(|p| p.shape()[dim]).sum();
    layout.strides[dim] = step;
    Some(Tensor::with_layout(node, layout))
}

#[cfg(test)]
mod tests {
    use crate::autograd::{Backward, grad_with};
    use crate::graph::dtype::F64;
    use crate::tensor::{Tensor, options};

    /// The gradient with parts put together, and with parts added.
    #[track_caller]
    fn agree(f: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let x = options().device(crate::device::cpu()).dtype(F64).randn([2, 6, 3]).requires_grad_(true);
        let by = |graph: bool| {
            let how = Backward::new().create_graph(graph);
            grad_with(&[&f(&x)], &[&x], how).unwrap().remove(0)
        };
        let (joined, added) = (by(false), by(true));
        let off = (&joined - &added).abs().max().item::<f64>().unwrap();
        assert!(off < 1e-12, "{off} off");
        joined
    }

    #[test]
    fn gradients_of_slices() {
        let weigh = |t: Tensor, by: f64| (t.square() * by).sum();
        // All parts, in another order; some; one twice; overlapping; along two dimensions; with steps; of no length.
        agree(|x| {
            weigh(x.narrow(1, 4, 2), 1.0) + weigh(x.narrow(1, 0, 3), 2.0) + weigh(x.narrow(1, 3, 1), 3.0)
        });
        agree(|x| weigh(x.narrow(1, 4, 2), 1.0) + weigh(x.narrow(1, 1, 2), 2.0));
        agree(|x| {
            weigh(x.narrow(1, 0, 3), 1.0) + weigh(x.narrow(1, 3, 3), 2.0) + weigh(x.narrow(1, 3, 3), 3.0)
        });
        agree(|x| weigh(x.narrow(1, 0, 4), 1.0) + weigh(x.narrow(1, 3, 3), 2.0));
        agree(|x| {
            weigh(x.narrow(1, 0, 3), 1.0) + weigh(x.narrow(2, 1, 2), 2.0) + weigh(x.narrow(1, 3, 3), 2.0)
        });
        agree(|x| weigh(x.slice(1, 0, 6, 2), 1.0) + weigh(x.slice(1, 1, 6, 2), 2.0));
        agree(|x| weigh(x.narrow(1, 0, 6), 1.0) + x.narrow(1, 3, 0).sum());
        agree(|x| (0..6).map(|i| weigh(x.select(1, i), i as f64)).reduce(|a, b| a + b).unwrap());
        // Parts of one tensor are that tensor, however it lies.
        agree(|x| {
            let y = crate::ops::cat::cat(&x.split(2, 1).iter().rev().collect::<Vec<_>>(), 1);
            (y.transpose(0, 2) * x.transpose(0, 2)).sum()
        });
        agree(|x| {
            let (a, b) = (x.select(0, 0), x.select(0, 1));
            (crate::ops::cat::stack(&[&a, &b], 1) * x.transpose(0, 1)).sum()
        });
    }
}
