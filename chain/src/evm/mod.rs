//! The escrow on an EVM chain: [`EvmEscrow`] implements the payment port over JSON-RPC.

use std::{fmt, sync::Arc, time::Duration};

use alloy::{
    eips::BlockId,
    network::Ethereum,
    primitives::{Address as EvmAddress, B256, Bytes, U256},
    providers::RootProvider,
    rpc::{client::RpcClient, types::TransactionReceipt},
    signers::local::PrivateKeySigner,
    sol_types::{Eip712Domain, SolCall},
};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountAt, Address, Hash, Terms},
    ports::{Head, PaymentError, Receipt, SigningKey},
};
use tokio::sync::OnceCell;

mod escrow;
mod rpc;
mod tx;

pub(crate) use escrow::{Escrow, TestToken, acceptance, from_evm, to_evm};
use escrow::{Token, from_b256};
use rpc::{Rpc, read_batcher::ReadBatcher, transport::HttpTransport};
pub(crate) use rpc::{payment_error, transport};
use tx::{Pull, Sender, WithPermit, Write, permit};
pub use tx::{limits::Limits, queue::Queues};

/// An escrow contract on a chain, and the deadlines for calls to it.
#[derive(Clone)]
pub struct Network {
    /// JSON-RPC endpoint. It often contains an API key, so it is never printed.
    pub rpc_url: String,
    /// EIP-155 chain id that the endpoint must serve.
    pub chain_id: u64,
    /// The escrow contract.
    pub escrow: Address,
    /// The token in which accounts are paid.
    pub token: Address,
    /// Time limit of one call.
    pub call_deadline: Duration,
    /// Time limit for a transaction to be mined, replacements included.
    pub mine_deadline: Duration,
    /// Ceilings of what transactions may cost.
    pub limits: Limits,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("chain_id", &self.chain_id)
            .field("escrow", &self.escrow)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// The payment port over JSON-RPC. Clones share their connections and the queue of each signer.
#[derive(Clone)]
pub struct EvmEscrow(Arc<Inner>);

struct Inner {
    rpc: Rpc,
    escrow: EvmAddress,
    token: EvmAddress,
    acceptances: Eip712Domain,
    permits: OnceCell<Option<B256>>,
    heads: ReadBatcher<(), Head>,
    accounts: ReadBatcher<Terms, AccountAt>,
    sender: Sender,
}

impl fmt::Debug for EvmEscrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvmEscrow")
            .field("chain_id", &self.0.rpc.chain_id)
            .field("escrow", &self.0.escrow)
            .finish_non_exhaustive()
    }
}

impl EvmEscrow {
    /// Creates a client, which connects with its first call. Fails only if the URL is invalid. Every client of this
    /// process on the same chain must have a clone of the same `queues`.
    pub fn connect(network: &Network, queues: &Queues) -> Result<Self, PaymentError> {
        let transport = HttpTransport::new(&network.rpc_url, network.call_deadline)?;
        let secrets = transport.secrets();
        let poll = Duration::from_millis(if transport.is_local() { 100 } else { 500 });
        let client = RpcClient::new(transport, true);
        Ok(Self::over(client, network, poll, secrets, queues.clone()))
    }

