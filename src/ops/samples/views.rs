//! Samples of views, writing through them, and creation.

use super::{Lie, Sample, bools, ints, real, sample, unit};
use crate::graph::dtype::{F32, I32};
use crate::tensor::{Index, Tensor, options};

pub(super) fn samples() -> Vec<Sample> {
    let s = &[2, 3][..];
    let c = || real(&[2, 3, 2]);
    let mut out = vec![
        sample("reshape", "torch.reshape(x0, (3, 2))", vec![real(s)], |x| x[0].reshape([3, 2])),
        sample("reshape", "torch.reshape(x0, (-1,))", vec![c().lie(Lie::Transposed)], |x| x[0].reshape(-1)),
        sample("reshape", "torch.reshape(x0, (2, -1))", vec![c().lie(Lie::Strided)], |x| {
            x[0].reshape([2, -1])
        }),
        sample("reshape", "torch.reshape(x0, (3, 4))", vec![c().lie(Lie::Expanded)], |x| {
            x[0].reshape([3, 4])
        }),
        sample("reshape", "torch.reshape(x0, ())", vec![real(&[1, 1])], |x| x[0].reshape(())),
        sample("reshape", "torch.reshape(x0, (0, 4))", vec![real(&[2, 0])], |x| x[0].reshape([0, 4])),
        sample("view", "x0.view(3, 2)", vec![real(s)], |x| x[0].view([3, 2])),
        sample("view", "x0.view(4, 2)", vec![real(&[4, 2]).lie(Lie::Offset)], |x| {
            x[0].view([2, 2, 2]).view((4, 2))
        }),
        sample("permute", "x0.permute(2, 0, 1)", vec![c()], |x| x[0].permute([2, 0, 1])),
        sample("permute", "x0.permute(-1, 0, 1)", vec![c().lie(Lie::Strided)], |x| x[0].permute([-1, 0, 1])),
        sample("permute", "x0.permute(())", vec![real(&[])], |x| x[0].permute(())),
        sample("transpose", "x0.transpose(0, 1)", vec![c()], |x| x[0].transpose(0, 1)),
        sample("transpose", "x0.transpose(-1, 0)", vec![c().lie(Lie::Expanded)], |x| x[0].transpose(-1, 0)),
        sample("transpose", "x0.transpose(0, -1)", vec![real(&[])], |x| x[0].transpose(0, -1)),
        sample("t", "x0.t()", vec![real(s)], |x| x[0].t()),
        sample("t", "x0.t()", vec![real(&[3])], |x| x[0].t()),
        sample("squeeze", "x0.squeeze()", vec![real(&[1, 2, 1, 3])], |x| x[0].squeeze()),
        sample("squeeze", "x0.squeeze(0)", vec![real(&[1, 2, 1])], |x| x[0].squeeze_dim(0)),
        sample("squeeze", "x0.squeeze(1)", vec![real(&[1, 2, 1])], |x| x[0].squeeze_dim(1)),
        sample("squeeze", "x0.squeeze((0, -1))", vec![real(&[1, 2, 1])], |x| x[0].squeeze_dim([0, -1])),
        sample("unsqueeze", "x0.unsqueeze(1)", vec![real(s)], |x| x[0].unsqueeze(1)),
        sample("unsqueeze", "x0.unsqueeze(-1)", vec![real(s).lie(Lie::Transposed)], |x| x[0].unsqueeze(-1)),
        sample("unsqueeze", "x0.unsqueeze(0)", vec![real(&[])], |x| x[0].unsqueeze(0)),
        sample("expand", "x0.expand(2, 3)", vec![real(&[3])], |x| x[0].expand([2, 3])),
        sample("expand", "x0.expand(2, -1, 2)", vec![real(&[3, 1])], |x| x[0].expand([2, -1, 2])),
        sample("expand", "x0.expand(2, 3)", vec![real(&[])], |x| x[0].expand([2, 3])),
        sample("expand", "x0.expand(0, 3)", vec![real(&[1, 3])], |x| x[0].expand([0, 3])),
        sample("expand_as", "x0.expand_as(x1)", vec![real(&[2, 1]), ints(s)], |x| x[0].expand_as(&x[1])),
        sample("flatten", "x0.flatten(0, 1)", vec![c()], |x| x[0].flatten(0, 1)),
        sample("flatten", "x0.flatten(0, -1)", vec![c().lie(Lie::Transposed)], |x| x[0].flatten(0, -1)),
        sample("flatten", "x0.flatten(1, -1)", vec![c().lie(Lie::Strided)], |x| x[0].flatten(1, -1)),
        sample("flatten", "x0.flatten()", vec![real(&[])], |x| x[0].flatten(0, -1)),
        sample("select", "x0.select(1, 2)", vec![c()], |x| x[0].select(1, 2)),
        sample("select", "x0.select(-1, -1)", vec![real(s).lie(Lie::Transposed)], |x| x[0].select(-1, -1)),
        sample("slice", "x0[:, 1:5:2]", vec![real(&[2, 6])], |x| x[0].slice(1, 1, 5, 2)),
        sample("slice", "x0[-2:]", vec![real(&[3, 2]).lie(Lie::Strided)], |x| x[0].slice(0, -2, 100, 1)),
        sample("slice", "x0[2:1]", vec![real(&[3, 2])], |x| x[0].slice(0, 2, 1, 1)),
        sample("narrow", "x0.narrow(0, 1, 2)", vec![real(&[3, 2])], |x| x[0].narrow(0, 1, 2)),
        sample("narrow", "x0.narrow(1, -1, 1)", vec![real(s).lie(Lie::Transposed)], |x| {
            x[0].narrow(1, -1, 1)
        }),
        sample("narrow", "x0.narrow(0, 3, 0)", vec![real(&[3, 2])], |x| x[0].narrow(0, 3, 0)),
        sample("split", "x0.split(2, 0)[1] * x0.split(2, 0)[0][:1]", vec![real(&[3, 2])], |x| {
            let parts = x[0].split(2, 0);
            &parts[1] * parts[0].narrow(0, 0, 1)
        }),
        sample("i", "x0[1]", vec![real(s)], |x| x[0].i(1)),
        sample("i", "x0[1, -1]", vec![real(s)], |x| x[0].i((1, -1))),
        sample("i", "x0[..., 1:, 0]", vec![c()], |x| x[0].i((Index::Ellipsis, 1.., 0))),
        sample("i", "x0[:, None, :2]", vec![real(s).lie(Lie::Transposed)], |x| {
            x[0].i((.., Index::NewAxis, ..2))
        }),
        sample("i", "x0[:, 1:-1, ::2]", vec![real(&[2, 4, 3])], |x| {
            x[0].i((.., Index::Slice { start: 1, end: -1, step: 1 }, Index::from(0..).step_by(2)))
        }),
        sample("contiguous", "x0.contiguous()", vec![c().lie(Lie::Transposed)], |x| x[0].contiguous()),
        sample("clone", "x0.clone()", vec![c().lie(Lie::Strided)], |x| x[0].clone_data()),
        sample("chain", "(x0.t()[1:].reshape(-1) * 2).view(2, 2).sum(0)", vec![real(s)], |x| {
            (x[0].t().i(1..).reshape(-1) * 2).view([2, 2]).sum_dim(0, false)
        }),
        sample("detach", "x0 * x0.detach()", vec![real(s)], |x| &x[0] * x[0].detach()).kink(),
        sample("dropout", "torch.nn.functional.dropout(x0, 0.5, training=False)", vec![real(s)], |x| {
            x[0].dropout(0.5, false)
        }),
        sample("dropout", "torch.nn.functional.dropout(x0, 0.0)", vec![real(s)], |x| x[0].dropout(0.0, true)),
        sample("dropout", "torch.nn.functional.dropout(x0, 1.0)", vec![real(s)], |x| x[0].dropout(1.0, true)),
    ];
    out.iter_mut().filter(|s| s.op == "chain").for_each(|s| s.op = "view".into());
    out.iter_mut()
        .find(|s| s.expression == "x0.view(4, 2)")
        .into_iter()
        .for_each(|s| s.expression = "x0.view(2, 2, 2).view(4, 2)".into());
    out.extend(writes());
    out.extend(creations());
    out
}

