//! The preprocessor of `shaders/*.wgsl`. `build.rs` uses this file to validate every variant, the backend to
//! expand the one it runs, so it knows nothing but text.
//!
//! A template's lines may be directives: `#import name`, `#if NAME`, `#else`, `#endif`, `#prologue`, `#epilogue`,
//! `#status`, and `#for NAME in A..B`, whose lines up to `#end` are repeated with `${NAME}` counting. `#for P Q in a b, c d` repeats
//! them for words: first with `${P}` for a and `${Q}` for b. `${NAME}` in any other line, or behind `#if`, is replaced
//! by a define; `#if` takes numbers, too. `#epilogue at` promises that results are stored by `store_at` and `store4_at` alone. `#include part` has become the text of `shaders/NAME/part.wgsl` or
//! `shaders/parts/part.wgsl` before, by `build.rs`. Shared functions are written once in terms of `F`, `I`,
//! `U` and `B`. They come in a scalar form under their own name and in a 4-vector form, `name4`; only what the
//! text mentions is linked in.

use std::collections::HashMap;
use std::fmt::Write;

/// What fills a template.
#[derive(Default)]
pub struct Fill<'a> {
    pub defines: &'a [(&'a str, String)],
    /// Replaces `#prologue`.
    pub prologue: &'a str,
    /// Replaces `#epilogue`.
    pub epilogue: &'a str,
    /// Replaces `#status`.
    pub status: &'a str,
}

/// Expands a template to WGSL.
pub fn expand(text: &str, library: &Library, fill: &Fill) -> Result<String, String> {
    let mut expander =
        Expander { library, fill, out: String::with_capacity(text.len() * 2), imports: vec![] };
    let lines: Vec<(usize, &str)> = text.lines().enumerate().collect();
    expander.block(&lines, &mut vec![])?;
    // What is generated may call what the template does not import.
    let texts = [(&*expander.out, Some(&*expander.imports)), (fill.prologue, None), (fill.epilogue, None)];
    let shared = library.link(&texts);
    Ok(expander.out + &shared)
}

struct Expander<'a> {
    library: &'a Library,
    fill: &'a Fill<'a>,
    out: String,
    imports: Vec<String>,
}

impl Expander<'_> {
    /// Expands numbered lines, in which the counters of the loops around them are defined.
    fn block(&mut self, lines: &[(usize, &str)], counters: &mut Vec<(String, String)>) -> Result<(), String> {
        // One entry for each open `#if`: whether its lines count, and whether an enclosing one's do.
        let mut open: Vec<(bool, bool)> = vec![];
        let mut at = 0;
        while let Some(&(number, line)) = lines.get(at) {
            at += 1;
            let fault = |what: String| format!("line {}: {what}: {}", number + 1, line.trim());
            let defined = |name: &str| {
                let counter = counters.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
                counter
                    .or_else(|| self.fill.defines.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()))
            };
            let active = open.last().is_none_or(|&(here, outer)| here && outer);
            let trimmed = line.trim_start();
            if trimmed.starts_with("//!") {
                continue;
            }
            let Some(directive) = trimmed.strip_prefix('#') else {
                if active {
                    substitute(line, &defined, &mut self.out).map_err(fault)?;
                }
                self.out.push('\n');
                continue;
            };
            let (word, rest) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
            let rest = rest.split("//").next().unwrap_or("").trim();
            match word {
                "if" => {
                    let mut name = String::new();
                    if active {
                        substitute(rest, &defined, &mut name).map_err(fault)?;
                    }
                    let value = name.parse::<u32>().map_or_else(|_| defined(&name), |_| Some(&name));
                    open.push((value.is_some_and(|v| v != "0"), active));
                }
                "else" => match open.last_mut() {
                    Some((here, _)) => *here = !*here,
                    None => return Err(fault("#else without #if".into())),
                },
                "endif" => {
                    if open.pop().is_none() {
                        return Err(fault("#endif without #if".into()));
                    }
                }
                "for" => {
                    let body = &lines[at..];
                    let len = end_of_loop(body).ok_or_else(|| fault("#for without #end".into()))?;
                    at += len + 1;
                    if active {
                        let mut head = String::new();
                        substitute(rest, &defined, &mut head).map_err(fault)?;
                        let turns = parse_loop(&head)
                            .ok_or_else(|| fault("not a #for NAME in A..B, or in words".into()))?;
                        let outer = counters.len();
                        for turn in turns {
                            counters.extend(turn);
                            self.block(&body[..len], counters)?;
                            counters.truncate(outer);
                        }
                    }
                    continue;
                }
                _ if !active => {}
                "import" if self.library.has_file(rest) => self.imports.push(rest.to_string()),
                "import" => return Err(fault("no such file in shaders/shared".into())),
                "prologue" => self.out.push_str(self.fill.prologue),
                "epilogue" => self.out.push_str(self.fill.epilogue),
                "status" => self.out.push_str(self.fill.status),
                _ => return Err(fault("unknown directive".into())),
            }
            self.out.push('\n');
        }
        if open.is_empty() { Ok(()) } else { Err("an #if is not closed".into()) }
    }
}

