//! The subnet's constants through its history, as data: what a model must be, and how it is judged.
//!
//! Two things changed over time, at different moments, so there are two tables:
//! - [`CRITERIA`]: what a *model* must be, by the block of its commitment (limits, sequence length, tokenizer, classes).
//!   The chain's block decides, exactly.
//! - [`VALIDATORS`]: what the *validator's program* did, by the day its version appeared (temperature, pages, sample
//!   sizes). Validators update themselves, each when it likes, so a version's first block is only approximate.
//!
//! A version knows only the criteria that existed when it was written: [`Rules::under`] asks one version about one
//! block, as its own source would answer; [`Rules::at_block`] takes the version that was current around the block.
//! A new constant is a field of one of the two structs and a value in each of its rows; code never asks for a date.
//!
//! Sources: RaoFoundation/pretraining at the commits named in [`VALIDATORS`].

use crate::score::output::{self, OutputRule};

/// The subnet's number on the chain.
pub const NETUID: u16 = 9;

/// The block whose rules apply when a recipe names none: about 9 March 2024.
///
/// Counted at 7,200 blocks a day (12 seconds each) between two blocks of known time: 2,405,920, when the limit of
/// 772 million parameters began (end of February 2024), and 2,585,476, at which subtensor's chain specification
/// substitutes its runtime (second half of March 2024). The model criteria are the same anywhere from 2,405,920 to
/// 2,786,060, so the error of a day or two does not matter.
pub const DEFAULT_BLOCK: u64 = 2_485_000;

/// A tokenizer the subnet has scored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    /// GPT-2's byte-level BPE (`distilgpt2`).
    Gpt2,
    /// GPT-4's (`Xenova/gpt-4`).
    Gpt4,
}

impl Tokenizer {
    /// Number of token ids, special ones included.
    pub fn vocab_size(self) -> usize {
        match self {
            Self::Gpt2 => 50_257,
            Self::Gpt4 => 100_277,
        }
    }

    /// Its name in sentences.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT-2",
            Self::Gpt4 => "GPT-4",
        }
    }
}

/// The number format in which validators compute losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ScoreDtype {
    /// 32-bit floats, whatever the file holds.
    #[default]
    F32,
    /// bfloat16 with flash attention.
    Bf16,
}

/// What a model must be when its commitment lies at or after a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Criteria {
    /// The first block of commitments they apply to.
    pub from_block: u64,
    /// Largest allowed number of parameters, a tied head counted once; equal passes.
    pub max_parameters: u64,
    /// Largest allowed size of all files of the repository in bytes; equal passes.
    pub max_repo_bytes: u64,
    /// Tokens per scored row.
    pub sequence_length: usize,
    /// The tokenizer of the scored rows.
    pub tokenizer: Tokenizer,
    /// The number format of scoring.
    pub dtype: ScoreDtype,
    /// The allowed classes of `transformers`.
    pub architectures: &'static [&'static str],
}

/// The model criteria by block of commitment, ascending.
pub static CRITERIA: [Criteria; 3] = [
    Criteria {
        from_block: 0,
        max_parameters: 186_000_000,
        max_repo_bytes: 5 * GIB,
        sequence_length: 1024,
        tokenizer: Tokenizer::Gpt2,
        dtype: ScoreDtype::F32,
        architectures: &ARCHITECTURES_OF_2023,
    },
    Criteria {
        from_block: 2_405_920,
        max_parameters: 772_000_000,
        max_repo_bytes: 5 * GIB,
        sequence_length: 1024,
        tokenizer: Tokenizer::Gpt2,
        dtype: ScoreDtype::F32,
        architectures: &ARCHITECTURES_OF_2023,
    },
    Criteria {
        from_block: 2_786_061,
        max_parameters: 6_900_000_000,
        max_repo_bytes: 15 * GIB,
        sequence_length: 4096,
        tokenizer: Tokenizer::Gpt4,
        dtype: ScoreDtype::Bf16,
        architectures: &ARCHITECTURES_OF_APRIL_2024,
    },
];

