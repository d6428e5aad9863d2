//! Reading elements by index, and adding to elements by index.

use rayon::prelude::*;

use crate::backend::cpu::number::Num;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{AdapterInfo, ShaderCall, kernels::gather as shader};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Structured, StructuredOp};
use crate::graph::layout::{Dims, collapse};
#[cfg(feature = "gpu")]
use crate::ops::MAX_TURNS;
#[cfg(feature = "gpu")]
use crate::ops::dispatch::{Defines, fold_grid, wgsl_type};

/// `out[.., j, ..] = x[.., index[.., j, ..], ..]`, of `x` and an `I32` index whose layout has the output's shape.
#[derive(Debug)]
pub(crate) struct Gather {
    pub dim: usize,
}

/// The gradient of [`Gather`]: of `g` and index, both with the shape that the gather gave, zeros of `size` along
/// `dim` to which every element of `g` is added where its index says. Equal indices' elements are added in order.
#[derive(Debug)]
pub(crate) struct ScatterAdd {
    pub dim: usize,
    pub size: usize,
}

/// The loops over an indexed tensor, with neighbouring dimensions merged.
#[derive(Debug)]
struct Walk {
    /// Size, and strides in the tensor and in the index, of each dimension from the innermost.
    dims: Vec<[usize; 3]>,
    /// Which of them is indexed. (A gather's are merged without regard to that.)
    axis: usize,
    x_offset: usize,
    /// Stride of the tensor along the indexed dimension.
    x_step: usize,
    index_offset: usize,
    index_step: usize,
    /// Size of the indexed dimension, and how many indices there are in it.
    size: usize,
    length: usize,
    dim: usize,
}

impl Walk {
    fn merged(shape: &[usize], x: &[usize], index: &[usize]) -> impl Iterator<Item = [usize; 3]> {
        let (mut x, mut index) = (Dims::from_slice(x), Dims::from_slice(index));
        let shape = collapse(shape, &mut [&mut x, &mut index]);
        (0..shape.len()).rev().map(move |d| [shape[d], x[d], index[d]])
    }

    fn gather(call: &Structured, dim: usize) -> Walk {
        let [(_, x), (_, index)] = &call.inputs[..] else { unreachable!("gather has two inputs") };
        let mut strides = x.strides.clone();
        strides[dim] = 0;
        Walk {
            dims: Walk::merged(&index.shape, &strides, &index.strides).collect(),
            axis: 0,
            x_offset: x.offset,
            x_step: x.strides[dim],
            index_offset: index.offset,
            index_step: index.strides[dim],
            size: x.shape[dim],
            length: index.shape[dim],
            dim,
        }
    }

    fn scatter(call: &Structured, dim: usize, size: usize) -> Walk {
        let [(_, g), (_, index)] = &call.inputs[..] else { unreachable!("scatter_add has two inputs") };
        let part = |from: usize, to: usize| {
            Walk::merged(&g.shape[from..to], &g.strides[from..to], &index.strides[from..to])
        };
        let mut dims: Vec<_> = part(dim + 1, g.rank()).collect();
        let axis = dims.len();
        dims.push([size, 0, 0]);
        dims.extend(part(0, dim));
        Walk {
            dims,
            axis,
            x_offset: g.offset,
            x_step: g.strides[dim],
            index_offset: index.offset,
            index_step: index.strides[dim],
            size,
            length: g.shape[dim],
            dim,
        }
    }

    #[cfg(feature = "gpu")]
    fn numel(&self) -> usize {
        self.dims.iter().map(|d| d[0]).product()
    }

    /// Where coordinate `i` (row-major) of the dimensions `from..to` begins in tensor and index.
    fn place(dims: &[[usize; 3]], mut i: usize) -> (usize, usize) {
        let (mut x, mut index) = (0, 0);
        for &[size, x_stride, index_stride] in dims {
            x += i % size * x_stride;
            index += i % size * index_stride;
            i /= size;
        }
        (x, index)
    }

