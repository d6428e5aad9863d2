//! Convolutions on the CPU: the taps of a block of places, copied side by side while they fit into the cache, are a
//! matrix, and the rest are products of matrices. Filters of one channel are summed directly.

use std::ops::Range;

use rayon::prelude::*;

use super::direct::{direct, direct_input, direct_output, direct_weight, dot};
use super::op::{Conv2d, Geometry, Part};
use crate::backend::cpu::gemm::{Gemm, multiply_add};
use crate::backend::cpu::number::Real;
use crate::backend::cpu::simd::{Work, vectorized};
use crate::graph::kernel::Structured;

pub(super) trait Element: Real + Gemm + bytemuck::Pod {}
impl<T: Real + Gemm + bytemuck::Pod> Element for T {}

/// Elements of a block of taps: what leaves room in a core's own cache.
const BLOCK: usize = 48 << 10;
/// Places that a product should have at least, where more images could bring more.
const FEWEST_PLACES: usize = 128;

/// Rows of places of some images, worked on together. Of several images it has all rows.
#[derive(Clone, Debug)]
struct Block {
    images: Range<usize>,
    rows: Range<usize>,
}

impl Geometry {
    /// The blocks of the places in `rows`, which number all images' rows of places, one image after the other.
    fn blocks(&self, rows: Range<usize>) -> Vec<Block> {
        let (height, width) = (self.places[0], self.places[1]);
        let depth = (self.group_channels() * self.taps()).max(1);
        let room = (BLOCK / depth / width.max(1)).max(1);
        let together = if self.place_count() >= FEWEST_PLACES { 1 } else { (room / height.max(1)).max(1) };
        let together = together.min(FEWEST_PLACES.div_ceil(self.place_count().max(1)));
        let mut out: Vec<Block> = vec![];
        let mut at = rows.start;
        while at < rows.end {
            let (image, row) = (at / height, at % height);
            let whole = (rows.end - at) / height;
            if row == 0 && together > 1 && whole > 1 {
                let images = image..image + together.min(whole);
                at += images.len() * height;
                out.push(Block { images, rows: 0..height });
            } else {
                let end = (row + room).min(height).min(row + rows.end - at);
                out.push(Block { images: image..image + 1, rows: row..end });
                at += end - row;
            }
        }
        out
    }

    /// Whether a product would have too few rows to be worth copying its taps.
    fn is_direct(&self) -> bool {
        self.group_channels() == 1 && self.group_filters() <= 2
    }

    /// Whether a tap's places are as far apart as the image's elements, so that they are a stretch of it.
    fn is_shifted(&self) -> bool {
        self.stride == [1, 1] && self.places[1] == self.size[1]
    }

    fn columns(&self, block: &Block) -> usize {
        block.images.len() * block.rows.len() * self.places[1]
    }
}

/// The places in a row at which a tap is inside, if its row is.
fn inside(places: usize, size: usize, offset: usize, padding: usize, stride: usize) -> Range<usize> {
    let begin = padding.saturating_sub(offset).div_ceil(stride).min(places);
    let end = (size + padding).saturating_sub(offset).div_ceil(stride).min(places);
    begin..end.max(begin)
}

/// Walks the rows of places of one channel at one tap: calls `row` with the row of places, the row of the image (if
/// there is one), the places inside and where the first of them is.
#[inline(always)]
pub(super) fn tap_rows(
    g: &Geometry,
    rows: Range<usize>,
    [r, q]: [usize; 2],
    mut row: impl FnMut(usize, Option<usize>, Range<usize>, usize),
) {
    let (down, across) = (r * g.dilation[0], q * g.dilation[1]);
    let places = inside(g.places[1], g.size[1], across, g.padding[1], g.stride[1]);
    let first = if places.is_empty() { 0 } else { places.start * g.stride[1] + across - g.padding[1] };
    for y in rows {
        let at = (y * g.stride[0] + down).checked_sub(g.padding[0]).filter(|&at| at < g.size[0]);
        row(y, at, places.clone(), first);
    }
}

