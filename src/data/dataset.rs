//! What a loader loads from.

use std::panic::Location;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::dtype::DType;
use crate::tensor::Tensor;

/// Samples by number (`torch.utils.data.Dataset`). Unlike PyTorch's it gives whole batches, so that a batch is
/// put together in one go.
pub trait Dataset: Send + Sync + 'static {
    /// What a batch is: an array of tensors, for instance.
    type Batch: Send + 'static;

    /// The number of samples.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of these numbers, all below `len`, as a batch. Runs on the loader's thread.
    ///
    /// # Errors
    /// Whatever can go wrong: the loader passes it on.
    fn batch(&self, indices: &[usize]) -> Result<Self::Batch>;
}

/// Tensors whose first dimensions are the samples (`torch.utils.data.TensorDataset`). The values are kept on the
/// host; batches are made on the device of the tensors, or on the one given by [`on`](TensorDataset::on).
pub struct TensorDataset<const N: usize> {
    columns: [Column; N],
    len: usize,
    device: Device,
}

struct Column {
    dtype: DType,
    /// Of one sample.
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl<const N: usize> TensorDataset<N> {
    /// # Errors
    /// If there are no tensors, they are invalid, 0-dim, of different lengths or on different devices.
    #[track_caller]
    pub fn new(tensors: [&Tensor; N]) -> Result<TensorDataset<N>> {
        let caller = Location::caller();
        let fail = |message: String| Err(Error::at(caller, ErrorKind::Shape, "TensorDataset", message));
        let Some(first) = tensors.first() else { return fail("there are no tensors".into()) };
        for t in tensors {
            if let Some(error) = t.error() {
                return Err(error);
            }
            if t.dim() == 0 || t.size(0) != first.size(0) {
                let shapes: Vec<&[usize]> = tensors.iter().map(|t| t.shape()).collect();
                return fail(format!(
                    "Size mismatch between tensors: their first dimensions must agree, got {shapes:?}"
                ));
            }
            if t.device() != first.device() {
                return fail(format!("the tensors are on {} and {}", first.device(), t.device()));
            }
        }
        let mut failed = None;
        let columns = tensors.map(|t| {
            let bytes = t.contiguous().bytes().unwrap_or_else(|error| {
                failed = Some(error);
                vec![]
            });
            Column { dtype: t.dtype(), shape: t.shape()[1..].to_vec(), bytes }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(TensorDataset { columns, len: first.size(0), device: first.device().clone() }),
        }
    }

    /// Makes the batches on this device.
    pub fn on(mut self, device: &Device) -> TensorDataset<N> {
        self.device = device.clone();
        self
    }
}

impl<const N: usize> Dataset for TensorDataset<N> {
    type Batch = [Tensor; N];

    fn len(&self) -> usize {
        self.len
    }

    fn batch(&self, indices: &[usize]) -> Result<[Tensor; N]> {
        let batch = std::array::from_fn(|i| {
            let column = &self.columns[i];
            let row = column.shape.iter().product::<usize>() * column.dtype.size();
            let mut bytes = Vec::with_capacity(row * indices.len());
            for &i in indices {
                bytes.extend_from_slice(&column.bytes[i * row..][..row]);
            }
            let shape: Vec<usize> =
                std::iter::once(indices.len()).chain(column.shape.iter().copied()).collect();
            Tensor::from_bytes(&self.device, column.dtype, &shape, &bytes)
        });
        batch.iter().find_map(Tensor::error).map_or(Ok(()), Err)?;
        Ok(batch)
    }
}
