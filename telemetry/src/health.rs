//! The health of a process: loops that must report regularly, and conditions that must hold before it is ready.
//!
//! By default nothing is healthy: a loop that ended without finishing is dead, and a latch that was never set is not
//! ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The health of one process. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    loops: BTreeMap<&'static str, Loop>,
    latches: BTreeMap<&'static str, Option<String>>,
    ending: bool,
}

#[derive(Debug)]
enum Loop {
    Beats { last: Instant, within: Duration },
    Ended,
}

impl Health {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A loop that must call [`Heartbeat::beat`] at least once in every `within`, starting now.
    #[must_use = "a heartbeat that is dropped counts as a loop that died"]
    pub fn heartbeat(&self, name: &'static str, within: Duration) -> Heartbeat {
        self.state().loops.insert(
            name,
            Loop::Beats {
                last: Instant::now(),
                within,
            },
        );
        Heartbeat {
            health: self.clone(),
            name,
        }
    }

    /// A readiness condition, which is not met until its latch is set.
    #[must_use = "the process is not ready until the latch is set"]
    pub fn latch(&self, name: &'static str) -> Latch {
        self.state().latches.insert(name, Some("not yet".to_owned()));
        Latch {
            health: self.clone(),
            name,
        }
    }

    /// Makes the process not ready, so that it gets no new work while it ends. Loops may end.
    pub fn end(&self) {
        self.state().ending = true;
    }

    /// Each loop, and its problem if it has one.
    pub(crate) fn liveness(&self) -> Report {
        let state = self.state();
        let now = Instant::now();
        let lines = state.loops.iter().map(|(name, beats)| match beats {
            Loop::Ended if state.ending => (*name, None),
            Loop::Ended => (*name, Some("ended".to_owned())),
            Loop::Beats { last, within } => {
                let silent = now.duration_since(*last);
                let late = silent > *within;
                (
                    *name,
                    late.then(|| format!("silent for {silent:.0?}, the limit is {within:.0?}")),
                )
            }
        });
        Report(lines.collect())
    }

    /// Each readiness condition, and why it is not met.
    pub(crate) fn readiness(&self) -> Report {
        let state = self.state();
        let ending = state.ending.then(|| ("shutdown", Some("ends".to_owned())));
        Report(
            state
                .latches
                .iter()
                .map(|(name, why)| (*name, why.clone()))
                .chain(ending)
                .collect(),
        )
    }

    // A thread that panics while holding the lock leaves the maps consistent.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a loop. Dropping it without [`Heartbeat::finish`], for instance by a panic, marks the loop as dead.
#[derive(Debug)]
pub struct Heartbeat {
    health: Health,
    name: &'static str,
}

impl Heartbeat {
    /// Reports that the loop is alive.
    pub fn beat(&self) {
        if let Some(Loop::Beats { last, .. }) = self.health.state().loops.get_mut(self.name) {
            *last = Instant::now();
        }
    }

    /// Reports that the loop ended as intended, for instance after leadership was lost.
    pub fn finish(self) {
        self.health.state().loops.remove(self.name);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if let Some(beats) = self.health.state().loops.get_mut(self.name) {
            *beats = Loop::Ended;
        }
    }
}

/// One readiness condition.
#[derive(Clone, Debug)]
pub struct Latch {
    health: Health,
    name: &'static str,
}

impl Latch {
    /// Reports that the condition holds.
    pub fn set(&self) {
        self.put(None);
    }

    /// Reports that the condition does not hold, and why.
    pub fn clear(&self, why: impl Into<String>) {
        self.put(Some(why.into()));
    }

    fn put(&self, why: Option<String>) {
        self.health.state().latches.insert(self.name, why);
    }
}

/// Names of the checks, and the problem of each; `None` if it has none.
#[derive(Debug, PartialEq)]
pub(crate) struct Report(Vec<(&'static str, Option<String>)>);

impl Report {
    pub(crate) fn is_good(&self) -> bool {
        self.0.iter().all(|(_, wrong)| wrong.is_none())
    }

    /// Formats the report like Kubernetes' own components.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, wrong) in &self.0 {
            match wrong {
                None => text.push_str(&format!("[+]{name} ok\n")),
                Some(why) => text.push_str(&format!("[-]{name} failed: {why}\n")),
            }
        }
        text.push_str(if self.is_good() { "ok\n" } else { "failed\n" });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_alive_as_long_as_it_beats() {
        let health = Health::new();
        let heartbeat = health.heartbeat("orphans", Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(health.liveness().is_good());
        heartbeat.beat();
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(
            health.liveness().is_good(),
            "the time is measured from the last beat"
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        let report = health.liveness();
        assert!(!report.is_good());
        assert!(
            report.text().contains("[-]orphans failed: silent for 31s"),
            "{}",
            report.text()
        );
        heartbeat.beat();
        assert!(
            health.liveness().is_good(),
            "a late loop that beats again is alive"
        );
    }

    #[tokio::test]
    async fn a_loop_that_panicked_is_dead_and_one_that_finished_is_not() {
        let health = Health::new();
        let heartbeat = health.heartbeat("orphans", Duration::from_secs(30));
        let panicked = tokio::spawn(async move {
            let _heartbeat = heartbeat;
            panic!("as a loop might");
        });
        assert!(panicked.await.is_err());
        assert_eq!(health.liveness().text(), "[-]orphans failed: ended\nfailed\n");

        health.heartbeat("orphans", Duration::from_secs(30)).finish();
        assert!(health.liveness().is_good());
    }

    #[tokio::test]
    async fn ready_only_when_every_latch_is_set_and_not_while_ending() {
        let health = Health::new();
        let (cache, market) = (health.latch("cache"), health.latch("market"));
        assert!(!health.readiness().is_good());
        cache.set();
        assert!(health.readiness().text().contains("[-]market failed: not yet"));
        market.set();
        assert!(health.readiness().is_good());
        market.clear("connection refused");
        assert!(
            health
                .readiness()
                .text()
                .contains("[-]market failed: connection refused")
        );
        market.set();
        health.end();
        assert!(health.readiness().text().contains("[-]shutdown failed: ends"));
    }

    #[tokio::test]
    async fn loops_may_end_while_the_process_ends() {
        let health = Health::new();
        let heartbeat = health.heartbeat("orphans", Duration::from_secs(30));
        health.end();
        drop(heartbeat);
        assert!(
            health.liveness().is_good(),
            "the kubelet must not kill a process that is shutting down"
        );
    }
}
