//! Samples of ops with index tensors, and of joining.

use super::{Lie, Sample, below, bools, given_ints, ints, real, sample};
use crate::ops::cat::{cat, stack};

pub(super) fn samples() -> Vec<Sample> {
    let s = &[2, 3][..];
    vec![
        sample("gather", "torch.gather(x0, 0, x1.long())", vec![real(&[3, 2]), below(3, &[2, 2])], |x| {
            x[0].gather(0, &x[1])
        }),
        sample(
            "gather",
            "torch.gather(x0, 1, x1.long())",
            vec![real(s).lie(Lie::Transposed), below(3, &[2, 5]).lie(Lie::Transposed)],
            |x| x[0].gather(1, &x[1]),
        ),
        sample(
            "gather",
            "torch.gather(x0, -1, x1.long())",
            vec![real(&[2, 2, 3]).lie(Lie::Strided), below(3, &[1, 2, 2])],
            |x| x[0].gather(-1, &x[1]),
        ),
        sample(
            "gather",
            "torch.gather(x0, 1, x1.long())",
            vec![real(&[3, 4]).lie(Lie::Expanded), below(4, &[3, 2]).lie(Lie::Expanded)],
            |x| x[0].gather(1, &x[1]),
        ),
        sample("gather", "torch.gather(x0, 0, x1.long())", vec![real(&[]), below(1, &[])], |x| {
            x[0].gather(0, &x[1])
        }),
        sample("gather", "torch.gather(x0, 1, x1.long())", vec![real(s), below(3, &[2, 0])], |x| {
            x[0].gather(1, &x[1])
        }),
        sample("gather", "torch.gather(x0, 1, x1.long())", vec![ints(s), below(3, s)], |x| {
            x[0].gather(1, &x[1])
        }),
        sample("gather", "torch.gather(x0, 1, x1.long())", vec![bools(s), below(3, s)], |x| {
            x[0].gather(1, &x[1])
        }),
        sample("gather", "torch.exp(torch.gather(x0 * 2, 1, x1.long()))", vec![real(s), below(3, s)], |x| {
            (&x[0] * 2).gather(1, &x[1]).exp()
        }),
        sample(
            "index_select",
            "torch.index_select(x0, 0, x1.long())",
            vec![real(&[3, 2]), given_ints(&[4], &[2, 0, 2, 1])],
            |x| x[0].index_select(0, &x[1]),
        ),
        sample(
            "index_select",
            "torch.index_select(x0, 1, x1.long())",
            vec![real(s).lie(Lie::Transposed), given_ints(&[2], &[2, 2])],
            |x| x[0].index_select(1, &x[1]),
        ),
        sample(
            "index_select",
            "torch.index_select(x0, -2, x1.long())",
            vec![real(&[2, 3, 2]).lie(Lie::Offset), below(3, &[6]).lie(Lie::Strided)],
            |x| x[0].index_select(-2, &x[1]),
        ),
        sample(
            "index_select",
            "torch.index_select(x0, 0, x1.long())",
            vec![real(&[3]), below(3, &[])],
            |x| x[0].index_select(0, &x[1]),
        ),
        sample(
            "index_select",
            "torch.index_select(x0, 0, x1.long())",
            vec![real(&[3, 2]), below(3, &[0])],
            |x| x[0].index_select(0, &x[1]),
        ),
        sample(
            "embedding",
            "torch.nn.functional.embedding(x1.long(), x0)",
            vec![real(&[4, 2]), below(4, &[3])],
            |x| x[0].embedding(&x[1]),
        ),
        sample(
            "embedding",
            "torch.nn.functional.embedding(x1.long(), x0)",
            vec![real(&[4, 2]).lie(Lie::Transposed), below(4, &[2, 3]).lie(Lie::Transposed)],
            |x| x[0].embedding(&x[1]),
        ),
        sample(
            "embedding",
            "torch.nn.functional.embedding(x1.long(), x0)",
            vec![real(&[4, 2]), below(4, &[])],
            |x| x[0].embedding(&x[1]),
        ),
        sample("one_hot", "torch.nn.functional.one_hot(x0.long(), 4)", vec![below(4, &[2, 3])], |x| {
            x[0].one_hot(4)
        }),
        sample("one_hot", "torch.nn.functional.one_hot(x0.long(), 2)", vec![below(2, &[])], |x| {
            x[0].one_hot(2)
        }),
        sample(
            "scatter_add",
            "torch.scatter_add(x0, 0, x1.long(), x2)",
            vec![real(&[3, 2]), below(3, &[4, 2]), real(&[4, 2])],
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        ),
        sample(
            "scatter_add",
            "torch.scatter_add(x0, 1, x1.long(), x2)",
            vec![real(s).lie(Lie::Transposed), below(3, &[2, 4]), real(&[2, 4]).lie(Lie::Strided)],
            |x| x[0].scatter_add(1, &x[1], &x[2]),
        ),
        sample(
            "scatter_add",
            "torch.scatter_add(x0, 1, x1.long(), x2)",
            vec![real(&[3, 3]), below(3, &[2, 2]), real(&[2, 4]).fixed()],
            |x| x[0].scatter_add(1, &x[1], &x[2]),
        ),
        sample(
            "scatter_add",
            "torch.scatter_add(x0, 0, x1.long(), x2)",
            vec![real(&[2]), given_ints(&[6], &[1, 1, 1, 1, 1, 1]), real(&[6])],
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        ),
        sample(
            "scatter_add",
            "torch.scatter_add(x0, 0, x1.long(), x2)",
            vec![ints(&[3]), below(3, &[5]), ints(&[5])],
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        ),
        sample(
            "scatter_add",
            "torch.scatter_add(x0, 0, x1.long(), x2)",
            vec![real(&[3]), below(3, &[0]), real(&[2]).fixed()],
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        ),
        sample("cat", "torch.cat([x0, x1], dim=0)", vec![real(s), real(&[1, 3])], |x| {
            cat(&[&x[0], &x[1]], 0)
        }),
        sample(
            "cat",
            "torch.cat([x0, x1, x0], dim=-1)",
            vec![real(s).lie(Lie::Transposed), real(&[2, 2]).lie(Lie::Strided)],
            |x| cat(&[&x[0], &x[1], &x[0]], -1),
        ),
        sample(
            "cat",
            "torch.cat([x0, x1], dim=1)",
            vec![real(&[2, 2, 2]).lie(Lie::Expanded), real(&[2, 1, 2])],
            |x| cat(&[&x[0], &x[1]], 1),
        ),
        sample("cat", "torch.cat([x0, x1], dim=0)", vec![real(&[2]), ints(&[3])], |x| {
            cat(&[&x[0], &x[1]], 0)
        }),
        sample("cat", "torch.cat([x0, x1], dim=0)", vec![bools(&[2]), ints(&[3])], |x| {
            cat(&[&x[0], &x[1]], 0)
        }),
        sample("cat", "torch.cat([x0, x1], dim=1)", vec![real(&[0]), real(s)], |x| cat(&[&x[0], &x[1]], 1)),
        sample("cat", "torch.cat([x0, x1], dim=1)", vec![real(&[2, 0]), real(s)], |x| {
            cat(&[&x[0], &x[1]], 1)
        }),
        sample("cat", "torch.cat([x0], dim=0)", vec![real(s)], |x| cat(&[&x[0]], 0)),
        sample("cat", "torch.cat([x0.exp(), x0.sin(), x0], dim=0).tanh()", vec![real(s)], |x| {
            cat(&[&x[0].exp(), &x[0].sin(), &x[0]], 0).tanh()
        }),
        sample("stack", "torch.stack([x0, x1], dim=0)", vec![real(s), real(s).lie(Lie::Transposed)], |x| {
            stack(&[&x[0], &x[1]], 0)
        }),
        sample("stack", "torch.stack([x0, x1], dim=-1)", vec![real(s), real(s)], |x| {
            stack(&[&x[0], &x[1]], -1)
        }),
        sample("stack", "torch.stack([x0, x1, x0], dim=1)", vec![real(&[2]), real(&[2])], |x| {
            stack(&[&x[0], &x[1], &x[0]], 1)
        }),
        sample("stack", "torch.stack([x0, x1], dim=0)", vec![real(&[]), real(&[])], |x| {
            stack(&[&x[0], &x[1]], 0)
        }),
        sample("cat", "torch.cat([x0[:1], x0[1:] + x0[:-1]])", vec![real(&[4])], |x| {
            cat(&[&x[0].i(..1), &(x[0].i(1..) + x[0].i(..-1))], 0)
        }),
    ]
}
