//! Products.

use super::*;
use crate::ops::matmul::Matmul;

/// The matrix `[batch, rows, columns]` in some memory order.
pub(super) fn matrix(kind: &str, batch: usize, rows: usize, columns: usize) -> Layout {
    match kind {
        "rows" => Layout::contiguous(&[batch, rows, columns]),
        "columns" => Layout::contiguous(&[batch, columns, rows]).permute(&[0, 2, 1]),
        "shifted" => Layout { offset: 1, ..Layout::contiguous(&[batch, rows, columns]) },
        "padded" => Layout::contiguous(&[batch, rows, columns + 4]).slice(2, 4, columns, 1),
        "spread" => Layout::contiguous(&[batch, rows, 2 * columns]).slice(2, 0, columns, 2),
        "broadcast" => Layout::contiguous(&[1, rows, columns]).expand(&[batch, rows, columns]).expect("1"),
        _ => unreachable!(),
    }
}

pub(super) fn product(a: &Layout, x: &[f32], b: &Layout, y: &[f32]) -> Vec<f64> {
    let (k, n) = (a.shape[2], b.shape[2]);
    coordinates(&[a.shape[0], a.shape[1], n])
        .map(|c| {
            let term =
                |l: usize| f64::from(x[at(a, &[c[0], c[1], l])]) * f64::from(y[at(b, &[c[0], l, c[2]])]);
            (0..k).map(term).sum()
        })
        .collect()
}

/// Whether the adapter has what a kernel asks for.
#[cfg(feature = "gpu")]
pub(super) fn runs_on(
    kernel: crate::ops::matmul::variants::Kernel,
    device: &crate::backend::gpu::Gpu,
) -> bool {
    use crate::ops::matmul::variants::Kernel;
    let subgroups_of = |size: usize| device.info().subgroup_size == Some(size as u32);
    match kernel {
        Kernel::Lanes { subgroup: true, .. } => subgroups_of(8),
        Kernel::SubgroupDot(size) => subgroups_of(size),
        Kernel::Cooperative { size, lanes, .. } => {
            device.info().matrices == Some(size) && subgroups_of(lanes)
        }
        _ => true,
    }
}

/// The memory orders of both operands in which a kernel is tested.
#[cfg(feature = "gpu")]
pub(super) fn orders(
    kernel: crate::ops::matmul::variants::Kernel,
    n: usize,
) -> [(&'static str, &'static str); 4] {
    use crate::ops::matmul::variants::Kernel;
    [("rows", "rows"), ("columns", "columns"), ("shifted", "broadcast"), ("columns", "rows")].map(|(a, b)| {
        match kernel {
            // Slices are for matrices that are contiguous down their columns.
            Kernel::Slices if n == 1 => ("columns", b),
            Kernel::Slices => (a, "rows"),
            _ => (a, b),
        }
    })
}

#[cfg(feature = "gpu")]
pub(super) fn forced(kernel: crate::ops::matmul::variants::Kernel) -> impl StructuredOp {
    use crate::ops::matmul::Problem;
    use crate::ops::matmul::variants::Variant;
    Forced("forced_matmul", true, Some(2), move |call: &Structured| {
        let variant = Variant { kernel, fits: |_, _, _| true };
        variant.calls(Problem::new(call), call.out_dtype)
    })
}

