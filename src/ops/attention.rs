//! Scaled dot-product attention.

mod cpu;
mod kernel;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::panic::Location;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use self::kernel::{Attention as Forward, AttentionBackward, MAX_BATCH, fits};
use super::record::{Caller, common_device, first_error, link};
use crate::autograd::{Grads, Saved, is_grad_enabled};
use crate::error::{Error, ErrorKind, Result, on_line_of};
use crate::graph::device::check_dtype;
use crate::graph::dtype::{Bool, F16, F32};
use crate::graph::kernel::OpRef;
use crate::graph::layout::{Dims, Layout, broadcast, contiguous_strides, numel};
use crate::graph::node::{Node, NodeOp};
use crate::tensor::{Tensor, options};

/// Arguments of [`Tensor::scaled_dot_product_attention_with`], with PyTorch's defaults.
#[derive(Clone, Debug, Default)]
pub struct Attention {
    /// Of a shape that broadcasts to `[…, L, S]`: bools that say which keys a query sees, or floats that are added to the
    /// scores.
    pub attn_mask: Option<Tensor>,
    /// The probability with which a weight becomes zero (the others grow to make up for it).
    pub dropout_p: f64,
    /// Query `i` sees keys up to `i` only.
    pub is_causal: bool,
    /// What scores are multiplied by; `1 / sqrt(E)` by default.
    pub scale: Option<f64>,
    /// Key and value may have fewer heads (dimension -3) than the query, whose heads share them in groups.
    pub enable_gqa: bool,
}

const OP: &str = "scaled_dot_product_attention";

impl Tensor {
    /// `softmax(self @ key.T / sqrt(E)) @ value`: for each query of `self`, `[…, L, E]`, the mean of the values,
    /// `[…, S, Ev]`, weighted by how well their keys, `[…, S, E]`, fit it (`torch.nn.functional.scaled_dot_product_attention`).
    /// The result is `[…, L, Ev]`; leading dimensions broadcast.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let (q, k, v) = (zeros([2, 3, 4]), ones([2, 5, 4]), ones([2, 5, 6]));
    /// let y = q.scaled_dot_product_attention(&k, &v);
    /// assert_eq!(y.shape(), [2, 3, 6]);
    /// assert!((y.mean().item::<f32>()? - 1.0).abs() < 1e-6);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn scaled_dot_product_attention(&self, key: &Tensor, value: &Tensor) -> Tensor {
        self.scaled_dot_product_attention_with(key, value, &Attention::default())
    }

    /// [`scaled_dot_product_attention`](Tensor::scaled_dot_product_attention) with a mask, dropout, causality, a scale, or
    /// grouped queries. The matrix of weights is never in memory, forward or backward
    /// ([FlashAttention-2](https://arxiv.org/abs/2307.08691)), but for dropout, for gradients by the mask, and for gradients of
    /// gradients. A query that sees no key gives zeros.
    ///
    /// # Errors
    /// If a tensor has fewer than two dimensions, sizes do not fit, dtypes differ or are not of floats; if both a mask and
    /// `is_causal` are given; if `dropout_p` is no probability.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// # use wgrad::Attention;
    /// let x = randn([2, 4, 8, 16]); // batch, heads, time, width
    /// let y = x.scaled_dot_product_attention_with(&x, &x, &Attention { is_causal: true, ..Attention::default() });
    /// // The first query sees the first key alone.
    /// assert!((y.i((.., .., 0)) - x.i((.., .., 0))).abs().max().item::<f32>()? < 1e-6);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    #[track_caller]
    pub fn scaled_dot_product_attention_with(&self, key: &Tensor, value: &Tensor, how: &Attention) -> Tensor {
        let caller = Location::caller();
        Tensor::from_result(on_line_of(caller, || {
            check(self, key, value, how, caller)?;
            if self.dtype() == F16 {
                // What backward needs to know of each row takes more than a half.
                let wide = |t: &Tensor| if t.dtype() == F16 { t.to(F32) } else { t.clone() };
                let how = Attention { attn_mask: how.attn_mask.as_ref().map(wide), ..how.clone() };
                let out = wide(self).scaled_dot_product_attention_with(&wide(key), &wide(value), &how);
                return Ok(out.to(F16));
            }
            if how.enable_gqa {
                grouped(self, key, value, how, caller)
            } else {
                attend(self, key, value, how, caller)
            }
        }))
    }
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention, caller: Caller) -> Result<()> {
    let all = || [q, k, v].into_iter().chain(&how.attn_mask);
    first_error(all())?;
    common_device(OP, caller, all())?;
    let fail = |kind, message: String| Err(Error::at(caller, kind, OP, message));
    if q.dim() < 2 || k.dim() < 2 || v.dim() < 2 {
        let (q, k, v) = (q.dim(), k.dim(), v.dim());
        let message = format!(
            "Expected query, key, and value to all be at least 2 dimensional, but got query.dim: {q} key.dim: {k} and \
             value.dim: {v} instead."
        );
        return fail(ErrorKind::Shape, message);
    }
    let dtypes = (q.dtype(), k.dtype(), v.dtype());
    if dtypes.0 != dtypes.1 || dtypes.0 != dtypes.2 || !dtypes.0.is_float() {
        let message = format!(
            "Expected query, key, and value to have the same dtype, of floats, but got query.dtype: {}, key.dtype: {} and \
             value.dtype: {} instead.",
            dtypes.0, dtypes.1, dtypes.2
        );
        return fail(ErrorKind::DType, message);
    }
    if let Some(mask) = &how.attn_mask {
        if ![Bool, F32, q.dtype()].contains(&mask.dtype()) {
            let message = format!(
                "Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: {} and \
                 query.dtype: {} instead.",
                mask.dtype(),
                q.dtype()
            );
            return fail(ErrorKind::DType, message);
        }
        if how.is_causal {
            let message = "Explicit attn_mask should not be set when is_causal=True";
            return fail(ErrorKind::Argument, message.into());
        }
    }
    if !(0.0..=1.0).contains(&how.dropout_p) {
        let message = format!("dropout probability has to be between 0 and 1, but got {}", how.dropout_p);
        return fail(ErrorKind::Argument, message);
    }
    check_dtype(q.device(), q.dtype(), OP, caller)
}

