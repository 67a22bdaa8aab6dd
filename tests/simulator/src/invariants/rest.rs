//! The end of a run: nothing is left of any lease, and nothing more is planned.

use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_planner::escrow::{Account, Terms, lease_name};

use crate::{Sim, api::Key};

impl Sim {
    /// Describes what remains of leases; `None` if nothing does.
    pub(crate) fn remaining(&self) -> Option<String> {
        let closed = |l: &GpuLease| {
            l.metadata.deletion_timestamp.is_none()
                && l.status.as_ref().is_some_and(|s| s.phase == Phase::Closed)
        };
        if let Some((key, lease)) = self.leases.all().find(|(_, l)| !closed(l)) {
            let s = lease.status.clone().unwrap_or_default();
            return Some(format!(
                "lease {}: {:?}, {:?}, intent {:?}, deleting {}",
                key.1,
                s.phase,
                s.close_reason,
                s.intent,
                lease.metadata.deletion_timestamp.is_some()
            ));
        }
        if let Some((key, a)) = self.allocations.all().next() {
            let s = a.status.clone().unwrap_or_default();
            return Some(format!(
                "allocation {}: {:?}, stopped {:?}, release {}",
                key.1, s.phase, s.stopped_at, a.spec.release
            ));
        }
        for s in 0..self.sites.len() {
            if let Some((key, r)) = self.reservations(s).first() {
                let status = r.status.clone().unwrap_or_default();
                return Some(format!(
                    "reservation {}: {:?}, {:?}, intent {:?}",
                    key.1, status.phase, status.stop_reason, status.intent
                ));
            }
            let cluster = &self.sites[s].cluster;
            if let Some(name) = cluster.namespaces.keys().next() {
                return Some(format!("namespace {name}"));
            }
            if let Some(pod) = cluster.pods.first() {
                return Some(format!("pod in {}", pod.namespace));
            }
        }
        let until = self.chain.newest().head.number;
        self.chain.opened(until).find_map(|o| {
            let read = self.chain.account(&o.terms);
            let account = read.present()?;
            let owed = self.owed(&o.terms, account);
            (!account.closed || owed > 0).then(|| {
                format!(
                    "account {}: closed {}, {owed} owed",
                    lease_name(o.terms.id()),
                    account.closed
                )
            })
        })
    }

    /// What legs have earned and a provider still has to withdraw. A provider that has lost a reservation withdraws nothing if
    /// the payer closes the account: its payee can.
    fn owed(&self, terms: &Terms, account: &Account) -> u128 {
        let is_lost = self.invariants.removed_forcibly.contains(&terms.id().to_string());
        let owed = account.legs.iter().map(|l| l.owed.0).sum();
        if is_lost { 0 } else { owed }
    }

    /// What legs have earned that no provider withdraws.
    fn lost(&self) -> u128 {
        let until = self.chain.newest().head.number;
        let of = |terms: &Terms| {
            let read = self.chain.account(terms);
            let account = read.present()?;
            let all: u128 = account.legs.iter().map(|l| l.owed.0).sum();
            Some(all - self.owed(terms, account))
        };
        self.chain.opened(until).filter_map(|o| of(&o.terms)).sum()
    }

    /// After a run, all deposits are paid out or refunded, and no controller plans anything more.
    pub(crate) fn check_at_rest(&mut self) -> Result<(), String> {
        let block = self.chain.newest();
        let token = self.currency.token;
        let held = block.machine.held(token);
        let payees = self.sites.iter().map(|s| s.identity.payee);
        let credited: u128 = payees.map(|payee| block.machine.credit(token, payee).0).sum();
        if credited > 0 {
            self.invariants.count("payee blocked by the token".into());
        }
        let lost = self.lost();
        if held.0 != credited + lost {
            return Err(format!(
                "M1: {held} remain in the escrow, {credited} are credited, and {lost} are left to payees"
            ));
        }
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some((read, plan)) = self.plan_lease(0, &key) {
                let quiet = plan.call.is_none() && plan.allocations.is_empty() && plan.finalizer.is_none();
                if !quiet || read.status.as_ref() != Some(&plan.status) {
                    return Err(format!(
                        "U8: {} is closed, but a further reconcile plans {plan:?}",
                        key.1
                    ));
                }
            }
        }
        Ok(())
    }
}
