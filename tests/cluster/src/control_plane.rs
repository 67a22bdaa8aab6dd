//! etcd, the API server, the controller manager, the scheduler, and CoreDNS beside them, in one network
//! namespace. Nothing here runs as a pod: a cluster must be able to start without pulling an image.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use nix::sys::sysinfo::sysinfo;

use crate::cgroup::Cgroups;
use crate::credentials::Authority;
use crate::network::{self, DNS_SERVICE, KUBERNETES_SERVICE, Network};
use crate::process::{self, Launch, Probe, Process, Roster};
use leasehold_testtools::Tools;

pub(crate) const API_PORT: u16 = 6443;

/// The name of the clusters' domain.
const DOMAIN: &str = "cluster.local";

/// What a component of the control plane needs to know to be launched.
pub(crate) struct Site<'a> {
    pub(crate) tools: &'a Tools,
    pub(crate) network: Network,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) authority: &'a Authority,
    pub(crate) roster: &'a Roster,
    /// The cluster's run directory.
    pub(crate) directory: &'a Path,
}

impl Site<'_> {
    pub(crate) fn api_url(&self) -> String {
        format!("https://{}:{API_PORT}", self.network.control_plane())
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// A component in the control plane's namespace.
    pub(crate) fn launch(
        &self,
        name: &str,
        program: &Path,
        arguments: Vec<String>,
        probe: Probe,
    ) -> Result<Launch> {
        let namespace = self.network.control_plane_namespace();
        Ok(Launch {
            name: name.to_owned(),
            enter: vec![
                "nsenter".to_owned(),
                format!("--net={}", network::path(&namespace)),
                "--".to_owned(),
            ],
            program: program.to_owned(),
            arguments,
            // Go's collector at its default takes a fifth of a busy API server's time. It may leave more lying about, up to
            // half of the machine's memory: with 10,000 leases it would be more than there is.
            environment: vec![
                ("GOGC".to_owned(), "300".to_owned()),
                ("GOMEMLIMIT".to_owned(), (sysinfo()?.ram_total() / 2).to_string()),
            ],
            join: self.cgroups.join_files()?,
            log: self.logs().join(format!("{name}.log")),
            probe,
        })
    }

    /// The link beside the Kubernetes binary that makes it that component.
    pub(crate) fn kubernetes(&self, component: &str) -> PathBuf {
        self.tools.kubernetes.with_file_name(component)
    }

    /// A kubeconfig in the run directory, for a component with that name.
    pub(crate) fn kubeconfig(&self, file: &str, user: &str, groups: &[&str]) -> Result<String> {
        let path = self.directory.join(format!("{file}.kubeconfig"));
        let path = self
            .authority
            .write_kubeconfig(&path, &self.api_url(), user, groups)?;
        text(&path)
    }
}

pub(crate) async fn etcd(site: &Site<'_>) -> Result<Process> {
    let arguments = flags(&[
        ("data-dir", &text(&site.directory.join("etcd"))?),
        // A test's state may die with the machine.
        ("unsafe-no-fsync", "true"),
        ("listen-client-urls", "http://127.0.0.1:2379"),
        ("advertise-client-urls", "http://127.0.0.1:2379"),
        ("listen-peer-urls", "http://127.0.0.1:2380"),
        ("initial-advertise-peer-urls", "http://127.0.0.1:2380"),
        ("initial-cluster", "default=http://127.0.0.1:2380"),
        ("quota-backend-bytes", "8589934592"),
        ("log-level", "warn"),
    ]);
    let launch = site.launch(
        "etcd",
        &site.kubernetes("etcd"),
        arguments,
        process::listens_on(2379),
    )?;
    site.roster.start(launch).await
}

pub(crate) async fn api_server(site: &Site<'_>, admin: Client) -> Result<Process> {
    let address = site.network.control_plane();
    let serving = site.authority.issue_files(
        "kube-apiserver",
        "kube-apiserver",
        &[],
        &[
            IpAddr::V4(address),
            IpAddr::V4(KUBERNETES_SERVICE),
            "127.0.0.1".parse()?,
        ],
        &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ],
    )?;
    let to_kubelets = site.authority.issue_files(
        "kubelet-client",
        "kube-apiserver-kubelet-client",
        &["system:masters"],
        &[],
        &[],
    )?;
    let authority = text(&site.authority.certificate_file())?;
    let arguments = flags(&[
        ("etcd-servers", "http://127.0.0.1:2379"),
        ("secure-port", &API_PORT.to_string()),
        ("bind-address", "0.0.0.0"),
        ("advertise-address", &address.to_string()),
        ("client-ca-file", &authority),
        ("tls-cert-file", &text(&serving.certificate)?),
        ("tls-private-key-file", &text(&serving.key)?),
        ("cert-dir", &text(site.directory)?),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local",
        ),
        (
            "service-account-key-file",
            &text(&site.authority.token_public_key())?,
        ),
        (
            "service-account-signing-key-file",
            &text(&site.authority.token_key())?,
        ),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("allow-privileged", "true"),
        ("service-cluster-ip-range", network::SERVICES),
        ("kubelet-client-certificate", &text(&to_kubelets.certificate)?),
        ("kubelet-client-key", &text(&to_kubelets.key)?),
        ("kubelet-certificate-authority", &authority),
        // Else logs and exec look a node's name up in the host's DNS.
        ("kubelet-preferred-address-types", "InternalIP"),
        // No kube-proxy runs beside it: webhooks are called at their pods.
        ("enable-aggregator-routing", "true"),
        ("profiling", "false"),
    ]);
    let probe: Probe = Arc::new(move |_| {
        let admin = admin.clone();
        Box::pin(async move {
            let request = http_get("/readyz")?;
            let answer = admin.request_text(request).await?;
            ensure!(answer == "ok", "/readyz says {answer}");
            Ok(())
        })
    });
    let launch = site.launch(
        "kube-apiserver",
        &site.kubernetes("kube-apiserver"),
        arguments,
        probe,
    )?;
    site.roster.start(launch).await
}

