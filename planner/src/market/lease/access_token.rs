//! The token for the ports of a lease. The market publishes its digest, by which the gateway recognizes it. Nothing but the
//! conditions and the digest depends on it: a lease is placed, paid and ended whatever the Secret contains.

use leasehold_crds::{
    GpuLease,
    lease::{
        GpuLeaseStatus,
        conditions::{LeaseCondition, LeaseReason},
        workload::PortAccess,
    },
    shared::conditions::ConditionStatus,
};
use sha2::{Digest as _, Sha256};

use super::{
    conditions::Conditions,
    world::{Deletion, World},
};
use crate::observed::Observed;

/// Fewest bytes of a token.
pub const LENGTH_MIN: usize = 20;
/// Most bytes of a token: it is sent with every request.
pub const LENGTH_MAX: usize = 256;

/// What became of reading the token of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessToken {
    /// It was not needed for this reconcile.
    NotRead,
    /// The lease names no Secret.
    NotNamed,
    /// SHA-256 digest of the token, 64 hexadecimal digits.
    Ready(String),
    /// There is no such Secret.
    NotFound(String),
    /// The namespace has not opted in.
    NotReadable(String),
    /// The Secret holds no token that can be used.
    Malformed(String),
}

/// Why a text cannot be a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It could be guessed, or does not fit into a request.
    #[error("a token has {LENGTH_MIN} to {LENGTH_MAX} characters, this one has {0}")]
    Length(usize),
    /// It would end the value of a cookie or of a header.
    #[error(
        "a token has visible ASCII characters only, and no quotation marks, commas, semicolons or backslashes"
    )]
    Character,
}

/// SHA-256 digest of a token, 64 hexadecimal digits. A token is 20 to 256 characters that can stand in the value of a cookie
/// (RFC 6265): visible ASCII without `"`, `,`, `;` and `\`. The single quotation mark is refused as well, because shells remove
/// it.
pub fn digest(token: &str) -> Result<String, TokenError> {
    if !(LENGTH_MIN..=LENGTH_MAX).contains(&token.len()) {
        return Err(TokenError::Length(token.len()));
    }
    let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b',' | b';' | b'\\');
    if !token.bytes().all(fits) {
        return Err(TokenError::Character);
    }
    Ok(data_encoding::HEXLOWER.encode(&Sha256::digest(token)))
}

/// What an entry of the Secret contains. The message about one that is no token says how to make one, and contains nothing of
/// it.
#[must_use]
pub fn token_in(secret: &str, key: &str, entry: Option<&str>) -> AccessToken {
    let why = match entry.map(digest) {
        Some(Ok(digest)) => return AccessToken::Ready(digest),
        Some(Err(error)) => format!("the entry {key} of Secret {secret} is not a token: {error}"),
        None => format!("Secret {secret} has no entry {key} that is text"),
    };
    AccessToken::Malformed(format!("{why}; `openssl rand -hex 24` prints a token"))
}

/// Whether the Secret with the token is read: while something of the lease can be reached through a gateway.
#[must_use]
pub fn needs_access_token(lease: &GpuLease, deletion: &Deletion) -> bool {
    let status = lease.status.as_ref();
    let over = status.is_some_and(|s| s.phase.is_over() || s.close_reason.is_some());
    !over && !deletion.ends_lease()
}

/// Publishes the digest. Only a Secret that is known to contain no token takes it away: an API server that does not answer, or an
/// authorizer that denies for a moment, must not lock everybody out.
pub(super) fn publish(world: &World, status: &mut GpuLeaseStatus) {
    match &world.access_token {
        Observed::Known(AccessToken::Ready(digest)) => status.access_token_sha256 = Some(digest.clone()),
        Observed::Known(AccessToken::NotNamed | AccessToken::NotFound(_) | AccessToken::Malformed(_)) => {
            status.access_token_sha256 = None;
        }
        Observed::Known(AccessToken::NotRead | AccessToken::NotReadable(_)) | Observed::Unknown(_) => {}
    }
}