    fn bad(&self, index: i32) -> String {
        format!("index {index} is out of bounds for dimension {} with size {}", self.dim, self.size)
    }
}

/// Elements a thread should have at least.
const WORTH_A_THREAD: usize = 16 << 10;

impl StructuredOp for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn key(&self) -> Vec<u64> {
        vec![self.dim as u64]
    }

    fn fuses_epilogue(&self) -> bool {
        true
    }

    fn checks_data(&self) -> bool {
        true
    }

    fn flops(&self, _: &Structured) -> u64 {
        0
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, _: &AdapterInfo) -> Vec<ShaderCall> {
        Walk::gather(call, self.dim).calls(Kernel::Gather, call, 1)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let walk = Walk::gather(call, self.dim);
        let index = bytemuck::cast_slice(inputs[1]);
        if call.out_dtype.size() == 8 {
            gather::<u64>(&walk, bytemuck::cast_slice(inputs[0]), index, bytemuck::cast_slice_mut(out))
        } else {
            gather::<u32>(&walk, bytemuck::cast_slice(inputs[0]), index, bytemuck::cast_slice_mut(out))
        }
    }
}

fn gather<T: Copy + Send + Sync>(walk: &Walk, x: &[T], index: &[i32], out: &mut [T]) -> Result<(), String> {
    if out.is_empty() {
        return Ok(());
    }
    let (&[row, x_stride, index_stride], outer) = walk.dims.split_first().unwrap_or((&[1, 0, 0], &[]));
    let rows = WORTH_A_THREAD.div_ceil(row);
    let task = |(task, out): (usize, &mut [T])| -> Option<(usize, i32)> {
        for (i, out) in out.chunks_exact_mut(row).enumerate() {
            let number = task * rows + i;
            let (at, place) = Walk::place(outer, number);
            let (at, place) = (at + walk.x_offset, place + walk.index_offset);
            let find = |j: usize| {
                let index = index[place + j * index_stride];
                let within = usize::try_from(index).ok().filter(|&i| i < walk.size);
                within.map(|i| at + i * walk.x_step).ok_or((number, index))
            };
            if index_stride == 0 {
                match find(0) {
                    Ok(at) if x_stride == 1 => out.copy_from_slice(&x[at..][..row]),
                    Ok(at) => out.iter_mut().enumerate().for_each(|(j, v)| *v = x[at + j * x_stride]),
                    Err(bad) => return Some(bad),
                }
                continue;
            }
            for (j, v) in out.iter_mut().enumerate() {
                match find(j) {
                    Ok(at) => *v = x[at + j * x_stride],
                    Err(bad) => return Some(bad),
                }
            }
        }
        None
    };
    // The first of the faults, whichever thread is first.
    let bad = out.par_chunks_mut(rows * row).enumerate().filter_map(task).min_by_key(|&(row, _)| row);
    bad.map_or(Ok(()), |(_, index)| Err(walk.bad(index)))
}

impl StructuredOp for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn key(&self) -> Vec<u64> {
        vec![self.dim as u64, self.size as u64]
    }

    fn checks_data(&self) -> bool {
        true
    }

    fn flops(&self, call: &Structured) -> u64 {
        call.inputs[0].1.numel() as u64
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, call: &Structured, adapter: &AdapterInfo) -> Vec<ShaderCall> {
        let walk = Walk::scatter(call, self.dim, self.size);
        let software = adapter.is_software();
        // Columns that one invocation adds up: many on a software adapter, where looking for indices costs
        // each of them the same.
        if software && walk.is_rows() && walk.size <= 4 * walk.length && walk.length / 4 <= MAX_TURNS {
            return walk.calls(Kernel::Table, call, 8);
        }
        if walk.is_rows() && walk.length <= 2 * walk.size {
            let columns = if software { 4 } else { 1 };
            let mut calls = walk.calls(Kernel::Zeros, call, 1);
            calls.extend(walk.calls(Kernel::Rows, call, columns));
            return calls;
        }
        walk.calls(Kernel::Scatter, call, 1)
    }

    fn cpu(&self, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
        let walk = Walk::scatter(call, self.dim, self.size);
        match call.out_dtype {
            DType::F32 => scatter::<f32>(&walk, inputs, out),
            DType::F64 => scatter::<f64>(&walk, inputs, out),
            DType::I32 => scatter::<i32>(&walk, inputs, out),
            DType::U32 => scatter::<u32>(&walk, inputs, out),
            DType::Bool | DType::F16 => Err(format!("is not defined for {}", call.out_dtype)),
        }
    }
}

