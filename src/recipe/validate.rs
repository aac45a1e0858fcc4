//! What forbids the use of a recipe.
//!
//! Every check adds to a list, so that the user sees all there is to mend at once. A sentence says what is wrong, by
//! how much, and what value would do.

use std::path::PathBuf;

use crate::model::family::Family;

use super::estimate::repo_bytes;
use super::resolve::{Finding, Resolved, micro_steps};
use super::shrink::shrink;
use super::{Backend, DeviceChoice, HubKind, Init, Network, ScoreSource, SourceKind};
use crate::chain::wallet;
use crate::data::PAGE_DOCUMENTS;
use crate::figures::{bytes, count};
use crate::gate::{alpha, look};
use crate::hub::model_id::split_repo_id;
use crate::hub::names;
use crate::model::gpu;
use crate::placement::CANDLE_ON_CPU;
use crate::rules::{NETUID, Tokenizer};

/// Own limits above this are a slip of the keyboard.
const MAX_OWN_PARAMETERS: u64 = 1_000_000_000_000;

/// A growing list of findings.
#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, path: &'static str, sentence: impl Into<String>) {
        self.0.push(Finding { path, sentence: sentence.into() });
    }

    pub(super) fn add_if(&mut self, wrong: bool, path: &'static str, sentence: impl Into<String>) {
        if wrong {
            self.add(path, sentence);
        }
    }

    fn at_least(&mut self, least: usize, path: &'static str, value: usize) {
        self.add_if(value < least, path, format!("{value} is too small; at least {least}"));
    }

    fn in_range(&mut self, right: bool, path: &'static str, value: f64, range: &str) {
        self.add_if(!right, path, format!("{value} is out of range: {range}"));
    }
}

/// All that must be mended.
pub(super) fn violations(resolved: &Resolved, shape_fault: Option<String>) -> Vec<Finding> {
    let mut findings = Findings::default();
    name_and_folder(&mut findings, resolved);
    // The figures of what stands in for an impossible model of another family say nothing.
    let is_known = shape_fault.is_none() || resolved.arch.family == Family::Gpt2;
    shape(&mut findings, resolved, shape_fault);
    if is_known {
        rules(&mut findings, resolved);
    }
    data(&mut findings, resolved);
    portions(&mut findings, resolved);
    optimization(&mut findings, resolved);
    business(&mut findings, resolved);
    findings.0
}

fn name_and_folder(findings: &mut Findings, resolved: &Resolved) {
    let name = &resolved.recipe.name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    findings.add_if(
        !starts_well || !name.chars().all(allowed) || name.len() > 96,
        "name",
        format!(
            "\"{}\" cannot name a folder; use letters, digits, `-`, `_` and `.`, a letter or digit first, at most 96",
            name.chars().take(96).collect::<String>().escape_debug()
        ),
    );
    findings.add_if(
        resolved.run_dir.as_os_str().is_empty(),
        "checkpoint.dir",
        "is empty; leave the key out for checkpoints/NAME",
    );
    let network_dir = resolved.recipe.chain.ledger.parent();
    findings.add_if(
        network_dir.is_some_and(|dir| dir == resolved.run_dir) || resolved.run_dir == resolved.recipe.hub.dir,
        if resolved.recipe.checkpoint.dir.is_some() && resolved.run_dir != PathBuf::from("checkpoints").join(name) {
            "checkpoint.dir"
        } else {
            "name"
        },
        format!("the run would lie in {}, the folder of hub and ledger; choose another", resolved.run_dir.display()),
    );
    if let Init::Dir(dir) = &resolved.recipe.init {
        findings.add_if(dir.as_os_str().is_empty(), "init.dir", "is empty; give a folder with config.json in it");
    }
}

