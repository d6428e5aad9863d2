//! The autograd graph as one HTML page: what of it is drawn, and how.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::graph::{Graph, GraphNode, GraphNodeKind};
use super::layered::{Line, layout};
use super::text;

/// Items that a page draws at most: more cannot be read, and browsers get slow.
const MOST: usize = 1200;
/// Graphs up to this size are drawn as they are. In larger ones a run of at least `RUN` functions that do nothing but
/// hand on to one another becomes one item.
const SMALL: usize = 60;
const RUN: usize = 6;
/// Space around the drawing.
const MARGIN: f64 = 24.0;

/// What is drawn as one box.
enum Item<'g> {
    Node(&'g GraphNode),
    /// Functions in a row, the latest first.
    Run(Vec<&'g GraphNode>),
    /// So many nodes that are too many.
    Rest(usize),
}

pub fn html(graph: &Graph) -> String {
    let (items, edges) = choose(graph);
    let sizes: Vec<(f64, f64)> = items.iter().map(Item::size).collect();
    let drawn = layout(&sizes, &edges);
    let mut drawing = String::new();
    // Writing to a string does not fail.
    for line in &drawn.lines {
        draw_line(&mut drawing, line);
    }
    for (item, (&place, &size)) in items.iter().zip(drawn.places.iter().zip(&sizes)) {
        item.draw(&mut drawing, place, size);
    }
    let mut inputs = vec![vec![]; items.len()];
    let mut consumers = vec![vec![]; items.len()];
    for &(from, to) in &edges {
        inputs[to].push(from);
        consumers[from].push(to);
    }
    let mut data = String::from("[");
    for (i, item) in items.iter().enumerate() {
        let comma = if i > 0 { ",\n" } else { "" };
        let facts: Vec<String> = item
            .facts()
            .into_iter()
            .map(|(k, v)| format!("[{},{}]", text::json(k), text::json(&v)))
            .collect();
        let (x, y) = drawn.places[i];
        let _ = write!(
            data,
            "{comma}{{\"name\":{},\"kind\":{},\"facts\":[{}],\"inputs\":{:?},\"consumers\":{:?},\"at\":[{:.1},{:.1}]}}",
            text::json(&item.name()),
            text::json(item.kind()),
            facts.join(","),
            inputs[i],
            consumers[i],
            x + MARGIN,
            y + MARGIN,
        );
    }
    data.push(']');
    let (width, height) = (drawn.width + 2.0 * MARGIN, drawn.height + 2.0 * MARGIN);
    let parts = [
        ("SUMMARY", text::html(&summary(graph, &items))),
        ("VIEW", format!("0 0 {width:.0} {height:.0}")),
        ("DRAWING", format!("<g transform=\"translate({MARGIN} {MARGIN})\">\n{drawing}</g>\n")),
        ("ITEMS", data),
    ];
    fill(include_str!("page.html"), &parts)
}

/// Puts values at the template's `${NAME}`s, which may say anything themselves.
fn fill(template: &str, parts: &[(&str, String)]) -> String {
    let mut pieces = template.split("${");
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let part = parts.iter().find_map(|(name, value)| {
            piece.strip_prefix(name)?.strip_prefix('}').map(|rest| (value.as_str(), rest))
        });
        // Scripts have their own.
        let (value, rest) = part.unwrap_or(("${", piece));
        out.push_str(value);
        out.push_str(rest);
    }
    out
}

fn summary(graph: &Graph, items: &[Item]) -> String {
    let count = |kind| graph.nodes.iter().filter(|n| n.kind == kind).count();
    let some = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        _ if what == "leaf" => format!("{n} leaves"),
        _ => format!("{n} {what}s"),
    };
    let mut out = format!(
        "{}, {}, {} saved",
        some(count(GraphNodeKind::Function), "function"),
        some(count(GraphNodeKind::Leaf), "leaf"),
        text::bytes(graph.saved_bytes() as u64)
    );
    if graph.edges.is_empty() {
        out.push_str("; no gradient flows: nothing that it was made from requires grad");
    }
    for item in items {
        match item {
            Item::Run(run) => {
                let _ = write!(out, "; a run of {} drawn as one", run.len());
            }
            Item::Rest(n) => {
                let _ = write!(out, "; {n} nodes far from the outputs left out");
            }
            Item::Node(_) => {}
        }
        if out.len() > 300 {
            out.push_str(" …");
            break;
        }
    }
    out
}

