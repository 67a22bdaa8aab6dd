//! The scripts and expressions of examples/06-gitops, on the statuses of leases in simulation runs and on each
//! condition of the other kinds.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use leasehold_crds::{
    GpuLease, GpuPool, GpuProvider, PaymentNetwork,
    lease::{
        CloseReason, GpuLeaseStatus, Phase,
        conditions::{LeaseCondition, LeaseReason},
    },
    provider::pool::NotSold,
    shared::conditions::{ConditionStatus, condition, find},
};
use leasehold_gitops::{Expressions, Waits, argo, folder};
use leasehold_simulator::Sim;
use serde_json::{Value, json};

const SEEDS: u64 = 60;
const STEPS: u64 = 6_000;

fn script(kind: &str) -> String {
    let path = folder().join(format!("argocd/health/{kind}.lua"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a controller sees of an object. Each combination is tested once.
type Observation = (Phase, Option<CloseReason>, String, String, String, bool, bool);

fn observation(lease: &GpuLease) -> Option<Observation> {
    let status = lease.status.as_ref()?;
    let of = |kind| find(&status.conditions, kind).map(|c| (c.status.clone(), c.reason.clone()));
    let (ready, reason) = of("Ready").unwrap_or_default();
    let (funded, _) = of("Funded").unwrap_or_default();
    let seen = Some(status.observed_generation) == lease.metadata.generation;
    let deleting = lease.metadata.deletion_timestamp.is_some();
    Some((
        status.phase,
        status.close_reason,
        ready,
        reason,
        funded,
        seen,
        deleting,
    ))
}

/// All distinct statuses of leases in some simulation runs.
fn leases() -> Vec<GpuLease> {
    let runs = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn(move || {
                    let mut found = BTreeMap::new();
                    for seed in (half..SEEDS).step_by(2) {
                        let mut sim = Sim::new(seed);
                        for _ in 0..STEPS {
                            sim.step().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                            for lease in sim.leases() {
                                let key = format!("{:?}", observation(lease));
                                found.entry(key).or_insert_with(|| lease.clone());
                            }
                        }
                    }
                    found
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|h| h.join().expect("a run ends"))
            .collect::<Vec<_>>()
    });
    let all: BTreeMap<String, GpuLease> = runs.into_iter().flatten().collect();
    all.into_values().collect()
}

/// The expected result, from phase and reasons alone.
fn expected(lease: &GpuLease) -> (&'static str, Waits) {
    let Some((phase, closed, ready, reason, _, true, _)) = observation(lease) else {
        return ("Progressing", Waits::InProgress);
    };
    match phase {
        Phase::Pending => match reason.as_str() {
            "InvalidSpec" | "NetworkNotFound" | "PriceOutOfRange" => ("Degraded", Waits::Failed),
            "WalletNotReadable" | "WalletMalformed" | "InsufficientFunds" | "InsufficientGas" => {
                ("Degraded", Waits::InProgress)
            }
            _ => ("Progressing", Waits::InProgress),
        },
        Phase::Matched | Phase::Funded | Phase::Provisioning | Phase::Settling => {
            ("Progressing", Waits::InProgress)
        }
        Phase::Active => match (ready.as_str(), reason.as_str()) {
            ("True", _) => ("Healthy", Waits::Current),
            ("Unknown", _) => ("Unknown", Waits::InProgress),
            (_, "GpuFault" | "NodeLost") => ("Degraded", Waits::InProgress),
            _ => ("Progressing", Waits::InProgress),
        },
        Phase::Suspended => ("Suspended", Waits::InProgress),
        Phase::Closed => match closed.expect("a closed lease has a reason") {
            CloseReason::JobSucceeded | CloseReason::TermOver => ("Healthy", Waits::Current),
            CloseReason::Deleted => ("Progressing", Waits::InProgress),
            CloseReason::FundsSpent
            | CloseReason::JobFailed
            | CloseReason::NeverStarted
            | CloseReason::ProviderStopped
            | CloseReason::ClosedOnChain
            | CloseReason::Abandoned => ("Degraded", Waits::Failed),
        },
    }
}

#[test]
fn every_status_of_a_lease_is_evaluated() {
    let (script, flux) = (
        script("GpuLease"),
        Expressions::of("GpuLease").expect("expressions"),
    );
    let mut seen = BTreeSet::new();
    let leases = leases();
    for lease in &leases {
        let object = serde_json::to_value(lease).expect("a lease as JSON");
        let (status, message) = argo(&script, &object).unwrap_or_else(|e| panic!("{e}\n{object:#}"));
        let waits = flux.waits(&object).unwrap_or_else(|e| panic!("{e}\n{object:#}"));
        assert_eq!((status.as_str(), waits), expected(lease), "{message}\n{object:#}");
        assert!(!message.is_empty(), "{object:#}");
        seen.insert(status);
        if let Some((phase, closed, ..)) = observation(lease) {
            seen.insert(format!("{phase:?}"));
            seen.extend(closed.map(|c| format!("{c:?}")));
        }
    }
    println!("{} different statuses: {seen:?}", leases.len());
    for wanted in [
        "Pending",
        "Matched",
        "Funded",
        "Provisioning",
        "Active",
        "Suspended",
        "Settling",
        "Closed",
        "Healthy",
        "Progressing",
        "Degraded",
        "Unknown",
        "JobSucceeded",
        "TermOver",
    ] {
        assert!(
            seen.contains(wanted),
            "the simulation shows no {wanted}: {seen:?}"
        );
    }
}

/// An object with conditions for that observed generation.
fn with(mut object: Value, observed: i64, conditions: Value) -> Value {
    object["metadata"]["generation"] = json!(2);
    object["status"]["observedGeneration"] = json!(observed);
    object["status"]["conditions"] = conditions;
    object
}

fn one(kind: &str, truth: ConditionStatus, reason: &str, message: &str) -> Value {
    json!([{
        "type": kind, "status": truth.as_str(), "reason": reason, "message": message, "observedGeneration": 2,
        "lastTransitionTime": Timestamp::UNIX_EPOCH.to_string(),
    }])
}

#[test]
fn an_object_that_was_not_reconciled_is_not_ready() {
    for kind in ["GpuLease", "GpuPool", "GpuProvider", "PaymentNetwork"] {
        let new =
            json!({"kind": kind, "metadata": {"name": "x", "generation": 1}, "spec": {"marketId": "0x1"}});
        assert_eq!(
            argo(&script(kind), &new).expect("an answer").0,
            "Progressing",
            "{kind}"
        );
        // The spec has changed since the last reconcile.
        let stale = with(new.clone(), 1, one("Ready", ConditionStatus::True, "Serving", ""));
        assert_eq!(
            argo(&script(kind), &stale).expect("an answer").0,
            "Progressing",
            "{kind}"
        );
        if let Ok(flux) = Expressions::of(kind) {
            assert_eq!(flux.waits(&new).expect("one answer"), Waits::InProgress, "{kind}");
            assert_eq!(
                flux.waits(&stale).expect("one answer"),
                Waits::InProgress,
                "{kind}"
            );
        }
    }
}

/// The simulation covers the frequent ends; each has a result.
#[test]
fn every_end_of_a_lease_is_evaluated() {
    let (script, flux) = (
        script("GpuLease"),
        Expressions::of("GpuLease").expect("expressions"),
    );
    for reason in [
        CloseReason::TermOver,
        CloseReason::Deleted,
        CloseReason::FundsSpent,
        CloseReason::JobSucceeded,
        CloseReason::JobFailed,
        CloseReason::NeverStarted,
        CloseReason::ProviderStopped,
        CloseReason::ClosedOnChain,
        CloseReason::Abandoned,
    ] {
        let mut lease = GpuLease::new("x", Default::default());
        lease.metadata.generation = Some(2);
        lease.status = Some(GpuLeaseStatus {
            observed_generation: 2,
            phase: Phase::Closed,
            close_reason: Some(reason),
            ..Default::default()
        });
        let object = serde_json::to_value(&lease).expect("JSON");
        let (status, message) = argo(&script, &object).expect("an answer");
        let waits = flux.waits(&object).expect("one answer");
        assert_eq!((status.as_str(), waits), expected(&lease), "{reason:?}");
        assert_eq!(message, format!("Closed, {reason:?}: spent 0, refunded 0"));
    }
}

#[test]
fn faults_and_failed_top_ups_of_a_lease_are_reported() {
    let lease = serde_json::to_value(GpuLease::new("x", Default::default())).expect("JSON");
    let mut active = lease.clone();
    for (reason, message) in [("GpuFault", "node-1: GPU 0 lost"), ("NodeLost", "node-1")] {
        active = with(
            lease.clone(),
            2,
            one("Ready", ConditionStatus::False, reason, message),
        );
        active["status"]["phase"] = json!("Active");
        let result = argo(&script("GpuLease"), &active).expect("an answer");
        assert_eq!(
            result,
            ("Degraded".to_owned(), format!("Active, {reason}: {message}"))
        );
    }

    let ready = condition(
        LeaseCondition::Ready,
        ConditionStatus::True,
        LeaseReason::Serving,
        "",
        2,
    );
    let funded = condition(
        LeaseCondition::Funded,
        ConditionStatus::False,
        LeaseReason::InsufficientFunds,
        "0x… holds too little",
        2,
    );
    active["status"]["conditions"] = json!([ready, funded]);
    let (status, message) = argo(&script("GpuLease"), &active).expect("an answer");
    assert_eq!(status, "Healthy");
    assert_eq!(
        message,
        "Active, but not topped up: InsufficientFunds: 0x… holds too little"
    );
}

#[test]
fn a_pool_is_degraded_only_by_errors() {
    let pool = serde_json::to_value(GpuPool::new("x", Default::default())).expect("JSON");
    let flux = Expressions::of("GpuPool").expect("expressions");
    use ConditionStatus::{False, True};
    use Waits::{Current, Failed};
    let sold = |reason: &str| {
        json!([NotSold {
            node: "node-1".into(),
            reason: reason.into(),
            message: String::new(),
        }])
    };
    let cases = [
        (True, "Offered", 1, json!([]), "Healthy", Current),
        (False, "NothingFree", 1, sold("NoGpuFree"), "Healthy", Current),
        (False, "NothingFree", 1, sold("NotForSale"), "Healthy", Current),
        (False, "NothingFree", 1, sold("Unhealthy"), "Degraded", Current),
        (True, "Offered", 2, sold("AgentSilent"), "Degraded", Current),
        (False, "NothingFree", 0, json!([]), "Degraded", Current),
        (False, "OutsideHours", 1, json!([]), "Suspended", Current),
        (False, "PodsRefused", 1, json!([]), "Degraded", Current),
        (False, "NoPaymentNetwork", 1, json!([]), "Degraded", Failed),
        (False, "NoRuntimeClass", 1, json!([]), "Degraded", Failed),
    ];
    for (truth, reason, nodes, not_sold, health, waits) in cases {
        let mut object = with(pool.clone(), 2, one("Selling", truth, reason, ""));
        object["status"]["nodes"] = json!(nodes);
        object["status"]["notSold"] = not_sold;
        let (status, message) = argo(&script("GpuPool"), &object).expect("an answer");
        assert_eq!(status, health, "{reason}: {message}");
        assert_eq!(flux.waits(&object).expect("one answer"), waits, "{reason}");
    }
}

#[test]
fn providers_and_networks() {
    let provider = serde_json::to_value(GpuProvider::new("x", Default::default())).expect("JSON");
    for (truth, reason, health) in [
        (ConditionStatus::True, "Offering", "Healthy"),
        (ConditionStatus::True, "NothingOffered", "Healthy"),
        (ConditionStatus::False, "NotAnswering", "Degraded"),
        (ConditionStatus::False, "NotStarting", "Degraded"),
        (ConditionStatus::False, "Silent", "Degraded"),
    ] {
        let object = with(provider.clone(), 2, one("Ready", truth, reason, "why"));
        assert_eq!(
            argo(&script("GpuProvider"), &object).expect("an answer").0,
            health,
            "{reason}"
        );
    }
    let network = serde_json::to_value(PaymentNetwork::new("x", Default::default())).expect("JSON");
    for (truth, reason, health) in [
        (ConditionStatus::True, "Reachable", "Healthy"),
        (ConditionStatus::Unknown, "Unreachable", "Unknown"),
        (ConditionStatus::False, "NoMarketId", "Degraded"),
    ] {
        let object = with(network.clone(), 2, one("Reachable", truth, reason, "why"));
        assert_eq!(
            argo(&script("PaymentNetwork"), &object).expect("an answer").0,
            health,
            "{reason}"
        );
    }
    // A provider does not report this condition, so controllers must not wait for it.
    assert_eq!(
        argo(&script("PaymentNetwork"), &network).expect("an answer").0,
        "Healthy"
    );
}
