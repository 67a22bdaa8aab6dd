//! The steps of one reconcile of a reservation: intent, workload, transaction, status, deletion.

use std::sync::Arc;

use kube::ResourceExt as _;
use leasehold_chain::machine::Action;
use leasehold_crds::{
    GpuReservation, market::allocation::AllocationPhase, provider::reservation::GpuReservationStatus,
};
use leasehold_planner::{
    escrow::{Hash, Terms},
    ports::PaymentError,
    provider::reservation::{self as planner, LegCall, Plan, PodChange, Workload},
};

use crate::{
    Sim,
    api::{ApiError, Key},
    cluster::PodSpec,
    market::until_ms,
    provider::{ProviderReconcile, version},
    reconcile::{ProcessId, Task},
    rpc::{MINE_DEADLINE_MS, Reader},
    sim::Event,
};

/// What was applied is applied again only after this time.
const REAPPLY_SECONDS: i64 = 10;

pub(crate) struct ReservationReconcile {
    key: Key,
    read: Arc<GpuReservation>,
    plan: Plan,
    status: GpuReservationStatus,
    /// Whether the namespace was seen.
    there: bool,
    /// Whether the status must be stored before the plan is carried out.
    must_persist_first: bool,
    stage: Stage,
    error: Option<ApiError>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Note,
    Workload,
    /// The objects are applied; the change of a pod with that number is next.
    Pods(usize),
    Call,
    Wait(u64, u64),
    Status,
    Finalizer,
    Delete,
}

impl Sim {
    pub(crate) fn begin_reservation(&mut self, s: usize, p: usize, key: Key) {
        let who = ProcessId::Provider(s, p);
        let Some(read) = self.sites[s].processes[p].reservations.get(&key).cloned() else {
            return;
        };
        let mut reader = Reader::default();
        let (plan, there) = self.plan_reservation(s, p, &read, &mut reader);
        let now = self.clock_after(self.sites[s].processes[p].offset_ms, reader.cost_ms);
        self.invariants.reservation_plan(&read, &plan, now);
        self.check_lost_nodes(s, &read, &plan);
        let must_persist_first = plan.must_persist_first(read.status.as_ref());
        let run = ReservationReconcile {
            must_persist_first,
            status: plan.status.clone(),
            plan,
            there,
            stage: if must_persist_first {
                Stage::Note
            } else {
                Stage::Workload
            },
            error: None,
            read,
            key: key.clone(),
        };
        let process = &mut self.sites[s].processes[p];
        let restarts = process.restarts;
        let id = process.queue.begin(
            Task::Reservation(key),
            ProviderReconcile::Reservation(Box::new(run)),
        );
        self.at(reader.cost_ms, Event::Continue(who, restarts, id));
    }

