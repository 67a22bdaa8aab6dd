//! A PaymentNetwork with two RPC endpoints, of which the first lies and then is down.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use alloy::transports::http::reqwest;
use anyhow::{Context as _, ensure};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use leasehold_crds::{PaymentNetwork, lease::Phase, shared::conditions::find};
use leasehold_e2e::{Tenant, outage, within};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{LIMIT, closed, no_pods, pod, service, until_deposited};

/// Hexadecimal digits of one word of the ABI.
const WORD: usize = 64;

/// An RPC endpoint of its own that passes calls on, and can lie.
struct Endpoint {
    address: SocketAddr,
    lies: Arc<AtomicBool>,
    server: JoinHandle<std::io::Result<()>>,
}

#[derive(Clone)]
struct Upstream {
    url: String,
    client: reqwest::Client,
    lies: Arc<AtomicBool>,
}

impl Endpoint {
    /// Listens where the pods of the cluster reach it: on the host's address of the bridge of that cluster.
    async fn start(upstream: &str) -> anyhow::Result<Self> {
        let url: http::Uri = upstream.parse()?;
        let [a, b, c, _] = url.host().context("a host")?.parse::<Ipv4Addr>()?.octets();
        let listener = TcpListener::bind((IpAddr::from([a, b, c, 1]), 0)).await?;
        let address = listener.local_addr()?;
        let lies = Arc::new(AtomicBool::new(false));
        let state = Upstream {
            url: upstream.to_owned(),
            client: reqwest::Client::new(),
            lies: lies.clone(),
        };
        let router = Router::new().route("/", post(pass_on)).with_state(state);
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self {
            address,
            lies,
            server,
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass_on(State(upstream): State<Upstream>, call: Bytes) -> Result<String, StatusCode> {
    let request = upstream.client.post(&upstream.url);
    let request = request.header("content-type", "application/json").body(call);
    let answer = async { request.send().await?.text().await };
    let answer = answer.await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(match upstream.lies.load(Ordering::Relaxed) {
        true => without_account(&answer).unwrap_or(answer),
        false => answer,
    })
}

/// The answer of `snapshot(Terms)` with `exists` false. It begins with the offset of the structure, and `exists` is the first
/// field; `matches` is the second.
fn without_account(answer: &str) -> Option<String> {
    let mut answer: Value = serde_json::from_str(answer).ok()?;
    let result = answer["result"].as_str()?.strip_prefix("0x")?;
    let word = |n: usize| result.get(n * WORD..(n + 1) * WORD);
    let number = |n: usize| u64::from_str_radix(word(n)?, 16).ok();
    let is_snapshot = number(0) == Some(32) && number(1) == Some(1) && number(2) == Some(1);
    is_snapshot.then_some(())?;
    let (before, after) = (result.get(..WORD)?, result.get(2 * WORD..)?);
    answer["result"] = format!("0x{before}{}{after}", "0".repeat(WORD)).into();
    Some(answer.to_string())
}

async fn use_endpoints(tenant: &Tenant<'_>, first: &str, second: Option<&str>) -> anyhow::Result<()> {
    let networks = Api::<PaymentNetwork>::all(tenant.stack.client.clone());
    let urls = json!({"spec": {"rpcUrl": first, "secondRpcUrl": second}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(&urls));
    networks.patch("anvil", &params, &patch).await?;
    Ok(())
}

/// Waits until the condition `EndpointsAgree` has that status.
async fn until_agreement_is(tenant: &Tenant<'_>, wanted: &str) -> anyhow::Result<()> {
    let networks = Api::<PaymentNetwork>::all(tenant.stack.client.clone());
    within(LIMIT, &format!("EndpointsAgree {wanted}"), || async {
        let status = networks.get("anvil").await?.status.unwrap_or_default();
        let agree = find(&status.conditions, "EndpointsAgree").cloned();
        let is_so = agree.as_ref().is_some_and(|c| c.status == wanted);
        Ok(if is_so { Ok(()) } else { Err(agree) })
    })
    .await
}

async fn is_active(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<()> {
    let phase = tenant.leases().get(name).await?.status.map(|s| s.phase);
    ensure!(phase == Some(Phase::Active), "{phase:?}");
    Ok(())
}

/// The first endpoint denies the account of a lease: nothing ends. It is down: the second one pays an extension, and the end of
/// the account waits until the first one is removed from the spec.
pub(super) async fn lie_and_fail(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    no_pods(stack).await?;
    let own = stack.cluster.rpc_url().context("a chain")?.to_owned();
    let endpoint = Endpoint::start(&own).await?;
    let first = format!("http://{}", endpoint.address);
    use_endpoints(tenant, &first, Some(&own)).await?;
    until_agreement_is(tenant, "True").await?;
    tenant.apply(&service(tenant, "confirmed", "30m")?)?;
    let lease = tenant.until_phase("confirmed", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let before = pod(stack).await?;

    endpoint.lies.store(true, Ordering::Relaxed);
    until_agreement_is(tenant, "False").await?;
    tokio::time::sleep(outage(Duration::from_secs(10), Duration::from_secs(60))).await;
    is_active(tenant, "confirmed").await?;
    ensure!(pod(stack).await? == before, "the workload is untouched");

    drop(endpoint);
    let longer = json!({"spec": {"term": {"duration": "40m"}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(&longer));
    tenant.leases().patch("confirmed", &params, &patch).await?;
    let wanted = terms.rate().cost_ceil(2400).context("cost")?;
    until_deposited(stack, &terms, wanted).await?;
    is_active(tenant, "confirmed").await?;
    ensure!(pod(stack).await? == before, "the workload is untouched");
    tenant.delete("confirmed").await?;
    no_pods(stack).await?;
    tokio::time::sleep(outage(Duration::from_secs(5), Duration::from_secs(30))).await;
    ensure!(
        tenant.leases().get_opt("confirmed").await?.is_some(),
        "the end of the account waits for both endpoints"
    );

    use_endpoints(tenant, &own, None).await?;
    tenant.until_gone("confirmed", LIMIT).await?;
    closed(stack, &terms, Some(wanted.0)).await?;
    Ok(())
}
