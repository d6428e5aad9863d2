//! The attention kernels, in every variant, against the CPU's in f64; and the fused gradient against the formula.

use std::panic::Location;

use super::kernel::{Attention, AttentionBackward};
use crate::autograd::{Backward, grad_with};
use crate::backend::cpu;
use crate::graph::dtype::DType::{self, Bool, F32, F64};
use crate::graph::dtype::Element;
use crate::graph::kernel::Structured;
use crate::graph::layout::{Layout, numel};
use crate::ops::structured_tests::{at, call, coordinates, noise, run};
use crate::tensor::{Tensor, options};

/// q, k, v and the gradient of the result, in some memory order, and a mask.
struct Case {
    batch: Vec<usize>,
    l: usize,
    s: usize,
    e: usize,
    v: usize,
    causal: bool,
    mask: Option<DType>,
    lie: &'static str,
}

impl Case {
    fn layout(&self, rows: usize, columns: usize) -> Layout {
        let shape = [&self.batch[..], &[rows, columns]].concat();
        let rank = shape.len();
        match self.lie {
            "plain" => Layout::contiguous(&shape),
            "shifted" => Layout { offset: 1, ..Layout::contiguous(&shape) },
            // Columns far apart.
            "turned" => {
                let mut turned = shape.clone();
                turned.swap(rank - 1, rank - 2);
                let mut order: Vec<usize> = (0..rank).collect();
                order.swap(rank - 1, rank - 2);
                Layout::contiguous(&turned).permute(&order)
            }
            // Heads inside rows, in rows that are longer still.
            "heads" => {
                let mut memory = shape.clone();
                memory.swap(rank - 2, rank - 3);
                memory[rank - 1] += 8;
                let mut order: Vec<usize> = (0..rank).collect();
                order.swap(rank - 2, rank - 3);
                Layout::contiguous(&memory).permute(&order).slice(rank - 1, 4, columns, 1)
            }
            "broadcast" => {
                let mut one = shape.clone();
                one[0] = 1;
                Layout::contiguous(&one).expand(&shape).unwrap()
            }
            _ => unreachable!(),
        }
    }

    fn inputs(&self) -> Vec<(DType, Layout)> {
        let shapes = [(self.l, self.e), (self.s, self.e), (self.s, self.v), (self.l, self.v)];
        shapes.map(|(rows, columns)| (F32, self.layout(rows, columns))).into()
    }

    fn mask_input(&self) -> Option<(DType, Layout)> {
        let shape = [&self.batch[..], &[self.l, self.s]].concat();
        self.mask.map(|dtype| (dtype, Layout::contiguous(&shape[shape.len() - 2..]).expand(&shape).unwrap()))
    }

    fn scale(&self) -> f64 {
        0.75 / (self.e as f64).sqrt()
    }

    fn forward(&self) -> (Attention, Vec<usize>) {
        let shape = [&self.batch[..], &[self.l, self.v]].concat();
        let size = numel(&shape);
        let op = Attention {
            causal: self.causal,
            scale: self.scale(),
            out: Layout::contiguous(&shape),
            lse: Some(size),
        };
        (op, vec![size + numel(&self.batch) * self.l])
    }

    fn backward(&self) -> (AttentionBackward, Vec<usize>) {
        let mut end = 0;
        let grads = [(self.l, self.e), (self.s, self.e), (self.s, self.v)].map(|(rows, columns)| {
            let shape = [&self.batch[..], &[rows, columns]].concat();
            let place = Layout { offset: end, ..Layout::contiguous(&shape) };
            end += numel(&shape);
            place
        });
        (AttentionBackward { causal: self.causal, scale: self.scale(), grads }, vec![end])
    }

    fn data(&self) -> Vec<Vec<f32>> {
        let inputs = self.inputs();
        inputs.iter().enumerate().map(|(i, (_, layout))| noise(layout.end(), 20 + i as u32)).collect()
    }

    fn mask_values(&self) -> Vec<f32> {
        // Row 1 sees nothing.
        let masked = |i: usize, v: f32| v > 0.4 || i / self.s == 1;
        noise(self.l * self.s, 30)
            .iter()
            .enumerate()
            .map(|(i, &v)| match self.mask {
                Some(Bool) => f32::from(u8::from(!masked(i, v))),
                _ if masked(i, v) => f32::NEG_INFINITY,
                _ => v,
            })
            .collect()
    }
}

