//! Reductions: the program before is evaluated in blocks, which are folded along rows or down columns.
//!
//! How values are grouped depends on the shape alone, never on the number of threads, so that results are the
//! same on every machine. Sums are accurate: a lane adds at most 32 values in a row, and what lanes and blocks
//! gave is added in a balanced tree.

use std::ops::Range;

use super::eval::{Eval, Operands};
use super::number::{Num, Value};
use super::parallel::{WORTH_A_THREAD, tasks};
use super::plan::{Plan, Step, map_layouts};
use super::simd::{Work, vectorized};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Reduce, ReduceOp};
use crate::graph::layout::Layout;
use crate::graph::program::{Program, Reg};

/// Accumulators of a row.
const LANES: usize = 32;
/// Rows that are added to one accumulator before a new one is begun.
const GROUP: usize = 32;
/// Elements of one part where few outputs have long reductions.
const PART: usize = 128 << 10;
/// Elements of a block that is read in place.
const BARE: usize = 16 << 10;
/// Columns that are reduced at once.
const WIDE: usize = 4096;

pub(super) struct ReducePlan {
    pre: Plan,
    value: Reg,
    post: Plan,
    outputs: usize,
    reduced: usize,
    /// `pre` runs over reduced dimensions, then kept ones; else the other way round.
    columns: bool,
    /// Outputs of one task.
    span: usize,
    /// Reduced elements of one task, of which the parts are combined at the end.
    part: usize,
    identity: u64,
    run: fn(&ReducePlan, &Operands),
}

impl ReducePlan {
    pub fn new(reduce: &Reduce) -> Result<ReducePlan, String> {
        let (outputs, reduced) = (reduce.outputs(), reduce.reduced());
        if reduce.post.numel() != outputs {
            return Err(format!("a reduction to {outputs} values with {} after it", reduce.post.numel()));
        }
        if usize::from(reduce.value) >= reduce.pre.insts.len()
            || reduce.pre.dtype(reduce.value) != reduce.dtype
        {
            return Err(format!("a reduction of register {}, which is not {}", reduce.value, reduce.dtype));
        }
        let columns = outputs > 1 && (reduced == 1 || by_columns(&reduce.pre, reduce.kept));
        let mut pre = if columns {
            let rank = reduce.pre.shape.len();
            let order: Vec<usize> = (reduce.kept..rank).chain(0..reduce.kept).collect();
            Plan::new(
                &map_layouts(&reduce.pre, |layout| layout.permute(&order)),
                rank - reduce.kept,
                Some(reduce.value),
            )?
        } else {
            Plan::new(&reduce.pre, reduce.kept, Some(reduce.value))?
        };
        // Nothing is computed before: the values are folded where they lie, in blocks as long as sums stay accurate.
        if let [Step::Borrow { access, .. }] = pre.steps[..]
            && pre.accesses[usize::from(access)].layout.is_contiguous()
        {
            pre.by_runs = false;
            pre.block = if reduced <= BARE { (BARE / reduced.max(1)).max(1) * reduced.max(1) } else { BARE };
        }
        let price = pre.cost;
        let (span, part) = if columns {
            let span = if outputs <= WIDE { outputs } else { WIDE };
            let whole = outputs >= 16 * WIDE;
            (span, if whole { reduced } else { (PART / span).max(1) })
        } else if outputs >= 64 {
            ((WORTH_A_THREAD / (reduced * price).max(1)).max(outputs.div_ceil(256)).clamp(1, WIDE), reduced)
        } else {
            // Few of them, but each may be a thread's work.
            ((PART / reduced.max(1)).clamp(1, outputs.max(1)), PART)
        };
        Ok(ReducePlan {
            value: reduce.value,
            post: Plan::new(&reduce.post, reduce.post.shape.len(), None)?,
            outputs,
            reduced,
            columns,
            span: span.max(1),
            part: part.clamp(1, reduced.max(1)),
            identity: reduce.op.identity(reduce.dtype).bits(reduce.dtype),
            run: runner(reduce.op, reduce.dtype),
            pre,
        })
    }

