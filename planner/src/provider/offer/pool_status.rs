//! The status of a GpuPool: what it can sell, and why it does not.

use std::collections::BTreeSet;

use jiff::Timestamp;
use leasehold_crds::{
    GpuPool,
    provider::pool::{GpuPoolStatus, NotSold, PoolCondition, PoolReason},
    shared::conditions::{ConditionStatus, condition, set},
};

use super::supply::PoolSupply;
use crate::provider::user_namespaces::root_allowed;

/// The status of a pool by its supply. The status of `pool` contains the proofs of user namespaces. `unusable` is why its
/// PaymentNetwork cannot be used, if it cannot.
#[must_use]
pub fn pool_status(
    pool: &GpuPool,
    supply: &PoolSupply,
    unusable: Option<(PoolReason, String)>,
    now: Timestamp,
) -> GpuPoolStatus {
    let generation = pool.metadata.generation.unwrap_or_default();
    let mut status = pool.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.nodes = i64::try_from(supply.nodes).unwrap_or(i64::MAX);
    let gpus = supply.free.iter().map(|n| n.room.gpus);
    status.gpus_free = gpus.map(|n| i64::try_from(n).unwrap_or(0)).sum();
    status.not_sold.clone_from(&supply.not_sold);
    let (truth, reason, message) = if let Some((reason, message)) = unusable {
        (ConditionStatus::False, reason, message)
    } else if supply.overhead.is_none() {
        let class = pool.spec.runtime_class_name.as_deref().unwrap_or_default();
        let message = format!("there is no RuntimeClass {class:?} in this cluster");
        (ConditionStatus::False, PoolReason::NoRuntimeClass, message)
    } else if let Some(words) = &supply.paused {
        let message = format!(
            "the cluster refused the pods of three payers in a row; the pool is offered again ten minutes after the last refusal: {words}"
        );
        (ConditionStatus::False, PoolReason::PodsRefused, message)
    } else if !supply.selling {
        let message = "outside the hours of sale: no new lease is accepted, running ones continue";
        (
            ConditionStatus::False,
            PoolReason::OutsideHours,
            message.to_owned(),
        )
    } else if supply.rows.is_empty() {
        let message = "no node of the pool can be sold now: status.notSold lists the reasons";
        (
            ConditionStatus::False,
            PoolReason::NothingFree,
            message.to_owned(),
        )
    } else {
        (ConditionStatus::True, PoolReason::Offered, String::new())
    };
    let next = condition(PoolCondition::Selling, truth, reason, message, generation);
    set(&mut status.conditions, next, now);
    if supply.overhead.is_some() {
        let (truth, reason, message) = root_allowed(pool, supply);
        let next = condition(PoolCondition::RootAllowed, truth, reason, message, generation);
        set(&mut status.conditions, next, now);
    }
    status
}

/// Nodes that are not sold since the previous status, for a reason that a person should look at.
pub fn newly_not_sold<'a>(
    before: Option<&GpuPoolStatus>,
    now: &'a GpuPoolStatus,
) -> impl Iterator<Item = &'a NotSold> {
    let before: BTreeSet<(String, String)> = before
        .iter()
        .flat_map(|s| &s.not_sold)
        .map(|n| (n.node.clone(), n.reason.clone()))
        .collect();
    let is_new = move |n: &&NotSold| !before.contains(&(n.node.clone(), n.reason.clone()));
    now.not_sold
        .iter()
        .filter(|n| !n.message.is_empty())
        .filter(is_new)
}
