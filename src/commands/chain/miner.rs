//! `assay chain miner`: how miners stand.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::commitments::shown;
use super::status::tao;
use super::target::Target;
use super::{commitments, currency_name, json_text, list, share};
use crate::chain::standing::{Pay, Standing};
use crate::chain::{Chain, Commitment, Currency, Snapshot, Status};
use crate::cli::chain::ChainPlaceArgs;
use crate::error::{Failure, input};
use crate::figures::{count, duration};
use crate::metrics::printer::Printer;
use crate::publish::{Wait, wait_for_rate_limit};

pub(super) fn run(hotkeys: &[String], args: &ChainPlaceArgs, printer: &Printer) -> Result<()> {
    let target = Target::of(args, printer)?;
    let asked = if hotkeys.is_empty() { target.own_hotkeys() } else { hotkeys.to_vec() };
    ensure!(!asked.is_empty(), input("no hotkey is named: give one by --hotkey, or a recipe by --recipe"));
    let (chain, hotkeys) = target.open_for(&asked)?;
    let (snapshot, status) = (chain.snapshot()?, chain.status()?);
    let reports: Vec<Report<'_>> =
        hotkeys.iter().map(|hotkey| Report::of(chain.as_ref(), &snapshot, &status, hotkey)).collect::<Result<_>>()?;
    let seconds = chain.seconds_per_block();
    printer.result(&match args.json {
        true => json_text(&reports.iter().map(|report| report.json(&status, seconds)).collect()),
        false => reports.iter().map(|report| report.text(&status, seconds)).collect::<Vec<_>>().join("\n\n"),
    })?;
    if reports.iter().all(|report| report.place.is_err()) {
        let hotkeys = hotkeys.join(", ");
        return Err(Failure::No(format!("not registered on {}: {hotkeys}", chain.describe())).into());
    }
    Ok(())
}

/// What is told of one hotkey.
struct Report<'a> {
    hotkey: &'a str,
    /// How it stands, or why it does not.
    place: Result<Place<'a>, String>,
}

struct Place<'a> {
    standing: Standing<'a>,
    pay: Pay,
    commitment: Option<&'a Commitment>,
    /// The rate limit; `None`: it may commit.
    wait: Option<Wait>,
}

impl<'a> Report<'a> {
    fn of(chain: &dyn Chain, snapshot: &'a Snapshot, status: &Status, hotkey: &'a str) -> Result<Self> {
        let Some(standing) = Standing::of(snapshot, status, hotkey) else {
            return Ok(Self { hotkey, place: Err(format!("{:#}", chain.unregistered(hotkey))) });
        };
        let place = Place {
            pay: Pay::of(standing.neuron, status, chain.seconds_per_block()),
            commitment: snapshot.commitments.get(hotkey),
            wait: wait_for_rate_limit(chain, hotkey)?,
            standing,
        };
        Ok(Self { hotkey, place: Ok(place) })
    }

    fn text(&self, status: &Status, seconds_per_block: f64) -> String {
        match &self.place {
            Ok(place) => place.text(status, seconds_per_block),
            Err(reason) => {
                let rows = [("registration", cost(status))];
                format!("{}: {reason}\n{}", self.hotkey, list(&rows))
            }
        }
    }

    fn json(&self, status: &Status, seconds_per_block: f64) -> Value {
        match &self.place {
            Ok(place) => place.json(status, seconds_per_block),
            Err(reason) => json!({
                "hotkey": self.hotkey,
                "registered": false,
                "reason": reason,
                "registration_cost": status.registration_cost,
            }),
        }
    }
}

