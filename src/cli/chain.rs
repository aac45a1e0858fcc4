//! Arguments of `chain`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::NetworkArgs;
use crate::recipe::Network;

/// Arguments of `chain`.
#[derive(Debug, Args)]
pub struct ChainArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ChainCommand,
}

/// Which chain and subnet.
#[derive(Debug, Args)]
pub struct ChainPlaceArgs {
    /// A recipe, or the embedded chain.
    #[command(flatten)]
    pub place: NetworkArgs,
    /// A real chain: `finney`, `test`, or `local` for the embedded one; default the recipe's.
    #[arg(long, value_name = "NAME", value_enum)]
    pub network: Option<Network>,
    /// Where a node of a real chain is reached: ws://127.0.0.1:9944, wss://…; of several each next one stands in for those
    /// before it.
    #[arg(long = "endpoint", value_name = "URL", value_delimiter = ',', conflicts_with = "local")]
    pub endpoints: Vec<String>,
    /// The subnet; default the recipe's, or 9.
    #[arg(long)]
    pub netuid: Option<u16>,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// As whom to write to the chain.
#[derive(Debug, Args)]
pub struct SignerArgs {
    /// The key file of the hotkey, on a real chain.
    #[arg(long, value_name = "FILE", conflicts_with = "hotkey")]
    pub hotkey_file: Option<PathBuf>,
    /// The hotkey by its name, on the embedded chain or in the recipe's wallet; default the recipe's only one.
    #[arg(long, value_name = "NAME")]
    pub hotkey: Option<String>,
    /// Take a key file that others may read or change.
    #[arg(long)]
    pub allow_readable_key: bool,
}

/// What can be asked of a chain, and done.
#[derive(Debug, Subcommand)]
pub enum ChainCommand {
    /// The chain's block and program, and the subnet's limits.
    Status {
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// Who is on the subnet.
    Neurons {
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// All that stands committed on the subnet.
    Commitments {
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// What one hotkey has committed; exit code 4 if that is nothing.
    Commitment {
        /// Its address; on the embedded chain its name.
        hotkey: String,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// Commit a model, `namespace:name:commit:hash`, and read it back.
    Commit {
        /// The text.
        text: String,
        /// Commit a text that names no model.
        #[arg(long)]
        any_text: bool,
        /// Wait until the chain takes the hotkey's next commitment.
        #[arg(long)]
        wait: bool,
        /// Who commits.
        #[command(flatten)]
        signer: SignerArgs,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// Set a validator's weights.
    SetWeights {
        /// A JSON object of uid and weight, `{"3": 0.5, "4": 0.25}`; only the proportions count.
        file: PathBuf,
        /// The version of the validator's program, as the chain counts it; default that of the rules.
        #[arg(long)]
        version_key: Option<u64>,
        /// Whose weights they are.
        #[command(flatten)]
        signer: SignerArgs,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// How miners stand: place, immunity, rank, pay, model, and who gives them weight.
    ///
    /// When a subnet is full, a newcomer gets the place of the hotkey that earns least among those whose immunity has
    /// ended; number 1 is next. Pay is what the last epoch paid, times the epochs of a day. Exit code 4 if none of the
    /// hotkeys is registered.
    Miner {
        /// A hotkey: its address, or its name in the wallet or on the embedded chain; may be given several times. Default
        /// the recipe's.
        #[arg(long = "hotkey", value_name = "HOTKEY")]
        hotkeys: Vec<String>,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
}
