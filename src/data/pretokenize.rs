//! GPT-2's pre-tokenization: where a text is cut into the pieces that byte-pair merges never cross.
//!
//! The definition is the regular expression
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` with the Unicode tables of
//! tokenizers 0.15.2. Today's tables class some 26,872 code points differently (new scripts became letters since), and
//! one of them is enough to change a document's tokens and thereby every later row. So the classes are data here
//! (`codepoint_classes.txt`), and the expression is written out by hand, as four kinds of runs.

use std::sync::LazyLock;

/// What the expression can tell about a code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// Class of each code point, as one byte each: the table is large, but text touches little of it.
static CLASSES: LazyLock<Box<[Class]>> = LazyLock::new(|| {
    let runs: Vec<(usize, Class)> = include_str!("codepoint_classes.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (first, class) = line.split_once(' ').expect("each line of the table is a code point and a class");
            let class = match class {
                "L" => Class::Letter,
                "N" => Class::Number,
                "S" => Class::Space,
                _ => Class::Other,
            };
            (usize::from_str_radix(first, 16).expect("the table's code points are hexadecimal"), class)
        })
        .collect();
    let mut classes = vec![Class::Other; char::MAX as usize + 1];
    for (run, &(first, class)) in runs.iter().enumerate() {
        let end = runs.get(run + 1).map_or(classes.len(), |next| next.0);
        classes[first..end].fill(class);
    }
    classes.into()
});

/// The pieces of a text in order; together they are the text.
pub(super) struct Pieces<'a> {
    rest: &'a str,
    classes: &'static [Class],
}

/// Cuts a text, which holds no special token, into pieces.
pub(super) fn pieces(text: &str) -> Pieces<'_> {
    Pieces { rest: text, classes: &CLASSES }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let mut characters = self.rest.chars();
        let first = characters.next()?;
        let len = match (self.contraction_len(), self.class(first), characters.next()) {
            (Some(len), _, _) => len,
            (None, Class::Space, Some(second)) if first == ' ' && self.class(second) != Class::Space => {
                1 + self.run_len(1, self.class(second))
            }
            (None, Class::Space, _) => self.space_len(),
            (None, class, _) => self.run_len(0, class),
        };
        let (piece, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(piece)
    }
}

impl Pieces<'_> {
    fn class(&self, character: char) -> Class {
        self.classes[character as usize]
    }

    /// Bytes of the English contraction at the start, if there is one. Case matters: `'S` is none.
    fn contraction_len(&self) -> Option<usize> {
        match self.rest.as_bytes() {
            [b'\'', b's' | b't' | b'm' | b'd', ..] => Some(2),
            [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => Some(3),
            _ => None,
        }
    }

    /// Bytes of the longest run of a class from byte `start` on.
    fn run_len(&self, start: usize, class: Class) -> usize {
        let run = &self.rest[start..];
        run.char_indices().find(|&(_, other)| self.class(other) != class).map_or(run.len(), |(end, _)| end)
    }

    /// Bytes of `\s+(?!\S)|\s+`: spaces before a word leave their last one to it, unless it is the only one.
    fn space_len(&self) -> usize {
        let run = self.run_len(0, Class::Space);
        if run == self.rest.len() {
            return run;
        }
        let last = self.rest[..run].chars().next_back().map_or(0, char::len_utf8);
        if last == run { run } else { run - last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        pieces(text).collect()
    }

    #[test]
    fn spaces_leave_their_last_one_to_the_next_word() {
        assert_eq!(cut("a   b"), ["a", "  ", " b"]);
        assert_eq!(cut("a \n b"), ["a", " \n", " b"]);
        assert_eq!(cut("a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(cut("a\u{3000}b"), ["a", "\u{3000}", "b"]);
        assert_eq!(cut("a  "), ["a", "  "]);
    }

    #[test]
    fn contractions_split_only_at_the_start_of_a_piece_and_in_lower_case() {
        assert_eq!(cut("it's we'll I'VE 'tis"), ["it", "'s", " we", "'ll", " I", "'", "VE", " '", "tis"]);
        assert_eq!(cut("!'s"), ["!'", "s"]);
        assert_eq!(cut("'l'r'"), ["'", "l", "'", "r", "'"]);
    }

    #[test]
    fn letters_numbers_and_the_rest_never_share_a_piece() {
        assert_eq!(cut("x1½, ?!²_é"), ["x", "1½", ",", " ?!", "²", "_", "é"]);
    }
}
