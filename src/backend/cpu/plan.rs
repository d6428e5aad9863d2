//! A [`Program`] made ready to be interpreted in cache-sized blocks: how blocks cut the index space, which
//! operands are read in place, which registers share memory, in which order things happen.

use smallvec::SmallVec;

use super::block::BlockFn;
use crate::graph::dtype::DType;
use crate::graph::kernel::Kernel;
use crate::graph::layout::{Dims, Layout, contiguous_strides};
use crate::graph::program::{Inst, Program, Reg};

/// Bytes of L1 that the registers and operands of one block may take.
const L1_BUDGET: usize = 24 << 10;
const MIN_BLOCK: usize = 256;
const MAX_BLOCK: usize = 2048;
/// A run of the innermost dimension from here on is cut into blocks of its own, so that operands with stride 1
/// are read in place whatever their outer strides are.
const LONG_RUN: usize = 256;
/// The same budget where rows of that length are taken several at a time: a little beyond L1 costs less than more blocks do.
const ROWS_BUDGET: usize = 48 << 10;

pub(super) struct Plan {
    pub shape: Dims,
    pub numel: usize,
    /// Most elements of one block.
    pub block: usize,
    /// Blocks end where the innermost dimension does. Else a block may span any stretch of the space.
    pub by_runs: bool,
    pub accesses: Vec<Access>,
    pub steps: Vec<Step>,
    /// Bytes of one element, for each register.
    pub sizes: SmallVec<[u8; 16]>,
    /// Registers that live in scratch memory: which slot.
    pub slots: SmallVec<[(Reg, u16); 16]>,
    /// Scalar parameters: register, number, dtype. Filled in once.
    pub scalars: SmallVec<[(Reg, u16, DType); 4]>,
    pub anchors: SmallVec<[Reg; 1]>,
    /// Bytes of scratch, and of one slot of it.
    pub scratch: usize,
    pub slot_bytes: usize,
    /// Rough price of one element in additions.
    pub cost: usize,
}

/// Where the elements of a load, an index or a store lie.
#[derive(Debug)]
pub(super) struct Access {
    pub binding: u16,
    pub size: usize,
    /// Of floating-point numbers.
    pub float: bool,
    pub layout: Layout,
    /// Every block is one stretch of memory.
    pub dense: bool,
    /// Blocks that begin at the same element of memory hold the same values.
    pub repeats: bool,
}

pub(super) enum Step {
    /// Point the register at memory.
    Borrow {
        reg: Reg,
        access: u16,
    },
    /// Collect a load's elements.
    Gather {
        reg: Reg,
        access: u16,
    },
    /// The positions that a layout gives.
    Index {
        reg: Reg,
        access: u16,
    },
    Op {
        run: BlockFn,
        reg: Reg,
        args: SmallVec<[Reg; 3]>,
    },
    /// The register's memory is the output itself.
    Direct {
        reg: Reg,
        access: u16,
    },
    Store {
        reg: Reg,
        access: u16,
    },
}

impl Plan {
    /// Of a program that passed [`check`]. `keep` as for [`Program::collapse`]; `live`: a register to be read after the block.
    pub fn new(program: &Program, keep: usize, live: Option<Reg>) -> Result<Plan, String> {
        let mut program = program.clone();
        program.collapse(keep);
        if program.shape.is_empty() {
            flatten_point(&mut program);
        }
        let (rank, inner) = (program.shape.len(), program.shape[program.shape.len() - 1]);
        let by_runs = rank == 1 || inner >= LONG_RUN;
        if rank > 1 && by_runs && inner <= MAX_BLOCK / 2 && by_rows(&program) {
            let plan = Plan::cut(&program, live, false, ROWS_BUDGET)?;
            if plan.block >= 2 * inner {
                return Ok(plan);
            }
        }
        Plan::cut(&program, live, by_runs, L1_BUDGET)
    }