impl Place<'_> {
    fn text(&self, status: &Status, seconds_per_block: f64) -> String {
        let (standing, neuron) = (&self.standing, self.standing.neuron);
        let immunity = match standing.immunity_left {
            0 => format!("ended at block {}", count(standing.immunity_ends)),
            left => format!(
                "until block {}: {} blocks more, about {}",
                count(standing.immunity_ends),
                count(left),
                duration(left as f64 * seconds_per_block)
            ),
        };
        let next = match self.wait {
            None => "taken now".to_owned(),
            Some(wait) => format!(
                "taken at block {}, in about {}",
                count(wait.until_block),
                duration(wait.num_blocks as f64 * seconds_per_block)
            ),
        };
        let mut rows = vec![
            ("immunity", immunity),
            ("replacement", self.replacement(status)),
            ("incentive", format!("{:.5}", share(neuron.incentive))),
            ("pay", self.pay_sentence(status.currency)),
            ("model", self.model()),
        ];
        if standing.backers.is_empty() {
            rows.push(("weight from", "no validator that counts".to_owned()));
        }
        for (index, backer) in standing.backers.iter().enumerate() {
            let told = format!(
                "{} (uid {}): {:.5} of its weights; it has {:.5} of the validators' stake",
                backer.neuron.hotkey, backer.neuron.uid, backer.weight_share, backer.stake_share
            );
            rows.push((if index == 0 { "weight from" } else { "" }, told));
        }
        rows.extend([("registration", self.break_even(status)), ("next commitment", next)]);
        format!(
            "{}: uid {}, registered at block {}\n{}",
            neuron.hotkey,
            neuron.uid,
            count(neuron.registered_at),
            list(&rows)
        )
    }

    fn model(&self) -> String {
        let Some(commitment) = self.commitment else { return "none committed".to_owned() };
        let (shown, block) = (shown(commitment), count(commitment.block));
        match commitment.metadata() {
            None => format!("none: `{shown}` at block {block} names no model"),
            Some(_) => format!("{shown}, at block {block}"),
        }
    }

    fn break_even(&self, status: &Status) -> String {
        let cost = cost(status);
        match (status.registration_cost, self.pay.break_even_days) {
            (None, _) => cost,
            (Some(_), Some(days)) => format!("{cost}; break-even in {days:.1} days at the present pay"),
            (Some(0), None) => "costs nothing now".to_owned(),
            (Some(_), None) => format!("{cost}; break-even never at the present pay"),
        }
    }

    fn replacement(&self, status: &Status) -> String {
        if self.standing.free_places > 0 {
            return format!(
                "nobody is replaced while {} of {} places are free",
                self.standing.free_places, status.max_uids
            );
        }
        let is_immune = self.standing.immunity_left > 0;
        match self.standing.rank {
            None => "immune".to_owned(),
            Some((rank, of)) if is_immune => {
                format!("number {rank} of {of}, for all are immune, which protects nobody")
            }
            Some((1, of)) => format!("next of {of} that can be replaced"),
            Some((rank, of)) => format!("number {rank} of {of} that can be replaced"),
        }
    }

    fn pay_sentence(&self, currency: Currency) -> String {
        match currency {
            Currency::Tao => format!("{:.3} TAO a day, as miner and as validator", self.pay.per_day),
            Currency::Alpha { price } => format!(
                "{:.3} alpha a day, as miner and as validator: {:.3} TAO at the present price of {price:.6}",
                self.pay.per_day, self.pay.tao_per_day
            ),
        }
    }

    fn json(&self, status: &Status, seconds_per_block: f64) -> Value {
        let (standing, neuron) = (&self.standing, self.standing.neuron);
        let validators: Vec<Value> = standing
            .backers
            .iter()
            .map(|backer| {
                json!({
                    "uid": backer.neuron.uid,
                    "hotkey": backer.neuron.hotkey,
                    "weight_share": backer.weight_share,
                    "stake_share": backer.stake_share,
                })
            })
            .collect();
        json!({
            "hotkey": neuron.hotkey,
            "registered": true,
            "uid": neuron.uid,
            "registered_at": neuron.registered_at,
            "immunity_ends": standing.immunity_ends,
            "immunity_blocks_left": standing.immunity_left,
            "immunity_seconds_left": standing.immunity_left as f64 * seconds_per_block,
            "replacement_rank": standing.rank.map(|(rank, _)| rank),
            "num_replaceable": standing.rank.map(|(_, of)| of),
            "free_places": standing.free_places,
            "incentive": neuron.incentive,
            "emission": neuron.emission,
            "currency": currency_name(status.currency),
            "per_day": self.pay.per_day,
            "tao_per_day": self.pay.tao_per_day,
            "commitment": self.commitment.map(|commitment| commitments::json(&neuron.hotkey, commitment)),
            "is_model": self.commitment.is_some_and(|commitment| commitment.metadata().is_some()),
            "weight_from": validators,
            "registration_cost": status.registration_cost,
            "break_even_days": self.pay.break_even_days,
            "next_commit_block": self.wait.map(|wait| wait.until_block),
        })
    }
}

