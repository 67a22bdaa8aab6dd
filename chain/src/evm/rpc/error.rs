//! Classifies errors of an RPC endpoint: an outage, a revert by the contract, or insufficient funds.

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

/// Classifies an error of a call by `sender`. `secrets` are removed from the endpoint's message.
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
            let message = redact(&payload.message, secrets);
            match sender {
                Some(address) if is_insufficient_gas(payload) => PaymentError::InsufficientGas { address },
                _ if payload.code == METHOD_NOT_FOUND => PaymentError::Malformed(format!(
                    "the RPC endpoint does not support a required method of the Ethereum API: {message}"
                )),
                _ => PaymentError::Unreachable(format!("the RPC endpoint answered: {message}")),
            }
        }
        RpcError::Transport(kind) => PaymentError::Unreachable(redact(&kind.to_string(), secrets)),
        RpcError::NullResp => PaymentError::Malformed("the RPC endpoint answered null".into()),
        RpcError::DeserError { err, .. } => {
            PaymentError::Malformed(format!("the answer is not JSON-RPC: {err}"))
        }
        RpcError::SerError(_) | RpcError::UnsupportedFeature(_) | RpcError::LocalUsageError(_) => {
            PaymentError::Malformed(redact(&error.to_string(), secrets))
        }
    }
}

/// Whether it is certain that the request was not sent.
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

/// Why an endpoint did not accept a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// It already has this transaction.
    AlreadyKnown,
    /// A transaction with this nonce was mined.
    NonceUsed,
    /// Another transaction with this nonce is pending, and this one does not pay enough to replace it.
    Underpriced,
}

/// Nodes use different texts for the same reason.
pub(crate) fn rejection(error: &TransportError) -> Option<Rejection> {
    let message = error.as_error_resp()?.message.to_ascii_lowercase();
    let contains = |words: &[&str]| words.iter().any(|w| message.contains(w));
    if contains(&[
        "already known",
        "already imported",
        "alreadyknown",
        "known transaction",
        "already in mempool",
    ]) {
        Some(Rejection::AlreadyKnown)
    } else if contains(&[
        "nonce too low",
        "nonce is too low",
        "oldnonce",
        "nonce has already been used",
        "invalid nonce",
    ]) {
        Some(Rejection::NonceUsed)
    } else if contains(&["underpriced", "fee too low", "feetoolow", "could not replace"]) {
        Some(Rejection::Underpriced)
    } else {
        None
    }
}

/// The contract's error, if the call was reverted.
fn refusal(payload: &ErrorPayload) -> Option<String> {
    if let Some(data) = payload.as_revert_data() {
        return Some(decode(&data));
    }
    let message = payload.message.to_ascii_lowercase();
    (message.contains("revert") && !message.contains("nonce")).then(|| "no reason given".to_owned())
}

/// Decodes a revert: an error of the escrow, of the token, or of Solidity itself.
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

/// Name and arguments of the error. The account's id is left out, as the caller knows it.
fn escrow_error(error: &Escrow::EscrowErrors) -> String {
    use Escrow::EscrowErrors as E;
    match error {
        E::AccountExists(_) => "AccountExists".into(),
        E::AccountUnknown(_) => "AccountUnknown".into(),
        E::AccountClosed(_) => "AccountClosed".into(),
        E::TermsDiffer(_) => "TermsDiffer".into(),
        E::BadSignature(_) => "BadSignature".into(),
        E::CreditTooLarge(e) => format!(
            "CreditTooLarge(creditedTotal {}, atMost {})",
            e.creditedTotal, e.atMost
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

/// Shortens the text and removes all secrets from it.
fn redact(text: &str, secrets: &[String]) -> String {
    const CHARS_MAX: usize = 300;
    let mut clean = text.to_owned();
    for secret in secrets {
        clean = clean.replace(secret.as_str(), "…");
    }
    clean.chars().take(CHARS_MAX).collect()
}