fn scatter<T: Num + bytemuck::Pod>(walk: &Walk, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
    let (g, index) = (bytemuck::cast_slice::<u8, T>(inputs[0]), bytemuck::cast_slice::<u8, i32>(inputs[1]));
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    out.fill(T::ZERO);
    let (columns, outer) = (&walk.dims[..walk.axis], &walk.dims[walk.axis + 1..]);
    let width: usize = columns.iter().map(|d| d[0]).product();
    let slabs: usize = outer.iter().map(|d| d[0]).product();
    if width * slabs * walk.length == 0 {
        return Ok(());
    }
    // Even where the output is empty, indices must be looked at.
    let work = slabs * walk.length * width;
    let threads = if work < WORTH_A_THREAD { 1 } else { rayon::current_num_threads() };
    let slab = |i: usize, rows: std::ops::Range<usize>, out: &mut [T]| -> Result<(), String> {
        let (at, place) = Walk::place(outer, i);
        let (at, place) = (at + walk.x_offset, place + walk.index_offset);
        let whole_rows = matches!(columns, [[_, 1, 0]]);
        for j in 0..walk.length {
            let (at, place) = (at + j * walk.x_step, place + j * walk.index_step);
            if whole_rows {
                let found = index[place];
                let row =
                    usize::try_from(found).ok().filter(|&i| i < walk.size).ok_or_else(|| walk.bad(found))?;
                if rows.contains(&row) {
                    let sums = &mut out[(row - rows.start) * width..][..width];
                    sums.iter_mut().zip(&g[at..][..width]).for_each(|(sum, &v)| *sum = sum.add(v));
                }
                continue;
            }
            for c in 0..width {
                let (x, i) = Walk::place(columns, c);
                let found = index[place + i];
                let row =
                    usize::try_from(found).ok().filter(|&i| i < walk.size).ok_or_else(|| walk.bad(found))?;
                if rows.contains(&row) {
                    let sum = &mut out[(row - rows.start) * width + c];
                    *sum = sum.add(g[at + x]);
                }
            }
        }
        Ok(())
    };
    if walk.size == 0 {
        return slab(0, 0..0, &mut []);
    }
    // Slabs side by side; a single one's rows are shared among threads, each of which reads all indices.
    let rows = if slabs >= threads { walk.size } else { walk.size.div_ceil(threads) };
    let tasks = walk.size.div_ceil(rows);
    let parts: Vec<(usize, &mut [T])> = (out.chunks_exact_mut(walk.size * width).enumerate())
        .flat_map(|(i, slab)| {
            slab.chunks_mut(rows * width).enumerate().map(move |(t, part)| (i * tasks + t, part))
        })
        .collect();
    let run = |(n, part): (usize, &mut [T])| {
        let begin = n % tasks * rows;
        slab(n / tasks, begin..begin + part.len() / width, part).err().map(|e| (n, e))
    };
    let bad = if threads == 1 {
        parts.into_iter().filter_map(run).min_by_key(|(n, _)| *n)
    } else {
        parts.into_par_iter().filter_map(run).min_by_key(|(n, _)| *n)
    };
    bad.map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(feature = "gpu")]
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kernel {
    /// An invocation per element.
    Gather,
    /// An invocation per element of the output, which looks for its indices.
    Scatter,
    Zeros,
    /// An invocation per row of the output and some columns, which looks at indices by fours. For few rows.
    Table,
    /// An invocation per index and some columns; the first of equal indices adds up the others' too. For many
    /// rows, most of which no index names; the output must be zero before.
    Rows,
}