    fn cut(program: &Program, live: Option<Reg>, by_runs: bool, budget: usize) -> Result<Plan, String> {
        let aliased = in_place(program);
        let shape = program.shape.clone();
        let numel = program.numel();
        let inner = shape[shape.len() - 1];

        let access = |binding, dtype: DType, layout: &Layout| Access {
            binding,
            size: dtype.size(),
            float: dtype.is_float(),
            dense: is_dense(layout, by_runs),
            repeats: repeats(layout, by_runs),
            layout: layout.clone(),
        };
        let accesses: Vec<Access> = (program.loads.iter().map(|a| access(a.binding, a.dtype, &a.layout)))
            .chain(program.indices.iter().map(|l| {
                let index = access(0, DType::U32, l);
                // Blocks that begin in one column count alike.
                Access { repeats: index.repeats || repeats(l, false), ..index }
            }))
            .chain(program.stores.iter().map(|s| access(s.to.binding, s.to.dtype, &s.to.layout)))
            .collect();
        let first_index = program.loads.len();
        let first_store = first_index + program.indices.len();

        // Operands updated in place are read before anything is written.
        let mut steps = vec![];
        let place = |i: u16| aliased.contains(&i);
        for (reg, inst) in program.insts.iter().enumerate() {
            if let Inst::Load(i) = inst
                && place(*i)
            {
                steps.push(Step::Gather { reg: reg as Reg, access: *i });
            }
        }
        let (mut scalars, mut anchors) = (SmallVec::new(), SmallVec::new());
        let mut cost = program.loads.len() + program.stores.len();
        for (reg, inst) in program.insts.iter().enumerate() {
            let reg = reg as Reg;
            let mut computed = true;
            let at = steps.len();
            match inst {
                Inst::Load(i) if place(*i) => computed = false,
                Inst::Load(i) if accesses[usize::from(*i)].dense => {
                    steps.push(Step::Borrow { reg, access: *i });
                    computed = false;
                }
                Inst::Load(i) => {
                    steps.push(Step::Gather { reg, access: *i });
                    computed = !accesses[usize::from(*i)].repeats;
                    cost += 2;
                }
                Inst::Index(i) => {
                    let access = first_index as u16 + i;
                    steps.push(Step::Index { reg, access });
                    computed = !accesses[usize::from(access)].repeats;
                }
                Inst::Scalar { slot, dtype } => {
                    scalars.push((reg, *slot, *dtype));
                    computed = false;
                }
                Inst::Anchor(_) => {
                    anchors.push(reg);
                    computed = false;
                }
                Inst::Op { op, operand, result, args } => {
                    let run = (op.cpu)(*operand, *result)
                        .ok_or_else(|| format!("{} has no CPU kernel from {operand} to {result}", op.name))?;
                    steps.push(Step::Op { run, reg, args: args.clone() });
                    cost += op.cost.max(1) as usize;
                }
            }
            for (i, _) in program.stores.iter().enumerate().filter(|(_, s)| s.value == reg) {
                let access = (first_store + i) as u16;
                if std::mem::take(&mut computed) && accesses[usize::from(access)].dense {
                    steps.insert(at, Step::Direct { reg, access });
                } else {
                    steps.push(Step::Store { reg, access });
                }
            }
        }

        let sizes: SmallVec<[u8; 16]> =
            (0..program.insts.len()).map(|r| program.dtype(r as Reg).size() as u8).collect();
        let (slots, count) = assign_slots(&steps, &scalars, &accesses, sizes.len(), live);
        let stretches =
            count + steps.iter().filter(|s| matches!(s, Step::Borrow { .. } | Step::Direct { .. })).count();
        let widest = usize::from(sizes.iter().copied().max().unwrap_or(4));
        let room = (budget / (stretches.max(1) * widest)).clamp(MIN_BLOCK, MAX_BLOCK) / 64 * 64;
        let block = if numel == 0 {
            1
        } else if by_runs {
            inner.div_ceil(inner.div_ceil(room)).next_multiple_of(16).min(inner)
        } else {
            // Whole rows, and of them rather a whole part or multiple of the next dimension.
            let (rows, next) = ((room / inner).max(1), shape[shape.len() - 2]);
            let rows = if rows >= next { rows / next * next } else { next.div_ceil(next.div_ceil(rows)) };
            rows * inner
        };
        // Not a power of two, so that registers do not compete for the same cache lines.
        let slot_bytes = (block * widest).next_multiple_of(64) + 64;
        let scratch = slot_bytes * count;
        Ok(Plan {
            shape,
            numel,
            block,
            by_runs,
            accesses,
            steps,
            sizes,
            slots,
            scalars,
            anchors,
            scratch,
            slot_bytes,
            cost,
        })
    }

