//! The contest of a training run: when its model is judged beside the published ones, what is kept of that, what is done.
//!
//! Whatever goes wrong with hub or chain is told and never ends a run: the model is on disk, and the next time comes.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::session::Session;
use crate::contest::{Contest, Judged, Judging, ScoreCandidate, check_hub, first_lines};
use crate::data::Opened;
use crate::error::{Failure, failure};
use crate::field;
use crate::figures::duration;
use crate::gate::Verdict;
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::ops::random;
use crate::placement::Placement;
use crate::publish::card::Losses;
use crate::publish::journal::Hold;
use crate::publish::repair;
use crate::recipe::{PublishMode, Resolved};
use crate::whole_file;

/// Folder of the records in a run's folder.
pub const RECORDS_DIR: &str = "gate";
/// Which step of the run was published last.
const PUBLISHED_FILE: &str = "published.json";
/// How many seconds scoring has taken.
const SPENT_FILE: &str = "spent.json";

/// The contest of a training run: when it is asked, what is kept, what is done.
pub struct RunContest<'a> {
    contest: Contest<'a>,
    records_dir: PathBuf,
    holds: Vec<Hold>,
    last_step: Option<u64>,
    /// Seconds that scoring has taken in this run so far, with those of earlier processes.
    seconds: f64,
    /// How long a judging takes at the least, as far as one was tried.
    needed: Option<Duration>,
}

/// What came of one asking.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Mean loss of the candidate; not a number if it was not judged.
    pub loss: f64,
    /// The part of the run's time so far that scoring has taken.
    pub share: f64,
    /// For the run's last words.
    pub sentence: String,
    /// What kept the model from being published although it should have been, or from being judged.
    pub failure: Option<anyhow::Error>,
}

/// What came of judging and acting once.
enum Tried {
    Done(Outcome),
    FieldChanged,
    Interrupted,
}

/// How often a model is judged anew because the field has changed.
const MOST_TRIES: usize = 3;

impl<'a> RunContest<'a> {
    /// Opens the contest that a recipe asks for, and says whether its hotkeys can publish; `None` if it asks for none.
    pub fn open(
        resolved: &'a Resolved,
        placement: &Placement,
        data: &Opened,
        printer: &'a Printer,
    ) -> Result<Option<Self>> {
        if resolved.recipe.score.every == 0 {
            return Ok(None);
        }
        let contest = Contest::open(resolved, placement, data, printer)?;
        let records_dir = resolved.run_dir.join(RECORDS_DIR);
        let seconds = spent(&records_dir);
        let mut run = Self { contest, records_dir, holds: Vec::new(), last_step: None, seconds, needed: None };
        if resolved.publishes() {
            let network = &run.contest.network;
            for line in first_lines(network)? {
                match line {
                    Ok(line) => printer.note(&line),
                    Err(warning) => printer.warn(&warning),
                }
            }
            check_hub(resolved, network, printer)?;
            // Now, while somebody is there who knows the passwords.
            network.hotkeys.iter().try_for_each(|hotkey| network.chain.unlock(hotkey))?;
            run.take_holds();
        }
        Ok(Some(run))
    }

