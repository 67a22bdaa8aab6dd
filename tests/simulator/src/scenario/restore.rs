//! The market's etcd is restored from a backup.

use leasehold_crds::GpuLease;

use crate::{Sim, api::Key, reconcile::ProcessId, sim::Event};

/// Backups are made, and one may be restored, at this interval.
const PERIOD_MS: u64 = 10_000;
/// Number of backups that are kept.
const BACKUPS_MAX: usize = 90;

/// Lengths of the logs of leases and of allocations at the time of a backup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backup {
    leases: usize,
    allocations: usize,
}

impl Sim {
    /// Makes a backup. Cuts providers off the market for a while, so that rounds lapse. Restores a backup in which a lease
    /// whose account is open now had not begun the round before. Returns the time until the next backup.
    pub(crate) fn restore_etcd(&mut self) -> u64 {
        self.backups.push_back(Backup {
            leases: self.leases.log().len(),
            allocations: self.allocations.log().len(),
        });
        if self.backups.len() > BACKUPS_MAX {
            self.backups.pop_front();
        }
        match self.random.below(20) {
            0 => self.faults.cut_from_market.extend(0..self.sites.len()),
            1..4 => self.faults.cut_from_market.clear(),
            4..14 => {
                if let Some(backup) = self.provoking_backup() {
                    self.restore(backup);
                }
            }
            _ => {}
        }
        PERIOD_MS
    }

    /// The newest backup in which a lease was two rounds behind its account.
    fn provoking_backup(&self) -> Option<Backup> {
        let is_paid = |lease: &GpuLease| lease.status.as_ref().is_some_and(|s| s.phase.is_paid());
        let paid: Vec<_> = self.leases.all().filter(|(_, lease)| is_paid(lease)).collect();
        let round = |lease: &GpuLease| lease.status.as_ref().map_or(0, |s| s.round);
        let mut backups = self.backups.iter().rev();
        let provokes = |backup: &&Backup| {
            paid.iter().any(|(key, now)| {
                let then = self.leases.get_at(key, backup.leases);
                then.is_some_and(|then| {
                    then.metadata.uid == now.metadata.uid
                        && then.status.as_ref().is_some_and(|s| s.phase.is_unpaid())
                        && round(&then) + 1 < round(now)
                })
            })
        };
        backups.find(provokes).copied()
    }

    /// Restores the leases that existed then and still do, with their allocations. The market's process restarts.
    fn restore(&mut self, backup: Backup) {
        self.note(|| "the market's etcd is restored from a backup".into());
        self.invariants.count("etcd restored".into());
        self.kill(ProcessId::Market(0));
        self.kill(ProcessId::Market(1));
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        for key in keys {
            let now = self.leases.get(&key).and_then(|lease| lease.metadata.uid.clone());
            let then = self.leases.get_at(&key, backup.leases);
            let Some(then) = then.filter(|then| then.metadata.uid == now) else {
                continue;
            };
            self.invariants.restored.insert(self.leases.log().len());
            self.leases.restore(&key, Some(then));
            self.restore_allocations(now.as_deref().unwrap_or_default(), backup);
        }
        self.at(1_000, Event::Start(ProcessId::Market(0)));
    }

    fn restore_allocations(&mut self, lease_uid: &str, backup: Backup) {
        let log = self
            .allocations
            .log()
            .iter()
            .filter_map(|(key, a)| Some((key, a.as_ref()?)));
        let mut keys: Vec<Key> = log
            .filter(|(_, a)| a.spec.lease.uid == lease_uid)
            .map(|(key, _)| key.clone())
            .collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let then = self.allocations.get_at(&key, backup.allocations);
            self.allocations.restore(&key, then);
        }
    }
}
