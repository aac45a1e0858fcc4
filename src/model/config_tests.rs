//! Tests of `config.rs`, beside it to keep that file readable.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::model::layout::Layout;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models")).join(path)
}

fn parse(json: Value) -> Result<ModelConfig, String> {
    let Value::Object(json) = json else { panic!("not an object") };
    ModelConfig::from_json(json)
}

fn arch(json: Value) -> Arch {
    parse(json).unwrap().arch
}

#[test]
fn golden_omitted_keys_have_the_defaults_of_the_reference() {
    let text = fs::read_to_string(golden("config_defaults_4.38.0.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let mut defaults = golden["model_types"]["gpt2"]["defaults"].as_object().unwrap().clone();
    defaults.insert("model_type".to_owned(), json!("gpt2"));
    let omitted = arch(json!({"model_type": "gpt2"}));
    assert_eq!(omitted, arch(Value::Object(defaults.clone())));
    assert_eq!(omitted, Arch::gpt2(50_257, 1024, 768, 12, 12));
    let general = golden["model_types"]["gpt2"]["attribute_map"].as_object().unwrap();
    assert_eq!(general.len(), 4);
    for (general, own) in general {
        let by_general = arch(json!({"model_type": "gpt2", general: 24, own.as_str().unwrap(): 36}));
        assert_eq!(by_general, arch(json!({"model_type": "gpt2", own.as_str().unwrap(): 24})));
    }
    let written: Value = serde_json::from_str(&ModelConfig::new(omitted, 0.1).config_text()).unwrap();
    for (key, value) in written.as_object().unwrap() {
        if !["architectures", "model_type", "torch_dtype", "transformers_version"].contains(&key.as_str()) {
            assert_eq!(value, &defaults[key], "{key}");
        }
    }
}

/// What transformers wrote, read and written again, has the same bytes, but for what saving in f32 changes.
#[test]
fn golden_configurations_are_written_as_transformers_writes_them() {
    let mut num_checked = 0;
    for entry in fs::read_dir(golden("")).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.file_name().unwrap().to_str().unwrap().starts_with("gpt2") {
            continue;
        }
        let config = ModelConfig::read(&dir).unwrap();
        let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap();
        let expected = text
            .replace("\"GPT2Model\"", "\"GPT2LMHeadModel\"")
            .replace("\"bfloat16\"", "\"float32\"")
            .replace("\"float16\"", "\"float32\"");
        assert_eq!(config.config_text(), expected, "{}", dir.display());
        if let Ok(generation) = fs::read_to_string(dir.join(GENERATION_FILE)) {
            assert_eq!(config.generation_text(), generation);
            let fresh = ModelConfig { generation: None, ..config.clone() };
            assert_eq!(fresh.generation_text(), generation);
        }
        let expected: Value = serde_json::from_str(&fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
        assert_eq!(Layout::of(&config.arch).len() as u64, expected["param_count"].as_u64().unwrap());
        assert_eq!(num_parameters(&config.arch), Layout::of(&config.arch).len() as u128);
        assert_eq!(config.class, expected["class"].as_str().unwrap());
        num_checked += 1;
    }
    assert!(num_checked > 0);
}

#[test]
fn a_new_configuration_reads_back_as_the_same_architecture() {
    let arch = Arch {
        mlp_width: 80,
        activation: Activation::Relu,
        norm_eps: 3e-6,
        scale_by_head_size: false,
        scale_by_layer: true,
        tied_head: false,
        ..Arch::gpt2(320, 64, 48, 2, 4)
    };
    let config = ModelConfig::new(arch.clone(), 0.0);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config.config_text()).unwrap();
    let read = ModelConfig::read(dir.path()).unwrap();
    assert_eq!(read.arch, arch);
    assert_eq!(read.config_text(), config.config_text());
    assert!(config.config_text().contains("\"resid_pdrop\": 0.0,"));
    assert!(config.config_text().contains("\"eos_token_id\": 319,"));
}

#[test]
fn unknown_keys_survive_being_read_and_written() {
    let config = parse(json!({"model_type": "gpt2", "my_note": {"é": [1, 2.5]}})).unwrap();
    let written: Value = serde_json::from_str(&config.config_text()).unwrap();
    assert_eq!(written["my_note"], json!({"é": [1, 2.5]}));
}

#[test]
fn what_is_not_implemented_or_makes_no_model_is_refused_by_name() {
    for (json, expected) in [
        (json!({}), "model_type is missing"),
        (json!({"model_type": 3}), "model_type is 3"),
        (json!({"model_type": "custom", "architectures": ["X"]}), "\"custom\" (architectures [\"X\"])"),
        (json!({"model_type": "mistral"}), "MistralForCausalLM are not implemented"),
        (json!({"model_type": "gpt2", "activation_function": "silu"}), "activation_function \"silu\""),
        (json!({"model_type": "gpt2", "n_head": 5}), "n_embd 768 is not a multiple of n_head 5"),
        (json!({"model_type": "gpt2", "n_head": 0}), "n_head is 0"),
        (json!({"model_type": "gpt2", "n_inner": 0}), "n_inner is 0"),
        (json!({"model_type": "gpt2", "n_layer": 10_001}), "n_layer is 10001"),
        (json!({"model_type": "gpt2", "n_embd": -4}), "n_embd is -4"),
        (json!({"model_type": "gpt2", "n_embd": 48.0}), "n_embd is 48.0"),
        (json!({"model_type": "gpt2", "vocab_size": 1e30}), "vocab_size is 1e+30"),
        (json!({"model_type": "gpt2", "vocab_size": 99_000_000, "n_embd": 99_000_000, "n_head": 1}), "parameters"),
        (json!({"model_type": "gpt2", "layer_norm_epsilon": -1}), "layer_norm_epsilon is -1"),
        (json!({"model_type": "gpt2", "scale_attn_weights": "yes"}), "scale_attn_weights is \"yes\""),
        (json!({"model_type": "gpt2", "add_cross_attention": true}), "add_cross_attention is set"),
    ] {
        let error = parse(json.clone()).unwrap_err();
        assert!(error.contains(expected), "{json}: {error}");
    }
}

#[test]
fn text_that_is_no_json_is_refused_with_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CONFIG_FILE);
    fs::write(&path, "{\n  \"n_embd\": ,\n}").unwrap();
    let error = ModelConfig::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json is not a JSON object") && error.contains("line 2 column 13"), "{error}");
    fs::write(&path, "[".repeat(200_000)).unwrap();
    assert!(ModelConfig::read(dir.path()).is_err(), "deep nesting must not exhaust the stack");
    fs::remove_file(&path).unwrap();
    let error = ModelConfig::read(dir.path()).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
}
