//! `$NACL`: how Bittensor encrypts key files since 2024, with NaCl's secret box under a key that Argon2 makes of the password.

use anyhow::{Context, Result, anyhow, bail};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use crypto_secretbox::aead::Aead;
use crypto_secretbox::{Key, KeyInit, Nonce, XSalsa20Poly1305};
use zeroize::Zeroizing;

use super::key::fill_with_chance;
use super::password::Unopened;
use crate::figures::bytes;
use crate::memory;

/// What such a file begins with.
pub(super) const PREFIX: &[u8] = b"$NACL";

const NONCE_LEN: usize = 24;

const TAG_LEN: usize = 16;

/// The same for all passwords, in Bittensor's tools.
const SALT: [u8; 16] = [0x13, 0x71, 0x83, 0xdf, 0xf1, 0x5a, 0x09, 0xbc, 0x9c, 0x90, 0xb5, 0x51, 0x87, 0x39, 0xe9, 0xb1];

/// What trying a password costs.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    pub(super) memory_kib: u32,
    pub(super) passes: u32,
}

/// libsodium's "sensitive".
pub(super) const COST: Cost = Cost { memory_kib: 512 << 10, passes: 8 };

/// An encrypted file.
pub(super) struct Sealed<'a> {
    nonce: &'a [u8],
    boxed: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes a file apart; `None` if it is too short.
    pub(super) fn parse(file: &'a [u8]) -> Option<Self> {
        let (nonce, boxed) = file.strip_prefix(PREFIX)?.split_at_checked(NONCE_LEN)?;
        (boxed.len() >= TAG_LEN).then_some(Self { nonce, boxed })
    }

    /// Decrypts it.
    pub(super) fn open(&self, password: &str, cost: Cost) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let key = derive_key(password, cost).map_err(Unopened::Other)?;
        let opened = secret_box(&key).decrypt(Nonce::from_slice(self.nonce), self.boxed);
        opened.map(Zeroizing::new).map_err(|_| Unopened::WrongPassword)
    }
}

/// Encrypts a file.
pub(super) fn seal(content: &[u8], password: &str, cost: Cost) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    fill_with_chance(&mut nonce)?;
    let key = derive_key(password, cost)?;
    let boxed = secret_box(&key)
        .encrypt(Nonce::from_slice(&nonce), content)
        .map_err(|_| anyhow!("the key could not be encrypted"))?;
    Ok([PREFIX, &nonce, &boxed].concat())
}

fn secret_box(key: &[u8; 32]) -> XSalsa20Poly1305 {
    XSalsa20Poly1305::new(Key::from_slice(key))
}

/// The key of a password. An error if there is not memory enough.
fn derive_key(password: &str, cost: Cost) -> Result<Zeroizing<[u8; 32]>> {
    check_memory(cost, memory::free())?;
    let params = Params::new(cost.memory_kib, cost.passes, 1, Some(32)).map_err(|error| anyhow!("Argon2: {error}"))?;
    let mut blocks = Zeroizing::new(Vec::new());
    blocks.try_reserve_exact(params.block_count()).with_context(|| not_enough(cost))?;
    blocks.resize(params.block_count(), Block::default());
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2i, Version::V0x13, params)
        .hash_password_into_with_memory(password.as_bytes(), &SALT, key.as_mut(), &mut blocks)
        .map_err(|error| anyhow!("Argon2: {error}"))?;
    Ok(key)
}

/// Holds what a password takes against what is free, if the system says.
pub(super) fn check_memory(cost: Cost, free: Option<u128>) -> Result<()> {
    match free {
        Some(free) if free < u128::from(cost.memory_kib) * 1_024 => {
            bail!("{}, and {} are free: end other programs", not_enough(cost), bytes(free))
        }
        _ => Ok(()),
    }
}

fn not_enough(cost: Cost) -> String {
    let needed = bytes(u128::from(cost.memory_kib) * 1_024);
    format!("to make the key of a password takes {needed} of memory")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1 };

    #[test]
    fn what_is_sealed_opens_with_its_password_alone_and_untouched() {
        let sealed = seal(b"content", "password", CHEAP).unwrap();
        assert!(sealed.starts_with(b"$NACL") && sealed.len() == 5 + 24 + 16 + 7);
        assert_ne!(sealed, seal(b"content", "password", CHEAP).unwrap(), "the nonce is used twice");
        let open = |sealed: &[u8], password| Sealed::parse(sealed).unwrap().open(password, CHEAP);
        assert_eq!(*open(&sealed, "password").unwrap(), b"content");
        assert!(matches!(open(&sealed, "Password"), Err(Unopened::WrongPassword)));
        for i in 5..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(matches!(open(&changed, "password"), Err(Unopened::WrongPassword)), "byte {i}");
        }
        assert!(Sealed::parse(&sealed[..5 + 24 + 15]).is_none());
    }

    #[test]
    fn memory_is_looked_for_before_it_is_taken() {
        check_memory(COST, Some(512 << 20)).unwrap();
        check_memory(COST, None).unwrap();
        let error = check_memory(COST, Some(100 << 20)).unwrap_err().to_string();
        assert!(error.contains("512") && error.contains("100"), "{error}");
    }
}
