//! The program that the chain runs at a block, by its own description: names, indices, types and limits are read from its
//! metadata, so that assay works with versions it was not made for. What a version lacks is `None` here.

use anyhow::{Context, Result, anyhow};
use subxt::SubstrateConfig;
use subxt::client::{OfflineClient, OfflineClientAtBlock};
use subxt::config::DefaultExtrinsicParamsBuilder;
use subxt::config::substrate::SpecVersionForRange;
use subxt::ext::codec::Decode;
use subxt::ext::frame_decode::storage::{StorageInfo, StorageTypeInfo, encode_storage_key_with_info};
use subxt::ext::scale_decode::DecodeAsType;
use subxt::ext::scale_encode::{self, EncodeAsType};
use subxt::ext::scale_type_resolver::TypeResolver;
use subxt::metadata::{ArcMetadata, Metadata};
use subxt::tx::{Payload, Signer};
use subxt::utils::{AccountId32, H256};

use super::link::Link;
use super::trouble::{Attempt, Fault, Trouble};
use super::types::Finite;
use crate::error::input;

/// A signed extrinsic may be included in so many blocks from the one that it was signed at. With blocks of 12 seconds it
/// cannot appear later than after 6 minutes.
pub(super) const LIFETIME: u64 = 32;

/// The newest form of metadata that is understood for sure.
const METADATA_FORM: u32 = 15;

/// A place in the chain's storage, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The pallet.
    pub(super) pallet: &'static str,
    /// Its name there.
    pub(super) name: &'static str,
}

/// An entry of the pallet of subnets.
pub(super) const fn of_subnet(name: &'static str) -> Entry {
    Entry { pallet: "SubtensorModule", name }
}

/// A part of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// A netuid, a uid.
    Number(u16),
    /// An account.
    Account(AccountId32),
}

impl EncodeAsType for Part {
    fn encode_as_type_to<R: TypeResolver>(
        &self,
        type_id: R::TypeId,
        types: &R,
        out: &mut Vec<u8>,
    ) -> Result<(), scale_encode::Error> {
        match self {
            Self::Number(number) => number.encode_as_type_to(type_id, types, out),
            Self::Account(account) => account.encode_as_type_to(type_id, types, out),
        }
    }
}

/// What a block says about its program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// The program's name.
    pub(super) name: String,
    /// Its version.
    pub(super) spec: u32,
    /// The version of its extrinsics.
    pub(super) transaction: u32,
}

impl Version {
    /// Reads it at a block.
    pub(super) async fn read(link: &Link, block: H256) -> Result<Self, Fault> {
        type Wire = (String, String, u32, u32, u32, Vec<([u8; 8], u32)>, u32);
        let bytes = link.call("Core_version", &[], block).await?;
        let (name, _, _, spec, _, _, transaction) =
            Wire::decode(&mut &*bytes).map_err(|error| Fault::Lost(format!("its version does not decode: {error}")))?;
        Ok(Self { name, spec, transaction })
    }
}

/// A version of the chain's program.
pub(super) struct Runtime {
    /// Which.
    pub(super) version: Version,
    genesis: H256,
    metadata: ArcMetadata,
    finite: Finite,
}

impl Runtime {
    /// A program of known metadata.
    pub(super) fn new(version: Version, genesis: H256, metadata: Metadata) -> Self {
        let finite = Finite::of(metadata.types(), metadata.types().types.len());
        Self { version, genesis, metadata: metadata.arc(), finite }
    }

    /// Fetches the description of the program that runs at a block.
    pub(super) async fn load(link: &Link, block: H256, genesis: H256, version: Version) -> Attempt<Self> {
        let bytes = metadata_bytes(link, block).await?;
        let metadata = Metadata::decode_from(&bytes)
            .map_err(|error| Trouble::Node(format!("its metadata does not decode: {error}")))?;
        if metadata.pallet_by_name("SubtensorModule").is_none() {
            return Err(Trouble::Final(input(format!(
                "the chain runs `{}` and has no pallet SubtensorModule: it is not Bittensor's; mend the endpoint",
                super::trouble::quoted(&version.name)
            ))));
        }
        Ok(Self::new(version, genesis, metadata))
    }

