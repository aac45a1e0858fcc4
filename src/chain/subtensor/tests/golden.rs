//! What real nodes took and gave: the runtimes of March 2024 (`a`, version 143) and of the middle of 2024 (`c`, 185).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use subxt::metadata::Metadata;
use subxt::utils::H256;

use super::recorded::Recorded;
use super::{over, unhex};
use crate::chain::subtensor::commitments::{COMMITMENT_OF, Registration, commit_call};
use crate::chain::subtensor::delivery::{Delivered, Extrinsic, outcome};
use crate::chain::subtensor::runtime::{Entry, Part, Runtime, Version};
use crate::chain::subtensor::weights::weights_call;
use crate::chain::wallet::Keyring;
use crate::chain::{Chain, CommitLimit, Currency, account};
use crate::golden;
use crate::hex;

/// The runtimes with the forms of their metadata.
const FORMS: [(&str, &str); 3] = [("a", "a_v14"), ("c", "c_v14"), ("c", "c_v15")];

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden::path(&format!("chain/{name}.json"))).unwrap()).unwrap()
}

fn runtime(metadata: &str) -> Runtime {
    let version = Version { name: "node-subtensor".to_owned(), spec: 1, transaction: 1 };
    Runtime::new(version, H256::zero(), Metadata::decode_from(&super::metadata(metadata)).unwrap())
}

/// `commitments.X` as the chain writes it in its metadata.
fn pascal(name: &str) -> String {
    name[..1].to_uppercase() + &name[1..]
}

#[test]
fn commitments_are_sent_and_read_as_the_real_chain_has_them() {
    for (name, metadata) in FORMS {
        let (runtime, file) = (runtime(metadata), read(&format!("{name}_commitments")));
        let commitments = file["commitments"].as_array().unwrap();
        assert_eq!(commitments.len(), 9);
        for commitment in commitments {
            let netuid = commitment["netuid"].as_u64().unwrap() as u16;
            let account = account::parse(commitment["hotkey"].as_str().unwrap()).unwrap();
            assert_eq!(hex::write(account.0), commitment["public_key"].as_str().unwrap());
            let bytes = commitment["text"].as_str().map(|text| text.as_bytes().to_vec());
            if let Some(bytes) = &bytes {
                let call = runtime.call_bytes(&commit_call(netuid, bytes)).unwrap();
                assert_eq!(hex::write(call), commitment["call"].as_str().unwrap());
            }
            let parts = [Part::Number(netuid), Part::Account(account)];
            let key = |entry| hex::write(runtime.key(entry, &parts).unwrap().unwrap());
            assert_eq!(key(COMMITMENT_OF), commitment["commitment_key"].as_str().unwrap());
            let last = Entry { pallet: "Commitments", name: "LastCommitment" };
            assert_eq!(key(last), commitment["last_commitment_key"].as_str().unwrap());
            let value = unhex(commitment["commitment_value"].as_str().unwrap());
            let value: Registration = runtime.decode(COMMITMENT_OF, Some(&value)).unwrap().unwrap();
            assert_eq!((value.block(), value.bytes()), (commitment["block"].as_u64().unwrap(), bytes));
        }
        let set = &file["set_weights"];
        let list = |name: &str| serde_json::from_value::<Vec<u16>>(set[name].clone()).unwrap();
        let weights: Vec<(u16, u16)> = list("uids").into_iter().zip(list("sent")).collect();
        assert_eq!(
            hex::write(runtime.call_bytes(&weights_call(9, &weights, 0)).unwrap()),
            set["call"].as_str().unwrap()
        );
    }
}

#[test]
fn every_error_has_the_name_that_the_real_chain_gives_it() {
    for (name, metadata) in FORMS {
        let runtime = runtime(metadata);
        let seen = read(&format!("{name}_commitments"));
        let failures = seen["errors"].as_array().unwrap().iter().filter(|case| case.get("err").is_some());
        let mut indices = BTreeMap::new();
        for case in failures {
            let failure = &case["err"];
            let (index, error) = (failure["index"].as_u64().unwrap() as u8, unhex(failure["error"].as_str().unwrap()));
            let expected = failure["name"].as_str().unwrap();
            assert_eq!(runtime.error_name(index, error[0]), Some(pascal(expected)));
            indices.insert(expected.split('.').next().unwrap().to_owned(), index);
        }
        assert_eq!(indices.len(), 2);
        let tables = read(&format!("{name}_errors"));
        for (pallet, index) in indices {
            let table = tables["errors"][&pallet].as_object().unwrap();
            for (error, expected) in table {
                let expected = format!("{}.{}", pascal(&pallet), expected.as_str().unwrap());
                assert_eq!(runtime.error_name(index, error.parse().unwrap()), Some(expected));
            }
            assert_eq!(runtime.error_name(index, table.len() as u8), None);
        }
    }
}

