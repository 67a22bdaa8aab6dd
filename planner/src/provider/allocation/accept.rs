//! The provider's answer to an allocation: reserve nodes and sign an acceptance, decline with a reason, or report.

use std::collections::BTreeSet;

use jiff::Timestamp;
use leasehold_crds::{
    GpuAllocation, GpuPool, GpuReservation,
    lease::OnFundsEnd,
    market::allocation::{AllocationPhase, DeclineReason, GpuAllocationSpec, GpuAllocationStatus},
    payment::money::{Price, TokenAmount},
    provider::reservation::{GpuReservationSpec, Hosting, PodOverhead},
    shared::{duration, quantity},
};

use crate::{
    escrow::{Address, SETTLE_SECONDS, TERM_SECONDS_MIN, Terms, allocation_name},
    placement::Currency,
    ports::AcceptanceMessage,
    provider::{
        offer::{
            row::start_within_max,
            supply::{FreeNode, PoolSupply, pick},
        },
        workload::results::{self, Retention},
    },
    request::Shape,
};

pub use super::plan::Plan;

/// This provider, and the addresses of its keys.
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

/// Everything that was read.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The allocation.
    pub allocation: &'a GpuAllocation,
    /// The reservation that was made for it.
    pub reservation: Option<&'a GpuReservation>,
    /// The pool it names, if this provider has it.
    pub pool: Option<PoolSeen<'a>>,
    /// This provider.
    pub identity: &'a Identity,
}

/// An unpaid reservation outlives `openBy` by this, so that a payment in the last second finds it.
pub const DEADLINE_MARGIN_SECONDS: i64 = 30;
/// An allocation that could be paid later than this from now is declined: it would hold capacity without payment.
const OPEN_BY_SECONDS_MAX: i64 = 300;
/// A lease may be extended beyond the longest term, pause and start by this: time to settle.
const EXTENSION_MARGIN_SECONDS: u64 = 3600;

/// Decides.
#[must_use]
pub fn decide(world: &World<'_>, now: Timestamp) -> Plan {
    let allocation = world.allocation;
    let mut status = allocation.status.clone().unwrap_or_default();
    status.observed_generation = allocation.metadata.generation.unwrap_or_default();
    let spec = &allocation.spec;
    if let Some(reservation) = world.reservation {
        if !serves(reservation, allocation) {
            // It belongs to an earlier allocation of this name, and ends by its own deadline.
            return Plan::report(status);
        }
        mirror(reservation, &mut status);
        let mut follow = reservation.spec.clone();
        follow.release |= spec.release;
        follow.allocation.drop_results |= spec.drop_results;
        // Only later, and never beyond the longest term that the pool sold.
        let requested = spec.not_after.min(follow.hosting.not_after_max);
        follow.allocation.not_after = follow.allocation.not_after.max(requested);
        status.not_after = Some(follow.allocation.not_after);
        return Plan {
            accept: acceptance(world, &follow, &status, now),
            reserve: (follow != reservation.spec).then(|| Box::new(follow)),
            status,
        };
    }
    if status.stopped_at.is_some() || status.declined.is_some() {
        return Plan::report(status);
    }
    if spec.release || status.acceptance.is_some() {
        // Its reservation does not exist, or not any more.
        status.phase = AllocationPhase::Stopped;
        status.stopped_at = Some(now.to_string());
        return Plan::report(status);
    }
    match reserve(world, now) {
        Ok(reservation) => {
            status.phase = AllocationPhase::Reserved;
            status.not_after = Some(reservation.allocation.not_after);
            Plan {
                accept: acceptance(world, &reservation, &status, now),
                reserve: Some(Box::new(reservation)),
                status,
            }
        }
        Err((reason, message)) => Plan::declined(status, reason, &message),
    }
}

/// Whether a reservation serves an allocation: it was made for it, or it is paid, and the market has created its allocation
/// again because that was lost. A reservation is served as it was accepted, whatever else the allocation says now.
fn serves(reservation: &GpuReservation, allocation: &GpuAllocation) -> bool {
    let spec = &reservation.spec;
    let own = Some(&spec.allocation_uid) == allocation.metadata.uid.as_ref();
    let same = spec.allocation.escrow == allocation.spec.escrow && spec.allocation.leg == allocation.spec.leg;
    let paid = reservation.status.as_ref().is_some_and(|s| !s.phase.is_unpaid());
    own || same && paid
}

