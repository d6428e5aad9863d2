//! Rows on a GPU, as softmax and the norms take them: who computes one.

use super::MAX_TURNS;
use super::dispatch::{Defines, fold_grid};
use crate::backend::gpu::AdapterInfo;
use crate::graph::layout::Layout;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Kernel {
    /// An invocation, which keeps it in registers.
    Registers,
    /// An invocation.
    Invocation,
    /// A workgroup of this size, which is one subgroup or talks through its memory.
    Team { width: usize, subgroup: bool, registers: bool },
    /// One of 256, with this many vec4s in each turn of a loop.
    Unrolled(usize),
}

impl Kernel {
    pub const fn team(width: usize, subgroup: bool, registers: bool) -> Kernel {
        Kernel::Team { width, subgroup, registers }
    }

    /// Whether a workgroup shares a row.
    pub fn is_team(self) -> bool {
        matches!(self, Kernel::Team { .. } | Kernel::Unrolled(_))
    }

    /// Whether the adapter has what it asks for.
    #[cfg(test)]
    pub fn runs_on(self, adapter: &AdapterInfo) -> bool {
        match self {
            Kernel::Team { width, subgroup: true, .. } => adapter.subgroup_size == Some(width as u32),
            _ => true,
        }
    }

    pub fn in_registers(self) -> bool {
        matches!(self, Kernel::Registers | Kernel::Team { registers: true, .. })
    }

    /// Invocations in a workgroup.
    pub fn width(self, software: bool) -> usize {
        match self {
            Kernel::Team { width, .. } => width,
            Kernel::Unrolled(_) => 256,
            Kernel::Registers | Kernel::Invocation if software => 8,
            Kernel::Registers | Kernel::Invocation => 64,
        }
    }

    fn unroll(self) -> usize {
        if let Kernel::Unrolled(ways) = self { ways } else { 1 }
    }

    /// Elements of a row that are taken at a time.
    fn step(self, software: bool) -> usize {
        4 * self.unroll() * if self.is_team() { self.width(software) } else { 1 }
    }

    /// How often an invocation turns for one loop over a row of `n`.
    pub fn turns(self, n: usize, software: bool) -> usize {
        if self.in_registers() { 0 } else { n.div_ceil(self.step(software)) }
    }

    /// What the templates must know of it, for rows of `n` without gaps (`dense`) that begin at `offsets`. `pairs`: fours
    /// are read as two words of 64 bits.
    pub fn defines(
        self,
        n: usize,
        [software, pairs]: [bool; 2],
        dense: bool,
        mut offsets: impl Iterator<Item = usize>,
    ) -> Defines {
        // Past the end of a row single elements may be read, but not fours.
        let vec = self.unroll() == 1
            && dense
            && n.is_multiple_of(4)
            && offsets.all(|offset| offset.is_multiple_of(4));
        let step = self.step(software);
        let subgroup = matches!(self, Kernel::Team { subgroup: true, .. });
        Defines::default()
            .value("T", "f32")
            .value("WIDTH", self.width(software))
            .value("UNROLL", self.unroll())
            .flag("TEAM", self.is_team())
            .flag("SUBGROUP", subgroup)
            .value("CHUNKS", if self.in_registers() { n.div_ceil(step) } else { 0 })
            .reads(vec, pairs)
            .flag("VEC4", vec)
            .flag("WHOLE", vec && (!self.in_registers() || n.is_multiple_of(step)))
    }
}

/// The rows of a contiguous `[outer, n, inner]`: elements of one are `inner` apart.
pub(super) struct Rows {
    pub rows: usize,
    pub n: usize,
    pub inner: usize,
    pub software: bool,
    /// The size of subgroups, where all have one.
    pub subgroup: Option<u32>,
    /// Whether fours are read as words of 64 bits.
    pub pairs: bool,
}

pub(super) type Fits = fn(&Rows) -> bool;

impl Rows {
    pub fn new(layout: &Layout, adapter: &AdapterInfo) -> Rows {
        let &[outer, n, inner] = &layout.shape[..] else { unreachable!("rows are [outer, n, inner]") };
        let software = adapter.is_software();
        Rows {
            rows: outer * inner,
            n,
            inner,
            software,
            subgroup: adapter.subgroup_size,
            pairs: adapter.pairs,
        }
    }

    /// The first kernel that fits, of those whose loops, so many over a row, software drivers let come to an end.
    pub fn first(&self, variants: &[(Kernel, Fits)], loops: usize) -> Option<Kernel> {
        let within =
            |kernel: Kernel| !self.software || loops * kernel.turns(self.n, self.software) <= MAX_TURNS;
        variants.iter().find(|(kernel, fits)| within(*kernel) && fits(self)).map(|(kernel, _)| *kernel)
    }

    pub fn grid(&self, kernel: Kernel) -> [u32; 3] {
        let each = if kernel.is_team() { 1 } else { kernel.width(self.software) };
        fold_grid(self.rows.div_ceil(each))
    }
}
