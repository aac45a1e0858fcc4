//! The model folder that a run starts from: one of the user's, or a published one, brought here first.

use std::path::PathBuf;

use anyhow::Result;

use crate::chain::Snapshot;
use crate::error::input;
use crate::field::Competitor;
use crate::hub::fetch::download_revision;
use crate::hub::names;
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::recipe::{Init, Resolved};

/// The folder that `init` names. An embedded network that is missing is made.
///
/// # Panics
///
/// If it names none, because the first weights are random.
pub fn folder(init: &Init, resolved: &Resolved, printer: &Printer) -> Result<PathBuf> {
    let open = || Network::open_or_make(&resolved.recipe.hub, &resolved.recipe.chain, printer);
    match init {
        Init::Scratch => unreachable!("random weights have no folder"),
        Init::Dir(dir) => Ok(dir.clone()),
        Init::Leader => {
            let network = open()?;
            let snapshot = network.chain.snapshot()?;
            let leader = snapshot.leader().map(|leader| leader.uid).ok_or_else(|| {
                input(format!("init: leader: nobody earns anything on {}, so there is none", network.chain.describe()))
            })?;
            published(&network, &snapshot, leader, "init: leader", resolved)
        }
        Init::Uid(uid) => {
            let network = open()?;
            let snapshot = network.chain.snapshot()?;
            published(&network, &snapshot, u16::try_from(*uid)?, "init.uid", resolved)
        }
        Init::Repo(name) => {
            let network = open()?;
            let (repo_id, revision) = name.split_once('@').map_or((name.as_str(), None), |(id, at)| (id, Some(at)));
            let commit = match revision {
                Some(commit) if names::is_commit(commit) => commit.to_owned(),
                Some(revision) => {
                    return Err(input(format!(
                        "init.repo: {revision:?} is no commit of 40 hexadecimal digits; leave the @ and what follows out for \
                         the newest"
                    )));
                }
                None => network.hub.newest_commit(repo_id)?.ok_or_else(|| {
                    input(format!("init.repo: {} has no repository {repo_id}", network.hub.describe()))
                })?,
            };
            download_revision(network.hub.as_ref(), &network.cache, repo_id, &commit)
        }
    }
}

/// The model that a uid has published, whole and as the rules want it.
fn published(network: &Network, snapshot: &Snapshot, uid: u16, key: &str, resolved: &Resolved) -> Result<PathBuf> {
    let neuron = snapshot.neurons.iter().find(|neuron| neuron.uid == uid);
    let Some((neuron, metadata)) = neuron.and_then(|neuron| Some((neuron, snapshot.metadata(&neuron.hotkey)?))) else {
        return Err(input(format!("{key}: uid {uid} has published no model on {}", network.chain.describe())));
    };
    let competitor = Competitor::bring(network, &resolved.rules, uid, &neuron.hotkey, &metadata)?;
    competitor.model.map_err(|reason| input(format!("{key}: the model of uid {uid} cannot be used: {reason}")))
}
