//! How a cluster comes up: what depends on nothing first, everything else as soon as what it needs answers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use futures::future::{try_join_all, try_join3};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cgroup::Cgroups;
use crate::control_plane::{self, Site};
use crate::credentials::Authority;
use crate::lifeline::Lifeline;
use crate::network::NODES_MAX;
use crate::node::Node;
use crate::process::{Process, Roster};
use crate::spec::{Chain, ClusterSpec, KwokNode};
use crate::state::State;
use crate::{Progress, base, chain, dump, images, kwok, policies};
use leasehold_testtools::Tools;
use leasehold_testtools::cache;

/// What a cluster that came up consists of.
pub(crate) struct Parts {
    pub(crate) authority: Authority,
    pub(crate) admin: Client,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) control_plane: ControlPlane,
    pub(crate) nodes: Vec<Node>,
    pub(crate) rpc_url: Option<String>,
}

pub(crate) struct ControlPlane {
    pub(crate) etcd: Process,
    pub(crate) api_server: Process,
    pub(crate) controller_manager: Process,
    pub(crate) scheduler: Process,
    pub(crate) dns: Process,
    pub(crate) kwok: Option<Process>,
    pub(crate) anvil: Option<Process>,
}

/// Claims a number and makes everything that isn't a process.
pub(crate) async fn ground(spec: &ClusterSpec) -> Result<(Lifeline, Cgroups)> {
    anyhow::ensure!(
        spec.nodes.len() <= usize::from(NODES_MAX),
        "a cluster has {NODES_MAX} real nodes at most: use KWOK nodes beside them"
    );
    let spec = spec.clone();
    tokio::task::spawn_blocking(move || {
        let names: Vec<String> = spec.nodes.iter().map(|node| node.name.clone()).collect();
        let mut lifeline = Lifeline::new(State::claim(&spec.name, &names)?);
        let cgroups = Cgroups::named(&lifeline.state.cgroup);
        cgroups.make(spec.nodes.iter().map(|node| node.name.as_str()))?;
        lifeline.watch(&cgroups)?;
        lifeline.state.network.build()?;
        std::fs::create_dir_all(lifeline.state.directory.join("logs"))?;
        Ok((lifeline, cgroups))
    })
    .await?
}

/// Starts everything and waits until pods can be made.
pub(crate) async fn start(
    spec: &ClusterSpec,
    tools: &Tools,
    cgroups: &Cgroups,
    lifeline: &Lifeline,
    progress: &dyn Progress,
) -> Result<Parts> {
    let state = &lifeline.state;
    let authority = Authority::new(state.directory.join("certificates"))?;
    let site = Site {
        tools,
        network: state.network,
        cgroups,
        authority: &authority,
        roster: &lifeline.roster,
        directory: &state.directory,
    };
    let kubeconfig =
        authority.write_kubeconfig(&state.kubeconfig(), &site.api_url(), "admin", &["system:masters"])?;
    let admin = client(&std::fs::read_to_string(&kubeconfig)?).await?;

    progress.step(&format!(
        "cluster {}: API server at {}",
        spec.name,
        site.api_url()
    ));
    let ((etcd, api_server), mut nodes, anvil) = try_join3(
        api(&site, &admin),
        prepare_nodes(&site, spec),
        own_chain(&site, spec),
    )
    .await?;

    progress.step(&format!("cluster {}: controllers and nodes", spec.name));
    let enforce = spec.enforce_network_policies;
    let (controller_manager, scheduler, dns, _, kwok, (), (), _) = tokio::try_join!(
        control_plane::controller_manager(&site),
        control_plane::scheduler(&site),
        control_plane::dns(&site),
        control_plane::local_volumes(&site),
        fake_nodes(&site, &admin, &spec.kwok_nodes),
        base::objects(&admin, state.network),
        nameable(&admin, &site, enforce),
        try_join_all(nodes.iter_mut().map(|node| node.join(&site, enforce))),
    )?;
    base::usable(&admin, spec).await?;
    let rpc_url = match &spec.chain {
        Chain::None => None,
        Chain::Own { .. } => Some(chain::rpc_url(&site)),
        Chain::External { rpc_url } => Some(rpc_url.clone()),
    };
    let control_plane = ControlPlane {
        etcd,
        api_server,
        controller_manager,
        scheduler,
        dns,
        kwok,
        anvil,
    };
    Ok(Parts {
        authority,
        admin,
        kubeconfig,
        control_plane,
        nodes,
        rpc_url,
    })
}

/// Takes down what had come up, and keeps the logs where the error says.
pub(crate) async fn give_up(error: anyhow::Error, lifeline: Lifeline) -> anyhow::Error {
    let ended = last_words(&lifeline.roster);
    let kept = cache::root()
        .map(|root| root.join("failed").join(&lifeline.state.name))
        .and_then(|kept| {
            let _ = std::fs::remove_dir_all(&kept);
            dump::copy(&lifeline.state.directory.join("logs"), &kept).map(|()| kept)
        });
    let error = match kept {
        Ok(kept) => error.context(format!(
            "{ended}the cluster didn't come up; its logs are in {}",
            kept.display()
        )),
        Err(_) => error.context(format!("{ended}the cluster didn't come up")),
    };
    match tokio::task::spawn_blocking(move || lifeline.end()).await {
        Ok(Ok(())) => error,
        Ok(Err(left)) => error.context(format!("and isn't fully gone: {left:#}")),
        Err(panic) => error.context(panic),
    }
}

/// The ends of the logs of components that ended by themselves, for an error's text.
fn last_words(roster: &Roster) -> String {
    let ended = roster.all().into_iter().filter(|process| process.pid().is_none());
    ended
        .map(|process| format!("{} has ended:\n{}\n", process.name(), process.last_words()))
        .collect()
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

/// Makes the name server something that a policy can name, where policies have an effect.
async fn nameable(admin: &Client, site: &Site<'_>, enforce_policies: bool) -> Result<()> {
    if enforce_policies {
        policies::name_server(admin, site.network).await
    } else {
        Ok(())
    }
}

pub(crate) async fn client(kubeconfig: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // A server that a test suspends must fail a call, not hang it.
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(Client::try_from(config)?)
}
