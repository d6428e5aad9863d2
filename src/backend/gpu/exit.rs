//! Ending well. A software driver compiles on threads of this process, and LLVM does not survive the end of its global
//! objects: a process that exits meanwhile crashes. What a thread keeps for itself is dropped before those (by glibc, for the
//! thread that exits), so there it waits.

use std::cell::RefCell;

use super::Gpu;
use super::ahead::Ahead;
use super::device::wait;

thread_local! {
    static BUSY: RefCell<Vec<Busy>> = const { RefCell::new(vec![]) };
}

/// A software adapter's device that this thread gave work to.
struct Busy {
    device: wgpu::Device,
    ahead: Option<Ahead>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        // If that fails, there is nobody left to tell.
        let _ = wait(&self.device, None);
        self.ahead.iter().for_each(Ahead::finish);
    }
}

/// Notes that this thread has given the device work.
pub fn note(gpu: &Gpu) {
    if !gpu.info.on_cpu {
        return;
    }
    // It fails in a thread that is ending.
    let _ = BUSY.try_with(|busy| {
        let mut busy = busy.borrow_mut();
        if busy.iter().all(|b| b.device != gpu.device) {
            busy.push(Busy { device: gpu.device.clone(), ahead: gpu.pipelines.ahead.clone() });
        }
    });
}