/// Copies a block's taps to a matrix `[channels · taps, places]`, or adds such a matrix to the image.
struct Taps<'a, T> {
    g: &'a Geometry,
    block: &'a Block,
    channels: Range<usize>,
    columns: &'a mut [T],
    /// Elements of a line of it.
    width: usize,
    image: Image<'a, T>,
}

enum Image<'a, T> {
    Read(&'a [T]),
    /// The block's images alone.
    Add(&'a mut [T]),
}

impl<T: Element> Work for Taps<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let g = self.g;
        let mut line = 0;
        for channel in self.channels.clone() {
            for r in 0..g.kernel[0] {
                for q in 0..g.kernel[1] {
                    let columns = &mut self.columns[line * self.width..][..self.width];
                    let block = self.block.rows.len() * g.places[1];
                    for (i, image) in self.block.images.clone().enumerate() {
                        let number = if matches!(self.image, Image::Read(_)) { image } else { i };
                        let plane = (number * g.channels + channel) * g.area();
                        let columns = &mut columns[i * block..][..block];
                        match &mut self.image {
                            Image::Read(x) if g.is_shifted() => {
                                read_shifted(g, self.block, [r, q], &x[plane..][..g.area()], columns);
                            }
                            Image::Add(x) if g.is_shifted() => {
                                add_shifted(g, self.block, [r, q], &mut x[plane..][..g.area()], columns);
                            }
                            Image::Read(x) => read_rows(g, self.block, [r, q], &x[plane..], columns),
                            Image::Add(x) => add_rows(g, self.block, [r, q], &mut x[plane..], columns),
                        }
                    }
                    line += 1;
                }
            }
        }
    }
}

/// What [`Geometry::is_shifted`] makes of a tap of a block's rows: which of its places are in the image's plane, and
/// where the first of these is in it.
fn shifted(g: &Geometry, block: &Block, [r, q]: [usize; 2]) -> (Range<usize>, usize) {
    let width = g.size[1];
    let before = g.padding[0] * width + g.padding[1];
    let after = (block.rows.start + r * g.dilation[0]) * width + q * g.dilation[1];
    let len = block.rows.len() * width;
    let begin = before.saturating_sub(after).min(len);
    let end = (g.area() + before).saturating_sub(after).clamp(begin, len);
    (begin..end, if begin < end { after + begin - before } else { 0 })
}

/// Sets places of which the tap is to the left or right of the image to zero.
#[inline(always)]
fn clear_sides<T: Element>(g: &Geometry, tap: usize, columns: &mut [T]) {
    let places = inside(g.places[1], g.size[1], tap * g.dilation[1], g.padding[1], 1);
    if places.len() < g.places[1] {
        for row in columns.chunks_exact_mut(g.places[1]) {
            row[..places.start].iter_mut().for_each(|v| *v = T::ZERO);
            row[places.end..].iter_mut().for_each(|v| *v = T::ZERO);
        }
    }
}

#[inline(always)]
fn read_shifted<T: Element>(g: &Geometry, block: &Block, tap: [usize; 2], plane: &[T], columns: &mut [T]) {
    let (range, at) = shifted(g, block, tap);
    columns[..range.start].fill(T::ZERO);
    columns[range.end..].fill(T::ZERO);
    let count = range.len();
    columns[range].copy_from_slice(&plane[at..][..count]);
    clear_sides(g, tap[1], columns);
}

#[inline(always)]
fn add_shifted<T: Element>(g: &Geometry, block: &Block, tap: [usize; 2], plane: &mut [T], columns: &mut [T]) {
    clear_sides(g, tap[1], columns);
    let (range, at) = shifted(g, block, tap);
    for (to, &v) in plane[at..].iter_mut().zip(&columns[range]) {
        *to = *to + v;
    }
}

