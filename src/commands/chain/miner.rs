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
    let target = Target::of(args)?;
    let asked = if hotkeys.is_empty() { target.own_hotkeys() } else { hotkeys };
    ensure!(!asked.is_empty(), input("no hotkey is named: give one by --hotkey, or a recipe by --recipe"));
    let (chain, hotkeys) = target.open_for(asked)?;
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
        let mut rows = vec![
            ("immunity", immunity),
            ("replacement", self.replacement(status)),
            ("incentive", format!("{:.5}", share(neuron.incentive))),
            ("pay", self.pay_sentence(status.currency)),
            (
                "model",
                match self.commitment {
                    None => "none committed".to_owned(),
                    Some(commitment) if commitment.metadata().is_none() => {
                        format!("none: `{}` at block {} names no model", shown(commitment), count(commitment.block))
                    }
                    Some(commitment) => format!("{}, at block {}", shown(commitment), count(commitment.block)),
                },
            ),
        ];
        if standing.backers.is_empty() {
            rows.push(("weight from", "no validator that counts".to_owned()));
        }
        for (index, backer) in standing.backers.iter().enumerate() {
            rows.push((
                if index == 0 { "weight from" } else { "" },
                format!(
                    "{} (uid {}): {:.5} of its weights; it has {:.5} of the validators' stake",
                    backer.neuron.hotkey, backer.neuron.uid, backer.weight_share, backer.stake_share
                ),
            ));
        }
        rows.push((
            "registration",
            match (status.registration_cost, self.pay.break_even_days) {
                (None, _) => cost(status),
                (Some(_), Some(days)) => format!("{}, which the present pay brings in in {days:.1} days", cost(status)),
                (Some(_), None) => format!("{}, which the present pay never brings in", cost(status)),
            },
        ));
        rows.push((
            "next commitment",
            match self.wait {
                None => "taken now".to_owned(),
                Some(wait) => format!(
                    "taken at block {}, in about {}",
                    count(wait.until_block),
                    duration(wait.num_blocks as f64 * seconds_per_block)
                ),
            },
        ));
        format!(
            "{}: uid {}, registered at block {}\n{}",
            neuron.hotkey,
            neuron.uid,
            count(neuron.registered_at),
            list(&rows)
        )
    }

    fn replacement(&self, status: &Status) -> String {
        let rank = match self.standing.rank {
            None => "immune".to_owned(),
            Some((1, _)) => "next to be replaced".to_owned(),
            Some((rank, of)) => format!("number {rank} of {of} that can be replaced"),
        };
        match self.standing.free_places {
            0 => rank,
            free => format!("{rank}; nobody is replaced now, for {free} of {} places are free", status.max_uids),
        }
    }

    fn pay_sentence(&self, currency: Currency) -> String {
        match currency {
            Currency::Tao => format!("{:.3} TAO a day", self.pay.per_day),
            Currency::Alpha { price } => format!(
                "{:.3} alpha a day, {:.3} TAO at the present price of {price}",
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
