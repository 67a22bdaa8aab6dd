//! EIP-2612 permits: an allowance for the escrow as a signature, so that a payment takes one transaction instead of
//! two.

use alloy::{
    eips::BlockId,
    primitives::{Address as EvmAddress, B256, U256, keccak256},
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::{Eip712Domain, SolCall, SolStruct},
};
use leasehold_planner::ports::PaymentError;

use crate::evm::{
    escrow::{Escrow, Token, eip2612},
    rpc::Rpc,
};

/// Returns the EIP-712 domain of the token's permits. Returns `None` if the token has no permits, or if the domain
/// cannot be derived here: a domain that only the endpoint reports must not be signed for.
pub(crate) async fn domain_separator(rpc: &Rpc, token: EvmAddress) -> Result<Option<B256>, PaymentError> {
    let Some(separator) = optional(rpc, token, &Token::DOMAIN_SEPARATORCall {}).await? else {
        return Ok(None);
    };
    let nonces = Token::noncesCall { owner: token };
    if optional(rpc, token, &nonces).await?.is_none() {
        return Ok(None);
    }
    let Some(name) = optional(rpc, token, &Token::nameCall {}).await? else {
        return Ok(None);
    };
    let version = optional(rpc, token, &Token::versionCall {}).await?;
    let mut versions = vec![Some("1".to_owned()), Some("2".to_owned()), None];
    versions.extend(version.map(Some));
    let derived = versions.into_iter().any(|version| {
        let domain = Eip712Domain::new(
            Some(name.clone().into()),
            version.map(Into::into),
            Some(U256::from(rpc.chain_id)),
            Some(token),
            None,
        );
        domain.separator() == separator
    });
    if !derived {
        tracing::info!(%token, "cannot derive the token's permit domain: using approve instead of permits");
    }
    Ok(derived.then_some(separator))
}

/// Calls a view. Returns `None` if the contract does not have it.
pub(crate) async fn optional<C: SolCall>(
    rpc: &Rpc,
    contract: EvmAddress,
    call: &C,
) -> Result<Option<C::Return>, PaymentError> {
    match rpc.view(contract, call, BlockId::latest()).await {
        Ok(answer) => Ok(answer),
        Err(PaymentError::Reverted { .. } | PaymentError::Malformed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Signs a permit that allows the escrow to transfer `value` from the signer.
pub(crate) fn sign(
    signer: &PrivateKeySigner,
    domain_separator: B256,
    spender: EvmAddress,
    value: U256,
    nonce: U256,
    deadline: u64,
) -> Result<Escrow::Permit, PaymentError> {
    let message = eip2612::Permit {
        owner: signer.address(),
        spender,
        value,
        nonce,
        deadline: U256::from(deadline),
    };
    let mut preimage = [0u8; 66];
    preimage[..2].copy_from_slice(&[0x19, 0x01]);
    preimage[2..34].copy_from_slice(domain_separator.as_slice());
    preimage[34..].copy_from_slice(message.eip712_hash_struct().as_slice());
    let signature = signer
        .sign_hash_sync(&keccak256(preimage))
        .map_err(|e| PaymentError::Malformed(format!("cannot sign the permit: {e}")))?;
    Ok(Escrow::Permit {
        value,
        deadline: message.deadline,
        v: 27 + u8::from(signature.v()),
        r: signature.r().into(),
        s: signature.s().into(),
    })
}
