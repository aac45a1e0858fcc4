//! The addresses of nodes.

use std::fmt;

use anyhow::Result;
use sha2::{Digest, Sha256};
use subxt::ext::jsonrpsee::client_transport::ws::Url;

use crate::error::input;

/// Where a node is reached.
#[derive(Clone)]
pub(super) struct Endpoint {
    url: String,
    shown: String,
}

impl Endpoint {
    /// Takes `wss://` to anywhere, and `ws://` to this machine.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|error| {
            input(format!(
                "`{}` is no address of a node ({error}): write one as wss://HOST:PORT, or ws://127.0.0.1:PORT",
                shortened(url)
            ))
        })?;
        let shown = show(&parsed);
        match parsed.scheme() {
            "wss" => (),
            "ws" if subxt::rpcs::utils::url_is_secure(url).unwrap_or(false) => (),
            "ws" => {
                return Err(input(format!(
                    "{shown} is not encrypted, and whoever is on the way could change what it says: ws:// is for nodes on \
                     this machine (ws://127.0.0.1:PORT); write wss://"
                )));
            }
            other => {
                return Err(input(format!(
                    "{shown} begins with {other}://, and nodes are reached by wss://, or by ws:// on this machine"
                )));
            }
        }
        Ok(Self { url: url.to_owned(), shown })
    }

    /// The whole address. It may hold an access key: it is shown nowhere.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

/// The address without what may be an access key: the user, the path and the query. Two addresses that differ in these
/// look different nevertheless.
fn show(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let host = format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default());
    let is_bare = matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_bare {
        return host;
    }
    let digest = Sha256::digest(url.as_str().as_bytes());
    format!("{host}/…{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

/// What is no address, as far as it holds no access key: the part that would be the host.
fn shortened(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.chars().all(|c| c.is_ascii_alphabetic()) => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    let (host, is_whole) = match rest.find(['/', '?', '#', '@']) {
        // Before it stands who wants in.
        Some(_) if rest.contains('@') => ("", false),
        Some(end) => (&rest[..end], false),
        None => (rest, true),
    };
    let shown: String = scheme.chars().chain(host.chars()).take(80).flat_map(char::escape_debug).collect();
    if is_whole { shown } else { format!("{shown}…") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn unencrypted_addresses_are_for_this_machine_only() {
        for url in ["ws://127.0.0.1:9944", "ws://localhost:9944", "ws://[::1]:9944", "wss://node.example:443"] {
            assert_eq!(Endpoint::parse(url).unwrap().url(), url);
        }
        for (url, says) in [
            ("ws://node.example:9944", "is not encrypted"),
            ("ws://10.0.0.7:9944", "is not encrypted"),
            ("http://127.0.0.1:9944", "begins with http://"),
            ("127.0.0.1:9944", "is no address of a node"),
            ("finney", "is no address of a node"),
            ("wss://", "is no address of a node"),
            ("", "is no address of a node"),
        ] {
            let error = Endpoint::parse(url).err().unwrap();
            assert!(error.to_string().contains(says), "{url}: {error}");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
    }

    #[test]
    fn an_access_key_is_not_shown() {
        let endpoints = ["wss://node.example/v1/SECRET", "wss://SECRET@node.example", "wss://node.example?key=SECRET"];
        let shown: Vec<String> = endpoints.iter().map(|url| Endpoint::parse(url).unwrap().to_string()).collect();
        assert!(shown.iter().all(|shown| shown.starts_with("wss://node.example/…")), "{shown:?}");
        assert_eq!(shown.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
        for (text, host) in [
            ("node.example/v1/SECRET", "`node.example…`"),
            ("node.example?SECRET", "`node.example…`"),
            ("wss://node example/SECRET", "`wss://node example…`"),
            ("SECRET@node.example", "`…`"),
            ("wss://me:SEC/RET@node example/", "`wss://…`"),
        ] {
            let error = Endpoint::parse(text).err().unwrap().to_string();
            assert!(error.contains(host) && !error.contains("SEC"), "{error}");
        }
        assert_eq!(Endpoint::parse("wss://node.example:444/").unwrap().to_string(), "wss://node.example:444");
    }
}
