//! How a whole kernel of a user's runs on GPUs: its text as a template, its grid.

use std::fmt::Write;

use super::kernel::{Grid, Registered, Shapes};
use crate::backend::gpu::{ShaderCall, kernels};
use crate::graph::dtype::DType;
use crate::ops::custom::wgsl;
use crate::ops::dispatch::{Defines, fold_grid, wgsl_type};

/// A kernel's way to run on GPUs.
#[derive(Default)]
pub struct Gpu {
    shader: &'static str,
    /// Invocations in a workgroup.
    width: usize,
    grid: Option<Grid>,
}

impl Gpu {
    /// Checks the text, and registers it as a template.
    pub fn new(op: &Registered, text: &str, grid: Option<Grid>) -> Result<Gpu, String> {
        let template = template(op, text);
        let out = wgsl_type(op.dtype.unwrap_or(DType::F32));
        let defines = Defines::default().value("GROUP", 1).0;
        let checked = wgsl::check_kernel(op.name, &template, 2 + op.inputs.len(), out, &defines)?;
        let [x, y, z] = checked.workgroup;
        if y * z != 1 && !matches!(grid, Some(Grid::Workgroups(_))) {
            let what = "a workgroup of several dimensions needs a grid: give `workgroups`";
            return Err(format!("{}.wgsl: {what}", op.name));
        }
        // No file in `shaders/` has such a name.
        let shader = Box::leak(format!("custom {}", op.name).into_boxed_str());
        kernels::register(shader, Box::leak(template.into_boxed_str()));
        Ok(Gpu { shader, width: x as usize, grid })
    }

    pub fn calls(&self, op: &Registered, shapes: &Shapes<'_>) -> Vec<ShaderCall> {
        if shapes.numel() == 0 {
            return vec![];
        }
        let mut words = vec![shapes.numel() as u32];
        words.extend(op.params.iter().map(|(_, of)| of(shapes) as u32));
        words.extend(shapes.attributes.iter().map(|(_, v)| (*v as f32).to_bits()));
        let groups = |invocations: usize| fold_grid(invocations.max(1).div_ceil(self.width));
        let workgroups = match &self.grid {
            None => groups(shapes.numel()),
            Some(Grid::Invocations(of)) => groups(of(shapes)),
            Some(Grid::Workgroups(of)) => of(shapes).map(|n| n.clamp(1, u32::MAX as usize) as u32),
        };
        vec![ShaderCall {
            shader: self.shader,
            entry: "main",
            defines: Defines::default().value("GROUP", self.width).0,
            params: bytemuck::cast_slice(&words).to_vec(),
            workgroups,
        }]
    }
}

/// The program's text as it is, so that messages show its lines, with what it may use behind.
fn template(op: &Registered, text: &str) -> String {
    let mut out = text.trim_end().to_string();
    out.push_str(
        "\n\n#import math\n#import nan\n#import philox\nalias T = f32;\nstruct Params {\n    numel: u32,\n",
    );
    for (name, _) in &op.params {
        let _ = writeln!(out, "    {name}: u32,");
    }
    for (name, _) in &op.attributes {
        let _ = writeln!(out, "    {name}: f32,");
    }
    out.push_str("}\n@group(0) @binding(0) var<uniform> params: Params;\n");
    for (i, (name, dtype)) in op.inputs.iter().enumerate() {
        let ty = match dtype {
            // Bools are in memory as numbers.
            Some(DType::Bool) => "u32",
            dtype => wgsl_type(dtype.unwrap_or(DType::F32)),
        };
        let _ = writeln!(out, "@group(0) @binding({}) var<storage, read> {name}: array<{ty}>;", 2 + i);
    }
    out.push_str(
        "#epilogue\nfn invocation(id: vec3<u32>, groups: vec3<u32>) -> u32 {\n    \
         return (id.z * groups.y + id.y) * groups.x * ${GROUP}u + id.x;\n}\n",
    );
    out
}
