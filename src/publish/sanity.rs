//! What could make a validator count every loss of a model as infinite, looked at before it is published.
//!
//! What the folder itself shows (files, size, hash, parameters, class, positions, finite weights, the length of names) is
//! [`Parcel`]'s affair, and refused there. Here the model is loaded and tried: what it writes, and how long a validator's
//! card would take for a step.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Order, Parcel};
use crate::data::tokenizer::END_OF_TEXT;
use crate::error::{Failure, failure};
use crate::field::scoring_cost;
use crate::figures::duration;
use crate::model::arch::Arch;
use crate::model::config::ModelConfig;
use crate::model::weights;
use crate::rules::Rules;
use crate::score::continuation::Continuations;
use crate::score::output::{MARCH_2024, PROMPT_TOKENS};

/// What a validator's card computes in a second: the f32 peak of an A100, 19.5 TFLOP/s, half of which plain PyTorch reaches.
const VALIDATOR_FLOPS: f64 = 19.5e12 / 2.0;

/// Tokens of a page of 100 documents of Falcon RefinedWeb, about: 43 rows of 1,024.
const TOKENS_PER_PAGE: f64 = 43.0 * 1024.0;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sanity {
    /// Why validators would refuse the model, or count all its losses as infinite, a sentence each.
    pub refusals: Vec<String>,
    /// What is no reason against it yet, a sentence each.
    pub warnings: Vec<String>,
}

/// Looks at what a model folder shows, and loads nothing but headers.
pub fn of_folder(order: &Order<'_>) -> Result<Sanity> {
    match Parcel::of(order) {
        Ok(_) => Ok(Sanity::default()),
        Err(error) if matches!(failure(&error), Some(Failure::Input(_))) => {
            Ok(Sanity { refusals: vec![format!("{error:#}")], warnings: Vec::new() })
        }
        Err(error) => Err(error),
    }
}

/// Looks at a model folder, and if that shows nothing tries the model.
pub fn examine(order: &Order<'_>, rules: &Rules, rows: &[Vec<u32>]) -> Result<Sanity> {
    let of_folder = of_folder(order)?;
    if of_folder.refusals.is_empty() { of_model(order.model_dir, rules, rows) } else { Ok(of_folder) }
}

/// Tries a model whose folder shows nothing against it; it is let continue two of the `rows`, those whose prompts hold no
/// end of text if there are such.
pub fn of_model(dir: &Path, rules: &Rules, rows: &[Vec<u32>]) -> Result<Sanity> {
    let mut sanity = Sanity::default();
    sanity.time(dir, rules)?;
    sanity.output(dir, rules, rows)?;
    Ok(sanity)
}

impl Sanity {
    fn time(&mut self, dir: &Path, rules: &Rules) -> Result<()> {
        let arch = ModelConfig::read(dir)?.arch;
        let seconds = seconds_on_validators_card(&arch, rules);
        let limit = rules.validator.seconds_per_model as f64;
        if seconds > limit / 2.0 {
            self.warnings.push(format!(
                "A validator's step of {} pages takes this model about {} on an A100 in f32; after {} all its losses count \
                 as infinite, and slower cards are in use.",
                rules.validator.pages_per_step,
                duration(seconds),
                duration(limit)
            ));
        }
        Ok(())
    }

    fn output(&mut self, dir: &Path, rules: &Rules, rows: &[Vec<u32>]) -> Result<()> {
        let prompt = |row: &[u32]| row[..row.len().min(PROMPT_TOKENS)].to_vec();
        let mut prompts: Vec<Vec<u32>> = rows.iter().map(|row| prompt(row)).collect();
        prompts.sort_by_key(|prompt| prompt.contains(&END_OF_TEXT));
        if prompts.len() < 2 {
            return Ok(());
        }
        let model = weights::load(dir).with_context(|| format!("cannot load {}", dir.display()))?;
        let rule = rules.validator.output.unwrap_or(MARCH_2024);
        let found = match Continuations::of(dir, &model, &prompts, rule, [1, 2]) {
            Ok(found) => found.fault,
            Err(error) => {
                self.warnings
                    .push(format!("It is not known what validators would make of the model's text: {error:#}."));
                None
            }
        };
        let Some(fault) = found else { return Ok(()) };
        match rules.validator.output {
            Some(_) => self.refusals.push(format!(
                "The model's continuations of two rows {fault}: validators would count every loss of it as infinite."
            )),
            None => self.warnings.push(format!(
                "The model's continuations of two rows {fault}: validators from 21 March 2024 on would count every loss of \
                 it as infinite."
            )),
        }
        Ok(())
    }
}