    pub fn needs(&self, needs: &mut [usize]) {
        self.pre.needs(needs);
        self.post.needs(needs);
    }

    pub fn price(&self) -> usize {
        self.outputs * (self.reduced * self.pre.cost + self.post.cost)
    }

    pub fn run(&self, operands: &Operands) {
        (self.run)(self, operands);
    }

    fn go<F: Fold>(&self, operands: &Operands) {
        let identity: F::T = F::from_bits(self.identity);
        let parts = self.reduced.div_ceil(self.part).max(1);
        let range = |number: usize, size: usize, end: usize| number * size..((number + 1) * size).min(end);
        if parts == 1 {
            tasks(self.outputs.div_ceil(self.span), |task| {
                let outs = range(task, self.span, self.outputs);
                let mut results = vec![identity; outs.len()];
                self.fold::<F>(operands, outs.clone(), 0..self.reduced, &mut results);
                self.finish(operands, outs, bytemuck::cast_slice(&results));
            });
            return;
        }
        // Parts of the reduced elements first, each for its outputs; then the parts are combined.
        let spans = self.outputs.div_ceil(self.span);
        let mut partial = vec![identity; parts * self.outputs];
        let all = Shared(partial.as_mut_ptr());
        tasks(parts * spans, |task| {
            let (part, outs) = (task / spans, range(task % spans, self.span, self.outputs));
            // SAFETY: every task has its own stretch of `partial`.
            let results = unsafe { all.slice(part * self.outputs + outs.start, outs.len()) };
            self.fold::<F>(operands, outs, range(part, self.part, self.reduced), results);
        });
        let mut stack = Cascade::<F>::default();
        partial.chunks_exact(self.outputs).for_each(|part| stack.push(part.to_vec()));
        self.finish(operands, 0..self.outputs, bytemuck::cast_slice(&stack.finish().unwrap_or_default()));
    }

    /// The program after, on the reduced values of `outs`.
    fn finish(&self, operands: &Operands, outs: Range<usize>, values: &[u8]) {
        let mut post = Eval::new(&self.post, operands);
        post.set_anchor(values, outs.start);
        post.each(outs, |_, _, _| {});
    }

    /// Folds the reduced elements of `over` for each output of `outs` into `results`, which hold the identity.
    fn fold<F: Fold>(
        &self,
        operands: &Operands,
        outs: Range<usize>,
        over: Range<usize>,
        results: &mut [F::T],
    ) {
        if over.is_empty() {
            return;
        }
        let mut eval = Eval::new(&self.pre, operands);
        if self.columns {
            self.fold_columns::<F>(&mut eval, outs, over, results);
        } else {
            self.fold_rows::<F>(&mut eval, outs, over, results);
        }
    }

    fn fold_rows<F: Fold>(
        &self,
        eval: &mut Eval,
        outs: Range<usize>,
        over: Range<usize>,
        results: &mut [F::T],
    ) {
        let identity = F::from_bits(self.identity);
        let row = over.len();
        let at_once = if self.pre.by_runs || row != self.reduced { 1 } else { self.pre.block / row };
        if at_once > 1 {
            // Several short rows in a block.
            for start in outs.clone().step_by(at_once) {
                let count = at_once.min(outs.end - start);
                eval.block(start * row, count * row);
                let values: &[F::T] = bytemuck::cast_slice(eval.values(self.value, count * row));
                let results = &mut results[start - outs.start..][..count];
                vectorized(Rows::<F> { values, row, identity, results });
            }
            return;
        }
        for (out, result) in outs.zip(results) {
            let base = out * self.reduced;
            let mut tree = Tree::<F>::new();
            eval.each(base + over.start..base + over.end, |eval, _, len| {
                let values: &[F::T] = bytemuck::cast_slice(eval.values(self.value, len));
                let mut one = [identity];
                vectorized(Rows::<F> { values, row: len, identity, results: &mut one });
                tree.push(one[0]);
            });
            *result = tree.finish(identity);
        }
    }

