//! One stream of the tunnel as a byte stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{tunnel::Counted, wire::SEND_BUFFER};

/// A CONNECT stream as a byte stream. A shutdown ends its direction alone; a drop without one resets the stream, so that the
/// other end does not take it for complete.
#[derive(Debug)]
pub struct TunnelStream {
    received: RecvStream,
    sent: SendStream<Bytes>,
    /// What was received and not read yet.
    unread: Bytes,
    is_shut_down: bool,
    counted: Option<Counted>,
}

impl TunnelStream {
    pub(crate) const fn new(received: RecvStream, sent: SendStream<Bytes>) -> Self {
        Self {
            received,
            sent,
            unread: Bytes::new(),
            is_shut_down: false,
            counted: None,
        }
    }

    /// It counts among the streams of its connection.
    pub(crate) fn counted(self, counted: Counted) -> Self {
        // A stream has a destructor, so it can't be taken apart.
        let mut stream = self;
        stream.counted = Some(counted);
        stream
    }
}

fn failed(error: h2::Error) -> io::Error {
    let kind = if error.is_io() {
        io::ErrorKind::ConnectionAborted
    } else {
        io::ErrorKind::ConnectionReset
    };
    io::Error::new(kind, error)
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.received.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        // Only now may the other end send more: what nobody reads stays within the window.
        let released = self.received.flow_control().release_capacity(length);
        Poll::Ready(released.map_err(failed))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.is_shut_down {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.sent.reserve_capacity(data.len().min(SEND_BUFFER));
        while self.sent.capacity() == 0 {
            match ready!(self.sent.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = data.len().min(self.sent.capacity());
        let sent = self
            .sent
            .send_data(Bytes::copy_from_slice(&data[..length]), false);
        Poll::Ready(sent.map(|()| length).map_err(failed))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The task of the connection sends what it was given.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_shut_down {
            return Poll::Ready(Ok(()));
        }
        self.is_shut_down = true;
        Poll::Ready(self.sent.send_data(Bytes::new(), true).map_err(failed))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if !self.is_shut_down {
            self.sent.send_reset(Reason::CANCEL);
        }
    }
}
