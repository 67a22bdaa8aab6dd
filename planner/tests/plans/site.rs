//! Plays the story of a reservation at a provider: each plan is carried out as the provider's operator would, and its
//! status is what the next reconcile reads.

use std::sync::Arc;

use leasehold_crds::{
    GpuAllocation, GpuLease, GpuPool, GpuReservation,
    lease::workload::Endpoint,
    market::allocation::Acceptance,
    payment::money::{Rate, TokenAmount},
    provider::{
        node::{DeviceHealth, GpuDevice, GpuNodeStatus},
        reservation::GpuReservationStatus,
    },
};
use leasehold_planner::{
    escrow::{AccountAt, AccountRead, Terms},
    observed::Observed,
    placement::Currency,
    ports::FINAL_READS,
    provider::{
        allocation::accept::{self, PoolSeen},
        health::{Health, KubeletReport, NodeReport, assess},
        offer::{resumption::Room, supply::PoolSupply},
        reservation::{
            self, LegCall, NodePod, Plan, PodChange, Reading, Running, Withdrawals, Workload, wants_final,
            wants_live, wants_second,
        },
        workload::{EgressDenylist, End, FINALIZER_POD},
    },
};

use crate::{
    account::OpenAccount,
    fixtures::{DECIMALS, START, at, block, currency, identity, pool, supply},
    market::Market,
    page::{Page, time, tokens},
};

/// UUID of the GPU that the pod of a story holds.
pub(crate) const GPU: &str = "GPU-1f3a";

/// The node on which a reservation runs, as its agent and its kubelet report it.
pub(crate) struct Node {
    pub(crate) device: DeviceHealth,
    pub(crate) message: String,
    /// When the device's health last changed.
    pub(crate) since: i64,
    /// When the agent was heard last; `None` for one that is always heard.
    pub(crate) agent_heard_at: Option<i64>,
    pub(crate) kubelet: KubeletReport,
}

/// A provider's cluster with one allocation.
pub(crate) struct Site {
    pub(crate) page: Page,
    pub(crate) now: i64,
    pub(crate) allocation: GpuAllocation,
    pub(crate) reservation: Option<GpuReservation>,
    pub(crate) pool: Option<GpuPool>,
    pub(crate) supply: PoolSupply,
    pub(crate) currency: Option<(Currency, u32)>,
    /// What the cluster refuses the pods of a new reservation with.
    pub(crate) refusal: Option<&'static str>,
    pub(crate) account: Option<OpenAccount>,
    pub(crate) mismatch: bool,
    pub(crate) chain_fails: Option<String>,
    pub(crate) running: Running,
    pub(crate) node: Node,
    pub(crate) allocation_exists: Observed<bool>,
    pub(crate) withdraw: Option<Withdrawals>,
}

impl Site {
    /// A provider with an allocation of the lease of the stories, with changes.
    pub(crate) fn new(about: &str, change: impl FnOnce(&mut GpuLease)) -> Self {
        let market = Market::matched("", change);
        let mut allocation = (*market.allocations[0].object).clone();
        allocation.metadata.uid = Some("5e1b".into());
        Self {
            page: Page::new(about),
            now: START + 1,
            allocation,
            reservation: None,
            pool: Some(pool()),
            supply: supply(),
            refusal: None,
            currency: Some((currency(), DECIMALS)),
            account: None,
            mismatch: false,
            chain_fails: None,
            running: Running::default(),
            node: Node {
                device: DeviceHealth::Healthy,
                message: String::new(),
                since: START,
                agent_heard_at: None,
                kubelet: KubeletReport::Ready,
            },
            allocation_exists: Observed::Known(true),
            withdraw: None,
        }
    }

    /// A reservation that waits for its deposit.
    pub(crate) fn reserved(about: &str, change: impl FnOnce(&mut GpuLease)) -> Self {
        let mut site = Self::new(about, change);
        site.quietly(|site| {
            site.answer("");
            site.reconcile("");
        });
        site
    }

