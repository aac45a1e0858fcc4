//! Loads a Hugging Face model folder and computes the losses of two rows of tokens as a validator does.
//!
//! ```console
//! cargo run --release --example score_a_model -- checkpoints/quickstart/best
//! ```

use std::path::Path;

use anyhow::Context;
use assay::data::tokenizer::Tokenizer;
use assay::metrics::printer::Printer;
use assay::model::scorer::Scoring;
use assay::model::weights;
use assay::recipe::Backend;
use assay::score::loss;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).context("give a model folder")?;
    let loaded = weights::load(Path::new(&dir))?;
    let arch = &loaded.config.arch;
    let tokenizer = Tokenizer::gpt2()?;
    let rows = ["It is a truth universally acknowledged", "acknowledged universally truth a is It"].map(|text| {
        let mut ids = Vec::new();
        tokenizer.encode(text, Some(arch.context), &mut ids);
        ids
    });
    let mut model = Scoring::on_cpu(Backend::Native).scorer(arch, &loaded.params)?;
    let losses = loss::losses(model.as_mut(), arch, &rows)?;
    Printer::new(false).result(&format!("{losses:?}"))
}
