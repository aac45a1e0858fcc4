//! The recipe: one YAML file that describes one training run completely, as a typed tree.
//!
//! What was typed (this tree, with its defaults) and what is usable (an `Arch`, `Rules`, step counts) are different
//! types: [`Recipe::resolve`] turns the one into the other. `parse.rs` reads the file and lays overrides on it,
//! `validate.rs` says what is wrong with it, `estimate.rs` what it costs, `resume.rs` which keys a run may change.

mod device;
mod estimate;
mod parse;
mod position;
mod resolve;
mod resume;
mod shrink;
mod suggest;
mod tree;
mod typed;
mod validate;
mod warnings;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::family::Family;
use crate::rules::NETUID;

pub use device::DeviceChoice;
pub(crate) use estimate::SAVE_BYTES_PER_SECOND;
pub use estimate::{Activations, Disk, Estimate, Memory};
pub use parse::{Source, load, load_resolved};
pub use resolve::{Examined, Finding, Resolved};
pub use resume::{Difference, differences, to_yaml};

/// A whole recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run; also the folder below `checkpoints/`.
    pub name: String,
    /// The subnet's rules in force: at a block, or written out.
    #[serde(default)]
    pub rules: RulesChoice,
    /// The model's shape.
    pub model: Model,
    /// Where the first weights come from: `scratch`, `leader`, `{dir: path}`, `{uid: 3}` or `{repo: name/space@commit}`.
    #[serde(default, serialize_with = "serde_yaml::with::singleton_map::serialize")]
    pub init: Init,
    /// The text.
    pub data: Data,
    /// How long and in what portions to train.
    pub train: Train,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Held-out loss.
    #[serde(default)]
    pub eval: Eval,
    /// Saving.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Progress and records.
    #[serde(default)]
    pub metrics: Metrics,
    /// Scoring beside the published models while training.
    #[serde(default)]
    pub score: Score,
    /// When publishing pays.
    #[serde(default)]
    pub gate: Gate,
    /// Where models are published.
    #[serde(default)]
    pub hub: Hub,
    /// Where they are committed.
    #[serde(default)]
    pub chain: Chain,
    /// What is done when the gate opens.
    #[serde(default)]
    pub publish: Publish,
}

/// The rules in force: those of a block of the subnet's history, with single values overridden.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RulesChoice {
    /// Block of the chain whose rules apply; default the table's block of March 2024 ([`crate::rules::DEFAULT_BLOCK`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    /// Own limit on the number of parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parameters: Option<u64>,
    /// Own limit on the repository's size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_repo_bytes: Option<u64>,
    /// Own length in tokens of the rows that models are scored on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<usize>,
}

/// Which implementation computes loss and gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Our own operations with written-out backward passes.
    #[default]
    Native,
    /// The definition: candle with its autograd.
    Candle,
}

/// What of the forward pass is computed again in the backward pass instead of being kept: memory for time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The MLPs' hidden layers.
    Mlp,
    /// Whole blocks, but for their inputs.
    Block,
}

/// How f32 masters become the bf16 weights that a GPU computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bf16Rounding {
    /// To the nearest, of two equally near ones to the even.
    #[default]
    Nearest,
    /// Up or down at random, the likelier the nearer, so that small updates count on average.
    Stochastic,
}

/// The model's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The family, by its `model_type` in Hugging Face's config.json.
    #[serde(default)]
    pub family: Family,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Number of heads of keys and values; default the family's: one for Falcon, else as many as heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the MLP's hidden layer; default 4 times the width, or 8/3 times where it is gated.
    pub mlp_width: Option<usize>,
    /// Number of positions; default the rules' sequence length.
    pub context: Option<usize>,
    /// Further keys of Hugging Face's config.json, such as `rope_theta: 500000.0`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Dropout on embeddings, attention probabilities and both residual branches while training.
    #[serde(default)]
    pub dropout: f32,
    /// Which implementation computes it.
    #[serde(default)]
    pub backend: Backend,
}