/// How long a validator's card takes for the batches of one step, about.
pub fn seconds_on_validators_card(arch: &Arch, rules: &Rules) -> f64 {
    let row_len = rules.criteria.sequence_length;
    let num_rows = (rules.validator.pages_per_step as f64 * TOKENS_PER_PAGE / row_len as f64).ceil();
    scoring_cost(arch, num_rows as usize, row_len) / VALIDATOR_FLOPS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::hub::file_hashes::FileHashes;
    use crate::model::config::ModelConfig;
    use crate::model::init;
    use crate::model::layout::Layout;
    use crate::recipe::Visibility;
    use crate::rules::VALIDATORS;

    /// A model that has learned nothing: its likeliest next token hardly depends on what was before.
    fn write(dir: &Path, rows: usize) -> Vec<Vec<u32>> {
        let arch = Arch::gpt2(64, 256, 8, 1, 1);
        let layout = Layout::of(&arch);
        let mut params = vec![0.0; layout.len()];
        init::scratch(&arch, &layout, 1, &mut params);
        weights::save(dir, &ModelConfig::new(arch, 0.0), &layout, &params).unwrap();
        vec![(0..100).map(|id| id % 64).collect(); rows]
    }

    fn rules(version: usize) -> Rules {
        let mut rules = Rules::under(&VALIDATORS[version], 2_485_000);
        rules.criteria.sequence_length = 128;
        rules
    }

    #[test]
    fn repetition_is_refused_by_validators_that_look_at_text_and_warned_of_before() {
        let dir = tempfile::tempdir().unwrap();
        // The same prompt twice has the same continuation.
        let rows = write(dir.path(), 2);
        let found = |rules: &Rules, rows: &[Vec<u32>]| {
            let order = Order {
                model_dir: dir.path(),
                repo_id: "me/model",
                hotkey: "miner",
                criteria: &rules.criteria,
                waits: false,
                visibility: Visibility::Public,
                card: None,
                hashes: &FileHashes::default(),
            };
            examine(&order, rules, rows).unwrap()
        };
        let before = found(&rules(0), &rows);
        assert_eq!((before.refusals.len(), before.warnings.len()), (0, 1));
        assert!(before.warnings[0].contains("are alike or repetitive"), "{}", before.warnings[0]);
        let after = found(&rules(1), &rows);
        assert_eq!((after.refusals.len(), after.warnings.len()), (1, 0));
        assert!(after.refusals[0].contains("count every loss"), "{}", after.refusals[0]);
        assert_eq!(found(&rules(1), &rows[..1]), Sanity::default());
        // A prompt with an end of text says nothing, and others are taken if there are some.
        let ended: Vec<u32> = vec![END_OF_TEXT; 100];
        assert_eq!(found(&rules(1), &[ended.clone(), rows[0].clone(), rows[1].clone()]), after);
        assert!(found(&rules(1), &[ended, rows[0].clone()]).warnings[0].starts_with("It is not known"));
    }

    #[test]
    fn what_the_folder_shows_is_refused_before_the_model_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let rows = write(dir.path(), 2);
        let mut rules = rules(1);
        rules.criteria.max_parameters = 10;
        let repo_id = "me/model";
        let hashes = FileHashes::default();
        let order = |rules| Order {
            model_dir: dir.path(),
            repo_id,
            hotkey: "miner",
            criteria: rules,
            waits: false,
            visibility: Visibility::Public,
            card: None,
            hashes: &hashes,
        };
        let found = examine(&order(&rules.criteria), &rules, &rows).unwrap();
        assert_eq!((found.refusals.len(), found.warnings.len()), (1, 0));
        assert!(found.refusals[0].contains("the limit is 10"), "{}", found.refusals[0]);
    }

    /// 772 M parameters take 2 × 772 M operations a token, and 3 pages are 132,096 tokens: 21 s at 9.75 TFLOP/s, with
    /// attention and the head's softmax on top; under half a minute, where six times that is not.
    #[test]
    fn the_time_of_a_validators_step_grows_with_the_model() {
        let (rules, largest) = (Rules::default(), Arch { mlp_width: 5_056, ..Arch::gpt2(50_257, 1024, 1280, 36, 20) });
        let seconds = seconds_on_validators_card(&largest, &rules);
        assert!((21.0..26.0).contains(&seconds), "{seconds}");
        let mut longer = rules.clone();
        longer.validator.pages_per_step = 9;
        assert!((seconds_on_validators_card(&largest, &longer) / seconds - 3.0).abs() < 0.01);
    }
}
