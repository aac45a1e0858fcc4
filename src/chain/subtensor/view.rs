//! The chain at one finalized block: what is read through a view stood there at the same time.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use subxt::ext::codec::Decode;
use subxt::ext::futures::future::{join, try_join};
use subxt::ext::scale_decode::DecodeAsType;
use subxt::utils::{AccountId32, H256};

use super::link::Link;
use super::runtime::{Entry, Part, Runtime, Version};
use super::trouble::{Attempt, Fault, Trouble};

/// A value that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    entry: Entry,
    parts: Vec<Part>,
}

impl Ask {
    /// The value of an entry under a key.
    pub(super) fn new(entry: Entry, parts: impl Into<Vec<Part>>) -> Self {
        Self { entry, parts: parts.into() }
    }
}

/// The answers, in the order in which was asked.
pub(super) struct Answers {
    /// The program that they are of.
    pub(super) runtime: Arc<Runtime>,
    values: Vec<(Entry, Option<Vec<u8>>)>,
}

impl Answers {
    /// The value of an entry that was asked for once; `None` if there is none, or the version has no such entry.
    pub(super) fn one<T: DecodeAsType>(&self, entry: Entry) -> Result<Option<T>> {
        let value = self.values.iter().find(|(asked, _)| *asked == entry).and_then(|(_, value)| value.as_deref());
        self.runtime.decode(entry, value)
    }

    /// The same of an entry that cannot be done without: an error if the version has none such.
    pub(super) fn needed<T: DecodeAsType>(&self, entry: Entry) -> Result<Option<T>> {
        self.runtime.require(entry)?;
        self.one(entry)
    }

    /// The same; what stands for nothing where there is none.
    pub(super) fn one_or<T: DecodeAsType>(&self, entry: Entry, nothing: T) -> Result<T> {
        Ok(self.one(entry)?.unwrap_or(nothing))
    }

    /// The values of an entry that was asked for several times.
    pub(super) fn each<T: DecodeAsType>(&self, entry: Entry) -> Result<Vec<Option<T>>> {
        self.bytes(entry).map(|value| self.runtime.decode(entry, value)).collect()
    }

    /// The same, as they are stored.
    pub(super) fn bytes(&self, entry: Entry) -> impl Iterator<Item = Option<&[u8]>> {
        self.values.iter().filter(move |(asked, _)| *asked == entry).map(|(_, value)| value.as_deref())
    }
}

/// The chain at a finalized block.
#[derive(Clone)]
pub(super) struct View {
    /// The connection it is read through.
    pub(super) link: Link,
    /// The block.
    pub(super) hash: H256,
    /// Its number.
    pub(super) number: u64,
    /// The program that it left for the next.
    pub(super) runtime: Arc<Runtime>,
}

/// The block that was met last.
#[derive(Clone)]
pub(super) struct Met {
    /// The block.
    pub(super) hash: H256,
    /// Its number.
    pub(super) number: u64,
    /// Its program.
    pub(super) runtime: Arc<Runtime>,
    /// When it was the newest.
    pub(super) when: Instant,
}

/// What was read together with the view.
pub(super) struct Seen {
    /// The view.
    pub(super) view: View,
    /// What was asked for.
    pub(super) answers: Answers,
    /// The number that the account's next extrinsic must have; 0 without an account.
    pub(super) nonce: u64,
}

impl View {
    /// A finalized block, and what stands there: one wait, if it is the block that was met last, or its program is.
    pub(super) async fn at(
        link: &Link,
        hash: H256,
        genesis: H256,
        met: Option<&Met>,
        asks: &[Ask],
        account: Option<AccountId32>,
    ) -> Attempt<Seen> {
        let known = met.map(|met| &met.runtime);
        let head = async {
            match met.filter(|met| met.hash == hash) {
                Some(met) => Ok((met.number, met.runtime.version.clone())),
                None => try_join(link.number(hash), Version::read(link, hash)).await,
            }
        };
        let (head, early) = join(try_join(head, nonce(link, hash, account)), read(link, hash, known, asks)).await;
        let ((number, version), nonce) = head?;
        if let Some(runtime) = known.filter(|known| known.version == version) {
            let view = Self { link: link.clone(), hash, number, runtime: Arc::clone(runtime) };
            let answers = early?.ok_or_else(|| Trouble::Node("it gave nothing".to_owned()))?;
            return Ok(Seen { view, answers, nonce });
        }
        let runtime = Arc::new(Runtime::load(link, hash, genesis, version).await?);
        let view = Self { link: link.clone(), hash, number, runtime };
        let answers = view.read(asks).await?;
        Ok(Seen { view, answers, nonce })
    }

    /// What stands at the block: one wait.
    pub(super) async fn read(&self, asks: &[Ask]) -> Attempt<Answers> {
        let answers = read(&self.link, self.hash, Some(&self.runtime), asks).await?;
        answers.ok_or_else(|| Trouble::Node("it gave nothing".to_owned()))
    }

    /// All keys that begin so, and their values.
    pub(super) async fn scan(&self, prefix: &[u8]) -> Attempt<Vec<(Vec<u8>, Vec<u8>)>> {
        // More than 16,000 keys, some hundred times the places of a subnet.
        const MAX_PAGES: usize = 32;
        let mut found = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        for _ in 0..MAX_PAGES {
            let keys = self.link.keys_page(prefix, after.as_deref(), self.hash).await?;
            let values = self.link.values(&keys, self.hash).await?;
            let is_last = keys.len() < super::link::KEYS_PER_PAGE as usize;
            after = keys.last().cloned();
            found.extend(keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))));
            if is_last {
                return Ok(found);
            }
        }
        Err(Trouble::Node(format!("it gave more than {} keys", found.len())))
    }
}

/// `None` where the program is not known.
async fn read(link: &Link, block: H256, runtime: Option<&Arc<Runtime>>, asks: &[Ask]) -> Attempt<Option<Answers>> {
    let Some(runtime) = runtime else { return Ok(None) };
    let keys: Vec<Option<Vec<u8>>> =
        asks.iter().map(|ask| runtime.key(ask.entry, &ask.parts)).collect::<Result<_>>()?;
    let present: Vec<Vec<u8>> = keys.iter().flatten().cloned().collect();
    let mut values = link.values(&present, block).await?.into_iter();
    let values = asks
        .iter()
        .zip(&keys)
        .map(|(ask, key)| (ask.entry, key.as_ref().and_then(|_| values.next().flatten())))
        .collect();
    Ok(Some(Answers { runtime: Arc::clone(runtime), values }))
}

/// The number that an account's next extrinsic must have, as of a block.
pub(super) async fn nonce(link: &Link, block: H256, account: Option<AccountId32>) -> Result<u64, Fault> {
    let Some(account) = account else { return Ok(0) };
    let bytes = link.call("AccountNonceApi_account_nonce", &account.0, block).await?;
    let nonce = match bytes.len() {
        4 => u32::decode(&mut &*bytes).map(u64::from),
        8 => u64::decode(&mut &*bytes),
        _ => Err("of another length".into()),
    };
    nonce.map_err(|error| Fault::Lost(format!("the nonce that it gives does not decode: {error}")))
}

/// The hash of the block of a number, and the nonce of an account there.
pub(super) async fn nonce_at(link: &Link, number: u64, account: AccountId32) -> Result<(H256, u64), Fault> {
    let hash = link.block_hash(number).await?;
    let hash = hash.ok_or_else(|| Fault::Lost(format!("it does not know the block {number}")))?;
    Ok((hash, nonce(link, hash, Some(account)).await?))
}
