//! Who is who in a cluster: a certificate authority, an identity for each component with the name that
//! RBAC and the Node authorizer know, and kubeconfigs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

/// A certificate and its key, as PEM.
pub(crate) struct Identity {
    certificate: String,
    key: String,
}

/// The same, as files for a program's flags.
pub(crate) struct IdentityFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The cluster's certificate authority: for servers and for clients.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: String,
    directory: PathBuf,
}

impl Authority {
    /// Makes an authority, and writes its certificate and the key of ServiceAccount tokens.
    pub(crate) fn new(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("leasehold-testcluster", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let tokens = KeyPair::generate()?;
        let authority = Self {
            issuer: Issuer::new(params, key),
            certificate,
            directory,
        };
        std::fs::write(authority.certificate_file(), &authority.certificate)?;
        std::fs::write(authority.token_key(), tokens.serialize_pem())?;
        std::fs::write(authority.token_public_key(), tokens.public_key_pem())?;
        Ok(authority)
    }

    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    pub(crate) fn token_key(&self) -> PathBuf {
        self.directory.join("tokens.key")
    }

    pub(crate) fn token_public_key(&self) -> PathBuf {
        self.directory.join("tokens.pub")
    }

    /// An identity that may act as client and as server at the given addresses.
    pub(crate) fn issue(
        &self,
        user: &str,
        groups: &[&str],
        addresses: &[IpAddr],
        dns: &[&str],
    ) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        for host in dns {
            params
                .subject_alt_names
                .push(SanType::DnsName((*host).try_into()?));
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// [`issue`](Self::issue), into files of that name.
    pub(crate) fn issue_files(
        &self,
        file: &str,
        user: &str,
        groups: &[&str],
        addresses: &[IpAddr],
        dns: &[&str],
    ) -> Result<IdentityFiles> {
        let identity = self.issue(user, groups, addresses, dns)?;
        let files = IdentityFiles {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
        };
        std::fs::write(&files.certificate, identity.certificate)?;
        std::fs::write(&files.key, identity.key)?;
        Ok(files)
    }

    /// A kubeconfig for a user of those groups.
    pub(crate) fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> Result<String> {
        let identity = self.issue(user, groups, &[], &[])?;
        kubeconfig(
            server,
            &self.certificate,
            &json!({
                "client-certificate-data": BASE64.encode(identity.certificate.as_bytes()),
                "client-key-data": BASE64.encode(identity.key.as_bytes()),
            }),
        )
    }

    pub(crate) fn write_kubeconfig(
        &self,
        path: &Path,
        server: &str,
        user: &str,
        groups: &[&str],
    ) -> Result<PathBuf> {
        std::fs::write(path, self.kubeconfig(server, user, groups)?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_owned())
    }

    /// A kubeconfig for a bearer token.
    pub(crate) fn kubeconfig_of_token(&self, server: &str, token: &str) -> Result<String> {
        kubeconfig(server, &self.certificate, &json!({ "token": token }))
    }
}

fn kubeconfig(server: &str, authority: &str, user: &serde_json::Value) -> Result<String> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": {
            "server": server,
            "certificate-authority-data": BASE64.encode(authority.as_bytes()),
        }}],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" }}],
        "current-context": "test",
    });
    Ok(serde_norway::to_string(&config)?)
}

fn name(user: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name
}
