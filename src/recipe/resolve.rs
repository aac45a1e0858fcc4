//! From what was typed to what is usable: every default written out, rules and architecture in force.
//!
//! [`Recipe::examine`] always answers, with whatever is wrong beside it, so that `check` can show figures and violations
//! together; [`Recipe::resolve`] is for those who go on only with a valid recipe. Nothing here touches files or data.

use std::path::PathBuf;
use std::thread;

use anyhow::Result;

use super::{DeviceChoice, PublishMode, Recipe, ScoreSource, SourceKind, validate, warnings};
use crate::error::input;
use crate::figures::count;
use crate::model::arch::Arch;
use crate::model::config::{self, Sizes};
use crate::model::gpu;
use crate::rules::{DEFAULT_BLOCK, Rules, Tokenizer};

/// Something to mend or to know about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key, as `model.width`.
    pub path: &'static str,
    /// What is the matter and what to do about it.
    pub sentence: String,
}

/// A recipe with everything that follows from it.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The recipe with every default written out; its own `resolve` gives it back unchanged.
    pub recipe: Recipe,
    /// The rules in force, the recipe's own limits included.
    pub rules: Rules,
    /// The model, with the vocabulary of GPT-2's tokenizer.
    pub arch: Arch,
    /// Number of parameters, a tied head counted once.
    pub num_parameters: u64,
    /// Tokens per training row.
    pub row_len: usize,
    /// The run's folder, relative to the current directory unless the recipe says otherwise.
    pub run_dir: PathBuf,
    /// CPU threads.
    pub threads: usize,
    /// What is allowed but probably not meant, such as keys without effect.
    pub warnings: Vec<Finding>,
}

/// A resolved recipe and whatever forbids its use.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The recipe with everything that follows from it; sizes may be nonsense if there are violations.
    pub resolved: Resolved,
    /// All that must be mended before it can be used.
    pub violations: Vec<Finding>,
}

impl Recipe {
    /// Writes the defaults out and checks everything that can be known without files and data.
    ///
    /// On another machine the default of `train.threads` differs; a caller that resumes a run should first put the
    /// run's own number into the recipe if it names none.
    pub fn examine(mut self) -> Examined {
        let choice = &mut self.rules;
        let mut rules = Rules::at_block(*choice.block.get_or_insert(DEFAULT_BLOCK));
        rules.criteria.max_parameters = choice.max_parameters.unwrap_or(rules.criteria.max_parameters);
        rules.criteria.max_repo_bytes = choice.max_repo_bytes.unwrap_or(rules.criteria.max_repo_bytes);
        rules.criteria.sequence_length = choice.sequence_length.unwrap_or(rules.criteria.sequence_length);

        let scored_len = rules.criteria.sequence_length;
        let context = *self.model.context.get_or_insert(scored_len);
        let (family, width) = (self.model.family, self.model.width);
        let mlp_width = *self.model.mlp_width.get_or_insert(family.mlp_width(width));
        let row_len = *self.train.sequence_length.get_or_insert(scored_len);
        let threads = *self.train.threads.get_or_insert_with(all_cores);
        self.data.max_document_tokens.get_or_insert(scored_len);
        self.score.source.get_or_insert(match self.data.source {
            SourceKind::RefinedwebRows => ScoreSource::RefinedwebRows,
            _ => ScoreSource::HeldOut,
        });
        let pages = *self.score.pages.get_or_insert(rules.validator.pages_per_step);
        self.gate.max_pages.get_or_insert(pages.saturating_mul(100));
        self.chain.hotkeys = Some(self.chain.hotkeys());
        self.publish.mode.get_or_insert(match self.chain.is_local() {
            true => PublishMode::Auto,
            false => PublishMode::Never,
        });
        let run_dir = self.checkpoint.dir.get_or_insert_with(|| PathBuf::from("checkpoints").join(&self.name)).clone();

        let model = &self.model;
        let sizes = Sizes {
            vocab_size: Tokenizer::Gpt2.vocab_size(),
            context,
            width,
            layers: model.layers,
            heads: model.heads,
            kv_heads: model.kv_heads,
            mlp_width,
        };
        let (arch, shape_fault) = match config::new_arch(family, sizes, &model.config) {
            Ok(arch) => (arch, None),
            // Of the same sizes, for the figures.
            Err(sentence) => {
                let arch = Arch::gpt2(sizes.vocab_size, context, width, model.layers, model.heads);
                (Arch { family, mlp_width, ..arch }, Some(sentence))
            }
        };
        let num_parameters = u64::try_from(arch.num_parameters()).unwrap_or(u64::MAX);
        let warnings = Vec::new();
        let mut resolved = Resolved { recipe: self, rules, arch, num_parameters, row_len, run_dir, threads, warnings };
        let violations = validate::violations(&resolved, shape_fault);
        resolved.warnings = warnings::warnings(&resolved);
        Examined { resolved, violations }
    }

