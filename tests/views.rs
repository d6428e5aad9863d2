//! Views share storage: what is written through one shows in all the others, at once, in order, and nowhere else.

mod common;

use common::devices;
use wgrad::prelude::*;

#[track_caller]
fn is(t: &Tensor, expected: &[i32]) {
    assert_eq!(t.to_vec::<i32>().unwrap(), expected);
}

fn counting(device: &Device, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    options().device(device).arange(0, n as i64, 1).reshape(shape)
}

#[test]
fn views_share_storage_and_copies_do_not() {
    for device in devices() {
        let x = counting(&device, &[2, 3]);
        let views = [
            x.t(),
            x.i(1),
            x.view([3, 2]),
            x.reshape(-1),
            x.unsqueeze(0),
            x.squeeze(),
            x.expand([2, 2, 3]),
            x.narrow(1, 1, 2),
            x.slice(1, 0, 3, 2),
            x.permute([1, 0]),
            x.detach(),
            x.flatten(0, -1),
            x.contiguous(),
            x.to(I32),
            x.to(&device),
        ];
        assert!(views.iter().all(|v| v.shares_storage(&x)));
        let copies =
            [x.clone_data(), x.t().reshape(-1), x.t().contiguous(), x.to(F32), &x + 0, cat(&[&x], 0)];
        assert!(copies.iter().all(|c| !c.shares_storage(&x)));
        assert_eq!((x.t().strides(), x.i(1).storage_offset()), (&[1, 3][..], 3));
        assert!(x.clone().is_same(&x) && !x.detach().is_same(&x));
        for part in x.split(2, 1) {
            assert!(part.shares_storage(&x));
        }
    }
}

#[test]
fn writes_show_in_every_view() {
    for device in devices() {
        let x = counting(&device, &[3, 4]);
        let (row, column, corner, flat) = (x.i(1), x.i((.., 2)), x.i((1.., 2..)), x.view(-1));
        row.fill_(100);
        is(&x, &[0, 1, 2, 3, 100, 100, 100, 100, 8, 9, 10, 11]);
        is(&column, &[2, 100, 10]);
        column.mul_(2);
        is(&corner, &[200, 100, 20, 11]);
        flat.add_(1);
        is(&row, &[101, 101, 201, 101]);
        corner.copy_(&options().device(&device).tensor([7, 8]));
        is(&x, &[1, 2, 5, 4, 101, 101, 7, 8, 9, 10, 7, 8]);
        x.zero_();
        is(&flat, &[0; 12]);
        is(&corner, &[0; 4]);
    }
}

#[test]
fn views_of_views_write_to_the_base() {
    for device in devices() {
        let x = counting(&device, &[2, 3, 4]);
        // Every second column of the last row of the transposed second half, from behind.
        let v = x.i(1).t().slice(0, 1, 4, 2).i(-1);
        is(&v, &[15, 19, 23]);
        v.fill_(-1);
        let all = x.to_vec::<i32>().unwrap();
        assert_eq!(all.iter().filter(|&&n| n == -1).count(), 3);
        assert!([15, 19, 23].iter().all(|&i: &usize| all[i] == -1));
        let w = v.unsqueeze(1).expand([3, 1]).t();
        w.add_(options().device(device).tensor([[1, 2, 3]]));
        is(&v, &[0, 1, 2]);
    }
}

#[test]
fn values_taken_before_a_write_stay() {
    for device in devices() {
        let x = counting(&device, &[4]);
        let before = x.clone_data();
        let sum = x.sum(); // recorded before the write, run after it
        let shifted = &x + 10;
        x.i(1..3).fill_(50);
        let after = x.sum();
        is(&sum, &[6]);
        is(&after, &[103]);
        is(&shifted, &[10, 11, 12, 13]);
        is(&before, &[0, 1, 2, 3]);
        is(&x, &[0, 50, 50, 3]);
        // The same with values that are there already.
        x.check().unwrap();
        let old = &x * 2;
        x.add_(1);
        x.i(0).fill_(9);
        is(&old, &[0, 100, 100, 6]);
        is(&x, &[9, 51, 51, 4]);
    }
}

#[test]
fn a_tensor_may_be_written_from_itself() {
    for device in devices() {
        let x = counting(&device, &[5]);
        // Reads see what was there before the write, whole.
        x.i(1..).copy_(&x.i(..-1));
        is(&x, &[0, 0, 1, 2, 3]);
        x.i(..-1).add_(x.i(1..));
        is(&x, &[0, 1, 3, 5, 3]);
        let m = counting(&device, &[3, 3]);
        m.copy_(&m.t());
        is(&m, &[0, 3, 6, 1, 4, 7, 2, 5, 8]);
        m.add_(m.t());
        is(&m, &[0, 4, 8, 4, 8, 12, 8, 12, 16]);
        m.i(0).copy_(&m.i((.., 1)));
        is(&m.i(0), &[4, 8, 12]);
        m.sub_(&m);
        is(&m, &[0; 9]);
    }
}

