//! What a hub tells of a repository: its commits, its files with their sizes and sums, and who sees it. Lists come in pages,
//! and all that strangers can make long is bounded.

use std::fmt;

use anyhow::Result;
use reqwest::Url;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::HuggingFace;
use super::answer::{parse, shown};
use super::fault::Fault;
use super::repository::{self, Repository, is_absence};
use crate::error::{Failure, input};
use crate::figures::count;
use crate::hub::{Checksum, RemoteFile, names};

/// What is larger is not looked at.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Files and folders, or commits.
    entries: usize,
    /// Hugging Face's lists of so many entries have no more, all pages together.
    bytes: usize,
}

/// Those of a model's repository.
const MODEL: Limits = Limits { entries: 10_000, bytes: 16 << 20 };
/// Those of a data set.
pub(super) const DATA_SET: Limits = Limits { entries: 100_000, bytes: 64 << 20 };
/// Pages may be small, but not without end.
const MAX_PAGES: usize = 1_000;

/// A file or a folder of a tree.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: Option<String>,
    lfs: Option<Lfs>,
}

/// A large file, whose entry is that of a small one that stands for it.
#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

#[derive(Deserialize)]
struct Commit {
    id: String,
}

impl HuggingFace {
    /// The files of a repository at a commit, sorted by path.
    pub(super) async fn list_files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        let what = format!("the files of {repo_id} at the commit {commit} could not be listed");
        check_names(repo_id, Some(commit))?;
        self.list_tree(self.http.model_url(repo_id, &["tree", commit]), MODEL, &what).await
    }

    /// The files of a tree and of all folders in it, sorted by path.
    pub(super) async fn list_tree(&self, mut url: Url, limits: Limits, what: &str) -> Result<Vec<RemoteFile>> {
        url.query_pairs_mut().append_pair("recursive", "true");
        let entries: Vec<Entry> = self.list(url, limits, what).await?;
        let files = entries.into_iter().filter(|entry| entry.kind == "file").map(Entry::into_file);
        let files = files.collect::<Result<Vec<_>, _>>();
        let mut files = files.map_err(|reason| self.http.error(Fault::Lost(reason), what))?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(twice) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(no(format!("{what}: the file {:?} is there twice.", shown(&twice[0].path))));
        }
        Ok(files)
    }

    /// The commits of a repository, newest first; none if it is not there.
    pub(super) async fn list_commits(&self, repo_id: &str) -> Result<Vec<String>> {
        check_names(repo_id, None)?;
        let what = format!("the commits of {repo_id} could not be listed");
        let url = self.http.model_url(repo_id, &["commits", "main"]);
        let commits = match self.pages::<Commit>(url, MODEL).await {
            Err(fault) if is_absence(&fault) => return Ok(Vec::new()),
            Err(fault) => return Err(self.http.reading_error(fault, &what)),
            Ok(None) => return Err(too_many(MODEL, &what)),
            Ok(Some(commits)) => commits,
        };
        commits.into_iter().map(|commit| self.commit(commit.id, &what)).collect()
    }

    /// The newest commit of a repository; `None` if it is not there.
    pub(super) async fn ask_newest_commit(&self, repo_id: &str) -> Result<Option<String>> {
        let what = format!("the newest commit of {repo_id} could not be asked for");
        let info = self.info(repo_id, &["revision", "main"], &what).await?;
        info.and_then(|info| info.commit).map(|sha| self.commit(sha, &what)).transpose()
    }

    /// Whether only its owner sees a repository; `None` if it is not there.
    pub(super) async fn ask_is_private(&self, repo_id: &str) -> Result<Option<bool>> {
        let what = format!("who sees {repo_id} could not be asked for");
        let Some(info) = self.info(repo_id, &[], &what).await? else { return Ok(None) };
        let untold = || self.http.error(Fault::Lost("it does not tell whether it is private".to_owned()), &what);
        info.private.map(Some).ok_or_else(untold)
    }

    async fn info(&self, repo_id: &str, below: &[&str], what: &str) -> Result<Option<Repository>> {
        check_names(repo_id, None)?;
        repository::ask(&self.http, repo_id, below).await.map_err(|fault| self.http.reading_error(fault, what))
    }

    /// The whole of a list of a repository that is there.
    async fn list<T: for<'a> Deserialize<'a>>(&self, url: Url, limits: Limits, what: &str) -> Result<Vec<T>> {
        let listed = self.pages(url, limits).await.map_err(|fault| self.http.reading_error(fault, what))?;
        listed.ok_or_else(|| too_many(limits, what))
    }

    /// The whole of a list; `None` if it is too long.
    async fn pages<T: for<'a> Deserialize<'a>>(&self, url: Url, limits: Limits) -> Result<Option<Vec<T>>, Fault> {
        let mut all = Vec::new();
        let mut bytes_left = limits.bytes;
        let mut next = Some(url);
        for _ in 0..MAX_PAGES {
            let Some(url) = next else { return Ok(Some(all)) };
            let page = self.http.get_page(url, bytes_left).await.map_err(|fault| match fault {
                Fault::TooLong(_) => Fault::TooLong(limits.bytes),
                fault => fault,
            })?;
            bytes_left = bytes_left.saturating_sub(page.bytes.len());
            let Bounded { entries, is_cut } = parse(&page.bytes)?;
            all.extend(entries);
            if is_cut || all.len() > limits.entries {
                return Ok(None);
            }
            next = page.next.clone();
        }
        Ok(None)
    }

    /// A commit that the hub names, which names folders here.
    fn commit(&self, sha: String, what: &str) -> Result<String> {
        match names::is_commit(&sha) {
            true => Ok(sha),
            false => Err(self.http.error(Fault::Lost("what it names is no commit".to_owned()), what)),
        }
    }
}

