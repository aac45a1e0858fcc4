//! A node that lies, or talks nonsense: an error each time, never a panic, never memory that was only claimed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use subxt::ext::frame_decode::storage::encode_storage_key_prefix;

use super::over;
use super::recorded::Recorded;
use crate::chain::Chain;
use crate::chain::account;
use crate::chain::subtensor::delivery::{Extrinsic, deliver};
use crate::chain::subtensor::runtime::Entry;
use crate::chain::wallet::Keyring;

/// Runs every read against a node that answers a method otherwise.
fn reads(method: &'static str, value: Value) -> Vec<anyhow::Result<()>> {
    reads_with(move |asked, _| (asked == method).then(|| value.clone()))
}

/// Lets the node answer otherwise for the keys that begin with those of an entry.
fn reads_with_value(entry: Entry, value: Value) -> Vec<anyhow::Result<()>> {
    let prefix = crate::hex::write(encode_storage_key_prefix(entry.pallet, entry.name));
    reads_with(move |method, params| {
        let asked = |key: &Value| key.as_str().is_some_and(|key| key.starts_with(&prefix));
        let keys = params[0].as_array().filter(|keys| method == "state_queryStorageAt" && keys.iter().any(asked))?;
        let changes: Vec<Value> =
            keys.iter().map(|key| json!([key, if asked(key) { value.clone() } else { there(key) }])).collect();
        Some(json!([{"block": params[1], "changes": changes}]))
    })
}

/// What a subnet needs to be there: it is, and has 8 places.
fn there(key: &Value) -> Value {
    let begins = |name| {
        key.as_str().unwrap().starts_with(&crate::hex::write(encode_storage_key_prefix("SubtensorModule", name)))
    };
    match (begins("NetworksAdded"), begins("SubnetworkN"), begins("Keys")) {
        (true, ..) => json!("0x01"),
        (_, true, _) => json!("0x0800"),
        (.., true) => json!(format!("0x{}", "07".repeat(32))),
        _ => Value::Null,
    }
}

fn reads_with(instead: impl Fn(&str, &Value) -> Option<Value> + Send + 'static) -> Vec<anyhow::Result<()>> {
    let node = Arc::new(Recorded::new("a", "a_v14"));
    let chain = over(node.client(), 9, Keyring::default());
    *node.instead.lock().unwrap() = Some(Box::new(instead));
    let hotkey = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    vec![
        chain.block().map(drop),
        chain.snapshot().map(drop),
        chain.status().map(drop),
        chain.all_commitments().map(drop),
        chain.commitment(hotkey).map(drop),
        chain.next_commit_block(hotkey).map(drop),
    ]
}

#[test]
fn nonsense_in_place_of_an_answer_is_an_error() {
    for value in
        [json!(null), json!(7), json!("0x"), json!("no hex"), json!([]), json!({"number": "0xzz"}), json!("0x1")]
    {
        for method in ["chain_getFinalizedHead", "chain_getHeader", "state_call"] {
            for end in reads(method, value.clone()) {
                let error = end.unwrap_err();
                assert_eq!(crate::error::exit_code(&error), 3, "{method} {value}: {error:#}");
            }
        }
    }
}

