//! The hotkeys of this process: whose they are from the start, and what signs for them once it is needed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use super::keyfile::{Format, KeyFile};
use super::password::{Source, Surroundings};
use super::{Access, PUBLIC_SUFFIX, Signer, check_name, hotkey_path, hotkeys_dir};
use crate::chain::{Hotkey, account};
use crate::error::input;

/// How many names a message lists.
const MAX_LISTED: usize = 8;

/// The keys that may sign in this process, by address.
pub struct Keyring {
    access: Access,
    source: Box<dyn Source>,
    entries: BTreeMap<Hotkey, Entry>,
}

/// A hotkey.
#[derive(Default)]
struct Entry {
    /// Its file; `None`: it is only watched.
    file: Option<PathBuf>,
    /// It, once it is open. The lock is held while a password is asked for, so that it is asked for once.
    signer: Mutex<Option<Arc<Signer>>>,
}

impl Default for Keyring {
    fn default() -> Self {
        Self::new(Access::default())
    }
}

impl Keyring {
    /// One that opens key files so.
    pub fn new(access: Access) -> Self {
        Self::with_source(access, Box::new(Surroundings))
    }

    /// One that has its passwords from elsewhere.
    pub(super) fn with_source(access: Access, source: Box<dyn Source>) -> Self {
        Self { access, source, entries: BTreeMap::new() }
    }

    /// Adds a hotkey: the name of one in a wallet's folder (`WALLETS/NAME`), or an address, which can sign if it is that of
    /// one of these, and else only be watched. A password is asked for only where nothing else tells the address.
    pub fn add(&mut self, wallet: &Path, name_or_address: &str) -> Result<Hotkey> {
        if account::parse(name_or_address).is_err() {
            return self.add_named(wallet, name_or_address);
        }
        let claims = |name: &String| {
            let file = KeyFile::read(&hotkeys_dir(wallet).join(name)).ok()?;
            (file.claimed_address()? == name_or_address).then_some(())
        };
        let mut refused = None;
        for name in names(wallet).into_iter().filter(|name| claims(name).is_some()) {
            match self.add_file(&hotkeys_dir(wallet).join(name)) {
                Ok(hotkey) => return Ok(hotkey),
                // Another may be as good as this one claims to be.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        self.entries.entry(name_or_address.to_owned()).or_default();
        Ok(name_or_address.to_owned())
    }

    /// Adds the hotkey of a key file.
    pub fn add_file(&mut self, path: &Path) -> Result<Hotkey> {
        let file = KeyFile::read(path)?;
        file.check(&self.access)?;
        let claimed = if file.format() == Format::Plain { None } else { file.claimed_address() };
        let (hotkey, signer) = match claimed {
            Some(hotkey) => (hotkey, None),
            None => {
                let signer = file.open(self.source.as_ref())?;
                (signer.address().to_owned(), Some(Arc::new(signer)))
            }
        };
        let entry = self.entries.entry(hotkey.clone()).or_default();
        if entry.file.is_none() {
            *entry = Entry { file: Some(path.to_owned()), signer: Mutex::new(signer) };
        }
        Ok(hotkey)
    }

    /// The hotkeys, in the order of their addresses.
    pub fn hotkeys(&self) -> impl Iterator<Item = &Hotkey> {
        self.entries.keys()
    }

    /// The key of a hotkey; the first time it may ask for a password.
    pub fn signer(&self, hotkey: &str) -> Result<Arc<Signer>> {
        let Some((path, slot)) = self.entries.get(hotkey).and_then(|entry| Some((entry.file.as_ref()?, &entry.signer)))
        else {
            return Err(cannot_sign(hotkey));
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signer) = &*slot {
            return Ok(Arc::clone(signer));
        }
        let file = KeyFile::read(path)?;
        file.check(&self.access)?;
        let signer = Arc::new(file.open(self.source.as_ref())?);
        if signer.address() != hotkey {
            return Err(input(format!(
                "{} holds the key of {}, and the file beside it says {hotkey}: one of the two is another hotkey's",
                path.display(),
                signer.address()
            )));
        }
        *slot = Some(Arc::clone(&signer));
        Ok(signer)
    }

    /// Opens a hotkey's file now, while somebody is there to be asked for its password.
    pub fn unlock(&self, hotkey: &str) -> Result<()> {
        self.signer(hotkey).map(drop)
    }

    fn add_named(&mut self, wallet: &Path, name: &str) -> Result<Hotkey> {
        let path = hotkey_path(wallet, name)?;
        // What cannot be looked at is not taken for missing.
        if !path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return self.add_file(&path);
        }
        let wrong = match account::parse(name) {
            // Meant as an address, it seems.
            Err(sentence) if name.len() > 40 => format!("; and {sentence}"),
            _ => String::new(),
        };
        Err(input(format!("there is no hotkey `{name}` in {}{}{wrong}", hotkeys_dir(wallet).display(), listed(wallet))))
    }
}

fn cannot_sign(hotkey: &str) -> anyhow::Error {
    input(format!(
        "nothing can be signed for {hotkey} here: none of the wallet's files says that it is its key. If one is, name its \
         hotkey instead of the address; if the key is on another machine, run `assay publish --prepare` here and \
         `assay publish --commit` there"
    ))
}

/// The names of a wallet's hotkeys, sorted; none if its folder cannot be read.
fn names(wallet: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(hotkeys_dir(wallet)) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| check_name(name).is_ok() && !name.ends_with(PUBLIC_SUFFIX)).collect();
    names.sort();
    names
}

/// What hotkeys a wallet has, for a message.
fn listed(wallet: &Path) -> String {
    let names = names(wallet);
    if names.is_empty() {
        return ", which holds none: copy its file there, or make it with `assay wallet new-hotkey`".to_owned();
    }
    let more = if names.len() > MAX_LISTED { ", …" } else { "" };
    format!(", which holds {}{more}", names[..names.len().min(MAX_LISTED)].join(", "))
}
