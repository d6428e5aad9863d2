//! A training loop settles: one plan, few dispatches, and no buffer more than the step before. A file of its own
//! with one test, for other tests' plans and buffers would count as well.

mod common;

use common::devices;
use wgrad::prelude::*;

#[test]
fn steps_share_one_plan_and_leave_nothing_behind() {
    for device in devices() {
        let model = sequential![Linear::new(20, 64), ReLU, Linear::new(64, 32), ReLU, Linear::new(32, 10)]
            .to(&device);
        let on = options().device(&device);
        let x = on.randn([16, 20]);
        let y = on.randint(0, 10, 16);
        let mut adam = Adam::new(model.parameters(), 1e-3);
        let mut sgd = SGD::new(model.parameters(), 1e-3).momentum(0.9);
        for optimizer in [&mut adam as &mut dyn Optimizer, &mut sgd] {
            let mut rate = 1e-3;
            let mut step = || {
                optimizer.zero_grad();
                // A schedule does not make new plans.
                rate *= 0.9;
                optimizer.set_lr(rate);
                model.forward(&x).cross_entropy(&y).backward().unwrap();
                let before = {
                    device.flush();
                    device.stats().dispatches
                };
                optimizer.step().unwrap();
                device.stats().dispatches - before
            };
            // The first step is what the later ones are, with zeros for what it remembers.
            device.flush();
            step();
            device.synchronize().unwrap();
            let (plans, buffers) = (device.stats().plans, device.memory().live_buffers);
            let mut dispatches = 0;
            for _ in 0..20 {
                dispatches = step();
            }
            device.synchronize().unwrap();
            assert_eq!(device.stats().plans, plans, "the step was planned anew on {device}");
            assert_eq!(device.memory().live_buffers, buffers, "buffers are left behind on {device}");
            assert!(dispatches <= 8, "{dispatches} dispatches for the update of 6 parameters on {device}");
            eprintln!("{device}: {dispatches} dispatches an update");
        }
    }
}
