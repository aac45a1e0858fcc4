//! Publishing a model: check, upload, download again, hash, commit, read back, compare, show.
//!
//! [`publish`] reads top to bottom in that order. Whatever can be refused is refused before the first byte goes up. Each
//! step is either in the [`journal`], or can be repeated without doing anything twice: an upload of what the newest commit
//! already holds makes no commit, and before a commitment is sent the chain is asked whether it is there. So a process
//! killed anywhere is made good by publishing the same model again: one commit on the hub, one on the chain.
//!
//! Who sees a model before its commitment can commit it first. With [`Visibility::PrivateUntilCommitted`] the repository is
//! hidden before anything goes up, and shown when the commitment has been read back, by whatever command comes next if this
//! one dies in between ([`repair`]).

pub mod card;
pub mod copiers;
pub mod journal;
pub mod repair;
pub mod request;
pub mod sanity;
#[cfg(test)]
mod tests;
mod waiting;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::chain::{Chain, Snapshot, standing};
use crate::error::{Failure, input};
use crate::figures::{bytes, count};
use crate::hub::fetch::{fetch, publishable_files};
use crate::hub::hash::files_hash;
use crate::hub::judge::judge;
use crate::hub::model_id::{MAX_COMMITMENT_BYTES, ModelId, ModelMetadata, split_repo_id};
use crate::hub::{Hub, Upload};
use crate::metrics::printer::Printer;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights::ModelFiles;
use crate::network::Network;
use crate::recipe::Visibility;
use crate::rules::Criteria;
use journal::{Entry, Hold};
pub use waiting::{Wait, sleep_until_allowed, wait_for_rate_limit};

/// A git commit has so many hexadecimal digits.
const COMMIT_DIGITS: usize = 40;

/// What is to be published, and where.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// A Hugging Face model folder.
    pub model_dir: &'a Path,
    /// The repository, `namespace/name`.
    pub repo_id: &'a str,
    /// The hotkey that commits it.
    pub hotkey: &'a str,
    /// What a model must be.
    pub criteria: &'a Criteria,
    /// Whether to wait until the chain takes the hotkey's next commitment.
    pub waits: bool,
    /// Who sees it before it is committed.
    pub visibility: Visibility,
    /// The text of the repository's page.
    pub card: Option<&'a str>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// What stands on the chain.
    pub metadata: ModelMetadata,
    /// Whether it stood there before, so that nothing was sent.
    pub before: bool,
}

impl Published {
    /// In words.
    pub fn sentence(&self, hotkey: &str) -> String {
        let (id, block) = (&self.metadata.id, count(self.metadata.block.get()));
        match self.before {
            true => format!("Published before: {id}, as {hotkey} at block {block}; nothing was sent."),
            false => format!("Published {id}, as {hotkey} at block {block}."),
        }
    }
}

/// A model folder that was found fit to be published.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The files that go up, in the order in which they are hashed.
    pub names: Vec<String>,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Their directory hash.
    pub hash: String,
    namespace: String,
    name: String,
}

/// The places between two steps, for tests that kill the process there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Checked,
    Begun,
    Hidden,
    Uploaded,
    UploadNoted,
    Verified,
    SendingNoted,
    Sent,
    ReadBack,
    Shown,
}

/// Publishes a model. `still_right` looks at the chain once more right before the commitment is sent, and may refuse with
/// a sentence. A model that stands on the chain under this hotkey already is left alone: committing it again would
/// only lose its earlier block.
pub fn publish(
    network: &Network,
    order: &Order<'_>,
    hold: &Hold,
    still_right: &dyn Fn(&Snapshot) -> Result<(), String>,
    printer: &Printer,
) -> Result<Published> {
    in_steps(network, order, hold, still_right, printer, &|_| Ok(()))
}

fn in_steps(
    network: &Network,
    order: &Order<'_>,
    hold: &Hold,
    still_right: &dyn Fn(&Snapshot) -> Result<(), String>,
    printer: &Printer,
    after: &dyn Fn(Step) -> Result<()>,
) -> Result<Published> {
    let chain = network.chain.as_ref();
    let parcel = Parcel::of(order)?;
    let snapshot = chain.snapshot()?;
    let journal = hold.read()?;
    registration(chain, order.hotkey, &snapshot)?;
    if let Some(metadata) = standing(network, order, &parcel, &snapshot) {
        finish(network, hold, journal, &metadata, printer)?;
        return Ok(Published { metadata, before: true });
    }
    chain.unlock(order.hotkey)?;
    // What nobody else sees may be there before the commitment can follow.
    let waits_above = order.waits && order.visibility == Visibility::PrivateUntilCommitted;
    if !waits_above {
        wait_until_allowed(chain, order.hotkey, order.waits, &snapshot, printer)?;
    }
    warn_of_short_immunity(chain, order.hotkey, &snapshot, printer);
    let (id, entry) = upload(network, order, &parcel, hold, journal, printer, after)?;
    if waits_above {
        sleep_until_allowed(chain, order.hotkey, printer)?;
    }
    send(network, &id, entry, hold, still_right, printer, after)
}

