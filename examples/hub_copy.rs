//! Uploads the files of a folder to a hub as one commit, or downloads a commit: what `publish` and `validate` do with a hub,
//! without a recipe or a chain. Says how long it took and how much memory was in use at most.
//!
//! ```console
//! cargo run --release --example hub_copy -- upload ENDPOINT NAMESPACE/NAME DIR
//! cargo run --release --example hub_copy -- download ENDPOINT NAMESPACE/NAME COMMIT DIR
//! ```

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use assay::hub::file_hashes::FileHashes;
use assay::hub::huggingface::{HuggingFace, Options, Patience, Token};
use assay::hub::progress::Observer;
use assay::hub::{Hub, Upload};
use assay::metrics::printer::Printer;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printer = Printer::new(false);
    let start = Instant::now();
    match arguments.as_slice() {
        ["upload", endpoint, repo_id, dir] => {
            let names = names(Path::new(dir))?;
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let upload = Upload::new(repo_id, Path::new(dir), &names, "Copy a folder");
            printer.result(&hub(endpoint)?.upload(&upload)?)?;
        }
        ["download", endpoint, repo_id, commit, dir] => {
            let hub = hub(endpoint)?;
            let files = hub.files(repo_id, commit)?;
            fs::create_dir_all(dir)?;
            hub.download(repo_id, commit, &files.iter().collect::<Vec<_>>(), Path::new(dir))?;
        }
        _ => bail!("give upload ENDPOINT REPO DIR, or download ENDPOINT REPO COMMIT DIR"),
    }
    printer.note(&format!("{:.1} s, at most {} in memory", start.elapsed().as_secs_f64(), peak_memory()?));
    Ok(())
}

fn hub(endpoint: &str) -> Result<HuggingFace> {
    HuggingFace::new(Options {
        endpoint: endpoint.to_owned(),
        token: Token::find()?,
        max_bytes_per_second: None,
        hashes: FileHashes::default(),
        patience: Patience::default(),
        observer: Observer::default(),
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

/// As the kernel counts it: "123456 kB".
fn peak_memory() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status").context("this needs Linux")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(peak.context("the kernel does not tell")?.trim().to_owned())
}
