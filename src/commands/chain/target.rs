//! Which chain is meant, and as whom it is written to.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::chain::{Chain, Hotkey};
use crate::cli::chain::{ChainPlaceArgs, SignerArgs};
use crate::commands::Place;
use crate::error::input;
use crate::metrics::printer::Printer;
use crate::network;
use crate::recipe::{self, Endpoints, LOCAL_DIR, Network};
use crate::rules::{NETUID, Rules};

/// The chain that is meant.
pub(super) struct Target<'a> {
    hub: recipe::Hub,
    chain: recipe::Chain,
    printer: &'a Printer,
    /// The recipe's rules, or those of March 2024.
    pub(super) rules: Rules,
}

impl<'a> Target<'a> {
    /// What the recipe says, or the embedded chain, but for what the other arguments say.
    pub(super) fn of(args: &ChainPlaceArgs, printer: &'a Printer) -> Result<Self> {
        let place = Place::of(&args.place)?;
        let rules = place.rules();
        let mut chain = place.chain;
        let is_elsewhere = args.network.is_some_and(|network| network != Network::Local);
        ensure!(
            !is_elsewhere || args.place.local == Path::new(LOCAL_DIR),
            input("--local names an embedded chain and --network a real one: leave one of them out")
        );
        let was_local = chain.is_local();
        override_network(&mut chain, args)?;
        if was_local && !chain.is_local() {
            // Names on the embedded chain are none in a wallet.
            chain.hotkeys = None;
        }
        chain.netuid = args.netuid.unwrap_or(chain.netuid);
        ensure!(
            !chain.is_local() || chain.netuid == NETUID,
            input(format!(
                "the embedded chain holds subnet {NETUID} only, not {}: name a real one by --network or --endpoint",
                chain.netuid
            ))
        );
        Ok(Self { hub: place.hub, chain, printer, rules })
    }

    /// The recipe's hotkeys; none where no recipe is given on a real chain.
    pub(super) fn own_hotkeys(&self) -> Vec<String> {
        self.chain.hotkeys()
    }

    /// Whether it is the embedded one.
    pub(super) fn is_local(&self) -> bool {
        self.chain.is_local()
    }

    /// Opens the chain to read it; no key file is touched.
    pub(super) fn open(&self) -> Result<Box<dyn Chain>> {
        Ok(self.open_for(&[])?.0)
    }

    /// Opens the chain, and says how it spells hotkeys that are given by address or by name.
    pub(super) fn open_for(&self, hotkeys: &[String]) -> Result<(Box<dyn Chain>, Vec<Hotkey>)> {
        let opened = network::open_chain(&recipe::Chain { hotkeys: Some(hotkeys.to_vec()), ..self.chain.clone() })?;
        network::repair(&self.hub, opened.0.as_ref(), None, self.printer);
        Ok(opened)
    }

    /// Opens the chain to write to it as one hotkey, whose key is opened first: what is wrong with it is told at once, and
    /// its password asked for before anything is waited for.
    pub(super) fn open_as(&self, signer: &SignerArgs) -> Result<(Box<dyn Chain>, Hotkey)> {
        if self.is_local() {
            ensure!(
                signer.hotkey_file.is_none() && !signer.allow_readable_key,
                input("the embedded chain has no keys: name the hotkey by --hotkey NAME instead of its file")
            );
            let name = self.hotkey_by_name(signer)?;
            return Ok((self.open()?, name));
        }
        let mut chain = self.chain.clone();
        chain.allow_readable_keys |= signer.allow_readable_key;
        let mut keyring = network::keyring(&chain);
        let hotkey = match &signer.hotkey_file {
            Some(path) => keyring.add_file(path)?,
            None => keyring.add(&network::wallet_dir(&chain), &self.hotkey_by_name(signer)?)?,
        };
        keyring.signer(&hotkey)?;
        let chain = network::connect(&chain, keyring)?;
        network::repair(&self.hub, &chain, None, self.printer);
        Ok((Box::new(chain), hotkey))
    }

    fn hotkey_by_name(&self, signer: &SignerArgs) -> Result<String> {
        let remedy = "give its key file by --hotkey-file, its name in the wallet by --hotkey, or a recipe by --recipe";
        match &signer.hotkey {
            Some(hotkey) => Ok(hotkey.clone()),
            None => network::only(&self.own_hotkeys(), remedy).cloned(),
        }
    }
}

