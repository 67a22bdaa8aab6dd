//! The escrow on an EVM chain: [`EvmEscrow`] is the payment port over JSON-RPC.

use std::{fmt, sync::Arc, time::Duration};

use alloy::{
    eips::BlockId,
    network::Ethereum,
    primitives::{Address as EvmAddress, B256, Bytes, U256},
    providers::{Provider, RootProvider},
    rpc::{client::RpcClient, types::TransactionReceipt},
    signers::local::PrivateKeySigner,
    sol_types::{Eip712Domain, SolCall},
};
use leasehold_crds::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountRead, Address, Hash, Terms},
    ports::{
        AcceptanceMessage, BlockLevel, Cursor, Head, Opened, PaymentError, Payments, Purse, Receipt,
        SigningKey,
    },
};
use tokio::sync::OnceCell;

mod abi;
pub(crate) mod acceptance;
mod events;
mod permit;
mod queue;
mod refusal;
mod rpc;
mod send;
pub(crate) mod wire;

pub(crate) use abi::{Escrow, TestToken, from_evm, to_evm};
use abi::{Token, account_read, from_b256, hides_its_start, narrow, to_b256, to_u40};
pub(crate) use refusal::payment_error;
use rpc::{Rpc, block_id, no_contract};
use send::{Pull, Sender, WithPermit, Write};
use wire::Wire;

/// Accounts per view: a call's gas is bounded.
const ACCOUNTS_PER_VIEW: usize = 200;

/// Which escrow on which chain, and how long to wait for it.
#[derive(Clone)]
pub struct Network {
    /// JSON-RPC endpoint. It often holds a key, and is never printed.
    pub rpc_url: String,
    /// EIP-155 chain id that the endpoint must serve.
    pub chain_id: u64,
    /// The escrow contract.
    pub escrow: Address,
    /// The token that accounts are paid in.
    pub token: Address,
    /// Until when an answer must be there.
    pub call_deadline: Duration,
    /// Until when a transaction must be mined, its replacements included.
    pub mine_deadline: Duration,
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
    /// Connects with the first call; fails only for a URL that is none.
    pub fn connect(network: &Network) -> Result<Self, PaymentError> {
        let wire = Wire::new(&network.rpc_url, network.call_deadline)?;
        let secrets = wire.secrets();
        let poll = Duration::from_millis(if wire.is_local() { 100 } else { 500 });
        let client = RpcClient::new(wire, true);
        Ok(Self::over(client, network, poll, secrets))
    }

    fn over(client: RpcClient, network: &Network, poll: Duration, secrets: Vec<String>) -> Self {
        let escrow = to_evm(network.escrow);
        let provider = RootProvider::<Ethereum>::new(client);
        Self(Arc::new(Inner {
            rpc: Rpc::new(provider, network.chain_id, poll, secrets),
            escrow,
            token: to_evm(network.token),
            acceptances: acceptance::domain(network.chain_id, escrow),
            permits: OnceCell::new(),
            sender: Sender::new(network.mine_deadline),
        }))
    }

    /// A call of the escrow that takes no tokens.
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

    /// A call of the escrow that takes `amount` tokens from the signer.
    async fn pay(
        &self,
        key: &SigningKey,
        action: &'static str,
        account: Hash,
        amount: TokenAmount,
        calls: Calls,
    ) -> Result<Receipt, PaymentError> {
        let inner = &self.0;
        inner.rpc.right_chain().await?;
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

    /// For a token without permits: the allowance first, in a transaction of its own.
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
        let _allowance = queue.allowance.lock().await;
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
            // Some tokens change an allowance to and from zero only.
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

    async fn snapshots(&self, terms: &[Terms], at: BlockId) -> Result<Vec<AccountRead>, PaymentError> {
        let call = Escrow::snapshotsCall {
            terms: terms.iter().map(Into::into).collect(),
        };
        let rows = self.0.rpc.view_of(self.0.escrow, &call, at).await?;
        if rows.len() != terms.len() {
            return Err(PaymentError::Malformed(
                "not one snapshot for each account".into(),
            ));
        }
        self.reads(terms, &rows, at).await
    }

    /// Completes snapshots by what only the stored accounts tell.
    async fn reads(
        &self,
        terms: &[Terms],
        rows: &[Escrow::Snapshot],
        at: BlockId,
    ) -> Result<Vec<AccountRead>, PaymentError> {
        let ids: Vec<B256> = terms
            .iter()
            .zip(rows)
            .filter(|(_, row)| hides_its_start(row))
            .map(|(terms, _)| to_b256(terms.id()))
            .collect();
        let mut stored = if ids.is_empty() {
            Vec::new()
        } else {
            let raw = Escrow::rawCall { ids };
            self.0.rpc.view_of(self.0.escrow, &raw, at).await?
        }
        .into_iter();
        rows.iter()
            .map(|row| {
                let stored = hides_its_start(row).then(|| stored.next()).flatten();
                account_read(row, stored.map(|account| account.clock.settledAt.to()))
            })
            .collect()
    }
}

/// One paying call in its three shapes.
struct Calls {
    plain: Bytes,
    dry: Bytes,
    with_permit: WithPermit,
}

impl Payments for EvmEscrow {
    async fn head(&self) -> Result<Head, PaymentError> {
        self.0.rpc.head().await
    }

