//! The node as subxt sees it: a client that nobody here wrote.

#![allow(clippy::unwrap_used)]

use std::str::FromStr;
use std::time::Duration;

use subxt::backend::LegacyBackend;
use subxt::config::substrate::SubstrateExtrinsicParamsBuilder;
use subxt::dynamic::{self, Value};
use subxt::error::{DispatchError, TransactionEventsError};
use subxt::ext::scale_value::Composite;
use subxt::rpcs::{RpcClient, rpc_params};
use subxt::tx::DynamicPayload;
use subxt::utils::AccountId32;
use subxt::{OnlineClient, SubstrateConfig};
use subxt_signer::SecretUri;
use subxt_signer::sr25519::Keypair;

use super::*;
use crate::chain::Chain;

/// So short that a node looks often whether one has passed.
pub(super) const BLOCK_MS: u64 = 60;

type Client = OnlineClient<SubstrateConfig>;

pub(super) async fn connect(devnet: &Devnet) -> Client {
    let rpc = RpcClient::from_url(format!("ws://{}", devnet.address())).await.unwrap();
    let backend: LegacyBackend<SubstrateConfig> = LegacyBackend::builder().storage_page_size(512).build(rpc);
    OnlineClient::from_backend(Arc::new(backend)).await.unwrap()
}

pub(super) fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub(super) fn key(name: &str) -> Keypair {
    Keypair::from_uri(&SecretUri::from_str(&format!("//{name}")).unwrap()).unwrap()
}

pub(super) fn commit_call(netuid: u16, data: &[u8]) -> DynamicPayload<Vec<Value>> {
    let raw = Value::unnamed_variant(format!("Raw{}", data.len()), [Value::from_bytes(data)]);
    let info = Value::named_composite([("fields", Value::unnamed_composite([raw]))]);
    dynamic::tx("Commitments", "set_commitment", vec![Value::from(netuid), info])
}

/// Signs with the key of a name and sends; the number of the block, or the name of the error it failed with there.
pub(super) async fn send<Call: subxt::tx::Payload>(
    world: &World,
    client: &Client,
    name: &str,
    call: &Call,
) -> Result<u64, String> {
    let mut tx = client.tx().await.unwrap();
    let progress = tx.sign_and_submit_then_watch_default(call, &key(name)).await.unwrap();
    world.clock.pass(Duration::from_millis(BLOCK_MS)); // the node sees it by itself
    let in_block = progress.wait_for_finalized().await.unwrap();
    let number = in_block.at().await.unwrap().block_number();
    match in_block.wait_for_success().await {
        Ok(_) => Ok(number),
        Err(TransactionEventsError::ExtrinsicFailed(DispatchError::Module(error))) => Err(error.details_string()),
        Err(error) => panic!("{error}"),
    }
}

async fn events_of<Call: subxt::tx::Payload>(world: &World, client: &Client, name: &str, call: &Call) -> Vec<String> {
    let mut tx = client.tx().await.unwrap();
    let progress = tx.sign_and_submit_then_watch_default(call, &key(name)).await.unwrap();
    world.clock.pass(Duration::from_millis(BLOCK_MS));
    let events = progress.wait_for_finalized_success().await.unwrap();
    let name = |event: subxt::events::Event<'_, _>| {
        let fields = event.decode_fields_unchecked_as::<Composite<()>>().unwrap();
        format!("{}.{} of {}", event.pallet_name(), event.event_name(), fields.values().count())
    };
    events.iter().map(|event| name(event.unwrap())).collect()
}

