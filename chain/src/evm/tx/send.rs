//! Sending: from a wish to a receipt. It simulates, so that a refusal costs nothing; takes a nonce; waits; bids more
//! for what is stuck; and asks the chain whenever a nonce turns out to be somebody else's.
//!
//! Of one call at most one transaction is ever mined: all forms of it share a nonce, and it moves to another nonce
//! only when the chain shows that the first went to another transaction.

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
    ports::{Head, PaymentError},
};
use tokio::time::{Instant, timeout};

use super::{
    pending_tx::{TxOutcome, broadcast, estimate_fees, sign},
    permit,
    queue::{PendingTx, Queue, Queues, PendingTotals},
};
use crate::evm::{
    escrow::{Escrow, Token, from_evm, narrow},
    rpc::{
        Rpc,
        error::{Rejection, rejection, was_not_sent},
    },
};

/// Nonces tried for one wish: each further one means that another sender took the one before.
const NONCES_MAX: usize = 8;
/// What a permit, a transfer and first writes of slots can take beyond a simulation without them.
const PULL_GAS: u64 = 250_000;
/// What a later block can take beyond a simulation: a leg that has earned something by then is paid to a payee who
/// held none, an account that is spent by then is written so.
const LATER_GAS: u64 = 60_000;
const LATER_GAS_PER_LEG: u64 = 60_000;
/// What a caller wants to have mined.
pub(crate) struct Write {
    pub(crate) action: &'static str,
    pub(crate) account: Hash,
    pub(crate) to: EvmAddress,
    /// The call, without a permit.
    pub(crate) input: Bytes,
    /// Legs that it touches.
    pub(crate) legs: u32,
    pub(crate) pull: Option<Pull>,
}

/// Tokens that a call takes from its sender.
pub(crate) struct Pull {
    pub(crate) token: EvmAddress,
    pub(crate) amount: TokenAmount,
    /// The same call, moving nothing: what can be simulated when the allowance isn't there yet.
    pub(crate) dry: Bytes,
    /// The same call with a permit, and the token's permit domain, if it has one.
    pub(crate) permit: Option<(B256, WithPermit)>,
}

/// Makes the call that brings a permit along.
pub(crate) type WithPermit = Box<dyn Fn(Escrow::Permit) -> Bytes + Send + Sync>;

/// How a call is to be sent.
struct Prepared {
    input: Bytes,
    gas: u64,
    permit: Option<U256>,
}

/// Sends for all signers.
pub(crate) struct Sender {
    queues: Queues,
    pub(super) mine_deadline: Duration,
    pub(super) bump_after: Duration,
}

impl Sender {
    pub(crate) fn new(mine_deadline: Duration) -> Self {
        Self {
            queues: Queues::default(),
            mine_deadline,
            bump_after: (mine_deadline / 6).clamp(Duration::from_secs(1), Duration::from_secs(30)),
        }
    }

    pub(crate) fn queue(&self, signer: Address) -> Arc<Queue> {
        self.queues.of(signer)
    }

    /// Has it mined, or says why not.
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
                    .map_err(|_| PaymentError::Unreachable("this key's queue does not move".into()))?;
                match self.submit(rpc, &queue, signer, write).await? {
                    Some(tx) => tx,
                    None => continue,
                }
            };
            match self.wait_mined(rpc, &queue, signer, &tx).await? {
                TxOutcome::Mined(receipt) if receipt.status() => return Ok(*receipt),
                TxOutcome::Mined(receipt) => {
                    let refusal = self.revert_reason(rpc, signer, write, &tx, &receipt).await?;
                    tracing::info!(account = %write.account, action = write.action, tx = %receipt.transaction_hash, reason = refusal.as_deref().unwrap_or("to be tried again"), "reverted");
                    if let Some(error) = refusal {
                        return Err(PaymentError::Reverted { error });
                    }
                }
                TxOutcome::Displaced => {
                    tracing::info!(account = %write.account, action = write.action, nonce = tx.nonce, "another transaction of this key took the nonce");
                }
            }
        }
        Err(PaymentError::Unreachable(
            "another sender keeps using this key's nonces; nothing was mined: try again".into(),
        ))
    }

    /// Simulates, signs and sends; or joins what is under way for the same wish. `None`: ask the chain once more.
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

        let totals = queue.pending_totals();
        let Some(prepared) = self.prepare(rpc, signer, write, head, totals).await? else {
            return Ok(None);
        };
        let gas_limit =
            prepared.gas + prepared.gas / 4 + LATER_GAS + LATER_GAS_PER_LEG * u64::from(write.legs);
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
            pulls: write.pull.as_ref().map_or(0, |p| p.amount.0),
            permit: prepared.permit,
            fees,
            attempts: Vec::new(),
            sent_at: Instant::now(),
            sent_after: head.number,
        };
        sign(rpc, signer, &mut tx)?;
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
            // Another operator may have sent these very bytes.
            Some(Rejection::NonceUsed) => {
                let receipt = rpc.provider.get_transaction_receipt(tx.newest_hash());
                if rpc.request(receipt).await?.is_some() {
                    return Ok(Some(tx));
                }
            }
            Some(Rejection::Underpriced) => {}
            // It may have arrived: from here on only the chain can tell.
            None if error.is_transport_error() && !was_not_sent(&error) => {
                tracing::warn!(account = %tx.account, action = tx.action, tx = %tx.newest_hash(), "sent, and no answer came");
                return Ok(Some(tx));
            }
            None => {
                queue.remove(tx.nonce);
                return Err(rpc.classify(&error, Some(from_evm(signer.address()))));
            }
        }
        queue.remove(tx.nonce);
        tracing::debug!(account = %tx.account, action = tx.action, nonce = tx.nonce, "the nonce is taken: asking the chain");
        tokio::time::sleep(rpc.poll).await;
        Ok(None)
    }

    /// The call to send and the gas it takes. `None` when a permit of this signer was used meanwhile.
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
            // The contract's own refusal goes first: who opens twice has often paid with all he had.
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
        // Whole hours, so that two operators sign the same bytes.
        let deadline = (head.time / 3600 + 2) * 3600;
        let permit = permit::sign(
            signer,
            *domain,
            write.to,
            U256::from(pull.amount.0),
            nonce,
            deadline,
        )?;
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
            // This permit holds only once those before it are mined, which no simulation shows.
            rpc.estimate(me, write.to, pull.dry.clone()).await? + PULL_GAS
        };
        Ok(Some(Prepared {
            input,
            gas,
            permit: Some(nonce),
        }))
    }

    /// The contract's reason. `None` when another try may do: its gas ran out, which the next simulation sees coming,
    /// or its permit was used up by another transaction.
    async fn revert_reason(
        &self,
        rpc: &Rpc,
        signer: &PrivateKeySigner,
        write: &Write,
        tx: &PendingTx,
        receipt: &TransactionReceipt,
    ) -> Result<Option<String>, PaymentError> {
        // A call keeps 1/64 of its gas for itself when one that it made runs out.
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
        match rpc
            .estimate(from_evm(owner), tx.to, tx.input.clone())
            .await
        {
            Err(PaymentError::Reverted { error }) => Ok(Some(error)),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(
                "reverted when it was mined, for a reason that is gone".into(),
            )),
        }
    }
}
