//! Samples of convolutions and pools.

use super::{Lie, Sample, given, real, sample};
use crate::ops::conv::{Conv, Padding};
use crate::ops::pool::Pool;

pub(super) fn samples() -> Vec<Sample> {
    let mut out = convolutions();
    out.extend(transposed());
    out.extend(pools());
    out
}

/// Sizes of input and weight, PyTorch's arguments, and the same here.
type Case = (&'static [usize], &'static [usize], &'static str, Conv);

fn convolutions() -> Vec<Sample> {
    let c = Conv::new;
    let cases: Vec<Case> = vec![
        (&[1, 1, 3, 3], &[1, 1, 2, 2], "", c()),
        (&[2, 3, 5, 4], &[2, 3, 3, 2], "", c()),
        (&[3, 4, 3], &[2, 3, 2, 2], "", c()),
        (&[2, 2, 4, 4], &[3, 2, 3, 3], "padding=1", c().padding(1)),
        (&[2, 4, 4, 4], &[4, 4, 3, 3], "padding=1", c().padding(1)),
        (&[1, 2, 5, 6], &[2, 2, 3, 2], "stride=2, padding=(1, 0)", c().stride(2).padding((1, 0))),
        (&[1, 2, 6, 5], &[2, 2, 2, 3], "stride=(3, 2), padding=1", c().stride((3, 2)).padding(1)),
        (&[1, 1, 7, 6], &[2, 1, 3, 2], "dilation=2", c().dilation(2)),
        (
            &[1, 1, 7, 7],
            &[1, 1, 3, 3],
            "dilation=(2, 3), padding=2, stride=2",
            c().dilation((2, 3)).padding(2).stride(2),
        ),
        (
            &[1, 1, 9, 9],
            &[1, 1, 4, 4],
            "dilation=2, padding=1, stride=4",
            c().dilation(2).padding(1).stride(4),
        ),
        (&[1, 4, 3, 4], &[6, 2, 2, 2], "groups=2", c().groups(2)),
        (&[2, 3, 4, 4], &[3, 1, 3, 3], "groups=3, padding=1", c().groups(3).padding(1)),
        (&[2, 2, 4, 5], &[4, 1, 2, 3], "groups=2, stride=2, padding=1", c().groups(2).stride(2).padding(1)),
        (&[2, 3, 4, 4], &[4, 3, 1, 1], "", c()),
        (&[2, 4, 3, 4], &[4, 4, 1, 1], "", c()),
        (&[2, 4, 3, 3], &[2, 4, 1, 1], "stride=2", c().stride(2)),
        (&[1, 2, 4, 4], &[2, 2, 3, 3], "padding='same'", c().padding(Padding::Same)),
        (
            &[1, 1, 4, 5],
            &[2, 1, 2, 4],
            "padding='same', dilation=(3, 1)",
            c().padding(Padding::Same).dilation((3, 1)),
        ),
        (&[1, 1, 4, 5], &[2, 1, 2, 4], "padding='valid'", c().padding(Padding::Valid)),
        (&[1, 1, 3, 3], &[1, 1, 2, 2], "stride=5, padding=3", c().stride(5).padding(3)),
        (&[0, 2, 4, 4], &[3, 2, 3, 3], "", c()),
    ];
    let mut out = vec![];
    for (x, w, arguments, how) in cases {
        let of = |tensors: &str| format!("torch.nn.functional.conv2d({tensors}, {arguments})");
        for (lx, lw) in
            [(Lie::Plain, Lie::Plain), (Lie::Transposed, Lie::Offset), (Lie::Strided, Lie::Transposed)]
        {
            let inputs = vec![real(x).lie(lx), real(w).lie(lw)];
            out.push(sample("conv2d", of("x0, x1"), inputs, move |t| t[0].conv2d_with(&t[1], None, &how)));
        }
        let inputs = vec![real(x), real(w), real(&[w[0]])];
        let text = format!("torch.tanh({})", of("x0, x1, x2"));
        out.push(sample("conv2d", text, inputs, move |t| t[0].conv2d_with(&t[1], Some(&t[2]), &how).tanh()));
    }
    let plain = "torch.nn.functional.conv2d(x0, x1, x2, padding=1)";
    // Past the tiles of the kernels, and with and without fours of rows, channels and places.
    for (x, w) in
        [(&[2, 3, 5, 6], &[9, 3, 3, 3]), (&[1, 8, 4, 4], &[20, 8, 3, 3]), (&[3, 4, 4, 4], &[12, 4, 3, 3])]
    {
        // Small, so that what sums cancel to is not lost in f32.
        let inputs = vec![real(x).map(|v| v / 16.0), real(w), real(&[w[0]])];
        let run = |t: &[crate::Tensor]| t[0].conv2d_with(&t[1], Some(&t[2]), &Conv::new().padding(1));
        out.push(sample("conv2d", plain, inputs, run).kink());
    }
    let deep =
        "torch.relu(torch.nn.functional.conv2d(torch.nn.functional.conv2d(x0, x1, padding=1), x2, stride=2))";
    let inputs = vec![real(&[1, 2, 5, 5]), real(&[3, 2, 3, 3]), real(&[2, 3, 2, 2])];
    out.push(sample("conv2d", deep, inputs, |t| {
        let hidden = t[0].conv2d_with(&t[1], None, &Conv::new().padding(1));
        hidden.conv2d_with(&t[2], None, &Conv::new().stride(2)).relu()
    }));
    let inputs = vec![real(&[2, 2, 4, 4]).lie(Lie::Expanded), real(&[3, 2, 3, 3]).lie(Lie::Expanded)];
    out.push(sample("conv2d", "torch.nn.functional.conv2d(x0, x1)", inputs, |t| t[0].conv2d(&t[1], None)));
    out
}

fn transposed() -> Vec<Sample> {
    let c = Conv::new;
    let cases: Vec<Case> = vec![
        (&[1, 1, 2, 2], &[1, 1, 2, 2], "", c()),
        (&[2, 3, 3, 2], &[3, 2, 3, 3], "", c()),
        (&[3, 2, 3], &[3, 2, 2, 2], "stride=2", c().stride(2)),
        (&[1, 2, 3, 3], &[2, 3, 3, 2], "stride=(2, 3), padding=(1, 0)", c().stride((2, 3)).padding((1, 0))),
        (
            &[1, 4, 3, 2],
            &[4, 2, 2, 3],
            "stride=2, padding=1, output_padding=1, groups=2, dilation=2",
            c().stride(2).padding(1).output_padding(1).groups(2).dilation(2),
        ),
        (&[1, 1, 2, 2], &[1, 2, 2, 2], "stride=5", c().stride(5)),
        (&[0, 2, 3, 3], &[2, 3, 2, 2], "", c()),
    ];
    let mut out = vec![];
    for (x, w, arguments, how) in cases {
        let text = format!("torch.nn.functional.conv_transpose2d(x0, x1, x2, {arguments})");
        let inputs = vec![real(x), real(w).lie(Lie::Strided), real(&[w[1] * how.groups])];
        out.push(sample("conv_transpose2d", text, inputs, move |t| {
            t[0].conv_transpose2d_with(&t[1], Some(&t[2]), &how)
        }));
    }
    out
}

fn pools() -> Vec<Sample> {
    let p = Pool::new;
    let cases: Vec<(&'static [usize], &'static str, Pool)> = vec![
        (&[1, 1, 4, 4], "2", p(2)),
        (&[2, 2, 4, 8], "2", p(2)),
        (&[2, 3, 5, 8], "2", p(2)),
        (&[3, 6, 4], "2", p(2)),
        (&[1, 2, 5, 7], "(2, 3)", Pool::new((2, 3))),
        (&[2, 1, 5, 5], "3, stride=2, padding=1", p(3).stride(2).padding(1)),
        (&[1, 2, 5, 6], "3, stride=1, padding=1", p(3).stride(1).padding(1)),
        (&[1, 1, 6, 5], "2, stride=(3, 1), ceil_mode=True", p(2).stride((3, 1)).ceil_mode(true)),
        (
            &[1, 2, 6, 7],
            "(3, 2), stride=2, padding=(1, 0), ceil_mode=True",
            Pool::new((3, 2)).stride(2).padding((1, 0)).ceil_mode(true),
        ),
        (&[0, 2, 4, 4], "2", p(2)),
    ];
    let mut out = vec![];
    for &(shape, arguments, how) in &cases {
        for lie in [Lie::Plain, Lie::Transposed, Lie::Offset] {
            let text = format!("torch.nn.functional.max_pool2d(x0, {arguments})");
            out.push(sample("max_pool2d", text, vec![real(shape).lie(lie)], move |t| {
                t[0].max_pool2d_with(&how)
            }));
            let text = format!("torch.nn.functional.avg_pool2d(x0, {arguments})");
            out.push(sample("avg_pool2d", text, vec![real(shape).lie(lie)], move |t| {
                t[0].avg_pool2d_with(&how)
            }));
        }
        let text = format!("torch.nn.functional.max_pool2d(x0, {arguments}, return_indices=True)[1].int()");
        out.push(
            sample("max_pool2d_with_indices", text, vec![real(shape)], move |t| {
                t[0].max_pool2d_with_indices(&how).1
            })
            .flat(),
        );
        let text = format!("torch.relu(torch.nn.functional.max_pool2d(torch.relu(x0), {arguments}) - 0.5)");
        out.push(sample("max_pool2d", text, vec![real(shape)], move |t| {
            (t[0].relu().max_pool2d_with(&how) - 0.5).relu()
        }));
        let text = format!("torch.nn.functional.avg_pool2d(x0, {arguments}, count_include_pad=False)");
        let how = how.count_include_pad(false);
        out.push(sample("avg_pool2d", text, vec![real(shape)], move |t| t[0].avg_pool2d_with(&how)));
        let text = format!("torch.nn.functional.avg_pool2d(x0, {arguments}, divisor_override=3)");
        let how = how.divisor_override(3);
        out.push(sample("avg_pool2d", text, vec![real(shape)], move |t| t[0].avg_pool2d_with(&how)));
    }
    let max = |arguments: &str| format!("torch.nn.functional.max_pool2d(x0, {arguments})");
    for (shape, arguments, how) in [
        (&[1, 2, 7, 6], "2, dilation=2", p(2).dilation(2)),
        (
            &[2, 1, 7, 8],
            "(2, 3), stride=1, dilation=(3, 2), padding=(1, 1)",
            Pool::new((2, 3)).stride(1).dilation((3, 2)).padding((1, 1)),
        ),
        (&[1, 1, 7, 7], "2, stride=4, dilation=3", p(2).stride(4).dilation(3)),
    ] {
        out.push(sample("max_pool2d", max(arguments), vec![real(shape)], move |t| {
            t[0].max_pool2d_with(&how)
        }));
    }
    // Of equals the first counts, of NaNs the last; minus infinity is a value like others.
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let ties = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, nan, 0.0, -inf, -inf, nan, 9.0, -inf, -inf];
    for (arguments, how) in [("2", p(2)), ("3, stride=1", p(3).stride(1)), ("2, padding=1", p(2).padding(1))]
    {
        let run = move |t: &[crate::Tensor]| t[0].max_pool2d_with(&how);
        out.push(sample("max_pool2d", max(arguments), vec![given(&[1, 4, 4], &ties)], run).kink());
        let text = format!("torch.nn.functional.max_pool2d(x0, {arguments}, return_indices=True)[1].int()");
        let run = move |t: &[crate::Tensor]| t[0].max_pool2d_with_indices(&how).1;
        out.push(sample("max_pool2d_with_indices", text, vec![given(&[1, 4, 4], &ties)], run).flat());
    }
    for (shape, count) in
        [(&[1, 2, 6, 4], (3, 2)), (&[1, 2, 5, 7], (3, 2)), (&[2, 1, 4, 4], (1, 1)), (&[1, 1, 2, 3], (4, 5))]
    {
        let text = format!("torch.nn.functional.adaptive_avg_pool2d(x0, {count:?})");
        let inputs = vec![real(shape).lie(Lie::Strided)];
        out.push(sample("adaptive_avg_pool2d", text, inputs, move |t| t[0].adaptive_avg_pool2d(count)));
    }
    out
}
