//! What decisions need of the world outside, as traits: the money and the clock.

use std::{fmt, future::Future};

use jiff::Timestamp;
use leasehold_crds::payment::money::TokenAmount;

use crate::escrow::{AccountAt, Address, Hash, Terms};

/// The time, so that tests can set it.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// A secp256k1 private key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(pub [u8; 32]);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// Which block counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockLevel {
    /// The newest block.
    Latest,
    /// The newest block the chain calls safe.
    Safe,
    /// The newest block the chain calls final.
    Finalized,
}

/// An end that a reorganisation could still undo counts as final when so many reads at the network's `releaseAt` show it.
pub const FINAL_READS: usize = 2;

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
    /// Its time, Unix seconds.
    pub time: u64,
}

/// What an address holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balances {
    /// Base units of the network's token.
    pub token: TokenAmount,
    /// Wei of the chain's native token, for gas.
    pub gas_wei: u128,
}

/// A transaction that was mined and did not revert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Hash of the transaction.
    pub transaction: Hash,
    /// Gas it used.
    pub gas_used: u64,
    /// Block it is in.
    pub block_number: u64,
}

/// An account that was opened, found by its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its terms, whole.
    pub terms: Terms,
    /// Its first deposit.
    pub deposit: TokenAmount,
    /// Block it was opened in.
    pub block_number: u64,
}

/// Where a reader of events stands: the last block it has read, with its hash so that a reorganisation is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the last block read.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Why an account or a balance could not be read, or a transaction was not mined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaymentError {
    /// No answer, or none in time: what is true on the chain is unknown.
    #[error("the chain can't be reached: {0}")]
    Unreachable(String),
    /// The endpoint serves another chain.
    #[error(
        "the RPC endpoint serves chain {found}, the PaymentNetwork names chain {expected}: correct one of them"
    )]
    WrongChain {
        /// Chain id of the PaymentNetwork.
        expected: u64,
        /// Chain id of the endpoint.
        found: u64,
    },
    /// The contract refused; nothing moved.
    #[error("the escrow refused: {error}")]
    Reverted {
        /// The contract's error, decoded, such as `AccountExists`.
        error: String,
    },
    /// The signer can't pay for gas; nothing was sent.
    #[error("{address} holds too little native token to pay for gas: send it some")]
    InsufficientGas {
        /// The signer.
        address: Address,
    },
    /// A transaction would exceed a ceiling of the PaymentNetwork; nothing was sent.
    #[error("{address} sends nothing: {error}")]
    LimitExceeded {
        /// The signer.
        address: Address,
        /// Which ceiling.
        error: SpendLimitError,
    },
    /// The signer lacks tokens; nothing was sent.
    #[error("{address} holds {have} base units of the token, {need} are needed")]
    InsufficientTokens {
        /// The signer.
        address: Address,
        /// The amount that is needed.
        need: TokenAmount,
        /// What is there.
        have: TokenAmount,
    },
    /// Sent, and not mined in time: it may be mined yet. Ask the chain before anything else.
    #[error("transaction {transaction} was sent and is not mined yet")]
    Pending {
        /// Hash of the transaction.
        transaction: Hash,
    },
    /// An answer that makes no sense.
    #[error("the chain's answer can't be read: {0}")]
    Malformed(String),
}

/// A ceiling of what transactions of one key may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendLimit {
    /// Wei per gas that a transaction offers.
    FeePerGas,
    /// Gas limit of a transaction.
    Gas,
    /// Wei that the transactions of 24 hours cost at most.
    Day,
}

/// A transaction that would exceed a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpendLimitError {
    /// Which ceiling.
    pub limit: SpendLimit,
    /// What the transaction needs, in the ceiling's unit: wei per gas, gas, or wei.
    pub wanted: u128,
    /// The ceiling, in the same unit.
    pub allowed: u128,
}

impl std::error::Error for SpendLimitError {}

impl fmt::Display for SpendLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, allowed) = (TokenAmount(self.wanted), TokenAmount(self.allowed));
        match self.limit {
            SpendLimit::FeePerGas => {
                let (wanted, allowed) = (wanted.to_tokens(9), allowed.to_tokens(9));
                write!(
                    f,
                    "the chain asks for {wanted} gwei per gas, and limits.feePerGasGwei of the PaymentNetwork permits {allowed}"
                )?;
            }
            SpendLimit::Gas => write!(
                f,
                "the transaction needs a gas limit of {}, and limits.gasPerTransaction of the PaymentNetwork permits {}",
                self.wanted, self.allowed
            )?,
            SpendLimit::Day => {
                let (wanted, allowed) = (wanted.to_tokens(18), allowed.to_tokens(18));
                write!(
                    f,
                    "with it, its transactions of 24 hours could cost {wanted} native tokens, and limits.nativePerDay of the PaymentNetwork permits {allowed}"
                )?;
            }
        }
        f.write_str("; check what the RPC endpoint reports, and raise the limit if it is right")
    }
}

