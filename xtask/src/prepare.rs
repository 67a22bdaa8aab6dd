//! What precedes a demo, a test run or a bench: packages, the chain's programs, Kubernetes and cargo's build. The
//! packages come first, as builds need them. The rest runs at the same time, because downloads and the last crates of
//! a build leave cores idle.

use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use leasehold_testtools::{Progress, Quiet, Tools, cargo, debian, go, npm};

/// How often progress is printed.
const PERIOD: Duration = Duration::from_secs(15);
/// Time of all builds from nothing, multiplied by the number of cores: 580 s on two, see docs/develop/performance.md.
const CORE_SECONDS: u64 = 1160;

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
    let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let estimate = (!go::is_built()).then(|| Duration::from_secs(CORE_SECONDS / cores));
    if let Some(estimate) = estimate {
        eprintln!(
            "The first run on a machine builds everything once: about {} minutes on {cores} cores.",
            minutes(estimate)
        );
    }
    let part = |number, name| Part {
        label: format!("[{number}/4] {name}"),
        began,
        estimate,
        compiled: Mutex::default(),
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
                    running.iter().for_each(|index: &usize| parts[*index].show())
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

/// Whole minutes, rounded up.
fn minutes(time: Duration) -> u64 {
    time.as_secs().div_ceil(60)
}

/// One part of the preparation, and how far it is.
struct Part {
    label: String,
    began: Instant,
    /// How long all parts take together, on the first run.
    estimate: Option<Duration>,
    /// How many packages or crates a compiler has begun with, and the newest.
    compiled: Mutex<(usize, String)>,
}

impl Part {
    fn line(&self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        eprintln!("{:3}:{:02}  {}: {text}", seconds / 60, seconds % 60, self.label);
    }

    fn compiled(&self) -> std::sync::MutexGuard<'_, (usize, String)> {
        self.compiled
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn show(&self) {
        let (count, newest) = self.compiled().clone();
        if count == 0 {
            return;
        }
        let left = self
            .estimate
            .and_then(|estimate| estimate.checked_sub(self.began.elapsed()))
            .map(|left| format!("; about {} min left in all", minutes(left)))
            .unwrap_or_default();
        self.line(&format!("{count} compiled, now {newest}{left}"));
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

    fn compiling(&self, name: &str) {
        let mut compiled = self.compiled();
        compiled.0 += 1;
        name.clone_into(&mut compiled.1);
    }
}
