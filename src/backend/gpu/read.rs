//! Reading back, blocking and not.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::backend::{Buffer, Fault};
use crate::error::ErrorKind;

use super::Gpu;
use super::device::{scoped, wait};
use super::run::{Status, raw, storage};

/// Staging buffers kept for reuse.
const KEEP: usize = 8;

/// How long the answer may take once the work is done.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What reads share.
#[derive(Default)]
pub struct Reader {
    staging: Vec<wgpu::Buffer>,
    /// To the thread that waits for the device on behalf of futures.
    poller: Option<Sender<wgpu::SubmissionIndex>>,
}

/// A read under way: a staging buffer with the data, then the status words.
struct Pending {
    staging: wgpu::Buffer,
    /// Of what was asked for, in the staging buffer.
    data: Range<usize>,
    status: Option<Range<usize>>,
    submission: wgpu::SubmissionIndex,
    mapped: Arc<(Mutex<Mapped>, Condvar)>,
}

#[derive(Default)]
struct Mapped {
    result: Option<Answer>,
    waker: Option<Waker>,
}

type Answer = Result<(), wgpu::BufferAsyncError>;

fn broken(what: impl std::fmt::Display) -> Fault {
    Fault { kind: ErrorKind::Backend, message: format!("reading back failed: {what}"), command: None }
}

impl Gpu {
    /// Submits the copy. `None`: there is nothing to wait for.
    fn start_read(&self, from: &Buffer, range: &Range<usize>) -> Result<Option<Pending>, Fault> {
        self.faults.take()?;
        if range.start > range.end || range.end > from.bytes {
            return Err(broken(format!("bytes {range:?} of a buffer of {}", from.bytes)));
        }
        let source = raw(storage(from)?)?;
        let mut status = self.status.lock();
        let flags = if std::mem::take(&mut status.raised) { status.bytes() } else { 0 };
        if range.is_empty() && flags == 0 {
            return Ok(None);
        }
        // Copies are of whole words.
        let (first, last) = (range.start as u64 / 4 * 4, (range.end as u64).next_multiple_of(4));
        let bytes = if range.is_empty() { 0 } else { last - first };
        let staging = self.staging(bytes + flags)?;
        let submission = scoped(&self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(source, from.at as u64 + first, &staging, 0, bytes);
            }
            if flags > 0 {
                encoder.copy_buffer_to_buffer(&status.buffer, 0, &staging, bytes, flags);
                encoder.clear_buffer(&status.buffer, 0, Some(flags));
            }
            self.queue.submit([encoder.finish()])
        })?;
        let mapped = Arc::<(Mutex<Mapped>, Condvar)>::default();
        let told = mapped.clone();
        staging.map_async(wgpu::MapMode::Read, ..bytes + flags, move |result| {
            let waker = {
                let mut mapped = told.0.lock();
                mapped.result = Some(result);
                mapped.waker.take()
            };
            told.1.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let skip = range.start - first as usize;
        let flags = (flags > 0).then_some(bytes as usize..(bytes + flags) as usize);
        Ok(Some(Pending { staging, data: skip..skip + range.len(), status: flags, submission, mapped }))
    }

    fn staging(&self, bytes: u64) -> Result<wgpu::Buffer, Fault> {
        let mut reader = self.reader.lock();
        let fits = |b: &wgpu::Buffer| b.size() >= bytes && b.size() <= (4 * bytes).max(64 << 10);
        if let Some(i) = reader.staging.iter().position(fits) {
            return Ok(reader.staging.swap_remove(i));
        }
        drop(reader);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("staging"),
            size: super::pool::size_class(bytes.max(4 << 10)),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        scoped(&self.device, || self.device.create_buffer(&descriptor))
    }

    pub(super) fn read(&self, from: &Buffer, range: Range<usize>) -> Result<Vec<u8>, Fault> {
        let Some(pending) = self.start_read(from, &range)? else { return Ok(vec![]) };
        wait(&self.device, Some(pending.submission.clone()))?;
        let result = {
            // Another thread that waits for the device may be about to deliver the answer.
            let mut mapped = pending.mapped.0.lock();
            if mapped.result.is_none() {
                pending.mapped.1.wait_for(&mut mapped, PATIENCE);
            }
            mapped.result.take()
        };
        let data = finish(pending, result, &self.status, &self.reader);
        self.faults.take()?;
        data
    }

    pub(super) fn read_async(
        &self,
        from: &Buffer,
        range: Range<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, Fault>> + Send>> {
        match self.start_read(from, &range) {
            Err(fault) => Box::pin(std::future::ready(Err(fault))),
            Ok(None) => Box::pin(std::future::ready(Ok(vec![]))),
            Ok(Some(pending)) => {
                let mut reader = self.reader.lock();
                let device = &self.device;
                let poller = reader.poller.get_or_insert_with(|| poller(device.clone()));
                if poller.send(pending.submission.clone()).is_err() {
                    return Box::pin(std::future::ready(Err(broken("the polling thread ended"))));
                }
                Box::pin(Read {
                    pending: Some(pending),
                    status: self.status.clone(),
                    reader: self.reader.clone(),
                    faults: self.faults.clone(),
                })
            }
        }
    }

    /// Waits for everything, and looks at the status words.
    pub(super) fn wait_all(&self) -> Result<(), Fault> {
        let raised = self.status.lock().raised;
        if raised {
            let none = self.pool.get(0)?;
            self.read(&none, 0..0)?;
        }
        wait(&self.device, None)?;
        self.faults.take()
    }
}

fn finish(
    pending: Pending,
    result: Option<Answer>,
    status: &Mutex<Status>,
    reader: &Mutex<Reader>,
) -> Result<Vec<u8>, Fault> {
    match result {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(broken(error)),
        None => return Err(broken("the device did not answer")),
    }
    let end = pending.status.as_ref().map_or(pending.data.end.next_multiple_of(4), |s| s.end);
    let view = pending.staging.get_mapped_range(..end as u64).map_err(broken)?;
    let verdict = pending.status.clone().map_or(Ok(()), |s| status.lock().check(&view[s]));
    let data = view[pending.data.clone()].to_vec();
    drop(view);
    pending.staging.unmap();
    let mut reader = reader.lock();
    if reader.staging.len() >= KEEP {
        reader.staging.remove(0);
    }
    reader.staging.push(pending.staging);
    verdict.map(|()| data)
}

/// A thread that blocks on the device so that futures need not.
fn poller(device: wgpu::Device) -> Sender<wgpu::SubmissionIndex> {
    let (send, receive) = channel();
    let run = move || {
        for submission in receive {
            // A fault shows as a mapping that fails.
            let _ = wait(&device, Some(submission));
        }
    };
    // Without a thread the channel is closed, which the sender sees.
    let _ = std::thread::Builder::new().name("wgrad-poll".into()).spawn(run);
    send
}

struct Read {
    pending: Option<Pending>,
    status: Arc<Mutex<Status>>,
    reader: Arc<Mutex<Reader>>,
    faults: Arc<super::device::Faults>,
}

impl Future for Read {
    type Output = Result<Vec<u8>, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(pending) = &this.pending else { return Poll::Ready(Err(broken("it was read before"))) };
        let result = {
            let mut mapped = pending.mapped.0.lock();
            if mapped.result.is_none() && !this.faults.is_lost() {
                mapped.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            mapped.result.take()
        };
        let Some(pending) = this.pending.take() else { return Poll::Pending };
        let data = finish(pending, result, &this.status, &this.reader);
        Poll::Ready(this.faults.take().and(data))
    }
}
