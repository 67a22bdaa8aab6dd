//! Escrow.sol as a pure state machine, without chain and IO; time is passed in. A property test compares it with the
//! contract on a real EVM, so that simulations can use it in place of the contract.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use leasehold_crds::payment::money::{RATE_SCALE, TokenAmount};
use leasehold_planner::escrow::{AccountRead, Address, Hash, Leg, Terms};

mod record;

use record::{Clock, Phase, Record, StoredLeg, U40_MAX, check_bitmap, check_terms, each};

/// Maximum number of legs of an account.
pub const MAX_LEGS: usize = 16;
/// Maximum deposit of an account, in base units.
pub const MAX_DEPOSIT: u128 = u128::MAX / RATE_SCALE;

/// A call of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `open`, with enough allowance.
    Open {
        /// The terms.
        terms: Terms,
        /// Base units.
        deposit: TokenAmount,
        /// Unix seconds.
        valid_until: u64,
    },
    /// `fundTo`, with enough allowance.
    FundTo {
        /// The terms.
        terms: Terms,
        /// Base units.
        total: TokenAmount,
    },
    /// `start`.
    Start {
        /// The terms.
        terms: Terms,
        /// Bitmap.
        legs: u16,
    },
    /// `pause`.
    Pause {
        /// The terms.
        terms: Terms,
        /// Bitmap.
        legs: u16,
    },
    /// `creditTo`.
    CreditTo {
        /// The terms.
        terms: Terms,
        /// Index.
        leg: u8,
        /// Seconds that are credited in total.
        total_seconds: u64,
    },
    /// `endLeg`.
    EndLeg {
        /// The terms.
        terms: Terms,
        /// Bitmap.
        legs: u16,
    },
    /// `settleMany`.
    SettleMany {
        /// Terms and bitmap of each.
        rows: Vec<(Terms, u16)>,
    },
    /// `close`.
    Close {
        /// The terms.
        terms: Terms,
        /// Bitmap of legs to pay out.
        payouts: u16,
    },
    /// `withdrawCredit`.
    WithdrawCredit {
        /// The token.
        token: Address,
        /// Who receives it.
        to: Address,
    },
}

/// Why the contract rejects a call. Nothing has changed. The text equals the one that the EVM client returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "these are the errors of IEscrow.sol")]
pub enum Refusal {
    #[error("AccountExists")]
    AccountExists,
    #[error("AccountUnknown")]
    AccountUnknown,
    #[error("TermsDiffer")]
    TermsDiffer,
    #[error("AccountClosed")]
    AccountClosed,
    #[error("Expired(validUntil {0})")]
    Expired(u64),
    #[error("StartByPassed(startBy {0})")]
    StartByPassed(u64),
    #[error("LegCount(count {0})")]
    LegCount(usize),
    #[error("ZeroAddress")]
    ZeroAddress,
    #[error("ZeroRate(leg {0})")]
    ZeroRate(usize),
    #[error("DepositTooLarge(deposit {0})")]
    DepositTooLarge(u128),
    #[error("NotPayer")]
    NotPayer,
    #[error("NotController(leg {0})")]
    NotController(usize),
    #[error("NotPayeeOrController(leg {0})")]
    NotPayeeOrController(usize),
    #[error("MayNotClose")]
    MayNotClose,
    #[error("NoSuchLeg(legs {0:#018b})")]
    NoSuchLeg(u16),
    #[error("LegIsEnded(leg {0})")]
    LegIsEnded(usize),
    #[error("NotCovered(balance {balance}, perSecond {per_second})")]
    NotCovered { balance: u128, per_second: u128 },
    #[error("CreditTooLarge(creditedTotal {total_seconds}, atMost {at_most})")]
    CreditTooLarge { total_seconds: u64, at_most: u64 },
    #[error("NoCredit")]
    NoCredit,
    /// An error of the token, not of the escrow.
    #[error("ERC20InsufficientBalance(balance {have}, needed {need})")]
    InsufficientBalance { have: u128, need: u128 },
    /// An error of the token, not of the escrow.
    #[error("blocked")]
    Blocked,
}

