//! One pass over a reservation: gather, decide, apply, report. It needs neither the market nor its objects.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{apps::v1::StatefulSet, batch::v1::Job, core::v1::Namespace};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, PostParams, PropagationPolicy},
    core::NamespaceResourceScope,
};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{
    ANNOTATION_APPLIED, FINALIZER_PROVIDER, GpuReservation, PaymentNetwork,
    market::allocation::AllocationPhase, payment::escrow::EscrowTerms,
    provider::reservation::GpuReservationStatus, shared::duration,
};
use leasehold_planner::{
    escrow::{AccountRead, Terms},
    observed::Observed,
    ports::{BlockLevel, PaymentError, Payments as _},
    provider::reservation::{self as planner, LegCall, Plan, Withdrawals, Workload, World},
};
use leasehold_runtime::{
    Error, Process, api_writes, cache,
    queue::{CONCURRENT_RECONCILES, ReconcileError, RequeueAfter},
};
use leasehold_telemetry::metrics::{ChainAction, Controller};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) mod applied;
pub(crate) mod block_watcher;

use super::{
    MANAGER, Provider,
    digest::Digest,
    workload::{
        egress_denylist::{self, Forbidden},
        objects::{self as build, Objects},
    },
};
use crate::payments;

/// A node that joins is one that pods can't reach at most so much later: to ask all nodes on each pass would take longer
/// than the pass.
const FORBIDDEN_FOR: Duration = Duration::from_secs(5);

/// Adds the controller of GpuReservations.
pub(crate) fn register(process: &mut Process, provider: &Arc<Provider>) {
    let context = provider.clone();
    process.add_controller(
        Controller::Reservation,
        CONCURRENT_RECONCILES,
        (&provider.queues.reservations, &provider.caches.reservations),
        move |reservation| reconcile(reservation, context.clone()),
    );
}

/// Reconciles one reservation.
async fn reconcile(
    reservation: Arc<GpuReservation>,
    provider: Arc<Provider>,
) -> Result<RequeueAfter, ReconcileError> {
    if !provider.holds(&reservation) {
        return Ok(None);
    }
    let (world, chain) = provider.gather(&reservation, provider.now()).await;
    // What was gathered may have taken a deadline's time: decided is by the clock as it is now.
    let now = provider.now();
    let plan = planner::decide(&world, now);
    let wake = || api_writes::until(plan.wake, provider.now());
    let noted = plan.must_persist_first(reservation.status.as_ref());
    if noted {
        let reported = provider.report(&reservation, plan.status.clone(), &plan).await;
        reported.map_err(|error| ReconcileError::requeue(error, wake()))?;
    }
    let (status, outcome) = provider.apply(&world, chain.as_ref(), &plan).await;
    let reported = if noted {
        Ok(())
    } else {
        provider.report(&reservation, status, &plan).await
    };
    reported
        .and(outcome)
        .map_err(|error| ReconcileError::requeue(error, wake()))?;
    Ok(Some(wake()))
}

impl Provider {
    /// This provider's own PaymentNetwork with the money of an account.
    pub(crate) fn network_of(&self, terms: &EscrowTerms) -> Option<Arc<PaymentNetwork>> {
        let token = terms.token.to_ascii_lowercase();
        let contract = terms.contract.to_ascii_lowercase();
        self.caches.networks.find(|n| {
            n.spec.chain_id == terms.chain_id
                && n.spec.escrow.to_ascii_lowercase() == contract
                && n.spec.token.address.to_ascii_lowercase() == token
        })
    }

