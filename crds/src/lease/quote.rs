//! The offers that match a lease, and why others do not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// The ten best offers, the ten nearest misses, and the number of failures per dimension.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Quote {
    /// Number of offer rows that were considered.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub considered: i64,
    /// The ten best matching offer rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub offers: Vec<QuotedOffer>,
    /// The ten offer rows that failed in the fewest dimensions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub misses: Vec<Miss>,
    /// Number of failed offer rows per dimension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub counts: Vec<DimensionCount>,
}

/// An offer row that matches.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotedOffer {
    /// Name of the GpuProvider.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// Pool of the offer row.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// GPU class.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Number of free matching nodes at the time of the quote.
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub nodes_free: i64,
    /// Price of one GPU-hour in whole tokens of the network.
    #[schemars(length(max = 60))]
    pub price_per_gpu_hour: String,
}

/// An offer row that does not match, with every dimension that failed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// Name of the GpuProvider.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// Pool of the offer row.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// Dimensions that failed, at most 32.
    #[schemars(length(max = 32))]
    pub failed: Vec<FailedDimension>,
}

/// A dimension in which an offer row does not meet the request.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedDimension {
    /// Name of the dimension: `cpu`, `gpuMemory`, `price`, …
    #[schemars(length(max = 40))]
    pub dimension: String,
    /// Value that the lease requests.
    #[schemars(length(max = 256))]
    pub wanted: String,
    /// Value of the offer row.
    #[schemars(length(max = 256))]
    pub found: String,
}

/// Number of offer rows that failed in one dimension.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DimensionCount {
    /// Name of the dimension.
    #[schemars(length(max = 40))]
    pub dimension: String,
    /// Number of offer rows that failed in it.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub rows: i64,
}
