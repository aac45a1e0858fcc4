//! The header of a token shard.
//!
//! The file is llm.c's: 256 little-endian 32-bit integers, of which the first three are 20240520, 1 and the number of tokens,
//! then the tokens as little-endian u16. What llm.c leaves free in the header holds, from byte 512 on, what assay wants to be
//! sure of:
//!
//! | bytes | |
//! |---|---|
//! | 512..520 | `assay-v1` |
//! | 520..524 | tokens at which documents were cut, their end-of-text not counted; 0: nowhere |
//! | 524..556 | SHA-256 of the tokens' bytes |
//! | 556..588 | SHA-256 of the header's bytes before |

use sha2::{Digest, Sha256};

/// Bytes before the first token.
pub const HEADER_BYTES: usize = 1024;
const MAGIC: u32 = 20_240_520;
const VERSION: u32 = 1;
const OWN: &[u8; 8] = b"assay-v1";
const OWN_AT: usize = 512;
const HEADER_SUM_AT: usize = 556;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tokens that follow.
    pub num_tokens: u32,
    /// What only assay writes.
    pub own: Option<Own>,
}

/// The part of a header that only assay writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Tokens at which documents were cut; 0: nowhere.
    pub max_document_tokens: u32,
    /// SHA-256 of the tokens' bytes.
    pub tokens_sum: [u8; 32],
}

impl Header {
    /// The header as bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        for (at, value) in [MAGIC, VERSION, self.num_tokens].into_iter().enumerate() {
            bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(Own { max_document_tokens, tokens_sum }) = self.own {
            bytes[OWN_AT..OWN_AT + 8].copy_from_slice(OWN);
            bytes[OWN_AT + 8..OWN_AT + 12].copy_from_slice(&max_document_tokens.to_le_bytes());
            bytes[OWN_AT + 12..HEADER_SUM_AT].copy_from_slice(&tokens_sum);
            let sum = Sha256::digest(&bytes[..HEADER_SUM_AT]);
            bytes[HEADER_SUM_AT..HEADER_SUM_AT + 32].copy_from_slice(&sum);
        }
        bytes
    }

    /// Reads a header; the reason where it is none.
    pub fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(0) != MAGIC {
            return Err("it does not begin as a token shard does (llm.c's, magic number 20240520)".to_owned());
        }
        if word(4) != VERSION {
            return Err(format!("it is of version {}, and {VERSION} is known", word(4)));
        }
        let num_tokens = word(8);
        if &bytes[OWN_AT..OWN_AT + 8] != OWN {
            return Ok(Self { num_tokens, own: None });
        }
        if bytes[HEADER_SUM_AT..HEADER_SUM_AT + 32] != Sha256::digest(&bytes[..HEADER_SUM_AT])[..] {
            return Err("its header is damaged".to_owned());
        }
        let mut tokens_sum = [0; 32];
        tokens_sum.copy_from_slice(&bytes[OWN_AT + 12..HEADER_SUM_AT]);
        Ok(Self { num_tokens, own: Some(Own { max_document_tokens: word(OWN_AT + 8), tokens_sum }) })
    }
}