/// The acceptance of an allocation that has none yet and can still be paid.
fn acceptance(
    world: &World<'_>,
    reservation: &GpuReservationSpec,
    status: &GpuAllocationStatus,
    now: Timestamp,
) -> Option<AcceptanceMessage> {
    let spec = &world.allocation.spec;
    if status.acceptance.is_some() || now.as_second() >= spec.open_by || spec.release {
        return None;
    }
    let terms = Terms::from_wire(&spec.escrow).ok()?;
    let leg = usize::try_from(spec.leg).ok()?;
    Some(AcceptanceMessage {
        escrow_id: terms.id(),
        leg: u16::try_from(spec.leg).ok()?,
        rate: terms.legs.get(leg)?.rate.0,
        not_after: u64::try_from(reservation.allocation.not_after).ok()?,
        deadline: u64::try_from(reservation.deadline).ok()?,
    })
}

/// Copies the reservation's status into the allocation's.
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
    status.stop_reason = from.stop_reason;
    // Conditions observe this object, whose generations differ from the reservation's.
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

/// Reason and message of a declined allocation.
type Refusal = (DeclineReason, String);

fn refusal<T>(reason: DeclineReason, message: impl Into<String>) -> Result<T, Refusal> {
    Err((reason, message.into()))
}

/// Checks the allocation against this provider's pools, prices and currency, and picks nodes for it.
fn reserve(world: &World<'_>, now: Timestamp) -> Result<GpuReservationSpec, Refusal> {
    let spec = &world.allocation.spec;
    let Some(seen) = &world.pool else {
        return refusal(
            DeclineReason::UnknownPool,
            format!("this provider has no pool {:?}", spec.pool),
        );
    };
    let (terms, shape, nodes) = check_payment(world, seen)?;
    let not_after_max = check_term(spec, seen.pool, &terms, now)?;
    check_deposit(spec, &terms)?;
    check_storage(spec, seen.pool)?;
    check_variables(spec)?;
    if let Some(words) = &seen.supply.paused {
        let message = format!("the pool is paused, because the cluster refused pods of leases: {words}");
        return refusal(DeclineReason::NotSelling, message);
    }
    if !seen.supply.selling {
        return refusal(DeclineReason::NotSelling, "the pool is not for sale at this hour");
    }
    let picked = pick_nodes(spec, seen.supply, &shape, nodes)?;
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
            tolerations: seen.pool.spec.tolerations.clone(),
            overhead: overhead(seen.supply),
            user_namespaces: picked.iter().all(|n| n.user_namespaces),
            not_after_max,
        },
        nodes: picked.into_iter().map(|n| n.name).collect(),
        deadline: spec.open_by + DEADLINE_MARGIN_SECONDS,
        release: false,
    })
}

fn overhead(supply: &PoolSupply) -> Option<PodOverhead> {
    let overhead = supply.overhead.filter(|o| *o != Shape::default())?;
    Some(PodOverhead {
        cpu: quantity::millicores_text(overhead.millicores),
        memory: quantity::bytes_text(overhead.memory),
        ephemeral_storage: quantity::bytes_text(overhead.scratch),
    })
}