impl Entry {
    fn into_file(self) -> Result<RemoteFile, String> {
        let Self { path, size, oid, lfs, .. } = self;
        let no_sum = || format!("the sum that it tells of {:?} is none", shown(&path));
        let (bytes, sum) = match (&lfs, &oid) {
            (Some(lfs), _) => (lfs.size, Some(Checksum::Sha256(digest(&lfs.oid).ok_or_else(no_sum)?))),
            (None, Some(oid)) => (size, Some(Checksum::GitBlob(digest(oid).ok_or_else(no_sum)?))),
            (None, None) => (size, None),
        };
        Ok(RemoteFile { path, bytes, sum })
    }
}

fn digest<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_plain = text.len() == 2 * N && !text.starts_with("0x");
    is_plain.then(|| crate::hex::read(text))?.and_then(|bytes| bytes.try_into().ok())
}

pub(super) fn check_names(repo_id: &str, commit: Option<&str>) -> Result<()> {
    names::repository(repo_id).map_err(input)?;
    match commit.filter(|commit| !names::is_commit(commit)) {
        Some(commit) => {
            let digits = names::COMMIT_DIGITS;
            Err(input(format!("{commit:?} is no commit, which has {digits} hexadecimal digits.")))
        }
        None => Ok(()),
    }
}

fn too_many(limits: Limits, what: &str) -> anyhow::Error {
    no(format!("{what}: they are more than {}.", count(limits.entries as u64)))
}

fn no(sentence: String) -> anyhow::Error {
    Failure::No(sentence).into()
}

/// The first entries of an array: one of a million is read past, and takes no memory.
struct Bounded<T> {
    entries: Vec<T>,
    is_cut: bool,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bounded<T>, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < DATA_SET.entries {
                    let Some(entry) = list.next_element()? else { return Ok(Bounded { entries, is_cut: false }) };
                    entries.push(entry);
                }
                let is_cut = list.next_element::<IgnoredAny>()?.is_some();
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Bounded { entries, is_cut })
            }
        }

        deserializer.deserialize_seq(Entries(std::marker::PhantomData))
    }
}
