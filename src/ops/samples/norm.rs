//! Samples of the norms.

use super::{Lie, Sample, given, positive, real, sample};
use crate::ops::cat::stack;
use crate::ops::norm::BatchNorm;
use crate::tensor::Tensor;

const LIES: [Lie; 5] = [Lie::Plain, Lie::Transposed, Lie::Strided, Lie::Offset, Lie::Expanded];

pub(super) fn samples() -> Vec<Sample> {
    let mut out = rows();
    out.extend(channels());
    out
}

fn rows() -> Vec<Sample> {
    let mut out = vec![];
    for lie in LIES {
        let x = || real(&[2, 5]).lie(lie);
        out.extend([
            sample(
                "layer_norm",
                "torch.nn.functional.layer_norm(x0, (5,), x1, x2)",
                vec![x(), real(&[5]), real(&[5])],
                |x| x[0].layer_norm(5, Some(&x[1]), Some(&x[2]), 1e-5),
            ),
            sample("rms_norm", "torch.nn.functional.rms_norm(x0, (5,), x1)", vec![x(), real(&[5])], |x| {
                x[0].rms_norm(5, Some(&x[1]), None)
            }),
        ]);
    }
    // Weights that lie apart, and more rows than columns.
    for shape in [&[3, 4][..], &[1, 3], &[7, 2], &[2, 1, 6], &[1, 33]] {
        let n = shape[shape.len() - 1];
        let w = || if n > 1 { real(&[n]).lie(Lie::Strided) } else { real(&[n]) };
        let inputs = || vec![real(shape), w(), real(&[n]).lie(Lie::Offset)];
        out.extend([
            sample(
                "layer_norm",
                format!("torch.nn.functional.layer_norm(x0, ({n},), x1, x2, 0.01)"),
                inputs(),
                move |x| x[0].layer_norm(n, Some(&x[1]), Some(&x[2]), 0.01),
            ),
            sample(
                "layer_norm",
                format!("torch.nn.functional.layer_norm(x0, ({n},), eps=0.1)"),
                vec![real(shape)],
                move |x| x[0].layer_norm(n, None, None, 0.1),
            ),
            sample(
                "layer_norm",
                format!("torch.nn.functional.layer_norm(x0, ({n},), x1)"),
                vec![real(shape), w()],
                move |x| x[0].layer_norm(n, Some(&x[1]), None, 1e-5),
            ),
            sample(
                "layer_norm",
                format!("torch.nn.functional.layer_norm(x0, ({n},), None, x1)"),
                vec![real(shape), w()],
                move |x| x[0].layer_norm(n, None, Some(&x[1]), 1e-5),
            ),
            sample(
                "rms_norm",
                format!("torch.nn.functional.rms_norm(x0, ({n},), x1, 0.01)"),
                vec![real(shape), w()],
                move |x| x[0].rms_norm(n, Some(&x[1]), Some(0.01)),
            ),
            sample(
                "rms_norm",
                format!("torch.nn.functional.rms_norm(x0, ({n},))"),
                vec![real(shape)],
                move |x| x[0].rms_norm(n, None, None),
            ),
        ]);
    }
    let whole = "torch.nn.functional.layer_norm(x0, (2, 3), x1, x2)";
    out.extend([
        sample(
            "layer_norm",
            whole,
            vec![real(&[2, 2, 3]), real(&[2, 3]).lie(Lie::Transposed), real(&[2, 3])],
            |x| x[0].layer_norm([2, 3], Some(&x[1]), Some(&x[2]), 1e-5),
        ),
        sample("layer_norm", whole, vec![real(&[2, 3]), real(&[2, 3]), real(&[2, 3])], |x| {
            x[0].layer_norm((2, 3), Some(&x[1]), Some(&x[2]), 1e-5)
        }),
        sample("layer_norm", whole, vec![real(&[0, 2, 3]), real(&[2, 3]), real(&[2, 3])], |x| {
            x[0].layer_norm([2, 3], Some(&x[1]), Some(&x[2]), 1e-5)
        }),
        sample(
            "rms_norm",
            "torch.nn.functional.rms_norm(x0, (2, 2), x1)",
            vec![real(&[3, 2, 2]), real(&[2, 2])],
            |x| x[0].rms_norm([2, 2], Some(&x[1]), None),
        ),
        // Weights that want no gradient, or alone do.
        sample(
            "layer_norm",
            "torch.nn.functional.layer_norm(x0, (3,), x1, x2)",
            vec![real(&[2, 3]), real(&[3]).fixed(), real(&[3])],
            |x| x[0].layer_norm(3, Some(&x[1]), Some(&x[2]), 1e-5),
        ),
        sample(
            "layer_norm",
            "torch.nn.functional.layer_norm(x0, (3,), x1, x2)",
            vec![real(&[2, 3]).fixed(), real(&[3]), real(&[3]).fixed()],
            |x| x[0].layer_norm(3, Some(&x[1]), Some(&x[2]), 1e-5),
        ),
        // All digits of a variance that is small beside the mean.
        sample(
            "layer_norm",
            "torch.nn.functional.layer_norm(x0, (4,))",
            vec![given(&[1, 4], &[4096.0, 4097.0, 4098.5, 4095.0])],
            |x| x[0].layer_norm(4, None, None, 1e-5),
        )
        .kink(),
        sample(
            "layer_norm",
            "torch.relu(torch.nn.functional.layer_norm(x0, (4,), x1, x2) + x0)",
            vec![real(&[3, 4]), real(&[4]), real(&[4])],
            |x| (x[0].layer_norm(4, Some(&x[1]), Some(&x[2]), 1e-5) + &x[0]).relu(),
        ),
        // Partial sums of several rows.
        sample(
            "layer_norm",
            "torch.nn.functional.layer_norm(x0, (5,), x1, x2)",
            vec![real(&[70, 5]), real(&[5]), real(&[5])],
            |x| x[0].layer_norm(5, Some(&x[1]), Some(&x[2]), 1e-5),
        )
        .kink(),
        sample(
            "rms_norm",
            "torch.nn.functional.rms_norm(x0, (12,), x1)",
            vec![real(&[35, 12]), real(&[12])],
            |x| x[0].rms_norm(12, Some(&x[1]), None),
        )
        .kink(),
        // Rows too long for the fused gradient of weights.
        sample(
            "layer_norm",
            "torch.nn.functional.layer_norm(x0, (1100,), x1, x2)",
            vec![real(&[1, 1100]), real(&[1100]), real(&[1100])],
            |x| x[0].layer_norm(1100, Some(&x[1]), Some(&x[2]), 1e-5),
        )
        .kink(),
    ]);
    out
}

