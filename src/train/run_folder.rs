//! The folder of one run: which recipe it belongs to, how far it is, and what its evaluations found.
//!
//! ```text
//! RUN/recipe.yaml            the resolved recipe, the first file of a run
//! RUN/data.json              what the text is, and what of it training never sees
//! RUN/step-…, RUN/state/…    checkpoints (`checkpoint/`)
//! RUN/state/best.json        the best held-out loss: kept outside checkpoints, which are saved before it is known
//! RUN/metrics.jsonl, events… records (`metrics/`)
//! RUN/gate/step-…            what the gate decided and why (`run_contest.rs`)
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Start;
use super::run_contest::RECORDS_DIR;
use crate::error::input;
use crate::recipe::{self, Recipe};
use crate::whole_file;

const RECIPE_FILE: &str = "recipe.yaml";
const BEST_FILE: &str = "state/best.json";
const DATA_FILE: &str = "data.json";

/// A held-out loss and the step it was found at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Optimizer steps that were done.
    pub step: u64,
    /// Mean loss in nats per token.
    pub loss: f64,
}

/// What the evaluations of a run found. The last one is not kept on disk: a run that goes on takes it again, which
/// costs little, gives the same number, and leaves the records as if there had been no stop.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluations {
    /// The newest.
    pub last: Option<Evaluation>,
    /// The one with the lowest loss, the earlier of equals.
    pub best: Option<Evaluation>,
}

impl Evaluations {
    /// Reads the best one of a run, if it has one.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(BEST_FILE);
        let best = match fs::read(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes)
                    .with_context(|| format!("cannot read {}; delete it to go on without", path.display()))?,
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self { last: None, best })
    }

    /// Adds one; tells whether it is the best so far. A loss that is not a number never is.
    pub fn add(&mut self, evaluation: Evaluation) -> bool {
        self.last = Some(evaluation);
        let is_best = evaluation.loss.is_finite() && self.best.is_none_or(|best| evaluation.loss < best.loss);
        if is_best {
            self.best = Some(evaluation);
        }
        is_best
    }

    /// Replaces the best one on disk.
    pub fn write_best(&self, run_dir: &Path) -> Result<()> {
        whole_file::write(&run_dir.join(BEST_FILE), &serde_json::to_vec(&self.best)?)
    }
}

/// The recipe that a run folder belongs to; `None` where there is no run.
pub fn stored_recipe(run_dir: &Path) -> Result<Option<Recipe>> {
    let path = run_dir.join(RECIPE_FILE);
    match path.try_exists() {
        Ok(true) => recipe::load(&path, &[]).map(Some),
        Ok(false) => Ok(None),
        // What stands there is no folder, of which `check_usable` tells.
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look for {}", path.display())),
    }
}

/// Writes the resolved recipe.
pub fn write_recipe(run_dir: &Path, recipe: &Recipe) -> Result<()> {
    whole_file::write(&run_dir.join(RECIPE_FILE), recipe::to_yaml(recipe).as_bytes())
}

