//! The API of Leasehold: a module for each domain, with a file for each kind, and the types that the kinds share.
//!
//! Amounts of money, sizes and durations are strings on the wire (`"0.85"`, `"128Gi"`, `"2h"`). The schema bounds
//! their form; [`payment::money`], [`shared::quantity`] and [`shared::duration`] parse them. Serde does not parse
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
