//! How a long start tells a person, or a log, what it is doing.

use std::sync::Mutex;
use std::time::Instant;

/// Gets one line for each step that takes noticeable time.
pub trait Progress: Send + Sync {
    fn step(&self, text: &str);
}

/// Says nothing.
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
