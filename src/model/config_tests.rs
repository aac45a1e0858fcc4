//! Tests of `config.rs`, beside it to keep that file readable.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use super::recipe::recipe_section;
use super::*;
use crate::model::arch::{Activation, Position};
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

/// Every family: a file without keys means what a file with all defaults written out means.
#[test]
fn golden_omitted_keys_have_the_defaults_of_the_reference() {
    let text = fs::read_to_string(golden("config_defaults_4.38.0.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let types = golden["model_types"].as_object().unwrap();
    assert_eq!(types.len(), Family::ALL.len());
    for (model_type, golden) in types {
        let mut defaults = golden["defaults"].as_object().unwrap().clone();
        defaults.insert("model_type".to_owned(), json!(model_type));
        let omitted = arch(json!({"model_type": model_type}));
        assert_eq!(omitted, arch(Value::Object(defaults.clone())), "{model_type}");
        // One key at a time decides nothing that its default does not.
        for key in defaults.keys().filter(|key| *key != "model_type") {
            assert_eq!(omitted, arch(json!({"model_type": model_type, key: defaults[key]})), "{model_type} {key}");
        }
        // BART's decoder does not look at what is general to encoder and decoder.
        for (general, own) in golden["attribute_map"].as_object().unwrap() {
            let own = own.as_str().unwrap();
            let (one, other) = match general.as_str() {
                "hidden_size" => (1536, 3072),
                "num_attention_heads" => (8, 16),
                _ => (24, 36),
            };
            if own != "encoder_attention_heads" {
                let by_general = arch(json!({"model_type": model_type, general: one, own: other}));
                assert_eq!(by_general, arch(json!({"model_type": model_type, own: one})), "{model_type} {general}");
            }
        }
        let written: Value = serde_json::from_str(&ModelConfig::new(omitted, 0.1).config_text()).unwrap();
        for (key, value) in written.as_object().unwrap() {
            let is_ours = ["architectures", "model_type", "torch_dtype", "transformers_version"]
                .contains(&key.as_str())
                || key.ends_with("dropout")
                || key.ends_with("pdrop")
                || key.ends_with("token_id")
                || ["is_decoder", "is_encoder_decoder", "num_kv_heads"].contains(&key.as_str());
            assert!(is_ours || value == &defaults[key], "{model_type} {key}: {value}");
        }
    }
    assert_eq!(arch(json!({"model_type": "gpt2"})), Arch::gpt2(50_257, 1024, 768, 12, 12));
}

/// What transformers wrote, read and written again, has the same bytes, but for what saving in f32 changes.
#[test]
fn golden_configurations_are_written_as_transformers_writes_them() {
    let dirs = fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut num_checked = 0;
    for dir in dirs {
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
        assert_eq!(config.arch.num_parameters(), Layout::of(&config.arch).len() as u128);
        assert_eq!(config.class(), expected["class"].as_str().unwrap());
        num_checked += 1;
    }
    assert!(num_checked > 0);
}

/// What assay writes for an architecture describes it: for every golden model without any key of its own file.
#[test]
fn golden_architectures_survive_being_written_from_scratch() {
    let dirs = fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    for dir in dirs {
        let arch = ModelConfig::read(&dir).unwrap().arch;
        let written: Value = serde_json::from_str(&ModelConfig::new(arch.clone(), 0.0).config_text()).unwrap();
        assert_eq!(parse(written).unwrap().arch, arch, "{}", dir.display());
    }
}

/// What a user is told to write into his recipe to go on with a model makes that model.
#[test]
fn golden_architectures_can_be_asked_for_in_a_recipe() {
    let dirs = fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    for dir in dirs {
        let arch = ModelConfig::read(&dir).unwrap().arch;
        let text = format!(
            "name: x\n{}\ndata: {{source: sample}}\nrules: {{sequence_length: 32}}\n\
             train: {{steps: 1, tokens_per_step: 32, micro_batch: 1}}\n",
            recipe_section(&arch)
        );
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), &text).unwrap();
        let recipe = crate::recipe::load(path.path(), &[]).unwrap();
        let model = recipe.model;
        let sizes = Sizes {
            vocab_size: arch.vocab_size,
            context: model.context.unwrap(),
            width: model.width,
            layers: model.layers,
            heads: model.heads,
            kv_heads: model.kv_heads,
            mlp_width: model.mlp_width.unwrap(),
        };
        assert_eq!(new_arch(model.family, sizes, &model.config).unwrap(), arch, "{}: {text}", dir.display());
    }
}

