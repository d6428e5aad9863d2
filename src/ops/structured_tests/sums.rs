//! Sums of rows that products and weights' gradients compute besides.

use super::spatial::weight_problem;
use super::*;
use crate::backend::Prices;
use crate::graph::kernel::{Rows, Sums};
use crate::ops::matmul::Matmul;

/// Those of a GPU, as far as sums go.
const PRICES: Prices = Prices {
    tile: 64,
    fours: false,
    least: 0,
    each: 0,
    load: 0,
    round_trip: 0,
    dispatch: 0,
    registers: true,
};

/// A call that stores the sums of an input's rows as well, behind `data` and the output.
fn with_sums(call: &Structured, input: usize, rows: Rows, data: usize) -> Structured {
    let shape = [rows.parts(), rows.layout.shape[0]];
    let to = Access { binding: data as u16 + 1, dtype: F32, layout: Layout::contiguous(&shape) };
    let mut post = Program {
        shape: Dims::from_slice(&shape),
        insts: vec![Inst::Anchor(F32)],
        stores: vec![Store { value: 0, to }],
        ..Program::default()
    };
    post.collapse(0);
    Structured { sums: Some(Box::new(Sums { input, rows, post })), ..call.clone() }
}

/// The sums by loops.
fn summed(rows: &Rows, values: &[f32]) -> Vec<f64> {
    let (n, terms) = (rows.layout.shape[0], numel(&rows.layout.shape[1..]));
    let mut sums = vec![0.0; rows.parts() * n];
    for (i, c) in coordinates(&rows.layout.shape).enumerate() {
        sums[i % terms / rows.each * n + c[0]] += f64::from(values[at(&rows.layout, &c)]);
    }
    sums
}

