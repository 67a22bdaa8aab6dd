//! Both ends of the tunnel over loopback, with TLS: what passes, what is refused, and what happens when one of them fails.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

mod support;

use std::time::Duration;

use http::StatusCode;
use leasehold_tunnel::serve::ServeError;
use leasehold_tunnel::{Identity, OpenError, StreamRequest, Tunnel, TunnelStream, dial, wire};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{self, Instant},
};

use support::{Site, always, echo, within};

fn target(lease_uid: &str, port: u16) -> StreamRequest {
    StreamRequest {
        lease_uid: lease_uid.to_owned(),
        rank: 0,
        port,
    }
}

#[tokio::test]
async fn a_stream_reaches_what_the_connector_opens_and_nothing_else() {
    let site = Site::new().await;
    let connector = site.connector("rhine");
    let gateway = site.gateway("a").await;
    connector.link(&[&gateway]);
    let tunnels = &gateway.tunnels;
    within("connected", || tunnels.connectors() == (1, 1)).await;

    let mut stream = tunnels
        .open("rhine", &target("lease", site.echo_port))
        .await
        .unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let received = echo(&mut stream, &sent).await;
    assert!(received == sent, "{} bytes came back", received.len());

    let refused = tunnels
        .open("rhine", &target("another-lease", 80))
        .await
        .unwrap_err();
    let OpenError::Refused(refused) = refused else {
        panic!("{refused}")
    };
    assert_eq!(
        (refused.status, refused.reason.as_str()),
        (StatusCode::FORBIDDEN, "not this lease")
    );
    let unknown = tunnels
        .open("elbe", &target("lease", site.echo_port))
        .await
        .unwrap_err();
    assert_eq!(unknown, OpenError::NotConnected("elbe".into()));
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_hold_up_the_others() {
    let site = Site::new().await;
    let connector = site.connector("rhine");
    let gateway = site.gateway("a").await;
    connector.link(&[&gateway]);
    within("connected", || gateway.tunnels.connectors().0 == 1).await;
    let request = target("lease", site.source_port);
    let mut paused = Vec::new();
    for _ in 0..64 {
        paused.push(gateway.tunnels.open("rhine", &request).await.unwrap());
    }
    // Until each of them is full.
    time::sleep(Duration::from_millis(500)).await;
    let mut stream = gateway
        .tunnels
        .open("rhine", &target("lease", site.echo_port))
        .await
        .unwrap();
    let begun = Instant::now();
    assert_eq!(echo(&mut stream, b"still here").await, b"still here");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for mut stream in paused {
        let mut some = [0; 1000];
        stream.read_exact(&mut some).await.unwrap();
    }
}

#[tokio::test]
async fn a_replica_without_a_connection_forwards_to_one_that_has_it() {
    let site = Site::new().await;
    let connector = site.connector("rhine");
    let (a, b) = (site.gateway("a").await, site.gateway("b").await);
    connector.link(&[&a]);
    // As each replica serves its peers: `a` answers what `b` asks.
    site.peer(&a, &b);
    within("connected", || a.tunnels.connectors().0 == 1).await;
    let opened = async {
        loop {
            match b.tunnels.open("rhine", &target("lease", site.echo_port)).await {
                Ok(stream) => return stream,
                Err(OpenError::NotConnected(_)) => time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let mut stream = time::timeout(Duration::from_secs(10), opened).await.unwrap();
    assert_eq!(echo(&mut stream, b"by way of a").await, b"by way of a");
    // What no replica has is not passed around.
    let unknown = b.tunnels.open("elbe", &target("lease", 1)).await.unwrap_err();
    assert_eq!(unknown, OpenError::NotConnected("elbe".into()));
}

#[tokio::test]
async fn every_replica_is_connected_and_a_lost_one_is_found_again() {
    let site = Site::new().await;
    let connector = site.connector("rhine");
    let (a, b) = (site.gateway("a").await, site.gateway("b").await);
    connector.link(&[&a, &b]);
    within("both", || {
        a.tunnels.connectors().0 == 1 && b.tunnels.connectors().0 == 1
    })
    .await;
    let mut stream = a
        .tunnels
        .open("rhine", &target("lease", site.echo_port))
        .await
        .unwrap();
    assert_eq!(echo_open(&mut stream, b"one").await, b"one");
    // It is killed: its streams fail, and the other one goes on.
    let address = a.address;
    a.kill().await;
    let mut end = Vec::new();
    assert!(
        time::timeout(Duration::from_secs(5), stream.read_to_end(&mut end))
            .await
            .unwrap()
            .is_err(),
        "a broken stream must not look complete"
    );
    let mut stream = b
        .tunnels
        .open("rhine", &target("lease", site.echo_port))
        .await
        .unwrap();
    assert_eq!(echo_open(&mut stream, b"two").await, b"two");
    let again = site.gateway_at("a2", address).await;
    let begun = Instant::now();
    within("again", || again.tunnels.connectors().0 == 1).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// What was broken off is reset at the program too, which could not tell an ordinary end from the end of its data.
#[tokio::test]
async fn a_broken_upload_does_not_look_complete() {
    let site = Site::new().await;
    let connector = site.connector("rhine");
    let gateway = site.gateway("a").await;
    connector.link(&[&gateway]);
    within("connected", || gateway.tunnels.connectors().0 == 1).await;
    let target = target("lease", site.sink_port);
    let mut whole = gateway.tunnels.open("rhine", &target).await.unwrap();
    whole.write_all(&[1; 100_000]).await.unwrap();
    whole.shutdown().await.unwrap();
    let mut end = Vec::new();
    whole.read_to_end(&mut end).await.unwrap();
    within("the end", || site.uploads() == [Ok(100_000)]).await;

    let mut broken = gateway.tunnels.open("rhine", &target).await.unwrap();
    broken.write_all(&[1; 100_000]).await.unwrap();
    within("the data", || site.uploading() == 100_000).await;
    gateway.kill().await;
    within("the reset", || {
        site.uploads() == [Ok(100_000), Err(std::io::ErrorKind::ConnectionReset)]
    })
    .await;
}

#[tokio::test]
async fn one_address_leads_to_every_replica_in_the_end() {
    let site = Site::new().await;
    let connector = site.connector("rhine");
    let (a, b) = (site.gateway("a").await, site.gateway("b").await);
    site.replicas(2);
    let balancer = site.balancer(&[&a, &b]).await;
    connector.link_to(vec![balancer.to_string()]);
    within("both", || {
        a.tunnels.connectors().0 == 1 && b.tunnels.connectors().0 == 1
    })
    .await;
}

#[tokio::test]
async fn a_connector_that_ends_drains_its_streams() {
    let site = Site::new().await;
    let (first, second) = (site.connector("rhine"), site.connector("rhine"));
    let gateway = site.gateway("a").await;
    first.link(&[&gateway]);
    within("connected", || gateway.tunnels.connectors().0 == 1).await;
    let mut old = gateway
        .tunnels
        .open("rhine", &target("lease", site.echo_port))
        .await
        .unwrap();
    assert_eq!(echo_open(&mut old, b"before").await, b"before");
    second.link(&[&gateway]);
    within("the second", || gateway.tunnels.connectors().0 == 2).await;
    first.shutdown.cancel();
    // The old stream goes on, and new ones reach the other connector.
    for _ in 0..20 {
        let mut new = gateway
            .tunnels
            .open("rhine", &target("lease", site.echo_port))
            .await
            .unwrap();
        assert_eq!(echo(&mut new, b"new").await, b"new");
    }
    assert_eq!(echo(&mut old, b"after").await, b"after");
    within("gone", || gateway.tunnels.connectors().0 == 1).await;
}

#[tokio::test]
async fn who_dials_must_prove_who_it_is() {
    let site = Site::new().await;
    let gateway = site.gateway("a").await;
    let refused = |provider: &str, token: &str| {
        let credentials = site.credentials(Identity::Provider(provider.into()), token);
        let address = gateway.address;
        async move {
            match dial::dial(address, &credentials).await {
                Err(dial::DialError::Refused(status, reason)) => (status.as_u16(), reason),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(refused("rhine", "guessed").await.0, 401);
    let (status, reason) = refused("elbe", &site.token("rhine")).await;
    assert_eq!(
        (status, reason.as_str()),
        (403, "the token does not permit to connect as provider/elbe")
    );
    // Another authority's certificate.
    let mut credentials = site.credentials(Identity::Provider("rhine".into()), &site.token("rhine"));
    credentials.tls = always(Site::new().await.tls);
    let error = dial::dial(gateway.address, &credentials).await.unwrap_err();
    assert!(matches!(error, dial::DialError::Tls(_)), "{error}");
    assert_eq!(gateway.tunnels.connectors(), (0, 0));
}

#[tokio::test]
async fn one_identity_has_few_connections() {
    let site = Site::new().await;
    let gateway = site.gateway("a").await;
    let credentials = site.credentials(Identity::Provider("rhine".into()), &site.token("rhine"));
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let Ok(dialed) = dial::dial(gateway.address, &credentials).await else {
            refused += 1;
            continue;
        };
        held.push(site.serve(dialed.io));
    }
    within("sixteen", || gateway.tunnels.connectors().0 == 16).await;
    within("the rest is refused or closed", || {
        held.iter().filter(|task| task.is_finished()).count() + refused == 4
    })
    .await;
    for task in held {
        task.abort();
    }
}

/// A gateway that is not ours asks for anything.
#[tokio::test]
async fn requests_of_a_hostile_gateway_are_refused() {
    let site = Site::new().await;
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let served = site.serve(ours);
    let (requests, connection) = h2::client::handshake(theirs).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    for (method, uri, expected) in [
        ("CONNECT", "0.lease:0", 400),
        ("CONNECT", "127.0.0.1:6443", 400),
        ("CONNECT", "kubernetes.default:443", 400),
        ("CONNECT", "0.another-lease:80", 403),
        ("GET", "https://0.lease/", 405),
        ("POST", "https://0.lease/", 405),
    ] {
        let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
        let (response, _) = requests
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{method} {uri}");
        assert!(response.headers().contains_key(wire::HEADER_REASON));
    }
    // Headers without end.
    let mut request = http::Request::builder().method("CONNECT").uri("0.lease:80");
    for number in 0..1000 {
        request = request.header(format!("x-{number}"), "x".repeat(100));
    }
    let sent = requests
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(request.body(()).unwrap(), true);
    if let Ok((response, _)) = sent {
        assert!(
            response
                .await
                .map(|response| response.status().as_u16())
                .unwrap_or(431)
                == 431
        );
    }
    served.abort();
}

/// A link that pauses: the gateway gives up what it was opening, and all of that arrives at once afterwards.
#[tokio::test]
async fn a_pause_of_the_link_ends_no_stream() {
    let site = Site::new().await;
    let ((ours, mut to_gateway), (theirs, mut to_connector)) =
        (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
    let (pause, mut paused) = tokio::sync::watch::channel(false);
    let link = tokio::spawn(async move {
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        loop {
            paused.wait_for(|paused| !paused).await.unwrap();
            tokio::select! {
                read = to_gateway.read(&mut a) => to_connector.write_all(&a[..read.unwrap()]).await.unwrap(),
                read = to_connector.read(&mut b) => to_gateway.write_all(&b[..read.unwrap()]).await.unwrap(),
                _ = paused.changed() => {}
            }
        }
    });
    let served = site.serve(ours);
    let (tunnel, run) = Tunnel::begin(theirs).await.unwrap();
    let run = tokio::spawn(run);
    let mut before = tunnel.open(&target("lease", site.echo_port), None).await.unwrap();
    assert_eq!(echo_open(&mut before, b"before").await, b"before");

    pause.send(true).unwrap();
    let request = target("slow", 1);
    let opens = (0..200).map(|_| tunnel.open(&request, None));
    for opened in futures::future::join_all(opens).await {
        assert!(matches!(opened, Err(OpenError::Failed(_))), "{opened:?}");
    }
    pause.send(false).unwrap();
    assert_eq!(echo_open(&mut before, b"after").await, b"after");
    let mut new = tunnel.open(&target("lease", site.echo_port), None).await.unwrap();
    assert_eq!(echo(&mut new, b"new").await, b"new");
    assert!(!served.is_finished());
    for task in [link, run] {
        task.abort();
    }
    served.abort();
}

/// Streams that are opened and reset without end (CVE-2023-44487).
#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let site = Site::new().await;
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let served = site.serve(ours);
    let (requests, connection) = h2::client::handshake(theirs).await.unwrap();
    let client = tokio::spawn(async move { drop(connection.await) });
    let flood = async {
        loop {
            let request = http::Request::builder()
                .method("CONNECT")
                .uri("0.lease:1")
                .body(())
                .unwrap();
            let Ok(mut ready) = requests.clone().ready().await else {
                return;
            };
            let Ok((response, mut sent)) = ready.send_request(request, false) else {
                return;
            };
            sent.send_reset(h2::Reason::CANCEL);
            drop(response);
            tokio::task::yield_now().await;
        }
    };
    let ended = time::timeout(Duration::from_secs(20), async {
        tokio::join!(served, async {
            tokio::select! { () = flood => {}, _ = client => {} }
        })
    });
    let (served, ()) = ended.await.expect("the connection ends");
    let ended = served.unwrap().unwrap_err();
    assert!(
        matches!(ended, ServeError::Flood | ServeError::Http2(_)),
        "{ended}"
    );
}

/// One exchange on a stream that stays open.
async fn echo_open(stream: &mut TunnelStream, sent: &[u8]) -> Vec<u8> {
    stream.write_all(sent).await.unwrap();
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).await.unwrap();
    received
}