#[test]
fn overlapping_views_cannot_be_written() {
    for device in devices() {
        let x = options().device(&device).ones([1, 3]);
        let wide = x.expand([4, 3]);
        for out in
            [wide.add_(1), wide.fill_(2), wide.copy_(&options().device(&device).ones([4, 3])), wide.mul_(2)]
        {
            let error = out.error().unwrap();
            assert!(error.message().contains("more than one element of the written-to tensor"), "{error}");
            assert!(error.caller().file().ends_with("views.rs"));
        }
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.0; 3]);
        // A row of it is written once.
        wide.i(2).fill_(5);
        assert_eq!(wide.to_vec::<f32>().unwrap(), [5.0; 12]);
        // Repeated only once, and so not at all.
        x.expand([1, 3]).fill_(7);
        assert_eq!(x.to_vec::<f32>().unwrap(), [7.0; 3]);
    }
}

#[test]
fn shapes_and_types_must_fit_what_is_written() {
    for device in devices() {
        let o = || options().device(&device);
        let x = o().ones([2, 1]);
        let error = x.add_(o().ones([2, 3])).error().unwrap();
        assert!(error.message().contains("[2, 1]") && error.message().contains("[2, 3]"), "{error}");
        let n = o().tensor([1, 2]);
        assert_eq!(n.mul_(2.5).error().unwrap().kind(), ErrorKind::DType);
        assert_eq!(n.div_(2).error().unwrap().kind(), ErrorKind::DType);
        is(&n, &[1, 2]);
        // Conversions that PyTorch makes, too.
        n.copy_(&o().tensor([1.75, -2.75]));
        is(&n, &[1, -2]);
        n.fill_(3.9);
        is(&n, &[3, 3]);
        let f = o().ones(2);
        f.add_(&n);
        f.mul_(true);
        assert_eq!(f.to_vec::<f32>().unwrap(), [4.0, 4.0]);
        let b = o().tensor([true, false]);
        b.fill_(2);
        assert_eq!(b.to_vec::<bool>().unwrap(), [true, true]);
    }
}

#[test]
fn empty_views_and_empty_writes() {
    for device in devices() {
        let x = counting(&device, &[3, 4]);
        let nothing = x.i((1..1, ..));
        assert_eq!((nothing.shape(), nothing.numel()), (&[0, 4][..], 0));
        nothing.fill_(9);
        nothing.add_(&nothing);
        is(&nothing, &[]);
        is(&x, &(0..12).collect::<Vec<_>>());
        let e = options().device(&device).zeros([0, 3]);
        assert_eq!(e.t().reshape([0, 7]).shape(), [0, 7]);
        e.fill_(1.0);
        assert_eq!(e.sum().item::<f32>().unwrap(), 0.0);
        assert_eq!(e.sum_dim(0, false).to_vec::<f32>().unwrap(), [0.0; 3]);
    }
}

#[test]
fn detached_parts_still_share_data() {
    for device in devices() {
        let w = options().device(&device).requires_grad(true).ones([2, 2]);
        let d = w.detach().i(0);
        d.fill_(4);
        assert_eq!(w.to_vec::<f32>().unwrap(), [4.0, 4.0, 1.0, 1.0]);
        assert!(w.is_leaf() && w.requires_grad());
        no_grad(|| w.i((.., 1)).mul_(0));
        assert_eq!(d.to_vec::<f32>().unwrap(), [4.0, 0.0]);
        (&w * &w).sum().backward().unwrap();
        assert_eq!(w.grad().unwrap().to_vec::<f32>().unwrap(), [8.0, 0.0, 2.0, 0.0]);
    }
}

#[test]
fn assigning_operators_write_in_place() {
    for device in devices() {
        let mut x = counting(&device, &[4]);
        let (same, view) = (x.clone(), x.i(..2));
        x += 1;
        x *= &x.clone();
        x -= options().device(&device).tensor([1, 1, 1, 1]);
        is(&same, &[0, 3, 8, 15]);
        is(&view, &[0, 3]);
        // Where it fails, this handle is invalid and the others keep what they had.
        x += options().device(&device).ones([2, 4]);
        assert!(x.error().is_some());
        is(&same, &[0, 3, 8, 15]);
    }
}
