//! Faults between here and the node. After each there is exactly one commitment on the ledger, and what is returned or said
//! is true.

use std::time::Duration;

use serde_json::{Value, json};

use super::proxy::{Proxy, To, Verdict};
use super::world::{MINER, World, hotkey};
use crate::chain::Chain;
use crate::error::exit_code;
use crate::local::rpc::{Devnet, Spec};

const BLOCK_MS: u64 = 50;
const SUBMIT: &str = "author_submitAndWatchExtrinsic";

struct Scene {
    world: World,
    devnet: Devnet,
    proxy: Proxy,
}

impl Scene {
    fn new(spec: Spec) -> Self {
        let world = World::new(BLOCK_MS);
        let devnet = world.serve(spec);
        let proxy = Proxy::before(devnet.address(), Duration::ZERO);
        Self { world, devnet, proxy }
    }

    /// Commits through the proxy with a rule that is laid on once the client is connected.
    fn commit(&self, rule: impl FnMut(To, &str) -> Verdict + Send + 'static) -> anyhow::Result<u64> {
        let client = self.world.client(&[self.proxy.url()], &[MINER]).unwrap();
        client.block().unwrap();
        self.proxy.rule(rule);
        client.commit(&hotkey(MINER), b"local:model:c:h")
    }

    /// The blocks of what was committed.
    fn committed(&self) -> Vec<u64> {
        let all = self.world.ledger.commitments_of(&hotkey(MINER)).unwrap();
        assert!(all.iter().all(|commitment| commitment.bytes == b"local:model:c:h"));
        all.iter().map(|commitment| commitment.block).collect()
    }
}

/// A rule for the first message to somebody that has these words in it.
fn once(to: To, words: &'static str, verdict: Verdict) -> impl FnMut(To, &str) -> Verdict + Send {
    let mut verdict = Some(verdict);
    move |going, text| match going == to && text.contains(words) {
        true => verdict.take().unwrap_or(Verdict::Pass),
        false => Verdict::Pass,
    }
}

