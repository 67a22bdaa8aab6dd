//! The workload of a tenant. It is a bounded type instead of a pod template, so that every field that reaches a
//! provider's node is validated.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{quantity, schema};

/// A workload. Exactly one of `session`, `service` and `job` must be set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.session), has(self.service), has(self.job)].filter(x, x).size() == 1").message("workload: set exactly one of session, service, job"), validation = Rule::new("!has(self.session) || !has(self.session.runAsUser)").message("workload.session.runAsUser: a session runs as root; remove runAsUser").field_path(".session.runAsUser"))]
pub struct Workload {
    /// An interactive session that runs until the lease ends. The tenant is root inside a user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<Session>>,
    /// A server with exposed ports that runs until the lease ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<Service>>,
    /// A program that runs to completion. The lease closes when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<Job>>,
}

impl Workload {
    /// Whether the container may run as root: a session, or a container whose user only its image states.
    #[must_use]
    pub fn may_be_root(&self) -> bool {
        self.session.is_some()
            || self
                .container()
                .is_none_or(|container| container.run_as_user.is_none())
    }

    /// The exposed ports of the workload. A job has none.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        let session = self.session.as_ref().map(|s| s.ports.as_slice());
        let service = || self.service.as_ref().map(|s| s.ports.as_slice());
        session.or_else(service).unwrap_or_default()
    }

    /// The container of the workload.
    #[must_use]
    pub fn container(&self) -> Option<&Container> {
        self.session
            .as_ref()
            .map(|s| &s.container)
            .or_else(|| self.service.as_ref().map(|s| &s.container))
            .or_else(|| self.job.as_ref().map(|j| &j.container))
    }

    /// Empties the container, for readers of nothing but the ports and the kind of the workload.
    pub fn clear_container(&mut self) {
        let Self {
            session,
            service,
            job,
        } = self;
        if let Some(session) = session {
            session.container = Container::default();
        }
        if let Some(service) = service {
            service.container = Container::default();
        }
        if let Some(job) = job {
            job.container = Container::default();
        }
    }
}

/// The container of a workload. It gets all resources in `spec.perNode` on each node of the lease.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Image reference, preferably with a digest: `ghcr.io/acme/train@sha256:…`.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9./:@_-]*$")
    )]
    pub image: String,
    /// Entry point. Defaults to the entry point of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "words")]
    pub command: Vec<String>,
    /// Arguments to the entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "words")]
    pub args: Vec<String>,
    /// Environment variables, at most 64. Names with the prefix `NVIDIA_` or `LEASEHOLD_` are reserved for the
    /// provider.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.name == one.name))").message("env: names must be unique"))]
    pub env: Vec<EnvVar>,
    /// User ID that the container runs as, 1 to 2147483647. If absent, the container runs as the user of its image, which
    /// is assumed to be root: the lease is placed only on nodes where containers can run as root, in user namespaces. Not
    /// for sessions, which are root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<1, 2147483647>")]
    pub run_as_user: Option<i64>,
}

impl EnvVar {
    /// Prefixes of names that are reserved for the provider.
    pub const RESERVED_PREFIXES: [&str; 2] = ["NVIDIA_", "LEASEHOLD_"];

    /// Whether the name is reserved for the provider.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        Self::RESERVED_PREFIXES
            .iter()
            .any(|prefix| self.name.starts_with(prefix))
    }
}

fn words(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 4096, "pattern": "^[^\\x00]*$"}})
}

/// A variable of the container's environment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable, without the prefix `NVIDIA_` or `LEASEHOLD_`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('NVIDIA_') && !self.startsWith('LEASEHOLD_')").message("env name: the prefixes NVIDIA_ and LEASEHOLD_ are reserved; choose another name"))]
    pub name: String,
    /// Value of the variable. It is stored in plain text; do not put secrets here.
    #[serde(default)]
    #[schemars(length(max = 4096), regex(pattern = r"^[^\x00]*$"))]
    pub value: String,
}

/// An interactive session.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// The container.
    #[serde(flatten)]
    pub container: Container,
    /// Public SSH keys, at most 16, in the format of `authorized_keys`. They are mounted as
    /// `/etc/leasehold/ssh/authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "ssh_keys")]
    pub ssh_keys: Vec<String>,
    /// Exposed ports, at most 16. `status.endpoints` lists the address of each port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.name == one.name))").message("ports: names must be unique"), validation = Rule::new("self.all(one, self.exists_one(other, other.port == one.port))").message("ports: port numbers must be unique"))]
    pub ports: Vec<Port>,
}