/// All accounts of an escrow, and the token balances around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    accounts: BTreeMap<Hash, Record>,
    balances: BTreeMap<(Address, Address), u128>,
    held: BTreeMap<Address, u128>,
    credits: BTreeMap<(Address, Address), u128>,
    blocked: BTreeSet<(Address, Address)>,
}

impl Machine {
    /// Mints tokens.
    pub fn mint(&mut self, token: Address, to: Address, amount: TokenAmount) {
        let balance = self.balances.entry((token, to)).or_default();
        *balance = balance.saturating_add(amount.0);
    }

    /// Balance of `owner`, outside the escrow.
    #[must_use]
    pub fn balance(&self, token: Address, owner: Address) -> TokenAmount {
        TokenAmount(self.balances.get(&(token, owner)).copied().unwrap_or_default())
    }

    /// Lets a token reject every transfer to a holder, as issuers of stablecoins can.
    pub fn block(&mut self, token: Address, holder: Address) {
        self.blocked.insert((token, holder));
    }

    /// What the token did not transfer to `owner`.
    #[must_use]
    pub fn credit(&self, token: Address, owner: Address) -> TokenAmount {
        TokenAmount(self.credits.get(&(token, owner)).copied().unwrap_or_default())
    }

    /// Balance of the escrow.
    #[must_use]
    pub fn held(&self, token: Address) -> TokenAmount {
        TokenAmount(self.held.get(&token).copied().unwrap_or_default())
    }

    /// The account as of `now`.
    #[must_use]
    pub fn read(&self, terms: &Terms, now: u64) -> AccountRead {
        match self.accounts.get(&terms.id()) {
            None => AccountRead::Absent,
            Some(record) if record.terms != *terms => AccountRead::Mismatch,
            Some(record) => AccountRead::Present(record.view(now)),
        }
    }

    /// Executes a call in a block of that time. Returns the base units that moved into or out of the escrow, or were
    /// credited because the token did not transfer them.
    pub fn apply(&mut self, caller: Address, action: &Action, now: u64) -> Result<TokenAmount, Refusal> {
        match action {
            Action::Open {
                terms,
                deposit,
                valid_until,
            } => self.open(caller, terms, *deposit, *valid_until, now),
            Action::FundTo { terms, total } => self.fund_to(caller, terms, *total, now),
            Action::Start { terms, legs } => self.control(caller, terms, *legs, now, Record::start),
            Action::Pause { terms, legs } => self.control(caller, terms, *legs, now, Record::pause),
            Action::EndLeg { terms, legs } => self.control(caller, terms, *legs, now, Record::end),
            Action::CreditTo {
                terms,
                leg,
                total_seconds,
            } => self.credit_to(caller, terms, *leg, *total_seconds, now),
            Action::SettleMany { rows } => self.settle_many(caller, rows, now),
            Action::Close { terms, payouts } => self.close(caller, terms, *payouts, now),
            Action::WithdrawCredit { token, to } => self.withdraw_credit(caller, *token, *to),
        }
    }

    fn open(
        &mut self,
        caller: Address,
        terms: &Terms,
        deposit: TokenAmount,
        valid_until: u64,
        now: u64,
    ) -> Result<TokenAmount, Refusal> {
        if caller != terms.payer {
            return Err(Refusal::NotPayer);
        }
        let valid_until = valid_until.min(U40_MAX);
        if now > valid_until {
            return Err(Refusal::Expired(valid_until));
        }
        if now > terms.start_by {
            return Err(Refusal::StartByPassed(terms.start_by));
        }
        if deposit.0 > MAX_DEPOSIT {
            return Err(Refusal::DepositTooLarge(deposit.0));
        }
        check_terms(terms)?;
        let id = terms.id();
        if self.accounts.contains_key(&id) {
            return Err(Refusal::AccountExists);
        }
        self.pull(terms.token, caller, deposit.0)?;
        let record = Record {
            terms: terms.clone(),
            clock: Clock {
                balance: deposit.0 * RATE_SCALE,
                ..Clock::default()
            },
            legs: vec![StoredLeg::default(); terms.legs.len()],
        };
        self.accounts.insert(id, record);
        Ok(deposit)
    }

