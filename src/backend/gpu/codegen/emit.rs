//! Prints a [`Program`] as WGSL, one or four elements at a time.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use crate::graph::dtype::DType;
use crate::graph::layout::{Dims, Layout};
use crate::graph::program::{Access, Inst, Program, Reg};

use super::super::template::Library;

/// What an element is in registers.
pub fn register_type(dtype: DType, wide: bool) -> &'static str {
    match (dtype, wide) {
        (DType::Bool, false) => "bool",
        (DType::Bool, true) => "vec4<bool>",
        (DType::F16, _) => register_type(DType::F32, wide),
        _ => storage_type(dtype, wide),
    }
}

/// What an element is in buffers. (`f64` never gets here: `generate` turns it away.)
pub fn storage_type(dtype: DType, wide: bool) -> &'static str {
    match (dtype, wide) {
        (DType::F16, false) => "f16",
        (DType::F16, true) => "vec2<u32>",
        (DType::F32 | DType::F64, false) => "f32",
        (DType::F32 | DType::F64, true) => "vec4<f32>",
        (DType::I32, false) => "i32",
        (DType::I32, true) => "vec4<i32>",
        (DType::U32 | DType::Bool, false) => "u32",
        (DType::U32 | DType::Bool, true) => "vec4<u32>",
    }
}

/// What an element of a buffer is once it is read.
fn loaded_type(dtype: DType, wide: bool) -> &'static str {
    if dtype == DType::F16 { register_type(dtype, wide) } else { storage_type(dtype, wide) }
}

/// A buffer as the shader declares it.
#[derive(Clone, Default, Debug)]
pub struct Buffer {
    pub name: String,
    /// Declared as an array of fours.
    pub wide: bool,
    /// Those fours are `vec2<u64>`, not `vec4<…>`: software adapters pay for each word that a lane reads or writes,
    /// whatever its size. (Four halves are two words of 32 bits in any case.)
    pub pairs: bool,
}

impl Buffer {
    /// The type of the array's elements.
    pub fn element_type(&self, dtype: DType) -> &'static str {
        let pairs = self.wide && self.pairs && dtype != DType::F16;
        if pairs { "vec2<u64>" } else { storage_type(dtype, self.wide) }
    }

    /// The `vec4` at a place of a wide buffer.
    fn load_four(&self, at: &str, dtype: DType) -> String {
        match (dtype, self.pairs) {
            (DType::F16, _) => format!("from_halves({}[{at}])", self.name),
            (_, true) => format!("bitcast<{}>(from_pairs({}[{at}]))", storage_type(dtype, true), self.name),
            (_, false) => format!("{}[{at}]", self.name),
        }
    }

    /// One of its elements, by position.
    fn load_one(&self, at: &str, dtype: DType) -> String {
        if self.wide {
            return format!("{}[({at}) % 4u]", self.load_four(&format!("({at}) / 4u"), dtype));
        }
        match dtype {
            DType::F16 => format!("f32({}[{at}])", self.name),
            _ => format!("{}[{at}]", self.name),
        }
    }

    /// The statement that writes a `vec4`.
    fn store_four(&self, at: &str, value: &str, dtype: DType) -> String {
        match (dtype, self.pairs) {
            (DType::F16, _) => format!("{}[{at}] = to_halves({value});", self.name),
            (_, true) => format!("{}[{at}] = to_pairs(bitcast<vec4<u32>>({value}));", self.name),
            (_, false) => format!("{}[{at}] = {value};", self.name),
        }
    }

    /// The statement that writes one element. (A buffer of pairs, or of fours of halves, has no such stores: two
    /// invocations must not share a word.)
    fn store_one(&self, at: &str, value: &str, dtype: DType) -> String {
        match (self.wide, dtype) {
            (true, _) => format!("{}[({at}) / 4u][({at}) % 4u] = {value};", self.name),
            (false, DType::F16) => format!("{}[{at}] = f16(to_half({value}));", self.name),
            (false, _) => format!("{}[{at}] = {value};", self.name),
        }
    }

    /// Notes that some store writes single elements, or part of a four.
    pub fn store_singles(&mut self, dtype: DType) {
        self.pairs = false;
        self.wide &= dtype != DType::F16;
    }
}

