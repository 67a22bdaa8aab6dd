//! A running cluster, from its start to its end.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::{try_join_all, try_join3};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node as NodeObject, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::cgroup::Cgroups;
use crate::control_plane::{self, Site};
use crate::credentials::Authority;
use crate::lifeline::Lifeline;
use crate::network::NODES_MAX;
use crate::node::{self, Node};
use crate::process::Process;
use crate::spec::{Chain, ClusterSpec, KwokNode};
use crate::state::State;
use crate::tools::Tools;
use crate::{Progress, Unavailable, base, chain, images, kwok};

/// How long tokens from [`Cluster::token_for`] are good for.
const TOKEN_SECONDS: i64 = 24 * 60 * 60;

/// A Kubernetes cluster of this process. Dropped, it is taken down; so it is when the process is killed.
pub struct Cluster {
    tools: Tools,
    cgroups: Cgroups,
    authority: Authority,
    admin: Client,
    kubeconfig: PathBuf,
    control_plane: ControlPlane,
    nodes: Vec<Node>,
    lifeline: Lifeline,
}

struct ControlPlane {
    etcd: Process,
    api_server: Process,
    controller_manager: Process,
    scheduler: Process,
    dns: Process,
    kwok: Option<Process>,
    anvil: Option<Process>,
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
        let tools = Tools::ensure(progress).await?;
        progress.step(&format!("cluster {}: networks and namespaces", spec.name));
        anyhow::ensure!(
            spec.nodes.len() <= usize::from(NODES_MAX),
            "a cluster has {NODES_MAX} real nodes at most: use KWOK nodes beside them"
        );
        let (lifeline, cgroups) = ground(&spec).await?;
        let network = lifeline.state.network;
        let roster = lifeline.roster.clone();
        let directory = lifeline.state.directory.clone();
        let authority = Authority::new(directory.join("certificates"))?;
        let site = Site {
            tools: &tools,
            network,
            cgroups: &cgroups,
            authority: &authority,
            roster: &roster,
            directory: &directory,
        };
        let kubeconfig = authority.write_kubeconfig(
            &lifeline.state.kubeconfig(),
            &site.api_url(),
            "admin",
            &["system:masters"],
        )?;
        let admin = client(&std::fs::read_to_string(&kubeconfig)?).await?;

        progress.step(&format!(
            "cluster {}: API server at {}",
            spec.name,
            site.api_url()
        ));
        let ((etcd, api_server), mut nodes, anvil) = try_join3(
            api(&site, &admin),
            prepare_nodes(&site, &spec),
            own_chain(&site, &spec),
        )
        .await?;