    /// Reads everything a decision needs.
    async fn gather<'a>(
        &self,
        reservation: &'a GpuReservation,
        now: jiff::Timestamp,
    ) -> (World<'a>, Option<EvmEscrow>) {
        let network = self.network_of(&reservation.spec.allocation.escrow);
        let chain = match &network {
            Some(network) => self.payments.client(network).await,
            None => Err("there is no PaymentNetwork for this account's money in this cluster".to_owned()),
        };
        let terms = Terms::from_wire(&reservation.spec.allocation.escrow).map_err(|e| e.to_string());
        let phase = reservation
            .status
            .as_ref()
            .map_or(AllocationPhase::Requested, |s| s.phase);
        let (account, head);
        let (mut second, mut settled) = (Observed::Unknown("not read".into()), None);
        match (&chain, &terms) {
            (Ok(chain), Ok(terms)) => {
                account = self.read(chain, terms, BlockLevel::Latest).await;
                if planner::wants_second(reservation, &account) {
                    second = self.read(chain, terms, BlockLevel::Latest).await;
                }
                let level = network
                    .as_ref()
                    .map_or(BlockLevel::Finalized, |n| payments::level(n.spec.provision_at));
                if let Observed::Unknown(why) = &account {
                    // One silence is enough: waiting for more of them would delay a stop that is due.
                    head = Observed::Unknown(why.clone());
                } else if matches!(phase, AllocationPhase::Requested | AllocationPhase::Reserved) {
                    settled = match level {
                        BlockLevel::Latest => Some(account.clone()),
                        BlockLevel::Safe | BlockLevel::Finalized => {
                            Some(self.read(chain, terms, level).await)
                        }
                    };
                    head =
                        Observed::from_result(self.payments.observed(ChainAction::Read, chain.head()).await);
                } else if let Observed::Known(AccountRead::Present(a)) = &account {
                    head = Observed::Known(leasehold_planner::ports::Head {
                        number: 0,
                        hash: leasehold_planner::escrow::Hash::default(),
                        time: a.block_time,
                    });
                } else {
                    head =
                        Observed::from_result(self.payments.observed(ChainAction::Read, chain.head()).await);
                }
            }
            (Err(why), _) | (_, Err(why)) => {
                account = Observed::Unknown(why.clone());
                head = Observed::Unknown(why.clone());
            }
        }
        let world = World {
            reservation,
            account,
            second,
            settled,
            head,
            running: self.running(reservation).await,
            allocation_exists: match self.market_reach.error() {
                Some(why) => Observed::Unknown(why),
                None => {
                    let seen = cache::get(
                        &self.caches.allocations,
                        &reservation.spec.allocation_name,
                        Some(&reservation.spec.allocation_namespace),
                    );
                    Observed::Known(seen.is_some_and(|a| a.has(reservation)))
                }
            },
            grace_seconds: network
                .as_ref()
                .and_then(|n| duration::seconds(&n.spec.outage_grace).ok())
                .unwrap_or(0),
            health: self.health(reservation, now).await,
            withdraw: self.withdrawals(reservation, network.as_deref()),
        };
        (world, chain.ok())
    }

    /// By the pool as it is now: it is the provider's own money, and nothing that is paid for changes with it.
    fn withdrawals(
        &self,
        reservation: &GpuReservation,
        network: Option<&PaymentNetwork>,
    ) -> Option<Withdrawals> {
        let pool = cache::get(&self.caches.pools, &reservation.spec.allocation.pool, None)?;
        let decimals = u32::try_from(network?.spec.token.decimals).ok()?;
        Withdrawals::of(pool.spec.withdraw.as_ref()?, decimals)
    }

    async fn read(&self, chain: &EvmEscrow, terms: &Terms, level: BlockLevel) -> Observed<AccountRead> {
        Observed::from_result(
            self.payments
                .observed(ChainAction::Read, chain.account(terms, level))
                .await,
        )
    }

    /// Carries the plan out; what failed is in the status that comes back.
    async fn apply(
        &self,
        world: &World<'_>,
        chain: Option<&EvmEscrow>,
        plan: &Plan,
    ) -> (GpuReservationStatus, Result<(), Error>) {
        let reservation = world.reservation;
        let mut status = plan.status.clone();
        let worked = match plan.workload {
            Workload::Keep => Ok(()),
            Workload::Run => self.run_workload(world).await,
            Workload::Halt => self.halt(reservation).await,
            Workload::KeepResults => self.keep_results(reservation, plan.status.results_until).await,
            Workload::Remove => self.remove(&reservation.name_any()).await,
        };
        // An intent that is new is stored first; the pass after this one carries it out (M2).
        let stored = reservation.status.as_ref().and_then(|s| s.intent.clone()) == plan.status.intent;
        if let (Some(call), Some(chain), true) = (&plan.call, chain, stored) {
            match self.call(reservation, chain, call).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(share = reservation.name_any(), %error, "the chain did not do it");
                    planner::chain_failure(reservation, &mut status, &error, self.now());
                }
            }
        }
        (status, worked)
    }

    async fn call(
        &self,
        reservation: &GpuReservation,
        chain: &EvmEscrow,
        call: &LegCall,
    ) -> Result<(), PaymentError> {
        let spec = &reservation.spec.allocation;
        let terms = Terms::from_wire(&spec.escrow).map_err(|e| PaymentError::Malformed(e.to_string()))?;
        let leg = u8::try_from(spec.leg.clamp(0, 15)).unwrap_or(0);
        let legs = 1u16 << leg;
        let (action, receipt) = match call {
            LegCall::Start => (
                ChainAction::Start,
                self.payments
                    .observed(ChainAction::Start, chain.start(&self.key, &terms, legs))
                    .await?,
            ),
            LegCall::Pause => (
                ChainAction::Pause,
                self.payments
                    .observed(ChainAction::Pause, chain.pause(&self.key, &terms, legs))
                    .await?,
            ),
            LegCall::Credit(seconds) => (
                ChainAction::Pause,
                self.payments
                    .observed(ChainAction::Pause, chain.credit(&self.key, &terms, leg, *seconds))
                    .await?,
            ),
            LegCall::End => (
                ChainAction::End,
                self.payments
                    .observed(ChainAction::End, chain.end_leg(&self.key, &terms, legs))
                    .await?,
            ),
            LegCall::Withdraw => {
                let rows = [(terms, legs)];
                (
                    ChainAction::Withdraw,
                    self.payments
                        .observed(ChainAction::Withdraw, chain.settle_many(&self.key, &rows))
                        .await?,
                )
            }
        };
        tracing::info!(share = reservation.name_any(), action = action.as_str(), transaction = %receipt.transaction, gas = receipt.gas_used, "mined");
        Ok(())
    }

    /// Applies all objects, unless the same were applied and pods are there.
    async fn run_workload(&self, world: &World<'_>) -> Result<(), Error> {
        let reservation = world.reservation;
        let name = reservation.name_any();
        let objects = build::build(reservation, &self.forbidden());
        let digest = Digest::of(&objects);
        let nodes = usize::try_from(reservation.spec.allocation.nodes).unwrap_or_default();
        let there = world
            .running
            .known()
            .is_some_and(|r| r.namespace && r.pods_alive + r.pods_succeeded >= nodes)
            || reservation.status.as_ref().is_some_and(|s| s.job.is_some());
        let namespace = cache::get(&self.caches.namespaces, &name, None);
        let mark = namespace.as_ref().and_then(|n| n.applied.as_deref());
        if self.applied.is(&name, digest, there, mark, self.now()) {
            return Ok(());
        }
        self.applied.begin(&name);
        let mut namespace = objects.namespace.clone();
        if !self.apply_all(reservation, objects).await? {
            return Ok(());
        }
        namespace
            .annotations_mut()
            .insert(ANNOTATION_APPLIED.to_owned(), digest.mark());
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), &namespace, MANAGER).await?;
        self.applied.done(&name, digest, self.now());
        Ok(())
    }

    /// Where a lease's pods may not go, by the cluster's nodes as they were a moment ago.
    pub(crate) fn forbidden(&self) -> Arc<Forbidden> {
        let mut known = self.forbidden.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, forbidden)) if at.elapsed() < FORBIDDEN_FOR => forbidden.clone(),
            _ => {
                let nodes = self.caches.nodes.state();
                let now = egress_denylist::forbidden(nodes.iter().map(|n| &**n), &self.args.own_ranges);
                known.insert((Instant::now(), Arc::new(now))).1.clone()
            }
        }
    }

    /// Whether all of it is there now.
    async fn apply_all(&self, reservation: &GpuReservation, all: Objects) -> Result<bool, Error> {
        let name = &reservation.name_any();
        let Objects {
            namespace,
            quota,
            limits,
            policies,
            account,
            access,
            ssh,
            volumes,
            services,
            set,
            jobs,
        } = all;
        // Isolation first: no pod exists before what confines it.
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), &namespace, MANAGER).await?;
        let (quota, limits, account) = tokio::join!(
            self.put(name, &quota),
            self.put(name, &limits),
            self.put(name, &account)
        );
        quota.and(limits).and(account)?;
        for policy in &policies {
            self.put(name, policy).await?;
        }
        for access in access.iter() {
            self.put(name, access).await?;
        }
        for ssh in ssh.iter() {
            self.put(name, ssh).await?;
        }
        for volume in &volumes {
            self.put(name, volume).await?;
        }
        for service in &services {
            self.put(name, service).await?;
        }
        // Another process may have noted a stop, and stopped it, since this reservation was read: a job would run twice.
        if !self.is_current(reservation).await? {
            return Ok(false);
        }
        for set in set.iter() {
            self.make(name, set).await?;
        }
        for job in &jobs {
            self.make(name, job).await?;
        }
        Ok(true)
    }

    /// Whether it is now as it was read. If not, its change brings another pass.
    pub(crate) async fn is_current(&self, read: &GpuReservation) -> Result<bool, Error> {
        let reservations = Api::<GpuReservation>::all(self.client.clone());
        let now = reservations
            .get_opt(&read.name_any())
            .await
            .map_err(Error::kube("read the reservation"))?;
        Ok(now.is_some_and(|r| r.resource_version() == read.resource_version()))
    }

    /// What runs is made once and never changed: an operator that would write its pods otherwise restarts none.
    pub(crate) async fn make<K>(&self, namespace: &str, object: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        let made = Api::<K>::namespaced(self.client.clone(), namespace)
            .create(&params, object)
            .await;
        match made {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            made => made.map(|_| ()).map_err(Error::kube("make the workload")),
        }
    }

    pub(crate) async fn put<K>(&self, namespace: &str, object: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        api_writes::apply(
            &Api::<K>::namespaced(self.client.clone(), namespace),
            object,
            MANAGER,
        )
        .await
        .map(|_| ())
    }

    /// No pods; namespace and volumes stay.
    async fn halt(&self, reservation: &GpuReservation) -> Result<(), Error> {
        let name = &reservation.name_any();
        self.applied.forget(name);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let sets = Api::<StatefulSet>::namespaced(self.client.clone(), name);
        api_writes::ignore_not_found(sets.delete(build::NAME, &params).await)
            .map_err(Error::kube("stop the workload"))?;
        let jobs = Api::<Job>::namespaced(self.client.clone(), name);
        for job in build::job_names(reservation) {
            api_writes::ignore_not_found(jobs.delete(&job, &params).await)
                .map_err(Error::kube("stop the job"))?;
        }
        Ok(())
    }

    /// Nothing left of it: the namespace goes with all it holds.
    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.applied.forget(name);
        if cache::get(&self.caches.namespaces, name, None).is_some_and(|n| n.goes()) {
            return Ok(());
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        api_writes::ignore_not_found(namespaces.delete(name, &DeleteParams::default()).await)
            .map_err(Error::kube("delete the lease's namespace"))
    }

    /// Writes what is true now; a reservation that is over goes.
    async fn report(
        &self,
        reservation: &GpuReservation,
        status: GpuReservationStatus,
        plan: &Plan,
    ) -> Result<(), Error> {
        let api = Api::<GpuReservation>::all(self.client.clone());
        let before = reservation.status.as_ref();
        if before != Some(&status) {
            let written = api_writes::apply_status(&api, reservation, MANAGER, &status).await?;
            if before.map(|s| s.phase) != Some(status.phase) {
                tracing::info!(share = reservation.name_any(), phase = ?status.phase, reason = status.stop_reason, "phase");
                if let Some(phases) = &self.metrics.shares {
                    phases.entered(status.phase);
                }
                let note = match &status.stop_reason {
                    Some(reason) => format!("stopped: {reason}"),
                    None => told(reservation, status.phase),
                };
                self.events
                    .publish(&written, false, phase_reason(status.phase), note)
                    .await;
            }
            if let Some(news) = planner::news_of_gpus(before, &status) {
                self.events
                    .publish(&written, news.bad, &news.reason, news.message)
                    .await;
            }
        }
        if plan.delete {
            let rest: Vec<String> = reservation
                .finalizers()
                .iter()
                .filter(|f| *f != FINALIZER_PROVIDER)
                .cloned()
                .collect();
            let patch = serde_json::json!({"metadata": {"finalizers": rest}});
            let done = api
                .patch(
                    &reservation.name_any(),
                    &kube::api::PatchParams::default(),
                    &kube::api::Patch::Merge(&patch),
                )
                .await;
            api_writes::ignore_not_found(done).map_err(Error::kube("let the reservation go"))?;
            let deleted = api
                .delete(&reservation.name_any(), &DeleteParams::default())
                .await;
            api_writes::ignore_not_found(deleted).map_err(Error::kube("delete the reservation"))?;
        }
        Ok(())
    }
}

/// What an Event says of a phase; nothing where its name says all.
fn told(reservation: &GpuReservation, phase: AllocationPhase) -> String {
    let lease = &reservation.spec.allocation.lease;
    match phase {
        AllocationPhase::Reserved => {
            let nodes = reservation.spec.nodes.join(", ");
            format!("for {}/{} on {nodes}", lease.namespace, lease.name)
        }
        _ => String::new(),
    }
}

const fn phase_reason(phase: AllocationPhase) -> &'static str {
    match phase {
        AllocationPhase::Requested => "Requested",
        AllocationPhase::Declined => "Declined",
        AllocationPhase::Reserved => "Reserved",
        AllocationPhase::Provisioning => "Provisioning",
        AllocationPhase::Active => "Active",
        AllocationPhase::Suspended => "Suspended",
        AllocationPhase::Stopping => "Stopping",
        AllocationPhase::Stopped => "Stopped",
    }
}