/// Numbers that the host gives with each dispatch, so that kernels which differ in them share a pipeline.
#[derive(Default)]
pub struct Numbers {
    pub words: Vec<u32>,
    /// Print numbers as they are instead (an epilogue: its template owns the parameters).
    pub baked: bool,
}

impl Numbers {
    pub fn add(&mut self, value: u32) -> String {
        if self.baked {
            return format!("{value}u");
        }
        self.words.push(value);
        word("params", self.words.len() - 1)
    }
}

/// A run of dimensions whose coordinates come out of one linear index.
pub struct Group {
    pub dims: Range<usize>,
    pub index: String,
}

/// Where in a program's shape the code being printed stands.
pub struct Space<'a> {
    pub shape: &'a [usize],
    /// The dimension of which the code takes four elements at once. Coordinates count fours along it.
    pub vector: Option<usize>,
    pub groups: Vec<Group>,
    /// Coordinates that loops provide, by dimension.
    pub loops: HashMap<usize, String>,
    /// Another that need not be found from its group's index.
    pub known: Option<(usize, String)>,
}

/// How four neighbours along the vector dimension lie in memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Four {
    /// One aligned `vec4`.
    Together,
    /// One element for all.
    Same,
    Apart(usize),
}

pub fn four(layout: &Layout, vector: usize) -> Four {
    let aligned = || {
        layout.offset.is_multiple_of(4)
            && (0..layout.rank())
                .all(|d| d == vector || layout.shape[d] == 1 || layout.strides[d].is_multiple_of(4))
    };
    match layout.strides[vector] {
        0 => Four::Same,
        1 if aligned() => Four::Together,
        stride => Four::Apart(stride),
    }
}

/// Whether four neighbours along `vector` may be handled as one: the dimension divides by four, or is the
/// only one (then the last four is cut short).
pub fn divides(shape: &[usize], vector: usize) -> bool {
    shape[vector].is_multiple_of(4) || shape.len() == 1
}

/// Whether a program whose last dimension is taken by fours can store them as such.
pub fn stores_by_four(program: &Program) -> bool {
    program.shape.len().checked_sub(1).is_some_and(|last| {
        divides(&program.shape, last)
            && program.stores.iter().all(|s| four(&s.to.layout, last) == Four::Together)
    })
}

/// What the sums in a program are made of, to find those in which a term may cancel: a driver would cancel it
/// though it is infinite, NaN, or lost in rounding.
#[derive(Default)]
struct Sums {
    terms: HashMap<usize, Terms>,
}

/// Registers, and whether they are subtracted.
type Terms = SmallVec<[(Reg, bool); 8]>;

impl Sums {
    /// Terms of one sum that are looked at; drivers do not look further either.
    const MOST: usize = 8;

    fn of(&self, reg: Reg, negated: bool) -> Terms {
        let terms = self.terms.get(&usize::from(reg)).cloned().unwrap_or_else(|| smallvec![(reg, false)]);
        terms.into_iter().map(|(term, sign)| (term, sign != negated)).collect()
    }

    /// Whether the instruction `at` is a sum or difference of two in which a term has both signs.
    fn cancels(&mut self, at: usize, op: &str, args: &[Reg]) -> bool {
        match (op, args) {
            ("neg", &[a]) => {
                self.terms.insert(at, self.of(a, true));
                false
            }
            ("add" | "sub", &[a, b]) => {
                let (mut all, b) = (self.of(a, false), self.of(b, op == "sub"));
                let cancels = b.iter().any(|&(term, sign)| all.contains(&(term, !sign)));
                all.extend(b);
                if all.len() <= Sums::MOST {
                    self.terms.insert(at, all);
                }
                cancels
            }
            _ => false,
        }
    }
}

/// Text under construction.
pub struct Printer<'a> {
    pub out: String,
    pub indent: usize,
    pub numbers: Numbers,
    pub buffers: Vec<Buffer>,
    pub library: &'a Library,
    /// Look at the floating-point numbers that are stored.
    pub looks: bool,
    names: usize,
    /// Loops' strides that are parameters.
    strides: Vec<(usize, String)>,
}

impl<'a> Printer<'a> {
    pub fn new(library: &'a Library, buffers: Vec<Buffer>) -> Printer<'a> {
        Printer {
            out: String::new(),
            indent: 1,
            numbers: Numbers::default(),
            buffers,
            library,
            looks: false,
            names: 0,
            strides: vec![],
        }
    }

    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{:1$}{text}", "", self.indent * 4);
    }

