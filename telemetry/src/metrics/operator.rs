//! Metrics of the operator, in both of its roles.

use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use super::{
    ChainAction, ChainOutcome, Class, Controller, LeasePhase, Metrics, ProbeOutcome, ReservationPhase,
};

/// The role of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Market,
    Provider,
}

impl Role {
    /// The controllers that run in this role.
    #[must_use]
    pub const fn controllers(self) -> &'static [Controller] {
        match self {
            Self::Market => &[Controller::Lease, Controller::Allocation, Controller::Orphans],
            Self::Provider => &[
                Controller::Allocation,
                Controller::Reservation,
                Controller::Orphans,
            ],
        }
    }
}

/// The metrics of one operator. Clones share their values.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Reconciles of the controllers.
    pub reconcile: Reconcile,
    /// Calls to the chain.
    pub chain: Chain,
    /// Whether this replica leads.
    pub leader: Leader,
    /// Orphans that are still paid for: accounts at a market, namespaces at a provider.
    pub orphans: Orphans,
    /// Leases by phase. Only the operator of a market has them.
    pub leases: Option<Phases<LeasePhase>>,
    /// Reservations by phase. Only the operator of a provider has them.
    pub reservations: Option<Phases<ReservationPhase>>,
    /// Probes of user namespaces. Only the operator of a provider has them.
    pub probes: Option<Probes>,
}

