//! A model against the field: fresh pages drawn, everybody scored on them, the gate asked, and, where its answer is yes,
//! the model published, unless the field has changed since.
//!
//! A run asks at its interval (`train/run_contest.rs`), `assay publish --gate` asks once.

use std::path::Path;

use anyhow::{Context, Result};

use crate::chain::{Chain, Hotkey, Snapshot};
use crate::data::Opened;
use crate::data::pages::Pages;
use crate::field::{self, Competitor};
use crate::gate::roster::Roster;
use crate::gate::{self, Candidate, Decision, Inputs, Model, OwnHotkey};
use crate::hub::fetch::publishable_hash;
use crate::metrics::printer::Printer;
use crate::model::scorer::Scoring;
use crate::network::{self, Network};
use crate::ops::random;
use crate::placement::Placement;
use crate::publish::journal::Hold;
use crate::publish::{self, Order, Published};
use crate::recipe::Resolved;
use crate::rules::Rules;
use crate::score::comparison::{self, Compared, mean_and_error};

/// Scores a model on rows; `None` if an orderly end was asked for.
pub type ScoreCandidate<'a> = &'a mut dyn FnMut(&[Vec<u32>]) -> Result<Option<Vec<f64>>>;

/// The field of a recipe, and the means to judge a model against it.
pub struct Contest<'a> {
    /// The recipe.
    pub resolved: &'a Resolved,
    /// Hub and chain.
    pub network: Network,
    /// How it scores.
    pub scoring: Scoring,
    pages: Pages,
    /// Where it tells what it does.
    pub printer: &'a Printer,
}

/// A decision and what it rests on.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What the gate says.
    pub decision: Decision,
    /// The first document of each page, step by step.
    pub pages: Vec<Vec<usize>>,
    roster: Roster,
    models: Vec<Model>,
    candidate: Candidate,
    candidate_block: u64,
    rules: Rules,
}

impl<'a> Contest<'a> {
    /// Opens hub, chain and pages; an embedded network that is missing is made.
    pub fn open(resolved: &'a Resolved, placement: &Placement, data: &Opened, printer: &'a Printer) -> Result<Self> {
        let recipe = &resolved.recipe;
        let dtype = resolved.rules.criteria.dtype;
        let scoring = Scoring { placement: placement.clone(), backend: recipe.model.backend, dtype };
        let pages = Pages::read(data, recipe.score.page_documents, resolved.rules.criteria.sequence_length)?;
        let network = Network::open_or_make(&recipe.hub, &recipe.chain, printer)?;
        Ok(Self { resolved, network, scoring, pages, printer })
    }

    /// Judges a model folder, whose losses `score` computes. `num_tested`: the how many-th candidate it is since the last
    /// publish, from 1. `None` if an orderly end was asked for.
    pub fn judge(
        &self,
        model_dir: &Path,
        seed: u64,
        num_tested: u64,
        score: ScoreCandidate<'_>,
    ) -> Result<Option<Judged>> {
        let (recipe, rules) = (&self.resolved.recipe, &self.resolved.rules);
        let chain = self.network.chain.as_ref();
        let snapshot = chain.snapshot()?;
        let roster = Roster::of(&snapshot, &recipe.chain.hotkeys);
        let own = self.own_hotkeys(&snapshot)?;

        let num_pages = recipe.score.pages.unwrap_or(rules.validator.pages_per_step);
        let draws: Vec<_> =
            (0..recipe.score.steps as u64).map(|step| self.pages.draw(num_pages, random::derive(seed, step))).collect();
        let num_batches: Vec<usize> = draws.iter().map(|draw| draw.rows.len()).collect();
        let rows: Vec<Vec<u32>> = draws.iter().flat_map(|draw| draw.rows.iter().cloned()).collect();

        let Some(losses) = score(&rows)? else { return Ok(None) };
        let candidate = Candidate { hash: publishable_hash(model_dir)?, losses: by_step(losses, &num_batches) };
        let mut models = Vec::with_capacity(roster.entries.len());
        for entry in &roster.entries {
            let competitor = Competitor::bring(&self.network, rules, entry.uid, &entry.hotkey, &entry.metadata)?;
            let Some(losses) = field::losses_of(&competitor, &self.scoring, &self.network.losses, &rows)? else {
                return Ok(None);
            };
            models.push(Model { entry: entry.clone(), losses: losses.map(|losses| by_step(losses, &num_batches)) });
        }
        let inputs = Inputs {
            rules,
            options: &recipe.gate,
            snapshot: &snapshot,
            models,
            own,
            candidate,
            num_tested,
            max_steps: recipe.gate.max_pages / num_pages.max(1),
        };
        let decision = gate::decide(&inputs);
        Ok(Some(Judged {
            decision,
            pages: draws.into_iter().map(|draw| draw.offsets).collect(),
            candidate_block: gate::roster::candidate_block(&snapshot, 0),
            roster,
            models: inputs.models,
            candidate: inputs.candidate,
            rules: rules.clone(),
        }))
    }