    fn fold_columns<F: Fold>(
        &self,
        eval: &mut Eval,
        outs: Range<usize>,
        over: Range<usize>,
        results: &mut [F::T],
    ) {
        let identity = F::from_bits(self.identity);
        let width = outs.len();
        // Few columns: the accumulator is as wide as several rows.
        let copies = if width == self.outputs { (LANES * 2 / width).clamp(1, over.len()) } else { 1 };
        let mut stack = Cascade::<F>::default();
        for first in over.clone().step_by(GROUP * copies) {
            let group = first..(first + GROUP * copies).min(over.end);
            let mut sums = vec![identity; width * copies];
            if width == self.outputs {
                let base = group.start * width;
                eval.each(base..group.end * width, |eval, at, len| {
                    let values: &[F::T] = bytemuck::cast_slice(eval.values(self.value, len));
                    let from = (at - base) % sums.len();
                    vectorized(Columns::<F> { values, from, sums: &mut sums });
                });
            } else {
                for row in group {
                    let base = row * self.outputs + outs.start;
                    eval.each(base..base + width, |eval, at, len| {
                        let values: &[F::T] = bytemuck::cast_slice(eval.values(self.value, len));
                        vectorized(Columns::<F> { values, from: at - base, sums: &mut sums });
                    });
                }
            }
            stack.push(sums);
        }
        for sums in stack.finish().unwrap_or_default().chunks_exact(width) {
            for (result, &sum) in results.iter_mut().zip(sums) {
                *result = F::combine(*result, sum);
            }
        }
    }
}

/// Whether neighbours in memory are rather neighbours along the kept dimensions.
fn by_columns(pre: &Program, kept: usize) -> bool {
    let steps = |dims: Range<usize>, layout: &Layout| {
        dims.filter(|&d| layout.shape[d] > 1 && layout.strides[d] > 0).map(|d| layout.strides[d]).min()
    };
    let rank = pre.shape.len();
    let votes: i32 = (pre.loads.iter())
        .map(|load| match (steps(0..kept, &load.layout), steps(kept..rank, &load.layout)) {
            (Some(k), Some(r)) => (i32::from(k < r)) * 2 - 1,
            // Reads something repeatedly either way.
            _ => 0,
        })
        .sum();
    votes > 0
}

/// How two values become one.
trait Fold: 'static {
    type T: Num<Stored = Self::T> + bytemuck::Pod;
    fn combine(a: Self::T, b: Self::T) -> Self::T;
    fn from_bits(bits: u64) -> Self::T {
        bytemuck::cast_slice(&bits.to_le().to_le_bytes()[..size_of::<Self::T>()])[0]
    }
}

macro_rules! folds {
    ($($name:ident = $method:ident;)*) => {$(
        struct $name<T>(std::marker::PhantomData<T>);
        impl<T: Num<Stored = T> + bytemuck::Pod> Fold for $name<T> {
            type T = T;
            #[inline(always)]
            fn combine(a: T, b: T) -> T { a.$method(b) }
        }
    )*};
}
folds! { Sum = add; Prod = mul; Max = maximum; Min = minimum; }

fn runner(op: ReduceOp, dtype: DType) -> fn(&ReducePlan, &Operands) {
    fn of<T: Num<Stored = T> + bytemuck::Pod + Value>(op: ReduceOp) -> fn(&ReducePlan, &Operands) {
        match op {
            ReduceOp::Sum => ReducePlan::go::<Sum<T>>,
            ReduceOp::Prod => ReducePlan::go::<Prod<T>>,
            ReduceOp::Max => ReducePlan::go::<Max<T>>,
            ReduceOp::Min => ReducePlan::go::<Min<T>>,
        }
    }
    match dtype {
        // Of truth values the sum is "any" and the product "all".
        DType::Bool => match op {
            ReduceOp::Sum | ReduceOp::Max => of::<u32>(ReduceOp::Max),
            ReduceOp::Prod | ReduceOp::Min => of::<u32>(ReduceOp::Min),
        },
        DType::U32 => of::<u32>(op),
        DType::I32 => of::<i32>(op),
        // Folded in single precision (`DType::opmath`).
        DType::F16 | DType::F32 => of::<f32>(op),
        DType::F64 => of::<f64>(op),
    }
}

