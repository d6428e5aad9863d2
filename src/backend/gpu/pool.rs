//! Storage buffers by size class, recycled. Areas, which no value outlives, are recycled whatever their size: those
//! that lie idle serve the next plan, and make way where it needs larger ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::backend::{Buffer, Fault, Memory};
use crate::error::ErrorKind;

use super::device::scoped;

/// The pool may always keep this much; beyond it, as much as was once in use at the same time.
const KEEP: u64 = 256 << 20;
/// What `WGRAD_DIRTY_POOL` fills buffers with: a NaN, and a wild number as an integer.
const DIRT: u32 = 0xFFE5_A5A5;

pub struct Pool {
    device: wgpu::Device,
    queue: wgpu::Queue,
    max_bytes: u64,
    dirty: bool,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: BTreeMap<u64, Vec<Raw>>,
    areas: BTreeMap<u64, Vec<Raw>>,
    pooled: u64,
    live: u64,
    live_buffers: usize,
    peak: u64,
}

impl State {
    fn pop(&mut self, class: u64) -> Option<Raw> {
        self.free.get_mut(&class).and_then(Vec::pop).inspect(|_| self.pooled -= class)
    }

    fn pop_area(&mut self, class: u64) -> Option<Raw> {
        self.areas.get_mut(&class).and_then(Vec::pop).inspect(|_| self.pooled -= class)
    }
}

/// The largest class that has a buffer.
fn largest(idle: &BTreeMap<u64, Vec<Raw>>) -> Option<u64> {
    idle.iter().rev().find(|(_, raws)| !raws.is_empty()).map(|(&class, _)| class)
}

struct Raw {
    buffer: wgpu::Buffer,
    id: u64,
}

/// A buffer in use. Dropping it gives it back to the pool: work that is still under way is ordered before
/// whatever its next user submits.
pub struct Storage {
    raw: Option<Raw>,
    class: u64,
    area: bool,
    pool: Arc<Pool>,
}

impl Storage {
    pub fn buffer(&self) -> Option<&wgpu::Buffer> {
        self.raw.as_ref().map(|r| &r.buffer)
    }
    /// Never used for another buffer.
    pub fn id(&self) -> u64 {
        self.raw.as_ref().map_or(0, |r| r.id)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.pool.give(raw, self.class, self.area);
        }
    }
}

/// The size that is really made: in steps of a quarter of the power of two below, so that less than a quarter
/// is wasted, and at least one `vec4`.
pub fn size_class(bytes: u64) -> u64 {
    let step = (1u64 << bytes.max(1).ilog2()) / 4;
    bytes.max(1).next_multiple_of(step.max(16))
}

impl Pool {
    pub fn new(device: wgpu::Device, queue: wgpu::Queue, max_bytes: u64) -> Arc<Pool> {
        let dirty = std::env::var("WGRAD_DIRTY_POOL").is_ok_and(|v| v != "0");
        Arc::new(Pool { device, queue, max_bytes, dirty, next: AtomicU64::new(1), state: Mutex::default() })
    }

    pub fn get(self: &Arc<Pool>, bytes: usize) -> Result<Buffer, Fault> {
        let class = self.class(bytes)?;
        let recycled = self.state.lock().pop(class);
        self.hand_out(bytes, class, recycled, false)
    }

    /// For one run: any idle area that is large enough will do.
    pub fn get_area(self: &Arc<Pool>, bytes: usize) -> Result<Buffer, Fault> {
        let least = self.class(bytes)?;
        let mut state = self.state.lock();
        let fits = state.areas.range(least..).find(|(_, raws)| !raws.is_empty()).map(|(&class, _)| class);
        let (class, recycled) = match fits {
            Some(class) => (class, state.pop_area(class)),
            None => {
                // The new one will serve whoever this one did.
                if let Some(raw) = largest(&state.areas).and_then(|class| state.pop_area(class)) {
                    raw.buffer.destroy();
                }
                (least, None)
            }
        };
        drop(state);
        self.hand_out(bytes, class, recycled, true)
    }

