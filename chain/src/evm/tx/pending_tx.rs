//! Follows a transaction after it was sent until it is mined or displaced. A stuck transaction is replaced by one
//! with higher fees. An unknown transaction that blocks the key's nonce is replaced by an empty one.

use alloy::{
    consensus::{SignableTransaction, TxEip1559},
    eips::eip2718::Encodable2718,
    network::TxSignerSync,
    primitives::{B256, Bytes, TxKind, keccak256},
    providers::{
        Provider,
        utils::{Eip1559Estimator, eip1559_default_estimator},
    },
    rpc::types::TransactionReceipt,
    signers::local::PrivateKeySigner,
    transports::TransportError,
};
use leasehold_planner::{escrow::Hash, ports::PaymentError};
use tokio::time::Instant;

use super::{
    limits::Limits,
    queue::{Fees, PendingTx, Queue},
    send::{Sender, exceeded},
};
use crate::evm::{
    escrow::from_b256,
    rpc::{
        Rpc,
        error::{Rejection, rejection},
    },
};

/// Consecutive reads that must show the nonce as used, without a receipt of ours, before it counts as displaced.
const NONCE_USED_READS: u32 = 3;

/// How a transaction ended.
pub(super) enum TxOutcome {
    Mined(Box<TransactionReceipt>),
    /// Another transaction used the nonce; none of our attempts was mined.
    Displaced,
}

impl Sender {
    /// Waits until an attempt is mined or another transaction used the nonce. Raises the fees when the transaction is
    /// stuck.
    pub(super) async fn wait_mined(
        &self,
        rpc: &Rpc,
        queue: &Queue,
        signer: &PrivateKeySigner,
        tx: &PendingTx,
    ) -> Result<TxOutcome, PaymentError> {
        let since = Instant::now();
        let mut attempts = tx.attempts.clone();
        let mut nonce_used_reads = 0;
        for round in 0u64.. {
            if let Some(now) = queue.get(tx.nonce).filter(|f| f.request_hash == tx.request_hash) {
                attempts = now.attempts;
            }
            for (hash, _) in attempts.iter().rev() {
                let answer = rpc.request(rpc.provider.get_transaction_receipt(*hash)).await;
                if let Ok(Some(receipt)) = answer {
                    queue.remove(tx.nonce);
                    tracing::info!(account = %tx.account, action = tx.action, tx = %hash, block = receipt.block_number, gas = receipt.gas_used, "mined");
                    return Ok(TxOutcome::Mined(Box::new(receipt)));
                }
            }
            if since.elapsed() >= self.mine_deadline {
                break;
            }
            if round % 3 == 2 {
                let count = rpc.provider.get_transaction_count(signer.address());
                if let Ok(mined) = rpc.request(count).await {
                    nonce_used_reads = if mined > tx.nonce { nonce_used_reads + 1 } else { 0 };
                    if nonce_used_reads >= NONCE_USED_READS {
                        queue.remove(tx.nonce);
                        return Ok(TxOutcome::Displaced);
                    }
                    self.resend_stuck(rpc, queue, signer, mined).await;
                    if mined < tx.nonce && since.elapsed() >= 2 * self.bump_after {
                        self.fill_nonce_gap(rpc, queue, signer, mined).await;
                    }
                }
            }
            tokio::time::sleep(rpc.poll).await;
        }
        let transaction = from_b256(attempts.last().map_or(B256::ZERO, |(hash, _)| *hash));
        tracing::warn!(account = %tx.account, action = tx.action, tx = %transaction, "transaction not mined in time; it may still be mined, and is looked up again before anything else is sent");
        Err(PaymentError::Pending { transaction })
    }

    /// Sends our transaction with that nonce again if it has been pending for long, with higher fees if blocks were
    /// mined without it. Only the ceilings bound how often: a transaction below the price of the chain blocks its key.
    pub(super) async fn resend_stuck(&self, rpc: &Rpc, queue: &Queue, signer: &PrivateKeySigner, nonce: u64) {
        let Some(mut tx) = queue
            .get(nonce)
            .filter(|f| f.sent_at.elapsed() >= self.bump_after)
        else {
            return;
        };
        let Ok((head, fees)) = tokio::try_join!(rpc.head(), estimate_fees(rpc)) else {
            return;
        };
        tx.sent_at = Instant::now();
        if head.number > tx.sent_after {
            tx = self.raised(rpc, queue, signer, tx, fees);
            tx.sent_after = head.number;
        }
        queue.insert(tx.clone());
        match broadcast(rpc, &tx).await {
            Ok(()) => {
                tracing::info!(account = %tx.account, action = tx.action, tx = %tx.newest_hash(), nonce, max_fee = tx.fees.max, "transaction sent again");
            }
            Err(error) => {
                let reason = rpc.classify(&error, None);
                tracing::debug!(account = %tx.account, action = tx.action, nonce, %reason, "endpoint did not accept the transaction again");
            }
        }
    }

