//! The status of a GpuProvider: whether the market considers its offers.

use jiff::Timestamp;
use leasehold_crds::{
    GpuProvider,
    market::provider::{GpuProviderStatus, ProviderCondition, ProviderReason},
    shared::conditions::{ConditionStatus, condition, set},
};

use crate::placement::Provider;

/// The status of a provider that offers this number of rows.
#[must_use]
pub fn provider_status(
    object: &GpuProvider,
    provider: &Provider,
    rows: usize,
    now: Timestamp,
) -> GpuProviderStatus {
    let (truth, reason, message) = if !provider.alive {
        let message = "no liveness for a minute: its offers are not considered";
        (ConditionStatus::False, ProviderReason::Silent, message)
    } else if !provider.answers {
        let message =
            "it did not answer its last allocations in time: its offers are not considered for five minutes";
        (ConditionStatus::False, ProviderReason::NotAnswering, message)
    } else if rows == 0 {
        let message = "it is live, and offers nothing now";
        (ConditionStatus::False, ProviderReason::NothingOffered, message)
    } else {
        (ConditionStatus::True, ProviderReason::Offering, "")
    };
    let generation = object.metadata.generation.unwrap_or_default();
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let next = condition(ProviderCondition::Ready, truth, reason, message, generation);
    set(&mut status.conditions, next, now);
    status
}
