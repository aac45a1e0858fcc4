//! What a miner cannot do but the owner of an embedded chain can: give places, stake, permits and shares, and write
//! what is then the past. No limit of the chain holds here.

use anyhow::Result;
use rusqlite::params;

use super::{Ledger, check_length, insert_commitment, uid_of};
use crate::chain::Chain;
use crate::chain::account::check_hotkey;
use crate::error::input;

impl Ledger {
    /// Gives a hotkey the lowest free uid; one that is registered keeps its own.
    pub fn register(&self, hotkey: &str) -> Result<u16> {
        self.register_by(hotkey, None)
    }

    /// Registers a hotkey as if at an earlier block.
    pub fn register_at(&self, hotkey: &str, block: u64) -> Result<u16> {
        self.register_by(hotkey, Some(block))
    }

    fn register_by(&self, hotkey: &str, at: Option<u64>) -> Result<u16> {
        check_hotkey(hotkey)?;
        self.write(|transaction, block| {
            if let Some(uid) = uid_of(transaction, hotkey)? {
                return Ok(uid);
            }
            let at = self.not_in_the_future(at.unwrap_or(block), block)?;
            let mut statement = transaction.prepare("SELECT uid FROM neurons ORDER BY uid")?;
            let taken = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<u16>>>()?;
            let max_uids = self.settings.max_uids;
            let uid = (0..max_uids)
                .find(|&uid| taken.get(usize::from(uid)) != Some(&uid))
                .ok_or_else(|| input(format!("{} is full: all of its {max_uids} places are taken", self.describe())))?;
            transaction.execute("INSERT INTO neurons VALUES (?1, ?2, ?3, 0, 0, FALSE, 0)", params![uid, hotkey, at])?;
            Ok(uid)
        })
    }

    /// Frees the place of a hotkey, with the weights it has set and its bonds; as on the chain, what it has committed stays.
    pub fn deregister(&self, hotkey: &str) -> Result<()> {
        let done = self.write(|transaction, _| {
            let uid = self.registered(transaction, hotkey)?;
            transaction.execute("DELETE FROM neurons WHERE uid = ?1", [uid])?;
            transaction.execute("DELETE FROM weights WHERE validator_uid = ?1", [uid])?;
            transaction.execute("DELETE FROM bonds WHERE validator_uid = ?1", [uid])?;
            Ok(())
        });
        self.spoken(hotkey, done)
    }

    /// Sets shares of the incentive; uids that are not named keep theirs.
    pub fn set_incentives(&self, incentives: &[(u16, u16)]) -> Result<()> {
        self.write(|transaction, _| {
            incentives.iter().try_for_each(|&(uid, incentive)| {
                let changed =
                    transaction.execute("UPDATE neurons SET incentive = ?2 WHERE uid = ?1", [uid, incentive])?;
                self.found(uid, changed)
            })
        })
    }

    /// Sets the stake of a uid.
    pub fn set_stake(&self, uid: u16, stake: u64) -> Result<()> {
        self.write(|transaction, _| {
            let changed = transaction.execute("UPDATE neurons SET stake = ?2 WHERE uid = ?1", params![uid, stake])?;
            self.found(uid, changed)
        })
    }

    /// Sets whether a uid's weights count.
    pub fn set_permit(&self, uid: u16, permit: bool) -> Result<()> {
        self.write(|transaction, _| {
            let changed =
                transaction.execute("UPDATE neurons SET validator_permit = ?2 WHERE uid = ?1", params![uid, permit])?;
            self.found(uid, changed)
        })
    }

    /// Replaces the weights that a uid has set, as (uid, weight), whether the chain would let it or not.
    pub fn put_weights(&self, validator_uid: u16, weights: &[(u16, u16)]) -> Result<()> {
        let done = self.write(|transaction, block| self.replace_weights(transaction, validator_uid, weights, block));
        self.spoken(&format!("uid {validator_uid}"), done)
    }

    /// Commits bytes as if at an earlier block, without regard to the rate limit.
    pub fn commit_at(&self, hotkey: &str, bytes: &[u8], at: u64) -> Result<()> {
        let done = self.write(|transaction, block| {
            check_length(bytes)?;
            self.registered(transaction, hotkey)?;
            insert_commitment(transaction, hotkey, self.not_in_the_future(at, block)?, bytes)
        });
        self.spoken(hotkey, done)
    }

    fn not_in_the_future(&self, at: u64, block: u64) -> Result<u64> {
        if at > block {
            return Err(input(format!("block {at} has not come on {}, which is at block {block}", self.describe())));
        }
        Ok(at)
    }
}
