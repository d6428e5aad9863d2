//! Convolutions and pools.

use super::*;
use crate::ops::conv::{Conv2d, Geometry, Part};
use crate::ops::pool::{Kind, Pool2d, Windows};

/// Images, channels, filters, groups; then size, kernel, stride, padding, dilation.
type Case = ([usize; 4], [[usize; 2]; 5]);

const CASES: [Case; 16] = [
    ([1, 1, 1, 1], [[3, 3], [2, 2], [1, 1], [0, 0], [1, 1]]),
    ([2, 3, 5, 1], [[5, 7], [3, 2], [1, 1], [1, 0], [1, 1]]),
    // Rows past every tile: 8, 16, 32, 64 and their ends; fours of channels, rows and places, or not.
    ([2, 8, 16, 1], [[8, 8], [3, 3], [1, 1], [1, 1], [1, 1]]),
    ([1, 4, 33, 1], [[9, 9], [3, 3], [1, 1], [1, 1], [1, 1]]),
    ([3, 12, 32, 1], [[7, 6], [3, 3], [1, 1], [1, 1], [1, 1]]),
    ([1, 20, 70, 1], [[6, 5], [2, 2], [1, 1], [0, 1], [1, 1]]),
    ([2, 5, 7, 1], [[9, 8], [3, 3], [2, 2], [1, 1], [1, 1]]),
    ([1, 4, 4, 1], [[11, 13], [3, 2], [3, 2], [2, 1], [2, 3]]),
    ([1, 2, 3, 1], [[10, 9], [4, 3], [4, 2], [0, 0], [2, 4]]),
    ([2, 8, 12, 1], [[4, 6], [1, 1], [1, 1], [0, 0], [1, 1]]),
    ([2, 5, 6, 1], [[5, 5], [1, 1], [2, 2], [0, 0], [1, 1]]),
    ([2, 8, 8, 8], [[6, 7], [3, 3], [1, 1], [1, 1], [1, 1]]),
    ([1, 6, 24, 6], [[6, 7], [3, 3], [2, 1], [1, 1], [1, 1]]),
    ([2, 8, 16, 2], [[5, 4], [3, 3], [1, 1], [1, 1], [1, 1]]),
    // More remainders than dispatches; and some without a tap.
    ([1, 2, 2, 1], [[14, 15], [3, 2], [6, 5], [1, 1], [1, 1]]),
    ([40, 4, 4, 1], [[3, 3], [2, 2], [1, 1], [0, 0], [1, 1]]),
];

fn geometry(
    ([images, channels, filters, groups], [size, kernel, stride, padding, dilation]): Case,
) -> Geometry {
    let places =
        [0, 1].map(|d| (size[d] + 2 * padding[d] - (kernel[d] - 1) * dilation[d] - 1) / stride[d] + 1);
    Geometry { images, channels, filters, groups, size, kernel, places, stride, padding, dilation }
}

/// Calls `term` with the places in x, w and y of each product in the sum.
fn terms(g: &Geometry, x: &Layout, w: &Layout, y: &Layout, mut term: impl FnMut([usize; 3])) {
    let each =
        [g.images, g.filters, g.places[0], g.places[1], g.channels / g.groups, g.kernel[0], g.kernel[1]];
    for c in coordinates(&each) {
        let [n, f, py, px, channel, r, q] = c[..] else { unreachable!() };
        let inside = |place: usize, tap: usize, d: usize| {
            (place * g.stride[d] + tap * g.dilation[d]).checked_sub(g.padding[d]).filter(|&at| at < g.size[d])
        };
        if let (Some(h), Some(v)) = (inside(py, r, 0), inside(px, q, 1)) {
            let group = f / (g.filters / g.groups);
            let from = at(x, &[n, group * (g.channels / g.groups) + channel, h, v]);
            term([from, at(w, &[f, channel, r, q]), at(y, &[n, f, py, px])]);
        }
    }
}

struct Problem {
    call: Structured,
    data: Vec<Vec<u8>>,
    expected: Vec<f64>,
}

