//! Where the global stream of tokens stands.

use serde::{Deserialize, Serialize};

/// Where the global stream stands: a few hundred bytes at most, the same for every world size.
///
/// Shards are opened in a seeded order, a new order in each epoch; so many are open at once, and give a document each in turn.
/// The cursor names the first token that no row has used yet. To go on from there the open shards are read again, and of the
/// current document the tokens that were used.
///
/// A stream of tokens that were made before has no shards: its place is `token` alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Position of the shard that is opened next, counted over all epochs: epoch `e` has the positions `e * n` to
    /// `e * n + n - 1` where there are `n` shards.
    pub next: u64,
    /// The shards that are open, in the order of their turns; none before the start.
    pub open: Vec<OpenShard>,
    /// Whose turn it is.
    pub turn: usize,
    /// Tokens of the current document (its final end-of-text included) that rows have used.
    pub token: u64,
}

/// A shard that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenShard {
    /// Its position, as in [`Cursor::next`].
    pub position: u64,
    /// Its document that is read next, or now.
    pub document: u64,
}

impl Cursor {
    /// Opens the first shards, `interleave` of them, where none is open.
    pub(super) fn start(&mut self, interleave: u64) {
        if self.open.is_empty() {
            let first = self.next;
            self.open = (0..interleave).map(|slot| OpenShard { position: first + slot, document: 0 }).collect();
            self.next += interleave;
        }
    }

    /// The current document is used up: the next shard's turn.
    pub(super) fn end_document(&mut self) {
        self.open[self.turn].document += 1;
        self.turn = (self.turn + 1) % self.open.len();
        self.token = 0;
    }

    /// The shard whose turn it is has no further document: another one takes its place, and its turn.
    pub(super) fn end_shard(&mut self) {
        self.open[self.turn] = OpenShard { position: self.next, document: 0 };
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_cursor_of_the_usual_size_is_a_few_hundred_bytes() {
        let mut cursor = Cursor { next: 1_900_000, ..Cursor::default() };
        cursor.start(8);
        cursor.open.iter_mut().for_each(|open| open.document = 999);
        let bytes = serde_json::to_string(&cursor).unwrap().len();
        assert!(bytes < 400, "{bytes}");
    }

    #[test]
    fn shards_take_turns_and_replace_each_other() {
        let mut cursor = Cursor::default();
        cursor.start(2);
        cursor.end_document();
        assert_eq!((cursor.turn, cursor.open[0].document), (1, 1));
        cursor.end_shard();
        assert_eq!((cursor.turn, cursor.open[1].position, cursor.next), (1, 2, 3));
        cursor.end_document();
        assert_eq!((cursor.turn, cursor.open[1].document), (0, 1));
    }
}