#[test]
fn whatever_the_connection_does_there_is_one_commitment() {
    let reconnects = [
        (To::Node, SUBMIT, Verdict::Cut),
        (To::Node, SUBMIT, Verdict::PassAndCut),
        (To::Client, "inBlock", Verdict::PassAndCut),
        (To::Client, "inBlock", Verdict::Cut),
        (To::Client, "finalized", Verdict::Cut),
        (To::Client, "ready", Verdict::Instead("not json {".to_owned())),
        (To::Client, "inBlock", Verdict::Instead(r#"{"jsonrpc":"2.0","method":7}"#.to_owned())),
    ];
    for (spec, (to, words, verdict)) in [Spec::V143, Spec::V185].into_iter().cycle().zip(reconnects) {
        let scene = Scene::new(spec);
        let block = scene.commit(once(to, words, verdict)).unwrap();
        assert_eq!(scene.committed(), [block], "{words} to {to:?}");
        assert!(scene.proxy.num_connections() > 1, "{words} to {to:?}");
    }
}

#[test]
fn news_that_say_nothing_are_looked_past() {
    let elsewhere = format!(r#"{{"finalized":"0x{}"}}"#, "11".repeat(32));
    for status in [
        elsewhere.as_str(),
        r#""dropped""#,
        r#"{"invalid":{"stale":null}}"#,
        r#"{"usurped":"0x00"}"#,
        "7",
        r#"{"finalized":7}"#,
    ] {
        let (scene, status) = (Scene::new(Spec::V143), status.to_owned());
        let said = status.clone();
        let block = scene.commit(move |to, text| {
            match (to, text.contains("author_extrinsicUpdate"), subscription(text)) {
                (To::Client, true, Some(id)) => Verdict::Instead(format!(
                    r#"{{"jsonrpc":"2.0","method":"author_extrinsicUpdate","params":{{"subscription":{id},"result":{said}}}}}"#
                )),
                _ => Verdict::Pass,
            }
        });
        assert_eq!(scene.committed(), [block.unwrap()], "{status}");
    }
}

/// The subscription that a notification is for, as it is spelled.
fn subscription(text: &str) -> Option<String> {
    let message: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(message["params"]["subscription"].to_string())
}

#[test]
fn a_node_that_is_silent_or_slow_is_waited_for_and_then_asked_again() {
    for words in ["chain_getFinalizedHead", "state_queryStorageAt", SUBMIT] {
        let scene = Scene::new(Spec::V143);
        let block = scene.commit(once(To::Node, words, Verdict::Swallow)).unwrap();
        assert_eq!(scene.committed(), [block], "{words}");
    }
    let scene = Scene::new(Spec::V185);
    let slow = Proxy::before(scene.devnet.address(), Duration::from_millis(50));
    let client = scene.world.client(&[slow.url()], &[MINER]).unwrap();
    let block = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap();
    assert_eq!(scene.committed(), [block]);
    assert_eq!(slow.num_connections(), 1);
}

#[test]
fn an_extrinsic_that_got_lost_is_given_up_when_its_time_is_over() {
    let scene = Scene::new(Spec::V143);
    let error = scene
        .commit(|to, text| {
            if to == To::Client || !text.contains(SUBMIT) {
                return Verdict::Pass;
            }
            let id = serde_json::from_str::<serde_json::Value>(text).unwrap()["id"].clone();
            Verdict::Answer(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"lost"}}"#))
        })
        .unwrap_err();
    assert_eq!(exit_code(&error), 3);
    let text = format!("{error:#}");
    assert!(text.contains("was not included") && text.contains("commit again"), "{text}");
    assert!(scene.committed().is_empty());
}

#[test]
fn what_was_sent_before_the_node_went_away_is_said_to_be_unknown_and_is_found_later() {
    let scene = Scene::new(Spec::V143);
    let close = scene.proxy.closer();
    let mut rule = once(To::Node, SUBMIT, Verdict::PassAndCut);
    let error = scene
        .commit(move |to, text| {
            let verdict = rule(to, text);
            if matches!(verdict, Verdict::PassAndCut) {
                close();
            }
            verdict
        })
        .unwrap_err();
    assert_eq!(exit_code(&error), 3);
    let text = format!("{error:#}");
    assert!(text.contains("what became of it is not known"), "{text}");
    let [block] = scene.committed()[..] else { panic!("it was sent") };
    scene.proxy.lead_to(Some(scene.devnet.address()));
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    // The node's block is final when the next has begun.
    scene.world.pass_blocks(2);
    assert_eq!(client.commit(&hotkey(MINER), b"local:model:c:h").unwrap(), block);
    assert_eq!(scene.committed(), [block]);
}

#[test]
fn a_node_that_went_away_before_anything_was_sent_is_said_so() {
    let scene = Scene::new(Spec::V143);
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    scene.proxy.lead_to(None);
    scene.proxy.rule(|_, _| Verdict::Cut);
    let error = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap_err();
    assert_eq!(exit_code(&error), 3);
    let text = format!("{error:#}");
    assert!(text.contains("no node of the chain would answer") && text.contains("127.0.0.1"), "{text}");
    assert!(scene.committed().is_empty());
}

#[test]
fn another_program_is_noticed_before_and_after_signing() {
    let scene = Scene::new(Spec::V143);
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    let before = client.status().unwrap().runtime.unwrap();
    assert_eq!(before.version, 143);
    scene.devnet.upgrade(Spec::V185);
    scene.world.pass_blocks(3);
    let block = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap();
    assert_eq!(scene.committed(), [block]);
    assert_eq!(client.status().unwrap().runtime.unwrap().version, 185);

    // After signing: the signature is of the program before, and the node says that it is none.
    let scene = Scene::new(Spec::V143);
    let devnet = std::sync::Arc::new(scene.world.serve(Spec::V143));
    let proxy = Proxy::before(devnet.address(), Duration::ZERO);
    let client = scene.world.client(&[proxy.url()], &[MINER]).unwrap();
    let upgraded = std::sync::Arc::clone(&devnet);
    let mut is_first = true;
    proxy.rule(move |to, text| {
        if to == To::Node && text.contains(SUBMIT) && std::mem::take(&mut is_first) {
            upgraded.upgrade(Spec::V185);
            std::thread::sleep(Duration::from_millis(3 * BLOCK_MS));
        }
        Verdict::Pass
    });
    let block = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap();
    assert_eq!(scene.committed(), [block]);
}

/// The answer to a request that a node refuses.
fn refusal(request: &str, code: i64, text: &str) -> Verdict {
    let id = serde_json::from_str::<Value>(request).unwrap()["id"].clone();
    Verdict::Answer(json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}}).to_string())
}

