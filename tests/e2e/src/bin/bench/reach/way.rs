//! A way to a port of the pod: plain TCP that begins with a ClientHello, which leads it through the gateway.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use leasehold_e2e::client_hello;

/// How long a connection may take to open, and a byte to come.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes that are read or written at once.
const CHUNK: usize = 256 << 10;

/// A way to one port of the pod.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    hello: Vec<u8>,
}

impl Way {
    /// A way by that address. `host` is the name by which the gateway knows the port; the pod ignores it.
    pub(crate) fn new(address: SocketAddr, host: &str) -> anyhow::Result<Self> {
        let hello = client_hello(host)?;
        Ok(Self { address, hello })
    }

    fn open(&self, limit: Duration) -> anyhow::Result<TcpStream> {
        let mut tcp = TcpStream::connect_timeout(&self.address, limit)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(limit))?;
        tcp.set_write_timeout(Some(limit))?;
        tcp.write_all(&self.hello)?;
        Ok(tcp)
    }

    /// A stream to the port that returns each byte, over which the first bytes have returned within that time.
    pub(crate) fn echo(&self, limit: Duration) -> anyhow::Result<TcpStream> {
        let mut tcp = self.open(limit)?;
        let mut returned = vec![0; self.hello.len()];
        tcp.read_exact(&mut returned)?;
        ensure!(returned == self.hello, "the bytes were changed");
        tcp.set_read_timeout(Some(LIMIT))?;
        Ok(tcp)
    }

    /// A stream to the port that sends so many bytes.
    pub(crate) fn source(&self, bytes: usize) -> anyhow::Result<TcpStream> {
        let mut tcp = self.open(LIMIT)?;
        tcp.write_all(&(bytes as u64).to_be_bytes())?;
        Ok(tcp)
    }

    /// Downloads so many bytes.
    pub(crate) fn download(&self, bytes: usize) -> anyhow::Result<()> {
        let mut tcp = self.source(bytes)?;
        let (mut chunk, mut received) = (vec![0; CHUNK], 0);
        loop {
            match tcp.read(&mut chunk).context("a download")? {
                0 => break,
                read => received += read,
            }
        }
        ensure!(received == bytes, "{received} of {bytes} bytes came");
        Ok(())
    }

    /// Uploads so many bytes, until the pod has them.
    pub(crate) fn upload(&self, bytes: usize) -> anyhow::Result<()> {
        let mut tcp = self.open(LIMIT)?;
        let (chunk, mut left) = (vec![7; CHUNK], bytes);
        while left > 0 {
            left -= tcp.write(&chunk[..left.min(CHUNK)]).context("an upload")?;
        }
        tcp.shutdown(Shutdown::Write)?;
        let mut taken = [0; 8];
        tcp.read_exact(&mut taken).context("the end of an upload")?;
        let expected = self.hello.len() + bytes;
        ensure!(
            u64::from_be_bytes(taken) == expected as u64,
            "the pod got another number of bytes"
        );
        Ok(())
    }
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}