/// Gradients through writes to parts (`CopySlices`), in Python a program of several lines.
fn writes() -> Vec<Sample> {
    // The walrus makes one expression of it: the list's last element is the value.
    let s = &[3, 2][..];
    vec![
        sample("write", "[y := x0.clone(), y[1].mul_(x1), y][-1]", vec![real(s), real(&[2])], |x| {
            let y = x[0].clone_data();
            y.i(1).mul_(&x[1]);
            y
        }),
        sample("write", "[y := x0 * 2, y.t()[0].copy_(x1), y.exp()][-1]", vec![real(s), real(&[3])], |x| {
            let y = &x[0] * 2;
            y.t().i(0).copy_(&x[1]);
            y.exp()
        }),
        sample(
            "write",
            "[y := x0 * 1, v := y[::2], y.mul_(x1), v * v][-1]",
            vec![real(s), real(&[2])],
            |x| {
                let y = &x[0] * 1;
                let v = y.slice(0, 0, 100, 2);
                y.mul_(&x[1]);
                &v * &v
            },
        ),
        sample(
            "write",
            "[y := x0 * 1, v := y[1:], w := v[:, 1], w.add_(x1), y * v.sum()][-1]",
            vec![real(s), real(&[])],
            |x| {
                let y = &x[0] * 1;
                let v = y.i(1..);
                v.i((.., 1)).add_(&x[1]);
                &y * v.sum()
            },
        ),
        sample(
            "write",
            "[y := x0.clone(), y.fill_(0), y[0].copy_(x0[2]), y.exp_(), y][-1]",
            vec![real(s)],
            |x| {
                let y = x[0].clone_data();
                y.fill_(0.0);
                y.i(0).copy_(&x[0].i(2));
                y.exp_()
            },
        ),
        sample(
            "write",
            "[y := x0.clone(), y.pow_(2), z := y * 3, y.zero_(), z + y][-1]",
            vec![real(s)],
            |x| {
                let y = x[0].clone_data();
                y.pow_(2);
                let z = &y * 3;
                y.zero_();
                z + &y
            },
        ),
        sample(
            "write",
            "[y := torch.zeros(3, 2, dtype=x0.dtype), y[1:].copy_(x0), y[:, 0].mul_(x1), y][-1]",
            vec![real(&[2, 2]), real(&[3])],
            |x| {
                let y = x[0].new_zeros([3, 2]);
                y.i(1..).copy_(&x[0]);
                y.i((.., 0)).mul_(&x[1]);
                y
            },
        ),
    ]
}

