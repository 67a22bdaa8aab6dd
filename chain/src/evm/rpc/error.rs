//! What an endpoint's error means: an outage, a refusal of the contract, or a purse that is too empty.

use alloy::{
    primitives::Bytes,
    rpc::json_rpc::{ErrorPayload, RpcError},
    sol_types::{Panic, Revert, SolError, SolInterface},
    transports::{TransportError, TransportErrorKind},
};
use leasehold_planner::{escrow::Address, ports::PaymentError};

use super::transport::HttpError;
use crate::evm::escrow::{Escrow, Token};

const METHOD_NOT_FOUND: i64 = -32601;

/// What an error of the endpoint means for a call by `sender`. `secrets` are cut out of what the endpoint says.
pub(crate) fn payment_error(
    error: &TransportError,
    sender: Option<Address>,
    secrets: &[String],
) -> PaymentError {
    match error {
        RpcError::ErrorResp(payload) => {
            if let Some(refusal) = refusal(payload) {
                return PaymentError::Reverted { error: refusal };
            }
            let says = redact(&payload.message, secrets);
            match sender {
                Some(address) if is_insufficient_gas(payload) => PaymentError::InsufficientGas { address },
                _ if payload.code == METHOD_NOT_FOUND => PaymentError::Malformed(format!(
                    "the RPC endpoint lacks a method of the Ethereum API: {says}"
                )),
                _ => PaymentError::Unreachable(format!("the RPC endpoint answered: {says}")),
            }
        }
        RpcError::Transport(kind) => PaymentError::Unreachable(redact(&kind.to_string(), secrets)),
        RpcError::NullResp => PaymentError::Malformed("null where an answer was due".into()),
        RpcError::DeserError { err, .. } => PaymentError::Malformed(format!("no JSON-RPC answer: {err}")),
        RpcError::SerError(_) | RpcError::UnsupportedFeature(_) | RpcError::LocalUsageError(_) => {
            PaymentError::Malformed(redact(&error.to_string(), secrets))
        }
    }
}

/// Whether the request certainly never left this machine.
pub(crate) fn was_not_sent(error: &TransportError) -> bool {
    let RpcError::Transport(TransportErrorKind::Custom(cause)) = error else {
        return false;
    };
    matches!(
        cause.downcast_ref::<HttpError>(),
        Some(HttpError::NotConnected(_))
    )
}

fn is_insufficient_gas(payload: &ErrorPayload) -> bool {
    payload
        .message
        .to_ascii_lowercase()
        .contains("insufficient funds")
}

/// What an endpoint says of a transaction that it does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// It has this very transaction.
    AlreadyKnown,
    /// A transaction with this nonce was mined.
    NonceUsed,
    /// A transaction with this nonce waits, and ours does not pay enough to take its place.
    Underpriced,
}

/// Each node has its own words for these.
pub(crate) fn rejection(error: &TransportError) -> Option<Rejection> {
    let message = error.as_error_resp()?.message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| message.contains(w));
    if says(&[
        "already known",
        "already imported",
        "alreadyknown",
        "known transaction",
        "already in mempool",
    ]) {
        Some(Rejection::AlreadyKnown)
    } else if says(&[
        "nonce too low",
        "nonce is too low",
        "oldnonce",
        "nonce has already been used",
        "invalid nonce",
    ]) {
        Some(Rejection::NonceUsed)
    } else if says(&["underpriced", "fee too low", "feetoolow", "could not replace"]) {
        Some(Rejection::Underpriced)
    } else {
        None
    }
}

/// The contract's error, if this is a revert.
fn refusal(payload: &ErrorPayload) -> Option<String> {
    if let Some(data) = payload.as_revert_data() {
        return Some(decode(&data));
    }
    let message = payload.message.to_ascii_lowercase();
    (message.contains("revert") && !message.contains("nonce")).then(|| "no reason given".to_owned())
}

