//! Normalising layers: their state, their modes, and the two ways to their gradients.

mod common;

use common::{assert_close, devices};
use wgrad::autograd::grad_with;
use wgrad::nn::{BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm};
use wgrad::prelude::*;

/// As PyTorch 2 computes it.
#[test]
fn batch_norm_tracks_what_it_has_seen() {
    for device in devices() {
        let on = options().device(&device);
        let first = on.tensor([[1.0, 2.0], [3.0, 5.0], [4.0, -1.0]]);
        let second = on.tensor([[0.0, 2.0], [8.0, 5.5]]);
        let of = |t: &Option<Tensor>| t.clone().unwrap();

        let norm = BatchNorm1d::with(2, 1e-5, None, true, true, &on);
        norm.forward(&first);
        norm.forward(&second);
        assert_close(&of(&norm.running_mean), &[3.333_333_5, 2.875], 1e-6, "cumulative mean");
        assert_close(&of(&norm.running_var), &[17.166_666, 7.562_5], 1e-6, "cumulative variance");
        assert_eq!(of(&norm.num_batches_tracked).item::<i32>().unwrap(), 2);
        norm.eval();
        let expected = [-0.563_162_5, -0.318_181_57, -0.080_451_83, 0.772_726_77, 0.160_903_51, -1.409_09];
        assert_close(&norm.forward(&first), &expected, 1e-6, "evaluation");
        assert_eq!(of(&norm.num_batches_tracked).item::<i32>().unwrap(), 2, "evaluation tracks nothing");

        let norm = BatchNorm1d::with(2, 1e-5, Some(0.1), true, true, &on);
        norm.forward(&first);
        norm.forward(&second);
        assert_close(&of(&norm.running_mean), &[0.64, 0.555], 1e-6, "mean");
        assert_close(&of(&norm.running_var), &[4.22, 2.232_499_8], 1e-6, "variance");

        let norm = BatchNorm1d::with(2, 1e-5, Some(0.1), false, false, &on);
        norm.eval();
        assert!(norm.state_dict().is_empty());
        let y = norm.forward(&second);
        assert_close(&y, &[-0.999_999_7, -0.999_998_4, 0.999_999_7, 0.999_998_3], 1e-5, "of the batch");
    }
}

#[test]
fn what_norms_hold() {
    let norm = BatchNorm2d::new(3);
    let names = |list: Vec<(String, Tensor)>| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(norm.named_parameters()), ["weight", "bias"]);
    assert_eq!(names(norm.named_buffers()), ["running_mean", "running_var", "num_batches_tracked"]);
    assert_eq!(LayerNorm::new([2, 3]).num_parameters(), 12);
    assert_eq!(names(LayerNorm::with(4, 1e-5, true, false, &options()).named_parameters()), ["weight"]);
    assert!(LayerNorm::with(4, 1e-5, false, true, &options()).parameters().is_empty());
    assert_eq!(names(RMSNorm::new(4).named_parameters()), ["weight"]);
    let other = BatchNorm2d::new(3);
    other.forward(&randn([2, 3, 2, 2]));
    norm.load_state_dict(&other.state_dict()).unwrap();
    assert_eq!(norm.num_batches_tracked.as_ref().unwrap().item::<i32>().unwrap(), 1);
}

/// The kernels of gradients give what the formulas give that gradients of gradients pass through.
#[test]
fn fused_gradients_are_those_of_the_formulas() {
    type Norm = fn(&[Tensor]) -> Tensor;
    let norms: [(&str, &[usize], usize, Norm); 7] = [
        ("layer_norm", &[70, 36], 36, |t| t[0].layer_norm(36, Some(&t[1]), Some(&t[2]), 1e-5)),
        ("layer_norm", &[3, 1030], 1030, |t| t[0].layer_norm(1030, Some(&t[1]), Some(&t[2]), 1e-5)),
        ("rms_norm", &[9, 2, 33], 33, |t| t[0].rms_norm(33, Some(&t[1]), None) + &t[2]),
        ("batch_norm", &[40, 3, 5], 3, |t| {
            let (weight, bias) = (Some(t[1].clone()), Some(t[2].clone()));
            t[0].batch_norm(&BatchNorm { weight, bias, training: true, ..BatchNorm::default() })
        }),
        ("cross_entropy", &[50, 7], 7, |t| {
            let classes: Vec<i32> = (0..50).map(|i| i * 3 % 7).collect();
            let target = options().device(t[0].device()).from_slice(&classes, 50);
            (&t[0] * &t[1] + &t[2]).cross_entropy(&target)
        }),
        ("cross_entropy", &[50, 7], 7, |t| {
            let classes: Vec<i32> = (0..50).map(|i| i * 3 % 8).collect();
            let target = options().device(t[0].device()).from_slice(&classes, 50);
            let how = CrossEntropy { ignore_index: 7, reduction: Reduction::None, ..CrossEntropy::default() };
            (&t[0] * &t[1] + &t[2]).cross_entropy_with(&target, &how)
        }),
        ("cross_entropy", &[4, 9, 5], 5, |t| {
            let classes: Vec<i32> = (0..20).map(|i| i * 3 % 10).collect();
            let target = options().device(t[0].device()).from_slice(&classes, [4, 5]);
            let how = CrossEntropy { ignore_index: 9, label_smoothing: 0.2, ..CrossEntropy::default() };
            (&t[0] * &t[1] + &t[2]).cross_entropy_with(&target, &how)
        }),
    ];
    for device in devices() {
        device.manual_seed(3);
        let on = options().device(&device);
        for (name, shape, n, norm) in norms {
            let mut tensors = vec![on.randn(shape) * 2.0 + 1.0, on.randn(n), on.randn(n)];
            tensors = tensors.into_iter().map(|t| t.detach().requires_grad_(true)).collect();
            let inputs: Vec<&Tensor> = tensors.iter().collect();
            let y = norm(&tensors);
            let g = on.randn(y.shape());
            let pass = |create: bool| {
                let how = Backward::new().gradient(&g).create_graph(create).retain_graph(true);
                grad_with(&[&y], &inputs, how).unwrap()
            };
            for (fused, formula) in pass(false).iter().zip(pass(true)) {
                // Sums of some hundred products, in two orders.
                let expected = formula.to_f64_vec().unwrap();
                assert_close(fused, &expected, 5e-5, &format!("{name} {shape:?} on {device}"));
            }
        }
    }
}