/// Query heads in groups, each with a head of keys and values.
fn grouped(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention, caller: Caller) -> Result<Tensor> {
    if q.dim() < 3 || k.dim() < 3 || v.dim() < 3 {
        let message = format!(
            "enable_gqa needs heads in dimension -3, but got shapes {:?}, {:?} and {:?}",
            q.shape(),
            k.shape(),
            v.shape()
        );
        return Err(Error::at(caller, ErrorKind::Shape, OP, message));
    }
    let (heads, keys, values) = (q.size(-3), k.size(-3), v.size(-3));
    if keys == 0 || values == 0 || heads % keys != 0 || heads % values != 0 {
        let message = format!(
            "Number of heads in key and value must divide the number of heads in query, but got {keys}, {values} and {heads}"
        );
        return Err(Error::at(caller, ErrorKind::Shape, OP, message));
    }
    if keys != values {
        let repeated = |t: &Tensor, heads_here: usize| {
            let mut shape = Dims::from_slice(t.shape());
            shape.insert(t.dim() - 2, heads / heads_here);
            let all = t.unsqueeze(-3).expand(&shape[..]);
            shape.remove(t.dim() - 2);
            shape[t.dim() - 3] = heads;
            all.reshape(&shape[..])
        };
        return attend(q, &repeated(k, keys), &repeated(v, values), how, caller);
    }
    let in_groups = |t: &Tensor| {
        let mut shape = Dims::from_slice(t.shape());
        let at = t.dim() - 3;
        shape[at] = keys;
        shape.insert(at + 1, heads / keys);
        t.reshape(&shape[..])
    };
    let mask = how.attn_mask.as_ref().map(|m| match m.dim() {
        0..=2 => m.clone(),
        _ if m.size(-3) == heads => in_groups(m),
        _ => m.unsqueeze(-3),
    });
    let how = Attention { attn_mask: mask, ..how.clone() };
    let out = attend(&in_groups(q), &k.unsqueeze(-3), &v.unsqueeze(-3), &how, caller)?;
    let mut shape = Dims::from_slice(out.shape());
    shape.remove(out.dim() - 4);
    shape[out.dim() - 4] = heads;
    Ok(out.reshape(&shape[..]))
}

