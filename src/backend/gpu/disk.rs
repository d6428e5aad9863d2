//! What is worth keeping between processes: compiled pipelines, the tuner's choices. Files lie in
//! `$WGRAD_CACHE_DIR`, or else in `wgrad` in the platform's folder for caches; an empty `WGRAD_CACHE_DIR` means
//! nowhere. A file that is damaged, or cannot be read or written, is as good as none.

use std::path::PathBuf;
use std::{env, fs, process};

use foldhash::quality::FixedState;
use std::hash::BuildHasher;

fn folder() -> Option<PathBuf> {
    if let Some(own) = env::var_os("WGRAD_CACHE_DIR") {
        return (!own.is_empty()).then(|| own.into());
    }
    // Relative paths are not valid there, says the XDG specification.
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join("wgrad"))
}

/// The sum that stands before the data in a file: drivers take a pipeline cache's bytes on trust.
fn sum(data: &[u8]) -> [u8; 8] {
    FixedState::with_seed(0).hash_one(data).to_le_bytes()
}

/// What [`store`] kept under this name.
pub fn load(name: &str) -> Option<Vec<u8>> {
    let file = fs::read(folder()?.join(name)).ok()?;
    let (expected, data) = file.split_first_chunk::<8>()?;
    (*expected == sum(data)).then(|| data.to_vec())
}

/// Keeps `data` for later processes, whole or not at all: others may be reading.
pub fn store(name: &str, data: &[u8]) {
    let Some(folder) = folder() else { return };
    let draft = folder.join(format!("{name}.{}", process::id()));
    let write = || {
        fs::create_dir_all(&folder)?;
        fs::write(&draft, [&sum(data), data].concat())?;
        fs::rename(&draft, folder.join(name))
    };
    if write().is_err() {
        // Nobody reads a draft, so it does no harm if this fails too.
        let _ = fs::remove_file(&draft);
    }
}

#[cfg(test)]
pub fn remove(name: &str) {
    folder().map(|folder| fs::remove_file(folder.join(name)));
}

/// Names an adapter, its driver and this version: what is kept of one is of no use to another.
pub fn id(adapter: &wgpu::AdapterInfo) -> String {
    let a = adapter;
    let driver = FixedState::with_seed(0).hash_one((&a.name, &a.driver, &a.driver_info));
    format!("{}-{:x}-{:x}-{driver:016x}", env!("CARGO_PKG_VERSION"), a.vendor, a.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The folder comes from the environment, which tests share: one test does it all.
    #[test]
    fn keeps_and_forgets() {
        let name = format!("test-{}", process::id());
        let Some(path) = folder().map(|f| f.join(&name)) else { return };
        assert_eq!(load(&name), None);
        store(&name, b"words");
        assert_eq!(load(&name).as_deref(), Some(&b"words"[..]));
        let mut damaged = fs::read(&path).unwrap();
        damaged[9] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert_eq!(load(&name), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(load(&name), None);
        fs::remove_file(path).unwrap();
    }
}