/// Uploads a model, where no earlier attempt has, and looks at what the hub gives back of it.
fn upload(
    network: &Network,
    order: &Order<'_>,
    parcel: &Parcel,
    hold: &Hold,
    journal: Option<Entry>,
    printer: &Printer,
    after: &dyn Fn(Step) -> Result<()>,
) -> Result<(ModelId, Entry)> {
    let hub = network.hub.as_ref();
    hub.check_writable(order.repo_id)?;
    let mut entry = match journal {
        Some(entry) if entry.is_of(&parcel.hash, order.repo_id, hub) && entry.block.is_none() => {
            printer.note("Going on with the publish of this model that was interrupted.");
            entry
        }
        earlier => {
            tell_of_abandoned(earlier.as_ref(), printer);
            let mut entry = Entry::of(&parcel.hash, order.repo_id, hub.describe());
            // What hid the repository is still to be made good.
            entry.hidden = earlier.is_some_and(|earlier| earlier.hidden && earlier.is_in(order.repo_id, hub));
            entry
        }
    };
    let is_private = hub.is_private(order.repo_id)?;
    entry.hidden |= order.visibility == Visibility::PrivateUntilCommitted;
    if is_private == Some(true) && !entry.hidden {
        return Err(hidden_from_validators(order.repo_id, hub));
    }
    after(Step::Checked)?;

    hold.write(&entry)?;
    after(Step::Begun)?;
    if entry.hidden && is_private == Some(false) {
        hub.set_private(order.repo_id, true)?;
    }
    after(Step::Hidden)?;
    let commit = match entry.commit.take().filter(|commit| hub.files(order.repo_id, commit).is_ok()) {
        Some(commit) => commit,
        None => {
            printer.note(&format!("Uploading {} to {} of {}.", bytes(parcel.bytes), order.repo_id, hub.describe()));
            let names: Vec<&str> = parcel.names.iter().map(String::as_str).collect();
            hub.upload(&Upload {
                repo_id: order.repo_id,
                dir: order.model_dir,
                names: &names,
                card: order.card,
                message: &format!("assay: {}", parcel.hash),
                private: entry.hidden,
            })?
        }
    };
    after(Step::Uploaded)?;
    entry.commit = Some(commit.clone());
    hold.write(&entry)?;
    after(Step::UploadNoted)?;

    let id = parcel.id(Some(commit));
    verify(network, &id, order.criteria)?;
    after(Step::Verified)?;
    Ok((id, entry))
}

/// Commits a model that the hub was found to give back, and shows it.
fn send(
    network: &Network,
    id: &ModelId,
    mut entry: Entry,
    hold: &Hold,
    still_right: &dyn Fn(&Snapshot) -> Result<(), String>,
    printer: &Printer,
    after: &dyn Fn(Step) -> Result<()>,
) -> Result<Published> {
    let chain = network.chain.as_ref();
    let (hotkey, text) = (hold.hotkey.as_str(), id.to_string());
    let snapshot = chain.snapshot()?;
    registration(chain, hotkey, &snapshot)?;
    still_right(&snapshot).map_err(|sentence| {
        Failure::No(format!("{sentence}: the model is uploaded, but was not committed to the chain"))
    })?;
    entry.sent = Some(text.clone());
    hold.write(&entry)?;
    after(Step::SendingNoted)?;
    let block = chain.commit(hotkey, text.as_bytes())?;
    after(Step::Sent)?;

    let metadata = read_back(chain, hotkey, id).with_context(|| {
        format!("{id} was committed as {hotkey} at block {}, but not found there; publish again to look", count(block))
    })?;
    after(Step::ReadBack)?;
    entry.block = Some(metadata.block.get());
    hold.write(&entry)?;
    show(network, &mut entry, hold)?;
    after(Step::Shown)?;
    tell_of_copiers(network, &snapshot, &metadata, printer);
    Ok(Published { metadata, before: false })
}

fn hidden_from_validators(repo_id: &str, hub: &dyn Hub) -> anyhow::Error {
    input(format!(
        "{repo_id} is private in {}, where validators could not load the model: make it public, or set publish.visibility to \
         private-until-committed",
        hub.describe()
    ))
}

