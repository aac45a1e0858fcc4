//! A model against the field: fresh pages drawn, everybody scored on them, the gate asked, the answer kept, and, where it
//! is yes, the model published.
//!
//! A run asks at its interval and at its end; `assay publish --gate` asks once. Whatever goes wrong with hub or chain is
//! told and never ends a run: the model is on disk, and the next time comes.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::chain::{Chain, Hotkey, Snapshot};
use crate::data::Opened;
use crate::data::pages::Pages;
use crate::error::Failure;
use crate::field::{self, Competitor, mean_and_error};
use crate::figures::count;
use crate::gate::roster::Roster;
use crate::gate::{self, Candidate, Decision, Inputs, Model, OwnHotkey, Verdict};
use crate::hub::fetch::publishable_hash;
use crate::metrics::printer::Printer;
use crate::metrics::table::table;
use crate::model::LossAndGradients;
use crate::network::{self, Network};
use crate::ops::random;
use crate::publish::journal::Hold;
use crate::publish::{self, Order, Published};
use crate::recipe::{PublishMode, Resolved};
use crate::score::duel::{Contender, tallies};
use crate::score::weights::softmax;
use crate::train::session::Session;
use crate::whole_file;

/// Folder of the records in a run's folder.
pub const RECORDS_DIR: &str = "gate";
/// Which step of the run was published last.
const PUBLISHED_FILE: &str = "published.json";

/// Scores a model on rows; `None` if an orderly end was asked for.
pub type ScoreCandidate<'a> = &'a mut dyn FnMut(&[Vec<u32>]) -> Result<Option<Vec<f64>>>;

/// The field of a recipe, and the means to judge a model against it.
pub struct Contest<'a> {
    resolved: &'a Resolved,
    network: Network,
    pages: Pages,
    printer: &'a Printer,
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
    epsilon: f64,
    temperature: f64,
}

impl<'a> Contest<'a> {
    /// Opens hub, chain and pages; an embedded network that is missing is made.
    pub fn open(resolved: &'a Resolved, data: &Opened, printer: &'a Printer) -> Result<Self> {
        let recipe = &resolved.recipe;
        let pages = Pages::read(data, recipe.score.page_documents, resolved.rules.criteria.sequence_length)?;
        let network = Network::open_or_make(&recipe.hub, &recipe.chain, printer)?;
        Ok(Self { resolved, network, pages, printer })
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
            let Some(losses) = field::losses_of(&competitor, recipe.model.backend, &rows)? else { return Ok(None) };
            models.push(Model { entry: entry.clone(), losses: losses.map(|losses| by_step(losses, &num_batches)) });
        }
        let inputs = Inputs {
            rules,
            options: &recipe.gate,
            block: snapshot.block,
            tempo: snapshot.tempo,
            leader: roster.leader,
            models,
            own,
            candidate,
            num_tested,
        };
        let decision = gate::decide(&inputs);
        Ok(Some(Judged {
            decision,
            pages: draws.into_iter().map(|draw| draw.offsets).collect(),
            candidate_block: gate::roster::candidate_block(&snapshot, 0),
            roster,
            models: inputs.models,
            candidate: inputs.candidate,
            epsilon: rules.epsilon,
            temperature: rules.validator.temperature,
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

    /// Publishes what the gate has let through, unless the field has changed since.
    fn publish(&self, model_dir: &Path, judged: &Judged, hold: &Hold) -> Result<Published> {
        let recipe = &self.resolved.recipe;
        let order = Order {
            model_dir,
            repo_id: recipe.hub.repo.as_deref().context("hub.repo is missing")?,
            hotkey: &hold.hotkey,
            criteria: &self.resolved.rules.criteria,
        };
        let still_right = |snapshot: &Snapshot| {
            let roster = Roster::of(snapshot, &recipe.chain.hotkeys);
            match roster.fingerprint() == judged.roster.fingerprint() {
                true => Ok(()),
                false => Err("the field has changed since the decision, which must be made anew".to_owned()),
            }
        };
        publish::publish(&self.network, &order, hold, &still_right, self.printer)
    }
}

/// What a run should know at its start: whether its hotkeys are registered, and when they may commit.
fn first_lines(chain: &dyn Chain, hotkeys: &[Hotkey]) -> Result<Vec<String>> {
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
        let flat = |losses: &[Vec<f64>]| -> Vec<f64> { losses.iter().flatten().copied().collect() };
        let candidate = flat(&self.candidate.losses);
        let losses: Vec<Vec<f64>> = (self.models.iter())
            .map(|model| model.losses.as_deref().map_or_else(|_| vec![f64::INFINITY; candidate.len()], flat))
            .chain([candidate.clone()])
            .collect();
        let blocks = self.models.iter().map(|model| model.entry.metadata.block.get()).chain([self.candidate_block]);
        let contenders: Vec<_> =
            std::iter::zip(blocks, &losses).map(|(block, losses)| Contender { block: Some(block), losses }).collect();
        let tallies = tallies(&contenders, candidate.len(), self.epsilon);
        let rates: Vec<f64> = tallies.iter().map(|tally| tally.win_rate).collect();
        let weights = softmax(&rates, self.temperature);
        let names = self.models.iter().map(|model| {
            let entry = &model.entry;
            [entry.uid.to_string(), entry.metadata.id.repo_id(), count(entry.metadata.block.get())]
        });
        let names = names.chain([["-".to_owned(), "this model".to_owned(), "next".to_owned()]]);
        let rows: Vec<Vec<String>> = names
            .enumerate()
            .map(|(index, [uid, name, block])| {
                let (mean, error) = mean_and_error(&losses[index]);
                let error = if error.is_finite() { format!("{error:.4}") } else { String::new() };
                let (rate, wins) = (tallies[index].win_rate, count(tallies[index].wins));
                let weight = weights[index];
                vec![uid, name, block, format!("{mean:.4}"), error, format!("{rate:.3}"), wins, format!("{weight:.4}")]
            })
            .collect();
        table(&COLUMNS, &rows)
    }

    /// Mean loss of the candidate over all batches.
    pub fn candidate_loss(&self) -> f64 {
        mean_and_error(&self.candidate.losses.concat()).0
    }
}

/// The columns of a comparison.
pub const COLUMNS: [&str; 8] = [" uid", "model", " block", " loss", " ±", " win rate", " wins", " weight"];

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

/// The contest of a training run: when it is asked, what is kept, what is done.
pub struct RunContest<'a> {
    contest: Contest<'a>,
    records_dir: PathBuf,
    holds: Vec<Hold>,
    last_step: Option<u64>,
}

/// What came of one asking.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Mean loss of the candidate.
    pub loss: f64,
    /// For the run's last words.
    pub sentence: String,
    /// What kept the model from being published although it should have been, or from being judged.
    pub failure: Option<anyhow::Error>,
}

