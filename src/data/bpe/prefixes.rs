//! Encodes a piece of any length from left to right, in linear time and little memory.
//!
//! **Neighbours decide.** Tokens are the encoding of their text if and only if each two neighbours are the encoding of
//! theirs. For each token is its own encoding, and up to the first merge across a boundary, those on both sides of it are
//! made as they are made of the two alone, merge by merge and in the same order. So that merge would be done between the
//! two alone as well.
//!
//! **Prefixes.** The encoding of a prefix of the piece is therefore that of a shorter prefix and one more token: the only
//! one of those that end there which may follow the last token of the shorter one. The last tokens of all prefixes are
//! the encoding, read backwards.
//!
//! **What is final.** No token is longer than 128 bytes, so whatever comes later follows one of the last 128 prefixes.
//! What all of their encodings begin with, the whole piece's begins with too. It is given out and forgotten on the way, so
//! that the first few tokens cost no more than the first few bytes, and so little is kept that it stays in the processor's
//! cache. At worst, if they never agreed, two bytes would be kept for each of the piece.

use rustc_hash::FxHashMap;

use super::{Bpe, MAX_TOKEN_BYTES, NONE};

/// Prefixes between two looks at what is final.
pub(super) const STRIDE: usize = 4096;

impl Bpe {
    /// Appends the encoding of a piece to `out`, or at least its first `max` ids.
    pub(super) fn encode_prefixes(&self, piece: &[u8], max: usize, out: &mut Vec<u32>) {
        let enough = out.len().saturating_add(max);
        // The last token of the prefix of `first` bytes, of `first + 1` bytes and so on. The empty prefix has none.
        let (mut first, mut lasts) = (0, vec![NONE]);
        let mut next_look = STRIDE;
        for end in 1..=piece.len() {
            let mut ending = self.suffixes.tokens_ending(&piece[..end]);
            let last = ending.find(|&(len, id)| self.may_follow(lasts[end - len - first], id));
            lasts.push(last.expect("every text has an encoding").1);
            if lasts.len() >= next_look {
                let agreed = self.agreed(&lasts);
                self.read_backwards(&lasts[..=agreed], out);
                if out.len() >= enough {
                    return;
                }
                lasts.drain(..agreed);
                first += agreed;
                next_look = lasts.len() + lasts.len().max(STRIDE);
            }
        }
        self.read_backwards(&lasts, out);
    }

    /// Whether the encoding of two tokens' text is those two.
    ///
    /// Goes back in time from the two, undoing the later of the merges beside the boundary again and again, and sees
    /// whether a merge across it would have come before the one that was undone last. Of merges of one rank the left one
    /// comes first, and one across the boundary is to the left of any behind it. Anything may follow `NONE`, the beginning.
    pub(super) fn may_follow(&self, mut left: u16, mut right: u16) -> bool {
        // A merge across the boundary comes before what was undone if its rank is lower than this.
        let mut limit = NONE;
        while self.join(left, right) >= limit {
            // The later one of the two has the higher id. Bytes have the lowest, and are there from the start.
            let Some((first_part, second_part)) = self.parts(left.max(right)) else { return true };
            if left > right {
                (limit, left) = (left, second_part);
            } else {
                (limit, right) = (right + 1, first_part);
            }
        }
        false
    }

    /// The longest of the prefixes whose encoding those of the last `MAX_TOKEN_BYTES` ones begin with.
    fn agreed(&self, lasts: &[u16]) -> usize {
        // Prefixes that the last ones are encoded by way of, and how many of them are not looked at yet.
        let mut on_the_way = vec![false; lasts.len()];
        let mut num_open = MAX_TOKEN_BYTES.min(lasts.len());
        on_the_way[lasts.len() - num_open..].fill(true);
        for end in (1..lasts.len()).rev() {
            if on_the_way[end] {
                if num_open == 1 {
                    return end;
                }
                let shorter = &mut on_the_way[end - self.len(lasts[end])];
                if *shorter {
                    num_open -= 1;
                }
                *shorter = true;
            }
        }
        0
    }

    /// Appends the encoding of the longest prefix to `out`, without that of the shortest one.
    fn read_backwards(&self, lasts: &[u16], out: &mut Vec<u32>) {
        let start = out.len();
        let mut end = lasts.len() - 1;
        while end > 0 {
            out.push(lasts[end].into());
            end -= self.len(lasts[end]);
        }
        out[start..].reverse();
    }

    fn len(&self, id: u16) -> usize {
        self.lens[id as usize].into()
    }
}

/// The tokens of a vocabulary, found by how a text ends: a trie of their bytes in reverse.
pub(super) struct Suffixes {
    /// The node of a suffix that is longer by one byte.
    longer: FxHashMap<(u32, u8), u32>,
    /// The token that each node's suffix is, or `NONE`.
    ids: Vec<u16>,
}

impl Default for Suffixes {
    fn default() -> Self {
        Self { longer: FxHashMap::default(), ids: vec![NONE] }
    }
}

impl Suffixes {
    pub(super) fn insert(&mut self, token: &[u8], id: u16) {
        let node = token.iter().rev().fold(0, |node, &byte| {
            *self.longer.entry((node, byte)).or_insert_with(|| {
                self.ids.push(NONE);
                self.ids.len() as u32 - 1
            })
        });
        self.ids[node as usize] = id;
    }

    /// Length and id of the tokens that a text ends with, the shortest first.
    fn tokens_ending(&self, text: &[u8]) -> impl Iterator<Item = (usize, u16)> {
        let mut node = 0;
        let nodes = text.iter().rev().map_while(move |&byte| {
            node = *self.longer.get(&(node, byte))?;
            Some(node)
        });
        (1..).zip(nodes.map(|node| self.ids[node as usize])).filter(|&(_, id)| id != NONE)
    }
}
