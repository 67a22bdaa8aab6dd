//! A site on loopback: an authority, replicas of a gateway, connectors, and two programs that they reach.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use leasehold_tunnel::{
    Authenticate, Denied, Forward, Identity, Links, Refused, Serve, StreamRequest, TunnelStream, Tunnels,
    accept::Acceptor,
    dial::Credentials,
    dial::DialError,
    dial::token_file,
    links::Observe,
    serve::{self, ServeError},
    splice,
    splice::Timeouts,
    tcp::Tcp,
    tls,
};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const NAME: &str = "tunnel.gateway.test";

/// Waits until something holds.
pub async fn within(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "not within 10 s: {what}"
        );
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends bytes, ends the direction, and returns what comes back.
pub async fn echo(stream: &mut TunnelStream, sent: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut received = Vec::new();
    let (read, ()) = tokio::join!(reader.read_to_end(&mut received), async {
        writer.write_all(sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    read.unwrap();
    received
}

/// TLS that does not change.
pub fn always(tls: Arc<ClientConfig>) -> tls::TlsSource {
    Arc::new(move || Ok(tls.clone()))
}

/// Uploads to the sink.
#[derive(Default)]
struct Uploads {
    reading: usize,
    ended: Vec<Result<usize, std::io::ErrorKind>>,
}

pub struct Site {
    pub tls: Arc<ClientConfig>,
    server_tls: Arc<ServerConfig>,
    pub echo_port: u16,
    pub source_port: u16,
    /// It reads, and notes how much and how that ended.
    pub sink_port: u16,
    uploads: Arc<Mutex<Uploads>>,
    files: tempfile::TempDir,
    replicas: Arc<AtomicUsize>,
    programs: Arc<JoinSet<()>>,
}

impl Site {
    pub async fn new() -> Self {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server_tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let mut programs = JoinSet::new();
        let echo_port = program(&mut programs, |mut tcp| async move {
            let (mut reader, mut writer) = tcp.split();
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(writer.shutdown().await);
        })
        .await;
        let source_port = program(&mut programs, |mut tcp| async move {
            while tcp.write_all(&[7; 64 << 10]).await.is_ok() {}
        })
        .await;
        let uploads = Arc::new(Mutex::new(Uploads::default()));
        let noted = uploads.clone();
        let sink_port = program(&mut programs, move |mut tcp| {
            let uploads = noted.clone();
            async move {
                let (mut read, mut buffer) = (0, vec![0; 64 << 10]);
                let end = loop {
                    match tcp.read(&mut buffer).await {
                        Ok(0) => break Ok(read),
                        Ok(bytes) => read += bytes,
                        Err(error) => break Err(error.kind()),
                    }
                    uploads.lock().unwrap().reading = read;
                };
                uploads.lock().unwrap().ended.push(end);
            }
        })
        .await;
        Self {
            sink_port,
            uploads,
            tls: tls::client(Some(authority_pem.as_bytes())).unwrap(),
            server_tls: Arc::new(server_tls),
            echo_port,
            source_port,
            files: tempfile::tempdir().unwrap(),
            replicas: Arc::new(AtomicUsize::new(1)),
            programs: Arc::new(programs),
        }
    }

    pub fn token(&self, provider: &str) -> String {
        format!("token-of-provider/{provider}")
    }

    /// How the uploads to the sink ended: with so many bytes, or with an error.
    pub fn uploads(&self) -> Vec<Result<usize, std::io::ErrorKind>> {
        self.uploads.lock().unwrap().ended.clone()
    }

    /// Bytes of the upload that goes on.
    pub fn uploading(&self) -> usize {
        self.uploads.lock().unwrap().reading
    }

    /// How many replicas the gateways announce.
    pub fn replicas(&self, replicas: usize) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    pub fn credentials(&self, identity: Identity, token: &str) -> Credentials {
        let mut file = tempfile::Builder::new().tempfile_in(self.files.path()).unwrap();
        file.write_all(token.as_bytes()).unwrap();
        let (_, file) = file.keep().unwrap();
        Credentials {
            tls: always(self.tls.clone()),
            server_name: ServerName::try_from(NAME).unwrap(),
            identity,
            token: token_file(file),
        }
    }

    /// Serves the pods on a connection whose Upgrade is over.
    pub fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> JoinHandle<Result<(), ServeError>> {
        tokio::spawn(async move { serve::serve(io, &Arc::new(Pods), &CancellationToken::new()).await })
    }

    pub fn connector(&self, provider: &str) -> Connector {
        Connector {
            credentials: self.credentials(Identity::Provider(provider.into()), &self.token(provider)),
            shutdown: CancellationToken::new(),
        }
    }

    pub async fn gateway(&self, replica: &str) -> Gateway {
        self.gateway_at(replica, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn gateway_at(&self, replica: &str, address: SocketAddr) -> Gateway {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tunnels = Arc::new(Tunnels::default());
        let acceptor = Arc::new(Acceptor {
            replica: replica.to_owned(),
            authenticate: Tokens {
                replicas: self.replicas.clone(),
            },
            tunnels: tunnels.clone(),
        });
        let tls = TlsAcceptor::from(self.server_tls.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, tls) = (acceptor.clone(), tls.clone());
                connections.spawn(async move {
                    if let Ok(io) = tls.accept(tcp).await {
                        acceptor.accept(io, || {}).await;
                    }
                });
            }
        });
        Gateway {
            replica: replica.to_owned(),
            address,
            tunnels,
            task,
        }
    }

    /// Lets `from` serve what `to` asks for.
    pub fn peer(&self, from: &Gateway, to: &Gateway) {
        let identity = Identity::Gateway(from.replica.clone());
        let token = format!("token-of-{identity}");
        let links = Links {
            addresses: vec![to.address.to_string()],
            credentials: self.credentials(identity, &token),
            server: Arc::new(Forward(from.tunnels.clone())),
            observe: Arc::new(Unobserved),
            except: None,
        };
        tokio::spawn(links.run(CancellationToken::new(), Duration::ZERO));
    }

    /// An address that leads to each of the replicas in turn.
    pub async fn balancer(&self, gateways: &[&Gateway]) -> SocketAddr {
        let addresses: Vec<SocketAddr> = gateways.iter().map(|gateway| gateway.address).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let programs = self.programs.clone();
        tokio::spawn(async move {
            let _programs = programs;
            let mut number = 0;
            while let Ok((mut tcp, _)) = listener.accept().await {
                // Each replica twice in a row.
                let to = addresses[number / 2 % addresses.len()];
                number += 1;
                tokio::spawn(async move {
                    let mut other = TcpStream::connect(to).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut tcp, &mut other).await);
                });
            }
        });
        address
    }
}

