//! The command line's types, no logic. Each verb's arguments go to the file of the same name in `commands/`.

pub mod bench;
pub mod chain;
pub mod data;
pub mod wallet;

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::chain::UNITS_PER_TAO;
use crate::model::arch::Reference;
use crate::recipe::DeviceChoice;

/// Train language models for Bittensor subnet 9, and judge them as its validators would.
#[derive(Debug, Parser)]
#[command(name = "assay", version, about, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print answers, warnings and errors only.
    #[arg(long, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model from a recipe; a run that was interrupted goes on where it stopped.
    Train(TrainArgs),
    /// Check a recipe against the subnet's rules, and tell what it would cost.
    Check(CheckArgs),
    /// Compute a model's losses as a validator would.
    Score(ScoreArgs),
    /// Tell what a model folder holds and whether the subnet would accept it.
    Inspect(InspectArgs),
    /// Score published models, and your own, on the same fresh pages, as a validator would.
    Compare(CompareArgs),
    /// Upload a model, commit it to the chain, and check that it can be had from there.
    Publish(PublishArgs),
    /// Show what the validators' weights pay, and what they would pay if a model won more often.
    ///
    /// The next epoch of Yuma Consensus is computed from the weights, stakes and bonds that are on the chain now, as the
    /// chain will do it. A day's pay is the epoch's times the epochs of a day.
    ///
    /// --win-rate X asks what a model would earn if it had the win rate X in every validator's step. Within a validator's
    /// weights, the temperature times the logarithm of a weight is a win rate but for one constant, which is chosen such
    /// that the rates of all n models with weight sum to n/2, for in nearly every match somebody wins (the column "win
    /// rate" is the mean of these over validators, by stake). The model's rate is set to X (one without weight joins the
    /// others), all others move by one amount, so that the sum is n/2 again, and softmax, rounding to 16 bits and the epoch
    /// follow. This is an estimate: weights are a moving average over steps, models whose weight rounds to 0 are not seen,
    /// and rivals do not lose alike.
    Emission(EmissionArgs),
    /// Be a validator: score the subnet's models step after step, and weigh them.
    Validate(ValidateArgs),
    /// The embedded network: a hub and a chain on this machine.
    ///
    /// Its chain runs its epochs, every 361 blocks, when somebody next looks, as if it had run them in time. While no
    /// validator has set weights for 5,000 blocks they change nothing: a network whose only validator sleeps goes on paying
    /// as it last did. What it pays is added to nobody's stake.
    Local(LocalArgs),
    /// Ask a subnet's chain, the real one or the embedded one, and write to it.
    Chain(chain::ChainArgs),
    /// Bittensor's key files.
    Wallet(wallet::WalletArgs),
    /// Look at a recipe's text, or write its tokens once so that training need not make them.
    Data(data::DataArgs),
    /// Measure how fast this machine trains, scores or reads text.
    Bench(bench::BenchArgs),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe, a YAML file.
    pub recipe: PathBuf,
    /// Override a key of the recipe: `--set train.steps=100`. May be given several times.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N: short for `--set train.device=DEVICE`.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Go on with a run; an error if there is none to go on with.
    #[arg(long, conflicts_with = "fresh")]
    pub resume: bool,
    /// Start from nothing; an earlier run of that name is moved aside, not deleted.
    #[arg(long)]
    pub fresh: bool,
    /// Check everything, recipe, data and machine, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The recipe, a YAML file.
    pub recipe: PathBuf,
    /// Override a key of the recipe: `--set model.width=512`. May be given several times.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Say where each figure comes from.
    #[arg(long)]
    pub explain: bool,
}

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// A Hugging Face model folder.
    pub model: PathBuf,
    /// A JSON list of lists of token ids to score; default: the held-out pages of the embedded text.
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Write the scored lists to a file that `--tokens` reads, to score the same ones elsewhere.
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub write_tokens: Option<PathBuf>,
    /// How many rows of the embedded text's held-out pages to score.
    #[arg(long, default_value_t = 16, conflicts_with = "tokens", value_parser = clap::value_parser!(u32).range(1..))]
    pub rows: u32,
    /// Also what validators asked from 21 March 2024 on: let the model continue two rows, and count every loss as infinite
    /// if that is repetition.
    #[arg(long)]
    pub outputs: bool,
    /// Whose losses: those that validators found, with the quirks of their library, or those of the model as it is trained.
    #[arg(long, value_enum, default_value_t)]
    pub reference: Reference,
    /// Which implementation computes the losses.
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// CPU threads; default all cores.
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// One JSON object on stdout: `{"losses": […]}`.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A Hugging Face model folder.
    pub model: PathBuf,
    /// Apply the rules of this block of the chain; default: those of March 2024.
    #[arg(long)]
    pub block: Option<u64>,
    /// Length in tokens of the rows that the model must be able to read, for rules of your own.
    #[arg(long, value_name = "TOKENS", value_parser = parse_size)]
    pub sequence_length: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Which hub, chain and rules.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Take hub, chain, rules and text from this recipe; default: the embedded network and text.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Override a key of the recipe: `--set hub.repo=me/model`. May be given several times.
    #[arg(long, value_name = "PATH=VALUE", requires = "recipe")]
    pub set: Vec<String>,
    /// The folder of the embedded network, where no recipe is given.
    #[arg(long, value_name = "DIR", default_value = crate::recipe::LOCAL_DIR, conflicts_with = "recipe")]
    pub local: PathBuf,
}

