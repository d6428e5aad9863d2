//! Checks every variant of every shader and writes the kernel table that `src/backend/gpu` includes.

#[cfg(feature = "gpu")]
extern crate naga;

#[cfg(feature = "gpu")]
#[path = "src/backend/gpu/lint.rs"]
mod lint;
#[cfg(feature = "gpu")]
#[path = "src/backend/gpu/template.rs"]
mod template;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shaders");
    println!("cargo:rerun-if-changed=src/backend/gpu/template.rs");
    println!("cargo:rerun-if-changed=src/backend/gpu/lint.rs");
    #[cfg(feature = "gpu")]
    if let Err(message) = table::write() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

#[cfg(feature = "gpu")]
mod table {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    use crate::lint;
    use crate::template::{self, Fill, Library};

    type Files = Vec<(String, String)>;

    /// Name and text of the `.wgsl` files of a folder, sorted.
    fn wgsl_files(folder: &Path) -> Result<Files, String> {
        let mut out = vec![];
        for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
            let path = entry.map_err(|e| e.to_string())?.path();
            if path.extension().is_some_and(|e| e == "wgsl") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                out.push((name, text));
            }
        }
        out.sort();
        Ok(out)
    }

    /// A template with the files of its folder, or of `parts`, where it says `#include name`.
    fn with_parts(root: &Path, name: &str, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let find = |part: &str| {
            let [own, common] = [name, "parts"].map(|folder| root.join(folder).join(format!("{part}.wgsl")));
            if own.exists() { own } else { common }
        };
        for line in text.lines() {
            let part = line.strip_prefix("#include ").map(find);
            match part.map(|path| fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))) {
                Some(part) => out += &with_parts(root, name, &part?)?,
                None => out = out + line + "\n",
            }
        }
        Ok(out)
    }

    pub fn write() -> Result<(), String> {
        let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
        let shared = wgsl_files(&root.join("shaders/shared"))?;
        let mut shaders = wgsl_files(&root.join("shaders"))?;
        for (name, text) in &mut shaders {
            *text = with_parts(&root.join("shaders"), name, text)?;
        }
        let library = Library::new(shared.iter().map(|(name, text)| (name.as_str(), text.as_str())))?;
        check_shared(&library, &shared)?;

        let mut out = String::from("// Written by build.rs.\n\n");
        list(&mut out, "SHARED", "shared functions", &shared);
        list(&mut out, "SHADERS", "templates", &shaders);
        let mut faults = vec![];
        for (name, text) in &shaders {
            match check_shader(&library, name, text) {
                Ok(module) => out += &module,
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(faults.join("\n"));
        }
        let path = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?).join("kernels.rs");
        fs::write(&path, out).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn list(out: &mut String, constant: &str, what: &str, files: &Files) {
        let _ =
            writeln!(out, "/// Name and text of the {what}.\npub static {constant}: &[(&str, &str)] = &[");
        for (name, text) in files {
            let _ = writeln!(out, "    ({name:?}, {text:?}),");
        }
        out.push_str("];\n\n");
    }

    /// Checks each file of shared functions at both widths.
    fn check_shared(library: &Library, files: &Files) -> Result<(), String> {
        for (file, _) in files {
            let mut mention = String::new();
            for name in library.names(file) {
                let _ = writeln!(mention, "{name} {name}4");
            }
            let text = library.link(&[(&mention, None)]);
            let extras = lint::Extras { pairs: file == "pairs", ..Default::default() };
            lint::check(&format!("shaders/shared/{file}.wgsl"), &text, extras)?;
        }
        Ok(())
    }

    /// What the Rust side knows of a shader, equal in all its variants.
    #[derive(PartialEq)]
    struct Reflected {
        params: Option<Vec<lint::Field>>,
    }

    fn check_shader(library: &Library, name: &str, text: &str) -> Result<String, String> {
        let mut first: Option<(String, Reflected)> = None;
        let mut entries: BTreeMap<String, BTreeSet<[u32; 3]>> = BTreeMap::new();
        for (label, defines) in template::variants(text).map_err(|e| format!("shaders/{name}.wgsl: {e}"))? {
            let path = format!("shaders/{name}.wgsl (variant {label})");
            let expand = |looks: bool| {
                expand_for_check(library, text, &defines, looks).map_err(|e| format!("{path}: {e}"))
            };
            let wgsl = expand(false)?;
            // What is generated around a template reads such a buffer as one of fours, or of words of two halves.
            if let Some(at) = wgsl.find("array<vec2<f32>>") {
                let line = wgsl[..at].lines().count();
                return Err(format!(
                    "{path}: line {line}: a buffer of vec2<f32>, which an epilogue could not read"
                ));
            }
            let on = |wanted: &str| defines.iter().any(|(name, value)| name == wanted && value != "0");
            let extras = lint::Extras {
                subgroups: on("SUBGROUP") || on("COOP"),
                pairs: on("PAIRS"),
                halves: wgsl.contains("enable f16;"),
                matrices: on("COOP"),
                status: false,
            };
            let module = lint::check(&path, &wgsl, extras)?;
            let extras = lint::Extras { status: true, ..extras };
            lint::check(&format!("{path}, looking"), &expand(true)?, extras)?;
            let reflected = Reflected { params: lint::params(&path, &module)? };
            for entry in &module.entry_points {
                entries.entry(entry.name.clone()).or_default().insert(entry.workgroup_size);
            }
            match &first {
                Some((other, before)) if *before != reflected => {
                    return Err(format!("{path}: its Params differ from those of variant {other}"));
                }
                Some(_) => {}
                None => first = Some((label, reflected)),
            }
        }
        let mut out = format!("/// `shaders/{name}.wgsl`\n#[allow(dead_code)]\npub mod {name} {{\n");
        let _ = writeln!(out, "    pub const NAME: &str = {name:?};");
        for (entry, sizes) in &entries {
            // A size that depends on defines is the caller's own knowledge.
            if let (1, Some([x, y, z])) = (sizes.len(), sizes.first()) {
                let entry = entry.to_uppercase();
                let _ = writeln!(out, "    pub const {entry}_WORKGROUP: [u32; 3] = [{x}, {y}, {z}];");
            }
        }
        if let Some((_, Reflected { params: Some(fields) })) = first {
            out.push_str("    /// The uniform `params`.\n    #[repr(C)]\n");
            out.push_str("    #[derive(Clone, Copy, Debug, Default, PartialEq)]\n    pub struct Params {\n");
            for field in fields {
                let _ = writeln!(out, "        pub {}: {},", field.name, field.ty);
            }
            out.push_str("    }\n");
            for what in ["Zeroable", "Pod"] {
                let _ = writeln!(
                    out,
                    "    // SAFETY: C layout, only 4-byte numbers, so no padding and no invalid bits."
                );
                let _ = writeln!(out, "    unsafe impl bytemuck::{what} for Params {{}}");
            }
            out.push_str(
                "    impl From<Params> for Vec<u8> {\n        fn from(params: Params) -> Vec<u8> {\n",
            );
            out.push_str("            bytemuck::bytes_of(&params).to_vec()\n        }\n    }\n");
        }
        out.push_str("}\n\n");
        Ok(out)
    }

    /// A template with a plain store to a contiguous output where its epilogue goes, which may look at what it stores.
    fn expand_for_check(
        library: &Library,
        text: &str,
        defines: &[(String, String)],
        looks: bool,
    ) -> Result<String, String> {
        let get = |name: &str| defines.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let defines_ref: Vec<(&str, String)> = defines.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
        let bare = template::expand(text, library, &Fill { defines: &defines_ref, ..Fill::default() })?;
        let next = template::declared(&bare).iter().map(|d| d.binding + 1).max().unwrap_or(2);
        let (mut epilogue, mut status) = (String::new(), String::new());
        let mut at = next;
        if template::mentions(text, "epilogue") {
            let ty = get("R").or(get("T")).unwrap_or("f32");
            let wide = get("VEC4").is_some_and(|v| v != "0");
            // Bools are in memory as numbers.
            let stored = if ty == "bool" { "u32" } else { ty };
            let element = if wide { format!("vec4<{stored}>") } else { stored.to_string() };
            let place = if wide { "epilogue_out[i / 4u][i % 4u]" } else { "epilogue_out[i]" };
            let [look, look4] = if looks && ty == "f32" { ["look(v); ", "look4(v); "] } else { ["", ""] };
            let _ = writeln!(
                epilogue,
                "@group(0) @binding({at}) var<storage, read_write> epilogue_out: array<{element}>;\n\
                 fn store(i: u32, v: {ty}) {{ {look}{place} = {stored}(v); }}\n\
                 fn store_at(i: u32, c: u32, v: {ty}) {{ store(i, v); }}"
            );
            if wide {
                let _ = writeln!(
                    epilogue,
                    "fn store4(i4: u32, v: vec4<{ty}>) {{ {look4}epilogue_out[i4] = vec4<{stored}>(v); }}\n\
                     fn store4_at(i4: u32, c: u32, v: vec4<{ty}>) {{ store4(i4, v); }}"
                );
            }
            if ["A_SUMS", "B_SUMS"].iter().any(|sums| get(sums).is_some()) {
                epilogue.push_str("fn store_sum(i: u32, v: f32) { store(i, v); }\n");
            }
            at += 1;
        }
        let mentioned = template::mentions(text, "status");
        if mentioned {
            status = template::status(at);
        }
        let mut prologue = String::new();
        let computed = defines_ref.iter().filter(|(_, value)| value != "0");
        for input in computed.filter_map(|(name, _)| Some(name.strip_suffix("_PRE")?.to_lowercase())) {
            if template::mentions(text, "prologue") {
                let ty = get("T").unwrap_or("f32");
                let _ = writeln!(prologue, "fn {input}_one(at: u32) -> {ty} {{ return {ty}(at); }}");
                let _ = writeln!(
                    prologue,
                    "fn {input}_four(at: u32) -> vec4<{ty}> {{ return vec4<{ty}>({input}_one(at)); }}"
                );
            }
        }
        let fill = Fill { defines: &defines_ref, prologue: &prologue, epilogue: &epilogue, status: &status };
        let wgsl = template::expand(text, library, &fill)?;
        let wgsl = match looks {
            true => template::looking(&wgsl, &if mentioned { String::new() } else { template::status(at) })?,
            false => wgsl,
        };
        Ok(template::enabling(wgsl))
    }
}
