//! The terms of an escrow account as objects carry them: everything the contract hashes, so that each side can
//! ask the chain for itself.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// The terms of one escrow account (`Terms` in Escrow.sol) and where it lives.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct EscrowTerms {
    /// EIP-155 chain id.
    #[schemars(schema_with = "schema::bounded::<1, 9007199254740991>")]
    pub chain_id: i64,
    /// Address of the escrow contract.
    #[schemars(schema_with = "schema::address")]
    pub contract: String,
    /// Account id: keccak256(abi.encode(payer, salt)).
    #[schemars(schema_with = "schema::hash32")]
    pub id: String,
    /// Who pays and gets the refund.
    #[schemars(schema_with = "schema::address")]
    pub payer: String,
    /// Address that names the market.
    #[schemars(schema_with = "schema::address")]
    pub market: String,
    /// ERC-20 token of the account.
    #[schemars(schema_with = "schema::address")]
    pub token: String,
    /// The market's key that may close the account, only with the refund to the payer.
    #[schemars(schema_with = "schema::address")]
    pub closer: String,
    /// keccak256(market, lease uid, round).
    #[schemars(schema_with = "schema::hash32")]
    pub salt: String,
    /// Unix time in seconds after which anybody may close an account that never started.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub start_by: i64,
    /// Seconds that running legs are still paid when the payer closes.
    #[schemars(schema_with = "schema::bounded::<0, 86400>")]
    pub notice_seconds: i64,
    /// Seconds after exhaustion before anybody may close.
    #[schemars(schema_with = "schema::bounded::<0, 31536000>")]
    pub pause_for: i64,
    /// Who is paid, 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub legs: Vec<EscrowLeg>,
}

/// One payee of an account.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EscrowLeg {
    /// Cold address that is paid.
    #[schemars(schema_with = "schema::address")]
    pub payee: String,
    /// Hot key that starts, pauses, credits and ends the leg.
    #[schemars(schema_with = "schema::address")]
    pub controller: String,
    /// 10⁻¹² base units of the token per second.
    #[schemars(schema_with = "schema::amount")]
    pub rate: String,
}

/// What an operator last read of an account, with both clocks: the chain's and its own.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct EscrowSnapshot {
    /// Total deposited so far, base units.
    #[schemars(schema_with = "schema::amount")]
    pub deposited: String,
    /// Unix time in seconds until which the deposit pays; 0 before the first start.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub paid_until: i64,
    /// Seconds burned since the first start, at `blockTime`.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub paid_seconds: i64,
    /// Whether the account's clock runs.
    pub running: bool,
    /// Whether the account is closed.
    pub closed: bool,
    /// Unix time in seconds of the block this was read at.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub block_time: i64,
    /// The reader's own clock at that read, Unix time in seconds.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub read_at: i64,
}
