//! A running cluster, from its start to its end.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node as NodeObject, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::cgroup::Cgroups;
use crate::control_plane::Site;
use crate::lifeline::Lifeline;
use crate::node::Node;
use crate::process::{self, Process};
use crate::spec::{ClusterSpec, KwokNode};
use crate::start::{self, Parts};
use crate::state::State;
use crate::{Progress, Unavailable, kwok};
use leasehold_testtools::Tools;

/// How long tokens from [`Cluster::token_for`] are good for.
const TOKEN_SECONDS: i64 = 24 * 60 * 60;

/// A Kubernetes cluster of this process. Dropped, it is taken down; so it is when the process is killed.
pub struct Cluster {
    tools: Tools,
    cgroups: Cgroups,
    parts: Parts,
    lifeline: Lifeline,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("state", &self.lifeline.state)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Brings a cluster up and waits until pods can be made on it.
    ///
    /// # Errors
    /// [`Unavailable`] when this process may not make namespaces; else what failed, with the last lines of
    /// the component's log.
    pub async fn up(spec: ClusterSpec, progress: &dyn Progress) -> Result<Self> {
        Unavailable::check()?;
        // Fails if a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let tools = Tools::ensure(progress)?;
        progress.step(&format!("cluster {}: networks and namespaces", spec.name));
        let (lifeline, cgroups) = start::ground(&spec).await?;
        let parts = match start::start(&spec, &tools, &cgroups, &lifeline, progress).await {
            Ok(parts) => parts,
            Err(error) => return Err(start::give_up(error, lifeline).await),
        };
        let mut cluster = Self {
            tools,
            cgroups,
            parts,
            lifeline,
        };
        cluster.lifeline.state.rpc_url = cluster.parts.rpc_url.clone();
        cluster.lifeline.state.ready = true;
        cluster.lifeline.state.write()?;
        progress.step(&format!("cluster {}: ready", spec.name));
        Ok(cluster)
    }

    /// Takes the cluster down. Nothing of it is left.
    ///
    /// # Errors
    /// When something can't be removed; the next `up` on this machine tries again.
    pub async fn down(self) -> Result<()> {
        tokio::task::spawn_blocking(move || self.lifeline.end()).await?
    }

    /// Lets the cluster outlive this process; `cargo xtask cluster down` ends it.
    ///
    /// # Errors
    /// When that can't be recorded; the cluster is taken down then.
    pub fn detach(self) -> Result<State> {
        self.lifeline.detach()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.lifeline.state.name
    }

