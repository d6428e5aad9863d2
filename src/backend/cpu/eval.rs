//! The interpreter: runs a [`Plan`] over stretches of its index space, a block at a time.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

use smallvec::SmallVec;

use super::plan::{Access, Plan, Step};
use super::seen::Seen;
use super::simd::{Work, vectorized};
use crate::graph::dtype::Scalar;
use crate::graph::layout::Dims;
use crate::graph::program::Reg;

/// What a kernel is run on. Each buffer is known to be as long as the kernel's plans need, and is touched by
/// nobody else while the kernel runs.
pub(super) struct Operands<'a> {
    pub buffers: &'a [*mut u8],
    pub scalars: &'a [Scalar],
    /// Where to note what is stored beside finite numbers, if someone asked.
    pub seen: Option<&'a Seen>,
}

// SAFETY: threads that share it write disjoint elements: distinct coordinates of a program store to distinct
// elements (`Plan::new` refuses others), and the scheduler's contract is that no store meets another
// coordinate's load.
unsafe impl Sync for Operands<'_> {}

thread_local! {
    /// Scratch memory that no interpreter uses now.
    static SCRATCH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[allow(dead_code)] [u8; 64]);

/// Lends `bytes` of memory with whatever contents, aligned to cache lines.
pub(super) fn with_scratch<R>(bytes: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut lines = take_scratch(bytes);
    // SAFETY: lines are bytes, and there are enough of them.
    let result = work(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), bytes) });
    SCRATCH.with_borrow_mut(|free| free.push(lines));
    result
}

fn take_scratch(bytes: usize) -> Vec<Line> {
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = bytes.div_ceil(64);
    if scratch.len() < lines {
        scratch.resize(lines, Line([0; 64]));
    }
    scratch
}

/// One thread's interpreter of one plan.
pub(super) struct Eval<'a> {
    plan: &'a Plan,
    operands: &'a Operands<'a>,
    /// Where each register's block lies.
    registers: SmallVec<[*const u8; 16]>,
    /// What each repeating gather or index holds: where it began, and the count.
    holds: SmallVec<[(*const u8, usize); 8]>,
    /// How many elements of each scalar's block are filled.
    filled: usize,
    coordinate: Dims,
    /// The anchor's values, and the number of the first.
    anchor: (*const u8, usize),
    scratch: Vec<Line>,
}

impl Drop for Eval<'_> {
    fn drop(&mut self) {
        SCRATCH.with_borrow_mut(|free| free.push(std::mem::take(&mut self.scratch)));
    }
}

impl<'a> Eval<'a> {
    pub fn new(plan: &'a Plan, operands: &'a Operands<'a>) -> Eval<'a> {
        let mut scratch = take_scratch(plan.scratch);
        let base: *mut u8 = scratch.as_mut_ptr().cast();
        let mut registers: SmallVec<[*const u8; 16]> = SmallVec::from_elem(ptr::null(), plan.sizes.len());
        for &(reg, slot) in &plan.slots {
            // SAFETY: slots number less than `scratch / slot_bytes`.
            registers[usize::from(reg)] = unsafe { base.add(usize::from(slot) * plan.slot_bytes) };
        }
        Eval {
            plan,
            operands,
            registers,
            holds: SmallVec::from_elem((ptr::null(), 0), plan.accesses.len()),
            filled: 0,
            coordinate: Dims::from_elem(0, plan.shape.len()),
            anchor: (ptr::null(), 0),
            scratch,
        }
    }

    /// The anchor's results, of elements from `first` on. They must outlive the blocks evaluated next.
    pub fn set_anchor(&mut self, values: &[u8], first: usize) {
        self.anchor = (values.as_ptr(), first);
    }

    /// Evaluates the elements of `range`, calling `then` after each block with its first element and count.
    #[inline]
    pub fn each(&mut self, range: Range<usize>, mut then: impl FnMut(&mut Self, usize, usize)) {
        let mut at = range.start;
        while at < range.end {
            let mut len = self.plan.block.min(range.end - at);
            if self.plan.by_runs {
                let inner = self.plan.inner();
                len = len.min(inner - if inner == self.plan.numel { at } else { at % inner });
            }
            self.block(at, len);
            then(self, at, len);
            at += len;
        }
    }

    /// The register's values in the block evaluated last.
    pub fn values(&self, reg: Reg, len: usize) -> &[u8] {
        // SAFETY: the register points at `len` elements: in scratch, or in a buffer that is not written now.
        unsafe { self.slice(reg, len) }
    }

    unsafe fn slice<'b>(&self, reg: Reg, len: usize) -> &'b [u8] {
        let r = usize::from(reg);
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts(self.registers[r], len * usize::from(self.plan.sizes[r])) }
    }

