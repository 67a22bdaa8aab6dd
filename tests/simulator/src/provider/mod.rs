//! A process of a provider's operator over reservations, in the order of `operator/src/provider/reservation/mod.rs`.

use std::{collections::BTreeMap, sync::Arc};

use kube::ResourceExt as _;
use leasehold_chain::machine::Action;
use leasehold_crds::{
    FINALIZER_PROVIDER, GpuAllocation, GpuPool, GpuReservation,
    market::allocation::AllocationPhase,
    provider::{
        pool::{GpuPoolSpec, Withdraw},
        reservation::GpuReservationStatus,
    },
};
use leasehold_planner::{
    escrow::{AccountRead, Address, Hash, Terms, keccak},
    observed::Observed,
    orphans::Suspects,
    ports::{AcceptanceMessage, Head, PaymentError},
    provider::{
        allocation::accept::Identity,
        health::Answers,
        reservation::{self as planner, LegCall, Plan, Withdrawals, Workload, World},
    },
};

mod accept;
mod observe;

use accept::AllocationReconcile;

use crate::{
    Sim,
    api::{Api, ApiError, Cache, Key},
    cluster::{self, Cluster, Gpu, Node, Pod, Program},
    faults::Faults,
    market::until_ms,
    random::Random,
    reconcile::{ProcessId, Task, WorkQueue},
    rpc::{MINE_DEADLINE_MS, Reader},
    sim::{Event, address_of},
};

/// Objects that somebody deleted are made again after this long without pods.
const REAPPLY_SECONDS: i64 = 10;

/// One provider: its cluster and its processes.
pub(crate) struct Site {
    pub(crate) name: String,
    /// Its namespace on the market.
    pub(crate) namespace: String,
    pub(crate) cluster: Cluster,
    pub(crate) reservations: Api<GpuReservation>,
    pub(crate) processes: Vec<ProviderProcess>,
    pub(crate) identity: Identity,
    pub(crate) pool: GpuPool,
    pub(crate) grace_seconds: u64,
    /// Blocks that the level its network asks for lags behind.
    pub(crate) finality: usize,
}

/// One process.
pub(crate) struct ProviderProcess {
    pub(crate) up: bool,
    pub(crate) restarts: u64,
    pub(crate) offset_ms: i64,
    /// The reservation controller's own cache.
    reservations: Cache<GpuReservation>,
    /// The shared store.
    pub(crate) reservation_store: Cache<GpuReservation>,
    /// The allocation controller's own cache.
    pub(crate) allocations: Cache<GpuAllocation>,
    pub(crate) allocation_store: Cache<GpuAllocation>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) namespaces: BTreeMap<String, bool>,
    /// What the agents have said: nodes and their GPUs, and who holds which.
    pub(crate) nodes: Vec<Node>,
    pub(crate) holders: BTreeMap<String, Vec<String>>,
    pub(crate) heard_ms: BTreeMap<String, u64>,
    pub(crate) agents_seen: u64,
    /// Since when its own API has answered whoever asked about a silent node.
    pub(crate) answers: Answers,
    /// What the last sweep found.
    pub(crate) suspects: Suspects<String>,
    /// Why the market can't be read.
    pub(crate) market_error: Option<String>,
    /// When a workload was applied, by this process's clock.
    applied: BTreeMap<String, i64>,
    /// Room is given away one question at a time.
    pub(crate) reserving: bool,
    /// Caches that news is on its way to.
    pub(crate) syncing: u8,
    pub(crate) queue: WorkQueue<ProviderReconcile>,
}

/// A pass that has gathered and decided, and now writes.
pub(crate) enum ProviderReconcile {
    Reservation(Box<ReservationReconcile>),
    Allocation(Box<AllocationReconcile>),
}

pub(crate) struct ReservationReconcile {
    key: Key,
    read: Arc<GpuReservation>,
    plan: Plan,
    status: GpuReservationStatus,
    /// Whether its workload is there as far as was seen.
    there: bool,
    /// Whether an end is noted before it is carried out.
    must_persist_first: bool,
    stage: Stage,
    error: Option<ApiError>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Note,
    Workload,
    /// The namespace was applied; the workload in it was not.
    WorkloadItself,
    Call,
    Wait(u64, u64),
    Status,
    Finalizer,
    Delete,
}

