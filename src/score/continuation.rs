//! A model's continuations of the first two rows, held against what validators from 21 March 2024 on ask of them.

use std::path::Path;

use thiserror::Error;

use super::output::{OutputRule, PROMPT_TOKENS};
use crate::data::tokenizer::END_OF_TEXT;
use crate::error::{Failure, failure};
use crate::memory;
use crate::model::generate::{self, Settings};
use crate::model::weights::LoadedModel;

/// What a model writes, and whether validators take it for text.
#[derive(Clone, Debug)]
pub struct Continuations {
    /// Empty if the model cannot continue the rows.
    pub tokens: Vec<Vec<u32>>,
    /// Why validators do not take them.
    pub fault: Option<String>,
}

/// Why it cannot be told here what validators would find.
#[derive(Debug, Error)]
pub enum Untellable {
    /// Validators' own check fails then.
    #[error("two rows at least are needed")]
    TooFewRows,
    /// How the model writes cannot be read, or is not implemented.
    #[error("{0:#}")]
    Settings(anyhow::Error),
    /// It takes more memory than this machine has.
    #[error("{0:#}")]
    Memory(anyhow::Error),
    /// Validators name GPT-2's end of text as padding, and their library hides padding that does not end a text.
    #[error(
        "a prompt holds the token {END_OF_TEXT}, which validators' library takes for padding with this model; give rows \
         without it in their first {PROMPT_TOKENS} tokens"
    )]
    HiddenPadding,
}

impl Continuations {
    /// Lets the model in a folder continue the first two rows. What is the model's fault is a fault, as validators see it.
    pub fn of(
        dir: &Path,
        loaded: &LoadedModel,
        rows: &[Vec<u32>],
        rule: OutputRule,
        seeds: [u64; 2],
    ) -> Result<Self, Untellable> {
        let [first, second, ..] = rows else { return Err(Untellable::TooFewRows) };
        let settings = Settings::read(dir).map_err(Untellable::Settings)?;
        let prompts = [first, second].map(|row| &row[..row.len().min(PROMPT_TOKENS)]);
        if prompts.iter().any(|prompt| prompt.contains(&END_OF_TEXT)) && !settings.end_ids.contains(&END_OF_TEXT) {
            return Err(Untellable::HiddenPadding);
        }
        let (arch, params) = (&loaded.config.arch, &loaded.params);
        let unmade = |error| Self { tokens: Vec::new(), fault: Some(format!("cannot be made ({error:#})")) };
        let longest = PROMPT_TOKENS + rule.num_tokens;
        match memory::check_scoring(arch, arch.max_row_len().map_or(longest, |most| longest.min(most)), false) {
            Ok(()) => {}
            Err(error) if matches!(failure(&error), Some(Failure::Input(_))) => return Ok(unmade(error)),
            Err(error) => return Err(Untellable::Memory(error)),
        }
        let go = |index: usize| {
            generate::continuation(arch, params, &settings, prompts[index], rule.num_tokens, seeds[index])
        };
        let tokens = match go(0).and_then(|first| Ok([first, go(1)?])) {
            Ok(tokens) => tokens,
            Err(error) => return Ok(unmade(error)),
        };
        let is_reasonable = rule.is_reasonable(&tokens[0], &tokens[1]);
        let fault = (!is_reasonable).then(|| "are alike or repetitive".to_owned());
        Ok(Self { tokens: tokens.into(), fault })
    }
}
