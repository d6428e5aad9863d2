//! Values in doubt. A GPU kernel that meets an index out of range can only leave a word that says so, to be read
//! with the next download. Until then what it computed, and all that was made of that, is in doubt; if the word
//! is set, they carry the error, and nothing that was computed from garbage is ever read as a result.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::device::{Device, fault_error};
use super::kernel::Command;
use super::node::{Node, State};
use super::plan::Plan;
use crate::backend::{Buffer, Fault};
use crate::error::{ErrorKind, Result};

/// Beyond this many, those that are gone are forgotten.
const MANY: usize = 1024;

/// Which outputs of a run are in doubt, by their slots: what a kernel that checks its data wrote, and what was
/// computed from leaves in doubt. (Of a run that is `settled` the device has told already.) A slot that once held such a value counts as in doubt to the end of the run.
pub(super) fn slots(plan: &Plan, leaves: &[Arc<Node>], settled: bool) -> Option<Vec<bool>> {
    let doubtful = |leaf: &Arc<Node>| leaf.in_doubt.load(Ordering::Relaxed);
    let checks = |command: &Command| !settled && command.checks_data();
    if !leaves.iter().any(doubtful) && !plan.recording.commands.iter().any(checks) {
        return None;
    }
    let mut slots: Vec<bool> = leaves.iter().map(doubtful).collect();
    slots.resize(plan.leaves + plan.places.len(), false);
    for command in &plan.recording.commands {
        let read = match command {
            Command::Dispatch { buffers, .. } => buffers.iter().any(|&s| slots[s as usize]),
            Command::Copy { from, .. } => slots[*from as usize],
        };
        if read || checks(command) {
            command.writes().into_iter().for_each(|s| slots[s as usize] = true);
        }
    }
    Some(slots)
}

/// Remembers nodes in doubt.
pub(super) fn remember(list: &mut Vec<Weak<Node>>, node: &Arc<Node>) {
    node.in_doubt.store(true, Ordering::Relaxed);
    if list.len() >= MANY {
        list.retain(|n| n.strong_count() > 0);
    }
    list.push(Arc::downgrade(node));
}

impl Device {
    /// Reads bytes of a node's buffer, and settles doubts.
    pub(crate) fn download(&self, node: &Node, buffer: &Buffer, range: Range<usize>) -> Result<Vec<u8>> {
        let read = self.settling(|| self.backend().download(buffer, range.clone()));
        match read {
            // The fault was another value's, which carries it now.
            Err(fault) if fault.kind == ErrorKind::Index && node.error().is_none() => {
                self.backend().download(buffer, range).map_err(|f| fault_error(f, node.caller, ""))
            }
            read => read.map_err(|f| node.error().unwrap_or_else(|| fault_error(f, node.caller, ""))),
        }
    }

    /// [`download`](Device::download) without blocking.
    pub(crate) async fn download_async(
        &self,
        node: Arc<Node>,
        buffer: Buffer,
        range: Range<usize>,
    ) -> Result<Vec<u8>> {
        let read = self.backend().download_async(&buffer, range.clone()).await;
        match read {
            Err(fault) if fault.kind == ErrorKind::Index => {
                self.condemn(&fault, vec![]);
                // Its own error, or a second try: the device tells of a fault once.
                if let Some(error) = node.error() {
                    return Err(error);
                }
                let again = self.backend().download_async(&buffer, range).await;
                again.map_err(|f| fault_error(f, node.caller, ""))
            }
            read => read.map_err(|f| fault_error(f, node.caller, "")),
        }
    }

    /// Does something that waits for the device and reports the faults of all work before it. One at a time, so
    /// that nobody takes another's fault for a clean bill.
    pub(super) fn settling<T>(
        &self,
        wait: impl FnOnce() -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        let _alone = self.settling_lock();
        let doubtful = std::mem::take(&mut *self.doubtful());
        let done = wait();
        match &done {
            Ok(_) => {
                for node in doubtful.iter().filter_map(Weak::upgrade) {
                    node.in_doubt.store(false, Ordering::Relaxed);
                }
            }
            Err(fault) if fault.kind == ErrorKind::Index => self.condemn(fault, doubtful),
            Err(_) => self.doubtful().extend(doubtful),
        }
        done
    }

    /// Everything in doubt carries the fault.
    fn condemn(&self, fault: &Fault, mut doubtful: Vec<Weak<Node>>) {
        doubtful.append(&mut self.doubtful());
        for node in doubtful.iter().filter_map(Weak::upgrade) {
            // The message names the op at fault and its line.
            node.settle(State::Failed(fault_error(fault.clone(), node.caller, "")));
        }
    }
}
