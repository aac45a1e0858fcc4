//! How long is waited: for an answer, and before a request is made again.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// How long an answer is waited for, and how often a request is repeated.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the beginning of an answer, once the request has gone out.
    pub answer: Duration,
    /// For the next part of a body.
    pub stall: Duration,
    /// So often a request is made before it is given up.
    pub tries: u32,
    /// Before the second try, about; twice as long before each next one.
    pub first_pause: Duration,
    /// The longest pause; who asks for a longer one has given up on us.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            tries: 6,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(330),
        }
    }
}

impl Patience {
    /// Before the next try, after so many: about twice as long as the one before, with a part of it left to chance.
    pub(super) fn pause(&self, tries: u32) -> Duration {
        let whole = self.first_pause.saturating_mul(1 << (tries - 1).min(16)).min(self.longest_pause);
        whole.mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// The same where an answer has asked for a pause: no shorter one, and not all who were asked at the same moment.
    pub(super) fn pause_of(&self, tries: u32, asked: Option<Duration>) -> Duration {
        match asked {
            Some(asked) => asked.saturating_add(self.first_pause.mul_f64(fastrand::f64())),
            None => self.pause(tries),
        }
    }
}

/// How long an answer asks to wait: by Retry-After, in seconds or as a date, or else by the quota that Hugging Face tells
/// of (`RateLimit: "api";r=0;t=55`), where nothing is left of it.
pub(super) fn asked_pause(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(text) = text(RETRY_AFTER.as_str()) {
        if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0) {
            return Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        }
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(http_date(text)?);
        return Some(at.duration_since(now).unwrap_or_default());
    }
    let mut items = text("ratelimit")?.split(';').map(str::trim).skip(1);
    let [left, seconds] = ["r=", "t="].map(|key| {
        let value = items.clone().find_map(|item| item.strip_prefix(key));
        value.and_then(|value| value.parse::<u64>().ok())
    });
    items.next().filter(|_| left == Some(0)).and(seconds).map(Duration::from_secs)
}

/// Seconds of Unix time of a date as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_once(", ")?.1.split(' ').collect();
    let &[day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let time: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let &[hours, minutes, seconds] = time.as_slice() else { return None };
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Years are counted from March, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn dates_are_read_as_unix_time() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199),
            ("Fri, 01 Mar 2024 00:00:00 GMT", 1_709_251_200),
        ] {
            assert_eq!(http_date(text), Some(seconds), "{text}");
        }
        for bad in [
            "",
            "06 Nov 1994",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 06 Abc 1994 08:49:37 GMT",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_pause_is_asked_for_in_seconds_as_a_date_or_by_a_quota_that_is_used_up() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_700);
        let asked = |name: &'static str, value: &str| {
            asked_pause(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]), now)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(asked("retry-after", "7"), seconds(7));
        assert_eq!(asked("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), seconds(77));
        assert_eq!(asked("retry-after", "Sun, 06 Nov 1993 08:49:37 GMT"), seconds(0));
        assert_eq!(asked("retry-after", "1e300"), Some(Duration::MAX));
        assert_eq!(asked("ratelimit", "\"api\";r=0;t=55"), seconds(55));
        for (name, value) in [
            ("retry-after", "soon"),
            ("retry-after", "-1"),
            ("retry-after", "NaN"),
            ("ratelimit", "\"api\";r=3;t=55"),
            ("ratelimit", "\"api\";t=55"),
            ("ratelimit", ""),
            ("x", "1"),
        ] {
            assert_eq!(asked(name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn pauses_double_and_are_no_shorter_than_was_asked() {
        let patience = Patience::default();
        for (tries, whole) in [(1, 1.0), (2, 2.0), (5, 16.0), (9, 256.0), (10, 330.0), (60, 330.0)] {
            let pause = patience.pause(tries).as_secs_f64();
            assert!((whole / 2.0..=whole).contains(&pause), "{tries}: {pause}");
        }
        let pause = patience.pause_of(1, Some(Duration::from_secs(40))).as_secs_f64();
        assert!((40.0..=41.0).contains(&pause), "{pause}");
    }
}
