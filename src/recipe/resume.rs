//! The resolved recipe as the first file of a run folder, and what a resumed run may change of it.

use super::Recipe;
use super::tree::{KeyPath, Tree};

/// A recipe in YAML with a head comment. Parsing and resolving it gives the same recipe.
pub fn to_yaml(recipe: &Recipe) -> String {
    let keys = serde_yaml::to_string(recipe).expect("a recipe is text, numbers and mappings of them");
    format!(
        "# The recipe of this run with every default written out, by assay {}. A resumed run is held against it;\n\
         # to start a run of your own from it, copy it elsewhere and change `name` and `checkpoint.dir`.\n{keys}",
        env!("CARGO_PKG_VERSION")
    )
}

/// A key in which two resolved recipes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key, as `optimizer.learning_rate`.
    pub path: String,
    /// The value in the old recipe, in YAML; `null` where the key is missing.
    pub old: String,
    /// The value in the new recipe.
    pub new: String,
    /// Whether a resumed run would write other losses than one that ran through with the old recipe.
    pub changes_numbers: bool,
}

/// Keys that a resumed run may change freely: what is saved, shown and named, the limits that were checked before, and the
/// choice of a device, for the checkpoint says on which one the run really was; and how the text is fetched: which text it is,
/// its record says.
///
/// Every other key counts as part of what determines the run's numbers: the shape, the text (its paths too: their order
/// is the order of the text), the portions (`micro_batch` and `threads` decide the order of sums), the optimizer, the
/// schedule with `train.steps`, and `eval.rows`, without which held-out losses cannot be compared.
const FREE: [&str; 19] = [
    "name",
    "rules.block",
    "rules.max_parameters",
    "rules.max_repo_bytes",
    "train.device",
    "eval.every",
    "checkpoint.dir",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "metrics.tensorboard",
    "metrics.print_every",
    "data.revision",
    "data.endpoint",
    "data.rows_endpoint",
    "data.cache",
    "data.readers",
    "data.tokenizer_threads",
    "data.queue_mb",
];

/// Sections of which every key may change: what is done with a model decides nothing about its numbers.
const FREE_SECTIONS: [&str; 5] = ["score.", "gate.", "hub.", "chain.", "publish."];

/// The keys in which two resolved recipes differ, in the order of the recipe.
pub fn differences(old: &Recipe, new: &Recipe) -> Vec<Difference> {
    let (old, new) = (tree_of(old), tree_of(new));
    let (old_leaves, new_leaves) = (old.leaves(), new.leaves());
    let added = new_leaves.iter().filter(|(path, _)| !old_leaves.iter().any(|(known, _)| known == path));
    let paths = old_leaves.iter().chain(added).map(|(path, _)| path);
    let find = |leaves: &[(String, &Tree)], path: &str| {
        leaves.iter().find(|(known, _)| known == path).map_or(&Tree::Nothing, |(_, value)| *value).clone()
    };
    let changed = paths.map(|path| (path, find(&old_leaves, path), find(&new_leaves, path)));
    changed
        .filter(|(_, old, new)| old != new)
        .map(|(path, old, new)| Difference {
            path: path.clone(),
            old: in_yaml(&old),
            new: in_yaml(&new),
            changes_numbers: !FREE.contains(&path.as_str())
                && !FREE_SECTIONS.iter().any(|section| path.starts_with(section)),
        })
        .collect()
}

fn tree_of(recipe: &Recipe) -> Tree {
    let mut tree = Tree::parse(&to_yaml(recipe)).expect("what serde_yaml writes, it reads");
    // A choice with content (`init: {dir: path}`) is one value, not a section.
    let init = tree.get(&KeyPath::of_keys("init").0).map(in_yaml);
    tree.set(&["init"], init.map_or(Tree::Nothing, Tree::Text));
    tree
}

/// A leaf on one line.
fn in_yaml(value: &Tree) -> String {
    match value {
        Tree::Nothing => "null".to_owned(),
        Tree::Bool(value) => value.to_string(),
        Tree::Whole(value) => value.to_string(),
        Tree::Real(value) => format!("{value:?}"),
        Tree::Text(value) => value.clone(),
        Tree::List(items) => format!("[{}]", items.iter().map(in_yaml).collect::<Vec<_>>().join(", ")),
        Tree::Map(entries) => {
            let entries: Vec<_> = entries.iter().map(|(key, value)| format!("{key}: {}", in_yaml(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::super::tests::small;
    use super::super::{Init, ScheduleKind, SourceKind, load};
    use super::*;

    #[test]
    fn a_written_recipe_is_read_back_as_it_was() {
        let mut rich = small();
        rich.name = "123".into();
        rich.init = Init::Dir(PathBuf::from("models/a: b #c"));
        rich.data.source = SourceKind::Files;
        rich.data.paths = vec!["data/*.jsonl".into(), "yes".into(), "é \"x\"".into(), "1e3".into()];
        rich.model.dropout = 0.1;
        rich.train.seed = u64::MAX;
        rich.schedule.kind = ScheduleKind::Wsd;
        rich.schedule.decay_steps = 10;
        rich.rules.max_parameters = Some(5_000_000);
        rich.optimizer.learning_rate = 0.1 + 0.2;
        for recipe in [small(), rich] {
            let resolved = recipe.resolve().unwrap().recipe;
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), to_yaml(&resolved)).unwrap();
            let read = load(file.path(), &[]).unwrap();
            assert_eq!(read, resolved);
            assert_eq!(read.resolve().unwrap().recipe, resolved);
            assert_eq!(differences(&resolved, &resolved), []);
        }
    }

    #[test]
    fn tells_harmless_changes_from_those_that_alter_the_run() {
        let old = small().resolve().unwrap().recipe;
        let mut new = old.clone();
        new.eval.every = 7;
        new.optimizer.learning_rate = 1e-3;
        new.init = Init::Dir("x".into());
        new.data.paths = vec!["a".into(), "b".into()];
        new.rules.max_repo_bytes = Some(9);
        new.gate.min_gain = 0.5;
        let found: Vec<_> = differences(&old, &new)
            .into_iter()
            .map(|difference| {
                format!("{} {} {} {}", difference.path, difference.old, difference.new, difference.changes_numbers)
            })
            .collect();
        assert_eq!(
            found,
            [
                "init scratch {dir: x} true",
                "data.paths [] [a, b] true",
                "optimizer.learning_rate 0.0006 0.001 true",
                "eval.every 250 7 false",
                "gate.min_gain 0.01 0.5 false",
                "rules.max_repo_bytes null 9 false",
            ]
        );
    }

    #[test]
    fn free_keys_are_keys() {
        let mut recipe = small().resolve().unwrap().recipe;
        recipe.rules.max_parameters = Some(1);
        recipe.rules.max_repo_bytes = Some(1);
        let tree = tree_of(&recipe);
        let leaves = tree.leaves();
        assert!(FREE.iter().all(|free| leaves.iter().any(|(path, _)| path == free)));
    }
}
