//! The name of a published model: what a miner writes to the chain, `namespace:name:commit:hash`.
//!
//! Parsing is as lenient as the reference's: extra fields are ignored, `None` for commit or hash means none, and
//! nothing else is checked. What a *sensible* id is (a repository of 4 to 41 characters) is [`split_repo_id`]'s affair.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use thiserror::Error;

use crate::hex;

/// The longest commitment the chain takes, in bytes.
pub const MAX_COMMITMENT_BYTES: usize = 128;
/// The longest repository id (`namespace/name`) that fits into a commitment, in characters.
pub const MAX_REPO_ID_CHARS: usize = 41;
/// Repository ids must be longer than this many characters.
pub const MIN_REPO_ID_CHARS: usize = 3;

/// A model in a repository, at a commit, with the hash of its folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelId {
    /// User or organisation.
    pub namespace: String,
    /// Name of the repository.
    pub name: String,
    /// Git commit of the upload.
    pub commit: Option<String>,
    /// Directory hash of the model, in base64.
    pub hash: Option<String>,
}

/// The text is no model id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no model id: it needs four parts, `namespace:name:commit:hash`")]
pub struct ParseModelIdError(String);

impl FromStr for ModelId {
    type Err = ParseModelIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':').map(str::to_owned);
        let mut part = || parts.next().ok_or_else(|| ParseModelIdError(text.to_owned()));
        let (namespace, name, commit, hash) = (part()?, part()?, part()?, part()?);
        let optional = |text: String| (text != "None").then_some(text);
        Ok(Self { namespace, name, commit: optional(commit), hash: optional(hash) })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| "None".to_owned());
        write!(f, "{}:{}:{}:{}", self.namespace, self.name, optional(&self.commit), optional(&self.hash))
    }
}

impl ModelId {
    /// The repository, `namespace/name`.
    pub fn repo_id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether the id survives the way through its text: no part holds a colon, and neither commit nor hash is the
    /// text `None`.
    pub fn survives_its_text(&self) -> bool {
        self.to_string().parse().as_ref() == Ok(self)
    }

    /// Whether the chain takes the id's text as a commitment.
    pub fn fits_commitment(&self) -> bool {
        self.to_string().len() <= MAX_COMMITMENT_BYTES
    }
}

/// What the chain knows of a miner's model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelMetadata {
    /// The model.
    pub id: ModelId,
    /// Block of the commitment: the older of two equal models wins. The reference refuses block 0.
    pub block: NonZeroU64,
}

/// The text of a commitment, from the hexadecimal form (`0x...`) in which the chain's JSON gives its bytes. `None` if
/// it is no hexadecimal text, or its bytes are not UTF-8.
pub fn commitment_text(hexadecimal: &str) -> Option<String> {
    String::from_utf8(hex::read(hexadecimal)?).ok()
}

