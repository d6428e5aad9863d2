//! Samples of attention.

use super::{Input, Lie, Sample, bools, real, sample};
use crate::ops::attention::Attention;
use crate::tensor::Tensor;

const OP: &str = "scaled_dot_product_attention";

fn call(rest: &str) -> String {
    format!("torch.nn.functional.{OP}({rest})")
}

fn attend(inputs: Vec<Input>, rest: &str, how: fn(&[Tensor]) -> Attention) -> Sample {
    let expression = call(&format!("x0, x1, x2{rest}"));
    sample(OP, expression, inputs, move |x| x[0].scaled_dot_product_attention_with(&x[1], &x[2], &how(x)))
}

fn plain(_: &[Tensor]) -> Attention {
    Attention::default()
}

fn causal(_: &[Tensor]) -> Attention {
    Attention { is_causal: true, ..Attention::default() }
}

fn masked(x: &[Tensor]) -> Attention {
    Attention { attn_mask: Some(x[3].clone()), ..Attention::default() }
}

fn grouped(_: &[Tensor]) -> Attention {
    Attention { enable_gqa: true, ..Attention::default() }
}

pub(super) fn samples() -> Vec<Sample> {
    let qkv = |q: &[usize], k: &[usize], v: &[usize]| vec![real(q), real(k), real(v)];
    let mut out = vec![];
    for (q, k, v) in [
        (&[2, 3][..], &[4, 3][..], &[4, 2][..]),
        (&[2, 2, 3], &[2, 4, 3], &[2, 4, 2]),
        (&[1, 2, 3, 2], &[1, 2, 3, 2], &[1, 2, 3, 2]),
        (&[2, 1, 2, 2], &[1, 2, 3, 2], &[3, 1]),
        (&[1, 1], &[1, 1], &[1, 1]),
        (&[2, 4], &[0, 4], &[0, 3]),
        (&[0, 4], &[2, 4], &[2, 3]),
        (&[0, 2, 4], &[0, 2, 4], &[0, 2, 4]),
        (&[2, 4], &[2, 4], &[2, 0]),
    ] {
        out.push(attend(qkv(q, k, v), "", plain));
        out.push(attend(qkv(q, k, v), ", is_causal=True", causal));
    }
    let s = &[2, 3, 2][..];
    let lies = |a: Lie, b: Lie, c: Lie| vec![real(s).lie(a), real(s).lie(b), real(s).lie(c)];
    let grown = |mut inputs: Vec<Input>, mask: Input| {
        inputs.push(mask);
        inputs
    };
    out.extend([
        attend(lies(Lie::Transposed, Lie::Strided, Lie::Offset), "", plain),
        attend(lies(Lie::Offset, Lie::Expanded, Lie::Transposed), ", is_causal=True", causal),
        attend(lies(Lie::Expanded, Lie::Transposed, Lie::Strided), "", plain),
        attend(lies(Lie::Plain, Lie::Plain, Lie::Plain), ", scale=0.3", |_| Attention {
            scale: Some(0.3),
            ..Attention::default()
        }),
        attend(grown(qkv(s, s, s), bools(&[3, 3])), ", attn_mask=x3", masked),
        attend(grown(qkv(s, s, s), bools(&[2, 1, 3]).map(|_| 0.0)), ", attn_mask=x3", masked),
        attend(grown(qkv(s, s, s), bools(&[2, 3, 1])), ", attn_mask=x3", masked),
        attend(grown(qkv(s, s, s), real(&[3, 3])), ", attn_mask=x3", masked),
        attend(grown(qkv(s, s, s), real(&[2, 3, 3]).lie(Lie::Transposed)), ", attn_mask=x3", masked),
        attend(grown(qkv(s, s, s), real(&[1]).fixed()), ", attn_mask=x3", masked),
        attend(grown(qkv(s, s, s), real(&[3, 3]).fixed()), ", attn_mask=x3.masked_fill(x3 < 0, float('-inf'))", |x| {
            let mask = x[3].where_(&x[3].ge(0.0), f64::NEG_INFINITY);
            Attention { attn_mask: Some(mask), ..Attention::default() }
        }),
        attend(qkv(&[1, 4, 2, 2], &[1, 2, 3, 2], &[1, 2, 3, 2]), ", enable_gqa=True", grouped),
        attend(qkv(&[4, 2, 2], &[2, 3, 2], &[1, 3, 2]), ", enable_gqa=True", grouped),
        attend(
            grown(qkv(&[2, 4, 2, 2], &[2, 2, 3, 2], &[2, 2, 3, 2]), real(&[4, 2, 3])),
            ", attn_mask=x3, enable_gqa=True",
            |x| Attention { enable_gqa: true, ..masked(x) },
        ),
        attend(grown(qkv(&[4, 2, 2], &[2, 3, 2], &[2, 3, 2]), bools(&[1, 2, 3])), ", attn_mask=x3, enable_gqa=True", |x| {
            Attention { enable_gqa: true, ..masked(x) }
        }),
        attend(qkv(&[1, 2, 35, 5], &[1, 2, 18, 5], &[1, 2, 18, 9]), "", plain).kink(),
        attend(qkv(&[1, 66, 5], &[1, 66, 5], &[1, 66, 4]), ", is_causal=True", causal).kink(),
        attend(qkv(&[1, 2, 8], &[1, 3, 8], &[1, 3, 257]), "", plain).kink(),
        attend(qkv(&[3, 2], &[3, 2], &[3, 2]), ", dropout_p=1.0", |_| Attention {
            dropout_p: 1.0,
            ..Attention::default()
        }),
        // Heads of one tensor's parts.
        sample(
            OP,
            "torch.nn.functional.scaled_dot_product_attention(*(z.view(2, 3, 2, 2).transpose(1, 2) for z in \
             x0.split(4, -1)), is_causal=True).transpose(1, 2).reshape(2, 3, 4)",
            vec![real(&[2, 3, 12])],
            |x| {
                let parts: Vec<Tensor> =
                    x[0].split(4, -1).iter().map(|z| z.reshape([2, 3, 2, 2]).transpose(1, 2)).collect();
                let y = parts[0].scaled_dot_product_attention_with(&parts[1], &parts[2], &causal(x));
                y.transpose(1, 2).reshape([2, 3, 4])
            },
        ),
        sample(
            OP,
            "torch.nn.functional.scaled_dot_product_attention(*x0.view(2, 3, 3, 2, 2).permute(2, 0, 3, 1, 4)).tanh()",
            vec![real(&[2, 3, 12])],
            |x| {
                let parts = x[0].reshape([2, 3, 3, 2, 2]).permute([2, 0, 3, 1, 4]);
                parts.select(0, 0).scaled_dot_product_attention(&parts.select(0, 1), &parts.select(0, 2)).tanh()
            },
        ),
    ]);
    out
}
