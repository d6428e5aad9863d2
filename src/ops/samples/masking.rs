//! Samples of masks and triangles.

use super::{Input, Lie, Sample, bools, given, ints, real, sample};

/// What hides behind a mask must not be seen.
const SPECIALS: [f64; 6] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0, -0.0, 2.0];

pub(super) fn samples() -> Vec<Sample> {
    let mut out = fills();
    out.extend(triangles());
    out
}

fn fills() -> Vec<Sample> {
    let s = &[2, 3][..];
    let mut out = vec![];
    let mut number = |value: f64, x: Input, mask: Input| {
        let text = format!("x0.masked_fill(x1, {value})").replace("inf", "float('inf')");
        out.push(sample("masked_fill", text, vec![x, mask], move |x| x[0].masked_fill(&x[1], value)));
    };
    number(0.5, real(s), bools(s));
    number(-2.0, real(&[3, 2]).lie(Lie::Transposed), bools(&[3, 2]).lie(Lie::Strided));
    number(0.0, real(&[4, 2]).lie(Lie::Offset), bools(&[4, 2]).lie(Lie::Transposed));
    number(1.5, real(&[2, 2, 3]).lie(Lie::Expanded), bools(&[2, 2, 3]).lie(Lie::Offset));
    number(3.0, real(&[2, 2, 3]).lie(Lie::Strided), bools(&[2, 3]));
    // A mask of more dimensions, and both of them broadcast.
    number(1.0, real(&[3]), bools(s));
    number(1.0, real(&[2, 1, 2]), bools(&[3, 1]));
    number(1.0, real(&[]), bools(&[]));
    number(1.0, real(s), bools(&[]));
    number(1.0, real(&[2, 0]), bools(&[2, 1]));
    // The result keeps the tensor's type.
    number(1.75, ints(s), bools(s));
    number(-3.0, ints(s).lie(Lie::Transposed), bools(&[3]));
    number(0.5, bools(s), bools(&[2, 1]));
    out.extend([
        sample("masked_fill", "x0.masked_fill(x1, x2)", vec![real(s), bools(s), real(&[])], |x| {
            x[0].masked_fill(&x[1], &x[2])
        }),
        sample(
            "masked_fill",
            "x0.masked_fill(x1, x2)",
            vec![real(&[2, 1, 2]).lie(Lie::Strided), bools(&[3, 1]), real(&[])],
            |x| x[0].masked_fill(&x[1], &x[2]),
        ),
        sample("masked_fill", "x0.masked_fill(x1, x2)", vec![real(s).fixed(), bools(s), real(&[])], |x| {
            x[0].masked_fill(&x[1], &x[2])
        }),
        sample("masked_fill", "x0.masked_fill(x1, x2)", vec![real(s), bools(s), ints(&[])], |x| {
            x[0].masked_fill(&x[1], &x[2])
        }),
        sample("masked_fill", "x0.masked_fill(x1, x2)", vec![ints(s), bools(s), real(&[]).fixed()], |x| {
            x[0].masked_fill(&x[1], &x[2])
        }),
        sample("masked_fill", "x0.masked_fill(x1, x2)", vec![real(&[2, 0]), bools(&[0]), real(&[])], |x| {
            x[0].masked_fill(&x[1], &x[2])
        }),
        sample(
            "masked_fill",
            "torch.softmax(x0.masked_fill(x1.triu(1), float('-inf')), -1)",
            vec![real(&[2, 3, 3]), bools(&[3, 3]).map(|_| 1.0)],
            |x| x[0].masked_fill(&x[1].triu(1), f64::NEG_INFINITY).softmax(-1),
        ),
        sample(
            "masked_fill",
            "x0.masked_fill(x1, float('nan'))",
            vec![given(&[6], &SPECIALS), bools(&[3, 1])],
            |x| x[0].masked_fill(&x[1], f64::NAN),
        )
        .native(),
        sample(
            "masked_fill",
            "x0.clone().masked_fill_(x1, x2)",
            vec![real(s), bools(&[3]), real(&[])],
            |x| x[0].clone_data().masked_fill_(&x[1], &x[2]),
        ),
        sample(
            "masked_fill",
            "[y := x0 * 2, y.t()[1:].masked_fill_(x1, 0.25), y.exp()][-1]",
            vec![real(&[3, 4]), bools(&[3, 3])],
            |x| {
                let y = &x[0] * 2;
                y.t().i(1..).masked_fill_(&x[1], 0.25);
                y.exp()
            },
        ),
    ]);
    out
}

fn triangles() -> Vec<Sample> {
    let mut out = vec![];
    let mut add = |diagonal: i64, x: Input| {
        let (l, u) = (format!("torch.tril(x0, {diagonal})"), format!("torch.triu(x0, {diagonal})"));
        out.push(sample("tril", l, vec![x.clone()], move |x| x[0].tril(diagonal)));
        out.push(sample("triu", u, vec![x], move |x| x[0].triu(diagonal)));
    };
    for diagonal in [0, 1, -1, 2, -2, 5, -5] {
        add(diagonal, real(&[3, 4]));
    }
    add(0, real(&[4, 2]).lie(Lie::Transposed));
    add(-1, real(&[4, 3]).lie(Lie::Strided));
    add(1, real(&[2, 3, 3]).lie(Lie::Offset));
    add(0, real(&[2, 3, 3]).lie(Lie::Expanded));
    add(-1, real(&[2, 2, 3, 2]).lie(Lie::Transposed));
    add(1, real(&[1, 1]));
    add(0, real(&[0, 3]));
    add(1, real(&[2, 3, 0]));
    add(-1, ints(&[3, 3]));
    add(0, bools(&[3, 4]));
    let specials = || vec![given(&[2, 3], &SPECIALS)];
    out.extend([
        sample("tril", "torch.tril(x0, -1)", specials(), |x| x[0].tril(-1)).native(),
        sample("triu", "torch.triu(x0, 2)", specials(), |x| x[0].triu(2)).native(),
        sample("tril", "x0.clone().tril_(1)", vec![real(&[3, 4])], |x| x[0].clone_data().tril_(1)),
        sample("triu", "[y := x0 * 2, y[1].t().triu_(-1), y.exp()][-1]", vec![real(&[2, 3, 2])], |x| {
            let y = &x[0] * 2;
            y.i(1).t().triu_(-1);
            y.exp()
        }),
        // Within a kernel: before a product's sum, after it, and both.
        sample(
            "tril",
            "torch.tril((x0.tril() @ x1.triu(1)).exp(), -1) * x1",
            vec![real(&[3, 3]), real(&[3, 3])],
            |x| (x[0].tril(0).matmul(&x[1].triu(1))).exp().tril(-1) * &x[1],
        ),
        sample("triu", "(x0.triu() * x0.tril(1)).sum(-1)", vec![real(&[2, 4, 3])], |x| {
            (x[0].triu(0) * x[0].tril(1)).sum_dim(-1, false)
        }),
    ]);
    out
}
