#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::*;
use crate::hub::fetch::publishable_hash;
use crate::hub::model_id::ModelId;
use crate::model::config::{Sizes, new_arch};
use crate::model::family::Family;
use crate::model::init;
use crate::model::layout::Layout;
use crate::recipe::Backend;

/// A model of a family in a folder of its own, of 8 positions and 10 tokens.
fn model(dir: &Path, name: &str, family: Family, seed: u64) -> PathBuf {
    let sizes = Sizes { vocab_size: 10, context: 8, width: 8, layers: 1, heads: 2, kv_heads: None, mlp_width: 8 };
    let arch = new_arch(family, sizes, &serde_json::Map::new()).unwrap();
    let layout = Layout::of(&arch);
    let mut params = vec![0.0; layout.len()];
    init::scratch(&arch, &layout, seed, &mut params);
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    weights::save(&dir, &ModelConfig::new(arch, 0.0), &layout, &params).unwrap();
    dir
}

fn rows(lens: &[u32]) -> Vec<Vec<u32>> {
    lens.iter().enumerate().map(|(row, &len)| (0..len).map(|i| (i * 3 + row as u32) % 10).collect()).collect()
}

/// Losses, and how many of them were computed.
fn score(dir: &Path, cache: &LossCache, rows: &[Vec<u32>]) -> (Vec<f64>, usize) {
    let scored = score_folder(dir, &Scoring::on_cpu(Backend::Native), cache, rows, &mut |_, _| ()).unwrap().unwrap();
    (scored.losses, scored.num_computed)
}

#[test]
fn only_what_is_missing_is_computed_and_comes_out_the_same() {
    let dir = TempDir::new().unwrap();
    let model_dir = model(dir.path(), "a", Family::Gpt2, 1);
    let cache = LossCache::beside(&dir.path().join("cache"));
    // The third row has a token too many, and its loss is infinite.
    let rows = rows(&[8, 8, 9, 4, 8]);
    let expected = score(&model_dir, &LossCache::none(), &rows);
    assert_eq!((expected.1, expected.0[2]), (5, f64::INFINITY));
    assert!(expected.0[0].is_finite() && expected.0[0] != expected.0[1]);
    assert_eq!(score(&model_dir, &cache, &rows[1..4]), (expected.0[1..4].to_vec(), 3));
    assert_eq!(score(&model_dir, &cache, &rows), (expected.0.clone(), 2));
    let other_process = LossCache::beside(&dir.path().join("cache"));
    assert_eq!(score(&model_dir, &other_process, &rows), (expected.0.clone(), 0));
    // The same files elsewhere are the same model, and other weights are another one.
    let copy = dir.path().join("copy");
    fs::rename(&model_dir, &copy).unwrap();
    assert_eq!(score(&copy, &cache, &rows), (expected.0.clone(), 0));
    let other = score(&model(dir.path(), "b", Family::Gpt2, 2), &cache, &rows);
    assert!(other.1 == 5 && other.0 != expected.0);
    assert_eq!(cache.trouble(), None);
}

/// Whoever read these weights would fail.
#[test]
fn a_model_whose_losses_are_all_known_is_not_read() {
    let dir = TempDir::new().unwrap();
    let model_dir = model(dir.path(), "a", Family::Gpt2, 1);
    fs::write(model_dir.join(weights::WEIGHTS_FILE), "no weights").unwrap();
    let cache = LossCache::beside(&dir.path().join("cache"));
    let scoring = Scoring::on_cpu(Backend::Native);
    let rows = rows(&[8, 8]);
    let arch = ModelConfig::read(&model_dir).unwrap().arch;
    let how = format!("transformers 4.38.0, {}", scoring.computation(&arch));
    let places = cache.places(&publishable_hash(&model_dir).unwrap(), &how, &rows, Rows::Independent);
    places.keep(&[(0, 1.5), (1, f32::INFINITY)]);
    assert_eq!(score(&model_dir, &cache, &rows), (vec![1.5, f64::INFINITY], 0));
    let error = score_folder(&model_dir, &scoring, &cache, &[vec![1, 2]], &mut |_, _| ()).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
}

