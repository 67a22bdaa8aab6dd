//! Credits: a leg gives back no more seconds than it ran while its reservation had a fault or had stopped (M4).

use leasehold_planner::escrow::{AccountRead, LegState, Terms};

use crate::Sim;

/// The faults of one leg, as the status of its reservation reports them. A point in time is stated as the number of seconds
/// that the leg had run by then, credited or not: faults that overlap are counted once.
pub(crate) struct LegFaults {
    terms: Terms,
    /// Begin and end of each fault that is over.
    over: Vec<(u64, u64)>,
    /// The present fault: since when in Unix seconds, and its begin.
    present: Option<(i64, u64)>,
}

impl LegFaults {
    /// For how many seconds the leg has run during faults, if it has run for `now` seconds in all.
    fn seconds(&self, now: u64) -> u64 {
        let present = self.present.map(|(_, begin)| (begin, now));
        length(self.over.iter().copied().chain(present).collect())
    }
}

/// Length of the union of spans, each with its begin and its end.
fn length(mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut sum, mut counted) = (0, 0);
    for (begin, end) in spans {
        sum += end.saturating_sub(begin.max(counted));
        counted = counted.max(end);
    }
    sum
}

/// Seconds that a leg has run, whether they were credited or not.
const fn ran(leg: &LegState) -> u64 {
    leg.served_seconds + leg.credited_seconds
}

impl Sim {
    /// The leg in the block of that time (Unix seconds), or in the oldest block that is stored if that is newer. An account
    /// that a block does not have has run for no time.
    fn leg_at(&self, terms: &Terms, leg: usize, time: u64) -> LegState {
        let before = self.chain.recent().find(|b| b.head.time <= time);
        let oldest = || self.chain.recent().last();
        let read = before
            .or_else(oldest)
            .map(|b| b.machine.read(terms, time.max(b.head.time)));
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
            over: Vec::new(),
            present: None,
        });
        if faults.present.map(|(since, _)| since) == fault_since {
            return;
        }
        let over = faults.present.map(|(_, begin)| (begin, now));
        faults.over.extend(over);
        faults.present = begun;
    }

    /// At each block.
    pub(super) fn check_credits(&mut self) {
        let time = self.chain.newest().head.time;
        let mut wrong = None;
        for ((id, leg), faults) in &self.invariants.leg_faults {
            let state = self.leg_at(&faults.terms, *leg, time);
            let (credited, faulty) = (state.credited_seconds, faults.seconds(ran(&state)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_that_overlap_are_counted_once() {
        assert_eq!(length(vec![(10, 20), (50, 60), (15, 30), (55, 70)]), 20 + 20);
    }
}
