//! Names of ports at the gateway of a market. The market publishes them, and the gateway recognizes them: both derive them
//! here. A name follows from the lease alone, so that it is the same after a restart of anything.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

/// Name that stands for the results of a job, which have no port of the workload. Workloads that keep results have no ports.
pub const RESULTS: &str = "results";

/// Longest DNS label in bytes.
const LABEL_MAX: usize = 63;
/// Longest domain in bytes: a host name has at most 253.
const DOMAIN_MAX: usize = 253 - LABEL_MAX - 1;
/// Bytes of the digest in a label, which 16 characters encode.
const DIGEST_BYTES: usize = 10;

/// Where the gateway of a market is reached from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Domain below which each port has a name: `leases.example.org`.
    pub domain: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

/// Why a text is no domain of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no domain: at most {DOMAIN_MAX} lower-case letters, digits, hyphens and dots, such as leases.example.org"
)]
pub struct DomainError(String);

/// Reads a domain: DNS labels separated by dots, in lower case, short enough for a label in front of it.
pub fn parse_domain(text: &str) -> Result<String, DomainError> {
    let is_label = |label: &str| {
        (1..=LABEL_MAX).contains(&label.len())
            && label.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= DOMAIN_MAX && text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err(DomainError(text.to_owned()))
    }
}

impl GatewayAddress {
    /// URL of a label below the domain, without a path: `https://http-train-….leases.example.org`. The default port of HTTPS
    /// is left out.
    #[must_use]
    pub fn url(&self, label: &str) -> String {
        let Self { domain, port } = self;
        match port {
            443 => format!("https://{label}.{domain}"),
            port => format!("https://{label}.{domain}:{port}"),
        }
    }
}

/// The first label of the host name of a port: `<port>-<lease>-<hash>`, with `-<rank>` after the port for another rank than 0.
///
/// It is a DNS label of at most 63 bytes without consecutive hyphens. The hash has 16 characters of the SHA-256 digest of
/// `namespace/lease/port`, or `namespace/lease/port/rank`, in lower-case base32 (RFC 4648) without padding. It makes the label
/// unique; the name of the lease is for people, with other characters replaced by hyphens, and is truncated.
#[must_use]
pub fn host_label(namespace: &str, lease: &str, port: &str, rank: i64) -> String {
    let (name, ranked) = match rank {
        0 => (port.to_owned(), String::new()),
        rank => (format!("{port}-{rank}"), format!("/{rank}")),
    };
    let digest = Sha256::digest(format!("{namespace}/{lease}/{port}{ranked}"));
    let hash = BASE32_NOPAD.encode(&digest[..DIGEST_BYTES]).to_ascii_lowercase();
    let mut readable = hyphenated(&format!("{name}-{lease}"));
    readable.truncate(LABEL_MAX - hash.len() - 1);
    match readable.trim_end_matches('-') {
        "" => hash,
        readable => format!("{readable}-{hash}"),
    }
}

/// Lower-case ASCII letters and digits, with a single hyphen for what is between them. Two hyphens in a row would let a label
/// look like an internationalized name.
fn hyphenated(text: &str) -> String {
    let words = text.split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'));
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_do_not_change() {
        let label = host_label;
        assert_eq!(label("team-a", "train", "http", 0), "http-train-m4tnl7fdbsumg7n2");
        assert_eq!(
            label("team-a", "train", "http", 3),
            "http-3-train-ldkq7z6cfijyaeox"
        );
        assert_eq!(
            label("team-a", "llama.v3", "results", 0),
            "results-llama-v3-q2eo4wwh5w4vkl7k"
        );
        let long = format!("{}.b", "a".repeat(251));
        assert_eq!(
            label("team-a", &long, "fifteen-letters", 0),
            "fifteen-letters-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-5s6aa63yclei3i6j"
        );
        assert_eq!(
            label("team-a", &long, "fifteen-letters", 1023),
            "fifteen-letters-1023-aaaaaaaaaaaaaaaaaaaaaaaaa-pi2uzkfh7vqm5cil"
        );
        assert_eq!(label("team-a", "xn--a", "xn--b", 0), "xn-b-xn-a-amxaghit54dy4qdr");
    }

    #[test]
    fn the_default_port_is_not_in_a_url() {
        let at = |port| GatewayAddress {
            domain: "leases.example.org".into(),
            port,
        };
        assert_eq!(at(443).url("http-a"), "https://http-a.leases.example.org");
        assert_eq!(at(8443).url("http-a"), "https://http-a.leases.example.org:8443");
    }

    #[test]
    fn a_domain_is_one_of_dns() {
        let longest = format!("{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(61));
        for domain in [
            "leases.example.org",
            "localhost",
            "xn--bcher-kva.example",
            &longest,
        ] {
            assert_eq!(parse_domain(domain).as_deref(), Ok(domain));
        }
        let too_long = format!("{longest}c");
        for domain in [
            "", ".", "a..b", "A.b", "a.b.", "*.a", "-a.b", "a-.b", "a/b", "a:1", "a b", &too_long,
        ] {
            assert!(parse_domain(domain).is_err(), "{domain}");
        }
    }

    fn is_label(text: &str) -> bool {
        let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
        (1..=63).contains(&text.len())
            && text.chars().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-')
            && !text.contains("--")
    }

    /// Names as the API server accepts them.
    fn inputs() -> impl Strategy<Value = (String, String, String, i64)> {
        (
            "[a-z0-9]([-a-z0-9]{0,6}[a-z0-9])?",
            "[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?){0,3}",
            "[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?",
            0..1024_i64,
        )
    }

    proptest! {
        #[test]
        fn names_make_valid_labels((namespace, lease, port, rank) in inputs()) {
            let label = host_label(&namespace, &lease, &port, rank);
            prop_assert!(is_label(&label), "{label}");
            prop_assert!(label.starts_with(&hyphenated(&port)), "{label}");
        }

        #[test]
        fn any_text_makes_a_valid_label(text in any::<[String; 3]>(), rank: i64) {
            let label = host_label(&text[0], &text[1], &text[2], rank);
            prop_assert!(is_label(&label), "{label}");
        }

        #[test]
        fn no_two_ports_have_the_same_label(all in prop::collection::vec(inputs(), 2..50)) {
            let mut of = HashMap::new();
            for input in all {
                let label = host_label(&input.0, &input.1, &input.2, input.3);
                prop_assert_eq!(of.entry(label).or_insert_with(|| input.clone()), &input);
            }
        }

        /// Ports whose readable parts are the same.
        #[test]
        fn similar_names_have_different_labels(word in "[a-z]{1,5}", end in "[a-z]{1,5}", rank in 1..9_i64) {
            let same = [
                host_label("a", &format!("{word}-{end}"), "p", 0),
                host_label("a", &format!("{word}.{end}"), "p", 0),
                host_label("a", &end, &format!("p-{word}"), 0),
                host_label("b", &format!("{word}-{end}"), "p", 0),
                host_label("a", &format!("{word}--{end}"), "p", 0),
            ];
            let ranked = [
                host_label("a", &word, "p", rank),
                host_label("a", &word, &format!("p-{rank}"), 0),
                host_label("a", &format!("{rank}-{word}"), "p", 0),
            ];
            for labels in [&same[..], &ranked[..]] {
                let distinct: std::collections::HashSet<_> = labels.iter().collect();
                prop_assert_eq!(distinct.len(), labels.len());
            }
        }
    }
}
