//! The chain that the ledger is served as: blocks that pass with the ledger's, and transactions that go into them.
//!
//! The ledger's present block is the one that is being built. A transaction is done on the ledger when it comes in; the
//! block that holds it, with its events, is there when the ledger has gone on to the next one.
//!
//! The ledger keeps how many transactions each account has sent, failed ones too, so that what was done before a restart
//! is outdated afterwards. It counts one before it is done: a crash between the two loses it, and none is done twice. An
//! account of which the ledger knows none begins with as many as it has committed: those may have come through a node that
//! kept no count.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use jsonrpsee::types::ErrorObjectOwned;
use sp_crypto_hashing::blake2_256;
use subxt::ext::codec::Encode;
use tokio::sync::{oneshot, watch};

use super::accounts::{Account, Accounts, development_account};
use super::block::{self, Block, Class, Hash};
use super::call::{Call, Outcome};
use super::chain::{Building, Chain, InBlock};
use super::extrinsic::{Era, Extrinsic, MAX_BYTES, Place};
use super::program::Program;
use super::refused::{self, Invalid};
use super::state::{self, Entries, Facts, Moment};
use crate::chain::Chain as _;
use crate::chain::ledger::Ledger;

/// As many blocks are kept.
pub(super) const KEPT: usize = 256;

/// As many transactions go into a block.
pub(super) const MAX_PER_BLOCK: usize = 64;

/// The chain.
pub(super) struct Node {
    ledger: Arc<Ledger>,
    genesis: Hash,
    coldkey: Account,
    /// The number of the newest block.
    heads: watch::Sender<u32>,
    num_requests: AtomicU64,
    /// How many blocks before the newest one the newest final one is.
    finality_lag: u32,
    chain: Mutex<Chain>,
}

/// A transaction that was taken.
pub(super) struct Submitted {
    /// Its hash.
    pub(super) hash: Hash,
    /// Gets its block, once there is one.
    pub(super) block: oneshot::Receiver<InBlock>,
}

/// A transaction that holds so far.
struct Checked {
    extrinsic: Extrinsic,
    call: Call,
}

impl Node {
    /// A chain whose head is the block before the ledger's present one. The blocks before it, which clients may look at as
    /// its parents, hold what the ledger holds now.
    pub(super) fn new(ledger: Arc<Ledger>, program: Arc<Program>, finality_lag: u32) -> Result<Self> {
        let present = number(ledger.block()?.max(1));
        let first = present.saturating_sub(KEPT as u32);
        let mut accounts = Accounts::default();
        accounts.check_distinct(&ledger.snapshot()?.neurons, &ledger.describe())?;
        let chain = Chain {
            accounts,
            program: Arc::clone(&program),
            blocks: VecDeque::new(),
            facts: Arc::default(),
            nonces: ledger.transaction_counts()?,
            building: Building::new(first, program),
        };
        let node = Self {
            genesis: genesis(&ledger),
            ledger,
            coldkey: development_account("Coldkey")?.0,
            heads: watch::channel(first).0,
            num_requests: AtomicU64::new(0),
            finality_lag,
            chain: Mutex::new(chain),
        };
        node.seal_until(&mut node.lock(), present, None)?;
        Ok(node)
    }

    /// Tells the number of the newest block, whenever it changes.
    pub(super) fn heads(&self) -> watch::Receiver<u32> {
        self.heads.subscribe()
    }

    /// How many blocks before the newest one the newest final one is.
    pub(super) fn finality_lag(&self) -> u32 {
        self.finality_lag
    }

    /// The header of a block that is kept.
    pub(super) fn header(&self, number: u32) -> Option<serde_json::Value> {
        self.lock().by_number(number.into()).map(|block| block.header())
    }

    /// Counts a request.
    pub(super) fn count_request(&self) {
        self.num_requests.fetch_add(1, Relaxed);
    }

    /// The requests so far.
    pub(super) fn num_requests(&self) -> u64 {
        self.num_requests.load(Relaxed)
    }

    /// How often to look whether a block has passed.
    pub(super) fn tick(&self) -> Duration {
        Duration::from_millis((self.ledger.settings().block_ms / 10).clamp(10, 1_000))
    }

    /// Runs another program, from the block after the one that is being built.
    pub(super) fn upgrade(&self, program: Arc<Program>) {
        self.lock().program = program;
    }

    fn lock(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chain as it is now.
    pub(super) fn chain(&self) -> Result<MutexGuard<'_, Chain>> {
        let mut chain = self.lock();
        let present = number(self.ledger.block()?);
        self.seal_until(&mut chain, present, None)?;
        Ok(chain)
    }

