//! Random numbers drawn a second time: what a checkpoint computes again must be what it was.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::device::{Device, Generator};

/// Where in a device's random stream each draw of so many words began.
pub type DrawLog = VecDeque<(Device, usize, Generator)>;

enum Level {
    Log(DrawLog),
    Replay(DrawLog),
}

thread_local! {
    /// Logs and replays within each other, innermost last.
    static LEVELS: RefCell<Vec<Level>> = const { RefCell::new(vec![]) };
}

/// Ends a level, also when unwinding.
struct Open;

impl Open {
    fn level(level: Level) -> Open {
        LEVELS.with_borrow_mut(|levels| levels.push(level));
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        LEVELS.with_borrow_mut(Vec::pop);
    }
}

/// Runs `f`, and gives what this thread drew in it.
pub fn log_draws<R>(f: impl FnOnce() -> R) -> (R, DrawLog) {
    let open = Open::level(Level::Log(DrawLog::new()));
    let result = f();
    let log = LEVELS.with_borrow_mut(|levels| match levels.last_mut() {
        Some(Level::Log(log)) => std::mem::take(log),
        _ => DrawLog::new(),
    });
    drop(open);
    (result, log)
}

/// Runs `f`, and has it draw the same again. The devices' streams stay where they are.
pub fn replay_draws<R>(log: DrawLog, f: impl FnOnce() -> R) -> R {
    let _open = Open::level(Level::Replay(log));
    f()
}

/// A draw of `n` words on `device`: from the innermost replay that has it, or else `fresh`. Logs within that note it.
pub(super) fn draw(device: &Device, n: usize, fresh: impl FnOnce() -> Generator) -> Generator {
    LEVELS.with_borrow_mut(|levels| {
        let mut found = None;
        let mut inner = levels.len();
        for (i, level) in levels.iter_mut().enumerate().rev() {
            if let Level::Replay(log) = level
                && log.front().is_some_and(|(d, m, _)| d == device && *m == n)
            {
                found = log.pop_front().map(|(_, _, start)| start);
                inner = i + 1;
                break;
            }
            inner = i;
        }
        let start = found.unwrap_or_else(fresh);
        for level in &mut levels[inner..] {
            if let Level::Log(log) = level {
                log.push_back((device.clone(), n, start));
            }
        }
        start
    })
}