/// How many lines come before the `#end` of the loop that these lines are in.
fn end_of_loop(lines: &[(usize, &str)]) -> Option<usize> {
    let mut depth = 0;
    lines.iter().position(|(_, line)| {
        match line.split_whitespace().next() {
            Some("#for") => depth += 1,
            Some("#end") => depth -= 1,
            _ => {}
        }
        depth < 0
    })
}

/// What names stand for in each turn of `NAME in A..B`, where B may be a quotient or a product, or of `P Q in a b, c d`.
fn parse_loop(head: &str) -> Option<Vec<Vec<(String, String)>>> {
    let (names, values) = head.split_once(" in ")?;
    let names: Vec<&str> = names.split_whitespace().collect();
    if let (&[name], Some((from, to))) = (&names[..], values.split_once("..")) {
        let number = |s: &str| s.trim().parse::<u32>().ok();
        let to = match (to.split_once('/'), to.split_once('*')) {
            (Some((all, by)), _) => number(all)?.checked_div(number(by)?)?,
            (None, Some((a, b))) => number(a)?.checked_mul(number(b)?)?,
            (None, None) => number(to)?,
        };
        let range = number(from)?..to;
        return Some(range.map(|i| vec![(name.to_string(), i.to_string())]).collect());
    }
    let turn = |words: &str| {
        let words: Vec<&str> = words.split_whitespace().collect();
        let pairs = names.iter().zip(&words).map(|(n, w)| (n.to_string(), w.to_string()));
        (words.len() == names.len()).then(|| pairs.collect())
    };
    values.split(',').map(turn).collect()
}

fn substitute<'a>(
    mut line: &str,
    defined: &impl Fn(&str) -> Option<&'a str>,
    out: &mut String,
) -> Result<(), String> {
    while let Some(at) = line.find("${") {
        let end = line[at..].find('}').ok_or("a ${ is not closed")? + at;
        let name = &line[at + 2..end];
        out.push_str(&line[..at]);
        out.push_str(defined(name).ok_or_else(|| format!("{name} is not defined"))?);
        line = &line[end + 1..];
    }
    out.push_str(line);
    Ok(())
}

/// What a template says behind `#name`, if it asks for that in any variant.
pub fn directive<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let directives = text.lines().filter_map(|line| line.trim().strip_prefix('#'));
    let mut words = directives.map(|d| d.split_once(char::is_whitespace).unwrap_or((d, "")));
    words.find(|(word, _)| *word == name).map(|(_, rest)| rest.trim())
}

/// Whether it asks for `#name`.
pub fn mentions(text: &str, name: &str) -> bool {
    directive(text, name).is_some()
}

