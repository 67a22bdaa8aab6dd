//! The terms of an escrow account in objects. They contain everything that the contract hashes, so that each side can
//! read the account from the chain itself.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// The terms of an escrow account (`Terms` in EscrowTypes.sol), with its chain and contract.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct EscrowTerms {
    /// EIP-155 chain ID.
    #[schemars(schema_with = "schema::bounded::<1, 9007199254740991>")]
    pub chain_id: i64,
    /// Address of the escrow contract.
    #[schemars(schema_with = "schema::address")]
    pub contract: String,
    /// ID of the account: keccak256(abi.encode(payer, salt)).
    #[schemars(schema_with = "schema::hash32")]
    pub id: String,
    /// Address that pays the deposit and receives the refund.
    #[schemars(schema_with = "schema::address")]
    pub payer: String,
    /// Address that identifies the market.
    #[schemars(schema_with = "schema::address")]
    pub market: String,
    /// Address of the ERC-20 token of the account.
    #[schemars(schema_with = "schema::address")]
    pub token: String,
    /// Address of the key of the market operator that can close the account. The refund is sent to the payer.
    #[schemars(schema_with = "schema::address")]
    pub closer: String,
    /// Salt of the account: the first half of keccak256(market, UID of the lease, round), and 16 bytes by which the market
    /// recognizes it.
    #[schemars(schema_with = "schema::hash32")]
    pub salt: String,
    /// Unix time in seconds after which anyone can close an account that has not started.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub start_by: i64,
    /// Seconds for which running legs are paid when the payer closes the account, at most 86400.
    #[schemars(schema_with = "schema::bounded::<0, 86400>")]
    pub notice_seconds: i64,
    /// Seconds after exhaustion until anyone can close the account, at most 31536000 (365 days).
    #[schemars(schema_with = "schema::bounded::<0, 31536000>")]
    pub pause_for: i64,
    /// Legs of the account, 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub legs: Vec<EscrowLeg>,
}

/// One leg of an account.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EscrowLeg {
    /// Address that receives the payments, preferably of a cold wallet.
    #[schemars(schema_with = "schema::address")]
    pub payee: String,
    /// Address of the hot key that starts, pauses, credits and ends the leg.
    #[schemars(schema_with = "schema::address")]
    pub controller: String,
    /// Rate in 10⁻¹² base units of the token per second.
    #[schemars(schema_with = "schema::amount")]
    pub rate: String,
}

/// The account as last read by an operator, with the clock of the chain and the operator's own clock.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct EscrowSnapshot {
    /// Total deposit in base units.
    #[schemars(schema_with = "schema::amount")]
    pub deposited: String,
    /// Unix time in seconds until which the deposit pays, by the clock of the chain. 0 before the first start.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub paid_until: i64,
    /// Seconds burned from the first start until `blockTime`.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub paid_seconds: i64,
    /// Whether at least one leg runs.
    pub running: bool,
    /// Whether the account is closed.
    pub closed: bool,
    /// Unix time in seconds of the block at which the account was read.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub block_time: i64,
    /// Unix time in seconds of the operator's own clock at that read.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub read_at: i64,
}