#[test]
fn the_subnet_is_read_as_the_ledger_has_it() {
    for spec in SPECS {
        let world = World::new(BLOCK_MS);
        world.ledger.set_incentives(&[(1, 60_000), (2, 5_535)]).unwrap();
        world.ledger.put_weights(0, &[(1, 65_535), (2, 3)]).unwrap();
        world.ledger.commit_at("Eve", b"local:eve:c:h", 1_400).unwrap();
        let snapshot = world.ledger.snapshot().unwrap();
        let devnet = world.serve(spec);
        wait(async {
            let client = connect(&devnet).await;
            let at = client.at_current_block().await.unwrap();
            assert_eq!(at.spec_version(), spec.version());
            assert!(at.block_number() >= 1_499 && at.block_number() < world.ledger.block().unwrap());
            let storage = at.storage();
            let keys = dynamic::storage::<(u16, u16), AccountId32>("SubtensorModule", "Keys");
            let uids = dynamic::storage::<(u16, AccountId32), u16>("SubtensorModule", "Uids");
            for neuron in &snapshot.neurons {
                let account = storage.fetch(&keys, (9, neuron.uid)).await.unwrap().decode().unwrap();
                assert_eq!(account, super::super::account(&neuron.hotkey).unwrap());
                assert_eq!(storage.fetch(&uids, (9, account)).await.unwrap().decode().unwrap(), neuron.uid);
            }
            let vector = dynamic::storage::<(u16,), Vec<u16>>("SubtensorModule", "Incentive");
            assert_eq!(storage.fetch(&vector, (9,)).await.unwrap().decode().unwrap(), [0, 60_000, 5_535]);
            let vector = dynamic::storage::<(u16,), Vec<bool>>("SubtensorModule", "ValidatorPermit");
            assert_eq!(storage.fetch(&vector, (9,)).await.unwrap().decode().unwrap(), [true, false, false]);
            let stake = dynamic::storage::<(AccountId32,), u64>("SubtensorModule", "TotalHotkeyStake");
            let alice = key("Alice").public_key().to_account_id();
            assert_eq!(storage.fetch(&stake, (alice,)).await.unwrap().decode().unwrap(), 50_000_000_000_000);
            let weights = dynamic::storage::<(u16, u16), Vec<(u16, u16)>>("SubtensorModule", "Weights");
            assert_eq!(storage.fetch(&weights, (9, 0)).await.unwrap().decode().unwrap(), [(1, 65_535), (2, 3)]);

            let commitments = dynamic::storage::<(u16, AccountId32), Value>("Commitments", "CommitmentOf");
            let entry = storage.entry(commitments).unwrap();
            let mut found = entry.iter((9,)).await.unwrap();
            let only = found.next().await.unwrap().unwrap();
            let (_, account) = only.key().unwrap().decode().unwrap();
            assert_eq!(account, key("Eve").public_key().to_account_id());
            let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 0, 120, 5, 0, 0, 4, 14];
            expected.extend(b"local:eve:c:h");
            assert_eq!(only.value().bytes(), expected);
            assert!(found.next().await.is_none());

            // subxt's own choice of how to talk to a node.
            let client = Client::from_url(format!("ws://{}", devnet.address())).await.unwrap();
            let at = client.at_current_block().await.unwrap();
            assert_eq!(at.storage().fetch(&keys, (9, 0)).await.unwrap().decode().unwrap(), alice);
        });
    }
}

#[test]
fn a_commitment_is_in_a_block_and_on_the_ledger_and_the_next_one_is_refused_by_name() {
    let names = [
        ["Commitments::RateLimitExceeded", "Commitments::CannotCommit"],
        ["Commitments::CommitmentSetRateLimitExceeded", "Commitments::AccountNotAllowedCommit"],
    ];
    for (spec, [too_soon, not_registered]) in std::iter::zip(SPECS, names) {
        let world = World::new(BLOCK_MS);
        let devnet = world.serve(spec);
        wait(async {
            let client = connect(&devnet).await;
            let block = send(&world, &client, "Eve", &commit_call(9, b"first")).await.unwrap();
            let kept = world.ledger.commitment("Eve").unwrap().unwrap();
            assert_eq!((kept.block, kept.bytes.as_slice()), (block, b"first".as_slice()));
            assert_eq!(send(&world, &client, "Eve", &commit_call(9, b"second")).await, Err(too_soon.to_owned()));
            assert_eq!(send(&world, &client, "Stranger", &commit_call(9, b"x")).await, Err(not_registered.to_owned()));
            assert_eq!(send(&world, &client, "Coldkey", &commit_call(9, b"x")).await, Err(not_registered.to_owned()));
            assert_eq!(send(&world, &client, "Bob", &commit_call(77, b"x")).await, Err(not_registered.to_owned()));
            let events = events_of(&world, &client, "Bob", &commit_call(9, &[7; 128])).await;
            assert_eq!(
                events,
                [
                    "Commitments.Commitment of 2",
                    "TransactionPayment.TransactionFeePaid of 3",
                    "System.ExtrinsicSuccess of 1"
                ]
            );
            assert_eq!(world.ledger.commitment(BOB).unwrap().unwrap().bytes, [7; 128]);
            assert_eq!(world.ledger.commitments_of("Eve").unwrap().len(), 1);
        });
    }
}

