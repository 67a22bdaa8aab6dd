//! The agent's loop: look at every witness, judge, tell.
//!
//! The kubelet is asked more often than the driver, because a GPU is to be sold again seconds after its pod has
//! ended, and at once when a pod has come, because a lease waits for the word of who holds its GPUs. Whenever it says
//! something new, or an Xid is heard, the driver is read too.

use std::{path::Path, sync::Arc, time::Duration};

use leasehold_crds::provider::node::GpuNodeStatus;
use leasehold_telemetry::{Heartbeat, Latch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    sources::kubelet::pod_events::Arrivals,
    health::checks::World,
    clock,
    sources::facts::{Reading, Witness, XidEvent},
    health::{Ledger, Next},
    health::foreign_processes::{Intruders, intruders},
    metrics::AgentMetrics,
    sources::nvml,
    sources::kubelet::{Allocation, Kubelet},
    sources::processes,
    publish::{Publisher, Written},
    settings::Settings,
    publish::status::{self, Known},
    sources::pci::{self, PciGpu},
    sources::nvml::watchdog::{Outcome, Session, Watchdog},
    sources::nvml::xid::{Severity, severity},
};

/// When a suspicion is looked at again.
const SOON: Duration = Duration::from_secs(1);
/// How often the server is asked whether it still has what was written.
const REFRESH: Duration = Duration::from_secs(30);

/// The agent of one node.
pub(crate) struct Agent {
    settings: Settings,
    watchdog: Watchdog,
    kubelet: Kubelet,
    publisher: Publisher,
    metrics: AgentMetrics,
    ready: Latch,
    ledger: Ledger,
    intruders: Intruders,
    status: GpuNodeStatus,
    /// What the kubelet said last.
    allocation: Witness<Allocation>,
    refreshed: Option<Instant>,
    /// The last trouble that was logged, so that one trouble is one line.
    trouble: Option<String>,
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
            ledger: Ledger::default(),
            intruders: Intruders::default(),
            status: GpuNodeStatus::default(),
            allocation: Witness::Absent,
            refreshed: None,
            trouble: None,
            settings,
        }
    }

    /// Runs until it is told to stop.
    pub(crate) async fn run(mut self, heartbeat: Heartbeat, stop: CancellationToken) {
        let mut holders = tokio::time::interval(self.settings.holders_period);
        holders.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let arrivals = Arrivals::among(&self.settings.pod_logs);
        let mut due = Instant::now();
        loop {
            let ask_kubelet = async {
                tokio::select! {
                    _ = holders.tick() => {}
                    () = arrivals.next() => {}
                }
            };
            let next = tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(due) => self.pass().await,
                () = self.watchdog.heard() => self.pass().await,
                () = ask_kubelet => match self.kubelet.read().await {
                    said if said == self.allocation => continue,
                    said => { self.allocation = said; self.pass().await }
                },
            };
            heartbeat.beat();
            due = Instant::now()
                + match next {
                    Next::Soon => SOON.min(self.settings.period),
                    Next::InTurn => self.settings.period,
                };
        }
        heartbeat.finish();
    }

    /// Look, judge, tell.
    async fn pass(&mut self) -> Next {
        self.refresh().await;
        let session = if self.ledger.wants_renewal() {
            Session::Renew
        } else {
            Session::Keep
        };
        let outcome = self.watchdog.read(session).await;
        let xids = self.watchdog.take_events();
        log_xids(&xids);
        self.metrics.read(&outcome, &xids);
        let pci = Witness::from(pci::gpus(&self.settings.sysfs));
        self.allocation = self.kubelet.read().await;
        let next = self.judge(&outcome, xids, &pci);
        self.tell(&outcome, &pci).await;
        if self.intruders.is_suspicion() {
            Next::Soon
        } else {
            next
        }
    }

    /// Brings the ledger up to date.
    fn judge(&mut self, outcome: &Outcome, xids: Vec<XidEvent>, pci: &Witness<Vec<PciGpu>>) -> Next {
        let now = clock::second(clock::now());
        let ledger = std::mem::take(&mut self.ledger);
        match outcome {
            Outcome::Read(reading) => {
                let world = World {
                    reading: reading.clone(),
                    xids,
                    pci: pci.clone(),
                    kubelet: self.allocation.clone(),
                };
                let (ledger, next) = ledger.after(&world, self.settings.rules, now);
                self.ledger = ledger;
                next
            }
            Outcome::Failed(error) => {
                self.ledger = ledger.unread(&error.to_string(), now);
                Next::InTurn
            }
            Outcome::Hung => {
                self.ledger = ledger.unread("a call of the driver doesn't come back", now);
                Next::InTurn
            }
        }
    }

    /// Writes what changed.
    async fn tell(&mut self, outcome: &Outcome, pci: &Witness<Vec<PciGpu>>) {
        let found = match outcome {
            Outcome::Read(reading) => self.intruders_in(reading),
            Outcome::Failed(_) | Outcome::Hung => Witness::Absent,
        };
        let known = Known {
            outcome,
            ledger: &self.ledger,
            pci: &pci.clone().map(|_| ()),
            kubelet: &self.allocation,
            intruders: &found,
            generation: self.publisher.generation(),
        };
        let now = clock::now();
        self.status = status::status(&self.status, &known, clock::second(now));
        // Without what an earlier life knew, a fault might be overwritten with health.
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

    fn intruders_in(&mut self, reading: &Reading) -> Witness<Vec<String>> {
        let pods = processes::pods(&self.settings.pod_logs);
        let proc: &Path = &self.settings.proc;
        let owner = |pid| pods.clone().map(|pods| processes::owner(proc, &pods, pid));
        match intruders(reading.gpus(), &self.allocation, owner) {
            Witness::Says(seen) => {
                self.intruders = std::mem::take(&mut self.intruders).after(seen);
                Witness::Says(self.intruders.confirmed().to_vec())
            }
            other => other,
        }
    }

    /// Reads what the server has: at the start what an earlier life knew, later whether somebody removed it.
    async fn refresh(&mut self) {
        if self.refreshed.is_some_and(|at| at.elapsed() < REFRESH) {
            return;
        }
        let first = self.refreshed.is_none();
        match self.publisher.refresh().await {
            Ok(had) => {
                self.refreshed = Some(Instant::now());
                if first {
                    let booted = clock::booted(&self.settings.proc);
                    self.ledger = Ledger::restored(status::records(&had), booted);
                    self.status = had;
                }
            }
            Err(error) => self.report(Err(error)),
        }
    }

    /// Says a trouble once, and that it is over.
    fn report(&mut self, told: anyhow::Result<()>) {
        match told {
            Ok(()) => {
                self.ready.set();
                if self.trouble.take().is_some() {
                    tracing::info!("the API server takes the agent's writes again");
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                self.ready.clear(text.clone());
                if self.trouble.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = text,
                        "what the agent knows can't be written; it goes on and tries again"
                    );
                    self.trouble = Some(text);
                }
            }
        }
    }
}

fn log_xids(xids: &[XidEvent]) {
    for XidEvent { uuid, xid } in xids {
        match severity(*xid) {
            Severity::Fatal(meaning) => tracing::error!(gpu = uuid, xid, meaning, "fatal Xid"),
            Severity::Passing => tracing::info!(gpu = uuid, xid, "Xid that the GPU survives"),
        }
    }
}
