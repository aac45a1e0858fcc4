//! Arguments of `wallet`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `wallet`.
#[derive(Debug, Args)]
pub struct WalletArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: WalletCommand,
}

/// Which hotkey of which wallet.
#[derive(Debug, Args)]
pub struct WalletPlaceArgs {
    /// The wallet's name.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub wallet: String,
    /// The hotkey's name.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub hotkey: String,
    /// Where the wallets lie; default ~/.bittensor/wallets.
    #[arg(long, value_name = "DIR")]
    pub wallet_dir: Option<PathBuf>,
}

/// What can be done with key files.
#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Make a hotkey, as Bittensor's own tool would.
    NewHotkey {
        /// Which.
        #[command(flatten)]
        place: WalletPlaceArgs,
        /// Encrypt the file with a password.
        #[arg(long)]
        encrypt: bool,
    },
    /// Tell a hotkey's address and how its file is kept; nothing secret.
    Show {
        /// Which.
        #[command(flatten)]
        place: WalletPlaceArgs,
        /// JSON on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Open a hotkey's file, sign with it, and check the signature and the address.
    Verify {
        /// Which.
        #[command(flatten)]
        place: WalletPlaceArgs,
        /// Take a file that others may read or change.
        #[arg(long)]
        allow_readable_key: bool,
        /// JSON on stdout: what was signed, and the signature.
        #[arg(long)]
        json: bool,
    },
}
