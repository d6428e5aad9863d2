//! Running a recording kernel by kernel, so that someone can look at what each reads and writes.

use std::cell::RefCell;
use std::sync::Arc;

use super::dtype::Scalar;
use super::kernel::{Command, Kernel, Recording, Slot};
use crate::backend::{Backend, Buffer, Fault};

/// One kernel's run.
pub struct Observation<'a> {
    pub backend: &'a dyn Backend,
    pub kernel: &'a Arc<Kernel>,
    pub scalars: &'a [Scalar],
    /// The bytes behind each binding, before and after.
    pub before: &'a [Vec<u8>],
    pub after: &'a [Vec<u8>],
}

type Observer = Box<dyn FnMut(&Observation<'_>)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Shows `observer` every kernel that this thread runs from now on, until the guard is dropped.
pub fn observe(observer: impl FnMut(&Observation<'_>) + 'static) -> impl Drop {
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

/// A recording of one dispatch, over slots `0..bindings`.
pub fn single(kernel: &Arc<Kernel>) -> Recording {
    let buffers = (0..kernel.bindings.len() as Slot).collect();
    Recording { commands: vec![Command::Dispatch { kernel: kernel.clone(), buffers, scalars: 0 }] }
}

/// As [`Backend::run`], showing the observer every kernel.
pub(super) fn run(
    backend: &dyn Backend,
    recording: &Recording,
    buffers: &[Buffer],
    scalars: &[Scalar],
) -> Result<(), Fault> {
    for (i, command) in recording.commands.iter().enumerate() {
        let here = |fault: Fault| Fault { command: Some(i), ..fault };
        match command {
            Command::Copy { .. } => {
                let one = Recording { commands: vec![command.clone()] };
                backend.run(&one, &backend.compile(&one)?, buffers, &[])?;
            }
            Command::Dispatch { kernel, buffers: slots, scalars: first } => {
                let bound: Vec<Buffer> = slots.iter().map(|&s| buffers[s as usize].clone()).collect();
                let own = &scalars[*first..*first + kernel.scalars.len()];
                let read = || -> Result<Vec<Vec<u8>>, Fault> {
                    bound.iter().map(|b| backend.download(b, 0..b.bytes)).collect()
                };
                let before = read().map_err(here)?;
                let one = single(kernel);
                let compiled = backend.compile(&one).map_err(here)?;
                backend.run(&one, &compiled, &bound, own).map_err(here)?;
                let after = read().map_err(here)?;
                let seen = Observation { backend, kernel, scalars: own, before: &before, after: &after };
                OBSERVER.with_borrow_mut(|o| {
                    if let Some(observer) = o {
                        observer(&seen);
                    }
                });
            }
        }
    }
    Ok(())
}
