//! The devices that tests run on.

use std::sync::OnceLock;

use wgrad::prelude::*;

/// The CPU, and the GPU where there is one. `WGRAD_REQUIRE_GPU=1` says that there must be.
///
/// Every test comes through here first, and so recycled memory is filled with rubbish before it is used: what
/// reads an element that nothing wrote fails.
pub fn devices() -> Vec<Device> {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES
        .get_or_init(|| {
            // SAFETY: under the lock of the first call, before the library has started any thread; the other
            // threads of the test harness wait here or read no environment.
            unsafe { std::env::set_var("WGRAD_DIRTY_POOL", "1") };
            let mut all = vec![cpu()];
            match gpu() {
                Ok(device) => all.push(device),
                Err(error) => {
                    let required = std::env::var("WGRAD_REQUIRE_GPU").is_ok_and(|v| v == "1");
                    assert!(!required, "WGRAD_REQUIRE_GPU=1, but there is no GPU: {error}");
                    eprintln!("no GPU ({}): tested on the cpu only", error.message());
                }
            }
            all
        })
        .clone()
}
