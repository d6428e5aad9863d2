//! Products of halves, in every variant.

use half::f16;

use super::matmul::{matrix, product};
use super::*;
use crate::graph::dtype::F16;
use crate::ops::matmul::Matmul;

/// As stored, and as they are then.
fn halves(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    (f16::to_bytes(&halves), halves.iter().map(|h| h.to_f32()).collect())
}

#[test]
fn products_of_halves_of_every_layout() {
    for (batch, m, n, k) in [(1, 1, 1, 1), (2, 8, 32, 16), (1, 40, 1, 36), (2, 33, 127, 129), (1, 5, 0, 4)] {
        for ka in ["rows", "columns", "shifted", "padded", "spread", "broadcast"] {
            for kb in ["rows", "columns", "shifted"] {
                let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
                let (x, exact_x) = halves(&noise(a.end().max(1), 1));
                let (y, exact_y) = halves(&noise(b.end().max(1), 2));
                let expected = product(&a, &exact_x, &b, &exact_y);
                let call = call(Matmul, &[(F16, a), (F16, b)], &[batch, m, n], F32);
                for device in devices() {
                    let name = format!("{batch}x{m}x{n}x{k} {ka}·{kb} on {}", device.name());
                    // Products of halves are exact in singles; their sums are rounded as those of singles are.
                    close(&name, &run(&*device, &call, &[x.clone(), y.clone()]).unwrap(), &expected, 1e-5);
                }
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_the_product_of_halves() {
    use super::matmul::{forced, orders, runs_on};
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    for variant in VARIANTS {
        let kernel = variant.kernel;
        if !runs_on(kernel, &device) {
            continue;
        }
        // All but cooperative matrices' differ from their kernels of singles in how operands are read.
        let mut sizes = match kernel {
            Kernel::Axpy | Kernel::Slices => vec![(1, 300, 1, 64), (2, 4, 1, 1001)],
            _ => vec![(2, 35, 65, 33), (1, 8, 12, 16)],
        };
        if let (Kernel::Cooperative { .. }, Some([m, n])) = (kernel, kernel.tile()) {
            sizes.extend([(1, m - 1, n + 1, 17), (1, m + 1, n, 8), (2, m + 4, n - 4, 16), (1, 2 * m, n, 36)]);
        }
        for (batch, m, n, k) in sizes {
            for (ka, kb) in orders(kernel, n) {
                let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
                let (mut x, mut y) = (noise(a.end(), 3), noise(b.end(), 4));
                if matches!(kernel, Kernel::Cooperative { .. }) {
                    // Adapters choose the precision of what matrices are multiplied in; lavapipe's products are halves.
                    // Small whole numbers are exact in any.
                    x.iter_mut().chain(&mut y).for_each(|v| *v = (*v * 5.0).round());
                }
                // In one place each: they must show in their row and column alone.
                x[a.end() - 1] = f32::INFINITY;
                y[b.end() - 1] = f32::NAN;
                let ((x, exact_x), (y, exact_y)) = (halves(&x), halves(&y));
                let call = call(forced(kernel), &[(F16, a.clone()), (F16, b.clone())], &[batch, m, n], F32);
                let (call, c) = with_epilogue(call);
                let mut expected = product(&a, &exact_x, &b, &exact_y);
                let row = f32::from_bytes(&c);
                expected.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(row[i % n]));
                let name = format!("{kernel:?} {batch}x{m}x{n}x{k} {ka}·{kb}");
                close(&name, &run(&*device, &call, &[x, y, c]).unwrap(), &expected, 1e-5);
            }
        }
    }
}
