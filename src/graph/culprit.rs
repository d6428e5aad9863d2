//! Which op of a kernel made NaN (or infinity) of numbers: the kernel's programs are evaluated once more on the CPU, for
//! the one element in question, with every instruction's result stored; from the bad result the way leads back through
//! bad operands to the first instruction that had none.

use std::sync::Arc;

use super::device::cpu;
use super::dtype::{DType, Scalar};
use super::kernel::{Binding, Body, Kernel, Reduce, Structured};
use super::layout::{Dims, Layout};
use super::observe::run_apart;
use super::program::{Access, Inst, Lines, Program, Reg, Store};
use super::schedule::Origin;
use crate::backend::Fault;
use crate::error::ErrorKind;

/// A kernel with what it reads.
pub(super) struct Scene<'a> {
    pub kernel: &'a Kernel,
    pub origin: &'a Origin,
    /// The bytes behind each binding.
    pub before: &'a [Vec<u8>],
    pub scalars: &'a [Scalar],
}

/// A bad number among what a kernel stored.
pub(super) struct Place {
    /// The program that stored it, and the number of its store.
    program: usize,
    store: usize,
    /// Which coordinate.
    point: usize,
    pub binding: usize,
    /// NaN, else infinity.
    pub nan: bool,
}

/// Where a bad number comes from.
pub(super) enum Source {
    /// This node made it of numbers that are not bad.
    Made(Option<u32>),
    /// It was among the kernel's operands: in this binding, or given as a number. `by`: the node that reads it.
    Given { binding: Option<usize>, by: Option<u32> },
    /// The CPU does not find it.
    Unknown,
}

/// The programs that store, with their numbers among the kernel's.
fn storing(kernel: &Kernel) -> Vec<(usize, &Program)> {
    match &kernel.body {
        Body::Map(programs) => programs.iter().enumerate().collect(),
        Body::Reduce(r) => vec![(1, &r.post)],
        Body::Structured(s) => vec![(s.pre.len(), &s.post)],
    }
}

/// The first bad number of each store.
pub(super) fn bad_places(kernel: &Kernel, after: &[Vec<u8>], inf: bool) -> Vec<Place> {
    let mut out = vec![];
    for (program, code) in storing(kernel) {
        for (store, Store { to, .. }) in code.stores.iter().enumerate() {
            let binding = usize::from(to.binding);
            let find = |nan: bool| {
                let point = first_bad(&to.layout, to.dtype, after.get(binding)?, nan)?;
                Some(Place { program, store, point, binding, nan })
            };
            out.extend(find(true).or_else(|| if inf { find(false) } else { None }));
        }
    }
    // NaN first: it is always an error.
    out.sort_by_key(|place| !place.nan);
    out
}

fn is_bad(value: f64, nan: bool) -> bool {
    if nan { value.is_nan() } else { value.is_infinite() }
}

/// One element as a number.
fn number(dtype: DType, bytes: &[u8], at: usize) -> f64 {
    let element = bytes.get(at * dtype.size()..(at + 1) * dtype.size()).unwrap_or(&[]);
    dtype.numbers(element).first().copied().unwrap_or(0.0)
}

/// The number of the first coordinate at which there is a bad number.
fn first_bad(layout: &Layout, dtype: DType, bytes: &[u8], nan: bool) -> Option<usize> {
    if !dtype.is_float() {
        return None;
    }
    let mut coordinate = Dims::from_elem(0, layout.rank());
    let mut at = layout.offset;
    (0..layout.numel()).find(|_| {
        let found = is_bad(number(dtype, bytes, at), nan);
        for d in (0..layout.rank()).rev() {
            coordinate[d] += 1;
            at += layout.strides[d];
            if coordinate[d] < layout.shape[d] {
                break;
            }
            coordinate[d] = 0;
            at -= layout.shape[d] * layout.strides[d];
        }
        found
    })
}