/// Shows the repository of a model that is committed, if it is hidden.
fn show(network: &Network, entry: &mut Entry, hold: &Hold) -> Result<()> {
    if entry.hidden {
        network.hub.set_private(&entry.repo_id, false).with_context(|| {
            format!(
                "{} is committed, and its repository still hidden, so that nobody can load it: make it public, or let any \
                 assay command with this recipe do it",
                entry.repo_id
            )
        })?;
        entry.hidden = false;
        hold.write(entry)?;
    }
    Ok(())
}

/// Warns of everybody else who has committed the same model, or one of the same repository.
fn tell_of_copiers(network: &Network, snapshot: &Snapshot, ours: &ModelMetadata, printer: &Printer) {
    match network.chain.all_commitments() {
        Ok(commitments) => {
            let copiers = copiers::find(&commitments, snapshot, &network.hotkeys, &ours.id);
            copiers.iter().for_each(|copier| printer.warn(&copier.sentence(ours)));
        }
        // What stands, stands.
        Err(error) => printer.warn(&format!("whether somebody has copied the model could not be looked at: {error:#}")),
    }
}

/// Everything that [`publish`] checks before it writes, and in words what it would send.
pub fn rehearse(network: &Network, order: &Order<'_>) -> Result<String> {
    let parcel = Parcel::of(order)?;
    let chain = network.chain.as_ref();
    let snapshot = chain.snapshot()?;
    let uid = registration(chain, order.hotkey, &snapshot)?;
    if let Some(metadata) = standing(network, order, &parcel, &snapshot) {
        return Ok(format!(
            "Nothing would be sent: {} stands on {} under {} since block {}.",
            metadata.id,
            chain.describe(),
            order.hotkey,
            count(metadata.block.get())
        ));
    }
    network.hub.check_writable(order.repo_id)?;
    let is_private = network.hub.is_private(order.repo_id)? == Some(true);
    if is_private && order.visibility == Visibility::Public {
        return Err(hidden_from_validators(order.repo_id, network.hub.as_ref()));
    }
    let mut lines = vec![format!("Would upload to {} of {}:", order.repo_id, network.hub.describe())];
    for name in &parcel.names {
        let len = fs::metadata(order.model_dir.join(name)).with_context(|| format!("cannot read {name}"))?.len();
        lines.push(format!("  {name}  {} bytes", count(len)));
    }
    let text = parcel.id(Some("c".repeat(COMMIT_DIGITS))).to_string();
    lines.push(format!(
        "Would commit to {} as {} (uid {uid}), {} of at most {MAX_COMMITMENT_BYTES} bytes:",
        chain.describe(),
        order.hotkey,
        text.len()
    ));
    lines.push(format!("  {}", text.replace(&"c".repeat(COMMIT_DIGITS), "COMMIT")));
    if order.visibility == Visibility::PrivateUntilCommitted {
        lines.push(format!("Nobody else would see {} until then.", order.repo_id));
    }
    lines.push(match Wait::at(chain, order.hotkey, snapshot.block)? {
        None => "The chain would take it now.".to_owned(),
        Some(wait) => wait.sentence(chain, order.hotkey),
    });
    lines.push("Nothing was written.".to_owned());
    Ok(lines.join("\n"))
}

impl Parcel {
    /// Checks the folder and the names, and hashes the files.
    pub fn of(order: &Order<'_>) -> Result<Self> {
        let dir = order.model_dir;
        let (namespace, name) = split_repo_id(order.repo_id).map_err(input)?;
        let names = publishable_files(dir)?;
        let paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        if let [first, ..] = judge(dir, order.criteria).reasons.as_slice() {
            return Err(input(format!("{} is no model to publish. {}", dir.display(), first.sentence)));
        }
        let config = ModelConfig::read(dir)?;
        let layout = Layout::of(&config.arch);
        ModelFiles::open(dir, &config.arch, &layout)?.check_finite()?;
        let mut bytes = 0;
        for path in &paths {
            bytes += fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        }
        let limit = order.criteria.max_repo_bytes;
        if bytes > limit {
            let (actual, limit) = (count(bytes), count(limit));
            return Err(input(format!("{} has {actual} bytes; a repository may have {limit}.", dir.display())));
        }
        let hash = files_hash(&paths)?;
        let parcel = Self { names, bytes, hash, namespace: namespace.to_owned(), name: name.to_owned() };
        let id = parcel.id(Some("0".repeat(COMMIT_DIGITS)));
        if !id.fits_commitment() {
            return Err(input(format!(
                "The commitment of {} would have {} bytes; the chain takes {MAX_COMMITMENT_BYTES}: choose a shorter name.",
                order.repo_id,
                id.to_string().len()
            )));
        }
        if !id.survives_its_text() {
            return Err(input(format!(
                "The repository {} cannot be committed: its name holds a colon.",
                order.repo_id
            )));
        }
        Ok(parcel)
    }

