//! Ops whose inputs are computed where they are read.

use super::matmul::{matrix, product};
use super::*;
use crate::graph::kernel::Prologue;
use crate::graph::program::CAST;
use crate::ops::matmul::Matmul;

/// A call whose input `input` is a sum of what was that input's binding and of `row`, again and again; `cast`: what is in memory
/// are whole numbers. Both operands lie behind the output then.
fn computed(
    mut call: Structured,
    data: &mut Vec<Vec<u8>>,
    input: usize,
    row: &[f32],
    cast: bool,
) -> Structured {
    let binding = call.binding(input).expect("an input in memory");
    let before = call.pre.iter_mut().map(|pre| &mut pre.program).chain([&mut call.post]);
    let accesses =
        before.flat_map(|p| p.loads.iter_mut().chain(p.stores.iter_mut().map(|store| &mut store.to)));
    accesses.filter(|a| usize::from(a.binding) > binding).for_each(|a| a.binding -= 1);
    let own = data.remove(binding);
    let count = own.len() / 4;
    let shape = [count / row.len(), row.len()];
    let at = (data.len() + 1) as u16;
    data.extend([own, f32::to_bytes(row)]);
    let whole =
        Access { binding: at, dtype: if cast { I32 } else { F32 }, layout: Layout::contiguous(&shape) };
    let broadcast = Layout::contiguous(&[row.len()]).expand(&shape).expect("a row");
    let mut program = Program {
        shape: Dims::from_slice(&shape),
        insts: vec![Inst::Load(0), Inst::Load(1)],
        loads: vec![whole, Access { binding: at + 1, dtype: F32, layout: broadcast }],
        ..Program::default()
    };
    let mut first = 0;
    if cast {
        program.insts.push(Inst::Op {
            op: &CAST,
            operand: I32,
            result: F32,
            args: [0u16].into_iter().collect(),
        });
        first = 2;
    }
    let value = program.insts.len() as u16;
    program.insts.push(Inst::Op {
        op: &ADD,
        operand: F32,
        result: F32,
        args: [first, 1].into_iter().collect(),
    });
    program.collapse(0);
    call.pre.push(Prologue { input, program, value });
    call
}

/// A call whose input `input` is computed as a sum which is, but for rounding, what was in its memory. A row of the one term
/// is as long as the input's last dimension that is not 1.
pub(super) fn as_sum(call: Structured, data: &[Vec<u8>], input: usize) -> (Structured, Vec<Vec<u8>>) {
    let mut data = data.to_vec();
    let len = call.inputs[input].1.shape.iter().rev().copied().find(|&size| size > 1).unwrap_or(1);
    let own = &mut data[call.binding(input).expect("an input in memory")];
    let mut x = f32::from_bytes(own);
    x.resize(x.len().next_multiple_of(len), 0.0);
    let row = noise(len, 8);
    x.iter_mut().zip(row.iter().cycle()).for_each(|(x, r)| *x -= r);
    *own = f32::to_bytes(&x);
    (computed(call, &mut data, input, &row, false), data)
}

/// What an operand's memory holds: NaN wherever its layout does not reach, which therefore must not show.
fn memory(layout: &Layout, seed: u32) -> Vec<f32> {
    // A multiple of every row below.
    let mut x = vec![f32::NAN; layout.end().next_multiple_of(60)];
    let values = noise(x.len(), seed);
    for c in coordinates(&layout.shape) {
        let i = at(layout, &c);
        x[i] = values[i];
    }
    x
}

fn whole_numbers(x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let whole: Vec<i32> = x.iter().map(|v| (v * 2.0).round() as i32).collect();
    (i32::to_bytes(&whole), whole.iter().map(|&v| v as f32).collect())
}

