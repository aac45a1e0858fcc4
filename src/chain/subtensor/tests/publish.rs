//! A whole publish over the network, among 256 neurons.

use std::time::Duration;

use super::proxy::Proxy;
use super::world::{MINER, World, hotkey};
use crate::hub::fetch::Cache;
use crate::hub::folder::FolderHub;
use crate::metrics::printer::Printer;
use crate::model::arch::Arch;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights;
use crate::network::Network;
use crate::publish::journal::Hold;
use crate::publish::{self, Order};
use crate::recipe::Visibility;
use crate::rules::{Criteria, Rules};
use crate::score::cache::LossCache;

#[test]
fn a_publish_waits_for_the_node_twenty_times_at_most() {
    let world = World::full(500);
    let devnet = world.serve(crate::local::rpc::Spec::V143);
    let proxy = Proxy::before(devnet.address(), Duration::from_millis(2));
    let client = world.client(&[proxy.url()], &[MINER]).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let model_dir = dir.path().join("model");
    std::fs::create_dir(&model_dir).unwrap();
    let arch = Arch::gpt2(64, 16, 8, 1, 1);
    let layout = Layout::of(&arch);
    weights::save(&model_dir, &ModelConfig::new(arch, 0.0), &layout, &vec![0.5; layout.len()]).unwrap();
    let network = Network {
        hub: Box::new(FolderHub::create(&dir.path().join("hub")).unwrap()),
        chain: Box::new(client),
        hotkeys: vec![hotkey(MINER)],
        cache: Cache::new(&dir.path().join("cache")),
        losses: LossCache::none(),
    };
    let criteria = Criteria { sequence_length: 16, ..Rules::default().criteria };
    let order = Order {
        model_dir: &model_dir,
        repo_id: "me/model",
        hotkey: &network.hotkeys[0],
        criteria: &criteria,
        waits: false,
        visibility: Visibility::Public,
        card: None,
        hashes: network.losses.hashes(),
    };
    let hold = Hold::take(network.chain.as_ref(), order.hotkey).unwrap();
    let printer = Printer::with_streams(std::io::sink(), std::io::sink(), true);
    let published = publish::publish(&network, &order, &hold, &|_| Ok(()), &printer).unwrap();
    let [kept] = world.ledger.commitments_of(order.hotkey).unwrap().try_into().unwrap();
    assert_eq!(
        (kept.block, kept.bytes),
        (published.metadata.block.get(), published.metadata.id.to_string().into_bytes())
    );
    assert!(proxy.num_waits() <= 20, "{}", proxy.num_waits());
}
