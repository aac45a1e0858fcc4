//! Trains from a recipe inside a program of your own, and reads the result.
//!
//! ```console
//! cargo run --release --example train_from_a_recipe -- recipes/quickstart.yaml
//! ```

use std::path::PathBuf;

use assay::dist::Single;
use assay::metrics::printer::Printer;
use assay::{recipe, train};

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from("recipes/quickstart.yaml"), PathBuf::from);
    let overrides = ["train.steps=10".to_owned(), "checkpoint.dir=checkpoints/example".to_owned()];
    let resolved = recipe::load_resolved(&path, &overrides)?;
    let printer = Printer::new(false);
    let summary = train::run(&resolved, train::Start::Fresh, &Single, &printer)?;
    printer.result(&format!(
        "held-out loss {:.3}, unigram cross-entropy {:.3}, model in {}",
        summary.held_out_loss,
        summary.unigram_cross_entropy,
        summary.run_dir.join("best").display()
    ))
}
