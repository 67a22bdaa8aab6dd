//! Ceilings of what transactions may cost. An RPC endpoint reports fees, gas and nonces, and any of them may be false: whatever it
//! reports, nothing is signed that exceeds these ceilings.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use leasehold_planner::ports::{SpendLimit, SpendLimitError};
use tokio::time::Instant;

use super::queue::Fees;

/// The time in which the spend of a key is limited.
const WINDOW: Duration = Duration::from_hours(24);
/// Maximum number of nonces that a budget distinguishes. Beyond it, the lowest are counted together, those of one hour
/// until the last of them no longer counts.
const NONCES_MAX: usize = 4096;
const HOUR: Duration = Duration::from_hours(1);

/// Ceilings of what the transactions of one key may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wei per gas that a transaction offers.
    pub fee_per_gas_wei: u128,
    /// Gas limit of a transaction.
    pub gas: u64,
    /// Wei that the transactions signed within 24 hours may cost together. Of each, its gas limit at the highest fee
    /// that was signed for it counts, whatever it costs in the end: what it cost is known only from the endpoint.
    pub day_wei: u128,
}

impl Default for Limits {
    /// 200 gwei per gas, 3,000,000 gas per transaction, and 1 native token per day.
    fn default() -> Self {
        Self {
            fee_per_gas_wei: 200_000_000_000,
            gas: 3_000_000,
            day_wei: 1_000_000_000_000_000_000,
        }
    }
}

impl Limits {
    /// Lowers the maximum fee to the ceiling. Fails if such a transaction could not be mined in the next block: the
    /// estimated maximum is twice the base fee plus the tip.
    pub(crate) fn cap(&self, estimate: Fees) -> Result<Fees, SpendLimitError> {
        let base = estimate.max.saturating_sub(estimate.tip) / 2;
        check(
            SpendLimit::FeePerGas,
            base.saturating_add(estimate.tip),
            self.fee_per_gas_wei,
        )?;
        Ok(self.lowered(estimate))
    }

    /// Lowers the fees to the ceiling.
    pub(crate) fn lowered(&self, fees: Fees) -> Fees {
        let ceiling = self.fee_per_gas_wei;
        Fees {
            max: fees.max.min(ceiling),
            tip: fees.tip.min(ceiling),
        }
    }

    pub(crate) fn check_gas(&self, gas_limit: u64) -> Result<(), SpendLimitError> {
        check(SpendLimit::Gas, gas_limit.into(), self.gas.into())
    }
}

fn check(limit: SpendLimit, wanted: u128, allowed: u128) -> Result<(), SpendLimitError> {
    if wanted <= allowed {
        return Ok(());
    }
    Err(SpendLimitError {
        limit,
        wanted,
        allowed,
    })
}

/// What the transactions of one key that were signed within 24 hours cost at most. At most one transaction of a nonce is
/// mined, so the most expensive one of each nonce counts.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When each nonce was last signed, and what it costs at most.
    nonces: BTreeMap<u64, (Instant, u128)>,
    /// What the nonces beyond [`NONCES_MAX`] cost at most, by the hour that begins at that time.
    merged: VecDeque<(Instant, u128)>,
}

impl Budget {
    /// Whether no transaction counts any more.
    pub(crate) fn is_unused(&mut self, now: Instant) -> bool {
        self.forget_old(now);
        self.nonces.is_empty() && self.merged.is_empty()
    }

    fn forget_old(&mut self, now: Instant) {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        self.nonces.retain(|_, (signed_at, _)| age(signed_at) < WINDOW);
        self.merged.retain(|(since, _)| age(since) < WINDOW + HOUR);
    }

    /// Counts a transaction together with others of its hour.
    fn merge(&mut self, signed_at: Instant, wei: u128) {
        match self.merged.back_mut() {
            Some((since, sum)) if signed_at.saturating_duration_since(*since) < HOUR => {
                *sum = sum.saturating_add(wei);
            }
            Some(_) | None => self.merged.push_back((signed_at, wei)),
        }
    }