    /// Evaluates `len` elements from number `at` on; `len` and `at` as `each` cuts them.
    pub fn block(&mut self, at: usize, len: usize) {
        debug_assert!(len <= self.plan.block);
        if self.filled < len {
            self.fill_scalars(len);
        }
        let plan = self.plan;
        plan.coordinate(at, &mut self.coordinate);
        for &reg in &plan.anchors {
            let r = usize::from(reg);
            // SAFETY: the caller of `set_anchor` gave values for the elements that are evaluated.
            self.registers[r] =
                unsafe { self.anchor.0.add((at - self.anchor.1) * usize::from(plan.sizes[r])) };
        }
        for step in &plan.steps {
            match step {
                Step::Op { run, reg, args } => {
                    // SAFETY: every operand was computed by an earlier step and its slot is not used again
                    // before this one, so that `out` overlaps none of them (`assign_slots`); outputs are not
                    // borrowed by loads (`in_place`).
                    unsafe {
                        let args: SmallVec<[&[u8]; 5]> = args.iter().map(|&a| self.slice(a, len)).collect();
                        let out = self.registers[usize::from(*reg)].cast_mut();
                        let bytes = len * usize::from(plan.sizes[usize::from(*reg)]);
                        run(std::slice::from_raw_parts_mut(out, bytes), &args);
                    }
                }
                Step::Borrow { reg, access } | Step::Direct { reg, access } => {
                    self.registers[usize::from(*reg)] = self.address(&plan.accesses[usize::from(*access)]);
                }
                Step::Gather { reg, access } => self.gather(*reg, usize::from(*access), len),
                Step::Index { reg, access } => self.count(*reg, usize::from(*access), len),
                Step::Store { reg, access } => {
                    let access = &plan.accesses[usize::from(*access)];
                    self.look(*reg, access, len);
                    self.scatter(*reg, access, len);
                }
            }
        }
        if self.operands.seen.is_some() {
            for step in &plan.steps {
                if let Step::Direct { reg, access } = step {
                    self.look(*reg, &plan.accesses[usize::from(*access)], len);
                }
            }
        }
    }

    /// Notes what of a register that is stored is not finite.
    #[inline]
    fn look(&self, reg: Reg, to: &Access, len: usize) {
        if let Some(seen) = self.operands.seen
            && to.float
        {
            seen.look(self.values(reg, len), to.size);
        }
    }

    #[cold]
    fn fill_scalars(&mut self, len: usize) {
        for &(reg, slot, dtype) in &self.plan.scalars {
            let bits = self.operands.scalars[usize::from(slot)].bits(dtype);
            let to = self.registers[usize::from(reg)].cast_mut();
            // SAFETY: a scalar's slot is its own and has room for a block.
            unsafe {
                match dtype.size() {
                    2 => fill::<u16>(to.cast(), bits as u16, len),
                    4 => fill::<u32>(to.cast(), bits as u32, len),
                    _ => fill::<u64>(to.cast(), bits, len),
                }
            }
        }
        self.filled = len;
    }

    /// Where the block's first element lies.
    fn address(&self, access: &Access) -> *mut u8 {
        let element = offset(access, &self.coordinate);
        // SAFETY: the buffer has the bytes that `Plan::needs` asks for.
        unsafe { self.operands.buffers[usize::from(access.binding)].add(element * access.size) }
    }

    fn gather(&mut self, reg: Reg, number: usize, len: usize) {
        let access = &self.plan.accesses[number];
        let from: *const u8 = self.address(access);
        if access.repeats {
            let (held, count) = self.holds[number];
            if held == from && len <= count {
                return;
            }
            self.holds[number] = (from, len);
        }
        let to = self.registers[usize::from(reg)].cast_mut();
        let (shape, strides) = (&self.plan.shape, &access.layout.strides);
        // SAFETY: the register has room for `len` elements, and those of the layout are in the buffer.
        unsafe {
            match access.size {
                2 => gather::<u16>(to.cast(), from.cast(), shape, strides, &self.coordinate, len),
                4 => gather::<u32>(to.cast(), from.cast(), shape, strides, &self.coordinate, len),
                _ => gather::<u64>(to.cast(), from.cast(), shape, strides, &self.coordinate, len),
            }
        }
    }

    /// The positions that a layout gives.
    fn count(&mut self, reg: Reg, number: usize, len: usize) {
        let access = &self.plan.accesses[number];
        let start = offset(access, &self.coordinate);
        if access.repeats {
            let held = (ptr::without_provenance(start), len);
            if self.holds[number].0 == held.0 && len <= self.holds[number].1 {
                return;
            }
            self.holds[number] = held;
        }
        let out: *mut u32 = self.registers[usize::from(reg)].cast_mut().cast();
        let (shape, strides) = (&self.plan.shape, &access.layout.strides);
        runs(shape, strides, &self.coordinate, len, |done, from, count, stride| {
            let (first, stride) = (start.wrapping_add(from) as u32, stride as u32);
            // SAFETY: the register has room for `len` elements.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(done), count) };
            match stride {
                0 => out.fill(first),
                1 => (0u32..).zip(out).for_each(|(i, out)| *out = first.wrapping_add(i)),
                _ => (0u32..).zip(out).for_each(|(i, out)| *out = first.wrapping_add(i.wrapping_mul(stride))),
            }
        });
    }

