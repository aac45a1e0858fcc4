//! One of the chain's programs as its metadata tells it: where its calls, events, errors and storage entries are.
//!
//! Everything is found by name, so that the same code serves every version.

use anyhow::{Context, Result, anyhow};
use sp_crypto_hashing::{blake2_128, blake2_256, twox_64, twox_128, twox_256};
use subxt::Metadata;
use subxt::ext::codec::Encode;
use subxt::ext::frame_decode::storage::StorageHasher;

use super::Spec;

const A_V14: &[u8] = include_bytes!("metadata/a_v14.scale");
const C_V14: &[u8] = include_bytes!("metadata/c_v14.scale");
const C_V15: &[u8] = include_bytes!("metadata/c_v15.scale");

/// The name of the chain's program.
pub(super) const NAME: &str = "node-subtensor";

/// The version of how transactions are laid out; it goes into signatures.
pub(super) const TRANSACTION_VERSION: u32 = 1;

/// Interfaces of version 143, by the hashes of their names, with their versions.
const APIS_143: &[(u64, u32)] = &[
    (0xdf6a_cb68_9907_609b, 4),
    (0x37e3_97fc_7c91_f5e4, 1),
    (0x40fe_3ad4_01f8_959a, 6),
    (0xd2bc_9897_eed0_8f15, 3),
    (0xf78b_278b_e53f_454c, 2),
    (0xdd71_8d5c_c532_62d4, 1),
    (0xab3c_0572_291f_eb8b, 1),
    (0xed99_c5ac_b25e_edf5, 3),
    (0xbc9d_8990_4f5b_923f, 1),
    (0x37c8_bb13_50a9_a2a8, 3),
    (0xf3ff_14d5_ab52_7059, 3),
];

/// Those of version 185.
const APIS_185: &[(u64, u32)] = &[
    (0xdf6a_cb68_9907_609b, 5),
    (0x37e3_97fc_7c91_f5e4, 2),
    (0x40fe_3ad4_01f8_959a, 6),
    (0xfbc5_77b9_d747_efd6, 1),
    (0xd2bc_9897_eed0_8f15, 3),
    (0xf78b_278b_e53f_454c, 2),
    (0xdd71_8d5c_c532_62d4, 1),
    (0xab3c_0572_291f_eb8b, 1),
    (0xed99_c5ac_b25e_edf5, 3),
    (0xbc9d_8990_4f5b_923f, 1),
    (0x37c8_bb13_50a9_a2a8, 4),
    (0xf3ff_14d5_ab52_7059, 3),
    (0x42e6_2be4_a39e_5b60, 1),
    (0x806d_f4cc_aa9e_d485, 1),
    (0x8375_104b_299b_74c5, 1),
    (0x5d1f_bfbe_852f_2807, 1),
    (0xc688_6e2f_8e59_8b0a, 1),
];

/// Interfaces of which functions can be called here: Core, Metadata, TaggedTransactionQueue, AccountNonceApi,
/// TransactionPaymentApi.
const SERVED: [u64; 5] =
    [0xdf6a_cb68_9907_609b, 0x37e3_97fc_7c91_f5e4, 0xd2bc_9897_eed0_8f15, 0xbc9d_8990_4f5b_923f, 0x37c8_bb13_50a9_a2a8];

/// A program of the chain.
pub(super) struct Program {
    spec: Spec,
    /// By version of the format, ascending.
    raw: Vec<(u32, Vec<u8>)>,
    metadata: Metadata,
}

impl Program {
    /// The program, with the ledger's rate limit of commitments in the place of the chain's, which is a constant there.
    pub(super) fn new(spec: Spec, commit_rate_limit: u64) -> Result<Self> {
        let files: &[(u32, &[u8])] = match spec {
            Spec::V143 => &[(14, A_V14)],
            Spec::V185 => &[(14, C_V14), (15, C_V15)],
        };
        let limit = u32::try_from(commit_rate_limit).unwrap_or(u32::MAX);
        let raw: Vec<_> =
            files.iter().map(|&(format, bytes)| Ok((format, with_rate_limit(bytes, limit)?))).collect::<Result<_>>()?;
        let (_, newest) = raw.last().context("there is no metadata")?;
        let metadata = Metadata::decode_from(newest).context("the embedded metadata is damaged")?;
        Ok(Self { spec, raw, metadata })
    }

    /// Its version; it goes into signatures.
    pub(super) fn version(&self) -> u32 {
        self.spec.version()
    }

    /// What it says of itself, as SCALE; of version 185's interfaces only those that can be called here, as clients that
    /// choose by them would call the others too.
    pub(super) fn version_scale(&self) -> Vec<u8> {
        let is_told = |(name, _): &&(u64, u32)| self.spec == Spec::V143 || SERVED.contains(name);
        let apis: Vec<([u8; 8], u32)> =
            self.apis().iter().filter(is_told).map(|&(name, version)| (name.to_be_bytes(), version)).collect();
        (NAME, NAME, 1_u32, self.version(), 1_u32, apis, TRANSACTION_VERSION, 1_u8).encode()
    }

