//! The field: published models brought here and scored, one after another, on the same rows.
//!
//! Only one model is in memory at a time beside the caller's own. A model that validators would refuse, or that cannot
//! be read, stays in the field with infinite losses, as it does with them; why is told.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::chain::Hotkey;
use crate::error::{Failure, failure};
use crate::hub::fetch::{Unreadable, fetch};
use crate::hub::model_id::ModelMetadata;
use crate::model::arch::{Arch, Reference};
use crate::model::scorer::Scoring;
use crate::model::weights;
use crate::network::Network;
use crate::rules::Rules;
use crate::score::cache::LossCache;
use crate::score::loss;
use crate::train::meter::score_flops_per_token;

/// A miner's published model.
#[derive(Clone, Debug)]
pub struct Competitor {
    /// The miner's place.
    pub uid: u16,
    /// His key.
    pub hotkey: Hotkey,
    /// What he has committed.
    pub metadata: ModelMetadata,
    /// The model's folder here, or why it has no loss.
    pub model: Result<PathBuf, Unreadable>,
}

impl Competitor {
    /// Downloads a committed model, unless it is here, and judges it by the rules at its block. An error only where the hub
    /// does not answer or our own disk fails.
    pub fn bring(network: &Network, rules: &Rules, uid: u16, hotkey: &str, metadata: &ModelMetadata) -> Result<Self> {
        let criteria = rules.criteria_for(metadata.block.get());
        let model = fetch(network.hub.as_ref(), &network.cache, metadata, &criteria)?;
        Ok(Self { uid, hotkey: hotkey.to_owned(), metadata: metadata.clone(), model })
    }
}

/// The losses of a model folder on each row; `None` if an orderly end was asked for. A folder that cannot be read is an
/// error of kind [`Failure::Input`].
pub fn losses_of_folder(dir: &Path, scoring: &Scoring, rows: &[Vec<u32>]) -> Result<Option<Vec<f64>>> {
    let loaded = weights::load(dir)?;
    losses(&loaded.config.arch, scoring, &loaded.params, rows)
}

/// The losses that validators find of a model in memory on each row; `None` if an orderly end was asked for.
pub fn losses(arch: &Arch, scoring: &Scoring, params: &[f32], rows: &[Vec<u32>]) -> Result<Option<Vec<f64>>> {
    let arch = arch.seen_by(Reference::default());
    let losses = loss::losses(scoring.scorer(&arch, params)?.as_mut(), &arch, rows)?;
    Ok(losses.map(|losses| losses.into_iter().map(f64::from).collect()))
}

/// The losses of a competitor, or why validators find none. A folder that turns out unreadable is the model's fault; a kind
/// of model that this program does not implement is an error, for validators may well score it.
pub fn losses_of(
    competitor: &Competitor,
    scoring: &Scoring,
    _cache: &LossCache,
    rows: &[Vec<u32>],
) -> Result<Option<Result<Vec<f64>, String>>> {
    let dir = match &competitor.model {
        Ok(dir) => dir,
        Err(Unreadable::Refused(reason)) => return Ok(Some(Err(reason.clone()))),
        Err(Unreadable::NotImplemented(reason)) => {
            let (uid, repo_id) = (competitor.uid, competitor.metadata.id.repo_id());
            bail!("the model of uid {uid}, {repo_id}, cannot be scored here, so that nothing is known of it: {reason}")
        }
    };
    match losses_of_folder(dir, scoring, rows) {
        Ok(losses) => Ok(losses.map(Ok)),
        Err(error) if matches!(failure(&error), Some(Failure::Input(_))) => Ok(Some(Err(format!("{error:#}")))),
        Err(error) => Err(error),
    }
}

/// Arithmetic of a softmax over the vocabulary, in operations per logit: what counts in small models.
const OPERATIONS_PER_LOGIT: f64 = 50.0;

/// What scoring costs, in operations, to predict how long it takes.
pub fn scoring_cost(arch: &Arch, num_rows: usize, row_len: usize) -> f64 {
    let per_token = score_flops_per_token(arch, row_len) + OPERATIONS_PER_LOGIT * arch.vocab_size as f64;
    per_token * (num_rows * row_len) as f64
}
