//! The one error type: what went wrong, in which op, and on which line of the caller's.

use std::cell::Cell;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the op that met it and the caller's line. Cheap to clone: a tensor that could not be made
/// carries its error, and so does everything made from it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    op: &'static str,
    message: String,
    caller: &'static Location<'static>,
}

/// What sort of error, for programs that must tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Shapes that do not fit each other or the op.
    Shape,
    /// A dtype the op does not take, or takes not on this device.
    DType,
    /// Tensors on different devices, or a device that does not exist.
    Device,
    /// An index or dimension out of range.
    Index,
    /// An argument whose value makes no sense.
    Argument,
    /// A rule of autograd was broken.
    Autograd,
    /// The device has no memory left.
    OutOfMemory,
    /// A limit of the device was exceeded.
    Limit,
    /// The device is gone, or its driver refused something.
    Backend,
    /// Reading or writing a file failed.
    Io,
    /// A dataset failed.
    Data,
}

impl Error {
    #[track_caller]
    pub fn new(kind: ErrorKind, op: &'static str, message: impl Into<String>) -> Error {
        Error::at(Location::caller(), kind, op, message)
    }

    pub fn at(
        caller: &'static Location<'static>,
        kind: ErrorKind,
        op: &'static str,
        message: impl Into<String>,
    ) -> Error {
        Error(Arc::new(Inner { kind, op, message: message.into(), caller: line(caller) }))
    }

    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The op that met the error, by PyTorch's name.
    pub fn op(&self) -> &'static str {
        self.0.op
    }

    /// What went wrong, without op and line.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The line of the caller's code that recorded the faulty op.
    pub fn caller(&self) -> &'static Location<'static> {
        self.0.caller
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.op.is_empty() {
            write!(f, "{}: ", self.0.op)?;
        }
        write!(f, "{} (at {})", self.0.message, self.0.caller)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Error {}

thread_local! {
    static LINE: Cell<Option<&'static Location<'static>>> = const { Cell::new(None) };
}

/// Restores the line, also when unwinding.
struct Restore(Option<&'static Location<'static>>);

impl Drop for Restore {
    fn drop(&mut self) {
        LINE.set(self.0);
    }
}

/// Runs `f` as if all that it records stood on this line: an op that is made of others is the caller's doing, not
/// theirs. The outermost line holds.
pub(crate) fn on_line_of<R>(caller: &'static Location<'static>, f: impl FnOnce() -> R) -> R {
    let before = LINE.get();
    let _restore = Restore(before);
    LINE.set(Some(before.unwrap_or(caller)));
    f()
}

/// Runs `f` with every op on its own line again: the user's code, called from within an op.
pub(crate) fn on_own_lines<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(LINE.take());
    f()
}

/// The line that what is recorded now belongs to, its own being `caller`.
pub(crate) fn line(caller: &'static Location<'static>) -> &'static Location<'static> {
    LINE.get().unwrap_or(caller)
}

type WarningHandler = Box<dyn Fn(&str) + Send + Sync>;
static WARNINGS: parking_lot::RwLock<Option<WarningHandler>> = parking_lot::RwLock::new(None);

/// Sends warnings to `handler` instead of stderr.
pub fn set_warning_handler(handler: impl Fn(&str) + Send + Sync + 'static) {
    *WARNINGS.write() = Some(Box::new(handler));
}

#[track_caller]
pub(crate) fn warn(message: &str) {
    let text = format!("{}: UserWarning: {message}", Location::caller());
    match &*WARNINGS.read() {
        Some(handler) => handler(&text),
        None => eprintln!("{text}"),
    }
}
