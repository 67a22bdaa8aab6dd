//! The state machine of a lease. Both matches are exhaustive: a new phase or fact does not compile until it is handled
//! here.

use leasehold_crds::lease::Phase;

/// The most advanced fact that is true of a lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// There are no allocations.
    Unmatched,
    /// The allocations are created or about to be; nothing is paid.
    AwaitingReservations,
    /// The account is open; no provider provisions yet.
    Open,
    /// Providers are preparing the workload.
    Provisioning,
    /// A leg serves.
    Serving,
    /// The funds are spent, and the lease waits for new ones.
    OutOfFunds,
    /// The account of the round is closed, because one of its legs was not started.
    NotStarted,
    /// The lease is ending.
    Ending,
    /// The chain shows that its account is closed, or was never opened.
    Ended,
}

/// The phase after `phase` when `fact` is true; `None` when the fact can't follow, and the phase stays.
#[must_use]
pub const fn after(phase: Phase, fact: Fact) -> Option<Phase> {
    use Phase::{Active, Closed, Funded, Matched, Pending, Provisioning, Settling, Suspended};
    match (phase, fact) {
        (Pending | Matched, Fact::Unmatched) => Some(Pending),
        (Pending | Matched, Fact::AwaitingReservations) => Some(Matched),
        (Pending | Matched | Funded | Provisioning | Active | Suspended, Fact::NotStarted) => Some(Pending),
        // A wiped status starts at Pending and may find an open, or a serving, account.
        (Pending | Matched | Funded, Fact::Open) => Some(Funded),
        (Pending | Matched | Funded | Provisioning, Fact::Provisioning) => Some(Provisioning),
        (Pending | Matched | Funded | Provisioning | Active | Suspended, Fact::Serving) => Some(Active),
        (Pending | Matched | Funded | Provisioning | Active | Suspended, Fact::OutOfFunds) => Some(Suspended),
        (Pending | Matched | Funded | Provisioning | Active | Suspended | Settling, Fact::Ending) => {
            Some(Settling)
        }
        (_, Fact::Ended) => Some(Closed),
        (
            Funded | Provisioning | Active | Suspended | Settling | Closed,
            Fact::Unmatched | Fact::AwaitingReservations,
        )
        | (Provisioning | Active | Suspended | Settling | Closed, Fact::Open)
        | (Active | Suspended | Settling | Closed, Fact::Provisioning)
        | (Settling | Closed, Fact::Serving | Fact::OutOfFunds | Fact::NotStarted)
        | (Closed, Fact::Ending) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: [Fact; 9] = [
        Fact::Unmatched,
        Fact::AwaitingReservations,
        Fact::Open,
        Fact::Provisioning,
        Fact::Serving,
        Fact::OutOfFunds,
        Fact::NotStarted,
        Fact::Ending,
        Fact::Ended,
    ];

    #[test]
    fn there_is_no_way_out_of_closed() {
        for fact in FACTS {
            assert!(
                matches!(after(Phase::Closed, fact), None | Some(Phase::Closed)),
                "{fact:?}"
            );
        }
    }

    #[test]
    fn settling_leads_to_closed_alone() {
        for fact in FACTS {
            assert!(
                matches!(
                    after(Phase::Settling, fact),
                    None | Some(Phase::Settling | Phase::Closed)
                ),
                "{fact:?}"
            );
        }
    }

    #[test]
    fn every_phase_can_end() {
        for &phase in Phase::ALL {
            assert_eq!(after(phase, Fact::Ended), Some(Phase::Closed));
        }
    }
}
