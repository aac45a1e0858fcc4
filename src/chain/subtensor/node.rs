//! The nodes of a chain, as one that lives long: a connection that died is replaced, by the next of the list if need be,
//! and what can be done again is done again until the patience is at an end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use subxt::ext::futures::future::join;
use subxt::utils::{AccountId32, H256};

use super::endpoint::Endpoint;
use super::identity::Identity;
use super::link::Link;
use super::pace::{OF_FINNEY, measured, said};
use super::patience::{Patience, pause, unless_interrupted};
use super::runtime::{Runtime, Version};
use super::trouble::{Attempt, Trouble};
use super::view::{Ask, Met, Seen, View};
use crate::error::Failure;
use crate::figures;

/// The nodes.
pub(super) struct Node {
    endpoints: Vec<Endpoint>,
    identity: Identity,
    /// The connection, and the endpoint that is the next to be tried.
    link: tokio::sync::Mutex<(Option<Link>, usize)>,
    num_dialed: AtomicU64,
    met: std::sync::Mutex<Option<Met>>,
    /// The number of the newest block that was ever met.
    highest: AtomicU64,
    seconds_per_block: OnceLock<f64>,
    /// The time limits.
    pub(super) patience: Patience,
}

impl Node {
    /// Nodes that are not connected to yet.
    pub(super) fn new(endpoints: Vec<Endpoint>, identity: Identity, patience: Patience) -> Self {
        Self {
            endpoints,
            identity,
            link: tokio::sync::Mutex::default(),
            num_dialed: AtomicU64::new(0),
            met: std::sync::Mutex::default(),
            highest: AtomicU64::new(0),
            seconds_per_block: OnceLock::new(),
            patience,
        }
    }

    /// The hash of the first block; an error before the first connection.
    pub(super) fn genesis(&self) -> Attempt<H256> {
        self.identity.genesis().ok_or_else(|| Trouble::Node("no connection was made".to_owned()))
    }

