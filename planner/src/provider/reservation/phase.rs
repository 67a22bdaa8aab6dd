//! The phases of a reservation as a closed machine: a new phase or event does not compile until it has its place here.

use leasehold_crds::{market::allocation::AllocationPhase, provider::reservation::GpuReservationStatus};

/// What moves a reservation to another phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PhaseEvent {
    /// The reservation holds its nodes.
    Held,
    /// The deposit is in a block of the level that the network's policy asks for.
    Paid,
    /// The leg is charged.
    Charged,
    /// The funds are spent, and the lease pauses.
    FundsSpent,
    /// A stop was decided, or pods still run after it.
    StopDecided,
    /// No pods run after a stop.
    PodsGone,
}

/// The phase after an event; `None` where the event does not change the phase.
pub(super) const fn after(phase: AllocationPhase, event: PhaseEvent) -> Option<AllocationPhase> {
    use AllocationPhase::{
        Active, Declined, Provisioning, Requested, Reserved, Stopped, Stopping, Suspended,
    };
    use PhaseEvent::{Charged, FundsSpent, Held, Paid, PodsGone, StopDecided};
    match (phase, event) {
        (Requested, Held) => Some(Reserved),
        (Reserved, Paid) => Some(Provisioning),
        (Provisioning | Suspended, Charged) => Some(Active),
        // An account that could not be read may be spent before the reservation is seen to be paid.
        (Requested | Reserved | Provisioning | Active, FundsSpent) => Some(Suspended),
        (Requested | Reserved | Provisioning | Active | Suspended, StopDecided) => Some(Stopping),
        (Requested | Reserved | Provisioning | Active | Suspended | Stopping, PodsGone) => Some(Stopped),
        (
            Requested | Declined | Reserved | Provisioning | Active | Suspended | Stopping | Stopped,
            Held | Paid | Charged | FundsSpent | StopDecided | PodsGone,
        ) => None,
    }
}

/// Moves the status to the phase after an event.
pub(super) const fn advance(status: &mut GpuReservationStatus, event: PhaseEvent) {
    if let Some(next) = after(status.phase, event) {
        status.phase = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_leads_back_from_a_stop() {
        for event in [
            PhaseEvent::Held,
            PhaseEvent::Paid,
            PhaseEvent::Charged,
            PhaseEvent::FundsSpent,
            PhaseEvent::StopDecided,
        ] {
            assert_eq!(after(AllocationPhase::Stopped, event), None, "{event:?}");
            assert_eq!(after(AllocationPhase::Stopping, event), None, "{event:?}");
        }
    }
}
