//! The elementwise language both backends understand: straight-line code over one index space.
//!
//! A [`Program`] is what a chain of elementwise ops becomes when it is fused. The GPU backend prints it as
//! WGSL, the CPU backend interprets it in cache-sized blocks.

use std::hash::{Hash, Hasher};
use std::panic::Location;

use smallvec::SmallVec;

use super::dtype::DType;
use super::layout::{Dims, Layout, collapse, numel};
use crate::backend::cpu::block;

/// Index of an instruction, which is also the name of its result.
pub type Reg = u16;

/// An elementwise operation: how its result is computed on each backend.
///
/// Rows of the table in `ops/`; the graph and the backends only follow pointers to them.
pub struct MapOp {
    /// PyTorch's name of the function.
    pub name: &'static str,
    pub arity: usize,
    /// Whether the first operand is a bool mask (`where`) while the others share one type.
    pub mask_first: bool,
    /// An expression of the operands `a`, `b`, `c`, `d`, `e`. `T` stands for the operands' type and `R` for the
    /// result's, each a scalar or a 4-vector; write constants as `T(1)`. Functions of
    /// `shaders/shared/*.wgsl` may be called.
    pub wgsl: &'static str,
    /// The same for integer and bool operands, where it differs (else empty).
    pub wgsl_int: &'static str,
    /// The CPU kernel for an operand type and a result type.
    pub cpu: BlockFns,
    /// Rough price in additions, to weigh computing twice against storing.
    pub cost: u32,
}

/// Computes a block: `out[i] = f(args[0][i], args[1][i], …)`. The slices hold native-endian elements of the
/// types asked of [`MapOp::cpu`], aligned, and of equal count.
pub type BlockFn = &'static (dyn Fn(&mut [u8], &[&[u8]]) + Send + Sync);

/// The kernel for an operand type and a result type, where there is one.
pub type BlockFns = &'static (dyn Fn(DType, DType) -> Option<BlockFn> + Send + Sync);

impl MapOp {
    /// The WGSL expression for operands of this type.
    pub fn expression(&self, operand: DType) -> &'static str {
        if operand.is_float() || self.wgsl_int.is_empty() { self.wgsl } else { self.wgsl_int }
    }
}

/// A conversion between types.
pub static CAST: MapOp = MapOp {
    name: "to",
    arity: 1,
    mask_first: false,
    wgsl: "R(a)",
    wgsl_int: "",
    cpu: &|from, to| Some(block::cast(from, to)),
    cost: 1,
};

impl std::fmt::Debug for MapOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for MapOp {
    fn eq(&self, other: &MapOp) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for MapOp {}
impl Hash for MapOp {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self).hash(state);
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Inst {
    /// Element of `loads[_]` at the current coordinate.
    Load(u16),
    /// `u32`: where the current coordinate lies in `indices[_]`. Counts elements, without touching memory.
    Index(u16),
    /// The kernel's scalar parameter of this number.
    Scalar {
        slot: u16,
        dtype: DType,
    },
    /// What the kernel's anchor (a reduction, a matrix product) computed for this element of its output.
    Anchor(DType),
    Op {
        op: &'static MapOp,
        operand: DType,
        result: DType,
        args: SmallVec<[Reg; 3]>,
    },
}

/// The lines that recorded a program's ops, for people who look at one flush ([`Plan::with_lines`](super::plan::Plan)):
/// a plan serves others too, and knows none. Programs that differ in them alone are equal.
#[derive(Clone, Default, Debug)]
pub struct Lines(Vec<(Reg, &'static Location<'static>)>);

impl Lines {
    /// The first that is said of a register holds.
    pub fn note(&mut self, reg: Reg, line: &'static Location<'static>) {
        if self.of(reg).is_none() {
            self.0.push((reg, line));
        }
    }

    pub fn of(&self, reg: Reg) -> Option<&'static Location<'static>> {
        self.0.iter().rev().find(|(r, _)| *r == reg).map(|(_, line)| *line)
    }
}

impl PartialEq for Lines {
    fn eq(&self, _: &Lines) -> bool {
        true
    }
}
impl Eq for Lines {}
impl Hash for Lines {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A tensor operand: which of the kernel's bindings, and where its elements lie in it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    pub binding: u16,
    pub dtype: DType,
    /// Over the program's `shape`.
    pub layout: Layout,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Store {
    pub value: Reg,
    pub to: Access,
}

/// Straight-line code that runs once for each coordinate of `shape`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Program {
    pub shape: Dims,
    pub insts: Vec<Inst>,
    pub loads: Vec<Access>,
    pub indices: Vec<Layout>,
    /// Which lines of the user's its instructions come from.
    pub lines: Lines,
    /// All loads of one coordinate happen before its stores, and a store may only share a binding with a load
    /// of the very same layout (an update in place) or one that touches other elements.
    pub stores: Vec<Store>,
}

impl Program {
    pub fn dtype(&self, reg: Reg) -> DType {
        match &self.insts[usize::from(reg)] {
            Inst::Load(i) => self.loads[usize::from(*i)].dtype,
            Inst::Index(_) => DType::U32,
            Inst::Scalar { dtype, .. } | Inst::Anchor(dtype) => *dtype,
            Inst::Op { result, .. } => *result,
        }
    }

    /// Whether an instruction takes this register.
    pub fn uses(&self, reg: Reg) -> bool {
        self.insts.iter().any(|inst| matches!(inst, Inst::Op { args, .. } if args.contains(&reg)))
    }

    pub fn numel(&self) -> usize {
        numel(&self.shape)
    }

    /// Merges dimensions that every operand steps through as one. `keep` splits the dimensions in two groups
    /// that are not merged with each other (a reduction's kept and reduced ones); returns the kept rank.
    pub fn collapse(&mut self, keep: usize) -> usize {
        let layouts: Vec<&mut Layout> = (self.loads.iter_mut().map(|a| &mut a.layout))
            .chain(self.stores.iter_mut().map(|s| &mut s.to.layout))
            .chain(self.indices.iter_mut())
            .collect();
        let shape = std::mem::take(&mut self.shape);
        let mut halves: [(Dims, Vec<Dims>); 2] = [
            (
                Dims::from_slice(&shape[..keep]),
                layouts.iter().map(|l| Dims::from_slice(&l.strides[..keep])).collect(),
            ),
            (
                Dims::from_slice(&shape[keep..]),
                layouts.iter().map(|l| Dims::from_slice(&l.strides[keep..])).collect(),
            ),
        ];
        for (dims, strides) in &mut halves {
            let mut strides: Vec<&mut Dims> = strides.iter_mut().collect();
            *dims = collapse(dims, &mut strides);
        }
        let [(kept, first), (reduced, second)] = halves;
        self.shape = kept.iter().chain(&reduced).copied().collect();
        for ((layout, a), b) in layouts.into_iter().zip(first).zip(second) {
            layout.shape = self.shape.clone();
            layout.strides = a.into_iter().chain(b).collect();
        }
        kept.len()
    }
}
