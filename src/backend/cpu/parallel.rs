//! The backend's own threads. Kernels never run on rayon's global pool: a caller there who waits for the device
//! could keep all its workers from the very work that he waits for.

use std::cell::Cell;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Work below this price, in additions, is done where it is: waking a thread costs as much.
pub(super) const WORTH_A_THREAD: usize = 64 << 10;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let build = || {
        let builder = ThreadPoolBuilder::new().thread_name(|i| format!("wgrad-cpu-{i}"));
        // Without threads (some browsers) everything is done inline.
        builder.start_handler(|_| INSIDE.set(true)).build().ok().filter(|pool| pool.current_num_threads() > 1)
    };
    POOL.get_or_init(build).as_ref()
}

/// Whether this is one of the backend's threads.
pub(super) fn inside() -> bool {
    INSIDE.get()
}

pub(super) fn workers() -> usize {
    pool().map_or(1, ThreadPool::current_num_threads)
}

/// Does `work` on one of the backend's threads, where [`tasks`] and any use of rayon are shared among them.
/// Meanwhile the caller sleeps; it takes up no other work, which might wait for this very device.
pub(super) fn enter<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    match pool() {
        Some(pool) if !INSIDE.get() => {
            if rayon::current_thread_index().is_none() {
                return pool.install(work);
            }
            // A worker of another pool would not sleep but steal, so a thread sleeps for it.
            let joined = std::thread::scope(|scope| scope.spawn(|| pool.install(work)).join());
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }
        _ => work(),
    }
}

/// Runs tasks `0..count`, in parallel when [`enter`]ed.
pub(super) fn tasks(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count > 1 && INSIDE.get() {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..count).for_each(task);
    }
}

/// Hands pieces of a slice, each of `size` elements but the last, to threads. Outside of [`enter`] the caller works
/// along, so that little work does not wait for a thread to wake.
pub(super) fn share<T: Send>(all: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync + Send) {
    let size = size.max(1);
    if all.len() <= size {
        if !all.is_empty() {
            work(0, all);
        }
        return;
    }
    if INSIDE.get() {
        return all.par_chunks_mut(size).enumerate().with_max_len(1).for_each(|(i, part)| work(i, part));
    }
    let Some(pool) = pool() else {
        return all.chunks_mut(size).enumerate().for_each(|(i, part)| work(i, part));
    };
    let others = (all.len().div_ceil(size) - 1).min(pool.current_num_threads() - 1);
    let left = Mutex::new(all.chunks_mut(size).enumerate());
    let next = || left.lock().next();
    let run = || {
        while let Some((i, part)) = next() {
            work(i, part);
        }
    };
    pool.in_place_scope(|scope| {
        (0..others).for_each(|_| scope.spawn(|_| run()));
        run();
    });
}
