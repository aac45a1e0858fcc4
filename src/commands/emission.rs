//! `assay emission`: what the validators' weights pay, and what they would pay if a model won more often.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use super::Place;
use crate::chain::tempo;
use crate::chain::{Chain, FULL_SHARE, Neuron, Snapshot, UNITS_PER_TAO};
use crate::cli::EmissionArgs;
use crate::error::{Failure, input};
use crate::figures::{count, duration};
use crate::metrics::printer::Printer;
use crate::metrics::table::table;
use crate::network::Network;
use crate::score::what_if;
use crate::score::yuma::{self, Epoch, Input};

/// Runs the command.
pub fn run(args: &EmissionArgs, printer: &Printer) -> Result<()> {
    let place = Place::of(&args.network)?;
    let rules = place.rules();
    let network = Network::open(&place.hub, &place.chain, printer)?;
    let chain = network.chain.as_ref();
    let snapshot = chain.snapshot()?;
    let uids = asked_for(args, &network.hotkeys, chain, &snapshot)?;
    let report = Report::of(chain, snapshot, uids, args.win_rate, rules.validator.temperature)?;
    printer.result(&if args.json { report.json().to_string() } else { report.text() })
}

/// The uids of `--uid`, or of the own hotkeys that are registered.
fn asked_for(args: &EmissionArgs, own: &[String], chain: &dyn Chain, snapshot: &Snapshot) -> Result<Vec<u16>> {
    if let Some(uid) = args.uids.iter().find(|&&uid| !snapshot.neurons.iter().any(|neuron| neuron.uid == uid)) {
        return Err(input(format!("--uid {uid}: no hotkey is registered as uid {uid} on {}", chain.describe())));
    }
    if !args.uids.is_empty() {
        return Ok(args.uids.clone());
    }
    let uids: Vec<u16> = own.iter().filter_map(|hotkey| Some(snapshot.neuron(hotkey)?.uid)).collect();
    if uids.is_empty() && args.win_rate.is_some() {
        return Err(input(format!(
            "--win-rate: none of the own hotkeys ({}) is registered on {}: say by --uid whose win rate it is",
            own.join(", "),
            chain.describe()
        )));
    }
    Ok(uids)
}

struct Report {
    snapshot: Snapshot,
    chain: String,
    seconds_per_epoch: f64,
    /// The epoch that is due; `None`: no validator is active, so there is nothing to foretell.
    epoch: Option<Epoch>,
    /// Whether it still pays, then, as it last did.
    pays_without: bool,
    /// What the weights say of win rates, by uid.
    win_rates: BTreeMap<u16, f64>,
    uids: Vec<u16>,
    win_rate: Option<f64>,
    /// For each of the uids, the epoch with that win rate.
    what_if: Vec<Epoch>,
}

impl Report {
    fn of(
        chain: &dyn Chain,
        snapshot: Snapshot,
        uids: Vec<u16>,
        win_rate: Option<f64>,
        temperature: f64,
    ) -> Result<Self> {
        if snapshot.neurons.is_empty() {
            return Err(Failure::No(format!("{} holds no hotkey: nobody is paid", chain.describe())).into());
        }
        let input = Input::of(&snapshot);
        let is_active = input.validators().next().is_some();
        let mut what_if = Vec::new();
        if let Some(win_rate) = win_rate {
            if !is_active {
                return Err(Failure::No(format!("--win-rate: {}", nobody_active(&snapshot, &chain.describe()))).into());
            }
            let epoch = |&uid: &u16| yuma::epoch(&what_if::next_epoch(&input, uid, win_rate, temperature));
            what_if = uids.iter().map(epoch).collect();
        }
        Ok(Self {
            chain: chain.describe(),
            seconds_per_epoch: tempo::seconds_per_epoch(snapshot.tempo, chain.seconds_per_block()),
            epoch: is_active.then(|| yuma::epoch(&input)),
            pays_without: !chain.is_real(),
            win_rates: mean_win_rates(&input, temperature),
            snapshot,
            uids,
            win_rate,
            what_if,
        })
    }

    /// TAO a day, of an amount that an epoch pays.
    fn per_day(&self, amount: f64) -> f64 {
        tempo::per_day(amount / UNITS_PER_TAO as f64, self.seconds_per_epoch)
    }

    /// Share of the miners' pay in the next epoch, and TAO a day.
    fn as_miner(&self, neuron: &Neuron, epoch: Option<&Epoch>) -> (f64, f64) {
        let uid = usize::from(neuron.uid);
        match epoch {
            Some(epoch) => (share(epoch.incentive[uid]), self.per_day(epoch.server_emission[uid] as f64)),
            None if self.pays_without => {
                let incentive = share(neuron.incentive);
                (incentive, self.per_day(incentive * self.snapshot.consensus.emission as f64 / 2.0))
            }
            None => (0.0, 0.0),
        }
    }

