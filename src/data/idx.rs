//! The IDX format, in which [MNIST](https://yann.lecun.com/exdb/mnist/) comes.

use crate::error::{Error, ErrorKind, Result};

/// An array of bytes of any shape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idx {
    pub shape: Vec<usize>,
    pub values: Vec<u8>,
}

/// Reads a whole file's contents, uncompressed.
///
/// # Errors
/// If it is not an IDX file of unsigned bytes, or is cut short.
///
/// ```
/// let idx = wgrad::data::idx::parse(&[0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])?;
/// assert_eq!((idx.shape, idx.values), (vec![1, 3], vec![7, 8, 9]));
/// # Ok::<(), wgrad::Error>(())
/// ```
#[track_caller]
pub fn parse(bytes: &[u8]) -> Result<Idx> {
    let fail = |message: String| Err(Error::new(ErrorKind::Io, "idx", message));
    let &[0, 0, kind, rank, ref rest @ ..] = bytes else {
        return fail("this is not an IDX file: it does not start with two zeros".into());
    };
    if kind != 8 {
        return fail(format!("elements of type {kind:#04x} are not supported, only unsigned bytes, 0x08"));
    }
    let Some((sizes, values)) = rest.split_at_checked(usize::from(rank) * 4) else {
        return fail("the file ends in its header".into());
    };
    let shape: Vec<usize> =
        sizes.chunks_exact(4).map(|s| u32::from_be_bytes([s[0], s[1], s[2], s[3]]) as usize).collect();
    let expected = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    if expected != Some(values.len()) {
        return fail(format!("the shape {shape:?} does not fit the {} bytes that follow", values.len()));
    }
    Ok(Idx { shape, values: values.to_vec() })
}
