//! How a long step reports what it does, to a person or to a log.

use std::sync::Mutex;
use std::time::Instant;

/// Gets one line for each step that takes noticeable time, and what a build within it compiles.
pub trait Progress: Send + Sync {
    /// A step begins.
    fn step(&self, text: &str);

    /// A compiler begins with that package or crate.
    fn compiling(&self, _name: &str) {}
}

/// Reports nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &str) {}
}

/// Writes lines to standard error, each with the seconds since the first.
#[derive(Debug, Default)]
pub struct Stderr {
    began: Mutex<Option<Instant>>,
}

impl Progress for Stderr {
    fn step(&self, text: &str) {
        let mut began = self
            .began
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = began.get_or_insert_with(Instant::now).elapsed().as_secs_f32();
        eprintln!("{seconds:6.1}s  {text}");
    }
}
