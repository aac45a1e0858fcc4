//! The contest of a training run: when its model is judged beside the published ones, what is kept of that, what is done.
//!
//! Whatever goes wrong with hub or chain is told and never ends a run: the model is on disk, and the next time comes.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::session::Session;
use crate::contest::{Contest, Judged, ScoreCandidate, first_lines};
use crate::data::Opened;
use crate::error::{Failure, failure};
use crate::field;
use crate::gate::Verdict;
use crate::metrics::printer::Printer;
use crate::ops::random;
use crate::placement::Placement;
use crate::publish::journal::Hold;
use crate::recipe::{PublishMode, Resolved};
use crate::whole_file;

/// Folder of the records in a run's folder.
pub const RECORDS_DIR: &str = "gate";
/// Which step of the run was published last.
const PUBLISHED_FILE: &str = "published.json";

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
    pub fn ask(&mut self, session: &mut Session<'_>) -> Result<Option<Outcome>> {
        let step = session.place().step;
        self.last_step = Some(step);
        let (arch, scoring) = (&self.contest.resolved.arch, self.contest.scoring.clone());
        let model_dir = session.model_dir();
        session.make_room();
        let mut score = |rows: &[Vec<u32>]| field::losses(arch, &scoring, session.params()?, rows);
        match self.judge_and_act(step, &model_dir, &mut score) {
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
        let table = judged.table();
        self.keep(step, &judged, &table)?;
        let printer = self.contest.printer;
        printer.note(&format!(
            "step {step}: this model beside the published ones, on {} steps' pages",
            judged.pages.len()
        ));
        printer.note(&table);
        printer.note(&judged.decision.paragraph());
        let loss = judged.candidate_loss();
        let Verdict::Publish { hotkey } = judged.decision.verdict.clone() else {
            let sentence = format!("Not published. {}", judged.decision.reason);
            return Ok(Some(Outcome { loss, sentence, failure: None }));
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
                let sentence = published.sentence(hotkey);
                self.contest.printer.note(&sentence);
                not(sentence)
            }
            Err(error) => match failure(&error) {
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
    fn keep(&self, step: u64, judged: &Judged, table: &str) -> Result<()> {
        let dir = &self.records_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let record = json!({"step": step, "pages": judged.pages, "decision": judged.decision});
        let name = dir.join(format!("step-{step:08}"));
        whole_file::write(&name.with_extension("json"), &serde_json::to_vec_pretty(&record)?)?;
        let mut text = judged.decision.paragraph();
        write!(text, "\n\n{table}\n").context("writing to a text does not fail")?;
        whole_file::write(&name.with_extension("txt"), text.as_bytes())
    }
}
