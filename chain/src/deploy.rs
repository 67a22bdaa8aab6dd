//! Deploys the contracts and the test token, mints tokens and transfers native tokens: for tests, demos and the first
//! deployment on a network.

use std::time::Duration;

use alloy::{
    network::{EthereumWallet, TransactionBuilder},
    primitives::{TxKind, U256},
    providers::{DynProvider, PendingTransactionBuilder, Provider, ProviderBuilder},
    rpc::{
        client::RpcClient,
        types::{TransactionReceipt, TransactionRequest},
    },
    signers::local::PrivateKeySigner,
    sol_types::SolCall,
    transports::TransportError,
};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::Address,
    ports::{PaymentError, SigningKey},
};

use crate::evm::{Escrow, TestToken, from_evm, payment_error, signer, to_evm, transport::HttpTransport};

/// The first account of every anvil. The key is public; its funds exist on anvil chains only.
pub const ANVIL_KEY: SigningKey = SigningKey([
    0xac, 0x09, 0x74, 0xbe, 0xc3, 0x9a, 0x17, 0xe3, 0x6b, 0xa4, 0xa6, 0xb4, 0xd2, 0x38, 0xff, 0x94, 0x4b,
    0xac, 0xb4, 0x78, 0xcb, 0xed, 0x5e, 0xfc, 0xae, 0x78, 0x4d, 0x7b, 0xf4, 0xf2, 0xff, 0x80,
]);

const CALL_DEADLINE: Duration = Duration::from_secs(10);
const MINE_DEADLINE: Duration = Duration::from_secs(120);

/// The contracts of a new network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// EIP-155 chain id of the endpoint.
    pub chain_id: u64,
    /// Address of the escrow contract.
    pub escrow: Address,
    /// Address of a token with 6 decimals that anyone can mint.
    pub token: Address,
}

/// Deploys the escrow and the test token, and waits until both transactions are mined.
pub async fn deploy(rpc_url: &str, deployer: &SigningKey) -> Result<Deployed, PaymentError> {
    let wallet = Wallet::of(rpc_url, deployer)?;
    let chain_id = wallet
        .provider
        .get_chain_id()
        .await
        .map_err(|e| wallet.classify(&e))?;
    let escrow = wallet.send(creation(&Escrow::BYTECODE)).await?;
    let token = wallet.send(creation(&TestToken::BYTECODE)).await?;
    Ok(Deployed {
        chain_id,
        escrow: contract_of(&wallet.mined(escrow).await?)?,
        token: contract_of(&wallet.mined(token).await?)?,
    })
}

/// Deploys the escrow alone, for a network that has its own token.
pub async fn deploy_escrow(rpc_url: &str, deployer: &SigningKey) -> Result<Address, PaymentError> {
    let wallet = Wallet::of(rpc_url, deployer)?;
    let escrow = wallet.send(creation(&Escrow::BYTECODE)).await?;
    contract_of(&wallet.mined(escrow).await?)
}

/// Mints test tokens for every entry of `to`, in one block if the chain allows it.
pub async fn mint(
    rpc_url: &str,
    key: &SigningKey,
    token: Address,
    to: &[(Address, TokenAmount)],
) -> Result<(), PaymentError> {
    let wallet = Wallet::of(rpc_url, key)?;
    let calls = to.iter().map(|(owner, amount)| {
        let call = TestToken::mintCall {
            to: to_evm(*owner),
            amount: U256::from(amount.0),
        };
        TransactionRequest::default()
            .with_to(to_evm(token))
            .with_input(call.abi_encode())
    });
    wallet.send_all(calls).await
}

/// Transfers `wei` of the native token, for gas, to every address of `to`.
pub async fn send_gas(
    rpc_url: &str,
    key: &SigningKey,
    to: &[Address],
    wei: u128,
) -> Result<(), PaymentError> {
    let wallet = Wallet::of(rpc_url, key)?;
    let transfers = to.iter().map(|owner| {
        TransactionRequest::default()
            .with_to(to_evm(*owner))
            .with_value(U256::from(wei))
    });
    wallet.send_all(transfers).await
}

/// A key and the endpoint that it sends transactions to.
struct Wallet {
    provider: DynProvider,
    signer: PrivateKeySigner,
    secrets: Vec<String>,
}

impl Wallet {
    fn of(rpc_url: &str, key: &SigningKey) -> Result<Self, PaymentError> {
        let transport = HttpTransport::new(rpc_url, CALL_DEADLINE)?;
        let secrets = transport.secrets();
        let signer = signer(key)?;
        let client = RpcClient::new(transport, true).with_poll_interval(Duration::from_millis(50));
        let provider = ProviderBuilder::new()
            .with_simple_nonce_management()
            .wallet(EthereumWallet::from(signer.clone()))
            .connect_client(client)
            .erased();
        Ok(Self {
            provider,
            signer,
            secrets,
        })
    }

    fn classify(&self, error: &TransportError) -> PaymentError {
        payment_error(error, Some(from_evm(self.signer.address())), &self.secrets)
    }

    async fn send(&self, request: TransactionRequest) -> Result<Sent, PaymentError> {
        self.provider
            .send_transaction(request)
            .await
            .map_err(|e| self.classify(&e))
    }

    async fn send_all(&self, requests: impl Iterator<Item = TransactionRequest>) -> Result<(), PaymentError> {
        let mut sent = Vec::new();
        for request in requests {
            sent.push(self.send(request).await?);
        }
        for transaction in sent {
            self.mined(transaction).await?;
        }
        Ok(())
    }

    async fn mined(&self, transaction: Sent) -> Result<TransactionReceipt, PaymentError> {
        let hash = *transaction.tx_hash();
        let receipt = transaction
            .with_timeout(Some(MINE_DEADLINE))
            .get_receipt()
            .await
            .map_err(|e| {
                PaymentError::Unreachable(format!("transaction {hash} was not mined in time: {e}"))
            })?;
        if receipt.status() {
            Ok(receipt)
        } else {
            Err(PaymentError::Reverted {
                error: format!("transaction {hash}"),
            })
        }
    }
}

type Sent = PendingTransactionBuilder<alloy::network::Ethereum>;

fn creation(bytecode: &alloy::primitives::Bytes) -> TransactionRequest {
    let mut request = TransactionRequest::default().with_input(bytecode.clone());
    request.to = Some(TxKind::Create);
    request
}

fn contract_of(receipt: &TransactionReceipt) -> Result<Address, PaymentError> {
    receipt
        .contract_address
        .map(from_evm)
        .ok_or_else(|| PaymentError::Malformed("the receipt of the deployment names no contract".into()))
}
