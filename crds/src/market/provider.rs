//! GpuProvider: who a provider is on a market.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// Who a provider is on this market.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev", version = "v1alpha1", kind = "GpuProvider", shortname = "gp",
    status = "GpuProviderStatus", category = "leasehold", derive = "PartialEq", derive = "Default",
    doc = "Who a provider is on this market. Its name is made by the market's owner; its offers and allocations live in the namespace provider-<name>.",
    validation = Rule::new("size(self.metadata.name) <= 54 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: at most 54 lower-case letters, digits and hyphens, because provider-<name> is a namespace"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuProviderSpec {
    /// Cold address that is paid.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("payee: the zero address is nobody's"))]
    pub payee: String,
    /// Hot key of the provider's operator: it signs acceptances and starts, pauses and credits legs.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("controller: the zero address is nobody's"))]
    pub controller: String,
    /// Region, as tenants select it: `eu-west`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(schema_with = "schema::region")]
    pub region: String,
}

/// What the market says of a provider.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuProviderStatus {
    /// Generation of the spec that this status answers.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// `Ready`: whether the provider was heard of lately and its offers are considered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