    /// A line that opens a block.
    pub fn open(&mut self, text: &str) {
        self.line(text);
        self.indent += 1;
    }

    pub fn close(&mut self) {
        self.indent -= 1;
        self.line("}");
    }

    pub fn name(&mut self, stem: &str) -> String {
        self.names += 1;
        format!("{stem}{}", self.names)
    }

    /// Prints reads of the scalars that `program` uses.
    pub fn scalars(&mut self, program: &Program) {
        let slot = |inst: &Inst| if let Inst::Scalar { slot, .. } = inst { Some(*slot) } else { None };
        let rows: BTreeSet<u16> = program.insts.iter().filter_map(slot).map(|slot| slot / 4).collect();
        rows.into_iter().for_each(|number| self.line(&row("scalars", number.into())));
    }

    /// Prints `program`'s instructions and returns their registers' names. `anchor` is what `Inst::Anchor` is.
    pub fn program(&mut self, program: &Program, space: &Space, anchor: &str) -> Vec<String> {
        let mut scope = Scope::new(space);
        let wide = space.vector.is_some();
        let mut registers: Vec<String> = vec![];
        let mut sums = Sums::default();
        for (at, inst) in program.insts.iter().enumerate() {
            let text = match inst {
                Inst::Load(i) => self.load(&program.loads[usize::from(*i)], &mut scope),
                Inst::Index(i) => self.index(&program.indices[usize::from(*i)], &mut scope),
                Inst::Scalar { slot, dtype } => scalar(*slot, *dtype, wide),
                Inst::Anchor(_) => {
                    registers.push(anchor.to_string());
                    continue;
                }
                Inst::Op { op, operand, result, args } => {
                    // What is stored is rounded there, too.
                    let rounds = *result == DType::F16 && (self.looks || program.uses(at as Reg));
                    let cancels = operand.is_float() && sums.cancels(at, op.name, args);
                    let text = self.library.widen(op.expression(*operand), wide, |word| {
                        Some(match word {
                            "T" => register_type(*operand, wide).to_string(),
                            "R" => register_type(*result, wide).to_string(),
                            "a" | "b" | "c" | "d" | "e" => {
                                let arg = args.get(usize::from(word.as_bytes()[0] - b'a'))?;
                                let register = &registers[usize::from(*arg)];
                                match (cancels && word == "b", wide) {
                                    (true, true) => format!("opaque4({register})"),
                                    (true, false) => format!("opaque({register})"),
                                    _ => register.clone(),
                                }
                            }
                            _ => return None,
                        })
                    });
                    match (rounds, wide) {
                        (false, _) => text,
                        (true, false) => format!("to_half({text})"),
                        (true, true) => format!("to_half4({text})"),
                    }
                }
            };
            // What equals something known already is that.
            let ty = register_type(program.dtype(at as u16), wide);
            let key = format!("{ty} {text}");
            let register = match scope.known.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let new = self.bind("v", ty, &text);
                    scope.known.insert(key, new.clone());
                    new
                }
            };
            registers.push(register);
        }
        registers
    }

    fn bind(&mut self, stem: &str, ty: &str, text: &str) -> String {
        let name = self.name(stem);
        self.line(&format!("let {name}: {ty} = {text};"));
        name
    }

    /// Prints the stores. Where the last four is cut short, `left` is how many elements of it there are.
    pub fn stores(&mut self, program: &Program, space: &Space, registers: &[String], left: Option<&str>) {
        let mut scope = Scope::new(space);
        let wide = space.vector.is_some();
        for (i, store) in program.stores.iter().enumerate() {
            let value = &registers[usize::from(store.value)];
            let seen = program.stores[..i].iter().any(|s| s.value == store.value);
            if self.looks && store.to.dtype.is_float() && !seen {
                self.look(value, wide, left);
            }
            let value = match program.dtype(store.value) {
                DType::Bool => format!("{}({value})", storage_type(DType::U32, wide)),
                _ => value.clone(),
            };
            let buffer = self.buffers[usize::from(store.to.binding)].clone();
            let layout = &store.to.layout;
            let Some(vector) = space.vector else {
                let at = self.address(layout, 1, &mut scope);
                self.line(&buffer.store_one(&at, &value, store.to.dtype));
                continue;
            };
            if buffer.wide && four(layout, vector) == Four::Together {
                let at = self.address(layout, 4, &mut scope);
                let Some(left) = left else {
                    self.line(&buffer.store_four(&at, &value, store.to.dtype));
                    continue;
                };
                self.open(&format!("if {left} >= 4u {{"));
                self.line(&buffer.store_four(&at, &value, store.to.dtype));
                self.indent -= 1;
                self.open("} else {");
                for lane in 0..3 {
                    self.line(&format!(
                        "if {left} > {lane}u {{ {}[{at}][{lane}] = {value}[{lane}]; }}",
                        buffer.name
                    ));
                }
                self.close();
                continue;
            }
            let at = self.address(layout, 1, &mut scope);
            for lane in 0..4 {
                let place = plus(&at, lane * layout.strides[vector]);
                let guard = left.map_or(String::new(), |left| format!("if {left} > {lane}u "));
                let store = buffer.store_one(&place, &format!("{value}[{lane}]"), store.to.dtype);
                self.line(&format!("{guard}{{ {store} }}"));
            }
        }
    }

    fn look(&mut self, value: &str, wide: bool, left: Option<&str>) {
        self.line(&match (wide, left) {
            (false, _) => format!("look({value});"),
            (true, None) => format!("look4({value});"),
            // What lies past the end may be anything.
            (true, Some(left)) => {
                let inside = format!("vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>({left})");
                format!("look4(select(vec4<f32>(), {value}, {inside}));")
            }
        });
    }

    fn load(&mut self, access: &Access, scope: &mut Scope) -> String {
        let buffer = self.buffers[usize::from(access.binding)].clone();
        let layout = &access.layout;
        let (one, ty) = (access.dtype, loaded_type(access.dtype, true));
        let text = match scope.space.vector.map(|v| (v, four(layout, v))) {
            None => buffer.load_one(&self.address(layout, 1, scope), one),
            Some((_, Four::Together)) if buffer.wide => {
                buffer.load_four(&self.address(layout, 4, scope), one)
            }
            Some((_, Four::Same)) => {
                format!("{ty}({})", buffer.load_one(&self.address(layout, 1, scope), one))
            }
            Some((vector, _)) => {
                let at = self.address(layout, 1, scope);
                let [a, b, c, d] =
                    [0, 1, 2, 3].map(|l| buffer.load_one(&plus(&at, l * layout.strides[vector]), one));
                format!("{ty}({a}, {b}, {c}, {d})")
            }
        };
        match (access.dtype, scope.space.vector) {
            (DType::Bool, None) => format!("({text} != 0u)"),
            (DType::Bool, Some(_)) => format!("({text} != vec4<u32>(0u))"),
            _ => text,
        }
    }

    fn index(&mut self, layout: &Layout, scope: &mut Scope) -> String {
        let at = self.address(layout, 1, scope);
        match scope.space.vector.map(|v| layout.strides[v]) {
            None => at,
            Some(0) => format!("vec4<u32>({at})"),
            Some(s) => format!("({at} + vec4<u32>(0u, {}u, {}u, {}u))", s, 2 * s, 3 * s),
        }
    }

    /// Where the current coordinate lies in `layout`, in elements or in `vec4`s.
    fn address(&mut self, layout: &Layout, unit: usize, scope: &mut Scope) -> String {
        let space = scope.space;
        // What one step of each coordinate adds.
        let step: Dims = (0..layout.rank())
            .map(|d| match space.shape[d] {
                1 => 0,
                _ => layout.strides[d] * if space.vector == Some(d) { 4 } else { 1 } / unit,
            })
            .collect();
        let mut terms: Vec<String> = vec![];
        if layout.offset > 0 {
            // Distinct accesses at one offset share the parameter.
            let key = format!("offset {}", layout.offset / unit);
            let text = match scope.known.get(&key) {
                Some(text) => text.clone(),
                None => {
                    let text = self.numbers.add((layout.offset / unit) as u32);
                    scope.known.insert(key, text.clone());
                    text
                }
            };
            terms.push(text);
        }
        for group in &space.groups {
            let radix = radix(space, &group.dims);
            let scale = group.dims.clone().rev().find(|&d| space.shape[d] > 1).map_or(0, |d| step[d]);
            if group
                .dims
                .clone()
                .all(|d| space.shape[d] == 1 || step[d] == radix[d - group.dims.start] * scale)
            {
                terms.extend(times(&group.index, scale));
                continue;
            }
            for d in group.dims.clone().filter(|&d| step[d] > 0) {
                let coordinate = self.coordinate(group, d, &radix, scope);
                terms.extend(times(&coordinate, step[d]));
            }
        }
        for d in 0..layout.rank() {
            if let Some(coordinate) = space.loops.get(&d) {
                terms.extend(match step[d] {
                    0 | 1 => times(coordinate, step[d]),
                    // Sums over rows of any length are one kernel.
                    stride => Some(format!("{coordinate} * {}", self.stride(stride))),
                });
            }
        }
        match terms.as_slice() {
            [] => "0u".into(),
            [one] => one.clone(),
            _ => {
                let text = terms.join(" + ");
                if let Some(known) = scope.known.get(&text) {
                    return known.clone();
                }
                let name = self.bind("at", "u32", &text);
                scope.known.insert(text, name.clone());
                name
            }
        }
    }

    fn stride(&mut self, stride: usize) -> String {
        if let Some((_, known)) = self.strides.iter().find(|(s, _)| *s == stride) {
            return known.clone();
        }
        let text = self.numbers.add(stride as u32);
        self.strides.push((stride, text.clone()));
        text
    }

    fn coordinate(&mut self, group: &Group, d: usize, radix: &[usize], scope: &mut Scope) -> String {
        let key = coordinate_of(d);
        if let Some(known) = scope.known.get(&key) {
            return known.clone();
        }
        let step = radix[d - group.dims.start];
        let mut text = group.index.clone();
        if step > 1 {
            text = format!("{text} / {step}u");
        }
        // The outermost coordinate needs no remainder, so that its size is no part of the kernel.
        if d > group.dims.start {
            text = format!("({text}) % {}u", units(scope.space, d));
        }
        let name = self.bind("c", "u32", &text);
        scope.known.insert(key, name.clone());
        name
    }
}

