//! Bounds of one lease, so that no lease takes what the others need: streams, new streams a second, bytes a second.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{self, Instant, Sleep},
};

/// Bounds of one lease at one replica.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Limits {
    /// Streams of one lease at this replica at once.
    #[arg(long = "streams-per-lease", default_value_t = 256, value_name = "NUMBER")]
    pub streams: u32,
    /// New streams of one lease at this replica, a second.
    #[arg(long = "new-streams-per-lease", default_value_t = 100, value_name = "NUMBER")]
    pub new_streams_per_second: u32,
    /// Bytes of one lease at this replica, a second, in both directions together.
    #[arg(long = "bytes-per-lease", default_value_t = 1 << 30, value_name = "BYTES")]
    pub bytes_per_second: u32,
}

/// Why a stream of a lease is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The lease has as many streams as it can have.
    #[error("the lease has {0} streams, which is the limit; close some of them")]
    Streams(u32),
    /// The lease opens streams too fast.
    #[error("the lease opens more than {0} streams a second; reuse connections, or try again later")]
    NewStreams(u32),
}

/// A rate with a burst, by the virtual scheduling algorithm of GCRA (ITU-T I.371, annex A).
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: u32,
    burst: Duration,
    /// When the rate would have been used up by what was taken.
    used_until: Mutex<Instant>,
}

impl Rate {
    /// `per_second` units a second, and at once those of a time of `burst`.
    pub(crate) fn new(per_second: u32, burst: Duration) -> Self {
        Self {
            per_second: per_second.max(1),
            burst,
            used_until: Mutex::new(Instant::now()),
        }
    }

    /// The time of so many units at the rate.
    fn time_of(&self, units: u32) -> Duration {
        Duration::from_nanos(1_000_000_000 * u64::from(units) / u64::from(self.per_second))
    }

    /// Takes units, and returns how long to wait before taking more.
    fn take(&self, units: u32) -> Duration {
        let now = Instant::now();
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        *used_until = (*used_until).max(now) + self.time_of(units);
        used_until.saturating_duration_since(now + self.burst)
    }

    /// Takes one unit if the rate permits it.
    pub(crate) fn try_take(&self) -> bool {
        let now = Instant::now();
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*used_until).max(now) + self.time_of(1);
        let permitted = next <= now + self.burst;
        if permitted {
            *used_until = next;
        }
        permitted
    }
}

/// What one lease uses.
#[derive(Debug)]
struct Usage {
    streams: AtomicU32,
    new_streams: Rate,
    bytes: Rate,
}

/// What every lease uses, within the same limits for each.
#[derive(Debug)]
pub struct Usages {
    limits: Limits,
    by_lease: Mutex<HashMap<String, Arc<Usage>>>,
}

/// Leases without streams are forgotten when there are more.
const REMEMBERED: usize = 4096;

impl Usages {
    /// Nothing is used.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            by_lease: Mutex::default(),
        }
    }

    /// A place for one more stream of a lease, which the stream holds.
    ///
    /// # Errors
    /// When a limit of the lease is reached.
    pub fn admit(&self, lease_uid: &str) -> Result<Admitted, LimitReached> {
        let mut by_lease = self.by_lease.lock().unwrap_or_else(PoisonError::into_inner);
        if by_lease.len() >= REMEMBERED && !by_lease.contains_key(lease_uid) {
            by_lease.retain(|_, usage| usage.streams.load(Ordering::Relaxed) > 0);
        }
        let usage = by_lease.entry(lease_uid.to_owned()).or_insert_with(|| {
            Arc::new(Usage {
                streams: AtomicU32::new(0),
                new_streams: Rate::new(self.limits.new_streams_per_second, Duration::from_secs(10)),
                bytes: Rate::new(self.limits.bytes_per_second, Duration::from_secs(1)),
            })
        });
        if usage.streams.load(Ordering::Relaxed) >= self.limits.streams {
            return Err(LimitReached::Streams(self.limits.streams));
        }
        if !usage.new_streams.try_take() {
            return Err(LimitReached::NewStreams(self.limits.new_streams_per_second));
        }
        // Only under the lock does it grow.
        usage.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted { usage: usage.clone() })
    }
}