/// A Llama's mask grows with each row that is too long for it, so that the third of these is scored and the first is not.
#[test]
fn losses_that_depend_on_earlier_rows_are_kept_as_such() {
    let dir = TempDir::new().unwrap();
    let model_dir = model(dir.path(), "a", Family::Llama, 1);
    let cache = LossCache::beside(&dir.path().join("cache"));
    let rows: Vec<Vec<u32>> = [17, 4, 17].map(|len| (0..len).map(|i| i % 10).collect()).to_vec();
    let (losses, num_computed) = score(&model_dir, &cache, &rows);
    assert_eq!((losses[0], num_computed), (f64::INFINITY, 3));
    assert!(losses[2].is_finite());
    assert_eq!(score(&model_dir, &cache, &rows), (losses.clone(), 0));
    // One row more, and all are computed, for what the last one depends on is not on disk.
    let longer = [rows.clone(), vec![rows[0].clone()]].concat();
    let (longer_losses, num_computed) = score(&model_dir, &cache, &longer);
    assert_eq!((&longer_losses[..3], num_computed), (&losses[..], 4));
    assert_eq!(longer_losses[3], losses[2]);
    assert_eq!(score(&model_dir, &cache, &rows[2..]).0, [f64::INFINITY]);
    // Within the context nothing is remembered.
    assert_eq!(score(&model_dir, &cache, &rows[1..2]).1, 1);
    assert_eq!(score(&model_dir, &cache, &[vec![1, 2], rows[1].clone()]).1, 1);
}

#[test]
fn rows_are_counted_while_they_are_computed() {
    let dir = TempDir::new().unwrap();
    let model_dir = model(dir.path(), "a", Family::Gpt2, 1);
    let (scoring, cache) = (Scoring::on_cpu(Backend::Native), LossCache::none());
    let mut seen = Vec::new();
    let mut watch = |num_rows, seconds| seen.push((num_rows, seconds));
    let scored = score_folder(&model_dir, &scoring, &cache, &rows(&[8, 8, 8]), &mut watch).unwrap().unwrap();
    assert_eq!(seen.iter().map(|(num_rows, _)| *num_rows).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(seen.is_sorted_by_key(|(_, seconds)| *seconds) && seen[2].1 <= scored.seconds);
}

fn competitor(model: Result<PathBuf, Unreadable>) -> Competitor {
    let id = ModelId { namespace: "a".to_owned(), name: "b".to_owned(), commit: None, hash: None };
    let metadata = ModelMetadata { id, block: 1.try_into().unwrap() };
    Competitor { uid: 7, hotkey: "key".to_owned(), metadata, model }
}

#[test]
fn what_is_the_models_fault_is_a_result_and_what_is_ours_is_an_error() {
    let dir = TempDir::new().unwrap();
    let model_dir = model(dir.path(), "a", Family::Gpt2, 1);
    let (scoring, cache, rows) = (Scoring::on_cpu(Backend::Native), LossCache::none(), rows(&[8]));
    let find = |model: Result<PathBuf, Unreadable>| losses_of(&competitor(model), &scoring, &cache, &rows);
    let found = find(Ok(model_dir.clone())).unwrap().unwrap().unwrap();
    assert_eq!(found, score(&model_dir, &cache, &rows).0);
    let refused = find(Err(Unreadable::Refused("too large".to_owned()))).unwrap().unwrap();
    assert_eq!(refused, Err("too large".to_owned()));
    let error = find(Err(Unreadable::NotImplemented("new".to_owned()))).unwrap_err();
    assert!(error.to_string().contains("uid 7, a/b, cannot be scored here"), "{error}");
    fs::write(model_dir.join(weights::WEIGHTS_FILE), "no weights").unwrap();
    let reason = find(Ok(model_dir.clone())).unwrap().unwrap().unwrap_err();
    assert!(reason.contains("no sound safetensors file"), "{reason}");
    // A path that leads in a circle cannot be read by anybody: that is no property of a model.
    fs::remove_dir_all(&model_dir).unwrap();
    std::os::unix::fs::symlink(&model_dir, &model_dir).unwrap();
    let error = find(Ok(model_dir)).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 1, "{error:#}");
}