    /// A reservation that has been active for a minute. The steps until then are in the story
    /// `reservation_from_allocation_to_end`.
    pub(crate) fn active(about: &str, change: impl FnOnce(&mut GpuLease)) -> Self {
        let mut site = Self::reserved(about, change);
        site.quietly(|site| {
            site.open();
            site.reconcile("");
            site.pods_ready();
            site.reconcile("");
            site.reconcile("");
            site.reconcile("");
        });
        site.later(60);
        site
    }

    fn quietly(&mut self, play: impl FnOnce(&mut Self)) {
        let page = std::mem::replace(&mut self.page, Page::new(""));
        play(self);
        self.page = page;
    }

    /// Time passes.
    pub(crate) fn later(&mut self, seconds: i64) {
        self.now += seconds;
    }

    /// The market opens the account with its deposit.
    pub(crate) fn open(&mut self) {
        let spec = &self.allocation.spec;
        let terms = Terms::from_wire(&spec.escrow).unwrap();
        let deposit = TokenAmount::parse(&spec.deposit).unwrap();
        self.account = Some(OpenAccount::open(terms, deposit));
    }

    /// The container runs, its GPU is bound, and it is ready.
    pub(crate) fn pods_ready(&mut self) {
        self.pods_run();
        self.running.pods_ready = 1;
    }

    /// The container runs, and its GPU is bound.
    pub(crate) fn pods_run(&mut self) {
        (self.running.pods_alive, self.running.pods_run) = (1, 1);
        self.running.trouble.clear();
        self.running.gpu_uuids = vec![GPU.into()];
        self.running.endpoints = vec![Endpoint {
            name: "http".into(),
            host: Some("192.0.2.1".into()),
            port: Some(30_080),
            node: 0,
            ..Endpoint::default()
        }];
    }

    /// The pods are gone.
    pub(crate) fn pods_gone(&mut self) {
        (
            self.running.pods_alive,
            self.running.pods_run,
            self.running.pods_ready,
        ) = (0, 0, 0);
        self.running.gpu_uuids.clear();
        self.running.endpoints.clear();
    }

    /// The account of the story.
    pub(crate) fn account(&mut self) -> &mut OpenAccount {
        self.account.as_mut().unwrap()
    }

    /// Time on the chain.
    pub(crate) fn unix(&self) -> u64 {
        self.now.unsigned_abs()
    }

    /// The answer to the allocation, written down and carried out.
    pub(crate) fn answer(&mut self, what: &str) -> accept::Plan {
        let identity = identity();
        let mut plan = accept::decide(
            &accept::World {
                allocation: &self.allocation,
                reservation: self.reservation.as_ref(),
                pool: self.pool.as_ref().map(|pool| PoolSeen {
                    pool,
                    supply: &self.supply,
                    currency: self.currency,
                }),
                identity: &identity,
            },
            at(self.now),
        );
        if let (Some(words), Some(_)) = (self.refusal, plan.to_admit(self.reservation.as_ref())) {
            plan = plan.refused(words);
        }
        let page = &mut self.page;
        page.step(what, self.now);
        let before = self.allocation.status.clone().unwrap_or_default();
        page.status(
            (&before, &before.conditions),
            (&plan.status, &plan.status.conditions),
        );
        let mut status = plan.status.clone();
        if let Some(spec) = &plan.reserve {
            let name = self.allocation.metadata.name.clone().unwrap_or_default();
            match &mut self.reservation {
                Some(reservation) => {
                    page.changes("reserve", &reservation.spec, &**spec);
                    reservation.spec = (**spec).clone();
                }
                None => {
                    page.line("reserve", format!("GpuReservation {name}"));
                    let mut yaml = serde_norway::to_value(&**spec).unwrap();
                    yaml["allocation"] = "the spec of the allocation".into();
                    page.yaml(&yaml);
                    let mut reservation = GpuReservation::new(&name, (**spec).clone());
                    reservation.metadata.generation = Some(1);
                    self.reservation = Some(reservation);
                }
            }
        }
        if let Some(message) = &plan.accept {
            let unix = |seconds: u64| time(at(i64::try_from(seconds).unwrap()));
            let rate = Rate(message.rate).tokens_per_hour_nearest(DECIMALS);
            page.line(
                "sign",
                format!(
                    "acceptance of leg {} at {rate} USDC/h, notAfter {}, deadline {}",
                    message.leg,
                    unix(message.not_after),
                    unix(message.deadline)
                ),
            );
            status.acceptance = Some(Acceptance {
                not_after: i64::try_from(message.not_after).unwrap(),
                deadline: i64::try_from(message.deadline).unwrap(),
                signature: format!("0x{}", "5".repeat(130)),
            });
        }
        self.allocation.status = Some(status);
        plan
    }