/// How losses are computed, where a recipe may say where.
#[derive(Debug, Args)]
pub struct ScoringArgs {
    /// Which implementation computes the losses.
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N; default the recipe's, or auto.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// CPU threads; default all cores.
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Models of your own to score beside the published ones: folders of models, or of runs, whose newest model is taken.
    pub models: Vec<PathBuf>,
    /// Which network, rules and text.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Only these miners' models; default all.
    #[arg(long, value_delimiter = ',', conflicts_with = "top")]
    pub uids: Vec<u16>,
    /// Only the models of so many miners, those with the highest incentives, and those of the recipe's hotkeys; 0: only the
    /// given folders, which needs no network.
    #[arg(long, value_name = "N", value_parser = parse_top)]
    pub top: Option<usize>,
    /// Pages to draw; default what a validator draws for a step. With --until-certain at most so many, default 300.
    #[arg(long, value_parser = parse_size)]
    pub pages: Option<usize>,
    /// Score at most so many rows of them.
    #[arg(long, value_name = "N", value_parser = parse_size, conflicts_with = "until_certain")]
    pub batches: Option<usize>,
    /// Draw page after page until it is certain at this level, such as 0.95, which of two models is the better one: of each
    /// of your own and every other one, or of all pairs where none is your own.
    #[arg(long, value_name = "P", value_parser = parse_level)]
    pub until_certain: Option<f64>,
    /// Also the wins of each model against each rival.
    #[arg(long)]
    pub matrix: bool,
    /// Write the scored rows to a file that `score --tokens` reads.
    #[arg(long, value_name = "FILE")]
    pub write_tokens: Option<PathBuf>,
    /// Draw the pages of this seed; default other ones each time.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How the losses are computed.
    #[command(flatten)]
    pub scoring: ScoringArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The model's folder, such as `checkpoints/NAME/best`.
    #[arg(required_unless_present = "commit")]
    pub model: Option<PathBuf>,
    /// Which network and rules.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// The repository to upload to; default that of the recipe.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub repo: Option<String>,
    /// The hotkey to commit it under; default the recipe's only one.
    #[arg(long)]
    pub hotkey: Option<String>,
    /// Ask the recipe's gate first; its no is exit code 4.
    #[arg(long, requires = "recipe")]
    pub gate: bool,
    /// Wait until the chain takes the hotkey's next commitment.
    #[arg(long)]
    pub wait: bool,
    /// Do everything but write, and tell what would be sent.
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Upload and verify the model, and write what is to be committed to a file, for the machine that holds the key. The
    /// hotkey may be an address here.
    #[arg(long, value_name = "REQUEST", conflicts_with_all = ["wait", "dry_run"])]
    pub prepare: Option<PathBuf>,
    /// Commit what another machine has prepared: check its chain, its model and what its gate decided on once more, and sign.
    #[arg(long, value_name = "REQUEST", conflicts_with_all = ["model", "repo", "hotkey", "gate", "dry_run", "prepare"])]
    pub commit: Option<PathBuf>,
    /// Where the gate's losses are computed: auto (a GPU if there is one), cpu, cuda or cuda:N; default the recipe's.
    #[arg(long, value_name = "DEVICE", requires = "gate")]
    pub device: Option<DeviceChoice>,
    /// CPU threads; default all cores.
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long, conflicts_with = "dry_run")]
    pub json: bool,
}

