//! Clears namespaces that belong to no reservation.

use std::collections::BTreeSet;

use leasehold_planner::{
    escrow::lease_name,
    observed::Observed,
    orphans::{self, Verdict},
    ports::Opened,
};

use crate::{Sim, reconcile::ProcessId, rpc::Reader};

impl Sim {
    /// Deletes namespaces without a reservation, once two searches agree.
    pub(crate) fn clear_orphans(&mut self, s: usize, p: usize) {
        let process = &self.sites[s].processes[p];
        let named: BTreeSet<&String> = process.reservation_store.all().map(|(key, _)| &key.1).collect();
        let nobodys: Vec<String> = process
            .namespaces
            .iter()
            .filter(|(name, leaving)| !**leaving && !named.contains(name))
            .map(|(name, _)| name.clone())
            .collect();
        let found = nobodys.into_iter().map(|name| {
            let verdict = self.orphan_verdict(s, p, &name);
            (name, verdict)
        });
        let found = found.collect();
        let agreed = self.sites[s].processes[p].suspects.agreed(found);
        for name in agreed.into_keys() {
            let key = (String::new(), name);
            let deleted = self.own_write(s, |sim| {
                let site = &mut sim.sites[s];
                if site.reservations.get(&key).is_none() {
                    site.cluster.release_pods(&key.1);
                    site.cluster.delete_namespace(&key.1);
                }
                Ok(())
            });
            if deleted.is_ok() {
                self.invariants.count("orphaned namespace deleted".into());
                self.note(|| format!("deletes the orphaned namespace {}", key.1));
            }
        }
    }

    /// Decides by the account of the namespace. If it cannot be read, the namespace is kept.
    fn orphan_verdict(&mut self, s: usize, p: usize, name: &str) -> Verdict {
        let (mut reader, who) = (Reader::default(), ProcessId::Provider(s, p));
        if self.read_head(&mut reader, who).known().is_none() {
            return Verdict::Leave;
        }
        let until = self.chain.newest().head.number;
        let named = |o: &&Opened| name.starts_with(&lease_name(o.terms.id()));
        let terms = self.chain.opened(until).find(named).map(|o| o.terms.clone());
        let Some(terms) = terms else {
            return Verdict::Over;
        };
        let read = self.read_account(&mut reader, who, &terms);
        match read {
            Observed::Known(at) if self.is_confirmed(&mut reader, who, &terms, &at) => {
                orphans::assess(&terms, &at.read)
            }
            Observed::Known(_) | Observed::Unknown(_) => Verdict::Leave,
        }
    }
}
