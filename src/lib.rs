//! wgrad
pub mod backend;
pub mod error;
pub mod graph;
mod ops;
