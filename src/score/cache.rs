//! Losses that were computed once: by model and batch, on disk, shared by all commands.
//!
//! A loss is found by the hash of the model's files, by its batch, and by how it was computed: whose losses they are,
//! which implementation, number format and device. So a model is the same wherever it lies, and a changed one is another.
//! A model's loss on a row does not depend on other rows, with one exception: the reference lets some families remember
//! the lengths of earlier rows once one was longer than the model's context. Such a row is found together with all rows
//! before it ([`Rows::Chained`]).
//!
//! What is wrong with the file costs a warning ([`LossCache::trouble`]) and time, and never a loss (`memo.rs`).

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::hub::file_hashes::FileHashes;
use crate::memo::{Key, Memo};

/// File name of the cache in the folder of fetched models.
pub const FILE: &str = "losses.sqlite";

/// Part of every key. It counts up when losses of the same model on the same row come out with other bits.
const ARITHMETIC: &str = "1";

/// The losses that are known.
#[derive(Clone, Debug, Default)]
pub struct LossCache {
    memo: Arc<Memo>,
    hashes: FileHashes,
}

/// Whether the loss of a row depends on the rows before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// It does not.
    Independent,
    /// It does.
    Chained,
}

/// Where the losses of one model on some rows are kept.
#[derive(Debug)]
pub struct Places<'a> {
    cache: &'a LossCache,
    keys: Vec<Key>,
}

impl LossCache {
    /// One that knows nothing and keeps nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The cache beside the models in a folder; its file is opened, or made, when it is needed.
    pub fn beside(models: &Path) -> Self {
        let memo = Arc::new(Memo::at(&models.join(FILE)));
        Self { hashes: FileHashes::in_memo(Arc::clone(&memo)), memo }
    }

    /// The hashes of files that are known.
    pub fn hashes(&self) -> &FileHashes {
        &self.hashes
    }

    /// Whether losses may be known or kept at all.
    pub fn is_used(&self) -> bool {
        self.memo.is_used()
    }

    /// Why nothing is known or kept any more, in a sentence for a warning; told once.
    pub fn trouble(&self) -> Option<String> {
        self.memo.trouble()
    }

    /// Where the losses of a model on some rows are kept, computed in a way that `how` tells from all others.
    pub fn places(&self, model_hash: &str, how: &str, rows: &[Vec<u32>], dependence: Rows) -> Places<'_> {
        let mut start = Sha256::new_with_prefix("loss of a row\0");
        for part in [ARITHMETIC, model_hash, how] {
            start.update((part.len() as u64).to_le_bytes());
            start.update(part);
        }
        let mut before = start.clone();
        let key = |row: &Vec<u32>| {
            let digest = match dependence {
                Rows::Independent => &mut start.clone(),
                Rows::Chained => &mut before,
            };
            digest.update((row.len() as u64).to_le_bytes());
            row.iter().for_each(|token| digest.update(token.to_le_bytes()));
            digest.clone().finalize().into()
        };
        Places { cache: self, keys: rows.iter().map(key).collect() }
    }
}

impl Places<'_> {
    /// The loss of each row, bit for bit, as far as it is known.
    pub fn known(&self) -> Vec<Option<f32>> {
        let loss = |value: Vec<u8>| Some(f32::from_bits(u32::from_le_bytes(value.try_into().ok()?)));
        self.cache.memo.get(&self.keys).into_iter().map(|value| value.and_then(loss)).collect()
    }

    /// Keeps the losses of some rows, given by their index.
    pub fn keep(&self, losses: &[(usize, f32)]) {
        let entry = |&(row, loss): &(usize, f32)| (self.keys[row], loss.to_bits().to_le_bytes().to_vec());
        self.cache.memo.put(&losses.iter().map(entry).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tempfile::TempDir;

    use super::*;

    fn bits(losses: &[Option<f32>]) -> Vec<Option<u32>> {
        losses.iter().map(|loss| loss.map(f32::to_bits)).collect()
    }

    #[test]
    fn losses_come_back_bit_for_bit_whatever_they_are() {
        let dir = TempDir::new().unwrap();
        let rows = [vec![1, 2], vec![3], vec![], vec![4, 5], vec![6]];
        let losses = [0.1, f32::INFINITY, f32::from_bits(0x7fc0_1234), -0.0, f32::MIN_POSITIVE / 4.0];
        let cache = LossCache::beside(dir.path());
        let places = cache.places("hash", "cpu", &rows, Rows::Independent);
        assert_eq!(places.known(), [None; 5]);
        places.keep(&losses.into_iter().enumerate().collect::<Vec<_>>());
        let other_process = LossCache::beside(dir.path());
        let known = other_process.places("hash", "cpu", &rows, Rows::Independent).known();
        assert_eq!(bits(&known), bits(&losses.map(Some)));
        assert_eq!((cache.trouble(), other_process.trouble()), (None, None));
    }

    #[test]
    fn another_model_another_way_and_another_row_are_not_known() {
        let dir = TempDir::new().unwrap();
        let cache = LossCache::beside(dir.path());
        let known = |hash: &str, how: &str, row: Vec<u32>| {
            cache.places(hash, how, &[row], Rows::Independent).known()[0].is_some()
        };
        cache.places("ab", "cpu", &[vec![1, 256]], Rows::Independent).keep(&[(0, 1.5)]);
        assert!(known("ab", "cpu", vec![1, 256]));
        assert!(
            !known("a", "bcpu", vec![1, 256]) && !known("b", "cpu", vec![1, 256]) && !known("ab", "gpu", vec![1, 256])
        );
        assert!(
            !known("ab", "cpu", vec![256, 1]) && !known("ab", "cpu", vec![1]) && !known("ab", "cpu", vec![1, 256, 0])
        );
    }

    #[test]
    fn a_chained_row_is_known_only_behind_the_same_rows() {
        let dir = TempDir::new().unwrap();
        let cache = LossCache::beside(dir.path());
        let rows = |numbers: &[u32]| numbers.iter().map(|&number| vec![number]).collect::<Vec<_>>();
        cache.places("h", "cpu", &rows(&[1, 2, 3]), Rows::Chained).keep(&[(0, 1.0), (1, 2.0), (2, 3.0)]);
        let known = |numbers: &[u32], rows_are| cache.places("h", "cpu", &rows(numbers), rows_are).known();
        assert_eq!(known(&[1, 2, 4, 3], Rows::Chained), [Some(1.0), Some(2.0), None, None]);
        assert_eq!(known(&[2, 3], Rows::Chained), [None; 2]);
        // The first row has nothing before it: it is the same either way.
        assert_eq!(known(&[1, 2, 3], Rows::Independent), [Some(1.0), None, None]);
    }
}
