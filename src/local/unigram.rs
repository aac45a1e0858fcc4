//! The rival that costs no training: the unigram model of the training pages as a GPT-2 checkpoint.
//!
//! The final norm forgets what the block made (its gain is zero) and gives every position the same unit vector, its bias;
//! so the logits are one column of the token embedding, which holds the logarithms of the tokens' probabilities. All other
//! parameters are zero.

use std::path::Path;

use anyhow::{Context, Result};

use crate::data::Opened;
use crate::data::tokenizer::VOCAB_SIZE;
use crate::data::unigram::Unigram;
use crate::model::arch::Arch;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights;

const CONTEXT: usize = 1024;
const WIDTH: usize = 8;

/// Writes the model into an existing empty folder and returns the names of its files.
pub fn write(dir: &Path, data: &Opened) -> Result<Vec<&'static str>> {
    let (unigram, _) = Unigram::of_training(data)?;
    let arch = Arch::gpt2(VOCAB_SIZE, CONTEXT, WIDTH, 1, 1);
    let layout = Layout::of(&arch);
    let mut params = vec![0.0; layout.len()];
    let range = |name| layout.get(name).map(|param| param.range.clone()).context("the layout of GPT-2 has this name");
    for (token, row) in params[range("embed.token")?].chunks_exact_mut(WIDTH).enumerate() {
        row[0] = unigram.log_probability(token) as f32;
    }
    params[range("norm.bias")?][0] = 1.0;
    let files = weights::save(dir, &ModelConfig::new(arch, 0.0), &layout, &params)?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data;
    use crate::data::held_out::HeldOut;
    use crate::model::scorer::Scoring;
    use crate::recipe::Backend;
    use crate::score::loss::losses;

    #[test]
    fn its_loss_is_the_unigram_cross_entropy() {
        let data = data::open_sample(CONTEXT).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let names = write(dir.path(), &data).unwrap();
        assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors"]);
        let loaded = weights::load(dir.path()).unwrap();
        assert_eq!((loaded.config.class(), loaded.notes), ("GPT2LMHeadModel", Vec::new()));
        let held_out = HeldOut::read(&data, 4, CONTEXT).unwrap();
        let arch = &loaded.config.arch;
        let mut model = Scoring::on_cpu(Backend::Native).scorer(arch, &loaded.params).unwrap();
        let losses = losses(model.as_mut(), arch, &held_out.rows).unwrap().unwrap();
        let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        assert!((mean - held_out.unigram_cross_entropy).abs() < 1e-5, "{mean} {}", held_out.unigram_cross_entropy);
        assert!(mean > 6.0 && mean < 7.5, "{mean}");
    }
}