fn as_f64(values: &[f32]) -> Vec<u8> {
    f64::to_bytes(&values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
}

fn mask_bytes(case: &Case, dtype: DType) -> Vec<u8> {
    let values = case.mask_values();
    match (case.mask, dtype) {
        (Some(Bool), _) => bool::to_bytes(&values.iter().map(|&v| v != 0.0).collect::<Vec<_>>()),
        (_, F64) => as_f64(&values),
        _ => f32::to_bytes(&values),
    }
}

fn typed(inputs: &[(DType, Layout)], dtype: DType) -> Vec<(DType, Layout)> {
    inputs.iter().map(|(d, l)| (if *d == F32 { dtype } else { *d }, l.clone())).collect()
}

/// Both passes on the CPU in f64: output with sums, and gradients.
fn expected(case: &Case, data: &[Vec<f32>]) -> (Vec<f64>, Vec<f64>) {
    let device = cpu::device();
    let mut inputs = typed(&case.inputs(), F64);
    let mut bytes: Vec<Vec<u8>> = data.iter().map(|d| as_f64(d)).collect();
    let mask = case.mask_input().map(|m| (typed(&[m], F64).remove(0), mask_bytes(case, F64)));
    let (op, shape) = case.forward();
    let (mut first, mut given) = (inputs[..3].to_vec(), bytes[..3].to_vec());
    if let Some((m, b)) = &mask {
        first.push(m.clone());
        given.push(b.clone());
    }
    let out = f64::from_bytes(&run(&*device, &call(op, &first, &shape, F64), &given).unwrap());
    let (lse, delta) = statistics(case, &out, data);
    let rows = Layout::contiguous(&[&case.batch[..], &[case.l]].concat());
    for values in [lse, delta] {
        inputs.push((F64, rows.clone()));
        bytes.push(f64::to_bytes(&values));
    }
    if let Some((m, b)) = mask {
        inputs.push(m);
        bytes.push(b);
    }
    let (op, shape) = case.backward();
    let grads = run(&*device, &call(op, &inputs, &shape, F64), &bytes).unwrap();
    (out, f64::from_bytes(&grads))
}

/// The logarithms of the rows' sums, and the sums of gradient times result.
fn statistics(case: &Case, out: &[f64], data: &[Vec<f32>]) -> (Vec<f64>, Vec<f64>) {
    let shape = [&case.batch[..], &[case.l, case.v]].concat();
    let (g, size) = (case.layout(case.l, case.v), numel(&shape));
    let mut delta = vec![0.0; size / case.v];
    for (i, c) in coordinates(&shape).enumerate() {
        delta[i / case.v] += out[i] * f64::from(data[3][at(&g, &c)]);
    }
    (out[size..].to_vec(), delta)
}

#[track_caller]
fn near(name: &str, got: &[u8], expected: &[f64], tolerance: f64) {
    for (i, (g, &e)) in f32::from_bytes(got).into_iter().zip(expected).enumerate() {
        let g = f64::from(g);
        let fine = g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= tolerance * e.abs().max(1.0);
        assert!(fine, "{name}: element {i} is {g}, not {e}");
    }
}

/// Both passes in f32, as ops made by these functions.
fn compare(
    name: &str,
    case: &Case,
    data: &[Vec<f32>],
    run: impl Fn(&Structured, &[Vec<u8>]) -> Vec<u8>,
    calls: (
        impl Fn(&Case, &[(DType, Layout)]) -> Structured,
        impl Fn(&Case, &[(DType, Layout)]) -> Structured,
    ),
) {
    let (out, grads) = expected(case, data);
    let mut inputs = case.inputs();
    let mut bytes: Vec<Vec<u8>> = data.iter().map(|d| f32::to_bytes(d)).collect();
    let mask = case.mask_input().map(|m| (m, mask_bytes(case, F32)));
    let (mut first, mut given) = (inputs[..3].to_vec(), bytes[..3].to_vec());
    if let Some((m, b)) = &mask {
        first.push(m.clone());
        given.push(b.clone());
    }
    // Sums of some hundred terms of size one, each with a rounding of 6e-8, and exponentials good to 1e-6.
    near(&format!("{name}, forward"), &run(&calls.0(case, &first), &given), &out, 1e-5);
    let (lse, delta) = statistics(case, &out, data);
    let rows = Layout::contiguous(&[&case.batch[..], &[case.l]].concat());
    for values in [lse, delta] {
        inputs.push((F32, rows.clone()));
        bytes.push(f32::to_bytes(&values.iter().map(|&v| v as f32).collect::<Vec<_>>()));
    }
    if let Some((m, b)) = mask {
        inputs.push(m);
        bytes.push(b);
    }
    near(&format!("{name}, backward"), &run(&calls.1(case, &inputs), &bytes), &grads, 3e-5);
}

fn cases() -> Vec<Case> {
    let case = |batch: &[usize], [l, s, e, v]: [usize; 4], causal, mask, lie| Case {
        batch: batch.into(),
        l,
        s,
        e,
        v,
        causal,
        mask,
        lie,
    };
    vec![
        case(&[1], [1, 1, 1, 1], false, None, "plain"),
        case(&[2, 3], [5, 7, 4, 8], false, None, "plain"),
        case(&[2, 2], [33, 33, 16, 16], true, None, "heads"),
        case(&[3], [31, 70, 5, 3], true, None, "shifted"),
        case(&[3], [70, 31, 3, 6], true, None, "turned"),
        case(&[2, 1, 2], [9, 40, 12, 8], false, Some(Bool), "broadcast"),
        case(&[1, 2], [20, 130, 16, 4], false, Some(F32), "heads"),
    ]
}

#[test]
fn attention_on_the_cpu_in_f32() {
    let device = cpu::device();
    for (i, case) in cases().iter().enumerate() {
        let run = |call: &Structured, data: &[Vec<u8>]| run(&*device, call, data).unwrap();
        let forward = |case: &Case, inputs: &[(DType, Layout)]| {
            let (op, shape) = case.forward();
            call(op, inputs, &shape, F32)
        };
        let backward = |case: &Case, inputs: &[(DType, Layout)]| {
            let (op, shape) = case.backward();
            call(op, inputs, &shape, F32)
        };
        compare(&format!("case {i}"), case, &case.data(), run, (forward, backward));
    }
}

#[cfg(feature = "gpu")]
mod on_gpus {
    use super::super::kernel::{Kernel, Pass, Problem, VARIANTS};
    use super::*;
    use crate::backend::gpu::ShaderCall;
    use crate::ops::structured_tests::{Forced, gpu};

    fn in_variant(kernels: (Kernel, Kernel), name: &str, case: &Case, data: &[Vec<f32>]) {
        let device = gpu();
        let run = |call: &Structured, data: &[Vec<u8>]| run(&*device, call, data).unwrap();
        let forward = |case: &Case, inputs: &[(DType, Layout)]| {
            let (op, shape) = case.forward();
            let calls =
                move |call: &Structured| vec![Problem::forward(&op, call).calls(Pass::Forward, kernels.0)];
            call(Forced("forced_attention", false, None, calls), inputs, &shape, F32)
        };
        let backward = |case: &Case, inputs: &[(DType, Layout)]| {
            let (op, shape) = case.backward();
            let calls = move |call: &Structured| -> Vec<ShaderCall> {
                let problem = Problem::backward(&op, call);
                problem.gradients(kernels.1)
            };
            call(Forced("forced_attention_backward", false, None, calls), inputs, &shape, F32)
        };
        compare(&format!("{kernels:?} {name}"), case, data, run, (forward, backward));
    }

    /// All, with the columns that they take.
    fn kernels() -> impl Iterator<Item = ((Kernel, Kernel), usize)> {
        let device = gpu();
        // More rows at a time than the table has for these.
        let more = [((Kernel::Wide { rows: 16 }, Kernel::Wide { rows: 16 }), 128)];
        let all = VARIANTS.iter().map(|v| ((v.0, v.1), v.2)).chain(more);
        all.filter(move |((forward, _), _)| forward.runs_on(device.info()))
    }

    #[test]
    fn every_variant_of_attention() {
        for (kernel, _) in kernels() {
            for (i, case) in cases().iter().enumerate() {
                in_variant(kernel, &format!("case {i}"), case, &case.data());
            }
        }
    }

    #[test]
    fn attention_of_wide_rows() {
        for (kernel, most) in kernels().filter(|&(_, most)| most > 16) {
            let wide =
                |e, v, causal| Case { batch: vec![2], l: 37, s: 45, e, v, causal, mask: None, lie: "heads" };
            let case = Case { batch: vec![2, 1], ..wide(most, most - 3, true) };
            in_variant(kernel, "wide", &case, &case.data());
        }
    }

    #[test]
    fn attention_of_any_width() {
        let widths = [
            [1, 3],
            [31, 33],
            [63, 64],
            [64, 64],
            [65, 80],
            [96, 96],
            [127, 128],
            [129, 2],
            [33, 255],
            [256, 256],
        ];
        for (i, [e, v]) in widths.into_iter().enumerate() {
            let lie = ["heads", "plain", "shifted", "turned"][i % 4];
            let case = Case { batch: vec![2, 1], l: 37, s: 70, e, v, causal: i % 2 == 0, mask: None, lie };
            let taken = kernels().find(|&(_, most)| most >= e.max(v)).map(|(kernel, _)| kernel);
            let wide = (i % 3 == 0).then_some((Kernel::Wide { rows: 8 }, Kernel::Wide { rows: 8 }));
            for kernel in taken.into_iter().chain(wide.filter(|(k, _)| k.runs_on(gpu().info()))) {
                in_variant(kernel, &format!("{e} and {v}"), &case, &case.data());
            }
        }
    }

    #[test]
    fn attention_of_infinities() {
        // Two queries that are no numbers, or infinite: their results are no numbers, nor are gradients by keys and values of
        // their batch, and nothing else.
        let case = Case { batch: vec![2], l: 64, s: 40, e: 8, v: 8, causal: false, mask: None, lie: "plain" };
        let mut data = case.data();
        data[0][5 * 8 + 1] = f32::NAN;
        data[0][37 * 8] = f32::INFINITY;
        for (kernel, _) in kernels() {
            in_variant(kernel, "infinities", &case, &data);
        }
    }
}

/// The fused gradient and the formula, which a graph of the gradient is made of, on both devices.
#[test]
fn the_fused_gradient_is_the_formula() {
    let mut devices = vec![crate::device::cpu()];
    devices.extend(crate::device::gpu().ok());
    for device in devices {
        for (causal, masked, gqa) in
            [(false, false, false), (true, false, false), (false, true, false), (true, false, true)]
        {
            crate::device::manual_seed(7);
            let make = || options().device(&device);
            let qkv = make().randn([2, 19, 3 * 16]).requires_grad_(true);
            let heads = |i: i64| qkv.narrow(-1, 16 * i, 16).reshape([2, 19, 4, 4]).transpose(1, 2);
            let few = |i: i64| if gqa { heads(i).narrow(1, 0, 2) } else { heads(i) };
            let mask = make().rand([19, 19]).gt(0.3);
            let how = super::Attention {
                attn_mask: masked.then_some(mask),
                is_causal: causal,
                enable_gqa: gqa,
                ..Default::default()
            };
            let y = heads(0).scaled_dot_product_attention_with(&few(1), &few(2), &how);
            let y = y.transpose(1, 2).reshape([2, 19, 16]);
            let g = make().randn([2, 19, 16]);
            let by = |graph: bool| -> Tensor {
                let how = Backward::new().gradient(&g).retain_graph(true).create_graph(graph);
                grad_with(&[&y], &[&qkv], how).unwrap().remove(0)
            };
            let (fused, formula) = (by(false), by(true));
            let off = (fused - &formula).abs().max().item::<f32>().unwrap();
            let size = formula.abs().max().item::<f32>().unwrap();
            assert!(
                off <= 2e-5 * size,
                "{off} of {size}, causal {causal}, masked {masked}, grouped {gqa} at {}",
                Location::caller()
            );
        }
    }
}

#[test]
fn writing_into_the_result_and_its_views() {
    let x = options().device(crate::device::cpu()).dtype(F64).randn([1, 2, 3, 4]).requires_grad_(true);
    let heads = || x.transpose(1, 2);
    let plain = {
        let y = heads().scaled_dot_product_attention(&heads(), &heads());
        let first = y.select(2, 0).mul(3.0);
        grad_with(&[&(y.mul(2.0).sum() + first.sum())], &[&x], Backward::new()).unwrap().remove(0)
    };
    let written = {
        let y = heads().scaled_dot_product_attention(&heads(), &heads());
        let first = y.select(2, 0).mul(3.0);
        y.mul_(2.0);
        grad_with(&[&(y.sum() + first.sum())], &[&x], Backward::new()).unwrap().remove(0)
    };
    assert!((plain - written).abs().max().item::<f64>().unwrap() < 1e-12);
    let plain = {
        let y = heads().scaled_dot_product_attention(&heads(), &heads());
        grad_with(&[&(y.sum() + y.select(2, 0).sum())], &[&x], Backward::new()).unwrap().remove(0)
    };
    let written = {
        let y = heads().scaled_dot_product_attention(&heads(), &heads());
        y.select(2, 0).mul_(2.0);
        grad_with(&[&y.sum()], &[&x], Backward::new()).unwrap().remove(0)
    };
    assert!((plain - written).abs().max().item::<f64>().unwrap() < 1e-12);
}
