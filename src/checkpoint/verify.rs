//! The manifest of a checkpoint: every file of its two folders with size and SHA-256. It is written last, so where it
//! is, everything else was on disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{MANIFEST_FILE, MOMENTS_FILE, STATE_DIR, STATE_FILE, step_name};
use crate::model::config::{CONFIG_FILE, GENERATION_FILE};
use crate::model::weights::{FileSum, HashedReader, WEIGHTS_FILE};

/// The version of the layout of a run folder.
const FORMAT: u32 = 1;
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

const MODEL_FILES: [&str; 3] = [CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE];
const STATE_FILES: [&str; 2] = [MOMENTS_FILE, STATE_FILE];

/// `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    step: u64,
    /// Files of the model folder.
    model: Vec<Entry>,
    /// Files of the state folder, but for the manifest.
    state: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: String,
    bytes: u64,
    sha256: String,
}

impl Manifest {
    pub(super) fn new(step: u64, model: Vec<(&str, FileSum)>, state: Vec<(&str, FileSum)>) -> Self {
        let entries = |sums: Vec<(&str, FileSum)>| {
            let entry =
                |(file, sum): (&str, FileSum)| Entry { file: file.to_owned(), bytes: sum.bytes, sha256: sum.sha256 };
            sums.into_iter().map(entry).collect()
        };
        Self { format: FORMAT, step, model: entries(model), state: entries(state) }
    }

    /// Reads the manifest of a step and checks that it is one: of this format and step, naming exactly our files.
    pub(super) fn read(run_dir: &Path, step: u64) -> Result<Self> {
        let path = state_path(run_dir, step).join(MANIFEST_FILE);
        let reader = HashedReader::open(&path);
        let bytes = reader.and_then(|mut reader| reader.read_bytes(reader.bytes().min(MAX_MANIFEST_BYTES)))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        ensure!(manifest.format == FORMAT, "{} has the unknown format {}", path.display(), manifest.format);
        let names = |entries: &[Entry]| entries.iter().map(|entry| entry.file.clone()).collect::<Vec<_>>();
        let sound =
            manifest.step == step && names(&manifest.model) == MODEL_FILES && names(&manifest.state) == STATE_FILES;
        ensure!(sound, "{} is damaged", path.display());
        Ok(manifest)
    }

    /// Sum of the sizes of all files but the manifest.
    pub(super) fn bytes(&self) -> u64 {
        self.model.iter().chain(&self.state).map(|entry| entry.bytes).sum()
    }

    /// Checks that every file has its size.
    pub(super) fn check_sizes(&self, run_dir: &Path) -> Result<()> {
        for (path, entry) in self.files(run_dir) {
            let actual = fs::metadata(&path).with_context(|| format!("{} cannot be read", path.display()))?.len();
            ensure!(actual == entry.bytes, "{} has {actual} bytes instead of {}", path.display(), entry.bytes);
        }
        Ok(())
    }

    /// Checks the sum of one file that was read.
    pub(super) fn check(&self, file: &str, sum: &FileSum) -> Result<()> {
        let mut entries = self.model.iter().chain(&self.state);
        let entry = entries.find(|entry| entry.file == file).with_context(|| format!("the manifest lacks {file}"))?;
        if entry.bytes != sum.bytes || entry.sha256 != sum.sha256 {
            bail!("{file} is not as it was written (its SHA-256 is {}, not {})", sum.sha256, entry.sha256);
        }
        Ok(())
    }

    fn files(&self, run_dir: &Path) -> impl Iterator<Item = (PathBuf, &Entry)> {
        let (model, state) = (run_dir.join(step_name(self.step)), state_path(run_dir, self.step));
        let model = self.model.iter().map(move |entry| (model.join(&entry.file), entry));
        model.chain(self.state.iter().map(move |entry| (state.join(&entry.file), entry)))
    }
}

pub(super) fn state_path(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(STATE_DIR).join(step_name(step))
}