/// Puts the network and the endpoints of the arguments in the place of those of a recipe.
fn override_network(chain: &mut recipe::Chain, args: &ChainPlaceArgs) -> Result<()> {
    if let Some(endpoint) = args.endpoints.iter().find(|endpoint| endpoint.trim().is_empty()) {
        return Err(input(format!(
            "--endpoint `{endpoint}` names no node: write it as ws://127.0.0.1:9944 or wss://…, several with commas between"
        )));
    }
    ensure!(
        args.endpoints.is_empty() || args.network != Some(Network::Local),
        input("--network local is the embedded chain, which has no endpoint: leave --network or --endpoint out")
    );
    if let Some(network) = args.network {
        if chain.network != Some(network) {
            // It belongs to the network that the recipe names.
            chain.endpoint = None;
        }
        chain.network = Some(network);
    }
    if !args.endpoints.is_empty() {
        chain.endpoint = Some(Endpoints::Several(args.endpoints.clone()));
        // Where the recipe names a real network, a node of that very network is meant.
        chain.network = chain.network.filter(|&network| network != Network::Local);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;
    use crate::cli::chain::ChainCommand;
    use crate::cli::{Cli, Command};
    use crate::error::exit_code;

    /// By the arguments, and by a recipe that sets keys if there are any.
    fn target(keys: &[&str], args: &[&str]) -> Result<Target<'static>> {
        let mut line = vec!["assay", "chain", "status"];
        line.extend(args);
        if !keys.is_empty() {
            line.extend(["--recipe", concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/gpt2-186m.yaml")]);
        }
        line.extend(keys.iter().flat_map(|&key| ["--set", key]));
        let Command::Chain(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let ChainCommand::Status { chain } = args.command else { panic!() };
        let printer = Printer::with_streams(std::io::sink(), std::io::sink(), true);
        Target::of(&chain, Box::leak(Box::new(printer)))
    }

    fn place(keys: &[&str], args: &[&str]) -> (Option<Network>, Vec<String>, u16, Vec<String>) {
        let chain = target(keys, args).unwrap().chain;
        (chain.network, chain.endpoints().to_vec(), chain.netuid, chain.hotkeys())
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn arguments_stand_before_the_recipe() {
        let finney = &["chain.network=finney", "chain.endpoint=wss://a:1", "chain.hotkeys=[k]", "chain.netuid=4"][..];
        let (own, none) = (texts(&["k"]), Vec::new());
        assert_eq!(place(&[], &[]), (None, none.clone(), 9, texts(&["miner"])));
        assert_eq!(place(&[], &["--network", "test"]), (Some(Network::Test), none.clone(), 9, none.clone()));
        let nodes = ["--endpoint", "ws://127.0.0.1:1,ws://127.0.0.1:2", "--netuid", "3"];
        let urls = texts(&["ws://127.0.0.1:1", "ws://127.0.0.1:2"]);
        assert_eq!(place(&[], &nodes), (None, urls.clone(), 3, none.clone()));
        assert_eq!(place(finney, &[]), (Some(Network::Finney), texts(&["wss://a:1"]), 4, own.clone()));
        assert_eq!(place(finney, &nodes), (Some(Network::Finney), urls.clone(), 3, own.clone()));
        assert_eq!(place(finney, &["--network", "finney"]).1, ["wss://a:1"]);
        assert_eq!(place(finney, &["--network", "test"]), (Some(Network::Test), none.clone(), 4, own.clone()));
        assert_eq!(place(&["chain.network=local", "chain.hotkeys=[k]"], &nodes), (None, urls, 3, none.clone()));
        let local = place(finney, &["--network", "local", "--netuid", "9"]);
        assert_eq!(local, (Some(Network::Local), none, 9, own));
    }

    #[test]
    fn contradictions_are_told_in_sentences() {
        let refused = |args: &[&str], sentence: &str| {
            let error = target(&[], args).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(sentence), "{error}");
        };
        refused(&["--network", "local", "--endpoint", "ws://127.0.0.1:1"], "which has no endpoint");
        refused(&["--endpoint", ""], "--endpoint `` names no node");
        refused(&["--endpoint", "ws://127.0.0.1:1,"], "names no node");
        refused(&["--network", "finney", "--local", "elsewhere"], "leave one of them out");
        refused(&["--netuid", "8"], "holds subnet 9 only, not 8");
        let both = ["assay", "chain", "status", "--local", "elsewhere", "--endpoint", "ws://127.0.0.1:1"];
        assert!(Cli::try_parse_from(both).is_err());
    }

    #[test]
    fn on_a_real_chain_somebody_must_be_named_to_write() {
        let target = target(&[], &["--endpoint", "ws://127.0.0.1:1"]).unwrap();
        let nobody = SignerArgs { hotkey_file: None, hotkey: None, allow_readable_key: false };
        let error = target.open_as(&nobody).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("--hotkey-file"), "{error}");
    }
}
