//! Who else has committed a model of ours. The hash that stands on the chain is not bound to a hotkey, so anybody who sees
//! a model before its commitment can commit it first, and then the chain takes it for his.

use std::collections::BTreeMap;

use crate::chain::{Chain, Commitment, Hotkey, Snapshot};
use crate::figures::count;
use crate::hub::model_id::{ModelId, ModelMetadata};
use crate::metrics::printer::Printer;

/// Somebody who has committed a model of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copier {
    /// His key.
    pub hotkey: Hotkey,
    /// His place; `None`: he has none, so that nobody evaluates what he has committed.
    pub uid: Option<u16>,
    /// The block of his commitment.
    pub block: u64,
    /// Whether it names the same files, and not only the same repository.
    pub same_hash: bool,
}

/// The hotkeys beside the own ones that have committed our model or something of our repository, the earliest first.
pub fn find(
    commitments: &BTreeMap<Hotkey, Commitment>,
    snapshot: &Snapshot,
    own: &[Hotkey],
    id: &ModelId,
) -> Vec<Copier> {
    let of_another = commitments.iter().filter(|(hotkey, _)| !own.contains(hotkey));
    let mut copiers: Vec<_> = of_another
        .filter_map(|(hotkey, commitment)| {
            let theirs = commitment.metadata()?.id;
            let same_hash = id.hash.is_some() && theirs.hash == id.hash;
            let same_repository = (&theirs.namespace, &theirs.name) == (&id.namespace, &id.name);
            let uid = snapshot.neuron(hotkey).map(|neuron| neuron.uid);
            let copier = Copier { hotkey: hotkey.clone(), uid, block: commitment.block, same_hash };
            (same_hash || same_repository).then_some(copier)
        })
        .collect();
    copiers.sort_by_key(|copier| copier.block);
    copiers
}

/// Warns, before anything is sent, of everybody who has committed just that model already, the own hotkeys too: a copy that is
/// later earns nothing.
pub fn tell_beforehand(snapshot: &Snapshot, hotkey: &str, hash: &str, printer: &Printer) {
    for (other, commitment) in &snapshot.commitments {
        let is_same = commitment.metadata().is_some_and(|metadata| metadata.id.hash.as_deref() == Some(hash));
        if is_same && other != hotkey {
            printer.warn(&format!(
                "{other} has committed this very model, {hash}, at block {} already: of equal models validators prefer the \
                 earlier one",
                count(commitment.block)
            ));
        }
    }
}

/// Warns of everybody else who has committed the same model, or one of the same repository.
pub fn tell(chain: &dyn Chain, snapshot: &Snapshot, own: &[Hotkey], ours: &ModelMetadata, printer: &Printer) {
    match chain.all_commitments() {
        Ok(commitments) => {
            let copiers = find(&commitments, snapshot, own, &ours.id);
            copiers.iter().for_each(|copier| printer.warn(&copier.sentence(ours)));
        }
        // What stands, stands.
        Err(error) => printer.warn(&format!("whether somebody has copied the model could not be looked at: {error:#}")),
    }
}

impl Copier {
    /// In words, beside what stands for us.
    pub fn sentence(&self, ours: &ModelMetadata) -> String {
        let Self { hotkey, uid, block, same_hash } = self;
        let who = match uid {
            Some(uid) => format!("uid {uid} ({hotkey})"),
            None => format!("{hotkey}, which is not registered,"),
        };
        let what = match same_hash {
            true => format!("has committed this very model, {},", ours.id.hash.as_deref().unwrap_or_default()),
            false => format!("has committed a model of {}", ours.id.repo_id()),
        };
        let (block, our_block) = (*block, ours.block.get());
        let consequence = match (block.cmp(&our_block), same_hash) {
            (_, false) => String::new(),
            (std::cmp::Ordering::Less, true) => {
                format!(
                    ", before ours at block {}: of equal models validators prefer the earlier one",
                    count(our_block)
                )
            }
            (_, true) => format!(", not before ours at block {}, which validators prefer", count(our_block)),
        };
        format!("{who} {what} at block {}{consequence}.", count(block))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::chain::Neuron;

    #[test]
    fn who_names_our_hash_or_our_repository_is_told_with_uid_and_block() {
        let commitment = |block, text: &str| Commitment { block, bytes: text.as_bytes().to_vec() };
        let commitments = [
            ("me", commitment(100, "me:model:c:HASH")),
            ("other-of-mine", commitment(90, "me:model:c:HASH")),
            ("early", commitment(99, "thief:copy:d:HASH")),
            ("late", commitment(101, "me:model:c:HASH")),
            ("lazy", commitment(102, "me:model:e:ELSE")),
            ("honest", commitment(98, "a:b:c:ELSE")),
            ("noise", Commitment { block: 97, bytes: vec![255, 0] }),
        ];
        let commitments = commitments.map(|(hotkey, commitment)| (hotkey.to_owned(), commitment)).into();
        let neuron = |uid, hotkey: &str| Neuron { uid, hotkey: hotkey.to_owned(), ..Neuron::default() };
        let snapshot = Snapshot { neurons: vec![neuron(7, "early"), neuron(8, "lazy")], ..Snapshot::default() };
        let own = ["me", "other-of-mine"].map(str::to_owned);
        let ours = ModelMetadata { id: "me:model:c:HASH".parse().unwrap(), block: 100.try_into().unwrap() };
        let found = find(&commitments, &snapshot, &own, &ours.id);
        let sentences: Vec<_> = found.iter().map(|copier| copier.sentence(&ours)).collect();
        assert_eq!(
            sentences,
            [
                "uid 7 (early) has committed this very model, HASH, at block 99, before ours at block 100: of equal models \
                 validators prefer the earlier one.",
                "late, which is not registered, has committed this very model, HASH, at block 101, not before ours at block \
                 100, which validators prefer.",
                "uid 8 (lazy) has committed a model of me/model at block 102.",
            ]
        );
    }
}
