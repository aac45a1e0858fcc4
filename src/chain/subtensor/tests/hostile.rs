//! A node that lies, or talks nonsense: an error each time, never a panic, never memory that was only claimed.

use std::sync::Arc;

use serde_json::{Value, json};

use super::over;
use super::recorded::Recorded;
use crate::chain::Chain;
use crate::chain::wallet::Keyring;

/// Runs every read against a node that answers a method otherwise.
fn reads(method: &'static str, value: Value) -> Vec<anyhow::Result<()>> {
    reads_with(move |asked, _| (asked == method).then(|| value.clone()))
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
