//! Samples of matrix products and losses.

use super::{Input, Lie, Sample, below, given, given_ints, ints, positive, real, sample};
use crate::ops::loss::{CrossEntropy, Reduction};
use crate::tensor::Tensor;

pub(super) fn samples() -> Vec<Sample> {
    let mut out = matmuls();
    out.extend(losses());
    out
}

fn matmuls() -> Vec<Sample> {
    let mut out = vec![];
    let shapes: [(&[usize], &[usize]); 17] = [
        (&[3], &[3]),
        (&[2, 3], &[3]),
        (&[3], &[3, 2]),
        (&[2, 3], &[3, 2]),
        (&[2, 2, 3], &[3, 2]),
        (&[2, 3], &[2, 3, 2]),
        (&[2, 2, 3], &[2, 3, 2]),
        (&[2, 1, 2, 3], &[2, 3, 1]),
        (&[1, 2, 3], &[2, 3, 2]),
        (&[3], &[2, 3, 2]),
        (&[2, 2, 3], &[3]),
        (&[2, 0], &[0, 3]),
        (&[0, 3], &[3, 2]),
        (&[0, 2, 3], &[3, 2]),
        (&[1, 1], &[1, 1]),
        (&[2, 2, 0], &[0, 2]),
        (&[0], &[0]),
    ];
    for (a, b) in shapes {
        for (la, lb) in [
            (Lie::Plain, Lie::Plain),
            (Lie::Transposed, Lie::Strided),
            (Lie::Offset, Lie::Transposed),
            (Lie::Expanded, Lie::Plain),
        ] {
            let inputs = vec![real(a).lie(la), real(b).lie(lb)];
            out.push(sample("matmul", "torch.matmul(x0, x1)", inputs, |x| x[0].matmul(&x[1])));
        }
    }
    let m = |r: usize, c: usize| real(&[r, c]);
    out.extend([
        sample("matmul", "torch.matmul(x0, x1)", vec![ints(&[2, 3]), ints(&[3, 2])], |x| x[0].matmul(&x[1])),
        sample("matmul", "torch.matmul(x0.t(), x0)", vec![m(3, 2)], |x| x[0].t().matmul(&x[0])),
        sample("matmul", "torch.relu(x0 @ x1 + x2)", vec![m(3, 4), m(4, 2), real(&[2])], |x| {
            (x[0].matmul(&x[1]) + &x[2]).relu()
        }),
        sample("matmul", "torch.matmul(x0, x1)", vec![m(5, 17), m(17, 9)], |x| x[0].matmul(&x[1])).kink(),
        sample(
            "matmul",
            "torch.matmul(x0, x1)",
            vec![m(33, 8).lie(Lie::Transposed), m(8, 20).lie(Lie::Strided)],
            |x| x[0].matmul(&x[1]),
        )
        .kink(),
        sample("mm", "torch.mm(x0, x1)", vec![m(2, 3), m(3, 2)], |x| x[0].mm(&x[1])),
        sample("mv", "torch.mv(x0, x1)", vec![m(2, 3), real(&[3])], |x| x[0].mv(&x[1])),
        sample("dot", "torch.dot(x0, x1)", vec![real(&[4]), real(&[4])], |x| x[0].dot(&x[1])),
        sample("bmm", "torch.bmm(x0, x1)", vec![real(&[2, 2, 3]), real(&[2, 3, 2])], |x| x[0].bmm(&x[1])),
        sample("linear", "torch.nn.functional.linear(x0, x1)", vec![m(2, 3), m(4, 3)], |x| {
            x[0].linear(&x[1], None)
        }),
        sample("linear", "torch.nn.functional.linear(x0, x1, x2)", vec![m(2, 3), m(4, 3), real(&[4])], |x| {
            x[0].linear(&x[1], Some(&x[2]))
        }),
        sample(
            "linear",
            "torch.nn.functional.linear(x0, x1, x2)",
            vec![real(&[2, 2, 3]), m(2, 3), real(&[2])],
            |x| x[0].linear(&x[1], Some(&x[2])),
        ),
        sample(
            "linear",
            "torch.nn.functional.linear(x0, x1, x2)",
            vec![real(&[3]), m(2, 3), real(&[2])],
            |x| x[0].linear(&x[1], Some(&x[2])),
        ),
    ]);
    out
}

/// No reduction.
fn every() -> CrossEntropy {
    CrossEntropy { reduction: Reduction::None, ..CrossEntropy::default() }
}

