//! An open span reaches the collector with its fields and the program's name, at the latest when the guard is
//! dropped.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use clap::Parser;
use leasehold_telemetry::metrics::Controller;
use leasehold_telemetry::{Args, Settings, TraceArgs, span, start};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    telemetry: Args,
    #[command(flatten)]
    traces: TraceArgs,
}

/// Reads one HTTP request, and answers it with an empty success response.
fn take(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut chunk).unwrap();
        request.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .split("content-length: ")
                .nth(1)
                .unwrap()
                .lines()
                .next()
                .unwrap();
            let whole = head.len() + 4 + length.trim().parse::<usize>().unwrap();
            if request.len() >= whole {
                break;
            }
        }
        assert!(read > 0, "the request ended early");
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .unwrap();
    request
}

#[test]
fn spans_reach_the_collector_before_the_program_ends() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/", collector.local_addr().unwrap());
    let program = Program::parse_from(["program", "--otlp-endpoint", &endpoint, "--log-filter", "error"]);
    let settings = Settings::new("leasehold-test", &program.telemetry)
        .and_then(|settings| settings.traced(&program.traces))
        .unwrap();
    let received = std::thread::spawn(move || take(collector.accept().unwrap().0));

    let guard = start(&settings).unwrap();
    span(Controller::Lease, "team-a/train").in_scope(|| {
        tracing::Span::current().record("lease", "lease-abcdefghijklmnopqrstuvwxyz");
    });
    drop(guard);

    let request = received.join().unwrap();
    let text = String::from_utf8_lossy(&request);
    assert!(text.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{text}");
    for wanted in [
        "leasehold-test",
        "reconcile",
        "team-a/train",
        "lease-abcdefghijklmnopqrstuvwxyz",
    ] {
        assert!(text.contains(wanted), "the request does not contain {wanted:?}");
    }
}