/// The items, nearest to the outputs first, and the edges between them, each once.
fn choose(graph: &Graph) -> (Vec<Item<'_>>, Vec<(usize, usize)>) {
    let n = graph.nodes.len();
    let mut edges = graph.edges.clone();
    edges.sort_unstable();
    edges.dedup();
    // The one input and the one consumer of those that have only one.
    let (mut input, mut consumer) = (vec![None; n], vec![None; n]);
    let (mut inputs, mut consumers) = (vec![0u32; n], vec![0u32; n]);
    for &(from, to) in &edges {
        input[to] = Some(from);
        consumer[from] = Some(to);
        inputs[to] += 1;
        consumers[from] += 1;
    }
    let plain = |i: usize| {
        n > SMALL && graph.nodes[i].kind == GraphNodeKind::Function && inputs[i] == 1 && consumers[i] == 1
    };
    let mut items: Vec<Item> = vec![];
    let mut item_of: Vec<Option<usize>> = vec![None; n];
    // Nodes come in the order of their distance from the outputs, so a run is met at its end.
    for i in 0..n {
        if item_of[i].is_some() {
            continue;
        }
        if items.len() >= MOST {
            break;
        }
        let first = plain(i) && !consumer[i].is_some_and(plain);
        let mut run = vec![];
        let mut at = if first { Some(i) } else { None };
        while let Some(k) = at.filter(|&k| plain(k)) {
            run.push(k);
            at = input[k];
        }
        // Its ends are shown.
        if run.len() >= RUN {
            let inner = &run[1..run.len() - 1];
            for &k in [run[0], run[run.len() - 1]].iter() {
                item_of[k] = Some(items.len());
                items.push(Item::Node(&graph.nodes[k]));
            }
            inner.iter().for_each(|&k| item_of[k] = Some(items.len()));
            items.push(Item::Run(inner.iter().map(|&k| &graph.nodes[k]).collect()));
        } else {
            item_of[i] = Some(items.len());
            items.push(Item::Node(&graph.nodes[i]));
        }
    }
    let left = item_of.iter().filter(|item| item.is_none()).count();
    let rest = items.len();
    if left > 0 {
        items.push(Item::Rest(left));
    }
    let mut shown: Vec<(usize, usize)> = (edges.iter())
        .filter_map(|&(from, to)| {
            // What was left out is drawn as one that all of its consumers are made from; what is made of it
            // and left out as well does not show.
            let to = item_of[to]?;
            let from = item_of[from].unwrap_or(rest);
            (from != to).then_some((from, to))
        })
        .collect();
    shown.sort_unstable();
    shown.dedup();
    (items, shown)
}