const GIB: u64 = 1 << 30;

const ARCHITECTURES_OF_2023: [&str; 7] = [
    "GPT2LMHeadModel",
    "MistralForCausalLM",
    "LlamaForCausalLM",
    "BartForCausalLM",
    "FalconForCausalLM",
    "GPTNeoXForCausalLM",
    "GPTJForCausalLM",
];

const ARCHITECTURES_OF_APRIL_2024: [&str; 7] = [
    "MistralForCausalLM",
    "LlamaForCausalLM",
    "BartForCausalLM",
    "FalconForCausalLM",
    "GPTNeoXForCausalLM",
    "PhiForCausalLM",
    "GemmaForCausalLM",
];

/// Which models a validator keeps from one step to the next, besides new ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// Those with the highest win rates. Models without a finite loss are left out if they have no weight; but as a softmax
    /// never reaches 0, every model has some.
    WinRate,
    /// Those with weight first, by weight, then the others by win rate.
    WeightThenWinRate {
        /// The weight that counts.
        from_weight: f64,
    },
}

/// One version of the validator's program.
#[derive(Clone, Debug, PartialEq)]
pub struct Validator {
    /// The day it appeared, `YYYY-MM-DD`: its name here.
    pub since: &'static str,
    /// The commit of RaoFoundation/pretraining.
    pub commit: &'static str,
    /// About the first block of that day, by [`DEFAULT_BLOCK`]'s reckoning; 0 for the oldest known.
    pub from_block: u64,
    /// How many rows of [`CRITERIA`] it knows; it judges later commitments by the last of them.
    pub num_criteria: usize,
    /// Sent with every weight vector: 1000 major + 10 minor + patch of its version.
    pub weights_version_key: u64,
    /// Temperature of the softmax over win rates.
    pub temperature: f64,
    /// Pages per step.
    pub pages_per_step: usize,
    /// Models kept from one step to the next.
    pub sample_min: usize,
    /// Which ones.
    pub keep: Keep,
    /// Models that may wait for a step or be kept, before no further one is fetched.
    pub sample_max: usize,
    /// The place in the list of uids at which the round of updates begins when the program starts; `None`: any.
    pub first_index: Option<usize>,
    /// A miner's commitment is looked at again no sooner than after so many seconds.
    pub seconds_between_checks: u64,
    /// Miners with this part of the incentive or more are looked at before the others; `None`: nobody is.
    pub incentive_first: Option<f64>,
    /// A model that was dropped, and that one of the largest validators gives most of its weight, is evaluated again, but no
    /// sooner than so many seconds after the last time; `None`: none is.
    pub seconds_between_retries: Option<u64>,
    /// Whether a commitment may name the hash of the model's hash and the hotkey instead of the model's hash.
    pub bound_hash: bool,
    /// A model that has not finished a step's batches after so many seconds loses them all.
    pub seconds_per_model: u64,
    /// What the text that a model writes must be like; `None`: nobody looks.
    pub output: Option<OutputRule>,
}

