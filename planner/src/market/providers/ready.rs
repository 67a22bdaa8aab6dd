//! The status of a GpuProvider: whether the market considers its offers.

use jiff::Timestamp;
use leasehold_crds::{
    GpuProvider,
    market::provider::{GpuProviderStatus, ProviderCondition, ProviderReason},
    shared::conditions::{ConditionStatus, condition, set},
};

use super::responsiveness::ResponseRecord;
use crate::placement::Provider;

/// The status of a provider that offers this number of rows. One whose GPUs are all leased is as it should be.
#[must_use]
pub fn provider_status(
    object: &GpuProvider,
    provider: &Provider,
    record: &ResponseRecord,
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
    } else if !provider.starts {
        let message = "other providers started leases that it had accepted and not started: its offers are not considered for a while";
        (ConditionStatus::False, ProviderReason::NotStarting, message)
    } else if rows == 0 {
        let message = "it is live, and has nothing free now";
        (ConditionStatus::True, ProviderReason::NothingOffered, message)
    } else {
        (ConditionStatus::True, ProviderReason::Offering, "")
    };
    let generation = object.metadata.generation.unwrap_or_default();
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    record.store(&mut status);
    let next = condition(ProviderCondition::Ready, truth, reason, message, generation);
    set(&mut status.conditions, next, now);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::Address;

    #[test]
    fn a_provider_that_is_sold_out_is_ready_and_a_silent_one_is_not() {
        let of = |alive: bool, (answers, starts): (bool, bool), rows: usize| {
            let provider = Provider {
                name: "p".into(),
                region: String::new(),
                payee: Address([1; 20]),
                controller: Address([2; 20]),
                alive,
                answers,
                starts,
            };
            let object = GpuProvider::new("p", leasehold_crds::market::provider::GpuProviderSpec::default());
            let status = provider_status(
                &object,
                &provider,
                &ResponseRecord::default(),
                rows,
                Timestamp::UNIX_EPOCH,
            );
            let condition = &status.conditions[0];
            format!("{} {}", condition.status, condition.reason)
        };
        assert_eq!(of(true, (true, true), 1), "True Offering");
        assert_eq!(of(true, (true, true), 0), "True NothingOffered");
        assert_eq!(of(true, (false, true), 1), "False NotAnswering");
        assert_eq!(of(true, (true, false), 1), "False NotStarting");
        assert_eq!(of(false, (true, true), 1), "False Silent");
    }
}