/// Where the first weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// Random, as GPT-2's: normal with deviation 0.02, residual projections divided by sqrt(2 layers).
    #[default]
    Scratch,
    /// The published model of the miner with the highest incentive, if it has the same shape.
    Leader,
    /// A Hugging Face model folder of the same shape.
    Dir(PathBuf),
    /// The published model of this miner.
    Uid(u64),
    /// A repository of the hub, `namespace/name`, at its newest commit or at the one after an `@`.
    Repo(String),
}

/// The text to train on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Which kind of source.
    pub source: SourceKind,
    /// `files`: files, folders (searched recursively) and globs of .jsonl, .txt, .gz, .zst; `refinedweb-parquet`: shards on
    /// this machine instead of the hub's; `tokens`: what `assay data prepare` wrote. Like every path in a recipe relative to
    /// the current directory.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// `files` only: files, folders and globs kept for the held-out loss; default: every `held_out_every`-th page.
    #[serde(default)]
    pub held_out: Vec<PathBuf>,
    /// `files` without `held_out`: every n-th page of 100 documents is held out; `refinedweb-*`: every n-th stretch of 1,000
    /// rows.
    #[serde(default = "default_held_out_every")]
    pub held_out_every: usize,
    /// `files` and `refinedweb-*`: the key or the column of the text; default `text` in files, `content` in RefinedWeb.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_key: Option<String>,
    /// Documents longer than this are cut, as validators do; default the rules' sequence length; 0: never.
    pub max_document_tokens: Option<usize>,
    /// `refinedweb-*` only: which data set, as the hub names it.
    #[serde(default = "default_dataset")]
    pub dataset: String,
    /// `refinedweb-parquet` from the hub only: a commit or a branch. A run goes on with the commit that it began with.
    #[serde(default = "default_revision")]
    pub revision: String,
    /// `refinedweb-parquet` only: train on these shards alone, by globs over their paths in the data set; default all.
    #[serde(default)]
    pub shards: Vec<String>,
    /// `refinedweb-parquet` only: the hub that has the shards; default `hub.endpoint`, what `HF_ENDPOINT` says, or
    /// <https://huggingface.co>.
    pub endpoint: Option<String>,
    /// `refinedweb-rows`, and `score.source: refinedweb-rows`: where the data set's viewer is reached.
    #[serde(default = "default_rows_endpoint")]
    pub rows_endpoint: String,
    /// `refinedweb-*` only: so many row groups (pages of 100 rows) are open at once and read in turn.
    #[serde(default = "default_interleave")]
    pub interleave: usize,
    /// Where what was learned of a data set, and its pages, are kept; default `~/.assay/data`.
    pub cache: Option<PathBuf>,
    /// `refinedweb-*` only: requests under way at once.
    #[serde(default = "default_readers")]
    pub readers: usize,
    /// Threads that tokenize; 0: as many as the machine has to spare, at least one.
    #[serde(default)]
    pub tokenizer_threads: usize,
    /// How many MB of text may lie ready ahead of the tokenizer.
    #[serde(default = "default_queue_mb")]
    pub queue_mb: usize,
}

impl Data {
    /// Whether it is the data set that validators score on, or one that is read as it is.
    pub fn is_refinedweb(&self) -> bool {
        matches!(self.source, SourceKind::RefinedwebRows | SourceKind::RefinedwebParquet)
    }

    /// The key of the text in a line of JSON, or its column.
    pub fn text_key(&self) -> &str {
        if self.is_refinedweb() { self.column() } else { self.text_key.as_deref().unwrap_or("text") }
    }

    /// The column of the text in the data set, whatever is trained on.
    pub fn column(&self) -> &str {
        self.text_key.as_deref().filter(|_| self.is_refinedweb()).unwrap_or("content")
    }
}

fn default_held_out_every() -> usize {
    100
}

fn default_dataset() -> String {
    "tiiuae/falcon-refinedweb".to_owned()
}

