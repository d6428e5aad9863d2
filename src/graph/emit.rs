//! Emission: the programs of one kernel, from the expressions of the values that it stores.

use std::collections::HashMap;

use smallvec::{SmallVec, smallvec};

use super::dtype::DType;
use super::kernel::{Binding, Body, Kernel, Prologue, Reduce, Structured};
use super::layout::{Dims, Layout, numel};
use super::node::NodeOp;
use super::program::{Access, CAST, Inst, Program, Reg, Store};
use super::schedule::{Input, Origin, Scheduler, Step, Value, is_identity, through};

impl Scheduler<'_> {
    /// The kernel that stores `roots`, all of one part.
    pub(super) fn emit(&self, part: usize, roots: &[usize]) -> Step {
        let group = &self.groups[self.group[roots[0]]];
        // An anchor cut off from its epilogue belongs to the first part only.
        let anchor = group.anchor.filter(|&a| self.part[a] == part);
        let node = self.node(anchor.unwrap_or(roots[0]));
        let mut e = Emitter::new(self, part);
        let mut base = None;
        let body = match (&node.op, &node.inputs[..]) {
            (NodeOp::Reduce(op), [input @ Input::Value(_, layout)]) => {
                e.begin(&layout.shape, None);
                let dtype = node.dtype.opmath();
                let value = e.input(input, layout, dtype);
                let (pre, kept) = e.take(node.shape.len());
                e.shared.name(op.name());
                e.outputs(roots, &group.shape, anchor);
                let post = e.take(0).0;
                Body::Reduce(Reduce { op: *op, dtype, pre, value, kept, post })
            }
            (NodeOp::Structured(op), inputs) => {
                let (mut reads, mut computed) = (vec![], vec![]);
                for input in inputs {
                    if let Input::Value(value, layout) = input {
                        let dtype = self.dtype(*value);
                        match *value {
                            Value::Node(p) if self.is_map(p) && !self.stored[p] => {
                                computed.push((reads.len(), p));
                            }
                            // One binding for each input, even where two are one buffer: kernels count them.
                            value => drop(e.shared.push_binding(value, dtype, false)),
                        }
                        reads.push((dtype, layout.clone()));
                    }
                }
                let mut pre = vec![];
                for (input, p) in computed {
                    let shape = &self.node(p).shape;
                    e.begin(shape, None);
                    let value = e.compute(p, &Layout::contiguous(shape));
                    pre.push(Prologue { input, program: e.take(0).0, value });
                }
                e.shared.name(op.0.name());
                e.outputs(roots, &group.shape, anchor);
                Body::Structured(Structured {
                    op: op.clone(),
                    inputs: reads,
                    pre,
                    out_shape: node.shape.clone(),
                    out_dtype: node.dtype.opmath(),
                    post: e.take(0).0,
                    sums: None,
                })
            }
            (NodeOp::Write(to), [Input::Value(old, _), value]) => {
                base = Some(*old);
                e.begin(&to.shape, None);
                let view = match value {
                    Input::Value(_, layout) | Input::Index(layout) => layout,
                    Input::Scalar(_) => to,
                };
                let reg = e.input(value, view, node.dtype);
                e.store(reg, Value::Node(roots[0]), node.dtype, to.clone());
                e.shared.name("write");
                Body::Map(vec![e.take(0).0])
            }
            _ => {
                e.outputs(roots, &group.shape, None);
                Body::Map(vec![e.take(0).0])
            }
        };
        let origin = Origin { insts: e.origins, anchor: anchor.map(|a| a as u32) };
        let Shared { values, bindings, scalars, scalar_types, label } = e.shared;
        let caller = roots.last().map_or(node.caller, |&r| self.node(r).caller);
        let kernel = Kernel { body, bindings, scalars: scalar_types, label, caller };
        Step { kernel, values, scalars, base, origin }
    }
}

/// What the programs of one kernel have in common.
#[derive(Default)]
struct Shared {
    values: Vec<Value>,
    bindings: Vec<Binding>,
    scalars: Vec<usize>,
    scalar_types: Vec<DType>,
    label: String,
}

impl Shared {
    fn push_binding(&mut self, value: Value, dtype: DType, written: bool) -> u16 {
        self.values.push(value);
        self.bindings.push(Binding { dtype, written });
        (self.values.len() - 1) as u16
    }

    fn binding(&mut self, value: Value, dtype: DType, written: bool) -> u16 {
        match self.values.iter().position(|&v| v == value) {
            Some(i) => i as u16,
            None => self.push_binding(value, dtype, written),
        }
    }

    fn scalar(&mut self, index: usize, dtype: DType) -> u16 {
        let known = self.scalars.iter().zip(&self.scalar_types).position(|(&s, &t)| s == index && t == dtype);
        known.unwrap_or_else(|| {
            self.scalars.push(index);
            self.scalar_types.push(dtype);
            self.scalars.len() - 1
        }) as u16
    }

    fn name(&mut self, name: &str) {
        if self.label.len() > 60 {
            return;
        }
        if !self.label.is_empty() {
            self.label.push('_');
        }
        self.label.push_str(name);
    }
}

/// Builds a kernel's programs by walking expressions from their roots to what is stored.
struct Emitter<'s, 'g> {
    s: &'s Scheduler<'g>,
    part: usize,
    shared: Shared,
    program: Program,
    anchor: Option<usize>,
    memo: HashMap<(usize, Layout), Reg>,
    known: HashMap<Inst, Reg>,
    /// The nodes of the program's instructions, and of those of programs before it.
    origin: Vec<Option<u32>>,
    origins: Vec<Vec<Option<u32>>>,
}

