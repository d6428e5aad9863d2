//! Tensors as text, laid out as PyTorch's `print(tensor)` lays them out.
//!
//! The rules are those of `torch/_tensor_str.py`, quirks included: one style and one width serve
//! the whole tensor, both are taken from the finite nonzero values that are shown, and a `nan` or
//! `inf` wider than that width sticks out. The one deliberate difference is that a dtype is spelled
//! `dtype=float64`, not `dtype=torch.float64`.

use std::ops::Range;

/// The values to print, row-major. Narrower integers and floats are widened by the caller, which
/// changes no printed digit: PyTorch widens them too.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    Bool(&'a [bool]),
    Int(&'a [i64]),
    Float(&'a [f64]),
}

/// What `torch.set_printoptions` sets, with the same defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrintOptions {
    /// Digits after the decimal point.
    pub precision: usize,
    /// A tensor with more elements than this is summarised.
    pub threshold: usize,
    /// How many entries a summary keeps at each end of a dimension. With 0 the shape is printed too.
    pub edge_items: usize,
    /// The column to wrap at.
    pub line_width: usize,
    /// Forces scientific notation on or off; `None` lets the values decide.
    pub sci_mode: Option<bool>,
}

impl Default for PrintOptions {
    fn default() -> Self {
        Self { precision: 4, threshold: 1000, edge_items: 3, line_width: 80, sci_mode: None }
    }
}

/// The indices printed along one dimension, before and after the `...`. Where nothing is left out
/// the two ranges meet.
pub type Shown = [Range<usize>; 2];

const PREFIX: &str = "tensor(";

/// Which indices are printed along each dimension, so that a caller need read no others from the
/// device; `None` when every element is printed.
pub fn shown(shape: &[usize], options: &PrintOptions) -> Option<Vec<Shown>> {
    let edge = options.edge_items;
    let cut = |size: usize| size > edge.saturating_mul(2);
    if count(shape.iter().copied()) <= options.threshold || !shape.iter().any(|&size| cut(size)) {
        return None;
    }
    let along = |&size: &usize| if cut(size) { [0..edge, size - edge..size] } else { whole(size) };
    Some(shape.iter().map(along).collect())
}

/// The text of a tensor.
///
/// `values` holds either every element or, for a summarised tensor, just those at the indices
/// [`shown`] names; any other number of values is a caller's mistake, and the text says so.
///
/// `dtype` is `None` where PyTorch leaves it out: the default types, except that an empty integer
/// or bool tensor names its dtype, having no element to tell it by. `device` is `None` for the CPU.
/// `suffixes` come last, as given.
pub fn format(
    shape: &[usize],
    values: Values<'_>,
    dtype: Option<&str>,
    device: Option<&str>,
    suffixes: &[String],
    options: &PrintOptions,
) -> String {
    let empty = shape.contains(&0);
    let body = if empty { "[]".to_string() } else { body(shape, values, options) };

    let mut all = Vec::new();
    all.extend(device.map(|name| format!("device='{name}'")));
    // The brackets do not tell the shape of an empty tensor, except (0,), nor of a bare `...`.
    let shape_untold = if empty { shape.len() != 1 } else { options.edge_items == 0 };
    if shape_untold {
        all.push(format!("size={}", tuple(shape)));
    }
    all.extend(dtype.map(|name| format!("dtype={name}")));
    all.extend(suffixes.iter().cloned());

    append_suffixes(format!("{PREFIX}{body}"), &all, options.line_width)
}

/// A shape as Python writes a tuple: `()`, `(3,)`, `(0, 3)`.
fn tuple(shape: &[usize]) -> String {
    match shape {
        [size] => format!("({size},)"),
        _ => {
            let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
            format!("({})", sizes.join(", "))
        }
    }
}

fn count(sizes: impl Iterator<Item = usize>) -> usize {
    // A zero anywhere wins, even after the product has saturated.
    sizes.fold(1, usize::saturating_mul)
}

fn whole(size: usize) -> Shown {
    [0..size, size..size]
}

/// The nested brackets, without the `tensor(` around them.
fn body(shape: &[usize], values: Values<'_>, options: &PrintOptions) -> String {
    let given = match values {
        Values::Bool(all) => all.len(),
        Values::Int(all) => all.len(),
        Values::Float(all) => all.len(),
    };
    let dims = shown(shape, options).unwrap_or_else(|| shape.iter().map(|&size| whole(size)).collect());
    let offsets = if given == count(dims.iter().map(|[head, tail]| head.len() + tail.len())) {
        None
    } else if given == count(shape.iter().copied()) {
        Some(offsets(shape, &dims))
    } else {
        return format!("<{given} values for shape {shape:?}>");
    };
    let offsets = offsets.as_deref();
    let (cells, width) = match values {
        Values::Bool(all) => {
            exact_cells(&pick(all, offsets), |v| if v { "True" } else { "False" }.to_string())
        }
        Values::Int(all) => exact_cells(&pick(all, offsets), |v| v.to_string()),
        Values::Float(all) => float_cells(&pick(all, offsets), options),
    };
    let mut writer =
        Writer { text: String::new(), cells: cells.into_iter(), width, line_width: options.line_width };
    writer.write(&dims, PREFIX.len());
    writer.text
}

