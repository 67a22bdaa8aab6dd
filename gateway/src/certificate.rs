//! The gateway's certificate, which is read again when its files change.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::time;

/// How often the files are read.
const READ_EVERY: Duration = Duration::from_secs(10);

/// The certificate that is served.
pub(crate) struct Certificate {
    directory: PathBuf,
    current: RwLock<(Vec<u8>, Arc<CertifiedKey>)>,
}

impl Certificate {
    /// Reads the files.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Arc<Self>> {
        let current = load(directory)?;
        Ok(Arc::new(Self {
            directory: directory.to_owned(),
            current: RwLock::new(current),
        }))
    }

    /// Reads the files again and again. A certificate that can't be used leaves the one before in place.
    pub(crate) async fn reload(self: Arc<Self>) {
        loop {
            time::sleep(READ_EVERY).await;
            match load(&self.directory) {
                Ok(next) => {
                    let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                    if current.0 != next.0 {
                        *current = next;
                        tracing::info!("the certificate was replaced");
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %format_args!("{error:#}"), "the certificate can't be read again")
                }
            }
        }
    }

    /// TLS for users: HTTP/2 or HTTP/1.1.
    pub(crate) fn for_users(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        self.config(&[&TLS13, &TLS12], &[b"h2", b"http/1.1"])
    }

    /// TLS for connectors and replicas: 1.3 alone.
    pub(crate) fn for_tunnels(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        self.config(&[&TLS13], &[b"http/1.1"])
    }

    fn config(
        self: &Arc<Self>,
        versions: &[&'static rustls::SupportedProtocolVersion],
        protocols: &[&[u8]],
    ) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .context("choose TLS versions")?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.1.clone())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The content of the files, and what it means.
fn load(directory: &Path) -> anyhow::Result<(Vec<u8>, Arc<CertifiedKey>)> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let (mut chain_pem, key_pem) = (read("tls.crt")?, read("tls.key")?);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<_, _>>()
        .context("tls.crt is not a PEM file with certificates")?;
    ensure!(!chain.is_empty(), "tls.crt has no certificate");
    let key =
        PrivateKeyDer::from_pem_slice(&key_pem).context("tls.key is not a PEM file with a private key")?;
    let certified =
        CertifiedKey::from_der(chain, key, &provider()).context("tls.key is not the key of tls.crt")?;
    chain_pem.extend(key_pem);
    Ok((chain_pem, Arc::new(certified)))
}