/// The WGSL name of the 1- or 4-wide form of `F`, `I`, `U` or `B`.
pub fn width_type(alias: &str, wide: bool) -> Option<&'static str> {
    Some(match (alias, wide) {
        ("F", false) => "f32",
        ("I", false) => "i32",
        ("U", false) => "u32",
        ("B", false) => "bool",
        ("F", true) => "vec4<f32>",
        ("I", true) => "vec4<i32>",
        ("U", true) => "vec4<u32>",
        ("B", true) => "vec4<bool>",
        _ => return None,
    })
}

/// Calls `word` for each identifier of `text` that does not name a member (`.x`) or a template parameter, and
/// `rest` for what is between.
pub fn tokens<'a>(text: &'a str, mut each: impl FnMut(&'a str, bool)) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let word = rest.starts_with(is_word);
        let mut len = rest.find(|c| is_word(c) != word).unwrap_or(rest.len());
        if !word && let Some(comment) = rest[..len].find("//") {
            len = if comment > 0 { comment } else { rest.find('\n').unwrap_or(rest.len()) };
        }
        let names =
            word && !rest.starts_with(|c: char| c.is_ascii_digit()) && !text[..at].trim_end().ends_with('.');
        each(&rest[..len], names);
        at += len;
    }
}

/// The functions, structs and constants of `shaders/shared/`.
#[derive(Default)]
pub struct Library {
    items: HashMap<String, Item>,
    files: Vec<String>,
}

struct Item {
    text: String,
    file: usize,
    /// Written in terms of `F`, `I`, `U`, `B`, or of something that is.
    generic: bool,
    order: usize,
}

impl Library {
    /// Reads `(name, text)` of each shared file.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Library, String> {
        let mut library = Library::default();
        for (name, text) in files {
            let file = library.files.len();
            library.files.push(name.to_string());
            for item in split_items(text) {
                let name_of =
                    item_name(&item).ok_or_else(|| format!("shared/{name}.wgsl: what is this?\n{item}"))?;
                let order = library.items.len();
                let entry = Item { text: item.clone(), file, generic: false, order };
                if library.items.insert(name_of.to_string(), entry).is_some() {
                    return Err(format!("shared/{name}.wgsl: {name_of} is defined twice"));
                }
            }
        }
        loop {
            let found: Vec<String> = (library.items.iter())
                .filter(|(_, item)| !item.generic && library.is_generic(&item.text))
                // What is itself the 4-wide form of something has no other.
                .filter(|(name, _)| {
                    name.strip_suffix('4').is_none_or(|base| !library.items.contains_key(base))
                })
                .map(|(name, _)| name.clone())
                .collect();
            if found.is_empty() {
                return Ok(library);
            }
            for name in found {
                if let Some(item) = library.items.get_mut(&name) {
                    item.generic = true;
                }
            }
        }
    }

    fn is_generic(&self, text: &str) -> bool {
        let mut generic = false;
        tokens(text, |t, names| {
            generic |= names
                && (width_type(t, false).is_some() || self.items.get(t).is_some_and(|item| item.generic));
        });
        generic
    }

    pub fn has_file(&self, name: &str) -> bool {
        self.files.iter().any(|f| f == name)
    }

    /// The names of all items of a file.
    #[allow(dead_code, reason = "build.rs checks files one by one; the library does not")]
    pub fn names(&self, file: &str) -> Vec<&str> {
        (self.items.iter())
            .filter(|(_, i)| self.files[i.file] == file)
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Text in terms of `F`, `I`, `U`, `B` made concrete, one or four elements wide. `rename` may replace
    /// other names.
    pub fn widen(&self, text: &str, wide: bool, rename: impl Fn(&str) -> Option<String>) -> String {
        let mut out = String::with_capacity(text.len() + 32);
        tokens(text, |t, names| {
            if !names {
                out.push_str(t);
            } else if let Some(new) = rename(t) {
                out.push_str(&new);
            } else if let Some(ty) = width_type(t, wide) {
                out.push_str(ty);
            } else {
                out.push_str(t);
                if wide && self.items.get(t).is_some_and(|item| item.generic) {
                    out.push('4');
                }
            }
        });
        out
    }

    /// The shared items that texts need. Each text may use all files, or some.
    pub fn link(&self, texts: &[(&str, Option<&[String]>)]) -> String {
        // A worklist: what is linked in may need more.
        let mut linked: HashMap<String, (usize, String)> = HashMap::new();
        let mut todo: Vec<(String, Option<&[String]>)> =
            texts.iter().map(|&(t, f)| (t.to_string(), f)).collect();
        while let Some((text, files)) = todo.pop() {
            tokens(&text, |t, names| {
                if !names || linked.contains_key(t) {
                    return;
                }
                // An explicit 4-wide form goes before one made from the scalar form.
                let (item, wide) = match (self.items.get(t), t.strip_suffix('4')) {
                    (Some(item), _) => (item, false),
                    (None, Some(base)) => match self.items.get(base) {
                        Some(item) if item.generic => (item, true),
                        _ => return,
                    },
                    (None, None) => return,
                };
                if files.is_some_and(|files| !files.contains(&self.files[item.file])) {
                    return;
                }
                let text = self.widen(&item.text, wide, |_| None);
                todo.push((text.clone(), None));
                linked.insert(t.to_string(), (item.order, text));
            });
        }
        let mut all: Vec<(usize, String)> = linked.into_values().collect();
        all.sort_unstable();
        all.into_iter().map(|(_, text)| text + "\n").collect()
    }
}

