//! A provider's acceptance: an EIP-712 signature over the account, the rate and the time until which the provider
//! serves.

use alloy::{
    primitives::{Address as EvmAddress, B256, Signature},
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::{Eip712Domain, SolStruct, eip712_domain},
};
use leasehold_planner::{
    escrow::Address,
    ports::{AcceptanceMessage, PaymentError},
};

use super::abi::{Acceptance, from_evm, to_b256};

/// An acceptance is valid for one escrow contract on one chain.
pub(crate) fn domain(chain_id: u64, escrow: EvmAddress) -> Eip712Domain {
    eip712_domain! {
        name: "Leasehold Acceptance",
        version: "1",
        chain_id: chain_id,
        verifying_contract: escrow,
    }
}

fn digest(domain: &Eip712Domain, message: &AcceptanceMessage) -> B256 {
    Acceptance {
        escrowId: to_b256(message.escrow_id),
        leg: message.leg,
        rate: message.rate,
        notAfter: message.not_after,
        deadline: message.deadline,
    }
    .eip712_signing_hash(domain)
}

pub(crate) fn sign(
    signer: &PrivateKeySigner,
    domain: &Eip712Domain,
    message: &AcceptanceMessage,
) -> Result<[u8; 65], PaymentError> {
    signer
        .sign_hash_sync(&digest(domain, message))
        .map(|signature| signature.as_bytes())
        .map_err(|e| PaymentError::Malformed(format!("signing an acceptance: {e}")))
}

/// Recovers the signer. Like contracts do, it rejects the malleable second form (high s) of a signature.
pub(crate) fn signer(
    domain: &Eip712Domain,
    message: &AcceptanceMessage,
    signature: &[u8; 65],
) -> Option<Address> {
    let signature = Signature::from_raw_array(signature).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    signature
        .recover_address_from_prehash(&digest(domain, message))
        .ok()
        .map(from_evm)
}