    /// The status of the reservation that is stored.
    pub(crate) fn status(&self) -> GpuReservationStatus {
        let stored = self.reservation.as_ref().and_then(|r| r.status.clone());
        stored.unwrap_or_default()
    }

    /// The plan of one reconcile of the reservation, written down and carried out.
    pub(crate) fn reconcile(&mut self, what: &str) -> Plan {
        let reservation = self.reservation.clone().unwrap();
        let before = self.status();
        self.running.pods = self.pods_seen();
        if wants_live(&reservation) {
            self.running.reading = Reading::Live;
        }
        let account = self.read(self.account_read());
        let second = if wants_second(&reservation, &account) {
            account.clone()
        } else {
            Observed::Unknown("not read".into())
        };
        let plan = reservation::decide(
            &reservation::World {
                reservation: &reservation,
                final_reads: if wants_final(&reservation, &account) {
                    vec![account.clone(); FINAL_READS]
                } else {
                    Vec::new()
                },
                settled: before.phase.is_unpaid().then(|| account.clone()),
                account,
                second,
                running: Observed::Known(self.running.clone()),
                allocation_exists: self.allocation_exists.clone(),
                grace_seconds: 600,
                health: self.health(&before),
                room: Room::Free,
                withdraw: self.withdraw,
                denylist: Arc::new(denylist()),
                connector: &leasehold_planner::provider::workload::ConnectorPods::default(),
                results_image: "registry.example/leasehold-operator:1",
            },
            at(self.now),
        );
        self.page.step(what, self.now);
        self.write(&plan, &before);
        if let Some(reservation) = &mut self.reservation {
            reservation.status = Some(plan.status.clone());
        }
        self.carry_out(&plan);
        plan
    }

    /// The pods that the numbers of the story count.
    fn pods_seen(&self) -> Vec<NodePod> {
        let running = &self.running;
        let pod = |index: usize| NodePod {
            index: i64::try_from(index).unwrap(),
            name: format!("lease-{index}"),
            has_run: index < running.pods_run,
            is_ready: index < running.pods_ready,
            finalizers: vec![FINALIZER_POD.into()],
            ..NodePod::default()
        };
        let ended = |index: usize| NodePod {
            has_run: true,
            end: Some(End::Program {
                exit_code: i64::from(index >= running.pods_succeeded),
                finished_at: None,
            }),
            ..pod(index)
        };
        (0..running.pods_alive)
            .map(pod)
            .chain((0..running.pods_ended).map(ended))
            .collect()
    }

    fn health(&self, status: &GpuReservationStatus) -> Health {
        let agent = GpuNodeStatus {
            devices: vec![GpuDevice {
                uuid: GPU.into(),
                health: self.node.device,
                message: self.node.message.clone(),
                since: at(self.node.since).to_string(),
                ..GpuDevice::default()
            }],
            ..GpuNodeStatus::default()
        };
        let report = NodeReport {
            node: "gpu-1",
            heard_at: Some(at(self.node.agent_heard_at.unwrap_or(self.now))),
            status: Some(&agent),
            kubelet: self.node.kubelet,
        };
        assess(&status.gpu_uuids, &[report], Some(at(START - 600)), at(self.now))
    }