/// The top-level declarations of a file, without the comments between them.
fn split_items(text: &str) -> Vec<String> {
    let (mut items, mut item, mut depth) = (vec![], String::new(), 0);
    for line in text.lines() {
        let code = line.split("//").next().unwrap_or("").trim_end();
        if code.trim().is_empty() {
            continue;
        }
        item.push_str(code);
        item.push('\n');
        depth += code.matches('{').count();
        depth -= code.matches('}').count().min(depth);
        if depth == 0 && code.ends_with(['}', ';']) {
            items.push(std::mem::take(&mut item));
        }
    }
    if !item.trim().is_empty() {
        items.push(item);
    }
    items
}

fn item_name(item: &str) -> Option<&str> {
    let mut words = item.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty());
    match words.next()? {
        "fn" | "struct" | "const" | "alias" => words.next(),
        _ => None,
    }
}

/// A label, and defines with their values.
#[allow(dead_code, reason = "for build.rs and the tests")]
pub type Variant = (String, Vec<(String, String)>);

/// Reads `//! variant label: A=1 B=f32` lines: the variants that a template comes in. A template without any
/// has one, with no defines.
#[allow(dead_code, reason = "for build.rs and the tests")]
pub fn variants(text: &str) -> Result<Vec<Variant>, String> {
    let mut out = vec![];
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("//!").and_then(|l| l.trim().strip_prefix("variant "))
        else {
            continue;
        };
        let (label, defines) = rest.split_once(':').ok_or_else(|| format!("no colon in: {line}"))?;
        let defines = defines.split_whitespace().map(|d| {
            let (name, value) = d.split_once('=').ok_or_else(|| format!("no = in {d}, in: {line}"))?;
            Ok((name.to_string(), value.to_string()))
        });
        out.push((label.trim().to_string(), defines.collect::<Result<_, String>>()?));
    }
    if out.is_empty() {
        out.push(("only".into(), vec![]));
    }
    Ok(out)
}

/// Whether a type in WGSL text is one of four elements.
fn is_vec4(ty: &str) -> bool {
    ty.starts_with("vec4")
}

/// A storage buffer that expanded text declares.
#[allow(dead_code, reason = "build.rs only asks for the binding")]
pub struct Declared {
    pub binding: usize,
    pub name: String,
    /// Declared as an array of fours.
    pub wide: bool,
    /// Those are `vec2<u64>`.
    pub pairs: bool,
    pub written: bool,
}

