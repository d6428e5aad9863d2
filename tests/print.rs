//! Tensors as PyTorch prints them: `goldens/print.py` writes the cases (`goldens/print.txt`) and says what their
//! lines mean. `PRINT_GOLDENS` names another file of cases, such as its random ones.

mod common;

use std::fs;
use std::str::FromStr;

use common::devices;
use wgrad::prelude::*;
use wgrad::tensor::format::{Shown, Values, format, shown};
use wgrad::{PrintOptions, print_options};
enum Owned {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f64>),
}

impl Owned {
    fn values(&self) -> Values<'_> {
        match self {
            Owned::Bool(all) => Values::Bool(all),
            Owned::Int(all) => Values::Int(all),
            Owned::Float(all) => Values::Float(all),
        }
    }

    /// What a caller holds who reads from the device only what will be shown.
    fn keep(&self, shape: &[usize], dims: &[Shown]) -> Owned {
        fn keep<T: Copy>(all: &[T], shape: &[usize], dims: &[Shown]) -> Vec<T> {
            let is_shown = |mut at: usize| {
                shape.iter().zip(dims).rev().all(|(size, [head, tail])| {
                    let index = at % size;
                    at /= size;
                    head.contains(&index) || tail.contains(&index)
                })
            };
            all.iter().enumerate().filter(|(at, _)| is_shown(*at)).map(|(_, &value)| value).collect()
        }
        match self {
            Owned::Bool(all) => Owned::Bool(keep(all, shape, dims)),
            Owned::Int(all) => Owned::Int(keep(all, shape, dims)),
            Owned::Float(all) => Owned::Float(keep(all, shape, dims)),
        }
    }
}

#[derive(Default)]
struct Case<'a> {
    shape: Vec<usize>,
    kind: &'a str,
    source: (&'a str, &'a str),
    dtype: Option<&'a str>,
    device: Option<&'a str>,
    suffixes: Vec<String>,
    options: PrintOptions,
}

impl<'a> Case<'a> {
    fn parse(header: &'a str) -> Self {
        let mut case = Case::default();
        for line in header.lines() {
            let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "shape" => case.shape = numbers(rest),
                "kind" => case.kind = rest,
                "values" | "affine" | "lcg" => case.source = (key, rest),
                "dtype" => case.dtype = Some(rest),
                "device" => case.device = Some(rest),
                "suffix" => case.suffixes.push(rest.to_string()),
                "options" => rest.split(' ').for_each(|option| set(&mut case.options, option)),
                _ => panic!("unknown line: {line}"),
            }
        }
        case
    }

    fn values(&self) -> Owned {
        let (source, rest) = self.source;
        let numel = self.shape.iter().product();
        let states = || {
            std::iter::successors(Some(1u32), |s| Some(s.wrapping_mul(1664525).wrapping_add(1013904223)))
                .skip(1)
                .take(numel)
        };
        match (self.kind, source) {
            ("bool", "values") => Owned::Bool(numbers::<u8>(rest).iter().map(|&bit| bit == 1).collect()),
            ("bool", "lcg") => Owned::Bool(states().map(|s| s >> 31 == 1).collect()),
            ("int", "values") => Owned::Int(numbers(rest)),
            ("int", "affine") => {
                let [start, step] = numbers::<i64>(rest).try_into().unwrap();
                Owned::Int((0..numel as i64).map(|i| start + i * step).collect())
            }
            ("int", "lcg") => {
                let n: i64 = rest.parse().unwrap();
                Owned::Int(states().map(|s| i64::from(s) % (2 * n + 1) - n).collect())
            }
            (kind @ ("f32" | "f64"), _) => {
                let exact: Vec<f64> = match (source, numbers::<f64>(rest).as_slice()) {
                    ("affine", [start, step]) => (0..numel).map(|i| start + i as f64 * step).collect(),
                    ("lcg", [n]) => states().map(|s| (f64::from(s) / 2f64.powi(32) - 0.5) * n).collect(),
                    (_, values) => values.to_vec(),
                };
                let round = |value: f64| if kind == "f32" { f64::from(value as f32) } else { value };
                Owned::Float(exact.into_iter().map(round).collect())
            }
            other => panic!("unknown values: {other:?}"),
        }
    }
}

fn numbers<T: FromStr>(text: &str) -> Vec<T> {
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("not a number: {word}"));
    text.split_whitespace().map(number).collect()
}

fn set(options: &mut PrintOptions, option: &str) {
    let (key, value) = option.split_once('=').unwrap();
    match key {
        "precision" => options.precision = value.parse().unwrap(),
        "threshold" => options.threshold = value.parse().unwrap(),
        "edgeitems" => options.edge_items = value.parse().unwrap(),
        "linewidth" => options.line_width = value.parse().unwrap(),
        "sci_mode" => options.sci_mode = Some(value.parse().unwrap()),
        _ => panic!("unknown option: {key}"),
    }
}