    fn fund_to(
        &mut self,
        caller: Address,
        terms: &Terms,
        total: TokenAmount,
        now: u64,
    ) -> Result<TokenAmount, Refusal> {
        let mut record = self.load_open(terms)?;
        let deposited = record.deposited();
        if total.0 <= deposited {
            return Ok(TokenAmount(0));
        }
        if total.0 > MAX_DEPOSIT {
            return Err(Refusal::DepositTooLarge(total.0));
        }
        record.advance(now);
        let amount = total.0 - deposited;
        record.clock.balance += amount * RATE_SCALE;
        self.pull(terms.token, caller, amount)?;
        self.store(record);
        Ok(TokenAmount(amount))
    }

    /// Starts, pauses or ends legs of the caller.
    fn control(
        &mut self,
        caller: Address,
        terms: &Terms,
        legs: u16,
        now: u64,
        change: fn(&mut Record, u16, u64) -> Result<(), Refusal>,
    ) -> Result<TokenAmount, Refusal> {
        let mut record = self.load_open(terms)?;
        check_bitmap(terms, legs)?;
        for leg in each(legs) {
            if caller != terms.legs[leg].controller {
                return Err(Refusal::NotController(leg));
            }
        }
        record.advance(now);
        change(&mut record, legs, now)?;
        self.store(record);
        Ok(TokenAmount(0))
    }

    fn credit_to(
        &mut self,
        caller: Address,
        terms: &Terms,
        leg: u8,
        total_seconds: u64,
        now: u64,
    ) -> Result<TokenAmount, Refusal> {
        let mut record = self.load_open(terms)?;
        let leg = usize::from(leg);
        let Some(Leg { controller, rate, .. }) = terms.legs.get(leg) else {
            return Err(Refusal::NoSuchLeg(if leg < MAX_LEGS { 1 << leg } else { 0 }));
        };
        if caller != *controller {
            return Err(Refusal::NotController(leg));
        }
        record.advance(now);
        let total_seconds = total_seconds.min(U40_MAX);
        let credited = record.legs[leg].credited_seconds;
        if total_seconds > credited {
            let served = record.served(leg);
            let kept = (record.legs[leg].withdrawn * RATE_SCALE).div_ceil(rate.0);
            let at_most = credited + served - u64::try_from(kept).unwrap_or(served);
            if total_seconds > at_most {
                return Err(Refusal::CreditTooLarge {
                    total_seconds,
                    at_most,
                });
            }
            record.legs[leg].served_seconds = served - (total_seconds - credited);
            record.legs[leg].credited_seconds = total_seconds;
            record.legs[leg].running_since = record.clock.paid_seconds;
        }
        self.store(record);
        Ok(TokenAmount(0))
    }

    fn settle_many(
        &mut self,
        caller: Address,
        rows: &[(Terms, u16)],
        now: u64,
    ) -> Result<TokenAmount, Refusal> {
        let mut next = self.clone();
        let mut sum = 0;
        for (terms, legs) in rows {
            sum += next.withdraw(caller, terms, *legs, now)?;
        }
        *self = next;
        Ok(TokenAmount(sum))
    }

    fn withdraw(&mut self, caller: Address, terms: &Terms, legs: u16, now: u64) -> Result<u128, Refusal> {
        let mut record = self.load(terms)?;
        check_bitmap(terms, legs)?;
        record.advance(now);
        let mut sum = 0;
        for leg in each(legs) {
            let Leg {
                payee, controller, ..
            } = terms.legs[leg];
            if caller != payee && caller != controller {
                return Err(Refusal::NotPayeeOrController(leg));
            }
            sum += self.pay_out(&mut record, leg);
        }
        self.store(record);
        Ok(sum)
    }