    /// Its interfaces, by the hashes of their names.
    pub(super) fn apis(&self) -> &'static [(u64, u32)] {
        match self.spec {
            Spec::V143 => APIS_143,
            Spec::V185 => APIS_185,
        }
    }

    /// The formats in which it tells its metadata; `None` for a program that knows of no formats.
    pub(super) fn formats(&self) -> Option<Vec<u32>> {
        (self.raw.len() > 1).then(|| self.raw.iter().map(|&(format, _)| format).collect())
    }

    /// Its metadata in a format.
    pub(super) fn metadata_in(&self, format: u32) -> Option<&[u8]> {
        self.raw.iter().find(|&&(known, _)| known == format).map(|(_, bytes)| bytes.as_slice())
    }

    /// Its metadata in the format that every program has.
    pub(super) fn metadata_v14(&self) -> &[u8] {
        self.metadata_in(14).unwrap_or_default()
    }

    /// The key of a storage entry; `None` if the program has no such entry, or one with other keys.
    pub(super) fn key(&self, pallet: &str, entry: &str, keys: &[&[u8]]) -> Option<Vec<u8>> {
        let storage = self.metadata.pallet_by_name(pallet)?.storage()?;
        let infos = storage.entry_by_name(entry)?.keys();
        if infos.len() != keys.len() {
            return None;
        }
        let mut key = [twox_128(storage.prefix().as_bytes()), twox_128(entry.as_bytes())].concat();
        for (info, part) in std::iter::zip(infos, keys) {
            match info.hasher {
                StorageHasher::Identity => {}
                StorageHasher::Blake2_128 | StorageHasher::Blake2_128Concat => key.extend(blake2_128(part)),
                StorageHasher::Blake2_256 => key.extend(blake2_256(part)),
                StorageHasher::Twox64Concat => key.extend(twox_64(part)),
                StorageHasher::Twox128 => key.extend(twox_128(part)),
                StorageHasher::Twox256 => key.extend(twox_256(part)),
            }
            if let StorageHasher::Identity | StorageHasher::Blake2_128Concat | StorageHasher::Twox64Concat = info.hasher
            {
                key.extend_from_slice(part);
            }
        }
        Some(key)
    }

    /// What a storage entry holds where nothing is written.
    pub(super) fn default_of(&self, pallet: &str, entry: &str) -> Option<&[u8]> {
        self.metadata.pallet_by_name(pallet)?.storage()?.entry_by_name(entry)?.default_value()
    }

    /// The two bytes with which a call begins.
    pub(super) fn call(&self, pallet: &str, name: &str) -> Option<[u8; 2]> {
        let pallet = self.metadata.pallet_by_name(pallet)?;
        Some([pallet.call_index(), pallet.call_variant_by_name(name)?.index])
    }

    /// The two bytes with which an event begins.
    pub(super) fn event(&self, pallet: &str, name: &str) -> Result<[u8; 2]> {
        let find = || {
            let pallet = self.metadata.pallet_by_name(pallet)?;
            let variant = pallet.event_variants()?.iter().find(|variant| variant.name == name)?;
            Some([pallet.event_index(), variant.index])
        };
        find().with_context(|| format!("the program has no event {pallet}.{name}"))
    }

    /// The five bytes of a pallet's error, by the first of several names that the program knows.
    pub(super) fn error(&self, pallet: &str, names: &[&str]) -> Result<[u8; 5]> {
        let find = || {
            let pallet = self.metadata.pallet_by_name(pallet)?;
            let variants = pallet.error_variants()?;
            let found = names.iter().find_map(|name| variants.iter().find(|variant| variant.name == *name))?;
            Some([pallet.error_index(), found.index, 0, 0, 0])
        };
        find().with_context(|| format!("the program has none of the errors {names:?} of {pallet}"))
    }
}

/// Metadata whose constant `Commitments.RateLimit` is another one.
fn with_rate_limit(metadata: &[u8], limit: u32) -> Result<Vec<u8>> {
    // Its name after its length; then the number of its type, the length of its value, and the value.
    const NAME: &[u8] = b"\x24RateLimit";
    const VALUE: &[u8] = b"\x10\x64\x00\x00\x00";
    let found = metadata.windows(NAME.len()).position(|window| window == NAME);
    let after = found.map(|start| start + NAME.len());
    let place = after.and_then(|after| {
        let value = metadata[after..].windows(VALUE.len()).take(5).position(|window| window == VALUE)?;
        Some(after + value + 1)
    });
    let place = place.ok_or_else(|| anyhow!("the embedded metadata has no rate limit of commitments"))?;
    let mut changed = metadata.to_vec();
    changed[place..place + 4].copy_from_slice(&limit.to_le_bytes());
    Ok(changed)
}
