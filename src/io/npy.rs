//! NumPy's [npy](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): one array in a file.

use std::path::Path;

use super::file;
use crate::device::cpu;
use crate::error::Result;
use crate::graph::dtype::{Bool, DType, Element, F16, F32, F64, I32, U32};
use crate::tensor::Tensor;

const MAGIC: &[u8] = b"\x93NUMPY";
const TYPES: [(DType, &str); 6] =
    [(Bool, "|b1"), (U32, "<u4"), (I32, "<i4"), (F16, "<f2"), (F32, "<f4"), (F64, "<f8")];

/// Writes a tensor's values (`numpy.save`). The file is replaced whole or not at all.
///
/// # Errors
/// If the tensor is invalid, or the file can't be written.
#[track_caller]
pub fn save(path: impl AsRef<Path>, tensor: &Tensor) -> Result<()> {
    let values = tensor.contiguous().bytes()?;
    let dtype = tensor.dtype();
    let descr = TYPES.iter().find(|(t, _)| *t == dtype).map_or("", |(_, descr)| descr);
    let sizes: Vec<String> = tensor.shape().iter().map(|n| format!("{n},")).collect();
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sizes.join(" "));
    // What follows the header starts at a multiple of 64, after a newline.
    let padding = (64 - (MAGIC.len() + 4 + header.len() + 1) % 64) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    match dtype {
        Bool => bytes.extend(bool::from_bytes(&values).into_iter().map(u8::from)),
        _ => bytes.extend(values),
    }
    file::write("npy::save", path.as_ref(), &bytes)
}

/// Reads a tensor onto the CPU (`numpy.load`).
///
/// # Errors
/// If the file can't be read, is not an npy file, or of a type that no tensor has.
#[track_caller]
pub fn load(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    let bytes = file::read("npy::load", path)?;
    match parse(&bytes) {
        Ok((dtype, shape, values)) => Ok(Tensor::from_bytes(&cpu(), dtype, &shape, &values)),
        Err(what) => Err(file::fail("npy::load", path, what)),
    }
}

fn parse(bytes: &[u8]) -> Result<(DType, Vec<usize>, Vec<u8>), String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("this is not an npy file")?;
    let (length, rest) = match *rest {
        [1, _, a, b, ref rest @ ..] => (usize::from(u16::from_le_bytes([a, b])), rest),
        [2 | 3, _, a, b, c, d, ref rest @ ..] => (u32::from_le_bytes([a, b, c, d]) as usize, rest),
        _ => return Err("it is of an unknown version".into()),
    };
    let (header, values) = rest.split_at_checked(length).ok_or("it ends in its header")?;
    let header = str::from_utf8(header).map_err(|_| "its header is not text")?;
    let after = |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ', '\'']));
    let descr = after("'descr'").and_then(|s| s.split('\'').next()).ok_or("its header has no type")?;
    let (dtype, _) = TYPES
        .iter()
        .find(|(_, d)| *d == descr)
        .ok_or(format!("it is of type {descr}, which no tensor has"))?;
    if after("'fortran_order'").is_some_and(|s| s.starts_with("True")) {
        return Err("it is in Fortran's order, which is not supported".into());
    }
    let sizes = after("'shape'").and_then(|s| s.strip_prefix('(')).and_then(|s| s.split(')').next());
    let shape: Vec<usize> = (sizes.ok_or("its header has no shape")?.split(',').map(str::trim))
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().map_err(|_| format!("{s} is no size")))
        .collect::<Result<_, String>>()?;
    let element = if *dtype == Bool { 1 } else { dtype.size() };
    let expected = shape.iter().try_fold(element, |n, &size| n.checked_mul(size));
    if expected != Some(values.len()) {
        return Err(format!("the shape {shape:?} does not fit the {} bytes that follow", values.len()));
    }
    let values = match dtype {
        Bool => bool::to_bytes(&values.iter().map(|&b| b != 0).collect::<Vec<_>>()),
        _ => values.to_vec(),
    };
    Ok((*dtype, shape, values))
}