/// Sets `TokenPublished`: of a lease that names a Secret, or has a URL that nobody can open without one.
pub(super) fn set_published(world: &World, status: &GpuLeaseStatus, conditions: &mut Conditions) {
    use ConditionStatus::{False, True, Unknown};
    let kept = match status.access_token_sha256 {
        Some(_) => "; the token that was published before stays valid",
        None => "",
    };
    let (truth, reason, message) = match &world.access_token {
        Observed::Known(AccessToken::NotRead) => return,
        Observed::Known(AccessToken::NotNamed) => match locked_port(world, status) {
            Some(port) => (
                False,
                LeaseReason::NoTokenSecret,
                format!(
                    "nobody can open the URL of port {port}: set spec.access.tokenSecret, or lease with access: Public"
                ),
            ),
            None => return conditions.remove(LeaseCondition::TokenPublished),
        },
        Observed::Known(AccessToken::Ready(_)) => (True, LeaseReason::Published, String::new()),
        Observed::Known(AccessToken::NotFound(why)) => (False, LeaseReason::TokenNotFound, why.clone()),
        Observed::Known(AccessToken::NotReadable(why)) => {
            (False, LeaseReason::TokenNotReadable, format!("{why}{kept}"))
        }
        Observed::Known(AccessToken::Malformed(why)) => (False, LeaseReason::TokenMalformed, why.clone()),
        Observed::Unknown(why) => (Unknown, LeaseReason::TokenUnknown, format!("{why}{kept}")),
    };
    conditions.put(LeaseCondition::TokenPublished, truth, reason, message);
}

/// The first port with a URL that requires a token.
fn locked_port<'a>(world: &World, status: &'a GpuLeaseStatus) -> Option<&'a str> {
    let ports = world.lease.spec.workload.ports();
    let locked = |name: &str| {
        let port = ports.iter().find(|port| port.name == name);
        port.is_some_and(|port| port.access == PortAccess::Token)
    };
    let mut urls = status.endpoints.iter().filter(|endpoint| endpoint.url.is_some());
    urls.find(|endpoint| locked(&endpoint.name))
        .map(|endpoint| endpoint.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_token_alone() {
        let token = "0123456789abcdefghij";
        let expected = "6bc14bdc4517a7a682c6910de2e2946eb8e1ecd04090728fef6d092a7ceb62c5";
        assert_eq!(digest(token).as_deref(), Ok(expected));
        assert_eq!(
            token_in("reach", "token", Some(token)),
            AccessToken::Ready(expected.into())
        );
    }

    #[test]
    fn what_could_be_guessed_or_would_leave_its_cookie_is_refused() {
        assert_eq!(digest(""), Err(TokenError::Length(0)));
        assert_eq!(digest(&"a".repeat(19)), Err(TokenError::Length(19)));
        assert_eq!(digest(&"a".repeat(257)), Err(TokenError::Length(257)));
        assert!(digest(&"a".repeat(256)).is_ok());
        for c in [
            "\"", "'", ",", ";", "\\", " ", "\t", "\r", "\n", "\0", "\u{7f}", "é",
        ] {
            let token = format!("0123456789{c}abcdefghij");
            assert_eq!(digest(&token), Err(TokenError::Character), "{c:?}");
        }
        assert!(digest("!#$%&()*+-./:<=>?@[]^_`{|}~").is_ok());
    }

    #[test]
    fn a_message_contains_nothing_of_the_secret() {
        for entry in [Some("hunter2"), Some("hunter2 hunter2 hunter2"), None] {
            let AccessToken::Malformed(why) = token_in("reach", "token", entry) else {
                panic!("{entry:?} is no token");
            };
            assert!(!why.contains("hunter2"), "{why}");
            assert!(
                why.contains("Secret reach") && why.contains("openssl rand"),
                "{why}"
            );
        }
    }
}