    /// Takes the right to publish under the own hotkeys, where no other run has it.
    fn take_holds(&mut self) {
        for hotkey in &self.contest.network.hotkeys {
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
    pub fn ask(&mut self, session: &mut Session<'_>) -> Result<Option<Outcome>> {
        let step = session.place().step;
        self.last_step = Some(step);
        // Once the last step is done nothing waits for the judging any more.
        let training = session.place().seconds;
        let allowed = (!session.is_finished()).then(|| self.allowed(training));
        if let (Some(allowed), Some(needed)) = (allowed, self.needed)
            && needed > allowed
        {
            return Ok(Some(self.not_judged(step, needed, allowed)));
        }
        let (arch, scoring) = (&self.contest.resolved.arch, self.contest.scoring.clone());
        let model_dir = session.model_dir();
        session.make_room();
        let mut score = |rows: &[Vec<u32>]| field::losses(arch, &scoring, session.params()?, rows);
        // What an earlier publish could not show: nobody else may while this run holds the hotkeys.
        let Network { hub, chain, hotkeys, .. } = &self.contest.network;
        for hold in &self.holds {
            repair::show_held(hub.as_ref(), chain.as_ref(), hold, Some(hotkeys), self.contest.printer);
        }
        let started = Instant::now();
        let judged = self.judge_and_act(step, &model_dir, allowed, &mut score);
        // Whatever came of it.
        self.seconds += started.elapsed().as_secs_f64();
        self.keep_spent();
        let mut outcome = match judged {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Ok(None),
            // The run ends in its own order.
            Err(error) if matches!(failure(&error), Some(Failure::Interrupted(_))) => return Ok(None),
            Err(error) => self.failed("Not published, for the model could not be judged", error),
        };
        outcome.share = self.seconds / (self.seconds + training).max(f64::MIN_POSITIVE);
        Ok(Some(outcome))
    }

    /// How long scoring may take now, so that its part of all time stays within `score.budget`.
    fn allowed(&self, training_seconds: f64) -> Duration {
        let budget = self.contest.resolved.recipe.score.budget;
        let allowed = budget / (1.0 - budget) * training_seconds - self.seconds;
        Duration::try_from_secs_f64(allowed.max(0.0)).unwrap_or(Duration::MAX)
    }

    /// Keeps what scoring has taken, for the run that goes on. A disk that is full costs no more than that.
    fn keep_spent(&self) {
        let kept = fs::create_dir_all(&self.records_dir).map_err(anyhow::Error::from).and_then(|()| {
            whole_file::write(
                &self.records_dir.join(SPENT_FILE),
                json!({"seconds": self.seconds}).to_string().as_bytes(),
            )
        });
        if let Err(error) = kept {
            self.contest.printer.warn(&format!("the time that scoring took could not be kept: {error:#}"));
        }
    }

    fn not_judged(&self, step: u64, needed: Duration, allowed: Duration) -> Outcome {
        let sentence = format!(
            "step {step}: not judged: the fewest steps that decide anything take about {}, and score.budget ({}) leaves {}",
            duration(needed.as_secs_f64()),
            self.contest.resolved.recipe.score.budget,
            duration(allowed.as_secs_f64())
        );
        self.contest.printer.note(&sentence);
        Outcome { loss: f64::NAN, ..Outcome::default() }
    }

    fn failed(&self, what: &str, error: anyhow::Error) -> Outcome {
        let sentence = format!("{what}: {error:#}");
        self.contest.printer.warn(&sentence);
        Outcome { loss: f64::NAN, sentence, failure: Some(error), ..Outcome::default() }
    }

    /// Judges and acts; anew where the field has changed between the two, whose known losses cost nothing then.
    fn judge_and_act(
        &mut self,
        step: u64,
        model_dir: &Path,
        allowed: Option<Duration>,
        score: ScoreCandidate<'_>,
    ) -> Result<Option<Outcome>> {
        for _ in 0..MOST_TRIES {
            match self.try_once(step, model_dir, allowed, &mut *score)? {
                Tried::Done(outcome) => return Ok(Some(outcome)),
                Tried::Interrupted => return Ok(None),
                Tried::FieldChanged => {
                    self.contest.printer.note("The field has changed since the decision, which is made anew.");
                }
            }
        }
        let sentence = format!("Not published: the field changed {MOST_TRIES} times between decision and commitment.");
        Ok(Some(Outcome { loss: f64::NAN, sentence, ..Outcome::default() }))
    }

    fn try_once(
        &mut self,
        step: u64,
        model_dir: &Path,
        allowed: Option<Duration>,
        score: ScoreCandidate<'_>,
    ) -> Result<Tried> {
        let seed = random::derive(random::derive_named(self.contest.resolved.recipe.train.seed, "pages"), step);
        let num_tested = self.num_tested(step)?;
        let judged = match self.contest.judge(model_dir, seed, num_tested, allowed, score)? {
            Judging::Judged(judged) => judged,
            Judging::TooLong { needed } => {
                self.needed = Some(needed);
                return Ok(Tried::Done(self.not_judged(step, needed, allowed.unwrap_or_default())));
            }
            Judging::Interrupted => return Ok(Tried::Interrupted),
        };
        self.needed = Some(judged.shortest());
        let table = judged.table();
        self.keep(step, &judged, &table)?;
        let printer = self.contest.printer;
        printer.note(&format!(
            "step {step}: this model beside the published ones, on {} steps' pages, in {}{}",
            judged.pages.len(),
            duration(judged.seconds),
            if judged.cut_short { ", which score.budget cut short" } else { "" }
        ));
        if !judged.pages.is_empty() {
            printer.note(&table);
        }
        printer.note(&judged.decision.paragraph());
        let loss = judged.candidate_loss();
        let Verdict::Publish { hotkey } = judged.decision.verdict.clone() else {
            let sentence = format!("Not published. {}", judged.decision.reason);
            return Ok(Tried::Done(Outcome { loss, sentence, ..Outcome::default() }));
        };
        let acted = self.act(step, model_dir, &judged, &hotkey)?;
        Ok(acted.map_or(Tried::FieldChanged, |outcome| Tried::Done(Outcome { loss, ..outcome })))
    }

    /// Publishes, or says why not; `None`: the field has changed since the decision.
    fn act(&mut self, step: u64, model_dir: &Path, judged: &Judged, hotkey: &str) -> Result<Option<Outcome>> {
        let not = |sentence: String| Ok(Some(Outcome { sentence, ..Outcome::default() }));
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
        match self.contest.publish(model_dir, judged, hold, false) {
            Ok(None) => Ok(None),
            Ok(Some(published)) => {
                let id = published.metadata.id.to_string();
                let record = json!({"step": step, "id": id, "hotkey": hotkey, "block": published.metadata.block.get()});
                let kept = whole_file::write(&self.records_dir.join(PUBLISHED_FILE), record.to_string().as_bytes());
                if let Err(error) = kept {
                    self.contest.printer.warn(&format!("that the model was published could not be noted: {error:#}"));
                }
                let sentence = published.sentence(hotkey);
                self.contest.printer.note(&sentence);
                not(sentence)
            }
            Err(error) => match failure(&error) {
                // The chain's no is no failure of the run: it says when to come again.
                Some(Failure::No(reason)) => {
                    let sentence = format!(
                        "Not published yet: {reason} To ask again by hand: assay publish {} --gate --wait --recipe RECIPE",
                        model_dir.display()
                    );
                    self.contest.printer.warn(&sentence);
                    not(sentence)
                }
                _ => Ok(Some(self.failed("The publish came to no end", error))),
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
    fn keep(&self, step: u64, judged: &Judged, table: &str) -> Result<()> {
        let dir = &self.records_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let record = json!({
            "step": step,
            "seconds": judged.seconds,
            "cut_short": judged.cut_short,
            "pages": judged.pages,
            "decision": judged.decision,
            "losses": judged.losses(),
        });
        let name = dir.join(format!("step-{step:08}"));
        whole_file::write(&name.with_extension("json"), &serde_json::to_vec_pretty(&record)?)?;
        let mut text = judged.decision.paragraph();
        write!(text, "\n\n{table}\n").context("writing to a text does not fail")?;
        whole_file::write(&name.with_extension("txt"), text.as_bytes())
    }
}

/// How the model of a step did beside the published ones, where the run's record tells.
pub fn losses_at(run_dir: &Path, step: u64) -> Option<Losses> {
    let record = fs::read(run_dir.join(RECORDS_DIR).join(format!("step-{step:08}.json"))).ok()?;
    let mut record: serde_json::Value = serde_json::from_slice(&record).ok()?;
    serde_json::from_value(record["losses"].take()).ok()
}

/// Seconds that scoring has taken in a run so far; 0 if that is not known.
fn spent(dir: &Path) -> f64 {
    let read = || -> Option<f64> {
        let bytes = fs::read(dir.join(SPENT_FILE)).ok()?;
        serde_json::from_slice::<serde_json::Value>(&bytes).ok()?["seconds"].as_f64()
    };
    read().filter(|seconds| seconds.is_finite() && *seconds >= 0.0).unwrap_or(0.0)
}
