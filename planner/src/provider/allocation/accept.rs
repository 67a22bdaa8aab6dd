//! The provider's answer to an allocation: reserve and sign, decline with a reason, or report.

use jiff::Timestamp;
use leasehold_crds::{
    GpuAllocation, GpuPool, GpuReservation,
    lease::OnFundsEnd,
    market::allocation::{AllocationPhase, Declined, GpuAllocationStatus},
    payment::money::{Price, TokenAmount},
    provider::reservation::{GpuReservationSpec, Hosting},
    shared::{duration, quantity},
};

use crate::{
    escrow::{Address, Terms},
    placement::Currency,
    ports::AcceptanceMessage,
    provider::{
        offer::supply::{PoolSupply, pick},
        workload::results::{self, Retention},
    },
    request::Shape,
};

/// Who this provider is, and by what it is paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of this market, for reservations.
    pub market: String,
    /// Cold address that is paid.
    pub payee: Address,
    /// Hot key's address.
    pub controller: Address,
}

/// A pool with what it can sell now and what it is paid in.
#[derive(Clone, Debug)]
pub struct PoolSeen<'a> {
    /// The pool.
    pub pool: &'a GpuPool,
    /// What it can sell.
    pub supply: &'a PoolSupply,
    /// Chain, contract and token of its PaymentNetwork, and the token's decimals.
    pub currency: Option<(Currency, u32)>,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The question.
    pub allocation: &'a GpuAllocation,
    /// What is reserved for it.
    pub reservation: Option<&'a GpuReservation>,
    /// The pool it names, if this provider has it.
    pub pool: Option<PoolSeen<'a>>,
    /// Who we are.
    pub identity: &'a Identity,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// A reservation to be made or followed upwards (release, notAfter).
    pub reserve: Option<Box<GpuReservationSpec>>,
    /// An acceptance to be signed into the status.
    pub accept: Option<AcceptanceMessage>,
    /// The status to be reported.
    pub status: GpuAllocationStatus,
}

/// An unpaid reservation outlives `openBy` by this, so that a payment in the last second finds it.
pub const DEADLINE_MARGIN_SECONDS: i64 = 30;
/// A question that could be paid later than this from now is declined: it would hold room for nothing.
const OPEN_BY_SECONDS_MAX: i64 = 300;

/// Decides.
#[must_use]
pub fn decide(world: &World<'_>, now: Timestamp) -> Plan {
    let allocation = world.allocation;
    let mut status = allocation.status.clone().unwrap_or_default();
    status.observed_generation = allocation.metadata.generation.unwrap_or_default();
    let spec = &allocation.spec;
    if let Some(reservation) = world.reservation {
        if Some(&reservation.spec.allocation_uid) != allocation.metadata.uid.as_ref() {
            // Left of an earlier question under this name; it goes by its own deadline, and its room with it.
            return Plan {
                reserve: None,
                accept: None,
                status,
            };
        }
        mirror(reservation, &mut status);
        let mut follow = reservation.spec.clone();
        follow.release |= spec.release;
        follow.allocation.drop_results |= spec.drop_results;
        // Upwards, and never beyond the longest term this pool sold it for.
        let asked = spec.not_after.min(follow.hosting.not_after_max);
        follow.allocation.not_after = follow.allocation.not_after.max(asked);
        let reserve = (follow != reservation.spec).then(|| Box::new(follow));
        let accept = (status.acceptance.is_none() && now.as_second() < spec.open_by && !spec.release)
            .then(|| message(world, reservation))
            .flatten();
        return Plan {
            reserve,
            accept,
            status,
        };
    }
    if status.stopped_at.is_some() || status.declined.is_some() {
        return Plan {
            reserve: None,
            accept: None,
            status,
        };
    }
    if spec.release || status.acceptance.is_some() {
        // Nothing of it is here (any more).
        status.phase = AllocationPhase::Stopped;
        status.stopped_at = Some(now.to_string());
        return Plan {
            reserve: None,
            accept: None,
            status,
        };
    }
    match reserve(world, now) {
        Ok(reservation) => Plan {
            reserve: Some(Box::new(reservation)),
            accept: None,
            status,
        },
        Err((reason, message)) => {
            status.phase = AllocationPhase::Declined;
            status.declined = Some(Declined {
                reason: reason.into(),
                message: message.chars().take(1000).collect(),
            });
            Plan {
                reserve: None,
                accept: None,
                status,
            }
        }
    }
}

