//! What both ends agree on: names in the Upgrade request, the form of a stream's target, and the bounds of HTTP/2.

use std::{fmt, str::FromStr, time::Duration};

use leasehold_planner::provider::connector::StreamRequest;

/// Audience of the tokens in the Upgrade request.
pub const AUDIENCE: &str = "leasehold-gateway";
/// Path of the Upgrade request.
pub const PATH: &str = "/tunnel";
/// Protocol of the Upgrade request, with its version.
pub const PROTOCOL: &str = "leasehold-tunnel/1";
/// Header of the Upgrade request: who dials, as an [`Identity`].
pub const HEADER_IDENTITY: &str = "leasehold-identity";
/// Header of the response: the name of the replica that accepted.
pub const HEADER_REPLICA: &str = "leasehold-replica";
/// Header of the response: how many replicas there are.
pub const HEADER_REPLICAS: &str = "leasehold-replicas";
/// Header of a CONNECT request from one gateway replica to another: the provider whose connector is to serve it.
pub const HEADER_PROVIDER: &str = "leasehold-provider";
/// Header of a response that refuses a stream: why, in plain text.
pub const HEADER_REASON: &str = "leasehold-reason";

/// Flow-control window of a stream in bytes: what a stream can hold while its reader pauses.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// Late frames of streams that are not remembered any more, before a connection counts as hostile.
pub const LATE_FRAMES_MAX: usize = 1 << 20;
/// How long late frames of a stream that was reset are expected.
pub const RESETS_REMEMBERED_FOR: Duration = Duration::from_secs(20);
/// Flow-control window of a connection in bytes. It must exceed the sum of the windows of all streams that can pause, or
/// those hold up the others.
pub const CONNECTION_WINDOW: u32 = 1 << 30;
/// What a stream can hold on its way out, in bytes.
pub const SEND_BUFFER: usize = 256 << 10;
/// Streams of one connection.
pub const STREAMS_MAX: u32 = 16_384;
/// Headers of one request in bytes.
pub const HEADERS_MAX: u32 = 8 << 10;

/// How long the Upgrade may take, from the TCP connection to the swap of roles.
pub const UPGRADE_WITHIN: Duration = Duration::from_secs(10);

/// Who dials: the connector of a provider, or a replica of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A connector of the GpuProvider of that name.
    Provider(String),
    /// The gateway replica of that name.
    Gateway(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provider(name) => write!(f, "provider/{name}"),
            Self::Gateway(name) => write!(f, "gateway/{name}"),
        }
    }
}

/// A text that is not an [`Identity`] or the authority of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither `provider/NAME` nor `gateway/NAME`.
    #[error(
        "an identity must be provider/NAME or gateway/NAME, with a DNS label of at most 63 characters as the name"
    )]
    Identity,
    /// Not `RANK.LEASE-UID:PORT`.
    #[error("the target of a stream must be RANK.LEASE-UID:PORT")]
    Target,
}

impl FromStr for Identity {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (kind, name) = text.split_once('/').ok_or(Malformed::Identity)?;
        if name.is_empty() || name.len() > 63 || !is_label(name) {
            return Err(Malformed::Identity);
        }
        match kind {
            "provider" => Ok(Self::Provider(name.to_owned())),
            "gateway" => Ok(Self::Gateway(name.to_owned())),
            _ => Err(Malformed::Identity),
        }
    }
}

/// Whether a text has only the characters of a DNS label.
fn is_label(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// The authority of the CONNECT request of a stream: `RANK.LEASE-UID:PORT`.
#[must_use]
pub fn authority(target: &StreamRequest) -> String {
    format!("{}.{}:{}", target.rank, target.lease_uid, target.port)
}

/// The target of a stream, from the authority of its CONNECT request.
///
/// # Errors
/// When the text does not have that form, or is not in its one spelling.
pub fn target(authority: &str) -> Result<StreamRequest, Malformed> {
    let (rank, rest) = authority.split_once('.').ok_or(Malformed::Target)?;
    let (lease_uid, port) = rest.split_once(':').ok_or(Malformed::Target)?;
    if lease_uid.is_empty() || lease_uid.len() > 64 || !is_label(lease_uid) {
        return Err(Malformed::Target);
    }
    let port = number(port)?;
    if port == 0 {
        return Err(Malformed::Target);
    }
    Ok(StreamRequest {
        lease_uid: lease_uid.to_owned(),
        rank: i64::from(number(rank)?),
        port,
    })
}

/// A decimal number in its one form, without sign and leading zeros.
fn number(text: &str) -> Result<u16, Malformed> {
    let number: u16 = text.parse().map_err(|_| Malformed::Target)?;
    if number.to_string() == text {
        Ok(number)
    } else {
        Err(Malformed::Target)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn a_target_has_one_form() {
        let text = "3.5e0f6cbb-6c2e-4c7b-b9b4-2f0f6f3f9a51:8080";
        let request = target(text).unwrap();
        assert_eq!((request.rank, request.port), (3, 8080));
        assert_eq!(authority(&request), text);
        for bad in [
            "",
            "3",
            "3.uid",
            "uid:80",
            "3.:80",
            "3.uid:0",
            "3.uid:65536",
            "3.uid:+80",
            "03.uid:80",
            "3.uid:080",
            "-1.uid:80",
            "3.uid.svc:80",
            "3.UID:80",
            "3.uid:80:90",
            "3.uid/..:80",
            "3.127.0.0.1:80",
        ] {
            assert_eq!(target(bad), Err(Malformed::Target), "{bad}");
        }
    }

    #[test]
    fn an_identity_names_its_kind() {
        for identity in [
            Identity::Provider("rhine-west".into()),
            Identity::Gateway("gateway-7c9-x2x".into()),
        ] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for bad in [
            "",
            "rhine-west",
            "provider/",
            "provider/a/b",
            "provider/A",
            "market/a",
            "provider/a b",
        ] {
            assert_eq!(bad.parse::<Identity>(), Err(Malformed::Identity), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(text in ".{0,100}") {
            if let Ok(request) = target(&text) {
                prop_assert_eq!(authority(&request), text);
            }
        }

        #[test]
        fn every_request_is_read(rank in any::<u16>(), port in 1_u16.., uid in "[a-z0-9-]{1,64}") {
            let request = StreamRequest { lease_uid: uid, rank: i64::from(rank), port };
            prop_assert_eq!(target(&authority(&request)), Ok(request));
        }
    }
}