    /// The own hotkeys that are registered.
    fn own_hotkeys(&self, snapshot: &Snapshot) -> Result<Vec<OwnHotkey>> {
        let mut own = Vec::new();
        for hotkey in &self.resolved.recipe.chain.hotkeys {
            let next = self.network.chain.next_commit_block(hotkey)?;
            own.extend(OwnHotkey::of(snapshot, hotkey, next));
        }
        Ok(own)
    }

    /// What is to be published under a hotkey.
    pub fn order<'b>(&'b self, model_dir: &'b Path, hotkey: &'b str) -> Result<Order<'b>> {
        let repo_id = self.resolved.recipe.hub.repo.as_deref().context("hub.repo is missing")?;
        Ok(Order { model_dir, repo_id, hotkey, criteria: &self.resolved.rules.criteria })
    }

    /// Publishes what the gate has let through, unless the field has changed since.
    pub fn publish(&self, model_dir: &Path, judged: &Judged, hold: &Hold) -> Result<Published> {
        let order = self.order(model_dir, &hold.hotkey)?;
        let still_right = |snapshot: &Snapshot| {
            let roster = Roster::of(snapshot, &self.resolved.recipe.chain.hotkeys);
            match roster.fingerprint() == judged.roster.fingerprint() {
                true => Ok(()),
                false => Err("the field has changed since the decision, which must be made anew".to_owned()),
            }
        };
        publish::publish(&self.network, &order, hold, &still_right, self.printer)
    }
}

/// What a run should know at its start: whether its hotkeys are registered, and when they may commit.
pub fn first_lines(chain: &dyn Chain, hotkeys: &[Hotkey]) -> Result<Vec<String>> {
    let snapshot = chain.snapshot()?;
    let line = |hotkey: &Hotkey| -> Result<String> {
        let Some(neuron) = snapshot.neuron(hotkey) else {
            return Ok(format!("{}; nothing can be published under it", publish::unregistered(chain, hotkey)));
        };
        let when = match publish::wait_for_rate_limit(chain, hotkey)? {
            None => "it may commit now.".to_owned(),
            Some(wait) => wait.sentence(chain, hotkey),
        };
        Ok(format!("The hotkey {hotkey} is uid {} on {}; {when}", neuron.uid, chain.describe()))
    };
    hotkeys.iter().map(line).collect()
}

/// What a run would find, without making anything.
pub fn preview(resolved: &Resolved) -> Result<Vec<String>> {
    let (hub, chain) = (&resolved.recipe.hub, &resolved.recipe.chain);
    if network::needs_making(chain) {
        return Ok(vec![format!("Would make an embedded network around the ledger {}.", chain.ledger.display())]);
    }
    first_lines(Network::open(hub, chain)?.chain.as_ref(), &chain.hotkeys)
}

impl Judged {
    /// Everybody's losses, wins and weight, over all steps, as if the candidate were published beside them.
    pub fn table(&self) -> String {
        let candidate = self.candidate.losses.concat();
        let losses: Vec<Vec<f64>> = (self.models.iter())
            .map(|model| match &model.losses {
                Ok(losses) => losses.concat(),
                Err(_) => vec![f64::INFINITY; candidate.len()],
            })
            .collect();
        let published = std::iter::zip(&self.models, &losses).map(|(Model { entry, .. }, losses)| Compared {
            uid: Some(entry.uid),
            name: entry.metadata.id.repo_id(),
            block: entry.metadata.block.get(),
            losses,
        });
        let own =
            Compared { uid: None, name: "this model".to_owned(), block: self.candidate_block, losses: &candidate };
        let compared: Vec<_> = published.chain([own]).collect();
        comparison::text(&compared, &comparison::standings(&compared, &self.rules))
    }

    /// Mean loss of the candidate over all batches.
    pub fn candidate_loss(&self) -> f64 {
        mean_and_error(&self.candidate.losses.concat()).0
    }
}

fn by_step(losses: Vec<f64>, num_batches: &[usize]) -> Vec<Vec<f64>> {
    let mut losses = losses.into_iter();
    num_batches.iter().map(|&num_batches| losses.by_ref().take(num_batches).collect()).collect()
}

/// A seed that nobody has used before.
pub fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Its keys come from the operating system. Short enough to be typed, and exact in JSON.
    RandomState::new().hash_one(0) >> 32
}
