//! What the hand-written kernels' dispatches have in common.

use std::sync::LazyLock;

use crate::graph::dtype::DType;
use crate::graph::kernel::Structured;

/// The largest grid that every adapter takes, per dimension.
const MAX_WORKGROUPS: usize = 65_535;

/// The threads a software adapter has. Asking the system takes as long as recording a dozen ops.
pub(crate) fn threads() -> usize {
    static THREADS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
    *THREADS
}

/// A grid of at least `groups` workgroups, which number themselves `(z * grid.y + y) * grid.x + x`.
pub(crate) fn fold_grid(groups: usize) -> [u32; 3] {
    let z = groups.div_ceil(MAX_WORKGROUPS * MAX_WORKGROUPS);
    let y = groups.div_ceil(MAX_WORKGROUPS * z).min(MAX_WORKGROUPS);
    [groups.div_ceil(y * z) as u32, y as u32, z as u32]
}

/// A dtype's type in registers.
pub(crate) fn wgsl_type(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "bool",
        DType::U32 => "u32",
        DType::I32 => "i32",
        // Kernels compute halves as singles.
        DType::F16 | DType::F32 => "f32",
        // There is no such type; a kernel that asks for it fails to compile, with a message.
        DType::F64 => "f64",
    }
}

/// A template's switches and values.
#[derive(Clone, Default)]
pub(crate) struct Defines(pub Vec<(&'static str, String)>);

impl Defines {
    pub fn flag(mut self, name: &'static str, on: bool) -> Defines {
        self.0.push((name, u8::from(on).to_string()));
        self
    }

    /// How a template reads memory: in fours or singly, fours as two words of 64 bits or as they are.
    pub fn reads(self, fours: bool, pairs: bool) -> Defines {
        let item = match (fours, pairs) {
            (true, true) => "vec2<u64>",
            (true, false) => "vec4<f32>",
            (false, _) => "f32",
        };
        self.flag("VEC", fours).flag("PAIRS", fours && pairs).value("ITEM", item)
    }

    /// Where an op's input is bound, or its number, from 1, if it is computed: by the defines of these names.
    pub fn input(self, [at, pre]: [&'static str; 2], call: &Structured, i: usize) -> Defines {
        let binding = call.binding(i);
        let computed = if binding.is_none() { 1 + i } else { 0 };
        self.value(at, 2 + binding.unwrap_or(0)).value(pre, computed)
    }

    pub fn value(mut self, name: &'static str, value: impl ToString) -> Defines {
        self.0.push((name, value.to_string()));
        self
    }
}
