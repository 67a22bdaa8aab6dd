//! The payment port in memory, backed by the [machine](crate::machine). The caller sets block times, reorganisations
//! and outages. For unit tests and seeded simulations; the tokens have no value.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountAt, Address, Hash, Terms},
    ports::{
        AcceptanceMessage, Balances, BlockLevel, Cursor, Head, Opened, PaymentError, Payments, Receipt,
        SigningKey,
    },
};

use crate::{
    evm::{acceptance, address_of, signer, to_evm},
    machine::{Action, Machine},
};

mod blocks;
mod state;

pub use blocks::Mark;
use blocks::{Block, Blocks};
use state::{Faults, State};

/// How the endpoint fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Each call fails immediately.
    Unreachable,
    /// Each call fails at its deadline.
    Hang,
    /// A write takes effect, but its caller gets an error. Reads succeed.
    LoseReply,
    /// A write is sent and not mined; [`MemoryEscrow::mine_pending`] mines it. Reads succeed.
    Pend,
    /// Reads return the state of this many blocks ago. Writes succeed.
    StaleBy(u32),
}

/// The escrow of one chain, in memory. Clones share their state.
#[derive(Clone)]
pub struct MemoryEscrow(Arc<Mutex<State>>);

impl fmt::Debug for MemoryEscrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.state().blocks.newest().head;
        f.debug_tuple("MemoryEscrow").field(&head).finish()
    }
}

impl MemoryEscrow {
    /// Creates a chain whose first block has that time.
    #[must_use]
    pub fn new(chain_id: u64, escrow: Address, token: Address, time: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            chain_id,
            escrow,
            token,
            blocks: Blocks::starting_at(time),
            clock: time,
            lags: (0, 0),
            gas: HashMap::new(),
            faults: Faults::default(),
            pending: Vec::new(),
            transactions: 0,
            call_deadline: Duration::from_secs(5),
            addresses: HashMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mines an empty block with that time, or one second after the newest block if that is later.
    pub fn set_time(&self, time: u64) {
        let mut state = self.state();
        state.clock = time;
        state.mine(|_, _| {});
    }

    /// Sets the time of the next block, which is at least one second after the newest block.
    pub fn set_next_block_time(&self, time: u64) {
        self.state().clock = time;
    }

    /// Mines an empty block `seconds` after the newest one.
    pub fn advance(&self, seconds: u64) {
        let time = self.time() + seconds;
        self.set_time(time);
    }

    /// Time of the newest block.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.state().blocks.newest().head.time
    }

    /// Sets by how many blocks `Safe` and `Finalized` are behind the newest block.
    pub fn set_lags(&self, safe: u64, finalized: u64) {
        self.state().lags = (safe, finalized);
    }

    /// Mints tokens, in a block of its own.
    pub fn mint(&self, to: Address, amount: TokenAmount) {
        let mut state = self.state();
        let token = state.token;
        state.mine(|block, _| block.machine.mint(token, to, amount));
    }

    /// Lets the token reject every transfer to a holder from the next block on.
    pub fn block(&self, holder: Address) {
        let mut state = self.state();
        let token = state.token;
        state.mine(|block, _| block.machine.block(token, holder));
    }

    /// Sets the native token balance of an address, in wei. The default is 1 native token.
    pub fn set_gas(&self, owner: Address, wei: u128) {
        self.state().gas.insert(owner, wei);
    }