#[cfg(feature = "gpu")]
#[test]
fn every_tile_of_the_product_sums_up_rows() {
    use super::matmul::{forced, matrix, product};
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    let orders = [
        ("rows", "rows"),
        ("columns", "columns"),
        ("shifted", "rows"),
        ("columns", "rows"),
        ("padded", "spread"),
    ];
    for kernel in VARIANTS.iter().map(|v| v.kernel).filter(|k| matches!(k, Kernel::Tiles { .. })) {
        let [m, n] = kernel.tile().unwrap();
        // batch, m, n, k
        let sizes =
            [(1, m, n, 16), (2, m + 3, n + 1, 53), (1, n + 4, m + 1, 7), (3, 2, 36, 24), (1, 68, 3, 1)];
        for ((batch, m, n, k), (ka, kb)) in sizes.into_iter().zip(orders) {
            let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
            let (mut x, mut y) = (noise(a.end(), 3), noise(b.end(), 4));
            // In one place each: they must show in their row and column alone.
            x[a.end() - 1] = f32::INFINITY;
            y[b.end() - 1] = f32::NAN;
            let expected = product(&a, &x, &b, &y);
            let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
            let inputs = [(F32, a), (F32, b)];
            for input in [0, 1] {
                let name = format!("{kernel:?} {batch}x{m}x{n}x{k} {ka}·{kb}, input {input}");
                let op = call(Matmul, &inputs, &[batch, m, n], F32);
                let rows = op.op.0.rows(&op, input, &PRICES).expect("a product of matrices");
                assert_eq!((rows.parts(), rows.layout.shape[0]), (batch, [m, n][input]), "{name}");
                let sums = summed(&rows, [&x, &y][input]);
                let plain = call(forced(kernel), &inputs, &[batch, m, n], F32);
                let got = run_with_sums(&*device, &with_sums(&plain, input, rows, 2), &data).unwrap();
                close(&name, &got.0, &expected, 1e-5);
                close(&format!("{name}, sums"), &got.1, &sums, 1e-5);
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn what_the_tuner_may_choose_gives_the_same_sums() {
    use super::matmul::{forced, matrix};
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    let (batch, m, n, k) = (2, 70, 136, 53);
    for (ka, kb) in [("rows", "columns"), ("columns", "rows"), ("shifted", "rows")] {
        let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
        let data = [f32::to_bytes(&noise(a.end(), 3)), f32::to_bytes(&noise(b.end(), 4))];
        let inputs = [(F32, a), (F32, b)];
        for input in [0, 1] {
            let op = call(Matmul, &inputs, &[batch, m, n], F32);
            let rows = op.op.0.rows(&op, input, &PRICES).unwrap();
            // By the depth of tiles.
            let mut known: Vec<(usize, Vec<u8>)> = vec![];
            for variant in VARIANTS {
                let Kernel::Tiles { depth, .. } = variant.kernel else { continue };
                let plain = call(forced(variant.kernel), &inputs, &[batch, m, n], F32);
                let call = with_sums(&plain, input, rows.clone(), 2);
                let sums = run_with_sums(&*device, &call, &data).unwrap().1;
                match known.iter().find(|(other, _)| *other == depth) {
                    Some((_, first)) => {
                        assert!(*first == sums, "{:?} {ka}·{kb}, input {input}", variant.kernel)
                    }
                    None => known.push((depth, sums)),
                }
            }
        }
    }
}

#[test]
fn both_backends_sum_up_rows() {
    use super::matmul::{matrix, product};
    for (batch, m, n, k) in [(1, 10, 256, 128), (1, 300, 40, 20), (2, 33, 70, 65), (1, 2, 2, 1 << 14)] {
        let (a, b) = (matrix("columns", batch, m, k), matrix("rows", batch, k, n));
        let (x, y) = (noise(a.end(), 1), noise(b.end(), 2));
        let expected = product(&a, &x, &b, &y);
        let plain = call(Matmul, &[(F32, a), (F32, b)], &[batch, m, n], F32);
        for input in [0, 1] {
            let rows = plain.op.0.rows(&plain, input, &PRICES).unwrap();
            let sums = summed(&rows, [&x, &y][input]);
            let call = with_sums(&plain, input, rows, 2);
            // Of GPUs' kernels only those in tiles can do it.
            let name = format!("{batch}x{m}x{n}x{k}, input {input}");
            let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
            let got = run_with_sums(&*cpu::device(), &call, &data).unwrap();
            close(&name, &got.0, &expected, 1e-4);
            close(&name, &got.1, &sums, 1e-5);
        }
    }
    for number in 0..16 {
        for parts in [1, 2, 7] {
            let (plain, data) = weight_problem(number, parts);
            let Some(rows) = plain.op.0.rows(&plain, 1, &PRICES) else { continue };
            let sums = summed(&rows, &f32::from_bytes(&data[1]));
            let call = with_sums(&plain, 1, rows, 2);
            for device in devices() {
                let name = format!("case {number} in {parts} parts on {}", device.name());
                let alone = run(&*device, &plain, &data).unwrap();
                let got = run_with_sums(&*device, &call, &data).unwrap();
                assert!(got.0 == alone, "{name}: the gradient is another");
                close(&name, &got.1, &sums, 1e-5);
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_tile_of_a_weights_gradient_sums_up_rows() {
    use super::spatial::forced;
    use crate::ops::conv::gpu::{Kernel, VARIANTS};
    let device = gpu();
    for &(kernel, _) in VARIANTS {
        let runs =
            !matches!(kernel, Kernel::Lanes { subgroup: true, .. }) || device.info().subgroup_size == Some(8);
        if matches!(kernel, Kernel::Dot(_)) || !runs {
            continue;
        }
        for number in [2, 3, 5, 6, 11, 12, 13, 15] {
            for parts in [1, 3] {
                let (plain, mut data) = weight_problem(number, parts);
                let Some(rows) = plain.op.0.rows(&plain, 1, &PRICES) else { continue };
                let mut values = f32::from_bytes(&data[1]);
                let last = values.len() - 1;
                values[last] = f32::INFINITY;
                data[1] = f32::to_bytes(&values);
                let call = with_sums(&forced(&plain, number, parts, kernel), 1, rows.clone(), 2);
                let got = run_with_sums(&*device, &call, &data).unwrap();
                close(
                    &format!("{kernel:?}, case {number} in {parts} parts"),
                    &got.1,
                    &summed(&rows, &values),
                    1e-5,
                );
            }
        }
    }
}
