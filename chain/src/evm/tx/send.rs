//! Sends a call and returns its receipt. A call is simulated first, so that a revert costs no gas. Then it gets a
//! nonce, is sent, and is waited for, with higher fees if it is stuck. If another transaction used the nonce, the
//! chain is read again.
//!
//! Nothing is signed that exceeds the ceilings of [`limits`](super::limits), whatever the endpoint reports.
//!
//! At most one transaction per call is ever mined: all attempts share a nonce, and a call gets another nonce only
//! when the chain shows that another transaction used the first one.

use std::{sync::Arc, time::Duration};

use alloy::{
    eips::BlockId,
    primitives::{Address as EvmAddress, B256, Bytes, U256, keccak256},
    providers::Provider,
    rpc::types::TransactionReceipt,
    signers::local::PrivateKeySigner,
};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{Address, Hash},
    ports::{Head, PaymentError, SpendLimitError},
};
use tokio::time::{Instant, timeout};

use super::{
    limits::Limits,
    pending_tx::{TxOutcome, broadcast, estimate_fees, sign},
    permit,
    queue::{PendingTotals, PendingTx, Queue, Queues},
};
use crate::evm::{
    escrow::{Escrow, Token, from_evm, narrow},
    rpc::{
        Rpc,
        error::{Rejection, rejection, was_not_sent},
    },
};

/// Nonces tried for one call. Each further one means that another sender used the one before.
const NONCES_MAX: usize = 8;
/// Gas that a permit, a transfer and first writes of storage slots can use beyond a simulation without them.
const PULL_GAS: u64 = 250_000;
/// Gas that a call can use in a later block beyond its simulation: a leg that has earned something meanwhile is paid
/// to a payee without tokens, or an account that is exhausted meanwhile is stored as such.
const LATER_GAS: u64 = 60_000;
const LATER_GAS_PER_LEG: u64 = 60_000;
/// A call that is to be mined.
pub(crate) struct Write {
    pub(crate) action: &'static str,
    pub(crate) account: Hash,
    pub(crate) to: EvmAddress,
    /// The encoded call, without a permit.
    pub(crate) input: Bytes,
    /// Number of legs that it touches.
    pub(crate) legs: u32,
    pub(crate) pull: Option<Pull>,
}

/// Tokens that a call transfers from its sender.
pub(crate) struct Pull {
    pub(crate) token: EvmAddress,
    pub(crate) amount: TokenAmount,
    /// The same call with amount 0, which can be simulated before the allowance exists.
    pub(crate) dry: Bytes,
    /// The token's permit domain and the same call with a permit, if the token has permits.
    pub(crate) permit: Option<(B256, WithPermit)>,
}

/// Encodes the call with a permit.
pub(crate) type WithPermit = Box<dyn Fn(Escrow::Permit) -> Bytes + Send + Sync>;

/// The call as it is sent.
struct Prepared {
    input: Bytes,
    gas: u64,
    permit: Option<U256>,
}

/// Sends the transactions of all signers.
pub(crate) struct Sender {
    queues: Queues,
    chain_id: u64,
    pub(super) limits: Limits,
    pub(super) mine_deadline: Duration,
    pub(super) bump_after: Duration,
}

impl Sender {
    pub(crate) fn new(chain_id: u64, limits: Limits, mine_deadline: Duration, queues: Queues) -> Self {
        Self {
            queues,
            chain_id,
            limits,
            mine_deadline,
            bump_after: (mine_deadline / 6).clamp(Duration::from_secs(1), Duration::from_secs(30)),
        }
    }

    pub(crate) fn queue(&self, signer: Address) -> Arc<Queue> {
        self.queues.of(self.chain_id, signer)
    }

    /// Sends the call and waits until it is mined.
    pub(crate) async fn send(
        &self,
        rpc: &Rpc,
        signer: &PrivateKeySigner,
        write: &Write,
    ) -> Result<TransactionReceipt, PaymentError> {
        let queue = self.queue(from_evm(signer.address()));
        for _ in 0..NONCES_MAX {
            let tx = {
                let _guard = timeout(self.mine_deadline, queue.send_lock.lock())
                    .await
                    .map_err(|_| {
                        PaymentError::Unreachable(
                            "earlier transactions of this key are still being sent".into(),
                        )
                    })?;
                match self.submit(rpc, &queue, signer, write).await? {
                    Some(tx) => tx,
                    None => continue,
                }
            };
            match self.wait_mined(rpc, &queue, signer, &tx).await? {
                TxOutcome::Mined(receipt) if receipt.status() => return Ok(*receipt),
                TxOutcome::Mined(receipt) => {
                    let refusal = self.revert_reason(rpc, signer, write, &tx, &receipt).await?;
                    tracing::info!(account = %write.account, action = write.action, tx = %receipt.transaction_hash, reason = refusal.as_deref().unwrap_or("retried"), "transaction reverted");
                    if let Some(error) = refusal {
                        return Err(PaymentError::Reverted { error });
                    }
                }
                TxOutcome::Displaced => {
                    tracing::info!(account = %write.account, action = write.action, nonce = tx.nonce, "another transaction of this key used the nonce");
                }
            }
        }
        Err(PaymentError::Unreachable(
            "another sender keeps using this key's nonces; nothing was mined; use the key in one place only"
                .into(),
        ))
    }