    /// Ends the blocks before `present`. Their storage is what the ledger holds now, unless it is known what it held.
    fn seal_until(&self, chain: &mut Chain, present: u32, known: Option<Facts>) -> Result<()> {
        let first = chain.building.number;
        if present <= first {
            return Ok(());
        }
        let facts = Arc::new(match known {
            Some(facts) => facts,
            None => self.look(chain)?,
        });
        let built = std::mem::replace(&mut chain.building, Building::new(present, Arc::clone(&chain.program)));
        self.seal(chain, built, &facts)?;
        // After a long sleep only as many as are kept.
        for number in (first + 1).max(present.saturating_sub(KEPT as u32))..present {
            let empty = Building::new(number, Arc::clone(&chain.program));
            self.seal(chain, empty, &facts)?;
        }
        self.heads.send_replace(present - 1);
        Ok(())
    }

    fn seal(&self, chain: &mut Chain, built: Building, facts: &Arc<Facts>) -> Result<()> {
        let Building { number, program, extrinsics, events, waiting } = built;
        let head = chain.blocks.back();
        let parent = match head {
            Some(head) => head.hash,
            // What came before was never served.
            None => blake2_256(&(self.genesis, number).encode()),
        };
        let shared = match head {
            Some(head) if Arc::ptr_eq(&head.program, &program) && *facts == chain.facts => Arc::clone(&head.shared),
            _ => Arc::new(self.shared(&program, facts)),
        };
        let unix_ms = self.unix_ms(number);
        let mut all = vec![block::event(0, &block::success(&program, Class::Mandatory)?)];
        all.extend(events);
        let own = state::own(&program, facts, &Moment { number, unix_ms, parent, events: &all });
        let timestamp = block::timestamp(&program, unix_ms);
        let extrinsics = std::iter::once(timestamp).chain(extrinsics).collect();
        let mut block = Block { number, hash: self.genesis, parent, extrinsics, program, shared, own };
        if number > 0 {
            block.hash = block.hash_of_header();
        }
        for waiting in waiting {
            waiting.send((number, block.hash)).ok(); // who waited may have gone
        }
        chain.facts = Arc::clone(facts);
        chain.blocks.push_back(Arc::new(block));
        if chain.blocks.len() > KEPT {
            chain.blocks.pop_front();
        }
        Ok(())
    }

    fn shared(&self, program: &Program, facts: &Facts) -> Entries {
        let mut entries = state::shared(program, self.ledger.settings(), &self.coldkey, facts);
        if let Some(key) = program.key("System", "BlockHash", &[&0_u32.to_le_bytes()]) {
            entries.insert(key, self.genesis.to_vec());
        }
        entries
    }

    fn unix_ms(&self, number: u32) -> u64 {
        let settings = self.ledger.settings();
        let passed = u64::from(number).saturating_sub(settings.genesis_block);
        settings.first_unix_ms.saturating_add(passed.saturating_mul(settings.block_ms))
    }

    /// What the ledger holds now.
    fn look(&self, chain: &mut Chain) -> Result<Facts> {
        let mut snapshot = self.ledger.snapshot()?;
        snapshot.block = 0;
        let committed = self.ledger.all_commitments()?;
        let mut see = |hotkey: &str| -> Result<Account> {
            let account = chain.accounts.of(hotkey)?;
            if let Entry::Vacant(entry) = chain.nonces.entry(account) {
                let num_commits = match committed.contains_key(hotkey) {
                    true => self.ledger.commitments_of(hotkey)?.len(),
                    false => 0,
                };
                entry.insert(u32::try_from(num_commits).unwrap_or(u32::MAX));
            }
            Ok(account)
        };
        let accounts = snapshot.neurons.iter().map(|neuron| see(&neuron.hotkey)).collect::<Result<_>>()?;
        let of_accounts = committed.iter().map(|(hotkey, commitment)| Ok((see(hotkey)?, commitment.clone())));
        let commitments = of_accounts.collect::<Result<_>>()?;
        Ok(Facts { snapshot, accounts, commitments, nonces: chain.nonces.clone() })
    }

    /// Takes a transaction into the block that is being built, or says why not.
    pub(super) fn submit(&self, bytes: &[u8]) -> Result<Submitted, ErrorObjectOwned> {
        let mut chain = self.chain().map_err(|error| refused::internal(&error))?;
        let checked = self.check(&chain, bytes)?;
        let hash = blake2_256(bytes);
        if chain.building.extrinsics.len() >= MAX_PER_BLOCK {
            return Err(refused::pool_is_full());
        }
        let block = self.include(&mut chain, bytes, &checked).map_err(|error| refused::internal(&error))?;
        Ok(Submitted { hash, block })
    }