/// A commitment to the present finalized block, signed and not sent.
async fn signed(client: &Client, name: &str, data: &[u8]) -> Vec<u8> {
    let mut tx = client.tx().await.unwrap();
    let params = SubstrateExtrinsicParamsBuilder::new().build();
    tx.create_signed(&commit_call(9, data), &key(name), params).await.unwrap().into_encoded()
}

/// A transaction with a number that is valid at every block, signed and not sent.
pub(super) async fn signed_forever<Call: subxt::tx::Payload>(
    client: &Client,
    name: &str,
    nonce: u64,
    call: &Call,
) -> Vec<u8> {
    let params = SubstrateExtrinsicParamsBuilder::new().nonce(nonce).immortal().build();
    client.tx().await.unwrap().create_signed(call, &key(name), params).await.unwrap().into_encoded()
}

/// As [`signed`], for tests that send it by other means.
pub(super) fn signed_offline(devnet: &Devnet, name: &str, data: &[u8]) -> Vec<u8> {
    wait(async { signed(&connect(devnet).await, name, data).await })
}

/// Code, message and data of the error that submitting bytes comes to; `None` if they are taken.
pub(super) async fn submit(devnet: &Devnet, bytes: &[u8]) -> Option<(i32, String, String)> {
    let rpc = RpcClient::from_url(format!("ws://{}", devnet.address())).await.unwrap();
    let sent = rpc.request::<String>("author_submitExtrinsic", rpc_params![crate::hex::write(bytes)]).await;
    match sent {
        Ok(_) => None,
        Err(subxt::rpcs::Error::User(error)) => {
            let data = error.data.map(|data| data.get().trim_matches('"').to_owned());
            Some((error.code, error.message, data.unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn weights_are_set_and_refused_by_name() {
    let names = [
        ["NoValidatorPermit", "NotRegistered", "InvalidUid", "WeightVecNotEqualSize", "SettingWeightsTooFast"],
        [
            "NeuronNoValidatorPermit",
            "HotKeyNotRegisteredInSubNet",
            "UidVecContainInvalidOne",
            "WeightVecNotEqualSize",
            "SettingWeightsTooFast",
        ],
    ];
    for (spec, names) in std::iter::zip(SPECS, names) {
        let world = World::new(BLOCK_MS);
        let devnet = world.serve(spec);
        wait(async {
            let client = connect(&devnet).await;
            let call = |uids: Vec<u16>, weights: Vec<u16>| {
                dynamic::tx("SubtensorModule", "set_weights", (9_u16, uids, weights, 0_u64))
            };
            let good = call(vec![1, 2], vec![3, 1]);
            let failed = [
                send(&world, &client, "Eve", &good).await,
                send(&world, &client, "Stranger", &good).await,
                send(&world, &client, "Alice", &call(vec![1, 200], vec![3, 1])).await,
                send(&world, &client, "Alice", &call(vec![1], vec![3, 1])).await,
            ];
            let block = send(&world, &client, "Alice", &good).await.unwrap();
            let failed = failed.into_iter().chain([send(&world, &client, "Alice", &good).await]);
            for (failed, name) in std::iter::zip(failed, names) {
                assert_eq!(failed, Err(format!("SubtensorModule::{name}")));
            }
            let snapshot = world.ledger.snapshot().unwrap();
            assert_eq!(snapshot.weights[&0], [(1, 65_535), (2, 21_845)]);
            assert_eq!(snapshot.neurons[0].last_update, block);
        });
    }
}

#[test]
fn the_pool_takes_a_transaction_once_and_none_that_is_wrong() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V143);
    wait(async {
        let client = connect(&devnet).await;
        let (first, other) = (signed(&client, "Eve", b"first").await, signed(&client, "Eve", b"other").await);
        let mut forged = first.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(submit(&devnet, &forged).await, invalid("Transaction has a bad signature"));
        assert_eq!(submit(&devnet, &first).await, None);
        assert_eq!(submit(&devnet, &first).await.map(|error| error.0), Some(1013));
        assert_eq!(submit(&devnet, &other).await.map(|error| error.0), Some(1014));
        let pending = hostile::ask(&devnet, "author_pendingExtrinsics", "[]")["result"].take();
        assert_eq!(pending, serde_json::json!([crate::hex::write(&first)]));
        let params = SubstrateExtrinsicParamsBuilder::new().nonce(2).build();
        let early = client.tx().await.unwrap().create_signed(&commit_call(9, b"early"), &key("Eve"), params).await;
        assert_eq!(submit(&devnet, early.unwrap().encoded()).await, invalid("Transaction will be valid in the future"));
        world.pass_blocks(&devnet, 1);
        assert_eq!(submit(&devnet, &first).await, invalid("Transaction is outdated"));
        assert_eq!(submit(&devnet, &other).await, invalid("Transaction is outdated"));
        assert_eq!(world.ledger.commitments_of("Eve").unwrap().len(), 1);

        let remark = dynamic::tx("System", "remark", vec![Value::from_bytes(b"x")]);
        let params = SubstrateExtrinsicParamsBuilder::new().immortal().build();
        let remark = client.tx().await.unwrap().create_signed(&remark, &key("Eve"), params).await.unwrap();
        let refused = submit(&devnet, remark.encoded()).await.unwrap();
        assert!(
            refused.0 == 1010 && refused.2.starts_with("This node takes Commitments.set_commitment"),
            "{refused:?}"
        );
        assert!(!remark.validate().await.unwrap().is_valid());
        let params = SubstrateExtrinsicParamsBuilder::new().immortal().build();
        let immortal = client.tx().await.unwrap().create_signed(&commit_call(9, b"x"), &key("Bob"), params).await;
        let immortal = immortal.unwrap();
        assert!(immortal.validate().await.unwrap().is_valid());
        assert_eq!(submit(&devnet, immortal.encoded()).await, None);
    });
}

#[test]
fn a_transaction_lives_as_long_as_it_says() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V143);
    wait(async {
        let client = connect(&devnet).await;
        let params = SubstrateExtrinsicParamsBuilder::new().mortal(8).build();
        let old = client.tx().await.unwrap().create_signed(&commit_call(9, b"old"), &key("Eve"), params).await.unwrap();
        world.pass_blocks(&devnet, 10);
        assert_eq!(submit(&devnet, old.encoded()).await, invalid("Transaction has a bad signature"));
        // From a block that is not kept.
        let params = SubstrateExtrinsicParamsBuilder::new().mortal_from_unchecked(1_024, 1_024, [7; 32].into()).build();
        let older = client.tx().await.unwrap().create_signed(&commit_call(9, b"x"), &key("Eve"), params).await.unwrap();
        assert_eq!(submit(&devnet, older.encoded()).await, invalid("Transaction has an ancient birth block"));
        assert_eq!(world.ledger.commitments_of("Eve").unwrap().len(), 0);
    });
}

#[test]
fn every_block_is_told_and_follows_the_one_before() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V185);
    wait(async {
        let client = connect(&devnet).await;
        let mut blocks = client.stream_blocks().await.unwrap();
        let mut last: Option<(u64, Vec<u8>)> = None;
        for _ in 0..5 {
            world.clock.pass(Duration::from_millis(BLOCK_MS));
            let block = blocks.next().await.unwrap().unwrap();
            let parent = block.header().parent_hash.as_ref().to_vec();
            if let Some((number, hash)) = last {
                assert_eq!((block.number(), &parent), (number + 1, &hash));
            }
            let at = block.at().await.unwrap();
            let number = dynamic::storage::<(), u32>("System", "Number");
            assert_eq!(u64::from(at.storage().fetch(&number, ()).await.unwrap().decode().unwrap()), block.number());
            last = Some((block.number(), block.hash().as_ref().to_vec()));
        }
    });
}

