//! One process's view of the chain: reads that fail, are stale or false, and writes whose reply is lost.

use jiff::Timestamp;
use leasehold_chain::machine::{Action, Refusal};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    endpoints::{Belief, Confirmation, Endpoint, Endpoints, belief},
    escrow::{AccountAt, AccountRead, Address, Terms, lease_name},
    observed::Observed,
    ports::{FINAL_READS, Head, PaymentError},
};

use crate::{Sim, reconcile::ProcessId, scenario::chain::Way};

/// Time after which a hanging call fails.
const DEADLINE_MS: u64 = 5_000;
/// Time after which a transaction that is not mined is left to the next reconcile.
pub const MINE_DEADLINE_MS: u64 = 30_000;

/// Age in seconds from which an answer counts as no answer, as each process's PaymentNetwork says.
const MAX_BLOCK_AGE: u64 = 30;
/// Kinds of false answers.
pub(crate) const FALSE_ANSWERS: u64 = 5;

/// The reads of one reconcile: their duration, and which false answers they received. Several answers can be false, but no
/// two are false in the same way.
#[derive(Default)]
pub struct Reader {
    /// Time that the reads took.
    pub cost_ms: u64,
    /// By how many blocks a stale answer of this reconcile was behind.
    lag: Option<usize>,
    /// Bitmap of the kinds of false answers received.
    false_answers: u8,
    failed: bool,
}

/// Name of the account that a call is about.
fn about(action: &Action) -> String {
    let terms = match action {
        Action::Open { terms, .. }
        | Action::FundTo { terms, .. }
        | Action::Start { terms, .. }
        | Action::Pause { terms, .. }
        | Action::CreditTo { terms, .. }
        | Action::EndLeg { terms, .. }
        | Action::Close { terms, .. } => Some(terms),
        Action::SettleMany { rows } => rows.first().map(|(terms, _)| terms),
        Action::WithdrawCredit { .. } => None,
    };
    terms.map_or_else(String::new, |t| lease_name(t.id()))
}

fn falsify(read: AccountRead, kind: u64) -> AccountRead {
    match (read, kind) {
        (_, 0) => AccountRead::Absent,
        (_, 1) => AccountRead::Mismatch,
        (AccountRead::Present(mut account), kind) => {
            match kind {
                2 => account.closed = true,
                3 => {
                    account.running = 0;
                    account.balance_scaled = 0;
                    account.exhausted_at = account.block_time.saturating_sub(500_000);
                    account.started_at = account.exhausted_at.saturating_sub(1);
                    account.paid_until = account.exhausted_at;
                }
                _ => {
                    account.started_at = 0;
                    account.running = 0;
                    account.block_time += 1_000_000;
                }
            }
            AccountRead::Present(account)
        }
        (other, _) => other,
    }
}

impl Sim {
    fn unreachable(&mut self, who: ProcessId) -> Option<u64> {
        if self.chain.hung {
            return Some(DEADLINE_MS);
        }
        if self.faults.cut_from_chain.contains(&who) {
            return Some(if self.faults.hangs { DEADLINE_MS } else { 5 });
        }
        let flaky = self.faults.flaky_per_mille;
        self.random.per_mille(flaky).then_some(5)
    }

    fn lag(&mut self, reader: &mut Reader, who: ProcessId, from: Endpoint) -> Result<usize, PaymentError> {
        reader.cost_ms += self.random.between(1, 20);
        let cost = match self.way(from) {
            Some(Way::Dead) => Some(DEADLINE_MS),
            Some(Way::Stuck(_) | Way::Lies(_)) | None => self.unreachable(who),
        };
        if let Some(cost) = cost {
            reader.cost_ms += cost;
            reader.failed = true;
            return Err(PaymentError::Unreachable("no answer".into()));
        }
        if let Some(Way::Stuck(number)) = self.way(from) {
            let behind = self.chain.newest().head.number.saturating_sub(number);
            return Ok(usize::try_from(behind).unwrap_or(usize::MAX));
        }
        if let Some(lag) = self.frozen_lag() {
            return Ok(lag);
        }
        let stale = self.faults.stale_per_mille;
        if let Some(lag) = reader.lag.filter(|_| self.random.per_mille(500)) {
            return Ok(lag);
        }
        if !self.random.per_mille(stale) {
            return Ok(0);
        }
        let lag = self.random.between(1, self.faults.stale_blocks);
        Ok(*reader.lag.insert(usize::try_from(lag).unwrap_or(1)))
    }

