//! Samples of reductions, and of softmax.

use super::{Lie, Sample, bools, given, ints, real, sample};
use crate::tensor::Tensor;

type Reduce = fn(&Tensor, &[i64], bool) -> Tensor;

pub(super) fn samples() -> Vec<Sample> {
    let mut out = vec![];
    let over: [(&str, Reduce); 5] = [
        ("sum", |x, d, k| x.sum_dim(d, k)),
        ("mean", |x, d, k| x.mean_dim(d, k)),
        ("amax", |x, d, k| x.amax(d, k)),
        ("amin", |x, d, k| x.amin(d, k)),
        ("logsumexp", |x, d, k| x.logsumexp(d, k)),
    ];
    for (name, f) in over {
        let mut add = |shape: &[usize], lie: Lie, dims: &'static [i64], keepdim: bool| {
            let list = if dims.len() == 1 { dims[0].to_string() } else { format!("{dims:?}") };
            let python = if keepdim { "True" } else { "False" };
            let text = format!("torch.{name}(x0, dim={list}, keepdim={python})");
            out.push(sample(name, text, vec![real(shape).lie(lie)], move |x| f(&x[0], dims, keepdim)));
        };
        add(&[2, 3], Lie::Plain, &[0], false);
        add(&[2, 3], Lie::Plain, &[1], true);
        add(&[3, 2, 2], Lie::Plain, &[1], false);
        add(&[3, 2, 2], Lie::Transposed, &[-1], false);
        add(&[2, 2, 3], Lie::Strided, &[0, -1], false);
        add(&[2, 2, 3], Lie::Offset, &[2, 0], true);
        add(&[3, 2], Lie::Expanded, &[0], false);
        add(&[3, 2], Lie::Expanded, &[0, 1], true);
        add(&[2, 0, 3], Lie::Plain, &[0], false);
        add(&[], Lie::Plain, &[0], false);
        if matches!(name, "sum" | "mean" | "logsumexp") {
            add(&[2, 0], Lie::Plain, &[1], false);
        }
    }
    // Repeated rows tie.
    for s in &mut out {
        if s.op.starts_with("am") && s.inputs[0].lie == Lie::Expanded {
            s.gradient = super::Slope::Kink;
        }
        // log(0) of nothing has a gradient of nothing.
    }
    let s = &[2, 3][..];
    let zeros = |values: &[f64]| given(&[2, 3], values);
    let odd = [1.0, f64::NAN, -2.0, f64::INFINITY, 3.0, f64::NEG_INFINITY];
    out.extend([
        sample("sum", "torch.sum(x0)", vec![real(s)], |x| x[0].sum()),
        sample("sum", "torch.sum(x0)", vec![real(&[3, 2, 2]).lie(Lie::Transposed)], |x| x[0].sum()),
        sample("sum", "torch.sum(x0)", vec![real(&[])], |x| x[0].sum()),
        sample("sum", "torch.sum(x0)", vec![real(&[0])], |x| x[0].sum()),
        sample("sum", "torch.sum(x0)", vec![ints(s)], |x| x[0].sum()),
        sample("sum", "torch.sum(x0, dim=1)", vec![bools(s)], |x| x[0].sum_dim(1, false)),
        sample("sum", "torch.sum(x0 * x1 + 1)", vec![real(s), real(&[3])], |x| (&x[0] * &x[1] + 1).sum()),
        sample("sum", "torch.sum(x0, dim=0)", vec![given(&[2, 3], &odd)], |x| x[0].sum_dim(0, false))
            .native(),
        sample("mean", "torch.mean(x0)", vec![real(s)], |x| x[0].mean()),
        sample("mean", "torch.mean(x0)", vec![real(&[0])], |x| x[0].mean()).flat(),
        sample("prod", "torch.prod(x0)", vec![real(s)], |x| x[0].prod()),
        sample("prod", "torch.prod(x0)", vec![real(&[])], |x| x[0].prod()),
        sample("prod", "torch.prod(x0)", vec![real(&[0])], |x| x[0].prod()),
        sample("prod", "torch.prod(x0)", vec![ints(s)], |x| x[0].prod()),
        sample("prod", "torch.prod(x0, dim=1)", vec![real(&[2, 5])], |x| x[0].prod_dim(1, false)),
        sample(
            "prod",
            "torch.prod(x0, dim=0, keepdim=True)",
            vec![real(&[3, 2]).lie(Lie::Transposed)],
            |x| x[0].prod_dim(0, true),
        ),
        sample("prod", "torch.prod(x0, dim=1)", vec![real(&[2, 3, 2]).lie(Lie::Strided)], |x| {
            x[0].prod_dim(-2, false)
        }),
        sample("prod", "torch.prod(x0, dim=1)", vec![zeros(&[1.0, 0.0, 3.0, 0.0, 0.0, 2.0])], |x| {
            x[0].prod_dim(1, false)
        }),
        sample("amax", "torch.max(x0)", vec![real(s)], |x| x[0].max()),
        sample("amin", "torch.min(x0)", vec![real(s)], |x| x[0].min()),
        sample("amax", "torch.amax(x0, dim=1)", vec![zeros(&[1.0, 3.0, 3.0, 2.0, 2.0, 2.0])], |x| {
            x[0].amax(1, false)
        })
        .kink(),
        sample("amin", "torch.amin(x0, dim=0)", vec![zeros(&[1.0, 3.0, 3.0, 1.0, 2.0, 4.0])], |x| {
            x[0].amin(0, false)
        })
        .kink(),
        sample("amax", "torch.amax(x0, dim=0)", vec![given(&[2, 3], &odd)], |x| x[0].amax(0, false)).native(),
        sample("amin", "torch.amin(x0, dim=0)", vec![given(&[2, 3], &odd)], |x| x[0].amin(0, false)).native(),
        sample("amax", "torch.amax(x0, dim=0)", vec![ints(s)], |x| x[0].amax(0, false)),
        sample("amin", "torch.amin(x0, dim=0)", vec![ints(s)], |x| x[0].amin(0, false)),
        sample("amax", "torch.amax(x0, dim=1)", vec![bools(s)], |x| x[0].amax(1, false)),
        sample("amin", "torch.amin(x0, dim=1)", vec![bools(s)], |x| x[0].amin(1, false)),
        sample("argmax", "torch.argmax(x0)", vec![real(s)], |x| x[0].argmax()).flat(),
        sample("argmax", "torch.argmax(x0)", vec![real(&[])], |x| x[0].argmax()).flat(),
        sample("argmax", "torch.argmax(x0, dim=1)", vec![real(&[3, 4]).lie(Lie::Transposed)], |x| {
            x[0].argmax_dim(1, false)
        })
        .flat(),
        sample("argmax", "torch.argmax(x0, dim=0, keepdim=True)", vec![real(&[3, 4])], |x| {
            x[0].argmax_dim(0, true)
        })
        .flat(),
        sample(
            "argmax",
            "torch.argmax(x0, dim=1)",
            vec![zeros(&[1.0, 3.0, 3.0, f64::NAN, 5.0, f64::NAN])],
            |x| x[0].argmax_dim(1, false),
        )
        .native(),
        sample("argmax", "torch.argmax(x0, dim=1)", vec![ints(s)], |x| x[0].argmax_dim(1, false)),
        sample("argmin", "torch.argmin(x0)", vec![real(s).lie(Lie::Strided)], |x| x[0].argmin()).flat(),
        sample("argmin", "torch.argmin(x0, dim=-1)", vec![real(&[2, 2, 3])], |x| x[0].argmin_dim(-1, false))
            .flat(),
        sample(
            "argmin",
            "torch.argmin(x0, dim=1)",
            vec![zeros(&[f64::INFINITY, 3.0, 3.0, 2.0, f64::NAN, 1.0])],
            |x| x[0].argmin_dim(1, false),
        )
        .native(),
        sample("var", "torch.var(x0)", vec![real(s)], |x| x[0].var((), 1.0, false)),
        sample("var", "torch.var(x0, dim=1, correction=0)", vec![real(&[3, 4]).lie(Lie::Transposed)], |x| {
            x[0].var(1, 0.0, false)
        }),
        sample("var", "torch.var(x0, dim=(0, 2), keepdim=True)", vec![real(&[2, 2, 3])], |x| {
            x[0].var([0, 2], 1.0, true)
        }),
        sample("var", "torch.var(x0, dim=0)", vec![real(&[1, 2])], |x| x[0].var(0, 1.0, false)).flat(),
        sample("std", "torch.std(x0)", vec![real(s)], |x| x[0].std((), 1.0, false)),
        sample("std", "torch.std(x0, dim=0, correction=0)", vec![real(&[3, 2]).lie(Lie::Strided)], |x| {
            x[0].std(0, 0.0, false)
        }),
        sample(
            "logsumexp",
            "torch.logsumexp(x0, dim=1)",
            vec![given(&[2, 2], &[800.0, 801.0, -900.0, -901.0])],
            |x| x[0].logsumexp(1, false),
        ),
        sample(
            "logsumexp",
            "torch.logsumexp(x0, dim=1)",
            vec![given(&[3, 2], &[f64::NEG_INFINITY, f64::NEG_INFINITY, f64::INFINITY, 1.0, f64::NAN, 0.0])],
            |x| x[0].logsumexp(1, false),
        )
        .native(),
        sample("logsumexp", "torch.logsumexp(x0, dim=1)", vec![ints(s)], |x| x[0].logsumexp(1, false)),
    ]);
    out.extend(softmaxes());
    out
}