/// Arguments of `emission`.
#[derive(Debug, Args)]
pub struct EmissionArgs {
    /// Which network and rules.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Whose pay is asked for; default the recipe's own hotkeys.
    #[arg(long = "uid", value_name = "UID", value_delimiter = ',')]
    pub uids: Vec<u16>,
    /// What they would earn with this win rate in every validator's step, from 0 to 1; of several uids each alone.
    #[arg(long, value_name = "X", value_parser = parse_win_rate)]
    pub win_rate: Option<f64>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Which network, rules and text.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// The validator's folder: its state, its steps and its models. One that is there goes on where it stopped.
    #[arg(long, value_name = "DIR", default_value = "checkpoints/validator")]
    pub dir: PathBuf,
    /// The version of the validator's program, by the day it appeared: 2024-02-21, 2024-03-21, 2024-03-27 or 2024-06-25;
    /// default the recipe's, or 2024-02-21. The last two do not start on a chain from block 2,786,061 on, whose models need
    /// GPT-4's tokenizer.
    #[arg(long, value_name = "DATE")]
    pub rules: Option<String>,
    /// The hotkey that sets weights; default the recipe's only one.
    #[arg(long, value_name = "NAME", requires = "set_weights")]
    pub hotkey: Option<String>,
    /// Send the weights to the chain every 50 blocks; without this nothing is ever sent.
    #[arg(long)]
    pub set_weights: bool,
    /// End after so many steps; default never, until Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Pages to draw for each step; default the recipe's, or what the version drew.
    #[arg(long, value_parser = parse_size)]
    pub pages: Option<usize>,
    /// Draw the pages of this seed; default other ones for each new folder.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Count every loss of a model as infinite that takes longer than so many seconds for a step; default no limit, for
    /// validators' 60 or 360 seconds are those of their cards. With a limit every loss is computed, even if it is known.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub time_limit: Option<u64>,
    /// How the losses are computed.
    #[command(flatten)]
    pub scoring: ScoringArgs,
    /// Print each step as one JSON object on a line instead of its tables.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `local`.
#[derive(Debug, Args)]
pub struct LocalArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: LocalCommand,
}

