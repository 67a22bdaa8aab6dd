//! The provider's allocation controller, in the operator's order.

use std::sync::Arc;

use leasehold_crds::{
    GpuAllocation, GpuReservation, market::allocation::Acceptance, provider::reservation::GpuReservationSpec,
};
use leasehold_planner::provider::allocation::accept::{self, PoolSeen, World};

use crate::{
    Sim,
    api::{ApiError, Key},
    provider::{ProviderReconcile, held, sign, version},
    reconcile::{ProcessId, Task},
    sim::Event,
};

pub(crate) struct AllocationReconcile {
    key: Key,
    read: Arc<GpuAllocation>,
    before: Option<Arc<GpuReservation>>,
    plan: accept::Plan,
    holds_turn: bool,
    reserved: bool,
}

impl Sim {
    pub(crate) fn begin_allocation(&mut self, s: usize, p: usize, key: Key) {
        let who = ProcessId::Provider(s, p);
        let task = Task::Allocation(key.clone());
        let site = &self.sites[s];
        let process = &site.processes[p];
        let Some(read) = process.allocations.get(&key).cloned() else {
            return;
        };
        let own: Key = (String::new(), key.1.clone());
        let mut before = process.reservation_store.get(&own).cloned();
        let holds_turn = before.is_none();
        if holds_turn && process.reserving {
            self.finish(who, &task, Some(20));
            return;
        }
        let fresh: Vec<Arc<GpuReservation>> = if holds_turn {
            if self.faults.sites_down.contains(&s) {
                self.finish(who, &task, Some(ApiError::Unreachable.retry_ms()));
                return;
            }
            site.reservations.all().map(|(_, r)| r.clone()).collect()
        } else {
            Vec::new()
        };
        if before.is_none() {
            before = fresh
                .iter()
                .find(|r| r.metadata.name.as_ref() == Some(&key.1))
                .cloned();
        }
        let now = self.clock(process.offset_ms);
        let supply = if before.is_none() {
            self.supply_of(s, p, &fresh, now)
        } else {
            leasehold_planner::provider::offer::supply::PoolSupply::default()
        };
        let site = &self.sites[s];
        let pool = (site.pool.metadata.name.as_ref() == Some(&read.spec.pool)).then_some(PoolSeen {
            pool: &site.pool,
            supply: &supply,
            currency: Some((self.currency, 6)),
        });
        let plan = accept::decide(
            &World {
                allocation: &read,
                reservation: before.as_deref(),
                pool,
                identity: &site.identity,
            },
            now,
        );
        let run = AllocationReconcile {
            key,
            read,
            before,
            plan,
            holds_turn,
            reserved: false,
        };
        let process = &mut self.sites[s].processes[p];
        process.reserving |= holds_turn;
        let restarts = process.restarts;
        let id = process
            .queue
            .begin(task, ProviderReconcile::Allocation(Box::new(run)));
        self.at(3, Event::Continue(who, restarts, id));
    }

    pub(crate) fn resume_allocation(
        &mut self,
        s: usize,
        p: usize,
        id: u64,
        task: Task,
        mut run: Box<AllocationReconcile>,
    ) {
        let who = ProcessId::Provider(s, p);
        if !run.reserved {
            run.reserved = true;
            if let Some(spec) = run.plan.reserve.clone()
                && let Err(error) = self.reserve(s, &run, *spec)
            {
                self.finish_allocation(s, p, &run, &task, error.retry_ms());
                return;
            }
            let slow = self.random.between(1, self.faults.write_ms);
            let process = &mut self.sites[s].processes[p];
            let restarts = process.restarts;
            process
                .queue
                .put_back(id, task, ProviderReconcile::Allocation(run));
            self.at(slow, Event::Continue(who, restarts, id));
            return;
        }
        let mut status = run.plan.status.clone();
        if let Some(message) = &run.plan.accept {
            status.acceptance = Some(Acceptance {
                not_after: i64::try_from(message.not_after).unwrap_or(i64::MAX),
                deadline: i64::try_from(message.deadline).unwrap_or(i64::MAX),
                signature: sign(self.sites[s].identity.controller, message),
            });
        }
        let mut again = 120_000;
        if run.read.status.as_ref() != Some(&status) {
            let (phase, declined) = (status.phase, status.declined.as_ref().map(|d| d.reason.clone()));
            let written = if self.faults.cut_from_market.contains(&s) {
                Err(ApiError::Unreachable)
            } else {
                self.market_write(|sim| sim.allocations.set_status(&run.read, &run.key, status))
            };
            let error = written.as_ref().err().copied();
            if error.is_some() || run.read.status.as_ref().map(|s| s.phase) != Some(phase) {
                self.note(|| format!("allocation {} is {phase:?} {declined:?}: {error:?}", run.key.1));
            }
            if let Some(error) = error.filter(|e| *e != ApiError::NotFound) {
                again = error.retry_ms();
            }
        }
        self.finish_allocation(s, p, &run, &task, again);
    }

    fn finish_allocation(&mut self, s: usize, p: usize, run: &AllocationReconcile, task: &Task, again: u64) {
        if run.holds_turn {
            self.sites[s].processes[p].reserving = false;
        }
        self.finish(ProcessId::Provider(s, p), task, Some(again));
    }

    fn reserve(
        &mut self,
        s: usize,
        run: &AllocationReconcile,
        spec: GpuReservationSpec,
    ) -> Result<(), ApiError> {
        let name = &run.key.1;
        let nodes = spec.nodes.join(", ");
        let mut object = GpuReservation::new(name, spec);
        object.metadata.finalizers = Some(held());
        object.metadata.resource_version = version(run.before.as_ref());
        let key = (String::new(), name.clone());
        let done = self.own_write(s, |sim| sim.sites[s].reservations.apply(&key, &object).map(drop));
        let release = object.spec.release;
        self.note(|| format!("reserves {name} on {nodes}, release {release}: {done:?}"));
        done
    }
}