fn softmaxes() -> Vec<Sample> {
    type Softmax = fn(&Tensor, i64) -> Tensor;
    let both: [(&str, Softmax); 2] = [("softmax", Tensor::softmax), ("log_softmax", Tensor::log_softmax)];
    let mut out = vec![];
    for (name, f) in both {
        let text = |dim: i64| format!("torch.{name}(x0, dim={dim})");
        out.extend([
            sample(name, text(1), vec![real(&[2, 4])], move |x| f(&x[0], 1)),
            sample(name, text(0), vec![real(&[3, 2]).lie(Lie::Transposed)], move |x| f(&x[0], 0)),
            sample(name, text(1), vec![real(&[2, 3, 2]).lie(Lie::Strided)], move |x| f(&x[0], 1)),
            sample(name, text(-1), vec![real(&[2, 2, 3]).lie(Lie::Offset)], move |x| f(&x[0], -1)),
            sample(name, text(-1), vec![real(&[3, 1])], move |x| f(&x[0], -1)),
            sample(name, text(0), vec![real(&[])], move |x| f(&x[0], 0)),
            sample(name, text(1), vec![real(&[0, 3])], move |x| f(&x[0], 1)),
            sample(name, text(1), vec![real(&[2, 0])], move |x| f(&x[0], 1)),
            sample(name, text(1), vec![real(&[2, 70])], move |x| f(&x[0], 1)).kink(),
            sample(
                name,
                text(1),
                vec![given(&[2, 3], &[1000.0, 999.0, 0.0, -1000.0, -1001.0, -999.5])],
                move |x| f(&x[0], 1),
            )
            .kink(),
            sample(
                name,
                text(1),
                vec![given(&[2, 3], &[f64::NEG_INFINITY, 1.0, 2.0, f64::NAN, 1.0, 2.0])],
                move |x| f(&x[0], 1),
            )
            .native(),
            sample(
                name,
                format!("torch.relu(torch.{name}(x0 * 2, dim=1) + 0.5)"),
                vec![real(&[2, 4])],
                move |x| (f(&(&x[0] * 2), 1) + 0.5).relu(),
            ),
        ]);
    }
    out
}
