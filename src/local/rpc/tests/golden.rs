//! What the chain's real programs have under which keys, and how they refuse, as it was recorded.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use subxt::Metadata;

use super::super::block::Hash;
use super::super::call::{Call, Outcome};
use super::super::extrinsic::{Era, Extrinsic, Place};
use super::super::node::Node;
use super::super::program::Program;
use super::super::refused::Invalid;
use super::*;
use crate::chain::{Chain, account};
use crate::golden;
use crate::hex;

const HOUR_MS: u64 = 3_600_000;

/// Everybody of the recorded subnet, by uid.
const NAMES: [&str; 8] = ["Alice", "Bob", "Charlie", "Dave", "Eve", "Ferdie", "One", "Two"];

fn programs() -> [(&'static str, Arc<Program>); 2] {
    let program = |spec| Arc::new(Program::new(spec, 100).unwrap());
    [("a", program(Spec::V143)), ("c", program(Spec::V185))]
}

/// The one golden file of a program.
fn recorded(name: &str, key: &str) -> Value {
    golden::files(&format!("chain/{name}.json"), key).remove(0).1
}

fn list<'a>(file: &'a Value, key: &str) -> &'a [Value] {
    let list = file[key].as_array().unwrap();
    assert!(!list.is_empty());
    list
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::read(value.as_str().unwrap()).unwrap()
}

/// A pallet as its metadata calls it.
fn pallet(recorded: &str) -> String {
    format!("{}{}", recorded[..1].to_uppercase(), &recorded[1..])
}

fn make(settings: &Settings) -> (TempDir, Arc<Ledger>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::create(&dir.path().join("ledger.sqlite"), settings).unwrap();
    (dir, Arc::new(ledger))
}

fn head(ledger: &Arc<Ledger>, program: &Arc<Program>) -> Arc<super::super::block::Block> {
    let node = Node::new(Arc::clone(ledger), Arc::clone(program), 0).unwrap();
    node.chain().unwrap().head().clone()
}

#[test]
fn golden_storage_is_found_under_its_keys() {
    for (name, program) in programs() {
        let file = recorded(&format!("{name}_storage"), "storage");
        let mut num_keys = 0;
        for entry in list(&file, "storage").iter().filter(|entry| entry.get("key").is_some()) {
            let (pallet, what) = (pallet(entry["pallet"].as_str().unwrap()), entry["name"].as_str().unwrap());
            let types = entry["key_type"].as_str().unwrap_or_default().trim_matches(['(', ')']);
            let key = |(of, argument): (&str, &Value)| match of {
                "u16" => (argument.as_u64().unwrap() as u16).to_le_bytes().to_vec(),
                "u32" => (argument.as_u64().unwrap() as u32).to_le_bytes().to_vec(),
                "AccountId32" => account::parse(argument.as_str().unwrap()).unwrap().0.to_vec(),
                other => panic!("a key of type {other}"),
            };
            let arguments = entry["args"].as_array().unwrap();
            let keys: Vec<Vec<u8>> = std::iter::zip(types.split(','), arguments).map(key).collect();
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let found = program.key(&pallet, what, &keys).unwrap();
            assert_eq!(hex::write(&found), entry["key"].as_str().unwrap(), "{pallet}.{what}");
            if let Some(default) = entry["default"].as_str().filter(|_| entry["modifier"] == "Default") {
                assert_eq!(hex::write(program.default_of(&pallet, what).unwrap()), default, "{pallet}.{what}");
            }
            num_keys += 1;
        }
        assert!(num_keys >= 50, "{num_keys}");
        assert_eq!(program.key("SubtensorModule", "Keys", &[&[9, 0]]), None, "a key is missing");
        assert_eq!(program.key("SubtensorModule", "NoSuchEntry", &[]), None);
    }
}