/// Names a revert: the escrow's errors, the token's, and Solidity's own.
pub(crate) fn decode(data: &Bytes) -> String {
    if let Ok(error) = Escrow::EscrowErrors::abi_decode(data) {
        return escrow_error(&error);
    }
    if let Ok(error) = Token::TokenErrors::abi_decode(data) {
        return token_error(&error);
    }
    if let Ok(revert) = Revert::abi_decode(data) {
        return revert.reason;
    }
    if let Ok(panic) = Panic::abi_decode(data) {
        return panic.to_string();
    }
    match data.get(..4) {
        Some(selector) => format!("error 0x{}", alloy::hex::encode(selector)),
        None => "no reason given".to_owned(),
    }
}

/// Name and arguments. An account's id is left out: who called knows it.
fn escrow_error(error: &Escrow::EscrowErrors) -> String {
    use Escrow::EscrowErrors as E;
    match error {
        E::AccountExists(_) => "AccountExists".into(),
        E::AccountUnknown(_) => "AccountUnknown".into(),
        E::AccountClosed(_) => "AccountClosed".into(),
        E::TermsDiffer(_) => "TermsDiffer".into(),
        E::BadSignature(_) => "BadSignature".into(),
        E::CreditTooLarge(e) => format!(
            "CreditTooLarge(creditedSeconds {}, atMost {})",
            e.creditedSeconds, e.atMost
        ),
        E::DepositTooLarge(e) => format!("DepositTooLarge(deposit {})", e.deposit),
        E::Expired(e) => format!("Expired(validUntil {})", e.validUntil),
        E::InvalidShortString(_) => "InvalidShortString".into(),
        E::LegCount(e) => format!("LegCount(count {})", e.count),
        E::LegIsEnded(e) => format!("LegIsEnded(leg {})", e.leg),
        E::LengthMismatch(_) => "LengthMismatch".into(),
        E::MayNotClose(_) => "MayNotClose".into(),
        E::NoCredit(_) => "NoCredit".into(),
        E::NoSuchLeg(e) => format!("NoSuchLeg(legs {:#018b})", e.legs),
        E::NotController(e) => format!("NotController(leg {})", e.leg),
        E::NotCovered(e) => format!("NotCovered(balance {}, perSecond {})", e.balance, e.perSecond),
        E::NotPayeeOrController(e) => format!("NotPayeeOrController(leg {})", e.leg),
        E::NotPayer(_) => "NotPayer".into(),
        E::ReentrancyGuardReentrantCall(_) => "ReentrancyGuardReentrantCall".into(),
        E::SafeERC20FailedOperation(e) => format!("SafeERC20FailedOperation(token {})", e.token),
        E::StartByPassed(e) => format!("StartByPassed(startBy {})", e.startBy),
        E::StringTooLong(_) => "StringTooLong".into(),
        E::TransferMismatch(e) => format!(
            "TransferMismatch(expected {}, received {})",
            e.expected, e.received
        ),
        E::ZeroAddress(_) => "ZeroAddress".into(),
        E::ZeroRate(e) => format!("ZeroRate(leg {})", e.leg),
    }
}

fn token_error(error: &Token::TokenErrors) -> String {
    use Token::TokenErrors as E;
    match error {
        E::ERC20InsufficientAllowance(e) => format!(
            "ERC20InsufficientAllowance(allowance {}, needed {})",
            e.allowance, e.needed
        ),
        E::ERC20InsufficientBalance(e) => format!(
            "ERC20InsufficientBalance(balance {}, needed {})",
            e.balance, e.needed
        ),
        E::ERC20InvalidReceiver(e) => format!("ERC20InvalidReceiver(receiver {})", e.receiver),
        E::ERC20InvalidSender(e) => format!("ERC20InvalidSender(sender {})", e.sender),
        E::ERC20InvalidSpender(e) => format!("ERC20InvalidSpender(spender {})", e.spender),
    }
}

/// The text, shortened, without any of the secrets.
fn redact(text: &str, secrets: &[String]) -> String {
    const CHARS_MAX: usize = 300;
    let mut clean = text.to_owned();
    for secret in secrets {
        clean = clean.replace(secret.as_str(), "…");
    }
    clean.chars().take(CHARS_MAX).collect()
}
