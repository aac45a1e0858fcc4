//! A model against the field: fresh pages drawn, everybody scored on them, the gate asked, and, where its answer is yes,
//! the model published, unless the field has changed since.
//!
//! A run asks at its interval (`train/run_contest.rs`), `assay publish --gate` asks once.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::chain::places::Places;
use crate::chain::standing;
use crate::chain::{Hotkey, Snapshot};
use crate::data::Opened;
use crate::data::pages::PageSource;
use crate::error::{Failure, failure, input};
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
use crate::publish::card::{self, Losses};
use crate::publish::journal::Hold;
use crate::publish::request::{self, DecidedOn, Request};
use crate::publish::{self, Order, Published, sanity};
use crate::recipe::Resolved;
use crate::rules::Rules;
use crate::score::comparison::{self, Compared, mean_and_error};
use crate::score::pages;

/// Scores a model on rows; `None` if an orderly end was asked for.
pub type ScoreCandidate<'a> = &'a mut dyn FnMut(&[Vec<u32>]) -> Result<Option<Vec<f64>>>;

/// Pages that share nothing, without which steps say nothing of how much luck varies.
const FEWEST_DISTINCT_PAGES: u64 = 10;

/// The field of a recipe, and the means to judge a model against it.
pub struct Contest<'a> {
    /// The recipe.
    pub resolved: &'a Resolved,
    /// Hub and chain.
    pub network: Network,
    /// How it scores.
    pub scoring: Scoring,
    pages: Box<dyn PageSource>,
    /// Where it tells what it does.
    pub printer: &'a Printer,
    places: RefCell<Places>,
}

/// A decision and what it rests on.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What the gate says.
    pub decision: Decision,
    /// The first document of each page, step by step.
    pub pages: Vec<Vec<usize>>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Those of them that models were scored in: not their downloads.
    scoring_seconds: f64,
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
    },
    /// Nothing: an orderly end was asked for.
    Interrupted,
}

/// Rows that everybody is scored on.
struct Batch {
    rows: Vec<Vec<u32>>,
    /// How many of them belong to each step.
    num_batches: Vec<usize>,
    /// When to break off.
    until: Option<Instant>,
}

/// Why scoring breaks off.
enum End {
    /// An orderly end was asked for.
    Wanted,
    OutOfTime,
}

/// A published model that is being scored.
struct Rival {
    entry: Entry,
    competitor: Competitor,
    losses: Result<Vec<Vec<f64>>, String>,
}

impl<'a> Contest<'a> {
    /// Opens hub, chain and pages; an embedded network that is missing is made.
    pub fn open(resolved: &'a Resolved, placement: &Placement, data: &Opened, printer: &'a Printer) -> Result<Self> {
        let recipe = &resolved.recipe;
        let dtype = resolved.rules.criteria.dtype;
        let scoring = Scoring { placement: placement.clone(), backend: recipe.model.backend, dtype };
        let pages = pages::of_candidate(resolved, data, printer)?;
        if pages.num_distinct() < FEWEST_DISTINCT_PAGES {
            return Err(input(format!(
                "the documents to score on are {} pages of {}, and a decision on fewer than {FEWEST_DISTINCT_PAGES} would rest on \
                 the same text again and again: hold out more (data.held_out), or set score.page_documents lower",
                pages.num_distinct(),
                recipe.score.page_documents
            )));
        }
        let network = Network::open_or_make(&recipe.hub, &recipe.chain, printer)?;
        Ok(Self { resolved, network, scoring, pages, printer, places: RefCell::default() })
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
        self.tell_of_places(&snapshot);
        let roster = Roster::of(&snapshot, &self.network.hotkeys);
        let num_pages = recipe.score.pages.unwrap_or(rules.validator.pages_per_step);
        let max_steps = recipe.gate.max_pages.map_or(100, |max_pages| (max_pages / num_pages).max(1));
        let own = self.own_hotkeys(&snapshot)?;
        let fewest_steps = look::least_steps(gate::alpha(&recipe.gate, num_tested, own.len()), &recipe.gate);
        let mut inputs = Inputs {
            rules,
            options: &recipe.gate,
            snapshot: &snapshot,
            models: Vec::new(),
            own,
            candidate: Candidate { hash: publishable_hash(model_dir)?, losses: Vec::new() },
            num_tested,
            max_steps,
            // What the folder shows is known before anything is scored, and what the model writes once it would be published.
            unfit: self.refusal(model_dir, None)?,
        };
        let judged = |inputs: Inputs<'_>, decision, pages, cut_short, scoring: Duration| Judged {
            decision,
            pages,
            seconds: started.elapsed().as_secs_f64(),
            scoring_seconds: scoring.as_secs_f64(),
            cut_short,
            candidate_block: gate::roster::candidate_block(&snapshot, 0),
            roster: roster.clone(),
            models: inputs.models,
            candidate: inputs.candidate,
            rules: rules.clone(),
        };
        if inputs.unfit.is_some() {
            let decision = gate::decide(&inputs);
            return Ok(Judging::Judged(Box::new(judged(inputs, decision, Vec::new(), false, Duration::ZERO))));
        }

