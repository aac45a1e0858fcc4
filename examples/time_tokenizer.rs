//! Million tokens that the tokenizer encodes in a second of processor time, whatever else the machine does: of the embedded
//! novels, of a text like the web's that is made of them (names, addresses, numbers, code, slips of the finger, other
//! scripts), and of text files that are named.
//!
//! ```console
//! cargo run --release --example time_tokenizer [FILE...]
//! ```

use anyhow::{Context, Result};
use assay::data::sample::Sample;
use assay::data::source::Source;
use assay::data::tokenizer::Tokenizer;
use assay::metrics::printer::Printer;

const ROUNDS: usize = 15;

/// First letters of the alphabets that words of other scripts are drawn from, and how many they have.
const SCRIPTS: [(u32, u32); 5] = [(0x430, 32), (0x3b1, 25), (0x627, 36), (0x905, 50), (0x4e00, 3000)];

fn main() -> Result<()> {
    let tokenizer = Tokenizer::gpt2()?;
    let (novels, _) = Sample::open()?;
    let novels: Vec<String> = (0..novels.num_shards())
        .map(|shard| novels.documents(shard, 0)?.collect::<Result<String>>())
        .collect::<Result<_>>()?;
    let words: Vec<&str> = novels.iter().flat_map(|text| text.split(' ')).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let web = novels.iter().map(|text| like_the_web(text, &words, &mut random)).collect();

    let mut texts = vec![("novels".to_owned(), novels), ("like the web".to_owned(), web)];
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        texts.push((path, vec![text]));
    }
    for (name, documents) in texts {
        let bytes: usize = documents.iter().map(String::len).sum();
        let (num_tokens, mut rates) = time(&tokenizer, &documents)?;
        rates.sort_by(f64::total_cmp);
        Printer::new(false).result(&format!(
            "{name}: {bytes} bytes, {num_tokens} tokens; median {:.1}, best {:.1} M tokens/s",
            rates[ROUNDS / 2],
            rates[ROUNDS - 1]
        ))?;
    }
    Ok(())
}

/// The number of tokens, and how many millions of them each round encoded in a second.
fn time(tokenizer: &Tokenizer, documents: &[String]) -> Result<(usize, Vec<f64>)> {
    let mut ids = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        ids.clear();
        let start = processor_nanos()?;
        for text in documents {
            tokenizer.encode(text, None, &mut ids);
        }
        rates.push(ids.len() as f64 * 1e3 / (processor_nanos()? - start));
    }
    Ok((ids.len(), rates))
}

/// Nanoseconds that this thread has run.
fn processor_nanos() -> Result<f64> {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    statistics.split(' ').next().context("an empty schedstat")?.parse().context("an odd schedstat")
}

/// A text in which one word in six is replaced by what the web has and novels have not.
fn like_the_web(text: &str, words: &[&str], random: &mut fastrand::Rng) -> String {
    let mut other = String::new();
    for word in text.split(' ') {
        let letters: Vec<char> = word.chars().collect();
        let replacement = match random.u32(..100) {
            0..5 => name(words, random),
            5..7 => format!("https://www.{}.com/{}-{}", name(words, random).to_lowercase(), random.u16(..), word),
            7..10 => format!("{}.{:02}", random.u32(..100_000), random.u8(..100)),
            10..12 => format!("{}_{}({word})", name(words, random), name(words, random)),
            12..15 if letters.len() > 2 => {
                let mut letters = letters;
                letters.swap(1, 2);
                letters.into_iter().collect()
            }
            15..17 => {
                let (first, count) = SCRIPTS[random.usize(..SCRIPTS.len())];
                letters.iter().filter_map(|_| char::from_u32(first + random.u32(..count))).collect()
            }
            _ => word.to_owned(),
        };
        other += &replacement;
        other.push(' ');
    }
    other
}

/// The beginnings of two words, each with a capital letter: `AnneCap`.
fn name(words: &[&str], random: &mut fastrand::Rng) -> String {
    let mut beginning = || {
        let word = words[random.usize(..words.len())];
        let mut letters = word.chars().filter(|letter| letter.is_alphabetic()).take(4);
        letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect::<String>()
    };
    beginning() + &beginning()
}
