//! A lease whose status was lost: it is recovered from the account and the allocations that still exist.

use jiff::Timestamp;
use leasehold_crds::{
    PROVIDER_NAMESPACE_PREFIX,
    lease::{Intent, IntentAction, LeaseEscrow, LeaseLeg},
};

use super::{
    decide::Step,
    plan::Plan,
    world::{AllocationSeen, RecoveredAccount, World},
};
use crate::{
    escrow::{Leg, Terms, allocation_name},
    observed::Observed,
};

/// Why an account that this market opened for the lease does not serve it: it is not what the lease would open now. An
/// allocation is the market's own record of such an account, in which all terms are repeated. `None` if it serves.
pub(super) fn misfit(world: &World, terms: &Terms) -> Option<&'static str> {
    let stated = |a: &AllocationSeen| Terms::from_wire(&a.object.spec.escrow).as_ref() == Ok(terms);
    if world.allocations.iter().any(stated) {
        return None;
    }
    let (Ok(network), Ok(request)) = (world.network(), &world.parsed.request) else {
        return Some("there is no PaymentNetwork or valid spec to compare it with");
    };
    let most = request
        .price_cap
        .rate_floor(request.gpus(), network.decimals)
        .unwrap_or_default();
    if !network.secret.chose(terms) || terms.market != network.market_id {
        Some("another market opened it")
    } else if terms.token != network.currency.token {
        Some("its token is not the one of the PaymentNetwork")
    } else if terms.closer != network.closer {
        Some("its closer is not the key of this market")
    } else if u64::try_from(terms.legs.len()).is_ok_and(|legs| legs > request.nodes) || terms.rate() > most {
        Some("it pays more than the lease permits")
    } else {
        None
    }
}

/// Status was lost: it is written again from the account that was found and the allocations that are there.
pub(super) fn adopt(world: &World, prior: &RecoveredAccount, plan: &mut Plan) {
    let mine = || {
        let mine = |a: &&AllocationSeen| Terms::from_wire(&a.object.spec.escrow).as_ref() == Ok(&prior.terms);
        world.allocations.iter().filter(mine)
    };
    let (chain_id, contract) = match (&world.network, mine().next()) {
        (Observed::Known(Some(n)), _) => (n.currency.chain_id, n.currency.escrow),
        (_, Some(seen)) => (
            u64::try_from(seen.object.spec.escrow.chain_id).unwrap_or_default(),
            seen.object.spec.escrow.contract.parse().unwrap_or_default(),
        ),
        _ => return,
    };
    let lease_leg = |index: usize, leg: &Leg| {
        let of_leg = |a: &&AllocationSeen| usize::try_from(a.object.spec.leg) == Ok(index);
        if let Some(seen) = mine().find(of_leg) {
            let spec = &seen.object.spec;
            return LeaseLeg {
                provider: provider_of(seen),
                pool: spec.pool.clone(),
                class: spec.class.clone(),
                namespace: allocation_name(prior.terms.id(), index),
                nodes: spec.nodes,
                price_per_gpu_hour: spec.price_per_gpu_hour.clone(),
                started: false,
                failed_since: None,
            };
        }
        // Its allocation no longer exists: the leg identifies the provider.
        let serves = |p: &&crate::placement::Provider| (p.payee, p.controller) == (leg.payee, leg.controller);
        let provider = world.providers.iter().find(serves).map_or("unknown", |p| &p.name);
        LeaseLeg {
            provider: provider.into(),
            pool: "unknown".into(),
            class: "unknown".into(),
            namespace: allocation_name(prior.terms.id(), index),
            nodes: nodes(world, prior.terms.legs.len()),
            price_per_gpu_hour: "0".into(),
            started: false,
            failed_since: None,
        }
    };
    plan.status.round = i64::try_from(prior.round).unwrap_or(i64::MAX);
    plan.status.escrow = Some(LeaseEscrow {
        terms: prior.terms.to_wire(chain_id, contract),
        open_by: open_by(world, &prior.terms),
        legs: prior
            .terms
            .legs
            .iter()
            .enumerate()
            .map(|(i, l)| lease_leg(i, l))
            .collect(),
    });
    plan.status.providers = providers_text(plan.status.escrow.as_ref());
}

/// Number of nodes of a leg whose allocation no longer exists. The terms do not state how several legs share the nodes.
fn nodes(world: &World, legs: usize) -> i64 {
    let request = world.parsed.request.as_ref();
    let all = request.ok().filter(|_| legs == 1).map(|r| r.nodes);
    all.and_then(|nodes| i64::try_from(nodes).ok()).unwrap_or(1)
}

/// Unix time in seconds until which an account can be opened: the terms state it by when it must start. A spec that cannot be
/// read yields the latest time that is possible, because an absence before this time does not show that no account will be
/// opened.
fn open_by(world: &World, terms: &Terms) -> i64 {
    let request = world.parsed.request.as_ref();
    let start_within = request.map_or(0, |r| r.start_within_seconds);
    i64::try_from(terms.start_by.saturating_sub(start_within)).unwrap_or(i64::MAX)
}

/// The status was lost before the chain shows an account: the round is that of the newest allocation that still exists.
/// If an allocation exists for every leg, the account may be about to open, so that round continues.
pub(super) fn resume(world: &World, now: Timestamp, plan: &mut Plan) -> Option<Step> {
    let newest = world.allocations.iter().max_by_key(|a| a.object.spec.round)?;
    let spec = &newest.object.spec;
    let round = spec.round.max(1);
    let mine = || {
        let same = |a: &&AllocationSeen| a.object.spec.escrow == spec.escrow;
        world.allocations.iter().filter(same)
    };
    let complete = |terms: &Terms| mine().count() >= terms.legs.len();
    match Terms::from_wire(&spec.escrow) {
        Ok(terms) if complete(&terms) => {
            let round = round.unsigned_abs();
            if mine().filter(|a| a.signed).count() >= terms.legs.len() {
                // All had accepted: the intent to open may have been stored, and may have been carried out.
                plan.status.intent = Some(Intent {
                    action: IntentAction::Open,
                    total: Some(spec.deposit.clone()),
                    written_at: now.to_string(),
                });
            }
            adopt(world, &RecoveredAccount { round, terms }, plan);
        }
        _ => plan.status.round = round,
    }
    Some(Step::unchanged())
}

/// Name of the provider that an allocation is addressed to.
pub(super) fn provider_of(allocation: &AllocationSeen) -> String {
    let namespace = allocation
        .object
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    namespace
        .strip_prefix(PROVIDER_NAMESPACE_PREFIX)
        .unwrap_or(namespace)
        .to_owned()
}

/// Names of the providers, joined by commas.
pub(super) fn providers_text(escrow: Option<&LeaseEscrow>) -> String {
    let mut names: Vec<&str> = escrow
        .iter()
        .flat_map(|e| &e.legs)
        .map(|s| s.provider.as_str())
        .collect();
    names.dedup();
    names.join(",")
}