fn losses() -> Vec<Sample> {
    let mut out = vec![];
    let s = &[2, 3][..];
    out.push(sample("mse_loss", "torch.nn.functional.mse_loss(x0, x1)", vec![real(s), real(s)], |x| {
        x[0].mse_loss(&x[1])
    }));
    for (name, reduction) in [("none", Reduction::None), ("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
        let with = move |weight: Option<&Tensor>, ignore_index: i64, label_smoothing: f64| CrossEntropy {
            weight: weight.cloned(),
            ignore_index,
            reduction,
            label_smoothing,
        };
        let text = |f: &str, rest: &str| format!("torch.nn.functional.{f}({rest}, reduction='{name}')");
        let logits = || real(&[4, 3]);
        let target = || given_ints(&[4], &[0, 2, 1, 2]);
        let weight = || positive(&[3]).fixed();
        let probabilities = || {
            let half: Vec<f64> = vec![0.5, 0.25, 0.25, 0.125, 0.75, 0.125, 1.0, 0.0, 0.0, 0.25, 0.25, 0.5];
            given(&[4, 3], &half)
        };
        let deep = || vec![real(&[2, 3, 2]).lie(Lie::Transposed), below(3, &[2, 2])];
        out.extend([
            sample(
                "mse_loss",
                text("mse_loss", "x0, x1"),
                vec![real(s), real(s).lie(Lie::Strided)],
                move |x| x[0].mse_loss_with(&x[1], reduction),
            ),
            sample("nll_loss", text("nll_loss", "x0, x1.long()"), vec![logits(), target()], move |x| {
                x[0].nll_loss_with(&x[1], &with(None, -100, 0.0))
            }),
            sample(
                "nll_loss",
                text("nll_loss", "x0, x1.long(), weight=x2, ignore_index=2"),
                vec![logits(), target(), weight()],
                move |x| x[0].nll_loss_with(&x[1], &with(Some(&x[2]), 2, 0.0)),
            ),
            sample("nll_loss", text("nll_loss", "x0, x1.long()"), deep(), move |x| {
                x[0].nll_loss_with(&x[1], &with(None, -100, 0.0))
            }),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long()"),
                vec![logits(), target()],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), weight=x2"),
                vec![logits(), target(), weight()],
                move |x| x[0].cross_entropy_with(&x[1], &with(Some(&x[2]), -100, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), ignore_index=-100"),
                vec![logits(), given_ints(&[4], &[0, -100, 1, -100])],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), weight=x2, ignore_index=0, label_smoothing=0.2"),
                vec![logits(), target(), weight()],
                move |x| x[0].cross_entropy_with(&x[1], &with(Some(&x[2]), 0, 0.2)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), label_smoothing=0.1"),
                deep(),
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.1)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), ignore_index=1"),
                vec![
                    real(&[2, 3, 2, 2]).lie(Lie::Transposed),
                    given_ints(&[2, 2, 2], &[0, 1, 2, 2, 1, 1, 0, 2]).lie(Lie::Strided),
                ],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, 1, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), ignore_index=2, label_smoothing=0.25"),
                vec![real(&[4, 3]).lie(Lie::Offset), target()],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, 2, 0.25)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), weight=x2, ignore_index=1"),
                vec![real(&[2, 3, 2]), below(3, &[2, 2]), weight()],
                move |x| x[0].cross_entropy_with(&x[1], &with(Some(&x[2]), 1, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long(), label_smoothing=1.0"),
                vec![real(&[3, 1]), below(1, &[3])],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 1.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long()"),
                vec![real(&[5, 37]).lie(Lie::Expanded), below(37, &[5])],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            )
            .kink(),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1"),
                vec![logits(), probabilities()],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1, weight=x2, label_smoothing=0.3"),
                vec![logits(), probabilities(), weight()],
                move |x| x[0].cross_entropy_with(&x[1], &with(Some(&x[2]), -100, 0.3)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1.long()"),
                vec![real(&[3]), below(3, &[])],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1"),
                vec![real(&[3]), given(&[3], &[0.25, 0.25, 0.5])],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            ),
            sample(
                "cross_entropy",
                text("cross_entropy", "x0, x1"),
                vec![real(&[2, 2, 2]), real(&[2, 2, 2]).map(|v| v.abs() / 4.0)],
                move |x| x[0].cross_entropy_with(&x[1], &with(None, -100, 0.0)),
            ),
        ]);
    }
    let all_ignored: Vec<Input> = vec![real(&[2, 3]), given_ints(&[2], &[-100, -100])];
    let infinite = || {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let rows = [[-inf, 0.0, 1.0], [0.5, -inf, -inf], [inf, 0.0, 0.0], [nan, 0.0, 0.0], [-inf; 3]];
        given(&[5, 3], &rows.concat())
    };
    out.extend([
        sample(
            "nll_loss",
            "torch.nn.functional.nll_loss(x0, x1.long())",
            vec![real(&[2, 3]), below(3, &[2])],
            |x| x[0].nll_loss(&x[1]),
        ),
        sample(
            "cross_entropy",
            "torch.nn.functional.cross_entropy(x0, x1.long())",
            vec![real(&[2, 3]), below(3, &[2])],
            |x| x[0].cross_entropy(&x[1]),
        ),
        sample("cross_entropy", "torch.nn.functional.cross_entropy(x0, x1.long())", all_ignored, |x| {
            x[0].cross_entropy(&x[1])
        })
        .flat(),
        sample(
            "cross_entropy",
            "torch.nn.functional.cross_entropy(x0, x1.long(), reduction='none')",
            vec![infinite(), given_ints(&[5], &[1, 2, 0, 1, 2])],
            |x| x[0].cross_entropy_with(&x[1], &every()),
        )
        .kink(),
        sample(
            "cross_entropy",
            "torch.nn.functional.cross_entropy(x0, x1.long(), reduction='none')",
            vec![infinite(), given_ints(&[5], &[0, -100, -100, -100, -100])],
            |x| x[0].cross_entropy_with(&x[1], &every()),
        )
        .kink(),
        sample(
            "cross_entropy",
            "torch.nn.functional.cross_entropy(x0, x1.long())",
            vec![real(&[0, 3, 2]), below(3, &[0, 2])],
            |x| x[0].cross_entropy(&x[1]),
        )
        .flat(),
        sample(
            "cross_entropy",
            "torch.nn.functional.cross_entropy(x0, x1.long(), reduction='sum')",
            vec![real(&[0, 3]), below(3, &[0])],
            |x| {
                x[0].cross_entropy_with(
                    &x[1],
                    &CrossEntropy { reduction: Reduction::Sum, ..CrossEntropy::default() },
                )
            },
        ),
        sample(
            "cross_entropy",
            "torch.nn.functional.cross_entropy(x0, x1.long())",
            vec![given(&[2, 2], &[1000.0, 0.0, -1000.0, 500.0]), given_ints(&[2], &[0, 1])],
            |x| x[0].cross_entropy(&x[1]),
        ),
    ]);
    out
}
