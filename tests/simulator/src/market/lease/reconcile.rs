//! The steps of one reconcile of a lease: finalizer, allocations, transaction, status, removal of the finalizer.

use std::sync::Arc;

use kube::ResourceExt as _;
use leasehold_chain::machine::Action;
use leasehold_crds::{
    ANNOTATION_ESCROW, ANNOTATION_KNOWN, FINALIZER_MARKET, GpuAllocation, GpuLease, lease::GpuLeaseStatus,
};
use leasehold_planner::{
    escrow::{Address, Hash},
    market::lease::{self, AllocationWrite, ChainCall, Plan, Wallet},
    observed::Observed,
    ports::PaymentError,
};

use crate::{
    Sim,
    api::{ApiError, Key},
    market::{MarketReconcile, ignore_not_found, until_ms},
    reconcile::{ProcessId, Task},
    rpc::{MINE_DEADLINE_MS, Reader},
    sim::Event,
};

pub(crate) struct LeaseReconcile {
    key: Key,
    read: Arc<GpuLease>,
    /// The lease as it was last written by this reconcile.
    object: Arc<GpuLease>,
    /// Address of the wallet, if its key was read.
    wallet: Option<Address>,
    plan: Plan,
    status: GpuLeaseStatus,
    stage: Stage,
    error: Option<ApiError>,
    notes_only: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Finalizer,
    /// The write with that index. A deletion takes two.
    Allocation(usize, bool),
    Call,
    Wait(u64, u64),
    Status,
    RemoveFinalizer,
}

impl Sim {
    pub(crate) fn begin_lease(&mut self, m: usize, key: Key) {
        let Some(mut read) = self.markets[m].leases.get(&key).cloned() else {
            return;
        };
        lease::trim_lease(Arc::make_mut(&mut read));
        let mut reader = Reader::default();
        let world = self.gather_lease(m, &read, &mut reader);
        let now = self.clock_after(self.markets[m].offset_ms, reader.cost_ms);
        let checked = lease::check(&world);
        let plan = lease::decide(&world, &checked, now);
        self.invariants.lease_plan(&read, &plan, now);
        let wallet = match world.wallet {
            Observed::Known(Wallet::Ready(address)) => Some(address),
            Observed::Known(Wallet::NotRead | Wallet::NotReadable(_) | Wallet::Malformed(_))
            | Observed::Unknown(_) => None,
        };
        let run = LeaseReconcile {
            object: read.clone(),
            read,
            wallet,
            status: plan.status.clone(),
            plan,
            stage: Stage::Finalizer,
            error: None,
            notes_only: false,
            key: key.clone(),
        };
        let id = self.markets[m]
            .queue
            .begin(Task::Lease(key), MarketReconcile::Lease(Box::new(run)));
        let restarts = self.markets[m].restarts;
        self.at(
            reader.cost_ms,
            Event::Continue(ProcessId::Market(m), restarts, id),
        );
    }

    /// Gathers and plans without writing, to check what a further reconcile would do.
    pub(crate) fn plan_lease(&mut self, m: usize, key: &Key) -> Option<(Arc<GpuLease>, Plan)> {
        let read = self.markets[m].leases.get(key).cloned()?;
        let now = self.clock(self.markets[m].offset_ms);
        let world = self.gather_lease(m, &read, &mut Reader::default());
        let plan = lease::decide(&world, &lease::check(&world), now);
        Some((read, plan))
    }

    pub(in crate::market) fn resume_lease(
        &mut self,
        m: usize,
        id: u64,
        task: Task,
        mut run: Box<LeaseReconcile>,
    ) {
        let who = ProcessId::Market(m);
        if self.dies_between_writes(who, &run.key) {
            return;
        }
        let next = match run.stage {
            Stage::Finalizer => Some(self.add_finalizer(&mut run)),
            Stage::Allocation(n, half) => Some(self.write_allocation(&mut run, n, half)),
            Stage::Call => Some(self.call_for_lease(who, &mut run)),
            Stage::Wait(transaction, until) => Some(self.wait_for_lease(m, &mut run, transaction, until)),
            Stage::Status => match self.report_lease(&mut run) {
                Ok(()) => Some((Stage::RemoveFinalizer, 2)),
                Err(error) => {
                    self.finish(who, &task, Some(error.retry_ms()));
                    return;
                }
            },
            Stage::RemoveFinalizer => match self.remove_finalizer(&run) {
                Ok(()) => None,
                Err(error) => {
                    self.finish(who, &task, Some(error.retry_ms()));
                    return;
                }
            },
        };
        match next {
            Some((stage, after)) => {
                run.stage = stage;
                let slow = self.random.between(0, self.faults.write_ms);
                let restarts = self.markets[m].restarts;
                self.markets[m]
                    .queue
                    .put_back(id, task, MarketReconcile::Lease(run));
                self.at(after + slow, Event::Continue(who, restarts, id));
            }
            None => {
                let wake = until_ms(run.plan.wake, self.clock(self.markets[m].offset_ms));
                let again = run.error.map_or(wake, |e| wake.min(e.retry_ms()));
                self.finish(who, &task, Some(again));
            }
        }
    }