#[test]
fn products_of_every_layout_and_size() {
    let sizes = [
        (1, 1, 1, 1),
        (1, 3, 5, 7),
        (2, 8, 32, 16),
        (1, 1, 33, 20),
        (1, 40, 1, 36),
        (3, 1, 1, 300),
        (1, 31, 33, 4),
        (1, 32, 64, 64),
        (2, 33, 127, 129),
        (1, 65, 36, 12),
        (1, 64, 12, 66),
        (1, 5, 0, 4),
        (1, 4, 4, 0),
        (2, 17, 10, 10),
        (1, 128, 10, 256),
        (1, 10, 128, 40),
    ]; // batch, m, n, k
    let kinds = ["rows", "columns", "shifted", "padded", "spread", "broadcast"];
    for &(batch, m, n, k) in &sizes {
        for (i, &ka) in kinds.iter().enumerate() {
            // Each layout with some others, and all with all over the sizes.
            for kb in [kinds[(i + m + n) % kinds.len()], kinds[(i + k + 1) % kinds.len()]] {
                let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
                let (x, y) = (noise(a.end().max(1), 1), noise(b.end().max(1), 2));
                let expected = product(&a, &x, &b, &y);
                let data = [f32::to_bytes(&x), f32::to_bytes(&y)];
                let name = format!("{batch}x{m}x{n}x{k} {ka}·{kb}");
                let inputs = [(F32, a), (F32, b)];
                for device in devices() {
                    let plain = call(Matmul, &inputs, &[batch, m, n], F32);
                    let got = run(&*device, &plain, &data).unwrap();
                    close(&format!("{name} on {}", device.name()), &got, &expected, 1e-5);
                    let (fused, c) = with_epilogue(plain);
                    let row = f32::from_bytes(&c);
                    let got = run(&*device, &fused, &[data[0].clone(), data[1].clone(), c]).unwrap();
                    let sums: Vec<f64> =
                        expected.iter().enumerate().map(|(i, v)| v + f64::from(row[i % n.max(1)])).collect();
                    close(&format!("{name} + c on {}", device.name()), &got, &sums, 1e-5);
                }
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_of_the_product() {
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    for variant in VARIANTS {
        let kernel = variant.kernel;
        if !runs_on(kernel, &device) {
            continue;
        }
        // Of halves alone.
        if matches!(kernel, Kernel::Cooperative { .. }) {
            continue;
        }
        // batch, m, n, k; around the edges of tiles in every dimension.
        let mut sizes = match kernel {
            Kernel::Axpy => vec![(1, 300, 1, 64), (2, 5, 1, 1000), (1, 1, 260, 68), (1, 1, 7, 3)],
            Kernel::Slices => vec![(1, 300, 1, 64), (2, 4, 1, 1001), (3, 1, 36, 5), (1, 32, 1, 31)],
            _ => vec![(1, 64, 64, 64), (2, 35, 65, 33), (3, 4, 132, 7), (1, 100, 8, 20), (1, 10, 4, 1)],
        };
        if let Some([m, n]) = kernel.tile() {
            sizes.extend([
                (1, m - 1, n + 1, 17),
                (1, m + 1, n, 8),
                (2, m + 4, n - 4, 16),
                (1, n + 1, m - 3, 15),
            ]);
        }
        if matches!(kernel, Kernel::Lanes { more: 1, .. }) {
            sizes.extend((1..10).map(|left| (1 + left % 2, 33 + left, 75 - left, 11 + left)));
        }
        for (batch, m, n, k) in sizes {
            for (ka, kb) in orders(kernel, n) {
                let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
                let (mut x, mut y) = (noise(a.end(), 3), noise(b.end(), 4));
                // In one place each: they must show in their row and column alone.
                x[a.end() - 1] = f32::INFINITY;
                y[b.end() - 1] = f32::NAN;
                let call = call(forced(kernel), &[(F32, a.clone()), (F32, b.clone())], &[batch, m, n], F32);
                let (call, c) = with_epilogue(call);
                let mut expected = product(&a, &x, &b, &y);
                let name = format!("{kernel:?} {batch}x{m}x{n}x{k} {ka}·{kb}");
                let row = f32::from_bytes(&c);
                expected.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(row[i % n]));
                let data = [f32::to_bytes(&x), f32::to_bytes(&y), c];
                close(&name, &run(&*device, &call, &data).unwrap(), &expected, 1e-5);
            }
        }
    }
}

#[test]
fn an_epilogue_with_many_operands() {
    // Large enough to be cut off where tiles meet their operands out of order: c + (d + product), d as large as it.
    let (m, n, k) = (300, 324, 9);
    let (a, b) = (matrix("columns", 1, m, k), matrix("rows", 1, k, n));
    let (x, y, d) = (noise(a.end(), 1), noise(b.end(), 2), noise(m * n, 5));
    let product = product(&a, &x, &b, &y);
    for keeps in [false, true] {
        let call = call(Matmul, &[(F32, a.clone()), (F32, b.clone())], &[1, m, n], F32);
        let (mut call, c) = with_epilogue(call);
        let access =
            |binding, shape: &[usize]| Access { binding, dtype: F32, layout: Layout::contiguous(shape) };
        let sum = call.post.stores[0].value;
        for binding in [4, 5, 6] {
            call.post.insts.push(Inst::Load(call.post.loads.len() as u16));
            call.post.loads.push(access(binding, &[1, m, n]));
        }
        let args = [sum, sum + 1].into_iter().collect();
        call.post.insts.push(Inst::Op { op: &ADD, operand: F32, result: F32, args });
        call.post.stores[0].value = if keeps { 0 } else { sum + 4 };
        let data = [f32::to_bytes(&x), f32::to_bytes(&y), c.clone(), f32::to_bytes(&d)];
        let data = [&data[..], &vec![f32::to_bytes(&d); 2]].concat();
        let row = f32::from_bytes(&c);
        let expected: Vec<f64> = (product.iter().enumerate())
            .map(|(i, v)| if keeps { *v } else { v + f64::from(row[i % n]) + f64::from(d[i]) })
            .collect();
        for device in devices() {
            close(device.name(), &run(&*device, &call, &data).unwrap(), &expected, 1e-5);
        }
    }
}

#[test]
fn an_operand_that_the_epilogue_reads_too() {
    // a · b + a, in sizes whose rows are aligned and not.
    for n in [64, 63] {
        let l = matrix("rows", 1, n, n);
        let (x, y) = (noise(n * n, 1), noise(n * n, 2));
        let expected: Vec<f64> =
            product(&l, &x, &l, &y).iter().zip(&x).map(|(p, &x)| p + f64::from(x)).collect();
        let mut call = call(Matmul, &[(F32, l.clone()), (F32, l.clone())], &[1, n, n], F32);
        call.post.loads.push(Access { binding: 0, dtype: F32, layout: l });
        let args = [0u16, 1].into_iter().collect();
        call.post.insts.extend([Inst::Load(0), Inst::Op { op: &ADD, operand: F32, result: F32, args }]);
        call.post.stores[0].value = 2;
        for device in devices() {
            let got = run(&*device, &call, &[f32::to_bytes(&x), f32::to_bytes(&y)]).unwrap();
            close(&format!("{n} on {}", device.name()), &got, &expected, 1e-5);
        }
    }
}

#[test]
fn products_whose_sums_are_cut() {
    #[cfg(feature = "gpu")]
    let names = ["cpu".to_string(), std::env::var("WGRAD_TEST_ADAPTER").unwrap_or("llvmpipe".into())];
    #[cfg(not(feature = "gpu"))]
    let names = ["cpu".to_string()];
    // Whole numbers, of which every sum on the way is exact: below 2^24, so nothing is rounded.
    let whole = |n: usize, step: usize| (0..n).map(|i| (i * step % 23) as f32 - 11.0).collect::<Vec<f32>>();
    // On software adapters a machine of two threads cuts the first two; the last has no equal parts.
    for (m, n, k) in [(16, 20, 1 << 14), (32, 1, 1 << 13), (3, 5, 16_383)] {
        let (x, y) = (whole(m * k, 7), whole(k * n, 5));
        let expected = product(&matrix("rows", 1, m, k), &x, &matrix("rows", 1, k, n), &y);
        for name in &names {
            let options = crate::options().device(crate::device(name).unwrap());
            let (a, b) = (options.clone().from_slice(&x, [m, k]), options.from_slice(&y, [k, n]));
            let got = f32::to_bytes(&a.matmul(&b).to_vec::<f32>().unwrap());
            close(&format!("{m}x{n}x{k} on {name}"), &got, &expected, 0.0);
        }
    }
}

#[test]
fn products_of_other_types_and_of_infinities() {
    let (a, b) = (matrix("rows", 2, 5, 9), matrix("columns", 2, 9, 6));
    let ints = |n: usize| (0..n as i32).map(|i| i * 7 % 23 - 11).collect::<Vec<i32>>();
    let (x, y) = (ints(a.end()), ints(b.end()));
    let floats = |v: &[i32]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let expected = product(&a, &floats(&x), &b, &floats(&y));
    for device in devices() {
        let call = call(Matmul, &[(I32, a.clone()), (I32, b.clone())], &[2, 5, 6], I32);
        let got = i32::from_bytes(&run(&*device, &call, &[i32::to_bytes(&x), i32::to_bytes(&y)]).unwrap());
        assert_eq!(got.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), expected, "{}", device.name());
    }
    let doubles = |v: &[i32]| f64::to_bytes(&v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>());
    let call64 = call(Matmul, &[(F64, a.clone()), (F64, b.clone())], &[2, 5, 6], F64);
    assert_eq!(
        f64::from_bytes(&run(&*cpu::device(), &call64, &[doubles(&x), doubles(&y)]).unwrap()),
        expected
    );

    // An infinity in one place must show in its row and column alone, padding or not.
    for (m, n, k) in [(33, 34, 35), (36, 32, 64)] {
        let (a, b) = (matrix("rows", 1, m, k), matrix("rows", 1, k, n));
        let (mut x, mut y) = (noise(m * k, 5), noise(k * n, 6));
        x[(m - 1) * k + k - 1] = f32::INFINITY;
        y[(k - 1) * n + n - 1] = f32::NAN;
        let expected = product(&a, &x, &b, &y);
        for device in devices() {
            let call = call(Matmul, &[(F32, a.clone()), (F32, b.clone())], &[1, m, n], F32);
            let got = run(&*device, &call, &[f32::to_bytes(&x), f32::to_bytes(&y)]).unwrap();
            close(&format!("infinity on {}", device.name()), &got, &expected, 1e-5);
        }
    }
}

#[test]
fn products_of_many_batch_dimensions_and_of_great_depth() {
    // Nine batch dimensions that do not merge.
    let shape = [2; 9];
    let whole = |inner: [usize; 2]| {
        let mut s = [3; 11];
        s[9..].copy_from_slice(&inner);
        let mut l = Layout::contiguous(&s);
        for (d, &n) in shape.iter().enumerate() {
            l = l.slice(d, 0, n, 1);
        }
        l
    };
    let (a, b) = (whole([1, 2]), whole([2, 1]));
    let (x, y) = (noise(a.end(), 7), noise(b.end(), 8));
    let expected: Vec<f64> = coordinates(&shape)
        .map(|c| {
            let place = |layout: &Layout, l: usize, row: bool| {
                let mut c = c.clone();
                c.extend(if row { [0, l] } else { [l, 0] });
                at(layout, &c)
            };
            (0..2).map(|l| f64::from(x[place(&a, l, true)]) * f64::from(y[place(&b, l, false)])).sum()
        })
        .collect();
    let mut out = shape.to_vec();
    out.extend([1, 1]);
    let deep = 600_000;
    for device in devices() {
        let many = call(Matmul, &[(F32, a.clone()), (F32, b.clone())], &out, F32);
        let got = run(&*device, &many, &[f32::to_bytes(&x), f32::to_bytes(&y)]).unwrap();
        close(device.name(), &got, &expected, 1e-5);
        // Past the turns that a software driver grants a loop.
        for (m, n) in [(1, 1), (3, 5), (40, 1)] {
            let (a, b) = (matrix("rows", 1, m, deep), matrix("columns", 1, deep, n));
            let call = call(Matmul, &[(F32, a), (F32, b)], &[1, m, n], F32);
            let data = [f32::to_bytes(&vec![1.0; m * deep]), f32::to_bytes(&vec![1.0; n * deep])];
            close("deep", &run(&*device, &call, &data).unwrap(), &vec![deep as f64; m * n], 1e-6);
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn tiles_of_every_size_give_the_same_bits() {
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    let subgroups = device.info().subgroup_size == Some(8);
    let (batch, m, n, k) = (2, 70, 136, 53);
    for (ka, kb) in [("rows", "columns"), ("columns", "rows"), ("shifted", "rows")] {
        let (a, b) = (matrix(ka, batch, m, k), matrix(kb, batch, k, n));
        let data = [f32::to_bytes(&noise(a.end(), 3)), f32::to_bytes(&noise(b.end(), 4))];
        let inputs = [(F32, a), (F32, b)];
        let mut first: [Option<Vec<u8>>; 2] = [None, None];
        // And the one that comes first where it compiles faster.
        let tiles =
            |k: Kernel| k == Kernel::Any || k.tile().is_some() && !matches!(k, Kernel::Cooperative { .. });
        for variant in VARIANTS.iter().filter(|v| tiles(v.kernel)) {
            let lanes = matches!(variant.kernel, Kernel::Lanes { .. } | Kernel::Any);
            if matches!(variant.kernel, Kernel::Lanes { subgroup: true, .. }) && !subgroups {
                continue;
            }
            let call = call(forced(variant.kernel), &inputs, &[batch, m, n], F32);
            let got = run(&*device, &call, &data).unwrap();
            let first = first[usize::from(lanes)].get_or_insert_with(|| got.clone());
            assert!(*first == got, "{:?} {ka}·{kb} differs", variant.kernel);
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn what_compiles_fast_comes_first_where_a_run_is_short() {
    use crate::ops::matmul::variants::Kernel;
    let device = gpu();
    let info = device.info();
    if !(info.has_eights() && info.pairs) {
        return;
    }
    let quick = |m, n, k| {
        let inputs = [(F32, matrix("rows", 1, m, k)), (F32, matrix("rows", 1, k, n))];
        let ways = Matmul.ways(&call(Matmul, &inputs, &[1, m, n], F32), info).unwrap();
        (ways.quick.map(|quick| (ways.ways[quick.at].0.clone(), quick.runs)), ways.timed)
    };
    let tiles = format!("{:?}", Kernel::Lanes { rows: 8, fours: 1, more: 0, subgroup: true });
    let (Some((elements, many)), false) = quick(64, 64, 64) else { panic!("too short to be timed") };
    assert_eq!(elements, "Any");
    let (Some((short, runs)), false) = quick(90, 90, 90) else { panic!("too short to be timed") };
    assert_eq!(short, tiles);
    let (Some((longer, fewer)), true) = quick(256, 256, 256) else { panic!("takes long enough") };
    assert!(longer == tiles && runs > fewer && many > fewer);
    assert_eq!(quick(4096, 4096, 4096), (None, true));
}

#[cfg(feature = "gpu")]
#[test]
fn a_plan_that_repeats_is_tuned_and_its_results_stay() {
    let device = gpu();
    let (m, n, k) = (160, 136, 132);
    let (a, b) = (matrix("rows", 1, m, k), matrix("rows", 1, k, n));
    let data = [f32::to_bytes(&noise(a.end(), 3)), f32::to_bytes(&noise(b.end(), 4))];
    let call = call(Matmul, &[(F32, a), (F32, b)], &[1, m, n], F32);
    let kernel = Kernel {
        bindings: (0..3).map(|i| Binding { dtype: F32, written: i == 2 }).collect(),
        body: Body::Structured(call),
        scalars: vec![],
        label: "matmul".into(),
        caller: Location::caller(),
    };
    let mut buffers: Vec<_> = data.iter().map(|d| device.upload(d).unwrap()).collect();
    buffers.push(device.alloc(4 * m * n).unwrap());
    let command = Command::Dispatch { kernel: Arc::new(kernel), buffers: vec![0, 1, 2], scalars: 0 };
    let recording = Recording { commands: vec![command] };
    let compiled = device.compile(&recording, false).unwrap();
    let mut first = None;
    for turn in 0..60 {
        if turn == 40 || turn == 50 {
            // What follows the quick kernel is compiled meanwhile, then its other ways, to be timed at the next look.
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        device.run(&recording, &compiled, &buffers, &[]).unwrap();
        let got = device.download(&buffers[2], 0..4 * m * n).unwrap();
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "run {turn} differs");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn sums_are_cut_where_the_output_is_small() {
    use crate::backend::gpu::AdapterClass::{Discrete, Integrated, Software};
    use crate::ops::matmul::split_for;
    for class in [Discrete, Integrated, Software] {
        let split = split_for(class);
        for (sizes, cut) in [
            ([1, 10, 256, 128], false),
            ([1, 2048, 2048, 1 << 16], false),
            ([1, 10, 10, 1 << 17], true),
            ([1, 1, 1, 3 << 16], true),
            ([1, 10, 10, 1_000_003], false),
            ([0, 10, 10, 1 << 17], true),
        ] {
            let parts = split(sizes);
            assert!(parts == 1 || sizes[3].is_multiple_of(parts), "{class:?} {sizes:?}");
            assert!(cut || parts == 1, "{class:?} {sizes:?}: {parts}");
            assert!(!cut || parts > 1 || class == Software, "{class:?} {sizes:?}: {parts}");
        }
    }
}
