//! Closes accounts that belong to no lease.

use std::collections::BTreeMap;

use leasehold_chain::machine::Action;
use leasehold_planner::{
    observed::Observed,
    orphans::{Claims, over_for_good},
};

use crate::{Sim, reconcile::ProcessId, rpc::Reader};

impl Sim {
    /// One pass of the search for accounts without a lease.
    pub(crate) fn close_orphans(&mut self, m: usize) {
        let (mut reader, who) = (Reader::default(), ProcessId::Market(m));
        let Observed::Known(head) = self.read_head(&mut reader, who) else {
            return;
        };
        let now = self.clock(self.markets[m].offset_ms);
        let own = (self.currency.token, self.closer);
        let opened = self.chain.opened(head.number).map(|o| o.terms.clone());
        let process = &mut self.markets[m];
        process.index.extend(&self.secret, opened);
        let claims = Claims::of(self.market_id, process.lease_store.all().map(|(_, l)| &**l));
        let next = process.sweep.next(process.index.unclaimed(&claims), own);
        let (mut read, mut answers) = (Vec::new(), BTreeMap::new());
        for terms in next {
            match self.read_account(&mut reader, who, &terms) {
                Observed::Known(at) => {
                    read.push((terms.clone(), at.read.clone()));
                    answers.insert(terms.id(), at);
                }
                Observed::Unknown(_) => return,
            }
        }
        let agreed = self.markets[m].sweep.agreed(read, 6, now);
        if agreed.is_empty() || !self.faults.market_up {
            return;
        }
        let claims = Claims::of(self.market_id, self.leases.all().map(|(_, l)| &**l));
        let plan = self.markets[m].sweep.plan(agreed, &claims);
        for terms in &plan.forget {
            let reads = self.final_reads(&mut reader, who, terms);
            let reads: Vec<_> = reads.iter().filter_map(Observed::known).collect();
            let reads: Vec<_> = reads.into_iter().map(|at| vec![at.clone()]).collect();
            let over = over_for_good(std::slice::from_ref(terms), &reads);
            self.markets[m].index.forget(&over);
        }
        for (terms, payouts) in plan.close {
            let at = &answers[&terms.id()];
            if !self.is_confirmed(&mut reader, who, &terms, at) {
                continue;
            }
            self.market_sweeps(&terms);
            let id = terms.id();
            let (sent, _) = self.send(who, self.closer, Action::Close { terms, payouts });
            if sent.is_err() {
                self.markets[m].sweep.failed(id, now);
            }
        }
    }
}