fn shape(findings: &mut Findings, resolved: &Resolved, shape_fault: Option<String>) {
    let (arch, num_before) = (&resolved.arch, findings.0.len());
    findings.at_least(1, "model.layers", arch.layers);
    findings.at_least(1, "model.heads", arch.heads);
    findings.at_least(1, "model.width", arch.width);
    if arch.width > 0 {
        findings.at_least(1, "model.mlp_width", arch.mlp_width);
    }
    findings.at_least(2, "model.context", arch.context);
    if arch.heads > 0 && !arch.width.is_multiple_of(arch.heads) {
        let below = arch.width / arch.heads * arch.heads;
        let nearest = match below {
            0 => format!("at least {}", arch.heads),
            _ => format!("{below} or {}", below.saturating_add(arch.heads)),
        };
        findings.add(
            "model.width",
            format!("{} is no multiple of the {} heads; take {nearest}, or other heads", arch.width, arch.heads),
        );
    }
    if let Some(fault) = shape_fault
        && findings.0.len() == num_before
    {
        findings.add("model", fault);
    }
    let dropout = f64::from(resolved.recipe.model.dropout);
    findings.in_range((0.0..1.0).contains(&dropout), "model.dropout", dropout, "at least 0 and below 1");
}

fn rules(findings: &mut Findings, resolved: &Resolved) {
    let (criteria, choice, arch) = (&resolved.rules.criteria, &resolved.recipe.rules, &resolved.arch);
    let class = arch.family.class();
    let since = format!("in force from block {}", count(criteria.from_block));
    let origin = |own: bool, key: &str| if own { format!("set by rules.{key}") } else { since.clone() };

    findings.add_if(
        choice.max_parameters.is_some_and(|own| own == 0 || own > MAX_OWN_PARAMETERS),
        "rules.max_parameters",
        format!("must be from 1 to {}", count(MAX_OWN_PARAMETERS)),
    );
    findings.add_if(choice.max_repo_bytes == Some(0), "rules.max_repo_bytes", "must be at least 1");
    findings.at_least(2, "rules.sequence_length", criteria.sequence_length);

    findings.add_if(
        !criteria.architectures.contains(&class),
        "rules.block",
        format!(
            "at block {} the subnet does not accept {class}; allowed are {}",
            count(resolved.rules.block),
            criteria.architectures.join(", ")
        ),
    );
    findings.add_if(
        criteria.tokenizer != Tokenizer::Gpt2,
        "rules.block",
        format!(
            "at block {} models are scored with the {} tokenizer; assay trains with the GPT-2 tokenizer; \
             take a block below {}",
            count(resolved.rules.block),
            criteria.tokenizer.name(),
            count(criteria.from_block)
        ),
    );
    findings.add_if(
        arch.longest_scored_row().is_some_and(|longest| longest < criteria.sequence_length),
        "model.context",
        format!(
            "{} positions, but models are scored on rows of {} tokens ({}): every loss would be infinite; set it to {}",
            arch.context,
            criteria.sequence_length,
            origin(choice.sequence_length.is_some(), "sequence_length"),
            criteria.sequence_length
        ),
    );
    let (have, limit) = (arch.num_parameters(), u128::from(criteria.max_parameters));
    if have > limit {
        findings.add(
            "model",
            format!(
                "{} parameters are {} above the limit of {} {}; {}",
                count(have),
                count(have - limit),
                count(limit),
                origin(choice.max_parameters.is_some(), "max_parameters"),
                shrink(arch, limit)
            ),
        );
    }
    let (have, limit) = (repo_bytes(arch), u128::from(criteria.max_repo_bytes));
    findings.add_if(
        have > limit,
        "model",
        format!(
            "the repository would hold {} ({} bytes: 4 per parameter and the headers), above the limit of {} {}; \
             make the model smaller",
            bytes(have),
            count(have),
            bytes(limit),
            origin(choice.max_repo_bytes.is_some(), "max_repo_bytes")
        ),
    );
}

