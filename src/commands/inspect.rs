//! `inspect DIR`: what a model folder is, its hash, and whether the subnet would accept it.
//!
//! Only headers and the configuration are read to judge the model; the files themselves are streamed once for the hash.
//! A folder that holds no readable model is reported on as well: its hash and size are what a validator would see.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::error::{Failure, input};
use crate::figures::count;
use crate::hub::fetch::publishable_files;
use crate::hub::hash::{directory_bytes, directory_hash};
use crate::hub::judge::{Judgement, Verdict, judge};
use crate::metrics::printer::Printer;
use crate::rules::{Criteria, Rules};

/// What was found; serialised, it is the object that `--json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Class name in transformers; `None` if it cannot be told.
    pub architecture: Option<String>,
    /// Number of parameters, a tied head counted once; `None` if the model cannot be read.
    pub parameters: Option<u64>,
    /// Sum of the sizes of all files.
    pub bytes: u64,
    /// The directory hash.
    pub hash: String,
    /// Whether the subnet would accept the model.
    pub ok: bool,
    /// Why it would not, a sentence each.
    pub reasons: Vec<String>,
    /// What is worth knowing but no reason, a sentence each.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// The same as `ok`, but for what cannot be told.
    #[serde(skip)]
    pub verdict: Accepted,
}

/// Whether the subnet would accept a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It would.
    Yes,
    /// It would not, or would find infinite losses.
    No,
    /// It may: nothing speaks against it but that this program cannot read such models.
    Unknown,
}

impl Accepted {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// Runs the command.
pub fn run(args: &InspectArgs, printer: &Printer) -> Result<()> {
    let mut criteria = args.block.map_or_else(Rules::default, Rules::at_block).criteria;
    criteria.sequence_length = args.sequence_length.unwrap_or(criteria.sequence_length);
    let report = inspect(&args.model, &criteria)?;
    printer.result(&if args.json { serde_json::to_string(&report)? } else { report.text() })?;
    match report.verdict {
        Accepted::Yes => Ok(()),
        Accepted::No => {
            Err(Failure::No("validators would not take this model, or every loss is infinite".into()).into())
        }
        Accepted::Unknown => {
            Err(Failure::No("whether validators would take this model is not known here".into()).into())
        }
    }
}

/// Looks at a model folder.
pub fn inspect(dir: &Path, limits: &Criteria) -> Result<Report> {
    if !dir.is_dir() {
        return Err(input(format!("{} is not a folder; name the folder that holds config.json.", dir.display())));
    }
    let (bytes, hash) = (directory_bytes(dir)?, directory_hash(dir)?);
    let Judgement { class, parameters, reasons, mut notes } = judge(dir, limits);
    let can_be_told = reasons.iter().any(|reason| reason.verdict != Verdict::NotImplemented);
    let mut reasons: Vec<String> = reasons.into_iter().map(|reason| reason.sentence).collect();
    let mut is_unknown = !reasons.is_empty() && !can_be_told;
    if parameters.is_some() {
        notes.extend(not_downloaded(dir));
    }
    if bytes > limits.max_repo_bytes {
        let (actual, limit) = (count(bytes), count(limits.max_repo_bytes));
        reasons.push(format!("The folder has {actual} bytes; a repository may have {limit}."));
        is_unknown = false;
    }
    let architecture = class.map(str::to_owned);
    let verdict = match (is_unknown, reasons.is_empty()) {
        (true, _) => Accepted::Unknown,
        (false, true) => Accepted::Yes,
        (false, false) => Accepted::No,
    };
    Ok(Report { architecture, parameters, bytes, hash, ok: reasons.is_empty(), reasons, notes, verdict })
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: &str| {
            writeln!(text, "{name:<13}{value}").expect("writing to a text does not fail");
        };
        row("architecture", self.architecture.as_deref().unwrap_or("unknown"));
        row("parameters", &self.parameters.map_or_else(|| "unknown".to_owned(), count));
        row("bytes", &count(self.bytes));
        row("hash", &self.hash);
        row("accepted", self.verdict.word());
        self.reasons.iter().for_each(|reason| row("", reason));
        self.notes.iter().for_each(|note| row("note", note));
        text
    }
}

