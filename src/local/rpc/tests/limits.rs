//! What the node holds back, and for how long, as subxt sees it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use subxt::config::substrate::SubstrateExtrinsicParamsBuilder;
use subxt::dynamic;
use subxt::rpcs::{RpcClient, rpc_params};
use subxt::tx::TransactionStatus;

use super::super::node::{KEPT, MAX_PER_BLOCK};
use super::client::{BLOCK_MS, commit_call, connect, key, send, signed_forever, submit, wait};
use super::*;

#[test]
fn a_block_is_final_after_as_many_more_as_the_node_was_told() {
    let world = World::new(BLOCK_MS);
    let devnet = Devnet::start_lagging(Arc::clone(&world.ledger), 0, Spec::V185, 2).unwrap();
    let number = |method: &str| {
        let hash = hostile::ask(&devnet, method, "[]")["result"].take();
        let header = hostile::ask(&devnet, "chain_getHeader", &serde_json::json!([hash]).to_string());
        u64::from_str_radix(header["result"]["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    };
    assert_eq!((number("chain_getHead"), number("chain_getFinalizedHead")), (1_499, 1_497));
    wait(async {
        let client = connect(&devnet).await;
        assert_eq!(client.at_current_block().await.unwrap().block_number(), 1_497);
        let mut tx = client.tx().await.unwrap();
        let mut progress = tx.sign_and_submit_then_watch_default(&commit_call(9, b"x"), &key("Eve")).await.unwrap();
        let mut heads = client.stream_blocks().await.unwrap();
        assert_eq!(heads.next().await.unwrap().unwrap().number(), 1_497);
        world.pass_blocks(&devnet, 1);
        assert_eq!(heads.next().await.unwrap().unwrap().number(), 1_498);
        loop {
            match progress.next().await.unwrap().unwrap() {
                TransactionStatus::InBestBlock(_) => break,
                TransactionStatus::InFinalizedBlock(_) => panic!("it is final at once"),
                _ => {}
            }
        }
        world.pass_blocks(&devnet, 1);
        let next = tokio::time::timeout(Duration::from_millis(50), progress.next()).await;
        assert!(next.is_err(), "it is final after one block more");
        world.pass_blocks(&devnet, 1);
        let last = progress.next().await.unwrap().unwrap();
        let TransactionStatus::InFinalizedBlock(in_block) = last else { panic!("{last:?}") };
        assert_eq!(in_block.at().await.unwrap().block_number(), 1_500);
    });
}

#[test]
fn two_names_of_one_account_are_not_served() {
    let world = World::new(BLOCK_MS);
    world.ledger.register("Bob").unwrap();
    let error = Devnet::start(Arc::clone(&world.ledger), 0, Spec::V143).err().unwrap();
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(
        error.to_string().contains(&format!("the hotkeys `{BOB}` (uid 2) and `Bob` (uid 3) of the ledger")),
        "{error}"
    );
}

#[test]
fn a_newcomer_waits_for_the_rate_limit_before_it_sets_weights() {
    let world = World::new(BLOCK_MS);
    let uid = world.ledger.register("Charlie").unwrap();
    world.ledger.set_permit(uid, true).unwrap();
    let devnet = world.serve(Spec::V143);
    wait(async {
        let client = connect(&devnet).await;
        let at = client.at_current_block().await.unwrap();
        let vector = dynamic::storage::<(u16,), Vec<u64>>("SubtensorModule", "LastUpdate");
        let told = at.storage().fetch(&vector, (9,)).await.unwrap().decode().unwrap();
        assert_eq!(told, [1_000, 1_000, 1_000, 1_500]);
        let weights = dynamic::tx("SubtensorModule", "set_weights", (9_u16, vec![1_u16], vec![1_u16], 0_u64));
        world.pass_blocks(&devnet, 99);
        let refused = send(&world, &client, "Charlie", &weights).await;
        assert_eq!(refused, Err("SubtensorModule::SettingWeightsTooFast".to_owned()));
        assert_eq!(send(&world, &client, "Charlie", &weights).await, Ok(1_600));
    });
}

#[test]
fn a_tip_is_refused_and_so_is_what_a_block_has_no_room_for() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V185);
    wait(async {
        let client = connect(&devnet).await;
        let params = SubstrateExtrinsicParamsBuilder::new().tip(1).build();
        let call = commit_call(9, b"x");
        let tipped = client.tx().await.unwrap().create_signed(&call, &key("Eve"), params).await.unwrap();
        let words = "Inability to pay some fees (e.g. account balance too low)";
        assert_eq!(submit(&devnet, tipped.encoded()).await, invalid(words));
        assert!(!tipped.validate().await.unwrap().is_valid());
        for nonce in 0..MAX_PER_BLOCK as u64 {
            devnet.node.submit(&signed_forever(&client, "Eve", nonce, &call).await).unwrap();
        }
        let last = signed_forever(&client, "Eve", MAX_PER_BLOCK as u64, &call).await;
        assert_eq!(submit(&devnet, &last).await.map(|error| error.0), Some(1016));
        world.pass_blocks(&devnet, 1);
        assert_eq!(submit(&devnet, &last).await, None);
    });
}

#[test]
fn who_listens_is_told_of_the_blocks_that_are_kept_after_a_long_sleep() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V185);
    wait(async {
        let rpc = RpcClient::from_url(format!("ws://{}", devnet.address())).await.unwrap();
        let (begin, end) = ("chain_subscribeNewHeads", "chain_unsubscribeNewHeads");
        let mut heads = rpc.subscribe::<serde_json::Value>(begin, rpc_params![], end).await.unwrap();
        let mut next = async || {
            let header = tokio::time::timeout(Duration::from_secs(10), heads.next()).await.unwrap().unwrap().unwrap();
            u32::from_str_radix(header["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
        };
        assert_eq!(next().await, 1_499);
        world.pass_blocks(&devnet, 4_000_000_000);
        let first = 1_499 + 4_000_000_000 - (KEPT as u32 - 1);
        assert_eq!([next().await, next().await], [first, first + 1]);
    });
}