    fn class(&self, bytes: usize) -> Result<u64, Fault> {
        if bytes as u64 > self.max_bytes {
            let message = format!(
                "a tensor of {bytes} bytes does not fit in one buffer: this device's \
                 max_storage_buffer_binding_size is {} bytes; split the tensor, or use the CPU device",
                self.max_bytes
            );
            return Err(Fault { kind: ErrorKind::Limit, message, command: None });
        }
        Ok(size_class(bytes as u64).min(self.max_bytes.next_multiple_of(16)))
    }

    fn hand_out(
        self: &Arc<Pool>,
        bytes: usize,
        class: u64,
        recycled: Option<Raw>,
        area: bool,
    ) -> Result<Buffer, Fault> {
        let raw = match recycled {
            Some(raw) => raw,
            None => self.make(class).or_else(|fault| {
                // What the pool holds in other sizes may be what is missing.
                if fault.kind != ErrorKind::OutOfMemory || !self.empty() {
                    return Err(fault);
                }
                self.make(class)
            })?,
        };
        if self.dirty {
            let words = if area { bytes.div_ceil(4) } else { class as usize / 4 };
            self.queue.write_buffer(&raw.buffer, 0, bytemuck::cast_slice(&vec![DIRT; words]));
        }
        let mut state = self.state.lock();
        state.live += class;
        state.live_buffers += 1;
        state.peak = state.peak.max(state.live);
        drop(state);
        let memory = Arc::new(Storage { raw: Some(raw), class, area, pool: self.clone() });
        Ok(Buffer { bytes, at: 0, memory })
    }

    fn make(&self, class: u64) -> Result<Raw, Fault> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size: class, usage, mapped_at_creation: false };
        let buffer = scoped(&self.device, || self.device.create_buffer(&descriptor)).map_err(|fault| {
            let live = self.state.lock().live;
            let message = match fault.kind {
                ErrorKind::OutOfMemory => format!(
                    "the device has no {class} bytes left ({live} are in use by tensors); \
                     drop tensors, or use smaller batches"
                ),
                _ => fault.message,
            };
            Fault { message, ..fault }
        })?;
        Ok(Raw { buffer, id: self.next.fetch_add(1, Ordering::Relaxed) })
    }

    fn give(&self, raw: Raw, class: u64, area: bool) {
        let mut state = self.state.lock();
        state.live -= class;
        state.live_buffers -= 1;
        state.pooled += class;
        let idle = if area { &mut state.areas } else { &mut state.free };
        idle.entry(class).or_default().push(raw);
        // The largest go first: they free most, and are the least likely to fit the next request.
        let bound = KEEP.max(state.peak - state.live.min(state.peak));
        while state.pooled > bound {
            let raw = largest(&state.free).and_then(|class| state.pop(class));
            let raw = raw.or_else(|| largest(&state.areas).and_then(|class| state.pop_area(class)));
            let Some(raw) = raw else { break };
            // Bind groups may still hold it; its memory goes now.
            raw.buffer.destroy();
        }
    }

    /// Gives all pooled memory back; whether there was any.
    pub fn empty(&self) -> bool {
        let mut state = self.state.lock();
        let free = std::mem::take(&mut state.free).into_values();
        let idle: Vec<Raw> = free.chain(std::mem::take(&mut state.areas).into_values()).flatten().collect();
        let any = state.pooled > 0;
        state.pooled = 0;
        state.peak = state.live;
        drop(state);
        idle.into_iter().for_each(|raw| raw.buffer.destroy());
        any
    }

    pub fn memory(&self) -> Memory {
        let state = self.state.lock();
        Memory {
            live_buffers: state.live_buffers,
            live_bytes: state.live as usize,
            pooled_bytes: state.pooled as usize,
        }
    }
}
