//! Requests to an RPC endpoint. It verifies that the endpoint serves the expected chain, and classifies its errors.

use std::{
    future::IntoFuture,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use alloy::{
    eips::{BlockId, BlockNumberOrTag},
    network::{Ethereum, TransactionBuilder},
    primitives::{Address as EvmAddress, Bytes},
    providers::{Provider, RootProvider},
    rpc::types::{Block, TransactionRequest},
    sol_types::SolCall,
    transports::TransportResult,
};
use leasehold_planner::{
    escrow::Address,
    ports::{BlockLevel, Head, PaymentError},
};

use super::escrow::{from_b256, to_evm};

pub(crate) mod error;
pub(crate) mod read_batcher;
pub(crate) mod transport;

pub(crate) use error::payment_error;

pub(crate) struct Rpc {
    pub(crate) provider: RootProvider<Ethereum>,
    pub(crate) chain_id: u64,
    /// How often to poll for a receipt.
    pub(crate) poll: Duration,
    secrets: Vec<String>,
    /// Whether the endpoint was seen to serve `chain_id` and has answered every request since.
    verified: AtomicBool,
}

impl Rpc {
    pub(crate) const fn new(
        provider: RootProvider<Ethereum>,
        chain_id: u64,
        poll: Duration,
        secrets: Vec<String>,
    ) -> Self {
        Self {
            provider,
            chain_id,
            poll,
            secrets,
            verified: AtomicBool::new(false),
        }
    }

    /// Sends a request for which no signer pays.
    pub(crate) async fn request<T>(
        &self,
        request: impl IntoFuture<Output = TransportResult<T>>,
    ) -> Result<T, PaymentError> {
        let answer = request.into_future().await;
        answer.map_err(|error| self.classify(&error, None))
    }

    /// Classifies an error. After an outage the chain id is verified again, as the endpoint may be another one.
    pub(crate) fn classify(
        &self,
        error: &alloy::transports::TransportError,
        sender: Option<Address>,
    ) -> PaymentError {
        if error.is_transport_error() {
            self.verified.store(false, Ordering::Relaxed);
        }
        payment_error(error, sender, &self.secrets)
    }

    /// Refuses an endpoint of another chain. It sends a request only at the start and after an outage.
    pub(crate) async fn verify_chain_id(&self) -> Result<(), PaymentError> {
        if self.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        let found = self.request(self.provider.get_chain_id()).await?;
        if found != self.chain_id {
            return Err(PaymentError::WrongChain {
                expected: self.chain_id,
                found,
            });
        }
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the block with that number, if the chain has it.
    pub(crate) async fn block(&self, at: BlockNumberOrTag) -> Result<Option<Head>, PaymentError> {
        let block = self.request(self.provider.get_block_by_number(at)).await?;
        Ok(block.as_ref().map(head_of))
    }

    /// Returns the newest block.
    pub(crate) async fn head(&self) -> Result<Head, PaymentError> {
        self.newest(BlockLevel::Latest).await
    }

    /// Returns the newest block of that level.
    pub(crate) async fn newest(&self, level: BlockLevel) -> Result<Head, PaymentError> {
        self.verify_chain_id().await?;
        let tag = block_tag(level);
        let block = self.block(tag).await?;
        block.ok_or_else(|| PaymentError::Malformed(format!("the endpoint returned no {tag} block")))
    }

    /// Calls a view at that block. Returns `None` if there is no contract at the address.
    pub(crate) async fn view<C: SolCall>(
        &self,
        to: EvmAddress,
        call: &C,
        at: BlockId,
    ) -> Result<Option<C::Return>, PaymentError> {
        let request = TransactionRequest::default()
            .with_to(to)
            .with_input(call.abi_encode());
        let answer: Bytes = self.request(self.provider.call(request).block(at)).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        C::abi_decode_returns(&answer).map(Some).map_err(|error| {
            PaymentError::Malformed(format!(
                "{} of {to}: {error}; is it the right contract?",
                C::SIGNATURE
            ))
        })
    }

    /// Calls a view of a contract that must exist.
    pub(crate) async fn view_of<C: SolCall>(
        &self,
        to: EvmAddress,
        call: &C,
        at: BlockId,
    ) -> Result<C::Return, PaymentError> {
        self.view(to, call, at)
            .await?
            .ok_or_else(|| no_contract(to, self.chain_id))
    }

    /// Simulates a call by `from` and returns the gas that it would use. A revert is an error.
    pub(crate) async fn estimate(
        &self,
        from: Address,
        to: EvmAddress,
        input: Bytes,
    ) -> Result<u64, PaymentError> {
        let request = TransactionRequest::default()
            .with_from(to_evm(from))
            .with_to(to)
            .with_input(input);
        let answer = self.provider.estimate_gas(request).block(BlockId::latest()).await;
        answer.map_err(|error| self.classify(&error, Some(from)))
    }
}

pub(crate) fn no_contract(address: EvmAddress, chain_id: u64) -> PaymentError {
    PaymentError::Malformed(format!(
        "chain {chain_id} has no contract at {address}: correct the PaymentNetwork"
    ))
}

pub(crate) fn head_of(block: &Block) -> Head {
    Head {
        number: block.header.number,
        hash: from_b256(block.header.hash),
        time: block.header.timestamp,
    }
}

const fn block_tag(level: BlockLevel) -> BlockNumberOrTag {
    match level {
        BlockLevel::Latest => BlockNumberOrTag::Latest,
        BlockLevel::Safe => BlockNumberOrTag::Safe,
        BlockLevel::Finalized => BlockNumberOrTag::Finalized,
    }
}
