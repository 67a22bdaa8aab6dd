//! Each component is killed under open streams: new streams open again soon, old ones go on or end, and none reaches another
//! lease.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{SinkExt as _, StreamExt as _, future::join_all};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use leasehold_e2e::{NAMESPACE, Watched, within};
use tokio::{net::TcpStream, time};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::{LIMIT, user::User};

/// Open streams while something is killed, half of them of each lease.
const STREAMS: usize = 50;
/// A machine that does much else is slow: `cargo xtask bench reach` measures this time.
const AGAIN_WITHIN: Duration = Duration::from_secs(15);

/// Kills each component in turn, `rounds` times. `market` and `provider` are clients of the two clusters, `leases` the users of
/// two leases with the names of their pods.
pub(crate) async fn each_component(
    rounds: usize,
    market: &Client,
    provider: &Client,
    leases: &[(User, String); 2],
) -> anyhow::Result<()> {
    for round in 0..rounds {
        for (client, component, program) in [
            (market, "gateway", "leasehold-gateway"),
            (provider, "connector", "leasehold-operator"),
        ] {
            let again = kill(client, (component, program), leases)
                .await
                .with_context(|| format!("{component}, round {round}"))?;
            eprintln!("  {component} killed: new streams after {again:.1?}");
        }
    }
    Ok(())
}

/// Kills one replica, and returns when both leases can be reached again.
async fn kill(
    client: &Client,
    (component, program): (&str, &str),
    leases: &[(User, String); 2],
) -> anyhow::Result<Duration> {
    let mut held = Vec::new();
    for number in 0..STREAMS {
        let (user, _) = &leases[number % 2];
        // The port of the nodes leads to a replica that was killed for some moments after the kill.
        let opened = within(LIMIT, "a stream", || async {
            Ok(open(user).await.map_err(|error| format!("{error:#}")))
        });
        held.push(opened.await.with_context(|| format!("stream {number}"))?);
    }
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
    let victim = pods
        .list(&selector)
        .await?
        .items
        .into_iter()
        .next()
        .context("a replica")?;
    Watched::of(&victim, program)?.kill()?;
    let (victim, restarts) = (victim.name_any(), restarts(&victim));
    let killed = Instant::now();
    for (user, pod) in leases {
        loop {
            match time::timeout(Duration::from_secs(1), page(user)).await {
                Ok(Ok(served_by)) => {
                    ensure!(
                        served_by.trim() == format!("served by {pod}"),
                        "{served_by:?} at the URL of {pod}"
                    );
                    break;
                }
                Ok(Err(error)) if killed.elapsed() > AGAIN_WITHIN => {
                    return Err(error.context("no new stream"));
                }
                Err(_) if killed.elapsed() > AGAIN_WITHIN => {
                    anyhow::bail!("no new stream within {AGAIN_WITHIN:?}")
                }
                Ok(Err(_)) | Err(_) => time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    let again = killed.elapsed();
    let ended = join_all(held.iter_mut().map(exchange)).await;
    let ended = ended.into_iter().collect::<anyhow::Result<Vec<bool>>>()?;
    let broken = ended.iter().filter(|is_whole| !**is_whole).count();
    eprintln!("  {broken} of {STREAMS} streams were broken, and ended");
    within(LIMIT, "the replica again", || async {
        let pod = pods.get(&victim).await?;
        let conditions = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let is_ready = conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        Ok(if is_ready && self::restarts(&pod) > restarts {
            Ok(())
        } else {
            Err(pod.status)
        })
    })
    .await?;
    Ok(again)
}

/// How often the container of a replica was restarted.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).sum()
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A WebSocket at the port that everybody can open.
async fn open(user: &User) -> anyhow::Result<Socket> {
    let tls = user.gateway.connect(user.address, &user.open, "http/1.1").await?;
    let request = format!("wss://{}/ws", user.open).into_client_request()?;
    Ok(tokio_tungstenite::client_async(request, tls).await?.0)
}

/// Whether a message returns on a stream. If it does not, the stream must have ended, and must not hang.
async fn exchange(socket: &mut Socket) -> anyhow::Result<bool> {
    let exchanged = async {
        socket.send(Message::text("still here")).await.ok()?;
        socket.next().await?.ok()
    };
    // The end of a connection without a FIN is noticed by pings.
    let answer = time::timeout(Duration::from_secs(30), exchanged).await;
    match answer.context("a stream hangs")? {
        Some(message) => {
            ensure!(message == Message::text("still here"), "{message:?}");
            Ok(true)
        }
        None => Ok(false),
    }
}

async fn page(user: &User) -> anyhow::Result<String> {
    let request = Request::builder().uri("/").header("host", &user.open);
    let (status, page) = user.ask(&user.open, request).await?;
    ensure!(status == 200, "{status} {page}");
    Ok(page)
}
