//! What precedes a demo, a test run or a bench: packages, the chain's programs, Kubernetes and cargo's build. The
//! packages come first, as builds need them. The rest runs at the same time, because downloads and the last crates of
//! a build leave cores idle.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use leasehold_testtools::{Progress, Quiet, Tools, cargo, debian, go, npm};

/// How often progress is printed.
const PERIOD: Duration = Duration::from_secs(15);
/// Processor time of all builds from nothing, on the machine of docs/develop/performance.md.
const CORE_SECONDS: u64 = 1260;

/// What cargo is to build.
#[derive(Clone, Copy)]
pub(crate) enum Build {
    /// Programs of the workspace by name.
    Programs(&'static [&'static str]),
    /// Every test.
    Tests,
}

impl Build {
    fn run(self, progress: &dyn Progress) -> Result<()> {
        match self {
            Self::Programs(programs) => cargo::build(programs, progress).map(drop),
            Self::Tests => cargo::build_tests(progress),
        }
    }
}

/// Prepares everything that a cluster needs, and what cargo is to build.
///
/// # Errors
/// When a part fails, after the other parts have ended.
pub(crate) fn cluster(build: Build) -> Result<()> {
    let began = Instant::now();
    if !go::is_built() {
        let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
        eprintln!(
            "The first run on a machine builds everything once: about {} minutes on {cores} cores.",
            (CORE_SECONDS / cores).div_ceil(60)
        );
    }
    let part = |number, name| Part {
        label: format!("[{number}/4] {name}"),
        began,
        done: AtomicUsize::new(0),
        total: AtomicUsize::new(0),
    };
    let packages = part(1, "Debian packages");
    packages.report(debian::ensure(&packages))?;
    let parts = [part(2, "chain"), part(3, "Kubernetes"), part(4, "Leasehold")];
    let [chain, kubernetes, leasehold] = &parts;
    let works: [Box<dyn FnOnce() -> Result<()> + Send + '_>; 3] = [
        Box::new(|| npm::ensure(chain).map(drop)),
        Box::new(|| {
            go::ensure(kubernetes)?;
            go::runc(kubernetes).map(drop)
        }),
        Box::new(|| build.run(leasehold)),
    ];
    let mut errors = Vec::new();
    thread::scope(|scope| {
        let (ended, ends) = channel();
        for (index, work) in works.into_iter().enumerate() {
            let ended = ended.clone();
            scope.spawn(move || ended.send((index, work())));
        }
        drop(ended);
        let mut running = vec![0, 1, 2];
        // The channel is closed when every part has ended.
        loop {
            match ends.recv_timeout(PERIOD) {
                Ok((index, result)) => {
                    running.retain(|other| *other != index);
                    errors.extend(parts[index].report(result).err());
                }
                Err(RecvTimeoutError::Timeout) => {
                    running.iter().for_each(|index: &usize| parts[*index].advanced())
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    if !errors.is_empty() {
        bail!(
            "{}",
            errors
                .iter()
                .map(|error| format!("{error:#}"))
                .collect::<Vec<_>>()
                .join("\n")
        );
    }
    // Everything is built now. This fails when a program is not where it should be.
    Tools::ensure(&Quiet).map(drop)
}

/// One part of the preparation, and how far it is.
struct Part {
    label: String,
    began: Instant,
    done: AtomicUsize,
    total: AtomicUsize,
}

impl Part {
    fn line(&self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        eprintln!("{:3}:{:02}  {}: {text}", seconds / 60, seconds % 60, self.label);
    }

    fn advanced(&self) {
        let (done, total) = (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        );
        if let Some(percent) = (done * 100).checked_div(total) {
            // The total is an estimate, and a part that has not ended is not complete.
            self.line(&format!("{done} compiled, {} %", percent.min(99)));
        }
    }

    fn report(&self, result: Result<()>) -> Result<()> {
        self.line(if result.is_ok() { "ready" } else { "failed" });
        result
    }
}

impl Progress for Part {
    fn step(&self, text: &str) {
        self.line(text);
    }

    fn advance(&self, done: usize, total: usize) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }
}
