//! Credits: a leg gives back no more seconds than it ran while its reservation had a fault or had stopped (M4).

use leasehold_planner::escrow::{AccountRead, LegState, Terms};

use crate::Sim;

/// The faults of one leg, as the status of its reservation reports them.
pub(crate) struct LegFaults {
    terms: Terms,
    /// Seconds that the leg ran during faults that are over.
    over: u64,
    /// The present fault: since when (Unix seconds), and for how many seconds the leg had run by then.
    present: Option<(i64, u64)>,
}

/// Seconds that a leg has run, whether they were credited or not.
const fn ran(leg: &LegState) -> u64 {
    leg.served_seconds + leg.credited_seconds
}

impl Sim {
    /// The leg in the block of that time (Unix seconds).
    fn leg_at(&self, terms: &Terms, leg: usize, time: u64) -> LegState {
        let block = self.chain.recent().find(|b| b.head.time <= time);
        let read = block.map(|b| b.machine.read(terms, time));
        let account = read.as_ref().and_then(AccountRead::present);
        account.and_then(|a| a.legs.get(leg)).copied().unwrap_or_default()
    }

    /// Records that a reservation was stored with a fault or a stop since that time (Unix seconds), or without one.
    pub(super) fn follow_faults(&mut self, terms: &Terms, leg: i64, fault_since: Option<i64>) {
        let Ok(leg) = usize::try_from(leg) else { return };
        let time = self.chain.newest().head.time;
        let now = ran(&self.leg_at(terms, leg, time));
        let begun = fault_since.map(|since| {
            let at = u64::try_from(since).unwrap_or(0).min(time);
            (since, ran(&self.leg_at(terms, leg, at)))
        });
        let faults = self.invariants.leg_faults.entry((terms.id(), leg));
        let faults = faults.or_insert_with(|| LegFaults {
            terms: terms.clone(),
            over: 0,
            present: None,
        });
        if faults.present.map(|(since, _)| since) == fault_since {
            return;
        }
        if let Some((_, ran_before)) = faults.present {
            faults.over += now.saturating_sub(ran_before);
        }
        faults.present = begun;
    }

    /// At each block.
    pub(super) fn check_credits(&mut self) {
        let time = self.chain.newest().head.time;
        let mut wrong = None;
        for ((id, leg), faults) in &self.invariants.leg_faults {
            let state = self.leg_at(&faults.terms, *leg, time);
            let present = faults
                .present
                .map_or(0, |(_, before)| ran(&state).saturating_sub(before));
            let (credited, faulty) = (state.credited_seconds, faults.over + present);
            if credited > faulty {
                wrong = Some(format!(
                    "M4: leg {leg} of {id} credited {credited} seconds, but ran for {faulty} seconds of faults"
                ));
            }
        }
        if let Some(wrong) = wrong {
            self.invariants.violated(|| wrong);
        }
    }
}