#[inline(always)]
fn read_rows<T: Element>(g: &Geometry, block: &Block, tap: [usize; 2], plane: &[T], columns: &mut [T]) {
    let mut lines = columns.chunks_exact_mut(g.places[1]);
    tap_rows(g, block.rows.clone(), tap, |_, at, places, first| {
        let Some(line) = lines.next() else { return };
        let Some(at) = at.filter(|_| !places.is_empty()) else { return line.fill(T::ZERO) };
        line[..places.start].fill(T::ZERO);
        line[places.end..].fill(T::ZERO);
        let x = &plane[at * g.size[1] + first..];
        if g.stride[1] == 1 {
            line[places].iter_mut().zip(x).for_each(|(to, &v)| *to = v);
        } else {
            line[places].iter_mut().zip(x.iter().step_by(g.stride[1])).for_each(|(to, &v)| *to = v);
        }
    });
}

#[inline(always)]
fn add_rows<T: Element>(g: &Geometry, block: &Block, tap: [usize; 2], plane: &mut [T], columns: &[T]) {
    let mut lines = columns.chunks_exact(g.places[1]);
    tap_rows(g, block.rows.clone(), tap, |_, at, places, first| {
        let Some(line) = lines.next() else { return };
        let Some(at) = at.filter(|_| !places.is_empty()) else { return };
        let x = &mut plane[at * g.size[1] + first..];
        if g.stride[1] == 1 {
            x.iter_mut().zip(&line[places]).for_each(|(to, &v)| *to = *to + v);
        } else {
            x.iter_mut().step_by(g.stride[1]).zip(&line[places]).for_each(|(to, &v)| *to = *to + v);
        }
    });
}

pub(super) fn run<T: Element>(op: &Conv2d, call: &Structured, inputs: &[&[u8]], out: &mut [u8]) {
    let g = &op.geometry;
    let out = bytemuck::cast_slice_mut::<u8, T>(out);
    let input = |i: usize| &bytemuck::cast_slice::<u8, T>(inputs[i])[call.inputs[i].1.offset..];
    let images = |i: usize, part: Part| &input(i)[..g.shape(part).iter().product()];
    if out.is_empty() {
        return;
    }
    match op.part {
        Part::Output => {
            let w = weight(call, input(1));
            let x = images(0, Part::Input);
            if g.is_direct() {
                direct(g, out, g.group_filters() * g.place_count(), |i, out| {
                    direct_output(g, i, x, &w, out);
                });
            } else {
                output(g, x, &w, out);
            }
        }
        Part::Input => {
            let w = weight(call, input(1));
            let y = images(0, Part::Output);
            if g.is_direct() {
                direct(g, out, g.area(), |i, out| direct_input(g, i, y, &w, out));
            } else {
                input_gradient(g, y, &w, out);
            }
        }
        Part::Weight => {
            let (x, y) = (images(0, Part::Input), images(1, Part::Output));
            let rows = g.images * g.places[0];
            let each = g.part_rows(op.parts);
            let size = out.len() / op.parts;
            for (i, out) in out.chunks_exact_mut(size).enumerate() {
                weight_gradient(g, (i * each).min(rows)..((i + 1) * each).min(rows), x, y, out);
            }
        }
    }
}

/// The weight, row by row.
fn weight<'a, T: Element>(call: &Structured, w: &'a [T]) -> std::borrow::Cow<'a, [T]> {
    let layout = &call.inputs[1].1;
    if layout.is_contiguous() {
        return (&w[..layout.numel()]).into();
    }
    let (&[a, b, c, d], &[sa, sb, sc, sd]) = (&layout.shape[..], &layout.strides[..]) else {
        unreachable!("a weight has four dimensions")
    };
    let mut out = Vec::with_capacity(layout.numel());
    for (i, j) in (0..a).flat_map(|i| (0..b).map(move |j| (i, j))) {
        for (k, l) in (0..c).flat_map(|k| (0..d).map(move |l| (k, l))) {
            out.push(w[i * sa + j * sb + k * sc + l * sd]);
        }
    }
    out.into()
}

/// Memory for the taps of a block, and for values of several images side by side.
struct Scratch<T> {
    columns: Vec<T>,
    values: Vec<T>,
}

impl<T: Element> Scratch<T> {
    fn new() -> Scratch<T> {
        Scratch { columns: vec![], values: vec![] }
    }
}

