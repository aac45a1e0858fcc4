//! A key of sr25519, as hotkeys are: what it signs and whose it is, and nothing of what it is.

use std::fmt::{self, Debug};

use anyhow::{Result, anyhow};
use bip39::{Language, Mnemonic};
use hmac::Hmac;
use schnorrkel::{ExpansionMode, MiniSecretKey, SecretKey};
use sha2::Sha512;
use subxt::config::Config;
use subxt_signer::sr25519::{PublicKey, Signature};
use zeroize::Zeroizing;

use crate::chain::{Hotkey, account};

/// What a signature of Substrate's is made for, so that it is valid nowhere else.
const SIGNING_CONTEXT: &[u8] = b"substrate";

/// Bytes of a secret seed.
pub(super) const SEED_LEN: usize = 32;

/// Bytes of a private key, which is what a seed expands to: a scalar and a nonce.
pub(super) const PRIVATE_LEN: usize = 64;

/// A seed, overwritten when it is dropped.
pub(super) type Seed = Zeroizing<[u8; SEED_LEN]>;

/// A hotkey that can sign. What it holds is secret: it is shown nowhere.
pub struct Signer {
    address: Hotkey,
    keypair: Keypair,
}

impl Signer {
    /// That of a key.
    pub(super) fn new(keypair: Keypair) -> Self {
        Self { address: keypair.address(), keypair }
    }

    /// The hotkey's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What signs.
    pub(crate) fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// Signs bytes.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.keypair.sign(bytes).0
    }
}

impl Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A key. Not `subxt_signer`'s own, which takes no private key without its seed and shows all in its debug output.
/// It is overwritten when it is dropped; boxed, so that moves leave no copies of it.
pub struct Keypair(Box<schnorrkel::Keypair>);

impl Keypair {
    /// That of a seed.
    pub(super) fn from_seed(seed: &[u8; SEED_LEN]) -> Self {
        let seed = MiniSecretKey::from_bytes(seed).expect("a seed is any 32 bytes");
        Self(Box::new(seed.expand_to_keypair(ExpansionMode::Ed25519)))
    }

    /// That of a private key; `None` if the bytes are none.
    pub(super) fn from_private(bytes: &[u8; PRIVATE_LEN]) -> Option<Self> {
        SecretKey::from_bytes(bytes).ok().map(|secret| Self(Box::new(secret.to_keypair())))
    }

    /// Its private key.
    pub(super) fn private(&self) -> Zeroizing<[u8; PRIVATE_LEN]> {
        Zeroizing::new(self.0.secret.to_bytes())
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.public.to_bytes())
    }

    /// Its account's address.
    pub fn address(&self) -> Hotkey {
        account::address(&self.public_key().to_account_id())
    }

    /// Signs bytes.
    pub fn sign(&self, bytes: &[u8]) -> Signature {
        Signature(self.0.sign_simple(SIGNING_CONTEXT, bytes).to_bytes())
    }
}

impl<T: Config> subxt::transactions::Signer<T> for Keypair
where
    T::AccountId: From<PublicKey>,
    T::Signature: From<Signature>,
{
    fn account_id(&self) -> T::AccountId {
        self.public_key().into()
    }

    fn sign(&self, payload: &[u8]) -> T::Signature {
        Self::sign(self, payload).into()
    }
}

/// Words that stand for a seed, of the English list.
pub(super) struct Phrase(Mnemonic);

impl Phrase {
    /// Twelve words by chance.
    pub(super) fn new() -> Result<Self> {
        let mut entropy = Zeroizing::new([0; 16]);
        fill_with_chance(entropy.as_mut())?;
        Ok(Self(Mnemonic::from_entropy_in(Language::English, entropy.as_ref())?))
    }

    /// Those of a text; `None` if they are none, or not all as they were, which a checksum tells.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Mnemonic::parse_in_normalized(Language::English, text).ok().map(Self)
    }

    /// The seed that they stand for: not as BIP39 has it, by the words, but as Substrate does, by the bits behind them.
    pub(super) fn seed(&self) -> Seed {
        let (entropy, len) = self.0.to_entropy_array();
        let entropy = Zeroizing::new(entropy);
        let mut seed = Seed::default();
        pbkdf2::pbkdf2::<Hmac<Sha512>>(&entropy[..len], b"mnemonic", 2_048, seed.as_mut())
            .expect("a key of HMAC may have any length");
        seed
    }

    /// Appends the words to a text that has room for them.
    pub(super) fn push(&self, text: &mut String) {
        for (i, word) in self.0.words().enumerate() {
            text.push_str(if i == 0 { "" } else { " " });
            text.push_str(word);
        }
    }
}

/// Fills bytes with what nobody can guess.
pub(crate) fn fill_with_chance(bytes: &mut [u8]) -> Result<()> {
    use crypto_secretbox::aead::OsRng;
    use crypto_secretbox::aead::rand_core::RngCore;
    OsRng.try_fill_bytes(bytes).map_err(|error| anyhow!("the system gives no random numbers: {error}"))
}
