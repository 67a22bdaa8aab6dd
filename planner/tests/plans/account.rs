//! The escrow account of a story, with the semantics of the contract (EscrowClock.sol): all legs are paid for while the
//! account runs, and the seconds in which a leg did not serve are set aside for the payer.

use leasehold_crds::payment::money::{RATE_SCALE, TokenAmount};
use leasehold_planner::escrow::{Account, AccountRead, LegState, Terms};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unstarted,
    Running,
    Exhausted,
    Ended,
    Closed,
}

#[derive(Clone, Copy, Debug, Default)]
struct LegRecord {
    served_seconds: u64,
    credited_seconds: u64,
    running_since: u64,
    withdrawn: u128,
}

/// An account that has been opened.
#[derive(Clone, Debug)]
pub(crate) struct OpenAccount {
    pub(crate) terms: Terms,
    deposited: u128,
    balance: u128,
    settled_at: u64,
    paid_seconds: u64,
    running: u16,
    ended: u16,
    state: State,
    legs: Vec<LegRecord>,
}

impl OpenAccount {
    /// Opens an account.
    pub(crate) fn open(terms: Terms, deposit: TokenAmount) -> Self {
        Self {
            deposited: deposit.0,
            balance: deposit.0 * RATE_SCALE,
            settled_at: 0,
            paid_seconds: 0,
            running: 0,
            ended: 0,
            state: State::Unstarted,
            legs: vec![LegRecord::default(); terms.legs.len()],
            terms,
        }
    }

    fn per_second(&self) -> u128 {
        self.terms.burn_rate(self.ended).0
    }

    fn advance(&mut self, now: u64) {
        if self.state != State::Running {
            return;
        }
        let covered = u64::try_from(self.balance / self.per_second()).unwrap();
        let elapsed = now - self.settled_at;
        if elapsed > covered {
            self.state = State::Exhausted;
        }
        let elapsed = elapsed.min(covered);
        self.balance -= u128::from(elapsed) * self.per_second();
        self.paid_seconds += elapsed;
        self.settled_at += elapsed;
    }

    fn served(&self, leg: usize) -> u64 {
        let running = self.running & (1 << leg) != 0;
        let record = &self.legs[leg];
        let run = if running {
            self.paid_seconds - record.running_since
        } else {
            0
        };
        record.served_seconds + run
    }

    fn earned(&self, leg: usize) -> u128 {
        let rate = self.terms.legs[leg].rate;
        rate.earned_floor(self.served(leg)).unwrap().0
    }

    fn halt(&mut self, leg: usize) {
        self.legs[leg].served_seconds = self.served(leg);
        self.running &= !(1 << leg);
    }

    /// `fundTo`.
    pub(crate) fn fund_to(&mut self, total: TokenAmount, now: u64) {
        self.advance(now);
        let added = total.0.saturating_sub(self.deposited);
        self.deposited += added;
        self.balance += added * RATE_SCALE;
    }

    /// `start`.
    pub(crate) fn start(&mut self, leg: usize, now: u64) {
        self.advance(now);
        if self.state != State::Running {
            (0..self.legs.len()).for_each(|leg| self.halt(leg));
            self.state = State::Running;
            self.settled_at = now;
        }
        assert!(self.balance >= self.per_second(), "NotCovered");
        self.legs[leg].running_since = self.paid_seconds;
        self.running |= 1 << leg;
    }

    /// `pause`.
    pub(crate) fn pause(&mut self, leg: usize, now: u64) {
        self.advance(now);
        self.halt(leg);
    }

    /// `creditTo`.
    pub(crate) fn credit_to(&mut self, leg: usize, total: u64, now: u64) {
        self.advance(now);
        let added = total.saturating_sub(self.legs[leg].credited_seconds);
        self.legs[leg].served_seconds = self.served(leg).checked_sub(added).expect("CreditTooLarge");
        self.legs[leg].credited_seconds += added;
        self.legs[leg].running_since = self.paid_seconds;
    }

    /// `endLeg`.
    pub(crate) fn end_leg(&mut self, leg: usize, now: u64) {
        self.advance(now);
        self.halt(leg);
        self.ended |= 1 << leg;
        if usize::try_from(self.ended.count_ones()).unwrap() == self.legs.len() {
            self.state = State::Ended;
        }
    }

    /// `settleMany` of one leg.
    pub(crate) fn withdraw(&mut self, leg: usize, now: u64) {
        self.advance(now);
        self.legs[leg].withdrawn = self.earned(leg);
    }

    /// `close`, with the payout of every leg in the bitmap.
    pub(crate) fn close(&mut self, payouts: u16, now: u64) {
        self.advance(now);
        for leg in (0..self.legs.len()).filter(|leg| payouts & (1 << leg) != 0) {
            self.legs[leg].withdrawn = self.earned(leg);
        }
        self.state = State::Closed;
    }

    /// What the contract returns at a block of that time.
    pub(crate) fn read(&self, now: u64) -> AccountRead {
        let mut at = self.clone();
        at.advance(now);
        let exhausted_at = if at.state == State::Exhausted {
            at.settled_at
        } else {
            0
        };
        let running = at.state == State::Running;
        let started = at.paid_seconds > 0 || matches!(at.state, State::Running | State::Exhausted);
        let legs = (0..at.legs.len()).map(|leg| LegState {
            served_seconds: at.served(leg),
            credited_seconds: at.legs[leg].credited_seconds,
            withdrawn: TokenAmount(at.legs[leg].withdrawn),
            owed: TokenAmount(at.earned(leg) - at.legs[leg].withdrawn),
        });
        AccountRead::Present(Account {
            closed: at.state == State::Closed,
            deposited: TokenAmount(at.deposited),
            balance_scaled: if at.state == State::Closed { 0 } else { at.balance },
            block_time: now,
            paid_until: if running {
                at.settled_at + u64::try_from(at.balance / at.per_second()).unwrap()
            } else {
                exhausted_at
            },
            exhausted_at,
            started_at: if started {
                at.settled_at - at.paid_seconds
            } else {
                0
            },
            paid_seconds: at.paid_seconds,
            running: if running { at.running } else { 0 },
            ended: at.ended,
            legs: legs.collect(),
        })
    }
}
