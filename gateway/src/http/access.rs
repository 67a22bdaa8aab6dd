//! Who may open a URL: everybody, or who has the token of the lease.
//!
//! The token comes in the header `Leasehold-Token`, or once in the query `leasehold-token`, which is exchanged for a cookie
//! of that host alone. `Authorization` belongs to the program.

use http::{
    HeaderMap, HeaderValue, Method, Uri, header,
    uri::{Authority, PathAndQuery},
};
use leasehold_crds::lease::workload::PortAccess;
use leasehold_planner::{gateway::routes::Route, market::lease::access_token};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};

/// Header with the token.
pub(crate) const HEADER: &str = "leasehold-token";
/// Parameter of the query with the token.
const PARAMETER: &str = "leasehold-token";
/// Cookie with the token. The prefix binds it to the host and to TLS (RFC 6265bis, section 4.1.3.2).
const COOKIE: &str = "__Host-leasehold-token";

/// Whether a request is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is passed on, without the token.
    Granted,
    /// The browser is sent to the same place without the token in its query, with a cookie.
    Exchanged {
        /// Path and query without the token.
        location: HeaderValue,
        /// Value of `Set-Cookie`.
        cookie: HeaderValue,
    },
    /// The lease publishes no token.
    NoToken,
    /// The token is missing or wrong.
    Denied,
}

/// Checks the token, and removes it from the request whatever the result.
pub(crate) fn check(
    route: &Route,
    (method, host): (&Method, &Authority),
    uri: &mut Uri,
    headers: &mut HeaderMap,
) -> Access {
    let from_header = headers.remove(HEADER);
    let from_cookie = take_cookie(headers);
    let from_query = take_parameter(uri);
    let digest = match (route.access, &route.token_sha256) {
        (PortAccess::Public, _) => return Access::Granted,
        (PortAccess::Token, None) => return Access::NoToken,
        (PortAccess::Token, Some(digest)) => digest,
    };
    if let Some(token) = &from_query {
        if !is_token(token.as_bytes(), digest) {
            return Access::Denied;
        }
        // Only a page can be sent elsewhere: a WebSocket would not follow.
        if !matches!(*method, Method::GET | Method::HEAD) || headers.contains_key(header::UPGRADE) {
            return Access::Granted;
        }
        let location = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let cookie = format!("{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Lax");
        return match (
            HeaderValue::from_str(&same_host(location)),
            HeaderValue::from_str(&cookie),
        ) {
            (Ok(location), Ok(cookie)) => Access::Exchanged { location, cookie },
            _ => Access::Denied,
        };
    }
    let is_known = from_header.is_some_and(|token| is_token(token.as_bytes(), digest))
        || from_cookie.is_some_and(|token| is_token(&token, digest)) && is_of_own_page(headers, method, host);
    if is_known { Access::Granted } else { Access::Denied }
}

/// Whether a request with the cookie comes from a page of the same host, or from no page. The pages of other leases are of the same
/// site, so the browser sends the cookie with their requests too.
fn is_of_own_page(headers: &HeaderMap, method: &Method, host: &Authority) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_own_origin = text("origin").is_none_or(|origin| {
        origin
            .strip_prefix("https://")
            .is_some_and(|of| of.eq_ignore_ascii_case(host.as_str()))
    });
    let opens_a_page = *method == Method::GET && text("sec-fetch-mode") == Some("navigate");
    let is_own_fetch = text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    is_own_origin && (is_own_fetch || opens_a_page)
}

/// A location that stays at the host: `//evil.org` would lead to another one.
fn same_host(path: &str) -> String {
    format!("/{}", path.trim_start_matches(['/', '\\']))
}

/// Whether a token has the digest, in constant time.
fn is_token(token: &[u8], digest: &[u8; 32]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&Sha256::digest(token), digest).is_ok()
}

