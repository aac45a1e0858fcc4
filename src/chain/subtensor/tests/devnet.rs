//! The whole client against a node over the ledger.

use std::time::{Duration, Instant};

use subxt::utils::AccountId32;

use super::proxy::Proxy;
use super::world::{MINER, STRANGER, VALIDATOR, World, hotkey};
use crate::chain::account::address;
use crate::chain::{Chain, CommitLimit};
use crate::error::exit_code;
use crate::local::rpc::Spec;

const BLOCK_MS: u64 = 50;
const SPECS: [Spec; 2] = [Spec::V143, Spec::V185];

#[test]
fn a_subnet_is_read_as_it_is_on_the_ledger() {
    for spec in SPECS {
        let world = World::new(BLOCK_MS);
        world.ledger.set_incentives(&[(1, 60_000)]).unwrap();
        world.ledger.put_weights(0, &[(1, 65_535), (0, 3)]).unwrap();
        world.ledger.commit_at(&hotkey(MINER), b"local:eve:c:h", 1_400).unwrap();
        let devnet = world.serve(spec);
        let client = world.client(&[format!("ws://{}", devnet.address())], &[]).unwrap();
        let (read, mut kept) = (client.snapshot().unwrap(), world.ledger.snapshot().unwrap());
        assert!(read.block + 3 > kept.block && read.block < kept.block);
        kept.block = read.block;
        // On a chain a registration counts as an update.
        kept.neurons.iter_mut().for_each(|neuron| neuron.last_update = neuron.last_update.max(neuron.registered_at));
        kept.consensus.emission = read.consensus.emission;
        assert_eq!(read, kept);
        assert_eq!(client.all_commitments().unwrap(), world.ledger.all_commitments().unwrap());
        assert_eq!(client.commitment(&hotkey(VALIDATOR)).unwrap(), None);
        let next = world.ledger.next_commit_block(&hotkey(MINER)).unwrap();
        assert_eq!(client.next_commit_block(&hotkey(MINER)).unwrap(), next);
        let (read, kept) = (client.status().unwrap(), world.ledger.status().unwrap());
        assert_eq!((read.tempo, read.num_uids, read.max_uids), (kept.tempo, kept.num_uids, kept.max_uids));
        assert_eq!((read.commit_limit, read.weights.rate_limit), (kept.commit_limit, kept.weights.rate_limit));
        let seconds = client.seconds_per_block();
        assert!((seconds - BLOCK_MS as f64 / 1000.0).abs() < 0.001, "{seconds}");
    }
}

#[test]
fn a_second_commitment_is_refused_with_the_block_at_which_it_is_taken() {
    for spec in SPECS {
        let world = World::new(BLOCK_MS);
        let devnet = world.serve(spec);
        let client = world.client(&[format!("ws://{}", devnet.address())], &[MINER]).unwrap();
        let block = client.commit(&hotkey(MINER), b"local:one:c:h").unwrap();
        let kept = client.commitment(&hotkey(MINER)).unwrap().unwrap();
        assert_eq!((kept.block, kept.bytes.as_slice()), (block, b"local:one:c:h".as_slice()));
        // The same again is there already.
        assert_eq!(client.commit(&hotkey(MINER), b"local:one:c:h").unwrap(), block);
        let CommitLimit::Blocks(limit) = world.ledger.status().unwrap().commit_limit else { panic!() };
        let error = client.commit(&hotkey(MINER), b"local:two:c:h").unwrap_err();
        assert_eq!(exit_code(&error), 4);
        assert!(error.to_string().contains(&format!("at block {}, in about", block + limit)), "{error}");
        assert_eq!(world.ledger.commitments_of(&hotkey(MINER)).unwrap().len(), 1);
        let error = client.commit(&hotkey(MINER), &[b'x'; 129]).unwrap_err();
        assert!(error.to_string().contains("has 129 bytes"), "{error}");
    }
}

#[test]
fn who_cannot_publish_is_told_why() {
    let world = World::new(BLOCK_MS);
    let devnet = world.serve(Spec::V143);
    let url = format!("ws://{}", devnet.address());
    let client = world.client(std::slice::from_ref(&url), &[STRANGER]).unwrap();
    let stranger = hotkey(STRANGER);
    for error in [client.unregistered(&stranger), client.commit(&stranger, b"x").unwrap_err()] {
        assert!(error.to_string().contains("btcli subnet register --netuid 9"), "{error}");
        assert_eq!(exit_code(&error), 2);
    }
    let coldkey = "5FHhpMDSgF4VLMSrSWFCsSMApRDRTUXYPCbUMrTWAzLaMnZ8";
    assert!(client.unregistered("Eve").to_string().contains("is no address"));
    assert!(!client.unregistered(coldkey).to_string().contains("is a coldkey"));
    let owner = address(&AccountId32(owner(&client, &hotkey(MINER))));
    let error = client.unregistered(&owner);
    assert!(error.to_string().contains("is a coldkey") && error.to_string().contains(&hotkey(VALIDATOR)), "{error}");
}

