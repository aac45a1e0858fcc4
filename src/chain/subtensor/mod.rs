//! Bittensor's own chain, over JSON-RPC.
//!
//! `endpoint` and `identity` say whom to talk to, `link` is one connection, `node` makes of several one that lasts.
//! `runtime` is the program that the chain runs, by its own description (of which `types` can be read), and `view` the chain at one block: `subnet`, its
//! `epochs` and `commitments` are read through it. `commit` and `weights` check what can be checked, `order` signs it, and
//! `delivery` hands it in once. Nothing that a node says is believed to be well formed.

mod commit;
mod commitments;
mod delivery;
mod endpoint;
mod epochs;
mod identity;
mod link;
mod node;
mod order;
mod pace;
mod patience;
mod runtime;
mod subnet;
#[cfg(test)]
mod tests;
mod trouble;
mod types;
mod view;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use subxt::utils::H256;

use self::commitments::COMMITMENT_OF;
use self::endpoint::Endpoint;
use self::identity::Identity;
use self::node::Node;
use self::patience::Patience;
use self::runtime::Part;
use self::view::Ask;
use crate::chain::wallet::Keyring;
use crate::chain::{Chain, Commitment, Hotkey, Snapshot, Status, account};
use crate::error::input;
use crate::hex;
use crate::hub::model_id::MAX_COMMITMENT_BYTES;

/// A network with a name, whose first block is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// The hash of its first block.
    pub genesis: &'static str,
    /// Where it is reached.
    pub endpoints: &'static [&'static str],
}

/// Bittensor's main network.
pub const FINNEY: Known = Known {
    name: "finney",
    genesis: "0x2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03",
    endpoints: &["wss://entrypoint-finney.opentensor.ai:443"],
};

/// Its test network.
pub const TEST: Known = Known {
    name: "test",
    genesis: "0x8f9cf856bf558a14440e75569c9e58594757048d7b3a84b5d25f6bd978263105",
    endpoints: &["wss://test.finney.opentensor.ai:443"],
};

/// Which chain and subnet.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network that it must be; `None`: whatever the endpoint is at its first use.
    pub network: Option<Known>,
    /// Where to connect, in the order of preference; empty: those of the network.
    pub endpoints: Vec<String>,
    /// The subnet.
    pub netuid: u16,
    /// Where journals and the first blocks of endpoints are kept.
    pub state_dir: PathBuf,
}

/// A subnet of a chain.
pub struct Subtensor {
    runtime: tokio::runtime::Runtime,
    node: Node,
    netuid: u16,
    keyring: Keyring,
    described: String,
    journal_dir: PathBuf,
    /// Held while something is signed and sent: two extrinsics of one hotkey at a time would take the same number.
    sending: Mutex<()>,
    /// The subnet at the block at which it was read last.
    read: Mutex<Option<(H256, Snapshot)>>,
}

impl Subtensor {
    /// Connects, and checks that it is the right chain.
    pub fn connect(options: Options, keyring: Keyring) -> Result<Self> {
        Self::connect_within(options, keyring, Patience::default())
    }

    fn connect_within(options: Options, keyring: Keyring, patience: Patience) -> Result<Self> {
        let Options { network, mut endpoints, netuid, state_dir } = options;
        if endpoints.is_empty() {
            endpoints = network.iter().flat_map(|network| network.endpoints).map(|&url| url.to_owned()).collect();
        }
        if endpoints.is_empty() {
            return Err(input("no node is named: give an endpoint, ws://127.0.0.1:PORT or wss://HOST:PORT"));
        }
        let endpoints = endpoints.iter().map(|url| Endpoint::parse(url)).collect::<Result<Vec<_>>>()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // One may be held up by a name server.
            .worker_threads(2)
            .thread_name("chain")
            .enable_all()
            .build()
            .context("cannot start the thread that talks to the chain")?;
        let node = Node::new(endpoints, Identity::new(network, &state_dir), patience);
        let genesis = hex::write(runtime.block_on(node.start())?);
        let described = match network {
            Some(network) => format!("subnet {netuid} of {}", network.name),
            None => format!("subnet {netuid} at {}", node.shown()),
        };
        let journal_dir = state_dir.join(format!("{}-{netuid}", &genesis[2..18]));
        let (sending, read) = (Mutex::default(), Mutex::default());
        Ok(Self { runtime, node, netuid, keyring, described, journal_dir, sending, read })
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(work)
    }

    fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_such_subnet(&self) -> anyhow::Error {
        input(format!("there is no {}: mend the netuid, `btcli subnet list` shows which there are", self.described))
    }
}

