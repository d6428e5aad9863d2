//! What a kernel moves and computes, told by its programs alone: for plans and traces.

use super::kernel::{Body, Kernel};
use super::layout::Layout;
use super::program::{Access, Inst, Program};

/// What one run of a kernel takes. Of an operand that only data decides on (a table that is looked up), all of it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Figures {
    pub read: u64,
    pub written: u64,
    /// Operations of a structured op (two for each product of a matrix product), as it counts them.
    pub structured: u64,
    /// Elementwise operations and the steps of a reduction, each as one.
    pub elementwise: u64,
    /// The same in additions: a `tanh` is many.
    pub cost: u64,
    /// Bytes of the largest buffer that must be bound whole, and its binding.
    pub largest: (u64, usize),
}

/// What a kernel does with one binding, in elements.
#[derive(Clone, Copy, Default)]
struct Touched {
    read: usize,
    written: usize,
    /// One past the last.
    end: usize,
}

impl Kernel {
    /// The index space it runs over, neighbouring dimensions merged where all operands allow it.
    pub fn shape(&self) -> Vec<usize> {
        match &self.body {
            Body::Map(jobs) => {
                jobs.iter().max_by_key(|p| p.numel()).map(|p| p.shape.to_vec()).unwrap_or_default()
            }
            Body::Reduce(r) => r.pre.shape.to_vec(),
            Body::Structured(s) => s.out_shape.to_vec(),
        }
    }

    pub fn figures(&self) -> Figures {
        let mut bindings = vec![Touched::default(); self.bindings.len()];
        let mut figures = Figures::default();
        let mut count = |program: &Program| {
            let n = program.numel() as u64;
            for inst in &program.insts {
                if let Inst::Op { op, .. } = inst {
                    figures.elementwise += n;
                    figures.cost += n * u64::from(op.cost);
                }
            }
            for load in &program.loads {
                bindings[usize::from(load.binding)].add_read(&load.layout);
            }
            for store in &program.stores {
                let Access { binding, layout, .. } = &store.to;
                let touched = &mut bindings[usize::from(*binding)];
                touched.written += elements(layout);
                touched.end = touched.end.max(layout.end());
            }
        };
        self.body.programs().into_iter().for_each(&mut count);
        match &self.body {
            Body::Map(_) => {}
            Body::Reduce(r) => {
                figures.elementwise += r.pre.numel() as u64;
                figures.cost += r.pre.numel() as u64;
            }
            Body::Structured(s) => {
                for (i, (_, layout)) in s.inputs.iter().enumerate() {
                    if let Some(binding) = s.binding(i) {
                        bindings[binding].add_read(layout);
                    }
                }
                figures.structured = s.op.0.flops(s);
                figures.elementwise += s.summed();
                figures.cost += s.summed();
            }
        }
        for (i, (touched, binding)) in bindings.iter().zip(&self.bindings).enumerate() {
            let bytes = |elements: usize| elements as u64 * binding.dtype.size() as u64;
            // What two programs read of the same place comes from memory once.
            figures.read += bytes(touched.read.min(touched.end));
            figures.written += bytes(touched.written.min(touched.end));
            if bytes(touched.end) > figures.largest.0 {
                figures.largest = (bytes(touched.end), i);
            }
        }
        figures
    }
}

impl Touched {
    fn add_read(&mut self, layout: &Layout) {
        self.read += elements(layout);
        self.end = self.end.max(layout.end());
    }
}

/// Different elements that a layout reaches: those repeated with stride 0 count once.
fn elements(layout: &Layout) -> usize {
    if layout.numel() == 0 {
        return 0;
    }
    let real = layout.shape.iter().zip(&layout.strides).filter(|&(_, &stride)| stride != 0);
    real.map(|(&n, _)| n).product()
}
