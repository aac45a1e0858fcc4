//! `assay chain status`: what holds for everybody on the subnet.

use anyhow::Result;
use serde_json::{Value, json};

use super::target::Target;
use super::{currency_name, json_text, list, share};
use crate::chain::{Chain, CommitLimit, Currency, Status, UNITS_PER_TAO};
use crate::cli::chain::ChainPlaceArgs;
use crate::figures::{bytes, count, duration};
use crate::metrics::printer::Printer;

pub(super) fn run(args: &ChainPlaceArgs, printer: &Printer) -> Result<()> {
    let chain = Target::of(args, printer)?.open()?;
    let status = chain.status()?;
    printer.result(&match args.json {
        true => json_text(&json(chain.as_ref(), &status)),
        false => text(chain.as_ref(), &status),
    })
}

fn text(chain: &dyn Chain, status: &Status) -> String {
    let blocks =
        |blocks: u64| format!("{} blocks, {}", count(blocks), duration(blocks as f64 * chain.seconds_per_block()));
    let mut rows = vec![("block", count(status.block))];
    if let Some(runtime) = &status.runtime {
        rows.push(("program", format!("{}, version {}", runtime.name, runtime.version)));
        rows.push(("first block", runtime.genesis.clone()));
    }
    let cost = status.registration_cost.map_or_else(|| "costs nothing".to_owned(), |cost| format!("{} TAO", tao(cost)));
    let pays_in = match status.currency {
        Currency::Tao => "TAO".to_owned(),
        Currency::Alpha { price } => format!("alpha, of which one is worth {price:.6} TAO"),
    };
    let commitments = match status.commit_limit {
        CommitLimit::Blocks(limit) => format!("one in {}", blocks(limit)),
        CommitLimit::Bytes(limit) => format!("{} in an epoch", bytes(limit)),
    };
    let limits = &status.weights;
    rows.extend([
        ("subnet", status.netuid.to_string()),
        ("places taken", format!("{} of {}", status.num_uids, status.max_uids)),
        ("registration", cost),
        ("immunity", blocks(status.immunity_period)),
        ("tempo", format!("{}: an epoch each {}", count(status.tempo), blocks(status.tempo.saturating_add(1)))),
        ("pays in", pays_in),
        ("commitments", commitments),
        ("weights", format!("once in {}", blocks(limits.rate_limit))),
        ("", format!("uids: at least {}, each at most {:.5} of the sum", limits.min_allowed, share(limits.max_share))),
    ]);
    if limits.version_key > 0 {
        rows.push(("", format!("by version {} of the validator's program or later", limits.version_key)));
    }
    if limits.commit_reveal {
        rows.push(("", "committed first and revealed later".to_owned()));
    }
    format!("{}\n{}", chain.describe(), list(&rows))
}

fn json(chain: &dyn Chain, status: &Status) -> Value {
    let runtime = status.runtime.as_ref();
    json!({
        "chain": chain.describe(),
        "block": status.block,
        "seconds_per_block": chain.seconds_per_block(),
        "spec_name": runtime.map(|runtime| &runtime.name),
        "spec_version": runtime.map(|runtime| runtime.version),
        "genesis": runtime.map(|runtime| &runtime.genesis),
        "netuid": status.netuid,
        "tempo": status.tempo,
        "num_uids": status.num_uids,
        "max_uids": status.max_uids,
        "immunity_period": status.immunity_period,
        "registration_cost": status.registration_cost,
        "currency": currency_name(status.currency),
        "tao_per_alpha": match status.currency {
            Currency::Tao => None,
            Currency::Alpha { price } => Some(price),
        },
        "commit_limit": match status.commit_limit {
            CommitLimit::Blocks(blocks) => json!({ "blocks": blocks }),
            CommitLimit::Bytes(bytes) => json!({ "bytes_per_epoch": bytes }),
        },
        "weights_limits": {
            "blocks": status.weights.rate_limit,
            "min_uids": status.weights.min_allowed,
            "max_share": status.weights.max_share,
            "version_key": status.weights.version_key,
            "commit_reveal": status.weights.commit_reveal,
        },
    })
}

/// An amount of the smallest unit in TAO.
pub(super) fn tao(units: u64) -> f64 {
    units as f64 / UNITS_PER_TAO as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::chain::ledger::{Ledger, Settings};
    use crate::chain::{Runtime, WeightsLimits};

    #[test]
    fn a_subnet_of_today_is_told_with_its_own_money_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&dir.path().join("ledger.sqlite"), &Settings::new(5, 0, 12_000)).unwrap();
        let status = Status {
            block: 7_000_000,
            runtime: Some(Runtime { name: "node-subtensor".to_owned(), version: 218, genesis: "0x2f05".to_owned() }),
            registration_cost: Some(1_500_000),
            currency: Currency::Alpha { price: 0.03 },
            commit_limit: CommitLimit::Bytes(3_100),
            weights: WeightsLimits {
                rate_limit: 100,
                min_allowed: 8,
                max_share: 6_554,
                version_key: 2_022,
                commit_reveal: true,
            },
            ..ledger.status().unwrap()
        };
        let told = text(&ledger, &status);
        for line in [
            "  block         7,000,000\n",
            "  program       node-subtensor, version 218\n",
            "  registration  0.0015 TAO\n",
            "  immunity      4,096 blocks, 13 h 39 min\n",
            "  pays in       alpha, of which one is worth 0.030000 TAO\n",
            "  tempo         360: an epoch each 361 blocks, 1 h 12 min\n",
            "  commitments   3.0 KiB in an epoch\n",
            "uids: at least 8, each at most 0.10001 of the sum\n",
            "by version 2022 of the validator's program or later\n",
            "committed first and revealed later",
        ] {
            assert!(told.contains(line), "no {line:?} in\n{told}");
        }
        let object = json(&ledger, &status);
        assert_eq!((&object["spec_version"], &object["genesis"]), (&json!(218), &json!("0x2f05")));
        assert_eq!((&object["currency"], &object["tao_per_alpha"]), (&json!("alpha"), &json!(0.03)));
        assert_eq!(object["commit_limit"], json!({"bytes_per_epoch": 3_100}));
        assert_eq!(object["weights_limits"]["commit_reveal"], true);
    }
}
