//! Host memory behind [`Buffer`](crate::backend::Buffer)s, kept for reuse when freed: fresh pages cost more to
//! fault in than most kernels take to fill them.

use std::alloc::{self, Layout};
use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::backend::Memory;

/// Cache line, and the widest vector.
const ALIGN: usize = 64;
/// Size of a huge page, to which blocks of at least two are aligned.
const HUGE: usize = 2 << 20;
/// Pooled bytes below this are never worth giving back.
const KEEP: usize = 64 << 20;

/// Memory that gives itself back to its pool.
pub(super) struct Block {
    start: NonNull<u8>,
    raw: NonNull<u8>,
    /// Bytes asked for.
    bytes: usize,
    capacity: usize,
    area: bool,
    pool: Arc<Pool>,
}

// SAFETY: a block owns its memory; what is done through `start` is ordered by the device's lock.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Always initialised, aligned to 64, valid for `bytes()` while the block lives.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.put(self.raw, self.capacity, self.bytes, self.area);
    }
}

#[derive(Default)]
pub(super) struct Pool(Mutex<State>);

#[derive(Default)]
struct State {
    /// Freed blocks by capacity; and those of them that no value outlives, which serve any plan.
    free: BTreeMap<usize, Vec<Raw>>,
    areas: BTreeMap<usize, Vec<Raw>>,
    /// When a block of each capacity was last asked for or freed, in such events.
    used: HashMap<usize, u64>,
    events: u64,
    memory: Memory,
    peak: usize,
}

impl State {
    fn note(&mut self, capacity: usize) {
        self.events += 1;
        self.used.insert(capacity, self.events);
    }

    /// Takes idle blocks out until there is room for `bytes` more, first of the capacities that nobody has asked for
    /// longest: a program that has gone on to other sizes would otherwise keep the old ones, and get fresh pages each time.
    fn make_room(&mut self, bytes: usize) -> Vec<(usize, Raw)> {
        let mut out = vec![];
        while self.memory.pooled_bytes + bytes > self.peak.max(KEEP) {
            let idle = self.free.iter_mut().chain(&mut self.areas).filter(|(_, blocks)| !blocks.is_empty());
            let oldest = idle.min_by_key(|(capacity, _)| self.used.get(capacity).copied().unwrap_or(0));
            let Some((capacity, Some(raw))) = oldest.map(|(&capacity, blocks)| (capacity, blocks.pop()))
            else {
                break;
            };
            self.memory.pooled_bytes -= capacity;
            out.push((capacity, raw));
        }
        out
    }
}

struct Raw(NonNull<u8>);
// SAFETY: memory nobody points to.
unsafe impl Send for Raw {}

impl Pool {
    /// Memory with whatever contents (zeros at first), or `None` where the system has no more.
    pub fn take(self: &Arc<Pool>, bytes: usize) -> Option<Block> {
        let capacity = size_class(bytes)?;
        let pooled = {
            let mut state = self.0.lock();
            state.note(capacity);
            let found = state.free.get_mut(&capacity).and_then(Vec::pop);
            if found.is_some() {
                state.memory.pooled_bytes -= capacity;
            }
            found
        };
        self.hand_out(bytes, capacity, pooled, false)
    }

    /// The same for one run: any idle area that is large enough will do.
    pub fn take_area(self: &Arc<Pool>, bytes: usize) -> Option<Block> {
        let least = size_class(bytes)?;
        let mut state = self.0.lock();
        let idle = |(&capacity, raws): (&usize, &Vec<Raw>)| (!raws.is_empty()).then_some(capacity);
        let fits = state.areas.range(least..).find_map(idle);
        // Where none is, the new one will serve whoever the largest did.
        let found = fits.or_else(|| state.areas.iter().rev().find_map(idle));
        let raw = found.and_then(|capacity| state.areas.get_mut(&capacity)?.pop());
        state.note(fits.unwrap_or(least));
        state.memory.pooled_bytes -= found.unwrap_or(0);
        drop(state);
        if fits.is_none()
            && let (Some(capacity), Some(Raw(raw))) = (found, &raw)
        {
            release(*raw, capacity);
        }
        self.hand_out(bytes, fits.unwrap_or(least), raw.filter(|_| fits.is_some()), true)
    }

