//! EIP-2612: the allowance for the escrow as a signature, so that paying takes one transaction instead of two.

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

/// The domain under which the token takes permits; `None` when it takes none, or under a domain that we can't
/// derive ourselves: an endpoint's word alone is nothing to sign.
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
        tracing::info!(%token, "the token's permit domain is not derivable: paying with approve instead");
    }
    Ok(derived.then_some(separator))
}

/// What a view answers; `None` when the contract doesn't have it.
async fn optional<C: SolCall>(
    rpc: &Rpc,
    token: EvmAddress,
    call: &C,
) -> Result<Option<C::Return>, PaymentError> {
    match rpc.view(token, call, BlockId::latest()).await {
        Ok(answer) => Ok(answer),
        Err(PaymentError::Reverted { .. } | PaymentError::Malformed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A permit for the escrow to take `value` from the signer.
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
        .map_err(|e| PaymentError::Malformed(format!("signing a permit: {e}")))?;
    Ok(Escrow::Permit {
        value,
        deadline: message.deadline,
        v: 27 + u8::from(signature.v()),
        r: signature.r().into(),
        s: signature.s().into(),
    })
}
