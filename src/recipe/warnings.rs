//! What a recipe may say but probably does not mean: keys without effect, text and positions unlike the scored ones.

use super::resolve::{Finding, Resolved};
use super::validate::Findings;
use super::{
    Backend, Bf16Rounding, Chain, Data, DeviceChoice, Eval, Gate, GateRule, Recompute, ScheduleKind, Score,
    ScoreSource, SourceKind, default_dataset, default_held_out_every, default_interleave, default_queue_mb,
    default_readers, default_revision, default_rows_endpoint,
};

/// Keys of the text that neither its kind of source looks at nor the pages that models are scored on.
fn unused_data_keys(findings: &mut Findings, data: &Data, score: &Score) {
    use SourceKind::{Files, RefinedwebParquet, RefinedwebRows, Sample, Tokens};
    let scores_on_viewer = score.source == Some(ScoreSource::RefinedwebRows);
    let is = |sources: &[SourceKind]| sources.contains(&data.source);
    let refinedweb = data.is_refinedweb();
    let from_hub = data.source == RefinedwebParquet && data.paths.is_empty();
    let held_out_by_rule = refinedweb || data.source == Files && data.held_out.is_empty();
    for (key, is_set, is_used) in [
        ("data.paths", !data.paths.is_empty(), is(&[Files, RefinedwebParquet, Tokens])),
        ("data.held_out", !data.held_out.is_empty(), is(&[Files])),
        (
            "data.held_out_every",
            data.held_out_every != default_held_out_every(),
            held_out_by_rule || data.source == Tokens && scores_on_viewer,
        ),
        ("data.text_key", data.text_key.is_some(), refinedweb || is(&[Files])),
        (
            "data.dataset",
            data.dataset != default_dataset(),
            from_hub || data.source == RefinedwebRows || scores_on_viewer,
        ),
        ("data.revision", data.revision != default_revision(), from_hub),
        ("data.endpoint", data.endpoint.is_some(), from_hub),
        ("data.shards", !data.shards.is_empty(), is(&[RefinedwebParquet])),
        (
            "data.rows_endpoint",
            data.rows_endpoint != default_rows_endpoint(),
            data.source == RefinedwebRows || scores_on_viewer,
        ),
        ("data.interleave", data.interleave != default_interleave(), refinedweb),
        ("data.cache", data.cache.is_some(), refinedweb || scores_on_viewer),
        ("data.readers", data.readers != default_readers(), refinedweb || scores_on_viewer),
        ("data.tokenizer_threads", data.tokenizer_threads != 0, refinedweb || is(&[Sample, Files])),
        ("data.queue_mb", data.queue_mb != default_queue_mb(), refinedweb),
    ] {
        findings.add_if(is_set && !is_used, key, "has no effect with this data.source");
    }
    findings.add_if(
        scores_on_viewer && data.source == RefinedwebParquet && !data.paths.is_empty(),
        "data.paths",
        "counts rows over these files alone: unless they are all shards of the data set, pages of the viewer \
         (score.source) may hold rows that were trained on",
    );
}