#[test]
fn prints_as_pytorch_does() {
    let path = std::env::var("PRINT_GOLDENS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/print.txt").to_string());
    let goldens = fs::read_to_string(&path).unwrap();
    let cases: Vec<&str> = goldens.split("\n== ").skip(1).collect();
    assert!(cases.len() >= 80, "only {} cases in {path}", cases.len());
    let mut summarised = 0;
    let mut failures = String::new();
    for text in &cases {
        let (header, expected) = text.split_once("\n---\n").unwrap();
        let (name, header) = header.split_once('\n').unwrap();
        let expected = expected.trim_end_matches('\n');
        let case = Case::parse(header);
        let all = case.values();
        let print = |values: &Owned| {
            let Case { shape, dtype, device, suffixes, options, .. } = &case;
            format(shape, values.values(), *dtype, *device, suffixes, options)
        };
        let mut check = |how: &str, got: String| {
            if got != expected {
                failures += &format!("{name}, {how}\nPyTorch:\n{expected}\nours:\n{got}\n\n");
            }
        };
        check("from every value", print(&all));
        if let Some(dims) = shown(&case.shape, &case.options) {
            summarised += 1;
            check("from the shown values", print(&all.keep(&case.shape, &dims)));
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(summarised >= 10, "only {summarised} summarised cases in {path}");
}

#[test]
fn names_what_a_summary_shows() {
    let options = PrintOptions::default();
    assert_eq!(shown(&[1000], &options), None);
    assert_eq!(shown(&[], &PrintOptions { threshold: 0, ..options.clone() }), None);
    assert_eq!(shown(&[1001], &options), Some(vec![[0..3, 998..1001]]));
    assert_eq!(shown(&[6, 500], &options), Some(vec![[0..6, 6..6], [0..3, 497..500]]));
    assert_eq!(shown(&[5000, 0], &options), None);
}

#[test]
fn says_so_when_the_values_do_not_fit() {
    let print = |shape: &[usize], values: &[f64], options: &PrintOptions| {
        format(shape, Values::Float(values), None, None, &[], options)
    };
    let options = PrintOptions::default();
    assert_eq!(print(&[2, 2], &[1.0], &options), "tensor(<1 values for shape [2, 2]>)");
    assert_eq!(print(&[], &[], &options), "tensor(<0 values for shape []>)");
    let huge = [usize::MAX, usize::MAX];
    assert!(print(&huge, &[1.0], &options).starts_with("tensor(<1 values"));
    assert!(print(&huge, &[1.0; 36], &options).starts_with("tensor([[1., 1., 1.,  ..., 1."));
    let greedy = PrintOptions {
        precision: usize::MAX,
        threshold: 0,
        edge_items: usize::MAX,
        line_width: usize::MAX,
        sci_mode: Some(true),
    };
    assert!(print(&huge, &[1.0], &greedy).starts_with("tensor(<1 values"));
    assert!(print(&[1], &[0.1], &greedy).ends_with("e-01])"));
}

/// The whole way: from a tensor on a device.
#[test]
fn tensors_print_what_they_hold() {
    for device in devices() {
        let o = || options().device(&device);
        let print = |t: &Tensor| t.to_string().replace(", device='gpu:0'", "");
        assert_eq!(
            print(&o().tensor([1, -20])),
            "tensor([  1, -20], dtype=int32)".replace(", dtype=int32", "")
        );
        assert_eq!(print(&o().tensor([true, false])), "tensor([ True, False])");
        assert_eq!(print(&o().tensor(2.5)), "tensor(2.5000)");
        assert_eq!(print(&o().tensor([f32::NAN, f32::INFINITY, 1.0])), "tensor([nan, inf, 1.])");
        assert_eq!(
            print(&o().tensor([[1e-8, 1.0], [1e8, -0.0]])),
            "tensor([[1.0000e-08, 1.0000e+00],\n        [1.0000e+08, -0.0000e+00]])"
        );
        assert_eq!(print(&o().zeros([0, 3])), "tensor([], size=(0, 3))");
        assert_eq!(print(&o().dtype(I32).zeros(0)), "tensor([], dtype=int32)");
        let x = o().requires_grad(true).tensor([1.0, 2.0]);
        assert_eq!(print(&x), "tensor([1., 2.], requires_grad=True)");
        assert_eq!(print(&x.exp().sum()), "tensor(10.1073, grad_fn=<SumBackward0>)");
        assert_eq!(print(&x.i(1)), "tensor(2., grad_fn=<SelectBackward0>)");
        // Not contiguous, and only partly shown.
        let big = o().arange(0, 2000, 1).reshape([40, 50]).t();
        assert_eq!(
            print(&big),
            "tensor([[   0,   50,  100,  ..., 1850, 1900, 1950],\n        [   1,   51,  101,  ..., 1851, 1901, 1951],\n        \
             [   2,   52,  102,  ..., 1852, 1902, 1952],\n        ...,\n        [  47,   97,  147,  ..., 1897, 1947, 1997],\n        \
             [  48,   98,  148,  ..., 1898, 1948, 1998],\n        [  49,   99,  149,  ..., 1899, 1949, 1999]])"
        );
        if !device.is_cpu() {
            assert_eq!(o().tensor([1.0]).to_string(), "tensor([1.], device='gpu:0')");
        }
        // Printing is not recorded, and what is invalid says why.
        assert!(x.grad_fn().is_none());
        let bad = o().ones([2, 3]).matmul(&o().ones([2, 3]));
        assert!(
            bad.to_string()
                .starts_with("tensor(<invalid: matmul: shapes [2, 3] and [2, 3] cannot be multiplied")
        );
        assert!(format!("{bad:?}").contains("print.rs"));
    }
    let doubles = options().device(cpu()).dtype(F64).tensor([1.0, 0.5]);
    assert_eq!(doubles.to_string(), "tensor([1.0000, 0.5000], dtype=float64)");
    assert_eq!(print_options(), PrintOptions::default());
}
