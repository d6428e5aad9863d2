//! The graph: nodes, their lazy recording, scheduling, fusion, planning and execution.

pub(crate) mod anomaly;
mod arrange;
mod culprit;
pub mod device;
mod doubt;
pub mod draws;
pub mod dtype;
mod emit;
pub mod figures;
mod join;
pub mod kernel;
pub mod layout;
pub mod node;
pub mod observe;
pub mod place;
pub mod plan;
pub mod preview;
pub mod program;
pub mod schedule;
pub mod timeline;
