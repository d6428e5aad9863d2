//! The graph: nodes, their lazy recording, scheduling, fusion, planning and execution.

pub mod dtype;
pub mod kernel;
pub mod layout;
pub mod program;
