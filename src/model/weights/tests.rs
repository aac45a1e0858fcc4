//! Tests of reading and writing weights, against files that transformers wrote and against damaged ones.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::model::config::{CONFIG_FILE, GENERATION_FILE};

fn golden_dirs() -> Vec<PathBuf> {
    let all = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models")).unwrap();
    let mut dirs: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
    dirs.retain(|path| path.is_dir());
    assert!(!dirs.is_empty());
    dirs
}

fn golden_dir(name: &str) -> PathBuf {
    golden_dirs().into_iter().find(|dir| dir.ends_with(name)).unwrap()
}

/// A copy of a golden model that a test may damage.
fn copy_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden_dir(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn refusal(dir: &Path) -> String {
    let error = load(dir).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2, "{error:#}");
    format!("{error:#}")
}

/// Our parameter's value at a row-major index, as the reference's library and the format's definition give it.
fn expected_values(files: &[Vec<u8>], names: &[&str], transposed: bool, shape: &[usize]) -> Vec<f32> {
    let tensors: Vec<_> = files.iter().map(|bytes| SafeTensors::deserialize(bytes).unwrap()).collect();
    let tensor = names.iter().find_map(|name| tensors.iter().find_map(|file| file.tensor(name).ok())).unwrap();
    let size = tensor.dtype().bitsize() / 8;
    let value = |index: usize| {
        let bytes = &tensor.data()[index * size..][..size];
        match tensor.dtype() {
            Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
            Dtype::BF16 => f32::from_le_bytes([0, 0, bytes[0], bytes[1]]),
            Dtype::F16 => half_by_definition(u16::from_le_bytes(bytes.try_into().unwrap())),
            other => panic!("{other}"),
        }
    };
    let (rows, columns) = (shape[0], shape.iter().skip(1).product::<usize>());
    (0..rows * columns)
        .map(|index| if transposed { value(index % columns * rows + index / columns) } else { value(index) })
        .collect()
}

fn half_by_definition(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let value = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15),
    };
    (sign * value) as f32
}

#[test]
fn every_half_precision_number_is_read_exactly() {
    for bits in 0..=u16::MAX {
        let (ours, expected) = (read::half_to_float(bits), half_by_definition(bits));
        assert!(ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(), "{bits:#06x}");
    }
}

#[test]
fn golden_models_load_with_every_number_in_its_place() {
    for dir in golden_dirs() {
        let model = load(&dir).unwrap();
        let expected: Value = serde_json::from_str(&fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
        assert_eq!(model.params.len() as u64, expected["param_count"].as_u64().unwrap());
        let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| {
            path.extension().is_some_and(|kind| kind == "safetensors") && !path.ends_with("expected.safetensors")
        });
        let files: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
        let arch = &model.config.arch;
        let (mut num_read, head) = (0, names::head(arch));
        for stored in names::stored(arch, &model.layout) {
            let param = &model.layout.params()[stored.param];
            let bare = stored.name.strip_prefix(names::prefix(arch)).unwrap_or(&stored.name);
            let mut names = vec![stored.name.as_str(), bare];
            if param.name == "embed.token" && arch.tied_head {
                names.insert(0, &head);
            }
            let shape: Vec<usize> =
                if stored.transposed { stored.shape.iter().rev().copied().collect() } else { stored.shape.clone() };
            let expected = expected_values(&files, &names, stored.transposed, &shape);
            let (values, row_len) = (&model.params[param.range.clone()], param.shape[1..].iter().product::<usize>());
            let rows = stored.rows.iter().map(|rows| &values[rows.start * row_len..rows.end * row_len]);
            assert!(rows.collect::<Vec<_>>().concat() == expected, "{}: {}", dir.display(), stored.name);
            num_read += expected.len();
        }
        assert_eq!(num_read, model.params.len());
        assert_eq!(model.notes, Vec::<String>::new());
    }
}

/// Where the original was written by `save_pretrained` in f32 and one file, ours has the same bytes; everywhere the
/// numbers survive.
#[test]
fn golden_models_are_saved_with_the_bytes_of_transformers() {
    let mut num_identical = 0;
    for dir in golden_dirs() {
        let model = load(&dir).unwrap();
        let saved = tempfile::tempdir().unwrap();
        let sums = save(saved.path(), &model.config, &model.layout, &model.params).unwrap();
        for (name, sum) in &sums {
            let bytes = fs::read(saved.path().join(name)).unwrap();
            assert_eq!(sum.bytes, bytes.len() as u64);
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sum.sha256, hash);
        }
        assert_eq!(fs::read_dir(saved.path()).unwrap().count(), 3);
        assert!(sums[2].1.bytes <= save_bytes(&model.config.arch, &model.layout));
        let again = load(saved.path()).unwrap();
        assert!(again.params == model.params);
        assert_eq!(again.config.arch, model.config.arch);

        let name = dir.file_name().unwrap().to_str().unwrap();
        if ![
            "llama_bfloat16",
            "llama_float16",
            "gpt2_bfloat16",
            "gpt2_float16",
            "gpt2_sharded",
            "gpt2_extra_keys",
            "gpt2_no_prefix",
            "gpt2_conflicting_lm_head",
        ]
        .contains(&name)
        {
            for file in [CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE] {
                assert!(
                    fs::read(saved.path().join(file)).unwrap() == fs::read(dir.join(file)).unwrap(),
                    "{name}/{file}"
                );
            }
            num_identical += 1;
        }
    }
    assert!(num_identical > 0);
}

