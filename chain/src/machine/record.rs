//! One account: how its balance decreases, and what its legs earn (EscrowClock.sol and EscrowViews.sol).

use leasehold_crds::payment::money::{RATE_SCALE, TokenAmount};
use leasehold_planner::escrow::{Account, Address, LegState, Terms};

use super::{MAX_LEGS, Refusal};

pub(super) const U40_MAX: u64 = (1 << 40) - 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Unstarted,
    Running,
    Exhausted,
    Ended,
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) balance: u128,
    pub(super) settled_at: u64,
    pub(super) paid_seconds: u64,
    pub(super) running: u16,
    pub(super) ended: u16,
    pub(super) phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoredLeg {
    pub(super) served_seconds: u64,
    pub(super) running_since: u64,
    pub(super) ended_at: u64,
    pub(super) credited_seconds: u64,
    pub(super) withdrawn: u128,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) terms: Terms,
    pub(super) clock: Clock,
    pub(super) legs: Vec<StoredLeg>,
}

impl Record {
    fn per_second(&self) -> u128 {
        self.terms.burn_rate(self.clock.ended).0
    }

    /// Advances the clock to `now`. The balance covers whole seconds of all legs.
    pub(super) fn advance(&mut self, now: u64) {
        if self.clock.phase != Phase::Running {
            return;
        }
        let mut elapsed = now.saturating_sub(self.clock.settled_at);
        let covered = self.clock.balance / self.per_second();
        if u128::from(elapsed) > covered {
            elapsed = u64::try_from(covered).unwrap_or(elapsed);
            self.clock.phase = Phase::Exhausted;
        }
        self.count(elapsed);
        self.clock.settled_at += elapsed;
    }

    fn count(&mut self, seconds: u64) {
        self.clock.balance -= u128::from(seconds) * self.per_second();
        self.clock.paid_seconds += seconds;
    }