fn default_revision() -> String {
    "main".to_owned()
}

fn default_rows_endpoint() -> String {
    "https://datasets-server.huggingface.co".to_owned()
}

fn default_interleave() -> usize {
    8
}

fn default_readers() -> usize {
    4
}

fn default_queue_mb() -> usize {
    64
}

/// Kinds of text sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The text embedded in the program: six novels.
    Sample,
    /// The user's own files.
    Files,
    /// RefinedWeb, page by page from the data set's viewer, as validators read it.
    RefinedwebRows,
    /// RefinedWeb's parquet shards, from the hub or from this machine.
    RefinedwebParquet,
    /// Tokens that `assay data prepare` wrote.
    Tokens,
}

/// How long and in what portions to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps in all.
    pub steps: usize,
    /// Tokens per optimizer step over all devices.
    pub tokens_per_step: usize,
    /// Rows per device and forward pass.
    pub micro_batch: usize,
    /// Tokens per row; default the rules' sequence length.
    pub sequence_length: Option<usize>,
    /// Seed of initialisation, data order and dropout.
    #[serde(default)]
    pub seed: u64,
    /// CPU threads; default all cores. Part of what determines a run's bits.
    pub threads: Option<usize>,
    /// What is computed twice to save memory; it changes no bit of the results.
    #[serde(default)]
    pub recompute: Recompute,
    /// Where to compute: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`. Part of what determines a run's bits.
    #[serde(default)]
    pub device: DeviceChoice,
    /// On a GPU: how masters are rounded to the bf16 that is computed with.
    #[serde(default)]
    pub bf16_rounding: Bf16Rounding,
}

/// AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip_norm: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { learning_rate: 6e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip_norm: 1.0 }
    }
}

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine from the peak to the end value over all remaining steps.
    #[default]
    Cosine,
    /// Warm-up, stable, decay: constant, then linear to the end value over the last `decay_steps`.
    Wsd,
    /// Constant after the warm-up.
    Constant,
}

/// The learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// `wsd` only: steps of the final linear decay.
    pub decay_steps: usize,
    /// The last learning rate as a part of the peak.
    pub end_factor: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_steps: 0, decay_steps: 0, end_factor: 0.1 }
    }
}

/// Held-out loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Every so many steps, and at the end; 0: only at the end.
    pub every: usize,
    /// Number of rows of the rules' sequence length, from the held-out pages; always the same ones.
    pub rows: usize,
}

impl Default for Eval {
    fn default() -> Self {
        Self { every: 250, rows: 32 }
    }
}

/// Saving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Folder of the run; default `checkpoints/NAME`.
    pub dir: Option<PathBuf>,
    /// Every so many steps, before each evaluation and at the end; 0: only the latter two.
    pub every: usize,
    /// How many of the newest to keep.
    pub keep_last: usize,
    /// Keep those of every n-th step for good; 0: none.
    pub keep_every: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { dir: None, every: 0, keep_last: 2, keep_every: 0 }
    }
}

/// Progress and records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Write TensorBoard event files.
    pub tensorboard: bool,
    /// A line of plain progress every so many steps when piped.
    pub print_every: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { tensorboard: true, print_every: 10 }
    }
}

/// Scoring the model beside the published ones, as a validator would, and asking the gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Score {
    /// Every so many steps, and at the end; 0: never.
    pub every: usize,
    /// Pages per step of a validator; default what the rules' validators draw.
    pub pages: Option<usize>,
    /// Consecutive documents per page; validators take 100.
    pub page_documents: usize,
    /// Largest part of a run's time that scoring may take before its end; where that is spent, fewer steps are scored.
    pub budget: f64,
    /// Where models are scored; default where the model is trained.
    pub device: Option<DeviceChoice>,
    /// What pages are drawn from; default `refinedweb-rows` where the recipe trains on that, else `held-out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<ScoreSource>,
}