#[cfg(feature = "gpu")]
impl Walk {
    /// Whether whole rows are scattered, each by one index.
    fn is_rows(&self) -> bool {
        self.axis == 1 && self.dims.len() == 2 && self.dims[0][2] == 0
    }

    /// Whether the innermost dimension may be walked in steps of four elements.
    fn fours(&self, kernel: Kernel) -> bool {
        let four = |n: usize| n.is_multiple_of(4);
        let Some((&[size, x, index], outer)) = self.dims.split_first() else { return false };
        let apart = kernel == Kernel::Gather || self.axis > 0;
        apart
            && (x, index) == (1, 0)
            && four(size)
            && four(self.x_offset)
            && four(self.x_step)
            && outer.iter().all(|d| four(d[1]))
    }

    fn calls(&self, kernel: Kernel, call: &Structured, columns: usize) -> Vec<ShaderCall> {
        if self.numel() == 0 {
            return vec![];
        }
        let vec = self.fours(kernel);
        let mut dims = self.dims.clone();
        if vec {
            dims[0] = [dims[0][0] / 4, 4, 0];
        }
        let mut params = shader::Params {
            x_step: self.x_step as u32,
            index_step: self.index_step as u32,
            size: self.size as u32,
            length: self.length as u32,
            ..Default::default()
        };
        // The kernel walks the inner dimensions; those beyond its table are dispatches of their own.
        let (inner, outer) = dims.split_at(dims.len().min(params.dims.len()));
        for (to, &[size, x, index]) in params.dims.iter_mut().zip(inner) {
            *to = [size as u32, x as u32, index as u32, 0];
        }
        let items: usize = inner.iter().map(|d| d[0]).product();
        let total = match kernel {
            Kernel::Rows => self.length * dims[0][0].div_ceil(columns),
            Kernel::Table => self.size * dims[0][0].div_ceil(columns),
            _ => items,
        };
        if total == 0 {
            return vec![];
        }
        params.total = total as u32;
        let four = |n: usize| n.is_multiple_of(4);
        let fours =
            kernel == Kernel::Table && self.index_step == 1 && four(self.index_offset) && four(self.length);
        // Loops of each invocation go over all indices.
        let unroll = self.length.div_ceil(MAX_TURNS).next_power_of_two();
        let defines = Defines::default()
            .value("T", wgsl_type(call.out_dtype))
            .value("S", wgsl_type(if call.out_dtype == DType::Bool { DType::U32 } else { call.out_dtype }))
            .value("UNROLL", unroll)
            .value("RANK", inner.len())
            .value("AXIS", self.axis)
            .value("COLUMNS", columns)
            .flag("VEC", vec)
            .flag("VEC4", vec)
            .flag("SCATTER", kernel == Kernel::Scatter)
            .flag("ZERO", kernel == Kernel::Zeros)
            .flag("TABLE", kernel == Kernel::Table)
            .flag("FOURS", fours)
            .flag("ROWS", kernel == Kernel::Rows);
        let one = |i: usize| {
            let (x, index) = Walk::place(outer, i);
            let mut params = params;
            params.x_offset = (self.x_offset + x) as u32;
            params.index_offset = (self.index_offset + index) as u32;
            params.out_offset = (i * items * if vec { 4 } else { 1 }) as u32;
            ShaderCall {
                shader: shader::NAME,
                entry: "gather",
                defines: defines.0.clone(),
                params: params.into(),
                workgroups: fold_grid(total.div_ceil(64)),
            }
        };
        (0..outer.iter().map(|d| d[0]).product()).map(one).collect()
    }
}
