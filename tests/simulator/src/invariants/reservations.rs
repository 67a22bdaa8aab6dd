//! Stored allocations and reservations: phases move forward, and a stop is final and has a true reason.

use jiff::Timestamp;
use leasehold_crds::{
    GpuAllocation, GpuReservation,
    market::allocation::{AllocationPhase, StopReason},
    provider::reservation::{GpuReservationStatus, LegAction},
    shared::conditions::is_true,
};
use leasehold_planner::escrow::{Account, AccountRead, Terms};

use super::{LegActionName, ReservationState, spent};
use crate::{Sim, provider::is_signed, reconcile::ProcessId};

const fn action_name(action: LegAction) -> LegActionName {
    match action {
        LegAction::Start => "start",
        LegAction::Pause => "pause",
        LegAction::Credit => "creditTo",
        LegAction::End => "endLeg",
        LegAction::Withdraw => "settleMany",
    }
}

const fn reservation_rank(phase: AllocationPhase) -> u8 {
    match phase {
        AllocationPhase::Requested | AllocationPhase::Declined => 0,
        AllocationPhase::Reserved => 1,
        AllocationPhase::Provisioning => 2,
        AllocationPhase::Active => 3,
        AllocationPhase::Suspended => 4,
        AllocationPhase::Stopping => 5,
        AllocationPhase::Stopped => 6,
    }
}

/// Since when the containers of a reservation can't run, or have stopped, by its status; Unix seconds.
fn not_served_since(status: &GpuReservationStatus) -> Option<i64> {
    let stopped = status.stopped_at.as_deref();
    let stopped = stopped.and_then(|at| at.parse::<Timestamp>().ok());
    let stopped = stopped.map(Timestamp::as_second);
    status.fault_since.into_iter().chain(stopped).min()
}

impl Sim {
    pub(super) fn follow_allocations(&mut self) {
        while let Some((_, object)) = self
            .allocations
            .log()
            .get(self.invariants.allocations_seen)
            .cloned()
        {
            self.invariants.allocations_seen += 1;
            if let Some(a) = object.filter(|a: &std::sync::Arc<GpuAllocation>| is_signed(a)) {
                self.invariants
                    .accepted
                    .insert((a.spec.escrow.id.clone(), a.spec.leg));
            }
        }
    }

    pub(super) fn follow_reservations_log(&mut self) {
        self.invariants.reservations_seen.resize(self.sites.len(), 0);
        for site in 0..self.sites.len() {
            while let Some((key, object)) = self.sites[site]
                .reservations
                .log()
                .get(self.invariants.reservations_seen[site])
                .cloned()
            {
                self.invariants.reservations_seen[site] += 1;
                match object {
                    Some(object) => self.reservation_stored(site, &key.1, &object),
                    None => {
                        if let Some(reservation) =
                            self.invariants.reservations.get_mut(&(site, key.1.clone()))
                        {
                            reservation.exists = false;
                        }
                    }
                }
            }
        }
    }

    fn reservation_stored(&mut self, site: usize, name: &str, object: &GpuReservation) {
        let status = object.status.clone().unwrap_or_default();
        let spec = &object.spec.allocation;
        if let Some(intent) = &status.intent {
            self.invariants
                .leg_intents
                .insert((name.to_owned(), action_name(intent.action)));
            let total = intent.credited_total.map(|total| (name.to_owned(), total));
            self.invariants.credit_intents.extend(total);
        }
        let terms = Terms::from_wire(&spec.escrow).ok();
        if let Some(terms) = &terms {
            self.follow_faults(terms, spec.leg, not_served_since(&status));
        }
        let now = self.now;
        let fresh = || ReservationState {
            terms: terms.clone(),
            phase: AllocationPhase::Requested,
            stop_reason: None,
            was_suspended: false,
            not_after: spec.not_after,
            open_by: spec.open_by,
            deadline: object.spec.deadline,
            lease_uid: spec.lease.uid.clone(),
            has_job_result: false,
            exists: true,
            paid_until: 0,
            beyond_ms: 0,
            dark_ms: 0,
            after_stop_ms: 0,
            orphan_ms: 0,
            after_not_after_ms: 0,
            dead_ms: 0,
            unpaid: super::unpaid::Unpaid::of(spec, now),
        };
        let reservation = self
            .invariants
            .reservations
            .entry((site, name.to_owned()))
            .or_insert_with(fresh);
        if !reservation.exists {
            *reservation = fresh();
        }
        let (was, stopped) = (reservation.phase, reservation.stop_reason);
        let terms = reservation.terms.clone();
        reservation.phase = status.phase;
        reservation.not_after = spec.not_after;
        reservation.has_job_result = status.job.is_some();
        reservation.was_suspended |= status.phase == AllocationPhase::Suspended;
        reservation.stop_reason = status.stop_reason;
        let paid_until_before = reservation.paid_until;
        reservation.paid_until = status.escrow.as_ref().map_or(0, |e| e.paid_until);
        if status.phase != was {
            self.invariants.count(format!("reservation {:?}", status.phase));
        }
        let back = reservation_rank(status.phase) < reservation_rank(was);
        let allowed = !back || (was, status.phase) == (AllocationPhase::Suspended, AllocationPhase::Active);
        self.invariants.require(allowed, || {
            format!(
                "phase of reservation {name} goes back from {was:?} to {:?}",
                status.phase
            )
        });
        let revived = stopped.is_some() && status.stop_reason.is_none();
        self.invariants
            .require(!revived, || format!("the stop of reservation {name} is revoked"));
        let both = status.stop_reason.is_some() && is_true(&status.conditions, "Ready");
        self.invariants
            .require(!both, || format!("reservation {name} is stopped and Ready"));
        if stopped.is_none()
            && let (Some(reason), Some(terms)) = (status.stop_reason, &terms)
        {
            self.invariants.count(format!("reservation stops {reason}"));
            let justified = self.may_stop(reason, terms, site, object, paid_until_before);
            self.invariants.require(justified, || {
                let (escrow, since) = (&status.escrow, status.chain_unreadable_since);
                format!("U1/U2: reservation {name} is stopped with reason {reason}, which does not hold: {escrow:?}, chain unreadable since {since:?}")
            });
        }
    }