#[test]
fn a_node_that_starts_again_is_the_same_chain_and_takes_nothing_twice() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V143);
    let genesis = |devnet: &Devnet| hostile::ask(devnet, "chain_getBlockHash", "[0]")["result"].take();
    let (old_genesis, port) = (genesis(&devnet), devnet.address().port());
    let error = Devnet::start(Arc::clone(&world.ledger), port, Spec::V143).err().unwrap();
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(error.to_string().contains(&format!("port {port} of this machine is in use")), "{error}");
    let weights = dynamic::tx("SubtensorModule", "set_weights", (9_u16, vec![1_u16], vec![1_u16], 0_u64));
    let sent = wait(async {
        let client = connect(&devnet).await;
        // The second commitment fails, and the stranger's.
        let sent = [
            signed_forever(&client, "Eve", 0, &commit_call(9, b"once")).await,
            signed_forever(&client, "Eve", 1, &commit_call(9, b"twice")).await,
            signed_forever(&client, "Stranger", 0, &commit_call(9, b"never")).await,
            signed_forever(&client, "Alice", 0, &weights).await,
        ];
        for tx in &sent {
            assert_eq!(submit(&devnet, tx).await, None);
        }
        sent
    });
    world.pass_blocks(&devnet, 200);
    drop(devnet);
    // As far as the ledger is concerned, each of them could be done now.
    world.ledger.register_at("Stranger", 1_000).unwrap();
    let devnet = Devnet::start(Arc::clone(&world.ledger), port, Spec::V143).unwrap();
    assert_eq!(genesis(&devnet), old_genesis);
    wait(async {
        for tx in &sent {
            assert_eq!(submit(&devnet, tx).await, invalid("Transaction is outdated"));
        }
        assert_eq!(world.ledger.commitments_of("Eve").unwrap().len(), 1);
        assert_eq!(world.ledger.commitments_of("Stranger").unwrap().len(), 0);
        let client = connect(&devnet).await;
        send(&world, &client, "Eve", &commit_call(9, b"again")).await.unwrap();
        let refused = send(&world, &client, "Eve", &commit_call(9, b"too soon")).await;
        assert_eq!(refused, Err("Commitments::RateLimitExceeded".to_owned()));
        send(&world, &client, "Bob", &commit_call(9, b"new")).await.unwrap();
    });
    let other = World::new(BLOCK_MS + 1);
    assert_ne!(genesis(&other.serve(Spec::V143)), old_genesis);
}