/// The coldkey of a hotkey.
fn owner(client: &super::Subtensor, hotkey: &str) -> [u8; 32] {
    use crate::chain::subtensor::runtime::{Entry, Part};
    use crate::chain::subtensor::view::Ask;
    const OWNER: Entry = Entry { pallet: "SubtensorModule", name: "Owner" };
    let account = crate::chain::account::parse(hotkey).unwrap();
    let seen = client.wait(client.node.see(&[Ask::new(OWNER, [Part::Account(account)])], None)).unwrap();
    seen.answers.one::<AccountId32>(OWNER).unwrap().unwrap().0
}

#[test]
fn weights_are_set_or_refused_before_they_are_sent() {
    for spec in SPECS {
        let world = World::with(BLOCK_MS, |settings| settings.weights_rate_limit = 100);
        let devnet = world.serve(spec);
        let client = world.client(&[format!("ws://{}", devnet.address())], &[VALIDATOR, MINER, STRANGER]).unwrap();
        let (validator, miner) = (hotkey(VALIDATOR), hotkey(MINER));
        let refused = |hotkey: &str, weights: &[(u16, u16)]| client.set_weights(hotkey, weights, 0).unwrap_err();
        for (error, words) in [
            (refused(&miner, &[(0, 1)]), "no validator permit"),
            (refused(&hotkey(STRANGER), &[(0, 1)]), "btcli subnet register"),
            (refused(&validator, &[(1, 1), (1, 2)]), "two weights"),
            (refused(&validator, &[(2, 1)]), "there is no uid 2"),
            (refused(&validator, &[]), "no weight is given"),
        ] {
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(exit_code(&error), 2);
        }
        let block = client.set_weights(&validator, &[(0, 10), (1, 20)], 7).unwrap();
        let snapshot = client.snapshot().unwrap();
        assert_eq!(snapshot.weights[&0], [(0, 32_768), (1, 65_535)]);
        assert_eq!(snapshot.neurons[0].last_update, block);
        let error = refused(&validator, &[(1, 1)]);
        assert_eq!(exit_code(&error), 4);
        assert!(error.to_string().contains(&format!("at block {}", block + 100)), "{error}");
        // To itself a miner may.
        client.set_weights(&miner, &[(1, 1)], 0).unwrap();
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "what was measured is shown on demand")]
fn a_publish_among_256_neurons_takes_few_waits_and_little_time() {
    let world = World::full(300);
    let weights: Vec<(u16, u16)> = (0..256).map(|uid| (uid, 1 + uid)).collect();
    world.ledger.put_weights(0, &weights).unwrap();
    for spec in SPECS {
        let devnet = world.serve(spec);
        let proxy = Proxy::before(devnet.address(), Duration::from_millis(2));
        let client = world.client(&[proxy.url()], &[MINER]).unwrap();
        let to_connect = proxy.num_waits();
        let began = Instant::now();
        let mut waits = Vec::new();
        let mut noted = to_connect;
        let mut note = |what| {
            waits.push((what, proxy.num_waits() - noted));
            noted = proxy.num_waits();
        };
        assert_eq!(client.snapshot().unwrap().neurons.len(), 256);
        note("snapshot");
        client.next_commit_block(&hotkey(MINER)).unwrap();
        note("next_commit_block");
        client.snapshot().unwrap();
        note("snapshot");
        let reading = began.elapsed();
        let text = format!("local:model:{}:h", spec.version());
        if spec == Spec::V143 {
            client.commit(&hotkey(MINER), text.as_bytes()).unwrap();
            note("commit");
        }
        client.commitment(&hotkey(MINER)).unwrap();
        note("commitment");
        println!("{spec:?}: {to_connect} waits to connect, then {waits:?}; the reads took {reading:?}");
        assert!(proxy.num_waits() <= 20, "{to_connect} {waits:?}");
        assert!(reading < Duration::from_secs(2), "{reading:?}");
    }
}
