//! What came of a comparison, in words and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::entry::Entry;
use crate::data::PAGE_DOCUMENTS;
use crate::data::pages::Draw;
use crate::figures::{bytes, count, duration};
use crate::hub::fetch::Unreadable;
use crate::metrics::jsonl;
use crate::metrics::table::table;
use crate::rules::Rules;
use crate::score::comparison::{self, Compared, Standing};
use crate::score::paired::{Difference, MIN_PAGES, Unit, difference};
use crate::score::verdicts::{Pair, Verdict};

/// What `--until-certain` found.
pub(super) struct Verdicts {
    pub(super) level: f64,
    pub(super) pairs: Vec<Pair>,
}

pub(super) struct Report<'a> {
    pub(super) entries: Vec<Entry>,
    pub(super) draw: Draw,
    /// How many rows of the data set on these pages the recipe's training may have read; `None`: it trains on other text.
    pub(super) open_to_training: Option<u64>,
    pub(super) verdicts: Option<Verdicts>,
    /// Pages that a validator's step has.
    pub(super) pages_per_step: usize,
    /// Rows that it has, by the pages that were drawn.
    pub(super) rows_per_step: f64,
    /// The chain's; `None` where folders only were compared.
    pub(super) block: Option<u64>,
    pub(super) rules: &'a Rules,
    pub(super) seed: u64,
    pub(super) predicted: Option<f64>,
    pub(super) took: f64,
}

/// The models of which something is known, in numbers.
struct Figures<'a> {
    entries: Vec<&'a Entry>,
    compared: Vec<Compared<'a>>,
    standings: Vec<Standing>,
    /// Place of the model that the others are held against.
    leader: usize,
    /// To the leader; of the leader there is none.
    differences: Vec<Option<Difference>>,
    wins: Vec<Vec<u64>>,
}