impl Chain for Subtensor {
    fn describe(&self) -> String {
        self.described.clone()
    }

    fn is_real(&self) -> bool {
        true
    }

    fn seconds_per_block(&self) -> f64 {
        self.node.seconds_per_block()
    }

    fn unlock(&self, hotkey: &str) -> Result<()> {
        self.keyring.unlock(hotkey)
    }

    fn journal_dir(&self) -> &Path {
        &self.journal_dir
    }

    fn block(&self) -> Result<u64> {
        Ok(self.wait(self.node.see(&[], None))?.view.number)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let asks = subnet::snapshot_asks(self.netuid);
        let (hash, snapshot) = self.wait(self.node.with(self.node.patience.operation, async |link| {
            let seen = self.node.look(link, &asks, None).await?;
            let hash = seen.view.hash;
            let read = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match read.filter(|(read, _)| *read == hash) {
                Some((_, snapshot)) => Ok((hash, Some(snapshot))),
                None => Ok((hash, subnet::snapshot(&seen, self.netuid).await?)),
            }
        }))?;
        let snapshot = snapshot.ok_or_else(|| self.no_such_subnet())?;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((hash, snapshot.clone()));
        Ok(snapshot)
    }

    fn status(&self) -> Result<Status> {
        let seen = self.wait(self.node.see(&subnet::status_asks(self.netuid), None))?;
        let genesis = self.node.genesis().map(hex::write).unwrap_or_default();
        subnet::status(&seen, self.netuid, genesis)?.ok_or_else(|| self.no_such_subnet())
    }

    fn all_commitments(&self) -> Result<BTreeMap<Hotkey, Commitment>> {
        self.wait(self.node.with(self.node.patience.operation, async |link| {
            let seen = self.node.look(link, &[], None).await?;
            commitments::all(&seen.view, self.netuid).await
        }))
    }

    fn unregistered(&self, hotkey: &str) -> anyhow::Error {
        self.why_unregistered(hotkey).unwrap_or_else(|error| error)
    }

    fn commitment(&self, hotkey: &str) -> Result<Option<Commitment>> {
        let account = account::parse(hotkey).map_err(input)?;
        let ask = Ask::new(COMMITMENT_OF, [Part::Number(self.netuid), Part::Account(account)]);
        let seen = self.wait(self.node.see(&[ask], None))?;
        Ok(commitments::one(&seen.answers)?.map(Commitment::from))
    }

    fn next_commit_block(&self, hotkey: &str) -> Result<u64> {
        let account = account::parse(hotkey).map_err(input)?;
        let seen = self.wait(self.node.see(&commitments::asks(self.netuid, account), None))?;
        // How long it will be is not known yet.
        commitments::next_block(&seen, self.netuid, MAX_COMMITMENT_BYTES)
    }

    fn commit(&self, hotkey: &str, bytes: &[u8]) -> Result<u64> {
        self.commit_bytes(hotkey, bytes)
    }

    fn set_weights(&self, hotkey: &str, weights: &[(u16, u16)], version_key: u64) -> Result<u64> {
        self.send_weights(hotkey, weights, version_key)
    }
}

impl Subtensor {
    fn why_unregistered(&self, hotkey: &str) -> Result<anyhow::Error> {
        let account = account::parse(hotkey).map_err(input)?;
        let asks = subnet::registration_asks(self.netuid, account);
        let (there, owned) = self.wait(self.node.with(self.node.patience.operation, async |link| {
            let seen = self.node.look(link, &asks, None).await?;
            let there = seen.answers.needed(subnet::NETWORKS_ADDED)?.unwrap_or(false);
            let owned = if there { subnet::hotkey_of(&seen, self.netuid, account).await? } else { None };
            Ok((there, owned))
        }))?;
        if !there {
            return Ok(self.no_such_subnet());
        }
        let subnet = &self.described;
        if let Some(owned) = owned {
            return Ok(input(format!(
                "`{hotkey}` is a coldkey, which never publishes: give the address of its hotkey, such as `{}` that is \
                 registered on {subnet}",
                account::address(&owned)
            )));
        }
        Ok(input(format!(
            "the hotkey `{hotkey}` is not registered on {subnet}: `btcli subnet register --netuid {} --wallet.name WALLET \
             --wallet.hotkey HOTKEY` registers it",
            self.netuid
        )))
    }
}

/// Where assay keeps what it must remember of real chains: `$ASSAY_HOME`, or `~/.assay`.
pub fn default_state_dir() -> PathBuf {
    std::env::var_os("ASSAY_HOME")
        .map_or_else(|| std::env::home_dir().unwrap_or_default().join(".assay"), PathBuf::from)
}
