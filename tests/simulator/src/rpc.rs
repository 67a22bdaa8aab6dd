//! One process's view of the chain: reads that fail, are stale or false, and writes whose reply is lost.

use leasehold_chain::machine::{Action, Refusal};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountRead, Address, Terms, lease_name},
    observed::Observed,
    ports::{Head, PaymentError},
};

use crate::{Sim, reconcile::ProcessId};

/// Time after which a hanging call fails.
const DEADLINE_MS: u64 = 5_000;
/// Time after which a transaction that is not mined is left to the next reconcile.
pub const MINE_DEADLINE_MS: u64 = 30_000;

/// The reads of one reconcile: their duration, and whether one of them was false. A single reading can be false, but
/// not two in a row.
#[derive(Default)]
pub struct Reader {
    /// Time that the reads took.
    pub cost_ms: u64,
    false_read: bool,
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

    fn lag(&mut self, reader: &mut Reader, who: ProcessId) -> Result<usize, PaymentError> {
        reader.cost_ms += self.random.between(1, 20);
        if let Some(cost) = self.unreachable(who) {
            reader.cost_ms += cost;
            reader.failed = true;
            return Err(PaymentError::Unreachable("no answer".into()));
        }
        if let Some(lag) = self.frozen_lag() {
            return Ok(lag);
        }
        let stale = self.faults.stale_per_mille;
        Ok(if self.random.per_mille(stale) {
            usize::try_from(self.random.between(1, 3)).unwrap_or(1)
        } else {
            0
        })
    }

    /// Reads the newest block.
    pub(crate) fn read_head(&mut self, reader: &mut Reader, who: ProcessId) -> Observed<Head> {
        Observed::from_result(self.lag(reader, who).map(|lag| self.chain.back(lag).head))
    }

    /// Reads the time of the newest block.
    pub(crate) fn read_block_time(&mut self, reader: &mut Reader, who: ProcessId) -> Observed<u64> {
        Observed::from_result(self.lag(reader, who).map(|lag| self.chain.back(lag).head.time))
    }

    /// Reads the token balance of an address.
    pub(crate) fn read_balance(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        owner: Address,
    ) -> Observed<TokenAmount> {
        let token = self.currency.token;
        Observed::from_result(
            self.lag(reader, who)
                .map(|lag| self.chain.back(lag).machine.balance(token, owner)),
        )
    }

    /// Reads the account, `behind` blocks before the newest.
    pub(crate) fn read_account(
        &mut self,
        reader: &mut Reader,
        who: ProcessId,
        terms: &Terms,
        behind: usize,
    ) -> Observed<AccountRead> {
        let lag = match self.lag(reader, who) {
            Ok(lag) => lag,
            Err(error) => return Observed::Unknown(error.to_string()),
        };
        let block = self.chain.back(lag + behind);
        let read = block.machine.read(terms, block.head.time);
        let rate = self.faults.false_reads_per_mille;
        if !reader.false_read && self.random.per_mille(rate) {
            reader.false_read = true;
            return Observed::Known(self.falsify(read));
        }
        if lag == 0 && behind == 0 {
            self.invariants.record_read(who, terms.id(), self.now);
        }
        Observed::Known(read)
    }

    fn falsify(&mut self, read: AccountRead) -> AccountRead {
        match (read, self.random.below(5)) {
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

    /// Sends a transaction. Returns its number or an error, and the time that the call took.
    pub(crate) fn send(
        &mut self,
        who: ProcessId,
        caller: Address,
        action: Action,
    ) -> (Result<u64, PaymentError>, u64) {
        if let Some(cost) = self.unreachable(who) {
            return (Err(PaymentError::Unreachable("no answer".into())), cost);
        }
        let amount = match &action {
            Action::Open { deposit, .. } => Some(*deposit),
            _ => None,
        };
        let sender = (who, self.restarts(who));
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
        self.crash_after_send(who);
        (result, self.random.between(1, 50))
    }
}
