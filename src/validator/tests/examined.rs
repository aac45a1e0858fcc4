//! The examiner of a validator at work, with the check of text, on models that are read from their folders.

use super::super::examiner::ByModel;
use super::super::{Entry, Examiner};
use crate::data;
use crate::data::pages::Pages;
use crate::hub::model_id::{ModelId, ModelMetadata};
use crate::metrics::printer::Printer;
use crate::metrics::printer::tests::Captured;
use crate::model::config::{ModelConfig, Sizes, new_arch};
use crate::model::family::Family;
use crate::model::init;
use crate::model::layout::Layout;
use crate::model::scorer::Scoring;
use crate::model::weights;
use crate::recipe::Backend;
use crate::rules::VALIDATORS;
use crate::score::cache::LossCache;

#[test]
fn a_model_of_constant_text_loses_every_batch_and_one_that_cannot_be_told_none() {
    let text = data::open_sample(16).unwrap();
    let pages = Pages::read(&text, 1, 16).unwrap();
    let (scoring, known, told) = (Scoring::on_cpu(Backend::Native), LossCache::none(), Captured::default());
    let printer = Printer::with_streams(Captured::default(), told.clone(), false);
    // The version of 21 March 2024.
    let examiner = ByModel::new(&pages, &scoring, &known, VALIDATORS[1].output, &printer);
    let rows: Vec<Vec<u32>> = (0..3).map(|row| (0..16).map(|at| (7 * row + 3 * at) % 64).collect()).collect();
    let dir = tempfile::tempdir().unwrap();
    let sizes = Sizes { vocab_size: 64, context: 64, width: 16, layers: 1, heads: 2, kv_heads: None, mlp_width: 64 };
    let arch = new_arch(Family::Gpt2, sizes, &serde_json::Map::new()).unwrap();
    let layout = Layout::of(&arch);
    let losses = |name: &str, is_constant: bool| {
        let dir = dir.path().join(name);
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            let mut params = vec![0.0; layout.len()];
            if !is_constant {
                init::scratch(&arch, &layout, 1, &mut params);
            }
            weights::save(&dir, &ModelConfig::new(arch.clone(), 0.0), &layout, &params).unwrap();
            if !is_constant {
                std::fs::write(dir.join("generation_config.json"), r#"{"num_beams": 4}"#).unwrap();
            }
        }
        let id = ModelId { namespace: "a".to_owned(), name: name.to_owned(), commit: None, hash: None };
        let metadata = ModelMetadata { id, block: 1.try_into().unwrap() };
        let entry = Entry { uid: 3, hotkey: "key", metadata: &metadata, dir: &dir };
        examiner.losses(&entry, &rows, 5).unwrap().unwrap()
    };
    let fault = losses("constant", true).unwrap_err();
    assert_eq!(fault, "The continuations of two rows are alike or repetitive.");
    for _ in 0..2 {
        let found = losses("beams", false).unwrap();
        assert!(found.len() == 3 && found.iter().all(|loss| loss.is_finite()), "{found:?}");
    }
    let told = told.text();
    assert_eq!(told.matches("uid 3 (a/beams): whether its text would pass cannot be told").count(), 1, "{told}");
    // With one row validators' check itself fails.
    let one = &rows[..1];
    let id = ModelId { namespace: "a".to_owned(), name: "beams".to_owned(), commit: None, hash: None };
    let metadata = ModelMetadata { id, block: 1.try_into().unwrap() };
    let entry = Entry { uid: 3, hotkey: "key", metadata: &metadata, dir: &dir.path().join("beams") };
    assert!(examiner.losses(&entry, one, 5).unwrap().unwrap().is_err());
}