/// Splits `namespace/name`, refusing what the reference refuses. The error is a sentence for the user.
pub fn split_repo_id(repo_id: &str) -> Result<(&str, &str), String> {
    if repo_id.is_empty() {
        return Err("The repository is empty; write it as namespace/name.".to_owned());
    }
    let num_chars = repo_id.chars().count();
    if num_chars <= MIN_REPO_ID_CHARS || num_chars > MAX_REPO_ID_CHARS {
        return Err(format!(
            "The repository `{repo_id}` has {num_chars} characters; it must have more than {MIN_REPO_ID_CHARS} and at \
             most {MAX_REPO_ID_CHARS}, or its commitment does not fit on the chain."
        ));
    }
    match repo_id.split_once('/') {
        Some((namespace, name)) if !name.contains('/') => Ok((namespace, name)),
        _ => Err(format!("The repository `{repo_id}` is not of the form namespace/name.")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;

    fn golden(section: &str) -> Vec<Value> {
        crate::golden::cases("hash", section)
    }

    fn id(fields: &Value) -> ModelId {
        let text = |key: &str| fields[key].as_str().map(str::to_owned);
        ModelId {
            namespace: text("namespace").unwrap(),
            name: text("name").unwrap(),
            commit: text("commit"),
            hash: text("hash"),
        }
    }

    #[test]
    fn golden_model_ids_parse_and_print_as_the_reference() {
        for case in golden("from_compressed_str") {
            let text = case["compressed"].as_str().unwrap();
            let parsed = text.parse::<ModelId>();
            match case["reference"].get("value") {
                Some(value) => {
                    let parsed = parsed.unwrap();
                    assert_eq!(parsed, id(value), "{text}");
                    assert_eq!(parsed.to_string(), case["reference"]["recompressed"].as_str().unwrap());
                }
                None => assert!(parsed.is_err(), "{text}"),
            }
        }
    }

    /// Cases whose fields are not texts (Python converts numbers) or that the reference refuses cannot be written with
    /// our types; those remain that are built of the reference's resulting value.
    #[test]
    fn golden_constructed_model_ids_print_as_the_reference() {
        let mut num_checked = 0;
        for case in golden("construct") {
            let Some(value) = case["reference"].get("value") else { continue };
            let id = id(value);
            assert_eq!(id.to_string(), case["reference"]["compressed"].as_str().unwrap());
            assert_eq!(id.survives_its_text(), case["reference"]["roundtrip"]["value"].as_bool().unwrap(), "{id}");
            num_checked += 1;
        }
        assert!(num_checked > 0);
    }

    #[test]
    fn golden_repo_ids_are_split_or_refused_as_the_reference() {
        for case in golden("validate_hf_repo_id") {
            let repo = case["repo"].as_str().unwrap_or("");
            match case["reference"].get("value") {
                Some(parts) => {
                    let expected = (parts[0].as_str().unwrap(), parts[1].as_str().unwrap());
                    assert_eq!(split_repo_id(repo), Ok(expected), "{repo}");
                }
                None => assert!(split_repo_id(repo).is_err(), "{repo}"),
            }
        }
    }

    /// Texts and fractions, which Python converts to integers, have no counterpart here.
    #[test]
    fn golden_blocks_of_metadata_are_positive() {
        let mut num_checked = 0;
        for case in golden("metadata_block_positive_int") {
            let Some(block) = case["block"].as_i64() else { continue };
            let ours = u64::try_from(block).ok().and_then(NonZeroU64::new);
            assert_eq!(ours.map(u64::from), case["reference"]["value"].as_u64(), "{block}");
            num_checked += 1;
        }
        assert!(num_checked > 0);
    }

    #[test]
    fn golden_commitments_decode_as_the_reference() {
        for case in golden("chain_decode") {
            let field = case["metadata"]["info"]["fields"][0].as_object().unwrap();
            let raw = field.values().next().unwrap().as_str().unwrap();
            assert_eq!(commitment_text(raw).as_deref(), case["chain_str"]["value"].as_str(), "{raw}");
        }
        assert_eq!(commitment_text("0x6"), None);
        assert_eq!(commitment_text("0x6g"), None);
    }

    #[test]
    fn golden_commitments_fit_the_chain_up_to_its_limit() {
        for case in golden("length") {
            let num_chars = case["ns_plus_name_chars"].as_u64().unwrap() as usize;
            let id = ModelId {
                namespace: "n".repeat(num_chars / 2),
                name: "m".repeat(num_chars - num_chars / 2),
                commit: Some("a".repeat(40)),
                hash: Some("h".repeat(44)),
            };
            assert_eq!(id.to_string().len() as u64, case["compressed_bytes"].as_u64().unwrap());
            assert_eq!(id.fits_commitment(), case["fits_128"].as_bool().unwrap());
            assert_eq!(id.repo_id().chars().count() as u64, case["repo_id_len_with_slash"].as_u64().unwrap());
        }
    }
}
