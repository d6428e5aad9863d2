//! Elementwise programs, shared out among threads; and the inputs that they compute for structured ops.

use std::ops::Range;

use super::eval::{Eval, Operands};
use super::parallel::{WORTH_A_THREAD, tasks};
use super::plan::{self, Plan};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Kernel, Prologue, Structured};
use crate::graph::layout::Layout;
use crate::graph::program::{Access, Program, Store};

/// Elements of one of a map's programs that one thread does.
struct Stretch {
    job: usize,
    range: Range<usize>,
}

/// Programs cut into pieces for threads.
pub(super) struct Elementwise {
    pub plans: Vec<Plan>,
    stretches: Vec<Stretch>,
}

impl Elementwise {
    pub fn new(programs: &[Program]) -> Result<Elementwise, String> {
        let mut plans = vec![];
        for program in programs {
            for part in plan::tile(program) {
                plans.push(Plan::new(&part, 0, None)?);
            }
        }
        let mut stretches = vec![];
        for (job, plan) in plans.iter().enumerate() {
            let chunk = stretch_of(plan);
            for start in (0..plan.numel).step_by(chunk) {
                stretches.push(Stretch { job, range: start..(start + chunk).min(plan.numel) });
            }
        }
        Ok(Elementwise { plans, stretches })
    }

    pub fn price(&self) -> usize {
        self.plans.iter().map(|plan| plan.numel * plan.cost).sum()
    }

    pub fn run(&self, operands: &Operands) {
        tasks(self.stretches.len(), |i| {
            let Stretch { job, range } = &self.stretches[i];
            Eval::new(&self.plans[*job], operands).each(range.clone(), |_, _, _| {});
        });
    }
}

/// Elements that are worth a thread, in whole blocks; few enough stretches that handing them out costs little.
pub(super) fn stretch_of(plan: &Plan) -> usize {
    let least = (WORTH_A_THREAD / 2 / plan.cost.max(1)).max(plan.numel.div_ceil(128));
    least.next_multiple_of(plan.block).max(1)
}

/// What computes an input into a binding behind the kernel's own, and how many bytes that takes.
pub(super) fn computed(
    pre: &Prologue,
    call: &Structured,
    kernel: &Kernel,
    needs: &mut Vec<usize>,
) -> Result<(Elementwise, usize), String> {
    plan::check(&pre.program, kernel, None)?;
    let mut program = pre.program.clone();
    let fits = |(dtype, layout): &(DType, Layout)| {
        let known = usize::from(pre.value) < program.insts.len() && program.stores.is_empty();
        known && program.dtype(pre.value) == *dtype && layout.end() <= program.numel()
    };
    let dtype = call.inputs.get(pre.input).filter(|input| fits(input)).map(|(dtype, _)| *dtype);
    let dtype = dtype.ok_or("an input that is not what its program computes")?;
    let layout = Layout::contiguous(&program.shape);
    program.stores =
        vec![Store { value: pre.value, to: Access { binding: needs.len() as u16, dtype, layout } }];
    let elementwise = Elementwise::new(std::slice::from_ref(&program))?;
    needs.push(0);
    elementwise.plans.iter().for_each(|plan| plan.needs(needs));
    needs.pop();
    Ok((elementwise, program.numel() * dtype.size()))
}