    fn read<T>(&self, value: T) -> Observed<T> {
        match &self.chain_fails {
            Some(why) => Observed::Unknown(why.clone()),
            None => Observed::Known(value),
        }
    }

    fn account_read(&self) -> AccountAt {
        let read = match &self.account {
            _ if self.mismatch => AccountRead::Mismatch,
            Some(account) => account.read(self.unix()),
            None => AccountRead::Absent,
        };
        AccountAt {
            block: block(self.now),
            read,
        }
    }

    fn write(&mut self, plan: &Plan, before: &GpuReservationStatus) {
        let page = &mut self.page;
        page.status(
            (before, &before.conditions),
            (&plan.status, &plan.status.conditions),
        );
        if plan.must_persist_first(Some(before)) {
            page.line("writes", "the status is stored before anything else is done");
        }
        match &plan.workload {
            Workload::Keep => {}
            Workload::Run { pods, .. } => {
                page.line("workload", "run; its objects are in the stories of `objects`");
                pod_changes(page, pods);
            }
            Workload::Halt(pods) => {
                page.line("workload", "no pods; the namespace and volumes stay");
                pod_changes(page, pods);
            }
            Workload::KeepResults(_) => page.line("workload", "only what serves the results of the job"),
            Workload::Remove => page.line("workload", "delete the namespace with everything in it"),
        }
        if let Some(call) = &plan.call {
            page.line("chain", leg_call(call));
        }
        if plan.delete {
            page.line("delete", "the reservation");
        }
        page.wake(plan.wake, self.now);
    }

    fn carry_out(&mut self, plan: &Plan) {
        match &plan.workload {
            Workload::Keep | Workload::KeepResults(_) => {}
            Workload::Run { .. } => self.running.namespace = true,
            Workload::Halt(_) => {
                self.pods_gone();
                (self.running.pods_ended, self.running.pods_succeeded) = (0, 0);
            }
            Workload::Remove => self.running.namespace = false,
        }
        let now = self.unix();
        match plan.call {
            None => {}
            Some(LegCall::Start) => self.account().start(0, now),
            Some(LegCall::Pause) => self.account().pause(0, now),
            Some(LegCall::CreditTo(total)) => self.account().credit_to(0, total, now),
            Some(LegCall::End) => self.account().end_leg(0, now),
            Some(LegCall::Withdraw) => self.account().withdraw(0, now),
        }
        if plan.delete {
            self.reservation = None;
        }
    }

    /// Seconds that the leg has served and not credited.
    pub(crate) fn served(&self) -> u64 {
        self.account_read().present().unwrap().legs[0].served_seconds
    }

    /// What the leg has been paid out and is owed.
    pub(crate) fn earned(&self) -> String {
        let read = self.account_read();
        let leg = read.present().unwrap().legs[0];
        tokens(TokenAmount(leg.withdrawn.0 + leg.owed.0))
    }
}

fn pod_changes(page: &mut Page, changes: &[PodChange]) {
    for change in changes {
        match change {
            PodChange::Create(pod) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                page.line("pod", format!("create {name}"));
            }
            PodChange::Remove { name, .. } => page.line("pod", format!("release and delete {name}")),
        }
    }
}

fn leg_call(call: &LegCall) -> String {
    match call {
        LegCall::Start => "start the leg".into(),
        LegCall::Pause => "pause the leg".into(),
        LegCall::CreditTo(total) => format!("credit {total} seconds in total"),
        LegCall::End => "end the leg".into(),
        LegCall::Withdraw => "pay out what the leg has earned".into(),
    }
}

/// Ranges that no pod may reach: everything that is not the internet.
pub(crate) fn denylist() -> EgressDenylist {
    EgressDenylist::of([], &[])
}
