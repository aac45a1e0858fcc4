//! A subnet to test validators on: a hub and a ledger in a temporary folder, tiny models of every kind, and a clock that
//! passes only when somebody waits or a model is scored.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::super::state::{Beginning, Folder, STATE_FILE, STEPS_FILE, State};
use super::super::{Entry, Event, Examiner, FIRST_CLEANUP_AFTER, Observer, Options, Seams, Validator};
use crate::chain::ledger::{Ledger, Settings};
use crate::chain::{Chain, Commitment, Hotkey, Snapshot, Status};
use crate::clock::{Clock, SystemClock};
use crate::data::pages::Draw;
use crate::disk::Disk;
use crate::error::Failure;
use crate::field::{self, Competitor};
use crate::hub::fetch::{Cache, publishable_hash};
use crate::hub::folder::FolderHub;
use crate::hub::testing::HubOver;
use crate::hub::{Hub, RemoteFile, Sha256Sum, Upload};
use crate::metrics::printer::Printer;
use crate::metrics::printer::tests::Captured;
use crate::model::arch::Arch;
use crate::model::config::{ModelConfig, Sizes, new_arch};
use crate::model::family::Family;
use crate::model::init;
use crate::model::layout::Layout;
use crate::model::scorer::Scoring;
use crate::model::weights;
use crate::ops::random;
use crate::recipe::Backend;
use crate::rules::{Criteria, Rules};
use crate::score::cache::LossCache;

pub(super) const GENESIS_BLOCK: u64 = 2_485_000;
const BLOCK_MS: u64 = 12_000;
/// Blocks that have passed when the validator starts.
pub(super) const AGE: u64 = 1_000;
const ROW_LEN: usize = 16;
const VOCAB: usize = 64;
const ROWS: usize = 6;
const SEED: u64 = 7;

/// A clock that tests set.
#[derive(Debug, Default)]
pub(super) struct VirtualClock(AtomicU64);

impl Clock for VirtualClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn sleep(&self, duration: Duration) {
        self.0.fetch_add(duration.as_millis() as u64, Ordering::SeqCst);
    }
}

/// When every test's world begins: the files that it writes are as old as they look.
fn beginning() -> u64 {
    static BEGINNING: OnceLock<u64> = OnceLock::new();
    *BEGINNING.get_or_init(|| SystemClock.unix_ms())
}

/// A hub whose repositories can disappear.
pub(super) struct VanishingHub {
    inner: FolderHub,
    gone: Mutex<HashSet<String>>,
}

impl VanishingHub {
    pub(super) fn vanish(&self, repo_id: &str) {
        self.gone.lock().unwrap().insert(repo_id.to_owned());
    }

    fn check(&self, repo_id: &str) -> Result<()> {
        if self.gone.lock().unwrap().contains(repo_id) {
            return Err(Failure::No(format!("There is no repository {repo_id}.")).into());
        }
        Ok(())
    }
}

impl HubOver for VanishingHub {
    fn inner(&self) -> &dyn Hub {
        &self.inner
    }
    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>> {
        self.check(repo_id).and_then(|()| self.inner.newest_commit(repo_id))
    }
    fn commits(&self, repo_id: &str) -> Result<Vec<String>> {
        self.check(repo_id).and_then(|()| self.inner.commits(repo_id))
    }
    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        self.check(repo_id).and_then(|()| self.inner.files(repo_id, commit))
    }
    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        self.check(repo_id).and_then(|()| self.inner.download(repo_id, commit, files, into))
    }
}

/// A ledger that can be cut off.
struct CutOff<'a> {
    inner: Ledger,
    is_cut_off: &'a AtomicBool,
}

impl CutOff<'_> {
    fn check(&self) -> Result<()> {
        if self.is_cut_off.load(Ordering::SeqCst) {
            return Err(Failure::Unreachable("The node is down.".to_owned()).into());
        }
        Ok(())
    }
}

