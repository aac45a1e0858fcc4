//! Token ids of documents, in binary for programs in other languages; and the vocabulary as Hugging Face's library saves it.
//!
//! ```console
//! cargo run --release --example tokenize < DOCUMENTS > IDS
//! cargo run --release --example tokenize -- --vocabulary DIR
//! ```
//!
//! A document is its length in bytes, the most ids that are wanted of it (2³² - 1: all), each a little-endian u32, and its
//! text in UTF-8. Its answer is the number of its ids, a u32, and the ids, a u16 each.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use assay::data::tokenizer::Tokenizer;
use tokenizers::Model;

fn main() -> Result<()> {
    let tokenizer = Tokenizer::gpt2()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => answer(&tokenizer, BufReader::new(std::io::stdin()), BufWriter::new(std::io::stdout())),
        ["--vocabulary", dir] => {
            let definition = tokenizer.definition()?;
            let saved = definition.get_model().save(Path::new(dir), None);
            saved.map(drop).map_err(|error| anyhow!("cannot write the vocabulary to {dir}: {error}"))
        }
        _ => bail!("give nothing, or --vocabulary DIR"),
    }
}

/// Reads documents until the end of the input.
fn answer(tokenizer: &Tokenizer, mut documents: impl Read, mut answers: impl Write) -> Result<()> {
    let mut ids = Vec::new();
    while let Some(len) = number(&mut documents)? {
        let max = number(&mut documents)?.context("a document ends before its text")?;
        let mut text = String::new();
        documents.by_ref().take(len.into()).read_to_string(&mut text)?;
        ensure!(text.len() == len as usize, "a document has {} bytes instead of {len}", text.len());
        ids.clear();
        tokenizer.encode(&text, (max < u32::MAX).then_some(max as usize), &mut ids);
        answers.write_all(&u32::try_from(ids.len())?.to_le_bytes())?;
        for &id in &ids {
            answers.write_all(&u16::try_from(id)?.to_le_bytes())?;
        }
    }
    answers.flush().context("cannot write the ids")
}

/// The next number, if the input goes on.
fn number(input: &mut impl Read) -> Result<Option<u32>> {
    let mut bytes = Vec::with_capacity(4);
    input.take(4).read_to_end(&mut bytes)?;
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Ok(Some(u32::from_le_bytes(bytes))),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => bail!("a number of four bytes is cut short"),
    }
}
