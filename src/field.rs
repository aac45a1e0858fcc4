//! The field: published models brought here and scored, one after another, on the same rows.
//!
//! Only one model is in memory at a time beside the caller's own, and none whose losses are all known from before
//! (`score/cache.rs`); the next ones are downloaded meanwhile ([`bring_ahead`]). A model that validators would refuse, or that
//! cannot be read, stays in the field with infinite losses, as it does with them; why is told.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::chain::Hotkey;
use crate::error::{Failure, failure};
use crate::hub::Hub;
use crate::hub::fetch::{Cache, Unreadable, fetch_of, publishable_paths};
use crate::hub::file_hashes::Stamp;
use crate::hub::model_id::ModelMetadata;
use crate::interrupt::StopOnDrop;
use crate::memory;
use crate::model::arch::{Arch, Position, Reference, RopeMemory, RopeScaling};
use crate::model::config::ModelConfig;
use crate::model::scorer::Scoring;
use crate::model::weights;
use crate::network::Network;
use crate::rules::Rules;
use crate::score::cache::{LossCache, Rows};
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
        let model = fetch_for(network.hub.as_ref(), &network.cache, rules, metadata, hotkey)?;
        Ok(Self { uid, hotkey: hotkey.to_owned(), metadata: metadata.clone(), model })
    }
}

/// Brings a hotkey's model here and judges it by the rules at its block; where they take it, its hash may be bound to the
/// hotkey. The outer error is ours, the inner one the model's.
pub fn fetch_for(
    hub: &dyn Hub,
    cache: &Cache,
    rules: &Rules,
    metadata: &ModelMetadata,
    hotkey: &str,
) -> Result<Result<PathBuf, Unreadable>> {
    let criteria = rules.criteria_for(metadata.block.get());
    fetch_of(hub, cache, metadata, &criteria, rules.validator.bound_hash.then_some(hotkey))
}

/// Whose model is to be brought.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The miner's place.
    pub uid: u16,
    /// His key.
    pub hotkey: &'a str,
    /// What he has committed.
    pub metadata: &'a ModelMetadata,
}