fn channels() -> Vec<Sample> {
    let mut out = vec![];
    let train = || BatchNorm { training: true, ..BatchNorm::default() };
    let with = |x: &[Tensor], how: BatchNorm| {
        x[0].batch_norm(&BatchNorm { weight: Some(x[1].clone()), bias: Some(x[2].clone()), ..how })
    };
    let text = "torch.nn.functional.batch_norm(x0, None, None, x1, x2, training=True)";
    for lie in LIES {
        let x = if lie == Lie::Expanded { real(&[3, 2, 2]) } else { real(&[3, 2, 2]).lie(lie) };
        out.push(sample("batch_norm", text, vec![x, real(&[2]), real(&[2])], move |x| with(x, train())));
    }
    out.extend([
        sample("batch_norm", text, vec![real(&[4, 3]), real(&[3]).lie(Lie::Strided), real(&[3])], move |x| {
            with(x, train())
        }),
        sample("batch_norm", text, vec![real(&[2, 2, 2, 2]), real(&[2]), real(&[2])], move |x| {
            with(x, train())
        }),
        sample("batch_norm", text, vec![real(&[1, 3, 4]), real(&[3]), real(&[3])], move |x| with(x, train())),
        sample("batch_norm", text, vec![real(&[64, 3, 5]), real(&[3]), real(&[3])], move |x| {
            with(x, train())
        })
        .kink(),
        sample(
            "batch_norm",
            "torch.nn.functional.batch_norm(x0, None, None, training=True, eps=0.1)",
            vec![real(&[4, 3])],
            move |x| x[0].batch_norm(&BatchNorm { eps: 0.1, ..train() }),
        ),
        sample(
            "batch_norm",
            "torch.nn.functional.batch_norm(x0, None, None, bias=x1, training=True)",
            vec![real(&[4, 3]), real(&[3])],
            move |x| x[0].batch_norm(&BatchNorm { bias: Some(x[1].clone()), ..train() }),
        ),
        sample(
            "batch_norm",
            "torch.nn.functional.batch_norm(x0, x3, x4, x1, x2)",
            vec![real(&[3, 2, 2]), real(&[2]), real(&[2]), real(&[2]).fixed(), positive(&[2]).fixed()],
            move |x| {
                with(
                    x,
                    BatchNorm {
                        running_mean: Some(x[3].clone()),
                        running_var: Some(x[4].clone()),
                        ..BatchNorm::default()
                    },
                )
            },
        ),
    ]);
    // What becomes of the running values.
    let running = "(lambda m, v: [torch.nn.functional.batch_norm(x0, m, v, training=True, momentum=0.25), \
                   torch.stack([m, v])][1])(x1.clone(), x2.clone())";
    for shape in [&[4, 3][..], &[2, 3, 2, 2]] {
        let inputs = vec![real(shape).fixed(), real(&[3]).fixed(), positive(&[3]).fixed()];
        out.push(sample("batch_norm", running, inputs, move |x| {
            let (m, v) = (x[1].clone_data(), x[2].clone_data());
            let how = BatchNorm {
                running_mean: Some(m.clone()),
                running_var: Some(v.clone()),
                momentum: 0.25,
                ..train()
            };
            let y = x[0].batch_norm(&how);
            if y.error().is_some() { y } else { stack(&[&m, &v], 0) }
        }));
    }
    out
}