fn sized<T: Element>(v: &mut Vec<T>, len: usize) -> &mut [T] {
    if v.len() < len {
        v.resize(len, T::ZERO);
    }
    &mut v[..len]
}

/// Runs `work` for each of the images in `out`, in tasks of several where `together` says so: with the number of the
/// first, their part of `out`, and whether the products inside may take threads of their own.
fn each_images<T: Element>(
    out: &mut [T],
    image: usize,
    together: usize,
    work: impl Fn(usize, &mut [T], bool, &mut Scratch<T>) + Sync,
) {
    let tasks = out.len().div_ceil(image * together);
    if tasks < rayon::current_num_threads() {
        let mut scratch = Scratch::new();
        for (i, out) in out.chunks_mut(image * together).enumerate() {
            work(i * together, out, true, &mut scratch);
        }
    } else {
        out.par_chunks_mut(image * together)
            .enumerate()
            .for_each_init(Scratch::new, |scratch, (i, out)| work(i * together, out, false, scratch));
    }
}

/// How many images the first block of places has.
fn together(g: &Geometry) -> usize {
    g.blocks(0..g.images * g.places[0]).first().map_or(1, |b| b.images.len())
}

fn output<T: Element>(g: &Geometry, x: &[T], w: &[T], out: &mut [T]) {
    let (m, k, places) = (g.group_filters(), g.group_channels() * g.taps(), g.place_count());
    let image = g.filters * places;
    each_images(out, image, together(g), |first, out, threads, scratch| {
        let images = out.len() / image;
        for group in 0..g.groups {
            let w = &w[group * m * k..][..m * k];
            for block in g.blocks(first * g.places[0]..(first + images) * g.places[0]) {
                let n = g.columns(&block);
                let start = block.rows.start * g.places[1];
                let at = |i: usize| ((i - first) * g.filters + group * m) * places + start;
                let taps = taps(g, &block, group, x, &mut scratch.columns);
                if block.images.len() == 1 {
                    let out = &mut out[at(block.images.start)..];
                    multiply_add([m, n, k], w, [k, 1], taps.0, [taps.1, 1], out, places, false, threads);
                    continue;
                }
                let values = sized(&mut scratch.values, m * n);
                multiply_add([m, n, k], w, [k, 1], taps.0, [taps.1, 1], values, n, false, threads);
                for (i, image) in block.images.clone().enumerate() {
                    for row in 0..m {
                        out[at(image) + row * places..][..places]
                            .copy_from_slice(&values[row * n + i * places..][..places]);
                    }
                }
            }
        }
    });
}

/// The taps of a block in a group's channels, a matrix `[channels · taps, places]`, and how far apart its rows lie.
fn taps<'a, T: Element>(
    g: &Geometry,
    block: &Block,
    group: usize,
    x: &'a [T],
    columns: &'a mut Vec<T>,
) -> (&'a [T], usize) {
    let channels = group * g.group_channels()..(group + 1) * g.group_channels();
    if g.is_pointwise() && block.images.len() == 1 {
        let start = (block.images.start * g.channels + channels.start) * g.area();
        return (&x[start + block.rows.start * g.size[1]..], g.area());
    }
    let width = g.columns(block);
    let columns = sized(columns, channels.len() * g.taps() * width);
    vectorized(Taps { g, block, channels, columns, width, image: Image::Read(x) });
    (columns, width)
}

/// A block of `y` in a group's filters, a matrix `[filters, places]`, and how far apart its rows lie.
fn values<'a, T: Element>(
    g: &Geometry,
    block: &Block,
    group: usize,
    y: &'a [T],
    scratch: &'a mut Vec<T>,
) -> (&'a [T], usize) {
    let (m, places) = (g.group_filters(), g.place_count());
    let at = |image: usize| (image * g.filters + group * m) * places;
    if block.images.len() == 1 {
        return (&y[at(block.images.start) + block.rows.start * g.places[1]..], places);
    }
    let n = g.columns(block);
    let values = sized(scratch, m * n);
    for (i, image) in block.images.clone().enumerate() {
        for row in 0..m {
            values[row * n + i * places..][..places]
                .copy_from_slice(&y[at(image) + row * places..][..places]);
        }
    }
    (values, n)
}

