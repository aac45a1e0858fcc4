//! Where the password of a key file comes from: a variable of the environment, or the user at his terminal.
//!
//! Bittensor's tools of today look at `BT_PW_` and the file's path in capitals, whose value they do not write as it is but
//! mixed with the variable's name, in base64. Those of 2024 took the password as it is from `BT_COLD_PW_` and the name of
//! the folder that the file is in, with underscores for hyphens and whatever the case: of a coldkey that is the wallet's
//! name, of every hotkey `HOTKEYS`. Assay takes all of these, and the wallet's name for its hotkeys too.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::iter;
use std::path::{self, Path};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::error::{Failure, input};

/// The least characters of a password that assay takes for a new file.
const MIN_CHARS: usize = 8;

/// Where passwords come from; tests have their own.
pub(super) trait Source: Send + Sync {
    /// The value of a variable of the environment.
    fn variable(&self, name: &str) -> Option<OsString>;

    /// The names of all variables that are texts.
    fn variables(&self) -> Vec<String>;

    /// What the user types as an answer to a question without seeing it; `None` if there is nobody to ask.
    fn ask(&self, question: &str) -> Result<Option<Zeroizing<String>>>;
}

/// This process's environment and terminal.
pub(super) struct Surroundings;

impl Source for Surroundings {
    fn variable(&self, name: &str) -> Option<OsString> {
        env::var_os(name)
    }

    fn variables(&self) -> Vec<String> {
        env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
    }

    fn ask(&self, question: &str) -> Result<Option<Zeroizing<String>>> {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Ok(None);
        }
        let password = rpassword::prompt_password(question).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => Failure::Interrupted("stopped before a password was given".to_owned()).into(),
            _ => anyhow::Error::from(error).context("the password could not be asked for"),
        })?;
        Ok(Some(Zeroizing::new(password)))
    }
}

/// The password that a variable holds for a key file, and the variable's name.
pub(super) fn of_variable(file: &Path, source: &dyn Source) -> Result<Option<(String, Zeroizing<String>)>> {
    for name in mixed_names(file) {
        if let Some(value) = text_of(&name, source)? {
            let password = unmix(&value, &name).ok_or_else(|| {
                input(format!(
                    "the variable {name} holds no password as Bittensor's tools write it there: put it as it is into {}",
                    variable_name(file)
                ))
            })?;
            return Ok(Some((name, password)));
        }
    }
    for name in plain_names(file) {
        let spellings = source.variables().into_iter().filter(|other| *other != name && other.to_uppercase() == name);
        for spelling in iter::once(name.clone()).chain(spellings) {
            if let Some(password) = text_of(&spelling, source)? {
                return Ok(Some((spelling, password)));
            }
        }
    }
    Ok(None)
}

/// The variable that a user is told to put a key file's password into.
pub(super) fn variable_name(file: &Path) -> String {
    plain_names(file).swap_remove(0)
}

/// A password for a new file: that of its variable, or one that is typed twice.
pub(super) fn for_new(file: &Path, source: &dyn Source) -> Result<Zeroizing<String>> {
    if let Some((variable, password)) = of_variable(file, source)? {
        return check_new(&password)
            .map(|()| password)
            .map_err(|fault| input(format!("the password in the variable {variable} {fault}")));
    }
    let mut question = format!("Password for {}: ", file.display());
    loop {
        let (Some(password), Some(again)) = (source.ask(&question)?, source.ask("Once more: ")?) else {
            return Err(input(format!(
                "there is no terminal to ask for the password of {}: put it into the variable {}",
                file.display(),
                variable_name(file)
            )));
        };
        // As Bittensor's tools do.
        let [password, again] = [password, again].map(|typed| Zeroizing::new(typed.trim().to_owned()));
        let fault = match check_new(&password) {
            Ok(()) if password == again => return Ok(password),
            Ok(()) => "is not the same both times",
            Err(fault) => fault,
        };
        question = format!("The password {fault}. Password for {}: ", file.display());
    }
}

fn check_new(password: &str) -> Result<(), &'static str> {
    if password.trim() != password {
        // At their prompts, Bittensor's tools would cut it off.
        return Err("begins or ends with a space");
    }
    if password.chars().count() < MIN_CHARS {
        return Err("has fewer than 8 characters");
    }
    Ok(())
}

