//! Datasets, and loaders that bring them in batches (`torch.utils.data`).
//!
//! ```
//! # use wgrad::prelude::*;
//! let (x, y) = (ones([10, 3]).to(cpu()), arange(0, 10, 1).to(cpu()));
//! let loader = DataLoader::new(TensorDataset::new([&x, &y])?, 4).shuffle(7);
//! let mut seen = 0;
//! for batch in &loader {
//!     let [x, y] = batch?;
//!     assert_eq!(x.size(0), y.size(0));
//!     seen += x.size(0);
//! }
//! assert_eq!(seen, 10);
//! # Ok::<(), wgrad::Error>(())
//! ```

mod dataset;
pub mod idx;
mod loader;
mod shuffle;

pub use dataset::{Dataset, TensorDataset};
pub use loader::{Batches, DataLoader};
pub use shuffle::permutation;
