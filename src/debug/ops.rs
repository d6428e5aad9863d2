//! Which op of a fused kernel is wrong.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use super::diff::{Gap, gap_of};
use crate::backend::{Backend, Fault};
use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::{Binding, Body, Kernel, Reduce, Structured, Sums};
use crate::graph::layout::{Dims, Layout};
use crate::graph::observe::run_apart;
use crate::graph::program::{Access, Inst, Program, Reg, Store};

/// An op within a kernel that two backends compute differently.
#[derive(Clone, PartialEq, Debug)]
pub struct OpDiff {
    pub op: String,
    /// The line that recorded it.
    pub caller: &'static Location<'static>,
    pub gap: Gap,
    /// Whether the op differs when it runs alone, on operands that are the same. If not, it is the first whose result differs in
    /// one kernel with the ops before it: the fault lies in how they were put together.
    pub alone: bool,
}

impl fmt::Display for OpDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.alone { "by itself" } else { "only together with the ops before it" };
        let Gap { at, value, reference, .. } = self.gap;
        write!(
            f,
            "{} (at {}) differs {how}: element {at} is {value:e}, not {reference:e}",
            self.op, self.caller
        )
    }
}

/// Finds the op: each is run alone on both backends, on the reference's results of those before it. If all agree so, programs
/// are run cut short, an op longer each time.
pub(super) fn find_op(
    kernel: &Kernel,
    scalars: &[Scalar],
    before: &[Vec<u8>],
    device: &dyn Backend,
    reference: &dyn Backend,
) -> Result<Option<OpDiff>, Fault> {
    let search = Search { kernel, scalars, before, device, reference };
    match &kernel.body {
        Body::Map(jobs) => {
            for alone in [true, false] {
                for job in jobs {
                    if let Some(found) = search.program(job, None, alone)?.1 {
                        return Ok(Some(found));
                    }
                }
            }
            Ok(None)
        }
        Body::Reduce(reduce) => {
            let (values, found) = search.program(&reduce.pre, None, true)?;
            if found.is_some() {
                return Ok(found);
            }
            let Some(value) = values.get(usize::from(reduce.value)) else { return Ok(None) };
            let (sum, found) = search.reduction(reduce, value)?;
            if found.is_some() {
                return Ok(found);
            }
            if let Some(found) = search.program(&reduce.post, Some(&sum), true)?.1 {
                return Ok(Some(found));
            }
            if let Some(found) = search.program(&reduce.pre, None, false)?.1 {
                return Ok(Some(found));
            }
            Ok(search.program(&reduce.post, Some(&sum), false)?.1)
        }
        Body::Structured(call) => {
            let (result, found) = search.structured(call)?;
            if found.is_some() {
                return Ok(found);
            }
            if let Some(found) = search.program(&call.post, Some(&result), true)?.1 {
                return Ok(Some(found));
            }
            if let Some(sums) = &call.sums {
                let (result, found) = search.sums(call, sums)?;
                if found.is_some() {
                    return Ok(found);
                }
                for alone in [true, false] {
                    if let Some(found) = search.program(&sums.post, Some(&result), alone)?.1 {
                        return Ok(Some(found));
                    }
                }
            }
            for pre in &call.pre {
                if let Some(found) = search.program(&pre.program, None, false)?.1 {
                    return Ok(Some(found));
                }
            }
            if !call.pre.is_empty()
                && let Some(found) = search.with_prologues(call)?
            {
                return Ok(Some(found));
            }
            Ok(search.program(&call.post, Some(&result), false)?.1)
        }
    }
}

struct Search<'a> {
    kernel: &'a Kernel,
    scalars: &'a [Scalar],
    before: &'a [Vec<u8>],
    device: &'a dyn Backend,
    reference: &'a dyn Backend,
}

/// The reference's value of a register, over the whole of its program's shape.
type Values = Vec<Vec<u8>>;

