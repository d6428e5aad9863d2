//! A kernel that differs, in a folder: enough for someone else to run it.
//!
//! `kernel.toml` says what it is and where it ran, `kernel_0.wgsl` and so on are its dispatches, `program.txt` is what the CPU
//! interprets, `inputs`, `expected` and `actual.safetensors` are the contents of its bindings before, and after on the CPU and on
//! the GPU.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::fs;
use std::panic::Location;
use std::path::Path;

use super::diff::{Case, Gap, KernelDiff, gap_of, worse};
use super::listing::listing;
use crate::backend::{Buffer, Code};
use crate::device::{cpu, gpu};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::device::fault_error;
use crate::graph::dtype::{DType, Scalar};
use crate::graph::kernel::Binding;
use crate::graph::observe::contents;
use crate::io;
use crate::nn::StateDict;
use crate::tensor::Tensor;

const FORMAT: &str = "1";
const DESCRIPTION: &str = "kernel.toml";

/// What [`replay`] found.
#[derive(Clone, Debug)]
pub struct Replay {
    pub label: String,
    /// The line of the program that recorded it.
    pub caller: String,
    /// Adapter and driver that it was saved on.
    pub saved_on: String,
    /// Those of this machine.
    pub device: String,
    /// Against what the CPU computed when it was saved.
    pub gap: Option<Gap>,
    /// Against what the GPU computed when it was saved.
    pub changed: Option<Gap>,
}

impl Replay {
    /// Whether the kernel differs from the CPU here, too.
    pub fn differs(&self) -> bool {
        self.gap.is_some_and(|g| g.differs())
    }
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.differs() { "DIFFERS" } else { "agrees" };
        write!(
            f,
            "{} (at {}, saved on {}) {verdict} on {}",
            self.label, self.caller, self.saved_on, self.device
        )?;
        if let Some(gap) = self.gap {
            write!(f, ": {gap}")?;
        }
        let same =
            if self.changed.is_some_and(|g| g.differs()) { "other results than" } else { "the results of" };
        write!(f, "; these are {same} the machine that saved it")
    }
}

impl KernelDiff {
    /// Writes all that it takes to run this kernel again into a folder, which is made if need be. [`replay`] runs it.
    ///
    /// # Errors
    /// If the kernel agrees, or is beyond the first few that differ (only of those is everything kept), or a file can't be
    /// written.
    #[track_caller]
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let (caller, folder) = (Location::caller(), folder.as_ref());
        let Some(case) = &self.case else {
            let message = "only of the first kernels that differ is enough kept to be saved";
            return Err(Error::at(caller, ErrorKind::Argument, "save", message));
        };
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| wrong(caller, "save", &path, e))
        };
        fs::create_dir_all(folder).map_err(|e| wrong(caller, "save", folder, e))?;
        for (i, code) in case.code.iter().enumerate() {
            write(&shader_name(i), &code.text)?;
        }
        write("program.txt", &listing(&case.kernel))?;
        let (on_gpu, on_cpu) = if case.turned {
            (&case.on_reference, &case.on_device)
        } else {
            (&case.on_device, &case.on_reference)
        };
        for (name, bytes, written) in
            [("inputs", &case.before, false), ("expected", on_cpu, true), ("actual", on_gpu, true)]
        {
            let tensors = tensors(&case.kernel.bindings, bytes, written);
            io::save(folder.join(format!("{name}.safetensors")), &tensors)?;
        }
        // Last: where it is, the others are.
        write(DESCRIPTION, &describe(self, case))
    }
}