/// Both operands, computed or not, in these memory orders, with an epilogue behind them.
fn check(
    devices: &[Arc<dyn Backend>],
    op: impl StructuredOp + 'static,
    [batch, m, n, k]: [usize; 4],
    kinds: [&str; 2],
    pre: [bool; 2],
) {
    let (a, b) = (matrix(kinds[0], batch, m, k), matrix(kinds[1], batch, k, n));
    let (mut x, mut y) = (memory(&a, 3), memory(&b, 4));
    // In one place each: they must show in their row and column alone.
    x[a.end() - 1] = f32::INFINITY;
    let mut data = vec![f32::to_bytes(&x), vec![]];
    // Whole numbers have neither.
    let cast = pre[1];
    if cast {
        (data[1], y) = whole_numbers(&y);
    } else {
        y[b.end() - 1] = f32::NAN;
        data[1] = f32::to_bytes(&y);
    }
    let name = format!("{op:?} {batch}x{m}x{n}x{k} {kinds:?}, computed: {pre:?}");
    let plain = call(op, &[(F32, a.clone()), (F32, b.clone())], &[batch, m, n], F32);
    let (mut call, c) = with_epilogue(plain);
    data.push(c.clone());
    // What makes something else of zeros, so that padding would show; in rows that are read in fours, and not.
    let rows = [noise(if k.is_multiple_of(4) { 12 } else { 5 }, 8), noise(20, 9)];
    for input in [1, 0].into_iter().filter(|&input| pre[input]) {
        call = computed(call, &mut data, input, &rows[input], cast && input == 1);
        let operand = if input == 0 { &mut x } else { &mut y };
        let row = rows[input].iter().cycle();
        operand.iter_mut().zip(row).for_each(|(v, r)| *v += r);
    }
    let mut expected = product(&a, &x, &b, &y);
    let row = f32::from_bytes(&c);
    expected.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(row[i % n]));
    for device in devices {
        let got = run(&**device, &call, &data).unwrap_or_else(|f| panic!("{name}: {}", f.message));
        // Of terms that are a few times as large as elsewhere.
        close(&format!("{name} on {}", device.name()), &got, &expected, 2e-5);
    }
}