/// What pages are drawn from to score models on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreSource {
    /// The documents that training leaves out.
    HeldOut,
    /// The pages of the data set's viewer that validators draw.
    RefinedwebRows,
}

impl Default for Score {
    fn default() -> Self {
        Self { every: 0, pages: None, page_documents: 100, budget: 0.02, device: None, source: None }
    }
}

/// What publishing must bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateRule {
    /// More pay than staying.
    #[default]
    Pay,
    /// A win against the leader: the literal reading.
    BeatsLeader,
}

/// When publishing pays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// What publishing must bring.
    pub rule: GateRule,
    /// `pay` only: the gain that is worth a publish, as a share of the subnet's miner incentive.
    pub min_gain: f64,
    /// Probability with which a decision to publish must be right; all candidates since the last publish share what is left.
    pub confidence: f64,
    /// Blocks after an own commitment during which nothing is published under that hotkey again.
    pub cooldown_blocks: u64,
    /// Pages that one decision may draw; default those of a hundred steps.
    pub max_pages: Option<usize>,
    /// `pay` only: bet on the gain instead of taking an asymptotic bound: safe whatever its distribution, and slower to be
    /// certain.
    pub exact: bool,
    /// How far the incentives that are foretold for the best five miners may lie from the chain's before the gate distrusts
    /// its picture of the network.
    pub tolerance: f64,
    /// Whether a model may be published that is byte for byte another miner's.
    pub allow_copies: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            rule: GateRule::Pay,
            min_gain: 0.01,
            confidence: 0.95,
            cooldown_blocks: 0,
            max_pages: None,
            exact: false,
            tolerance: 0.1,
            allow_copies: false,
        }
    }
}

/// Kinds of hubs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HubKind {
    /// A folder on this machine.
    #[default]
    Folder,
    /// Hugging Face, or a server that speaks as it does.
    Huggingface,
}

/// Where models are published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hub {
    /// Which kind of hub.
    pub kind: HubKind,
    /// `folder` only: the folder.
    pub dir: PathBuf,
    /// `huggingface` only: where it is reached; default what `HF_ENDPOINT` says, or <https://huggingface.co>.
    pub endpoint: Option<String>,
    /// The own repository, `namespace/name`; needed to publish.
    pub repo: Option<String>,
    /// Where downloaded models are kept.
    pub cache: PathBuf,
    /// How many GB the models that are kept may take together, beside those that are committed now; default no limit.
    pub cache_gb: Option<f64>,
    /// `huggingface` only: how many MB downloads may take together in a second; default no limit.
    pub download_mb_per_second: Option<f64>,
}

impl Default for Hub {
    fn default() -> Self {
        let local = PathBuf::from(LOCAL_DIR);
        Self {
            kind: HubKind::Folder,
            dir: local.join("hub"),
            endpoint: None,
            repo: None,
            cache: local.join("cache"),
            cache_gb: None,
            download_mb_per_second: None,
        }
    }
}

/// Where the embedded hub and chain lie by default.
pub const LOCAL_DIR: &str = "checkpoints/local";

/// Networks that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The embedded ledger.
    Local,
    /// Bittensor's main network.
    Finney,
    /// Bittensor's test network.
    Test,
}

/// One endpoint or several: `ws://127.0.0.1:9944`, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Endpoints {
    /// One.
    One(String),
    /// Each next one stands in for those before it.
    Several(Vec<String>),
}

impl Endpoints {
    /// In the order of preference.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(endpoint) => std::slice::from_ref(endpoint),
            Self::Several(endpoints) => endpoints,
        }
    }
}