fn message(world: &World<'_>, reservation: &GpuReservation) -> Option<AcceptanceMessage> {
    let spec = &world.allocation.spec;
    let terms = Terms::from_wire(&spec.escrow).ok()?;
    let leg = usize::try_from(spec.leg).ok()?;
    Some(AcceptanceMessage {
        escrow_id: terms.id(),
        leg: u16::try_from(spec.leg).ok()?,
        rate: terms.legs.get(leg)?.rate.0,
        not_after: u64::try_from(reservation.spec.allocation.not_after).ok()?,
        deadline: u64::try_from(reservation.spec.deadline).ok()?,
    })
}

/// What the reservation says is what the market is told.
fn mirror(reservation: &GpuReservation, status: &mut GpuAllocationStatus) {
    status.not_after = Some(reservation.spec.allocation.not_after);
    let Some(from) = &reservation.status else {
        status.phase = AllocationPhase::Reserved;
        return;
    };
    status.phase = from.phase.max_reserved();
    status.job.clone_from(&from.job);
    status.endpoints.clone_from(&from.endpoints);
    status.results.clone_from(&from.results);
    status.stopped_at.clone_from(&from.stopped_at);
    status.stop_reason.clone_from(&from.stop_reason);
    // Of this object, whose generations are not the reservation's.
    status.conditions.clone_from(&from.conditions);
    for condition in &mut status.conditions {
        condition.observed_generation = Some(status.observed_generation);
    }
}

trait MaxReserved {
    fn max_reserved(self) -> Self;
}

impl MaxReserved for AllocationPhase {
    fn max_reserved(self) -> Self {
        match self {
            Self::Requested => Self::Reserved,
            Self::Declined
            | Self::Reserved
            | Self::Provisioning
            | Self::Active
            | Self::Suspended
            | Self::Stopping
            | Self::Stopped => self,
        }
    }
}