impl Item<'_> {
    fn name(&self) -> String {
        match self {
            Item::Node(node) => node.name.clone(),
            Item::Run(run) => format!("… {} functions …", run.len()),
            Item::Rest(n) => format!("… {n} more …"),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Item::Node(node) => match node.kind {
                GraphNodeKind::Output => "output",
                GraphNodeKind::Function => "function",
                GraphNodeKind::Accumulate => "adds to the gradient of a leaf",
                GraphNodeKind::Leaf => "leaf that requires grad",
            },
            Item::Run(_) => "functions in a row",
            Item::Rest(_) => "nodes that are not drawn",
        }
    }

    fn class(&self) -> &'static str {
        match self {
            Item::Node(node) => match node.kind {
                GraphNodeKind::Output => "output",
                GraphNodeKind::Function if node.freed => "function freed",
                GraphNodeKind::Function => "function",
                GraphNodeKind::Accumulate => "accumulate",
                GraphNodeKind::Leaf => "leaf",
            },
            Item::Run(_) => "run",
            Item::Rest(_) => "rest",
        }
    }

    /// The second line of the box.
    fn info(&self) -> String {
        match self {
            // Its leaf says it.
            Item::Node(node) if node.kind == GraphNodeKind::Accumulate => String::new(),
            Item::Node(node) => node.summary(),
            Item::Run(run) => kinds(run, 2),
            Item::Rest(_) => String::new(),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Item::Node(node) => {
                let tensors: Vec<String> = node
                    .shapes
                    .iter()
                    .zip(&node.dtypes)
                    .map(|(s, d)| format!("{} {d}", text::shape(s)))
                    .collect();
                let mut facts = vec![("shape", tensors.join(", "))];
                if node.kind == GraphNodeKind::Function {
                    let saved = text::bytes(node.saved_bytes as u64);
                    facts.push(("saved", if node.freed { "freed by a backward pass".into() } else { saved }));
                }
                facts.extend(node.line().map(|line| ("line", line)));
                facts
            }
            Item::Run(run) => {
                let saved = run.iter().map(|n| n.saved_bytes as u64).sum();
                let mut facts = vec![("functions", kinds(run, usize::MAX)), ("saved", text::bytes(saved))];
                let lines = [run.first(), run.last()].into_iter().flatten().filter_map(|n| n.line());
                facts.push(("lines", lines.collect::<Vec<_>>().join(", ")));
                facts
            }
            Item::Rest(n) => vec![("nodes", n.to_string())],
        }
    }

    fn size(&self) -> (f64, f64) {
        let (name, info) = (self.name().chars().count() as f64, self.info().chars().count() as f64);
        // A little more than letters take on average.
        let width = (name * 8.2).max(info * 6.4) + 26.0;
        (width.max(64.0), if info > 0.0 { 44.0 } else { 30.0 })
    }

    fn draw(&self, out: &mut String, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let (name, info) = (self.name(), self.info());
        let label = text::html(&format!("{} {info}", name));
        let _ = write!(
            out,
            "<g class=\"node {}\" tabindex=\"0\" role=\"button\" aria-label=\"{label}\" transform=\"translate({x:.1} {y:.1})\">\
             <rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"8\"/>",
            self.class(),
            -width / 2.0,
            -height / 2.0,
        );
        let first = if info.is_empty() { 4.5 } else { -3.5 };
        let _ = write!(out, "<text class=\"name\" y=\"{first}\">{}</text>", text::html(&name));
        if let Some((shapes, saved)) = info.split_once(" · ") {
            let _ = write!(
                out,
                "<text class=\"info\" y=\"13\">{} · <tspan class=\"saved\">{}</tspan></text>",
                text::html(shapes),
                text::html(saved)
            );
        } else if !info.is_empty() {
            let _ = write!(out, "<text class=\"info\" y=\"13\">{}</text>", text::html(&info));
        }
        out.push_str("</g>\n");
    }
}

/// Which functions, and how many of each, the most frequent first.
fn kinds(run: &[&GraphNode], most: usize) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in run {
        *counts.entry(&node.name).or_default() += 1;
    }
    let mut counts: Vec<(usize, &str)> = counts.into_iter().map(|(name, n)| (n, name)).collect();
    counts.sort_by_key(|&(n, _)| std::cmp::Reverse(n));
    let more = if counts.len() > most { ", …" } else { "" };
    let shown: Vec<String> = counts.iter().take(most).map(|(n, name)| format!("{name} × {n}")).collect();
    shown.join(", ") + more
}

fn draw_line(out: &mut String, line: &Line) {
    let ((x, y), (u, v)) = (line.from, line.to);
    let middle = (y + v) / 2.0;
    let to = line.consumer.map_or(String::new(), |to| format!(" data-to=\"{to}\" marker-end=\"url(#tip)\""));
    let _ = write!(out, "<path class=\"line\" data-from=\"{}\"{to} d=\"M{x:.1} {y:.1}", line.producer);
    let _ = match (x - u).abs() < 0.5 {
        true => writeln!(out, "V{v:.1}\"/>"),
        false => writeln!(out, "C{x:.1} {middle:.1} {u:.1} {middle:.1} {u:.1} {v:.1}\"/>"),
    };
}