#[test]
fn golden_commitments_are_read_and_kept_as_the_chain_keeps_them() {
    for (name, program) in programs() {
        let file = recorded(&format!("{name}_commitments"), "commitments");
        let (_dir, ledger) = make(&Settings::new(1, SystemClock.unix_ms() - 200 * HOUR_MS, HOUR_MS));
        for case in list(&file, "commitments") {
            let label = case["label"].as_str().unwrap();
            let call = Call::read(&program, &bytes(&case["call"])).unwrap();
            let text = case["text"].as_str().unwrap_or_default().as_bytes().to_vec();
            assert_eq!(call, Call::Commit { netuid: 9, bytes: text.clone() }, "{label}");
            let extrinsic = Extrinsic::read(&bytes(&case["extrinsic"])).unwrap();
            assert_eq!(
                (extrinsic.call, extrinsic.account.to_vec()),
                (bytes(&case["call"]), bytes(&case["public_key"]))
            );

            let (hotkey, block) = (case["hotkey"].as_str().unwrap(), case["block"].as_u64().unwrap());
            ledger.register(hotkey).unwrap();
            ledger.commit_at(hotkey, &text, block).unwrap();
            let head = head(&ledger, &program);
            let kept = |key: &str| head.get(&bytes(&case[key])).map(hex::write);
            let last = case["last_commitment_value"].as_str().map(str::to_owned);
            assert_eq!(kept("last_commitment_key"), last, "{label}");
            // The ledger has no commitment without a field: it is one without bytes.
            let value = match label {
                "no fields" => Some("0x00000000000000000c0000000401".to_owned()),
                _ => case["commitment_value"].as_str().map(str::to_owned),
            };
            assert_eq!(kept("commitment_key"), value, "{label}");
        }
    }
}

#[test]
fn golden_transactions_hold_where_they_were_signed_and_nowhere_else() {
    for (name, program) in programs() {
        let file = recorded(&format!("{name}_signed"), "signed");
        for case in list(&file, "signed") {
            let hash = |key: &str| -> Hash { bytes(&case[key]).try_into().unwrap() };
            let (genesis, head) = (hash("genesis"), hash("head"));
            let extrinsic = Extrinsic::read(&bytes(&case["extrinsic"])).unwrap();
            let birth = match extrinsic.era {
                Era::Immortal => genesis,
                era => {
                    let number = case["head_number"].as_u64().unwrap();
                    assert_eq!((era.birth(number), era.birth(number + 1)), (number, number));
                    head
                }
            };
            // What the real program found, which may hold other things against it.
            let expected = match case["error"].as_str().is_some_and(|error| error.contains("badProof")) {
                true => Err(Invalid::BadProof),
                false => Ok(()),
            };
            let check = |spec, genesis, birth| extrinsic.check_signature(&Place { spec, genesis, birth });
            assert_eq!(check(program.version(), genesis, birth), expected, "{}", case["label"]);
            assert_eq!(check(program.version() + 1, genesis, birth), Err(Invalid::BadProof));
            assert_eq!(check(program.version(), [0; 32], birth), Err(Invalid::BadProof));
            assert_eq!(check(program.version(), genesis, [0; 32]), Err(Invalid::BadProof));
        }
    }
}

#[test]
fn golden_refusals_are_those_of_the_ledger_in_the_chains_words() {
    // What the ledger has no rules for: everybody has enough stake, one weight is enough, every version is let in.
    const NOT_HERE: [&str; 3] =
        ["set_weights old version key", "set_weights too few weights", "set_weights not enough stake"];
    const AFTER_ANOTHER: [&str; 3] =
        ["commit again within the limit", "commit 99 blocks after the last one", "set_weights too fast"];
    for (name, program) in programs() {
        let file = recorded(&format!("{name}_commitments"), "errors");
        let mut num_tried = 0;
        for case in list(&file, "errors") {
            let label = case["label"].as_str().unwrap();
            let call = Call::read(&program, &bytes(&case["call"]));
            if label.starts_with("burned_register") || label == "commit two fields" {
                assert_eq!(call.unwrap_err(), Invalid::Call, "{label}");
                continue;
            }
            let (_dir, ledger) = make(&Settings::new(1, SystemClock.unix_ms() - 99 * HOUR_MS - HOUR_MS / 2, HOUR_MS));
            for name in NAMES {
                ledger.register_at(name, 0).unwrap(); // so long ago that nobody is a newcomer
            }
            ledger.set_permit(0, true).unwrap();
            if AFTER_ANOTHER.contains(&label) {
                ledger.commit_at("Alice", b"first", 1).unwrap();
                ledger.put_weights(0, &[(3, 1)]).unwrap();
            }
            assert_eq!(ledger.block().unwrap(), 100);
            let signer = Extrinsic::read(&bytes(&case["hex"])).unwrap().account;
            let is_signer = |name: &&&str| super::super::account(name).unwrap().0 == signer;
            let hotkey = NAMES.iter().find(is_signer).map_or("Stranger", |name| *name);
            match call.unwrap().run(&program, &ledger, hotkey).unwrap() {
                Outcome::Failed(error) => {
                    let expected = &case["err"];
                    assert_eq!(u64::from(error[0]), expected["index"].as_u64().unwrap(), "{label}");
                    assert_eq!(hex::write(&error[1..]), expected["error"].as_str().unwrap(), "{label}");
                    num_tried += 1;
                }
                Outcome::Done(_) => assert!(NOT_HERE.contains(&label), "{label}"),
            }
        }
        assert!(num_tried >= 11, "{num_tried}");
    }
}

