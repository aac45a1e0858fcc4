//! What is in a key file once it is decrypted: a JSON object with a key's secret in up to three forms, and with its address.
//!
//! Sentences about what is wrong with it name fields, never what they hold: a parser's own might quote a secret.

use std::fmt::Write;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use zeroize::Zeroizing;

use super::hex;
use super::key::{Keypair, PRIVATE_LEN, Phrase, SEED_LEN, Seed, Signer};
use crate::chain::{Hotkey, account};

/// What Bittensor's tools number the curve sr25519 with; they leave it out where it is the only one that they know.
const SR25519: u64 = 1;

/// Room for all that [`of_key`] writes, so that no copy of it is left behind.
const ROOM: usize = 1_024;

/// The object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Content {
    crypto_type: Option<Value>,
    #[serde(default, deserialize_with = "secret")]
    secret_seed: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "secret")]
    private_key: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "secret")]
    secret_phrase: Option<Zeroizing<String>>,
    account_id: Option<String>,
    public_key: Option<String>,
    ss58_address: Option<Hotkey>,
}

/// A text that is overwritten when it is dropped, as it is where what comes after it cannot be read.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.map(Zeroizing::new))
}

impl Content {
    /// Reads it; the error says where it is damaged.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("at line {}, column {} it is not the JSON of a key", error.line(), error.column()))
    }

    /// The address that it claims.
    pub(super) fn address(&self) -> Option<Hotkey> {
        if let Some(address) = &self.ss58_address {
            return account::parse(address).is_ok().then(|| address.clone());
        }
        let public = self.public_key.as_ref().or(self.account_id.as_ref())?;
        let bytes: [u8; 32] = hex::parse(public)?.as_slice().try_into().ok()?;
        Some(account::address(&bytes.into()))
    }

    /// The key that its secrets are of, all of the same, and its address too; `None` if it holds no secret.
    pub(super) fn signer(&self) -> Result<Option<Signer>, String> {
        self.check_curve()?;
        let mut found: Option<(&str, Signer)> = None;
        for (field, keypair) in self.keypairs()? {
            let signer = Signer::new(keypair);
            match &found {
                Some((first, other)) if other.address() != signer.address() => {
                    return Err(format!("its `{first}` and its `{field}` are of different keys"));
                }
                Some(_) => {}
                None => found = Some((field, signer)),
            }
        }
        let Some((field, signer)) = found else { return Ok(None) };
        self.check_claims(field, &signer)?;
        Ok(Some(signer))
    }

    fn check_curve(&self) -> Result<(), String> {
        let number = match &self.crypto_type {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_u64(),
        };
        match number {
            Some(SR25519) => Ok(()),
            Some(other) => {
                Err(format!("its key is of kind {other} (`cryptoType`), and assay signs with sr25519, kind 1"))
            }
            None => Err("its `cryptoType` is no number".to_owned()),
        }
    }

    /// The key of each secret, the one to be preferred first.
    fn keypairs(&self) -> Result<Vec<(&'static str, Keypair)>, String> {
        let mut keypairs = Vec::new();
        if let Some(text) = &self.secret_seed {
            let keypair = hex::parse(text).and_then(|bytes| keypair_of(&bytes));
            keypairs
                .push(("secretSeed", keypair.ok_or("its `secretSeed` is damaged: it must be 64 hexadecimal digits")?));
        }
        if let Some(text) = &self.secret_phrase {
            let phrase =
                Phrase::parse(text).ok_or("its `secretPhrase` is damaged: a word is wrong, missing or misplaced")?;
            keypairs.push(("secretPhrase", Keypair::from_seed(&phrase.seed())));
        }
        if let Some(text) = &self.private_key {
            let bytes = hex::parse(text).filter(|bytes| bytes.len() == PRIVATE_LEN);
            let keypair = bytes.and_then(|bytes| keypair_of(&bytes));
            keypairs
                .push(("privateKey", keypair.ok_or("its `privateKey` is damaged: it must be 128 hexadecimal digits")?));
        }
        Ok(keypairs)
    }

    fn check_claims(&self, field: &str, signer: &Signer) -> Result<(), String> {
        let public = signer.keypair().public_key();
        let is_public = |text: &String| hex::parse(text).is_some_and(|bytes| *bytes == public.0);
        let claims = [
            ("ss58Address", self.ss58_address.as_ref().is_none_or(|address| address == signer.address())),
            ("publicKey", self.public_key.as_ref().is_none_or(is_public)),
            ("accountId", self.account_id.as_ref().is_none_or(is_public)),
        ];
        match claims.iter().find(|(_, holds)| !holds) {
            Some((claim, _)) => {
                Err(format!("its `{claim}` is not that of its `{field}`, whose address is {}", signer.address()))
            }
            None => Ok(()),
        }
    }
}

/// The key of a seed, or of a private key in its place, as Bittensor's tools take it.
fn keypair_of(bytes: &[u8]) -> Option<Keypair> {
    match bytes.len() {
        SEED_LEN => Some(Keypair::from_seed(bytes.try_into().ok()?)),
        PRIVATE_LEN => Keypair::from_private(bytes.try_into().ok()?),
        _ => None,
    }
}