/// Where in memory the coordinate of this number lies.
fn position(layout: &Layout, mut point: usize) -> usize {
    let mut at = layout.offset;
    for d in (0..layout.rank()).rev() {
        let size = layout.shape[d].max(1);
        at += point % size * layout.strides[d];
        point /= size;
    }
    at
}

/// One element, wherever it lies.
fn one(offset: usize) -> Layout {
    Layout { shape: Dims::from_slice(&[1]), strides: Dims::from_slice(&[1]), offset }
}

pub(super) fn source(scene: &Scene<'_>, place: &Place) -> Result<Source, Fault> {
    match &scene.kernel.body {
        Body::Map(programs) => {
            let code = &programs[place.program];
            let way =
                trace(scene, code, place.program, place.point, code.stores[place.store].value, None, place)?;
            Ok(way.into_source())
        }
        Body::Reduce(r) => in_reduction(scene, r, place),
        Body::Structured(s) => in_structured(scene, s, place),
    }
}

/// Where a way back ends.
enum Way {
    Ends(Source),
    /// At the reduction or the structured op before this program.
    Anchor,
}

impl Way {
    fn into_source(self) -> Source {
        match self {
            Way::Ends(source) => source,
            Way::Anchor => Source::Unknown,
        }
    }
}

/// Goes back from a register at one coordinate of a program.
fn trace(
    scene: &Scene<'_>,
    code: &Program,
    number_of_program: usize,
    point: usize,
    from: Reg,
    anchor: Option<&[u8]>,
    place: &Place,
) -> Result<Way, Fault> {
    let values = registers(scene, code, point, anchor)?;
    let bad = |reg: Reg| is_bad(values[usize::from(reg)], place.nan);
    if !bad(from) {
        return Ok(Way::Ends(Source::Unknown));
    }
    let node = |reg: Reg| *scene.origin.insts.get(number_of_program)?.get(usize::from(reg))?;
    let (mut reg, mut by) = (from, None);
    loop {
        match &code.insts[usize::from(reg)] {
            Inst::Op { args, .. } => {
                by = node(reg).or(by);
                match args.iter().copied().find(|&a| bad(a)) {
                    Some(arg) => reg = arg,
                    None => return Ok(Way::Ends(Source::Made(by))),
                }
            }
            Inst::Load(i) => {
                let binding = Some(usize::from(code.loads[usize::from(*i)].binding));
                return Ok(Way::Ends(Source::Given { binding, by }));
            }
            Inst::Anchor(_) => return Ok(Way::Anchor),
            Inst::Scalar { .. } | Inst::Index(_) => {
                return Ok(Way::Ends(Source::Given { binding: None, by }));
            }
        }
    }
}

/// What every register of a program holds at one coordinate.
fn registers(
    scene: &Scene<'_>,
    code: &Program,
    point: usize,
    anchor: Option<&[u8]>,
) -> Result<Vec<f64>, Fault> {
    let mut inputs: Vec<(DType, Vec<u8>)> = (code.loads.iter())
        .map(|load| {
            let (size, at) = (load.dtype.size(), position(&load.layout, point));
            let bytes = scene.before.get(usize::from(load.binding)).map_or(&[][..], |b| b);
            (load.dtype, bytes.get(at * size..(at + 1) * size).unwrap_or(&[]).to_vec())
        })
        .collect();
    let behind = inputs.len() as u16;
    let mut insts = code.insts.clone();
    for inst in &mut insts {
        if let Inst::Anchor(dtype) = inst {
            if inputs.len() == usize::from(behind) {
                inputs.push((*dtype, anchor.unwrap_or(&[]).to_vec()));
            }
            *inst = Inst::Load(behind);
        }
    }
    let load = |(i, (dtype, _)): (usize, &(DType, Vec<u8>))| Access {
        binding: i as u16,
        dtype: *dtype,
        layout: one(0),
    };
    let mut evaluated = Program {
        shape: Dims::from_slice(&[1]),
        insts,
        loads: inputs.iter().enumerate().map(load).collect(),
        indices: code.indices.iter().map(|l| one(position(l, point))).collect(),
        stores: vec![],
        lines: Lines::default(),
    };
    let types: Vec<DType> = (0..evaluated.insts.len()).map(|r| evaluated.dtype(r as Reg)).collect();
    for (r, &dtype) in types.iter().enumerate() {
        let to = Access { binding: (inputs.len() + r) as u16, dtype, layout: one(0) };
        evaluated.stores.push(Store { value: r as Reg, to });
    }
    let bytes: Vec<(DType, &[u8])> = inputs.iter().map(|(dtype, bytes)| (*dtype, &bytes[..])).collect();
    let outputs: Vec<(DType, usize)> = types.iter().map(|&dtype| (dtype, 1)).collect();
    let results = run(scene, Body::Map(vec![evaluated]), &bytes, &outputs)?;
    Ok(types.iter().zip(&results).map(|(&dtype, bytes)| number(dtype, bytes, 0)).collect())
}