        let mut rivals: Vec<Rival> = Vec::new();
        let mut pages = Vec::new();
        let mut scoring = Duration::ZERO;
        loop {
            let num_steps = inputs.candidate.losses.len();
            let steps = num_steps..look::next_look(num_steps, max_steps);
            let seeds: Vec<u64> = steps.map(|step| random::derive(seed, step as u64)).collect();
            let draws = self.pages.draws(num_pages, &seeds)?;
            let batch = Batch {
                num_batches: draws.iter().map(|draw| draw.rows.len()).collect(),
                rows: draws.iter().flat_map(|draw| draw.rows.iter().cloned()).collect(),
                // The first look is all that may turn out too long; of later ones that is known before.
                until: allowed.filter(|_| num_steps == 0).map(|allowed| started + allowed),
            };
            if let (Some(allowed), true) = (allowed, num_steps == 0) {
                let Some(a_row) = time_of_a_row(score, &batch.rows)? else { return Ok(Judging::Interrupted) };
                // Rivals are about as large as the candidate: what they may be is limited, and all go to the limit. Should
                // they be larger, the look ends where its time does.
                let rows_of_a_step = batch.rows.len() as f64 / draws.len() as f64;
                let needed = a_row.mul_f64(rows_of_a_step * (fewest_steps * (roster.entries.len() + 1)) as f64);
                if needed > allowed {
                    return Ok(Judging::TooLong { needed });
                }
            }
            let score_started = Instant::now();
            let Some(losses) = score(&batch.rows)? else { return Ok(Judging::Interrupted) };
            inputs.candidate.losses.extend(by_step(losses, &batch.num_batches));
            scoring += score_started.elapsed();
            let ended = match num_steps {
                0 => self.bring_and_score(&roster, &mut rivals, &batch, &mut scoring)?,
                _ => self.score_again(&mut rivals, &batch, &mut scoring)?,
            };
            self.network.losses.trouble().iter().for_each(|trouble| self.printer.warn(trouble));
            match ended {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(End::Wanted) => return Ok(Judging::Interrupted),
                ControlFlow::Break(End::OutOfTime) => {
                    // As if all rivals were like those that were scored.
                    let share = rivals.len().max(1) as f64 / roster.entries.len().max(1) as f64;
                    let steps = fewest_steps as f64 / draws.len() as f64;
                    return Ok(Judging::TooLong { needed: scoring.mul_f64(steps / share) });
                }
            }
            pages.extend(draws.into_iter().map(|draw| draw.offsets));

            let model = |Rival { entry, losses, .. }: &Rival| Model { entry: entry.clone(), losses: losses.clone() };
            inputs.models = rivals.iter().map(model).collect();
            let mut decision = gate::decide(&inputs);
            if let Verdict::Publish { .. } = &decision.verdict {
                inputs.unfit = self.refusal(model_dir, Some(&batch.rows))?;
                decision = gate::decide(&inputs);
            }
            let num_steps = inputs.candidate.losses.len();
            let next = look::next_look(num_steps, max_steps);
            let until_next = started.elapsed() + scoring.mul_f64((next - num_steps) as f64 / num_steps as f64);
            let cut_short = !decision.settled && allowed.is_some_and(|allowed| until_next > allowed);
            if decision.settled || cut_short {
                return Ok(Judging::Judged(Box::new(judged(inputs, decision, pages, cut_short, scoring))));
            }
        }
    }

    /// Why validators would not take a model: by its folder, or, if there are `rows`, by what it writes after them and the time
    /// that it takes them; what is no reason yet is a warning. `None` as well where nothing is published.
    fn refusal(&self, model_dir: &Path, rows: Option<&[Vec<u32>]>) -> Result<Option<String>> {
        let (Some(_), Some(hotkey)) = (&self.resolved.recipe.hub.repo, self.network.hotkeys.first()) else {
            return Ok(None);
        };
        let found = match rows {
            None => sanity::of_folder(&self.order(model_dir, hotkey)?)?,
            Some(rows) => sanity::of_model(model_dir, &self.resolved.rules, rows)?,
        };
        found.warnings.iter().for_each(|warning| self.printer.warn(warning));
        Ok((!found.refusals.is_empty()).then(|| found.refusals.join(" ")))
    }

    /// Scores the roster's models on the first rows, each while the next is downloaded.
    fn bring_and_score(
        &self,
        roster: &Roster,
        rivals: &mut Vec<Rival>,
        batch: &Batch,
        scoring: &mut Duration,
    ) -> Result<ControlFlow<End>> {
        let entries = roster.entries.iter();
        let wanted: Vec<Wanted<'_>> =
            entries.map(|Entry { uid, hotkey, metadata, .. }| Wanted { uid: *uid, hotkey, metadata }).collect();
        field::bring_ahead(&self.network, &self.resolved.rules, &wanted, |competitor| {
            let entry = roster.entries[rivals.len()].clone();
            let mut rival = [Rival { entry, competitor, losses: Ok(Vec::new()) }];
            let ended = self.score_again(&mut rival, batch, scoring);
            rivals.extend(rival);
            ended
        })
    }

    /// Scores models on further rows; breaks off where an orderly end was asked for, or the time is over.
    fn score_again(&self, rivals: &mut [Rival], batch: &Batch, scoring: &mut Duration) -> Result<ControlFlow<End>> {
        for rival in rivals {
            let score_started = Instant::now();
            let losses = field::losses_of(&rival.competitor, &self.scoring, &self.network.losses, &batch.rows)?;
            *scoring += score_started.elapsed();
            let Some(losses) = losses else { return Ok(ControlFlow::Break(End::Wanted)) };
            match (&mut rival.losses, losses) {
                (Ok(all), Ok(losses)) => all.extend(by_step(losses, &batch.num_batches)),
                (all, Err(reason)) => *all = Err(reason),
                (Err(_), Ok(_)) => {}
            }
            if batch.until.is_some_and(|until| Instant::now() > until) {
                return Ok(ControlFlow::Break(End::OutOfTime));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Warns of what has become of the own places since the last look.
    fn tell_of_places(&self, snapshot: &Snapshot) {
        let changes = self.places.borrow_mut().changes(snapshot, &self.network.hotkeys);
        changes.iter().for_each(|change| self.printer.warn(change));
    }

    /// The own hotkeys that are registered.
    fn own_hotkeys(&self, snapshot: &Snapshot) -> Result<Vec<OwnHotkey>> {
        let mut own = Vec::new();
        for hotkey in &self.network.hotkeys {
            let next = self.network.chain.next_commit_block(hotkey)?;
            own.extend(OwnHotkey::of(snapshot, hotkey, next));
        }
        Ok(own)
    }

    /// What is to be published under a hotkey.
    pub fn order<'b>(&'b self, model_dir: &'b Path, hotkey: &'b str) -> Result<Order<'b>> {
        let repo_id = self.resolved.recipe.hub.repo.as_deref().context("hub.repo is missing")?;
        Ok(Order {
            model_dir,
            repo_id,
            hotkey,
            criteria: &self.resolved.rules.criteria,
            waits: false,
            visibility: self.resolved.recipe.publish.visibility,
            card: None,
            hashes: self.network.losses.hashes(),
        })
    }

    /// Uploads what the gate has let through, for another machine to commit.
    pub fn prepare(&self, model_dir: &Path, judged: &Judged, hold: &Hold) -> Result<Request> {
        let card = card::text(model_dir, Some(&judged.losses()));
        let order = Order { card: Some(&card), ..self.order(model_dir, &hold.hotkey)? };
        let decided_on = DecidedOn { own: self.network.hotkeys.clone(), roster: judged.roster.fingerprint() };
        request::prepare(&self.network, &order, hold, Some(decided_on), self.printer)
    }

    /// Publishes what the gate has let through; `None`: the field has changed since, and the decision must be made anew. It is
    /// looked at before anything is uploaded, and once more right before the commitment is sent.
    pub fn publish(&self, model_dir: &Path, judged: &Judged, hold: &Hold, waits: bool) -> Result<Option<Published>> {
        let card = card::text(model_dir, Some(&judged.losses()));
        let order = Order { waits, card: Some(&card), ..self.order(model_dir, &hold.hotkey)? };
        let has_changed = Cell::new(false);
        let still_right = |snapshot: &Snapshot| {
            let roster = Roster::of(snapshot, &self.network.hotkeys);
            has_changed.set(roster.fingerprint() != judged.roster.fingerprint());
            match has_changed.get() {
                false => Ok(()),
                true => Err("the field has changed since the decision".to_owned()),
            }
        };
        let snapshot = self.network.chain.snapshot()?;
        self.tell_of_places(&snapshot);
        if still_right(&snapshot).is_err() {
            return Ok(None);
        }
        match publish::publish(&self.network, &order, hold, &still_right, self.printer) {
            Err(_) if has_changed.get() => Ok(None),
            published => published.map(Some),
        }
    }
}

