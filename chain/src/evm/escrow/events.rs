//! Finds accounts by their `Opened` events: one account by its id, or all accounts of a market after a cursor.

use alloy::{
    eips::BlockNumberOrTag,
    primitives::{Address as EvmAddress, B256},
    providers::Provider,
    rpc::types::{Filter, Log},
    sol_types::SolEvent,
};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{Address, Hash},
    ports::{Cursor, Head, Opened, PaymentError},
};

use super::{
    abi::{Escrow, to_b256, to_evm},
    reads::at,
};
use crate::evm::rpc::{Rpc, no_contract};

/// Blocks per query. Public endpoints allow no more.
const WINDOW_BLOCKS: u64 = 2_000;
/// Windows per call of `opened_since`. A reader that is further behind calls again.
const WINDOWS_PER_CALL: u64 = 16;
/// Number of accounts after which `opened_since` reads no further window.
const ACCOUNTS_PER_CALL: usize = 1_000;
/// Windows that `find` searches backwards where an endpoint refuses to search the whole chain in one query.
const WINDOWS_BACK: u64 = 500;
/// How far a reader goes back when the block of its cursor was reorganised, unless the newest finalized block is
/// earlier.
const REWIND_BLOCKS: u64 = 64;

/// Finds the account with that id. Also returns the newest block, in which it is there or not.
pub(crate) async fn find(
    rpc: &Rpc,
    escrow: EvmAddress,
    id: Hash,
) -> Result<(Head, Option<Opened>), PaymentError> {
    let head = rpc.head().await?;
    let raw = Escrow::rawCall {
        ids: vec![to_b256(id)],
    };
    let rows = rpc.view_of(escrow, &raw, at(head)).await?;
    if rows.first().is_none_or(|row| row.termsHash == B256::ZERO) {
        return Ok((head, None));
    }
    let filter = opened(escrow).topic1(to_b256(id));
    let whole = rpc
        .provider
        .get_logs(&filter.clone().select(0..=head.number))
        .await;
    let logs = match whole {
        Ok(logs) => logs,
        Err(error) if error.is_error_resp() => walk_back(rpc, &filter, head).await?,
        Err(error) => return Err(rpc.classify(&error, None)),
    };
    let found = logs.first().map(account).transpose()?;
    match found {
        Some(account) if account.terms.id() == id => Ok((head, Some(account))),
        Some(_) => Err(PaymentError::Malformed(format!(
            "the Opened event of account {id} contains different terms"
        ))),
        None => Err(PaymentError::Malformed(format!(
            "account {id} exists, but the RPC endpoint does not return its Opened event: use an endpoint that keeps all logs"
        ))),
    }
}

async fn walk_back(rpc: &Rpc, filter: &Filter, head: Head) -> Result<Vec<Log>, PaymentError> {
    let mut to = head.number;
    for _ in 0..WINDOWS_BACK {
        let from = (to + 1).saturating_sub(WINDOW_BLOCKS);
        let logs = rpc
            .request(rpc.provider.get_logs(&filter.clone().select(from..=to)))
            .await?;
        if !logs.is_empty() || from == 0 {
            return Ok(logs);
        }
        to = from - 1;
    }
    Ok(Vec::new())
}

/// Returns the accounts of a market after the cursor, and the next cursor.
pub(crate) async fn opened_since(
    rpc: &Rpc,
    escrow: EvmAddress,
    market: Address,
    cursor: Option<Cursor>,
) -> Result<(Vec<Opened>, Cursor), PaymentError> {
    let head = rpc.head().await?;
    let mut from = match cursor {
        None => first_block(rpc, escrow, head).await?,
        Some(cursor) => resume(rpc, cursor, head).await?,
    };
    let filter = opened(escrow).topic3(to_evm(market).into_word());
    let mut accounts = Vec::new();
    let mut next = Cursor {
        number: head.number,
        hash: head.hash,
    };
    for _ in 0..WINDOWS_PER_CALL {
        if from > head.number {
            break;
        }
        // Read the hash of the block before its events: if the block is replaced in between, the next call detects
        // it.
        next = cursor_at(rpc, head, (from + WINDOW_BLOCKS - 1).min(head.number)).await?;
        let window = filter.clone().select(from..=next.number);
        let logs = rpc.request(rpc.provider.get_logs(&window)).await?;
        for log in &logs {
            accounts.push(account(log)?);
        }
        from = next.number + 1;
        if accounts.len() >= ACCOUNTS_PER_CALL {
            break;
        }
    }
    Ok((accounts, next))
}

/// Returns the block to continue from. If the cursor's block is gone or is beyond the head, the chain was
/// reorganised.
async fn resume(rpc: &Rpc, cursor: Cursor, head: Head) -> Result<u64, PaymentError> {
    let now = rpc.block(BlockNumberOrTag::Number(cursor.number)).await?;
    if now.is_some_and(|block| block.hash == cursor.hash) {
        return Ok(cursor.number + 1);
    }
    let mut from = cursor.number.min(head.number).saturating_sub(REWIND_BLOCKS);
    if let Ok(Some(last)) = rpc.block(BlockNumberOrTag::Finalized).await {
        from = from.min(last.number);
    }
    tracing::info!(
        block = cursor.number,
        from,
        "chain reorganised: reading events again"
    );
    Ok(from)
}

async fn cursor_at(rpc: &Rpc, head: Head, number: u64) -> Result<Cursor, PaymentError> {
    let block = if number == head.number {
        Some(head)
    } else {
        rpc.block(BlockNumberOrTag::Number(number)).await?
    };
    let block = block.ok_or_else(|| {
        PaymentError::Unreachable(format!("block {number} is gone: the chain was reorganised"))
    })?;
    Ok(Cursor {
        number,
        hash: block.hash,
    })
}

/// Returns the block in which the contract was deployed, or 0 if the endpoint keeps no old state.
async fn first_block(rpc: &Rpc, escrow: EvmAddress, head: Head) -> Result<u64, PaymentError> {
    let code = rpc.provider.get_code_at(escrow);
    if rpc.request(code).await?.is_empty() {
        return Err(no_contract(escrow, rpc.chain_id));
    }
    let (mut without, mut with) = (0, head.number);
    while without < with {
        let middle = without + (with - without) / 2;
        match rpc.provider.get_code_at(escrow).number(middle).await {
            Ok(code) if code.is_empty() => without = middle + 1,
            Ok(_) => with = middle,
            Err(error) if error.is_error_resp() => return Ok(0),
            Err(error) => return Err(rpc.classify(&error, None)),
        }
    }
    Ok(with)
}

fn opened(escrow: EvmAddress) -> Filter {
    Filter::new()
        .address(escrow)
        .event_signature(Escrow::Opened::SIGNATURE_HASH)
}

fn account(log: &Log) -> Result<Opened, PaymentError> {
    let event = Escrow::Opened::decode_log_data(log.data())
        .map_err(|e| PaymentError::Malformed(format!("cannot decode an Opened event: {e}")))?;
    Ok(Opened {
        terms: (&event.terms).into(),
        deposit: TokenAmount(event.deposit),
        block_number: log.block_number.ok_or_else(|| {
            PaymentError::Malformed("the endpoint returned an event without a block number".into())
        })?,
    })
}
