//! The agent's loop: read every source, update the health history, publish.
//!
//! The kubelet is read more often than the driver, because a GPU is to be offered again seconds after its pod ended.
//! It is also read immediately when a pod starts, because the start of a lease waits for the holders in the status.
//! When the kubelet's answer changes, or an Xid arrives, the driver is read too.

use std::{path::Path, sync::Arc, time::Duration};

use leasehold_crds::provider::node::GpuNodeStatus;
use leasehold_telemetry::{Heartbeat, Latch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    health::checks::World,
    health::confirmation::Confirmation,
    health::foreign_processes::find_foreign_processes,
    health::unheld_memory::find_unheld_memory,
    health::{HealthHistory, NextReading},
    metrics::AgentMetrics,
    publish::status::{self, Known},
    publish::{Publisher, Written},
    settings::Settings,
    sources::facts::{Reading, Source, XidEvent},
    sources::kubelet::pod_events::PodEvents,
    sources::kubelet::{Allocation, Kubelet},
    sources::nvml,
    sources::nvml::watchdog::{Outcome, Session, Watchdog},
    sources::nvml::xid::{Severity, severity},
    sources::pci::{self, PciGpu},
    sources::processes,
};

/// When to read again to confirm a fault.
const SOON: Duration = Duration::from_secs(1);
/// How often to check whether the API server still has what was written.
const REFRESH: Duration = Duration::from_secs(30);

/// The agent of one node.
pub(crate) struct Agent {
    settings: Settings,
    watchdog: Watchdog,
    kubelet: Kubelet,
    publisher: Publisher,
    metrics: AgentMetrics,
    ready: Latch,
    history: HealthHistory,
    foreign_processes: Confirmation,
    unheld_memory: Confirmation,
    status: GpuNodeStatus,
    /// The kubelet's last answer.
    allocation: Source<Allocation>,
    refreshed: Option<Instant>,
    /// The last error that was logged, so that a repeated error is logged once.
    last_error: Option<String>,
}