    /// Raises `needs[binding]` to the bytes that this plan touches.
    pub fn needs(&self, needs: &mut [usize]) {
        for step in &self.steps {
            if let Step::Borrow { access, .. }
            | Step::Gather { access, .. }
            | Step::Direct { access, .. }
            | Step::Store { access, .. } = step
            {
                let access = &self.accesses[usize::from(*access)];
                let need = &mut needs[usize::from(access.binding)];
                *need = (*need).max(access.layout.end() * access.size);
            }
        }
    }

    pub fn inner(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// The coordinate of the element of this row-major number.
    pub fn coordinate(&self, mut at: usize, coordinate: &mut Dims) {
        let last = self.shape.len() - 1;
        for d in (1..=last).rev() {
            coordinate[d] = at % self.shape[d];
            at /= self.shape[d];
        }
        coordinate[0] = at;
    }
}

/// What the interpreter's unsafe code relies on, and what would be a fault of the scheduler. `anchor`: what type
/// the kernel's anchor gives to this program.
pub(super) fn check(program: &Program, kernel: &Kernel, anchor: Option<DType>) -> Result<(), String> {
    let bindings = kernel.bindings.len();
    let mut used = program.loads.iter().chain(program.stores.iter().map(|s| &s.to));
    if let Some(access) = used.find(|a| usize::from(a.binding) >= bindings) {
        return Err(format!("binding {} of {bindings}", access.binding));
    }
    let rank = program.shape.len();
    let layouts = (program.loads.iter().map(|a| &a.layout))
        .chain(program.stores.iter().map(|s| &s.to.layout))
        .chain(&program.indices);
    for layout in layouts {
        if layout.shape != program.shape || layout.strides.len() != rank {
            return Err(format!(
                "an operand of shape {:?} in a program over {:?}",
                layout.shape, program.shape
            ));
        }
    }
    for (at, inst) in program.insts.iter().enumerate() {
        let fine = match inst {
            Inst::Load(i) => usize::from(*i) < program.loads.len(),
            Inst::Index(i) => usize::from(*i) < program.indices.len(),
            Inst::Op { op, args, .. } => args.len() == op.arity && args.iter().all(|&r| usize::from(r) < at),
            Inst::Scalar { slot, .. } => usize::from(*slot) < kernel.scalars.len(),
            Inst::Anchor(dtype) => anchor == Some(*dtype),
        };
        if !fine {
            return Err(format!("instruction {at} ({inst:?}) refers to nothing"));
        }
    }
    for store in &program.stores {
        if usize::from(store.value) >= program.insts.len() || program.dtype(store.value) != store.to.dtype {
            return Err(format!("a store of register {} does not fit its type", store.value));
        }
        if program.numel() > 0 && store.to.layout.may_overlap() {
            return Err(format!("a store through overlapping {:?}", store.to.layout));
        }
    }
    Ok(())
}

/// Loads that a store of the same program overwrites.
fn in_place(program: &Program) -> SmallVec<[u16; 4]> {
    let overwritten = |binding| program.stores.iter().any(|s| s.to.binding == binding);
    (0..program.loads.len()).filter(|&i| overwritten(program.loads[i].binding)).map(|i| i as u16).collect()
}

/// Cuts a program where memory and index space run across each other (a transposed operand) into square tiles,
/// by splitting both dimensions, so that a block reads and writes whole cache lines. What remains at the edges
/// becomes programs of its own.
pub(super) fn tile(program: &Program) -> Vec<Program> {
    const SIDE: usize = 32;
    let mut program = program.clone();
    program.collapse(0);
    let last = program.shape.len().saturating_sub(1);
    let across = |layout: &Layout| {
        (0..last).find(|&d| layout.strides[d] == 1 && layout.strides[last] > 1 && layout.shape[d] >= SIDE)
    };
    let other = match program
        .loads
        .iter()
        .chain(program.stores.iter().map(|s| &s.to))
        .find_map(|a| across(&a.layout))
    {
        Some(other) if program.shape[last] >= SIDE => other,
        _ => return vec![program],
    };
    let whole = |d: usize| program.shape[d] / SIDE * SIDE;
    let part = |program: &Program, d: usize, range: std::ops::Range<usize>| {
        map_layouts(program, |layout| layout.slice(d, range.start, range.len(), 1))
    };
    let top = part(&program, other, 0..whole(other));
    let squares = map_layouts(&part(&top, last, 0..whole(last)), |layout| {
        let mut out = layout.clone();
        for d in [other, last] {
            out.shape[d] /= SIDE;
            out.strides[d] *= SIDE;
            out.shape.push(SIDE);
            out.strides.push(layout.strides[d]);
        }
        out
    });
    let right = part(&top, last, whole(last)..program.shape[last]);
    let bottom = part(&program, other, whole(other)..program.shape[other]);
    [squares, right, bottom].into_iter().filter(|p| p.numel() > 0).collect()
}

/// The program over another index space.
pub(super) fn map_layouts(program: &Program, change: impl Fn(&Layout) -> Layout) -> Program {
    let mut program = program.clone();
    let plain = change(&Layout::contiguous(&program.shape));
    let layouts = (program.loads.iter_mut().map(|a| &mut a.layout))
        .chain(program.stores.iter_mut().map(|s| &mut s.to.layout))
        .chain(&mut program.indices);
    layouts.for_each(|layout| *layout = change(layout));
    program.shape = plain.shape;
    program
}

/// A 0-dim space as one run of one element.
fn flatten_point(program: &mut Program) {
    let one = Dims::from_slice(&[1]);
    let layouts = (program.loads.iter_mut().map(|a| &mut a.layout))
        .chain(program.stores.iter_mut().map(|s| &mut s.to.layout))
        .chain(&mut program.indices);
    for layout in layouts {
        layout.shape = one.clone();
        layout.strides = one.clone();
    }
    program.shape = one;
}

fn is_dense(layout: &Layout, by_runs: bool) -> bool {
    let last = layout.rank() - 1;
    if by_runs { layout.strides[last] == 1 } else { layout.strides == contiguous_strides(&layout.shape) }
}

/// Whether rows can be taken several at a time: every operand is whole, or the same row again and again.
fn by_rows(program: &Program) -> bool {
    let mut layouts = (program.loads.iter().map(|a| &a.layout))
        .chain(program.stores.iter().map(|s| &s.to.layout))
        .chain(&program.indices);
    layouts.all(|layout| is_dense(layout, false) || repeats(layout, false))
}

fn repeats(layout: &Layout, by_runs: bool) -> bool {
    let last = layout.rank() - 1;
    if by_runs { layout.strides[last] == 0 } else { layout.strides[..last].iter().all(|&s| s == 0) }
}

/// Gives every register that needs memory of its own a slot; slots are used again after a register's last use.
fn assign_slots(
    steps: &[Step],
    scalars: &[(Reg, u16, DType)],
    accesses: &[Access],
    registers: usize,
    live: Option<Reg>,
) -> (SmallVec<[(Reg, u16); 16]>, usize) {
    let mut last_use = vec![0; registers];
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Op { args, .. } => args.iter().for_each(|&a| last_use[usize::from(a)] = at),
            Step::Store { reg, .. } => last_use[usize::from(*reg)] = at,
            _ => {}
        }
    }
    if let Some(reg) = live {
        last_use[usize::from(reg)] = usize::MAX;
    }
    let mut slots: SmallVec<[(Reg, u16); 16]> = SmallVec::new();
    let mut count = 0;
    let mut fresh = || {
        count += 1;
        count - 1
    };
    // These keep their contents from block to block.
    for (reg, ..) in scalars {
        slots.push((*reg, fresh()));
    }
    let mut kept = vec![false; registers];
    for step in steps {
        if let Step::Gather { reg, access } | Step::Index { reg, access } = step
            && accesses[usize::from(*access)].repeats
        {
            slots.push((*reg, fresh()));
            kept[usize::from(*reg)] = true;
        }
    }
    let mut free: Vec<u16> = vec![];
    let mut held: Vec<(usize, u16)> = vec![];
    let mut direct = vec![false; registers];
    for (at, step) in steps.iter().enumerate() {
        // A result may take the memory of an operand only after the step that reads it.
        held.retain(|&(end, slot)| {
            let done = end < at;
            if done {
                free.push(slot);
            }
            !done
        });
        match step {
            Step::Direct { reg, .. } => direct[usize::from(*reg)] = true,
            Step::Gather { reg, .. } | Step::Index { reg, .. } | Step::Op { reg, .. } => {
                let r = usize::from(*reg);
                if !direct[r] && !kept[r] {
                    let slot = free.pop().unwrap_or_else(&mut fresh);
                    slots.push((*reg, slot));
                    held.push((last_use[r].max(at), slot));
                }
            }
            Step::Borrow { .. } | Step::Store { .. } => {}
        }
    }
    (slots, usize::from(count))
}
