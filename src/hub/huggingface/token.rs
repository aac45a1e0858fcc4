//! The token that a hub knows its user by: where it is found, and that it is never seen.

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use reqwest::header::HeaderValue;
use zeroize::Zeroizing;

use crate::error::input;

/// The variables that may hold a token, in their order; the second is the subnet's name for it.
const VARIABLES: [&str; 2] = ["HF_TOKEN", "HF_ACCESS_TOKEN"];
/// How the tokens of Hugging Face begin.
const PREFIXES: [&str; 4] = ["hf_", "api_org_", "hf_oauth_", "hf_jwt_"];
/// After that they have at least so many letters and digits.
const LEAST_CHARS: usize = 20;

/// A token. Whatever prints it prints where it comes from.
#[derive(Clone)]
pub struct Token {
    secret: Zeroizing<String>,
    source: String,
}

impl Token {
    /// A token from somewhere, which is told when it is refused.
    ///
    /// # Errors
    /// It holds what no header can.
    pub fn new(secret: &str, source: impl Into<String>) -> Result<Self> {
        let (secret, source) = (Zeroizing::new(secret.trim().to_owned()), source.into());
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(input(format!("{source} holds no token: letters and digits without spaces")));
        }
        Ok(Self { secret, source })
    }

    /// The token of the environment; `None` if there is none.
    pub fn of_environment() -> Result<Option<Self>> {
        for name in VARIABLES {
            if let Some(secret) = env::var(name).ok().map(Zeroizing::new).filter(|secret| !secret.trim().is_empty()) {
                return Self::new(&secret, format!("the environment variable {name}")).map(Some);
            }
        }
        Ok(None)
    }

    /// The token of the environment, or the one that `hf auth login` has left; `None` if there is none.
    pub fn find() -> Result<Option<Self>> {
        if let Some(token) = Self::of_environment()? {
            return Ok(Some(token));
        }
        let Some(path) = file() else { return Ok(None) };
        // One that is not there, or not ours to read, is none.
        let Ok(secret) = fs::read_to_string(&path).map(Zeroizing::new) else { return Ok(None) };
        if secret.trim().is_empty() {
            return Ok(None);
        }
        Self::new(&secret, format!("the file {}", path.display())).map(Some)
    }

    /// The one for an address that a recipe may name, where `own` is Hugging Face's. What a recipe names, which may be somebody
    /// else's, does not get the token that was left for Hugging Face.
    pub fn for_endpoint(named: Option<&str>, own: &str) -> Result<Option<Self>> {
        if named.is_some_and(|endpoint| endpoint != own) { Self::of_environment() } else { Self::find() }
    }

    /// Where it comes from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The header that carries it.
    pub(super) fn header(&self) -> HeaderValue {
        let text = Zeroizing::new(format!("Bearer {}", self.secret.as_str()));
        let mut value = HeaderValue::from_str(&text).expect("a token is made of what a header can hold");
        value.set_sensitive(true);
        value
    }

    /// Its text, for who has to send it himself.
    pub(super) fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of {}", self.source)
    }
}

/// The file in which Hugging Face's own programs keep the token.
fn file() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("HF_TOKEN_PATH") {
        return Some(path);
    }
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
    let home = set("HF_HOME").or_else(|| Some(cache()?.join("huggingface")))?;
    Some(home.join("token"))
}

/// Whether a text looks like a token, which belongs into no recipe.
pub fn looks_like_token(text: &str) -> bool {
    let begins_long = |rest: &str| rest.bytes().take_while(u8::is_ascii_alphanumeric).count() >= LEAST_CHARS;
    let is_token = |word: &str| PREFIXES.iter().any(|prefix| word.strip_prefix(prefix).is_some_and(begins_long));
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_').any(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_from_names() {
        for token in [
            "hf_abcdefghijklmnopqrst",
            "token: \"hf_ABCDEFGHIJKLMNOPQRSTUVWXYZ01234567\"",
            "api_org_abcdefghijklmnopqrstuvwx",
            "hf_oauth_eyJhbGciOiJFZERTQSJ9eyJzY29wZSI.abc-def_ghi",
        ] {
            assert!(looks_like_token(token), "{token}");
        }
        for name in
            ["hf_hub_download_something_long", "hf_abc", "me/hf_model", "checkpoints/abcdefghijklmnopqrstuvwxyz", ""]
        {
            assert!(!looks_like_token(name), "{name}");
        }
    }

    #[test]
    fn a_token_is_shown_by_its_source_alone_and_holds_nothing_that_no_header_can() {
        let token = Token::new(" hf_secret\n", "the test").expect("a token");
        assert_eq!((format!("{token:?}").as_str(), token.secret()), ("Token of the test", "hf_secret"));
        assert!(!format!("{:?}", token.header()).contains("secret"));
        for bad in ["", "  ", "two words", "hf_\u{e9}", "a\nb"] {
            let error = Token::new(bad, "the test").expect_err(bad);
            assert!(error.to_string().starts_with("the test holds no token"), "{error}");
        }
    }
}