    /// The run directory: gone when the cluster is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.lifeline.state.directory
    }

    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// An administrator's kubeconfig. It works on the host and in every cluster's pods.
    #[must_use]
    pub fn kubeconfig_path(&self) -> &Path {
        &self.parts.kubeconfig
    }

    /// A client with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.parts.admin.clone()
    }

    /// The API server's address, on this machine and from other clusters' pods.
    #[must_use]
    pub fn api_url(&self) -> String {
        self.site().api_url()
    }

    /// The certificate of the authority behind [`api_url`](Self::api_url), as PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.parts.authority.certificate
    }

    /// The address of the control plane's namespace, where the chain is too.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.lifeline.state.network.control_plane()
    }

    /// The chain's JSON-RPC, reachable from the host and from every cluster's pods.
    #[must_use]
    pub fn rpc_url(&self) -> Option<&str> {
        self.lifeline.state.rpc_url.as_deref()
    }

    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.parts.nodes
    }

    /// The real node of that name.
    ///
    /// # Panics
    /// When the cluster has none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.parts
            .nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("cluster {} has no real node {name}", self.name()))
    }

    /// A token of a ServiceAccount, good for a day.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn token_for(&self, namespace: &str, service_account: &str) -> Result<String> {
        self.token(namespace, service_account, None).await
    }

    /// A token as a pod of that ServiceAccount on that node gets it: it names the node.
    ///
    /// # Errors
    /// When the API server refuses or the node doesn't exist.
    pub async fn token_on_node(&self, namespace: &str, service_account: &str, node: &str) -> Result<String> {
        let object = Api::<NodeObject>::all(self.client()).get(node).await?;
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: object.metadata.uid,
        };
        self.token(namespace, service_account, Some(bound)).await
    }

    async fn token(
        &self,
        namespace: &str,
        service_account: &str,
        bound_object_ref: Option<BoundObjectReference>,
    ) -> Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec!["https://kubernetes.default.svc.cluster.local".to_owned()],
                bound_object_ref,
                expiration_seconds: Some(TOKEN_SECONDS),
            },
            ..TokenRequest::default()
        };
        let answer = Api::<ServiceAccount>::namespaced(self.client(), namespace)
            .create_token_request(service_account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("ask for a token of {namespace}/{service_account}"))?;
        answer
            .status
            .map(|status| status.token)
            .context("the API server answered without a token")
    }

    /// A kubeconfig with that token, as text: for a Secret of another cluster, or a file.
    ///
    /// # Errors
    /// Never in practice.
    pub fn kubeconfig_with_token(&self, token: &str) -> Result<String> {
        self.parts.authority.kubeconfig_of_token(&self.api_url(), token)
    }

    /// A client that is who the token says.
    ///
    /// # Errors
    /// When the client can't be built.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        start::client(&self.kubeconfig_with_token(token)?).await
    }

    /// Reads the images of an OCI archive into every real node.
    ///
    /// # Errors
    /// When a node's containerd refuses it.
    pub async fn load_image(&self, archive: &Path) -> Result<()> {
        try_join_all(self.parts.nodes.iter().map(|node| node.load_image(archive)))
            .await
            .map(drop)
    }

    /// Makes more KWOK nodes in a cluster that was brought up with some.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn add_kwok_nodes(&mut self, nodes: &[KwokNode]) -> Result<()> {
        if self.parts.control_plane.kwok.is_none() {
            self.parts.control_plane.kwok = Some(kwok::start(&self.site()).await?);
        }
        kwok::create(&self.parts.admin, nodes).await
    }

    /// Starts a program of the caller's as one more component: in the control plane's network namespace, where its
    /// loopback ports are nobody else's, and among the cluster's processes, so that it ends with the cluster in
    /// whichever way that ends. It has started when the file is there, or at once without one.
    ///
    /// # Errors
    /// When it can't be started, or ends before the file is there.
    pub async fn start(
        &self,
        name: &str,
        program: &Path,
        arguments: Vec<String>,
        started: Option<PathBuf>,
    ) -> Result<Process> {
        let probe = started.map_or_else(process::at_once, process::exists);
        let launch = self.site().launch(name, program, arguments, probe)?;
        self.lifeline.roster.start(launch).await
    }

    /// `kubectl` as administrator.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        self.with_kubeconfig(&self.tools.kubectl)
    }

    /// `helm` as administrator.
    #[must_use]
    pub fn helm(&self) -> Command {
        self.with_kubeconfig(&self.tools.helm)
    }

    fn with_kubeconfig(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Helm and kubectl keep caches: not in the home of whoever runs a test.
        command
            .env("KUBECONFIG", &self.parts.kubeconfig)
            .env("HOME", self.directory());
        for variable in [
            "KUBECACHEDIR",
            "HELM_CACHE_HOME",
            "HELM_CONFIG_HOME",
            "HELM_DATA_HOME",
            "HELM_NAMESPACE",
        ] {
            command.env_remove(variable);
        }
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env_remove(variable);
        }
        command
    }

    /// The API server. Give [`Process::kill`] or [`Process::stop`] before [`Process::start`].
    #[must_use]
    pub fn apiserver(&self) -> &Process {
        &self.parts.control_plane.api_server
    }

    #[must_use]
    pub fn controller_manager(&self) -> &Process {
        &self.parts.control_plane.controller_manager
    }

    #[must_use]
    pub fn scheduler(&self) -> &Process {
        &self.parts.control_plane.scheduler
    }

    #[must_use]
    pub fn etcd(&self) -> &Process {
        &self.parts.control_plane.etcd
    }

    /// CoreDNS.
    #[must_use]
    pub fn dns(&self) -> &Process {
        &self.parts.control_plane.dns
    }

    /// The cluster's own chain, if it has one.
    #[must_use]
    pub fn anvil(&self) -> Option<&Process> {
        self.parts.control_plane.anvil.as_ref()
    }

    /// Cuts the whole cluster off from the host and from other clusters; inside, everything goes on. The
    /// administrator's client doesn't reach it then either.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn isolate(&self) -> Result<()> {
        self.lifeline.state.network.close_to_the_host()
    }

    /// Ends [`isolate`](Self::isolate).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rejoin(&self) -> Result<()> {
        self.lifeline.state.network.open_to_the_host()
    }

    /// Writes down what a person needs to understand a failure: logs of components and pods, events,
    /// nodes, pods, and the objects of every custom resource.
    ///
    /// # Errors
    /// When the directory can't be written. What can't be collected is noted in its file.
    pub fn dump(&self, directory: &Path) -> Result<()> {
        crate::dump::write(self, directory)
    }

    pub(crate) fn pods_of(&self, node: &str) -> Result<Vec<i32>> {
        self.cgroups.processes_of_node(node)
    }

    fn site(&self) -> Site<'_> {
        Site {
            tools: &self.tools,
            network: self.lifeline.state.network,
            cgroups: &self.cgroups,
            authority: &self.parts.authority,
            roster: &self.lifeline.roster,
            directory: &self.lifeline.state.directory,
        }
    }
}