#[test]
fn a_program_that_is_not_final_yet_is_waited_for() {
    let scene = Scene::new(Spec::V143);
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    client.block().unwrap();
    let (Scene { world, devnet, proxy }, mut is_first) = (scene, true);
    let devnet = std::sync::Arc::new(devnet);
    let upgraded = std::sync::Arc::clone(&devnet);
    proxy.rule(move |to, text| {
        if to == To::Node && text.contains(SUBMIT) && std::mem::take(&mut is_first) {
            upgraded.upgrade(Spec::V185);
            return refusal(text, 1010, "Transaction has a bad signature");
        }
        Verdict::Pass
    });
    let block = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap();
    let [kept] = world.ledger.commitments_of(&hotkey(MINER)).unwrap().try_into().unwrap();
    assert_eq!(kept.block, block);

    let scene = Scene::new(Spec::V143);
    let refuse = |to, text: &str| match to == To::Node && text.contains(SUBMIT) {
        true => refusal(text, 1010, "Transaction has a bad signature"),
        false => Verdict::Pass,
    };
    let error = scene.commit(refuse).unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(format!("{error:#}").contains("did not take the commitment: Transaction has a bad signature"), "{error:#}");
    assert!(scene.committed().is_empty());
}

#[test]
fn a_pool_that_takes_nothing_for_now_is_asked_again_over_the_same_connection() {
    let scene = Scene::new(Spec::V143);
    scene.world.ledger.commit_at(&hotkey(MINER), b"the old one", 1_000).unwrap();
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    let number = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&number);
    scene.proxy.rule(move |to, text| match to == To::Node && text.contains(SUBMIT) {
        true => {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            refusal(text, 1014, "Priority is too low")
        }
        false => Verdict::Pass,
    });
    let error = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap_err();
    assert_eq!(exit_code(&error), 3);
    let text = format!("{error:#}");
    assert!(text.contains("Priority is too low"), "{text}");
    assert!(text.contains("what stands on the chain is `the old one` of block 1,000, commit again"), "{text}");
    assert_eq!(scene.proxy.num_connections(), 1);
    let number = number.load(std::sync::atomic::Ordering::SeqCst);
    assert!((3..=34).contains(&number), "once a block at most, and not {number} times");
}

#[test]
fn a_node_that_is_behind_is_not_believed() {
    let scene = Scene::new(Spec::V143);
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    let (mut asked, mut heads) = (None, Vec::new());
    scene.proxy.rule(move |to, text| {
        let message: Value = serde_json::from_str(text).unwrap_or_default();
        if to == To::Node && message["method"] == "chain_getFinalizedHead" {
            asked = Some(message["id"].clone());
        }
        if to == To::Node || asked.as_ref() != Some(&message["id"]) {
            return Verdict::Pass;
        }
        asked = None;
        heads.push(message["result"].clone());
        // The third time it is the first again.
        match heads.len() {
            3 => Verdict::Instead(json!({"jsonrpc": "2.0", "id": message["id"], "result": heads[0]}).to_string()),
            _ => Verdict::Pass,
        }
    });
    let mut before = 0;
    for _ in 0..4 {
        scene.world.pass_blocks(2);
        let block = client.block().unwrap();
        assert!(block > before, "{block} after {before}");
        before = block;
    }
    assert_eq!(scene.proxy.num_connections(), 2);
}

