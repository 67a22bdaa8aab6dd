//! Public keys that a job's results are encrypted to, in the forms that `age` takes: <https://age-encryption.org/v1>,
//! and ed25519 keys of SSH. Read before anybody pays, so that nothing is kept for a key that opens nothing.

use bech32::{Bech32, Hrp, primitives::decode::CheckedHrpstring};
use curve25519_dalek::edwards::CompressedEdwardsY;
use data_encoding::BASE64;

/// A key that can open what is encrypted to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// `age1…`: an X25519 point.
    X25519([u8; 32]),
    /// `ssh-ed25519 …`.
    SshEd25519 {
        /// The key in SSH's wire encoding.
        wire: Vec<u8>,
        /// The same key as an X25519 point.
        point: [u8; 32],
    },
}

/// What comes before the `1` of an age key.
const AGE: Hrp = Hrp::parse_unchecked("age");
/// SSH's wire encoding of an ed25519 key before its 32 bytes: a name and a length.
const SSH_PREFIX: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";

/// A text that is no recipient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} {problem}")]
pub struct RecipientError {
    /// The first characters of the text.
    shown: String,
    /// What is wrong with it, and what to do.
    problem: &'static str,
}

impl std::str::FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        let wrong = |problem: &'static str| RecipientError {
            shown: text.chars().take(40).collect(),
            problem,
        };
        if let Some(rest) = text.strip_prefix("ssh-ed25519 ") {
            let encoded = rest.split(' ').next().unwrap_or_default();
            let wire = BASE64
                .decode(encoded.as_bytes())
                .map_err(|_| wrong("is not a key as in authorized_keys"))?;
            let bytes: [u8; 32] = wire
                .strip_prefix(SSH_PREFIX)
                .and_then(|key| key.try_into().ok())
                .ok_or_else(|| wrong("is not an ed25519 key of 32 bytes"))?;
            let point = CompressedEdwardsY(bytes)
                .decompress()
                .filter(|point| !point.is_small_order())
                .ok_or_else(|| wrong("is no point of the curve: copy the public key again"))?;
            let point = point.to_montgomery().to_bytes();
            return Ok(Self::SshEd25519 { wire, point });
        }
        let checked = CheckedHrpstring::new::<Bech32>(text).map_err(|_| {
            wrong("is neither a key as `age-keygen -y` prints nor one of ssh-ed25519: copy it again")
        })?;
        let data: Vec<u8> = checked.byte_iter().collect();
        let point: [u8; 32] = data
            .try_into()
            .ok()
            .filter(|_| checked.hrp() == AGE)
            .ok_or_else(|| wrong("is not an X25519 key of age"))?;
        Ok(Self::X25519(point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // From the age specification's test vectors: the identity AGE-SECRET-KEY-1GFPY… belongs to this recipient.
    const KEY: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn both_kinds_are_read() {
        assert!(matches!(KEY.parse(), Ok(Recipient::X25519(_))));
        let ssh =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust";
        let Ok(Recipient::SshEd25519 { wire, .. }) = ssh.parse() else {
            panic!("{:?}", ssh.parse::<Recipient>());
        };
        assert_eq!(wire.len(), 51);
    }

    #[test]
    fn a_mistyped_key_is_refused() {
        for at in 4..KEY.len() {
            let mut bytes = KEY.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'q' { b'p' } else { b'q' };
            let typo = String::from_utf8(bytes).unwrap();
            assert!(typo.parse::<Recipient>().is_err(), "{typo}");
        }
        for wrong in [
            "",
            "age1",
            "1",
            "ssh-ed25519 ",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAB3NzaC1yc2E",
            // The neutral element opens for everybody.
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(wrong.parse::<Recipient>().is_err(), "{wrong}");
        }
    }
}
