//! GpuNode: the GPUs of one node, as reported by NVML and the other witnesses.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{conditions::ConditionType, schema, words::words};

/// The GPUs of one node, as reported by NVML and the other witnesses.
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
    doc = "The GPUs of one node, as reported by NVML and the other witnesses. It has the name of the Node. The administrator of the provider writes the spec, and the agent of the node writes the status.",
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
    /// Whether the node is for sale. `false` prevents new leases.
    #[serde(default = "yes")]
    pub sell: bool,
    /// GPU class that replaces `status.class`, if the agent determines a wrong class. If NVML reports no memory, as on
    /// GB10, the memory in this class is sold: `gb10-128g`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub class_override: Option<String>,
}

const fn yes() -> bool {
    true
}

/// State of a node, as observed by the agent. Values that change often (utilization, power, temperature) are Prometheus
/// metrics of the agent.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// Class of the GPUs of the node, or of their MIG slices if every GPU is in MIG mode; `mixed` if they differ.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub class: String,
    /// Number of GPUs that NVML reports, 0 to 64.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 64>")]
    pub gpu_count: i64,
    /// Version of the driver: `570.86.15`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 80))]
    pub driver_version: String,
    /// Highest CUDA version that the driver supports: `12.8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 9))]
    pub cuda_version: String,
    /// The GPUs in the order of their index, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub devices: Vec<GpuDevice>,
    /// Pods that hold GPUs, as reported by the pod-resources API of the kubelet, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub holders: Vec<GpuHolder>,
    /// Condition types: `Healthy`, `WitnessesAgree`, `NoForeignProcesses`, `UnheldMemoryFree`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// One GPU.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuDevice {
    /// Index of the GPU in NVML, 0 to 63.
    #[schemars(schema_with = "schema::bounded::<0, 63>")]
    pub index: i64,
    /// UUID of the GPU: `GPU-…`.
    #[schemars(length(max = 96))]
    pub uuid: String,
    /// Product name as reported by NVML.
    #[schemars(length(max = 96))]
    pub name: String,
    /// Class derived from name, memory and form factor: `h100-80g-sxm`.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Nominal memory in bytes, as in the name of the class; 0 if NVML reports no memory.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub memory_nominal_bytes: i64,
    /// Usable memory in bytes; 0 if NVML reports no memory.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub memory_usable_bytes: i64,
    /// CUDA compute capability: `9.0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 9))]
    pub compute_capability: String,
    /// PCI bus ID: `00000000:1B:00.0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub pci_bus_id: String,
    /// NUMA node of the GPU. Absent if the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub numa_node: Option<i64>,
    /// UUIDs or PCI bus IDs of the GPUs that are connected by NVLink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "short_texts")]
    pub nvlink_peers: Vec<String>,
    /// Whether MIG mode is enabled. Absent if the GPU does not support MIG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_enabled: Option<bool>,
    /// MIG slices of the GPU, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub slices: Vec<GpuSlice>,
    /// Whether the device plugin advertises the GPU to several containers at once, by time-slicing or MPS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Whether ECC is enabled. Absent if the GPU does not support ECC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_enabled: Option<bool>,
    /// Health of the GPU.
    pub health: DeviceHealth,
    /// Human-readable reason why the GPU is not healthy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
    /// Time since which the health has this value, RFC 3339. For a fault: the last time at which the GPU was known to
    /// be healthy. Seconds after it may not have been served.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 40))]
    pub since: String,
}

/// A MIG slice of a GPU.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuSlice {
    /// UUID of the slice: `MIG-…`.
    #[schemars(length(max = 96))]
    pub uuid: String,
    /// Class of the slice, derived from the class of the GPU and the profile: `a100-80g-pcie-mig-1g-10gb`.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Memory in bytes; 0 if NVML reports no memory.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub memory_bytes: i64,
}

fn short_texts(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 32, "items": {"type": "string", "maxLength": 96}})
}

/// Health of a GPU.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum DeviceHealth {
    /// The GPU can be sold.
    Healthy,
    /// The GPU has not been read yet, or a call hangs.
    #[default]
    Unknown,
    /// The GPU has fallen off the bus or is missing in NVML.
    Lost,
    /// A fatal Xid was reported.
    FatalXid,
    /// Uncorrectable memory errors were reported.
    EccUncorrectable,
    /// Another GPU has the same UUID or PCI bus ID.
    Duplicate,
    /// The witnesses (NVML, PCI) disagree.
    WitnessesDisagree,
    /// The GPU has recovered from a fault and is observed before it is sold again.
    Recovering,
}

/// A pod that holds GPUs.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuHolder {
    /// Namespace of the pod.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// UUIDs of the GPUs that it holds.
    #[schemars(schema_with = "short_texts")]
    pub uuids: Vec<String>,
}

words! {
    /// Types of a GpuNode's conditions.
    pub enum NodeCondition {
        /// The node's GPUs can be sold.
        Healthy,
        /// NVML, the PCI bus and the device plugin agree.
        WitnessesAgree,
        /// Only processes of holders compute on the GPUs.
        NoForeignProcesses,
        /// On GPUs that no pod holds, no more memory is in use than the driver and its services need.
        UnheldMemoryFree,
    }
}

words! {
    /// Reasons of a GpuNode's conditions.
    pub enum NodeReason {
        /// All GPUs are healthy.
        AllHealthy,
        /// The health of a GPU is unknown.
        NotVouchedFor,
        /// A GPU has fallen off the bus.
        GpuLost,
        /// A GPU reported a fatal Xid.
        FatalXid,
        /// A GPU has uncorrectable memory errors.
        EccUncorrectable,
        /// Two GPUs have the same UUID or bus id.
        Duplicate,
        /// The sources disagree about a GPU.
        WitnessesDisagree,
        /// A GPU is observed after a fault.
        Recovering,
        /// NVML reports no GPU.
        NoGpus,
        /// The NVML library cannot be loaded.
        NoLibrary,
        /// A call of NVML failed.
        NvmlFailed,
        /// A call of NVML does not return.
        NvmlHung,
        /// NVML is unavailable.
        NvmlSilent,
        /// The PCI bus cannot be read.
        PciSilent,
        /// The kubelet cannot be read.
        KubeletSilent,
        /// NVML does not report a device that another source reports.
        NotInNvml,
        /// The device plugin does not advertise a GPU.
        GpusNotAdvertised,
        /// All sources agree.
        Agree,
        /// Only processes of holders compute on the GPUs.
        OnlyHolders,
        /// A process of somebody else computes on a GPU.
        ForeignProcess,
        /// The owners of the processes are unknown.
        OwnersUnknown,
        /// The memory of GPUs that no pod holds is free.
        MemoryFree,
        /// More than 1 GiB of a GPU that no pod holds is in use.
        MemoryInUse,
    }
}

impl ConditionType for NodeCondition {
    type Reason = NodeReason;
}