/// One part's call, with inputs that begin `offset` elements into their memory, and what it should give.
fn problem(
    g: &Geometry,
    part: Part,
    offset: usize,
    by_channel: bool,
    op: impl StructuredOp + 'static,
) -> Problem {
    let dense = |part: Part| Layout { offset, ..Layout::contiguous(&g.shape(part)) };
    let [f, c, r, q] = g.shape(Part::Weight);
    let w = match by_channel {
        true => Layout { offset, ..Layout::contiguous(&[f, r, q, c]) }.permute(&[0, 3, 1, 2]),
        false => dense(Part::Weight),
    };
    let parts = [dense(Part::Input), w, dense(Part::Output)];
    let values: Vec<Vec<f32>> = (0..3).map(|i| noise(parts[i].end(), 21 + i as u32)).collect();
    let (which, inputs) = match part {
        Part::Output => (2, [0, 1]),
        Part::Input => (0, [2, 1]),
        Part::Weight => (1, [0, 2]),
    };
    let shape = g.shape(part);
    let out = Layout::contiguous(&shape);
    let mut expected = vec![0.0; numel(&shape)];
    let mut layouts = parts.clone();
    layouts[which] = out;
    terms(g, &layouts[0], &layouts[1], &layouts[2], |places| {
        let product: f64 = inputs.iter().map(|&i| f64::from(values[i][places[i]])).product();
        expected[places[which]] += product;
    });
    let call = call(op, &inputs.map(|i| (F32, parts[i].clone())), &shape, F32);
    Problem { call, data: inputs.map(|i| f32::to_bytes(&values[i])).to_vec(), expected }
}

/// A weight's gradient in about so many parts, and its inputs.
pub(super) fn weight_problem(number: usize, parts: usize) -> (Structured, Vec<Vec<u8>>) {
    let (g, op) = weight_op(number, parts);
    let p = problem(&g, Part::Weight, 0, false, op);
    let mut shape = vec![op.parts];
    shape.extend(&p.call.out_shape);
    (call(op, &p.call.inputs, &shape, F32), p.data)
}

fn weight_op(number: usize, parts: usize) -> (Geometry, Conv2d) {
    let g = geometry(CASES[number]);
    let parts = (g.images * g.places[0]).div_ceil(g.part_rows(parts));
    (g, Conv2d { part: Part::Weight, geometry: g, parts })
}

/// The same call by another kernel.
#[cfg(feature = "gpu")]
pub(super) fn forced(
    plain: &Structured,
    number: usize,
    parts: usize,
    kernel: crate::ops::conv::gpu::Kernel,
) -> Structured {
    let (_, op) = weight_op(number, parts);
    let by = move |call: &Structured| {
        crate::ops::conv::gpu::problems(&op, call).iter().map(|p| p.call(kernel)).collect()
    };
    call(Forced("forced_conv2d", true, None, by), &plain.inputs, &plain.out_shape, F32)
}

const PARTS: [Part; 3] = [Part::Output, Part::Input, Part::Weight];

#[test]
fn convolutions_of_every_shape_and_layout() {
    for (number, case) in CASES.into_iter().enumerate() {
        let g = geometry(case);
        for part in PARTS {
            for (offset, by_channel) in [(0, true), (4, false), (3, true)] {
                let op = Conv2d { part, geometry: g, parts: 1 };
                let p = problem(&g, part, offset, by_channel, op);
                for device in devices() {
                    let name = format!("case {number}, {part:?}, offset {offset} on {}", device.name());
                    close(&name, &run(&*device, &p.call, &p.data).unwrap(), &p.expected, 1e-5);
                    let (fused, c) = with_epilogue(p.call.clone());
                    let row = f32::from_bytes(&c);
                    let sums: Vec<f64> = (p.expected.iter().enumerate())
                        .map(|(i, v)| v + f64::from(row[i % row.len()]))
                        .collect();
                    let data = [p.data[0].clone(), p.data[1].clone(), c];
                    close(&format!("{name} + c"), &run(&*device, &fused, &data).unwrap(), &sums, 1e-5);
                }
            }
        }
    }
}