#[test]
fn values_of_another_kind_are_an_error_and_never_memory_that_was_only_claimed() {
    let vectors = ["Incentive", "LastUpdate", "ValidatorPermit", "Emission", "Weights", "Bonds"];
    // Lists that say to have 2^30 and 2^64 items, one that breaks off, one with bytes to spare, half a byte, no hexadecimal.
    for value in ["0x03000000c0", "0x13ffffffffffffffff", "0x08ff", "0x0000", "0x123", "0xzz", "null and void"] {
        for name in vectors {
            let ends = reads_with_value(Entry { pallet: "SubtensorModule", name }, json!(value));
            assert!(ends[1].is_err(), "{name} {value}");
            assert!(ends[0].is_ok(), "the block is known all the same");
        }
        let ends = reads_with_value(Entry { pallet: "Commitments", name: "CommitmentOf" }, json!(value));
        assert!(ends[4].is_err(), "{value}");
    }
    for name in ["SubnetworkN", "NetworksAdded", "Tempo"] {
        let ends = reads_with_value(Entry { pallet: "SubtensorModule", name }, json!("0xffffffff"));
        assert!(ends[1].is_err() && ends[2].is_err(), "{name}");
    }
    let ends = reads_with_value(Entry { pallet: "SubtensorModule", name: "SubnetworkN" }, json!("0xffff"));
    assert!(format!("{:#}", ends[1].as_ref().unwrap_err()).contains("65535 places"));
}

#[test]
fn lists_that_are_shorter_or_longer_than_the_subnet_are_read_as_far_as_they_go() {
    for value in ["0x0c010002000300", "0x00", &format!("0x41{}", "01".repeat(33))] {
        let ends = reads_with_value(Entry { pallet: "SubtensorModule", name: "Incentive" }, json!(value));
        assert!(ends[1].is_ok() || value.len() > 60, "{value}: {:?}", ends[1]);
    }
}

#[test]
fn keys_that_were_not_asked_for_are_refused() {
    let prefix = "0xca407206ec1ab726b2636c4b145ac287419a60ae8b01e6dcaebd7317e43c69bf0900";
    let key = |number: u32| format!("{prefix}{number:08x}{}", "00".repeat(36));
    let million: Vec<String> = (0..1_000_000).map(key).collect();
    for keys in
        [json!(million), json!([key(2), key(1)]), json!([key(1), key(1)]), json!(["0x00"]), json!([7]), json!({})]
    {
        let ends = reads("state_getKeysPaged", keys);
        assert!(ends[3].is_err());
    }
    // The same page for ever.
    let page: Vec<String> = (0..512).map(key).collect();
    let error = format!("{:#}", reads("state_getKeysPaged", json!(page))[3].as_ref().unwrap_err());
    assert!(error.contains("other keys than it was asked for"), "{error}");
}

#[test]
fn metadata_that_is_none_or_another_chains_is_an_error() {
    for metadata in ["0x", "0x00", "0x186d6574610e", "0x106d657461", "0x03ffffffff"] {
        let ends = reads_with(move |method, params| {
            (method == "state_call" && params[0].as_str()?.starts_with("Metadata_")).then(|| json!(metadata))
        });
        assert!(ends.iter().all(Result::is_err), "{metadata}");
    }
}

#[test]
fn a_node_that_tells_no_end_is_left() {
    let mut node = Recorded::new("a", "a_v14");
    node.news = Some(r#""ready""#);
    let node = Arc::new(node);
    let chain = over(node.client(), 9, Keyring::default());
    *node.instead.lock().unwrap() = Some(Box::new(|method, params| {
        (method == "state_call" && params[0] == "AccountNonceApi_account_nonce").then(|| json!("0x00000000"))
    }));
    let extrinsic = Extrinsic {
        what: "commitment",
        bytes: vec![7],
        born: 1,
        account: account::parse("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY").unwrap(),
        nonce: 0,
        events_key: vec![1],
        kept_under: None,
    };
    let error = format!("{:#}", chain.runtime.block_on(deliver(&chain.node, &extrinsic)).err().unwrap());
    assert!(error.contains("what became of it is not known: it may still be included, up to block 32;"), "{error}");

    let mut chain = over(node.client(), 9, Keyring::default());
    chain.node.patience.request = Duration::from_millis(10);
    let asked = chain.runtime.block_on(chain.node.with(Duration::ZERO, async |_| std::future::pending().await));
    let error: anyhow::Error = asked.map(|(): ()| ()).unwrap_err();
    assert!(error.to_string().contains("a node that answers without end"), "{error}");
}
