//! What a recipe may say but probably does not mean: keys without effect, text and positions unlike the scored ones.

use super::resolve::{Finding, Resolved};
use super::validate::Findings;
use super::{
    Backend, Bf16Rounding, Chain, Data, DeviceChoice, Eval, Gate, GateRule, Recompute, ScheduleKind, Score, SourceKind,
    default_held_out_every, default_interleave, default_queue_mb, default_readers, default_revision,
};

/// Keys of the text that its kind of source does not look at.
fn unused_data_keys(findings: &mut Findings, data: &Data) {
    use SourceKind::{Files, RefinedwebParquet, RefinedwebRows, Sample, Tokens};
    let source = data.source;
    let mut unused_if = |is_set: bool, path, unless: &[SourceKind]| {
        findings.add_if(is_set && !unless.contains(&source), path, "has no effect with this data.source");
    };
    let refinedweb = [RefinedwebRows, RefinedwebParquet];
    unused_if(!data.paths.is_empty(), "data.paths", &[Files, RefinedwebParquet, Tokens]);
    unused_if(!data.held_out.is_empty(), "data.held_out", &[Files]);
    unused_if(data.text_key.is_some(), "data.text_key", &[Files, RefinedwebRows, RefinedwebParquet]);
    unused_if(
        data.held_out_every != default_held_out_every(),
        "data.held_out_every",
        &[Files, RefinedwebRows, RefinedwebParquet],
    );
    unused_if(data.revision != default_revision(), "data.revision", &[RefinedwebParquet]);
    unused_if(!data.shards.is_empty(), "data.shards", &[RefinedwebParquet]);
    unused_if(data.interleave != default_interleave(), "data.interleave", &refinedweb);
    unused_if(data.readers != default_readers(), "data.readers", &refinedweb);
    unused_if(data.queue_mb != default_queue_mb(), "data.queue_mb", &[Files, RefinedwebRows, RefinedwebParquet]);
    unused_if(
        data.tokenizer_threads != 0,
        "data.tokenizer_threads",
        &[Sample, Files, RefinedwebRows, RefinedwebParquet],
    );
    let has_paths = source == RefinedwebParquet && !data.paths.is_empty();
    findings.add_if(
        has_paths && data.revision != default_revision(),
        "data.revision",
        "has no effect where data.paths names shards on this machine",
    );
    findings.add_if(
        source == Files && data.held_out_every != default_held_out_every() && !data.held_out.is_empty(),
        "data.held_out_every",
        "has no effect where data.held_out names files",
    );
}

/// What is allowed but probably not meant.
pub(super) fn warnings(resolved: &Resolved) -> Vec<Finding> {
    let mut findings = Findings::default();
    let (recipe, criteria) = (&resolved.recipe, &resolved.rules.criteria);
    let (data, schedule) = (&recipe.data, &recipe.schedule);
    unused_data_keys(&mut findings, data);
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