fn cost(status: &Status) -> String {
    match status.registration_cost {
        None => "costs nothing".to_owned(),
        Some(cost) => format!("costs {} TAO now", tao(cost)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::chain::ledger::{Ledger, Settings};
    use crate::chain::{FULL_SHARE, UNITS_PER_TAO};
    use crate::commands::chain::tests::Stopped;

    /// At block 5,000, with blocks of 12 s: a validator, an eldest miner that earns nothing, one that earns a
    /// fifth and has committed a model, and a newcomer. No place is free.
    fn ledger(dir: &tempfile::TempDir) -> Ledger {
        let clock = Stopped(Arc::new(AtomicU64::new(4_000 * 12_000)));
        let settings = Settings { max_uids: 4, immunity_period: 1_000, ..Settings::new(1_000, 0, 12_000) };
        Ledger::create_with_clock(&dir.path().join("ledger.sqlite"), &settings, Arc::new(clock), |ledger| {
            for (hotkey, at) in [("validator", 1_000), ("idle", 1_500), ("earner", 2_000), ("new", 4_900)] {
                ledger.register_at(hotkey, at)?;
            }
            ledger.set_stake(0, 1_000 * UNITS_PER_TAO)?;
            ledger.set_permit(0, true)?;
            ledger.put_weights(0, &[(1, 100), (2, 300)])?;
            ledger.set_incentives(&[(2, FULL_SHARE / 5)])?;
            ledger.commit_at("earner", b"me:model:0123:abc=", 4_950)?;
            ledger.commit_at("new", b"hello\x1b[2J", 4_000)
        })
        .unwrap()
    }

    #[test]
    fn what_a_miner_wants_to_know_is_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(&dir);
        let snapshot = ledger.snapshot().unwrap();
        let mut status = ledger.status().unwrap();
        status.registration_cost = Some(5 * UNITS_PER_TAO);
        let told = |status: &Status, hotkey: &str, lines: &[&str]| {
            let text = Report::of(&ledger, &snapshot, status, hotkey).unwrap().text(status, 12.0);
            lines.iter().for_each(|line| assert!(text.contains(line), "no {line:?} in\n{text}"));
        };
        // A fifth of 5.625 TAO in each epoch of 4,332 s.
        told(
            &status,
            "earner",
            &[
                "earner: uid 2, registered at block 2,000\n",
                "  immunity         ended at block 3,000\n",
                "  replacement      number 2 of 3 that can be replaced\n",
                "  incentive        0.20000\n",
                "  pay              22.438 TAO a day, as miner and as validator\n",
                "  model            me:model:0123:abc=, at block 4,950\n",
                "  weight from      validator (uid 0): 0.75000 of its weights; it has 1.00000 of the validators' stake\n",
                "  registration     costs 5 TAO now; break-even in 0.2 days at the present pay\n",
                "  next commitment  taken at block 5,050, in about 10 min",
            ],
        );
        told(
            &status,
            "idle",
            &[
                "  replacement      next of 3 that can be replaced\n",
                "  model            none committed",
                "never at the present pay",
                "taken now",
            ],
        );
        // The other half of an epoch's emission is the only validator's.
        told(
            &status,
            "validator",
            &["  replacement      number 3 of 3 that can be replaced\n", "  pay              112.188 TAO a day"],
        );
        told(
            &status,
            "new",
            &[
                "  immunity         until block 5,900: 900 blocks more, about 3 h 0 min\n",
                "  replacement      immune\n",
                "none: `hello\u{fffd}[2J` at block 4,000 names no model\n",
                "  weight from      no validator that counts\n",
            ],
        );
        status.currency = Currency::Alpha { price: 0.25 };
        told(
            &status,
            "earner",
            &[
                "22.438 alpha a day, as miner and as validator: 5.609 TAO at the present price of 0.250000\n",
                "in 0.9 days",
            ],
        );
        told(&status, "stranger", &["stranger: the hotkey `stranger` is not registered", "costs 5 TAO now"]);
        let object = Report::of(&ledger, &snapshot, &status, "earner").unwrap().json(&status, 12.0);
        assert_eq!((&object["replacement_rank"], &object["free_places"]), (&json!(2), &json!(0)));
        assert_eq!((&object["currency"], &object["next_commit_block"]), (&json!("alpha"), &json!(5_050)));
    }
}