/// Several blocks per tensor, and matrices whose sides are no multiples of a strip.
#[test]
fn a_model_of_many_blocks_survives_saving_and_loading() {
    let arch = Arch { mlp_width: 3001, ..Arch::gpt2(1031, 17, 1030, 1, 2) };
    let layout = Layout::of(&arch);
    let params: Vec<f32> = (0..layout.len()).map(|index| index as f32).collect();
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &ModelConfig::new(arch, 0.0), &layout, &params).unwrap();
    assert!(load(dir.path()).unwrap().params == params);
    let bytes = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let up = tensors.tensor("transformer.h.0.mlp.c_fc.weight").unwrap();
    assert_eq!(up.shape(), [1030, 3001]);
    let ours = &params[layout.get("blocks.0.mlp.up.weight").unwrap().range.clone()];
    for (input, output) in [(0, 0), (1029, 3000), (700, 2999), (31, 1)] {
        let bytes = &up.data()[4 * (input * 3001 + output)..][..4];
        assert_eq!(f32::from_le_bytes(bytes.try_into().unwrap()), ours[output * 1030 + input]);
    }
}

/// Rewrites the header of a safetensors file.
fn edit_header(path: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = Value::Object(header).to_string();
    let edited = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(path, edited).unwrap();
}

/// The probes say what transformers does; ours must agree, but for the three that would load random numbers or pickles,
/// or that are the configuration's affair.
#[test]
fn golden_damaged_files_are_refused_where_the_reference_refuses_them() {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/load_probes.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let probes = golden["probes"].as_object().unwrap();
    assert!(!probes.is_empty());
    for (name, outcome) in probes {
        let dir = copy_of("gpt2");
        let path = dir.path().join(WEIGHTS_FILE);
        let bytes = fs::read(&path).unwrap();
        let (expected_to_load, expected_text) = match name.as_str() {
            "safetensors file without metadata format=pt" => {
                edit_header(&path, |header| drop(header.remove("__metadata__")));
                (false, "format=pt")
            }
            "one tensor missing (newly initialised at random, only a warning)" => {
                edit_header(&path, |header| {
                    let tensor = header.remove("transformer.h.1.ln_1.bias").unwrap();
                    header.insert("something.else".to_owned(), tensor);
                });
                (false, "the tensor transformer.h.1.ln_1.bias is missing")
            }
            "one tensor of the wrong shape" => {
                edit_header(&path, |header| header["transformer.h.1.mlp.c_fc.weight"]["shape"] = [192, 48].into());
                (false, "transformer.h.1.mlp.c_fc.weight has the shape [192, 48]; the configuration makes it [48, 192]")
            }
            "unexpected extra tensor" => {
                edit_header(&path, |header| {
                    let end = header["transformer.wte.weight"]["data_offsets"][1].clone();
                    header.insert(
                        "extra".to_owned(),
                        serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]}),
                    );
                });
                (true, "the tensor extra is no part of the model")
            }
            "only pytorch_model.bin with use_safetensors=True" => {
                fs::rename(&path, dir.path().join("pytorch_model.bin")).unwrap();
                (false, "pytorch_model.bin is not read, only safetensors files are")
            }
            "no generation_config.json" => {
                fs::remove_file(dir.path().join(GENERATION_FILE)).unwrap();
                (true, "")
            }
            "trailing byte in safetensors" => {
                fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
                (false, "trailing bytes")
            }
            "truncated safetensors" => {
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
                (false, "truncated")
            }
            "unknown model_type + auto_map (custom code)" => {
                fs::write(
                    dir.path().join(CONFIG_FILE),
                    r#"{"model_type": "custom", "auto_map": {"AutoConfig": "a.b"}}"#,
                )
                .unwrap();
                (false, "\"custom\"")
            }
            other => panic!("a probe this test does not know: {other}"),
        };
        let stricter = name.starts_with("one tensor missing") || name.starts_with("only pytorch_model.bin");
        assert_eq!(expected_to_load || stricter, outcome == "loads", "{name}");
        if expected_to_load {
            let notes = load(dir.path()).unwrap().notes.join("\n");
            assert!(notes.contains(expected_text), "{name}: {notes}");
        } else {
            let refusal = refusal(dir.path());
            assert!(refusal.contains(expected_text), "{name}: {refusal}");
        }
    }
}

#[test]
fn a_tied_model_without_the_embedding_but_with_a_head_loads() {
    let dir = copy_of("gpt2_conflicting_lm_head");
    let whole = load(dir.path()).unwrap();
    edit_header(&dir.path().join(WEIGHTS_FILE), |header| {
        let tensor = header.remove("transformer.wte.weight").unwrap();
        header.insert("old".to_owned(), tensor);
    });
    assert!(load(dir.path()).unwrap().params == whole.params);
}

