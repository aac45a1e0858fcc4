//! `gAAAAA…`: how the first of Bittensor's tools encrypted key files, as a Fernet token (version, time, start, content in
//! AES-128-CBC, checksum; all in base64) under a key that ten million rounds of PBKDF2 make of the password. The tools of
//! today know the format and fail to open it.

use aes::Aes128;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, KeyIvInit};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::password::Unopened;

/// What such a file begins with: the version, and a time before the year 2106, in base64.
pub(super) const PREFIX: &[u8] = b"gAAAAA";

const VERSION: u8 = 0x80;

const TIME_LEN: usize = 8;

const BLOCK_LEN: usize = 16;

const CHECKSUM_LEN: usize = 32;

/// The same for all passwords, in Bittensor's tools.
const SALT: &[u8] = b"Iguesscyborgslikemyselfhaveatendencytobeparanoidaboutourorigins";

/// What trying a password costs: seconds.
const ROUNDS: u32 = 10_000_000;

/// An encrypted file.
pub(super) struct Sealed {
    token: Vec<u8>,
}

impl Sealed {
    /// Takes a file apart; `None` if it is damaged.
    pub(super) fn parse(file: &[u8]) -> Option<Self> {
        let token = URL_SAFE.decode(file.trim_ascii()).ok()?;
        let content = token.len().checked_sub(1 + TIME_LEN + BLOCK_LEN + CHECKSUM_LEN)?;
        let is_whole = token[0] == VERSION && content > 0 && content.is_multiple_of(BLOCK_LEN);
        is_whole.then_some(Self { token })
    }

    /// Decrypts it.
    pub(super) fn open(&self, password: &str) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let mut key = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2::<Hmac<Sha256>>(password.as_bytes(), SALT, ROUNDS, key.as_mut())
            .expect("a key of HMAC may have any length");
        self.open_with(&key)
    }

    /// Decrypts it with the key of the password.
    pub(super) fn open_with(&self, key: &[u8; 32]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let (checksum_key, cipher_key) = key.split_at(16);
        let (signed, checksum) = self.token.split_at(self.token.len() - CHECKSUM_LEN);
        let mut mac = Hmac::<Sha256>::new_from_slice(checksum_key).expect("a key of HMAC may have any length");
        mac.update(signed);
        mac.verify_slice(checksum).map_err(|_| Unopened::WrongPassword)?;
        let (start, content) = signed[1 + TIME_LEN..].split_at(BLOCK_LEN);
        let mut content = Zeroizing::new(content.to_vec());
        let len = Decryptor::<Aes128>::new_from_slices(cipher_key, start)
            .expect("the key and the start have 16 bytes")
            .decrypt_padded_mut::<Pkcs7>(&mut content)
            .map_err(|_| Unopened::Damaged)?
            .len();
        content.truncate(len);
        Ok(content)
    }
}