    /// Whether the other one is a clone of this client.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn over(
        client: RpcClient,
        network: &Network,
        poll: Duration,
        secrets: Vec<String>,
        queues: Queues,
    ) -> Self {
        let escrow = to_evm(network.escrow);
        let provider = RootProvider::<Ethereum>::new(client);
        Self(Arc::new(Inner {
            rpc: Rpc::new(provider, network.chain_id, poll, secrets),
            escrow,
            token: to_evm(network.token),
            acceptances: acceptance::domain(network.chain_id, escrow),
            permits: OnceCell::new(),
            heads: ReadBatcher::default(),
            accounts: ReadBatcher::default(),
            sender: Sender::new(network.chain_id, network.limits, network.mine_deadline, queues),
        }))
    }

    /// Calls a function of the escrow that transfers no tokens from the signer.
    async fn act(
        &self,
        key: &SigningKey,
        action: &'static str,
        account: Hash,
        legs: u32,
        input: Vec<u8>,
    ) -> Result<Receipt, PaymentError> {
        let write = Write {
            action,
            account,
            to: self.0.escrow,
            input: input.into(),
            legs,
            pull: None,
        };
        let receipt = self.0.sender.send(&self.0.rpc, &signer(key)?, &write).await?;
        receipt_of(&receipt)
    }

    /// Calls a function of the escrow that transfers `amount` tokens from the signer.
    async fn pay(
        &self,
        key: &SigningKey,
        action: &'static str,
        account: Hash,
        amount: TokenAmount,
        calls: Calls,
    ) -> Result<Receipt, PaymentError> {
        let inner = &self.0;
        inner.rpc.verify_chain_id().await?;
        let signer = signer(key)?;
        let domain = *inner
            .permits
            .get_or_try_init(|| permit::domain_separator(&inner.rpc, inner.token))
            .await?;
        let write = Write {
            action,
            account,
            to: inner.escrow,
            input: calls.plain,
            legs: 0,
            pull: Some(Pull {
                token: inner.token,
                amount,
                dry: calls.dry,
                permit: domain.map(|domain| (domain, calls.with_permit)),
            }),
        };
        let receipt = if domain.is_some() {
            inner.sender.send(&inner.rpc, &signer, &write).await?
        } else {
            self.approve_and_pay(&signer, &write, amount).await?
        };
        receipt_of(&receipt)
    }

    /// Pays with a token that has no permits: approves the amount first, in a transaction of its own.
    async fn approve_and_pay(
        &self,
        signer: &PrivateKeySigner,
        write: &Write,
        amount: TokenAmount,
    ) -> Result<TransactionReceipt, PaymentError> {
        let Inner {
            rpc, token, sender, ..
        } = &*self.0;
        let queue = sender.queue(from_evm(signer.address()));
        let _allowance = queue.allowance_lock.lock().await;
        let allowance = Token::allowanceCall {
            owner: signer.address(),
            spender: write.to,
        };
        let allowed = rpc.view_of(*token, &allowance, BlockId::latest()).await?;
        if allowed < U256::from(amount.0) {
            if let Some(pull) = &write.pull {
                rpc.estimate(from_evm(signer.address()), write.to, pull.dry.clone())
                    .await?;
            }
            // Some tokens allow a change of the allowance only from zero and to zero.
            let steps = [(!allowed.is_zero()).then_some(0), Some(amount.0)];
            for value in steps.into_iter().flatten() {
                let call = Token::approveCall {
                    spender: write.to,
                    value: U256::from(value),
                };
                let approve = Write {
                    action: "approve",
                    account: write.account,
                    to: *token,
                    input: call.abi_encode().into(),
                    legs: 0,
                    pull: None,
                };
                sender.send(rpc, signer, &approve).await?;
            }
        }
        sender.send(rpc, signer, write).await
    }
}

/// One paying call, encoded in three ways.
struct Calls {
    plain: Bytes,
    dry: Bytes,
    with_permit: WithPermit,
}

/// Returns the address of a key. Fails if the key is not a secp256k1 key.
pub fn address_of(key: &SigningKey) -> Result<Address, PaymentError> {
    Ok(from_evm(signer(key)?.address()))
}

pub(crate) fn signer(key: &SigningKey) -> Result<PrivateKeySigner, PaymentError> {
    PrivateKeySigner::from_slice(&key.0).map_err(|_| {
        PaymentError::Malformed("the private key is not a secp256k1 key: check its Secret".into())
    })
}

fn receipt_of(receipt: &TransactionReceipt) -> Result<Receipt, PaymentError> {
    Ok(Receipt {
        transaction: from_b256(receipt.transaction_hash),
        gas_used: receipt.gas_used,
        block_number: receipt.block_number.ok_or_else(|| {
            PaymentError::Malformed("the endpoint returned a receipt without a block number".into())
        })?,
    })
}

#[cfg(test)]
mod tests;
