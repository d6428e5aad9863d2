//! Status words for runs that look for NaN: one place for each dispatch, read when the run is done.

use std::sync::mpsc::channel;

use crate::backend::{Fault, Found};
use crate::error::ErrorKind;
use crate::graph::kernel::Recording;

use super::Gpu;
use super::device::{scoped, wait};
use super::pipeline::{Plan, Step};

/// What such runs share. Both buffers grow with the largest.
#[derive(Default)]
pub struct Words {
    buffers: Option<(wgpu::Buffer, wgpu::Buffer)>,
}

fn unread() -> Fault {
    Fault { kind: ErrorKind::Backend, message: "status words cannot be read".into(), command: None }
}

impl Words {
    /// The words, and where they are read; and whether they are new.
    pub fn of(&mut self, gpu: &Gpu, bytes: u64) -> Result<(wgpu::Buffer, wgpu::Buffer, bool), Fault> {
        if let Some((words, staging)) = self.buffers.clone().filter(|(words, _)| words.size() >= bytes) {
            return Ok((words, staging, false));
        }
        use wgpu::BufferUsages as Usage;
        let make = |usage| {
            let size = bytes.next_power_of_two().max(4 << 10);
            let descriptor =
                wgpu::BufferDescriptor { label: Some("words"), size, usage, mapped_at_creation: false };
            scoped(&gpu.device, || gpu.device.create_buffer(&descriptor))
        };
        let words = make(Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST)?;
        let staging = make(Usage::MAP_READ | Usage::COPY_DST)?;
        self.buffers = Some((words.clone(), staging.clone()));
        Ok((words, staging, true))
    }
}

/// Waits for a run, and gives what its dispatches said of each command.
pub fn read(
    gpu: &Gpu,
    plan: &Plan,
    recording: &Recording,
    staging: &wgpu::Buffer,
    stride: usize,
    submission: wgpu::SubmissionIndex,
) -> Result<Vec<Found>, Fault> {
    let mut found = vec![Found::default(); recording.commands.len()];
    let telling = || {
        let dispatches =
            plan.steps.iter().filter_map(|s| if let Step::Dispatch(d) = s { Some(d) } else { None });
        dispatches.filter(|d| d.pipeline.layout.key.status)
    };
    let bytes = (telling().count() * stride) as u64;
    if bytes == 0 {
        return Ok(found);
    }
    let (send, receive) = channel();
    staging.map_async(wgpu::MapMode::Read, ..bytes, move |result| drop(send.send(result)));
    wait(&gpu.device, Some(submission))?;
    receive.recv_timeout(super::read::PATIENCE).map_err(|_| unread())?.map_err(|_| unread())?;
    let mut fault = None;
    {
        let view = staging.get_mapped_range(..bytes).map_err(|_| unread())?;
        for (d, words) in telling().zip(view.chunks(stride)) {
            let word = |i: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|b| words[4 * i + b]));
            if let Some(found) = found.get_mut(d.command) {
                found.nan |= word(1) & 1 != 0;
                found.inf |= word(1) & 2 != 0;
            }
            if word(0) != 0 && fault.is_none() {
                let message = "an index is out of range".into();
                fault = Some(Fault { kind: ErrorKind::Index, message, command: Some(d.command) });
            }
        }
    }
    staging.unmap();
    fault.map_or(Ok(found), Err)
}