fn creations() -> Vec<Sample> {
    // One input, of which only the device counts.
    let d = || vec![ints(&[2])];
    let on = |x: &[Tensor]| options().device(x[0].device());
    let s = &[2, 3][..];
    let like = || vec![real(s).lie(Lie::Transposed)];
    vec![
        sample("zeros", "torch.zeros(2, 3)", d(), move |x| on(x).zeros([2, 3])),
        sample("zeros", "torch.zeros(0, dtype=torch.int32)", d(), move |x| on(x).dtype(I32).zeros(0)),
        sample("ones", "torch.ones(2, 3)", d(), move |x| on(x).ones((2, 3))),
        sample("ones", "torch.ones(())", d(), move |x| on(x).ones(())),
        sample("full", "torch.full((2,), 7)", d(), move |x| on(x).full(2, 7)),
        sample("full", "torch.full((2,), 7.5)", d(), move |x| on(x).full(2, 7.5)),
        sample("full", "torch.full((2, 1), True)", d(), move |x| on(x).full([2, 1], true)),
        sample("full", "torch.full((2,), 3, dtype=torch.float32)", d(), move |x| {
            on(x).dtype(F32).full([2], 3)
        }),
        sample("eye", "torch.eye(3)", d(), move |x| on(x).eye(3)),
        sample("eye", "torch.eye(0)", d(), move |x| on(x).eye(0)),
        sample("arange", "torch.arange(0, 5, 1)", d(), move |x| on(x).arange(0, 5, 1)),
        sample("arange", "torch.arange(5, -4, -2)", d(), move |x| on(x).arange(5, -4, -2)),
        sample("arange", "torch.arange(0.5, 3, 0.25)", d(), move |x| on(x).arange(0.5, 3, 0.25)),
        sample("arange", "torch.arange(0, 1, 0.1)", d(), move |x| on(x).arange(0, 1, 0.1)),
        sample("arange", "torch.arange(3, 3, 1)", d(), move |x| on(x).arange(3, 3, 1)),
        sample("linspace", "torch.linspace(-1, 1, 7)", d(), move |x| on(x).linspace(-1.0, 1.0, 7)),
        sample("linspace", "torch.linspace(0, 10, 1)", d(), move |x| on(x).linspace(0.0, 10.0, 1)),
        sample("linspace", "torch.linspace(3, 3, 2)", d(), move |x| on(x).linspace(3.0, 3.0, 2)),
        sample("zeros_like", "torch.zeros_like(x0)", like(), |x| x[0].zeros_like()).flat(),
        sample("ones_like", "torch.ones_like(x0)", like(), |x| x[0].ones_like()).flat(),
        sample("ones_like", "torch.ones_like(x0)", vec![bools(s)], |x| x[0].ones_like()),
        sample("full_like", "torch.full_like(x0, 2.5)", like(), |x| x[0].full_like(2.5)).flat(),
        sample("full_like", "torch.full_like(x0, 2.5)", d(), |x| x[0].full_like(2.5)),
        sample("new_zeros", "x0.new_zeros(3)", like(), |x| x[0].new_zeros(3)).flat(),
        sample("new_ones", "x0.new_ones(3, 1)", d(), |x| x[0].new_ones([3, 1])),
        sample("tensor", "torch.tensor([[1.0, 2.5], [3.0, -4.0]])", d(), move |x| {
            on(x).tensor([[1.0, 2.5], [3.0, -4.0]])
        }),
        sample("tensor", "torch.tensor([1, 2])", d(), move |x| on(x).tensor([1, 2])),
        sample("tensor", "torch.tensor([True, False])", d(), move |x| on(x).tensor([true, false])),
        sample("tensor", "torch.tensor(3)", d(), move |x| on(x).tensor(3)),
        sample("tensor", "torch.tensor([])", d(), move |x| on(x).tensor(Vec::<f32>::new())),
        sample("reshape", "torch.log(x0.reshape(2, 3).t())", vec![unit(&[6])], |x| {
            x[0].reshape([2, 3]).t().log()
        }),
    ]
}
