//! Hand-written templates, with what is generated around them: how inputs are computed that do not lie in memory, and
//! what becomes of the results.

use crate::backend::Fault;
use crate::error::ErrorKind;
use crate::graph::kernel::{Kernel, Prologue, Structured};
use crate::graph::program::Program;

use super::super::template::{self, Fill, Library};
use super::super::{AdapterInfo, ShaderCall, kernels};
use super::emit::{
    Buffer, Four, Group, Numbers, Printer, Space, divides, four, register_type, stores_by_four,
};
use super::{Call, MAX_WORKGROUPS, declare, declare_scalars, fault, library};

/// A template with what is generated for it.
pub fn structured(
    kernel: &Kernel,
    s: &Structured,
    call: &ShaderCall,
    info: &AdapterInfo,
    looks: bool,
) -> Result<Call, Fault> {
    let wrong = |what: String| fault(ErrorKind::Backend, format!("shader {}: {what}", call.shader));
    if call.workgroups.iter().any(|&n| n > MAX_WORKGROUPS) {
        let message = format!(
            "shader {} wants {:?} workgroups; the limit is {MAX_WORKGROUPS} in each dimension",
            call.shader, call.workgroups
        );
        return Err(fault(ErrorKind::Limit, message));
    }
    let library = library()?;
    let text = kernels::template(call.shader).ok_or_else(|| wrong("there is no such template".into()))?;
    let bare = Fill { defines: &call.defines, ..Fill::default() };
    let bare = template::expand(text, library, &bare).map_err(wrong)?;

    if s.sums.is_some() && !bare.contains("store_sum(") {
        return Err(wrong("this kernel adds up no rows".into()));
    }
    let wide = call.defines.iter().any(|(n, v)| *n == "VEC4" && v != "0");
    let handed = (template::directive(text, "epilogue") == Some("at")).then(|| handed(s));
    let store = if handed.is_some() { "store_at(" } else { "store(" };
    let singles = !wide || bare.contains(store);
    let computed = Computed::all(s, call, &bare);
    let stores = Stores { wide, singles, handed, looks };
    let (prologue, epilogue) = match template::mentions(text, "epilogue") {
        true => around(kernel, s, &bare, &computed, stores, info, library)?,
        false => Default::default(),
    };
    // Not every variant of a template looks at indices.
    let status = template::mentions(text, "status") && bare.contains("report_bad_index(");
    let words = template::status(2 + kernel.bindings.len());
    let own = if status { &*words } else { "" };
    let fill = Fill { defines: &call.defines, prologue: &prologue, epilogue: &epilogue, status: own };
    let mut wgsl = template::expand(text, library, &fill).map_err(wrong)?;
    if looks {
        wgsl = template::looking(&wgsl, if status { "" } else { &words }).map_err(wrong)?;
    }
    Ok(Call {
        wgsl: template::enabling(wgsl),
        entry: call.entry.into(),
        params: call.params.clone(),
        workgroups: call.workgroups,
        status: status || looks,
        flops: 0,
    })
}

/// How a template stores its results.
struct Stores {
    /// In fours, by `store4`.
    wide: bool,
    /// One by one, by `store`.
    singles: bool,
    /// By `store_at` and `store4_at`, with a coordinate.
    handed: Option<Handed>,
    /// And looks at them.
    looks: bool,
}

/// A coordinate that a template hands to `store_at`.
#[derive(Clone, Copy)]
struct Handed {
    /// The dimension of the epilogue's shape that it belongs to, if there is one.
    dim: Option<usize>,
    /// Neighbours in memory differ in it.
    last: bool,
}

/// An epilogue's shape is the output's, with neighbouring dimensions merged where its operands allow that.
fn handed(s: &Structured) -> Handed {
    let known = s.op.0.knows_coordinate(s).filter(|&d| s.out_shape.get(d).is_some_and(|&size| size > 1));
    let within = |shape: &[usize], d: usize| shape[d + 1..].iter().product::<usize>();
    let inner = known.map(|d| within(&s.out_shape, d));
    let shape = &s.post.shape;
    let dim = known.and_then(|known| {
        (0..shape.len()).find(|&d| shape[d] == s.out_shape[known] && Some(within(shape, d)) == inner)
    });
    Handed { dim, last: inner == Some(1) }
}

/// How a template reads an input that is computed there.
struct Computed<'a> {
    /// The functions' names begin with this.
    name: String,
    pre: &'a Prologue,
    fours: bool,
    singles: bool,
}