/// What a run should know at its start: whether its hotkeys are registered, and when they may commit; what stands in the
/// way is an `Err`.
pub fn first_lines(network: &Network) -> Result<Vec<Result<String, String>>> {
    let chain = network.chain.as_ref();
    let (snapshot, status) = (chain.snapshot()?, chain.status()?);
    let line = |hotkey: &Hotkey| -> Result<Vec<Result<String, String>>> {
        let Some(neuron) = snapshot.neuron(hotkey) else {
            return Ok(vec![Err(format!("nothing can be published: {}", chain.unregistered(hotkey)))]);
        };
        let when = match publish::wait_for_rate_limit(chain, hotkey)? {
            None => "it may commit now.".to_owned(),
            Some(wait) => wait.sentence(chain, hotkey),
        };
        let place = format!("The hotkey {hotkey} is uid {} on {}; {when}", neuron.uid, chain.describe());
        let warning = standing::warning(&snapshot, &status, chain.seconds_per_block(), hotkey, snapshot.block);
        Ok([Ok(place)].into_iter().chain(warning.map(Err)).collect())
    };
    Ok(network.hotkeys.iter().map(line).collect::<Result<Vec<_>>>()?.concat())
}

/// Checks that a run may write where its recipe has it publish. A hub that would not answer now may do so later, which is told.
pub fn check_hub(resolved: &Resolved, network: &Network, printer: &Printer) -> Result<()> {
    let Some(repo_id) = &resolved.recipe.hub.repo else { return Ok(()) };
    match network.hub.check_writable(repo_id) {
        Err(error) if matches!(failure(&error), Some(Failure::Unreachable(_))) => {
            printer.warn(&format!("{error:#}"));
            Ok(())
        }
        checked => checked,
    }
}