impl Chain for CutOff<'_> {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn is_real(&self) -> bool {
        false
    }
    fn seconds_per_block(&self) -> f64 {
        self.inner.seconds_per_block()
    }
    fn journal_dir(&self) -> &Path {
        self.inner.journal_dir()
    }
    fn block(&self) -> Result<u64> {
        self.check().and_then(|()| self.inner.block())
    }
    fn snapshot(&self) -> Result<Snapshot> {
        self.check().and_then(|()| self.inner.snapshot())
    }
    fn status(&self) -> Result<Status> {
        self.check().and_then(|()| self.inner.status())
    }
    fn all_commitments(&self) -> Result<BTreeMap<Hotkey, Commitment>> {
        self.check().and_then(|()| self.inner.all_commitments())
    }
    fn unregistered(&self, hotkey: &str) -> anyhow::Error {
        self.inner.unregistered(hotkey)
    }
    fn commitment(&self, hotkey: &str) -> Result<Option<Commitment>> {
        self.check().and_then(|()| self.inner.commitment(hotkey))
    }
    fn next_commit_block(&self, hotkey: &str) -> Result<u64> {
        self.check().and_then(|()| self.inner.next_commit_block(hotkey))
    }
    fn commit(&self, hotkey: &str, bytes: &[u8]) -> Result<u64> {
        self.check().and_then(|()| self.inner.commit(hotkey, bytes))
    }
    fn set_weights(&self, hotkey: &str, weights: &[(u16, u16)], version_key: u64) -> Result<u64> {
        self.check().and_then(|()| Chain::set_weights(&self.inner, hotkey, weights, version_key))
    }
}

/// Losses by folder and rows, so that a step that is repeated after a kill costs nothing.
type Known = Mutex<HashMap<(PathBuf, u64), Result<Vec<f64>, String>>>;

/// See the module's text.
pub(super) struct World {
    root: TempDir,
    pub(super) hub: VanishingHub,
    pub(super) clock: Arc<VirtualClock>,
    pub(super) rules: Rules,
    pub(super) sets_weights: bool,
    pub(super) seconds_per_model: Option<u64>,
    /// What scoring a model takes.
    pub(super) model_takes: Duration,
    pub(super) warms: bool,
    /// Whether the clock goes back to where the state was saved when the validator is started: not an hour is lost.
    pub(super) rewinds: bool,
    /// Whether an orderly end is asked for while a model is scored.
    pub(super) interrupts: AtomicBool,
    /// Whether the chain does not answer.
    pub(super) is_cut_off: AtomicBool,
    /// What was told and answered.
    pub(super) told: Captured,
    pub(super) answers: Captured,
    /// Every loss of a repository's models is multiplied by its factor.
    pub(super) factors: RefCell<BTreeMap<String, f64>>,
    /// Repositories whose models cannot be scored, through no fault of theirs.
    pub(super) unscorable: RefCell<BTreeSet<String>>,
    /// Draws of pages that are to fail from now on.
    pub(super) failing_draws: AtomicU64,
    known: Known,
}

/// The architectures of the twelve miners' models: no two alike.
pub(super) fn archs() -> Vec<Arch> {
    let sizes = Sizes { vocab_size: VOCAB, context: 32, width: 16, layers: 1, heads: 2, kv_heads: None, mlp_width: 64 };
    let of = |family, sizes| new_arch(family, sizes, &Map::new()).unwrap();
    vec![
        of(Family::Gpt2, sizes),
        of(Family::Mistral, sizes),
        of(Family::Llama, sizes),
        of(Family::Bart, sizes),
        of(Family::Falcon, sizes),
        of(Family::GptNeox, sizes),
        of(Family::Gptj, sizes),
        of(Family::Gpt2, Sizes { width: 128, layers: 2, heads: 4, mlp_width: 512, ..sizes }),
        of(Family::Llama, Sizes { kv_heads: Some(1), ..sizes }),
        of(Family::Gpt2, Sizes { layers: 2, ..sizes }),
        of(Family::Mistral, Sizes { layers: 2, ..sizes }),
        of(Family::GptNeox, Sizes { mlp_width: 32, ..sizes }),
    ]
}

impl World {
    /// An empty subnet but for the validator, uid 0. Models of more than 60,000 parameters are too large.
    pub(super) fn new() -> Self {
        Self::at(GENESIS_BLOCK)
    }

