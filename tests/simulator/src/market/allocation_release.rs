//! The market's controller for allocations that may be released, in the operator's order.

use std::sync::Arc;

use kube::ResourceExt as _;
use leasehold_crds::GpuAllocation;
use leasehold_planner::{
    market::allocation::release::{self, Plan},
    market::lease::trim_allocation,
};

use crate::{
    Sim,
    api::Key,
    market::{MarketReconcile, ignore_not_found},
    reconcile::{ProcessId, Task},
    sim::Event,
};

pub(crate) struct AllocationRelease {
    key: Key,
    read: Arc<GpuAllocation>,
    deletes: bool,
}

impl Sim {
    pub(crate) fn begin_allocation_release(&mut self, m: usize, key: Key) {
        let who = ProcessId::Market(m);
        let task = Task::AllocationRelease(key.clone());
        let process = &self.markets[m];
        let Some(mut read) = process.allocations.get(&key).cloned() else {
            return;
        };
        trim_allocation(Arc::make_mut(&mut read));
        let named = (read.spec.lease.namespace.clone(), read.spec.lease.name.clone());
        let lease = process.lease_store.get(&named).cloned();
        let now = self.clock(process.offset_ms);
        match release::decide(&read, lease.as_deref(), now) {
            Plan::Keep { seconds } => self.finish(who, &task, Some(seconds * 1000)),
            Plan::Remove => {
                self.note(|| format!("{} may be deleted", key.1));
                let run = AllocationRelease {
                    key,
                    read,
                    deletes: false,
                };
                let process = &mut self.markets[m];
                let restarts = process.restarts;
                let id = process.queue.begin(task, MarketReconcile::AllocationRelease(run));
                self.at(2, Event::Continue(who, restarts, id));
            }
        }
    }

    pub(crate) fn resume_allocation_release(
        &mut self,
        m: usize,
        id: u64,
        task: Task,
        mut run: AllocationRelease,
    ) {
        let who = ProcessId::Market(m);
        let now = self.clock(0);
        if run.deletes {
            let done = if run.read.metadata.deletion_timestamp.is_none() {
                ignore_not_found(self.market_write(|sim| sim.allocations.delete(&run.key, now)))
            } else {
                Ok(())
            };
            self.finish(who, &task, done.err().map(|e| e.retry_ms()));
            return;
        }
        if !run.read.finalizers().is_empty() {
            let version = run.read.resource_version();
            let taken = self.market_write(|sim| {
                sim.allocations
                    .set_finalizers(&run.key, version.as_deref(), Vec::new())
            });
            if let Err(error) = taken {
                self.finish(who, &task, Some(error.retry_ms()));
                return;
            }
        }
        run.deletes = true;
        let restarts = self.markets[m].restarts;
        self.markets[m]
            .queue
            .put_back(id, task, MarketReconcile::AllocationRelease(run));
        self.at(2, Event::Continue(who, restarts, id));
    }
}