/// A note if the folder holds files that validators do not download: the hash they compute leaves those out.
fn not_downloaded(dir: &Path) -> Option<String> {
    let known: BTreeSet<_> = publishable_files(dir).ok()?.into_iter().map(OsString::from).collect();
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.file_name());
    let others: BTreeSet<_> = entries.filter(|name| !known.contains(name)).collect();
    let names: Vec<_> = others.iter().take(5).map(|name| name.to_string_lossy()).collect();
    (!names.is_empty()).then(|| {
        let more = if others.len() > names.len() { " and more" } else { "" };
        let names = names.join(", ");
        format!("Validators do not download {names}{more}: the hash they compute is that of the folder without.")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;
    use crate::model::arch::Arch;
    use crate::model::config::{CONFIG_FILE, ModelConfig};
    use crate::model::layout::Layout;
    use crate::model::weights::{self, WEIGHTS_FILE};

    fn limits() -> Criteria {
        Criteria {
            max_parameters: 100_000,
            max_repo_bytes: 1_000_000,
            sequence_length: 64,
            architectures: &["GPT2LMHeadModel", "MistralForCausalLM"],
            ..Rules::default().criteria
        }
    }

    fn model() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let arch = Arch::gpt2(320, 64, 48, 2, 4);
        let layout = Layout::of(&arch);
        weights::save(dir.path(), &ModelConfig::new(arch, 0.0), &layout, &vec![0.5; layout.len()]).unwrap();
        dir
    }

    #[test]
    fn golden_models_are_reported_with_their_class_and_parameters() {
        let mut num_checked = 0;
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models")).unwrap() {
            let dir = entry.unwrap().path();
            if !dir.file_name().unwrap().to_str().unwrap().starts_with("gpt2") {
                continue;
            }
            let expected: Value =
                serde_json::from_str(&fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
            let report = inspect(&dir, &limits()).unwrap();
            assert_eq!(report.architecture.as_deref(), expected["class"].as_str());
            assert_eq!(report.parameters, expected["param_count"].as_u64());
            let sizes = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
            assert_eq!(report.bytes, sizes.sum::<u64>());
            assert_eq!(report.hash, directory_hash(&dir).unwrap());
            assert!(report.ok && report.reasons.is_empty(), "{:?}", report.reasons);
            assert!(report.notes.iter().any(|note| note.contains("expected.json")), "{:?}", report.notes);
            num_checked += 1;
        }
        assert!(num_checked > 0);
    }

    #[test]
    fn the_report_has_exactly_the_promised_keys() {
        let dir = model();
        let report = inspect(dir.path(), &limits()).unwrap();
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            json!({
                "architecture": "GPT2LMHeadModel",
                "parameters": 75_072,
                "bytes": report.bytes,
                "hash": report.hash,
                "ok": true,
                "reasons": [],
            })
        );
        let text = report.text();
        assert!(text.contains("parameters   75,072\n") && text.contains("accepted     yes\n"), "{text}");
    }

    #[test]
    fn limits_are_met_by_what_equals_them_and_broken_by_one_more() {
        let dir = model();
        let bytes = inspect(dir.path(), &limits()).unwrap().bytes;
        let exact = Criteria { max_parameters: 75_072, max_repo_bytes: bytes, ..limits() };
        assert!(inspect(dir.path(), &exact).unwrap().ok);
        for (limits, expected) in [
            (
                Criteria { max_parameters: 75_071, ..exact.clone() },
                "75,072 parameters; the limit is 75,071 (1 too many)",
            ),
            (Criteria { max_repo_bytes: bytes - 1, ..exact.clone() }, "a repository may have"),
            (Criteria { sequence_length: 65, ..exact.clone() }, "reads 64 tokens at most; rows of 65 are scored"),
            (Criteria { architectures: &["X"], ..exact }, "GPT2LMHeadModel is not allowed"),
        ] {
            let report = inspect(dir.path(), &limits).unwrap();
            assert!(!report.ok && report.reasons.len() == 1, "{:?}", report.reasons);
            assert!(report.reasons[0].contains(expected), "{:?}", report.reasons);
        }
    }

    #[test]
    fn a_folder_without_a_readable_model_still_has_a_hash_and_reasons() {
        let empty = tempfile::tempdir().unwrap();
        let report = inspect(empty.path(), &limits()).unwrap();
        assert_eq!((report.architecture, report.parameters, report.bytes), (None, None, 0));
        assert_eq!(report.hash, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert!(!report.ok && report.reasons[0].contains("config.json does not exist"), "{:?}", report.reasons);

        let damaged = model();
        fs::write(damaged.path().join(WEIGHTS_FILE), "no weights").unwrap();
        let report = inspect(damaged.path(), &limits()).unwrap();
        assert!(!report.ok && report.parameters.is_none());
        assert!(report.reasons[0].contains("no sound safetensors file"), "{:?}", report.reasons);

        fs::write(damaged.path().join(CONFIG_FILE), r#"{"model_type": "mistral", "hidden_act": "mish"}"#).unwrap();
        let report = inspect(damaged.path(), &limits()).unwrap();
        assert_eq!(report.architecture.as_deref(), Some("MistralForCausalLM"));
        assert!(!report.ok && report.reasons[0].contains("not implemented"), "{:?}", report.reasons);
        assert_eq!(report.verdict, Accepted::Unknown);
        assert!(report.text().contains("accepted     unknown\n"), "{}", report.text());
    }

    #[test]
    fn a_path_that_is_no_folder_is_the_users_mistake() {
        let error = inspect(Path::new("no/such/folder"), &limits()).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}
