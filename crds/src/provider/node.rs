//! GpuNode: what NVML and the other witnesses say of one node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// What NVML and the other witnesses say of one node.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    shortname = "gn",
    status = "GpuNodeStatus",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "What NVML and the other witnesses say of one node. Its name is the node's; the provider's admin writes spec, the node's agent writes status.",
    printcolumn(name = "Class", type_ = "string", json_path = ".status.class"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.gpuCount"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.driverVersion"),
    printcolumn(name = "CUDA", type_ = "string", json_path = ".status.cudaVersion"),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Healthy')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Healthy')].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {
    /// Whether the node may be sold; false keeps new leases away.
    #[serde(default = "yes")]
    pub sell: bool,
    /// GPU class to sell it as, where the agent's own is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub class_override: Option<String>,
}

const fn yes() -> bool {
    true
}

/// What the agent found. Fast facts (use, power, temperature) are its Prometheus metrics.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// Class of the node's GPUs, or `mixed`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub class: String,
    /// GPUs that NVML counts.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 64>")]
    pub gpu_count: i64,
    /// Version of the driver: `570.86.15`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 80))]
    pub driver_version: String,
    /// Highest CUDA version the driver serves: `12.8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 9))]
    pub cuda_version: String,
    /// The GPUs, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub devices: Vec<GpuDevice>,
    /// Who holds GPUs, by the kubelet's pod-resources API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub holders: Vec<GpuHolder>,
    /// `Healthy`, `WitnessesAgree`, `NoForeignProcesses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// One GPU.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuDevice {
    /// NVML index.
    #[schemars(schema_with = "schema::bounded::<0, 63>")]
    pub index: i64,
    /// `GPU-…`.
    #[schemars(length(max = 96))]
    pub uuid: String,
    /// Product name as NVML gives it.
    #[schemars(length(max = 96))]
    pub name: String,
    /// Class slug from name, memory and form factor: `h100-80g-sxm`.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Nominal memory in bytes, as the class is named by.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub memory_nominal_bytes: i64,
    /// Memory that programs can use, in bytes.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub memory_usable_bytes: i64,
    /// CUDA compute capability: `9.0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 9))]
    pub compute_capability: String,
    /// PCI bus id: `00000000:1B:00.0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub pci_bus_id: String,
    /// NUMA node; absent where the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub numa_node: Option<i64>,
    /// UUIDs or bus ids of GPUs it has NVLinks to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "short_texts")]
    pub nvlink_peers: Vec<String>,
    /// Whether MIG mode is on; absent where the GPU has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_enabled: Option<bool>,
    /// Whether ECC is on; absent where the GPU has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_enabled: Option<bool>,
    /// State of its health.
    pub health: DeviceHealth,
    /// Why it is not healthy, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
    /// When it became so, RFC 3339. Of a fault: when it was last seen well; what follows was perhaps not served.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 40))]
    pub since: String,
}

fn short_texts(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 32, "items": {"type": "string", "maxLength": 96}})
}

/// State of a GPU's health.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum DeviceHealth {
    /// Fit to be sold.
    Healthy,
    /// Not read yet, or a call hangs.
    #[default]
    Unknown,
    /// Fallen off the bus, or gone from NVML.
    Lost,
    /// A fatal Xid was reported.
    FatalXid,
    /// Uncorrectable memory errors.
    EccUncorrectable,
    /// The same UUID or bus id as another GPU.
    Duplicate,
    /// The witnesses (NVML, PCI, device plugin) disagree.
    WitnessesDisagree,
    /// Back after a fault; being watched before it is sold again.
    Recovering,
}

/// A container that holds GPUs.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuHolder {
    /// Namespace of the pod.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// UUIDs it holds.
    #[schemars(schema_with = "short_texts")]
    pub uuids: Vec<String>,
}
