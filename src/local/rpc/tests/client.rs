//! The node as subxt sees it: a client that nobody here wrote.

#![allow(clippy::unwrap_used)]

use std::str::FromStr;
use std::time::{Duration, Instant};

use subxt::backend::LegacyBackend;
use subxt::dynamic::{self, Value};
use subxt::error::{DispatchError, TransactionEventsError};
use subxt::ext::scale_value::{Composite, ValueDef};
use subxt::rpcs::RpcClient;
use subxt::tx::DynamicPayload;
use subxt::utils::AccountId32;
use subxt::{OnlineClient, SubstrateConfig};
use subxt_signer::SecretUri;
use subxt_signer::sr25519::Keypair;

use super::*;
use crate::chain::Chain;

/// Blocks short enough to wait for some, and long enough for requests to fall into one.
const BLOCK_MS: u64 = 60;

type Client = OnlineClient<SubstrateConfig>;

async fn connect(devnet: &Devnet) -> Client {
    let rpc = RpcClient::from_url(format!("ws://{}", devnet.address())).await.unwrap();
    let backend: LegacyBackend<SubstrateConfig> = LegacyBackend::builder().storage_page_size(512).build(rpc);
    OnlineClient::from_backend(Arc::new(backend)).await.unwrap()
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn key(name: &str) -> Keypair {
    Keypair::from_uri(&SecretUri::from_str(&format!("//{name}")).unwrap()).unwrap()
}

fn commit_call(netuid: u16, data: &[u8]) -> DynamicPayload<Vec<Value>> {
    let raw = Value::unnamed_variant(format!("Raw{}", data.len()), [Value::from_bytes(data)]);
    let info = Value::named_composite([("fields", Value::unnamed_composite([raw]))]);
    dynamic::tx("Commitments", "set_commitment", vec![Value::from(netuid), info])
}

/// Signs with the key of a name and sends; the number of the block, or the name of the error it failed with there.
async fn send<Call: subxt::tx::Payload>(client: &Client, name: &str, call: &Call) -> Result<u64, String> {
    let mut tx = client.tx().await.unwrap();
    let progress = tx.sign_and_submit_then_watch_default(call, &key(name)).await.unwrap();
    let in_block = progress.wait_for_finalized().await.unwrap();
    let number = in_block.at().await.unwrap().block_number();
    match in_block.wait_for_success().await {
        Ok(_) => Ok(number),
        Err(TransactionEventsError::ExtrinsicFailed(DispatchError::Module(error))) => Err(error.details_string()),
        Err(error) => panic!("{error}"),
    }
}

async fn events_of<Call: subxt::tx::Payload>(client: &Client, name: &str, call: &Call) -> Vec<String> {
    let mut tx = client.tx().await.unwrap();
    let progress = tx.sign_and_submit_then_watch_default(call, &key(name)).await.unwrap();
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
            let block = send(&client, "Eve", &commit_call(9, b"first")).await.unwrap();
            let kept = world.ledger.commitment("Eve").unwrap().unwrap();
            assert_eq!((kept.block, kept.bytes.as_slice()), (block, b"first".as_slice()));
            assert_eq!(send(&client, "Eve", &commit_call(9, b"second")).await, Err(too_soon.to_owned()));
            assert_eq!(send(&client, "Stranger", &commit_call(9, b"x")).await, Err(not_registered.to_owned()));
            assert_eq!(send(&client, "Coldkey", &commit_call(9, b"x")).await, Err(not_registered.to_owned()));
            assert_eq!(send(&client, "Bob", &commit_call(77, b"x")).await, Err(not_registered.to_owned()));
            let events = events_of(&client, "Bob", &commit_call(9, &[7; 128])).await;
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