    pub(in crate::provider) fn resume_reservation(
        &mut self,
        s: usize,
        p: usize,
        id: u64,
        task: Task,
        mut run: Box<ReservationReconcile>,
    ) {
        let who = ProcessId::Provider(s, p);
        let next = match run.stage {
            Stage::Note => self
                .report_reservation(s, &mut run)
                .map(|_| Some((Stage::Workload, 1))),
            Stage::Workload => Ok(self.work(s, p, &mut run)),
            Stage::Pods(n) => Ok(self.change_pod(s, n, &mut run)),
            Stage::Call => Ok(self.call_for_leg(s, p, &mut run)),
            Stage::Wait(transaction, until) => Ok(self.wait_for_leg(s, p, &mut run, transaction, until)),
            Stage::Status if run.must_persist_first => Ok(None),
            Stage::Status => self.report_reservation(s, &mut run),
            Stage::Finalizer => self
                .own_write(s, |sim| {
                    sim.sites[s]
                        .reservations
                        .set_finalizers(&run.key, None, Vec::new())
                })
                .map_or_else(
                    |e| {
                        if e == ApiError::NotFound {
                            Ok(Some((Stage::Delete, 1)))
                        } else {
                            Err(e)
                        }
                    },
                    |_| Ok(Some((Stage::Delete, 1))),
                ),
            Stage::Delete => {
                let now = self.clock(0);
                let key = run.key.clone();
                self.note(|| format!("deletes reservation {}", key.1));
                match self.own_write(s, |sim| sim.sites[s].reservations.delete(&key, now)) {
                    Ok(()) | Err(ApiError::NotFound) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        };
        match next {
            Ok(Some((stage, after))) => {
                run.stage = stage;
                let slow = self.random.between(0, self.faults.write_ms);
                let process = &mut self.sites[s].processes[p];
                let restarts = process.restarts;
                process
                    .queue
                    .put_back(id, task, ProviderReconcile::Reservation(run));
                self.at(after + slow, Event::Continue(who, restarts, id));
            }
            Ok(None) => {
                let now = self.clock(self.sites[s].processes[p].offset_ms);
                let wake = until_ms(run.plan.wake, now).min(block_ms(&run.plan));
                let again = run.error.map_or(wake, |e| wake.min(e.retry_ms()));
                self.finish(who, &task, Some(again));
            }
            Err(error) => self.finish(who, &task, Some(error.retry_ms())),
        }
    }

    fn work(&mut self, s: usize, p: usize, run: &mut ReservationReconcile) -> Option<(Stage, u64)> {
        let name = run.key.1.clone();
        let now = self.clock(self.sites[s].processes[p].offset_ms).as_second();
        let next = Some((Stage::Call, 1));
        let process = &mut self.sites[s].processes[p];
        match &run.plan.workload {
            // No tenant of the simulation requests results.
            Workload::Keep | Workload::KeepResults(_) => next,
            Workload::Run { pods, .. } => {
                let creates = pods.iter().any(|c| matches!(c, PodChange::Create(_)));
                let recent = |at: i64| now - at < REAPPLY_SECONDS;
                if process
                    .applied
                    .get(&name)
                    .is_some_and(|at| run.there && !creates || recent(*at))
                {
                    return Some((Stage::Pods(0), 1));
                }
                let done = self.own_write(s, |sim| {
                    sim.sites[s].cluster.apply_namespace(&name);
                    Ok(())
                });
                if let Err(error) = done {
                    run.error = Some(error);
                    return next;
                }
                self.sites[s].processes[p].applied.insert(name, now);
                Some((Stage::Pods(0), 5))
            }
            Workload::Halt(_) => {
                process.applied.remove(&name);
                self.note(|| format!("halts {name}"));
                Some((Stage::Pods(0), 1))
            }
            Workload::Remove => {
                process.applied.remove(&name);
                if process.namespaces.get(&name) != Some(&true) {
                    self.note(|| format!("removes {name}"));
                    let done = self.own_write(s, |sim| {
                        sim.sites[s].cluster.release_pods(&name);
                        sim.sites[s].cluster.delete_namespace(&name);
                        Ok(())
                    });
                    run.error = done.err();
                }
                next
            }
        }
    }

    /// Creates or removes one pod, and goes on with the next.
    fn change_pod(&mut self, s: usize, n: usize, run: &mut ReservationReconcile) -> Option<(Stage, u64)> {
        let changes = match &run.plan.workload {
            Workload::Run { pods, .. } | Workload::Halt(pods) => pods.as_slice(),
            Workload::Keep | Workload::KeepResults(_) | Workload::Remove => &[],
        };
        let Some(change) = changes.get(n).cloned() else {
            return Some((Stage::Call, 1));
        };
        let done = match &change {
            PodChange::Create(pod) => {
                let site = &self.sites[s];
                if version(site.reservations.get(&run.key)) != run.read.resource_version() {
                    return Some((Stage::Call, 1));
                }
                self.create_pod(s, &run.read, &pod.name_any())
            }
            PodChange::Remove { uid, .. } => {
                let (id, now) = (uid.parse().unwrap_or_default(), self.now);
                self.own_write(s, |sim| {
                    let Sim { sites, random, .. } = sim;
                    sites[s].cluster.remove_pod(id, now, random);
                    Ok(())
                })
            }
        };
        if let Err(error) = done {
            run.error = Some(error);
            return Some((Stage::Call, 1));
        }
        Some((Stage::Pods(n + 1), 1))
    }

    fn create_pod(&mut self, s: usize, read: &GpuReservation, pod: &str) -> Result<(), ApiError> {
        let name = read.name_any();
        let spec = &read.spec.allocation;
        let is_job = spec.workload.job.is_some();
        let rank = pod.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut program = self.tenants.program(&spec.lease.uid, is_job);
        if self.stalls(s) {
            program.starts_after_ms = None;
        }
        let pod_spec = PodSpec {
            on: read.spec.nodes.get(rank).cloned().unwrap_or_default(),
            gpus: usize::try_from(spec.per_node.gpus).unwrap_or(1),
            is_job,
            program,
        };
        let now = self.now;
        self.note(|| format!("runs {pod} of {name}"));
        self.own_write(s, |sim| {
            let Sim { sites, random, .. } = sim;
            let cluster = &mut sites[s].cluster;
            if cluster.create_pod((&name, rank), pod_spec, now, random) {
                Ok(())
            } else {
                Err(ApiError::Unreachable)
            }
        })
    }

    fn call_for_leg(&mut self, s: usize, p: usize, run: &mut ReservationReconcile) -> Option<(Stage, u64)> {
        let stored = run.read.status.as_ref().and_then(|s| s.intent.clone()) == run.plan.status.intent;
        let (Some(call), true) = (run.plan.call.clone(), stored) else {
            return Some((Stage::Status, 0));
        };
        let spec = &run.read.spec.allocation;
        let Ok(terms) = Terms::from_wire(&spec.escrow) else {
            return Some((Stage::Status, 0));
        };
        let leg = u8::try_from(spec.leg.clamp(0, 15)).unwrap_or(0);
        let legs = 1u16 << leg;
        let action = match call {
            LegCall::Start => Action::Start { terms, legs },
            LegCall::Pause => Action::Pause { terms, legs },
            LegCall::CreditTo(total_seconds) => Action::CreditTo {
                terms,
                leg,
                total_seconds,
            },
            LegCall::End => Action::EndLeg { terms, legs },
            LegCall::Withdraw => Action::SettleMany {
                rows: vec![(terms, legs)],
            },
        };
        let controller = self.sites[s].identity.controller;
        self.invariants.provider_sends(&run.key.1, &action);
        let (sent, cost) = self.send(ProcessId::Provider(s, p), controller, action);
        Some(match sent {
            Ok(transaction) => (Stage::Wait(transaction, self.now + MINE_DEADLINE_MS), cost),
            Err(error) => {
                let now = self.clock(self.sites[s].processes[p].offset_ms);
                planner::chain_failure(&run.read, &mut run.status, &error, now);
                (Stage::Status, cost)
            }
        })
    }

    fn wait_for_leg(
        &mut self,
        s: usize,
        p: usize,
        run: &mut ReservationReconcile,
        transaction: u64,
        until: u64,
    ) -> Option<(Stage, u64)> {
        let answers = !self.chain.hung && !self.faults.cut_from_chain.contains(&ProcessId::Provider(s, p));
        let error = match self.chain.result(transaction).copied() {
            Some(Ok(())) if answers => return Some((Stage::Status, 1)),
            Some(Err(refusal)) if answers => PaymentError::Reverted {
                error: refusal.to_string(),
            },
            _ if self.now >= until => PaymentError::Pending {
                transaction: Hash::default(),
            },
            _ => return Some((Stage::Wait(transaction, until), 400)),
        };
        let now = self.clock(self.sites[s].processes[p].offset_ms);
        planner::chain_failure(&run.read, &mut run.status, &error, now);
        Some((Stage::Status, 1))
    }

    fn report_reservation(
        &mut self,
        s: usize,
        run: &mut ReservationReconcile,
    ) -> Result<Option<(Stage, u64)>, ApiError> {
        let before = run.read.status.as_ref();
        if before != Some(&run.status) {
            let (key, read, status) = (&run.key, run.read.clone(), run.status.clone());
            let written = self.own_write(s, |sim| sim.sites[s].reservations.set_status(&read, key, status));
            if before.map(|s| s.phase) != Some(run.status.phase)
                || before.map(|s| &s.intent) != Some(&run.status.intent)
            {
                let (phase, reason) = (run.status.phase, run.status.stop_reason);
                let intent = run.status.intent.as_ref().map(|i| i.action);
                let ok = written.as_ref().err();
                self.note(|| {
                    format!(
                        "reservation {} is {phase:?}, {reason:?}, intent {intent:?}: {ok:?}",
                        key.1
                    )
                });
            }
            written?;
        }
        Ok(run.plan.delete.then_some((Stage::Finalizer, 1)))
    }
}

/// A reservation that waits for a block is reconciled soon after each block.
const fn block_ms(plan: &Plan) -> u64 {
    match plan.status.phase {
        AllocationPhase::Requested | AllocationPhase::Reserved => 500,
        _ => 3_600_000,
    }
}
