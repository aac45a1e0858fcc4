//! Takes one AdamW step on given rows of tokens with the model of a folder, of any family, and saves the result: training
//! without a recipe.
//!
//! ```console
//! cargo run --release --example one_step -- MODEL_DIR TOKENS.json OUT_DIR
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use assay::metrics::printer::Printer;
use assay::model::weights::LoadedModel;
use assay::model::{Rows, weights};
use assay::placement::Placement;
use assay::train::engine::{self, Options};
use assay::train::state::Weights;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_dir, tokens, out] = arguments.as_slice() else { bail!("give MODEL_DIR TOKENS.json OUT_DIR") };
    let LoadedModel { config, layout, params, .. } = weights::load(Path::new(model_dir))?;
    let rows: Vec<Vec<u32>> = serde_json::from_str(&fs::read_to_string(tokens)?)?;
    let row_len = rows.first().context("there is no row")?.len();
    let tokens = rows.concat();

    let options = Options::usual(&layout);
    let mut engine = engine::open(&Placement::Cpu, &config.arch, &options, Weights::starting_at(&params))?;
    engine.zero_gradients();
    let loss = engine.accumulate(Rows::new(&tokens, rows.len(), row_len), 1.0, None, None)?;
    engine.update(0, options.optimizer.learning_rate, 1.0)?;

    fs::create_dir_all(out)?;
    weights::save(Path::new(out), &config, &layout, engine.weights()?.params.as_slice())?;
    Printer::new(false).result(&format!("{}", loss as f32))
}
