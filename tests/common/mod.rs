//! What the test files share.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::sync::{Mutex, MutexGuard, OnceLock};

use wgrad::prelude::*;

/// The devices to test on: the CPU, and the GPU where there is one. With `WGRAD_REQUIRE_GPU=1` there must be one.
///
/// Every test comes through here first, and so recycled memory is filled with rubbish before it is used: what
/// reads an element that nothing wrote fails.
pub fn devices() -> Vec<Device> {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    let open = || {
        // SAFETY: once, before the library has started any thread; the harness's other threads wait here for the
        // devices, or read no environment.
        unsafe { std::env::set_var("WGRAD_DIRTY_POOL", "1") };
        let mut devices = vec![cpu()];
        match gpu() {
            Ok(gpu) => devices.push(gpu),
            Err(error) => {
                let required = std::env::var("WGRAD_REQUIRE_GPU").is_ok_and(|v| v != "0" && !v.is_empty());
                assert!(!required, "WGRAD_REQUIRE_GPU is set, and there is no GPU: {error}");
                eprintln!("no GPU ({}): tested on the cpu only", error.message());
            }
        }
        devices
    };
    DEVICES.get_or_init(open).clone()
}

/// Asserts that all elements are within `tolerance` of what was expected, relative to it where it is above 1.
#[track_caller]
pub fn assert_close(got: &Tensor, expected: &[f64], tolerance: f64, what: &str) {
    let got = got.to_f64_vec().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(got.len(), expected.len(), "{what}: the number of elements");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let same = g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= tolerance * e.abs().max(1.0);
        assert!(same, "{what}: element {i} is {g}, expected {e}");
    }
}

/// One test of a file at a time: such as count what devices do, or see all threads.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// A tensor whose values are there, on a device with nothing left to do.
pub fn ready(device: &Device, shape: &[usize]) -> Tensor {
    let t = options().device(device).rand(shape);
    t.check().unwrap();
    device.synchronize().unwrap();
    t
}