/// Runs a kernel that [`KernelDiff::save`] wrote on this machine's GPU.
///
/// # Errors
/// If a file is missing or damaged, there is no GPU, or the GPU does not take the kernel.
///
/// ```no_run
/// # use wgrad::prelude::*;
/// let found = wgrad::debug::replay("repro")?;
/// println!("{found}");
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn replay(folder: impl AsRef<Path>) -> Result<Replay> {
    let (caller, folder) = (Location::caller(), folder.as_ref());
    let path = folder.join(DESCRIPTION);
    let text = fs::read_to_string(&path).map_err(|e| wrong(caller, "replay", &path, e))?;
    let saved = Saved::parse(&text).map_err(|what| wrong(caller, "replay", &path, what))?;
    let code = (saved.dispatches.iter().enumerate())
        .map(|(i, code)| {
            let path = folder.join(shader_name(i));
            let text = fs::read_to_string(&path).map_err(|e| wrong(caller, "replay", &path, e))?;
            Ok(Code { text, ..code.clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    let bindings: Vec<Binding> = saved.bindings.iter().map(|(b, _)| *b).collect();
    let saved_as = |name: &str, written: bool| -> Result<Vec<Vec<u8>>> {
        let path = folder.join(format!("{name}.safetensors"));
        let tensors = io::load(&path)?;
        let read = |(i, &(binding, bytes)): (usize, &(Binding, usize))| {
            if written && !binding.written {
                return Ok(vec![]);
            }
            let name = tensor_name(i);
            let t = tensors
                .get(&name)
                .ok_or_else(|| wrong(caller, "replay", &path, format!("no {name} in it")))?;
            let found = t.bytes()?;
            if t.dtype() != binding.dtype || found.len() != bytes {
                let what = format!(
                    "{name} is {} bytes of {}, not {bytes} of {}",
                    found.len(),
                    t.dtype(),
                    binding.dtype
                );
                return Err(wrong(caller, "replay", &path, what));
            }
            Ok(found)
        };
        saved.bindings.iter().enumerate().map(read).collect()
    };
    let (before, expected, actual) =
        (saved_as("inputs", false)?, saved_as("expected", true)?, saved_as("actual", true)?);
    let device = gpu()?;
    let backend = device.backend();
    let (types, scalars): (Vec<DType>, Vec<Scalar>) = saved.scalars.iter().copied().unzip();
    let run = || {
        let buffers = before.iter().map(|b| backend.upload(b)).collect::<Result<Vec<Buffer>, _>>()?;
        backend.run_code(&code, &bindings, &types, &buffers, &scalars)?;
        contents(backend, &buffers)
    };
    let after = run().map_err(|fault| fault_error(fault, caller, "replay"))?;
    let against = |wanted: &[Vec<u8>]| {
        let written = bindings.iter().enumerate().filter(|(_, b)| b.written);
        let gaps = written.enumerate().map(|(k, (i, b))| gap_of(b.dtype, &after[i], &wanted[i], k));
        gaps.fold(None, worse)
    };
    Ok(Replay {
        gap: against(&expected),
        changed: against(&actual),
        label: saved.label,
        caller: saved.caller,
        saved_on: saved.device,
        device: format!("{}, {}", backend.name(), backend.driver()),
    })
}

fn wrong(
    caller: &'static Location<'static>,
    op: &'static str,
    path: &Path,
    what: impl fmt::Display,
) -> Error {
    Error::at(caller, ErrorKind::Io, op, format!("{}: {what}", path.display()))
}

fn shader_name(i: usize) -> String {
    format!("kernel_{i}.wgsl")
}

fn tensor_name(i: usize) -> String {
    format!("binding_{i}")
}

/// The contents of bindings as vectors.
fn tensors(bindings: &[Binding], contents: &[Vec<u8>], written: bool) -> StateDict {
    let mut out = StateDict::new();
    for (i, (binding, bytes)) in bindings.iter().zip(contents).enumerate() {
        if written && !binding.written {
            continue;
        }
        let n = bytes.len() / binding.dtype.size();
        let whole = &bytes[..n * binding.dtype.size()];
        out.insert(tensor_name(i), Tensor::from_bytes(&cpu(), binding.dtype, &[n], whole));
    }
    out
}

fn quoted(text: &str) -> String {
    // What TOML's strings and Rust's write alike.
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}

fn describe(kernel: &KernelDiff, case: &Case) -> String {
    let mut out =
        String::from("# A kernel that two backends compute differently; wgrad::debug::replay runs it.\n");
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key} = {value}");
    };
    line("format", FORMAT.into());
    line("label", quoted(&kernel.label));
    line("caller", quoted(&kernel.caller.to_string()));
    line("adapter", quoted(&case.adapter));
    line("driver", quoted(&case.driver));
    line("version", quoted(env!("CARGO_PKG_VERSION")));
    if let Some(op) = &kernel.op {
        line("op", quoted(&op.to_string()));
    }
    if let Some(gap) = &kernel.local {
        line("difference", quoted(&gap.to_string()));
    }
    for (i, (dtype, scalar)) in case.kernel.scalars.iter().zip(&case.scalars).enumerate() {
        let _ = writeln!(out, "\n[scalar.{i}]\ndtype = \"{dtype}\"\nbits = {}", scalar.bits(*dtype));
    }
    for (i, (binding, bytes)) in case.kernel.bindings.iter().zip(&case.before).enumerate() {
        let Binding { dtype, written } = binding;
        let bytes = bytes.len() / dtype.size() * dtype.size();
        let _ = writeln!(out, "\n[binding.{i}]\ndtype = \"{dtype}\"\nwritten = {written}\nbytes = {bytes}");
    }
    for (i, code) in case.code.iter().enumerate() {
        let params: Vec<u32> = bytemuck::pod_collect_to_vec(&code.params);
        let _ = writeln!(
            out,
            "\n[dispatch.{i}]\nfile = {}\nentry = {}\nworkgroups = {:?}\nparams = {params:?}\nstatus = {}",
            quoted(&shader_name(i)),
            quoted(&code.entry),
            code.workgroups,
            code.status
        );
    }
    out
}

/// What a description says.
struct Saved {
    label: String,
    caller: String,
    device: String,
    scalars: Vec<(DType, Scalar)>,
    /// With their bytes.
    bindings: Vec<(Binding, usize)>,
    /// Without their texts.
    dispatches: Vec<Code>,
}

impl Saved {
    /// Reads the part of TOML that [`describe`] writes.
    fn parse(text: &str) -> Result<Saved, String> {
        let mut values: HashMap<String, String> = HashMap::new();
        let mut section = String::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = format!("{name}.");
                continue;
            }
            let (key, value) = (line.split_once('='))
                .ok_or_else(|| format!("line {} is neither a section nor key = value", number + 1))?;
            values.insert(format!("{section}{}", key.trim()), value.trim().to_string());
        }
        let get = |key: &str| values.get(key).cloned().ok_or_else(|| format!("{key} is missing"));
        let text = |key: &str| {
            let value = get(key)?;
            let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            let inner = inner.ok_or_else(|| format!("{key} is not a string"))?;
            Ok::<String, String>(inner.replace("\\\"", "\"").replace("\\\\", "\\"))
        };
        let number = |key: &str| get(key)?.parse::<u64>().map_err(|_| format!("{key} is not a number"));
        let numbers = |key: &str| {
            let value = get(key)?;
            let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
            let inner = inner.ok_or_else(|| format!("{key} is not a list"))?;
            let items = inner.split(',').map(str::trim).filter(|v| !v.is_empty());
            items
                .map(|v| v.parse::<u32>().map_err(|_| format!("{key} is not of numbers")))
                .collect::<Result<Vec<_>, _>>()
        };
        let truth =
            |key: &str| get(key)?.parse::<bool>().map_err(|_| format!("{key} is neither true nor false"));
        let dtype = |key: &str| {
            let name = text(key)?;
            let known = DType::ALL.into_iter().find(|d| d.name() == name);
            known.ok_or_else(|| format!("{key}: there is no type {name}"))
        };
        if get("format")? != FORMAT {
            return Err(format!("format {} is not known here, only {FORMAT}", get("format")?));
        }
        let count = |name: &str, key: &str| {
            (0..).take_while(|i| values.contains_key(&format!("{name}.{i}.{key}"))).count()
        };
        let scalars = (0..count("scalar", "dtype"))
            .map(|i| {
                let (dtype, bits) =
                    (dtype(&format!("scalar.{i}.dtype"))?, number(&format!("scalar.{i}.bits"))?);
                Ok((dtype, from_bits(dtype, bits)))
            })
            .collect::<Result<_, String>>()?;
        let bindings = (0..count("binding", "dtype"))
            .map(|i| {
                let key = |what: &str| format!("binding.{i}.{what}");
                let binding = Binding { dtype: dtype(&key("dtype"))?, written: truth(&key("written"))? };
                Ok((binding, number(&key("bytes"))? as usize))
            })
            .collect::<Result<Vec<_>, String>>()?;
        let dispatches = (0..count("dispatch", "entry"))
            .map(|i| {
                let key = |what: &str| format!("dispatch.{i}.{what}");
                let workgroups = numbers(&key("workgroups"))?;
                let workgroups = workgroups
                    .try_into()
                    .map_err(|_| format!("{} must be three numbers", key("workgroups")))?;
                Ok(Code {
                    text: String::new(),
                    entry: text(&key("entry"))?,
                    params: bytemuck::cast_slice(&numbers(&key("params"))?).to_vec(),
                    workgroups,
                    status: truth(&key("status"))?,
                })
            })
            .collect::<Result<Vec<_>, String>>()?;
        if bindings.is_empty() || dispatches.is_empty() {
            return Err("it has no bindings, or no dispatches".into());
        }
        let device = format!("{}, {}", text("adapter")?, text("driver")?);
        Ok(Saved { label: text("label")?, caller: text("caller")?, device, scalars, bindings, dispatches })
    }
}

/// The scalar with these bits as an element.
fn from_bits(dtype: DType, bits: u64) -> Scalar {
    match dtype {
        DType::Bool => Scalar::Bool(bits != 0),
        DType::U32 => Scalar::Int(i64::from(bits as u32)),
        DType::I32 => Scalar::Int(i64::from(bits as u32 as i32)),
        DType::F16 => Scalar::from(half::f16::from_bits(bits as u16)),
        DType::F32 => Scalar::Float(f64::from(f32::from_bits(bits as u32))),
        DType::F64 => Scalar::Float(f64::from_bits(bits)),
    }
}