fn ssh_keys(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 1024,
        "pattern": "^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\\.com|sk-ecdsa-sha2-nistp256@openssh\\.com) [A-Za-z0-9+/=]+( [^\\p{C}]*)?$"}})
}

/// A server with exposed ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The container.
    #[serde(flatten)]
    pub container: Container,
    /// Exposed ports, 1 to 16. `status.endpoints` lists the address of each port.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.name == one.name))").message("ports: names must be unique"), validation = Rule::new("self.all(one, self.exists_one(other, other.port == one.port))").message("ports: port numbers must be unique"))]
    pub ports: Vec<Port>,
    /// Readiness check. If absent, the service is ready when its container runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// A program that runs to completion.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// The container.
    #[serde(flatten)]
    pub container: Container,
    /// Results that are kept after the job has ended. If absent, nothing is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<JobOutput>,
}

/// A directory on the volume of the lease that is kept after the job has ended. The provider serves it at
/// `status.results`, encrypted for `recipients`, until it has been fetched or the retention time is over.
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
    /// How long the directory is kept after the job has ended, free of charge, unless it has been fetched before; from
    /// 10s to 720h (30 days): `24h`.
    #[serde(default = "default_keep_results_for")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('720h')").message("output.keepResultsFor: from 10s to 720h (30 days)"))]
    pub keep_results_for: String,
    /// Public keys, 1 to 8. The private key of any of them decrypts the results with `age -d`: `age1…`, or `ssh-ed25519
    /// AAAA…` as in `authorized_keys`.
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

/// An exposed port of the container.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.tls != 'Passthrough' || self.access == 'Public'").message("ports: tls: Passthrough requires access: Public, because the gateway cannot read a token in traffic that it does not decrypt").field_path(".tls"))]
pub struct Port {
    /// Name of the port, unique in the workload.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// TCP port on which the container listens, 1 to 65535.
    #[schemars(schema_with = "schema::bounded::<1, 65535>")]
    pub port: i64,
    /// Who can open the URL of the port. It concerns only ports behind the gateway of the market, which are those with a
    /// `url` in `status.endpoints`. A port with a host is open to everybody.
    #[serde(default)]
    pub access: PortAccess,
    /// Where TLS ends. It concerns only ports behind the gateway of the market.
    #[serde(default)]
    pub tls: PortTls,
}

/// Who can open the URL of a port.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum PortAccess {
    /// Whoever sends the token in the Secret that `spec.access.tokenSecret` names. Without such a Secret, nobody.
    #[default]
    Token,
    /// Everybody.
    Public,
}

/// Where TLS ends.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum PortTls {
    /// At the gateway, with the certificate of the market. The container speaks plain HTTP, and the market can read the
    /// traffic.
    #[default]
    Terminate,
    /// In the container, which needs a certificate of its own. The gateway reads only the name in the TLS handshake (SNI).
    /// Requires `access: Public`.
    Passthrough,
}

/// A readiness check. It succeeds if a TCP connection to `port` can be opened or, with `path`, if an HTTP GET request
/// returns a status from 200 to 399.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// TCP port of the check, 1 to 65535.
    #[schemars(schema_with = "schema::bounded::<1, 65535>")]
    pub port: i64,
    /// HTTP path of the check, such as `/health`. If absent, only a TCP connection is opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = r"^/[!-~]*$"))]
    pub path: Option<String>,
}

/// Resources that a lease gets on each of its nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeShape {
    /// CPU of one node: `32`, `"1.5"`, `500m`.
    #[serde(deserialize_with = "quantity::text")]
    #[schemars(schema_with = "schema::cpu_quantity")]
    #[x_kube(validation = Rule::new("type(self) == string ? self.matches('[1-9]') : self > 0").message("perNode.cpu: must be more than zero"))]
    pub cpu: String,
    /// Memory of one node in bytes: `128Gi`, `1.5Gi`.
    #[serde(deserialize_with = "quantity::text")]
    #[schemars(schema_with = "schema::byte_quantity")]
    #[x_kube(validation = Rule::new("type(self) == string ? self.matches('[1-9]') : self > 0").message("perNode.memory: must be more than zero"))]
    pub memory: String,
    /// Ephemeral disk of one node in bytes, deleted with the lease: `200Gi`.
    #[serde(default = "default_scratch", deserialize_with = "quantity::text")]
    #[schemars(schema_with = "schema::byte_quantity")]
    pub ephemeral_storage: String,
    /// Number of whole GPUs of one node, 1 to 16.
    #[schemars(schema_with = "schema::bounded::<1, 16>")]
    pub gpus: i64,
}