/// The leg pays this provider, in its currency, at least the pool's price.
fn check_payment(world: &World<'_>, seen: &PoolSeen<'_>) -> Result<(Terms, Shape, usize), Refusal> {
    let spec = &world.allocation.spec;
    let Some((currency, decimals)) = seen.currency else {
        return refusal(
            DeclineReason::NoPaymentNetwork,
            "the pool's PaymentNetwork can't be used now",
        );
    };
    let terms = Terms::from_wire(&spec.escrow).map_err(|e| (DeclineReason::BadTerms, e.to_string()))?;
    let same = i64::try_from(currency.chain_id) == Ok(spec.escrow.chain_id)
        && spec.escrow.contract.parse() == Ok(currency.escrow)
        && terms.token == currency.token;
    if !same {
        return refusal(
            DeclineReason::OtherMoney,
            "chain, escrow contract or token are not this provider's",
        );
    }
    let (index, leg) = usize::try_from(spec.leg)
        .ok()
        .and_then(|i| Some((i, terms.legs.get(i)?)))
        .ok_or((DeclineReason::BadTerms, "there is no such leg".to_owned()))?;
    // The reservation and its namespace get this name: a market must not choose it.
    let name = allocation_name(terms.id(), index);
    if world.allocation.metadata.name.as_ref() != Some(&name) {
        return refusal(
            DeclineReason::NameMismatch,
            format!("the name of an allocation follows from its account and leg: {name}"),
        );
    }
    if leg.payee != world.identity.payee || leg.controller != world.identity.controller {
        return refusal(
            DeclineReason::OtherPayee,
            "the leg does not pay this provider, or another key controls it",
        );
    }
    let shape = Shape::from_wire(&spec.per_node).map_err(|e| (DeclineReason::BadShape, e.to_string()))?;
    let nodes = usize::try_from(spec.nodes)
        .map_err(|_| (DeclineReason::BadShape, "nodes is out of range".to_owned()))?;
    let price = Price::parse(&seen.pool.spec.price_per_gpu_hour)
        .map_err(|e| (DeclineReason::BadPrice, e.to_string()))?;
    let lowest = price.rate_floor(shape.gpus.saturating_mul(nodes as u64), decimals);
    if lowest.is_none_or(|lowest| leg.rate < lowest) {
        return refusal(
            DeclineReason::PriceTooLow,
            format!("the pool's price is {price} per GPU-hour"),
        );
    }
    Ok((terms, shape, nodes))
}

/// The allocation is no longer than the pool sells. Returns the longest `notAfter` that it can be extended to.
fn check_term(
    spec: &GpuAllocationSpec,
    pool: &GpuPool,
    terms: &Terms,
    now: Timestamp,
) -> Result<i64, Refusal> {
    if spec.open_by <= now.as_second() || spec.open_by > now.as_second() + OPEN_BY_SECONDS_MAX {
        return refusal(
            DeclineReason::BadDeadline,
            "openBy is past or too far ahead; are both clocks right?",
        );
    }
    let start_within = start_within_max(pool);
    if terms
        .start_by
        .saturating_sub(u64::try_from(spec.open_by).unwrap_or(0))
        > start_within
    {
        return refusal(
            DeclineReason::StartTooLate,
            format!("leases of the pool start within {}", duration::text(start_within)),
        );
    }
    let pausable = duration::seconds(&pool.spec.max_pause).unwrap_or(0);
    let longest = duration::seconds(&pool.spec.max_duration).unwrap_or(0)
        + pausable
        + start_within
        + EXTENSION_MARGIN_SECONDS;
    let not_after_max = now
        .as_second()
        .saturating_add(i64::try_from(longest).unwrap_or(i64::MAX / 2));
    if spec.not_after > not_after_max {
        return refusal(
            DeclineReason::TooLong,
            format!("the pool sells at most {}", pool.spec.max_duration),
        );
    }
    if spec.on_funds_end == OnFundsEnd::Pause && u64::from(terms.pause_for) > pausable {
        return refusal(
            DeclineReason::PauseTooLong,
            format!("the pool keeps storage for at most {}", pool.spec.max_pause),
        );
    }
    Ok(not_after_max)
}

