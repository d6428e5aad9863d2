//! Runs a kernel that `KernelDiff::save` wrote, on this machine's GPU:
//!
//!     cargo run --release --example replay -- DIR
//!
//! The exit status is 1 if it differs from the CPU here.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    let Some(folder) = std::env::args().nth(1) else { anyhow::bail!("usage: replay DIR") };
    let found = wgrad::debug::replay(folder)?;
    println!("{found}");
    Ok(if found.differs() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