/// The known versions of the validator's program, oldest first.
pub static VALIDATORS: [Validator; 4] = [
    Validator {
        since: "2024-02-21",
        commit: "d2faaec",
        from_block: 0,
        num_criteria: 2,
        weights_version_key: 2021,
        temperature: 0.04,
        pages_per_step: 3,
        sample_min: 30,
        keep: Keep::WinRate,
        sample_max: 50,
        first_index: None,
        seconds_between_checks: 300,
        incentive_first: None,
        seconds_between_retries: None,
        bound_hash: false,
        seconds_per_model: 60,
        output: None,
    },
    Validator {
        since: "2024-03-21",
        commit: "706f659",
        from_block: 2_571_400,
        num_criteria: 2,
        weights_version_key: 2022,
        temperature: 0.04,
        pages_per_step: 3,
        sample_min: 30,
        keep: Keep::WinRate,
        sample_max: 50,
        first_index: Some(200),
        seconds_between_checks: 300,
        incentive_first: None,
        seconds_between_retries: None,
        bound_hash: false,
        seconds_per_model: 60,
        output: Some(output::MARCH_2024),
    },
    Validator {
        since: "2024-03-27",
        commit: "18f0056",
        from_block: 2_614_600,
        num_criteria: 3,
        weights_version_key: 2022,
        temperature: 0.01,
        pages_per_step: 12,
        sample_min: 6,
        keep: Keep::WinRate,
        sample_max: 14,
        first_index: None,
        seconds_between_checks: 1200,
        incentive_first: Some(0.01),
        seconds_between_retries: None,
        bound_hash: false,
        seconds_per_model: 360,
        output: Some(output::MARCH_2024),
    },
    Validator {
        since: "2024-06-25",
        commit: "e2ff6ae",
        from_block: 3_262_600,
        num_criteria: 3,
        weights_version_key: 2022,
        temperature: 0.01,
        pages_per_step: 18,
        sample_min: 6,
        keep: Keep::WeightThenWinRate { from_weight: 0.001 },
        sample_max: 14,
        first_index: None,
        seconds_between_checks: 1200,
        incentive_first: None,
        seconds_between_retries: Some(4 * 3600),
        bound_hash: true,
        seconds_per_model: 360,
        output: Some(output::JUNE_2024),
    },
];

/// The subnet's rules in force: a model's criteria and the judging program's constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The block they were asked for.
    pub block: u64,
    /// What a model committed at that block must be.
    pub criteria: Criteria,
    /// The program that judges it.
    pub validator: Validator,
    /// Part by which a rival's earlier model is favoured: its loss counts `1 - epsilon`.
    pub epsilon: f64,
    /// Part of the old weights that stays when a step's new ones are mixed in.
    pub alpha: f64,
    /// Rows per scored batch.
    pub batch_size: usize,
    /// Blocks between two settings of weights on the chain.
    pub blocks_per_epoch: u64,
}

impl Rules {
    /// The rules for a model committed at `block`, judged by the version that was current around it.
    pub fn at_block(block: u64) -> Self {
        let validator = last_from(&VALIDATORS, |validator| validator.from_block, block);
        let criteria = last_from(&CRITERIA, |criteria| criteria.from_block, block);
        Self::of(block, criteria, validator)
    }

    /// The version of the validator's program that appeared on a day; the error is a sentence that names all.
    pub fn version(since: &str) -> Result<&'static Validator, String> {
        VALIDATORS.iter().find(|validator| validator.since == since).ok_or_else(|| {
            let known: Vec<_> = VALIDATORS.iter().map(|validator| validator.since).collect();
            format!("no version of the validator is known by `{since}`; known are {}", known.join(", "))
        })
    }

    /// The rules for a model committed at `block` as one version of the validator's program knows them.
    pub fn under(validator: &Validator, block: u64) -> Self {
        let known = &CRITERIA[..validator.num_criteria];
        Self::of(block, last_from(known, |criteria| criteria.from_block, block), validator)
    }

    /// What a model committed at `block` must be: these rules' own criteria where they began with the same block of the
    /// history, so that limits of a recipe's own hold for rivals too, else those of the history.
    pub fn criteria_for(&self, block: u64) -> Criteria {
        let history = Self::under(&self.validator, block).criteria;
        if history.from_block == self.criteria.from_block { self.criteria.clone() } else { history }
    }

    fn of(block: u64, criteria: &Criteria, validator: &Validator) -> Self {
        Self {
            block,
            criteria: criteria.clone(),
            validator: validator.clone(),
            epsilon: 0.005,
            alpha: 0.5,
            batch_size: 1,
            blocks_per_epoch: 50,
        }
    }
}

/// The last row of an ascending table that has begun at `block`; every table begins at block 0.
fn last_from<T>(table: &[T], from_block: impl Fn(&T) -> u64, block: u64) -> &T {
    let begun = table.partition_point(|row| from_block(row) <= block);
    &table[begun.saturating_sub(1)]
}

