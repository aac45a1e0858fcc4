//! The nodes of a chain, as one that lives long: a connection that died is replaced, by the next of the list if need be,
//! and what can be done again is done again until the patience is at an end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use subxt::utils::{AccountId32, H256};

use super::endpoint::Endpoint;
use super::identity::Identity;
use super::link::Link;
use super::patience::{Patience, pause, unless_interrupted};
use super::runtime::{Runtime, Version};
use super::trouble::{Attempt, Trouble};
use super::view::{Ask, Seen, View};
use crate::error::Failure;
use crate::figures;

/// The nodes.
pub(super) struct Node {
    endpoints: Vec<Endpoint>,
    identity: Identity,
    /// The connection, and the endpoint that is the next to be tried.
    link: tokio::sync::Mutex<(Option<Link>, usize)>,
    num_dialed: AtomicU64,
    /// The program that was met last.
    runtime: std::sync::Mutex<Option<Arc<Runtime>>>,
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
            runtime: std::sync::Mutex::default(),
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
                Err(Trouble::Node(text)) => failed.push(format!("{}: {text}", self.endpoints[index])),
                Err(Trouble::Final(error)) => of_another_chain = Some(error),
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
        let genesis = link.genesis().await?;
        self.identity.check(endpoint, genesis)?;
        Ok(link)
    }

    /// Gives up a connection that does not work, so that the next call makes another.
    pub(super) async fn drop_link(&self, link: &Link) {
        let mut place = self.link.lock().await;
        if place.0.as_ref().is_some_and(|current| current.serial == link.serial) {
            place.0 = None;
        }
    }

    /// Does what can be done again, until it is done, or cannot be, or the patience is at an end.
    pub(super) async fn with<T>(&self, limit: Duration, work: impl AsyncFn(&Link) -> Attempt<T>) -> Result<T> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            let trouble = match unless_interrupted(self.once(&work)).await {
                None => return Err(Failure::Interrupted("stopped while asking the chain".to_owned()).into()),
                Some(Ok(done)) => return Ok(done),
                Some(Err(Trouble::Final(error))) => return Err(error),
                Some(Err(Trouble::Node(text))) => text,
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
            Err(Trouble::Node(text)) => {
                self.drop_link(&link).await;
                Err(Trouble::Node(format!("{}: {text}", self.endpoints[link.place])))
            }
            end => end,
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

    /// Connects, and gives the hash of the first block and the seconds from one block to the next.
    pub(super) async fn start(&self) -> Result<(H256, f64)> {
        self.with(self.patience.start, async |link| {
            let seen = self.look(link, &[], None).await?;
            Ok((self.genesis()?, seen.view.seconds_per_block().await?))
        })
        .await
    }

    /// The newest finalized block, and what stands there.
    pub(super) async fn look(&self, link: &Link, asks: &[Ask], account: Option<AccountId32>) -> Attempt<Seen> {
        let seen = View::newest(link, self.genesis()?, self.runtime(), asks, account).await?;
        // A program that was met for the first time, or another than before.
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&seen.view.runtime));
        Ok(seen)
    }

    /// The same, with all patience.
    pub(super) async fn see(&self, asks: &[Ask], account: Option<AccountId32>) -> Result<Seen> {
        self.with(self.patience.operation, async |link| self.look(link, asks, account).await).await
    }

    /// The program of a version that a block runs.
    pub(super) async fn runtime_of(&self, link: &Link, block: H256, version: Version) -> Attempt<Arc<Runtime>> {
        if let Some(known) = self.runtime().filter(|known| known.version == version) {
            return Ok(known);
        }
        Ok(Arc::new(Runtime::load(link, block, self.genesis()?, version).await?))
    }

    fn runtime(&self) -> Option<Arc<Runtime>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        Ok(node)
    }
}
