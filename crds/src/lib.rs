//! The API of Leasehold: a module for each domain, with a file for each kind, and the types that the kinds share.
//!
//! Amounts of money, sizes and durations are strings on the wire (`"0.85"`, `"128Gi"`, `"2h"`). The schema bounds
//! their format; [`payment::money`], [`shared::quantity`] and [`shared::duration`] parse them. Serde does not parse
//! them, because one malformed object would make a whole watch unreadable.

#![allow(
    clippy::duplicated_attributes,
    reason = "kube's printcolumn repeats type_ by design"
)]

pub mod lease;
pub mod market;
pub mod payment;
pub mod provider;
pub mod shared;

pub use lease::GpuLease;
pub use market::{allocation::GpuAllocation, offer::GpuOffer, provider::GpuProvider};
pub use payment::network::PaymentNetwork;
pub use provider::{node::GpuNode, pool::GpuPool, reservation::GpuReservation};

/// API group of every kind.
pub const GROUP: &str = "leasehold.dev";
/// Served version of every kind.
pub const VERSION: &str = "v1alpha1";

/// Label on every object that is created for a lease: `lease-<26>`, with the first 26 characters of the account ID in
/// base32.
pub const LABEL_LEASE: &str = "leasehold.dev/lease";
/// Label on namespaces and objects that a provider operator creates: the name of the provider.
pub const LABEL_PROVIDER: &str = "leasehold.dev/provider";
/// Label on objects that the market operator creates for a lease: the UID of the lease.
pub const LABEL_LEASE_UID: &str = "leasehold.dev/lease-uid";
/// Label on a pod that probes whether pods with a GPU run in user namespaces: the name of the pool.
pub const LABEL_PROBE: &str = "leasehold.dev/probe";
/// Annotation with the complete account ID.
pub const ANNOTATION_ESCROW: &str = "leasehold.dev/escrow-id";
/// Annotation of the namespace of a lease at its provider: the time until which job results are kept, RFC 3339.
pub const ANNOTATION_RESULTS_UNTIL: &str = "leasehold.dev/results-until";
/// Annotation of the namespace of a lease at its provider: a digest of the applied objects. It is set when all of them
/// have been applied.
pub const ANNOTATION_APPLIED: &str = "leasehold.dev/applied";
/// Annotation with which the market operator marks a lease that it has processed. If the finalizer and the status are
/// lost, it searches the chain for the account of such a lease.
pub const ANNOTATION_KNOWN: &str = "leasehold.dev/known";
/// Annotation of the Lease of an agent: its last report before it was started, RFC 3339. The `acquireTime` of the Lease is
/// its first report afterwards. Absent if it was started within one period.
pub const ANNOTATION_LAST_REPORT: &str = "leasehold.dev/last-report-before-start";
/// Annotation with which a person releases a lease whose chain is permanently unavailable. Its value must be the
/// account ID, or the UID of the lease if its status names no account.
pub const ANNOTATION_ABANDON: &str = "leasehold.dev/abandon";
/// Finalizer of the market operator on leases and allocations.
pub const FINALIZER_MARKET: &str = "leasehold.dev/market";
/// Finalizer of the provider operator on its reservations.
pub const FINALIZER_PROVIDER: &str = "leasehold.dev/provider";
/// Prefix of the namespace of a provider in the market cluster.
pub const PROVIDER_NAMESPACE_PREFIX: &str = "provider-";
/// Extended resource by which GPUs are requested.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

/// All CRDs.
#[must_use]
pub fn all()
-> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    use kube::CustomResourceExt;
    vec![
        GpuAllocation::crd(),
        GpuLease::crd(),
        GpuNode::crd(),
        GpuOffer::crd(),
        GpuPool::crd(),
        GpuProvider::crd(),
        GpuReservation::crd(),
        PaymentNetwork::crd(),
    ]
}

/// Words that appear in statuses and Events, by the enum that they belong to: condition types, reasons, phases.
#[must_use]
pub fn words() -> Vec<(&'static str, Vec<&'static str>)> {
    fn of<T: shared::words::Word>(name: &'static str, all: &[T]) -> (&'static str, Vec<&'static str>) {
        (name, all.iter().map(|word| word.as_str()).collect())
    }
    use lease::conditions::{LeaseCondition, LeaseEvent, LeaseReason};
    use market::{allocation, provider as gpu_provider};
    use payment::network;
    use provider::{node, pool, reservation};
    vec![
        of("lease Phase", lease::Phase::ALL),
        of("CloseReason", lease::CloseReason::ALL),
        of("Blocker", lease::Blocker::ALL),
        of("LeaseCondition", LeaseCondition::ALL),
        of("LeaseReason", LeaseReason::ALL),
        of("LeaseEvent", LeaseEvent::ALL),
        of("AllocationPhase", allocation::AllocationPhase::ALL),
        of("StopReason", allocation::StopReason::ALL),
        of("DeclineReason", allocation::DeclineReason::ALL),
        of("ProviderCondition", gpu_provider::ProviderCondition::ALL),
        of("ProviderReason", gpu_provider::ProviderReason::ALL),
        of("NetworkCondition", network::NetworkCondition::ALL),
        of("NetworkReason", network::NetworkReason::ALL),
        of("PoolCondition", pool::PoolCondition::ALL),
        of("PoolReason", pool::PoolReason::ALL),
        of("NotSoldReason", pool::NotSoldReason::ALL),
        of("NodeCondition", node::NodeCondition::ALL),
        of("NodeReason", node::NodeReason::ALL),
        of("ReservationCondition", reservation::ReservationCondition::ALL),
        of("ReservationReason", reservation::ReservationReason::ALL),
    ]
}
