//! A model against the field: fresh pages drawn, everybody scored on them, the gate asked, and, where its answer is yes,
//! the model published, unless the field has changed since.
//!
//! A run asks at its interval (`train/run_contest.rs`), `assay publish --gate` asks once.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::chain::{Chain, Hotkey, Snapshot};
use crate::data::Opened;
use crate::data::pages::Pages;
use crate::field::{self, Competitor, Wanted};
use crate::gate::look;
use crate::gate::roster::{Entry, Roster};
use crate::gate::{self, Candidate, Decision, Inputs, Model, OwnHotkey, Verdict};
use crate::hub::fetch::publishable_hash;
use crate::metrics::printer::Printer;
use crate::model::scorer::Scoring;
use crate::network::{self, Network};
use crate::ops::random;
use crate::placement::Placement;
use crate::publish::journal::Hold;
use crate::publish::{self, Order, Published, sanity};
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
    /// Seconds of scoring.
    pub seconds: f64,
    /// Whether time was up before the gate was sure.
    pub cut_short: bool,
    roster: Roster,
    models: Vec<Model>,
    candidate: Candidate,
    candidate_block: u64,
    rules: Rules,
}

/// What came of a judging.
#[derive(Clone, Debug)]
pub enum Judging {
    /// A decision.
    Judged(Box<Judged>),
    /// Nothing, for the fewest steps that can decide anything would take longer than is allowed.
    TooLong {
        /// How long they would take.
        needed: Duration,
        /// What was spent on finding out.
        spent: Duration,
    },
    /// Nothing: an orderly end was asked for.
    Interrupted,
}

/// A published model that is being scored.
struct Rival {
    entry: Entry,
    competitor: Competitor,
    losses: Result<Vec<Vec<f64>>, String>,
}

impl<'a> Contest<'a> {
    /// Opens hub, chain and pages; an embedded network that is missing is made. Scores where the recipe says, or else at
    /// `placement`.
    pub fn open(resolved: &'a Resolved, placement: &Placement, data: &Opened, printer: &'a Printer) -> Result<Self> {
        let recipe = &resolved.recipe;
        let dtype = resolved.rules.criteria.dtype;
        let placement = match recipe.score.device {
            Some(device) => Placement::open(device, recipe.model.backend, printer)?,
            None => placement.clone(),
        };
        let scoring = Scoring { placement, backend: recipe.model.backend, dtype };
        let pages = Pages::read(data, recipe.score.page_documents, resolved.rules.criteria.sequence_length)?;
        let network = Network::open_or_make(&recipe.hub, &recipe.chain, printer)?;
        Ok(Self { resolved, network, scoring, pages, printer })
    }

