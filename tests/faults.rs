//! What data makes wrong: an index out of range, which a GPU tells of only when something is read.

mod common;

use common::devices;
use wgrad::prelude::*;

#[test]
fn what_came_of_a_bad_index_is_never_read() {
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
