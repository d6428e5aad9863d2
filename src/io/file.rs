//! Whole files, read and written with errors that name them.

use std::fs::{self, File};
use std::io::Write;
use std::panic::Location;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

#[track_caller]
pub(super) fn fail(op: &'static str, path: &Path, what: impl std::fmt::Display) -> Error {
    Error::at(Location::caller(), ErrorKind::Io, op, format!("{}: {what}", path.display()))
}

#[track_caller]
pub(super) fn read(op: &'static str, path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(fail(op, path, error)),
    }
}

/// Under another name first, then renamed: whoever reads finds the old file or the new one, and a crash in
/// between loses neither.
#[track_caller]
pub(crate) fn write(op: &'static str, path: &Path, bytes: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else { return Err(fail(op, path, "not the name of a file")) };
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}-{n}.tmp", std::process::id()));
    let temporary = path.with_file_name(hidden);
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    match written {
        Ok(()) => Ok(()),
        Err(error) => {
            // It may not even exist; the first error is the one that counts.
            let _ = fs::remove_file(&temporary);
            Err(fail(op, path, error))
        }
    }
}
