//! The page of a published model, its README.md: what it is, how it was trained, how it did beside the others.
//!
//! The world reads it: of the recipe it shows what shapes the model and the training, and nothing of paths, wallets, hubs.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::figures::count;
use crate::model::config::ModelConfig;
use crate::recipe::{self, Recipe, SourceKind};
use crate::train::run_contest;
use crate::train::run_folder::stored_recipe;

/// How a model did beside the published ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Losses {
    /// Everybody's losses, wins and weight, as text.
    pub table: String,
    /// Pages that everybody was scored on.
    pub num_pages: usize,
    /// The block at which the others stood on the chain.
    pub block: u64,
}

/// What of a recipe is shown.
#[derive(Serialize)]
struct Shown<'a> {
    model: &'a recipe::Model,
    optimizer: &'a recipe::Optimizer,
    schedule: &'a recipe::Schedule,
}

/// A run and how far it was.
struct Run {
    recipe: Recipe,
    step: u64,
    losses: Option<Losses>,
}

/// The text for a model folder. What a run has written around it is told, where there is a run: its losses too, unless
/// others are given.
pub fn text(model_dir: &Path, losses: Option<&Losses>) -> String {
    let mut text = String::from(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- bittensor\n- pretraining\n---\n",
    );
    let run = Run::of(model_dir);
    let losses = losses.or(run.as_ref().and_then(|run| run.losses.as_ref()));
    let source = run.as_ref().map(|run| run.recipe.data.source);
    let facts = [of_model(model_dir), run.as_ref().and_then(Run::told), losses.map(|losses| losses.told(source))];
    for paragraphs in facts.into_iter().flatten() {
        text.push('\n');
        text.push_str(&paragraphs);
    }
    text
}

fn of_model(model_dir: &Path) -> Option<String> {
    let arch = ModelConfig::read(model_dir).ok()?.arch;
    let class = crate::model::config::class_in(model_dir)?;
    Some(format!(
        "# {class}, {} parameters\n\nTrained with assay for subnet 9 of Bittensor, whose miners pretrain language models.\n",
        count(arch.num_parameters() as u64)
    ))
}

impl Run {
    /// The run that has written a model folder, if one has.
    fn of(model_dir: &Path) -> Option<Self> {
        // By way of a run's `latest` too.
        let model_dir = model_dir.canonicalize().ok()?;
        let step = model_dir.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        let run_dir = model_dir.parent()?;
        Some(Self { recipe: stored_recipe(run_dir).ok()??, step, losses: run_contest::losses_at(run_dir, step) })
    }

    fn told(&self) -> Option<String> {
        let Recipe { name, train, data, model, optimizer, schedule, .. } = &self.recipe;
        let source = match data.source {
            SourceKind::Sample => "the sample text that assay carries",
            SourceKind::Files => "text of the miner's own",
            SourceKind::RefinedwebRows | SourceKind::RefinedwebParquet => data.dataset.as_str(),
            SourceKind::Tokens => "text that was tokenized before",
        };
        let tokens = self.step.saturating_mul(train.tokens_per_step as u64);
        let [step, steps, tokens] = [self.step, train.steps as u64, tokens].map(count);
        let rows = train.sequence_length.map(|length| format!(", in rows of {}", count(length as u64)));
        let shown = serde_yaml::to_string(&Shown { model, optimizer, schedule }).ok()?;
        Some(format!(
            "## Training\n\nRecipe `{name}`, step {step} of {steps}: {tokens} tokens of {source}{}.\n\n```yaml\n{shown}```\n",
            rows.unwrap_or_default()
        ))
    }
}

impl Losses {
    fn told(&self, source: Option<SourceKind>) -> String {
        let Self { table, num_pages, block } = self;
        let text = match source {
            Some(SourceKind::Sample) => " of the sample text",
            Some(SourceKind::Files) => " held out of the miner's own text",
            Some(SourceKind::RefinedwebRows | SourceKind::RefinedwebParquet) => " of rows that training left out",
            Some(SourceKind::Tokens) => " of text that training left out",
            None => "",
        };
        format!(
            "## Losses\n\nBeside the models that stood on the chain at block {}, on {} pages{text}, by the validators' \
             arithmetic; pages were drawn at random.\n\n```text\n{}\n```\n",
            count(*block),
            count(*num_pages as u64),
            table.trim_end().replace("```", "'''")
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::model::arch::Arch;
    use crate::model::layout::Layout;
    use crate::model::weights;

    fn write_model(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        let arch = Arch::gpt2(64, 16, 8, 1, 1);
        let layout = Layout::of(&arch);
        weights::save(dir, &ModelConfig::new(arch, 0.0), &layout, &vec![0.5; layout.len()]).unwrap();
    }

    #[test]
    fn a_runs_model_tells_its_recipe_its_tokens_and_its_losses_and_nothing_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a-run");
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/quickstart.yaml");
        let text = fs::read_to_string(recipe).unwrap().replace("\nchain:\n", "\nchain:\n  wallet: my-secret-wallet\n");
        assert!(text.contains("secret"));
        write_model(&run.join("step-00000100"));
        fs::write(run.join("recipe.yaml"), text).unwrap();
        std::os::unix::fs::symlink("step-00000100", run.join("latest")).unwrap();
        let tokens_per_step = stored_recipe(&run).unwrap().unwrap().train.tokens_per_step as u64;
        let losses = Losses { table: "uid  loss\n".to_owned(), num_pages: 12, block: 2_485_000 };
        let given = super::text(&run.join("latest"), Some(&losses));
        // As the run keeps them.
        assert_ne!(super::text(&run.join("latest"), None), given);
        fs::create_dir(run.join("gate")).unwrap();
        let record = serde_json::json!({"step": 100, "losses": losses, "decision": {}});
        fs::write(run.join("gate/step-00000100.json"), record.to_string()).unwrap();
        let text = super::text(&run.join("latest"), None);
        assert_eq!(text, given);
        for expected in [
            "---\nlibrary_name: transformers\n",
            "# GPT2LMHeadModel, ",
            &format!("step 100 of 300: {} tokens of the sample text", count(100 * tokens_per_step)),
            "  width: ",
            "  learning_rate: ",
            "at block 2,485,000, on 12 pages of the sample text",
            "```text\nuid  loss\n```\n",
        ] {
            assert!(text.contains(expected), "{expected} is missing in:\n{text}");
        }
        for private in ["secret", "wallet", "hotkey", "repo:", dir.path().to_str().unwrap()] {
            assert!(!text.contains(private), "{private} is in:\n{text}");
        }
    }

    #[test]
    fn a_folder_that_no_run_has_written_tells_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path());
        let text = super::text(dir.path(), None);
        assert!(text.contains("# GPT2LMHeadModel, ") && !text.contains("##"), "{text}");
    }
}