fn default_scratch() -> String {
    "10Gi".into()
}

/// A volume on each node that is kept until the lease ends.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of the volume in bytes: `100Gi`.
    #[serde(deserialize_with = "quantity::text")]
    #[schemars(schema_with = "schema::byte_quantity")]
    #[x_kube(validation = Rule::new("type(self) == string ? self.matches('[1-9]') : self > 0").message("storage.size: must be more than zero"))]
    pub size: String,
    /// Absolute path at which the volume is mounted: `/data`.
    // No empty segment and none of dots alone: `//proc` and `/./proc` are /proc, and `/.` is the root.
    #[schemars(
        length(min = 2, max = 256),
        regex(pattern = r"^(/\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*)+/?$")
    )]
    #[x_kube(validation = Rule::new("!self.contains('..') && !['/proc', '/sys', '/dev', '/etc/leasehold'].exists(taken, self == taken || self.startsWith(taken + '/'))").message("mountPath: an absolute path outside /proc, /sys, /dev and /etc/leasehold, without \"..\""))]
    pub mount_path: String,
}

/// A user or group that can use logs, exec and port-forward in the namespace of the lease in the provider cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// `User` or `Group`, as authenticated by the provider cluster.
    #[schemars(regex(pattern = r"^(User|Group)$"))]
    pub kind: String,
    /// Name of the user or group. Names with the prefix `system:` are rejected.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^\p{C}]+$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('system:')").message("access.subjects name: names with the prefix system: are reserved for the cluster"))]
    pub name: String,
}

/// Access to the pods of a lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Users and groups with access, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub subjects: Vec<Subject>,
    /// The token for ports with `access: Token`. It can be changed while the lease runs. If absent, nobody has access to these
    /// ports through the gateway of the market.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<TokenSecret>,
}

/// A token in a Secret in the namespace of the lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenSecret {
    /// Name of the Secret. A RoleBinding in this namespace must permit the market operator to read this Secret.
    #[schemars(schema_with = "schema::subdomain")]
    pub name: String,
    /// Key of the entry that contains the token: 20 to 256 visible ASCII characters without quotation marks, commas,
    /// semicolons and backslashes. Defaults to `token`.
    #[serde(default = "default_token_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn default_token_key() -> String {
    "token".into()
}

/// Result of a job, as reported by its provider.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobResult {
    /// Exit code of the first container that failed, from 1 to 255; 0 if none failed; -1 if it is unknown.
    #[schemars(schema_with = "schema::bounded::<-1, 255>")]
    pub exit_code: i64,
    /// End of the log, at most 4 KiB.
    #[schemars(length(max = 4200))]
    pub log_tail: String,
    /// SHA-256 digest of `logTail` in hexadecimal.
    #[schemars(length(max = 64))]
    pub log_digest: String,
    /// Time at which the last container ended, RFC 3339.
    #[schemars(length(max = 40))]
    pub finished_at: String,
}

/// The address of an exposed port of the lease: `host` and `port`, or `url`. The provider reports a port that is reached
/// through the gateway of the market with none of them; the market adds the URL.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the port in the workload.
    #[schemars(length(max = 15))]
    pub name: String,
    /// Host name or IP address. Absent if the port is reached through the gateway of the market.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// TCP port of the host, 1 to 65535. Present if `host` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<1, 65535>")]
    pub port: Option<i64>,
    /// URL of the port at the gateway of the market: `https://http-train-…`. It stays the same while the lease exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https://[!-~]+$"))]
    pub url: Option<String>,
    /// Number of the node within the lease, from 0.
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub node: i64,
}

/// The address from which the results of a job on one node can be fetched.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResultsAt {
    /// Number of the node within the lease, from 0.
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub node: i64,
    /// `GET` returns a tar archive that is encrypted with age. `DELETE` of the URL followed by `/` and the receipt from
    /// the archive confirms that the results have been fetched; they are then deleted. Available after the job has
    /// ended. A provider whose results are reached through the gateway of the market reports only the path of the URL.
    #[schemars(length(max = 512), regex(pattern = r"^(https?://|/)[!-~]+$"))]
    pub url: String,
    /// Time until which the results are kept, RFC 3339. Absent while the job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub until: Option<String>,
}