/// Operands of one rank, with all leading dimensions expanded.
#[derive(Clone)]
struct Operands {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Option<Tensor>,
    causal: bool,
    scale: f64,
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention, caller: Caller) -> Result<Tensor> {
    let fail = |message: String| Error::at(caller, ErrorKind::Shape, OP, message);
    let (l, e, s, columns) = (q.size(-2), q.size(-1), k.size(-2), v.size(-1));
    let lead = |t: &Tensor| Dims::from_slice(&t.shape()[..t.dim() - 2]);
    let batch = broadcast(&lead(q), &lead(k)).and_then(|b| broadcast(&b, &lead(v)));
    let Some(batch) = batch.filter(|_| k.size(-1) == e && v.size(-2) == s) else {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        return Err(fail(format!(
            "query {q:?}, key {k:?} and value {v:?} do not fit: […, L, E], […, S, E], […, S, Ev]"
        )));
    };
    let to = |t: &Tensor, rows: usize, columns: usize| {
        let mut shape = batch.clone();
        shape.extend([rows, columns]);
        if t.shape() == &shape[..] { t.clone() } else { t.expand(&shape[..]) }
    };
    let mask = match &how.attn_mask {
        Some(mask) => {
            let mut scores = batch.clone();
            scores.extend([l, s]);
            if broadcast(mask.shape(), &scores).as_ref() != Some(&scores) {
                return Err(fail(format!(
                    "attn_mask {:?} does not broadcast to scores {scores:?}",
                    mask.shape()
                )));
            }
            let typed = if mask.dtype() == Bool {
                mask.clone()
            } else {
                super::cast::to_dtype(mask, q.dtype(), caller)
            };
            Some(to(&typed, l, s))
        }
        None => None,
    };
    let operands = Operands {
        q: to(q, l, e),
        k: to(k, s, e),
        v: to(v, s, columns),
        mask,
        causal: how.is_causal,
        scale: how.scale.unwrap_or(1.0 / (e as f64).sqrt()),
    };
    let some = l > 0 && s > 0 && numel(&batch) > 0;
    if some && how.dropout_p == 0.0 && batch.len() <= MAX_BATCH && fits(l.max(s), e, columns) {
        return Ok(operands.fused(caller));
    }
    Ok(operands.weights().dropout(how.dropout_p, true).matmul(&operands.v))
}

impl Operands {
    /// The matrix of weights, `[…, L, S]`, in tensor ops. Rows that see nothing are zero.
    fn weights(&self) -> Tensor {
        let (l, s) = (self.q.size(-2), self.k.size(-2));
        let mut scores = self.q.matmul(&self.k.transpose(-2, -1)).mul(self.scale);
        if self.causal {
            let here = options().device(self.q.device());
            let sees = here.arange(0, l as i64, 1).unsqueeze(1).ge(here.arange(0, s as i64, 1));
            scores = scores.where_(&sees, f64::NEG_INFINITY);
        }
        let Some(mask) = &self.mask else { return scores.softmax(-1) };
        scores = if mask.dtype() == Bool { scores.where_(mask, f64::NEG_INFINITY) } else { scores.add(mask) };
        if s == 0 {
            return scores;
        }
        let sees = scores.alias().amax(-1, true).ne(f64::NEG_INFINITY);
        scores.where_(&sees, 0.0).softmax(-1).where_(&sees, 0.0)
    }

    /// Gradients by q, k, v and mask in tensor ops.
    fn formula(&self, g: &Tensor, needs: impl Fn(usize) -> bool) -> Grads {
        let turned = |t: &Tensor| t.transpose(-2, -1);
        let weights = self.weights();
        let slopes = g.matmul(&turned(&self.v)).mul(&weights);
        let slopes = slopes.sub(weights.mul(slopes.sum_dim(-1, true)));
        smallvec![
            needs(0).then(|| slopes.matmul(&self.k).mul(self.scale)),
            needs(1).then(|| turned(&slopes).matmul(&self.q).mul(self.scale)),
            needs(2).then(|| turned(&weights).matmul(g)),
            needs(3).then(|| slopes.clone()),
        ]
    }

    fn inputs(&self) -> SmallVec<[&Tensor; 4]> {
        [&self.q, &self.k, &self.v].into_iter().chain(&self.mask).collect()
    }

    fn fused(&self, caller: Caller) -> Tensor {
        let q = &self.q;
        let rank = q.dim();
        let mut shape = Dims::from_slice(q.shape());
        shape[rank - 1] = self.v.size(-1);
        // The result lies as the query does: where heads were split off and moved to the front, joining them is free.
        let (in_memory, back) = lie_as(q.layout(), &shape);
        let place = Layout::contiguous(&in_memory).permute(&back);
        let wants = is_grad_enabled() && self.inputs().iter().any(|t| t.gradient_edge().is_some());
        let size = numel(&shape);
        let rows: Dims = shape[..rank - 1].into();
        let op = Forward {
            causal: self.causal,
            scale: self.scale,
            out: place.clone(),
            lse: wants.then_some(size),
        };
        // For the way back, the logarithms of the rows' sums lie behind the result.
        let whole = if wants {
            Dims::from_slice(&[(size + numel(&rows)).next_multiple_of(4)])
        } else {
            in_memory.clone()
        };
        let node = record(&self.inputs(), OpRef(Arc::new(op)), &whole, caller);
        let base = Tensor::with_layout(node.clone(), Layout::contiguous(&in_memory));
        base.meta().owner = true;
        link(&base, "ScaledDotProductAttentionBackward0", &self.inputs(), caller, || {
            let values = |t: &Tensor| Saved::value(t);
            let saved: SmallVec<[Saved; 4]> = self.inputs().iter().map(|t| Saved::input(t)).collect();
            let out = values(&Tensor::with_layout(node.clone(), place.clone()));
            let lse = Layout { strides: contiguous_strides(&rows), shape: rows, offset: size };
            let lse = values(&Tensor::with_layout(node, lse));
            let (causal, scale, back) = (self.causal, self.scale, back.clone());
            Box::new(move |f, g| {
                let mut inputs = saved.iter().map(|s| s.unpack(f));
                let (Some(q), Some(k), Some(v)) = (inputs.next(), inputs.next(), inputs.next()) else {
                    return Grads::new();
                };
                let operands = Operands { q, k, v, mask: inputs.next(), causal, scale };
                let g = g.permute(&back[..]);
                if is_grad_enabled() || (saved.len() > 3 && f.needs(3)) {
                    return operands.formula(&g, |i| i < saved.len() && f.needs(i));
                }
                operands.fused_gradient(&g, &out.unpack(f), &lse.unpack(f), caller)
            })
        });
        if back.iter().enumerate().all(|(i, &d)| i == d) { base } else { base.permute(&back[..]) }
    }

