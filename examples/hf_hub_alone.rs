//! Uploads the files of a folder as one commit with the `hf-hub` crate alone, to compare assay's upload by Xet with
//! (`hub_copy`). Takes the token from HF_TOKEN, and says how long it took and how much memory was in use at most.
//!
//! ```console
//! cargo run --release --example hf_hub_alone -- ENDPOINT NAMESPACE NAME DIR
//! ```

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use assay::metrics::printer::Printer;
use hf_hub::repository::CommitOperation;
use hf_hub::{HFClient, RepoTypeModel};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, namespace, name, dir] = arguments.as_slice() else { bail!("give ENDPOINT NAMESPACE NAME DIR") };
    let start = Instant::now();
    let printer = Printer::new(false);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    printer.result(&runtime.block_on(upload(endpoint, namespace, name, Path::new(dir)))?)?;
    let status = fs::read_to_string("/proc/self/status").context("this needs Linux")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel does not tell")?;
    printer.note(&format!("{:.1} s, at most {} in memory", start.elapsed().as_secs_f64(), peak.trim()));
    Ok(())
}

/// Returns the commit.
async fn upload(endpoint: &str, namespace: &str, name: &str, dir: &Path) -> Result<String> {
    let token = std::env::var("HF_TOKEN").context("set HF_TOKEN")?;
    let client = HFClient::builder().endpoint(endpoint).token(token).cache_enabled(false).build()?;
    let repo_id = format!("{namespace}/{name}");
    client.create_repository().repo_id(&repo_id).repo_type(RepoTypeModel).exist_ok(true).send().await?;
    let mut operations = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a file's name is no text")?.to_owned();
        operations.push(CommitOperation::add_file(name, path));
    }
    let repository = client.model(namespace, name);
    let commit = repository.create_commit().operations(operations).commit_message("Alone").send().await?;
    commit.commit_oid.context("the hub names no commit")
}