fn data(findings: &mut Findings, resolved: &Resolved) {
    let data = &resolved.recipe.data;
    if data.source == SourceKind::Files {
        findings.add_if(
            data.paths.is_empty(),
            "data.paths",
            "is empty; name files, folders or globs of .jsonl or .txt to train on, or set data.source to sample",
        );
    }
    if data.source == SourceKind::Tokens {
        let sentence = "is empty; name the folder that `assay data prepare` wrote";
        findings.add_if(data.paths.is_empty(), "data.paths", sentence);
    }
    let is_empty = data.text_key.as_ref().is_some_and(String::is_empty);
    findings.add_if(is_empty, "data.text_key", "is empty; name the key or the column of the text");
    if let Err(sentence) = names::repository(&data.dataset) {
        findings.add("data.dataset", sentence);
    }
    findings.add_if(
        !is_endpoint(&data.rows_endpoint),
        "data.rows_endpoint",
        "is no address of a data set's viewer; write it as https://datasets-server.huggingface.co",
    );
    let shards = data.shards.iter().find_map(|shard| Some((shard, glob::Pattern::new(shard).err()?)));
    if let Some((shard, error)) = shards {
        findings.add("data.shards", format!("{shard:?} is not a valid glob: {error}"));
    }
    findings.at_least(1, "data.interleave", data.interleave);
    findings.add_if(
        data.interleave > 1_024,
        "data.interleave",
        "is more than 1,024, which a cursor would have to name",
    );
    findings.at_least(1, "data.readers", data.readers);
    findings.add_if(data.readers > 256, "data.readers", "is more than 256; the hub would see an attack");
    findings.add_if(data.tokenizer_threads > 256, "data.tokenizer_threads", "is more than 256");
    findings.at_least(1, "data.queue_mb", data.queue_mb);
    let empty = |paths: &[std::path::PathBuf]| paths.iter().any(|path| path.as_os_str().is_empty());
    findings.add_if(empty(&data.paths), "data.paths", "has an empty path in it; remove it");
    findings.add_if(empty(&data.held_out), "data.held_out", "has an empty path in it; remove it");
    findings.at_least(2, "data.held_out_every", data.held_out_every);
    findings.add_if(
        data.held_out_every > 1_000_000,
        "data.held_out_every",
        "is more than a million: hold out some text",
    );
}

fn portions(findings: &mut Findings, resolved: &Resolved) {
    let recipe = &resolved.recipe;
    findings.at_least(1, "train.steps", recipe.train.steps);
    findings.at_least(1, "train.tokens_per_step", recipe.train.tokens_per_step);
    findings.at_least(1, "train.micro_batch", recipe.train.micro_batch);
    findings.at_least(2, "train.sequence_length", resolved.row_len);
    findings.add_if(
        resolved.threads == 0 || resolved.threads > 4096,
        "train.threads",
        format!("{} threads are out of range: 1 to 4096; leave the key out for all cores", resolved.threads),
    );
    findings.add_if(
        matches!(recipe.train.device, DeviceChoice::Cuda(_)) && recipe.model.backend == Backend::Candle,
        "train.device",
        CANDLE_ON_CPU,
    );
    if let (DeviceChoice::Cuda(_), Some(reason)) =
        (recipe.train.device, gpu::cannot_train(&resolved.arch, recipe.model.dropout))
    {
        findings.add("train.device", format!("{reason}; choose the device cpu, or auto, which then means it"));
    }
    findings.add_if(
        resolved.arch.max_row_len().is_some_and(|longest| resolved.row_len > longest),
        "train.sequence_length",
        format!(
            "rows of {} tokens do not fit the model's {} positions; set it to {} or raise model.context",
            resolved.row_len, resolved.arch.context, resolved.arch.context
        ),
    );
    let nothing_is_0 = recipe.train.tokens_per_step > 0 && recipe.train.micro_batch > 0 && resolved.row_len > 0;
    if let Err(sentence) = micro_steps(recipe, resolved.row_len, 1)
        && nothing_is_0
    {
        findings.add("train.tokens_per_step", sentence);
    }
    findings.at_least(1, "eval.rows", recipe.eval.rows);
    findings.at_least(1, "checkpoint.keep_last", recipe.checkpoint.keep_last);
    findings.at_least(1, "metrics.print_every", recipe.metrics.print_every);
}

fn optimization(findings: &mut Findings, resolved: &Resolved) {
    let (optimizer, schedule) = (&resolved.recipe.optimizer, &resolved.recipe.schedule);
    let above_0 = |value: f64| value > 0.0 && value.is_finite();
    let from_0 = |value: f64| value >= 0.0 && value.is_finite();
    let part = |value: f64| (0.0..1.0).contains(&value);
    let rate = optimizer.learning_rate;
    findings.in_range(above_0(rate), "optimizer.learning_rate", rate, "above 0");
    findings.in_range(part(optimizer.beta1), "optimizer.beta1", optimizer.beta1, "at least 0 and below 1");
    findings.in_range(part(optimizer.beta2), "optimizer.beta2", optimizer.beta2, "at least 0 and below 1");
    findings.in_range(above_0(optimizer.eps), "optimizer.eps", optimizer.eps, "above 0");
    findings.in_range(from_0(optimizer.weight_decay), "optimizer.weight_decay", optimizer.weight_decay, "at least 0");
    findings.in_range(
        from_0(optimizer.clip_norm),
        "optimizer.clip_norm",
        optimizer.clip_norm,
        "at least 0, where 0 means no clipping",
    );
    let end = schedule.end_factor;
    findings.in_range((0.0..=1.0).contains(&end), "schedule.end_factor", end, "0 to 1");
}

