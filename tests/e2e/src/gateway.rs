//! The gateway of a market in tests: its certificate, the values of the chart, and a user who connects to it.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The first bytes of a TLS connection to a host, by which the gateway passes a connection through.
pub fn client_hello(host: &str) -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())?;
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config.into(), name)?.write_tls(&mut hello)?;
    Ok(hello)
}

/// Domain of the URLs.
pub const DOMAIN: &str = "leases.test";
/// Port of the gateway at every node of the market.
pub const PORT: u16 = 30443;

/// An authority, and the certificate that it has issued to the gateway.
#[derive(Clone, Debug)]
pub struct GatewayFixture {
    authority: String,
    certificate: String,
    key: String,
}

impl GatewayFixture {
    /// Makes keys and certificates.
    pub fn new() -> anyhow::Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![format!("*.{DOMAIN}")])?;
        Ok(Self {
            authority: authority_pem,
            certificate: certificate.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Secrets of the market's cluster.
    pub(crate) fn secrets_of_market(&self) -> [Value; 2] {
        let mut certificate = crate::install::secret(
            "leasehold-gateway",
            &json!({"tls.crt": self.certificate, "tls.key": self.key}),
        );
        certificate["type"] = json!("kubernetes.io/tls");
        [certificate, self.secret_of_authority()]
    }

    /// The Secret with the authority.
    pub(crate) fn secret_of_authority(&self) -> Value {
        crate::install::secret("gateway-authority", &json!({"ca.crt": self.authority}))
    }

    /// Chart values of the gateway. Two replicas on the nodes of the market, at a port of the nodes.
    pub(crate) fn values_of_gateway() -> Value {
        json!({
            "domain": DOMAIN, "authoritySecretName": "gateway-authority", "publicPort": PORT,
            "service": {"type": "NodePort", "nodePort": PORT},
        })
    }

    /// Chart values of the connector of another cluster.
    pub(crate) fn values_of_connector(market: SocketAddr) -> Value {
        json!({
            "gateways": [market.to_string()], "gatewayName": format!("tunnel.{DOMAIN}"),
            "authoritySecretName": "gateway-authority", "kubeconfigSecretName": "market-connector", "egressPorts": [PORT],
        })
    }

    /// A TLS connection of a user to a host of the gateway, with a protocol of ALPN.
    pub async fn connect(
        &self,
        gateway: SocketAddr,
        host: &str,
        protocol: &str,
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut config = (*leasehold_tunnel::tls::client(Some(self.authority.as_bytes()))?).clone();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let tcp = TcpStream::connect(gateway)
            .await
            .context("connect to the gateway")?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned())?;
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .with_context(|| format!("TLS with {host}"))
    }
}
