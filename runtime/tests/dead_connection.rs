//! A connection to the API server that dies without a FIN is given up, and the watch goes on over another one.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use leasehold_runtime::cache::{self, Deadlines, Source};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// Serves the requests of one connection, until a watch begins. The first watch of all never gets an event: its connection is
/// dead from then on, as is every other one that was open at that time. Nothing is closed.
async fn serve(stream: TcpStream, is_dead: Arc<AtomicBool>) {
    let was_open_before = !is_dead.load(Ordering::SeqCst);
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        loop {
            let before = request.len();
            if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
            if request[before..].trim().is_empty() {
                break;
            }
        }
        if was_open_before && is_dead.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        let answer = if !request.contains("watch=true") {
            let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "1"}, "items": []});
            let list = list.to_string();
            format!("{head}content-length: {}\r\n\r\n{list}", list.len())
        } else if was_open_before {
            is_dead.store(true, Ordering::SeqCst);
            format!("{head}transfer-encoding: chunked\r\n\r\n")
        } else {
            let event = event();
            format!(
                "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{event}\n\r\n",
                event.len() + 1
            )
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn event() -> String {
    let object: Value = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "later", "namespace": "default", "resourceVersion": "2"}});
    json!({"type": "ADDED", "object": object}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_connection_died_is_back_within_30_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let is_dead = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let is_dead = is_dead.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, is_dead.clone()));
            }
        }
    });
    let file = std::env::temp_dir().join(format!("dead-connection-{}.json", std::process::id()));
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}]});
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let client = cache::client(Some(&file), Deadlines::ORDINARY).await;
    std::fs::remove_file(&file).unwrap();
    let source = Source::new(&client.unwrap());
    let store = source.watch(cache::keep_all, |_: &ConfigMap| {});
    store.wait_until_ready().await.unwrap();
    let begun = Instant::now();
    while cache::get(&store, "later", Some("default")).is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the watch received no event"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(is_dead.load(Ordering::SeqCst), "no connection died");
    assert_eq!(source.reach().error(), None);
}
