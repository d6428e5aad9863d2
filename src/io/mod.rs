//! Saving and loading tensors.

pub(crate) mod file;
pub mod npy;
#[cfg(feature = "io")]
mod safetensors;

#[cfg(feature = "io")]
pub use self::safetensors::{load, load_metadata, save, save_with};
