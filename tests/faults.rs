//! What data makes wrong: an index out of range, which a GPU tells of only when something is read.

mod common;

use common::{alone, devices};
use wgrad::prelude::*;

#[test]
fn what_came_of_a_bad_index_is_never_read() {
    let _alone = alone();
    for device in devices() {
        let on = options().device(&device);
        let (x, innocent) = (on.arange(0, 6, 1).reshape([2, 3]).to(F32), on.ones([4]));
        let index = on.tensor([[0], [3]]);
        let picked = x.gather(1, &index);
        let line = line!() - 1;
        device.flush();
        // Made from it later, in another flush.
        let later = &picked * 2.0;
        device.flush();
        // Someone else's read meets the fault first, and is right all the same.
        assert_eq!(innocent.to_vec::<f32>().unwrap(), [1.0; 4], "on {device}");
        assert_eq!(x.to_vec::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "on {device}");
        for bad in [&picked, &later, &later.sum()] {
            let error = bad.to_vec::<f32>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Index, "on {device}: {error}");
            assert!(error.to_string().contains(&format!("tests/faults.rs:{line}")), "on {device}: {error}");
        }
        // The device goes on.
        assert_eq!(x.gather(1, &on.tensor([[0], [2]])).to_vec::<f32>().unwrap(), [0.0, 5.0], "on {device}");
        device.synchronize().unwrap();
    }
}

/// What is found in the way of a loss spoils its gradient, and no step of another batch.
#[test]
fn a_class_out_of_range_spoils_loss_and_gradient() {
    let _alone = alone();
    for device in devices() {
        let on = options().device(&device);
        let x = on.randn([4, 3]).requires_grad_(true);
        let (good, bad) = (on.tensor([0, 1, 2, 0]), on.tensor([0, 1, 3, -100]));
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let how = CrossEntropy { reduction, ..CrossEntropy::default() };
            let loss = x.cross_entropy_with(&bad, &how);
            let line = line!() - 1;
            loss.sum().backward().unwrap();
            let gradient = x.grad().unwrap();
            x.set_grad(None);
            device.flush();
            for spoilt in [&loss, &gradient, &(&gradient * 2.0)] {
                let error = spoilt.to_vec::<f32>().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Index, "{reduction:?} on {device}: {error}");
                let says = error.to_string();
                assert!(says.contains(&format!("tests/faults.rs:{line}")), "on {device}: {says}");
                assert!(says.contains("cross_entropy"), "on {device}: {says}");
                if device.is_cpu() {
                    let found = "index 3 is out of bounds for dimension 1 with size 3";
                    assert!(says.contains(found), "on {device}: {says}");
                }
            }
            let loss = x.cross_entropy_with(&good, &how);
            loss.sum().backward().unwrap();
            assert!(loss.sum().item::<f32>().unwrap() > 0.0, "on {device}");
            x.grad().unwrap().check().unwrap();
            x.set_grad(None);
        }
        // Of no classes there is none in range.
        let none = on.zeros([2, 0]).cross_entropy(&on.tensor([0, 1]));
        assert_eq!(none.to_vec::<f32>().unwrap_err().kind(), ErrorKind::Index, "on {device}");
    }
}
