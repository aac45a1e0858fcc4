//! Hubs for tests that do one thing in another way than a hub behind them.

use std::path::Path;

use anyhow::Result;

use super::{Hub, RemoteFile, Sha256Sum, Upload};

/// A hub that does as another one, but for what it overrides.
pub(crate) trait HubOver: Send + Sync {
    fn inner(&self) -> &dyn Hub;

    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>> {
        self.inner().newest_commit(repo_id)
    }

    fn commits(&self, repo_id: &str) -> Result<Vec<String>> {
        self.inner().commits(repo_id)
    }

    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        self.inner().files(repo_id, commit)
    }

    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        self.inner().download(repo_id, commit, files, into)
    }
}

impl<T: HubOver> Hub for T {
    fn describe(&self) -> String {
        self.inner().describe()
    }
    fn check_writable(&self, repo_id: &str) -> Result<()> {
        self.inner().check_writable(repo_id)
    }
    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>> {
        HubOver::newest_commit(self, repo_id)
    }
    fn commits(&self, repo_id: &str) -> Result<Vec<String>> {
        HubOver::commits(self, repo_id)
    }
    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        HubOver::files(self, repo_id, commit)
    }
    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        HubOver::download(self, repo_id, commit, files, into)
    }
    fn upload(&self, upload: &Upload<'_>) -> Result<String> {
        self.inner().upload(upload)
    }
    fn is_private(&self, repo_id: &str) -> Result<Option<bool>> {
        self.inner().is_private(repo_id)
    }
    fn set_private(&self, repo_id: &str, private: bool) -> Result<()> {
        self.inner().set_private(repo_id, private)
    }
}