/// Folds each `row` of values.
struct Rows<'a, F: Fold> {
    values: &'a [F::T],
    row: usize,
    identity: F::T,
    results: &'a mut [F::T],
}

impl<F: Fold> Work for Rows<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (row, result) in self.values.chunks_exact(self.row).zip(self.results) {
            if row.len() < LANES {
                *result = row.iter().fold(self.identity, |sum, &v| F::combine(sum, v));
                continue;
            }
            let mut lanes = [self.identity; LANES];
            for stretch in row.chunks(LANES * 16) {
                let mut part = [self.identity; LANES];
                let chunks = stretch.chunks_exact(LANES);
                let rest = chunks.remainder();
                for chunk in chunks {
                    for i in 0..LANES {
                        part[i] = F::combine(part[i], chunk[i]);
                    }
                }
                for i in 0..rest.len() {
                    part[i] = F::combine(part[i], rest[i]);
                }
                for i in 0..LANES {
                    lanes[i] = F::combine(lanes[i], part[i]);
                }
            }
            let mut half = LANES / 2;
            while half > 0 {
                for i in 0..half {
                    lanes[i] = F::combine(lanes[i], lanes[i + half]);
                }
                half /= 2;
            }
            *result = lanes[0];
        }
    }
}

/// Adds values to the sums from number `from` on, round and round.
struct Columns<'a, F: Fold> {
    values: &'a [F::T],
    from: usize,
    sums: &'a mut [F::T],
}

impl<F: Fold> Work for Columns<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let (mut values, mut from) = (self.values, self.from);
        while !values.is_empty() {
            let sums = &mut self.sums[from..];
            let n = sums.len().min(values.len());
            let (now, rest) = values.split_at(n);
            for (sum, &v) in sums.iter_mut().zip(now) {
                *sum = F::combine(*sum, v);
            }
            (values, from) = (rest, 0);
        }
    }
}

/// Combines a stream of values in a balanced tree.
struct Tree<F: Fold> {
    levels: [F::T; usize::BITS as usize],
    count: usize,
}

impl<F: Fold> Tree<F> {
    fn new() -> Self {
        Tree { levels: [F::T::ZERO; usize::BITS as usize], count: 0 }
    }

    fn push(&mut self, mut value: F::T) {
        let full = self.count.trailing_ones() as usize;
        for level in 0..full {
            value = F::combine(self.levels[level], value);
        }
        self.levels[full] = value;
        self.count += 1;
    }

    fn finish(&self, identity: F::T) -> F::T {
        (0..self.levels.len())
            .filter(|level| self.count >> level & 1 == 1)
            .fold(identity, |sum, level| F::combine(self.levels[level], sum))
    }
}

/// The same of rows of values.
struct Cascade<F: Fold> {
    rows: Vec<Vec<F::T>>,
    count: usize,
}

impl<F: Fold> Default for Cascade<F> {
    fn default() -> Self {
        Cascade { rows: vec![], count: 0 }
    }
}

impl<F: Fold> Cascade<F> {
    fn push(&mut self, row: Vec<F::T>) {
        self.rows.push(row);
        for _ in 0..self.count.trailing_ones() {
            self.merge();
        }
        self.count += 1;
    }

    fn merge(&mut self) {
        if let (Some(last), Some(before)) = (self.rows.pop(), self.rows.last_mut()) {
            vectorized(Columns::<F> { values: &last, from: 0, sums: before });
        }
    }

    fn finish(mut self) -> Option<Vec<F::T>> {
        while self.rows.len() > 1 {
            self.merge();
        }
        self.rows.pop()
    }
}

struct Shared<T>(*mut T);
// SAFETY: threads take disjoint slices.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// SAFETY: within the allocation, and apart from every other slice taken.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, from: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}