    /// Judges a model folder, whose losses `score` computes, step by step until the gate is sure, `gate.max_pages` are
    /// drawn, or the time `allowed` is over. `num_tested`: the how many-th candidate it is since the last publish, from 1.
    pub fn judge(
        &self,
        model_dir: &Path,
        seed: u64,
        num_tested: u64,
        allowed: Option<Duration>,
        score: ScoreCandidate<'_>,
    ) -> Result<Judging> {
        let started = Instant::now();
        let (recipe, rules) = (&self.resolved.recipe, &self.resolved.rules);
        let snapshot = self.network.chain.snapshot()?;
        let roster = Roster::of(&snapshot, &recipe.chain.hotkeys);
        let own = self.own_hotkeys(&snapshot)?;
        let mut candidate = Candidate { hash: publishable_hash(model_dir)?, losses: Vec::new() };
        let mut rivals: Vec<Rival> = Vec::new();
        let mut offsets = Vec::new();
        let num_pages = recipe.score.pages.unwrap_or(rules.validator.pages_per_step);
        let max_steps = recipe.gate.max_pages.map_or(100, |max_pages| (max_pages / num_pages).max(1));
        let fewest_steps = look::least_steps(gate::alpha(&recipe.gate, num_tested, own.len()), recipe.gate.exact);
        loop {
            let steps = candidate.losses.len()..look::next_look(candidate.losses.len(), max_steps);
            let draws: Vec<_> =
                steps.map(|step| self.pages.draw(num_pages, random::derive(seed, step as u64))).collect();
            let num_batches: Vec<usize> = draws.iter().map(|draw| draw.rows.len()).collect();
            let rows: Vec<Vec<u32>> = draws.iter().flat_map(|draw| draw.rows.iter().cloned()).collect();

            let score_started = Instant::now();
            let Some(losses) = score(&rows)? else { return Ok(Judging::Interrupted) };
            if rivals.is_empty() {
                // Rivals are about as large as the candidate: what they may be is limited, and all go to the limit.
                let a_step = score_started.elapsed().div_f64(draws.len() as f64);
                let needed = a_step.mul_f64((fewest_steps * (roster.entries.len() + 1)) as f64);
                if allowed.is_some_and(|allowed| needed > allowed) {
                    return Ok(Judging::TooLong { needed, spent: started.elapsed() });
                }
            }
            candidate.losses.extend(by_step(losses, &num_batches));
            let scored = match rivals.is_empty() {
                true => self.bring_and_score(&roster, &mut rivals, &rows, &num_batches)?,
                false => self.score_again(&mut rivals, &rows, &num_batches)?,
            };
            self.network.losses.trouble().iter().for_each(|trouble| self.printer.warn(trouble));
            if scored.is_break() {
                return Ok(Judging::Interrupted);
            }
            offsets.extend(draws.into_iter().map(|draw| draw.offsets));

            let models =
                rivals.iter().map(|Rival { entry, losses, .. }| Model { entry: entry.clone(), losses: losses.clone() });
            let mut inputs = Inputs {
                rules,
                options: &recipe.gate,
                snapshot: &snapshot,
                models: models.collect(),
                own: own.clone(),
                candidate: candidate.clone(),
                num_tested,
                max_steps,
                unfit: None,
            };
            let mut decision = gate::decide(&inputs);
            if let Verdict::Publish { hotkey } = &decision.verdict
                && let Some(unfit) = self.unfit(model_dir, hotkey, &rows)?
            {
                inputs.unfit = Some(unfit);
                decision = gate::decide(&inputs);
            }
            let num_steps = candidate.losses.len();
            let next = look::next_look(num_steps, max_steps);
            let until_next = started.elapsed().mul_f64(next as f64 / num_steps as f64);
            let is_last = decision.settled;
            let cut_short = !is_last && allowed.is_some_and(|allowed| until_next > allowed);
            if is_last || cut_short {
                return Ok(Judging::Judged(Box::new(Judged {
                    decision,
                    pages: offsets,
                    seconds: started.elapsed().as_secs_f64(),
                    cut_short,
                    candidate_block: gate::roster::candidate_block(&snapshot, 0),
                    roster,
                    models: inputs.models,
                    candidate,
                    rules: rules.clone(),
                })));
            }
        }
    }

    /// Why validators would not take a model, or count all its losses as infinite; warns of what is no reason yet.
    fn unfit(&self, model_dir: &Path, hotkey: &str, rows: &[Vec<u32>]) -> Result<Option<String>> {
        if self.resolved.recipe.hub.repo.is_none() {
            return Ok(None);
        }
        let found = sanity::examine(&self.order(model_dir, hotkey)?, &self.resolved.rules, rows)?;
        found.warnings.iter().for_each(|warning| self.printer.warn(warning));
        Ok((!found.refusals.is_empty()).then(|| found.refusals.join(" ")))
    }

    /// Scores the roster's models on the first rows, each while the next is downloaded.
    fn bring_and_score(
        &self,
        roster: &Roster,
        rivals: &mut Vec<Rival>,
        rows: &[Vec<u32>],
        num_batches: &[usize],
    ) -> Result<ControlFlow<()>> {
        let entries = roster.entries.iter();
        let wanted: Vec<Wanted<'_>> =
            entries.map(|Entry { uid, hotkey, metadata, .. }| Wanted { uid: *uid, hotkey, metadata }).collect();
        field::bring_ahead(&self.network, &self.resolved.rules, &wanted, |competitor| {
            let entry = roster.entries[rivals.len()].clone();
            let mut rival = [Rival { entry, competitor, losses: Ok(Vec::new()) }];
            let scored = self.score_again(&mut rival, rows, num_batches);
            rivals.extend(rival);
            scored
        })
    }

    /// Scores models on further rows; breaks off if an orderly end was asked for.
    fn score_again(&self, rivals: &mut [Rival], rows: &[Vec<u32>], num_batches: &[usize]) -> Result<ControlFlow<()>> {
        for rival in rivals {
            let losses = field::losses_of(&rival.competitor, &self.scoring, &self.network.losses, rows)?;
            let Some(losses) = losses else { return Ok(ControlFlow::Break(())) };
            match (&mut rival.losses, losses) {
                (Ok(all), Ok(losses)) => all.extend(by_step(losses, num_batches)),
                (all, Err(reason)) => *all = Err(reason),
                (Err(_), Ok(_)) => {}
            }
        }
        Ok(ControlFlow::Continue(()))
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

    /// How long the fewest steps that can decide anything take.
    pub fn shortest(&self) -> Duration {
        let num_steps = self.pages.len().max(1) as f64;
        Duration::from_secs_f64(self.seconds * self.decision.least_steps as f64 / num_steps)
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