/// Runs a body on the CPU, on these inputs, and gives its outputs, whose bindings come behind.
fn run(
    scene: &Scene<'_>,
    body: Body,
    inputs: &[(DType, &[u8])],
    outputs: &[(DType, usize)],
) -> Result<Vec<Vec<u8>>, Fault> {
    let written = |written: bool| move |dtype: DType| Binding { dtype, written };
    let bindings = (inputs.iter().map(|i| written(false)(i.0)))
        .chain(outputs.iter().map(|o| written(true)(o.0)))
        .collect();
    let kernel = Kernel {
        body,
        bindings,
        scalars: scene.kernel.scalars.clone(),
        label: scene.kernel.label.clone(),
        caller: scene.kernel.caller,
    };
    let before: Vec<Vec<u8>> = (inputs.iter().map(|(_, bytes)| bytes.to_vec()))
        .chain(outputs.iter().map(|(dtype, count)| vec![0; dtype.size() * count]))
        .collect();
    let mut after = run_apart(cpu().backend(), &Arc::new(kernel), &before, scene.scalars)?;
    Ok(after.split_off(inputs.len()))
}

/// All of a kernel's bindings, as inputs.
fn all_inputs<'a>(scene: &'a Scene<'_>) -> Vec<(DType, &'a [u8])> {
    scene.kernel.bindings.iter().zip(scene.before).map(|(b, bytes)| (b.dtype, &bytes[..])).collect()
}

fn in_reduction(scene: &Scene<'_>, r: &Reduce, place: &Place) -> Result<Source, Fault> {
    // The values that go into this one output.
    let kept = |layout: &Layout| Layout {
        shape: Dims::from_slice(&layout.shape[..r.kept]),
        strides: Dims::from_slice(&layout.strides[..r.kept]),
        offset: layout.offset,
    };
    let rest = |layout: &Layout| Layout {
        shape: Dims::from_slice(&layout.shape[r.kept..]),
        strides: Dims::from_slice(&layout.strides[r.kept..]),
        offset: position(&kept(layout), place.point),
    };
    let mut pre = r.pre.clone();
    pre.shape = Dims::from_slice(&r.pre.shape[r.kept..]);
    pre.loads.iter_mut().for_each(|a| a.layout = rest(&a.layout));
    pre.indices.iter_mut().for_each(|l| *l = rest(l));
    let inputs = all_inputs(scene);
    let to = |layout: Layout| Access { binding: inputs.len() as u16, dtype: r.dtype, layout };
    let whole = Program {
        shape: Dims::from_slice(&[1]),
        insts: vec![Inst::Anchor(r.dtype)],
        stores: vec![Store { value: 0, to: to(one(0)) }],
        ..Program::default()
    };
    let reduced = Reduce { pre: pre.clone(), kept: 0, post: whole, ..r.clone() };
    let anchor = run(scene, Body::Reduce(reduced), &inputs, &[(r.dtype, 1)])?.swap_remove(0);
    let from = r.post.stores[place.store].value;
    match trace(scene, &r.post, 1, place.point, from, Some(&anchor), place)? {
        Way::Ends(source) => return Ok(source),
        Way::Anchor => {}
    }
    let count = pre.numel();
    let values = Layout::contiguous(&pre.shape);
    // Values of another type are converted as they are combined.
    let dtype = pre.dtype(r.value);
    pre.stores = vec![Store { value: r.value, to: Access { dtype, ..to(values) } }];
    let values = run(scene, Body::Map(vec![pre]), &inputs, &[(dtype, count)])?.swap_remove(0);
    match first_bad(&Layout::contiguous(&[count]), dtype, &values, place.nan) {
        // The values are fine, and what became of them is not.
        None => Ok(Source::Made(scene.origin.anchor)),
        Some(q) => {
            let way = trace(scene, &r.pre, 0, place.point * count + q, r.value, None, place)?.into_source();
            Ok(match way {
                Source::Given { binding, by: None } => Source::Given { binding, by: scene.origin.anchor },
                way => way,
            })
        }
    }
}