/// What can be done with the embedded network.
#[derive(Debug, Subcommand)]
pub enum LocalCommand {
    /// Make a hub and a chain, with a rival that is worth beating.
    Init {
        /// Seconds from one block of the chain to the next; a chain to practise on may be in a hurry.
        #[arg(long, value_name = "SECONDS", default_value_t = 12.0, value_parser = parse_block_seconds)]
        block_seconds: f64,
        /// Where they go, or a recipe that says so.
        #[command(flatten)]
        network: NetworkArgs,
    },
    /// Register a hotkey; one that is registered keeps its place.
    Register {
        /// Its name.
        hotkey: String,
        /// Give it so much stake and a validator permit, so that its weights count.
        #[arg(long, value_name = "TAO", value_parser = parse_tao)]
        stake: Option<u64>,
        /// Where the chain is, or a recipe that says so.
        #[command(flatten)]
        network: NetworkArgs,
    },
    /// Serve the embedded chain as a node of Bittensor's would, the hub as Hugging Face does, or shards of text as a data set
    /// of Hugging Face's, until Ctrl-C.
    ///
    /// Recipes and other programs reach the chain as `endpoint: ws://127.0.0.1:PORT`. Whoever is registered by a name and
    /// not by an address has the key //NAME there. The node takes commitments and weights.
    ///
    /// They reach the hub as `endpoint: http://127.0.0.1:PORT`, and Python's huggingface_hub and transformers by
    /// HF_ENDPOINT. There is one user, to whom every namespace belongs; he is known by any token, or by the only one with
    /// --token. Large files are taken by plain PUT, for which newer versions of huggingface_hub want
    /// HF_HUB_DISABLE_XET=1. The hub is made if it is not there.
    ///
    /// They reach the shards as `data.endpoint: http://127.0.0.1:PORT` for data.source refinedweb-parquet, and as
    /// `data.rows_endpoint` for refinedweb-rows. Whatever data set is asked for, these are its shards.
    ///
    /// All listen on loopback only.
    #[command(group = ArgGroup::new("services").args(["rpc", "hub", "dataset"]).required(true).multiple(true))]
    Serve {
        /// Serve the chain on this port; 0 takes one that is free.
        #[arg(long, value_name = "PORT")]
        rpc: Option<u16>,
        /// Serve the hub on this port; 0 takes one that is free.
        #[arg(long, value_name = "PORT")]
        hub: Option<u16>,
        /// Serve parquet shards on this port; 0 takes one that is free.
        #[arg(long, value_name = "PORT", requires = "shards")]
        dataset: Option<u16>,
        /// The folder with the parquet shards, in it or in folders of it.
        #[arg(long, value_name = "DIR", requires = "dataset")]
        shards: Option<PathBuf>,
        /// The folder of the embedded network.
        #[arg(long, visible_alias = "local", value_name = "DIR", default_value = crate::recipe::LOCAL_DIR)]
        dir: PathBuf,
        /// The version of the chain's program that it looks like: 143 (March 2024) or 185.
        #[arg(long, value_name = "VERSION", default_value_t = 143)]
        spec: u32,
        /// The only token that the hub takes; default any. Other users of this machine can see it here: it is to practise
        /// with, and no secret.
        #[arg(long, value_name = "TOKEN", requires = "hub")]
        token: Option<String>,
    },
}

/// Implementations of the decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// Our own operations.
    #[default]
    Native,
    /// The definition in candle.
    Candle,
}

/// More than any model has, and small enough that products of a few of them do not overflow.
const MAX_SIZE: usize = 1 << 20;

fn parse_tokens(text: &str) -> Result<u64, String> {
    let digits: String = text.chars().filter(|character| !matches!(character, '_' | ',')).collect();
    let number = digits.parse().ok().or_else(|| {
        let number: f64 = digits.parse().ok()?;
        (number.fract() == 0.0 && (0.0..1e18).contains(&number)).then_some(number as u64)
    });
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| "a whole number above 0, such as 15_700_000_000 or 1e9".to_owned())
}

fn parse_shard_tokens(text: &str) -> Result<u64, String> {
    let tokens = parse_tokens(text)?;
    let fits = (1_000..=i32::MAX as u64).contains(&tokens);
    fits.then_some(tokens).ok_or_else(|| "a file has from 1,000 to 2,147,483,647 tokens".to_owned())
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if (1..=MAX_SIZE).contains(&size) => Ok(size),
        _ => Err(format!("expected a whole number from 1 to {MAX_SIZE}")),
    }
}

fn parse_top(text: &str) -> Result<usize, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

fn parse_level(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(level) if level > 0.5 && level < 1.0 => Ok(level),
        _ => Err("expected a number above 0.5 and below 1, such as 0.95".to_owned()),
    }
}

fn parse_win_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

fn parse_block_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number from 0.05 to 3600".to_owned()),
    }
}

/// All TAO that there will ever be.
const MAX_TAO: f64 = 21e6;

/// An amount in TAO, in the chain's smallest unit.
fn parse_tao(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(tao) if (0.0..=MAX_TAO).contains(&tao) => Ok((tao * UNITS_PER_TAO as f64).round() as u64),
        _ => Err(format!("expected an amount from 0 to {MAX_TAO}")),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=1024).contains(&threads) => Ok(threads),
        _ => Err("expected a whole number from 1 to 1024".to_owned()),
    }
}