/// Brings published models and hands each to `work`, in their order; while `work` is busy with one, the next ones are
/// downloaded. What went wrong with one is an error when its turn comes. Ends early where `work` breaks off.
pub fn bring_ahead<B>(
    network: &Network,
    rules: &Rules,
    wanted: &[Wanted<'_>],
    mut work: impl FnMut(Competitor) -> Result<ControlFlow<B>>,
) -> Result<ControlFlow<B>> {
    network.cache.use_only(wanted.iter().map(|wanted| &wanted.metadata.id));
    let bring =
        |&Wanted { uid, hotkey, metadata }: &Wanted<'_>| Competitor::bring(network, rules, uid, hotkey, metadata);
    ahead(wanted, bring, |_, competitor| work(competitor))
}

/// So many items are brought at once.
const BRINGERS: usize = 4;

/// Hands what `bring` makes of each item to `work`, in their order and on this thread, and lets `bring` be a few items ahead
/// of it on other ones. Once `work` has broken off or failed, those are interrupted.
pub fn ahead<T: Sync, U: Send, B>(
    items: &[T],
    bring: impl Fn(&T) -> Result<U> + Sync,
    mut work: impl FnMut(&T, U) -> Result<ControlFlow<B>>,
) -> Result<ControlFlow<B>> {
    thread::scope(|scope| {
        // Each thread brings every fourth item, and waits with it until its turn comes: none is further ahead than that.
        let bring = &bring;
        // Whatever ends `work`, the threads for which the scope then waits have nobody left to work for.
        let end = StopOnDrop::default();
        let start = |first: usize| {
            let (sender, receiver) = mpsc::sync_channel(0);
            let stop = end.0.clone();
            scope.spawn(move || {
                stop.watch();
                for item in items.iter().skip(first).step_by(BRINGERS) {
                    let brought = bring(item);
                    let is_last = brought.is_err();
                    // Nobody waits for it any more once `work` has broken off.
                    if sender.send(brought).is_err() || is_last {
                        return;
                    }
                }
            });
            receiver
        };
        // Dropped before the scope waits for the threads, which may be waiting to send.
        let receivers: Vec<_> = (0..BRINGERS.min(items.len())).map(start).collect();
        for (item, receiver) in std::iter::zip(items, receivers.iter().cycle()) {
            let brought = receiver.recv().expect("a thread sends until it has failed or nobody listens");
            if let ControlFlow::Break(end) = work(item, brought?)? {
                return Ok(ControlFlow::Break(end));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Losses of a model, and what they cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// One for each row.
    pub losses: Vec<f64>,
    /// How many of them were computed; the others were known.
    pub num_computed: usize,
    /// Seconds that computing took, without the reading of the model.
    pub seconds: f64,
}

/// Told how many rows of a model are computed, and after how many seconds.
pub type Watch<'a> = &'a mut dyn FnMut(usize, f64);

/// The losses of a model folder on each row; `None` if an orderly end was asked for. A folder that cannot be read is an
/// error of kind [`Failure::Input`].
pub fn losses_of_folder(
    dir: &Path,
    scoring: &Scoring,
    cache: &LossCache,
    rows: &[Vec<u32>],
) -> Result<Option<Vec<f64>>> {
    Ok(score_folder(dir, scoring, cache, rows, &mut |_, _| ())?.map(|scored| scored.losses))
}

/// The losses that validators find of a model in memory on each row; `None` if an orderly end was asked for.
pub fn losses(arch: &Arch, scoring: &Scoring, params: &[f32], rows: &[Vec<u32>]) -> Result<Option<Vec<f64>>> {
    let arch = arch.seen_by(Reference::default());
    let losses = loss::losses(scoring.scorer(&arch, params)?.as_mut(), &arch, rows)?;
    Ok(losses.map(|losses| losses.into_iter().map(f64::from).collect()))
}

/// How often losses are put on disk while a model is scored.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// As [`losses_of_folder`], with what it cost. The model is read only if a loss is missing; what was computed is kept even if
/// an end was asked for in between.
pub fn score_folder(
    dir: &Path,
    scoring: &Scoring,
    cache: &LossCache,
    rows: &[Vec<u32>],
    watch: Watch<'_>,
) -> Result<Option<Scored>> {
    // A link, such as a run's `latest`, may lead elsewhere in a moment.
    let target = dir.is_symlink().then(|| dir.canonicalize().ok()).flatten();
    let dir = target.as_deref().unwrap_or(dir);
    let arch = ModelConfig::read(dir)?.arch.seen_by(Reference::default());
    let dependence = dependence(&arch, rows);
    // A folder that cannot be hashed cannot be read either, which the reading tells better.
    let identity = cache.is_used().then(|| Identity::of(dir, cache).ok()).flatten();
    let places = identity.as_ref().map(|identity| {
        let how = format!("transformers 4.38.0, {}", scoring.computation(&arch));
        cache.places(&identity.hash, &how, rows, dependence)
    });
    let mut losses = places.as_ref().map_or_else(|| vec![None; rows.len()], |places| places.known());
    if dependence == Rows::Chained && losses.contains(&None) {
        losses.fill(None);
    }
    let missing: Vec<usize> = (0..rows.len()).filter(|&row| losses[row].is_none()).collect();
    let mut scored = Scored { num_computed: missing.len(), ..Scored::default() };
    if !missing.is_empty() {
        check_memory(&arch, scoring, rows)?;
        let loaded = weights::load(dir)?;
        // Should the files have changed since they were hashed, their losses are not those of the hash.
        let places = places.filter(|_| identity.is_some_and(|identity| identity.is_unchanged()));
        let keep = |found: &[(usize, f32)]| places.iter().for_each(|places| places.keep(found));
        let missing_rows: Vec<&[u32]> = missing.iter().map(|&row| rows[row].as_slice()).collect();
        let mut scorer = scoring.scorer(&arch, &loaded.params)?;
        let (started, mut kept_at) = (Instant::now(), Instant::now());
        let (mut num_found, mut unkept) = (0, Vec::new());
        let is_finished = loss::each(scorer.as_mut(), &arch, &missing_rows, &mut |loss| {
            let row = missing[num_found];
            losses[row] = Some(loss);
            unkept.push((row, loss));
            num_found += 1;
            watch(num_found, started.elapsed().as_secs_f64());
            if kept_at.elapsed() >= KEEP_EVERY {
                keep(&std::mem::take(&mut unkept));
                kept_at = Instant::now();
            }
        });
        scored.seconds = started.elapsed().as_secs_f64();
        keep(&unkept);
        if !is_finished? {
            return Ok(None);
        }
    }
    scored.losses = losses.into_iter().flatten().map(f64::from).collect();
    Ok(Some(scored))
}

/// Whether there is memory to score a model on each of the rows that it can read.
///
/// # Errors
/// As [`memory::check_scoring`].
pub fn check_memory(arch: &Arch, scoring: &Scoring, rows: &[Vec<u32>]) -> Result<()> {
    let readable = rows.iter().filter(|row| loss::unreadable(arch, row).is_none());
    let Some(longest) = readable.map(Vec::len).max() else { return Ok(()) };
    memory::check_scoring(arch, longest, scoring.is_on_gpu(arch))
}

/// Whether a model's loss on one of these rows depends on the rows before: some families remember, beyond their context, how
/// long earlier rows were.
fn dependence(arch: &Arch, rows: &[Vec<u32>]) -> Rows {
    let remembers = arch.mask_doubles
        || matches!(arch.position, Position::Rotary(rotary)
            if matches!(rotary.scaling, RopeScaling::Dynamic { memory, .. } if memory != RopeMemory::None));
    match remembers && rows.iter().any(|row| row.len() > arch.context) {
        true => Rows::Chained,
        false => Rows::Independent,
    }
}

/// Which model lies in a folder.
struct Identity {
    hash: String,
    files: Vec<(PathBuf, Stamp)>,
}

impl Identity {
    fn of(dir: &Path, cache: &LossCache) -> Result<Self> {
        let paths = publishable_paths(dir)?;
        let stamps = paths.iter().map(|path| Stamp::of(path)).collect::<Result<Vec<_>>>()?;
        let hash = cache.hashes().files_hash(&paths)?;
        Ok(Self { hash, files: std::iter::zip(paths, stamps).collect() })
    }

    fn is_unchanged(&self) -> bool {
        self.files.iter().all(|(path, stamp)| Stamp::of(path).is_ok_and(|now| now == *stamp))
    }
}

/// The losses of a competitor, or why nothing finite is known of it; `None` if an orderly end was asked for. A folder that
/// turns out to hold no readable model is the model's fault; that our own disk fails is an error.
pub fn score_competitor(
    competitor: &Competitor,
    scoring: &Scoring,
    cache: &LossCache,
    rows: &[Vec<u32>],
    watch: Watch<'_>,
) -> Result<Option<Result<Scored, Unreadable>>> {
    let dir = match &competitor.model {
        Ok(dir) => dir,
        Err(unreadable) => return Ok(Some(Err(unreadable.clone()))),
    };
    if !dir.is_dir() {
        let (uid, dir) = (competitor.uid, dir.display());
        bail!(
            "the model of uid {uid} is not at {dir} any more: another process has deleted it; hub.cache_gb may be too small"
        );
    }
    match score_folder(dir, scoring, cache, rows, watch) {
        Ok(scored) => Ok(scored.map(Ok)),
        Err(error) if matches!(failure(&error), Some(Failure::Input(_))) => {
            Ok(Some(Err(Unreadable::Refused(format!("{error:#}")))))
        }
        Err(error) => Err(error),
    }
}

/// The losses of a competitor, or why validators find none. As [`score_competitor`], but a kind of model that this program
/// does not implement is an error, for validators may well score it.
pub fn losses_of(
    competitor: &Competitor,
    scoring: &Scoring,
    cache: &LossCache,
    rows: &[Vec<u32>],
) -> Result<Option<Result<Vec<f64>, String>>> {
    match score_competitor(competitor, scoring, cache, rows, &mut |_, _| ())? {
        None => Ok(None),
        Some(Ok(scored)) => Ok(Some(Ok(scored.losses))),
        Some(Err(Unreadable::Refused(reason))) => Ok(Some(Err(reason))),
        Some(Err(Unreadable::NotImplemented(reason))) => {
            let (uid, repo_id) = (competitor.uid, competitor.metadata.id.repo_id());
            bail!("the model of uid {uid}, {repo_id}, cannot be scored here, so that nothing is known of it: {reason}")
        }
    }
}

/// Arithmetic of a softmax over the vocabulary, in operations per logit: what counts in small models.
const OPERATIONS_PER_LOGIT: f64 = 50.0;

/// What scoring costs, in operations, to predict how long it takes.
pub fn scoring_cost(arch: &Arch, num_rows: usize, row_len: usize) -> f64 {
    let per_token = score_flops_per_token(arch, row_len) + OPERATIONS_PER_LOGIT * arch.vocab_size as f64;
    per_token * (num_rows * row_len) as f64
}

#[cfg(test)]
#[path = "field_tests.rs"]
mod tests;