    /// Whether a transaction would be taken; the account and the number of it.
    pub(super) fn validate(&self, bytes: &[u8]) -> Result<(Account, u32), ErrorObjectOwned> {
        let chain = self.chain().map_err(|error| refused::internal(&error))?;
        let Checked { extrinsic, .. } = self.check(&chain, bytes)?;
        Ok((extrinsic.account, extrinsic.nonce))
    }

    fn check(&self, chain: &Chain, bytes: &[u8]) -> Result<Checked, ErrorObjectOwned> {
        if bytes.len() > MAX_BYTES {
            return Err(refused::bad_format("it is too long"));
        }
        let extrinsic = Extrinsic::read(bytes)?;
        let program = &chain.building.program;
        if chain.building.extrinsics.iter().any(|waiting| waiting == bytes) {
            return Err(refused::already_imported());
        }
        let birth = match extrinsic.era {
            Era::Immortal => Some(self.genesis),
            era => self.hash_of(chain, era.birth(chain.building.number.into())),
        };
        let birth = birth.ok_or(Invalid::AncientBirthBlock)?;
        extrinsic.check_signature(&Place { spec: program.version(), genesis: self.genesis, birth })?;
        let call = Call::read(program, &extrinsic.call)?;
        if extrinsic.tip > 0 {
            return Err(Invalid::Payment.into());
        }
        match extrinsic.nonce.cmp(&chain.next_nonce(&extrinsic.account)) {
            Ordering::Equal => Ok(Checked { extrinsic, call }),
            Ordering::Greater => Err(Invalid::Future.into()),
            // Of those that wait, each has gone one up.
            Ordering::Less if extrinsic.nonce >= chain.head().nonce(&extrinsic.account) => {
                Err(refused::too_low_priority())
            }
            Ordering::Less => Err(Invalid::Stale.into()),
        }
    }

    fn include(&self, chain: &mut Chain, bytes: &[u8], checked: &Checked) -> Result<oneshot::Receiver<InBlock>> {
        let Checked { extrinsic, call } = checked;
        let account = extrinsic.account;
        // Time passes: the ledger may do it at a later block than the one that is being built.
        let before = self.look(chain)?;
        let neuron =
            before.accounts.iter().position(|known| *known == account).map(|place| &before.snapshot.neurons[place]);
        let (hotkey, uid) = match neuron {
            Some(neuron) => (neuron.hotkey.clone(), neuron.uid),
            None => (subxt::utils::AccountId32(account).to_string(), 0),
        };
        let program = Arc::clone(&chain.building.program);
        let class = call.class();
        let count = extrinsic.nonce.saturating_add(1);
        self.ledger.count_transactions(&account, count)?;
        chain.nonces.insert(account, count);
        let outcome = call.run(&program, &self.ledger, &hotkey)?;
        if let Outcome::Done(block) = outcome {
            self.seal_until(chain, number(block), Some(before))?;
        }
        let mut events = match outcome {
            Outcome::Done(_) => vec![call.event(&program, &account, uid)?],
            Outcome::Failed(_) => Vec::new(),
        };
        events.push(block::fee(&program, &account)?);
        events.push(match outcome {
            Outcome::Done(_) => block::success(&program, class)?,
            Outcome::Failed(error) => block::failure(&program, class, error)?,
        });
        let building = &mut chain.building;
        building.extrinsics.push(bytes.to_vec());
        let place = u32::try_from(building.extrinsics.len()).context("a block holds too many transactions")?;
        building.events.extend(events.iter().map(|event| block::event(place, event)));
        let (sender, receiver) = oneshot::channel();
        building.waiting.push(sender);
        Ok(receiver)
    }

    /// The hash of the block with a number.
    pub(super) fn hash_of(&self, chain: &Chain, number: u64) -> Option<Hash> {
        match number {
            0 => Some(self.genesis),
            _ => Some(chain.by_number(number)?.hash),
        }
    }
}

/// The number of a block as the chain has it.
fn number(block: u64) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
}

/// The hash of the first block: that of what the ledger was made with.
fn genesis(ledger: &Ledger) -> Hash {
    let settings = ledger.settings();
    blake2_256(&("assay", settings.genesis_block, settings.first_unix_ms, settings.block_ms).encode())
}