    fn fused_gradient(&self, g: &Tensor, out: &Tensor, lse: &Tensor, caller: Caller) -> Grads {
        let delta = g.mul(out).sum_dim(-1, false);
        let (grads, size) = self.places();
        let mut inputs: SmallVec<[&Tensor; 8]> = smallvec![&self.q, &self.k, &self.v, g, lse, &delta];
        inputs.extend(&self.mask);
        let op = AttentionBackward { causal: self.causal, scale: self.scale, grads: grads.clone() };
        let node = record(&inputs, OpRef(Arc::new(op)), &[size], caller);
        grads.into_iter().map(|layout| Some(Tensor::with_layout(node.clone(), layout))).collect()
    }

    /// Where the gradients lie in one buffer, and its size.
    fn places(&self) -> ([Layout; 3], usize) {
        let inputs = [&self.q, &self.k, &self.v];
        let layouts = inputs.map(Tensor::layout);
        if let Some(places) = parts_of_one(inputs) {
            return (places, 3 * layouts[0].numel());
        }
        let mut end = 0;
        let places = layouts.map(|like| {
            let (in_memory, back) = lie_as(like, &like.shape);
            let place = Layout { offset: end, ..Layout::contiguous(&in_memory) }.permute(&back);
            end += like.numel().next_multiple_of(4);
            place
        });
        (places, end)
    }
}

/// A shape's dimensions as those of `like` lie in memory, and the permutation that leads back from there.
fn lie_as(like: &Layout, shape: &[usize]) -> (Dims, Dims) {
    let order = order_of(like);
    let mut back = Dims::from_elem(0, shape.len());
    order.iter().enumerate().for_each(|(i, &d)| back[d] = i);
    (order.iter().map(|&d| shape[d]).collect(), back)
}

/// The dimensions from the widest stride to the narrowest, but the last one last.
fn order_of(like: &Layout) -> Dims {
    let last = like.rank() - 1;
    let mut order: Dims = (0..last).collect();
    // Repeated dimensions outermost: what sums over them reads memory in order.
    let step = |d: usize| if like.strides[d] == 0 { usize::MAX } else { like.strides[d] };
    order.sort_by_key(|&d| Reverse(step(d)));
    order.push(last);
    order
}

/// Where q, k and v are parts of one tensor, as `split` or `chunk` gives them, their gradients take the same places, so that
/// together they are the gradient of that tensor.
fn parts_of_one(parts: [&Tensor; 3]) -> Option<[Layout; 3]> {
    let first = parts[0].layout();
    let node = parts[0].node();
    let alike = |t: &&Tensor| {
        Arc::ptr_eq(&t.node(), &node)
            && t.layout().shape == first.shape
            && t.layout().strides == first.strides
    };
    let mut offsets = parts.map(|t| t.layout().offset);
    offsets.sort_unstable();
    let (begin, step) = (offsets[0], offsets[1] - offsets[0]);
    if !parts.iter().all(alike) || offsets[2] - offsets[1] != step || first.strides.last() != Some(&1) {
        return None;
    }
    // Together they must leave no gaps and not overlap.
    let mut dims: SmallVec<[(usize, usize); 6]> =
        first.strides.iter().copied().zip(first.shape.iter().copied()).filter(|&(_, n)| n != 1).collect();
    dims.push((step, 3));
    dims.sort_unstable();
    let mut expected = 1;
    for (stride, n) in dims {
        if stride != expected {
            return None;
        }
        expected *= n;
    }
    Some(parts.map(|t| Layout { offset: t.layout().offset - begin, ..t.layout().clone() }))
}

fn record(inputs: &[&Tensor], op: OpRef, shape: &[usize], caller: Caller) -> Arc<Node> {
    let operands = inputs.iter().map(|t| t.operand(t.layout().clone())).collect();
    Node::record(inputs[0].device(), inputs[0].dtype(), shape, NodeOp::Structured(op), operands, caller)
}