/// What the run's records say of its text ([`crate::data::Corpus::record`]), if they say something and the run goes on.
pub fn known_data(run_dir: &Path, start: Start) -> Result<Option<Map<String, Value>>> {
    if start == Start::Fresh {
        return Ok(None);
    }
    let path = run_dir.join(DATA_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).with_context(|| format!("cannot read {}", path.display()))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes down what the run's text is.
pub fn write_data(run_dir: &Path, record: Option<Map<String, Value>>) -> Result<()> {
    let Some(record) = record else { return Ok(()) };
    whole_file::write(&run_dir.join(DATA_FILE), &serde_json::to_vec_pretty(&record)?)
}

/// What a start finds in a run's folder.
#[derive(Clone, Debug)]
pub struct Found {
    /// Whether there is a run to go on with.
    pub goes_on: bool,
    /// What of the recipe has changed since, a sentence each.
    pub warnings: Vec<String>,
}

/// Looks at a run's folder before anything is written, and refuses what cannot be gone on with or started over.
pub fn examine(run_dir: &Path, recipe: &Recipe, start: Start) -> Result<Found> {
    let stored = if start == Start::Fresh { None } else { stored_recipe(run_dir)? };
    check_usable(run_dir, stored.is_some(), start == Start::Fresh)?;
    if stored.is_none() && start == Start::Resume && !run_dir.try_exists()? {
        return Err(input(format!(
            "{} holds no run to go on with: leave out --resume to start one",
            run_dir.display()
        )));
    }
    let warnings = stored.as_ref().map_or(Ok(Vec::new()), |stored| check_unchanged(run_dir, stored, recipe))?;
    Ok(Found { goes_on: stored.is_some(), warnings })
}

/// Refuses a folder that is no run and not empty, a file, and a run whose recipe is lost.
fn check_usable(run_dir: &Path, has_recipe: bool, fresh: bool) -> Result<()> {
    let place = format!("checkpoint.dir: {}", run_dir.display());
    if run_dir.try_exists().unwrap_or(false) && !run_dir.is_dir() {
        return Err(input(format!("{place} is a file: name a folder")));
    }
    let Ok(entries) = fs::read_dir(run_dir) else { return Ok(()) };
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if let Some(foreign) = names.iter().find(|name| !is_of_a_run(name)) {
        return Err(input(format!(
            "{place} holds {foreign}, which is no part of a run: name another folder, or move it away"
        )));
    }
    if !has_recipe && !fresh && names.iter().any(|name| name.starts_with("step-")) {
        return Err(input(format!(
            "{place} holds checkpoints but no {RECIPE_FILE}, so that nothing says what they were trained with: bring it \
             back to go on, or give --fresh to start over (the old run is moved aside)"
        )));
    }
    Ok(())
}

/// Whether a name is one that a run gives to its files.
fn is_of_a_run(name: &str) -> bool {
    const NAMES: [&str; 8] = [RECIPE_FILE, DATA_FILE, "state", "latest", "best", "metrics.jsonl", ".lock", RECORDS_DIR];
    const STARTS: [&str; 4] = ["step-", "events.out.tfevents.", ".tmp-", ".old-"];
    NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

/// Keys that may change on the way: the same curve with other rounding, or a longer or shorter one.
const MAY_CHANGE: [(&str, &str); 5] = [
    ("train.threads", "the same curve, but with other rounding"),
    ("train.micro_batch", "the same curve, but with other rounding"),
    ("train.bf16_rounding", "the same curve, but with other rounding"),
    ("model.backend", "the same curve, but with other rounding"),
    ("train.steps", "the learning rate follows the schedule of the new number of steps from here on"),
];

/// Refuses to go on with a run under a recipe that would change its numbers; returns what the user should know.
fn check_unchanged(run_dir: &Path, stored: &Recipe, recipe: &Recipe) -> Result<Vec<String>> {
    let (mut warnings, mut refused) = (Vec::new(), Vec::new());
    for difference in recipe::differences(stored, recipe).into_iter().filter(|difference| difference.changes_numbers) {
        let recipe::Difference { path, old, new, .. } = difference;
        match MAY_CHANGE.iter().find(|(key, _)| *key == path) {
            Some((_, effect)) => warnings.push(format!("{path} was {old} and is now {new}: {effect}")),
            None => refused.push(format!("  {path}: {old} in the run, {new} now")),
        }
    }
    if refused.is_empty() {
        return Ok(warnings);
    }
    Err(input(format!(
        "{} is a run of another recipe, and going on with it would mix the two:\n{}\nPut the keys back to go on, or give \
         --fresh to start over (the old run is moved aside), or another `name` to have both.",
        run_dir.display(),
        refused.join("\n")
    )))
}

/// Moves an earlier run out of the way, to the first free name of NAME.1, NAME.2, …; returns that name.
pub fn move_aside(run_dir: &Path) -> Result<PathBuf> {
    for number in 1.. {
        let mut name = run_dir.as_os_str().to_owned();
        name.push(format!(".{number}"));
        let aside = PathBuf::from(name);
        if !aside.try_exists()? {
            fs::rename(run_dir, &aside)
                .with_context(|| format!("cannot move {} to {}", run_dir.display(), aside.display()))?;
            return Ok(aside);
        }
    }
    unreachable!("some number is free")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_best_evaluation_is_the_first_of_the_lowest_and_survives_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let mut evaluations = Evaluations::read(folder.path()).unwrap();
        assert_eq!(evaluations, Evaluations::default());
        let mut add = |step, loss| evaluations.add(Evaluation { step, loss });
        assert!(!add(1, f64::NAN));
        assert!(add(2, 5.25));
        assert!(!add(3, 5.25));
        assert!(add(4, 5.125));
        assert!(!add(5, f64::INFINITY));
        assert!(!add(6, 6.0));
        assert_eq!(evaluations.last, Some(Evaluation { step: 6, loss: 6.0 }));
        evaluations.write_best(folder.path()).unwrap();
        let read = Evaluations::read(folder.path()).unwrap();
        assert_eq!(read.best, Some(Evaluation { step: 4, loss: 5.125 }));
        assert_eq!(fs::read_dir(folder.path().join("state")).unwrap().count(), 1);
    }

    #[test]
    fn an_earlier_run_moves_to_the_first_free_number() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        for number in 1..=3 {
            fs::create_dir(&run).unwrap();
            assert_eq!(move_aside(&run).unwrap(), folder.path().join(format!("run.{number}")));
        }
    }
}