    /// The transaction with higher fees, or as it is where a ceiling permits none.
    fn raised(
        &self,
        rpc: &Rpc,
        queue: &Queue,
        signer: &PrivateKeySigner,
        tx: PendingTx,
        fees: Fees,
    ) -> PendingTx {
        let mut next = tx.clone();
        next.fees = self.limits.lowered(tx.fees.raised().at_least(fees));
        let signed = if next.fees == tx.fees {
            self.limits
                .cap(fees)
                .map(drop)
                .map_err(|error| exceeded(signer, error))
        } else {
            sign(&self.limits, rpc, queue, signer, &mut next)
        };
        match signed {
            Ok(()) => next,
            Err(reason) => {
                tracing::warn!(account = %tx.account, action = tx.action, tx = %tx.newest_hash(), nonce = tx.nonce, %reason, "the fees of a stuck transaction cannot be raised; it is mined when the chain becomes cheaper");
                tx
            }
        }
    }

    /// Fills a nonce that the chain waits for and that none of our pending transactions has: that transaction pays
    /// too little, was sent by an earlier process, or is lost. Its sender learns the outcome from the chain.
    pub(super) async fn fill_nonce_gap(
        &self,
        rpc: &Rpc,
        queue: &Queue,
        signer: &PrivateKeySigner,
        nonce: u64,
    ) {
        if queue.get(nonce).is_some() {
            return;
        }
        let Ok((head, fees)) = tokio::try_join!(rpc.head(), estimate_fees(rpc)) else {
            return;
        };
        let mut tx = PendingTx {
            nonce,
            action: "unblock",
            account: Hash::default(),
            request_hash: keccak256(nonce.to_be_bytes()),
            to: signer.address(),
            input: Bytes::new(),
            gas_limit: 21_000,
            pulls: None,
            permit: None,
            fees: self.limits.lowered(fees.raised().raised()),
            attempts: Vec::new(),
            sent_at: Instant::now(),
            sent_after: head.number,
        };
        tracing::warn!(signer = %signer.address(), nonce, "an unknown transaction blocks this key: replacing it with an empty transaction");
        // The fees of the unknown transaction are unknown too. The maximum fee is an upper limit; only the actual
        // price is paid.
        loop {
            tx.attempts.clear();
            if let Err(reason) = sign(&self.limits, rpc, queue, signer, &mut tx) {
                tracing::warn!(signer = %signer.address(), nonce, %reason, "the unknown transaction cannot be replaced");
                return;
            }
            match broadcast(rpc, &tx)
                .await
                .err()
                .and_then(|error| rejection(&error))
            {
                Some(Rejection::Underpriced) => {
                    let doubled = self.limits.lowered(Fees {
                        max: tx.fees.max.saturating_mul(2),
                        tip: tx.fees.tip.saturating_mul(2),
                    });
                    if doubled == tx.fees {
                        tracing::warn!(signer = %signer.address(), nonce, max_fee = tx.fees.max, "the unknown transaction cannot be replaced within limits.feePerGasGwei of the PaymentNetwork");
                        return;
                    }
                    tx.fees = doubled;
                }
                Some(Rejection::NonceUsed) => return,
                Some(Rejection::AlreadyKnown) | None => {
                    queue.insert(tx);
                    return;
                }
            }
        }
    }
}

/// Signs the transaction with its current fees and adds the result to its attempts. Apart from [`deploy`](crate::deploy),
/// nothing else signs transactions, so that none exceeds the ceilings.
pub(super) fn sign(
    limits: &Limits,
    rpc: &Rpc,
    queue: &Queue,
    signer: &PrivateKeySigner,
    tx: &mut PendingTx,
) -> Result<(), PaymentError> {
    queue
        .charge(limits, tx)
        .map_err(|error| exceeded(signer, error))?;
    let mut transaction = TxEip1559 {
        chain_id: rpc.chain_id,
        nonce: tx.nonce,
        gas_limit: tx.gas_limit,
        max_fee_per_gas: tx.fees.max,
        max_priority_fee_per_gas: tx.fees.tip,
        to: TxKind::Call(tx.to),
        input: tx.input.clone(),
        ..TxEip1559::default()
    };
    let signature = signer
        .sign_transaction_sync(&mut transaction)
        .map_err(|e| PaymentError::Malformed(format!("cannot sign the transaction: {e}")))?;
    let signed = transaction.into_signed(signature);
    tx.attempts.push((*signed.hash(), signed.encoded_2718().into()));
    Ok(())
}

pub(super) async fn broadcast(rpc: &Rpc, tx: &PendingTx) -> Result<(), TransportError> {
    match tx.attempts.last() {
        Some((_, bytes)) => rpc.provider.send_raw_transaction(bytes).await.map(drop),
        None => Ok(()),
    }
}

/// Twice the base fee plus the tip, as wallets offer it. The endpoint's numbers are bounded, so that the estimate does
/// not overflow.
pub(super) async fn estimate_fees(rpc: &Rpc) -> Result<Fees, PaymentError> {
    let estimator = Eip1559Estimator::new(|base: u128, rewards: &[Vec<u128>]| {
        let bounded = |wei: u128| wei.min(u128::from(u64::MAX));
        let rewards: Vec<Vec<u128>> = rewards
            .iter()
            .map(|block| block.iter().copied().map(bounded).collect())
            .collect();
        eip1559_default_estimator(bounded(base), &rewards)
    });
    let fees = rpc
        .request(rpc.provider.estimate_eip1559_fees_with(estimator))
        .await?;
    Ok(Fees {
        max: fees.max_fee_per_gas,
        tip: fees.max_priority_fee_per_gas,
    })
}