impl Report<'_> {
    /// The models of which something is known, on the batches that all were scored on. With `--until-certain` those whose
    /// verdicts stand have seen fewer pages than others; their differences are on the batches that both have seen.
    fn figures(&self) -> Figures<'_> {
        let entries: Vec<&Entry> = self.entries.iter().filter(|entry| entry.is_known()).collect();
        let num_batches = entries.iter().map(|entry| entry.losses.len()).min().unwrap_or(0);
        let compared: Vec<Compared<'_>> = entries.iter().map(|entry| entry.compared(num_batches)).collect();
        let standings = comparison::standings(&compared, self.rules);
        let leader = leader(&entries, &standings);
        let difference = |(index, entry): (usize, &&Entry)| {
            (index != leader).then(|| difference(&entry.losses, &entries[leader].losses, &self.draw.row_pages))
        };
        let differences = entries.iter().enumerate().map(difference).collect();
        let wins = comparison::wins_against(&compared, self.rules);
        Figures { differences, wins, entries, compared, standings, leader }
    }

    pub(super) fn text(&self, matrix: bool) -> String {
        let figures = self.figures();
        let mut parts = vec![if figures.entries.len() > 1 {
            comparison::text_with_differences(&figures.compared, &figures.standings, &figures.differences)
        } else {
            comparison::text(&figures.compared, &figures.standings)
        }];
        parts.extend(self.entries.iter().filter_map(|entry| {
            let reason = entry.fault.as_ref()?;
            let what = match reason {
                Unreadable::Refused(_) => "",
                Unreadable::NotImplemented(_) => "left out, for nothing is known of its loss: ",
            };
            Some(format!("{}: {what}{reason}", entry.name()))
        }));
        parts.push(self.footing(&figures));
        if matrix && figures.entries.len() > 1 {
            parts.push(String::new());
            parts.push(comparison::matrix_text(&figures.compared, &figures.wins));
        }
        if let Some(verdicts) = &self.verdicts {
            parts.push(String::new());
            parts.push(self.verdicts_text(verdicts));
        }
        parts.push(String::new());
        parts.push(self.limits_text(&figures));
        parts.join("\n")
    }

    /// What the table rests on.
    fn footing(&self, figures: &Figures<'_>) -> String {
        let rows = figures.compared.first().map_or(self.draw.rows.len(), |model| model.losses.len());
        let pages = rows.checked_sub(1).map_or(0, |last| self.draw.row_pages[last] + 1);
        let mut text = format!(
            "{} rows of {} fresh {} (--seed {} draws them again)",
            count(rows as u64),
            count(pages as u64),
            if pages == 1 { "page" } else { "pages" },
            self.seed
        );
        if let Some(block) = self.block {
            write!(text, ", at block {}", count(block)).expect("writing to a text does not fail");
        }
        let num_computed: usize = self.entries.iter().map(|entry| entry.num_computed).sum();
        let num_known: usize = self.entries.iter().map(Entry::num_from_cache).sum();
        write!(
            text,
            "; {} losses computed, {} known from before; {}.",
            count(num_computed as u64),
            count(num_known as u64),
            duration(self.took)
        )
        .expect("writing to a text does not fail");
        if let Some(open) = self.open_to_training {
            let (open, all) = (count(open), count((self.draw.offsets.len() * PAGE_DOCUMENTS) as u64));
            text += &format!(
                "\n{open} of the {all} documents drawn are not among those that this recipe sets aside (data.held_out_every): its \
                 training may have read them."
            );
        }
        // Of models that have seen different numbers of pages, some may have enough of them.
        let is_by_batches =
            figures.differences.iter().flatten().map(|difference| difference.unit == Unit::Batch).reduce(|a, b| a || b);
        if is_by_batches.is_some() && figures.entries.iter().any(|entry| entry.losses.len() > rows) {
            text += "\nThe losses are on these rows, which all models have seen; each difference is on all rows that the two have \
                     seen.";
        }
        let interval = "The difference to the leader has a 95 % confidence interval";
        text += &match is_by_batches {
            Some(false) => format!("\n{interval} by pages."),
            Some(true) => format!(
                "\n{interval} by batches, as if those of a page were independent: it is too narrow. {MIN_PAGES} pages or more \
                 (--pages) give one by pages."
            ),
            None => String::new(),
        };
        text
    }

    fn verdicts_text(&self, Verdicts { level, pairs }: &Verdicts) -> String {
        let row = |pair: &Pair| {
            let name = |index: usize| {
                let entry = &self.entries[index];
                entry.uid().map_or_else(|| entry.name(), |uid| format!("{} (uid {uid})", entry.name()))
            };
            let verdict = match pair.verdict {
                Some(Verdict::Won) => "won",
                Some(Verdict::Lost) => "lost",
                None => "undecided",
            };
            let [won, lost] = pair.wins.map(count);
            vec![name(pair.model), name(pair.rival), verdict.to_owned(), count(pair.num_pages as u64), won, lost]
        };
        let mut text = match pairs.is_empty() {
            true => "There is no pair to find out about.".to_owned(),
            false => table(
                &["model", "against", "verdict", " pages", " batches won", " lost"],
                &pairs.iter().map(row).collect::<Vec<_>>(),
            ),
        };
        let num_open = pairs.iter().filter(|pair| pair.verdict.is_none()).count();
        let pages = count(self.draw.offsets.len() as u64);
        text += &format!("\nEach verdict is certain at the level {level} by itself, however often one has looked.");
        if num_open > 0 {
            text += &format!(" {num_open} of {} are undecided after {pages} pages: --pages takes more.", pairs.len());
        }
        text
    }

    /// Size and time of each model beside what validators allow.
    fn limits_text(&self, figures: &Figures<'_>) -> String {
        let rows_per_step = self.rows_per_step;
        let seconds_allowed = self.rules.validator.seconds_per_model;
        let text_of = |seconds: Option<f64>| seconds.map(duration).unwrap_or_default();
        let row = |entry: &&Entry| {
            let limit = self.rules.criteria_for(entry.block).max_repo_bytes;
            let part = |bytes: u64| format!("{:.1} %", bytes as f64 / limit as f64 * 100.0);
            vec![
                entry.name(),
                entry.bytes.map(bytes).unwrap_or_default(),
                entry.bytes.map(part).unwrap_or_default(),
                text_of((entry.num_computed > 0).then_some(entry.seconds)),
                text_of(entry.seconds_for(rows_per_step)),
            ]
        };
        let rows: Vec<Vec<String>> = figures.entries.iter().map(row).collect();
        let table = table(&["model", " size", " of the limit", " scored in", " a step's rows"], &rows);
        format!(
            "{table}\nA repository may have {}. Validators give a model {seconds_allowed} s for a step of {} pages, about \
             {rows_per_step:.0} rows; the times are this machine's.",
            bytes(self.rules.criteria.max_repo_bytes),
            self.pages_per_step
        )
    }

    pub(super) fn json(&self) -> Value {
        let figures = self.figures();
        let rows_per_step = self.rows_per_step;
        let known = figures.entries.iter().enumerate().map(|(index, entry)| {
            let (mut model, standing) = (entry.json(), &figures.standings[index]);
            model["average_loss"] = jsonl::number(standing.loss);
            model["standard_error"] = jsonl::number(standing.standard_error);
            model["win_rate"] = json!(standing.win_rate);
            model["wins"] = json!(standing.wins);
            model["weight"] = json!(standing.weight);
            model["difference"] = json!(figures.differences[index].map(|difference| {
                json!({
                    "mean": jsonl::number(difference.mean),
                    "margin_95": jsonl::number(difference.margin),
                    "unit": if difference.unit == Unit::Page { "page" } else { "batch" },
                    "units": difference.num_units,
                })
            }));
            model["step_seconds"] = json!(entry.seconds_for(rows_per_step));
            model
        });
        let unknown = self.entries.iter().filter(|entry| !entry.is_known());
        let models: Vec<Value> = known.chain(unknown.map(Entry::json)).collect();
        json!({
            "block": self.block,
            "seed": self.seed,
            "pages": self.draw.offsets,
            "batches": self.draw.rows.len(),
            "batch_pages": self.draw.row_pages,
            "rows_open_to_training": self.open_to_training,
            "compared_batches": figures.compared.first().map_or(0, |model| model.losses.len()),
            "scored": self.entries.iter().map(|entry| entry.num_computed).sum::<usize>(),
            "from_cache": self.entries.iter().map(Entry::num_from_cache).sum::<usize>(),
            "predicted_seconds": self.predicted,
            "seconds": self.took,
            "epsilon": self.rules.epsilon,
            "limits": {
                "seconds_per_model": self.rules.validator.seconds_per_model,
                "repository_bytes": self.rules.criteria.max_repo_bytes,
                "step_rows": rows_per_step,
            },
            "leader": (!figures.entries.is_empty()).then_some(figures.leader),
            "matrix": figures.wins,
            "until_certain": self.verdicts.as_ref().map(|verdicts| self.verdicts_json(verdicts)),
            "models": models,
        })
    }

    /// Models are named by their places in `models`: all known ones in their order, then the others.
    fn verdicts_json(&self, Verdicts { level, pairs }: &Verdicts) -> Value {
        let place = |index: usize| self.entries[..index].iter().filter(|entry| entry.is_known()).count();
        let pair = |pair: &Pair| {
            json!({
                "model": place(pair.model),
                "rival": place(pair.rival),
                "verdict": match pair.verdict {
                    Some(Verdict::Won) => "won",
                    Some(Verdict::Lost) => "lost",
                    None => "undecided",
                },
                "pages": pair.num_pages,
                "wins": pair.wins[0],
                "losses": pair.wins[1],
            })
        };
        json!({"level": level, "pairs": pairs.iter().map(pair).collect::<Vec<_>>()})
    }
}

