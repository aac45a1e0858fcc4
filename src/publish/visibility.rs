//! Who sees a model before its commitment, and that nobody is kept from it after.

use anyhow::{Context, Result};

use super::Order;
use super::journal::{Entry, Hold};
use crate::chain::{Hotkey, Snapshot};
use crate::error::input;
use crate::hub::Hub;
use crate::metrics::printer::Printer;
use crate::recipe::Visibility;

/// Checks, without changing anything, that the repository of an order can be written, and that it is not private where the
/// model is to be public. `journal`: what was published last; the repository may be hidden since.
pub(super) fn check(hub: &dyn Hub, order: &Order<'_>, journal: Option<&Entry>) -> Result<()> {
    hub.check_writable(order.repo_id)?;
    let is_ours_to_show = order.visibility == Visibility::PrivateUntilCommitted
        || journal.is_some_and(|entry| entry.hidden && entry.is_in(order.repo_id, hub));
    match is_ours_to_show || hub.is_private(order.repo_id)? != Some(true) {
        true => Ok(()),
        false => Err(hidden_from_validators(order.repo_id, hub)),
    }
}

/// The error of a model that validators could not load.
pub(super) fn hidden_from_validators(repo_id: &str, hub: &dyn Hub) -> anyhow::Error {
    input(format!(
        "{repo_id} is private in {}, where validators could not load the model: make it public, or set publish.visibility to \
         private-until-committed",
        hub.describe()
    ))
}

/// Warns where hiding a repository hides a model that is being paid.
pub(super) fn warn_of_standing(order: &Order<'_>, own: &[Hotkey], snapshot: &Snapshot, printer: &Printer) {
    if order.visibility == Visibility::Public {
        return;
    }
    for hotkey in own {
        if snapshot.metadata(hotkey).is_some_and(|metadata| metadata.id.repo_id() == order.repo_id) {
            printer.warn(&format!(
                "the model of {hotkey} that stands committed in {} cannot be fetched while the repository is hidden: \
                 validators that have it keep it, and others find none until the new one is committed",
                order.repo_id
            ));
        }
    }
}

/// Hides the repository of an entry, if it is to be hidden and is not.
pub(super) fn hide(hub: &dyn Hub, entry: &Entry) -> Result<()> {
    match entry.hidden && hub.is_private(&entry.repo_id)? == Some(false) {
        true => hub.set_private(&entry.repo_id, true),
        false => Ok(()),
    }
}

/// Shows the repository of a model that is committed, if it is hidden.
pub(super) fn show(hub: &dyn Hub, entry: &mut Entry, hold: &Hold) -> Result<()> {
    if entry.hidden {
        hub.set_private(&entry.repo_id, false).with_context(|| {
            format!(
                "{} is committed, and its repository still hidden, so that nobody can load it: make it public, or let any \
                 assay command with this recipe do it",
                entry.repo_id
            )
        })?;
        (entry.hidden, entry.prepared) = (false, false);
        hold.write(entry)?;
    }
    Ok(())
}

/// Says what is hidden after a publish that came to no end.
pub(super) fn tell_of_hidden(hub: &dyn Hub, hold: &Hold, printer: &Printer) {
    // Whatever is wrong with journal or hub is told by who needs them.
    let Ok(Some(Entry { hidden: true, repo_id, .. })) = hold.read() else { return };
    if hub.is_private(&repo_id).is_ok_and(|is_private| is_private == Some(true)) {
        printer.warn(&format!(
            "{repo_id} stays hidden until its model is committed: publish it again, or make the repository public at the hub"
        ));
    }
}
