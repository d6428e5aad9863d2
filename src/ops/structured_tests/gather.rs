//! Gathering, scattering, and bad indices.

use super::*;
use crate::ops::gather::{Gather, ScatterAdd};

struct Indexed {
    x: Layout,
    index: Layout,
    dim: usize,
}

fn indexed() -> Vec<Indexed> {
    let rows = |n: usize, v: usize, width: usize| Indexed {
        x: Layout::contiguous(&[v, width]),
        index: Layout::contiguous(&[n, 1]).expand(&[n, width]).expect("rows"),
        dim: 0,
    };
    vec![
        rows(7, 5, 4),
        rows(6, 50, 12),
        rows(100, 9, 5),
        rows(300, 400, 8),
        Indexed { x: Layout::contiguous(&[3, 6, 4]), index: Layout::contiguous(&[3, 2, 4]), dim: 1 },
        Indexed {
            x: Layout::contiguous(&[4, 6, 3]).permute(&[2, 1, 0]),
            index: Layout::contiguous(&[3, 6, 4]),
            dim: 2,
        },
        Indexed { x: Layout::contiguous(&[20]), index: Layout::contiguous(&[9]), dim: 0 },
        Indexed {
            x: Layout::contiguous(&[2, 6, 8]),
            index: Layout::contiguous(&[1, 3, 1]).expand(&[2, 3, 8]).expect("rows"),
            dim: 1,
        },
        Indexed { x: Layout::contiguous(&[3, 4]), index: Layout::contiguous(&[0, 4]), dim: 0 },
        Indexed {
            x: Layout { offset: 3, ..Layout::contiguous(&[5, 8]) },
            index: Layout::contiguous(&[8, 5]).permute(&[1, 0]),
            dim: 1,
        },
    ]
}

#[test]
fn gather_and_its_gradient() {
    for Indexed { x, index, dim } in indexed() {
        let size = x.shape[dim];
        let mut shape = x.shape.clone();
        shape[dim] = index.shape[dim];
        let shape = if index.numel() > 0 { index.shape.clone() } else { shape };
        let values = noise(x.end().max(1), 13);
        let which: Vec<i32> =
            noise(index.end().max(1), 14).iter().map(|v| ((v + 1.0) / 2.0 * size as f32) as i32).collect();
        let g = Layout::contiguous(&shape);
        let grads = noise(g.end().max(1), 15);
        let mut expected = vec![];
        let mut full = shape.clone();
        full[dim] = size;
        let to = Layout::contiguous(&full);
        let mut scattered = vec![0.0f64; numel(&full)];
        for c in coordinates(&shape) {
            let mut from = c.clone();
            from[dim] = which[at(&index, &c)] as usize;
            expected.push(f64::from(values[at(&x, &from)]));
            scattered[at(&to, &from)] += f64::from(grads[at(&g, &c)]);
        }
        for device in devices() {
            let name = format!("{x:?} by {index:?} on {}", device.name());
            let inputs = [(F32, x.clone()), (I32, index.clone())];
            let plain = call(Gather { dim }, &inputs, &shape, F32);
            let data = [f32::to_bytes(&values), i32::to_bytes(&which)];
            close(&name, &run(&*device, &plain, &data).unwrap(), &expected, 0.0);
            if !expected.is_empty() {
                let (fused, c) = with_epilogue(plain);
                let row = f32::from_bytes(&c);
                let sums: Vec<f64> =
                    expected.iter().enumerate().map(|(i, v)| v + f64::from(row[i % row.len()])).collect();
                let data = [data[0].clone(), data[1].clone(), c];
                close(&name, &run(&*device, &fused, &data).unwrap(), &sums, 1e-6);
            }
            let inputs = [(F32, g.clone()), (I32, index.clone())];
            let data = [f32::to_bytes(&grads), i32::to_bytes(&which)];
            let back = call(ScatterAdd { dim, size }, &inputs, &full, F32);
            close(&name, &run(&*device, &back, &data).unwrap(), &scattered, 1e-5);
        }
    }
}

#[test]
fn indices_out_of_range() {
    for bad in [5, -1, i32::MAX] {
        let layout = Layout::contiguous(&[4]);
        let data = [f32::to_bytes(&noise(5, 16)), i32::to_bytes(&[0, bad, 2, 4])];
        let gather =
            call(Gather { dim: 0 }, &[(F32, Layout::contiguous(&[5])), (I32, layout.clone())], &[4], F32);
        let scatter =
            call(ScatterAdd { dim: 0, size: 5 }, &[(F32, layout.clone()), (I32, layout)], &[5], F32);
        for call in [gather, scatter] {
            let fault = run(&*cpu::device(), &call, &data).unwrap_err();
            let words = format!("index {bad} is out of bounds for dimension 0 with size 5");
            assert_eq!(fault.message, format!("{} {words}", call.op.0.name()));
            #[cfg(feature = "gpu")]
            {
                let device = gpu();
                let read = run(&*device, &call, &data);
                let later = device.synchronize();
                assert!(read.is_err() || later.is_err(), "{bad}");
            }
        }
    }
}

#[test]
fn bools_are_gathered() {
    for device in devices() {
        let inputs = [(DType::Bool, Layout::contiguous(&[4])), (I32, Layout::contiguous(&[6]))];
        let data = [bool::to_bytes(&[true, false, true, true]), i32::to_bytes(&[1, 0, 3, 1, 2, 0])];
        let call = call(Gather { dim: 0 }, &inputs, &[6], DType::Bool);
        let got = bool::from_bytes(&run(&*device, &call, &data).unwrap());
        assert_eq!(got, [false, true, true, false, true, true], "{}", device.name());
    }
}

#[cfg(feature = "gpu")]
#[test]
fn many_indices_past_the_turns_of_a_loop() {
    let n = 140_000;
    let index: Vec<i32> = (0..n).map(|i| i % 3).collect();
    let layout = Layout::contiguous(&[n as usize]);
    let call = call(ScatterAdd { dim: 0, size: 3 }, &[(F32, layout.clone()), (I32, layout)], &[3], F32);
    let got = run(&*gpu(), &call, &[f32::to_bytes(&vec![1.0; n as usize]), i32::to_bytes(&index)]).unwrap();
    close("scatter", &got, &[46667.0, 46667.0, 46666.0], 0.0);
}
