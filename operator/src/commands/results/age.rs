//! Encrypts a stream to public keys in the format of `age` (<https://c2sp.org/age>), so that whoever fetches a job's
//! results over plain HTTP, a stranger included, reads nothing without one of the tenant's private keys.
//!
//! Only what is needed for that: writing, to X25519 and ssh-ed25519. `tests/results.rs` has the reference program read it.

use std::io::{self, Write};

use aws_lc_rs::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf, hmac, rand,
};
use curve25519_dalek::montgomery::MontgomeryPoint;
use data_encoding::BASE64_NOPAD as BASE64;
use leasehold_planner::provider::workload::recipient::Recipient;
use sha2::{Digest as _, Sha256};

/// Bytes that are sealed together.
const CHUNK: usize = 64 * 1024;
const X25519: &str = "age-encryption.org/v1/X25519";
const SSH_ED25519: &str = "age-encryption.org/v1/ssh-ed25519";

/// Encrypts what is written to it. Without [`Encryptor::finish`] the result can't be opened to its end.
pub(super) struct Encryptor<W: Write> {
    to: W,
    key: LessSafeKey,
    chunks: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Encryptor<W> {
    /// Writes the header.
    pub(super) fn new(recipients: &[Recipient], mut to: W) -> io::Result<Self> {
        let file_key: [u8; 16] = random()?;
        let mut header = String::from("age-encryption.org/v1\n");
        for recipient in recipients {
            header += &stanza(recipient, &file_key)?;
        }
        header += "---";
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &derive(&file_key, &[], "header")?);
        let mac = BASE64.encode(hmac::sign(&mac, header.as_bytes()).as_ref());
        to.write_all(format!("{header} {mac}\n").as_bytes())?;
        let nonce: [u8; 16] = random()?;
        to.write_all(&nonce)?;
        Ok(Self {
            to,
            key: seal_key(&derive(&file_key, &nonce, "payload")?)?,
            chunks: 0,
            buffer: Vec::with_capacity(CHUNK + CHACHA20_POLY1305.tag_len()),
        })
    }

    /// Writes the last chunk.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.seal(true)?;
        self.to.flush()
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.chunks.to_be_bytes());
        nonce[11] = u8::from(last);
        seal(&self.key, nonce, &mut self.buffer)?;
        self.to.write_all(&self.buffer)?;
        self.chunks += 1;
        self.buffer.clear();
        Ok(())
    }
}

impl<W: Write> Write for Encryptor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits for the next byte: the last one is marked, and only an empty stream ends in an empty one.
        if self.buffer.len() == CHUNK && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file's key, wrapped for one recipient.
fn stanza(recipient: &Recipient, file_key: &[u8; 16]) -> io::Result<String> {
    let secret: [u8; 32] = random()?;
    let share = MontgomeryPoint::mul_base_clamped(secret).to_bytes();
    let (kind, fingerprint, point, label) = match recipient {
        Recipient::X25519(point) => ("X25519", None, *point, X25519),
        Recipient::SshEd25519 { wire, point } => {
            let fingerprint = BASE64.encode(&Sha256::digest(wire)[..4]);
            ("ssh-ed25519", Some(fingerprint), *point, SSH_ED25519)
        }
    };
    let mut shared = MontgomeryPoint(point).mul_clamped(secret);
    if let Recipient::SshEd25519 { wire, .. } = recipient {
        shared = shared.mul_clamped(derive(&[], wire, label)?);
    }
    if shared.to_bytes() == [0; 32] {
        return Err(io::Error::other("a recipient's key has a small order"));
    }
    let wrap = derive(&shared.to_bytes(), &[share, point].concat(), label)?;
    let mut wrapped = file_key.to_vec();
    // The key is used once, so its nonce is zero.
    seal(&seal_key(&wrap)?, [0; 12], &mut wrapped)?;
    let fingerprint = fingerprint.map_or_else(String::new, |f| format!(" {f}"));
    Ok(format!(
        "-> {kind}{fingerprint} {}\n{}\n",
        BASE64.encode(&share),
        BASE64.encode(&wrapped)
    ))
}

/// HKDF-SHA-256.
fn derive(secret: &[u8], salt: &[u8], label: &str) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
        .and_then(|output| output.fill(&mut key))
        .map_err(failed)?;
    Ok(key)
}

fn seal_key(key: &[u8; 32]) -> io::Result<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key)
        .map(LessSafeKey::new)
        .map_err(failed)
}

fn seal(key: &LessSafeKey, nonce: [u8; 12], text: &mut Vec<u8>) -> io::Result<()> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::empty(), text)
        .map_err(failed)
}

/// From the system's generator.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn failed(_: Unspecified) -> io::Error {
    io::Error::other("the cryptographic library refused")
}
