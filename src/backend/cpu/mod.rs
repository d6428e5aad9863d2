//! The CPU backend.
pub fn device() -> std::sync::Arc<dyn super::Backend> { loop {} }
