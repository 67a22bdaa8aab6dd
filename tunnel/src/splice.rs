//! Bytes from one stream to another, both ways, until both have ended or nothing moves.
//!
//! A stream that is idle holds no buffer: bytes go through one buffer of the thread, and only what a writer does not take at
//! once is kept.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{self, Instant},
};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Chunks that one stream moves before others have their turn.
const CHUNKS_PER_TURN: u32 = 8;
/// How often it is checked whether something moves.
const CHECK_EVERY: Duration = Duration::from_secs(15);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// How long a stream may pause.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A reader that takes nothing of what waits for it, or a stream of which one direction has ended.
    pub unread: Duration,
    /// Nothing in either direction.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            unread: Duration::from_secs(60),
            idle: Duration::from_secs(3600),
        }
    }
}

/// What was moved, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the first stream to the second.
    pub forth: u64,
    /// From the second stream to the first.
    pub back: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reader has ended, and the writer is being shut down.
    Ending,
    Ended,
}

/// One direction.
struct Direction {
    state: State,
    /// What the writer did not take yet.
    rest: Vec<u8>,
    taken: usize,
    moved: u64,
}

impl Direction {
    const fn new() -> Self {
        Self {
            state: State::Open,
            rest: Vec::new(),
            taken: 0,
            moved: 0,
        }
    }

    /// Something waits for the writer.
    const fn is_unread(&self) -> bool {
        self.taken < self.rest.len() || matches!(self.state, State::Ending)
    }

    /// Moves until the direction has ended, or one side is not ready.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        for _ in 0..CHUNKS_PER_TURN {
            while self.taken < self.rest.len() {
                let written = ready!(writer.as_mut().poll_write(cx, &self.rest[self.taken..]))?;
                self.wrote(written)?;
                self.taken += written;
            }
            if !self.rest.is_empty() {
                (self.rest, self.taken) = (Vec::new(), 0);
            }
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(writer.as_mut().poll_shutdown(cx))?;
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Open => {}
            }
            let read = BUFFER.with_borrow_mut(|buffer| {
                let mut filled = ReadBuf::new(buffer);
                if reader.as_mut().poll_read(cx, &mut filled)?.is_pending() {
                    // Nothing more comes now, so what the writer holds is all there is.
                    return match writer.as_mut().poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
                let mut data = filled.filled();
                let length = data.len();
                while !data.is_empty() {
                    match writer.as_mut().poll_write(cx, data)? {
                        Poll::Ready(written) => {
                            self.wrote(written)?;
                            data = &data[written..];
                        }
                        Poll::Pending => {
                            self.rest = data.to_vec();
                            break;
                        }
                    }
                }
                Poll::Ready(io::Result::Ok(length))
            });
            if ready!(read)? == 0 {
                self.state = State::Ending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.moved += bytes as u64;
        Ok(())
    }
}

/// Moves bytes between two streams until both directions have ended. The end of one direction is passed on at once. It
/// returns what was moved until the end or the failure.
///
/// # Errors
/// When a stream fails, or pauses longer than it may ([`io::ErrorKind::TimedOut`]).
pub async fn splice<A, B>(first: &mut A, second: &mut B, timeouts: Timeouts) -> (Moved, io::Result<()>)
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let (mut forth, mut back) = (Direction::new(), Direction::new());
    let mut check = Box::pin(time::sleep(CHECK_EVERY));
    let (mut moved, mut moved_at) = (0, Instant::now());
    let ended = poll_fn(|cx| {
        let (mut first, mut second) = (Pin::new(&mut *first), Pin::new(&mut *second));
        let is_forth_over = forth.poll(cx, first.as_mut(), second.as_mut())?.is_ready();
        let is_back_over = back.poll(cx, second.as_mut(), first.as_mut())?.is_ready();
        if is_forth_over && is_back_over {
            return Poll::Ready(io::Result::Ok(()));
        }
        while check.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            check.as_mut().reset(now + CHECK_EVERY);
            if moved != forth.moved + back.moved {
                (moved, moved_at) = (forth.moved + back.moved, now);
            }
            let waits_for_a_reader = forth.is_unread() || back.is_unread() || is_forth_over || is_back_over;
            let limit = if waits_for_a_reader {
                timeouts.unread
            } else {
                timeouts.idle
            };
            if now.duration_since(moved_at) >= limit {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Poll::Pending
    })
    .await;
    let moved = Moved {
        forth: forth.moved,
        back: back.moved,
    };
    (moved, ended)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_and_the_end_of_a_direction_pass() {
        let (mut user, mut a) = duplex(16);
        let (mut b, mut pod) = duplex(16);
        let spliced = tokio::spawn(async move { splice(&mut a, &mut b, Timeouts::default()).await });
        let question = vec![7; 100_000];
        let asked = question.clone();
        let user = tokio::spawn(async move {
            let mut answer = Vec::new();
            let (mut read, mut write) = tokio::io::split(&mut user);
            tokio::join!(
                async {
                    write.write_all(&asked).await.unwrap();
                    write.shutdown().await.unwrap();
                },
                async { read.read_to_end(&mut answer).await.unwrap() }
            );
            answer
        });
        let mut received = Vec::new();
        pod.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, question);
        pod.write_all(b"answer after the end of the question")
            .await
            .unwrap();
        drop(pod);
        assert_eq!(user.await.unwrap(), b"answer after the end of the question");
        let (moved, ended) = spliced.await.unwrap();
        assert!(ended.is_ok());
        assert_eq!((moved.forth, moved.back), (100_000, 36));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nobody_reads_is_ended() {
        let (mut user, mut a) = duplex(16);
        let (mut b, _pod) = duplex(16);
        user.write_all(b"more").await.unwrap();
        let begun = Instant::now();
        let writes = tokio::spawn(async move { while user.write_all(&[0; 16]).await.is_ok() {} });
        let (_, ended) = splice(&mut a, &mut b, Timeouts::default()).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(
            begun.elapsed() < Duration::from_secs(100),
            "{:?}",
            begun.elapsed()
        );
        drop(a);
        writes.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_stream_on_which_nothing_moves_is_ended() {
        let (user, mut a) = duplex(16);
        let (mut b, _pod) = duplex(16);
        drop(user);
        let begun = Instant::now();
        let (_, ended) = splice(&mut a, &mut b, Timeouts::default()).await;
        assert!(ended.is_err());
        assert!(
            begun.elapsed() < Duration::from_secs(100),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_stays_for_an_hour() {
        let (_user, mut a) = duplex(16);
        let (mut b, _pod) = duplex(16);
        let begun = Instant::now();
        let (_, ended) = splice(&mut a, &mut b, Timeouts::default()).await;
        assert!(ended.is_err());
        assert!(
            begun.elapsed() >= Duration::from_secs(3600),
            "{:?}",
            begun.elapsed()
        );
    }
}