    fn id(&self, commit: Option<String>) -> ModelId {
        ModelId { namespace: self.namespace.clone(), name: self.name.clone(), commit, hash: Some(self.hash.clone()) }
    }
}

/// The commitment of this hotkey that names this very model, still to be had from the hub; `None` if there is none.
fn standing(network: &Network, order: &Order<'_>, parcel: &Parcel, snapshot: &Snapshot) -> Option<ModelMetadata> {
    snapshot.metadata(order.hotkey).filter(|metadata| {
        let id = &metadata.id;
        let commit = id.commit.as_deref().unwrap_or_default();
        id.hash.as_ref() == Some(&parcel.hash) && network.hub.files(&id.repo_id(), commit).is_ok()
    })
}

/// Notes that a model stands on the chain, where the journal does not know it yet, and shows it if it is still hidden.
fn finish(
    network: &Network,
    hold: &Hold,
    journal: Option<Entry>,
    metadata: &ModelMetadata,
    printer: &Printer,
) -> Result<()> {
    let (hash, repo_id) = (metadata.id.hash.as_deref().unwrap_or_default(), metadata.id.repo_id());
    let is_this = |entry: &Entry| entry.is_open() && entry.is_of(hash, &repo_id, network.hub.as_ref());
    let Some(mut entry) = journal.filter(is_this) else { return Ok(()) };
    printer.note("The publish of this model that was interrupted had reached the chain.");
    entry.commit = metadata.id.commit.clone();
    entry.block = Some(metadata.block.get());
    hold.write(&entry)?;
    show(network, &mut entry, hold)
}

fn tell_of_abandoned(earlier: Option<&Entry>, printer: &Printer) {
    if let Some(Entry { hash, repo_id, commit: Some(commit), block: None, .. }) = earlier {
        printer.note(&format!(
            "An earlier model, {hash}, was uploaded and has not been committed from here: commit {commit} stays in {repo_id}."
        ));
    }
}

/// Downloads what was uploaded and looks at it as a validator does.
fn verify(network: &Network, id: &ModelId, criteria: &Criteria) -> Result<()> {
    let metadata = ModelMetadata { id: id.clone(), block: std::num::NonZeroU64::MIN };
    match fetch(network.hub.as_ref(), &network.cache, &metadata, criteria)? {
        Ok(_) => Ok(()),
        Err(reason) => bail!(
            "What {} gives back of {} is not what was uploaded, and nothing was committed: {reason}",
            network.hub.describe(),
            id.repo_id()
        ),
    }
}

fn read_back(chain: &dyn Chain, hotkey: &str, id: &ModelId) -> Result<ModelMetadata> {
    let found = chain.commitment(hotkey)?.and_then(|commitment| commitment.metadata());
    match found {
        Some(metadata) if metadata.id == *id => Ok(metadata),
        found => bail!(
            "{} was sent as {id}, but {} holds {} for it: publish again to mend it",
            hotkey,
            chain.describe(),
            found.map_or_else(|| "nothing".to_owned(), |metadata| metadata.id.to_string())
        ),
    }
}

/// The uid of a hotkey; an error if it has none.
pub fn registration(chain: &dyn Chain, hotkey: &str, snapshot: &Snapshot) -> Result<u16> {
    snapshot.neuron(hotkey).map(|neuron| neuron.uid).ok_or_else(|| chain.unregistered(hotkey))
}

/// Warns where a newcomer may get the hotkey's place before a model that is committed now is paid.
fn warn_of_short_immunity(chain: &dyn Chain, hotkey: &str, snapshot: &Snapshot, printer: &Printer) {
    // No more than a warning: whatever keeps it away keeps nobody from publishing.
    let Ok(status) = chain.status() else { return };
    let warning = standing::warning(snapshot, &status, chain.seconds_per_block(), hotkey, snapshot.block);
    warning.inspect(|warning| printer.warn(warning));
}

/// Refuses a hotkey that could not commit now, unless it is to be waited for.
fn wait_until_allowed(
    chain: &dyn Chain,
    hotkey: &str,
    waits: bool,
    snapshot: &Snapshot,
    printer: &Printer,
) -> Result<()> {
    match Wait::at(chain, hotkey, snapshot.block)? {
        None => Ok(()),
        Some(_) if waits => sleep_until_allowed(chain, hotkey, printer),
        Some(wait) => Err(Failure::No(wait.sentence(chain, hotkey)).into()),
    }
}
