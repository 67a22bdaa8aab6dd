//! What the contracts of a PaymentNetwork state about themselves.

use leasehold_planner::{payment_network::ChainFacts, ports::PaymentError};

use super::abi::{Escrow, Token};
use crate::evm::{EvmEscrow, Inner, tx::permit::optional};

impl EvmEscrow {
    /// Reads the name of the escrow, and the decimals and the symbol of the token. Refuses an endpoint of another chain.
    ///
    /// # Errors
    /// If the endpoint does not answer. A contract that lacks a function is no error.
    pub async fn facts(&self) -> Result<ChainFacts, PaymentError> {
        let Inner {
            rpc, escrow, token, ..
        } = &*self.0;
        rpc.verify_chain_id().await?;
        let (domain, decimals, symbol) = tokio::try_join!(
            optional(rpc, *escrow, &Escrow::eip712DomainCall {}),
            optional(rpc, *token, &Token::decimalsCall {}),
            optional(rpc, *token, &Token::symbolCall {}),
        )?;
        Ok(ChainFacts {
            escrow_name: domain.map(|domain| domain.name),
            decimals,
            symbol,
        })
    }
}
