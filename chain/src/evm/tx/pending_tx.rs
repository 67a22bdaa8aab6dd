//! What happens to a transaction after it was sent: it is mined, displaced, or stuck. What is stuck bids more; what
//! blocks a key and is none of ours gets nothing in its place.

use alloy::{
    consensus::{SignableTransaction, TxEip1559},
    eips::eip2718::Encodable2718,
    network::TxSignerSync,
    primitives::{B256, Bytes, TxKind, keccak256},
    providers::Provider,
    rpc::types::TransactionReceipt,
    signers::local::PrivateKeySigner,
    transports::TransportError,
};
use leasehold_planner::{escrow::Hash, ports::PaymentError};
use tokio::time::Instant;

use super::{
    queue::{Fees, PendingTx, Queue},
    send::Sender,
};
use crate::evm::{
    escrow::from_b256,
    rpc::{
        Rpc,
        error::{Rejection, rejection},
    },
};

/// Forms of one transaction, each bidding more than the one before.
const ATTEMPTS_MAX: usize = 6;
/// Sightings of a nonce that was used, without a receipt of ours, until it counts as another's.
const NONCE_USED_READS: u32 = 3;

/// How a flight ended.
pub(super) enum TxOutcome {
    Mined(Box<TransactionReceipt>),
    /// Another transaction has its nonce: nothing of ours was mined.
    Displaced,
}

impl Sender {
    /// Waits until a form of the flight is mined or its nonce went to another; bids more when it is stuck.
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
        tracing::warn!(account = %tx.account, action = tx.action, tx = %transaction, "not mined in time");
        Err(PaymentError::Pending { transaction })
    }

    /// Sends our transaction with the nonce that the chain waits for once more, when it has waited for long; with a
    /// higher bid, if blocks went by without it.
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
        if head.number > tx.sent_after && tx.attempts.len() < ATTEMPTS_MAX {
            tx.fees = tx.fees.raised().at_least(fees);
            if sign(rpc, signer, &mut tx).is_err() {
                return;
            }
            tx.sent_after = head.number;
        }
        queue.insert(tx.clone());
        match broadcast(rpc, &tx).await {
            Ok(()) => {
                tracing::info!(account = %tx.account, action = tx.action, tx = %tx.newest_hash(), nonce, max_fee = tx.fees.max, "sent again");
            }
            Err(error) => {
                let reason = rpc.classify(&error, None);
                tracing::debug!(account = %tx.account, action = tx.action, nonce, %reason, "not taken again");
            }
        }
    }

    /// Fills a nonce that the chain waits for and that is none of ours: a transaction that bids too little, of a
    /// process before this one, or one that is lost. Whoever sent it finds out by asking the chain.
    pub(super) async fn fill_nonce_gap(&self, rpc: &Rpc, queue: &Queue, signer: &PrivateKeySigner, nonce: u64) {
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
            pulls: 0,
            permit: None,
            fees: fees.raised().raised(),
            attempts: Vec::new(),
            sent_at: Instant::now(),
            sent_after: head.number,
        };
        tracing::warn!(signer = %signer.address(), nonce, "an unknown transaction blocks this key: sending nothing in its place");
        // What it bids is unknown too. The ceiling is on a bid, of which a block takes only what it costs.
        for _ in 0..ATTEMPTS_MAX {
            tx.attempts.clear();
            if sign(rpc, signer, &mut tx).is_err() {
                return;
            }
            match broadcast(rpc, &tx)
                .await
                .err()
                .and_then(|error| rejection(&error))
            {
                Some(Rejection::Underpriced) => {
                    tx.fees = Fees {
                        max: tx.fees.max.saturating_mul(2),
                        tip: tx.fees.tip.saturating_mul(2),
                    };
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

/// Signs the flight as it now is and adds that to its forms.
pub(super) fn sign(rpc: &Rpc, signer: &PrivateKeySigner, tx: &mut PendingTx) -> Result<(), PaymentError> {
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
        .map_err(|e| PaymentError::Malformed(format!("signing a transaction: {e}")))?;
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

pub(super) async fn estimate_fees(rpc: &Rpc) -> Result<Fees, PaymentError> {
    let fees = rpc.request(rpc.provider.estimate_eip1559_fees()).await?;
    Ok(Fees {
        max: fees.max_fee_per_gas,
        tip: fees.max_priority_fee_per_gas,
    })
}
