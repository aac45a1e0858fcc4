//! Whether what a model writes is more than noise or repetition: the reference's `check_for_reasonable_output`, with which
//! validators from 21 March 2024 on look at two generated continuations before they count any loss.

use std::collections::HashMap;

/// What is held against two continuations. Parts are given by their divisor: 3 means a third.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRule {
    /// Tokens that are generated after each of two prompts.
    pub num_tokens: usize,
    /// Refused if the two agree at this part of the positions, or more.
    pub equal_part: usize,
    /// Refused if one token makes up more than this part of a continuation.
    pub repeated_part: usize,
    /// Whether such repetition in one of the two is enough.
    pub either: bool,
}

/// Tokens of a row that are continued.
pub const PROMPT_TOKENS: usize = 100;

/// From 21 March 2024 on.
pub const MARCH_2024: OutputRule = OutputRule { num_tokens: 30, equal_part: 3, repeated_part: 3, either: true };
/// In June 2024.
pub const JUNE_2024: OutputRule = OutputRule { num_tokens: 20, equal_part: 2, repeated_part: 2, either: false };

impl OutputRule {
    /// Whether two continuations pass; of unequal lengths the first positions are compared.
    pub fn is_reasonable(&self, first: &[u32], second: &[u32]) -> bool {
        let num_equal = std::iter::zip(first, second).filter(|(one, other)| one == other).count();
        if num_equal * self.equal_part >= self.num_tokens {
            return false;
        }
        let repeats = |output: &[u32]| most_common_count(output) * self.repeated_part > self.num_tokens;
        !if self.either { repeats(first) || repeats(second) } else { repeats(first) && repeats(second) }
    }
}

fn most_common_count(tokens: &[u32]) -> usize {
    let mut counts = HashMap::new();
    tokens.iter().for_each(|token| *counts.entry(token).or_insert(0) += 1);
    counts.into_values().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::golden;

    fn check(file: &str, key: &str, rule: OutputRule) {
        for case in golden::cases(file, key) {
            let tokens = |key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
            let (first, second) = (tokens("out1"), tokens("out2"));
            assert_eq!(first.len(), rule.num_tokens);
            assert_eq!(Some(rule.is_reasonable(&first, &second)), case["reasonable"].as_bool(), "{case}");
        }
    }

    #[test]
    fn golden_outputs_of_march_2024() {
        check("validation/reasonable_output_mar21.json", "cases", MARCH_2024);
    }

    #[test]
    fn golden_outputs_of_june_2024() {
        check("validation/head_extra.json", "reasonable_output", JUNE_2024);
    }
}