/// The runtime's storage as it was read after an epoch; of the places only the last was looked at there, the others as
/// they were at the session's beginning.
pub(super) fn recorded(name: &str, metadata: &str) -> (Recorded, BTreeMap<String, Value>) {
    let mut node = Recorded::new(name, metadata);
    let file = read(&format!("{name}_storage"));
    let entries = file["storage"].as_array().unwrap().iter().filter(|entry| entry.get("key").is_some());
    let entries: Vec<&Value> = entries.collect();
    node.overlay(
        entries
            .iter()
            .map(|entry| (entry["key"].as_str().unwrap().to_owned(), entry["value"].as_str().map(str::to_owned))),
    );
    let decoded =
        entries.into_iter().map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry["decoded"].clone()));
    (node, decoded.collect())
}

#[test]
fn a_subnet_is_read_as_the_real_chain_decodes_it() {
    for (name, metadata) in FORMS {
        let (node, decoded) = recorded(name, metadata);
        let node = Arc::new(node);
        let chain = over(node.client(), 9, Keyring::default());
        let snapshot = chain.snapshot().unwrap();
        let number = |name: &str| decoded[name].as_u64().unwrap();
        assert_eq!(snapshot.tempo, number("Tempo"));
        assert_eq!(
            (snapshot.immunity_period, snapshot.activity_cutoff),
            (number("ImmunityPeriod"), number("ActivityCutoff"))
        );
        assert_eq!(snapshot.block, 4);
        assert_eq!(snapshot.neurons.len() as u64, number("SubnetworkN"));
        let consensus = snapshot.consensus;
        assert_eq!(u64::from(consensus.kappa), number("Kappa"));
        assert_eq!(u64::from(consensus.max_validators), number("MaxAllowedValidators"));
        assert_eq!(consensus.bonds_moving_average, number("BondsMovingAverage"));
        let emission: Vec<u64> = serde_json::from_value(decoded["Emission"].clone()).unwrap();
        assert_eq!(consensus.emission, emission.iter().sum::<u64>());
        for (neuron, uid) in snapshot.neurons.iter().zip(0..) {
            assert_eq!(u64::from(neuron.uid), uid);
            let at = |name: &str| decoded[name][uid as usize].clone();
            assert_eq!(at("Incentive"), neuron.incentive);
            assert_eq!(at("ValidatorPermit"), neuron.validator_permit);
            assert_eq!(at("LastUpdate"), neuron.last_update);
            assert_eq!(at("Emission"), neuron.emission);
            assert_eq!(neuron.registered_at, 3);
        }
        let third = &snapshot.neurons[3];
        assert_eq!(decoded["Keys"], third.hotkey.as_str());
        assert_eq!(number("BlockAtRegistration"), third.registered_at);
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(snapshot.neuron(alice).unwrap().stake, number("TotalHotkeyStake"));
        for (name, rows) in [("Weights", &snapshot.weights), ("Bonds", &snapshot.bonds)] {
            let row: Vec<(u16, u16)> = serde_json::from_value(decoded[name].clone()).unwrap();
            assert_eq!(rows[&0], row, "{name}");
        }
        // What holds for all, what is by place, what is by hotkey.
        let waits = node.log.lock().unwrap().iter().filter(|method| *method == "state_queryStorageAt").count();
        assert_eq!(waits, 3);
    }
}

#[test]
fn limits_are_read_as_the_real_chain_decodes_them() {
    for (name, metadata) in FORMS {
        let (node, decoded) = recorded(name, metadata);
        let constants = read(&format!("{name}_storage"))["constants"].clone();
        let status = over(Arc::new(node).client(), 9, Keyring::default()).status().unwrap();
        let number = |name: &str| decoded[name].as_u64().unwrap();
        let rate_limit: u64 = constants["commitments.rateLimit"].as_str().unwrap().parse().unwrap();
        assert_eq!(status.commit_limit, CommitLimit::Blocks(rate_limit));
        assert_eq!((status.tempo, status.registration_cost), (number("Tempo"), Some(number("Burn"))));
        assert_eq!(u64::from(status.max_uids), number("MaxAllowedUids"));
        assert_eq!(status.currency, Currency::Tao);
        let weights = status.weights;
        assert_eq!(weights.rate_limit, number("WeightsSetRateLimit"));
        assert_eq!(u64::from(weights.min_allowed), number("MinAllowedWeights"));
        assert_eq!(u64::from(weights.max_share), number("MaxWeightsLimit"));
        assert_eq!((weights.version_key, weights.commit_reveal), (number("WeightsVersionKey"), false));
        let spec = if name == "a" { 143 } else { 185 };
        assert_eq!(status.runtime.unwrap().version, spec);
    }
}

