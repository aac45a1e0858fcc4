//! What a pass over a model does on a GPU, operation by operation, the slowest first.

use serde_json::{Value, json};

use crate::gpu::cards::Card;
use crate::gpu::profile::Operation;
use crate::metrics::table::table;

/// All runs of one operation.
pub(super) struct Group {
    name: String,
    calls: usize,
    /// 0 if nothing was timed.
    seconds: f64,
    flops: f64,
    bytes: f64,
    /// The least time that a card takes, if its peaks are known.
    floor_seconds: Option<f64>,
}

/// Operations of the same name together, the longest first.
pub(super) fn groups(operations: &[Operation], card: Option<&Card>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Operation { name, cost, seconds, .. } in operations {
        let (flops, bytes) = (cost.flops as f64, cost.bytes as f64);
        let floor = card.map(|card| cost.floor_seconds(card));
        match groups.iter_mut().find(|group| group.name == *name) {
            Some(group) => {
                group.calls += 1;
                group.seconds += seconds;
                group.flops += flops;
                group.bytes += bytes;
                group.floor_seconds = group.floor_seconds.zip(floor).map(|(one, other)| one + other);
            }
            None => {
                let (name, seconds) = (name.clone(), *seconds);
                groups.push(Group { name, calls: 1, seconds, flops, bytes, floor_seconds: floor });
            }
        }
    }
    let time = |group: &Group| [group.seconds, group.floor_seconds.unwrap_or(0.0)];
    groups.sort_by(|a, b| time(b).partial_cmp(&time(a)).expect("times are numbers"));
    groups
}

/// The least time of all of them, one after the other.
pub(super) fn floor_seconds(groups: &[Group]) -> Option<f64> {
    groups.iter().map(|group| group.floor_seconds).sum()
}

fn seconds(groups: &[Group]) -> f64 {
    groups.iter().map(|group| group.seconds).sum()
}

/// For programs.
pub(super) fn json(groups: &[Group]) -> Value {
    let all = seconds(groups);
    let of = |group: &Group| {
        json!({
            "name": group.name, "calls": group.calls, "seconds": group.seconds,
            "share": if all > 0.0 { group.seconds / all } else { 0.0 },
            "gflop": group.flops / 1e9, "gb": group.bytes / 1e9, "floor_seconds": group.floor_seconds,
        })
    };
    groups.iter().map(of).collect()
}

/// For people. Where nothing was timed, shares are those of the floor and the speeds are missing.
pub(super) fn text(groups: &[Group]) -> String {
    let (measured, floor) = (seconds(groups), floor_seconds(groups));
    let is_measured = measured > 0.0;
    let all = if is_measured { measured } else { floor.unwrap_or(0.0) };
    let number = |value: f64| if value > 0.0 { format!("{value:.1}") } else { String::new() };
    let row = |group: &Group| {
        let of_floor = |seconds: f64| format!("{:.3}", seconds * 1e3);
        let time = if is_measured { group.seconds } else { group.floor_seconds.unwrap_or(0.0) };
        let rate = |amount: f64| if is_measured { number(amount / group.seconds) } else { String::new() };
        vec![
            if all > 0.0 { format!("{:.1} %", 100.0 * time / all) } else { String::new() },
            if is_measured { of_floor(group.seconds) } else { String::new() },
            group.floor_seconds.map_or("n/a".to_owned(), of_floor),
            group.calls.to_string(),
            number(group.flops / 1e9),
            number(group.bytes / 1e6),
            rate(group.flops / 1e12),
            rate(group.bytes / 1e9),
            group.name.clone(),
        ]
    };
    let header = [" share", " ms", " floor ms", " calls", " GFLOP", " MB", " TFLOP/s", " GB/s", "operation"];
    table(&header, &groups.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::Dtype;
    use crate::gpu::profile::Cost;

    fn operation(name: &str, flops: u64, bytes: u64, seconds: f64) -> Operation {
        let cost = Cost { flops, dtype: Dtype::Bf16, bytes };
        Operation { name: name.to_owned(), cost, product: None, seconds }
    }

    const CARD: Card = Card { name: "a card", dense_bf16_tflops: 100.0, f32_tflops: 10.0, memory_gb_per_s: 1000.0 };

    #[test]
    fn the_same_operations_are_added_up_and_the_longest_come_first() {
        let operations = [
            operation("short", 0, 2_000_000, 0.001),
            operation("long", 100_000_000_000, 1_000_000, 0.002),
            operation("long", 100_000_000_000, 1_000_000, 0.002),
        ];
        let groups = groups(&operations, Some(&CARD));
        assert_eq!(
            text(&groups),
            " share     ms  floor ms  calls  GFLOP   MB  TFLOP/s  GB/s  operation\n\
             80.0 %  4.000     2.000      2  200.0  2.0     50.0   0.5  long\n\
             20.0 %  1.000     0.002      1         2.0            2.0  short"
        );
        assert!((floor_seconds(&groups).unwrap() - 0.002002).abs() < 1e-12);
        let json = json(&groups);
        assert_eq!(json[0]["name"], "long");
        assert_eq!([&json[0]["calls"], &json[1]["calls"]], [2, 1]);
        assert!((json[0]["share"].as_f64().unwrap() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn a_card_without_known_peaks_has_no_floor() {
        let groups = groups(&[operation("one", 1, 1, 0.5)], None);
        assert_eq!(floor_seconds(&groups), None);
        assert!(json(&groups)[0]["floor_seconds"].is_null());
        assert!(text(&groups).contains("n/a"));
    }

    #[test]
    fn without_times_the_shares_are_those_of_the_floor() {
        let operations = [operation("less", 0, 1_000_000, 0.0), operation("more", 0, 3_000_000, 0.0)];
        let text = text(&groups(&operations, Some(&CARD)));
        let rows: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        let expected = [
            "75.0 %         0.003      1         3.0                 more",
            "25.0 %         0.001      1         1.0                 less",
        ];
        assert_eq!(rows, expected);
    }
}