    async fn purse(&self, owner: Address) -> Result<Purse, PaymentError> {
        let Inner { rpc, token, .. } = &*self.0;
        rpc.right_chain().await?;
        let owner = to_evm(owner);
        let balance = Token::balanceOfCall { owner };
        let (token, gas) = tokio::try_join!(
            rpc.view_of(*token, &balance, BlockId::latest()),
            rpc.ask(rpc.provider.get_balance(owner)),
        )?;
        Ok(Purse {
            token: TokenAmount(narrow(token)?),
            gas_wei: narrow(gas)?,
        })
    }

    async fn account(&self, terms: &Terms, level: BlockLevel) -> Result<AccountRead, PaymentError> {
        let Inner { rpc, escrow, .. } = &*self.0;
        rpc.right_chain().await?;
        let call = Escrow::snapshotCall { terms: terms.into() };
        match rpc.view(*escrow, &call, block_id(level)).await? {
            Some(snapshot) => {
                let rows = std::slice::from_ref(&snapshot);
                let reads = self
                    .reads(std::slice::from_ref(terms), rows, block_id(level))
                    .await?;
                reads
                    .into_iter()
                    .next()
                    .ok_or_else(|| PaymentError::Malformed("no snapshot".into()))
            }
            // On a young chain the contract may be newer than the newest final block.
            None if level != BlockLevel::Latest
                && !rpc.ask(rpc.provider.get_code_at(*escrow)).await?.is_empty() =>
            {
                Ok(AccountRead::Absent)
            }
            None => Err(no_contract(*escrow, rpc.chain_id)),
        }
    }

    async fn accounts(&self, terms: &[Terms]) -> Result<Vec<AccountRead>, PaymentError> {
        self.0.rpc.right_chain().await?;
        if terms.len() <= ACCOUNTS_PER_VIEW {
            return self.snapshots(terms, BlockId::latest()).await;
        }
        let at = BlockId::number(self.head().await?.number);
        let mut reads = Vec::with_capacity(terms.len());
        for part in terms.chunks(ACCOUNTS_PER_VIEW) {
            reads.extend(self.snapshots(part, at).await?);
        }
        Ok(reads)
    }

    async fn find(&self, id: Hash) -> Result<Option<Opened>, PaymentError> {
        events::find(&self.0.rpc, self.0.escrow, id).await
    }

    async fn opened_since(
        &self,
        market: Address,
        cursor: Option<Cursor>,
    ) -> Result<(Vec<Opened>, Cursor), PaymentError> {
        events::opened_since(&self.0.rpc, self.0.escrow, market, cursor).await
    }

    async fn open(
        &self,
        key: &SigningKey,
        terms: &Terms,
        deposit: TokenAmount,
        valid_until: u64,
    ) -> Result<Receipt, PaymentError> {
        let (encoded, valid) = (Escrow::Terms::from(terms), to_u40(valid_until));
        let open = |deposit| Escrow::openCall {
            terms: encoded.clone(),
            deposit,
            validUntil: valid,
        };
        let calls = Calls {
            plain: open(deposit.0).abi_encode().into(),
            dry: open(0).abi_encode().into(),
            with_permit: Box::new({
                let terms = encoded.clone();
                move |permit| {
                    Escrow::openWithPermitCall {
                        terms: terms.clone(),
                        deposit: deposit.0,
                        validUntil: valid,
                        permit,
                    }
                    .abi_encode()
                    .into()
                }
            }),
        };
        self.pay(key, "open", terms.id(), deposit, calls).await
    }

