//! A lease whose provider has a control plane of its own, and to which nothing comes in: its ports are reached by their URLs,
//! through the tunnel.

mod kills;
mod refusals;
mod transfers;
mod user;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{DOMAIN, GatewayFixture, PORT, Split, SplitSpec, Tenant, within};
use leasehold_planner::urls::host_label;
use leasehold_testcluster::{Cluster, Stderr, Unavailable};
use serde_json::json;

use self::user::User;

const LIMIT: Duration = Duration::from_secs(90);
/// Blocks of 64 KiB in each direction: 64 MiB. `cargo xtask bench reach` moves more, with optimized programs.
const BLOCKS: u64 = 1 << 10;
/// The tenant's token.
const TOKEN: &str = "correct-horse-battery-staple";

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_behind_nat_is_reached_by_its_urls() -> anyhow::Result<()> {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let gateway = GatewayFixture::new()?;
    let split = Split::up(SplitSpec::with_gateway("e2e-reach", &gateway), &Stderr::default()).await?;
    let result = stories(&split, &gateway).await;
    if let Err(error) = &result {
        let kept = leasehold_testcluster::cache_root()?
            .join("failed")
            .join("e2e-reach");
        split.market.dump(&kept.join("market"));
        let _ = split.provider.dump(&kept.join("provider"));
        eprintln!("{error:#}\nlogs are in {}", kept.display());
    }
    split.down().await?;
    result
}

async fn stories(split: &Split, gateway: &GatewayFixture) -> anyhow::Result<()> {
    refuse_inbound(&split.provider)?;
    let tenant = Tenant::new(&split.market, "team-a")?;
    tenant.apply(&service(&tenant, "web")?)?;
    let active = tenant.until_phase("web", Phase::Active, LIMIT).await?;
    let urls = urls(&tenant, "web").await?;
    let user = user_of(split, gateway, "web");
    let expected =
        [&user.closed, &user.host, &user.open, &user.raw].map(|host| format!("https://{host}:{PORT}"));
    ensure!(urls == expected, "{urls:?}");
    refusals::without_a_token(&user).await?;
    publish_token(&tenant).await?;
    transfers::page(&user).await?;
    transfers::websocket(&user).await?;
    transfers::events(&user).await?;
    transfers::passed_through(&user).await?;
    transfers::grpc(&user).await?;
    transfers::download(&user, BLOCKS).await?;
    transfers::upload(&user, BLOCKS).await?;
    refusals::hostile(&user).await?;
    refusals::floods(&user).await?;
    let other = another_lease(split, &tenant, gateway).await?;
    let leases = [(user, host_of(split, &active).await?), other];
    kills::each_component(3, &split.market.client, &split.client, &leases).await?;
    let [(user, _), _] = leases;
    refusals::nothing_else_comes_in(split, &active).await?;
    tenant.delete("web").await?;
    tenant.until_gone("web", LIMIT).await?;
    refusals::after_the_end(&user).await
}

/// A user of a lease.
fn user_of(split: &Split, gateway: &GatewayFixture, lease: &str) -> User {
    let host = |port: &str| format!("{}.{DOMAIN}", host_label("team-a", lease, port, 0));
    User {
        gateway: gateway.clone(),
        address: (split.market.cluster.node("market-1").address, PORT).into(),
        host: host("http"),
        open: host("open"),
        closed: host("closed"),
        raw: host("raw"),
    }
}

/// A second lease at the same provider, its user, and the name of its pod.
async fn another_lease(
    split: &Split,
    tenant: &Tenant<'_>,
    gateway: &GatewayFixture,
) -> anyhow::Result<(User, String)> {
    tenant.apply(&service(tenant, "other")?)?;
    let active = tenant.until_phase("other", Phase::Active, LIMIT).await?;
    urls(tenant, "other").await?;
    Ok((user_of(split, gateway, "other"), host_of(split, &active).await?))
}

/// The name of the host of a lease of one node, by which its program answers.
async fn host_of(split: &Split, lease: &GpuLease) -> anyhow::Result<String> {
    let pod = split.pod_of(lease).await?;
    let of_spec = pod.spec.and_then(|spec| spec.hostname);
    of_spec.or(pod.metadata.name).context("a pod with a name")
}

/// A web server with a port that needs a token, and one that everybody can open.
fn service(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<GpuLease> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "perNode": {"cpu": "200m", "memory": "64Mi", "ephemeralStorage": "20Mi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"service": {
                "image": "leasehold.test/web:dev", "runAsUser": 65532,
                "ports": [
                    {"name": "http", "port": 8080},
                    {"name": "open", "port": 8081, "access": "Public"},
                    {"name": "closed", "port": 8082, "access": "Public"},
                    {"name": "raw", "port": 9000, "access": "Public", "tls": "Passthrough"},
                ],
                "readiness": {"port": 8080, "path": "/"},
            }},
            "access": {"tokenSecret": {"name": "url-token"}},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}

/// The URLs in the status of the lease.
async fn urls(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<Vec<String>> {
    within(LIMIT, "the URLs", || async {
        let status = tenant.leases().get(name).await?.status.unwrap_or_default();
        let mut urls: Vec<String> = status
            .endpoints
            .into_iter()
            .filter_map(|endpoint| endpoint.url)
            .collect();
        urls.sort();
        Ok(if urls.len() == 4 { Ok(urls) } else { Err(urls) })
    })
    .await
}

/// Creates the Secret with the token, and lets the market read it.
async fn publish_token(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let namespace = &tenant.namespace;
    for object in [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "url-token", "namespace": namespace}, "stringData": {"token": TOKEN}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "leasehold-token", "namespace": namespace},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["url-token"], "verbs": ["get"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "leasehold-token", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leasehold-token"},
            "subjects": [{"kind": "ServiceAccount", "name": "leasehold-market", "namespace": leasehold_e2e::NAMESPACE}]}),
    ] {
        tenant.apply(&object)?;
    }
    within(LIMIT, "the digest of the token", || async {
        let status = tenant.leases().get("web").await?.status.unwrap_or_default();
        Ok(status.access_token_sha256.map(drop).ok_or(status.conditions))
    })
    .await
}

/// Drops what comes to the provider's nodes and pods from outside of its cluster.
fn refuse_inbound(provider: &Cluster) -> anyhow::Result<()> {
    // The control plane reaches its kubelets; the host of the machine and other clusters do not.
    let control_plane = provider.address().to_string();
    for node in provider.nodes() {
        for chain in ["INPUT", "FORWARD"] {
            let rule = ["-I", chain, "-i", "eth0", "-m", "conntrack", "--ctstate", "NEW"];
            let mut iptables = node.command("iptables")?;
            iptables
                .args(rule)
                .args(["!", "-s", &control_plane, "-j", "DROP"]);
            let status = iptables.status().context("run iptables")?;
            ensure!(status.success(), "iptables on {}: {status}", node.name);
        }
    }
    Ok(())
}