fn in_structured(scene: &Scene<'_>, s: &Structured, place: &Place) -> Result<Source, Fault> {
    let computed = (s.pre.iter())
        .map(|pre| {
            let (dtype, count) = (pre.program.dtype(pre.value), pre.program.numel());
            let inputs = all_inputs(scene);
            let layout = Layout::contiguous(&pre.program.shape);
            let to = Access { binding: inputs.len() as u16, dtype, layout };
            let stores = vec![Store { value: pre.value, to }];
            let program = Program { stores, ..pre.program.clone() };
            Ok(run(scene, Body::Map(vec![program]), &inputs, &[(dtype, count)])?.swap_remove(0))
        })
        .collect::<Result<Vec<_>, Fault>>()?;
    let bytes = |i: usize| match s.binding(i) {
        Some(binding) => scene.before.get(binding),
        None => s.pre.iter().position(|pre| pre.input == i).map(|at| &computed[at]),
    };
    let inputs: Vec<(DType, &[u8])> = (s.inputs.iter().enumerate())
        .map(|(i, (dtype, _))| (*dtype, bytes(i).map_or(&[][..], |bytes| bytes)))
        .collect();
    let layout = Layout::contiguous(&s.out_shape);
    let count = layout.numel();
    let to = Access { binding: inputs.len() as u16, dtype: s.out_dtype, layout };
    let plain = Program {
        shape: s.out_shape.clone(),
        insts: vec![Inst::Anchor(s.out_dtype)],
        stores: vec![Store { value: 0, to }],
        ..Program::default()
    };
    let bare = Structured { pre: vec![], post: plain, sums: None, ..s.clone() };
    let results = run(scene, Body::Structured(bare), &inputs, &[(s.out_dtype, count)])?.swap_remove(0);
    let size = s.out_dtype.size();
    let anchor = results.get(place.point * size..(place.point + 1) * size);
    let anchor = anchor.ok_or_else(|| Fault {
        kind: ErrorKind::Backend,
        message: "an epilogue over other elements than its op's".into(),
        command: None,
    })?;
    let from = s.post.stores[place.store].value;
    match trace(scene, &s.post, s.pre.len(), place.point, from, Some(anchor), place)? {
        Way::Ends(source) => Ok(source),
        Way::Anchor => {
            let bad = |(i, (dtype, layout)): (usize, &(DType, Layout))| {
                first_bad(layout, *dtype, inputs[i].1, place.nan).map(|point| (i, position(layout, point)))
            };
            let Some((i, at)) = s.inputs.iter().enumerate().find_map(bad) else {
                return Ok(Source::Made(scene.origin.anchor));
            };
            let Some(number) = s.pre.iter().position(|pre| pre.input == i) else {
                return Ok(Source::Given { binding: s.binding(i), by: scene.origin.anchor });
            };
            let pre = &s.pre[number];
            let way = trace(scene, &pre.program, number, at, pre.value, None, place)?.into_source();
            Ok(match way {
                Source::Given { binding, by: None } => Source::Given { binding, by: scene.origin.anchor },
                way => way,
            })
        }
    }
}
