//! `$ANSIBLE_VAULT;1.1;AES256`: how Bittensor encrypted key files in 2023 and 2024.
//!
//! Below the first line, lines of hexadecimal digits spell three lines, which again spell in hexadecimal digits the salt,
//! a checksum and the content in AES-256-CTR.

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::hex;
use super::password::Unopened;

/// What such a file begins with.
pub(super) const PREFIX: &[u8] = b"$ANSIBLE_VAULT";

/// The one version that Bittensor's tools have written.
const FIRST_LINE: &[u8] = b"$ANSIBLE_VAULT;1.1;AES256";

const ROUNDS: u32 = 10_000;

const CHECKSUM_LEN: usize = 32;

/// The content is padded to whole blocks.
const BLOCK_LEN: usize = 16;

/// An encrypted file.
pub(super) struct Sealed {
    salt: Zeroizing<Vec<u8>>,
    checksum: Zeroizing<Vec<u8>>,
    content: Zeroizing<Vec<u8>>,
}

impl Sealed {
    /// Takes a file apart; `None` if it is damaged or of another version.
    pub(super) fn parse(file: &[u8]) -> Option<Self> {
        let mut lines = file.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let inner = hex::parse_ascii(&lines.collect::<Vec<_>>().concat())?;
        let mut parts = inner.split(|&byte| byte == b'\n').map(hex::parse_ascii);
        let (salt, checksum, content) = (parts.next()??, parts.next()??, parts.next()??);
        let is_whole = parts.next().is_none()
            && checksum.len() == CHECKSUM_LEN
            && !content.is_empty()
            && content.len().is_multiple_of(BLOCK_LEN);
        is_whole.then_some(Self { salt, checksum, content })
    }

    /// Decrypts it.
    pub(super) fn open(&self, password: &str) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let mut keys = Zeroizing::new([0; 80]);
        pbkdf2::pbkdf2::<Hmac<Sha256>>(password.as_bytes(), &self.salt, ROUNDS, keys.as_mut())
            .expect("a key of HMAC may have any length");
        let (cipher_key, rest) = keys.split_at(32);
        let (checksum_key, start) = rest.split_at(32);
        let mut checksum = Hmac::<Sha256>::new_from_slice(checksum_key).expect("a key of HMAC may have any length");
        checksum.update(&self.content);
        checksum.verify_slice(&self.checksum).map_err(|_| Unopened::WrongPassword)?;
        let mut content = self.content.clone();
        Ctr128BE::<Aes256>::new_from_slices(cipher_key, start)
            .expect("the key has 32 bytes and the first counter 16")
            .apply_keystream(&mut content);
        let len = unpadded_len(&content).ok_or(Unopened::Damaged)?;
        content.truncate(len);
        Ok(content)
    }
}

/// How long a content is without its padding, which says in each of its bytes how many there are.
fn unpadded_len(content: &[u8]) -> Option<usize> {
    let padding = *content.last()?;
    let len = content.len().checked_sub(padding.into())?;
    let is_padding = (1..=BLOCK_LEN as u8).contains(&padding) && content[len..].iter().all(|&byte| byte == padding);
    is_padding.then_some(len)
}
