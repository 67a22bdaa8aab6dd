//! What does not pass.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Request;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use leasehold_crds::GpuLease;
use leasehold_e2e::{DOMAIN, Split, within};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time,
};

use crate::{
    LIMIT, TOKEN,
    user::{User, empty},
};

/// Before the token is published, nobody is let in, whatever they send.
pub(crate) async fn without_a_token(user: &User) -> anyhow::Result<()> {
    let (status, why) = user.ask(&user.host, user.request("GET", "/")).await?;
    ensure!(
        status == 403 && why.contains("spec.access.tokenSecret"),
        "{status} {why}"
    );
    Ok(())
}

/// Requests of strangers.
pub(crate) async fn hostile(user: &User) -> anyhow::Result<()> {
    let plain = |host: &str| Request::builder().uri("/").header("host", host);
    let (status, why) = user.ask(&user.host, plain(&user.host)).await?;
    ensure!(status == 401 && why.contains("Leasehold-Token"), "{status} {why}");
    let wrong = plain(&user.host).header("leasehold-token", "correct-horse-battery-stapler");
    ensure!(user.ask(&user.host, wrong).await?.0 == 401);
    let query = Request::builder()
        .uri(format!("/headers?a=1&leasehold-token={TOKEN}"))
        .header("host", &user.host);
    let exchanged = user.send(&user.host, query.body(empty())?).await?;
    ensure!(exchanged.status() == 303, "{}", exchanged.status());
    ensure!(exchanged.headers()["location"] == "/headers?a=1");
    let cookie = exchanged.headers()["set-cookie"].to_str()?.to_owned();
    ensure!(
        cookie.contains("HttpOnly") && cookie.contains("Secure"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().context("a cookie")?.to_owned();
    let with_cookie = plain(&user.host).header("cookie", cookie);
    ensure!(user.ask(&user.host, with_cookie).await?.0 == 200);

    let (status, why) = user.ask(&user.closed, plain(&user.closed)).await?;
    ensure!(status == 502 && why.contains("port 8082"), "{status} {why}");
    for stranger in [
        format!("http-other-aaaaaaaaaaaaaaaa.{DOMAIN}"),
        format!("a.b.{DOMAIN}"),
        "10.96.0.1".into(),
    ] {
        let (status, why) = user.ask(&user.host, plain(&stranger)).await?;
        ensure!(status == 404, "{stranger}: {status} {why}");
    }
    // One connection, the host of another port: by its own rules, not by those of the first.
    ensure!(user.ask(&user.open, plain(&user.host)).await?.0 == 401);
    ensure!(user.ask(&user.open, plain(&user.raw)).await?.0 == 421);
    for raw in [
        format!("GET / HTTP/1.1\r\nhost: {0}\r\nhost: {0}\r\n\r\n", user.open),
        format!(
            "GET http://{}/ HTTP/1.1\r\nhost: {}\r\n\r\n",
            user.host, user.open
        ),
        format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
            user.open
        ),
        format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
            user.open
        ),
        format!("GET / HTTP/1.1\r\nhost: {}\r\nx: a\rb\r\n\r\n", user.open),
        format!("GET / HTTP/1.1\r\nhost : {}\r\n\r\n", user.open),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT 10.96.0.1:443 HTTP/1.1\r\nhost: 10.96.0.1\r\n\r\n".to_owned(),
        "\0\0\0\0\r\n\r\n".to_owned(),
    ] {
        let status = status_of(user, &raw).await?;
        ensure!((400..502).contains(&status), "{status} to {raw:?}");
    }
    Ok(())
}

/// The status of the answer to bytes; 400 if the connection is closed without one.
async fn status_of(user: &User, raw: &str) -> anyhow::Result<u16> {
    let mut tls = user.gateway.connect(user.address, &user.open, "http/1.1").await?;
    tls.write_all(raw.as_bytes()).await?;
    let mut answer = vec![0; 12];
    match time::timeout(Duration::from_secs(15), tls.read_exact(&mut answer)).await? {
        Ok(_) => Ok(String::from_utf8_lossy(&answer[9..]).parse()?),
        Err(_) => Ok(400),
    }
}