    fn add_finalizer(&mut self, run: &mut LeaseReconcile) -> (Stage, u64) {
        let held = run.read.finalizers().iter().any(|f| f == FINALIZER_MARKET);
        if run.plan.finalizer == Some(true) && !held {
            let mut finalizers = run.read.finalizers().to_vec();
            finalizers.push(FINALIZER_MARKET.into());
            match self.market_write(|sim| {
                sim.leases
                    .add_finalizers(&run.read, &run.key, finalizers, ANNOTATION_KNOWN)
            }) {
                Ok(object) => run.object = object,
                Err(error) => return failed(run, error),
            }
        }
        if run.plan.must_persist_first(run.read.status.as_ref()) {
            run.notes_only = true;
            return (Stage::Status, 1);
        }
        (Stage::Allocation(0, false), 1)
    }

    fn write_allocation(&mut self, run: &mut LeaseReconcile, n: usize, half: bool) -> (Stage, u64) {
        let Some(write) = run.plan.allocations.get(n).cloned() else {
            return (Stage::Call, 0);
        };
        let now = self.clock(0);
        let done = match write {
            AllocationWrite::Create {
                namespace,
                name,
                escrow_id,
                spec,
            } => {
                let id = escrow_id.to_string();
                let mut object = GpuAllocation::new(&name, *spec);
                object.metadata.finalizers = Some(vec![FINALIZER_MARKET.into()]);
                object.metadata.annotations = Some([(ANNOTATION_ESCROW.to_owned(), id)].into());
                self.note(|| format!("creates allocation {namespace}/{name}"));
                self.market_write(|sim| sim.allocations.apply(&(namespace, name), &object).map(drop))
            }
            AllocationWrite::Release {
                namespace,
                name,
                drop_results,
            } => {
                self.note(|| format!("releases {namespace}/{name}"));
                ignore_not_found(self.market_write(|sim| {
                    sim.allocations.patch(&(namespace, name), |a| {
                        a.spec.release = true;
                        a.spec.drop_results |= drop_results;
                    })
                }))
            }
            AllocationWrite::Prolong {
                namespace,
                name,
                not_after,
            } => {
                self.note(|| format!("prolongs {namespace}/{name}"));
                ignore_not_found(self.market_write(|sim| {
                    sim.allocations
                        .patch(&(namespace, name), |a| a.spec.not_after = not_after)
                }))
            }
            AllocationWrite::Delete { namespace, name } => {
                let key = (namespace, name);
                self.note(|| format!("deletes {key:?}, {half}"));
                if half {
                    ignore_not_found(self.market_write(|sim| sim.allocations.delete(&key, now)))
                } else {
                    let off = ignore_not_found(
                        self.market_write(|sim| sim.allocations.set_finalizers(&key, None, Vec::new())),
                    );
                    match off {
                        Ok(()) => return (Stage::Allocation(n, true), 1),
                        Err(error) => Err(error),
                    }
                }
            }
        };
        match done {
            Ok(()) => (Stage::Allocation(n + 1, false), 1),
            Err(error) => failed(run, error),
        }
    }