    fn close(
        &mut self,
        caller: Address,
        terms: &Terms,
        payouts: u16,
        now: u64,
    ) -> Result<TokenAmount, Refusal> {
        let mut record = self.load_open(terms)?;
        if payouts != 0 {
            check_bitmap(terms, payouts)?;
        }
        record.advance(now);
        if caller == terms.payer {
            record.give_notice();
        } else if caller != terms.closer && !record.is_over(now) {
            return Err(Refusal::MayNotClose);
        }
        let earned: u128 = (0..terms.legs.len()).map(|leg| record.earned(leg)).sum();
        let refund = record.deposited() - earned;
        record.clock.phase = Phase::Closed;
        let mut moved = refund;
        for leg in each(payouts) {
            moved += self.pay_out(&mut record, leg);
        }
        self.push(terms.token, terms.payer, refund);
        self.store(record);
        Ok(TokenAmount(moved))
    }

    fn withdraw_credit(
        &mut self,
        caller: Address,
        token: Address,
        to: Address,
    ) -> Result<TokenAmount, Refusal> {
        if to == Address::default() {
            return Err(Refusal::ZeroAddress);
        }
        let amount = self.credit(token, caller);
        if amount.0 == 0 {
            return Err(Refusal::NoCredit);
        }
        if self.blocked.contains(&(token, to)) {
            return Err(Refusal::Blocked);
        }
        self.credits.remove(&(token, caller));
        self.push(token, to, amount.0);
        Ok(amount)
    }

    fn pay_out(&mut self, record: &mut Record, leg: usize) -> u128 {
        let owed = record.earned(leg) - record.legs[leg].withdrawn;
        record.legs[leg].withdrawn += owed;
        self.push(record.terms.token, record.terms.legs[leg].payee, owed);
        owed
    }

    fn load(&self, terms: &Terms) -> Result<Record, Refusal> {
        let record = self.accounts.get(&terms.id()).ok_or(Refusal::AccountUnknown)?;
        if record.terms == *terms {
            Ok(record.clone())
        } else {
            Err(Refusal::TermsDiffer)
        }
    }

    fn load_open(&self, terms: &Terms) -> Result<Record, Refusal> {
        let record = self.load(terms)?;
        if record.clock.phase == Phase::Closed {
            return Err(Refusal::AccountClosed);
        }
        Ok(record)
    }

    fn store(&mut self, record: Record) {
        self.accounts.insert(record.terms.id(), record);
    }

    fn pull(&mut self, token: Address, from: Address, amount: u128) -> Result<(), Refusal> {
        let have = self.balance(token, from).0;
        if have < amount {
            return Err(Refusal::InsufficientBalance { have, need: amount });
        }
        self.balances.insert((token, from), have - amount);
        *self.held.entry(token).or_default() += amount;
        Ok(())
    }

    /// Sends tokens. What the token does not transfer is credited.
    fn push(&mut self, token: Address, to: Address, amount: u128) {
        if self.blocked.contains(&(token, to)) {
            *self.credits.entry((token, to)).or_default() += amount;
            return;
        }
        let held = self.held.entry(token).or_default();
        *held = held
            .checked_sub(amount)
            .expect("the escrow holds at least what it owes");
        *self.balances.entry((token, to)).or_default() += amount;
    }
}

impl Action {
    /// Name of the contract's function.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::FundTo { .. } => "fundTo",
            Self::Start { .. } => "start",
            Self::Pause { .. } => "pause",
            Self::CreditTo { .. } => "creditTo",
            Self::EndLeg { .. } => "endLeg",
            Self::SettleMany { .. } => "settleMany",
            Self::Close { .. } => "close",
            Self::WithdrawCredit { .. } => "withdrawCredit",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