#[test]
fn what_became_of_an_extrinsic_is_read_from_its_block() {
    let expected = |name: &str| {
        let (limited, stranger, permit) = match name {
            "a" => ("RateLimitExceeded", "CannotCommit", "NoValidatorPermit"),
            _ => ("CommitmentSetRateLimitExceeded", "AccountNotAllowedCommit", "NeuronNoValidatorPermit"),
        };
        BTreeMap::from([
            ("second commit: rate limit", format!("Commitments.{limited}")),
            ("unregistered signer", format!("Commitments.{stranger}")),
            ("signer with no account at all", format!("Commitments.{stranger}")),
            ("set_weights by //Eve (no permit)", format!("SubtensorModule.{permit}")),
        ])
    };
    for (name, metadata) in FORMS {
        let node = Arc::new(Recorded::new(name, metadata));
        let chain = over(node.client(), 9, Keyring::default());
        let expected = expected(name);
        let mut num_failed = 0;
        assert!(node.blocks.len() > 5);
        for (mark, block) in &node.blocks {
            let (_, sent) = node.submitted.iter().find(|(sent, _)| sent == mark).unwrap();
            let extrinsic = Extrinsic {
                what: "extrinsic",
                bytes: unhex(sent),
                born: 0,
                account: account::parse("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY").unwrap(),
                nonce: 0,
                events_key: unhex("0x26aa394eea5630e07c48ae0c9558cef780d41e5e16056765bc8461851072c9d7"),
                kept_under: None,
            };
            let hash = H256(unhex(block).try_into().unwrap());
            let end =
                chain.runtime.block_on(chain.node.with(chain.node.patience.operation, async |link| {
                    outcome(&chain.node, link, &extrinsic, hash).await
                }));
            let Delivered::Included(included) = end.unwrap() else { panic!("{mark}") };
            assert_eq!(included.failure.as_ref(), expected.get(mark.as_str()), "{mark}");
            num_failed += usize::from(included.failure.is_some());
        }
        assert_eq!(num_failed, 4);
    }
}

#[test]
fn all_commitments_are_found_by_one_scan() {
    for (name, metadata) in FORMS {
        let mut node = Recorded::new(name, metadata);
        let file = read(&format!("{name}_commitments"));
        let commitments = file["commitments"].as_array().unwrap();
        let text = |commitment: &Value, name: &str| commitment[name].as_str().unwrap().to_owned();
        node.overlay(commitments.iter().map(|one| (text(one, "commitment_key"), Some(text(one, "commitment_value")))));
        let all = over(Arc::new(node).client(), 9, Keyring::default()).all_commitments().unwrap();
        // Of two by the same hotkey the later stands.
        assert_eq!(all.len(), 8);
        for commitment in &commitments[1..] {
            let found = &all[commitment["hotkey"].as_str().unwrap()];
            assert_eq!(found.bytes, commitment["text"].as_str().unwrap_or_default().as_bytes());
            assert_eq!(found.block, commitment["block"].as_u64().unwrap());
        }
    }
}

#[test]
fn what_the_chain_refuses_is_said_with_what_to_do() {
    let chain = over(Arc::new(recorded("a", "a_v14").0).client(), 9, Keyring::default());
    let stranger = "5F7Xsr2pzRDfZi2a7YQsh5UxksVZ3apWS4W6dDv8mxuyV5oJ";
    for (failure, words, code) in [
        ("Commitments.CannotCommit", "btcli subnet register", 2),
        ("Commitments.AccountNotAllowedCommit", "btcli subnet register", 2),
        ("Commitments.RateLimitExceeded", "too young", 4),
        ("Commitments.CommitmentSetRateLimitExceeded", "too young", 4),
        ("Commitments.SpaceLimitExceeded", "in the next", 4),
        ("System.CallFiltered", "System.CallFiltered", 2),
    ] {
        let error = chain.commit_failure(stranger, 7, failure);
        assert!(format!("{error:#}").contains(words) && format!("{error:#}").contains("block 7"), "{error:#}");
        assert_eq!(crate::error::exit_code(&error), code);
    }
    for (failure, words, code) in [
        ("SubtensorModule.HotKeyNotRegisteredInSubNet", "btcli subnet register", 2),
        ("SubtensorModule.SettingWeightsTooFast", "too young", 4),
        ("SubtensorModule.NeuronNoValidatorPermit", "permit", 2),
        ("SubtensorModule.CommitRevealEnabled", "which assay does not do", 2),
    ] {
        let error = chain.weights_failure(stranger, 7, failure);
        assert!(format!("{error:#}").contains(words), "{error:#}");
        assert_eq!(crate::error::exit_code(&error), code);
    }
}
