//! Which chain a node must be on: a network that has a name is known by the hash of its first block; what a bare address
//! leads to is written down at its first use, and must be the same ever after. So a node that was replaced, or an address
//! that was mistyped, gets neither keys' signatures nor a say in what is standing.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use subxt::utils::H256;

use super::Known;
use super::endpoint::Endpoint;
use crate::error::{Failure, input};
use crate::hex;
use crate::lock;
use crate::whole_file;

/// The file of the first blocks, by endpoint.
const FILE: &str = "endpoints.json";

/// Longer than any process needs to write the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The chain that is meant.
pub(super) struct Identity {
    network: Option<Known>,
    file: PathBuf,
    /// The chain of this process, once it is found.
    found: OnceLock<H256>,
}

impl Identity {
    /// The chain of a network, or whatever the endpoints have led to.
    pub(super) fn new(network: Option<Known>, state_dir: &Path) -> Self {
        Self { network, file: state_dir.join(FILE), found: OnceLock::new() }
    }

    /// The hash of the first block, once a node was connected to.
    pub(super) fn genesis(&self) -> Option<H256> {
        self.found.get().copied()
    }

    /// Refuses a node of another chain.
    pub(super) fn check(&self, endpoint: &Endpoint, genesis: H256) -> Result<()> {
        let shown = hex::write(genesis);
        if let Some(network) = self.network {
            if shown != network.genesis {
                return Err(input(format!(
                    "{endpoint} is not on {}: its first block is {shown}, not {}; mend the endpoint, or leave the network's \
                     name away",
                    network.name, network.genesis
                )));
            }
        } else {
            self.check_pinned(endpoint, &shown)?;
        }
        let found = *self.found.get_or_init(|| genesis);
        if found != genesis {
            return Err(input(format!(
                "{endpoint} is on another chain than the endpoints before it: its first block is {shown}, theirs {}",
                hex::write(found)
            )));
        }
        Ok(())
    }

    fn check_pinned(&self, endpoint: &Endpoint, genesis: &str) -> Result<()> {
        if self.is_pinned(&self.read()?, endpoint, genesis)? {
            return Ok(());
        }
        let folder = self.file.parent().expect("the file lies in a folder");
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // Another process may be writing down another endpoint.
        let lock = self.file.with_extension("lock");
        let _held = lock::wait(&lock, LOCK_PATIENCE)?.ok_or_else(|| {
            Failure::Unreachable(format!("another process holds {} for long: try again", lock.display()))
        })?;
        let mut pinned = self.read()?;
        if !self.is_pinned(&pinned, endpoint, genesis)? {
            pinned.insert(endpoint.to_string(), genesis.to_owned());
            whole_file::write(&self.file, &serde_json::to_vec_pretty(&pinned)?)?;
        }
        Ok(())
    }

    fn read(&self) -> Result<BTreeMap<String, String>> {
        let shown = self.file.display();
        match fs::read(&self.file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| input(format!("{shown} is damaged ({error}): mend or delete it"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {shown}")),
        }
    }

    /// Whether the endpoint's chain is written down; an error if it is another.
    fn is_pinned(&self, pinned: &BTreeMap<String, String>, endpoint: &Endpoint, genesis: &str) -> Result<bool> {
        match pinned.get(&endpoint.to_string()) {
            Some(before) if before != genesis => Err(input(format!(
                "{endpoint} is on another chain than at its first use: its first block is {genesis}, and was {before}; if \
                 that is meant, delete the endpoint from {}",
                self.file.display()
            ))),
            before => Ok(before.is_some()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::chain::subtensor::FINNEY;

    #[test]
    fn a_bare_endpoint_must_stay_on_the_chain_of_its_first_use() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("not/there/yet");
        let (one, other) = (H256::repeat_byte(1), H256::repeat_byte(2));
        let (near, far) =
            (Endpoint::parse("ws://127.0.0.1:1").unwrap(), Endpoint::parse("wss://node.example").unwrap());
        let identity = Identity::new(None, &state);
        identity.check(&near, one).unwrap();
        identity.check(&near, one).unwrap();
        let refused = identity.check(&far, other).unwrap_err();
        assert!(refused.to_string().contains("than the endpoints before it"), "{refused}");
        // Another process remembers, and the other endpoint was free to be on another chain.
        let identity = Identity::new(None, &state);
        let refused = identity.check(&near, other).unwrap_err();
        assert!(refused.to_string().contains("than at its first use"), "{refused}");
        assert!(refused.to_string().contains("endpoints.json"), "{refused}");
        assert_eq!(crate::error::exit_code(&refused), 2);
        identity.check(&far, other).unwrap();
        assert_eq!(identity.genesis(), Some(other));
        std::fs::write(state.join(FILE), b"{").unwrap();
        assert!(identity.check(&near, one).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn what_several_write_down_at_a_time_is_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for port in 1..=16 {
                let identity = Identity::new(None, dir.path());
                let endpoint = Endpoint::parse(&format!("ws://127.0.0.1:{port}")).unwrap();
                scope.spawn(move || identity.check(&endpoint, H256::repeat_byte(1)).unwrap());
            }
        });
        let kept: BTreeMap<String, String> = serde_json::from_slice(&fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(kept.len(), 16);
    }

    #[test]
    fn a_network_with_a_name_must_have_its_first_block() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::new(Some(FINNEY), dir.path());
        let endpoint = Endpoint::parse("ws://127.0.0.1:1").unwrap();
        let refused = identity.check(&endpoint, H256::repeat_byte(3)).unwrap_err();
        assert!(refused.to_string().contains("is not on finney"), "{refused}");
        let mut finney = [0; 32];
        for (byte, digits) in finney.iter_mut().zip(FINNEY.genesis.as_bytes()[2..].chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        }
        identity.check(&endpoint, H256(finney)).unwrap();
        assert!(!dir.path().join(FILE).exists(), "a known chain needs no note");
    }
}
