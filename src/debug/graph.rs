//! The autograd graph as a picture.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;

use super::{Tensors, page, text};
use crate::autograd::GradFn;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::dtype::DType;
use crate::tensor::{Tensor, WeakTensor};

/// The functions behind tensors, the leaves that they end in, and who hands gradients on to whom: what [`graph`]
/// found. Plain data: it keeps no tensor alive.
#[derive(Clone)]
pub struct Graph {
    /// Each once: outputs first, then by their distance from them.
    pub nodes: Vec<GraphNode>,
    /// Pairs of positions in `nodes`: what was made first, then what was made from it. Gradients flow the other way. A
    /// function that takes one tensor twice has two edges from there.
    pub edges: Vec<(usize, usize)>,
    leaves: Vec<(usize, WeakTensor)>,
}

/// One node of the picture.
#[derive(Clone, Debug)]
pub struct GraphNode {
    pub kind: GraphNodeKind,
    /// PyTorch's name of a function; `output`; a leaf's name as a parameter, else `leaf`.
    pub name: String,
    /// The shapes and types of the tensors that a function made; a tensor's own.
    pub shapes: Vec<Vec<usize>>,
    pub dtypes: Vec<DType>,
    /// Bytes of the values that a function holds for the way back.
    pub saved_bytes: usize,
    /// Whether a backward pass has been through, and what was saved is gone.
    pub freed: bool,
    /// The line of your code that recorded it.
    pub caller: Option<&'static Location<'static>>,
}

/// What sort of node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GraphNodeKind {
    /// A tensor whose graph this is.
    Output,
    /// A function that passes gradients on.
    Function,
    /// The function at the end of a way, which adds to a leaf's `grad`.
    Accumulate,
    /// A leaf that requires grad.
    Leaf,
}

/// The autograd graph of one tensor or several, as it is now.
///
/// Draws what `torchviz.make_dot` draws: leaves on top, the functions that they went through, outputs at the bottom.
///
/// ```
/// # use wgrad::prelude::*;
/// let w = ones([3]).requires_grad_(true);
/// let loss = (&w * 2.0).sum();
/// let graph = debug::graph(&loss).params([("w", &w)]);
/// // output ← SumBackward0 ← MulBackward0 ← AccumulateGrad ← w
/// assert_eq!((graph.nodes.len(), graph.edges.len()), (5, 4));
/// assert!(graph.dot().contains("MulBackward0"));
/// let file = std::env::temp_dir().join("wgrad-graph-example.html");
/// graph.save(&file)?; // open it in a browser
/// # std::fs::remove_file(file).unwrap();
/// # Ok::<(), wgrad::Error>(())
/// ```
pub fn graph(tensors: &(impl Tensors + ?Sized)) -> Graph {
    let mut graph = Graph { nodes: vec![], edges: vec![], leaves: vec![] };
    let mut known: HashMap<*const GradFn, usize> = HashMap::new();
    let mut queue: VecDeque<(usize, Arc<GradFn>)> = VecDeque::new();
    // Those that are outputs too. All others are met once, for a leaf has one accumulator.
    let mut leaves: Vec<(Tensor, usize)> = vec![];
    for tensor in tensors.tensors() {
        let at = graph.tensor(GraphNodeKind::Output, "output", &tensor);
        match tensor.grad_fn() {
            Some(function) => graph.link(at, function, &mut known, &mut queue),
            // A leaf is its own graph, unless it needs no gradient.
            None if tensor.requires_grad() => {
                let leaf = graph.leaf(at, &tensor, &leaves);
                leaves.push((tensor, leaf));
            }
            None => {}
        }
    }
    while let Some((at, function)) = queue.pop_front() {
        if let Some(leaf) = function.variable() {
            graph.leaf(at, &leaf, &leaves);
        }
        for next in function.next_functions().into_iter().flatten() {
            graph.link(at, next, &mut known, &mut queue);
        }
    }
    graph
}

impl Graph {
    fn tensor(&mut self, kind: GraphNodeKind, name: &str, tensor: &Tensor) -> usize {
        self.nodes.push(GraphNode {
            kind,
            name: name.to_string(),
            shapes: vec![tensor.shape().to_vec()],
            dtypes: vec![tensor.dtype()],
            saved_bytes: 0,
            freed: false,
            caller: Some(tensor.node().caller),
        });
        self.nodes.len() - 1
    }

    fn leaf(&mut self, consumer: usize, leaf: &Tensor, known: &[(Tensor, usize)]) -> usize {
        let place = known.iter().find(|(l, _)| l.is_same(leaf)).map(|(_, at)| *at);
        let at = place.unwrap_or_else(|| {
            let at = self.tensor(GraphNodeKind::Leaf, "leaf", leaf);
            self.leaves.push((at, leaf.downgrade()));
            at
        });
        self.edges.push((at, consumer));
        at
    }

