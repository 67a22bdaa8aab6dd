//! Where a lease moves. One place, closed on both sides: a new phase or fact does not compile until it is placed.

use leasehold_crds::lease::Phase;

/// What is true of a lease now, the most advanced of it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// No provider is asked.
    Unmatched,
    /// Providers are asked; nothing is paid.
    Asked,
    /// The account is open; nobody provisions yet.
    Open,
    /// Providers make the workload ready.
    Provisioning,
    /// A leg serves.
    Serving,
    /// The funds ended and new ones are waited for.
    OutOfFunds,
    /// It is to end.
    Ending,
    /// The chain shows it ended, or that it never began.
    Ended,
}

/// The phase after `phase` when `fact` is true; `None` when the fact can't follow, and the phase stays.
#[must_use]
pub const fn after(phase: Phase, fact: Fact) -> Option<Phase> {
    use Phase::{Active, Closed, Funded, Matched, Pending, Provisioning, Settling, Suspended};
    match (phase, fact) {
        (Pending | Matched, Fact::Unmatched) => Some(Pending),
        (Pending | Matched, Fact::Asked) => Some(Matched),
        // A wiped status starts at Pending and may find an open, or a serving, account.
        (Pending | Matched | Funded, Fact::Open) => Some(Funded),
        (Pending | Matched | Funded | Provisioning, Fact::Provisioning) => Some(Provisioning),
        (Pending | Matched | Funded | Provisioning | Active | Suspended, Fact::Serving) => Some(Active),
        (Pending | Matched | Funded | Provisioning | Active | Suspended, Fact::OutOfFunds) => Some(Suspended),
        (Pending | Matched | Funded | Provisioning | Active | Suspended | Settling, Fact::Ending) => {
            Some(Settling)
        }
        (_, Fact::Ended) => Some(Closed),
        (Funded | Provisioning | Active | Suspended | Settling | Closed, Fact::Unmatched | Fact::Asked)
        | (Provisioning | Active | Suspended | Settling | Closed, Fact::Open)
        | (Active | Suspended | Settling | Closed, Fact::Provisioning)
        | (Settling | Closed, Fact::Serving | Fact::OutOfFunds)
        | (Closed, Fact::Ending) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 8] = [
        Phase::Pending,
        Phase::Matched,
        Phase::Funded,
        Phase::Provisioning,
        Phase::Active,
        Phase::Suspended,
        Phase::Settling,
        Phase::Closed,
    ];
    const FACTS: [Fact; 8] = [
        Fact::Unmatched,
        Fact::Asked,
        Fact::Open,
        Fact::Provisioning,
        Fact::Serving,
        Fact::OutOfFunds,
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
        for phase in PHASES {
            assert_eq!(after(phase, Fact::Ended), Some(Phase::Closed));
        }
    }
}