#[test]
fn one_client_goes_on_through_an_upgrade_and_what_was_signed_before_it_does_not() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V143);
    wait(async {
        let client = connect(&devnet).await;
        let before = signed(&client, "Eve", b"before").await;
        assert_eq!(client.at_current_block().await.unwrap().spec_version(), 143);
        devnet.upgrade(Spec::V185);
        world.pass_blocks(&devnet, 2);
        assert_eq!(client.at_current_block().await.unwrap().spec_version(), 185);
        assert_eq!(submit(&devnet, &before).await, invalid("Transaction has a bad signature"));
        send(&world, &client, "Eve", &commit_call(9, b"after")).await.unwrap();
        assert_eq!(world.ledger.commitment("Eve").unwrap().unwrap().bytes, b"after");
    });
}

#[test]
fn a_machine_that_slept_finds_the_newest_blocks_and_what_was_sent_before() {
    let world = World::new(1_000);
    let devnet = world.serve(Spec::V143);
    let bytes = signed_offline(&devnet, "Eve", b"before the night");
    let mut submitted = devnet.node.submit(&bytes).unwrap();
    assert!(submitted.block.try_recv().is_err());
    world.clock.pass(Duration::from_secs(100_000));
    let head = devnet.node.chain().unwrap().head().clone();
    assert_eq!(u64::from(head.number), 1_500 + 100_000 - 1);
    submitted.block.try_recv().unwrap();
    let chain = devnet.node.chain().unwrap();
    assert!(chain.by_number(u64::from(head.number) - 254).is_some());
    assert!(chain.by_number(u64::from(head.number) - 256).is_none());
}
