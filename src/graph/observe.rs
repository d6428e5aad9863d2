//! Handing a flush to someone who runs it in his own way, to look at what its kernels read and write.

use std::cell::RefCell;
use std::sync::Arc;

use super::dtype::Scalar;
use super::kernel::{Command, Kernel, Recording, Slot};
use crate::backend::{Backend, Buffer, Fault};

/// What a backend would be given to run.
pub struct Flush<'a> {
    pub backend: &'a dyn Backend,
    pub recording: &'a Recording,
    pub buffers: &'a [Buffer],
    pub scalars: &'a [Scalar],
    /// How many buffers come filled; the others have whatever contents.
    pub leaves: usize,
}

/// Must run the flush: what its buffers hold afterwards is what the program sees.
type Observer = Box<dyn FnMut(&Flush<'_>) -> Result<(), Fault>>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Lets `observer` run every flush of this thread's from now on, until the guard is dropped.
pub fn observe(observer: impl FnMut(&Flush<'_>) -> Result<(), Fault> + 'static) -> impl Drop {
    struct Guard(Option<Observer>);
    impl Drop for Guard {
        fn drop(&mut self) {
            OBSERVER.replace(self.0.take());
        }
    }
    Guard(OBSERVER.replace(Some(Box::new(observer))))
}

pub(super) fn active() -> bool {
    OBSERVER.with_borrow(Option::is_some)
}

pub(super) fn run(flush: &Flush<'_>) -> Result<(), Fault> {
    // What the observer itself makes run is not observed.
    match OBSERVER.take() {
        Some(mut observer) => {
            let ran = observer(flush);
            OBSERVER.replace(Some(observer));
            ran
        }
        None => flush.whole(),
    }
}

impl Flush<'_> {
    /// Runs all of it, as if nobody looked.
    pub fn whole(&self) -> Result<(), Fault> {
        let compiled = self.backend.compile(self.recording, false)?;
        self.backend.run(self.recording, &compiled, self.buffers, self.scalars).map(drop)
    }

    /// The scalars of one of its kernels.
    pub fn scalars_of(&self, kernel: &Kernel, first: usize) -> &[Scalar] {
        &self.scalars[first..first + kernel.scalars.len()]
    }
}

/// A recording of one dispatch, over slots `0..bindings`.
pub fn single(kernel: &Arc<Kernel>) -> Recording {
    let buffers = (0..kernel.bindings.len() as Slot).collect();
    Recording { commands: vec![Command::Dispatch { kernel: kernel.clone(), buffers, scalars: 0 }] }
}

/// Runs a kernel over these buffers.
pub fn run_single(
    backend: &dyn Backend,
    kernel: &Arc<Kernel>,
    buffers: &[Buffer],
    scalars: &[Scalar],
) -> Result<(), Fault> {
    let one = single(kernel);
    backend.run(&one, &backend.compile(&one, false)?, buffers, scalars).map(drop)
}

/// The same over buffers of its own, with these contents before; what they hold after.
pub fn run_apart(
    backend: &dyn Backend,
    kernel: &Arc<Kernel>,
    before: &[Vec<u8>],
    scalars: &[Scalar],
) -> Result<Vec<Vec<u8>>, Fault> {
    let buffers = before.iter().map(|bytes| backend.upload(bytes)).collect::<Result<Vec<_>, _>>()?;
    run_single(backend, kernel, &buffers, scalars)?;
    contents(backend, &buffers)
}

/// What buffers hold.
pub fn contents(backend: &dyn Backend, buffers: &[Buffer]) -> Result<Vec<Vec<u8>>, Fault> {
    buffers.iter().map(|b| backend.download(b, 0..b.bytes)).collect()
}
