//! A TCP connection that does not look complete when it was broken off.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection that is reset when it is dropped, unless both directions have ended before. A program can't tell an ordinary end from
/// the end of its data.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    is_complete: bool,
}

impl Tcp {
    /// The connection, whose data is sent without delay.
    ///
    /// # Errors
    /// When the connection has failed already.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            is_complete: false,
        })
    }

    /// Both directions have ended.
    pub const fn complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if !self.is_complete {
            drop(self.stream.set_zero_linger());
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