async fn program<F>(programs: &mut JoinSet<()>, serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    programs.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            connections.spawn(serve(tcp));
        }
    });
    port
}

pub struct Gateway {
    replica: String,
    pub address: SocketAddr,
    pub tunnels: Arc<Tunnels>,
    task: JoinHandle<()>,
}

impl Gateway {
    pub async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

pub struct Connector {
    credentials: Credentials,
    pub shutdown: CancellationToken,
}

impl Connector {
    pub fn link(&self, gateways: &[&Gateway]) {
        self.link_to(
            gateways
                .iter()
                .map(|gateway| gateway.address.to_string())
                .collect(),
        );
    }

    pub fn link_to(&self, addresses: Vec<String>) {
        let links = Links {
            addresses,
            credentials: self.credentials.clone(),
            server: Arc::new(Pods),
            observe: Arc::new(Unobserved),
            except: None,
        };
        tokio::spawn(links.run(self.shutdown.clone(), Duration::from_secs(20)));
    }
}

/// A token is that of the identity that it names.
struct Tokens {
    replicas: Arc<AtomicUsize>,
}

impl Authenticate for Tokens {
    type User = ();

    async fn permits(&self, (): &(), _: &Identity) -> Result<(), Denied> {
        Ok(())
    }

    async fn authenticate(&self, token: &str, identity: &Identity) -> Result<(), Denied> {
        let of = token
            .strip_prefix("token-of-")
            .ok_or_else(|| Denied::Unauthenticated("unknown".into()))?;
        if of == identity.to_string() {
            Ok(())
        } else {
            Err(Denied::Forbidden(identity.clone()))
        }
    }

    fn replicas(&self) -> usize {
        self.replicas.load(Ordering::Relaxed)
    }
}

/// The pods of one lease, at ports of loopback.
pub struct Pods;

impl Serve for Pods {
    type Opened = Tcp;

    async fn open(&self, request: StreamRequest, _: &HeaderMap) -> Result<Tcp, Refused> {
        if request.lease_uid == "slow" {
            time::sleep(Duration::from_secs(60)).await;
        }
        if request.lease_uid != "lease" {
            return Err(Refused::new(StatusCode::FORBIDDEN, "not this lease"));
        }
        TcpStream::connect(("127.0.0.1", request.port))
            .await
            .and_then(Tcp::new)
            .map_err(|error| Refused::new(StatusCode::BAD_GATEWAY, error))
    }

    async fn serve(&self, mut stream: TunnelStream, mut opened: Tcp) {
        if splice(&mut stream, &mut opened, Timeouts::default())
            .await
            .1
            .is_ok()
        {
            opened.complete();
        }
    }
}

struct Unobserved;

impl Observe for Unobserved {
    fn connected(&self, _: usize, _: usize) {}

    fn failed(&self, _: SocketAddr, _: &DialError) {}
}