/// Where models are committed, and under which names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chain {
    /// Which network; default `local`, or, where an endpoint is given, the one that is found there.
    pub network: Option<Network>,
    /// Where nodes of a real network are reached; default those that the network runs itself.
    pub endpoint: Option<Endpoints>,
    /// The subnet.
    pub netuid: u16,
    /// `local` only: the ledger's file.
    pub ledger: PathBuf,
    /// The own hotkeys: a model is published under the one that gains most by it. On a real network they are names of
    /// hotkeys of the wallet, or addresses, which cannot sign unless their key is in the wallet. Default `[miner]` on the
    /// embedded network, and none elsewhere.
    pub hotkeys: Option<Vec<String>>,
    /// Real networks only: the wallet's name.
    pub wallet: String,
    /// Real networks only: where the wallets lie; default ~/.bittensor/wallets.
    pub wallet_dir: Option<PathBuf>,
    /// Real networks only: take key files that others may read or change.
    pub allow_readable_keys: bool,
}

impl Chain {
    /// Whether it is the embedded one.
    pub fn is_local(&self) -> bool {
        match self.network {
            Some(network) => network == Network::Local,
            None => self.endpoint.is_none(),
        }
    }

    /// The own hotkeys as the recipe spells them.
    pub fn hotkeys(&self) -> Vec<String> {
        let usual = || if self.is_local() { vec!["miner".to_owned()] } else { Vec::new() };
        self.hotkeys.clone().unwrap_or_else(usual)
    }

    /// Where a real one is reached, as far as it is said.
    pub fn endpoints(&self) -> &[String] {
        self.endpoint.as_ref().map_or(&[], Endpoints::as_slice)
    }
}

impl Default for Chain {
    fn default() -> Self {
        let ledger = PathBuf::from(LOCAL_DIR).join("ledger.sqlite");
        Self {
            network: None,
            endpoint: None,
            netuid: NETUID,
            ledger,
            hotkeys: None,
            wallet: "default".to_owned(),
            wallet_dir: None,
            allow_readable_keys: false,
        }
    }
}

/// Whether training publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Only says what the gate decides.
    Never,
    /// Asks the user, if there is a terminal.
    Ask,
    /// Publishes when the gate opens.
    Auto,
}

/// What is done when the gate opens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Publish {
    /// Whether training publishes; default `auto` on the embedded network, `never` on a real one.
    pub mode: Option<PublishMode>,
    /// Who sees a model before it is committed.
    pub visibility: Visibility,
}

/// Who sees a model that is being published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// The world, from the upload on.
    #[default]
    Public,
    /// Nobody else until it is committed: who copies it is later on the chain.
    PrivateUntilCommitted,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A valid recipe of a few lines.
    pub(super) fn small() -> Recipe {
        Recipe {
            name: "small".into(),
            rules: RulesChoice::default(),
            model: Model {
                family: Family::Gpt2,
                kv_heads: None,
                config: Map::new(),
                layers: 2,
                heads: 2,
                width: 64,
                mlp_width: None,
                context: None,
                dropout: 0.0,
                backend: Backend::Native,
            },
            init: Init::Scratch,
            data: Data {
                source: SourceKind::Sample,
                paths: Vec::new(),
                held_out: Vec::new(),
                held_out_every: default_held_out_every(),
                text_key: None,
                max_document_tokens: None,
                dataset: default_dataset(),
                revision: default_revision(),
                shards: Vec::new(),
                endpoint: None,
                rows_endpoint: default_rows_endpoint(),
                interleave: default_interleave(),
                cache: None,
                readers: default_readers(),
                tokenizer_threads: 0,
                queue_mb: default_queue_mb(),
            },
            train: Train {
                recompute: Recompute::None,
                device: DeviceChoice::Auto,
                bf16_rounding: Bf16Rounding::Nearest,
                steps: 100,
                tokens_per_step: 4096,
                micro_batch: 2,
                sequence_length: None,
                seed: 0,
                threads: Some(2),
            },
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            eval: Eval::default(),
            checkpoint: Checkpoint::default(),
            metrics: Metrics::default(),
            score: Score::default(),
            gate: Gate::default(),
            hub: Hub::default(),
            chain: Chain::default(),
            publish: Publish::default(),
        }
    }
}
