//! Arguments of `chain`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::NetworkArgs;

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
    pub network: Option<crate::recipe::Network>,
    /// Where a node of a real chain is reached: ws://127.0.0.1:9944, wss://…; of several each next one stands in for those
    /// before it.
    #[arg(long = "endpoint", value_name = "URL", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// The subnet; default the recipe's, or 9.
    #[arg(long)]
    pub netuid: Option<u16>,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
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
        /// Its address.
        hotkey: String,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// Commit a text, for a model `namespace:name:commit:hash`.
    Commit {
        /// The text.
        text: String,
        /// The key file of the hotkey that commits; default the recipe's only hotkey.
        #[arg(long, value_name = "FILE")]
        hotkey_file: Option<PathBuf>,
        /// Wait until the chain takes the hotkey's next commitment.
        #[arg(long)]
        wait: bool,
        /// Take a key file that others may read.
        #[arg(long)]
        allow_readable_key: bool,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// Set a validator's weights.
    SetWeights {
        /// A JSON object of uid and weight, `{"3": 0.5, "4": 0.25}`.
        file: PathBuf,
        /// The key file of the validator's hotkey; default the recipe's only hotkey.
        #[arg(long, value_name = "FILE")]
        hotkey_file: Option<PathBuf>,
        /// The version of the validator's program, as the chain counts it; default that of the rules.
        #[arg(long)]
        version_key: Option<u64>,
        /// Take a key file that others may read.
        #[arg(long)]
        allow_readable_key: bool,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
    /// How miners stand: place, immunity, rank, pay, model, and who gives them weight.
    Miner {
        /// A hotkey: its address, or the name of one in the wallet; may be given several times. Default the recipe's.
        #[arg(long = "hotkey", value_name = "HOTKEY")]
        hotkeys: Vec<String>,
        /// Which chain.
        #[command(flatten)]
        chain: ChainPlaceArgs,
    },
}
