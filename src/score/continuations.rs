//! What a model writes after two prompts, held against the rule of the validators' program ([`super::output`]).
//!
//! From 21 March 2024 on validators let a model continue the first two batches of a step before they count any loss.

use std::path::Path;

use anyhow::Result;

use super::output::{OutputRule, PROMPT_TOKENS};
use crate::data::tokenizer::END_OF_TEXT;
use crate::error::input;
use crate::model::generate::{self, Settings};
use crate::model::weights::LoadedModel;

/// A model's continuations of two rows.
#[derive(Clone, Debug)]
pub struct Continuations {
    /// The tokens; none if the model cannot continue them.
    pub tokens: Vec<Vec<u32>>,
    /// Why validators count every loss of it as infinite, as the end of a sentence about the continuations.
    pub fault: Option<String>,
}

impl Continuations {
    /// Lets the model of a folder continue the beginnings of two rows. What is the model's fault is a fault, as validators
    /// see it; an error where it cannot be told what they would see.
    pub fn of(dir: &Path, model: &LoadedModel, rows: [&[u32]; 2], rule: OutputRule) -> Result<Self> {
        let settings = Settings::read(dir)?;
        let prompts = rows.map(|row| &row[..row.len().min(PROMPT_TOKENS)]);
        // Validators name GPT-2's end of text as padding, and their library hides padding that does not end a text.
        let padding = END_OF_TEXT;
        if prompts.iter().any(|prompt| prompt.contains(&padding)) && !settings.end_ids.contains(&padding) {
            return Err(input(format!(
                "a prompt holds the token {padding}, which validators' library takes for padding with this model; give rows \
                 without it in their first {PROMPT_TOKENS} tokens"
            )));
        }
        let go = |prompt: &[u32], seed: u64| {
            generate::continuation(&model.config.arch, &model.params, &settings, prompt, rule.num_tokens, seed)
        };
        let tokens = match go(prompts[0], 1).and_then(|one| Ok(vec![one, go(prompts[1], 2)?])) {
            Ok(tokens) => tokens,
            Err(error) => return Ok(Self { tokens: Vec::new(), fault: Some(format!("cannot be made ({error:#})")) }),
        };
        let is_reasonable = rule.is_reasonable(&tokens[0], &tokens[1]);
        let fault = (!is_reasonable).then(|| format!("are alike or repetitive ({tokens:?})"));
        Ok(Self { tokens, fault })
    }
}