/// The object of a key, as Bittensor's tools of 2026 write it.
pub(super) fn of_key(phrase: &Phrase, seed: &Seed, keypair: &Keypair) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(ROOM));
    text.push_str(r#"{"cryptoType":1,"secretSeed":"0x"#);
    hex::push(&mut text, seed.as_ref());
    text.push_str(r#"","privateKey":"0x"#);
    hex::push(&mut text, keypair.private().as_ref());
    text.push_str(r#"","secretPhrase":""#);
    phrase.push(&mut text);
    text.push_str(r#"","#);
    push_public(&mut text, keypair);
    text.push('}');
    text
}

/// The object of what everybody may know of a key.
pub(super) fn of_public(keypair: &Keypair) -> String {
    let mut text = r#"{"cryptoType":1,"#.to_owned();
    push_public(&mut text, keypair);
    text.push('}');
    text
}

fn push_public(text: &mut String, keypair: &Keypair) {
    let mut public = String::new();
    hex::push(&mut public, &keypair.public_key().0);
    let address = keypair.address();
    write!(text, r#""accountId":"0x{public}","publicKey":"0x{public}","ss58Address":"{address}""#)
        .expect("a string takes all");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::golden;

    const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

    fn golden_2026() -> Value {
        let bytes = std::fs::read(golden::path("chain/keyfiles/hotkey_plain_2026.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn signer(value: &Value) -> Result<Option<Signer>, String> {
        Content::parse(value.to_string().as_bytes())?.signer()
    }

    #[test]
    fn each_golden_secret_alone_is_the_key_and_what_is_written_is_the_golden_file() {
        let golden = golden_2026();
        let address = golden["ss58Address"].as_str().unwrap();
        for field in ["secretSeed", "secretPhrase", "privateKey"] {
            assert_eq!(signer(&json!({ field: golden[field] })).unwrap().unwrap().address(), address, "{field}");
        }
        // Without 0x, with a number for text, and with a private key for a seed, which Bittensor's tools take as well.
        let digits = golden["secretSeed"].as_str().unwrap().strip_prefix("0x").unwrap();
        assert_eq!(signer(&json!({"secretSeed": digits, "cryptoType": "1"})).unwrap().unwrap().address(), address);
        assert_eq!(signer(&json!({"secretSeed": golden["privateKey"]})).unwrap().unwrap().address(), address);

        let phrase = Phrase::parse(golden["secretPhrase"].as_str().unwrap()).unwrap();
        let seed = phrase.seed();
        let written = of_key(&phrase, &seed, &Keypair::from_seed(&seed));
        let file = std::fs::read_to_string(golden::path("chain/keyfiles/hotkey_plain_2026.json")).unwrap();
        assert_eq!(*written, file);
        assert!(written.capacity() == ROOM, "a copy was left behind");
        let public = Content::parse(of_public(&Keypair::from_seed(&seed)).as_bytes()).unwrap();
        assert!(public.signer().unwrap().is_none());
        assert_eq!(public.address().unwrap(), address);
    }

    #[test]
    fn secrets_and_claims_that_are_not_of_one_key_are_refused() {
        let golden = golden_2026();
        let refused = |changes: Value, sentence: &str| {
            let mut value = golden.clone();
            value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let error = signer(&value).unwrap_err();
            assert!(error.contains(sentence), "{error}");
            for secret in ["secretSeed", "secretPhrase", "privateKey"].map(|field| golden[field].as_str().unwrap()) {
                assert!(!error.contains(secret), "{error}");
            }
        };
        let other = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
        refused(json!({"secretPhrase": other}), "its `secretSeed` and its `secretPhrase` are of different keys");
        refused(
            json!({"ss58Address": ALICE}),
            "its `ss58Address` is not that of its `secretSeed`, whose address is 5EFF",
        );
        refused(json!({"accountId": "0x00"}), "its `accountId`");
        refused(json!({"publicKey": "no digits"}), "its `publicKey`");
        refused(json!({"secretSeed": "0x12"}), "its `secretSeed` is damaged");
        refused(json!({"secretPhrase": "join prison"}), "its `secretPhrase` is damaged");
        refused(json!({"privateKey": format!("0x{}", "ff".repeat(64))}), "its `privateKey` is damaged");
        refused(json!({"privateKey": golden["secretSeed"]}), "its `privateKey` is damaged");
        refused(json!({"cryptoType": 0}), "of kind 0");
        refused(json!({"cryptoType": [1]}), "`cryptoType` is no number");
        refused(json!({"secretSeed": 5}), "not the JSON of a key");
    }

    #[test]
    fn a_damaged_file_is_described_without_quoting_it() {
        for text in [r#"{"secretSeed": ["my secret"]}"#, r#"{"secretSeed": "my secret""#, "my secret", r#""my secret""#]
        {
            let error = Content::parse(text.as_bytes()).err().unwrap();
            assert!(error.starts_with("at line 1, column") && !error.contains("secret"), "{error}");
        }
    }
}