pub(crate) async fn controller_manager(site: &Site<'_>) -> Result<Process> {
    let kubeconfig = site.kubeconfig("kube-controller-manager", "system:kube-controller-manager", &[])?;
    let arguments = flags(&[
        ("kubeconfig", &kubeconfig),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("root-ca-file", &text(&site.authority.certificate_file())?),
        (
            "service-account-private-key-file",
            &text(&site.authority.token_key())?,
        ),
        ("use-service-account-credentials", "true"),
        ("leader-elect", "false"),
        ("bind-address", "127.0.0.1"),
        ("cert-dir", &text(site.directory)?),
        // Its default of 20 a second is what a run of thousands of objects would measure.
        ("kube-api-qps", "500"),
        ("kube-api-burst", "1000"),
    ]);
    let program = site.kubernetes("kube-controller-manager");
    let launch = site.launch(
        "kube-controller-manager",
        &program,
        arguments,
        process::listens_on(10257),
    )?;
    site.roster.start(launch).await
}

pub(crate) async fn scheduler(site: &Site<'_>) -> Result<Process> {
    let kubeconfig = site.kubeconfig("kube-scheduler", "system:kube-scheduler", &[])?;
    let arguments = flags(&[
        ("kubeconfig", &kubeconfig),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("leader-elect", "false"),
        ("bind-address", "127.0.0.1"),
        ("cert-dir", &text(site.directory)?),
        ("kube-api-qps", "500"),
        ("kube-api-burst", "1000"),
    ]);
    let launch = site.launch(
        "kube-scheduler",
        &site.kubernetes("kube-scheduler"),
        arguments,
        process::listens_on(10259),
    )?;
    site.roster.start(launch).await
}

/// Names of services and pods; there are no others, and asking for one is answered so at once. [`DNS_SERVICE`] leads there.
pub(crate) async fn dns(site: &Site<'_>) -> Result<Process> {
    let kubeconfig = site.kubeconfig("coredns", "leasehold:coredns", &["system:masters"])?;
    let address = site.network.name_server();
    let corefile = site.directory.join("Corefile");
    std::fs::write(
        &corefile,
        format!(
            "{DOMAIN} in-addr.arpa ip6.arpa {{\n    bind {address}\n    errors\n    ready 127.0.0.1:8181\n    \
             kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{\n        kubeconfig {kubeconfig}\n        \
             pods insecure\n        ttl 5\n    }}\n}}\n\
             . {{\n    bind {address}\n    template ANY ANY {{\n        rcode NXDOMAIN\n    }}\n}}\n"
        ),
    )?;
    let arguments = vec!["-conf".to_owned(), text(&corefile)?];
    let launch = site.launch("coredns", &site.tools.coredns, arguments, process::listens_on(53))?;
    site.roster.start(launch).await
}

/// What a node tells its pods about names: server and domain.
pub(crate) fn dns_of_pods() -> (String, &'static str) {
    (DNS_SERVICE.to_string(), DOMAIN)
}

/// The process behind the default StorageClass; see kubernetes/volumes.go.
pub(crate) async fn local_volumes(site: &Site<'_>) -> Result<Process> {
    let kubeconfig = site.kubeconfig("local-volumes", "leasehold:local-volumes", &["system:masters"])?;
    let root = site.directory.join("volumes");
    std::fs::create_dir_all(&root)?;
    let arguments = flags(&[("kubeconfig", &kubeconfig), ("root", &text(&root)?)]);
    let launch = site.launch(
        "local-volumes",
        &site.kubernetes("local-volumes"),
        arguments,
        process::at_once(),
    )?;
    site.roster.start(launch).await
}

pub(crate) fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .context("build a request")
}

/// `--name=value` for each.
pub(crate) fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

/// A path in a flag or a configuration file.
pub(crate) fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} isn't UTF-8: use another cache", path.display()))
}