impl Search<'_> {
    /// Goes through a program's ops. Gives the values of its registers as far as it got.
    fn program(
        &self,
        program: &Program,
        anchor: Option<&[u8]>,
        alone: bool,
    ) -> Result<(Values, Option<OpDiff>), Fault> {
        let mut values: Values = vec![];
        if program.numel() == 0 {
            return Ok((values, None));
        }
        for at in 0..program.insts.len() {
            let cut =
                if alone { self.one(program, at, &values, anchor) } else { self.prefix(program, at, anchor) };
            let (kernel, before) = cut;
            let wrote = before.len() - 1;
            let reference = run_apart(self.reference, &kernel, &before, self.scalars)?.swap_remove(wrote);
            // Loads and numbers cannot differ.
            if let Inst::Op { op, result, .. } = &program.insts[at] {
                let device = run_apart(self.device, &kernel, &before, self.scalars)?.swap_remove(wrote);
                if let Some(gap) = gap_of(*result, &device, &reference, 0).filter(Gap::differs) {
                    let caller = program.lines.of(at as Reg).unwrap_or(self.kernel.caller);
                    return Ok((values, Some(OpDiff { op: op.name.to_string(), caller, gap, alone })));
                }
            }
            values.push(reference);
        }
        Ok((values, None))
    }

    /// A kernel of one instruction, whose operands are read, and the contents of its bindings; the last is written.
    fn one(
        &self,
        program: &Program,
        at: usize,
        values: &Values,
        anchor: Option<&[u8]>,
    ) -> (Arc<Kernel>, Vec<Vec<u8>>) {
        let mut cut = Cut::new(self, &program.shape);
        let inst = match &program.insts[at] {
            Inst::Op { op, operand, result, args } => {
                let args: SmallVec<[Reg; 3]> = (args.iter())
                    .map(|&reg| cut.whole(program.dtype(reg), &values[usize::from(reg)]))
                    .collect();
                Some(Inst::Op { op, operand: *operand, result: *result, args })
            }
            other => {
                cut.leaf(self, program, other, anchor);
                None
            }
        };
        cut.program.insts.extend(inst);
        let last = cut.program.insts.len() - 1;
        cut.finish(self, last as Reg)
    }

    /// A kernel of all instructions up to one.
    fn prefix(&self, program: &Program, at: usize, anchor: Option<&[u8]>) -> (Arc<Kernel>, Vec<Vec<u8>>) {
        let mut cut = Cut::new(self, &program.shape);
        for inst in &program.insts[..=at] {
            match inst {
                Inst::Op { .. } => cut.program.insts.push(inst.clone()),
                other => cut.leaf(self, program, other, anchor),
            }
        }
        cut.finish(self, at as Reg)
    }

    /// The reduction by itself, of the reference's values.
    fn reduction(&self, reduce: &Reduce, value: &[u8]) -> Result<(Vec<u8>, Option<OpDiff>), Fault> {
        let mut cut = Cut::new(self, &reduce.pre.shape);
        cut.whole(reduce.pre.dtype(reduce.value), value);
        let kept = Dims::from_slice(&reduce.pre.shape[..reduce.kept]);
        let (pre, mut bindings, mut before) = (cut.program, cut.bindings, cut.before);
        let post = plain(&kept, reduce.dtype, &mut bindings, &mut before);
        let body = Body::Reduce(Reduce { pre, value: 0, post, ..reduce.clone() });
        self.anchor(body, bindings, before, reduce.op.name(), anchors_line(&reduce.post))
    }

    /// A structured op with a plain store behind it, its inputs in memory.
    fn structured(&self, call: &Structured) -> Result<(Vec<u8>, Option<OpDiff>), Fault> {
        let (mut bindings, mut before) = (vec![], vec![]);
        for (i, (dtype, _)) in call.inputs.iter().enumerate() {
            bindings.push(Binding { dtype: *dtype, written: false });
            match (call.binding(i), call.prologue(i)) {
                (None, Some(pre)) => {
                    let (mut values, found) = self.program(&pre.program, None, true)?;
                    if found.is_some() {
                        return Ok((vec![], found));
                    }
                    before.push(values.swap_remove(usize::from(pre.value)));
                }
                (binding, _) => before.push(self.before[binding.unwrap_or(i)].clone()),
            }
        }
        self.bare(&Structured { pre: vec![], ..call.clone() }, bindings, before)
    }

    /// The same, its inputs computed where they are read.
    fn with_prologues(&self, call: &Structured) -> Result<Option<OpDiff>, Fault> {
        let mut bindings = self.kernel.bindings.clone();
        bindings.iter_mut().for_each(|b| b.written = false);
        let found = self.bare(call, bindings, self.before.to_vec())?.1;
        Ok(found.map(|found| OpDiff { alone: false, ..found }))
    }

    fn bare(
        &self,
        call: &Structured,
        mut bindings: Vec<Binding>,
        mut before: Vec<Vec<u8>>,
    ) -> Result<(Vec<u8>, Option<OpDiff>), Fault> {
        let post = plain(&call.post.shape, call.out_dtype, &mut bindings, &mut before);
        let body = Body::Structured(Structured { post, sums: None, ..call.clone() });
        self.anchor(body, bindings, before, call.op.0.name(), anchors_line(&call.post))
    }

    /// The sums beside an op, with plain stores behind both.
    fn sums(&self, call: &Structured, sums: &Sums) -> Result<(Vec<u8>, Option<OpDiff>), Fault> {
        let mut bindings = self.kernel.bindings.clone();
        bindings.iter_mut().for_each(|b| b.written = false);
        let mut before = self.before.to_vec();
        let post = plain(&call.post.shape, call.out_dtype, &mut bindings, &mut before);
        let own = plain(&sums.post.shape, DType::F32, &mut bindings, &mut before);
        let own = Sums { post: own, ..sums.clone() };
        let body = Body::Structured(Structured { post, sums: Some(Box::new(own)), ..call.clone() });
        self.anchor(body, bindings, before, "sum", anchors_line(&sums.post))
    }

    /// Runs an anchor by itself on both; gives the reference's values.
    fn anchor(
        &self,
        body: Body,
        bindings: Vec<Binding>,
        before: Vec<Vec<u8>>,
        op: &str,
        line: Option<&'static Location<'static>>,
    ) -> Result<(Vec<u8>, Option<OpDiff>), Fault> {
        let Some(dtype) = bindings.last().map(|b| b.dtype) else { return Ok((vec![], None)) };
        let kernel = Arc::new(Kernel { body, bindings, ..self.kernel.clone() });
        let wrote = before.len() - 1;
        let device = run_apart(self.device, &kernel, &before, self.scalars)?.swap_remove(wrote);
        let reference = run_apart(self.reference, &kernel, &before, self.scalars)?.swap_remove(wrote);
        let caller = line.unwrap_or(self.kernel.caller);
        let found = gap_of(dtype, &device, &reference, 0).filter(Gap::differs);
        Ok((reference, found.map(|gap| OpDiff { op: op.to_string(), caller, gap, alone: true })))
    }
}