#[test]
fn a_few_items_are_brought_ahead_at_once_and_no_more() {
    let (num_brought, most_ahead) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (num_at_once, most_at_once) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut done = Vec::new();
    let bring = |&item: &usize| {
        num_brought.fetch_add(1, Ordering::SeqCst);
        most_at_once.fetch_max(num_at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Later ones sooner: their turn comes in order all the same.
        thread::sleep(Duration::from_millis(if item % 4 == 0 { 60 } else { 40 }));
        num_at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(item * 10)
    };
    let items: Vec<usize> = (0..9).collect();
    let flow = ahead(&items, bring, |&item, brought| {
        // Time for the other threads to run ahead as far as they can.
        thread::sleep(Duration::from_millis(80));
        most_ahead.fetch_max(num_brought.load(Ordering::SeqCst) - item - 1, Ordering::SeqCst);
        done.push((item, brought));
        Ok(ControlFlow::<()>::Continue(()))
    });
    assert_eq!(flow.unwrap(), ControlFlow::Continue(()));
    assert_eq!(done, items.iter().map(|item| (*item, item * 10)).collect::<Vec<_>>());
    assert_eq!((most_ahead.into_inner(), most_at_once.into_inner()), (BRINGERS, BRINGERS));
    assert!(ahead(&[], |_: &usize| Ok(()), |_, ()| Ok(ControlFlow::<()>::Continue(()))).unwrap().is_continue());
}

#[test]
fn an_error_waits_for_its_turn_and_ends_the_work() {
    let bring = |&item: &usize| if item == 2 { Err(anyhow::anyhow!("item 2")) } else { Ok(item) };
    let mut done = Vec::new();
    let result = ahead(&[0, 1, 2, 3], bring, |_, item| {
        done.push(item);
        Ok(ControlFlow::<()>::Continue(()))
    });
    assert_eq!((result.unwrap_err().to_string().as_str(), done), ("item 2", vec![0, 1]));
}

/// Each of the items ahead would take a minute, and looks whether it is to end.
#[test]
fn what_is_brought_for_nobody_is_interrupted() {
    let started = Instant::now();
    let bring = |&item: &usize| {
        let begun = Instant::now();
        while item > 0 && begun.elapsed() < Duration::from_secs(60) && !crate::interrupt::requested() {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(item)
    };
    let flow = ahead(&[0, 1, 2, 3, 4, 5], bring, |_, _| Ok(ControlFlow::Break("enough")));
    assert_eq!(flow.unwrap(), ControlFlow::Break("enough"));
    let result = ahead(&[0, 1, 2, 3, 4, 5], bring, |_, _| -> Result<ControlFlow<()>> { bail!("failed") });
    assert_eq!(result.unwrap_err().to_string(), "failed");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert!(!crate::interrupt::requested(), "this thread was not to end");
}

#[test]
fn whoever_breaks_off_does_not_wait_for_all() {
    let num_brought = AtomicUsize::new(0);
    let bring = |&item: &usize| {
        num_brought.fetch_add(1, Ordering::SeqCst);
        Ok(item)
    };
    let items: Vec<usize> = (0..100).collect();
    let flow = ahead(&items, bring, |_, item| {
        Ok(if item == 3 { ControlFlow::Break("enough") } else { ControlFlow::Continue(()) })
    });
    assert_eq!(flow.unwrap(), ControlFlow::Break("enough"));
    let result = ahead(&items, bring, |_, _| -> Result<ControlFlow<()>> { bail!("failed") });
    assert_eq!(result.unwrap_err().to_string(), "failed");
    assert!(num_brought.into_inner() <= (4 + BRINGERS) + (1 + BRINGERS));
}