type Refusal = (&'static str, String);

/// Checks the question against our own pools, prices and money, and picks nodes for it.
fn reserve(world: &World<'_>, now: Timestamp) -> Result<GpuReservationSpec, Refusal> {
    let spec = &world.allocation.spec;
    let wrong = |reason, message: &str| Err((reason, message.to_owned()));
    let Some(seen) = &world.pool else {
        return Err((
            "UnknownPool",
            format!("this provider has no pool {:?}", spec.pool),
        ));
    };
    let Some((currency, decimals)) = seen.currency else {
        return wrong("NoPaymentNetwork", "the pool's PaymentNetwork can't be used now");
    };
    let terms = Terms::from_wire(&spec.escrow).map_err(|e| ("BadTerms", e.to_string()))?;
    let same = i64::try_from(currency.chain_id) == Ok(spec.escrow.chain_id)
        && spec.escrow.contract.parse() == Ok(currency.escrow)
        && terms.token == currency.token;
    if !same {
        return wrong(
            "OtherMoney",
            "chain, escrow contract or token are not this provider's",
        );
    }
    let leg = usize::try_from(spec.leg)
        .ok()
        .and_then(|i| terms.legs.get(i))
        .ok_or(("BadTerms", "there is no such leg".to_owned()))?;
    if leg.payee != world.identity.payee || leg.controller != world.identity.controller {
        return wrong(
            "OtherPayee",
            "the leg does not pay this provider, or another key controls it",
        );
    }
    let shape = Shape::from_wire(&spec.per_node).map_err(|e| ("BadShape", e.to_string()))?;
    let nodes = usize::try_from(spec.nodes).map_err(|_| ("BadShape", "nodes is out of range".to_owned()))?;
    let price = Price::parse(&seen.pool.spec.price_per_gpu_hour).map_err(|e| ("BadPrice", e.to_string()))?;
    let fair = price.rate_floor(shape.gpus.saturating_mul(nodes as u64), decimals);
    if fair.is_none_or(|fair| leg.rate < fair) {
        return Err(("PriceTooLow", format!("the pool's price is {price} per GPU-hour")));
    }
    if TokenAmount::parse(&spec.deposit).is_ok_and(|d| d.0 == 0) {
        return wrong("NoDeposit", "nothing would be deposited");
    }
    if spec.open_by <= now.as_second() || spec.open_by > now.as_second() + OPEN_BY_SECONDS_MAX {
        return wrong(
            "BadDeadline",
            "openBy is past or too far ahead; are both clocks right?",
        );
    }
    let longest = duration::seconds(&seen.pool.spec.max_duration).unwrap_or(0)
        + duration::seconds(&seen.pool.spec.max_pause).unwrap_or(0)
        + 7200;
    let not_after_max = now
        .as_second()
        .saturating_add(i64::try_from(longest).unwrap_or(i64::MAX / 2));
    if spec.not_after > not_after_max {
        return Err((
            "TooLong",
            format!("the pool sells at most {}", seen.pool.spec.max_duration),
        ));
    }
    let pausable = duration::seconds(&seen.pool.spec.max_pause).unwrap_or(0);
    if spec.on_funds_end == OnFundsEnd::Pause && u64::from(terms.pause_for) > pausable {
        return Err((
            "PauseTooLong",
            format!("the pool keeps storage for at most {}", seen.pool.spec.max_pause),
        ));
    }
    if let Some(storage) = &spec.storage {
        let most = seen
            .pool
            .spec
            .storage
            .as_ref()
            .and_then(|s| quantity::bytes(&s.max_size).ok())
            .unwrap_or(0);
        if quantity::bytes(&storage.size).map_err(|e| ("BadShape", e.to_string()))? > most {
            return Err((
                "StorageTooLarge",
                format!("the pool has volumes of at most {most} bytes"),
            ));
        }
    }
    let retention =
        Retention::of(&spec.workload, spec.storage.as_ref()).map_err(|e| ("BadResults", e.to_string()))?;
    let longest = results::longest(&seen.pool.spec);
    if retention.is_some_and(|retention| retention.seconds > longest) {
        return Err((
            "ResultsTooLong",
            format!("the pool keeps results for at most {}", duration::text(longest)),
        ));
    }
    if !seen.supply.selling {
        return wrong("NotSelling", "the pool is not for sale at this hour");
    }
    // A session's tenant is root inside a user namespace: where there is none, its pods would never start.
    let root = spec.workload.session.is_some();
    let mut free = seen.supply.free.clone();
    free.retain(|node| node.user_namespaces || !root);
    let Some(picked) = pick(&free, &shape, nodes) else {
        if pick(&seen.supply.free, &shape, nodes).is_some() {
            return wrong(
                "RootNotAllowed",
                "a session is root in a user namespace, and too few of the pool's nodes have these",
            );
        }
        return Err((
            "NoRoom",
            format!(
                "{} nodes of the pool have room, none or too few for {nodes} of this share",
                seen.supply.free.len()
            ),
        ));
    };
    let meta = &world.allocation.metadata;
    Ok(GpuReservationSpec {
        market: world.identity.market.clone(),
        allocation_namespace: meta.namespace.clone().unwrap_or_default(),
        allocation_name: meta.name.clone().unwrap_or_default(),
        allocation_uid: meta.uid.clone().unwrap_or_default(),
        allocation: spec.clone(),
        hosting: Hosting {
            runtime_class_name: seen.pool.spec.runtime_class_name.clone(),
            storage_class_name: seen.pool.spec.storage.as_ref().and_then(|s| s.class_name.clone()),
            exposure: seen.pool.spec.exposure,
            user_namespaces: picked.iter().all(|n| n.user_namespaces),
            not_after_max,
        },
        nodes: picked.into_iter().map(|n| n.name.clone()).collect(),
        deadline: spec.open_by + DEADLINE_MARGIN_SECONDS,
        release: false,
    })
}

#[cfg(test)]
mod tests;