impl<'a> Computed<'a> {
    /// All of a call. The template's define `X_PRE` is the input's number, from 1, or 0 where `x` is in memory.
    fn all(s: &'a Structured, call: &ShaderCall, bare: &str) -> Vec<Computed<'a>> {
        let of = |(define, value): &(&str, String)| {
            let name = define.strip_suffix("_PRE")?.to_lowercase();
            let pre = s.prologue(value.parse::<usize>().ok()?.checked_sub(1)?)?;
            let calls = |what: &str| bare.contains(&format!("{name}_{what}("));
            Some(Computed { pre, fours: calls("four"), singles: calls("one"), name })
        };
        call.defines.iter().filter_map(of).collect()
    }

    /// Whether four neighbours are computed at once.
    fn at_once(&self) -> bool {
        let shape = &self.pre.program.shape;
        self.fours && shape.len().checked_sub(1).is_some_and(|last| divides(shape, last))
    }

    /// `x_one` and `x_four`, which take the place where an element would lie in memory: of `x_four` a multiple of four.
    fn print(&self, p: &mut Printer) {
        let Computed { name, pre: Prologue { program, value, .. }, .. } = self;
        let last = program.shape.len().saturating_sub(1);
        let mut print = |head: &str, index: &str, vector: Option<usize>| {
            p.open(head);
            p.scalars(program);
            let registers = p.program(program, &space(program, index, vector, None), "");
            p.line(&format!("return {};", registers[usize::from(*value)]));
            p.close();
        };
        let [one, four] = [false, true].map(|wide| register_type(program.dtype(*value), wide));
        if self.at_once() {
            print(&format!("fn {name}_four(at: u32) -> {four} {{"), "(at / 4u)", Some(last));
        }
        if self.singles || !self.at_once() {
            print(&format!("fn {name}_one(at: u32) -> {one} {{"), "at", None);
        }
        if self.fours && !self.at_once() {
            p.open(&format!("fn {name}_four(at: u32) -> {four} {{"));
            let each = [0, 1, 2, 3].map(|lane| format!("{name}_one(at + {lane}u)"));
            p.line(&format!("return {four}({});", each.join(", ")));
            p.close();
        }
    }
}

/// A program's space, walked by one index, with the coordinate `c` of a dimension.
fn space<'a>(program: &'a Program, index: &str, vector: Option<usize>, known: Option<usize>) -> Space<'a> {
    let groups = vec![Group { dims: 0..program.shape.len(), index: index.into() }];
    let known = known.map(|d| (d, if vector == Some(d) { "(c / 4u)" } else { "c" }.into()));
    Space { shape: &program.shape, vector, groups, loops: Default::default(), known }
}

/// The functions for computed inputs; and `store` with, for templates that work in fours, `store4`.
fn around(
    kernel: &Kernel,
    s: &Structured,
    bare: &str,
    computed: &[Computed],
    Stores { wide, singles, handed, looks }: Stores,
    info: &AdapterInfo,
    library: &Library,
) -> Result<(String, String), Fault> {
    let post = &s.post;
    let by_four = wide && stores_by_four(post);
    let singles = singles || !by_four;
    let declared = template::declared(bare);
    let writes = |program: &Program, i: usize| program.stores.iter().any(|s| usize::from(s.to.binding) == i);
    let sums = s.sums.as_ref().map(|sums| &sums.post);
    let summed = |i: usize| sums.is_some_and(|post| writes(post, i));
    let written = |i: usize| writes(post, i) || summed(i);
    // Where elements are met in fours.
    let in_post = post.loads.iter().chain(post.stores.iter().map(|s| &s.to)).filter(|_| by_four);
    let in_pre = computed.iter().filter(|c| c.at_once()).flat_map(|c| &c.pre.program.loads);
    let accesses: Vec<_> = in_post.chain(in_pre).collect();
    let mut text = String::new();
    declare_scalars(kernel, &mut text);
    let mut buffers = vec![];
    for (i, binding) in kernel.bindings.iter().enumerate() {
        // What the template declares is used as it is.
        if let Some(d) = declared.iter().find(|d| d.binding == i + 2) {
            if binding.written != d.written && written(i) {
                let message =
                    format!("{}: an epilogue may not store to an input of its template", s.op.0.name());
                return Err(fault(ErrorKind::Backend, message));
            }
            buffers.push(Buffer { name: d.name.clone(), wide: d.wide, pairs: d.pairs });
            continue;
        }
        let together = accesses.iter().any(|a| {
            let last = a.layout.rank().saturating_sub(1);
            usize::from(a.binding) == i && a.layout.rank() > 0 && four(&a.layout, last) == Four::Together
        });
        let mut buffer = Buffer { name: format!("b{i}"), wide: together, pairs: info.pairs };
        if singles && writes(post, i) || summed(i) {
            buffer.store_singles(binding.dtype);
        }
        declare(i, &buffer, binding.dtype, binding.written, &mut text);
        buffers.push(buffer);
    }
    let mut p = Printer::new(library, buffers);
    p.numbers = Numbers { baked: true, ..Numbers::default() };
    computed.iter().for_each(|c| c.print(&mut p));
    let prologue = std::mem::take(&mut p.out);
    p.looks = looks;
    let mut print_all =
        |post: &Program, head: &str, index: &str, vector: Option<usize>, known: Option<usize>| {
            p.open(head);
            p.line("let anchor = v;");
            p.scalars(post);
            let space = space(post, index, vector, known);
            let registers = p.program(post, &space, "anchor");
            p.stores(post, &space, &registers, None);
            p.close();
        };
    if let Some(sums) = sums {
        print_all(sums, "fn store_sum(i: u32, v: f32) {", "i", None, None);
    }
    let mut print = |head: &str, index: &str, vector: Option<usize>| {
        print_all(post, head, index, vector, handed.and_then(|h| h.dim));
    };
    let (end, coordinate) = if handed.is_some() { ("_at", " c: u32,") } else { ("", "") };
    let ty = register_type(s.out_dtype, false);
    if singles {
        print(&format!("fn store{end}(i: u32,{coordinate} v: {ty}) {{"), "i", None);
    }
    if wide {
        let ty = register_type(s.out_dtype, true);
        let head = format!("fn store4{end}(i4: u32,{coordinate} v: {ty}) {{");
        match by_four {
            true => print(&head, "i4", Some(post.shape.len() - 1)),
            false => {
                p.open(&head);
                for lane in 0..4 {
                    let c = match handed {
                        None => String::new(),
                        Some(Handed { last: true, .. }) => format!(" c + {lane}u,"),
                        Some(_) => " c,".into(),
                    };
                    p.line(&format!("store{end}(i4 * 4u + {lane}u,{c} v[{lane}]);"));
                }
                p.close();
            }
        }
    }
    Ok((prologue, text + &p.out))
}
