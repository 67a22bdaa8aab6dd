//! A process of the market's operator over allocations that may go, as `operator/src/market/allocations.rs`.

use std::sync::Arc;

use kube::ResourceExt as _;
use leasehold_crds::GpuAllocation;
use leasehold_planner::market::{
    allocation::release::{self, Plan},
    lease::trim_allocation,
};

use crate::{
    Sim,
    api::Key,
    market::{MarketPass, gone_is_fine},
    reconcile::{Task, Who},
    sim::Event,
};

pub(crate) struct LettingGo {
    key: Key,
    read: Arc<GpuAllocation>,
    deletes: bool,
}

impl Sim {
    pub(crate) fn begin_letting_go(&mut self, m: usize, key: Key) {
        let who = Who::Market(m);
        let task = Task::LettingGo(key.clone());
        let process = &self.markets[m];
        let Some(mut read) = process.allocations.get(&key).cloned() else {
            return;
        };
        trim_allocation(Arc::make_mut(&mut read));
        let named = (read.spec.lease.namespace.clone(), read.spec.lease.name.clone());
        let lease = process.lease_store.get(&named).cloned();
        let now = self.clock(process.offset_ms);
        match release::decide(&read, lease.as_deref(), now) {
            Plan::Keep { seconds } => self.ended(who, &task, Some(seconds * 1000)),
            Plan::Remove => {
                self.note(|| format!("{} may go", key.1));
                let pass = LettingGo {
                    key,
                    read,
                    deletes: false,
                };
                let process = &mut self.markets[m];
                let life = process.life;
                let id = process.desk.begin(task, MarketPass::LettingGo(pass));
                self.at(2, Event::Continue(who, life, id));
            }
        }
    }

    pub(crate) fn go_on_letting_go(&mut self, m: usize, id: u64, task: Task, mut pass: LettingGo) {
        let who = Who::Market(m);
        let now = self.clock(0);
        if pass.deletes {
            let done = if pass.read.metadata.deletion_timestamp.is_none() {
                gone_is_fine(self.market_write(|sim| sim.allocations.delete(&pass.key, now)))
            } else {
                Ok(())
            };
            self.ended(who, &task, done.err().map(|e| e.retry_ms()));
            return;
        }
        if !pass.read.finalizers().is_empty() {
            let version = pass.read.resource_version();
            let taken = self.market_write(|sim| {
                sim.allocations
                    .set_finalizers(&pass.key, version.as_deref(), Vec::new())
            });
            if let Err(error) = taken {
                self.ended(who, &task, Some(error.retry_ms()));
                return;
            }
        }
        pass.deletes = true;
        let life = self.markets[m].life;
        self.markets[m]
            .desk
            .put_back(id, task, MarketPass::LettingGo(pass));
        self.at(2, Event::Continue(who, life, id));
    }
}
