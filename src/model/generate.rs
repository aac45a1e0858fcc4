//! Text generation, as far as validators use it: a number of tokens after a prompt, by a model's own
//! `generation_config.json`, with the end of text suppressed (`min_new_tokens` = `max_new_tokens`).
//!
//! Greedy where the file does not ask for sampling. What is sampled is not what PyTorch's generator would have drawn.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use super::arch::{Arch, Reference};
use super::config::{CONFIG_FILE, GENERATION_FILE, ModelConfig, read_object};
use super::decoder::Decoder;
use super::decoder::cache::Cache;
use crate::error::input;
use crate::ops::{Device, random};

/// The settings of a `generation_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Ids that end a text; they are never generated.
    pub end_ids: Vec<u32>,
    /// The id that the last token must be.
    pub forced_end: Option<u32>,
    /// Logits of tokens that are there already are divided (or multiplied, if negative) by this; 1 for nothing.
    pub repetition_penalty: f32,
    /// How tokens are drawn; `None`: the likeliest each time.
    pub sampling: Option<Sampling>,
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it.
    pub temperature: f32,
    /// Only so many of the likeliest count; 0: all.
    pub top_k: usize,
    /// Of those, the likeliest that together have this probability.
    pub top_p: f32,
}

/// Keys with which transformers would generate otherwise than is implemented here, and the values that change nothing.
const NOT_IMPLEMENTED: [(&str, f64); 12] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("penalty_alpha", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("diversity_penalty", 0.0),
    ("guidance_scale", 1.0),
    ("prompt_lookup_num_tokens", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
];
/// The same for keys that are lists or objects.
const NOT_IMPLEMENTED_LISTS: [&str; 11] = [
    "begin_suppress_tokens",
    "forced_decoder_ids",
    "return_dict_in_generate",
    "cache_implementation",
    "max_time",
    "bad_words_ids",
    "force_words_ids",
    "constraints",
    "suppress_tokens",
    "sequence_bias",
    "exponential_decay_length_penalty",
];

/// Generation's keys in a model's configuration and the values that say nothing, as transformers 4.38.0 lists them.
const SILENT: &str = r#"{
    "max_length": 20, "min_length": 0, "do_sample": false, "early_stopping": false, "num_beams": 1, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null,
    "num_return_sequences": 1, "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id": null,
    "forced_eos_token_id": null, "remove_invalid_values": false, "exponential_decay_length_penalty": null,
    "suppress_tokens": null, "begin_suppress_tokens": null
}"#;

/// Whether a configuration says anything of generation.
fn steers_generation(config: &Map<String, Value>) -> bool {
    let silent: Map<String, Value> = serde_json::from_str(SILENT).expect("the literal above is an object");
    let is_same = |one: &Value, other: &Value| one == other || one.is_number() && one.as_f64() == other.as_f64();
    silent.iter().any(|(key, silent)| config.get(key).is_some_and(|value| !is_same(value, silent)))
}

impl Settings {
    /// The settings of a model folder. Those of its configuration count where there is no file of their own, and, as in
    /// transformers, where that file says it was derived from a configuration which now says something of generation.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(GENERATION_FILE);
        let config = ModelConfig::read(dir)?.generation_keys();
        let (path, json) = match read_object(&path)? {
            Some(json) if json.get("_from_model_config") != Some(&Value::Bool(true)) => (path, json),
            Some(json) if !steers_generation(&config) => (path, json),
            _ => (dir.join(CONFIG_FILE), config),
        };
        Self::from_json(&json).map_err(|sentence| input(format!("{}: {sentence}", path.display())))
    }

    fn from_json(json: &Map<String, Value>) -> Result<Self, String> {
        let number = |key: &str, default: f64| match json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| format!("{key} is {value}; it must be a number.")),
        };
        for (key, neutral) in NOT_IMPLEMENTED {
            if number(key, neutral)? != neutral {
                return Err(format!("{key} is {}; generating so is not implemented here.", json[key]));
            }
        }
        let is_empty = |value: &Value| value.is_null() || value == &Value::Array(Vec::new());
        if let Some(key) =
            NOT_IMPLEMENTED_LISTS.iter().find(|key| json.get(**key).is_some_and(|value| !is_empty(value)))
        {
            return Err(format!("{key} is set; generating so is not implemented here."));
        }
        let ids = |key: &str| -> Result<Vec<u32>, String> {
            let values = match json.get(key) {
                None | Some(Value::Null) => return Ok(Vec::new()),
                Some(Value::Array(values)) => values.as_slice(),
                Some(value) => std::slice::from_ref(value),
            };
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids: Option<Vec<u32>> = values.iter().map(id).collect();
            ids.ok_or_else(|| format!("{key} is {}; it must be a token id or a list of them.", json[key]))
        };
        let positive = |key: &str, default: f64| {
            let value = number(key, default)?;
            if value > 0.0 { Ok(value as f32) } else { Err(format!("{key} is {value}; it must be above 0.")) }
        };
        let sampling = match json.get("do_sample") {
            // Null is not false there.
            Some(Value::Bool(true) | Value::Null) => Some(Sampling {
                temperature: positive("temperature", 1.0)?,
                // Without the key 50; null means all.
                top_k: if json.contains_key("top_k") { number("top_k", 0.0)? as usize } else { 50 },
                top_p: positive("top_p", 1.0)?,
            }),
            None | Some(Value::Bool(false)) => None,
            Some(other) => return Err(format!("do_sample is {other}; it must be true or false.")),
        };
        Ok(Self {
            end_ids: ids("eos_token_id")?,
            forced_end: ids("forced_eos_token_id")?.into_iter().min(),
            repetition_penalty: positive("repetition_penalty", 1.0)?,
            sampling,
        })
    }

    /// The next token by the logits of one position. `tokens`: all so far; `draw`: uniform in [0, 1).
    fn choose(&self, logits: &mut [f32], tokens: &[u32], is_last: bool, draw: f32) -> u32 {
        if self.repetition_penalty != 1.0 {
            let mut seen = tokens.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                let logit = &mut logits[token as usize];
                *logit = if *logit < 0.0 { *logit * self.repetition_penalty } else { *logit / self.repetition_penalty };
            }
        }
        for &end in &self.end_ids {
            logits[end as usize] = f32::NEG_INFINITY;
        }
        if let Some(end) = self.forced_end.filter(|_| is_last) {
            return end;
        }
        match self.sampling {
            None => likeliest(logits),
            Some(sampling) => sampling.draw(logits, draw),
        }
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let larger = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, larger) as u32
}