/// What a run would find, without making anything.
pub fn preview(resolved: &Resolved, printer: &Printer) -> Result<Vec<String>> {
    let (hub, chain) = (&resolved.recipe.hub, &resolved.recipe.chain);
    if network::needs_making(chain) {
        return Ok(vec![format!("Would make an embedded network around the ledger {}.", chain.ledger.display())]);
    }
    let network = Network::open(hub, chain, printer)?;
    if resolved.publishes() {
        check_hub(resolved, &network, printer)?;
    }
    let lines = first_lines(&network)?;
    Ok(lines.into_iter().map(|line| line.unwrap_or_else(|warning| warning)).collect())
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

    /// What the model's page tells of it.
    pub fn losses(&self) -> Losses {
        let num_pages = self.pages.iter().map(Vec::len).sum();
        Losses { table: self.table(), num_pages, block: self.candidate_block }
    }

    /// How long the fewest steps that can decide anything take.
    pub fn shortest(&self) -> Duration {
        let num_steps = self.pages.len().max(1) as f64;
        Duration::from_secs_f64(self.scoring_seconds * self.decision.least_steps as f64 / num_steps)
    }

    /// Mean loss of the candidate over all batches.
    pub fn candidate_loss(&self) -> f64 {
        mean_and_error(&self.candidate.losses.concat()).0
    }
}

/// How long the candidate takes for a row; `None` if an orderly end was asked for.
fn time_of_a_row(score: ScoreCandidate<'_>, rows: &[Vec<u32>]) -> Result<Option<Duration>> {
    let started = Instant::now();
    Ok(score(&rows[..rows.len().min(1)])?.map(|_| started.elapsed()))
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