/// Removes the parameter with the token from the query. Other parameters stay byte for byte. A value that can't be a token is
/// returned empty, which lets nobody in.
fn take_parameter(uri: &mut Uri) -> Option<String> {
    let query = uri.query()?;
    let mut token = None;
    let rest: Vec<&str> = query
        .split('&')
        .filter(|pair| match pair.split_once('=') {
            Some((PARAMETER, value)) => {
                token = Some(percent_decoded(value).unwrap_or_default());
                false
            }
            _ => *pair != PARAMETER,
        })
        .collect();
    token.as_ref()?;
    let path = uri.path();
    let rest = rest.join("&");
    let path_and_query = if rest.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{rest}")
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = PathAndQuery::try_from(path_and_query).ok();
    *uri = Uri::from_parts(parts).unwrap_or_default();
    token
}

/// A percent-encoded value, none if it is not that of a token: only a token can stand in a cookie.
fn percent_decoded(value: &str) -> Option<String> {
    let decoded = percent_decode_str(value).decode_utf8().ok()?;
    access_token::digest(&decoded)
        .is_ok()
        .then(|| decoded.into_owned())
}

/// Removes the cookie with the token. Other cookies stay byte for byte.
fn take_cookie(headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let mut token = None;
    let mut rest = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        let others: Vec<&[u8]> = value
            .as_bytes()
            .split(|byte| *byte == b';')
            .map(<[u8]>::trim_ascii)
            .filter(|pair| {
                let of_token = pair
                    .strip_prefix(COOKIE.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"="));
                if let Some(value) = of_token {
                    token = Some(value.to_vec());
                }
                of_token.is_none() && !pair.is_empty()
            })
            .collect();
        if let Ok(others) = HeaderValue::from_bytes(&others.join(&b"; "[..]))
            && !others.is_empty()
        {
            rest.push(others);
        }
    }
    if token.is_some() {
        headers.remove(header::COOKIE);
        for value in rest {
            headers.append(header::COOKIE, value);
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use http::Request;
    use leasehold_crds::lease::workload::PortTls;
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    const TOKEN: &str = "correct-horse-battery-staple";

    fn route(access: PortAccess, token: Option<&str>) -> Route {
        Route {
            provider: "rhine".into(),
            lease_uid: "uid".into(),
            namespace: "team-a".into(),
            lease: "train".into(),
            rank: 0,
            port: 8080,
            access,
            tls: PortTls::Terminate,
            token_sha256: token.map(|token| Sha256::digest(token).into()),
        }
    }

    /// What becomes of a request, and what is left of it.
    fn ask(
        route: &Route,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> (Access, String, Vec<String>) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let host = Authority::from_static("a.leases.example.org");
        let access = check(route, (&head.method, &host), &mut head.uri, &mut head.headers);
        let left = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        (access, head.uri.to_string(), left)
    }

    #[test]
    fn a_token_lets_in_and_is_not_passed_on() {
        let route = route(PortAccess::Token, Some(TOKEN));
        let cookie = format!("a=1; {COOKIE}={TOKEN}; b=2");
        for headers in [&[(HEADER, TOKEN)][..], &[("cookie", cookie.as_str())]] {
            let (access, uri, left) = ask(&route, "GET", "/x?y=1", headers);
            assert_eq!((access, uri.as_str()), (Access::Granted, "/x?y=1"));
            assert!(!left.join("\n").contains(TOKEN), "{left:?}");
        }
        let (_, _, left) = ask(&route, "GET", "/", &[("cookie", &cookie)]);
        assert_eq!(left, ["cookie: a=1; b=2"]);
    }

    #[test]
    fn without_the_token_nobody_is_let_in() {
        let with = route(PortAccess::Token, Some(TOKEN));
        for (uri, headers) in [
            ("/", &[][..]),
            ("/", &[(HEADER, "wrong")]),
            ("/", &[(HEADER, "")]),
            ("/", &[("authorization", "Bearer correct-horse-battery-staple")]),
            ("/", &[("cookie", "leasehold-token=correct-horse-battery-staple")]),
            ("/?leasehold-token=wrong", &[(HEADER, TOKEN)]),
            ("/?leasehold-token=", &[]),
            ("/?leasehold-token=%", &[]),
            ("/?leasehold-token", &[]),
        ] {
            assert_eq!(
                ask(&with, "GET", uri, headers).0,
                Access::Denied,
                "{uri} {headers:?}"
            );
        }
        let without = route(PortAccess::Token, None);
        assert_eq!(ask(&without, "GET", "/", &[(HEADER, TOKEN)]).0, Access::NoToken);
        let public = route(PortAccess::Public, Some(TOKEN));
        assert_eq!(ask(&public, "GET", "/", &[]).0, Access::Granted);
    }

    #[test]
    fn a_cookie_lets_in_pages_of_its_own_host_alone() {
        let route = route(PortAccess::Token, Some(TOKEN));
        let cookie = format!("{COOKIE}={TOKEN}");
        let with = |more: &[(&str, &str)]| {
            let headers = [&[("cookie", cookie.as_str())][..], more].concat();
            ask(&route, "GET", "/", &headers).0
        };
        for own in [
            &[][..],
            &[("origin", "https://a.leases.example.org")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")],
        ] {
            assert_eq!(with(own), Access::Granted, "{own:?}");
        }
        for other in [
            &[
                ("origin", "https://b.leases.example.org"),
                ("upgrade", "websocket"),
            ][..],
            &[("origin", "null")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
        ] {
            assert_eq!(with(other), Access::Denied, "{other:?}");
        }
        // A token that the page knows itself needs no such check.
        let (access, ..) = ask(
            &route,
            "GET",
            "/",
            &[(HEADER, TOKEN), ("origin", "https://b.example")],
        );
        assert_eq!(access, Access::Granted);
    }

    #[test]
    fn another_cookie_takes_nothing_away() {
        let route = route(PortAccess::Token, Some(TOKEN));
        let mut headers = HeaderMap::new();
        let cookies = [b"a=\xc3\xa9; ", COOKIE.as_bytes(), b"=", TOKEN.as_bytes()].concat();
        headers.insert("cookie", HeaderValue::from_bytes(&cookies).unwrap());
        let host = Authority::from_static("a.leases.example.org");
        let access = check(
            &route,
            (&Method::GET, &host),
            &mut Uri::from_static("/"),
            &mut headers,
        );
        assert_eq!(access, Access::Granted);
        assert_eq!(headers["cookie"].as_bytes(), b"a=\xc3\xa9");
    }

    #[test]
    fn a_token_in_the_query_becomes_a_cookie() {
        let route = route(PortAccess::Token, Some(TOKEN));
        let uri = format!("/lab/tree?a=%2F&leasehold-token={TOKEN}&b");
        let (access, left, _) = ask(&route, "GET", &uri, &[]);
        let Access::Exchanged { location, cookie } = access else {
            panic!("{access:?}")
        };
        assert_eq!(location, "/lab/tree?a=%2F&b");
        assert_eq!(left, "/lab/tree?a=%2F&b");
        assert_eq!(
            cookie,
            format!("{COOKIE}={TOKEN}; Path=/; Secure; HttpOnly; SameSite=Lax").as_str()
        );
        // Anything but a page is let in at once.
        assert_eq!(ask(&route, "POST", &uri, &[]).0, Access::Granted);
    }

    #[test]
    fn the_exchange_stays_at_the_host() {
        let route = route(PortAccess::Token, Some(TOKEN));
        for path in ["//evil.org/", "/\\evil.org", "///evil.org"] {
            let uri = format!("https://a.leases.example.org{path}?leasehold-token={TOKEN}");
            let Ok(uri) = uri.parse::<Uri>() else { continue };
            let (access, ..) = ask(&route, "GET", &uri.to_string(), &[]);
            let Access::Exchanged { location, .. } = access else {
                panic!("{access:?}")
            };
            let location = location.to_str().unwrap();
            assert!(
                location.starts_with('/') && !location.starts_with("//"),
                "{location}"
            );
            assert!(!location.starts_with("/\\"), "{location}");
        }
    }

    proptest! {
        #[test]
        fn no_other_text_lets_in(query in "[!-~]{0,60}", cookie in "[ -~]{0,60}", header in "[ -~]{0,60}") {
            let route = route(PortAccess::Token, Some(TOKEN));
            if let Ok(uri) = format!("/?{query}").parse::<Uri>() {
                let headers = [("cookie", cookie.as_str()), (HEADER, header.as_str())];
                prop_assert!(ask(&route, "GET", &uri.to_string(), &headers).0 == Access::Denied);
            }
        }
    }
}
