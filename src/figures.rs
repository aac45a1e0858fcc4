//! Numbers as people read them: counts with separators, bytes in binary units, durations, large quantities.
//!
//! Only words come out of here; nothing is computed from them again.

/// `772,000,000`: a count with a comma between groups of three digits.
pub fn count(value: impl Into<u128>) -> String {
    let digits = value.into().to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `2.86 GiB`: bytes in the largest binary unit that keeps the figure at one or above.
pub fn bytes(value: impl Into<u128>) -> String {
    let value = value.into();
    let mut unit = 0;
    let mut scaled = value as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    while scaled >= 1024.0 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value} B"),
        1 | 2 => format!("{scaled:.1} {}", units[unit]),
        _ => format!("{scaled:.2} {}", units[unit]),
    }
}

/// `4.8 s`, `3 min 20 s`, `5 h 12 min`, `17 days`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "for ever".to_owned();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..360_000 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} days", count((seconds / 86_400.0).round() as u64)),
    }
}

/// `1.23 PFLOP`, `100 GFLOP`: a large quantity with a decimal prefix before its unit.
pub fn scaled(value: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut scaled = value;
    let mut prefix = 0;
    while scaled >= 1000.0 && prefix + 1 < prefixes.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    let figure = format!("{scaled:.2}");
    format!("{} {}{unit}", figure.strip_suffix(".00").unwrap_or(&figure), prefixes[prefix])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_counts_bytes_and_times_as_people_do() {
        assert_eq!(count(0_u64), "0");
        assert_eq!(count(999_u64), "999");
        assert_eq!(count(1_000_u64), "1,000");
        assert_eq!(count(772_000_001_u64), "772,000,001");
        assert_eq!(bytes(1_023_u64), "1023 B");
        assert_eq!(bytes(1_536_u64), "1.5 KiB");
        assert_eq!(bytes(5_u64 << 30), "5.00 GiB");
        assert_eq!(duration(4.84), "4.8 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(18_720.0), "5 h 12 min");
        assert_eq!(duration(86_400.0 * 1_700.0), "1,700 days");
        assert_eq!(duration(f64::INFINITY), "for ever");
        assert_eq!(scaled(4.63e9, "FLOP"), "4.63 GFLOP");
        assert_eq!(scaled(100e9, "FLOP/s"), "100 GFLOP/s");
    }
}
