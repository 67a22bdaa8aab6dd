//! When each lease was first quoted, reserved and Active, from watches.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use kube::{
    Api, Client, ResourceExt as _,
    api::ListParams,
    runtime::watcher::{self, Event},
};
use leasehold_crds::{GpuLease, GpuReservation, lease::Phase};
use leasehold_e2e::Stack;

use super::as_float;

/// Number of leases that did not become Active to report individually.
const LEFT_BEHIND_MAX: usize = 8;

#[derive(Clone, Copy, Default)]
struct LeaseTimes {
    seen: Option<Instant>,
    quoted: Option<Instant>,
    reserved: Option<Instant>,
    active: Option<Instant>,
}

type Table = Arc<Mutex<HashMap<String, LeaseTimes>>>;

/// What was seen of the leases so far.
pub(super) struct LeaseProgress {
    table: Table,
    watches: [tokio::task::JoinHandle<()>; 2],
}

/// Results for all leases.
pub(super) struct Reached {
    pub(super) reserved: usize,
    pub(super) active: usize,
    /// Seconds from the first sight to Active, of each lease that became Active.
    pub(super) seconds_to_active: Vec<f64>,
    matching: Duration,
    serving: Duration,
}

impl Reached {
    /// Rate from the first quote to the last reservation.
    pub(super) fn matched_per_second(&self) -> f64 {
        as_float(self.reserved) / self.matching.as_secs_f64().max(1e-3)
    }

    /// Rate from the first lease to the last that became Active.
    pub(super) fn active_per_second(&self) -> f64 {
        as_float(self.active) / self.serving.as_secs_f64().max(1e-3)
    }
}

impl LeaseProgress {
    /// Starts the watches.
    pub(super) fn watch(stack: &Stack) -> Self {
        let table = Table::default();
        let leases = {
            let (api, table) = (Api::<GpuLease>::all(stack.client.clone()), table.clone());
            tokio::spawn(async move {
                let mut events = pin!(watcher::watcher(api, watcher::Config::default()));
                while let Some(event) = events.next().await {
                    if let Ok(Event::Apply(lease) | Event::InitApply(lease)) = event {
                        note_lease(&table, &lease);
                    }
                }
            })
        };
        let reservations = {
            let (api, table) = (Api::<GpuReservation>::all(stack.client.clone()), table.clone());
            tokio::spawn(async move {
                let mut events = pin!(watcher::watcher(api, watcher::Config::default()));
                while let Some(event) = events.next().await {
                    if let Ok(Event::Apply(r) | Event::InitApply(r)) = event {
                        let of = &r.spec.allocation.lease;
                        note(&table, &of.namespace, &of.name, |times, now| {
                            times.reserved.get_or_insert(now);
                        });
                    }
                }
            })
        };
        Self {
            table,
            watches: [leases, reservations],
        }
    }

    /// Waits until that many are Active, or until there is no more progress.
    pub(super) async fn until_active(
        self,
        leases: usize,
        deadline: Instant,
        standstill: Duration,
        report: impl Fn(&str),
    ) -> Reached {
        let begun = Instant::now();
        let (mut best, mut moved, mut said) = (0, Instant::now(), Instant::now());
        loop {
            let reached = self.reached();
            // Leases that are funded late become Active late, so reservations count as progress too.
            if reached.active + reached.reserved > best {
                (best, moved) = (reached.active + reached.reserved, Instant::now());
            }
            if reached.active >= leases || moved.elapsed() > standstill || Instant::now() > deadline {
                for watch in &self.watches {
                    watch.abort();
                }
                return reached;
            }
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                report(&format!(
                    "{:>5.0} s: {} reserved, {} Active",
                    begun.elapsed().as_secs_f64(),
                    reached.reserved,
                    reached.active
                ));
            }
            // The watches note when each lease becomes Active.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn reached(&self) -> Reached {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let all = || table.values();
        let span = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to)
                .map_or(Duration::ZERO, |(from, to)| to.saturating_duration_since(from))
        };
        Reached {
            reserved: all().filter(|l| l.reserved.is_some()).count(),
            active: all().filter(|l| l.active.is_some()).count(),
            seconds_to_active: all()
                .filter_map(|l| Some((l.active? - l.seen?).as_secs_f64()))
                .collect(),
            matching: span(
                all().filter_map(|l| l.quoted).min(),
                all().filter_map(|l| l.reserved).max(),
            ),
            serving: span(
                all().filter_map(|l| l.seen).min(),
                all().filter_map(|l| l.active).max(),
            ),
        }
    }
}

/// Describes some of the leases that are not Active; those that are only queued come last.
pub(super) async fn not_active(client: &Client) -> anyhow::Result<Vec<String>> {
    let leases = Api::<GpuLease>::all(client.clone());
    let leases = leases.list(&ListParams::default()).await?;
    let lines = leases.iter().filter_map(|lease| {
        let status = lease.status.clone().unwrap_or_default();
        if status.phase == Phase::Active {
            return None;
        }
        let namespace = lease.namespace().unwrap_or_default();
        let mut line = format!("{namespace}/{} is {:?}", lease.name_any(), status.phase);
        for condition in status.conditions.iter().filter(|c| c.status != "True") {
            let (reason, message) = (&condition.reason, &condition.message);
            line.push_str(&format!("; {} {reason} {message}", condition.type_));
        }
        Some((status.phase == Phase::Pending, line))
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort_by_key(|(queued, _)| *queued);
    lines.truncate(LEFT_BEHIND_MAX);
    Ok(lines.into_iter().map(|(_, lines)| lines).collect())
}

fn note(table: &Table, namespace: &str, name: &str, change: impl FnOnce(&mut LeaseTimes, Instant)) {
    let now = Instant::now();
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let times = table.entry(format!("{namespace}/{name}")).or_default();
    times.seen.get_or_insert(now);
    change(times, now);
}

fn note_lease(table: &Table, lease: &GpuLease) {
    let status = lease.status.as_ref();
    let namespace = lease.namespace().unwrap_or_default();
    note(table, &namespace, &lease.name_any(), |times, now| {
        if status.is_some_and(|s| s.quote.is_some()) {
            times.quoted.get_or_insert(now);
        }
        if status.is_some_and(|s| s.phase == Phase::Active) {
            times.active.get_or_insert(now);
        }
    });
}
