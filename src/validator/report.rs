//! What a step came to: the two tables that the reference prints, and the row that it sends to Weights & Biases, as a line
//! of `steps.jsonl`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::metrics::jsonl::number;
use crate::metrics::table::table;

/// The least weight that the second table shows is above this.
const SHOWN_WEIGHT: f32 = 0.001;

/// A step.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) step: u64,
    pub(super) unix_ms: u64,
    pub(super) block: u64,
    /// The first document of each page.
    pub(super) pages: Vec<usize>,
    /// In the order of the step.
    pub(super) rows: Vec<Row>,
    pub(super) perf: Perf,
}

/// How a uid fared.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) uid: u16,
    /// `None`: no model is known.
    pub(super) block: Option<u64>,
    pub(super) average_loss: f64,
    pub(super) win_rate: f64,
    pub(super) wins: u64,
    /// After the step.
    pub(super) weight: f32,
}

/// How long models took.
#[derive(Clone, Debug, Default)]
pub(super) struct Perf {
    /// To find the folder of each; reading it is part of computing here.
    pub(super) find: Vec<Duration>,
    /// To read it and compute its losses.
    pub(super) compute: Vec<Duration>,
}

impl Row {
    fn block(&self) -> Value {
        self.block.map_or_else(|| number(f64::INFINITY), Value::from)
    }
}

impl Report {
    /// The tables "Step" and "Weights > 0.001", the latter of all `weights`.
    pub(super) fn tables(&self, weights: &[f32]) -> String {
        let row = |row: &Row| {
            vec![
                row.uid.to_string(),
                format!("{:.4}", row.average_loss),
                format!("{:.4}", row.win_rate),
                row.wins.to_string(),
                format!("{:.4}", row.weight),
                row.block.map_or_else(|| "inf".to_owned(), |block| block.to_string()),
            ]
        };
        let header = [" uid", " average_loss", " win_rate", " win_total", " weights", " block"];
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        let mut shown: Vec<(usize, f32)> =
            weights.iter().copied().enumerate().filter(|&(_, weight)| weight > SHOWN_WEIGHT).collect();
        shown.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let shown: Vec<_> = shown.iter().map(|(uid, weight)| vec![uid.to_string(), format!("{weight:.4}")]).collect();
        format!(
            "Step {}\n{}\n\nWeights > {SHOWN_WEIGHT}\n{}",
            self.step,
            table(&header, &rows),
            table(&[" uid", " weight"], &shown)
        )
    }

    /// The row, on one line.
    pub(super) fn json(&self) -> String {
        let time = number(self.unix_ms as f64 / 1000.0);
        let by_uid = |value: &dyn Fn(&Row) -> Value| -> Map<String, Value> {
            self.rows.iter().map(|row| (row.uid.to_string(), value(row))).collect()
        };
        let step_log = json!({
            "timestamp": time,
            "pages": self.pages,
            "uids": self.rows.iter().map(|row| row.uid).collect::<Vec<_>>(),
            "uid_data": by_uid(&|row| json!({
                "uid": row.uid,
                "block": row.block(),
                "average_loss": number(row.average_loss),
                "win_rate": number(row.win_rate),
                "win_total": row.wins,
                "weight": number(f64::from(row.weight)),
            })),
        });
        let row = json!({
            "step": self.step,
            "time": time,
            "block": self.block,
            "uid_data": by_uid(&|row| number(row.average_loss)),
            "weight_data": by_uid(&|row| number(f64::from(row.weight))),
            "load_model_perf_log": summary("Eval: Load model", &self.perf.find),
            "compute_model_perf_log": summary("Eval: Compute loss", &self.perf.compute),
            "original_format_json": step_log.to_string(),
        });
        row.to_string()
    }
}