    /// What a process has received from the endpoints so far, and the time by its clock when these reads are done.
    fn endpoints(&mut self, who: ProcessId, reader: &Reader) -> (&mut Endpoints, Timestamp) {
        match who {
            ProcessId::Market(m) => {
                let now = self.clock_after(self.markets[m].offset_ms, reader.cost_ms);
                (&mut self.markets[m].endpoints, now)
            }
            ProcessId::Provider(s, p) => {
                let now = self.clock_after(self.sites[s].processes[p].offset_ms, reader.cost_ms);
                (&mut self.sites[s].processes[p].endpoints, now)
            }
        }
    }

    fn leading(&mut self, who: ProcessId) -> Endpoint {
        self.endpoints(who, &Reader::default()).0.leading()
    }

    /// Reads the newest block.
    pub(crate) fn read_head(&mut self, reader: &mut Reader, who: ProcessId) -> Observed<Head> {
        let from = self.leading(who);
        self.read_head_from(reader, who, from)
    }

    fn read_head_from(&mut self, reader: &mut Reader, who: ProcessId, from: Endpoint) -> Observed<Head> {
        let answer = self.lag(reader, who, from).map(|lag| self.chain.back(lag).head);
        let (endpoints, now) = self.endpoints(who, reader);
        endpoints.head(from, answer, MAX_BLOCK_AGE, now)
    }

    /// Reads the token balance of an address.
    pub(crate) fn read_balance(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        owner: Address,
    ) -> Observed<TokenAmount> {
        let token = self.currency.token;
        let from = self.leading(who);
        Observed::from_result(
            self.lag(reader, who, from)
                .map(|lag| self.chain.back(lag).machine.balance(token, owner)),
        )
    }

    /// Reads the account at the newest block.
    pub(crate) fn read_account(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        terms: &Terms,
    ) -> Observed<AccountAt> {
        let from = self.leading(who);
        self.read_account_from(reader, who, terms, from)
    }

    fn read_account_from(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        terms: &Terms,
        from: Endpoint,
    ) -> Observed<AccountAt> {
        let answer = self.answer(reader, (who, from), terms, 0);
        let newest = self.chain.newest().head;
        let (endpoints, now) = self.endpoints(who, reader);
        let read = endpoints.account(from, (terms.id(), answer), MAX_BLOCK_AGE, now);
        let is_true = reader.false_answers == 0 && self.faults.bad_endpoint.is_none();
        if read.known().is_some_and(|at| at.block == newest) && is_true {
            self.invariants.record_read(who, terms.id(), self.now);
        }
        read
    }

    /// Reads the account at the newest block, and a second time where a decision needs it, as the operator does.
    pub(crate) fn read_account_twice(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        (terms, open_by): (&Terms, u64),
        wants_second: impl Fn(&Observed<AccountAt>) -> bool,
    ) -> (Observed<AccountAt>, Option<Observed<AccountAt>>) {
        let from = self.leading(who);
        let first = self.read_account_from(reader, who, terms, from);
        if !wants_second(&first) {
            return (first, None);
        }
        let has_two = self.endpoints(who, reader).0.confirming().is_some();
        if let (Observed::Known(at), true) = (&first, has_two) {
            let confirmation = self.confirm(reader, (who, from.other()), terms, at);
            match belief(at, &confirmation, (terms.start_by, open_by)) {
                Belief::Confirmed => return (first.clone(), Some(first)),
                Belief::Alone => {}
                Belief::Unknown(why) => {
                    self.note(|| format!("{who:?} does not know {}: {why}", lease_name(terms.id())));
                    return (Observed::Unknown(why), None);
                }
            }
        }
        let second = self.read_account_from(reader, who, terms, from);
        (first, Some(second))
    }

    /// Whether the other endpoint, if there is one, shows the account in the same way.
    pub(crate) fn is_confirmed(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        terms: &Terms,
        at: &AccountAt,
    ) -> bool {
        match self.endpoints(who, reader).0.confirming() {
            Some(other) => self.confirm(reader, (who, other), terms, at) == Confirmation::Same,
            None => true,
        }
    }