/// The place of one stream among those of its lease.
#[derive(Debug)]
pub struct Admitted {
    usage: Arc<Usage>,
}

impl Admitted {
    /// Counts bytes that were moved, and returns how long to wait before moving more.
    fn moved(&self, bytes: usize) -> Duration {
        self.usage.bytes.take(u32::try_from(bytes).unwrap_or(u32::MAX))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.usage.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that keeps to the rate of its lease.
#[derive(Debug)]
pub struct Paced<S> {
    stream: S,
    admitted: Admitted,
    read_pause: Option<Pin<Box<Sleep>>>,
    write_pause: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    /// The stream, which takes its place among those of the lease.
    pub const fn new(stream: S, admitted: Admitted) -> Self {
        Self {
            stream,
            admitted,
            read_pause: None,
            write_pause: None,
        }
    }

    /// The stream itself.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    fn pause(&self, bytes: usize) -> Option<Pin<Box<Sleep>>> {
        let pause = self.admitted.moved(bytes);
        (!pause.is_zero()).then(|| Box::pin(time::sleep(pause)))
    }
}

/// Whether a pause is over.
fn poll_pause(pause: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(sleep) = pause {
        ready!(sleep.as_mut().poll(cx));
        *pause = None;
    }
    Poll::Ready(())
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(poll_pause(&mut self.read_pause, cx));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.read_pause = self.pause(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(poll_pause(&mut self.write_pause, cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.write_pause = self.pause(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn usages(streams: u32, new_streams_per_second: u32, bytes_per_second: u32) -> Usages {
        Usages::new(Limits {
            streams,
            new_streams_per_second,
            bytes_per_second,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_at_its_limit_leaves_the_others_theirs() {
        let usages = usages(2, 100, 1000);
        let held: Vec<_> = (0..2).map(|_| usages.admit("a").unwrap()).collect();
        assert_eq!(usages.admit("a").unwrap_err(), LimitReached::Streams(2));
        usages.admit("b").unwrap();
        drop(held);
        usages.admit("a").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn new_streams_come_at_their_rate_after_a_burst() {
        let usages = usages(1000, 2, 1000);
        let burst = (0..100).take_while(|_| usages.admit("a").is_ok()).count();
        assert_eq!(burst, 20);
        assert_eq!(usages.admit("a").unwrap_err(), LimitReached::NewStreams(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        let later = (0..100).take_while(|_| usages.admit("a").is_ok()).count();
        assert_eq!(later, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_wait_for_their_rate() {
        let usages = usages(10, 10, 1000);
        let stream = usages.admit("a").unwrap();
        assert_eq!(stream.moved(1000), Duration::ZERO);
        assert_eq!(stream.moved(500), Duration::from_millis(500));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(stream.moved(500), Duration::ZERO);
    }
    #[tokio::test(start_paused = true)]
    async fn a_stream_keeps_to_the_rate_of_its_lease() {
        let usages = usages(10, 10, 100_000);
        let (mut user, gateway) = tokio::io::duplex(1 << 20);
        let mut paced = Paced::new(gateway, usages.admit("lease").unwrap());
        let begun = Instant::now();
        let read = async {
            user.write_all(&vec![1; 500_000]).await.unwrap();
            user.shutdown().await.unwrap();
            let mut all = Vec::new();
            paced.read_to_end(&mut all).await.unwrap();
            all
        };
        assert_eq!(read.await.len(), 500_000);
        assert!(
            begun.elapsed() >= Duration::from_millis(3400),
            "{:?}",
            begun.elapsed()
        );
        let begun = Instant::now();
        paced.write_all(&vec![1; 300_000]).await.unwrap();
        paced.write_all(b"and more").await.unwrap();
        assert!(
            begun.elapsed() >= Duration::from_millis(1900),
            "{:?}",
            begun.elapsed()
        );
    }
}
