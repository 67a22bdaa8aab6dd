//! What a tenant runs: our own bounded type, never a pod template, so that nothing a stranger writes reaches
//! a provider's node unread.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// One of `session`, `service`, `job`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.session), has(self.service), has(self.job)].filter(x, x).size() == 1").message("workload: set exactly one of session, service, job"))]
pub struct Workload {
    /// A box to work in: it stays until the lease ends; its tenant is root inside a user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<Session>>,
    /// A server with exposed ports: it stays until the lease ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<Service>>,
    /// A program that runs to its end; the lease closes when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<Job>>,
}

impl Workload {
    /// The container of whichever workload it is.
    #[must_use]
    pub fn container(&self) -> Option<&Container> {
        self.session
            .as_ref()
            .map(|s| &s.container)
            .or_else(|| self.service.as_ref().map(|s| &s.container))
            .or_else(|| self.job.as_ref().map(|j| &j.container))
    }
}

/// The container of a workload. It gets the whole of `spec.perNode` of each node of the lease.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Image reference, at best with a digest: `ghcr.io/acme/train@sha256:…`.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9./:@_-]*$")
    )]
    pub image: String,
    /// Entry point; the image's own when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "words")]
    pub command: Vec<String>,
    /// Arguments to the entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "words")]
    pub args: Vec<String>,
    /// Environment, at most 64 variables. `NVIDIA_*` is the provider's to set; `LEASEHOLD_*` is set by the operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.name == one.name))").message("env: each name once"))]
    pub env: Vec<EnvVar>,
}

fn words(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 4096, "pattern": "^[^\\x00]*$"}})
}

/// A variable of the container's environment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name, not beginning with `NVIDIA_` or `LEASEHOLD_`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('NVIDIA_') && !self.startsWith('LEASEHOLD_')").message("env name: NVIDIA_* and LEASEHOLD_* are set by the provider; choose another name"))]
    pub name: String,
    /// Value, in the clear: a secret does not belong here.
    #[serde(default)]
    #[schemars(length(max = 4096), regex(pattern = r"^[^\x00]*$"))]
    pub value: String,
}

/// A box to work in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// What runs in it.
    #[serde(flatten)]
    pub container: Container,
    /// Public keys, in the form of `authorized_keys`, that may log in; put at `/etc/leasehold/ssh/authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "ssh_keys")]
    pub ssh_keys: Vec<String>,
    /// Ports opened to the outside, at most 16; each gets an address in `status.endpoints`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.name == one.name))").message("ports: each name once"), validation = Rule::new("self.all(one, self.exists_one(other, other.port == one.port))").message("ports: each port once"))]
    pub ports: Vec<Port>,
}

fn ssh_keys(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 1024,
        "pattern": "^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\\.com|sk-ecdsa-sha2-nistp256@openssh\\.com) [A-Za-z0-9+/=]+( [^\\p{C}]*)?$"}})
}

/// A server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// What runs in it.
    #[serde(flatten)]
    pub container: Container,
    /// Ports opened to the outside, 1 to 16; each gets an address in `status.endpoints`.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.name == one.name))").message("ports: each name once"), validation = Rule::new("self.all(one, self.exists_one(other, other.port == one.port))").message("ports: each port once"))]
    pub ports: Vec<Port>,
    /// When it counts as ready; without it, as soon as it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// A program that runs to its end.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// What runs in it.
    #[serde(flatten)]
    pub container: Container,
    /// What is kept of it after its end, to be fetched; nothing, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<JobOutput>,
}

/// A directory of the lease's volume that outlives the job: its provider serves it at `status.results`, encrypted to
/// `recipients`, until it was fetched or its time is over.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobOutput {
    /// Absolute path of the directory, at or below `storage.mountPath`: `/data/out`.
    #[schemars(
        length(min = 2, max = 256),
        regex(pattern = r"^(/\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*)+$")
    )]
    #[x_kube(validation = Rule::new("!self.contains('..')").message("output.path: an absolute path without \"..\""))]
    pub path: String,
    /// How long after the job's end it is kept, free of charge, unless it was fetched before: `24h`.
    #[serde(default = "default_keep_results_for")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('720h')").message("output.keepResultsFor: from 10s to 720h (30 days)"))]
    pub keep_results_for: String,
    /// Public keys, 1 to 8, any of which decrypts it with `age -d`: `age1…`, or `ssh-ed25519 AAAA…` as in `authorized_keys`.
    #[schemars(schema_with = "recipients")]
    pub recipients: Vec<String>,
}

fn default_keep_results_for() -> String {
    "24h".into()
}

