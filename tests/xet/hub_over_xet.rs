//! Serves a hub folder as Hugging Face does where files go up and down by Xet, with Hugging Face's own test store behind it
//! (`tests/xet`): what `.ci/check_xet.py` uploads to. Ends with its input.
//!
//! ```console
//! cargo run --release --example hub_over_xet -- XET_STORE DIR
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use assay::hub::folder::FolderHub;
use assay::local::hub::{HubServer, Options, Xet, XetAccess};
use assay::metrics::printer::Printer;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program, dir] = arguments.as_slice() else { anyhow::bail!("give XET_STORE DIR") };
    let hub = Arc::new(FolderHub::create(&dir.join("hub"))?);
    let store = Store::start(program, &dir.join("xet"))?;
    let server = HubServer::start(hub, 0, Options { xet: Some(Arc::new(store)), ..Options::default() })?;
    Printer::new(false).result(&server.endpoint())?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// The store's process, which ends when it is dropped.
struct Store {
    url: String,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    process: Child,
}

impl Store {
    fn start(program: &Path, dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        let mut process = command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("no store")?;
        let to = process.stdin.take().context("the store has no input")?;
        let mut from = BufReader::new(process.stdout.take().context("the store has no output")?);
        let url = line(&mut from)?;
        Ok(Self { url, talk: Mutex::new((to, from)), process })
    }

    /// The answer to a question; `None` if the store has no such file.
    fn ask(&self, question: &str) -> Result<Option<String>> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, from) = &mut *talk;
        writeln!(to, "{question}")?;
        Ok(Some(line(from)?).filter(|answer| answer != "-"))
    }
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(from.read_line(&mut line)? > 0, "the store has ended");
    Ok(line.trim_end().to_owned())
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Xet for Store {
    fn access(&self) -> XetAccess {
        XetAccess {
            cas_url: self.url.clone(),
            access_token: "a-token-for-the-store".to_owned(),
            expires: u32::MAX.into(),
        }
    }

    fn hash(&self, sha256: &str) -> Option<String> {
        self.ask(&format!("hash {sha256}")).ok().flatten()
    }

    fn fetch(&self, sha256: &str, to: &Path) -> Result<bool> {
        Ok(self.ask(&format!("fetch {sha256} {}", to.display()))?.is_some())
    }
}