/// A payment rail: the escrow of one PaymentNetwork. Every write is safe to repeat; every call has a deadline.
///
/// Writes sign with `key`; one signer's writes go one after the other.
pub trait Payments: Send + Sync {
    /// The newest block; refuses an endpoint of another chain.
    fn head(&self) -> impl Future<Output = Result<Head, PaymentError>> + Send;
    /// What `owner` holds.
    fn balances(&self, owner: Address) -> impl Future<Output = Result<Balances, PaymentError>> + Send;
    /// The account of `terms` at the newest block of that level.
    fn account(
        &self,
        terms: &Terms,
        level: BlockLevel,
    ) -> impl Future<Output = Result<AccountAt, PaymentError>> + Send;
    /// Accounts at the newest block of that level, all at the same one.
    fn accounts(
        &self,
        terms: &[Terms],
        level: BlockLevel,
    ) -> impl Future<Output = Result<Vec<AccountAt>, PaymentError>> + Send;
    /// The account with that id by its `Opened` event, for a reader whose notes are gone; and the newest block, in which it
    /// is there or not.
    fn find(&self, id: Hash) -> impl Future<Output = Result<(Head, Option<Opened>), PaymentError>> + Send;
    /// Accounts of `market` opened after the cursor (from the first block without one), and where it then stands.
    /// After a reorganisation it starts over some blocks earlier: an account may come twice.
    fn opened_since(
        &self,
        market: Address,
        cursor: Option<Cursor>,
    ) -> impl Future<Output = Result<(Vec<Opened>, Cursor), PaymentError>> + Send;

    /// Opens the account and deposits, in one transaction by the payer; the chain refuses it after `valid_until`.
    fn open(
        &self,
        key: &SigningKey,
        terms: &Terms,
        deposit: TokenAmount,
        valid_until: u64,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Fills the account up to `total`; moves nothing when it holds as much. `None` when nothing was to move.
    fn fund_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        total: TokenAmount,
    ) -> impl Future<Output = Result<Option<Receipt>, PaymentError>> + Send;
    /// Starts the legs in the bitmap.
    fn start(
        &self,
        key: &SigningKey,
        terms: &Terms,
        legs: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Pauses the legs in the bitmap.
    fn pause(
        &self,
        key: &SigningKey,
        terms: &Terms,
        legs: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Raises the seconds that the leg has credited to the payer to a total; credits nothing when they are as many.
    fn credit_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        leg: u8,
        total_seconds: u64,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Ends the legs in the bitmap for good.
    fn end_leg(
        &self,
        key: &SigningKey,
        terms: &Terms,
        legs: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Moves what legs earned to their payees: (terms, bitmap of legs) each.
    fn settle_many(
        &self,
        key: &SigningKey,
        rows: &[(Terms, u16)],
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Closes the account: refunds the payer, and pays out the legs in the bitmap.
    fn close(
        &self,
        key: &SigningKey,
        terms: &Terms,
        payouts: u16,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;
    /// Sends what the network's token did not transfer to the key's address, refunds and payouts alike, to `to`.
    fn withdraw_credit(
        &self,
        key: &SigningKey,
        to: Address,
    ) -> impl Future<Output = Result<Receipt, PaymentError>> + Send;

    /// Address of a key.
    fn address_of(&self, key: &SigningKey) -> Result<Address, PaymentError>;
    /// Signs an acceptance (EIP-712, domain `Leasehold Acceptance` of this chain and contract).
    fn sign_acceptance(
        &self,
        key: &SigningKey,
        acceptance: &AcceptanceMessage,
    ) -> Result<[u8; 65], PaymentError>;
    /// Who signed an acceptance; `None` when the signature is none.
    fn acceptance_signer(&self, acceptance: &AcceptanceMessage, signature: &[u8; 65]) -> Option<Address>;
}

/// What a provider signs when it has reserved:
/// `Acceptance(bytes32 escrowId,uint16 leg,uint128 rate,uint64 notAfter,uint64 deadline)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptanceMessage {
    /// The account.
    pub escrow_id: Hash,
    /// Which leg, from 0.
    pub leg: u16,
    /// The leg's rate, 10⁻¹² base units per second.
    pub rate: u128,
    /// Until when it will serve at most, Unix seconds.
    pub not_after: u64,
    /// Until when the reservation waits for the money, Unix seconds.
    pub deadline: u64,
}