impl Default for Rules {
    fn default() -> Self {
        Self::at_block(DEFAULT_BLOCK)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The reference's `get_parameter_limit` at d2faaec (21 February 2024), which did not know the 7 B rules yet.
    #[test]
    fn golden_parameter_limit_by_block() {
        for case in crate::golden::cases("hash", "parameter_limit_by_block") {
            match case["block"].as_u64() {
                Some(block) => {
                    let rules = Rules::under(&VALIDATORS[0], block);
                    assert_eq!(Some(rules.criteria.max_parameters), case["limit"]["value"].as_u64(), "{case}");
                }
                // The reference has no limit before block 0; here such a block cannot be expressed.
                None => assert_eq!(case["limit"]["exception"], "AssertionError", "{case}"),
            }
        }
    }

    #[test]
    fn tables_begin_at_block_0_and_ascend() {
        assert_eq!((CRITERIA[0].from_block, VALIDATORS[0].from_block), (0, 0));
        assert!(CRITERIA.windows(2).all(|pair| pair[0].from_block < pair[1].from_block));
        assert!(VALIDATORS.windows(2).all(|pair| pair[0].from_block < pair[1].from_block));
        assert!(VALIDATORS.windows(2).all(|pair| pair[0].since < pair[1].since));
        assert!(VALIDATORS.iter().all(|validator| (1..=CRITERIA.len()).contains(&validator.num_criteria)));
    }

    #[test]
    fn criteria_switch_exactly_at_their_blocks() {
        let limits = |block| {
            let criteria = Rules::at_block(block).criteria;
            (criteria.max_parameters, criteria.max_repo_bytes, criteria.sequence_length, criteria.tokenizer)
        };
        let old_bytes = 5_368_709_120;
        assert_eq!(limits(0), (186_000_000, old_bytes, 1024, Tokenizer::Gpt2));
        assert_eq!(limits(2_405_919), (186_000_000, old_bytes, 1024, Tokenizer::Gpt2));
        assert_eq!(limits(2_405_920), (772_000_000, old_bytes, 1024, Tokenizer::Gpt2));
        assert_eq!(limits(2_786_060), (772_000_000, old_bytes, 1024, Tokenizer::Gpt2));
        assert_eq!(limits(2_786_061), (6_900_000_000, 16_106_127_360, 4096, Tokenizer::Gpt4));
        assert_eq!(limits(u64::MAX), limits(2_786_061));
    }

    #[test]
    fn versions_are_found_by_their_day() {
        for validator in &VALIDATORS {
            assert_eq!(Rules::version(validator.since).unwrap().commit, validator.commit);
        }
        let sentence = Rules::version("2024-02-22").unwrap_err();
        assert!(sentence.contains("2024-02-21, 2024-03-21, 2024-03-27, 2024-06-25"), "{sentence}");
    }

    #[test]
    fn own_limits_hold_for_rivals_of_the_same_era_only() {
        let mut rules = Rules::default();
        rules.criteria.sequence_length = 64;
        assert_eq!(rules.criteria_for(2_405_920).sequence_length, 64);
        assert_eq!(rules.criteria_for(2_405_919), CRITERIA[0]);
    }

    #[test]
    fn the_default_is_march_2024() {
        let rules = Rules::default();
        assert_eq!((rules.epsilon, rules.alpha, rules.batch_size, rules.blocks_per_epoch), (0.005, 0.5, 1, 50));
        let validator = &rules.validator;
        assert_eq!((validator.since, validator.weights_version_key), ("2024-02-21", 2021));
        assert_eq!((validator.temperature, validator.pages_per_step, validator.sample_min), (0.04, 3, 30));
        assert!(rules.criteria.architectures.contains(&"GPT2LMHeadModel"));
        assert!(!Rules::at_block(2_786_061).criteria.architectures.contains(&"GPT2LMHeadModel"));
    }
}
