//! Publishing with two machines: the one that trains uploads a model and writes a request, the one that holds the key
//! checks it and commits.
//!
//! The key need not lie on a rented machine. What comes from there is not trusted: the chain must be the one that was
//! meant, the hub must give back a model of the hash that is to be committed, and where a gate has decided, nothing that
//! it decided on may have changed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::journal::{Entry, Hold};
use super::visibility::{self, hidden_from_validators};
use super::{
    Order, Parcel, Published, Wait, finish, registration, send, standing, tell_of_abandoned, upload, verify,
    wait_until_allowed,
};
use crate::chain::{Hotkey, Snapshot};
use crate::error::{Failure, input};
use crate::figures::count;
use crate::gate::roster::Roster;
use crate::hub::model_id::ModelId;
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::recipe::Visibility;
use crate::rules::Criteria;
use crate::whole_file;

/// Counts up with every change of the file.
const FORMAT: u32 = 1;

/// No request has so many bytes.
const MAX_BYTES: u64 = 1 << 16;

/// A model that is uploaded, for the machine that commits it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The format's version.
    format: u32,
    /// The hash of the chain's first block; none on an embedded one.
    genesis: Option<String>,
    /// The subnet.
    netuid: u16,
    /// The hotkey that is to commit.
    pub hotkey: Hotkey,
    /// What it is to commit.
    pub commitment: String,
    /// The block at which it was written.
    pub block: u64,
    /// What the gate decided on; none if it was not asked.
    pub decided_on: Option<DecidedOn>,
}

/// What a decision of the gate rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecidedOn {
    /// The own hotkeys.
    pub own: Vec<Hotkey>,
    /// The fingerprint of the models that competed.
    pub roster: String,
}

impl DecidedOn {
    /// Whether nothing that the decision rests on has changed.
    fn holds(&self, snapshot: &Snapshot) -> bool {
        Roster::of(snapshot, &self.own).fingerprint() == self.roster
    }
}

/// Uploads a model and looks at what the hub gives back of it. Nothing is sent to the chain, and no key is needed.
pub fn prepare(
    network: &Network,
    order: &Order<'_>,
    hold: &Hold,
    decided_on: Option<DecidedOn>,
    printer: &Printer,
) -> Result<Request> {
    let chain = network.chain.as_ref();
    let parcel = Parcel::of(order)?;
    let snapshot = chain.snapshot()?;
    registration(chain, order.hotkey, &snapshot)?;
    if let Some(metadata) = standing(network, order, &parcel, &snapshot)? {
        let (id, block) = (&metadata.id, count(metadata.block.get()));
        let sentence = format!("{id} stands on {} since block {block}: there is nothing to prepare", chain.describe());
        return Err(Failure::No(sentence).into());
    }
    let journal = hold.read()?;
    visibility::check(network.hub.as_ref(), order, journal.as_ref())?;
    if let Some(wait) = Wait::at(chain, order.hotkey, snapshot.block)? {
        printer.warn(&wait.sentence(chain, order.hotkey));
    }
    if order.visibility == Visibility::Public {
        printer.warn(&format!(
            "until {} is committed, everybody who sees it can commit it first: commit it at once, or set publish.visibility to \
             private-until-committed",
            order.repo_id
        ));
    }
    visibility::warn_of_standing(order, &network.hotkeys, &snapshot, printer);
    let (id, mut entry) = upload(network, order, &parcel, hold, journal, printer, &|_| Ok(()))?;
    entry.prepared = true;
    hold.write(&entry)?;
    let status = chain.status()?;
    Ok(Request {
        format: FORMAT,
        genesis: status.runtime.map(|runtime| runtime.genesis),
        netuid: status.netuid,
        hotkey: order.hotkey.to_owned(),
        commitment: id.to_string(),
        block: status.block,
        decided_on,
    })
}

/// What the machine with the key lets a request do.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// What a model must be.
    pub criteria: &'a Criteria,
    /// Whether to wait until the chain takes the hotkey's next commitment.
    pub waits: bool,
    /// Whether a private repository is shown once its model is committed.
    pub visibility: Visibility,
    /// The only repository that is; `None`: whichever the request names.
    pub repo_id: Option<&'a str>,
}