    fn may_stop(
        &self,
        reason: StopReason,
        terms: &Terms,
        site: usize,
        object: &GpuReservation,
        paid_until: i64,
    ) -> bool {
        let of_chain = |fact: &dyn Fn(&Account, u64) -> bool| {
            self.seen(terms, |read, time| read.present().is_some_and(|a| fact(a, time)))
        };
        let spec = &object.spec;
        let clocks = || self.sites[site].processes.iter().map(|p| p.offset_ms);
        let latest = clocks().max().map_or(0, |o| self.clock(o).as_second());
        let grace = i64::try_from(self.sites[site].grace_seconds).unwrap_or(0);
        let overdue = i64::try_from(terms.start_by)
            .unwrap_or(i64::MAX)
            .saturating_add(60 + grace);
        match reason {
            StopReason::Released => spec.release,
            StopReason::ReservationDeleted => object.metadata.deletion_timestamp.is_some(),
            StopReason::AccountClosed => of_chain(&|a, _| a.closed),
            StopReason::NeverStarted => {
                let leg = usize::try_from(spec.allocation.leg).unwrap_or_default();
                let served = |a: &Account| a.legs.get(leg).is_some_and(|l| l.served_seconds != 0);
                let ran = |a: &Account| a.running & (1 << leg) != 0 || served(a);
                of_chain(&|a, time| !ran(a) && (time > terms.start_by || latest > overdue))
            }
            StopReason::StartUnknown => latest > overdue,
            StopReason::Unpaid => {
                self.chain.account(terms) == AccountRead::Absent
                    && i64::try_from(self.chain.newest().head.time).unwrap_or(0) > spec.allocation.open_by
            }
            StopReason::AllocationGone => {
                let asks = |a: &GpuAllocation| a.metadata.uid.as_ref() == Some(&spec.allocation_uid);
                !self.allocations.all().any(|(_, a)| asks(a))
                    && self.seen(terms, |read, _| *read == AccountRead::Absent)
            }
            // No webhook of the simulation alters pods.
            StopReason::IsolationDropped => false,
            StopReason::AccountMismatch => self.seen(terms, |read, _| *read == AccountRead::Mismatch),
            StopReason::PaymentUnknown => latest > spec.deadline,
            StopReason::NotResumed => {
                let since = object.status.as_ref().and_then(|s| s.resuming_since);
                let window = i64::try_from(terms.start_by).unwrap_or(i64::MAX) - spec.allocation.open_by;
                since.is_some_and(|since| latest > since + window)
            }
            StopReason::FundsSpent => of_chain(&|a, _| spent(a, terms)),
            StopReason::PauseOver => {
                of_chain(&|a, time| spent(a, terms) && time >= a.exhausted_at + u64::from(terms.pause_for))
            }
            StopReason::NotAfter => latest >= spec.allocation.not_after,
            StopReason::FundsUnknown => {
                let spread = clocks().max().unwrap_or(0) - clocks().min().unwrap_or(0);
                let used = object.status.as_ref().is_some_and(|s| s.grace_used);
                // By the clock of the chain, as the end of the paid time is.
                let off = self.faults.chain_offset_ms;
                let now = i64::try_from(self.now / 1000).unwrap_or(0) + (off + spread) / 1000 + 15;
                let read_by = |p: usize| {
                    self.invariants
                        .reads
                        .get(&(ProcessId::Provider(site, p), terms.id()))
                        .copied()
                };
                let dark = (0..2).all(|p| read_by(p).is_none_or(|at| self.now - at > 1_000));
                now >= paid_until + if used { 0 } else { grace } && (dark || spread > 0)
            }
            StopReason::BadTerms => false,
        }
    }
}
