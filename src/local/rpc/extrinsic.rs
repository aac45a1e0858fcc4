//! Signed transactions as they come over the wire, and whether their signatures hold.
//!
//! Format 4: length, 0x84, the signer's account after 0x00, an sr25519 signature after 0x01, how long it lives, its number,
//! the tip, and the call. The signature is of the call with those three, the program's versions, and the hashes of the
//! chain's first block and of the block at which its life begins; of their hash where that is longer than 256 bytes.

use jsonrpsee::types::ErrorObjectOwned;
use sp_crypto_hashing::blake2_256;
use subxt::ext::codec::{Compact, Decode, Encode, Input};
use subxt_signer::sr25519::{PublicKey, Signature, verify};

use super::accounts::Account;
use super::program::TRANSACTION_VERSION;
use super::refused::{Invalid, bad_format};

/// The longest one that is taken; those that this node takes have at most some 1,200 bytes.
pub(super) const MAX_BYTES: usize = 4 * 1024;

/// A signed transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extrinsic {
    /// Who says to have signed it.
    pub(super) account: Account,
    /// The account's transactions are numbered from 0.
    pub(super) nonce: u32,
    /// How long it lives.
    pub(super) era: Era,
    /// What the signer would pay on top.
    pub(super) tip: u128,
    /// The call, without the length.
    pub(super) call: Vec<u8>,
    /// `None` of another kind than sr25519.
    signature: Option<[u8; 64]>,
    /// Life, number and tip as they came.
    extra: Vec<u8>,
}

/// The blocks at which a transaction is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Era {
    /// All.
    Immortal,
    /// So many from any on whose number leaves that rest.
    Mortal {
        /// How many.
        period: u64,
        /// The rest.
        phase: u64,
    },
}

impl Era {
    /// The block at which the life begins that holds a block.
    pub(super) fn birth(self, block: u64) -> u64 {
        match self {
            Self::Immortal => 0,
            Self::Mortal { period, phase } => (block.max(phase) - phase) / period * period + phase,
        }
    }

    fn read(input: &mut &[u8]) -> Option<Self> {
        let first = u8::decode(input).ok()?;
        if first == 0 {
            return Some(Self::Immortal);
        }
        let era = u64::from(u16::from_le_bytes([first, u8::decode(input).ok()?]));
        let period = 2_u64 << (era % 16);
        let phase = (era >> 4) * (period >> 12).max(1);
        (period >= 4 && phase < period).then_some(Self::Mortal { period, phase })
    }
}

/// What a signature is good for besides the call.
pub(super) struct Place {
    /// The program's version.
    pub(super) spec: u32,
    /// The hash of the chain's first block.
    pub(super) genesis: [u8; 32],
    /// The hash of the block at which the life begins.
    pub(super) birth: [u8; 32],
}

impl Extrinsic {
    /// Reads what was submitted.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ErrorObjectOwned> {
        let mut input = bytes;
        let len = Compact::<u32>::decode(&mut input).map_err(|_| bad_format("it has no length"))?;
        if usize::try_from(len.0).ok() != Some(input.len()) {
            return Err(bad_format("its length is not what it says"));
        }
        Self::read_signed(input).ok_or_else(|| bad_format("it is no signed transaction of format 4"))
    }

    fn read_signed(mut input: &[u8]) -> Option<Self> {
        // Format 4 and signed; an account in 32 bytes.
        if <[u8; 2]>::decode(&mut input).ok()? != [0x84, 0x00] {
            return None;
        }
        let account = Account::decode(&mut input).ok()?;
        let signature = match input.read_byte().ok()? {
            1 => Some(<[u8; 64]>::decode(&mut input).ok()?),
            0 => {
                input = input.get(64..)?;
                None
            }
            2 => {
                input = input.get(65..)?;
                None
            }
            _ => return None,
        };
        let signed = input;
        let era = Era::read(&mut input)?;
        let nonce = Compact::<u32>::decode(&mut input).ok()?.0;
        let tip = Compact::<u128>::decode(&mut input).ok()?.0;
        let extra = signed[..signed.len() - input.len()].to_vec();
        Some(Self { account, nonce, era, tip, call: input.to_vec(), signature, extra })
    }

    /// Whether who it names has signed it, for this place.
    pub(super) fn check_signature(&self, place: &Place) -> Result<(), Invalid> {
        let additional = (place.spec, TRANSACTION_VERSION, place.genesis, place.birth).encode();
        let mut payload = [self.call.as_slice(), &self.extra, &additional].concat();
        if payload.len() > 256 {
            payload = blake2_256(&payload).to_vec();
        }
        let signature = Signature(self.signature.ok_or(Invalid::BadProof)?);
        verify(&signature, payload, &PublicKey(self.account)).then_some(()).ok_or(Invalid::BadProof)
    }
}