    /// What the other endpoint says of the account in the block of an answer.
    fn confirm(
        &mut self,
        reader: &mut Reader,
        (who, other): (ProcessId, Endpoint),
        terms: &Terms,
        at: &AccountAt,
    ) -> Confirmation {
        let newest = self.read_head_from(reader, who, other);
        let lag = self.lag(reader, who, other);
        let behind = self.chain.newest().head.number.checked_sub(at.block.number);
        let behind = behind.and_then(|behind| usize::try_from(behind).ok());
        let answer = match (lag, behind) {
            (Ok(lag), Some(behind)) if lag <= behind && self.chain.back(behind).head == at.block => {
                self.answer_of(reader, other, terms, behind)
            }
            (Ok(_), _) => Err(PaymentError::Unreachable("no such block".into())),
            (Err(error), _) => Err(error),
        };
        let (endpoints, now) = self.endpoints(who, reader);
        endpoints.confirm(at, &newest, answer, now)
    }

    /// Reads the account at a block that many before the newest.
    pub(crate) fn read_account_at(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        terms: &Terms,
        behind: usize,
    ) -> Observed<AccountAt> {
        let from = self.leading(who);
        Observed::from_result(self.answer(reader, (who, from), terms, behind))
    }

    /// Reads the account at the newest final block, as often as decisions need, from both endpoints in turn.
    pub(crate) fn final_reads(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        terms: &Terms,
    ) -> Vec<Observed<AccountAt>> {
        let lag = self.chain.finality_lag();
        let from = self.leading(who);
        let other = self.endpoints(who, reader).0.confirming().unwrap_or(from);
        let read = |n| {
            let from = if n % 2 == 0 { from } else { other };
            Observed::from_result(self.answer(reader, (who, from), terms, lag))
        };
        (0..FINAL_READS).map(read).collect()
    }

    fn answer(
        &mut self,
        reader: &mut Reader,
        (who, from): (ProcessId, Endpoint),
        terms: &Terms,
        behind: usize,
    ) -> Result<AccountAt, PaymentError> {
        let lag = self.lag(reader, who, from)?;
        self.answer_of(reader, from, terms, lag.saturating_add(behind))
    }

    /// What an endpoint says of the account at a block that many before the newest.
    fn answer_of(
        &mut self,
        reader: &mut Reader,
        from: Endpoint,
        terms: &Terms,
        behind: usize,
    ) -> Result<AccountAt, PaymentError> {
        let block = self.chain.back(behind);
        let (head, mut read) = (block.head, block.machine.read(terms, block.head.time));
        let rate = self.faults.false_reads_per_mille;
        if let Some(Way::Lies(kind)) = self.way(from) {
            read = falsify(read, kind);
        } else if self.random.per_mille(rate) && !matches!(self.faults.bad_endpoint, Some((_, Way::Lies(_))))
        {
            // Beside an endpoint that lies, the other one tells the truth.
            let kind = self.random.below(FALSE_ANSWERS);
            if reader.false_answers & (1 << kind) == 0 {
                reader.false_answers |= 1 << kind;
                read = falsify(read, kind);
            }
        }
        let view_time = read.present().map_or(head.time, |account| account.block_time);
        AccountAt::computed(head, view_time, read)
    }

    /// Sends a transaction. Returns its number or an error, and the time that the call took.
    pub(crate) fn send(
        &mut self,
        who: ProcessId,
        caller: Address,
        action: Action,
    ) -> (Result<u64, PaymentError>, u64) {
        let from = self.leading(who);
        let dead = matches!(self.way(from), Some(Way::Dead)).then_some(DEADLINE_MS);
        if let Some(cost) = dead.or_else(|| self.unreachable(who)) {
            return (Err(PaymentError::Unreachable("no answer".into())), cost);
        }
        let amount = match &action {
            Action::Open { deposit, .. } => Some(*deposit),
            _ => None,
        };
        let sender = (who, self.restarts(who));
        let call = action.name();
        let sent = self.chain.send(sender, caller, action.clone());
        let lost = self.faults.lost_replies_per_mille;
        let result = match sent {
            Ok(_) if self.random.per_mille(lost) => {
                Err(PaymentError::Unreachable("the connection failed".into()))
            }
            Ok(id) => Ok(id),
            Err(Refusal::InsufficientBalance { have, need }) => Err(PaymentError::InsufficientTokens {
                address: caller,
                need: amount.unwrap_or(TokenAmount(need)),
                have: TokenAmount(have),
            }),
            Err(refusal) => Err(PaymentError::Reverted {
                error: refusal.to_string(),
            }),
        };
        self.note(|| format!("{who:?} sends {action} {}: {result:?}", about(&action)));
        self.crash_after_send(who, call);
        (result, self.random.between(1, 50))
    }
}