    /// [`Recipe::examine`], or one error with every violation in it.
    pub fn resolve(self) -> Result<Resolved> {
        let Examined { resolved, violations } = self.examine();
        if violations.is_empty() {
            return Ok(resolved);
        }
        let lines: Vec<_> =
            violations.iter().map(|finding| format!("{}: {}", finding.path, finding.sentence)).collect();
        Err(input(lines.join("\n")))
    }
}

fn all_cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get())
}

impl Resolved {
    /// Whether training is to publish, or to ask about it.
    pub fn publishes(&self) -> bool {
        self.recipe.score.every > 0 && self.recipe.publish.mode != Some(PublishMode::Never)
    }

    /// Where the recipe has it trained: `auto` means the CPU where a GPU cannot train the model.
    pub fn device(&self) -> DeviceChoice {
        match self.recipe.train.device {
            DeviceChoice::Auto if gpu::cannot_train(&self.arch, self.recipe.model.dropout).is_some() => {
                DeviceChoice::Cpu
            }
            choice => choice,
        }
    }

    /// Forward and backward passes per optimizer step on each of `world_size` devices.
    ///
    /// `tokens_per_step` is global: it must be exactly `micro_batch · row_len · world_size · micro_steps`.
    pub fn micro_steps(&self, world_size: usize) -> Result<usize> {
        micro_steps(&self.recipe, self.row_len, world_size)
            .map_err(|sentence| input(format!("train.tokens_per_step: {sentence}")))
    }
}

/// [`Resolved::micro_steps`] with the bare sentence as its error.
pub(super) fn micro_steps(recipe: &Recipe, row_len: usize, world_size: usize) -> Result<usize, String> {
    let (tokens, rows) = (recipe.train.tokens_per_step as u128, recipe.train.micro_batch as u128);
    let portion = rows.saturating_mul(row_len as u128).saturating_mul(world_size as u128);
    if portion == 0 {
        return Err("a step needs rows, tokens and devices; none of them may be 0".to_owned());
    }
    if tokens > 0 && tokens % portion == 0 {
        return Ok(usize::try_from(tokens / portion).expect("no larger than tokens_per_step, a usize"));
    }
    let below = tokens / portion * portion;
    let nearest = match below {
        0 => count(portion),
        _ => format!("{} and {}", count(below), count(below.saturating_add(portion))),
    };
    let devices = if world_size == 1 { "1 device".to_owned() } else { format!("{world_size} devices") };
    Err(format!(
        "{} is no multiple of {} (micro_batch {rows} × {row_len} tokens × {devices}); nearest: {nearest}",
        count(tokens),
        count(portion),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::small;
    use crate::error::exit_code;

    #[test]
    fn writes_every_default_out() {
        let resolved = small().resolve().unwrap();
        let recipe = &resolved.recipe;
        assert_eq!(recipe.rules.block, Some(2_485_000));
        assert_eq!((recipe.model.mlp_width, recipe.model.context), (Some(256), Some(1024)));
        assert_eq!((recipe.train.sequence_length, recipe.data.max_document_tokens), (Some(1024), Some(1024)));
        assert_eq!(resolved.run_dir.to_str(), Some("checkpoints/small"));
        assert_eq!((resolved.row_len, resolved.threads, resolved.arch.vocab_size), (1024, 2, 50_257));
        assert_eq!(resolved.warnings, []);
        assert_eq!(resolved.recipe.clone().resolve().unwrap().recipe, resolved.recipe);
    }

    #[test]
    fn own_rules_replace_those_of_the_block() {
        let mut recipe = small();
        recipe.rules.sequence_length = Some(128);
        recipe.rules.max_parameters = Some(3_000_000);
        recipe.train.tokens_per_step = 256;
        let error = recipe.clone().resolve().unwrap_err().to_string();
        assert!(error.contains("limit of 3,000,000 set by rules.max_parameters"), "{error}");
        recipe.rules.max_parameters = None;
        let resolved = recipe.resolve().unwrap();
        assert_eq!((resolved.arch.context, resolved.row_len, resolved.rules.criteria.sequence_length), (128, 128, 128));
    }

    #[test]
    fn tokens_per_step_are_global() {
        let mut recipe = small();
        recipe.train.tokens_per_step = 24_576;
        let resolved = recipe.resolve().unwrap();
        let steps = |world_size| resolved.micro_steps(world_size);
        assert_eq!((steps(1).unwrap(), steps(2).unwrap(), steps(3).unwrap(), steps(12).unwrap()), (12, 6, 4, 1));
        let error = steps(5).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert_eq!(
            error.to_string(),
            "train.tokens_per_step: 24,576 is no multiple of 10,240 (micro_batch 2 × 1024 tokens × 5 devices); \
             nearest: 20,480 and 30,720"
        );
        assert!(steps(24).unwrap_err().to_string().ends_with("nearest: 49,152"));
        assert!(steps(0).is_err());
        assert!(steps(usize::MAX).is_err());
    }
}