/// Where the shown elements lie in the row-major order of the whole tensor.
fn offsets(shape: &[usize], dims: &[Shown]) -> Vec<usize> {
    let mut at = vec![0];
    for (size, [head, tail]) in shape.iter().zip(dims) {
        let along = || head.clone().chain(tail.clone());
        at = at.iter().flat_map(|base| along().map(move |index| base * size + index)).collect();
    }
    at
}

fn pick<T: Copy>(all: &[T], offsets: Option<&[usize]>) -> Vec<T> {
    match offsets {
        None => all.to_vec(),
        Some(offsets) => offsets.iter().filter_map(|&at| all.get(at).copied()).collect(),
    }
}

/// The text of each integer or bool, and the width they share.
fn exact_cells<T: Copy>(values: &[T], text: impl Fn(T) -> String) -> (Vec<String>, usize) {
    let cells: Vec<String> = values.iter().map(|&value| text(value)).collect();
    let width = cells.iter().map(String::len).max().unwrap_or(1);
    (cells, width)
}

#[derive(Clone, Copy)]
enum Style {
    /// `3.`: every finite value is whole.
    Whole,
    Fixed,
    Scientific,
}

/// The text of each float, and the width they share.
fn float_cells(values: &[f64], options: &PrintOptions) -> (Vec<String>, usize) {
    // Zero and the non-finite take part neither in the choice of style nor in the width.
    let telling: Vec<f64> =
        values.iter().copied().filter(|value| value.is_finite() && *value != 0.0).collect();
    let plain = if telling.iter().all(|value| value.fract() == 0.0) { Style::Whole } else { Style::Fixed };
    let min = telling.iter().fold(f64::INFINITY, |min, value| min.min(value.abs()));
    let max = telling.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let scientific = options.sci_mode.unwrap_or(max / min > 1000.0 || max > 1e8 || min < 1e-4);
    // With no value to tell by, PyTorch does not heed even a forced `sci_mode`.
    let style = if scientific && !telling.is_empty() { Style::Scientific } else { plain };
    let text = |value: &f64| float_text(*value, style, options.precision);
    let width = telling.iter().map(|value| text(value).len()).max().unwrap_or(1);
    (values.iter().map(text).collect(), width)
}

fn float_text(value: f64, style: Style, precision: usize) -> String {
    if value.is_nan() {
        return "nan".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    // No f64 has a nonzero digit past the 1074th, and Rust panics on a precision near 2^16.
    let precision = precision.min(1074);
    match style {
        Style::Whole => format!("{value:.0}."),
        Style::Fixed => format!("{value:.precision$}"),
        Style::Scientific => {
            // Rust writes `1e-8` and `1e8` where Python writes `1e-08` and `1e+08`.
            let text = format!("{value:.precision$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
    }
}

struct Writer {
    text: String,
    /// The shown elements not yet written, in order.
    cells: std::vec::IntoIter<String>,
    width: usize,
    line_width: usize,
}

impl Writer {
    /// Writes the next element, row, matrix and so on, down to whichever `dims` are left;
    /// `indent` is the column its bracket opens at.
    fn write(&mut self, dims: &[Shown], indent: usize) {
        let Some(([head, tail], inner)) = dims.split_first() else {
            let cell = self.cells.next().unwrap_or_default();
            self.text.push_str(&" ".repeat(self.width.saturating_sub(cell.len())));
            self.text.push_str(&cell);
            return;
        };
        let per_line = if inner.is_empty() {
            // Two more for the comma and the space; a line holds one element however narrow it is.
            (self.line_width.saturating_sub(indent) / (self.width + 2)).max(1)
        } else {
            1
        };
        let elided = head.end < tail.start;
        self.text.push('[');
        for slot in 0..head.len() + usize::from(elided) + tail.len() {
            if slot > 0 && slot % per_line == 0 {
                // Rows are a line apart; each further dimension adds a blank line.
                self.text.push(',');
                self.text.push_str(&"\n".repeat(inner.len().max(1)));
                self.text.push_str(&" ".repeat(indent + 1));
            } else if slot > 0 {
                self.text.push_str(", ");
            }
            if elided && slot == head.len() {
                // PyTorch pads the dots that stand between numbers.
                self.text.push_str(if inner.is_empty() && slot > 0 { " ..." } else { "..." });
            } else {
                self.write(inner, indent + 1);
            }
        }
        self.text.push(']');
    }
}

/// Closes the bracket after the suffixes, moving each one that would pass `line_width` to a new
/// line under the first element.
fn append_suffixes(mut text: String, suffixes: &[String], line_width: usize) -> String {
    // PyTorch counts from two columns past the end of the last line; where it wraps depends on it.
    let mut column = text.rsplit('\n').next().map_or(0, str::len) + 2;
    for suffix in suffixes {
        // Python counts characters, and a name the caller gives need not be ASCII.
        let length = suffix.chars().count();
        if column + length + 2 > line_width {
            text.push_str(",\n");
            text.push_str(&" ".repeat(PREFIX.len()));
            column = PREFIX.len() + length;
        } else {
            text.push_str(", ");
            column += length + 2;
        }
        text.push_str(suffix);
    }
    text.push(')');
    text
}