impl Sampling {
    fn draw(self, logits: &[f32], draw: f32) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        order.truncate(if self.top_k == 0 { order.len() } else { self.top_k });
        let max = logits[order[0] as usize];
        let weight = |&token: &u32| f64::from((logits[token as usize] - max) / self.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        // A token counts as long as those before it do not have the whole of `top_p` among them.
        let mut before = 0.0;
        let counts = |weight: &&f64| {
            let is_needed = before < f64::from(self.top_p) * total;
            before += **weight;
            is_needed
        };
        let kept = weights.iter().take_while(counts).count().max(1);
        let mut left = f64::from(draw) * weights[..kept].iter().sum::<f64>();
        for (token, weight) in std::iter::zip(&order, &weights).take(kept) {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        order[kept - 1]
    }
}

/// `num_tokens` tokens after a prompt. `seed` decides what is sampled.
///
/// Validators' library generates with a causal mask whatever the model, and otherwise with its quirks.
///
/// # Errors
/// A prompt that the model cannot read, or that leaves no room for so many tokens; an end outside the vocabulary, with
/// which transformers fails as well.
pub fn continuation(
    arch: &Arch,
    params: &[f32],
    settings: &Settings,
    prompt: &[u32],
    num_tokens: usize,
    seed: u64,
) -> Result<Vec<u32>> {
    ensure!(!prompt.is_empty(), "there is nothing to continue");
    let outside = settings.end_ids.iter().chain(&settings.forced_end).find(|&&id| id as usize >= arch.vocab_size);
    if let Some(id) = outside {
        bail!("the end of text, {id}, lies outside the vocabulary of {}", arch.vocab_size);
    }
    let arch = Arch { causal: true, ..arch.seen_by(Reference::Transformers4_38_0) };
    let mut decoder = Decoder::new(Device::cpu(), &arch);
    // The last token is never read.
    let mut cache = Cache::new(&arch, prompt.len() + num_tokens.saturating_sub(1));
    let mut tokens = prompt.to_vec();
    for i in 0..num_tokens {
        let new = if i == 0 { prompt } else { &tokens[tokens.len() - 1..] };
        let mut logits = decoder.next_logits(params, new, &mut cache)?;
        let next = settings.choose(&mut logits, &tokens, i + 1 == num_tokens, random::uniform(seed, 0, i as u64));
        tokens.push(next);
    }
    Ok(tokens.split_off(prompt.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::golden;
    use crate::model::candle::CandleDecoder;
    use crate::model::{LossAndGradients, Rows, weights};

    fn settings(json: Value) -> Result<Settings, String> {
        let Value::Object(json) = json else { panic!("not an object") };
        Settings::from_json(&json)
    }

    /// With the cache, token by token, as the candle backend finds it by reading everything anew each time.
    #[test]
    fn golden_models_continue_as_without_a_cache() {
        let dirs = std::fs::read_dir(golden::path("models")).unwrap().map(|entry| entry.unwrap().path());
        let mut num_checked = 0;
        for dir in dirs.filter(|path| path.is_dir() && !path.ends_with("phi_qk_layernorm")) {
            let model = weights::load(&dir).unwrap();
            let (prompt, num_tokens) = ((1..20).map(|i| i * 13 % 320).collect::<Vec<u32>>(), 12);
            let mut settings = Settings::read(&dir).unwrap();
            let arch = &model.config.arch;
            // GPT-J's end of text lies outside these small vocabularies.
            settings.end_ids.retain(|&id| (id as usize) < arch.vocab_size);
            let found = continuation(arch, &model.params, &settings, &prompt, num_tokens, 1).unwrap();

            let arch = Arch { causal: true, ..arch.seen_by(Reference::Transformers4_38_0) };
            let mut tokens = prompt.clone();
            for i in 0..num_tokens {
                let mut whole = CandleDecoder::new(&arch);
                let logits = whole.logits(&model.params, Rows::new(&tokens, 1, tokens.len())).unwrap();
                let mut last = logits[logits.len() - arch.vocab_size..].to_vec();
                tokens.push(settings.choose(&mut last, &tokens, i + 1 == num_tokens, 0.0));
            }
            assert_eq!(found, tokens[prompt.len()..], "{}", dir.display());
            num_checked += 1;
        }
        assert!(num_checked > 0);
    }

    #[test]
    fn the_end_is_suppressed_repetition_penalised_and_the_last_token_forced() {
        let plain = settings(json!({})).unwrap();
        let logits = [1.0, 4.0, 3.0, -1.0, 2.0];
        let choose =
            |settings: &Settings, tokens: &[u32], is_last| settings.choose(&mut logits.to_vec(), tokens, is_last, 0.0);
        assert_eq!(choose(&plain, &[1], false), 1);
        assert_eq!(choose(&settings(json!({"eos_token_id": [1, 2]})).unwrap(), &[], false), 4);
        let penalised = settings(json!({"repetition_penalty": 2.0})).unwrap();
        assert_eq!(choose(&penalised, &[1, 1], false), 2);
        assert_eq!(choose(&penalised, &[1, 2], false), 1, "4 / 2 is the first of two twos");
        let forced = settings(json!({"forced_eos_token_id": 3, "eos_token_id": 3})).unwrap();
        assert_eq!((choose(&forced, &[], false), choose(&forced, &[], true)), (1, 3));
    }

    #[test]
    fn sampling_draws_in_proportion_to_what_is_kept() {
        let logits: Vec<f32> = [0.1_f32, 0.2, 0.3, 0.4].iter().map(|p| p.ln()).collect();
        let share = |sampling: Sampling| {
            let mut counts = [0_usize; 4];
            for i in 0..1000 {
                counts[sampling.draw(&logits, i as f32 / 1000.0) as usize] += 1;
            }
            counts
        };
        let near = |counts: [usize; 4], expected: [usize; 4]| {
            assert!(std::iter::zip(counts, expected).all(|(a, b)| a.abs_diff(b) <= 1), "{counts:?} {expected:?}");
        };
        let all = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        near(share(all), [100, 200, 300, 400]);
        near(share(Sampling { top_k: 2, ..all }), [0, 0, 429, 571]);
        near(share(Sampling { top_p: 0.6, ..all }), [0, 0, 429, 571]);
        near(share(Sampling { top_p: 0.01, ..all }), [0, 0, 0, 1000]);
        // Squared: 1, 4, 9, 16 of 30.
        near(share(Sampling { temperature: 0.5, ..all }), [33, 133, 300, 533]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (json, expected) in [
            (json!({"num_beams": 4}), "num_beams is 4"),
            (json!({"suppress_tokens": [1]}), "suppress_tokens is set"),
            (json!({"do_sample": 1}), "do_sample is 1"),
            (json!({"do_sample": true, "temperature": 0.0}), "temperature is 0"),
            (json!({"eos_token_id": "x"}), "eos_token_id is \"x\""),
        ] {
            let error = settings(json.clone()).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
        assert_eq!(settings(json!({"num_beams": 1, "bad_words_ids": null})).unwrap().sampling, None);
        let sampling = |json: Value| settings(json).unwrap().sampling.unwrap();
        assert_eq!(sampling(json!({"do_sample": true})).top_k, 50);
        assert_eq!(sampling(json!({"do_sample": null, "top_k": null})).top_k, 0);
        let config = |json: Value| if let Value::Object(json) = json { steers_generation(&json) } else { panic!() };
        assert!(!config(json!({"eos_token_id": 5, "top_p": 1, "forced_eos_token_id": null})));
        assert!(config(json!({"forced_eos_token_id": 2})) && config(json!({"do_sample": true})));
        let arch = Arch::gpt2(10, 8, 4, 1, 1);
        let params = vec![0.1; crate::model::layout::Layout::of(&arch).len()];
        let settings = settings(json!({})).unwrap();
        let go = |prompt: &[u32], num| continuation(&arch, &params, &settings, prompt, num, 0);
        assert_eq!(go(&[1, 2, 3], 6).unwrap().len(), 6, "the last token is not read");
        assert!(go(&[1, 2, 3], 7).is_err() && go(&[10], 1).is_err() && go(&[], 1).is_err());
        let outside = Settings { end_ids: vec![10], ..settings.clone() };
        assert!(continuation(&arch, &params, &outside, &[1], 1, 0).unwrap_err().to_string().contains("outside"));
    }
}