impl Site {
    pub(crate) fn new(n: usize, faults: &Faults, random: &mut Random) -> Self {
        let name = format!("p{n}");
        let nodes = (0..random.between(2, 4))
            .map(|i| Node {
                name: format!("{name}-node{i}"),
                gpus: (0..random.between(1, 3) * 2)
                    .map(|g| Gpu {
                        uuid: format!("GPU-{name}-{i}-{g}"),
                        faulty_since: None,
                    })
                    .collect(),
                dead_since: None,
                not_ready_since: None,
            })
            .collect();
        let price = format!("{}.{}", random.between(1, 2), random.between(10, 99));
        let spec = GpuPoolSpec {
            price_per_gpu_hour: price,
            network: "net".into(),
            max_duration: "2h".into(),
            max_pause: "1h".into(),
            // Every other provider wants its money before the end.
            withdraw: n.is_multiple_of(2).then(|| Withdraw {
                every: "40s".into(),
                above: "0.01".into(),
            }),
            ..GpuPoolSpec::default()
        };
        Self {
            namespace: format!("provider-{name}"),
            cluster: Cluster::of(nodes),
            reservations: Api::default(),
            processes: (0..2).map(|_| ProviderProcess::new(faults, random)).collect(),
            identity: Identity {
                market: "market".into(),
                payee: address_of(&format!("payee {name}")),
                controller: address_of(&format!("controller {name}")),
            },
            pool: GpuPool::new(&format!("pool-{name}"), spec),
            grace_seconds: random.between(3, 9) * 10,
            finality: usize::try_from(random.below(2) * 2).unwrap_or(0),
            name,
        }
    }
}

impl ProviderProcess {
    fn new(faults: &Faults, random: &mut Random) -> Self {
        Self {
            up: false,
            restarts: 0,
            offset_ms: faults.clock_offset(random),
            reservations: Cache::default(),
            reservation_store: Cache::default(),
            allocations: Cache::default(),
            allocation_store: Cache::default(),
            pods: Vec::new(),
            namespaces: BTreeMap::new(),
            nodes: Vec::new(),
            holders: BTreeMap::new(),
            heard_ms: BTreeMap::new(),
            agents_seen: u64::MAX,
            answers: Answers::default(),
            suspects: Suspects::default(),
            market_error: None,
            applied: BTreeMap::new(),
            reserving: false,
            syncing: 0,
            queue: WorkQueue::default(),
        }
    }
}

/// A stand-in for the controller's signature: nobody without its address makes it.
pub(crate) fn sign(by: Address, message: &AcceptanceMessage) -> String {
    let hash = |n: u8| {
        keccak(&[
            &[n],
            &by.0,
            &message.escrow_id.0,
            &message.leg.to_be_bytes(),
            &message.rate.to_be_bytes(),
            &message.not_after.to_be_bytes(),
            &message.deadline.to_be_bytes(),
        ])
    };
    let hex = |h: Hash| data_encoding::HEXLOWER.encode(&h.0);
    format!("0x{}{}00", hex(hash(1)), hex(hash(2)))
}

/// Whether the acceptance in an allocation's status is its leg's controller's, over what was asked.
pub(crate) fn is_signed(allocation: &GpuAllocation) -> bool {
    let check = || {
        let acceptance = allocation.status.as_ref()?.acceptance.as_ref()?;
        let terms = Terms::from_wire(&allocation.spec.escrow).ok()?;
        let leg = terms.legs.get(usize::try_from(allocation.spec.leg).ok()?)?;
        let message = AcceptanceMessage {
            escrow_id: terms.id(),
            leg: u16::try_from(allocation.spec.leg).ok()?,
            rate: leg.rate.0,
            not_after: u64::try_from(acceptance.not_after).ok()?,
            deadline: u64::try_from(acceptance.deadline).ok()?,
        };
        let signed = sign(leg.controller, &message) == acceptance.signature;
        Some(signed && acceptance.deadline >= allocation.spec.open_by)
    };
    check().unwrap_or(false)
}

impl Sim {
    /// A write to a provider's own API.
    pub(crate) fn own_write<T>(
        &mut self,
        s: usize,
        write: impl FnOnce(&mut Self) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if self.faults.sites_down.contains(&s) {
            return Err(ApiError::Unreachable);
        }
        let written = write(self);
        let lost = self.faults.lost_writes_per_mille;
        if self.random.per_mille(lost) {
            return Err(ApiError::Unreachable);
        }
        written
    }

