//! Public keys that a job's results are encrypted to, in the forms that `age` takes: <https://age-encryption.org/v1>,
//! and ed25519 keys of SSH. Read before anybody pays, so that nothing is kept for a key that opens nothing.

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

/// SSH's wire encoding of an ed25519 key before its 32 bytes: a name and a length.
const SSH_PREFIX: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";

impl std::str::FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(40).collect();
            format!("{shown:?} {why}")
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
        let (prefix, data) = bech32(text).ok_or_else(|| {
            wrong("is neither a key as `age-keygen -y` prints nor one of ssh-ed25519: copy it again")
        })?;
        let point: [u8; 32] = data
            .try_into()
            .ok()
            .filter(|_| prefix == "age")
            .ok_or_else(|| wrong("is not an X25519 key of age"))?;
        Ok(Self::X25519(point))
    }
}

const CHARSET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// Prefix and bytes of a text in Bech32 (BIP 173), of any length; `None` where the checksum or anything else is wrong.
fn bech32(text: &str) -> Option<(String, Vec<u8>)> {
    if text.chars().any(|c| c.is_ascii_uppercase()) {
        return None;
    }
    let (prefix, data) = text.rsplit_once('1')?;
    let values: Vec<u8> = data
        .bytes()
        .map(|c| {
            CHARSET
                .iter()
                .position(|x| *x == c)
                .and_then(|i| u8::try_from(i).ok())
        })
        .collect::<Option<_>>()?;
    let spread = prefix
        .bytes()
        .map(|c| c >> 5)
        .chain([0])
        .chain(prefix.bytes().map(|c| c & 31));
    let checksum = spread.chain(values.iter().copied()).fold(1u32, |sum, value| {
        let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3]
            .iter()
            .enumerate()
            .filter(|(bit, _)| sum >> 25 >> bit & 1 == 1)
            .fold(next, |next, (_, generator)| next ^ generator)
    });
    let payload = values.len().checked_sub(6).filter(|_| checksum == 1)?;
    let mut bytes = Vec::new();
    let (mut held, mut bits) = (0u32, 0);
    for value in &values[..payload] {
        held = held << 5 | u32::from(*value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    // What is left over pads the last character with zeros.
    let padded = bits < 5 && held & ((1 << bits) - 1) == 0;
    padded.then(|| (prefix.to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    // From the age specification's test vectors: the identity AGE-SECRET-KEY-1GFPY… belongs to this recipient.
    const AGE: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn both_kinds_are_read() {
        assert!(matches!(AGE.parse(), Ok(Recipient::X25519(_))));
        let ssh =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust";
        let Ok(Recipient::SshEd25519 { wire, .. }) = ssh.parse() else {
            panic!("{:?}", ssh.parse::<Recipient>());
        };
        assert_eq!(wire.len(), 51);
    }

    #[test]
    fn a_mistyped_key_is_refused() {
        for at in 4..AGE.len() {
            let mut bytes = AGE.as_bytes().to_vec();
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
