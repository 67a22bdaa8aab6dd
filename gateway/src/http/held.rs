//! What lasts as long as an answer: a place among requests, and the use of a connection.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{self, Instant};

/// A body, and what is held until it has ended or is given up.
pub(crate) struct Held<B, G> {
    body: B,
    _held: G,
}

impl<B, G> Held<B, G> {
    pub(crate) const fn new(body: B, held: G) -> Self {
        Self { body, _held: held }
    }
}

impl<B: Body + Unpin, G: Unpin> Body for Held<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a connection of a user has requests.
pub(crate) struct Activity {
    requests: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// A request of a connection.
pub(crate) struct InUse(Arc<Activity>);

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
        })
    }

    /// Counts a request until the value is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InUse {
        self.requests.fetch_add(1, Ordering::Relaxed);
        InUse(self.clone())
    }

    /// Returns when the connection has had no request for so long.
    pub(crate) async fn idle_for(&self, limit: Duration) {
        loop {
            let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
            let is_idle = self.requests.load(Ordering::Relaxed) == 0;
            if is_idle && since.elapsed() >= limit {
                return;
            }
            let next = if is_idle {
                since + limit
            } else {
                Instant::now() + limit
            };
            time::sleep_until(next).await;
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_after_its_last_request() {
        const LIMIT: Duration = Duration::from_secs(120);
        let (activity, begun) = (Activity::new(), Instant::now());
        let request = activity.begin();
        let other = activity.clone();
        tokio::spawn(async move {
            time::sleep(Duration::from_secs(1000)).await;
            drop(request);
            drop(other.begin());
        });
        activity.idle_for(LIMIT).await;
        let after = begun.elapsed().as_secs();
        assert!((1120..=1240).contains(&after), "{after} s");
    }
}
