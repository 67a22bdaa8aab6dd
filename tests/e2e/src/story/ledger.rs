//! All transactions of the chain, read block by block, with sender and gas.

use std::{collections::BTreeMap, future::IntoFuture as _};

use alloy::{
    consensus::Transaction as _,
    json_abi::JsonAbi,
    network::{Ethereum, TransactionResponse as _},
    primitives::{Selector, U256},
    providers::{Provider as _, RootProvider},
};
use anyhow::Context as _;
use leasehold_planner::escrow::{Address, Hash};

use crate::{install::repository_file, stack::PaymentFixture};

/// A mined transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its hash.
    pub hash: Hash,
    /// Number of its block.
    pub block: u64,
    /// Time of its block, Unix seconds.
    pub time: u64,
    /// Who signed it.
    pub from: Address,
    /// The called function of the escrow; empty if the transaction is not sent to the escrow.
    pub call: String,
    /// Gas it used.
    pub gas: u64,
    /// Whether it did not revert.
    pub succeeded: bool,
}

/// Reads the chain independently of the product.
pub struct Ledger {
    provider: RootProvider<Ethereum>,
    escrow: Address,
    functions: BTreeMap<Selector, String>,
}

impl Ledger {
    /// Opens the stack's chain.
    pub fn open(money: &PaymentFixture) -> anyhow::Result<Self> {
        let text = repository_file("chain/contracts/abi/Escrow.json")?;
        let file: serde_json::Value = serde_json::from_str(&text)?;
        let abi: JsonAbi = serde_json::from_value(file["abi"].clone()).context("read the escrow's ABI")?;
        Ok(Self {
            provider: RootProvider::new_http(money.rpc_url.parse().context("the chain's URL")?),
            escrow: money.escrow,
            functions: abi.functions().map(|f| (f.selector(), f.name.clone())).collect(),
        })
    }

    /// Number of the newest block.
    pub async fn head(&self) -> anyhow::Result<u64> {
        Ok(self.provider.get_block_number().await?)
    }

    /// All transactions of all senders in the blocks after that one.
    pub async fn since(&self, block: u64) -> anyhow::Result<Vec<Transaction>> {
        let mut found = Vec::new();
        for number in block + 1..=self.head().await? {
            let block = self.provider.get_block_by_number(number.into()).full();
            let block = block
                .into_future()
                .await?
                .with_context(|| format!("block {number} is gone"))?;
            for transaction in block.transactions.txns() {
                let hash = transaction.tx_hash();
                let receipt = self
                    .provider
                    .get_transaction_receipt(hash)
                    .await?
                    .with_context(|| format!("transaction {hash} has no receipt"))?;
                let to_escrow = transaction.to().is_some_and(|to| to.0.0 == self.escrow.0);
                let selector = transaction.input().get(..4).map(Selector::from_slice);
                let function = selector.and_then(|s| self.functions.get(&s));
                found.push(Transaction {
                    hash: Hash(hash.0),
                    block: number,
                    time: block.header.timestamp,
                    from: Address(transaction.from().0.0),
                    call: function.filter(|_| to_escrow).cloned().unwrap_or_default(),
                    gas: receipt.gas_used,
                    succeeded: receipt.status(),
                });
            }
        }
        Ok(found)
    }

    /// Removes all native tokens of an address, which only a test chain permits, to test what happens then.
    pub async fn starve_of_gas(&self, of: Address) -> anyhow::Result<()> {
        let nothing = (alloy::primitives::Address::from(of.0), U256::ZERO);
        let call = self
            .provider
            .raw_request::<_, ()>("anvil_setBalance".into(), nothing);
        Ok(call.await?)
    }
}
