//! What the program and the tests that ask it agree on.

use bytes::Bytes;

/// Header with the SHA-256 digest of a download, in hexadecimal.
pub const DIGEST: &str = "x-digest";

/// Size of a block of a download.
pub const BLOCK: usize = 64 << 10;

/// One block of a download: no two are equal, so that a lost or repeated block changes the digest.
#[must_use]
pub fn block(number: u64) -> Bytes {
    let mut block = Vec::with_capacity(BLOCK);
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while block.len() < BLOCK {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    block.into()
}
