//! A program's WGSL, checked as `build.rs` checks the library's.

use crate::backend::gpu::kernels;
use crate::backend::gpu::lint::{self, Extras};
use crate::backend::gpu::template::{self, Fill};

/// An expression over operands, one and four elements wide. The text stands in the shader as it was written, so that
/// messages show its lines.
pub fn check_expression(name: &str, text: &str, operands: &[&str]) -> Result<(), String> {
    let library = kernels::library()?;
    for wide in [false, true] {
        let alias = |name: &str, ty: &str| {
            if wide { format!("alias {name} = vec4<{ty}>;\n") } else { format!("alias {name} = {ty};\n") }
        };
        // Only calls of shared functions are changed, to their wide forms.
        let body = library.widen(text, wide, |word| {
            matches!(word, "T" | "R" | "F" | "I" | "U" | "B").then(|| word.to_string())
        });
        let declared: Vec<String> = operands.iter().map(|o| format!("{o}: T")).collect();
        let given = vec!["memory[id.x]"; operands.len()].join(", ");
        let mut wgsl = format!("fn op_{name}({}) -> R {{ return (\n{body}\n); }}\n", declared.join(", "));
        for (name, ty) in
            [("T", "f32"), ("R", "f32"), ("F", "f32"), ("I", "i32"), ("U", "u32"), ("B", "bool")]
        {
            wgsl += &alias(name, ty);
        }
        wgsl += &format!(
            "@group(0) @binding(2) var<storage, read_write> memory: array<T>;\n\
             @compute @workgroup_size(64)\n\
             fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ memory[id.x] = op_{name}({given}); }}\n"
        );
        let shared = library.link(&[(&wgsl, None)]);
        lint::check(&format!("{name}.wgsl"), &(wgsl + &shared), Extras::default())?;
    }
    Ok(())
}

/// What the check of a whole kernel finds out.
pub struct Checked {
    pub workgroup: [u32; 3],
}

/// A template with a plain store for its results. `out` is the type in registers.
pub fn check_kernel(
    name: &str,
    template: &str,
    binding: usize,
    out: &str,
    defines: &[(&str, String)],
) -> Result<Checked, String> {
    let stored = if out == "bool" { "u32" } else { out };
    let epilogue = format!(
        "@group(0) @binding({binding}) var<storage, read_write> kernel_result: array<{stored}>;\n\
         fn store(i: u32, v: {out}) {{ kernel_result[i] = {stored}(v); }}\n"
    );
    let fill = Fill { defines, epilogue: &epilogue, ..Fill::default() };
    let wgsl = template::expand(template, kernels::library()?, &fill)?;
    let module = lint::check(&format!("{name}.wgsl"), &wgsl, Extras::default())?;
    match &module.entry_points[..] {
        [entry] if entry.name == "main" => Ok(Checked { workgroup: entry.workgroup_size }),
        others => {
            let names: Vec<&str> = others.iter().map(|e| e.name.as_str()).collect();
            Err(format!("{name}.wgsl: there must be one entry point, named main; there are {names:?}"))
        }
    }
}