#[test]
fn both_backends_compute_operands() {
    let sizes =
        [[1, 1, 1, 1], [2, 8, 32, 16], [1, 33, 36, 20], [1, 40, 1, 36], [3, 1, 1, 300], [2, 33, 65, 29]];
    let kinds = ["rows", "columns", "shifted", "padded", "spread", "broadcast"];
    for (i, size) in sizes.into_iter().enumerate() {
        for (j, kind) in kinds.into_iter().enumerate() {
            let pre = [[true, false], [false, true], [true, true]][(i + j) % 3];
            check(&devices(), Matmul, size, [kind, kinds[(i * j + 1) % kinds.len()]], pre);
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_variant_computes_operands() {
    use super::matmul::{forced, orders, runs_on};
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    let devices: [Arc<dyn Backend>; 1] = [device.clone()];
    for variant in VARIANTS {
        let kernel = variant.kernel;
        // Cooperative matrices are of halves, which are read from memory.
        if !runs_on(kernel, &device) || matches!(kernel, Kernel::Cooperative { .. }) {
            continue;
        }
        // batch, m, n, k; around the edges of tiles in every dimension.
        let mut sizes = match kernel {
            Kernel::Axpy => vec![[1, 300, 1, 64], [2, 5, 1, 1000], [1, 1, 260, 68], [1, 1, 7, 3]],
            Kernel::Slices => vec![[1, 300, 1, 64], [2, 4, 1, 1001], [3, 1, 36, 5], [1, 32, 1, 31]],
            _ => vec![[2, 35, 65, 33]],
        };
        if let Some([m, n]) = kernel.tile() {
            sizes.extend([[1, m - 1, n + 1, 17], [2, m + 4, n - 4, 16], [1, m + 1, n, 8]]);
        }
        // Each is a kernel to compile: of every size half the memory orders, and an operand or both.
        let mut pres = [[true, true], [true, false], [false, true]].into_iter().cycle();
        for (i, size) in sizes.into_iter().enumerate() {
            for (ka, kb) in orders(kernel, size[2]).into_iter().skip(i % 2).step_by(2) {
                let Some(pre) = pres.next() else { continue };
                check(&devices, forced(kernel), size, [ka, kb], pre);
            }
        }
    }
}

#[test]
fn an_operand_computed_from_the_other() {
    // a · (a + row), in sizes whose rows are aligned and not.
    for n in [60, 15] {
        let l = matrix("rows", 1, n, n);
        let x = noise(n * n, 1);
        let row = noise(5, 2);
        let y: Vec<f32> = x.iter().zip(row.iter().cycle()).map(|(x, r)| x + r).collect();
        let expected = product(&l, &x, &l, &y);
        let plain = call(Matmul, &[(F32, l.clone()), (F32, l.clone())], &[1, n, n], F32);
        let mut data = vec![f32::to_bytes(&x), f32::to_bytes(&x)];
        let mut call = computed(plain, &mut data, 1, &row, false);
        // Of the same memory: the copy goes.
        data.remove(1);
        let loads = &mut call.pre[0].program.loads;
        (loads[0].binding, loads[1].binding) = (0, 2);
        for device in devices() {
            let got = run(&*device, &call, &data).unwrap();
            close(&format!("{n} on {}", device.name()), &got, &expected, 1e-5);
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn tiles_of_every_size_compute_the_same_bits() {
    use super::matmul::{forced, runs_on};
    use crate::ops::matmul::variants::{Kernel, VARIANTS};
    let device = gpu();
    let [batch, m, n, k] = [2, 70, 136, 52];
    let (a, b) = (matrix("rows", batch, m, k), matrix("columns", batch, k, n));
    let mut first: [Option<Vec<u8>>; 2] = [None, None];
    let tiles = |k: Kernel| k.tile().is_some() && !matches!(k, Kernel::Cooperative { .. });
    for variant in VARIANTS.iter().filter(|v| tiles(v.kernel) && runs_on(v.kernel, &device)) {
        let mut data = vec![f32::to_bytes(&memory(&a, 3)), f32::to_bytes(&memory(&b, 4))];
        let mut call =
            call(forced(variant.kernel), &[(F32, a.clone()), (F32, b.clone())], &[batch, m, n], F32);
        for input in [1, 0] {
            call = computed(call, &mut data, input, &noise(20, 9), false);
        }
        let got = run(&*device, &call, &data).unwrap();
        let first = &mut first[usize::from(matches!(variant.kernel, Kernel::Lanes { .. }))];
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "{:?} differs", variant.kernel);
    }
}

#[test]
fn rows_are_computed_where_they_are_read() {
    use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyBackward, Target};
    use crate::ops::normalize::{Normalize, Task};
    use crate::ops::softmax::{Softmax, SoftmaxBackward};
    let target = Target { ignored: None, smoothing: 0.1 };
    let norm = |task| Normalize { rms: false, eps: 1e-3, task };
    for [rows, n] in [[6, 40], [3, 17], [2, 3000]] {
        let (rows3, rows2) = (Layout::contiguous(&[rows, n, 1]), Layout::contiguous(&[rows, n]));
        let (weight, classes) = (Layout::contiguous(&[n]), Layout::contiguous(&[rows, 1]));
        let stats = Layout::contiguous(&[3, rows, 1]);
        let wide = |count: usize, layout: &Layout| vec![(F32, layout.clone()); count];
        let both = |mut a: Vec<_>, b: Vec<_>| {
            a.extend(b);
            a
        };
        let with_classes =
            |count: usize| both(wide(1, &rows3), both(vec![(I32, classes.clone())], wide(count, &stats)));
        let gradient = Task::Gradient { weight: true };
        let (shape3, shape2) = ([rows, n, 1], [rows, n]);
        let calls = [
            (call(Softmax { log: false }, &wide(1, &rows3), &shape3, F32), vec![0]),
            (call(SoftmaxBackward { log: true }, &wide(2, &rows3), &shape3, F32), vec![0, 1]),
            (
                call(
                    norm(Task::Forward { weight: true, bias: false }),
                    &both(wide(1, &rows2), wide(1, &weight)),
                    &shape2,
                    F32,
                ),
                vec![0],
            ),
            (call(norm(gradient), &both(wide(2, &rows2), wide(1, &weight)), &shape2, F32), vec![1, 0]),
            (call(CrossEntropy { target, dim: 1 }, &with_classes(0), &[3, rows, 1], F32), vec![0]),
            (call(CrossEntropyBackward { target }, &with_classes(1), &shape3, F32), vec![0]),
        ];
        for (plain, computed) in calls {
            let data: Vec<Vec<u8>> = (plain.inputs.iter().zip(1..))
                .map(|((dtype, layout), seed)| match dtype {
                    F32 => f32::to_bytes(&noise(layout.numel(), seed)),
                    _ => i32::to_bytes(&(0..rows as i32).collect::<Vec<_>>()),
                })
                .collect();
            for device in devices() {
                let name = format!("{} {rows}x{n} on {}", plain.op.0.name(), device.name());
                let expected = f32::from_bytes(&run(&*device, &plain, &data).unwrap());
                let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
                let (mut call, mut data) = (plain.clone(), data.clone());
                for &input in &computed {
                    (call, data) = as_sum(call, &data, input);
                    // A rounding more for each element; a logarithm's gradient sums up a row.
                    close(&name, &run(&*device, &call, &data).unwrap(), &expected, 1e-5);
                }
            }
        }
    }
}