impl Operator {
    /// Registers all metrics of an operator with this role.
    pub fn register(metrics: &mut Metrics, role: Role) -> Self {
        Self {
            reconcile: Reconcile::register(metrics, role),
            chain: Chain::register(metrics),
            leader: Leader::register(metrics),
            orphans: Orphans::register(metrics),
            leases: (role == Role::Market)
                .then(|| Phases::register(metrics, "leases", "lease", LeasePhase::ALL)),
            reservations: (role == Role::Provider)
                .then(|| Phases::register(metrics, "reservations", "reservation", ReservationPhase::ALL)),
            probes: (role == Role::Provider).then(|| Probes::register(metrics)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByController {
    controller: Controller,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    controller: Controller,
    class: Class,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    action: ChainAction,
    outcome: ChainOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ByPhase<P> {
    phase: P,
}

// The derive macro does not support generics.
impl<P: EncodeLabelValue + Copy> EncodeLabelSet for ByPhase<P> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        EncodeLabel::encode(&("phase", self.phase), encoder.encode_label())
    }
}

/// Reconciles: their duration, and failures by class.
#[derive(Clone, Debug)]
pub struct Reconcile {
    duration: Family<ByController, Histogram, fn() -> Histogram>,
    waited: Family<ByController, Histogram, fn() -> Histogram>,
    failures: Family<ByClass, Counter>,
}

impl Reconcile {
    /// Registers the metrics for the controllers of a role.
    pub fn register(metrics: &mut Metrics, role: Role) -> Self {
        let it = Self {
            duration: Family::new_with_constructor(|| {
                Histogram::new([0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0])
            }),
            waited: Family::new_with_constructor(|| Histogram::new([0.01, 0.1, 1.0, 5.0, 10.0, 30.0, 60.0])),
            failures: Family::default(),
        };
        for &controller in role.controllers() {
            drop(it.duration.get_or_create(&ByController { controller }));
            if controller.has_queue() {
                drop(it.waited.get_or_create(&ByController { controller }));
            }
            for &class in Class::ALL {
                drop(it.failures.get_or_create(&ByClass { controller, class }));
            }
        }
        let registry = metrics.own().sub_registry_with_prefix("reconcile");
        registry.register_with_unit(
            "duration",
            "Duration of one reconcile of one object",
            Unit::Seconds,
            it.duration.clone(),
        );
        registry.register_with_unit(
            "waited",
            "How long an object was queued before its reconcile; seconds mean that reconciles, and with them the API \
             server or the chain, cannot keep up",
            Unit::Seconds,
            it.waited.clone(),
        );
        registry.register(
            "failures",
            "Reconciles that ended in an error, by class: user (needs a change by a user), conflict (retried \
             immediately), transient (retried later)",
            it.failures.clone(),
        );
        it
    }

    /// Records how long an object was queued.
    pub fn waited(&self, controller: Controller, waited: Duration) {
        self.waited
            .get_or_create(&ByController { controller })
            .observe(waited.as_secs_f64());
    }

    /// Records a finished reconcile.
    pub fn observe(&self, controller: Controller, took: Duration, failed: Option<Class>) {
        self.duration
            .get_or_create(&ByController { controller })
            .observe(took.as_secs_f64());
        if let Some(class) = failed {
            self.failures.get_or_create(&ByClass { controller, class }).inc();
        }
    }
}

/// Calls to the chain, by action and outcome.
#[derive(Clone, Debug)]
pub struct Chain {
    calls: Family<ByOutcome, Counter>,
    duration: Family<ByAction, Histogram, fn() -> Histogram>,
    disagreements: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAction {
    action: ChainAction,
}

impl Chain {
    /// Registers the calls to the chain.
    pub fn register(metrics: &mut Metrics) -> Self {
        let it = Self {
            calls: Family::default(),
            duration: Family::new_with_constructor(|| {
                Histogram::new([0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 60.0])
            }),
            disagreements: Counter::default(),
        };
        for &action in ChainAction::ALL {
            drop(it.duration.get_or_create(&ByAction { action }));
            for &outcome in ChainOutcome::ALL {
                drop(it.calls.get_or_create(&ByOutcome { action, outcome }));
            }
        }
        let registry = metrics.own().sub_registry_with_prefix("chain");
        registry.register(
            "calls",
            "Calls to the chain, by action and outcome",
            it.calls.clone(),
        );
        registry.register_with_unit(
            "call_duration",
            "Duration of one call to the chain, which concurrent reads may share; of a write, until it was mined",
            Unit::Seconds,
            it.duration.clone(),
        );
        registry.register(
            "endpoint_disagreements",
            "Answers of an RPC endpoint that the second one of its PaymentNetwork contradicted",
            it.disagreements.clone(),
        );
        it
    }

    /// Records that two endpoints said different things of the same block.
    pub fn disagreed(&self) {
        self.disagreements.inc();
    }

    /// Records a call that was answered or timed out.
    pub fn observe(&self, action: ChainAction, outcome: ChainOutcome, took: Duration) {
        self.calls.get_or_create(&ByOutcome { action, outcome }).inc();
        self.duration
            .get_or_create(&ByAction { action })
            .observe(took.as_secs_f64());
    }
}

/// Objects by phase, and transitions into each phase.
#[derive(Clone, Debug)]
pub struct Phases<P: EncodeLabelValue + Clone + Copy + Eq + Hash + std::fmt::Debug + 'static> {
    now: Family<ByPhase<P>, Gauge>,
    entered: Family<ByPhase<P>, Counter<u64, AtomicU64>>,
    all: &'static [P],
}

impl<P: EncodeLabelValue + Clone + Copy + Eq + Hash + std::fmt::Debug + Send + Sync + 'static> Phases<P> {
    fn register(metrics: &mut Metrics, many: &str, one: &str, all: &'static [P]) -> Self {
        let it = Self {
            now: Family::default(),
            entered: Family::default(),
            all,
        };
        for &phase in all {
            drop(it.now.get_or_create(&ByPhase { phase }));
            drop(it.entered.get_or_create(&ByPhase { phase }));
        }
        let registry = metrics.own();
        registry.register(
            many,
            format!(
                "Number of {many} in each phase, as the leader sees it; 0 at a replica that is not the leader"
            ),
            it.now.clone(),
        );
        registry.register(
            format!("{one}_transitions"),
            format!("Number of {many} that entered each phase"),
            it.entered.clone(),
        );
        it
    }

    /// Records a transition into a phase.
    pub fn entered(&self, phase: impl Into<P>) {
        self.entered.get_or_create(&ByPhase { phase: phase.into() }).inc();
    }

    /// Replaces the counts by phase. A replica that lost leadership passes none.
    pub fn count(&self, phases: impl IntoIterator<Item = impl Into<P>>) {
        let phases: Vec<P> = phases.into_iter().map(Into::into).collect();
        for &phase in self.all {
            let found = phases.iter().filter(|other| **other == phase).count();
            self.now
                .get_or_create(&ByPhase { phase })
                .set(i64::try_from(found).unwrap_or(i64::MAX));
        }
    }
}

/// Probes of user namespaces, by what became of them.
#[derive(Clone, Debug)]
pub struct Probes(Family<ByProbeOutcome, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProbeOutcome {
    outcome: ProbeOutcome,
}

impl Probes {
    /// Registers the metric with the value 0 for each outcome.
    pub fn register(metrics: &mut Metrics) -> Self {
        let it = Self(Family::default());
        for &outcome in ProbeOutcome::ALL {
            drop(it.0.get_or_create(&ByProbeOutcome { outcome }));
        }
        metrics.own().register(
            "user_namespace_probes",
            "Probes of whether pods with a GPU run in user namespaces on a node, by outcome: proven, failed, interrupted \
             (by the cluster), withdrawn (a pod of a lease did not start, and the node is probed again)",
            it.0.clone(),
        );
        it
    }

    /// Records what became of a probe.
    pub fn count(&self, outcome: ProbeOutcome) {
        self.0.get_or_create(&ByProbeOutcome { outcome }).inc();
    }
}

/// Number of orphans that are still paid for.
#[derive(Clone, Debug)]
pub struct Orphans(Gauge);

impl Orphans {
    /// Registers the metric with the value 0.
    pub fn register(metrics: &mut Metrics) -> Self {
        let it = Self(Gauge::default());
        metrics.own().register(
            "orphans",
            "Accounts (market) or namespaces (provider) without an object, which are kept because they may still be paid \
             for; they end at their own deadline",
            it.0.clone(),
        );
        it
    }

    /// Sets the number of orphans found.
    pub fn set(&self, seen: usize) {
        self.0.set(i64::try_from(seen).unwrap_or(i64::MAX));
    }
}

/// Whether this replica leads.
#[derive(Clone, Debug)]
pub struct Leader(Gauge);

impl Leader {
    /// Registers the metric with the value 0.
    pub fn register(metrics: &mut Metrics) -> Self {
        let it = Self(Gauge::default());
        metrics.own().register(
            "leader",
            "1 while this replica is the leader, else 0",
            it.0.clone(),
        );
        it
    }

    /// Sets whether this replica leads.
    pub fn set(&self, leads: bool) {
        self.0.set(i64::from(leads));
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::lease::Phase;

    use super::*;

    fn value(metrics: &Metrics, series: &str) -> String {
        let text = metrics.render().unwrap();
        let line = text.lines().find(|line| {
            line.strip_prefix(series)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        line.unwrap_or_else(|| panic!("no {series} in\n{text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn every_series_exists_from_the_start() {
        let mut metrics = Metrics::new();
        let _operator = Operator::register(&mut metrics, Role::Market);
        assert_eq!(value(&metrics, r#"leasehold_leases{phase="Suspended"}"#), "0");
        assert_eq!(
            value(
                &metrics,
                r#"leasehold_reconcile_failures_total{controller="lease",class="conflict"}"#
            ),
            "0"
        );
        assert_eq!(
            value(
                &metrics,
                r#"leasehold_chain_calls_total{action="open",outcome="reverted"}"#
            ),
            "0"
        );
        assert!(
            !metrics.render().unwrap().contains("leasehold_reservations"),
            "only providers have reservations"
        );
    }

    #[test]
    fn observed_values_are_rendered() {
        let mut metrics = Metrics::new();
        let operator = Operator::register(&mut metrics, Role::Market);
        operator.reconcile.observe(
            Controller::Lease,
            Duration::from_millis(30),
            Some(Class::Transient),
        );
        operator
            .chain
            .observe(ChainAction::Open, ChainOutcome::Ok, Duration::from_secs(1));
        let leases = operator.leases.unwrap();
        leases.entered(Phase::Active);
        leases.count([Phase::Active, Phase::Pending, Phase::Active]);
        assert_eq!(
            value(
                &metrics,
                r#"leasehold_reconcile_duration_seconds_count{controller="lease"}"#
            ),
            "1"
        );
        assert_eq!(
            value(
                &metrics,
                r#"leasehold_reconcile_failures_total{controller="lease",class="transient"}"#
            ),
            "1"
        );
        assert_eq!(
            value(
                &metrics,
                r#"leasehold_chain_calls_total{action="open",outcome="ok"}"#
            ),
            "1"
        );
        assert_eq!(
            value(&metrics, r#"leasehold_lease_transitions_total{phase="Active"}"#),
            "1"
        );
        assert_eq!(value(&metrics, r#"leasehold_leases{phase="Active"}"#), "2");
        leases.count(Vec::<Phase>::new());
        assert_eq!(
            value(&metrics, r#"leasehold_leases{phase="Active"}"#),
            "0",
            "a count replaces the last one"
        );
    }
}