    pub(super) fn start(&mut self, legs: u16, now: u64) -> Result<(), Refusal> {
        let ended = legs & self.clock.ended;
        if let Some(leg) = each(ended).next() {
            return Err(Refusal::LegIsEnded(leg));
        }
        if self.clock.phase != Phase::Running {
            if self.clock.phase == Phase::Unstarted && now > self.terms.start_by {
                return Err(Refusal::StartByPassed(self.terms.start_by));
            }
            self.end_runs(self.clock.running);
            self.clock.phase = Phase::Running;
            self.clock.settled_at = now;
        }
        let changed = legs & !self.clock.running;
        let (balance, per_second) = (self.clock.balance, self.per_second());
        if changed != 0 && balance < per_second {
            return Err(Refusal::NotCovered { balance, per_second });
        }
        for leg in each(changed) {
            self.legs[leg].running_since = self.clock.paid_seconds;
        }
        self.clock.running |= changed;
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "same signature as start and end")]
    pub(super) fn pause(&mut self, legs: u16, _: u64) -> Result<(), Refusal> {
        if self.clock.phase == Phase::Running {
            self.end_runs(legs & self.clock.running);
        }
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "same signature as start and pause")]
    pub(super) fn end(&mut self, legs: u16, _: u64) -> Result<(), Refusal> {
        let changed = legs & !self.clock.ended;
        self.end_runs(changed & self.clock.running);
        for leg in each(changed) {
            self.legs[leg].ended_at = self.clock.paid_seconds;
        }
        self.clock.ended |= changed;
        if self.clock.ended == all(&self.terms) {
            self.clock.phase = Phase::Ended;
        }
        Ok(())
    }

    fn end_runs(&mut self, legs: u16) {
        self.clock.running &= !legs;
        for leg in each(legs) {
            let state = &mut self.legs[leg];
            state.served_seconds += self.clock.paid_seconds - state.running_since;
        }
    }

    pub(super) fn give_notice(&mut self) {
        if self.clock.phase != Phase::Running || self.clock.running == 0 {
            return;
        }
        let covered = self.clock.balance / self.per_second();
        let notice = u64::from(self.terms.notice_seconds);
        self.count(u64::try_from(covered).map_or(notice, |covered| covered.min(notice)));
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        match self.clock.phase {
            Phase::Unstarted => now > self.terms.start_by,
            Phase::Exhausted => now > self.clock.settled_at + u64::from(self.terms.pause_for),
            Phase::Ended => true,
            Phase::Running | Phase::Closed => false,
        }
    }

    pub(super) fn served(&self, leg: usize) -> u64 {
        let state = &self.legs[leg];
        let run = if self.clock.running & (1 << leg) == 0 {
            0
        } else {
            self.clock.paid_seconds - state.running_since
        };
        state.served_seconds + run
    }

    /// Earned base units, rounded down.
    pub(super) fn earned(&self, leg: usize) -> u128 {
        self.terms.legs[leg].rate.0 * u128::from(self.served(leg)) / RATE_SCALE
    }

    pub(super) fn deposited(&self) -> u128 {
        let burned = self.terms.legs.iter().zip(&self.legs).enumerate();
        let burned: u128 = burned
            .map(|(i, (leg, state))| {
                let seconds = if self.clock.ended & (1 << i) == 0 {
                    self.clock.paid_seconds
                } else {
                    state.ended_at
                };
                leg.rate.0 * u128::from(seconds)
            })
            .sum();
        (self.clock.balance + burned) / RATE_SCALE
    }

    /// The snapshot in a block of that time.
    pub(super) fn view(&self, now: u64) -> Account {
        let mut record = self.clone();
        record.advance(now);
        let clock = record.clock;
        let closed = clock.phase == Phase::Closed;
        let stopped_at = if clock.phase == Phase::Exhausted {
            clock.settled_at
        } else {
            0
        };
        let running = clock.phase == Phase::Running;
        let covered = || {
            let seconds = u64::try_from(clock.balance / record.per_second()).unwrap_or(U40_MAX);
            clock.settled_at.saturating_add(seconds).min(U40_MAX)
        };
        let counted = clock.phase != Phase::Unstarted
            && (clock.paid_seconds > 0 || matches!(clock.phase, Phase::Running | Phase::Exhausted));
        Account {
            closed,
            deposited: TokenAmount(record.deposited()),
            balance_scaled: if closed { 0 } else { clock.balance },
            block_time: now,
            paid_until: if running { covered() } else { stopped_at },
            exhausted_at: stopped_at,
            started_at: if counted {
                clock.settled_at.saturating_sub(clock.paid_seconds)
            } else {
                0
            },
            paid_seconds: clock.paid_seconds,
            running: if running { clock.running } else { 0 },
            ended: clock.ended,
            legs: (0..record.legs.len())
                .map(|leg| LegState {
                    served_seconds: record.served(leg),
                    credited_seconds: record.legs[leg].credited_seconds,
                    withdrawn: TokenAmount(record.legs[leg].withdrawn),
                    owed: TokenAmount(record.earned(leg) - record.legs[leg].withdrawn),
                })
                .collect(),
        }
    }
}

pub(super) fn check_terms(terms: &Terms) -> Result<(), Refusal> {
    let zero = Address::default();
    if [terms.payer, terms.market, terms.token, terms.closer].contains(&zero) {
        return Err(Refusal::ZeroAddress);
    }
    let count = terms.legs.len();
    if count == 0 || count > MAX_LEGS {
        return Err(Refusal::LegCount(count));
    }
    for (i, leg) in terms.legs.iter().enumerate() {
        if leg.payee == zero || leg.controller == zero {
            return Err(Refusal::ZeroAddress);
        }
        if leg.rate.0 == 0 {
            return Err(Refusal::ZeroRate(i));
        }
    }
    Ok(())
}

fn all(terms: &Terms) -> u16 {
    (0..terms.legs.len()).fold(0, |map, leg| map | 1 << leg)
}

pub(super) fn check_bitmap(terms: &Terms, legs: u16) -> Result<(), Refusal> {
    if legs == 0 || legs & !all(terms) != 0 {
        return Err(Refusal::NoSuchLeg(legs));
    }
    Ok(())
}

pub(super) fn each(bitmap: u16) -> impl Iterator<Item = usize> {
    (0..MAX_LEGS).filter(move |leg| bitmap & (1 << leg) != 0)
}