impl<'a> RunContest<'a> {
    /// Opens the contest that a recipe asks for, and says whether its hotkeys can publish; `None` if it asks for none.
    pub fn open(resolved: &'a Resolved, data: &Opened, printer: &'a Printer) -> Result<Option<Self>> {
        if resolved.recipe.score.every == 0 {
            return Ok(None);
        }
        let contest = Contest::open(resolved, data, printer)?;
        let records_dir = resolved.run_dir.join(RECORDS_DIR);
        let mut run = Self { contest, records_dir, holds: Vec::new(), last_step: None };
        if resolved.publishes() {
            first_lines(run.contest.network.chain.as_ref(), &resolved.recipe.chain.hotkeys)?
                .iter()
                .for_each(|line| printer.note(line));
            run.take_holds();
        }
        Ok(Some(run))
    }

    /// Takes the right to publish under the own hotkeys, where no other run has it.
    fn take_holds(&mut self) {
        for hotkey in &self.contest.resolved.recipe.chain.hotkeys {
            if self.holds.iter().all(|hold| hold.hotkey != *hotkey) {
                match Hold::take(self.contest.network.chain.as_ref(), hotkey) {
                    Ok(hold) => self.holds.push(hold),
                    Err(error) => self.contest.printer.warn(&format!("{error:#}")),
                }
            }
        }
    }

    /// Whether the model of a step is to be judged and was not.
    pub fn is_due(&self, step: u64) -> bool {
        let recipe = &self.contest.resolved.recipe;
        let at_end = step == recipe.train.steps as u64;
        step > 0 && (at_end || step.is_multiple_of(recipe.score.every as u64)) && self.last_step != Some(step)
    }

    /// Judges a run's model as it is, which is on disk, keeps the record, and publishes where the gate opens and the recipe
    /// says so. `None` if an orderly end was asked for.
    pub fn ask(&mut self, session: &Session<'_>, model: &mut dyn LossAndGradients) -> Result<Option<Outcome>> {
        let step = session.place().step;
        self.last_step = Some(step);
        let mut score = |rows: &[Vec<u32>]| field::losses(model, session.arch(), session.params(), rows);
        match self.judge_and_act(step, &session.model_dir(), &mut score) {
            Ok(outcome) => Ok(outcome),
            Err(error) if crate::error::exit_code(&error) == 130 => Err(error),
            Err(error) => Ok(Some(self.failed("the model could not be judged", error))),
        }
    }