struct Scope<'a> {
    space: &'a Space<'a>,
    /// Expressions that have a name already.
    known: HashMap<String, String>,
}

impl<'a> Scope<'a> {
    fn new(space: &'a Space<'a>) -> Scope<'a> {
        let known = space.known.iter().map(|(d, text)| (coordinate_of(*d), text.clone())).collect();
        Scope { space, known }
    }
}

fn coordinate_of(d: usize) -> String {
    format!("coordinate {d}")
}

/// A dimension's size as its coordinate counts.
fn units(space: &Space, d: usize) -> usize {
    match space.vector {
        Some(v) if v == d => space.shape[d].div_ceil(4),
        _ => space.shape[d],
    }
}

fn radix(space: &Space, dims: &Range<usize>) -> Dims {
    let mut radix = Dims::from_elem(1, dims.len());
    for d in (1..dims.len()).rev() {
        radix[d - 1] = radix[d] * units(space, dims.start + d);
    }
    radix
}

fn times(text: &str, factor: usize) -> Option<String> {
    match factor {
        0 => None,
        1 => Some(text.to_string()),
        _ => Some(format!("{text} * {factor}u")),
    }
}

fn plus(text: &str, add: usize) -> String {
    if add == 0 { text.to_string() } else { format!("{text} + {add}u") }
}

/// A word of a uniform array, of which [`row`]s are read at once: a software driver takes half a millisecond to compile
/// each read.
fn word(array: &str, at: usize) -> String {
    format!("{array}{}.{}", at / 4, ["x", "y", "z", "w"][at % 4])
}

/// Reads four words of a uniform array.
pub fn row(array: &str, number: usize) -> String {
    format!("let {array}{number} = {array}[{number}];")
}

fn scalar(slot: u16, dtype: DType, wide: bool) -> String {
    let word = word("scalars", slot.into());
    let text = match dtype {
        DType::Bool => format!("({word} != 0u)"),
        DType::U32 => word,
        _ => format!("bitcast<{}>({word})", storage_type(dtype, false)),
    };
    if wide { format!("{}({text})", register_type(dtype, true)) } else { text }
}
