//! "Did you mean …": for a key or a choice that does not exist, the one that was probably meant.
//!
//! Looks at the keys that would be right in that place, then at the names other programs use for the same thing, then
//! at the keys of other sections.

/// What other programs call our keys.
const OTHER_NAMES: [(&str, &str); 18] = [
    ("n_layer", "layers"),
    ("num_layers", "layers"),
    ("num_hidden_layers", "layers"),
    ("n_head", "heads"),
    ("num_heads", "heads"),
    ("num_attention_heads", "heads"),
    ("n_embd", "width"),
    ("d_model", "width"),
    ("hidden_size", "width"),
    ("n_inner", "mlp_width"),
    ("intermediate_size", "mlp_width"),
    ("n_positions", "context"),
    ("block_size", "context"),
    ("max_steps", "steps"),
    ("batch_size", "micro_batch"),
    ("seq_len", "sequence_length"),
    ("lr", "learning_rate"),
    ("grad_clip", "clip_norm"),
];

/// The sections of a recipe that have keys of their own, with those keys.
const SECTIONS: [(&str, &[&str]); 15] = [
    ("rules", &["block", "max_parameters", "max_repo_bytes", "sequence_length"]),
    (
        "model",
        &["family", "layers", "heads", "kv_heads", "width", "mlp_width", "context", "config", "dropout", "backend"],
    ),
    ("init", &["scratch", "leader", "dir", "uid", "repo"]),
    (
        "data",
        &[
            "source",
            "paths",
            "held_out",
            "held_out_every",
            "text_key",
            "max_document_tokens",
            "dataset",
            "revision",
            "shards",
            "endpoint",
            "rows_endpoint",
            "interleave",
            "cache",
            "readers",
            "tokenizer_threads",
            "queue_mb",
        ],
    ),
    (
        "train",
        &[
            "steps",
            "tokens_per_step",
            "micro_batch",
            "sequence_length",
            "seed",
            "threads",
            "recompute",
            "device",
            "bf16_rounding",
        ],
    ),
    ("optimizer", &["learning_rate", "beta1", "beta2", "eps", "weight_decay", "clip_norm"]),
    ("schedule", &["kind", "warmup_steps", "decay_steps", "end_factor"]),
    ("eval", &["every", "rows"]),
    ("checkpoint", &["dir", "every", "keep_last", "keep_every"]),
    ("metrics", &["tensorboard", "print_every"]),
    ("score", &["every", "pages", "page_documents", "budget", "device", "source"]),
    ("gate", &["rule", "min_gain", "confidence", "cooldown_blocks", "max_pages", "exact", "tolerance", "allow_copies"]),
    ("hub", &["kind", "dir", "endpoint", "repo", "cache", "cache_gb", "download_mb_per_second"]),
    ("chain", &["network", "endpoint", "netuid", "ledger", "hotkeys", "wallet", "wallet_dir", "allow_readable_keys"]),
    ("publish", &["mode", "visibility"]),
];

/// The sentence about an unknown key, given the keys that exist in its place.
pub(super) fn for_unknown_key(key: &str, known: &[&str]) -> String {
    if ["token", "hf_token", "access_token", "hf_access_token"].contains(&key) {
        return "unknown key; the hub's token comes from the environment variable HF_TOKEN, never from a recipe"
            .to_owned();
    }
    let ours = OTHER_NAMES.iter().find(|(name, _)| *name == key).map_or(key, |(_, ours)| ours);
    let meant = if known.contains(&ours) { Some(ours) } else { nearest(key, known) };
    if let Some(meant) = meant {
        return format!("unknown key; did you mean `{meant}`? Known here: {}", listed(known));
    }
    let homes =
        SECTIONS.iter().filter(|(_, keys)| keys.contains(&ours)).map(|(section, _)| format!("`{section}.{ours}`"));
    match homes.collect::<Vec<_>>().as_slice() {
        [] => format!("unknown key; known here: {}", listed(known)),
        homes => format!("unknown key; did you mean {}? Known here: {}", homes.join(" or "), listed(known)),
    }
}

/// The sentence about an unknown choice, given the choices there are.
pub(super) fn for_unknown_choice(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(meant) => format!("unknown choice `{name}`; did you mean `{meant}`? There is {}", listed(known)),
        None => format!("unknown choice `{name}`; there is {}", listed(known)),
    }
}

/// `` `a`, `b` and `c` ``.
pub(super) fn listed(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [name] => format!("`{name}`"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|name| format!("`{name}`")).collect();
            format!("{} and `{last}`", first.join(", "))
        }
    }
}

/// The closest of some names: at most a third of the letters differ, or one begins with the other.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = name.to_lowercase().replace('-', "_");
    let distance =
        |candidate: &str| match lower.len() >= 3 && (candidate.starts_with(&lower) || lower.starts_with(candidate)) {
            true => 1,
            false => strsim::damerau_levenshtein(&lower, candidate),
        };
    let allowed = |candidate: &str| (candidate.len().max(lower.len()) / 3).max(1);
    let close = known.iter().copied().filter(|candidate| distance(candidate) <= allowed(candidate));
    close.min_by_key(|candidate| distance(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Recipe, tree::Tree};

    #[test]
    fn finds_what_was_meant() {
        let model = SECTIONS[1].1;
        for (typed, meant) in [
            ("widht", "`width`"),
            ("Width", "`width`"),
            ("layer", "`layers`"),
            ("mlp-width", "`mlp_width`"),
            ("n_embd", "`width`"),
            ("learning_rate", "`optimizer.learning_rate`"),
            ("lr", "`optimizer.learning_rate`"),
            ("sequence_length", "`rules.sequence_length` or `train.sequence_length`"),
        ] {
            let sentence = for_unknown_key(typed, model);
            assert!(sentence.contains(&format!("did you mean {meant}?")), "{sentence}");
        }
        assert!(!for_unknown_key("quantum", model).contains("did you mean"));
        assert!(for_unknown_choice("cosin", &["cosine", "wsd"]).contains("did you mean `cosine`?"));
        assert!(!for_unknown_key(&"x".repeat(2_000), model).contains("did you mean"));
    }

    /// The sections' keys above are those of the typed tree.
    #[test]
    fn knows_every_key_of_a_recipe() {
        let recipe: Recipe = crate::recipe::tests::small().resolve().expect("valid").recipe;
        let Tree::Map(entries) = Tree::parse(&crate::recipe::to_yaml(&recipe)).expect("own output") else {
            panic!("a recipe is a mapping")
        };
        for (section, node) in
            entries.iter().filter_map(|(key, node)| matches!(node, Tree::Map(_)).then_some((key, node)))
        {
            let (_, keys) = SECTIONS.iter().find(|(name, _)| name == section).expect("section");
            for (key, _) in node.leaves() {
                assert!(keys.contains(&key.as_str()), "{section}.{key}");
            }
        }
    }
}
