//! Text as rough as the web's, made up from a seed: sentences of novels, with misspellings, between names, addresses,
//! numbers, remains of markup, and words in other scripts.

use std::ops::RangeInclusive;

use anyhow::Result;
use fastrand::Rng;

use crate::data::sample::Sample;
use crate::data::source::Source;

/// Letters of other scripts, one range for each, and how many make a word.
const SCRIPTS: [(RangeInclusive<char>, RangeInclusive<usize>); 9] = [
    ('à'..='ö', 3..=9),
    ('α'..='ω', 3..=10),
    ('а'..='я', 2..=12),
    ('א'..='ת', 2..=7),
    ('ب'..='غ', 2..=8),
    ('अ'..='ह', 2..=6),
    ('ぁ'..='ん', 2..=8),
    ('一'..='龥', 1..=6),
    ('가'..='힣', 1..=5),
];
const MARKUP: [&str; 16] = [
    "&nbsp;", "&amp;", "<br />", "<p>", "</div>", " | ", " » ", "\n* ", "\n\n", " – ", "…", "[1]", "#1 ", "😀", "©",
    "\t",
];
const ENDINGS: [&str; 8] = ["com", "org", "net", "co.uk", "de", "info", "ru", "edu"];
const SYLLABLES: [&str; 24] = [
    "an", "bel", "cor", "da", "el", "fi", "gar", "hu", "is", "jo", "kra", "lin", "mo", "nu", "or", "pe", "qua", "ri",
    "sto", "tu", "vi", "wen", "xa", "zo",
];

/// Documents without end.
pub(super) struct WebText {
    sentences: Vec<String>,
    random: Rng,
}

impl WebText {
    /// Those of a seed.
    pub(super) fn new(seed: u64) -> Result<Self> {
        let (novels, _) = Sample::open()?;
        let mut sentences = Vec::new();
        for shard in 0..novels.num_shards() {
            for text in novels.documents(shard, 0, None)? {
                sentences.extend(text?.split_inclusive(['.', '?', '!']).map(|sentence| sentence.trim().to_owned()));
            }
        }
        Ok(Self { sentences, random: Rng::with_seed(seed) })
    }

    /// Most documents are short, some are long, 2 kB in the mean.
    fn document(&mut self) -> String {
        let len = 300 + (-1_700.0 * (1.0 - self.random.f64()).ln()) as usize;
        let mut text = String::with_capacity(len + 400);
        while text.len() < len {
            match self.random.u32(0..100) {
                0..6 => self.name(&mut text),
                6..11 => self.address(&mut text),
                11..20 => self.number(&mut text),
                20..28 => text.push_str(MARKUP[self.random.usize(0..MARKUP.len())]),
                28..31 => self.foreign(&mut text),
                _ => self.sentence(&mut text),
            }
            text.push(if self.random.u32(0..12) == 0 { '\n' } else { ' ' });
        }
        text
    }

    /// A sentence of which one word in thirty is misspelt.
    fn sentence(&mut self, text: &mut String) {
        let sentence = &self.sentences[self.random.usize(0..self.sentences.len())];
        for (number, word) in sentence.split(' ').enumerate() {
            if number > 0 {
                text.push(' ');
            }
            let mut letters: Vec<char> = word.chars().collect();
            if letters.len() > 3 && self.random.u32(0..30) == 0 {
                let at = self.random.usize(1..letters.len() - 1);
                match self.random.u32(0..4) {
                    0 => letters.swap(at, at + 1),
                    1 => letters.insert(at, letters[at]),
                    2 => drop(letters.remove(at)),
                    _ => letters.iter_mut().for_each(|letter| letter.make_ascii_uppercase()),
                }
                text.extend(letters);
            } else {
                text.push_str(word);
            }
        }
    }

    fn word(&mut self, text: &mut String) {
        for _ in 0..self.random.u32(2..4) {
            text.push_str(SYLLABLES[self.random.usize(0..SYLLABLES.len())]);
        }
    }

    fn name(&mut self, text: &mut String) {
        for part in 0..2 {
            if part > 0 {
                text.push(' ');
            }
            let start = text.len();
            self.word(text);
            text[start..=start].make_ascii_uppercase();
        }
    }

    fn address(&mut self, text: &mut String) {
        text.push_str(["http://", "https://www.", "www.", "info@"][self.random.usize(0..4)]);
        self.word(text);
        text.push('.');
        text.push_str(ENDINGS[self.random.usize(0..ENDINGS.len())]);
        for _ in 0..self.random.u32(0..4) {
            text.push(['/', '-', '_'][self.random.usize(0..3)]);
            self.word(text);
        }
        if self.random.bool() {
            text.push_str(&format!("?id={:x}", self.random.u32(..)));
        }
    }

    fn number(&mut self, text: &mut String) {
        let mut below = |end: u32| self.random.u32(0..end);
        let number = match below(6) {
            0 => format!("{}", below(3_000)),
            1 => format!("${}.{:02}", below(1_000), below(100)),
            2 => format!("{:02}/{:02}/{}", below(12) + 1, below(28) + 1, 1_990 + below(34)),
            3 => format!("{}:{:02} pm", below(12) + 1, below(60)),
            4 => format!("({}) {}-{:04}", 200 + below(800), 200 + below(800), below(10_000)),
            _ => format!("{},{:03},{:03}", below(1_000), below(1_000), below(1_000)),
        };
        text.push_str(&number);
    }

    /// Some words in one script.
    fn foreign(&mut self, text: &mut String) {
        let (letters, len) = &SCRIPTS[self.random.usize(0..SCRIPTS.len())];
        for word in 0..self.random.u32(1..9) {
            if word > 0 {
                text.push(' ');
            }
            for _ in 0..self.random.usize(len.clone()) {
                text.push(self.random.char(letters.clone()));
            }
        }
    }
}

impl Iterator for WebText {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.document())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_seed_makes_the_same_documents_of_the_length_of_web_pages_with_something_of_everything() {
        let documents = |seed| WebText::new(seed).unwrap().take(300).collect::<Vec<_>>();
        let made = documents(1);
        assert_eq!(made, documents(1));
        assert_ne!(made, documents(2));
        let all = made.concat();
        assert!((1_500..3_000).contains(&(all.len() / made.len())), "{}", all.len() / made.len());
        for part in ["http", "&nbsp;", "$", "😀", " and "] {
            assert!(all.contains(part), "{part}");
        }
        for (letters, _) in &SCRIPTS {
            assert!(all.chars().any(|letter| letters.contains(&letter)), "{letters:?}");
        }
        assert!(all.chars().filter(char::is_ascii).count() * 100 > 85 * all.chars().count());
    }
}