    fn hand_out(
        self: &Arc<Pool>,
        bytes: usize,
        capacity: usize,
        pooled: Option<Raw>,
        area: bool,
    ) -> Option<Block> {
        let raw = match pooled {
            Some(Raw(raw)) => raw,
            None => fresh(capacity).or_else(|| {
                self.empty();
                fresh(capacity)
            })?,
        };
        let mut state = self.0.lock();
        state.memory.live_buffers += 1;
        state.memory.live_bytes += bytes;
        state.peak = state.peak.max(state.memory.live_bytes);
        drop(state);
        let skip = raw.as_ptr().align_offset(alignment(capacity));
        // SAFETY: `raw_layout` adds bytes for this.
        let start = unsafe { raw.add(skip) };
        if dirty() {
            // SAFETY: the block is `capacity` long, at least `bytes`, and nobody else's.
            unsafe { start.write_bytes(0xA5, if area { bytes } else { capacity }) };
        }
        Some(Block { start, raw, bytes, capacity, area, pool: self.clone() })
    }

    fn put(&self, raw: NonNull<u8>, capacity: usize, bytes: usize, area: bool) {
        let mut state = self.0.lock();
        state.memory.live_buffers -= 1;
        state.memory.live_bytes -= bytes;
        state.note(capacity);
        let gone = state.make_room(capacity);
        if state.memory.pooled_bytes + capacity > state.peak.max(KEEP) {
            drop(state);
            release(raw, capacity);
        } else {
            state.memory.pooled_bytes += capacity;
            let idle = if area { &mut state.areas } else { &mut state.free };
            idle.entry(capacity).or_default().push(Raw(raw));
            drop(state);
        }
        gone.into_iter().for_each(|(capacity, Raw(raw))| release(raw, capacity));
    }

    pub fn empty(&self) {
        let mut state = self.0.lock();
        state.memory.pooled_bytes = 0;
        state.peak = state.memory.live_bytes;
        let idle = std::mem::take(&mut state.free).into_iter().chain(std::mem::take(&mut state.areas));
        drop(state);
        for (capacity, blocks) in idle {
            blocks.into_iter().for_each(|Raw(raw)| release(raw, capacity));
        }
    }

    pub fn memory(&self) -> Memory {
        self.0.lock().memory
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.empty();
    }
}

/// Capacities in steps of an eighth of a power of two, so that sizes near each other share blocks.
fn size_class(bytes: usize) -> Option<usize> {
    let step = (bytes.max(1).checked_next_power_of_two()? / 16).max(ALIGN);
    bytes.max(1).checked_next_multiple_of(step)
}

fn alignment(capacity: usize) -> usize {
    if capacity >= 2 * HUGE { HUGE } else { ALIGN }
}

fn raw_layout(capacity: usize) -> Option<Layout> {
    // Aligned by hand: for a large alignment the system allocator would zero by writing, which touches pages.
    Layout::from_size_align(capacity.checked_add(alignment(capacity))?, 16).ok()
}

fn fresh(capacity: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout's size is not 0.
    let raw = NonNull::new(unsafe { alloc::alloc_zeroed(raw_layout(capacity)?) })?;
    #[cfg(target_os = "linux")]
    if capacity >= 2 * HUGE {
        advise_huge_pages(raw.as_ptr(), capacity);
    }
    Some(raw)
}

/// Lets the system back a block by pages of 2 MiB: far fewer faults and misses of the TLB.
#[cfg(target_os = "linux")]
fn advise_huge_pages(raw: *mut u8, capacity: usize) {
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(start: *mut u8, bytes: usize, advice: i32) -> i32;
    }
    // SAFETY: whole pages inside the allocation; the advice does not change contents, and may be refused.
    unsafe { madvise(raw.add(raw.align_offset(HUGE)), capacity / HUGE * HUGE, MADV_HUGEPAGE) };
}

fn release(raw: NonNull<u8>, capacity: usize) {
    if let Some(layout) = raw_layout(capacity) {
        // SAFETY: `fresh` allocated it with this layout.
        unsafe { alloc::dealloc(raw.as_ptr(), layout) };
    }
}

/// Whether buffers shall come with garbage in them, to find kernels that read what they did not write.
fn dirty() -> bool {
    static DIRTY: OnceLock<bool> = OnceLock::new();
    *DIRTY.get_or_init(|| std::env::var_os("WGRAD_DIRTY_POOL").is_some_and(|v| v == "1"))
}
