//! The first thing that a command does: a model that was committed while its repository was hidden, and the process killed
//! before it was shown again, is shown. Nobody else can load it until then, and it earns nothing.

use std::fs;

use anyhow::{Context, Result};

use super::journal::{Entry, Hold};
use crate::chain::{Chain, Hotkey};
use crate::figures::count;
use crate::hub::Hub;
use crate::hub::model_id::ModelMetadata;
use crate::metrics::printer::Printer;

/// The hotkeys whose newest publish has left a repository hidden.
pub fn pending(chain: &dyn Chain) -> Result<Vec<Hotkey>> {
    let dir = chain.journal_dir();
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) }; // Nothing was published from here.
    let mut hotkeys = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // What cannot be read is told by whoever publishes under the hotkey.
        let is_hidden = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
        if let (Some(Entry { hidden: true, .. }), Some(hotkey)) =
            (is_hidden, path.file_stem().and_then(|stem| stem.to_str()))
        {
            hotkeys.push(hotkey.to_owned());
        }
    }
    hotkeys.sort_unstable();
    Ok(hotkeys)
}

/// Shows what was committed, and says what is still hidden and why.
pub fn show(hub: &dyn Hub, chain: &dyn Chain, hotkeys: &[Hotkey], printer: &Printer) {
    for hotkey in hotkeys {
        // A process that is publishing under the hotkey goes on with it by itself.
        let Ok(hold) = Hold::take(chain, hotkey) else { continue };
        match show_of(hub, chain, &hold) {
            Ok(Some(sentence)) => printer.warn(&sentence),
            Ok(None) => {}
            Err(error) => printer.warn(&format!("what was published under {hotkey} may still be hidden: {error:#}")),
        }
    }
}

/// What was found, and done about it; `None`: there was nothing to do.
fn show_of(hub: &dyn Hub, chain: &dyn Chain, hold: &Hold) -> Result<Option<String>> {
    let Some(mut entry) = hold.read()?.filter(|entry| entry.hidden) else { return Ok(None) };
    let Entry { repo_id, hash, hub: entry_hub, .. } = &entry;
    if entry_hub.as_ref().is_some_and(|name| *name != hub.describe()) {
        let name = entry_hub.as_deref().unwrap_or_default();
        return Ok(Some(format!(
            "{repo_id} of {name} is hidden since a publish that was interrupted, and this command knows {} only: use the \
             recipe of that publish",
            hub.describe()
        )));
    }
    // From here or, by a request, from another machine.
    let standing = chain.commitment(&hold.hotkey)?.and_then(|commitment| commitment.metadata());
    let is_it = |metadata: &ModelMetadata| metadata.id.hash.as_ref() == Some(hash) && metadata.id.repo_id() == *repo_id;
    let Some(standing) = standing.filter(is_it) else {
        return Ok(Some(format!(
            "{repo_id} is hidden since a publish that was interrupted before its commitment: publishing that model again goes \
             on with it"
        )));
    };
    hub.set_private(repo_id, false)?;
    let block = standing.block.get();
    let sentence = format!(
        "{repo_id} was still hidden, and its model committed as {} at block {}: it is shown now",
        hold.hotkey,
        count(block)
    );
    (entry.hidden, entry.block) = (false, Some(block));
    (entry.commit, entry.sent) = (standing.id.commit.clone(), Some(standing.id.to_string()));
    hold.write(&entry)?;
    Ok(Some(sentence))
}