#[test]
fn golden_weights_are_read_and_kept_as_the_chain_keeps_them() {
    for (name, program) in programs() {
        let file = recorded(&format!("{name}_commitments"), "set_weights");
        let case = &file["set_weights"];
        let call = Call::read(&program, &bytes(&case["call"])).unwrap();
        let numbers = |key: &str| serde_json::from_value::<Vec<u16>>(case[key].clone()).unwrap();
        let expected = Call::Weights { netuid: 9, uids: numbers("uids"), weights: numbers("sent"), version_key: 0 };
        assert_eq!(call, expected);
        let (_dir, ledger) = make(&Settings::new(1, SystemClock.unix_ms() - 152 * HOUR_MS, HOUR_MS));
        for name in NAMES {
            ledger.register_at(name, 1).unwrap();
        }
        ledger.set_permit(0, true).unwrap();
        assert!(matches!(call.run(&program, &ledger, "Alice").unwrap(), Outcome::Done(153)));
        let head = head(&ledger, &program);
        let found = head.get(&bytes(&case["weights_key"])).unwrap();
        assert_eq!(hex::write(found), case["weights_value"].as_str().unwrap());
    }
}

#[test]
fn the_programs_say_of_themselves_what_the_real_ones_do() {
    for (spec, name) in std::iter::zip(SPECS, ["a", "c"]) {
        let world = World::new(HOUR_MS);
        let devnet = world.serve(spec);
        let said = hostile::ask(&devnet, "state_getRuntimeVersion", "[]")["result"].take();
        assert_eq!(said, recorded(&format!("{name}_storage"), "runtime_version")["runtime_version"]);
    }
    let [(_, a), (_, c)] = programs();
    // What a client may choose by: of the newer program what can be called here.
    assert_eq!((a.version_scale().len(), c.version_scale().len()), (48 + 11 * 12, 48 + 5 * 12));
    assert_eq!((a.formats(), c.formats()), (None, Some(vec![14, 15])));
}

#[test]
fn the_metadata_is_the_chains_but_for_the_ledgers_rate_limit() {
    let limit = |metadata: &[u8]| {
        let metadata = Metadata::decode_from(metadata).unwrap();
        let value = metadata.pallet_by_name("Commitments").unwrap().constant_by_name("RateLimit").unwrap().value();
        u32::from_le_bytes(value.try_into().unwrap())
    };
    for spec in SPECS {
        let (as_it_is, changed) = (Program::new(spec, 100).unwrap(), Program::new(spec, 7).unwrap());
        for format in as_it_is.formats().unwrap_or(vec![14]) {
            let (old, new) = (as_it_is.metadata_in(format).unwrap(), changed.metadata_in(format).unwrap());
            assert_eq!((limit(old), limit(new)), (100, 7));
            assert_eq!(std::iter::zip(old, new).filter(|(old, new)| old != new).count(), 1);
        }
        assert_eq!(limit(Program::new(spec, u64::MAX).unwrap().metadata_v14()), u32::MAX);
    }
}

#[test]
fn golden_errors_and_calls_are_found_by_their_names() {
    for (name, program) in programs() {
        let file = recorded(&format!("{name}_errors"), "errors");
        let mut num_found = 0;
        for (recorded, errors) in file["errors"].as_object().unwrap() {
            for (number, error) in errors.as_object().unwrap() {
                let found = program.error(&pallet(recorded), &["NoSuchError", error.as_str().unwrap()]).unwrap();
                assert_eq!(found[1].to_string(), *number, "{recorded}.{error}");
                num_found += 1;
            }
        }
        for (recorded, calls) in file["calls"].as_object().unwrap() {
            for call in calls.as_array().unwrap() {
                let found = program.call(&pallet(recorded), call["name"].as_str().unwrap()).unwrap();
                assert_eq!(serde_json::json!(found), call["index"], "{recorded}.{}", call["name"]);
                num_found += 1;
            }
        }
        assert!(num_found > 60, "{num_found}");
        assert!(program.error("Commitments", &["NoSuchError"]).is_err());
        assert_eq!((program.call("Commitments", "no_such_call"), program.call("NoSuchPallet", "x")), (None, None));
    }
}