    /// Miners that earn, or will, and those that are asked for; the best paid first.
    fn miners(&self) -> Vec<Miner<'_>> {
        let miner = |neuron| {
            let (foretold, per_day) = self.as_miner(neuron, self.epoch.as_ref());
            Miner { neuron, win_rate: self.win_rates.get(&neuron.uid).copied(), foretold, per_day }
        };
        let counts = |miner: &Miner<'_>| {
            miner.neuron.incentive > 0 || miner.foretold > 0.0 || self.uids.contains(&miner.neuron.uid)
        };
        let mut miners: Vec<Miner<'_>> = self.snapshot.neurons.iter().map(miner).filter(counts).collect();
        miners.sort_by(|a, b| b.per_day.total_cmp(&a.per_day).then(b.neuron.incentive.cmp(&a.neuron.incentive)));
        miners
    }

    /// Those with dividends or pay as validators: neuron, share, TAO a day.
    fn validators(&self) -> Vec<(&Neuron, f64, f64)> {
        let Some(epoch) = &self.epoch else { return Vec::new() };
        let all = self.snapshot.neurons.iter().map(|neuron| {
            let uid = usize::from(neuron.uid);
            (neuron, share(epoch.dividends[uid]), self.per_day(epoch.validator_emission[uid] as f64))
        });
        all.filter(|(_, dividends, per_day)| *dividends > 0.0 || *per_day > 0.0).collect()
    }

    /// For each of the uids: neuron, share now and then, TAO a day now and then.
    fn changes(&self) -> impl Iterator<Item = (&Neuron, [f64; 2], [f64; 2])> {
        std::iter::zip(&self.uids, &self.what_if).filter_map(|(uid, epoch)| {
            let neuron = self.snapshot.neurons.iter().find(|neuron| neuron.uid == *uid)?;
            let (now, then) = (self.as_miner(neuron, self.epoch.as_ref()), self.as_miner(neuron, Some(epoch)));
            Some((neuron, [now.0, then.0], [now.1, then.1]))
        })
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        let rows: Vec<Vec<String>> = self.miners().iter().map(Miner::row).collect();
        parts.push(table(&[" uid", "hotkey", " win rate", " incentive", " foretold", " TAO a day"], &rows));
        let row = |(neuron, dividends, per_day): (&Neuron, f64, f64)| {
            let stake = neuron.stake as f64 / UNITS_PER_TAO as f64;
            vec![
                neuron.uid.to_string(),
                neuron.hotkey.clone(),
                format!("{stake:.3}"),
                format!("{dividends:.5}"),
                format!("{per_day:.3}"),
            ]
        };
        let rows: Vec<Vec<String>> = self.validators().into_iter().map(row).collect();
        if !rows.is_empty() {
            parts.push(table(&[" uid", "validator", " stake in TAO", " dividends", " TAO a day"], &rows));
        }
        let emission = self.snapshot.consensus.emission as f64;
        parts.push(format!(
            "At block {}; active validators: {}. An epoch each {} pays {:.3} TAO, {:.3} TAO a day, half of it to miners.",
            count(self.snapshot.block),
            Input::of(&self.snapshot).validators().count(),
            duration(self.seconds_per_epoch),
            emission / UNITS_PER_TAO as f64,
            self.per_day(emission)
        ));
        if self.epoch.is_none() {
            let consequence = if self.pays_without { "It goes on paying as it last did." } else { "No miner earns." };
            parts.push(format!("{}. {consequence}", capitalized(&nobody_active(&self.snapshot, &self.chain))));
        }
        for (neuron, shares, per_day) in self.changes() {
            parts.push(format!(
                "With a win rate of {} in every validator's step, uid {} ({}) would have {:.5} of the incentive and {:.3} TAO a \
                 day, instead of {:.5} and {:.3}.",
                self.win_rate.unwrap_or_default(),
                neuron.uid,
                neuron.hotkey,
                shares[1],
                per_day[1],
                shares[0],
                per_day[0]
            ));
        }
        parts.join("\n\n")
    }

    fn json(&self) -> Value {
        let validators = self.validators().into_iter().map(|(neuron, dividends, per_day)| {
            let stake = neuron.stake as f64 / UNITS_PER_TAO as f64;
            json!({
                "uid": neuron.uid, "hotkey": neuron.hotkey, "stake_tao": stake,
                "dividends": dividends, "tao_per_day": per_day,
            })
        });
        let what_if = self.changes().map(|(neuron, shares, per_day)| {
            json!({
                "uid": neuron.uid, "hotkey": neuron.hotkey, "win_rate": self.win_rate,
                "incentive_foretold": shares[1], "tao_per_day": per_day[1],
                "instead_of": {"incentive_foretold": shares[0], "tao_per_day": per_day[0]},
            })
        });
        json!({
            "block": self.snapshot.block,
            "seconds_per_epoch": self.seconds_per_epoch,
            "emission_tao": self.snapshot.consensus.emission as f64 / UNITS_PER_TAO as f64,
            "has_active_validator": self.epoch.is_some(),
            "miners": self.miners().iter().map(Miner::json).collect::<Vec<_>>(),
            "validators": validators.collect::<Vec<_>>(),
            "what_if": what_if.collect::<Vec<_>>(),
        })
    }
}

