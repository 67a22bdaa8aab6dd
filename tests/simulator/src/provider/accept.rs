//! A process of a provider's operator over allocations, in the order of `operator/src/provider/intake.rs`.

use std::sync::Arc;

use leasehold_crds::{
    GpuAllocation, GpuReservation, market::allocation::Acceptance, provider::reservation::GpuReservationSpec,
};
use leasehold_planner::provider::allocation::accept::{self, PoolSeen, World};

use crate::{
    Sim,
    api::{ApiError, Key},
    reconcile::{Task, Who},
    provider::{ProviderPass, held, sign, version},
    sim::Event,
};

pub(crate) struct IntakePass {
    key: Key,
    read: Arc<GpuAllocation>,
    before: Option<Arc<GpuReservation>>,
    plan: accept::Plan,
    holds_turn: bool,
    reserved: bool,
}

impl Sim {
    pub(crate) fn begin_intake(&mut self, s: usize, p: usize, key: Key) {
        let who = Who::Provider(s, p);
        let task = Task::Intake(key.clone());
        let site = &self.sites[s];
        let process = &site.processes[p];
        let Some(read) = process.allocations.get(&key).cloned() else {
            return;
        };
        let own: Key = (String::new(), key.1.clone());
        let mut before = process.reservation_store.get(&own).cloned();
        let holds_turn = before.is_none();
        if holds_turn && process.reserving {
            self.ended(who, &task, Some(20));
            return;
        }
        let fresh: Vec<Arc<GpuReservation>> = if holds_turn {
            if self.weather.sites_down.contains(&s) {
                self.ended(who, &task, Some(ApiError::Unreachable.retry_ms()));
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
            money: Some((self.money, 6)),
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
        let pass = IntakePass {
            key,
            read,
            before,
            plan,
            holds_turn,
            reserved: false,
        };
        let process = &mut self.sites[s].processes[p];
        process.reserving |= holds_turn;
        let life = process.life;
        let id = process.desk.begin(task, ProviderPass::Intake(Box::new(pass)));
        self.at(3, Event::Continue(who, life, id));
    }

    pub(crate) fn go_on_intake(
        &mut self,
        s: usize,
        p: usize,
        id: u64,
        task: Task,
        mut pass: Box<IntakePass>,
    ) {
        let who = Who::Provider(s, p);
        if !pass.reserved {
            pass.reserved = true;
            if let Some(spec) = pass.plan.reserve.clone()
                && let Err(error) = self.reserve(s, &pass, *spec)
            {
                self.end_intake(s, p, &pass, &task, error.retry_ms());
                return;
            }
            let slow = self.random.between(1, self.weather.write_ms);
            let process = &mut self.sites[s].processes[p];
            let life = process.life;
            process.desk.put_back(id, task, ProviderPass::Intake(pass));
            self.at(slow, Event::Continue(who, life, id));
            return;
        }
        let mut status = pass.plan.status.clone();
        if let Some(message) = &pass.plan.accept {
            status.acceptance = Some(Acceptance {
                not_after: i64::try_from(message.not_after).unwrap_or(i64::MAX),
                deadline: i64::try_from(message.deadline).unwrap_or(i64::MAX),
                signature: sign(self.sites[s].identity.controller, message),
            });
        }
        let mut again = 120_000;
        if pass.read.status.as_ref() != Some(&status) {
            let (phase, declined) = (status.phase, status.declined.as_ref().map(|d| d.reason.clone()));
            let written = if self.weather.cut_from_market.contains(&s) {
                Err(ApiError::Unreachable)
            } else {
                self.market_write(|sim| sim.allocations.set_status(&pass.read, &pass.key, status))
            };
            let error = written.as_ref().err().copied();
            if error.is_some() || pass.read.status.as_ref().map(|s| s.phase) != Some(phase) {
                self.note(|| format!("allocation {} is {phase:?} {declined:?}: {error:?}", pass.key.1));
            }
            if let Some(error) = error.filter(|e| *e != ApiError::NotFound) {
                again = error.retry_ms();
            }
        }
        self.end_intake(s, p, &pass, &task, again);
    }

    fn end_intake(&mut self, s: usize, p: usize, pass: &IntakePass, task: &Task, again: u64) {
        if pass.holds_turn {
            self.sites[s].processes[p].reserving = false;
        }
        self.ended(Who::Provider(s, p), task, Some(again));
    }

    fn reserve(&mut self, s: usize, pass: &IntakePass, spec: GpuReservationSpec) -> Result<(), ApiError> {
        let name = &pass.key.1;
        let nodes = spec.nodes.join(", ");
        let mut object = GpuReservation::new(name, spec);
        object.metadata.finalizers = Some(held());
        object.metadata.resource_version = version(pass.before.as_ref());
        let key = (String::new(), name.clone());
        let done = self.own_write(s, |sim| sim.sites[s].reservations.apply(&key, &object).map(drop));
        let release = object.spec.release;
        self.note(|| format!("reserves {name} on {nodes}, release {release}: {done:?}"));
        done
    }
}