/// Commits the model of a request, once everything that was checked where it was prepared is checked here as well.
pub fn commit(
    network: &Network,
    request: &Request,
    terms: &Terms<'_>,
    hold: &Hold,
    printer: &Printer,
) -> Result<Published> {
    let &Terms { criteria, waits, visibility, repo_id: own_repo_id } = terms;
    let chain = network.chain.as_ref();
    let id = request.id()?;
    request.check_chain(network)?;
    let snapshot = chain.snapshot()?;
    registration(chain, &request.hotkey, &snapshot)?;
    let journal = hold.read()?;
    if let Some(metadata) = snapshot.metadata(&request.hotkey).filter(|metadata| metadata.id == id) {
        finish(network, hold, journal, &snapshot, &metadata, printer)?;
        return Ok(Published { metadata, before: true });
    }
    let still_right = |snapshot: &Snapshot| match &request.decided_on {
        Some(decided_on) if !decided_on.holds(snapshot) => Err(format!(
            "the field has changed since the decision at block {}; prepare the request anew",
            count(request.block)
        )),
        _ => Ok(()),
    };
    still_right(&snapshot).map_err(Failure::No)?;
    if let Some(newer) = snapshot.commitments.get(&request.hotkey).filter(|standing| standing.block >= request.block) {
        return Err(Failure::No(format!(
            "{} has committed something else at block {}, and the request was prepared at block {}: prepare it anew",
            request.hotkey,
            count(newer.block),
            count(request.block)
        ))
        .into());
    }
    chain.unlock(&request.hotkey)?;
    let (hub, repo_id) = (network.hub.as_ref(), id.repo_id());
    // Where it was prepared it may have been hidden; whoever commits it shows it, but nothing that he was not told to.
    let is_hidden = hub.is_private(&repo_id)?.ok_or_else(|| {
        input(format!(
            "{} has no repository {repo_id} that we may see: if it is private, set the hub's token (HF_TOKEN) here too",
            hub.describe()
        ))
    })?;
    if is_hidden {
        if visibility == Visibility::Public {
            return Err(hidden_from_validators(&repo_id, hub));
        }
        if let Some(own) = own_repo_id.filter(|own| *own != repo_id) {
            return Err(input(format!(
                "the request's repository {repo_id} is private, and would be shown, but hub.repo is {own}: name {repo_id} there, \
                 in the recipe or by --set hub.repo={repo_id}, if it is to be"
            )));
        }
        hub.check_writable(&repo_id)?;
    }
    wait_until_allowed(chain, &request.hotkey, waits, &snapshot, printer)?;
    printer.note(&format!("Downloading {repo_id} to look at it."));
    verify(network, &id, criteria)?;
    tell_of_abandoned(journal.as_ref(), &repo_id, hub, printer);
    let mut entry = Entry::of(id.hash.as_deref().unwrap_or_default(), &repo_id, hub.describe());
    entry.commit = id.commit.clone();
    entry.hidden = is_hidden;
    send(network, &id, entry, hold, &still_right, printer, &|_| Ok(()))
}

impl Request {
    /// Reads a request.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = File::open(path).map_err(|error| input(format!("the request {shown} cannot be read: {error}")))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
        let request: Self = serde_json::from_slice(&bytes).map_err(|error| {
            input(format!("{shown} is no request: {error}; `assay publish MODEL --prepare FILE` writes one"))
        })?;
        if request.format != FORMAT {
            return Err(input(format!(
                "{shown} is of version {} of the format, and this assay reads version {FORMAT}: prepare it with the same \
                 version of assay",
                request.format
            )));
        }
        request.id().with_context(|| format!("{shown} is no request"))?;
        Ok(request)
    }

    /// Writes a request.
    pub fn write(&self, path: &Path) -> Result<()> {
        whole_file::write(path, &serde_json::to_vec_pretty(self)?)
    }

    /// The model, at a commit and with a hash.
    pub fn id(&self) -> Result<ModelId> {
        let text = &self.commitment;
        let id: ModelId = text.parse().map_err(|error| input(format!("{error}")))?;
        // Nothing beside a model is ever signed.
        if id.to_string() != *text || id.commit.is_none() || id.hash.is_none() || !id.fits_commitment() {
            return Err(input(format!("`{text}` names no model at a commit, with its hash")));
        }
        Ok(id)
    }

    fn check_chain(&self, network: &Network) -> Result<()> {
        let status = network.chain.status()?;
        let genesis = status.runtime.map(|runtime| runtime.genesis);
        if (&genesis, status.netuid) != (&self.genesis, self.netuid) {
            let place = |genesis: &Option<String>, netuid: u16| match genesis {
                Some(genesis) => format!("subnet {netuid} of the chain that begins with the block {genesis}"),
                None => "an embedded chain".to_owned(),
            };
            return Err(input(format!(
                "the request is for {}, and {} is {}",
                place(&self.genesis, self.netuid),
                network.chain.describe(),
                place(&genesis, status.netuid)
            )));
        }
        Ok(())
    }
}