    fn link(
        &mut self,
        consumer: usize,
        function: Arc<GradFn>,
        known: &mut HashMap<*const GradFn, usize>,
        queue: &mut VecDeque<(usize, Arc<GradFn>)>,
    ) {
        let at = *known.entry(Arc::as_ptr(&function)).or_insert_with(|| {
            let accumulates = function.name() == "AccumulateGrad";
            self.nodes.push(GraphNode {
                kind: if accumulates { GraphNodeKind::Accumulate } else { GraphNodeKind::Function },
                name: function.name().to_string(),
                shapes: function.output_shapes().into_iter().map(<[usize]>::to_vec).collect(),
                dtypes: function.outputs().iter().map(|o| o.dtype).collect(),
                saved_bytes: function.saved_bytes(),
                freed: function.is_freed(),
                // Accumulators are made when they are first needed, wherever that is.
                caller: (!accumulates).then(|| function.caller()),
            });
            queue.push_back((self.nodes.len() - 1, function));
            self.nodes.len() - 1
        });
        self.edges.push((at, consumer));
    }

    /// Names leaves, as `torchviz`'s `params` does: `model.named_parameters()`, or pairs of a name and a tensor.
    /// Tensors that are not in the graph are passed by.
    ///
    /// ```
    /// # use wgrad::prelude::*;
    /// let model = sequential![Linear::new(4, 3), Tanh, Linear::new(3, 1)];
    /// let loss = model.forward(&ones([2, 4])).sum();
    /// let graph = debug::graph(&loss).params(model.named_parameters());
    /// assert!(graph.nodes.iter().any(|node| node.name == "0.weight"));
    /// ```
    pub fn params<N: AsRef<str>, T: std::borrow::Borrow<Tensor>>(
        mut self,
        params: impl IntoIterator<Item = (N, T)>,
    ) -> Graph {
        for (name, param) in params {
            let param: &Tensor = param.borrow();
            // An entry of a state dict is another handle on the same values.
            let is = |leaf: Tensor| {
                leaf.is_same(param) || (leaf.shares_storage(param) && leaf.layout() == param.layout())
            };
            for (at, leaf) in &self.leaves {
                if leaf.upgrade().is_some_and(is) {
                    self.nodes[*at].name = name.as_ref().to_string();
                }
            }
        }
        self
    }

    /// Bytes of all values that the functions hold for the way back. A value that two of them hold counts twice.
    pub fn saved_bytes(&self) -> usize {
        self.nodes.iter().map(|node| node.saved_bytes).sum()
    }

    /// The whole graph in Graphviz's language.
    pub fn dot(&self) -> String {
        let mut out = String::from(
            "digraph autograd {\n  node [shape=box, style=filled, fontname=\"Helvetica\", fontsize=11, color=\"#64748b\"];\n  \
             edge [color=\"#64748b\", arrowsize=0.7];\n",
        );
        // Writing to a string does not fail.
        for (i, node) in self.nodes.iter().enumerate() {
            let color = match node.kind {
                GraphNodeKind::Output => "#bbf7d0",
                GraphNodeKind::Function if node.freed => "#e5e7eb",
                GraphNodeKind::Function => "#f1f5f9",
                GraphNodeKind::Accumulate => "#e9d5ff",
                GraphNodeKind::Leaf => "#bfdbfe",
            };
            let label = text::dot(&format!("{}\n{}", node.name, node.summary()));
            let tip = text::dot(&node.line().unwrap_or_default());
            let _ = writeln!(out, "  n{i} [label={label}, tooltip={tip}, fillcolor=\"{color}\"];");
        }
        for (from, to) in &self.edges {
            let _ = writeln!(out, "  n{from} -> n{to};");
        }
        out.push_str("}\n");
        out
    }

    /// A page of its own, for any browser: the graph to pan and to zoom, with what is known of a node when it is
    /// clicked. It loads nothing. Of a very large graph the part next to the outputs is drawn, and runs of functions
    /// are drawn as one; the page says what was left out.
    pub fn html(&self) -> String {
        page::html(self)
    }

    /// Writes [`html`](Graph::html) to a file whose name ends in `.html` or `.htm`, [`dot`](Graph::dot) to one in `.dot`
    /// or `.gv`.
    ///
    /// # Errors
    /// If the name ends in none of these, or the file cannot be written.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = match path.extension().and_then(|e| e.to_str()) {
            Some("html" | "htm") => self.html(),
            Some("dot" | "gv") => self.dot(),
            _ => {
                let message = format!("{}: a graph is saved as .html, or as .dot or .gv", path.display());
                return Err(Error::new(ErrorKind::Argument, "graph", message));
            }
        };
        crate::io::file::write("graph", path, text.as_bytes())
    }
}

impl GraphNode {
    /// Shapes, and bytes where any are held.
    pub(super) fn summary(&self) -> String {
        let shapes: Vec<String> = self.shapes.iter().map(|s| text::shape(s)).collect();
        let mut out = shapes.join(", ");
        if self.saved_bytes > 0 {
            let _ = write!(out, " · {} saved", text::bytes(self.saved_bytes as u64));
        }
        out
    }

    pub(super) fn line(&self) -> Option<String> {
        self.caller.map(|c| format!("{}:{}", c.file(), c.line()))
    }
}