struct Miner<'a> {
    neuron: &'a Neuron,
    win_rate: Option<f64>,
    foretold: f64,
    per_day: f64,
}

impl Miner<'_> {
    fn row(&self) -> Vec<String> {
        vec![
            self.neuron.uid.to_string(),
            self.neuron.hotkey.clone(),
            self.win_rate.map_or_else(String::new, |rate| format!("{rate:.3}")),
            format!("{:.5}", share(self.neuron.incentive)),
            format!("{:.5}", self.foretold),
            format!("{:.3}", self.per_day),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "uid": self.neuron.uid, "hotkey": self.neuron.hotkey, "win_rate": self.win_rate,
            "incentive": share(self.neuron.incentive), "incentive_foretold": self.foretold, "tao_per_day": self.per_day,
        })
    }
}

fn share(share: u16) -> f64 {
    f64::from(share) / f64::from(FULL_SHARE)
}

/// What the validators that give a uid weight say of its win rate, on average by stake.
fn mean_win_rates(input: &Input, temperature: f64) -> BTreeMap<u16, f64> {
    let mut sums = BTreeMap::<u16, (f64, f64)>::new();
    for validator in input.validators() {
        let stake = input.stake[validator] as f64;
        for (uid, rate) in what_if::win_rates(&input.current_weights(validator), temperature) {
            let sum = sums.entry(uid).or_default();
            *sum = (sum.0 + stake * rate, sum.1 + stake);
        }
    }
    sums.into_iter().map(|(uid, (sum, stake))| (uid, sum / stake)).collect()
}

fn nobody_active(snapshot: &Snapshot, chain: &str) -> String {
    format!("no validator of {chain} has set weights within the last {} blocks", count(snapshot.activity_cutoff))
}

fn capitalized(sentence: &str) -> String {
    let mut characters = sentence.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::chain::ledger::{Ledger, Settings};
    use crate::clock::{Clock, SystemClock};
    use crate::error::exit_code;

    /// An embedded chain with blocks of a millisecond, of whose validators' weights little is seen after ten of them.
    fn ledger(dir: &tempfile::TempDir) -> Ledger {
        let settings = Settings { activity_cutoff: 10, ..Settings::new(1_000, SystemClock.unix_ms(), 1) };
        Ledger::create(&dir.path().join("ledger.sqlite"), &settings).unwrap()
    }

    #[test]
    fn while_validators_sleep_pay_is_what_it_was_and_nothing_is_foretold() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(&dir);
        let report = |win_rate| Report::of(&ledger, ledger.snapshot().unwrap(), vec![1], win_rate, 0.04);
        let nobody = report(None).err().unwrap();
        assert_eq!(exit_code(&nobody), 4);
        assert!(nobody.to_string().ends_with("holds no hotkey: nobody is paid"), "{nobody}");

        ledger.register("validator").unwrap();
        ledger.register("miner").unwrap();
        ledger.set_stake(0, UNITS_PER_TAO).unwrap();
        ledger.set_permit(0, true).unwrap();
        ledger.put_weights(0, &[(1, 1)]).unwrap();
        thread::sleep(Duration::from_millis(20));
        ledger.set_incentives(&[(1, 13_107)]).unwrap();
        let text = report(None).unwrap().text();
        // A fifth of 5.625 TAO in every 0.361 s.
        assert!(text.contains("1  miner               0.20000   0.20000  269252.078"), "{text}");
        assert!(text.contains("active validators: 0"), "{text}");
        assert!(
            text.contains("has set weights within the last 10 blocks. It goes on paying as it last did."),
            "{text}"
        );
        let refused = report(Some(0.5)).err().unwrap();
        assert_eq!(exit_code(&refused), 4);
        assert!(refused.to_string().starts_with("--win-rate: no validator of the ledger"), "{refused}");
    }
}
