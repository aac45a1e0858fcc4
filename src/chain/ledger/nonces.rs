//! How many transactions each account has sent to the ledger where it is served as a chain. Nothing else asks for them.

use std::collections::BTreeMap;

use anyhow::Result;
use rusqlite::{TransactionBehavior, params};

use super::Ledger;

impl Ledger {
    /// How many transactions the accounts have sent that have sent any.
    pub fn transaction_counts(&self) -> Result<BTreeMap<[u8; 32], u32>> {
        self.file.transact(TransactionBehavior::Deferred, |transaction| {
            let mut statement = transaction.prepare("SELECT account, nonce FROM nonces")?;
            let all = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(all.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Keeps how many transactions an account has sent.
    pub fn count_transactions(&self, account: &[u8; 32], count: u32) -> Result<()> {
        self.file.transact(TransactionBehavior::Immediate, |transaction| {
            transaction.execute("INSERT OR REPLACE INTO nonces VALUES (?1, ?2)", params![account, count])?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rusqlite::Connection;

    use super::*;
    use crate::chain::Chain;
    use crate::chain::ledger::Settings;

    #[test]
    fn a_ledger_of_the_version_before_is_brought_to_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let ledger = Ledger::create(&path, &Settings::new(1_000, 0, 1_000)).unwrap();
        ledger.register("miner").unwrap();
        drop(ledger);
        Connection::open(&path).unwrap().execute_batch("DROP TABLE nonces; PRAGMA user_version = 2").unwrap();
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!((ledger.snapshot().unwrap().neurons.len(), ledger.transaction_counts().unwrap().len()), (1, 0));
        ledger.count_transactions(&[7; 32], 1).unwrap();
        ledger.count_transactions(&[7; 32], 2).unwrap();
        let counts = Ledger::open(&path).unwrap().transaction_counts().unwrap();
        assert_eq!(counts, BTreeMap::from([([7; 32], 2)]));
    }
}