/// The deposit pays for the time that the allocation asks for: from `startBy` to `notAfter`, without the pause and
/// [`SETTLE_SECONDS`]. A lease that is funded little by little is opened with an early `notAfter`, which then follows
/// its top-ups.
fn check_deposit(spec: &GpuAllocationSpec, terms: &Terms) -> Result<(), Refusal> {
    let pause = match spec.on_funds_end {
        OnFundsEnd::Pause => u64::from(terms.pause_for),
        OnFundsEnd::Close => 0,
    };
    let unpaid = terms
        .start_by
        .saturating_add(pause)
        .saturating_add(SETTLE_SECONDS);
    let not_after = u64::try_from(spec.not_after).unwrap_or(0);
    let seconds = not_after.saturating_sub(unpaid).max(TERM_SECONDS_MIN);
    let deposit = TokenAmount::parse(&spec.deposit).unwrap_or_default();
    if terms
        .rate()
        .cost_ceil(seconds)
        .is_none_or(|least| deposit < least)
    {
        return refusal(
            DeclineReason::DepositTooSmall,
            format!(
                "the deposit does not pay for the {seconds} s between startBy and notAfter at the rate of all legs"
            ),
        );
    }
    Ok(())
}

/// Volumes are no larger, and results retained no longer, than the pool offers.
fn check_storage(spec: &GpuAllocationSpec, pool: &GpuPool) -> Result<(), Refusal> {
    if let Some(storage) = &spec.storage {
        let offered = pool.spec.storage.as_ref();
        let most = offered
            .and_then(|s| quantity::bytes(&s.max_size).ok())
            .unwrap_or(0);
        if quantity::bytes(&storage.size).map_err(|e| (DeclineReason::BadShape, e.to_string()))? > most {
            return refusal(
                DeclineReason::StorageTooLarge,
                format!("the pool has volumes of at most {most} bytes"),
            );
        }
    }
    let retention = Retention::of(&spec.workload, spec.storage.as_ref())
        .map_err(|e| (DeclineReason::BadResults, e.to_string()))?;
    let longest = results::longest(&pool.spec);
    if retention.is_some_and(|retention| retention.seconds > longest) {
        return refusal(
            DeclineReason::ResultsTooLong,
            format!("the pool keeps results for at most {}", duration::text(longest)),
        );
    }
    Ok(())
}

/// The workload sets no variable twice and none that the provider sets. The schema of this provider's market says so too,
/// but a provider trusts no schema of a market that is not its own.
fn check_variables(spec: &GpuAllocationSpec) -> Result<(), Refusal> {
    let mut names = BTreeSet::new();
    for variable in spec.workload.container().iter().flat_map(|c| &c.env) {
        if variable.is_reserved() || !names.insert(&variable.name) {
            return refusal(
                DeclineReason::ReservedVariable,
                format!(
                    "the variable {:?} is reserved for the provider, or set twice",
                    variable.name
                ),
            );
        }
    }
    Ok(())
}

fn pick_nodes(
    spec: &GpuAllocationSpec,
    supply: &PoolSupply,
    shape: &Shape,
    nodes: usize,
) -> Result<Vec<FreeNode>, Refusal> {
    let storage = spec
        .storage
        .as_ref()
        .and_then(|s| quantity::bytes(&s.size).ok())
        .unwrap_or(0);
    let is_permitted = |node: &&FreeNode| node.max_per_gpu.permits(shape, storage);
    let permitted: Vec<FreeNode> = supply.free.iter().filter(is_permitted).cloned().collect();
    // On a node without user namespaces, a container that is root never starts.
    let root = spec.workload.may_be_root();
    let suitable = permitted.iter().filter(|node| node.user_namespaces || !root);
    let suitable: Vec<FreeNode> = suitable.cloned().collect();
    if let Some(picked) = pick(&suitable, shape, nodes) {
        return Ok(picked.into_iter().cloned().collect());
    }
    if pick(&permitted, shape, nodes).is_some() {
        return refusal(
            DeclineReason::RootNotAllowed,
            "a session, or a container without runAsUser, can be root, which needs a user namespace, and too few of the \
             pool's nodes have these",
        );
    }
    if pick(&supply.free, shape, nodes).is_some() {
        return refusal(
            DeclineReason::BeyondMaxPerGpu,
            "the lease asks for more CPU, memory, disk or volume with each GPU than the pool sells (maxPerGpu)",
        );
    }
    refusal(
        DeclineReason::NoRoom,
        format!(
            "{} nodes of the pool have room, but the allocation needs {nodes}",
            supply.free.len()
        ),
    )
}

#[cfg(test)]
mod tests;