    /// The endpoints, as they are shown.
    pub(super) fn shown(&self) -> String {
        self.endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The connection, a new one if there is none. Each call tries each endpoint once.
    pub(super) async fn link(&self) -> Attempt<Link> {
        let mut place = self.link.lock().await;
        if let Some(link) = &place.0 {
            return Ok(link.clone());
        }
        let mut failed = Vec::new();
        let mut of_another_chain = None;
        for _ in 0..self.endpoints.len() {
            let index = place.1;
            place.1 = (index + 1) % self.endpoints.len();
            match self.dial(index).await {
                Ok(link) => {
                    place.0 = Some(link.clone());
                    return Ok(link);
                }
                Err(Trouble::Final(error)) => of_another_chain = Some(error),
                Err(trouble) => failed.push(format!("{}: {trouble}", self.endpoints[index])),
            }
        }
        Err(match of_another_chain {
            Some(error) if failed.is_empty() => Trouble::Final(error),
            Some(error) => Trouble::Node(format!("{}; {error:#}", failed.join("; "))),
            None => Trouble::Node(failed.join("; ")),
        })
    }

    async fn dial(&self, index: usize) -> Attempt<Link> {
        let endpoint = &self.endpoints[index];
        let serial = self.num_dialed.fetch_add(1, Ordering::Relaxed);
        let link = Link::dial(endpoint, index, serial, &self.patience).await?;
        let genesis = link.genesis().await.map_err(|fault| self.trouble(fault))?;
        self.identity.check(endpoint, genesis)?;
        Ok(link)
    }

    fn trouble(&self, trouble: impl Into<Trouble>) -> Trouble {
        match self.endpoints.len() {
            1 => trouble.into().of_only_node(),
            _ => trouble.into(),
        }
    }

    /// Gives up a connection that does not work, so that the next call makes another.
    pub(super) async fn drop_link(&self, link: &Link) {
        let mut place = self.link.lock().await;
        if place.0.as_ref().is_some_and(|current| current.serial == link.serial) {
            place.0 = None;
        }
        drop(place);
        self.forget_head();
    }

    async fn drop_any_link(&self) {
        self.link.lock().await.0 = None;
        self.forget_head();
    }

    /// Does what can be done again, until it is done, or cannot be, or the patience is at an end.
    pub(super) async fn with<T>(&self, limit: Duration, work: impl AsyncFn(&Link) -> Attempt<T>) -> Result<T> {
        let began = Instant::now();
        // Each request of a try has its limit, but a node could keep answering with more to ask for.
        let longest = (limit * 2).max(self.patience.request * 2);
        let mut tries = 0;
        loop {
            let trouble = match unless_interrupted(tokio::time::timeout(longest, self.once(&work))).await {
                None => return Err(Failure::Interrupted("stopped while asking the chain".to_owned()).into()),
                Some(Ok(Ok(done))) => return Ok(done),
                Some(Ok(Err(Trouble::Final(error)))) => return Err(error),
                Some(Ok(Err(trouble))) => trouble.to_string(),
                Some(Err(_)) => {
                    self.drop_any_link().await;
                    "a node that answers without end".to_owned()
                }
            };
            if began.elapsed() >= limit {
                return Err(self.unreachable(began.elapsed(), tries + 1, &trouble));
            }
            // The first time, it is enough that the connection is another.
            if tries > 0 {
                let left = limit.saturating_sub(began.elapsed());
                unless_interrupted(tokio::time::sleep(pause(tries).min(left))).await;
            }
            tries += 1;
        }
    }

    async fn once<T>(&self, work: &impl AsyncFn(&Link) -> Attempt<T>) -> Attempt<T> {
        let link = self.link().await?;
        match work(&link).await {
            Err(trouble) => match self.trouble(trouble) {
                Trouble::Final(error) => Err(Trouble::Final(error)),
                trouble => {
                    self.drop_link(&link).await;
                    Err(Trouble::Node(format!("{}: {trouble}", self.endpoints[link.place])))
                }
            },
            Ok(done) => Ok(done),
        }
    }

    fn unreachable(&self, waited: Duration, tries: u32, last: &str) -> anyhow::Error {
        let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
        Failure::Unreachable(format!(
            "no node of the chain would answer: tried {times} in {}, the last time with {last}; look at the address and at \
             the network, or name further endpoints",
            figures::duration(waited.as_secs_f64())
        ))
        .into()
    }

    /// Connects, and gives the hash of the first block.
    pub(super) async fn start(&self) -> Result<H256> {
        self.with(self.patience.start, async |link| {
            let (genesis, hash) = (self.genesis()?, link.finalized_head().await?);
            let (seen, measured) = join(View::at(link, hash, genesis, None, &[], None), measured(link, hash)).await;
            let view = seen?.view;
            let seconds = match measured? {
                Some(seconds) => seconds,
                None => said(&view.runtime)?,
            };
            self.seconds_per_block.get_or_init(|| seconds);
            self.note(&view);
            Ok(genesis)
        })
        .await
    }

    /// Seconds from one block to the next.
    pub(super) fn seconds_per_block(&self) -> f64 {
        self.seconds_per_block.get().copied().unwrap_or(OF_FINNEY)
    }

    /// About as long as it takes until the next block, within reason.
    pub(super) fn until_next_block(&self) -> Duration {
        Duration::from_secs_f64(self.seconds_per_block().clamp(0.05, 60.0))
    }

    /// The newest finalized block, and what stands there. It is taken for the newest for a tenth of the time in which the
    /// next comes.
    pub(super) async fn look(&self, link: &Link, asks: &[Ask], account: Option<AccountId32>) -> Attempt<Seen> {
        const LONGEST: Duration = Duration::from_secs(1);
        let met = self.met();
        let fresh = Duration::from_secs_f64(self.seconds_per_block() / 10.0).min(LONGEST);
        let hash = match met.as_ref().filter(|met| met.when.elapsed() < fresh) {
            Some(met) => met.hash,
            None => link.finalized_head().await?,
        };
        let seen = View::at(link, hash, self.genesis()?, met.as_ref(), asks, account).await?;
        let (number, highest) = (seen.view.number, self.highest.load(Ordering::Relaxed));
        if number < highest {
            return Err(Trouble::Node(format!(
                "it is behind: it is at block {number}, and {highest} is final already"
            )));
        }
        if met.is_none_or(|met| met.hash != hash || met.when.elapsed() >= fresh) {
            self.note(&seen.view);
        }
        Ok(seen)
    }

    fn note(&self, view: &View) {
        let View { hash, number, runtime, .. } = view;
        let met = Met { hash: *hash, number: *number, runtime: Arc::clone(runtime), when: Instant::now() };
        self.highest.fetch_max(*number, Ordering::Relaxed);
        *self.met.lock().unwrap_or_else(PoisonError::into_inner) = Some(met);
    }

    fn met(&self) -> Option<Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for the newest block anew from now on: something was changed.
    pub(super) fn forget_head(&self) {
        if let Some(met) = self.met.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            met.when = Instant::now().checked_sub(Duration::from_secs(60)).unwrap_or(met.when);
        }
    }

    /// The same, with all patience.
    pub(super) async fn see(&self, asks: &[Ask], account: Option<AccountId32>) -> Result<Seen> {
        self.with(self.patience.operation, async |link| self.look(link, asks, account).await).await
    }

    /// The program of a version that a block runs.
    pub(super) async fn runtime_of(&self, link: &Link, block: H256, version: Version) -> Attempt<Arc<Runtime>> {
        if let Some(met) = self.met().filter(|met| met.runtime.version == version) {
            return Ok(met.runtime);
        }
        Ok(Arc::new(Runtime::load(link, block, self.genesis()?, version).await?))
    }

    /// Over a client that is there.
    #[cfg(test)]
    pub(super) async fn over(
        client: subxt::rpcs::RpcClient,
        endpoint: Endpoint,
        identity: Identity,
        patience: Patience,
    ) -> Result<Self> {
        let link = Link::over(client, 0, 0);
        let genesis = link.genesis().await.map_err(|fault| anyhow::anyhow!(fault.text()))?;
        identity.check(&endpoint, genesis)?;
        let node = Self::new(vec![endpoint], identity, patience);
        node.link.lock().await.0 = Some(link);
        node.seconds_per_block.get_or_init(|| 0.005);
        Ok(node)
    }
}