    /// One whose ledger has another first block.
    pub(super) fn at(genesis_block: u64) -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let clock = Arc::new(VirtualClock::default());
        clock.0.store(beginning(), Ordering::SeqCst);
        let first_unix_ms = beginning() - AGE * BLOCK_MS;
        let settings = Settings { commit_rate_limit: 0, ..Settings::new(genesis_block, first_unix_ms, BLOCK_MS) };
        drop(Ledger::create(&root.path().join("ledger.sqlite"), &settings).unwrap());
        let hub = VanishingHub { inner: FolderHub::create(&root.path().join("hub")).unwrap(), gone: Mutex::default() };
        let default = Rules::default();
        let criteria = Criteria { sequence_length: ROW_LEN, max_parameters: 60_000, ..default.criteria.clone() };
        let mut rules = Rules { criteria, ..default };
        rules.validator.sample_min = 6;
        rules.validator.sample_max = 20;
        let world = Self {
            root,
            hub,
            clock,
            rules,
            sets_weights: true,
            seconds_per_model: None,
            model_takes: Duration::from_secs(20),
            warms: false,
            rewinds: true,
            interrupts: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            told: Captured::default(),
            answers: Captured::default(),
            factors: RefCell::default(),
            unscorable: RefCell::default(),
            failing_draws: AtomicU64::new(0),
            known: Mutex::default(),
        };
        let ledger = world.ledger();
        ledger.register_at("validator", genesis_block).unwrap();
        ledger.set_permit(0, true).unwrap();
        ledger.set_stake(0, 1_000_000).unwrap();
        world
    }

    /// The ledger, at the present time.
    pub(super) fn ledger(&self) -> Ledger {
        let clock: Arc<dyn Clock> = self.clock.clone();
        Ledger::open_with_clock(&self.root.path().join("ledger.sqlite"), clock).unwrap()
    }

    /// Uploads a model, and returns what its miner commits.
    pub(super) fn upload(&self, repo_id: &str, arch: &Arch, seed: u64) -> String {
        self.upload_filled(repo_id, arch, |layout, params| init::scratch(arch, layout, seed, params))
    }

    pub(super) fn upload_filled(&self, repo_id: &str, arch: &Arch, fill: impl FnOnce(&Layout, &mut [f32])) -> String {
        let dir = tempfile::tempdir_in(self.root.path()).unwrap();
        let layout = Layout::of(arch);
        let mut params = vec![0.0; layout.len()];
        fill(&layout, &mut params);
        weights::save(dir.path(), &ModelConfig::new(arch.clone(), 0.0), &layout, &params).unwrap();
        let names = ["config.json", "generation_config.json", "model.safetensors"];
        let commit = self.hub.upload(&Upload::new(repo_id, dir.path(), &names, "a model")).unwrap();
        format!("{}:{commit}:{}", repo_id.replace('/', ":"), publishable_hash(dir.path()).unwrap())
    }

    /// Registers a miner and commits for him, so many blocks after the ledger's first.
    pub(super) fn miner(&self, hotkey: &str, text: &str, after: u64) -> u16 {
        let ledger = self.ledger();
        let uid = ledger.register_at(hotkey, GENESIS_BLOCK).unwrap();
        ledger.commit_at(hotkey, text.as_bytes(), GENESIS_BLOCK + after).unwrap();
        uid
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.root.path().join("validator")
    }

    pub(super) fn state_bytes(&self) -> Vec<u8> {
        fs::read(self.dir().join(STATE_FILE)).unwrap_or_default()
    }

    /// The rows of all steps, without how long they took.
    pub(super) fn rows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir().join(STEPS_FILE)).unwrap_or_default();
        let row = |line: &str| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            for key in ["load_model_perf_log", "compute_model_perf_log"] {
                row.as_object_mut().unwrap().remove(key).unwrap();
            }
            row
        };
        text.lines().map(row).collect()
    }

    /// Starts the validator, at the time at which it saved its state, and lets it work.
    pub(super) fn start<R>(&self, disk: &Disk, work: impl FnOnce(&mut Validator<'_>) -> Result<R>) -> Result<R> {
        let beginning = Beginning {
            network: "a ledger and a hub",
            block: self.ledger().block()?,
            version_key: self.rules.validator.weights_version_key,
            seed: Some(SEED),
            next_cleanup: beginning() + FIRST_CLEANUP_AFTER.as_millis() as u64,
        };
        let (folder, state, _) = Folder::open_on(&self.dir(), beginning, disk.clone())?;
        if state.saved_at > 0 && self.rewinds {
            self.clock.0.store(state.saved_at, Ordering::SeqCst);
        }
        let chain = CutOff { inner: self.ledger(), is_cut_off: &self.is_cut_off };
        let cache = Cache::on_disk(&Folder::models_dir(&self.dir()), disk.clone());
        let printer = Printer::with_streams(self.answers.clone(), self.told.clone(), false);
        let seams = Seams {
            hub: &self.hub,
            chain: &chain,
            cache: &cache,
            clock: self.clock.as_ref(),
            examiner: &TestExaminer {
                factors: &self.factors.borrow(),
                unscorable: &self.unscorable.borrow(),
                clock: self.clock.as_ref(),
                failing_draws: &self.failing_draws,
                known: &self.known,
                interrupts: &self.interrupts,
                model_takes: self.model_takes,
            },
            printer: &printer,
        };
        let options = Options {
            rules: self.rules.clone(),
            num_pages: 2,
            sets_weights_as: self.sets_weights.then(|| "validator".to_owned()),
            seconds_per_model: self.seconds_per_model,
            json: false,
            warms: self.warms,
        };
        work(&mut Validator::new(seams, options, folder, state))
    }

    /// The state as it is on disk.
    pub(super) fn state(&self) -> State {
        self.start(&Disk::default(), |validator| Ok(validator.state().clone())).unwrap()
    }

    /// Lets the validator do some steps, undisturbed, and returns what it did.
    pub(super) fn steps(&self, num_steps: u64) -> Vec<Event> {
        let (events, outcome) = self.try_steps(num_steps);
        outcome.unwrap();
        events
    }

    /// As [`steps`](Self::steps), with what came of it.
    pub(super) fn try_steps(&self, num_steps: u64) -> (Vec<Event>, Result<()>) {
        let events = RefCell::new(Vec::new());
        let observe: Observer<'_> = &|event| {
            events.borrow_mut().push(event.clone());
            Ok(())
        };
        let outcome = self.start(&Disk::default(), |validator| validator.run(Some(num_steps), observe));
        (events.into_inner(), outcome)
    }
}

