//! Whether the other end of a connection answers.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::{sync::watch, time};

/// How often a ping is sent after the answer to the one before.
const INTERVAL: Duration = Duration::from_secs(1);
/// A connection whose answer takes longer gets no new streams while another one answers.
const LATE: Duration = Duration::from_millis(1500);
/// A connection whose answer takes longer is closed. On a slow link an answer waits behind the data of streams.
const LOST: Duration = Duration::from_secs(20);

/// Sends pings, and reports whether they are answered in time. It returns when the other end is lost.
pub(crate) async fn run(mut pings: PingPong, is_responding: &watch::Sender<bool>) {
    loop {
        let mut pong = std::pin::pin!(pings.ping(Ping::opaque()));
        let answer = match time::timeout(LATE, &mut pong).await {
            Ok(answer) => answer,
            Err(_) => {
                is_responding.send_replace(false);
                match time::timeout(LOST - LATE, pong).await {
                    Ok(answer) => answer,
                    Err(_) => return,
                }
            }
        };
        if answer.is_err() {
            return;
        }
        is_responding.send_if_modified(|responding| !std::mem::replace(responding, true));
        time::sleep(INTERVAL).await;
    }
}