        progress.step(&format!("cluster {}: controllers and nodes", spec.name));
        let (controller_manager, scheduler, dns, _, kwok, (), _) = tokio::try_join!(
            control_plane::controller_manager(&site),
            control_plane::scheduler(&site),
            control_plane::dns(&site),
            control_plane::local_volumes(&site),
            fake_nodes(&site, &admin, &spec.kwok_nodes),
            base::objects(&admin, network),
            try_join_all(nodes.iter_mut().map(|node| node.join(&site))),
        )?;
        let control_plane = ControlPlane {
            etcd,
            api_server,
            controller_manager,
            scheduler,
            dns,
            kwok,
            anvil,
        };
        let rpc_url = match &spec.chain {
            Chain::None => None,
            Chain::Own { .. } => Some(chain::rpc_url(&site)),
            Chain::External { rpc_url } => Some(rpc_url.clone()),
        };
        let mut cluster = Self {
            tools,
            cgroups,
            authority,
            admin,
            kubeconfig,
            control_plane,
            nodes,
            lifeline,
        };
        if let Err(error) = base::usable(&cluster.admin, &spec).await {
            return Err(error.context(cluster.last_words()));
        }
        cluster.lifeline.state.rpc_url = rpc_url;
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
        &self.kubeconfig
    }

    /// A client with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.admin.clone()
    }

    /// The API server's address, on this machine and from other clusters' pods.
    #[must_use]
    pub fn api_url(&self) -> String {
        self.site().api_url()
    }

    /// The certificate of the authority behind [`api_url`](Self::api_url), as PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority.certificate
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
        &self.nodes
    }

    /// The real node of that name.
    ///
    /// # Panics
    /// When the cluster has none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
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
        self.authority.kubeconfig_of_token(&self.api_url(), token)
    }

    /// A client that is who the token says.
    ///
    /// # Errors
    /// When the client can't be built.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        client(&self.kubeconfig_with_token(token)?).await
    }

    /// Reads the images of an OCI archive into every real node.
    ///
    /// # Errors
    /// When a node's containerd refuses it.
    pub async fn load_image(&self, archive: &Path) -> Result<()> {
        try_join_all(self.nodes.iter().map(|node| node.load_image(archive)))
            .await
            .map(drop)
    }

    /// Makes more KWOK nodes in a cluster that was brought up with some.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn add_kwok_nodes(&mut self, nodes: &[KwokNode]) -> Result<()> {
        if self.control_plane.kwok.is_none() {
            self.control_plane.kwok = Some(kwok::start(&self.site()).await?);
        }
        kwok::create(&self.admin, nodes).await
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
            .env("KUBECONFIG", &self.kubeconfig)
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
        &self.control_plane.api_server
    }

    #[must_use]
    pub fn controller_manager(&self) -> &Process {
        &self.control_plane.controller_manager
    }

    #[must_use]
    pub fn scheduler(&self) -> &Process {
        &self.control_plane.scheduler
    }

    #[must_use]
    pub fn etcd(&self) -> &Process {
        &self.control_plane.etcd
    }

    /// CoreDNS.
    #[must_use]
    pub fn dns(&self) -> &Process {
        &self.control_plane.dns
    }

    /// The cluster's own chain, if it has one.
    #[must_use]
    pub fn anvil(&self) -> Option<&Process> {
        self.control_plane.anvil.as_ref()
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

    fn site(&self) -> Site<'_> {
        Site {
            tools: &self.tools,
            network: self.lifeline.state.network,
            cgroups: &self.cgroups,
            authority: &self.authority,
            roster: &self.lifeline.roster,
            directory: &self.lifeline.state.directory,
        }
    }

    /// The ends of the logs of the parts that bring nodes up, for an error's text.
    fn last_words(&self) -> String {
        let suspects = |process: &&Process| {
            process.pid().is_none()
                || ["kubelet", "containerd", "kwok"]
                    .iter()
                    .any(|end| process.name().ends_with(end))
        };
        let processes = self.lifeline.roster.all();
        processes
            .iter()
            .filter(suspects)
            .map(|process| {
                let state = if process.pid().is_some() {
                    "running"
                } else {
                    "ended"
                };
                format!("--- {} ({state})\n{}\n", process.name(), process.last_words())
            })
            .collect()
    }
}

/// Claims a number and makes everything that isn't a process.
async fn ground(spec: &ClusterSpec) -> Result<(Lifeline, Cgroups)> {
    let spec = spec.clone();
    tokio::task::spawn_blocking(move || {
        let names: Vec<String> = spec.nodes.iter().map(|node| node.name.clone()).collect();
        let mut lifeline = Lifeline::new(State::claim(&spec.name, &names)?);
        let cgroups = Cgroups::named(&lifeline.state.cgroup);
        node::make_cgroups(&cgroups, &spec.nodes)?;
        lifeline.watch(&cgroups)?;
        lifeline.state.network.build()?;
        std::fs::create_dir_all(lifeline.state.directory.join("logs"))?;
        Ok((lifeline, cgroups))
    })
    .await?
}

async fn api(site: &Site<'_>, admin: &Client) -> Result<(Process, Process)> {
    let etcd = control_plane::etcd(site).await?;
    let api_server = control_plane::api_server(site, admin.clone()).await?;
    Ok((etcd, api_server))
}

async fn prepare_nodes(site: &Site<'_>, spec: &ClusterSpec) -> Result<Vec<Node>> {
    if spec.nodes.is_empty() {
        return Ok(Vec::new());
    }
    let archives = images::write(site.tools, site.directory.join("images"))?;
    try_join_all((0_u8..).zip(&spec.nodes).map(|(index, node)| {
        let archives = &archives;
        async move {
            let node = Node::prepare(site, index, node).await?;
            for archive in archives {
                node.load_image(archive).await?;
            }
            Ok(node)
        }
    }))
    .await
}

async fn own_chain(site: &Site<'_>, spec: &ClusterSpec) -> Result<Option<Process>> {
    match spec.chain {
        Chain::Own { block_time } => chain::start(site, block_time).await.map(Some),
        Chain::None | Chain::External { .. } => Ok(None),
    }
}

async fn fake_nodes(site: &Site<'_>, admin: &Client, nodes: &[KwokNode]) -> Result<Option<Process>> {
    if nodes.is_empty() {
        return Ok(None);
    }
    let (process, ()) = tokio::try_join!(kwok::start(site), kwok::create(admin, nodes))?;
    Ok(Some(process))
}

async fn client(kubeconfig: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // A server that a test suspends must fail a call, not hang it.
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(Client::try_from(config)?)
}
