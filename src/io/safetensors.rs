//! [safetensors](https://github.com/huggingface/safetensors): tensors by name in one file, which PyTorch and many
//! others read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use super::file;
use crate::device::cpu;
use crate::error::Result;
use crate::graph::dtype::{Bool, DType, Element, F16, F32, F64, I32, U32};
use crate::nn::StateDict;
use crate::tensor::Tensor;

/// Writes tensors to a file, which is replaced whole or not at all.
///
/// # Errors
/// If a tensor is invalid, or the file can't be written.
///
/// ```
/// # use wgrad::prelude::*;
/// # let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("model.safetensors");
/// let model = Linear::new(3, 2);
/// io::save(&path, &model.state_dict())?;
/// model.load_state_dict(&io::load(&path)?)?;
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn save(path: impl AsRef<Path>, tensors: &StateDict) -> Result<()> {
    save_with(path, tensors, &[])
}

/// [`save`] with pairs of words in the file's header.
#[track_caller]
pub fn save_with(path: impl AsRef<Path>, tensors: &StateDict, metadata: &[(&str, &str)]) -> Result<()> {
    let path = path.as_ref();
    let stored = tensors.iter().map(|(name, t)| Ok((name, Stored::of(t)?))).collect::<Result<Vec<_>>>()?;
    let metadata: HashMap<String, String> = metadata.iter().map(|&(k, v)| (k.into(), v.into())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    match safetensors::serialize(stored, metadata) {
        Ok(bytes) => file::write("save", path, &bytes),
        Err(error) => Err(file::fail("save", path, error)),
    }
}

/// Reads all tensors of a file, onto the CPU. Of the types that tensors have none of, half floats become float32,
/// and integers int32 where their values fit.
///
/// # Errors
/// If the file can't be read or is not a safetensors file, or holds what no tensor can.
#[track_caller]
pub fn load(path: impl AsRef<Path>) -> Result<StateDict> {
    let path = path.as_ref();
    let bytes = file::read("load", path)?;
    let parsed = match SafeTensors::deserialize(&bytes) {
        Ok(parsed) => parsed,
        Err(error) => return Err(file::fail("load", path, error)),
    };
    let mut tensors = StateDict::new();
    for (name, view) in parsed.iter() {
        let tensor = match read(&view) {
            Ok((dtype, bytes)) => Tensor::from_bytes(&cpu(), dtype, view.shape(), &bytes),
            Err(what) => return Err(file::fail("load", path, format_args!("{name}: {what}"))),
        };
        if let Some(error) = tensor.error() {
            return Err(file::fail("load", path, format_args!("{name}: {error}")));
        }
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

/// The pairs of words in a file's header, sorted.
///
/// # Errors
/// As [`load`].
#[track_caller]
pub fn load_metadata(path: impl AsRef<Path>) -> Result<Vec<(String, String)>> {
    let path = path.as_ref();
    let bytes = file::read("load_metadata", path)?;
    let header = match SafeTensors::read_metadata(&bytes) {
        Ok((_, header)) => header,
        Err(error) => return Err(file::fail("load_metadata", path, error)),
    };
    let mut pairs: Vec<_> = header.metadata().clone().unwrap_or_default().into_iter().collect();
    pairs.sort();
    Ok(pairs)
}

/// A tensor's values as the file has them.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of(t: &Tensor) -> Result<Stored> {
        let bytes = t.contiguous().bytes()?;
        let (dtype, bytes) = match t.dtype() {
            Bool => (Dtype::BOOL, bool::from_bytes(&bytes).into_iter().map(u8::from).collect()),
            U32 => (Dtype::U32, bytes),
            I32 => (Dtype::I32, bytes),
            F16 => (Dtype::F16, bytes),
            F32 => (Dtype::F32, bytes),
            F64 => (Dtype::F64, bytes),
        };
        Ok(Stored { dtype, shape: t.shape().to_vec(), bytes })
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The values as a tensor has them.
fn read(view: &TensorView<'_>) -> Result<(DType, Vec<u8>), String> {
    let bytes = view.data();
    let int = |values: &mut dyn Iterator<Item = i64>| {
        let fitting: Option<Vec<i32>> = values.map(|v| i32::try_from(v).ok()).collect();
        let fitting = fitting.ok_or("it has integers beyond 32 bits, which no tensor can hold")?;
        Ok((I32, i32::to_bytes(&fitting)))
    };
    match view.dtype() {
        Dtype::F16 => Ok((F16, bytes.to_vec())),
        Dtype::F32 => Ok((F32, bytes.to_vec())),
        Dtype::F64 => Ok((F64, bytes.to_vec())),
        Dtype::I32 => Ok((I32, bytes.to_vec())),
        Dtype::U32 => Ok((U32, bytes.to_vec())),
        Dtype::BOOL => Ok((Bool, bool::to_bytes(&bytes.iter().map(|&b| b != 0).collect::<Vec<_>>()))),
        Dtype::BF16 => {
            let values = bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32());
            Ok((F32, f32::to_bytes(&values.collect::<Vec<_>>())))
        }
        Dtype::U8 => int(&mut bytes.iter().map(|&b| i64::from(b))),
        Dtype::I8 => int(&mut bytes.iter().map(|&b| i64::from(b as i8))),
        Dtype::I16 => int(&mut bytes.chunks_exact(2).map(|c| i64::from(i16::from_le_bytes([c[0], c[1]])))),
        Dtype::U16 => int(&mut bytes.chunks_exact(2).map(|c| i64::from(u16::from_le_bytes([c[0], c[1]])))),
        Dtype::I64 => {
            int(&mut bytes.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(i64::from_le_bytes))
        }
        other => Err(format!("elements of type {other:?} are not supported")),
    }
}