/// The text of a variable that is not empty.
fn text_of(name: &str, source: &dyn Source) -> Result<Option<Zeroizing<String>>> {
    let Some(value) = source.variable(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = value.into_string().map_err(|_| input(format!("the variable {name} holds no text in UTF-8")))?;
    Ok(Some(Zeroizing::new(text)))
}

/// The names under which Bittensor's tools of today look: of the path as it is given, and of the whole one.
fn mixed_names(file: &Path) -> Vec<String> {
    let name = |path: &Path| format!("BT_PW_{}", path.to_string_lossy().replace(['/', '.'], "_").to_uppercase());
    let mut names = vec![name(file)];
    if let Ok(whole) = path::absolute(file) {
        names.push(name(&whole));
    }
    names
}

/// The names of variables that hold the password as it is; the first is one that a shell takes.
fn plain_names(file: &Path) -> Vec<String> {
    let whole = path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let name_of = |folder: &Path| folder.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    let mut folders = whole.ancestors().skip(1).map(name_of);
    let folder = folders.next().unwrap_or_default();
    let names = if folder == "HOTKEYS" { vec![folders.next().unwrap_or_default(), folder] } else { vec![folder] };
    let for_shells = |name: &String| name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut spellings: Vec<String> = names.iter().flat_map(|name| [for_shells(name), name.clone()]).collect();
    spellings.dedup();
    spellings.iter().map(|name| format!("BT_COLD_PW_{name}")).collect()
}

/// What Bittensor's tools have mixed with the name of its variable.
fn unmix(value: &str, name: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(STANDARD.decode(value).ok()?);
    for (byte, key) in bytes.iter_mut().zip(name.bytes().cycle()) {
        *byte ^= key;
    }
    let text = str::from_utf8(&bytes).ok()?;
    Some(Zeroizing::new(text.to_owned()))
}

/// Why a password did not open a file.
#[derive(Debug)]
pub(super) enum Unopened {
    /// It is not the file's, or the file is damaged: the checksum does not tell which.
    WrongPassword,
    /// It is, and what it guards is damaged.
    Damaged,
    /// Something else.
    Other(anyhow::Error),
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::error::exit_code;

    /// Variables and answers of a test's own, and the questions that were asked.
    #[derive(Default)]
    pub(in crate::chain::wallet) struct Scripted {
        pub(in crate::chain::wallet) variables: BTreeMap<String, String>,
        pub(in crate::chain::wallet) answers: Mutex<Vec<&'static str>>,
        pub(in crate::chain::wallet) questions: Mutex<Vec<String>>,
    }

    impl Scripted {
        /// A terminal at which these answers are given.
        pub(in crate::chain::wallet) fn answering(answers: &[&'static str]) -> Self {
            Self { answers: Mutex::new(answers.iter().rev().copied().collect()), ..Self::default() }
        }

        /// No terminal, but variables.
        pub(in crate::chain::wallet) fn with(variables: &[(&str, &str)]) -> Self {
            let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            Self { variables, ..Self::default() }
        }
    }

    impl Source for Scripted {
        fn variable(&self, name: &str) -> Option<OsString> {
            self.variables.get(name).map(OsString::from)
        }

        fn variables(&self) -> Vec<String> {
            self.variables.keys().cloned().collect()
        }

        fn ask(&self, question: &str) -> Result<Option<Zeroizing<String>>> {
            self.questions.lock().unwrap().push(question.to_owned());
            Ok(self.answers.lock().unwrap().pop().map(|answer| Zeroizing::new(answer.to_owned())))
        }
    }

    fn found(file: &str, variables: &[(&str, &str)]) -> Option<(String, String)> {
        let found = of_variable(Path::new(file), &Scripted::with(variables)).unwrap();
        found.map(|(name, password)| (name, password.to_string()))
    }

    #[test]
    fn a_password_is_found_where_the_tools_of_today_and_of_2024_put_it() {
        // As bittensor-wallet 4.1.1 named and wrote it.
        let of_today = ("BT_PW__TMP_BTW_H_E1", "NjEsJCc+LCd8Ymw=");
        assert_eq!(found("/tmp/btw/h/e1", &[of_today]).unwrap(), (of_today.0.into(), "testpass123".into()));
        let file = "/w/my-miner/hotkeys/h.1";
        assert_eq!(mixed_names(Path::new(file))[0], "BT_PW__W_MY-MINER_HOTKEYS_H_1");
        let of_2024 = ["BT_COLD_PW_MY_MINER", "BT_COLD_PW_MY-MINER", "BT_COLD_PW_HOTKEYS", "bt_cold_pw_my_miner"];
        for name in of_2024.into_iter().chain(["BT_COLD_PW_My-Miner"]) {
            assert_eq!(found(file, &[(name, "as it is")]).unwrap(), (name.into(), "as it is".into()));
        }
        let both = [("BT_COLD_PW_MY_MINER", "as it is"), ("BT_COLD_PW_My_Miner", "another")];
        assert_eq!(found(file, &both).unwrap().1, "as it is");
        assert_eq!(found(file, &[("BT_COLD_PW_MINER", "x"), ("BT_COLD_PW_MY_MINER", "")]), None);
        assert_eq!(found("/w/my-miner/coldkey", &[("BT_COLD_PW_MY_MINER", "x")]).unwrap().1, "x");
        assert_eq!(variable_name(Path::new(file)), "BT_COLD_PW_MY_MINER");
    }

    #[test]
    fn what_is_no_password_of_the_tools_is_refused_without_being_shown() {
        for value in ["my own password!", "/////w=="] {
            let source = Scripted::with(&[("BT_PW__F", value)]);
            let error = of_variable(Path::new("/f"), &source).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains("BT_PW__F") && !error.to_string().contains(value), "{error}");
        }
    }

    #[test]
    fn a_new_password_is_typed_twice_and_must_be_one_that_can_be_typed_again() {
        let file = Path::new("/w/default/hotkeys/h");
        let typed = ["short", "short", "long enough", "long enouhg", "long enough ", "long enough"];
        let source = Scripted::answering(&typed);
        assert_eq!(*for_new(file, &source).unwrap(), "long enough");
        let questions = source.questions.lock().unwrap().join("|");
        assert!(questions.contains("fewer than 8") && questions.contains("not the same both times"), "{questions}");

        let error = for_new(file, &Scripted::default()).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("BT_COLD_PW_DEFAULT"), "{error}");
        let refused = |value| for_new(file, &Scripted::with(&[("BT_COLD_PW_DEFAULT", value)])).unwrap_err().to_string();
        assert!(refused("short").ends_with("BT_COLD_PW_DEFAULT has fewer than 8 characters"));
        assert!(refused("long enough ").ends_with("begins or ends with a space"));
    }
}