    /// Counts a transaction that is about to be signed. If it exceeds a ceiling, it fails, and nothing is counted.
    pub(crate) fn charge(
        &mut self,
        limits: &Limits,
        nonce: u64,
        gas_limit: u64,
        fees: Fees,
        now: Instant,
    ) -> Result<(), SpendLimitError> {
        check(
            SpendLimit::FeePerGas,
            fees.max.max(fees.tip),
            limits.fee_per_gas_wei,
        )?;
        limits.check_gas(gas_limit)?;
        self.forget_old(now);
        let cost = fees.max.saturating_mul(gas_limit.into());
        let before = self.nonces.get(&nonce).map_or(0, |(_, wei)| *wei);
        let all = self.nonces.values().chain(&self.merged);
        let others = all
            .fold(0u128, |sum, (_, wei)| sum.saturating_add(*wei))
            .saturating_sub(before);
        let total = others.saturating_add(cost.max(before));
        check(SpendLimit::Day, total, limits.day_wei)?;
        self.nonces.insert(nonce, (now, cost.max(before)));
        if self.nonces.len() > NONCES_MAX
            && let Some((_, (signed_at, wei))) = self.nonces.pop_first()
        {
            self.merge(signed_at, wei);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        fee_per_gas_wei: 100,
        gas: 1_000,
        day_wei: 250_000,
    };

    fn fees(max: u128, tip: u128) -> Fees {
        Fees { max, tip }
    }

    fn exceeded(result: Result<impl std::fmt::Debug, SpendLimitError>) -> (SpendLimit, u128) {
        let error = result.unwrap_err();
        (error.limit, error.wanted)
    }

    #[test]
    fn an_absurd_tip_is_refused_and_a_high_maximum_is_lowered() {
        assert_eq!(
            exceeded(LIMITS.cap(fees(1_014, 1_000))),
            (SpendLimit::FeePerGas, 1_007)
        );
        assert_eq!(
            exceeded(LIMITS.cap(fees(u128::MAX, u128::MAX))).0,
            SpendLimit::FeePerGas
        );
        // A base fee of 90 with a tip of 10 can be mined in the next block.
        assert_eq!(LIMITS.cap(fees(190, 10)), Ok(fees(100, 10)));
        assert_eq!(exceeded(LIMITS.cap(fees(192, 10))), (SpendLimit::FeePerGas, 101));
        assert_eq!(LIMITS.cap(fees(40, 10)), Ok(fees(40, 10)));
    }

    #[test]
    fn the_most_expensive_attempt_of_each_nonce_counts_for_a_day() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let mut charge = |nonce, max, seconds| {
            let now = start + Duration::from_secs(seconds);
            budget.charge(&LIMITS, nonce, 1_000, fees(max, 1), now)
        };
        charge(0, 50, 0).unwrap();
        charge(1, 100, 10).unwrap();
        // 50 + 100 + 100 exceed nothing, and a cheaper or an equal attempt of the same nonce adds nothing.
        charge(0, 100, 20).unwrap();
        charge(0, 10, 21).unwrap();
        charge(2, 50, 30).unwrap();
        assert_eq!(exceeded(charge(3, 1, 40)), (SpendLimit::Day, 251_000));
        // What was refused does not count.
        assert_eq!(exceeded(charge(3, 1, 50)), (SpendLimit::Day, 251_000));
        charge(3, 100, 86_410 + 10).unwrap();
    }

    #[test]
    fn many_nonces_are_counted_together() {
        let limits = Limits {
            day_wei: u128::MAX,
            ..LIMITS
        };
        let (mut budget, now) = (Budget::default(), Instant::now());
        let count = 2 * NONCES_MAX as u64;
        for nonce in 0..count {
            budget.charge(&limits, nonce, 1, fees(1, 1), now).unwrap();
        }
        assert_eq!(budget.nonces.len(), NONCES_MAX);
        let counted = budget.nonces.values().chain(&budget.merged);
        assert_eq!(counted.map(|(_, wei)| wei).sum::<u128>(), count.into());
    }

    #[test]
    fn many_nonces_a_day_are_counted_for_little_more_than_a_day() {
        const SECONDS: u64 = 20;
        let day = 24 * 3600 / SECONDS;
        let limits = Limits {
            day_wei: u128::from(day + 2 * 3600 / SECONDS),
            ..LIMITS
        };
        let (mut budget, start) = (Budget::default(), Instant::now());
        for nonce in 0..2 * day {
            let now = start + Duration::from_secs(nonce * SECONDS);
            budget.charge(&limits, nonce, 1, fees(1, 1), now).unwrap();
        }
    }

    /// The lowest nonce is signed once more after others were merged with it or before it.
    #[test]
    fn a_nonce_that_is_signed_again_replaces_no_other() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        for nonce in 0..=NONCES_MAX as u64 {
            let gas = if nonce == 0 { 1_000 } else { 0 };
            budget.charge(&LIMITS, nonce, gas, fees(100, 1), now).unwrap();
        }
        budget.charge(&LIMITS, 1, 1_000, fees(100, 1), now).unwrap();
        assert_eq!(
            exceeded(budget.charge(&LIMITS, 2, 1_000, fees(100, 1), now)),
            (SpendLimit::Day, 300_000)
        );
    }

    proptest! {
        /// Whatever an endpoint makes the sender sign, the transactions that can be mined cost no more than the ceiling.
        #[test]
        fn no_sequence_exceeds_the_ceiling(steps in prop::collection::vec((0u64..6, any::<u64>(), any::<u128>(), 0u64..90_000), 1..60)) {
            let (mut budget, mut now) = (Budget::default(), Instant::now());
            let mut signed: Vec<(Instant, u64, u128)> = Vec::new();
            for (nonce, gas, fee, wait) in steps {
                now += Duration::from_secs(wait % 9_000);
                let (gas, fee) = (gas % 1_100, fee % 110);
                if budget.charge(&LIMITS, nonce, gas, fees(fee, fee), now).is_ok() {
                    prop_assert!(gas <= LIMITS.gas && fee <= LIMITS.fee_per_gas_wei);
                    signed.push((now, nonce, u128::from(gas) * fee));
                }
                let recent = signed.iter().filter(|(at, ..)| now - *at < WINDOW);
                let mut most = BTreeMap::<u64, u128>::new();
                for (_, nonce, wei) in recent {
                    let entry = most.entry(*nonce).or_default();
                    *entry = (*entry).max(*wei);
                }
                prop_assert!(most.values().sum::<u128>() <= LIMITS.day_wei);
            }
        }
    }
}