/// What is allowed but probably not meant.
pub(super) fn warnings(resolved: &Resolved) -> Vec<Finding> {
    let mut findings = Findings::default();
    let (recipe, criteria) = (&resolved.recipe, &resolved.rules.criteria);
    let (data, schedule) = (&recipe.data, &recipe.schedule);
    unused_data_keys(&mut findings, data, &recipe.score);
    let cut = data.max_document_tokens.unwrap_or(0);
    findings.add_if(
        cut != criteria.sequence_length,
        "data.max_document_tokens",
        format!(
            "validators cut every document to {} tokens; text {} is not what the model is scored on",
            criteria.sequence_length,
            if cut == 0 { "that is never cut".to_owned() } else { format!("cut to {cut}") }
        ),
    );
    findings.add_if(
        resolved.row_len < resolved.arch.context,
        "train.sequence_length",
        format!(
            "rows of {} tokens never reach the positions above, up to {}: they stay untrained",
            resolved.row_len, resolved.arch.context
        ),
    );
    if let Some(quirk) = resolved.arch.quirk(criteria.sequence_length) {
        findings.add("model", quirk);
    }
    let (chain, usual) = (&recipe.chain, Chain::default());
    for (key, is_set) in [
        ("chain.wallet", chain.wallet != usual.wallet),
        ("chain.wallet_dir", chain.wallet_dir.is_some()),
        ("chain.allow_readable_keys", chain.allow_readable_keys),
    ] {
        findings.add_if(chain.is_local() && is_set, key, "has no effect on the embedded network, which has no keys");
    }
    findings.add_if(
        !chain.is_local() && chain.ledger != usual.ledger,
        "chain.ledger",
        "has no effect on a real network",
    );
    findings.add_if(
        recipe.train.recompute != Recompute::None && recipe.model.backend == Backend::Candle,
        "train.recompute",
        "has no effect with model.backend: candle",
    );
    findings.add_if(
        recipe.train.bf16_rounding != Bf16Rounding::default()
            && (recipe.train.device == DeviceChoice::Cpu || recipe.model.backend == Backend::Candle),
        "train.bf16_rounding",
        "has no effect on the CPU, which computes in f32",
    );
    findings.add_if(
        schedule.decay_steps > 0 && schedule.kind != ScheduleKind::Wsd,
        "schedule.decay_steps",
        "has no effect; it belongs to schedule.kind: wsd",
    );
    findings.add_if(
        schedule.kind == ScheduleKind::Wsd && schedule.decay_steps == 0,
        "schedule.decay_steps",
        "is 0: the learning rate never decays; a tenth to a fifth of the steps is usual",
    );
    let steps = recipe.train.steps;
    findings.add_if(
        schedule.warmup_steps > steps,
        "schedule.warmup_steps",
        format!("is beyond the run's {steps} steps: the peak learning rate is never reached"),
    );
    let after_warmup = steps.saturating_sub(schedule.warmup_steps);
    findings.add_if(
        schedule.kind == ScheduleKind::Wsd && schedule.decay_steps > after_warmup,
        "schedule.decay_steps",
        format!("is more than the {after_warmup} steps after the warm-up: the decay takes these only"),
    );
    findings.add_if(
        recipe.eval.every > steps && recipe.eval.every != Eval::default().every,
        "eval.every",
        format!("is beyond the run's {steps} steps: the held-out loss is taken at the end only"),
    );
    findings.add_if(
        recipe.checkpoint.every > steps,
        "checkpoint.every",
        format!("is beyond the run's {steps} steps: the run is saved before evaluations and at the end only"),
    );
    let score = &recipe.score;
    findings.add_if(
        score.every > steps,
        "score.every",
        format!("is beyond the run's {steps} steps: the model is scored at the end only"),
    );
    findings.add_if(
        score.every == 0
            && (*score != Score { pages: score.pages, source: score.source, ..Score::default() }
                || recipe.hub.repo.is_some()),
        "score.every",
        "is 0: the model is never scored beside others, and never published",
    );
    findings.add_if(
        recipe.gate.rule == GateRule::BeatsLeader && recipe.gate.min_gain != Gate::default().min_gain,
        "gate.min_gain",
        "has no effect with gate.rule: beats-leader",
    );
    findings.add_if(
        recipe.gate.rule == GateRule::BeatsLeader && recipe.gate.tolerance != Gate::default().tolerance,
        "gate.tolerance",
        "has no effect with gate.rule: beats-leader",
    );
    findings.add_if(
        score.every == 0 && recipe.gate != (Gate { max_pages: recipe.gate.max_pages, ..Gate::default() }),
        "gate",
        "has no effect in a run whose score.every is 0",
    );
    findings.add_if(
        recipe.gate.rule == GateRule::BeatsLeader && recipe.gate.exact,
        "gate.exact",
        "has no effect with gate.rule: beats-leader, whose certainty is exact anyway",
    );
    findings.0
}

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::super::{Bf16Rounding, DeviceChoice};

    #[test]
    fn keys_without_effect_are_named() {
        let mut recipe = small();
        recipe.data.paths = vec!["data".into()];
        recipe.schedule.decay_steps = 5;
        recipe.train.sequence_length = Some(512);
        recipe.data.max_document_tokens = Some(0);
        recipe.eval.every = 1000;
        recipe.schedule.warmup_steps = 101;
        recipe.train.device = DeviceChoice::Cpu;
        recipe.train.bf16_rounding = Bf16Rounding::Stochastic;
        let warnings = recipe.resolve().expect("valid").warnings;
        let paths: Vec<_> = warnings.iter().map(|finding| finding.path).collect();
        let expected = [
            "data.paths",
            "data.max_document_tokens",
            "train.sequence_length",
            "train.bf16_rounding",
            "schedule.decay_steps",
            "schedule.warmup_steps",
            "eval.every",
        ];
        assert_eq!(paths, expected);
    }
}
