//! TLS of the end that dials.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
    version::TLS13,
};

/// Why the roots can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of the authority has no usable certificate.
    #[error("the certificate authority can't be used: {0}")]
    Authority(String),
    /// The system has no roots.
    #[error("the system has no root certificates; name a certificate authority: {0}")]
    NoRoots(String),
    /// The library refuses the settings.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// Returns TLS for a connection, or why it can't be used.
pub type TlsSource = Arc<dyn Fn() -> Result<Arc<ClientConfig>, TlsError> + Send + Sync>;

/// TLS by [`client`] with the present content of a file, which is replaced before its authority expires.
///
/// # Errors
/// When it can't be used now: a later failure only fails a connection.
pub fn authority_file(path: Option<PathBuf>) -> Result<TlsSource, TlsError> {
    let source: TlsSource = Arc::new(move || {
        let authority = path
            .as_ref()
            .map(|path| {
                std::fs::read(path)
                    .map_err(|error| TlsError::Authority(format!("read {}: {error}", path.display())))
            })
            .transpose()?;
        client(authority.as_deref())
    });
    source()?;
    Ok(source)
}

/// TLS 1.3 that trusts the certificates of a PEM file alone, or without one the roots of the system.
///
/// # Errors
/// When the file or the system has no usable certificate.
pub fn client(authority: Option<&[u8]>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = authority {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| TlsError::Authority(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| TlsError::Authority(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TlsError::Authority("its PEM file has no certificate".into()));
        }
    } else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            let errors: Vec<_> = native.errors.iter().map(ToString::to_string).collect();
            return Err(TlsError::NoRoots(errors.join(", ")));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_without_certificates_is_refused() {
        for pem in [
            "",
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(
                matches!(client(Some(pem.as_bytes())), Err(TlsError::Authority(_))),
                "{pem}"
            );
        }
    }
}
