//! Batches, put together by a thread while the one before is being trained on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::{Dataset, permutation};
use crate::error::{Error, ErrorKind, Result};

/// Brings a dataset in batches (`torch.utils.data.DataLoader`). Each loop over it is an epoch.
pub struct DataLoader<D> {
    dataset: Arc<D>,
    batch_size: usize,
    seed: Option<u64>,
    drop_last: bool,
    prefetch: usize,
    epoch: AtomicU64,
}

/// A browser has no threads to wait on.
const PREFETCH: usize = if cfg!(target_family = "wasm") { 0 } else { 2 };

impl<D: Dataset> DataLoader<D> {
    /// A batch size of 0 counts as 1.
    pub fn new(dataset: D, batch_size: usize) -> DataLoader<D> {
        DataLoader {
            dataset: Arc::new(dataset),
            batch_size: batch_size.max(1),
            seed: None,
            drop_last: false,
            prefetch: PREFETCH,
            epoch: AtomicU64::new(0),
        }
    }

    /// Brings the samples in a new order in each epoch, which follows from the seed and the epoch's number.
    pub fn shuffle(mut self, seed: u64) -> DataLoader<D> {
        self.seed = Some(seed);
        self
    }

    /// Leaves out a last batch that is not full.
    pub fn drop_last(mut self, drop_last: bool) -> DataLoader<D> {
        self.drop_last = drop_last;
        self
    }

    /// How many batches are made ahead. With 0 each is made when it is asked for, without a thread.
    pub fn prefetch(mut self, batches: usize) -> DataLoader<D> {
        self.prefetch = batches;
        self
    }

    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// The number of batches of an epoch.
    pub fn len(&self) -> usize {
        let n = self.dataset.len();
        if self.drop_last { n / self.batch_size } else { n.div_ceil(self.batch_size) }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the next epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Goes to an epoch: to resume.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// The batches of the next epoch.
    pub fn iter(&self) -> Batches<D> {
        self.iter_from(0)
    }

    /// The batches of the next epoch without the first few: to resume in its midst.
    pub fn iter_from(&self, first: usize) -> Batches<D> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let n = self.dataset.len();
        let order = match self.seed {
            Some(seed) => permutation(n, seed, epoch),
            None => (0..n).collect(),
        };
        let work = Work {
            dataset: self.dataset.clone(),
            order,
            batch_size: self.batch_size,
            next: first,
            end: self.len(),
        };
        Batches::new(work, self.prefetch)
    }
}

impl<D: Dataset> IntoIterator for &DataLoader<D> {
    type Item = Result<D::Batch>;
    type IntoIter = Batches<D>;
    fn into_iter(self) -> Batches<D> {
        self.iter()
    }
}

/// The rest of an epoch.
struct Work<D> {
    dataset: Arc<D>,
    order: Vec<usize>,
    batch_size: usize,
    next: usize,
    end: usize,
}

impl<D: Dataset> Work<D> {
    /// The next batch. A panic of the dataset's becomes an error.
    fn batch(&mut self) -> Option<Result<D::Batch>> {
        if self.next >= self.end {
            return None;
        }
        let start = self.next * self.batch_size;
        let indices = &self.order[start..self.order.len().min(start + self.batch_size)];
        self.next += 1;
        let made = catch_unwind(AssertUnwindSafe(|| self.dataset.batch(indices)));
        let batch =
            made.unwrap_or_else(|panic| Err(failed(format!("the dataset panicked: {}", text(&*panic)))));
        if batch.is_err() {
            self.next = self.end;
        }
        Some(batch)
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(|s| &**s);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no message)")
}

#[track_caller]
fn failed(message: String) -> Error {
    Error::new(ErrorKind::Data, "DataLoader", message)
}

/// The batches of one epoch. It ends after an error; dropping it ends its thread.
pub struct Batches<D: Dataset>(Source<D>);

enum Source<D: Dataset> {
    Here(Work<D>),
    Thread { batches: Option<Receiver<Result<D::Batch>>>, thread: Option<JoinHandle<()>>, left: usize },
    Failed(Option<Error>),
}

impl<D: Dataset> Batches<D> {
    fn new(mut work: Work<D>, prefetch: usize) -> Batches<D> {
        if prefetch == 0 {
            return Batches(Source::Here(work));
        }
        let left = work.end.saturating_sub(work.next);
        // One more is in the making while the channel is full.
        let (sender, receiver) = sync_channel(prefetch - 1);
        let spawned = std::thread::Builder::new().name("wgrad-loader".into()).spawn(move || {
            while let Some(batch) = work.batch() {
                // Nobody listens any more.
                if sender.send(batch).is_err() {
                    break;
                }
            }
        });
        Batches(match spawned {
            Ok(thread) => Source::Thread { batches: Some(receiver), thread: Some(thread), left },
            Err(error) => Source::Failed(Some(failed(format!("no thread could be started: {error}")))),
        })
    }
}

impl<D: Dataset> Iterator for Batches<D> {
    type Item = Result<D::Batch>;

    fn next(&mut self) -> Option<Result<D::Batch>> {
        match &mut self.0 {
            Source::Here(work) => work.batch(),
            Source::Thread { batches, left, .. } => {
                let batch = batches.as_ref()?.recv().ok()?;
                *left = if batch.is_ok() { left.saturating_sub(1) } else { 0 };
                Some(batch)
            }
            Source::Failed(error) => error.take().map(Err),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Source::Here(work) => (0, Some(work.end.saturating_sub(work.next))),
            Source::Thread { left, .. } => (0, Some(*left)),
            Source::Failed(error) => (0, Some(usize::from(error.is_some()))),
        }
    }
}

impl<D: Dataset> Drop for Batches<D> {
    fn drop(&mut self) {
        if let Source::Thread { batches, thread, .. } = &mut self.0 {
            // In this order: the thread waits for as long as there is a receiver.
            drop(batches.take());
            if let Some(thread) = thread.take() {
                // It catches panics itself.
                let _ = thread.join();
            }
        }
    }
}