/// As the reference loads one file after another into the one matrix that both share.
#[test]
fn of_an_embedding_and_a_head_in_two_shards_the_later_one_counts() {
    let dir = copy_of("gpt2_conflicting_lm_head");
    let path = dir.path().join(WEIGHTS_FILE);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for head_shard in [0, 1] {
        let shard_of = |name: &str| if name == "lm_head.weight" { head_shard } else { 1 - head_shard };
        for (i, shard) in shards.iter().enumerate() {
            let tensors = all.tensors().into_iter().filter(|(name, _)| shard_of(name) == i);
            let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
            fs::write(dir.path().join(shard), safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
        }
        let map: serde_json::Map<String, Value> =
            all.names().into_iter().map(|name| (name.to_owned(), shards[shard_of(name)].into())).collect();
        fs::write(dir.path().join(INDEX_FILE), serde_json::json!({"metadata": {}, "weight_map": map}).to_string())
            .unwrap();
        let model = load(dir.path()).unwrap();
        let winner = ["transformer.wte.weight", "lm_head.weight"][head_shard];
        let expected: Vec<f32> =
            all.tensor(winner).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let range = model.layout.get("embed.token").unwrap().range.clone();
        assert!(model.params[range] == expected, "{winner}");
    }
}

#[test]
fn hostile_headers_are_refused_before_memory_is_taken() {
    let dir = copy_of("gpt2");
    let path = dir.path().join(WEIGHTS_FILE);
    let bytes = fs::read(&path).unwrap();
    for (content, expected) in [
        (vec![], "has 0 bytes"),
        ([&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat(), "its header claims 18446744073709551615 bytes"),
        ([&(bytes.len() as u64).to_le_bytes()[..], &bytes[8..]].concat(), "its header claims"),
        ([&2_u64.to_le_bytes()[..], b"{}"].concat(), "format=pt"),
        ([&4_u64.to_le_bytes()[..], b"null"].concat(), "no sound safetensors file"),
    ] {
        fs::write(&path, content).unwrap();
        let refusal = refusal(dir.path());
        assert!(refusal.contains(expected), "{refusal}");
    }
    for (key, value) in [
        ("shape", serde_json::json!([u64::MAX, u64::MAX])),
        ("shape", serde_json::json!([48, 4_000_000_000_u64])),
        ("data_offsets", serde_json::json!([0, u64::MAX])),
        ("data_offsets", serde_json::json!([9, 3])),
        ("data_offsets", serde_json::json!([0, 576])),
        ("dtype", serde_json::json!("F1024")),
        ("dtype", serde_json::json!("I32")),
    ] {
        fs::write(&path, &bytes).unwrap();
        edit_header(&path, |header| header["transformer.h.1.mlp.c_fc.weight"][key] = value);
        refusal(dir.path());
    }
}

#[test]
fn no_flipped_byte_of_a_header_or_a_configuration_makes_the_reader_panic() {
    let dir = copy_of("gpt2");
    for (file, len) in [(WEIGHTS_FILE, 2624), (CONFIG_FILE, 740)] {
        let path = dir.path().join(file);
        let original = fs::read(&path).unwrap();
        let mut num_refused = 0;
        for position in (0..len).step_by(3) {
            let mut bytes = original.clone();
            bytes[position] ^= 1 << (position % 8);
            fs::write(&path, bytes).unwrap();
            num_refused += usize::from(load(dir.path()).is_err());
        }
        assert!(num_refused > len / 15, "{num_refused} of {len}");
        fs::write(&path, original).unwrap();
    }
}

#[test]
fn shards_cannot_lie_outside_the_folder_or_be_incomplete() {
    for (from, to, expected) in [
        ("model-00001-of-00003.safetensors", "../model-00001-of-00003.safetensors", "no file of this folder"),
        ("model-00001-of-00003.safetensors", "/etc/passwd", "no file of this folder"),
        ("model-00001-of-00003.safetensors", "..", "no file of this folder"),
        ("model-00001-of-00003.safetensors", "absent.safetensors", "absent.safetensors, which"),
        ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "does not hold"),
        ("transformer.wte.weight", "transformer.absent", "does not hold transformer.absent"),
        ("weight_map", "map", "has no weight_map"),
    ] {
        let dir = copy_of("gpt2_sharded");
        let index = dir.path().join(INDEX_FILE);
        let text = fs::read_to_string(&index).unwrap();
        assert!(text.contains(from));
        fs::write(&index, text.replace(from, to)).unwrap();
        let refusal = refusal(dir.path());
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn names_without_prefix_but_with_a_head_are_refused_as_by_the_reference() {
    let dir = copy_of("gpt2_no_prefix");
    edit_header(&dir.path().join(WEIGHTS_FILE), |header| {
        let end = header["wte.weight"]["data_offsets"][1].clone();
        header.insert(
            "lm_head.weight".to_owned(),
            serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]}),
        );
    });
    assert!(refusal(dir.path()).contains("lack `transformer.`"));
}