    pub(crate) fn start_provider(&mut self, s: usize, p: usize) {
        let who = ProcessId::Provider(s, p);
        if self.sites[s].processes[p].up {
            return;
        }
        if self.faults.sites_down.contains(&s) {
            self.at(2_000, Event::Start(who));
            return;
        }
        self.note(|| format!("{who:?} starts"));
        let (offset_ms, restarts) = {
            let old = &self.sites[s].processes[p];
            (old.offset_ms, old.restarts + 1)
        };
        let mut process = ProviderProcess::new(&self.faults, &mut self.random);
        (process.up, process.restarts, process.offset_ms) = (true, restarts, offset_ms);
        self.sites[s].processes[p] = process;
        for cache in 0..7 {
            // The watch of the market's allocations is the one that start-up does not wait for.
            if cache != 3 {
                self.follow_provider(s, p, cache, usize::MAX);
            }
        }
        self.at(0, Event::Supply(who, restarts));
        let first_sweep = self.random.between(1_000, 30_000);
        self.at(first_sweep, Event::Orphans(who, restarts));
    }

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

    /// Gathers and decides; whether its workload was seen to be there.
    pub(crate) fn plan_reservation(
        &mut self,
        s: usize,
        p: usize,
        read: &GpuReservation,
        reader: &mut Reader,
    ) -> (Plan, bool) {
        let who = ProcessId::Provider(s, p);
        let now = self.clock(self.sites[s].processes[p].offset_ms);
        let terms = Terms::from_wire(&read.spec.allocation.escrow).map_err(|e| e.to_string());
        let phase = read
            .status
            .as_ref()
            .map_or(AllocationPhase::Requested, |s| s.phase);
        let (account, head);
        let (mut second, mut settled) = (Observed::Unknown("not read".into()), None);
        match &terms {
            Ok(terms) => {
                account = self.read_account(reader, who, terms, 0);
                if planner::wants_second(read, &account) {
                    second = self.read_account(reader, who, terms, 0);
                }
                if let Observed::Unknown(why) = &account {
                    head = Observed::Unknown(why.clone());
                } else if matches!(phase, AllocationPhase::Requested | AllocationPhase::Reserved) {
                    settled = match self.sites[s].finality {
                        0 => Some(account.clone()),
                        behind => Some(self.read_account(reader, who, terms, behind)),
                    };
                    head = self.read_head(reader, who);
                } else if let Observed::Known(AccountRead::Present(a)) = &account {
                    head = Observed::Known(Head {
                        number: 0,
                        hash: Hash::default(),
                        time: a.block_time,
                    });
                } else {
                    head = self.read_head(reader, who);
                }
            }
            Err(why) => {
                account = Observed::Unknown(why.clone());
                head = Observed::Unknown(why.clone());
            }
        }
        let running = self.running(s, p, read);
        let nodes = usize::try_from(read.spec.allocation.nodes).unwrap_or_default();
        let there = running
            .known()
            .is_some_and(|r| r.namespace && r.pods_alive + r.pods_succeeded >= nodes)
            || read.status.as_ref().is_some_and(|s| s.job.is_some());
        let health = self.health(s, p, read, now);
        let process = &self.sites[s].processes[p];
        let at = (
            read.spec.allocation_namespace.clone(),
            read.spec.allocation_name.clone(),
        );
        let world = World {
            reservation: read,
            account,
            second,
            settled,
            head,
            running,
            allocation_exists: match &process.market_error {
                Some(why) => Observed::Unknown(why.clone()),
                None => Observed::Known(
                    process
                        .allocation_store
                        .get(&at)
                        .is_some_and(|a| a.metadata.uid.as_deref() == Some(&read.spec.allocation_uid)),
                ),
            },
            grace_seconds: self.sites[s].grace_seconds,
            health,
            withdraw: self.sites[s]
                .pool
                .spec
                .withdraw
                .as_ref()
                .and_then(|w| Withdrawals::of(w, 6)),
        };
        // Decided is by the clock as it is after the reads.
        let now = self.clock_after(process.offset_ms, reader.cost_ms);
        (planner::decide(&world, now), there)
    }

    /// Caches that do not know all that happened.
    pub(crate) fn stale_at_provider(&self, s: usize, p: usize) -> u8 {
        let site = &self.sites[s];
        let process = &site.processes[p];
        let market_up = self.faults.market_up && !self.faults.cut_from_market.contains(&s);
        [
            process.reservations.is_fresh(&site.reservations),
            process.reservation_store.is_fresh(&site.reservations),
            process.allocations.is_fresh(&self.allocations),
            process.allocation_store.is_fresh(&self.allocations)
                && process.market_error.is_none() == market_up,
            process.pods == site.cluster.pods,
            process.namespaces == site.cluster.namespaces,
            process.agents_seen == site.cluster.changes,
        ]
        .iter()
        .enumerate()
        .fold(0, |map, (cache, fresh)| map | u8::from(!fresh) << cache)
    }