/// Floods of HTTP/2 end their connection, and the next user is served.
pub(crate) async fn floods(user: &User) -> anyhow::Result<()> {
    // Streams that are opened and reset (CVE-2023-44487).
    let tls = user.gateway.connect(user.address, &user.open, "h2").await?;
    let (mut requests, connection) = h2::client::handshake(tls).await?;
    let connection = tokio::spawn(connection);
    let flood = async {
        loop {
            let request = Request::builder()
                .uri(format!("https://{}/events", user.open))
                .body(())?;
            let Ok(mut ready) = requests.ready().await else {
                break;
            };
            let Ok((_, mut sent)) = ready.send_request(request, true) else {
                break;
            };
            sent.send_reset(h2::Reason::CANCEL);
            requests = ready;
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    let ended = time::timeout(Duration::from_secs(60), flood).await;
    ended.context("the flood of resets is not refused")??;
    connection.abort();
    // Header blocks without end (CVE-2024-27316).
    let mut tls = user.gateway.connect(user.address, &user.open, "h2").await?;
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await?;
    // HEADERS of stream 1 without END_HEADERS, then CONTINUATION again and again.
    tls.write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]).await?;
    let mut header = vec![0, 0x40, 0, 9, 0, 0, 0, 0, 1];
    header.resize(9 + 0x4000, 0x82);
    let ended = time::timeout(Duration::from_secs(20), async {
        for _ in 0..100_000 {
            if tls.write_all(&header).await.is_err() || tls.flush().await.is_err() {
                return;
            }
        }
    });
    ended
        .await
        .context("the flood of CONTINUATION frames is not refused")?;
    let (status, page) = user
        .ask(&user.open, Request::builder().uri("/").header("host", &user.open))
        .await?;
    ensure!(status == 200, "after the floods: {status} {page}");
    Ok(())
}

/// The provider is not reached from outside by any other way, and the pod not by another pod of its cluster.
pub(crate) async fn nothing_else_comes_in(split: &Split, lease: &GpuLease) -> anyhow::Result<()> {
    let node = &split.provider.nodes()[0];
    for port in [10250_u16, 30443, 8080] {
        let address = (node.address, port).into();
        let connected = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1));
        ensure!(
            connected.is_err(),
            "{address} of {} is reached from outside",
            lease.name_any()
        );
    }
    let pods = Api::<Pod>::all(split.client.clone());
    let of_leases = pods
        .list(&ListParams::default().labels("leasehold.dev/lease"))
        .await?
        .items;
    let address = of_leases
        .iter()
        .find_map(|pod| pod.status.as_ref()?.pod_ip.clone())
        .context("the address of the pod")?;
    // The connector is another pod of the same namespace: its labels make the difference.
    let stranger: Pod = serde_json::from_value(json!({
        "metadata": {"name": "stranger", "namespace": leasehold_e2e::NAMESPACE, "labels": {"app.kubernetes.io/component": "market"}},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "main", "image": "leasehold.test/busybox:1", "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/busybox", "nc", "-w", "5", &address, "8080"],
        }]},
    }))?;
    let own = Api::<Pod>::namespaced(split.client.clone(), leasehold_e2e::NAMESPACE);
    own.create(&PostParams::default(), &stranger).await?;
    within(
        LIMIT,
        "a stranger's connection to the pod of the lease to be dropped",
        || async {
            let status = own.get("stranger").await?.status.unwrap_or_default();
            Ok(match status.phase.as_deref() {
                Some("Failed") => Ok(()),
                phase => Err(phase.map(str::to_owned)),
            })
        },
    )
    .await
}

/// After its end the lease is reached no more.
pub(crate) async fn after_the_end(user: &User) -> anyhow::Result<()> {
    within(LIMIT, "the URL of a lease that is gone", || async {
        let request = Request::builder()
            .uri("/")
            .header("host", &user.open)
            .body(empty())?;
        let response = user.send(&user.open, request).await?;
        let status = response.status().as_u16();
        drop(response.into_body().collect().await);
        Ok(if status == 404 { Ok(()) } else { Err(status) })
    })
    .await
}
