//! GpuProvider: the identity of a provider in a market.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{conditions::ConditionType, schema, words::words};

/// The identity of a provider in this market.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev", version = "v1alpha1", kind = "GpuProvider", shortname = "gp",
    status = "GpuProviderStatus", category = "leasehold", derive = "PartialEq", derive = "Default",
    doc = "The identity of a provider in this market, created by the administrator of the market. The offer and the allocations of the provider are in the namespace provider-<name>.",
    validation = Rule::new("size(self.metadata.name) <= 54 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: at most 54 lower-case letters, digits and hyphens, because provider-<name> is a namespace"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuProviderSpec {
    /// Address that receives the payments, preferably of a cold wallet.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("payee: must not be the zero address"))]
    pub payee: String,
    /// Address of the hot key of the provider operator, which signs acceptances and starts, pauses, credits and ends
    /// legs.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("controller: must not be the zero address"))]
    pub controller: String,
    /// Region by which tenants select providers: `eu-west`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(schema_with = "schema::region")]
    pub region: String,
}

/// State of a provider, as observed by the market operator.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuProviderStatus {
    /// Generation of the spec that this status refers to.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Number of leases that other providers started and this one had accepted and not started, less those that it has started
    /// since. From the third on, its offers are not considered for a while, which doubles with each further one.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "schema::bounded::<0, 4294967295>")]
    pub missed_starts: i64,
    /// Time at which the last of these was counted, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub last_missed_at: Option<String>,
    /// Condition type `Ready`: whether the offers of the provider are considered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

words! {
    /// Types of a GpuProvider's conditions.
    pub enum ProviderCondition {
        /// The provider's offers are considered.
        Ready,
    }
}

words! {
    /// Reasons of a GpuProvider's conditions.
    pub enum ProviderReason {
        /// It reports and offers GPUs.
        Offering,
        /// It reports and offers nothing now.
        NothingOffered,
        /// It did not answer its last allocations in time.
        NotAnswering,
        /// Leases that it accepted were started by other providers only.
        NotStarting,
        /// It has not reported for a minute.
        Silent,
    }
}

impl ConditionType for ProviderCondition {
    type Reason = ProviderReason;
}