    fn info(&self, entry: Entry) -> Result<Option<StorageInfo<'_, u32>>> {
        let Entry { pallet, name } = entry;
        let Ok(info) = self.metadata.storage_info(pallet, name) else { return Ok(None) };
        self.check_types(&format!("{pallet}.{name}"), info.keys.iter().map(|key| key.key_id).chain([info.value_id]))?;
        Ok(Some(info))
    }

    /// Refuses types that no decoder or encoder should be let loose on.
    fn check_types(&self, what: &str, mut ids: impl Iterator<Item = u32>) -> Result<()> {
        match ids.all(|id| self.finite.has(id)) {
            true => Ok(()),
            false => Err(self.strange(&format!("{what} is of a type that holds itself, or too much"))),
        }
    }

    /// Whether the version has the entry.
    pub(super) fn has(&self, entry: Entry) -> bool {
        self.metadata.storage_info(entry.pallet, entry.name).is_ok()
    }

    /// An error if the version lacks an entry without which nothing sound can be said.
    pub(super) fn require(&self, entry: Entry) -> Result<()> {
        if self.has(entry) {
            return Ok(());
        }
        let Version { name, spec, .. } = &self.version;
        Err(anyhow!(
            "the chain has no {}.{}: this version of assay cannot read its program, {} {spec}; look for a newer assay",
            entry.pallet,
            entry.name,
            super::trouble::quoted(name)
        ))
    }

    /// The key of a value, or the prefix of the keys that begin with these parts; `None` if the version has no such entry.
    pub(super) fn key(&self, entry: Entry, parts: &[Part]) -> Result<Option<Vec<u8>>> {
        let Some(info) = self.info(entry)? else { return Ok(None) };
        let Entry { pallet, name } = entry;
        encode_storage_key_with_info(pallet, name, parts.to_vec(), &info, self.metadata.types())
            .map(Some)
            .map_err(|error| self.strange(&format!("the key of {pallet}.{name} is of another kind ({error})")))
    }

    /// A value from its bytes. Without bytes it is what the chain takes for an absent value, `None` if that is nothing or
    /// the version has no such entry.
    pub(super) fn decode<T: DecodeAsType>(&self, entry: Entry, bytes: Option<&[u8]>) -> Result<Option<T>> {
        let Some(info) = self.info(entry)? else { return Ok(None) };
        let Some(mut bytes) = bytes.or(info.default_value.as_deref()) else { return Ok(None) };
        let value = T::decode_as_type(&mut bytes, info.value_id, self.metadata.types());
        match value {
            Ok(value) if bytes.is_empty() => Ok(Some(value)),
            Ok(_) => Err(self.strange(&format!("{}.{} has bytes to spare", entry.pallet, entry.name))),
            Err(error) => Err(self.strange(&format!("{}.{} does not decode ({error})", entry.pallet, entry.name))),
        }
    }

    /// A constant; `None` if the version has none of that name.
    pub(super) fn constant<T: DecodeAsType>(&self, pallet: &str, name: &str) -> Result<Option<T>> {
        let Some(constant) = self.metadata.pallet_by_name(pallet).and_then(|pallet| pallet.constant_by_name(name))
        else {
            return Ok(None);
        };
        self.check_types(&format!("{pallet}.{name}"), [constant.ty()].into_iter())?;
        T::decode_as_type(&mut constant.value(), constant.ty(), self.metadata.types())
            .map(Some)
            .map_err(|error| self.strange(&format!("the constant {pallet}.{name} does not decode ({error})")))
    }

    /// `Pallet.Error` of the two numbers of a failed call.
    pub(super) fn error_name(&self, pallet: u8, error: u8) -> Option<String> {
        let pallet = self.metadata.pallet_by_error_index(pallet)?;
        Some(format!("{}.{}", pallet.name(), pallet.error_variant_by_index(error)?.name))
    }

    /// The bytes of a call.
    #[cfg(test)]
    pub(super) fn call_bytes(&self, call: &impl Payload) -> Result<Vec<u8>> {
        Ok(self.offline()?.tx().call_data(call)?)
    }

    /// A signed extrinsic that can be included from block `born` on, for [`LIFETIME`] blocks.
    pub(super) fn sign(
        &self,
        call: &impl Payload,
        signer: &impl Signer<SubstrateConfig>,
        born: (u64, H256),
        nonce: u64,
    ) -> Result<Vec<u8>> {
        let params = DefaultExtrinsicParamsBuilder::<SubstrateConfig>::new()
            .mortal_from_unchecked(LIFETIME, born.0, born.1)
            .nonce(nonce)
            .build();
        let client = self.offline()?;
        let (pallet, name) = (call.pallet_name(), call.call_name());
        let arguments = self.metadata.pallet_by_name(pallet).and_then(|pallet| pallet.call_variant_by_name(name));
        let arguments = arguments.into_iter().flat_map(|call| &call.fields).map(|field| field.ty.id);
        let extrinsic = self.metadata.extrinsic();
        let extensions = extrinsic.transaction_extensions_to_use_for_encoding();
        let extensions = extensions.flat_map(|extension| [extension.extra_ty(), extension.additional_ty()]);
        self.check_types(&format!("{pallet}.{name}"), arguments.chain(extensions))?;
        let mut signable = client
            .tx()
            .create_signable_offline(call, params)
            .map_err(|error| self.strange(&format!("{pallet}.{name} cannot be signed ({error})")))?;
        let signed = signable
            .sign(signer)
            .map_err(|error| self.strange(&format!("{pallet}.{name} cannot be signed ({error})")))?;
        Ok(signed.into_encoded())
    }

    /// What decodes blocks and makes extrinsics of this version.
    pub(super) fn offline(&self) -> Result<OfflineClientAtBlock<SubstrateConfig>> {
        let Version { spec, transaction, .. } = self.version;
        let versions =
            SpecVersionForRange { block_range: 0..u64::MAX, spec_version: spec, transaction_version: transaction };
        let config = SubstrateConfig::builder()
            .set_genesis_hash(self.genesis)
            .set_metadata_for_spec_versions([(spec, self.metadata.clone())])
            .set_spec_version_for_block_ranges([versions])
            .build();
        OfflineClient::new_with_config(config).at_block(0_u64).context("the versions of a program are not known")
    }

    /// An error about what this version of assay does not understand.
    pub(super) fn strange(&self, what: &str) -> anyhow::Error {
        let Version { name, spec, .. } = &self.version;
        anyhow!(
            "what the chain's program, {} {spec}, says of itself does not fit what the node gives, or what assay knows: {what}",
            super::trouble::quoted(name)
        )
    }
}

/// The metadata in the newest form that is understood, or in the form that every node has.
async fn metadata_bytes(link: &Link, block: H256) -> Attempt<Vec<u8>> {
    match link.call("Metadata_metadata_at_version", &METADATA_FORM.to_le_bytes(), block).await {
        Ok(bytes) => {
            if let Ok(Some(metadata)) = Option::<Vec<u8>>::decode(&mut &*bytes) {
                return Ok(metadata);
            }
        }
        // Programs of the beginning of 2024 do not have the function.
        Err(Fault::Refused { .. }) => (),
        Err(fault) => return Err(fault.into()),
    }
    let bytes = link.call("Metadata_metadata", &[], block).await?;
    Vec::<u8>::decode(&mut &*bytes).map_err(|error| Trouble::Node(format!("its metadata does not decode: {error}")))
}
