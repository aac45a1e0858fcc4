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
use assay::model::{self, Rows, weights};
use assay::optim::adamw::{self, AdamW};
use assay::recipe::{Backend, Optimizer};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_dir, tokens, out] = arguments.as_slice() else { bail!("give MODEL_DIR TOKENS.json OUT_DIR") };
    let LoadedModel { config, layout, mut params, .. } = weights::load(Path::new(model_dir))?;
    let rows: Vec<Vec<u32>> = serde_json::from_str(&fs::read_to_string(tokens)?)?;
    let row_len = rows.first().context("there is no row")?.len();
    let tokens = rows.concat();

    let mut model = model::backend(Backend::Native, &config.arch);
    let mut gradients = vec![0.0; layout.len()];
    let loss = model.loss_and_gradients(&params, &mut gradients, Rows::new(&tokens, rows.len(), row_len), 1.0, None)?;

    let options = Optimizer::default();
    let optimizer = AdamW::new(&options, layout.len(), &adamw::decayed_ranges(&layout));
    let [mut means, mut squares] = [(); 2].map(|()| vec![0.0; layout.len()]);
    optimizer.step(0, options.learning_rate, 1.0, &mut params, &gradients, &mut means, &mut squares);

    fs::create_dir_all(out)?;
    weights::save(Path::new(out), &config, &layout, &params)?;
    Printer::new(false).result(&format!("{loss}"))
}