/// The model with the highest incentive; where none earns anything, the one with the lowest mean loss. The first of equals.
fn leader(entries: &[&Entry], standings: &[Standing]) -> usize {
    let best_paid = (0..entries.len()).rev().max_by_key(|&index| entries[index].incentive());
    match best_paid.filter(|&index| entries[index].incentive() > 0) {
        Some(index) => index,
        None => {
            let loss =
                |index: usize| if standings[index].loss.is_nan() { f64::INFINITY } else { standings[index].loss };
            (0..entries.len()).min_by(|&a, &b| loss(a).total_cmp(&loss(b))).unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::entry::{Miner, Model};
    use super::*;
    use crate::hub::model_id::{ModelId, ModelMetadata};

    /// A published model at block 5 + uid with losses on two pages of two batches.
    fn entry(uid: u16, incentive: u16, losses: [f64; 4]) -> Entry {
        let id = ModelId { namespace: "a".to_owned(), name: format!("m{uid}"), commit: None, hash: None };
        let metadata = ModelMetadata { id, block: (5 + u64::from(uid)).try_into().unwrap() };
        let miner = Miner { uid, hotkey: format!("key{uid}"), incentive, metadata };
        Entry { losses: losses.to_vec(), ..Entry::new(Model::Wanted(miner), 5 + u64::from(uid), false) }
    }

    fn report<'a>(entries: Vec<Entry>, rules: &'a Rules) -> Report<'a> {
        let draw = Draw { offsets: vec![3, 9], rows: vec![vec![1, 2]; 4], row_pages: vec![0, 0, 1, 1] };
        Report {
            entries,
            draw,
            open_to_training: None,
            verdicts: None,
            pages_per_step: 3,
            rows_per_step: 6.0,
            block: Some(77),
            rules,
            seed: 1,
            predicted: None,
            took: 1.0,
        }
    }

    #[test]
    fn the_best_paid_model_leads_and_where_nobody_earns_the_one_with_the_lowest_loss() {
        let rules = Rules::default();
        let led_by = |incentives: [u16; 3], first: f64| {
            let losses = [[first; 4], [3.0; 4], [2.0; 4]];
            let entries =
                (0..3).map(|uid| entry(uid, incentives[usize::from(uid)], losses[usize::from(uid)])).collect();
            report(entries, &rules).figures().leader
        };
        assert_eq!(led_by([1, 9, 3], 4.0), 1);
        assert_eq!(led_by([9, 9, 3], 4.0), 0);
        assert_eq!(led_by([0, 0, 0], 4.0), 2);
        assert_eq!(led_by([0, 0, 0], f64::NAN), 2);
        assert_eq!(led_by([0, 0, 0], 2.0), 0);
    }

    #[test]
    fn what_training_may_have_read_is_told_where_it_reads_the_same_data_set() {
        let rules = Rules::default();
        let told = |open_to_training| {
            let report = Report { open_to_training, ..report(vec![entry(0, 1, [4.0; 4])], &rules) };
            (report.text(false).contains("training may have read"), report.json()["rows_open_to_training"].clone())
        };
        assert_eq!(told(None), (false, json!(null)));
        assert_eq!(told(Some(151)), (true, json!(151)));
        let report = Report { open_to_training: Some(151), ..report(vec![entry(0, 1, [4.0; 4])], &rules) };
        assert!(report.text(false).contains("\n151 of the 200 documents drawn are not among those"));
    }

    #[test]
    fn models_of_which_nothing_is_known_are_left_out_and_named() {
        let rules = Rules::default();
        let mut entries = vec![entry(0, 0, [4.0; 4]), entry(1, 9, [3.0; 4]), entry(2, 0, [5.0; 4])];
        entries[1].fault = Some(Unreadable::NotImplemented("a new kind".to_owned()));
        entries[2].fault = Some(Unreadable::Refused("too large".to_owned()));
        entries[0].num_computed = 4;
        entries[0].seconds = 8.0;
        let report = report(entries, &rules);
        let json = report.json();
        assert_eq!(json["models"][2]["not_implemented"], "a new kind");
        assert_eq!((&json["models"][1]["refused"], &json["models"][1]["from_cache"]), (&json!("too large"), &json!(0)));
        assert_eq!((&json["leader"], &json["matrix"]), (&json!(0), &json!([[0, 4], [0, 0]])));
        // Four rows in 8 seconds, and six rows in a validator's step.
        assert_eq!((&json["models"][0]["step_seconds"], &json["scored"]), (&json!(12.0), &json!(4)));
        let text = report.text(false);
        assert!(text.contains("a/m1: left out, for nothing is known of its loss: a new kind"), "{text}");
        assert!(text.contains("a/m2: too large"), "{text}");
        assert!(text.contains("4 rows of 2 fresh pages") && text.contains("too narrow"), "{text}");
    }

    #[test]
    fn models_that_saw_fewer_pages_are_compared_on_those_that_all_have_seen() {
        let rules = Rules::default();
        let mut entries =
            vec![entry(0, 9, [4.0, 4.0, 4.0, 4.0]), entry(1, 0, [3.0, 3.0, 9.0, 9.0]), entry(2, 0, [5.0; 4])];
        entries[2].losses.truncate(2);
        let report = report(entries, &rules);
        let json = report.json();
        assert_eq!((&json["compared_batches"], &json["models"][1]["wins"]), (&json!(2), &json!(4)));
        assert_eq!(json["models"][1]["average_loss"], 3.0);
        // The difference rests on all that both have seen: -1, -1, 5, 5.
        assert_eq!(json["models"][1]["difference"]["mean"], 2.0);
        assert_eq!(json["models"][2]["difference"]["mean"], 1.0);
        let text = report.text(false);
        assert!(
            text.contains("2 rows of 1 fresh page ") && text.contains("difference is on all rows that the two"),
            "{text}"
        );
    }
}