/// Whether a text is the address of a server.
fn is_endpoint(text: &str) -> bool {
    reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    })
}

/// Scoring, the gate, hub, chain and publishing.
fn business(findings: &mut Findings, resolved: &Resolved) {
    let recipe = &resolved.recipe;
    let (score, gate, hub, chain) = (&recipe.score, &recipe.gate, &recipe.hub, &recipe.chain);
    findings.at_least(1, "score.pages", score.pages.unwrap_or(1));
    findings.at_least(1, "score.page_documents", score.page_documents);
    let has_page_of_its_own =
        score.source == Some(ScoreSource::RefinedwebRows) && score.page_documents != PAGE_DOCUMENTS;
    findings.add_if(
        has_page_of_its_own,
        "score.page_documents",
        format!("is {}, but the pages of score.source: refinedweb-rows have {PAGE_DOCUMENTS}", score.page_documents),
    );
    findings.in_range(
        score.budget > 0.0 && score.budget < 1.0,
        "score.budget",
        score.budget,
        "above 0 and below 1: the part of the run's time that scoring may take",
    );
    let pages_of_a_step = score.pages.unwrap_or(resolved.rules.validator.pages_per_step);
    let fewest_steps = look::least_steps(alpha(gate, 1, 1), gate);
    let fewest = fewest_steps.saturating_mul(pages_of_a_step);
    findings.add_if(
        gate.max_pages.is_some_and(|max_pages| max_pages < fewest),
        "gate.max_pages",
        format!(
            "{} pages are fewer than the {fewest} of {} steps, before which nothing is ever certain; give more, or a \
             smaller score.pages",
            gate.max_pages.unwrap_or_default(),
            fewest_steps
        ),
    );
    findings.in_range((0.0..=1.0).contains(&gate.tolerance), "gate.tolerance", gate.tolerance, "0 to 1");
    findings.in_range((0.0..1.0).contains(&gate.min_gain), "gate.min_gain", gate.min_gain, "at least 0 and below 1");
    findings.in_range(
        (0.5..1.0).contains(&gate.confidence),
        "gate.confidence",
        gate.confidence,
        "at least 0.5 and below 1; 0.95 is usual",
    );
    findings.add_if(hub.dir.as_os_str().is_empty(), "hub.dir", "is empty; leave the key out for the embedded hub");
    let is_folder = hub.kind == HubKind::Folder;
    findings.add_if(
        is_folder && hub.endpoint.is_some(),
        "hub.endpoint",
        "is of a hub on the network, and hub.kind is folder: leave it out, or set hub.kind to huggingface",
    );
    findings.add_if(
        hub.endpoint.as_ref().is_some_and(|endpoint| !is_endpoint(endpoint)),
        "hub.endpoint",
        "is no address; write it as https://huggingface.co, without user name or token",
    );
    findings.add_if(
        is_folder && hub.download_mb_per_second.is_some(),
        "hub.download_mb_per_second",
        "limits downloads from the network, and hub.kind is folder: leave it out",
    );
    let rate = hub.download_mb_per_second.unwrap_or(1.0);
    findings.in_range(rate.is_finite() && rate >= 0.01, "hub.download_mb_per_second", rate, "0.01 or more");
    let budget = hub.cache_gb.unwrap_or(1.0);
    findings.in_range(budget.is_finite() && budget >= 0.0, "hub.cache_gb", budget, "0 or more");
    findings.add_if(hub.cache.as_os_str().is_empty(), "hub.cache", "is empty; name a folder for downloaded models");
    findings.add_if(
        chain.ledger.as_os_str().is_empty(),
        "chain.ledger",
        "is empty; leave the key out for the embedded ledger",
    );
    let hotkeys = chain.hotkeys();
    findings.add_if(
        hotkeys.is_empty() && (chain.is_local() || resolved.publishes()),
        "chain.hotkeys",
        "is empty; name the hotkey to publish under, as [miner]",
    );
    findings.add_if(
        chain.network == Some(Network::Local) && chain.endpoint.is_some(),
        "chain.endpoint",
        "is of a real network, and chain.network is local: leave one of them out",
    );
    findings.add_if(
        chain.endpoint.is_some() && chain.endpoints().is_empty(),
        "chain.endpoint",
        "is an empty list; name a node, as ws://127.0.0.1:9944, or leave the key out",
    );
    findings.add_if(
        chain.is_local() && chain.netuid != NETUID,
        "chain.netuid",
        format!("{} is not the subnet of the embedded network, which is {NETUID}", chain.netuid),
    );
    if let Err(error) = wallet::check_name(&chain.wallet) {
        findings.add("chain.wallet", error.to_string());
    }
    let repeated = |(index, hotkey): (usize, &String)| hotkeys[..index].contains(hotkey);
    findings.add_if(hotkeys.iter().enumerate().any(repeated), "chain.hotkeys", "names a hotkey twice");
    match &hub.repo {
        Some(repo_id) => {
            let is_name = split_repo_id(repo_id).and_then(|_| names::repository(repo_id));
            if let Err(sentence) = is_name {
                findings.add("hub.repo", sentence);
            }
        }
        None => findings.add_if(
            resolved.publishes(),
            "hub.repo",
            "is missing; name the repository to publish to, as namespace/name, or set publish.mode to never",
        ),
    }
    match &recipe.init {
        Init::Uid(uid) => {
            findings.add_if(*uid > u64::from(u16::MAX), "init.uid", format!("{uid} is no uid; they are below 65,536"));
        }
        Init::Repo(repo) => {
            if let Err(sentence) = split_repo_id(repo.split('@').next().unwrap_or_default()) {
                findings.add("init.repo", sentence);
            }
        }
        Init::Scratch | Init::Leader | Init::Dir(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recipe;
    use super::super::tests::small;
    use super::*;

    fn violations_of(change: impl FnOnce(&mut Recipe)) -> Vec<String> {
        let mut recipe = small();
        change(&mut recipe);
        let written = |finding: &Finding| format!("{}: {}", finding.path, finding.sentence);
        recipe.examine().violations.iter().map(written).collect()
    }

    fn paths_of(change: impl FnOnce(&mut Recipe)) -> Vec<String> {
        let paths = violations_of(change);
        paths.iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn refuses_gpt2_large_and_says_what_would_do() {
        let found = violations_of(|recipe| {
            (recipe.model.width, recipe.model.layers, recipe.model.heads) = (1280, 36, 20);
        });
        assert_eq!(
            found,
            [
                "model: 774,030,080 parameters are 2,030,080 above the limit of 772,000,000 in force from block 2,405,920; \
              enough would be `model.mlp_width: 5056` (768,129,536 parameters) or `model.layers: 35` (754,352,640 \
              parameters)"
            ]
        );
    }

    #[test]
    fn exactly_the_limit_passes_and_one_above_does_not() {
        let parameters = 3_382_080;
        assert!(violations_of(|recipe| recipe.rules.max_parameters = Some(parameters)).is_empty());
        assert_eq!(violations_of(|recipe| recipe.rules.max_parameters = Some(parameters - 1)).len(), 1);
    }

    #[test]
    fn the_limit_follows_the_block() {
        let medium = |block| {
            paths_of(|recipe| {
                (recipe.model.width, recipe.model.layers, recipe.model.heads) = (1024, 24, 16);
                recipe.rules.block = Some(block);
            })
        };
        assert_eq!(medium(2_405_919), ["model"]);
        assert_eq!(medium(2_405_920), [""; 0]);
    }

    #[test]
    fn later_rules_are_refused_for_class_tokenizer_and_length() {
        let found = violations_of(|recipe| {
            recipe.rules.block = Some(2_786_061);
            recipe.model.context = Some(1024);
            recipe.train.sequence_length = Some(1024);
        });
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("does not accept GPT2LMHeadModel; allowed are MistralForCausalLM"));
        assert!(found[1].contains("GPT-4 tokenizer; assay trains with the GPT-2 tokenizer"));
        assert!(found[2].starts_with("model.context: 1024 positions, but models are scored on rows of 4096 tokens"));
    }

    #[test]
    fn a_repository_over_the_limit_is_refused() {
        let found = violations_of(|recipe| recipe.rules.max_repo_bytes = Some(4 * 3_382_080));
        assert!(found[0].starts_with("model: the repository would hold 12.9 MiB"), "{found:?}");
    }

    #[test]
    fn every_violation_is_reported_at_once() {
        let found = paths_of(|recipe| {
            recipe.name = "../up".into();
            recipe.model.width = 65;
            recipe.model.dropout = 1.0;
            recipe.model.context = Some(512);
            recipe.train.steps = 10;
            recipe.train.micro_batch = 3;
            recipe.optimizer.learning_rate = f64::NAN;
            recipe.eval.rows = 0;
        });
        let expected = [
            "name",
            "model.width",
            "model.dropout",
            "model.context",
            "train.sequence_length",
            "train.tokens_per_step",
            "eval.rows",
            "optimizer.learning_rate",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn zeros_and_extremes_are_findings_and_no_panics() {
        for extreme in [0, usize::MAX] {
            let found = paths_of(|recipe| {
                recipe.model.layers = extreme;
                recipe.model.heads = extreme;
                recipe.model.width = extreme;
                recipe.model.mlp_width = Some(extreme);
                recipe.model.context = Some(extreme);
                recipe.train.steps = extreme;
                recipe.train.tokens_per_step = extreme;
                recipe.train.micro_batch = extreme;
                recipe.train.sequence_length = Some(extreme);
                recipe.train.threads = Some(extreme);
                recipe.data.held_out_every = extreme;
                recipe.rules.sequence_length = Some(extreme);
                recipe.rules.max_parameters = Some(extreme as u64);
                recipe.checkpoint.keep_last = extreme;
            });
            assert!(found.contains(&"train.threads".to_owned()), "{found:?}");
            assert!(found.contains(&"rules.max_parameters".to_owned()), "{found:?}");
        }
    }

    #[test]
    fn pages_of_the_viewer_have_a_hundred_rows_and_the_viewer_an_address() {
        let of_viewer = |page_documents| {
            paths_of(|recipe| {
                recipe.score.source = Some(ScoreSource::RefinedwebRows);
                recipe.score.page_documents = page_documents;
            })
        };
        assert_eq!(of_viewer(100), Vec::<String>::new());
        assert_eq!(of_viewer(50), ["score.page_documents"]);
        assert_eq!(paths_of(|recipe| recipe.score.page_documents = 50), Vec::<String>::new());
        assert_eq!(paths_of(|recipe| recipe.data.rows_endpoint = "viewer".to_owned()), ["data.rows_endpoint"]);
    }

    #[test]
    fn candle_is_not_for_gpus() {
        let on = |device| paths_of(|recipe| (recipe.model.backend, recipe.train.device) = (Backend::Candle, device));
        assert_eq!(on(DeviceChoice::Cuda(0)), ["train.device"]);
        assert_eq!(on(DeviceChoice::Auto), [""; 0]);
    }

    #[test]
    fn names_stay_inside_their_folder() {
        for name in ["", ".", "..", "a/b", "a\\b", "../x", "-rf", "a b", "a\0", "ü", &"x".repeat(97)] {
            assert_eq!(paths_of(|recipe| recipe.name = name.to_owned()), ["name"], "{name:?}");
        }
        assert!(paths_of(|recipe| recipe.name = "Run_2.b-1".into()).is_empty());
    }

    #[test]
    fn what_a_gpu_cannot_train_is_refused_by_name_and_auto_means_the_cpu() {
        let large_heads = |recipe: &mut Recipe| (recipe.model.width, recipe.model.heads) = (272, 2);
        let dropout = |recipe: &mut Recipe| recipe.model.dropout = 0.1;
        for change in [large_heads as fn(&mut Recipe), dropout] {
            assert!(paths_of(change).is_empty());
            let on_cuda = |recipe: &mut Recipe| {
                change(recipe);
                recipe.train.device = DeviceChoice::Cuda(0);
            };
            assert_eq!(paths_of(on_cuda), ["train.device"]);
            let mut recipe = small();
            change(&mut recipe);
            assert_eq!(recipe.examine().resolved.device(), DeviceChoice::Cpu);
        }
        assert_eq!(small().examine().resolved.device(), DeviceChoice::Auto);
    }
}
