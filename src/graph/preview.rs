//! Seeing what would run, without running it; and recording without running anything unasked.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::device::Device;
use super::kernel::{Command, Slot};
use super::node::Node;
use super::plan::Plan;
use crate::backend::Memory;

/// A plan, and the memory it would meet.
pub struct Preview {
    pub plan: Arc<Plan>,
    /// Bytes of the values that it reads.
    pub leaves: Vec<usize>,
    pub memory: Memory,
}

impl Preview {
    /// What computing these nodes, all of this device, would run.
    pub fn of_nodes(device: &Device, nodes: Vec<Arc<Node>>) -> Option<Preview> {
        device.preview(Some(nodes))
    }

    /// What the device's next flush would run.
    pub fn of_pending(device: &Device) -> Option<Preview> {
        device.preview(None)
    }

    pub fn slot_bytes(&self, slot: Slot) -> usize {
        let own = (slot as usize).checked_sub(self.leaves.len());
        match own {
            Some(own) => self.plan.places.get(own).map_or(0, |place| place.bytes),
            None => self.leaves[slot as usize],
        }
    }

    pub fn commands(&self) -> &[Command] {
        &self.plan.recording.commands
    }
}

thread_local! {
    /// The devices that were recorded for since this thread holds its work back.
    static HELD: RefCell<Option<Vec<Device>>> = const { RefCell::new(None) };
}

/// Whether anything was ever held back: until then recording need not ask its thread.
static EVER: AtomicBool = AtomicBool::new(false);

/// Whether this thread holds back what it records; remembers the device.
pub(super) fn held(device: &Device) -> bool {
    if !EVER.load(Ordering::Relaxed) {
        return false;
    }
    HELD.with_borrow_mut(|held| match held {
        None => false,
        Some(devices) => {
            if !devices.contains(device) {
                devices.push(device.clone());
            }
            true
        }
    })
}

/// Runs `f` such that nothing that this thread records in it runs before a value is read. Gives the devices
/// recorded for.
pub fn hold<R>(f: impl FnOnce() -> R) -> (R, Vec<Device>) {
    /// Restores also when unwinding.
    struct Restore(Option<Vec<Device>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let outer = self.0.take();
            HELD.with_borrow_mut(|held| *held = outer);
        }
    }
    EVER.store(true, Ordering::Relaxed);
    let mut restore = Restore(HELD.replace(Some(vec![])));
    let value = f();
    let devices = HELD.with_borrow(|held| held.clone().unwrap_or_default());
    if let Some(outer) = &mut restore.0 {
        outer.extend(devices.iter().filter(|d| !outer.contains(d)).cloned().collect::<Vec<_>>());
    }
    (value, devices)
}