fn input_gradient<T: Element>(g: &Geometry, y: &[T], w: &[T], out: &mut [T]) {
    let (m, k) = (g.group_filters(), g.group_channels() * g.taps());
    let image = g.channels * g.area();
    each_images(out, image, together(g), |first, out, threads, scratch| {
        let images = out.len() / image;
        out.fill(T::ZERO);
        for group in 0..g.groups {
            let w = &w[group * m * k..][..m * k];
            for block in g.blocks(first * g.places[0]..(first + images) * g.places[0]) {
                let n = g.columns(&block);
                let (values, row) = values(g, &block, group, y, &mut scratch.values);
                let columns = sized(&mut scratch.columns, k * n);
                multiply_add([k, n, m], w, [1, k], values, [row, 1], columns, n, false, threads);
                let channels = group * g.group_channels()..(group + 1) * g.group_channels();
                let at = (block.images.start - first) * image;
                let image = Image::Add(&mut out[at..]);
                vectorized(Taps { g, block: &block, channels, columns, width: n, image });
            }
        }
    });
}

/// The gradient of the weight over some rows of places: shared among threads, each of which sums up its own.
fn weight_gradient<T: Element>(g: &Geometry, rows: Range<usize>, x: &[T], y: &[T], out: &mut [T]) {
    let (m, k) = (g.group_filters(), g.group_channels() * g.taps());
    out.fill(T::ZERO);
    let part = |rows: Range<usize>, out: &mut [T], threads: bool| {
        if g.is_direct() {
            return direct_weight(g, rows, x, y, out);
        }
        let mut scratch = Scratch::new();
        for group in 0..g.groups {
            let out = &mut out[group * m * k..][..m * k];
            for block in g.blocks(rows.clone()) {
                let n = g.columns(&block);
                let (columns, width) = taps(g, &block, group, x, &mut scratch.columns);
                let (values, row) = values(g, &block, group, y, &mut scratch.values);
                if k < FEW_COLUMNS {
                    vectorized(Dots { values, row, columns, width, n, out, k });
                } else {
                    multiply_add([m, k, n], values, [row, 1], columns, [1, width], out, k, true, threads);
                }
            }
        }
    };
    let threads = rayon::current_num_threads();
    // Images are not cut, unless there are few.
    let each = rows.len().div_ceil(threads);
    let each = if g.images >= threads { each.next_multiple_of(g.places[0].max(1)) } else { each }.max(1);
    let tasks = rows.len().div_ceil(each);
    if tasks < 2 {
        return part(rows, out, true);
    }
    let mut sums = vec![T::ZERO; (tasks - 1) * out.len()];
    let size = out.len();
    std::iter::once(&mut *out)
        .chain(sums.chunks_exact_mut(size))
        .enumerate()
        .collect::<Vec<_>>()
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(i, out)| {
            let begin = rows.start + i * each;
            part(begin..(begin + each).min(rows.end), out, false);
        });
    for sum in sums.chunks_exact(size) {
        for (to, &v) in out.iter_mut().zip(sum) {
            *to = *to + v;
        }
    }
}

/// Columns of a weight below which products of matrices have little to share.
const FEW_COLUMNS: usize = 16;

/// `out += values · columnsᵀ`, element by element.
struct Dots<'a, T> {
    values: &'a [T],
    row: usize,
    columns: &'a [T],
    width: usize,
    n: usize,
    out: &'a mut [T],
    k: usize,
}

impl<T: Element> Work for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (i, out) in self.out.chunks_exact_mut(self.k).enumerate() {
            let values = &self.values[i * self.row..][..self.n];
            for (j, out) in out.iter_mut().enumerate() {
                *out = *out + dot(values, &self.columns[j * self.width..][..self.n], 1);
            }
        }
    }
}