#[test]
fn parts_of_a_weights_gradient_sum_up_to_it() {
    for number in [4, 6, 11, 15] {
        let g = geometry(CASES[number]);
        for parts in [2, 3, 7] {
            let p = problem(&g, Part::Weight, 0, false, Conv2d { part: Part::Weight, geometry: g, parts });
            let mut shape = vec![parts];
            shape.extend(&p.call.out_shape);
            let split = call(Conv2d { part: Part::Weight, geometry: g, parts }, &p.call.inputs, &shape, F32);
            let mut all: Vec<Vec<f32>> = vec![];
            for device in devices() {
                let got = f32::from_bytes(&run(&*device, &split, &p.data).unwrap());
                let size = p.expected.len();
                let sums: Vec<f32> =
                    (0..size).map(|i| got.iter().skip(i).step_by(size).sum::<f32>()).collect();
                close("the sum of parts", &f32::to_bytes(&sums), &p.expected, 1e-5);
                all.push(got);
            }
            // Part by part both devices have the same.
            let first: Vec<f64> = all[0].iter().map(|&v| f64::from(v)).collect();
            for other in &all[1..] {
                close("parts", &f32::to_bytes(other), &first, 1e-5);
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_the_convolution() {
    use crate::ops::conv::gpu::{Kernel, VARIANTS, problems};
    let device = gpu();
    for &(kernel, _) in VARIANTS {
        if matches!(kernel, Kernel::Lanes { subgroup: true, .. }) && device.info().subgroup_size != Some(8) {
            continue;
        }
        for number in [0, 3, 4, 7, 9, 12, 13, 14] {
            let g = geometry(CASES[number]);
            for part in PARTS {
                if part != Part::Weight && matches!(kernel, Kernel::Dot(_)) {
                    continue;
                }
                let op = Conv2d { part, geometry: g, parts: 1 };
                let knows = op.knows_coordinate(&problem(&g, part, 0, true, op).call);
                let forced = Forced("forced_conv2d", true, knows, move |call: &Structured| {
                    problems(&op, call).iter().map(|p| p.call(kernel)).collect()
                });
                let p = problem(&g, part, 0, number % 2 == 0, forced);
                let name = format!("{kernel:?}, case {number}, {part:?}");
                close(&name, &run(&*device, &p.call, &p.data).unwrap(), &p.expected, 1e-5);
                let [channels, places] = [p.call.out_shape[1], p.call.out_shape[2..].iter().product()];
                let (fused, c) = with_epilogue_along(p.call, 1);
                let bias = f32::from_bytes(&c);
                let sums = p.expected.iter().enumerate();
                let sums: Vec<f64> = sums.map(|(i, v)| v + f64::from(bias[i / places % channels])).collect();
                let data = [p.data[0].clone(), p.data[1].clone(), c];
                close(&format!("{name} + c"), &run(&*device, &fused, &data).unwrap(), &sums, 1e-5);
            }
        }
    }
}

#[test]
fn convolutions_of_infinities_and_of_doubles() {
    // What is not finite shows where it has a part, and nowhere else: not in the ends of tiles either. (Of weights
    // only where none of them meets padding, which is zeros like others.)
    for case in [([2, 4, 17, 1], [[5, 5], [3, 3], [1, 1], [0, 0], [1, 1]]), CASES[10]] {
        let g = geometry(case);
        for part in PARTS {
            let mut p = problem(&g, part, 0, false, Conv2d { part, geometry: g, parts: 1 });
            let [mut a, mut b] = [0, 1].map(|i| f32::from_bytes(&p.data[i]));
            *a.last_mut().unwrap() = f32::INFINITY;
            if part != Part::Input {
                *b.last_mut().unwrap() = f32::NAN;
            }
            p.data = vec![f32::to_bytes(&a), f32::to_bytes(&b)];
            let (out, [l0, l1]) =
                (Layout::contiguous(&p.call.out_shape), [0, 1].map(|i| p.call.inputs[i].1.clone()));
            let mut expected = vec![0.0; p.expected.len()];
            let sum = |a_at: usize, b_at: usize, to: &mut f64| *to += f64::from(a[a_at]) * f64::from(b[b_at]);
            match part {
                Part::Output => terms(&g, &l0, &l1, &out, |[x, w, y]| sum(x, w, &mut expected[y])),
                Part::Input => terms(&g, &out, &l1, &l0, |[x, w, y]| sum(y, w, &mut expected[x])),
                Part::Weight => terms(&g, &l0, &out, &l1, |[x, w, y]| sum(x, y, &mut expected[w])),
            }
            for device in devices() {
                let name = format!("{part:?} of infinities on {}", device.name());
                close(&name, &run(&*device, &p.call, &p.data).unwrap(), &expected, 1e-5);
            }
        }
    }
    for case in CASES {
        let g = geometry(case);
        for part in PARTS {
            let p = problem(&g, part, 1, true, Conv2d { part, geometry: g, parts: 1 });
            let inputs: Vec<(DType, Layout)> = p.call.inputs.iter().map(|(_, l)| (F64, l.clone())).collect();
            let double = |v: &Vec<u8>| {
                f64::to_bytes(&f32::from_bytes(v).iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
            };
            let data: Vec<Vec<u8>> = p.data.iter().map(double).collect();
            let call = call(Conv2d { part, geometry: g, parts: 1 }, &inputs, &p.call.out_shape, F64);
            let got = f64::from_bytes(&run(&*cpu::device(), &call, &data).unwrap());
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12 * (1.0 + b.abs());
            assert!(got.iter().zip(&p.expected).all(near), "{part:?} in f64");
        }
    }
}

fn windows(
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
) -> Windows {
    let count =
        [0, 1].map(|d| (size[d] + 2 * padding[d] - (kernel[d] - 1) * dilation[d] - 1) / stride[d] + 1);
    Windows { size, count, kernel, stride, padding, dilation, divisor: 0, count_padding: false }
}

/// The elements of a window, by number in the plane.
fn elements(w: &Windows, window: &[usize]) -> Vec<usize> {
    coordinates(&w.kernel)
        .filter_map(|k| {
            let along = |d: usize| {
                (window[d] * w.stride[d] + k[d] * w.dilation[d])
                    .checked_sub(w.padding[d])
                    .filter(|&at| at < w.size[d])
            };
            along(0).zip(along(1)).map(|(y, x)| y * w.size[1] + x)
        })
        .collect()
}

/// The same with its second input added.
#[cfg(feature = "gpu")]
fn plus_image(mut call: Structured) -> Structured {
    let layout = call.inputs[1].1.clone();
    call.post.loads.push(Access { binding: 1, dtype: F32, layout });
    let args = [0u16, 1].into_iter().collect();
    call.post.insts.extend([Inst::Load(0), Inst::Op { op: &ADD, operand: F32, result: F32, args }]);
    call.post.stores[0].value = 2;
    call
}

#[test]
fn pools_of_every_shape() {
    let (one, none) = ([1, 1], [0, 0]);
    let cases = [
        windows([4, 8], [2, 2], [2, 2], none, one),
        windows([5, 8], [2, 2], [2, 2], none, one),
        windows([6, 14], [2, 2], [2, 2], none, one),
        windows([7, 7], [2, 2], [2, 2], none, one),
        windows([7, 9], [3, 3], [2, 2], [1, 1], one),
        windows([8, 7], [3, 2], [1, 1], [1, 1], one),
        windows([9, 10], [2, 3], [4, 5], [1, 0], one),
        windows([9, 10], [2, 3], [1, 2], [1, 1], [3, 2]),
        windows([1, 1], [1, 1], [1, 1], none, one),
        windows([12, 11], [12, 11], [12, 11], none, one),
        windows([300, 280], [300, 280], [1, 1], none, one),
    ];
    for (number, w) in cases.into_iter().enumerate() {
        for planes in [1, 6, 0] {
            let (image, grid) = ([planes, w.size[0], w.size[1]], [planes, w.count[0], w.count[1]]);
            // Few different values, so that there are ties; some that are not numbers.
            let mut x: Vec<f32> = noise(numel(&image) + 4, 31).iter().map(|v| (v * 4.0).round()).collect();
            for i in (0..x.len()).step_by(29) {
                x[i] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
            }
            let finite: Vec<f32> = x.iter().map(|v| if v.is_finite() { *v } else { 0.5 }).collect();
            let g = noise(numel(&grid) + 1, 32);
            let (area, count) = (numel(&w.size), numel(&w.count));
            let [mut most, mut index, mut mean] = [(); 3].map(|()| vec![0.0; numel(&grid)]);
            let [mut scattered, mut spread] = [(); 2].map(|()| vec![0.0; numel(&image)]);
            for (i, c) in coordinates(&grid).enumerate() {
                let inside = elements(&w, &c[1..]);
                let value = |at: usize| x[4 + c[0] * area + at];
                let mut best = inside[0];
                for &at in &inside {
                    if value(at) > value(best) || value(at).is_nan() {
                        best = at;
                    }
                }
                (most[i], index[i]) = (f64::from(value(best)), best as f64);
                scattered[c[0] * area + best] += f64::from(g[1 + i]);
                let share = 1.0 / inside.len() as f64;
                for at in inside {
                    mean[i] += share * f64::from(finite[4 + c[0] * area + at]);
                    spread[c[0] * area + at] += share * f64::from(g[1 + i]);
                }
            }
            assert_eq!(numel(&grid), planes * count);
            let image_in = (F32, Layout { offset: 4, ..Layout::contiguous(&image) });
            let grid_in = (F32, Layout { offset: 1, ..Layout::contiguous(&grid) });
            let index_in = (I32, Layout::contiguous(&grid));
            let (x, finite, g) = (f32::to_bytes(&x), f32::to_bytes(&finite), f32::to_bytes(&g));
            let numbers = i32::to_bytes(&index.iter().map(|&v| v as i32).collect::<Vec<_>>());
            let mut jobs = vec![
                (Kind::Max, vec![image_in.clone()], vec![x.clone()], &grid, &most),
                (Kind::Index, vec![image_in.clone()], vec![x.clone()], &grid, &index),
                (
                    Kind::Scatter,
                    vec![grid_in.clone(), index_in],
                    vec![g.clone(), numbers],
                    &image,
                    &scattered,
                ),
            ];
            if w.are_apart() {
                let inputs = vec![grid_in.clone(), image_in.clone()];
                jobs.push((Kind::First, inputs, vec![g.clone(), x], &image, &scattered));
            }
            if w.dilation == one {
                jobs.push((Kind::Average, vec![image_in], vec![finite], &grid, &mean));
                jobs.push((Kind::Spread, vec![grid_in], vec![g], &image, &spread));
            }
            for (kind, inputs, data, shape, expected) in jobs {
                let dtype = if kind == Kind::Index { I32 } else { F32 };
                let floats = |bytes: Vec<u8>| match dtype {
                    I32 => {
                        f32::to_bytes(&i32::from_bytes(&bytes).iter().map(|&v| v as f32).collect::<Vec<_>>())
                    }
                    _ => bytes,
                };
                let op = Pool2d { kind, windows: w };
                for device in devices() {
                    let name = format!("{kind:?}, case {number}, {planes} planes on {}", device.name());
                    let call = call(op, &inputs, shape, dtype);
                    close(&name, &floats(run(&*device, &call, &data).unwrap()), expected, 2e-5);
                }
                #[cfg(feature = "gpu")]
                for (software, most) in [(false, 2), (false, 1), (false, 0), (true, 1), (true, 0)] {
                    use crate::ops::pool::gpu::{Plan, squares};
                    // A large window's loop is too long for lanes that do not unroll it, so that is chosen above.
                    let forced = Forced("forced_pool", true, None, move |call: &Structured| {
                        let squares = squares(&op, call).min(most);
                        Plan::new(&op, call, squares, software)
                            .map(|p| p.call(&op, call))
                            .into_iter()
                            .collect()
                    });
                    let call = call(forced, &inputs, shape, dtype);
                    let name = format!("{kind:?}, case {number}, software {software}, squares {most}");
                    close(&name, &floats(run(&*gpu(), &call, &data).unwrap()), expected, 2e-5);
                    if kind == Kind::First {
                        // An epilogue that reads the image too, as that of relu's gradient does.
                        let values = f32::from_bytes(&data[1]);
                        let sums: Vec<f64> =
                            expected.iter().zip(&values[4..]).map(|(v, &x)| v + f64::from(x)).collect();
                        let got = run(&*gpu(), &plus_image(call), &data).unwrap();
                        close(&format!("{name} + the image"), &got, &sums, 2e-5);
                    }
                }
            }
        }
    }
}
