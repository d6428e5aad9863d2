//! Choosing devices.

use std::panic::Location;

use crate::error::{Error, ErrorKind, Result};
pub use crate::graph::device::{Device, Generator, Stats, cpu};
pub use crate::tensor::{default_device, set_default_device};

/// The device of this name: `cpu`, `gpu` (the best adapter; PyTorch's `cuda` means it too), or part of an adapter's name, such as `llvmpipe`.
///
/// # Errors
/// If there is no such device.
///
/// ```
/// # use wgrad::prelude::*;
/// let x = tensor([4.0]).to(device("cpu")?);
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn device(name: &str) -> Result<Device> {
    let caller = Location::caller();
    match name {
        "cpu" => Ok(cpu()),
        "gpu" | "gpu:0" | "cuda" | "cuda:0" => adapter(None, caller),
        _ => adapter(Some(name), caller),
    }
}

/// The best GPU there is: discrete before integrated before software.
///
/// # Errors
/// If no adapter is found, or this build is without the feature `gpu`.
#[track_caller]
pub fn gpu() -> Result<Device> {
    adapter(None, Location::caller())
}

#[cfg(feature = "gpu")]
fn adapter(name: Option<&str>, caller: &'static Location<'static>) -> Result<Device> {
    use std::collections::HashMap;

    use parking_lot::Mutex;

    // One device per adapter and process: drivers do not like many. Only those that worked are remembered.
    static OPEN: Mutex<Option<HashMap<Option<String>, Device>>> = Mutex::new(None);
    let key = name.map(str::to_lowercase);
    let mut open = OPEN.lock();
    let open = open.get_or_insert_default();
    if let Some(device) = open.get(&key) {
        return Ok(device.clone());
    }
    let backend = crate::backend::gpu::pick(name)
        .map_err(|fault| Error::at(caller, ErrorKind::Device, "device", fault.message))?;
    let same = open.values().find(|d| std::ptr::addr_eq(d.backend(), &*backend)).cloned();
    let device = same.unwrap_or_else(|| Device::new(backend));
    open.insert(key, device.clone());
    Ok(device)
}

#[cfg(not(feature = "gpu"))]
fn adapter(_: Option<&str>, caller: &'static Location<'static>) -> Result<Device> {
    let message = "this build of wgrad is without the feature `gpu`";
    Err(Error::at(caller, ErrorKind::Device, "device", message))
}

/// What `WGRAD_DEVICE` asks for, else the best GPU, else the CPU.
pub(crate) fn choose_default() -> Device {
    let asked = std::env::var("WGRAD_DEVICE").ok().filter(|s| !s.is_empty());
    match device(asked.as_deref().unwrap_or("gpu")) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("wgrad: {}; using the cpu", error.message());
            cpu()
        }
    }
}

/// Seeds the random streams of all devices opened so far, and of the CPU (`torch.manual_seed`).
pub fn manual_seed(seed: u64) {
    cpu().manual_seed(seed);
    let device = default_device();
    device.manual_seed(seed);
}