/// The line that recorded what a program goes on from.
fn anchors_line(post: &Program) -> Option<&'static Location<'static>> {
    let anchor = post.insts.iter().position(|i| matches!(i, Inst::Anchor(_)))?;
    post.lines.of(anchor as Reg)
}

/// A smaller kernel under construction.
struct Cut {
    program: Program,
    bindings: Vec<Binding>,
    before: Vec<Vec<u8>>,
}

impl Cut {
    fn new(_: &Search<'_>, shape: &[usize]) -> Cut {
        let program = Program { shape: Dims::from_slice(shape), ..Program::default() };
        Cut { program, bindings: vec![], before: vec![] }
    }

    fn bind(&mut self, dtype: DType, bytes: &[u8], layout: Layout) -> Inst {
        let binding = self.bindings.len() as u16;
        self.bindings.push(Binding { dtype, written: false });
        self.before.push(bytes.to_vec());
        self.program.loads.push(Access { binding, dtype, layout });
        Inst::Load(self.program.loads.len() as u16 - 1)
    }

    /// Values over the whole shape.
    fn whole(&mut self, dtype: DType, bytes: &[u8]) -> Reg {
        let layout = Layout::contiguous(&self.program.shape);
        let inst = self.bind(dtype, bytes, layout);
        self.program.insts.push(inst);
        self.program.insts.len() as Reg - 1
    }

    /// What a program reads: memory, a position, a number, the anchor's result.
    fn leaf(&mut self, search: &Search<'_>, program: &Program, inst: &Inst, anchor: Option<&[u8]>) {
        match inst {
            Inst::Load(i) => {
                let access = &program.loads[usize::from(*i)];
                let bytes = &search.before[usize::from(access.binding)];
                let known = self.program.loads.iter().position(|a| {
                    a.layout == access.layout
                        && a.dtype == access.dtype
                        && self.before[usize::from(a.binding)] == *bytes
                });
                let inst = match known {
                    Some(i) => Inst::Load(i as u16),
                    None => self.bind(access.dtype, bytes, access.layout.clone()),
                };
                self.program.insts.push(inst);
            }
            Inst::Index(i) => {
                self.program.indices.push(program.indices[usize::from(*i)].clone());
                self.program.insts.push(Inst::Index(self.program.indices.len() as u16 - 1));
            }
            Inst::Anchor(dtype) => {
                self.whole(*dtype, anchor.unwrap_or(&[]));
            }
            other => self.program.insts.push(other.clone()),
        }
    }

    fn finish(self, search: &Search<'_>, value: Reg) -> (Arc<Kernel>, Vec<Vec<u8>>) {
        let Cut { program, mut bindings, mut before } = self;
        let bytes = program.numel() * program.dtype(value).size();
        let program = stored(program, value, &mut bindings, &mut before, bytes);
        let kernel = Kernel { body: Body::Map(vec![program]), bindings, ..search.kernel.clone() };
        (Arc::new(kernel), before)
    }
}

/// A program that keeps what its anchor gives.
fn plain(shape: &Dims, dtype: DType, bindings: &mut Vec<Binding>, before: &mut Vec<Vec<u8>>) -> Program {
    let program = Program { shape: shape.clone(), insts: vec![Inst::Anchor(dtype)], ..Program::default() };
    let bytes = program.numel() * dtype.size();
    stored(program, 0, bindings, before, bytes)
}

/// The program with a register stored to a new binding, in order.
fn stored(
    mut program: Program,
    value: Reg,
    bindings: &mut Vec<Binding>,
    before: &mut Vec<Vec<u8>>,
    bytes: usize,
) -> Program {
    let dtype = program.dtype(value);
    let to = Access { binding: bindings.len() as u16, dtype, layout: Layout::contiguous(&program.shape) };
    program.stores = vec![Store { value, to }];
    bindings.push(Binding { dtype, written: true });
    before.push(vec![0; bytes]);
    program
}
