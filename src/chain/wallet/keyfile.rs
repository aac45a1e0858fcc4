//! A key file as it lies on the disk: read with care, told apart, and opened.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use zeroize::Zeroizing;

use super::content::Content;
use super::key::Signer;
use super::password::{self, Source, Unopened};
use super::{Access, ansible, fernet, nacl, public_path};
use crate::chain::Hotkey;
use crate::error::input;

/// More than any key file has.
const MAX_BYTES: u64 = 64 << 10;

/// How often a password may be mistyped.
const MAX_TRIES: usize = 3;

/// How a key file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As it is.
    Plain,
    /// In NaCl's secret box: Bittensor's tools of today.
    Nacl,
    /// As a vault of Ansible's: those of 2023 and 2024.
    Ansible,
    /// As a token of Fernet's: the first ones.
    Fernet,
}

impl Format {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Nacl => "nacl",
            Self::Ansible => "ansible",
            Self::Fernet => "fernet",
        }
    }

    fn of(bytes: &[u8]) -> Self {
        let encryptions =
            [(nacl::PREFIX, Self::Nacl), (ansible::PREFIX, Self::Ansible), (fernet::PREFIX, Self::Fernet)];
        encryptions.iter().find(|(prefix, _)| bytes.starts_with(prefix)).map_or(Self::Plain, |&(_, format)| format)
    }
}

/// An encrypted file, taken apart.
enum Sealed<'a> {
    Nacl(nacl::Sealed<'a>),
    Ansible(ansible::Sealed),
    Fernet(fernet::Sealed),
}

impl Sealed<'_> {
    fn open(&self, password: &str) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        match self {
            Self::Nacl(sealed) => sealed.open(password, nacl::COST),
            Self::Ansible(sealed) => sealed.open(password),
            Self::Fernet(sealed) => sealed.open(password),
        }
    }
}

/// A key file, read but not opened.
pub struct KeyFile {
    path: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
    format: Format,
    mode: u32,
    /// Whose it is, by number.
    owner: u32,
}

