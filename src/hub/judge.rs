//! Holds a model folder against the criteria: one judgement for inspecting, fetching and publishing.
//!
//! Only headers and the configuration are read. Sizes and hashes of files are the caller's affair: what counts as the
//! repository differs from one caller to the next.

use std::path::Path;

use crate::figures::count;
use crate::model::QUERY_KEY_NORMS;
use crate::model::arch::Unused;
use crate::model::config::{self, ModelConfig};
use crate::model::layout::Layout;
use crate::model::weights::ModelFiles;
use crate::rules::Criteria;

/// What a reason means for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Validators do not take it.
    Refused,
    /// Validators take it, and its loss on every full row is infinite.
    Infinite,
    /// Validators may well take it; this program cannot read it.
    NotImplemented,
}

/// Something that speaks against a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What it means.
    pub verdict: Verdict,
    /// What it is, for the user.
    pub sentence: String,
}

/// What was found about a model folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Class name in transformers; `None` if it cannot be told.
    pub class: Option<&'static str>,
    /// Number of parameters, a tied head counted once; `None` if the model cannot be read.
    pub parameters: Option<u64>,
    /// What speaks against it; nothing, if it meets the criteria.
    pub reasons: Vec<Reason>,
    /// What is worth knowing but no reason, a sentence each.
    pub notes: Vec<String>,
}

/// Judges a model folder. What cannot be read is a reason, not an error: the files are strangers'.
pub fn judge(dir: &Path, criteria: &Criteria) -> Judgement {
    let mut judgement = Judgement { class: config::class_in(dir), ..Judgement::default() };
    if let Some(class) = judgement.class.filter(|class| !criteria.architectures.contains(class)) {
        let allowed = criteria.architectures.join(", ");
        judgement.add(
            Verdict::Refused,
            format!("The architecture {class} is not allowed by the rules; allowed are {allowed}."),
        );
    }
    let config = match ModelConfig::read(dir) {
        Ok(config) => config,
        Err(error) => {
            let is_implemented = config::not_implemented_in(dir).is_none();
            let verdict = if is_implemented { Verdict::Refused } else { Verdict::NotImplemented };
            judgement.add(verdict, sentence(&error));
            return judgement;
        }
    };
    let scored = criteria.sequence_length;
    if let Some(longest) = config.arch.longest_scored_row().filter(|longest| *longest < scored) {
        judgement.add(
            Verdict::Infinite,
            format!(
                "The model reads {longest} tokens at most; rows of {scored} are scored, so that every loss would be infinite."
            ),
        );
    }
    if config.arch.unused == Unused::QueryKeyNorms {
        judgement.add(Verdict::Infinite, format!("Every loss is infinite: {QUERY_KEY_NORMS}."));
    }
    judgement.notes.extend(config.arch.quirk(scored));
    let layout = Layout::of(&config.arch);
    match ModelFiles::open(dir, &config.arch, &layout) {
        Err(error) => judgement.add(Verdict::Refused, sentence(&error)),
        Ok(files) => {
            let num_parameters = layout.len() as u64;
            judgement.parameters = Some(num_parameters);
            judgement.notes.extend(files.notes);
            if num_parameters > criteria.max_parameters {
                let (actual, limit) = (count(num_parameters), count(criteria.max_parameters));
                let over = count(num_parameters - criteria.max_parameters);
                judgement.add(
                    Verdict::Refused,
                    format!("The model has {actual} parameters; the limit is {limit} ({over} too many)."),
                );
            }
        }
    }
    judgement
}

impl Judgement {
    fn add(&mut self, verdict: Verdict, sentence: String) {
        self.reasons.push(Reason { verdict, sentence });
    }

    /// The sentences of all reasons with a verdict, one after the other; `None` if there are none.
    pub fn sentences(&self, verdict: Verdict) -> Option<String> {
        let sentences = self.reasons.iter().filter(|reason| reason.verdict == verdict);
        let sentences: Vec<_> = sentences.map(|reason| reason.sentence.as_str()).collect();
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }
}

/// An error as a sentence.
pub(super) fn sentence(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    if text.ends_with('.') { text } else { text + "." }
}