    fn call_for_lease(&mut self, who: ProcessId, run: &mut LeaseReconcile) -> (Stage, u64) {
        let Some(call) = run.plan.call.clone() else {
            return (Stage::Status, 0);
        };
        // The key of the wallet signs, whoever the terms say opened the account.
        let payer = || {
            run.wallet
                .ok_or_else(|| PaymentError::Unreachable("cannot read the payer's key now".into()))
        };
        let call = match call {
            ChainCall::Open {
                terms,
                deposit,
                valid_until,
            } => payer().map(|payer| {
                let action = Action::Open {
                    terms,
                    deposit,
                    valid_until,
                };
                (payer, action)
            }),
            ChainCall::Fund { terms, total } => {
                let there = self.chain.account(&terms);
                if there.present().is_some_and(|a| !a.closed && a.deposited >= total) {
                    return (Stage::Status, 5);
                }
                payer().map(|payer| (payer, Action::FundTo { terms, total }))
            }
            ChainCall::Close { terms, payouts } => Ok((self.closer, Action::Close { terms, payouts })),
        };
        match call {
            Ok((caller, action)) => {
                self.market_sends(caller, &action);
                let (sent, cost) = self.send(who, caller, action);
                match sent {
                    Ok(transaction) => (Stage::Wait(transaction, self.now + MINE_DEADLINE_MS), cost),
                    Err(error) => self.lease_call_failed(who, run, &error, cost),
                }
            }
            Err(error) => self.lease_call_failed(who, run, &error, 0),
        }
    }

    fn wait_for_lease(
        &mut self,
        m: usize,
        run: &mut LeaseReconcile,
        transaction: u64,
        until: u64,
    ) -> (Stage, u64) {
        let who = ProcessId::Market(m);
        let answers = !self.chain.hung && !self.faults.cut_from_chain.contains(&who);
        match self.chain.result(transaction).copied() {
            Some(Ok(())) if answers => (Stage::Status, 1),
            Some(Err(refusal)) if answers => {
                let error = PaymentError::Reverted {
                    error: refusal.to_string(),
                };
                self.lease_call_failed(who, run, &error, 1)
            }
            _ if self.now >= until => {
                let error = PaymentError::Pending {
                    transaction: Hash::default(),
                };
                self.lease_call_failed(who, run, &error, 1)
            }
            _ => (Stage::Wait(transaction, until), 400),
        }
    }

    fn lease_call_failed(
        &mut self,
        who: ProcessId,
        run: &mut LeaseReconcile,
        error: &PaymentError,
        cost: u64,
    ) -> (Stage, u64) {
        let ProcessId::Market(m) = who else {
            return (Stage::Status, cost);
        };
        let now = self.clock(self.markets[m].offset_ms);
        let generation = run.read.metadata.generation.unwrap_or_default();
        if let Some(call) = &run.plan.call {
            lease::chain_failure(&mut run.status, call, error, generation, now);
        }
        (Stage::Status, cost)
    }

    fn report_lease(&mut self, run: &mut LeaseReconcile) -> Result<(), ApiError> {
        if run.read.status.as_ref() == Some(&run.status) {
            return Ok(());
        }
        let (key, status, object) = (&run.key, run.status.clone(), run.object.clone());
        let written = self.market_write(|sim| sim.leases.set_status(&object, key, status));
        if run.read.status.as_ref().map(|s| s.phase) != Some(run.status.phase)
            || run.read.status.as_ref().map(|s| &s.intent) != Some(&run.status.intent)
        {
            let (phase, intent) = (run.status.phase, run.status.intent.as_ref().map(|i| i.action));
            let reason = run.status.close_reason;
            let round = run.status.round;
            let ok = written.as_ref().err();
            self.note(|| {
                format!(
                    "{} is {phase:?}, round {round}, intent {intent:?}, {reason:?}: {ok:?}",
                    key.1
                )
            });
        }
        run.object = written?;
        Ok(())
    }

    fn remove_finalizer(&mut self, run: &LeaseReconcile) -> Result<(), ApiError> {
        if run.plan.finalizer != Some(false) || run.error.is_some() || run.notes_only {
            return Ok(());
        }
        let version = run.object.resource_version();
        self.note(|| format!("removes the finalizer of {}", run.key.1));
        ignore_not_found(self.market_write(|sim| {
            sim.leases
                .set_finalizers(&run.key, version.as_deref(), Vec::new())
        }))
    }
}

fn failed(run: &mut LeaseReconcile, error: ApiError) -> (Stage, u64) {
    let before = run.read.status.clone().unwrap_or_default();
    run.status = run.plan.status_if_incomplete(&before);
    run.error = Some(error);
    (Stage::Status, 1)
}