    fn failed(&self, what: &str, error: anyhow::Error) -> Outcome {
        self.contest.printer.warn(&format!("{what}: {error:#}"));
        Outcome { loss: f64::NAN, sentence: format!("Not published: {what}."), failure: Some(error) }
    }

    fn judge_and_act(&mut self, step: u64, model_dir: &Path, score: ScoreCandidate<'_>) -> Result<Option<Outcome>> {
        let seed = random::derive(random::derive_named(self.contest.resolved.recipe.train.seed, "pages"), step);
        let num_tested = self.num_tested(step)?;
        let Some(judged) = self.contest.judge(model_dir, seed, num_tested, score)? else { return Ok(None) };
        self.keep(step, &judged)?;
        let printer = self.contest.printer;
        printer.note(&format!(
            "step {step}: this model beside the published ones, on {} steps' pages",
            judged.pages.len()
        ));
        printer.note(&judged.table());
        printer.note(&judged.decision.paragraph());
        let loss = judged.candidate_loss();
        let Verdict::Publish { hotkey } = judged.decision.verdict.clone() else {
            return Ok(Some(Outcome { loss, sentence: "Not published: staying pays more.".to_owned(), failure: None }));
        };
        Ok(Some(Outcome { loss, ..self.act(step, model_dir, &judged, &hotkey)? }))
    }

    /// Publishes, or says why not.
    fn act(&mut self, step: u64, model_dir: &Path, judged: &Judged, hotkey: &str) -> Result<Outcome> {
        let not = |sentence: String| Ok(Outcome { sentence, ..Outcome::default() });
        match self.contest.resolved.recipe.publish.mode {
            Some(PublishMode::Never) => return not("Not published: publish.mode is never.".to_owned()),
            Some(PublishMode::Ask) if !self.contest.printer.ask("Publish this model?")? => {
                return not("Not published: nobody said yes.".to_owned());
            }
            _ => {}
        }
        self.take_holds();
        let Some(hold) = self.holds.iter().find(|hold| hold.hotkey == *hotkey) else {
            return not(format!("Not published: another process publishes under {hotkey}."));
        };
        match self.contest.publish(model_dir, judged, hold) {
            Ok(published) => {
                let id = published.metadata.id.to_string();
                let record = json!({"step": step, "id": id, "hotkey": hotkey, "block": published.metadata.block.get()});
                whole_file::write(&self.records_dir.join(PUBLISHED_FILE), record.to_string().as_bytes())?;
                let sentence = crate::commands::publish::sentence(&published, hotkey);
                self.contest.printer.note(&sentence);
                not(sentence)
            }
            Err(error) => match error.downcast_ref::<Failure>() {
                // The chain's no is no failure of the run: it says when to come again.
                Some(Failure::No(reason)) => {
                    let sentence = format!(
                        "Not published yet: {reason} To publish it by hand: assay publish {} --wait",
                        model_dir.display()
                    );
                    self.contest.printer.warn(&sentence);
                    not(sentence)
                }
                _ => Ok(self.failed("the model could not be published", error)),
            },
        }
    }

    /// The how many-th model of the run this is since one was published: the earlier ones have left their records.
    fn num_tested(&self, step: u64) -> Result<u64> {
        let read = |name: &str| fs::read(self.records_dir.join(name)).ok();
        let published = read(PUBLISHED_FILE)
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok()?["step"].as_u64())
            .unwrap_or(0);
        let Ok(entries) = fs::read_dir(&self.records_dir) else { return Ok(1) };
        let mut num_before = 0;
        for entry in entries {
            let name = entry.with_context(|| format!("cannot list {}", self.records_dir.display()))?.file_name();
            let recorded =
                name.to_str().and_then(|name| name.strip_prefix("step-")?.strip_suffix(".json")?.parse().ok());
            num_before += u64::from(recorded.is_some_and(|recorded: u64| published < recorded && recorded < step));
        }
        Ok(num_before + 1)
    }

    /// Keeps the record: `gate/step-….json`, and the same in words.
    fn keep(&self, step: u64, judged: &Judged) -> Result<()> {
        let dir = &self.records_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let record = json!({"step": step, "pages": judged.pages, "decision": judged.decision});
        let name = dir.join(format!("step-{step:08}"));
        whole_file::write(&name.with_extension("json"), &serde_json::to_vec_pretty(&record)?)?;
        let mut text = judged.decision.paragraph();
        write!(text, "\n\n{}\n", judged.table()).context("writing to a text does not fail")?;
        whole_file::write(&name.with_extension("txt"), text.as_bytes())
    }
}