impl Agent {
    pub(crate) fn new(settings: Settings, publisher: Publisher, metrics: AgentMetrics, ready: Latch) -> Self {
        let library = settings.nvml.clone();
        Self {
            watchdog: Watchdog::new(
                Arc::new(move |lend| nvml::with_probe(&library, lend)),
                settings.deadline,
            ),
            kubelet: Kubelet::at(settings.pod_resources.clone()),
            publisher,
            metrics,
            ready,
            history: HealthHistory::default(),
            foreign_processes: Confirmation::default(),
            unheld_memory: Confirmation::default(),
            status: GpuNodeStatus::default(),
            allocation: Source::Absent,
            refreshed: None,
            last_error: None,
            settings,
        }
    }

    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(mut self, heartbeat: Heartbeat, stop: CancellationToken) {
        let mut holders = tokio::time::interval(self.settings.holders_period);
        holders.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pod_events = PodEvents::watch(&self.settings.pod_logs);
        let mut due = Instant::now();
        loop {
            let read_kubelet = async {
                tokio::select! {
                    _ = holders.tick() => {}
                    () = pod_events.next() => {}
                }
            };
            let next = tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(due) => self.observe().await,
                () = self.watchdog.heard() => self.observe().await,
                () = read_kubelet => match self.kubelet.read().await {
                    said if said == self.allocation => continue,
                    said => { self.allocation = said; self.observe().await }
                },
            };
            heartbeat.beat();
            due = Instant::now()
                + match next {
                    NextReading::Soon => SOON.min(self.settings.period),
                    NextReading::AtPeriod => self.settings.period,
                };
        }
        heartbeat.finish();
    }

    /// Reads every source, updates the history and publishes.
    async fn observe(&mut self) -> NextReading {
        self.refresh().await;
        let session = if self.history.needs_new_session() {
            Session::Renew
        } else {
            Session::Keep
        };
        let outcome = self.watchdog.read(session).await;
        let xids = self.watchdog.take_events();
        log_xids(&xids);
        self.metrics.read(&outcome, &xids);
        let pci = Source::from(pci::gpus(&self.settings.sysfs));
        self.allocation = self.kubelet.read().await;
        let next = self.update_history(&outcome, xids, &pci);
        self.publish(&outcome, &pci).await;
        if self.foreign_processes.is_unconfirmed() || self.unheld_memory.is_unconfirmed() {
            NextReading::Soon
        } else {
            next
        }
    }

    /// Updates the health history.
    fn update_history(
        &mut self,
        outcome: &Outcome,
        xids: Vec<XidEvent>,
        pci: &Source<Vec<PciGpu>>,
    ) -> NextReading {
        let now = clock::second(clock::now());
        let history = std::mem::take(&mut self.history);
        match outcome {
            Outcome::Read(reading) => {
                let world = World {
                    reading: reading.clone(),
                    xids,
                    pci: pci.clone(),
                    kubelet: self.allocation.clone(),
                };
                let (history, next) = history.after(&world, self.settings.rules, now);
                self.history = history;
                next
            }
            Outcome::Failed(error) => {
                self.history = history.nvml_unavailable(&error.to_string(), now);
                NextReading::AtPeriod
            }
            Outcome::Hung => {
                self.history = history.nvml_unavailable("a call to the driver does not return", now);
                NextReading::AtPeriod
            }
        }
    }

    /// Writes what changed.
    async fn publish(&mut self, outcome: &Outcome, pci: &Source<Vec<PciGpu>>) {
        let (found, unheld) = match outcome {
            Outcome::Read(reading) => (self.foreign_processes_in(reading), self.unheld_memory_in(reading)),
            Outcome::Failed(_) | Outcome::Hung => (Source::Absent, Source::Absent),
        };
        let known = Known {
            outcome,
            history: &self.history,
            pci: &pci.as_ref().map(|_| ()),
            kubelet: &self.allocation,
            foreign_processes: &found,
            unheld_memory: &unheld,
            generation: self.publisher.generation(),
        };
        let now = clock::now();
        self.status = status::status(&self.status, &known, clock::second(now));
        // Before the stored status was read, a fault in it could be overwritten.
        if self.refreshed.is_none() {
            return;
        }
        let written = self.publisher.status(&self.status).await;
        if matches!(written, Ok(Written::Now)) {
            self.metrics.wrote();
        }
        let renewed = self.publisher.renew(now).await;
        self.report(written.map(|_| ()).and(renewed));
    }

    fn foreign_processes_in(&mut self, reading: &Reading) -> Source<Vec<String>> {
        let pods = processes::pods(&self.settings.pod_logs);
        let proc: &Path = &self.settings.proc;
        let owner = |pid| pods.as_ref().map(|pods| processes::owner(proc, pods, pid));
        let found = find_foreign_processes(reading.gpus(), &self.allocation, owner);
        confirmed(&mut self.foreign_processes, found)
    }

    fn unheld_memory_in(&mut self, reading: &Reading) -> Source<Vec<String>> {
        let found = find_unheld_memory(reading.gpus(), &self.allocation);
        confirmed(&mut self.unheld_memory, found)
    }

    /// Reads the stored status: at the start to restore the history, later to detect that it was removed.
    async fn refresh(&mut self) {
        if self.refreshed.is_some_and(|at| at.elapsed() < REFRESH) {
            return;
        }
        let first = self.refreshed.is_none();
        match self.publisher.refresh(clock::now()).await {
            Ok(had) => {
                self.refreshed = Some(Instant::now());
                if first {
                    let booted = clock::booted(&self.settings.proc);
                    self.history = HealthHistory::restored(status::records(&had), booted);
                    self.status = had;
                }
            }
            Err(error) => self.report(Err(error)),
        }
    }

    /// Logs an error once, and when it is over.
    fn report(&mut self, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                self.ready.set();
                if self.last_error.take().is_some() {
                    tracing::info!("writing to the API server succeeds again");
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                self.ready.clear(text.clone());
                if self.last_error.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = text,
                        "cannot write to the API server; retrying with the next observation"
                    );
                    self.last_error = Some(text);
                }
            }
        }
    }
}

/// What is confirmed after a reading. A source that is unavailable confirms nothing and clears nothing.
fn confirmed(before: &mut Confirmation, found: Source<Vec<String>>) -> Source<Vec<String>> {
    found.map(|seen| {
        *before = std::mem::take(before).after(seen);
        before.confirmed().to_vec()
    })
}

fn log_xids(xids: &[XidEvent]) {
    for XidEvent { uuid, xid } in xids {
        match severity(*xid) {
            Severity::Fatal(meaning) => tracing::error!(gpu = uuid, xid, meaning, "fatal Xid"),
            Severity::NonFatal => tracing::info!(gpu = uuid, xid, "non-fatal Xid"),
        }
    }
}
