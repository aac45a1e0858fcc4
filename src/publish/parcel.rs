//! What goes up: the files of a model folder, looked at as far as headers, names, sizes and finite weights show.

use std::fs;

use anyhow::{Context, Result};

use super::{COMMIT_DIGITS, Order};
use crate::error::input;
use crate::figures::count;
use crate::hub::fetch::publishable_files;
use crate::hub::judge::judge;
use crate::hub::model_id::{MAX_COMMITMENT_BYTES, ModelId, split_repo_id};
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights::ModelFiles;

/// A model folder that was found fit to be published.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The files that go up, in the order in which they are hashed.
    pub names: Vec<String>,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Their directory hash.
    pub hash: String,
    namespace: String,
    name: String,
}

impl Parcel {
    /// Checks the folder and the names, and hashes the files.
    pub fn of(order: &Order<'_>) -> Result<Self> {
        let dir = order.model_dir;
        let (namespace, name) = split_repo_id(order.repo_id).map_err(input)?;
        let names = publishable_files(dir)?;
        let paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        if let [first, ..] = judge(dir, order.criteria).reasons.as_slice() {
            return Err(input(format!("{} is no model to publish. {}", dir.display(), first.sentence)));
        }
        let config = ModelConfig::read(dir)?;
        let layout = Layout::of(&config.arch);
        ModelFiles::open(dir, &config.arch, &layout)?.check_finite()?;
        let mut bytes = 0;
        for path in &paths {
            bytes += fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        }
        let limit = order.criteria.max_repo_bytes;
        if bytes > limit {
            let (actual, limit) = (count(bytes), count(limit));
            return Err(input(format!("{} has {actual} bytes; a repository may have {limit}.", dir.display())));
        }
        let hash = order.hashes.files_hash(&paths)?;
        let parcel = Self { names, bytes, hash, namespace: namespace.to_owned(), name: name.to_owned() };
        let id = parcel.id(Some("0".repeat(COMMIT_DIGITS)));
        if !id.fits_commitment() {
            return Err(input(format!(
                "The commitment of {} would have {} bytes; the chain takes {MAX_COMMITMENT_BYTES}: choose a shorter name.",
                order.repo_id,
                id.to_string().len()
            )));
        }
        if !id.survives_its_text() {
            return Err(input(format!(
                "The repository {} cannot be committed: its name holds a colon.",
                order.repo_id
            )));
        }
        Ok(parcel)
    }

    /// Its name once it is uploaded.
    pub fn id(&self, commit: Option<String>) -> ModelId {
        ModelId { namespace: self.namespace.clone(), name: self.name.clone(), commit, hash: Some(self.hash.clone()) }
    }
}
