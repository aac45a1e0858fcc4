//! Byte-pair encoding of one piece of text, exactly as Hugging Face's `tokenizers` does it.
//!
//! At first each byte is a token. While two neighbours are the parts of a merge, those of the lowest rank are joined, the
//! leftmost first. [`Bpe::merge`] does just that, on the stack: quadratic, and the fastest for anything like a word. A
//! piece may also be megabytes without a space; `prefixes` encodes such a one from left to right.
//!
//! Ids stand in the order of the merges, so that a token's id is the rank of the merge that makes it, and fit 16 bits.

mod prefixes;

use anyhow::{Result, bail, ensure};
use rustc_hash::FxHashMap;

use prefixes::Suffixes;

/// Most bytes of a token, and of a piece that is merged on the stack.
pub(super) const MAX_TOKEN_BYTES: usize = 128;

/// The first tokens are the single bytes, which no merge makes.
const NUM_BYTES: usize = 256;

/// No token. As a rank it comes after all others.
const NONE: u16 = u16::MAX;

/// The merges of a vocabulary.
pub(super) struct Bpe {
    byte_ids: [u16; NUM_BYTES],
    /// The two tokens that each merge joins, in the order of the merges.
    merges: Vec<(u16, u16)>,
    /// The id that each merge makes.
    joined: FxHashMap<(u16, u16), u16>,
    /// Bytes of each token.
    lens: Vec<u8>,
    suffixes: Suffixes,
}

impl Bpe {
    /// The merges behind different tokens that are listed in the order of their ids: each joins what the merges of lower
    /// ranks make of its token, so that each token is its own encoding. An error if that is not two tokens.
    pub(super) fn new<T: AsRef<[u8]>>(tokens: &[T]) -> Result<Self> {
        ensure!((NUM_BYTES..NONE as usize).contains(&tokens.len()), "a vocabulary of {} tokens", tokens.len());
        let mut bpe = Self {
            byte_ids: [NONE; NUM_BYTES],
            merges: Vec::with_capacity(tokens.len() - NUM_BYTES),
            joined: FxHashMap::default(),
            lens: Vec::with_capacity(tokens.len()),
            suffixes: Suffixes::default(),
        };
        for (id, token) in (0..).zip(tokens.iter().map(AsRef::as_ref)) {
            match token {
                &[byte] if (id as usize) < NUM_BYTES => bpe.byte_ids[byte as usize] = id,
                _ if (id as usize) < NUM_BYTES => bail!("token {id} is {token:?} instead of a single byte"),
                _ if token.len() > MAX_TOKEN_BYTES => bail!("token {id} has {} bytes", token.len()),
                _ => {
                    let mut parts = Vec::with_capacity(2);
                    bpe.merge(token, &mut parts);
                    let &[left, right] = parts.as_slice() else { bail!("token {id} is no merge of two earlier ones") };
                    bpe.merges.push((left as u16, right as u16));
                    bpe.joined.insert((left as u16, right as u16), id);
                }
            }
            bpe.lens.push(token.len() as u8);
            bpe.suffixes.insert(token, id);
        }
        Ok(bpe)
    }

    /// The two tokens that each merge joins, in the order of the merges.
    pub(super) fn merges(&self) -> &[(u16, u16)] {
        &self.merges
    }

    /// Appends the encoding of a piece to `out`, or at least its first `max` ids.
    pub(super) fn encode(&self, piece: &[u8], max: usize, out: &mut Vec<u32>) {
        if piece.len() <= MAX_TOKEN_BYTES {
            self.merge(piece, out);
        } else {
            self.encode_prefixes(piece, max, out);
        }
    }

    /// Appends the encoding of at most `MAX_TOKEN_BYTES` bytes to `out`, by doing merge after merge.
    fn merge(&self, piece: &[u8], out: &mut Vec<u32>) {
        let mut ids = [NONE; MAX_TOKEN_BYTES];
        // What each token and the next one are joined to. Behind the last one there is nothing.
        let mut joins = [NONE; MAX_TOKEN_BYTES];
        let mut len = piece.len();
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte_ids[byte as usize];
        }
        for at in 1..len {
            joins[at - 1] = self.join(ids[at - 1], ids[at]);
        }
        while let Some((at, &lowest)) = joins[..len].iter().enumerate().min_by_key(|&(_, &join)| join)
            && lowest != NONE
        {
            ids[at] = lowest;
            ids.copy_within(at + 2..len, at + 1);
            joins.copy_within(at + 1..len, at);
            len -= 1;
            if at > 0 {
                joins[at - 1] = self.join(ids[at - 1], lowest);
            }
            joins[at] = if at + 1 < len { self.join(lowest, ids[at + 1]) } else { NONE };
        }
        out.extend(ids[..len].iter().map(|&id| u32::from(id)));
    }

    /// The token that two neighbours are joined to, or `NONE`.
    fn join(&self, left: u16, right: u16) -> u16 {
        self.joined.get(&(left, right)).copied().unwrap_or(NONE)
    }

    /// The two tokens that a token was joined of; none for a byte.
    fn parts(&self, id: u16) -> Option<(u16, u16)> {
        self.merges.get((id as usize).checked_sub(NUM_BYTES)?).copied()
    }
}

#[cfg(test)]
#[path = "bpe_tests.rs"]
mod tests;