    /// Simulates, signs and sends the call, or joins a pending transaction for the same request. `None`: start over.
    async fn submit(
        &self,
        rpc: &Rpc,
        queue: &Queue,
        signer: &PrivateKeySigner,
        write: &Write,
    ) -> Result<Option<PendingTx>, PaymentError> {
        let me = signer.address();
        let head = rpc.head().await?;
        let at = BlockId::number(head.number);
        let (mined, pending, fees, balance) = tokio::try_join!(
            rpc.request(rpc.provider.get_transaction_count(me).block_id(at)),
            rpc.request(rpc.provider.get_transaction_count(me).pending()),
            estimate_fees(rpc),
            rpc.request(rpc.provider.get_balance(me)),
        )?;
        queue.forget_below(mined);
        let request_hash = keccak256([write.to.as_slice(), &write.input].concat());
        if let Some(tx) = queue.with_request_hash(request_hash) {
            return Ok(Some(tx));
        }
        self.resend_stuck(rpc, queue, signer, mined).await;

        let refused = |error| exceeded(signer, error);
        let fees = self.limits.cap(fees).map_err(refused)?;
        let token = write.pull.as_ref().map(|pull| pull.token);
        let totals = token.map_or_else(PendingTotals::default, |token| queue.pending_totals(token));
        let Some(prepared) = self.prepare(rpc, signer, write, head, totals).await? else {
            return Ok(None);
        };
        let later = LATER_GAS + LATER_GAS_PER_LEG * u64::from(write.legs);
        let gas_limit = prepared
            .gas
            .saturating_add(prepared.gas / 4)
            .saturating_add(later);
        self.limits.check_gas(gas_limit).map_err(refused)?;
        if balance < U256::from(gas_limit) * U256::from(fees.max) {
            return Err(PaymentError::InsufficientGas {
                address: from_evm(me),
            });
        }
        let mut tx = PendingTx {
            nonce: queue.free_nonce(pending),
            action: write.action,
            account: write.account,
            request_hash,
            to: write.to,
            input: prepared.input,
            gas_limit,
            pulls: write.pull.as_ref().map(|p| (p.token, p.amount.0)),
            permit: prepared.permit,
            fees,
            attempts: Vec::new(),
            sent_at: Instant::now(),
            sent_after: head.number,
        };
        sign(&self.limits, rpc, queue, signer, &mut tx)?;
        queue.insert(tx.clone());
        self.broadcast_first(rpc, queue, signer, tx).await
    }

    async fn broadcast_first(
        &self,
        rpc: &Rpc,
        queue: &Queue,
        signer: &PrivateKeySigner,
        tx: PendingTx,
    ) -> Result<Option<PendingTx>, PaymentError> {
        let Err(error) = broadcast(rpc, &tx).await else {
            tracing::info!(account = %tx.account, action = tx.action, tx = %tx.newest_hash(), nonce = tx.nonce, "sent");
            return Ok(Some(tx));
        };
        match rejection(&error) {
            Some(Rejection::AlreadyKnown) => return Ok(Some(tx)),
            // Another operator may have sent the same bytes.
            Some(Rejection::NonceUsed) => {
                let receipt = rpc.provider.get_transaction_receipt(tx.newest_hash());
                if rpc.request(receipt).await?.is_some() {
                    return Ok(Some(tx));
                }
            }
            Some(Rejection::Underpriced) => {}
            // The endpoint may have received it. From here on only the chain shows whether it did.
            None if error.is_transport_error() && !was_not_sent(&error) => {
                tracing::warn!(account = %tx.account, action = tx.action, tx = %tx.newest_hash(), "transaction sent, but the endpoint did not answer");
                return Ok(Some(tx));
            }
            None => {
                queue.remove(tx.nonce);
                return Err(rpc.classify(&error, Some(from_evm(signer.address()))));
            }
        }
        queue.remove(tx.nonce);
        tracing::debug!(account = %tx.account, action = tx.action, nonce = tx.nonce, "another transaction has the nonce: reading the chain again");
        tokio::time::sleep(rpc.poll).await;
        Ok(None)
    }

