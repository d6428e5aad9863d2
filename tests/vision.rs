//! Layers over images: what they hold, how they start, and that they learn.

mod common;

use common::devices;
use wgrad::autograd::{gradcheck, gradgradcheck};
use wgrad::prelude::*;

#[test]
fn layers_have_the_parameters_of_torch() {
    let layer = Conv2d::with(6, 4, (3, 2), &Conv::new().groups(2), true, &options());
    let shapes: Vec<(String, Vec<usize>)> =
        layer.named_parameters().into_iter().map(|(name, t)| (name, t.shape().to_vec())).collect();
    assert_eq!(shapes, [("weight".to_string(), vec![4, 3, 3, 2]), ("bias".to_string(), vec![4])]);
    assert_eq!(layer.forward(&ones([2, 6, 5, 5])).shape(), [2, 4, 3, 4]);
    // kaiming_uniform(a = sqrt 5) is uniform within 1 / sqrt(fan in), and so is the bias.
    let bound = 1.0 / (3.0 * 3.0 * 2.0f32).sqrt();
    for t in layer.parameters() {
        let values = t.to_vec::<f32>().unwrap();
        assert!(values.iter().all(|v| v.abs() <= bound), "{values:?}");
        assert!(values.iter().any(|v| v.abs() > bound / 4.0), "{values:?}");
    }
    let bare = Conv2d::with(1, 1, 1, &Conv::default(), false, &options());
    assert!(bare.bias.is_none());
}

#[test]
fn layers_take_the_arguments_of_torch() {
    let x = ones([1, 2, 9, 9]);
    let shape = |m: &dyn Module| m.forward(&x).shape().to_vec();
    assert_eq!(shape(&Conv2d::new(2, 3, 3)), [1, 3, 7, 7]);
    assert_eq!(shape(&Conv2d::new(2, 3, 3).stride(2).padding(1)), [1, 3, 5, 5]);
    assert_eq!(shape(&Conv2d::new(2, 3, (3, 1)).dilation((2, 1)).padding(Padding::Same)), [1, 3, 9, 9]);
    assert_eq!(shape(&MaxPool2d::new(2)), [1, 2, 4, 4]);
    assert_eq!(shape(&MaxPool2d::with(Pool::new(2).ceil_mode(true))), [1, 2, 5, 5]);
    assert_eq!(shape(&AvgPool2d::new((3, 2))), [1, 2, 3, 4]);
    assert_eq!(shape(&AdaptiveAvgPool2d::new((4, 1))), [1, 2, 4, 1]);
}

/// Labels that a convolution can see: which half of the image has the bright square.
#[test]
fn a_convolutional_network_learns() {
    for device in devices() {
        device.manual_seed(7);
        let on = options().device(&device);
        let n = 32;
        let mut pixels = vec![0.0f32; n * 64];
        let labels: Vec<i32> = (0..n).map(|i| (i % 2) as i32).collect();
        for (i, image) in pixels.chunks_exact_mut(64).enumerate() {
            let (top, left) = (i / 2 % 3 + 4 * (i % 2), i / 5 % 7);
            for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                image[(top + dy) * 8 + left + dx] = 1.0;
            }
        }
        let (x, y) = (on.from_slice(&pixels, [n, 1, 8, 8]), on.from_slice(&labels, [n]));
        let conv = |i: usize, o: usize| Conv2d::with(i, o, 3, &Conv::new().padding(1), true, &on);
        let model = sequential![
            conv(1, 4),
            ReLU,
            MaxPool2d::new(2),
            conv(4, 8),
            ReLU,
            AvgPool2d::new(2),
            Flatten::new(),
            Linear::with(32, 2, true, &on)
        ];
        let mut adam = Adam::new(model.parameters(), 0.02);
        let mut losses = vec![];
        for _ in 0..60 {
            adam.zero_grad();
            let loss = model.forward(&x).cross_entropy(&y);
            loss.backward().unwrap();
            adam.step().unwrap();
            losses.push(loss.item::<f32>().unwrap());
        }
        assert!(losses[0] > 0.5 && losses[59] < 0.1, "{device}: {losses:?}");
    }
}

#[test]
fn convolutions_and_pools_have_gradients_of_gradients() {
    let on = options().device(cpu()).dtype(F64);
    device("cpu").unwrap().manual_seed(3);
    let grad = |shape: &[usize]| on.randn(shape).requires_grad_(true);
    let (x, w, b) = (grad(&[2, 2, 5, 5]), grad(&[4, 1, 3, 3]), grad(&[4]));
    let inputs = [&x, &w, &b];
    let f = |t: &[Tensor]| {
        let how = Conv::new().stride(2).padding(1).groups(2);
        t[0].conv2d_with(&t[1], Some(&t[2]), &how).tanh().max_pool2d_with(&Pool::new(2).stride(1))
    };
    gradcheck(f, &inputs).unwrap();
    gradgradcheck(f, &inputs).unwrap();
    let (x, w) = (grad(&[1, 2, 4, 4]), grad(&[2, 2, 2, 2]));
    let inputs = [&x, &w];
    let f = |t: &[Tensor]| {
        let y = t[0].conv_transpose2d_with(&t[1], None, &Conv::new().stride(2));
        (&y * &y).avg_pool2d_with(&Pool::new(3).stride(2).padding(1)).adaptive_avg_pool2d(3)
    };
    gradcheck(f, &inputs).unwrap();
    gradgradcheck(f, &inputs).unwrap();
}