impl KeyFile {
    /// Reads it. The user's error if there is none, or what is there can be none.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        // What is looked at is what is read. A pipe is not waited for.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
        let file = options.open(path).map_err(|error| not_readable(path, &error))?;
        let metadata = file.metadata().with_context(|| format!("cannot read {shown}"))?;
        if metadata.is_dir() {
            return Err(input(format!("{shown} is a folder: name a hotkey's file in it")));
        }
        if !metadata.is_file() {
            return Err(input(format!("{shown} is not a regular file, as a key file is")));
        }
        if metadata.len() > MAX_BYTES {
            return Err(input(format!(
                "{shown} is no key file: it is larger than 64 KiB, and a key file has some 500 bytes"
            )));
        }
        // Room for all from the start: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
        file.take(MAX_BYTES).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
        if bytes.trim_ascii().is_empty() {
            return Err(input(format!("{shown} is empty: put the key file there again from a copy of it")));
        }
        let format = Format::of(&bytes);
        Ok(Self { path: path.to_owned(), bytes, format, mode: metadata.mode() & 0o777, owner: metadata.uid() })
    }

    /// How it is kept.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Who may do what with it, as chmod has it.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Whether others than its owner may read it.
    pub fn is_readable_by_others(&self) -> bool {
        self.mode & 0o044 != 0
    }

    /// Whether others than its owner may change it.
    pub fn is_writable_by_others(&self) -> bool {
        self.mode & 0o022 != 0
    }

    /// The address that it claims, or that the file beside it does which holds nothing else; neither need be true.
    pub fn claimed_address(&self) -> Option<Hotkey> {
        match self.format {
            Format::Plain => Content::parse(&self.bytes).ok()?.address(),
            _ => {
                let public = Self::read(&public_path(&self.path)).ok()?;
                (public.format == Format::Plain).then(|| Content::parse(&public.bytes).ok()?.address())?
            }
        }
    }

    /// Whether it may be opened: that it is no coldkey's, that it is whole as far as can be seen, and that nobody else can
    /// read or change it.
    pub fn check(&self, access: &Access) -> Result<()> {
        let shown = self.path.display();
        let parent = self.path.parent().and_then(Path::file_name);
        if self.path.file_name().is_some_and(|name| name == "coldkey") && parent.is_none_or(|name| name != "hotkeys") {
            return Err(input(format!(
                "{shown} is a coldkey, which holds the money and stays at home: commitments and weights are signed by a \
                 hotkey, in the folder hotkeys beside it"
            )));
        }
        if !access.allow_readable_by_others {
            self.check_owner(rustix::process::geteuid().as_raw())?;
        }
        if self.format != Format::Plain {
            return self.sealed().map(drop);
        }
        if !self.bytes.trim_ascii_start().starts_with(b"{") {
            return Err(input(format!(
                "{shown} is no key file: it is neither JSON nor encrypted in a way of Bittensor's tools; of a bare phrase or \
                 seed `btcli wallet regen-hotkey` makes one"
            )));
        }
        Ok(())
    }

    /// Refuses a file that somebody else than a user has to do with.
    fn check_owner(&self, user: u32) -> Result<()> {
        const ROOT: u32 = 0;
        let shown = self.path.display();
        if self.is_readable_by_others() {
            return Err(input(format!(
                "{shown} can be read by others (its mode is {:03o}): `chmod 600 {shown}` ends that; if it was so on a \
                 machine that others use, take a new hotkey",
                self.mode
            )));
        }
        if self.is_writable_by_others() {
            return Err(input(format!(
                "{shown} can be changed by others (its mode is {:03o}), who may have put another key there: look at its \
                 address, and `chmod 600 {shown}` ends that",
                self.mode
            )));
        }
        if ![user, ROOT].contains(&self.owner) {
            return Err(input(format!(
                "{shown} belongs to another user (number {}), who can read and change it: copy it to a file of your own",
                self.owner
            )));
        }
        Ok(())
    }

    /// Opens it, with a password that is asked for if need be.
    pub(super) fn open(&self, source: &dyn Source) -> Result<Signer> {
        let content = match self.format {
            Format::Plain => return self.signer(&self.bytes),
            _ => self.decrypt(source)?,
        };
        self.signer(&content)
    }

    fn signer(&self, content: &[u8]) -> Result<Signer> {
        let damaged = |what: String| input(format!("{}: {what}", self.path.display()));
        let signer = Content::parse(content).and_then(|content| content.signer()).map_err(damaged)?;
        signer.ok_or_else(|| {
            input(format!(
                "{} holds only an address and no secret: to sign takes the hotkey's own file, hotkeys/NAME",
                self.path.display()
            ))
        })
    }

    fn sealed(&self) -> Result<Sealed<'_>> {
        let sealed = match self.format {
            Format::Nacl => nacl::Sealed::parse(&self.bytes).map(Sealed::Nacl),
            Format::Ansible => ansible::Sealed::parse(&self.bytes).map(Sealed::Ansible),
            Format::Fernet => fernet::Sealed::parse(&self.bytes).map(Sealed::Fernet),
            Format::Plain => None,
        };
        sealed.ok_or_else(|| {
            input(format!(
                "{} begins as an encrypted key file ({}) and is damaged, or not as Bittensor's tools write it: put it there \
                 again from a copy of it",
                self.path.display(),
                self.format.name()
            ))
        })
    }

    fn decrypt(&self, source: &dyn Source) -> Result<Zeroizing<Vec<u8>>> {
        let sealed = self.sealed()?;
        let shown = self.path.display();
        if let Some((variable, password)) = password::of_variable(&self.path, source)? {
            return match sealed.open(&password) {
                Err(Unopened::WrongPassword) => Err(input(format!(
                    "the password in the variable {variable} does not open {shown}: it is another's, or the file is damaged"
                ))),
                outcome => self.explain(outcome),
            };
        }
        let mut question = format!("Password of {shown}: ");
        for _ in 0..MAX_TRIES {
            let Some(password) = source.ask(&question)? else {
                return Err(input(format!(
                    "{shown} is encrypted, and there is no terminal to ask for its password: put it into the variable {}",
                    password::variable_name(&self.path)
                )));
            };
            match self.try_typed(&sealed, &password) {
                Err(Unopened::WrongPassword) => question = format!("That is not it. Password of {shown}: "),
                outcome => return self.explain(outcome),
            }
        }
        Err(input(format!(
            "{shown} was not opened by any of {MAX_TRIES} passwords: they are others', or the file is damaged"
        )))
    }

    /// Tries what was typed without spaces around it, as Bittensor's tools of today do; those before took it as it was.
    fn try_typed(&self, sealed: &Sealed<'_>, typed: &str) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let trimmed = typed.trim();
        match sealed.open(trimmed) {
            Err(Unopened::WrongPassword) if trimmed != typed && self.format != Format::Nacl => sealed.open(typed),
            outcome => outcome,
        }
    }

    fn explain(&self, outcome: Result<Zeroizing<Vec<u8>>, Unopened>) -> Result<Zeroizing<Vec<u8>>> {
        let shown = self.path.display();
        outcome.map_err(|unopened| match unopened {
            Unopened::WrongPassword => input(format!("the password does not open {shown}")),
            Unopened::Damaged => input(format!("the password opens {shown}, and what is in it is damaged")),
            Unopened::Other(error) => error.context(format!("{shown} could not be opened")),
        })
    }
}

fn not_readable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let shown = path.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => input(format!(
            "there is no key file {shown}: copy it there, or make a hotkey with `assay wallet new-hotkey`"
        )),
        ErrorKind::PermissionDenied => {
            input(format!("{shown} may not be read by this user: run assay as the file's owner"))
        }
        _ => input(format!("{shown} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_that_is_anothers_is_refused_but_roots() {
        let file = |mode, owner| {
            let (path, bytes) = (PathBuf::from("f"), Zeroizing::new(Vec::new()));
            KeyFile { path, bytes, format: Format::Plain, mode, owner }
        };
        let refused = |mode, owner| file(mode, owner).check_owner(1_000).unwrap_err().to_string();
        for owner in [0, 1_000] {
            file(0o600, owner).check_owner(1_000).unwrap();
            file(0o400, owner).check_owner(1_000).unwrap();
        }
        assert!(refused(0o600, 1_001).contains("belongs to another user (number 1001)"));
        for mode in [0o620, 0o602] {
            assert!(refused(mode, 1_000).contains(&format!("can be changed by others (its mode is {mode:o})")));
        }
    }
}