    fn scatter(&mut self, reg: Reg, access: &Access, len: usize) {
        let to = self.address(access);
        let from = self.registers[usize::from(reg)];
        let (shape, strides) = (&self.plan.shape, &access.layout.strides);
        // SAFETY: as in `gather`; no other thread has coordinates that store to these elements.
        unsafe {
            match access.size {
                2 => scatter::<u16>(to.cast(), from.cast(), shape, strides, &self.coordinate, len),
                4 => scatter::<u32>(to.cast(), from.cast(), shape, strides, &self.coordinate, len),
                _ => scatter::<u64>(to.cast(), from.cast(), shape, strides, &self.coordinate, len),
            }
        }
    }
}

#[inline]
fn offset(access: &Access, coordinate: &[usize]) -> usize {
    access.layout.offset + access.layout.strides.iter().zip(coordinate).map(|(s, c)| s * c).sum::<usize>()
}

/// Walks `len` elements from `start` on by runs along the innermost dimension: `run(done, from, count, stride)`
/// with the number of elements before, and where the run begins relative to the first (wrapping).
#[inline(always)]
fn runs(
    shape: &[usize],
    strides: &[usize],
    start: &[usize],
    len: usize,
    mut run: impl FnMut(usize, usize, usize, usize),
) {
    let last = shape.len() - 1;
    let (inner, stride) = (shape[last], strides[last]);
    let first = len.min(inner - start[last]);
    run(0, 0, first, stride);
    if first == len {
        return;
    }
    let mut coordinate: Dims = Dims::from_slice(start);
    let mut from = 0usize.wrapping_sub(start[last].wrapping_mul(stride));
    let mut done = first;
    while done < len {
        // Step to the next run.
        for d in (0..last).rev() {
            coordinate[d] += 1;
            from = from.wrapping_add(strides[d]);
            if coordinate[d] < shape[d] {
                break;
            }
            coordinate[d] = 0;
            from = from.wrapping_sub(shape[d].wrapping_mul(strides[d]));
        }
        let count = inner.min(len - done);
        run(done, from, count, stride);
        done += count;
    }
}

/// SAFETY: `to` has room for `len` elements.
#[inline]
unsafe fn fill<T: Copy>(to: *mut T, value: T, len: usize) {
    struct Fill<'a, T>(&'a mut [MaybeUninit<T>], T);
    impl<T: Copy> Work for Fill<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            self.0.iter_mut().for_each(|to| *to = MaybeUninit::new(self.1));
        }
    }
    // SAFETY: the caller's.
    vectorized(Fill(unsafe { std::slice::from_raw_parts_mut(to.cast(), len) }, value));
}

/// Rows, columns and the columns' stride of a block of whole rows whose columns are dense in memory.
#[inline]
fn transposed(
    shape: &[usize],
    strides: &[usize],
    start: &[usize],
    len: usize,
) -> Option<(usize, usize, usize)> {
    let last = shape.len() - 1;
    if last == 0 || strides[last] <= 1 || strides[last - 1] != 1 || start[last] != 0 {
        return None;
    }
    let rows = len / shape[last];
    let whole = len.is_multiple_of(shape[last]) && start[last - 1] + rows <= shape[last - 1];
    (whole && rows > 1).then_some((rows, shape[last], strides[last]))
}

/// SAFETY: `to` has room for `len` elements and is apart from `from`'s, which all lie in memory.
unsafe fn gather<T: Copy>(
    to: *mut T,
    from: *const T,
    shape: &[usize],
    strides: &[usize],
    start: &[usize],
    len: usize,
) {
    if let Some((rows, columns, stride)) = transposed(shape, strides, start, len) {
        for column in 0..columns {
            for row in 0..rows {
                // SAFETY: the caller's. Read along memory's lines, which the strided way would visit again and again.
                unsafe { *to.add(row * columns + column) = *from.add(column * stride + row) };
            }
        }
        return;
    }
    runs(shape, strides, start, len, |done, at, count, stride| {
        // SAFETY: the caller's.
        unsafe {
            let (to, from) = (to.add(done), from.wrapping_add(at));
            match stride {
                1 => ptr::copy_nonoverlapping(from, to, count),
                0 => fill(to, *from, count),
                _ => (0..count).for_each(|i| *to.add(i) = *from.add(i * stride)),
            }
        }
    });
}

/// SAFETY: as `gather`, the other way round.
unsafe fn scatter<T: Copy>(
    to: *mut T,
    from: *const T,
    shape: &[usize],
    strides: &[usize],
    start: &[usize],
    len: usize,
) {
    runs(shape, strides, start, len, |done, at, count, stride| {
        // SAFETY: the caller's.
        unsafe {
            let (to, from) = (to.wrapping_add(at), from.add(done));
            match stride {
                1 => ptr::copy_nonoverlapping(from, to, count),
                _ => (0..count).for_each(|i| *to.add(i * stride) = *from.add(i)),
            }
        }
    });
}