#[test]
fn a_new_model_of_every_family_has_the_sizes_that_were_asked_for() {
    for family in Family::ALL {
        let sizes = Sizes {
            vocab_size: 300,
            context: 40,
            width: 48,
            layers: 3,
            heads: 4,
            kv_heads: None,
            mlp_width: family.mlp_width(48),
        };
        let arch = new_arch(family, sizes, &Map::new()).unwrap();
        let has = (arch.vocab_size, arch.context, arch.width, arch.layers, arch.heads, arch.mlp_width);
        assert_eq!(has, (300, 40, 48, 3, 4, sizes.mlp_width), "{family:?}");
        assert_eq!((arch.family, arch.head_size, arch.frozen_id), (family, 12, None));
        assert_eq!(arch.num_parameters(), Layout::of(&arch).len() as u128);
        let has_kv_heads =
            matches!(family, Family::Llama | Family::Mistral | Family::Gemma | Family::Phi | Family::Falcon);
        let grouped = new_arch(family, Sizes { kv_heads: Some(2), ..sizes }, &Map::new());
        assert_eq!(grouped.is_ok_and(|arch| arch.kv_heads == 2), has_kv_heads, "{family:?}");
    }
    let sizes = Sizes { vocab_size: 300, context: 40, width: 48, layers: 3, heads: 4, kv_heads: None, mlp_width: 128 };
    let own = |value: Value| if let Value::Object(map) = value { map } else { panic!("not an object") };
    let theta = new_arch(Family::Llama, sizes, &own(json!({"rope_theta": 500.0}))).unwrap();
    assert!(matches!(theta.position, Position::Rotary(rotary) if rotary.base == 500.0));
    let twice = new_arch(Family::Llama, sizes, &own(json!({"hidden_size": 64}))).unwrap_err();
    assert!(twice.contains("hidden_size is set by another key"), "{twice}");
    assert!(new_arch(Family::Falcon, sizes, &Map::new()).unwrap_err().contains("4 times the width, 192"));
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
        (json!({"model_type": "gpt2", "activation_function": "mish"}), "activation_function \"mish\""),
        (json!({"model_type": "gptj", "rotary_dim": null}), "rotary_dim is null"),
        (json!({"model_type": "gptj", "rotary_dim": 7}), "rotary embedding of 7 channels"),
        (json!({"model_type": "gptj", "rotary_dim": 512}), "rotary embedding of 512 channels"),
        (json!({"model_type": "llama", "num_key_value_heads": 5}), "32 heads are not a multiple of the 5"),
        (json!({"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2.0}}), "rope_scaling is"),
        (json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 1}}), "rope_scaling is"),
        (
            json!({"model_type": "llama", "num_attention_heads": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "dynamic rope_scaling of 2 channels",
        ),
        (json!({"model_type": "llama", "pad_token_id": 32_000}), "pad_token_id 32000 lies outside"),
        (json!({"model_type": "phi", "partial_rotary_factor": -1}), "partial_rotary_factor is -1"),
        (json!({"model_type": "falcon", "alibi": "yes"}), "alibi is \"yes\""),
        (json!({"model_type": "falcon", "alibi": 1, "rope_scaling": {"type": "linear", "factor": 2.0}}), "alibi"),
        (json!({"model_type": "falcon", "multi_query": false, "num_kv_heads": 1}), "num_kv_heads must be"),
        (json!({"model_type": "falcon", "n_embed": 72}), "the width 72"),
        (json!({"model_type": "gemma", "num_key_value_heads": null}), "num_key_value_heads is null"),
        (json!({"model_type": "gemma", "num_attention_heads": 5}), "the width 3072"),
        (json!({"model_type": "llama", "pretraining_tp": 2}), "pretraining_tp"),
        (json!({"model_type": "llama", "hidden_act": "mine"}), "no activation that transformers"),
        (json!({"model_type": "mistral", "output_attentions": true}), "output_attentions is set"),
        (json!({"model_type": "gpt2", "return_dict": false}), "no logits"),
        (json!({"model_type": "bart", "decoder_layers": 0}), "decoder_layers is 0"),
        (json!({"model_type": "gemma", "head_dim": 99_000_000, "hidden_size": 99_000_000}), "parameters"),
        (json!({"model_type": "gpt2", "n_head": 5}), "the width 768 is not a multiple of the 5 heads"),
        (json!({"model_type": "gpt2", "n_head": 0}), "n_head is 0"),
        (json!({"model_type": "gpt2", "n_inner": 0}), "n_inner is 0"),
        (json!({"model_type": "gpt2", "n_layer": 1_001}), "n_layer is 1001"),
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
