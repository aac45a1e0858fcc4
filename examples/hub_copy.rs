//! Uploads the files of a folder to a hub as one commit, or downloads a commit: what `publish` and `validate` do with a hub,
//! without a recipe or a chain. The token is that of HF_TOKEN, or of `hf auth login`.
//!
//! ```console
//! cargo run --release --example hub_copy -- upload ENDPOINT NAMESPACE/NAME DIR
//! cargo run --release --example hub_copy -- download ENDPOINT NAMESPACE/NAME COMMIT DIR
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use assay::hub::file_hashes::FileHashes;
use assay::hub::huggingface::{HuggingFace, Options, Patience, Token};
use assay::hub::{Hub, Upload};
use assay::metrics::printer::Printer;
use assay::metrics::transfers;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["upload", endpoint, repo_id, dir] => {
            let names = names(Path::new(dir))?;
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let upload = Upload::new(repo_id, Path::new(dir), &names, "Copy a folder");
            Printer::new(false).result(&hub(endpoint)?.upload(&upload)?)?;
        }
        ["download", endpoint, repo_id, commit, dir] => {
            let hub = hub(endpoint)?;
            let files = hub.files(repo_id, commit)?;
            fs::create_dir_all(dir)?;
            hub.download(repo_id, commit, &files.iter().collect::<Vec<_>>(), Path::new(dir))?;
        }
        _ => bail!("give upload ENDPOINT REPO DIR, or download ENDPOINT REPO COMMIT DIR"),
    }
    Ok(())
}

fn hub(endpoint: &str) -> Result<HuggingFace> {
    HuggingFace::new(Options {
        endpoint: endpoint.to_owned(),
        token: Token::find()?,
        max_bytes_per_second: None,
        hashes: FileHashes::default(),
        patience: Patience::default(),
        observer: transfers::observer(&Printer::new(false)),
    })
}

/// The regular files of a folder.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    Ok(names)
}