    /// Returns the call to send and its gas. `None` if a permit of this signer was used meanwhile.
    async fn prepare(
        &self,
        rpc: &Rpc,
        signer: &PrivateKeySigner,
        write: &Write,
        head: Head,
        totals: PendingTotals,
    ) -> Result<Option<Prepared>, PaymentError> {
        let me = from_evm(signer.address());
        let plain = |gas| Prepared {
            input: write.input.clone(),
            gas,
            permit: None,
        };
        let Some(pull) = &write.pull else {
            let gas = rpc.estimate(me, write.to, write.input.clone()).await?;
            return Ok(Some(plain(gas)));
        };
        let at = BlockId::number(head.number);
        let owner = signer.address();
        let spender = write.to;
        let (balance, allowance) = (
            Token::balanceOfCall { owner },
            Token::allowanceCall { owner, spender },
        );
        let (balance, allowance) = tokio::try_join!(
            rpc.view_of(pull.token, &balance, at),
            rpc.view_of(pull.token, &allowance, at),
        )?;
        let have = narrow(balance)?.saturating_sub(totals.pulls);
        if have < pull.amount.0 {
            // Report a revert by the contract first: a payer who opens twice has often spent all tokens on the first
            // account.
            rpc.estimate(me, write.to, pull.dry.clone()).await?;
            return Err(PaymentError::InsufficientTokens {
                address: me,
                need: pull.amount,
                have: TokenAmount(have),
            });
        }
        let needed = U256::from(totals.pulls.saturating_add(pull.amount.0));
        let allowed = totals.permits == 0 && allowance >= needed;
        let Some((domain, with_permit)) = pull.permit.as_ref().filter(|_| !allowed) else {
            let gas = rpc.estimate(me, write.to, write.input.clone()).await?;
            return Ok(Some(plain(gas)));
        };

        let nonces = Token::noncesCall { owner };
        let used = rpc.view_of(pull.token, &nonces, at).await?;
        let nonce = used + U256::from(totals.permits);
        let amount = U256::from(pull.amount.0);
        // Full hours, so that two operators sign the same bytes.
        let deadline = (head.time / 3600 + 2) * 3600;
        let permit = permit::sign(signer, *domain, write.to, amount, nonce, deadline)?;
        let input = with_permit(permit);
        let gas = if totals.permits == 0 {
            let estimate = rpc.estimate(me, write.to, input.clone()).await;
            if matches!(estimate, Err(PaymentError::Reverted { .. }))
                && rpc.view_of(pull.token, &nonces, BlockId::latest()).await? != nonce
            {
                return Ok(None);
            }
            estimate?
        } else {
            // This permit becomes valid only when the pending ones are mined, which no simulation covers.
            rpc.estimate(me, write.to, pull.dry.clone())
                .await?
                .saturating_add(PULL_GAS)
        };
        Ok(Some(Prepared {
            input,
            gas,
            permit: Some(nonce),
        }))
    }

    /// Returns the contract's reason. `None` if a retry may succeed: the gas ran out, which the next simulation
    /// accounts for, or another transaction used the permit.
    async fn revert_reason(
        &self,
        rpc: &Rpc,
        signer: &PrivateKeySigner,
        write: &Write,
        tx: &PendingTx,
        receipt: &TransactionReceipt,
    ) -> Result<Option<String>, PaymentError> {
        // When a nested call runs out of gas, its caller keeps 1/64 of the gas.
        if receipt.gas_used >= tx.gas_limit - tx.gas_limit / 32 {
            return Ok(None);
        }
        let owner = signer.address();
        if let (Some(permit), Some(pull)) = (tx.permit, &write.pull)
            && rpc
                .view_of(pull.token, &Token::noncesCall { owner }, BlockId::latest())
                .await?
                != permit
        {
            return Ok(None);
        }
        match rpc.estimate(from_evm(owner), tx.to, tx.input.clone()).await {
            Err(PaymentError::Reverted { error }) => Ok(Some(error)),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(
                "reverted when it was mined; a simulation no longer reproduces the reason".into(),
            )),
        }
    }
}

pub(super) fn exceeded(signer: &PrivateKeySigner, error: SpendLimitError) -> PaymentError {
    PaymentError::LimitExceeded {
        address: from_evm(signer.address()),
        error,
    }
}