impl<'s, 'g> Emitter<'s, 'g> {
    fn new(s: &'s Scheduler<'g>, part: usize) -> Self {
        Emitter {
            s,
            part,
            shared: Shared::default(),
            program: Program::default(),
            anchor: None,
            memo: HashMap::new(),
            known: HashMap::new(),
            origin: vec![],
            origins: vec![],
        }
    }

    fn begin(&mut self, shape: &[usize], anchor: Option<usize>) {
        self.program = Program { shape: Dims::from_slice(shape), ..Program::default() };
        self.anchor = anchor;
        self.memo.clear();
        self.known.clear();
    }

    /// The program so far, with its dimensions merged (the first `keep` and the others apart), and how many
    /// are left of the first.
    fn take(&mut self, keep: usize) -> (Program, usize) {
        let mut program = std::mem::take(&mut self.program);
        self.origins.push(std::mem::take(&mut self.origin));
        let kept = program.collapse(keep);
        (program, kept)
    }

    fn outputs(&mut self, roots: &[usize], shape: &[usize], anchor: Option<usize>) {
        self.begin(shape, anchor);
        for &root in roots {
            let node = self.s.node(root);
            let whole = Layout::contiguous(shape);
            let reg = if Some(root) == anchor {
                self.push(Inst::Anchor(node.dtype.opmath()))
            } else {
                self.compute(root, &whole)
            };
            self.store(reg, Value::Node(root), node.dtype, whole);
        }
    }

    fn store(&mut self, value: Reg, to: Value, dtype: DType, layout: Layout) {
        let value = self.converted(value, dtype);
        let binding = self.shared.binding(to, dtype, true);
        self.program.stores.push(Store { value, to: Access { binding, dtype, layout } });
    }

    /// One instruction, unless the program has it already.
    fn push(&mut self, inst: Inst) -> Reg {
        if let Some(&reg) = self.known.get(&inst) {
            return reg;
        }
        let reg = self.program.insts.len() as Reg;
        self.program.insts.push(inst.clone());
        self.origin.push(None);
        self.known.insert(inst, reg);
        reg
    }

    /// A register's value in another type. Halves are computed in single precision, and rounded when they are stored
    /// or a program asks for it.
    fn converted(&mut self, reg: Reg, result: DType) -> Reg {
        let operand = self.program.dtype(reg);
        if operand == result {
            return reg;
        }
        self.push(Inst::Op { op: &CAST, operand, result, args: smallvec![reg] })
    }

    /// An operand as `dtype`, read through `view` over the program's shape.
    fn input(&mut self, input: &Input, view: &Layout, dtype: DType) -> Reg {
        let reg = self.operand(input, view, dtype);
        self.converted(reg, dtype)
    }

    fn operand(&mut self, input: &Input, view: &Layout, dtype: DType) -> Reg {
        match input {
            Input::Scalar(index) => {
                let dtype = dtype.opmath();
                let slot = self.shared.scalar(*index, dtype);
                self.push(Inst::Scalar { slot, dtype })
            }
            Input::Index(_) => {
                let i = position_or_push(&mut self.program.indices, view.clone());
                self.push(Inst::Index(i))
            }
            Input::Value(Value::Node(p), _) if self.anchor == Some(*p) => {
                self.push(Inst::Anchor(self.s.node(*p).dtype.opmath()))
            }
            Input::Value(Value::Node(p), _) if self.computes(*p, view) => self.compute(*p, view),
            Input::Value(value, _) => {
                let dtype = self.s.dtype(*value);
                let binding = self.shared.binding(*value, dtype, false);
                let access = Access { binding, dtype, layout: view.clone() };
                let i = position_or_push(&mut self.program.loads, access);
                self.push(Inst::Load(i))
            }
        }
    }

    /// Whether a value is computed here rather than loaded.
    fn computes(&self, p: usize, view: &Layout) -> bool {
        let own_root = self.s.is_map(p)
            && self.s.part[p] == self.part
            && is_identity(view, numel(&self.s.node(p).shape));
        !self.s.stored[p] || own_root
    }

    fn compute(&mut self, p: usize, view: &Layout) -> Reg {
        if let Some(&reg) = self.memo.get(&(p, view.clone())) {
            return reg;
        }
        let s = self.s;
        let node = s.node(p);
        let NodeOp::Map { op, operand } = node.op else {
            unreachable!("only elementwise values are computed within another kernel")
        };
        // A conversion is between the very types that it names.
        let (operand, result) = match op == &CAST {
            true => (operand, node.dtype),
            false => (operand.opmath(), node.dtype.opmath()),
        };
        let n = numel(&node.shape);
        let mut args = SmallVec::new();
        for (k, input) in node.inputs.iter().enumerate() {
            let dtype = if op.mask_first && k == 0 { DType::Bool } else { operand };
            let view = match input {
                Input::Value(_, l) | Input::Index(l) => {
                    through(view, n, l).expect("checked when the value was chosen to be computed here")
                }
                Input::Scalar(_) => view.clone(),
            };
            args.push(self.input(input, &view, dtype));
        }
        self.shared.name(op.name);
        let reg = self.push(Inst::Op { op, operand, result, args });
        self.origin[usize::from(reg)].get_or_insert(p as u32);
        self.memo.insert((p, view.clone()), reg);
        reg
    }
}

fn position_or_push<T: PartialEq>(list: &mut Vec<T>, item: T) -> u16 {
    let i = list.iter().position(|x| *x == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    });
    i as u16
}