/// Random rows, and true losses of the models in their folders, times the factor of their repository.
struct TestExaminer<'a> {
    factors: &'a BTreeMap<String, f64>,
    unscorable: &'a BTreeSet<String>,
    clock: &'a VirtualClock,
    failing_draws: &'a AtomicU64,
    known: &'a Known,
    interrupts: &'a AtomicBool,
    model_takes: Duration,
}

impl Examiner for TestExaminer<'_> {
    fn draw(&self, num_pages: usize, seed: u64) -> Result<Draw> {
        if self.failing_draws.load(Ordering::SeqCst) > 0 {
            self.failing_draws.fetch_sub(1, Ordering::SeqCst);
            bail!("the dataset's service is down");
        }
        let number = |site: u64, below: usize| (random::derive(seed, site) % below as u64) as usize;
        let row = |row: usize| (0..ROW_LEN).map(|at| number((row * ROW_LEN + at) as u64, VOCAB) as u32).collect();
        let offsets = (0..num_pages).map(|page| number(1_000_000 + page as u64, 5_000)).collect();
        Ok(Draw { offsets, rows: (0..ROWS).map(row).collect(), row_pages: vec![0; ROWS] })
    }

    fn losses(&self, entry: &Entry<'_>, rows: &[Vec<u32>], _: u64) -> Result<Option<Result<Vec<f64>, String>>> {
        if self.interrupts.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.clock.sleep(self.model_takes);
        if self.unscorable.contains(&entry.metadata.id.repo_id()) {
            bail!("the card's memory is full");
        }
        // The first tokens tell one step's rows from another's.
        let rows_key = rows[0].iter().fold(0, |key, &id| random::derive(key, u64::from(id)));
        let key = (entry.dir.to_owned(), rows_key);
        if let Some(losses) = self.known.lock().unwrap().get(&key) {
            return Ok(Some(losses.clone()));
        }
        let competitor = Competitor {
            uid: entry.uid,
            hotkey: entry.hotkey.to_owned(),
            metadata: entry.metadata.clone(),
            model: Ok(entry.dir.to_owned()),
        };
        let scoring = Scoring::on_cpu(Backend::Native);
        let losses = field::losses_of(&competitor, &scoring, &LossCache::none(), rows)?.unwrap();
        let factor = self.factors.get(&entry.metadata.id.repo_id()).copied().unwrap_or(1.0);
        let losses = losses.map(|losses| losses.into_iter().map(|loss| loss * factor).collect());
        self.known.lock().unwrap().insert(key, losses.clone());
        Ok(Some(losses))
    }
}
