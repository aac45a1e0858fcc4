//! The first thing that a command does: a model that was committed while its repository was hidden, and the process killed
//! before it was shown again, is shown. Nobody else can load it until then, and it earns nothing.

use std::fs;

use anyhow::{Context, Result};

use super::journal::{Entry, Hold, newest};
use super::{copiers, visibility};
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
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(hotkey) = path.file_stem().and_then(|stem| stem.to_str())
            // What cannot be read is told by whoever publishes under the hotkey.
            && let Ok(Some(Entry { hidden: true, .. })) = newest(chain, hotkey)
        {
            hotkeys.push(hotkey.to_owned());
        }
    }
    hotkeys.sort_unstable();
    Ok(hotkeys)
}

/// Shows what was committed, and says what is still hidden and why. `own`: the own hotkeys, where they are known.
pub fn show(hub: &dyn Hub, chain: &dyn Chain, hotkeys: &[Hotkey], own: Option<&[Hotkey]>, printer: &Printer) {
    for hotkey in hotkeys {
        match Hold::take(chain, hotkey) {
            Ok(hold) => show_held(hub, chain, &hold, own, printer),
            // It goes on with it by itself.
            Err(error) => printer.note(&format!("{hotkey} has hidden a repository: {error:#}")),
        }
    }
}

/// As [`show`], for whoever holds the hotkey.
pub fn show_held(hub: &dyn Hub, chain: &dyn Chain, hold: &Hold, own: Option<&[Hotkey]>, printer: &Printer) {
    match show_of(hub, chain, hold, own, printer) {
        Ok(Some(sentence)) => printer.warn(&sentence),
        Ok(None) => {}
        Err(error) => printer.warn(&format!("what was published under {} may still be hidden: {error:#}", hold.hotkey)),
    }
}

/// What was found, and done about it; `None`: there was nothing to do.
fn show_of(
    hub: &dyn Hub,
    chain: &dyn Chain,
    hold: &Hold,
    own: Option<&[Hotkey]>,
    printer: &Printer,
) -> Result<Option<String>> {
    let Some(mut entry) = hold.read()?.filter(|entry| entry.hidden) else { return Ok(None) };
    let Entry { repo_id, hash, hub: entry_hub, .. } = &entry;
    if let Some(name) = entry_hub.as_ref().filter(|name| **name != hub.describe()) {
        return Ok(Some(format!(
            "{repo_id} of {name} is hidden since a publish that came to no end, and this command knows {} only: use the \
             recipe of that publish",
            hub.describe()
        )));
    }
    // From here or, by a request, from another machine.
    let standing = chain.commitment(&hold.hotkey)?.and_then(|commitment| commitment.metadata());
    let is_it = |metadata: &ModelMetadata| metadata.id.hash.as_ref() == Some(hash) && metadata.id.repo_id() == *repo_id;
    let Some(standing) = standing.filter(is_it) else {
        return match hub.is_private(repo_id)? {
            Some(true) if entry.prepared => {
                Ok(Some(format!("{repo_id} is hidden until the request that was prepared for it is committed")))
            }
            Some(true) => Ok(Some(format!(
                "{repo_id} is hidden since a publish whose commitment is not found on the chain: publishing that model again \
                 goes on with it; or make it public at the hub"
            ))),
            // It was not made yet, or somebody has shown it.
            None => Ok(None),
            Some(false) => {
                entry.hidden = false;
                hold.write(&entry).map(|()| None)
            }
        };
    };
    let block = standing.block.get();
    let sentence = format!(
        "{repo_id} was still hidden, and its model committed as {} at block {}: it is shown now",
        hold.hotkey,
        count(block)
    );
    entry.block = Some(block);
    (entry.commit, entry.sent) = (standing.id.commit.clone(), Some(standing.id.to_string()));
    visibility::show(hub, &mut entry, hold)?;
    if let Some(own) = own {
        copiers::tell(chain, &chain.snapshot()?, own, &standing, printer);
    }
    Ok(Some(sentence))
}
