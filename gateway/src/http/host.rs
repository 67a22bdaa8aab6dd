//! Which lease a host names.

use http::{HeaderMap, Uri, header, uri::Authority};

/// Why a request names no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    /// There is no host, there are several, or they differ (RFC 9112, section 3.2).
    #[error("the request must have exactly one host")]
    Ambiguous,
    /// The host is not directly below the domain of the gateway.
    #[error("the host is not a name of this gateway")]
    Foreign,
}

/// The host of a request: of the target, or of the header `Host`. If both are there, they must agree.
pub(crate) fn of_request(uri: &Uri, headers: &HeaderMap) -> Result<Authority, HostError> {
    let mut of_header = None;
    for value in headers.get_all(header::HOST) {
        if of_header.is_some() {
            return Err(HostError::Ambiguous);
        }
        let authority = Authority::try_from(value.as_bytes()).map_err(|_| HostError::Ambiguous)?;
        of_header = Some(authority);
    }
    let authority = match (uri.authority(), of_header) {
        (Some(of_target), Some(of_header)) if *of_target != of_header => return Err(HostError::Ambiguous),
        (Some(authority), _) => authority.clone(),
        (None, Some(authority)) => authority,
        (None, None) => return Err(HostError::Ambiguous),
    };
    // A user name in an authority has no meaning here.
    if authority.as_str().contains('@') {
        return Err(HostError::Ambiguous);
    }
    Ok(authority)
}

/// The label directly below the domain, in lower case.
pub(crate) fn label(host: &str, domain: &str) -> Result<String, HostError> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let label = host
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix('.'))
        .ok_or(HostError::Foreign)?;
    if label.is_empty() || label.contains('.') {
        return Err(HostError::Foreign);
    }
    Ok(label.to_owned())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    const DOMAIN: &str = "leases.example.org";

    fn host(uri: &str, hosts: &[&str]) -> Result<String, HostError> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        of_request(&head.uri, &head.headers).map(|authority| authority.to_string())
    }

    #[test]
    fn a_request_has_one_host() {
        let one = Ok("a.leases.example.org".to_owned());
        assert_eq!(host("/", &["a.leases.example.org"]), one);
        assert_eq!(host("https://a.leases.example.org/", &[]), one);
        assert_eq!(
            host("https://a.leases.example.org/", &["a.leases.example.org"]),
            one
        );
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a.leases.example.org", "b.leases.example.org"]),
            ("/", &["a.leases.example.org", "a.leases.example.org"]),
            ("https://a.leases.example.org/", &["b.leases.example.org"]),
            ("/", &["user@a.leases.example.org"]),
            ("/", &["a b"]),
            ("/", &[""]),
        ] {
            assert_eq!(host(uri, hosts), Err(HostError::Ambiguous), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_label_is_directly_below_the_domain() {
        for host in [
            "http-a-x.leases.example.org",
            "HTTP-a-x.Leases.example.ORG",
            "http-a-x.leases.example.org.",
        ] {
            assert_eq!(label(host, DOMAIN), Ok("http-a-x".into()), "{host}");
        }
        for host in [
            "leases.example.org",
            ".leases.example.org",
            "a.b.leases.example.org",
            "a.leases.example.org.evil.org",
            "evilleases.example.org",
            "10.0.0.1",
            "[::1]",
            "",
            ".",
        ] {
            assert_eq!(label(host, DOMAIN), Err(HostError::Foreign), "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_text_names_another_domain(text in ".{0,80}") {
            if let Ok(label) = label(&text, DOMAIN) {
                let host = format!("{}.{}", label, DOMAIN);
                prop_assert!(text.to_ascii_lowercase().starts_with(&host));
            }
        }
    }
}