    /// Makes all further calls fail in that way; `None` ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().faults.standing = fault;
    }

    /// Makes the next calls fail in that way, one entry per call; `None` lets a call succeed.
    pub fn script_faults(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults.next.extend(faults);
    }

    /// Sets the time that a hanging call takes.
    pub fn set_call_deadline(&self, deadline: Duration) {
        self.state().call_deadline = deadline;
    }

    /// Mines the transactions sent under [`Fault::Pend`], in one block.
    pub fn mine_pending(&self) {
        let mut state = self.state();
        let pending = std::mem::take(&mut state.pending);
        state.mine(|block, _| {
            for (caller, action, _) in pending {
                block.run(caller, &action).ok();
            }
        });
    }

    /// Drops the transactions sent under [`Fault::Pend`].
    pub fn drop_pending(&self) {
        self.state().pending.clear();
    }

    /// Marks the newest block, for [`Self::rewind`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.state().blocks.mark()
    }

    /// Reorganises: removes all blocks after the mark; later blocks get different hashes. Returns whether the marked
    /// block is still stored.
    pub fn rewind(&self, mark: Mark) -> bool {
        self.state().blocks.rewind(mark)
    }

    /// Reorganises: removes the newest `depth` blocks. Returns whether there were as many.
    pub fn reorganise(&self, depth: u64) -> bool {
        self.state().blocks.drop_newest(depth)
    }

    /// Token balance of the escrow.
    #[must_use]
    pub fn held(&self) -> TokenAmount {
        let state = self.state();
        state.blocks.newest().machine.held(state.token)
    }

    /// State of the contract in the newest block.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.state().blocks.newest().machine.clone()
    }

    /// Applies the next scripted fault. Returns the fault if the call itself continues.
    async fn reach(&self) -> Result<Option<Fault>, PaymentError> {
        let (fault, deadline) = {
            let mut state = self.state();
            let scripted = state.faults.next.pop_front();
            (scripted.unwrap_or(state.faults.standing), state.call_deadline)
        };
        match fault {
            Some(Fault::Unreachable) => Err(PaymentError::Unreachable("connection refused".into())),
            Some(Fault::Hang) => {
                tokio::time::sleep(deadline).await;
                Err(PaymentError::Unreachable(format!(
                    "no answer within {deadline:?}"
                )))
            }
            Some(Fault::LoseReply | Fault::Pend | Fault::StaleBy(_)) | None => Ok(fault),
        }
    }

    /// Reads from the block of that level.
    async fn read<T>(
        &self,
        level: BlockLevel,
        ask: impl FnOnce(&State, &Block) -> T,
    ) -> Result<T, PaymentError> {
        let fault = self.reach().await?;
        let state = self.state();
        let stale = match fault {
            Some(Fault::StaleBy(blocks)) => blocks.into(),
            _ => 0,
        };
        let lag = match level {
            BlockLevel::Latest => 0,
            BlockLevel::Safe => state.lags.0,
            BlockLevel::Finalized => state.lags.1,
        };
        Ok(ask(&state, state.blocks.back(stale + lag)))
    }

    async fn write(&self, key: &SigningKey, action: Action) -> Result<Receipt, PaymentError> {
        let fault = self.reach().await?;
        let caller = self.address_of(key)?;
        let mut state = self.state();
        let receipt = state.send(caller, action, fault == Some(Fault::Pend));
        if fault == Some(Fault::LoseReply) {
            return Err(PaymentError::Unreachable("the connection failed".into()));
        }
        receipt
    }
}

impl Payments for MemoryEscrow {
    async fn head(&self) -> Result<Head, PaymentError> {
        self.read(BlockLevel::Latest, |_, block| block.head).await
    }

    async fn balances(&self, owner: Address) -> Result<Balances, PaymentError> {
        self.read(BlockLevel::Latest, |state, block| Balances {
            token: block.machine.balance(state.token, owner),
            gas_wei: state.gas_of(owner),
        })
        .await
    }

    async fn account(&self, terms: &Terms, level: BlockLevel) -> Result<AccountAt, PaymentError> {
        self.read(level, |_, block| block.account(terms)).await
    }

    async fn accounts(&self, terms: &[Terms], level: BlockLevel) -> Result<Vec<AccountAt>, PaymentError> {
        self.read(level, |_, block| {
            terms.iter().map(|terms| block.account(terms)).collect()
        })
        .await
    }