/// Times in the words of the reference.
fn summary(name: &str, times: &[Duration]) -> String {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_nanos() as f64).collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else {
        return format!("{name} performance: N=0");
    };
    // Between the two nearest in proportion, as NumPy does.
    let percentile = |part: f64| {
        let place = part * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    };
    format!(
        "{name} performance: N={} | Min={} | Max={} | Median={} | P90={}",
        sorted.len(),
        with_unit(least),
        with_unit(most),
        with_unit(percentile(0.5)),
        with_unit(percentile(0.9))
    )
}

fn with_unit(nanoseconds: f64) -> String {
    let units = [("min", 60e9), ("s", 1e9), ("ms", 1e6), ("μs", 1e3)];
    match units.into_iter().find(|&(_, divisor)| nanoseconds >= divisor) {
        Some((unit, divisor)) => format!("{:.2} {unit}", nanoseconds / divisor),
        None => format!("{nanoseconds:.2} ns"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report() -> Report {
        let row = |uid, block, average_loss, wins, weight| Row {
            uid,
            block,
            average_loss,
            win_rate: wins as f64 / 6.0,
            wins,
            weight,
        };
        Report {
            step: 7,
            unix_ms: 1_710_000_000_500,
            block: 2_485_123,
            pages: vec![3, 968],
            rows: vec![
                row(8, Some(2_480_000), 3.25, 5, 0.75),
                row(0, None, f64::INFINITY, 0, 0.001),
                row(201, Some(2_481_000), f64::NAN, 1, 0.125),
            ],
            perf: Perf::default(),
        }
    }

    #[test]
    fn the_tables_are_the_references() {
        let mut weights = vec![0.0; 202];
        (weights[0], weights[8], weights[201], weights[5]) = (0.001, 0.75, 0.125, 0.5);
        assert_eq!(
            report().tables(&weights),
            "Step 7\n\
             uid  average_loss  win_rate  win_total  weights    block\n  \
               8        3.2500    0.8333          5   0.7500  2480000\n  \
               0           inf    0.0000          0   0.0010      inf\n\
             201           NaN    0.1667          1   0.1250  2481000\n\n\
             Weights > 0.001\n\
             uid  weight\n  \
               8  0.7500\n  \
               5  0.5000\n\
             201  0.1250"
        );
    }

    #[test]
    fn the_row_has_the_references_keys_and_is_json_whatever_the_losses() {
        let text = report().json();
        assert!(!text.contains('\n'));
        let row: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
        let perf = ["load_model_perf_log", "compute_model_perf_log"];
        assert_eq!(
            keys,
            ["step", "time", "block", "uid_data", "weight_data", perf[0], perf[1], "original_format_json"]
        );
        assert_eq!((&row["time"], &row["block"]), (&json!(1_710_000_000.5), &json!(2_485_123)));
        assert_eq!(row["uid_data"], json!({"8": 3.25, "0": "inf", "201": "nan"}));
        assert_eq!(row["weight_data"], json!({"8": 0.75, "0": 0.001_f32 as f64, "201": 0.125}));
        let log: Value = serde_json::from_str(row["original_format_json"].as_str().unwrap()).unwrap();
        assert_eq!((&log["pages"], &log["uids"]), (&json!([3, 968]), &json!([8, 0, 201])));
        assert_eq!(
            log["uid_data"]["0"],
            json!({"uid": 0, "block": "inf", "average_loss": "inf", "win_rate": 0.0, "win_total": 0, "weight": 0.001_f32 as f64})
        );
    }

    /// By the reference's own `PerfMonitor` for 1 ms, 2 s, 90 s.
    #[test]
    fn times_are_summed_up_in_the_references_words() {
        assert_eq!(summary("Eval: Load model", &[]), "Eval: Load model performance: N=0");
        let times = [2_000, 1, 90_000].map(Duration::from_millis);
        assert_eq!(
            summary("x", &times),
            "x performance: N=3 | Min=1.00 ms | Max=1.50 min | Median=2.00 s | P90=1.21 min"
        );
        assert_eq!((with_unit(12.0), with_unit(1_500.0)), ("12.00 ns".to_owned(), "1.50 μs".to_owned()));
    }
}