/// Finds `@group(0) @binding(K) var<storage, …> name: array<type>` in expanded text.
pub fn declared(text: &str) -> Vec<Declared> {
    let mut out = vec![];
    for part in text.split("@binding(").skip(1) {
        let Some((number, rest)) = part.split_once(')') else { continue };
        let Some((head, _)) = rest.split_once(';') else { continue };
        let Some((space, decl)) = head.split_once("var<").and_then(|(_, d)| d.split_once('>')) else {
            continue;
        };
        if !space.trim_start().starts_with("storage") {
            continue;
        }
        let Some((name, ty)) = decl.split_once(':') else { continue };
        let element = ty.trim().strip_prefix("array<").unwrap_or("").trim_start();
        if let Ok(binding) = number.trim().parse() {
            out.push(Declared {
                binding,
                name: name.trim().to_string(),
                // Halves lie in words of two.
                wide: is_vec4(element) || element.starts_with("vec2<"),
                pairs: element.starts_with("vec2<u64>"),
                written: space.contains("write"),
            });
        }
    }
    out
}

/// The text behind the directives that it needs.
pub fn enabling(wgsl: String) -> String {
    let mut head = String::new();
    for (word, what) in [("<f16", "f16"), ("coop_mat", "wgpu_cooperative_matrix")] {
        if wgsl.contains(word) {
            let _ = writeln!(head, "enable {what};");
        }
    }
    head + &wgsl
}

/// What `#status` stands for, with the status words at this binding.
pub fn status(binding: usize) -> String {
    format!(
        "@group(0) @binding({binding}) var<storage, read_write> status: array<atomic<u32>>;\n\
         fn report_bad_index() {{ atomicStore(&status[0], 1u); }}\n"
    )
}

/// What a kernel that looks at the numbers it stores has besides its status words: the greatest of their bits
/// without the sign. Infinity's are above all finite ones', and NaN's above those: two instructions for each number
/// or four, and no memory until the invocation ends.
pub const LOOK: &str = "\
var<private> seen_one: u32;
var<private> seen_four: vec4<u32>;
fn look(v: f32) { seen_one = max(seen_one, bitcast<u32>(v) & 0x7fffffffu); }
fn look4(v: vec4<f32>) { seen_four = max(seen_four, bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)); }
fn tell() {
    let two = max(seen_four.xy, seen_four.zw);
    let most = max(max(two.x, two.y), seen_one);
    if most >= 0x7f800000u { atomicOr(&status[1], select(2u, 1u, most > 0x7f800000u)); }
}
";

/// Expanded text, made to look: its entry points call `tell` when they are through, wherever they return. `status`
/// declares the status words, unless the text does.
pub fn looking(text: &str, status: &str) -> Result<String, String> {
    const HEAD: &str = "@compute";
    let mut out = String::with_capacity(text.len() + 1024);
    out.push_str(status);
    out.push_str(LOOK);
    let mut rest = text;
    while let Some(at) = rest.find(HEAD) {
        let (before, entry) = rest.split_at(at);
        let parts = entry.split_once("\nfn ").and_then(|(attributes, after)| {
            let (name, after) = after.split_once('(')?;
            let (parameters, body) = after.split_once(") {")?;
            Some((attributes, name, parameters, body))
        });
        let (attributes, name, parameters, body) =
            parts.ok_or_else(|| format!("not an entry point: {}", entry.lines().next().unwrap_or("")))?;
        // `@builtin(what) name: type`, without the attribute.
        let plain: Vec<&str> = (parameters.split(',').map(str::trim).filter(|p| !p.is_empty()))
            .map(|p| p.rsplit_once(')').map_or(p, |(_, p)| p.trim()))
            .collect();
        let names: Vec<&str> = plain.iter().map(|p| p.split(':').next().unwrap_or(p).trim()).collect();
        let _ = write!(
            out,
            "{before}{attributes}\nfn {name}({parameters}) {{\n    silent_{name}({});\n    tell();\n}}\n\
             fn silent_{name}({}) {{",
            names.join(", "),
            plain.join(", "),
        );
        rest = body;
    }
    out.push_str(rest);
    Ok(out)
}
