//! Every operator against PyTorch, against finite differences, and against itself in other circumstances.

#[path = "../common/mod.rs"]
mod common;
mod errors;
mod fusion;
mod goldens;
mod gradients;
mod halves;
mod model;
mod sizes;
mod smooth;

use std::fmt::Display;

/// Failures of many samples, told together.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn add(&mut self, what: impl Display) {
        self.0.push(what.to_string());
    }

    fn finish(self, of: usize) {
        let shown = self.0.iter().take(60).map(|f| format!("- {f}\n")).collect::<String>();
        assert!(self.0.is_empty(), "{} failures in {of}:\n{shown}", self.0.len());
    }
}
