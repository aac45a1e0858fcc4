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
mod parcel;
pub mod repair;
pub mod request;
pub mod sanity;
#[cfg(test)]
mod tests;
mod visibility;
mod waiting;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::chain::{Chain, Snapshot, standing};
use crate::error::{Failure, failure};
use crate::figures::{bytes, count};
use crate::hub::fetch::fetch;
use crate::hub::file_hashes::FileHashes;
use crate::hub::model_id::{MAX_COMMITMENT_BYTES, ModelId, ModelMetadata};
use crate::hub::{CARD_FILE, Hub, Upload};
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::recipe::Visibility;
use crate::rules::Criteria;
use journal::{Entry, Hold};
pub use parcel::Parcel;
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
    /// Hashes of files that are known.
    pub hashes: &'a FileHashes,
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
    let published = in_steps(network, order, hold, still_right, printer, &|_| Ok(()));
    if published.is_err() {
        visibility::tell_of_hidden(network.hub.as_ref(), hold, printer);
    }
    published
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
    if let Some(metadata) = standing(network, order, &parcel, &snapshot)? {
        finish(network, hold, journal, &snapshot, &metadata, printer)?;
        return Ok(Published { metadata, before: true });
    }
    chain.unlock(order.hotkey)?;
    visibility::check(network.hub.as_ref(), order, journal.as_ref())?;
    network.cache.check_takes(parcel.bytes)?;
    // What nobody else sees may be there before the commitment can follow.
    let waits_above = order.waits && order.visibility == Visibility::PrivateUntilCommitted;
    if !waits_above {
        wait_until_allowed(chain, order.hotkey, order.waits, &snapshot, printer)?;
    }
    warn_of_short_immunity(chain, order.hotkey, &snapshot, printer);
    copiers::tell_beforehand(&snapshot, order.hotkey, &parcel.hash, printer);
    visibility::warn_of_standing(order, &network.hotkeys, &snapshot, printer);
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
    let mut entry = match journal {
        Some(entry) if entry.is_of(&parcel.hash, order.repo_id, hub) && entry.block.is_none() => {
            printer.note("Going on with the publish of this model that was interrupted.");
            entry
        }
        earlier => {
            tell_of_abandoned(earlier.as_ref(), order.repo_id, hub, printer);
            let mut entry = Entry::of(&parcel.hash, order.repo_id, hub.describe());
            // What hid the repository is still to be made good.
            entry.hidden = earlier.is_some_and(|earlier| earlier.hidden && earlier.is_in(order.repo_id, hub));
            entry
        }
    };
    entry.hidden |= order.visibility == Visibility::PrivateUntilCommitted;
    after(Step::Checked)?;

    hold.write(&entry)?;
    after(Step::Begun)?;
    visibility::hide(hub, &entry)?;
    after(Step::Hidden)?;
    let commit = match entry.commit.take() {
        Some(commit) if is_there(hub, order.repo_id, &commit)? => commit,
        _ => {
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
    visibility::show(network.hub.as_ref(), &mut entry, hold)?;
    after(Step::Shown)?;
    copiers::tell(chain, &snapshot, &network.hotkeys, &metadata, printer);
    Ok(Published { metadata, before: false })
}

/// Everything that [`publish`] checks before it writes, and in words what it would send.
pub fn rehearse(network: &Network, order: &Order<'_>) -> Result<String> {
    let parcel = Parcel::of(order)?;
    let chain = network.chain.as_ref();
    let snapshot = chain.snapshot()?;
    let uid = registration(chain, order.hotkey, &snapshot)?;
    if let Some(metadata) = standing(network, order, &parcel, &snapshot)? {
        return Ok(format!(
            "Nothing would be sent: {} stands on {} under {} since block {}.",
            metadata.id,
            chain.describe(),
            order.hotkey,
            count(metadata.block.get())
        ));
    }
    let newest = journal::newest(chain, order.hotkey)?;
    visibility::check(network.hub.as_ref(), order, newest.as_ref())?;
    network.cache.check_takes(parcel.bytes)?;
    let mut lines = vec![format!("Would upload to {} of {}:", order.repo_id, network.hub.describe())];
    for name in &parcel.names {
        let len = fs::metadata(order.model_dir.join(name)).with_context(|| format!("cannot read {name}"))?.len();
        lines.push(format!("  {name}  {} bytes", count(len)));
    }
    if let Some(card) = order.card {
        lines.push(format!("  {CARD_FILE}  {} bytes", count(card.len() as u64)));
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

/// The commitment of this hotkey that names this very model, still to be had from the hub; `None` if there is none.
fn standing(
    network: &Network,
    order: &Order<'_>,
    parcel: &Parcel,
    snapshot: &Snapshot,
) -> Result<Option<ModelMetadata>> {
    let Some(metadata) = snapshot.metadata(order.hotkey) else { return Ok(None) };
    let id = &metadata.id;
    let commit = id.commit.as_deref().unwrap_or_default();
    let stands = id.hash.as_ref() == Some(&parcel.hash) && is_there(network.hub.as_ref(), &id.repo_id(), commit)?;
    Ok(stands.then_some(metadata))
}

/// Whether a hub has a commit; an error where it does not say, from which nothing follows.
fn is_there(hub: &dyn Hub, repo_id: &str, commit: &str) -> Result<bool> {
    match hub.files(repo_id, commit) {
        Ok(_) => Ok(true),
        // A name that is none was committed by hand.
        Err(error) if matches!(failure(&error), Some(Failure::No(_) | Failure::Input(_))) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Notes that a model stands on the chain, where the journal does not know it yet, and shows it if it is still hidden.
fn finish(
    network: &Network,
    hold: &Hold,
    journal: Option<Entry>,
    snapshot: &Snapshot,
    metadata: &ModelMetadata,
    printer: &Printer,
) -> Result<()> {
    let (hash, repo_id) = (metadata.id.hash.as_deref().unwrap_or_default(), metadata.id.repo_id());
    let hub = network.hub.as_ref();
    // Of another model in the same repository too: what is paid is to be seen.
    let is_here = |entry: &Entry| entry.is_of(hash, &repo_id, hub) || (entry.hidden && entry.is_in(&repo_id, hub));
    let Some(earlier) = journal.filter(|entry| entry.is_open() && is_here(entry)) else { return Ok(()) };
    let mut entry = match earlier.hash == hash {
        true => earlier,
        false => Entry { hidden: true, ..Entry::of(hash, &repo_id, hub.describe()) },
    };
    printer.note("The publish of this model that was interrupted had reached the chain.");
    (entry.commit, entry.sent) = (metadata.id.commit.clone(), Some(metadata.id.to_string()));
    entry.block = Some(metadata.block.get());
    hold.write(&entry)?;
    visibility::show(network.hub.as_ref(), &mut entry, hold)?;
    copiers::tell(network.chain.as_ref(), snapshot, &network.hotkeys, metadata, printer);
    Ok(())
}

/// Says what an earlier publish leaves behind that this one does not go on with.
fn tell_of_abandoned(earlier: Option<&Entry>, repo_id: &str, hub: &dyn Hub, printer: &Printer) {
    let Some(earlier) = earlier else { return };
    if let Entry { hash, repo_id, commit: Some(commit), block: None, .. } = earlier {
        printer.note(&format!(
            "An earlier model, {hash}, was uploaded and has not been committed from here: commit {commit} stays in {repo_id}."
        ));
    }
    if earlier.hidden && !earlier.is_in(repo_id, hub) {
        printer.warn(&format!(
            "{} of {} stays hidden since a publish that came to no end: make it public there if others are to load from it",
            earlier.repo_id,
            earlier.hub.as_deref().unwrap_or("the hub")
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