fn recipients(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "minItems": 1, "maxItems": 8, "items": {"type": "string", "maxLength": 512,
        "pattern": "^(age1[ac-hj-np-z02-9]{58}|ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}( [^\\p{C}]*)?)$"}})
}

/// A port of the container that is opened to the outside.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, unique in the workload.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// TCP port the container listens on, 1 to 65535.
    #[schemars(schema_with = "schema::bounded::<1, 65535>")]
    pub port: i64,
}

/// Ready when a TCP connection to `port` opens, or, with `path`, when HTTP GET answers 200 to 399.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// TCP port to ask, 1 to 65535.
    #[schemars(schema_with = "schema::bounded::<1, 65535>")]
    pub port: i64,
    /// HTTP path to ask, such as `/health`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = r"^/[!-~]*$"))]
    pub path: Option<String>,
}

/// The share of one node that a lease takes, on each of its nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeShape {
    /// CPU of one node: `"32"`, `"500m"`.
    #[schemars(schema_with = "schema::cpu")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("perNode.cpu: must be more than zero"))]
    pub cpu: String,
    /// Memory of one node in bytes: `128Gi`.
    #[schemars(schema_with = "schema::bytes")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("perNode.memory: must be more than zero"))]
    pub memory: String,
    /// Scratch disk of one node in bytes, gone with the lease: `200Gi`.
    #[serde(default = "default_scratch")]
    #[schemars(schema_with = "schema::bytes")]
    pub ephemeral_storage: String,
    /// Whole GPUs of one node, 1 to 16.
    #[schemars(schema_with = "schema::bounded::<1, 16>")]
    pub gpus: i64,
}

fn default_scratch() -> String {
    "10Gi".into()
}

/// A volume of the lease, one on each node; it lives as long as the lease.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size in bytes: `100Gi`.
    #[schemars(schema_with = "schema::bytes")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("storage.size: must be more than zero"))]
    pub size: String,
    /// Absolute path the volume is mounted at: `/data`.
    // No empty segment and none of dots alone: `//proc` and `/./proc` are /proc, and `/.` is the root.
    #[schemars(
        length(min = 2, max = 256),
        regex(pattern = r"^(/\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*)+/?$")
    )]
    #[x_kube(validation = Rule::new("!self.contains('..') && !['/proc', '/sys', '/dev', '/etc/leasehold'].exists(taken, self == taken || self.startsWith(taken + '/'))").message("mountPath: an absolute path outside /proc, /sys, /dev and /etc/leasehold, without \"..\""))]
    pub mount_path: String,
}

/// Somebody who may read logs, exec and port-forward in the lease's namespace on the provider's cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// `User` or `Group`, as the provider's cluster authenticates them.
    #[schemars(regex(pattern = r"^(User|Group)$"))]
    pub kind: String,
    /// The user's or group's name; names beginning with `system:` are refused.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^\p{C}]+$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('system:')").message("access.subjects name: names beginning with system: belong to the cluster"))]
    pub name: String,
}

/// Who may reach into the lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// At most 16 users and groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub subjects: Vec<Subject>,
}

/// How a job ended, as its provider saw it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobResult {
    /// Exit code of the first container that failed, or 0.
    #[schemars(schema_with = "schema::bounded::<-1, 255>")]
    pub exit_code: i64,
    /// The last lines of its log, at most 4 KiB.
    #[schemars(length(max = 4200))]
    pub log_tail: String,
    /// SHA-256 of `logTail`, hexadecimal.
    #[schemars(length(max = 64))]
    pub log_digest: String,
    /// When the last container ended, RFC 3339.
    #[schemars(length(max = 40))]
    pub finished_at: String,
}

/// An address at which a port of the lease answers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the port in the workload.
    #[schemars(length(max = 15))]
    pub name: String,
    /// Host or IP address.
    #[schemars(length(max = 253))]
    pub host: String,
    /// TCP port at that host, 1 to 65535.
    #[schemars(schema_with = "schema::bounded::<1, 65535>")]
    pub port: i64,
    /// Which node of the lease answers, from 0.
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub node: i64,
}

/// Where what one node's job left behind is fetched.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResultsAt {
    /// Which node of the lease, from 0.
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub node: i64,
    /// `GET` gives a tar archive, encrypted for `age -d`; with `/` and the receipt that is in it, `DELETE` says that it was
    /// fetched, and it is kept no longer. It answers from the job's end on.
    #[schemars(length(max = 512), regex(pattern = r"^https?://[!-~]+$"))]
    pub url: String,
    /// Until when it is kept, RFC 3339; absent while the job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub until: Option<String>,
}