#[test]
fn what_one_node_lacks_another_may_have() {
    let lacks = |to, text: &str| match to == To::Node && text.contains("chain_getFinalizedHead") {
        true => refusal(text, -32601, "Method not found"),
        false => Verdict::Pass,
    };
    let scene = Scene::new(Spec::V143);
    scene.proxy.rule(lacks);
    let second = Proxy::before(scene.devnet.address(), Duration::ZERO);
    scene.world.client(&[scene.proxy.url(), second.url()], &[]).unwrap().block().unwrap();
    let error = scene.world.client(&[scene.proxy.url()], &[]).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    assert!(format!("{error:#}").contains("lacks a method"), "{error:#}");
}

#[test]
fn a_node_that_has_forgotten_what_was_is_enough() {
    for (num_refused, seconds) in [(1, 0.05), (2, 0.05)] {
        let scene = Scene::new(Spec::V143);
        let (mut asked, mut head, mut left) = (None, None, num_refused);
        scene.proxy.rule(move |to, text| {
            let message: Value = serde_json::from_str(text).unwrap_or_default();
            match (to, message["method"].as_str()) {
                (To::Node, Some("chain_getFinalizedHead")) => asked = Some(message["id"].clone()),
                (To::Client, None) if asked.is_some() && asked.as_ref() == Some(&message["id"]) => {
                    head.get_or_insert(message["result"].clone());
                }
                (To::Node, Some("state_queryStorageAt"))
                    if head.as_ref() != Some(&message["params"][1]) && left > 0 =>
                {
                    left -= 1;
                    return refusal(text, -32000, "State already discarded");
                }
                _ => (),
            }
            Verdict::Pass
        });
        let client = scene.world.client(&[scene.proxy.url()], &[]).unwrap();
        let measured = client.seconds_per_block();
        assert!((measured - seconds).abs() < 0.001, "{measured}");
        assert_eq!(scene.proxy.num_connections(), 1);
    }
}

#[test]
fn a_node_of_another_chain_is_refused_wherever_it_appears() {
    let scene = Scene::new(Spec::V143);
    let other = World::new(BLOCK_MS + 1);
    let elsewhere = other.serve(Spec::V143);
    let client = scene.world.client(&[scene.proxy.url()], &[MINER]).unwrap();
    scene.proxy.lead_to(Some(elsewhere.address()));
    for words in ["", SUBMIT] {
        scene.proxy.rule(once(To::Node, words, Verdict::Cut));
        let error = client.commit(&hotkey(MINER), b"local:model:c:h").unwrap_err();
        assert!(format!("{error:#}").contains("than at its first use"), "{error:#}");
        assert_eq!(exit_code(&error), 2);
    }
    // A process later, the same address.
    let error = scene.world.client(&[scene.proxy.url()], &[MINER]).err().unwrap();
    assert!(format!("{error:#}").contains("than at its first use"), "{error:#}");
    assert_eq!(exit_code(&error), 2);
    assert!(scene.committed().is_empty());
    assert!(other.ledger.all_commitments().unwrap().is_empty());
}

#[test]
fn the_next_of_several_nodes_stands_in_for_one_that_is_gone() {
    let scene = Scene::new(Spec::V143);
    let second = Proxy::before(scene.devnet.address(), Duration::ZERO);
    let client = scene.world.client(&[scene.proxy.url(), second.url()], &[MINER]).unwrap();
    assert_eq!((scene.proxy.num_connections(), second.num_connections()), (1, 0));
    scene.proxy.lead_to(None);
    let block = {
        scene.proxy.rule(|_, _| Verdict::Cut);
        client.commit(&hotkey(MINER), b"local:model:c:h").unwrap()
    };
    assert_eq!(scene.committed(), [block]);
    assert_eq!(second.num_connections(), 1);
}

#[test]
fn what_is_no_node_is_said_so() {
    let scene = Scene::new(Spec::V143);
    let address = scene.devnet.address();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = |url: String| scene.world.client(&[url], &[]).err().unwrap();
    for (error, words) in [
        // Encrypted where nothing is.
        (client(format!("wss://{address}")), "InvalidContentType"),
        (client(format!("ws://{nobody}")), "refused"),
    ] {
        assert_eq!(exit_code(&error), 3);
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }
}
