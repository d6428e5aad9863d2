//! Measurements, run by hand: `cargo test figures -- --ignored --nocapture`.