    pub(crate) fn follow_reservations(&mut self, s: usize, p: usize, events: usize) {
        let site = &mut self.sites[s];
        let touched = site.processes[p].reservations.follow(&site.reservations, events);
        for (key, _) in touched {
            self.enqueue(ProcessId::Provider(s, p), &Task::Reservation(key), 0);
        }
    }

    /// The next write of a pass.
    pub(crate) fn resume_provider(&mut self, s: usize, p: usize, id: u64) {
        match self.sites[s].processes[p].queue.next(id) {
            Some((task, ProviderReconcile::Reservation(run))) => self.resume_reservation(s, p, id, task, run),
            Some((task, ProviderReconcile::Allocation(run))) => self.resume_allocation(s, p, id, task, run),
            None => {}
        }
    }

    fn resume_reservation(
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
            Stage::WorkloadItself => Ok(self.apply_workload(s, p, &mut run)),
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
        match run.plan.workload {
            // No tenant of the simulation asks for results.
            Workload::Keep | Workload::KeepResults => next,
            Workload::Run => {
                let recent = |at: i64| now - at < REAPPLY_SECONDS;
                if process
                    .applied
                    .get(&name)
                    .is_some_and(|at| run.there || recent(*at))
                {
                    return next;
                }
                let done = self.own_write(s, |sim| {
                    sim.sites[s].cluster.apply_namespace(&name);
                    Ok(())
                });
                if let Err(error) = done {
                    run.error = Some(error);
                    return next;
                }
                Some((Stage::WorkloadItself, 5))
            }
            Workload::Halt => {
                process.applied.remove(&name);
                self.note(|| format!("halts {name}"));
                let done = self.own_write(s, |sim| {
                    sim.sites[s].cluster.delete_workload(&name);
                    Ok(())
                });
                run.error = done.err();
                next
            }
            Workload::Remove => {
                process.applied.remove(&name);
                if process.namespaces.get(&name) != Some(&true) {
                    self.note(|| format!("removes {name}"));
                    let done = self.own_write(s, |sim| {
                        sim.sites[s].cluster.delete_namespace(&name);
                        Ok(())
                    });
                    run.error = done.err();
                }
                next
            }
        }
    }

    fn apply_workload(&mut self, s: usize, p: usize, run: &mut ReservationReconcile) -> Option<(Stage, u64)> {
        let name = run.key.1.clone();
        let spec = &run.read.spec.allocation;
        let is_job = spec.workload.job.is_some();
        let program = self.tenants.program(&spec.lease.uid, is_job);
        let wish = cluster::Workload::new(
            usize::try_from(spec.nodes).unwrap_or(1),
            usize::try_from(spec.per_node.gpus).unwrap_or(1),
            run.read.spec.nodes.clone(),
            is_job,
            program,
        );
        let site = &self.sites[s];
        if version(site.reservations.get(&run.key)) != run.read.resource_version() {
            return Some((Stage::Call, 1));
        }
        let now = self.now;
        self.note(|| format!("runs {name}"));
        let done = self.own_write(s, |sim| {
            let Sim { sites, random, .. } = sim;
            match sites[s].cluster.apply_workload(&name, wish, now, random) {
                true => Ok(()),
                false => Err(ApiError::Unreachable),
            }
        });
        match done {
            Ok(()) => {
                let local = self.clock(self.sites[s].processes[p].offset_ms).as_second();
                self.sites[s].processes[p].applied.insert(name, local);
            }
            Err(error) => run.error = Some(error),
        }
        Some((Stage::Call, 1))
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
            LegCall::Credit(seconds) => Action::Credit { terms, leg, seconds },
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
                let (phase, reason) = (run.status.phase, run.status.stop_reason.clone());
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

/// What waits for a block is looked at soon after each (`blocks` at the edge).
const fn block_ms(plan: &Plan) -> u64 {
    match plan.status.phase {
        AllocationPhase::Requested | AllocationPhase::Reserved => 500,
        _ => 3_600_000,
    }
}

/// The finalizer that a reservation is made with.
pub(crate) fn held() -> Vec<String> {
    vec![FINALIZER_PROVIDER.into()]
}

/// Version of an object that was read.
pub(crate) fn version(of: Option<&Arc<GpuReservation>>) -> Option<String> {
    of.and_then(|r| r.resource_version())
}

/// A program that is never ready.
pub(crate) const BROKEN: Program = Program {
    ready_after_ms: None,
    ends: None,
};