    async fn fund_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        total: TokenAmount,
    ) -> Result<Option<Receipt>, PaymentError> {
        let encoded = Escrow::Terms::from(terms);
        let fund = |total| Escrow::fundToCall {
            terms: encoded.clone(),
            totalDeposited: total,
        };
        let mut missing_before = None;
        loop {
            let read = self.account(terms, BlockLevel::Latest).await?;
            // The contract itself names what is wrong with an account that is none of ours, or closed.
            let deposited = match read.present() {
                Some(account) if !account.closed => account.deposited,
                Some(_) | None => TokenAmount(0),
            };
            let open = read.present().is_some_and(|account| !account.closed);
            let missing = TokenAmount(total.0.saturating_sub(deposited.0));
            if open && missing.0 == 0 {
                return Ok(None);
            }
            let calls = Calls {
                plain: fund(total.0).abi_encode().into(),
                dry: fund(0).abi_encode().into(),
                with_permit: Box::new({
                    let terms = encoded.clone();
                    move |permit| {
                        Escrow::fundToWithPermitCall {
                            terms: terms.clone(),
                            totalDeposited: total.0,
                            permit,
                        }
                        .abi_encode()
                        .into()
                    }
                }),
            };
            match self.pay(key, "fundTo", terms.id(), missing, calls).await {
                // Another may have filled it since, with the very tokens that are gone now.
                Err(PaymentError::ShortOfTokens { .. }) if missing_before != Some(missing) => {
                    missing_before = Some(missing);
                }
                done => return done.map(Some),
            }
        }
    }

    async fn start(&self, key: &SigningKey, terms: &Terms, legs: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::startCall {
            terms: terms.into(),
            legs,
        };
        self.act(key, "start", terms.id(), legs.count_ones(), call.abi_encode())
            .await
    }

    async fn pause(&self, key: &SigningKey, terms: &Terms, legs: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::pauseCall {
            terms: terms.into(),
            legs,
        };
        self.act(key, "pause", terms.id(), legs.count_ones(), call.abi_encode())
            .await
    }

    async fn credit(
        &self,
        key: &SigningKey,
        terms: &Terms,
        leg: u8,
        seconds: u64,
    ) -> Result<Receipt, PaymentError> {
        let call = Escrow::creditCall {
            terms: terms.into(),
            leg,
            creditedSeconds: to_u40(seconds),
        };
        self.act(key, "credit", terms.id(), 1, call.abi_encode()).await
    }

    async fn end_leg(&self, key: &SigningKey, terms: &Terms, legs: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::endLegCall {
            terms: terms.into(),
            legs,
        };
        self.act(key, "endLeg", terms.id(), legs.count_ones(), call.abi_encode())
            .await
    }

    async fn settle_many(&self, key: &SigningKey, rows: &[(Terms, u16)]) -> Result<Receipt, PaymentError> {
        let call = Escrow::settleManyCall {
            terms: rows.iter().map(|(terms, _)| terms.into()).collect(),
            legs: rows.iter().map(|(_, legs)| *legs).collect(),
        };
        let first = rows.first().map_or(Hash::default(), |(terms, _)| terms.id());
        let legs = rows.iter().map(|(_, legs)| legs.count_ones()).sum();
        self.act(key, "settleMany", first, legs, call.abi_encode()).await
    }

    async fn close(&self, key: &SigningKey, terms: &Terms, payouts: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::closeCall {
            terms: terms.into(),
            payouts,
        };
        self.act(
            key,
            "close",
            terms.id(),
            1 + payouts.count_ones(),
            call.abi_encode(),
        )
        .await
    }

    fn address_of(&self, key: &SigningKey) -> Result<Address, PaymentError> {
        address_of(key)
    }

    fn sign_acceptance(
        &self,
        key: &SigningKey,
        acceptance: &AcceptanceMessage,
    ) -> Result<[u8; 65], PaymentError> {
        acceptance::sign(&signer(key)?, &self.0.acceptances, acceptance)
    }

    fn acceptance_signer(&self, acceptance: &AcceptanceMessage, signature: &[u8; 65]) -> Option<Address> {
        acceptance::signer(&self.0.acceptances, acceptance, signature)
    }
}

/// Address of a key; fails when it is no secp256k1 key.
pub fn address_of(key: &SigningKey) -> Result<Address, PaymentError> {
    Ok(from_evm(signer(key)?.address()))
}

pub(crate) fn signer(key: &SigningKey) -> Result<PrivateKeySigner, PaymentError> {
    PrivateKeySigner::from_slice(&key.0)
        .map_err(|_| PaymentError::Malformed("the private key is no secp256k1 key: check its Secret".into()))
}

fn receipt_of(receipt: &TransactionReceipt) -> Result<Receipt, PaymentError> {
    Ok(Receipt {
        transaction: from_b256(receipt.transaction_hash),
        gas_used: receipt.gas_used,
        block_number: receipt
            .block_number
            .ok_or_else(|| PaymentError::Malformed("a receipt without a block".into()))?,
    })
}

#[cfg(test)]
mod tests;
