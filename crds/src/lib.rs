//! The API of Leasehold: one kind a file, and the vocabulary they share.
//!
//! Numbers that carry money or sizes travel as strings (`"0.85"`, `"128Gi"`, `"2h"`): the schema bounds
//! their form, [`money`], [`quantity`] and [`duration`] read them. They are not parsed by serde, because one
//! malformed object from a stranger must not make a whole watch unreadable.

#![allow(
    clippy::duplicated_attributes,
    reason = "kube's printcolumn repeats type_ by design"
)]

pub mod allocation;
pub mod conditions;
pub mod duration;
pub mod escrow;
pub mod lease;
pub mod money;
pub mod network;
pub mod node;
pub mod offer;
pub mod pool;
pub mod provider;
pub mod quantity;
pub mod reservation;
pub mod schema;
pub mod workload;

pub use allocation::GpuAllocation;
pub use lease::GpuLease;
pub use network::PaymentNetwork;
pub use node::GpuNode;
pub use offer::GpuOffer;
pub use pool::GpuPool;
pub use provider::GpuProvider;
pub use reservation::GpuReservation;

/// API group of every kind.
pub const GROUP: &str = "leasehold.dev";
/// Served version of every kind.
pub const VERSION: &str = "v1alpha1";

/// Label on every object made for a lease: `lease-<26>`, the first 26 characters of the escrow id in base32.
pub const LABEL_LEASE: &str = "leasehold.dev/lease";
/// Label on a namespace or an object a provider's operator made: the provider's name.
pub const LABEL_PROVIDER: &str = "leasehold.dev/provider";
/// Label on what a market's operator made for a lease: the lease's uid.
pub const LABEL_LEASE_UID: &str = "leasehold.dev/lease-uid";
/// Annotation with the whole escrow id.
pub const ANNOTATION_ESCROW: &str = "leasehold.dev/escrow-id";
/// Annotation of a lease's namespace at its provider: until when what its job left behind is kept, RFC 3339.
pub const ANNOTATION_RESULTS_UNTIL: &str = "leasehold.dev/results-until";
/// Annotation of a lease's namespace at its provider: a digest of the objects that are applied for it, there when all of
/// them are.
pub const ANNOTATION_APPLIED: &str = "leasehold.dev/applied";
/// Annotation with which the market's operator marks a lease that it has taken up, so that it seeks what an earlier
/// life left when finalizer and status are gone.
pub const ANNOTATION_KNOWN: &str = "leasehold.dev/known";
/// Annotation by which a person releases a lease whose chain is gone; its value must be the escrow id.
pub const ANNOTATION_ABANDON: &str = "leasehold.dev/abandon";
/// Finalizer the market's operator holds on a lease and its allocations.
pub const FINALIZER_MARKET: &str = "leasehold.dev/market";
/// Finalizer the provider's operator holds on its own reservations.
pub const FINALIZER_PROVIDER: &str = "leasehold.dev/provider";
/// Prefix of a provider's namespace on a market.
pub const PROVIDER_NAMESPACE_PREFIX: &str = "provider-";
/// Extended resource the GPUs are requested by.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

/// Every CRD, in the order they are installed.
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