    async fn find(&self, id: Hash) -> Result<(Head, Option<Opened>), PaymentError> {
        self.read(BlockLevel::Latest, |state, block| {
            let mut opened = state.blocks.opened_until(block.head.number);
            let found = opened.find(|opened| opened.terms.id() == id).cloned();
            (block.head, found)
        })
        .await
    }

    async fn opened_since(
        &self,
        market: Address,
        cursor: Option<Cursor>,
    ) -> Result<(Vec<Opened>, Cursor), PaymentError> {
        self.read(BlockLevel::Latest, |state, block| {
            let after = cursor.and_then(|cursor| state.blocks.resume(cursor));
            let opened = state.blocks.opened_until(block.head.number);
            let rows = opened
                .filter(|row| {
                    row.terms.market == market && after.is_none_or(|after| row.block_number > after)
                })
                .cloned()
                .collect();
            let cursor = Cursor {
                number: block.head.number,
                hash: block.head.hash,
            };
            (rows, cursor)
        })
        .await
    }

    async fn open(
        &self,
        key: &SigningKey,
        terms: &Terms,
        deposit: TokenAmount,
        valid_until: u64,
    ) -> Result<Receipt, PaymentError> {
        let action = Action::Open {
            terms: terms.clone(),
            deposit,
            valid_until,
        };
        self.write(key, action).await
    }

    async fn fund_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        total: TokenAmount,
    ) -> Result<Option<Receipt>, PaymentError> {
        let read = self.account(terms, BlockLevel::Latest).await?;
        if read
            .present()
            .is_some_and(|account| !account.closed && account.deposited >= total)
        {
            return Ok(None);
        }
        let action = Action::FundTo {
            terms: terms.clone(),
            total,
        };
        self.write(key, action).await.map(Some)
    }

    fn start(
        &self,
        key: &SigningKey,
        terms: &Terms,
        legs: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let terms = terms.clone();
        self.write(key, Action::Start { terms, legs })
    }

    fn pause(
        &self,
        key: &SigningKey,
        terms: &Terms,
        legs: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let terms = terms.clone();
        self.write(key, Action::Pause { terms, legs })
    }

    fn credit_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        leg: u8,
        total_seconds: u64,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let terms = terms.clone();
        self.write(
            key,
            Action::CreditTo {
                terms,
                leg,
                total_seconds,
            },
        )
    }

    fn end_leg(
        &self,
        key: &SigningKey,
        terms: &Terms,
        legs: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let terms = terms.clone();
        self.write(key, Action::EndLeg { terms, legs })
    }

    fn settle_many(
        &self,
        key: &SigningKey,
        rows: &[(Terms, u16)],
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let rows = rows.to_vec();
        self.write(key, Action::SettleMany { rows })
    }

    fn close(
        &self,
        key: &SigningKey,
        terms: &Terms,
        payouts: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let terms = terms.clone();
        self.write(key, Action::Close { terms, payouts })
    }

    fn withdraw_credit(
        &self,
        key: &SigningKey,
        to: Address,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send {
        let token = self.state().token;
        self.write(key, Action::WithdrawCredit { token, to })
    }

    fn address_of(&self, key: &SigningKey) -> Result<Address, PaymentError> {
        if let Some(known) = self.state().addresses.get(&key.0) {
            return Ok(*known);
        }
        let address = address_of(key)?;
        self.state().addresses.insert(key.0, address);
        Ok(address)
    }

    fn sign_acceptance(
        &self,
        key: &SigningKey,
        acceptance: &AcceptanceMessage,
    ) -> Result<[u8; 65], PaymentError> {
        let domain = {
            let state = self.state();
            acceptance::domain(state.chain_id, to_evm(state.escrow))
        };
        acceptance::sign(&signer(key)?, &domain, acceptance)
    }

    fn acceptance_signer(&self, acceptance: &AcceptanceMessage, signature: &[u8; 65]) -> Option<Address> {
        let domain = {
            let state = self.state();
            acceptance::domain(state.chain_id, to_evm(state.escrow))
        };
        acceptance::signer(&domain, acceptance, signature)
    }
}

#[cfg(test)]
mod tests;
