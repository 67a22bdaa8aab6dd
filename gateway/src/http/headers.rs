//! Headers on their way through: what belongs to one connection ends here (RFC 9110, section 7.6.1), and what tells about
//! the user is set by the gateway alone.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header, uri::Authority};

/// Headers of one connection.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
/// Headers by which a proxy tells about the user. Those of the user would be lies.
const FORWARDED: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Whether the request asks for a WebSocket (RFC 6455, section 4.1). Other upgrades end at the gateway: `h2c` would let
/// requests pass unseen.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let asks = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value
            .split(',')
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
    };
    headers.get_all(header::CONNECTION).iter().any(asks)
        && headers
            .get(header::UPGRADE)
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether the request is one of gRPC, which needs HTTP/2 up to the program.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes().starts_with(b"application/grpc")
            && !kind.as_bytes().starts_with(b"application/grpc-web")
    })
}

/// Removes the headers of one connection, and those that `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Joins cookies that came in several fields, as HTTP/2 permits and HTTP/1.1 does not (RFC 9113, section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// Tells the program who asked for what.
pub(crate) fn set_forwarded(headers: &mut HeaderMap, user: IpAddr, host: &Authority) {
    for name in FORWARDED {
        headers.remove(name);
        // To many programs an underscore is a hyphen.
        headers.remove(name.replace('-', "_"));
    }
    let values = [
        ("x-forwarded-for", user.to_string()),
        ("x-forwarded-host", host.to_string()),
        ("x-forwarded-proto", "https".to_owned()),
    ];
    for (name, value) in values {
        // An address or an authority is visible ASCII.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    if let Ok(host) = HeaderValue::from_str(host.as_str()) {
        headers.insert(header::HOST, host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = of
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn headers_of_the_connection_end_here() {
        let mut all = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
            ("authorization", "Bearer of-the-program"),
        ]);
        remove_hop_by_hop(&mut all);
        let left: Vec<_> = all.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept", "authorization"]);
    }

    #[test]
    fn who_asks_is_told_by_the_gateway() {
        let mut all = headers(&[
            ("x-forwarded-for", "127.0.0.1"),
            ("x-real-ip", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x_forwarded_for", "127.0.0.1"),
        ]);
        let host = Authority::from_static("a.leases.example.org:8443");
        set_forwarded(&mut all, "192.0.2.7".parse().unwrap(), &host);
        let mut left: Vec<_> = all
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "host: a.leases.example.org:8443",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: a.leases.example.org:8443",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn cookies_are_one_field() {
        let mut all = headers(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        join_cookies(&mut all);
        let left: Vec<_> = all.get_all("cookie").iter().collect();
        assert_eq!(left, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let asks = |of: &[(&'static str, &'static str)]| asks_for_websocket(&headers(of));
        assert!(asks(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket")
        ]));
        assert!(!asks(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        assert!(!asks(&[("upgrade", "websocket")]));
        assert!(!asks(&[("connection", "upgrade")]));
    }
}
