//! Uploads the files of a folder as one commit with the `hf-hub` crate alone, to compare with assay's upload.
//!
//! ```text
//! hf-hub-alone ENDPOINT NAMESPACE NAME DIR
//! ```

use std::time::Instant;

use anyhow::{Context, Result, bail};
use hf_hub::repository::CommitOperation;
use hf_hub::{HFClient, RepoTypeModel};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, namespace, name, dir] = arguments.as_slice() else { bail!("give ENDPOINT NAMESPACE NAME DIR") };
    let start = Instant::now();
    let client = HFClient::builder().endpoint(endpoint).token(std::env::var("HF_TOKEN")?).cache_enabled(false).build()?;
    let repo_id = format!("{namespace}/{name}");
    client.create_repository().repo_id(&repo_id).repo_type(RepoTypeModel).exist_ok(true).send().await?;
    let mut operations = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a name that is none")?.to_owned();
        operations.push(CommitOperation::add_file(name, path));
    }
    let repository = client.model(namespace, name);
    let commit = repository.create_commit().operations(operations).commit_message("Alone").send().await?;
    println!("{}", commit.commit_oid.context("no commit")?);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
    eprintln!("{:.1} s, at most {} in memory", start.elapsed().as_secs_f64(), peak.trim());
    Ok(())
}
